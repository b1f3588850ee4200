"""``vmap`` and ``repeat``: a kernel run over the elements of batched arguments, as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import optree

from genmlx.backend.sums import summed
from genmlx.choicemap import EMPTY, ChoiceMap, from_items
from genmlx.combinators.kernel import Combinator, checked_kernel
from genmlx.diff import NoChange, UnknownChange
from genmlx.dist.values import as_array
from genmlx.errors import MissingChoice, ParameterError, UsageError, ValueMismatch, caller_line, name_of
from genmlx.free import Fixed, Free
from genmlx.gfi import unchanged
from genmlx.masked import Lanewise, Masked, settled_choices, value_of
from genmlx.params import peek, shared_reads
from genmlx.pytree import NAMESPACE, flatten
from genmlx.selection import NONE, Selection
from genmlx.trace import Trace
from genmlx.vectorized import Lanes, run, stacked_choices


class VmapTrace(Trace):
    """The kernel's trace with the elements on axis 0 of every array, arguments included."""

    __slots__ = ("lanes", "n", "params")
    data = ("args", "retval", "score", "lanes", "params")

    lanes: Any
    n: int
    params: dict

    def gathered(self) -> ChoiceMap:
        return settled_choices(stacked_choices(self.lanes, self.n))

    def children(self) -> Iterable[Trace]:
        return (self.lanes,)

    def reads(self) -> dict:
        return self.params


