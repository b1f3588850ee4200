"""The negative binomial distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend import count_samplers
from genmlx.backend.gamma_sampler import log_standard_gamma
from genmlx.backend.saddle import log_beta_density
from genmlx.dist.distribution import Distribution
from genmlx.dist.geometric import positive_probability
from genmlx.dist.support import natural, positive


class NegBinomial(Distribution):
    """``neg_binomial(r, p)``: how many failures come before success number ``r`` > 0, which need not be whole; int32.

    A success has probability ``p`` in (0, 1], as in ``scipy.stats.nbinom``: the mean is r (1 - p) / p.

    >>> round(neg_binomial(2.5, 0.5).log_prob(3).item(), 4)
    -1.9309
    """

    parameters = {"r": positive, "p": positive_probability}
    support = natural
    precise = True

    def _sample(self, key: Any, shape: tuple, r: mx.array, p: mx.array) -> mx.array:
        gamma_key, count_key = random.split(key)
        rate = mx.exp(log_standard_gamma(gamma_key, shape, r) + mx.log1p(-p) - mx.log(p))
        return count_samplers.poisson(count_key, shape, rate)

    def _log_density(self, x: mx.array, r: mx.array, p: mx.array) -> mx.array:
        return log_neg_binomial(x, r, p)

    def _mean(self, r: mx.array, p: mx.array) -> mx.array:
        return r * (1 - p) / p

    def _variance(self, r: mx.array, p: mx.array) -> mx.array:
        return r * (1 - p) / (p * p)


def log_neg_binomial(x: mx.array, r: mx.array, p: mx.array) -> mx.array:
    """The log probability of x = 0, 1, ...; nan for parameters outside their sets.

    For x > 0 it is p (1 - p) / x times the density of Beta(r, x) at p, in which nothing large cancels.
    """
    x = x.astype(mx.float32)
    none, certain = x == 0, p == 1
    p1, x1 = mx.where(certain, 0.5, p), mx.where(none, 1.0, x)
    some = log_beta_density(p1, r, x1) + mx.log(p1) + mx.log1p(-p1) - mx.log(x1)
    value = mx.where(none, r * mx.log(p), mx.where(certain, -math.inf, some))
    return mx.where(mx.logical_and(r > 0, mx.logical_and(p > 0, p <= 1)), value, math.nan)


neg_binomial = NegBinomial("neg_binomial")
