"""Log-densities in saddle-point form, which float32 needs: differences of lgammas lose every digit near 1e6.

Loader (2000), 'Fast and accurate computation of binomial probabilities': a log pmf is minus a deviance, minus
Stirling errors, minus half a logarithm, and each of them is computed without cancellation. The deviance is
taken from the exact residual x - m, found with error-free products where m is a product. Plain compositions,
see `special`.
"""

import math

import mlx.core as mx

from genmlx.backend.special import (
    HALF_LOG_2PI,
    Real,
    binet,
    lgamma1p_small,
    log_choose_parts,
    log_harmonic,
    magnitude,
    polynomial,
    real,
)

_ATANH = (  # (atanh(v) / v - 1) / v^2 in v^2, |v| <= 0.3
    0.097996048126, 0.088666811435, 0.11121827128, 0.14285485287, 0.20000001779, 0.33333333331,
)  # fmt: skip


def _finite(x: mx.array) -> mx.array:
    """A constant: `x` where it is finite, else 0."""
    return mx.stop_gradient(mx.where(mx.isfinite(x), x, 0.0))


def _deviance(x: mx.array, m: mx.array, d: mx.array, log_m: mx.array) -> mx.array:
    """x log(x / m) - d for x, m > 0, given d = x - m as exactly as it is known."""
    total = x + m
    near = magnitude(d) < 0.3 * total
    d1 = mx.where(near, d, 0.0)
    v = d1 / total
    series = v * (d1 + 2 * x * v * v * polynomial(v * v, _ATANH))
    # the derivative of x / m squares m; that of a difference of logarithms does not
    logs = mx.log(x) - log_m
    return mx.where(near, series, x * (logs + _finite(mx.log(x / m) - logs)) - d)


def deviance(x: Real, m: Real) -> mx.array:
    """x log(x / m) + m - x for x, m >= 0, relative 1e-6 also where x is close to m (Loader's bd0).

    m at x = 0, inf at m = 0 < x.
    """
    x, m = real(x), real(m)
    inside = mx.logical_and(x > 0, m > 0)
    x1, m1 = mx.where(inside, x, 1.0), mx.where(inside, m, 1.0)
    value = _deviance(x1, m1, x1 - m1, mx.log(m1))
    return mx.where(inside, value, mx.where(x == 0, m, mx.where(m == 0, math.inf, x + m + math.nan)))


def _split(a: mx.array) -> mx.array:
    """The upper 12 bits of `a` (Veltkamp, 1968)."""
    c = a * 4097.0
    return c - (c - a)


def _residual(z: mx.array, n: mx.array, t: mx.array, n_low: mx.array | float = 0.0) -> mx.array:
    """z - (n + n_low) t with the product free of rounding error; its derivatives are those of z - n t."""
    n1, t1 = _split(n), _split(t)
    exact = ((z - n1 * t1) - n1 * (t - t1)) - (n - n1) * t - n_low * t
    plain = z - n * t
    return plain + _finite(exact - plain)


def log_poisson_raw(x: Real, m: Real) -> mx.array:
    """Poisson log pmf x log m - m - lgamma(x + 1) for real x >= 0 and rate m >= 0; -inf for x < 0.

    Absolute 3e-5 while it is above -100, relative 5e-7 below, for rates up to 1e6.
    """
    x, m = real(x), real(m)
    positive = m > 0
    m1 = mx.where(positive, m, 1.0)
    log_m = mx.log(m1)
    low = x < 0.5
    xs = mx.where(mx.logical_and(low, x >= 0), x, 0.0)
    small = xs * log_m - m1 - lgamma1p_small(xs)
    xl = mx.where(low, 1.0, x)
    large = -_deviance(xl, m1, xl - m1, log_m) - binet(xl) - (0.5 * mx.log(xl) + HALF_LOG_2PI)
    value = mx.where(positive, mx.where(low, small, large), mx.where(x == 0, -m, -math.inf))
    return mx.where(m < 0, math.nan, mx.where(x < 0, -math.inf, value))


def _log_binomial(a: mx.array, b: mx.array, t: mx.array) -> mx.array:
    """log of (a + b choose a) t^a (1 - t)^b for a, b >= 0, not both 0, and 0 < t <= 1/2."""
    log_t, log_u = mx.log(t), mx.log1p(-t)
    low, rest, entropy = log_choose_parts(a, b)
    a1, b1 = mx.where(low, 1.0, a), mx.where(low, 1.0, b)
    n = a1 + b1
    part = n - a1
    n_low = _finite((a1 - (n - part)) + (b1 - part))
    d = _residual(a1, n, t, n_low)
    log_n = mx.log(n)
    spread = _deviance(a1, n * t, d, log_n + log_t) + _deviance(b1, n - n * t, -d, log_n + log_u)
    return rest + mx.where(low, entropy + a * log_t + b * log_u, -spread)


