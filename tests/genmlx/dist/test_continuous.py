"""Continuous families against scipy in float64, at the float32 values that the families are given."""

import math
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from scipy import special, stats

from genmlx.backend.gamma_sampler import log_gamma_derivative, log_standard_gamma, standard_gamma
from genmlx.dist.beta import beta
from genmlx.dist.beta_uniform_mixture import beta_uniform_mixture
from genmlx.dist.cauchy import cauchy
from genmlx.dist.chi2 import chi2
from genmlx.dist.exponential import exponential
from genmlx.dist.gamma import gamma
from genmlx.dist.gumbel import gumbel
from genmlx.dist.half_cauchy import half_cauchy
from genmlx.dist.half_normal import half_normal
from genmlx.dist.inv_gamma import inv_gamma
from genmlx.dist.laplace import laplace
from genmlx.dist.log_normal import log_normal
from genmlx.dist.logistic import logistic
from genmlx.dist.pareto import pareto
from genmlx.dist.piecewise_uniform import piecewise_uniform
from genmlx.dist.student_t import student_t
from genmlx.dist.truncated_normal import truncated_normal
from genmlx.dist.uniform import uniform
from genmlx.dist.von_mises import von_mises
from genmlx.dist.weibull import weibull
from genmlx.dist.wrapped_cauchy import wrapped_cauchy
from genmlx.dist.wrapped_normal import wrapped_normal
from genmlx.errors import ParameterError
from genmlx.random import lane_key

TINY = float(np.finfo(np.float32).tiny)


class Circular:
    """A distribution on [-pi, pi] from its density and the Fourier coefficients of it, by the trapezoidal rule."""

    def __init__(self, log_density: Any, *params: Any):
        self.log_density, self.params = log_density, params

    def logpdf(self, x: Any) -> Any:
        return self.log_density(x, *self.params)

    def _table(self) -> tuple:
        grid = np.linspace(-np.pi, np.pi, 40001)
        shape = (-1, *[1] * np.ndim(self.params[0]))
        density = np.exp(self.log_density(grid.reshape(shape), *self.params)).reshape(len(grid), -1)
        steps = 0.5 * (density[1:] + density[:-1]) * (grid[1] - grid[0])
        return grid, np.concatenate([np.zeros((1, steps.shape[1])), np.cumsum(steps, axis=0)])

    def _interpolated(self, at: Any, back: bool) -> Any:
        grid, mass = self._table()
        at = np.broadcast_to(at, np.broadcast_shapes(np.shape(at), np.shape(self.params[0])))
        if mass.shape[1] == 1:
            return np.interp(at, mass[:, 0], grid) if back else np.interp(at, grid, mass[:, 0])
        columns = [
            np.interp(at[..., i], mass[:, i], grid) if back else np.interp(at[..., i], grid, mass[:, i])
            for i in range(mass.shape[1])
        ]
        return np.stack(columns, axis=-1)

    def cdf(self, x: Any) -> Any:
        return self._interpolated(x, False)

    def ppf(self, u: Any) -> Any:
        return self._interpolated(u, True)


def von_mises_log_density(x: Any, mu: Any, kappa: Any) -> Any:
    return -2 * kappa * np.sin(0.5 * (x - mu)) ** 2 - np.log(2 * np.pi * special.i0e(kappa))


def wrapped_normal_log_density(x: Any, mu: Any, sigma: Any) -> Any:
    turns = (x - mu - 2 * np.pi * np.round((x - mu) / (2 * np.pi)))[..., None] + 2 * np.pi * np.arange(-40, 41)
    return special.logsumexp(stats.norm(0, np.asarray(sigma)[..., None]).logpdf(turns), axis=-1)


def wrapped_cauchy_log_density(x: Any, mu: Any, rho: Any) -> Any:
    spread = (1 - rho) ** 2 + 4 * rho * np.sin(0.5 * (x - mu)) ** 2
    return np.log((1 - rho) * (1 + rho) / (2 * np.pi * spread))


class Mixed:
    """Beta with probability theta, else uniform."""

    def __init__(self, theta: Any, a: Any, b: Any):
        self.theta, self.beta = theta, stats.beta(a, b)

    def logpdf(self, x: Any) -> Any:
        with np.errstate(divide="ignore"):
            return np.logaddexp(np.log(self.theta) + self.beta.logpdf(x), np.log1p(-self.theta))

    def cdf(self, x: Any) -> Any:
        return self.theta * self.beta.cdf(x) + (1 - self.theta) * x

    def ppf(self, u: Any) -> Any:
        low, high = np.zeros(np.shape(u)), np.ones(np.shape(u))
        for _ in range(60):
            middle = 0.5 * (low + high)
            under = self.cdf(middle) < u
            low, high = np.where(under, middle, low), np.where(under, high, middle)
        return 0.5 * (low + high)

    def mean(self) -> Any:
        return self.theta * self.beta.mean() + (1 - self.theta) * 0.5

    def var(self) -> Any:
        second = self.theta * (self.beta.var() + self.beta.mean() ** 2) + (1 - self.theta) / 3
        return second - self.mean() ** 2


