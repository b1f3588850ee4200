"""Elliptical slices as machine code: one transition after another, exact posteriors, and when they run so."""

import gc
import logging
import math
import os
import signal
import sys
import weakref
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from native_densities import cliff, gaussian, native, native_gaussian
from posteriors import COVARIANCE, MEAN, assert_agrees
from scipy import special, stats

from genmlx import (
    elliptical_slice,
    flip,
    gen,
    log_normal,
    multivariate_normal,
    normal,
    param,
    poisson,
    random,
    select,
    trace,
    vmap,
)
from genmlx.diagnostics import ess, mcse
from genmlx.dist import broadcasted_normal, discrete_uniform
from genmlx.errors import GenError, UsageError
from genmlx.inference import loop as loop_module
from genmlx.inference.elliptical_slice import _angles
from genmlx.inference.loop import Loop
from genmlx.inference.noise_density import NoiseDensity
from genmlx.inference.record import Record
from genmlx.native import chains
from genmlx.native import density as density_module
from genmlx.native.chains import Density
from genmlx.native.density import native_density
from genmlx.native.drivers import chain as mechanics
from genmlx.native.drivers import noise, slices
from genmlx.native.fallback import Disagreement
from genmlx.native.graph import Untranslatable
from genmlx.native.kernel import compile_function
from genmlx.native.slices import NativeSlices

PRECISION = np.linalg.inv(COVARIANCE)
FEW = {"draws": 20, "warmup": 10, "chains": 3, "key": 1}


def slices_of(start, moved=3, angles=24, key=3):
    walk = NativeSlices(native_gaussian(gradients=False), np.array(start, dtype=float), moved, angles)
    walk.begin(random.streams(key))
    return walk


def python_chain(walk):
    """What a chain of a walk is for the Python originals."""
    own, desk = walk._chains[0], SimpleNamespace(single=0, work=np.zeros(40))
    desk.u, desk.value, desk.slope = np.zeros(3), np.zeros(1), np.zeros(3)
    desk.inputs, desk.outputs = [desk.u], [desk.value, desk.slope]
    desk.constants, desk.scratch, desk.density = [MEAN, PRECISION.reshape(-1)], None, gaussian
    chain = SimpleNamespace(desk=desk, dim=3, slopes=0, moved=own.moved, taken=0)
    chain.first_key, chain.second_key = own.first_key, own.second_key
    chain.position, chain.gradient, chain.stats = walk._places[0].copy(), np.zeros(3), np.zeros(6)
    mechanics.begin(chain)
    return chain


@pytest.mark.parametrize("angles", [24, 2])
def test_transitions_are_those_of_the_python_original(angles):
    """Positions, statistics, how much noise they take, and what is written of every third. An error of translation."""
    walk = slices_of([[0.3, -0.2, 0.1]], moved=2, angles=angles)
    chain = python_chain(walk)
    stayed = 0
    for _ in range(30):
        written, means = np.zeros((2, 3), np.float32), np.zeros((2, 2), np.float32)
        walk.drivers.sample_slices(walk._at(0), angles, 5, 3, 2, written.ctypes.data, means.ctypes.data)
        own, own_means = np.zeros(6), np.zeros(4)
        slices.sample_slices(chain, angles, 5, 3, 2, own, own_means)
        assert np.allclose(written.reshape(-1), own, rtol=1e-6) and np.allclose(means.reshape(-1), own_means)
        assert np.allclose(walk._places[0], chain.position, rtol=1e-9, atol=1e-12)
        assert np.allclose(walk._stats[0], chain.stats) and walk._chains[0].taken == chain.taken
        stayed += own_means[2] < 1
    assert (stayed > 5) == (angles == 2)


