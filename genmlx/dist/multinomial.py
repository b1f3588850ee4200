"""The multinomial distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend import count_samplers
from genmlx.backend.saddle import log_poisson_raw
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Counts, Support, Vector, natural, nonnegative


class Multinomial(Distribution):
    """``multinomial(n, probs)``: how often each of K outcomes occurs in ``n`` trials; an int32 vector with sum n.

    ``probs`` [K] are nonnegative and are divided by their sum.

    >>> import mlx.core as mx
    >>> round(multinomial(5, [1.0, 1.0, 2.0]).log_prob(mx.array([1, 1, 3])).item(), 4)
    -1.8563
    """

    parameters = {"n": natural, "probs": Vector(nonnegative, phrase="a vector of nonnegative numbers")}

    def event_shape(self, n: mx.array, probs: mx.array) -> tuple:
        return probs.shape[-1:]

    def support_of(self, n: mx.array, probs: mx.array) -> Support:
        return Counts(n)

    def _sample(self, key: Any, shape: tuple, n: mx.array, probs: mx.array) -> mx.array:
        return split_counts(key, shape, n, probs)

    def _log_density(self, x: mx.array, n: mx.array, probs: mx.array) -> mx.array:
        # Poisson counts given their sum: their log probabilities have nothing large that cancels
        m = n[..., None] * (probs / mx.sum(probs, axis=-1, keepdims=True))
        value = mx.sum(log_poisson_raw(x, m), axis=-1) - log_poisson_raw(n, n)
        return mx.where(mx.all(probs >= 0, axis=-1), value, math.nan)

    def _mean(self, n: mx.array, probs: mx.array) -> mx.array:
        return n[..., None] * (probs / mx.sum(probs, axis=-1, keepdims=True))

    def _variance(self, n: mx.array, probs: mx.array) -> mx.array:
        p = probs / mx.sum(probs, axis=-1, keepdims=True)
        return n[..., None] * p * (1 - p)


def split_counts(key: Any, shape: tuple, n: mx.array, probs: mx.array) -> mx.array:
    """``n`` trials over K outcomes: each half of the outcomes gets a binomial share, then each half of a half, ..."""
    k = probs.shape[-1]
    levels = max(k - 1, 0).bit_length()
    masses = [mx.concatenate([probs, mx.zeros((*probs.shape[:-1], (1 << levels) - k))], axis=-1)]
    for _ in range(levels):
        masses.append(mx.sum(masses[-1].reshape(*probs.shape[:-1], -1, 2), axis=-1))
    counts = mx.broadcast_to(n, shape)[..., None].astype(mx.int32)
    for level_key, mass in zip(random.split(key, max(levels, 1)), reversed(masses[:-1]), strict=False):
        pair = mass.reshape(*probs.shape[:-1], -1, 2)
        total = mx.sum(pair, axis=-1, keepdims=True)
        p, q = mx.split(mx.where(total > 0, pair / total, 0.5), 2, axis=-1)
        left = count_samplers.binomial(level_key, counts.shape, counts.astype(mx.float32), p[..., 0], q[..., 0])
        counts = mx.stack([left, counts - left], axis=-1).reshape(*shape, -1)
    return counts[..., :k]


multinomial = Multinomial("multinomial")
