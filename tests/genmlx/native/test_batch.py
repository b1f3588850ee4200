"""Batches of traces as machine code: the draws, weights and evidence of the handlers, up to rounding."""

import logging
import math
import sys

import mlx.core as mx
import numpy as np
import pytest
from gfi_zoo import CASES
from kept_batches import forget
from state_spaces import HMM, HMM_LOG_ML, SERIES, assert_evidence_is, kalman, walk, walks

from genmlx import categorical, dist, gamma, gen, normal, poisson, smc, switch, trace, unfold
from genmlx.inference import importance_resampling, importance_sampling
from genmlx.kept import execution
from genmlx.native.batch import native_batch
from genmlx.native.graph import Untranslatable
from genmlx.pytree import split_arrays
from genmlx.vectorized import recorder

pytest.importorskip("llvmlite")

NATIVE = "native (float32)"
XS, YS = [1.0, 2.0, 3.0, 4.0, 5.0], [2.1, 3.9, 6.2, 7.8, 10.1]
NOISE = 1.0


@pytest.fixture(autouse=True)
def nothing_kept():
    forget()
    yield
    forget()


@gen
def line(xs):
    slope = trace("slope", normal(0, 10))
    intercept = trace("intercept", normal(0, 10))
    for j, x in enumerate(xs):
        trace(("y", j), normal(slope * x + intercept, NOISE))
    return slope


OBSERVED = {("y", j): y for j, y in enumerate(YS)}


def line_log_ml(noise=1.0):
    x = np.array(XS)
    covariance = 100 * np.outer(x, x) + 100 + noise**2 * np.eye(5)
    _, log_det = np.linalg.slogdet(covariance)
    return -0.5 * (5 * math.log(2 * math.pi) + log_det + YS @ np.linalg.solve(covariance, YS))


@pytest.mark.parametrize("case", [c for c in CASES if c.batches], ids=repr)
def test_a_native_batch_of_every_model_agrees_with_its_handlers(case):
    """All arrays of the traces. A model without a native form raises, and says which primitive it is."""
    choices = case.model(*case.args).simulate(key=0).choices
    some = {address: choices[address] for address in choices.addresses()[::2]}
    with recorder(lambda batch, form: batch):
        expected = [case.model(*case.args).vgenerate(some, 50, key=key) for key in range(3)]
    for key, theirs in enumerate(expected):
        with execution(True, False) as how:
            mine = case.model(*case.args).vgenerate(some, 50, key=key)
        assert how.found == NATIVE
        found, wanted = (split_arrays((made.trace.lanes, made.weight))[0] for made in (mine, theirs))
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == b.dtype and np.allclose(np.array(a), np.array(b), rtol=2e-4, atol=2e-4, equal_nan=True)


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_importance_sampling_draws_what_mlx_draws(n):
    native, mlx = (importance_sampling(line(XS), OBSERVED, n, key=3, native=choice) for choice in (True, False))
    assert native.execution == NATIVE and mlx.execution in ("handlers", "replayed")
    for address in ("slope", "intercept", ("y", 2)):
        assert np.allclose(np.array(native[address]), np.array(mlx[address]), rtol=1e-5, atol=1e-5)
    assert np.allclose(np.array(native.log_weights), np.array(mlx.log_weights), rtol=2e-5)
    assert native.log_ml.item() == pytest.approx(mlx.log_ml.item(), rel=1e-5)
    assert np.allclose(np.array(native.traces[0].score), np.array(mlx.traces[0].score), rtol=1e-5)


def test_the_evidence_is_that_of_algebra():
    """2,000,000 particles, which is where machine code begins by itself: the error is known from the weights."""
    found = importance_sampling(line(XS), OBSERVED, 2_000_000, key=1)
    assert found.execution == NATIVE and found.log_ml_error < 0.05
    assert abs(found.log_ml.item() - line_log_ml()) < 4 * found.log_ml_error


