"""The logistic distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.special import logit
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, real


class Logistic(Distribution):
    """``logistic(loc, scale)``: distribution function 1 / (1 + e^(-(x - loc) / scale)), on the real line; scale > 0.

    >>> round(logistic(0, 1).log_prob(0).item(), 6)
    -1.386294
    """

    parameters = {"loc": real, "scale": positive}
    support = real
    reparameterised = True

    def _sample(self, key: Any, shape: tuple, loc: mx.array, scale: mx.array) -> mx.array:
        return loc + scale * logit(random.uniform_open(key, shape))

    def _log_density(self, x: mx.array, loc: mx.array, scale: mx.array) -> mx.array:
        z = mx.abs(x - loc) / scale
        return -z - 2 * mx.log1p(mx.exp(-z)) - mx.log(scale)

    def _mean(self, loc: mx.array, scale: mx.array) -> mx.array:
        return loc

    def _variance(self, loc: mx.array, scale: mx.array) -> mx.array:
        return scale * scale * (math.pi**2 / 3)


logistic = Logistic("logistic")
