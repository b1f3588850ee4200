"""What a line observes, in the addresses of the model: a column of values goes to ``y[0]``, ``y[1]`` and so on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from magics.grammar import Given, Line, Piece

if TYPE_CHECKING:
    from genmlx.errors import GenError


def spread(line: Line, choices: Any, known: Any, place: Callable[[tuple], Piece | None]) -> Any:
    """The choices with each list or array that stands where ``known``, the choices of a run, has numbered addresses
    dealt out to them, in their order: ``y`` to ``y[0]``, or in a series to ``(0, "y")``, and so on. Where the numbers
    differ it raises, and shows the ``place`` of the address."""
    from genmlx.choicemap import from_items

    found = []
    for address, value in choices.items():
        own = _of_steps(address, known) if is_column(value) else []
        if not own:
            found += _dealt(line, address, value, known.sub(address), place)
            continue
        _require_length(line, address, own, value, place)
        for one, part in zip(own, value, strict=True):
            found += _dealt(line, one, part, known.sub(one), place)
    return from_items(found, choices.n)


def _of_steps(address: tuple, known: Any) -> list[tuple]:
    """The addresses that are like one but for a number: ``(0, "y")``, ``(1, "y")`` and so on, of ``y``."""
    if address in known or known.sub(address).parts():
        return []
    for cut in range(len(address)):
        start, end = address[:cut], address[cut:]
        numbers = sorted(part for part in known.sub(start).parts() if isinstance(part, int))
        found = [(*start, t, *end) for t in numbers]
        if found := [one for one in found if one in known or known.sub(one).parts()]:
            return found
    return []


def _require_length(
    line: Line, address: tuple, own: list[tuple], value: Any, place: Callable[[tuple], Piece | None]
) -> None:
    if len(value) != len(own):
        from workbench.render.nodes import path

        ends = " to ".join(path(one) for one in (own[0], own[-1]))
        message = f"{path(address)} has {len(own)} addresses, {ends}, for {len(value)} values"
        raise line.error(message, place(address))


def is_column(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0


def _dealt(
    line: Line, address: tuple, value: Any, known: Any, place: Callable[[tuple], Piece | None]
) -> list[tuple[tuple, Any]]:
    keys = sorted(part for part in known.parts() if isinstance(part, int))
    if not keys or len(keys) < len(known.parts()) or not is_column(value):
        return [(address, value)]
    _require_length(line, address, [(*address, key) for key in keys], value, place)
    return [
        pair
        for key, one in zip(keys, value, strict=True)
        for pair in _dealt(line, (*address, key), one, known.sub((key,)), place)
    ]


def observations(line: Line, call: Any, namespace: dict[str, Any]) -> Any:
    """What follows ``| given``, for a call. A column is dealt out by the addresses of one run of the model."""
    import mlx.core as mx

    choices = line.observations(namespace)
    if not any(is_column(value) for _, value in choices.items()):
        return choices
    from genmlx.choicemap import from_items

    plain = from_items((a, v) for a, v in choices.items() if not is_column(v))
    run = call.generate(plain, mx.random.key(0), strict=False).trace
    return spread(line, choices, run.choices, lambda address: piece_of(line, address, namespace))


def piece_of(line: Line, address: tuple, namespace: dict[str, Any], given: list[Given] | None = None) -> Piece | None:
    """The piece of the line that names an address, or something above it."""
    for one in line.given if given is None else given:
        if one.address is not None:
            named = line.address(one.address, namespace)
            if named in (address[: len(named)], tuple(part for part in address if not isinstance(part, int))):
                return one.address
    return None


def unknown(
    line: Line,
    what: str,
    error: GenError,
    trace: Any,
    namespace: dict[str, Any],
    given: list[Given] | None = None,
) -> UsageError:
    """The error for an address that a run does not have, with the nearest one and those that there are."""
    from genmlx.errors import name_of

    address = error.address or ()
    version = "" if trace.version is None else f" {trace.version!r}"
    message = f"{what}: {no_address(address, trace.choices, f' in {name_of(trace.gen_fn)}{version}')}"
    return line.error(message, piece_of(line, address, namespace, given))


def misfit(
    line: Line, what: str, error: GenError, namespace: dict[str, Any], given: list[Given] | None = None
) -> Exception:
    """The error for a value that does not fit its address, with its place in the line; itself where it has none."""
    from workbench.render.nodes import path

    place = piece_of(line, error.address or (), namespace, given)
    if place is None:
        return error
    message = f"{what}: {error.what.rstrip(':')} at {path(error.address or ())}"
    return line.error(f"{message}\nexpected: {error.expected}" if error.expected else message, place)


def no_address(address: tuple, choices: Any, where: str = "") -> str:
    """That an address is not there, with the nearest one and those that there are."""
    from genmlx.errors import nearest
    from workbench.render.nodes import path

    known = choices.addresses()
    close = nearest(address, known) or nearest(address, dict.fromkeys(a[: len(address)] for a in known))
    hint = f" - did you mean {path(close[0])}?" if close else ""
    return f"no address {path(address)}{where}{hint}  (addresses: {brief(choices)})"


def brief(choices: Any, most: int = 8) -> str:
    """``slope, intercept, y[0..4]``"""
    from workbench.render.nodes import text_of

    shown = []
    for part in choices.parts():
        keys = choices.sub((part,)).parts()
        numbered = len(keys) > 1 and all(isinstance(key, int) for key in keys)
        shown.append(f"{text_of(part)}[{min(keys)}..{max(keys)}]" if numbered else text_of(part))
    more = len(shown) - most
    return ", ".join(shown if more <= 0 else [*shown[:most], f"... {more} more"]) or "none"
