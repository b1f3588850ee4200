"""Machine code for several first arrays at once: each lane gives what the code for one array gives.

The cases are those of ``test_fuzz.py``, where that code is compared with MLX.
"""

import importlib.util
import inspect
import itertools
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from scipy import special

from genmlx.inference.log_density import LogDensity
from genmlx.native.graph import Untranslatable
from genmlx.native.kernel import compile_function, optimised
from genmlx.native.lanes import differing

LANES = 4


def beside(name):
    spec = importlib.util.spec_from_file_location(f"native_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZ, MODELS = beside("test_fuzz"), beside("test_models")
EXACT = {
    "functions_of_one_number", "functions_of_two_numbers", "integers", "casts", "bits_as_other_numbers", "views",
    "logical_operations", "numbers_that_have_no_order_and_integers_that_have_no_quotient",
}  # fmt: skip
"""Elementwise, and the same instructions in a vector: the same bits."""


def cases():
    for name, test in vars(FUZZ).items():
        if name.startswith("test_") and "assert_agrees" in inspect.getsource(test):
            marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
            for values in itertools.product(*[mark.args[1] for mark in marks]):
                given = {}
                for mark, value in zip(marks, values, strict=True):
                    names = [one.strip() for one in mark.args[0].split(",")]
                    given |= dict(zip(names, value if len(names) > 1 else [value], strict=True))
                shown = " ".join(str(getattr(value, "__name__", value)) for value in given.values())
                yield pytest.param(name, given, id=f"{name.removeprefix('test_')} {shown}".strip())


def variants(x):
    """One array for each lane: none equal to another, where its elements are not."""
    values = np.array(x)
    if values.dtype.kind == "f":
        return [(values * (1 - 0.03 * i)).astype(values.dtype) for i in range(LANES)]
    return [np.roll(values.reshape(-1), i).reshape(values.shape) for i in range(LANES)]


def as_mlx(values):
    return mx.array(values, dtype=mx.float64) if values.dtype == np.float64 else mx.array(values)


def assert_lanes_agree(f, first, *rest, exact, rtol):
    mx.eval(first, rest)
    listed = f if isinstance(f(first, *rest), (list, tuple)) else lambda *a: [f(*a)]

    def g(*arrays):
        return list(listed(*arrays))

    one = compile_function(g, first, *rest)
    several = compile_function(g, first, *rest, lanes=LANES)
    inputs = variants(first)
    found = several(as_mlx(np.ascontiguousarray(np.stack(inputs, axis=-1))), *rest)
    for i, own in enumerate(inputs):
        for a, b in zip(found, one(as_mlx(own), *rest), strict=True):
            a, b = np.array(a)[..., i], np.array(b)
            if exact or b.dtype.kind != "f":
                np.testing.assert_array_equal(a, b)
            else:
                finite = np.isfinite(b)
                np.testing.assert_array_equal(np.where(finite, 0, a), np.where(finite, 0, b))
                scale = np.abs(b[finite]).max(initial=0.0)
                np.testing.assert_allclose(a[finite], b[finite], rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("name, given", list(cases()))
def test_lanes_of_all_primitives(monkeypatch, name, given):
    """What is refused says so; it is listed in ``test_what_has_no_lanes``."""

    def agrees(f, *arrays, rtol=2e-6):
        try:
            exact = name.removeprefix("test_") in EXACT and given.get("name") != "swapped"  # which is a product
            assert_lanes_agree(f, *arrays, exact=exact, rtol=rtol)
        except Untranslatable as error:
            assert "differs between lanes" in str(error)

    monkeypatch.setattr(FUZZ, "assert_agrees", agrees)
    getattr(FUZZ, name)(**given)


A = mx.array(np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32))


@pytest.mark.parametrize("call, observations", list(MODELS.densities()))
def test_lanes_of_densities(call, observations):
    """Of all families and models; those with an order or a Cholesky factor of what differs are among them."""
    density = LogDensity(call, observations)
    f, parameters = density.of_one(True)
    points = MODELS.single(0.7 * np.random.default_rng(0).normal(size=(density.dim, LANES)))
    one = compile_function(f, mx.zeros(density.dim), *parameters)
    several = compile_function(f, mx.zeros(density.dim), *parameters, lanes=LANES)(points, *parameters)
    for i in range(LANES):
        own = [mx.array(np.array(found)[..., i]) for found in several]
        MODELS.assert_close(own, one(points[:, i], *parameters), 1e-4 if call.gen_fn.__name__ == "model" else 2e-5)


@pytest.mark.parametrize(
    "f, first, said",
    [
        (lambda x: [mx.sort(x)], A, "primitive Sort"),
        (lambda x: [mx.argmax(x)], A, "primitive ArgReduce"),
        (lambda x: [A[x]], mx.array([1, 2]), "an index"),
        (lambda x: [A.at[x].add(1.0)], mx.array([1, 2]), "an index"),
        (lambda x: [mx.linalg.inv(x, stream=mx.cpu)], A, "primitive Inverse"),
        (lambda x: [mx.random.normal((3,), key=x)], mx.random.key(0), "primitive RandomBits"),
    ],
    ids=["sort", "argmax", "gather", "scatter", "inverse", "random"],
)
def test_what_has_no_lanes(f, first, said):
    with pytest.raises(Untranslatable, match=f"{said} .*differs between lanes"):
        compile_function(f, first, lanes=LANES)


def test_what_is_refused_of_the_first_input_is_not_of_others():
    y, i = mx.array([3.0, 1.0, 2.0]), mx.array([2, 0])
    assert_lanes_agree(
        lambda x, y, i: [mx.sort(y) * x, x[i] + y[i], x.at[i].add(y[i])], y * 2, y, i, exact=True, rtol=0
    )


def test_what_differs_does_not_go_where_what_does_not_is():
    """The array that an update changes, and nobody else reads, is changed in place elsewhere."""
    x, y = mx.array([1.0, 2.0]), FUZZ.positive_definite(5)
    for f in (
        lambda x, y: [mx.cumsum(y[0]).at[1:3].add(x)],
        lambda x, y: [mx.cumsum(y[0]).at[mx.array([0, 3])].add(x)],
        lambda x, y: [mx.linalg.cholesky(y, stream=mx.cpu).at[1:3, 2].add(x)],
    ):
        assert_lanes_agree(f, x, y, exact=True, rtol=0)


def test_outputs_that_differ_in_no_lane_are_in_all():
    f = compile_function(lambda x, y: [y * 2, y, mx.ones(2), x + mx.sum(y)], mx.zeros(1), mx.zeros(2), lanes=LANES)
    y = mx.array([1.0, 2.0])
    doubled, same, ones, plus = map(np.array, f(mx.zeros((1, LANES)), y))
    assert np.all(doubled == np.array([[2.0], [4.0]])) and np.all(same == np.array([[1.0], [2.0]]))
    assert np.all(ones == 1) and doubled.shape == same.shape == ones.shape == (2, LANES) and np.all(plus == 3.0)


@pytest.mark.parametrize("n", [15, 17, 1000, 100_000])
def test_long_sums_lose_no_more_digits_than_those_of_one_array(n):
    """By partial sums: of 1e5 numbers one float32 sum after the other is off by 1e-5 and more."""
    x = mx.array(np.random.default_rng(0).uniform(size=n).astype(np.float32))
    lanes = compile_function(lambda w, x: [mx.sum(x * w), mx.prod(1 + x * w * (1 / n))], mx.ones(1), x, lanes=LANES)
    sums, products = map(np.array, lanes(mx.array(np.ones((1, LANES), np.float32)), x))
    np.testing.assert_allclose(sums, np.sum(np.array(x), dtype=np.float64), rtol=1e-6)
    if n <= 1000:  # more such factors are lost to rounding, which makes each product smaller
        factors = np.array(1 + x * (1 / n))
        np.testing.assert_allclose(products, np.prod(factors, dtype=np.float64), rtol=3e-6)


def test_a_long_product_with_data_loses_no_more_digits():
    """By sums of blocks: one sum after the other would be off by 2e-5, and four sums by 4e-6."""
    rows = mx.array(np.random.default_rng(0).uniform(size=(100_000, 3)).astype(np.float32))
    (found,) = compile_function(lambda w, rows: [rows.T @ (rows @ w)], mx.ones(3), rows, lanes=LANES)(
        mx.ones((3, LANES)), rows
    )
    exact = np.array(rows).astype(np.float64)
    np.testing.assert_allclose(np.array(found).T, np.broadcast_to(exact.T @ exact.sum(1), (LANES, 3)), rtol=1e-6)


def test_a_long_normalisation_loses_no_more_digits():
    x = np.random.default_rng(0).uniform(size=50_000).astype(np.float32)
    lanes = compile_function(lambda x: [mx.logsumexp(x) - 11.0, mx.softmax(x)], mx.array(x), lanes=LANES)
    value, shares = map(np.array, lanes(mx.array(np.stack([x] * LANES, axis=-1))))
    exact = special.logsumexp(x.astype(np.float64)) - 11.0
    np.testing.assert_allclose(value, exact, atol=2e-6)
    np.testing.assert_allclose(shares[:, 2], special.softmax(x.astype(np.float64)), rtol=1e-6)


def test_lanes_do_not_mix():
    """A lane of numbers that have no value leaves the others alone."""
    f = compile_function(lambda x: [mx.exp(x), mx.logsumexp(x), mx.sum(mx.log(x)), x @ x], mx.zeros(3), lanes=LANES)
    given = np.full((3, LANES), 0.5, np.float32)
    alone = [np.array(a)[..., 0] for a in f(mx.array(given))]
    given[:, 1], given[:, 3] = math.nan, -math.inf
    for a, b in zip(f(mx.array(given)), alone, strict=True):
        assert np.array_equal(np.array(a)[..., 0], b) and np.array_equal(np.array(a)[..., 2], b)


def test_what_does_not_differ_is_computed_once():
    """Numbers for all lanes are in loops of their own, over which LLVM makes vectors."""
    from genmlx.native.emit import Emitter
    from genmlx.native.graph import graph_of

    graph = optimised(graph_of(lambda x, y: [mx.sum(x - mx.log(y))], mx.zeros(20), mx.ones(20)))
    emitter = Emitter(graph, LANES)
    emitter.emit()
    (log,) = [node for node in graph.nodes if node.op == "Log"]
    assert log.number not in differing(graph) and emitter.buffers[log.number].lanes == 1
    (nest,) = [nest for nest in emitter.plan.nests if log in nest.nodes]
    assert nest.nodes == [log]
