"""What a run of sequential Monte Carlo tells, its keys, the errors, and mistakes that published systems made."""

import math
import os
import signal

import mlx.core as mx
import numpy as np
import pytest
from state_spaces import HMM, SEEN, SERIES, SHOWS, hidden, walk, walks

import genmlx
from genmlx import flip, gen, normal, random, select, trace, unfold, uniform
from genmlx.errors import BatchError, ParameterError, UnknownAddress, UsageError
from genmlx.inference import InferenceInterrupted, smc
from genmlx.inference import particle_filter as module
from genmlx.inference.resampling import SCHEMES, DegenerateWeights

# what a run tells


def test_history():
    """Increments add up to the evidence, and sizes are those of the weights before resampling."""
    sizes, totals = [], []

    def record(pf):
        w = np.exp(np.array(pf.log_weights, dtype=np.float64))
        sizes.append(w.sum() ** 2 / (w**2).sum())
        totals.append(pf.log_ml.item())
        return len(sizes) - 1

    result = smc(walks([1.0, 4.0, -2.0, 0.0]), particles=100, ess_threshold=0.5, record=record, key=15)
    history = result.history
    assert len(history) == 4 and history.recorded == [0, 1, 2, 3]
    assert history.ess == pytest.approx(sizes, rel=1e-4)
    assert history.log_ml == pytest.approx(totals, abs=1e-5)
    assert np.cumsum(history.log_ml_increment) == pytest.approx(totals, abs=1e-4)
    assert totals[-1] == result.log_ml.item() == np.float32(history[-1].log_ml)
    expected = [size < 50 for size in sizes[:-1]] + [False]
    assert history.resampled.tolist() == expected and 0 < sum(expected) < 3
    assert [a is not None for a in history.ancestors] == expected
    assert history[0].ess == history.ess[0] and [step.log_ml for step in history] == history.log_ml.tolist()
    assert repr(history) == f"<History of 4 steps, {sum(expected)} of them resampled>"
    with pytest.raises(AttributeError, match="nothing"):
        _ = history.nothing


@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_lineage(scheme, threshold):
    """Each new state tells its particle: along its lineage a particle of the end has the values of then."""
    result = smc(
        walks([1.0, 4.0, -2.0, 0.0, 3.0]),
        particles=20,
        ess_threshold=threshold,
        resampling=scheme,
        record=lambda pf: pf[(len(pf.history) - 1, "x")].tolist(),
        key=16,
    )
    then = result.history.recorded
    for i in range(20):
        path = result.history.lineage(i)
        assert path[-1] == i
        assert [then[t][at] for t, at in enumerate(path)] == [result[(t, "x")][i].item() for t in range(5)]


def test_progress():
    told = []
    result = smc(walks([1.0] * 40), particles=50, progress=told.append, key=17)
    assert [p.done for p in told] == sorted({p.done for p in told}) and told[-1].done == told[-1].total == 40
    assert all(p.algorithm == "smc" and p.phase == "filtering" for p in told)
    last = told[-1].info
    assert last["particles"] == 50 and last["ess"] == result.ess.item()
    assert np.float32(last["log_ml"]) == result.log_ml.item()
    assert len(told[0].info["history"]) == told[0].done
    assert result.status == "complete" and result.timing["total"] > 0


@pytest.mark.parametrize("how, status", [("word", "enough"), ("signal", "interrupted")])
def test_a_run_that_is_ended_gives_the_particles_so_far(monkeypatch, how, status):
    """They are those of the shorter run, bit for bit."""
    monkeypatch.delenv("GENMLX_CI", raising=False)
    steps = walks(np.linspace(-1, 1, 200).tolist())

    def stop(progress):
        if how == "word":
            return "enough"
        os.kill(os.getpid(), signal.SIGINT)

    result = smc(steps, particles=20, progress=stop, key=18, native=False)
    assert result.status == status and status in repr(result)
    done = len(result.history)
    assert 1 <= done < 200
    shorter = smc(steps[:done], particles=20, key=18, native=False)
    assert result.log_ml.item() == shorter.log_ml.item()
    assert result[(done - 1, "x")].tolist() == shorter[(done - 1, "x")].tolist()
    post = result.to_posterior(5, key=0)
    assert post.status == status and post[(0, "x")].shape == (1, 5)
    assert result.resample(key=0).status == status


def test_where_nobody_watches_an_interrupted_run_raises_with_its_particles(monkeypatch):
    monkeypatch.setenv("GENMLX_CI", "1")
    with pytest.raises(InferenceInterrupted, match="smc was interrupted") as error:
        smc(walks([0.0] * 200), particles=20, progress=lambda p: os.kill(os.getpid(), signal.SIGINT), key=0)
    assert 1 <= len(error.value.result.history) < 200


