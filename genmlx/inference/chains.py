"""Running Markov chains: many at once as the lanes of one batch, or one by one.

A sampler gives a ``step(trace, key) -> (trace, info)``, where ``info`` is a dict of numbers for this step. Here it is
run for all chains, warm-up first, and what it visits is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.errors import BatchError, UsageError, ValueMismatch
from genmlx.gfi import Call, gen_errors
from genmlx.inference.loop import Loop
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import checked_problem, impossible, latents, positive_count
from genmlx.trace import Trace
from genmlx.vectorized import VectorizedTrace, same_structure, vgenerate, where
from genmlx.versions import pinned

Step = Callable[[Trace, Any], tuple[Trace, dict[str, Any]]]
_STARTS = 100


def run_chains(
    algorithm: str,
    call: Call,
    observations: Any,
    make_step: Callable[[Trace, ChoiceMap], Step],
    draws: int,
    warmup: int,
    thin: int,
    chains: int,
    key: Any,
    progress: Callable | None,
) -> Posterior:
    """A posterior of ``[chains, draws]``: ``warmup`` steps thrown away, then ``thin`` steps for each draw.

    ``make_step(trace, observations)`` sees one starting trace, to check what it was told against it.
    """
    observations = checked_problem(call, observations)
    for name, count, least in (("draws", draws, 1), ("warmup", warmup, 0), ("thin", thin, 1), ("chains", chains, 1)):
        positive_count(name, count, least)
    streams = random.streams(key)
    with pinned() as pins, gen_errors(call.gen_fn), Loop(algorithm, progress) as loop:
        state = _start(call, observations, chains, streams.initialise)
        first = state[0] if isinstance(state, VectorizedTrace) else state
        kept = latents(observations)
        if first.choices.filter(kept).is_empty:
            raise UsageError("nothing to infer: every choice is observed, or there is none", gen_fn=call.gen_fn)
        walk = _Walk(state, make_step(first, observations))
        record = _Record(kept)
        warm, keys = _keys(streams.warmup, warmup), _keys(streams.propose, draws * thin)

        def warm_up(start: int, stop: int) -> dict:
            infos = [walk.advance(warm[i]) for i in range(start, stop)]
            mx.eval(walk.arrays(), infos)
            return _shown(infos)

        def sample(start: int, stop: int) -> dict:
            infos = []
            for i in range(start, stop):
                steps = [walk.advance(keys[j]) for j in range(i * thin, (i + 1) * thin)]
                infos.append(_averaged(steps))
                record.add(walk.choices(), walk.score(), infos[-1])
            record.close_block()
            return _shown(infos)

        loop.run("warmup", warmup, warm_up)
        loop.run("sampling", draws, sample)
        values, log_joint, stats = record.finish()
    result = Posterior(
        values,
        stats=stats,
        log_joint=log_joint,
        call=call,
        pins=pins,
        observations=observations,
        algorithm=algorithm,
        status=loop.status,
        timing=loop.timing,
    )
    return loop.deliver(result)


def accept(trace: Trace, proposed: Trace, log_ratio: Any, key: Any) -> tuple[Trace, dict[str, Any]]:
    """The Metropolis-Hastings choice between two traces; a NaN ratio rejects.

    Traces that differ in their addresses are told apart on the host, which a batch cannot do.
    """
    accepted = mx.log(random.uniform_open(key)) < log_ratio
    if proposed is trace:
        chosen = trace
    elif same_structure(proposed, trace):
        chosen = where(accepted, proposed, trace)
    else:
        chosen = proposed if accepted.item() else trace
    return chosen, {"accept": accepted}


def _start(call: Call, observations: ChoiceMap, chains: int, key: Any) -> Any:
    """One prior draw for each chain, drawn again where the joint density is zero.

    One chain needs no batch: if the body branches on its choices, it is run as it is.
    """
    keys = random.split(key, _STARTS)
    try:
        state = vgenerate(call, observations, chains, keys[0]).trace
    except BatchError:
        if chains > 1:
            raise
        return _single_start(call, observations, keys)
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


def _keys(key: Any, n: int) -> Any:
    return mx.random.split(key, n) if n else []


class _Walk:
    """The chains' current traces, seen as ``[chains, ...]`` whether they are a batch or one plain trace."""

    def __init__(self, state: Any, step: Step):
        self.state, self.step = state, step
        self.batched = isinstance(state, VectorizedTrace)

    def advance(self, key: Any) -> dict[str, Any]:
        if self.batched:
            self.state, info = self.state.step(self.step, key)
            return info
        self.state, info = self.step(self.state, key)
        mx.eval(self.arrays(), info)
        return {name: value[None] for name, value in info.items()}

    def choices(self) -> ChoiceMap:
        return self.state.choices if self.batched else self.state.choices.map(lambda leaf: mx.array(leaf)[None])

    def score(self) -> mx.array:
        return self.state.score if self.batched else self.state.score[None]

    def arrays(self) -> list:
        return [self.state.score, *(value for _, value in self.state.choices.items())]


class _Record:
    """What the chains visited: for each latent address ``[chains, draws, *event]``, NaN where a draw has it not."""

    def __init__(self, kept: Any):
        self.kept = kept
        self.rows: list[tuple[dict, Any, dict]] = []
        self.blocks: list[tuple[dict, Any, dict]] = []

    def add(self, choices: ChoiceMap, score: mx.array, info: dict) -> None:
        self.rows.append((choices.filter(self.kept).to_dict(), score, info))

    def close_block(self) -> None:
        values, scores, infos = zip(*self.rows, strict=True)
        block = (_joined(values, mx.stack), mx.stack(scores, axis=1), _joined(infos, mx.stack))
        mx.eval(block)
        self.blocks.append(block)
        self.rows = []

    def finish(self) -> tuple[dict, mx.array, dict]:
        values, scores, infos = zip(*self.blocks, strict=True)
        return (_joined(values, mx.concatenate), mx.concatenate(scores, axis=1), _joined(infos, mx.concatenate))


def _joined(parts: Iterable[dict], join: Callable) -> dict:
    """One array for each name, along axis 1; a part that lacks it is NaN there."""
    parts = list(parts)
    joined = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        have = [part[name] for part in parts if name in part]
        shape = have[0].shape if join is mx.stack else have[0].shape[2:]
        if len(have) < len(parts):
            have = [_or_nan(part, name, have[0], join) for part in parts]
        try:
            joined[name] = join(have, axis=1)
        except ValueError:
            raise ValueMismatch(
                "a choice has not the same shape in all draws", address=name, expected=f"{list(shape)} as in the first"
            ) from None
    return joined


def _or_nan(part: dict, name: Any, like: mx.array, join: Callable) -> mx.array:
    if name in part:
        return part[name].astype(mx.float32)
    length = next(iter(part.values())).shape[1:2] if join is mx.concatenate else ()
    event = like.shape[2:] if join is mx.concatenate else like.shape[1:]
    return mx.full((like.shape[0], *length, *event), math.nan)


def _averaged(steps: list[dict]) -> dict:
    if len(steps) == 1:
        return steps[0]
    return {name: sum(s[name].astype(mx.float32) for s in steps) / len(steps) for name in steps[0]}


def _shown(infos: list[dict]) -> dict:
    return {name: mx.mean(mx.stack([info[name] for info in infos]).astype(mx.float32)).item() for name in infos[0]}
