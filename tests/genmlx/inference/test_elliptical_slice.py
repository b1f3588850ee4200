"""Elliptical slices: exact Gaussian posteriors, priors that depend on each other, and what is no Gaussian."""

import math

import mlx.core as mx
import numpy as np
import pytest
from posteriors import assert_agrees

from genmlx import exponential, gen, multivariate_normal, normal, select, trace
from genmlx.errors import UsageError
from genmlx.inference.elliptical_slice import _angles, elliptical_slice

COVARIANCE = mx.array([[2.0, 0.5], [0.5, 1.0]])


@gen
def linear():
    """The mean of v depends on a, which is sampled too; neither mean is zero."""
    a = trace("a", normal(3, 2.0))
    v = trace("v", multivariate_normal(mx.stack([mx.ones_like(a), a]), COVARIANCE))
    trace("y", normal(a + v[0] - v[1], 0.5))
    trace("w", normal(v, 1.0))


def linear_posterior(y, w):
    """Of (a, v0, v1), by the Gaussian formulas."""
    to_prior = np.array([[2.0, 0, 0], [0, 0, 0], [2.0, 0, 0]])
    to_prior[1:, 1:] = np.linalg.cholesky(np.array(COVARIANCE))
    mean, prior = np.array([3.0, 1.0, 3.0]), to_prior @ to_prior.T
    design = np.array([[1.0, 1, -1], [0, 1, 0], [0, 0, 1]])
    noise = np.diag([0.25, 1, 1])
    gain = prior @ design.T @ np.linalg.inv(design @ prior @ design.T + noise)
    return mean + gain @ (np.array([y, *w]) - design @ mean), prior - gain @ design @ prior


def test_a_linear_gaussian_model(way):
    """Catches a prior mean taken as zero, one taken at the old choices, and a covariance lost."""
    post = elliptical_slice(linear(), {"y": 1.0, "w": mx.array([0.0, 2.0])}, draws=100, warmup=50, chains=60, key=1)
    mean, covariance = linear_posterior(1.0, [0.0, 2.0])
    sd = np.sqrt(np.diag(covariance))
    assert_agrees(post, "a", mean[0], sd[0])
    assert_agrees(post, "v", mean[1:], sd[1:])
    assert mx.mean(post.stats["accept"]).item() > 0.99 and mx.mean(post.stats["shrinks"]).item() > 0.5
    assert post.execution == way


def test_a_likelihood_that_is_not_gaussian(way):
    @gen
    def model():
        trace("t", exponential(mx.exp(trace("x", normal(1.0, 1.0)))))

    grid = np.linspace(-8, 8, 20001)
    density = np.exp(-0.5 * (grid - 1) ** 2 + grid - 2.0 * np.exp(grid))
    mean = (density * grid).sum() / density.sum()
    sd = math.sqrt((density * grid**2).sum() / density.sum() - mean**2)
    assert_agrees(elliptical_slice(model(), {"t": 2.0}, draws=60, warmup=30, chains=60, key=2), "x", mean, sd)


def test_the_angles_of_a_bracket_that_shrinks():
    angles = np.array(_angles(mx.array([0.75, 0.5, 0.9, 0.1])))
    first = 1.5 * math.pi
    second = 0.5 * (first + first - 2 * math.pi)  # in the middle of [first - 2 pi, first]
    assert second > 0
    third = first - 2 * math.pi + 0.9 * (second - first + 2 * math.pi)
    low, high = (first - 2 * math.pi, third) if third > 0 else (third, second)
    assert np.allclose(angles, [first, second, third, low + 0.1 * (high - low)], atol=1e-5)


@gen
def mixed():
    rate = trace("rate", exponential(1.0))
    trace("y", normal(trace("x", normal(0, 1)), rate))


def test_a_selection_moves_alone(way):
    post = elliptical_slice(mixed(), {"y": 1.0}, selection="x", draws=20, warmup=0, chains=3, key=3)
    assert all(len(set(row)) == 1 for row in post["rate"].tolist())
    assert all(len(set(row)) > 15 for row in post["x"].tolist())


@pytest.mark.parametrize("selection", [None, select("rate")])
def test_a_prior_that_is_not_gaussian_raises(way, selection):
    with pytest.raises(UsageError, match="not Gaussian: it is exponential.*'rate'"):
        elliptical_slice(mixed(), {"y": 1.0}, selection=selection)


def test_an_observation_cannot_be_selected(way):
    """Defect 9."""
    with pytest.raises(UsageError, match="observed"):
        elliptical_slice(mixed(), {"y": 1.0}, selection=select("y"))
