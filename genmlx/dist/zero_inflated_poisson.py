"""The zero-inflated Poisson distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend import count_samplers
from genmlx.backend.saddle import log_poisson_raw
from genmlx.backend.special import logaddexp
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import natural, nonnegative, unit_interval


class ZeroInflatedPoisson(Distribution):
    """``zero_inflated_poisson(gate, rate)``: 0 with probability ``gate``, else a Poisson count of mean ``rate``; int32.

    >>> round(zero_inflated_poisson(0.5, 2.0).log_prob(0).item(), 4)
    -0.5662
    """

    parameters = {"gate": unit_interval, "rate": nonnegative}
    support = natural
    precise = True

    def _sample(self, key: Any, shape: tuple, gate: mx.array, rate: mx.array) -> mx.array:
        gate_key, count_key = random.split(key)
        count = count_samplers.poisson(count_key, shape, rate)
        return mx.where(random.uniform(gate_key, shape) < gate, 0, count)

    def _log_density(self, x: mx.array, gate: mx.array, rate: mx.array) -> mx.array:
        none, closed = x == 0, gate == 0
        # gate + (1 - gate) e^-rate is e^-rate (1 + gate (e^rate - 1)), which keeps the digits of a small gate
        small = rate < 30
        zero_small = mx.log1p(gate * mx.expm1(mx.where(small, rate, 0.0))) - rate
        g = mx.where(mx.logical_or(small, closed), 0.5, gate)
        zero_large = mx.where(closed, -rate, logaddexp(mx.log(g), mx.log1p(-g) - rate))
        some = mx.log1p(-mx.where(none, 0.0, gate)) + log_poisson_raw(mx.where(none, 1, x), rate)
        value = mx.where(none, mx.where(small, zero_small, zero_large), some)
        return mx.where(mx.logical_and(mx.logical_and(gate >= 0, gate <= 1), rate >= 0), value, math.nan)

    def _mean(self, gate: mx.array, rate: mx.array) -> mx.array:
        return (1 - gate) * rate

    def _variance(self, gate: mx.array, rate: mx.array) -> mx.array:
        return (1 - gate) * rate * (1 + gate * rate)


zero_inflated_poisson = ZeroInflatedPoisson("zero_inflated_poisson")
