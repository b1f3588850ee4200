"""Baselines of REINFORCE: numbers near the cost that do not depend on the draw whose cost they are taken from.

Where b does not depend on z, E[b d log q(z)] = 0, so that (cost - b) d log q has the same mean and less variance.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.errors import ParameterError, UsageError


class Constant:
    """A number that is taken from every cost."""

    leaves_one_out = False

    def __init__(self, number: float = 0.0):
        self.number = number

    def offset(self, combinations: int) -> mx.array:
        """What is known before a step, for the cost of each combination of enumerated values."""
        return mx.full((combinations,), self.number / combinations)

    def of(self, cost: mx.array, offset: mx.array) -> mx.array:
        """What to take from the costs of a step, ``[n, combinations]``."""
        return offset

    def require(self, n: int, what: str) -> None:
        """Raise where so many draws are too few."""

    def add(self, cost: mx.array) -> None:
        """Hear of the mean costs of a step, ``[combinations]``."""

    def kept(self) -> list:
        """What it remembers, for a checkpoint."""
        return []

    def restore(self, kept: list) -> None:
        """Remember that again."""


class LeaveOneOut(Constant):
    """The mean cost of the other draws of the step."""

    leaves_one_out = True

    def of(self, cost: mx.array, offset: mx.array) -> mx.array:
        return (mx.sum(cost, axis=0, keepdims=True) - cost) / (cost.shape[0] - 1)

    def require(self, n: int, what: str) -> None:
        if n < 2:
            raise ParameterError(
                f"the leave-one-out baseline with {what}={n}",
                expected=f"{what}=2 or more",
                hint='baseline="running", or a number',
            )


class RunningMean(Constant):
    """The mean cost of the steps before, each weighing ``decay`` times as much as the one after it; 0 at first.

    >>> baseline = RunningMean(0.5)
    >>> for cost in (4.0, 1.0):
    ...     baseline.add(mx.array([cost]))
    >>> baseline.offset(1).tolist()                     # (4 + 2 * 1) / 3
    [2.0]
    """

    def __init__(self, decay: float = 0.9):
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise ParameterError(f"decay must be at least 0 and below 1, got {decay!r}")
        super().__init__()
        self.decay, self._total, self._weight = decay, mx.zeros((1,)), 0.0

    def offset(self, combinations: int) -> mx.array:
        mean = self._total / self._weight if self._weight else self._total
        return mx.contiguous(mx.broadcast_to(mean, (combinations,)))

    def add(self, cost: mx.array) -> None:
        self._total = self.decay * self._total + (1 - self.decay) * cost
        self._weight = self.decay * self._weight + (1 - self.decay)

    def kept(self) -> list:
        return [self._total, self._weight]

    def restore(self, kept: list) -> None:
        self._total, self._weight = kept


def read_baseline(given: Any) -> Constant:
    """A baseline by its name, one that was made, or a number; None is 0."""
    if isinstance(given, Constant):
        return given
    if given is None or isinstance(given, (int, float)) and not isinstance(given, bool):
        return Constant(given or 0.0)
    if given in ("leave-one-out", "running"):
        return LeaveOneOut() if given == "leave-one-out" else RunningMean()
    raise UsageError(
        f"no baseline {given!r:.60}", expected='"leave-one-out", "running", RunningMean(decay), a number, or None'
    )
