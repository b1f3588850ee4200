"""Chains as machine code: what they draw, alone and together, in whatever blocks and on whatever threads."""

import concurrent.futures
import os

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from native_densities import cliff, funnel, gaussian_value, native, native_gaussian, native_schools
from posteriors import COVARIANCE, MEAN

from genmlx import random
from genmlx.diagnostics import ess, mcse, rhat
from genmlx.inference import loop as loop_module
from genmlx.inference.leapfrog import metric
from genmlx.inference.loop import Loop
from genmlx.inference.record import Record
from genmlx.inference.warmup import Warmup, Welford
from genmlx.native import chains
from genmlx.native.chains import METHODS, NativeWalk

SETTINGS = {
    "nuts": {"max_depth": 6},
    "hmc": {"leapfrog_steps": 3},
    "mala": {},
    "random_walk": {},
}
SIZES = {"nuts": 0.3, "hmc": 0.3, "mala": 0.6, "random_walk": 0.8}


def run(walk, key=7, **how):
    """Positions, statistics, and what a progress callback was told."""
    events = []
    with Loop("test", events.append) as loop:
        positions, stats = walk.run(loop, random.streams(key), **how)
    return positions, {name: np.array(value) for name, value in stats.items()}, events


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_exact_draws_stay_exact_draws(method, dense):
    """4,000 chains that begin at draws of the Gaussian: means and second moments within 4.5 standard errors.

    Catches every error of a sampler that changes its stationary distribution.
    """
    n, rng = 4000, np.random.default_rng(0)
    start = rng.multivariate_normal(MEAN, COVARIANCE, size=n)
    walk = NativeWalk(method, native_gaussian(), start, dense, SETTINGS[method])
    walk.tune(SIZES[method], metric(COVARIANCE if dense else np.array([0.8, 1.2, 0.6]), 3))
    with Loop("test") as loop:
        walk.begin(random.streams(5))
        positions = _sampled(walk, loop, 3)
    end = positions.astype(float)
    assert np.mean(np.any(np.abs(end - start) > 1e-6, axis=1)) > 0.5
    moments = [end - MEAN, (end - MEAN) ** 2, (end - MEAN) * np.roll(end - MEAN, 1, axis=1)]
    truths = [0.0, np.diag(COVARIANCE), [COVARIANCE[i, i - 1] for i in range(3)]]
    for found, truth in zip(moments, truths, strict=True):
        z = (found.mean(axis=0) - truth) / (found.std(axis=0) / np.sqrt(n))
        assert np.all(np.abs(z) < 4.5), z


def _sampled(walk, loop, transitions):
    record = Record(walk, 1, transitions)
    walk.end_warmup()
    loop.run("sampling", transitions, lambda start, stop: walk.sample(record, stop))
    return record.positions[:, 0]


# Posterior means of eight schools by quadrature over mu and log tau, the effects integrated out.
MEANS = {"mu": 4.3968, "tau": 3.5977, "log tau": 0.8021, "theta 1": 6.2119}


def of_schools(positions):
    mu, log_tau, z = positions[..., 0].astype(float), positions[..., 1].astype(float), positions[..., 2].astype(float)
    return {"mu": mu, "tau": np.exp(log_tau), "log tau": log_tau, "theta 1": mu + np.exp(log_tau) * z}


def assert_agree_with_quadrature(positions, errors=4.0, least=2000):
    for name, values in of_schools(positions).items():
        draws = mx.array(values.astype(np.float32))
        assert float(ess(draws)) > least and float(rhat(draws)) < 1.01, name
        off = (values.mean() - MEANS[name]) / float(mcse(draws))
        assert abs(off) < errors, f"{name}: {off} standard errors"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ["nuts", "hmc"])
def test_eight_schools_by_400_000_draws(method, dtype):
    start = np.random.default_rng(0).normal(size=(8, 10))
    walk = NativeWalk(method, native_schools(dtype), start, False, {"max_depth": 10, "trajectory": 1.5})
    positions, stats, _ = run(walk, draws=50_000, warmup=1000, target_accept=0.95)
    assert_agree_with_quadrature(positions, least=20_000)
    assert walk.execution == f"native ({np.dtype(dtype).name})"
    assert stats["diverging"].mean() < 0.001


