"""The graph of a function as MLX streams it: what is refused, and what is known before the first call."""

import math

import mlx.core as mx
import numpy as np
import pytest

from genmlx.backend.sums import compensated, summed
from genmlx.native import fold, peepholes
from genmlx.native.graph import Untranslatable, graph_of, read
from genmlx.native.kernel import compile_function
from genmlx.native.plan import Plan

X = mx.array([[2.0, 0.5], [0.5, 1.0]])


@mx.custom_function
def opaque(x):
    return x * 2


@opaque.vjp
def _opaque_vjp(primals, cotangent, output):
    return cotangent * 2


REFUSED = {
    "primitive LUF": lambda x: mx.linalg.solve(x, x, stream=mx.cpu),
    "primitive Contiguous": lambda x: mx.contiguous(x),
    "primitive CustomTransforms": opaque,
    "primitive FFT": lambda x: mx.abs(mx.fft.rfft(x)),
    "primitive Convolution": lambda x: mx.convolve(x[0], x[1]),
    "primitive Hadamard": lambda x: mx.hadamard_transform(x),
    "primitive SVD": lambda x: mx.linalg.svd(x, stream=mx.cpu)[1],
    "primitive Eigh": lambda x: mx.linalg.eigh(x, stream=mx.cpu)[1],
    "primitive AsType with dtype float16": lambda x: x.astype(mx.float16),
    "the host value of an input": lambda x: x + x[0, 0].item(),
    "a random number without a key among the inputs": lambda x: x + mx.random.normal(x.shape),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_native_form_is_refused_by_name(reason):
    with pytest.raises(Untranslatable) as error:
        compile_function(lambda x: [REFUSED[reason](x)], X)
    assert error.value.what.startswith(reason)


def test_a_frozen_key_is_refused_and_a_given_one_is_not():
    key = mx.random.key(3)
    with pytest.raises(Untranslatable, match="without a key"):
        graph_of(lambda x: [x + mx.random.normal((2, 2), key=key)], X)
    graph_of(lambda x, key: [x + mx.random.normal((2, 2), key=key)], X, key)


def test_errors_of_the_function_are_its_own():
    with pytest.raises(ValueError, match="cannot be broadcast"):
        graph_of(lambda x: [x + mx.zeros(3)], X)
    with pytest.raises(ZeroDivisionError):
        graph_of(lambda x: [x / 0 if x is None else 1 / 0], X)


def stream():
    """What MLX says of one function."""
    entries = []
    mx.export_function(entries.append, lambda x: [mx.sum(mx.exp(x) * 2.0)], X)
    return entries


def without(key):
    return lambda entry: {k: v for k, v in entry.items() if k != key}


def with_(**changes):
    return lambda entry: {**entry, **changes}


CHANGES = {
    "no type": (0, without("type")),
    "no inputs": (0, without("inputs")),
    "an unknown entry": (1, with_(type="metadata")),
    "keyword inputs": (1, with_(keywords=["x"])),
    "an output that nothing makes": (2, with_(outputs=[("nowhere", (), mx.float32)])),
    "no constants": (3, without("constants")),
    "constants without names": (3, with_(constants=[mx.array(1.0)])),
    "no name": (4, without("name")),
    "no arguments": (4, without("arguments")),
    "no outputs": (4, without("outputs")),
    "an input that is not known": (4, with_(inputs=[("nowhere", (2, 2), mx.float32)])),
    "outputs without dtypes": (4, with_(outputs=[("C", (2, 2))])),
    "two results of one primitive": (4, with_(outputs=[("C", (2, 2), mx.float32), ("D", (2, 2), mx.float32)])),
    "a dtype that is not known": (4, with_(outputs=[("C", (2, 2), "float32")])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_format_is_refused(name):
    entries = stream()
    position, change = CHANGES[name]
    read(entries)
    entries[position] = change(entries[position])
    with pytest.raises(Untranslatable):
        read(entries)


@pytest.mark.parametrize(
    "op, arguments",
    [("Reduce", [9, [0, 1]]), ("Reduce", [2]), ("NewSum", [2, [0, 1]]), ("Scan", [7, 0, False, True])],
)
def test_other_arguments_and_primitives_are_refused(op, arguments):
    """By the emitter: a number for a kind that MLX has not had may mean anything."""
    from genmlx.native.kernel import NativeFunction

    entries = stream()
    at = next(i for i, entry in enumerate(entries) if entry.get("name") == "Reduce")
    entries[at] = {**entries[at], "name": op, "arguments": arguments}
    with pytest.raises(Untranslatable):
        NativeFunction(read(entries))


def ops(f, *arrays):
    """The operations left of a function, without its inputs and constants."""
    graph = fold.folded(peepholes.improved(fold.folded(graph_of(f, *arrays))))
    return [node.op for node in graph.nodes if node.op not in ("Input", "Constant")]


def test_what_a_function_closes_over_may_be_what_it_is_traced_with():
    (own,) = compile_function(lambda x: [x + X], X)(2 * X)
    assert own.tolist() == (3 * X).tolist()


def test_constants_are_computed_before_the_first_call():
    shift = mx.array([1.0, 2.0])
    assert ops(lambda x: [x + (mx.ones(2) * 3 + shift[::-1])], X) == ["Add"]
    assert ops(lambda x: [x * mx.ones((2, 2)) * 1.0], X) == []
    assert ops(lambda x: [x + mx.eye(2)], X) == ["Add"]
    assert ops(lambda x: [mx.where(mx.array(True), x, 2 * x)], X) == []
    assert ops(lambda x: [x**2, x**1, x**3], X).count("Power") == 0


def test_what_is_computed_twice_is_one_node():
    assert ops(lambda x: [mx.exp(x) + mx.exp(x)], X) == ["Exp", "Add"]


def test_steps_of_a_range_add_up_as_in_mlx():
    def f(x):
        return [x * mx.arange(0.0, 100.0, 0.1), x * mx.arange(3, 30, 4)]

    x = mx.array(1.0)
    for own, mlx in zip(compile_function(f, x)(x), f(x), strict=True):
        np.testing.assert_array_equal(np.array(own), np.array(mlx))


@pytest.mark.parametrize("n", [129, 1000, 40_000])
def test_the_sum_of_sums_of_blocks_is_one_sum(n):
    x = mx.array(np.random.default_rng(n).uniform(size=n).astype(np.float32))
    assert ops(lambda x: [summed(x)], x) == ["Reduce", "Squeeze"]
    assert ops(lambda x: [summed(mx.exp(x))], x) == ["Exp", "Reduce", "Squeeze"]
    batch = mx.stack([x, 2 * x])
    assert ops(lambda x: [summed(x, 1)], batch) == ["Reduce", "Squeeze"]
    (own,) = compile_function(lambda x: [summed(x)], x)(x)
    assert own.item() == pytest.approx(np.array(x).astype(float).sum(), rel=1e-6)


def test_a_sum_of_some_blocks_stays_what_it_is():
    def f(x):
        return [
            mx.sum(mx.concatenate([mx.sum(x[:8].reshape(2, 4), axis=1), x[9:]])),
            mx.sum(mx.concatenate([mx.sum(x[:8].reshape(2, 4), axis=1), x[8:11]])),
            mx.sum(mx.concatenate([x[:6], x[5:]])),
            mx.sum(mx.concatenate([x[6:], x[:6]])),
            mx.sum(mx.concatenate([mx.max(x[:8].reshape(2, 4), axis=1), x[8:]])),
        ]

    x = mx.arange(12.0)
    for own, mlx in zip(compile_function(f, x)(x), f(x), strict=True):
        assert own.item() == mlx.item()


def test_sums_do_not_cancel_what_is_in_their_terms():
    """LLVM would, if a sum's flags let it."""
    x = mx.array([1.0, math.inf] * 50)
    kernel = compile_function(lambda x: [mx.sum(x - x), mx.sum((x - mx.stop_gradient(x)) * 2.0)], x)
    assert all(math.isnan(own.item()) for own in kernel(x))
    y = mx.array(np.random.default_rng(2).normal(size=1000).astype(np.float32) * 1e4)
    terms = mx.concatenate([y, -y, mx.array([0.125])])
    mx.eval(terms)
    assert compile_function(lambda x: [compensated(x)], terms)(terms)[0].item() == 0.125


def test_products_with_nothing_are_not_computed_and_say_where_there_is_no_value():
    def f(x, y):
        return [(x - mx.stop_gradient(x)) @ y, x @ (y - y) @ x]

    assert "Matmul" not in ops(f, X, X)
    kernel = compile_function(f, X, X)
    for own in kernel(X, X):
        np.testing.assert_array_equal(np.array(own), np.zeros((2, 2)))
    for own in kernel(X, mx.array([[1.0, math.inf], [0.0, 1.0]])):
        assert np.isnan(np.array(own)).all()
    derivative = mx.grad(lambda x: mx.sum((x - mx.stop_gradient(x)) @ X))
    (own,) = compile_function(lambda x: [derivative(x)], X)(X)
    np.testing.assert_allclose(np.array(own), np.array(derivative(X)))


def test_products_of_something_stay():
    assert ops(lambda x, y: [(x - y) @ x], X, X).count("Matmul") == 1


def test_derivatives_of_reads_are_added_to_one_array():
    u = mx.array(np.random.default_rng(1).normal(size=40).astype(np.float32))

    def total(u):
        return sum((mx.square(u[i]) * u[i + 1] for i in range(39)), mx.array(0.0))

    graph = fold.folded(peepholes.improved(fold.folded(graph_of(lambda u: [mx.grad(total)(u)], u))))
    plan = Plan(graph)
    scattered = [node for node in graph.nodes if node.op == "Scatter"]
    assert len(scattered) > 70
    assert len(plan.reused) >= len(scattered) - 1  # none but the first copies the array
    (own,) = compile_function(lambda u: [mx.grad(total)(u)], u)(u)
    np.testing.assert_allclose(np.array(own), np.array(mx.grad(total)(u)), rtol=1e-5, atol=1e-6)


def test_an_array_that_others_read_is_not_changed():
    def f(x, i):
        added = [mx.cumsum(x).at[i].add(5.0), mx.sort(x).at[i].add(mx.sort(x)[0]), mx.cumsum(mx.exp(x)).at[1:].add(1.0)]
        return [*added, mx.cumsum(x) * 2]

    x, i = mx.array([1.0, 2.0, 3.0]), mx.array([1, 1])
    for own, mlx in zip(compile_function(f, x, i)(x, i), f(x, i), strict=True):
        np.testing.assert_allclose(np.array(own), np.array(mlx), rtol=1e-6)


def test_batched_inverses_of_factors_are_those_of_triangles():
    f = mx.vmap(lambda a: mx.linalg.tri_inv(mx.linalg.cholesky(a, stream=mx.cpu), stream=mx.cpu))
    graph = graph_of(lambda a: [f(a)], mx.stack([X, X]))
    (general,) = [node for node in graph.nodes if node.op == "Inverse"]
    (changed,) = [node for node in peepholes.improved(graph).nodes if node.op == "Inverse"]
    assert (general.settings[0], changed.settings) == (False, (True, False))
