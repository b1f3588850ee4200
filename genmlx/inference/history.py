"""What a particle filter did, step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from genmlx.errors import UsageError

NOT_STORED = ()
"""The ancestors of a step after which particles were resampled, in a filter that stores no paths."""


def require_paths(history: Any) -> None:
    if not getattr(history, "stores_paths", True):
        raise UsageError("the filter stores no paths, only its last step", hint="store_paths=True, as by default")


class FilterStep(NamedTuple):
    """One step: the effective size of its weights, what it added to the log evidence, and what followed.

    ``ancestors`` has, for each particle after the step, the index of the one before that it was resampled from; None
    where none were. ``accept`` is the mean acceptance of rejuvenation, NaN without. ``pairs`` is by what factor two
    particles were less likely to be of different ancestors after resampling than two draws by the weights before it
    (in the first step, of which all are independent, than two draws with replacement).
    """

    ess: float
    log_ml_increment: float
    log_ml: float
    ancestors: Any = None
    accept: float = math.nan
    recorded: Any = None
    pairs: float = 1.0

    @property
    def resampled(self) -> bool:
        return self.ancestors is not None


class History:
    """The steps of a filter as columns: ``ess``, ``log_ml_increment``, ``log_ml``, ``resampled``, ``accept``, [steps].

    ``history[t]`` is one step, ``ancestors`` a list of indices ``[n]`` or None, ``recorded`` what ``record`` returned.
    Without ``stores_paths`` the indices are not kept, but for ``first``: of which particles of the first step those of
    now are, ``[n]``, or None while that is each its own.
    """

    def __init__(self, steps: tuple[FilterStep, ...] = (), stores_paths: bool = True, first: Any = None):
        self.steps, self.stores_paths, self.first = steps, stores_paths, first

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[FilterStep]:
        return iter(self.steps)

    def __getitem__(self, t: int) -> FilterStep:
        return self.steps[t]

    def __getattr__(self, name: str) -> Any:
        if name in ("ancestors", "recorded"):
            return [getattr(step, name) for step in self.steps]
        if name in ("ess", "log_ml_increment", "log_ml", "resampled", "accept"):
            import numpy as np

            return np.array([getattr(step, name) for step in self.steps])
        raise AttributeError(name)

    def added(self, step: FilterStep) -> History:
        return type(self)((*self.steps, step), self.stores_paths, self.first)

    def amended(self, **values: Any) -> History:
        """With the last step changed."""
        return type(self)((*self.steps[:-1], self.steps[-1]._replace(**values)), self.stores_paths, self.first)

    def taken(self, index: Any, pairs: float) -> History:
        """With the particles at these indices taken after the last step, by which pairs were lost by a factor."""
        last = self.steps[-1]
        ancestors = NOT_STORED
        if self.stores_paths:
            ancestors = index if last.ancestors is None else last.ancestors[index]
        made = self.amended(ancestors=ancestors, pairs=last.pairs * pairs)
        made.first = index if self.first is None else self.first[index]
        return made

    def lineage(self, particle: int) -> list[int]:
        """For each step, which of its particles, as they were weighted then, became this one of now."""
        require_paths(self)
        found = []
        for step in reversed(self.steps):
            if step.ancestors is not None:
                particle = int(step.ancestors[particle])
            found.append(particle)
        return found[::-1]

    def origins(self, n: int) -> list[Any]:
        """For each step, the indices ``[n]`` of its particles that became those of now: ``lineage`` of all ``n``.

        Without paths, for the first step alone.
        """
        import numpy as np

        if not self.stores_paths:
            return [np.arange(n) if self.first is None else self.first]
        found, index = [], np.arange(n)
        for step in reversed(self.steps):
            if step.ancestors is not None:
                index = np.asarray(step.ancestors)[index]
            found.append(index)
        return found[::-1]

    def __repr__(self) -> str:
        resampled = sum(step.resampled for step in self.steps)
        return f"<History of {len(self)} steps, {resampled} of them resampled>"