class Vmap(Combinator):
    """``vmap(kernel, in_axes=0)`` runs the kernel for every element of its arguments at once.

    Addresses are the kernel's own, with values stacked ``[n, ...]``; so is the return value. ``in_axes`` is 0 or None
    (shared by all elements), for all arguments or one for each. The kernel is traced once, whatever ``n`` is, so it
    must not branch on its choices.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, trace, vmap
    >>> @gen
    ... def kernel(x, scale):
    ...     return trace("z", normal(x, scale))
    >>> many = vmap(kernel, in_axes=(0, None))
    >>> tr, weight = many.generate((mx.array([0.0, 1.0]), 1.0), {"z": [0.0, 1.0]})
    >>> tr["z"].shape, round(weight.item(), 6)
    ((2,), -1.837877)
    """

    def __init__(self, kernel: Any, in_axes: Any = 0, axis_size: int | None = None):
        self.kernel = checked_kernel("vmap", kernel)
        axes = in_axes if isinstance(in_axes, (tuple, list)) else (in_axes,)
        if any(axis not in (0, None) or isinstance(axis, bool) for axis in axes):
            raise UsageError(f"vmap: in_axes is {in_axes!r}", expected="0 or None for each argument")
        self.in_axes, self.axis_size = in_axes, axis_size
        self.__name__ = f"vmap({name_of(kernel)})"

    @property
    def parts(self) -> tuple:
        axes = tuple(self.in_axes) if isinstance(self.in_axes, list) else self.in_axes
        return (self.kernel, axes, self.axis_size)

    def bind(self, args: Any, kwargs: dict | None = None) -> tuple:
        args = super().bind(args, kwargs)
        return tuple(map(self._column, args, self._axes(args)))

    def _axes(self, args: tuple) -> tuple:
        if not isinstance(self.in_axes, (tuple, list)):
            return (self.in_axes,) * len(args)
        if len(self.in_axes) != len(args):
            raise UsageError(f"{self.__name__}: {len(args)} arguments for in_axes {self.in_axes!r}")
        return tuple(self.in_axes)

    def _column(self, arg: Any, axis: int | None) -> Any:
        """A batched argument as arrays: a list of numbers is one."""
        if axis is None:
            return arg
        return as_array(arg) if isinstance(arg, list) else optree.tree_map(as_array, arg, namespace=NAMESPACE)

    def _size(self, args: tuple) -> int:
        sizes = {}
        for i, (arg, axis) in enumerate(zip(args, self._axes(args), strict=True)):
            for leaf in flatten(arg)[0] if axis == 0 else ():
                if not leaf.ndim:
                    raise ParameterError(
                        f"{self.__name__}: argument {i} is a number, not a batch",
                        hint="in_axes=None at its place shares it between the elements",
                    )
                sizes[f"argument {i}"] = leaf.shape[0]
        if self.axis_size is not None:
            sizes["axis_size"] = self.axis_size
        if not sizes:
            raise ParameterError(f"{self.__name__}: no argument is batched", hint="repeat(kernel, n), or axis_size=n")
        if len(set(sizes.values())) > 1:
            raise ParameterError(
                f"{self.__name__}: {' and '.join(f'{name} has {size}' for name, size in sizes.items())} elements"
            )
        n = next(iter(sizes.values()))
        if n < 1:
            raise ParameterError(f"{self.__name__}: no elements", expected="at least one")
        return n

    def _lane_args(self, args: tuple) -> tuple:
        axes = self._axes(args)
        return tuple([Lanes(arg) if axis == 0 else arg for arg, axis in zip(args, axes, strict=True)])

    def _run(self, lane: Any, n: int, key: Any, constraints: ChoiceMap, *inputs: Any) -> tuple:
        """``lane(key, its share of the stacked constraints, *its inputs)`` of every element."""
        leaves = [(address, _stacked(leaf, n)) for address, leaf in constraints.items()]
        # A value that is not stacked may belong to a choice beside this function, where it is spliced.
        others = [address for address, leaf in leaves if leaf is None]
        own = from_items((address, leaf) for address, leaf in leaves if leaf is not None)
        try:
            found = run(lane, n, key, ChoiceMap(own._root, None if own.is_empty else n), *inputs)
        except MissingChoice as error:
            if error.address in others:
                raise self._not_stacked(error.address, constraints, n) from None
            raise
        choices = stacked_choices(found[0], n) if others else EMPTY
        for address in others:
            if choices.sub(address).is_leaf:
                raise self._not_stacked(address, constraints, n)
        return found

    def _not_stacked(self, address: tuple, constraints: ChoiceMap, n: int) -> ValueMismatch:
        shape = list(as_array(value_of(constraints.sub(address).value)).shape)
        return ValueMismatch(
            f"the value of shape {shape} is not stacked over the {n} elements of {self.__name__}",
            address=address,
            expected=f"an array of shape [{n}, ...]",
        )

    def _generate(self, args: tuple, constraints: ChoiceMap, key: Any) -> tuple[Trace, Any]:
        n = self._size(args)

        def lane(key: Any, constraints: ChoiceMap, *args: Any) -> Any:
            return self.kernel._generate(self.kernel.bind(args), constraints, key)

        lanes, weight = self._run(lane, n, key, constraints, *self._lane_args(args))
        return self._trace(args, lanes, n), _sum(weight)

    def _update(
        self, trace: Any, args: tuple, diffs: tuple, constraints: ChoiceMap, key: Any
    ) -> tuple[Trace, Any, Any, ChoiceMap]:
        n = self._require_same_size(trace, args)
        if constraints.is_empty and self._settled(trace, diffs):
            return trace, 0.0, NoChange, EMPTY

        def lane(key: Any, constraints: ChoiceMap, old: Any, *args: Any) -> Any:
            kernel_args, kernel_diffs = self._kernel_args(old, args, diffs)
            return self.kernel._update(old, kernel_args, kernel_diffs, constraints, key)

        inputs = (Lanes(trace.lanes), *self._lane_args(args))
        lanes, weight, retdiff, discard = self._run(lane, n, key, constraints, *inputs)
        return self._trace(args, lanes, n), _sum(weight), retdiff, ChoiceMap(discard._root)

    def _regenerate(
        self, trace: Any, args: tuple, diffs: tuple, selection: Selection, key: Any
    ) -> tuple[Trace, Any, Any]:
        n = self._require_same_size(trace, args)
        if selection is NONE and self._settled(trace, diffs):
            return trace, 0.0, NoChange

        def lane(key: Any, old: Any, *args: Any) -> Any:
            kernel_args, kernel_diffs = self._kernel_args(old, args, diffs)
            return self.kernel._regenerate(old, kernel_args, kernel_diffs, selection, key)

        lanes, weight, retdiff = run(lane, n, key, Lanes(trace.lanes), *self._lane_args(args))
        return self._trace(args, lanes, n), _sum(weight), retdiff

    def _settled(self, trace: Any, diffs: tuple) -> bool:
        """Whether running again with no new choice would give the same trace."""
        return unchanged(diffs) and all(peek(*read) is value for read, value in trace.params.items())

    def _kernel_args(self, old: Any, args: tuple, diffs: tuple) -> tuple[tuple, tuple]:
        if unchanged(diffs):
            return old.args, (NoChange,) * len(old.args)
        bound = self.kernel.bind(args)
        known = [NoChange if diff is NoChange else UnknownChange for diff in diffs]
        return bound, (*known, *[UnknownChange] * (len(bound) - len(known)))

    def _require_same_size(self, trace: Any, args: tuple) -> int:
        n = self._size(args)
        if n != trace.n:
            raise ParameterError(
                f"{self.__name__}: an update from {trace.n} to {n} elements",
                expected="the same number: stacked choices cannot grow",
                hint="map_over, whose elements have addresses of their own",
            )
        return n

    def _project(self, trace: Any, selection: Selection) -> Any:
        if isinstance(selection, Lanewise):  # its arrays have the elements on axis 0, as the values have
            masks = selection.masks.map(lambda active: _stacked_mask(active, trace.n))

            def lane(key: Any, old: Any, masks: ChoiceMap) -> Any:
                return self.kernel._project(old, Lanewise(masks))

            shares = ChoiceMap(masks._root, None if masks.is_empty else trace.n)
            return _sum(run(lane, trace.n, None, Lanes(trace.lanes), shares))
        return _sum(run(lambda key, old: self.kernel._project(old, selection), trace.n, None, Lanes(trace.lanes)))

    def unvisited(self, trace: Any, constraints: ChoiceMap) -> list[tuple]:
        return self.kernel.unvisited(trace.lanes, constraints)

    def _trace(self, args: tuple, lanes: Any, n: int) -> VmapTrace:
        retval = optree.tree_map(lambda leaf: _stacked_number(leaf, n), lanes.retval, namespace=NAMESPACE)
        return VmapTrace(
            gen_fn=self,
            args=args,
            retval=retval,
            score=summed(lanes.score),
            lanes=lanes,
            n=n,
            params=shared_reads(lanes),
        )


