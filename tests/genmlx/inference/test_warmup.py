"""Step sizes, windows and covariance estimates of warm-up."""

import math

import mlx.core as mx
import numpy as np
import pytest

from genmlx.inference.warmup import DualAveraging, Warmup, Welford, first_step_size, windows


def test_windows_are_those_of_stan():
    assert windows(1000) == (75, [100, 150, 250, 450, 950])
    assert windows(500) == (75, [100, 150, 250, 450])
    assert windows(150) == (75, [100])
    assert windows(149) == (22, [97])
    assert windows(20) == (3, [13])
    assert windows(19) == (19, [])


@pytest.mark.parametrize("transitions", [20, 80, 150, 151, 225, 300, 777, 1000, 5000])
def test_windows_grow_and_leave_the_last_transitions_to_the_step_size(transitions):
    first, ends = windows(transitions)
    sizes = np.diff([first, *ends])
    assert np.all(sizes > 0) and np.all(sizes[1:] >= 2 * sizes[:-1])
    assert ends[-1] == transitions - (50 if transitions >= 150 else int(0.35 * transitions))


def test_dual_averaging_finds_the_step_size_of_the_target():
    """For an acceptance exp(-step): the target 0.8 is at 0.223."""
    rng = np.random.default_rng(1)
    dual = DualAveraging([5.0], 0.8)
    for _ in range(2000):
        dual.update(np.exp(-dual.step_size) + 0.1 * rng.normal())
    assert dual.averaged.item() == pytest.approx(-math.log(0.8), rel=0.1)


def test_the_first_updates_of_dual_averaging():
    """Hoffman and Gelman (2014), algorithm 5, by hand. Catches gamma, t0 or kappa in the wrong place."""
    dual = DualAveraging([0.5], 0.8)
    dual.update(0.3)
    error = 0.5 / 11
    assert dual.step_size.item() == pytest.approx(5.0 * math.exp(-error / 0.05))
    first = math.log(dual.step_size.item())
    dual.update(1.0)
    error = (1 - 1 / 12) * error + (0.8 - 1.0) / 12
    second = math.log(5.0) - error * math.sqrt(2) / 0.05
    assert dual.step_size.item() == pytest.approx(math.exp(second))
    logs = [first, second]
    assert dual.averaged == 0.5  # too early to leave where it began
    for _ in range(8):
        dual.update(0.9)
        logs.append(math.log(dual.step_size.item()))
    mean = logs[0]
    for count, log_step in enumerate(logs[1:], 2):
        mean = count**-0.75 * log_step + (1 - count**-0.75) * mean
    assert math.log(dual.averaged.item()) == pytest.approx(mean)


def test_dual_averaging_survives_an_acceptance_that_is_not_a_number():
    dual = DualAveraging([1.0], 0.8)
    for _ in range(200):
        dual.update(math.nan)
    assert 0 < dual.step_size.item() < 1e-3 and math.isfinite(dual.averaged.item())


def test_the_first_step_size_crosses_the_target():
    """Each of its elements by itself, and the smaller of the two sizes about the target."""
    found = first_step_size(lambda e: np.exp(-e / np.array([1.0, 1.0, 1e-3])), np.array([1e-4, 1e4, 1.0]), 0.8)
    scaled = found / np.array([1.0, 1.0, 1e-3])
    assert np.all(0.5 * 0.2231 <= scaled) and np.all(scaled <= 0.2231)


@pytest.mark.parametrize("accept, end", [(0.0, 1e-10), (1.0, 1e7), (math.nan, 1e-10)])
def test_the_first_step_size_ends_where_nothing_crosses(accept, end):
    assert first_step_size(lambda e: np.full_like(e, accept), np.ones(2), 0.8).tolist() == [end, end]


@pytest.mark.parametrize("dense", [False, True])
def test_welford_is_the_covariance_of_all_batches(dense):
    rng = np.random.default_rng(2)
    draws = (100.0 + rng.normal(size=(60, 3)) @ np.diag([1.0, 0.1, 3.0])).astype(np.float32)
    estimate = Welford(3, dense)
    for batch in np.split(draws, [1, 7, 20]):
        estimate.add(mx.array(batch))
    truth = np.cov(draws.astype(float).T)
    found = np.array(estimate.covariance())
    assert estimate.count == 60
    assert np.allclose(found, truth if dense else np.diag(truth), rtol=1e-3, atol=1e-3)
    shrunk = np.array(estimate.regularised())
    expected = 60 / 65 * found + 1e-3 * 5 / 65 * (np.eye(3) if dense else 1)
    assert np.allclose(shrunk, expected, rtol=1e-5)


def test_the_chains_share_one_metric_and_it_is_learned_at_the_ends_of_windows():
    """Catches a window that keeps the draws of the one before: their scale is a hundred times off here."""
    rng = np.random.default_rng(3)
    learned = Warmup(200, 20, 2, 0.8, dense=False)
    first, ends = windows(200)
    assert ends == [100, 150] and len(learned.step_size) == 20
    news = []
    for i in range(1, 201):
        scale = np.array([1.0, 5.0]) * (1 if i > 100 else 100)
        if learned.update(np.full(20, 0.8), mx.array((rng.normal(size=(20, 2)) * scale).astype(np.float32))):
            news.append(i)
    assert news == [100, 150] and len(learned.step_size) == 1
    assert np.allclose(np.array(learned.metric.inverse_mass), [1.0, 25.0], rtol=0.15)
