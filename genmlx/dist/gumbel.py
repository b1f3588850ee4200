"""The Gumbel distribution of maxima."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.special import exp
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, real

_EULER = 0.5772156649015329


class Gumbel(Distribution):
    """``gumbel(loc, scale)``: distribution function exp(-e^(-(x - loc) / scale)), on the real line; scale > 0.

    >>> gumbel(0, 1).log_prob(0).item()
    -1.0
    """

    parameters = {"loc": real, "scale": positive}
    support = real
    reparameterised = True
    precise = True

    def _sample(self, key: Any, shape: tuple, loc: mx.array, scale: mx.array) -> mx.array:
        return loc + scale * random.gumbel(key, shape)

    def _log_density(self, x: mx.array, loc: mx.array, scale: mx.array) -> mx.array:
        z = (x - loc) / scale
        return -z - exp(-z) - mx.log(scale)

    def _mean(self, loc: mx.array, scale: mx.array) -> mx.array:
        return loc + _EULER * scale

    def _variance(self, loc: mx.array, scale: mx.array) -> mx.array:
        return scale * scale * (math.pi**2 / 6)


gumbel = Gumbel("gumbel")
