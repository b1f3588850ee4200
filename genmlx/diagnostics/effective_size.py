"""How many independent draws would be worth as much: effective sample sizes of bulk, tails and mean."""

import numpy as np
from numpy.typing import ArrayLike

from .draws import each_element, split_chains
from .ranks import normal_scores


def ess(x: ArrayLike) -> float | np.ndarray:
    """Bulk effective sample size: that of the rank-normalised split chains, finite for any distribution.

    `x` is `[chains, draws, *event]`, the result `[*event]` (a float when there is no event). Want at least
    100 per chain. Never above S log10(S) for S draws. NaN for an element that is constant or not finite.
    Raises ValueError below 4 draws; below 10 draws a chain has too few lags to look at and the cap is
    returned.

    Source: Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), Bayesian Analysis 16(2), section 4; Geyer
    (1992).

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(4, 1000))
    >>> bool(3000 < ess(x) < 5000), bool(ess(x.cumsum(axis=1)) < 50)
    (True, True)
    """
    return each_element(x, lambda draws: effective_size(normal_scores(split_chains(draws))))


def ess_tail(x: ArrayLike) -> float | np.ndarray:
    """Tail effective sample size: the smaller of those of the 5% and the 95% quantile.

    `x` is `[chains, draws, *event]`, the result `[*event]`. A quantile at the largest value, as in boolean
    draws that are mostly true, is exact and counts as S. NaN, errors and source are those of `ess`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(4, 1000))
    >>> bool(3000 < ess_tail(x) < 5000)
    True
    """

    def of(draws: np.ndarray) -> np.ndarray:
        return np.minimum(quantile_size(draws, 0.05), quantile_size(draws, 0.95))

    return each_element(x, of)


def ess_mean(x: ArrayLike) -> float | np.ndarray:
    """Effective sample size for the mean: that of the split chains as they are; needs a finite variance.

    `x` is `[chains, draws, *event]`, the result `[*event]`. NaN, errors and source are those of `ess`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(4, 1000))
    >>> bool(3000 < ess_mean(x) < 5000)
    True
    """
    return each_element(x, lambda draws: effective_size(split_chains(draws)))


def quantile_size(draws: np.ndarray, prob: float) -> np.ndarray:
    """Effective sample size for a quantile: that of "is the draw below it?"; `[elements, chains, draws]`."""
    below = split_chains(draws <= np.quantile(draws, prob, axis=(1, 2), keepdims=True)).astype(float)
    size = effective_size(below)
    return np.where(np.isnan(size), below[0].size, size)


def effective_size(chains: np.ndarray) -> np.ndarray:
    """Draws over autocorrelation time of `[elements, chains, draws]`; NaN where all draws are equal."""
    _, count, n = chains.shape
    mean = chains.mean(axis=-1, keepdims=True)
    length = 1 << (2 * n - 1).bit_length()  # zero padding, so that the circular correlation is the plain one
    power = np.square(np.abs(np.fft.rfft(chains - mean, length))).mean(axis=1)
    autocovariance = np.fft.irfft(power, length)[:, :n] / n
    variance = autocovariance[:, 0] + mean[..., 0].var(axis=-1, ddof=1)
    moving = variance > 0
    within = autocovariance[:, :1] * n / (n - 1)
    correlation = 1 - (within - autocovariance) / np.where(moving, variance, 1.0)[:, None]
    correlation[:, 0] = 1
    # The cap of Vehtari et al.: antithetic chains are better than independent ones, but not without end.
    tau = np.maximum(_autocorrelation_time(correlation), 1 / np.log10(count * n))
    return np.where(moving, count * n / tau, np.nan)


def _autocorrelation_time(correlation: np.ndarray) -> np.ndarray:
    """Geyer's initial monotone sequence estimate from correlations `[elements, lags]`.

    Sums of neighbouring lags (0, 1), (2, 3), ... are positive and decrease for a reversible chain: add them
    up to the first that is not positive, each lowered to the smallest before it. Stan's refinement adds the
    even lag of the pair that ended the sum, which lowers the variance for antithetic chains.
    """
    last = max((correlation.shape[1] + 1) // 2 - 2, 0)
    even = correlation[:, 0 : 2 * last + 1 : 2]
    pairs = even + correlation[:, 1 : 2 * last + 2 : 2]
    ended = pairs <= 0
    stop = np.where(ended.any(axis=1), ended.argmax(axis=1), last)[:, None]
    monotone = np.minimum.accumulate(pairs, axis=1)
    body = np.where(np.arange(last + 1) < stop, monotone, 0).sum(axis=1)
    tip, tip_pair = np.take_along_axis(even, stop, 1)[:, 0], np.take_along_axis(pairs, stop, 1)[:, 0]
    return -1 + 2 * body + np.where((tip > 0) | (tip_pair >= 0), tip, 0)
