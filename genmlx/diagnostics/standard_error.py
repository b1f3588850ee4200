"""Monte Carlo standard errors: how far an estimate is from its value under endlessly many draws."""

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .draws import each_element, split_chains
from .effective_size import effective_size, quantile_size


def mcse(x: ArrayLike, kind: Literal["mean", "sd"] | float = "mean") -> float | np.ndarray:
    """Monte Carlo standard error of the mean, of the standard deviation, or of the quantile `kind`.

    `x` is `[chains, draws, *event]`, the result `[*event]` (a float when there is no event), in the units of
    `x`. NaN for an element that is constant or not finite. Raises ValueError below 4 draws, and for another
    `kind`.

    Source: Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), Bayesian Analysis 16(2), section 4.4; for the
    standard deviation the delta method on the variance of squares.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(4, 1000))
    >>> round(mcse(x), 3), round(mcse(x, "sd"), 3), round(mcse(x, 0.95), 2)
    (0.016, 0.011, 0.03)
    """
    if kind == "mean":
        return each_element(x, _of_mean)
    if kind == "sd":
        return each_element(x, _of_sd)
    if isinstance(kind, str) or not 0 < kind < 1:
        raise ValueError(
            f"no standard error of kind {kind!r}\n"
            "expected: 'mean', 'sd', or the probability of a quantile, between 0 and 1\n"
            "try: mcse(x, 0.5) for the median"
        )
    return each_element(x, lambda draws: _of_quantile(draws, kind))


def _of_mean(draws: np.ndarray) -> np.ndarray:
    return draws.std(axis=(1, 2), ddof=1) / np.sqrt(effective_size(split_chains(draws)))


def _of_sd(draws: np.ndarray) -> np.ndarray:
    squares = np.square(draws - draws.mean(axis=(1, 2), keepdims=True))
    variance = squares.mean(axis=(1, 2))
    variance_of_variance = squares.var(axis=(1, 2)) / effective_size(split_chains(squares))
    return np.sqrt(variance_of_variance / variance / 4)


def _of_quantile(draws: np.ndarray, prob: float) -> np.ndarray:
    """Half the distance of the order statistics at one standard error below and above."""
    size = quantile_size(draws, prob)
    ordered = np.sort(draws.reshape(len(draws), -1), axis=1)
    total = ordered.shape[1]
    # One standard deviation of a normal either way, to the digits that ArviZ and posterior use.
    low, high = (_beta_quantile(p, size * prob + 1, size * (1 - prob) + 1) for p in (0.1586553, 0.8413447))
    below = np.floor(np.maximum(low * total - 1, 0)).astype(int)
    above = np.ceil(np.minimum(high * total - 1, total - 1)).astype(int)
    ends = np.take_along_axis(ordered, np.stack([below, above], axis=1), axis=1)
    return (ends[:, 1] - ends[:, 0]) / 2


def _beta_quantile(prob: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quantiles of Beta(a, b) for vectors a, b >= 1, by Newton's method kept inside a shrinking bracket."""
    lgamma = np.vectorize(math.lgamma, otypes=[float])
    log_beta = lgamma(a) + lgamma(b) - lgamma(a + b)
    low, high, x = np.zeros_like(a), np.ones_like(a), a / (a + b)
    for _ in range(100):
        excess = _beta_cdf(x, a, b, log_beta) - prob
        low, high = np.where(excess < 0, x, low), np.where(excess < 0, high, x)
        newton = x - excess / np.exp((a - 1) * np.log(x) + (b - 1) * np.log1p(-x) - log_beta)
        previous, x = x, np.where((low <= newton) & (newton <= high), newton, (low + high) / 2)
        if np.all(np.abs(x - previous) < 1e-13):
            break
    return x


def _beta_cdf(x: np.ndarray, a: np.ndarray, b: np.ndarray, log_beta: np.ndarray) -> np.ndarray:
    """Regularised incomplete beta function by its continued fraction, DLMF 8.17.22, in Lentz's form."""
    mirrored = x > (a + 1) / (a + b + 2)  # where the fraction for 1 - x is the one that converges fast
    x, a, b = np.where(mirrored, 1 - x, x), np.where(mirrored, b, a), np.where(mirrored, a, b)
    c, d = np.full_like(x, 2.0), np.ones_like(x)
    fraction = c * d
    for step in range(1, 10_000):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + term * d)
        c = 1 + term / c
        fraction = fraction * c * d
        if np.all(np.abs(c * d - 1) < 1e-14):
            break
    value = np.exp(a * np.log(x) + b * np.log1p(-x) - log_beta) / a * (fraction - 1)
    return np.where(mirrored, 1 - value, value)
