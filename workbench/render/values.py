"""Values in a few characters: numbers as they are, arrays up to six numbers in full, larger ones by what is in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.choicemap import show_type
from genmlx.masked import Masked, settled
from workbench.render.screen import PLAIN, Screen

IN_FULL = 6  # numbers of an array that are printed
SHOWN_BYTES = 8 * 2**20  # of all values that are shown together
_DISTINCT, _COUNTED = 6, 100_000
_BINS = 8
_SQUARES = 40.0  # log of a number whose square is still far from the ends of float32


class Shown(NamedTuple):
    """The text of a value, a histogram where there is one to draw, and whether something in it is not finite."""

    text: str
    bars: Sequence[float] = ()
    bad: bool = False


def host(array: mx.array) -> Any:
    """The numbers of an array, as Python's."""
    return array.tolist()


def number(x: Any) -> str:
    """
    >>> number(1.98304), number(7), number(True), number(-math.inf), number(2000.0), number(-1e-9)
    ('1.983', '7', 'True', '-inf', '2000', '-1e-09')
    """
    return f"{x:.4g}" if isinstance(x, float) else str(x)


def density(x: float) -> str:
    """A log density.

    >>> density(-3.24159), density(-2311.42), density(math.nan), density(-0.001)
    ('-3.24', '-2,311.4', 'nan', '0.00')
    """
    if not math.isfinite(x):
        return str(x)
    text = f"{x:.2f}" if abs(x) < 1000 else f"{x:,.1f}" if abs(x) < 1e7 else f"{x:.4g}"
    return text[1:] if text == "-0.00" else text


def kind(value: Any, lanes: bool = False) -> str:
    """``f32[5]`` of an array; with ``lanes``, of what one lane has.

    >>> kind(mx.zeros((3, 2))), kind(mx.zeros((3, 2)), lanes=True), kind([1, 2]), kind(0.5)
    ('f32[3,2]', 'f32[2]', 'list[2]', 'float')
    """
    if isinstance(value, Masked):
        value = value.value
    if isinstance(value, mx.array):
        name, _, _ = show_type(value).partition("[")
        return f"{name}[{','.join(map(str, value.shape[1:] if lanes else value.shape))}]"
    name = type(value).__name__
    if hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}".replace(" ", "")
    return f"{name}[{len(value)}]" if isinstance(value, (list, tuple, dict)) else name


def show(value: Any, screen: Screen = PLAIN, stats: bool = False, weights: mx.array | None = None) -> Shown:
    """A value; with ``stats``, an array always by its mean, deviation and range.

    ``weights`` of the lanes on axis 0 make the mean and the deviation weighted ones.

    >>> show(mx.array([1.5, 2.0])).text, show(mx.arange(8) > 2).text, show(mx.array([1, 1, 1, 2, 2, 2, 2])).text
    ('[1.5 2]', '5 of 8 true', '1:3 2:4')
    """
    value = settled(value)
    if isinstance(value, Masked):
        return _masked(value, screen, weights)
    if isinstance(value, (bool, int, float)):
        return Shown(number(value), bad=isinstance(value, float) and not math.isfinite(value))
    array = value if isinstance(value, mx.array) else _numeric(value)
    if array is None:
        return Shown(screen.clip(repr(value), 40))
    if array.size == 0:
        return Shown("empty")
    if array.ndim == 0 or (array.size <= IN_FULL and not stats):
        numbers = host(array)
        return Shown(_nested(numbers), bad=not _finite(numbers))
    return summary(array, screen, weights)


def _numeric(value: Any) -> mx.array | None:
    try:
        return mx.array(value) if isinstance(value, (list, tuple)) or hasattr(value, "dtype") else None
    except (TypeError, ValueError):
        return None


def _masked(value: Masked, screen: Screen, weights: mx.array | None) -> Shown:
    """The elements that are there, and how many of them are."""
    active = mx.broadcast_to(value.active, value.active.shape).reshape(-1)
    there = [i for i, on in enumerate(host(active)) if on]
    if not there:
        return Shown(f"in 0 of {active.size:,}")
    index = mx.array(there)
    rows = value.value.reshape((active.size, *value.shape[value.active.ndim :]))[index]
    inside = show(rows, screen, weights=None if weights is None or weights.shape != active.shape else weights[index])
    return inside._replace(text=f"{inside.text} in {len(there):,} of {active.size:,}")


def _nested(numbers: Any) -> str:
    return f"[{' '.join(map(_nested, numbers))}]" if isinstance(numbers, list) else number(numbers)


def _finite(numbers: Any) -> bool:
    if isinstance(numbers, list):
        return all(map(_finite, numbers))
    return not isinstance(numbers, float) or math.isfinite(numbers)


def summary(array: mx.array, screen: Screen = PLAIN, weights: mx.array | None = None) -> Shown:
    """What is in an array: its mean, deviation and range; the counts of a few integers; how many are true.

    Numbers that are not finite are counted apart.
    """
    if array.dtype == mx.bool_ and weights is None:
        return Shown(f"{host(mx.sum(array)):,} of {array.size:,} true")
    if mx.issubdtype(array.dtype, mx.complexfloating):
        array = mx.abs(array)
    if mx.issubdtype(array.dtype, mx.integer) and weights is None and array.size <= _COUNTED:
        counts = Counter(host(array.reshape(-1)))
        if len(counts) <= _DISTINCT:
            return Shown(" ".join(f"{k}:{n:,}" for k, n in sorted(counts.items())))
    x = array.astype(mx.float32)
    finite = mx.isfinite(x)
    share = finite.astype(mx.float32)
    if weights is not None:
        share = share * weights.reshape((-1, *[1] * (x.ndim - 1)))
    share = mx.broadcast_to(share, x.shape)
    low = mx.min(mx.where(finite, x, math.inf))
    high = mx.max(mx.where(finite, x, -math.inf))
    # Sums about a point inside the data keep the digits of data that are far from zero.
    centre, reach = mx.where(mx.any(finite), (low / 2 + high / 2), 0.0), high / 2 - low / 2
    unit = mx.where(mx.logical_and(reach > 0, mx.abs(mx.log(reach)) > _SQUARES), reach, 1.0)
    d = mx.where(finite, x - centre, 0.0) / unit
    total = _sum(share)
    shift = _sum(share * d) / total
    variance = _sum(share * (d - shift) ** 2) / total
    if weights is None:
        variance = variance * total / mx.maximum(total - 1, 1)
    place = mx.clip(mx.floor(d / mx.maximum(reach / unit, 1e-38) * (_BINS / 2) + _BINS / 2), 0, _BINS - 1)
    bins = [_sum(mx.where(mx.logical_and(finite, place == b), share, 0.0)) for b in range(_BINS)]
    nans, infinite = mx.sum(mx.isnan(x)).astype(mx.float32), mx.sum(mx.isinf(x)).astype(mx.float32)
    wanted = [centre, unit, shift, mx.sqrt(variance), low, high, nans, infinite, *bins]
    centre, unit, shift, sd, least, most, nan, inf, *heights = host(mx.stack(wanted))
    mean, sd = centre + shift * unit, sd * unit
    bad = [f"{int(count):,} {name}" for count, name in ((nan, "nan"), (inf, "inf")) if count]
    if nan + inf == array.size:
        return Shown(", ".join(bad), bad=True)
    text = f"{number(mean)} {screen.within} {number(sd)} [{number(least)}, {number(most)}]"
    return Shown("  ".join([text, *bad]), heights if most > least else (), bool(bad))


def _sum(x: mx.array) -> mx.array:
    from genmlx.backend.sums import summed

    return summed(x)