class Family(NamedTuple):
    dist: Any
    oracle: Any  # parameters -> a frozen scipy distribution, or what looks like one
    grid: list  # parameters at which everything is tested
    outside: list  # values outside the support, for the first parameters of the grid
    bad: list  # parameters that must raise, with the name that the message must contain
    extremes: list = []  # more, for densities and draws only


INF = math.inf
FAMILIES = {
    family.dist.__name__: family
    for family in [
        Family(
            uniform, lambda lo, hi: stats.uniform(lo, hi - lo),
            [(0, 1), (-2, 5), (100, 100.5), (-1e-3, 1e-3)], [-0.01, 1.01, -INF, INF],
            [((1, 1), "lo"), ((2, 1), "lo"), ((0, INF), "hi"), ((math.nan, 1), "lo")],
        ),
        Family(
            beta, stats.beta, [(2, 3), (0.5, 0.5), (1, 1), (0.3, 7), (30, 12), (300, 500)], [-0.1, 1.1, -INF, INF],
            [((0, 1), "a"), ((1, -1), "b"), ((INF, 1), "a")], [(0.01, 0.01), (1e4, 3e4), (0.01, 50)],
        ),
        Family(
            gamma, lambda a, rate: stats.gamma(a, scale=1 / rate),
            [(2.5, 3), (0.3, 1), (0.7, 10), (1, 0.1), (30, 2), (2e3, 7)], [-0.1, -INF, INF],
            [((0, 1), "shape"), ((1, 0), "rate"), ((-1, 1), "shape")], [(1e4, 3), (1e5, 1e-3), (0.05, 2)],
        ),
        Family(
            exponential, lambda rate: stats.expon(scale=1 / rate), [(2,), (0.01,), (1,), (300,)], [-1e-6, -INF, INF],
            [((0,), "rate"), ((-1,), "rate"), ((math.nan,), "rate")],
        ),
        Family(
            laplace, stats.laplace, [(1, 2), (-3, 0.1), (0, 1), (10, 30)], [-INF, INF],
            [((0, 0), "scale"), ((INF, 1), "loc")],
        ),
        Family(
            student_t, stats.t, [(3.5, 0, 1), (1, 2, 3), (0.5, 0, 1), (30, -1, 0.2), (4, 0, 1)], [-INF, INF],
            [((0, 0, 1), "df"), ((1, 0, -1), "scale")], [(1e5, 0, 1), (0.1, 0, 1), (1e3, 5, 2)],
        ),
        Family(
            log_normal, lambda mu, sigma: stats.lognorm(sigma, scale=np.exp(mu)),
            [(0, 1), (2, 0.3), (-3, 2), (5, 0.01)], [-1, 0, -INF, INF], [((0, 0), "sigma")], [(-7.3, 0.002), (1, 6)],
        ),
        Family(cauchy, stats.cauchy, [(0, 1), (3, 0.1), (-2, 30)], [-INF, INF], [((0, 0), "scale")]),
        Family(
            inv_gamma, lambda a, scale: stats.invgamma(a, scale=scale), [(3, 2), (0.7, 5), (1, 1), (20, 0.1), (2.5, 1)],
            [0, -1, -INF, INF], [((0, 1), "shape"), ((1, 0), "scale")], [(0.1, 1), (1e4, 3), (1e5, 1e3)],
        ),
        Family(
            truncated_normal,
            lambda mu, sigma, lo, hi: stats.truncnorm((lo - mu) / sigma, (hi - mu) / sigma, loc=mu, scale=sigma),
            [(0, 1, -1, 2), (1, 2, 0, INF), (0, 1, 6, 7), (0, 1, -7, -6.5), (3, 0.5, -INF, 2), (0, 1, 7, INF),
             (0.3, 1, 0, 0.5), (0, 1, -0.2, 0.2), (0, 3, 2, 2.5), (0, 1, 4.5, 4.6), (0.5, 2, -INF, INF)],
            [-1.1, 2.1, -INF, INF],
            [((0, 1, 1, 1), "lo"), ((0, 1, 2, 1), "lo"), ((0, 0, 0, 1), "sigma"), ((0, 1, math.nan, 1), "lo")],
            [(0, 1, 30, INF), (0, 1, -INF, -300), (-1e4, 1, 0, 1), (0, 1, -5, 40),
             (0, 1, 8, 8.005), (0, 1, -1e-3, 2e-3), (0, 1, -INF, 5), (2, 1, 6, 80), (0, 1, 3.99, INF),
             (0, 1, 4, INF), (0, 1, 1, 1.0098)],
        ),
        Family(
            half_normal, lambda sigma: stats.halfnorm(scale=sigma), [(1,), (0.01,), (20,)], [-1e-3, -INF, INF],
            [((0,), "sigma")],
        ),
        Family(
            half_cauchy, lambda scale: stats.halfcauchy(scale=scale), [(1,), (0.01,), (20,)], [-1e-3, -INF, INF],
            [((0,), "scale")],
        ),
        Family(logistic, stats.logistic, [(0, 1), (3, 0.1), (-20, 7)], [-INF, INF], [((0, 0), "scale")]),
        Family(gumbel, stats.gumbel_r, [(0, 1), (3, 0.1), (-20, 7)], [-INF, INF], [((0, 0), "scale")]),
        Family(
            weibull, lambda k, scale: stats.weibull_min(k, scale=scale), [(2, 1), (0.5, 3), (1, 2), (7, 0.1), (100, 5)],
            [-0.1, -INF, INF], [((0, 1), "shape"), ((1, 0), "scale")], [(0.05, 1), (2000, 3)],
        ),
        Family(
            pareto, lambda b, scale: stats.pareto(b, scale=scale), [(2.5, 1), (0.7, 3), (40, 0.2), (5, 100)],
            [0.99, 0, -INF, INF], [((0, 1), "shape"), ((1, 0), "scale")], [(0.1, 2), (1e4, 3)],
        ),
        Family(
            chi2, stats.chi2, [(3,), (0.5,), (2,), (4.7,), (100,)], [-0.1, -INF, INF], [((0,), "df")],
            [(3e4,), (0.1,)],
        ),
        Family(
            von_mises, lambda mu, kappa: Circular(von_mises_log_density, mu, kappa),
            [(0.5, 2), (3, 10), (-2, 0.3), (0, 0.01)], [-3.15, 3.15, -INF, INF], [((0, -1), "kappa")],
            [(1, 0), (3, 1e3), (100, 3), (-1, 1e4)],
        ),
        Family(
            wrapped_normal, lambda mu, sigma: Circular(wrapped_normal_log_density, mu, sigma),
            [(0.5, 1), (3, 0.3), (-2, 2), (1, 1.5), (0, 1.4999)], [-3.15, 3.15, -INF, INF], [((0, 0), "sigma")],
            [(1, 8), (-3, 0.02), (100, 1), (0, 25), (0, 2.5), (0, 1.2)],
        ),
        Family(
            wrapped_cauchy, lambda mu, rho: Circular(wrapped_cauchy_log_density, mu, rho),
            [(0.5, 0.5), (3, 0.9), (-2, 0.1)], [-3.15, 3.15, -INF, INF], [((0, 1), "rho"), ((0, -0.1), "rho")],
            [(1, 0), (0, 0.999), (50, 0.7)],
        ),
        Family(
            beta_uniform_mixture, Mixed, [(0.5, 2, 3), (0.9, 0.5, 0.5), (0.1, 30, 12), (0.3, 1, 1)],
            [-0.1, 1.1, -INF, INF],
            [((1.1, 1, 1), "theta"), ((-0.1, 1, 1), "theta"), ((0.5, 0, 1), "a")],
            [(0, 2, 3), (1, 2, 3), (0.999, 300, 500)],
        ),
    ]
}  # fmt: skip
NAMES = list(FAMILIES)
QUANTILES = np.concatenate([np.random.default_rng(7).uniform(0, 1, 40), [1e-6, 1e-3, 0.999, 1 - 1e-6]])


