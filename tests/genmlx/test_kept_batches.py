"""Which batches are one, how long they are known, and where none is kept."""

import threading

import mlx.core as mx
import numpy as np
import pytest

from genmlx import gen, handlers, kept, normal, param, trace
from genmlx.kept import execution
from genmlx.native.graph import Untranslatable
from genmlx.pytree import split_arrays
from genmlx.vectorized import recorder


@pytest.fixture
def visits(monkeypatch):
    """A list to which each choice that a handler makes adds one."""
    made, visit = [], handlers.Simulate.visit
    monkeypatch.setattr(handlers.Simulate, "visit", lambda *args: (made.append(1), visit(*args))[1])
    return made


def standard():
    return gen.new(lambda: trace("x", normal(0.0, 1.0)))


def assert_as_anew(call, n=4):
    found = call().vsimulate(n, key=7)
    with recorder(lambda batch, form: batch):
        expected = call().vsimulate(n, key=7)
    (mine, form), (theirs, other) = (split_arrays(made.lanes) for made in (found, expected))
    assert form.spec == other.spec and form.places == other.places
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and mx.array_equal(a, b).item()


def test_arguments_of_another_shape_or_type_are_another_batch():
    @gen.new
    def model(mean):
        return trace("x", normal(mean, mx.ones(mean.shape)))

    for mean in [mx.zeros(2)] * 4 + [mx.zeros(3), mx.zeros((2, 1)), mx.array([1, 2]), mx.zeros(2)]:
        assert_as_anew(lambda mean=mean: model(mean))


def test_an_argument_that_is_changed_in_place_is_looked_at_each_time():
    @gen.new
    def model(means):
        return trace("x", normal(float(means[0]), 1.0))

    means = np.zeros(2)
    for _ in range(4):
        assert_as_anew(lambda: model(means))
    means[0] = 30.0
    assert_as_anew(lambda: model(means))


def test_a_batch_within_a_body_is_part_of_that_body():
    inner = gen.new(lambda mean: trace("z", normal(mean, 1.0)))

    @gen.new
    def outer():
        mean = trace("x", normal(0.0, 10.0))
        return trace("y", normal(mx.mean(inner(mean).vsimulate(3, key=mx.random.key(1)).retval), 1.0))

    for _ in range(5):
        inner(mx.array(0.5)).vsimulate(3, key=0)
    for _ in range(5):
        assert_as_anew(outer)


def test_a_recorder_gets_every_batch():
    model, came = standard(), []
    with recorder(lambda batch, form: came.append(form) or batch):
        for key in range(6):
            model().vsimulate(3, key=key)
    assert len(came) == 6


def test_batches_of_one_thread_are_not_those_of_another():
    model, found = standard(), []

    def work():
        found.extend(np.array(model().vsimulate(3, key=key)["x"]) for key in range(5))

    for _ in range(3):
        work()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(found) == 30
    assert all(np.array_equal(found[i], found[i % 5]) for i in range(30))


def test_a_batch_that_comes_often_is_known_however_many_others_come(visits):
    model = standard()
    for n in range(2, 66):
        model().vsimulate(1, key=n)
        model().vsimulate(n, key=n)
    visits.clear()
    model().vsimulate(1, key=0)
    assert not visits


def test_large_batches_are_not_recorded(monkeypatch, visits):
    monkeypatch.setattr(kept, "_LARGE", 30)
    for n, expected in ((9, 4), (50, 6)):  # three runs and a recording, or six runs
        model = standard()
        visits.clear()
        for key in range(6):
            model().vsimulate(n, key=key)
        assert len(visits) == expected


def test_a_recording_that_gives_something_else_is_not_used(monkeypatch):
    made = kept.recorded

    def off(f, *arrays):
        graph = made(f, *arrays)
        return lambda *given: [array + 1e-6 for array in graph(*given)]

    monkeypatch.setattr(kept, "recorded", off)
    model = standard()
    for _ in range(6):
        assert_as_anew(model)


def test_traces_of_a_model_with_parameters_are_pinned_within_a_run():
    child = gen.new(lambda x: trace("y", normal(x, param("scale", 1.0))))
    parent = gen.new(lambda: trace("c", child(trace("x", normal(0.0, 1.0)))))
    with execution(None, False):
        made = [parent().vsimulate(5, key=key) for key in range(6)]
    child.redefine(lambda x: trace("y", normal(x, 100.0)))
    for batch in made:
        assert batch.stale and set(batch.pins) == {parent, child}
        assert mx.max(mx.abs(batch.update({"x": 0.0}).trace["c", "y"])).item() < 10


def test_parameters_are_read_anew_by_the_next_run():
    model = gen.new(lambda: trace("x", normal(param("mean", 0.0), 1.0)))
    for mean in (0.0, 30.0):
        model.params["mean"] = mean
        with execution(None, False):
            for key in range(5):
                assert abs(mx.mean(model().vsimulate(50, key=key)["x"]).item() - mean) < 2


@pytest.mark.parametrize("fickle", [np.random.rand, lambda: mx.random.uniform()], ids=["numpy", "mlx"])
def test_machine_code_that_is_required_of_a_model_with_noise_of_its_own_is_an_error(fickle):
    pytest.importorskip("llvmlite")
    model = gen.new(lambda: trace("x", normal(fickle(), 1.0)))
    with execution(True, True), pytest.raises(Untranslatable, match="noise of its own"):
        model().vsimulate(5, key=0)
    with execution(None, True) as how:
        model().vsimulate(5, key=0)
    assert how.found == "handlers"
