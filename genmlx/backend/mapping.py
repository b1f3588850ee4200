"""``mx.vmap`` with its faults mended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

# Functions whose vmap rule forgets a second operand that is not batched, and the operators made of them.
_FORGETFUL = {
    "bitwise_and": ("__and__", "__iand__"),
    "bitwise_or": ("__or__", "__ior__"),
    "bitwise_xor": ("__xor__",),
    "left_shift": ("__lshift__",),
    "right_shift": ("__rshift__",),
    "not_equal": ("__ne__",),
}
_PRODUCTS = {"matmul": ("__matmul__",)}
_FILLS = {"full": (), "full_like": ()}
_depth = 0


def vmap_list(f: Callable[..., list], *arrays: mx.array) -> list:
    """``f`` of every row of the arrays, where ``f`` gives a list of arrays; the rows come first in each result.

    MLX 0.32.4 moves the lane axis of an output once for each time that the output is listed: an array listed twice
    comes back with its axes swapped (no upstream issue found). So each array is returned once. Two Python objects can
    still be one array, since a reshape or a cast that changes nothing gives the same array again: of arrays that look
    alike, all but the first get a node of their own.
    """
    places: list[int] = []

    def once(*rows: mx.array) -> list:
        distinct: dict[int, tuple[int, mx.array]] = {}
        found = [distinct.setdefault(id(out), (len(distinct), out))[0] for out in f(*rows)]
        places[:] = found
        kinds: set = set()
        made = []
        for _, out in distinct.values():
            made.append(mx.squeeze(mx.expand_dims(out, 0), 0) if (out.shape, out.dtype) in kinds else out)
            if out.ndim:
                kinds.add((out.shape, out.dtype))
        return made

    mapped = vmap(once)(*arrays)
    return [mapped[place] for place in places]


def vmap(f: Callable) -> Callable:
    """``mx.vmap`` over the first axis, with the operators that ``f`` uses mended."""

    def mapped(*arrays: mx.array) -> Any:
        with mended_operators():
            return mx.vmap(f)(*arrays)

    return mapped


@contextmanager
def mended_operators() -> Iterator[None]:
    """While a body is traced for a batch or a gradient, MLX's operators mean what they mean alone.

    In MLX 0.32.4 (no upstream issues found) ``&``, ``|``, ``^``, ``<<``, ``>>`` and ``!=`` give wrong values, without a
    word, when exactly one operand is batched: here they first make each operand depend on the other. ``mx.full`` of an
    array has a wrong gradient, three times too large for a scalar: here it broadcasts. And a matrix times a vector,
    which in a batch takes a CPU up to ten times as long, is the vector times the transpose. A body is the user's code,
    which cannot be asked to avoid them.
    """
    global _depth
    originals: list[tuple[Any, str, Any]] = []
    if _depth == 0:
        for mend, names in ((_tied, _FORGETFUL), (_vector_first, _PRODUCTS), (_broadcast, _FILLS)):
            for function, operators in names.items():
                for owner, name in [(mx, function), *((mx.array, operator) for operator in operators)]:
                    if (original := getattr(owner, name, None)) is not None:
                        originals.append((owner, name, original))
                        setattr(owner, name, mend(original))
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        for owner, name, original in originals:
            setattr(owner, name, original)


def is_mapping() -> bool:
    """Whether a body is traced for a batch or a gradient at this moment."""
    return _depth > 0


def _tied(original: Callable) -> Callable:
    def operator(a: Any, b: Any, *rest: Any, **named: Any) -> Any:
        if isinstance(a, mx.array) and isinstance(b, mx.array):
            a, b = mx.where(mx.equal(b, b), a, a), mx.where(mx.equal(a, a), b, b)
        return original(a, b, *rest, **named)

    return operator


def _vector_first(original: Callable) -> Callable:
    def product(a: Any, b: Any, *rest: Any, **named: Any) -> Any:
        if isinstance(a, mx.array) and isinstance(b, mx.array) and a.ndim > 1 and b.ndim == 1:
            a, b = b, mx.swapaxes(a, -1, -2)
        return original(a, b, *rest, **named)

    return product


def _broadcast(original: Callable) -> Callable:
    """``mx.full`` or ``mx.full_like``, whose first argument is a shape or has one."""

    def full(like: Any, vals: Any, dtype: Any = None, **named: Any) -> Any:
        if not isinstance(vals, mx.array):
            return original(like, vals, dtype, **named)
        if not isinstance(like, mx.array):  # then MLX 0.32.4 passes over a type
            return mx.broadcast_to(vals, (like,) if isinstance(like, int) else tuple(like), **named)
        return mx.broadcast_to(vals.astype(dtype or like.dtype), like.shape, **named)

    return full
