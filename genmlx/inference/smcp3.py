"""SMCP3: sequential Monte Carlo whose steps may change what the particles are, by probabilistic programs.

Lew, Matheos, Zhi-Xuan, Ghavamizadeh, Gothoskar, Russell and Mansinghka (2023), "SMCP3: Sequential Monte Carlo with
probabilistic program proposals".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import EMPTY, ChoiceMap, covering
from genmlx.errors import GenError, MissingChoice, UnknownAddress, UsageError, nearest, show_address, show_addresses
from genmlx.gfi import Call, checked_choices, gen_errors
from genmlx.inference.loop import Loop
from genmlx.inference.moves import (
    NEW,
    OLD,
    Move,
    Translator,
    called,
    log_det,
    proposed,
    require_made,
    scored,
    unobserved,
)
from genmlx.inference.particle_filter import ParticleFilter
from genmlx.inference.problem import checked_problem
from genmlx.inference.round_trip import RoundTrip, require_none
from genmlx.inference.smc import Filtering, StepKeys
from genmlx.jacobian import AUX, MODEL
from genmlx.random import split
from genmlx.selection import select
from genmlx.transform_run import Run, Side
from genmlx.versions import pinned

_COVERAGE = "coverage"


class NotCovered(GenError, ValueError):
    """A backward kernel draws what the forward kernel cannot have started from: some of the evidence is lost."""


class Smcp3Step(Translator):
    """A trace updated to ``call`` and more ``observations``, with choices of kernels that may rewrite old ones.

    The choices of ``forward``, a call or a function from the old trace to one, are the new values at their addresses,
    and ``backward``, a call or a function from the new trace to one, proposes every old value that is overwritten or
    that goes, at its address. With a ``transform`` their choices are auxiliary: it reads the old trace and those of
    ``forward``, and writes choices of the new trace and those of ``backward``. All else is kept, and new latents that
    nobody writes come from the prior. With K forward and L backward,
    weight = log p_new(t') - log p_old(t) - log K(u; t) + log L(u'; t') - log q(from the prior) + log |det Jacobian|.

    An old choice that is lost, because no kernel or transform accounts for it, raises. ``old_observations`` are those
    that the old trace was conditioned on: they may go, or have other values among the new ones. ``check`` puts to the
    test that the transform and its ``inverse`` undo each other, and that what the backward kernel draws is what the
    forward kernel can have started from and have drawn: otherwise the evidence would be too low.

    >>> from genmlx import gen, normal, trace
    >>> @gen
    ... def model(n):
    ...     x = trace("x", normal(0, 1))
    ...     for i in range(n):
    ...         trace(("y", i), normal(x, 1))
    >>> @gen
    ... def posterior(mean, variance):
    ...     trace("x", normal(mean, variance ** 0.5))
    >>> traces, _ = model(1).vgenerate({("y", 0): 1.0, "x": 0.3}, 4)
    >>> step = Smcp3Step(model(2), {("y", 1): 2.0}, lambda tr: posterior(1.0, 1 / 3), lambda tr: posterior(0.5, 0.5))
    >>> weight = step(traces, mx.random.key(0), check=True).weight      # log p(y1 | y0), wherever x came from
    >>> [round(w, 4) for w in weight.tolist()]
    [-1.8717, -1.8717, -1.8717, -1.8717]
    """

    def __init__(
        self,
        call: Call,
        observations: Any = None,
        forward: Any = None,
        backward: Any = None,
        transform: Any = None,
        inverse: Any = None,
        old_observations: Any = None,
    ):
        super().__init__(transform, checked_problem(call, observations), inverse)
        if transform is None and inverse is not None:
            raise UsageError("a step was given an inverse, and no transform that it would be the inverse of")
        self.call, self.forward, self.backward = call, forward, backward
        self._old = None if old_observations is None else checked_choices(old_observations)
        self._removed: list[tuple] = []

    def new_args(self, trace: Any) -> tuple:
        return self.call.gen_fn.bind(self.call)

    def extend(self, pf: ParticleFilter, key: Any = None, check: bool = False) -> ParticleFilter:
        """The filter after this step, with its observations added; ``pf`` says what was observed before."""
        step = copy.copy(self)
        step._old, step._removed = pf.observations if self._old is None else self._old, []
        key, rewrites = random.as_key(key), self.backward is not None or self.transform is not None
        with gen_errors(self.call.gen_fn):
            if rewrites:
                made = pf.extended(*step(pf.traces, key, check), self.call, self.observations)
            else:
                traces, weights, attic = pf._applied(lambda traces: step(traces, key, check))
                made = pf.extended(traces, weights, self.call, self.observations, attic=attic).tidied()
        if step._removed:
            made = made._replaced(observations=made.observations.without(select(*step._removed)))
        return made

    def move(self, trace: Any, key: Any, check: bool) -> Move:
        propose_key, update_key, check_key = split(key, 3)
        gen_fn, old = trace.gen_fn, EMPTY if self._old is None else self._old
        if gen_fn is not self.call.gen_fn:
            raise UsageError("a step is a call of the same model", expected=f"{trace.gen_fn!r} with other arguments")
        with pinned(trace.pins):
            forward = proposed(self.forward, trace, propose_key)
            args, diffs = gen_fn.changed(trace, self.call, None)
            there = self.transform and self.transform.run(Side.of(trace, OLD), forward.side, args)
            written = self._written(there, forward.side.choices, old)
            constraints = self.observations.merge(written)
            new, weight, _, discard = gen_fn._update(trace, args, diffs, constraints, update_key)
            if there is not None:
                require_made(there, MODEL, gen_fn, new, written, NEW)
            gen_fn.require_visited(new, constraints)
            gone = settled = discard
            if not discard.is_empty:
                gone, settled = discard.without(covering(old)), discard.filter(covering(old))
            self._removed[:] = [address for address in settled if address not in new.choices]
            if there is None:
                backward, jacobian = self._scored(new, gone), 0.0
            else:
                auxiliary = scored(self.backward, new, there)
                backward, jacobian = auxiliary.score, log_det(there, gone, forward.side)
            total = weight - forward.score + backward + jacobian
            if not check:
                return Move(new, total, {})
            differs = {}
            if there is not None:
                back = self.inverse.run(Side.of(new, NEW), auxiliary.side, trace.args)
                trip = RoundTrip(self.inverse, there)
                trip.compare(MODEL, gone, back.written(MODEL))
                trip.compare(AUX, forward.side.choices, back.written(AUX))
                trip.compare_jacobians(jacobian, log_det(back, written, auxiliary.side))
                differs = trip.unless(new.score == -math.inf)
            if self.backward is not None:
                differs[_COVERAGE] = self._uncovered(trace, new, written, settled, check_key)
            return Move(new, total, differs)

    def require(self, differs: dict[Any, mx.array]) -> None:
        import numpy as np

        lost = differs.pop(_COVERAGE, None)
        if self.transform is not None:
            require_none(self.inverse, differs)
        if lost is not None and (count := np.count_nonzero(np.array(lost))):
            raise NotCovered(
                "the backward kernel draws what the forward kernel cannot have come from"
                + (f", in {count} of {lost.size} moves" if lost.ndim else ""),
                gen_fn=self.call.gen_fn,
                expected="old choices that are possible, from which the forward kernel can make the new ones",
                hint="a backward kernel with a smaller support, or a forward kernel with a larger one",
            )

    def _written(self, there: Run | None, choices: ChoiceMap, old: ChoiceMap) -> ChoiceMap:
        """The model's choices that the step writes, none of which is or was observed."""
        if there is not None:
            return unobserved(there, self.observations.merge(old))
        for address in choices:
            if address in self.observations or address in old:
                raise UsageError("the forward kernel proposes an observed choice", address=address, gen_fn=self._model)
        return choices

    @property
    def _model(self) -> Any:
        return self.call.gen_fn

    def _scored(self, new: Any, gone: ChoiceMap) -> Any:
        """The log density with which the backward kernel proposes the old values, each at its address."""
        if self.backward is None:
            for address in gone:
                raise MissingChoice(
                    "an old choice goes or changes, and there is no backward kernel that proposes it:",
                    address=address,
                    gen_fn=self._model,
                    expected=f"a backward kernel of {show_addresses(gone)}",
                    hint=f"backward, a function of the new trace that traces {show_address(address)}",
                )
            return 0.0
        kernel = called(self.backward, new)
        try:
            made, _ = kernel.gen_fn._generate(kernel.args, gone, None)
        except MissingChoice as error:
            raise UnknownAddress(
                "the backward kernel proposes a choice that neither goes nor changes:",
                address=error.address or (),
                gen_fn=kernel.gen_fn,
                suggestions=nearest(error.address or (), gone.addresses()),
                expected=f"the old values of what the step overwrites or removes ({show_addresses(gone)})",
            ) from None
        for address in kernel.gen_fn.unvisited(made, gone):
            raise MissingChoice(
                "an old choice goes or changes, and the backward kernel does not propose it:",
                address=address,
                gen_fn=kernel.gen_fn,
                expected=f"a proposal of {show_addresses(gone)}",
                hint=f"trace({show_address(address)}, ...) in it",
            )
        return made.score

    def _uncovered(self, trace: Any, new: Any, written: ChoiceMap, settled: ChoiceMap, key: Any) -> mx.array:
        """Whether a draw of the backward kernel leads to where the forward kernel does not come from."""
        gen_fn, kernel = trace.gen_fn, called(self.backward, new)
        drawn = kernel.gen_fn._simulate(kernel.args, key)
        back, before = None, drawn.choices
        if self.transform is not None:
            back = self.inverse.run(Side.of(new, NEW), Side.of(drawn, "the backward kernel"), trace.args)
            before = back.written(MODEL)
        start, *_ = gen_fn._update(new, *gen_fn.changed(new, trace.args, None), settled.merge(before), None)
        forward: Any = 0.0
        if back is not None:
            forward = scored(self.forward, start, back).score
        elif self.forward is not None:
            kernel = called(self.forward, start)
            forward = kernel.gen_fn._generate(kernel.args, written, None)[0].score
        possible = mx.logical_and(start.score > -math.inf, mx.array(forward) > -math.inf)
        return mx.logical_and(new.score > -math.inf, mx.logical_not(possible))


def smcp3(
    steps: Iterable[Any],
    particles: int = 1000,
    ess_threshold: float = 0.5,
    resampling: str = "systematic",
    rejuvenate: Any = None,
    strata: Iterable[Any] | None = None,
    record: Callable[[ParticleFilter], Any] | None = None,
    check: bool = False,
    key: Any = None,
    progress: Callable | None = None,
) -> ParticleFilter:
    """The particles after the last step, as ``smc`` gives them; here a step may also rewrite old choices.

    The first of ``steps`` is ``(call, observations)`` or ``(call, observations, proposal)``, as in ``smc``. Each later
    one is ``(call, new observations, forward, backward)``, and may have a ``transform`` and its ``inverse`` as fifth
    and sixth, or it is a ``Smcp3Step``, where it says what these mean. Where ``forward`` and ``backward`` are left out
    nothing is rewritten. A step costs what its update does: nothing for the elements of an ``unfold`` that it leaves.

    exp(log_ml) is unbiased for the evidence where the backward kernels draw only what the forward kernels can have
    come from: ``check=True`` puts that, and the transforms, to the test in every step. The rest is as in ``smc``.

    >>> from genmlx import gen, normal, trace, unfold
    >>> @gen
    ... def walk_step(t, x):
    ...     x = trace("x", normal(x, 1.0))
    ...     trace("y", normal(x, 1.0))
    ...     return x
    >>> walk = unfold(walk_step)
    >>> @gen
    ... def last_two(tr):                   # (x0, x1) given y0 and y1
    ...     x = trace((0, "x"), normal(0.8, 0.4 ** 0.5))
    ...     trace((1, "x"), normal((x + 2.0) / 2, 0.5 ** 0.5))
    >>> @gen
    ... def first(tr):                      # x0 given y0
    ...     trace((0, "x"), normal(0.5, 0.5 ** 0.5))
    >>> steps = [(walk(1, 0.0), {(0, "y"): 1.0}, first(None)), (walk(2, 0.0), {(1, "y"): 2.0}, last_two, first)]
    >>> result = smcp3(steps, particles=100, check=True, key=mx.random.key(0))
    >>> round(result.log_ml.item(), 4), round(result.ess.item(), 1)           # exact: nothing is left to weigh
    (-3.3426, 100.0)
    """
    filtering = Rewriting(steps, particles, ess_threshold, resampling, rejuvenate, strata, check)
    with Loop("smcp3", progress) as loop:
        result = filtering.run(random.streams(key), loop, record)
    result.algorithm, result.status, result.timing = loop.algorithm, loop.status, loop.timing
    return loop.deliver(result)


class Rewriting(Filtering):
    """A particle filter of which the steps from the second on are ``Smcp3Step``s."""

    def __init__(
        self,
        steps: Iterable[Any],
        particles: int,
        ess_threshold: float,
        resampling: str,
        rejuvenate: Any,
        strata: Iterable[Any] | None,
        check: bool,
    ):
        if isinstance(steps, Call):
            raise UsageError("smcp3 was given a call", expected="steps, [(call, observations), ...]")
        if not (given := list(steps)):
            raise UsageError("smcp3 was given no steps", expected="[(call, observations), ...]")
        first, later = given[:1], []
        for t, step in enumerate(given[1:], 1):
            later.append(step if isinstance(step, Smcp3Step) else _as_step(t, step))
        extending = [*first, *[(step.call, step.observations) for step in later]]
        super().__init__(extending, particles, ess_threshold, resampling, None, rejuvenate, strata)
        self.later, self.check = later, check

    def advance(self, pf: ParticleFilter, t: int, keys: StepKeys) -> ParticleFilter:
        return self.later[t - 1].extend(self.refreshed(pf, keys), keys.extend.next(), self.check)


def _as_step(t: int, given: Any) -> Smcp3Step:
    if not isinstance(given, (tuple, list)) or not 1 <= len(given) <= 6 or not isinstance(given[0], Call):
        raise UsageError(
            f"step {t} is {given!r:.60}", expected="(call, new observations, forward, backward), or a Smcp3Step"
        )
    return Smcp3Step(*given)
