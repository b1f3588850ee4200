"""What machine code may differ by from the batch that it stands for."""

import mlx.core as mx
import pytest

from genmlx.native import batch
from genmlx.native.batch import native_batch
from genmlx.native.graph import Untranslatable

pytest.importorskip("llvmlite")

X = mx.arange(3000).astype(mx.float32)


def with_other(array, n, value):
    """The array with its first ``n`` numbers replaced."""
    return mx.where(mx.arange(array.size) < n, mx.array(value).astype(array.dtype), array)


def assert_refused(f, x, expected, lanes):
    with pytest.raises(Untranslatable, match=f"differs in {lanes} of {x.shape[0]} lanes"):
        native_batch(f, [x], [expected], True)


def test_a_lane_in_a_thousand_may_differ():
    native_batch(lambda x: [2 * x], [X], [with_other(2 * X, 3, -1.0)], True)
    assert_refused(lambda x: [2 * x], X, with_other(2 * X, 4, -1.0), 4)


def test_whole_numbers_are_equal_or_not():
    whole = (2 * X).astype(mx.int32)
    native_batch(lambda x: [(2 * x).astype(mx.int32)], [X], [whole], True)
    assert_refused(lambda x: [(2 * x).astype(mx.int32)], X, whole + 1, 3000)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_equal_to_themselves_alone(value):
    f = lambda x: [mx.where(x > 9, x, value)]  # noqa: E731
    native_batch(f, [X], f(X), True)
    assert_refused(f, X, with_other(X, 10, 0.0), 10)


def test_rounding_is_that_of_the_number():
    native_batch(lambda x: [2 * x], [X], [2.0005 * X], True)
    assert_refused(lambda x: [2 * x + 2], X, 2.01 * X + 2.01, 3000)


def test_there_is_none_for_a_default_device_other_than_the_cpu(monkeypatch):
    monkeypatch.setattr(batch.mx, "default_device", lambda: mx.Device(mx.gpu))
    with pytest.raises(Untranslatable, match="not the CPU"):
        native_batch(lambda x: [x], [X], [X], True)
    assert native_batch(lambda x: [x], [X], [X], False) is None
