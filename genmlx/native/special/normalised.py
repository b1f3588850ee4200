"""Softmax and logarithms of sums of exponentials over the last axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from genmlx.native import functions
from genmlx.native.graph import Node, Untranslatable
from genmlx.native.reductions import Accumulator
from genmlx.native.views import Indices
from genmlx.native.writing import Index, Value, number

if TYPE_CHECKING:
    from genmlx.native.emit import Emitter


def _folded(emitter: Emitter, node: Node, kind: str, value: Callable[[Index], Value]) -> Value:
    """A reduction of the values at the positions of the last axis of the input."""
    n = node.inputs[0].shape[-1]
    accumulator = Accumulator(emitter, node, kind, n)
    emitter.code.loop(n, lambda i: accumulator.add(value(i), i))
    return accumulator.total()


def _require_real(node: Node) -> None:
    if node.dtype.kind != "f" or node.inputs[0].dtype != node.dtype:
        raise Untranslatable(f"{node.op} of {node.inputs[0].dtype}")


def _softmax(emitter: Emitter, node: Node) -> None:
    _require_real(node)
    code, (source,) = emitter.code, node.inputs

    def row(lead: Indices) -> None:
        top = _folded(emitter, node, "max", lambda i: emitter.element(source, (*lead, i)))

        def weight(i: Index) -> Value:
            value = functions.exp(code, code.builder.fsub(emitter.element(source, (*lead, i)), top))
            emitter.write(node, (*lead, i), value)
            return value

        inverse = code.builder.fdiv(number(node.dtype, 1), _folded(emitter, node, "sum", weight))

        def scale(i: Index) -> None:
            value = code.builder.fmul(emitter.read(node, (*lead, i)), inverse)
            emitter.write(node, (*lead, i), value)

        code.loop(node.shape[-1], scale)

    emitter.loops(node.shape[:-1], row)


def _log_sum_exp(emitter: Emitter, node: Node) -> None:
    _require_real(node)
    code, (source,) = emitter.code, node.inputs
    builder = code.builder

    def row(lead: Indices) -> None:
        top = _folded(emitter, node, "max", lambda i: emitter.element(source, (*lead, i)))

        def term(i: Index) -> Value:
            return functions.exp(code, builder.fsub(emitter.element(source, (*lead, i)), top))

        value = builder.fadd(functions.log(code, _folded(emitter, node, "sum", term)), top)
        infinite = builder.fcmp_ordered("==", code.intrinsic("fabs", top), number(node.dtype, float("inf")))
        emitter.write(node, (*lead, 0), builder.select(infinite, top, value))

    emitter.loops(source.shape[:-1], row)


RULES = {"LogSumExp": _log_sum_exp, "Softmax": _softmax}
