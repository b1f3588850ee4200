"""The chi-squared distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.backend.gamma_sampler import log_standard_gamma
from genmlx.backend.saddle import log_gamma_density
from genmlx.dist.clamped import positive_exp
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import nonnegative, positive


class Chi2(Distribution):
    """``chi2(df)``: the sum of the squares of df standard normals, for any real df > 0; on x >= 0.

    >>> round(chi2(4).log_prob(2).item(), 6)
    -1.693147
    """

    parameters = {"df": positive}
    support = nonnegative
    reparameterised = True
    guarded = False
    precise = True

    def _sample(self, key: Any, shape: tuple, df: mx.array) -> mx.array:
        return positive_exp(log_standard_gamma(key, shape, 0.5 * df) + math.log(2))

    def _log_density(self, x: mx.array, df: mx.array) -> mx.array:
        return log_gamma_density(x, 0.5 * df, 0.5)

    def _mean(self, df: mx.array) -> mx.array:
        return df

    def _variance(self, df: mx.array) -> mx.array:
        return 2 * df


chi2 = Chi2("chi2")
