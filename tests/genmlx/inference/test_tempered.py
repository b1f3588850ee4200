"""Tempered SMC: evidence and posteriors against closed forms and quadrature, with every kernel."""

import math
import os
import signal
import threading
from itertools import product

import mlx.core as mx
import numpy as np
import pytest
from scipy import optimize, special, stats

from genmlx import (
    beta,
    broadcasted_normal,
    categorical,
    dirichlet,
    exponential,
    flip,
    gen,
    hmc,
    mask,
    normal,
    param,
    trace,
    uniform,
)
from genmlx.errors import ImpossibleObservation, ParameterError, UnknownAddress, UsageError
from genmlx.inference import InferenceInterrupted, NoStartingPoint, TemperedHistory, tempered_smc
from genmlx.inference.methods import METHODS
from genmlx.inference.tempered import next_temperature
from genmlx.inference.tempered_moves import TemperedDensity, _finite

KERNELS = ("hmc", "mala", "random_walk", "mh")
FULL = os.environ.get("GENMLX_FULL") == "1"
GRID = np.linspace(-25, 25, 200_001)


def assert_unbiased(results, exact, largest=0.1):
    """exp(log_ml - exact) has mean 1: within three of its own standard errors, which are small."""
    ratios = np.exp(np.array([r.log_ml.item() for r in results], np.float64) - exact)
    error = ratios.std(ddof=1) / math.sqrt(len(ratios))
    assert error < largest
    assert abs(ratios.mean() - 1) < 3 * error


def runs(call, observations, seeds=20, first=0, **keywords):
    return [tempered_smc(call, observations, key=first + seed, **keywords) for seed in range(seeds)]


def log_integral(log_density, grid=GRID):
    logs = log_density(grid)
    return logs.max() + math.log(np.trapezoid(np.exp(logs - logs.max()), grid))


# evidence and posteriors


@gen
def two_modes():
    x = trace("x", normal(1, 3))
    trace("y", normal(x * x, 0.5))


