"""The Weibull distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.special import exp, lgamma
from genmlx.dist.clamped import positive_exp
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import nonnegative, positive


class Weibull(Distribution):
    """``weibull(shape, scale)``: survival function exp(-(x / scale)^shape) on x >= 0; both parameters > 0.

    At 0 the density is its limit, which is infinite for a shape below 1, as in scipy's ``weibull_min``.

    >>> round(weibull(2, 1).log_prob(1).item(), 6)
    -0.306853
    """

    parameters = {"shape": positive, "scale": positive}
    support = nonnegative
    reparameterised = True
    precise = True

    def _sample(self, key: Any, shape: tuple, k: mx.array, scale: mx.array) -> mx.array:
        return positive_exp(mx.log(scale) + mx.log(random.exponential(key, shape)) / k)

    def _log_density(self, x: mx.array, k: mx.array, scale: mx.array) -> mx.array:
        inside = x > 0
        ratio = log_ratio(mx.where(inside, x, scale), scale)
        log_front = mx.log(k) - mx.log(scale)
        value = log_front + (k - 1) * ratio - exp(k * ratio)
        edge = mx.where(k == 1, log_front, mx.where(k < 1, log_front + math.inf, log_front - math.inf))
        return mx.where(inside, value, edge)

    def _mean(self, k: mx.array, scale: mx.array) -> mx.array:
        return scale * mx.exp(lgamma(1 + 1 / k))

    def _variance(self, k: mx.array, scale: mx.array) -> mx.array:
        mean = self._mean(k, scale)
        return mean * mean * mx.expm1(lgamma(1 + 2 / k) - 2 * lgamma(1 + 1 / k))


def log_ratio(x: mx.array, y: mx.array) -> mx.array:
    """log(x / y) for x, y > 0, relative 2e-7 also near its zero: shapes of many thousands multiply it."""
    distance = x - y
    near = mx.abs(distance) < 0.5 * y
    quotient = mx.where(near, 1.0, x / y)
    ordinary = mx.logical_and(quotient > 1e-37, quotient < 1e37)
    far = mx.where(ordinary, mx.log(mx.where(ordinary, quotient, 1.0)), mx.log(x) - mx.log(y))
    return mx.where(near, mx.log1p(mx.where(near, distance / y, 0.0)), far)


weibull = Weibull("weibull")
