"""Updates at indices that are data, one after the other. Indices beyond an array are moved into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genmlx.native.elementwise import larger
from genmlx.native.graph import Node, Untranslatable
from genmlx.native.views import Indices, bounded, within
from genmlx.native.writing import Index, Value

if TYPE_CHECKING:
    from genmlx.native.emit import Emitter

_KINDS = ("max", "min", "sum", "prod", "none")
"""By MLX's numbers, of Scatter and SliceUpdate."""


def updated(emitter: Emitter, kind: int, node: Node, index: list[Index], value: Value) -> None:
    """Combine the element of ``node`` at an index with a value."""
    if not 0 <= kind < len(_KINDS):
        raise Untranslatable(f"{node.op} of kind {kind}")
    name, builder = _KINDS[kind], emitter.code.builder
    if name != "none":
        old = emitter.read(node, index)
        if name in ("max", "min"):
            value = larger(emitter.code, node.dtype, ">" if name == "max" else "<", old, value)
        elif node.dtype.kind == "f":
            value = (builder.fadd if name == "sum" else builder.fmul)(old, value)
        elif node.dtype.kind == "b":
            value = (builder.or_ if name == "sum" else builder.and_)(old, value)
        else:
            value = (builder.add if name == "sum" else builder.mul)(old, value)
    emitter.write(node, index, value)


def _scatter(emitter: Emitter, node: Node) -> None:
    kind, axes = node.settings
    given, updates = node.inputs[1:-1], node.inputs[-1]
    emitter.start_from(node, node.inputs[0])
    lead = len(updates.shape) - len(node.shape)
    sizes = updates.shape[lead:]

    def body(index: Indices) -> None:
        at = list(index[lead:])
        for axis, array in zip(axes, given, strict=True):
            found = emitter.element(array, within(array.shape, index[:lead]))
            start = bounded(emitter.code, found, array.dtype, node.shape[axis], sizes[axis])
            at[axis] = emitter.code.add(at[axis], start)
        updated(emitter, kind, node, at, emitter.element(updates, index))

    emitter.loops(updates.shape, body)


def _scatter_axis(emitter: Emitter, node: Node) -> None:
    kind, axis = node.settings
    _, given, updates = node.inputs
    if kind not in (0, 1):
        raise Untranslatable(f"ScatterAxis of kind {kind}")
    emitter.start_from(node, node.inputs[0])

    def body(index: Indices) -> None:
        found = emitter.element(given, index)
        at = list(index)
        at[axis] = bounded(emitter.code, found, given.dtype, node.shape[axis])
        updated(emitter, (2, 4)[kind], node, at, emitter.element(updates, within(updates.shape, index)))

    emitter.loops(given.shape, body)


RULES = {"Scatter": _scatter, "ScatterAxis": _scatter_axis}