def test_a_slice_by_hand():
    """With the angles of the MLX path: the first at which the density is above the level; what is held stays."""
    walk = slices_of([[0.3, -0.2, 0.1]], moved=2)
    rejected = []
    for _ in range(40):
        place, counter = walk._places[0].copy(), walk._chains[0].taken
        keys = walk._chains[0].first_key, walk._chains[0].second_key
        uniforms = [noise.unit(noise.word(*keys, counter + i)) for i in range(1, 40)]
        walk.drivers.sample_slices(walk._at(0), 24, 1, 9, 9, 0, 0)
        there, level = special.ndtri(uniforms[:2]), math.log(uniforms[2])

        def at(angle, place=place, there=there):
            return np.append(math.cos(angle) * place[:2] + math.sin(angle) * there, place[2])

        def log_density(q):
            return -0.5 * (q - MEAN) @ PRECISION @ (q - MEAN)

        angles = np.array(_angles(mx.array(uniforms[3:27]).astype(mx.float32)), dtype=float)
        inside = [log_density(at(a)) > log_density(place) + level for a in angles]
        first = inside.index(True)
        assert np.allclose(walk._places[0], at(angles[first]), atol=1e-5)
        assert walk._stats[0, :2].tolist() == [1, first] and walk._chains[0].taken == counter + 4 + first
        rejected.append(first)
    assert len(set(rejected)) > 3


def test_exact_draws_stay_exact_draws():
    """4,000 chains that begin at draws of prior times likelihood, a number of each held at values of its own.

    Means and second moments within 4.5 standard errors. Catches a level or a bracket that is wrong.
    """
    n, rng = 4000, np.random.default_rng(0)
    held = rng.normal(size=n)
    covariance = np.linalg.inv(np.eye(2) + PRECISION[:2, :2])
    means = (PRECISION[:2, :2] @ MEAN[:2] - np.outer(held - MEAN[2], PRECISION[:2, 2])) @ covariance
    start = np.column_stack([means + rng.multivariate_normal(np.zeros(2), covariance, size=n), held])
    walk = slices_of(start, moved=2)
    record = Record(walk, 1, 3)
    walk.sample(record, 3)
    end = walk._places
    assert np.array_equal(end[:, 2], held) and np.all(np.any(end[:, :2] != start[:, :2], axis=1))
    off = end[:, :2] - means
    moments = [off, off**2, (off * off[:, ::-1])[:, :1], off * held[:, None]]
    for found, truth in zip(moments, [0.0, np.diag(covariance), covariance[0, 1], 0.0], strict=True):
        z = (found.mean(axis=0) - truth) / (found.std(axis=0) / np.sqrt(n))
        assert np.all(np.abs(z) < 4.5), z


def drawn(walk, key=7, **how):
    events = []
    with Loop("test", events.append) as loop:
        positions, stats = walk.run(loop, random.streams(key), **how)
    return positions, {name: np.array(stats[name]) for name in walk.names}, events


def test_draws_depend_neither_on_blocks_nor_on_threads(monkeypatch):
    """Bit for bit, also of the means of what a thinned draw took."""
    start, how = np.random.default_rng(1).normal(size=(5, 3)), {"draws": 60, "warmup": 40, "thin": 3}
    whole, numbers, _ = drawn(slices_of(start), **how)
    for target, processors, worth in ((0.0, 1, 1e9), (1e9, 3, 0.0), (0.0, 3, 0.0)):
        monkeypatch.setattr(loop_module, "_TARGET", target)
        monkeypatch.setattr(loop_module, "_SLOWEST", 1e9)
        monkeypatch.setattr(chains, "_processors", lambda processors=processors: processors)
        monkeypatch.setattr(chains, "_WORTH", worth)
        again, others, _ = drawn(slices_of(start), **how)
        assert np.array_equal(whole, again) and all(np.array_equal(numbers[name], others[name]) for name in numbers)
    assert not np.array_equal(whole, drawn(slices_of(start), key=8, **how)[0])
    assert len(np.unique(whole[:, :, 0])) == whole[:, :, 0].size


def test_thinning_keeps_every_nth_draw_and_the_means_between():
    start = np.random.default_rng(1).normal(size=(5, 3))
    every, each, _ = drawn(slices_of(start), draws=30, warmup=20)
    third, means, _ = drawn(slices_of(start), draws=10, warmup=20, thin=3)
    assert np.array_equal(every[:, 2::3], third) and np.all(each["accept"] == 1)
    for name in each:
        assert np.allclose(means[name], each[name].reshape(5, 10, 3).mean(axis=2)), name


# models


