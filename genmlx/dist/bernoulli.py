"""The Bernoulli distribution."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.special import log_sigmoid, sigmoid
from genmlx.dist.distribution import DistCall, Distribution
from genmlx.dist.support import boolean, real, unit_interval


class Bernoulli(Distribution):
    """``bernoulli(p)``: 1 with probability ``p`` in [0, 1], else 0; int32.

    ``bernoulli(logits=l)`` is that of p = 1 / (1 + exp(-l)), which keeps its digits where p would round to 0 or 1.

    >>> bernoulli(1.0).log_prob(0).item(), round(bernoulli(0.25).log_prob(1).item(), 6)
    (-inf, -1.386294)
    >>> bernoulli(logits=100.0).log_prob(0).item()
    -100.0
    """

    parameters = {"p": unit_interval}
    support = boolean

    def __call__(self, *args: Any, **kwargs: Any) -> DistCall:
        return bernoulli_logits(*args, **kwargs) if "logits" in kwargs else super().__call__(*args, **kwargs)

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


class BernoulliLogits(Distribution):
    """``bernoulli_logits(logits)``: 1 with probability 1 / (1 + exp(-logits)), else 0; int32.

    >>> round(bernoulli_logits(0.3).log_prob(1).item(), 6)
    -0.554355
    """

    parameters = {"logits": real}
    support = boolean

    def _sample(self, key: Any, shape: tuple, logits: mx.array) -> mx.array:
        return (random.uniform(key, shape) < sigmoid(logits)).astype(mx.int32)

    def _log_density(self, x: mx.array, logits: mx.array) -> mx.array:
        return log_sigmoid(mx.where(x == 1, logits, -logits))

    def _mean(self, logits: mx.array) -> mx.array:
        return sigmoid(logits)

    def _variance(self, logits: mx.array) -> mx.array:
        return sigmoid(logits) * sigmoid(-logits)


bernoulli = flip = Bernoulli("bernoulli")
bernoulli_logits = BernoulliLogits("bernoulli_logits")
