"""The steps of a filter from one call, what it records of an address, and the error of its evidence."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy.stats import norm

from genmlx import gen, normal, scan, trace, unfold
from genmlx.choicemap import choicemap
from genmlx.errors import UnknownAddress, UsageError
from genmlx.inference import Bands, ParticleFilter, growing_steps, smc
from genmlx.inference.bands import weighted_quantiles


@gen
def step(t, x):
    x = trace("x", normal(0.9 * x, 1.0))
    trace("y", normal(x, 0.7))
    return x


@gen
def add(total, x):
    total = total + trace("z", normal(x, 1.0))
    return total, total


walk = unfold(step)


@gen
def model(n, start=0.0, *, offset=0.0):
    offset = trace("offset", normal(offset, 1.0))
    trace("states", walk(n, start + offset))


YS = [0.3, 1.9, 1.1, 2.2, 0.1, -0.8, -2.9, -2.0]
OBSERVED = {(t, "y"): y for t, y in enumerate(YS)}


def kalman():
    """Means and variances of the filter, and the log evidence."""
    mean, variance, log_ml, found = 0.0, 0.0, 0.0, []
    for y in YS:
        mean, variance = 0.9 * mean, 0.81 * variance + 1.0
        log_ml += norm(mean, math.sqrt(variance + 0.49)).logpdf(y)
        gain = variance / (variance + 0.49)
        mean, variance = mean + gain * (y - mean), (1 - gain) * variance
        found.append((mean, math.sqrt(variance)))
    return found, log_ml


# steps


def test_an_unfold_grows_with_the_observations_of_each_step():
    steps = growing_steps(walk(3, 0.0), {(0, "y"): 1.0, (2, "y"): 3.0})
    assert [call.args for call, _ in steps] == [(1, 0.0), (2, 0.0), (3, 0.0)]
    assert [given for _, given in steps] == [choicemap({(0, "y"): 1.0}), choicemap({}), choicemap({(2, "y"): 3.0})]


def test_a_scan_grows_by_its_elements_of_each_form():
    for xs in ([1.0, 2.0, 3.0], mx.array([1.0, 2.0, 3.0])):
        steps = growing_steps(scan(add)(0.0, xs), {(1, "z"): 2.0})
        assert [np.array(call.args[1]).tolist() for call, _ in steps] == [[1.0], [1.0, 2.0], [1.0, 2.0, 3.0]]
        assert [given.addresses() for _, given in steps] == [[], [(1, "z")], []]
    pair = {"a": mx.array([1.0, 2.0]), "b": mx.array([[3.0, 4.0], [5.0, 6.0]])}
    first = growing_steps(scan(add)(0.0, pair))[0][0].args[1]
    assert first["a"].tolist() == [1.0] and first["b"].tolist() == [[3.0, 4.0]]


def test_a_model_grows_by_its_one_whole_number_and_what_has_no_number_is_of_the_first_step():
    given = {("states", 0, "y"): 1.0, ("states", 1, "y"): 2.0, "offset": 0.5}
    steps = growing_steps(model(n=2, offset=1.0), given)
    assert [call.raw_args + tuple(call.raw_kwargs.values()) for call, _ in steps] == [(1, 0.0, 1.0), (2, 0.0, 1.0)]
    assert steps[0][1].addresses() == [("states", 0, "y"), ("offset",)]
    assert steps[1][1].addresses() == [("states", 1, "y")]
    assert growing_steps(model(2, 1, offset=0.0), length="n")[0][0].raw_args == (1, 1)


def test_the_steps_have_the_evidence_of_the_whole():
    exact = kalman()[1]
    for call, given in ((walk(8, 0.0), OBSERVED), (model(8), {("states", *a): y for a, y in OBSERVED.items()})):
        if call.gen_fn is model:
            given["offset"] = 0.0
            exact += norm(0, 1).logpdf(0.0)
        pf = smc(growing_steps(call, given), particles=20_000, key=mx.random.key(0))
        assert abs(pf.log_ml.item() - exact) < 0.13  # four errors; a step that is left out changes it by 1 or more


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: growing_steps(walk, {}), UsageError, "not a call"),
        (lambda: growing_steps(walk(0, 0.0)), UsageError, "has no steps"),
        (
            lambda: growing_steps(walk(2, 0.0), {(2, "y"): 1.0}),
            UnknownAddress,
            "an observation is of step 2, and there",
        ),
        (lambda: growing_steps(normal(0, 1)), UsageError, "normal does not grow"),
        (lambda: growing_steps(model(2.0)), UsageError, "none of its arguments is a whole number"),
        (lambda: growing_steps(model(2, 1)), UsageError, "its length may be n or start"),
        (lambda: growing_steps(model(2), length="start"), UsageError, "no whole number 'start'"),
        (lambda: growing_steps(walk(2, 0.0), length="n"), UsageError, "was given length='n'"),
    ],
)
def test_what_cannot_grow_says_why(make, error, said):
    with pytest.raises(error) as caught:
        make()
    assert said in str(caught.value)


# bands


def test_quantiles_by_weight_are_those_of_repeated_numbers():
    rng = np.random.default_rng(0)
    values, counts = rng.normal(size=(50, 3)), rng.integers(0, 6, 50)
    repeated = np.repeat(values, counts, axis=0)
    want = np.quantile(repeated, (0.05, 0.5, 0.95), axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(weighted_quantiles(values, counts / counts.sum(), (0.05, 0.5, 0.95)), want)


def test_bands_are_those_of_the_kalman_filter():
    """Smoothing, or weights from before the step or after its resampling, would be off by 0.3 at some steps."""
    exact, _ = kalman()
    for call, address, place in ((walk(8, 0.0), "x", ("x",)), (model(8), ("states", "x"), ("states", "x"))):
        given = OBSERVED if call.gen_fn is walk else {("states", *a): y for a, y in OBSERVED.items()} | {"offset": 0.0}
        pf = smc(growing_steps(call, given), particles=40_000, record=Bands(address), key=mx.random.key(1))
        for (mean, sd), known in zip(exact, pf.history.recorded, strict=True):
            band = known[place]
            want = [mean, sd, *norm(mean, sd).ppf([0.05, 0.5, 0.95])]
            np.testing.assert_allclose(np.stack(band), want, atol=0.06)


def test_bands_of_what_no_step_numbers_and_of_what_is_not_there():
    steps = growing_steps(model(2), {("states", t, "y"): 1.0 for t in range(2)})
    pf = smc(steps, particles=50, record=Bands("offset"), key=mx.random.key(0))
    np.testing.assert_allclose(pf.history.recorded[-1]["offset",].mean, pf.mean("offset").item(), rtol=1e-5)
    with pytest.raises(UnknownAddress, match="step 0 has no such choice"):
        smc(steps, particles=50, record=Bands("z"))
    with pytest.raises(UsageError, match="no address"):
        Bands()


# the error of the evidence


@gen
def faint_step(t, x):
    x = trace("x", normal(0.9 * x, 1.0))
    trace("y", normal(x, 2.5))
    return x


def spread_and_errors(**settings):
    """Of a series of which each step says little, so that resampling costs more than the weights do."""
    steps = growing_steps(unfold(faint_step)(12, 0.0), {(t, "y"): y for t, y in enumerate((YS + YS)[:12])})
    runs = [smc(steps, particles=100, key=mx.random.key(seed), **settings) for seed in range(200)]
    return np.array([run.log_ml.item() for run in runs]), np.array([run.log_ml_error for run in runs])


@pytest.mark.parametrize(
    ("scheme", "threshold"), [("multinomial", 1.0), ("systematic", 1.0), ("systematic", 0.5), ("residual", 0.7)]
)
def test_the_error_of_the_evidence_is_its_spread_over_200_seeds(scheme, threshold):
    """Both have an error of 5% or so. Without a correction for pairs it would be twice the spread where resampling is
    multinomial; with that of multinomial resampling zero where it is systematic."""
    log_ml, errors = spread_and_errors(resampling=scheme, ess_threshold=threshold)
    assert abs(np.sqrt(np.mean(errors**2)) / log_ml.std(ddof=1) - 1) < 0.25


def test_without_resampling_it_is_that_of_importance_sampling():
    steps = growing_steps(walk(3, 0.0), dict(list(OBSERVED.items())[:3]))
    pf = smc(steps, particles=500, ess_threshold=0.0, key=mx.random.key(0))
    weights = np.exp(np.array(pf.log_weights, dtype=float))
    assert pf.log_ml_error == pytest.approx(weights.std(ddof=1) / weights.mean() / math.sqrt(500), rel=1e-4)


def test_an_error_that_is_not_known_is_nan_and_one_that_is_zero_zero():
    far = growing_steps(walk(8, 0.0), {(t, "y"): 30.0 * (-1) ** t for t in range(8)})
    assert math.isnan(smc(far, particles=20, key=mx.random.key(0)).log_ml_error)  # all of one ancestor
    assert smc(growing_steps(walk(4, 0.0)), particles=20, key=mx.random.key(0)).log_ml_error == pytest.approx(
        0, abs=1e-6
    )
    parts = [ParticleFilter.init(walk(1, 0.0), {(0, "y"): 1.0}, 10, key=mx.random.key(i)) for i in range(2)]
    assert math.isnan(ParticleFilter.join(parts).log_ml_error)
    assert math.isnan(ParticleFilter.init(walk(1, 0.0), {(0, "y"): 1.0}, 1).log_ml_error)


def test_resizing_and_copying_do_not_change_what_is_known_of_it():
    """The pairs that a scheme leaves, or that copies add, are accounted for; each takes about as many seeds' mean."""
    ratios = {"optimal": [], "copies": [], "priority": []}
    steps = growing_steps(walk(3, 0.0), dict(list(OBSERVED.items())[:3]))
    for seed in range(40):
        pf = smc(steps, particles=400, ess_threshold=0.0, key=mx.random.key(seed))
        copied = pf.replicate(3)
        ratios["copies"].append(copied.log_ml_error / pf.log_ml_error)
        ratios["optimal"].append(
            pf.resize(200, scheme="optimal", key=mx.random.key(seed)).log_ml_error / pf.log_ml_error
        )
        drawn = pf.resample(priority=lambda logs: logs / 2, key=mx.random.key(seed))
        ratios["priority"].append(drawn.log_ml_error / pf.log_ml_error)
    assert np.allclose(ratios["copies"], 1.0, atol=1e-3)
    assert abs(np.mean(ratios["optimal"]) - 1) < 0.1 and abs(np.mean(ratios["priority"]) - 1) < 0.15
