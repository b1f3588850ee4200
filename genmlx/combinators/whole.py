"""A long sequence simulated or scored as a whole: the kernel is traced a few times, however many steps there are.

Two passes. The first finds the states. When every choice is given and the kernel's graph shows that the next state is
made of choices alone, that is one batch over the steps. Otherwise it goes through the steps in order, but computes only
the free choices and the states: the kernel's graph, recorded once for a chunk of steps, with all noise drawn
beforehand. The second pass has every choice and state, so the steps no longer wait for each other: it is one batch over
the steps, which gives the traces and the scores.

A kernel that needs the host value of its state or its choices, whose choices differ from step to step, or that closes
over arrays (which a recorded graph would freeze) is not for this, and neither is sampling inside a larger batch
(recorded graphs cannot be batched): those are run step by step.
"""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

import mlx.core as mx
import optree

from genmlx import random
from genmlx.backend.recording import depends, recorded
from genmlx.backend.sums import summed
from genmlx.choicemap import EMPTY, ChoiceMap, covering, from_items
from genmlx.dist.values import as_array
from genmlx.free import Fixed, Free
from genmlx.gen import GenFn
from genmlx.gfi import GenerativeFunction
from genmlx.masked import Masked
from genmlx.pytree import NAMESPACE, flatten, map_arrays, split_arrays
from genmlx.random import LaneKey, Tape
from genmlx.vectorized import Lanes, run
from genmlx.versions import resolve

LEAST = 32
_CHUNK = 16


class Whole(NamedTuple):
    """The traces of all steps as one, and the weight of the constrained choices."""

    trace: Any
    weight: Any


def run_whole(sequence: Any, args: tuple, n: int, constraints: ChoiceMap, key: Any) -> Whole | None:
    """All steps at once, or None for what must be run step by step."""
    if n < LEAST or isinstance(key, Tape) or not self_contained(sequence.kernel):
        return None  # a tape is the key of a longer sequence, which this one is a step of
    try:
        inputs, given = sequence.stacked_inputs(args), stacked_choices(constraints, n)
        if inputs is None or given is None:
            return None
        if not sequence.chained:
            return _independent(sequence, args, n, inputs, given, key)
        return _Chain(sequence, args, n, inputs, given).run(key)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, StopIteration):
        # Whatever does not trace is run step by step, which says what is wrong if anything is.
        return None


def stacked_choices(constraints: ChoiceMap, n: int) -> ChoiceMap | None:
    """Constraints on every step as arrays over the steps; None when the steps' differ."""
    if constraints.is_empty:
        return EMPTY
    if len(constraints.parts()) != n or constraints.is_leaf:
        return None
    steps = [constraints.sub((t,)).to_dict() for t in range(n)]
    if any(step.keys() != steps[0].keys() for step in steps) or not steps[0]:
        return None
    return from_items((address, stacked([step[address] for step in steps])) for address in steps[0])


def stacked(values: list) -> Any:
    """Numbers, or arrays of one shape, as one array."""
    if all(isinstance(v, (int, float)) for v in values):
        return mx.array(values)
    if any(isinstance(v, Masked) for v in values):
        raise ValueError("values that only some lanes have are not stacked")
    if any(isinstance(v, (Free, Fixed)) for v in values):
        if len({type(v) for v in values}) > 1:
            raise ValueError("choices that are given in different ways are not stacked")
        return type(values[0])(mx.stack([v.array for v in values]))
    return mx.stack([as_array(v) for v in values])


def stacked_columns(columns: Any) -> Any:
    """Columns as arrays: an array, a list of numbers or of arrays of one shape, or a tuple or dict of those."""
    if isinstance(columns, tuple):
        made = tuple(map(stacked_columns, columns))
        return None if any(c is None for c in made) else made
    if isinstance(columns, dict):
        made = {name: stacked_columns(column) for name, column in columns.items()}
        return None if any(c is None for c in made.values()) else made
    if isinstance(columns, list):
        same_shape = len({getattr(v, "shape", ()) for v in columns}) == 1
        numbers = all(isinstance(v, (int, float, mx.array)) for v in columns)
        return stacked(columns) if columns and numbers and same_shape else None
    return columns if isinstance(columns, mx.array) else None


