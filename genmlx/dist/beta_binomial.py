"""The beta-binomial distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend import count_samplers
from genmlx.backend.gamma_sampler import log_standard_gamma
from genmlx.backend.special import sigmoid
from genmlx.dist.dirichlet_multinomial import common_probability
from genmlx.dist.distribution import Distribution
from genmlx.dist.neg_binomial import log_neg_binomial
from genmlx.dist.support import Integers, Support, natural, positive


class BetaBinomial(Distribution):
    """``beta_binomial(n, a, b)``: successes in ``n`` trials whose probability is drawn from Beta(a, b); int32 in 0..n.

    >>> round(beta_binomial(10, 2.0, 3.0).log_prob(4).item(), 4)
    -1.9671
    """

    parameters = {"n": natural, "a": positive, "b": positive}
    precise = True

    def support_of(self, n: mx.array, a: mx.array, b: mx.array) -> Support:
        return Integers(0, n)

    def _sample(self, key: Any, shape: tuple, n: mx.array, a: mx.array, b: mx.array) -> mx.array:
        a_key, b_key, count_key = random.split(key, 3)
        log_odds = log_standard_gamma(a_key, shape, a) - log_standard_gamma(b_key, shape, b)
        return count_samplers.binomial(count_key, shape, n, sigmoid(log_odds), sigmoid(-log_odds))

    def _log_density(self, x: mx.array, n: mx.array, a: mx.array, b: mx.array) -> mx.array:
        # two negative binomial counts given their sum, with any probability in common
        p = common_probability(n, a + b)
        value = log_neg_binomial(x, a, p) + log_neg_binomial(n - x, b, p) - log_neg_binomial(n, a + b, p)
        return mx.where(n == mx.floor(n), value, math.nan)

    def _mean(self, n: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return n * a / (a + b)

    def _variance(self, n: mx.array, a: mx.array, b: mx.array) -> mx.array:
        total = a + b
        return n * (a / total) * (b / total) * ((total + n) / (total + 1))


beta_binomial = BetaBinomial("beta_binomial")
