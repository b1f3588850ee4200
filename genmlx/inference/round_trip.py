"""The test of a move: does the transform back give what the move started from?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from genmlx.choicemap import ChoiceMap
from genmlx.dist.values import as_array
from genmlx.errors import GenError, UsageError, show_address
from genmlx.masked import active_of, value_of
from genmlx.transform import Transform
from genmlx.transform_run import Run

# The rounding of a few float32 operations, relative to 1 + |value|.
_TOLERANCE = 1e-4
JACOBIAN = "jacobian"


class RoundTripError(GenError, ValueError):
    """The inverse of a transform does not give back what the transform started from."""


class RoundTrip:
    """The differences between a start and where the way back leads: an array of bools for each place.

    Which addresses there are is known at once, and raises at once; values may be those of one lane of a batch, and
    are looked at on the host by ``require_none``.
    """

    def __init__(self, inverse: Transform, old: Run):
        self.inverse, self.old = inverse, old
        self.differs: dict[Any, mx.array] = {}

    def compare(self, side: str, start: ChoiceMap, end: ChoiceMap) -> None:
        for address in [*start, *(a for a in end if a not in start)]:
            if address not in start or address not in end:
                what = "is not there after" if address in start else "is there only after"
                raise self._error(f"a choice of {self.old.sides[side].name} {what} the way there and back:", address)
            if (place := (side, address)) not in self.differs:
                self.differs[place] = _differs(start[address], end[address])

    def compare_jacobians(self, there: Any, back: Any) -> None:
        self.differs[JACOBIAN] = ~_close(there, -back)

    def unless(self, impossible: Any) -> dict[Any, mx.array]:
        """The differences, but not those of an impossible trace: outside of its support nothing need be one-to-one."""
        return {place: mx.logical_and(differs, ~impossible) for place, differs in self.differs.items()}

    def _error(self, what: str, address: tuple | None) -> RoundTripError:
        return _round_trip_error(self.inverse, what, address)


def _round_trip_error(inverse: Transform, what: str, address: tuple | None) -> RoundTripError:
    return RoundTripError(
        what,
        address=address,
        gen_fn=inverse,
        where=inverse.line,
        expected="the start again, when the inverse is applied to what the transform gives",
        hint="apply both to plain choices, g(f(choices).choices), and compare",
    )


def inverse_of(transform: Transform) -> Transform:
    if transform.inverse is None:
        raise UsageError(
            f"{transform.__name__} has no inverse to be checked against",
            expected="a transform and its inverse",
            hint="pair_bijections(f, f_inverse), or @is_involution above @transform",
        )
    return transform.inverse


def require_none(inverse: Transform, differs: Mapping[Any, mx.array]) -> None:
    """Raise for the first place that differs, in any lane."""
    import numpy as np

    for place, flags in differs.items():
        failed = np.count_nonzero(np.array(flags))
        if not failed:
            continue
        count = "" if flags.ndim == 0 else f" in {failed} of {flags.size} moves"
        if place == JACOBIAN:
            raise _round_trip_error(inverse, f"log |det Jacobian| there and back do not add up to 0{count}", None)
        side = "" if place[0] == "model" else " of the proposal"
        raise _round_trip_error(
            inverse, f"a choice{side} is not the same after the way there and back{count}:", place[1]
        )


def label(place: Any) -> str:
    """The name of a place in the statistics of a chain."""
    return f"differs: {place if place == JACOBIAN else (place[0], show_address(place[1]))}"


def _differs(a: Any, b: Any) -> mx.array:
    x, y = as_array(value_of(a)), as_array(value_of(b))
    if x.shape != y.shape:
        return mx.array(True)
    here, there = mx.array(active_of(a)), mx.array(active_of(b))
    # Not & and |: under vmap MLX 0.32.4 drops the lanes of the right operand when the left has none.
    unequal = mx.logical_and(mx.logical_and(here, there), mx.any(~_close(x, y)))
    return mx.logical_or(here != there, unequal)


def _close(a: mx.array, b: mx.array) -> mx.array:
    if not mx.issubdtype(a.dtype, mx.floating):
        return a == b
    return mx.logical_or(a == b, mx.abs(a - b) <= _TOLERANCE * (1.0 + mx.abs(a)))
