"""Cholesky factors, and inverses: of triangular matrices row by row, of others by Gauss and Jordan with pivots.

Where a matrix is not positive definite, the first pivot that is not positive becomes nan or zero, and what follows
from it nan: MLX leaves there what LAPACK does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genmlx.native.graph import Node, Untranslatable
from genmlx.native.views import Indices
from genmlx.native.writing import I64, SUM_FLAGS, Index, Value, in_register, number

if TYPE_CHECKING:
    from genmlx.native.emit import Emitter


def _dot(emitter: Emitter, node: Node, start: Index, stop: Index, left, right) -> Value:
    """The sum of the products of ``left(k)`` and ``right(k)``."""
    code, builder, kind = emitter.code, emitter.code.builder, emitter.register(node)
    place = emitter.accumulator(node, number(node.dtype, 0))

    def step(k: Index) -> None:
        product = builder.fmul(left(k), right(k), flags=SUM_FLAGS)
        builder.store(builder.fadd(builder.load(place, typ=kind), product, flags=SUM_FLAGS), place)

    code.range(start, stop, step)
    return builder.load(place, typ=kind)


def _require_square(node: Node) -> int:
    if node.dtype.kind != "f" or len(node.shape) < 2 or node.shape[-1] != node.shape[-2]:
        raise Untranslatable(f"{node.op} of {node.dtype} {list(node.shape)}")
    return node.shape[-1]


def _cholesky(emitter: Emitter, node: Node) -> None:
    """L from the lower triangle of the input; its transpose from the upper one."""
    n, (upper,), (source,) = _require_square(node), node.settings, node.inputs
    code, builder = emitter.code, emitter.code.builder

    def matrix(lead: Indices) -> None:
        def at(i: Index, j: Index) -> Indices:
            return (*lead, j, i) if upper else (*lead, i, j)

        def row(i: Index) -> None:
            def rest(j: Index) -> Value:
                """The element of the input less what the columns before j account for."""
                total = _dot(emitter, node, 0, j, lambda k: emitter.read(node, at(i, k)),
                             lambda k: emitter.read(node, at(j, k)))  # fmt: skip
                return builder.fsub(emitter.element(source, at(i, j)), total)

            def before(j: Index) -> None:
                emitter.write(node, at(i, j), builder.fdiv(rest(j), emitter.read(node, at(j, j))))

            code.range(0, i, before)
            emitter.write(node, at(i, i), code.intrinsic("sqrt", rest(i)))
            code.range(code.add(i, 1), n, lambda j: emitter.write(node, at(i, j), number(node.dtype, 0)))

        code.range(0, n, row)

    emitter.loops(node.shape[:-2], matrix)


def _inverse(emitter: Emitter, node: Node) -> None:
    (_triangular_inverse if node.settings[0] else _general_inverse)(emitter, node)


def _triangular_inverse(emitter: Emitter, node: Node) -> None:
    """X with L X = 1: row i of it is a combination of the rows before."""
    _, upper = node.settings
    n, (source,) = _require_square(node), node.inputs
    code, builder = emitter.code, emitter.code.builder
    zero, one = number(node.dtype, 0), number(node.dtype, 1)

    def matrix(lead: Indices) -> None:
        def flipped(i: Index) -> Index:
            return n - 1 - i if isinstance(i, int) else builder.sub(code.i64(n - 1), i)

        def at(i: Index, j: Index) -> Indices:
            return (*lead, flipped(i), flipped(j)) if upper else (*lead, i, j)

        def row(i: Index) -> None:
            inverse = builder.fdiv(one, emitter.element(source, at(i, i)))
            code.range(0, n, lambda j: emitter.write(node, at(i, j), zero))

            def subtract(k: Index) -> None:
                factor = emitter.element(source, at(i, k))

                def column(j: Index) -> None:
                    product = builder.fmul(factor, emitter.read(node, at(k, j)), flags=SUM_FLAGS)
                    emitter.write(node, at(i, j), builder.fsub(emitter.read(node, at(i, j)), product, flags=SUM_FLAGS))

                code.range(0, code.add(k, 1), column)

            code.range(0, i, subtract)

            def scale(j: Index) -> None:
                emitter.write(node, at(i, j), builder.fmul(emitter.read(node, at(i, j)), inverse))

            code.range(0, i, scale)
            emitter.write(node, at(i, i), inverse)

        code.range(0, n, row)

    emitter.loops(node.shape[:-2], matrix)


def _general_inverse(emitter: Emitter, node: Node) -> None:
    """What turns the matrix into the identity, done to the identity; the pivot is the largest left in its column."""
    n, (source,) = _require_square(node), node.inputs
    code, builder = emitter.code, emitter.code.builder
    kind, zero, one = in_register(node.dtype), number(node.dtype, 0), number(node.dtype, 1)
    work = emitter.room(node.dtype, n * n)
    pivot, largest = code.alloca(I64), code.alloca(kind)

    def place(i: Index, j: Index) -> Value:
        return code.address(work, kind, code.add(code.mul(i, n), j))

    def matrix(lead: Indices) -> None:
        def start(i: Index) -> None:
            def at(j: Index) -> None:
                builder.store(emitter.element(source, (*lead, i, j)), place(i, j))
                same = builder.icmp_signed("==", code.i64(i), code.i64(j))
                emitter.write(node, (*lead, i, j), builder.select(same, one, zero))

            code.range(0, n, at)

        def column(c: Index) -> None:
            builder.store(number(node.dtype, -1), largest)
            builder.store(code.i64(c), pivot)

            def look(i: Index) -> None:
                size = code.intrinsic("fabs", builder.load(place(i, c), typ=kind))
                better = builder.fcmp_ordered(">", size, builder.load(largest, typ=kind))
                builder.store(builder.select(better, size, builder.load(largest, typ=kind)), largest)
                builder.store(builder.select(better, code.i64(i), builder.load(pivot, typ=I64)), pivot)

            code.range(c, n, look)
            row = builder.load(pivot, typ=I64)
            inverse = builder.fdiv(one, builder.load(place(row, c), typ=kind))

            def swap(j: Index) -> None:
                first, second = builder.load(place(c, j), typ=kind), builder.load(place(row, j), typ=kind)
                builder.store(first, place(row, j))
                builder.store(builder.fmul(second, inverse), place(c, j))
                above, below = emitter.read(node, (*lead, c, j)), emitter.read(node, (*lead, row, j))
                emitter.write(node, (*lead, row, j), above)
                emitter.write(node, (*lead, c, j), builder.fmul(below, inverse))

            code.range(0, n, swap)

            def eliminate(i: Index) -> None:
                own = builder.icmp_signed("==", code.i64(i), code.i64(c))
                factor = builder.select(own, zero, builder.load(place(i, c), typ=kind))

                def at(j: Index) -> None:
                    left = builder.fmul(factor, builder.load(place(c, j), typ=kind))
                    builder.store(builder.fsub(builder.load(place(i, j), typ=kind), left), place(i, j))
                    right = builder.fmul(factor, emitter.read(node, (*lead, c, j)))
                    emitter.write(node, (*lead, i, j), builder.fsub(emitter.read(node, (*lead, i, j)), right))

                code.range(0, n, at)

            code.range(0, n, eliminate)

        code.range(0, n, start)
        code.range(0, n, column)

    emitter.loops(node.shape[:-2], matrix)


RULES = {"Cholesky": _cholesky, "Inverse": _inverse}
