"""Conditional sequential Monte Carlo: a particle filter that keeps one given trace as a particle at every step.

Andrieu, Doucet and Holenstein (2010), "Particle Markov chain Monte Carlo methods"; with ancestor sampling, Lindsten,
Jordan and Schon (2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import EMPTY, ChoiceMap, from_items, show_value
from genmlx.errors import BatchError, ParameterError, UsageError
from genmlx.gfi import as_weight, checked_choices
from genmlx.inference.importance import weighted
from genmlx.inference.kernels import ITSELF, Info, Kernel, Watch
from genmlx.inference.loop import Loop
from genmlx.inference.moves import called
from genmlx.inference.particle_filter import ParticleFilter
from genmlx.inference.problem import positive_count
from genmlx.inference.resampling import conditional_resample, resample
from genmlx.inference.smc import Filtering, StepKeys, merged
from genmlx.inference.translators import SimpleExtendingTranslator
from genmlx.masked import Masked, value_of
from genmlx.random import LaneKey
from genmlx.selection import Selection, as_selection, select
from genmlx.trace import Trace
from genmlx.vectorized import VectorizedTrace, _batch, _without_args, concatenate, run

ANCESTORS = (False, True, "markov")


def csmc(
    steps: Iterable[Any],
    retained: Any,
    particles: int = 100,
    ess_threshold: float = 0.5,
    resampling: str = "systematic",
    proposal: Any = None,
    ancestor_sampling: bool | str = False,
    record: Callable[[ParticleFilter], Any] | None = None,
    key: Any = None,
    progress: Callable | None = None,
) -> ParticleFilter:
    """The particles of ``smc`` given that ``retained``, a trace of the last call, is one of them: the first, always.

    Resampling is conditional too, by the scheme's own law. A particle drawn by its weight at the end is a trace of a
    Markov chain whose stationary distribution is the posterior, however few particles there are: ``csmc_kernel``.

    With ``ancestor_sampling`` each resampling gives what is left of the retained trace another past, so that the chain
    also moves where all particles have one ancestor: then the first particle ends as ``retained`` does, and may have
    begun otherwise. For that every particle is extended to the last step; ``"markov"`` looks only at the next one,
    which is the same, and cheaper, where a step depends on nothing but the state before it.
    """
    filtering = ConditionalFilter(steps, particles, ess_threshold, resampling, proposal, ancestor_sampling)
    with Loop("csmc", progress) as loop:
        result = filtering.given(retained, random.streams(key), loop, record)
    result.algorithm, result.status, result.timing = loop.algorithm, loop.status, loop.timing
    return loop.deliver(result)


def csmc_kernel(
    steps: Iterable[Any],
    particles: int = 100,
    fixed: Any = None,
    ess_threshold: float = 0.5,
    resampling: str = "systematic",
    proposal: Any = None,
    ancestor_sampling: bool | str = True,
) -> Kernel:
    """A kernel on traces of the last call of ``steps``: a conditional filter, and a particle drawn by its weight.

    The choices that ``fixed`` selects stay, as parameters that another kernel moves; they belong to the first step.
    It is its own reversal. In a batch the traces are moved one after the other.
    """
    filtering = ConditionalFilter(steps, particles, ess_threshold, resampling, proposal, ancestor_sampling)
    return ConditionalKernel(filtering, None if fixed is None else as_selection(fixed))


class ConditionalFilter(Filtering):
    """A conditional filter, which can be run on one retained trace after the other."""

    def __init__(
        self,
        steps: Iterable[Any],
        particles: int,
        ess_threshold: float,
        resampling: str,
        proposal: Any,
        ancestor_sampling: bool | str,
    ):
        super().__init__(steps, positive_count("particles", particles, 2), ess_threshold, resampling, proposal)
        if ancestor_sampling not in ANCESTORS:
            raise ParameterError(f"ancestor_sampling is {ancestor_sampling!r}", expected="True, False or 'markov'")
        self.ancestors = ancestor_sampling
        self.needs: dict[int, list[tuple]] = {}  # the new latent choices of each step, where they are always the same

    def given(
        self,
        retained: Any,
        streams: random.Streams,
        loop: Loop | None = None,
        record: Callable | None = None,
        fixed: ChoiceMap = EMPTY,
    ) -> ParticleFilter:
        """A run that keeps a trace."""
        self.past = _Past(retained, self.observations, fixed)
        result = self.run(streams, loop, record, fixed)
        if loop is None or loop.status == "complete":
            self.past.require_used()
        return result

    def begin(self, fixed: ChoiceMap, key: Any) -> ParticleFilter:
        call, observations, proposal = self.stages[0]
        given = checked_choices(observations).merge(fixed)
        with self.place("begin"):
            lanes = given if fixed.is_empty else given.repeated(self.n - 1)
            free, weights = weighted(call, lanes, proposal, self.n - 1, key)
        with self.place("kept"):
            kept, weight = self._kept(0, None, given, proposal)
        return ParticleFilter.begun(concatenate([kept, free]), mx.concatenate([weight, weights]), call, given)

    def advance(self, pf: ParticleFilter, t: int, keys: StepKeys) -> ParticleFilter:
        call, observations, proposal = self.stages[t]
        new, proposal = checked_choices(observations), self.proposal if proposal is None else proposal
        if self.due(pf):
            kept: Any = 0
            if self.ancestors:
                joint = pf.log_weights + self._futures(pf, t)
                kept = resample(joint, 1, keys.move.next(), "multinomial").item()
            index = conditional_resample(pf.log_weights, kept, self.n, keys.choose.next(), self.scheme)
            pf = pf.taken(index, mx.zeros((self.n,)))
        with self.place(("extend", t)):
            translator = SimpleExtendingTranslator(call, None, new, proposal)
            free, weights = translator(pf.traces.take(range(1, self.n)), keys.extend.next())
        with self.place(("kept", t)):
            kept, weight = self._kept(t, pf.traces.take([0]), new, proposal)
        return pf.extended(concatenate([kept, free]), mx.concatenate([weight, weights]), call, new)

    def _kept(
        self, t: int, trace: VectorizedTrace | None, observations: ChoiceMap, proposal: Any
    ) -> tuple[VectorizedTrace, mx.array]:
        """The first particle after one more step, and what that multiplies its weight by."""
        call, past, known = self.stages[t].call, self.past, self.needs.get(t)
        given = past.left if known is None else past.some(known)
        old: Any = () if trace is None or known is not None else set(trace.choices.addresses())
        gen_fn = call.gen_fn
        args = gen_fn.own(call)

        def lane(key: Any, constraints: ChoiceMap, *lane: Any) -> Any:
            weight: Any
            if lane:
                diffs = gen_fn.changed(lane[0], args, None)[1]
                new, weight, *_ = gen_fn._update(lane[0], args, diffs, constraints, key)
            else:
                new, weight = gen_fn._generate(args, constraints, key)
            fresh = [a for a in new.choices.addresses() if a not in old and a not in observations]
            fresh = fresh if known is None else known
            return _without_args(new), as_weight(weight - _proposed(new, fresh, constraints, proposal, *lane))

        # The key is for choices that are found below not to be made.
        inputs = [observations.merge(given).repeated(1), *([] if trace is None else [trace])]
        new, weight = run(lane, 1, mx.random.key(0), *inputs)
        new = _batch(new, args, 1)
        if known is None:
            needed = past.needed(new, old, observations)
            if not any(isinstance(new.choices[a], Masked) for a in needed):
                self.needs[t] = needed
        else:
            needed = known
        past.use(needed)
        return new, weight

    def _futures(self, pf: ParticleFilter, t: int) -> mx.array:
        """The log density of what is left of the retained trace, after the past of each particle, ``[n]``."""
        ahead = self.stages[t : t + 1] if self.ancestors == "markov" else self.stages[t:]
        observed, last = merged(ahead), ahead[-1].call
        static = all(s in self.needs for s in range(t, t + len(ahead)))
        old: Any = () if static else set(pf.traces.choices.addresses())
        left = self.past.left
        if static:
            left = self.past.some([a for s in range(t, t + len(ahead)) for a in self.needs[s]])
        with self.place(("futures", t)):
            given = observed.merge(left).repeated(pf.n)
            new, weight, *_ = pf.traces.update(given, args=last, key=mx.random.key(0), strict=False)
        if not static:
            for _, wrong in self.past.mismatches(new, old, observed):
                weight = mx.where(mx.array(wrong), -math.inf, weight)
        return weight


def _proposed(new: Trace, fresh: list, given: ChoiceMap, proposal: Any, *trace: Any) -> Any:
    """The log density with which a free particle would have drawn the choices that are new."""
    density: Any = 0.0
    if proposal is not None:
        own = called(proposal, *trace or (None,))
        made, _ = own.gen_fn._generate(own.args, given, None)
        density = made.score
        fresh = [a for a in fresh if a not in made.choices]
    return density + new.gen_fn._project(new, select(*fresh)) if fresh else density


class _Past:
    """The retained trace, of which the choices are given to one particle as the steps come to need them."""

    def __init__(self, retained: Any, observations: ChoiceMap, fixed: ChoiceMap):
        if isinstance(retained, VectorizedTrace) and retained.n == 1:
            retained = retained[0]
        if not isinstance(retained, Trace):
            raise UsageError(f"the retained trace is {retained!r:.60}", expected="a trace of the model's last call")
        choices = retained.choices
        for address, value in observations.items():
            if address not in choices or not mx.array_equal(value_of(choices[address]), mx.array(value)).item():
                has = "no choice" if address not in choices else f"the value {show_value(value_of(choices[address]))}"
                raise UsageError(f"the retained trace has {has} at an observed address:", address=address)
        self._left = {a: v for a, v in choices.items() if a not in observations and a not in fixed}

    @property
    def left(self) -> ChoiceMap:
        """The choices that no step has needed yet."""
        return from_items(self._left.items())

    def some(self, addresses: list[tuple]) -> ChoiceMap:
        return from_items((address, self._left[address]) for address in addresses)

    def use(self, addresses: list[tuple]) -> None:
        for address in addresses:
            del self._left[address]

    def needed(self, traces: VectorizedTrace, old: Any, observations: ChoiceMap) -> list[tuple]:
        """The choices that a step has taken; one that it took from elsewhere raises."""
        for address, wrong in self.mismatches(traces, old, observations):
            if wrong is True or mx.any(wrong).item():
                raise UsageError("the retained trace lacks a choice that a step makes:", address=address)
        return [a for a in self._left if a in traces.choices]

    def mismatches(self, traces: VectorizedTrace, old: Any, observations: ChoiceMap) -> list[tuple[tuple, Any]]:
        """The new addresses at which traces have a choice that was not given, or have none that was: in which lanes."""
        found: list[tuple[tuple, Any]] = []
        for address, leaf in traces.choices.items():
            if address in old or address in observations:
                continue
            if address in self._left:
                if isinstance(leaf, Masked):
                    found.append((address, mx.logical_not(leaf.active)))
            else:
                found.append((address, leaf.active if isinstance(leaf, Masked) else True))
        return found

    def require_used(self) -> None:
        for address in self._left:
            raise UsageError("the retained trace has a choice that no step makes:", address=address)


class ConditionalKernel(Kernel):
    """A conditional filter that starts from a trace, and a particle of it."""

    def __init__(self, filtering: ConditionalFilter, fixed: Selection | None):
        super().__init__(self.apply, name="csmc_kernel", back=ITSELF)
        self.filtering, self.fixed = filtering, fixed

    def apply(self, trace: Any, key: Any, watch: Watch = None) -> tuple[Any, Info]:
        if isinstance(trace, VectorizedTrace):
            made = [self._one(trace.take([i]), own) for i, own in enumerate(random.split(key, trace.n + 1)[: trace.n])]
            new = concatenate([one for one, _ in made])
            info = {name: mx.stack([mx.array(i[name]) for _, i in made]) for name in made[0][1]}
        elif isinstance(key, LaneKey):
            raise BatchError("csmc_kernel cannot be part of a step that is batched", hint="run_kernel on a batch")
        else:
            batch, info = self._one(trace, key)
            new = batch[0]
        if watch is not None:
            watch(self, new)
        return new, info

    def _one(self, trace: Any, key: Any) -> tuple[VectorizedTrace, Info]:
        choices = trace.choices if isinstance(trace, Trace) else trace[0].choices
        fixed = EMPTY if self.fixed is None else choices.filter(self.fixed)
        streams = random.streams(key)
        pf = self.filtering.given(trace, streams, fixed=fixed)
        chosen = resample(pf.log_weights, 1, streams.accept, "multinomial")
        info = {"ess": min(pf.history.ess), "log_ml": pf.log_ml.item(), "accept": float(chosen.item() != 0)}
        return pf.traces.take(chosen), info