def columns(rows: list) -> tuple[list, list]:
    """The parameters as MLX columns [rows, 1], and in float64 what these hold."""
    table = np.array(rows, dtype=np.float32)
    given = [mx.array(table[:, i : i + 1]) for i in range(table.shape[1])]
    return given, [np.array(c).astype(float) for c in given]


def oracle(family: Family, params: list) -> Any:
    with np.errstate(all="ignore"):
        return family.oracle(*params)


def quantiles(family: Family, row: tuple, u: Any = QUANTILES) -> np.ndarray:
    """Points of the support, float32 values as float64."""
    exact = [float(np.float32(p)) for p in row]
    with np.errstate(over="ignore"):
        x = np.asarray(oracle(family, exact).ppf(u)).astype(np.float32).astype(float)
    return x[np.isfinite(oracle(family, exact).logpdf(x))]


def excess(got: mx.array, want: np.ndarray) -> float:
    """The error in units of what is allowed: 3e-5 or 2 ulp of the answer."""
    allowed = np.maximum(3e-5, 2 * np.spacing(np.abs(want).astype(np.float32)))
    return float(np.max(np.abs(np.array(got).astype(float) - want) / allowed))


@pytest.mark.parametrize("name", NAMES)
def test_the_log_density_agrees_with_scipy(name):
    """Catches a wrong constant, a scale taken for a rate, and differences of lgammas, which lose 1e-3 at shape 1e4."""
    family = FAMILIES[name]
    for row in family.grid + family.extremes:
        x = quantiles(family, row)
        assert len(x) >= 10
        want = oracle(family, [float(np.float32(p)) for p in row]).logpdf(x)
        assert excess(family.dist(*row).log_prob(mx.array(x, dtype=mx.float32)), want) < 1, row


