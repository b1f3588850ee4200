"""Arithmetic on numbers and on vectors of them: a number beside a vector is the same in every lane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

_TWO = ("add", "sub", "mul", "udiv", "sdiv", "urem", "srem", "shl", "lshr", "ashr", "and_", "or_", "xor",
        "fadd", "fsub", "fmul", "fdiv")  # fmt: skip
_COMPARED = ("icmp_signed", "icmp_unsigned", "fcmp_ordered", "fcmp_unordered")
_CASTS = ("trunc", "zext", "sext", "fptrunc", "fpext", "fptosi", "sitofp", "uitofp", "bitcast")


def lanes(value: Any) -> int:
    """How many numbers a value is."""
    return value.type.count if isinstance(value.type, ir.VectorType) else 1


def scalar(kind: Any) -> Any:
    """The type of a lane."""
    return kind.element if isinstance(kind, ir.VectorType) else kind


def in_lanes(kind: Any, count: int) -> Any:
    return kind if count == 1 or isinstance(kind, ir.VectorType) else ir.VectorType(kind, count)


def mangled(kind: Any) -> str:
    """The name of a type in those of intrinsics."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{mangled(kind.element)}"
    return kind.intrinsic_name


class _Splat(ir.Constant):
    """One constant in all lanes, without writing it so many times."""

    def _get_reference(self) -> str:
        one = self.constant[0]
        return f"splat ({one.type} {one.get_reference()})"


class Builder(ir.IRBuilder):
    """Operations on several values, of which some may be vectors; a type that is asked for is that of a lane."""

    def spread(self, value: Any, count: int) -> Any:
        """The value in every lane, if it is not a vector already."""
        kind = in_lanes(value.type, count)
        if kind == value.type:
            return value
        if isinstance(value, ir.Constant):
            return _Splat(kind, value)
        nothing, i32 = ir.Constant(kind, ir.Undefined), ir.IntType(32)
        one = self.insert_element(nothing, value, ir.Constant(i32, 0))
        return self.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(i32, count), 0))

    def alike(self, values: Sequence[Any]) -> list[Any]:
        """All vectors, if one of them is."""
        count = max(map(lanes, values))
        return [self.spread(value, count) for value in values] if count > 1 else list(values)

    def select(self, cond: Any, lhs: Any, rhs: Any, name: str = "", flags: Sequence[str] = ()) -> Any:
        if lanes(cond) == 1:
            lhs, rhs = self.alike([lhs, rhs])  # all of one, or of the other
        else:
            cond, lhs, rhs = self.alike([cond, lhs, rhs])
        return super().select(cond, lhs, rhs, name, flags)


def _two(name: str) -> Callable:
    inherited = getattr(ir.IRBuilder, name)

    def operation(self: Builder, a: Any, b: Any, *rest: Any, **how: Any) -> Any:
        if lanes(a) != lanes(b):
            a, b = self.alike([a, b])
        return inherited(self, a, b, *rest, **how)

    return operation


def _compared(name: str) -> Callable:
    inherited = getattr(ir.IRBuilder, name)

    def operation(self: Builder, symbol: str, a: Any, b: Any, *rest: Any, **how: Any) -> Any:
        if lanes(a) != lanes(b):
            a, b = self.alike([a, b])
        return inherited(self, symbol, a, b, *rest, **how)

    return operation


def _cast(name: str) -> Callable:
    inherited = getattr(ir.IRBuilder, name)
    return lambda self, value, kind, *rest: inherited(self, value, in_lanes(kind, lanes(value)), *rest)


for made, names in ((_two, _TWO), (_compared, _COMPARED), (_cast, _CASTS)):
    for name in names:
        setattr(Builder, name, made(name))