def _rarer(a: mx.array, b: mx.array, p: mx.array, q: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The counts with the less probable outcome first, and its probability, which is the exact one."""
    swap = p > q
    return mx.where(swap, b, a), mx.where(swap, a, b), mx.where(swap, q, p)


def log_binomial_raw(x: Real, n: Real, p: Real, q: Real) -> mx.array:
    """Binomial log pmf of x successes in n trials, real 0 <= x <= n, with q = 1 - p given; -inf outside.

    Absolute 3e-5 while it is above -100, relative 1e-6 below, for n up to 1e6. Only the smaller of p and q is
    used, the other being its complement, and the gradient flows through it: a caller with q = 1 - p, or with
    sigmoids of l and -l, has the whole derivative.
    """
    x, n, p, q = real(x), real(n), real(p), real(q)
    inside = mx.logical_and(x >= 0, x <= n)
    x1 = mx.where(inside, x, 0.0)
    a, b, t = _rarer(x1, mx.where(inside, n, 1.0) - x1, p, q)
    certain = t == 0
    value = _log_binomial(a, b, mx.where(certain, 0.5, t))
    value = mx.where(certain, mx.where(a == 0, -b * t, -math.inf), value)
    value = mx.where(mx.logical_or(t < 0, mx.isnan(t)), math.nan, value)
    return mx.where(inside, value, -math.inf)


def log_gamma_density(x: Real, a: Real, rate: Real) -> mx.array:
    """log density at x of a gamma with shape a > 0 and rate > 0; -inf for x < 0.

    Absolute 3e-5 while it is above -100, relative 5e-7 below, for shapes 1e-3 .. 1e6.
    """
    x, a, rate = real(x), real(a), real(rate)
    valid = mx.logical_and(a > 0, rate > 0)
    inside = mx.logical_and(valid, mx.logical_and(x > 0, x < math.inf))
    x1, a1, r1 = mx.where(inside, x, 1.0), mx.where(valid, a, 1.0), mx.where(valid, rate, 1.0)
    log_x, log_r = mx.log(x1), mx.log(r1)
    m = x1 * r1
    low = a1 < 0.5
    a2, a3 = mx.where(low, a1, 0.25), mx.where(low, 1.0, a1)
    small = a2 * (log_x + log_r) - m - lgamma1p_small(a2) + mx.log(a2) - log_x
    spread = _deviance(a3, m, _residual(a3, r1, x1), log_r + log_x)
    large = 0.5 * mx.log(a3) - HALF_LOG_2PI - binet(a3) - spread - log_x
    edge = mx.where(a1 == 1, log_r, mx.where(a1 < 1, math.inf, -math.inf))
    value = mx.where(inside, mx.where(low, small, large), mx.where(x == 0, edge, -math.inf))
    return mx.where(mx.logical_and(valid, mx.logical_not(mx.isnan(x))), value, math.nan)


def log_beta_density(x: Real, a: Real, b: Real) -> mx.array:
    """log density at x of a beta with a, b > 0; -inf outside [0, 1], the right limit at its ends.

    Absolute 3e-5 while it is above -100, relative 5e-7 below, for parameters 1e-3 .. 1e6.
    """
    x, a, b = real(x), real(a), real(b)
    valid = mx.logical_and(a > 0, b > 0)
    inside = mx.logical_and(valid, mx.logical_and(x > 0, x < 1))
    x1, a1, b1 = mx.where(inside, x, 0.5), mx.where(valid, a, 1.0), mx.where(valid, b, 1.0)
    value = _log_binomial(*_rarer(a1, b1, x1, 1 - x1))
    value = value + log_harmonic(a1, b1) - mx.log(x1) - mx.log1p(-x1)
    near, far = mx.where(x == 0, a1, b1), mx.where(x == 0, b1, a1)
    edge = mx.where(near == 1, mx.log(far), mx.where(near < 1, math.inf, -math.inf))
    value = mx.where(inside, value, mx.where(mx.logical_or(x == 0, x == 1), edge, -math.inf))
    return mx.where(mx.logical_and(valid, mx.logical_not(mx.isnan(x))), value, math.nan)


def _log1p_ratio(w: mx.array) -> mx.array:
    """log(1 + w) / w for 0 <= w < 0.85, 1 at 0, with derivatives as accurate as the value."""
    v = w / (2 + w)
    return 2 / (2 + w) * (1 + v * v * polynomial(v * v, _ATANH))


def log_student_t(z: Real, df: Real) -> mx.array:
    """log density at z of the standard Student t with df > 0 degrees of freedom.

    Absolute 2e-5 while it is above -100, relative 5e-7 below, for df from 1e-3 to 1e6 and any z. The differences
    that vanish as df grows are written as 1 - log(1 + w) / w, so gradients in df stay accurate.
    """
    z, df = real(z), real(df)
    valid = df > 0
    nu = mx.where(valid, df, 1.0)
    half = 0.5 * nu
    short = half < 0.5
    base = mx.where(short, half + 1, half)
    norm = HALF_LOG_2PI + binet(base) - binet(base + 0.5) + 0.5 * _one_minus_log1p_ratio(0.5 / base)
    step = mx.log(half + 0.5) - 0.5 * (mx.log(base) + mx.log(half))
    norm = norm + mx.where(short, step, 0.0)

    size = magnitude(z)
    bounded = mx.stop_gradient(mx.minimum(size, 1e18))
    w = bounded * bounded / mx.stop_gradient(nu)
    near, far = w < 0.8, w > 1e15
    z1 = mx.where(near, z, 0.0)
    close = 0.5 * z1 * z1 * (1 + 1 / nu) * _log1p_ratio(z1 * z1 / nu)
    z2 = mx.where(mx.logical_or(near, far), 1.0, z)
    middle = 0.5 * (nu + 1) * mx.log1p(z2 * z2 / nu)
    distant = 0.5 * (nu + 1) * (2 * mx.log(mx.where(far, size, 1.0)) - mx.log(nu))
    value = -norm - mx.where(near, close, mx.where(far, distant, middle))
    return mx.where(valid, value, math.nan)


def _one_minus_log1p_ratio(w: mx.array) -> mx.array:
    """1 - log(1 + w) / w for 0 <= w <= 1."""
    near = w < 0.8
    w1, w2 = mx.where(near, w, 0.0), mx.where(near, 1.0, w)
    return mx.where(near, 1 - _log1p_ratio(w1), 1 - mx.log1p(w2) / w2)
