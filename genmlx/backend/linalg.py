"""Dense linear algebra for positive definite matrices, batched over leading axes, with gradients that export.

All of it is done in float64 on the CPU, where MLX has the factorizations, and rounded to float32 once, at the end:
float32 would lose the digits of the condition number. Float64 in gives float64 out.

MLX has no gradients of cholesky, inv or solve. Here a matrix S is its stopped self S0, whose factor is a constant, and
E = S - S0, which is zero but has derivatives: series in E make derivatives exact to third order.

MLX never reports a matrix that is not positive definite: it returns a factor with a pivot that is not positive, or
nan. Such input gives nan matrices and -inf log-densities here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

from genmlx.backend.double import (
    Double,
    all_of,
    both,
    constant,
    double,
    identity,
    largest,
    log,
    lower_factor,
    lower_inverse,
    lower_ones,
    magnitude,
    multigammaln,
    result_type,
    where,
)
from genmlx.backend.special import HALF_LOG_2PI

_TOLERANCE = 1e-4
"""|S - L L^T| allowed, relative to the largest diagonal entry: the asymmetry of a matrix rounded to float32."""


def factor_stream() -> mx.DeviceType | None:
    """Where factorizations run: MLX has no tri_inv, inv or solve_triangular on a GPU."""
    return mx.cpu if mx.default_device().type == mx.gpu else None


class _Expansion(NamedTuple):
    """S, S0 by its factors, and E. Where S is not positive definite, it is the identity without derivatives."""

    valid: mx.array
    matrix: Double
    factor: Double
    inverse_factor: Double
    e: Double

    @property
    def inverse(self) -> Double:
        return self.inverse_factor.transposed @ self.inverse_factor

    @property
    def whitened(self) -> Double:
        """L^-1 E L^-T with the factor L of S0."""
        return self.inverse_factor @ self.e @ self.inverse_factor.transposed


def _expand(a: mx.array) -> _Expansion:
    eye = identity(a.shape[-1])
    original = constant(double(a))
    factor = lower_factor(_symmetric(original))
    misfit = largest(magnitude(factor @ factor.transposed - original), 2)
    # LAPACK leaves the first pivot that is not positive in place; every comparison with nan is false
    valid = both(all_of(factor.diagonal > 0, 1), misfit <= _TOLERANCE * largest(original.diagonal, 1))
    factor = Double(where(valid, factor.array, eye.array, axes=2))
    s = _symmetric(double(where(valid, a, eye.cast(a.dtype), axes=2)))
    return _Expansion(valid, s, factor, lower_inverse(factor), s - constant(s))


def _symmetric(a: Double) -> Double:
    return 0.5 * (a + a.transposed)


def _finish(valid: mx.array, value: Double, *inputs: mx.array, otherwise: float = math.nan, axes: int = 0) -> mx.array:
    return where(valid, value.cast(result_type(*inputs)), otherwise, axes)


def _lower_half(a: Double) -> Double:
    """The lower triangle with half the diagonal: the Y with Y + Y^T = a for symmetric a."""
    n = a.shape[-1]
    return a * (lower_ones(n) - 0.5 * identity(n))


def cholesky(a: mx.array) -> mx.array:
    """Lower Cholesky factor of `a`, (..., n, n); derivatives exact to third order, nan where not positive definite.

    With X = L^-1 E L^-T, the factor of I + X is I + Y where Y + Y^T + Y Y^T = X.
    """
    s = _expand(a)
    x = s.whitened
    y = _lower_half(x)
    for _ in range(2):
        y = _lower_half(x - y @ y.transposed)
    return _finish(s.valid, s.factor + s.factor @ y, a, axes=2)


def _inverse(s: _Expansion) -> Double:
    """The Neumann series (I - G + G^2 - G^3) S0^-1 with G = S0^-1 E."""
    inverse = s.inverse
    g = inverse @ s.e
    total = inverse
    for _ in range(3):
        total = inverse - g @ total
    return total


def inverse_pd(a: mx.array) -> mx.array:
    """Inverse of a positive definite `a`, (..., n, n); derivatives exact to third order, nan where it is not."""
    s = _expand(a)
    return _finish(s.valid, _inverse(s), a, axes=2)


def _trace_product(a: Double, b: Double) -> Double:
    return (a * b.transposed).sum(2)


def trace_solve(a: mx.array, b: mx.array) -> mx.array:
    """tr(a^-1 b) over the last two axes for positive definite `a`, differentiable in both."""
    s = _expand(a)
    return _finish(s.valid, _trace_product(_inverse(s), double(b)), a, b)


def solve_triangular(lower: mx.array, b: mx.array) -> mx.array:
    """x with L x = b for the lower triangle L of `lower`, (..., n, n), and b of (..., n, k).

    Derivatives are exact to third order. nan where L is singular.
    """
    n = lower.shape[-1]
    regular = all_of(magnitude(double(lower).diagonal) > 0, 1)  # MLX's tri_inv raises, for the whole batch
    lower_part = where(lower_ones(n) > 0, lower, 0.0)
    triangle = double(where(regular, lower_part, identity(n).cast(lower.dtype), axes=2))
    inverse = lower_inverse(constant(triangle))
    g = inverse @ (triangle - constant(triangle))
    start = inverse @ double(b)
    x = start
    for _ in range(3):
        x = start - g @ x
    return _finish(regular, x, lower, b, axes=2)


def _logdet(s: _Expansion) -> Double:
    """log det from the factor's diagonal, and the series of log det(I + X) for its derivatives."""
    x = s.whitened
    return 2 * log(s.factor.diagonal).sum(1) + _trace_product(x, identity(x.shape[-1]) - 0.5 * x + (x @ x) * (1 / 3))


