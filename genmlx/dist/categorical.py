"""The categorical distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.special import log_softmax
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Integers, Support


class Logits(Support):
    """Vectors of log weights, -inf allowed but not everywhere."""

    __slots__ = ()
    event_ndim = 1

    def contains(self, x: mx.array) -> mx.array:
        return mx.logical_and(mx.all(x < math.inf, axis=-1), mx.any(x > -math.inf, axis=-1))


class Categorical(Distribution):
    """``categorical(logits)``: 0..K-1 with probabilities proportional to exp(logits) along the last axis; int32.

    The logits need no normalisation; -inf makes a class impossible.

    >>> import mlx.core as mx
    >>> round(categorical(mx.log(mx.array([1.0, 1.0, 2.0]))).log_prob(2).item(), 4)
    -0.6931
    """

    parameters = {"logits": Logits("a vector of logits")}

    def support_of(self, logits: mx.array) -> Support:
        return Integers(0, logits.shape[-1] - 1)

    def _sample(self, key: Any, shape: tuple, logits: mx.array) -> mx.array:
        weights = mx.exp(logits - mx.max(logits, axis=-1, keepdims=True))
        # Inversion. An impossible class is passed over however a parallel sum rounds.
        cdf = mx.where(weights > 0, mx.cumsum(weights, axis=-1), -1.0)
        point = mx.maximum(random.uniform(key, shape), 2.0**-33) * mx.max(cdf, axis=-1)
        return mx.argmax(cdf >= point[..., None], axis=-1).astype(mx.int32)

    def _log_density(self, x: mx.array, logits: mx.array) -> mx.array:
        shape = mx.broadcast_shapes(x.shape, logits.shape[:-1])
        table = mx.broadcast_to(log_softmax(logits), (*shape, logits.shape[-1]))
        index = mx.broadcast_to(x, shape)[..., None].astype(mx.int32)
        return mx.take_along_axis(table, index, axis=-1)[..., 0]


categorical = Categorical("categorical")
