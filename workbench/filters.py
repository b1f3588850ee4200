"""What a particle filter did and what is left of its particles, for reports, diagnoses and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

LOW = 0.1  # of the particles: an effective size below it
FEW = 10  # ancestors, below which what is known of a step is known from single paths


def is_filter(result: Any) -> bool:
    """Whether a result has a history of weighted steps: those of ``smc``, ``csmc``, ``smcp3``, ``tempered_smc``."""
    return hasattr(result, "log_weights") and len(getattr(result, "history", ())) > 0


class Facts(NamedTuple):
    """Of ``steps`` steps: which were resampled, at which the effective size was low, and how many ancestors are left.

    ``ancestors`` has for each step (for the first alone, where no paths are stored) how many of its particles the last
    ones come from; ``error`` is the standard error
    of the log evidence, NaN where it is not known. A ``static`` model has temperatures for steps.
    """

    steps: int
    resampled: int
    low: list[int]
    least: int
    ancestors: list[int]
    error: float
    static: bool

    @property
    def unit(self) -> str:
        return "temperature" if self.static else "step"


def facts(pf: Any) -> Facts:
    import numpy as np

    history = pf.history
    ess = np.asarray(history.ess, dtype=float)
    alive = np.asarray(pf.log_weights) > -np.inf
    ancestors = [len(np.unique(index[alive])) for index in history.origins(pf.n)]
    return Facts(
        len(history),
        int(np.sum(history.resampled)),
        np.flatnonzero(ess < LOW * pf.n).tolist(),
        int(np.argmin(ess)),
        ancestors,
        float("nan") if pf.algorithm == "csmc" else pf.log_ml_error,
        is_static(history),
    )


def troubles(pf: Any, found: Facts) -> list[str]:
    """What is wrong with a filter, the worst first."""
    lines = []
    if found.low:
        where = f"{len(found.low):,} of {counted(found.steps, found.unit)}"
        lines.append(f"ess below {LOW:.0%} at {where}: {spans(found.low)}")
    late = [t for t, count in enumerate(found.ancestors) if count < FEW]
    if late and not found.static:
        left = counted(found.ancestors[0], "ancestor")
        lines.append(f"{left} at step 0, fewer than {FEW} up to step {late[-1]}: these steps are known from few paths")
    return lines


def counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def size_of(ess: float) -> str:
    """An effective size: whole from 100 on."""
    return f"{ess:,.0f}" if ess >= 100 else f"{ess:.3g}"


def standard_error(error: float) -> str:
    """``" (se 0.12)"``, or nothing where it is not known."""
    return "" if error != error else " (se 0)" if error < 1e-6 else f" (se {error:.2g})"


def is_static(history: Any) -> bool:
    """Whether its steps are temperatures."""
    return hasattr(history[0], "temperature")


def addresses(pf: Any) -> list[tuple]:
    """The latent choices of no step, and those of the last one."""
    if is_static(pf.history):
        return pf.addresses()
    last = len(pf.history) - 1
    found = [a for a in pf.addresses() if _step(a) in (None, last)]
    return found if any(_step(a) == last for a in found) else pf.addresses()


def _step(address: tuple) -> int | None:
    return next((part for part in address if isinstance(part, int)), None)


def spans(steps: Sequence[int]) -> str:
    """``[3, 4, 5, 9]`` as ``3-5, 9``.

    >>> spans([3, 4, 5, 9])
    '3-5, 9'
    """
    parts: list[list[int]] = []
    for t in steps:
        if parts and t == parts[-1][1] + 1:
            parts[-1][1] = t
        else:
            parts.append([t, t])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in parts]
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
