"""Weights: their sum, effective size, and resampling, which gives N ancestors. E[copies of i] = N w_i in each scheme.

Multinomial, stratified, systematic and residual resampling as in Douc, Cappe and Moulines (2005). MLX 0.32.4 sums
1e6 equal numbers with an error of 1% on the CPU (float32, one after the other), so this is numpy's, in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import random
from genmlx.errors import ImpossibleObservation, ParameterError


class DegenerateWeights(ParameterError, ImpossibleObservation):
    """Every particle has weight zero."""


def host_weights(log_weights: mx.array) -> Any:
    """Weights that sum to one, numpy; raises when all are zero, or one is NaN or infinite."""
    weighed = _weighed(log_weights)
    if weighed.weights is None:
        raise DegenerateWeights("every particle has weight zero", hint="more particles, or a better proposal")
    return weighed.weights


def normalised(log_weights: mx.array) -> mx.array:
    """Weights that sum to one; raises when all are zero, or one is NaN or infinite.

    >>> [round(w, 6) for w in normalised(mx.array([-1.0, -2.0, -3.0])).tolist()]
    [0.665241, 0.244728, 0.090031]
    """
    return mx.array(host_weights(log_weights).astype("float32"))


def log_mean_exp(log_weights: mx.array) -> mx.array:
    """The log of the mean weight; -inf when every weight is zero; raises when one is NaN or infinite.

    >>> round(log_mean_exp(mx.array([-1.0, -2.0, -3.0])).item(), 6)
    -1.691006
    """
    return mx.array(log_mean(log_weights))


def log_mean(log_weights: mx.array) -> float:
    """``log_mean_exp`` in float64."""
    return _weighed(log_weights).log_mean


def effective_size(log_weights: mx.array) -> mx.array:
    """Kish's effective sample size, 1 / sum of squared normalised weights.

    >>> round(effective_size(mx.log(mx.array([0.1, 0.2, 0.3, 0.4]))).item(), 4)
    3.3333
    """
    weights = host_weights(log_weights)
    return mx.array(1.0 / float(weights @ weights))


class _Weighed(NamedTuple):
    """Log weights as they were, the weights (None when all are zero), and the log of their mean."""

    given: mx.array
    logs: Any
    weights: Any
    log_mean: float


_last: tuple[_Weighed, ...] = ()


def _weighed(log_weights: mx.array) -> _Weighed:
    """A filter asks for the same weights several times a step: those of the last two arrays are kept."""
    global _last
    import numpy as np

    logs = np.array(log_weights)
    for known in _last:
        if known.given is log_weights and np.array_equal(known.logs, logs):
            return known
    top = float(logs.max())
    if math.isnan(top) or top == math.inf:
        what = "NaN" if math.isnan(top) else "infinite"
        raise ParameterError(f"a particle's weight is {what}: so is a density of the model at a draw")
    if top == -math.inf:
        found = _Weighed(log_weights, logs, None, top)
    else:
        weights = np.exp(logs.astype(np.float64) - top)
        total = weights.sum()
        weights /= total
        weights.flags.writeable = False
        found = _Weighed(log_weights, logs, weights, top + math.log(total / weights.size))
    _last = (found, *_last[:1])
    return found


def resample(log_weights: mx.array, n: int, key: Any, scheme: str = "systematic") -> mx.array:
    """Indices ``[n]`` of the particles to keep, by one of ``SCHEMES``. A particle of weight zero is never one.

    >>> resample(mx.array([-float("inf"), 0.0]), 3, mx.random.key(0)).tolist()
    [1, 1, 1]
    """
    import numpy as np

    if scheme not in SCHEMES:
        raise ParameterError(f"no resampling scheme {scheme!r}", expected=f"one of {', '.join(SCHEMES)}")
    return mx.array(SCHEMES[scheme](host_weights(log_weights), n, random.as_key(key)).astype(np.int32))


def multinomial(weights: Any, n: int, key: Any) -> Any:
    return _invert(weights, _uniform(key, n))


def stratified(weights: Any, n: int, key: Any) -> Any:
    import numpy as np

    return _invert(weights, (np.arange(n) + _uniform(key, n)) / n)


def systematic(weights: Any, n: int, key: Any) -> Any:
    """The particles whose shares hold the points (j + u) / n, found by how many of these lie below each edge."""
    import numpy as np

    edges = np.cumsum(weights)
    below = np.clip(np.ceil(edges * (n / edges[-1]) - _uniform(key, 1)), 0, n).astype(np.int64)
    below[edges >= edges[-1]] = n
    return np.repeat(np.arange(len(weights)), np.diff(below, prepend=0))


def residual(weights: Any, n: int, key: Any) -> Any:
    """floor(n w_i) copies of each for certain, the rest multinomially from what is left over."""
    import numpy as np

    # A product that misses a whole number by rounding is that number: equal weights give one copy each.
    copies = np.floor(weights * n + 1e-9)
    kept = np.repeat(np.arange(len(weights)), copies.astype(int))
    if len(kept) >= n:
        return kept[:n]
    rest = np.maximum(weights * n - copies, 0.0)
    return np.concatenate([kept, multinomial(rest / rest.sum(), n - len(kept), key)])


def conditional_resample(log_weights: mx.array, kept: int, n: int, key: Any, scheme: str = "systematic") -> mx.array:
    """Indices ``[n]`` as ``resample`` draws them, given that one is ``kept``, which comes first.

    Where a scheme makes O copies of a particle, it is one in proportion to O, so the law of the other copies is that
    of the scheme weighted by O: the copy's place on the unit interval is uniform in the particle's share of it.
    Andrieu, Doucet and Holenstein (2010); Chopin and Singh (2015), "On particle Gibbs sampling".
    """
    import numpy as np

    weights = host_weights(log_weights)
    place_key, rest_key = random.split(random.as_key(key))
    place = float(_uniform(place_key, 1)[0])
    if scheme == "multinomial":
        rest = multinomial(weights, n - 1, rest_key)
    elif scheme == "residual":
        copies = np.floor(weights * n + 1e-9).astype(int)
        left = np.maximum(weights * n - copies, 0.0)
        drawn = n - int(copies.sum())
        if place * weights[kept] * n < copies[kept] or drawn <= 0:
            copies[kept] -= 1
        else:
            drawn -= 1
        sure = np.repeat(np.arange(len(weights)), copies)[: n - 1]
        rest = np.concatenate([sure, multinomial(left / left.sum(), drawn, rest_key)]) if drawn > 0 else sure
    else:
        edges = np.concatenate([[0.0], np.cumsum(weights)]) * n
        at = edges[kept] + place * (edges[kept + 1] - edges[kept])
        mine = min(int(at), n - 1)
        shifts = np.full(n, at - mine) if scheme == "systematic" else _uniform(rest_key, n)
        rest = np.delete(_invert(weights, (np.arange(n) + shifts) / n), mine)
    return mx.array(np.concatenate([[kept], rest]).astype(np.int32))


def optimal_resize(log_weights: mx.array, n: int, key: Any) -> tuple[mx.array, mx.array]:
    """Indices ``[n]`` of the particles to keep, and their log weights: the least expected squared error of weights.

    With c such that the sum of min(1, c w_i) is n, particles with c w_i >= 1 keep their weight, and others are drawn
    systematically, none of them twice, with weight 1 / c each. Fearnhead and Clifford (2003), "On-line inference for
    hidden Markov models via particle filters".
    """
    import numpy as np

    weights = host_weights(log_weights)
    largest = np.argsort(-weights, kind="stable")
    order = weights[largest]
    # With the k largest kept, c = (n - k) / (the sum of the others); the right k is the first for which c w_k+1 < 1.
    rest = np.cumsum(order[::-1])[::-1]
    kept = next((k for k in range(n) if order[k] * (n - k) < rest[k]), n)
    sure = np.sort(largest[:kept])
    if kept == n:
        index = mx.array(sure.astype(np.int32))
        return index, log_weights[index]
    logs, others = np.array(log_weights, dtype=np.float64), weights.copy()
    others[sure] = 0.0
    drawn = systematic(others / others.sum(), n - kept, random.as_key(key))
    each = math.log(rest[kept] / (n - kept)) + np.logaddexp.reduce(logs)
    new = np.concatenate([logs[sure], np.full(n - kept, each)])
    return mx.array(np.concatenate([sure, drawn]).astype(np.int32)), mx.array(new.astype(np.float32))


def _uniform(key: Any, n: int) -> Any:
    """Uniform on [0, 1) with the 53 bits of a double."""
    import numpy as np

    words = np.array(random.bits(key, (2, n))).astype(np.uint64)
    return ((words[0] >> np.uint64(5)) * 2.0**26 + (words[1] >> np.uint64(6))) * 2.0**-53


def _invert(weights: Any, points: Any) -> Any:
    """The particle whose share of the unit interval holds each point; never one of weight zero."""
    import numpy as np

    edges = np.cumsum(weights)
    return np.searchsorted(edges, np.minimum(points * edges[-1], np.nextafter(edges[-1], 0.0)), side="right")


SCHEMES = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
}
