"""The no-U-turn sampler: its trees, its stationary distribution, its warm-up, and what it reports."""

import math
import os
import signal
import threading

import mlx.core as mx
import numpy as np
import pytest
from posteriors import (
    CONJUGATE_DATA,
    SCHOOLS,
    assert_agrees,
    assert_agrees_with_conjugates,
    assert_stationary,
    conjugates,
    eight_schools,
    gaussian,
)

from genmlx import exponential, flip, gen, normal, random, trace
from genmlx.diagnostics import ess
from genmlx.errors import ParameterError, UsageError
from genmlx.inference.gradient_chains import Noise, Tuning, Walk, noises
from genmlx.inference.leapfrog import evaluate, identity_metric, leapfrog, metric
from genmlx.inference.loop import Loop
from genmlx.inference.nuts import _tree_table, init, nuts, sampler, step

DATA = {"y": mx.array([0.5, 1.0, 3.0])}


@gen
def small():
    mu = trace("mu", normal(0, 1))
    z = trace("z", normal(mx.zeros(3), 1.0))
    trace("y", normal(mu + z, 0.5))


def test_which_leaves_begin_and_end_which_trees():
    """Against the definition: the tree of 2^k leaves that ends at leaf j began at j + 1 - 2^k, if 2^k divides j + 1."""
    table, kept = _tree_table(7), {}
    for leaf in range(64):
        begins, ends = table[leaf, :, 0], table[leaf, :, 1]
        assert begins.sum() == (leaf % 2 == 0)
        if leaf % 2 == 0:
            kept[int(np.argmax(begins))] = leaf
        expected = sorted(leaf + 1 - 2**k for k in range(1, 7) if (leaf + 1) % 2**k == 0)
        assert sorted(kept[place] for place in np.flatnonzero(ends)) == expected


def test_trajectories_are_those_of_the_recursive_algorithm():
    """The tree of a chain, leaf for leaf and draw for draw, against one that is built recursively from the same noise.

    Catches a criterion that is evaluated on the wrong ends or sums, a weight lost in a merge, and a subtree that is
    kept although it turned.
    """
    value_and_grad, n, dim, size = gaussian(), 30, 3, 0.35
    start = evaluate(value_and_grad, mx.random.normal((n, dim), key=mx.random.key(1)))
    supply = noises(mx.random.key(2), n, dim)
    tuning = Tuning(mx.array(size), metric([1.5, 1.0, 0.5], dim))
    first = next(supply)
    state, taken, ended = init(start, first, tuning, 6), [], {}
    while len(ended) < n:
        noise = next(supply)
        taken.append(noise)
        state, info = step(state, noise, tuning, value_and_grad, 6)
        for chain in np.flatnonzero(np.array(info.done)[:, 0]):
            if chain not in ended:
                stats = {name: np.array(value)[chain, 0] for name, value in info.stats.items()}
                ended[chain] = (np.array(info.point)[chain, :dim], stats)
    steps = set()
    for chain in range(n):
        oracle = _Recursive(value_and_grad, tuning, first, taken, start, chain)
        position, count, accept = oracle.run(6)
        point, stats = ended[chain]
        assert stats["n_leapfrog"] == count
        assert np.allclose(point, position, atol=1e-4)
        assert stats["accept"] == pytest.approx(accept, abs=1e-4)
        steps.add(count)
    assert len(steps) > 4  # trees that stopped when full, and within a subtree


