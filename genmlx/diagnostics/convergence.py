"""Have the chains forgotten where they started? Rank-normalised split R-hat; and BFMI for energy."""

import numpy as np
from numpy.typing import ArrayLike

from .draws import each_element, split_chains, to_draws
from .ranks import normal_scores


def rhat(x: ArrayLike) -> float | np.ndarray:
    """Rank-normalised split R-hat: the larger of the bulk's (location) and the folded draws' (scale).

    `x` is `[chains, draws, *event]`, the result `[*event]` (a float when there is no event). Near 1 at
    convergence; above 1.01 do not use the draws. One chain is compared with itself, half against half.
    NaN for an element that is constant or not finite; infinite when every chain is stuck at its own value.
    Raises ValueError below 4 draws.

    Source: Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), Bayesian Analysis 16(2), equations 1-4, 14,
    15.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(4, 1000))
    >>> bool(rhat(x) < 1.01), bool(rhat(x + np.arange(4)[:, None]) > 1.5)
    (True, True)
    """

    def of(draws: np.ndarray) -> np.ndarray:
        halves = split_chains(draws)
        folded = np.abs(halves - np.median(halves, axis=(1, 2), keepdims=True))
        # A two-valued element can fold to a constant: then the bulk alone speaks, which fmax lets it do.
        return np.fmax(_scale_reduction(normal_scores(halves)), _scale_reduction(normal_scores(folded)))

    return each_element(x, of)


def _scale_reduction(chains: np.ndarray) -> np.ndarray:
    """sqrt((W (n - 1) / n + B / n) / W) of `[elements, chains, draws]`."""
    n = chains.shape[-1]
    # Measured from its first draw the variance of a stuck chain is exactly zero, not a rounding error.
    within = (chains - chains[..., :1]).var(axis=-1, ddof=1).mean(axis=-1)
    between = chains.mean(axis=-1).var(axis=-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(between / within + (n - 1) / n)


def bfmi(energy: ArrayLike) -> np.ndarray:
    """Bayesian fraction of missing information of each chain, which is small when energy moves slowly.

    `energy` is `[chains, draws]`, the result `[chains]`. Below 0.3 the tails are explored poorly:
    reparametrise. NaN for a chain that is constant or not finite. Raises ValueError below 4 draws.

    Source: Betancourt (2016), arXiv:1604.00695; the form of Stan: sum of squared steps over the variance.

    >>> import numpy as np
    >>> independent = np.random.default_rng(0).normal(size=(2, 1000))
    >>> bfmi(independent).round(1), bfmi(independent.cumsum(axis=1)).round(1)
    (array([2., 2.]), array([0., 0.]))
    """
    chains = to_draws(energy)
    if chains.ndim != 2:
        raise ValueError(
            f"energy has shape {chains.shape}\nexpected: [chains, draws]\ntry: the `energy` of a posterior's stats"
        )

    def of(element: np.ndarray) -> np.ndarray:
        steps = np.square(np.diff(element, axis=-1)).mean(axis=-1)
        return (steps / element.var(axis=-1, ddof=1))[:, 0]

    return np.asarray(each_element(chains.T[None], of))
