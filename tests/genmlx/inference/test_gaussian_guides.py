"""The natural gradients of Gaussian guides: against automatic differentiation, and where they have to vanish."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx import gen, normal, trace
from genmlx.inference.gaussian_guides import Direction, FullRank, LowRank, MeanField
from genmlx.inference.log_density import LogDensity

DIM, RANK = 4, 2
GUIDES = {"meanfield": MeanField(DIM), "fullrank": FullRank(DIM), "lowrank": LowRank(DIM, RANK)}
rng = np.random.RandomState(0)
MEAN, STD = rng.normal(size=DIM), np.array([0.5, 2.0, 1.0, 0.3])
ROOT = np.tril(rng.normal(size=(DIM, DIM)), -1) + np.diag(STD)
FACTOR = rng.normal(size=(DIM, RANK))
PARAMS = {
    "meanfield": {"mean": MEAN, "std": STD},
    "fullrank": {"mean": MEAN, "scale_tril": ROOT},
    "lowrank": {"mean": MEAN, "std": STD, "factor": FACTOR},
}
COVARIANCE = {
    "meanfield": np.diag(STD**2),
    "fullrank": ROOT @ ROOT.T,
    "lowrank": np.diag(STD**2) + FACTOR @ FACTOR.T,
}
CURVATURE = mx.array([[2.0, 0.5, 0.1, 0.0], [0.5, 3.0, 0.2, 0.1], [0.1, 0.2, 1.0, 0.3], [0.0, 0.1, 0.3, 4.0]])
each = pytest.mark.parametrize("family", GUIDES)


def params_of(family):
    return {name: mx.array(value.astype("float32")) for name, value in PARAMS[family].items()}


def log_density(u):
    """Neither Gaussian nor a product."""
    return -0.5 * mx.sum((u @ CURVATURE) * u, axis=-1) + mx.sum(mx.sin(u[..., :2]), axis=-1)


def gradients_at(u):
    return mx.grad(lambda u: mx.sum(log_density(u)))(u)


def direction(family, n=6, key=0, landing=True, params=None, gradients=gradients_at):
    guide = GUIDES[family]
    z = mx.random.normal((n, guide.width), key=mx.random.key(key))
    params = params or params_of(family)
    to = guide.direction(params, z, gradients(guide.place(params, z)), mx.ones((n, 1), dtype=mx.bool_), landing)
    return z, to


@each
def test_density_and_moments(family):
    """log q against scipy at the guide's own draws; catches a log determinant that is off, and Woodbury's sign."""
    guide, params, n = GUIDES[family], params_of(family), 50
    z = mx.random.normal((n, guide.width), key=mx.random.key(1))
    u = np.array(guide.place(params, z), dtype=float)
    exact = stats.multivariate_normal(MEAN, COVARIANCE[family]).logpdf(u)
    np.testing.assert_allclose(np.array(guide.log_q(params, z)), exact, atol=2e-4)
    np.testing.assert_allclose(np.array(guide.covariance(params)), COVARIANCE[family], atol=1e-5)
    np.testing.assert_allclose(np.array(guide.std(params)), np.sqrt(np.diag(COVARIANCE[family])), rtol=1e-5)
    many = mx.random.normal((100_000, guide.width), key=mx.random.key(2))
    spread = np.sqrt(np.diag(COVARIANCE[family]))
    found = (np.cov(np.array(guide.place(params, many), dtype=float).T) - COVARIANCE[family]) / np.outer(spread, spread)
    assert abs(found).max() < 4.5 * math.sqrt(2 / 100_000)


@each
def test_without_sticking_the_landing_it_is_the_gradient_of_the_bound(family):
    """Automatic differentiation of the same draws' objective, entropy in closed form, times the inverse metric."""
    guide, params = GUIDES[family], params_of(family)
    z, to = direction(family, landing=False)

    def objective(change):
        if family == "fullrank":
            moved = {"mean": params["mean"] + params["scale_tril"] @ change["mean"]}
            moved["scale_tril"] = params["scale_tril"] @ (mx.eye(DIM) + mx.tril(change["scale"]))
            log_det = mx.sum(mx.log(mx.diagonal(params["scale_tril"])) + mx.log(1 + mx.diagonal(change["scale"])))
        else:
            moved = {"mean": params["mean"] + change["mean"], "std": params["std"] * mx.exp(change["std"])}
            log_det = mx.sum(mx.log(moved["std"]))
        if family == "lowrank":
            moved["factor"] = params["factor"] + change["factor"]
            v = moved["factor"] / moved["std"][:, None]
            inner = mx.eye(RANK) + v.T @ v
            log_det = log_det + 0.5 * mx.log(inner[0, 0] * inner[1, 1] - inner[0, 1] * inner[1, 0])
        return mx.mean(log_density(guide.place(moved, z))) + log_det

    zero = {"mean": mx.zeros(DIM), "scale": mx.zeros((DIM, DIM)), "std": mx.zeros(DIM), "factor": mx.zeros((DIM, RANK))}
    slope = {name: np.array(value, dtype=float) for name, value in mx.grad(objective)(zero).items()}
    covariance, spread = COVARIANCE[family], np.sqrt(np.diag(COVARIANCE[family]))
    if family == "fullrank":
        mean, scale = slope["mean"], np.tril(slope["scale"]) * (1 - 0.5 * np.eye(DIM))
    elif family == "meanfield":
        mean, scale = STD * slope["mean"], 0.5 * slope["std"][:, None]
    else:
        mean = covariance @ slope["mean"] / spread
        columns = covariance @ slope["factor"] / spread[:, None]
        scale = np.concatenate([0.5 * slope["std"][:, None], columns], axis=1)
    np.testing.assert_allclose(np.array(to.mean), mean, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(np.array(to.scale), scale, rtol=2e-4, atol=2e-4)


@each
def test_sticking_the_landing_has_the_same_mean(family):
    """Means of 200,000 draws, 4.5 standard errors; catches a score term that is not of mean zero."""
    n, parts = 2000, 100
    pairs = [(direction(family, n, key, True)[1], direction(family, n, key, False)[1]) for key in range(parts)]
    for i in (0, 1):
        difference = np.array([np.array(a[i] - b[i], dtype=float) for a, b in pairs])
        error = difference.std(axis=0, ddof=1) / math.sqrt(parts)
        assert np.all(abs(difference.mean(axis=0)) < 4.5 * error + 1e-5)


@each
@pytest.mark.parametrize("landing", [True, False])
def test_at_the_posterior_it_vanishes_for_every_draw_if_it_sticks_the_landing(family, landing):
    precision = mx.array(np.linalg.inv(COVARIANCE[family]).astype("float32"))
    mean = mx.array(MEAN.astype("float32"))
    _, to = direction(family, 3, 5, landing, gradients=lambda u: -(u - mean) @ precision)
    size = max(mx.max(mx.abs(part)).item() for part in to)
    assert size < 2e-4 if landing else size > 0.1


@each
def test_impossible_draws_pull_the_scale_in(family):
    """Where no draw has a density the guide has to shrink, and must not become NaN."""
    guide, params = GUIDES[family], params_of(family)
    z = mx.random.normal((1000, guide.width), key=mx.random.key(3))
    nothing = mx.full((1000, DIM), math.nan)
    for landing in (True, False):
        to = guide.direction(params, z, nothing, mx.zeros((1000, 1), dtype=mx.bool_), landing)
        moved = guide.moved(params, to, mx.array([0.0, 0.05]))
        before, after = (np.linalg.slogdet(np.array(guide.covariance(p), dtype=float))[1] for p in (params, moved))
        assert after < before - 0.1


@each
def test_no_step_is_longer_than_a_quarter(family):
    guide, params = GUIDES[family], params_of(family)
    to = direction(family)[1]
    unit = Direction(*[part / mx.sqrt(mx.sum(part * part)) for part in to])
    moved = guide.moved(params, unit, mx.array([1e6, 1e6]))
    inverse = np.linalg.inv(np.linalg.cholesky(COVARIANCE[family]))
    root = inverse @ np.linalg.cholesky(np.array(guide.covariance(moved), dtype=float))
    shift = inverse @ (np.array(moved["mean"], dtype=float) - MEAN)
    widest = 2.0 if family == "meanfield" else 1.0  # each of its four coordinates has a quarter
    assert 0.01 < np.linalg.norm(shift) < 0.6 * widest
    assert 0.01 < abs(np.log(np.linalg.svd(root)[1])).max() < 0.6 * widest


def test_directions_of_a_model():
    """The gradients of a LogDensity go in as they come out: [samples, dim]."""

    @gen
    def model():
        trace("y", normal(trace("x", normal(0, 1)), 1.0))

    density, guide = LogDensity(model(), {"y": 1.0}), MeanField(1)
    params = {"mean": mx.array([0.5]), "std": mx.array([math.sqrt(0.5)])}
    z = mx.random.normal((5, 1), key=mx.random.key(0))
    value, gradients = density.value_and_grad(guide.place(params, z))
    to = guide.direction(params, z, gradients, mx.ones((5, 1), dtype=mx.bool_), True)
    assert max(mx.max(mx.abs(part)).item() for part in to) < 1e-6
    np.testing.assert_allclose(np.array(value - guide.log_q(params, z)), -1.515512, atol=2e-6)  # case 47
