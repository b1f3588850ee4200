"""The inverse gamma distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.backend.gamma_sampler import log_standard_gamma
from genmlx.backend.saddle import _residual, log_gamma_density
from genmlx.dist.clamped import positive_exp
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive


class InvGamma(Distribution):
    """``inv_gamma(shape, scale)``: scale divided by a Gamma(shape, 1) variable; on x > 0, both parameters > 0.

    >>> round(inv_gamma(2, 3).log_prob(1).item(), 6)
    -0.802775
    """

    parameters = {"shape": positive, "scale": positive}
    support = positive
    reparameterised = True
    precise = True

    def _sample(self, key: Any, shape: tuple, a: mx.array, scale: mx.array) -> mx.array:
        return positive_exp(mx.log(scale) - log_standard_gamma(key, shape, a))

    def _log_density(self, x: mx.array, a: mx.array, scale: mx.array) -> mx.array:
        inverse = 1 / x
        # what rounding 1 / x changes in the density: little in its logarithm, but that is multiplied by the shape
        lost = mx.stop_gradient((a - scale * inverse) * _residual(mx.array(1.0), x, inverse))
        return log_gamma_density(scale, a, inverse) + mx.log(scale) - mx.log(x) + lost

    def _mean(self, a: mx.array, scale: mx.array) -> mx.array:
        return mx.where(a > 1, scale / (a - 1), math.inf)

    def _variance(self, a: mx.array, scale: mx.array) -> mx.array:
        mean = scale / (a - 1)
        return mx.where(a > 2, mean * mean / (a - 2), math.inf)


inv_gamma = InvGamma("inv_gamma")
