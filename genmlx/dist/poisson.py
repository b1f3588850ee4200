"""The Poisson distribution."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.backend import count_samplers
from genmlx.backend.saddle import log_poisson_raw
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import natural, nonnegative


class Poisson(Distribution):
    """``poisson(rate)``: counts 0, 1, ... with mean ``rate`` >= 0; int32.

    >>> round(poisson(3.0).log_prob(2).item(), 4)
    -1.4959
    """

    parameters = {"rate": nonnegative}
    support = natural
    precise = True

    def _sample(self, key: Any, shape: tuple, rate: mx.array) -> mx.array:
        return count_samplers.poisson(key, shape, rate)

    def _log_density(self, x: mx.array, rate: mx.array) -> mx.array:
        return log_poisson_raw(x, rate)

    def _mean(self, rate: mx.array) -> mx.array:
        return rate

    def _variance(self, rate: mx.array) -> mx.array:
        return rate


poisson = Poisson("poisson")
