"""``mask``: a generative function that is there or not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from genmlx.carry import regenerate_by_generate, update_by_generate
from genmlx.choicemap import EMPTY, ChoiceMap
from genmlx.combinators.kernel import Combinator, at_least, checked_kernel
from genmlx.diff import NoChange
from genmlx.errors import ParameterError, name_of
from genmlx.masked import host_value, mask_choices, where
from genmlx.selection import Selection
from genmlx.trace import Trace


class MaskTrace(Trace):
    """Whether it is active, and the trace of the inner function; None where it is known not to run."""

    __slots__ = ("active", "inner")
    data = ("args", "retval", "score", "active", "inner")

    active: Any
    inner: Trace | None

    def gathered(self) -> ChoiceMap:
        """The inner choices; none when inactive; masked where lanes differ."""
        active = known(self.active)
        return EMPTY if self.inner is None or active is False else mask_choices(self.inner.choices, active)

    def children(self) -> Iterable[Trace]:
        return () if self.inner is None else (self.inner,)


class Mask(Combinator):
    """``mask(inner)`` takes ``(active, *args)``: the inner function when active, else no choices and None.

    With a traced ``active``, as in a batch, the inner function always runs: a lane where it is inactive has score 0
    and none of its choices, and the returned value is to be used only where ``active`` holds. Constraints on an
    inactive function are ignored.

    >>> from genmlx import mask, normal
    >>> masked = mask(normal)
    >>> masked.generate((True, 0.0, 1.0), 0.0).weight.item() == normal(0, 1).log_prob(0.0).item()
    True
    >>> masked.generate((False, 0.0, 1.0), 0.0).weight.item(), masked.simulate((False, 0.0, 1.0)).retval
    (0.0, None)
    """

    def __init__(self, inner: Any):
        self.inner = checked_kernel("mask", inner)
        self.__name__ = f"mask({name_of(inner)})"

    @property
    def parts(self) -> tuple:
        return (self.inner,)

    def bind(self, args: Any, kwargs: dict | None = None) -> tuple:
        return at_least(self, super().bind(args, kwargs), 1, "(active, *arguments of the inner function)")

    def _generate(self, args: tuple, constraints: ChoiceMap, key: Any) -> tuple[Trace, Any]:
        active = self._active(args[0])
        if active is False:
            return self._trace(args, active, None), 0.0
        inner, weight = self.inner._generate(self.inner.bind(tuple(args[1:])), constraints, key)
        return self._trace(args, active, inner), where(active, weight, 0.0)

    def _update(
        self, trace: Any, args: tuple, diffs: tuple, constraints: ChoiceMap, key: Any
    ) -> tuple[Trace, Any, Any, ChoiceMap]:
        active, stays = self._next(trace, args, diffs)
        if not stays:
            return update_by_generate(trace, self, args, constraints, key)
        if active is False:
            return self._trace(args, active, None), 0.0, NoChange, EMPTY
        inner_args = self.inner.bind(tuple(args[1:]))
        inner, weight, retdiff, discard = self.inner._update(trace.inner, inner_args, diffs[1:], constraints, key)
        new = self._trace(args, active, inner)
        return new, where(active, weight, 0.0), retdiff, mask_choices(discard, active)

    def _regenerate(
        self, trace: Any, args: tuple, diffs: tuple, selection: Selection, key: Any
    ) -> tuple[Trace, Any, Any]:
        active, stays = self._next(trace, args, diffs)
        if not stays:
            return regenerate_by_generate(trace, self, args, selection, key)
        if active is False:
            return self._trace(args, active, None), 0.0, NoChange
        inner_args = self.inner.bind(tuple(args[1:]))
        inner, weight, retdiff = self.inner._regenerate(trace.inner, inner_args, diffs[1:], selection, key)
        return self._trace(args, active, inner), where(active, weight, 0.0), retdiff

    def _active(self, active: Any) -> Any:
        """True, False, or the traced boolean."""
        found = known(active)
        if isinstance(found, mx.array) and (found.ndim or mx.issubdtype(found.dtype, mx.floating)):
            raise ParameterError(f"{self.__name__}: active must be one truth value, got {found!r:.40}")
        return found if isinstance(found, bool) else found.astype(mx.bool_)

    def _next(self, trace: Any, args: tuple, diffs: tuple) -> tuple[Any, bool]:
        """Whether it is active with these arguments, and whether every lane stays active, or inactive."""
        old = known(trace.active)
        if diffs[0] is NoChange:
            return old, True
        active = self._active(args[0])
        return active, isinstance(active, bool) and old is active

    def _project(self, trace: Any, selection: Selection) -> Any:
        active = known(trace.active)
        return 0.0 if active is False else where(active, self.inner._project(trace.inner, selection), 0.0)

    def unvisited(self, trace: Any, constraints: ChoiceMap) -> list[tuple]:
        return [] if trace.inner is None else self.inner.unvisited(trace.inner, constraints)

    def _trace(self, args: tuple, active: Any, inner: Trace | None) -> MaskTrace:
        score = mx.array(0.0) if inner is None else where(active, inner.score, 0.0)
        retval = None if inner is None else inner.retval
        return MaskTrace(gen_fn=self, args=args, retval=retval, score=score, active=active, inner=inner)


def known(active: Any) -> Any:
    """True or False when the host knows, else the array."""
    found = host_value(active)
    return active if found is None else bool(found)


mask = Mask
