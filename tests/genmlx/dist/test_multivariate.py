"""Vector and matrix families against scipy and closed forms: densities, draws, gradients, edges, batches."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import integrate, special, stats

from genmlx import random
from genmlx.dist.dirichlet import dirichlet
from genmlx.dist.dirichlet_multinomial import dirichlet_multinomial
from genmlx.dist.inv_wishart import inv_wishart
from genmlx.dist.lkj_cholesky import lkj_cholesky
from genmlx.dist.multinomial import multinomial
from genmlx.dist.multivariate_normal import multivariate_normal
from genmlx.dist.wishart import wishart
from genmlx.errors import ParameterError, ValueMismatch
from genmlx.vectorized import vsimulate


def spd(seed, k, spread=3):
    """A well conditioned covariance matrix, exactly symmetric in float32."""
    a = np.random.default_rng(seed).normal(size=(k, k + spread))
    a = (a @ a.T / k).astype(np.float32)
    return (a + a.T) / 2


def double(x):
    return np.asarray(x, dtype=np.float32).astype(np.float64)


def allowed(want):
    return np.maximum(3e-5, 5e-7 * np.abs(want))


# Densities


@pytest.mark.parametrize("alpha", [[1.0], [1.0, 1.0], [0.5, 3.0, 20.0], [1e-3] * 4, [1e5, 2e5, 5e4], [1e-3, 1e5]])
def test_dirichlet_log_prob(alpha):
    """Differences of lgammas lose four digits at 1e5; so does the rounding of the sum of x, unless it cancels."""
    x = np.random.default_rng(0).dirichlet(np.clip(alpha, 0.3, None), size=50).astype(np.float32)
    x = np.maximum(x, 1e-30)
    exact = double(x) / double(x).sum(axis=1, keepdims=True)
    want = stats.dirichlet.logpdf(exact.T, double(alpha))
    got = np.asarray(dirichlet(alpha).log_prob(mx.array(x)))
    assert (np.abs(got - want) <= allowed(want)).all()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_multivariate_normal_log_prob(k):
    """A factor transposed, half a log determinant, or k log(2 pi) instead of half of it."""
    mean, cov = np.arange(k, dtype=np.float32), spd(k, k)
    x = np.random.default_rng(1).normal(size=(40, k)).astype(np.float32) * 2
    want = stats.multivariate_normal(mean, double(cov)).logpdf(x)
    got = np.asarray(multivariate_normal(mean, cov).log_prob(mx.array(x)))
    assert (np.abs(got - want) <= allowed(want)).all()


MATRIX = [(wishart, stats.wishart), (inv_wishart, stats.invwishart)]


@pytest.mark.parametrize("family,scipy_family", MATRIX)
@pytest.mark.parametrize("k,df", [(1, 0.3), (1, 1000.0), (2, 1.1), (2, 7.0), (3, 4.5), (5, 30.0), (4, 500.0)])
def test_wishart_log_prob(family, scipy_family, k, df):
    """Degrees of freedom in the wrong order, a Jacobian with the wrong power, scale for its inverse."""
    scale = spd(7, k)
    x = np.stack([spd(100 + i, k, spread=6) for i in range(20)])
    df = float(np.float32(df))
    want = np.array([scipy_family(max(df, k), double(scale)).logpdf(m) for m in double(x)])
    if df < k:  # scipy asks for more; the density does not
        want = wishart_by_hand(scipy_family, x, df, double(scale))
    got = np.asarray(family(df, scale).log_prob(mx.array(x)))
    # a last bit of x moves the density by about sqrt(df) of its bits
    assert (np.abs(got - want) <= 2 * allowed(want) * max(1, math.sqrt(df / 10))).all()


def wishart_by_hand(scipy_family, x, df, scale):
    k = scale.shape[0]
    constant = 0.5 * df * k * math.log(2) + special.multigammaln(0.5 * df, k)
    sign, other = (1, np.linalg.inv(scale)) if scipy_family is stats.wishart else (-1, scale)
    out = []
    for m in double(x):
        trace = np.trace(other @ (m if sign == 1 else np.linalg.inv(m)))
        power = 0.5 * (df - k - 1) if sign == 1 else -0.5 * (df + k + 1)
        logdets = power * np.linalg.slogdet(m)[1] - sign * 0.5 * df * np.linalg.slogdet(scale)[1]
        out.append(logdets - 0.5 * trace - constant)
    return np.array(out)


def ulp(want):
    return np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)


@pytest.mark.parametrize("k", range(2, 11))
def test_gaussian_families_to_the_last_digit(k):
    """Random parameters and points of every size, through the families: float32 loses digits to the condition."""
    rng = np.random.default_rng(k)
    for degrees in (3 * k, 300, 1e4, 1e5):
        q, _ = np.linalg.qr(rng.normal(size=(k, k)))
        cov = ((q * np.exp(rng.uniform(0, math.log(1e4), size=k))) @ q.T).astype(np.float32)
        cov = (cov + cov.T) / 2
        mean, df = rng.normal(size=k).astype(np.float32) * 5, np.float32(rng.uniform(0.5, 1) * degrees)
        cases = [(multivariate_normal, stats.multivariate_normal(double(mean), double(cov)), (mean, cov))]
        cases += [(f, g(float(df), double(cov)), (df, cov)) for f, g in MATRIX]
        for family, oracle, params in cases:
            x = np.asarray(oracle.rvs(random_state=rng), dtype=np.float32)
            x = (x + x.T) / 2 if family is not multivariate_normal else x * 2 - mean
            got, want = family(*params).log_prob(mx.array(x)).item(), oracle.logpdf(double(x))
            assert abs(got - want) <= max(3e-5, 2 * ulp(want))


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("k", [10, 50, 200])
def test_many_elements_to_the_last_digit(k, scale):
    """Terms that are right one by one, added up in float32, are three times too far off at 50."""
    rng = np.random.default_rng(k)
    lg = special.gammaln
    for n in (10, 300, 3000):
        for _ in range(4):
            alpha = (rng.gamma(1.5, size=k) * scale + 0.05).astype(np.float32)
            probs = rng.dirichlet(double(alpha))
            x, w = np.maximum(probs, 1e-30).astype(np.float32), probs.astype(np.float32)
            counts, a = rng.multinomial(n, probs).astype(np.int32), double(alpha)
            exact, shares = double(x) / double(x).sum(), double(w) / double(w).sum()
            ways = lg(n + 1) - lg(counts + 1).sum()
            cases = [
                (dirichlet(alpha), x, (special.xlogy(a - 1, exact) - lg(a)).sum() + lg(a.sum())),
                (multinomial(n, w), counts, ways + special.xlogy(counts, shares).sum()),
                (
                    dirichlet_multinomial(n, alpha),
                    counts,
                    ways + (lg(counts + a) - lg(a)).sum() - lg(n + a.sum()) + lg(a.sum()),
                ),
            ]
            for call, value, want in cases:
                bar = max(3e-5, 2 * ulp(want)) * (2 if k > 50 else 1)
                assert abs(call.log_prob(mx.array(value)).item() - want) <= bar, call


def factor_of(*below):
    """The Cholesky factor of a correlation matrix with these elements below the diagonal, row by row."""
    dim = int((1 + math.sqrt(1 + 8 * len(below))) / 2)
    rows, rest = np.eye(dim), list(below)
    for i in range(1, dim):
        rows[i, :i], rest = rest[:i], rest[i:]
        rows[i, i] = math.sqrt(1 - np.sum(rows[i, :i] ** 2))
    return rows


@pytest.mark.parametrize("eta", [0.5, 1.0, 2.5])
def test_lkj_density_integrates_to_one(eta):
    """Over the elements below the diagonal: the exponents or the constant of the matrix's own density do not."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    nodes, weights = (nodes + 1) / 2, weights / 2
    # sin a for the second row and polar coordinates sin r for the third take the singularities at the ends away
    a, r, t = np.meshgrid((nodes - 0.5) * math.pi, nodes * math.pi / 2, nodes * 2 * math.pi, indexing="ij")
    volume = weights[:, None, None] * weights[:, None] * weights * math.pi * (math.pi / 2) * (2 * math.pi)
    volume = volume * np.cos(a) * np.sin(r) * np.cos(r)
    zero, one = np.zeros_like(a), np.ones_like(a)
    second = [np.sin(a), np.cos(a), zero]
    third = [np.sin(r) * np.cos(t), np.sin(r) * np.sin(t), np.cos(r)]
    x = np.stack([one, zero, zero, *second, *third], axis=-1).reshape(-1, 3, 3).astype(np.float32)
    density = np.exp(np.asarray(lkj_cholesky(3, eta).log_prob(mx.array(x))))
    assert float(np.sum(volume.ravel() * density)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("eta", [0.7, 1e5])
def test_lkj_log_prob_near_the_identity(eta):
    """At large eta the diagonal alone has too few digits."""
    w = np.float32([0.001, -0.002, 0.0015])
    got = lkj_cholesky(3, eta).log_prob(mx.array(factor_of(*double(w)), dtype=mx.float32)).item()
    want, exact = 0.0, float(np.float32(eta))
    for i, square in ((1, double(w)[0] ** 2), (2, np.sum(double(w)[1:] ** 2))):
        b = exact + (2 - i) / 2
        want += (b - 1) * math.log1p(-square) - i / 2 * math.log(math.pi)
        want += special.gammaln(b + i / 2) - special.gammaln(b)
    assert got == pytest.approx(want, abs=3e-5)


def test_lkj_of_two():
    """The one correlation has density (1 - r^2)^(eta - 1), up to a constant which a numeric integral gives."""
    eta = 1.7
    norm = integrate.quad(lambda r: (1 - r * r) ** (eta - 1), -1, 1)[0]
    for r in (0.0, 0.5, -0.9):
        got = lkj_cholesky(2, eta).log_prob(mx.array(factor_of(r), dtype=mx.float32)).item()
        assert got == pytest.approx((eta - 1) * math.log(1 - r * r) - math.log(norm), abs=3e-5)


# Draws


@pytest.mark.parametrize("alpha", [[1.0], [0.3, 0.7], [2.0, 5.0, 1.0], [1e-3] * 3, [1e5, 3e5]])
def test_dirichlet_draws(alpha):
    """Each element is beta. Gammas that underflow before they are normalised give NaN or always the first corner."""
    call = dirichlet(alpha)
    x = call.sample(mx.random.key(3), 20000)
    values = double(x)
    assert np.abs(values.sum(axis=1) - 1).max() < 3e-7 * len(alpha) and (values > 0).all()
    assert np.isfinite(np.asarray(call.log_prob(x))).all()
    for k, a in enumerate(double(alpha)):
        rest = double(alpha).sum() - a
        if rest > 0 and a > 0.01:
            assert stats.kstest(values[:, k], stats.beta(a, rest).cdf).pvalue > 1e-3
        elif rest > 0:  # in float32 a draw is a corner: each as often as its share says
            share = a / (a + rest)
            assert abs((values[:, k] > 0.5).mean() - share) < 4 * math.sqrt(share * (1 - share) / 20000)
    if len(alpha) > 1:
        np.testing.assert_allclose(np.asarray(call.mean), stats.dirichlet.mean(double(alpha)), rtol=1e-6)
        np.testing.assert_allclose(np.asarray(call.variance), stats.dirichlet.var(double(alpha)), rtol=1e-5)


def test_multivariate_normal_draws():
    """The covariance of the draws; the factor's transpose gives another one."""
    mean, cov = np.float32([1.0, -2.0, 30.0]), spd(3, 3)
    x = double(multivariate_normal(mean, cov).sample(mx.random.key(1), 20000))
    white = np.linalg.solve(np.linalg.cholesky(double(cov)), (x - mean).T)
    for k in range(3):
        assert stats.kstest(white[k], "norm").pvalue > 1e-3
    assert (np.abs(np.corrcoef(white)[~np.eye(3, dtype=bool)]) < 4 / math.sqrt(20000)).all()
    call = multivariate_normal(mean, cov)
    np.testing.assert_allclose(np.asarray(call.mean), mean)
    np.testing.assert_allclose(np.asarray(call.variance), np.diag(cov))


@pytest.mark.parametrize("family,scipy_family", MATRIX)
@pytest.mark.parametrize("k,df", [(1, 0.5), (2, 1.2), (3, 3.0), (3, 9.5), (6, 400.0)])
def test_wishart_draws(family, scipy_family, k, df):
    """u^T X u / u^T V u is chi-squared for every u, and in the inverse u^T X^-1 u: marginals of every direction."""
    scale = spd(5, k)
    x = family(df, scale).sample(mx.random.key(2), 20000)
    assert mx.array_equal(x, mx.swapaxes(x, -1, -2)).item()
    assert np.isfinite(np.asarray(family(df, scale).log_prob(x))).all()
    values, exact = double(x), double(scale)
    rng = np.random.default_rng(0)
    for u in [np.eye(k)[0], np.eye(k)[-1], rng.normal(size=k)]:
        if family is wishart:
            ratio = np.einsum("i,nij,j->n", u, values, u) / (u @ exact @ u)
            assert stats.kstest(ratio, stats.chi2(df).cdf).pvalue > 1e-3
        else:
            ratio = (u @ exact @ u) / np.einsum("i,nij,j->n", u, values, u)
            assert stats.kstest(ratio, stats.chi2(df - k + 1).cdf).pvalue > 1e-3
    # the determinant is a product of independent chi-squared variables
    logdet = np.linalg.slogdet(values)[1] - np.linalg.slogdet(exact)[1]
    if df >= k + 2:
        degrees = df - np.arange(k)
        sign = 1 if family is wishart else -1
        mean = sign * np.sum(special.digamma(degrees / 2) + math.log(2))
        sd = math.sqrt(np.sum(special.polygamma(1, degrees / 2)))
        assert abs(logdet.mean() - mean) < 4 * sd / math.sqrt(20000)
        assert abs(logdet.std() / sd - 1) < 0.03


@pytest.mark.parametrize("family,scipy_family", MATRIX)
def test_wishart_moments(family, scipy_family):
    scale, df = spd(4, 3), 11.0
    call, oracle = family(df, scale), scipy_family(df, double(scale))
    np.testing.assert_allclose(np.asarray(call.mean), oracle.mean(), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(call.variance), oracle.var(), rtol=1e-5)
    x = double(call.sample(mx.random.key(0), 20000))
    assert (np.abs(x.mean(axis=0) - oracle.mean()) < 4 * np.sqrt(oracle.var() / 20000)).all()


@pytest.mark.parametrize("family", [wishart, inv_wishart])
@pytest.mark.parametrize("k", [2, 5, 20])
def test_nearly_singular_draws_are_positive_definite_in_float32(family, k):
    """Degrees of freedom just above k - 1: the smallest pivot is far below the rounding of the rest."""
    scale = np.diag(np.logspace(-3, 3, k)).astype(np.float32)
    for df in (k - 0.99, k - 0.5, float(k)):
        x = family(df, scale).sample(mx.random.key(9), 500)
        assert mx.all(family.support_of().contains(x)).item()
        assert np.isfinite(np.asarray(family(df, scale).log_prob(x))).all()


@pytest.mark.parametrize("dim,eta", [(1, 2.0), (2, 1.0), (3, 0.5), (5, 3.0), (4, 1e4)])
def test_lkj_draws(dim, eta):
    """Each correlation is 2 beta - 1 with both parameters eta + dim / 2 - 1; rows have length one."""
    x = lkj_cholesky(dim, eta).sample(mx.random.key(4), 20000)
    assert mx.all(lkj_cholesky(dim, eta).support.contains(x)).item()
    assert np.isfinite(np.asarray(lkj_cholesky(dim, eta).log_prob(x))).all()
    values = double(x)
    correlation = values @ values.swapaxes(1, 2)
    a = eta + dim / 2 - 1
    for i in range(dim):
        for j in range(i):
            assert stats.kstest((1 + correlation[:, i, j]) / 2, stats.beta(a, a).cdf).pvalue > 1e-3
    if dim == 3:  # and jointly: the determinant of the correlation matrix, from a density proportional to det^(eta-1)
        grid = np.random.default_rng(0).uniform(-1, 1, size=(200_000, 3))
        det = 1 + 2 * grid.prod(axis=1) - (grid**2).sum(axis=1)
        det = det[det > 0]
        want = np.sum(det**eta) / np.sum(det ** (eta - 1))
        assert np.linalg.det(correlation).mean() == pytest.approx(want, rel=0.03)


# Gradients


def difference(f, x, direction, h):
    return (f(x + h * direction) - f(x - h * direction)) / (2 * h)


def directions(shape, matrix):
    for index in np.ndindex(shape):
        d = np.zeros(shape)
        d[index] = 1.0
        if matrix:  # a matrix moves within the symmetric ones
            d = (d + d.T) / 2
        yield d


def logpdf(family, x, *params):
    if family is dirichlet:
        (alpha,) = params
        terms = special.xlogy(alpha - 1, x) - special.gammaln(alpha)
        return float(terms.sum() + special.gammaln(alpha.sum()))
    if family is lkj_cholesky:
        dim, (eta,) = len(x), params
        total = 0.0
        for i in range(1, dim):
            b = eta + (dim - 1 - i) / 2
            total += 2 * (b - 1) * np.log(x[i, i]) - i / 2 * math.log(math.pi)
            total += special.gammaln(b + i / 2) - special.gammaln(b)
        return float(total)
    if family is multivariate_normal:
        return float(stats.multivariate_normal(params[0], params[1]).logpdf(x))
    scipy_family = stats.wishart if family is wishart else stats.invwishart
    return float(scipy_family(float(params[0]), params[1]).logpdf(x))


GRADIENTS = [
    (dirichlet, [0.2, 0.3, 0.5], ([0.5, 3.0, 20.0],)),
    (dirichlet, [0.25, 0.75], ([1e4, 3e4],)),
    (multivariate_normal, [0.3, -1.0, 2.0], ([0.0, 1.0, 1.0], spd(1, 3))),
    (wishart, spd(2, 3), (5.5, spd(3, 3))),
    (inv_wishart, spd(2, 3), (5.5, spd(3, 3))),
    (wishart, spd(2, 1), (3.5, spd(3, 1))),
    (lkj_cholesky, factor_of(0.3, -0.5, 0.2), (2.5,)),
]


@pytest.mark.parametrize("family,x,params", GRADIENTS)
def test_gradients_of_the_density(family, x, params):
    """In the value and every parameter, under vmap: a factor that is a constant gives zero."""

    def f(everything):
        own = (len(x), everything[1]) if family is lkj_cholesky else everything[1:]
        return family(*own).log_prob(everything[0])

    arrays = [mx.array(a, dtype=mx.float32) for a in (np.asarray(x, dtype=np.float32), *params)]
    grads = mx.vmap(lambda *lane: mx.grad(f)(list(lane)))(*[mx.stack([a, a]) for a in arrays])
    exact = [double(a) for a in arrays]
    for place, grad in enumerate(grads):
        shape = exact[place].shape
        symmetric = len(shape) == 2 and family is not lkj_cholesky
        for d in directions(shape, symmetric):
            if family is lkj_cholesky and place == 0 and exact[0][d > 0][0] in (0.0, 1.0):
                continue

            def moved(value, place=place):
                return logpdf(family, *[value if i == place else e for i, e in enumerate(exact)])

            want = difference(moved, exact[place], d, 1e-5 * max(1.0, np.abs(exact[place]).max()) * 0.1)
            for lane in np.asarray(grad):
                assert float(np.sum(lane * d)) == pytest.approx(want, rel=1e-3, abs=1e-3)


def pathwise(family, params, place, d, statistic, n=40_000):
    """The derivative of a mean over draws, as parameter ``place`` moves along ``d``, through the draws themselves."""

    def f(t):
        moved = [p + t * mx.array(d) if i == place else p for i, p in enumerate(params)]
        return mx.mean(statistic(family(*moved).sample(mx.random.key(5), n)))

    return mx.grad(f)(mx.array(0.0)).item()


def test_draws_are_differentiable_in_the_parameters():
    """Against the derivatives of closed-form means: a stopped gradient gives zero, a naive rejection one is biased."""
    alpha = mx.array([0.6, 2.0, 4.0])
    got = pathwise(dirichlet, [alpha], 0, np.float32([1, 0, 0]), lambda x: x[:, 0])
    assert got == pytest.approx(6.0 / 6.6**2, rel=0.03)
    got = pathwise(dirichlet, [alpha], 0, np.float32([0, 1, 0]), lambda x: x[:, 0])
    assert got == pytest.approx(-0.6 / 6.6**2, rel=0.05)

    cov = mx.array(spd(1, 2))
    both = np.float32([[0, 1], [1, 0]])
    got = pathwise(multivariate_normal, [mx.zeros(2), cov], 1, both, lambda x: x[:, 0] * x[:, 1])
    assert got == pytest.approx(1.0, rel=0.05)
    got = pathwise(multivariate_normal, [mx.zeros(2), cov], 0, np.float32([1, 0]), lambda x: x[:, 0])
    assert got == pytest.approx(1.0, rel=2e-3)

    scale = mx.array(spd(2, 2))
    got = pathwise(wishart, [mx.array(6.0), scale], 0, np.float32(1), lambda x: x[:, 0, 0])
    assert got == pytest.approx(scale[0, 0].item(), rel=0.03)
    got = pathwise(wishart, [mx.array(6.0), scale], 1, both, lambda x: x[:, 0, 1])
    assert got == pytest.approx(6.0, rel=0.03)
    got = pathwise(inv_wishart, [mx.array(12.0), scale], 0, np.float32(1), lambda x: x[:, 0, 0])
    assert got == pytest.approx(-scale[0, 0].item() / 81, rel=0.05)
    got = pathwise(inv_wishart, [mx.array(12.0), scale], 1, np.float32([[1, 0], [0, 0]]), lambda x: x[:, 0, 0])
    assert got == pytest.approx(1 / 9, rel=0.03)

    def spread(eta):
        x = lkj_cholesky(3, eta).sample(mx.random.key(5), 40_000)
        return mx.mean(x[:, 2, 0] ** 2)

    # a correlation's variance is 1 / (2 eta + dim - 1)
    assert mx.grad(spread)(mx.array(1.5)).item() == pytest.approx(-2 / (2 * 1.5 + 2) ** 2, rel=0.05)


# Edges


@pytest.mark.parametrize(
    "call,values",
    [
        (
            dirichlet([2.0, 3.0]),
            [[0.5, 0.6], [-0.1, 1.1], [math.inf, 0.0], [-math.inf, math.inf], [math.nan, 1.0], [0.0, 1.0]],
        ),
        (multivariate_normal([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]]), [[math.inf, 0.0], [0.0, -math.inf]]),
        (
            wishart(4.0, [[1.0, 0.0], [0.0, 1.0]]),
            [[[1.0, 2.0], [2.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]], [[math.inf, 0.0], [0.0, 1.0]], [[0.0] * 2] * 2],
        ),
        (inv_wishart(4.0, [[1.0, 0.0], [0.0, 1.0]]), [[[1.0, 2.0], [2.0, 1.0]], [[0.0] * 2] * 2]),
        (
            lkj_cholesky(2, 2.0),
            [[[1.0, 0.0], [0.6, 0.7]], [[1.0, 0.0], [0.6, -0.8]], [[1.0, 0.1], [0.6, 0.8]], [[1, 0], [math.inf, 1]]],
        ),
    ],
    ids=repr,
)
def test_outside_the_support_it_is_impossible_and_gradients_are_finite(call, values):
    for value in values:
        x = mx.array(value)
        assert call.log_prob(x).item() == -math.inf
        grad = mx.grad(lambda x: call.log_prob(x))(x)
        if value != [0.0, 1.0]:
            assert np.isfinite(np.asarray(grad)).all()


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: dirichlet([1.0, 0.0]), "dirichlet: alpha must be"),
        (lambda: dirichlet(2.0), "dirichlet: alpha must be"),
        (lambda: multivariate_normal([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "multivariate_normal: cov must be"),
        (lambda: multivariate_normal([0.0, 0.0], [[1.0, 0.5], [0.1, 1.0]]), "multivariate_normal: cov must be"),
        (lambda: multivariate_normal(mx.zeros(2), mx.eye(3)).sample(), "multivariate_normal: cov must be"),
        (lambda: multivariate_normal([0.0, math.nan], [[1.0, 0.0], [0.0, 1.0]]), "multivariate_normal: mean must be"),
        (lambda: wishart(1.0, [[1.0, 0.0], [0.0, 1.0]]), "wishart: df must be above 1"),
        (lambda: wishart(3.0, mx.zeros((2, 3))), "wishart: scale must be a square"),
        (lambda: inv_wishart(0.5, [[1.0, 0.0], [0.0, 1.0]]), "inv_wishart: df must be above 1"),
        (lambda: inv_wishart(3.0, [[1.0, 2.0], [2.0, 1.0]]), "inv_wishart: scale must be"),
        (lambda: dirichlet(mx.array(1.0)).sample(), "dirichlet: alpha must be"),
        (lambda: lkj_cholesky(0, 1.0), "lkj_cholesky: dim must be"),
        (lambda: lkj_cholesky(2.5, 1.0), "lkj_cholesky: dim must be"),
        (lambda: lkj_cholesky(3, 0.0), "lkj_cholesky: eta must be"),
    ],
)
def test_bad_parameters_raise(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


@pytest.mark.parametrize(
    "family,params,x",
    [
        (dirichlet, ([1.0, -1.0],), [0.5, 0.5]),
        (dirichlet, ([1.0, 0.0],), [0.5, 0.5]),
        (multivariate_normal, ([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), [0.1, 0.2]),
        (multivariate_normal, ([0.0, 0.0], [[-1.0, 0.0], [0.0, 1.0]]), [0.1, 0.2]),
        (multivariate_normal, ([0.0, 0.0], [[1.0, 0.9], [0.1, 1.0]]), [0.1, 0.2]),
        (wishart, (0.9, [[1.0, 0.0], [0.0, 1.0]]), [[1.0, 0.0], [0.0, 1.0]]),
        (wishart, (3.0, [[1.0, 2.0], [2.0, 1.0]]), [[1.0, 0.0], [0.0, 1.0]]),
        (inv_wishart, (0.9, [[1.0, 0.0], [0.0, 1.0]]), [[1.0, 0.0], [0.0, 1.0]]),
        (inv_wishart, (3.0, [[1.0, 2.0], [2.0, 1.0]]), [[1.0, 0.0], [0.0, 1.0]]),
        (lambda eta: lkj_cholesky(2, eta), (-1.0,), [[1.0, 0.0], [0.6, 0.8]]),
    ],
)
def test_bad_arrays_have_no_density(family, params, x):
    """A finite score for a matrix that is no covariance would be accepted by every sampler."""
    arrays = [mx.array(p) for p in params]
    assert not math.isfinite(family(*arrays).log_prob(mx.array(x)).item())
    traced = mx.vmap(lambda *own: family(*own).log_prob(mx.array(x)))(*[a[None] for a in arrays])
    assert not math.isfinite(traced.item())


@pytest.mark.parametrize("value", [[1.0], [0.5, 0.5], [[0.5, 0.5]]])
def test_a_value_of_another_size_is_an_error(value):
    """Broadcast against alpha, a single 1 looks like a point of the simplex."""
    with pytest.raises(ValueMismatch, match="is not a value of this dirichlet"):
        dirichlet([1.0, 2.0, 3.0]).log_prob(mx.array(value))


def test_dirichlet_at_the_boundary():
    """As scipy: x = 0 is impossible for alpha above 1, has a finite density at alpha 1."""
    assert dirichlet([2.0, 3.0]).log_prob(mx.array([0.0, 1.0])).item() == -math.inf
    want = stats.dirichlet.logpdf([0.0, 1.0], [1.0, 3.0])
    assert dirichlet([1.0, 3.0]).log_prob(mx.array([0.0, 1.0])).item() == pytest.approx(want, abs=1e-5)


# Batches

BATCHES = [
    (dirichlet, ([[0.5, 2.0, 3.0], [5.0, 1.0, 1.0]],)),
    (multivariate_normal, ([[0.0, 5.0], [1.0, -1.0]], [spd(0, 2), spd(1, 2)])),
    (multivariate_normal, ([0.0, 5.0], [spd(0, 2), spd(1, 2)])),
    (wishart, ([3.0, 8.0], [spd(0, 2), spd(1, 2)])),
    (wishart, ([3.0, 8.0], spd(0, 2))),
    (inv_wishart, ([3.0, 8.0], [spd(0, 2), spd(1, 2)])),
    (lambda eta: lkj_cholesky(3, eta), ([0.8, 4.0],)),
]


@pytest.mark.parametrize("family,params", BATCHES)
def test_batches_mean_what_single_calls_mean(family, params):
    """[N, ...] parameters: a sum over the batch axis, a row used for another, noise that lanes share."""
    arrays = [mx.array(np.asarray(p, dtype=np.float32)) for p in params]
    call = family(*arrays)
    event = len(call.event_shape)
    batched = [a.ndim == max(spec.event_ndim, 0) + 1 for a, spec in zip(arrays, specs(call), strict=True)]
    axes = [0 if b else None for b in batched]
    n = 3000
    key = random.as_key(3)

    def lane(index, *own):
        return family(*own).sample(random.lane_key(key, index, 2), n)

    inside = mx.vmap(lane, in_axes=(0, *axes))(mx.arange(2), *arrays)
    outside = call.sample(mx.random.key(1), n)
    traces = vsimulate(call, n, mx.random.key(2))
    assert outside.shape == (n, 2, *call.event_shape) == traces.retval.shape
    assert call.log_prob(outside).shape == (n, 2)
    np.testing.assert_allclose(
        np.asarray(traces.score), np.asarray(mx.sum(call.log_prob(traces.retval), axis=-1)), rtol=1e-5, atol=1e-4
    )
    for i in range(2):
        single = family(*[a[i] if b else a for a, b in zip(arrays, batched, strict=True)])
        alone = single.sample(mx.random.key(4), n)
        assert alone.shape == (n, *call.event_shape)
        lp = np.asarray(single.log_prob(alone))
        got = mx.vmap(lambda *own, x=alone: family(*own).log_prob(x), in_axes=tuple(axes))(*arrays)[i]
        np.testing.assert_allclose(np.asarray(got), lp, rtol=1e-5, atol=2e-4)
        for x in (inside[i], outside[:, i], traces.retval[:, i]):
            for index in np.ndindex(*[2] * event):
                mine, other = np.asarray(x)[(..., *index)], np.asarray(alone)[(..., *index)]
                if other.std() > 0:
                    assert stats.ks_2samp(mine, other, method="asymp").pvalue > 1e-3
    # lanes do not share their noise
    first, second = np.asarray(inside[0])[(..., *[-1] * event)], np.asarray(inside[1])[(..., *[-1] * event)]
    assert abs(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1]) < 4 / math.sqrt(n)


def specs(call):
    return [spec for spec in call.gen_fn.parameters.values() if spec is not None]
