"""The numbers behind the figures: densities, ranks, autocorrelation, and what a posterior predicts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def density(x: np.ndarray, points: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """A grid from the least to the largest number, and the density there, whose sum times the step is one.

    Gaussian kernels of Silverman's width (1986, equation 3.31), reflected at both ends: a density that begins at a
    bound, as that of a scale, does not sink there. ``x`` has two different numbers at least.
    """
    low, high = x.min(), x.max()
    step = (high - low) / points
    counts, edges = np.histogram(x, points, (low, high))
    quartiles = np.quantile(x, [0.25, 0.75])
    spread = min(s for s in (x.std(ddof=1), (quartiles[1] - quartiles[0]) / 1.34) if s > 0)
    width = 0.9 * spread * len(x) ** -0.2
    reach = math.ceil(4 * width / step)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / width) ** 2)
    smooth = np.convolve(np.pad(counts, reach, mode="symmetric"), kernel / kernel.sum(), mode="valid")
    return (edges[:-1] + edges[1:]) / 2, smooth / (len(x) * step)


def frequencies(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different numbers, and the share of each."""
    values, counts = np.unique(x, return_counts=True)
    return values, counts / len(x)


def rank_histogram(values: np.ndarray, bins: int) -> np.ndarray:
    """How many draws of each chain have a rank in each of ``bins`` equal parts of the ranks of all, ``[chains, bins]``.

    Equal draws share their ranks, and so does what a bin gets of them: the counts need not be whole.
    """
    finite = np.isfinite(values)
    distinct, counts = np.unique(values[finite], return_counts=True)
    ends = np.concatenate([[0], np.cumsum(counts)])
    found = np.empty((len(values), bins))
    for i, chain in enumerate(values):
        own = np.bincount(np.searchsorted(distinct, chain[finite[i]]), minlength=len(distinct))
        reached = np.interp(np.linspace(0, ends[-1], bins + 1), ends, np.concatenate([[0], np.cumsum(own)]))
        found[i] = np.diff(reached)
    return found


def cumulative(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers in order, and the share of them that is not larger."""
    return np.sort(x), np.arange(1, len(x) + 1) / len(x)


def autocorrelation(chain: np.ndarray, lags: int) -> np.ndarray:
    """The autocorrelation of a chain at lags 0 to ``lags``; NaN for one that never moves."""
    n = len(chain)
    length = 1 << (2 * n - 1).bit_length()  # zero padding, so that the circular correlation is the plain one
    power = np.abs(np.fft.rfft(chain - chain.mean(), length)) ** 2
    covariance = np.fft.irfft(power, length)[: lags + 1]
    return covariance / covariance[0] if chain.min() < chain.max() else np.full(lags + 1, np.nan)


def replicated(posterior: Any, draws: int = 400) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By name, what was observed ``[m]``, and what evenly spaced draws of a posterior predict ``[draws, m]``.

    Addresses that differ in whole numbers only, as ``("y", 0)`` and ``("y", 1)``, are one name.
    """
    import mlx.core as mx

    from genmlx.errors import UsageError
    from genmlx.inference.posterior import Posterior
    from genmlx.inference.predictive import predictive
    from genmlx.masked import Masked
    from genmlx.versions import pinned

    if posterior.call is None:
        raise UsageError("this posterior was loaded without its model", hint="Posterior.load(path, call=line(xs))")
    if posterior.observations.is_empty:
        raise UsageError("the posterior has no observations to compare predictions with", hint="--kind trace")
    each = max(1, draws // posterior.chains)
    some = mx.array(np.unique(np.linspace(0, posterior.draws - 1, min(each, posterior.draws)).astype(int)))
    few = Posterior(
        {a: posterior.values_at(a)[:, some] for a in posterior.addresses()},
        present={a: p[:, some] for a in posterior.addresses() if (p := posterior.present_at(a)) is not None},
        stats={},
        log_joint=posterior.log_joint[:, some],
        call=posterior.call,
        pins=posterior.pins,
        observations=posterior.observations,
    )
    with pinned(posterior.pins):
        drawn = predictive(posterior.call, few, key=mx.random.key(0))
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for address, value in posterior.observations.items():
        if address in drawn and not isinstance(value, Masked):
            name = "/".join(str(part) for part in address if not isinstance(part, int)) or "observed"
            new = np.asarray(drawn[address]).astype(float)
            pair = np.asarray(mx.array(value)).astype(float).ravel(), new.reshape(new.shape[0] * new.shape[1], -1)
            groups.setdefault(name, []).append(pair)
    return {
        name: (np.concatenate([o for o, _ in parts]), np.concatenate([p for _, p in parts], axis=1))
        for name, parts in groups.items()
    }
