"""The Pareto distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.clamped import positive_exp
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Interval, Support, positive
from genmlx.dist.weibull import log_ratio


class Pareto(Distribution):
    """``pareto(shape, scale)``: survival function (scale / x)^shape on x >= scale; both parameters > 0.

    >>> round(pareto(2, 1).log_prob(1).item(), 6), pareto(2, 1).log_prob(0.5).item()
    (0.693147, -inf)
    """

    parameters = {"shape": positive, "scale": positive}
    reparameterised = True
    precise = True

    def support_of(self, b: mx.array, scale: mx.array) -> Support:
        return Interval(scale, math.inf)

    def _sample(self, key: Any, shape: tuple, b: mx.array, scale: mx.array) -> mx.array:
        return mx.maximum(positive_exp(mx.log(scale) + random.exponential(key, shape) / b), scale)

    def _log_density(self, x: mx.array, b: mx.array, scale: mx.array) -> mx.array:
        return mx.log(b) - mx.log(scale) - (b + 1) * log_ratio(x, scale)

    def _mean(self, b: mx.array, scale: mx.array) -> mx.array:
        return mx.where(b > 1, scale * (b / (b - 1)), math.inf)

    def _variance(self, b: mx.array, scale: mx.array) -> mx.array:
        deviation = scale / (b - 1)
        return mx.where(b > 2, deviation * deviation * (b / (b - 2)), math.inf)


pareto = Pareto("pareto")
