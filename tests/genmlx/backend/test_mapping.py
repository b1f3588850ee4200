"""The faults of mx.vmap that are mended, each with a test that fails on the day that upstream mends it."""

import mlx.core as mx
import numpy as np
import pytest

from genmlx import gen, normal, trace
from genmlx.backend.mapping import vmap_list
from genmlx.dist import distribution
from genmlx.dist.bijectors import FromFunction
from genmlx.dist.support import real
from genmlx.inference import LogDensity


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


OPERATORS = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: mx.bitwise_xor(a, b),
    "left": lambda a, b: a << b,
    "right": lambda a, b: a >> b,
    "not_equal": lambda a, b: a != b,
    "bitwise_and": mx.bitwise_and,
}
ROWS = mx.array(np.random.default_rng(0).integers(0, 8, (4, 5)).astype(np.int32))
SHARED = mx.array([1, 2, 3, 4, 5])


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_between_a_lane_and_a_constant(name):
    """In a body's batch an operator that forgets its unbatched operand is wrong without a word."""
    operator = OPERATORS[name]
    if name == "bitwise_and":  # looked up when the body runs

        def operator(a, b):
            return mx.bitwise_and(a, b)

    before = {owner: {n: getattr(owner, n) for n in dir(owner)} for owner in (mx.array,)}
    for a, b in ((None, SHARED), (SHARED, None), (None, mx.array(2))):
        def f(row, a=a, b=b):
            return operator(row if a is None else a, row if b is None else b)

        found = vmap_list(lambda row, f=f: [f(row)], ROWS)[0]
        assert np.array_equal(found, np.stack([np.array(f(row)) for row in ROWS]))
    assert mx.array.__and__ is before[mx.array]["__and__"] and mx.array.__ne__ is before[mx.array]["__ne__"]


def test_upstream_still_forgets_the_unbatched_operand():
    assert not np.array_equal(mx.vmap(lambda row: SHARED & row)(ROWS), np.array(ROWS) & np.array(SHARED))


def test_a_body_may_use_them_and_an_error_leaves_mlx_as_it_was():
    kept = mx.array([True, False, True])

    @gen
    def model(fail=False):
        x = trace("x", normal(mx.zeros((3,)), 1.0))
        seen = (x > 0) & kept
        if fail:
            raise RuntimeError("stop")
        return mx.where(kept != seen, 1.0, 0.0)

    batch = model().vsimulate(6, key=0)
    for tr in batch:
        assert np.array_equal(tr.retval, np.array(kept) & ~((np.array(tr["x"]) > 0) & np.array(kept)))
    original = mx.array.__and__
    with pytest.raises(RuntimeError, match="stop"):
        model(True).vsimulate(3)
    assert mx.array.__and__ is original


