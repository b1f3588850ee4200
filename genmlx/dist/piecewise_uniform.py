"""The distribution with a piecewise constant density: a histogram."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Interval, Support, Vector, nonnegative, real_vector
from genmlx.errors import ParameterError, caller_line


class PiecewiseUniform(Distribution):
    """``piecewise_uniform(bounds, probs)``: bin i is [bounds[i], bounds[i + 1]) and has probability probs[i].

    ``bounds`` has K + 1 increasing numbers and ``probs`` K nonnegative ones, which are normalised. Further axes in
    front of either are batch axes.

    >>> round(piecewise_uniform([0, 1, 3], [1, 3]).log_prob(2).item(), 6)
    -0.980829
    """

    parameters = {"bounds": real_vector, "probs": Vector(nonnegative, phrase="a vector of nonnegative numbers")}
    guarded = False

    def support_of(self, bounds: mx.array, probs: mx.array) -> Support:
        return Interval(bounds[..., 0], bounds[..., -1], closed_hi=False)

    def check_parameters(self, bounds: Any, probs: Any) -> None:
        if isinstance(bounds, (list, tuple)) and not all(a < b for a, b in itertools.pairwise(bounds)):
            raise ParameterError(f"{self.__name__}: bounds must increase, got {bounds!r}", where=caller_line())
        if isinstance(probs, (list, tuple)) and not (all(p >= 0 for p in probs) and 0 < sum(probs) < math.inf):
            raise ParameterError(
                f"{self.__name__}: probs must be nonnegative and not all 0, got {probs!r}", where=caller_line()
            )
        bounds, probs = self.params((bounds, probs))
        if bounds.ndim == 0 or probs.ndim == 0 or bounds.shape[-1] != probs.shape[-1] + 1 or probs.shape[-1] == 0:
            raise ParameterError(
                f"{self.__name__}: probs needs one number for each bin, and bounds one more,"
                f" got bounds {list(bounds.shape)} and probs {list(probs.shape)}",
                where=caller_line(),
            )

    def _sample(self, key: Any, shape: tuple, bounds: mx.array, probs: mx.array) -> mx.array:
        which, where = random.split(key)
        cumulative = mx.cumsum(probs, axis=-1)
        # Strictly inside (0, total): a bin of probability 0 is never chosen.
        level = random.uniform_open(which, shape)[..., None] * cumulative[..., -1:]
        below = mx.concatenate([mx.zeros_like(cumulative[..., :1]), cumulative[..., :-1]], axis=-1)
        chosen = mx.logical_and(level >= below, level < cumulative)
        left = mx.sum(mx.where(chosen, bounds[..., :-1], 0.0), axis=-1)
        right = mx.sum(mx.where(chosen, bounds[..., 1:], 0.0), axis=-1)
        x = left + (right - left) * random.uniform(where, shape)
        return mx.stop_gradient(mx.where(x < right, x, left))

    def _log_density(self, x: mx.array, bounds: mx.array, probs: mx.array) -> mx.array:
        x, left, right = x[..., None], bounds[..., :-1], bounds[..., 1:]
        total = mx.sum(probs, axis=-1)
        valid = mx.logical_and(mx.logical_and(mx.all(left < right, axis=-1), mx.all(probs >= 0, axis=-1)), total > 0)
        heights = mx.log(mx.where(probs > 0, probs, 1.0)) - mx.log(mx.where(left < right, right - left, 1.0))
        heights = mx.where(probs > 0, heights, -math.inf)
        inside = mx.logical_and(x >= left, x < right)
        value = mx.sum(mx.where(inside, heights, 0.0), axis=-1) - mx.log(mx.where(valid, total, 1.0))
        return mx.where(valid, mx.where(mx.any(inside, axis=-1), value, -math.inf), math.nan)

    def _mean(self, bounds: mx.array, probs: mx.array) -> mx.array:
        return mx.sum(probs * 0.5 * (bounds[..., :-1] + bounds[..., 1:]), axis=-1) / mx.sum(probs, axis=-1)

    def _variance(self, bounds: mx.array, probs: mx.array) -> mx.array:
        middle, width = 0.5 * (bounds[..., :-1] + bounds[..., 1:]), bounds[..., 1:] - bounds[..., :-1]
        offset = middle - self._mean(bounds, probs)[..., None]
        return mx.sum(probs * (offset * offset + width * width / 12), axis=-1) / mx.sum(probs, axis=-1)


piecewise_uniform = PiecewiseUniform("piecewise_uniform")