def log_two_modes(x):
    return stats.norm(1, 3).logpdf(x) + stats.norm(x * x, 0.5).logpdf(9.0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_modes_and_their_weights(kernel):
    """The modes at -3 and 3 have the weights 0.34 and 0.66, by quadrature; widths of 1/12, which no chain crosses."""
    exact = log_integral(log_two_modes)
    right = math.exp(log_integral(log_two_modes, GRID[GRID >= 0]) - exact)
    assert 0.6 < right < 0.7
    found = runs(two_modes(), {"y": 9.0}, 10, particles=300, kernel=kernel)
    assert_unbiased(found, exact)
    # What a run estimates without bias is the evidence of each mode: the shares, weighted by the evidence of the run.
    parts = [math.exp(r.log_ml.item() - exact) * mx.sum(r.weights * (r["x"] > 0)).item() for r in found]
    assert abs(np.mean(parts) - right) < 3 * np.std(parts, ddof=1) / math.sqrt(10)
    within = np.concatenate([np.abs(np.array(r.resample(key=1)["x"])) for r in found])
    moments = [np.trapezoid(np.exp(log_two_modes(GRID) - exact) * np.abs(GRID) ** k, GRID) for k in (1, 2)]
    assert within.mean() == pytest.approx(moments[0], abs=0.02)
    assert within.std() == pytest.approx(math.sqrt(moments[1] - moments[0] ** 2), rel=0.15)


def test_a_chain_stays_in_one_mode():
    """What the test above is about: hmc gives each chain one of the modes."""
    post = hmc(two_modes(), {"y": 9.0}, draws=100, warmup=100, chains=4, key=1)
    assert set(np.unique((np.array(post["x"]) > 0).mean(axis=1))) <= {0.0, 1.0}


@gen
def regression(X):
    w = trace("w", broadcasted_normal(mx.zeros((X.shape[1],)), 1.0))
    trace("y", broadcasted_normal(X @ w, 0.4))


RNG = np.random.default_rng(1)
DESIGN = RNG.normal(size=(12, 3)).astype(np.float32)
TARGET = (DESIGN @ np.array([1.0, -2.0, 0.5]) + 0.4 * RNG.normal(size=12)).astype(np.float32)


@pytest.mark.parametrize("kernel", ["hmc", "mala", "random_walk"])
def test_a_regression(kernel):
    """Conjugate: the evidence, the means and the standard deviations of correlated weights."""
    exact = stats.multivariate_normal(np.zeros(12), DESIGN @ DESIGN.T + 0.16 * np.eye(12)).logpdf(TARGET)
    cov = np.linalg.inv(DESIGN.T @ DESIGN / 0.16 + np.eye(3))
    mean = cov @ DESIGN.T @ TARGET / 0.16
    found = runs(regression(mx.array(DESIGN)), {"y": mx.array(TARGET)}, 16, particles=300, kernel=kernel)
    assert_unbiased(found, exact)
    means = np.array([r.mean("w") for r in found])
    assert means.mean(axis=0) == pytest.approx(mean, abs=0.03)
    squares = np.mean([np.array(r.weights) @ (np.array(r["w"]) - mean) ** 2 for r in found], axis=0)
    assert np.sqrt(squares) == pytest.approx(np.sqrt(np.diag(cov)), rel=0.1)
    assert all((r.history.moves[1:] >= 2).all() for r in found)


@gen
def levels():
    a = trace("a", normal(0, 1))
    b = trace("b", normal(a, 0.5))
    trace("y", normal(b, 0.3))


def test_latents_that_are_neither_drawn_nor_observed_are_not_tempered():
    """Drawing a anew leaves b: its density counts whole, and that of y to the power of the temperature.

    All of it tempered, or nothing, gives another distribution of a at every step, and another evidence.
    """
    found = runs(levels(), {"y": 2.0}, 20, particles=300, kernel="mh", moves=8, temperatures=[0.05, 0.3, 1.0])
    assert_unbiased(found, stats.norm(0, math.sqrt(1.34)).logpdf(2.0))
    assert np.mean([r.mean("a").item() for r in found]) == pytest.approx(2 / 1.34, abs=0.03)
    means = np.array([r.mean("a").item() for r in runs(levels(), {"y": 2.0}, 4, particles=2000, kernel="mh")])
    assert means.mean() == pytest.approx(2 / 1.34, abs=0.05)
    spread = np.mean([np.array(r.resample(key=1)["a"]).std() for r in found])
    assert spread == pytest.approx(math.sqrt(1 - 1 / 1.34), rel=0.1)


@gen
def funnel():
    v = trace("v", normal(0, 1.5))
    for i, _ in enumerate(NARROW):
        trace(("y", i), normal(trace(("x", i), normal(0, mx.exp(v / 2))), 0.3))


NARROW = [0.1, -0.2, 0.05]


@pytest.mark.parametrize("kernel", ["hmc", "random_walk"])
def test_a_funnel(kernel):
    """The x have all scales at once; with them summed out there is one dimension left."""
    data = {("y", i): y for i, y in enumerate(NARROW)}

    def log_v(v):
        marginal = stats.norm(0, np.sqrt(np.exp(v) + 0.09))
        return stats.norm(0, 1.5).logpdf(v) + sum(marginal.logpdf(y) for y in NARROW)

    exact = log_integral(log_v)
    mean = np.trapezoid(GRID * np.exp(log_v(GRID) - exact), GRID)
    found = runs(funnel(), data, 16, particles=400, kernel=kernel)
    assert_unbiased(found, exact)
    means = [r.mean("v").item() for r in found]
    assert abs(np.mean(means) - mean) < 3 * np.std(means, ddof=1) / 4 and np.std(means) < 0.3


@gen
def shares(n):
    theta = trace("theta", dirichlet(mx.array([0.5, 1.0, 2.0])))
    p = trace("p", beta(0.3, 0.4))
    for i in range(n):
        trace(("k", i), categorical(mx.log(theta)))
        trace(("b", i), flip(p))


@pytest.mark.parametrize("kernel", ["hmc", "random_walk"])
def test_a_simplex_and_an_interval(kernel):
    """Dirichlet-multinomial and beta-binomial evidence; beta(0.3, 0.4) has its mass at both ends."""
    ks, bs = [0, 2, 2, 1, 2, 0], [1, 1, 0, 1, 1, 1]
    alpha, counts = np.array([0.5, 1.0, 2.0]), np.bincount(ks)
    exact = special.gammaln(3.5) - special.gammaln(9.5)
    exact += (special.gammaln(alpha + counts) - special.gammaln(alpha)).sum()
    exact += special.betaln(0.3 + 5, 0.4 + 1) - special.betaln(0.3, 0.4)
    data = {("k", i): k for i, k in enumerate(ks)} | {("b", i): b for i, b in enumerate(bs)}
    found = runs(shares(6), data, 8, particles=400, kernel=kernel)
    assert_unbiased(found, exact)
    theta = np.mean([np.array(r.mean("theta")) for r in found], axis=0)
    assert theta == pytest.approx((alpha + counts) / 9.5, abs=0.02)
    assert np.mean([r.mean("p").item() for r in found]) == pytest.approx(5.3 / 6.7, abs=0.02)


def test_prior_draws_on_the_edge_of_their_support():
    """They have no coordinates: they are put to the outermost of the other draws, so that none of them is lost."""

    @gen
    def pair():
        trace("p", beta(2, 2)), trace("x", normal(0, 1))

    density = TemperedDensity(pair(), {})
    u = mx.array([[math.inf, 0.5], [-1.0, 0.0], [3.0, -math.inf], [-math.inf, math.nan], [0.0, 2.0]])
    found = np.array(_finite(u, density))
    assert found.tolist() == [[3, 0.5], [-1, 0], [3, 0], [-1, 0.5], [0, 2]]
    with pytest.raises(NoStartingPoint, match="on the edge") as caught:
        _finite(mx.array([[0.0, math.inf], [1.0, math.nan]]), density)
    assert caught.value.address == ("x",)


DATA = [-1.5, -1.1, 1.4, 2.0]


@gen
def labelled():
    mu = trace("mu", normal(1.0, 1.0))
    for i, _ in enumerate(DATA):
        z = trace(("z", i), flip(0.4))
        trace(("y", i), normal(mx.where(z == 1, mu, -mu), 0.7))


def test_discrete_choices_against_enumeration():
    """Labels and a mean; the kernel is found by itself."""
    terms, ups = [], []
    for labels in product(range(2), repeat=4):
        # y = s mu + noise, so s y = mu + noise: jointly normal with mean 1 each.
        signed = [y if z else -y for y, z in zip(DATA, labels, strict=True)]
        prior = sum(math.log(0.4 if z else 0.6) for z in labels)
        terms.append(prior + stats.multivariate_normal(np.ones(4), np.ones((4, 4)) + 0.49 * np.eye(4)).logpdf(signed))
        ups.append(labels[3])
    exact = np.logaddexp.reduce(terms)
    found = runs(labelled(), {("y", i): y for i, y in enumerate(DATA)}, 16, particles=400)
    assert np.isnan(found[0].history.step_size).all()
    assert_unbiased(found, exact)
    up = float(np.exp(np.array(terms) - exact) @ np.array(ups))
    parts = [r.mean(("z", 3)).item() for r in found]
    assert abs(np.mean(parts) - up) < 3 * np.std(parts, ddof=1) / 4 + 0.002 and np.std(parts) < 0.1


def test_choices_that_come_and_go():
    """A spike and a slab, by mask: x is there in some particles only."""
    slab = mask(normal)

    @gen
    def model():
        on = trace("on", flip(0.3))
        x = trace("x", slab(on == 1, 1.0, 1.0))
        trace("y", normal(0.0 if x is None else mx.where(on == 1, x, 0.0), 0.3))

    slabs = 0.3 * stats.norm(1, math.sqrt(1.09)).pdf(0.9)
    exact = math.log(slabs + 0.7 * stats.norm(0, 0.3).pdf(0.9))
    found = runs(model(), {"y": 0.9}, 16, particles=300)
    assert_unbiased(found, exact)
    assert np.mean([r.mean("on").item() for r in found]) == pytest.approx(slabs / math.exp(exact), abs=0.03)


def test_particles_without_likelihood():
    """Half of the prior makes y impossible: that half is in the evidence, and no particle is of it afterwards."""

    @gen
    def model():
        trace("y", uniform(0, trace("x", uniform(0, 1))))

    for kernel in ("random_walk", "mh"):
        found = runs(model(), {"y": 0.5}, 10, particles=300, kernel=kernel)
        assert_unbiased(found, math.log(math.log(2)))
        assert all(np.array(r["x"])[np.array(r.weights) > 0].min() >= 0.5 for r in found)
        assert found[0].history.ess[0] == pytest.approx(150, abs=40)
        assert np.mean([r.mean("x").item() for r in found]) == pytest.approx(0.5 / math.log(2), abs=0.01)


def test_parameters_are_read():
    @gen
    def model():
        trace("y", normal(trace("x", normal(param("center", 2.0), 1)), 1))

    assert_unbiased(runs(model(), {"y": 4.0}, 16, particles=200), stats.norm(2, math.sqrt(2)).logpdf(4))


# unbiased for what is given


@pytest.mark.parametrize("kernel", ["hmc", "random_walk", "mh"])
def test_an_earlier_run_repeated_is_unbiased(kernel):
    """With temperatures and kernels of another run, a few particles are enough for the mean to be right."""
    call, data, exact = two_modes(), {"y": 9.0}, log_integral(log_two_modes)
    if kernel == "hmc":
        call, data = regression(mx.array(DESIGN)), {"y": mx.array(TARGET)}
        exact = stats.multivariate_normal(np.zeros(12), DESIGN @ DESIGN.T + 0.16 * np.eye(12)).logpdf(TARGET)
    first = tempered_smc(call, data, 300, kernel=kernel, key=99)
    found = runs(call, data, 160 if FULL else 40, particles=40, kernel=kernel, temperatures=first.history)
    assert_unbiased(found, exact, 0.15)
    for column in ("temperature", "moves", "step_size"):
        assert np.array_equal(getattr(found[0].history, column), getattr(first.history, column), equal_nan=True)
    assert not np.array_equal(found[0].history.ess, first.history.ess)


def test_given_temperatures_and_moves():
    result = tempered_smc(two_modes(), {"y": 9.0}, 100, temperatures=[0, 0.01, 0.2, 1], moves=3, kernel="mala", key=1)
    history = result.history
    assert history.temperature.tolist() == [0, 0.01, 0.2, 1] and history.moves.tolist() == [0, 3, 3, 3]
    assert history.log_ml[-1] == pytest.approx(history.log_ml_increment.sum(), abs=1e-6)
    assert history.log_ml[-1] == pytest.approx(result.log_ml.item(), abs=1e-5)
    assert repr(history).startswith("<History of 4 steps")
    one = tempered_smc(two_modes(), {"y": 9.0}, 20_000, temperatures=[1.0], moves=1, key=1)
    x = np.random.default_rng(0).normal(1, 3, 200_000)  # one temperature is importance sampling
    assert one.history.ess[1] / 20_000 == pytest.approx(
        (w := stats.norm(x * x, 0.5).pdf(9)).sum() ** 2 / (w**2).sum() / 200_000, rel=0.1
    )


def test_the_error_that_a_run_reports_is_that_between_runs():
    """Half a dozen resamplings: counted as one, or not at all, the error would come out twice too small."""
    found = runs(two_modes(), {"y": 9.0}, 30, particles=300, kernel="random_walk")
    reported = math.sqrt(np.mean([r.log_ml_error**2 for r in found]))
    between = np.std([r.log_ml.item() for r in found], ddof=1)
    assert reported == pytest.approx(between, rel=0.4)


# temperatures


def test_the_next_temperature_by_another_solver():
    """The conditional effective size of weighted particles: with equal weights, or the plain size, it is another."""
    rng = np.random.default_rng(2)
    logs, seen = rng.normal(size=50), 40 * rng.normal(size=50)
    weights = np.exp(logs - special.logsumexp(logs))

    def excess(t, now=0.1, share=0.7):
        v = np.exp((t - now) * (seen - seen.max()))
        return (weights @ v) ** 2 / (weights @ v**2) - share

    expected = optimize.brentq(excess, 0.1, 1.0, xtol=1e-12)
    found = next_temperature(mx.array(logs), mx.array(seen), 0.1, 0.7)
    assert found == pytest.approx(expected, rel=1e-4)
    assert next_temperature(mx.zeros((4,)), mx.array([1.0, 1.1, 0.9, 1.0]), 0.5, 0.9) == 1.0


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_the_threshold_is_the_share_that_each_temperature_keeps(share):
    result = tempered_smc(two_modes(), {"y": 9.0}, 500, ess_threshold=share, key=1)
    history = result.history
    assert (np.diff(history.temperature) > 0).all() and history.temperature[-1] == 1.0
    assert history.resampled[1:-1].all() and not history.resampled[0]
    assert history.ess[1:-1] == pytest.approx(500 * share, rel=1e-3)


def test_sharp_observations_take_small_steps():
    """A likelihood of a millionth of the prior: the first temperature is that small, and the evidence is right."""

    @gen
    def sharp():
        trace("y", normal(trace("x", normal(0, 1)), 1e-3))

    found = runs(sharp(), {"y": 0.5}, 8, particles=300)
    assert 0 < found[0].history.temperature[1] < 1e-4
    assert_unbiased(found, stats.norm(0, 1).logpdf(0.5), 0.2)
    assert np.std(np.array(found[0]["x"])) == pytest.approx(1e-3, rel=0.2)


def test_more_moves_where_steps_are_small():
    """A random walk in six dimensions takes more moves than Hamiltonian trajectories do, and than in one."""

    @gen
    def wide(d):
        w = trace("w", broadcasted_normal(mx.zeros((d,)), 1.0))
        trace("y", broadcasted_normal(w, 0.1))

    def mean_moves(d, kernel):
        return tempered_smc(wide(d), {"y": mx.ones((d,))}, 300, kernel=kernel, key=1).history.moves[1:].mean()

    assert mean_moves(6, "hmc") < 8 < mean_moves(6, "random_walk") > 2 * mean_moves(1, "random_walk")


# the loop


def test_the_same_key_gives_the_same_particles():
    a, b, c = [tempered_smc(two_modes(), {"y": 9.0}, 100, key=key) for key in (1, 1, 2)]
    assert np.array_equal(np.array(a["x"]), np.array(b["x"])) and a.log_ml.item() == b.log_ml.item()
    assert not np.array_equal(np.array(a["x"]), np.array(c["x"]))


def test_progress_tells_of_every_temperature():
    told = []
    result = tempered_smc(two_modes(), {"y": 9.0}, 100, key=1, progress=told.append)
    assert told[-1].done == told[-1].total == len(result.history) - 1
    assert {p.algorithm for p in told} == {"tempered_smc"} and all(p.done <= p.total for p in told)
    info = told[-1].info
    assert info["temperature"] == 1.0 and info["log_ml"] == pytest.approx(result.log_ml.item(), abs=1e-5)
    assert isinstance(info["history"], TemperedHistory)


def test_a_run_that_ends_early_still_weighs_for_the_posterior():
    """After one temperature the particles are weighted for temperature 1, with few effective ones: still unbiased."""
    found = runs(levels(), {"y": 1.0}, 30, particles=200, ess_threshold=0.9, progress=lambda p: "enough")
    assert {r.status for r in found} == {"enough"}
    assert all(r.history.temperature[-1] == 1.0 and r.history.moves[-1] == 0 for r in found)
    assert all(r.history.temperature[-2] < 0.9 for r in found)
    assert_unbiased(found, stats.norm(0, math.sqrt(1.34)).logpdf(1.0))
    assert np.mean([r.mean("b").item() for r in found]) == pytest.approx(1.25 / 1.34, abs=0.05)
    with pytest.raises(ParameterError, match="was interrupted"):
        tempered_smc(levels(), {"y": 1.0}, 200, temperatures=found[0].history)


def test_an_interrupt_ends_the_moves(monkeypatch):
    """Ctrl-C in the midst of ten million moves of one temperature."""
    threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    result = tempered_smc(two_modes(), {"y": 9.0}, 50, moves=10_000_000, key=1)
    assert result.status == "interrupted" and 0 < result.history.moves.sum() < 10_000_000
    assert result.history.temperature[-1] == 1.0
    monkeypatch.setenv("GENMLX_CI", "1")
    threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(InferenceInterrupted) as caught:
        tempered_smc(two_modes(), {"y": 9.0}, 50, moves=10_000_000, key=1)
    assert caught.value.result.n == 50


def test_the_result_is_a_filter_that_goes_on():
    """Another observation comes in afterwards; the traces and their scores are whole."""

    @gen
    def points(n):
        x = trace("x", normal(0, 2))
        for i in range(n):
            trace(("y", i), normal(x, 1))

    result = tempered_smc(points(1), {("y", 0): 1.0}, 4000, key=1)
    for i in (0, 3999):
        one = result.traces[i]
        assert one.score.item() == pytest.approx(points(1).assess(one.choices).score.item(), abs=1e-5)
    more = result.step(points(2), {("y", 1): 2.0}, key=2)
    exact = stats.multivariate_normal(np.zeros(2), np.eye(2) + 4).logpdf([1.0, 2.0])
    assert more.log_ml.item() == pytest.approx(exact, abs=0.1)
    assert more.history.temperature.tolist() == [*result.history.temperature, 1.0]
    assert more.history.ess.shape == (len(result.history) + 1,)


def test_it_is_a_method_of_the_command_line():
    assert METHODS["tempered"].load() is tempered_smc
    assert METHODS["tempered"].keywords()["particles"] == 1000


# errors


@gen
def bounded():
    trace("y", uniform(0, trace("x", exponential(1.0)) * 0 + 1))


def test_impossible_observations_are_named():
    for kernel in ("hmc", "mh"):
        with pytest.raises(ImpossibleObservation, match="density zero") as caught:
            tempered_smc(bounded(), {"y": 2.0}, 50, kernel=kernel, key=1)
        assert caught.value.address == ("y",)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"kernel": "nuts"}, "no kernel 'nuts'"),
        ({"resampling": "best"}, "no resampling scheme"),
        ({"ess_threshold": 1.0}, "ess_threshold"),
        ({"ess_threshold": 0.0}, "ess_threshold"),
        ({"particles": 1}, "particles"),
        ({"moves": 0}, "moves"),
        ({"moves": "many"}, "moves"),
        ({"temperatures": [0.5]}, "temperatures"),
        ({"temperatures": [0.5, 0.2, 1.0]}, "temperatures"),
        ({"temperatures": []}, "temperatures"),
        ({"temperatures": [0.5, math.nan, 1.0]}, "temperatures"),
    ],
)
def test_bad_settings(keywords, message):
    with pytest.raises(ParameterError, match=message):
        tempered_smc(two_modes(), {"y": 9.0}, **keywords)


