"""A step of all chains at once: run by its handlers to see what it does, then replayed as the MLX graph that it made.

The graph of a step is the same every time: the key and the state go in, the new state comes out. So the handlers run
once, their primitives are recorded (``backend/recording.py``), and the recorded graph does the same arithmetic
without Python: three times faster for a small model, and bit for bit the same, which is checked on the
first step. It needs no compiler. A step that cannot be recorded is run by its handlers every time, and ``execution``
says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import optree

from genmlx.backend.gamma_sampler import without_derivatives
from genmlx.backend.mapping import vmap_list
from genmlx.backend.recording import recorded
from genmlx.gradients import host_value_errors
from genmlx.pytree import NAMESPACE, Skeleton, split_arrays
from genmlx.random import lane_key
from genmlx.trace import Trace
from genmlx.vectorized import _with_args, _without_args

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