@pytest.mark.parametrize("name", NAMES)
def test_outside_the_support_it_is_minus_infinity_with_finite_gradients(name):
    """Catches densities that are finite or nan where the formula has no meaning, and a single where."""
    family = FAMILIES[name]
    params = [mx.array(float(p)) for p in family.grid[0]]
    for x in family.outside:
        assert family.dist(*params).log_prob(x).item() == -INF, x
        given = [mx.array(float(x)), *params]
        gradients = mx.grad(lambda x, *p: family.dist(*p).log_prob(x), argnums=list(range(len(given))))(*given)
        assert all(math.isfinite(g.item()) for g in gradients), (x, gradients)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_log_density(name):
    """In the value and every parameter, under vmap, against central differences of scipy: rel 1e-3."""
    family = FAMILIES[name]
    rows, points = [], []
    for row in family.grid:
        x = quantiles(family, row, np.array([0.03, 0.2, 0.55, 0.9, 0.99]))
        rows += [row] * len(x)
        points += list(x)
    given = [mx.array(np.array(points, dtype=np.float32)), *[c[:, 0] for c in columns(rows)[0]]]
    exact = [np.array(g).astype(float) for g in given]
    everything = list(range(len(given)))
    got = mx.vmap(mx.grad(lambda x, *p: family.dist(*p).log_prob(x), argnums=everything))(*given)
    for i in everything:
        step = 1e-5 * np.where(np.isinf(exact[i]), 0.0, np.maximum(np.abs(exact[i]), 1e-3))
        if name == "truncated_normal":  # and where the interval is shorter than the step
            step = step * 0.1
        ends = []
        for sign in (-1, 1):
            at = [e + (sign * step if j == i else 0.0) for j, e in enumerate(exact)]
            ends.append(np.asarray(oracle(family, at[1:]).logpdf(at[0])))
        with np.errstate(invalid="ignore"):
            want = np.where(step > 0, (ends[1] - ends[0]) / np.where(step > 0, 2 * step, 1.0), 0.0)
        scale = np.max(np.abs(np.where(np.isfinite(want), want, 0.0)))
        ok = np.abs(np.array(got[i]) - want) <= 1e-3 * np.abs(want) + 2e-5 * max(1.0, scale)
        # a step across the edge of the support has no difference quotient
        assert np.all(ok | ~np.isfinite(want)), (i, np.array(rows)[~ok], np.array(got[i])[~ok], want[~ok])
        assert np.mean(np.isfinite(want)) > 0.7


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_distribution(name):
    """Kolmogorov-Smirnov at n = 20000: catches a parameter misread, a wrong acceptance test, saturation."""
    family = FAMILIES[name]
    for i, row in enumerate(family.grid + family.extremes):
        exact = [float(np.float32(p)) for p in row]
        x = np.array(family.dist(*row).sample(mx.random.key(100 + i), (20000,))).astype(float)
        assert np.all(np.isfinite(x))
        assert np.all(np.isfinite(np.array(family.dist(*row).log_prob(mx.array(x, dtype=mx.float32))))), row
        u = oracle(family, exact).cdf(x)
        # where float32 has an atom at its smallest or at an end of the support, only what lies between is compared
        inner = (x > TINY) & (x < 1 - 2.0**-23) if name == "beta" else (x > TINY) | (x < 0)
        inner = inner & (np.abs(x) < 3.4e38)
        if np.all(inner):
            assert stats.kstest(u, "uniform").pvalue > 1e-3, row
        else:
            low, high = np.min(u[inner]), np.max(u[inner])
            assert stats.kstest(u[inner], stats.uniform(low, high - low).cdf).pvalue > 1e-3, row
            spread = math.sqrt(low * (1 - low) / len(x)) + 1e-9
            assert abs(np.mean(x <= TINY) - low) < 5 * spread + 5e-3, row


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_means_the_same(name):
    """Lanes of mx.vmap, each with its own parameters: catches noise that lanes share and axes taken for one another."""
    family = FAMILIES[name]
    n = 200 * len(family.grid)
    given, exact = columns(family.grid * 200)
    given, exact = [c[:, 0] for c in given], [c[:, 0] for c in exact]
    key = mx.random.key(5)

    def lane(i: mx.array, *params: mx.array) -> tuple:
        x = family.dist.sample(params, lane_key(key, i, n), (3,))
        return x, family.dist.log_prob(x, params)

    x, lp = mx.vmap(lane)(mx.arange(n), *given)
    assert x.shape == (n, 3)
    direct = family.dist(*[g[:, None] for g in given]).log_prob(x)
    assert np.allclose(np.array(lp), np.array(direct), rtol=1e-5, atol=1e-5)
    values = np.array(x).astype(float)
    assert len(np.unique(values)) > 0.98 * values.size
    u = np.empty_like(values)
    for k in range(len(family.grid)):
        lanes = slice(k, None, len(family.grid))
        u[lanes] = oracle(family, [e[k] for e in exact]).cdf(values[lanes])
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 5 / math.sqrt(n)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_draws(name):
    """The mean derivative of h(x) is the derivative of its expectation, by quantiles in float64; 0 if not claimed.

    Catches a draw through which no derivative passes, and the derivative of an accepted proposal taken for the draw's.
    """
    family, n = FAMILIES[name], 20000
    for i, row in enumerate(family.grid):
        exact = [float(np.float32(p)) for p in row]
        lower, median, upper = (float(q) for q in oracle(family, exact).ppf(np.array([0.2, 0.5, 0.8])))
        width = upper - lower
        params = [mx.full((n,), float(p)) for p in row]

        def total(*params):
            x = family.dist.sample(params, mx.random.key(200 + i))  # noqa: B023
            return mx.sum(mx.sigmoid((x - median) / width))  # noqa: B023

        got = mx.grad(total, argnums=list(range(len(row))))(*params)
        got = [got] if len(row) == 1 else got  # mx.grad gives no list for one argument
        if not family.dist.reparameterised:
            assert all(np.all(np.array(g) == 0) for g in got)
            continue
        u = (np.arange(20000) + 0.5) / 20000
        for j, p in enumerate(exact):
            each = np.array(got[j]).astype(float)
            if math.isinf(p):
                assert np.all(each == 0)
                continue
            step = 1e-4 * min(max(abs(p), 1e-3), width)
            ends = []
            for sign in (-1, 1):
                x = oracle(family, [q + (sign * step if k == j else 0.0) for k, q in enumerate(exact)]).ppf(u)
                ends.append(np.mean(special.expit((x - median) / width)))
            want = (ends[1] - ends[0]) / (2 * step)
            error = np.std(each) / math.sqrt(n)
            assert abs(np.mean(each) - want) < 4.5 * error + 1e-3 * abs(want), (row, j, np.mean(each), want, error)


