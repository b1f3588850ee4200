"""The traces of the steps of a long sequence: one stacked trace, taken apart only where somebody looks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genmlx.choicemap import ChoiceMap, from_items
from genmlx.masked import Masked, settled
from genmlx.pytree import map_arrays, register
from genmlx.trace import Trace
from genmlx.vectorized import stacked_choices


class Elements:
    """A list of ``n`` traces, of which the first ``size`` are rows of ``stack`` unless ``own`` has them."""

    __slots__ = ("stack", "size", "own", "n")
    sliced = True  # looking inside slices axis 0, which in a batch belongs to the lanes

    def __init__(self, stack: Any, size: int, own: dict[int, Trace] | None = None, n: int | None = None):
        self.stack, self.size, self.own, self.n = stack, size, own or {}, size if n is None else n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, t: Any) -> Any:
        if isinstance(t, slice):
            start, stop, _ = t.indices(self.n)
            return Elements(self.stack, self.size, dict(self.own), stop) if start == 0 else [
                self[i] for i in range(start, stop)
            ]
        if t < 0:
            t += self.n
        if not 0 <= t < self.n:
            raise IndexError(t)
        found = self.own.get(t)
        return map_arrays(lambda array: array[t], self.stack) if found is None else found

    def __setitem__(self, t: int, element: Trace) -> None:
        self.own[t] = element

    def append(self, element: Trace) -> None:
        self.own[self.n] = element
        self.n += 1

    def like(self, t: int) -> Any:
        """A trace of the structure of step ``t``: for what does not depend on values."""
        return self.own.get(t, self.stack)

    def choices(self) -> Iterator[tuple[tuple, ChoiceMap]]:
        """Each step's address and choices, without taking whole traces apart."""
        columns = [(a, self._rows(leaf)) for a, leaf in stacked_choices(self.stack, self.size).items()]
        for t in range(self.n):
            own = self.own.get(t)
            if own is None:
                yield (t,), from_items((a, rows[t]) for a, rows in columns if rows[t] is not None)
            else:
                yield (t,), own.choices

    def _rows(self, leaf: Any) -> list:
        return [settled(leaf[t]) for t in range(self.size)] if isinstance(leaf, Masked) else list(leaf)

    def __iter__(self) -> Iterator[Trace]:
        return (self[t] for t in range(self.n))


register(
    Elements,
    lambda e: ((e.stack, list(e.own.values())), (e.size, tuple(e.own), e.n)),
    lambda fixed, children: Elements(
        children[0], fixed[0], dict(zip(fixed[1], children[1], strict=True)), fixed[2]
    ),
)
