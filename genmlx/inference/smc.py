"""Sequential Monte Carlo: particles that are extended, weighted, resampled and moved, step by step.

Gordon, Salmond and Smith (1993); Del Moral, Doucet and Jasra (2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

from genmlx import random
from genmlx.choicemap import EMPTY, ChoiceMap
from genmlx.combinators.sequence import Sequence
from genmlx.errors import ParameterError, UsageError
from genmlx.gfi import Call, checked_choices
from genmlx.inference.loop import Loop
from genmlx.inference.particle_filter import ParticleFilter
from genmlx.inference.problem import positive_count
from genmlx.inference.replay import Replays
from genmlx.inference.resampling import SCHEMES
from genmlx.kept import execution
from genmlx.versions import pinned

_LONG, _MANY = 200, 2_000_000  # steps, and particles times steps, from which on machine code pays for its compilation


class Stage(NamedTuple):
    """One step: a call, the observations that it adds, and a proposal of its own."""

    call: Call
    observations: Any = None
    proposal: Any = None


def smc(
    steps: Iterable[Any],
    particles: int = 1000,
    ess_threshold: float = 0.5,
    resampling: str = "systematic",
    rejuvenate: Any = None,
    proposal: Any = None,
    strata: Iterable[Any] | None = None,
    record: Callable[[ParticleFilter], Any] | None = None,
    key: Any = None,
    progress: Callable | None = None,
    native: bool | None = None,
    store_paths: bool = True,
) -> ParticleFilter:
    """The particles after the last step, with ``log_ml``, ``history``, and complete traces.

    ``steps`` are ``(call, new observations)``, or ``(call, new observations, proposal)``: the first is generated, each
    later one updates every particle to that call's arguments with those observations added. So a growing ``unfold``
    costs the same at each step. A proposal is a call, or a function from a particle's trace to one, whose choices are
    the latents that it names; ``proposal`` is that of the steps from the second on which have none of their own.

    After each step but the last, particles whose effective size is below ``ess_threshold`` times their number are
    resampled (0 never, 1 always), and then moved by ``rejuvenate``: a kernel, or the addresses that
    Metropolis-Hastings draws anew from the prior. It never moves an observation. With a threshold of 1 they are
    resampled after each step also where all weights are equal. ``strata`` are those of ``ParticleFilter.init``.
    ``record(filter)`` is called after each step, before it is resampled, and ``history.recorded`` keeps what it
    returns. Ctrl-C returns the particles as they are, with ``status`` "interrupted".

    Without ``store_paths`` all steps of a chain but the last are forgotten, so that memory does not grow with their
    number; ``log_ml``, its error and ``history`` are as they would be, and to ask for an earlier step raises.

    ``native`` is whether the steps are machine code: by default from 200 steps on, or two million particles times
    steps, where its compilation is made up for. True raises where that cannot be. Only the steps of an ``unfold`` or a
    ``scan``, without a proposal, are one piece of code; moves run on MLX. ``execution`` of the result says what it was.

    Raises ``DegenerateWeights`` when a step leaves every particle with weight zero, naming the observation.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, trace, unfold
    >>> @gen
    ... def step(t, x):
    ...     x = trace("x", normal(x, 1.0))
    ...     trace("y", normal(x, 1.0))
    ...     return x
    >>> walk, ys = unfold(step), [1.0, 2.0]
    >>> steps = [(walk(t + 1, 0.0), {(t, "y"): y}) for t, y in enumerate(ys)]
    >>> result = smc(steps, particles=10_000, ess_threshold=1.0, key=mx.random.key(0))
    >>> abs(result.mean((1, "x")).item() - 1.4) < 0.03, abs(result.log_ml.item() + 3.342596) < 0.03
    (True, True)
    """
    filtering = Filtering(steps, particles, ess_threshold, resampling, proposal, rejuvenate, strata)
    filtering.store_paths = store_paths
    with Loop("smc", progress) as loop, execution(native, filtering.compiles) as how:
        result = filtering.run(random.streams(key), loop, record)
    result.execution = how.found
    result.status, result.timing = loop.status, loop.timing
    return loop.deliver(result)


class Filtering:
    """A particle filter and the steps that it is to go through, checked: it can be run again and again."""

    def __init__(
        self,
        steps: Iterable[Any],
        particles: int,
        ess_threshold: float,
        resampling: str,
        proposal: Any,
        rejuvenate: Any = None,
        strata: Iterable[Any] | None = None,
    ):
        self.stages, self.n = checked_steps(steps), positive_count("particles", particles)
        if resampling not in SCHEMES:
            raise ParameterError(f"no resampling scheme {resampling!r}", expected=f"one of {', '.join(SCHEMES)}")
        number = isinstance(ess_threshold, (int, float)) and not isinstance(ess_threshold, bool)
        if not number or not 0.0 <= ess_threshold <= 1.0:
            raise ParameterError(f"ess_threshold is {ess_threshold!r}", expected="a share of the particles, 0 to 1")
        self.threshold, self.scheme, self.proposal = ess_threshold, resampling, proposal
        self.rejuvenation, self.strata = rejuvenate, None if strata is None else list(strata)
        self.store_paths = True
        self.replays: Replays | None = None  # for filters that are run again and again, while nothing is redefined

    @property
    def compiles(self) -> bool:
        """Whether machine code for the steps pays for its compilation."""
        steps, gen_fn = len(self.stages), self.stages[0].call.gen_fn
        alike = isinstance(gen_fn, Sequence) and gen_fn.chained
        plain = self.proposal is None and all(stage.proposal is None for stage in self.stages)
        return alike and plain and (steps >= _LONG or steps * self.n >= _MANY)

    @property
    def observations(self) -> ChoiceMap:
        """The observations of all steps."""
        return merged(self.stages)

    def run(
        self,
        streams: random.Streams,
        loop: Loop | None = None,
        record: Callable | None = None,
        fixed: ChoiceMap = EMPTY,
    ) -> ParticleFilter:
        """The filter after all steps; the choices ``fixed``, of the first step, are given as observations are."""
        keys = StepKeys(*(random.Keys(key) for key in (streams.propose, streams.resample, streams.accept)))
        found: list[ParticleFilter] = []

        def block(start: int, stop: int) -> Callable:
            for t in range(start, stop):
                pf = self.advance(found[0], t, keys) if t else self.begin(fixed, streams.initialise)
                if record is not None:
                    pf.history = pf.history.amended(recorded=record(pf))
                found[:] = [pf]
            return lambda: shown(found[0])

        with pinned():
            if loop is None:
                block(0, len(self.stages))
            else:
                loop.run("filtering", len(self.stages), block)
        return found[0]

    def begin(self, fixed: ChoiceMap, key: Any) -> ParticleFilter:
        call, observations, proposal = self.stages[0]
        given = checked_choices(observations).merge(fixed)
        with self.place("begin"):  # where values that differ from run to run are to be inputs: those of lanes
            lanes = given if fixed.is_empty else given.repeated(self.n)
            pf = ParticleFilter.init(call, lanes, self.n, proposal, self.strata, key, self.store_paths)
        pf.observations = given
        return pf

    def advance(self, pf: ParticleFilter, t: int, keys: StepKeys) -> ParticleFilter:
        call, observations, proposal = self.stages[t]
        with self.place(("move", t)):
            pf = self.refreshed(pf, keys)
        with self.place(("extend", t)):
            return pf.step(call, observations, self.proposal if proposal is None else proposal, keys.extend.next())

    def place(self, name: Any) -> Any:
        return nullcontext() if self.replays is None else self.replays.place(name)

    def refreshed(self, pf: ParticleFilter, keys: StepKeys) -> ParticleFilter:
        """The particles resampled and moved, where that is due."""
        if not self.due(pf):
            return pf
        pf = pf.resample(key=keys.choose.next(), scheme=self.scheme)
        return pf if self.rejuvenation is None else pf.rejuvenate(self.rejuvenation, key=keys.move.next())

    def due(self, pf: ParticleFilter) -> bool:
        """Whether the particles are to be resampled."""
        ess: Any = pf.ess.item()
        return self.threshold == 1.0 or ess < self.threshold * pf.n


class StepKeys(NamedTuple):
    """The keys of the steps: to extend, to resample, and to move particles."""

    extend: random.Keys
    choose: random.Keys
    move: random.Keys


def merged(stages: Iterable[Stage]) -> ChoiceMap:
    """The observations of some steps."""
    found = EMPTY
    for stage in stages:
        found = found.merge(checked_choices(stage.observations))
    return found


def shown(pf: ParticleFilter) -> dict[str, Any]:
    """What a progress callback is told of a filter."""
    history = pf.history
    return {
        "ess": history[-1].ess,
        "log_ml": history[-1].log_ml,
        "accept": next((step.accept for step in reversed(history.steps) if step.accept == step.accept), math.nan),
        "particles": pf.n,
        "history": history,
    }


def checked_steps(steps: Iterable[Any]) -> list[Stage]:
    if isinstance(steps, Call):
        raise UsageError("smc was given a call", expected="steps, [(call, observations), ...]")
    stages = []
    for t, given in enumerate(steps):
        if not isinstance(given, (tuple, list)) or not 1 <= len(given) <= 3 or not isinstance(given[0], Call):
            raise UsageError(f"step {t} is {given!r:.60}", expected="(call, observations), a call with what is new")
        stage = Stage(*given)
        if stages and stage.call.gen_fn is not stages[0].call.gen_fn:
            raise UsageError(f"step {t} is of another model", expected=f"a call of that of step 0, {stages[0].call!r}")
        stages.append(stage)
    if not stages:
        raise UsageError("smc was given no steps", expected="[(call, observations), ...]")
    return stages
