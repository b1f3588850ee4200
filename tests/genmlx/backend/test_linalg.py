"""Positive definite linear algebra against numpy, scipy and closed forms in float64."""

import math
import struct
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx.backend import double, linalg
from genmlx.backend.special import multigammaln

RNG = np.random.default_rng(7)
START = RNG.bit_generator.state
INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def same_draws():
    """Every test sees the same matrices, alone or among others."""
    RNG.bit_generator.state = START


def covariance(n, *batch):
    a = RNG.normal(size=(*batch, n, n))
    return (a @ np.swapaxes(a, -1, -2) + np.eye(n)).astype(np.float32)


def centered(r, s):
    return linalg.mvn_log_density(r, mx.zeros(s.shape[-1]), s)


def direction(n):
    a = RNG.normal(size=(n, n))
    return 0.5 * (a + a.T)


def finite_difference(function, a, d, h=1e-5):
    a = a.astype(np.float64)
    return (function(a + h * d) - function(a - h * d)) / (2 * h)


def along(function, a, d, order):
    """The derivatives of orders 1 .. `order` of a scalar function at `a` along `d`."""
    def f(t):
        return function(mx.array(a) + t * mx.array(d.astype(np.float32)))

    for _ in range(order):
        f = mx.grad(f)
    return f(mx.array(0.0)).item()


@pytest.mark.parametrize("n", [1, 2, 3, 6, 20])
def test_values(n):
    """Catches an upper factor, a missing factor 2 in log det, and a transposed inverse."""
    s = covariance(n, 3)
    exact = s.astype(np.float64)
    np.testing.assert_allclose(np.array(linalg.cholesky(mx.array(s))), np.linalg.cholesky(exact), rtol=0, atol=3e-6)
    np.testing.assert_allclose(np.array(linalg.inverse_pd(mx.array(s))), np.linalg.inv(exact), rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.array(linalg.logdet_pd(mx.array(s))), np.linalg.slogdet(exact)[1], atol=1e-5)
    b = RNG.normal(size=(3, n, n)).astype(np.float32)
    trace = np.trace(np.linalg.solve(exact, b.astype(np.float64)), axis1=-2, axis2=-1)
    np.testing.assert_allclose(np.array(linalg.trace_solve(mx.array(s), mx.array(b))), trace, rtol=1e-5, atol=1e-5)
    lower = np.linalg.cholesky(exact)
    solved = linalg.solve_triangular(mx.array(lower.astype(np.float32)), mx.array(b))
    np.testing.assert_allclose(np.array(solved), np.linalg.solve(lower, b.astype(np.float64)), atol=1e-5)


def conditioned(n, condition=1e4):
    """A random covariance matrix of about this condition number, exactly symmetric in float32."""
    q, _ = np.linalg.qr(RNG.normal(size=(n, n)))
    a = ((q * np.exp(RNG.uniform(0, math.log(condition), size=n))) @ q.T * RNG.lognormal()).astype(np.float32)
    return (a + a.T) / 2


def assert_close(got, want):
    """3e-5, or two units in the last place of the answer."""
    assert abs(got - want) <= max(3e-5, 2 * np.spacing(np.float32(abs(want)))), (got, want)


@pytest.mark.parametrize("n", range(2, 11))
def test_mvn_log_density_to_the_last_digit(n):
    """Catches a wrong constant, and float32 anywhere: in x - mean, the factor or the quadratic form."""
    for _ in range(22):
        mean, s = (3 * RNG.normal(size=n)).astype(np.float32), conditioned(n)
        scale = np.linalg.cholesky(s.astype(np.float64))
        x = (mean + scale @ RNG.normal(size=n) * RNG.choice([1, 3])).astype(np.float32)
        want = stats.multivariate_normal(mean.astype(np.float64), s.astype(np.float64)).logpdf(x.astype(np.float64))
        assert_close(linalg.mvn_log_density(mx.array(x), mx.array(mean), mx.array(s)).item(), want)


