"""Every primitive, in many shapes, views and nests of transformations: native code agrees with MLX."""

import functools
import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from genmlx.native.kernel import compile_function

F32, F64, I32, U32, BOOL = mx.float32, mx.float64, mx.int32, mx.uint32, mx.bool_


def real(*shape, low=-2.0, high=2.0, seed=0, dtype=np.float32):
    values = np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(dtype)
    return mx.array(values, dtype=F64 if dtype == np.float64 else F32)


def whole(*shape, low=0, high=5, seed=0, dtype=np.int32):
    return mx.array(np.random.default_rng([seed, *shape]).integers(low, high, shape).astype(dtype))


def truth(*shape, seed=0):
    return mx.array(np.random.default_rng([seed, *shape]).random(shape) < 0.5)


def positive_definite(n, *lead, dtype=np.float32):
    a = np.random.default_rng([n, *lead]).normal(size=(*lead, n, n))
    return mx.array(
        (a @ np.swapaxes(a, -1, -2) + n * np.eye(n)).astype(dtype), dtype=F64 if dtype == np.float64 else F32
    )


def assert_agrees(f, *arrays, rtol=2e-6):
    """Native results against MLX's: integers and booleans exactly, floats relative to the largest of the array."""
    mx.eval(arrays)
    listed = f if isinstance(f(*arrays), (list, tuple)) else lambda *a: [f(*a)]
    native = compile_function(lambda *a: list(listed(*a)), *arrays)(*arrays)
    expected = listed(*arrays)
    assert len(native) == len(expected)
    for own, mlx in zip(native, expected, strict=True):
        assert (own.shape, own.dtype) == (mlx.shape, mlx.dtype)
        a, b = np.array(own), np.array(mlx)
        if b.dtype.kind == "f":
            finite = np.isfinite(b)
            scale = np.abs(b[finite]).max(initial=0.0)
            np.testing.assert_array_equal(np.where(finite, 0, a), np.where(finite, 0, b))
            np.testing.assert_allclose(a[finite], b[finite], rtol=rtol, atol=rtol * scale)
        else:
            np.testing.assert_array_equal(a, b)


UNARY = {
    name: (getattr(mx, name), low, high)
    for name, low, high in [
        ("abs", -3, 3), ("negative", -3, 3), ("exp", -5, 5), ("log", 0.01, 9), ("log2", 0.01, 9), ("log10", 0.01, 9),
        ("log1p", -0.9, 9), ("expm1", -3, 3), ("tanh", -3, 3), ("erfinv", -0.99, 0.99), ("sin", -9, 9),
        ("cos", -9, 9), ("tan", -1.4, 1.4), ("arcsin", -1, 1), ("arccos", -1, 1), ("arctan", -9, 9), ("sinh", -3, 3),
        ("cosh", -3, 3), ("arcsinh", -3, 3), ("arccosh", 1.01, 9), ("arctanh", -0.9, 0.9), ("sqrt", 0, 9),
        ("rsqrt", 0.01, 9), ("square", -3, 3), ("reciprocal", 0.1, 3), ("floor", -9, 9), ("ceil", -9, 9),
        ("round", -9, 9), ("sign", -3, 3), ("isnan", -3, 3), ("isinf", -3, 3), ("isfinite", -3, 3), ("degrees", -3, 3),
        ("nan_to_num", -3, 3), ("logical_not", -3, 3), ("sigmoid", -3, 3),
    ]
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number(name):
    f, low, high = UNARY[name]
    for shape in ((), (3,), (5, 7), (2, 1, 33)):
        assert_agrees(f, real(*shape, low=low, high=high), rtol=5e-6)


@pytest.mark.parametrize("name", UNARY)
def test_derivatives_of_functions_of_one_number(name):
    f, low, high = UNARY[name]
    x = real(6, low=low, high=high)
    if f(x).dtype == F32:
        assert_agrees(mx.grad(lambda x: mx.sum(f(x) * x)), x, rtol=1e-5)


BINARY = (
    "add subtract multiply divide floor_divide remainder divmod power maximum minimum logaddexp arctan2 equal less "
    "greater not_equal less_equal greater_equal logical_and logical_or outer"
).split()


@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_numbers(name):
    f = getattr(mx, name)
    positive = {"low": 0.1} if name == "power" else {}
    for one, other in (((), ()), ((4, 5), (4, 5)), ((4, 1), (5,)), ((), (3, 2))):
        assert_agrees(f, real(*one, seed=1, **positive), real(*other, seed=2), rtol=5e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int8, np.uint8, np.int64, np.uint64, np.int16, np.uint16])