@pytest.mark.parametrize("name", NAMES)
def test_bad_numbers_raise_with_name_and_value(name):
    family = FAMILIES[name]
    for row, parameter in family.bad:
        with pytest.raises(ParameterError, match=f"{name}.*{parameter}"):
            family.dist(*row)


@pytest.mark.parametrize("name", NAMES)
def test_bad_arrays_never_have_a_finite_density(name):
    """Arrays are not looked at when a call is made: catches formulas that a negative scale or shape survives."""
    family = FAMILIES[name]
    x = float(quantiles(family, family.grid[0], np.array([0.5]))[0])
    for row, _ in family.bad:
        lp = family.dist(*[mx.array(float(p)) for p in row]).log_prob(x).item()
        assert math.isnan(lp) or lp == -INF, (row, lp)


@pytest.mark.parametrize("name", [n for n in NAMES if type(FAMILIES[n].dist)._mean.__qualname__[0] != "D"])
def test_moments(name):
    family = FAMILIES[name]
    for row in family.grid:
        exact = oracle(family, [float(np.float32(p)) for p in row])
        call = family.dist(*row)
        if name == "student_t" and row[0] <= 1:  # neither exists; scipy says inf
            assert math.isnan(call.mean.item()) and math.isnan(call.variance.item())
            continue
        assert np.allclose(call.mean.item(), exact.mean(), rtol=2e-5, atol=1e-6), row
        want = INF if name in ("inv_gamma", "pareto") and row[0] <= 2 else exact.var()
        assert np.allclose(call.variance.item(), want, rtol=2e-4, atol=0), (row, call.variance, want)


def test_boundaries_are_those_of_scipy():
    """And far out: catches an open end where scipy's is closed, 0 log 0, and the square of a large value."""
    at = [
        (uniform(0, 4), 0, -math.log(4)), (uniform(0, 4), 4, -math.log(4)),
        (exponential(3), 0, math.log(3)),
        (gamma(1, 3), 0, math.log(3)), (gamma(0.5, 3), 0, INF), (gamma(2, 3), 0, -INF),
        (chi2(2), 0, -math.log(2)), (chi2(1), 0, INF), (chi2(3), 0, -INF),
        (weibull(1, 2), 0, -math.log(2)), (weibull(0.5, 2), 0, INF), (weibull(2, 2), 0, -INF),
        (beta(1, 2), 0, math.log(2)), (beta(0.5, 2), 0, INF), (beta(2, 2), 0, -INF), (beta(2, 1), 1, math.log(2)),
        (half_normal(1), 0, 0.5 * math.log(2 / math.pi)), (half_cauchy(1), 0, math.log(2 / math.pi)),
        (pareto(2, 3), 3, math.log(2 / 3)), (log_normal(0, 1), 0, -INF), (inv_gamma(2, 1), 0, -INF),
        (truncated_normal(0, 1, -1, 1), 1, stats.truncnorm(-1, 1).logpdf(1)),
        (truncated_normal(0, 1, -1, 1), -1, stats.truncnorm(-1, 1).logpdf(-1)),
        (beta_uniform_mixture(0.5, 2, 2), 0, math.log(0.5)), (beta_uniform_mixture(0, 0.5, 2), 0, 0.0),
        (beta_uniform_mixture(1, 2, 2), 0, -INF), (beta_uniform_mixture(0.5, 0.5, 2), 0, INF),
        (cauchy(0, 1), 1e30, stats.cauchy.logpdf(1e30)), (half_cauchy(2), 1e30, stats.halfcauchy.logpdf(1e30, scale=2)),
        (student_t(0.5), -1e30, stats.t.logpdf(1e30, 0.5)),
        (pareto(0.01, 2), 1e38, stats.pareto.logpdf(1e38, 0.01, scale=2)),
        (von_mises(0, 1), math.pi, von_mises_log_density(math.pi, 0, 1)),
    ]  # fmt: skip
    for call, x, want in at:
        got = call.log_prob(x).item()
        assert got == want or math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-6), (call, x, got, want)


