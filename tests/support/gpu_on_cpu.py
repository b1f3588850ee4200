"""Kernels for a GPU as functions of this machine: their text is C++, and threads are rounds of a loop."""

import ctypes
import functools
import pathlib
import shutil
import subprocess
import tempfile

import mlx.core as mx
import numpy as np
import pytest

from genmlx.native.gpu import dialects
from genmlx.native.gpu.launch import Device
from genmlx.native.graph import MLX_DTYPES

COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++, which stands in for a GPU's compiler")

_TYPES = {mx.float32: "float", mx.uint32: "unsigned", mx.int32: "int"}
_PRELUDE = (
    "#define FUNCTION static inline\n#define PRIVATE\n#define GLOBAL\n#define WIDE long\n#define UNROLL\n"
    "FUNCTION float float_of_(unsigned x) { float y; __builtin_memcpy(&y, &x, 4); return y; }\n"
    "FUNCTION unsigned bits_of_(float x) { unsigned y; __builtin_memcpy(&y, &x, 4); return y; }\n"
    "FUNCTION float sinpi_(float x) { return std::sin(3.14159265358979323846 * x); }\n"
    "FUNCTION float cospi_(float x) { return std::cos(3.14159265358979323846 * x); }\n"
    + dialects._ROUNDED_ONCE
    + dialects._of_two(
        *[(f"{name}_", f"std::{name}") for name in ("pow", "fmod", "atan2", "copysign")],
    )
    + dialects._MADD.format("std::fma")
    + dialects._functions(
        *dialects._named("std::{}"),
        *dialects._exact("std::{}"),
        ("natural_exp_", "std::exp"),
        ("natural_log_", "std::log"),
    )
    + dialects._COMMON
)
_FLAGS = ["-O1", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Werror"]
_UNUSED = ["-Wno-unused-variable", "-Wno-unused-function", "-Wno-unused-but-set-variable", "-Wno-maybe-uninitialized"]


def make(name, input_names, output_names, source, header):
    """What ``mx.fast.cuda_kernel`` gives, on the CPU."""

    def launch(*, inputs, output_shapes, output_dtypes, grid, threadgroup):
        mx.eval(inputs)
        given = [np.ascontiguousarray(np.array(x)) for x in inputs]
        kinds = tuple(f"const {_TYPES[x.dtype]}*" for x in inputs) + tuple(f"{_TYPES[d]}*" for d in output_dtypes)
        names = (*input_names, *output_names)
        run = compiled(header, source, ", ".join(f"{kind} {own}" for kind, own in zip(kinds, names, strict=True)))
        made = {value: key for key, value in MLX_DTYPES.items()}
        found = [np.full(s, 7, made[d]) for s, d in zip(output_shapes, output_dtypes, strict=True)]
        whole = -(-grid[0] // threadgroup[0]) * threadgroup[0]  # as CUDA, which fills the last group
        arrays = [*given, *found]
        run(whole, (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays]))
        return [mx.array(a) for a in found]

    return launch


@functools.cache
def compiled(header, source, arguments):
    kinds = [part.strip().rsplit(" ", 1)[0] for part in arguments.split(",")]
    passed = ", ".join(f"({kind})arrays[{i}]" for i, kind in enumerate(kinds))
    text = (
        f"#include <cmath>\nstatic unsigned thread_;\n{header}\nstatic void kernel({arguments}) {{\n{source}\n}}\n"
        'extern "C" void run(unsigned n, void** arrays) '
        f"{{ for (thread_ = 0; thread_ < n; ++thread_) kernel({passed}); }}"
    )
    library = build(text, *_FLAGS, *_UNUSED)
    library.run.argtypes, library.run.restype = [ctypes.c_uint32, ctypes.c_void_p], None
    return library.run


def build(text, *flags):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "text.cpp"
        path.write_text(text)
        done = subprocess.run([COMPILER, *flags, str(path), "-o", f"{path}.so"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(f"{path}.so")


DEVICE = Device(dialects.Dialect("C++", "thread_", _PRELUDE, 1024), make)


def evaluated(f, rows, *parameters):
    """What the text of ``f(u, *parameters)``, a list of float arrays, gives for each row, flat; a thread for each."""
    return evaluated_with_scratch(f, rows, *parameters)[0]


def evaluated_with_scratch(f, rows, *parameters):
    """That, and what is in the memory ``[slots, threads]`` of all in the end."""
    from genmlx.native.gpu.text import density_text

    n, dim = rows.shape
    text = density_text(lambda u, *rest: [mx.array(one).reshape(-1) for one in f(u, *rest)], dim, parameters)
    starts = np.cumsum([0, *text.sizes]).tolist()
    outputs = "\n".join(f"float out{i}[{max(1, size)}];" for i, size in enumerate(text.sizes))
    passed = "".join(f"out{i}, " for i in range(len(text.sizes)))
    copies = "\n".join(
        f"for (int i = 0; i < {size}; ++i) out[({start} + i) * {n} + thread_] = out{k}[i];"
        for k, (size, start) in enumerate(zip(text.sizes, starts, strict=False))
    )
    source = (
        f"if (thread_ >= {n}) return;\nfloat u[{dim}];\n"
        f"for (int i = 0; i < {dim}; ++i) u[i] = rows[i * {n} + thread_];\n{outputs}\n"
        f"density({passed}u, reals, integers, scratch + thread_, {n});\n{copies}"
    )
    run = make("", ["rows", "reals", "integers"], ["out", "scratch"], source, _PRELUDE + text.source)
    data = [mx.array(np.ascontiguousarray(np.array(rows).T)), mx.array(text.reals), mx.array(text.integers)]
    shapes = [(max(1, starts[-1] * n),), (max(1, text.slots * n),)]
    found, scratch = run(inputs=data, output_shapes=shapes, output_dtypes=[mx.float32] * 2, grid=(n,), threadgroup=(8,))
    table = np.array(found).reshape(-1, n).T
    outputs = [table[:, a:b] for a, b in zip(starts, starts[1:], strict=False)]
    return outputs, np.array(scratch)[: text.slots * n].reshape(text.slots, n)


def assert_agrees(f, rows, *parameters, rtol=2e-6, least=0.0):
    """The text of a function that gives a list, or one array, against MLX: relative to the largest of each array.

    Or to ``least``, where that is larger.
    """

    def listed(u, *rest):
        found = f(u, *rest)
        found = found if isinstance(found, (list, tuple)) else [found]
        return [mx.array(one).astype(mx.float32) for one in found]

    own = evaluated(listed, rows, *parameters)
    for i, row in enumerate(rows):
        expected = listed(row, *parameters)
        assert len(own) == len(expected)
        for a, mlx in zip(own, expected, strict=True):
            a, b = a[i], np.array(mlx).reshape(-1)
            assert a.shape == b.shape
            finite = np.isfinite(b)
            np.testing.assert_array_equal(np.where(finite, 0, a), np.where(finite, 0, b))
            largest = np.abs(b[finite]).max(initial=least)
            np.testing.assert_allclose(a[finite], b[finite], rtol=rtol, atol=rtol * largest)