@gen
def gaussians():
    """Of every family, each with a mean that is the choice before it; (a, v, w, log s) is Gaussian."""
    a = trace("a", normal(1.0, 2.0))
    v = trace("v", multivariate_normal(mx.stack([a, -a]), mx.array([[2.0, 0.5], [0.5, 1.0]])))
    w = trace("w", broadcasted_normal(v, mx.array([0.5, 1.0])))
    s = trace("s", log_normal(w[0], 0.5))
    trace("y", normal(mx.stack([a + w[1], mx.log(s)]), 0.7))


def gaussians_posterior(y):
    """Of (a, v, w, log s) [6], by the Gaussian formulas."""
    root = np.linalg.cholesky([[2.0, 0.5], [0.5, 1.0]])
    to = np.zeros((6, 6))
    to[0, 0] = 2.0
    to[1:3] = np.outer([1, -1], to[0])
    to[1:3, 1:3] += root
    to[3:5] = to[1:3]
    to[3, 3], to[4, 4] = 0.5, 1.0
    to[5] = to[3]
    to[5, 5] = 0.5
    mean, prior = np.array([1.0, 1, -1, 1, -1, 1]), to @ to.T
    design = np.array([[1.0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]])
    gain = prior @ design.T @ np.linalg.inv(design @ prior @ design.T + 0.49 * np.eye(2))
    return mean + gain @ (y - design @ mean), prior - gain @ design @ prior


def test_a_posterior_of_every_gaussian_family():
    """Within 4 Monte Carlo errors. Catches noise in the wrong order, a parent's old value, a prior counted twice."""
    y = np.array([1.5, -0.5])
    post = elliptical_slice(
        gaussians(), {"y": mx.array(y)}, draws=5000, warmup=100, thin=4, chains=8, key=1, native=True
    )
    mean, covariance = gaussians_posterior(y)
    logs = np.log(np.array(post["s"], dtype=float))
    columns = [np.array(post["a"])[..., None], np.array(post["v"]), np.array(post["w"]), logs[..., None]]
    draws = np.concatenate(columns, axis=2).astype(float)
    for i, values in enumerate(np.moveaxis(draws, 2, 0)):
        column = mx.array(values.astype(np.float32))
        assert float(ess(column)) > 2000
        assert abs(values.mean() - mean[i]) < 4 * float(mcse(column)), i
        assert values.std() / math.sqrt(covariance[i, i]) == pytest.approx(1, abs=0.05)
    assert np.corrcoef(draws.reshape(-1, 6).T)[0, 4] == pytest.approx(
        covariance[0, 4] / math.sqrt(covariance[0, 0] * covariance[4, 4]), abs=0.05
    )
    for i in range(3):
        assert post.log_joint[1, i].item() == pytest.approx(post.trace(1, i).score.item(), abs=1e-3)


@gen
def around(center):
    return trace("z", normal(center, 1.0))


@gen
def mapped():
    trace("y", normal(trace("zs", vmap(around)(mx.array([0.0, 1.0, 2.0]))), 0.5))


def test_a_posterior_of_normals_in_a_vmap():
    post = elliptical_slice(mapped(), {"y": mx.ones(3)}, draws=2000, warmup=50, chains=4, key=2, native=True)
    assert_agrees(post, ("zs", "z"), (np.arange(3) + 4) / 5, np.full(3, math.sqrt(0.2)))


@gen
def counted():
    """k and j are no Gaussians, and stay; the density of j moves with x."""
    k = trace("k", discrete_uniform(1, 4))
    x = trace("x", normal(1.0, mx.sqrt(1.0 * k)))
    trace("j", flip(1 / (1 + mx.exp(-x))))
    trace("y", poisson(mx.exp(0.5 * x)))


def test_what_is_not_selected_stays_and_counts():
    """Each chain at its own k and j; the mean of x given them by quadrature. Catches one of another chain."""
    post = elliptical_slice(
        counted(), {"y": 3}, selection="x", draws=1500, warmup=20, thin=2, chains=12, key=3, native=True
    )
    k, j, x = (np.array(post[name]) for name in ("k", "j", "x"))
    assert k.dtype == np.int32 and np.all(k == k[:, :1]) and np.all(j == j[:, :1])
    assert len(set(k[:, 0].tolist())) > 2 and len(set(j[:, 0].tolist())) == 2
    grid = np.linspace(-15, 17, 20001)
    for own_k, own_j, values in zip(k[:, 0], j[:, 0], x, strict=True):
        weight = stats.norm.pdf(grid, 1, math.sqrt(own_k)) * special.expit(grid if own_j else -grid)
        weight *= stats.poisson.pmf(3, np.exp(0.5 * grid))
        mean = (weight * grid).sum() / weight.sum()
        error = values.std() * math.sqrt(1 / float(ess(mx.array(values[None]))))
        assert abs(values.mean() - mean) < 4.5 * error, (own_k, own_j)


