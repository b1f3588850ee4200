"""The traces of the steps of a long sequence, most of them in stacks, taken apart only where somebody looks.

A batch carries every array of a trace through ``mx.vmap``, so a sequence of T separate traces would cost O(T) at each
step of a particle filter. Here what is appended is stacked, sixteen steps at a time, and neighbouring stacks of one
size are joined, as in a binary counter: T steps are O(log T) trees, and each step is copied O(log T) times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
import optree

from genmlx.choicemap import ChoiceMap, from_items
from genmlx.diff import same
from genmlx.masked import Masked, settled
from genmlx.pytree import flatten, map_arrays, register
from genmlx.trace import Trace
from genmlx.vectorized import stacked_choices

_TAIL = 16


class Stack:
    """The traces of the steps from ``start`` on, ``size`` of them, as rows of one trace."""

    __slots__ = ("trace", "start", "size")

    def __init__(self, trace: Any, start: int, size: int):
        self.trace, self.start, self.size = trace, start, size

    @property
    def stop(self) -> int:
        return self.start + self.size

    def row(self, t: int) -> Any:
        """The trace of step ``t``."""
        return map_arrays(lambda array: array[t - self.start], self.trace)


register(Stack, lambda s: ((s.trace,), (s.start, s.size)), lambda fixed, children: Stack(children[0], *fixed))


class Elements:
    """A list of ``n`` traces. A step in ``own`` has its trace there, every other one in a stack."""

    __slots__ = ("stacks", "own", "n")
    sliced = True  # looking inside slices axis 0, which in a batch belongs to the lanes

    def __init__(self, stacks: list[Stack], own: dict[int, Trace], n: int):
        self.stacks, self.own, self.n = stacks, own, n

    @classmethod
    def of(cls, traces: Any) -> Elements:
        if isinstance(traces, Elements):
            return traces
        made = cls([], {}, 0)
        for trace in traces:
            made.append(trace)
        return made

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, t: Any) -> Any:
        if isinstance(t, slice):
            start, stop, _ = t.indices(self.n)
            return self._first(stop) if start == 0 else [self[i] for i in range(start, stop)]
        if t < 0:
            t += self.n
        if not 0 <= t < self.n:
            raise IndexError(t)
        found = self.own.get(t)
        if found is not None:
            return found
        return self.stack_of(t).row(t)

    def _first(self, n: int) -> Elements:
        own = self.own if n == self.n else {t: trace for t, trace in self.own.items() if t < n}
        return Elements([stack for stack in self.stacks if stack.start < n], dict(own), n)

    def stack_of(self, t: int) -> Stack:
        return next(stack for stack in self.stacks if stack.start <= t < stack.stop)

    def __setitem__(self, t: int, element: Trace) -> None:
        self.own[t] = element

    def append(self, element: Trace) -> None:
        """One more step; every sixteenth, what was appended is stacked, if its traces have one structure."""
        self.own[self.n] = element
        self.n += 1
        tail = range(self.n - _TAIL, self.n)
        if self.n % _TAIL or any(t not in self.own for t in tail) or any(s.stop > tail.start for s in self.stacks):
            return
        trace = stacked([self.own[t] for t in tail])
        if trace is None:
            return
        for t in tail:
            del self.own[t]
        self.stacks.append(Stack(trace, tail.start, _TAIL))
        while len(self.stacks) > 1 and (joint := _joined(*self.stacks[-2:])) is not None:
            self.stacks[-2:] = [joint]

    def restack(self) -> None:
        """Put the steps that were set back into their stacks, where they have the structure of the rest."""
        for i, stack in enumerate(self.stacks):
            own = {t: self.own[t] for t in sorted(self.own) if stack.start <= t < stack.stop}
            if own and (trace := _rewritten(stack, own)) is not None:
                self.stacks[i] = Stack(trace, stack.start, stack.size)
                for t in own:
                    del self.own[t]

    def like(self, t: int) -> Any:
        """A trace of the structure of step ``t``: for what does not depend on values."""
        return self.own[t] if t in self.own else self.stack_of(t).trace

    def traces(self) -> Iterator[Trace]:
        """Every trace that is held, stacked or not."""
        yield from (stack.trace for stack in self.stacks)
        yield from self.own.values()

    def choices(self) -> Iterator[tuple[tuple, ChoiceMap]]:
        """Each step's address and choices, without taking whole traces apart."""
        rows: dict[int, list] = {t: [] for t in range(self.n)}
        for stack in self.stacks:
            for address, leaf in stacked_choices(stack.trace, stack.size).items():
                for t, value in enumerate(_rows(leaf, stack.size), stack.start):
                    if value is not None and t < self.n:
                        rows[t].append((address, value))
        for t in range(self.n):
            own = self.own.get(t)
            yield (t,), from_items(rows[t]) if own is None else own.choices

    def retvals(self) -> list:
        """Each step's return value."""
        found: list = [None] * self.n
        for stack in self.stacks:
            for t, value in enumerate(unstacked(stack.trace.retval, stack.size), stack.start):
                if t < self.n:
                    found[t] = value
        for t, trace in self.own.items():
            found[t] = trace.retval
        return found

    def __iter__(self) -> Iterator[Trace]:
        return (self[t] for t in range(self.n))


