"""A step of all chains at once: run by its handlers to see what it does, then replayed as the MLX graph that it made.

The graph of a step is the same every time: the key and the state go in, the new state comes out. So the handlers run
once, their primitives are recorded (``backend/recording.py``), and the recorded graph does the same arithmetic
without Python: three times faster for a small model, and bit for bit the same, which is checked on the
first step. It needs no compiler. A step that cannot be recorded is run by its handlers every time, and ``execution``
says why.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import mlx.core as mx
import optree

from genmlx.backend.gamma_sampler import without_derivatives
from genmlx.backend.mapping import vmap_list
from genmlx.backend.recording import recorded
from genmlx.diff import same
from genmlx.gradients import host_value_errors
from genmlx.pytree import NAMESPACE, Skeleton, split_arrays
from genmlx.random import lane_key
from genmlx.trace import Trace
from genmlx.vectorized import _with_args, _without_args, recorder

REPLAYED = "replayed"


class Lanes:
    """The states of ``n`` chains: a tree whose arrays have the chains first, taken apart.

    The arguments of the traces in it are shared by all chains.
    """

    __slots__ = ("arrays", "skeleton")

    def __init__(self, arrays: list[mx.array], skeleton: Skeleton):
        self.arrays, self.skeleton = arrays, skeleton

    @classmethod
    def of(cls, state: Any) -> Lanes:
        return cls(*split_arrays(_each_trace(_without_args, state)))

    def state(self, arrays: Any, args: tuple) -> Any:
        return _each_trace(lambda trace: _with_args(trace, args), self.skeleton.fill(arrays))


class BatchedStep:
    """``f(state, key) -> (state, out)`` of one chain, for ``n`` of them: ``step(lanes, key) -> (lanes, out)``."""

    def __init__(self, f: Callable, n: int, args: tuple):
        self.f, self.n, self.args = f, n, args
        self.execution = "handlers"
        self._replay: Any = None
        self._skeleton: Any = None

    def __call__(self, lanes: Lanes, key: mx.array) -> tuple[Lanes, Any]:
        if self._replay is None:
            return self.by_handlers(lanes, key)
        arrays = self._replay(key, *lanes.arrays)
        own = len(lanes.arrays)
        return Lanes(arrays[:own], lanes.skeleton), self._skeleton.fill(arrays[own:])

    def by_handlers(self, lanes: Lanes, key: mx.array) -> tuple[Lanes, Any]:
        skeletons = []

        def lane(index: mx.array, *own: mx.array) -> list:
            state, out = self.f(lanes.state(own, self.args), lane_key(key, index, self.n))
            new, (arrays, skeleton) = Lanes.of(state), split_arrays(out)
            skeletons[:] = [len(new.arrays), new.skeleton, skeleton]
            return [*new.arrays, *arrays]

        with host_value_errors("batched"):
            arrays = vmap_list(lane, mx.arange(self.n), *lanes.arrays)
        own, skeleton, rest = skeletons
        return Lanes(arrays[:own], skeleton), rest.fill(arrays[own:])

    def record(self, lanes: Lanes) -> BatchedStep:
        """Run once by handlers, and record it for replay on states of the structure and shapes of these."""
        key = mx.random.key(0)
        # What is not evaluated yet would be recorded, and computed again by every step.
        mx.eval(key, lanes.arrays, split_arrays(self.args)[0])
        new, out = self.by_handlers(lanes, key)
        if not _alike(new, lanes):
            self.execution = "handlers: the step changes what the state is made of"
            return self

        def flat(key: mx.array, *arrays: mx.array) -> list:
            new, out = self.by_handlers(Lanes(list(arrays), lanes.skeleton), key)
            return [*new.arrays, *split_arrays(out)[0]]

        expected, skeleton = split_arrays(out)
        expected = [*new.arrays, *expected]
        try:
            with without_derivatives():
                replay = recorded(flat, key, *lanes.arrays)
            found = replay(key, *lanes.arrays)
            mx.eval(found, expected)
        # A primitive that cannot be exported; or a thread whose stream is not the first (MLX 0.32.4 asks for that one).
        except (ValueError, RuntimeError, OSError) as error:
            self.execution = f"handlers: {error}"
            return self
        same = [mx.array_equal(a, b, equal_nan=True).item() for a, b in zip(found, expected, strict=True)]
        if all(same):
            self.execution, self._replay, self._skeleton = REPLAYED, replay, skeleton
        else:
            self.execution = "handlers: a replay of the step differs from it"
        return self


class Replays:
    """Batches that are run again and again, as in the filters of a particle Markov chain, as recorded graphs.

    Within ``with replays.place(name)`` the first batch, the second, and so on are each known by that name and number.
    One that comes a second time with inputs of the same form is recorded, and replayed from then on. What it closes
    over must be the same every time: whatever changes is to be an input.
    """

    def __init__(self) -> None:
        self._graphs: dict[tuple, Any] = {}

    def place(self, *name: Any) -> Any:
        return recorder(_Place(self, name))

    def known(self, batch: Callable, which: tuple, form: tuple) -> Callable:
        """The batch, or what was recorded of it."""

        def run(key: Any, arrays: list[mx.array]) -> tuple[list, Skeleton]:
            shapes = [(array.shape, array.dtype) for array in arrays]
            known = self._graphs.get(which)
            if known is not None and not (known.shapes == shapes and _same_form(known.form, form)):
                known = None
            graph: Any = None if known is None else known.graph  # False where there can be none
            if graph and known is not None:
                return graph(*(() if key is None else (key,)), *arrays), known.skeleton
            with recorder(None):  # what is run inside of a lane is a part of it
                found, skeleton = batch(key, arrays)
                if known is not None and graph is None:
                    graph = self._recorded(batch, key, arrays, found)
            self._graphs[which] = _Known(form, shapes, skeleton, graph)
            return found, skeleton

        return run

    def _recorded(self, batch: Callable, key: Any, arrays: list[mx.array], expected: list) -> Any:
        """A graph that does what the batch did; False where there is none.

        An array that stands in several places of the result is one there too: an update goes by that.
        """
        keys = [] if key is None else [key]
        distinct = list({id(array): array for array in expected}.values())
        order = {id(array): place for place, array in enumerate(distinct)}
        places = [order[id(array)] for array in expected]
        firsts = [places.index(place) for place in range(len(distinct))]

        def flat(*given: mx.array) -> list:
            found = batch(given[0] if keys else None, list(given[len(keys) :]))[0]
            return [found[first] for first in firsts]

        if any(not isinstance(own, mx.array) for own in keys):
            return False
        mx.eval(keys, arrays, distinct)
        try:
            with without_derivatives():
                graph = recorded(flat, *keys, *arrays)
            found = graph(*keys, *arrays)
            mx.eval(found)
        except (ValueError, RuntimeError, OSError):  # as for BatchedStep
            return False
        if not all(mx.array_equal(a, b, equal_nan=True).item() for a, b in zip(found, distinct, strict=True)):
            return False

        def replay(*given: mx.array) -> list:
            found = graph(*given)
            return [found[place] for place in places]

        return replay


class _Place:
    """The batches of one place, which are known by its name and their number."""

    def __init__(self, replays: Replays, name: tuple):
        self.replays, self.name, self.numbers = replays, name, count()

    def __call__(self, batch: Callable, form: tuple) -> Callable:
        return self.replays.known(batch, (*self.name, next(self.numbers)), form)

    def below(self, name: str) -> _Place:
        return _Place(self.replays, (*self.name, name))


class _Known(NamedTuple):
    form: tuple
    shapes: list
    skeleton: Skeleton
    graph: Any


def _same_form(a: Any, b: Any) -> bool:
    """Whether two inputs are made of the same, their arrays aside."""
    if isinstance(a, Skeleton):
        own = isinstance(b, Skeleton) and a.spec == b.spec and a.places == b.places
        return own and _same_form(tuple(a.leaves), tuple(b.leaves))
    if isinstance(a, (tuple, list)):
        return isinstance(b, (tuple, list)) and len(a) == len(b) and all(map(_same_form, a, b))
    if isinstance(a, optree.PyTreeSpec):
        return a == b
    return same(a, b) or (a is None and b is None)


def _alike(new: Lanes, old: Lanes) -> bool:
    """Whether the arrays of one fit the skeleton of the other."""
    a, b = new.skeleton, old.skeleton
    forms = [[(array.shape, array.dtype) for array in lanes.arrays] for lanes in (new, old)]
    return a.spec == b.spec and a.leaves == b.leaves and a.places == b.places and forms[0] == forms[1]


def _each_trace(f: Callable, tree: Any) -> Any:
    if isinstance(tree, Trace):
        return f(tree)
    return optree.tree_map(
        lambda node: f(node) if isinstance(node, Trace) else node,
        tree,
        is_leaf=lambda node: isinstance(node, Trace),
        namespace=NAMESPACE,
    )
