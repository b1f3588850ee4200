"""The loop of every algorithm: steps in blocks of about 100 ms, with progress, Ctrl-C and timing between them.

``mx.eval`` cannot be interrupted, and a graph that is never evaluated only grows; so each block is a bounded graph
and one evaluation. Which steps share a block never changes the result: keys belong to steps.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from genmlx.errors import GenError

_TARGET, _SLOWEST = 0.1, 0.15


class Progress(NamedTuple):
    """What a ``progress`` callback is given after each block: ``done`` of ``total`` steps of this phase."""

    algorithm: str
    phase: str
    done: int
    total: int
    seconds: float
    info: dict[str, Any]


class InferenceInterrupted(GenError, KeyboardInterrupt):
    """Ctrl-C during inference that is scripted (``GENMLX_CI=1``); ``result`` holds what was drawn."""

    result: Any = None


class Loop:
    """Runs steps in blocks; ``interrupted`` says whether Ctrl-C ended it early.

    Within the context the first Ctrl-C stops after the block at hand, and a second raises at once.
    """

    def __init__(self, algorithm: str, progress: Callable[[Progress], Any] | None = None):
        self.algorithm, self.progress = algorithm, progress
        self.interrupted = False
        self.timing: dict[str, float] = {"total": 0.0, "display": 0.0}

    def __enter__(self) -> Loop:
        self._start = time.perf_counter()
        self._old = None
        if threading.current_thread() is threading.main_thread():
            self._old = signal.getsignal(signal.SIGINT)
            if callable(self._old):
                signal.signal(signal.SIGINT, self._on_interrupt)
            else:
                self._old = None
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)
        self.timing["total"] = time.perf_counter() - self._start

    def _on_interrupt(self, number: int, frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def run(
        self,
        phase: str,
        total: int,
        block: Callable[[int, int], dict[str, Any] | None],
        least: int = 1,
        done: int = 0,
    ) -> int:
        """Call ``block(start, stop)`` until ``total`` steps are done, or Ctrl-C and ``least``; the steps done.

        A run that is resumed has ``done`` some of them already.

        ``block`` evaluates what it computed, and may return what the progress callback shall show.
        """
        size, began = 1, time.perf_counter()
        while done < total and not (self.interrupted and done >= least):
            stop = min(done + size, total)
            start = time.perf_counter()
            info = block(done, stop)
            spent = time.perf_counter() - start
            done = stop
            if spent < _TARGET / 2:
                size *= 2
            elif spent > _SLOWEST:
                size = max(1, int(size * _TARGET / spent))
            if self.progress is not None:
                shown = time.perf_counter()
                self.progress(Progress(self.algorithm, phase, done, total, shown - self._start, info or {}))
                self.timing["display"] += time.perf_counter() - shown
        self.timing[phase] = time.perf_counter() - began
        return done

    @property
    def status(self) -> str:
        return "interrupted" if self.interrupted else "complete"

    def deliver(self, result: Any) -> Any:
        """The result; where nobody watches, an interrupted one raises with the result in the error."""
        if self.interrupted and os.environ.get("GENMLX_CI") == "1":
            error = InferenceInterrupted(f"{self.algorithm} was interrupted")
            error.result = result
            raise error
        return result
