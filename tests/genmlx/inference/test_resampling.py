"""Resampling: each scheme's law, on weights that break careless code."""

import math

import mlx.core as mx
import numpy as np
import pytest

from genmlx.errors import ParameterError
from genmlx.inference.resampling import (
    SCHEMES,
    _invert,
    conditional_resample,
    effective_size,
    log_mean_exp,
    normalised,
    optimal_resize,
    resample,
)

INF = math.inf
WEIGHTS = [0.1, 0.2, 0.3, 0.4]


def logs(weights) -> mx.array:
    return mx.array(np.log(np.asarray(weights, dtype=np.float64)).astype(np.float32))


def counts(log_weights: mx.array, n: int, seed: int, scheme: str) -> np.ndarray:
    return np.bincount(np.array(resample(log_weights, n, seed, scheme)), minlength=log_weights.size)


def test_the_numbers_of_the_specification():
    assert effective_size(logs(WEIGHTS)).item() == pytest.approx(10 / 3, rel=1e-5)
    assert log_mean_exp(mx.array([-1.0, -2.0, -3.0])).item() == pytest.approx(-1.691006, abs=1e-6)
    assert normalised(mx.array([-1.0, -2.0, -3.0])).tolist() == pytest.approx([0.665241, 0.244728, 0.090031], abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_weights_do_not_overflow(shift):
    """exp without taking out the greatest would give inf or 0."""
    log_weights = mx.array([0.0, -1.0]) + shift
    assert normalised(log_weights).tolist() == pytest.approx([0.731059, 0.268941], abs=1e-5)
    assert effective_size(log_weights).item() == pytest.approx(1 / (0.731059**2 + 0.268941**2), rel=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [3, 7, 11])
def test_every_scheme_is_unbiased(scheme, n):
    """E[copies of i] = n w_i: catches an edge that is off by one, and n other than the number of particles.

    The variance of a count is at most that of multinomial resampling, so 4.5 of its standard errors bound all schemes.
    """
    weights, runs = np.array([0.05, 0.45, 0.3, 0.2]), 2000
    total = sum(counts(logs(weights), n, seed, scheme) for seed in range(runs))
    error = np.sqrt(n * weights * (1 - weights) / runs)
    assert np.all(np.abs(total / runs - n * weights) < 4.5 * error)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_particle_of_weight_zero_is_never_chosen(scheme):
    """First, last and in the middle: a search that rounds up past the end lands on the last."""
    log_weights = mx.array([-INF, 0.0, -INF, 0.5, -INF, -INF])
    for seed in range(50):
        assert counts(log_weights, 40, seed, scheme)[[0, 2, 4, 5]].sum() == 0


def test_a_point_on_an_edge_belongs_to_the_next_particle():
    """0 is no share of a first particle of weight zero, nor is the total one of a last."""
    weights = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    assert _invert(weights, np.array([0.0, 0.25, 1.0])).tolist() == [1, 3, 3]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_particle_takes_all(scheme):
    assert counts(mx.array([-INF, -INF, 3.0]), 5, 0, scheme).tolist() == [0, 0, 5]
    assert counts(mx.array([7.0]), 4, 0, scheme).tolist() == [4]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bad, word", [([-INF, -INF], "zero"), ([0.0, math.nan], "NaN"), ([0.0, INF], "infinite")])
def test_weights_that_mean_nothing_raise(scheme, bad, word):
    with pytest.raises(ParameterError, match=word):
        resample(mx.array(bad), 4, 0, scheme)


def test_an_unknown_scheme_names_the_known():
    with pytest.raises(ParameterError, match="multinomial, stratified, systematic, residual"):
        resample(mx.zeros(3), 3, 0, "systemic")


@pytest.mark.parametrize("size", [4, 1000, 100_000])
def test_systematic_counts_are_floor_or_ceil(size):
    """In float32 the cumulated weights of 1e5 particles are off by more than one copy."""
    raw = np.random.default_rng(size).gamma(0.5, size=size).astype(np.float32) + 1e-6
    log_weights = mx.log(mx.array(raw))
    expected = np.exp(np.array(log_weights, dtype=np.float64))
    expected *= size / expected.sum()
    for seed in range(3):
        found = counts(log_weights, size, seed, "systematic")
        assert found.sum() == size
        # 1e-4: a float32 weight is known to 1e-7 of itself, and here that is of up to a thousand copies.
        assert np.all(found >= np.floor(expected - 1e-4)) and np.all(found <= np.ceil(expected + 1e-4))


def test_systematic_with_equal_weights_keeps_each_once():
    for n in (5, 49, 1000, 65_537):
        assert counts(mx.full((n,), -3.7), n, 0, "systematic").tolist() == [1] * n


def test_stratified_takes_one_from_each_stratum():
    """Of two halves with weight 1/2 each, exactly half the draws come from each."""
    log_weights = logs([0.1, 0.4, 0.25, 0.25])
    for seed in range(20):
        found = counts(log_weights, 10, seed, "stratified")
        assert found[:2].sum() == 5


@pytest.mark.parametrize("n", [4, 10, 101])
def test_residual_gives_at_least_the_whole_part(n):
    raw = np.random.default_rng(n).gamma(1.0, size=30)
    weights = np.exp(np.array(logs(raw), dtype=np.float64))
    weights /= weights.sum()
    for seed in range(20):
        found = counts(logs(raw), n, seed, "residual")
        assert found.sum() == n and np.all(found >= np.floor(n * weights - 1e-4))


@pytest.mark.parametrize("n", [3, 7, 49, 1000])
def test_residual_with_equal_weights_keeps_each_once(n):
    """49 * (1/49) < 1 in floating point."""
    assert counts(mx.full((n,), -0.3), n, 0, "residual").tolist() == [1] * n


@pytest.mark.parametrize("scheme", ["multinomial", "stratified", "systematic"])
def test_many_small_weights_are_not_rounded_away(scheme):
    """A second half whose weights vanish beside the running float32 sum of the first, unless it sums in float64."""
    size = 100_000
    log_weights = mx.concatenate([mx.zeros(size), mx.full((size,), math.log(1e-4))])
    share = 1e-4 / (1 + 1e-4)
    draws = 2_000_000
    found = counts(log_weights, draws, 1, scheme)[size:].sum()
    assert abs(found - draws * share) < 4.5 * math.sqrt(draws * share)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_key_gives_the_same_particles(scheme):
    runs = [resample(logs([0.11, 0.23, 0.29, 0.37]), 7, seed, scheme).tolist() for seed in (*range(10), *range(10))]
    assert runs[:10] == runs[10:]
    assert len(set(map(tuple, runs))) > 1


# a copy that is given


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [2, 5])
def test_the_conditional_law_is_that_of_the_scheme_given_a_copy(scheme, n):
    """Of the copies that the scheme makes, take one at random: what is known of the others, given which it is.

    By simulation of both sides: for each particle, the mean and the mean square of the counts of all others agree
    within 5 standard errors, so that a scheme which only keeps the mean, or draws the rest freely, is found.
    """
    log_weights, rng, runs = logs([0.1, 0.45, 0.25, 0.2]), np.random.default_rng(0), 6000
    free: dict = {k: [] for k in range(4)}
    for seed in range(runs):
        copies = np.array(resample(log_weights, n, seed, scheme))
        free[copies[rng.integers(n)]].append(np.bincount(copies, minlength=4))
    for kept, expected in free.items():
        given = [np.array(conditional_resample(log_weights, kept, n, s, scheme)) for s in range(len(expected))]
        assert all(copies[0] == kept and len(copies) == n for copies in given)
        found = np.array([np.bincount(copies, minlength=4) for copies in given])
        for power in (1, 2):
            a, b = (np.asarray(counts, dtype=float) ** power for counts in (expected, found))
            error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / len(a)) + 1e-6
            assert np.all(np.abs(a.mean(axis=0) - b.mean(axis=0)) < 5 * error)


