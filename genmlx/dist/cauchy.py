"""The Cauchy distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, real


class Cauchy(Distribution):
    """``cauchy(loc, scale)``: median loc, quartiles at loc - scale and loc + scale, on the real line; scale > 0.

    It has no mean.

    >>> round(cauchy(0, 1).log_prob(1).item(), 6)
    -1.837877
    """

    parameters = {"loc": real, "scale": positive}
    support = real
    reparameterised = True

    def _sample(self, key: Any, shape: tuple, loc: mx.array, scale: mx.array) -> mx.array:
        u = random.uniform_open(key, shape)
        # the cotangent of the distance from the nearer end, which is exact
        quantile = 1 / mx.tan(math.pi * mx.minimum(u, 1 - u))
        return loc + scale * mx.where(u < 0.5, -quantile, quantile)

    def _log_density(self, x: mx.array, loc: mx.array, scale: mx.array) -> mx.array:
        return -log1p_square((x - loc) / scale) - mx.log(scale) - math.log(math.pi)


def log1p_square(z: mx.array) -> mx.array:
    """log(1 + z^2) for any z, without squaring a large one."""
    large = mx.abs(z) > 1
    inner = mx.where(large, 1.0, z)
    outer = mx.where(large, z, 1.0)
    return mx.where(large, 2 * mx.log(mx.abs(outer)) + mx.log1p(1 / outer / outer), mx.log1p(inner * inner))


cauchy = Cauchy("cauchy")
