"""The gamma distribution."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.backend.gamma_sampler import log_standard_gamma
from genmlx.backend.saddle import log_gamma_density
from genmlx.dist.clamped import positive_exp
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import nonnegative, positive


class Gamma(Distribution):
    """``gamma(shape, rate)``: density proportional to x^(shape - 1) e^(-rate x) on x >= 0; both parameters > 0.

    The second parameter is the rate, so that the mean is shape / rate. A draw too small for float32, as most are
    for a shape of 0.01, is the smallest positive normal number.

    >>> round(gamma(2, 3).log_prob(1).item(), 6)
    -0.802775
    """

    parameters = {"shape": positive, "rate": positive}
    support = nonnegative
    reparameterised = True
    guarded = False
    precise = True

    def _sample(self, key: Any, shape: tuple, a: mx.array, rate: mx.array) -> mx.array:
        return positive_exp(log_standard_gamma(key, shape, a) - mx.log(rate))

    def _log_density(self, x: mx.array, a: mx.array, rate: mx.array) -> mx.array:
        return log_gamma_density(x, a, rate)

    def _mean(self, a: mx.array, rate: mx.array) -> mx.array:
        return a / rate

    def _variance(self, a: mx.array, rate: mx.array) -> mx.array:
        return a / rate / rate


gamma = Gamma("gamma")