def test_gamma_draws_that_underflow():
    """Shape 0.01: the smallest positive float has the mass of all that underflows, and the logarithm has no atom."""
    g = np.array(gamma(0.01, 1).sample(mx.random.key(1), (20000,))).astype(float)
    low = stats.gamma(0.01).cdf(TINY)
    assert np.min(g) == TINY
    assert abs(np.mean(g == TINY) - low) < 4.5 * math.sqrt(low * (1 - low) / 20000)
    kept = g[g > TINY]
    assert stats.kstest((stats.gamma(0.01).cdf(kept) - low) / (1 - low), "uniform").pvalue > 1e-3
    w = np.array(log_standard_gamma(mx.random.key(2), (20000,), 0.01)).astype(float)
    assert stats.kstest(w, stats.loggamma(float(np.float32(0.01))).cdf).pvalue > 1e-3


@pytest.mark.parametrize("a", [0.003, 0.5, 1.0, 1.5, 40.0, 1e6])
def test_standard_gamma_and_its_logarithm(a):
    """The same key gives the same draw, so that one is the exponential of the other."""
    g = np.array(standard_gamma(mx.random.key(3), (20000,), a)).astype(float)
    w = np.array(log_standard_gamma(mx.random.key(3), (20000,), a)).astype(float)
    assert np.allclose(g, np.maximum(np.exp(w), TINY), rtol=1e-5)
    if a > 0.1:
        assert stats.kstest(g, stats.gamma(a).cdf).pvalue > 1e-3


def test_the_implicit_derivative_of_gamma_draws():
    """dw/da at fixed quantile against mpmath, and through vmap and grad in either order.

    MLX maps a custom function without a vmap rule as if it had no vjp: the gradient through a vmap was 0.
    """
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):
        for a in (0.01, 0.3, 1.0, 2.5, 30.0, 1500.0, 3000.0):
            a = float(np.float32(a))
            w = stats.loggamma(a).ppf([0.01, 0.2, 0.5, 0.6, 0.99]).astype(np.float32)
            got = np.array(log_gamma_derivative(mx.array(w), mx.full(w.shape, a)))
            for value, exact in zip(got, w.astype(float), strict=True):
                x, step = mpmath.exp(exact), mpmath.mpf(a) * mpmath.mpf("1e-12")
                ends = [
                    mpmath.gammainc(a + h, x, mpmath.inf, regularized=True) if x > a
                    else -mpmath.gammainc(a + h, 0, x, regularized=True)
                    for h in (-step, step)
                ]  # fmt: skip
                density = mpmath.exp(a * exact - x - mpmath.loggamma(a))
                assert math.isclose(value, (ends[1] - ends[0]) / (2 * step) / density, rel_tol=1e-4), (a, exact)
    key, a = mx.random.key(0), mx.array([0.5, 2.5, 30.0])
    one = mx.stack([mx.grad(lambda b: standard_gamma(key, (), b))(b) for b in a])
    inner = mx.vmap(mx.grad(lambda b: standard_gamma(key, (), b)))(a)
    outer = mx.grad(lambda a: mx.sum(mx.vmap(lambda b: standard_gamma(key, (), b))(a)))(a)

    def lanes(b):
        return mx.vmap(lambda i: standard_gamma(lane_key(key, i, 3), (), b))(mx.arange(3))

    shared = mx.grad(lambda b: mx.sum(lanes(b)))(a[1])
    assert np.allclose(one, inner) and np.allclose(one, outer) and np.all(np.array(one) > 0.1)
    assert shared.item() > 1


