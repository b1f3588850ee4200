"""Running Markov chains: many at once as the lanes of one batch, or one by one.

A sampler gives a ``Kernel``. Here its step is run for all chains, warm-up first, and what it visits is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.errors import BatchError, UsageError, ValueMismatch
from genmlx.gfi import Call, gen_errors
from genmlx.inference.loop import Loop
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import checked_problem, impossible, latents, positive_count
from genmlx.inference.replay import BatchedStep, Lanes
from genmlx.masked import Masked, active_of, value_of
from genmlx.pytree import split_arrays
from genmlx.random import LaneKey
from genmlx.trace import Trace
from genmlx.vectorized import VectorizedTrace, vgenerate, where
from genmlx.versions import pinned

Step = Callable[[Any, Any], tuple[Any, dict[str, Any]]]
_STARTS, _KEYS = 100, 1024


def _itself(trace: Trace) -> Trace:
    return trace


def _visited(trace: Trace) -> tuple[ChoiceMap, Any]:
    return trace.choices, trace.score


class Kernel(NamedTuple):
    """A sampler: ``step(state, key) -> (state, info)`` for one chain, with ``info`` a dict of numbers for this step.

    The state is a trace, unless ``init(trace)`` makes another tree of it, of which ``read(state)`` gives all choices,
    observed ones included, and their log joint density. ``warm`` is the step during warm-up where that is another
    one: one that adapts. In a batch the step is recorded and replayed, so it may not depend on anything but its input.
    """

    step: Step
    warm: Step | None = None
    init: Callable[[Trace], Any] = _itself
    read: Callable[[Any], tuple[ChoiceMap, Any]] = _visited


def run_chains(
    algorithm: str,
    call: Call,
    observations: Any,
    make_kernel: Callable[[Trace, ChoiceMap], Kernel],
    *,
    draws: int,
    warmup: int,
    thin: int,
    chains: int,
    key: Any,
    progress: Callable | None,
) -> Posterior:
    """A posterior of ``[chains, draws]``: ``warmup`` steps thrown away, then ``thin`` steps for each draw.

    ``make_kernel(trace, observations)`` sees one starting trace, to check what it was told against it.
    """
    observations = checked_problem(call, observations)
    for name, count, least in (("draws", draws, 1), ("warmup", warmup, 0), ("thin", thin, 1), ("chains", chains, 1)):
        positive_count(name, count, least)
    streams = random.streams(key)
    with pinned() as pins, gen_errors(call.gen_fn), Loop(algorithm, progress) as loop:
        walk = _walk(call, observations, make_kernel, chains, streams.initialise)
        record = _Record()
        warm, keys = _keys(streams.warmup), _keys(streams.propose)
        since: list[dict] = []

        def warm_up(start: int, stop: int) -> dict:
            infos = [walk.advance(next(warm), warm=True)[2] for _ in range(start, stop)]
            mx.eval(walk.arrays(), infos)
            return _shown(infos)

        def sample(start: int, stop: int) -> dict:
            infos = []
            for _ in range(start, stop):
                choices, score, info = walk.advance(next(keys))
                since.append(info)
                infos.append(info)
                if len(since) == thin:
                    record.add(choices, score, _averaged(since))
                    since.clear()
            mx.eval(walk.arrays(), infos)
            record.close_block()
            return _shown(infos)

        loop.run("warmup", warmup, warm_up, least=0)
        loop.run("sampling", draws * thin, sample, least=thin)
        values, present, log_joint, stats = record.finish()
    result = Posterior(
        values,
        present=present,
        stats=stats,
        log_joint=log_joint,
        call=call,
        pins=pins,
        observations=observations,
        algorithm=algorithm,
        status=loop.status,
        timing=loop.timing,
        execution=walk.execution,
    )
    return loop.deliver(result)


def accept(trace: Trace, proposed: Trace, log_ratio: Any, key: Any) -> tuple[Trace, dict[str, Any]]:
    """The Metropolis-Hastings choice between two traces; a NaN ratio rejects.

    In a batch both have the same choices. Alone they may differ in anything, and the choice is made on the host.
    """
    accepted = mx.log(random.uniform_open(key)) < log_ratio
    if proposed is trace:
        chosen = trace
    elif isinstance(key, LaneKey):
        chosen = where(accepted, proposed, trace)
    else:
        chosen = proposed if accepted.item() else trace
    return chosen, {"accept": accepted}


def _walk(call: Call, observations: ChoiceMap, make_kernel: Callable, chains: int, key: Any) -> Any:
    """The chains at their start.

    One chain needs no batch: if the model or the kernel branches on choices, it is run as it is.
    """
    keys = random.split(key, _STARTS)
    try:
        batch = _start(call, observations, chains, keys)
        kernel = _kernel(call, observations, make_kernel, batch[0])
        return _Batch(batch, kernel, observations)
    except BatchError:
        if chains > 1:
            raise
    trace = _single_start(call, observations, keys)
    kernel = _kernel(call, observations, make_kernel, trace)
    return _Single(trace, kernel, observations)


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


def _kernel(call: Call, observations: ChoiceMap, make_kernel: Callable, first: Trace) -> Kernel:
    if first.choices.filter(latents(observations)).is_empty:
        raise UsageError("nothing to infer: every choice is observed, or there is none", gen_fn=call.gen_fn)
    return make_kernel(first, observations)


def _keys(key: mx.array) -> Iterator[mx.array]:
    """The key of each step, which does not depend on how many steps there will be."""
    while True:
        rows = mx.random.split(key, _KEYS)
        yield from (rows[i] for i in range(_KEYS - 1))
        key = rows[-1]


def _visiting(step: Step, kernel: Kernel, observations: ChoiceMap) -> Callable:
    """The step, and what the chain visits by it: the latent choices, the log joint density, the info."""
    kept = latents(observations)

    def visit(state: Any, key: Any) -> Any:
        state, info = step(state, key)
        choices, score = kernel.read(state)
        for address in observations:
            if address not in choices:
                raise UsageError(
                    "a step of the chain removed an observed choice",
                    address=address,
                    expected="a model in which every observed address is visited whatever the latent choices",
                )
        return state, (choices.filter(kept), score, info)

    return visit


class _Batch:
    """All chains at once."""

    def __init__(self, batch: VectorizedTrace, kernel: Kernel, observations: ChoiceMap):
        self.lanes, self._batch = Lanes.of(batch.lanes), batch
        if kernel.init is not _itself:
            start = self._of(lambda trace, key: (kernel.init(trace), ()))
            self.lanes, _ = start.by_handlers(self.lanes, mx.random.key(0))
        self._step = self._warm = self._of(_visiting(kernel.step, kernel, observations)).record(self.lanes)
        if kernel.warm is not None:
            self._warm = self._of(_visiting(kernel.warm, kernel, observations)).record(self.lanes)
        self.execution = self._step.execution

    def _of(self, f: Callable) -> BatchedStep:
        return BatchedStep(f, self._batch.n, self._batch.args)

    def advance(self, key: Any, warm: bool = False) -> tuple[ChoiceMap, Any, dict]:
        self.lanes, visited = (self._warm if warm else self._step)(self.lanes, key)
        return visited

    def arrays(self) -> list:
        return self.lanes.arrays


class _Single:
    """One chain, evaluated at every step: its body may branch on what it chose."""

    execution = "handlers: one chain, of a body that branches on its choices"

    def __init__(self, trace: Trace, kernel: Kernel, observations: ChoiceMap):
        self.state = kernel.init(trace)
        self._step = self._warm = _visiting(kernel.step, kernel, observations)
        if kernel.warm is not None:
            self._warm = _visiting(kernel.warm, kernel, observations)

    def advance(self, key: Any, warm: bool = False) -> tuple[ChoiceMap, Any, dict]:
        self.state, visited = (self._warm if warm else self._step)(self.state, key)
        mx.eval(self.arrays(), split_arrays(visited)[0])
        choices, score, info = visited
        return choices.map(_alone), _alone(score), {name: _alone(value) for name, value in info.items()}

    def arrays(self) -> list:
        return split_arrays(self.state)[0]


def _alone(leaf: Any) -> Any:
    """A batch of this one value."""
    if isinstance(leaf, Masked):
        return Masked(_alone(leaf.value), _alone(leaf.active))
    return mx.array(leaf)[None]


class _Record:
    """What the chains visited: for each latent address ``[chains, draws, *event]``, and which draws have it."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict, Any, dict]] = []
        self.blocks: list[tuple[dict, mx.array, dict]] = []

    def add(self, choices: ChoiceMap, score: Any, info: dict) -> None:
        self.rows.append((choices.to_dict(), score, info))

    def close_block(self) -> None:
        """Evaluate what was added since the last block."""
        if not self.rows:
            return
        choices, scores, infos = zip(*self.rows, strict=True)
        values = {name: _stacked(name, [row.get(name) for row in choices]) for name in _names(choices)}
        stats = {name: mx.stack([info[name] for info in infos], axis=1) for name in infos[0]}
        self.blocks.append((values, mx.stack(list(scores), axis=1), stats))
        mx.eval(self.blocks[-1])
        self.rows = []

    def finish(self) -> tuple[dict, dict, mx.array, dict]:
        blocks, scores, stats = zip(*self.blocks, strict=True)
        values, present = {}, {}
        for name in _names(blocks):
            like = next(block[name][0] for block in blocks if name in block)
            parts = []
            for block, score in zip(blocks, scores, strict=True):
                absent = mx.zeros((*score.shape, *like.shape[2:]), dtype=like.dtype)
                parts.append(block.get(name, (absent, mx.zeros(score.shape, dtype=mx.bool_))))
            has = mx.concatenate([mask for _, mask in parts], axis=1)
            if mx.any(has).item():
                values[name] = _joined(name, [value for value, _ in parts], mx.concatenate)
            if name in values and not mx.all(has).item():
                present[name] = has
        joined = {name: mx.concatenate([block[name] for block in stats], axis=1) for name in stats[0]}
        return values, present, mx.concatenate(list(scores), axis=1), joined