def logdet_pd(a: mx.array) -> mx.array:
    """log det of a positive definite `a`, (..., n, n); derivatives exact to third order, nan where it is not."""
    s = _expand(a)
    return _finish(s.valid, _logdet(s), a)


def mvn_log_density(x: mx.array, mean: mx.array, cov: mx.array) -> mx.array:
    """log N(x; mean, cov) for vectors (..., n) and cov of (..., n, n), whose leading axes broadcast.

    Third derivatives are exact. -inf, with zero gradients, where cov is not positive definite. In the quadratic form
    r.S^-1 r = r.y - y.E y + t.C t - u.E u, C is S0^-1, y = C r, t = E y and u = C t.
    """
    s = _expand(cov)
    r = (double(x) - double(mean)).new_axis(-2)  # rows, so that one matrix and many vectors are one product
    inverse = s.inverse
    y = r @ inverse
    t = y @ s.e
    u = t @ inverse
    quadratic = (y * (r - t) + u * (t - u @ s.e)).sum(2)
    value = -0.5 * (quadratic + _logdet(s)) - x.shape[-1] * HALF_LOG_2PI
    return _finish(s.valid, value, x, mean, cov, otherwise=-math.inf)


def _degrees(df: mx.array, n: int) -> tuple[mx.array, Double, Double]:
    """Whether df > n - 1; df; log of 2^(n df / 2) times the n-variate gamma function of df / 2."""
    proper = constant(double(df)) > n - 1
    d = double(where(proper, df, float(n)))
    return proper, d, (0.5 * n * math.log(2)) * d + multigammaln(0.5 * d, n)


def wishart_log_density(x: mx.array, df: mx.array, scale: mx.array) -> mx.array:
    """The log density at x of Wishart(df, scale), matrices (..., n, n); derivatives and edges as for the normal."""
    n, value, center = scale.shape[-1], _expand(x), _expand(scale)
    proper, d, constants = _degrees(df, n)
    trace = _trace_product(_inverse(center), value.matrix)
    density = 0.5 * ((d - (n + 1)) * _logdet(value) - d * _logdet(center) - trace) - constants
    valid = both(proper, both(value.valid, center.valid))
    return _finish(valid, density, x, df, scale, otherwise=-math.inf)


def inv_wishart_log_density(x: mx.array, df: mx.array, scale: mx.array) -> mx.array:
    """The log density at x of the inverse of a Wishart(df, scale^-1) matrix; derivatives and edges as for it."""
    n, value, center = scale.shape[-1], _expand(x), _expand(scale)
    proper, d, constants = _degrees(df, n)
    trace = _trace_product(_inverse(value), center.matrix)
    density = 0.5 * (d * _logdet(center) - (d + (n + 1)) * _logdet(value) - trace) - constants
    valid = both(proper, both(value.valid, center.valid))
    return _finish(valid, density, x, df, scale, otherwise=-math.inf)
