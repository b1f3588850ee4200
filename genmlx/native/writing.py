"""Writing LLVM IR: loops, arithmetic on indices, memory, and what has been computed already in an enclosing block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from genmlx.native.spreading import Builder, lanes, mangled, scalar

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
SUM_FLAGS = ("reassoc", "contract")
"""What a sum may do that an elementwise operation may not: change its order, and round once for a product and sum.

With ``nsz`` too, LLVM would look into the terms, and cancel (y + g) - g and inf - inf.
"""

_UNROLLED, _COPIES = 4, 16  # rounds of a loop that is written out; copies of the innermost code

Value = Any
"""What an instruction gives: an ``ir.Value``, of which llvmlite's own annotations say too little."""

Index = Any
"""A position: an int where it is known, else an i64 value."""


class Code:
    """One LLVM function in the making."""

    def __init__(self, function: ir.Function):
        self.function, self.module = function, function.module
        self.entry = function.append_basic_block("entry")
        self.builder: Any = Builder(function.append_basic_block("start"))
        self._known: list[dict] = [{}]
        self._copies = 1

    def finish(self) -> None:
        """End the function."""
        self.builder.ret_void()
        ir.IRBuilder(self.entry).branch(self.function.blocks[1])

    # what is known

    def known(self, key: Any) -> Any:
        """What was remembered in this block, or in one around it; None if nothing."""
        for scope in reversed(self._known):
            if (found := scope.get(key)) is not None:
                return found
        return None

    def remember(self, key: Any, value: Any) -> Any:
        self._known[-1][key] = value
        return value

    def scoped(self, body: Callable[[], Any]) -> Any:
        """Run ``body``, which writes code that may be skipped or repeated."""
        self._known.append({})
        try:
            return body()
        finally:
            self._known.pop()

    # positions

    def add(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if isinstance(a, int):
            a, b = b, a
        if isinstance(b, int) and b == 0:
            return a
        return self._position("add", a, b)

    def mul(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if isinstance(a, int):
            a, b = b, a
        if isinstance(b, int) and b in (0, 1):
            return a if b else 0
        return self._position("mul", a, b)

    def divided(self, a: Index, b: int) -> tuple[Index, Index]:
        """Quotient and remainder of a position that is not negative."""
        if isinstance(a, int):
            return divmod(a, b)
        if b == 1:
            return a, 0
        return self._position("udiv", a, b), self._position("urem", a, b)

    def _position(self, op: str, a: Index, b: Index) -> Index:
        key = (op, a, b)
        found = self.known(key)
        if found is None:
            found = self.remember(key, getattr(self.builder, op)(self.i64(a), self.i64(b)))
        return found

    def i64(self, a: Index) -> Value:
        return ir.Constant(I64, a) if isinstance(a, int) else a

    def linear(self, index: Sequence[Index], strides: Sequence[int], offset: Index = 0) -> Index:
        """Where an element is, from its indices."""
        for i, stride in zip(index, strides, strict=True):
            offset = self.add(offset, self.mul(i, stride))
        return offset

    # memory

    def alloca(self, kind: Any, count: int = 1) -> Value:
        """Room on the stack, made once whatever loop this is in."""
        with self.builder.goto_block(self.entry):
            made = self.builder.alloca(kind, count)
        made.type = POINTER  # to llvmlite it is one to this kind of number only
        made.align = 64 if count > 1 else None
        return made

    def address(self, pointer: Value, kind: Any, position: Index) -> Value:
        if isinstance(position, int) and position == 0:
            return pointer
        key = (pointer, kind, position)
        found = self.known(key)
        if found is None:
            place = self.builder.gep(pointer, [self.i64(position)], inbounds=True, source_etype=kind)
            found = self.remember(key, place)
        return found

    # control

    def loop(self, count: int, body: Callable[[Index], None]) -> None:
        """``body`` for each of 0 .. count - 1, which are ints where the loop is written out."""
        if count <= 1 or (count <= _UNROLLED and count * self._copies <= _COPIES):
            self._copies *= max(count, 1)
            for i in range(count):
                body(i)
            self._copies //= max(count, 1)
        else:
            self.range(0, count, body)

    def range(self, start: Index, stop: Index, body: Callable[[Index], None]) -> None:
        """``body`` for each of start .. stop - 1, which may be none."""
        builder = self.builder
        sure = isinstance(start, int) and isinstance(stop, int)
        if sure and start >= stop:
            return
        before = builder.block
        inside, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        first, last = self.i64(start), self.i64(stop)
        if sure:
            builder.branch(inside)
        else:
            builder.cbranch(builder.icmp_signed("<", first, last), inside, after)
        builder.position_at_end(inside)
        i = builder.phi(I64)
        i.add_incoming(first, before)
        self.scoped(lambda: body(i))
        following = builder.add(i, ir.Constant(I64, 1), flags=("nuw", "nsw"))
        i.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, last), inside, after)
        builder.position_at_end(after)

    def repeat(self, condition: Callable[[], Value], body: Callable[[], None]) -> None:
        """``body`` while ``condition`` gives a true i1."""
        builder = self.builder
        check, inside, after = [builder.append_basic_block(name) for name in ("while", "do", "done")]
        builder.branch(check)
        builder.position_at_end(check)
        builder.cbranch(self.scoped(condition), inside, after)
        builder.position_at_end(inside)
        self.scoped(body)
        builder.branch(check)
        builder.position_at_end(after)

    def when(self, condition: Value, body: Callable[[], None]) -> None:
        with self.builder.if_then(condition):
            self.scoped(body)

    # functions

    def intrinsic(self, name: str, *arguments: Value) -> Value:
        """``llvm.<name>`` for the type of the arguments."""
        arguments = self.builder.alike(arguments)
        kind = arguments[0].type
        return self.builder.call(self._declared(f"llvm.{name}.{mangled(kind)}", kind, len(arguments)), arguments)

    def library(self, name: str, *arguments: Value) -> Value:
        """A function of the C library of this process, from numbers of one type to that type."""
        arguments = self.builder.alike(arguments)
        kind, count = scalar(arguments[0].type), lanes(arguments[0])
        declared = self._declared(name, kind, len(arguments))
        if count == 1:
            return self.builder.call(declared, arguments)
        result = ir.Constant(arguments[0].type, ir.Undefined)
        for i in range(count):
            lane = ir.Constant(I32, i)
            own = [self.builder.extract_element(argument, lane) for argument in arguments]
            result = self.builder.insert_element(result, self.builder.call(declared, own), lane)
        return result

    def _declared(self, name: str, kind: Any, arguments: int) -> Any:
        found = self.module.globals.get(name)
        return found or ir.Function(self.module, ir.FunctionType(kind, [kind] * arguments), name)


def in_register(dtype: np.dtype) -> Any:
    """The type of one element that is being computed with."""
    return I1 if dtype.kind == "b" else in_memory(dtype)


def in_memory(dtype: np.dtype) -> Any:
    if dtype.kind == "f":
        return ir.FloatType() if dtype.itemsize == 4 else ir.DoubleType()
    return ir.IntType(8 * dtype.itemsize)


def number(dtype: np.dtype, value: Any) -> ir.Constant:
    """A constant in a register."""
    kind = in_register(dtype)
    if dtype.kind == "f":
        return ir.Constant(kind, float(value))
    return ir.Constant(kind, int(value) & ((1 << kind.width) - 1))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))
