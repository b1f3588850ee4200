"""Error functions and the normal distribution's tails, in float32, as plain compositions (see `special`).

All of them rest on one polynomial, the upper tail over the density, and on e^(-y^2 / 2) with an exact square.
"""

import math

import mlx.core as mx

from genmlx.backend.special import HALF_LOG_2PI, Real, exp, log1mexp, magnitude, polynomial, real

_SCALED_TAIL = (  # (1 + y) e^(y^2 / 2) Phi(-y) in (y - 4) / (y + 4), as in Shepherd and Laframboise (1981)
    -1.252405777e-6, -2.082353658e-6, 1.188480801e-5, 1.933619563e-5, -8.662261018e-5, -9.301357875e-5,
    6.944153542e-4, -2.861917586e-4, -5.002280008e-3, 1.793621552e-2, -3.219784642e-2, 2.86003532e-2,
    1.399963496e-2, -9.670347704e-2, 0.4720532065,
)  # fmt: skip
_ERF = (  # erf(x) / x in x^2, |x| <= 1
    -9.6670445715e-6, 1.1265959026e-4, -8.4840804055e-4, 5.2210318079e-3, -2.6865430728e-2, 0.11283782495,
    -0.37612638468, 1.1283791671,
)  # fmt: skip
_CENTRAL_P = (151.7480391, 697.5316973, 423.4301822, 71.18057233, 3.387132872)  # in 0.180625 - (p - 1/2)^2
_CENTRAL_Q = (209.4624294, 410.7179893, 175.1405682, 24.02024932, 1.0)
_QUANTILE_P = (5.8732606858e-7, 2.6480990252e-3, 0.24427588117, 2.5227062948, 2.7502306607)
_QUANTILE_Q = (3.7098366686e-4, 5.1575152879e-2, 0.88994190098, 2.4047497427, 1.0)
_LEGENDRE = (  # Gauss-Legendre with six nodes on [-1, 1]: positive node, weight of the pair
    (0.238619186083197, 0.467913934572691),
    (0.661209386466265, 0.360761573048139),
    (0.932469514203152, 0.171324492379170),
)  # fmt: skip


def _scaled_tail(y: mx.array) -> mx.array:
    """e^(y^2 / 2) Phi(-y) for y >= 0; the approximation is good to 7e-11, its third derivative to 5e-7."""
    y = mx.minimum(y, 1e18)
    return polynomial((y - 4) / (y + 4), _SCALED_TAIL) / (1 + y)


def _half_square_exp(y: mx.array) -> mx.array:
    """e^(-y^2 / 2) for y >= 0 to 2 ulp: the square of y rounded to sixteenths is exact."""
    y = mx.minimum(y, 15.0)
    head = mx.stop_gradient(mx.round(y * 16) / 16)
    return exp(-0.5 * head * head) * exp(-0.5 * (y - head) * (y + head))


def erf(x: Real) -> mx.array:
    """Error function for any x, 2 ulp also near 0; `mx.erf` is off by up to 42513 ulp there."""
    x = real(x)
    y = magnitude(x)
    low = y < 1
    small = mx.where(low, x, 0.0)
    tail = erfc_positive(mx.where(low, 1.0, y))
    return mx.where(low, small * polynomial(small * small, _ERF), mx.where(x < 0, tail - 1, 1 - tail))


def erfc_positive(y: mx.array) -> mx.array:
    """erfc(y) for y >= 0."""
    y = mx.minimum(y, 12.0)
    head = mx.stop_gradient(mx.round(y * 16) / 16)
    return 2 * _scaled_tail(math.sqrt(2) * y) * (exp(-head * head) * exp(-(y - head) * (y + head)))


def erfc(x: Real) -> mx.array:
    """1 - erf(x) for any x, relative 6e-7 until it underflows at 9.3."""
    x = real(x)
    tail = erfc_positive(magnitude(x))
    return mx.where(x < 0, 2 - tail, tail)


def erfcx(x: Real) -> mx.array:
    """e^(x^2) erfc(x), relative 4e-7 for x >= 0 and 1e-6 from -2 to 0; the square is not exact below."""
    x = real(x)
    y = magnitude(x)
    scaled = 2 * _scaled_tail(math.sqrt(2) * y)
    negative = x < 0
    z = mx.where(negative, y, 0.0)
    return mx.where(negative, 2 * exp(z * z) - scaled, scaled)


def ndtr(x: Real) -> mx.array:
    """Standard normal distribution function, relative 6e-7 until it underflows at -13."""
    x = real(x)
    y = magnitude(x)
    tail = _half_square_exp(y) * _scaled_tail(y)
    return mx.where(x < 0, tail, 1 - tail)


def log_ndtr(x: Real) -> mx.array:
    """log of `ndtr`, relative 6e-7 from -1e18 to 10 and more: the tails are never exponentiated."""
    x = real(x)
    infinite = mx.isinf(x)
    y = magnitude(mx.where(infinite, 0.0, x))
    scaled = _scaled_tail(y)
    lower = mx.log(scaled) - 0.5 * y * y
    value = mx.where(x < 0, lower, mx.log1p(-_half_square_exp(y) * scaled))
    return mx.where(infinite, mx.where(x < 0, -math.inf, 0.0), value)


