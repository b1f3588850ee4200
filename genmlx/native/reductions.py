"""Reductions: an accumulator in a register where the innermost loop is reduced, else in the buffer of the result."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir

from genmlx.native.elementwise import cast
from genmlx.native.graph import Node, Untranslatable
from genmlx.native.views import Indices, unstripped
from genmlx.native.writing import SUM_FLAGS, Code, Index, Value, number

if TYPE_CHECKING:
    from genmlx.native.emit import Emitter

_KINDS = ("and", "or", "sum", "prod", "min", "max")
"""By MLX's numbers."""
_PARTS = 16  # sums that a long one is made of, a power of two: none waits for the one before, and all lose fewer digits


class Accumulator:
    """A reduction in registers, of ``length`` values or several times so many; in lanes a long sum is several sums."""

    def __init__(self, emitter: Emitter, node: Node, kind: str, length: int):
        self.emitter, self.node, self.kind = emitter, node, kind
        summed = kind in ("sum", "prod") and node.dtype.kind == "f"
        self.parts = _PARTS if emitter.lanes_of(node) > 1 and summed and length > _PARTS else 1
        self.place = emitter.accumulator(node, identity(kind, node.dtype), self.parts)

    def add(self, value: Value, i: Index) -> None:
        """Take in the value at a position."""
        code, place = self.emitter.code, self._part(i)
        total = code.builder.load(place, typ=self.emitter.register(self.node))
        code.builder.store(combine(code, self.kind, self.node.dtype, total, value), place)

    def total(self) -> Value:
        code, kind = self.emitter.code, self.emitter.register(self.node)
        parts = [code.builder.load(self._part(i), typ=kind) for i in range(self.parts)]
        while len(parts) > 1:
            parts = [combine(code, self.kind, self.node.dtype, *pair) for pair in zip(*[iter(parts)] * 2, strict=True)]
        return parts[0]

    def _part(self, i: Index) -> Value:
        if self.parts == 1:
            return self.place
        code = self.emitter.code
        part = i % self.parts if isinstance(i, int) else code.builder.and_(i, code.i64(self.parts - 1))
        return code.address(self.place, self.emitter.register(self.node), part)


class Reduction:
    """One reduction inside a nest of loops of a shape, over axes of it."""

    def __init__(self, emitter: Emitter, node: Node, shape: tuple[int, ...], axes: Set[int]):
        kind = node.settings[0]
        if not 0 <= kind < len(_KINDS):
            raise Untranslatable(f"Reduce of kind {kind}")
        self.emitter, self.node, self.kind = emitter, node, _KINDS[kind]
        self.identity = identity(self.kind, node.dtype)
        self.axis = max(axes, key=lambda axis: shape[axis], default=None)
        self.length = 1 if self.axis is None else shape[self.axis]

    def clear(self) -> None:
        """Before the loops, where the accumulators are in memory."""
        shape = self.node.shape
        self.emitter.loops(shape, lambda index: self.emitter.write(self.node, index, self.identity))

    def begin(self) -> None:
        self.accumulator = Accumulator(self.emitter, self.node, self.kind, self.length)

    def add(self, value: Value, kept: Indices | None, index: Indices) -> None:
        """Take in a value; ``kept`` is the index of the result without axes of length 1, if it is in memory."""
        emitter, node = self.emitter, self.node
        value = cast(emitter.code, value, node.inputs[0].dtype, node.dtype)
        if kept is None:
            self.accumulator.add(value, 0 if self.axis is None else index[self.axis])
        else:
            at = unstripped(node.shape, kept)
            emitter.write(node, at, combine(emitter.code, self.kind, node.dtype, emitter.read(node, at), value))

    def end(self, kept: Indices) -> None:
        self.emitter.write(self.node, unstripped(self.node.shape, kept), self.accumulator.total())


def identity(kind: str, dtype: np.dtype) -> ir.Constant:
    """What changes nothing."""
    if kind in ("and", "prod"):
        return number(dtype, 1)
    if kind in ("or", "sum"):
        return number(dtype, 0)
    if dtype.kind == "f":
        return number(dtype, -np.inf if kind == "max" else np.inf)
    if dtype.kind == "b":
        return number(dtype, kind == "min")
    return number(dtype, np.iinfo(dtype).min if kind == "max" else np.iinfo(dtype).max)


def combine(code: Code, kind: str, dtype: np.dtype, total: Value, value: Value) -> Value:
    """Two parts of a reduction in one; sums and products of floats may be taken in any order."""
    builder = code.builder
    if dtype.kind == "b":
        return (builder.and_ if kind in ("and", "prod", "min") else builder.or_)(total, value)
    if kind in ("sum", "prod"):
        if dtype.kind == "f":
            return (builder.fadd if kind == "sum" else builder.fmul)(total, value, flags=SUM_FLAGS)
        return (builder.add if kind == "sum" else builder.mul)(total, value)
    if kind not in ("min", "max"):
        raise Untranslatable(f"Reduce {kind} of {dtype}")
    if dtype.kind == "f":  # nan stays
        return code.intrinsic("maximum" if kind == "max" else "minimum", total, value)
    compare = builder.icmp_signed if dtype.kind == "i" else builder.icmp_unsigned
    return builder.select(compare(">" if kind == "max" else "<", total, value), total, value)
