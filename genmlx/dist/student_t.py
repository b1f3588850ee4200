"""Student's t distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.gamma_sampler import log_standard_gamma
from genmlx.backend.saddle import log_student_t
from genmlx.dist.clamped import positive_exp
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, real


class StudentT(Distribution):
    """``student_t(df, loc=0, scale=1)``: any real df > 0 degrees of freedom, on the real line; scale > 0.

    >>> round(student_t(3.5).log_prob(1).item(), 6)
    -1.554931
    """

    parameters = {"df": positive, "loc": real, "scale": positive}
    defaults = {"loc": 0.0, "scale": 1.0}
    support = real
    reparameterised = True
    precise = True

    def _sample(self, key: Any, shape: tuple, df: mx.array, loc: mx.array, scale: mx.array) -> mx.array:
        numerator, denominator = random.split(key)
        log_spread = 0.5 * (mx.log(0.5 * df) - log_standard_gamma(denominator, shape, 0.5 * df))
        return loc + scale * (random.normal(numerator, shape) * positive_exp(log_spread))

    def _log_density(self, x: mx.array, df: mx.array, loc: mx.array, scale: mx.array) -> mx.array:
        return log_student_t((x - loc) / scale, df) - mx.log(scale)

    def _mean(self, df: mx.array, loc: mx.array, scale: mx.array) -> mx.array:
        return mx.where(df > 1, loc, math.nan)

    def _variance(self, df: mx.array, loc: mx.array, scale: mx.array) -> mx.array:
        return mx.where(df > 2, scale * scale * (df / (df - 2)), mx.where(df > 1, math.inf, math.nan))


student_t = StudentT("student_t")
