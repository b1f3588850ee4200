"""``switch``: one of several branches, by an index."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import optree

from genmlx.carry import overlaid, regenerate_by_generate, update_by_generate
from genmlx.choicemap import EMPTY, ChoiceMap, from_items
from genmlx.combinators.kernel import Combinator, at_least, checked_kernel
from genmlx.diff import NoChange, UnknownChange
from genmlx.errors import ParameterError, UsageError, ValueMismatch, caller_line, name_of
from genmlx.gfi import unchanged
from genmlx.masked import active_of, host_value, mask_choices, value_of
from genmlx.pytree import flatten
from genmlx.random import split
from genmlx.selection import Selection
from genmlx.trace import Trace


class SwitchTrace(Trace):
    """The traces of the branches that ran: the one chosen, or, where the index is traced, all of them."""

    __slots__ = ("index", "branches")
    data = ("args", "retval", "score", "index", "branches")

    index: Any
    branches: dict[int, Trace]

    def gathered(self) -> ChoiceMap:
        """The chosen branch's. Where lanes differ, every branch's, masked by the lanes that chose it."""
        chosen = host_value(self.index)
        return merged(self.index, {b: t.choices for b, t in self.branches.items() if chosen is None or b == chosen})

    def children(self) -> Iterable[Trace]:
        return self.branches.values()


class Switch(Combinator):
    """``switch(*branches)`` takes ``(index, *args)`` and runs that branch; its addresses and return value are ours.

    An index known on the host runs one branch. A traced index, as in a batch, runs all, and each lane's weight, score
    and value are those of its own branch; addresses that not every lane has are masked. Changing the index in an
    update carries over the choices that both branches have.

    >>> from genmlx import gen, normal, switch, trace
    >>> @gen
    ... def near(mu):
    ...     return trace("z", normal(mu, 1))
    >>> @gen
    ... def far(mu):
    ...     return trace("z", normal(mu, 10))
    >>> tr, weight = switch(near, far).generate((1, 0.0), {"z": 5.0})
    >>> round(weight.item(), 6)
    -3.346524
    """

    def __init__(self, *branches: Any):
        if not branches:
            raise UsageError("switch was given no branches", where=caller_line())
        self.branches = [checked_kernel("switch", branch) for branch in branches]
        self.__name__ = f"switch({', '.join(map(name_of, branches))})"

    @property
    def parts(self) -> tuple:
        return tuple(self.branches)

    def _chosen(self, index: Any) -> int | None:
        """The branch, when it is known on the host."""
        found = host_value(index)
        if found is None:
            if isinstance(index, mx.array) and index.ndim == 0 and not mx.issubdtype(index.dtype, mx.floating):
                return None
            raise ParameterError(f"{self.__name__}: the index must be one whole number, got {index!r:.40}")
        if isinstance(found, float) and found.is_integer() or hasattr(type(found), "__index__"):
            found = int(found)
        if not isinstance(found, int) or not 0 <= found < len(self.branches):
            raise ParameterError(
                f"{self.__name__}: no branch {found!r}", expected=f"an index from 0 to {len(self.branches) - 1}"
            )
        return found

    def bind(self, args: Any, kwargs: dict | None = None) -> tuple:
        return at_least(self, super().bind(args, kwargs), 1, "(index, *arguments of the branches)")

    def _generate(self, args: tuple, constraints: ChoiceMap, key: Any) -> tuple[Trace, Any]:
        index, *rest = args
        chosen = self._chosen(index)
        which = range(len(self.branches)) if chosen is None else [chosen]
        keys = split(key, len(self.branches)) if chosen is None else [key]
        made = {
            b: self.branches[b]._generate(self.branches[b].bind(tuple(rest)), constraints, k)
            for b, k in zip(which, keys, strict=True)
        }
        trace = self._trace(args, {b: sub for b, (sub, _) in made.items()})
        return trace, self._pick(index, {b: weight for b, (_, weight) in made.items()})

    def _update(
        self, trace: Any, args: tuple, diffs: tuple, constraints: ChoiceMap, key: Any
    ) -> tuple[Trace, Any, Any, ChoiceMap]:
        if not self._stays(trace, args, diffs):
            return update_by_generate(trace, self, args, constraints, key)
        index, *rest = args
        subs, weights, discards, retdiffs = {}, {}, {}, []
        which = self._running(trace, index)
        for (b, old), k in zip(which.items(), split(key, len(which)), strict=True):
            bound = self.branches[b].bind(tuple(rest))
            subs[b], weights[b], retdiff, discards[b] = self.branches[b]._update(old, bound, diffs[1:], constraints, k)
            retdiffs.append(retdiff)
        new = self._trace(args, subs)
        return new, self._pick(index, weights), _joint(retdiffs), merged(index, discards)

    def _regenerate(
        self, trace: Any, args: tuple, diffs: tuple, selection: Selection, key: Any
    ) -> tuple[Trace, Any, Any]:
        if not self._stays(trace, args, diffs):
            return regenerate_by_generate(trace, self, args, selection, key)
        index, *rest = args
        subs, weights, retdiffs = {}, {}, []
        which = self._running(trace, index)
        for (b, old), k in zip(which.items(), split(key, len(which)), strict=True):
            bound = self.branches[b].bind(tuple(rest))
            subs[b], weights[b], retdiff = self.branches[b]._regenerate(old, bound, diffs[1:], selection, k)
            retdiffs.append(retdiff)
        return self._trace(args, subs), self._pick(index, weights), _joint(retdiffs)

    def _stays(self, trace: Any, args: tuple, diffs: tuple) -> bool:
        """Whether every lane keeps its branch."""
        if len(trace.args) != len(args):
            return False
        old, new = host_value(trace.index), host_value(args[0])
        return old == new if old is not None and new is not None else diffs[0] is NoChange

    def _running(self, trace: Any, index: Any) -> dict[int, Trace]:
        chosen = host_value(index)
        return trace.branches if chosen is None else {int(chosen): trace.branches[int(chosen)]}

    def _project(self, trace: Any, selection: Selection) -> Any:
        which = self._running(trace, trace.index)
        return self._pick(trace.index, {b: self.branches[b]._project(sub, selection) for b, sub in which.items()})

    def unvisited(self, trace: Any, constraints: ChoiceMap) -> list[tuple]:
        which = self._running(trace, trace.index)
        missed = [set(self.branches[b].unvisited(sub, constraints)) for b, sub in which.items()]
        return [address for address in constraints if all(address in m for m in missed)]

    def _trace(self, args: tuple, subs: dict[int, Trace]) -> SwitchTrace:
        index = args[0]
        return SwitchTrace(
            gen_fn=self,
            args=args,
            retval=self._retval(index, subs),
            score=self._pick(index, {b: sub.score for b, sub in subs.items()}),
            index=index,
            branches=subs,
        )

    def _pick(self, index: Any, values: dict[int, Any]) -> Any:
        """Each lane's value from its own branch; -inf for an index that is no branch."""
        if len(values) == 1:
            return next(iter(values.values()))
        if all(type(v) is float and v == 0.0 for v in values.values()):
            return 0.0
        picked: Any = mx.array(-math.inf)
        for b, value in values.items():
            picked = mx.where(index == b, value, picked)
        return picked

    def _retval(self, index: Any, subs: dict[int, Trace]) -> Any:
        retvals = [sub.retval for sub in subs.values()]
        if len(retvals) == 1:
            return retvals[0]
        flat = [flatten(retval) for retval in retvals]
        shapes = [[getattr(leaf, "shape", ()) for leaf in leaves] for leaves, _ in flat]
        if any(spec != flat[0][1] for _, spec in flat) or any(s != shapes[0] for s in shapes):
            raise ValueMismatch(
                f"the branches of {self.__name__} return values of different structure or shape",
                expected="one structure, since in a batch each lane takes one of them",
                hint="return the same kind of value from each branch, or None from all",
            )
        picked = flat[0][0]
        for b, (leaves, _) in list(zip(subs, flat, strict=True))[1:]:
            picked = [x if x is y else mx.where(index == b, y, x) for x, y in zip(picked, leaves, strict=True)]
        return optree.tree_unflatten(flat[0][1], picked)


def merged(index: Any, each: dict[int, ChoiceMap]) -> ChoiceMap:
    """The choices of several branches: masked by the lanes that chose the branch, unless every branch has them."""
    if len(each) == 1:
        return next(iter(each.values()))
    found = EMPTY
    for b, choices in each.items():
        found = overlaid(found, mask_choices(choices, index == b))

    def plain(address: tuple, leaf: Any) -> Any:
        own = [choices.sub(address) for choices in each.values()]
        return value_of(leaf) if all(o.is_leaf and active_of(o.value) is True for o in own) else leaf

    return from_items((address, plain(address, leaf)) for address, leaf in found.items())


def _joint(retdiffs: list) -> Any:
    if len(retdiffs) == 1:
        return retdiffs[0]
    return NoChange if unchanged(tuple(retdiffs)) else UnknownChange


switch = Switch
