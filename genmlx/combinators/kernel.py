"""What combinators share: checking what they are built from, and the structure of their choices."""

from __future__ import annotations

from typing import Any

from genmlx.choicemap import ChoiceMap
from genmlx.errors import AddressError, UsageError, caller_line, name_of
from genmlx.gfi import Call, GenerativeFunction


def checked_kernel(what: str, kernel: Any) -> GenerativeFunction:
    """The kernel, once it is seen to be a generative function and not a call of one or a plain function."""
    if isinstance(kernel, GenerativeFunction):
        return kernel
    given = f"the call {kernel!r}" if isinstance(kernel, Call) else repr(kernel)
    raise UsageError(
        f"{what} was given {given}",
        expected="a generative function: a model made by @gen, a distribution, or another combinator",
        hint=f"{what}({name_of(kernel.gen_fn)})" if isinstance(kernel, Call) else f"decorate it with @gen: {what}(...)",
        where=caller_line(),
    )


def require_sub_map(gen_fn: GenerativeFunction, constraints: ChoiceMap) -> None:
    if constraints.is_leaf:
        raise AddressError(
            f"a value is given where {name_of(gen_fn)} has a sub-map of choices",
            address=(),
            expected="a choice map or a dict, one level down",
        )


def at_least(gen_fn: GenerativeFunction, args: tuple, n: int, expected: str) -> tuple:
    if len(args) < n:
        raise UsageError(f"{name_of(gen_fn)} was given {len(args)} arguments", expected=expected)
    return args
