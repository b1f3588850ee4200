"""R-hat while a run goes on: of some numbers of each draw, at a bounded cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

WATCHED = 8
"""How many numbers of a draw are looked at."""
_SHARE = 0.005
"""The most of the time of a run that is spent on it."""


class LiveRhat:
    """The largest R-hat of the draws so far, computed anew only when the time of the run allows it."""

    def __init__(self) -> None:
        self._began, self._spent, self._last = time.perf_counter(), 0.0, 0.0
        self.value = math.nan

    def __call__(self, count: int, draws: Callable[[], Any]) -> float:
        """``draws()`` is ``[chains, count, numbers]``."""
        if count < 4:
            return self.value
        import numpy as np

        from genmlx.diagnostics import rhat

        start = time.perf_counter()
        if self._spent + self._last <= _SHARE * (start - self._began):
            self.value = float(np.fmax.reduce(rhat(draws()), initial=math.nan))
            self._last = time.perf_counter() - start
            self._spent += self._last
        return self.value