def test_problems_that_do_not_fit():
    with pytest.raises(UsageError, match="temperatures are 3"):
        tempered_smc(two_modes(), {"y": 9.0}, temperatures=3)
    with pytest.raises(UsageError, match="discrete") as caught:
        tempered_smc(labelled(), {}, kernel="hmc")
    assert caught.value.address == ("z", 0)
    with pytest.raises(UsageError, match="nothing to infer"):
        tempered_smc(two_modes(), {"x": 1.0, "y": 9.0})
    with pytest.raises(UnknownAddress):
        tempered_smc(two_modes(), {"z": 1.0})
    with pytest.raises(UsageError, match="not a call"):
        tempered_smc(two_modes, {"y": 9.0})
    earlier = tempered_smc(two_modes(), {"y": 9.0}, 50, kernel="mala", key=1).history
    for keywords in ({"kernel": "hmc"}, {"kernel": "mh"}):
        with pytest.raises(UsageError, match="the temperatures are of a run"):
            tempered_smc(two_modes(), {"y": 9.0}, 50, temperatures=earlier, **keywords)


def test_an_observation_that_comes_and_goes():
    @gen
    def model():
        on = trace("on", flip(0.5))
        trace("y", mask(normal)(on == 1, 0.0, 1.0))

    with pytest.raises(UsageError, match="an observed choice exists in some runs") as caught:
        tempered_smc(model(), {"y": 1.0}, 50, key=1)
    assert caught.value.address == ("y",)
