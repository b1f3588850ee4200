"""What is known before the first call: constants are computed, what is computed twice is one node.

Only operations that are exact by IEEE 754 are computed here, so that folding never changes a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from genmlx.native.graph import Graph, Node, constant, pruned

_LARGEST = 1 << 20  # elements of a constant that is computed here
_SCATTERED = 2000  # of them replaced one by one
_REPLACES = 4  # MLX's number of that kind of Scatter and SliceUpdate

_EXACT: dict[str, Callable] = {
    "Add": np.add,
    "Subtract": np.subtract,
    "Multiply": np.multiply,
    "Negative": np.negative,
    "Square": np.square,
    "Abs": np.abs,
    "Equal": np.equal,
    "NotEqual": np.not_equal,
    "Less": np.less,
    "LessEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
    "LogicalAnd": np.logical_and,
    "LogicalOr": np.logical_or,
    "LogicalNot": np.logical_not,
    "Select": np.where,
}
_RESHAPED = {"Reshape", "Flatten", "Unflatten", "Squeeze", "ExpandDims"}
_VIEWS = {"Broadcast", "BroadcastAxes", "Full", "Copy", "StopGradient", "Contiguous", "Transpose", "Slice"} | _RESHAPED


def folded(graph: Graph) -> Graph:
    """The same graph with fewer nodes."""
    known: dict[tuple, Node] = {}

    def simpler(node: Node) -> Node:
        found = _computed(node) or _simpler(node)
        return known.setdefault(_identity(found), found)

    return rewritten(graph, simpler)


def rewritten(graph: Graph, change: Callable[[Node], Node]) -> Graph:
    """The graph with ``change(node)`` for each node, once its inputs have been changed."""
    made: dict[Node, Node] = {node: node for node in graph.inputs}
    for node in graph.nodes:
        if node not in made:
            inputs = tuple(made[source] for source in node.inputs)
            if any(a is not b for a, b in zip(inputs, node.inputs, strict=True)):
                made[node] = change(Node(node.op, node.settings, inputs, node.shape, node.dtype, node.value))
            else:
                made[node] = change(node)
    return pruned(graph.inputs, [made[node] for node in graph.outputs])


def _identity(node: Node) -> tuple:
    """What two nodes that compute the same have in common."""
    form = (node.op, node.shape, node.dtype.str)
    if node.op == "Constant":
        value: np.ndarray = node.value
        if uniform(value) and value.size:
            return (*form, value.flat[0].tobytes())
        return (*form, value.__array_interface__["data"][0], value.strides)
    return (*form, repr(node.settings), tuple(id(source) for source in node.inputs))


def _computed(node: Node) -> Node | None:
    if node.op == "Constant" or node.size > _LARGEST or any(source.op != "Constant" for source in node.inputs):
        return None
    with np.errstate(all="ignore"):
        value = _value(node, [source.value for source in node.inputs])
    return None if value is None else constant(_as_one_number(value))


def _as_one_number(value: np.ndarray) -> np.ndarray:
    """An array whose elements are all the same, as a broadcast of one."""
    if value.size < 2 or uniform(value):
        return value
    bits = value.view(np.dtype(f"u{value.dtype.itemsize}")) if value.dtype.kind == "f" else value
    first = bits.flat[0]
    if not (bits == first).all():
        return value
    return np.broadcast_to(np.asarray(value.flat[0], value.dtype), value.shape)


def _value(node: Node, values: list) -> Any:
    op = node.op
    if op in _VIEWS:
        value = values[0]
        if op in _RESHAPED:
            return value.reshape(node.shape)
        if op == "Transpose":
            return value.transpose(node.settings[0])
        if op == "Slice":
            return value[slices(node.settings[0], node.settings[2], node.shape)]
        return np.broadcast_to(value, node.shape)
    if op == "Arange":
        start, _, step = node.settings
        first, second = (np.asarray(x).astype(node.dtype) for x in (start, start + step))
        steps = np.full(node.shape, second - first, node.dtype)
        steps[:1] = first
        return np.add.accumulate(steps, dtype=node.dtype)  # one after the other, as MLX adds
    if op == "AsType" and (node.dtype.kind in "bf" or values[0].dtype.kind in "biu"):
        return values[0].astype(node.dtype)
    if op == "Concatenate":
        return np.concatenate(values, axis=node.settings[0])
    if op == "SliceUpdate" and node.settings[0] == _REPLACES and values[1].ndim == values[0].ndim:
        changed = values[0].copy()
        changed[slices(node.settings[1], node.settings[3], values[1].shape)] = values[1]
        return changed
    if op == "Scatter" and node.settings[0] == _REPLACES and len(values[-1]) <= _SCATTERED:
        return _scattered(node, *values)
    if op in _EXACT and not (node.dtype.kind == "b" and op in ("Add", "Subtract", "Multiply")):
        return _EXACT[op](*values).astype(node.dtype, copy=False)
    return None


def slices(starts: Sequence[int], steps: Sequence[int], shape: Sequence[int]) -> tuple:
    """Python's slices of so many elements from these starts on."""
    stops = [start + n * step for start, n, step in zip(starts, shape, steps, strict=True)]
    triples = zip(starts, stops, steps, strict=True)
    return tuple(slice(start, None if step < 0 and stop < 0 else stop, step) for start, stop, step in triples)


