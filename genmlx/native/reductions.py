"""Reductions: an accumulator in a register where the innermost loop is reduced, else in the buffer of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir

from genmlx.native.elementwise import cast
from genmlx.native.graph import Node, Untranslatable
from genmlx.native.views import Indices, unstripped
from genmlx.native.writing import SUM_FLAGS, Code, Value, in_register, number

if TYPE_CHECKING:
    from genmlx.native.emit import Emitter

_KINDS = ("and", "or", "sum", "prod", "min", "max")
"""By MLX's numbers."""


class Reduction:
    """One reduction inside a nest of loops."""

    def __init__(self, emitter: Emitter, node: Node):
        kind = node.settings[0]
        if not 0 <= kind < len(_KINDS):
            raise Untranslatable(f"Reduce of kind {kind}")
        self.emitter, self.node, self.kind = emitter, node, _KINDS[kind]
        self.identity = identity(self.kind, node.dtype)

    def clear(self) -> None:
        """Before the loops, where the accumulators are in memory."""
        shape = self.node.shape
        self.emitter.loops(shape, lambda index: self.emitter.write(self.node, index, self.identity))

    def begin(self) -> None:
        code = self.emitter.code
        self.place = code.alloca(in_register(self.node.dtype))
        code.builder.store(self.identity, self.place)

    def add(self, value: Value, kept: Indices | None) -> None:
        """Take in a value; ``kept`` is the index of the result without axes of length 1, if it is in memory."""
        emitter, node = self.emitter, self.node
        builder = emitter.code.builder
        value = cast(emitter.code, value, node.inputs[0].dtype, node.dtype)
        if kept is None:
            total = builder.load(self.place, typ=value.type)
            builder.store(combine(emitter.code, self.kind, node.dtype, total, value), self.place)
        else:
            index = unstripped(node.shape, kept)
            total = emitter.read(node, index)
            emitter.write(node, index, combine(emitter.code, self.kind, node.dtype, total, value))

    def end(self, kept: Indices) -> None:
        total = self.emitter.code.builder.load(self.place, typ=in_register(self.node.dtype))
        self.emitter.write(self.node, unstripped(self.node.shape, kept), total)


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
