"""The Wishart distribution."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.gamma_sampler import log_standard_gamma
from genmlx.backend.linalg import cholesky, wishart_log_density
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, positive_definite
from genmlx.dist.values import as_array
from genmlx.errors import ParameterError, caller_line


class Wishart(Distribution):
    """``wishart(df, scale)``: symmetric positive definite matrices with mean df * scale, for df > K - 1.

    Conventions are those of ``scipy.stats.wishart``. Draws go through Bartlett's (1933) decomposition
    X = L A A^T L^T, where L is the Cholesky factor of ``scale`` [K, K], and A is lower triangular with independent
    elements: standard normal, and on the diagonal square roots of chi-squared variables.

    >>> import mlx.core as mx
    >>> round(wishart(3.0, [[1.0, 0.0], [0.0, 1.0]]).log_prob(mx.array([[2.0, 0.5], [0.5, 1.0]])).item(), 4)
    -4.031
    """

    parameters = {"df": positive, "scale": positive_definite}
    support = positive_definite
    reparameterised = True

    def check_parameters(self, df: Any, scale: Any) -> None:
        check_degrees("wishart", df, scale)

    def event_shape(self, df: mx.array, scale: mx.array) -> tuple:
        return scale.shape[-2:]

    def _sample(self, key: Any, shape: tuple, df: mx.array, scale: mx.array) -> mx.array:
        k = scale.shape[-1]
        factor = cholesky(scale) @ bartlett(key, shape, df[..., None] - mx.arange(k))
        return from_factor(factor)

    def _log_density(self, x: mx.array, df: mx.array, scale: mx.array) -> mx.array:
        return wishart_log_density(x, df, scale)

    def _mean(self, df: mx.array, scale: mx.array) -> mx.array:
        return df[..., None, None] * scale

    def _variance(self, df: mx.array, scale: mx.array) -> mx.array:
        diagonal = mx.diagonal(scale, axis1=-2, axis2=-1)
        return df[..., None, None] * (scale * scale + diagonal[..., None] * diagonal[..., None, :])


def check_degrees(family: str, df: Any, scale: Any) -> None:
    shape = as_array(scale).shape
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ParameterError(f"{family}: scale must be a square matrix, got shape {list(shape)}", where=caller_line())
    if isinstance(df, (int, float)) and not df > shape[-1] - 1:
        raise ParameterError(
            f"{family}: df must be above {shape[-1] - 1}, one less than the size of scale, got {df!r}",
            where=caller_line(),
        )


def bartlett(key: Any, shape: tuple, degrees: mx.array) -> mx.array:
    """Lower triangular matrices of standard normals, with a chi variable of each of ``degrees`` on the diagonal."""
    k = degrees.shape[-1]
    gamma_key, normal_key = random.split(key)
    chi = mx.exp(0.5 * (math.log(2) + log_standard_gamma(gamma_key, (*shape, k), 0.5 * degrees)))
    chi = mx.maximum(chi, 1e-12)  # the square of its inverse, times a scale, is then still a float32
    return mx.tril(random.normal(normal_key, (*shape, k, k)), -1) + chi[..., None] * mx.eye(k)


def from_factor(factor: mx.array) -> mx.array:
    """factor factor^T, exactly symmetric, and positive definite in float32 however small a pivot is.

    A factorization in float32 needs eigenvalues, relative to the diagonal, of a few ulp times the size (Demmel 1989).
    """
    k = factor.shape[-1]
    x = factor @ mx.swapaxes(factor, -1, -2)
    return 0.5 * (x + mx.swapaxes(x, -1, -2)) * (1 + (k - 1) * 2.0**-21 * mx.eye(k))


wishart = Wishart("wishart")
