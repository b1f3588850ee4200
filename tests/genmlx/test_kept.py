"""A batch that comes again gives what its handlers would give, to the bit, whatever has changed in between."""

import sys

import mlx.core as mx
import numpy as np
import pytest
from gfi_zoo import CASES
from kept_batches import forget

from genmlx import flip, gen, handlers, normal, param, trace, unfold
from genmlx.pytree import split_arrays
from genmlx.vectorized import recorder

OFFSETS = [0.0]
SCALE = 1.0


@pytest.fixture(autouse=True)
def nothing_kept():
    forget()
    yield
    forget()


def anew():
    """A context in which batches are run by their handlers."""
    return recorder(lambda batch, form: batch)


def assert_same(found, expected):
    (mine, form), (theirs, other) = split_arrays(found), split_arrays(expected)
    assert form.places == other.places and form.spec == other.spec
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and mx.array_equal(a, b, equal_nan=True).item()
    assert shared(mine) == shared(theirs)


def shared(arrays):
    """Of each array the place where it comes first."""
    firsts = {}
    return [firsts.setdefault(id(array), i) for i, array in enumerate(arrays)]


@gen
def line(xs):
    slope = trace("slope", normal(OFFSETS[0], 10))
    for j, x in enumerate(xs):
        trace(("y", j), normal(slope * x, SCALE))
    return slope


@pytest.mark.parametrize("case", [c for c in CASES if c.batches], ids=repr)
def test_the_third_time_and_later_give_what_handlers_give(case):
    choices = case.model(*case.args).simulate(key=0).choices
    addresses = choices.addresses()
    some = {address: choices[address] for address in addresses[::2]}
    for key in range(5):
        found = case.model(*case.args).vgenerate(some, 4, key=key)
        drawn = case.model(*case.args).vsimulate(4, key=key)
        with anew():
            assert_same((found.trace.lanes, found.weight), _made(case.model(*case.args).vgenerate(some, 4, key=key)))
            assert_same(drawn.lanes, case.model(*case.args).vsimulate(4, key=key).lanes)


def _made(generated):
    return generated.trace.lanes, generated.weight


def visits(monkeypatch):
    """A list to which each choice that a handler makes adds one."""
    made, visit = [], handlers.Generate.visit

    def counted(self, *args):
        made.append(1)
        return visit(self, *args)

    monkeypatch.setattr(handlers.Generate, "visit", counted)
    return made


def test_handlers_do_not_run_from_the_fourth_time_on(monkeypatch):
    made = visits(monkeypatch)
    counts = []
    for key in range(6):
        line([1.0, 2.0]).vgenerate({("y", 0): float(key), ("y", 1): 2.0}, 10, key=key)
        counts.append(len(made))
        made.clear()
    assert counts == [3, 3, 6, 0, 0, 0]


def assert_follows(change, expected):
    """Batches before a change are kept; the first after it has the mean (of 10,000 draws) that is expected."""
    for key in range(4):
        line([]).vsimulate(10_000, key=key)
    change()
    assert mx.mean(line([]).vsimulate(10_000, key=5)["slope"]).item() == pytest.approx(expected, abs=0.4)


def test_a_change_of_what_the_model_reads_is_seen(monkeypatch):
    monkeypatch.setitem(sys.modules[__name__].__dict__, "OFFSETS", [0.0])
    assert_follows(lambda: OFFSETS.__setitem__(0, 20.0), 20.0)
    assert_follows(lambda: monkeypatch.setitem(sys.modules[__name__].__dict__, "OFFSETS", [-20.0]), -20.0)


def test_a_new_version_is_seen_and_old_batches_keep_theirs():
    @gen.new
    def model():
        return trace("x", normal(0.0, 1.0))

    for key in range(4):
        old = model().vgenerate({}, 100, key=key).trace
    model.redefine(lambda: trace("x", normal(50.0, 1.0)))
    new = model().vgenerate({}, 100, key=5).trace
    assert old.stale and not new.stale and mx.min(new["x"]).item() > 40
    assert np.allclose(old.update({"x": 0.5}).trace.score, -0.5 * 0.25 - 0.5 * np.log(2 * np.pi), atol=1e-6)


def test_traces_are_pinned_to_what_ran_in_them():
    @gen.new
    def child(x):
        return trace("y", normal(x, 1.0))

    @gen.new
    def parent():
        return trace("c", child(trace("x", normal(0, 1))))

    made = [parent().vgenerate({}, 5, key=key).trace for key in range(5)]
    assert made[-1].pins == made[0].pins and made[-1].pins is not made[-2].pins
    child.redefine(lambda x: trace("y", normal(x, 100.0)))
    assert made[-1].stale and mx.max(mx.abs(made[-1].update({"x": 0.0}).trace["c", "y"])).item() < 10


def test_other_numbers_in_the_arguments_are_another_batch():
    for scale in (1.0, 1.0, 1.0, 1.0, 2.0, 1.0):
        found = line([scale]).vgenerate({"slope": 1.0, ("y", 0): 0.0}, 3, key=0).weight
        with anew():
            assert_same(found, line([scale]).vgenerate({"slope": 1.0, ("y", 0): 0.0}, 3, key=0).weight)


