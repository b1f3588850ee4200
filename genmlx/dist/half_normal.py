"""The half-normal distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import nonnegative, positive


class HalfNormal(Distribution):
    """``half_normal(sigma)``: the absolute value of a normal variable with mean 0 and deviation sigma > 0; on x >= 0.

    >>> round(half_normal(1).log_prob(0).item(), 6)
    -0.225791
    """

    parameters = {"sigma": positive}
    support = nonnegative
    reparameterised = True
    precise = True

    def _sample(self, key: Any, shape: tuple, sigma: mx.array) -> mx.array:
        return sigma * mx.abs(random.normal(key, shape))

    def _log_density(self, x: mx.array, sigma: mx.array) -> mx.array:
        z = x / sigma
        return 0.5 * math.log(2 / math.pi) - mx.log(sigma) - 0.5 * z * z

    def _mean(self, sigma: mx.array) -> mx.array:
        return sigma * math.sqrt(2 / math.pi)

    def _variance(self, sigma: mx.array) -> mx.array:
        return sigma * sigma * (1 - 2 / math.pi)


half_normal = HalfNormal("half_normal")
