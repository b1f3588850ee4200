"""Chains at the place that they have reached: as the lanes of one batch, or one by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import optree

from genmlx.choicemap import ChoiceMap, from_items
from genmlx.dist.distribution import DistTrace
from genmlx.errors import BatchError, UsageError
from genmlx.gfi import Call
from genmlx.inference.kernels import Kernel, Step, itself
from genmlx.inference.problem import impossible, latents
from genmlx.inference.replay import REPLAYED, BatchedStep, Lanes
from genmlx.masked import Masked
from genmlx.pytree import NAMESPACE, map_arrays, split_arrays
from genmlx.random import split
from genmlx.trace import Trace
from genmlx.vectorized import VectorizedTrace, _batch, _replaced, _without_args, vgenerate, where
from genmlx.versions import current_pins

STARTS = 100  # that are drawn before the observations are called impossible

MakeKernel = Callable[[Trace, ChoiceMap], Kernel]
Walk = Any  # Batch, Single or Checked


def started(call: Call, observations: ChoiceMap, make_kernel: MakeKernel, chains: int, keys: list) -> Walk:
    """The chains at their start: draws from the prior, with a key for each attempt.

    One chain needs no batch: if the model or the kernel branches on choices, it is run as it is.
    """
    try:
        batch = _start(call, observations, chains, keys)
        return Batch(batch, _kernel(call, observations, make_kernel, batch[0]), observations)
    except BatchError:
        if chains > 1:
            raise
    trace = _single_start(call, observations, keys)
    return Single(trace, _kernel(call, observations, make_kernel, trace), observations)


def resumed(trace: Any, kernel: Kernel, observations: ChoiceMap) -> Walk:
    """The chains at given traces: one, or the lanes of a batch."""
    if isinstance(trace, VectorizedTrace):
        return Batch(_batch(_in_this_run(trace.lanes), trace.args, trace.n), kernel, observations)
    trace = _in_this_run(trace)
    try:
        lanes = map_arrays(lambda array: array[None], _without_args(trace))
        return Batch(_batch(lanes, trace.args, 1), kernel, observations)
    except BatchError:
        return Single(trace, kernel, observations)


def _in_this_run(tree: Any) -> Any:
    """The same traces with the pins of this run, as those have that its steps make: a recorded step compares them."""

    def visit(node: Any) -> Any:
        if not isinstance(node, Trace):
            return node
        parts = {slot: _in_this_run(getattr(node, slot)) for slot in node.data}
        return _replaced(node, **parts, **({} if isinstance(node, DistTrace) else {"pins": current_pins()}))

    return optree.tree_map(visit, tree, is_leaf=lambda node: isinstance(node, Trace), namespace=NAMESPACE)


def _start(call: Call, observations: ChoiceMap, chains: int, keys: list) -> VectorizedTrace:
    """One prior draw for each chain, drawn again where the joint density is zero."""
    state = vgenerate(call, observations, chains, keys[0]).trace
    for again in keys[1:]:
        alive = state.score > -math.inf
        if mx.all(alive).item():
            return state
        state = where(alive, state, vgenerate(call, observations, chains, again).trace)
    raise impossible(call, state, observations)


def _single_start(call: Call, observations: ChoiceMap, keys: list) -> Trace:
    for key in keys:
        trace = call.generate(observations, key).trace
        if trace.score.item() > -math.inf:
            return trace
    raise impossible(call, trace, observations)


def _kernel(call: Call, observations: ChoiceMap, make_kernel: MakeKernel, first: Trace) -> Kernel:
    require_latents(call, observations, first)
    return make_kernel(first, observations)


def require_latents(call: Call, observations: ChoiceMap, first: Trace) -> None:
    if first.choices.filter(latents(observations)).is_empty:
        raise UsageError("nothing to infer: every choice is observed, or there is none", gen_fn=call.gen_fn)


def latent_choices(choices: ChoiceMap, observations: ChoiceMap) -> ChoiceMap:
    """The latent choices of a state, which must have all observed ones."""
    for address in observations:
        if address not in choices:
            raise UsageError(
                "a step of the chain removed an observed choice",
                address=address,
                expected="a model in which every observed address is visited whatever the latent choices",
            )
    return choices.filter(latents(observations))


def _visiting(step: Step, kernel: Kernel, observations: ChoiceMap) -> Callable:
    """The step, and what the chain visits by it: the latent choices, the log joint density, the info."""

    def visit(state: Any, key: Any) -> Any:
        state, info = step(state, key)
        choices, score = kernel.read(state)
        return state, (latent_choices(choices, observations), score, info)

    return visit


class Batch:
    """All chains at once."""

    def __init__(self, batch: VectorizedTrace, kernel: Kernel, observations: ChoiceMap):
        self.lanes, self._traces = Lanes.of(batch.lanes), batch
        if kernel.init is not itself:
            start = self._of(lambda trace, key: (kernel.init(trace), ()))
            self.lanes, _ = start.by_handlers(self.lanes, mx.random.key(0))
        *first, (last, times) = kernel.stages
        stages = [*first, (_visiting(last, kernel, observations), times)]
        self._step = self._warm = Stages([(self._of(f).record(self.lanes), times) for f, times in stages])
        if kernel.warm is not None:
            self._warm = self._of(_visiting(kernel.warm, kernel, observations)).record(self.lanes)
        self.execution, self.chains = self._step.execution, batch.n

    def _of(self, f: Callable) -> BatchedStep:
        return BatchedStep(f, self._traces.n, self._traces.args)

    def advance(self, key: Any, warm: bool = False) -> tuple[ChoiceMap, Any, dict]:
        self.lanes, visited = (self._warm if warm else self._step)(self.lanes, key)
        return visited

    def arrays(self) -> list:
        return self.lanes.arrays

    def state(self) -> tuple[Any, list]:
        """What ``restore`` needs: a part that JSON can hold, and arrays."""
        return None, self.lanes.arrays

    def restore(self, head: Any, arrays: list) -> None:
        if not _fits(arrays, self.lanes.arrays):
            # The first step may change what the state is made of; later ones then have that form.
            self.advance(mx.random.key(0))
        if not _fits(arrays, self.lanes.arrays):
            raise ValueError("the states of the chains have another form")
        self.lanes = Lanes(arrays, self.lanes.skeleton)


class Stages:
    """Steps of a batch one after the other, each taken a number of times; what comes out of the last."""

    def __init__(self, steps: list[tuple[BatchedStep, int]]):
        self.steps = steps
        self.execution = next((step.execution for step, _ in steps if step.execution != REPLAYED), REPLAYED)

    def __call__(self, lanes: Lanes, key: mx.array) -> tuple[Lanes, Any]:
        count, out = sum(times for _, times in self.steps), None
        keys = iter([key] if count == 1 else split(key, count))
        for step, times in self.steps:
            for _ in range(times):
                lanes, out = step(lanes, next(keys))
        return lanes, out


class Single:
    """One chain, evaluated at every step: its body may branch on what it chose."""

    execution, chains = "handlers: one chain, of a body that branches on its choices", 1

    def __init__(self, trace: Trace, kernel: Kernel, observations: ChoiceMap):
        self._state = kernel.init(trace)
        self._step = self._warm = _visiting(kernel.step, kernel, observations)
        if kernel.warm is not None:
            self._warm = _visiting(kernel.warm, kernel, observations)

    def advance(self, key: Any, warm: bool = False) -> tuple[ChoiceMap, Any, dict]:
        self._state, visited = (self._warm if warm else self._step)(self._state, key)
        mx.eval(self.arrays(), split_arrays(visited)[0])
        return _of_one_chain(*visited)

    def arrays(self) -> list:
        return split_arrays(self._state)[0]

    def state(self) -> tuple[Any, list]:
        if not isinstance(self._state, Trace):
            return None, self.arrays()
        choices = self._state.choices.to_dict()
        return list(choices), [mx.array(value) for value in choices.values()]

    def restore(self, head: Any, arrays: list) -> None:
        if isinstance(self._state, Trace):
            old = self._state
            choices = from_items(zip(map(tuple, head), arrays, strict=True))
            # The same operations on the same values, so the same scores to the last bit.
            self._state = old.gen_fn._generate(old.args, choices, None)[0]
            return
        own, skeleton = split_arrays(self._state)
        if not _fits(arrays, own):
            raise ValueError("the state of the chain has another form")
        self._state = skeleton.fill(arrays)


class Unrecorded:
    """Traces moved by a kernel that is no recorded graph, and may be watched at each application."""

    def __init__(self, trace: Any, kernel: Kernel, observations: ChoiceMap, watch: Callable | None = None):
        self.execution = f"handlers: {'at' if watch is None else 'checked after'} every application"
        self.trace, self.kernel, self.watch, self.observations = trace, kernel, watch, observations
        self.chains = trace.n if isinstance(trace, VectorizedTrace) else 1

    def advance(self, key: Any, warm: bool = False) -> tuple[ChoiceMap, Any, dict]:
        self.trace, info = self.kernel.apply(self.trace, key, self.watch)
        visited = latent_choices(self.trace.choices, self.observations), self.trace.score, info
        return visited if isinstance(self.trace, VectorizedTrace) else _of_one_chain(*visited)

    def arrays(self) -> list:
        return split_arrays(self.trace.lanes if isinstance(self.trace, VectorizedTrace) else self.trace)[0]

    def state(self) -> tuple[Any, list]:
        choices = self.trace.choices.to_dict()
        return list(choices), [mx.array(value) for value in choices.values()]

    def restore(self, head: Any, arrays: list) -> None:
        """From the choices: the same operations on the same values give the same scores to the last bit."""
        call = Call(self.trace.gen_fn, self.trace.args, {})
        choices = from_items(zip(map(tuple, head), arrays, strict=True))
        if isinstance(self.trace, VectorizedTrace):
            self.trace = vgenerate(call, choices.batched(self.chains), self.chains, mx.random.key(0)).trace
        else:
            self.trace = call.gen_fn._generate(call.args, choices, None)[0]


def _of_one_chain(choices: ChoiceMap, score: Any, info: dict) -> tuple[ChoiceMap, Any, dict]:
    return choices.map(_alone), _alone(score), {name: _alone(value) for name, value in info.items()}


def _alone(leaf: Any) -> Any:
    """A batch of this one value."""
    if isinstance(leaf, Masked):
        return Masked(_alone(leaf.value), _alone(leaf.active))
    return mx.array(leaf)[None]


def _fits(arrays: list, like: list) -> bool:
    return [(a.shape, a.dtype) for a in arrays] == [(a.shape, a.dtype) for a in like]
