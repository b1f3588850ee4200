"""What changes between two batches in ways that are easily missed: the second follows, as if none had been kept."""

import functools
import sys
import types
import warnings
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from genmlx import gen, handlers, normal, param, poisson, trace
from genmlx.kept import execution
from genmlx.masked import Masked
from genmlx.pytree import split_arrays
from genmlx.readings import Readings
from genmlx.vectorized import recorder

SCALE = 1.0
MODULE = types.ModuleType("a_module_of_the_user")
COMPUTES = types.ModuleType("a_module_that_computes_its_attributes")
COMPUTES.__dict__["__getattr__"] = lambda name: SCALE
OBJECTS = np.array([None, None], dtype=object)
NUMPY = np.arange(4.0)


class Scaled(NamedTuple):
    by: float

    @property
    def scale(self):
        return self.by * SCALE


class Inherits(Scaled):
    __slots__ = ()


class Table(dict):
    def __getitem__(self, name):
        return SCALE


class Number(float):
    def __mul__(self, other):
        return SCALE * other


SCALED, INHERITS, TABLE, NUMBER = Scaled(1.0), Inherits(1.0), Table(), Number(1.0)
MODULES = [MODULE]


@functools.wraps(np.sum)
def wraps_numpy(x):
    return x + SCALE


def helper(x, more=1.0):
    return x + more


def keyword_helper(x, *, more=1.0):
    return x + more


@gen
def runs(call):
    return trace("c", call)


@gen
def child(x):
    return trace("x", normal(x, SCALE))


@gen
def asks(scaled):
    return trace("x", normal(0.0, scaled.scale))


def in_closure():
    module = MODULE
    return gen.new(lambda: trace("x", normal(0.0, module.scale)))


def passed_on():
    return MODULE


def of(body):
    model = gen.new(body)
    return lambda: model()


def set_scale():
    sys.modules[__name__].SCALE = 20.0


def set_in_module():
    MODULE.scale = 20.0


def set_default():
    helper.__defaults__ = (20.0,)


def set_keyword_default():
    keyword_helper.__kwdefaults__ = {"more": 20.0}


def set_attribute():
    helper.scale = 20.0


def set_in_submodule():
    MODULE.part.scale = 20.0


def set_in_object():
    OBJECTS[0][0] = 20.0


def give_shape(*shape):
    with warnings.catch_warnings():  # NumPy 2.5 will not have it for long
        warnings.simplefilter("ignore", DeprecationWarning)
        NUMPY.shape = shape


def set_shape():
    give_shape(2, 2)


CHANGES = {
    "what a call that is an argument reads": (lambda: runs(child(0.0)), set_scale),
    "the model of a call that is an argument": (
        lambda: runs(child(0.0)),
        lambda: child.redefine(lambda x: trace("x", normal(x, 50.0))),
    ),
    "a property of an argument": (lambda: asks(SCALED), set_scale),
    "a property of a named tuple": (of(lambda: trace("x", normal(0.0, SCALED.scale))), set_scale),
    "an inherited property": (of(lambda: trace("x", normal(0.0, INHERITS.scale))), set_scale),
    "a dict's own look-up": (of(lambda: trace("x", normal(0.0, TABLE["scale"]))), set_scale),
    "a number's own product": (of(lambda: trace("x", normal(0.0, NUMBER * 1.0))), set_scale),
    "a function that says it is numpy's": (of(lambda: trace("x", normal(wraps_numpy(0.0), 1.0))), set_scale),
    "an attribute that a module computes": (of(lambda: trace("x", normal(0.0, COMPUTES.scale))), set_scale),
    "an attribute of a function": (of(lambda: trace("x", normal(0.0, helper.scale))), set_attribute),
    "a module in a module": (of(lambda: trace("x", normal(0.0, MODULE.part.scale))), set_in_submodule),
    "a module in a closure": (in_closure(), set_in_module),
    "a module in a list": (of(lambda: trace("x", normal(0.0, MODULES[0].scale))), set_in_module),
    "a module that a helper returns": (of(lambda: trace("x", normal(0.0, passed_on().scale))), set_in_module),
    "a default": (of(lambda: trace("x", normal(helper(0.0), 1.0))), set_default),
    "a default of a keyword": (of(lambda: trace("x", normal(keyword_helper(0.0), 1.0))), set_keyword_default),
    "an object in an array": (of(lambda: trace("x", normal(0.0, OBJECTS[0][0]))), set_in_object),
    "the shape of an array": (of(lambda: trace("x", normal(50.0 if NUMPY.ndim == 2 else 0.0, 1.0))), set_shape),
}


@pytest.fixture
def as_it_was():
    MODULE.scale, MODULE.part, OBJECTS[0], helper.scale = 1.0, types.ModuleType("part"), [1.0], 1.0
    MODULE.part.scale = 1.0
    version = child.version
    yield
    set_scale.__globals__["SCALE"] = 1.0
    helper.__defaults__, keyword_helper.__kwdefaults__ = (1.0,), {"more": 1.0}
    give_shape(4)
    del helper.scale
    child.restore(version)


