"""The Bernoulli distribution."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import boolean, unit_interval


class Bernoulli(Distribution):
    """``bernoulli(p)``: 1 with probability ``p`` in [0, 1], else 0; int32.

    >>> bernoulli(1.0).log_prob(0).item(), round(bernoulli(0.25).log_prob(1).item(), 6)
    (-inf, -1.386294)
    """

    parameters = {"p": unit_interval}
    support = boolean

    def _sample(self, key: Any, shape: tuple, p: mx.array) -> mx.array:
        return (random.uniform(key, shape) < p).astype(mx.int32)

    def _log_density(self, x: mx.array, p: mx.array) -> mx.array:
        one = x == 1
        # log1p(-p) keeps its digits for small p; the other branch never sees the argument that would spoil it.
        return mx.where(one, mx.log(mx.where(one, p, 1.0)), mx.log1p(-mx.where(one, 0.0, p)))

    def _mean(self, p: mx.array) -> mx.array:
        return p

    def _variance(self, p: mx.array) -> mx.array:
        return p * (1 - p)


bernoulli = flip = Bernoulli("bernoulli")
