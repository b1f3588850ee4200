"""What L-BFGS climbs as machine code: the points that are wanted, the modes that MLX finds, and what is logged."""

import logging
import math
import os
import signal
import sys

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from posteriors import ERRORS, SCHOOLS, eight_schools
from scipy import optimize, special, stats

from genmlx import bernoulli, gamma, gen, map_optimize, multivariate_normal, normal, param, trace
from genmlx.errors import UsageError
from genmlx.inference import loop as loop_module
from genmlx.inference.laplace import laplace
from genmlx.inference.log_density import LogDensity
from genmlx.native import ascent
from genmlx.native.ascent import NativeGradients, native_gradients
from genmlx.native.fallback import Disagreement
from genmlx.native.graph import Untranslatable
from genmlx.native.kernel import compile_function

KEY = mx.random.key(0)


def quadratic(u, slope):
    return [-0.5 * mx.sum(u * u) + mx.sum(u * slope), slope - u]


def test_only_the_points_that_are_wanted_are_evaluated():
    """Against the formula; a row that is not wanted holds what it held."""
    slope = mx.array([1.0, -2.0, 0.5])
    found = NativeGradients(compile_function(quadratic, mx.zeros(3), slope), [slope], 4, 3)
    u, wanted = np.random.default_rng(0).normal(size=(4, 3)), np.array([True, False, True, False])
    value, gradient = found(u, wanted)
    rounded = u.astype(np.float32).astype(float)
    expected = -0.5 * (rounded**2).sum(1) + rounded @ np.array(slope)
    assert value.dtype == gradient.dtype == np.float64
    assert np.allclose(value[wanted], expected[wanted], rtol=1e-6) and not value[~wanted].any()
    assert np.allclose(gradient[wanted], np.array(slope) - rounded[wanted], rtol=1e-6) and not gradient[~wanted].any()
    later, _ = found(u + 1.0, ~wanted)
    assert np.array_equal(later[wanted], value[wanted]) and later[~wanted].all()
    assert not np.array_equal(later, value), "what was given before stays as it was"


# modes by scipy, in float64

RNG = np.random.default_rng(0)
DESIGN = RNG.normal(size=(1000, 20))
ANSWERS = (RNG.uniform(size=1000) < special.expit(DESIGN @ RNG.normal(size=20))).astype(np.float32)
TIMES = np.linspace(0, 10, 50)
HEIGHTS = np.sin(TIMES) + 0.3 * np.cos(70 * TIMES)


@gen
def logistic(x):
    trace("y", bernoulli(logits=x @ trace("w", normal(mx.zeros(20), 1.0))))


@gen
def process(x):
    length, scale = trace("length", gamma(3.0, 2.0)), trace("scale", gamma(2.0, 2.0))
    covariance = mx.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (scale * scale + 1e-4) * mx.eye(50)
    trace("y", multivariate_normal(mx.zeros(50), covariance))


def log_joint_of_schools(v):
    mu, tau, z = v[0], math.exp(v[1]), v[2:]
    priors = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, scale=5) + stats.norm.logpdf(z).sum()
    return priors + stats.norm.logpdf(SCHOOLS, mu + tau * z, ERRORS).sum()


def log_joint_of_logistic(w):
    return stats.norm.logpdf(w).sum() - np.logaddexp(0, np.where(ANSWERS > 0, -1, 1) * (DESIGN @ w)).sum()


def log_joint_of_process(v):
    length, scale = np.exp(v)
    covariance = np.exp(-0.5 * ((TIMES[:, None] - TIMES) / length) ** 2) + (scale**2 + 1e-4) * np.eye(50)
    priors = stats.gamma.logpdf([length, scale], [3, 2], scale=0.5).sum()
    return priors + stats.multivariate_normal(np.zeros(50), covariance).logpdf(HEIGHTS)


