"""The steps of a filter from one call: a sequence that grows by one element at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree

from genmlx.choicemap import from_items
from genmlx.errors import UnknownAddress, UsageError, name_of
from genmlx.gfi import Call
from genmlx.inference.problem import checked_problem
from genmlx.pytree import NAMESPACE


def growing_steps(call: Call, observations: Any = None, length: str | None = None) -> list[tuple[Call, Any]]:
    """``[(call, observations), ...]`` for ``smc``: the call with lengths 1, 2 and so on, each with what it adds.

    The call is of an ``unfold`` or a ``scan``, or of a model that contains such and has its length as an argument:
    ``length`` names it, by default the only one that is a whole number. An observation belongs to step t where t is the
    first whole number in its address, and to the first step where there is none; a step may have none.

    >>> from genmlx import gen, normal, trace, unfold
    >>> @gen
    ... def step(t, x):
    ...     x = trace("x", normal(x, 1.0))
    ...     trace("y", normal(x, 1.0))
    ...     return x
    >>> growing_steps(unfold(step)(2, 0.0), {(0, "y"): 1.0, (1, "y"): 2.0})
    [(unfold(step)(1, 0.0), choicemap({(0, 'y'): 1.0})), (unfold(step)(2, 0.0), choicemap({(1, 'y'): 2.0}))]

    Raises ``UsageError`` for a model that has no length, and ``UnknownAddress`` for an observation beyond it.
    """
    given = checked_problem(call, observations)
    count, grown = _growth(call, length)
    if count < 1:
        raise UsageError(f"{call!r} has no steps", expected="a length of 1 or more")
    own: list[list] = [[] for _ in range(count)]
    for address, value in given.items():
        t = next((part for part in address if isinstance(part, int)), 0)
        if not 0 <= t < count:
            raise UnknownAddress(
                f"an observation is of step {t}, and there are {count}:",
                address=address,
                gen_fn=call.gen_fn,
                expected=f"steps 0 to {count - 1}",
                hint="a call that is as long as the observations",
            )
        own[t].append((address, value))
    return [(grown(t + 1), from_items(items)) for t, items in enumerate(own)]


def _growth(call: Call, length: str | None) -> tuple[int, Callable[[int], Call]]:
    """How long a call is, and the function from a length to the call of that length."""
    from genmlx.combinators.scan import Scan
    from genmlx.combinators.unfold import Unfold
    from genmlx.gen import GenFn

    gen_fn = call.gen_fn
    if length is not None and not isinstance(gen_fn, GenFn):
        raise UsageError(f"{name_of(gen_fn)} was given length={length!r}", expected="a model whose argument that is")
    if isinstance(gen_fn, Unfold):
        args = call.args
        return gen_fn.length(args), lambda n: gen_fn(n, *args[1:])
    if isinstance(gen_fn, Scan):
        init, xs, *rest = call.args
        return gen_fn.length(call.args), lambda n: gen_fn(init, first_elements(xs, n), *rest)
    if not isinstance(gen_fn, GenFn):
        raise UsageError(f"{name_of(gen_fn)} does not grow", expected="an unfold, a scan, or a model with a length")
    bound = gen_fn.signature.bind(*call.raw_args, **call.raw_kwargs)
    bound.apply_defaults()
    whole = [name for name, value in bound.arguments.items() if isinstance(value, int) and not isinstance(value, bool)]
    if length is None and len(whole) != 1:
        raise UsageError(
            f"{name_of(gen_fn)} does not say how long it is: "
            + (f"its length may be {' or '.join(whole)}" if whole else "none of its arguments is a whole number"),
            expected="one argument that is a whole number, which is passed on to an unfold",
            hint=f"length={whole[0]!r}" if whole else "steps, [(call, observations), ...]",
        )
    name = whole[0] if length is None else length
    if name not in whole:
        there = f"one of {', '.join(bound.arguments)}" if bound.arguments else "a model with arguments"
        raise UsageError(f"{name_of(gen_fn)} has no whole number {name!r} to grow by", expected=there)

    def grown(n: int) -> Call:
        own = gen_fn.signature.bind(*bound.args, **bound.kwargs)
        own.arguments[name] = n
        return gen_fn(*own.args, **own.kwargs)

    return bound.arguments[name], grown


def first_elements(xs: Any, n: int) -> Any:
    """The first elements of what ``scan`` runs over: a list, or columns."""
    if isinstance(xs, list):
        return xs[:n]
    return optree.tree_map(lambda column: column[:n], xs, namespace=NAMESPACE)
