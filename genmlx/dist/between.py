"""The probability and the quantiles of an interval, for families with a distribution function.

The difference of two values of a distribution function loses its digits in the tails and in a narrow interval. Each
family here has a form that does not: of the two ends in units of the scale, and of their distance, which the caller
knows more exactly than their difference says. An end may be infinite. Gradients are those of the compositions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from genmlx.backend.gaussian import log_ndtr, log_ndtr_difference, ndtri_exp
from genmlx.backend.special import exp, log1mexp, log_sigmoid, logaddexp
from genmlx.dist.cauchy import cauchy
from genmlx.dist.distribution import Distribution
from genmlx.dist.exponential import exponential
from genmlx.dist.gumbel import gumbel
from genmlx.dist.half_cauchy import half_cauchy
from genmlx.dist.half_normal import half_normal
from genmlx.dist.laplace import laplace
from genmlx.dist.logistic import logistic
from genmlx.dist.normal import normal
from genmlx.dist.uniform import uniform
from genmlx.dist.weibull import weibull

_LOG_HALF = -math.log(2)
_LAST_LOG = -(2.0**-24)  # the logarithm of the largest float32 below 1
_HIGHEST_LOG = 80.0  # of a number that is as good as infinite, but whose gradient is finite
_LAST_ANGLE = 3.1415925  # the largest float32 below pi


class Between(NamedTuple):
    """How a family's parameters give a location, a scale and shapes, and what is between two ends in those units.

    ``log_mass(a, b, width, *shapes)`` is the log probability of [a, b], of length ``width``; and
    ``draw(u, a, b, width, *shapes)`` the point below which lies a fraction ``u`` of it.
    """

    standard: Callable
    log_mass: Callable
    draw: Callable


def _symmetric(lower: Callable, log_mass: Callable) -> Callable:
    """Draws of a family that is symmetric around 0, by way of the tail in which most of the interval lies."""

    def draw(u: mx.array, a: mx.array, b: mx.array, width: mx.array) -> mx.array:
        flip = a + b > 0
        z = lower(mx.where(flip, 1 - u, u), mx.where(flip, -b, a), log_mass(a, b, width), width)
        return mx.where(flip, -z, z)

    return draw


def _log_below(log_cdf: mx.array, log_mass: mx.array, u: mx.array) -> mx.array:
    """log of F(a) + u (F(b) - F(a)), below 0."""
    return mx.minimum(logaddexp(log_cdf, log_mass + mx.log(u)), _LAST_LOG)


def _normal_mass(a: mx.array, b: mx.array, width: mx.array) -> mx.array:
    rounded = b - a
    narrow = mx.logical_and(width < 0.5, rounded > 0)
    better = mx.log(mx.where(narrow, width, 1.0)) - mx.log(mx.where(narrow, rounded, 1.0))
    return log_ndtr_difference(a, b) + mx.stop_gradient(better)


def _normal_lower(u: mx.array, a: mx.array, log_mass: mx.array, width: mx.array) -> mx.array:
    return ndtri_exp(_log_below(log_ndtr(a), log_mass, u))


def _logistic_mass(a: mx.array, b: mx.array, width: mx.array) -> mx.array:
    return log_sigmoid(b) + log_sigmoid(-a) + log1mexp(-width)


def _logistic_lower(u: mx.array, a: mx.array, log_mass: mx.array, width: mx.array) -> mx.array:
    log_p = _log_below(log_sigmoid(a), log_mass, u)
    return log_p - log1mexp(log_p)


def _laplace_mass(a: mx.array, b: mx.array, width: mx.array) -> mx.array:
    across = mx.logical_and(a < 0, b > 0)
    both = -mx.expm1(mx.where(across, a, -1.0)) - mx.expm1(-mx.where(across, b, 1.0))
    nearest = mx.where(a >= 0, -a, mx.where(b <= 0, b, -1.0))
    return _LOG_HALF + mx.where(across, mx.log(both), nearest + log1mexp(mx.where(across, -1.0, -width)))


def _laplace_lower(u: mx.array, a: mx.array, log_mass: mx.array, width: mx.array) -> mx.array:
    log_p = _log_below(_LOG_HALF + a, log_mass, u)
    lower = log_p <= _LOG_HALF
    return mx.where(lower, log_p - _LOG_HALF, _LOG_HALF - log1mexp(mx.where(lower, -0.5, log_p)))


def _cauchy_angle(a: mx.array, b: mx.array, width: mx.array) -> mx.array:
    """pi (F(b) - F(a)): the angle between the directions (1, a) and (1, b)."""
    finite = width < math.inf
    cos_a, sin_a = _direction(a)
    cos_b, sin_b = _direction(b)
    cross = mx.where(finite, mx.where(finite, width, 1.0) * cos_a * cos_b, sin_b * cos_a - sin_a * cos_b)
    return mx.arctan2(cross, cos_a * cos_b + sin_a * sin_b)


def _direction(z: mx.array) -> tuple[mx.array, mx.array]:
    steep, infinite = mx.abs(z) > 1, mx.isinf(z)
    z1 = mx.where(infinite, 1.0, mx.where(steep, z, 1.0))
    size = mx.abs(z1)
    cos, sin = mx.where(steep, 1 / size, 1.0), mx.where(steep, z1 / size, mx.where(steep, 0.0, z))
    return mx.where(infinite, 0.0, cos), mx.where(infinite, mx.sign(z), sin)


def _cauchy_mass(a: mx.array, b: mx.array, width: mx.array) -> mx.array:
    return mx.log(_cauchy_angle(a, b, width)) - math.log(math.pi)


def _cauchy_lower(u: mx.array, a: mx.array, log_mass: mx.array, width: mx.array) -> mx.array:
    cos, sin = _direction(a)
    angle = mx.arctan2(cos, -sin) + u * (exp(log_mass) * math.pi)
    return -1 / mx.tan(mx.minimum(angle, _LAST_ANGLE))


def _exponential_mass(a: mx.array, b: mx.array, width: mx.array) -> mx.array:
    return -a + log1mexp(-width)


def _exponential_draw(u: mx.array, a: mx.array, b: mx.array, width: mx.array) -> mx.array:
    return a - mx.log1p(u * mx.expm1(-width))


def _gumbel_ends(a: mx.array, b: mx.array, width: mx.array) -> tuple[mx.array, mx.array]:
    """e^-b and e^-a - e^-b: the interval as one of an exponential variable."""
    low, near = exp(-b), width < 1
    high = exp(mx.minimum(-a, _HIGHEST_LOG))
    return low, mx.where(near, low * mx.expm1(mx.where(near, width, 0.0)), high - low)


def _gumbel_mass(a: mx.array, b: mx.array, width: mx.array) -> mx.array:
    low, distance = _gumbel_ends(a, b, width)
    return -low + log1mexp(-distance)


def _gumbel_draw(u: mx.array, a: mx.array, b: mx.array, width: mx.array) -> mx.array:
    low, distance = _gumbel_ends(a, b, width)
    return -mx.log(_exponential_draw(1 - u, low, low + distance, distance))


def _weibull_ends(a: mx.array, b: mx.array, width: mx.array, k: mx.array) -> tuple[mx.array, mx.array]:
    """a^k and b^k - a^k: the interval as one of an exponential variable."""
    above, finite = a > 0, b < math.inf
    a1, b1 = mx.where(above, a, 1.0), mx.where(finite, b, 1.0)
    low = mx.where(above, mx.power(a1, k), 0.0)
    growth = k * mx.log1p(mx.where(mx.logical_and(above, finite), width, 0.0) / a1)
    near = mx.logical_and(mx.logical_and(above, finite), growth < 1)
    far = mx.where(finite, mx.power(b1, k), math.inf) - low
    return low, mx.where(near, low * mx.expm1(mx.where(near, growth, 0.0)), far)


def _weibull_mass(a: mx.array, b: mx.array, width: mx.array, k: mx.array) -> mx.array:
    low, distance = _weibull_ends(a, b, width, k)
    return -low + log1mexp(-distance)


def _weibull_draw(u: mx.array, a: mx.array, b: mx.array, width: mx.array, k: mx.array) -> mx.array:
    low, distance = _weibull_ends(a, b, width, k)
    return mx.power(_exponential_draw(u, low, low + distance, distance), 1 / k)


def _half(log_mass: Callable) -> Callable:
    """The mass of a family that is folded at 0."""
    return lambda a, b, width: log_mass(a, b, width) - _LOG_HALF


def _around(loc: mx.array, scale: mx.array) -> tuple:
    return loc, scale


def _from_zero(scale: mx.array) -> tuple:
    return 0.0, scale


BETWEEN: dict[Distribution, Between] = {
    normal: Between(_around, _normal_mass, _symmetric(_normal_lower, _normal_mass)),
    logistic: Between(_around, _logistic_mass, _symmetric(_logistic_lower, _logistic_mass)),
    laplace: Between(_around, _laplace_mass, _symmetric(_laplace_lower, _laplace_mass)),
    cauchy: Between(_around, _cauchy_mass, _symmetric(_cauchy_lower, _cauchy_mass)),
    half_normal: Between(_from_zero, _half(_normal_mass), _symmetric(_normal_lower, _normal_mass)),
    half_cauchy: Between(_from_zero, _half(_cauchy_mass), _symmetric(_cauchy_lower, _cauchy_mass)),
    exponential: Between(lambda rate: (0.0, 1 / rate), _exponential_mass, _exponential_draw),
    gumbel: Between(_around, _gumbel_mass, _gumbel_draw),
    weibull: Between(lambda k, scale: (0.0, scale, k), _weibull_mass, _weibull_draw),
    uniform: Between(
        lambda lo, hi: (lo, hi - lo),
        lambda a, b, width: mx.log(width),
        lambda u, a, b, width: a + u * width,
    ),
}
"""What ``truncated`` needs of each continuous family that it knows."""
