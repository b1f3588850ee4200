"""Generative functions whose gradient the user gives."""

import mlx.core as mx
import numpy as np
import pytest

from genmlx import custom_gradient, gen, normal, param, select, splice, trace, vmap
from genmlx.errors import UsageError
from genmlx.laws import check_laws
from genmlx.params import param_gradients


def pretended():
    """x ** 2 + y, with a gradient that no true derivative has: 10 and 100 times the cotangent."""
    return custom_gradient(lambda x, y: x**2 + y, lambda args, out, g: (10.0 * g, 100.0 * g))


def test_the_given_gradient_is_used_with_the_real_cotangent():
    """out ~ N(f, 1) at 12 where f = 11: cotangent 1, and 2 more from the returned value."""
    f = pretended()

    @gen
    def model(x):
        y = trace("y", normal(0.0, 1.0))
        value = trace("f", f(x, y * param("scale", 1.0)))
        trace("out", normal(value, 1.0))
        return value

    tr, _ = model(3.0).generate({"y": 2.0, "out": 12.0})
    assert tr["f"].item() == 11.0
    args, _, choices = tr.choice_gradients(select("y"), retval_grad=2.0)
    assert args[0].item() == pytest.approx(30.0)
    assert choices["y"].item() == pytest.approx(300.0 - 2.0)
    assert param_gradients(tr, 2.0)[model, "scale"].item() == pytest.approx(600.0)


def test_backward_sees_arguments_value_and_cotangent():
    """The true gradient of a matrix function, from what backward is given."""
    seen = []

    def backward(args, retval, cotangent):
        seen.append((args[0].shape, retval["product"].shape, cotangent["product"].shape))
        w, x = args
        return cotangent["product"][:, None] * x[None, :], w.T @ cotangent["product"] + cotangent["same"]

    f = custom_gradient(lambda w, x: {"product": w @ x, "same": x}, backward)

    @gen
    def model(w, x):
        out = splice(f(w, x))
        trace("a", normal(out["product"], 1.0))
        trace("b", normal(out["same"], 1.0))

    w, x = mx.array([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]]), mx.array([0.5, -1.0])
    tr, _ = model(w, x).generate({"a": mx.zeros(3), "b": mx.zeros(2)})
    (dw, dx), *_ = tr.choice_gradients()
    residual = -(np.array(w) @ np.array(x))
    np.testing.assert_allclose(np.array(dw), np.outer(residual, np.array(x)), rtol=1e-5)
    np.testing.assert_allclose(np.array(dx), np.array(w).T @ residual - np.array(x), rtol=1e-5)
    assert seen == [((3, 2), (3,), (3,))]


def test_no_gradient_where_backward_says_none_and_for_what_is_not_real():
    f = custom_gradient(lambda x, n, y: x * n + y, lambda args, out, g: (None, None, 7.0 * g))

    @gen
    def model(x, n, y):
        return splice(f(x, n, y))

    args, *_ = model(2.0, 3, 1.0).simulate().choice_gradients(retval_grad=1.0)
    assert args[0].item() == 0.0 and args[2].item() == 7.0


def test_trees_of_arguments():
    f = custom_gradient(lambda p: p["a"] * p["b"][0], lambda args, out, g: ({"a": 2.0 * g, "b": [3.0 * g]},))

    @gen
    def model(p):
        return splice(f(p))

    (gradient,), *_ = model({"a": 1.0, "b": [5.0]}).simulate().choice_gradients(retval_grad=1.0)
    assert gradient["a"].item() == 2.0 and gradient["b"][0].item() == 3.0


def test_batches_and_vmap():
    """Each lane has its own cotangent."""
    f = pretended()

    @gen
    def model():
        x = trace("x", normal(0.0, 1.0))
        trace("out", normal(splice(f(x, 0.0)), 1.0))

    traces, _ = model().vgenerate({"out": 1.0}, 4, key=1)
    _, _, choices = traces.choice_gradients(select("x"))
    x = np.array(traces["x"])
    np.testing.assert_allclose(np.array(choices["x"]), 10.0 * (1.0 - x**2) - x, rtol=1e-4)

    @gen
    def rows(xs):
        trace("out", normal(splice(vmap(f, in_axes=(0, None))(xs, 0.0)), 1.0))

    tr, _ = rows(mx.array([1.0, 2.0])).generate({"out": [0.0, 0.0]})
    assert tr.choice_gradients()[0][0].tolist() == [-10.0, -40.0]

    @gen
    def shared(x, ys):  # the gradient of what all elements share is the sum of theirs
        trace("out", normal(splice(vmap(f, in_axes=(None, 0))(x, ys)), 1.0))

    tr, _ = shared(1.0, mx.array([1.0, 2.0])).generate({"out": [0.0, 0.0]})
    assert tr.choice_gradients()[0][0].item() == -50.0 and tr.choice_gradients()[0][1].tolist() == [-200.0, -300.0]
    traces, _ = rows(mx.array([1.0, 2.0])).vgenerate({"out": [0.0, 0.0]}, 3)
    assert traces.choice_gradients()[0][0].tolist() == [[-10.0, -40.0]] * 3


def test_every_law_holds():
    f = pretended()

    @gen
    def model(x):
        y = trace("y", normal(0.0, 1.0))
        return trace("out", normal(trace("f", f(x, y)), 1.0))

    check_laws(model(0.5), key=1).require()
    check_laws(f(0.5, 1.0), key=1).require()


def test_misuse_raises():
    def run(backward):
        f = custom_gradient(lambda x: x, backward)

        @gen
        def model(x):
            return splice(f(x))

        return model(mx.ones(2)).simulate().choice_gradients(retval_grad=mx.ones(2))

    with pytest.raises(UsageError, match="2 gradients"):
        run(lambda args, out, g: (g, g))
    with pytest.raises(UsageError, match="shape \\[3\\] for argument 0"):
        run(lambda args, out, g: (mx.ones(3),))
    with pytest.raises(UsageError, match="backward is 3"):
        custom_gradient(lambda x: x, 3)
    for body in (lambda x: x + param("p", 1.0), lambda x: trace("z", normal(x, 1.0))):

        @gen
        def model(x, body=body):
            return splice(custom_gradient(body, lambda args, out, g: (g,))(x))

        with pytest.raises(UsageError, match="outside of a model"):
            model(1.0).simulate()