def test_beta_draws_stay_strictly_inside():
    """Beta(0.01, 0.01): nearly every draw rounds to 0 or 1, where the density is infinite."""
    x = np.array(beta(0.01, 0.01).sample(mx.random.key(4), (20000,)))
    assert np.all(x > 0) and np.all(x < 1)
    exact = stats.beta(0.01, 0.01)
    for level in (1e-30, 1e-9, 0.5):
        p = exact.cdf(level)
        assert abs(np.mean(x < level) - p) < 4.5 * math.sqrt(p * (1 - p) / 20000), level


@pytest.mark.parametrize("distance", [6, 7, 30, 1e3, 1e6])
@pytest.mark.parametrize("side", [-1, 1])
def test_far_tails_of_the_truncated_normal(distance, side):
    """Many sigma away the excess over the bound is nearly exponential: catches log(0), saturation, cancellation.

    mu is far off and the bound at 0, so that float32 holds the excess t. Its survival function is
    e^(-a t - t^2 / 2) M(a + t) / M(a).
    """
    bounds = (0.0, INF) if side > 0 else (-INF, 0.0)
    call = truncated_normal(-side * distance, 1, *bounds)
    t = side * np.array(call.sample(mx.random.key(6), (20000,))).astype(float)

    def mills(y):
        return math.sqrt(math.pi / 2) * special.erfcx(y / math.sqrt(2))

    survival = np.exp(-distance * t - 0.5 * t * t) * mills(distance + t) / mills(distance)
    assert stats.kstest(survival, "uniform").pvalue > 1e-3
    want = -distance * t - 0.5 * t * t - math.log(mills(distance))
    assert excess(call.log_prob(mx.array(side * t, dtype=mx.float32)), want) < 1
    moments = [np.mean(t), np.var(t)]
    assert abs(side * call.mean.item() - moments[0]) < 4.5 * math.sqrt(moments[1] / 20000)
    assert math.isclose(call.variance.item(), moments[1], rel_tol=0.15)


def test_an_infinite_bound_is_known_to_the_support():
    """What picks a bijector for a half-line must see which bounds are infinite; arrays do not say beforehand."""
    half = truncated_normal(0.0, mx.ones((3,)), 0, INF)
    assert half.batch_shape == (3,) and half.support.lo == 0.0 and half.support.hi == INF
    assert isinstance(half.support.hi, float)
    assert half.support.contains(mx.array([-0.1, 0.0, 5.0, INF])).tolist() == [False, True, True, False]
    whole = truncated_normal(0, 1, -INF, INF).support
    assert whole.contains(mx.array([-INF, 0.0, INF])).tolist() == [False, True, False]


def test_derivatives_of_truncated_draws_are_those_of_the_quantile():
    """All four parameters, draw by draw, against quantiles in float64 (peers: the gradient in the bounds was wrong)."""
    for row in [(0, 1, -1, 2), (0.3, 2, 1, 1.5), (0, 1, 6, 7), (0, 1, -5.5, -5), (1, 2, -INF, 0.5), (0, 1, 5, 5.004)]:
        key, exact = mx.random.key(9), [float(np.float32(p)) for p in row]

        def draw(*p, key=key):
            return truncated_normal.sample(p, key)

        x = draw(*[mx.full((200,), float(p)) for p in row])

        def total(*p, draw=draw):
            return mx.sum(draw(*p))

        got = mx.grad(total, argnums=[0, 1, 2, 3])(*[mx.full((200,), float(p)) for p in row])
        frozen = FAMILIES["truncated_normal"].oracle
        u = frozen(*exact).cdf(np.array(x).astype(float))
        keep = (u > 0.01) & (u < 0.99)
        for j, p in enumerate(exact):
            if math.isinf(p):
                assert np.all(np.array(got[j]) == 0)
                continue
            step = 1e-6
            ends = [frozen(*[q + s * step * (k == j) for k, q in enumerate(exact)]).ppf(u) for s in (-1, 1)]
            want = (ends[1] - ends[0]) / (2 * step)
            error = np.abs(np.array(got[j]) - want)[keep]
            assert np.max(error) < 2e-3 * max(1e-2, np.max(np.abs(want[keep]))), (row, j, np.max(error))


@pytest.mark.parametrize("kappa", [0.01, 1.0, 10.0, 1e3, 1e5])
def test_the_mean_cosine_of_von_mises_draws(kappa):
    """1 - I1(kappa) / I0(kappa), to a percent of it: catches an envelope that does not match its acceptance test."""
    lost = 1 - np.cos(np.array(von_mises(0, kappa).sample(mx.random.key(2), (100000,))).astype(float))
    want = 1 - special.i1e(kappa) / special.i0e(kappa)
    assert abs(np.mean(lost) - want) < 4.5 * np.std(lost) / math.sqrt(100000)


@pytest.mark.parametrize("call", [von_mises(1.5, 4), von_mises(0, 0), wrapped_normal(-2, 0.5), wrapped_normal(2, 40),
                                  wrapped_normal(0, 1.5), wrapped_cauchy(3, 0.8)])  # fmt: skip
