"""The von Mises distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.special import i0e
from genmlx.dist.circle import LOG_TWO_PI, angle_from, circle, one_minus_cos, wrap, wrapped_cauchy_angle
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import nonnegative, real

_ROUNDS = 16  # a round accepts with probability 0.657 or more: none of sixteen does once in 3e7 draws


class VonMises(Distribution):
    """``von_mises(mu, kappa)``: density proportional to e^(kappa cos(x - mu)) on the circle; mu real, kappa >= 0.

    Values are angles in [-pi, pi], whatever mu is. Draws are those of Best and Fisher (1979).

    >>> round(von_mises(0, 2).log_prob(0).item(), 6), von_mises(0, 2).log_prob(4).item()
    (-0.661871, -inf)
    """

    parameters = {"mu": real, "kappa": nonnegative}
    support = circle
    precise = True

    def _sample(self, key: Any, shape: tuple, mu: mx.array, kappa: mx.array) -> mx.array:
        angles, uniforms = random.split(key)
        # Their tau = 1 + root, and 1 - rho with rho = (tau - sqrt(2 tau)) / (2 kappa), in a form that does not cancel.
        root = mx.sqrt(1 + 4 * kappa * kappa)
        part = 1 + mx.sqrt(2 * (1 + root))
        total = root + part
        rest = (part + 1 / (root + 2 * kappa)) / total
        theta = wrapped_cauchy_angle(angles, (_ROUNDS, *shape), rest / (2 - rest))
        # kappa (r - cos theta); they accept where log(c / u) + 1 - c >= 0
        c = 0.25 * total * rest * rest + kappa * one_minus_cos(theta)
        accepted = random.exponential(uniforms, theta.shape) >= c - 1 - mx.log(c)
        chosen = mx.zeros(shape)
        for i in range(_ROUNDS):
            chosen = mx.where(accepted[i], theta[i], chosen)
        return mx.stop_gradient(wrap(mu + chosen))

    def _log_density(self, x: mx.array, mu: mx.array, kappa: mx.array) -> mx.array:
        value = -kappa * one_minus_cos(angle_from(mu, x)) - mx.log(i0e(kappa)) - LOG_TWO_PI
        return mx.where(kappa >= 0, value, math.nan)


von_mises = VonMises("von_mises")
