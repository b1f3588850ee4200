"""The standard error of the log evidence of a particle filter, from one run.

Chan and Lai (2013), "A general theory of particle filters in hidden Markov models and some applications"; Lee and
Whiteley (2018), "Variance estimation in the particle filter".
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.inference.history import History
from genmlx.inference.resampling import host_weights, log_mean


def evidence_error(history: History, log_weights: mx.array) -> float:
    """By what share of the weight each particle of the first step has in the end.

    With W_i the shares, the square root of 1 - c (1 - sum W_i^2). In Lee and Whiteley resampling is multinomial, and c
    is a power of n / (n - 1); here c is what resampling did to pairs of particles, so that it serves for other schemes
    too, if only roughly: a fifth too small where every step is resampled systematically and says little. It is rough
    where few ancestors are left, and NaN where all particles have one.
    """
    import numpy as np

    first = history.origins(log_weights.size)[0]
    shares = np.bincount(first, host_weights(log_weights))
    if np.count_nonzero(shares) < 2:
        return math.nan
    variance = 1.0 - math.prod(step.pairs for step in history) * (1.0 - float(shares @ shares))
    return variance if math.isnan(variance) else math.sqrt(max(variance, 0.0))


def lost_pairs(before: mx.array, index: Any, after: mx.array) -> float:
    """By what factor two draws by the weights after are less likely of different ancestors than two by those before."""
    import numpy as np

    if log_mean(before) == -math.inf or log_mean(after) == -math.inf:
        return math.nan
    old, new = host_weights(before), np.bincount(index, host_weights(after))
    kept = 1.0 - new @ new
    return float((1.0 - old @ old) / kept) if kept > 0 else math.nan