def self_contained(kernel: Any, seen: tuple = ()) -> bool:
    """Whether a generative function closes over nothing that holds an array."""
    if kernel in seen:  # it calls itself
        return True
    seen = (*seen, kernel)
    if isinstance(kernel, GenFn):
        return _plain(resolve(kernel).function, seen)
    parts = [getattr(kernel, name) for name in ("kernel", "inner", "branches") if hasattr(kernel, name)]
    flat = [p for part in parts for p in (part if isinstance(part, list) else [part])]
    functions = [getattr(kernel, name, None) for name in ("_pre", "_post")]
    return all(self_contained(p, seen) for p in flat) and all(f is None or _plain(f, seen) for f in functions)


def _plain(value: Any, seen: tuple) -> bool:
    if isinstance(value, FunctionType):
        return all(_plain(cell.cell_contents, seen) for cell in value.__closure__ or ())
    if isinstance(value, GenerativeFunction):
        return self_contained(value, seen)
    return value is None or isinstance(value, (bool, int, float, str, type, ModuleType, BuiltinFunctionType))


def _independent(sequence: Any, args: tuple, n: int, inputs: Any, given: ChoiceMap, key: Any) -> Whole:
    kernel = sequence.kernel

    def lane(key: Any, inputs: Any, given: ChoiceMap) -> Any:
        return kernel._generate(kernel.bind(sequence.kernel_args(None, inputs, args)), given, key)

    lanes, weight = run(lane, n, key, Lanes(inputs), ChoiceMap(given._root, None if given.is_empty else n))
    return Whole(lanes, summed(weight) if isinstance(weight, mx.array) else weight)


class _Scored(NamedTuple):
    trace: Any
    weight: Any
    state: Any


