"""``scan``: a carry handed through the elements of a sequence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import optree

from genmlx.combinators.sequence import Sequence, changed_elements, columns_length
from genmlx.combinators.whole import stacked_columns
from genmlx.diff import NoChange
from genmlx.errors import UsageError
from genmlx.pytree import NAMESPACE
from genmlx.trace import Trace


class Scan(Sequence):
    """``scan(kernel)`` takes ``(init, xs)``; step ``t`` runs ``kernel(carry, xs[t]) -> (carry, out)`` at address ``t``.

    Returns ``(carry, outs)``. ``xs`` is a list of elements, and ``outs`` then a list; or an array, or a tuple or dict
    of arrays, with the elements on axis 0, and ``outs`` is then stacked likewise.

    >>> from genmlx import gen, normal, scan, trace
    >>> @gen
    ... def add(total, x):
    ...     total = total + trace("step", normal(x, 1))
    ...     return total, total
    >>> tr, _ = scan(add).generate((0.0, [1.0, 2.0]), {(0, "step"): 1.5, (1, "step"): 2.5})
    >>> carry, outs = tr.retval
    >>> carry.item(), [out.item() for out in outs]
    (4.0, [1.5, 4.0])
    """

    name = "scan"
    chained = True
    returns_list = False

    def length(self, args: tuple) -> int:
        return columns_length(self, _columns(args[1]))

    def step_args(self, args: tuple, t: int, elements: list[Trace]) -> tuple:
        return (_pair(self, elements[t - 1].retval)[0] if t else args[0], self.step_inputs(args, t))

    def step_inputs(self, args: tuple, t: int) -> Any:
        xs = args[1]
        return xs[t] if isinstance(xs, (list, mx.array)) else _map(lambda leaf: leaf[t], xs)

    def changed_steps(self, old: tuple, new: tuple, diffs: tuple, n: int) -> Iterable[int]:
        columns = [[column for _, column in _columns(xs)] for xs in (old[1], new[1])]
        if len(columns[0]) != len(columns[1]):
            return range(n)
        found = {i for o, c in zip(*columns, strict=True) for i in changed_elements(o, c, diffs[1], n)}
        return found | {0} if n and diffs[0] is not NoChange else found

    def stacked_inputs(self, args: tuple) -> Any:
        return stacked_columns(args[1])

    def kernel_args(self, state: Any, inputs: Any, args: tuple) -> tuple:
        return (state, inputs)

    def initial_state(self, args: tuple) -> Any:
        return args[0]

    def next_state(self, retval: Any) -> Any:
        return _pair(self, retval)[0]

    def collect(self, args: tuple, retvals: list) -> Any:
        pairs = [_pair(self, retval) for retval in retvals]
        outs = [out for _, out in pairs]
        if pairs and not isinstance(args[1], list):
            outs = optree.tree_map(lambda *leaves: mx.stack([mx.array(x) for x in leaves]), *outs, namespace=NAMESPACE)
        return (pairs[-1][0] if pairs else args[0], outs)

    def bind(self, args: Any, kwargs: dict | None = None) -> tuple:
        args = super().bind(args, kwargs)
        if len(args) != 2:
            raise UsageError(f"{self.__name__} was given {len(args)} arguments", expected="(init, xs)")
        return args


def _pair(gen_fn: Any, retval: Any) -> tuple:
    if not isinstance(retval, tuple) or len(retval) != 2:
        raise UsageError(
            f"the kernel of {gen_fn.__name__} returned {retval!r:.40}", expected="a pair (carry, out)"
        )
    return retval


def _columns(xs: Any) -> list[tuple[str, Any]]:
    if isinstance(xs, (tuple, dict)):
        columns: Any = xs
        paths, leaves, _ = optree.tree_flatten_with_path(columns, namespace=NAMESPACE)
        names = ["xs" + "".join(f"[{part!r}]" for part in path) for path in paths]
        return list(zip(names, leaves, strict=True))
    return [("xs", xs)]


def _map(f: Any, tree: Any) -> Any:
    return optree.tree_map(f, tree, namespace=NAMESPACE)


scan = Scan
