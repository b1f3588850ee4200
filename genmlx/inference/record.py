"""What gradient samplers drew: chains end their transitions at different steps, and each draw has its place."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.inference.draws import spread
from genmlx.inference.live_rhat import WATCHED, LiveRhat

_AT_ONCE = 16
"""Steps of one evaluation at most."""
_RECENT, _SHOWN = 20, 500
"""Draws of each chain whose statistics are shown during a run, and whose values are."""
_TYPES = {"diverging": mx.bool_, "reached_max_depth": mx.bool_, "n_leapfrog": mx.int32, "tree_depth": mx.int32}


class Record:
    """The draws of chains that end their transitions at different steps."""

    def __init__(self, walk: Any, draws: int, thin: int):
        import numpy as np

        self.np, self.walk, self.draws, self.thin = np, walk, draws, thin
        self.ended = np.zeros(walk.n, dtype=int)
        self.steps = 0
        self.positions = np.zeros((walk.n, draws, walk.dim), dtype=np.float32)
        self.stats = np.zeros((walk.n, draws, len(walk.names)), dtype=np.float32)
        self.latest = np.zeros((0, len(walk.names)), dtype=np.float32)
        self.rhat = LiveRhat()

    @property
    def transitions(self) -> int:
        """That every chain has ended."""
        return int(self.ended.min())

    def steps_for(self, transitions: int) -> int:
        each = (
            self.steps / float(self.ended.mean())
            if self.ended.any()
            else self.walk.sampler.look_after(self.walk.step_size)
        )
        return max(1, min(_AT_ONCE, math.ceil(transitions * each)))

    def add(self, rows: list[mx.array]) -> None:
        np, d = self.np, self.walk.dim
        table = np.array(mx.stack(rows))
        done = table[:, :, 0] > 0
        which = self.ended + np.cumsum(done, axis=0)  # this is the which-th transition of its chain, from 1
        kept = done & (which % self.thin == 0) & (which <= self.draws * self.thin)
        step, chain = np.nonzero(kept)
        place = which[step, chain] // self.thin - 1
        self.positions[chain, place] = table[step, chain, 1 : d + 1]
        self.stats[chain, place] = table[step, chain, 2 * d + 2 :]
        self.steps += len(rows)
        self.ended = which[-1]
        self.latest = table[done][:, 2 * d + 2 :]
        self.walk.count_divergences(table[done & (which <= self.draws * self.thin)])

    @property
    def complete(self) -> int:
        """The draws that every chain has."""
        return min(self.draws, self.transitions // self.thin)

    def shown(self) -> dict:
        count, names = self.complete, self.walk.names
        means = dict(zip(names, self.latest.mean(axis=0).tolist(), strict=True)) if len(self.latest) else {}
        looked_at = spread(range(self.walk.dim), WATCHED)
        found = self.walk.shown(means, count, self.rhat(count, lambda: self.positions[:, :count, looked_at]))
        return {**found, "chains": lambda: self.of_chains(count), "watch": lambda: self.watched(count)}

    def watched(self, count: int) -> dict[str, Any]:
        """Some numbers of the draws by name, at even distances where there are many."""
        return self.walk.watched(self.positions[:, :count][:, :: max(1, count // _SHOWN)]) if count else {}

    def of_chains(self, count: int) -> dict[str, list]:
        """The mean of each statistic over the last draws of each chain, and how often it has diverged."""
        if not count:
            return {}
        means = self.stats[:, max(0, count - _RECENT) : count].mean(axis=1)
        found = {name: means[:, i].tolist() for i, name in enumerate(self.walk.names)}
        if "diverging" in found:
            diverging = self.stats[:, :count, self.walk.names.index("diverging")]
            found["divergences"] = diverging.sum(axis=1).astype(int).tolist()
        return found

    def state(self) -> dict:
        most = min(self.draws, int(self.ended.max()) // self.thin)
        drawn = {"positions": self.positions[:, :most], "stats": self.stats[:, :most]}
        return {"ended": self.ended.tolist(), "steps": self.steps, "latest": self.latest, **drawn}

    def restore(self, saved: dict) -> None:
        self.steps, self.ended = saved["steps"], self.np.array(saved["ended"])
        self.latest = self.np.array(saved["latest"])
        for mine, theirs in ((self.positions, saved["positions"]), (self.stats, saved["stats"])):
            mine[:, : theirs.shape[1]] = self.np.array(theirs)

    def finish(self) -> tuple[Any, dict[str, mx.array]]:
        count = self.complete
        stats = {}
        for i, name in enumerate(self.walk.names):
            # MLX 0.32.4 makes of a column with gaps an array that holds the whole table (no upstream issue found).
            column = mx.array(self.np.ascontiguousarray(self.stats[:, :count, i]))
            stats[name] = column.astype(_TYPES.get(name, mx.float32))
        stats["step_size"] = mx.full((self.walk.n, count), self.walk.step_size)
        mx.eval(stats)
        return self.positions[:, :count], stats
