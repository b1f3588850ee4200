"""The wrapped Cauchy distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.dist.circle import LOG_TWO_PI, angle_from, circle, one_minus_cos, wrap, wrapped_cauchy_angle
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Interval, real


class WrappedCauchy(Distribution):
    """``wrapped_cauchy(mu, rho)``: a Cauchy variable taken as an angle; mu real, mean resultant length rho in [0, 1).

    Density (1 - rho^2) / (2 pi (1 + rho^2 - 2 rho cos(x - mu))). Values are angles in [-pi, pi], whatever mu is.

    >>> round(wrapped_cauchy(0, 0.5).log_prob(0).item(), 6)
    -0.739265
    """

    parameters = {"mu": real, "rho": Interval(0.0, 1.0, closed_hi=False)}
    support = circle

    def _sample(self, key: Any, shape: tuple, mu: mx.array, rho: mx.array) -> mx.array:
        return mx.stop_gradient(wrap(mu + wrapped_cauchy_angle(key, shape, (1 - rho) / (1 + rho))))

    def _log_density(self, x: mx.array, mu: mx.array, rho: mx.array) -> mx.array:
        rest = 1 - rho
        spread = rest * rest + 2 * rho * one_minus_cos(angle_from(mu, x))
        value = mx.log(rest) + mx.log1p(rho) - mx.log(spread) - LOG_TWO_PI
        return mx.where(mx.logical_and(rho >= 0, rho < 1), value, math.nan)


wrapped_cauchy = WrappedCauchy("wrapped_cauchy")
