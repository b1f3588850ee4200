"""The binomial distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.backend import count_samplers
from genmlx.backend.saddle import log_binomial_raw
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Integers, Support, natural, unit_interval


class Binomial(Distribution):
    """``binomial(n, p)``: successes in ``n`` independent trials of probability ``p``; int32 in 0..n.

    >>> round(binomial(10, 0.3).log_prob(4).item(), 4), binomial(10, 1.0).log_prob(9).item()
    (-1.6088, -inf)
    """

    parameters = {"n": natural, "p": unit_interval}
    precise = True

    def support_of(self, n: mx.array, p: mx.array) -> Support:
        return Integers(0, n)

    def _sample(self, key: Any, shape: tuple, n: mx.array, p: mx.array) -> mx.array:
        return count_samplers.binomial(key, shape, n, p, 1 - p)

    def _log_density(self, x: mx.array, n: mx.array, p: mx.array) -> mx.array:
        return mx.where(n == mx.floor(n), log_binomial_raw(x, n, p, 1 - p), math.nan)

    def _mean(self, n: mx.array, p: mx.array) -> mx.array:
        return n * p

    def _variance(self, n: mx.array, p: mx.array) -> mx.array:
        return n * p * (1 - p)


binomial = Binomial("binomial")
