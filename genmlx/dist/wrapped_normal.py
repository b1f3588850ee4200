"""The wrapped normal distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.circle import LOG_TWO_PI, angle_from, circle, wrap
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, real


class WrappedNormal(Distribution):
    """``wrapped_normal(mu, sigma)``: a normal variable taken as an angle; mu real, sigma > 0.

    Values are angles in [-pi, pi], whatever mu is.

    >>> round(wrapped_normal(0, 1).log_prob(0).item(), 6), round(wrapped_normal(0, 9).log_prob(0).item(), 6)
    (-0.918939, -1.837877)
    """

    parameters = {"mu": real, "sigma": positive}
    support = circle
    precise = True

    def _sample(self, key: Any, shape: tuple, mu: mx.array, sigma: mx.array) -> mx.array:
        return mx.stop_gradient(wrap(mu + wrap(sigma * random.normal(key, shape))))

    def _log_density(self, x: mx.array, mu: mx.array, sigma: mx.array) -> mx.array:
        d = angle_from(mu, x)
        narrow = sigma < 1.5  # what either series leaves out is below 1e-7 on its side
        s = mx.where(narrow, sigma, 1.0)
        z = d / s
        right, left = (2 * math.pi / s) * ((math.pi - d) / s), (2 * math.pi / s) * ((math.pi + d) / s)
        turns = -0.5 * z * z + mx.log1p(mx.exp(-right) + mx.exp(-left)) - mx.log(s) - 0.5 * LOG_TWO_PI
        wide = mx.where(narrow, 1.5, sigma)
        waves = mx.zeros_like(d)
        for n in (4, 3, 2, 1):
            waves = waves + 2 * mx.exp(-0.5 * n * n * wide * wide) * mx.cos(n * d)
        return mx.where(sigma > 0, mx.where(narrow, turns, mx.log1p(waves) - LOG_TWO_PI), math.nan)


wrapped_normal = WrappedNormal("wrapped_normal")