@pytest.mark.slow
@pytest.mark.parametrize("method, thin", [("mala", 10), ("random_walk", 50)])
def test_eight_schools_by_small_steps(method, thin):
    start = np.random.default_rng(0).normal(size=(8, 10))
    walk = NativeWalk(method, native_schools(np.float64), start, True, {})
    target = {"mala": 0.8, "random_walk": 0.234}[method]
    positions, _, _ = run(walk, draws=20_000, warmup=2000, thin=thin, target_accept=target)
    assert_agree_with_quadrature(positions, least=2000)


HOW = {"draws": 60, "warmup": 160, "thin": 2}


def walk_of(method, n=5, dense=False, dtype=np.float64):
    start = np.random.default_rng(1).normal(size=(n, 10))
    return NativeWalk(method, native_schools(dtype), start, dense, {**SETTINGS[method], "max_depth": 6})


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_draws_depend_neither_on_blocks_nor_on_threads(monkeypatch, method, dense):
    """Bit for bit: blocks as they come, of one transition, and of everything at once; one thread, and three."""
    whole, stats, _ = run(walk_of(method, dense=dense), **HOW)
    for target, slowest, processors, worth in ((0.0, 1e9, 1, 1e9), (1e9, 1e9, 3, 0.0), (0.0, 1e9, 3, 0.0)):
        monkeypatch.setattr(loop_module, "_TARGET", target)
        monkeypatch.setattr(loop_module, "_SLOWEST", slowest)
        monkeypatch.setattr(chains, "_processors", lambda processors=processors: processors)
        monkeypatch.setattr(chains, "_WORTH", worth)
        again, others, _ = run(walk_of(method, dense=dense), **HOW)
        assert np.array_equal(whole, again)
        assert all(np.array_equal(stats[name], others[name]) for name in stats)
    other, _, _ = run(walk_of(method, dense=dense), key=8, **HOW)
    assert not np.array_equal(whole, other)
    assert len(np.unique(whole[:, :, 0])) > 0.4 * whole[:, :, 0].size  # chains that differ, draws that differ