def _upper_quantile(log_tail: mx.array) -> mx.array:
    """The y >= 0 with log Phi(-y) = `log_tail`, for log_tail <= log(1/2).

    A start in the form of Hastings (1955), good to 4e-5 for y < 200, and one Newton step through which
    derivatives pass, so that they are as exact as the value.
    """
    rho = mx.sqrt(-2 * log_tail)
    y = rho - polynomial(rho, _QUANTILE_P) / polynomial(rho, _QUANTILE_Q)
    scaled = _scaled_tail(mx.maximum(y, 0.0))
    return y + (mx.log(scaled) - 0.5 * y * y - log_tail) * scaled * math.sqrt(2 * math.pi)


def ndtri(p: Real) -> mx.array:
    """Inverse of `ndtr` for 0 <= p <= 1, relative 5e-7 down to 1e-37; -inf at 0, inf at 1, nan outside.

    The split into a centre and tails is Wichura's (1988, Algorithm AS 241).
    """
    p = real(p)
    q = p - 0.5
    central = mx.logical_and(q > -0.425, q < 0.425)
    c = mx.where(central, q, 0.0)
    w = 0.180625 - c * c
    middle = c * polynomial(w, _CENTRAL_P) / polynomial(w, _CENTRAL_Q)
    outer = mx.logical_and(mx.logical_not(central), mx.logical_and(p > 0, p < 1))
    tail = _upper_quantile(mx.log(mx.where(outer, mx.where(q < 0, p, 1 - p), 0.01)))
    value = mx.where(central, middle, mx.where(q < 0, -tail, tail))
    edge = mx.where(p == 0, -math.inf, mx.where(p == 1, math.inf, math.nan))
    return mx.where(mx.logical_or(central, outer), value, edge)


def ndtri_exp(log_p: Real) -> mx.array:
    """Inverse of `log_ndtr` for log_p <= 0, relative 5e-7, absolute 3e-7 around 0; inf at 0, -inf at -inf."""
    log_p = real(log_p)
    inside = mx.logical_and(log_p < 0, log_p > -math.inf)
    safe = mx.where(inside, log_p, -1.0)
    lower = safe <= -0.6931472
    tail = _upper_quantile(mx.where(lower, safe, log1mexp(mx.where(lower, -0.5, safe))))
    edge = mx.where(log_p == 0, math.inf, mx.where(log_p < 0, -math.inf, math.nan))
    return mx.where(inside, mx.where(lower, -tail, tail), edge)


def log_ndtr_difference(a: Real, b: Real) -> mx.array:
    """log(Phi(b) - Phi(a)) for a <= b, accurate in both tails and for narrow intervals; -inf where a >= b.

    Absolute 2e-6 while the value is above -20, relative 5e-7 below. An interval with b - a <= 1 and
    |a + b| (b - a) <= 4 is integrated by Gauss-Legendre, where the difference of tails would cancel.
    """
    a, b = real(a), real(b)
    ordered = a < b
    flip = a + b > 0
    low, high = mx.where(flip, -b, a), mx.where(flip, -a, b)
    low, high = mx.where(ordered, low, -2.0), mx.where(ordered, high, 0.0)
    # MLX sends zeros back through a comparison, and 0 times an infinite end is nan
    gap, offset = mx.stop_gradient(high - low), mx.stop_gradient(magnitude(low + high))
    narrow = mx.logical_and(gap <= 1, offset * gap <= 4)

    l1, h1 = mx.where(narrow, low, -1.0), mx.where(narrow, high, 0.0)
    width, middle = h1 - l1, 0.5 * (l1 + h1)
    total = mx.zeros_like(width)
    for node, weight in _LEGENDRE:
        t = (0.5 * node) * width
        total = total + (0.5 * weight) * mx.exp(-0.5 * t * t) * (mx.exp(-middle * t) + mx.exp(middle * t))
    inner = mx.log(width) + mx.log(total) - 0.5 * middle * middle - HALF_LOG_2PI

    l2, h2 = mx.where(narrow, -2.0, low), mx.where(narrow, 0.0, high)
    same_side = h2 <= 0
    unbounded = l2 == -math.inf
    # with |a| >= |b| after the flip, the lower end is on the left whenever the interval is wide
    l2 = mx.where(unbounded, -1e9, l2)
    h3 = mx.where(same_side, h2, 0.0)
    log_high, log_low = log_ndtr(h3), log_ndtr(l2)
    drop = mx.where(mx.logical_and(same_side, log_low < log_high), log_low - log_high, -1.0)
    one_side = log_high + log1mexp(drop)
    y = mx.where(same_side, 1.0, h2)
    two_sided = mx.log1p(-(mx.exp(log_low) + _half_square_exp(y) * _scaled_tail(y)))
    outer = mx.where(same_side, one_side, two_sided)
    value = mx.where(ordered, mx.where(narrow, inner, outer), -math.inf)
    return mx.where(mx.logical_or(mx.isnan(a), mx.isnan(b)), math.nan, value)