# when


@gen
def model():
    trace("y", normal(trace("mu", normal(0, 1)), 0.5))


def test_machine_code_is_the_default():
    one, same, other = (elliptical_slice(model(), {"y": 1.0}, native=way, **FEW) for way in (None, True, False))
    assert one.execution == same.execution == "native (float32)" and other.execution == "replayed"
    assert mx.array_equal(one["mu"], same["mu"]).item() and not mx.array_equal(one["mu"], other["mu"]).item()
    assert list(one.stats) == list(other.stats) == ["accept", "shrinks"]
    assert [s.dtype for s in one.stats.values()] == [s.dtype for s in other.stats.values()] == [mx.bool_, mx.int32]
    assert [(s.shape, s.dtype) for s in (one["mu"], one.log_joint)] == [
        (s.shape, s.dtype) for s in (other["mu"], other.log_joint)
    ]
    thinned = [elliptical_slice(model(), {"y": 1.0}, native=way, thin=2, **FEW) for way in (True, False)]
    assert [s.dtype for s in thinned[0].stats.values()] == [s.dtype for s in thinned[1].stats.values()]


def test_both_ways_tell_the_same_on_the_way():
    told = []
    for way in (True, False):
        events = []
        elliptical_slice(model(), {"y": 1.0}, progress=events.append, native=way, **FEW)
        told.append({(e.algorithm, e.phase, tuple(sorted(e.info))) for e in events})
        assert events[-1].info["watch"]()["mu"].shape == (3, 20)
    assert told[0] == told[1]


@gen
def summed():
    """MLX 0.32.4 does not export the primitive of ``logcumsumexp``."""
    a = trace("a", normal(mx.zeros(2), 1))
    trace("y", normal(mx.logcumsumexp(a), 1.0))


@gen
def large():
    trace("k", discrete_uniform(2**24, 2**24 + 99))
    trace("y", normal(trace("x", normal(0, 1)) * mx.ones(2), 1.0))


@pytest.mark.parametrize(
    "call, selection, said",
    [(summed(), None, "CumLog"), (large(), select("x"), "float32 does not hold")],
)
def test_what_has_no_native_form_runs_on_mlx(caplog, call, selection, said):
    """One line names what it is."""
    how = {**FEW, "selection": selection}
    with caplog.at_level(logging.INFO, "genmlx.native"):
        post = elliptical_slice(call, {"y": mx.ones(2)}, **how)
    assert "native" not in post.execution
    (line,) = caplog.records
    assert line.levelno == logging.INFO and f"elliptical_slice of {call!r} runs on MLX" in line.getMessage()
    assert said in line.getMessage()
    with pytest.raises(GenError, match=said):
        elliptical_slice(call, {"y": mx.ones(2)}, native=True, **how)
    caplog.clear()
    other = elliptical_slice(call, {"y": mx.ones(2)}, native=False, **how)
    assert not caplog.records
    assert all(mx.array_equal(post[a], other[a]).item() for a in post.addresses())


@pytest.mark.parametrize("wrong", ["value", "joint", "nan"])
def test_machine_code_that_is_wrong_is_not_used(caplog, monkeypatch, wrong):
    """By 1%, in one chain that starts where it matters."""

    def compiled(f, *arrays, **how):
        def g(u, *rest):
            found, place = f(u, *rest), 1 if wrong == "joint" else 0
            bad = mx.array(np.nan) if wrong == "nan" else 1.01 * found[place]
            found[place] = mx.where(u[0] > 1.0, bad, found[place])
            return found

        return compile_function(g, *arrays, **how)

    monkeypatch.setattr(density_module, "compile_function", compiled)
    how = {**FEW, "chains": 20}
    assert elliptical_slice(model(), {"y": 3.0}, **how).execution == "replayed"
    (line,) = caplog.records
    said = "finite where it should not be" if wrong == "nan" else "off by"
    assert line.levelno == logging.WARNING and said in line.getMessage()
    with pytest.raises(Disagreement):
        elliptical_slice(model(), {"y": 3.0}, native=True, **how)


