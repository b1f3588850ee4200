"""Diagnostics against what probability theory says they estimate, and at the edges of what they accept."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx.diagnostics import bfmi, ess, ess_mean, ess_tail, hdi, mcse, psis, rhat, sample_quantiles


def autoregressions(seed: int, rho: float, shape: tuple[int, int, int]) -> np.ndarray:
    """Stationary AR(1) chains with variance one, `[chains, draws, copies]`."""
    noise = np.random.default_rng(seed).normal(size=shape)
    x = noise.copy()
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    return x


def within_z(estimates, expected: float, bound: float = 4) -> bool:
    """Is the mean of independent estimates within `bound` of its standard errors of what is expected?"""
    estimates = np.asarray(estimates)
    return bool(abs(estimates.mean() - expected) < bound * estimates.std(ddof=1) / math.sqrt(estimates.size))


@pytest.mark.parametrize("size", [ess, ess_mean, ess_tail])
def test_independent_draws_are_worth_their_number(size):
    """A missing division by the number of chains, or lags counted once, is off by a factor."""
    x = np.random.default_rng(0).normal(size=(4, 1000, 100))
    ratio = np.asarray(size(x)) / 4000
    # Noise in the correlations scatters a ratio by 5 to 7%; the smaller of two such is 0.56 of that below one.
    expected = 1 - 0.56 * 0.07 if size is ess_tail else 1
    assert ratio.mean() == pytest.approx(expected, abs=0.03) and ratio.std() < 0.1


@pytest.mark.parametrize("rho", [-0.3, 0.3, 0.6, 0.9])
def test_an_autoregression_is_worth_what_theory_says(rho):
    """S (1 - rho) / (1 + rho): a sum that stops early misses it at 0.9, one without odd lags at -0.3."""
    x = autoregressions(1, rho, (4, 4000, 50))
    expected = 16_000 * (1 - rho) / (1 + rho)
    ratio = ess_mean(x) / expected
    assert np.mean(ratio) == pytest.approx(1, abs=0.03)
    assert np.mean(ess(x) / expected) == pytest.approx(1, abs=0.03)


def test_the_standard_error_is_the_spread_of_the_estimates():
    """Means, deviations and quantiles of 400 runs scatter as `mcse` says: a wrong ESS for one shows."""
    x = autoregressions(2, 0.5, (4, 500, 400))
    for kind, estimate in {
        "mean": x.mean(axis=(0, 1)),
        "sd": x.std(axis=(0, 1), ddof=1),
        0.9: np.quantile(x, 0.9, axis=(0, 1)),
    }.items():
        # The spread of 400 estimates is itself known to 1 / sqrt(800) = 3.5%.
        assert np.mean(mcse(x, kind)) / estimate.std(ddof=1) == pytest.approx(1, abs=4 * 0.035)


def test_antithetic_draws_stop_at_the_cap():
    """Without the cap the estimate for alternating chains is unbounded, or negative."""
    x = autoregressions(3, -0.95, (4, 500, 20))
    cap = 2000 * math.log10(2000)
    assert np.allclose(ess_mean(x), cap) and np.all(ess(x) <= cap * (1 + 1e-12))


@pytest.mark.parametrize("draws", range(4, 30))
@pytest.mark.parametrize("chains", [1, 3])
def test_every_length_stays_under_the_cap_and_finite(draws, chains):
    """An index that runs off the last lag, or a tip beyond the end, at small even and odd lengths."""
    x = np.random.default_rng(draws).normal(size=(chains, draws, 50))
    total = 2 * chains * (draws // 2)
    for size in ess, ess_mean, ess_tail:
        assert np.all((size(x) > 0) & (size(x) <= total * math.log10(total) * (1 + 1e-12)))
    assert np.all(np.isfinite(rhat(x)))


def test_independent_chains_have_rhat_near_one():
    """A between-chain variance with a wrong divisor raises all of them."""
    values = rhat(np.random.default_rng(4).normal(size=(4, 1000, 200)))
    assert np.mean(np.asarray(values) > 1.01) < 0.05 and np.max(values) < 1.02 and np.min(values) > 0.999


def test_chains_with_the_same_trend_are_caught():
    """Without the split every chain has the same mean and variance, and R-hat is one."""
    noise = np.random.default_rng(5).normal(size=(4, 1000))
    assert rhat(noise + np.linspace(-1, 1, 1000)) > 1.1
    assert rhat(noise[:1] + np.linspace(-1, 1, 1000)) > 1.1


def test_chains_with_different_scales_are_caught():
    """Without folding, chains that agree in location pass whatever their spread."""
    noise = np.random.default_rng(6).normal(size=(4, 1000))
    assert rhat(noise * np.array([[1], [1], [1], [4]])) > 1.1


def test_location_is_seen_where_there_is_no_variance():
    """Without ranks, Cauchy draws drown a shift between chains in their within-chain variance."""
    noise = np.random.default_rng(7).standard_cauchy(size=(4, 1000))
    assert rhat(noise) < 1.01 < 1.1 < rhat(noise + 2 * np.arange(4)[:, None])


@pytest.mark.parametrize("diagnostic", [rhat, ess, ess_tail])
def test_a_monotone_transformation_changes_nothing(diagnostic):
    """Ranks and quantile indicators do not see one: a diagnostic of the raw values would.

    R-hat's fold does see it, so its half is left out by a location shift that the bulk dominates.
    """
    x = autoregressions(8, 0.5, (4, 501, 3)) + np.arange(4)[:, None, None]
    np.testing.assert_allclose(diagnostic(np.exp(x)), diagnostic(x), rtol=1e-9)


def test_energy_that_steps_slowly_has_a_small_bfmi():
    """An AR(1) steps by 2 (1 - rho) of its variance: a swap of steps and variance inverts it."""
    x = autoregressions(9, 0.9, (50, 4000, 1))[..., 0]
    assert bfmi(x).shape == (50,) and within_z(bfmi(x), 0.2)


def test_quantiles_and_interval_of_known_draws():
    """An interval of equal tails would be symmetric in probability, not the shortest."""
    x = np.random.default_rng(10).exponential(size=(4, 50_000))
    np.testing.assert_allclose(sample_quantiles(x, [0.05, 0.5]), -np.log([0.95, 0.5]), rtol=0.03)
    low, high = hdi(x, prob=0.8)
    assert low < 0.01 and high == pytest.approx(-math.log(0.2), rel=0.02)
    event = np.stack([x, -x], axis=-1)
    assert sample_quantiles(event, 0.5).shape == (2,)
    assert sample_quantiles(event, [0.1, 0.9, 0.5]).shape == (3, 2)
    np.testing.assert_allclose(hdi(event, 0.8), [[low, -high], [high, -low]])


@pytest.mark.parametrize("shape", [0.1, 0.4, 0.7, 1.0])
def test_psis_finds_the_shape_of_a_pareto_tail(shape):
    """Weights (1 - u)^-k have shape k exactly. A flipped sign or a fit to the whole sample misses it."""
    rng = np.random.default_rng(11)
    _, khat = psis(shape * rng.exponential(size=(60, 5000)))
    tail = 3 * math.sqrt(5000)
    # The prior pulls by 10 / (10 + tail) towards 0.5; the rest is unbiased to within its standard error.
    expected = (tail * shape + 10 * 0.5) / (tail + 10)
    assert np.shape(khat) == (60,) and within_z(khat, expected)
    assert np.std(khat) < 2 * (1 + shape) / math.sqrt(tail)


def test_psis_keeps_order_and_body_and_sums_to_one():
    """Smoothed weights put back in the wrong places would break the order; the body must only be rescaled."""
    raw = np.random.default_rng(12).normal(size=2000) * 2
    smoothed, _ = psis(raw)
    assert np.exp(smoothed).sum() == pytest.approx(1)
    assert np.array_equal(np.argsort(smoothed, kind="stable"), np.argsort(raw, kind="stable"))
    body = np.argsort(raw)[: 2000 - math.ceil(3 * math.sqrt(2000))]
    assert np.ptp(smoothed[body] - raw[body]) < 1e-9
    np.testing.assert_allclose(psis(raw + 1000)[0], smoothed, rtol=1e-9)


def test_psis_makes_a_heavy_tailed_estimate_steadier():
    """The point of it: a normal(0, 1) proposal for a normal(0, 1.3) target; raw E[x^2] scatters more."""
    x = np.random.default_rng(13).normal(size=(200, 1000))
    raw = stats.norm.logpdf(x, scale=1.3) - stats.norm.logpdf(x)
    plain = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    smooth = np.exp(psis(raw)[0])
    errors = [np.sqrt(np.mean(((w * x**2).sum(axis=1) - 1.69) ** 2)) for w in (plain, smooth)]
    assert errors[1] < errors[0]


def test_psis_at_the_edges():
    """Each of these is a division by zero, an empty tail or a fit of nothing."""
    equal, khat = psis(np.zeros(1000))
    np.testing.assert_allclose(np.exp(equal), 1e-3)
    assert math.isnan(khat)
    accepted, khat = psis(np.where(np.arange(100) < 30, 0.0, -np.inf))
    assert np.exp(accepted).max() == pytest.approx(1 / 30) and math.isnan(khat)
    assert psis(np.arange(10.0))[1] == math.inf
    assert psis(np.random.default_rng(14).normal(size=1000) * 1e4)[1] == math.inf
    for bad in (np.full(10, -np.inf), np.array([0, math.nan, 1]), np.array([0.0, math.inf])):
        smoothed, khat = psis(bad)
        assert np.isnan(smoothed).all() and math.isnan(khat)
    assert psis([0.0])[0] == pytest.approx([0.0])
    with pytest.raises(ValueError, match=r"log weights have shape \(3, 0\)\nexpected: .*\ntry: "):
        psis(np.zeros((3, 0)))


SCALARS = {
    "rhat": rhat,
    "ess": ess,
    "ess_tail": ess_tail,
    "ess_mean": ess_mean,
    "mcse": mcse,
    "mcse sd": lambda x: mcse(x, "sd"),
    "mcse median": lambda x: mcse(x, 0.5),
}


@pytest.mark.parametrize("name", SCALARS)
def test_constant_and_broken_elements_are_nan_and_leave_their_neighbours_alone(name):
    """A NaN that leaks through a sort or an FFT, a crash on infinity, 0 / 0 reported as a number."""
    x = np.random.default_rng(15).normal(size=(3, 50, 5))
    alone = SCALARS[name](x[..., 4])
    x[..., 0] = 0.1
    x[1, 7, 1], x[0, 0, 2], x[2, 49, 3] = math.nan, math.inf, -math.inf
    result = np.asarray(SCALARS[name](x))
    assert np.isnan(result[:4]).all() and result[4] == pytest.approx(alone) and math.isfinite(alone)
    assert isinstance(alone, float) and math.isnan(SCALARS[name](x[..., 1]))


def test_intervals_of_broken_elements_are_nan_and_of_constants_the_constant():
    x = np.random.default_rng(16).normal(size=(2, 20, 3))
    x[..., 0], x[0, 3, 1] = 0.1, math.inf
    for ends in (hdi(x), sample_quantiles(x, [0.1, 0.9])):
        assert np.all(ends[:, 0] == 0.1) and np.isnan(ends[:, 1]).all() and np.isfinite(ends[:, 2]).all()
    assert np.array_equal(np.isnan(bfmi(x[..., 1])), [True, False])


def test_chains_stuck_at_their_own_values_are_as_far_apart_as_can_be():
    """A rounding error in place of a zero variance gives a huge number that differs between machines."""
    for draws in range(4, 100):
        x = np.repeat(np.array([[0.1], [0.2], [0.3]]), draws, axis=1)
        assert rhat(x) == math.inf
    assert ess(x) < 10


def test_two_values_in_equal_number_have_an_rhat():
    """They fold to a constant, whose 0 / 0 must not hide the bulk."""
    x = np.random.default_rng(17).permuted(np.repeat([[0, 1]], 500, axis=1).repeat(4, axis=0), axis=1)
    assert 0.99 < rhat(x) < 1.02


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16, mx.int32, mx.bool_])
def test_mlx_arrays_of_every_real_type(dtype):
    """bfloat16 has no numpy type; float32 sums would lose digits; booleans and integers are numbers here."""
    x = mx.array(np.random.default_rng(18).normal(size=(4, 100, 2)).astype(np.float32) * 2).astype(dtype)
    plain = np.array(x.astype(mx.float32)).astype(np.float64)
    assert ess(plain).shape == (2,)  # pyright: ignore[reportAttributeAccessIssue]
    for diagnostic in (rhat, ess, ess_tail, mcse, hdi):
        np.testing.assert_array_equal(diagnostic(x), diagnostic(plain))


def test_elements_beyond_one_block():
    """Blocks that overlap, or a last short block that is dropped."""
    x = np.random.default_rng(19).normal(size=(4, 100, 1500))
    np.testing.assert_allclose(ess(x)[1400:], ess(x[..., 1400:]))  # pyright: ignore[reportIndexIssue]
    assert ess(x[..., :0]).shape == (0,)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("diagnostic", [*SCALARS.values(), hdi, lambda x: sample_quantiles(x, 0.5), bfmi])
def test_too_little_to_judge_says_what_was_expected(diagnostic):
    """Split halves of one draw have no variance: an answer would be a division by zero."""
    with pytest.raises(ValueError) as few:
        diagnostic(np.zeros((2, 3)))
    assert str(few.value) == (
        "draws have shape (2, 3): 2 chains of 3 draws\n"
        "expected: [chains, draws, *event] with at least 1 chain and 4 draws in each\n"
        "try: a longer run; if the first two axes are swapped, x.swapaxes(0, 1)"
    )
    with pytest.raises(ValueError, match=r"shape \(9,\)\nexpected: .*\ntry: x\[None\]"):
        diagnostic(np.zeros(9))
    with pytest.raises(ValueError, match="complex128"):
        diagnostic(np.zeros((2, 9), dtype=complex))


def test_probabilities_and_kinds_are_checked():
    x = np.zeros((2, 10))
    for call in (lambda: hdi(x, 1.0), lambda: sample_quantiles(x, [0.5, 1.5]), lambda: mcse(x, 0.0)):
        with pytest.raises(ValueError, match="\nexpected: .*\ntry: "):
            call()
    with pytest.raises(ValueError, match="'median'"):
        mcse(x, "median")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"energy has shape \(2, 10, 1\)"):
        bfmi(x[..., None])
