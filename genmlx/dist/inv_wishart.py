"""The inverse Wishart distribution."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.backend.linalg import cholesky, inv_wishart_log_density, solve_triangular
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import positive, positive_definite
from genmlx.dist.wishart import bartlett, check_degrees, from_factor


class InvWishart(Distribution):
    """``inv_wishart(df, scale)``: inverses of Wishart(df, scale^-1) matrices, for df > K - 1.

    Conventions are those of ``scipy.stats.invwishart``: the mean is scale / (df - K - 1). With Cholesky factors L of
    ``scale`` and M of the value, M^-1 L is lower triangular with independent elements, as in Bartlett's decomposition
    with the degrees of freedom in the reverse order.

    >>> import mlx.core as mx
    >>> round(inv_wishart(3.0, [[1.0, 0.0], [0.0, 1.0]]).log_prob(mx.array([[2.0, 0.5], [0.5, 1.0]])).item(), 4)
    -5.067
    """

    parameters = {"df": positive, "scale": positive_definite}
    support = positive_definite
    reparameterised = True

    def check_parameters(self, df: Any, scale: Any) -> None:
        check_degrees("inv_wishart", df, scale)

    def event_shape(self, df: mx.array, scale: mx.array) -> tuple:
        return scale.shape[-2:]

    def _sample(self, key: Any, shape: tuple, df: mx.array, scale: mx.array) -> mx.array:
        k = scale.shape[-1]
        b = bartlett(key, shape, df[..., None] - mx.arange(k - 1, -1, -1))
        return from_factor(cholesky(scale) @ solve_triangular(b, mx.eye(k)))

    def _log_density(self, x: mx.array, df: mx.array, scale: mx.array) -> mx.array:
        return inv_wishart_log_density(x, df, scale)

    def _mean(self, df: mx.array, scale: mx.array) -> mx.array:
        excess = df - scale.shape[-1] - 1
        return scale / mx.where(excess > 0, excess, mx.nan)[..., None, None]

    def _variance(self, df: mx.array, scale: mx.array) -> mx.array:
        c = (df - scale.shape[-1])[..., None, None]
        c = mx.where(c > 3, c, mx.nan)
        diagonal = mx.diagonal(scale, axis1=-2, axis2=-1)
        products = (c + 1) * scale * scale + (c - 1) * diagonal[..., None] * diagonal[..., None, :]
        return products / (c * (c - 1) * (c - 1) * (c - 3))


inv_wishart = InvWishart("inv_wishart")
