"""Which choices of a model are latent, and which values each of them can take: the axes of an enumeration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.choicemap import ChoiceMap
from genmlx.combinators.sequence import SequenceTrace
from genmlx.combinators.switch import SwitchTrace
from genmlx.combinators.vmap import VmapTrace
from genmlx.dist.delta import Point
from genmlx.dist.distribution import DistTrace
from genmlx.dist.mixture import Union, UnionOverAxis, is_discrete
from genmlx.dist.support import Integers, Support, Vector
from genmlx.dist.values import as_array
from genmlx.errors import ParameterError, UsageError, show_address
from genmlx.handlers import Spliced
from genmlx.inference.exact.results import doubles
from genmlx.masked import active_of, host_value
from genmlx.trace import Trace


class Latent:
    """The axes of one choice: one for each element of its value, all of the same ``values`` [K].

    ``log_volumes`` [K] are those of the cells of a continuous choice's grid, None for a discrete one. A choice that is
    ``optional`` exists in some runs only: its axes have one more place, the last, for the runs without it.
    """

    __slots__ = ("address", "shape", "values", "log_volumes", "optional", "first")

    def __init__(self, address: tuple, shape: tuple, values: mx.array, log_volumes: Any, optional: bool):
        self.address, self.shape, self.values, self.optional = address, shape, values, optional
        self.log_volumes: mx.array | None = log_volumes
        self.first = 0

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def places(self) -> int:
        return len(self.values) + self.optional

    @property
    def axes(self) -> list[int]:
        return list(range(self.first, self.first + self.size))

    @property
    def inputs(self) -> tuple[mx.array, mx.array]:
        """The value at each place, and whether it stands for no value."""
        if not self.optional:
            return self.values, mx.zeros((self.places,), dtype=mx.bool_)
        return mx.concatenate([self.values, self.values[:1]]), mx.arange(self.places) == self.places - 1

    def widened(self, lo: int, hi: int) -> bool:
        """Whether the values had to become more, to hold all whole numbers from lo to hi."""
        ends: Any = self.values[0].item(), self.values[-1].item()
        first, last = ends
        if first <= lo and hi <= last:
            return False
        self.values = mx.arange(min(first, lo), max(last, hi) + 1, dtype=mx.int32)
        return True


class Found(NamedTuple):
    """A latent choice as it is found in a run: its whole numbers from ``lo`` to ``hi``, or None if it has a grid.

    ``density`` is its log density, the greatest where several branches make it.
    """

    address: tuple
    shape: tuple
    dtype: mx.Dtype
    discrete: bool
    active: Any
    lo: Any
    hi: Any
    density: Any

    @property
    def known(self) -> bool:
        """Whether the bounds do not depend on other choices."""
        return not isinstance(self.lo, mx.array) and not isinstance(self.hi, mx.array)


def found_in(trace: Trace, observations: ChoiceMap, grids: dict) -> list[Found]:
    """The latent choices of a run, in order. Those that follow from others (deltas) are left out."""
    found = []
    for address, leaf in trace.choices.items():
        if address in observations or 0 in leaf.shape:
            continue
        draws = list(draws_at(trace, address))
        supports = [draw.gen_fn.support_of(*draw.gen_fn.params(draw.args)) for draw in draws]
        if supports and all(isinstance(support, Point) for support in supports):
            continue
        lo = hi = None
        if address in grids:
            for support in supports:
                _require_griddable(trace, address, support, grids[address][1] is not None)
        else:
            lo, hi = _range(trace, address, draws, supports)
        density = draws[0].score if draws else mx.array(0.0)
        for draw in draws[1:]:
            density = mx.maximum(density, draw.score)
        if len({is_discrete(support) for support in supports}) > 1:
            raise _cannot(trace, address, "is discrete in one branch and continuous in another", "one of them")
        discrete = all(map(is_discrete, supports)) if supports else not mx.issubdtype(leaf.dtype, mx.floating)
        found.append(Found(address, tuple(leaf.shape), leaf.dtype, discrete, active_of(leaf), lo, hi, density))
    return found


def draws_at(trace: Trace | None, address: tuple) -> Iterator[Any]:
    """The draws that make the choice at an address: of a ``switch``, those of each branch that has it."""
    if isinstance(trace, DistTrace):
        if not address:
            yield trace
    elif isinstance(trace, SwitchTrace):
        for branch in trace.branches.values():
            if address in branch.choices:
                yield from draws_at(branch, address)
    elif isinstance(trace, VmapTrace):
        yield from draws_at(trace.lanes, address)
    elif isinstance(trace, SequenceTrace):
        yield from draws_at(trace.elements[address[0]], address[1:])
    elif isinstance(subtraces := getattr(trace, "subtraces", None), dict):
        for prefix, inner in subtraces.items():
            spliced = type(prefix[0]) is Spliced
            if address in inner.choices if spliced else address[: len(prefix)] == prefix:
                yield from draws_at(inner, address if spliced else address[len(prefix) :])
    elif isinstance(inner := getattr(trace, "inner", None), Trace):
        yield from draws_at(inner, address)


def terms(trace: Any) -> list[mx.array]:
    """The parts of a trace's score, each of which depends on a few choices only."""
    if isinstance(subtraces := getattr(trace, "subtraces", None), dict):
        parts = list(subtraces.values())
    elif isinstance(trace, SequenceTrace) and isinstance(trace.elements, list):
        parts = trace.elements
    elif isinstance(inner := getattr(trace, "inner", None), Trace) and not hasattr(trace, "active"):
        parts = [inner]
    else:
        return [trace.score]
    return [term for part in parts for term in terms(part)]


