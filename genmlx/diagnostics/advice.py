"""What is wrong with a run, by how much, and what to do about it: one line for each kind of trouble.

The limits are those of Vehtari et al. (2021) for R-hat and effective sizes, and of Betancourt (2016) for BFMI.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .convergence import bfmi

if TYPE_CHECKING:
    from .summary import Row

LARGEST_RHAT, ESS_OF_A_CHAIN, SMALLEST_BFMI, FEWEST_DRAWS = 1.01, 100, 0.3, 100
STILL = 0.01  # a chain that does not change and accepts less than this is stuck; one that accepts more is certain
NAMED = 5  # rows or chains that a line names


def about_run(stats: Mapping[str, np.ndarray], draws: np.ndarray) -> list[str]:
    """Of what a sampler reports of each draw, `[chains, draws]`, and of all draws `[chains, draws, elements]`.

    `diverging`, `reached_max_depth`, `energy` and `accept` are looked at where there are such. BFMI speaks of
    Hamiltonian trajectories, and so of an `energy` that comes with `diverging` only.
    """
    chains, count = draws.shape[:2]
    lines = []
    if diverged := _number(stats, "diverging"):
        lines.append(f"{diverged:,} of {chains * count:,} draws diverged: {_after_divergences(stats)}")
    if cut := _number(stats, "reached_max_depth"):
        lines.append(
            f"{cut:,} of {chains * count:,} trajectories were cut off at the largest tree depth: "
            "raise max_depth, or use dense=True or rescale if choices are correlated or of different scales"
        )
    if "diverging" in stats and "energy" in stats:
        shares = bfmi(stats["energy"])
        if (low := np.flatnonzero(shares < SMALLEST_BFMI)).size:
            lines.append(
                f"bfmi < {SMALLEST_BFMI} in {_chains(low)} ({shares[low].min():.2f}): the tails are missed; "
                "reparameterise choices that set the scale of others (non-centred), or that have heavy tails"
            )
    if (stuck := _stuck(stats, draws)).size:
        lines.append(f"{_chains(stuck)} never moved: propose smaller steps, or take a longer warmup")
    if count < FEWEST_DRAWS:
        lines.append(f"{count} draws in each chain: too few to judge them by; take at least {FEWEST_DRAWS}")
    return lines


def about_rows(rows: Sequence[Row], chains: int) -> list[str]:
    """Of the rows of a table. A line names the worst first; a row with a poor bulk is not listed for its tail."""
    limit = ESS_OF_A_CHAIN * chains
    broken = [row for row in rows if math.isnan(row.mean)]
    known = [row for row in rows if not (row.constant or math.isnan(row.mean))]
    rare = [row for row in known if math.isnan(row.ess_bulk + row.ess_tail)]
    still = [row for row in known if row.rhat == math.inf]
    moving = [row for row in known if row.rhat != math.inf]
    apart = sorted((row for row in moving if row.rhat > LARGEST_RHAT), key=lambda row: -row.rhat)
    bulk = sorted((row for row in moving if row.ess_bulk < limit), key=lambda row: row.ess_bulk)
    tail = sorted((row for row in moving if row.ess_tail < limit <= row.ess_bulk), key=lambda row: row.ess_tail)
    lines = []
    if broken:
        lines.append(f"nan or infinity in {_names(broken)}: look for what overflows, or for a bound that is left")
    if rare:
        lines.append(f"too few draws have {_names(rare)} to judge them by: take more")
    if still:
        lines.append(f"no chain moved {_names(still)}: put it in the selection, or propose smaller steps")
    if apart:
        shown = _names(apart, lambda row: number_of_rhat(row.rhat))
        lines.append(f"rhat > {LARGEST_RHAT}: {shown}: the chains disagree; run longer, warmup too, or reparameterise")
    if bulk:
        shown = _names(bulk, lambda row: number_of_ess(row.ess_bulk))
        lines.append(f"bulk ess < {limit:,}: {shown}: means are rough; {_more(limit, bulk[0].ess_bulk)}")
    if tail:
        shown = _names(tail, lambda row: number_of_ess(row.ess_tail))
        lines.append(f"tail ess < {limit:,}: {shown}: q5 and q95 are rough; {_more(limit, tail[0].ess_tail)}")
    return lines


def listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def number_of_ess(value: float) -> str:
    return "nan" if math.isnan(value) else f"{math.floor(value):,}"


def number_of_rhat(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.3g}"


def _names(rows: Sequence[Row], number: Callable[[Row], str] | None = None) -> str:
    return listed([row.name if number is None else f"{row.name} ({number(row)})" for row in rows])


def _chains(which: np.ndarray) -> str:
    return ("chain " if which.size == 1 else "chains ") + listed([str(i) for i in which])


def _number(stats: Mapping[str, np.ndarray], name: str) -> int:
    """Of the draws in which it was so, in any of the transitions that were thinned to one."""
    return int(np.count_nonzero(stats[name] > 0)) if name in stats else 0


def _after_divergences(stats: Mapping[str, np.ndarray]) -> str:
    accept = np.nan_to_num(stats["accept"]).mean() if "accept" in stats else 0.0
    smaller = [f"raise target_accept to {target}" for target in (0.95, 0.99) if accept < target - 0.03][:1]
    return ", or ".join([*smaller, "reparameterise (non-centred)"])


def _stuck(stats: Mapping[str, np.ndarray], draws: np.ndarray) -> np.ndarray:
    """Chains in which nothing changed and no move was accepted."""
    if "accept" not in stats:
        return np.array([], dtype=int)
    refused = np.nan_to_num(stats["accept"], nan=1.0).mean(axis=1) < STILL
    return np.flatnonzero((draws == draws[:, :1]).all(axis=(1, 2)) & refused)


def _more(wanted: float, size: float) -> str:
    if 10 * size < wanted:
        return "reparameterise, or take another sampler or proposal"
    return f"take {math.ceil(wanted / size)} times as many draws"
