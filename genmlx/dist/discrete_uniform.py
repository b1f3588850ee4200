"""The discrete uniform distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Integers, Support, integer
from genmlx.dist.values import as_array
from genmlx.errors import ParameterError, caller_line


class DiscreteUniform(Distribution):
    """``discrete_uniform(lo, hi)``: the whole numbers lo..hi, both included, equally probable; int32.

    >>> round(discrete_uniform(1, 6).log_prob(6).item(), 4), discrete_uniform(1, 6).log_prob(7).item()
    (-1.7918, -inf)
    """

    parameters = {"lo": integer, "hi": integer}

    def check_parameters(self, lo: Any, hi: Any) -> None:
        if isinstance(lo, (int, float)) and isinstance(hi, (int, float)) and not lo <= hi:
            raise ParameterError(f"discrete_uniform: hi must be at least lo = {lo!r}, got {hi!r}", where=caller_line())

    def params(self, args: tuple) -> tuple:
        lo, hi = (as_array(bound) for bound in args)  # integers stay integers: float32 has only 24 bits
        return lo, hi

    def support_of(self, lo: mx.array, hi: mx.array) -> Support:
        return Integers(lo, hi)

    def _sample(self, key: Any, shape: tuple, lo: mx.array, hi: mx.array) -> mx.array:
        high_key, low_key = random.split(key)
        lo, hi = lo.astype(mx.int32), hi.astype(mx.int32)
        count = (hi.astype(mx.int64) - lo + 1).astype(mx.uint64)
        # floor(count * a uniform of 64 bits)
        high, low = random.bits(high_key, shape).astype(mx.uint64), random.bits(low_key, shape).astype(mx.uint64)
        place = (high * count + ((low * count) >> 32)) >> 32
        return (lo + place.astype(mx.int64)).astype(mx.int32)

    def _log_density(self, x: mx.array, lo: mx.array, hi: mx.array) -> mx.array:
        whole = mx.logical_and(mx.floor(lo) == lo, mx.floor(hi) == hi)
        lo, hi = lo.astype(mx.float32), hi.astype(mx.float32)
        return mx.where(whole, mx.broadcast_to(-mx.log(hi - lo + 1), x.shape), math.nan)

    def _mean(self, lo: mx.array, hi: mx.array) -> mx.array:
        return 0.5 * (lo.astype(mx.float32) + hi.astype(mx.float32))

    def _variance(self, lo: mx.array, hi: mx.array) -> mx.array:
        count = hi.astype(mx.float32) - lo.astype(mx.float32) + 1
        return (count * count - 1) / 12


discrete_uniform = DiscreteUniform("discrete_uniform")