def test_threads_take_all_chains(monkeypatch):
    """Many chains over two threads: each is moved once."""
    monkeypatch.setattr(chains, "_processors", lambda: 2)
    monkeypatch.setattr(chains, "_WORTH", 0.0)
    walk = walk_of("hmc", n=301)
    walk.begin(random.streams(1))
    walk._over_chains(lambda i: walk.drivers.advance(walk._at(i), walk._transition, 1), 1)
    assert [chain.kept for chain in walk._chains] == [1] * 301


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_threads_after_a_fork():
    """The threads of a parent are not in its child."""
    chains._pool().submit(int).result()
    if (child := os.fork()) == 0:
        done = chains._pool().submit(int)
        os._exit(0 if concurrent.futures.wait([done], timeout=20).done else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_warm_up_is_that_of_the_schedule(monkeypatch):
    """The metric is made of the draws of all chains in its window, and nothing else; then the step size starts over."""
    seen, learned = [], []
    passed = Warmup.passed

    def told(self, transitions):
        found = passed(self, transitions)
        if found:
            learned.append((self._done, np.array(self.metric.inverse_mass)))
        return found

    advance = NativeWalk.warm

    def by_one(self, start, stop):
        for at in range(start, stop):
            advance(self, at, at + 1)
            seen.append(self._places.copy())

    monkeypatch.setattr(Warmup, "passed", told)
    monkeypatch.setattr(NativeWalk, "warm", lambda *args: (by_one(*args), args[0]._told())[1])
    walk = walk_of("nuts")
    run(walk, draws=1, warmup=250)
    assert [end for end, _ in learned] == walk.learned.ends == [100, 200]
    for (begin, end), (_, inverse_mass) in zip([(75, 100), (100, 200)], learned, strict=True):
        expected = Welford(10, False)
        expected.add(mx.array(np.concatenate(seen[begin:end]).astype(np.float32)))
        assert np.allclose(inverse_mass, np.array(expected.regularised()), rtol=1e-4)
    assert np.allclose(walk._metric[0], learned[-1][1]) and np.allclose(walk._metric[1], learned[-1][1] ** -0.5)


@pytest.mark.parametrize("method, target", [("nuts", 0.9), ("mala", 0.574), ("random_walk", 0.234)])
def test_the_acceptance_is_what_was_asked_for(method, target):
    start = np.random.default_rng(1).normal(size=(20, 3))
    walk = NativeWalk(method, native_gaussian(), start, False, SETTINGS[method])
    _, stats, _ = run(walk, draws=200, warmup=1000, target_accept=target)
    assert abs(stats["accept"].mean() - target) < 0.09


def test_a_funnel_diverges():
    start = np.random.default_rng(0).normal(size=(20, 3))
    walk = NativeWalk("nuts", native(funnel, 3), start, False, {"max_depth": 10})
    positions, stats, events = run(walk, draws=60, warmup=60)
    assert stats["diverging"].sum() > 5 and np.all(np.isfinite(positions))
    assert events[-1].info["divergences"] == stats["diverging"].sum()


@pytest.mark.parametrize("method", METHODS)
def test_where_the_density_is_not_a_number_a_chain_never_goes(method):
    walk = NativeWalk(method, native(cliff, 1), np.zeros((50, 1)), False, {"max_depth": 5, "leapfrog_steps": 2})
    positions, stats, _ = run(walk, draws=40, warmup=0, step_size=0.7)
    assert np.all(np.abs(positions) < 1) and 0.3 < positions.std() < 0.65
    if "diverging" in stats:
        assert 0.1 < stats["diverging"].mean() < 0.99
    if method == "hmc":
        assert np.all(stats["accept"][stats["diverging"]] == 0)
        assert np.all(stats["n_leapfrog"][~stats["diverging"]] == 2)


def test_a_position_of_which_the_start_is_not_a_number_has_no_density():
    walk = NativeWalk("hmc", native(cliff, 1), np.array([[2.0], [0.5]]), False, {})
    values, gradients = walk.value_and_grad
    assert values.tolist() == [-np.inf, 0.0] and gradients[1].tolist() == [0.0]


def test_the_random_walk_asks_for_no_gradient():
    """One output: a gradient that were written would go astray."""
    start = np.random.default_rng(1).normal(size=(4, 3))
    with_gradient = NativeWalk("random_walk", native_gaussian(), start, False, {})
    density = native(gaussian_value, 3, MEAN, np.linalg.inv(COVARIANCE), gradients=False)
    without = NativeWalk("random_walk", density, start, False, {})
    one, other = (run(walk, draws=30, warmup=30)[0] for walk in (with_gradient, without))
    assert np.array_equal(one, other) and not np.any(without.value_and_grad[1])


def test_thinning_keeps_every_nth_draw():
    every, _, _ = run(walk_of("nuts"), draws=30, warmup=20)
    third, _, _ = run(walk_of("nuts"), draws=10, warmup=20, thin=3)
    assert np.array_equal(every[:, 2::3], third)


def test_the_depth_of_trees_is_bounded():
    for depth in (1, 3):
        walk = NativeWalk("nuts", native_gaussian(), np.zeros((4, 3)), False, {"max_depth": depth})
        _, stats, _ = run(walk, draws=30, warmup=0, step_size=1e-3)
        assert np.all(stats["n_leapfrog"] == 2**depth - 1) and np.all(stats["tree_depth"] == depth)
        assert np.all(stats["reached_max_depth"])


def test_a_chain_that_starts_far_out_comes_in():
    """Catches a step size shared from the first transition on."""
    start = np.zeros((20, 10))
    start[0] = 300.0
    start[0, 1] = 3.0
    walk = NativeWalk("nuts", native_schools(np.float64), start, False, {"max_depth": 8})
    positions, _, _ = run(walk, draws=20, warmup=150)
    assert np.abs(positions[0]).max() < 60 and np.all(positions[0].std(axis=0) > 0.1)
