"""Hamiltonian Monte Carlo: its stationary distribution, the choice at the end, and its settings."""

import math

import mlx.core as mx
import numpy as np
import pytest
from posteriors import CONJUGATE_DATA, assert_agrees_with_conjugates, assert_stationary, conjugates, gaussian

from genmlx import gen, normal, trace
from genmlx.errors import ParameterError, UsageError
from genmlx.inference.gradient_chains import Noise, Tuning
from genmlx.inference.hmc import hmc, init, sampler
from genmlx.inference.leapfrog import Point, evaluate, identity_metric, leapfrog


@gen
def model():
    trace("y", normal(trace("mu", normal(0, 1)), 0.5))


@pytest.mark.parametrize("steps, step_size", [(3, 0.3), (2, 0.9)])
def test_stationary(steps, step_size):
    stats = assert_stationary(lambda f: sampler(f, steps), step_size)
    assert mx.all(stats["n_leapfrog"] == steps).item()


def test_conjugate_posteriors(way):
    post = hmc(conjugates(), CONJUGATE_DATA, draws=30, warmup=60, chains=100, leapfrog_steps=4, key=1)
    assert_agrees_with_conjugates(post)
    assert set(post.stats) == {"accept", "energy", "diverging", "step_size", "n_leapfrog"}


def test_one_transition_by_hand():
    """The choice is between where the trajectory began and where it ends, by the whole change in energy."""
    value_and_grad, n = gaussian(), 200
    start = evaluate(value_and_grad, mx.random.normal((n, 3), key=mx.random.key(0)))
    tuning = Tuning(mx.array(0.5), identity_metric(3))
    keys = mx.random.split(mx.random.key(1), 4)
    uniforms = [mx.random.uniform(shape=(n, 1), key=k) for k in keys[:3]]
    noise = Noise(mx.random.normal((n, 3), key=keys[3]), tuple(uniforms))
    steps = sampler(value_and_grad, 3)
    state = steps.init(start, noise, tuning)
    assert isinstance(init(start, noise, tuning).here, Point)
    for _ in range(3):
        state, info = steps.step(state, noise, tuning)
    assert mx.all(info.done).item()
    momentum, time = noise.normal, 0.5 * (1 + 0.2 * (2 * uniforms[1] - 1))
    before = 0.5 * mx.sum(momentum**2, axis=-1, keepdims=True) - start.log_prob
    point = start
    for _ in range(3):
        point, momentum = leapfrog(value_and_grad, tuning.metric, point.position, point.gradient, momentum, time)
    lost = before - (0.5 * mx.sum(momentum**2, axis=-1, keepdims=True) - point.log_prob)
    accepted = mx.log(uniforms[0]) < lost
    expected = mx.where(accepted, point.position, start.position)
    assert 20 < mx.sum(accepted).item() < 199
    assert mx.allclose(info.point[:, :3], expected, atol=1e-5).item()
    assert mx.allclose(info.stats["accept"], mx.exp(mx.minimum(lost, 0.0)), atol=1e-5).item()


def test_trajectories_of_a_length_have_as_many_steps_as_it_takes(way):
    post = hmc(model(), {"y": 1.5}, draws=20, warmup=150, chains=20, trajectory=2.0, key=2)
    steps, size = post.stats["n_leapfrog"][0, 0].item(), post.stats["step_size"][0, 0].item()
    assert steps == math.ceil(2.0 / size)
    assert mx.all(post.stats["n_leapfrog"] == steps).item()


def test_the_acceptance_is_what_was_asked_for(way):
    for target in (0.6, 0.95):
        post = hmc(model(), {"y": 1.5}, draws=200, warmup=1000, chains=20, target_accept=target, key=3)
        assert abs(mx.mean(post.stats["accept"]).item() - target) < 0.06


def test_the_model_is_traced_a_constant_number_of_times(way):
    """Case 51."""
    runs = []

    @gen
    def counted():
        runs.append(1)
        trace("y", normal(trace("mu", normal(0, 1)), 0.5))

    counts = []
    for draws, warmup, chains in ((10, 10, 2), (500, 200, 2), (10, 10, 200)):
        runs.clear()
        hmc(counted(), {"y": 1.5}, draws=draws, warmup=warmup, chains=chains, key=1)
        counts.append(len(runs))
    assert counts[0] == counts[1] == counts[2] < 30


def test_a_trajectory_that_leaves_the_numbers_is_rejected_and_counted():
    def cliff(u):
        inside = mx.abs(u[:, 0]) < 1
        return mx.where(inside, 0.0, math.nan), mx.where(inside[:, None], -u, math.nan)

    point = evaluate(cliff, mx.zeros((50, 1)))
    tuning = Tuning(mx.array(0.7), identity_metric(1))
    uniforms = [mx.full((50, 1), 0.5)] * 3
    noise = Noise(mx.random.normal((50, 1), key=mx.random.key(0)), tuple(uniforms))
    steps = sampler(cliff, 1)
    _, info = steps.step(steps.init(point, noise, tuning), noise, tuning)
    out = np.array(info.stats["diverging"])[:, 0] > 0
    assert 2 < out.sum() < 48
    assert np.all(np.array(info.point)[out, 0] == 0) and np.all(np.isfinite(np.array(info.point)))


def test_wrong_settings_raise():
    with pytest.raises(UsageError, match="one of the two"):
        hmc(model(), {"y": 1.0}, leapfrog_steps=3, trajectory=1.0)
    for wrong in ({"leapfrog_steps": 0}, {"leapfrog_steps": 2**24 + 1}, {"trajectory": -1.0}, {"target_accept": 2.0}):
        with pytest.raises(ParameterError):
            hmc(model(), {"y": 1.0}, **wrong)
