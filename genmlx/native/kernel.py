"""A function of MLX arrays as machine code: ``compile_function``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from genmlx.native import fold, llvm, peepholes
from genmlx.native.graph import MLX_DTYPES, Graph, fingerprint, graph_of
from genmlx.native.promote import promoted


class Array(NamedTuple):
    """The form of an input or output."""

    shape: tuple[int, ...]
    dtype: mx.Dtype


class NativeFunction:
    """Machine code of a graph. Called with MLX arrays, it gives a list of them.

    ``pointer`` is the address of ``void f(void** inputs, void** outputs, void** constants, void* scratch)``, all of
    whose arrays are row-major and in one piece. It may run in several threads at once: each has its own outputs, which
    no input overlaps, and its own ``scratch_bytes`` bytes of scratch memory, aligned to 64. ``constants`` is the
    address of its table of constants, which like the code lives as long as this object. For several ``lanes``, the
    first input and the outputs have one more axis, the last: for each lane what the function is of.
    """

    def __init__(self, graph: Graph, lanes: int = 1):
        from genmlx.native.emit import NAME, emitted

        made = emitted(graph, lanes)
        more = (lanes,) if lanes > 1 else ()
        self._loaded = llvm.load(made.module)
        self.cached = self._loaded.cached
        self.pointer = self._loaded.address(NAME)
        self.inputs = [
            Array((*node.shape, *(more if i == 0 else ())), MLX_DTYPES[node.dtype])
            for i, node in enumerate(graph.inputs)
        ]
        self.outputs = [Array((*node.shape, *more), MLX_DTYPES[node.dtype]) for node in graph.outputs]
        self.scratch_bytes = made.scratch_bytes
        self._arrays = made.constants  # kept alive: the table has their addresses
        self._table = (ctypes.c_void_p * max(len(self._arrays), 1))(*[_address(array) for array in self._arrays])
        self.constants = ctypes.addressof(self._table)
        self._function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(self.pointer)
        self._results = [((*node.shape, *more), node.dtype) for node in graph.outputs]

    def __call__(self, *arrays: mx.array) -> list[mx.array]:
        mx.eval(arrays)
        inputs = [self._given(array, form) for array, form in zip(arrays, self.inputs, strict=True)]
        outputs = [np.empty(shape, dtype) for shape, dtype in self._results]
        scratch = np.empty(self.scratch_bytes + _ALIGNMENT, np.uint8)
        start = _address(scratch)
        self._function(_table(inputs), _table(outputs), self.constants, start + -start % _ALIGNMENT)
        return [_array(output) for output in outputs]

    def _given(self, array: mx.array, form: Array) -> np.ndarray:
        if tuple(array.shape) != form.shape or array.dtype != form.dtype:
            raise ValueError(f"an array {array.dtype} {list(array.shape)}, where the code is for {form}")
        return np.ascontiguousarray(np.asarray(array))


_ALIGNMENT = 64
_MOST = 4  # functions that are known together, with their constants
Known = dict[tuple[str, int], NativeFunction]


def compile_function(
    f: Callable[..., Sequence[mx.array]], *arrays: mx.array, lanes: int = 1, known: Known | None = None
) -> NativeFunction:
    """``f``, which takes arrays and gives a list of arrays, as machine code for arrays of these shapes and dtypes.

    What ``f`` closes over is a constant. With ``lanes``, a power of two, it is computed for so many first arrays at
    once: the first array and the results are ``[*shape, lanes]`` then. Raises Untranslatable, naming the primitive, for
    what has no native form, or none in lanes, and UsageError where llvmlite is not installed. What is ``known``, by
    graphs, is not compiled again, and what is compiled is known then.

    >>> double = compile_function(lambda x: [2 * x, mx.sum(x)], mx.zeros(3))
    >>> double(mx.array([1.0, 2.0, 3.0]))
    [array([2, 4, 6], dtype=float32), array(6, dtype=float32)]
    """
    llvm.binding()
    return _code_of(graph_of(f, *arrays), lanes, known)


def compile_in_float64(
    f: Callable[..., Sequence[mx.array]], *arrays: mx.array, lanes: int = 1, known: Known | None = None
) -> NativeFunction:
    """``f``, a function of float32 arrays, as machine code for float64 arrays: see ``promote.py``.

    >>> third = compile_in_float64(lambda x: [x / 3], mx.array(1.0))
    >>> third(mx.array(1.0, dtype=mx.float64))[0].item()
    0.3333333333333333
    """
    llvm.binding()
    return _code_of(promoted(graph_of(f, *arrays)), lanes, known)


def _code_of(graph: Graph, lanes: int, known: Known | None) -> NativeFunction:
    if known is None:
        return NativeFunction(optimised(graph), lanes)
    which = fingerprint(graph), lanes
    made = known.pop(which, None) or NativeFunction(optimised(graph), lanes)
    known[which] = made  # the last that was asked for comes last
    while len(known) > _MOST:
        known.pop(next(iter(known)))
    return made


def optimised(graph: Graph) -> Graph:
    return fold.folded(peepholes.improved(fold.folded(graph)))


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _table(arrays: list[np.ndarray]) -> Any:
    return (ctypes.c_void_p * max(len(arrays), 1))(*[_address(array) for array in arrays])


def _array(values: np.ndarray) -> mx.array:
    if values.dtype == np.float64:
        return mx.array(values, dtype=mx.float64)
    return mx.array(values)
