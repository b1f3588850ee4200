"""The normal distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, real

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Normal(Distribution):
    """``normal(mu, sigma)``: mean ``mu``, standard deviation ``sigma`` > 0, on the real line.

    >>> round(normal(0, 2).log_prob(1.0).item(), 6)
    -1.737086
    """

    parameters = {"mu": real, "sigma": positive}
    support = real
    reparameterised = True
    guarded = False
    precise = True

    def _sample(self, key: Any, shape: tuple, mu: mx.array, sigma: mx.array) -> mx.array:
        return mu + sigma * random.normal(key, shape)

    def _log_density(self, x: mx.array, mu: mx.array, sigma: mx.array) -> mx.array:
        z = (x - mu) / sigma
        return -0.5 * z * z - mx.log(sigma) - _HALF_LOG_TWO_PI

    def _mean(self, mu: mx.array, sigma: mx.array) -> mx.array:
        return mu

    def _variance(self, mu: mx.array, sigma: mx.array) -> mx.array:
        return sigma * sigma


normal = gaussian = Normal("normal")
