"""Pareto smoothed importance sampling: tame the largest weights, and say whether they can be trusted."""

import math

import numpy as np
from numpy.typing import ArrayLike

from .draws import to_float64

SMALLEST = math.log(np.finfo(float).tiny)  # log weights this far below the largest are zero weights


def psis(log_weights: ArrayLike) -> tuple[np.ndarray, float | np.ndarray]:
    """Log weights with a smoothed tail, normalised to sum to 1, and khat, the Pareto shape of that tail.

    `log_weights` is `[*batch, particles]`, unnormalised, from independent draws, and may hold -inf. The
    results are `[*batch, particles]` and `[*batch]` (a float when there is no batch). khat below 0.7:
    estimates are reliable for 2,000 weights or more; above 1 the weights have no mean. Infinite when 1 to 4
    weights make up the tail: too few to tell. NaN when the largest weights are all equal: there is no tail.
    With a NaN, a +inf or only -inf in a row, all of it is NaN. Raises ValueError without weights.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry (2024), JMLR 25(72); the fit is that of `fit_pareto`.

    >>> import numpy as np
    >>> e = np.random.default_rng(0).exponential(size=10_000)
    >>> [round(psis(e * k)[1], 1) for k in (0.2, 0.5, 0.9)]
    [0.2, 0.5, 0.9]
    """
    weights = to_float64(log_weights)
    if weights.ndim < 1 or weights.shape[-1] < 1:
        raise ValueError(
            f"log weights have shape {weights.shape}\n"
            "expected: [*batch, particles] with at least one particle\n"
            "try: the log weights of all particles in one array"
        )
    rows = weights.reshape(-1, weights.shape[-1])
    pairs = [_smooth(row) for row in rows]
    smoothed = np.array([row for row, _ in pairs]).reshape(weights.shape)
    shape = np.array([k for _, k in pairs]).reshape(weights.shape[:-1])
    return smoothed, shape if shape.ndim else float(shape)


def _smooth(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """One row: the tail's weights become the expected order statistics of the Pareto fitted to it."""
    largest = log_weights.max()
    if not np.isfinite(largest):
        return np.full_like(log_weights, np.nan), math.nan
    x = log_weights - largest
    count = len(x)
    tail_size = math.ceil(min(count / 5, 3 * math.sqrt(count)))
    cutoff = max(np.sort(x)[max(count - tail_size - 1, 0)], SMALLEST)
    (tail,) = np.nonzero(x > cutoff)
    if len(tail) > 4:
        tail = tail[np.argsort(x[tail])]
        shape, scale = fit_pareto(np.exp(x[tail]) - math.exp(cutoff))
        if math.isfinite(shape):
            probs = np.arange(0.5, len(tail)) / len(tail)
            excess = -np.log1p(-probs)
            if abs(shape) > np.finfo(float).eps:
                excess = np.expm1(shape * excess) / shape
            # No weight may exceed the largest raw one, which is 0 on this scale.
            x[tail] = np.minimum(np.log(scale * excess + math.exp(cutoff)), 0)
    else:
        shape = math.inf if len(tail) else math.nan
    return x - (x.max() + math.log(np.exp(x - x.max()).sum())), shape


def fit_pareto(ordered: np.ndarray) -> tuple[float, float]:
    """Shape and scale of the generalised Pareto distribution of sorted positive excesses.

    A posterior mean over a grid of theta = -shape / scale under a prior from the data; the shape is then
    drawn towards 0.5 as if by ten more observations. (inf, nan) when the excesses span too many magnitudes to
    be fitted.

    Source: Zhang and Stephens (2009), Technometrics 51(3); grid and prior as in Vehtari et al. (2024),
    appendix C.

    >>> import numpy as np
    >>> excesses = np.expm1(-0.4 * np.log1p(-np.arange(0.5, 1000) / 1000)) / 0.4  # shape 0.4, scale 1
    >>> shape, scale = fit_pareto(excesses)
    >>> round(shape, 2), round(scale, 2)
    (0.4, 1.0)
    """
    n = len(ordered)
    quartile = ordered[int(n / 4 + 0.5) - 1]
    grid = 30 + int(math.sqrt(n))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        theta = 1 / ordered[-1] + (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * quartile)
        shapes = np.log1p(-theta[:, None] * ordered).mean(axis=1)
        log_likelihood = n * (np.log(-theta / shapes) - shapes - 1)
        posterior = np.exp(log_likelihood - log_likelihood.max())
        posterior /= posterior.sum()
        posterior[posterior < 10 * np.finfo(float).eps] = 0
        mean_theta = theta @ posterior / posterior.sum()
        shape = np.log1p(-mean_theta * ordered).mean()
        scale = -shape / mean_theta
    if not math.isfinite(shape) or not scale > 0:
        return math.inf, math.nan
    return float((n * shape + 10 * 0.5) / (n + 10)), float(scale)