@pytest.mark.parametrize("degrees", [30, 1e3, 1e5])
@pytest.mark.parametrize("n", range(2, 11))
def test_wishart_log_densities_to_the_last_digit(n, degrees):
    """At 1e5 degrees of freedom terms of 1e6 cancel: in float32 the second digit after the point is gone."""
    pairs = [(linalg.wishart_log_density, stats.wishart), (linalg.inv_wishart_log_density, stats.invwishart)]
    for ours, family in pairs:
        for _ in range(4):
            df, s = np.float32(RNG.uniform(max(n, degrees / 10), degrees)), conditioned(n, 1e3)
            oracle = family(float(df), s.astype(np.float64))
            x = oracle.rvs(random_state=RNG).astype(np.float32)
            x = (x + x.T) / 2
            want = oracle.logpdf(x.astype(np.float64))
            assert_close(ours(mx.array(x), mx.array(df), mx.array(s)).item(), want)


def test_float64_stays_float64():
    """Catches results rounded on the way for who has float64 to give."""
    s, r = covariance(4).astype(np.float64) + 1e-9, RNG.normal(size=4)
    with mx.stream(mx.cpu):
        a, x = mx.array(s, dtype=mx.float64), mx.array(r, dtype=mx.float64)
        got = linalg.mvn_log_density(x, mx.zeros(4, dtype=mx.float64), a)
    assert got.dtype == mx.float64
    assert got.item() == pytest.approx(stats.multivariate_normal(np.zeros(4), s).logpdf(r), rel=1e-12)
    assert linalg.cholesky(a).dtype == mx.float64


def test_mvn_log_density_broadcasts():
    """Catches a batch of residuals that needs as many covariances, or the reverse."""
    s, r = covariance(3, 2), RNG.normal(size=(5, 1, 3)).astype(np.float32)
    got = np.array(centered(mx.array(r), mx.array(s)))
    assert got.shape == (5, 2)
    one = stats.multivariate_normal(np.zeros(3), s[1].astype(np.float64)).logpdf(r[4, 0].astype(np.float64))
    assert got[4, 1] == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize("n", [2, 5])
def test_first_derivatives(n):
    """Catches a factor 1/2 on the diagonal in the Cholesky rule and the wrong sign of a log density's gradient."""
    s, d = covariance(n), direction(n)
    weights, r = RNG.normal(size=(n, n)), RNG.normal(size=n)
    w, rm = mx.array(weights.astype(np.float32)), mx.array(r.astype(np.float32))
    r = np.array(rm, np.float64)
    b = weights.astype(np.float32).astype(np.float64)

    def mvn(a):
        return -0.5 * (r @ np.linalg.solve(a, r) + np.linalg.slogdet(a)[1])

    cases = [
        (lambda a: (w * linalg.cholesky(a)).sum(), lambda a: (b * np.linalg.cholesky(a)).sum()),
        (lambda a: (w * linalg.inverse_pd(a)).sum(), lambda a: (b * np.linalg.inv(a)).sum()),
        (linalg.logdet_pd, lambda a: np.linalg.slogdet(a)[1]),
        (lambda a: linalg.trace_solve(a, w), lambda a: np.trace(np.linalg.solve(a, b))),
        (lambda a: centered(rm, a), mvn),
        (lambda a: (w * linalg.solve_triangular(a, w)).sum(), lambda a: (b * np.linalg.solve(np.tril(a), b)).sum()),
    ]
    for ours, exact in cases:
        assert along(ours, s, d, 1) == pytest.approx(finite_difference(exact, s, d), rel=2e-4, abs=2e-5)
    slope = mx.grad(lambda x: centered(x, mx.array(s)))(rm)
    np.testing.assert_allclose(np.array(slope), -np.linalg.solve(s.astype(float), r), rtol=1e-5, atol=1e-6)
    slope = mx.grad(lambda x: linalg.trace_solve(mx.array(s), x))(w)
    np.testing.assert_allclose(np.array(slope), np.linalg.inv(s.astype(float)).T, rtol=1e-5, atol=1e-6)
    slope = mx.grad(lambda x: (w * linalg.solve_triangular(mx.array(s), x)).sum())(w)
    np.testing.assert_allclose(np.array(slope), np.linalg.solve(np.tril(s.astype(float)).T, b), rtol=1e-4, atol=1e-5)


