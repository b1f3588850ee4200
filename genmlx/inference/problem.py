"""What every algorithm is given: a call and observations, checked, with the errors that explain a bad pair."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.choicemap import ChoiceMap, covering, show_value
from genmlx.errors import (
    ImpossibleObservation,
    ParameterError,
    UsageError,
    name_of,
    show_address,
)
from genmlx.gfi import Call, checked_choices
from genmlx.selection import Selection, select


def checked_problem(call: Any, observations: Any) -> ChoiceMap:
    """The observations as a choice map, once the call is seen to be one."""
    if not isinstance(call, Call):
        given = getattr(call, "__name__", None) or f"a {type(call).__name__}"
        raise UsageError(
            f"inference was given {given}, not a call",
            expected="a model applied to its arguments, as line(xs)",
            hint=f"{given}(...)",
        )
    return checked_choices(observations)


def positive_count(name: str, value: Any, least: int = 1, most: float = math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        bounds = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ParameterError(f"{name} must be a whole number, {bounds}, got {value!r}")
    return value


def latents(observations: ChoiceMap) -> Selection:
    """All choices minus the observed ones: what an algorithm may move."""
    return ~covering(observations)


def impossible(call: Call, trace: Any, observations: ChoiceMap) -> ImpossibleObservation:
    """The error for observations with no density: which of them, under which draw of the rest."""
    scores = [(address, trace.project(select(address))) for address in observations]
    bad = [(a, s) for a, s in scores if not mx.any(s > -math.inf).item()]
    if not bad:
        return ImpossibleObservation(
            "no draw gives the observations a positive density",
            gen_fn=call.gen_fn,
            expected="at least one particle with a finite weight",
            hint="more particles, a proposal, or a look at the constraints that exclude each other",
        )
    address = bad[0][0]
    others = "" if len(bad) == 1 else f" (and {len(bad) - 1} more: {', '.join(show_address(a) for a, _ in bad[1:4])})"
    return ImpossibleObservation(
        f"the observed value {show_value(observations[address])} has density zero{others}",
        address=address,
        gen_fn=call.gen_fn,
        expected=f"a value inside the support of its distribution in {name_of(call.gen_fn)}",
        hint="correct the observation, or a distribution whose support holds it",
    )


def no_density(call: Call, traces: Any, log_weights: mx.array) -> ParameterError:
    """The error for runs whose weight is NaN or infinite: the first address with such a density, and its value."""
    bad = ~(log_weights < math.inf)
    what, lane = "NaN" if mx.any(mx.isnan(log_weights)).item() else "infinite", int(mx.argmax(bad))
    share = f"in {int(mx.sum(bad)):,} of {log_weights.size:,} runs"
    for address in traces.choices:
        if not (traces.project(select(address))[lane] < math.inf).item():
            value = show_value(traces[lane].choices[address])
            return ParameterError(
                f"the log density of {value} is {what} {share}",
                address=address,
                gen_fn=call.gen_fn,
                expected="a number, or -inf where a value is impossible",
                hint="look for a parameter that overflows or leaves its domain, as the root of a negative number",
            )
    return ParameterError(
        f"the weight is {what} {share}, and no density of the model is",
        gen_fn=call.gen_fn,
        expected="a proposal whose densities are numbers",
    )