def test_integers(dtype):
    low = 0 if np.dtype(dtype).kind == "u" else -9
    a, b = whole(40, low=low, high=30, seed=1, dtype=dtype), whole(40, low=1, high=7, seed=2, dtype=dtype)
    for name in "add subtract multiply floor_divide remainder divmod maximum minimum equal less greater_equal".split():
        assert_agrees(getattr(mx, name), a, b)
    for name in "bitwise_and bitwise_or bitwise_xor".split():
        assert_agrees(getattr(mx, name), a, b)
    assert_agrees(lambda a, b: [a << b, a >> b, mx.abs(a), mx.sign(a), a / b, -b, mx.square(a)], a, b)
    assert_agrees(lambda a: [mx.sum(a), mx.max(a), mx.min(a), mx.prod(a[:3]), mx.any(a), mx.all(a)], a)
    assert_agrees(lambda a, b: [a // -b, mx.remainder(a, -b)], a, b) if low else None


def test_numbers_that_have_no_order_and_integers_that_have_no_quotient():
    odd = mx.array([0.0, -0.0, math.nan, 1.0, math.nan, math.inf, -math.inf])
    assert_agrees(lambda a, b: [mx.maximum(a, b), mx.minimum(a, b)], odd[:, None], odd[None])
    a, b = mx.array([-(2**31), 5, 0, -7]), mx.array([-1, 0, 0, 2])  # MLX itself ends the process with the first two
    quotient, rest = compile_function(lambda a, b: [a // b, mx.remainder(a, b)], a, b)(a, b)
    assert quotient.tolist() == [-(2**31), 0, 0, -4] and rest.tolist() == [0, 5, 0, 1]


DTYPES = [mx.bool_, mx.uint8, mx.int8, mx.uint16, mx.int16, mx.int32, mx.uint32, mx.int64, mx.uint64, F32]


@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("target", DTYPES, ids=str)
def test_casts(source, target):
    x = real(20, low=0, high=100).astype(source)
    assert_agrees(lambda x: x.astype(target), x)
    if source in (F32, mx.int32, mx.int8) and target not in (mx.uint8, mx.uint16, mx.uint32, mx.uint64):
        assert_agrees(lambda x: x.astype(target), -x)


def test_bits_as_other_numbers():
    assert_agrees(lambda x: [x.view(mx.int32), x.view(mx.uint32).view(F32)], real(5))


VIEWS = {
    "transpose": lambda x: x.T,
    "transpose 3": lambda x: mx.transpose(x.reshape(2, 3, 4), (2, 0, 1)) * 2,
    "transpose and reshape": lambda x: x.T.reshape(-1),
    "reshape of an expression": lambda x: (x.T * 2 + 1).reshape(4, 6),
    "flatten": lambda x: mx.flatten(x) + 1,
    "unflatten": lambda x: mx.unflatten(x, 0, (2, 2)) * 3,
    "merge of an expression": lambda x: mx.exp(x).reshape(2, 12)[:, ::5],
    "slice": lambda x: x[1:3, ::2],
    "reversed": lambda x: x[::-1, ::-2],
    "negative step": lambda x: x[3:0:-2],
    "one": lambda x: x[2] * x[-1],
    "columns": lambda x: x[:, 1] + x[:, -1],
    "new axes": lambda x: x[:, None] * x[None],
    "broadcast": lambda x: mx.broadcast_to(x[:, :1], (3, 4, 6)) + x,
    "split": lambda x: mx.split(x, 2, axis=1),
    "split at": lambda x: mx.split(x, [1, 4], axis=1),
    "strided": lambda x: mx.as_strided(x, (2, 3), (7, 2), 1) * 2,
    "strided expression": lambda x: mx.as_strided(mx.exp(x), (2, 3), (5, 2), 3),
    "swapped": lambda x: mx.swapaxes(x, 0, 1) @ x,
    "moved": lambda x: mx.moveaxis(x.reshape(2, 2, 6), 0, 2).reshape(-1),
    "repeat": lambda x: mx.repeat(x, 3, axis=0),
    "tile": lambda x: mx.tile(x, (2, 3)),
    "roll": lambda x: mx.roll(x, 5),
    "diagonal": lambda x: mx.diagonal(x),
    "tril": lambda x: [mx.tril(x), mx.triu(x, 1)],
    "pad": lambda x: mx.pad(x, ((1, 0), (2, 3)), constant_values=3.0),
    "concatenate": lambda x: mx.concatenate([x, x * 2, x[:1]], axis=0),
    "concatenate columns": lambda x: mx.concatenate([x[:, :2], mx.exp(x)], axis=1),
    "stack": lambda x: mx.stack([x, -x, x * x], axis=1),
    "meshgrid": lambda x: mx.meshgrid(x[0], x[:, 0]),
    "linspace": lambda x: x[0, 0] * mx.linspace(0, 1, 7),
    "arange": lambda x: x[0] * mx.arange(0, 3, 0.5),
    "eye": lambda x: x[:, :4] @ mx.eye(4),
    "squeeze": lambda x: mx.squeeze(x[1:2, None]),
    "same twice": lambda x: [x, x, x + 1, x + 1],
    "constants": lambda x: [mx.array([1.0, 2.0]), x],
    "set": lambda x: x.at[1:3].add(5.0),
    "set multiply": lambda x: x.at[1:3, ::2].multiply(x[:2, ::2]),
    "set minimum": lambda x: [x.at[1:3].minimum(0.1), x.at[1:3].maximum(0.1)],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name):
    assert_agrees(VIEWS[name], real(4, 6))


@pytest.mark.parametrize("name", VIEWS)
def test_derivatives_through_views(name):
    def total(x):
        found = VIEWS[name](x)
        found = found if isinstance(found, (list, tuple)) else [found]
        return sum(mx.sum(mx.square(one) * mx.arange(one.size).reshape(one.shape)) for one in found)

    assert_agrees(mx.value_and_grad(total), real(4, 6), rtol=5e-6)


@pytest.mark.parametrize("name", VIEWS)
def test_views_in_a_batch(name):
    if name not in ("constants", "strided", "strided expression"):  # the last two have no batched form in MLX
        assert_agrees(mx.vmap(VIEWS[name]), real(3, 4, 6), rtol=5e-6)


REDUCTIONS = "sum prod max min mean var std any all logsumexp argmax argmin".split()


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name):
    f = getattr(mx, name)
    x = real(3, 1, 5, 4, low=0.5, high=1.5)
    for axis in (None, 0, 1, 2, 3, (0, 2), (1, 3), (0, 1, 2), (2, 3)):
        if not (name.startswith("arg") and isinstance(axis, tuple)):
            assert_agrees(lambda x, axis=axis: [f(x, axis=axis), f(x * x, axis=axis, keepdims=True)], x)


@pytest.mark.parametrize("shape", [(1000,), (37, 100), (100, 37), (2, 300, 3)])
def test_long_sums(shape):
    x = real(*shape, low=0, high=1)
    exact = np.array(x).astype(np.float64)
    for axis in range(len(shape)):
        (own,) = compile_function(lambda x, axis=axis: [mx.sum(x, axis=axis)], x)(x)
        np.testing.assert_allclose(np.array(own), exact.sum(axis), rtol=1e-6)


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min", "logsumexp", "softmax", "mean", "var"])
def test_derivatives_of_reductions(name):
    x = real(4, 5, low=0.5, high=1.5)
    weights = real(4, 5, seed=3)
    f = getattr(mx, name)
    for axis in (0, 1):
        kept = {} if name == "softmax" else {"keepdims": True}
        assert_agrees(mx.grad(lambda x, axis=axis, kept=kept: mx.sum(f(x, axis=axis, **kept) * weights)), x, rtol=5e-6)


def test_normalised():
    x = real(5, 9, low=-9, high=9)
    assert_agrees(lambda x: [mx.softmax(x, axis=-1), mx.softmax(x, axis=0), mx.softmax(x)], x, rtol=1e-5)
    assert_agrees(lambda x: [mx.logsumexp(x, axis=-1), mx.logsumexp(x, axis=0), mx.logsumexp(x)], x)
    odd = mx.array([[-math.inf, -math.inf], [math.inf, 1.0], [math.nan, 1.0], [-math.inf, 2.0]])
    rows = [mx.logsumexp, mx.softmax, mx.max, mx.min]
    assert_agrees(lambda x: [f(x, axis=-1) for f in rows], odd)


@pytest.mark.parametrize("name", ["cumsum", "cumprod", "cummax", "cummin"])
def test_scans(name):
    f = getattr(mx, name)
    x = real(4, 7, low=0.5, high=1.5)
    for axis, reverse, inclusive in itertools.product((0, 1), (False, True), (False, True)):
        scan = functools.partial(f, axis=axis, reverse=reverse, inclusive=inclusive)
        assert_agrees(lambda x, scan=scan: scan(x * x), x)
    assert_agrees(lambda x: f(x, axis=0), whole(6, 2, low=1))
    if name in ("cumsum", "cumprod"):
        assert_agrees(mx.grad(lambda x: mx.sum(f(x, axis=1) * x)), x, rtol=1e-5)


PRODUCTS = {
    "matrices": (lambda a, b: a @ b, (6, 5), (5, 7)),
    "left transposed": (lambda a, b: a.T @ b, (5, 6), (5, 7)),
    "right transposed": (lambda a, b: a @ b.T, (6, 5), (7, 5)),
    "both transposed": (lambda a, b: a.T @ b.T, (5, 6), (7, 5)),
    "matrix and vector": (lambda a, b: a @ b, (40, 20), (20,)),
    "transposed matrix and vector": (lambda a, b: a.T @ b, (20, 40), (20,)),
    "vector and matrix": (lambda a, b: b @ a, (20, 40), (20,)),
    "vectors": (lambda a, b: a @ b, (30,), (30,)),
    "expressions": (lambda a, b: mx.exp(a) @ mx.tanh(b + 1), (6, 5), (5, 7)),
    "batched": (lambda a, b: a @ b, (3, 6, 5), (3, 5, 7)),
    "batch and one": (lambda a, b: a @ b, (3, 6, 5), (5, 7)),
    "one and batch": (lambda a, b: a @ b, (6, 5), (3, 5, 7)),
    "batches that broadcast": (lambda a, b: a @ b, (2, 1, 6, 5), (3, 5, 7)),
    "batched transposed": (lambda a, b: mx.swapaxes(a, -1, -2) @ b, (3, 5, 6), (3, 5, 7)),
    "batched slices": (lambda a, b: a[:, ::2] @ b[..., 1:3], (3, 6, 5), (3, 5, 7)),
    "plus": (lambda a, b: mx.addmm(mx.sum(b, axis=0), a, b, 0.5, 3.0), (6, 5), (5, 7)),
    "outer": (lambda a, b: mx.outer(a, b), (6,), (7,)),
    "inner": (lambda a, b: mx.inner(a, b), (6, 5), (7, 5)),
    "einsum": (lambda a, b: mx.einsum("ijk,kl->ijl", a, b), (2, 3, 4), (4, 5)),
    "tensordot": (lambda a, b: mx.tensordot(a, b, axes=2), (2, 3, 4), (3, 4, 5)),
    "large": (lambda a, b: a @ b, (13, 37), (37, 41)),
    "large transposed": (lambda a, b: a @ b.T, (13, 37), (41, 37)),
    "large batch transposed": (lambda a, b: a @ mx.swapaxes(b, -1, -2), (3, 13, 37), (3, 41, 37)),
    "large plus": (lambda a, b: mx.addmm(a[:, :1], a, b.T, 2.0, -1.0), (13, 37), (41, 37)),
    "thin": (lambda a, b: a @ b, (50, 2), (2, 3)),
    "long": (lambda a, b: a @ b, (3, 500), (500, 3)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    f, one, other = PRODUCTS[name]
    a, b = real(*one, seed=1), real(*other, seed=2)
    assert_agrees(f, a, b)
    gradients = mx.grad(lambda a, b: mx.sum(mx.square(f(a, b))), argnums=(0, 1))
    assert_agrees(lambda a, b: list(gradients(a, b)), a, b, rtol=5e-6)


INDEXED = {
    "rows": lambda x, i: x[i],
    "columns": lambda x, i: x[:, i],
    "both": lambda x, i: x[i, i],
    "rows and slice": lambda x, i: x[i, 1:3],
    "take": lambda x, i: mx.take(x, i, axis=1),
    "flat": lambda x, i: mx.take(x, i),
    "of an expression": lambda x, i: mx.exp(x)[i] * x[i],
    "matrix of indices": lambda x, i: x[i.reshape(2, 2)],
    "along axis 1": lambda x, i: mx.take_along_axis(x, mx.broadcast_to(i[:4, None] % 3, (4, 2)), axis=1),
    "along axis 0": lambda x, i: mx.take_along_axis(x, mx.broadcast_to(i[:, None], (4, 6)), axis=0),
    "dynamic": lambda x, i: mx.slice(x, i[:2] % 2, (0, 1), (2, 3)),
    "dynamic update": lambda x, i: mx.slice_update(x, x[:2, :3] * 2, i[:2] % 2, (0, 1)),
    "add at": lambda x, i: x.at[i].add(x[:4] * 3),
    "add at columns": lambda x, i: x.at[:, i].add(1.5),
    "subtract at": lambda x, i: x.at[i].subtract(2.0),
    "multiply at": lambda x, i: x.at[i].multiply(2.0),
    "maximum at": lambda x, i: [x.at[i].maximum(0.5), x.at[i].minimum(0.5)],
    "put along": lambda x, i: mx.put_along_axis(x, i[:4, None] % 3, mx.array(7.0), axis=1),
    "scattered sum": lambda x, i: mx.zeros((5, 6)).at[i].add(x),
    "known rows": lambda x, i: x[mx.array([2, 0, 2])] + x[1],
}


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
@pytest.mark.parametrize("name", INDEXED)
def test_indices(name, dtype):
    x, i = real(4, 6), mx.array(np.array([3, 0, 3, 1], dtype))
    assert_agrees(INDEXED[name], x, i)
    if not name.startswith("dynamic"):  # which has no batched form in MLX
        assert_agrees(mx.vmap(INDEXED[name]), mx.stack([x, x * 2]), mx.stack([i, i[::-1]]))

    def total(x):
        found = INDEXED[name](x, i)
        found = found if isinstance(found, list) else [found]
        return sum(mx.sum(mx.square(one)) for one in found)

    if name not in ("multiply at", "maximum at", "put along"):
        assert_agrees(mx.grad(total), x, rtol=5e-6)


def test_indices_count_from_the_end():
    assert_agrees(lambda x, i: [x[i], x.at[i].add(1.0)], real(4, 6), mx.array([-1, 2, -4]))


def test_indices_beyond_an_array_stay_in_it():
    (own,) = compile_function(lambda x, i: [x[i]], real(4), mx.array([0, 0]))(real(4), mx.array([9, -9]))
    np.testing.assert_array_equal(np.array(own), np.array(real(4))[[3, 0]])


def test_assignment():
    def f(x, i):
        y = x * 1
        y[i] = 5.0
        z = x + 0
        z[1:3, ::2] = x[:2, ::2] * 3
        return [y, z]

    assert_agrees(f, real(4, 6), mx.array([2, 0]))


@pytest.mark.parametrize("n", [1, 2, 7, 64, 700])
def test_sorting(n):
    x = mx.array(np.random.default_rng(n).integers(0, 50, (3, n)).astype(np.float32))
    assert_agrees(lambda x: [mx.sort(x, axis=1), mx.argsort(x, axis=1), mx.sort(x, axis=0), mx.argsort(-x, axis=0)], x)
    assert_agrees(lambda x: [mx.argmax(x, axis=1), mx.argmin(x, axis=0), mx.sort(x.astype(mx.int32))], x)
    assert_agrees(lambda x: mx.sort(mx.partition(x, n // 2, axis=1)[:, : n // 2 + 1], axis=1), x)
    assert_agrees(mx.grad(lambda x: mx.sum(mx.sort(x, axis=1) * mx.arange(n))), x)


def test_sorting_puts_nan_last():
    x = mx.array([1.0, math.nan, -math.inf, 3.0, -0.0, math.nan, math.inf])
    assert_agrees(lambda x: [mx.sort(x), mx.argsort(x), mx.argmax(x), mx.argmin(x), mx.max(x), mx.min(x)], x)


RANDOM = {
    "split": lambda k: mx.random.split(k, 3),
    "split once": lambda k: mx.random.split(k),
    "normal": lambda k: mx.random.normal((5, 3), key=k),
    "odd": lambda k: mx.random.normal((7,), key=k),
    "one": lambda k: mx.random.normal((), key=k),
    "many": lambda k: mx.random.uniform(shape=(1001,), key=k),
    "truncated": lambda k: mx.random.truncated_normal(-1.0, 2.0, (9,), key=k),
    "integers": lambda k: mx.random.randint(0, 10, (9,), key=k),
    "bernoulli": lambda k: mx.random.bernoulli(0.3, (9,), key=k),
    "gumbel": lambda k: mx.random.gumbel((9,), key=k),
    "categorical": lambda k: mx.random.categorical(mx.arange(12.0).reshape(3, 4), key=k),
    "permutation": lambda k: mx.random.permutation(12, key=k),
    "laplace": lambda k: mx.random.laplace((6,), key=k),
    "nested": lambda k: mx.random.normal((4,), key=mx.random.split(mx.random.split(k)[0])[1]),
    "batch": lambda k: mx.vmap(lambda k: mx.random.normal((3,), key=k))(mx.random.split(k, 5)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers(name):
    assert_agrees(RANDOM[name], mx.random.key(17), rtol=3e-6)


def test_random_bits_are_the_same_bits():
    for n in (1, 2, 3, 8, 1001):
        key = mx.random.key(n)
        (own,) = compile_function(lambda k, n=n: [mx.random.split(k, n)], key)(key)
        np.testing.assert_array_equal(np.array(own), np.array(mx.random.split(key, n)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_factorisations(n, dtype):
    with mx.stream(mx.cpu):
        for a in (positive_definite(n, dtype=dtype), positive_definite(n, 3, dtype=dtype)):
            tolerance = 1e-5 if dtype == np.float32 else 1e-12
            assert_agrees(lambda a: [mx.linalg.cholesky(a), mx.linalg.cholesky(a, upper=True)], a, rtol=tolerance)
            assert_agrees(lambda a: mx.linalg.tri_inv(mx.linalg.cholesky(a)), a, rtol=tolerance)
            assert_agrees(lambda a: mx.linalg.tri_inv(mx.linalg.cholesky(a, upper=True), upper=True), a, rtol=tolerance)
            assert_agrees(lambda a: mx.linalg.cholesky_inv(mx.linalg.cholesky(a)), a, rtol=10 * tolerance)
            assert_agrees(lambda a: mx.linalg.solve_triangular(mx.linalg.cholesky(a), a), a, rtol=10 * tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_inverses(n, dtype):
    rng = np.random.default_rng(n)
    values = rng.normal(size=(3, n, n)).astype(dtype)
    values[1, 0, 0] = 0  # the first pivot of this one is elsewhere
    if n == 1:
        values[1] = 2
    a = mx.array(values, dtype=F64 if dtype == np.float64 else F32)
    with mx.stream(mx.cpu):
        (own,) = compile_function(lambda a: [mx.linalg.inv(a)], a)(a)
        exact = np.linalg.inv(values.astype(np.float64))
        scale = np.abs(exact).max() * np.linalg.cond(values).max() * np.finfo(dtype).eps
        np.testing.assert_allclose(np.array(own), exact, atol=10 * scale)
        batch = mx.vmap(lambda a: mx.linalg.tri_inv(mx.linalg.cholesky(a)))
        assert_agrees(batch, positive_definite(n, 3, dtype=dtype), rtol=1e-5 if dtype == np.float32 else 1e-12)


def test_a_matrix_without_a_factor_has_a_pivot_that_is_not_positive():
    a = mx.array([[1.0, 2.0], [2.0, 1.0]])
    (own,) = compile_function(lambda a: [mx.linalg.cholesky(a, stream=mx.cpu)], a)(a)
    assert not np.all(np.diagonal(np.array(own)) > 0)


slope = mx.grad(lambda x: mx.sum(mx.sin(x) * x * x))
NESTS = {
    "hessian": lambda x: mx.vmap(lambda v: mx.grad(lambda x: mx.sum(slope(x) * v))(x))(mx.eye(5)),
    "grad of vmap": mx.grad(lambda x: mx.sum(mx.vmap(lambda a: mx.exp(a) * mx.sum(x))(x))),
    "vmap of grad of vmap": mx.vmap(mx.grad(lambda a: mx.sum(mx.vmap(lambda b: mx.tanh(a * b))(mx.arange(4.0))))),
    "jvp": lambda x: [*mx.jvp(lambda x: mx.exp(x) * x, [x], [mx.ones_like(x)])][0],
    "where": mx.grad(lambda x: mx.sum(mx.where(x > 0, mx.log(mx.where(x > 0, x, 1.0)), x * x))),
    "clip": mx.grad(lambda x: mx.sum(mx.clip(x, -0.5, 0.5) * x)),
    "chain": lambda x: _chain(x, 300),
    "scalars": lambda x: _scalars(x, 60),
    "stop": mx.grad(lambda x: mx.sum(mx.stop_gradient(mx.exp(x)) * x)),
    "powers": lambda x: [x**2, x**3, x**1, x**0, x**-1, x**-2, mx.abs(x) ** 0.5, 2.0**x, mx.power(2.0, mx.round(x))],
    "centered": lambda x: (x - mx.mean(x)) / mx.sqrt(mx.var(x) + 1e-3) + mx.max(x) - mx.min(mx.exp(x)),
    "used twice": lambda x: [mx.sum(mx.exp(x)), mx.exp(x) / mx.sum(mx.exp(x)), mx.exp(x)[::2], mx.outer(mx.exp(x), x)],
}  # fmt: skip


def _chain(x, n):
    for i in range(n):
        x = x * 0.99 + (0.1 if i % 3 else mx.tanh(x) * 0.01)
    return x


def _scalars(x, n):
    return mx.value_and_grad(
        lambda x: sum((mx.square(x[i % 5] - i) * x[(i + 1) % 5] for i in range(n)), mx.array(0.0))
    )(x)


@pytest.mark.parametrize("name", NESTS)
def test_nests_of_transformations(name):
    assert_agrees(NESTS[name], real(5), rtol=5e-6)


def test_an_outer_axis_may_be_reduced_while_the_inner_one_is_kept():
    assert_agrees(lambda x: [mx.sum(x * x, axis=0), mx.sum(x, axis=(0, 1)), mx.max(mx.exp(x), axis=1)], real(6, 5, 40))


def test_logical_operations():
    a, b = truth(5, 6, seed=1), truth(5, 6, seed=2)
    assert_agrees(lambda a, b: [mx.logical_and(a, b), mx.logical_or(a, b), mx.logical_not(a), mx.where(a, b, a)], a, b)
    assert_agrees(lambda a, b: [a == b, a != b, a + b, a * b, mx.sum(a), mx.any(a, axis=0), mx.all(a, axis=1)], a, b)
    assert_agrees(lambda a: mx.argmax(a, axis=1), a)


def test_large_arrays_leave_the_stack():
    x = real(3000)
    assert_agrees(lambda x: [mx.sum(mx.exp(x)[:, None] * mx.tanh(x)[None], axis=0), mx.sort(mx.exp(x))], x, rtol=1e-5)
