"""L-BFGS for a batch of starting points (Liu and Nocedal 1989), with a line search that knows what float32 can tell.

The points and their history are float64 on the host. For each trial step of all points the function and its gradient
are one batched MLX call, or machine code for those of them that are wanted (``genmlx/native/ascent.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

_MEMORY = 10
_TRIALS = 25
_ARMIJO, _CURVATURE = 1e-4, 0.9
_NOISE = 2e-6  # of the value: what a sum of a few thousand float32 terms may be off by
_STALLED = 8  # steps without progress, after which a point rests


Evaluate = Callable[[Any, Any], tuple[Any, Any]]
"""``f(u [n, dim], wanted [n]) -> (value [n], gradient [n, dim])`` in float64; rows not wanted may hold any numbers."""


def batched(f: Callable[[mx.array], tuple[mx.array, mx.array]]) -> Evaluate:
    """A function of a batch of MLX arrays, evaluated for all points whichever are wanted."""
    import numpy as np

    def evaluate(u: Any, wanted: Any) -> tuple[Any, Any]:
        value, gradient = f(mx.array(u.astype(np.float32)))
        mx.eval(value, gradient)
        return np.array(value, dtype=np.float64), np.array(gradient, dtype=np.float64)

    return evaluate


class Ascent:
    """Climbs ``f`` from ``u`` [n, dim]; ``u``, ``value``, ``gradient`` are the best so far of each point, ``history``
    the values after each step."""

    def __init__(self, f: Evaluate, u: mx.array):
        import numpy as np

        self.np, self.f = np, f
        self.u = np.array(u, dtype=np.float64)
        n = len(self.u)
        self.value, self.gradient = f(self.u, np.ones(n, bool))
        self.pairs: list[tuple[Any, Any, Any]] = []
        self.resting, self.stalled = np.zeros(n, bool), np.zeros(n, int)
        self.history = [self.value]
        self._now = (self.u, self.value, self.gradient)

    @property
    def done(self) -> bool:
        return bool(self.resting.all())

    def step(self) -> None:
        """One step of every point that does not rest."""
        np = self.np
        u, value, gradient = self._now
        slack = _NOISE * (1 + abs(value))
        direction = self._direction(gradient)
        slope = (direction * gradient).sum(-1)
        downhill = slope <= 0
        direction[downhill], slope[downhill] = gradient[downhill], (gradient[downhill] ** 2).sum(-1)
        size = np.ones(len(u))
        if not self.pairs:
            size = 1 / np.maximum(1, np.sqrt(slope))
        pending = ~self.resting
        new, new_value, new_gradient = u.copy(), value.copy(), gradient.copy()
        for _ in range(_TRIALS):
            trial = np.where(pending[:, None], u + size[:, None] * direction, new)
            trial_value, trial_gradient = self.f(trial, pending)
            finite = np.isfinite(trial_value) & np.isfinite(trial_gradient).all(-1)
            risen = trial_value >= value + _ARMIJO * size * slope
            # Near the top the value is noise, and the slope still tells (Hager and Zhang 2005).
            with np.errstate(invalid="ignore"):  # where it is not finite
                slowed = abs((trial_gradient * direction).sum(-1)) <= _CURVATURE * slope
            flat = (trial_value >= value - slack) & slowed
            taken = pending & finite & (risen | flat)
            new[taken], new_value[taken], new_gradient[taken] = trial[taken], trial_value[taken], trial_gradient[taken]
            pending &= ~taken
            if not pending.any():
                break
            size = np.where(pending, size * 0.4, size)
        self._remember(new - u, gradient - new_gradient, pending)
        self._now = (new, new_value, new_gradient)
        self._judge(pending, new_value - value > slack)

    def _judge(self, failed: Any, risen: Any) -> None:
        """Keep what is best, and let points rest that get no further."""
        np = self.np
        u, value, gradient = self._now
        slack = _NOISE * (1 + abs(self.value))
        size, best = abs(gradient).max(-1), abs(self.gradient).max(-1)
        better = (value > self.value + slack) | ((value >= self.value - slack) & (size < best))
        self.u = np.where(better[:, None], u, self.u)
        self.gradient = np.where(better[:, None], gradient, self.gradient)
        self.value = np.where(better, value, self.value)
        progress = better & (risen | (size < 0.5 * best))
        self.stalled = np.where(progress, 0, self.stalled + np.where(failed, _STALLED // 2, 1))
        self.resting |= (self.stalled >= _STALLED) | (size == 0)
        self.history.append(self.value)

    def _direction(self, gradient: Any) -> Any:
        """The inverse Hessian approximated by the last steps, times the gradient."""
        np = self.np
        q = gradient.copy()
        shares = []
        for s, y, rho in reversed(self.pairs):
            a = rho * (s * q).sum(-1)
            q -= a[:, None] * y
            shares.append(a)
        if self.pairs:
            scale = np.ones(len(q))
            for s, y, rho in self.pairs:  # the last pair that a point has
                scale = np.where(rho > 0, (s * y).sum(-1) / np.maximum((y * y).sum(-1), 1e-300), scale)
            q *= scale[:, None]
        for (s, y, rho), a in zip(self.pairs, reversed(shares), strict=True):
            q += (a - rho * (y * q).sum(-1))[:, None] * s
        return q

    def _remember(self, s: Any, y: Any, failed: Any) -> None:
        np = self.np
        product = (s * y).sum(-1)
        kept = product > 1e-10 * np.sqrt((s * s).sum(-1) * (y * y).sum(-1))
        rho = np.where(kept, 1 / np.where(kept, product, 1), 0)
        if failed.any():  # these points start over, along the gradient
            self.pairs = [(a, b, np.where(failed, 0, r)) for a, b, r in self.pairs]
        self.pairs = [*self.pairs, (s, y, rho)][-_MEMORY:]
