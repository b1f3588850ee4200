"""Automatic differentiation of expected values: estimators per site, composed through a generative function."""

from genmlx.inference.adev.baselines import RunningMean as RunningMean
from genmlx.inference.adev.expectation import Estimate as Estimate
from genmlx.inference.adev.expectation import Expectation as Expectation
from genmlx.inference.adev.expectation import Gradient as Gradient
from genmlx.inference.adev.expectation import expectation as expectation
from genmlx.inference.adev.sites import EstimatorError as EstimatorError
