"""The steps of a ``%infer`` that goes through a series: written out, or of a call that grows to its length."""

from __future__ import annotations

from typing import Any

from magics.given import observations
from magics.grammar import Line, Piece


def series(line: Line, target: Piece, value: Any, names: dict[str, Any]) -> tuple[list, Any, Any]:
    """The steps, the last call, and all observations of what ``target`` evaluated to."""
    from genmlx.errors import GenError
    from genmlx.gfi import Call
    from genmlx.inference import growing_steps

    if isinstance(value, Call):
        given = observations(line, value, names)
        try:
            return growing_steps(value, given), value, given
        except GenError as error:
            if error.address is not None:
                raise
            raise line.error(f"{error.what}\nexpected: {error.expected}", target) from None
    if line.given:
        raise line.error("steps have observations of their own: given is for a call that grows", _first_given(line))
    steps = _listed(line, target, value)
    return steps, _call(steps[-1]), _merged(steps)


def _first_given(line: Line) -> Piece:
    return line.given[0].address or line.given[0].value


def _listed(line: Line, target: Piece, value: Any) -> list:
    from genmlx.gfi import Call, GenerativeFunction

    expected = "steps are [(call, observations), ...], or a call of an unfold, as walk(len(ys), 0.0)"
    if isinstance(value, GenerativeFunction):
        raise line.error(f"{target.text} is a model: give it its arguments, {target.text}(...)", target)
    if isinstance(value, (str, dict)) or not hasattr(value, "__iter__"):
        raise line.error(f"{target.text} is {type(value).__name__}, no steps: {expected}", target)
    steps = list(value)
    if not steps:
        raise line.error(f"{target.text} has no steps: {expected}", target)
    for t, step in enumerate(steps):
        if not isinstance(_call(step), Call):
            raise line.error(f"step {t} is {type(step).__name__}, not (call, observations): {expected}", target)
    return steps


def _call(step: Any) -> Any:
    if isinstance(step, (tuple, list)):
        return step[0] if step else None
    return getattr(step, "call", None)


def _merged(steps: list) -> Any:
    from genmlx.choicemap import EMPTY
    from genmlx.gfi import checked_choices

    found = EMPTY
    for step in steps:
        own = step[1] if isinstance(step, (tuple, list)) and len(step) > 1 else getattr(step, "observations", None)
        found = found.merge(checked_choices(own))
    return found