def test_a_posterior_of_the_particles():
    """Drawn by their weights: the mean is Kalman's, not that of the particles."""
    result = smc(walks([1.0, 2.0]), particles=20_000, ess_threshold=0.0, key=19)
    post = result.to_posterior(5000, key=1)
    assert post.algorithm == "smc" and post[(1, "x")].shape == (1, 5000)
    assert post.mean((1, "x")).item() == pytest.approx(1.4, abs=0.06)
    assert abs(mx.mean(result[(1, "x")]).item()) < 0.06


def test_one_particle():
    result = smc(HMM, particles=1, ess_threshold=1.0, key=0)
    z = [result[(t, "z")].item() for t in range(4)]
    assert result.log_ml.item() == pytest.approx(np.log(SHOWS[z, SEEN]).sum(), abs=1e-5)


# keys


def same(a, b):
    return all(a[address].tolist() == b[address].tolist() for address in a.addresses()) and (
        a.log_weights.tolist() == b.log_weights.tolist() and a.log_ml.item() == b.log_ml.item()
    )


def test_the_same_key_gives_the_same_run_and_another_key_another():
    def run(key):
        return smc(walks(SERIES), 50, 1.0, rejuvenate=(0, "x"), key=key)

    assert same(run(21), run(mx.random.key(21))) and not same(run(21), run(22))
    genmlx.seed(5)
    first, second = run(None), run(None)
    genmlx.seed(5)
    assert same(first, run(None)) and not same(first, second)


def test_no_noise_is_used_twice():
    """Mistake 16. The innovations of 8 steps are uncorrelated over particles, to 5 standard errors."""
    n, ys = 4000, [0.0] * 8
    result = smc(walks(ys, 1e3), n, ess_threshold=0.0, key=23)
    x = np.stack([np.array(result[(t, "x")]) for t in range(8)])
    correlation = np.corrcoef(np.diff(x, axis=0, prepend=0.0)) - np.eye(8)
    assert np.abs(correlation).max() < 5 / math.sqrt(n)


def test_no_key_is_used_twice(monkeypatch):
    """Mistake 16, where its effect is small: each resampling and each move has a key of its own."""
    keys = []

    def spied(name, place):
        real = getattr(module, name)

        def spy(*args, **options):
            keys.append(tuple(args[place].tolist()))
            return real(*args, **options)

        monkeypatch.setattr(module, name, spy)

    def kernel(tr, key):
        keys.append(tuple(key.key.tolist()))
        return tr

    spied("resample", 2)
    smc(walks([0.0] * 8), 20, 1.0, rejuvenate=kernel, key=23)
    assert len(keys) == 14 and len(set(keys)) == 14


def test_the_key_is_all_the_noise():
    """Neither the session's stream nor MLX's generator has a part in a run with a key, nor does it touch them."""
    mx.random.seed(1)
    genmlx.seed(1)
    a, before = smc(HMM, 50, 1.0, rejuvenate=(0, "z"), key=24), random.session_seed()
    mx.random.seed(2)
    genmlx.seed(2)
    b = smc(HMM, 50, 1.0, rejuvenate=(0, "z"), key=24)
    assert same(a, b) and before == (1, 0)


# what is wrong


@pytest.mark.parametrize(
    "steps, message",
    [
        ([], "no steps"),
        (hidden(1, 0), "was given a call"),
        ([hidden(1, 0)], "step 0 is"),
        ([HMM[0], (hidden, {})], "step 1 is"),
        ([(*HMM[0], None, None)], "step 0 is"),
        ([()], "step 0 is"),
        ([HMM[0], walks([1.0, 2.0])[1]], "step 1 is of another model"),
    ],
)
def test_steps_that_are_none(steps, message):
    with pytest.raises(UsageError, match=message):
        smc(steps, particles=5)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan, True, "half", None])
def test_a_threshold_that_is_none(threshold):
    with pytest.raises(ParameterError, match="ess_threshold is"):
        smc(HMM, particles=5, ess_threshold=threshold)


def test_a_scheme_that_is_none():
    with pytest.raises(ParameterError, match="multinomial, stratified, systematic, residual"):
        smc(HMM, particles=5, resampling="systemic")


@pytest.mark.parametrize("particles", [0, -3, 2.0, True, None])
def test_particles_that_are_none(particles):
    with pytest.raises(ParameterError, match="particles must be a whole number, at least 1"):
        smc(HMM, particles=particles)


@gen
def boxed_step(t, x):
    trace("y", uniform(x, x + 1.0))
    return trace("x", normal(x, 1.0))


boxed = unfold(boxed_step)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_weights_that_are_all_zero_name_the_step_and_the_observation(threshold):
    """Mistake 8: never resampled as if they were equal."""
    steps = [(boxed(t + 1, 0.0), {(t, "y"): [0.5, 0.5, 1e6][t]}) for t in range(3)]
    with pytest.raises(DegenerateWeights, match=r"after step 2 .*1000000.* at \(2, 'y'\) in unfold\(boxed_step\)"):
        smc(steps, particles=500, ess_threshold=threshold, key=0)
    with pytest.raises(DegenerateWeights, match=r"after step 0 .* at \(0, 'y'\)"):
        smc([(boxed(1, 0.0), {(0, "y"): -1e6})], particles=50, key=0)