@pytest.mark.parametrize("times", [mx.matmul, lambda a, b: a @ b], ids=["matmul", "@"])
@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)])
@pytest.mark.parametrize("matrix", [(3, 4), (2, 3, 4)])
def test_a_matrix_times_a_vector(times, axes, matrix):
    """Against numpy, with its derivatives; as many lanes as rows, so that swapped axes would be silent in the shape."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(3, *s) if axis == 0 else s) for s, axis in zip((matrix, (4,)), axes, strict=True))
    slope = rng.normal(size=(3, *matrix[:-1]))
    inputs = [mx.array(x.astype(np.float32)) for x in (a, b)]
    batched = [x for x, axis in zip(inputs, axes, strict=True) if axis == 0]

    def product(*batched):
        def lane(*rows):
            rows = iter(rows)
            return [times(*(x if axis is None else next(rows) for x, axis in zip(inputs, axes, strict=True)))]

        return vmap_list(lane, *batched)

    [found], gradients = mx.vjp(product, batched, [mx.array(slope.astype(np.float32))])
    a, b = np.broadcast_to(a, (3, *matrix)), np.broadcast_to(b, (3, 4)).reshape(3, *[1] * (len(matrix) - 1), 4)
    assert np.allclose(found, (a * b).sum(axis=-1), atol=1e-5)
    wanted = slope[..., None] * b, (slope[..., None] * a).reshape(3, -1, 4).sum(axis=1)
    for gradient, want in zip(gradients, (w for w, axis in zip(wanted, axes, strict=True) if axis == 0), strict=True):
        assert np.allclose(gradient, want, atol=1e-5)


def test_a_batch_of_vectors_is_one_product():
    """The matrix is not repeated for each lane, which takes a CPU ten times as long; upstream still repeats it."""
    matrix = mx.ones((5, 4))

    def sizes(vmap):
        found = []

        def read(e):
            return found.extend(i[1] for i in e["inputs"]) if e.get("name") == "Matmul" else None

        mx.export_function(read, lambda v: [vmap(v)], mx.ones((7, 4)))
        return found

    assert [7, 5, 4] not in [list(s) for s in sizes(lambda v: vmap_list(lambda row: [matrix @ row], v)[0])]
    assert [7, 5, 4] in [list(s) for s in sizes(mx.vmap(lambda row: matrix @ row))]


FILLS = {
    "scalar": lambda v: mx.full((3, 4), v.sum()),
    "int": lambda v: mx.full(4, v[0]),
    "vector": lambda v: mx.full((3, 2), v),
    "dtype": lambda v: mx.full([3, 2], v, dtype=mx.float32),
    "like": lambda v: mx.full_like(mx.zeros((3, 2)), v),
    "number": lambda v: mx.full((3, 2), 2.0) * v,
    "like a number": lambda v: mx.full_like(mx.zeros((3, 2), dtype=mx.float32), 2) * v,
}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_gradients_of_full(fill):
    """Against central differences, in a lane of a batch."""
    v, weights = mx.array([[0.5, -2.0]]), mx.arange(12.0)

    def total(v):
        def lane(v):
            out = fill(v)
            return [mx.sum(out.reshape(-1) * weights[: out.size])]

        return mx.sum(vmap_list(lane, v)[0])

    step = [mx.array([[1.0, 0.0]]), mx.array([[0.0, 1.0]])]
    want = [(total(v + e) - total(v - e)).item() / 2 for e in step]
    assert np.allclose(mx.grad(total)(v)[0], want, rtol=1e-5)


def test_upstream_gradient_of_full_is_still_wrong():
    assert mx.grad(lambda v: mx.sum(mx.full(8, v)))(mx.array(3.0)).item() != 8


def test_full_is_as_before_in_shape_and_type():
    for args in (((2, 3), 1), (3, True), ((2,), mx.array(1)), ((2,), mx.array(1.5), mx.int32), ((), mx.array(2.0))):
        found, want = vmap_list(lambda _, args=args: [mx.full(*args)], mx.zeros(1))[0][0], mx.full(*args)
        assert found.dtype == want.dtype and np.array_equal(found, want)
    whole = mx.zeros((2,), dtype=mx.int32)
    for args in ((mx.zeros((2, 3)), mx.array(1)), (whole, mx.array(1.5)), (whole, mx.array(1.5), mx.int32)):
        want = mx.full_like(*args)
        found = vmap_list(lambda _, args=args: [mx.full_like(*args)], mx.zeros(1))[0][0]
        assert found.dtype == want.dtype and np.array_equal(found, want)


def test_a_model_with_full_has_the_right_gradient():
    """d/dmu of log N(mu; 0, 1) + sum log N(y_i; mu, 1) is sum(y) - (n + 1) mu."""

    @gen
    def model(n):
        mu = trace("mu", normal(0, 1))
        trace("y", normal(mx.full(n, mu), 1.0))

    y = mx.array([1.0, 2.0, 3.0, 4.0])
    density = LogDensity(model(4), {"y": y})
    assert density.value_and_grad(mx.array([[0.5]]))[1].item() == pytest.approx(7.5)
    assert density.hessian(mx.array([0.5])).item() == pytest.approx(-5)
    tr, _ = model(4).generate({"mu": 0.5, "y": y})
    assert tr.choice_gradients("mu")[2]["mu"].item() == pytest.approx(7.5)


def test_a_distribution_and_a_bijector_of_one_s_own():
    """Their functions, of one draw each, are batched too."""
    half = mx.array(0.5)
    family = distribution(
        lambda key, mu: mx.where(half != mu + mx.random.normal(key=key), 1.0, 0.0),
        log_prob=lambda x, mu: mx.where(half != x, -1.0, -2.0),
    )
    x = mx.array([[0.5, -0.5], [1.0, 0.5]])
    assert family(0.0).log_prob(x).tolist() == [[-2, -1], [-1, -2]]
    assert family(0.0).sample(shape=(50,), key=0).tolist() == [1.0] * 50
    bent = FromFunction(lambda x: mx.where(half != x, 2 * x, 1.0), lambda y: y / 2, real, None)
    assert bent.forward(mx.array([0.5, 3.0])).tolist() == [1.0, 6.0]