def test_zeros_of_either_sign_are_not_one_number():
    @gen.new
    def model(x):
        trace("y", normal(mx.arctan2(mx.array(x), -1.0), 1.0))

    for x in (0.0, 0.0, 0.0, 0.0, -0.0):
        weight = model(x).vgenerate({"y": 3.0}, 1, key=0).weight
    assert weight.item() == pytest.approx(-0.5 * (3 + np.pi) ** 2 - 0.5 * np.log(2 * np.pi), abs=1e-4)


def test_a_body_that_looks_at_an_observation_is_run_each_time():
    @gen.new
    def model():
        if trace("z", flip(0.25)):
            return trace("x", normal(10.0, 1.0))
        return trace("x", normal(-10.0, 1.0))

    for i in range(6):
        z = i % 2
        found = model().vgenerate({"z": z}, 20, key=i)
        assert mx.all((found.trace["x"] > 0) == bool(z)).item()


def test_a_body_that_prints_prints_each_time(capsys):
    @gen.new
    def model():
        print("here")
        return trace("x", normal(0, 1))

    for key in range(5):
        model().vsimulate(3, key=key)
    assert capsys.readouterr().out.count("here") == 5


def test_a_body_with_parameters_follows_them():
    @gen.new
    def model():
        return trace("x", normal(param("m", 0.0), 1.0))

    for key in range(4):
        model().vsimulate(50, key=key)
    model.params["m"] = 30.0
    assert mx.min(model().vsimulate(50, key=5)["x"]).item() > 20


def test_a_body_with_noise_of_its_own_is_not_frozen():
    @gen.new
    def model():
        return trace("x", normal(mx.random.uniform(), 1e-3))

    assert len({round(mx.mean(model().vsimulate(5, key=0)["x"]).item(), 5) for _ in range(8)}) == 8


def test_gradients_go_through_a_kept_batch():
    data = mx.array([1.0, 2.0, 3.0])

    @gen.new
    def model(scale):
        trace("y", normal(mx.zeros(3), scale))

    def loss(scale):
        return mx.sum(model(scale).vgenerate({"y": data}, 2, key=0).weight)

    expected = 2 * (14.0 / 8.0 - 3 / 2.0)  # of the log density of a scale of 2
    for _ in range(5):
        loss(mx.array(2.0))
        assert mx.grad(loss)(mx.array(2.0)).item() == pytest.approx(expected, abs=1e-5)
    mapped = mx.vmap(loss)(mx.array([1.0, 2.0]))
    assert mapped[1].item() == pytest.approx(loss(mx.array(2.0)).item(), abs=1e-5)
    assert mx.compile(loss)(mx.array(2.0)).item() == pytest.approx(loss(mx.array(2.0)).item(), abs=1e-5)


def test_gradients_of_gamma_draws_are_not_lost():
    from genmlx import gamma

    @gen.new
    def model(shape):
        return trace("x", gamma(shape, 1.0))

    def mean(shape):
        return mx.mean(model(shape).vsimulate(4000, key=0).retval)

    for _ in range(5):
        mean(mx.array(3.0))
        assert mx.grad(mean)(mx.array(3.0)).item() == pytest.approx(1.0, abs=0.05)  # the mean is the shape


def test_an_update_of_a_kept_batch_is_one_of_a_fresh_one():
    @gen.new
    def step(t, x):
        return trace("x", normal(x, 1.0))

    chain = unfold(step)
    for key in range(5):
        found = chain(4, 0.0).vgenerate({(2, "x"): 1.0}, 6, key=key).trace
        with anew():
            fresh = chain(4, 0.0).vgenerate({(2, "x"): 1.0}, 6, key=key).trace
            mine, theirs = (t.update({(1, "x"): 0.3}, key=9) for t in (found, fresh))
            assert_same((mine.trace.lanes, mine.weight), (theirs.trace.lanes, theirs.weight))


def test_a_mistake_in_an_address_is_an_error_each_time():
    from genmlx.errors import UnknownAddress

    for key in range(5):
        with pytest.raises(UnknownAddress, match="slop"):
            line([1.0]).vgenerate({"slop": 1.0}, 3, key=key)


def test_only_so_many_batches_are_known():
    for n in range(1, 80):
        line([]).vsimulate(n, key=0)
    assert len(line.__dict__["_batches"]) == 64


@pytest.mark.parametrize("native", [False, True])
def test_batches_go_with_their_model(native):
    import gc
    import weakref

    from genmlx import smc
    from genmlx.inference import importance_sampling

    if native:
        pytest.importorskip("llvmlite")
        if mx.default_device() != mx.Device(mx.cpu):
            pytest.skip("batches are machine code on the CPU alone")

    @gen.new
    def step(t, x):
        return trace("x", normal(x, 1.0))

    chain = unfold(step)
    for key in range(5):
        importance_sampling(step(0, 0.0), {"x": 1.0}, 20, key=key, native=native)
        smc([(chain(t + 1, 0.0), {}) for t in range(5)], 10, key=key, native=native)
    assert step.__dict__["_batches"] and step.__dict__["_steps"]
    gone = weakref.ref(step)
    del step, chain
    gc.collect()
    assert gone() is None
