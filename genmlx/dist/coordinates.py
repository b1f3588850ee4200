"""Coordinates of numbers, vectors and matrices: maps from R^size onto each kind of set, with their Jacobians.

Values that float32 rounds onto an end of their set are moved to the next number inside.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import mlx.core as mx

from genmlx.backend import special
from genmlx.backend.linalg import cholesky

_TINY, _ULP = 1.1754944e-38, 2.0**-23
_LOG_TINY, _LOG_HUGE = -87.0, 88.0  # what `exp` takes to a normal float32


class Coordinates:
    """``size`` real numbers for a value of ``shape``: ``forward(u) -> (x, log |det J|)`` and ``inverse(x) -> u``.

    ``u`` is [size]; for more than one, ``mx.vmap``. Both are differentiable. The inverse of a value outside of the set,
    or at an end of it that only infinite coordinates reach, is not finite.
    """

    __slots__ = ("shape", "size")

    def __init__(self, shape: tuple, size: int | None = None):
        self.shape, self.size = shape, math.prod(shape) if size is None else size

    def forward(self, u: mx.array) -> tuple[mx.array, mx.array]:
        raise NotImplementedError

    def inverse(self, x: mx.array) -> mx.array:
        raise NotImplementedError


# numbers


class Identity(Coordinates):
    """x = u."""

    __slots__ = ()

    def forward(self, u: mx.array) -> tuple[mx.array, mx.array]:
        return u.reshape(self.shape), mx.array(0.0)

    def inverse(self, x: mx.array) -> mx.array:
        return x.reshape(-1)


class Bounded(Coordinates):
    """Numbers, each between two bounds that broadcast against them."""

    __slots__ = ("lo", "hi")

    def __init__(self, shape: tuple, lo: Any = None, hi: Any = None):
        super().__init__(shape)
        self.lo, self.hi = lo, hi

    def forward(self, u: mx.array) -> tuple[mx.array, mx.array]:
        x, log_slope = self.number(u.reshape(self.shape))
        return x, mx.sum(mx.broadcast_to(log_slope, self.shape))

    def inverse(self, x: mx.array) -> mx.array:
        return mx.broadcast_to(self.coordinate(x), self.shape).reshape(-1)

    def number(self, u: mx.array) -> tuple[mx.array, mx.array]:
        """x and log dx/du, elementwise."""
        raise NotImplementedError

    def coordinate(self, x: mx.array) -> mx.array:
        raise NotImplementedError


class Above(Bounded):
    """x = lo + e^u."""

    __slots__ = ()

    def number(self, u: mx.array) -> tuple[mx.array, mx.array]:
        return mx.maximum(self.lo + _exp(u), _next_above(self.lo)), u

    def coordinate(self, x: mx.array) -> mx.array:
        return mx.log(x - self.lo)


class Below(Bounded):
    """x = hi - e^u."""

    __slots__ = ()

    def number(self, u: mx.array) -> tuple[mx.array, mx.array]:
        return mx.minimum(self.hi - _exp(u), _next_below(self.hi)), u

    def coordinate(self, x: mx.array) -> mx.array:
        return mx.log(self.hi - x)


class Between(Bounded):
    """x = lo + (hi - lo) / (1 + e^-u), measured from the nearer end."""

    __slots__ = ()

    def number(self, u: mx.array) -> tuple[mx.array, mx.array]:
        width = special.real(self.hi - self.lo)
        distance = special.magnitude(u)
        part = width * special.sigmoid(-distance)
        x = mx.where(u < 0, self.lo + part, self.hi - part)
        x = mx.minimum(mx.maximum(x, _next_above(self.lo)), _next_below(self.hi))
        possible = width > 0
        log_width = mx.where(possible, mx.log(mx.where(possible, width, 1.0)), -math.inf)
        return x, log_width - distance - 2 * mx.log1p(mx.exp(-distance))

    def coordinate(self, x: mx.array) -> mx.array:
        return mx.log(x - self.lo) - mx.log(self.hi - x)


class Somewhere(Bounded):
    """Bounds of which it is not known, or differs between elements, whether they are finite."""

    __slots__ = ()

    def _cases(self) -> tuple[mx.array, mx.array, mx.array, Between, Above, Below]:
        lo, hi = special.real(self.lo), special.real(self.hi)
        below, above = (mx.isfinite(mx.stop_gradient(bound)) for bound in (lo, hi))
        low, high = mx.where(below, lo, 0.0), mx.where(above, hi, 0.0)
        both = mx.logical_and(below, above)
        between = Between(self.shape, mx.where(both, low, 0.0), mx.where(both, high, 1.0))
        return below, above, both, between, Above(self.shape, low), Below(self.shape, hi=high)

    def number(self, u: mx.array) -> tuple[mx.array, mx.array]:
        below, above, both, between, from_lo, from_hi = self._cases()
        inside, inside_slope = between.number(u)
        x = mx.where(below, from_lo.number(u)[0], mx.where(above, from_hi.number(u)[0], u))
        one = mx.logical_or(below, above)
        return mx.where(both, inside, x), mx.where(both, inside_slope, mx.where(one, u, 0.0))

    def coordinate(self, x: mx.array) -> mx.array:
        below, above, both, between, from_lo, from_hi = self._cases()
        u = mx.where(below, from_lo.coordinate(x), mx.where(above, from_hi.coordinate(x), x))
        return mx.where(both, between.coordinate(x), u)


class Circle(Coordinates):
    """An angle as the direction of a vector in the plane: two coordinates, no seam at +-pi and no point at infinity.

    Not one to one: the length r of the vector has a density of its own, proportional to r e^(-(r - 1)^2 / 2 s^2) with
    s = 1/4, whatever the angle. So what takes the place of log |det J| is the log of that density over r, and the
    integral over the plane is that over the circle.
    """

    __slots__ = ()
    _WIDTH = 0.25

    def __init__(self, shape: tuple):
        super().__init__(shape, 2 * math.prod(shape))

    def forward(self, u: mx.array) -> tuple[mx.array, mx.array]:
        u = u.reshape(*self.shape, 2)
        a, b = u[..., 0], u[..., 1]
        somewhere = mx.stop_gradient(a * a + b * b) > 0
        a = mx.where(somewhere, a, 1e-6)
        s = self._WIDTH
        # the integral of r e^(-(r - 1)^2 / 2 s^2) over r > 0
        mass = s * s * math.exp(-0.5 / s**2) + s * math.sqrt(0.5 * math.pi) * (1 + math.erf(1 / (s * math.sqrt(2))))
        r = mx.sqrt(a * a + b * b)
        return mx.arctan2(b, a), mx.sum(-0.5 * ((r - 1) / s) ** 2 - math.log(mass))

    def inverse(self, x: mx.array) -> mx.array:
        return mx.stack([mx.cos(x), mx.sin(x)], axis=-1).reshape(-1)


# vectors and matrices


class Sticks(Coordinates):
    """Probability vectors by breaking sticks, centred as in Stan (reference manual 10.7): u = 0 is the uniform one."""

    __slots__ = ()

    def __init__(self, shape: tuple):
        super().__init__(shape, math.prod(shape[:-1]) * (shape[-1] - 1))

    def _centre(self) -> mx.array:
        return mx.log(mx.arange(self.shape[-1] - 1, 0, -1).astype(mx.float32))

    def forward(self, u: mx.array) -> tuple[mx.array, mx.array]:
        # Element k is a share of what those before it left; all in logs, so that nothing cancels.
        v = u.reshape(*self.shape[:-1], self.shape[-1] - 1) - self._centre()
        log_share, log_rest = special.log_sigmoid(v), special.log_sigmoid(-v)
        left = mx.cumsum(log_rest, axis=-1)
        before = mx.concatenate([mx.zeros((*self.shape[:-1], 1)), left], axis=-1)
        end = mx.zeros((*self.shape[:-1], 1))
        log_x = before + mx.concatenate([log_share, end], axis=-1)
        return _exp(log_x), mx.sum(log_share + log_rest + before[..., :-1])

    def inverse(self, x: mx.array) -> mx.array:
        after = mx.cumsum(x, axis=-1, reverse=True)[..., 1:]
        return (mx.log(x[..., :-1]) - mx.log(after) + self._centre()).reshape(-1)


class Increasing(Coordinates):
    """x_0 = u_0, x_k = x_(k-1) + e^(u_k)."""

    __slots__ = ()

    def forward(self, u: mx.array) -> tuple[mx.array, mx.array]:
        u = u.reshape(self.shape)
        steps = mx.concatenate([u[..., :1], _exp(u[..., 1:])], axis=-1)
        return mx.cumsum(steps, axis=-1), mx.sum(u[..., 1:])

    def inverse(self, x: mx.array) -> mx.array:
        return mx.concatenate([x[..., :1], mx.log(x[..., 1:] - x[..., :-1])], axis=-1).reshape(-1)


class Vine(Coordinates):
    """Cholesky factors of correlation matrices by partial correlations tanh u (Lewandowski, Kurowicka and Joe 2009)."""

    __slots__ = ()

    def __init__(self, shape: tuple):
        k = shape[-1]
        super().__init__(shape, math.prod(shape[:-2]) * (k * (k - 1) // 2))

    def forward(self, u: mx.array) -> tuple[mx.array, mx.array]:
        k = self.shape[-1]
        v = _lower(u, self.shape, 0)
        # log sqrt(1 - tanh^2), and its sum over the columns before
        log_rest = math.log(2) - special.magnitude(v) - mx.log1p(mx.exp(-2 * special.magnitude(v)))
        log_rest = mx.tril(log_rest, -1)
        before = mx.cumsum(log_rest, axis=-1, inclusive=False)
        share = _exp(before)
        x = mx.tanh(v) * share + mx.eye(k) * share
        return x, mx.sum(mx.tril(2 * log_rest + before, -1))

    def inverse(self, x: mx.array) -> mx.array:
        squares = x * x
        after = mx.cumsum(squares, axis=-1, reverse=True, inclusive=False)
        below = mx.tri(self.shape[-1], k=-1) > 0
        tail = mx.sqrt(mx.where(below, after, 1.0))
        return _below(mx.arcsinh(mx.where(below, x, 0.0) / tail), 0)


class LogCholesky(Coordinates):
    """Positive definite L L^T: u is the lower triangle of L, its diagonal as logs (Pinheiro and Bates 1996)."""

    __slots__ = ()

    def __init__(self, shape: tuple):
        k = shape[-1]
        super().__init__(shape, math.prod(shape[:-2]) * (k * (k + 1) // 2))

    def forward(self, u: mx.array) -> tuple[mx.array, mx.array]:
        k = self.shape[-1]
        lower = _lower(u, self.shape, 1)
        logs = mx.diagonal(lower, axis1=-2, axis2=-1)
        factor = mx.tril(lower, -1) + mx.eye(k) * _exp(logs)[..., None]
        x = factor @ mx.swapaxes(factor, -1, -2)
        powers = mx.arange(k + 1, 1, -1).astype(mx.float32)
        copies = math.prod(self.shape[:-2])
        return 0.5 * (x + mx.swapaxes(x, -1, -2)), mx.sum(powers * logs) + copies * k * math.log(2)

    def inverse(self, x: mx.array) -> mx.array:
        factor = cholesky(x)
        logs = mx.log(mx.diagonal(factor, axis1=-2, axis2=-1))
        return _below(mx.tril(factor, -1) + mx.eye(self.shape[-1]) * logs[..., None], 1)


def _lower(u: mx.array, shape: tuple, diagonal: int) -> mx.array:
    """Lower triangular matrices of their elements, row by row; with or without the diagonal."""
    k, lead = shape[-1], shape[:-2]
    lengths = [i + diagonal for i in range(k)]
    rows = mx.split(u.reshape(*lead, sum(lengths)), list(accumulate(lengths))[:-1], axis=-1)
    padded = [
        mx.concatenate([row, mx.zeros((*lead, k - n), dtype=u.dtype)], axis=-1)
        for row, n in zip(rows, lengths, strict=True)
    ]
    return mx.stack(padded, axis=-2)


def _below(matrix: mx.array, diagonal: int) -> mx.array:
    rows = [matrix[..., i, : i + diagonal] for i in range(matrix.shape[-1])]
    return mx.concatenate(rows, axis=-1).reshape(-1)


def _exp(u: mx.array) -> mx.array:
    return special.exp(mx.clip(u, _LOG_TINY, _LOG_HUGE))


def _next_above(bound: Any) -> Any:
    if isinstance(bound, (int, float)):
        return bound + _ULP * abs(bound) + _TINY
    return mx.stop_gradient(bound + _ULP * mx.abs(bound) + _TINY)


def _next_below(bound: Any) -> Any:
    if isinstance(bound, (int, float)):
        return bound - _ULP * abs(bound) - _TINY
    return mx.stop_gradient(bound - _ULP * mx.abs(bound) - _TINY)