def test_without_llvmlite_everything_runs_on_mlx(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert elliptical_slice(model(), {"y": 1.0}, **FEW).execution == "replayed"
    with pytest.raises(UsageError, match="llvmlite"):
        elliptical_slice(model(), {"y": 1.0}, native=True, **FEW)


def test_another_device_runs_on_mlx(monkeypatch):
    monkeypatch.setattr(density_module.mx, "default_device", lambda: mx.Device(mx.gpu))
    with pytest.raises(Untranslatable, match="not the CPU"):
        elliptical_slice(model(), {"y": 1.0}, native=True, **FEW)


@gen
def branching():
    x, k = trace("x", normal(0, 1)), trace("k", flip(0.5))
    trace("y", normal(x if k.item() else 2 * x, 0.5))


def test_one_chain_of_a_body_that_branches_runs_by_its_handlers(caplog):
    how = {"draws": 5, "warmup": 2, "chains": 1, "key": 1, "selection": "x"}
    with caplog.at_level(logging.INFO, "genmlx.native"):
        assert elliptical_slice(branching(), {"y": 1.0}, **how).execution.startswith("handlers")
    (line,) = caplog.records
    assert line.levelno == logging.INFO and "host value" in line.getMessage() and "\n" not in line.getMessage()
    for count, way in ((1, True), (2, None), (2, False)):
        with pytest.raises(GenError, match="host value"):
            elliptical_slice(branching(), {"y": 1.0}, **{**how, "chains": count}, native=way)


@gen
def exact():
    trace("y", normal(0, 1))


def test_a_problem_that_is_wrong_says_so_either_way():
    for call, observed, said in ((exact(), {"y": 1.0}, "nothing to infer"), (model(), {"y": mx.inf}, "density zero")):
        told = []
        for way in (True, False):
            with pytest.raises(GenError, match=said) as raised:
                elliptical_slice(call, observed, native=way, **FEW)
            told.append(str(raised.value))
        assert told[0] == told[1]


@gen
def scaled():
    trace("y", normal(trace("mu", normal(param("center", 0.0), 1)), 0.5))


def test_parameters_are_inputs():
    """Their values are those at the start of the run."""
    for center in (0.0, 5.0):
        scaled.params["center"] = mx.array(center)
        post = elliptical_slice(scaled(), {"y": 1.0}, draws=1000, warmup=50, chains=4, key=1, native=True)
        assert abs(post.mean("mu").item() - (center + 4 * 1.0) / 5) < 4.5 * float(post.mcse("mu"))
    traces = scaled().vgenerate({"y": 1.0}, 2, key=mx.random.key(0)).trace
    noise_of_mu = NoiseDensity(traces, [("mu",)], scaled().generate({"y": 1.0})[0].choices.filter(select("y")))
    assert len(native_density(noise_of_mu, gradients=False).inputs) == 1


def test_ctrl_c_keeps_what_is_there(monkeypatch):
    monkeypatch.setattr(loop_module, "_TARGET", 0.0)
    monkeypatch.setattr(loop_module, "_SLOWEST", 1e9)
    monkeypatch.delenv("GENMLX_CI", raising=False)

    def press(event):
        if (event.phase, event.done) == ("sampling", 7):
            os.kill(os.getpid(), signal.SIGINT)

    how = {"draws": 30, "warmup": 5, "chains": 2, "key": 1, "native": True}
    partial = elliptical_slice(model(), {"y": 1.0}, progress=press, **how)
    whole = elliptical_slice(model(), {"y": 1.0}, **how)
    assert partial.status == "interrupted" and 7 <= partial.draws < 30
    assert mx.array_equal(partial["mu"], whole["mu"][:, : partial.draws]).item()


def test_machine_code_does_not_outlive_the_version_of_its_model(monkeypatch):
    code = []

    def compiled(f, *arrays, **how):
        made = compile_function(f, *arrays, **how)
        code.append(weakref.ref(made))
        return made

    monkeypatch.setattr(density_module, "compile_function", compiled)

    @gen.new
    def redefined():
        trace("y", normal(trace("mu", normal(0, 1)), 1.0))

    for _ in range(2):
        post = elliptical_slice(redefined(), {"y": 1.0}, **FEW)
    assert all(made() is code[0]() for made in code)
    redefined.redefine(lambda: trace("y", normal(trace("mu", normal(3, 1)), 1.0)))
    elliptical_slice(redefined(), {"y": 1.0}, **FEW)
    gc.collect()
    assert code[0]() is None and post["mu"].shape == (3, 20)


def test_a_checkpoint_of_one_way_is_not_taken_up_by_the_other(tmp_path):
    elliptical_slice(model(), {"y": 1.0}, native=True, checkpoint=tmp_path / "file", **FEW)
    with pytest.raises(GenError, match=r"other native \(True there, None here\)"):
        elliptical_slice(model(), {"y": 1.0}, native=False, checkpoint=tmp_path / "file", **FEW)


# calibration

REPLICATIONS, DRAWS, ALARM = 500, 19, 1e-4


@gen
def measured():
    """The scale of the noise is a Gaussian choice too, and the mean of one a draw of the other."""
    mu = trace("mu", normal(0.5, 1.5))
    s = trace("s", log_normal(0.3 * mu, 0.4))
    trace("y", normal(mu * mx.ones(2), s))


def ranks(prior=1.0):
    """Of the true choices among draws given data from the prior (Talts et al. 2018); each replication is a run."""
    true = measured().vsimulate(REPLICATIONS, key=mx.random.key(1)).choices
    start = measured().vsimulate(REPLICATIONS, key=mx.random.key(2))
    noise_density = NoiseDensity(start, [("mu",), ("s",)], measured().simulate(key=0).choices.filter(select("y")))

    def given(u, data):
        noise_density.observations = measured().simulate(key=0).choices.filter(select("y")).map(lambda _: data)
        value, joint = noise_density.of_one(False)[0](u)
        return [prior * value, joint]

    made = compile_function(given, mx.zeros(2), mx.zeros(2))
    columns = [np.array(true[name], dtype=float) for name in ("mu", "s", "y")]
    found = np.zeros((REPLICATIONS, 3), dtype=int)
    for i, (mu, s, y) in enumerate(zip(*columns, strict=True)):
        data = np.ascontiguousarray(y.astype(np.float32))
        machine = Density(
            made.pointer,
            2,
            np.float32,
            gradients=False,
            inputs=(data.ctypes.data,),
            constants=made.constants,
            scratch_bytes=made.scratch_bytes,
            owner=(made, data),
        )
        walk = NativeSlices(machine, np.array(noise_density.starts)[i : i + 1], 2, 24)
        z = drawn(walk, key=i, draws=DRAWS, warmup=100, thin=10)[0][0].astype(float)
        mus = 0.5 + 1.5 * z[:, 0]
        scales = np.exp(0.3 * mus + 0.4 * z[:, 1])
        quantities = [(mus, mu), (scales, s), ((mus - y[0]) * scales, (mu - y[0]) * s)]
        found[i] = [(drawn_ < value).sum() for drawn_, value in quantities]
    return [stats.chisquare(np.bincount(column, minlength=DRAWS + 1)).pvalue for column in found.T]


@pytest.mark.slow
def test_calibration():
    """A right sampler fails with probability 1e-4."""
    found = ranks()
    assert min(found) > ALARM / len(found), found


@pytest.mark.slow
def test_a_likelihood_counted_twice_is_seen():
    assert min(ranks(2.0)) < ALARM


def test_a_density_that_is_not_a_number_is_never_entered():
    walk = NativeSlices(native(cliff, 1, gradients=False), np.zeros((50, 1)), 1, 24)
    positions, numbers, _ = drawn(walk, draws=40, warmup=0)
    assert np.all(np.abs(positions) < 1) and numbers["shrinks"].mean() > 0.1
    assert positions.std() == pytest.approx(stats.truncnorm(-1, 1).std(), abs=0.03)