def entries(a):
    return a[0, 0], 0.5 * (a[0, 1] + a[1, 0]), a[1, 1]


def closed_cholesky(a):
    x, y, z = entries(a)
    return mx.stack([mx.sqrt(x), y / mx.sqrt(x), mx.sqrt(z - y * y / x)])


def closed_mvn(r, a):
    x, y, z = entries(a)
    det = x * z - y * y
    quadratic = (z * r[0] * r[0] - 2 * y * r[0] * r[1] + x * r[1] * r[1]) / det
    return -0.5 * (quadratic + mx.log(det)) - math.log(2 * math.pi)


def closed_inverse(a):
    x, y, z = entries(a)
    return mx.stack([z, -y, x]) / (x * z - y * y)


def closed_wishart(x, df, a):
    trace = (closed_inverse(a) * mx.array([1.0, 2.0, 1.0]) * mx.stack(entries(x))).sum()
    logdets = [mx.log(m[0, 0] * m[1, 1] - 0.25 * (m[0, 1] + m[1, 0]) ** 2) for m in (x, a)]
    density = 0.5 * ((df - 3) * logdets[0] - df * logdets[1] - trace)
    return density - df * math.log(2) - multigammaln(0.5 * df, 2)


def closed_inv_wishart(x, df, a):
    inverses = [closed_inverse(m) for m in (x, a)]
    x1, a1 = (mx.stack([v[0], v[1], v[1], v[2]]).reshape(2, 2) for v in inverses)
    return closed_wishart(x1, df, a1) - 3 * mx.log(x[0, 0] * x[1, 1] - 0.25 * (x[0, 1] + x[1, 0]) ** 2)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_higher_derivatives(order):
    """Catches one fixed-point step too few: its first missing order of derivative would be zero or halved."""
    a, d = np.array([[2.0, 0.6], [0.6, 1.5]], np.float32), np.array([[0.5, -0.3], [-0.3, 0.8]])
    weights, r = mx.array([0.7, -1.3, 0.4]), mx.array([1.2, -0.7])

    def triangle(m):
        return mx.stack([m[0, 0], m[1, 0], m[1, 1]])

    b, c = mx.array([[1.0], [0.5]]), mx.array([[1.5, -0.4], [-0.4, 2.5]])
    cases = [
        (lambda m: (weights * triangle(linalg.cholesky(m))).sum(), lambda m: (weights * closed_cholesky(m)).sum()),
        (lambda m: (weights * triangle(linalg.inverse_pd(m))).sum(), lambda m: (weights * closed_inverse(m)).sum()),
        (linalg.logdet_pd, lambda m: mx.log(m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0])),
        (lambda m: centered(r, m), lambda m: closed_mvn(r, m)),
        (lambda m: centered(r * m[0, 0], m), lambda m: closed_mvn(r * m[0, 0], m)),
        (lambda m: linalg.wishart_log_density(m, 5 + m[0, 0], c), lambda m: closed_wishart(m, 5 + m[0, 0], c)),
        (lambda m: linalg.wishart_log_density(c, m[1, 0] + 5, m), lambda m: closed_wishart(c, m[1, 0] + 5, m)),
        (lambda m: linalg.inv_wishart_log_density(m, 5 + m[0, 0], c), lambda m: closed_inv_wishart(m, 5 + m[0, 0], c)),
        (lambda m: linalg.inv_wishart_log_density(c, m[1, 0] + 5, m), lambda m: closed_inv_wishart(c, m[1, 0] + 5, m)),
        (lambda m: linalg.solve_triangular(m, b)[1, 0], lambda m: (0.5 - m[1, 0] / m[0, 0]) / m[1, 1]),
    ]
    for ours, closed in cases:
        assert along(ours, a, d, order) == pytest.approx(along(closed, a, d, order), rel=1e-4, abs=1e-5)


