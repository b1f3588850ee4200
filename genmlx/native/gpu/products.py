"""Products of matrices, by one thread: sums of blocks of terms, the blocks summed with compensation.

A product of few elements that are long sums goes along the sums once, with all of its elements in registers, so that
neither factor is read twice from memory.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from genmlx.native.gpu.sums import Sum
from genmlx.native.graph import Node, Untranslatable
from genmlx.native.views import Indices, within
from genmlx.native.writing import Index, Value, in_register, number

if TYPE_CHECKING:
    from genmlx.native.emit import Emitter

_BLOCK = 32  # terms of a sum that is not compensated
_REGISTERS = 32  # elements of a product that are summed at once


def _matmul(emitter: Emitter, node: Node) -> None:
    _product(emitter, node, 1.0)


def _addmm(emitter: Emitter, node: Node) -> None:
    alpha, beta = node.settings
    _product(emitter, node, alpha)
    builder, added = emitter.code.builder, node.inputs[2]

    def add(index: Indices) -> None:
        value = emitter.element(added, within(added.shape, index[len(index) - len(added.shape) :]))
        if beta != 1:
            value = builder.fmul(value, number(node.dtype, beta))
        emitter.write(node, index, builder.fadd(emitter.read(node, index), value))

    emitter.loops(node.shape, add)


def _product(emitter: Emitter, node: Node, alpha: float) -> None:
    """alpha times the product of the first two inputs of a node."""
    a, b = node.inputs[:2]
    if node.dtype.kind != "f" or len(a.shape) < 2 or len(b.shape) < 2:
        raise Untranslatable(f"{node.op} of {node.dtype} {list(a.shape)} and {list(b.shape)}")
    code, kind = emitter.code, in_register(node.dtype)
    rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]

    def sums(lead: Indices, cells: list[tuple[Index, Index]]) -> None:
        totals = [Sum(code, node) for _ in cells]

        def block(start: Index, count: int) -> None:
            parts = [code.alloca(kind) for _ in cells]
            for part in parts:
                code.builder.store(number(node.dtype, 0), part)
            code.loop(count, lambda i: term(code.add(start, i), parts))
            for total, part in zip(totals, parts, strict=True):
                total.add(code.builder.load(part, typ=kind))

        def term(k: Index, parts: list[Value]) -> None:
            for (m, n), part in zip(cells, parts, strict=True):
                x = emitter.element(a, within(a.shape, (*lead[len(lead) + 2 - len(a.shape) :], m, k)))
                y = emitter.element(b, within(b.shape, (*lead[len(lead) + 2 - len(b.shape) :], k, n)))
                code.builder.store(code.intrinsic("fma", x, y, code.builder.load(part, typ=kind)), part)

        code.loop(inner // _BLOCK, lambda q: block(code.mul(q, _BLOCK), _BLOCK))
        if inner % _BLOCK:
            block(inner - inner % _BLOCK, inner % _BLOCK)
        for (m, n), total in zip(cells, totals, strict=True):
            value = total.value()
            if alpha != 1:
                value = code.builder.fmul(value, number(node.dtype, alpha))
            emitter.write(node, (*lead, m, n), value)

    def matrix(lead: Indices) -> None:
        if rows * columns <= _REGISTERS:
            sums(lead, list(itertools.product(range(rows), range(columns))))
        else:
            code.loop(rows, lambda m: code.loop(columns, lambda n: sums(lead, [(m, n)])))

    emitter.loops(node.shape[:-2], matrix)


RULES = {"AddMM": _addmm, "Matmul": _matmul}
