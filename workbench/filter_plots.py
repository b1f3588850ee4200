"""The figures of particle filters: effective sizes, what is known at each step, evidence, and ancestors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from genmlx.address import normalise
from genmlx.errors import UnknownAddress, UsageError, nearest, show_addresses
from genmlx.inference.bands import Band, band
from genmlx.inference.history import require_paths
from workbench.elements import element_name
from workbench.figures import BAD, INK, QUIET, Plot, new_plot
from workbench.filters import facts, is_static, standard_error

MARK = "divergent"  # the gid of what text shows as x
DETAIL = "detail"  # that of what text leaves out
LINES, LINES_OF_TEXT = 100, 8  # particles whose ancestors are drawn; in text every eighth of them


def sizes(kind: str, pf: Any) -> Plot:
    """The effective size at each step, with marks at those that were resampled; and the temperatures, if there are."""
    plot = new_plot(kind, "", 8, 2.6)
    if not is_static(pf.history):
        _sizes(plot.subplots(), pf.history, pf.n)
        return plot
    left, right = plot.subplots(1, 2)
    _sizes(left, pf.history, pf.n)
    right.plot(np.arange(len(pf.history)), pf.history.temperature, "o-", color=INK, ms=2.5, lw=1)
    right.set(xlabel="step", ylim=(0, 1.02), xlim=(0, max(len(pf.history) - 1, 1)))
    right.set_title("temperature", loc="left")
    return plot


def _sizes(axes: Axes, history: Any, n: int) -> None:
    ess, resampled = np.asarray(history.ess, dtype=float), np.flatnonzero(history.resampled)
    axes.plot(np.arange(len(ess)), ess, color=INK, lw=1)
    axes.plot(resampled, np.full(len(resampled), 0.03 * n), "|", color=BAD, ms=6, mew=0.8, gid=MARK)
    axes.axhline(0.1 * n, color=QUIET, lw=0.6, ls="--")
    _steps(axes, len(ess), "step" if not len(resampled) else "step  (marks: resampled)")
    axes.set_ylim(0, 1.02 * n)
    axes.set_title(f"effective size of {n:,}   least {ess.min():,.1f}   resampled at {len(resampled):,}", loc="left")


def evidence(kind: str, pf: Any) -> Plot:
    """The log evidence of the first so many steps, and what each added."""
    history, error = pf.history, facts(pf).error
    plot = new_plot(kind, "", 8, 2.6)
    left, right = plot.subplots(1, 2)
    _evidence(left, history)
    left.set_title(f"log evidence {history.log_ml[-1]:.4g}{standard_error(error)}", loc="left")
    added = np.asarray(history.log_ml_increment, dtype=float)
    right.plot(np.arange(len(added)), added, color=INK, lw=1)
    _steps(right, len(added))
    right.set_title(f"added by a step   least {added.min():.4g} at {int(added.argmin())}", loc="left")
    return plot


def _evidence(axes: Axes, history: Any) -> None:
    axes.plot(np.arange(len(history)), history.log_ml, color=INK, lw=1)
    _steps(axes, len(history))


def genealogy(kind: str, pf: Any) -> Plot:
    """Of evenly spaced particles with weight: which particle of each step they come from; a colour for each first."""
    require_paths(pf.history)
    alive = np.flatnonzero(np.asarray(pf.log_weights) > -np.inf)
    chosen = alive[np.unique(np.linspace(0, len(alive) - 1, min(LINES, len(alive))).astype(int))]
    origins = np.stack([index[chosen] for index in pf.history.origins(pf.n)])
    origins = np.concatenate([origins, chosen[None]]) if pf.history[-1].resampled else origins
    plot = new_plot(kind, "", 8, 3.4)
    axes = plot.subplots()
    for i, line in enumerate(origins.T):
        gid = None if i % LINES_OF_TEXT == 0 else DETAIL
        axes.plot(np.arange(len(line)), line, color=f"C{line[0] % 10}", lw=0.6, alpha=0.7, gid=gid)
    _steps(axes, len(origins))
    axes.set_ylim(-0.5, max(pf.n, origins.max() + 1) - 0.5)
    axes.set_ylabel("particle")
    left = facts(pf).ancestors[0]
    axes.set_title(f"ancestors of {len(chosen):,} particles   {left:,} of all {pf.n:,} left at step 0", loc="left")
    return plot


def _steps(axes: Axes, count: int, label: str = "step") -> None:
    axes.set_xlim(0, max(count - 1, 1))
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


# what is known at each step


class Series(NamedTuple):
    """A choice at each of some steps: ``steps`` [m], and a ``Band`` for each."""

    address: tuple
    steps: list[int]
    bands: list[Band]


def bands(kind: str, pf: Any, addresses: Sequence[Any] | None, most: int) -> Plot:
    """Means and 90% bands of choices over the steps, given what was seen up to each, where that was recorded; otherwise
    given everything that was seen, from the whole traces of the last particles."""
    if is_static(pf.history):
        raise UsageError("the steps of this filter are temperatures", hint="the kind 'ess' or 'weights'")
    named = None if addresses is None else [normalise(a) for a in addresses]
    series, given = _recorded(pf, named), "given what was seen up to each step (filtering)"
    if not series:
        series, given = _smoothed(pf, named), "given all that was seen (smoothing; record= keeps filtering)"
    panels = [(one, index) for one in series for index in np.ndindex(np.shape(one.bands[0].mean))]
    shown = panels[:most]
    cut = f"   {most} of {len(panels):,} numbers" if len(panels) > most else ""
    plot = new_plot(kind, f"mean and 90%, {given}{cut}", 8, 1.9 * len(shown) + 0.5)
    for axes, (one, index) in zip(plot.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        low, mean, high = (np.array([np.asarray(getattr(b, name))[index] for b in one.bands])
                           for name in ("low", "mean", "high"))  # fmt: skip
        axes.fill_between(one.steps, low, high, color=INK, alpha=0.2, lw=0)
        for edge in (low, high):
            axes.plot(one.steps, edge, color=INK, lw=0.5, alpha=0.6)
        axes.plot(one.steps, mean, color=INK, lw=1.2)
        axes.set_title(element_name(one.address, index), loc="left")
        _steps(axes, max(one.steps) + 1)
    return plot


def _recorded(pf: Any, named: list[tuple] | None) -> list[Series]:
    """Of the addresses, or all, that ``Bands`` has recorded; nothing where one of them is not among these."""
    kept = [(t, one) for t, one in enumerate(pf.history.recorded) if _is_bands(one)]
    known = dict.fromkeys(address for _, one in kept for address in one)
    chosen = list(known) if named is None else named
    if not chosen or not all(address in known for address in chosen):
        return []
    return [Series(a, [t for t, one in kept if a in one], [one[a] for _, one in kept if a in one]) for a in chosen]


def _is_bands(recorded: Any) -> bool:
    return isinstance(recorded, dict) and all(isinstance(one, Band) for one in recorded.values())


def _smoothed(pf: Any, named: list[tuple] | None) -> list[Series]:
    """From the whole traces, by the last weights."""
    found: dict[tuple, list[tuple[int, tuple]]] = {}
    for address in pf.addresses():
        at = next((i for i, part in enumerate(address) if isinstance(part, int)), None)
        if at is not None:
            pattern = (*address[:at], *address[at + 1 :])
            found.setdefault(pattern, []).append((address[at], address))
    if not found:
        raise UsageError("no address of this filter has the number of a step", expected="(t, 'x')")
    for address in named or []:
        if address not in found:
            raise UnknownAddress(
                "no step has such a choice",
                address=address,
                suggestions=nearest(address, list(found)),
                expected=f"one of {show_addresses(found)}",
            )
    chosen = list(found) if named is None else named
    series = []
    for pattern in chosen:
        places = sorted(found[pattern])
        series.append(Series(pattern, [t for t, _ in places], [band(pf, address) for _, address in places]))
    return series


# as a run goes on


def live(progress: Any, plot: Plot) -> Plot:
    """Effective sizes and log evidence so far, on the same figure each time."""
    info = progress.info
    plot.clear()
    plot.set_size_inches(8, 2.8)
    plot.suptitle(f"{progress.phase} {progress.done:,} of {progress.total:,}", fontsize=9)
    left, right = plot.subplots(1, 2)
    _sizes(left, info["history"], info["particles"])
    _evidence(right, info["history"])
    right.set_title(f"log evidence {info['log_ml']:.4g}", loc="left")
    return plot
