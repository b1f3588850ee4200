"""The log-normal distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.clamped import positive_exp
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, real

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class LogNormal(Distribution):
    """``log_normal(mu, sigma)``: its logarithm is normal with mean mu and standard deviation sigma > 0; on x > 0.

    >>> round(log_normal(0, 1).log_prob(1).item(), 6)
    -0.918939
    """

    parameters = {"mu": real, "sigma": positive}
    support = positive
    reparameterised = True
    precise = True

    def _sample(self, key: Any, shape: tuple, mu: mx.array, sigma: mx.array) -> mx.array:
        return positive_exp(mu + sigma * random.normal(key, shape))

    def _log_density(self, x: mx.array, mu: mx.array, sigma: mx.array) -> mx.array:
        z = _log_minus(x, mu) / sigma
        return -0.5 * z * z - mx.log(sigma) - mx.log(x) - _HALF_LOG_TWO_PI

    def _mean(self, mu: mx.array, sigma: mx.array) -> mx.array:
        return mx.exp(mu + 0.5 * sigma * sigma)

    def _variance(self, mu: mx.array, sigma: mx.array) -> mx.array:
        return mx.exp(2 * mu + sigma * sigma) * mx.expm1(sigma * sigma)


def _log_minus(x: mx.array, mu: mx.array) -> mx.array:
    """log x - mu for x > 0, where the rounding of log x would count: divided by a small sigma.

    x = 2^k m, and k log 2 has a first part (Cody and Waite, 1980) from which mu is subtracted without error.
    """
    k = mx.stop_gradient(mx.round(mx.log2(x)))
    half = mx.round(0.5 * k)
    m = x * mx.power(2.0, -half) * mx.power(2.0, half - k)
    return (k * 0.693359375 - mu) + (mx.log(m) - k * 2.12194440e-4)


log_normal = LogNormal("log_normal")
