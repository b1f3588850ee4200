"""Resampling: N ancestors for weighted particles. Each scheme is unbiased: E[copies of i] = N w_i.

Multinomial, stratified, systematic and residual resampling as in Douc, Cappe and Moulines (2005).
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.errors import ParameterError


def normalised(log_weights: mx.array) -> mx.array:
    """Weights that sum to one; raises when all are zero or one is NaN.

    >>> [round(w, 6) for w in normalised(mx.array([-1.0, -2.0, -3.0])).tolist()]
    [0.665241, 0.244728, 0.090031]
    """
    top = mx.max(log_weights).item()
    if math.isnan(top):
        raise ParameterError("a particle's weight is NaN: a density of the model is NaN at a draw")
    if top == -math.inf:
        raise ParameterError("every particle has weight zero", hint="more particles, or a better proposal")
    weights = mx.exp(log_weights - top)
    return weights / mx.sum(weights)


def effective_size(log_weights: mx.array) -> mx.array:
    """Kish's effective sample size, 1 / sum of squared normalised weights.

    >>> round(effective_size(mx.log(mx.array([0.1, 0.2, 0.3, 0.4]))).item(), 4)
    3.3333
    """
    weights = normalised(log_weights)
    return 1.0 / mx.sum(weights * weights)


def resample(log_weights: mx.array, n: int, key: Any, scheme: str = "systematic") -> mx.array:
    """Indices ``[n]`` of the particles to keep."""
    if scheme not in SCHEMES:
        raise ParameterError(f"no resampling scheme {scheme!r}", expected=f"one of {', '.join(SCHEMES)}")
    return SCHEMES[scheme](normalised(log_weights), n, random.as_key(key))


def multinomial(weights: mx.array, n: int, key: Any) -> mx.array:
    return _invert(weights, random.uniform(key, (n,)))


def stratified(weights: mx.array, n: int, key: Any) -> mx.array:
    return _invert(weights, (mx.arange(n) + random.uniform(key, (n,))) / n)


def systematic(weights: mx.array, n: int, key: Any) -> mx.array:
    return _invert(weights, (mx.arange(n) + random.uniform(key)) / n)


def residual(weights: mx.array, n: int, key: Any) -> mx.array:
    """floor(n w_i) copies of each for certain, the rest multinomially from what is left over."""
    expected = weights * n
    # A product that misses a whole number by rounding is that number: equal weights give one copy each.
    copies = mx.floor(expected + 1e-5)
    left = int(n - mx.sum(copies).item())
    kept = _invert(copies / mx.sum(copies), (mx.arange(n - left) + 0.5) / max(n - left, 1)) if left < n else None
    if left <= 0:
        return kept[:n] if kept is not None else multinomial(weights, n, key)
    rest = mx.maximum(expected - copies, 0.0)
    drawn = multinomial(rest / mx.sum(rest), left, key)
    return drawn if kept is None else mx.concatenate([kept, drawn])


def _invert(weights: mx.array, points: mx.array) -> mx.array:
    """The particle whose share of the unit interval holds each point; never one of weight zero."""
    edges = mx.cumsum(weights)
    points = points * edges[-1]
    # Binary search by halves: log2(N) rounds of N gathers each.
    low = mx.zeros(points.shape, dtype=mx.int32)
    high = mx.full(points.shape, weights.size - 1, dtype=mx.int32)
    for _ in range(max(1, math.ceil(math.log2(max(weights.size, 2))) + 1)):
        middle = (low + high) // 2
        beyond = edges[middle] <= points
        low, high = mx.where(beyond, mx.minimum(middle + 1, high), low), mx.where(beyond, high, middle)
    return low


SCHEMES = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
}
