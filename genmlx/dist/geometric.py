"""The geometric distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.backend import count_samplers
from genmlx.backend.special import xlog1py
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Interval, natural

positive_probability = Interval(0.0, 1.0, closed_lo=False, phrase="above 0 and at most 1")


class Geometric(Distribution):
    """``geometric(p)``: how many failures come before the first success of probability ``p`` in (0, 1]; int32.

    The support starts at 0; ``scipy.stats.geom`` counts trials, which is one more.

    >>> round(geometric(0.25).log_prob(2).item(), 4), geometric(1.0).log_prob(0).item()
    (-1.9617, 0.0)
    """

    parameters = {"p": positive_probability}
    support = natural

    def _sample(self, key: Any, shape: tuple, p: mx.array) -> mx.array:
        return count_samplers.geometric(key, shape, p)

    def _log_density(self, x: mx.array, p: mx.array) -> mx.array:
        return mx.where(p <= 1, mx.log(p) + xlog1py(x, -p), math.nan)

    def _mean(self, p: mx.array) -> mx.array:
        return (1 - p) / p

    def _variance(self, p: mx.array) -> mx.array:
        return (1 - p) / (p * p)


geometric = Geometric("geometric")
