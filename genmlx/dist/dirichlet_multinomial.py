"""The Dirichlet-multinomial distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.gamma_sampler import log_standard_gamma
from genmlx.backend.sums import compensated, joined
from genmlx.dist.distribution import Distribution
from genmlx.dist.multinomial import split_counts
from genmlx.dist.neg_binomial import log_neg_binomial
from genmlx.dist.support import Counts, Support, natural, positive_vector


class DirichletMultinomial(Distribution):
    """``dirichlet_multinomial(n, alpha)``: multinomial counts whose probabilities are drawn from Dirichlet(alpha).

    ``alpha`` [K] is positive; the draws are int32 vectors with sum n.

    >>> import mlx.core as mx
    >>> round(dirichlet_multinomial(5, [1.0, 1.0, 2.0]).log_prob(mx.array([1, 1, 3])).item(), 4)
    -2.6391
    """

    parameters = {"n": natural, "alpha": positive_vector}

    def event_shape(self, n: mx.array, alpha: mx.array) -> tuple:
        return alpha.shape[-1:]

    def support_of(self, n: mx.array, alpha: mx.array) -> Support:
        return Counts(n)

    def _sample(self, key: Any, shape: tuple, n: mx.array, alpha: mx.array) -> mx.array:
        gamma_key, count_key = random.split(key)
        probs = mx.softmax(log_standard_gamma(gamma_key, (*shape, alpha.shape[-1]), alpha), axis=-1)
        return split_counts(count_key, shape, n, probs)

    def _log_density(self, x: mx.array, n: mx.array, alpha: mx.array) -> mx.array:
        # negative binomial counts given their sum, with any probability in common
        total = mx.sum(alpha, axis=-1)
        p = common_probability(n, total)
        value = compensated(joined(log_neg_binomial(x, alpha, p[..., None]), -log_neg_binomial(n, total, p)))
        return mx.where(n == mx.floor(n), value, math.nan)

    def _mean(self, n: mx.array, alpha: mx.array) -> mx.array:
        return n[..., None] * alpha / mx.sum(alpha, axis=-1, keepdims=True)

    def _variance(self, n: mx.array, alpha: mx.array) -> mx.array:
        total, n = mx.sum(alpha, axis=-1, keepdims=True), n[..., None]
        share = alpha / total
        return n * share * (1 - share) * ((total + n) / (total + 1))


def common_probability(n: mx.array, total: mx.array) -> mx.array:
    """The probability with which a negative binomial of shape ``total`` has mean ``n``, kept below 1; a constant."""
    return mx.stop_gradient(mx.minimum(total / (total + n), 1 - 2.0**-23))


dirichlet_multinomial = DirichletMultinomial("dirichlet_multinomial")
