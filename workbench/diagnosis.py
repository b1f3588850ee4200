"""What is wrong with a result, the worst first, and what to type next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from genmlx.diagnostics import Row, bfmi, psis
from genmlx.diagnostics.advice import (
    ESS_OF_A_CHAIN,
    FEWEST_DRAWS,
    LARGEST_RHAT,
    SMALLEST_BFMI,
    STILL,
    number_of_ess,
    number_of_rhat,
)
from workbench.elements import element_name, elements

_FEW = 5  # divergences, below which it says nothing where they are
_APART = 0.5  # deviations by which the divergent draws of a number differ in mean from all, to be named
_GAP = 3.0  # deviations of a chain between the means of two, from which on they sit in different places
_LARGEST_K = 0.7  # Vehtari et al. (2024)


class Diagnosis:
    """A table with the worst rows first, lines on the run, and lines on what to try; shows itself as text and HTML."""

    def __init__(self, head: tuple[str, ...], rows: list[tuple[str, ...]], lines: list[str], tries: list[str]):
        self.head, self.rows, self.lines, self.tries = head, rows, lines, tries

    def __str__(self) -> str:
        found = _aligned([self.head, *self.rows]) if self.rows else []
        found += self.lines
        return "\n".join([*found, *_joined("try: ", self.tries)])

    def __repr__(self) -> str:
        return f"<Diagnosis: {len(self.rows)} rows, {len(self.tries)} things to try>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        table = "".join(
            "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"
            for tag, row in [("th", self.head), *(("td", row) for row in self.rows)]
        )
        tries = "".join(f"<li><code>{escape(line)}</code></li>" for line in self.tries)
        lines = "".join(f"<div style='white-space:pre-wrap'>{escape(line)}</div>" for line in self.lines)
        below = f"try:<ul>{tries}</ul>" if tries else ""
        return f"<div>{f'<table>{table}</table>' if self.rows else ''}{lines}{below}</div>"


def of_posterior(
    posterior: Any, names: Sequence[str] | None = None, worst: int | None = 8, spoken: str = ""
) -> Diagnosis:
    """Of a posterior: the rows of its summary, or those of these names; ``worst`` of them at most.

    ``spoken`` is what the user calls it, for the lines that are to be typed.
    """
    summary = posterior.summary()
    rows = [summary[name] for name in (summary if names is None else names)]
    limit = ESS_OF_A_CHAIN * posterior.chains
    rows.sort(key=lambda row: (not math.isnan(row.mean), -_badness(row, limit)))
    shown = rows[:worst]
    lines = [f"... {len(rows) - len(shown):,} more rows (--all)"] if len(shown) < len(rows) else []
    lines += [f"{posterior.status} at {posterior.draws:,} draws"] if posterior.status != "complete" else []
    lines += [*_of_run(posterior), *summary.notes]
    tries = _tries(posterior, rows, limit, spoken)
    if not tries:
        diverging = ", 0 divergences" if "diverging" in posterior.stats else ""
        size = f"{posterior.chains} x {posterior.draws:,} draws"
        lines.append(f"ok: rhat <= {LARGEST_RHAT}, ess >= {limit:,}{diverging}   {size}" if rows else "no rows")
    return Diagnosis(
        ("", "mean", "sd", "rhat", "ess_bulk", "ess_tail", "mcse/sd", ""),
        [_cells(row, limit) for row in shown],
        lines,
        tries,
    )


def of_particles(
    particles: Any, places: Sequence[tuple[tuple, tuple]] | None = None, most: int | None = 8, spoken: str = ""
) -> Diagnosis:
    """Of particles: weighted means and deviations, effective size, Pareto k, evidence.

    ``places`` are addresses, each with an index into the array that is there, which may be its beginning.
    """
    asked = [(a, ()) for a in particles.addresses()] if places is None else places
    every = [row for address, index in asked for row in _moments(particles, address, index)]
    rows = every[:most]
    log_weights = np.asarray(particles.log_weights).astype(float)
    k = float(psis(log_weights)[1])
    size, count = float(particles.ess), particles.n
    share = np.exp(log_weights.max() - np.logaddexp.reduce(log_weights))
    lines = [f"... {len(every) - len(rows):,} more rows (--all)"] if len(rows) < len(every) else []
    lines += [
        f"log evidence {float(particles.log_ml):.4g}   ess {size:{',.0f' if size >= 100 else '.1f'}} of {count:,} "
        f"({_share(size / count)})   k-hat {k:.2f}   largest weight {_share(share)}"
    ]
    tries = []
    if not math.isnan(k) and k > _LARGEST_K:
        lines.append(f"k-hat > {_LARGEST_K}: the weights are not to be trusted")
        tries = ["a proposal nearer to the posterior", "nuts or mh", _typed("%plot", spoken, "--kind weights")]
    elif size < ESS_OF_A_CHAIN:
        lines.append(f"ess < {ESS_OF_A_CHAIN}: means are rough")
        tries = [f"--particles {_rounded(count * ESS_OF_A_CHAIN / size)}", "a proposal nearer to the posterior"]
    return Diagnosis(("", "mean", "sd"), rows, lines, tries)


def _share(share: float) -> str:
    """
    >>> _share(0.3333), _share(0.00012), _share(1.0)
    ('33.3%', '0.012%', '100.0%')
    """
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.2g}%"


# rows


def _moments(particles: Any, address: tuple, index: tuple) -> list[tuple[str, ...]]:
    mean, sd = np.asarray(particles.mean(address)), np.asarray(particles.std(address))
    return [
        (element_name(address, i), f"{mean[i]:.3g}", f"{sd[i]:.3g}")
        for i in np.ndindex(mean.shape)
        if i[: len(index)] == index
    ]


def _badness(row: Row, limit: int) -> float:
    """By how much R-hat or a size is beyond its limit; constants least."""
    if row.constant:
        return -math.inf
    sizes = [size for size in (row.ess_bulk, row.ess_tail) if not math.isnan(size)]
    apart = 0.0 if math.isnan(row.rhat) else (row.rhat - 1) / (LARGEST_RHAT - 1)
    return max(apart, *(limit / size for size in sizes)) if sizes else apart


def _cells(row: Row, limit: int) -> tuple[str, ...]:
    if row.constant:
        return (row.name, f"{row.mean:.6g}", "0", "-", "-", "-", "-", "constant")
    numbers = number_of_ess(row.ess_bulk), number_of_ess(row.ess_tail)
    share = f"{row.mcse_mean / row.sd:.0%}" if row.sd > 0 and not math.isnan(row.mcse_mean) else "-"
    marks = _marks(row, limit)
    return (
        row.name, f"{row.mean:.3g}", f"{row.sd:.3g}", number_of_rhat(row.rhat),
        *numbers, share, f"<- {', '.join(marks)}" if marks else "",
    )  # fmt: skip


def _marks(row: Row, limit: int) -> list[str]:
    if row.constant:
        return []
    if math.isnan(row.mean):
        return ["not finite"]
    if row.rhat == math.inf:
        return ["no chain moved it"]
    few = [name for name, size in (("ess", row.ess_bulk), ("tail ess", row.ess_tail)) if size < limit]
    apart = [f"rhat>{LARGEST_RHAT}"] if row.rhat > LARGEST_RHAT else []
    return [*apart, *(f"{name}<{limit:,}" for name in few[:1])]


# the run


def _of_run(posterior: Any) -> list[str]:
    """Divergences, energies, tree depth and acceptance, where a sampler reports them and something is wrong."""
    lines = []
    if (bad := _where(posterior, "diverging")).any():
        share = f"{bad.mean():.1%}"
        lines.append(f"{_count(bad.sum(), 'divergence')} ({share}): {_by_chain(bad.sum(axis=1))}")
        lines += _gathered(posterior, bad)
    if (places := _places(posterior)) is not None:
        name, groups = places
        shown = "; ".join(f"{mean:.3g} in {_chains(chains)}" for mean, chains in groups)
        lines.append(f"the chains sit in different places: mean of {name} {shown}")
    shares = _bfmi(posterior)
    if (low := np.flatnonzero(shares < SMALLEST_BFMI)).size:
        found = ", ".join(f"{shares[i]:.2f} in chain {i}" for i in low)
        lines.append(f"bfmi {found} (< {SMALLEST_BFMI}): the tails are missed")
    if (cut := _where(posterior, "reached_max_depth")).any():
        lines.append(f"{_count(cut.sum(), 'trajectory')} at the largest tree depth: {_by_chain(cut.sum(axis=1))}")
    if (stuck := _stuck(posterior)).size:
        lines.append(f"{'chain' if stuck.size == 1 else 'chains'} {', '.join(map(str, stuck))} accepted nothing")
    if posterior.draws < FEWEST_DRAWS:
        lines.append(f"{posterior.draws} draws in each chain are too few to judge them by")
    return lines


def _where(posterior: Any, name: str) -> np.ndarray:
    """In which draws something happened, ``[chains, draws]``."""
    found = posterior.stats.get(name)
    return np.zeros((posterior.chains, posterior.draws), bool) if found is None else np.asarray(found) > 0


def _bfmi(posterior: Any) -> np.ndarray:
    """Of each chain; NaN from samplers without trajectories."""
    if "energy" not in posterior.stats or "diverging" not in posterior.stats or posterior.draws < 4:
        return np.full(posterior.chains, np.nan)
    return bfmi(np.asarray(posterior.stats["energy"]).astype(float))


def _stuck(posterior: Any) -> np.ndarray:
    found = posterior.stats.get("accept")
    if found is None:
        return np.array([], dtype=int)
    return np.flatnonzero(np.nan_to_num(np.asarray(found).astype(float), nan=1.0).mean(axis=1) < STILL)


def _by_chain(counts: np.ndarray) -> str:
    return ", ".join(f"{n:,} in chain {i}" for i, n in enumerate(counts) if n)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what if n == 1 else 'trajectories' if what == 'trajectory' else what + 's'}"


def _gathered(posterior: Any, bad: np.ndarray) -> list[str]:
    name = _funnel(posterior, bad)
    if name is None:
        return []
    values = _element(posterior, name)
    at, all_ = values[bad].mean(), values.mean()
    return [f"they gather at {'small' if at < all_ else 'large'} {name}: mean {at:.3g}, of all draws {all_:.3g}"]


def _funnel(posterior: Any, bad: np.ndarray) -> str | None:
    """The number whose divergent draws are the farthest from the others, in its deviations; None without one."""
    if bad.sum() < _FEW or bad.all():
        return None
    shifts = {}
    for element in elements(posterior):
        spread = element.values.std()
        if np.isfinite(spread) and spread > 0:
            shifts[element.name] = abs(element.values[bad].mean() - element.values.mean()) / spread
    name = max(shifts, key=lambda n: shifts[n], default=None)
    return name if name is not None and shifts[name] > _APART else None


def _element(posterior: Any, name: str) -> np.ndarray:
    return next(element.values for element in elements(posterior) if element.name == name)


def _places(posterior: Any) -> tuple[str, list[tuple[float, list[int]]]] | None:
    """The number whose chains lie apart the farthest, and the groups of chains: their mean, and which they are.

    Chains that are still on their way lie apart as well: each has to stay where it is, in its second half too.
    None where there is one place.
    """
    found: dict[str, tuple[float, Any]] = {}
    half = posterior.draws // 2
    for element in elements(posterior) if posterior.chains > 1 and half >= 2 else []:
        values = element.values.astype(float)
        within = math.sqrt(values.var(axis=1).mean())
        if not math.isfinite(within) or within == 0:
            continue
        means = values.mean(axis=1)
        moved = np.abs(values[:, :half].mean(axis=1) - values[:, half:].mean(axis=1))
        order = np.argsort(means)
        gaps = np.diff(means[order])
        if gaps.max() > _GAP * within and moved.max() < within:
            groups = np.split(order, np.flatnonzero(gaps > _GAP * within) + 1)
            found[element.name] = gaps.max() / within, [(means[g].mean(), sorted(g.tolist())) for g in groups]
    name = max(found, key=lambda n: found[n][0], default=None)
    return None if name is None else (name, found[name][1])


def _chains(chains: list[int]) -> str:
    return f"{'chain' if len(chains) == 1 else 'chains'} {', '.join(map(str, chains))}"


# what to try


def _tries(posterior: Any, rows: Sequence[Row], limit: int, spoken: str) -> list[str]:
    """Options of ``%infer`` to add, and figures to look at."""
    if getattr(getattr(posterior, "carrying", None), "warning", None):
        return ["sample anew: the same line without --carry"]
    found, moving = [], [row for row in rows if not row.constant and math.isfinite(row.rhat)]
    bad, shares, places = _where(posterior, "diverging"), _bfmi(posterior), _places(posterior)
    funnel = _funnel(posterior, bad)
    if bad.any():
        accept = np.nan_to_num(np.asarray(posterior.stats.get("accept", 0.0)).astype(float)).mean()
        found += [f"--target-accept {target}" for target in (0.95, 0.99) if accept < target - 0.03][:1]
    if funnel is not None:
        found.append(f"non-centred choices, if {funnel} is the scale of others")
        found.append(_typed("%plot", spoken, _spelled(funnel), "--kind pair"))
    elif places is None and (bad.any() or (shares < SMALLEST_BFMI).any()):
        found.append("non-centred choices where one sets the scale of others")
    if places is None and (shares < SMALLEST_BFMI).any():
        found.append(_typed("%plot", spoken, "--kind energy"))
    if _where(posterior, "reached_max_depth").any():
        found.append("--max-depth 12; dense=True in a call of nuts")
    if any(math.isnan(row.mean) for row in rows):
        found.append("look for what overflows, or for a bound that is left")
    if _stuck(posterior).size:
        found.append("smaller steps (--step), or a longer warm-up (-w)")
    elif any(row.rhat == math.inf for row in rows):
        found.append("--sel with every choice that is to move")
    apart = max((row for row in moving if row.rhat > LARGEST_RHAT), key=lambda row: row.rhat, default=None)
    if places is not None:
        found += ["a prior or an order that leaves one place, if they are the same by symmetry"]
        found += ["%infer tempered, or is, which weigh the places, if they are not"]
        return [*dict.fromkeys(found), _typed("%plot", spoken, _spelled(places[0]), "--kind trace")]
    sizes = [size for row in moving for size in (row.ess_bulk, row.ess_tail) if size < limit]
    if sizes or posterior.draws < FEWEST_DRAWS:
        wanted = posterior.draws * (limit / min(sizes) if sizes else 1)
        more = _rounded(max(wanted, FEWEST_DRAWS))
        within = more <= 10 * max(posterior.draws, FEWEST_DRAWS)
        found.append(f"-n {more}" if within else "another method, or other coordinates")
    if apart is not None:
        found += ["a longer warm-up (-w)", _typed("%plot", spoken, _spelled(apart.name), "--kind rank")]
    return list(dict.fromkeys(found))


def _typed(*words: str) -> str:
    return " ".join(word for word in words if word)


def _spelled(name: str) -> str:
    """The name of a row as an address to type: ``y/3`` is ``y[3]``, ``z/0/deep[1]`` is ``z[0]['deep'][1]``."""
    path, bracket, index = name.partition("[")
    first, *rest = path.split("/")
    return first + "".join(f"[{part if part.isdigit() else repr(part)}]" for part in rest) + bracket + index


def _rounded(x: float) -> int:
    """Upwards to one significant figure, or to a half of that: 137 is 150, and 160 is 200."""
    unit = 10 ** math.floor(math.log10(x)) / 2
    return max(1, int(math.ceil(round(x / unit, 9)) * unit))


# text


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns to the right, but for the names and the marks."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = 7  # the marks of a posterior's table
    return [
        "  ".join(
            cell.rjust(width) if 0 < i < last else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _joined(head: str, parts: Sequence[str], width: int = 88) -> list[str]:
    """Parts with semicolons between them, in as few lines as fit."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"; {part}"
        else:
            lines.append((" " * len(head) if lines else head) + part)
    return lines
