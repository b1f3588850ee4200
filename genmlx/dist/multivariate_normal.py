"""The multivariate normal distribution."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.linalg import cholesky, mvn_log_density
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive_definite, real_vector
from genmlx.errors import ParameterError


class MultivariateNormal(Distribution):
    """``multivariate_normal(mean, cov)``: vectors with mean [K] and covariance matrix [K, K].

    Where an array ``cov`` is not symmetric positive definite, the log density is -inf and a draw is nan.

    >>> import mlx.core as mx
    >>> round(multivariate_normal([0.0, 0.0], [[2.0, 1.0], [1.0, 2.0]]).log_prob(mx.array([1.0, 0.0])).item(), 4)
    -2.7205
    """

    parameters = {"mean": real_vector, "cov": positive_definite}
    support = real_vector
    reparameterised = True

    def event_shape(self, mean: mx.array, cov: mx.array) -> tuple:
        if cov.shape[-2:] != (mean.shape[-1],) * 2:
            raise ParameterError(
                f"multivariate_normal: cov must be a square matrix of the size of mean, got mean {list(mean.shape)} "
                f"and cov {list(cov.shape)}"
            )
        return mean.shape[-1:]

    def _sample(self, key: Any, shape: tuple, mean: mx.array, cov: mx.array) -> mx.array:
        z = random.normal(key, (*shape, *self.event_shape(mean, cov)))
        return mean + (cholesky(cov) @ z[..., None])[..., 0]

    def _log_density(self, x: mx.array, mean: mx.array, cov: mx.array) -> mx.array:
        self.event_shape(mean, cov)
        return mvn_log_density(x, mean, cov)

    def _mean(self, mean: mx.array, cov: mx.array) -> mx.array:
        return mean

    def _variance(self, mean: mx.array, cov: mx.array) -> mx.array:
        return mx.diagonal(cov, axis1=-2, axis2=-1)


multivariate_normal = MultivariateNormal("multivariate_normal")
