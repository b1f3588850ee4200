"""The LKJ distribution of Cholesky factors of correlation matrices."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.gamma_sampler import log_standard_gamma
from genmlx.backend.special import log_beta
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import cholesky_correlation, positive
from genmlx.errors import ParameterError, caller_line


class LkjCholesky(Distribution):
    """``lkj_cholesky(dim, eta)``: the Cholesky factor L of a correlation matrix with density det(L L^T)^(eta - 1).

    ``dim`` is a number; ``eta`` > 0, and at 1 the correlation matrices are uniform. The density is with respect to
    the elements of L below its diagonal (Lewandowski, Kurowicka and Joe 2009).

    >>> import mlx.core as mx
    >>> round(lkj_cholesky(2, 1.0).log_prob(mx.array([[1.0, 0.0], [0.6, 0.8]])).item(), 4)
    -0.6931
    """

    parameters = {"dim": None, "eta": positive}
    support = cholesky_correlation
    reparameterised = True

    def check_parameters(self, dim: Any, eta: Any) -> None:
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            raise ParameterError(
                f"lkj_cholesky: dim must be a whole number, 1 or more, got {dim!r}", where=caller_line()
            )

    def event_shape(self, dim: int, eta: mx.array) -> tuple:
        return dim, dim

    def _sample(self, key: Any, shape: tuple, dim: int, eta: mx.array) -> mx.array:
        # A row is a direction, normals and a chi variable, divided by its length: the onion, all its skins at once.
        gamma_key, normal_key = random.split(key)
        row = mx.arange(dim)
        gamma = log_standard_gamma(gamma_key, (*shape, dim), eta[..., None] + 0.5 * (dim - 1 - row))
        chi = mx.exp(0.5 * (math.log(2) + gamma))
        z = mx.tril(random.normal(normal_key, (*shape, dim, dim)), -1) + chi[..., None] * mx.eye(dim)
        return z * mx.rsqrt(mx.sum(z * z, axis=-1, keepdims=True))

    def _log_density(self, x: mx.array, dim: int, eta: mx.array) -> mx.array:
        row = mx.arange(1, dim)
        b = eta[..., None] + 0.5 * (dim - 1 - row)
        diagonal = mx.diagonal(x, axis1=-2, axis2=-1)[..., 1:]
        log_diagonal = mx.log(diagonal)
        # close to 1 the diagonal has fewer digits than the rest of its row
        below = mx.tril(x, -1)[..., 1:, :]
        rest = mx.minimum(mx.sum(below * below, axis=-1), 0.75)
        exact = mx.where(rest < 0.5, 0.5 * mx.log1p(-rest), log_diagonal)
        log_diagonal = log_diagonal + mx.stop_gradient(exact - log_diagonal)
        # the volume integral over the ball of a row, pi^(i/2) Gamma(b) / Gamma(b + i/2)
        ball = mx.array([0.5 * i * math.log(math.pi) - math.lgamma(0.5 * i) for i in range(1, dim)])
        value = 2 * (b - 1) * log_diagonal - ball - log_beta(b, 0.5 * row)
        return mx.where(eta > 0, mx.sum(value, axis=-1), math.nan)


lkj_cholesky = LkjCholesky("lkj_cholesky")
