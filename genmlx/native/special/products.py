"""Products of matrices: sums of vectors that are kept in registers, where memory has them in one piece."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TYPE_CHECKING

from genmlx.native.graph import Node, Untranslatable
from genmlx.native.spreading import in_lanes
from genmlx.native.views import Indices, within
from genmlx.native.writing import SUM_FLAGS, Index, Value, in_register, number

if TYPE_CHECKING:
    from genmlx.native.emit import Emitter

_WIDEST = 64 if platform.machine() in ("arm64", "aarch64") else 128
"""Bytes of a vector: _CHAINS of them, and two more, fit the registers."""

_WORTH_TURNING = 6  # rows and columns from which on a copy of the other order pays
_BLOCK = 512  # products that four sums take in, in lanes
_CHAINS = 4  # vectors that are added to at once, so that none waits for the one before


def _matmul(emitter: Emitter, node: Node) -> None:
    _Product(emitter, node, 1.0).emit()


def _addmm(emitter: Emitter, node: Node) -> None:
    alpha, beta = node.settings
    _Product(emitter, node, alpha).emit()
    builder, added = emitter.code.builder, node.inputs[2]

    def add(index: Indices) -> None:
        value = emitter.element(added, within(added.shape, index[len(index) - len(added.shape) :]))
        if beta != 1:
            value = builder.fmul(value, number(node.dtype, beta))
        emitter.write(node, index, builder.fadd(emitter.read(node, index), value))

    emitter.loops(node.shape, add)


class _Product:
    """alpha times the product of the first two inputs of a node."""

    def __init__(self, emitter: Emitter, node: Node, alpha: float):
        self.a, self.b = node.inputs[:2]
        if node.dtype.kind != "f" or len(self.a.shape) < 2 or len(self.b.shape) < 2:
            raise Untranslatable(f"{node.op} of {node.dtype} {list(self.a.shape)} and {list(self.b.shape)}")
        self.emitter, self.node, self.alpha = emitter, node, alpha
        self.code, self.builder = emitter.code, emitter.code.builder
        self.kind, self.lanes = in_register(node.dtype), emitter.lanes_of(node)
        self.rows, self.inner, self.columns = self.a.shape[-2], self.a.shape[-1], self.b.shape[-1]
        self._turned: Value = None  # the right-hand side, row by row, where its memory is otherwise

    def emit(self) -> None:
        self.emitter.loops(self.node.shape[:-2], self._matrix)

    def _matrix(self, lead: Indices) -> None:
        if self.lanes > 1:
            self._in_lanes(lead)
        elif self.columns > 1 and self.emitter.step(self.b, -1) == 1:
            self._along_rows(lead)
        elif self.columns >= _WORTH_TURNING and self.rows >= _WORTH_TURNING:
            self._turn(lead)
            self._along_rows(lead)
        elif self.columns == 1 and self.rows > 1 and self.emitter.step(self.a, -2) == 1:
            self._along_the_column(lead)
        else:
            self.code.loop(self.rows, lambda m: self.code.loop(self.columns, lambda n: self._dot(lead, m, n)))

    def _turn(self, lead: Indices) -> None:
        if self._turned is None:
            self._turned = self.emitter.room(self.node.dtype, self.inner * self.columns)

        def copy(index: Indices) -> None:
            value = self.emitter.element(self.b, self._right(lead, *index))
            self.builder.store(value, self._turned_at(*index)).align = self.node.dtype.itemsize

        self.emitter.loops((self.inner, self.columns), copy)

    def _turned_at(self, k: Index, n: Index) -> Value:
        return self.code.address(self._turned, self.kind, self.code.add(self.code.mul(k, self.columns), n))

    # elements

    def _left(self, lead: Indices, m: Index, k: Index) -> Indices:
        return within(self.a.shape, (*lead[len(lead) + 2 - len(self.a.shape) :], m, k))

    def _right(self, lead: Indices, k: Index, n: Index) -> Indices:
        return within(self.b.shape, (*lead[len(lead) + 2 - len(self.b.shape) :], k, n))

    def _add(self, total: Value, x: Value, y: Value) -> Value:
        return self.builder.fadd(total, self.builder.fmul(x, y, flags=SUM_FLAGS), flags=SUM_FLAGS)

    def _scaled(self, x: Value) -> Value:
        return x if self.alpha == 1 else self.builder.fmul(x, number(self.node.dtype, self.alpha))

    # one element of the result

    def _dot(self, lead: Indices, m: Index, n: Index) -> None:
        place = self.code.alloca(self.kind)
        self.builder.store(number(self.node.dtype, 0), place)

        def step(k: Index) -> None:
            total = self.builder.load(place, typ=self.kind)
            x = self.emitter.element(self.a, self._left(lead, m, k))
            y = self.emitter.element(self.b, self._right(lead, k, n))
            self.builder.store(self._add(total, x, y), place)

        self.code.loop(self.inner, step)
        self.emitter.write(self.node, (*lead, m, n), self._scaled(self.builder.load(place, typ=self.kind)))

    # vectors of the result

    def _along_rows(self, lead: Indices) -> None:
        """Parts of a few rows: each is a sum of parts of rows of the right-hand side."""

        def part(n: Index, width: int) -> None:
            def several(count: int, first: Index) -> None:
                ms = [self.code.add(first, i) for i in range(count)]
                totals = self._sums(
                    width,
                    count,
                    lambda k: [self.emitter.element(self.a, self._left(lead, m, k)) for m in ms],
                    lambda k: self._vector(self._row(lead, k, n), width),
                )
                for m, total in zip(ms, totals, strict=True):
                    self._store(total, (*lead, m, n), width)

            self._by(self.rows, _CHAINS, lambda m, count: several(count, m))

        self._by_vectors(self.columns, part)

    def _along_the_column(self, lead: Indices) -> None:
        """Parts of the one column: a sum of parts of columns of the left-hand side."""

        def part(m: Index, width: int) -> None:
            (total,) = self._sums(
                width,
                1,
                lambda k: [self.emitter.element(self.b, self._right(lead, k, 0))],
                lambda k: self._vector(self.emitter.place(self.a, self._left(lead, m, k)), width),
            )
            self._store(total, (*lead, m, 0), width)

        self._by_vectors(self.rows, part)

    def _in_lanes(self, lead: Indices) -> None:
        """A few rows of a column at once, long sums by blocks; what is the same in all lanes stays a number."""

        def several(n: Index, first: Index, count: int) -> None:
            ms = [self.code.add(first, i) for i in range(count)]
            if self.inner > _BLOCK:
                for m in ms:
                    self.emitter.write(self.node, (*lead, m, n), number(self.node.dtype, 0))

            def block(start: Index, length: int) -> None:
                totals = self._sums(
                    self.lanes,
                    count,
                    lambda k: [self.emitter.element(self.a, self._left(lead, m, self.code.add(start, k))) for m in ms],
                    lambda k: self.emitter.element(self.b, self._right(lead, self.code.add(start, k), n)),
                    length,
                )
                for m, total in zip(ms, map(self._scaled, totals), strict=True):
                    if self.inner > _BLOCK:
                        total = self.builder.fadd(self.emitter.read(self.node, (*lead, m, n)), total)
                    self.emitter.write(self.node, (*lead, m, n), total)

            self._by(self.inner, _BLOCK, block)

        def column(n: Index) -> None:
            self._by(self.rows, _CHAINS, lambda m, count: several(n, m, count))

        self.code.loop(self.columns, column)

    def _by_vectors(self, length: int, body: Callable[[Index, int], None]) -> None:
        """``body(start, width)`` for vectors that cover an axis; their lengths are powers of two, as machines have."""
        width = _WIDEST // self.node.dtype.itemsize
        whole = length // width
        self.code.loop(whole, lambda q: body(self.code.mul(q, width), width))
        start = whole * width
        while start < length:
            width = 1 << (length - start).bit_length() - 1
            body(start, width)
            start += width

    def _by(self, length: int, width: int, body: Callable[[Index, int], None]) -> None:
        """``body(start, width)`` for pieces of an axis, of which the last may be shorter."""
        whole = length // width
        self.code.loop(whole, lambda q: body(self.code.mul(q, width), width))
        if length % width:
            body(whole * width, length % width)

    def _sums(
        self,
        width: int,
        count: int,
        factors: Callable[[Index], list[Value]],
        vector: Callable[[Index], Value],
        length: int | None = None,
    ) -> list[Value]:
        """For each of ``count`` factors, the sum over the inner axis (or ``length`` of it) of it times the vector."""
        kind, zero = in_lanes(self.kind, width), self.builder.spread(number(self.node.dtype, 0), width)
        at_once = max(_CHAINS // count, 1) if self.lanes == 1 else _CHAINS
        places = [[self.code.alloca(kind) for _ in range(at_once)] for _ in range(count)]
        for row in places:
            for place in row:
                self.builder.store(zero, place)

        def several(first: Index, number_of: int) -> None:
            for i in range(number_of):
                k = self.code.add(first, i)
                y = vector(k)
                for row, factor in zip(places, factors(k), strict=True):
                    total = self.builder.load(row[i], typ=kind)
                    self.builder.store(self._add(total, factor, y), row[i])

        self._by(length or self.inner, at_once, several)
        totals = []
        for row in places:
            total = self.builder.load(row[0], typ=kind)
            for place in row[1:]:
                total = self.builder.fadd(total, self.builder.load(place, typ=kind))
            totals.append(total)
        return totals

    def _row(self, lead: Indices, k: Index, n: Index) -> Value:
        """Where a row of the right-hand side goes on from a column."""
        if self._turned is not None:
            return self._turned_at(k, n)
        return self.emitter.place(self.b, self._right(lead, k, n))

    def _vector(self, place: Value, width: int) -> Value:
        value = self.builder.load(place, typ=in_lanes(self.kind, width))
        value.align = self.node.dtype.itemsize
        return value

    def _store(self, total: Value, index: Indices, width: int) -> None:
        if self.alpha != 1:
            total = self._scaled(total)
        self.builder.store(total, self.emitter.place(self.node, index)).align = self.node.dtype.itemsize


RULES = {"AddMM": _addmm, "Matmul": _matmul}
