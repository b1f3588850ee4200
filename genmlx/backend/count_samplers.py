"""Poisson, binomial and geometric draws without host loops: fixed numbers of masked candidates.

Large means: transformed rejection with squeeze (Hörmann 1993, 'The transformed rejection method for generating Poisson
random variables', PTRS; and 'The generation of binomial random variates', BTRS). Small means: inversion of the upper
tail, whose probabilities keep their relative accuracy, by a uniform that is fine near 0. Both are computed and one is
taken, since a traced parameter cannot be branched on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.saddle import log_binomial_raw, log_poisson_raw

_LARGE = 10.0  # the smallest mean for which both papers give their constants
_TABLE = 40  # a count with mean below 10 exceeds this with probability 1e-12
_ROUNDS = 12  # at mean 10, the worst, PTRS accepts 75% and BTRS 70%: all twelve fail 6e-8 and 5e-7 of the time
_TOP = 2147483520.0  # the largest float32 that is an int32


def poisson(key: Any, shape: tuple, rate: mx.array) -> mx.array:
    """Poisson counts of mean ``rate`` >= 0, which broadcasts to ``shape``; int32. A rate above 2e9 counts as 2e9."""
    small_key, large_key = random.split(key)
    rate = mx.minimum(mx.stop_gradient(rate), 2e9)
    large = rate >= _LARGE

    low = mx.where(large, 1.0, rate)[..., None]
    few = _invert(small_key, shape, mx.exp(-low), low / mx.arange(1, _TABLE + 1))

    m = mx.where(large, rate, _LARGE)[..., None]
    b = 0.931 + 2.53 * mx.sqrt(m)
    a = -0.059 + 0.02483 * b
    height = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2)
    many = _transformed(large_key, shape, m, 0.43, a, b, height, squeeze, lambda k: log_poisson_raw(k, m))
    return mx.where(large, many, few)


def binomial(key: Any, shape: tuple, n: mx.array, p: mx.array, q: mx.array) -> mx.array:
    """Successes in ``n`` trials of probability ``p`` = 1 - ``q``; int32. All three broadcast to ``shape``.

    Both probabilities are asked for, since a ``q`` near 0 cannot be read off ``p``.
    """
    small_key, large_key = random.split(key)
    n, p, q = (mx.stop_gradient(x) for x in (mx.minimum(n, _TOP), p, q))
    rare = mx.minimum(p, q)
    mean = n * rare
    large = mean >= _LARGE

    n1, r1 = mx.where(large, 1.0, n)[..., None], mx.where(large, 0.5, rare)[..., None]
    j = mx.arange(1, _TABLE + 1)
    ratio = mx.maximum(n1 - (j - 1), 0.0) / j * (r1 / (1 - r1))
    few = _invert(small_key, shape, mx.exp(n1 * mx.log1p(-r1)), ratio)

    n2, r2 = mx.where(large, n, 40.0)[..., None], mx.where(large, rare, 0.5)[..., None]
    spread = mx.sqrt(n2 * r2 * (1 - r2))
    b = 1.15 + 2.53 * spread
    a = -0.0873 + 0.0248 * b + 0.01 * r2
    mode = mx.broadcast_to(mx.floor((n2 + 1) * r2), (*shape, 1))

    def log_mass(k: mx.array) -> mx.array:
        # BTRS compares with the probability relative to that of the mode, PTRS with the probability itself
        masses = log_binomial_raw(mx.concatenate([k, mode], axis=-1), n2, r2, 1 - r2)
        return masses[..., :-1] - masses[..., -1:]

    many = _transformed(large_key, shape, n2 * r2, 0.5, a, b, (2.83 + 5.1 / b) * spread, 0.92 - 4.2 / b, log_mass)
    count = mx.where(large, many, few)
    return mx.where(p > q, mx.broadcast_to(n, shape).astype(mx.int32) - count, count)


def geometric(key: Any, shape: tuple, p: mx.array) -> mx.array:
    """Failures before the first success of probability ``p`` in (0, 1]; int32, cut off at 2^31."""
    p = mx.stop_gradient(p)
    place_key, side_key = random.split(key)
    # A uniform is fine near 0 only. Folding its upper half there makes small exponentials as fine as large ones.
    half = 0.5 * mx.maximum(random.uniform(place_key, shape), 2.0**-33)
    waiting = -mx.where(random.uniform(side_key, shape) < 0.5, mx.log(half), mx.log1p(-half))
    return mx.minimum(mx.floor(waiting / -mx.log1p(-p)), _TOP).astype(mx.int32)


def _invert(key: Any, shape: tuple, start: mx.array, ratios: mx.array) -> mx.array:
    """Counts by inversion, given the probability of 0 ``[..., 1]`` and the ratios of successive ones ``[..., K]``."""
    rest = start * mx.cumprod(ratios, axis=-1)
    tails = mx.cumsum(rest, axis=-1, reverse=True)
    # P(count > j) decreases in j: the count is how many of these exceed the uniform
    u = mx.maximum(random.uniform(key, shape), 2.0**-33)
    return mx.sum(tails > u[..., None], axis=-1).astype(mx.int32)


def _transformed(
    key: Any,
    shape: tuple,
    mean: mx.array,
    shift: float,
    a: mx.array,
    b: mx.array,
    height: mx.array,
    squeeze: mx.array,
    log_mass: Callable[[mx.array], mx.array],
) -> mx.array:
    """The first accepted of some candidates floor((2a / (1/2 - |u|) + b) u + mean + shift); parameters ``[..., 1]``."""
    place_key, accept_key = random.split(key)
    u = random.uniform(place_key, (*shape, _ROUNDS)) - 0.5
    v = mx.maximum(random.uniform(accept_key, (*shape, _ROUNDS)), 2.0**-33)
    s = mx.maximum(0.5 - mx.abs(u), 2.0**-24)
    whole = mx.floor(mean)
    step = mx.floor((2 * a / s + b) * u + (mean - whole + shift))
    k = whole + step
    log_ratio = mx.log(v * height / (a / (s * s) + b)) - log_mass(mx.maximum(k, 0.0))
    accepted = mx.logical_or(
        mx.logical_and(s >= 0.07, v <= squeeze),
        mx.logical_and(k >= 0, log_ratio <= 0),
    )
    first = mx.argmax(accepted, axis=-1, keepdims=True)
    chosen = mx.where(mx.any(accepted, axis=-1, keepdims=True), mx.take_along_axis(step, first, axis=-1), 0.0)
    return (whole.astype(mx.int32) + chosen.astype(mx.int32))[..., 0]