def test_circular_densities_are_periodic_and_integrate_to_one(call):
    """By the trapezoidal rule, exact to rounding here: catches the line's normaliser in place of the circle's."""
    x = mx.linspace(-math.pi, math.pi, 4001)
    density = np.exp(np.array(call.log_prob(x)).astype(float))
    assert math.isclose(density[0], density[-1], rel_tol=1e-4)
    assert abs(np.mean(density[1:]) * 2 * math.pi - 1) < 1e-5
    mu, second = call.args if hasattr(call, "args") else call.raw_args
    turned = call.gen_fn(mu + 14 * math.pi, second)
    assert np.allclose(np.array(turned.log_prob(x)), np.array(call.log_prob(x)), atol=2e-4)


PIECES = ([-1.0, 0.0, 0.5, 2.0, 4.0], [1.0, 0.0, 3.0, 2.0])


def test_piecewise_uniform_density_and_draws():
    """Half-open bins, as numpy's: catches widths forgotten, probabilities not normalised, an empty bin drawn."""
    bounds, probs = PIECES
    call = piecewise_uniform(bounds, probs)
    exact = stats.rv_histogram((np.array(probs), np.array(bounds)), density=False)
    x = np.array([-1.5, -1, -0.5, 0, 0.25, 0.5, 1, 2, 3.999, 4, 5, -INF, INF])
    with np.errstate(divide="ignore"):
        want = np.log(exact.pdf(x))
    assert np.allclose(np.array(call.log_prob(mx.array(x, dtype=mx.float32))), want, rtol=1e-6)
    draws = call.sample(mx.random.key(3), (20000,))
    assert np.all(np.isfinite(np.array(call.log_prob(draws))))
    assert stats.kstest(np.array(draws).astype(float), exact.cdf).pvalue > 1e-3
    assert math.isclose(call.mean.item(), exact.mean(), rel_tol=1e-5)
    assert math.isclose(call.variance.item(), exact.var(), rel_tol=1e-5)
    assert call.support.contains(mx.array([-1.0, 4.0])).tolist() == [True, False]


def test_piecewise_uniform_gradients_and_batches():
    """d log f / d bounds is -+1 / width in the bin of x; weights batch over leading axes."""
    bounds, probs = (mx.array(p) for p in PIECES)
    in_bounds, in_probs = mx.grad(lambda b, p: piecewise_uniform(b, p).log_prob(1.0), argnums=[0, 1])(bounds, probs)
    assert np.allclose(in_bounds, [0, 0, 1 / 1.5, -1 / 1.5, 0])
    assert np.allclose(in_probs, [-1 / 6, -1 / 6, 1 / 3 - 1 / 6, -1 / 6])
    weights = mx.stack([probs, mx.array([1.0, 1.0, 1.0, 7.0])])
    call = piecewise_uniform(bounds, weights)
    assert call.batch_shape == (2,)
    want = [piecewise_uniform(bounds, w).log_prob(3.0).item() for w in weights]
    assert np.allclose(call.log_prob(3.0), want)
    assert np.allclose(mx.vmap(lambda w: piecewise_uniform(bounds, w).log_prob(3.0))(weights), want)
    x = call.sample(mx.random.key(8), (20000,))
    assert x.shape == (20000, 2)
    assert np.allclose(np.mean(np.array(x) > 2, axis=0), [2 / 6, 0.7], atol=4.5 * 0.5 / math.sqrt(20000))


def test_piecewise_uniform_bad_parameters():
    with pytest.raises(ParameterError, match="piecewise_uniform.*bounds.*3.*probs.*3"):
        piecewise_uniform([0, 1, 2], [1, 1, 1])
    for bounds, probs in [([0.0, 2.0, 1.0], [1.0, 1.0]), ([0.0, 1.0, 2.0], [1.0, -0.5]), ([0.0, 1.0, 2.0], [0.0, 0.0])]:
        lp = piecewise_uniform(mx.array(bounds), mx.array(probs)).log_prob(0.5).item()
        assert math.isnan(lp)
    with pytest.raises(ParameterError, match="piecewise_uniform.*bounds"):
        piecewise_uniform([0, 2, 1], [1, 1])
    with pytest.raises(ParameterError, match="piecewise_uniform.*probs"):
        piecewise_uniform([0, 1, 2], [1, -1])


def test_mixture_weights_of_zero_and_one_have_gradients():
    """At theta = 0 it is f - 1 and at 1 it is 1 - 1 / f, f the beta density: catches inf * 0 in the log of a weight."""
    f = stats.beta(2, 3).pdf(0.2)
    grad = mx.grad(lambda theta: beta_uniform_mixture(theta, 2, 3).log_prob(0.2))
    assert math.isclose(grad(mx.array(0.0)).item(), f - 1, rel_tol=1e-5)
    assert math.isclose(grad(mx.array(1.0)).item(), 1 - 1 / f, rel_tol=1e-5)
