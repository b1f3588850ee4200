"""The exponential distribution."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import nonnegative, positive


class Exponential(Distribution):
    """``exponential(rate)``: density rate e^(-rate x) on x >= 0; rate > 0.

    >>> exponential(1).log_prob(0).item(), exponential(1).log_prob(-1).item()
    (0.0, -inf)
    """

    parameters = {"rate": positive}
    support = nonnegative
    reparameterised = True

    def _sample(self, key: Any, shape: tuple, rate: mx.array) -> mx.array:
        return random.exponential(key, shape) / rate

    def _log_density(self, x: mx.array, rate: mx.array) -> mx.array:
        return mx.log(rate) - rate * x

    def _mean(self, rate: mx.array) -> mx.array:
        return 1 / rate

    def _variance(self, rate: mx.array) -> mx.array:
        return 1 / rate / rate


exponential = Exponential("exponential")