def _scattered(node: Node, source: np.ndarray, *rest: np.ndarray) -> np.ndarray | None:
    """Single elements replaced, as in an identity matrix."""
    *given, updates = rest
    if (
        len(given) != source.ndim
        or updates.ndim != 1 + source.ndim
        or sorted(node.settings[1]) != [*range(source.ndim)]
    ):
        return None
    places = tuple(given[node.settings[1].index(axis)] for axis in range(source.ndim))
    if any(p.ndim != 1 or (p < 0).any() or (p >= n).any() for p, n in zip(places, source.shape, strict=True)):
        return None
    changed = source.copy()
    for *place, value in zip(*places, updates.reshape(-1), strict=True):
        changed[tuple(place)] = value
    return changed


def _simpler(node: Node) -> Node:
    if node.op in ("StopGradient", "Copy", "Contiguous"):
        return node.inputs[0]
    if node.op == "AsType" and node.inputs[0].dtype == node.dtype:
        return node.inputs[0]
    if node.op in ("Reshape", "Broadcast", "Flatten", "Unflatten") and node.inputs[0].shape == node.shape:
        return node.inputs[0]
    if node.op == "Transpose" and list(node.settings[0]) == [*range(len(node.shape))]:
        return node.inputs[0]
    if node.op == "Subtract" and node.dtype.kind == "f" and is_all(node.inputs[1], 0):
        if not np.signbit(node.inputs[1].value.flat[0]):
            return node.inputs[0]
    if node.op == "Divide" and node.dtype.kind == "f" and (reciprocal := _exact_reciprocal(node.inputs[1])) is not None:
        node = Node("Multiply", (), (node.inputs[0], reciprocal), node.shape, node.dtype)
    if node.op == "Multiply" and node.dtype.kind == "f":
        for one, other in (node.inputs, node.inputs[::-1]):
            if is_all(one, 1):
                return other
    if node.op == "Select" and (is_all(node.inputs[0], True) or is_all(node.inputs[0], False)):
        return node.inputs[1 if is_all(node.inputs[0], True) else 2]
    if node.op == "Power" and node.dtype.kind == "f":
        return _power(node)
    return node


def _exact_reciprocal(node: Node) -> Node | None:
    """1 / x, where x is a power of two: then a product with it is the quotient, to the bit."""
    if node.op != "Constant" or not node.size or not uniform(node.value):
        return None
    x = node.value.flat[0]
    if not np.isfinite(x) or abs(np.frexp(x)[0]) != 0.5 or abs(np.frexp(x)[1]) > 100:
        return None
    return constant(np.broadcast_to(np.asarray(1 / x, node.dtype), node.shape))


def _power(node: Node) -> Node:
    base, exponent = node.inputs
    like = (node.shape, node.dtype)
    if is_all(exponent, 1):
        return base
    if is_all(exponent, 0):
        return constant(np.broadcast_to(np.ones((), node.dtype), node.shape))
    if is_all(exponent, 2):
        return Node("Square", (), (base,), *like)
    if is_all(exponent, 3):
        return Node("Multiply", (), (Node("Square", (), (base,), *like), base), *like)
    if is_all(exponent, -1):
        return Node("Divide", (), (constant(np.broadcast_to(np.ones((), node.dtype), node.shape)), base), *like)
    return node


def is_all(node: Node, number: float) -> bool:
    """Whether a node is a constant all of whose elements are this number, as a broadcast of one is."""
    return node.op == "Constant" and node.size > 0 and uniform(node.value) and node.value.flat[0] == number


def uniform(value: np.ndarray) -> bool:
    """Whether an array is one number, seen from its strides."""
    return value.size == 1 or not any(s for s, n in zip(value.strides, value.shape, strict=True) if n > 1)
