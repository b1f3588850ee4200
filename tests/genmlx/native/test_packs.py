"""Chains in lanes: what they draw is what they draw one by one, whatever their lane, pack, blocks and threads."""

import logging
import math
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from native_code import compiled
from posteriors import COVARIANCE, ERRORS, MEAN, SCHOOLS
from scipy import special

from genmlx import gen, hmc, mala, normal, nuts, random, random_walk, trace
from genmlx.diagnostics import ess, mcse, rhat
from genmlx.inference import loop as loop_module
from genmlx.inference.leapfrog import identity_metric, metric
from genmlx.inference.log_density import LogDensity
from genmlx.inference.loop import Loop
from genmlx.inference.record import Record
from genmlx.native import chains
from genmlx.native import density as density_module
from genmlx.native.chains import IN_LANES, Density, NativeWalk
from genmlx.native.drivers import lockstep, pack, packs
from genmlx.native.drivers.pack import LANES
from genmlx.native.kernel import compile_function
from genmlx.native.restricted import translate

F64 = mx.float64
SETTINGS = {"hmc": {"leapfrog_steps": 3}, "mala": {}, "random_walk": {}}
SIZES = {"hmc": 0.3, "mala": 0.6, "random_walk": 0.8}


def constant(values, dtype=F64):
    return mx.array(np.asarray(values, dtype=float), dtype=dtype)


def gaussian(u):
    off = u - constant(MEAN, u.dtype)
    return -0.5 * mx.sum(off * mx.sum(constant(np.linalg.inv(COVARIANCE), u.dtype) * off, axis=1))


def schools(u):
    """``native_densities.schools``."""
    mu, tau, z = u[0], mx.exp(u[1]), u[2:]
    off = (constant(SCHOOLS, u.dtype) - mu - tau * z) / constant(ERRORS, u.dtype)
    prior = -mu * mu / 50.0 - mx.log(1.0 + tau * tau / 25.0) + u[1]
    return prior - 0.5 * mx.sum(z * z + off * off)


def cliff(u):
    """Flat up to 1 from 0, and not a number beyond."""
    return mx.sum(mx.where(mx.abs(u) < 1, u * 0, mx.array(math.nan, dtype=u.dtype)))


def machine(logp, dim, lanes, dtype=F64):
    def f(u):
        value, slope = mx.value_and_grad(logp)(u)
        return [value, slope, value]

    made = compile_function(f, mx.zeros(dim, dtype), lanes=lanes)
    kind = np.float64 if dtype == F64 else np.float32
    own = {"constants": made.constants, "scratch_bytes": made.scratch_bytes, "owner": made}
    return Density(made.pointer, dim, kind, lanes=lanes, **own)


@pytest.fixture(scope="module")
def densities():
    """Of one, and of lanes."""
    cases = {"gaussian": (gaussian, 3), "schools": (schools, 10), "cliff": (cliff, 1)}
    return {name: tuple(machine(f, dim, lanes) for lanes in (1, LANES)) for name, (f, dim) in cases.items()}


def run(walk, key=7, **how):
    with Loop("test") as loop:
        positions, stats = walk.run(loop, random.streams(key), **how)
    return positions, {name: np.array(value) for name, value in stats.items()}


def starts(n, dim=10):
    return np.random.default_rng(1).normal(size=(n, dim))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("method", IN_LANES)
@pytest.mark.parametrize("n", [3, LANES, 2 * LANES + 5])
def test_chains_draw_in_lanes_what_they_draw_one_by_one(densities, method, dense, n):
    """All draws, statistics, first steps and the noise that they take, in full packs and in others."""
    found = []
    for density in densities["schools"]:
        walk = NativeWalk(method, density, starts(n), dense, SETTINGS[method])
        own = metric(np.diag(np.linspace(0.5, 1.5, 10)) + 0.1 if dense else np.linspace(0.5, 1.5, 10), 10)
        walk.tune(np.linspace(0.05, 0.5, n), own)
        walk.begin(random.streams(3))
        first = walk.first_step()
        with Loop("test") as loop:
            record = Record(walk, 15, 2)
            loop.run("sampling", 30, lambda start, stop, walk=walk, record=record: walk.sample(record, stop))
        found.append((first, record.positions, record.stats, *walk.value_and_grad))
        assert walk.execution == ("native (float64, 16 lanes)" if density.lanes > 1 else "native (float64)")
        # first step and 30 transitions, each with a normal for each dimension
        jitter = method == "hmc"
        assert {chain.taken for chain in walk._chains} == {10 + jitter + 30 * (10 + 1 + jitter)}
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert len(np.unique(found[1][1][:, :, 0])) > 0.3 * 15 * n


