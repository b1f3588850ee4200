"""Warm-up of gradient samplers: a step size by dual averaging and a mass matrix from windows of draws, as in Stan.

Hoffman and Gelman (2014), section 3.2; Stan Reference Manual, "Automatic parameter tuning". Where Stan adapts each
chain by itself, the chains share what they learn here: one mass matrix, from the draws of all of them, and then one
step size, from their mean acceptance. With many chains that is known after far fewer transitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx.inference.leapfrog import Metric, identity_metric, metric

_GAMMA, _T0, _KAPPA = 0.05, 10.0, 0.75
_SETTLED = 10
_FIRST, _WINDOW, _LAST, _FEWEST = 75, 25, 50, 20
_SMALLEST, _LARGEST = 1e-10, 1e7
_SIZES = ("step_size", "_began", "_mu", "_error", "_log_averaged")


class DualAveraging:
    """Moves log(step size) until the mean acceptance is the target; ``averaged`` is what to keep in the end.

    Nesterov (2009), with Stan's gamma 0.05, t0 10 and kappa 0.75; it is drawn towards ten times where it began. Step
    sizes are numpy arrays, ``[chains]`` or ``[1]``.
    """

    def __init__(self, step_size: Any, target: float):
        self.target = target
        self.restart(step_size)

    def restart(self, step_size: Any) -> None:
        import numpy as np

        self._np = np
        self.step_size = self._began = np.array(step_size, dtype=float)
        self._mu, self._count = np.log(10 * self._began), 0
        self._error = self._log_averaged = np.zeros_like(self._began)

    def update(self, accept: Any) -> None:
        np = self._np
        accept = np.clip(np.nan_to_num(accept, nan=0.0), 0.0, 1.0)
        self._count += 1
        weight = 1 / (self._count + _T0)
        self._error = (1 - weight) * self._error + weight * (self.target - accept)
        log_step = self._mu - self._error * math.sqrt(self._count) / _GAMMA
        decay = self._count**-_KAPPA
        self._log_averaged = decay * log_step + (1 - decay) * self._log_averaged
        self.step_size = np.exp(np.clip(log_step, math.log(_SMALLEST), math.log(_LARGEST)))

    def state(self) -> dict:
        """What ``restore`` needs, in numbers that are written without rounding."""
        return {name: getattr(self, name).tolist() for name in _SIZES} | {"count": self._count}

    def restore(self, saved: dict) -> None:
        self._count = saved["count"]
        for name in _SIZES:
            setattr(self, name, self._np.array(saved[name]))

    @property
    def averaged(self) -> Any:
        """What it began with, until it has seen enough to have come back from ten times that."""
        if self._count < _SETTLED:
            return self._began
        return self._np.exp(self._np.clip(self._log_averaged, math.log(_SMALLEST), math.log(_LARGEST)))


class Welford:
    """The variances (or, ``dense``, the covariance matrix) of draws that come in batches ``[n, dim]``.

    Welford (1962), merged as by Chan, Golub and LeVeque (1983).
    """

    def __init__(self, dim: int, dense: bool):
        self.count, self.dense = 0, dense
        self._mean = mx.zeros((dim,))
        self._squares = mx.zeros((dim, dim) if dense else (dim,))

    def add(self, batch: mx.array) -> None:
        mean = mx.mean(batch, axis=0)
        apart = batch - mean
        squares = mx.swapaxes(apart, 0, 1) @ apart if self.dense else mx.sum(apart * apart, axis=0)
        self.merge(batch.shape[0], mean, squares)

    def merge(self, n: int, mean: mx.array, squares: mx.array) -> None:
        """``n`` draws of this mean, and with these sums of squares (``dense``: and products) about it."""
        total = self.count + n
        between = mean - self._mean
        shift = mx.outer(between, between) if self.dense else between * between
        self._squares = self._squares + squares + (self.count * n / total) * shift
        self._mean = self._mean + between * (n / total)
        self.count = total

    @property
    def arrays(self) -> list[mx.array]:
        return [self._mean, self._squares]

    def state(self) -> dict:
        return {"count": self.count, "arrays": self.arrays}

    def restore(self, saved: dict) -> None:
        self.count, (self._mean, self._squares) = saved["count"], saved["arrays"]

    def covariance(self) -> mx.array:
        return self._squares / max(self.count - 1, 1)

    def regularised(self) -> mx.array:
        """Stan's estimate: shrunk to 1e-3 as if by five draws."""
        share = self.count / (self.count + 5.0)
        little = 1e-3 * (1 - share)
        dim = self._mean.shape[0]
        return share * self.covariance() + (little * mx.eye(dim) if self.dense else little)


