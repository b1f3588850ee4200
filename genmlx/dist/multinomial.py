"""The multinomial distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend import count_samplers
from genmlx.backend.saddle import log_poisson_raw
from genmlx.backend.sums import compensated, joined
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Counts, Support, natural, nonnegative


class Weights(Support):
    """Vectors of nonnegative numbers, not all 0."""

    __slots__ = ()
    event_ndim = 1

    def contains(self, x: mx.array) -> mx.array:
        return mx.logical_and(mx.all(nonnegative.contains(x), axis=-1), mx.any(x > 0, axis=-1))


class Multinomial(Distribution):
    """``multinomial(n, probs)``: how often each of K outcomes occurs in ``n`` trials; an int32 vector with sum n.

    ``probs`` [K] are nonnegative and are divided by their sum.

    >>> import mlx.core as mx
    >>> round(multinomial(5, [1.0, 1.0, 2.0]).log_prob(mx.array([1, 1, 3])).item(), 4)
    -1.8563
    """

    parameters = {"n": natural, "probs": Weights("a vector of nonnegative numbers, not all 0")}
    precise = True

    def event_shape(self, n: mx.array, probs: mx.array) -> tuple:
        return probs.shape[-1:]

    def support_of(self, n: mx.array, probs: mx.array) -> Support:
        return Counts(n)

    def _sample(self, key: Any, shape: tuple, n: mx.array, probs: mx.array) -> mx.array:
        return split_counts(key, shape, n, probs)

    def _log_density(self, x: mx.array, n: mx.array, probs: mx.array) -> mx.array:
        # Poisson counts given their sum: their log probabilities have nothing large that cancels
        total = mx.sum(probs, axis=-1, keepdims=True)
        mean = n[..., None] * (probs / total)
        value = log_poisson_raw(x, mean)
        # To first order, what the rounding of the mean does to it: at n = 10^6 that would show in the fourth digit.
        product = mean * total
        missing = (_product_error(n[..., None], probs, product) - _product_error(mean, total, product)) / total
        inside = mean > 0
        slope = mx.where(inside, x / mx.where(inside, mean, 1.0) - 1, 0.0)
        value = compensated(joined(value + mx.stop_gradient(missing * slope), -log_poisson_raw(n, n)))
        return mx.where(mx.all(probs >= 0, axis=-1), value, math.nan)

    def _mean(self, n: mx.array, probs: mx.array) -> mx.array:
        return n[..., None] * (probs / mx.sum(probs, axis=-1, keepdims=True))

    def _variance(self, n: mx.array, probs: mx.array) -> mx.array:
        p = probs / mx.sum(probs, axis=-1, keepdims=True)
        return n[..., None] * p * (1 - p)


def _product_error(a: mx.array, b: mx.array, near: mx.array) -> mx.array:
    """a b - near without rounding error, for ``near`` within a few ulp of the product (Dekker 1971)."""
    a_high, b_high = (c - (c - x) for x, c in ((a, 4097.0 * a), (b, 4097.0 * b)))
    a_low, b_low = a - a_high, b - b_high
    return ((a_high * b_high - near) + a_high * b_low + a_low * b_high) + a_low * b_low


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
