"""Elementary functions on a GPU, which has no float64: the device's own where ours go by way of it.

Those are right to 4 ulp in CUDA and Metal; the power to 8 and 16. What needs no float64 is ``functions.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable

from genmlx.native import elementwise, functions
from genmlx.native.elementwise import Rule
from genmlx.native.graph import Node
from genmlx.native.writing import Code, Value, number

_NEAR = (
    1.50140941, 0.246640727, -0.00417768164, -0.00125372503, 0.00021858087, -4.39150654e-06, -3.5233877e-06,
    3.43273939e-07, 2.81022636e-08,
)  # fmt: skip
_FAR = (
    2.83297682, 1.00167406, 0.00943887047, -0.0076224613, 0.00573950773, -0.00367342844, 0.00134934322,
    0.000100950558, -0.000200214257,
)  # fmt: skip


def _device(name: str) -> Callable[..., Value]:
    return lambda code, *values: code.library(f"{name}_", *values)


def _horner(code: Code, x: Value, coefficients: tuple, like: Node) -> Value:
    total = number(like.dtype, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = code.intrinsic("fma", total, x, number(like.dtype, c))
    return total


def _erfinv(code: Code, node: Node, x: Value) -> Value:
    """Giles (2012), 'Approximating the erfinv function', table 5."""
    builder, one = code.builder, number(node.dtype, 1)
    inside = builder.fmul(builder.fsub(one, x), builder.fadd(one, x))
    w = builder.fneg(functions.log(code, inside))
    first = builder.fcmp_ordered("<", w, number(node.dtype, 5))
    near = _horner(code, builder.fsub(w, number(node.dtype, 2.5)), _NEAR, node)
    far = _horner(code, builder.fsub(code.intrinsic("sqrt", w), number(node.dtype, 3)), _FAR, node)
    value = builder.fmul(builder.select(first, near, far), x)
    edge = builder.fcmp_ordered("==", code.intrinsic("fabs", x), one)
    infinite = code.intrinsic("copysign", number(node.dtype, float("inf")), x)
    return builder.select(edge, infinite, value)


def _log(code: Code, node: Node, x: Value) -> Value:
    bases = {0: "log2", 1: "log10"}
    if node.settings[0] in bases:
        return _device(bases[node.settings[0]])(code, x)
    return elementwise.RULES["Log"](code, node, x)


def _remainder(code: Code, node: Node, a: Value, b: Value) -> Value:
    """With the sign of the divisor."""
    if node.dtype.kind != "f":
        return elementwise.RULES["Remainder"](code, node, a, b)
    builder, zero = code.builder, number(node.dtype, 0)
    rest = _device("fmod")(code, a, b)
    below = [builder.fcmp_ordered("<", value, zero) for value in (rest, b)]
    other = builder.and_(builder.fcmp_unordered("!=", rest, zero), builder.xor(*below))
    return builder.select(other, builder.fadd(rest, b), rest)


_NAMES = {
    "ArcCos": "acos", "ArcCosh": "acosh", "ArcSin": "asin", "ArcSinh": "asinh", "ArcTan": "atan", "ArcTan2": "atan2",
    "ArcTanh": "atanh", "Cos": "cos", "Cosh": "cosh", "Power": "pow", "Sin": "sin", "Sinh": "sinh", "Tan": "tan",
}  # fmt: skip

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **{op: elementwise._real(_device(name)) for op, name in _NAMES.items()},
    "ErfInv": _erfinv,
    "Log": _log,
    "Remainder": _remainder,
}
