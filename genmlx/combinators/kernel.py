"""What combinators share: checking what they are built from, and the structure of their choices."""

from __future__ import annotations

from typing import Any

from genmlx.choicemap import ChoiceMap
from genmlx.errors import AddressError, UsageError, caller_line, name_of
from genmlx.gfi import Call, GenerativeFunction


class Combinator(GenerativeFunction):
    """A generative function made from others. Two that are made alike, of the same parts, are equal.

    So a combinator that a body makes anew in each run is recognised, and its part of an update stays incremental.
    """

    @property
    def parts(self) -> tuple:
        """All that it was made from."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Combinator) or type(other) is not type(self):
            return False
        return self is other or other.parts == self.parts

    def __hash__(self) -> int:
        return hash((type(self), self.parts))


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
