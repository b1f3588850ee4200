"""Runs of one kernel, one after another, under the addresses 0, 1, 2...: what map_over, unfold and scan share.

An update visits only the steps that something reaches: a constraint, a changed argument, or, in a chain, a changed
state of the step before. All other steps keep their traces, and nothing of the kernel runs for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx

from genmlx.address import normalise
from genmlx.backend.sums import summed
from genmlx.carry import regenerate_by_generate, update_by_generate
from genmlx.choicemap import ChoiceMap, from_items
from genmlx.combinators.elements import Elements, Stack, stacked
from genmlx.combinators.kernel import Combinator, checked_kernel, require_sub_map
from genmlx.combinators.whole import LEAST, run_whole
from genmlx.diff import NoChange, UnknownChange, VectorDiff, same
from genmlx.errors import ParameterError, name_of, under
from genmlx.gfi import argument_diffs, total
from genmlx.masked import host_value
from genmlx.params import peek, shared_reads
from genmlx.random import Keys
from genmlx.selection import ALL, NONE, Names, Selection
from genmlx.trace import Trace
from genmlx.vectorized import _replaced, in_one_form


class SequenceTrace(Trace):
    """The traces of the steps, and the parameters that they read. The return value is put together when asked for."""

    __slots__ = ("tally", "elements", "params", "_retval")
    data = ("args", "score", "tally", "elements", "params")
    sliced = True  # see Elements: the return value is put together along axis 0

    tally: mx.array
    elements: list[Trace] | Elements
    params: dict

    @property
    def retval(self) -> Any:
        if self._retval is None:
            steps = self.elements
            retvals = steps.retvals() if isinstance(steps, Elements) else [element.retval for element in steps]
            object.__setattr__(self, "_retval", self.gen_fn.collect(self.args, retvals))
        return self._retval

    def gathered(self) -> ChoiceMap:
        steps = self.elements
        each = steps.choices() if isinstance(steps, Elements) else (((t,), e.choices) for t, e in enumerate(steps))
        return from_items(each)

    def children(self) -> Iterable[Trace]:
        return self.elements.traces() if isinstance(self.elements, Elements) else self.elements

    def reads(self) -> dict:
        return self.params

    def in_one_form(self) -> SequenceTrace:
        """The same trace with all its steps in one stack, where they can be stacked."""
        steps = [in_one_form(element) for element in self.elements]
        whole = stacked(steps) if steps else None
        elements = steps if whole is None else Elements([Stack(whole, 0, len(steps))], {}, len(steps))
        return _replaced(self, elements=elements)

    def __getitem__(self, address: Any) -> Any:
        """The value of a choice; the return value of a step."""
        t, *rest = normalise(address) or (None,)
        if not isinstance(t, int) or not 0 <= t < len(self.elements):
            return self.choices[address]
        element = self.elements[t]
        return element[tuple(rest)] if rest else element.retval


class Sequence(Combinator):
    """A combinator says how long it is, what each step is given, and what it returns."""

    chained = False
    returns_list = True  # the steps' return values, so that a change of one is a change at its index
    name = ""

    def __init__(self, kernel: Any):
        self.kernel = checked_kernel(self.name, kernel)
        self.__name__ = f"{self.name}({name_of(kernel)})"

    @property
    def parts(self) -> tuple:
        return (self.kernel,)

    def length(self, args: tuple) -> int:
        raise NotImplementedError

    def step_args(self, args: tuple, t: int, elements: list[Trace]) -> tuple:
        """The kernel's arguments at step ``t``, given the traces of the steps before it."""
        raise NotImplementedError

    def step_inputs(self, args: tuple, t: int) -> Any:
        """What step ``t`` of a chain is given besides its state and the shared arguments."""
        raise NotImplementedError

    def changed_steps(self, old: tuple, new: tuple, diffs: tuple, n: int) -> Iterable[int]:
        """The steps below ``n`` whose arguments may differ, the state of the step before aside."""
        raise NotImplementedError

    def collect(self, args: tuple, retvals: list) -> Any:
        """The return value, of the kernel's return values in order."""
        raise NotImplementedError

    # the same, for all steps at once: see whole.py

    def stacked_inputs(self, args: tuple) -> Any:
        """What step ``t`` is given, its state and the shared arguments aside, with the steps on axis 0; or None."""
        raise NotImplementedError

    def kernel_args(self, state: Any, inputs: Any, args: tuple) -> tuple:
        raise NotImplementedError

    def initial_state(self, args: tuple) -> Any:
        return None

    def next_state(self, retval: Any) -> Any:
        return retval

    # the operations

    def _generate(self, args: tuple, constraints: ChoiceMap, key: Any) -> tuple[Trace, Any]:
        require_sub_map(self, constraints)
        n = self.length(args)
        if (whole := run_whole(self, args, n, constraints, key)) is not None:
            stack, elements = whole.trace, Elements([Stack(whole.trace, 0, n)], {}, n)
            return self._trace(args, elements, tally(stack.score), shared_reads(stack)), whole.weight
        elements = []
        weights, keys = [], Keys(key)
        for t in range(n):
            with under((t,)):
                step_args = self.kernel.bind(self.step_args(args, t, elements))
                element, weight = self.kernel._generate(step_args, constraints.sub((t,)), keys.next())
                self.next_state(element.retval)  # raises here, not when somebody looks, if there is none
            elements.append(element)
            weights.append(weight)
        return self._trace(args, elements, tally([e.score for e in elements]), _reads(elements)), total(weights)

    def _update(
        self, trace: Any, args: tuple, diffs: tuple, constraints: ChoiceMap, key: Any
    ) -> tuple[Trace, Any, Any, ChoiceMap]:
        require_sub_map(self, constraints)
        if self._changes_as_a_whole(trace, args, diffs):
            return update_by_generate(trace, self, args, constraints, key)
        keys, discarded = Keys(key), []

        def step(old: Trace | None, t: int, args: tuple, diffs: tuple) -> tuple[Trace, Any, Any]:
            own = constraints.sub((t,))
            if old is None:
                element, weight = self.kernel._generate(args, own, keys.next())
                return element, weight, UnknownChange
            element, weight, retdiff, discard = self.kernel._update(old, args, diffs, own, keys.next())
            if not discard.is_empty:
                discarded.append(((t,), discard))
            return element, weight, retdiff

        constrained = [t for t in constraints.parts() if isinstance(t, int)]
        new, weights, retdiff = self._revise(trace, args, diffs, constrained, step)
        for t, element in enumerate(trace.elements[len(new.elements) :], len(new.elements)):
            weights.append(-element.score)
            discarded.append(((t,), element.choices))
        return new, total(weights), retdiff, from_items(sorted(discarded, key=lambda pair: pair[0]))

    def _regenerate(
        self, trace: Any, args: tuple, diffs: tuple, selection: Selection, key: Any
    ) -> tuple[Trace, Any, Any]:
        if self._changes_as_a_whole(trace, args, diffs):
            return regenerate_by_generate(trace, self, args, selection, key)
        keys = Keys(key)

        def step(old: Trace | None, t: int, args: tuple, diffs: tuple) -> tuple[Trace, Any, Any]:
            if old is None:
                return self.kernel._simulate(args, keys.next()), 0.0, UnknownChange
            return self.kernel._regenerate(old, args, diffs, selection.below(t), keys.next())

        reached = _reached(selection, len(trace.elements))
        new, weights, retdiff = self._revise(trace, args, diffs, reached, step)
        return new, total(weights), retdiff

    def _changes_as_a_whole(self, trace: Any, args: tuple, diffs: tuple) -> bool:
        """Whether every step of a long sequence has other arguments, so that it is best scored as a whole."""
        n = len(trace.elements)
        return n >= LEAST and self.length(args) == n and len(set(self.changed_steps(trace.args, args, diffs, n))) == n

    def _revise(
        self, trace: Any, args: tuple, diffs: tuple, reached: Iterable[int], step: Callable
    ) -> tuple[Any, list, Any]:
        """Take ``step`` wherever something changes. Gives the new trace, the weights, and the return diff."""
        n, old = self.length(args), trace.elements
        known = min(n, len(old))
        stale = any(peek(model, name) is not value for (model, name), value in trace.params.items())
        changed = set(range(known)) if stale else set(self.changed_steps(trace.args, args, diffs, known))
        queue = sorted({t for t in reached if 0 <= t < n} | changed | set(range(known, n)))
        if not queue and n == len(old):
            if same(trace.args, args):
                return trace, [], NoChange
            return self._trace(args, old, trace.tally, trace.params), [], NoChange
        elements = (Elements.of(old) if n > len(old) and n >= LEAST else old)[:n]
        weights, gained, lost, moved, visited = [], [], [], set(), set()
        t, place, spills = -1, 0, False
        while spills and t + 1 < n or place < len(queue):
            t = t + 1 if spills and t + 1 < n else queue[place]
            before = old[t] if t < known else None
            step_args = self.kernel.bind(self.step_args(args, t, elements))
            if before is not None and not spills and t not in changed:
                step_diffs = (NoChange,) * len(step_args)
            else:
                step_diffs = () if before is None else argument_diffs(before.args, step_args)
                if stale:
                    step_diffs = (UnknownChange,) * len(step_diffs)
            with under((t,)):
                element, weight, retdiff = step(before, t, step_args, step_diffs)
            if before is None:
                elements.append(element)
            else:
                elements[t] = element
                lost.append(before.score)
            gained.append(element.score)
            weights.append(weight)
            visited.add(t)
            spills = self.chained and retdiff is not NoChange
            if retdiff is not NoChange:
                moved.add(t)
            while place < len(queue) and queue[place] <= t:
                place += 1
        if len(visited) == n:  # a plain sum has no drift
            sums = tally(gained)
        else:
            sums = trace.tally + tally(gained) - tally([*lost, *(e.score for e in old[n:])])
        params = {**trace.params, **_reads(elements[t] for t in visited)}
        if isinstance(elements, Elements):
            elements.restack()
        new = self._trace(args, elements, sums, params)
        same_length = n == len(old)
        retdiff = VectorDiff(moved) if self.returns_list else UnknownChange
        return new, weights, UnknownChange if not same_length else retdiff if moved else NoChange

    def _project(self, trace: Any, selection: Selection) -> Any:
        if selection is ALL:
            return trace.score
        terms = []
        for t in _reached(selection, len(trace.elements)):
            if 0 <= t < len(trace.elements):
                terms.append(self.kernel._project(trace.elements[t], selection.below(t)))
        return total(terms)

    def unvisited(self, trace: Any, constraints: ChoiceMap) -> list[tuple]:
        found, steps = [], trace.elements
        for part in constraints.parts():
            below = constraints.sub((part,))
            if isinstance(part, int) and 0 <= part < len(steps):
                like = steps.like(part) if isinstance(steps, Elements) else steps[part]
                found += [(part, *rest) for rest in self.kernel.unvisited(like, below)]
            else:
                found += [(part, *rest) for rest in below]
        return found

    def _trace(self, args: tuple, elements: Any, tally: mx.array, params: dict) -> SequenceTrace:
        return SequenceTrace(
            gen_fn=self,
            args=args,
            score=mx.where(tally[1] > 0, -math.inf, tally[0]),
            tally=tally,
            elements=elements,
            params=params,
            _retval=None,
        )


