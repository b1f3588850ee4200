"""The truncated normal distribution, in its tails too.

It is measured from the end of the interval that is nearer to mu, in units of sigma. With that end at a and w the length
of the interval, the distance t = |x - end| / sigma has the density e^(-a t - t^2 / 2) / G(a, w), in which nothing is
large in a far tail. Where mu lies inside a wide interval, a < 0 and the usual form is accurate.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import random
from genmlx.backend import special
from genmlx.backend.gaussian import erfcx, log_ndtr, log_ndtr_difference, ndtri_exp
from genmlx.backend.special import HALF_LOG_2PI
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Interval, Support, positive, real
from genmlx.errors import ParameterError, caller_line

_INFINITE = 1e9  # stands for an infinite bound, so that derivatives in it are 0 and not nan
_TAIL = 4.0  # from this a on, quantiles are found in t
_SHORT = 0.01  # for shorter intervals t^2 in the exponent is replaced by w t, its chord: 1e-5 of the density
_LEGENDRE = (  # Gauss-Legendre with six nodes on [0, 1]: node, weight
    (0.033765242898424, 0.085662246189585), (0.169395306766868, 0.180380786524069),
    (0.380690406958402, 0.233956967286346), (0.619309593041598, 0.233956967286346),
    (0.830604693233132, 0.180380786524069), (0.966234757101576, 0.085662246189585),
)  # fmt: skip


class _Bound(Interval):
    """What a bound may be: any number or an infinity."""

    __slots__ = ()

    def admits(self, number: float) -> bool:
        return not math.isnan(number)


_bound = _Bound(-math.inf, math.inf, phrase="a number or infinite")


class TruncatedNormal(Distribution):
    """``truncated_normal(mu, sigma, lo, hi)``: a normal variable given that it lies in [lo, hi]; sigma > 0, lo < hi.

    The bounds are on the variable itself (scipy's are in units of sigma) and may be infinite. mu may lie outside of
    them, however far. Draws are differentiable in all four parameters.

    >>> round(truncated_normal(0, 1, 7, math.inf).log_prob(7.1).item(), 4)
    1.2604
    """

    parameters = {"mu": real, "sigma": positive, "lo": _bound, "hi": _bound}
    reparameterised = True
    guarded = False

    def params(self, args: tuple) -> tuple:
        """The parameters as arrays, but bounds that are numbers stay so: the support can say which are infinite."""
        arrays = super().params(args)
        bounds = [float(g) if isinstance(g, (int, float)) else a for g, a in zip(args[2:], arrays[2:], strict=True)]
        return (*arrays[:2], *bounds)

    def batch_shape(self, mu: mx.array, sigma: mx.array, lo: Any, hi: Any) -> tuple:
        return super().batch_shape(mu, sigma, special.real(lo), special.real(hi))

    def support_of(self, mu: mx.array, sigma: mx.array, lo: Any, hi: Any) -> Support:
        return Interval(lo, hi, closed_lo=not (isinstance(lo, float) and lo == -math.inf))

    def check_parameters(self, mu: Any, sigma: Any, lo: Any, hi: Any) -> None:
        if isinstance(lo, (int, float)) and isinstance(hi, (int, float)) and not lo < hi:
            raise ParameterError(f"{self.__name__}: lo must be below hi, got lo={lo!r}, hi={hi!r}", where=caller_line())

    def _sample(self, key: Any, shape: tuple, mu: mx.array, sigma: mx.array, lo: Any, hi: Any) -> mx.array:
        at = _measure(mu, sigma, lo, hi)
        u = random.uniform_open(key, shape)
        short, central = at.w < _SHORT, at.a < _TAIL
        from_mu = mu + at.scale * _central_quantile(u, mx.where(central, at.a, 0.0), mx.where(central, at.b, 1.0))
        tail_a = mx.where(central, _TAIL, at.a)
        distance = mx.where(
            short,
            _short_quantile(u, mx.where(short, at.a, 0.0), mx.where(short, at.w, _SHORT)),
            _tail_quantile(u, tail_a, mx.where(short, 1.0, at.w)),
        )
        x = mx.where(mx.logical_and(central, mx.logical_not(short)), from_mu, at.end + at.scale * distance)
        return mx.minimum(mx.maximum(x, lo), hi)

    def _log_density(self, x: mx.array, mu: mx.array, sigma: mx.array, lo: Any, hi: Any) -> mx.array:
        at = _measure(mu, sigma, lo, hi)
        inside = mx.logical_and(mx.logical_and(x >= lo, x <= hi), mx.abs(x) < math.inf)
        x = mx.where(inside, x, at.inner)
        t = (x - at.end) / at.scale
        from_end = -t * (at.a + 0.5 * t) - _log_mass(at.a, at.w)
        z = (x - mu) / sigma
        wide = at.wide
        mass = log_ndtr_difference(mx.where(wide, at.a, -1.0), mx.where(wide, at.b, 1.0))
        value = mx.where(wide, -0.5 * z * z - HALF_LOG_2PI - mass, from_end) - mx.log(sigma)
        return mx.where(mx.logical_and(sigma > 0, special.real(lo) < hi), mx.where(inside, value, -math.inf), math.nan)

    def _mean(self, mu: mx.array, sigma: mx.array, lo: Any, hi: Any) -> mx.array:
        at = _measure(mu, sigma, lo, hi)
        first, _ = _wide_moments(at)
        return mx.where(at.wide, mu + at.scale * first, at.end - at.scale * _slope(at.a, at.w))

    def _variance(self, mu: mx.array, sigma: mx.array, lo: Any, hi: Any) -> mx.array:
        at = _measure(mu, sigma, lo, hi)
        first, second = _wide_moments(at)
        curvature = mx.grad(lambda a: mx.sum(_slope(a, at.w)))(at.a)
        return sigma * sigma * mx.where(at.wide, 1 + second - first * first, curvature)


class _Measures(NamedTuple):
    end: mx.array  # the nearer end of the interval, 0 if infinite
    scale: mx.array  # sigma, negative where the nearer end is the upper one
    a: mx.array
    b: mx.array
    w: mx.array
    wide: mx.array  # whether the usual form is taken
    inner: mx.array  # a point of the interval


def _measure(mu: mx.array, sigma: mx.array, lo: Any, hi: Any) -> _Measures:
    lo, hi = special.real(lo), special.real(hi)
    below, above = mx.abs(lo) < math.inf, mx.abs(hi) < math.inf
    low, high = mx.where(below, lo, 0.0), mx.where(above, hi, 0.0)
    alpha = mx.where(below, mx.clip((low - mu) / sigma, -_INFINITE, _INFINITE), -_INFINITE)
    beta = mx.where(above, mx.clip((high - mu) / sigma, -_INFINITE, _INFINITE), _INFINITE)
    mirrored = alpha + beta < 0
    a, b = mx.where(mirrored, -beta, alpha), mx.where(mirrored, -alpha, beta)
    w = mx.where(mx.logical_and(below, above), (high - low) / sigma, _INFINITE)
    return _Measures(
        end=mx.where(mirrored, high, low),
        scale=mx.where(mirrored, -sigma, sigma),
        a=a,
        b=b,
        w=w,
        wide=mx.logical_and(a < 0, mx.logical_not(_is_narrow(a, w))),
        inner=mx.stop_gradient(mx.where(below, low, mx.where(above, high, mu))),
    )


def _is_narrow(a: mx.array, w: mx.array) -> mx.array:
    return w * (mx.abs(a) + 0.5 * w) < 1


def _mills(y: mx.array) -> mx.array:
    """The normal distribution's upper tail divided by its density, for y >= 0."""
    return math.sqrt(0.5 * math.pi) * erfcx(math.sqrt(0.5) * y)


def _log_mass(a: mx.array, w: mx.array) -> mx.array:
    """log G(a, w), the integral of e^(-a t - t^2 / 2) over [0, w]; for a < 0 only where the interval is narrow."""
    narrow = _is_narrow(a, w)
    a1, w1 = mx.where(narrow, a, 0.0), mx.where(narrow, w, 1.0)
    total = mx.zeros_like(w1)
    for node, weight in _LEGENDRE:
        total = total + weight * mx.exp(-(node * w1) * (a1 + (0.5 * node) * w1))
    a2, w2 = mx.where(narrow | (a < 0), 1.0, a), mx.where(narrow, 1.0, w)
    mills = _mills(a2)
    rest = mx.exp(-w2 * (a2 + 0.5 * w2)) * (_mills(a2 + w2) / mills)
    return mx.where(narrow, mx.log(w1) + mx.log(total), mx.log(mills) + mx.log1p(-rest))


def _slope(a: mx.array, w: mx.array) -> mx.array:
    """The derivative of log G in a: minus the mean of t. The second derivative is its variance."""
    return mx.grad(lambda a: mx.sum(_log_mass(a, w)))(a)


def _wide_moments(at: _Measures) -> tuple[mx.array, mx.array]:
    """The mean of the standardised variable, and its second moment less 1, where a < 0 and the interval is wide."""
    a, b = mx.where(at.wide, at.a, -1.0), mx.where(at.wide, at.b, 1.0)
    mass = log_ndtr_difference(a, b)
    low, high = mx.exp(-0.5 * a * a - HALF_LOG_2PI - mass), mx.exp(-0.5 * b * b - HALF_LOG_2PI - mass)
    return low - high, a * low - b * high


def _log_survival(u: mx.array, whole: mx.array) -> mx.array:
    """-log(1 - u (1 - e^-whole)): the drop of the log survival function at quantile u, if it drops by ``whole``."""
    return -mx.log1p(u * mx.expm1(-whole))


def _central_quantile(u: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """The standard normal variable between a and b of quantile u."""
    upper = log_ndtr(-a)
    return -ndtri_exp(upper - _log_survival(u, upper - log_ndtr(-b)))


def _tail_quantile(u: mx.array, a: mx.array, w: mx.array) -> mx.array:
    """The t of quantile u, for a >= 4. Newton's steps start above the root of a convex function."""

    def drop(t: mx.array, a: mx.array) -> mx.array:
        return t * (a + 0.5 * t) + mx.log(_mills(a) / _mills(a + t))

    target = _log_survival(u, drop(w, a))
    goal, origin = mx.stop_gradient(target), mx.stop_gradient(a)
    t = 2 * goal / (origin + mx.sqrt(origin * origin + 2 * goal))
    for _ in range(2):
        t = mx.maximum(t - (drop(t, origin) - goal) * _mills(origin + t), 0.0)
    t = mx.stop_gradient(t)
    # derivatives pass through the last step
    return t - (drop(t, a) - target) * mx.stop_gradient(_mills(a + t))


def _short_quantile(u: mx.array, a: mx.array, w: mx.array) -> mx.array:
    """The t of quantile u in a short interval, where the density is taken as e^(-(a + w / 2) t)."""
    slope = a + 0.5 * w
    fall = slope * w
    flat = mx.abs(fall) < 1e-3
    steep = mx.where(flat, 1.0, slope)
    return mx.where(
        flat,
        u * w * (1 - 0.5 * (1 - u) * fall),
        -mx.log1p(u * mx.expm1(-mx.where(flat, 1.0, fall))) / steep,
    )


truncated_normal = TruncatedNormal("truncated_normal")
