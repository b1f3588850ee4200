"""Langevin proposals and random walks: their ratios, and their stationary distributions."""

import mlx.core as mx
import numpy as np
import pytest
from posteriors import (
    CONJUGATE_DATA,
    COVARIANCE,
    assert_agrees_with_conjugates,
    assert_stationary,
    conjugates,
    gaussian,
)
from scipy import stats

from genmlx import gen, normal, trace
from genmlx.inference.gradient_chains import Tuning, noises
from genmlx.inference.leapfrog import evaluate, identity_metric, metric
from genmlx.inference.mala import init, log_acceptance, mala, sampler
from genmlx.inference.random_walk import random_walk
from genmlx.inference.random_walk import sampler as walk_sampler


def standard(u):
    return -0.5 * mx.sum(u * u, axis=-1), -u


def test_the_log_ratio_of_a_standard_normal():
    """Case 39: tau = 0.1, that is a step size of sqrt(0.2), from 1 to 0.5."""
    old, new = (evaluate(standard, mx.array([[x]])) for x in (1.0, 0.5))
    assert log_acceptance(old, new, 0.2**0.5, identity_metric(1)).item() == pytest.approx(0.01875, abs=1e-6)


@pytest.mark.parametrize("covariance", [np.diag([2.0, 0.5, 1.0]), COVARIANCE], ids=["diagonal", "dense"])
def test_the_log_ratio_on_vectors_is_that_of_the_proposal_densities(covariance):
    value_and_grad, rng, step = gaussian(), np.random.default_rng(0), 0.7
    x, y = rng.normal(size=(2, 5, 3)).astype(np.float32)
    old, new = (evaluate(value_and_grad, mx.array(point)) for point in (x, y))
    dense = np.count_nonzero(covariance) > 3
    found = log_acceptance(old, new, step, metric(covariance if dense else np.diag(covariance), 3))

    def log_q(start, end, i):
        drift = np.array(start.position)[i] + 0.5 * step**2 * covariance @ np.array(start.gradient)[i]
        return stats.multivariate_normal(drift, step**2 * covariance).logpdf(np.array(end.position)[i])

    for i in range(5):
        joint = (new.log_prob - old.log_prob)[i, 0].item()
        assert found[i, 0].item() == pytest.approx(joint + log_q(new, old, i) - log_q(old, new, i), abs=1e-3)


def test_the_noise_of_a_vector_is_not_shared_by_its_elements():
    """Defect 5."""
    point = evaluate(standard, mx.zeros((500, 3)))
    state = init(point, next(noises(mx.random.key(0), 500, 3)), Tuning(mx.array(0.1), identity_metric(3)))
    assert np.all(np.abs(np.corrcoef(np.array(state.momentum).T) - np.eye(3)) < 0.2)


@pytest.mark.parametrize("dense", [False, True])
def test_stationary(dense):
    m = metric(COVARIANCE if dense else [0.5, 2.0, 1.0], 3)
    found = assert_stationary(sampler, 0.8, transitions=5, metric=m)
    assert 0.2 < mx.mean(found["accept"]).item() < 0.95


def test_a_random_walk_is_stationary():
    assert_stationary(walk_sampler, 0.9, transitions=10, metric=metric(COVARIANCE, 3))


def test_conjugate_posteriors(way):
    assert_agrees_with_conjugates(mala(conjugates(), CONJUGATE_DATA, draws=120, warmup=100, chains=100, key=1))


def test_conjugate_posteriors_by_a_random_walk(way):
    post = random_walk(conjugates(), CONJUGATE_DATA, draws=200, warmup=150, chains=200, key=2)
    assert_agrees_with_conjugates(post)
    assert 0.1 < mx.mean(post.stats["accept"]).item() < 0.4


@gen
def model():
    trace("y", normal(trace("mu", normal(0, 1)), 0.5))


def test_a_scale_that_is_given_stays_without_warmup(way):
    post = random_walk(model(), {"y": 1.5}, draws=20, warmup=0, chains=2, scale=0.25, key=3)
    assert mx.all(post.stats["step_size"] == 0.25).item()


def test_the_acceptance_is_what_was_asked_for(way):
    post = mala(model(), {"y": 1.5}, draws=100, warmup=300, chains=50, key=3)
    assert abs(mx.mean(post.stats["accept"]).item() - 0.574) < 0.06