class _Chain:
    """The two passes of a sequence whose steps hand on a state."""

    def __init__(self, sequence: Any, args: tuple, n: int, inputs: Any, given: ChoiceMap):
        self.sequence, self.args, self.n, self.inputs, self.given = sequence, args, n, inputs, given
        self.kernel = sequence.kernel

    def step(self, state: Any, inputs: Any, given: ChoiceMap, args: tuple, key: Any) -> Any:
        return self.kernel._generate(self.kernel.bind(self.sequence.kernel_args(state, inputs, args)), given, key)[0]

    def run(self, key: Any) -> Whole:
        noise_key, record_key = random.split(key) if key is not None else (None, None)
        tape = None if key is None else Tape(record_key)
        start = self.sequence.initial_state(self.args)
        first = self.step(start, _row(self.inputs), _row(self.given), self.args, tape)
        if first.reads():
            raise ValueError("a recorded graph would freeze the parameters")
        self.start = _like(start, self.sequence.next_state(first.retval))
        free = [a for a in first.choices if a not in self.given]
        if not free and not self.carries_state():
            chosen, states = {}, self.batch(self.start, shared_state=True).state
        elif _is_traced((self.args, self.inputs, self.given), key):
            raise ValueError("a recorded graph cannot be batched")
        else:
            requests = tape.requests if tape is not None else []
            keys = random.split(noise_key, max(1, len(requests)))
            noise = [random.noise(kind, k, (self.n, *shape)) for (kind, shape), k in zip(requests, keys, strict=False)]
            chosen, states = self.in_order(free, noise)
        before = optree.tree_map(
            lambda first, rest: mx.concatenate([first[None], rest[:-1]]), self.start, states, namespace=NAMESPACE
        )
        scored = self.batch(before, self.given.merge(from_items(chosen.items())))
        weight = summed(scored.weight) if isinstance(scored.weight, mx.array) else scored.weight
        return Whole(scored.trace, weight)

    def batch(self, states: Any, choices: ChoiceMap | None = None, shared_state: bool = False) -> _Scored:
        """All steps at once, each with its state, or all with the same."""
        choices, observed = choices or self.given, covering(self.given)
        complete = len(choices) == len(self.given)  # every choice is given: the weight of generate is all of it

        def lane(_: Any, state: Any, inputs: Any, choices: ChoiceMap) -> Any:
            args = self.kernel.bind(self.sequence.kernel_args(state, inputs, self.args))
            trace, weight = self.kernel._generate(args, choices, None)
            if not complete:
                weight = self.kernel._project(trace, observed)
            return _Scored(trace, weight, self.sequence.next_state(trace.retval))

        given = ChoiceMap(choices._root, self.n)
        return run(lane, self.n, None, states if shared_state else Lanes(states), Lanes(self.inputs), given)

    def carries_state(self) -> bool:
        """Whether the next state depends on the state, and not only on what is given at its step."""
        states, spec = flatten(self.start)
        rest, fill = _arrays((_row(self.inputs), _row(self.given), self.args))

        def next_state(*arrays: mx.array) -> list:
            inputs, given, args = fill(arrays[len(states) :])
            state = optree.tree_unflatten(spec, list(arrays[: len(states)]))
            made = self.sequence.next_state(self.step(state, inputs, given, args, None).retval)
            return [mx.array(leaf) for leaf in flatten(made)[0]]

        return depends(next_state, [mx.zeros(a.shape, dtype=a.dtype) for a in [*states, *rest]], len(states))

    def in_order(self, free: list[tuple], noise: list[mx.array]) -> tuple[dict, Any]:
        """The first pass: the free choices and the states after each step, stacked."""
        states, spec = flatten(self.start)
        shared, shared_spec = _arrays(self.args)
        columns, fill = _arrays((noise, self.inputs, list(self.given.to_dict().values())))
        addresses = list(self.given.to_dict())

        def steps(length: int) -> Any:
            def chunk(*arrays: mx.array) -> list:
                state = list(arrays[: len(states)])
                args = shared_spec(arrays[len(states) : len(states) + len(shared)])
                rows = arrays[len(states) + len(shared) :]
                made: list[list] = []
                for t in range(length):
                    noise, inputs, given = fill([column[t] for column in rows])
                    choices = from_items(zip(addresses, given, strict=True))
                    tape = Tape(draws=noise) if noise else None
                    trace = self.step(optree.tree_unflatten(spec, state), inputs, choices, args, tape)
                    state = [mx.array(leaf) for leaf in flatten(self.sequence.next_state(trace.retval))[0]]
                    made.append([*(trace.choices[a] for a in free), *state])
                return [*state, *(mx.stack(list(column)) for column in zip(*made, strict=True))]

            return chunk

        carried, parts, done = states, [], 0
        for length in (_CHUNK, 1):
            if self.n - done < length:
                continue
            sample = [*carried, *shared, *(column[:length] for column in columns)]
            shapes = [mx.zeros(a.shape, dtype=a.dtype) for a in sample]
            step = recorded(steps(length), *shapes)
            while self.n - done >= length:
                out = step(*carried, *shared, *(column[done : done + length] for column in columns))
                carried, made = list(out[: len(states)]), out[len(states) :]
                parts.append(made)
                done += length
        joined = [mx.concatenate(list(column)) for column in zip(*parts, strict=True)]
        chosen = dict(zip(free, joined, strict=False))
        return chosen, optree.tree_unflatten(spec, joined[len(free) :])


def _row(tree: Any) -> Any:
    return map_arrays(lambda array: array[0], tree)


def _is_traced(tree: Any, key: Any) -> bool:
    """Whether this is one lane of a larger batch."""
    if isinstance(key, LaneKey):
        return True
    try:
        mx.eval(split_arrays(tree)[0])
    except ValueError:
        return True
    return False


def _arrays(tree: Any) -> tuple[list, Any]:
    arrays, skeleton = split_arrays(tree)
    return arrays, skeleton.fill


def _like(start: Any, state: Any) -> Any:
    """The initial state in the structure and dtypes of the states that the kernel returns."""
    mine, spec = flatten(start)
    theirs, other = flatten(state)
    if spec != other:
        raise ValueError("the state changes its structure")
    made = []
    for a, b in zip(mine, theirs, strict=True):
        a, b = (as_array(a).astype(as_array(b).dtype) if isinstance(a, (int, float)) else as_array(a)), as_array(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError("the state changes its shape")
        made.append(a)
    return optree.tree_unflatten(spec, made)
