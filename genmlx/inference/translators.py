"""Trace translators: a trace of one model from a trace of another, with the weight that keeps inference exact.

Cusumano-Towner, Bichsel, Gehr, Vechev and Mansinghka (2018), "Incremental inference for probabilistic programs".
Each is called as ``translator(trace, key, check=False) -> Translated(trace, weight)``, on one trace or on a batch, and
weight = log p_new(new trace) - log p_old(old trace) - log q_forward + log q_backward + log |det Jacobian|.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.choicemap import EMPTY, ChoiceMap, covering
from genmlx.errors import UsageError
from genmlx.gfi import Call, checked_choices
from genmlx.inference.moves import (
    NEW,
    OLD,
    Auxiliary,
    Move,
    Translator,
    log_det,
    proposed,
    require_made,
    scored,
    unobserved,
    writing,
)
from genmlx.inference.problem import checked_problem
from genmlx.inference.round_trip import RoundTrip
from genmlx.jacobian import AUX, MODEL
from genmlx.random import split
from genmlx.transform import as_transform
from genmlx.transform_run import NOTHING, Run, Side
from genmlx.versions import pinned


class SymmetricTranslator(Translator):
    """A move within one model, by a transform that is its own inverse.

    ``proposal``, a call or a function from a trace to one, makes the auxiliary choices. The involution writes the
    choices that change and the auxiliary choices of the way back; the model's other choices stay. It must not write
    one of ``observations``. With the acceptance probability min(1, exp weight) it is a Markov kernel.

    >>> from genmlx import gen, normal, trace
    >>> from genmlx.transform import is_involution, transform
    >>> @gen
    ... def model():
    ...     trace("x", normal(0, 1))
    >>> @gen
    ... def factor(tr):
    ...     trace("log_c", normal(0, 0.5))
    >>> @is_involution
    ... @transform
    ... def scale(old, new):
    ...     log_c = old.aux["log_c"]
    ...     new["x"], new.aux["log_c"] = mx.exp(log_c) * old["x"], -log_c
    >>> tr, _ = model().generate({"x": 1.0})
    >>> new, weight = SymmetricTranslator(factor, scale)(tr, mx.random.key(0), check=True)
    >>> c = new["x"].item()                             # log p(c) - log p(1) + log c, as q is symmetric
    >>> abs(weight.item() - (0.5 - c * c / 2 + math.log(c))) < 1e-5
    True
    """

    def __init__(self, proposal: Any, involution: Any, observations: Any = None):
        super().__init__(involution, observations, involution)
        self.proposal = proposal

    def move(self, trace: Any, key: Any, check: bool) -> Move:
        with pinned(trace.pins):
            forward = proposed(self.proposal, trace, key)
            there, new, weight, discard = self._apply(trace, forward)
            backward = scored(self.proposal, new, there)
            jacobian = log_det(there, discard, forward.side)
            total = weight - forward.score + backward.score + jacobian
            if not check:
                return Move(new, total, {})
            back, end, _, discard = self._apply(new, backward)
            trip = RoundTrip(self.inverse, there)
            trip.compare(MODEL, trace.choices, end.choices)
            trip.compare(AUX, forward.side.choices, back.written(AUX))
            trip.compare_jacobians(jacobian, log_det(back, discard, backward.side))
            return Move(new, total, trip.unless(new.score == -math.inf))

    def _apply(self, trace: Any, auxiliary: Auxiliary) -> tuple[Run, Any, Any, ChoiceMap]:
        """The involution once: its run, the new trace, the weight of the update, the choices that it does not keep."""
        moved = self.transform.run(Side.of(trace, OLD), auxiliary.side)
        written = unobserved(moved, self.observations)
        same = trace.gen_fn.changed(trace, None, None)
        with writing(moved, MODEL, NEW):
            new, weight, _, discard = trace.gen_fn._update(trace, *same, written, None)
        require_made(moved, MODEL, trace.gen_fn, new, written, NEW)
        return moved, new, weight, discard


class GeneralTranslator(Translator):
    """A trace of ``call`` that agrees with ``observations``, all its other choices written by ``transform``.

    ``q_forward`` and ``q_backward``, each a call or a function from the old or the new trace to one, make and score
    the auxiliary choices. ``old_observations`` names those of the old trace, which the transform may leave unread:
    by default the addresses of ``observations``. ``inverse`` is for the check, unless the transform knows it.
    """

    def __init__(
        self,
        call: Call,
        observations: Any = None,
        q_forward: Any = None,
        q_backward: Any = None,
        transform: Any = None,
        inverse: Any = None,
        old_observations: Any = None,
    ):
        super().__init__(as_transform(transform), checked_problem(call, observations), inverse)
        self.call, self.q_forward, self.q_backward = call, q_forward, q_backward
        old = self.observations if old_observations is None else checked_choices(old_observations)
        self._old_observed, self._new_observed = covering(old), covering(self.observations)

    def new_args(self, trace: Any) -> tuple:
        return self.call.gen_fn.bind(self.call)

    def move(self, trace: Any, key: Any, check: bool) -> Move:
        with pinned():
            args, gen_fn = self.new_args(trace), self.call.gen_fn
            forward = proposed(self.q_forward, trace, key)
            there = self.transform.run(Side.of(trace, OLD), forward.side, args)
            written = unobserved(there, self.observations)
            with writing(there, MODEL, NEW):
                new, _ = gen_fn._generate(args, self.observations.merge(written), None)
            require_made(there, MODEL, gen_fn, new, written, NEW)
            gen_fn.require_visited(new, self.observations)
            backward = scored(self.q_backward, new, there)
            jacobian = log_det(there, trace.choices.without(self._old_observed), forward.side)
            total = new.score - trace.score - forward.score + backward.score + jacobian
            if not check:
                return Move(new, total, {})
            back = self.inverse.run(Side.of(new, NEW), backward.side, trace.args)
            trip = RoundTrip(self.inverse, there)
            trip.compare(MODEL, trace.choices.without(self._old_observed), back.written(MODEL))
            trip.compare(AUX, forward.side.choices, back.written(AUX))
            latents = new.choices.without(self._new_observed)
            trip.compare_jacobians(jacobian, log_det(back, latents, backward.side))
            return Move(new, total, trip.unless(new.score == -math.inf))


class DeterministicTranslator(GeneralTranslator):
    """A trace of ``call`` that agrees with ``observations``, all its other choices written by ``transform``.

    >>> from genmlx import gen, inv_gamma, normal, trace, uniform
    >>> from genmlx.transform import transform
    >>> @gen
    ... def cartesian():
    ...     trace("x", normal(0, 1)), trace("y", normal(0, 1))
    >>> @gen
    ... def polar():
    ...     trace("r", inv_gamma(1, 1)), trace("angle", uniform(-math.pi / 2, math.pi / 2))
    >>> @transform
    ... def to_polar(old, new):
    ...     x, y = old["x"], old["y"]
    ...     new["r"], new["angle"] = mx.sqrt(x * x + y * y), mx.arctan2(y, x)
    >>> tr, _ = cartesian().generate({"x": 2.0, "y": 0.0})
    >>> new, weight = DeterministicTranslator(polar(), transform=to_polar)(tr)
    >>> new["r"].item(), round(weight.item(), 4)        # 3/2 - 2 log 2
    (2.0, 0.1137)
    """

    def __init__(
        self,
        call: Call,
        observations: Any = None,
        transform: Any = None,
        inverse: Any = None,
        old_observations: Any = None,
    ):
        super().__init__(call, observations, None, None, transform, inverse, old_observations)


class SimpleExtendingTranslator(Translator):
    """The same trace with more choices: new arguments and observations, and the choices that ``q_forward`` proposes.

    ``args`` are a tuple or a call; without them they stay. ``transform``, if given, reads the proposed choices from
    ``old.aux`` and writes choices of the model; otherwise they are choices of the model as they are. What is neither
    observed nor proposed comes from the model's own proposal. A choice of the old trace that would go or change raises.
    """

    def __init__(
        self,
        args: Any = None,
        argdiffs: Any = None,
        observations: Any = None,
        q_forward: Any = None,
        transform: Any = None,
        inverse: Any = None,
    ):
        super().__init__(transform, observations, inverse)
        self.args, self.argdiffs, self.q_forward = args, argdiffs, q_forward

    def new_args(self, trace: Any) -> tuple:
        return trace.args if self.args is None else trace.gen_fn.bind(self.args)

    def move(self, trace: Any, key: Any, check: bool) -> Move:
        propose_key, update_key = split(key)
        gen_fn = trace.gen_fn
        with pinned(trace.pins):
            forward = proposed(self.q_forward, trace, propose_key)
            jacobian, there, added = mx.array(0.0), None, forward.side.choices
            if self.transform is not None:
                there = self.transform.run(Side.of(trace, OLD), forward.side, self.new_args(trace))
                jacobian, added = log_det(there, EMPTY, forward.side), unobserved(there, self.observations)
                for address in there.written(AUX):
                    raise UsageError(
                        "an extending translator has no backward proposal",
                        address=address,
                        gen_fn=self.transform,
                        where=there.writes[AUX, address].line,
                    )
            for address in added:
                if address in self.observations:
                    raise UsageError("the proposal proposes an observed choice", address=address, gen_fn=gen_fn)
            constraints = self.observations.merge(added)
            args, diffs = gen_fn.changed(trace, self.args, self.argdiffs)
            new, weight, _, discard = gen_fn._update(trace, args, diffs, constraints, update_key)
            gen_fn.require_visited(new, constraints)
            for address in discard:
                raise UsageError(
                    "an extending translator may only add choices, and here one goes or changes:",
                    address=address,
                    gen_fn=gen_fn,
                    hint="a SymmetricTranslator or a GeneralTranslator, which account for what is lost",
                )
            total = weight - forward.score + jacobian
            if not check or there is None:
                return Move(new, total, {})
            back = self.inverse.run(Side.of(new, NEW), NOTHING, trace.args)
            trip = RoundTrip(self.inverse, there)
            trip.compare(AUX, forward.side.choices, back.written(AUX))
            trip.compare_jacobians(jacobian, back.log_det(lambda address: address in added))
            return Move(new, total, trip.unless(new.score == -math.inf))
