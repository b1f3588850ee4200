"""What is wrong with the guide of variational inference, and what to type next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from genmlx.diagnostics import psis
from workbench.diagnosis import _LARGEST_K, Diagnosis, _rounded, _typed
from workbench.elements import element_name
from workbench.report import bound_of

_DRAWS = 2000
_OFF = 0.25  # deviations of the posterior between a mean of the guide and the weighted one, to be told
_NARROW = 1.25  # the ratio of the weighted deviation to that of the guide, to be told


class _Row(NamedTuple):
    """One number: mean and deviation of the guide, and as weights correct them."""

    name: str
    mean: float
    sd: float
    weighted: float
    weighted_sd: float

    @property
    def off(self) -> float:
        return abs(self.mean - self.weighted) / self.weighted_sd if self.weighted_sd > 0 else 0.0

    @property
    def ratio(self) -> float:
        return self.weighted_sd / self.sd if self.sd > 0 else 1.0

    @property
    def badness(self) -> float:
        return max(self.off / _OFF, abs(math.log(max(self.ratio, 1e-9))) / math.log(_NARROW))

    def cells(self, sure: bool) -> tuple[str, ...]:
        marks = [f"off by {self.off:.2g} sd"] if self.off > _OFF else []
        marks += [f"sd {self.ratio:.2g} times"] if not 1 / _NARROW < self.ratio < _NARROW else []
        shown = [f"{x:.3g}" for x in (self.mean, self.sd, self.weighted, self.weighted_sd)]
        return (self.name, *shown, f"<- {', '.join(marks)}" if marks and sure else "")


def of_guide(
    fit: Any, places: Sequence[tuple[tuple, tuple]] | None = None, most: int | None = 8, spoken: str = ""
) -> Diagnosis:
    """Of a guide: its means and deviations beside those of its draws weighted for the posterior, the worst first.

    The weights are smoothed (PSIS), and what they say counts where their k-hat is at most 0.7.
    """
    drawn = fit.sample(_DRAWS, key=mx.random.key(0))
    smooth, k = psis(np.asarray(drawn.log_weights).astype(float))
    drawn.log_weights = mx.array(smooth.astype("float32"))
    sure = float(k) <= _LARGEST_K
    asked = [(a, ()) for a in fit.addresses()] if places is None else places
    rows = sorted((row for a, index in asked for row in _rows(fit, drawn, a, index)), key=lambda row: -row.badness)
    shown = rows[:most]
    lines = [f"... {len(rows) - len(shown):,} more rows (--all)"] if len(shown) < len(rows) else []
    lines.append(
        f"{bound_of(fit)}   {drawn.log_ml.item():.6g} by weights   k-hat {fit.khat:.2f}   {len(fit.history):,} steps"
    )
    lines += [f"{fit.status} after {len(fit.history):,} steps"] if fit.status != "complete" else []
    wrong, tries = _judged(fit, [row for row in rows if sure and row.badness > 1], spoken)
    lines += wrong or ["ok: converged, k-hat <= 0.7, and weights move no mean by a quarter of a deviation"]
    head = ("", "mean", "sd", "weighted", "sd", "")
    return Diagnosis(head, [row.cells(sure) for row in shown], lines, tries)


def _rows(fit: Any, drawn: Any, address: tuple, index: tuple) -> list[_Row]:
    columns = [np.asarray(f(address)) for f in (fit.mean, fit.std, drawn.mean, drawn.std)]
    return [
        _Row(element_name(address, i), *(float(column[i]) for column in columns))
        for i in np.ndindex(columns[0].shape)
        if i[: len(index)] == index
    ]


def _judged(fit: Any, bad: list[_Row], spoken: str) -> tuple[list[str], list[str]]:
    """What is wrong, and what to try."""
    wrong, tries = [], []
    if not fit.converged:
        wrong.append("not converged: the objective still rises, or its noise hides whether it does")
        tries += [f"--iterations {_rounded(4 * len(fit.history) or 1)}", _typed("%plot", spoken, "--kind elbo")]
    if fit.log_ml_bound == -math.inf:
        wrong.append("some draws of the guide are impossible: a support that depends on a latent")
    if fit.khat > _LARGEST_K:
        wrong.append(f"k-hat > {_LARGEST_K}: the guide misses a part of the posterior, and weights do not tell where")
    elif bad:
        wrong.append("weights move what the guide says; sample(n) has them")
    if fit.khat > _LARGEST_K or bad:
        tries += ["--family fullrank"] if getattr(fit, "family", "") in ("meanfield", "lowrank") else []
        tries.append("nuts")
    return wrong, tries
