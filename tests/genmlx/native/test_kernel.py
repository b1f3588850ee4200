"""Compiled functions as callers see them: arrays in and out, pointers, threads, lifetimes."""

import ctypes
import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from genmlx.errors import UsageError
from genmlx.native.graph import Untranslatable
from genmlx.native.kernel import compile_function

RNG = np.random.default_rng(0)
DATA = mx.array(RNG.normal(size=(200, 30)).astype(np.float32))


def energy(u, scale):
    """Needs memory of its own that does not fit the stack."""
    residual = mx.tanh(DATA @ u) * scale
    return [mx.sum(mx.square(residual)), DATA.T @ residual, mx.sort(mx.concatenate([mx.exp(residual)] * 4))]


U, SCALE = mx.array(RNG.normal(size=30).astype(np.float32)), mx.array(2.0)


def test_arrays_in_and_out():
    kernel = compile_function(energy, U, SCALE)
    assert [(f.shape, f.dtype) for f in kernel.inputs] == [((30,), mx.float32), ((), mx.float32)]
    assert [f.shape for f in kernel.outputs] == [(), (30,), (800,)]
    for _ in range(3):
        for own, mlx in zip(kernel(U, SCALE), energy(U, SCALE), strict=True):
            np.testing.assert_allclose(np.array(own), np.array(mlx), rtol=1e-5, atol=1e-4)


def test_inputs_in_any_memory_order():
    x = mx.array(RNG.normal(size=(3, 4)).astype(np.float32))
    kernel = compile_function(lambda x: [x * 2], mx.zeros((4, 3)))
    np.testing.assert_array_equal(np.array(kernel(x.T)[0]), 2 * np.array(x).T)
    np.testing.assert_array_equal(np.array(kernel(mx.broadcast_to(x[:1, :3], (4, 3)))[0]), 2 * np.array(x)[[0] * 4, :3])


def test_results_are_not_the_inputs():
    x = mx.array([1.0, 2.0])
    kernel = compile_function(lambda x: [x, x + 0.0], x)
    first, _ = kernel(x)
    x += 5
    mx.eval(x)
    assert first.tolist() == [1, 2]


def test_other_shapes_and_dtypes_are_refused():
    kernel = compile_function(lambda x: [x * 2], mx.zeros(3))
    for wrong in (mx.zeros(4), mx.zeros((3, 1)), mx.zeros(3, dtype=mx.int32)):
        with pytest.raises(ValueError, match="where the code is for"):
            kernel(wrong)
    with pytest.raises(ValueError, match="argument"):
        kernel(mx.zeros(3), mx.zeros(3))


def address(array):
    return array.__array_interface__["data"][0]


def table(*arrays):
    return (ctypes.c_void_p * len(arrays))(*[address(array) for array in arrays])


def test_the_pointer_in_many_threads():
    """Each with its own results and scratch memory; ctypes lets them run at once."""
    kernel = compile_function(energy, U, SCALE)
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(kernel.pointer)
    assert kernel.scratch_bytes > 0
    positions = RNG.normal(size=(8, 30)).astype(np.float32)
    expected = [[np.array(x) for x in kernel(mx.array(u), SCALE)] for u in positions]

    def work(i):
        scale = np.array(2.0, np.float32)
        results = [np.empty(form.shape, np.float32) for form in kernel.outputs]
        scratch = np.empty(kernel.scratch_bytes + 64, np.uint8)
        start = address(scratch) + -address(scratch) % 64
        inputs, outputs = table(positions[i], scale), table(*results)
        for _ in range(300):
            function(inputs, outputs, kernel.constants, start)
            for own, known in zip(results, expected[i], strict=True):
                np.testing.assert_array_equal(own, known)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_nothing_is_written_beyond_the_results_and_the_scratch_memory():
    kernel = compile_function(energy, U, SCALE)
    guard = 4096
    results = [np.full(int(np.prod(f.shape)) * 4 + 2 * guard, 0xA5, np.uint8) for f in kernel.outputs]
    scratch = np.full(kernel.scratch_bytes + 2 * guard + 64, 0xA5, np.uint8)
    offset = guard + -(address(scratch) + guard) % 64
    outputs = (ctypes.c_void_p * 3)(*[address(r) + guard for r in results])
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(kernel.pointer)
    function(table(np.array(U), np.array(SCALE)), outputs, kernel.constants, address(scratch) + offset)
    for result in results:
        assert (result[:guard] == 0xA5).all() and (result[-guard:] == 0xA5).all()
    assert (scratch[:offset] == 0xA5).all() and (scratch[offset + kernel.scratch_bytes :] == 0xA5).all()


def test_constants_outlive_their_owner():
    data = mx.array(RNG.normal(size=1000).astype(np.float32))
    mx.eval(data)
    expected = mx.sum(mx.square(data)).item()
    kernel = compile_function(lambda x, data=data: [mx.sum(x * mx.square(data))], mx.array(1.0))
    del data
    gc.collect()
    mx.clear_cache()
    held = [mx.full((1000,), float(i)) for i in range(50)]  # what might be put in its place
    mx.eval(held)
    assert kernel(mx.array(1.0))[0].item() == pytest.approx(expected, rel=1e-5)


def test_a_function_that_is_not_used_any_more_is_let_go():
    kernel = compile_function(lambda x: [x * 2], mx.zeros(3))
    gone = weakref.ref(kernel)
    del kernel
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("dtype", [mx.float64, mx.int32, mx.uint32, mx.bool_, mx.int64, mx.uint8], ids=str)
def test_results_of_every_dtype(dtype):
    x = mx.array([0, 1, 2, 3]).astype(dtype, stream=mx.cpu)
    with mx.stream(mx.cpu):
        (own,) = compile_function(lambda x: [mx.maximum(x, x[1])], x)(x)
    assert own.dtype == dtype and own.tolist() == [1, 1, 2, 3] if dtype != mx.bool_ else [True] * 4


def test_double_precision_is_that_of_numpy():
    """MLX itself computes some functions of float64 in float32."""
    u = RNG.uniform(0.1, 2, 50)
    x = mx.array(u, dtype=mx.float64)
    with mx.stream(mx.cpu):
        (own,) = compile_function(lambda x: [mx.logsumexp(mx.exp(x) * mx.log1p(x)) + mx.sum(mx.tanh(x))], x)(x)
    v = np.exp(u) * np.log1p(u)
    assert own.item() == pytest.approx(v.max() + np.log(np.exp(v - v.max()).sum()) + np.tanh(u).sum(), rel=1e-15)


def test_without_llvmlite_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    with pytest.raises(UsageError, match="llvmlite.*not installed\n.*genmlx\\[native\\]|llvmlite") as error:
        compile_function(lambda x: [x], mx.zeros(1))
    assert error.value.hint == "pip install 'genmlx[native]'"


def test_importing_the_library_does_not_import_llvmlite():
    program = "import sys, genmlx, genmlx.native.kernel; print('llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "False"


def test_a_refusal_is_an_error_of_this_library():
    with pytest.raises(Untranslatable) as error:
        compile_function(lambda x: [mx.linalg.solve(x, x, stream=mx.cpu)], mx.eye(2))
    assert error.value.what == "primitive LUF"


def test_empty_arrays():
    x = mx.zeros((0,))
    kernel = compile_function(lambda x: [mx.sum(x), x * 2, mx.concatenate([x, mx.ones(2)])], x)
    total, same, joined = kernel(x)
    assert total.item() == 0 and same.shape == (0,) and joined.tolist() == [1, 1]