class _Recursive:
    """Betancourt (2017), appendix A.4.2, with one uniform for each leaf, each merge and each direction."""

    def __init__(self, value_and_grad, tuning, first, noises, start, chain):
        self.value_and_grad, self.tuning, self.noises, self.chain = value_and_grad, tuning, noises, chain
        row = slice(chain, chain + 1)
        self.q, self.g = start.position[row], start.gradient[row]
        self.p = tuning.metric.momentum(first.normal[row])
        self.energy0 = (tuning.metric.kinetic(self.p) - start.log_prob[row]).item()
        self.forward = self.uniform(first, 2) >= 0.5
        self.count, self.accept = 0, 0.0

    def uniform(self, noise, which):
        return noise.uniforms[which][self.chain, 0].item()

    def turned(self, leaves):
        first, last = leaves[0], leaves[-1]
        rho = sum(p for _, _, p, _ in leaves) - 0.5 * (first[2] + last[2])
        return any((rho * self.tuning.metric.velocity(end[2])).sum().item() <= 0 for end in (first, last))

    def run(self, max_depth):
        tree, drawn, weight = [(self.q, self.g, self.p, 0.0)], self.q, 0.0
        for depth in range(max_depth):
            end = tree[-1] if self.forward else tree[0]
            below, below_drawn, below_weight, stop = [], None, -math.inf, False
            for _ in range(2**depth):
                q, g, p, _ = below[-1] if below else end
                noise = self.noises[self.count]
                time = self.tuning.step_size * (1 if self.forward else -1)
                point, p = leapfrog(self.value_and_grad, self.tuning.metric, q, g, p, time)
                lost = self.energy0 - (self.tuning.metric.kinetic(p) - point.log_prob).item()
                self.count, self.accept = self.count + 1, self.accept + min(1.0, math.exp(lost))
                below.append((point.position, point.gradient, p, lost))
                below_weight = np.logaddexp(below_weight, lost)
                if math.log(self.uniform(noise, 0)) < lost - below_weight:
                    below_drawn = point.position
                if any(len(below) % 2**k == 0 and self.turned(below[-(2**k) :]) for k in range(1, depth + 1)):
                    stop = True
                    break
            if stop:
                break
            if math.log(self.uniform(noise, 1)) < below_weight - weight:
                drawn = below_drawn
            weight = np.logaddexp(weight, below_weight)
            tree = tree + below if self.forward else below[::-1] + tree
            if self.turned(tree):
                break
            if self.uniform(noise, 2) < 0.5:
                self.forward = not self.forward
        return np.array(drawn)[0], self.count, self.accept / self.count


@pytest.mark.parametrize("step_size", [0.3, 1.0])
def test_stationary(step_size):
    stats = assert_stationary(sampler, step_size)
    assert mx.max(stats["n_leapfrog"]).item() > 3


def test_every_coordinate_has_a_momentum_of_its_own():
    """Defect 5: a momentum drawn once per leaf moves a vector along its diagonal only."""
    start = evaluate(gaussian(), mx.zeros((500, 3)))
    noise = next(noises(mx.random.key(0), 500, 3))
    momentum = np.array(init(start, noise, Tuning(mx.array(0.1), identity_metric(3)), 5).here)[:, 6:]
    assert np.all(np.abs(np.corrcoef(momentum.T) - np.eye(3)) < 0.2)


def test_chains_do_not_share_noise():
    noise = next(noises(mx.random.key(0), 400, 2))
    assert isinstance(noise, Noise)
    rows = [np.array(noise.normal)[:, 0], np.array(noise.normal)[:, 1], *[np.array(u)[:, 0] for u in noise.uniforms]]
    assert all(len(np.unique(row)) > 390 for row in rows)
    assert np.all(np.abs(np.corrcoef(rows) - np.eye(5)) < 0.2)


@pytest.mark.slow
def test_conjugate_posteriors(way):
    post = nuts(conjugates(), CONJUGATE_DATA, draws=60, warmup=60, chains=20, max_depth=5, key=1)
    assert_agrees_with_conjugates(post)
    assert post.status == "complete" and post.execution == way
    assert 0.7 < mx.mean(post.stats["accept"]).item() < 0.95


def test_what_it_reports(way):
    post = nuts(small(), DATA, draws=20, warmup=30, chains=3, key=2)
    names = {"accept", "energy", "diverging", "step_size", "n_leapfrog", "tree_depth", "reached_max_depth"}
    assert set(post.stats) == names and all(post.stats[name].shape == (3, 20) for name in names)
    assert post.stats["diverging"].dtype == mx.bool_ and post.stats["n_leapfrog"].dtype == mx.int32
    leaps, depth = np.array(post.stats["n_leapfrog"]), np.array(post.stats["tree_depth"])
    assert np.all(leaps >= 2 ** (depth - 1)) and np.all(leaps < 2**depth)
    joint = post.trace(1, 3).score.item()
    assert post.log_joint[1, 3].item() == pytest.approx(joint, rel=1e-4)
    # Kinetic energy is positive: energy = kinetic - log density with its Jacobian.
    assert np.all(np.isfinite(np.array(post.stats["energy"])))