POSITIVE = ("tau", "length", "scale")
MODELS = {
    "eight schools": (eight_schools(), mx.array(SCHOOLS), log_joint_of_schools, ("mu", "tau", "z")),
    "logistic": (logistic(mx.array(DESIGN)), mx.array(ANSWERS), log_joint_of_logistic, ("w",)),
    "process": (process(mx.array(TIMES)), mx.array(HEIGHTS), log_joint_of_process, ("length", "scale")),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_mode_is_that_of_scipy(name):
    """The highest of the climbs is a mode of the float64 density: scipy gets no higher from there by more than 1e-3."""
    call, y, log_joint, names = MODELS[name]
    for native in (True, False):
        best = map_optimize(call, {"y": y}, key=KEY, restarts=6, native=native)
        values = [np.array(best.trace[a], dtype=float).reshape(-1) for a in names]
        there = np.concatenate([np.log(v) if a in POSITIVE else v for a, v in zip(names, values, strict=True)])
        higher = optimize.minimize(lambda v: -log_joint(v), there, method="BFGS", options={"gtol": 1e-6})
        assert -higher.fun - log_joint(there) < 1e-3, native
        assert best.score.item() == pytest.approx(log_joint(there), abs=5e-3), native
        assert best.execution == ("native (float32)" if native else "replayed")


@gen
def model():
    trace("y", normal(trace("mu", normal(0, 1)), 0.5))


@gen
def summed():
    """MLX 0.32.4 does not export the primitive of ``logcumsumexp``."""
    a = trace("a", normal(mx.zeros(2), 1))
    trace("y", normal(mx.logcumsumexp(a), 1.0))


@pytest.mark.parametrize("climb", [map_optimize, laplace])
def test_machine_code_is_the_default(climb):
    one, same, other = (climb(model(), {"y": 1.5}, key=KEY, native=native) for native in (None, True, False))
    assert one.execution == same.execution == "native (float32)" and other.execution == "replayed"
    modes = [found.trace["mu"] if climb is map_optimize else found.mode["mu"] for found in (one, same, other)]
    assert modes[0].item() == modes[1].item() == pytest.approx(modes[2].item(), abs=1e-5)
    assert modes[0].item() == pytest.approx(1.2, abs=1e-5)


@pytest.mark.parametrize("climb", [map_optimize, laplace])
def test_what_has_no_native_form_runs_on_mlx(caplog, climb):
    """One line names the primitive."""
    with caplog.at_level(logging.INFO, "genmlx.native"):
        found = climb(summed(), {"y": mx.ones(2)}, key=KEY)
    assert "native" not in found.execution
    (line,) = caplog.records
    assert line.levelno == logging.INFO and f"{climb.__name__} of summed() runs on MLX" in line.getMessage()
    assert "CumLog" in line.getMessage()
    with pytest.raises(Untranslatable, match="CumLog"):
        climb(summed(), {"y": mx.ones(2)}, key=KEY, native=True)
    caplog.clear()
    climb(summed(), {"y": mx.ones(2)}, key=KEY, native=False)
    assert not caplog.records


@pytest.mark.parametrize("wrong", ["value", "gradient"])
def test_machine_code_that_is_wrong_is_not_used(caplog, monkeypatch, wrong):
    """By 1%, in some of the points where the climbs begin."""

    def compiled(f, *arrays):
        def g(u, *rest):
            found, place = f(u, *rest), ["value", "gradient"].index(wrong)
            found[place] = mx.where(u[0] > 1.0, 1.01 * found[place], found[place])
            return found

        return compile_function(g, *arrays)

    monkeypatch.setattr(ascent, "compile_function", compiled)
    assert map_optimize(model(), {"y": 3.0}, restarts=20, key=KEY).execution == "replayed"
    (line,) = caplog.records
    assert line.levelno == logging.WARNING and "off by" in line.getMessage()
    with pytest.raises(Disagreement):
        map_optimize(model(), {"y": 3.0}, restarts=20, key=KEY, native=True)


def test_without_llvmlite_everything_runs_on_mlx(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert map_optimize(model(), {"y": 1.0}, key=KEY).execution == "replayed"
    with pytest.raises(UsageError, match="llvmlite"):
        map_optimize(model(), {"y": 1.0}, key=KEY, native=True)


@pytest.mark.parametrize("jacobian", [True, False])
def test_gradients_are_those_of_the_density_with_or_without_the_jacobian(jacobian):
    """sigma ~ gamma(2, 1) in log sigma: differentiated by hand."""

    @gen
    def scale():
        trace("y", normal(0.0, trace("sigma", gamma(2.0, 1.0))))

    density, u = LogDensity(scale(), {"y": 1.5}), np.array([[-0.5], [0.0], [0.7]])
    made = native_gradients("test", density, mx.array(u), jacobian, required=True)
    value, gradient = made(u, np.ones(3, bool))
    sigma = np.exp(u[:, 0])
    expected = stats.gamma.logpdf(sigma, 2) + stats.norm.logpdf(1.5, 0, sigma) + jacobian * u[:, 0]
    assert np.allclose(value, expected, rtol=1e-5)
    assert np.allclose(gradient[:, 0], 1 - sigma - 1 + (1.5 / sigma) ** 2 + jacobian, atol=1e-5)


@gen
def scaled():
    trace("y", normal(trace("mu", normal(param("center", 0.0), 1)), 0.5))


def test_parameters_are_inputs():
    for center in (0.0, 5.0):
        scaled.params["center"] = mx.array(center)
        best = map_optimize(scaled(), {"y": 1.0}, key=KEY, native=True)
        assert best.trace["mu"].item() == pytest.approx((center + 4.0) / 5, abs=1e-5)


def test_ctrl_c_keeps_what_is_there(monkeypatch):
    """And both ways tell the same on the way."""
    monkeypatch.setattr(loop_module, "_TARGET", 0.0)
    monkeypatch.setattr(loop_module, "_SLOWEST", 1e9)
    monkeypatch.delenv("GENMLX_CI", raising=False)
    call, y = MODELS["logistic"][:2]
    for native in (True, False):
        events = []

        def press(event, events=events):
            events.append(event)
            if event.done == 3:
                os.kill(os.getpid(), signal.SIGINT)

        partial = map_optimize(call, {"y": y}, key=KEY, progress=press, native=native)
        assert partial.status == "interrupted" and 4 <= partial.history.shape[0] <= 6
        assert {(e.algorithm, e.phase, tuple(e.info)) for e in events} == {
            ("map_optimize", "optimising", ("log_density", "steps"))
        }
        assert np.isclose(events[-1].info["log_density"], np.array(partial.history[-1]).max(), rtol=1e-6)
