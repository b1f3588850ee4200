"""One more step of a chain, run by itself, is to the bit what an update of the whole sequence gives."""

import mlx.core as mx
import numpy as np
import pytest
from kept_batches import forget
from state_spaces import HMM, SERIES, walk, walks

from genmlx import gen, handlers, normal, param, scan, smc, trace, unfold
from genmlx.errors import UnknownAddress
from genmlx.inference import ParticleFilter
from genmlx.inference.translators import SimpleExtendingTranslator
from genmlx.pytree import split_arrays

MATRIX = mx.array([[0.9, 0.1], [0.0, 0.8]])


@gen
def vector_step(t, state, matrix):
    x = trace("x", normal(matrix @ state["x"], 0.5))
    trace("y", normal(mx.sum(x) + 0.5 * t, 1.0))
    return {"x": x, "sum": mx.sum(x)}


@gen
def driven(carry, x):
    z = trace("z", normal(carry + x, 1.0))
    trace("y", normal(z, 2.0))
    return z, 2 * z


vectors, scanned = unfold(vector_step), scan(driven)
START = {"x": mx.zeros(2), "sum": mx.array(0.0)}
US = np.linspace(-1, 1, 40)


@gen
def branches_at_first(t, x):
    x = trace("x", normal(0.0, 5.0)) if t == 0 else trace("x", normal(x, 1.0))
    trace("y", normal(x, 1.0))
    return x


branching = unfold(branches_at_first)
CHAINS = {
    "a walk": walks(SERIES * 5),
    "a hidden chain": HMM,
    "states that are trees, and a shared array": [
        (vectors(t + 1, START, MATRIX), {(t, "y"): 0.3 * t}) for t in range(20)
    ],
    "a scan of a list": [(scanned(0.0, US[: t + 1].tolist()), {(t, "y"): 0.3 * t}) for t in range(20)],
    "some steps not observed": [(walk(t + 1, 0.0, 1.0), {(t, "y"): 1.0} if t % 3 else {}) for t in range(20)],
    "a step that looks at its number": [(branching(t + 1, 0.0), {(t, "y"): 1.0}) for t in range(8)],
}


JUMPS = {3, 5}


@gen
def jumps_in_a_set(t, x):
    x = trace("x", normal(x, 10.0 if t in JUMPS else 1.0))
    trace("y", normal(x, 1.0))
    return x


@gen
def named_by_its_number(t, x):
    x = trace(f"x{t}", normal(x, 1.0))
    trace("y", normal(x, 1.0))
    return x


@gen
def reads_a_list(t, x):
    x = trace("x", normal([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0][t] * x, 1.0))
    trace("y", normal(x, 1.0))
    return x


for kernel in (jumps_in_a_set, named_by_its_number, reads_a_list):
    chain = unfold(kernel)
    CHAINS[kernel.__name__] = [(chain(t + 1, 0.0), {(t, "y"): 1.0}) for t in range(8)]


