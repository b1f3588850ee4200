"""The uniform distribution on an interval."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Interval, Support, real
from genmlx.errors import ParameterError, caller_line


class Uniform(Distribution):
    """``uniform(lo, hi)``: constant on [lo, hi], both ends included; lo < hi.

    >>> round(uniform(0, 4).log_prob(4).item(), 6), uniform(0, 4).log_prob(4.5).item()
    (-1.386294, -inf)
    """

    parameters = {"lo": real, "hi": real}
    reparameterised = True

    def support_of(self, lo: mx.array, hi: mx.array) -> Support:
        return Interval(lo, hi)

    def check_parameters(self, lo: Any, hi: Any) -> None:
        if isinstance(lo, (int, float)) and isinstance(hi, (int, float)) and not lo < hi:
            raise ParameterError(f"{self.__name__}: lo must be below hi, got lo={lo!r}, hi={hi!r}", where=caller_line())

    def _sample(self, key: Any, shape: tuple, lo: mx.array, hi: mx.array) -> mx.array:
        return mx.minimum(lo + (hi - lo) * random.uniform(key, shape), hi)

    def _log_density(self, x: mx.array, lo: mx.array, hi: mx.array) -> mx.array:
        return mx.zeros_like(x) - mx.log(mx.where(lo < hi, hi - lo, math.nan))

    def _mean(self, lo: mx.array, hi: mx.array) -> mx.array:
        return 0.5 * (lo + hi)

    def _variance(self, lo: mx.array, hi: mx.array) -> mx.array:
        return (hi - lo) * (hi - lo) / 12


uniform = Uniform("uniform")
