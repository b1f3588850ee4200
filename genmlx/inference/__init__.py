"""Inference algorithms, one per file."""

from genmlx.inference.importance import importance_resampling as importance_resampling
from genmlx.inference.importance import importance_sampling as importance_sampling
from genmlx.inference.loop import InferenceInterrupted as InferenceInterrupted
from genmlx.inference.loop import Progress as Progress
from genmlx.inference.mh import mh as mh
from genmlx.inference.particles import Particles as Particles
from genmlx.inference.posterior import Posterior as Posterior
