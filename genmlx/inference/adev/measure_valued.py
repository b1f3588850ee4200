"""Measure-valued derivatives: the derivative of a density in a parameter as a difference of two distributions.

d/dtheta E[f(x)] = scale (E[f(x+)] - E[f(x-)]), for any f, smooth or not (Pflug 1989; Mohamed, Rosca, Figurnov and Mnih
2020, "Monte Carlo gradient estimation in machine learning", section 6). The two parts share noise where they can.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import random
from genmlx.dist.bernoulli import Bernoulli
from genmlx.dist.exponential import Exponential
from genmlx.dist.geometric import Geometric, geometric
from genmlx.dist.normal import Normal
from genmlx.dist.poisson import Poisson


class WeakDerivative(NamedTuple):
    """Draws of the positive and the negative part, and the scale of their difference."""

    scale: mx.array
    plus: mx.array
    minus: mx.array


def _normal(key: Any, x: mx.array, mu: mx.array, sigma: mx.array) -> list[WeakDerivative]:
    radius, directions, sign, share = random.split(key, 4)
    rayleigh = mx.sqrt(2 * random.exponential(radius, x.shape))
    # A Maxwell variable with a random sign has the density z^2 phi(z); times a uniform one it is standard normal.
    maxwell = mx.sqrt(mx.sum(mx.square(random.normal(directions, (3, *x.shape))), axis=0))
    maxwell = mx.where(random.uniform(sign, x.shape) < 0.5, -maxwell, maxwell)
    inner = maxwell * random.uniform(share, x.shape)
    return [
        WeakDerivative(1 / (sigma * math.sqrt(2 * math.pi)), mu + sigma * rayleigh, mu - sigma * rayleigh),
        WeakDerivative(1 / sigma, mu + sigma * maxwell, mu + sigma * inner),
    ]


def _poisson(key: Any, x: mx.array, rate: mx.array) -> list[WeakDerivative]:
    return [WeakDerivative(mx.ones_like(rate), x + 1, x)]


def _exponential(key: Any, x: mx.array, rate: mx.array) -> list[WeakDerivative]:
    return [WeakDerivative(1 / rate, x, x + random.exponential(key, x.shape) / rate)]


def _bernoulli(key: Any, x: mx.array, p: mx.array) -> list[WeakDerivative]:
    return [WeakDerivative(mx.ones_like(p), mx.ones_like(x), mx.zeros_like(x))]


def _geometric(key: Any, x: mx.array, p: mx.array) -> list[WeakDerivative]:
    return [WeakDerivative(1 / p, x, x + 1 + geometric._sample(key, x.shape, p))]


RULES: dict[type, Any] = {
    Normal: _normal,
    Poisson: _poisson,
    Exponential: _exponential,
    Bernoulli: _bernoulli,
    Geometric: _geometric,
}
"""``rule(key, draws, *params)`` gives the weak derivative in each parameter."""
