"""Sums of many numbers, where MLX on the CPU loses digits."""

import mlx.core as mx
import numpy as np
import pytest

from genmlx import gen, normal, trace
from genmlx.backend.sums import compensated, joined, summed
from genmlx.dist import iid


@pytest.mark.parametrize("n", [1, 127, 128, 129, 16_384, 100_003, 1_000_000])
def test_many(n):
    """A plain running sum is 1 off at 1e5 and 300 off at 1e6; blocks stay within a few ulps of the answer."""
    x = np.random.default_rng(n).normal(-5, 3, n).astype(np.float32)
    exact = x.astype(np.float64).sum()
    assert abs(summed(mx.array(x)).item() - exact) <= 1e-6 * abs(exact) + 1e-5


def test_axes_transformations_and_gradients():
    x = mx.random.normal((3, 40, 50), key=mx.random.key(0))
    want = np.array(x).astype(np.float64)
    assert np.allclose(summed(x, 2), want.sum((1, 2)), atol=1e-3)
    assert np.allclose(summed(x, 1), want.sum(2), atol=1e-3)
    assert np.allclose(mx.vmap(summed)(x), want.sum((1, 2)), atol=1e-3)
    assert summed(x, 0).shape == x.shape and summed(mx.array(2.0)).item() == 2.0
    assert np.array_equal(mx.grad(lambda a: summed(a * a))(x), 2 * x)


def test_large_sites():
    """1e5 observations at one site, as a plate or as iid: within 1e-6 of the float64 score."""
    x = np.random.default_rng(0).normal(0, 1, 100_000).astype(np.float32)
    exact = np.sum(-0.5 * x.astype(np.float64) ** 2) - 0.5 * np.log(2 * np.pi) * x.size

    @gen
    def plate():
        trace("x", normal(mx.zeros((x.size,)), 1.0))

    @gen
    def repeated():
        trace("x", iid(normal(0, 1), x.size))

    for model in (plate, repeated):
        assert abs(model.generate((), {"x": x}).weight.item() - exact) < 1e-6 * abs(exact)


@pytest.mark.parametrize("n", [1, 2, 50, 1000])
def test_compensated(n):
    """As if in twice the digits although the terms cancel; the derivative is the plain sum's."""
    x = np.random.default_rng(n).normal(0, 1e4, (3, n)).astype(np.float32)
    x[:, -1] -= x.sum(1)
    want = x.astype(np.float64).sum(1)
    got = np.array(compensated(mx.array(x)), dtype=np.float64)
    allowed = np.spacing(np.abs(want).astype(np.float32)) + 4 * n * n * 2.0**-48 * np.abs(x).max(1)
    assert (np.abs(got - want) <= allowed).all()
    assert np.array_equal(mx.vmap(compensated)(mx.array(x)), got)
    assert np.array_equal(mx.grad(lambda a: compensated(a * a).sum())(mx.array(x)), 2 * x)


def test_compensated_of_what_is_not_finite():
    inf = float("inf")
    assert compensated(mx.array([1.0, -inf])).item() == -inf and compensated(mx.zeros(3)).item() == 0
    assert np.isnan(compensated(mx.array([inf, -inf])).item())


def test_joined():
    assert joined(mx.zeros((3, 2)), mx.ones((5, 1))).tolist() == [[[0, 0, 1]] * 3] * 5
