"""``map_over``: a kernel applied to each element of columns, independently."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from genmlx.combinators.sequence import Sequence, changed_elements, columns_length
from genmlx.combinators.whole import stacked_columns
from genmlx.trace import Trace


class MapOver(Sequence):
    """``map_over(kernel)`` takes columns ``(xs, ys, ...)``; element ``i`` runs ``kernel(xs[i], ys[i], ...)`` at ``i``.

    Returns the list of return values. A column is a list or an array with the elements on axis 0.

    >>> from genmlx import gen, map_over, normal, trace
    >>> @gen
    ... def kernel(x, y):
    ...     return trace("z", normal(x + y, 1))
    >>> tr, weight = map_over(kernel).generate(([1.0, 2.0], [3.0, 4.0]), {(0, "z"): 1.1, (1, "z"): 2.2})
    >>> round(weight.item(), 4)
    -13.2629
    """

    name = "map_over"

    def length(self, args: tuple) -> int:
        return columns_length(self, ((f"column {i}", column) for i, column in enumerate(args)))

    def step_args(self, args: tuple, t: int, elements: list[Trace]) -> tuple:
        return tuple([column[t] for column in args])

    def changed_steps(self, old: tuple, new: tuple, diffs: tuple, n: int) -> Iterable[int]:
        if len(old) != len(new):
            return range(n)
        return {i for o, c, d in zip(old, new, diffs, strict=True) for i in changed_elements(o, c, d, n)}

    def collect(self, args: tuple, retvals: list) -> list:
        return retvals

    def stacked_inputs(self, args: tuple) -> Any:
        return stacked_columns(args)

    def kernel_args(self, state: Any, inputs: Any, args: tuple) -> tuple:
        return inputs


map_over = MapOver
