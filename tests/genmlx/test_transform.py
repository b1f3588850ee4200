"""Transforms: log |det Jacobian| against closed forms, what only moves, and what each mistake says."""

import inspect
import math

import mlx.core as mx
import numpy as np
import pytest

from genmlx.errors import AddressCollision, BatchError, MissingChoice, UnknownAddress, UsageError
from genmlx.jacobian import JacobianError
from genmlx.transform import is_involution, pair_bijections, transform


def line_of(f, text: str) -> str:
    """``file:line`` of the line of a transform's body that holds a text."""
    lines, start = inspect.getsourcelines(f.function)
    return f"{f.function.__code__.co_filename}:{start + next(i for i, row in enumerate(lines) if text in row)}"


@transform
def to_polar(old, new):
    x, y = old["x"], old["y"]
    new["r"], new["angle"] = mx.sqrt(x * x + y * y), mx.arctan2(y, x)


@transform
def to_cartesian(old, new):
    r, angle = old["r"], old["angle"]
    new["x"], new["y"] = r * mx.cos(angle), r * mx.sin(angle)


def test_polar_there_and_back():
    """log 1/r and log r: swapped input and output, or a sum of diagonal entries, would miss both."""
    there = to_polar({"x": 3.0, "y": -4.0})
    back = to_cartesian(there.choices)
    assert there.log_det.item() == pytest.approx(-math.log(5), abs=1e-6)
    assert back.log_det.item() == pytest.approx(math.log(5), abs=1e-6)
    assert back.choices["x"].item() == pytest.approx(3.0, abs=1e-5)
    assert back.choices["y"].item() == pytest.approx(-4.0, abs=1e-5)


def test_rotation_of_a_vector_has_no_volume():
    @transform
    def rotate(old, new):
        v, c, s = old["v"], math.cos(0.7), math.sin(0.7)
        new["v"] = mx.array([[c, -s], [s, c]]) @ v

    assert rotate({"v": mx.array([1.0, -2.0])}).log_det.item() == pytest.approx(0.0, abs=1e-6)


def test_leaves_of_different_shapes():
    """A dense map of a scalar, a vector and a matrix, 7 values in all, against numpy's determinant of its matrix."""
    matrix = np.random.default_rng(1).normal(size=(7, 7)).astype(np.float32)

    @transform
    def dense(old, new):
        flat = mx.concatenate([old["m"].reshape(-1), old["s"].reshape(1), old["v"]])
        out = mx.array(matrix) @ mx.sinh(flat)
        new["a"], new["b"] = out[:5], out[5:].reshape(2, 1)

    rng = np.random.default_rng(2)
    m, s, v = (rng.normal(size=shape).astype(np.float32) for shape in [(2, 2), (), (2,)])
    found = dense({"m": mx.array(m), "s": mx.array(s), "v": mx.array(v)}).log_det.item()
    flat = np.concatenate([m.reshape(-1), s.reshape(1), v]).astype(np.float64)
    expected = np.linalg.slogdet(matrix.astype(np.float64) * np.cosh(flat))[1]
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_only_moves_takes_no_part():
    """y moves to z and is also used: det = d(x e^y)/dx = e^y. A copy counted as an output would not be square."""

    @transform
    def shear(old, new):
        x, y = old["x"], old["y"]
        new["z"], new["w"] = y, x * mx.exp(y)
        new["rest"] = old["rest"]

    rest = {("a", 0): mx.array([1.0, 2.0]), ("a", 1): 3, "b": 0.5}
    moved = shear({"x": 2.0, "y": 0.5, "rest": rest})
    assert moved.log_det.item() == pytest.approx(0.5, abs=1e-6)
    assert moved.choices["rest"].to_dict().keys() == {("a", 0), ("a", 1), ("b",)}
    assert moved.choices["rest", "a", 1].item() == 3
    assert moved.choices["w"].item() == pytest.approx(2 * math.exp(0.5), rel=1e-6)


def test_two_choices_that_are_one_array():
    """w only moves y; z is scaled. Taking the shared array for z would give log 0."""

    @transform
    def scale(old, new):
        y, z = old["y"], old["z"]
        new["w"], new["v"] = z, 3.0 * y

    one = mx.array(2.0)
    assert scale({"y": one, "z": one}).log_det.item() == pytest.approx(math.log(3), abs=1e-6)


def test_discrete_choices_have_no_jacobian():
    @transform
    def swap(old, new):
        n, x = old["n"], old["x"]
        new["n"] = 3 - n
        new["x"] = x * 2.0 if n.item() == 1 else x / 2.0
        new.discrete["tenths"] = old.discrete["tenths"] + 0.1

    for n, expected in [(1, math.log(2)), (2, -math.log(2))]:
        moved = swap({"n": n, "x": 5.0, "tenths": 0.3})
        assert moved.log_det.item() == pytest.approx(expected, abs=1e-6)
        assert moved.choices["n"].item() == 3 - n
        assert moved.choices["tenths"].item() == pytest.approx(0.4)


