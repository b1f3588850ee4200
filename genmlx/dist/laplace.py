"""The Laplace distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, real


class Laplace(Distribution):
    """``laplace(loc, scale)``: density e^(-|x - loc| / scale) / (2 scale) on the real line; scale > 0.

    >>> round(laplace(1, 2).log_prob(0).item(), 6)
    -1.886294
    """

    parameters = {"loc": real, "scale": positive}
    support = real
    reparameterised = True

    def _sample(self, key: Any, shape: tuple, loc: mx.array, scale: mx.array) -> mx.array:
        pair = random.exponential(key, (2, *shape))
        return loc + scale * (pair[0] - pair[1])

    def _log_density(self, x: mx.array, loc: mx.array, scale: mx.array) -> mx.array:
        return -mx.abs(x - loc) / scale - mx.log(scale) - math.log(2)

    def _mean(self, loc: mx.array, scale: mx.array) -> mx.array:
        return loc

    def _variance(self, loc: mx.array, scale: mx.array) -> mx.array:
        return 2 * scale * scale


laplace = Laplace("laplace")
