"""Unconstrained coordinates of supports: from each kind of set to its map from R^size, with the log |det J|.

Densities of vectors and matrices are with respect to their free elements, as everywhere in ``dist``: all but the last
of a probability vector, those below the diagonal of a Cholesky correlation factor, the lower triangle of a symmetric
matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce, singledispatch
from typing import Any

import mlx.core as mx

from genmlx.choicemap import ChoiceMap
from genmlx.dist.circle import circle
from genmlx.dist.coordinates import (
    Above,
    Below,
    Between,
    Circle,
    Coordinates,
    Identity,
    Increasing,
    LogCholesky,
    Somewhere,
    Sticks,
    Vine,
)
from genmlx.dist.delta import Point
from genmlx.dist.distribution import Distribution, DistTrace
from genmlx.dist.iid import Repeated, _axes_first, _axes_last
from genmlx.dist.mixture import Union, UnionOverAxis
from genmlx.dist.support import (
    CholeskyCorrelation,
    Interval,
    Ordered,
    PositiveDefinite,
    Real,
    Simplex,
    Support,
    Vector,
)
from genmlx.dist.transformed import Image
from genmlx.dist.values import as_site_value
from genmlx.errors import UsageError
from genmlx.free import Fixed, Free


@singledispatch
def unconstrained(support: Support, shape: tuple) -> Coordinates:
    """The coordinates of values of ``shape``, batch axes included, that lie in a set.

    >>> from genmlx.dist.support import unit_interval
    >>> x, log_det = unconstrained(unit_interval, ()).forward(mx.array([0.0]))
    >>> x.item(), round(log_det.item(), 6)          # 1/2, log 1/4
    (0.5, -1.386294)
    """
    what = "discrete values have" if support.discrete else f"the set {support!r} has"
    raise UsageError(f"{what} no unconstrained coordinates", expected="a continuous set of genmlx.dist.support")


def place(family: Distribution, args: tuple, leaf: Free | Fixed) -> tuple[DistTrace, Any]:
    """What ``generate`` does at a site whose constraint is one of these leaves."""
    params = family.params(args)
    support = family.support_of(*params)
    if support.discrete and not isinstance(support, Point):
        raise UsageError(f"a choice of {family.__name__} is discrete: it has no unconstrained coordinates")
    shape = (*family.batch_shape(*params), *family.event_shape(*params))
    if isinstance(leaf, Fixed):
        value = as_site_value(leaf.array, support.discrete)
        family._require_shape(value, params)
        score = family._score(value, params)
        return PackedTrace(family, args, value, score, unconstrained(support, shape).inverse(value)), score
    value, log_det = unconstrained(support, shape).forward(leaf.array)
    score = family._score(value, params)
    return DistTrace(family, args, value, score), score + log_det


class PackedTrace(DistTrace):
    """A draw that shows the unconstrained coordinates of its value as its choice."""

    __slots__ = ("coordinates",)
    data = ("args", "retval", "score", "coordinates")

    coordinates: mx.array

    def __init__(self, gen_fn: Any, args: tuple, value: Any, score: Any, coordinates: mx.array):
        super().__init__(gen_fn, args, value, score)
        object.__setattr__(self, "coordinates", coordinates)

    @property
    def choices(self) -> ChoiceMap:
        return ChoiceMap(self.coordinates)


# sets made of others


class Elements(Coordinates):
    """The elements of a ``Repeated``, whose own axes come before the batch axes of the set that each lies in."""

    __slots__ = ("each", "extra", "inner")

    def __init__(self, support: Repeated, shape: tuple):
        self.inner = support.element.event_ndim
        self.extra = support.event_ndim - self.inner
        lead = len(shape) - support.event_ndim
        first = (*shape[lead : lead + self.extra], *shape[:lead], *shape[lead + self.extra :])
        self.each = unconstrained(support.element, first)
        super().__init__(shape, self.each.size)

    def forward(self, u: mx.array) -> tuple[mx.array, mx.array]:
        x, log_det = self.each.forward(u)
        return _axes_last(x, self.extra, self.inner), log_det

    def inverse(self, x: mx.array) -> mx.array:
        return self.each.inverse(_axes_first(x, self.extra, self.inner))


class Mapped(Coordinates):
    """A bijector of values of another set."""

    __slots__ = ("base", "bijector")

    def __init__(self, support: Image, shape: tuple):
        self.base, self.bijector = unconstrained(support.base, shape), support.bijector
        super().__init__(shape, self.base.size)

    def forward(self, u: mx.array) -> tuple[mx.array, mx.array]:
        x, log_det = self.base.forward(u)
        return self.bijector.forward(x), log_det + mx.sum(self.bijector.log_abs_det_jacobian(x))

    def inverse(self, x: mx.array) -> mx.array:
        return self.base.inverse(self.bijector.inverse(x))


class Nothing(Coordinates):
    """The value of a delta: no coordinates."""

    __slots__ = ("value",)

    def __init__(self, shape: tuple, value: mx.array):
        super().__init__(shape, 0)
        self.value = value

    def forward(self, u: mx.array) -> tuple[mx.array, mx.array]:
        return mx.broadcast_to(self.value, self.shape), mx.array(0.0)

    def inverse(self, x: mx.array) -> mx.array:
        return mx.zeros((0,))


unconstrained.register(Real, lambda support, shape: Identity(shape))
unconstrained.register(Simplex, lambda support, shape: Sticks(shape))
unconstrained.register(Ordered, lambda support, shape: Increasing(shape))
unconstrained.register(CholeskyCorrelation, lambda support, shape: Vine(shape))
unconstrained.register(PositiveDefinite, lambda support, shape: LogCholesky(shape))
unconstrained.register(Vector, lambda support, shape: unconstrained(support.element, shape))
unconstrained.register(Repeated, Elements)
unconstrained.register(Image, Mapped)
unconstrained.register(Point, lambda support, shape: Nothing(shape, support.value))


@unconstrained.register
def _(support: Interval, shape: tuple) -> Coordinates:
    if support is circle:
        return Circle(shape)
    lo, hi = _finite(support.lo), _finite(support.hi)
    if lo is None or hi is None:
        return Somewhere(shape, support.lo, support.hi)
    kind = (Between if hi else Above) if lo else Below if hi else None
    return Identity(shape) if kind is None else kind(shape, support.lo, support.hi)


@unconstrained.register
def _(support: Union, shape: tuple) -> Coordinates:
    # Of intervals their hull: where it has gaps, the density is zero there.
    if any(isinstance(part, Real) for part in support.parts):
        return Identity(shape)
    if all(isinstance(part, Interval) for part in support.parts):
        lows, highs = ([getattr(part, end) for part in support.parts] for end in ("lo", "hi"))
        return unconstrained(Interval(_extreme(lows, min, mx.minimum), _extreme(highs, max, mx.maximum)), shape)
    return unconstrained(support.parts[0], shape)


@unconstrained.register
def _(support: UnionOverAxis, shape: tuple) -> Coordinates:
    element = support.element
    if not isinstance(element, Interval):
        return unconstrained(element, shape)
    lo, hi = element.lo, element.hi
    lo = mx.min(lo, axis=-1) if isinstance(lo, mx.array) and lo.ndim else lo
    hi = mx.max(hi, axis=-1) if isinstance(hi, mx.array) and hi.ndim else hi
    return unconstrained(Interval(lo, hi), shape)


def _extreme(bounds: list, of_numbers: Callable, of_arrays: Callable) -> Any:
    if all(isinstance(bound, (int, float)) for bound in bounds):
        return of_numbers(bounds)
    return reduce(of_arrays, bounds)


def _finite(bound: Any) -> bool | None:
    """Whether a bound is finite, or all of an array are; None where they differ, or nobody knows while it is traced."""
    if isinstance(bound, (int, float)):
        return math.isfinite(bound)
    try:
        known = mx.isfinite(bound)
        return True if mx.all(known).item() else None if mx.any(known).item() else False
    except ValueError:
        return None
