"""Where a particle filter keeps the past of a growing trace, so that a step costs the same however long the past is.

Resampling takes each particle's whole trace. But a step of a chain looks at the state before it alone, so of every
sequence in the traces all steps but the last are put away as they are, and each resampling notes its indices only.
When somebody asks for whole traces, each step is brought into the order of now by one look-up: the work is that of
storing T steps of N particles once, in place of T times (Murray 2013 and Jacob, Murray and Rubenthaler 2015 keep paths
as a tree for the same reason).

What is put away is in the trace as ``AWAY``, which raises when anything is asked of it: then the operation that did so
is done again on whole traces.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import mlx.core as mx
import optree

from genmlx.address import normalise
from genmlx.combinators.elements import Elements, Stack
from genmlx.combinators.sequence import SequenceTrace
from genmlx.gen import GenTrace
from genmlx.pytree import NAMESPACE, map_arrays, register
from genmlx.trace import Trace
from genmlx.vectorized import Lanes, VectorizedTrace, _batch, _replaced, _without_args, recorder, run


class TakenAway(BaseException):
    """Somebody has looked at what a filter has put away. A body that catches every Exception lets it by."""


class Away:
    """What stands in the place of an array."""

    def _refuse(self, *args: Any) -> NoReturn:
        raise TakenAway

    __getitem__ = __iter__ = __len__ = __array__ = __bool__ = __float__ = __int__ = __eq__ = __lt__ = __gt__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _refuse
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") or not hasattr(mx.array, name):  # which an array would not have either
            raise AttributeError(name)
        raise TakenAway


AWAY = Away()


class EmptyStack(Stack):
    """The steps of a sequence that were put away. Its trace has their structure, and ``AWAY`` for arrays."""

    __slots__ = ()

    def row(self, t: int) -> NoReturn:
        raise TakenAway


register(EmptyStack, lambda s: ((s.trace,), (s.start, s.size)), lambda fixed, own: EmptyStack(own[0], *fixed))


class Kept(NamedTuple):
    """Some steps of one of the sequences of a trace, with lanes: a stack of them, or the trace of one.

    ``sequence`` is its path in the tree of the trace, which stays when others come and go.
    """

    sequence: tuple
    start: int
    steps: Any


class Attic(NamedTuple):
    """What has happened to the particles: the last event, and those before it.

    An event is a resampling, with the indices that were ``taken``, or some steps that were put away.
    """

    before: Attic | None = None
    taken: mx.array | None = None
    kept: tuple[Kept, ...] = ()


NOTHING = Attic()
FORGOTTEN = Attic()
"""That of a filter that stores no paths: what is put away is gone."""


def put_away(traces: VectorizedTrace, attic: Attic) -> tuple[VectorizedTrace, Attic]:
    """The traces without the past of their sequences, which the attic then has."""
    paths, leaves, spec = _parts(traces, SequenceTrace)
    kept: list[Kept] = []
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, SequenceTrace) and leaf.gen_fn.chained and len(leaf.elements) > 1:
            elements = leaf.elements
            if not isinstance(elements, Elements):
                elements = Elements([], dict(enumerate(elements)), len(elements))
            if past := _past(paths[i], elements):
                kept += past
                leaves[i] = _replaced(leaf, elements=_last(elements))
    if not kept:
        return traces, attic
    recent = _batch(optree.tree_unflatten(spec, leaves), traces.args, traces.n)
    return recent, FORGOTTEN if attic is FORGOTTEN else Attic(attic, None, tuple(kept))


def brought_back(traces: VectorizedTrace, attic: Attic) -> VectorizedTrace:
    """The whole traces, in the order of now."""
    order: Any = None
    found: dict[tuple, list[Kept]] = {}
    at: Attic | None = attic
    while at is not None:
        for one in at.kept:
            steps = one.steps if order is None else _in_order(one.steps, order)
            found.setdefault(one.sequence, []).append(one._replace(steps=steps))
        if at.taken is not None:
            order = at.taken if order is None else at.taken[order]
        at = at.before
    if not found:
        return traces
    paths, leaves, spec = _parts(traces, SequenceTrace)
    places = {path: i for i, path in enumerate(paths)}
    for path, kept in found.items():
        i = places[path]
        leaves[i] = _replaced(leaves[i], elements=_whole(leaves[i].elements, kept, traces.n))
    return _batch(optree.tree_unflatten(spec, leaves), traces.args, traces.n)


def refers_to_it(traces: VectorizedTrace) -> bool:
    """Whether something outside of a sequence, such as what a body returned, is of what was put away."""
    return any(isinstance(leaf, Away) for leaf in _parts(traces, Elements)[1])


def found_at(traces: VectorizedTrace, address: Any) -> Any:
    """The values of one choice, without a look at those before it; raises where they are put away."""
    with recorder(None):
        return traces._look(lambda trace: _leaf(trace, normalise(address)))


def recent_addresses(trace: Trace) -> list[tuple]:
    """The addresses of the choices that are not put away."""
    if isinstance(trace, SequenceTrace) and isinstance(trace.elements, Elements):
        last = trace.elements.n - 1
        return [(last, *rest) for rest in recent_addresses(last_step(trace.elements))]
    if isinstance(trace, GenTrace):
        return [(*a, *rest) for a, sub in trace.subtraces.items() for rest in recent_addresses(sub)]
    return trace.choices.addresses()


def _leaf(trace: Trace, address: tuple) -> Any:
    if isinstance(trace, SequenceTrace) and address:
        return _leaf(trace.elements[address[0]], address[1:])
    if isinstance(trace, GenTrace):
        for i in range(len(address), 0, -1):
            if (sub := trace.subtraces.get(address[:i])) is not None:
                return _leaf(sub, address[i:])
    return trace.choices[address]


def _parts(traces: VectorizedTrace, kind: type) -> tuple[list[tuple], list, Any]:
    """The leaves of a batch, with the nodes of a kind among them, and the paths to them."""
    lanes = _without_args(traces.lanes)
    return optree.tree_flatten_with_path(lanes, is_leaf=lambda node: isinstance(node, kind), namespace=NAMESPACE)


def _past(sequence: tuple, elements: Elements) -> list[Kept]:
    """The steps before the last that are still there."""
    stacks = [stack for stack in elements.stacks if not isinstance(stack, EmptyStack)]
    own = [Kept(sequence, t, trace) for t, trace in elements.own.items() if t < elements.n - 1]
    return [*(Kept(sequence, stack.start, stack) for stack in stacks), *own]


def last_step(elements: Any) -> Trace:
    """The trace of the last step of a sequence that has lanes."""
    if not isinstance(elements, Elements):
        return elements[-1]
    last = elements.n - 1
    if last in elements.own:
        return elements.own[last]
    stack = elements.stack_of(last)
    return map_arrays(lambda array: array[:, last - stack.start], stack.trace)


def _last(elements: Elements) -> Elements:
    """The sequence with its last step alone."""
    last, trace = elements.n - 1, last_step(elements)
    return Elements([EmptyStack(map_arrays(lambda array: AWAY, trace), 0, last)], {last: trace}, elements.n)


def _in_order(steps: Any, order: mx.array) -> Any:
    return map_arrays(lambda array: array[order], steps)


def _whole(elements: Elements, kept: list[Kept], n: int) -> Elements:
    """A sequence of all its steps, stacked as it would be if none had been put away."""
    kept = sorted([*kept, *(Kept((), t, trace) for t, trace in elements.own.items())], key=lambda one: one.start)
    stacks = [one.steps for one in kept if isinstance(one.steps, Stack)]
    traces = {one.start: one.steps for one in kept if not isinstance(one.steps, Stack)}

    def lane(_: Any, stacks: list[Stack], steps: list) -> Elements:
        made = Elements(stacks, {}, stacks[-1].stop if stacks else 0)
        for t, trace in zip(traces, steps, strict=True):
            if t < made.n:
                made[t] = trace
            else:
                made.append(trace)
        made.restack()
        return made

    with recorder(None):
        return run(lane, n, None, Lanes(stacks), Lanes(list(traces.values())))
