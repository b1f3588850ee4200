"""Resampling: N ancestors for weighted particles. Each scheme is unbiased: E[copies of i] = N w_i.

Multinomial, stratified, systematic and residual resampling as in Douc, Cappe and Moulines (2005). In float32 the sum
of 1e5 weights is off by more than one weight, so sums and searches are numpy's, in float64, on the host.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.errors import ParameterError


def normalised(log_weights: mx.array) -> mx.array:
    """Weights that sum to one; raises when all are zero, or one is NaN or infinite.

    >>> [round(w, 6) for w in normalised(mx.array([-1.0, -2.0, -3.0])).tolist()]
    [0.665241, 0.244728, 0.090031]
    """
    top = checked_top(log_weights)
    if top == -math.inf:
        raise ParameterError("every particle has weight zero", hint="more particles, or a better proposal")
    weights = mx.exp(log_weights - top)
    return weights / mx.sum(weights)


def checked_top(log_weights: mx.array) -> float:
    """The greatest log weight; raises when one is NaN or +inf."""
    top = mx.max(log_weights).item()
    if math.isnan(top) or top == math.inf:
        what = "NaN" if math.isnan(top) else "infinite"
        raise ParameterError(f"a particle's weight is {what}: so is a density of the model at a draw")
    return top


def log_mean_exp(log_weights: mx.array) -> mx.array:
    """The log of the mean weight; -inf when every weight is zero.

    >>> round(log_mean_exp(mx.array([-1.0, -2.0, -3.0])).item(), 6)
    -1.691006
    """
    if checked_top(log_weights) == -math.inf:
        return mx.array(-math.inf)
    return mx.logsumexp(log_weights) - math.log(log_weights.size)


def effective_size(log_weights: mx.array) -> mx.array:
    """Kish's effective sample size, 1 / sum of squared normalised weights.

    >>> round(effective_size(mx.log(mx.array([0.1, 0.2, 0.3, 0.4]))).item(), 4)
    3.3333
    """
    weights = normalised(log_weights)
    return 1.0 / mx.sum(weights * weights)


def resample(log_weights: mx.array, n: int, key: Any, scheme: str = "systematic") -> mx.array:
    """Indices ``[n]`` of the particles to keep, by one of ``SCHEMES``. A particle of weight zero is never one.

    >>> resample(mx.array([-float("inf"), 0.0]), 3, mx.random.key(0)).tolist()
    [1, 1, 1]
    """
    import numpy as np

    if scheme not in SCHEMES:
        raise ParameterError(f"no resampling scheme {scheme!r}", expected=f"one of {', '.join(SCHEMES)}")
    top = checked_top(log_weights)
    normalised(log_weights)
    weights = np.exp(np.array(log_weights, dtype=np.float64) - top)
    return mx.array(SCHEMES[scheme](weights / weights.sum(), n, random.as_key(key)).astype(np.int32))


def multinomial(weights: Any, n: int, key: Any) -> Any:
    return _invert(weights, _uniform(key, n))


def stratified(weights: Any, n: int, key: Any) -> Any:
    import numpy as np

    return _invert(weights, (np.arange(n) + _uniform(key, n)) / n)


def systematic(weights: Any, n: int, key: Any) -> Any:
    import numpy as np

    return _invert(weights, (np.arange(n) + _uniform(key, 1)) / n)


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