def test_small_problems_are_not_compiled():
    assert importance_sampling(line(XS), OBSERVED, 1000, key=0).execution == "handlers"
    assert smc(walks(SERIES), 100, key=0).execution in ("handlers", "replayed")


def test_another_key_other_data_and_other_globals_are_followed(monkeypatch):
    first = importance_sampling(line(XS), OBSERVED, 20_000, key=0, native=True)
    again = importance_sampling(line(XS), OBSERVED, 20_000, key=0, native=True)
    other = importance_sampling(line(XS), OBSERVED, 20_000, key=1, native=True)
    assert np.array_equal(np.array(first.log_weights), np.array(again.log_weights))
    assert not np.any(np.array(first["slope"]) == np.array(other["slope"]))
    moved = importance_sampling(line(XS), {a: y + 1.0 for a, y in OBSERVED.items()}, 20_000, key=0, native=True)
    assert np.array_equal(np.array(first["slope"]), np.array(moved["slope"]))
    assert moved.log_weights[0].item() != first.log_weights[0].item()
    monkeypatch.setattr(sys.modules[__name__], "NOISE", 20.0)
    wide = importance_sampling(line(XS), OBSERVED, 20_000, key=0, native=True)
    assert wide.execution == NATIVE
    assert abs(wide.log_ml.item() - line_log_ml(20.0)) < 4 * wide.log_ml_error


def test_a_proposal_is_compiled_too():
    @gen
    def near():
        trace("slope", normal(2.0, 0.2)), trace("intercept", normal(0.0, 1.0))

    native, mlx = (
        importance_sampling(line(XS), OBSERVED, 5000, proposal=near(), key=3, native=choice) for choice in (True, False)
    )
    assert native.execution == NATIVE
    assert np.allclose(np.array(native.log_weights), np.array(mlx.log_weights), atol=2e-4)
    assert abs(native.log_ml.item() - line_log_ml()) < 4 * native.log_ml_error
    drawn = importance_resampling(line(XS), OBSERVED, 50, 5000, near(), key=3, native=True)
    assert drawn.n == 50 and drawn.execution == NATIVE


@gen
def many_kinds(t, x):
    k = trace("k", categorical(mx.array([0.2, 0.3, 0.5])))
    rate = trace("rate", gamma(2.0 + k, 1.0 + x * x))
    trace("n", poisson(rate))
    x = trace("x", normal(0.9 * x, mx.sqrt(rate)))
    trace("y", dist.student_t(4.0, x, 1.0))
    return x


kinds = unfold(many_kinds)
KINDS = [(kinds(t + 1, 0.5), {(t, "n"): t % 4, (t, "y"): 0.4 * t}) for t in range(12)]
FILTERS = {"walk": walks(SERIES * 3), "hidden chain": HMM, "many kinds": KINDS}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_native_filter_is_that_of_mlx(name, threshold):
    """The same ancestors and choices, as long as no draw falls on the other side of an edge."""
    native, mlx = (smc(FILTERS[name], 200, threshold, key=5, native=choice) for choice in (True, False))
    assert native.execution == NATIVE
    assert native.log_ml.item() == pytest.approx(mlx.log_ml.item(), abs=2e-4)
    for address in mlx.addresses():
        same = np.isclose(np.array(native[address]), np.array(mlx[address]), rtol=1e-4, atol=1e-4)
        assert same.mean() > 0.98
    lane = native.traces[17]
    assert lane.score.item() == pytest.approx(lane.gen_fn.assess(lane.args, lane.choices).score.item(), abs=1e-3)


def test_native_filters_have_the_exact_evidence():
    steps, exact = walks(SERIES), kalman(SERIES)[1]
    assert_evidence_is(exact, lambda seed: smc(steps, 100, 1.0, key=seed, native=True).log_ml.item(), precision=0.2)
    assert_evidence_is(HMM_LOG_ML, lambda seed: smc(HMM, 100, 1.0, key=seed, native=True).log_ml.item(), precision=0.2)


