"""The graph of an MLX function: nodes with one result each, read off what ``mx.export_function`` streams.

That stream is experimental in MLX. Whatever is not as expected here raises ``Untranslatable``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from genmlx.errors import GenError


class Untranslatable(GenError, NotImplementedError):
    """A function that has no native form here, and runs on MLX."""


class Node:
    """One array of a graph: a primitive with its ``settings`` and ``inputs``, or an input or a constant.

    ``dtype`` is a numpy dtype. Nodes of a graph are numbered so that inputs come before their users.
    """

    __slots__ = ("number", "op", "settings", "inputs", "shape", "dtype", "value")

    def __init__(
        self, op: str, settings: Sequence, inputs: Sequence[Node], shape: Sequence[int], dtype: Any, value: Any = None
    ):
        self.number = -1
        self.op, self.settings, self.inputs = op, tuple(settings), tuple(inputs)
        self.shape, self.dtype, self.value = tuple(shape), np.dtype(dtype), value

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{i.op}#{i.number}" for i in self.inputs)
        return f"#{self.number} {self.op}{list(self.settings)}({inputs}) -> {self.dtype}{list(self.shape)}"


class Graph(NamedTuple):
    """``nodes`` in an order in which inputs come first; ``inputs`` are all, also those that nothing uses."""

    nodes: list[Node]
    inputs: list[Node]
    outputs: list[Node]


_DTYPES = {
    mx.bool_: np.bool_,
    mx.uint8: np.uint8,
    mx.uint16: np.uint16,
    mx.uint32: np.uint32,
    mx.uint64: np.uint64,
    mx.int8: np.int8,
    mx.int16: np.int16,
    mx.int32: np.int32,
    mx.int64: np.int64,
    mx.float32: np.float32,
    mx.float64: np.float64,
}
MLX_DTYPES = {np.dtype(known): dtype for dtype, known in _DTYPES.items()}


def numpy_dtype(dtype: mx.Dtype) -> np.dtype:
    known = _DTYPES.get(dtype)
    if known is None:
        raise Untranslatable(f"dtype {str(dtype).removeprefix('mlx.core.')}")
    return np.dtype(known)


def constant(value: Any) -> Node:
    """A constant node that holds a numpy array."""
    return Node("Constant", (), (), value.shape, value.dtype, value)


def graph_of(f: Callable[..., Sequence[mx.array]], *arrays: mx.array) -> Graph:
    """The graph of ``f`` for arrays of these shapes and dtypes; arrays that ``f`` closes over are constants of it.

    Raises Untranslatable where MLX does not export a primitive, or a random number depends on no input.
    """
    stream: list[dict] = []
    try:
        # not the arrays themselves: MLX refuses a function that closes over an array that it is traced with
        mx.export_function(stream.append, f, *[mx.zeros(a.shape, a.dtype, stream=mx.cpu) for a in arrays])
    except ValueError as error:
        message = str(error)
        _, found, name = message.partition("Unable to get state for primitive ")
        if found:
            raise Untranslatable(f"primitive {name.split()[0].rstrip('.')}") from error
        if message.startswith("[eval]"):
            raise Untranslatable("the host value of an input") from error
        raise
    return read(stream)


def read(stream: Iterable[dict]) -> Graph:
    """The graph of a stream of entries."""
    known: dict[str, Node] = {}
    inputs: list[Node] = []
    outputs: list[str] = []
    for entry in stream:
        try:
            kind = entry["type"]
            if kind == "inputs":
                for name, shape, dtype in entry["inputs"]:
                    known[name] = Node("Input", (len(inputs),), (), shape, numpy_dtype(dtype))
                    inputs.append(known[name])
            elif kind == "keyword_inputs":
                if entry["keywords"]:
                    raise Untranslatable("keyword inputs")
            elif kind == "outputs":
                outputs = [name for name, *_ in entry["outputs"]]
            elif kind == "constants":
                known.update((name, _held(value)) for name, value in entry["constants"])
            elif kind == "primitive":
                _add(known, entry["name"], entry["arguments"], entry["inputs"], entry["outputs"])
            else:
                raise Untranslatable(f"an entry of an unknown kind, {kind!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise Untranslatable(f"an entry of an unknown form ({type(error).__name__}: {error})") from error
    try:
        return pruned(inputs, [known[name] for name in outputs])
    except KeyError as error:
        raise Untranslatable(f"an output that nothing makes, {error}") from error


def _held(value: mx.array) -> Node:
    numpy_dtype(value.dtype)
    return constant(np.asarray(value))


def _add(known: dict[str, Node], op: str, settings: list, inputs: list, outputs: list) -> None:
    sources = [known[name] for name, *_ in inputs]
    if op == "RandomBits" and sources[0].op == "Constant":
        raise Untranslatable("a random number without a key among the inputs")
    try:
        made = [(name, shape, numpy_dtype(dtype)) for name, shape, dtype in outputs]
    except Untranslatable as error:
        raise Untranslatable(f"primitive {op} with {error.what}") from None
    for (name, shape, dtype), (one, own) in zip(made, _single(op, settings, made), strict=True):
        known[name] = Node(one, own, sources, shape, dtype)


def _single(op: str, settings: list, made: list) -> list[tuple]:
    """A primitive of several results as one primitive for each."""
    if op == "Split":
        ends, axis = settings
        starts = [0, *ends]
        found = []
        for start, (_, shape, _) in zip(starts, made, strict=True):
            low = [start if i == axis else 0 for i in range(len(shape))]
            found.append(("Slice", (low, [a + n for a, n in zip(low, shape, strict=True)], [1] * len(shape))))
        return found
    if op == "DivMod":
        return [("FloorDivide", ()), ("Remainder", ())]
    if len(made) != 1:
        raise Untranslatable(f"primitive {op}")
    return [(op, settings)]


def pruned(inputs: list[Node], outputs: list[Node]) -> Graph:
    """What the outputs need, numbered anew."""
    nodes: list[Node] = []
    seen: set[int] = set()
    waiting: list[tuple[Node, bool]] = [(node, False) for node in reversed(outputs)]
    while waiting:
        node, ready = waiting.pop()
        if ready:
            node.number = len(nodes)
            nodes.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append((node, True))
            waiting.extend((source, False) for source in reversed(node.inputs) if id(source) not in seen)
    return Graph(nodes, inputs, outputs)


def fingerprint(graph: Graph) -> str:
    """Equal for graphs that compute the same in the same way, whose constants are equal to the bit."""
    found = hashlib.sha256()
    for node in graph.nodes:
        form = (node.op, node.settings, [source.number for source in node.inputs], node.shape, node.dtype.str)
        found.update(repr(form).encode())
        if node.op == "Constant":
            found.update(np.ascontiguousarray(node.value).data if node.size else b"")
    found.update(repr([node.number for node in (*graph.inputs, *graph.outputs)]).encode())
    return found.hexdigest()
