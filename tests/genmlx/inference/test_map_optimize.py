"""Modes of joint densities, in closed form."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import optimize

from genmlx import dist, gen, normal, trace
from genmlx.errors import ParameterError, UsageError
from genmlx.inference.lbfgs import Ascent, batched
from genmlx.inference.map_optimize import map_optimize

KEY = mx.random.key(0)


@gen
def conjugate(ys):
    mu = trace("mu", normal(0, 1))
    for i, _ in enumerate(ys):
        trace(("y", i), normal(mu, 1.0))


@gen
def counts():
    rate = trace("rate", dist.gamma(2.0, 1.0))
    for i in range(2):
        trace(("y", i), dist.poisson(rate))


@gen
def coin():
    trace("y", dist.binomial(20, trace("p", dist.beta(2.0, 3.0))))


@gen
def shares():
    p = trace("p", dist.dirichlet([2.0, 3.0, 1.5]))
    for i in range(4):
        trace(("y", i), dist.categorical(mx.log(p)))


@gen
def spread():
    sigma2 = trace("sigma2", dist.inv_gamma(3.0, 2.0))
    for i in range(3):
        trace(("y", i), normal(0.0, mx.sqrt(sigma2)))


@gen
def covariance():
    trace("S", dist.wishart(7.0, mx.array([[2.0, 0.6], [0.6, 1.0]])))


def test_the_mode_of_a_normal(way):
    ys = [0.5] * 10
    best = map_optimize(conjugate(ys), {("y", i): y for i, y in enumerate(ys)}, key=KEY)
    assert best.trace["mu"].item() == pytest.approx(5 / 11, abs=1e-5)
    assert best.score.item() == best.trace.score.item()
    assert best.trace["y", 3].item() == 0.5 and best.status == "complete"
    assert best.execution == way


@pytest.mark.parametrize(
    "call, observations, address, mode",
    [
        (counts(), {("y", 0): 3, ("y", 1): 5}, "rate", 9 / 3),  # gamma(10, 3); with the Jacobian 10 / 3
        (coin(), {"y": 14}, "p", 15 / 23),  # beta(16, 9); with the Jacobian 16 / 25
        (shares(), {("y", i): k for i, k in enumerate((0, 0, 1, 2))}, "p", np.array([3, 3, 1.5]) / 7.5),
        (spread(), {("y", i): y for i, y in enumerate((1.0, -2.0, 0.5))}, "sigma2", (2 + 5.25 / 2) / 5.5),
        (covariance(), {}, "S", 4 * np.array([[2.0, 0.6], [0.6, 1.0]])),  # (df - k - 1) scale
    ],
)
def test_the_mode_is_that_of_the_density_of_the_latents(way, call, observations, address, mode):
    """textbook closed forms on every kind of support. A search that keeps the Jacobian of the unconstrained
    coordinates finds the other mode, a tenth away."""
    best = map_optimize(call, observations, key=KEY)
    np.testing.assert_allclose(np.array(best.trace[address]), mode, rtol=4e-4)


def test_the_best_of_the_restarts_is_taken(way):
    """Two modes, at 5 and at -5, the second a little lower: catches the first restart taken, or the last."""

    @gen
    def two():
        trace("x", dist.mixture([normal(-5, 1), normal(5, 1)], mx.log(mx.array([0.45, 0.55]))))

    best = map_optimize(two(), restarts=20, key=KEY)
    assert best.trace["x"].item() == pytest.approx(5, abs=1e-3)
    assert best.score.item() == pytest.approx(math.log(0.55 / math.sqrt(2 * math.pi)), abs=1e-5)
    ends = sorted(set(np.round(np.array(best.history[-1]), 2)))
    assert len(ends) == 2 and ends[1] == pytest.approx(best.score.item(), abs=0.01)


def test_history_rises(way):
    best = map_optimize(coin(), {"y": 14}, restarts=3, key=KEY)
    history = np.array(best.history)
    assert history.shape[1] == 3 and history.shape[0] < 60
    assert (np.diff(history, axis=0) > -1e-4).all()
    assert history[-1].max() == pytest.approx(best.score.item(), abs=1e-4)


def test_the_same_key_finds_the_same(way):
    runs = [map_optimize(counts(), {("y", 0): 3, ("y", 1): 5}, key=KEY).trace["rate"].item() for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_regression_of_many_coefficients(way):
    """Ridge regression, ten coefficients of condition number 1e3, against its normal equations."""
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(60, 10)) @ np.diag(np.logspace(0, -1.5, 10))).astype("float32")
    y = (x @ rng.normal(size=10) + 0.1 * rng.normal(size=60)).astype("float32")
    design = mx.array(x)

    @gen
    def ridge():
        w = trace("w", dist.iid(normal(0, 1), 10))
        trace("y", normal(design @ w, 0.1))

    best = map_optimize(ridge(), {"y": y}, restarts=4, key=KEY)
    truth = np.linalg.solve(x.T.astype(float) @ x + 0.01 * np.eye(10), x.T.astype(float) @ y)
    np.testing.assert_allclose(np.array(best.trace["w"]), truth, atol=3e-3)


def test_dependent_supports(way):
    """x ~ uniform(0, 2), z ~ triangular towards x: the bound of the second moves with the first."""

    @gen
    def model():
        x = trace("x", dist.gamma(5.0, 2.0))
        z = trace("z", dist.transformed(dist.beta(3.0, 2.0), dist.bijectors.affine(0.0, x)))
        trace("y", normal(z, 0.5))

    best = map_optimize(model(), {"y": 1.0}, key=KEY)

    def minus(v):
        x, z = v
        s = z / x
        if not (x > 0 and 0 < s < 1):
            return 1e9
        return -(4 * math.log(x) - 2 * x + 2 * math.log(s) + math.log(1 - s) - math.log(x) - 2 * (z - 1) ** 2)

    x, z = optimize.minimize(minus, [2.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).x
    assert best.trace["x"].item() == pytest.approx(x, abs=2e-3)
    assert best.trace["z"].item() == pytest.approx(z, abs=2e-3)


def test_progress_and_errors(way):
    seen = []
    map_optimize(coin(), {"y": 14}, restarts=2, key=KEY, progress=seen.append)
    assert seen[-1].algorithm == "map_optimize" and seen[-1].info["steps"] > 1
    for bad in ({"restarts": 0}, {"iterations": 0}):
        with pytest.raises(ParameterError, match="must be a whole number, at least 1"):
            map_optimize(coin(), {"y": 14}, **bad)
    with pytest.raises(UsageError, match="nothing to infer"):
        map_optimize(coin(), {"y": 14, "p": 0.5})


def test_ascent_finds_the_top_of_rosenbrock():
    """Every lane on its own: a line search that shares its step between lanes does not get there."""

    def f(u):
        def one(v):
            return -(100 * (v[1] - v[0] ** 2) ** 2 + (1 - v[0]) ** 2)

        return mx.vmap(one)(u), mx.vmap(mx.grad(one))(u)

    ascent = Ascent(batched(f), mx.array([[-1.2, 1.0], [2.0, 2.0], [0.0, -1.0], [1.0, 1.0]]))
    for _ in range(200):
        if ascent.done:
            break
        ascent.step()
    assert ascent.done and len(ascent.history) < 150
    np.testing.assert_allclose(ascent.u, 1, atol=2e-2)


def test_a_wall_is_stepped_back_from():
    """-inf and nan beyond a wall: catches a search that takes them, or gives up."""

    def f(u):
        x = u[:, 0]
        inside = x < 2
        safe = mx.where(inside, x, 0.0)
        value = mx.where(inside, -0.01 * (safe - 1.9) ** 2, -math.inf)
        return value, mx.where(inside, -0.02 * (safe - 1.9), math.nan)[:, None]

    ascent = Ascent(batched(f), mx.array([[-50.0], [0.0]]))
    while not ascent.done:
        ascent.step()
    np.testing.assert_allclose(ascent.u[:, 0], 1.9, atol=1e-2)


@pytest.mark.parametrize("one", [lambda v: -mx.sum(mx.sqrt(1 + v * v)), lambda v: -mx.sum(mx.logaddexp(v, -v))])
def test_flat_flanks_do_not_throw_it(one):
    """A secant step from a flank leaps far beyond the top: catches a line search that takes whatever is finite."""
    f = batched(lambda u: (mx.vmap(one)(u), mx.vmap(mx.grad(one))(u)))
    ascent = Ascent(f, mx.array([[10.0], [2.0], [30.0], [-7.0]]))
    while not ascent.done:
        ascent.step()
    np.testing.assert_allclose(ascent.u, 0, atol=1e-3)