def test_some_weights_that_are_zero_are_never_resampled():
    steps = [(boxed(t + 1, 0.0), {(t, "y"): 0.5}) for t in range(3)]
    result = smc(steps, particles=400, ess_threshold=1.0, key=1)
    x = np.array(result[(0, "x")])
    # P(0.5 - 1 <= x <= 0.5) of a standard normal, twice
    assert np.all((x <= 0.5) & (x >= -0.5)), "a particle of weight zero has a child"
    assert np.all(np.isfinite(np.array(result.log_weights)) | (np.array(result.log_weights) == -math.inf))


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_density_that_is_nan_names_the_step_and_the_choice(at):
    @gen
    def step(t, x):
        x = trace("x", normal(x, 1.0))
        trace("y", normal(x, mx.where(t == at, mx.sqrt(x), 1.0)))
        return x

    broken = unfold(step)
    with pytest.raises(ParameterError, match=rf"after step {at} .*NaN.* at \({at}, 'y'\)"):
        smc([(broken(t + 1, 0.0), {(t, "y"): 0.0}) for t in range(5)], particles=100, key=0)


def test_a_step_that_loses_or_changes_a_choice_names_it():
    def run(*steps):
        smc([walks([1.0, 2.0])[0], *steps], particles=5, key=0)

    with pytest.raises(UsageError, match=r"only add choices.* at \(0, '[xy]'\)"):
        run((walk(0, 0.0, 1.0), {}))
    with pytest.raises(UsageError, match=r"only add choices.* at \(0, 'x'\)"):
        run((walk(2, 0.0, 1.0), {(0, "x"): 1.0}))
    with pytest.raises(UsageError, match=r"only add choices.* at \(0, 'y'\)"):
        run((walk(2, 0.0, 1.0), {(0, "y"): 2.0, (1, "y"): 1.0}))
    with pytest.raises(UnknownAddress, match=r"\(7, 'y'\)"):
        run((walk(2, 0.0, 1.0), {(7, "y"): 1.0}))


def test_a_model_that_branches_says_where():
    @gen
    def model():
        if trace("k", flip(0.5)).item():
            trace("x", normal(0, 1))

    with pytest.raises(BatchError, match="test_smc_runs.py"):
        smc([(model(), {})], particles=10, key=0)


# mistakes that published systems made


def test_evidence_is_not_counted_twice_where_a_step_does_not_resample():
    """Mistake 8, without chance: where all particles agree on the likelihood, each estimate is exact at every step."""

    @gen
    def step(t, x):
        x = trace("x", normal(x, 1.0))
        trace("y", normal(t * 1.0, 2.0))
        return x

    known = unfold(step)
    steps = [(known(t + 1, 0.0), {(t, "y"): 1.0}) for t in range(5)]
    exact = [-0.5 * (math.log(2 * math.pi * 4) + (1.0 - t) ** 2 / 4) for t in range(5)]
    for threshold in (0.0, 0.5, 1.0):
        result = smc(steps, particles=10, ess_threshold=threshold, key=0)
        assert result.history.log_ml_increment == pytest.approx(exact, abs=1e-5)
        assert result.log_ml.item() == pytest.approx(sum(exact), abs=1e-5)


@pytest.mark.parametrize("selection", [0, select(0) | select(1), ~select("nothing")], ids=["tree", "trees", "all"])
def test_a_selection_above_observations_leaves_them(selection):
    """Mistake 9: what is observed does not move, and what is not has the posterior of Kalman's smoother."""
    ys = [2.0, 2.5]
    result = smc([*walks(ys), (walk(2, 0.0, 1.0),)], 4000, 1.0, rejuvenate=selection, key=25)
    assert np.array(result[(0, "y")]).tolist() == [2.0] * 4000
    assert np.array(result[(1, "y")]).tolist() == [2.5] * 4000
    precision = np.array([[3.0, -1.0], [-1.0, 2.0]])
    smooth = np.linalg.solve(precision, ys)
    assert result.mean((0, "x")).item() == pytest.approx(smooth[0], abs=0.06)
    assert result.mean((1, "x")).item() == pytest.approx(smooth[1], abs=0.06)


def test_latents_are_as_wide_as_their_posterior():
    """Mistake 14: particles pinned at a posterior mean have no variance, and every statistic of the future is off."""
    result = smc([*walks([2.0, 2.5]), (walk(3, 0.0, 1.0),)], particles=10_000, key=26)
    covariance = np.linalg.inv(np.array([[3.0, -1.0], [-1.0, 2.0]]))
    for t in range(2):
        assert result.variance((t, "x")).item() == pytest.approx(covariance[t, t], rel=0.08)
    assert result.variance((2, "y")).item() == pytest.approx(covariance[1, 1] + 2, rel=0.08)