def _range(trace: Trace, address: tuple, draws: list, supports: list[Support]) -> tuple[Any, Any]:
    if not draws:
        raise _cannot(trace, address, "is made by a generative function that hides its distribution", "a grid for it")
    if not all(map(is_discrete, supports)):
        family = next(d.gen_fn for d, s in zip(draws, supports, strict=True) if not is_discrete(s))
        example = f"grids={{{show_address(address)}: mx.linspace(-5, 5, 200)}}"
        raise _cannot(trace, address, f"is continuous ({family})", "a grid of points for it", example)
    parts = [part for support in supports for part in _integers(support)]
    if any(part is None for part in parts):
        shown = ", ".join(repr(s) for s in supports)
        raise _cannot(trace, address, f"takes values that are {shown}", "single whole numbers")
    lo, hi = _extreme([p.lo for p in parts], mx.min), _extreme([p.hi for p in parts], mx.max)
    for bound in (lo, hi):
        if not isinstance(bound, mx.array):
            require_finite(trace.gen_fn, address, bound)
    return lo, hi


def require_finite(gen_fn: Any, address: tuple, bound: float) -> None:
    if not math.isfinite(bound):
        example = f"grids={{{show_address(address)}: mx.arange(100)}}"
        expected = "a finite support, or a grid of the values that matter"
        raise _cannot(gen_fn, address, "has infinitely many values", expected, example)


def _integers(support: Support) -> list:
    """The ranges of whole numbers that a support is made of; None for what is no such range."""
    if isinstance(support, (Vector, UnionOverAxis)):
        return _integers(support.element)
    if isinstance(support, Union):
        return [part for each in support.parts for part in _integers(each)]
    return [support if isinstance(support, Integers) else None]


def _extreme(bounds: list, pick: Any) -> Any:
    """The least or the greatest of bounds: a number, or an array while it is traced."""
    each = [pick(mx.array(bound)) for bound in bounds]
    found = each[0] if len(each) == 1 else pick(mx.stack(each))
    known = host_value(found)
    return found if known is None else known


def _require_griddable(trace: Trace, address: tuple, support: Support, volumes: bool) -> None:
    if support.event_ndim and not isinstance(support, Vector):
        raise _cannot(trace, address, f"takes values that are {support!r}, which no grid of elements fills", "numbers")
    if volumes and is_discrete(support):
        raise _cannot(trace, address, "is discrete, and its values have no volumes", "points alone")


def _cannot(of: Any, address: tuple, why: str, expected: str, hint: str | None = None) -> UsageError:
    gen_fn = of.gen_fn if isinstance(of, Trace) else of
    return UsageError(
        f"a latent choice cannot be enumerated: it {why},", address=address, gen_fn=gen_fn, expected=expected, hint=hint
    )


# grids


def on_grid(found: Found, points: mx.array, volumes: mx.array | None) -> Latent:
    """A latent at the points of its grid."""
    if not found.discrete and volumes is None:
        volumes = trapezoidal(found.address, points)
    if not mx.issubdtype(found.dtype, mx.floating):
        if not mx.all(points == mx.round(points)).item():
            raise ParameterError("the grid of a whole number has a point that is not,", address=found.address)
        points = points.astype(mx.int32)
    return Latent(found.address, found.shape, points, volumes, found.active is not True)


def read_grid(address: tuple, given: Any) -> tuple[mx.array, mx.array | None]:
    """Points [K], ascending, and log volumes [K] if they are given."""
    import numpy as np

    points, volumes = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    points = doubles("a grid", points)
    if points.ndim != 1 or not points.size or not np.all(np.isfinite(points)) or np.any(np.diff(points) <= 0):
        raise ParameterError(
            f"the grid has shape {list(points.shape)}, or points that do not increase or are not finite,",
            address=address,
            expected="points [K] in ascending order, or (points, log volumes)",
        )
    if volumes is not None:
        volumes = doubles("log volumes", volumes)
        if volumes.shape != points.shape or np.any(np.isnan(volumes) | (volumes == math.inf)):
            raise ParameterError(
                f"log volumes of shape {list(volumes.shape)} for {points.size} points,",
                address=address,
                expected="one number for each point, or -inf",
            )
        volumes = mx.array(volumes.astype(np.float32))
    return as_array(points), volumes


def trapezoidal(address: tuple, points: mx.array) -> mx.array:
    """The log volumes of the trapezoidal rule: half the distance between a point's neighbours."""
    import numpy as np

    x = np.array(points, dtype=np.float64)
    gaps = np.diff(x)
    if not len(gaps) or np.any(gaps <= 0):
        raise ParameterError(
            "the grid has fewer than two points that differ in float32,",
            address=address,
            expected="points with room between them, or (points, log volumes)",
        )
    volumes = 0.5 * (np.append(gaps, 0.0) + np.insert(gaps, 0, 0.0))
    return mx.array(np.log(volumes).astype(np.float32))