def assert_same(a, b):
    (mine, form), (theirs, other) = split_arrays(a.traces.lanes), split_arrays(b.traces.lanes)
    assert form.spec == other.spec and form.places == other.places
    for x, y in zip([*mine, a.log_weights, a.log_ml], [*theirs, b.log_weights, b.log_ml], strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype and mx.array_equal(x, y).item()


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("resampled", [False, True], ids=["kept", "resampled"])
def test_a_step_is_that_of_an_update(name, resampled):
    """Trees, arrays, weights and sums, whether the kernel ran or was replayed; 20 steps fill a stack of 16."""
    forget()
    (call, given, *_), *rest = CHAINS[name]
    mine = theirs = ParticleFilter.init(call, given, 7, key=0)
    for t, (call, given, *_) in enumerate(rest):
        mine = mine.step(call, given, key=t)
        translator = SimpleExtendingTranslator(call, None, given, None)
        theirs = theirs._moved(translator, call, translator.observations, mx.random.key(t))
        if resampled and t % 2:
            mine, theirs = mine.resample(key=t), theirs.resample(key=t)
    assert_same(mine, theirs)
    lane = mine.traces[3]
    assert lane.gen_fn.assess(lane.args, lane.choices).score.item() == pytest.approx(lane.score.item(), abs=1e-4)


def test_the_kernel_is_run_a_few_times_however_long_the_series_is(monkeypatch):
    made, visit = [], handlers.Generate.visit

    def counted(self, *args):
        made.append(1)
        return visit(self, *args)

    monkeypatch.setattr(handlers.Generate, "visit", counted)
    for name, steps in (("walk", walks([1.0] * 60)), ("scan", [
        (scanned(0.0, mx.array(US[: t + 1].astype(np.float32))), {(t, "y"): 0.0}) for t in range(40)
    ])):  # fmt: skip
        forget()
        made.clear()
        smc(steps, particles=5, key=0, native=False)
        assert len(made) <= 2 * 5, (name, len(made))


def test_observations_of_another_address_are_an_error_at_every_step():
    forget()
    pf = ParticleFilter.init(walk(1, 0.0, 1.0), {(0, "y"): 1.0}, 5, key=0)
    for t in range(1, 6):
        with pytest.raises(UnknownAddress, match="'z'"):
            pf.step(walk(t + 1, 0.0, 1.0), {(t, "z"): 1.0}, key=t)
        pf = pf.step(walk(t + 1, 0.0, 1.0), {(t, "y"): 1.0}, key=t)


def test_an_argument_that_changes_rescores_every_step():
    pf = ParticleFilter.init(walk(1, 0.0, 1.0), {(0, "y"): 1.0}, 5, key=0)
    for t in range(1, 5):
        pf = pf.step(walk(t + 1, 0.0, 1.0), {(t, "y"): 1.0}, key=t)
    other = pf.step(walk(6, 0.0, 2.0), {(5, "y"): 1.0}, key=9)
    for i in range(5):
        lane = other.traces[i]
        again = lane.gen_fn.assess((6, 0.0, 2.0), lane.choices).score.item()
        assert lane.score.item() == pytest.approx(again, abs=1e-4)
    pf = ParticleFilter.init(scanned(0.0, mx.array([0.0])), {(0, "y"): 1.0}, 5, key=0)
    longer = pf.step(scanned(0.0, mx.array([3.0, 0.0])), {(1, "y"): 1.0}, key=1)
    for i in range(5):
        lane = longer.traces[i]
        again = lane.gen_fn.assess((0.0, mx.array([3.0, 0.0])), lane.choices)
        assert lane.score.item() == pytest.approx(again.score.item(), abs=1e-4)


def test_a_kernel_with_parameters_follows_them():
    @gen
    def step(t, x):
        return trace("x", normal(x + param("drift", 0.0), 1e-3))

    chain = unfold(step)
    pf = ParticleFilter.init(chain(1, 0.0), {}, 5, key=0)
    for t in range(1, 5):
        step.params["drift"] = 10.0 * t
        pf = pf.step(chain(t + 1, 0.0), {}, key=t)
    # An update to other parameters would move nothing: the choices stay. Only the new step drifts.
    assert [round(pf.mean((t, "x")).item()) for t in range(5)] == [0, 10, 30, 60, 100]


def test_a_step_that_is_impossible_is_named():
    from genmlx.inference.resampling import DegenerateWeights

    @gen
    def step(t, x):
        x = trace("x", normal(x, 1.0))
        trace("y", normal(x, mx.where(t < 4, 1.0, -1.0)))
        return x

    chain = unfold(step)
    steps = [(chain(t + 1, 0.0), {(t, "y"): 0.0}) for t in range(6)]
    with pytest.raises((DegenerateWeights, ValueError), match="step 4|NaN"):
        smc(steps, particles=5, key=0)
