"""What models read: every change of it shows, and what cannot be told is said to be unreadable."""

import functools
import sys
import types
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from genmlx import gen, map_over, normal, param, trace, unfold
from genmlx.readings import readings

SCALE = 1.0
SCALES = [1.0, [2.0]]
TABLE = {"a": 1.0}
ARRAY = mx.array([1.0, 2.0])
NUMPY = np.array([1.0, 2.0])
LOG = []


class Pair(NamedTuple):
    a: float
    b: list


PAIR = Pair(1.0, [2.0])


class Settings:
    scale = 1.0


SETTINGS = Settings()


def helper(x):
    return x + SCALE


def indirect(x):
    return [helper(part) for part in (x, x)][0]


@gen
def inner(x):
    return trace("in", normal(helper(x), 1.0))


def other_helper(x):
    return x - SCALE


def model_of(body):
    return gen.new(body)


def set_name(name, value):
    return lambda: setattr(sys.modules[__name__], name, value)


def closure():
    """A model that closes over a cell, and what changes the cell."""
    scale = 1.0

    def change():
        nonlocal scale
        scale = 2.0

    return model_of(lambda: trace("x", normal(0.0, scale))), change


def new_code():
    helper.__code__ = other_helper.__code__


def in_place(array, i, value):
    def change():
        array[i] = value

    return change


READ = {
    "a number": (lambda: trace("x", normal(SCALE, 1.0)), set_name("SCALE", 2.0)),
    "a number in a helper of a helper": (lambda: trace("x", normal(indirect(0.0), 1.0)), set_name("SCALE", 2.0)),
    "a number in a nested function": (lambda: (lambda: trace("x", normal(SCALE, 1.0)))(), set_name("SCALE", 2.0)),
    "a helper": (lambda: trace("x", normal(helper(0.0), 1.0)), set_name("helper", other_helper)),
    "the code of a helper": (lambda: trace("x", normal(helper(0.0), 1.0)), new_code),
    "a list": (lambda: trace("x", normal(SCALES[0], 1.0)), lambda: SCALES.append(3.0)),
    "an element of a list": (lambda: trace("x", normal(SCALES[0], 1.0)), in_place(SCALES, 0, 5.0)),
    "a list in a list": (lambda: trace("x", normal(SCALES[1][0], 1.0)), lambda: SCALES[1].append(3.0)),
    "a dict": (lambda: trace("x", normal(TABLE["a"], 1.0)), in_place(TABLE, "a", 2.0)),
    "a named tuple's list": (lambda: trace("x", normal(PAIR.b[0], 1.0)), lambda: PAIR.b.append(1.0)),
    "an array": (lambda: trace("x", normal(ARRAY, 1.0)), in_place(ARRAY, 0, 7.0)),
    "a numpy array": (lambda: trace("x", normal(float(NUMPY[0]), 1.0)), in_place(NUMPY, 0, 7.0)),
    "a default": (lambda x=SCALES: trace("x", normal(x[0], 1.0)), lambda: SCALES.append(4.0)),
    "a model": (lambda: trace("m", inner(0.0)), lambda: inner.redefine(lambda x: trace("in", normal(x, 3.0)))),
    "what a model reads": (lambda: trace("m", inner(0.0)), set_name("SCALE", 3.0)),
    "a kernel": (
        lambda: trace("m", unfold(inner)(2, 0.0)),
        lambda: inner.redefine(lambda x: trace("in", normal(x, 4.0))),
    ),
    "a builtin": (lambda: trace("x", normal(float(sum([1.0])), 1.0)), set_name("sum", max)),
}


@pytest.fixture
def kept(monkeypatch):
    """Every name of this module, and what it holds, is as it was afterwards."""
    names = {name: getattr(sys.modules[__name__], name) for name in ("SCALE", "helper")}
    code, version = helper.__code__, inner.version
    lists = (list(SCALES), list(SCALES[1]), list(PAIR.b), dict(TABLE), float(ARRAY[0]), float(NUMPY[0]))
    yield
    for name, value in names.items():
        setattr(sys.modules[__name__], name, value)
    helper.__code__ = code
    inner.restore(version)
    SCALES[:] = lists[0]
    SCALES[1][:], PAIR.b[:] = lists[1], lists[2]
    TABLE.update(lists[3])
    ARRAY[0], NUMPY[0] = lists[4], lists[5]
    sys.modules[__name__].__dict__.pop("sum", None)
    LOG.clear()


@pytest.mark.parametrize("what", READ)
def test_a_change_of_what_is_read_shows(kept, what):
    body, change = READ[what]
    found = readings([model_of(body)])
    assert found is not None and found.unchanged()
    change()
    assert not found.unchanged()


def test_a_change_of_a_closure_shows():
    model, change = closure()
    found = readings([model])
    assert found.unchanged()
    change()
    assert not found.unchanged()


def test_an_attribute_of_a_module_of_the_user_is_read(monkeypatch):
    module = types.ModuleType("a_module_of_the_user")
    module.scale, module.unused = 1.0, 1.0
    monkeypatch.setattr(sys.modules[__name__], "theirs", module, raising=False)
    found = readings([model_of(lambda: trace("x", normal(theirs.scale, 1.0)))])  # noqa: F821
    module.unused = 2.0
    assert found.unchanged()
    module.scale = 2.0
    assert not found.unchanged()


def test_what_is_not_read_may_change(kept):
    found = readings([model_of(lambda: trace("x", normal(SCALE, 1.0)))])
    SCALES.append(1.0)
    set_name("helper", other_helper)()
    assert found.unchanged()


def writes():
    global SCALE
    SCALE = 2.0


UNREADABLE = {
    "an object of a class of the user": lambda: trace("x", normal(SETTINGS.scale, 1.0)),
    "a class of the user": lambda: trace("x", normal(Settings.scale, 1.0)),
    "print": lambda: print("here"),
    "a file": lambda: open("nowhere"),
    "a write": writes,
    "a parameter": lambda: trace("x", normal(param("p", 1.0), 1.0)),
    "parameters of a model": lambda: trace("x", normal(inner.params["p"], 1.0)),
    "a partial": functools.partial(helper, 1.0),
    "a file of numbers": lambda: np.load("nowhere"),
    "the names that there are": lambda: globals(),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_told_is_unreadable(what):
    body = UNREADABLE[what]
    model = model_of(body) if isinstance(body, types.FunctionType) else model_of(lambda: body(1.0))
    assert readings([model]) is None
    assert readings([map_over(model)]) is None


def test_a_model_that_calls_itself_is_read():
    @gen.new
    def walk(x):
        step = trace("step", normal(x, SCALE))
        return trace("rest", walk(step)) if x is None else step

    assert readings([walk]).unchanged()
