"""The beta distribution."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.backend.gamma_sampler import log_standard_gamma
from genmlx.backend.saddle import log_beta_density
from genmlx.backend.special import sigmoid
from genmlx.dist.clamped import inside_unit_interval
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, unit_interval
from genmlx.random import split


class Beta(Distribution):
    """``beta(a, b)``: density proportional to x^(a - 1) (1 - x)^(b - 1); a, b > 0. Draws lie strictly inside (0, 1).

    At 0 and 1 the density is its limit, which is infinite for a parameter below 1, as in scipy.

    >>> round(beta(2, 2).log_prob(0.5).item(), 6)
    0.405465
    """

    parameters = {"a": positive, "b": positive}
    support = unit_interval
    reparameterised = True
    guarded = False
    precise = True

    def _sample(self, key: Any, shape: tuple, a: mx.array, b: mx.array) -> mx.array:
        one, other = split(key)
        return inside_unit_interval(sigmoid(log_standard_gamma(one, shape, a) - log_standard_gamma(other, shape, b)))

    def _log_density(self, x: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return log_beta_density(x, a, b)

    def _mean(self, a: mx.array, b: mx.array) -> mx.array:
        return a / (a + b)

    def _variance(self, a: mx.array, b: mx.array) -> mx.array:
        return (a / (a + b)) * (b / (a + b)) / (a + b + 1)


beta = Beta("beta")