NOT_PD = {
    "indefinite": [[1.0, 2, 0], [2, 1, 0], [0, 0, 1]],
    "negative": [[1.0, 0, 0], [0, -1, 0], [0, 0, 1]],
    "singular": [[1.0, 1, 0], [1, 1, 0], [0, 0, 1]],
    "zero": [[0.0, 0, 0], [0, 0, 0], [0, 0, 0]],
    "asymmetric": [[1.0, 0.5, 0], [0.2, 1, 0], [0, 0, 1]],
    "nan below": [[1.0, 0, 0], [NAN, 1, 0], [0, 0, 1]],
    "nan above": [[1.0, 0, NAN], [0, 1, 0], [0, 0, 1]],
    "nan on the diagonal": [[1.0, 0, 0], [0, NAN, 0], [0, 0, 1]],
    "infinite": [[INF, 0, 0], [0, 1, 0], [0, 0, 1]],
}


@pytest.mark.parametrize("name", NOT_PD)
def test_not_positive_definite(name):
    """Catches MLX's silent factors: a finite density where there is none, or one bad matrix spoiling its batch."""
    good = covariance(3)
    batch = mx.stack([mx.array(NOT_PD[name]), mx.array(good)])
    for matrix in (linalg.cholesky(batch), linalg.inverse_pd(batch)):
        assert bool(mx.all(mx.isnan(matrix[0])).item()) and bool(mx.all(mx.isfinite(matrix[1])).item())
    assert np.isnan(np.array(linalg.logdet_pd(batch)[0]))
    r = mx.array([1.0, 2.0, 3.0])
    density = centered(r, batch)
    assert density[0].item() == -INF and np.isfinite(np.array(density[1]))
    slopes = mx.grad(lambda r, s: centered(r, s).sum(), argnums=(0, 1))(r, batch)
    assert all(bool(mx.all(mx.isfinite(g)).item()) for g in slopes)
    assert not np.any(np.array(slopes[1][0])) and np.all(np.array(slopes[1][1]))


def test_singular_triangle():
    """Catches MLX's RuntimeError, raised on evaluation for a whole batch of which one matrix is singular."""
    lower = mx.stack([mx.array([[1.0, 0.0], [2.0, 0.0]]), mx.array([[1.0, 0.0], [2.0, 4.0]])])
    x = np.array(linalg.solve_triangular(lower, mx.array([[1.0], [4.0]])))
    assert np.all(np.isnan(x[0])) and x[1].tolist() == [[1.0], [0.5]]


def test_rounding_of_a_covariance_is_not_asymmetry():
    """Catches a symmetry test by equality: float32 products leave differences in the last digits."""
    s = covariance(4)
    s[0, 3] *= 1 + 3e-6
    assert np.isfinite(np.array(centered(mx.zeros(4), mx.array(s))))