def assert_as_anew(call, given=None):
    """A batch is, to the bit, what it is where none are kept."""
    found = call().vgenerate(given, 4, key=7)
    with recorder(lambda batch, form: batch):
        expected = call().vgenerate(given, 4, key=7)
    (mine, form), (theirs, other) = (split_arrays((made.trace.lanes, made.weight)) for made in (found, expected))
    assert form.spec == other.spec and form.places == other.places
    assert all(mx.array_equal(a, b).item() for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_followed(as_it_was, what):
    call, change = CHANGES[what]
    for _ in range(4):
        assert_as_anew(call)
    change()
    assert_as_anew(call)


def tosses(coin):
    return gen.new(lambda: trace("x", normal(mx.where(mx.array(coin()), 50.0, -50.0), 1.0)))


def test_noise_that_mlx_does_not_see_is_drawn_each_time():
    """A coin is the same twice in half of all recordings, so one comparison does not show that it is tossed anew."""
    np.random.seed(0)
    mx.random.seed(0)
    coins = {
        "numpy": lambda: np.random.rand() < 0.5,
        "mlx": lambda: mx.random.bernoulli(0.5),
        "an object": functools.partial(np.random.default_rng(0).integers, 2),
    }
    for name, coin in coins.items():
        for _ in range(6):
            model = tosses(coin)
            for key in range(4):
                model().vsimulate(3, key=key)
            sides = {mx.mean(model().vsimulate(3, key=key)["x"]).item() > 0 for key in range(20)}
            assert len(sides) == 2, name


class Coin:
    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)

    def __call__(self):
        return self.generator.integers(2) == 1


def test_an_object_of_the_user_may_be_another_each_time_within_a_run_too():
    for seed in range(6):
        model = tosses(Coin(seed))
        with execution(None, False):
            sides = {mx.mean(model().vsimulate(3, key=key)["x"]).item() > 0 for key in range(20)}
            late = {mx.mean(model().vsimulate(3, key=key)["x"]).item() > 0 for key in range(20)}
        assert len(sides) == 2 and len(late) == 2


def test_parameters_stay_within_a_run_and_no_longer(monkeypatch):
    made = []
    monkeypatch.setattr(handlers.Generate, "visit", counted(made, handlers.Generate.visit))

    @gen.new
    def model():
        return trace("x", normal(param("mean", 0.0), 1.0))

    with execution(None, False):
        for key in range(6):
            model().vgenerate({}, 10, key=key)
    assert len(made) == 4  # three runs, and the recording of the third
    model.params["mean"] = 30.0
    with execution(None, False):
        assert mx.min(model().vgenerate({}, 50, key=1).trace["x"]).item() > 20


def counted(made, visit):
    return lambda self, *args: (made.append(1), visit(self, *args))[1]


def test_a_model_with_noise_of_its_own_is_fickle():
    generator = np.random.default_rng(0)
    assert Readings([gen.new(lambda: trace("x", normal(np.random.rand(), 1.0)))]).fickle
    assert Readings([gen.new(lambda: trace("x", normal(generator.normal(), 1.0)))]).fickle
    assert not Readings([gen.new(lambda: trace("x", normal(np.sqrt(2.0), 1.0)))]).fickle


def test_an_error_that_a_body_catches_is_caught_each_time():
    @gen.new
    def model():
        k = trace("k", poisson(2.0))
        try:
            mean = float(int(k))
        except ValueError:
            mean = 3.0
        return trace("x", normal(mean, 1.0))

    for k in (3, 3, 3, 3, 1):
        assert_as_anew(model, {"k": k})


def test_a_mask_of_one_value_is_not_that_of_the_other():
    @gen.new
    def model():
        return trace("x", normal(trace("y", normal(0.0, 1.0)), 1.0))

    for active in (True, True, True, True, False, True):
        assert_as_anew(model, {"y": Masked(1.0, active)})


def test_gradients_of_what_a_model_closes_over_are_not_lost():
    def loss(mean):
        @gen.new
        def model():
            trace("y", normal(mean, 1.0))

        return sum(mx.sum(model().vgenerate({"y": 1.0}, 2, key=key).weight) for key in range(5))

    assert mx.grad(loss)(mx.array(0.25)).item() == pytest.approx(10 * 0.75, abs=1e-5)
    mapped = mx.vmap(loss)(mx.array([0.25, 1.0]))
    assert mapped[0].item() - mapped[1].item() == pytest.approx(-10 * 0.75**2 / 2, abs=1e-4)


def test_what_a_gradient_goes_through_is_fickle():
    def loss(mean):
        found = Readings([gen.new(lambda: trace("x", normal(mean, 1.0)))])
        assert found.fickle and not found.steady
        return mean

    mx.grad(loss)(mx.array(1.0))
    array = mx.array(1.0)
    assert not Readings([gen.new(lambda: trace("x", normal(array, 1.0)))]).fickle


def test_what_no_file_defines_any_more_and_what_writes_is_not_read():
    count = 0

    def writes():
        nonlocal count
        count = 0

    model = gen.new(lambda: trace("x", normal(0.0, 1.0)))
    assert not Readings([writes]).complete and Readings([model]).complete
    model.orphan = "a_file.py"
    assert not Readings([model]).complete


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.complex64, mx.int8])
def test_an_array_of_any_type_is_read(dtype):
    array = mx.array([1.0, 2.0]).astype(dtype)
    found = Readings([gen.new(lambda: trace("x", normal(mx.abs(array[0]).astype(mx.float32), 1.0)))])
    assert found.complete and found.unchanged()
    array[1] = 7
    assert not found.unchanged()
