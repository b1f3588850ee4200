"""The half-Cauchy distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.cauchy import log1p_square
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import nonnegative, positive


class HalfCauchy(Distribution):
    """``half_cauchy(scale)``: the absolute value of a Cauchy variable around 0; on x >= 0, median scale > 0.

    It has no mean.

    >>> round(half_cauchy(1).log_prob(1).item(), 6)
    -1.14473
    """

    parameters = {"scale": positive}
    support = nonnegative
    reparameterised = True

    def _sample(self, key: Any, shape: tuple, scale: mx.array) -> mx.array:
        return scale / mx.tan(0.5 * math.pi * random.uniform_open(key, shape))

    def _log_density(self, x: mx.array, scale: mx.array) -> mx.array:
        return math.log(2 / math.pi) - mx.log(scale) - log1p_square(x / scale)


half_cauchy = HalfCauchy("half_cauchy")
