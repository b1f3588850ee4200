"""The faults of mx.vmap that are mended, each with a test that fails on the day that upstream mends it."""

import mlx.core as mx
import numpy as np

from genmlx import gen, normal, trace
from genmlx.backend.mapping import vmap_list


def twice(i):
    y = i * mx.arange(6.0)
    return [y, i * 1.0, y]


def test_an_output_listed_twice():
    first, scalar, second = vmap_list(twice, mx.arange(4))
    want = np.arange(4)[:, None] * np.arange(6.0)
    assert np.array_equal(first, want) and np.array_equal(second, want) and scalar.shape == (4,)


def same_array_again(i):
    """Each of these is the array it was made of, under another name."""
    y = i * mx.arange(4.0)
    return [y, y.astype(mx.float32), y.reshape(4), mx.broadcast_to(y, (4,)), y[...], mx.stop_gradient(y)]


def test_one_array_under_several_names():
    """As many lanes as elements: a swap would be silent."""
    want = np.arange(4)[:, None] * np.arange(4.0)
    for i, out in enumerate(vmap_list(same_array_again, mx.arange(4))):
        assert np.array_equal(out, want + 0 * i)
    grad = mx.grad(lambda s: sum((k + 1) * out.sum() for k, out in enumerate(vmap_list(
        lambda i: same_array_again(i * s)[:3], mx.arange(4.0)))))(mx.array(1.0))  # fmt: skip
    assert grad.item() == 6 * want.sum()


def test_upstream_still_swaps_the_axes_of_the_second():
    assert [out.shape for out in mx.vmap(twice)(mx.arange(4))] == [(4, 6), (4,), (6, 4)]


def test_a_model_that_returns_what_it_also_passes_on():
    """With as many lanes as elements the swap would be silent: a transposed return value."""

    @gen
    def model():
        line = trace("a", normal(0, 1)) * mx.arange(5.0)
        trace("d", normal(line, 1))
        return line

    batch = model().vsimulate(5, key=0)
    assert np.allclose(batch.retval, np.array(batch["a"])[:, None] * np.arange(5.0))
    assert np.allclose(batch[2].retval, batch.retval[2])
