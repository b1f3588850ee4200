"""Supports: the sets in which values and parameters of distributions lie.

Conditions are joined by ``mx.logical_and``: under ``mx.vmap``, MLX 0.32.4 gets ``&`` wrong where one side is unbatched.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx


class Support:
    """A set of values. ``event_ndim`` is how many trailing axes make up one value.

    ``contains(x)`` is a boolean array over the batch axes of ``x``; ``interior`` is a point well inside, which
    stands in for values outside while a density is computed, so that its gradient stays finite.
    """

    __slots__ = ("phrase",)
    event_ndim = 0
    discrete = False

    def __init__(self, phrase: str):
        self.phrase = phrase

    def contains(self, x: mx.array) -> mx.array:
        raise NotImplementedError

    def admits(self, number: float) -> bool:
        """Whether a host number lies in the set, found on the host."""
        return self.admits_all(float(number))

    def admits_all(self, data: Any) -> bool:
        """Whether all of a host array, or of nested lists of numbers, lies in the set."""
        try:
            x = mx.array(data, dtype=mx.float32)
        except (TypeError, ValueError):
            return False
        return x.ndim >= self.event_ndim and bool(mx.all(self.contains(x)).item())

    def interior(self, x: mx.array) -> mx.array:
        """A point inside the set, of the shape of ``x`` (or broadcasting to it)."""
        raise NotImplementedError

    def enumerate(self) -> mx.array:
        """Every value of a finite set, stacked on axis 0."""
        raise NotImplementedError(f"the support {self!r} is not finite")

    def __repr__(self) -> str:
        return self.phrase


class Real(Support):
    __slots__ = ()

    def admits(self, number: float) -> bool:
        return math.isfinite(number)

    def contains(self, x: mx.array) -> mx.array:
        return mx.abs(x) < math.inf

    def interior(self, x: mx.array) -> mx.array:
        return mx.array(0.0)


class Interval(Support):
    """Between two bounds, which are numbers or arrays; each end belongs to the set or does not."""

    __slots__ = ("lo", "hi", "closed_lo", "closed_hi")

    def __init__(self, lo: Any, hi: Any, closed_lo: bool = True, closed_hi: bool = True, phrase: str = ""):
        super().__init__(phrase or f"{'[' if closed_lo else '('}{_show(lo)}, {_show(hi)}{']' if closed_hi else ')'}")
        self.lo, self.hi, self.closed_lo, self.closed_hi = lo, hi, closed_lo, closed_hi

    def admits(self, number: float) -> bool:
        above = number >= self.lo if self.closed_lo else number > self.lo
        return bool(above and (number <= self.hi if self.closed_hi else number < self.hi) and number < math.inf)

    def contains(self, x: mx.array) -> mx.array:
        above = x >= self.lo if self.closed_lo else x > self.lo
        if _is_inf(self.hi):
            return mx.logical_and(above, x < math.inf)
        return mx.logical_and(above, x <= self.hi if self.closed_hi else x < self.hi)

    def interior(self, x: mx.array) -> mx.array:
        return mx.array(self.lo + 1.0 if _is_inf(self.hi) else 0.5 * (self.lo + self.hi))


class Integers(Support):
    """Whole numbers between two bounds, both included; ``hi`` may be infinite."""

    __slots__ = ("lo", "hi")
    discrete = True

    def __init__(self, lo: Any, hi: Any, phrase: str = ""):
        super().__init__(phrase or f"whole numbers {_show(lo)}..{_show(hi)}")
        self.lo, self.hi = lo, hi

    def admits(self, number: float) -> bool:
        return bool(self.lo <= number <= self.hi) and math.isfinite(number) and number == math.floor(number)

    def contains(self, x: mx.array) -> mx.array:
        inside = x >= self.lo if not _is_inf(self.lo) else mx.abs(x) < math.inf
        inside = mx.logical_and(inside, x < math.inf if _is_inf(self.hi) else x <= self.hi)
        return mx.logical_and(inside, mx.floor(x) == x) if mx.issubdtype(x.dtype, mx.floating) else inside

    def interior(self, x: mx.array) -> mx.array:
        return mx.array(0) if _is_inf(self.lo) else mx.array(self.lo)

    def enumerate(self) -> mx.array:
        lo, hi = (int(b) if isinstance(b, (int, float)) else int(b.item()) for b in (self.lo, self.hi))
        return mx.arange(lo, hi + 1, dtype=mx.int32)


class Simplex(Support):
    """Vectors of nonnegative numbers that sum to one."""

    __slots__ = ("size",)
    event_ndim = 1

    def __init__(self, size: int | None = None, phrase: str = "a probability vector"):
        super().__init__(phrase)
        self.size = size

    def contains(self, x: mx.array) -> mx.array:
        # The sum of k rounded float32 numbers is off by about sqrt(k) half ulps; 1e-5 leaves room for k = 10^4.
        return mx.logical_and(mx.all(x >= 0, axis=-1), mx.abs(mx.sum(x, axis=-1) - 1) < 1e-5)

    def interior(self, x: mx.array) -> mx.array:
        return mx.full((x.shape[-1],), 1.0 / x.shape[-1])


class Vector(Support):
    """Vectors whose every element lies in another set."""

    __slots__ = ("element", "event_ndim")

    def __init__(self, element: Support, event_ndim: int = 1, phrase: str = ""):
        super().__init__(phrase or f"vectors of {element.phrase}")
        self.element, self.event_ndim = element, event_ndim + element.event_ndim

    @property
    def discrete(self) -> bool:
        return self.element.discrete

    def contains(self, x: mx.array) -> mx.array:
        inside = self.element.contains(x)
        extra = self.event_ndim - self.element.event_ndim
        return mx.all(inside, axis=tuple(range(inside.ndim - extra, inside.ndim)))

    def interior(self, x: mx.array) -> mx.array:
        return self.element.interior(x)


class Counts(Support):
    """Vectors of whole numbers, 0 or more, that sum to ``total``, a number or an array."""

    __slots__ = ("total",)
    event_ndim = 1
    discrete = True

    def __init__(self, total: Any, phrase: str = ""):
        super().__init__(phrase or f"whole numbers, 0 or more, that sum to {_show(total)}")
        self.total = total

    def contains(self, x: mx.array) -> mx.array:
        return mx.logical_and(mx.all(natural.contains(x), axis=-1), mx.sum(x, axis=-1) == self.total)

    def interior(self, x: mx.array) -> mx.array:
        return mx.where(mx.arange(x.shape[-1]) == 0, mx.array(self.total)[..., None], 0)


class Ordered(Support):
    """Vectors of increasing real numbers."""

    __slots__ = ()
    event_ndim = 1

    def __init__(self, phrase: str = "a vector of increasing numbers"):
        super().__init__(phrase)

    def contains(self, x: mx.array) -> mx.array:
        return mx.logical_and(mx.all(mx.abs(x) < math.inf, axis=-1), mx.all(x[..., 1:] > x[..., :-1], axis=-1))

    def interior(self, x: mx.array) -> mx.array:
        return mx.arange(x.shape[-1])


class PositiveDefinite(Support):
    """Symmetric positive definite matrices."""

    __slots__ = ()
    event_ndim = 2

    def contains(self, x: mx.array) -> mx.array:
        from genmlx.backend.linalg import cholesky

        factor = cholesky(x)
        return mx.all(factor == factor, axis=(-2, -1))

    def interior(self, x: mx.array) -> mx.array:
        return mx.eye(x.shape[-1])


class CholeskyCorrelation(Support):
    """Lower triangular matrices with positive diagonal and rows of length one."""

    __slots__ = ()
    event_ndim = 2

    def contains(self, x: mx.array) -> mx.array:
        lower = mx.all(mx.abs(x - mx.tril(x)) == 0, axis=(-2, -1))
        unit = mx.all(mx.abs(mx.sum(x * x, axis=-1) - 1) < 1e-5, axis=-1)
        positive_diagonal = mx.all(mx.diagonal(x, axis1=-2, axis2=-1) > 0, axis=-1)
        return mx.logical_and(mx.logical_and(lower, unit), positive_diagonal)

    def interior(self, x: mx.array) -> mx.array:
        return mx.eye(x.shape[-1])


def _is_inf(bound: Any) -> bool:
    return isinstance(bound, float) and math.isinf(bound)


def _show(bound: Any) -> str:
    if isinstance(bound, mx.array) and bound.size == 1:
        try:
            bound = bound.item()
        except ValueError:  # traced: it has no value to show
            return "..."
    return f"{bound:g}" if isinstance(bound, (int, float)) else "..."


real = Real("a real number")
positive = Interval(0.0, math.inf, closed_lo=False, phrase="positive")
nonnegative = Interval(0.0, math.inf, phrase="nonnegative")
unit_interval = Interval(0.0, 1.0, phrase="between 0 and 1")
open_unit_interval = Interval(0.0, 1.0, False, False, phrase="strictly between 0 and 1")
boolean = Integers(0, 1, phrase="0 or 1")
natural = Integers(0, math.inf, phrase="a whole number, 0 or more")
positive_integer = Integers(1, math.inf, phrase="a whole number, 1 or more")
integer = Integers(-math.inf, math.inf, phrase="a whole number")
simplex = Simplex()
real_vector = Vector(real, phrase="a vector of real numbers")
positive_vector = Vector(positive, phrase="a vector of positive numbers")
positive_definite = PositiveDefinite("a symmetric positive definite matrix")
cholesky_correlation = CholeskyCorrelation("a Cholesky factor of a correlation matrix")
