"""Dense linear algebra for positive definite matrices, batched over leading axes, with gradients that export.

MLX has no gradients of cholesky, inv or solve. Here a factor or an inverse is computed from a stopped input and one
to three fixed-point steps in the input itself follow: the steps change the value by rounding error only, and each
makes one more order of derivative exact. What is second order in the step's error (a quadratic form, an inverse)
gains two orders per step.

MLX never reports a matrix that is not positive definite: it returns a factor with a pivot that is not positive, or
nan. Such input gives nan matrices and -inf log-densities here.
"""

import math

import mlx.core as mx

from genmlx.backend.special import HALF_LOG_2PI

_TOLERANCE = 1e-4
"""|A - L L^T| allowed, in both triangles, relative to the largest diagonal entry: rounding stays below it."""


def factor_stream() -> mx.DeviceType | None:
    """Where factorizations run: MLX has no tri_inv, inv or solve_triangular on a GPU."""
    return mx.cpu if mx.default_device().type == mx.gpu else None


def _transpose(a: mx.array) -> mx.array:
    return mx.swapaxes(a, -1, -2)


def _diagonal(a: mx.array) -> mx.array:
    return mx.diagonal(a, axis1=-2, axis2=-1)


def _lower_half(a: mx.array) -> mx.array:
    """The lower triangle with half the diagonal: the Y with Y + Y^T = a for symmetric a."""
    n = a.shape[-1]
    return a * (mx.tri(n, k=-1, dtype=a.dtype) + 0.5 * mx.eye(n, dtype=a.dtype))


def _constant_factor(a: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Constants: whether `a` is positive definite, its lower factor and that factor's inverse.

    Where it is not, both factors are the identity, so that nothing computed from them is nan.
    """
    a = mx.stop_gradient(a)
    factor = mx.tril(mx.linalg.cholesky(a, stream=factor_stream()))
    scale = mx.max(mx.abs(_diagonal(a)), axis=-1)
    misfit = mx.max(mx.abs(factor @ _transpose(factor) - a), axis=(-2, -1))
    # LAPACK leaves the first pivot that is not positive in place; every comparison with nan is false
    valid = mx.logical_and(mx.min(_diagonal(factor), axis=-1) > 0, misfit <= _TOLERANCE * scale)
    factor = mx.where(valid[..., None, None], factor, mx.eye(a.shape[-1], dtype=a.dtype))
    inverse = mx.linalg.tri_inv(factor, stream=factor_stream())
    return valid, mx.stop_gradient(factor), mx.stop_gradient(inverse)


def _symmetric(a: mx.array, valid: mx.array) -> mx.array:
    """The symmetric part of `a`, or the identity where it is not positive definite."""
    half = 0.5 * (a + _transpose(a))
    return mx.where(valid[..., None, None], half, mx.eye(a.shape[-1], dtype=a.dtype))


def _fill(valid: mx.array, value: mx.array) -> mx.array:
    return mx.where(valid[..., None, None], value, math.nan)


def cholesky(a: mx.array) -> mx.array:
    """Lower Cholesky factor of `a`, (..., n, n); derivatives exact to third order, nan where not positive definite.

    Backward error in float32 about 1e-7 of the largest entry. With L the factor of the stopped input and
    X = L^-1 (a - stop(a)) L^-T, the factor of I + X is I + Y where Y + Y^T + Y Y^T = X.
    """
    valid, factor, inverse = _constant_factor(a)
    s = _symmetric(a, valid)
    x = inverse @ (s - mx.stop_gradient(s)) @ _transpose(inverse)
    y = _lower_half(x)
    for _ in range(2):
        y = _lower_half(x - y @ _transpose(y))
    return _fill(valid, factor + factor @ y)


def _inverse(s: mx.array, inverse_factor: mx.array, steps: int) -> mx.array:
    """Newton's iteration for the inverse (Schulz, 1933) from the factor's; each step doubles the exact orders."""
    c = _transpose(inverse_factor) @ inverse_factor
    for _ in range(steps):
        c = c + c @ (mx.eye(s.shape[-1], dtype=s.dtype) - s @ c)
    return c


def inverse_pd(a: mx.array) -> mx.array:
    """Inverse of a positive definite `a`, (..., n, n); derivatives exact to third order, nan where it is not."""
    valid, _, inverse = _constant_factor(a)
    return _fill(valid, _inverse(_symmetric(a, valid), inverse, 2))


def trace_solve(a: mx.array, b: mx.array) -> mx.array:
    """tr(a^-1 b) over the last two axes for positive definite `a`, differentiable in both."""
    return mx.sum(inverse_pd(a) * _transpose(b), axis=(-2, -1))


def solve_triangular(lower: mx.array, b: mx.array) -> mx.array:
    """x with L x = b for the lower triangle L of `lower`, (..., n, n), and b of (..., n, k).

    Derivatives are exact to third order; the three steps also refine the solution. nan where L is singular.
    """
    regular = mx.all(_diagonal(lower) != 0, axis=-1)[..., None, None]  # MLX's tri_inv raises, for the whole batch
    lower = mx.where(regular, mx.tril(lower), mx.eye(lower.shape[-1], dtype=lower.dtype))
    inverse = mx.stop_gradient(mx.linalg.tri_inv(mx.stop_gradient(lower), stream=factor_stream()))
    x = inverse @ b
    for _ in range(3):
        x = x + inverse @ (b - lower @ x)
    return mx.where(regular, x, math.nan)


def _logdet(s: mx.array, factor: mx.array, inverse_factor: mx.array) -> mx.array:
    """log det from the factor's diagonal, and the series of log det(I + X) for its derivatives."""
    x = inverse_factor @ (s - mx.stop_gradient(s)) @ _transpose(inverse_factor)
    x2 = x @ x
    series = _trace(x) - 0.5 * _trace(x2) + _trace(x2 @ x) / 3
    return 2 * mx.sum(mx.log(_diagonal(factor)), axis=-1) + series


def _trace(a: mx.array) -> mx.array:
    return mx.sum(_diagonal(a), axis=-1)


def logdet_pd(a: mx.array) -> mx.array:
    """log det of a positive definite `a`, (..., n, n); derivatives exact to third order, nan where it is not."""
    valid, factor, inverse = _constant_factor(a)
    return mx.where(valid, _logdet(_symmetric(a, valid), factor, inverse), math.nan)


def mvn_log_density(r: mx.array, cov: mx.array) -> mx.array:
    """log N(r; 0, cov) for r of (..., n) and cov of (..., n, n), whose leading axes broadcast.

    Third derivatives in both are exact: w approximates cov^-1 r to first order, and 2 w.r - w.cov w is stationary
    in w. -inf, with zero gradients, where cov is not positive definite. Absolute 1e-5 for well conditioned matrices.
    """
    valid, factor, inverse = _constant_factor(cov)
    s = _symmetric(cov, valid)
    column = r[..., None]
    start = _transpose(inverse) @ (inverse @ column)
    w = start + _transpose(inverse) @ (inverse @ (column - s @ start))
    quadratic = mx.sum(w * (2 * column - s @ w), axis=(-2, -1))
    value = -0.5 * (quadratic + _logdet(s, factor, inverse)) - r.shape[-1] * HALF_LOG_2PI
    return mx.where(valid, value, -math.inf)
