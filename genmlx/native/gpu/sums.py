"""Sums in float32 that lose little: what each addition rounds off is summed too, Knuth's two-sum and Neumaier (1974).

With them a sum over many rows is right to about one rounding, as float64 would have it, which Metal has not.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from genmlx.native.elementwise import cast
from genmlx.native.graph import Node
from genmlx.native.reductions import Reduction
from genmlx.native.views import Indices, unstripped
from genmlx.native.writing import Code, Value, in_register, number

if TYPE_CHECKING:
    from genmlx.native.emit import Emitter


class Sum:
    """A sum of floats in the making, with what it has lost so far."""

    def __init__(self, code: Code, node: Node):
        self.code, self.dtype, self.kind = code, node.dtype, in_register(node.dtype)
        self.total, self.lost = code.alloca(self.kind), code.alloca(self.kind)
        for place in (self.total, self.lost):
            code.builder.store(number(node.dtype, 0), place)

    def add(self, value: Value) -> None:
        builder = self.code.builder
        before, lost = builder.load(self.total, typ=self.kind), builder.load(self.lost, typ=self.kind)
        after = builder.fadd(before, value)
        came = builder.fsub(after, before)
        missing = builder.fadd(builder.fsub(before, builder.fsub(after, came)), builder.fsub(value, came))
        builder.store(after, self.total)
        builder.store(builder.fadd(lost, missing), self.lost)

    def value(self) -> Value:
        """An infinite sum has lost what is no number, and is what it is."""
        builder = self.code.builder
        total, lost = builder.load(self.total, typ=self.kind), builder.load(self.lost, typ=self.kind)
        sound = builder.fcmp_ordered("==", builder.fsub(lost, lost), number(self.dtype, 0))
        return builder.select(sound, builder.fadd(total, lost), total)


class CompensatedReduction(Reduction):
    """A reduction whose sums of floats are compensated."""

    def __init__(self, emitter: Emitter, node: Node, shape: tuple[int, ...], axes: Set[int]):
        super().__init__(emitter, node, shape, axes)
        self.compensated = self.kind == "sum" and node.dtype.kind == "f"

    def begin(self) -> None:
        if self.compensated:
            self.sum = Sum(self.emitter.code, self.node)
        else:
            super().begin()

    def add(self, value: Value, kept: Indices | None, index: Indices) -> None:
        if self.compensated:
            self.sum.add(cast(self.emitter.code, value, self.node.inputs[0].dtype, self.node.dtype))
        else:
            super().add(value, kept, index)

    def end(self, kept: Indices) -> None:
        if self.compensated:
            self.emitter.write(self.node, unstripped(self.node.shape, kept), self.sum.value())
        else:
            super().end(kept)
