"""The course of a run of gradient samplers: a warm-up that learns, draws, and what is shown and kept on the way.

How the chains move is left to a subclass: recorded MLX graphs (``gradient_chains.Walk``), or machine code
(``genmlx.native.chains.NativeWalk``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import mlx.core as mx

from genmlx import random
from genmlx.inference.leapfrog import Metric
from genmlx.inference.loop import Loop
from genmlx.inference.record import Record
from genmlx.inference.warmup import Warmup

Native = bool | Literal["float32", "float64"] | None
"""Whether chains are to be machine code, by default where that can be; and in which precision, if that is asked for."""


class Tuning(NamedTuple):
    """What warm-up finds: ``step_size [n, 1]`` and the metric."""

    step_size: mx.array
    metric: Metric


class Adaptive:
    """``n`` chains on R^dim; ``names`` are those of their statistics, of which one is ``accept``."""

    names: list[str]
    execution: str
    joint: Any = None
    """Where it is quicker than the density's own: its log joint density of vectors ``[m, dim]``."""

    def __init__(self, n: int, dim: int, dense: bool):
        self.n, self.dim, self.dense = n, dim, dense
        self.watched: Callable[[Any], dict] = lambda positions: {}  # what to show of positions [chains, draws, dim]
        self.diverged = 0

    # what chains do

    @property
    def positions(self) -> Any:
        """Where they are, a numpy array ``[n, dim]``."""
        raise NotImplementedError

    def begin(self, streams: random.Streams) -> None:
        """Make ready for a run with these streams."""
        raise NotImplementedError

    def first_step(self) -> Any:
        """The acceptance ``[n]`` of a first step from where they are, where they stay."""
        raise NotImplementedError

    def warm(self, start: int, stop: int) -> Any:
        """Transitions of a warm-up, which teach ``learned``; the statistics ``[n, names]`` of the last."""
        raise NotImplementedError

    def end_warmup(self) -> None:
        """Make ready to sample, with the step size and metric that are set."""
        raise NotImplementedError

    def sample(self, record: Record, stop: int) -> None:
        """Go on until every chain has ended so many transitions, and put them into the record."""
        raise NotImplementedError

    def state_of_chains(self) -> dict:
        """What ``restore_chains`` needs, in a form that a checkpoint holds."""
        raise NotImplementedError

    def restore_chains(self, saved: dict) -> None:
        raise NotImplementedError

    # a run

    def tune(self, step_size: Any, metric: Metric) -> None:
        """Set the step size, one number or one for each chain, and the metric."""
        sizes = mx.array(step_size, dtype=mx.float32).reshape(-1, 1)
        self.tuning = Tuning(mx.contiguous(mx.broadcast_to(sizes, (self.n, 1))), metric)
        self.step_size: Any = mx.min(sizes).item()

    def run(
        self,
        loop: Loop,
        streams: random.Streams,
        *,
        draws: int,
        warmup: int,
        thin: int = 1,
        target_accept: float = 0.8,
        step_size: float | None = None,
    ) -> tuple[Any, dict[str, mx.array]]:
        """Positions ``[chains, draws, dim]`` as a numpy array, and the statistics ``[chains, draws]``."""
        self.learned = Warmup(warmup, self.n, self.dim, target_accept, self.dense)
        record = Record(self, draws, thin)
        self.begin(streams)
        at = loop.resume(lambda at: self._restore(at.state, record))
        if at.phase == "warmup":
            self._warm_up(loop, warmup, step_size, at.done, lambda: self._state(record))
            self.end_warmup()
            self.diverged = 0

        def sample(start: int, stop: int) -> Callable:
            self.sample(record, stop)
            return record.shown

        done = at.done_in("sampling")
        loop.run("sampling", draws * thin, sample, least=thin, done=done, state=lambda: self._state(record))
        return record.finish()

    def accept_at(self, step_size: Any) -> Any:
        """The acceptance ``[n]`` of a first step of that size."""
        self.tune(step_size, self.learned.metric)
        return self.first_step()

    def _warm_up(self, loop: Loop, transitions: int, step_size: float | None, done: int, state: Callable) -> None:
        learned = self.learned
        if transitions == 0 and step_size is not None:
            self.tune(step_size, self.tuning.metric)
            return

        def block(start: int, stop: int) -> Callable:
            stats = self.warm(start, stop)
            return lambda: self._shown_early(stats)

        if done == 0:
            learned.find_step_size(self.accept_at, None if step_size is None else [step_size] * self.n)
        loop.run("warmup", transitions, block, least=0, done=done, state=state)
        self.tune(learned.finish(), learned.metric)

    # what is kept, and shown

    def _state(self, record: Record) -> dict:
        """What ``_restore`` needs to go on from between two blocks, of warm-up or of sampling."""
        return {
            "learned": self.learned.state(),
            "tuning": [self.tuning.step_size, *self.tuning.metric],
            "record": record.state(),
            "diverged": self.diverged,
            **self.state_of_chains(),
        }

    def _restore(self, saved: dict, record: Record) -> None:
        self.learned.restore(saved["learned"])
        step_size, *metric = saved["tuning"]
        self.tune(step_size, Metric(*metric))
        self.diverged = saved["diverged"]
        self.restore_chains(saved)
        record.restore(saved["record"])

    def shown(self, means: dict, draws: int = 0, rhat: float = math.nan) -> dict:
        """What a progress callback is told."""
        found = {**means, "step_size": self.step_size, "draws": draws, "rhat": rhat}
        return found | ({"divergences": self.diverged} if "diverging" in self.names else {})

    def _shown_early(self, stats: Any) -> dict:
        """What it is told in warm-up, which keeps no draws: of each number, where the chains are."""
        each = {name: stats[:, i].astype(float) for i, name in enumerate(self.names)}
        place = self.positions[:, None]
        return {
            **self.shown({name: float(values.mean()) for name, values in each.items()}),
            "chains": lambda: {name: values.tolist() for name, values in each.items()},
            "watch": lambda: self.watched(place),
        }
