"""Gradient samplers of models as machine code: when they run so, what is logged when not, and calibration."""

import gc
import logging
import sys
import threading
import weakref

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from scipy import stats

from genmlx import (
    dirichlet,
    gamma,
    gen,
    hmc,
    mala,
    multivariate_normal,
    normal,
    nuts,
    param,
    random,
    random_walk,
    trace,
)
from genmlx.errors import GenError, UsageError
from genmlx.inference.log_density import LogDensity
from genmlx.inference.loop import Loop
from genmlx.native import density as density_module
from genmlx.native.chains import Density, NativeWalk
from genmlx.native.density import Disagreement, native_density, native_walk
from genmlx.native.graph import Untranslatable
from genmlx.native.kernel import compile_function

FEW = {"draws": 20, "warmup": 20, "chains": 2, "key": 1}
SAMPLERS = {"nuts": nuts, "hmc": hmc, "mala": mala, "random_walk": random_walk}


@gen
def model():
    trace("y", normal(trace("mu", normal(0, 1)), 0.5))


@gen
def summed():
    """MLX 0.32.4 does not export the primitive of ``logcumsumexp``."""
    a = trace("a", normal(mx.zeros(2), 1))
    trace("y", normal(mx.logcumsumexp(a), 1.0))


@pytest.mark.parametrize("name", SAMPLERS)
def test_machine_code_is_the_default(name):
    sampler = SAMPLERS[name]
    one, same, other = (sampler(model(), {"y": 1.0}, native=native, **FEW) for native in (None, True, False))
    assert one.execution == same.execution == "native (float32)" and other.execution == "replayed"
    assert mx.array_equal(one["mu"], same["mu"]).item() and not mx.array_equal(one["mu"], other["mu"]).item()
    assert list(one.stats) == list(other.stats)
    assert [s.dtype for s in one.stats.values()] == [s.dtype for s in other.stats.values()]
    joint = [one.trace(1, i).score.item() for i in range(3)]
    assert np.allclose(one.log_joint[1, :3], joint, rtol=1e-5)


def test_what_has_no_native_form_runs_on_mlx(caplog):
    """One line names the primitive."""
    with caplog.at_level(logging.INFO, "genmlx.native"):
        post = nuts(summed(), {"y": mx.ones(2)}, **FEW)
    assert "native" not in post.execution
    (line,) = caplog.records
    assert line.levelno == logging.INFO and "nuts of summed() runs on MLX" in line.getMessage()
    assert "CumLog" in line.getMessage()
    with pytest.raises(Untranslatable, match="CumLog"):
        nuts(summed(), {"y": mx.ones(2)}, native=True, **FEW)
    caplog.clear()
    nuts(summed(), {"y": mx.ones(2)}, native=False, **FEW)
    assert not caplog.records


@pytest.mark.parametrize("wrong", ["value", "gradient", "joint", "nan"])
def test_machine_code_that_is_wrong_is_not_used(caplog, monkeypatch, wrong):
    """By 1%, in one chain that starts where it matters."""

    def compiled(f, *arrays, **how):
        def g(u, *rest):
            found, far = f(u, *rest), u[0] > 1.0
            place = ["value", "gradient", "joint", "nan"].index(wrong) % 3
            found[place] = mx.where(far, mx.array(np.nan) if wrong == "nan" else 1.01 * found[place], found[place])
            return found

        return compile_function(g, *arrays, **how)

    monkeypatch.setattr(density_module, "compile_function", compiled)
    how = {**FEW, "chains": 20}
    post = hmc(model(), {"y": 3.0}, **how)
    assert post.execution == "replayed"
    (line,) = caplog.records
    said = "finite where it should not be" if wrong == "nan" else "off by"
    assert line.levelno == logging.WARNING and said in line.getMessage()
    with pytest.raises(Disagreement):
        hmc(model(), {"y": 3.0}, native=True, **how)


@gen
def process(x):
    length, scale = trace("length", gamma(3.0, 2.0)), trace("scale", gamma(2.0, 2.0))
    covariance = mx.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (scale * scale + 1e-4) * mx.eye(50)
    trace("y", multivariate_normal(mx.zeros(50), covariance))