def _stacked(leaf: Any, n: int) -> Any:
    """A constraint with the elements on axis 0, of its mask too; None when it has no such axis."""
    value = leaf if isinstance(leaf, (Free, Fixed)) else as_array(value_of(leaf))
    if value.shape[:1] != (n,):
        return None
    return Masked(value, _stacked_mask(leaf.active, n)) if isinstance(leaf, Masked) else value


def _stacked_mask(active: Any, n: int) -> Any:
    return active if isinstance(active, bool) or active.ndim else mx.broadcast_to(active, (n,))


def _stacked_number(leaf: Any, n: int) -> Any:
    """A number that the kernel returned, which is the same for all elements."""
    return mx.broadcast_to(mx.array(leaf), (n,)) if isinstance(leaf, (bool, int, float)) else leaf


def _sum(weight: Any) -> Any:
    return summed(weight) if isinstance(weight, mx.array) else weight


vmap = Vmap


def repeat(kernel: Any, n: int) -> Vmap:
    """``n`` independent runs of the kernel on the same arguments, stacked.

    >>> from genmlx import normal, repeat
    >>> repeat(normal, 3).simulate((0.0, 1.0)).retval.shape
    (3,)
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ParameterError(f"repeat: n must be a whole number, 1 or more, got {n!r}", where=caller_line())
    return Vmap(kernel, in_axes=None, axis_size=n)
