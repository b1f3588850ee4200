"""Weights: their sum, effective size, and resampling, which gives N ancestors. E[copies of i] = N w_i in each scheme.

Multinomial, stratified, systematic and residual resampling as in Douc, Cappe and Moulines (2005). MLX 0.32.4 sums
1e6 equal numbers with an error of 1% on the CPU (float32, one after the other), so this is numpy's, in float64.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.errors import ParameterError


def host_weights(log_weights: mx.array) -> Any:
    """Weights that sum to one, numpy; raises when all are zero, or one is NaN or infinite."""
    import numpy as np

    logs, top = _checked(log_weights)
    if top == -math.inf:
        raise ParameterError("every particle has weight zero", hint="more particles, or a better proposal")
    weights = np.exp(logs - top)
    return weights / weights.sum()


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
    import numpy as np

    logs, top = _checked(log_weights)
    return mx.array(top if top == -math.inf else top + math.log(np.exp(logs - top).mean()))


def effective_size(log_weights: mx.array) -> mx.array:
    """Kish's effective sample size, 1 / sum of squared normalised weights.

    >>> round(effective_size(mx.log(mx.array([0.1, 0.2, 0.3, 0.4]))).item(), 4)
    3.3333
    """
    weights = host_weights(log_weights)
    return mx.array(1.0 / float(weights @ weights))


def _checked(log_weights: mx.array) -> tuple[Any, float]:
    """The log weights in float64, and the greatest."""
    import numpy as np

    logs = np.array(log_weights, dtype=np.float64)
    top = float(logs.max())
    if math.isnan(top) or top == math.inf:
        what = "NaN" if math.isnan(top) else "infinite"
        raise ParameterError(f"a particle's weight is {what}: so is a density of the model at a draw")
    return logs, top


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