@pytest.mark.parametrize("wrong", [0.0, 0.01])
def test_rounding_is_no_disagreement(monkeypatch, wrong):
    """Where a covariance has condition number 3e5 float32 knows 1% of the gradient; elsewhere 1% is an error."""

    def compiled(f, *arrays, **how):
        def g(u, *rest):
            found = f(u, *rest)
            return [found[0], (1 + wrong) * found[1], found[2]]

        return compile_function(g, *arrays, **how)

    monkeypatch.setattr(density_module, "compile_function", compiled)
    x = mx.linspace(0, 10, 50)
    density = LogDensity(process(x), {"y": mx.sin(x) + 0.3 * mx.cos(70 * x)})
    machine = native_density(density)

    def check(log_scale):
        start = mx.array([[0.94, log_scale], [0.9, log_scale], [0.92, log_scale]])
        walk = NativeWalk("nuts", machine, np.array(start), False, {"max_depth": 3})
        density_module._require_agreement(walk, density, start, True)
        gradient = np.array(density.value_and_grad(start)[1])
        return np.abs(walk.value_and_grad[1] / gradient - 1).max()

    assert check(-6.0) > 2 * density_module._ROUNDING
    if wrong:
        with pytest.raises(Disagreement, match="gradient"):
            check(-1.0)
    else:
        assert check(-1.0) < 1e-4


@gen
def bounded():
    """Without a density above 1."""
    a = trace("a", normal(0, 1))
    trace("y", normal(mx.where(a < 1, a, mx.nan), 1.0))


def test_starts_without_a_density():
    """There they need only agree that there is none."""
    density, start = LogDensity(bounded(), {"y": 0.0}), mx.array([[0.5], [2.0], [-1.0]])
    walk = native_walk("nuts", density, start, False, {"max_depth": 3}, True, required=True)
    assert walk is not None and np.isfinite(walk.value_and_grad[0]).tolist() == [True, False, True]
    shifted = NativeWalk("nuts", native_density(density), np.array(start) - 1.5, False, {"max_depth": 3})
    with pytest.raises(Disagreement, match="finite where it should not be"):
        density_module._require_agreement(shifted, density, start, True)


def test_without_llvmlite_everything_runs_on_mlx(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert nuts(model(), {"y": 1.0}, **FEW).execution == "replayed"
    with pytest.raises(UsageError, match="llvmlite"):
        nuts(model(), {"y": 1.0}, native=True, **FEW)


def test_another_device_runs_on_mlx(monkeypatch):
    monkeypatch.setattr(density_module.mx, "default_device", lambda: mx.Device(mx.gpu))
    with pytest.raises(Untranslatable, match="not the CPU|on a GPU"):
        nuts(model(), {"y": 1.0}, native=True, **FEW)


def test_a_model_that_is_wrong_says_so_either_way():
    @gen
    def branching():
        if trace("mu", normal(0, 1)).item() > 0:
            trace("z", normal(0, 1))
        trace("y", normal(0, 1))

    told = []
    for native in (True, False):
        with pytest.raises(GenError) as raised:
            nuts(branching(), {"y": 1.0}, native=native, **FEW)
        told.append(str(raised.value))
    assert told[0] == told[1]


@gen
def scaled():
    trace("y", normal(trace("mu", normal(param("center", 0.0), 1)), 0.5))


def test_parameters_are_inputs():
    """Their values are those at the start of the run."""
    machine = native_density(LogDensity(scaled(), {"y": 1.0}))
    assert len(machine.inputs) == 1
    means = []
    for center in (0.0, 5.0):
        scaled.params["center"] = mx.array(center)
        post = nuts(scaled(), {"y": 1.0}, draws=500, warmup=100, chains=4, key=1, native=True)
        means.append(post.mean("mu").item())
        assert abs(means[-1] - (center + 4 * 1.0) / 5) < 4.5 * float(post.mcse("mu"))
    assert means[1] - means[0] > 0.9


def test_a_checkpoint_of_one_way_is_not_taken_up_by_the_other(tmp_path):
    nuts(model(), {"y": 1.0}, native=True, checkpoint=tmp_path / "file", **FEW)
    with pytest.raises(GenError, match=r"other native \(True there, False here\)"):
        nuts(model(), {"y": 1.0}, native=False, checkpoint=tmp_path / "file", **FEW)


def test_another_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(nuts(model(), {"y": 1.0}, native=True, **FEW)["mu"].tolist()))
    thread.start()
    thread.join()
    assert found == [nuts(model(), {"y": 1.0}, native=True, **FEW)["mu"].tolist()]


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
        post = nuts(redefined(), {"y": 1.0}, **FEW)
    assert all(made() is code[0]() for made in code)
    redefined.redefine(lambda: trace("y", normal(trace("mu", normal(3, 1)), 1.0)))
    nuts(redefined(), {"y": 1.0}, **FEW)
    gc.collect()
    assert code[0]() is None and np.isfinite(post.mean("mu").item())


