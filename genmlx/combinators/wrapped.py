"""Functions around another generative function whose choices show through: ``contramap``, ``map_retval``, ``dimap``,
and ``recurse``, whose inner function is made from itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from genmlx.choicemap import ChoiceMap
from genmlx.combinators.kernel import Combinator, checked_kernel
from genmlx.diff import NoChange, UnknownChange
from genmlx.errors import UsageError, caller_line, name_of
from genmlx.gfi import GenerativeFunction, argument_diffs, unchanged
from genmlx.selection import Selection
from genmlx.trace import Trace


class WrappedTrace(Trace):
    """The trace of the inner function, under other arguments and with another return value."""

    __slots__ = ("inner",)
    data = ("args", "retval", "score", "inner")

    inner: Trace

    def gathered(self) -> ChoiceMap:
        return self.inner.choices

    def children(self) -> Iterable[Trace]:
        return (self.inner,)

    def __getitem__(self, address: Any) -> Any:
        return self.inner[address]


class Wrapped(GenerativeFunction):
    """The inner function with its arguments made from ours by ``pre``, and our return value from its by ``post``."""

    inner: GenerativeFunction

    def pre(self, args: tuple) -> tuple:
        return args

    def post(self, retval: Any) -> Any:
        return retval

    def _inner_args(self, args: tuple) -> tuple:
        return self.inner.bind(self.pre(args))

    def _generate(self, args: tuple, constraints: ChoiceMap, key: Any) -> tuple[Trace, Any]:
        inner, weight = self.inner._generate(self._inner_args(args), constraints, key)
        return self._trace(args, inner), weight

    def _update(
        self, trace: Any, args: tuple, diffs: tuple, constraints: ChoiceMap, key: Any
    ) -> tuple[Trace, Any, Any, ChoiceMap]:
        inner_args, inner_diffs = self._revised(trace, args, diffs)
        inner, weight, retdiff, discard = self.inner._update(trace.inner, inner_args, inner_diffs, constraints, key)
        return self._renewed(trace, args, inner, retdiff), weight, _outer(retdiff), discard

    def _regenerate(
        self, trace: Any, args: tuple, diffs: tuple, selection: Selection, key: Any
    ) -> tuple[Trace, Any, Any]:
        inner_args, inner_diffs = self._revised(trace, args, diffs)
        inner, weight, retdiff = self.inner._regenerate(trace.inner, inner_args, inner_diffs, selection, key)
        return self._renewed(trace, args, inner, retdiff), weight, _outer(retdiff)

    def _revised(self, trace: Any, args: tuple, diffs: tuple) -> tuple[tuple, tuple]:
        if unchanged(diffs):
            return trace.inner.args, (NoChange,) * len(trace.inner.args)
        inner_args = self._inner_args(args)
        return inner_args, argument_diffs(trace.inner.args, inner_args)

    def _renewed(self, trace: Any, args: tuple, inner: Trace, retdiff: Any) -> Any:
        if retdiff is NoChange:  # the same value, so the same object: callers see that nothing moved
            return WrappedTrace(gen_fn=self, args=args, retval=trace.retval, score=inner.score, inner=inner)
        return self._trace(args, inner)

    def _project(self, trace: Any, selection: Selection) -> Any:
        return self.inner._project(trace.inner, selection)

    def unvisited(self, trace: Any, constraints: ChoiceMap) -> list[tuple]:
        return self.inner.unvisited(trace.inner, constraints)

    def _trace(self, args: tuple, inner: Trace) -> WrappedTrace:
        return WrappedTrace(gen_fn=self, args=args, retval=self.post(inner.retval), score=inner.score, inner=inner)


class Dimap(Combinator, Wrapped):
    """``dimap(g, pre, post)``: ``pre`` makes g's arguments (a tuple, or the only one), ``post`` its return value ours.

    >>> from genmlx import dimap, normal
    >>> centred = dimap(normal, lambda scale: (0.0, scale), lambda x: 2 * x)
    >>> centred.generate((1.0,), 0.5).trace.retval.item()
    1.0
    """

    def __init__(self, inner: Any, pre: Callable | None = None, post: Callable | None = None, name: str = "dimap"):
        self.inner = checked_kernel(name, inner)
        for f in (pre, post):
            if f is not None and not callable(f):
                raise UsageError(f"{name} was given {f!r}", expected="a function", where=caller_line())
        self._pre, self._post = pre, post
        self.__name__ = f"{name}({name_of(inner)})"

    @property
    def parts(self) -> tuple:
        return (self.inner, self._pre, self._post)

    def pre(self, args: tuple) -> tuple:
        if self._pre is None:
            return args
        made = self._pre(*args)
        return made if isinstance(made, tuple) else (made,)

    def post(self, retval: Any) -> Any:
        return retval if self._post is None else self._post(retval)


dimap = Dimap


def contramap(g: Any, f: Callable) -> Dimap:
    """``g`` with its arguments made by ``f`` from ours.

    >>> from genmlx import contramap, normal
    >>> contramap(normal, lambda mu: (mu, 2.0)).simulate((1.0,)).args
    (1.0,)
    """
    return Dimap(g, f, None, "contramap")


def map_retval(g: Any, f: Callable) -> Dimap:
    """``g`` with its return value put through ``f``.

    >>> from genmlx import map_retval, normal
    >>> map_retval(normal, lambda x: x + 1).generate((0.0, 1.0), 0.5).trace.retval.item()
    1.5
    """
    return Dimap(g, None, f, "map_retval")


class Recurse(Wrapped):
    """``recurse(maker)``: the generative function that ``maker(self)`` makes, where ``self`` is the result.

    >>> from genmlx import flip, gen, recurse, trace
    >>> def maker(self):
    ...     @gen
    ...     def tree(depth):
    ...         if depth == 0 or not trace("more", flip(0.5)):
    ...             return 1
    ...         return trace("left", self(depth - 1)) + trace("right", self(depth - 1))
    ...     return tree
    >>> leaves = recurse(maker)
    >>> leaves.generate((2,), {"more": 1, ("left", "more"): 0, ("right", "more"): 0}).trace.retval
    2
    """

    def __init__(self, maker: Callable):
        if isinstance(maker, GenerativeFunction) or not callable(maker):
            raise UsageError(
                f"recurse was given {name_of(maker)}",
                expected="a function from the generative function itself to its body",
                where=caller_line(),
            )
        self.__name__ = f"recurse({name_of(maker)})"
        self.inner = checked_kernel("recurse", maker(self))


recurse = Recurse


def _outer(retdiff: Any) -> Any:
    return NoChange if retdiff is NoChange else UnknownChange