def test_long_filters_are_native_by_themselves():
    steps = walks(np.sin(np.arange(200)).tolist())
    found = smc(steps, 50, key=0)
    assert found.execution == NATIVE
    assert found.log_ml.item() == pytest.approx(smc(steps, 50, key=0, native=False).log_ml.item(), abs=0.01)


def test_what_has_no_native_form_runs_on_mlx_and_says_why(caplog):
    @gen
    def model():
        return trace("x", normal(mx.linalg.svd(mx.eye(2), stream=mx.cpu)[1][0], 1.0))

    with caplog.at_level(logging.INFO, "genmlx.native"):
        found = importance_sampling(model(), {}, 10, key=0, native=None)
        with execution(None, True) as how:
            model().vsimulate(10, key=0)
    assert found.execution == "handlers" and how.found == "handlers"
    assert any("a batch runs on MLX" in record.message for record in caplog.records)
    with pytest.raises(Untranslatable):
        importance_sampling(model(), {}, 10, key=0, native=True)


def test_code_that_gives_something_else_is_not_used():
    def double(x):
        return [2 * x]

    x = mx.arange(2000).astype(mx.float32)
    assert native_batch(double, [x], [2 * x], True) is not None
    with pytest.raises(Untranslatable, match="differs in 1999 of 2000 lanes"):
        native_batch(double, [x], [2.01 * x], True)
    flipped = mx.where(mx.arange(2000) == 7, -1.0, 2 * x)
    assert native_batch(double, [x], [flipped], False) is not None  # one lane, as where a draw is at an edge


def test_branches_and_masks_have_a_native_form():
    @gen
    def left():
        return trace("l", normal(0, 1))

    @gen
    def right():
        return trace("r", normal(10, 1))

    @gen
    def model():
        which = trace("which", categorical(mx.array([0.5, 0.5])))
        return trace("y", normal(trace("s", switch(left, right)(which)), 1.0))

    native, mlx = (importance_sampling(model(), {"y": 9.0}, 2000, key=0, native=choice) for choice in (True, False))
    assert native.execution == NATIVE
    assert np.allclose(np.array(native.log_weights), np.array(mlx.log_weights), rtol=1e-4, atol=1e-4)


def test_an_interrupted_or_failing_run_leaves_no_mode_behind():
    with pytest.raises(ValueError):
        importance_sampling(line(XS), {("y", 0): float("nan")}, 10, native=True)
    assert importance_sampling(line(XS), OBSERVED, 10, key=0).execution == "handlers"


@gen
def contains_a_walk(n):
    trace("c", walk(n, 0.0, 1.0))


UNFIT = {
    "a model that contains a chain": ([(contains_a_walk(n), {("c", n - 1, "y"): 1.0}) for n in (1, 2, 3)], {}),
    "arguments that change": ([(walk(n, 0.0, 1.0 + n / 10), {(n - 1, "y"): 1.0}) for n in (1, 2, 3)], {}),
    "a proposal": (walks(SERIES), {"proposal": lambda tr: ahead(tr.args[0])}),
}


@gen
def ahead(t):
    trace((t, "x"), normal(0.0, 2.0))


@pytest.mark.parametrize("name", UNFIT)
def test_steps_without_a_native_form_run_on_mlx_unless_that_is_ruled_out(name):
    steps, options = UNFIT[name]
    assert smc(steps, 20, key=0, **options).execution in ("handlers", "replayed")
    with pytest.raises(Untranslatable, match="only the steps of an unfold or a scan"):
        smc(steps, 20, key=0, native=True, **options)


def test_moves_between_native_steps_run_on_mlx():
    found = smc(walks(SERIES), 4000, 1.0, rejuvenate=(0, "x"), key=0, native=True)
    assert found.execution == NATIVE
    assert abs(found.log_ml.item() - kalman(SERIES)[1]) < 4 * found.log_ml_error
