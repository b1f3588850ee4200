"""Warm-up of gradient samplers: a step size by dual averaging and a mass matrix from windows of draws, as in Stan.

Hoffman and Gelman (2014), section 3.2; Stan Reference Manual, "Automatic parameter tuning". Where Stan adapts each
chain by itself, all chains share what they learn here: one step size, from their mean acceptance, and one mass
matrix, from the draws of all of them. With many chains that is known after far fewer transitions.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.inference.leapfrog import Metric, identity_metric, metric

_GAMMA, _T0, _KAPPA = 0.05, 10.0, 0.75
_SETTLED = 10
_FIRST, _WINDOW, _LAST, _FEWEST = 75, 25, 50, 20
_SMALLEST, _LARGEST = 1e-10, 1e7


class DualAveraging:
    """Moves log(step size) until the mean acceptance is the target; ``averaged`` is what to keep in the end.

    Nesterov (2009), with Stan's gamma 0.05, t0 10 and kappa 0.75; it is drawn towards ten times where it began.
    """

    def __init__(self, step_size: float, target: float):
        self.target = target
        self.restart(step_size)

    def restart(self, step_size: float) -> None:
        self.step_size = self._began = step_size
        self._mu, self._error, self._log_averaged, self._count = math.log(10 * step_size), 0.0, 0.0, 0

    def update(self, accept: float) -> None:
        accept = min(1.0, accept) if math.isfinite(accept) else 0.0
        self._count += 1
        weight = 1 / (self._count + _T0)
        self._error = (1 - weight) * self._error + weight * (self.target - accept)
        log_step = self._mu - self._error * math.sqrt(self._count) / _GAMMA
        decay = self._count**-_KAPPA
        self._log_averaged = decay * log_step + (1 - decay) * self._log_averaged
        self.step_size = _within(math.exp(min(log_step, 50.0)))

    @property
    def averaged(self) -> float:
        """What it began with, until it has seen enough to have come back from ten times that."""
        return self._began if self._count < _SETTLED else _within(math.exp(self._log_averaged))


class Welford:
    """The variances (or, ``dense``, the covariance matrix) of draws that come in batches ``[n, dim]``.

    Welford (1962), merged as by Chan, Golub and LeVeque (1983).
    """

    def __init__(self, dim: int, dense: bool):
        self.count, self.dense = 0, dense
        self._mean = mx.zeros((dim,))
        self._squares = mx.zeros((dim, dim) if dense else (dim,))

    def add(self, batch: mx.array) -> None:
        n = batch.shape[0]
        total = self.count + n
        mean = mx.mean(batch, axis=0)
        apart, between = batch - mean, mean - self._mean
        weight = self.count * n / total
        if self.dense:
            own, shift = mx.swapaxes(apart, 0, 1) @ apart, mx.outer(between, between)
        else:
            own, shift = mx.sum(apart * apart, axis=0), between * between
        self._squares = self._squares + own + weight * shift
        self._mean = self._mean + between * (n / total)
        self.count = total

    @property
    def arrays(self) -> list[mx.array]:
        return [self._mean, self._squares]

    def covariance(self) -> mx.array:
        return self._squares / max(self.count - 1, 1)

    def regularised(self) -> mx.array:
        """Stan's estimate: shrunk to 1e-3 as if by five draws."""
        share = self.count / (self.count + 5.0)
        little = 1e-3 * (1 - share)
        dim = self._mean.shape[0]
        return share * self.covariance() + (little * mx.eye(dim) if self.dense else little)


class Warmup:
    """What warm-up knows: the step size and the metric, and at which transitions it learns a new metric."""

    def __init__(self, transitions: int, dim: int, target_accept: float, dense: bool):
        self.metric: Metric = identity_metric(dim, dense)
        self.dual = DualAveraging(1.0, target_accept)
        self.first, self.ends = windows(transitions)
        self._dim, self._dense, self._done = dim, dense, 0
        self._draws = Welford(dim, dense)

    @property
    def step_size(self) -> float:
        return self.dual.step_size

    def update(self, accept: float, positions: mx.array) -> bool:
        """After one transition of all chains; True when the metric is new, and a first step size is to be found."""
        self.dual.update(accept)
        self._done += 1
        if self.first < self._done <= (self.ends[-1] if self.ends else 0):
            self._draws.add(positions)
            mx.eval(self._draws.arrays)
        if self._done not in self.ends:
            return False
        self.metric = self._learned()
        self._draws = Welford(self._dim, self._dense)
        return True

    def _learned(self) -> Metric:
        import numpy as np

        found = np.array(self._draws.regularised(), dtype=np.float64)
        if not np.all(np.isfinite(found)):
            return self.metric
        return metric((found + found.T) / 2 if self._dense else found, self._dim)

    def finish(self) -> float:
        """The step size to sample with."""
        return self.dual.averaged


def windows(transitions: int) -> tuple[int, list[int]]:
    """Stan's schedule: after how many transitions draws are first kept, and where each window of them ends.

    A warm-up of less than 150 transitions leaves 35% of them to the last step size, where Stan leaves 10%: the draws
    of all chains make a metric soon, but the step size of a new metric takes its time.

    >>> windows(1000)
    (75, [100, 150, 250, 450, 950])
    >>> windows(100)
    (15, [65])
    """
    if transitions < _FEWEST:
        return transitions, []
    first, size, last = _FIRST, _WINDOW, _LAST
    if first + size + last > transitions:
        first, last = int(0.15 * transitions), int(0.35 * transitions)
        size = transitions - first - last
    ends, end, stop = [], first, transitions - last
    while end < stop:
        # A window that would leave too little for the next, twice as long, takes that in.
        end = stop if end + 3 * size > stop else end + size
        ends.append(end)
        size *= 2
    return first, ends


def first_step_size(accept_at: Any, step_size: float, target: float) -> float:
    """Doubled or halved until the acceptance of one step crosses the target (Hoffman and Gelman 2014, algorithm 4).

    Of the two step sizes about the target it is the smaller one.
    """
    larger = accept_at(step_size) > target
    while _SMALLEST < step_size < _LARGEST:
        following = 2 * step_size if larger else step_size / 2
        if (accept_at(following) > target) != larger:
            return _within(min(step_size, following))
        step_size = following
    return _within(step_size)


def _within(step_size: float) -> float:
    return min(max(step_size, _SMALLEST), _LARGEST)
