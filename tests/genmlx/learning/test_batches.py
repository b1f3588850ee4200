"""Stochastic batches: which rows, and gradients without bias."""

from itertools import combinations

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx import gen, normal, param, trace
from genmlx.errors import GenError, ParameterError, UsageError
from genmlx.learning import Batches, gradient

XS, YS = np.array([0.0, 1.0, 2.0, 4.0, 5.0]), np.array([1.0, 0.0, 3.0, 2.0, 7.0])


def line_of():
    @gen
    def line(xs):
        trace("y", normal(param("slope", 0.5) * xs + param("shift", 0.2), 1.0))

    return line


def test_the_gradient_of_a_batch_is_unbiased():
    """The mean over all 10 batches of 2 of 5 rows is the gradient of all rows, in closed form. A factor that is
    missing, or 1 / batch size, or of a batch that counts a row twice, would be seen."""
    line = line_of()

    def of(rows, scale):
        found = gradient(
            lambda xs, ys: line(xs).assess({"y": ys}).score,
            (mx.array(XS[rows], dtype=mx.float32), mx.array(YS[rows], dtype=mx.float32)),
            scale,
        )
        return np.array([found[line, "slope"].item(), found[line, "shift"].item()])

    residual = YS - 0.5 * XS - 0.2
    exact = np.array([np.sum(residual * XS), np.sum(residual)])
    batches = Batches((XS, YS), 2, mx.random.key(0))
    mean = np.mean([of(list(rows), batches.scale) for rows in combinations(range(5), 2)], axis=0)
    np.testing.assert_allclose(mean, exact, rtol=1e-5)
    np.testing.assert_allclose(of([0, 1, 2, 3, 4], 1.0), exact, rtol=1e-5)


def test_every_batch_is_as_likely_as_every_other():
    """10,000 first and second batches over many keys: chi-square of the 10 subsets, and each row once in an epoch."""
    subsets = {rows: i for i, rows in enumerate(combinations(range(5), 2))}
    counts = np.zeros((2, 10))
    for seed in range(1000):
        batches = Batches(mx.arange(5), 2, mx.random.key(seed))
        for epoch in range(5):
            drawn = [tuple(sorted(batches.at(2 * epoch + i).tolist())) for i in range(2)]
            assert not set(drawn[0]) & set(drawn[1])
            for i in range(2):
                counts[i, subsets[drawn[i]]] += 1
    for row in counts:
        assert stats.chisquare(row).pvalue > 1e-4


def test_a_batch_depends_on_the_step_alone():
    one, other = (Batches({"x": mx.arange(10)}, 3, mx.random.key(1)) for _ in range(2))
    later = [one.at(i)["x"].tolist() for i in range(9)][7]
    assert other.at(7)["x"].tolist() == later
    assert one.at(0)["x"].tolist() != one.at(3)["x"].tolist()  # another order in the next epoch
    assert (one.epoch, one.scale) == (3, 10 / 3)


def test_rows_of_trees_stay_together_and_lists_are_columns():
    batches = Batches(([1.0, 2.0, 3.0], {"y": mx.array([[1, 1], [2, 2], [3, 3]])}), 2, mx.random.key(0))
    xs, more = batches.at(0)
    assert [[x, x] for x in xs.tolist()] == more["y"].tolist() and xs.shape == (2,)
    assert Batches([1.0, 2.0, 3.0], None, None).at(5).tolist() == [1.0, 2.0, 3.0]


def test_misuse_raises():
    key = mx.random.key(0)
    with pytest.raises(UsageError, match="2 and 3 rows"):
        Batches((mx.zeros(2), mx.zeros(3)), 1, key)
    with pytest.raises(ParameterError, match="a batch of 4 rows out of 3"):
        Batches(mx.zeros(3), 4, key)
    with pytest.raises(GenError, match="batch_size must be a whole number"):
        Batches(mx.zeros(3), 0, key)
    with pytest.raises(UsageError, match="a single number"):
        Batches(mx.array(1.0), None, key)
    with pytest.raises(UsageError, match="no array"):
        Batches((), None, key)
