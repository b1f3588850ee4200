"""The loop of every algorithm: steps in blocks of about 100 ms, with progress, Ctrl-C and checkpoints between them.

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
from genmlx.inference.checkpoint import Checkpoint, Place

_TARGET, _SLOWEST = 0.1, 0.15


class Progress(NamedTuple):
    """What a ``progress`` callback is given after each block: ``done`` of ``total`` steps of this phase.

    ``info`` is of the run so far. For Markov chains it has ``draws`` (of each chain), ``rhat`` (the largest of some
    numbers of each draw, computed anew when that takes 0.5% of the time at most; NaN below 4 draws) and the mean of a
    statistic of the last steps, such as ``accept``; where there are such, the ``step_size``, and ``divergences``, which
    counts the steps of this phase that diverged. Two of its values are functions, to be called when they are wanted:
    ``chains()``, the statistics of each chain, and ``watch()``, the draws of some numbers, ``[chains, draws]`` by name.

    Variational inference tells ``elbo``, the median of the objective over the last steps, and ``objective()``, the
    objective of every step so far.

    A callback that returns a word ends the run after this block, with that word as its status. One that has a method
    ``interrupted`` is told by it of the Ctrl-C after which the run ends with the block at hand.
    """

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

    Within the context the first Ctrl-C stops after the block at hand, and a second raises at once. A run that can be
    resumed sets ``file``.
    """

    def __init__(self, algorithm: str, progress: Callable[[Progress], Any] | None = None):
        self.algorithm, self.progress = algorithm, progress
        self.interrupted = False
        self._word = "interrupted"
        self.file: Checkpoint | None = None
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
        told = getattr(self.progress, "interrupted", None)
        if callable(told):
            told()

    def resume(self, restore: Callable[[Place], None]) -> Place:
        """Where the checkpoint left the run, which ``restore`` takes up; or its start."""
        at = None if self.file is None else self.file.load(restore)
        return at or Place("warmup", 0, None)

    def run(
        self,
        phase: str,
        total: int | Callable[[], int],
        block: Callable[[int, int], Any],
        least: int = 1,
        done: int = 0,
        state: Callable[[], Any] | None = None,
    ) -> int:
        """Call ``block(start, stop)`` until ``total`` steps are done, or Ctrl-C and ``least``; the steps done.

        Where ``total`` is found out on the way it is a function, which is asked again after each block.
        A run that is resumed has ``done`` some of them already. ``state()`` is what it needs to be resumed, for a
        checkpoint.

        ``block`` evaluates what it computed, and may return what the progress callback shall show: a dict, or a
        function that makes it.
        """

        def save(now: bool = False) -> None:
            if self.file is not None and state is not None:
                self.file.offer(phase, done, state, now)

        size, began, first, most = 1, time.perf_counter(), done, total if callable(total) else lambda: total
        while done < most() and not (self.interrupted and done >= least):
            stop = min(done + size, most())
            start = time.perf_counter()
            info = block(done, stop)
            spent = time.perf_counter() - start
            done = min(stop, most())
            if spent < _TARGET / 2:
                size *= 2
            elif spent > _SLOWEST:
                size = max(1, int(size * _TARGET / spent))
            save()
            if self.progress is not None:
                shown = time.perf_counter()
                try:
                    told: Any = info() if callable(info) else info or {}
                    word = self.progress(Progress(self.algorithm, phase, done, most(), shown - self._start, told))
                except BaseException:
                    save(now=True)
                    raise
                if isinstance(word, str):
                    self.interrupted, self._word = True, word
                self.timing["display"] += time.perf_counter() - shown
        if done > first:
            save(now=True)
        if self.interrupted:
            self.file = None  # which goes on from here; what follows began before the end of this phase
        self.timing[phase] = time.perf_counter() - began
        return done

    @property
    def status(self) -> str:
        return self._word if self.interrupted else "complete"

    def deliver(self, result: Any) -> Any:
        """The result; where nobody watches, an interrupted one raises with the result in the error.

        A posterior notes which models were redefined while it was made.
        """
        if isinstance(notes := getattr(result, "notes", None), list):
            notes += [
                f"{handle.__name__} changed to {handle.version!r} while running (used {version!r})"
                for handle, version in result.pins.items()
                if handle.version is not version
            ]
        if self.status == "interrupted" and os.environ.get("GENMLX_CI") == "1":
            error = InferenceInterrupted(f"{self.algorithm} was interrupted")
            error.result = result
            raise error
        return result
