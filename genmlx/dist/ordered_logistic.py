"""The ordered logistic distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.special import log1mexp, log_sigmoid
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Integers, Ordered, Support, real


class OrderedLogistic(Distribution):
    """``ordered_logistic(eta, cutpoints)``: which of K ordered outcomes a logistic variable around ``eta`` falls in.

    ``cutpoints`` [K-1] increase; outcome k is the interval from cutpoint k - 1 to cutpoint k; int32 in 0..K-1
    (McCullagh 1980).

    >>> round(ordered_logistic(0.0, [-1.0, 1.0]).log_prob(1).item(), 4)
    -0.7719
    """

    parameters = {"eta": real, "cutpoints": Ordered()}

    def support_of(self, eta: mx.array, cutpoints: mx.array) -> Support:
        return Integers(0, cutpoints.shape[-1])

    def _sample(self, key: Any, shape: tuple, eta: mx.array, cutpoints: mx.array) -> mx.array:
        u = random.uniform_open(key, shape)
        place = eta + mx.log(u) - mx.log1p(-u)
        return mx.sum(place[..., None] > cutpoints, axis=-1).astype(mx.int32)

    def _log_density(self, x: mx.array, eta: mx.array, cutpoints: mx.array) -> mx.array:
        # s(b) - s(a) = s(b) s(-a) (1 - e^(a - b)) for the logistic function s: nothing cancels
        below = cutpoints - eta[..., None]
        end, gap = mx.zeros((*below.shape[:-1], 1)), cutpoints[..., :-1] - cutpoints[..., 1:]
        inner = mx.zeros((*gap.shape[:-1], 1))
        middle = mx.concatenate([inner, log1mexp(gap), inner], axis=-1) if gap.shape[-1] else 0.0
        table = mx.concatenate([log_sigmoid(below), end], axis=-1) + mx.concatenate([end, log_sigmoid(-below)], axis=-1)
        chosen = mx.arange(table.shape[-1]) == x[..., None]
        value = mx.sum(mx.where(chosen, table + middle, 0.0), axis=-1)
        return mx.where(mx.all(gap < 0, axis=-1), value, math.nan)


ordered_logistic = OrderedLogistic("ordered_logistic")
