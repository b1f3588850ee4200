"""What all moves by a transform share: proposals of auxiliary choices, the batch, the check, and the errors that say
which read or write of a body does not fit the trace or the proposal that it is meant for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.choicemap import EMPTY, ChoiceMap
from genmlx.dist.values import as_array
from genmlx.errors import (
    MissingChoice,
    UnknownAddress,
    UsageError,
    ValueMismatch,
    nearest,
    show_address,
    show_addresses,
)
from genmlx.gfi import Call, as_weight, checked_choices, gen_errors
from genmlx.inference.round_trip import inverse_of, require_none
from genmlx.jacobian import AUX, MODEL
from genmlx.masked import value_of
from genmlx.random import as_key
from genmlx.transform import as_transform
from genmlx.transform_run import NOTHING, Run, Side
from genmlx.vectorized import VectorizedTrace, _batch, _without_args, run

OLD, NEW = "the old trace", "the new trace"
_FORWARD, _BACKWARD = "the forward proposal", "the backward proposal"


class Translated(NamedTuple):
    trace: Any
    weight: mx.array


class Move(NamedTuple):
    """A new trace, its weight, and with a check what differs after the way back."""

    trace: Any
    weight: Any
    differs: dict[Any, mx.array]


class Translator:
    """What all translators share. A kind implements ``move`` for one trace, and ``new_args``."""

    transform: Any

    def __init__(self, transform: Any, observations: Any, inverse: Any = None):
        self.transform = None if transform is None else as_transform(transform)
        self.observations = checked_choices(observations)
        self._inverse = None if inverse is None else as_transform(inverse)

    @property
    def inverse(self) -> Any:
        return self._inverse if self._inverse is not None else inverse_of(self.transform)

    def move(self, trace: Any, key: Any, check: bool) -> Move:
        raise NotImplementedError

    def new_args(self, trace: Any) -> tuple:
        return trace.args

    def require(self, differs: dict[Any, mx.array]) -> None:
        """Raise for what a check found, in any lane."""
        if self.transform is not None:
            require_none(self.inverse, differs)

    def __call__(self, trace: Any, key: Any = None, check: bool = False) -> Translated:
        """Translate a trace, or each trace of a batch. ``check`` puts the inverse to the test, and raises."""
        key = as_key(key)
        with gen_errors(trace.gen_fn):
            if isinstance(trace, VectorizedTrace):
                new, weight, differs = self._each(trace, key, check)
            else:
                new, weight, differs = self.move(trace, key, check)
            if check:
                self.require(differs)
            return Translated(new, as_weight(weight))

    def _each(self, traces: VectorizedTrace, key: Any, check: bool) -> Move:
        args, places = self.new_args(traces), []

        def lane(key: Any, trace: Any) -> Any:
            new, weight, differs = self.move(trace, key, check)
            places[:] = differs
            return _without_args(new), as_weight(weight), list(differs.values())

        new, weight, flags = run(lane, traces.n, key, traces)
        return Move(_batch(new, args, traces.n), weight, dict(zip(places, flags, strict=True)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{'' if self.transform is None else f' by {self.transform.__name__}'}>"


class Auxiliary(NamedTuple):
    """The choices of a proposal, as a transform sees them, and their log density."""

    side: Side
    score: Any


NO_CHOICES = Auxiliary(NOTHING, 0.0)


def proposed(proposal: Any, trace: Any, key: Any) -> Auxiliary:
    """Draw from a proposal: None, a call, or a function from the trace to one."""
    if proposal is None:
        return NO_CHOICES
    made = called(proposal, trace).simulate(key)
    return Auxiliary(Side.of(made, _FORWARD), made.score)


def scored(proposal: Any, trace: Any, moved: Run) -> Auxiliary:
    """The auxiliary choices that a transform wrote, under the backward proposal."""
    written = moved.written(AUX)
    if proposal is None:
        for address in written:
            raise UsageError(
                "the transform writes an auxiliary choice, and there is no backward proposal:",
                address=address,
                gen_fn=moved.transform,
                where=moved.writes[AUX, address].line,
            )
        return NO_CHOICES
    call = called(proposal, trace)
    with writing(moved, AUX, _BACKWARD):
        made, _ = call.gen_fn._generate(call.args, written, None)
    require_made(moved, AUX, call.gen_fn, made, written, _BACKWARD)
    return Auxiliary(Side.of(made, _BACKWARD), made.score)


def called(proposal: Any, trace: Any) -> Call:
    call = proposal(trace) if callable(proposal) else proposal
    if isinstance(call, Call):
        return call
    raise UsageError(
        f"the proposal is {call!r:.60}, not a call",
        expected="a generative function applied to its arguments, or a function from a trace to that",
    )


def unobserved(moved: Run, observations: ChoiceMap) -> ChoiceMap:
    """The model's choices that a transform wrote, none of which may be observed."""
    written = moved.written(MODEL)
    for address in written if observations else EMPTY:
        if address in observations:
            raise UsageError(
                "the transform writes an observed choice:",
                address=address,
                gen_fn=moved.transform,
                where=moved.writes[MODEL, address].line,
                expected="choices that are not observed",
            )
    return written


@contextmanager
def writing(moved: Run, side: str, name: str) -> Iterator[None]:
    """Nothing is sampled here: a choice that is missing is one that the transform forgot to write."""
    try:
        yield
    except MissingChoice as error:
        address = error.address or ()
        raise MissingChoice(
            f"the transform does not write a choice of {name}:",
            address=address,
            gen_fn=moved.transform,
            where=moved.transform.line,
            expected=f"all that {name} makes (written: {show_addresses(moved.written(side))})",
            hint=f"new{'.aux' if side == AUX else ''}[{show_address(address)}] = ...",
        ) from None


def require_made(moved: Run, side: str, gen_fn: Any, made: Any, written: ChoiceMap, name: str) -> None:
    """Every choice that was written must be there, and real where a real one was meant."""
    for address in gen_fn.unvisited(made, written):
        raise UnknownAddress(
            f"the transform writes what is not a choice of {name}:",
            address=address,
            gen_fn=moved.transform,
            where=moved.writes[side, address].line,
            suggestions=nearest(address, made.choices.addresses()),
            expected=f"one of {show_addresses(made.choices)}",
        )
    for address, value in written.items():
        if not _floating(value) and _floating(value_of(made.choices[address])):
            raise ValueMismatch(
                f"the transform writes a whole number to a real choice of {name}:",
                address=address,
                gen_fn=moved.transform,
                where=moved.writes[side, address].line,
                expected="a floating value, as 1.0 for 1",
            )


def _floating(value: Any) -> bool:
    return mx.issubdtype(as_array(value).dtype, mx.floating)


def log_det(moved: Run, gone: ChoiceMap, auxiliary: Side) -> mx.array:
    """log |det Jacobian|, once all that the new trace does not keep is seen to be read."""
    moved.require_read(MODEL, gone)
    moved.require_read(AUX, auxiliary.choices)
    return moved.log_det(lambda address: address in gone)
