"""Gamma draws: a fixed number of masked rounds, and their derivative in the shape by implicit reparameterisation.

Marsaglia and Tsang (2000), 'A simple method for generating gamma variables', with the boost for shapes below 1
done in log space, where a draw cannot underflow. Derivatives are those of Figurnov, Mohamed and Mnih (2018).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.special import Real, digamma, real

_ROUNDS = 6  # a round accepts with probability 0.952 or more: none of six does once in 8e7 draws
_TINY = 1.1754944e-38  # the smallest normal float32
_LEGENDRE = (  # Gauss-Legendre with sixteen nodes on [0, 1]: distance of a pair of nodes from 1/2, weight of each
    (0.0475062549188187, 0.0947253052275342),
    (0.1408017753896295, 0.0913017075224618),
    (0.2290083888286137, 0.0845782596975013),
    (0.3089381222013219, 0.0747979944082884),
    (0.3777022041777015, 0.0623144856277670),
    (0.4328156011939159, 0.0475792558412464),
    (0.4722875115366163, 0.0311267619693239),
    (0.4947004674958250, 0.0135762297058770),
)
_pathwise: ContextVar[bool] = ContextVar("genmlx_pathwise", default=True)
_NODES = [0.5 + sign * node for node, _ in _LEGENDRE for sign in (-1, 1)]
_WEIGHTS = [weight for _, weight in _LEGENDRE for _ in (-1, 1)]


def standard_gamma(key: random.Key, shape: tuple, a: Real) -> mx.array:
    """Gamma(a, 1) draws of shape ``shape``, to which a > 0 broadcasts; at least 1.2e-38, nan where a is not positive.

    Differentiable in a, once.
    """
    a = mx.broadcast_to(real(a), shape)
    d, t, boost = _proposal(key, shape, mx.stop_gradient(a))
    value = mx.maximum(d * (1 + t) * (1 + t) * (1 + t) * mx.exp(boost), _TINY)
    value = _valid(a, value)
    return value * (1 + _shift(mx.log(d) + 3 * mx.log1p(t) + boost, a)) if _pathwise.get() else value


def log_standard_gamma(key: random.Key, shape: tuple, a: Real) -> mx.array:
    """The logarithm of Gamma(a, 1) draws, which never underflows however small a is; else as `standard_gamma`."""
    a = mx.broadcast_to(real(a), shape)
    d, t, boost = _proposal(key, shape, mx.stop_gradient(a))
    value = mx.log(d) + 3 * mx.log1p(t) + boost
    return _valid(a, value) + _shift(value, a) if _pathwise.get() else _valid(a, value)


@contextmanager
def without_derivatives() -> Iterator[None]:
    """The same draws without their derivatives, for a graph that is exported: a custom function cannot be (0.32.4)."""
    token = _pathwise.set(False)
    try:
        yield
    finally:
        _pathwise.reset(token)


def _valid(a: mx.array, value: mx.array) -> mx.array:
    return mx.stop_gradient(mx.where(a > 0, value, mx.nan))


def _proposal(key: random.Key, shape: tuple, a: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """d, t and b such that d (1 + t)^3 e^b has the distribution Gamma(a, 1)."""
    normals, exponentials, boosts = random.split(key, 3)
    low = a < 1
    d = mx.where(low, a + 1, a) - 1 / 3
    scale = mx.rsqrt(9 * d)
    proposed = random.normal(normals, (_ROUNDS, *shape)) * scale
    # Log of the acceptance probability x^2/2 + d - d v + d log v, with x = 3 sqrt(d) t and v = (1 + t)^3 expanded.
    safe = mx.where(proposed > -1, proposed, 0.0)
    log_accept = 3 * d * (mx.log1p(safe) - safe * (1 - safe * (0.5 - safe / 3)))
    accepted = mx.logical_and(proposed > -1, random.exponential(exponentials, (_ROUNDS, *shape)) > -log_accept)
    t = mx.zeros_like(d)
    for i in range(_ROUNDS):
        t = mx.where(accepted[i], proposed[i], t)
    return d, t, mx.where(low, -random.exponential(boosts, shape) / mx.where(low, a, 1.0), 0.0)


def _zeros(log_x: mx.array, a: mx.array) -> mx.array:
    return mx.zeros_like(a)


# Zero, with the derivative in a that a draw x of Gamma(a, 1) has in its logarithm. Only a backward pass pays for it.
_shift: Any = mx.custom_function(_zeros)


@_shift.vjp
def _shift_vjp(primals: tuple, cotangent: mx.array, output: mx.array) -> tuple:
    log_x, a = primals
    return mx.zeros_like(log_x), cotangent * log_gamma_derivative(log_x, a)


@_shift.vmap
def _shift_vmap(inputs: tuple, axes: tuple) -> tuple:
    # Without a rule MLX 0.32.4 maps the function alone and forgets its vjp: gradients through a vmap would be 0.
    lanes = [x[None] if axis is None else mx.moveaxis(x, axis, 0) for x, axis in zip(inputs, axes, strict=True)]
    return _shift(*mx.broadcast_arrays(*lanes)), 0


def log_gamma_derivative(w: mx.array, a: mx.array) -> mx.array:
    """dw/da at a fixed quantile, where e^w has the distribution Gamma(a, 1); relative 1e-4.

    The density of w is p(w) = exp(a w - e^w) / Gamma(a), so that dw/da = -F_a / p is the integral of
    p(w') / p(w) (w' - digamma(a)) over w' > w, or minus that over w' < w. Gauss-Legendre on the shorter side.
    """
    a = mx.where(a > 0, a, 1.0)
    x = mx.exp(w)
    upper = x > a
    sign = mx.where(upper, 1.0, -1.0)
    # where the exponent below has fallen to about -16
    reach = mx.where(upper, x, a)
    reach = 16 / reach + mx.sqrt(32 / reach)
    reach = mx.where(upper, mx.log1p(reach), reach)
    t = (sign * reach)[..., None] * mx.array(_NODES)
    ratio = mx.exp(a[..., None] * t - x[..., None] * mx.expm1(t))
    total = sign * reach * mx.sum(mx.array(_WEIGHTS) * ratio * ((w - digamma(a))[..., None] + t), axis=-1)
    # For large shapes w - digamma(a) cancels; there the normal deviate of Wilson and Hilferty (1931) stays put.
    d = mx.maximum(a - 1 / 3, 1.0)
    root = mx.exp((w - mx.log(d)) / 3)
    return mx.where(a > 2e3, (1.5 / root - 0.5) / d, total)