def _names(parts: Any) -> dict:
    return dict.fromkeys(name for part in parts for name in part)


def _stacked(name: tuple, column: list) -> tuple[mx.array, mx.array]:
    """The draws of one address in a block, and which draws have it; what the others hold says nothing."""
    like = next(value_of(leaf) for leaf in column if leaf is not None)
    filled = [mx.zeros_like(like) if leaf is None else value_of(leaf) for leaf in column]
    masks = [False if leaf is None else active_of(leaf) for leaf in column]
    masks = [mx.broadcast_to(mx.array(mask), like.shape[:1]) for mask in masks]
    return _joined(name, filled, mx.stack), mx.stack(masks, axis=1)


def _joined(name: tuple, arrays: list, join: Callable) -> mx.array:
    try:
        return join(arrays, axis=1)
    except ValueError:
        event = list(arrays[0].shape[1 if join is mx.stack else 2 :])
        raise ValueMismatch(
            "a choice has not the same shape in all draws",
            address=name,
            expected=f"the shape {event} of the first",
            hint="one address for each element, as ('y', 0), ('y', 1)",
        ) from None


def _averaged(steps: list[dict]) -> dict:
    if len(steps) == 1:
        return steps[0]
    return {name: sum(s[name].astype(mx.float32) for s in steps) / len(steps) for name in steps[0]}


def _shown(infos: list[dict]) -> dict:
    return {name: mx.mean(mx.stack([info[name] for info in infos]).astype(mx.float32)).item() for name in infos[0]}
