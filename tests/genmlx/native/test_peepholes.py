"""Rewritten graphs: the same values, at the places where the rewriting could go wrong."""

import gc
import math
import weakref

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from genmlx import gen, normal, nuts, trace
from genmlx.native import kernel as kernel_module
from genmlx.native.graph import fingerprint, graph_of
from genmlx.native.kernel import compile_function, optimised

F64 = mx.float64
X = np.array([0.0, -0.0, 1.0, -3.5, 1e-300, 1e300, np.inf, -np.inf, np.nan, 7.0])


def ops(f, *arrays):
    return [node.op for node in optimised(graph_of(f, *arrays)).nodes if node.size > 1]


@pytest.mark.parametrize("number", [3.0, -0.7, 1e-30, 1e30, 0.0, -0.0, np.inf, np.nan])
def test_quotients_by_one_number(number):
    """Within 2 ulp of float64, and the same where there is no number; a division by each of many stays one."""

    def f(x, s):
        return [x / s, x / mx.square(mx.broadcast_to(s, x.shape))]

    x, s = mx.array(X, dtype=F64), mx.array(number, dtype=F64)
    assert "Divide" not in ops(f, x, s)
    with np.errstate(all="ignore"):
        expected = [X / number, X / number**2]
    for found, wanted in zip(compile_function(f, x, s)(x, s), expected, strict=True):
        assert np.allclose(np.array(found), wanted, rtol=4.5e-16, atol=0, equal_nan=True)
    assert np.allclose(np.array(compile_function(lambda x: [x / number], x)(x)[0]), expected[0], 4.5e-16, 0, True)
    assert "Divide" not in ops(lambda x: [x / 3.0], x)
    assert "Divide" in ops(lambda x, s: [x / s], x, x)
    assert "Divide" in ops(lambda x, s: [x / s], x.astype(mx.float32), mx.array(3.0))


@pytest.mark.parametrize("number, stays", [(4.0, False), (-0.125, False), (1.0, False), (3.0, True), (0.0, True)])
def test_quotients_by_powers_of_two_are_products_to_the_bit(number, stays):
    x = mx.array(np.random.RandomState(0).normal(size=1000).astype(np.float32))
    assert ("Divide" in ops(lambda x: [x / number + 1], x)) == stays
    found = compile_function(lambda x: [x / number], x)(x)[0]
    with np.errstate(all="ignore"):
        assert np.array_equal(np.array(found), np.array(x) / np.float32(number), equal_nan=True)


def test_nothing_taken_away_is_nothing():
    x = mx.array([0.0, -0.0, 1.0, -3.5, 1e-40, 3e38, math.inf, -math.inf, math.nan])
    assert "Subtract" not in ops(lambda x: [mx.abs(x - 0.0)], x)
    for zero in (0.0, -0.0):
        found = np.array(compile_function(lambda x, z=zero: [x - z], x)(x)[0])
        expected = np.array(x) - np.float32(zero)
        assert np.array_equal(found.view(np.uint32)[:8], expected.view(np.uint32)[:8])  # but for the bits of a nan


@pytest.mark.parametrize("count", [2, 7, 64, 65])
def test_sums_of_terms_that_are_put_side_by_side(count):
    """Up to 64 are added one by one; any of them may be infinite."""
    rng = np.random.RandomState(1)
    rows = rng.normal(size=(count, 50)).astype(np.float32)
    rows[1, 3], rows[0, 4], rows[1, 4] = -np.inf, np.inf, -np.inf

    def f(*rows):
        return [mx.sum(mx.stack(rows, axis=1), axis=1)]

    given = [mx.array(row) for row in rows]
    assert ("Concatenate" in ops(f, *given)) == (count > 64)
    with np.errstate(invalid="ignore"):
        expected = rows.astype(float).sum(axis=0)
    assert np.allclose(np.array(compile_function(f, *given)(*given)[0]), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_fingerprints_tell_graphs_apart():
    x, y = mx.zeros(3), mx.array([1.0, 2.0, 3.0])
    graphs = {
        "sum": lambda x: [x + y],
        "sum of others": lambda x: [x + mx.array([1.0, 2.0, 4.0])],
        "difference": lambda x: [x - y],
        "the other way": lambda x: [y - x],
        "two": lambda x: [x + y, x],
        "swapped": lambda x: [x, x + y],
        "a zero": lambda x: [mx.maximum(x, 0.0)],
        "another zero": lambda x: [mx.maximum(x, -0.0)],
    }
    found = {name: fingerprint(graph_of(f, x)) for name, f in graphs.items()}
    assert len(set(found.values())) == len(graphs)
    assert found == {name: fingerprint(graph_of(f, x)) for name, f in graphs.items()}
    assert fingerprint(graph_of(graphs["sum"], mx.zeros(3, dtype=mx.int32))) != found["sum"]


def test_a_model_is_compiled_once_for_the_same_data_and_its_code_goes_with_it(monkeypatch):
    made = []
    function = kernel_module.NativeFunction

    def counted(*args):
        made.append(1)
        return function(*args)

    monkeypatch.setattr(kernel_module, "NativeFunction", counted)

    @gen.new
    def model(x):
        trace("y", normal(trace("mu", normal(0, 1)) * x, 1.0))

    x, few = mx.array([1.0, 2.0]), {"draws": 50, "warmup": 50, "chains": 2, "key": 0}
    first = nuts(model(x), {"y": mx.array([1.0, 2.0])}, **few)
    again = nuts(model(x), {"y": mx.array([1.0, 2.0])}, **few)
    assert len(made) == 1 and mx.array_equal(first["mu"], again["mu"]).item()
    other = nuts(model(x), {"y": mx.array([1.0, 9.0])}, **few)
    assert len(made) == 2 and abs(other.mean("mu").item() - first.mean("mu").item()) > 1
    gone = weakref.ref(model)
    del model, first, again, other
    gc.collect()
    assert gone() is None
