"""Batches: the operations of any generative function under ``mx.vmap``.

Inside the body every value keeps its own shape. A ``VectorizedTrace`` is one trace whose arrays have the lanes on
axis 0, except its arguments, which all lanes share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import optree

from genmlx.backend.mapping import vmap_list
from genmlx.choicemap import ChoiceMap
from genmlx.display import mimebundle, pretty
from genmlx.edit import Edited, Request
from genmlx.errors import GenError, ParameterError, UsageError
from genmlx.gfi import (
    Call,
    Generated,
    Regenerated,
    Updated,
    as_weight,
    checked_choices,
    gen_errors,
    require_selectable,
)
from genmlx.gradients import host_value_errors
from genmlx.masked import value_of
from genmlx.pytree import NAMESPACE, Skeleton, all_slots, map_arrays, split_arrays
from genmlx.random import as_key, lane_key
from genmlx.selection import as_selection
from genmlx.trace import Trace
from genmlx.versions import pinned


class VectorizedTrace:
    """``n`` traces of one generative function: every leaf, the score and the return value have ``[n]`` first.

    ``tr["slope"]`` is ``[n, ...]``, ``tr[i]`` one trace, ``tr.take(indices)`` and ``tr[a:b]`` some of them.
    """

    __slots__ = ("lanes", "args", "n")

    def __init__(self, lanes: Any, args: tuple, n: int):
        self.lanes, self.args, self.n = lanes, args, n

    @property
    def gen_fn(self) -> Any:
        return self.lanes.gen_fn

    @property
    def score(self) -> mx.array:
        return self.lanes.score

    @property
    def retval(self) -> Any:
        return self._look(lambda trace: trace.retval)

    @property
    def pins(self) -> dict:
        return self.lanes.pins

    @property
    def version(self) -> Any:
        return self.lanes.version

    @property
    def stale(self) -> bool:
        return self.lanes.stale

    @property
    def choices(self) -> ChoiceMap:
        return self._look(lambda trace: trace.choices)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Trace]:
        return (self[i] for i in range(self.n))

    def __contains__(self, address: Any) -> bool:
        """Whether there is a choice at the address or below it."""
        return address in self.choices

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, int) and not isinstance(which, bool):
            if not -self.n <= which < self.n:
                raise UsageError(f"no trace {which} in a batch of {self.n}")
            return self._rebuilt(lambda array: array[which])
        if isinstance(which, slice):
            return self.take(range(*which.indices(self.n)))
        return self._look(lambda trace: trace[which])

    def _look(self, f: Callable) -> Any:
        """What ``f`` sees in a trace, for all lanes."""
        if has_slices(self.lanes):
            return run(lambda key, trace: f(trace), self.n, None, self)
        return _marked(f(self.lanes), self.n)

    def take(self, indices: Any) -> VectorizedTrace:
        """The traces at some indices, with repeats if the indices repeat: what resampling does."""
        index = indices if isinstance(indices, mx.array) else mx.array(list(indices), dtype=mx.int32)
        if index.size == 0:
            raise ParameterError("a batch of no traces", expected="at least one index")
        return VectorizedTrace(self._rebuilt(lambda array: array[index]), self.args, index.size)

    def _rebuilt(self, f: Callable) -> Any:
        lanes = map_arrays(f, _without_args(self.lanes))
        return _with_args(lanes, self.args)

    def update(
        self, constraints: Any = None, args: Any = None, argdiffs: Any = None, key: Any = None, strict: bool = True
    ) -> Updated:
        """Update every trace; weights ``[n]``.

        Constraints are shared by all lanes, unless they are a choice map that came out of a batch of ``n`` (or is
        made one by ``.batched(n)``), which gives each lane its own.
        """
        with pinned(self.pins), gen_errors(self.gen_fn):
            constraints = checked_choices(constraints)
            args, diffs = self.gen_fn.changed(self, args, argdiffs)

            def lane(key: Any, trace: Any, constraints: ChoiceMap) -> Any:
                trace = _with_args(trace, self.args)
                new, *rest = trace.gen_fn._update(trace, args, diffs, constraints, key)
                return _without_args(new), *rest

            new, weight, retdiff, discard = run(lane, self.n, as_key(key), self, constraints)
            new = _with_args(new, args)
            if strict:
                self.gen_fn.require_visited(new, constraints)
            return Updated(_batch(new, args, self.n), _weights(weight, self.n), retdiff, discard)

    def regenerate(
        self, selection: Any, args: Any = None, argdiffs: Any = None, key: Any = None, strict: bool = True
    ) -> Regenerated:
        """Regenerate every trace; weights ``[n]``."""
        with pinned(self.pins), gen_errors(self.gen_fn):
            selection = as_selection(selection)
            args, diffs = self.gen_fn.changed(self, args, argdiffs)

            def lane(key: Any, trace: Any) -> Any:
                trace = _with_args(trace, self.args)
                new, *rest = trace.gen_fn._regenerate(trace, args, diffs, selection, key)
                return _without_args(new), *rest

            new, weight, retdiff = run(lane, self.n, as_key(key), self)
            if strict:
                require_selectable(self.gen_fn, selection, self, _batch(new, args, self.n))
            return Regenerated(_batch(new, args, self.n), _weights(weight, self.n), retdiff)

    def project(self, selection: Any, strict: bool = True) -> mx.array:
        """The summed log density of the selected choices of every trace, ``[n]``."""
        with gen_errors(self.gen_fn):
            selection = as_selection(selection)
            if strict:
                require_selectable(self.gen_fn, selection, self)
            lane = run(lambda key, trace: trace.gen_fn._project(trace, selection), self.n, None, self)
            return _weights(lane, self.n)

    def edit(self, request: Request, key: Any = None) -> Edited:
        """Carry out a request on every trace; weights ``[n]``, and one request that undoes all."""

        def lane(key: Any, trace: Any, request: Request) -> Any:
            new, weight, retdiff, backward = request.apply(_with_args(trace, self.args), key)
            return _without_args(new), weight, retdiff, backward

        with pinned(self.pins), gen_errors(self.gen_fn):
            new, weight, retdiff, backward = run(lane, self.n, as_key(key), self, request)
            shared = getattr(request, "args", None)
            args = self.args if shared is None else self.gen_fn.own(shared)
            return Edited(_batch(new, args, self.n), _weights(weight, self.n), retdiff, backward)

    def step(self, f: Callable, key: Any) -> tuple[VectorizedTrace, Any]:
        """``f(trace, key) -> (trace, info)`` of every lane, where ``f`` leaves the arguments as they are."""

        def lane(key: Any, trace: Any) -> Any:
            new, info = f(trace, key)
            return _without_args(new), info

        new, info = run(lane, self.n, key, self)
        return _batch(new, self.args, self.n), info

    def choice_gradients(self, selection: Any = None, retval_grad: Any = None) -> tuple:
        """The gradients of every trace, each leaf ``[n, ...]``."""
        with pinned(self.pins), gen_errors(self.gen_fn):

            def lane(key: Any, trace: Any) -> Any:
                return _with_args(trace, self.args).choice_gradients(selection, retval_grad)

            return run(lane, self.n, None, self)

    _repr_mimebundle_, _repr_pretty_ = mimebundle, pretty

    def __repr__(self) -> str:
        name = getattr(self.gen_fn, "__name__", self.gen_fn)
        return f"<VectorizedTrace of {self.n} {name}: {self.choices!r}{', stale' if self.stale else ''}>"


class Lanes:
    """Says to ``run`` that the arrays of a tree have the lanes on axis 0."""

    __slots__ = ("tree",)

    def __init__(self, tree: Any):
        self.tree = tree


def vsimulate(call: Call, n: int, key: Any = None) -> VectorizedTrace:
    from genmlx.kept import kept

    gen_fn = call.gen_fn

    def batch(key: Any, args: tuple) -> Any:
        return run(lambda key: _without_args(gen_fn._simulate(args, key)), n, key)

    with pinned(), gen_errors(gen_fn):
        args = gen_fn.own(call)
        trace = kept(("simulate", _count(n)), (gen_fn,), batch, as_key(key), args)
        return _batch(trace, args, n)


def vgenerate(call: Call, constraints: Any, n: int, key: Any = None, strict: bool = True) -> Generated:
    from genmlx.kept import Varying, kept

    gen_fn = call.gen_fn

    def batch(key: Any, args: tuple, given: Varying) -> Any:
        def lane(key: Any, constraints: ChoiceMap) -> Any:
            trace, weight = gen_fn._generate(args, constraints, key)
            return _without_args(trace), weight

        return run(lane, n, key, given.tree)

    with pinned(), gen_errors(gen_fn):
        args, constraints = gen_fn.own(call), checked_choices(constraints)
        def soon(made: tuple) -> list[mx.array]:
            trace, weight = made
            free = (value_of(leaf) for address, leaf in trace.choices.items() if address not in constraints)
            return [weight, trace.score, *free]

        given = Varying(constraints)
        trace, weight = kept(("generate", _count(n)), (gen_fn,), batch, as_key(key), args, given, soon=soon)
        trace = _with_args(trace, args)
        if strict:
            gen_fn.require_visited(trace, constraints)
        return Generated(_batch(trace, args, n), _weights(weight, n))


def where(condition: mx.array, new: Any, old: Any) -> Any:
    """``new`` where the condition holds, else ``old``: for two traces, or lane by lane for two batches."""
    if isinstance(new, VectorizedTrace):
        specs = [split_arrays(_without_args(batch.lanes))[1].spec for batch in (new, old)]
        if specs[0] != specs[1]:
            new, old = (batch.step(lambda trace, key: (in_one_form(trace), ()), None)[0] for batch in (new, old))
        return _batch(where(condition, new.lanes, old.lanes), new.args, new.n)
    (arrays, skeleton), (others, other) = split_arrays(_without_args(new)), split_arrays(_without_args(old))
    if skeleton.spec != other.spec:
        arrays, skeleton = split_arrays(_without_args(in_one_form(new)))
        others, _ = split_arrays(_without_args(in_one_form(old)))
    if len(arrays) != len(others):
        raise GenError("the two traces do not have the same choices", gen_fn=new.gen_fn)
    pairs = {(id(a), id(b)): (a, b) for a, b in zip(arrays, others, strict=True)}
    picked = {which: _picked(condition, *pair) for which, pair in pairs.items()}
    return _with_args(skeleton.fill([picked[id(a), id(b)] for a, b in zip(arrays, others, strict=True)]), new.args)


def in_one_form(trace: Any) -> Any:
    """The trace with the steps of each long sequence in one stack, however they came about."""
    return optree.tree_map(
        lambda node: node.in_one_form() if _has_forms(node) else node, trace, is_leaf=_has_forms, namespace=NAMESPACE
    )


def _has_forms(node: Any) -> bool:
    return hasattr(type(node), "in_one_form")


def _picked(condition: mx.array, a: mx.array, b: mx.array) -> mx.array:
    if a is b:
        return a
    lead = condition.ndim
    return mx.where(condition[(..., *[None] * (a.ndim - lead))] if a.ndim > lead else condition, a, b)


def run(f: Callable, n: int, key: Any, *inputs: Any) -> Any:
    """``f(lane's key, *lane's inputs)`` for ``n`` lanes at once.

    A ``VectorizedTrace`` gives each lane its trace, a choice map of ``n`` lanes its choices; other inputs are
    shared. In the result every array has the lanes first, and every choice map says so.
    """
    batched, fills, forms = zip(*(_lanes_of(value, n) for value in inputs), strict=True) if inputs else ((), (), ())
    # An array that stands in several places is one array in the lane too: that is how an update sees what is unchanged.
    distinct: dict[int, mx.array] = {id(array): array for arrays in batched for array in arrays}
    places = {which: place for place, which in enumerate(distinct)}
    wanted = [[places[id(array)] for array in own] for own in batched]

    def batch(key: Any, arrays: list[mx.array]) -> tuple[list, Skeleton]:
        skeletons = []

        def lane(index: mx.array, *arrays: mx.array) -> list:
            given = [fill([arrays[place] for place in own]) for own, fill in zip(wanted, fills, strict=True)]
            out, skeleton = split_arrays(f(lane_key(key, index, n), *given))
            skeletons.append(skeleton)
            return out or [index]

        with host_value_errors("batched"):
            out = vmap_list(lane, mx.arange(n), *arrays)
        return out, skeletons[-1]

    known = RECORDER.get()
    found = batch if known is None else known(batch, (n, wanted, *forms))
    out, skeleton = found(key, list(distinct.values()))
    return _marked(skeleton.fill(out if skeleton.places else []), n)


# What makes recorded graphs of batches that are run again and again; None where batches are run as they come.
RECORDER: ContextVar[Any] = ContextVar("genmlx_recorder", default=None)


@contextmanager
def recorder(found: Any) -> Iterator[None]:
    """Batches are recorded by this, or with None not at all."""
    token = RECORDER.set(found)
    try:
        yield
    finally:
        RECORDER.reset(token)


def recorded_as(name: str) -> Any:
    """Within a place whose batches are recorded, one of its own."""
    outer = RECORDER.get()
    return recorder(None if outer is None else outer.below(name))


def _lanes_of(value: Any, n: int) -> tuple[list, Callable, Any]:
    """The batched arrays of one input, how a lane gets it back from its share of them, and what else it is made of."""
    if isinstance(value, VectorizedTrace):
        arrays, skeleton = split_arrays(_without_args(value.lanes))
        return arrays, lambda own: _with_args(skeleton.fill(own), value.args), (skeleton, value.args)
    if isinstance(value, Lanes):
        # A number that all lanes share is an array where it was stacked with those of other batches.
        arrays, skeleton = split_arrays(value.tree, axes=1)
        return arrays, skeleton.fill, skeleton
    nodes, spec = optree.tree_flatten(value, is_leaf=_is_batched, namespace=NAMESPACE)
    own = [split_arrays(ChoiceMap(node._root)) if _is_batched(node) else None for node in nodes]
    for node in nodes:
        if _is_batched(node) and node.n != n:
            raise UsageError(f"choices of {node.n} lanes for a batch of {n}")

    def fill(arrays: Any) -> Any:
        rest, filled = list(arrays), []
        for node, parts in zip(nodes, own, strict=True):
            if parts is None:
                filled.append(node)
            else:
                filled.append(parts[1].fill(rest[: len(parts[0])]))
                rest = rest[len(parts[0]) :]
        return optree.tree_unflatten(spec, filled)

    form = (spec, [node if parts is None else parts[1] for node, parts in zip(nodes, own, strict=True)])
    return [array for parts in own if parts is not None for array in parts[0]], fill, form


def stacked_choices(trace: Any, n: int) -> ChoiceMap:
    """The choices of a stacked trace, each leaf with its ``n`` rows on axis 0."""
    if has_slices(trace):
        return ChoiceMap(run(lambda key, row: row.choices, n, None, Lanes(trace))._root)
    return trace.choices


def has_slices(trace: Any) -> bool:
    """Whether looking inside a stacked trace would slice axis 0."""
    return any(map(_is_sliced, optree.tree_leaves(trace, is_leaf=_is_sliced, namespace=NAMESPACE)))


def _is_sliced(node: Any) -> bool:
    return getattr(node, "sliced", False)


def _is_batched(node: Any) -> bool:
    return isinstance(node, ChoiceMap) and node.n is not None


def _marked(tree: Any, n: int) -> Any:
    return optree.tree_map(
        lambda node: ChoiceMap(node._root, n) if isinstance(node, ChoiceMap) and not node.is_empty else node,
        tree,
        is_leaf=lambda node: isinstance(node, (ChoiceMap, Trace)),
        namespace=NAMESPACE,
    )


def _batch(trace: Any, args: tuple, n: int) -> VectorizedTrace:
    return VectorizedTrace(_with_args(trace, args), args, n)


def _without_args(trace: Trace) -> Any:
    """The trace with its arguments, which are shared, taken out, and numbers it returns made arrays."""
    if "retval" in trace.data:
        return _replaced(trace, args=(), retval=_arrays(trace.retval))
    return _replaced(trace, args=())


def _with_args(trace: Trace, args: tuple) -> Any:
    return _replaced(trace, args=args)


def _replaced(trace: Trace, **slots: Any) -> Any:
    new = object.__new__(type(trace))
    put = object.__setattr__
    for slot in all_slots(type(trace)):
        put(new, slot, None if slot.startswith("_") else slots.get(slot, getattr(trace, slot)))
    return new


def _arrays(retval: Any) -> Any:
    return optree.tree_map(
        lambda leaf: mx.array(leaf) if isinstance(leaf, (bool, int, float)) else leaf, retval, namespace=NAMESPACE
    )


def _weights(weight: Any, n: int) -> mx.array:
    weight = as_weight(weight)
    return weight if weight.ndim else mx.broadcast_to(weight, (n,))


def _count(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ParameterError(f"a batch of {n!r} traces", expected="a whole number, at least 1")
    return n




def concatenate(batches: list[VectorizedTrace]) -> VectorizedTrace:
    """One batch of the lanes of several."""
    if len(batches) == 1:
        return batches[0]
    split = [split_arrays(_without_args(batch.lanes)) for batch in batches]
    joined = [mx.concatenate(list(arrays)) for arrays in zip(*[arrays for arrays, _ in split], strict=True)]
    args = batches[0].args
    return _batch(split[0][1].fill(joined), args, sum(batch.n for batch in batches))
