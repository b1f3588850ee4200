"""Which element of its first input an element of a view is: index in, index out.

An index is a tuple of positions; along an axis of length 1 it is the int 0. Reading at an index that depends on data
stays within the array: MLX leaves undefined what is beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from genmlx.native.graph import Node, Untranslatable
from genmlx.native.spreading import lanes
from genmlx.native.writing import I64, Code, Index, Value, number, row_major

Indices = tuple[Index, ...]
Asked = Generator[tuple[Node, Indices], Any, Indices]
"""A rule asks for elements that it needs, and returns the index in the first input."""

_RESHAPED = ("Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims")
_BROADCASTS = ("Broadcast", "BroadcastAxes", "Full")


def within(shape: Sequence[int], index: Sequence[Index]) -> Indices:
    """The index with 0 along axes of length 1."""
    return tuple(0 if n == 1 else i for n, i in zip(shape, index, strict=True))


def _broadcast(code: Code, node: Node, index: Indices) -> Asked:
    yield from ()
    source = node.inputs[0].shape
    return within(source, index[len(index) - len(source) :])


def _transpose(code: Code, node: Node, index: Indices) -> Asked:
    yield from ()
    found: list[Index] = [0] * len(index)
    for i, axis in zip(index, node.settings[0], strict=True):
        found[axis] = i
    return tuple(found)


def _slice(code: Code, node: Node, index: Indices) -> Asked:
    yield from ()
    starts, _, steps = node.settings
    ends = [start + (n - 1) * step for start, n, step in zip(starts, node.shape, steps, strict=True)]
    for start, end, n in zip(starts, ends, node.inputs[0].shape, strict=True):
        if node.size and not (0 <= start < n and 0 <= end < n):
            raise Untranslatable(f"Slice {list(node.settings)} of {list(node.inputs[0].shape)}")
    moved = [code.add(start, code.mul(i, step)) for start, i, step in zip(starts, index, steps, strict=True)]
    return within(node.inputs[0].shape, moved)


def _dynamic_slice(code: Code, node: Node, index: Indices) -> Asked:
    axes, _ = node.settings
    source, starts = node.inputs
    found = list(index)
    for position, axis in enumerate(axes):
        start = yield starts, within(starts.shape, (position,))
        start = bounded(code, start, starts.dtype, source.shape[axis], node.shape[axis])
        found[axis] = code.add(found[axis], start)
    return within(source.shape, found)


def _gather(code: Code, node: Node, index: Indices) -> Asked:
    axes, sizes = node.settings
    source, *given = node.inputs
    lead = len(index) - len(source.shape)
    found = list(index[lead:])
    for axis, array in zip(axes, given, strict=True):
        at = yield array, within(array.shape, index[:lead])
        at = bounded(code, at, array.dtype, source.shape[axis], sizes[axis])
        found[axis] = code.add(found[axis], at)
    return within(source.shape, found)


def _gather_axis(code: Code, node: Node, index: Indices) -> Asked:
    (axis,) = node.settings
    source, given = node.inputs
    at = yield given, within(given.shape, index)
    found = list(index)
    found[axis] = bounded(code, at, given.dtype, source.shape[axis])
    return within(source.shape, found)


def bounded(code: Code, value: Any, dtype: np.dtype, length: int, size: int = 1) -> Index:
    """A position from an element of an index array, such that ``size`` elements from there are in the array."""
    if dtype.kind not in "iu":
        raise Untranslatable(f"indices of {dtype}")
    if isinstance(value, ir.Constant):
        known = value.constant
        if dtype.kind == "i" and known >= 1 << (8 * dtype.itemsize - 1):
            known -= 1 << (8 * dtype.itemsize)
        return min(max(known + length if known < 0 else known, 0), length - size)
    if lanes(value) > 1:
        raise Untranslatable("an index that differs between lanes")
    builder = code.builder
    if dtype.itemsize < 8:
        value = (builder.sext if dtype.kind == "i" else builder.zext)(value, I64)
    zero, last = ir.Constant(I64, 0), ir.Constant(I64, length - size)
    if dtype.kind == "i":
        wrapped = builder.add(value, ir.Constant(I64, length))
        value = builder.select(builder.icmp_signed("<", value, zero), wrapped, value)
        value = builder.select(builder.icmp_signed("<", value, zero), zero, value)
    return builder.select(builder.icmp_unsigned(">", value, last), last, value)


def _reshape(code: Code, node: Node, index: Indices) -> Asked:
    yield from ()
    found: list[Index] = []
    at = 0
    for source, own in groups(node.inputs[0].shape, node.shape):
        part = index[at : at + len(own)]
        at += len(own)
        if source == own:
            found.extend(part)
            continue
        position = code.linear(part, row_major(own))
        for stride in row_major(source)[:-1]:
            quotient, position = code.divided(position, stride)
            found.append(quotient)
        if source:
            found.append(position)
    return within(node.inputs[0].shape, found)


def groups(source: Sequence[int], target: Sequence[int]) -> list[tuple[tuple, tuple]]:
    """Runs of axes of two shapes that hold the same elements, as short as possible.

    >>> groups((2, 3, 4), (6, 2, 2))
    [((2, 3), (6,)), ((4,), (2, 2))]
    >>> groups((5, 1, 2), (5, 2))
    [((5,), (5,)), ((1, 2), (2,))]
    """
    if 0 in source:
        return [(tuple(source), tuple(target))]
    found, i, j = [], 0, 0
    while i < len(source) or j < len(target):
        a, b = list(source[i : i + 1]), list(target[j : j + 1])
        i, j = i + len(a), j + len(b)
        while int(np.prod(a)) != int(np.prod(b)):
            if not b or (a and np.prod(a) < np.prod(b)):
                a.append(source[i])
                i += 1
            else:
                b.append(target[j])
                j += 1
        found.append((tuple(a), tuple(b)))
    return found


RULES: dict[str, Callable[[Code, Node, Indices], Asked]] = {
    **dict.fromkeys(_BROADCASTS, _broadcast),
    **dict.fromkeys(_RESHAPED, _reshape),
    "DynamicSlice": _dynamic_slice,
    "Gather": _gather,
    "GatherAxis": _gather_axis,
    "Slice": _slice,
    "Transpose": _transpose,
}


def splits(node: Node) -> bool:
    """Whether reading this view takes divisions: one axis of it is several of its source."""
    if node.op not in _RESHAPED:
        return False
    pairs = groups(stripped(node.inputs[0].shape), stripped(node.shape))
    return any(len(source) > 1 for source, _ in pairs)


def repeats(node: Node) -> bool:
    """Whether elements of the source are read more than once."""
    return node.op in RULES and node.size > node.inputs[0].size


def keeps_index(node: Node) -> bool:
    """Whether the elements of a view are those of its source at the same index, but for axes of length 1."""
    return node.op in (*_RESHAPED, *_BROADCASTS) and stripped(node.inputs[0].shape) == stripped(node.shape)


def stripped(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def unstripped(shape: Sequence[int], index: Sequence[Index]) -> Indices:
    """An index of the shape without its axes of length 1, as an index of the shape."""
    rest = iter(index)
    return tuple(0 if n == 1 else next(rest) for n in shape)


def constant_element(code: Code, node: Node, index: Indices) -> Value | None:
    """The element of a constant, where it needs no memory: one number, a known place, or equal steps."""
    value: np.ndarray = node.value
    if all(isinstance(i, int) for i in index) and (value.size <= 64 or not any(value.strides)):
        return number(node.dtype, value[index])
    at = [(i, axis) for axis, (n, stride, i) in enumerate(zip(value.shape, value.strides, index, strict=True))
          if n > 1 and stride]  # fmt: skip
    if not at:
        return number(node.dtype, value.flat[0])
    if len(at) > 1 or node.dtype.kind not in "iu":
        return None
    (i, axis) = at[0]
    line = value[tuple(slice(None) if k == axis else 0 for k in range(value.ndim))]
    first, step = int(line[0]), int(line[1]) - int(line[0])
    if not np.array_equal(line, first + step * np.arange(len(line), dtype=np.int64)):
        return None
    position = code.add(first, code.mul(i, step))
    if isinstance(position, int):
        return number(node.dtype, position)
    width = 8 * node.dtype.itemsize
    return position if width == 64 else code.builder.trunc(position, ir.IntType(width))
