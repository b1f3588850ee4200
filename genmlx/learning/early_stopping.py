"""Early stopping: looking at an objective now and then, and keeping the parameters that were best."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.learning.ascent import Ascent
from genmlx.learning.batches import Batches
from genmlx.params import overridden


class Checks:
    """The best parameters so far, and for how many checks there have been no better ones."""

    def __init__(self, ascent: Ascent, validation: Any, patience: int | None, every: int, key: Any):
        self.ascent, self.patience, self.every, self.key = ascent, patience, every, key
        self.wanted = patience is not None or validation is not None
        self.rows = None if validation is None else Batches(validation, None, None).data
        self.best: list | None = None
        self.best_value, self.since, self.values = -math.inf, 0, []

    def due(self, done: int) -> bool:
        return self.wanted and done % self.every == 0

    def look(self) -> bool:
        """Take note of where training is; whether patience has run out."""
        ascent = self.ascent
        ascent.settle()
        value: Any
        if self.rows is None:
            value = mx.mean(ascent.last(self.every)[:, 0]).item()
        else:
            with overridden(dict(zip(ascent.reads, ascent.values, strict=True))):
                value = ascent.objective(self.rows, 1.0, self.key)[0].item()
        self.values.append(value)
        self.since = 0 if value > self.best_value else self.since + 1
        if value > self.best_value and self.patience is not None:
            self.best, self.best_value = ascent.values, value
        return self.spent

    @property
    def spent(self) -> bool:
        return self.patience is not None and self.since >= self.patience

    @property
    def seen(self) -> mx.array:
        return mx.array(self.values if self.rows is not None else [], dtype=mx.float32)

    def kept(self) -> dict:
        return {"best": self.best, "best_value": self.best_value, "since": self.since, "values": self.values}

    def restore(self, kept: dict) -> None:
        self.best, self.best_value = kept["best"], kept["best_value"]
        self.since, self.values = kept["since"], list(kept["values"])