# calibration


@gen
def measured():
    mu, sigma = trace("mu", normal(0, 1)), trace("sigma", gamma(3.0, 2.0))
    shares = trace("shares", dirichlet(mx.array([2.0, 1.0, 1.5])))
    trace("y", normal(mu * mx.ones(2), sigma))
    trace("v", normal(shares, 0.4))


REPLICATIONS, DRAWS, ALARM = 500, 19, 1e-4
HOW = {
    "hmc": ({"leapfrog_steps": 5}, 5),
    "nuts": ({"max_depth": 6}, 3),
    "mala": ({}, 30),
    "random_walk": ({}, 400),
}


def data_as_an_input(jacobian=True):
    """The density of the latents of ``measured`` with its data as a second input; the parts of both in a vector."""
    density = LogDensity(measured())
    dim = min(density.addresses[(name,)].start for name in ("y", "v"))

    def given(u, data):
        what = "logp gradient" if jacobian else "joint gradient"
        value, gradient = density._by_handlers(what, mx.concatenate([u, data]), [])
        return [value, gradient[:dim]]

    made = compile_function(given, mx.zeros(dim), mx.zeros(density.dim - dim))
    return density, dim, made


def ranks(method, jacobian=True):
    """Of the true latents among draws given data from the prior (Talts et al. 2018); each replication is a run."""
    density, dim, made = data_as_an_input(jacobian)
    settings, thin = HOW[method]
    true = np.array(density.pack(measured().vsimulate(REPLICATIONS, key=mx.random.key(1)).choices))
    start = np.array(density.pack(measured().vsimulate(REPLICATIONS, key=mx.random.key(2)).choices))
    found = np.zeros((REPLICATIONS, dim + 1), dtype=int)
    for i, own in enumerate(true):
        data = np.ascontiguousarray(own[dim:])
        machine = Density(
            made.pointer,
            dim,
            np.float32,
            inputs=(data.ctypes.data,),
            constants=made.constants,
            scratch_bytes=made.scratch_bytes,
            owner=made,
        )
        walk = NativeWalk(method, machine, start[i : i + 1, :dim], False, settings)
        with Loop("calibration") as loop:
            draws, _ = walk.run(loop, random.streams(i), draws=DRAWS, warmup=300, thin=thin)
        value = np.append(own[:dim], joint(density, own, dim, data))
        drawn = np.column_stack([draws[0], [joint(density, u, dim, data) for u in draws[0]]])
        found[i] = (drawn < value).sum(axis=0)
    return found


def joint(density, u, dim, data):
    """A quantity of latents and data together, without which a sampler that ignores the data passes."""
    return float(u[0] * data[0] + u[1] * data[1])


def p_values(found):
    return np.array([stats.chisquare(np.bincount(column, minlength=DRAWS + 1)).pvalue for column in found.T])


@pytest.mark.slow
@pytest.mark.parametrize("method", HOW)
def test_calibration(method):
    """A right sampler fails with probability 1e-4; what is wrong by a prior, a Jacobian or a weight is found."""
    found = p_values(ranks(method))
    assert found.min() > ALARM / len(found), found


@pytest.mark.slow
def test_draws_without_the_jacobian_are_seen():
    assert p_values(ranks("hmc", jacobian=False)).min() < ALARM
