"""Operations on one element of each input, as MLX's CPU does them; transcendental functions come from ``functions``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir

from genmlx.native import functions
from genmlx.native.graph import Node, Untranslatable
from genmlx.native.spreading import in_lanes, lanes, mangled, scalar
from genmlx.native.writing import I1, Code, Value, in_register, number

Rule = Callable[..., Value]
"""``rule(code, node, *values)`` gives the element of ``node`` from those of its inputs."""


def _arithmetic(integer: str, floating: str, boolean: str | None) -> Rule:
    def rule(code: Code, node: Node, a: Value, b: Value) -> Value:
        kind = node.dtype.kind
        if kind == "b" and boolean is None:
            raise Untranslatable(f"{node.op} of booleans")
        name = floating if kind == "f" else boolean if kind == "b" else integer
        assert name is not None
        return getattr(code.builder, name)(a, b)

    return rule


def _compared(symbol: str) -> Rule:
    def rule(code: Code, node: Node, a: Value, b: Value) -> Value:
        equal_nan = node.op == "Equal" and any(node.settings)
        same = compare(code, node.inputs[0].dtype, symbol, a, b)
        if equal_nan and node.inputs[0].dtype.kind == "f":
            both = code.builder.and_(is_nan(code, a), is_nan(code, b))
            return code.builder.or_(same, both)
        return same

    return rule


def compare(code: Code, dtype: np.dtype, symbol: str, a: Value, b: Value) -> Value:
    if dtype.kind == "f":
        return (code.builder.fcmp_unordered if symbol == "!=" else code.builder.fcmp_ordered)(symbol, a, b)
    return (code.builder.icmp_signed if dtype.kind == "i" else code.builder.icmp_unsigned)(symbol, a, b)


def is_nan(code: Code, x: Value) -> Value:
    return code.builder.fcmp_unordered("uno", x, x)


def larger(code: Code, dtype: np.dtype, symbol: str, a: Value, b: Value) -> Value:
    """The larger for ``>``, the smaller for ``<``; nan where one is nan, and the second of equals."""
    first = compare(code, dtype, symbol, a, b)
    if dtype.kind == "f":
        first = code.builder.or_(first, is_nan(code, a))
    return code.builder.select(first, a, b)


def _extreme(symbol: str) -> Rule:
    return lambda code, node, a, b: larger(code, node.dtype, symbol, a, b)


def _real(function: Callable[..., Value]) -> Rule:
    """A function of floating numbers only."""

    def rule(code: Code, node: Node, *values: Value) -> Value:
        if node.dtype.kind != "f":
            raise Untranslatable(f"{node.op} of {node.dtype}")
        return function(code, *values)

    return rule


def _rounding(name: str) -> Rule:
    """Whole numbers stay what they are."""

    def rule(code: Code, node: Node, x: Value) -> Value:
        return code.intrinsic(name, x) if node.dtype.kind == "f" else x

    return rule


def _negative(code: Code, node: Node, x: Value) -> Value:
    if node.dtype.kind == "f":
        return code.builder.fneg(x)
    if node.dtype.kind == "b":
        raise Untranslatable("Negative of booleans")
    return code.builder.neg(x)


def _abs(code: Code, node: Node, x: Value) -> Value:
    if node.dtype.kind == "f":
        return code.intrinsic("fabs", x)
    if node.dtype.kind == "i":
        return code.builder.select(code.builder.icmp_signed("<", x, number(node.dtype, 0)), code.builder.neg(x), x)
    return x


def _sign(code: Code, node: Node, x: Value) -> Value:
    zero, one = number(node.dtype, 0), number(node.dtype, 1)
    if node.dtype.kind in "bu":
        return code.builder.select(compare(code, node.dtype, "==", x, zero), zero, one)
    above = code.builder.select(compare(code, node.dtype, ">", x, zero), one, zero)
    return code.builder.select(compare(code, node.dtype, "<", x, zero), number(node.dtype, -1), above)


def _square(code: Code, node: Node, x: Value) -> Value:
    return _arithmetic("mul", "fmul", "and_")(code, node, x, x)


def _divide(code: Code, node: Node, a: Value, b: Value) -> Value:
    if node.dtype.kind == "f":
        return code.builder.fdiv(a, b)
    return _whole(code, node, a, b)[0]


def _whole(code: Code, node: Node, a: Value, b: Value) -> tuple[Value, Value]:
    """Quotient towards zero and remainder of integers; 0 and the dividend for a divisor of 0."""
    dtype, builder = node.dtype, code.builder
    if dtype.kind == "b":
        raise Untranslatable(f"{node.op} of booleans")
    zero, one = number(dtype, 0), number(dtype, 1)
    impossible = builder.icmp_unsigned("==", b, zero)
    if dtype.kind == "i":  # the least number divided by -1 has no quotient
        least = number(dtype, np.iinfo(dtype).min)
        overflow = builder.and_(builder.icmp_signed("==", b, number(dtype, -1)), builder.icmp_signed("==", a, least))
        divisor = builder.select(builder.or_(impossible, overflow), one, b)
        quotient, rest = builder.sdiv(a, divisor), builder.srem(a, divisor)
    else:
        divisor = builder.select(impossible, one, b)
        quotient, rest = builder.udiv(a, divisor), builder.urem(a, divisor)
    return builder.select(impossible, zero, quotient), builder.select(impossible, a, rest)


def _differ(code: Code, dtype: np.dtype, rest: Value, b: Value) -> Value:
    """Whether a remainder is not zero and has another sign than the divisor."""
    zero, builder = number(dtype, 0), code.builder
    signs = builder.xor(compare(code, dtype, "<", rest, zero), compare(code, dtype, "<", b, zero))
    return builder.and_(compare(code, dtype, "!=", rest, zero), signs)


def _floor_divide(code: Code, node: Node, a: Value, b: Value) -> Value:
    if node.dtype.kind == "f":
        return code.intrinsic("floor", code.builder.fdiv(a, b))
    quotient, rest = _whole(code, node, a, b)
    if node.dtype.kind == "u":
        return quotient
    possible = code.builder.icmp_unsigned("!=", b, number(node.dtype, 0))
    below = code.builder.and_(possible, _differ(code, node.dtype, rest, b))
    return code.builder.select(below, code.builder.sub(quotient, number(node.dtype, 1)), quotient)


def _remainder(code: Code, node: Node, a: Value, b: Value) -> Value:
    """With the sign of the divisor."""
    dtype, builder = node.dtype, code.builder
    if dtype.kind == "f":
        rest = code.library("remainderf" if dtype.itemsize == 4 else "remainder", a, b)
        return builder.select(_differ(code, dtype, rest, b), builder.fadd(rest, b), rest)
    rest = _whole(code, node, a, b)[1]
    if dtype.kind == "u":
        return rest
    possible = builder.icmp_unsigned("!=", b, number(dtype, 0))
    other = builder.and_(possible, _differ(code, dtype, rest, b))
    return builder.select(other, builder.add(rest, b), rest)


def _power(code: Code, node: Node, a: Value, b: Value) -> Value:
    if node.dtype.kind != "f":
        raise Untranslatable(f"Power of {node.dtype}")
    return functions.power(code, a, b)


def _bitwise(code: Code, node: Node, a: Value, b: Value) -> Value:
    builder, kind = code.builder, node.settings[0]
    if kind in (0, 1, 2):
        return (builder.and_, builder.or_, builder.xor)[kind](a, b)
    if kind not in (3, 4) or node.dtype.kind == "b":
        raise Untranslatable(f"BitwiseBinary {kind} of {node.dtype}")
    bits = 8 * node.dtype.itemsize
    b = builder.and_(b, number(node.dtype, bits - 1))
    return builder.shl(a, b) if kind == 3 else (builder.ashr if node.dtype.kind == "i" else builder.lshr)(a, b)


def _select(code: Code, node: Node, condition: Value, a: Value, b: Value) -> Value:
    return code.builder.select(condition, a, b)


def _as_type(code: Code, node: Node, x: Value) -> Value:
    return cast(code, x, node.inputs[0].dtype, node.dtype)


def cast(code: Code, x: Value, source: np.dtype, target: np.dtype) -> Value:
    """As C does it; what a float beyond the range of an integer becomes is as little defined as there."""
    builder, kind = code.builder, in_register(target)
    if source == target:
        return x
    if target.kind == "b":
        return compare(code, source, "!=", x, number(source, 0))
    if source.kind == "f":
        if target.kind == "f":
            return builder.fpext(x, kind) if target.itemsize == 8 else builder.fptrunc(x, kind)
        wide = in_lanes(ir.IntType(64), lanes(x))
        name = f"llvm.fpto{'u' if target == np.uint64 else 's'}i.sat.{mangled(wide)}.{mangled(x.type)}"
        declared = code.module.globals.get(name) or ir.Function(code.module, ir.FunctionType(wide, [x.type]), name)
        whole = builder.call(declared, [x])
        return whole if kind.width == 64 else builder.trunc(whole, kind)
    if target.kind == "f":
        return (builder.sitofp if source.kind == "i" else builder.uitofp)(x, kind)
    width = 1 if source.kind == "b" else 8 * source.itemsize
    if kind.width == width:
        return x
    if kind.width < width:
        return builder.trunc(x, kind)
    return (builder.sext if source.kind == "i" else builder.zext)(x, kind)


def _view(code: Code, node: Node, x: Value) -> Value:
    source = node.inputs[0].dtype
    if source.itemsize != node.dtype.itemsize or "b" in (source.kind, node.dtype.kind):
        raise Untranslatable(f"View of {source} as {node.dtype}")
    return x if scalar(x.type) == in_register(node.dtype) else code.builder.bitcast(x, in_register(node.dtype))


def _log(code: Code, node: Node, x: Value) -> Value:
    bases = {0: functions.log2, 1: functions.log10, 2: functions.log}
    if node.settings[0] not in bases:
        raise Untranslatable(f"Log with base {node.settings[0]}")
    return _real(bases[node.settings[0]])(code, node, x)


def _sqrt(code: Code, node: Node, x: Value) -> Value:
    root = _real(lambda code, x: code.intrinsic("sqrt", x))(code, node, x)
    return code.builder.fdiv(number(node.dtype, 1), root) if node.settings[0] else root


def _logical_not(code: Code, node: Node, x: Value) -> Value:
    if scalar(x.type) != I1:
        raise Untranslatable(f"LogicalNot of {node.inputs[0].dtype}")
    return code.builder.not_(x)


def _logical(name: str) -> Rule:
    def rule(code: Code, node: Node, a: Value, b: Value) -> Value:
        if I1 != scalar(a.type) or I1 != scalar(b.type):
            raise Untranslatable(f"{node.op} of {node.inputs[0].dtype}")
        return getattr(code.builder, name)(a, b)

    return rule


RULES: dict[str, Rule] = {
    "Abs": _abs,
    "Add": _arithmetic("add", "fadd", "or_"),
    "ArcCos": _real(functions.arccos),
    "ArcCosh": _real(functions.arccosh),
    "ArcSin": _real(functions.arcsin),
    "ArcSinh": _real(functions.arcsinh),
    "ArcTan": _real(functions.arctan),
    "ArcTan2": _real(functions.arctan2),
    "ArcTanh": _real(functions.arctanh),
    "AsType": _as_type,
    "BitwiseBinary": _bitwise,
    "Ceil": _rounding("ceil"),
    "Cos": _real(functions.cos),
    "Cosh": _real(functions.cosh),
    "Divide": _divide,
    "Equal": _compared("=="),
    "Erf": _real(functions.erf),
    "ErfInv": _real(functions.erfinv),
    "Exp": _real(functions.exp),
    "Expm1": _real(functions.expm1),
    "Floor": _rounding("floor"),
    "FloorDivide": _floor_divide,
    "Greater": _compared(">"),
    "GreaterEqual": _compared(">="),
    "Less": _compared("<"),
    "LessEqual": _compared("<="),
    "Log": _log,
    "Log1p": _real(functions.log1p),
    "LogAddExp": _real(functions.logaddexp),
    "LogicalAnd": _logical("and_"),
    "LogicalNot": _logical_not,
    "LogicalOr": _logical("or_"),
    "Maximum": _extreme(">"),
    "Minimum": _extreme("<"),
    "Multiply": _arithmetic("mul", "fmul", "and_"),
    "Negative": _negative,
    "NotEqual": _compared("!="),
    "Power": _power,
    "Remainder": _remainder,
    "Round": _rounding("rint"),
    "Select": _select,
    "Sigmoid": _real(functions.sigmoid),
    "Sign": _sign,
    "Sin": _real(functions.sin),
    "Sinh": _real(functions.sinh),
    "Sqrt": _sqrt,
    "Square": _square,
    "Subtract": _arithmetic("sub", "fsub", None),
    "Tan": _real(functions.tan),
    "Tanh": _real(functions.tanh),
    "View": _view,
}

_COSTS = {"Divide": 4, "Sqrt": 4, "FloorDivide": 6, "Remainder": 20, "LogAddExp": 40}
_FREE = {"AsType", "Negative", "Abs", "View", "LogicalNot"}
_DEAR = 20


def cost(node: Node) -> int:
    """About how many additions an element costs."""
    if node.op in _FREE:
        return 0
    if RULES[node.op].__qualname__.startswith("_real") or node.op in ("Log", "Power"):
        return _COSTS.get(node.op, _DEAR)
    return _COSTS.get(node.op, 1)