register(
    Elements,
    lambda e: ((e.stacks, list(e.own.values())), (tuple(e.own), e.n)),
    lambda fixed, children: Elements(children[0], dict(zip(fixed[0], children[1], strict=True)), fixed[1]),
)


def stacked(traces: list) -> Any:
    """Traces of one structure as one trace with a row for each; None when they have not one structure."""
    flat = [flatten(trace) for trace in traces]
    spec = flat[0][1]
    if any(other != spec for _, other in flat):
        return None
    columns = zip(*[leaves for leaves, _ in flat], strict=True)
    return _rebuilt(spec, columns, [1] * len(traces))


def _joined(a: Stack, b: Stack) -> Stack | None:
    """Two neighbouring stacks of one size and structure as one."""
    if a.stop != b.start or a.size > b.size:
        return None
    (mine, spec), (theirs, other) = flatten(a.trace), flatten(b.trace)
    if spec != other:
        return None
    trace = _rebuilt(spec, zip(mine, theirs, strict=True), [a.size, b.size], stacks=True)
    return None if trace is None else Stack(trace, a.start, a.size + b.size)


def _rebuilt(spec: Any, columns: Iterable[tuple], sizes: list[int], stacks: bool = False) -> Any:
    """The traces with these leaves as one; None when a leaf cannot be stacked.

    Columns of the same arrays become one array, so that an update goes on to see that, say, a state that a step returns
    is the choice that it made.
    """
    made: dict[tuple, tuple] = {}
    leaves = []
    for column in columns:
        which = tuple(map(id, column))
        if which not in made:
            if (stacked := _column(list(column), sizes, stacks)) is None:
                return None
            made[which] = stacked
        leaves.append(made[which][0])
    return optree.tree_unflatten(spec, leaves)


def _rewritten(stack: Stack, own: dict[int, Trace]) -> Any:
    """A stack's trace with some rows replaced; None when they do not fit."""
    leaves, spec = flatten(stack.trace)
    flat = [flatten(trace) for trace in own.values()]
    if any(other != spec for _, other in flat):
        return None
    made = []
    for old, *rows in zip(leaves, *[row for row, _ in flat], strict=True):
        # The old rows between the new ones, and each new one as a stack of one.
        parts, sizes, done = [], [], 0
        for t, row in zip(own, rows, strict=True):
            at = t - stack.start
            parts += [old[done:at] if isinstance(old, mx.array) else old, _row(row)]
            sizes += [at - done, 1]
            done = at + 1
        parts.append(old[done:] if isinstance(old, mx.array) else old)
        sizes.append(stack.size - done)
        kept = [(part, size) for part, size in zip(parts, sizes, strict=True) if size]
        column = _column([part for part, _ in kept], [size for _, size in kept], stacks=True)
        if column is None:
            return None
        made.append(column[0])
    return optree.tree_unflatten(spec, made)


def _row(leaf: Any) -> Any:
    return leaf[None] if isinstance(leaf, mx.array) else leaf


def _column(column: list, sizes: list[int], stacks: bool = False) -> tuple | None:
    """One leaf of several traces (or stacks of them), one row for each; what is the same in all stays one value."""
    if not any(isinstance(leaf, mx.array) for leaf in column):
        if all(same(leaf, column[0]) for leaf in column):
            return (column[0],)
        if not all(type(leaf) in (int, float, bool) for leaf in column):
            return None
    rows = [
        leaf if isinstance(leaf, mx.array) and stacks else mx.broadcast_to(a := mx.array(leaf), (size, *a.shape))
        for leaf, size in zip(column, sizes, strict=True)
    ]
    if any(row.shape[1:] != rows[0].shape[1:] or row.dtype != rows[0].dtype for row in rows):
        return None
    return (mx.concatenate(rows),)


def _rows(leaf: Any, size: int) -> list:
    return [settled(leaf[t]) for t in range(size)] if isinstance(leaf, Masked) else list(leaf)


def unstacked(tree: Any, n: int) -> list:
    """The rows of a stacked tree."""
    leaves, spec = flatten(tree)
    rows = [list(leaf) if isinstance(leaf, mx.array) else [leaf] * n for leaf in leaves]
    return [optree.tree_unflatten(spec, [row[t] for row in rows]) for t in range(n)]