def test_auxiliary_choices_and_arguments():
    @transform
    def walk(old, new):
        u = old.aux["u"]
        assert new.args == old.args == (2.0,)
        assert "u" in old.aux and "u" not in old
        new["x"], new.aux["u"] = old["x"] + old.args[0] * u, -u

    moved = walk({"x": 1.0}, {"u": 0.25}, args=(2.0,))
    assert (moved.choices["x"].item(), moved.aux["u"].item(), moved.log_det.item()) == (1.5, -0.25, 0.0)


def test_a_batch_under_vmap():
    """Each lane its own Jacobian, as from one alone."""
    xs, ys = mx.array([3.0, 1.0, -2.0]), mx.array([4.0, 1.0, 0.5])
    batched = mx.vmap(lambda x, y: to_polar({"x": x, "y": y}).log_det)(xs, ys)
    assert batched.tolist() == pytest.approx((-0.5 * np.log(np.array(xs) ** 2 + np.array(ys) ** 2)).tolist(), abs=1e-6)


def test_a_constant_is_singular():
    @transform
    def forget(old, new):
        new["x"] = 0.0 * old["x"] + 1.0

    assert forget({"x": 2.0}).log_det.item() == -math.inf


def test_inverses():
    f, g = pair_bijections(to_polar, to_cartesian)
    assert f.inverse is g and g.inverse is f
    assert (swap := is_involution(transform(lambda old, new: None))).inverse is swap
    with pytest.raises(UsageError, match="is not a transform"):
        pair_bijections(to_polar, lambda old, new: None)


# each mistake says what, where and what to do


def failure(f, kind, *sides):
    with pytest.raises(kind) as caught:
        f(*sides)
    assert str(caught.value).count("\n") >= 1
    return caught.value


def test_read_twice():
    @transform
    def twice(old, new):
        first = old["s", "x"]
        new["x"] = first + old["s"]

    error = failure(twice, AddressCollision, {"s": {"x": 1.0}})
    assert error.address == ("s", "x") and error.where == line_of(twice, 'new["x"]')
    assert f"a choice is read twice (first at {line_of(twice, 'first =')})" in str(error)


def test_written_twice_or_under():
    @transform
    def twice(old, new):
        new["x"] = old["x"]
        new["x"] = 1

    @transform
    def under(old, new):
        new["x", "y"] = old["x"]
        new["x"] = 1

    error = failure(twice, AddressCollision, {"x": 1.0})
    assert error.address == ("x",) and error.where == line_of(twice, "= 1") and "written twice" in str(error)
    error = failure(under, AddressCollision, {"x": 1.0})
    assert error.address == ("x",) and "written and so is ('x', 'y')" in str(error)


def test_read_of_what_is_not_there():
    @transform
    def misspelt(old, new):
        new["x"] = old["slop"]

    error = failure(misspelt, UnknownAddress, {"slope": 1.0})
    assert error.address == ("slop",) and error.where == line_of(misspelt, "slop") and ("slope",) in error.suggestions


def test_a_choice_that_is_lost():
    @transform
    def loses(old, new):
        new["x"] = old["x"]

    error = failure(loses, MissingChoice, {"x": 1.0, "y": 2})
    assert error.address == ("y",) and "neither kept nor read" in str(error) and "old['y']" in str(error)
    error = failure(loses, MissingChoice, {"x": 1.0}, {"u": 2})
    assert error.address == ("u",) and "old.aux['u']" in str(error)


def test_a_jacobian_that_is_not_square():
    @transform
    def merge(old, new):
        new["m"] = (old["a"] + old["b"]) / 2

    error = failure(merge, JacobianError, {"a": mx.array([1.0, 2.0]), "b": mx.array([0.0, 1.0])})
    assert "4 real values read and 2 written" in str(error)
    assert error.address == ("m",) and error.where == line_of(merge, "old[")


def test_a_choice_that_moves_to_two_places():
    """One value, two outputs: a copy excluded twice would make this look like a bijection."""

    @transform
    def double(old, new):
        x = old["x"]
        new["a"], new["b"] = x, x

    assert "0 real values read and 1 written" in str(failure(double, JacobianError, {"x": 1.0}))


@pytest.mark.parametrize("host", [lambda v: v.item(), float, np.sin, lambda v: 1.0 if v > 0 else 2.0])
def test_the_host_value_of_a_real_choice(host):
    """Under mx.vjp alone each of these is a constant, and the log determinant is silently wrong."""

    @transform
    def scale(old, new):
        x, y = old["x"], old["y"]
        new["y"] = y + 1.0
        new["x"] = x * host(x)

    error = failure(scale, BatchError, {"x": 2.0, "y": 1.0})
    assert error.address == ("x",) and "host value of a real choice" in str(error)
    assert error.where.startswith(__file__)


def test_the_host_value_of_a_choice_that_only_moves():
    """Allowed: the determinant does not depend on the derivative in what only moves."""

    @transform
    def scale(old, new):
        x, y = old["x"], old["y"]
        new["y"], new["x"] = y, x * (3.0 if y.item() > 0 else 2.0)

    assert scale({"x": 1.0, "y": 1.0}).log_det.item() == pytest.approx(math.log(3))
