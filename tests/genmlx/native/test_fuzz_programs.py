"""Random programs of a dozen operations each, values and gradients: native code agrees with MLX."""

import mlx.core as mx
import numpy as np
import pytest

from genmlx.native.kernel import compile_function


def _axis(rng, x):
    return int(rng.integers(x.ndim))


def _slice(rng, x):
    axis = _axis(rng, x)
    n = x.shape[axis]
    start, step = int(rng.integers(n)), int(rng.choice([1, 1, 2, -1]))
    return x[tuple(slice(start, None, step) if i == axis else slice(None) for i in range(x.ndim))]


def _indexed(rng, x):
    axis = _axis(rng, x)
    return mx.take(x, mx.array(rng.integers(x.shape[axis], size=3)), axis=axis)


def _scattered(rng, x):
    i = mx.array(rng.integers(x.shape[0], size=3))
    return x.at[i].add(mx.take(mx.tanh(x), i, axis=0))


def _product(rng, x):
    row = x.reshape(x.shape[0], -1)
    return row @ mx.sin(row).T if rng.random() < 0.5 else row.T @ row * 0.1


def _joined(rng, x):
    axis = _axis(rng, x)
    return mx.concatenate([x, mx.cos(x), x * 0.5][: int(rng.integers(2, 4))], axis=axis)


def _updated(rng, x):
    return x.at[: max(1, x.shape[0] // 2)].multiply(0.5)


# Smooth almost everywhere, and of values that stay near 1
ONE = [
    lambda rng, x: mx.tanh(x),
    lambda rng, x: mx.exp(-mx.square(x)),
    lambda rng, x: mx.sin(x) + 0.5,
    lambda rng, x: mx.log1p(mx.square(x)),
    lambda rng, x: mx.sigmoid(x) - x * 0.25,
    lambda rng, x: mx.where(x > 0.1, x, x * x),
    lambda rng, x: mx.transpose(x),
    lambda rng, x: x.reshape(-1) if rng.random() < 0.5 else x.reshape(x.shape[0], -1),
    lambda rng, x: mx.expand_dims(x, int(rng.integers(x.ndim + 1))) if x.ndim < 4 else mx.squeeze(x[:1]),
    lambda rng, x: mx.sum(x, axis=_axis(rng, x), keepdims=True) * 0.2 + x,
    lambda rng, x: x - mx.mean(x, axis=_axis(rng, x), keepdims=True),
    lambda rng, x: mx.softmax(x, axis=_axis(rng, x)),
    lambda rng, x: mx.logsumexp(x, axis=_axis(rng, x), keepdims=True) - x,
    lambda rng, x: mx.max(x, axis=_axis(rng, x), keepdims=True) * 0.1 + x,
    lambda rng, x: mx.cumsum(x, axis=_axis(rng, x)) * 0.3,
    lambda rng, x: mx.broadcast_to(x[None] if x.ndim < 4 else x, (2, *x.shape) if x.ndim < 4 else x.shape),
    lambda rng, x: mx.swapaxes(x, 0, x.ndim - 1),
    _slice,
    _indexed,
    _scattered,
    _product,
    _joined,
    _updated,
]
TWO = [lambda x, y: x + y, lambda x, y: x * y, lambda x, y: x - 0.5 * y, lambda x, y: x / (1 + mx.square(y))]
LARGEST = 3000


def program(seed, n=14):
    """A function of one array: results of several shapes, each made of those before."""

    def f(x):
        rng = np.random.default_rng(seed)
        found = [x]
        while len(found) < n:
            a = found[int(rng.integers(max(0, len(found) - 4), len(found)))]
            if rng.random() < 0.4:
                b = found[int(rng.integers(len(found)))]
                try:
                    shape = mx.broadcast_shapes(a.shape, b.shape)
                except ValueError:
                    b, shape = mx.sum(b) * 0.01, a.shape
                if np.prod(shape) <= LARGEST:
                    found.append(TWO[int(rng.integers(len(TWO)))](a, b))
            elif a.ndim:
                made = ONE[int(rng.integers(len(ONE)))](rng, a)
                if 0 < made.size <= LARGEST and made.ndim:
                    found.append(made)
        return [found[-1], found[n // 2], mx.sum(found[-2] * 0.1), found[int(rng.integers(n))]]

    return f


SHAPES = [(6,), (4, 5), (1, 7), (3, 1, 4), (2, 3, 4), (40,), (17, 3)]


@pytest.mark.parametrize("seed", range(60))
def test_programs(seed):
    x = mx.array(np.random.default_rng(seed).normal(size=SHAPES[seed % len(SHAPES)]).astype(np.float32))
    f = program(seed)
    gradient = mx.grad(lambda x: sum((mx.sum(one) for one in f(x)), mx.array(0.0)))
    for g in (f, lambda x: [gradient(x)]):
        for own, mlx in zip(compile_function(g, x)(x), g(x), strict=True):
            a, b = np.array(own), np.array(mlx)
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5 * max(1.0, float(np.abs(b).max())))
