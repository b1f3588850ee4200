"""Sorting along an axis: stable merges, nan last; and the first of the largest or smallest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir

from genmlx.native.elementwise import compare, is_nan
from genmlx.native.graph import Node, Untranslatable
from genmlx.native.views import Indices
from genmlx.native.writing import I64, Code, Index, Value, in_memory

if TYPE_CHECKING:
    from genmlx.native.emit import Emitter


def _before(code: Code, node: Node, a: Value, b: Value) -> Value:
    """Whether a goes before b; nan goes after everything."""
    dtype = node.inputs[0].dtype
    less = compare(code, dtype, "<", a, b)
    if dtype.kind != "f":
        return less
    return code.builder.or_(less, code.builder.and_(is_nan(code, b), code.builder.not_(is_nan(code, a))))


def _sorted(emitter: Emitter, node: Node) -> None:
    """Merges of runs of 1, 2, 4, ... positions, between two lists of them."""
    axis = node.settings[-1] % len(node.shape)
    source, n = node.inputs[0], node.shape[axis]
    code, builder = emitter.code, emitter.code.builder
    lists = [emitter.room(np.dtype(np.int64), n) for _ in range(2)]
    keys = emitter.room(source.dtype, n)
    key_type = in_memory(source.dtype)

    def line(others: Indices) -> None:
        def at(i: Index) -> Indices:
            return (*others[:axis], i, *others[axis:])

        def load(place: Value, i: Index) -> Value:
            return builder.load(code.address(place, I64, i), typ=I64)

        def key(position: Value) -> Value:
            value = builder.load(code.address(keys, key_type, position), typ=key_type)
            return builder.trunc(value, ir.IntType(1)) if source.dtype.kind == "b" else value

        def fill(i: Index) -> None:
            value = emitter.element(source, at(i))
            if source.dtype.kind == "b":
                value = builder.zext(value, key_type)
            builder.store(value, code.address(keys, key_type, i))
            builder.store(code.i64(i), code.address(lists[0], I64, i))

        code.range(0, n, fill)
        from_, to = lists
        width = 1
        while width < n:
            _merge_runs(code, n, width, from_, to, lambda a, b: _before(code, node, key(a), key(b)), load)
            from_, to = to, from_
            width *= 2

        def result(i: Index) -> None:
            position = load(from_, i)
            if node.op in ("ArgSort", "ArgPartition"):
                emitter.write(node, at(i), builder.trunc(position, in_memory(node.dtype)))
            else:
                emitter.write(node, at(i), key(position))

        code.range(0, n, result)

    emitter.loops((*node.shape[:axis], *node.shape[axis + 1 :]), line)


def _merge_runs(code: Code, n: int, width: int, from_: Value, to: Value, before, load) -> None:
    builder = code.builder
    left, right = code.alloca(I64), code.alloca(I64)

    def pair(p: Index) -> None:
        low = code.mul(p, 2 * width)
        middle = _least(code, code.add(low, width), n)
        high = _least(code, code.add(low, 2 * width), n)
        builder.store(code.i64(low), left)
        builder.store(code.i64(middle), right)

        def step(k: Index) -> None:
            i, j = builder.load(left, typ=I64), builder.load(right, typ=I64)
            i_ends = builder.icmp_signed(">=", i, code.i64(middle))
            j_ends = builder.icmp_signed(">=", j, code.i64(high))
            first = load(from_, builder.select(i_ends, ir.Constant(I64, 0), i))
            second = load(from_, builder.select(j_ends, ir.Constant(I64, 0), j))
            swaps = builder.and_(builder.not_(j_ends), builder.or_(i_ends, before(second, first)))
            builder.store(builder.select(swaps, second, first), code.address(to, I64, k))
            one = ir.Constant(I64, 1)
            builder.store(builder.select(swaps, i, builder.add(i, one)), left)
            builder.store(builder.select(swaps, builder.add(j, one), j), right)

        code.range(low, high, step)

    code.range(0, -(-n // (2 * width)), pair)


def _least(code: Code, a: Index, n: int) -> Index:
    if isinstance(a, int):
        return min(a, n)
    limit = ir.Constant(I64, n)
    return code.builder.select(code.builder.icmp_signed("<", a, limit), a, limit)


def _arg_reduce(emitter: Emitter, node: Node) -> None:
    """The first nan, else the first of the largest or the smallest."""
    kind, axis = node.settings
    if kind not in (0, 1):
        raise Untranslatable(f"ArgReduce of kind {kind}")
    (source,) = node.inputs
    axis %= len(source.shape)
    code, builder = emitter.code, emitter.code.builder
    kind_of_key = in_memory(source.dtype)

    def line(others: Indices) -> None:
        def at(i: Index) -> Indices:
            return (*others[:axis], i, *others[axis:])

        best, where = code.alloca(kind_of_key), code.alloca(I64)

        def value(i: Index) -> Value:
            found = emitter.element(source, at(i))
            return builder.zext(found, kind_of_key) if source.dtype.kind == "b" else found

        builder.store(value(0), best)
        builder.store(ir.Constant(I64, 0), where)

        def step(i: Index) -> None:
            old, new = builder.load(best, typ=kind_of_key), value(i)
            better = compare(code, source.dtype, ">" if kind else "<", new, old)
            if source.dtype.kind == "f":
                better = builder.or_(better, is_nan(code, new))
                better = builder.and_(better, builder.not_(is_nan(code, old)))
            builder.store(builder.select(better, new, old), best)
            builder.store(builder.select(better, code.i64(i), builder.load(where, typ=I64)), where)

        code.range(1, source.shape[axis], step)
        found = builder.trunc(builder.load(where, typ=I64), in_memory(node.dtype))
        emitter.write(node, (*others[:axis], 0, *others[axis:]), found)

    emitter.loops((*source.shape[:axis], *source.shape[axis + 1 :]), line)


RULES = {
    "ArgPartition": _sorted,
    "ArgReduce": _arg_reduce,
    "ArgSort": _sorted,
    "Partition": _sorted,
    "Sort": _sorted,
}