def whole_number(gen_fn: Any, name: str, value: Any) -> int:
    """A length that is known on the host."""
    found = host_value(value)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        traced = isinstance(value, mx.array) and found is None
        raise ParameterError(
            f"{name_of(gen_fn)}: {name} must be a whole number, 0 or more, got {'a traced array' if traced else value}",
            hint="a length that differs between lanes is a mask over the longest" if traced else None,
        )
    return found


def columns_length(gen_fn: Any, columns: Iterable[tuple[str, Any]]) -> int:
    """The one length of several columns; differing lengths raise with both."""
    first, length = None, None
    for name, column in columns:
        shape = getattr(column, "shape", None)
        if shape is None and hasattr(column, "__len__"):
            shape = (len(column),)
        own = shape[0] if shape else None
        if own is None or isinstance(column, (str, dict)):
            raise ParameterError(
                f"{name_of(gen_fn)}: {name} is not a column: {column!r:.40}", expected="a list or an array"
            )
        if length is None:
            first, length = name, own
        elif own != length:
            raise ParameterError(f"{name_of(gen_fn)}: {first} has {length} elements, {name} has {own}")
    if length is None:
        raise ParameterError(f"{name_of(gen_fn)}: no columns", expected="at least one list or array")
    return length


def changed_elements(old: Any, new: Any, diff: Any, n: int) -> Iterable[int]:
    """The indices below ``n`` at which a column may differ."""
    if diff is NoChange:
        return ()
    if isinstance(diff, VectorDiff):
        return [i for i in diff.indices if 0 <= i < n]
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return [i for i in range(n) if not same(old[i], new[i])]
    return range(n)


def tally(scores: Any) -> mx.array:
    """The sum of the scores that are finite, and how many are -inf: what can be taken away again step by step."""
    if not isinstance(scores, mx.array):
        scores = mx.stack(scores) if scores else mx.zeros((1,))
    impossible = scores == -math.inf
    return mx.stack([summed(mx.where(impossible, 0.0, scores)), mx.sum(impossible.astype(mx.float32))])


def _reached(selection: Selection, n: int) -> Iterable[int]:
    """The steps that a selection may reach into."""
    if selection is NONE:
        return ()
    if type(selection) is Names:
        return [part for part in selection.parts if isinstance(part, int)]
    return range(n)


def _reads(elements: Iterable[Trace]) -> dict:
    found: dict = {}
    for element in elements:
        found.update(element.reads())
    return found