class Warmup:
    """What warm-up knows: the step size and the metric, and at which transitions it learns a new metric.

    Until the first metric each chain has a step size of its own, for a chain that starts far out may need one that is
    a thousand times smaller to come in at all. From then on they share one.
    """

    def __init__(self, transitions: int, chains: int, dim: int, target_accept: float, dense: bool):
        import numpy as np

        self._np = np
        self.metric: Metric = identity_metric(dim, dense)
        self.dual = DualAveraging(np.ones(chains), target_accept)
        self.first, self.ends = windows(transitions)
        self._dim, self._dense, self._done = dim, dense, 0
        self.draws = Welford(dim, dense)

    @property
    def step_size(self) -> Any:
        return self.dual.step_size

    def find_step_size(self, accept_at: Callable[[Any], Any], begin: Any = None) -> None:
        """Begin dual averaging anew; ``accept_at`` is the acceptance ``[chains]`` of one step of given sizes."""
        begin = self._np.array(self.step_size if begin is None else begin, dtype=float)
        self.dual.restart(first_step_size(lambda e: self._shared(accept_at(e)), begin, self.dual.target))

    def update(self, accept: Any, positions: mx.array) -> bool:
        """After one transition of all chains; True when the metric is new, and a first step size is to be found."""
        self.dual.update(self._shared(accept))
        if self.keeps:
            self.draws.add(positions)
            mx.eval(self.draws.arrays)
        return self.passed(1)

    @property
    def keeps(self) -> bool:
        """Whether where the next transition ends counts for the next metric."""
        return self.first <= self._done < (self.ends[-1] if self.ends else 0)

    @property
    def ahead(self) -> int:
        """After how many transitions the next metric is made, or draws begin to count for it; 0 if never."""
        return min((end - self._done for end in (self.first, *self.ends) if end > self._done), default=0)

    def passed(self, transitions: int) -> bool:
        """After transitions of which ``dual`` and ``draws`` know already, as many as are ``ahead`` at most."""
        self._done += transitions
        if self._done not in self.ends:
            return False
        self.metric = self._learned()
        self.draws = Welford(self._dim, self._dense)
        self.dual.restart(self._one(self.dual.averaged))
        return True

    def state(self) -> dict:
        parts = {"dual": self.dual.state(), "draws": self.draws.state()}
        return {"done": self._done, "metric": list(self.metric), **parts}

    def restore(self, saved: dict) -> None:
        self._done, self.metric = saved["done"], Metric(*saved["metric"])
        self.dual.restore(saved["dual"])
        self.draws.restore(saved["draws"])

    @property
    def spread(self) -> Any:
        """The standard deviations of the coordinates, ``[dim]``; 0 before they are known."""
        if self._done < (self.ends[0] if self.ends else math.inf):
            return self._np.zeros(self._dim)
        variances = self._np.array(self.metric.inverse_mass, dtype=float)
        return self._np.sqrt(self._np.diag(variances) if self._dense else variances.reshape(-1))

    def finish(self) -> Any:
        """The step size to sample with, ``[1]``."""
        return self._one(self.dual.averaged)

    def _shared(self, accept: Any) -> Any:
        """The acceptance of each chain, or the mean of all where they share a step size."""
        return accept if len(self.step_size) > 1 else self._np.nan_to_num(accept).mean(keepdims=True)

    def _one(self, step_sizes: Any) -> Any:
        """The median of their logarithms; ``numpy.median`` is right too, and imports for 50 ms."""
        logs, middle = self._np.sort(self._np.log(step_sizes)), len(step_sizes) // 2
        return self._np.exp(logs[[-1 - middle, middle]].mean(keepdims=True))

    def _learned(self) -> Metric:
        np = self._np
        found = np.array(self.draws.regularised(), dtype=np.float64)
        if not np.all(np.isfinite(found)):
            return self.metric
        return metric((found + found.T) / 2 if self._dense else found, self._dim)


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


def first_step_size(accept_at: Callable[[Any], Any], step_size: Any, target: float) -> Any:
    """Doubled or halved until the acceptance of one step crosses the target (Hoffman and Gelman 2014, algorithm 4).

    Of the two step sizes about the target it is the smaller one. ``step_size`` is a numpy array.
    """
    import numpy as np

    larger = accept_at(step_size) > target
    looking = np.ones_like(larger)
    while looking.any():
        following = np.where(looking, np.where(larger, 2 * step_size, step_size / 2), step_size)
        crossed = (accept_at(following) > target) != larger
        step_size = np.where(looking & ~(crossed & larger), following, step_size)
        looking &= ~crossed & (step_size > _SMALLEST) & (step_size < _LARGEST)
    return np.clip(step_size, _SMALLEST, _LARGEST)
