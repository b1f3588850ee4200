"""Arrays put together from others: concatenated, padded, with a part replaced, and scans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genmlx.native.graph import Node, Untranslatable
from genmlx.native.reductions import combine, identity
from genmlx.native.special.scattered import updated
from genmlx.native.views import Indices, bounded, within
from genmlx.native.writing import Index, Value

if TYPE_CHECKING:
    from genmlx.native.emit import Emitter


def _concatenate(emitter: Emitter, node: Node) -> None:
    (axis,) = node.settings
    start = 0
    for source in node.inputs:
        _paste(emitter, node, source, [start if a == axis else 0 for a in range(len(node.shape))])
        start += source.shape[axis]


def _paste(emitter: Emitter, node: Node, source: Node, starts: list) -> None:
    def body(index: Indices) -> None:
        at = [emitter.code.add(i, start) for i, start in zip(index, starts, strict=True)]
        emitter.write(node, at, emitter.element(source, index))

    emitter.loops(source.shape, body)


def _pad(emitter: Emitter, node: Node) -> None:
    axes, low, _ = node.settings
    source, padding = node.inputs
    filling = emitter.element(padding, (0,) * len(padding.shape))
    emitter.loops(node.shape, lambda index: emitter.write(node, index, filling))
    starts = [0] * len(node.shape)
    for axis, start in zip(axes, low, strict=True):
        starts[axis] = start
    _paste(emitter, node, source, starts)


def _slice_update(emitter: Emitter, node: Node) -> None:
    kind, starts, _, steps = node.settings
    source, update = node.inputs
    ends = [start + (n - 1) * step for start, n, step in zip(starts, update.shape, steps, strict=True)]
    inside = all(0 <= min(a, b) and max(a, b) < n for a, b, n in zip(starts, ends, node.shape, strict=True))
    if len(update.shape) != len(node.shape) or (update.size and not inside):
        raise Untranslatable(f"SliceUpdate {list(node.settings)}")
    emitter.start_from(node, source)

    def body(index: Indices) -> None:
        code = emitter.code
        at = [code.add(start, code.mul(i, step)) for start, i, step in zip(starts, index, steps, strict=True)]
        updated(emitter, kind, node, at, emitter.element(update, index))

    emitter.loops(update.shape, body)


def _dynamic_slice_update(emitter: Emitter, node: Node) -> None:
    (axes,) = node.settings
    source, update, starts = node.inputs
    emitter.start_from(node, source)
    at: list[Index] = [0] * len(node.shape)
    for position, axis in enumerate(axes):
        start = emitter.element(starts, within(starts.shape, (position,)))
        at[axis] = bounded(emitter.code, start, starts.dtype, node.shape[axis], update.shape[axis])
    _paste(emitter, node, update, at)


_SCANS = {0: "max", 1: "min", 2: "sum", 3: "prod"}


def _scan(emitter: Emitter, node: Node) -> None:
    kind, axis, reverse, inclusive = node.settings
    if kind not in _SCANS:
        raise Untranslatable(f"Scan of kind {kind}")
    name, source, n = _SCANS[kind], node.inputs[0], node.shape[axis]
    code, builder = emitter.code, emitter.code.builder
    if source.dtype != node.dtype:
        raise Untranslatable(f"Scan of {source.dtype} as {node.dtype}")

    def line(others: Indices) -> None:
        place = emitter.accumulator(node, identity(name, node.dtype))

        def step(i: Index) -> None:
            if reverse:
                i = n - 1 - i if isinstance(i, int) else builder.sub(code.i64(n - 1), i)
            index = (*others[:axis], i, *others[axis:])
            before = builder.load(place, typ=emitter.register(node))
            after = _in_order(emitter, name, node, before, emitter.element(source, index))
            builder.store(after, place)
            emitter.write(node, index, after if inclusive else before)

        code.loop(n, step)

    emitter.loops((*node.shape[:axis], *node.shape[axis + 1 :]), line)


def _in_order(emitter: Emitter, name: str, node: Node, before: Value, value: Value) -> Value:
    builder = emitter.code.builder
    if node.dtype.kind == "f" and name in ("sum", "prod"):
        return (builder.fadd if name == "sum" else builder.fmul)(before, value)
    return combine(emitter.code, name, node.dtype, before, value)


RULES = {
    "Concatenate": _concatenate,
    "DynamicSliceUpdate": _dynamic_slice_update,
    "Pad": _pad,
    "Scan": _scan,
    "SliceUpdate": _slice_update,
}
