"""The Dirichlet distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.backend.gamma_sampler import log_standard_gamma
from genmlx.backend.saddle import log_gamma_density
from genmlx.backend.sums import compensated, joined
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Support, positive_vector, simplex

_TINY = 1.1754944e-38  # the smallest normal float32


class Dirichlet(Distribution):
    """``dirichlet(alpha)``: probability vectors, for positive ``alpha`` [K].

    A draw has no element below 1.2e-38, where the density for an ``alpha`` below 1 would be infinite.

    >>> import mlx.core as mx
    >>> round(dirichlet([1.0, 2.0, 3.0]).log_prob(mx.array([0.25, 0.25, 0.5])).item(), 4)
    1.3218
    """

    parameters = {"alpha": positive_vector}
    support = simplex
    reparameterised = True

    def event_shape(self, alpha: mx.array) -> tuple:
        return alpha.shape[-1:]

    def support_of(self, alpha: mx.array) -> Support:
        return simplex

    def _sample(self, key: Any, shape: tuple, alpha: mx.array) -> mx.array:
        logs = log_standard_gamma(key, (*shape, alpha.shape[-1]), alpha)
        return mx.maximum(mx.softmax(logs, axis=-1), _TINY)

    def _log_density(self, x: mx.array, alpha: mx.array) -> mx.array:
        # Gamma variables of rate sum(alpha) given that their sum is 1: nothing large cancels, and the rounding of
        # the sum of x hardly matters. It does for the gradient, which is that of sum((alpha - 1) log x).
        total = mx.sum(alpha, axis=-1)
        size = mx.sum(x, axis=-1)
        terms = log_gamma_density(x, alpha, total[..., None])
        rest = log_gamma_density(mx.ones_like(total), total, total) - total * (size - mx.stop_gradient(size))
        value = compensated(joined(terms, -rest))
        return mx.where(mx.all(alpha > 0, axis=-1), value, math.nan)

    def _mean(self, alpha: mx.array) -> mx.array:
        return alpha / mx.sum(alpha, axis=-1, keepdims=True)

    def _variance(self, alpha: mx.array) -> mx.array:
        total = mx.sum(alpha, axis=-1, keepdims=True)
        share = alpha / total
        return share * (1 - share) / (total + 1)


dirichlet = Dirichlet("dirichlet")