@pytest.mark.slow
def test_eight_schools(way):
    post = nuts(eight_schools(), {"y": mx.array(SCHOOLS)}, draws=600, warmup=250, chains=8, key=1)
    for address, truth in (("mu", 4.3968), ("tau", 3.5977)):
        assert post.ess(address) >= 400
        assert abs(post.mean(address).item() - truth) < 4.5 * post.mcse(address)
    assert all(np.all(np.asarray(post.rhat(address)) < 1.01) for address in post.addresses())
    assert mx.mean(post.stats["diverging"]).item() < 0.02


@pytest.mark.parametrize("dense", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_correlated_gaussian_of_condition_number_ten_thousand(dense):
    """Rotated, so that only a dense mass matrix is of help; without one the trees are long."""
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    covariance = rotation @ np.diag([1.0, 0.1, 1e-4]) @ rotation.T
    value_and_grad = gaussian(covariance, np.zeros(3))
    chains, draws = (10, 100) if dense else (40, 50)
    start = mx.random.normal((chains, 3), key=mx.random.key(0)) * 0.1
    walk = Walk(sampler(value_and_grad, 8), value_and_grad, start, dense)
    with Loop("nuts") as loop:
        positions, stats = walk.run(loop, random.streams(3), draws=draws, warmup=100)
    along = positions.reshape(-1, 3).astype(float) @ rotation / np.sqrt([1.0, 0.1, 1e-4])
    count = len(along)
    effective = np.asarray(ess(mx.array(along.reshape(chains, draws, 3).astype(np.float32))))
    assert np.all(effective >= 400)
    assert np.all(np.abs(along.mean(axis=0)) < 4.5 * along.std(axis=0) / np.sqrt(np.minimum(effective, count)))
    assert np.all(np.abs(along.std(axis=0) - 1) < 0.1)
    if dense:
        assert mx.mean(stats["n_leapfrog"].astype(mx.float32)).item() < 15


def funnel(u):
    def logp(u):
        v, x = u[:, :1], u[:, 1:]
        return mx.sum(-0.5 * (v / 3) ** 2 - 0.5 * x * x * mx.exp(-v) - 0.5 * v, axis=-1)

    def total(u):
        values = logp(u)
        return mx.sum(values), values

    (_, values), gradient = mx.value_and_grad(total)(u)
    return values, gradient


def test_a_funnel_diverges():
    walk = Walk(sampler(funnel), funnel, mx.random.normal((20, 3), key=mx.random.key(0)))
    with Loop("nuts") as loop:
        positions, stats = walk.run(loop, random.streams(3), draws=60, warmup=60)
    assert mx.sum(stats["diverging"]).item() > 5
    assert np.all(np.isfinite(positions))


def test_a_chain_that_starts_far_out_comes_in():
    """Catches a step size shared from the first transition on: the many that are well leave this one where it is."""
    far = mx.array([[1e4, -1e4, 1e4]] + [[0.0, 0.0, 0.0]] * 19)

    def stiff(u):
        value, gradient = gaussian()(u)
        size = mx.sum(u**4, axis=-1)
        return value - 0.01 * size, gradient - 0.04 * u**3

    walk = Walk(sampler(stiff), stiff, far)
    with Loop("nuts") as loop:
        positions, _ = walk.run(loop, random.streams(3), draws=20, warmup=150)
    assert np.abs(positions[0]).max() < 10 and np.all(positions[0].std(axis=0) > 0.1)


def test_the_depth_of_trees_is_bounded():
    value_and_grad = gaussian()
    for depth in (1, 3):
        walk = Walk(sampler(value_and_grad, depth), value_and_grad, mx.zeros((4, 3)))
        with Loop("nuts") as loop:
            _, stats = walk.run(loop, random.streams(3), draws=30, warmup=0, step_size=1e-3)
        assert mx.all(stats["n_leapfrog"] == 2**depth - 1).item()
        assert mx.all(stats["tree_depth"] == depth).item()


def test_bounded_choices_move_in_an_unconstrained_space(way):
    """Defect 10: without transforms draws leave the support, or pile up at its edge."""

    @gen
    def model():
        trace("y", normal(0.0, trace("scale", exponential(5.0))))

    post = nuts(model(), {"y": 0.02}, draws=80, warmup=100, chains=50, key=4)
    grid = np.exp(np.linspace(-12, 2, 20001))
    density = 5 * np.exp(-5 * grid) * np.exp(-0.5 * (0.02 / grid) ** 2) / grid * grid
    mean = (density * grid).sum() / density.sum()
    assert_agrees(post, "scale", mean, math.sqrt((density * grid**2).sum() / density.sum() - mean**2))
    assert mx.all(post["scale"] > 0).item()


def test_observations_never_move(way):
    """Defect 9."""
    post = nuts(small(), DATA, draws=5, warmup=5, chains=2, key=1)
    assert "y" not in post and set(post.addresses()) == {("mu",), ("z",)}
    assert post.trace(0, 0)["y"].tolist() == DATA["y"].tolist()


def test_the_model_is_traced_a_constant_number_of_times(way):
    """Case 51: not once per leapfrog step, per draw or per chain."""
    runs = []

    @gen
    def model():
        runs.append(1)
        trace("y", normal(trace("mu", normal(0, 1)), 0.5))

    counts = []
    for draws, warmup, chains in ((10, 10, 2), (300, 100, 2), (10, 10, 50)):
        runs.clear()
        nuts(model(), {"y": 1.5}, draws=draws, warmup=warmup, chains=chains, key=1)
        counts.append(len(runs))
    assert counts[0] == counts[1] == counts[2] < 30


def test_draws_do_not_depend_on_how_steps_are_grouped(monkeypatch):
    from genmlx.inference import record

    whole = nuts(small(), DATA, draws=20, warmup=40, chains=3, key=5)
    monkeypatch.setattr(record, "_AT_ONCE", 1)
    by_one = nuts(small(), DATA, draws=20, warmup=40, chains=3, key=5)
    other = nuts(small(), DATA, draws=20, warmup=40, chains=3, key=6)
    assert mx.array_equal(whole["mu"], by_one["mu"]).item()
    assert not mx.array_equal(whole["mu"], other["mu"]).item()
    assert len(set(whole["mu"].reshape(-1).tolist())) > 55  # chains that differ, draws that differ


def test_thinning_keeps_every_nth_draw(way):
    every = nuts(small(), DATA, draws=30, warmup=20, chains=2, key=5)
    third = nuts(small(), DATA, draws=10, warmup=20, chains=2, thin=3, key=5)
    assert mx.array_equal(every["mu"][:, 2::3], third["mu"]).item()


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_an_interrupt_returns_what_there_is(way, monkeypatch):
    monkeypatch.delenv("GENMLX_CI", raising=False)

    def stop(progress):
        if progress.phase == "sampling" and progress.done > 20:
            os.kill(os.getpid(), signal.SIGINT)

    post = nuts(small(), DATA, draws=100_000, warmup=20, chains=2, key=5, progress=stop)
    assert post.status == "interrupted" and 20 < post.draws < 100_000
    assert post["z"].shape == (2, post.draws, 3) and post.log_joint.shape == (2, post.draws)


def test_progress(way):
    seen = []
    nuts(small(), DATA, draws=30, warmup=30, chains=2, key=5, progress=seen.append)
    assert [p.phase for p in (seen[0], seen[-1])] == ["warmup", "sampling"]
    assert seen[-1].done == seen[-1].total == 30
    assert {"accept", "step_size", "diverging"} <= set(seen[0].info) & set(seen[-1].info)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_accept": 1.0},
        {"target_accept": 0},
        {"max_depth": 0},
        {"max_depth": 21},
        {"draws": 0},
        {"chains": 0},
        {"thin": 0},
    ],
)
def test_wrong_settings_raise(way, wrong):
    with pytest.raises(ParameterError):
        nuts(small(), DATA, **wrong)


def test_a_discrete_latent_raises(way):
    @gen
    def model():
        trace("y", normal(trace("k", flip(0.5)) * 1.0, 1.0))

    with pytest.raises(UsageError, match="discrete"):
        nuts(model(), {"y": 1.0})
