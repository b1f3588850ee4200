"""Rank normalisation: draws replaced by the normal scores of their ranks (Blom 1958)."""

from functools import lru_cache
from statistics import NormalDist

import numpy as np


@lru_cache(maxsize=8)
def _score_table(size: int) -> np.ndarray:
    """Normal scores of the ranks 1, 1.5, 2, ..., size: average ranks of ties are half integers."""
    ranks = np.arange(2, 2 * size + 1) / 2
    inverse = NormalDist().inv_cdf
    table = np.array([inverse(p) for p in (ranks - 3 / 8) / (size + 1 / 4)])
    table.flags.writeable = False
    return table


def normal_scores(draws: np.ndarray) -> np.ndarray:
    """Normal scores of the ranks within each element, over all its chains; `[elements, chains, draws]`.

    Ties share their average rank.
    """
    flat = draws.reshape(len(draws), -1)
    size = flat.shape[1]
    order = np.argsort(flat, axis=1)
    ordered = np.take_along_axis(flat, order, axis=1)
    edge = np.ones((len(flat), size + 1), dtype=bool)
    edge[:, 1:-1] = ordered[:, 1:] != ordered[:, :-1]
    place = np.arange(size)
    if edge.all():
        doubled_rank = np.broadcast_to(2 * place, flat.shape)
    else:
        first = np.maximum.accumulate(np.where(edge[:, :-1], place, 0), axis=1)
        last = np.minimum.accumulate(np.where(edge[:, 1:], place, size)[:, ::-1], axis=1)[:, ::-1]
        doubled_rank = first + last
    scores = np.empty_like(flat)
    np.put_along_axis(scores, order, _score_table(size)[doubled_rank], axis=1)
    return scores.reshape(draws.shape)