# optimal resizing


def bisected(weights, n):
    """c such that the sum of min(1, c w) is n."""
    low, high = 0.0, n / weights.min()
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if np.minimum(1, c * weights).sum() < n else (low, c)
    return low


SKEW = np.array([0.4, 0.02, 0.2, 0.03, 0.15, 0.05, 0.1, 0.05])


@pytest.mark.parametrize("n", [1, 2, 4, 6, 7])
def test_optimal_resize_keeps_the_large_and_draws_the_small_once(n):
    c = bisected(SKEW, n)
    for seed in range(30):
        index, new = (np.array(a) for a in optimal_resize(logs(SKEW) + 3.0, n, seed))
        assert len(set(index.tolist())) == n
        assert set(np.flatnonzero(c * SKEW > 1 + 1e-6)) <= set(index.tolist())
        expected = np.where(c * SKEW[index] >= 1, SKEW[index], 1 / c)
        assert np.exp(new - 3.0) == pytest.approx(expected, rel=1e-5)
        assert np.exp(new - 3.0).sum() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_optimal_resize_is_unbiased(n):
    """E[weight of i after] = w_i: within 4.5 standard errors of 2,000 runs."""
    after = np.zeros((2000, 8))
    for seed, row in enumerate(after):
        index, new = (np.array(a) for a in optimal_resize(logs(SKEW), n, seed))
        row[index] = np.exp(new)
    error = after.std(axis=0) / math.sqrt(2000)
    assert np.all(np.abs(after.mean(axis=0) - SKEW) < 4.5 * error + 1e-6)


@pytest.mark.parametrize("n", [1, 3, 5, 6, 9])
def test_optimal_resize_where_some_weigh_nothing(n):
    """What is left beside the large ones is 0, and not what rounding makes of it, by which it would be divided."""
    rng = np.random.default_rng(n)
    for seed in range(100):
        weights = np.concatenate([rng.gamma(0.5, size=6), np.zeros(3)])
        with np.errstate(divide="ignore"):
            log_weights = mx.array(np.log(weights).astype(np.float32))
        index, new = (np.array(a) for a in optimal_resize(log_weights, n, seed))
        assert len(set(index.tolist())) == n and index.max() < 9
        assert np.exp(new).sum() == pytest.approx(weights.sum(), rel=1e-5)
        assert np.all((new == -INF) == (weights[index] == 0)) and (weights[index] > 0).sum() == min(n, 6)


@pytest.mark.parametrize("size", [1, 3, 7, 49, 1000])
def test_optimal_resize_to_the_same_number_changes_nothing(size):
    for log_weights in (mx.full((size,), -0.3), mx.array(np.random.default_rng(0).normal(size=size))):
        index, new = optimal_resize(log_weights, size, 0)
        assert sorted(index.tolist()) == list(range(size))
        assert np.allclose(np.array(new), np.array(log_weights)[np.array(index)], atol=1e-5)


def test_optimal_resize_of_equal_weights_draws_each_once():
    for size, n in ((10, 3), (49, 48), (100, 99), (1000, 10)):
        index, new = optimal_resize(mx.full((size,), 2.0), n, 0)
        assert len(set(index.tolist())) == n
        assert np.allclose(np.array(new), 2.0 + math.log(size / n), atol=1e-5)


def test_optimal_resize_of_weights_that_are_all_zero_raises():
    with pytest.raises(ParameterError, match="zero"):
        optimal_resize(mx.full((3,), -INF), 2, 0)
