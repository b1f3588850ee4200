"""The mixture of a beta and a uniform distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.saddle import log_beta_density
from genmlx.dist.beta import beta
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, unit_interval


class BetaUniformMixture(Distribution):
    """``beta_uniform_mixture(theta, a, b)``: Beta(a, b) with probability theta in [0, 1], else uniform, on [0, 1].

    >>> round(beta_uniform_mixture(0.5, 2, 2).log_prob(0.5).item(), 6)
    0.223144
    """

    parameters = {"theta": unit_interval, "a": positive, "b": positive}
    support = unit_interval

    def _sample(self, key: Any, shape: tuple, theta: mx.array, a: mx.array, b: mx.array) -> mx.array:
        which, one, other = random.split(key, 3)
        drawn = mx.where(
            random.uniform(which, shape) < theta, beta._sample(one, shape, a, b), random.uniform_open(other, shape)
        )
        return mx.stop_gradient(drawn)

    def _log_density(self, x: mx.array, theta: mx.array, a: mx.array, b: mx.array) -> mx.array:
        lb = log_beta_density(x, a, b)
        infinite = mx.logical_and(lb == math.inf, theta > 0)
        lb = mx.where(lb > 1e30, 1e30, lb)
        rest = 1 - theta
        # log(1 - theta + theta e^lb) from its larger term, so that neither weight's logarithm is taken at 0
        flat = mx.log(mx.where(theta > 0, theta, 1.0)) + lb <= mx.log(mx.where(rest > 0, rest, 1.0))
        flat = mx.logical_and(mx.logical_or(theta == 0, flat), rest > 0)
        t1, r1, l1 = mx.where(flat, theta, 0.5), mx.where(flat, rest, 0.5), mx.where(flat, mx.minimum(lb, 80.0), 0.0)
        t2, r2, l2 = mx.where(flat, 0.5, theta), mx.where(flat, 0.5, rest), mx.where(flat, 0.0, lb)
        from_flat = mx.log(r1) + mx.log1p(t1 / r1 * mx.exp(l1))
        from_beta = mx.log(t2) + l2 + mx.log1p(r2 / t2 * mx.exp(mx.minimum(-l2, 80.0)))
        value = mx.where(flat, from_flat, mx.where(infinite, math.inf, from_beta))
        return mx.where(mx.logical_and(theta >= 0, theta <= 1), value, math.nan)

    def _mean(self, theta: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return 0.5 + theta * (beta._mean(a, b) - 0.5)

    def _variance(self, theta: mx.array, a: mx.array, b: mx.array) -> mx.array:
        offset = beta._mean(a, b) - 0.5
        return theta * beta._variance(a, b) + (1 - theta) / 12 + theta * (1 - theta) * offset * offset


beta_uniform_mixture = BetaUniformMixture("beta_uniform_mixture")
