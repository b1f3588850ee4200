"""What is wrong with a particle filter, and what to type next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from genmlx.diagnostics import psis
from genmlx.diagnostics.advice import ESS_OF_A_CHAIN
from workbench.diagnosis import _LARGEST_K, Diagnosis, _moments, _rounded, _typed
from workbench.filters import FEW, LOW, Facts, addresses, counted, facts, spans

_MOST = 1.5  # of the log evidence: a standard error with which PMMH hardly moves (Doucet et al. 2015)


def of_filter(
    pf: Any, places: Sequence[tuple[tuple, tuple]] | None = None, most: int | None = 8, spoken: str = ""
) -> Diagnosis:
    """Of a particle filter: the choices of its last step and of none, or those named; evidence, weights, ancestors."""
    asked = [(a, ()) for a in (addresses(pf) if most is not None else pf.addresses())] if places is None else places
    every = [row for address, index in asked for row in _moments(pf, address, index)]
    rows = every[:most]
    hidden = len(every) - len(rows) + (len(pf.addresses()) - len(asked) if places is None else 0)
    found, last = facts(pf), np.asarray(pf.log_weights).astype(float)
    k = float(psis(last)[1]) if pf.n >= 25 and last.min() < last.max() else math.nan
    lines = [f"... {hidden:,} more rows (--all)"] if hidden else []
    lines += [_evidence(pf, found), _weights(pf, found, k), *_ancestors(pf, found)]
    lines += [f"{pf.status} after {counted(found.steps, found.unit)}"] if pf.status != "complete" else []
    wrong, tries = _judged(pf, found, k, spoken)
    lines += wrong or [f"ok: ess >= {LOW:.0%} everywhere, {counted(found.ancestors[0], 'ancestor')} left"]
    return Diagnosis(("", "mean", "sd"), rows, lines, tries)


def _evidence(pf: Any, found: Facts) -> str:
    value = f"log evidence {float(pf.log_ml):.5g}"
    if pf.algorithm == "csmc":
        return f"{value}, given the retained trace: no estimate of the evidence"
    if math.isnan(found.error):
        return f"{value}, with an error that one ancestor alone does not tell"
    return f"{value}   se {found.error:.2g}, from the ancestors in this run"


def _weights(pf: Any, found: Facts, k: float) -> str:
    ess = np.asarray(pf.history.ess, dtype=float)
    tail = "" if math.isnan(k) else f"   k-hat {k:.2f}"
    least = f"least {ess[found.least]:,.1f} at {found.unit} {found.least}"
    return f"ess {float(pf.ess):,.1f} of {pf.n:,}   {least}   resampled at {found.resampled:,} of {found.steps:,}{tail}"


def _ancestors(pf: Any, found: Facts) -> list[str]:
    middle = found.steps // 2
    at = dict.fromkeys([0, middle] if found.steps > 2 else [0])
    counts = ", ".join(f"{found.ancestors[t]:,} of {found.unit} {t}" for t in at if t < len(found.ancestors))
    moved = pf.history.accept[~np.isnan(pf.history.accept)]
    accept = [f"moves accepted {moved.mean():.2f}, least {moved.min():.2f}"] if len(moved) else []
    return [f"ancestors left: {counts}", *accept]


def _judged(pf: Any, found: Facts, k: float, spoken: str) -> tuple[list[str], list[str]]:
    """What is wrong, and what to try."""
    wrong, tries = [], []
    late = [t for t, count in enumerate(found.ancestors) if count < FEW]
    needs_more = pf.n
    if found.low:
        wrong.append(f"ess < {LOW:.0%} at {counted(len(found.low), found.unit)}: {spans(found.low)}")
        tries.append("smaller steps of temperature (--threshold 0.9)" if found.static else _PROPOSAL)
    if not math.isnan(k) and k > _LARGEST_K:
        wrong.append(f"k-hat > {_LARGEST_K}: the last weights are not to be trusted")
        tries += [] if found.static else [_PROPOSAL]
    if late and not found.static:
        wrong.append(f"fewer than {FEW} ancestors up to step {late[-1]}: these steps are known from few paths")
        if pf.n * FEW / found.ancestors[0] <= 100 * pf.n:
            needs_more = max(needs_more, pf.n * FEW / found.ancestors[0])
        tries += ["--rejuvenate, for choices that belong to no step", "%infer pgibbs, for whole paths"]
        tries.append(_typed("%plot", spoken, "--kind genealogy"))
    size = float(pf.history.ess[found.least])
    if size < ESS_OF_A_CHAIN:
        wrong += [] if wrong else [f"ess < {ESS_OF_A_CHAIN} at {found.unit} {found.least}: means are rough"]
        needs_more = max(needs_more, min(pf.n * ESS_OF_A_CHAIN / size, 100 * pf.n))
    if found.error > _MOST:
        wrong.append(f"the error of the log evidence is above {_MOST}")
        tries += [] if found.static else [_PROPOSAL]
    if wrong:
        tries.append(_typed("%plot", spoken, "--kind ess"))
    more = [f"--particles {_rounded(needs_more)}"] if needs_more > pf.n else []
    return wrong, list(dict.fromkeys([*more, *tries]))


_PROPOSAL = "a proposal that looks at the observation (--proposal)"