ORIGINALS = {
    "hmc": (lockstep.hmc, lockstep.first_jittered_leap),
    "mala": (lockstep.mala, lockstep.first_langevin),
    "random_walk": (lockstep.random_walk, lockstep.first_shift),
}


def python_pack(walk):
    """A full pack for the Python originals, of the Gaussian."""
    precision, dim = np.linalg.inv(COVARIANCE), 3
    u, value, slope = np.zeros(dim * LANES), np.zeros(LANES), np.zeros(dim * LANES)

    def density(*_):
        off = u.reshape(dim, LANES) - np.array(MEAN)[:, None]
        slope[:] = (-precision @ off).reshape(-1)
        value[:] = -0.5 * (off * (precision @ off)).sum(axis=0)

    own = [walk._chains[i] for i in range(LANES)]
    desk = SimpleNamespace(single=0, work=np.zeros(12 * dim * LANES), u=u, value=value, slope=slope, density=density)
    desk.inputs = desk.outputs = desk.constants = desk.scratch = None
    inverse_mass, momentum_factor = (part.copy() for part in walk._metric)
    metric = {"inverse_mass": inverse_mass, "momentum_factor": momentum_factor, "dense": own[0].dense}
    chain = SimpleNamespace(dim=dim, slopes=dim, leapfrog_steps=3, trajectory=1.0, **metric)
    made = SimpleNamespace(desk=desk, chains=[chain], n=LANES, kept=0)
    for name in ("first_key", "second_key", "taken"):
        setattr(made, name, [getattr(chain, name) for chain in own])
    made.position = np.ascontiguousarray(walk._places.T).reshape(-1)
    made.step_size = np.array([chain.step_size for chain in own])
    sizes = {"gradient": dim, "log_prob": 1, "stats": 6, "mean": dim, "squares": walk._squares.shape[1]}
    for name, size in sizes.items():
        setattr(made, name, np.zeros(size * LANES))
    for name in ("divergences", "moving", "ending", "going"):
        setattr(made, name, np.zeros(LANES, dtype=int))
    pack.begin(made)
    return made


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("method", IN_LANES)
def test_transitions_are_those_of_the_python_original(densities, method, dense):
    """What is learned of the draws too. Catches an error of the translation."""
    transition, first = ORIGINALS[method]
    walk = NativeWalk(method, densities["gaussian"][1], starts(LANES, 3), dense, SETTINGS[method])
    walk.tune(np.linspace(0.2, 0.9, LANES), metric(COVARIANCE if dense else np.array([0.8, 1.2, 0.6]), 3))
    walk.begin(random.streams(2))
    own = python_pack(walk)
    for _ in range(8):
        first(own)
        np.testing.assert_allclose(walk.first_step(), own.stats[:LANES], rtol=1e-9)
        walk.drivers.advance(walk._at(0), walk._transition, 1)
        packs.transit(own, transition, 1)
        np.testing.assert_allclose(walk._places.T.reshape(-1), own.position, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(walk._stats.T.reshape(-1), own.stats, rtol=1e-9, atol=1e-9)
        assert [chain.taken for chain in walk._chains] == own.taken
    np.testing.assert_allclose(walk._squares.T.reshape(-1), own.squares, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("settings", [{"trajectory": 1.2}, {"leapfrog_steps": 4}])
def test_chains_end_their_trajectories_at_their_own_step(densities, settings):
    """Of step sizes that differ: some make 2 steps, some 60; some diverge at once, and wait for the others."""
    n, found = LANES + 3, []
    for density in densities["schools"]:
        walk = NativeWalk("hmc", density, starts(n), False, settings)
        sizes = np.linspace(0.02, 0.6, n)
        sizes[[2, 9]] = 40.0, 15.0
        walk.tune(sizes, identity_metric(10, False))
        walk.begin(random.streams(3))
        with Loop("test") as loop:
            record = Record(walk, 12, 1)
            loop.run("sampling", 12, lambda start, stop, walk=walk, record=record: walk.sample(record, stop))
        found.append((record.positions, record.stats, walk.diverged))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    _, stats, diverged = found[1]
    assert diverged == stats[:, :, 2].sum() == stats[[2, 9], :, 2].sum() > 10
    own = np.linspace(0.02, 0.6, n).astype(np.float32).astype(float)  # as a step size is told to the walk
    steps = np.ceil(1.2 / own) if "trajectory" in settings else np.full(n, 4)
    others = np.delete(np.arange(n), [2, 9])
    assert np.all(stats[others, :, 3] == steps[others, None])


@pytest.mark.parametrize("method", IN_LANES)
def test_where_the_density_is_not_a_number_a_chain_never_goes(densities, method):
    found = []
    for density in densities["cliff"]:
        walk = NativeWalk(method, density, np.zeros((50, 1)), False, {"leapfrog_steps": 2})
        found.append(run(walk, draws=40, warmup=0, step_size=0.7))
    (positions, stats), (others, _) = found
    assert np.array_equal(positions, others) and np.all(np.abs(others) < 1) and 0.3 < others.std() < 0.65
    if method == "hmc":
        assert 0.1 < stats["diverging"].mean() < 0.99


@pytest.mark.parametrize("method", IN_LANES)
def test_an_infinite_density_is_none(method):
    """Where a density is infinite, going there would raise it."""

    def pole(u):
        return mx.sum(mx.where(mx.abs(u) < 1, u * 0, mx.array(math.inf, dtype=u.dtype)))

    start = np.linspace(-0.9, 1.3, 20)[:, None]
    walk = NativeWalk(method, machine(pole, 1, LANES), start, False, {"leapfrog_steps": 2})
    inside = np.abs(start[:, 0]) < 1
    assert np.array_equal(walk.value_and_grad[0], np.where(inside, 0.0, -np.inf))
    positions, stats = run(walk, draws=40, warmup=0, step_size=0.7)
    assert np.all(np.abs(positions[inside]) < 1) and positions.std() > 0.3 and 0 < stats["accept"].mean() < 1


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("method", IN_LANES)
def test_exact_draws_stay_exact_draws(densities, method, dense):
    """4,000 chains that begin at draws of the Gaussian: means and second moments within 4.5 standard errors."""
    n, rng = 4000, np.random.default_rng(0)
    start = rng.multivariate_normal(MEAN, COVARIANCE, size=n)
    walk = NativeWalk(method, densities["gaussian"][1], start, dense, SETTINGS[method])
    walk.tune(SIZES[method], metric(COVARIANCE if dense else np.array([0.8, 1.2, 0.6]), 3))
    walk.begin(random.streams(5))
    with Loop("test") as loop:
        record = Record(walk, 1, 3)
        loop.run("sampling", 3, lambda start, stop: walk.sample(record, stop))
    end = record.positions[:, 0].astype(float)
    assert np.mean(np.any(np.abs(end - start) > 1e-6, axis=1)) > 0.5
    moments = [end - MEAN, (end - MEAN) ** 2, (end - MEAN) * np.roll(end - MEAN, 1, axis=1)]
    truths = [0.0, np.diag(COVARIANCE), [COVARIANCE[i, i - 1] for i in range(3)]]
    for found, truth in zip(moments, truths, strict=True):
        z = (found.mean(axis=0) - truth) / (found.std(axis=0) / np.sqrt(n))
        assert np.all(np.abs(z) < 4.5), z


HOW = {"draws": 60, "warmup": 160, "thin": 2}


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("method", IN_LANES)
def test_draws_depend_neither_on_blocks_nor_on_threads(densities, monkeypatch, method, dense):
    """Bit for bit: blocks as they come, of one transition, and of everything at once; one thread, and three."""

    def walk():
        return NativeWalk(method, densities["schools"][1], starts(3 * LANES + 1), dense, SETTINGS[method])

    whole, stats = run(walk(), **HOW)
    for target, slowest, processors, worth in ((0.0, 1e9, 1, 1e9), (1e9, 1e9, 3, 0.0), (0.0, 1e9, 3, 0.0)):
        monkeypatch.setattr(loop_module, "_TARGET", target)
        monkeypatch.setattr(loop_module, "_SLOWEST", slowest)
        monkeypatch.setattr(chains, "_processors", lambda processors=processors: processors)
        monkeypatch.setattr(chains, "_WORTH", worth)
        again, others = run(walk(), **HOW)
        assert np.array_equal(whole, again)
        assert all(np.array_equal(stats[name], others[name]) for name in stats)
    assert not np.array_equal(whole, run(walk(), key=8, **HOW)[0])
    assert len(np.unique(whole[:, :, 0])) > 0.3 * whole[:, :, 0].size


@pytest.mark.parametrize("shift", [1, LANES - 1, LANES + 2])
def test_draws_depend_neither_on_the_lane_nor_on_the_pack(densities, shift):
    """Bit for bit: the same chains in another order, of which some then have other neighbours, or no full pack."""
    n, found = 2 * LANES + 3, []
    for roll in (0, shift):
        order = np.roll(np.arange(n), roll)
        walk = NativeWalk("hmc", densities["schools"][1], starts(n)[order], False, {"trajectory": 1.0})
        walk.tune(np.linspace(0.1, 0.5, n)[order], identity_metric(10, False))
        for i, chain in zip(order.tolist(), walk._chains, strict=True):
            chain.first_key, chain.second_key, chain.taken = 1000 + i, 77 * i, 5 * i
        with Loop("test") as loop:
            record = Record(walk, 20, 1)
            loop.run("sampling", 20, lambda start, stop, walk=walk, record=record: walk.sample(record, stop))
        found.append((record.positions[np.argsort(order)], record.stats[np.argsort(order)]))
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_a_warm_up_learns_what_it_learns_of_chains_one_by_one(densities, dense, alone):
    """Step sizes and the draws of a window, of chains that share a step size, and of others."""
    n, found = LANES + 5, []
    for density in densities["gaussian"]:
        walk = NativeWalk("hmc", density, starts(n, 3), dense, SETTINGS["hmc"])
        walk.begin(random.streams(3))
        walk.learned = chains_learn(n, dense)
        walk.learned.dual.restart(np.full(n if alone else 1, 0.2))
        walk._warm(9, False)
        walk._warm(25, True)
        kept = {chain.kept for chain in walk._chains}
        own = (walk.learned.dual.step_size, walk._mean, walk._squares, walk._places, walk._stats[:, :4])
        found.append([kept, *(part.copy() for part in own)])
    assert found[0][0] == found[1][0] == {25} and len(found[1][1]) == (n if alone else 1)
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)
    assert np.all(found[1][3] != 0) and np.ptp(found[1][2], axis=0).min() > 0


def chains_learn(n, dense):
    from genmlx.inference.warmup import Warmup

    return Warmup(100, n, 3, 0.8, dense)


@pytest.mark.parametrize("method", IN_LANES)
def test_chains_go_on_from_what_was_kept(densities, method):
    """A checkpoint after 7 transitions, taken up by other packs."""
    n = LANES + 2
    walk = NativeWalk(method, densities["schools"][1], starts(n), False, SETTINGS[method])
    walk.tune(0.2, identity_metric(10, False))
    walk.begin(random.streams(4))
    record = Record(walk, 20, 1)
    walk.sample(record, 7)
    state = walk.state_of_chains()
    saved = {**state, "chains": [array.copy() for array in state["chains"]]}
    walk.sample(record, 20)
    other = NativeWalk(method, densities["schools"][1], starts(n) + 1, False, SETTINGS[method])
    other.tune(0.2, identity_metric(10, False))
    other.restore_chains(saved)
    again = Record(other, 20, 1)
    again.ended[:] = 7
    other.sample(again, 20)
    assert np.array_equal(record.positions[:, 7:], again.positions[:, 7:])
    assert np.array_equal(record.stats[:, 7:], again.stats[:, 7:])


@pytest.mark.parametrize("m", [1, 15, 16, 50])
def test_joint_densities_of_any_number_of_vectors(densities, m):
    walk = NativeWalk("hmc", densities["schools"][1], starts(LANES + 1), False, {})
    u = mx.array(starts(m).astype(np.float32))
    expected = [schools(mx.array(row.astype(float), dtype=F64)).item() for row in np.array(u)]
    assert np.allclose(np.array(walk.joint(u)), expected, rtol=1e-6)


@pytest.mark.parametrize("written_out", [False, True])
def test_quantiles_are_those_of_scipy(written_out):
    """In the middle, in the tails, and where there is one more formula; also beside each other in a vector."""
    quantiles = compiled(pack.quantiles, None, "p", "p", int, written_out=written_out)
    tail = 10.0 ** -np.linspace(0.4, 15.9, 400)
    p = np.concatenate([np.linspace(1e-4, 1 - 1e-4, 3001), tail, 1 - tail, [2**-53, 1 - 2**-53, 0.075, 0.925]])
    np.random.default_rng(0).shuffle(p)
    found = np.zeros_like(p)
    quantiles(p, found, len(p))
    assert np.allclose(found, special.ndtri(p), rtol=2e-14, atol=1e-15)


def test_exp_and_log_written_out_are_vectors():
    """And within 2 ulp of those of the C library; nothing of what is disjoint is checked for overlap."""

    text = str(translate(packs.sample, pack.near_quantiles, written_out=True))
    assert "@llvm.log" not in text and "@llvm.exp" not in text and "noalias" in text
    exp, log = (compiled(f, float, float, written_out=True) for f in (exponential, logarithm))
    for x in np.concatenate([np.linspace(-700, 700, 501), [-math.inf, math.inf, 0.0]]):
        expected = math.exp(x) if x < 709 else math.inf
        assert exp(x) == expected or abs(exp(x) - expected) <= 2 * math.ulp(expected)
    for x in 10.0 ** np.linspace(-300, 300, 501):
        assert abs(log(x) - math.log(x)) <= 2 * math.ulp(math.log(x))


def exponential(x: float) -> float:
    return math.exp(x)


def logarithm(x: float) -> float:
    return math.log(x)


# of models


@gen
def model():
    trace("y", normal(trace("mu", normal(0, 1)), 0.5))


@gen
def ordered():
    """Its latents are sorted, which lanes do not do."""
    a = trace("a", normal(mx.zeros(3), 1))
    trace("y", normal(mx.sort(a), 1.0))


@gen
def regression(x):
    trace("y", normal(trace("slope", normal(0, 1)) * x, trace("other", normal(0, 1)) * 0.0 + 1.0))


FEW = {"draws": 20, "warmup": 20, "key": 1}


@pytest.mark.parametrize("sampler", [hmc, mala, random_walk, nuts])
def test_many_chains_walk_in_lanes(sampler):
    """Of a sampler that can; also where chains do not fill their packs. Their values agree with those one by one."""
    for n, lanes in ((LANES - 1, False), (LANES, sampler is not nuts), (LANES + 5, sampler is not nuts)):
        post = sampler(model(), {"y": 1.0}, chains=n, **FEW)
        assert post.execution == ("native (float32, 16 lanes)" if lanes else "native (float32)")
        joint = [post.trace(n - 1, i).score.item() for i in range(3)]
        assert np.allclose(post.log_joint[n - 1, :3], joint, rtol=1e-5)


def test_chains_of_a_large_model_walk_in_lanes_if_they_are_many(monkeypatch):
    density = LogDensity(regression(mx.ones(1000)), {"y": mx.zeros(1000)})
    small = LogDensity(regression(mx.ones(10)), {"y": mx.zeros(10)})
    for processors, few, enough in ((1, 15, 16), (4, 63, 64)):
        monkeypatch.setattr(density_module.os, "cpu_count", lambda processors=processors: processors)
        assert not density_module.lanes_pay(density, True, few)
        assert density_module.lanes_pay(density, True, enough)
        assert density_module.lanes_pay(small, True, few) == (few >= LANES)


def test_what_has_no_lanes_walks_one_by_one(caplog):
    with caplog.at_level(logging.INFO, "genmlx.native"):
        post = hmc(ordered(), {"y": mx.array([0.0, 1.0, 2.0])}, chains=20, **FEW)
    assert post.execution == "native (float32)"
    (line,) = caplog.records
    assert "moves its chains one by one: primitive" in line.getMessage() and "lanes" in line.getMessage()


def test_lanes_that_need_too_much_memory_are_not_used(caplog, monkeypatch):
    monkeypatch.setattr(density_module, "_ROOM", -1)
    with caplog.at_level(logging.INFO, "genmlx.native"):
        post = hmc(model(), {"y": 1.0}, chains=20, **FEW)
    assert post.execution == "native (float32)"
    (line,) = caplog.records
    assert "one by one: the density in lanes needs 0 MB" in line.getMessage()


# Posterior means of eight schools by quadrature over mu and log tau, the effects integrated out.
MEANS = {"mu": 4.3968, "tau": 3.5977, "log tau": 0.8021, "theta 1": 6.2119}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [mx.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("method, thin", [("hmc", 1), ("mala", 10), ("random_walk", 50)])
def test_eight_schools(method, thin, dtype):
    """By 384,000 draws: within 4 Monte Carlo errors."""
    walk = NativeWalk(method, machine(schools, 10, LANES, dtype), starts(24), True, {"trajectory": 1.5})
    target = {"hmc": 0.95, "mala": 0.8, "random_walk": 0.234}[method]
    positions, _ = run(walk, draws=16_000, warmup=1000, thin=thin, target_accept=target)
    mu, log_tau, z = (positions[..., i].astype(float) for i in range(3))
    found = {"mu": mu, "tau": np.exp(log_tau), "log tau": log_tau, "theta 1": mu + np.exp(log_tau) * z}
    for name, values in found.items():
        draws = mx.array(values.astype(np.float32))
        assert float(ess(draws)) > 5000 and float(rhat(draws)) < 1.01, name
        off = (values.mean() - MEANS[name]) / float(mcse(draws))
        assert abs(off) < 4.0, f"{name}: {off} standard errors"
