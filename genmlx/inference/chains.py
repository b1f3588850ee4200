"""Running Markov chains: many at once as the lanes of one batch, or one by one.

A sampler gives a ``Kernel``. Here its step is run for all chains, warm-up first, and what it visits is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.errors import UsageError
from genmlx.gfi import Call, checked_choices, gen_errors
from genmlx.inference.adaptive import Adaptive
from genmlx.inference.checkpoint import Checkpoint, Place
from genmlx.inference.draws import Draws
from genmlx.inference.kernels import Check, as_kernel, averaged, mean
from genmlx.inference.kernels import Kernel as Kernel
from genmlx.inference.kernels import Step as Step
from genmlx.inference.live_rhat import WATCHED, LiveRhat
from genmlx.inference.loop import Loop
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import checked_problem, positive_count
from genmlx.inference.walks import STARTS, Unrecorded, Walk, resumed, started
from genmlx.random import LaneKey
from genmlx.trace import Trace
from genmlx.vectorized import VectorizedTrace, where
from genmlx.versions import pinned

_KEYS = 1024


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
    checkpoint: str | os.PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
    native: Callable[[ChoiceMap, list], Any] | None = None,
) -> Posterior:
    """A posterior of ``[chains, draws]``: ``warmup`` steps thrown away, then ``thin`` steps for each draw.

    ``make_kernel(trace, observations)`` sees one starting trace, to check what it was told against it. ``settings`` is
    what else the draws depend on: a ``checkpoint`` is resumed only where they are equal. ``native(observations, keys)``
    gives the chains as machine code, ``native.slices.NativeSlices``, or None.
    """
    observations = checked_problem(call, observations)
    positive_count("chains", chains)
    run = Run(algorithm, call, observations, draws, warmup, thin, key, progress, checkpoint, settings)

    def start(streams: random.Streams) -> Walk:
        keys = random.split(streams.initialise, STARTS)
        found = None if native is None else native(observations, keys)
        return found or started(call, observations, make_kernel, chains, keys)

    return run.through(start)


def run_kernel(
    kernel: Any,
    trace: Any,
    draws: int = 1000,
    warmup: int = 0,
    thin: int = 1,
    observations: Any = None,
    check: bool = False,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Posterior:
    """A posterior by applying a kernel to a trace again and again; each lane of a batch of traces is one chain.

    ``warmup`` applications are thrown away, then each draw takes ``thin``. Addresses of ``observations`` are no draws,
    and with ``check`` the kernel may not move them: after every application (which is slower: nothing is recorded)
    they must be what they were, and the score of the trace that of a fresh ``assess``. ``checkpoint`` names a file
    from which the same run goes on if it was killed.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, trace
    >>> from genmlx.inference import chain, mh_kernel
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("a", normal(0, 1)) + trace("b", normal(0, 1)), 0.5))
    >>> start, _ = model().vgenerate({"y": 1.0}, 20, key=mx.random.key(0))
    >>> both = chain(mh_kernel("a"), mh_kernel("b"))
    >>> post = run_kernel(both, start, draws=500, warmup=50, observations={"y": 1.0}, key=mx.random.key(1))
    >>> post["a"].shape, abs(post.mean("a").item() - 4 / 9) < 0.15
    ((20, 500), True)
    """
    kernel, observations = as_kernel(kernel), checked_choices(observations)
    if not isinstance(trace, (Trace, VectorizedTrace)):
        raise UsageError(f"run_kernel was given {trace!r:.60}", expected="a trace, or a batch of traces, to start from")
    for address in observations:
        if address not in trace.choices:
            raise UsageError("the trace has no such choice to observe", address=address, gen_fn=trace.gen_fn)
    if check and checkpoint is not None:
        raise UsageError("run_kernel was given check and a checkpoint", expected="one of the two")
    call = Call(trace.gen_fn, trace.args, {})
    settings = {"kernel": kernel, "start": list(trace.choices.items())}
    run = Run("run_kernel", call, observations, draws, warmup, thin, key, progress, checkpoint, settings, trace.pins)
    return run.through(
        lambda streams: Unrecorded(trace, kernel, observations, Check(observations))
        if check
        else resumed(trace, kernel, observations)
    )


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


class Run:
    """One run of some chains, from the start or from where a checkpoint left it."""

    def __init__(
        self,
        algorithm: str,
        call: Call,
        observations: ChoiceMap,
        draws: int,
        warmup: int,
        thin: int,
        key: Any,
        progress: Callable | None,
        checkpoint: str | os.PathLike | None,
        settings: Mapping[str, Any] | None,
        pins: dict | None = None,
    ):
        for name, count, least in (("draws", draws, 1), ("warmup", warmup, 0), ("thin", thin, 1)):
            positive_count(name, count, least)
        self.algorithm, self.call, self.observations = algorithm, call, observations
        self.draws, self.warmup, self.thin = draws, warmup, thin
        self.key, self.progress = random.as_key(key), progress
        self.path, self.settings, self.pins = checkpoint, settings or {}, pins
        self.drawn, self.since, self.diverged, self.rhat = Draws(), [], 0, LiveRhat()

    def through(self, start: Callable[[random.Streams], Walk]) -> Posterior:
        streams = random.streams(self.key)
        with pinned(self.pins) as pins, gen_errors(self.call.gen_fn), Loop(self.algorithm, self.progress) as loop:
            self.walk = start(streams)
            loop.file = self._checkpoint()
            if self._is_native:
                how = {"draws": self.draws, "warmup": self.warmup, "thin": self.thin}
                values, present, log_joint, stats = self.walk.drawn(loop, streams, **how)
            else:
                values, present, log_joint, stats = self._in_steps(loop, streams)
        result = Posterior(
            values,
            present=present,
            stats=stats,
            log_joint=log_joint,
            call=self.call,
            pins=pins,
            observations=self.observations,
            algorithm=self.algorithm,
            status=loop.status,
            timing=loop.timing,
            execution=self.walk.execution,
        )
        return loop.deliver(result)

    @property
    def _is_native(self) -> bool:
        """Whether the chains are machine code, which makes and keeps many draws at a time."""
        return isinstance(self.walk, Adaptive)

    def _in_steps(self, loop: Loop, streams: random.Streams) -> tuple:
        at = loop.resume(self._restore)
        if at.phase == "warmup":
            self._warm_up(loop, streams.warmup, at.done)
            self.diverged = 0
        self._sample(loop, streams.propose, at.done_in("sampling"))
        return self.drawn.finish()

    def _warm_up(self, loop: Loop, key: Any, done: int) -> None:
        keys = _keys(key, done)

        def block(start: int, stop: int) -> Callable:
            infos = [self.walk.advance(next(keys), warm=True)[2] for _ in range(start, stop)]
            mx.eval(self.walk.arrays(), infos)
            return self._shown(infos)

        loop.run("warmup", self.warmup, block, least=0, done=done, state=self._state)

    def _sample(self, loop: Loop, key: Any, done: int) -> None:
        keys = _keys(key, done)

        def block(start: int, stop: int) -> Callable:
            infos = []
            for _ in range(start, stop):
                choices, score, info = self.walk.advance(next(keys))
                self.since.append(info)
                infos.append(info)
                if len(self.since) == self.thin:
                    self.drawn.add(choices, score, averaged(self.since))
                    self.since = []
            mx.eval(self.walk.arrays(), infos)
            self.drawn.close_block()
            return self._shown(infos, stop // self.thin)

        loop.run("sampling", self.draws * self.thin, block, least=self.thin, done=done, state=self._state)

    def _shown(self, infos: list[dict], draws: int = 0) -> Callable[[], dict]:
        diverging = [info["diverging"] for info in infos if "diverging" in info]
        if diverging:
            found: Any = mx.sum(mx.nan_to_num(mx.stack(diverging).astype(mx.float32))).item()
            self.diverged += round(found)

        def shown() -> dict:
            each = averaged(infos)
            found: dict[str, Any] = {name: mean(value).item() for name, value in each.items()}
            found |= {"draws": draws, "rhat": self.rhat(draws, lambda: self.drawn.some(WATCHED))}
            found["chains"] = lambda: {name: value.tolist() for name, value in each.items() if value.ndim}
            found["watch"] = lambda: self.drawn.watched(WATCHED) if draws else {}
            return found | ({"divergences": self.diverged} if diverging else {})

        return shown

    def _checkpoint(self) -> Checkpoint | None:
        if self.path is None:
            return None
        own = {"draws": self.draws, "warmup": self.warmup, "thin": self.thin, "chains": self.walk.chains}
        own |= {"native": True} if self._is_native else {}
        return Checkpoint.of(
            self.path, self.algorithm, self.call, self.observations, self.key, **own, **self.settings
        )

    def _state(self) -> dict:
        return {
            "chains": self.walk.state(),
            "since": self.since,
            "draws": self.drawn.state(),
            "diverged": self.diverged,
        }

    def _restore(self, at: Place) -> None:
        self.walk.restore(*at.state["chains"])
        self.drawn.restore(at.state["draws"])
        self.since, self.diverged = at.state["since"], at.state["diverged"]


def _keys(key: mx.array, start: int = 0) -> Iterator[mx.array]:
    """The key of each step from ``start`` on, which does not depend on how many steps there will be."""
    each = _KEYS - 1
    while True:
        rows = mx.random.split(key, _KEYS)
        if start < each:
            yield from (rows[i] for i in range(start, each))
        start, key = max(0, start - each), rows[-1]
