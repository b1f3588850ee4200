"""The log density of one vector as the text of a function, for a thread of a GPU.

The passes and the rules are those of machine code (``genmlx/native/emit.py``), whose IR is printed as C
(``printing.py``). Here only the products, the sums, and what would take float64 are others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from genmlx.native import fold, llvm, peepholes
from genmlx.native.graph import Graph, Untranslatable, graph_of

SLOTS = 1 << 16
"""The most numbers that a chain may have in memory of the device, besides what it has to itself."""
_INDEXED = ("Gather", "GatherAxis", "Scatter", "ScatterAxis")
_LEAST = 8  # numbers of an input, for Metal keeps shorter ones in another kind of memory

_HEAD = (
    "FUNCTION void {name}({outputs}const PRIVATE float* u, const GLOBAL float* reals, const GLOBAL int* integers, "
    "GLOBAL float* scratch, unsigned chains) {{"
)


class Text(NamedTuple):
    """``source`` is ``void density(outputs..., u, reals, integers, scratch, chains)``.

    ``u`` and the outputs, float arrays of these ``sizes``, are the thread's own. ``scratch`` points to its column of an
    array ``[slots, chains]``. ``reals`` and ``integers`` hold the constants of the density, and its parameters. It runs
    ``statements``, and was made of so many MLX ``primitives``.
    """

    source: str
    sizes: list[int]
    slots: int
    reals: np.ndarray
    integers: np.ndarray
    statements: int
    primitives: int


def density_text(
    f: Callable[..., Sequence[mx.array]], dim: int, parameters: Sequence[mx.array] = (), private: int = 1024
) -> Text:
    """The text of ``f(u, *parameters)``, which gives a list of float arrays, for ``u [dim]``.

    ``private`` are the bytes of arrays that a thread has to itself.

    Raises Untranslatable, naming the primitive, for what has no form here, and UsageError without llvmlite.

    >>> text = density_text(lambda u: [mx.sum(u * u)], 3)
    >>> text.sizes, text.slots
    ([1], 0)
    """
    llvm.binding()
    graph = fold.folded(peepholes.improved(fold.folded(graph_of(f, mx.zeros(dim), *parameters))))
    return text_of(graph, [np.array(parameter) for parameter in parameters], private)


def text_of(graph: Graph, parameters: Sequence[np.ndarray], private: int) -> Text:
    from genmlx.native.gpu.printing import Pointer, body, of_thread
    from genmlx.native.gpu.writing import DeviceEmitter

    _narrow(graph)
    for node in [*graph.nodes, *graph.outputs]:
        if node.dtype.itemsize == 8 or node.size >= 1 << 31:
            raise Untranslatable(f"{node.dtype} {list(node.shape)} on a GPU")
    if any(node.dtype != np.float32 for node in graph.outputs):
        raise Untranslatable("an output that is not float32")
    emitter = DeviceEmitter(graph, private)
    try:
        function, places = emitter.body()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Untranslatable(f"a primitive of an unknown form ({type(error).__name__}: {error})") from error
    memory = _Memory()

    def pointer(table: int, position: int) -> Pointer:
        if table == 0 and position == 0:
            return of_thread("u")
        if table == 1:
            return of_thread(f"out{position}")
        if table == 3:
            return Pointer(lambda kind, i, value: _slot(position, kind, i, value))
        return memory.keep(parameters[position - 1] if table == 0 else emitter.constants[position])

    pointers = [pointer(*place) for place in places]
    statements, run = body(function, [*pointers, of_thread("scratch")])
    if emitter.slots > SLOTS:
        raise Untranslatable(f"{emitter.slots} numbers of memory for each chain")
    outputs = "".join(f"PRIVATE float* out{i}, " for i in range(len(graph.outputs)))
    source = "\n".join([_HEAD.format(name="density", outputs=outputs), statements, "}\n"])
    sizes = [math.prod(node.shape) for node in graph.outputs]
    arrays = memory.array(np.float32), memory.array(np.int32)
    return Text(source, sizes, emitter.slots, *arrays, run, len(graph.nodes))


def _slot(start: int, kind: str, i: str, value: str | None) -> str:
    place = f"scratch[(WIDE)({start} + {i}) * chains]"
    if value is None:
        return place if kind == "float" else f"({kind})bits_of_({place})"
    return f"{place} = {value};" if kind == "float" else f"{place} = float_of_((unsigned){value});"


class _Memory:
    """Constants, one after the other in an array of floats and one of integers."""

    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {"reals": [], "integers": []}

    def keep(self, array: np.ndarray) -> Any:
        from genmlx.native.gpu.printing import Pointer

        name = "reals" if array.dtype.kind == "f" else "integers"
        start = sum(part.size for part in self.parts[name])
        bits = array.view(np.int32) if array.dtype == np.uint32 else array.astype(np.int32 if name != "reals" else "f4")
        self.parts[name].append(np.ascontiguousarray(bits).reshape(-1))

        def at(kind: str, i: str, value: str | None) -> str:
            if value is not None:
                raise Untranslatable("a constant that is written to")
            return f"{name}[{start} + {i}]" if kind == "float" else f"({kind}){name}[{start} + {i}]"

        return Pointer(at)

    def array(self, dtype: Any) -> np.ndarray:
        parts = self.parts["reals" if dtype == np.float32 else "integers"]
        padding = max(0, _LEAST - sum(part.size for part in parts))
        return np.concatenate([*parts, np.zeros(padding, dtype)]).astype(dtype)


def _narrow(graph: Graph) -> None:
    """Make indices of 64 bits ones of 32, where they hold no more; and constants in memory be in one piece."""
    otherwise = {node.number for node in graph.outputs}
    for node in graph.nodes:
        indices = range(1, len(node.inputs) - node.op.startswith("Scatter")) if node.op in _INDEXED else ()
        otherwise |= {source.number for at, source in enumerate(node.inputs) if at not in indices}
    for node in graph.nodes:
        if node.op == "Constant" and not fold.uniform(node.value):
            node.value = np.ascontiguousarray(node.value).reshape(node.shape)
        if node.number in otherwise or node.dtype not in (np.int64, np.uint64):
            continue
        if node.op == "Constant" and np.all(np.abs(node.value.astype(float)) < 1 << 31):
            node.dtype, node.value = np.dtype(np.int32), node.value.astype(np.int32)
        elif node.op == "AsType" and node.inputs[0].dtype.kind in "iu" and node.inputs[0].dtype.itemsize < 8:
            node.dtype = np.dtype(np.uint32 if node.inputs[0].dtype.kind == "u" else np.int32)
