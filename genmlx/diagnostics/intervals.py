"""Where the draws lie: quantiles, and the shortest interval that holds a given share of them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .draws import pooled


def sample_quantiles(x: ArrayLike, qs: float | Sequence[float]) -> np.ndarray:
    """Quantiles of the pooled draws, by linear interpolation (type 7 of Hyndman and Fan, 1996).

    `x` is `[chains, draws, *event]`; the result is `[*event]` for one probability and `[len(qs), *event]` for
    several. NaN for an element that is not finite. Raises ValueError below 4 draws, and outside 0 to 1.

    >>> sample_quantiles([[0, 1, 2, 3, 4]], [0.25, 0.5, 1])
    array([1., 2., 4.])
    """
    probs = np.asarray(qs, dtype=np.float64)
    if not np.all((probs >= 0) & (probs <= 1)):
        raise ValueError(f"no quantiles at {qs!r}\nexpected: probabilities from 0 to 1\ntry: 0.05 for the 5% quantile")
    draws, finite = pooled(x)
    return np.where(finite, np.quantile(draws, probs, axis=0), np.nan)


def hdi(x: ArrayLike, prob: float = 0.94) -> np.ndarray:
    """Highest density interval: the shortest that holds the share `prob` of the pooled draws.

    `x` is `[chains, draws, *event]`, the result `[2, *event]`: low, then high; one interval, also
    where there are two modes. NaN for an element that is not
    finite. Raises ValueError below 4 draws, and for a `prob` not between 0 and 1.

    Source: Chen and Shao (1999), Journal of Computational and Graphical Statistics 8(1).

    >>> low, high = hdi([[0, 5, 6, 7, 8, 20]], prob=0.5)
    >>> float(low), float(high)
    (5.0, 8.0)
    """
    if not 0 < prob < 1:
        raise ValueError(f"no interval with a share of {prob!r}\nexpected: 0 < prob < 1\ntry: prob=0.94")
    draws, finite = pooled(x)
    ordered = np.sort(draws, axis=0)
    inside = int(prob * len(ordered))
    widths = ordered[inside:] - ordered[: len(ordered) - inside]
    start = widths.argmin(axis=0)[None]
    ends = np.concatenate([start, start + inside])
    return np.where(finite, np.take_along_axis(ordered, ends, axis=0), np.nan)
