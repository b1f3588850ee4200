"""Statistics of an address that only some draws have, because the body of the model branches.

They are conditional on having it. With h_i = 1 where draw i has the choice and 0 elsewhere, the mean of x is the ratio
mean(h x) / mean(h), whose error is that of the series h (x - mean) over mean(h) (the delta method); so is the error of
the share of draws below a quantile. ``draws`` and ``present`` are numpy, ``[chains, draws]``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from genmlx.diagnostics import mcse, rhat


def per_element(statistic: Any, draws: np.ndarray, present: np.ndarray, *rest: Any) -> Any:
    """A statistic of each element of ``[chains, draws, *event]``; a vector of statistics goes first."""
    event = draws.shape[2:]
    flat = draws.reshape(*present.shape, -1)
    found = [np.asarray(statistic(flat[..., i], present, *rest)) for i in range(flat.shape[-1])]
    result = np.stack(found, axis=-1).reshape((*found[0].shape, *event))
    return result if result.ndim else float(result)


def ratio_mcse(draws: np.ndarray, present: np.ndarray) -> float:
    """The Monte Carlo standard error of the mean."""
    return float(mcse(_centred(draws, present)) / present.mean())


def ratio_ess(draws: np.ndarray, present: np.ndarray) -> float:
    """How many independent draws that have the choice would give the mean as well as these do."""
    values = draws[present]
    return float(values.var(ddof=1) / ratio_mcse(draws, present) ** 2) if len(values) > 1 else math.nan


def ratio_ess_tail(draws: np.ndarray, present: np.ndarray) -> float:
    """The lesser effective size of the shares below the 5% and 95% quantiles."""
    sizes = [ratio_ess((draws <= q).astype(float), present) for q in quantiles(draws, present, (0.05, 0.95))]
    return float(np.min(sizes))


def ratio_rhat(draws: np.ndarray, present: np.ndarray) -> float:
    """R-hat of the draws, with their mean in the place of the missing ones."""
    return float(rhat(_centred(draws, present)))


def quantiles(draws: np.ndarray, present: np.ndarray, qs: Any) -> Any:
    return np.quantile(draws[present], qs)


def rows(draws: np.ndarray, present: np.ndarray) -> dict[tuple, tuple[float, ...]]:
    """The columns of a summary, for each element by its index."""
    return {index: _columns(draws[(..., *index)], present) for index in np.ndindex(draws.shape[2:])}


def _columns(draws: np.ndarray, present: np.ndarray) -> tuple[float, ...]:
    values = draws[present]
    spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    q5, q95 = quantiles(draws, present, (0.05, 0.95))
    errors = [f(draws, present) for f in (ratio_mcse, ratio_ess, ratio_ess_tail, ratio_rhat)]
    return float(values.mean()), spread, float(q5), float(q95), *errors


def _centred(draws: np.ndarray, present: np.ndarray) -> np.ndarray:
    return np.where(present, draws - draws[present].mean(), 0.0)
