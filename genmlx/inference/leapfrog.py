"""The leapfrog integrator of Hamiltonian dynamics: second order, reversible, volume preserving; all chains at once.

Duane, Kennedy, Pendleton and Roweth (1987); Neal, MCMC using Hamiltonian dynamics (2011), section 5.2.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.errors import ParameterError

ValueAndGrad = Callable[[mx.array], tuple[mx.array, mx.array]]
"""``u [n, dim] -> (log density [n], gradient [n, dim])``."""


class Point(NamedTuple):
    """A place of each chain: ``position [n, dim]``, ``log_prob [n, 1]`` there, and its ``gradient [n, dim]``."""

    position: mx.array
    log_prob: mx.array
    gradient: mx.array


class Metric(NamedTuple):
    """The inverse mass matrix, ``[dim]`` if diagonal or ``[dim, dim]``, and the factor that draws momenta with it.

    The inverse mass is the covariance that the positions are believed to have.
    """

    inverse_mass: mx.array
    momentum_factor: mx.array

    def velocity(self, momentum: mx.array) -> mx.array:
        """dq/dt = M^-1 p."""
        if self.inverse_mass.ndim == 2:
            return momentum @ self.inverse_mass
        return momentum * self.inverse_mass

    def momentum(self, noise: mx.array) -> mx.array:
        """p ~ N(0, M) of standard normal noise: every coordinate of every chain has noise of its own."""
        if self.inverse_mass.ndim == 2:
            return noise @ self.momentum_factor
        return noise * self.momentum_factor

    def kinetic(self, momentum: mx.array) -> mx.array:
        """p M^-1 p / 2 of each chain, ``[n, 1]``."""
        return 0.5 * mx.sum(momentum * self.velocity(momentum), axis=-1, keepdims=True)


def metric(inverse_mass: Any, dim: int) -> Metric:
    """A metric of an inverse mass matrix; raises where it has not the size ``dim`` or is not positive definite.

    >>> metric([1.0, 4.0], 2).momentum_factor
    array([1, 0.5], dtype=float32)
    """
    import numpy as np

    found = np.array(inverse_mass, dtype=np.float64)
    if found.shape not in ((dim,), (dim, dim)):
        raise ParameterError(
            f"the inverse mass matrix has shape {list(found.shape)}", expected=f"[{dim}], or [{dim}, {dim}] if dense"
        )
    wrong = ParameterError("the inverse mass matrix is not positive definite", expected="a covariance matrix")
    if found.ndim == 1:
        if not (np.all(found > 0) and np.all(np.isfinite(found))):
            raise wrong
        factor = 1 / np.sqrt(found)
    else:
        if not np.allclose(found, found.T, rtol=1e-5, atol=1e-8 * np.abs(found).max()):
            raise wrong
        try:
            factor = np.linalg.inv(np.linalg.cholesky(found))
        except np.linalg.LinAlgError:
            raise wrong from None
        if not np.all(np.isfinite(factor)):
            raise wrong
    return Metric(mx.array(found.astype(np.float32)), mx.array(factor.astype(np.float32)))


def identity_metric(dim: int, dense: bool = False) -> Metric:
    one = mx.eye(dim) if dense else mx.ones((dim,))
    return Metric(one, one)


def evaluate(value_and_grad: ValueAndGrad, position: mx.array) -> Point:
    """The point at a position; its log density is -inf where it is NaN or infinite."""
    log_prob, gradient = value_and_grad(position)
    log_prob = mx.where(mx.abs(log_prob) < math.inf, log_prob, -math.inf)
    return Point(position, log_prob[:, None], gradient)


def leapfrog(
    value_and_grad: ValueAndGrad,
    metric: Metric,
    position: mx.array,
    gradient: mx.array,
    momentum: mx.array,
    step_size: Any,
) -> tuple[Point, mx.array]:
    """One step: half a kick, a drift, and half a kick by the gradient at the new place, which comes back with it.

    ``step_size`` is a number or ``[n, 1]``; a negative one goes back in time.
    """
    half = 0.5 * step_size
    momentum = momentum + half * gradient
    point = evaluate(value_and_grad, position + step_size * metric.velocity(momentum))
    return point, momentum + half * point.gradient