FUNCTIONS = {
    "cholesky": lambda r, s: linalg.cholesky(s),
    "inverse_pd": lambda r, s: linalg.inverse_pd(s),
    "logdet_pd": lambda r, s: linalg.logdet_pd(s),
    "trace_solve": lambda r, s: linalg.trace_solve(s, s * r),
    "solve_triangular": lambda r, s: linalg.solve_triangular(s, r[:, None]),
    "mvn_log_density": centered,
    "wishart_log_density": lambda r, s: linalg.wishart_log_density(s, 4 + r[0] * r[0], 0.1 * s + mx.eye(3)),
    "inv_wishart_log_density": lambda r, s: linalg.inv_wishart_log_density(0.1 * s + mx.eye(3), 4 + r[1] * r[1], s),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transformations_and_export(name, tmp_path):
    """Catches primitives without a vmap rule, custom functions with a vjp, and a gradient that mixes its batch."""
    function = FUNCTIONS[name]
    s, r = mx.array(covariance(3, 4)), mx.array(RNG.normal(size=(4, 3)).astype(np.float32))
    both = mx.value_and_grad(lambda r, s: mx.sin(function(r, s)).sum(), argnums=(0, 1))
    batched = mx.vmap(both)(r, s)
    inner = mx.vmap(both, in_axes=(1, 2))(r.T, mx.moveaxis(s, 0, 2))
    for k in range(4):
        value, slopes = both(r[k], s[k])
        for values, gradients in (batched, inner):
            np.testing.assert_allclose(values[k].item(), value.item(), rtol=1e-5, atol=1e-6)
            for g, e in zip(gradients, slopes, strict=True):
                np.testing.assert_allclose(np.array(g[k]), np.array(e), rtol=1e-4, atol=1e-5)
    path = str(tmp_path / "f.mlxfn")

    def flat(r, s):
        return [function(r, s), *both(r, s)[1]]

    mx.export_function(path, flat, r[0], s[0])
    imported: Any = mx.import_function(path)
    for got, expected in zip(imported(r[0], s[0]), flat(r[0], s[0]), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_stays_on_its_stream(name, order, batched, tmp_path, monkeypatch):
    """Catches what raises on a GPU only: float64 on the default stream."""
    mx.default_stream(mx.cpu)
    monkeypatch.setattr(double, "CPU", mx.new_stream(mx.cpu))
    s, r = mx.array(covariance(3, 2)), mx.array(RNG.normal(size=(2, 3)).astype(np.float32))

    def derivative(r, s):
        return mx.sin(FUNCTIONS[name](r, s)).sum()

    for _ in range(order):
        derivative = (lambda g: lambda r, s: sum(mx.sin(x).sum() for x in g(r, s)))(mx.grad(derivative, argnums=(0, 1)))
    function = mx.vmap(derivative) if batched else derivative
    inputs = (r, s) if batched else (r[0], s[0])
    entries: list[dict] = []
    mx.export_function(entries.append, lambda r, s: [function(r, s)], *inputs)
    path = tmp_path / "f.mlxfn"
    mx.export_function(str(path), lambda r, s: [function(r, s)], *inputs)
    data, place, seen = path.read_bytes(), 0, 0
    for entry in entries:
        if entry["type"] == "primitive":  # in the file, a primitive's name follows the number of its stream
            place = data.index(struct.pack("<Q", len(entry["name"])) + entry["name"].encode(), place + 1)
            if mx.float64 in [dtype for *_, dtype in entry["inputs"] + entry["outputs"]]:
                seen += 1
                assert struct.unpack("<i", data[place - 12 : place - 8])[0] > 0, entry
    assert seen > 10


def test_compiles():
    """Catches a check on values in Python."""
    s, r = mx.array(covariance(3)), mx.array([0.3, -0.2, 1.0])
    compiled = mx.compile(mx.value_and_grad(centered, argnums=(0, 1)))
    value, slopes = compiled(r, s)
    expected, exact = mx.value_and_grad(centered, argnums=(0, 1))(r, s)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(np.array(slopes[1]), np.array(exact[1]), rtol=1e-4, atol=1e-6)


def test_mlx_still_accepts_what_is_not_positive_definite():
    """Fails when MLX reports such input or learns cholesky's gradient: then the check and the steps can go."""
    factor = mx.linalg.cholesky(mx.array([[1.0, 2.0], [2.0, 1.0]]), stream=mx.cpu)
    assert not np.array(factor)[1, 1] > 0
    with pytest.raises(ValueError, match="[Nn]ot implemented|vjp"):
        mx.grad(lambda a: mx.linalg.cholesky(a, stream=mx.cpu).sum())(mx.eye(2))
