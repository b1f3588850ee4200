"""The figures of posteriors, particles and optima: one function for each kind, on a figure that shows itself.

Matplotlib is imported by ``figures``, here, and by ``filter_plots``, without pyplot: no global state, and a figure that
nobody holds is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from genmlx.diagnostics import bfmi, ess, ess_tail, psis
from genmlx.errors import UsageError
from workbench import filter_plots, live_elbo, live_filter
from workbench.elements import Element, elements
from workbench.estimates import autocorrelation, cumulative, density, frequencies, rank_histogram, replicated
from workbench.figures import BAD, INK, QUIET, STYLE, Plot, grid, new_plot
from workbench.filters import is_filter
from workbench.report import bound_of

DIVERGENT = "divergent"  # the gid of what marks divergences, which text shows as x
DETAIL = "detail"  # that of what text leaves out
_POINTS = 4000  # points of a scatter plot; of more draws, evenly spaced ones are drawn
_BARS = 40  # different values of a discrete number that are drawn as bars; more are a density
_PAIRED = 5  # numbers of a pair plot
_LEAST_WEIGHT = 1e-4  # of a mean of 1: lighter particles are not drawn
_SMOOTH, _REPLICAS = 30, 50  # observations whose density is drawn, and predictions that are drawn beside them


def figure(kind: str, result: Any, addresses: Iterable[Any] | None = None, most: int = 12) -> Plot:
    """A figure of a result: ``kind`` is one of ``KINDS``, or for a particle filter of ``OF_FILTERS``.

    ``addresses`` are by default all, of which at most ``most`` numbers are drawn; that of a vector stands for its
    elements. The kinds ``energy``, ``elbo`` and ``weights`` are of the result as a whole, as those of a filter but
    ``filter``, whose addresses are without the number of the step; the addresses of ``ppc`` are observed ones.

    Raises ``UnknownAddress``, and ``UsageError`` where the result has not what the kind shows, or too few draws.
    """
    known = dict.fromkeys([*KINDS, *OF_FILTERS])
    if kind not in known:
        raise UsageError(f"no kind of figure {kind!r}", expected=f"one of {', '.join(known)}")
    own = KINDS.get(kind) or OF_FILTERS[kind]
    if kind in OF_FILTERS and is_filter(result):
        own = OF_FILTERS[kind]
    if not own.fits(result):
        raise UsageError(
            f"{type(result).__name__} has no {own.shows} for the kind {kind!r}",
            expected=own.of,
            hint=f"the kind {default_kind(result)!r}" if default_kind(result) else "the result of an algorithm",
        )
    if own.needs == "draws" and result.draws < own.least:
        raise UsageError(
            f"{result.draws} draws in each chain are too few for the kind {kind!r}",
            expected=f"at least {own.least}",
            hint="a longer run",
        )
    named = None if addresses is None else list(addresses)
    if own.whole and named:
        raise UsageError(f"the kind {kind!r} is of the result as a whole", hint="leave the addresses out")
    with rc_context(STYLE):
        if own.whole:
            return own.draw(kind, result)
        return own.draw(kind, result, named, most)


def default_kind(result: Any) -> str | None:
    """The kind of figure for a result about which nothing else is known; None for what is no result."""
    if is_filter(result):
        return "ess"
    return next((kind for kind in ("trace", "weights", "elbo") if KINDS[kind].fits(result)), None)


# of the draws of some numbers


def _trace(kind: str, posterior: Any, addresses: Sequence[Any] | None, most: int) -> Plot:
    """Densities and draws of each chain, with ticks where draws diverged."""
    chosen, note = _chosen(posterior, addresses, most)
    return _traces(new_plot(kind, note, 8, 1.35 * len(chosen) + 0.35), chosen, _diverging(posterior))


def _traces(plot: Plot, chosen: Sequence[Element], diverging: np.ndarray | None = None) -> Plot:
    panels = plot.subplots(len(chosen), 2, squeeze=False, width_ratios=(1, 2))
    for row, element in enumerate(chosen):
        left, right = panels[row]
        _densities(left, element)
        left.set_title(element.name, loc="left")
        for i, chain in enumerate(element.values):
            right.plot(np.arange(len(chain)), chain, color=f"C{i}", lw=0.6, alpha=0.8)
        if diverging is not None and diverging.any():
            at = np.nonzero(diverging.any(axis=0))[0]
            ticks = right.get_xaxis_transform()
            right.plot(at, 0 * at + 0.03, "|", color="black", ms=6, mew=0.8, transform=ticks, gid=DIVERGENT)
        right.set_xlim(0, max(element.values.shape[1] - 1, 1))
        if row < len(chosen) - 1:
            right.set_xticklabels([])
    panels[-1, 1].set_xlabel("draw" if diverging is None or not diverging.any() else "draw  (ticks: divergences)")
    return plot


def _densities(axes: Axes, element: Element) -> None:
    """A density of each chain; bars for a number of few values, a line at that of a chain that never moved."""
    chains = element.chains()
    few = element.discrete and len(np.unique(element.pooled)) <= _BARS
    for i, chain in enumerate(chains):
        if not len(chain):
            continue
        if few:
            values, shares = frequencies(chain)
            width = 0.8 / len(chains)
            axes.bar(values + (i - (len(chains) - 1) / 2) * width, shares, width, color=f"C{i}")
        elif chain.min() == chain.max():
            axes.axvline(chain[0], color=f"C{i}", lw=1)
        else:
            axes.plot(*density(chain), color=f"C{i}", lw=1)
    if few:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif element.pooled.size:
        axes.set_xlim(*_bulk(element.pooled))
    axes.set_yticks([])
    axes.set_ylim(bottom=0)
    axes.spines["left"].set_visible(False)


def _bulk(x: np.ndarray) -> tuple[float, float]:
    """The range of the draws without long tails, and somewhat more."""
    low, high = x.min(), x.max()
    inner = np.quantile(x, [0.005, 0.995])
    room = 0.25 * (inner[1] - inner[0])
    low, high = max(low, inner[0] - room), min(high, inner[1] + room)
    pad = 0.03 * (high - low) or max(1e-6, 0.05 * abs(low))
    return low - pad, high + pad


def _rank(kind: str, posterior: Any, addresses: Sequence[Any] | None, most: int) -> Plot:
    """How often the draws of each chain have which rank among those of all: alike in chains that agree."""
    chosen, note = _chosen(posterior, addresses, most)
    plot, panels = grid(kind, note, len(chosen), 1.6)
    bins = int(np.clip(posterior.draws // 10, 5, 20))
    for axes, element in zip(panels, chosen, strict=True):
        counts = rank_histogram(element.values, bins)
        total, expected = element.pooled.size, counts.sum(axis=1) / bins
        step = max(1.6 * expected.max(), 1.08 * counts.max()) or 1.0
        floors = step * np.arange(posterior.chains)[::-1]
        edges = np.linspace(0, total, bins + 1)
        for i, floor in enumerate(floors):
            axes.bar(edges[:-1], counts[i], np.diff(edges), floor, align="edge", color=f"C{i}", ec="white", lw=0.4)
            axes.axhline(floor + expected[i], color="black", lw=0.6, ls="--")
        middle = floors + expected / 2
        axes.set_yticks(middle, [f"chain {i}" for i in range(posterior.chains)])
        axes.set_xlim(0, max(total, 1))
        axes.tick_params(axis="y", length=0)
        axes.set_title(element.name, loc="left")
        axes.set_xlabel("rank")
    return plot


def _autocorr(kind: str, posterior: Any, addresses: Sequence[Any] | None, most: int) -> Plot:
    """The autocorrelation of each chain, with the band in which 95% of that of independent draws is."""
    chosen, note = _chosen(posterior, addresses, most)
    plot, panels = grid(kind, note, len(chosen), 1.5)
    lags = min(100, posterior.draws // 2)
    for axes, element in zip(panels, chosen, strict=True):
        for i, chain in enumerate(element.chains()):
            if len(chain) > lags:
                axes.plot(np.arange(lags + 1), autocorrelation(chain, lags), color=f"C{i}", lw=0.9)
        band = 1.96 / np.sqrt(posterior.draws)
        axes.axhspan(-band, band, color=QUIET, alpha=0.25, lw=0)
        axes.axhline(0, color="black", lw=0.6)
        axes.set(xlim=(0, lags), ylim=(min(-0.3, axes.get_ylim()[0]), 1.05), xlabel="lag")
        axes.set_title(element.name, loc="left")
    return plot


def _ess(kind: str, posterior: Any, addresses: Sequence[Any] | None, most: int) -> Plot:
    """Effective sample sizes of the first so many draws: they grow in proportion in a run that goes well."""
    chosen, note = _chosen(posterior, addresses, most)
    plot, panels = grid(kind, note, len(chosen), 1.5)
    counts = np.unique(np.linspace(posterior.draws / 10, posterior.draws, 10).astype(int).clip(4))
    values = np.stack([element.values for element in chosen], axis=-1)
    bulk = np.stack([ess(values[:, :count]) for count in counts])
    tail = np.stack([ess_tail(values[:, :count]) for count in counts])
    for i, (axes, element) in enumerate(zip(panels, chosen, strict=True)):
        axes.plot(counts * posterior.chains, bulk[:, i], "o-", color=INK, lw=1, ms=2.5, label="bulk")
        axes.plot(counts * posterior.chains, tail[:, i], "s-", color="C1", lw=1, ms=2.5, label="tail")
        axes.axhline(100 * posterior.chains, color="black", lw=0.6, ls="--")
        axes.set(xlabel="draws of all chains", ylim=(0, None), xlim=(0, None))
        axes.set_title(element.name, loc="left")
    panels[0].legend(loc="upper left")
    return plot


def _forest(kind: str, posterior: Any, addresses: Sequence[Any] | None, most: int) -> Plot:
    """Medians, and intervals of 50% and 90%, over all chains, and below in colour those of 90% of each chain."""
    chosen, note = _chosen(posterior, addresses, most)
    plot = new_plot(kind, note, 7, 0.34 * len(chosen) + 0.9)
    axes = plot.subplots()
    for row, element in enumerate(chosen):
        if not element.pooled.size:
            continue
        low, first, middle, third, high = np.quantile(element.pooled, [0.05, 0.25, 0.5, 0.75, 0.95])
        axes.plot([low, high], [row, row], color=INK, lw=1.2)
        axes.plot([first, third], [row, row], color=INK, lw=3.2)
        axes.plot([middle], [row], "o", color="white", mec=INK, ms=4.5)
        chains = [chain for chain in element.chains() if chain.size] if posterior.chains > 1 else []
        for i, chain in enumerate(chains):
            below = [row + 0.16 + 0.3 * (i + 0.5) / len(chains)] * 2
            axes.plot(np.quantile(chain, [0.05, 0.95]), below, color=f"C{i}", lw=0.8, alpha=0.8, gid=DETAIL)
    axes.set_yticks(range(len(chosen)), [element.name for element in chosen])
    axes.set_ylim(len(chosen) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_title("median, 50% and 90% intervals", loc="left")
    axes.grid(axis="x", lw=0.4, alpha=0.5)
    return plot


def _pair(kind: str, posterior: Any, addresses: Sequence[Any] | None, most: int) -> Plot:
    """Every two of some numbers against each other, with the draws that diverged on top."""
    named = elements(posterior, addresses)
    if len(named) == 1:  # with the first of the others
        others = [element for element in elements(posterior) if element.name != named[0].name]
        chosen, note = [named[0], *others[:3]], ""
    else:
        chosen, note = _cut(named, min(most, _PAIRED))
    if len(chosen) < 2:
        raise UsageError("a pair plot needs two numbers", expected=f"more than {named[0].name}" if named else "draws")
    size = len(chosen)
    plot = new_plot(kind, note, 1.75 * size + 0.4, 1.6 * size + 0.3)
    bad = _diverging(posterior)
    bad = np.zeros(chosen[0].values.shape, bool).ravel() if bad is None else bad.ravel()
    every = -(-bad.size // _POINTS)
    kept = np.nonzero(~bad)[0][::every]
    panels = plot.subplots(size, size, squeeze=False)
    for i in range(size):
        for j in range(size):
            axes, x, y = panels[i, j], chosen[j], chosen[i]
            if j > i:
                axes.remove()
                continue
            if i == j:
                _densities(axes, Element(x.name, x.values.reshape(1, -1), x.discrete))
                axes.set_title(x.name, loc="left")
            else:
                xs, ys = x.values.ravel(), y.values.ravel()
                axes.scatter(xs[kept], ys[kept], s=3, color=INK, alpha=0.25, lw=0)
                axes.scatter(xs[bad], ys[bad], s=9, color=BAD, lw=0, zorder=3, gid=DIVERGENT)
                axes.set_ylim(*_around(y))
            axes.set_xlim(*_around(x))
            if i < size - 1:
                axes.set_xticklabels([])
            else:
                axes.set_xlabel(x.name)
            if j == 0 and i > 0:
                axes.set_ylabel(y.name)
            elif i != j:
                axes.set_yticklabels([])
    if bad.any():
        plot.text(0.98, 0.98, f"{bad.sum():,} divergences in red", ha="right", va="top", color=BAD)
    return plot


def _around(element: Element) -> tuple[float, float]:
    x = element.pooled
    if not x.size:
        return 0.0, 1.0
    room = 0.05 * (x.max() - x.min()) or 0.5
    return x.min() - room, x.max() + room


# of a result as a whole


def _energy(kind: str, posterior: Any) -> Plot:
    """The energies of the draws, and their steps: if the steps are narrower, momenta do not reach the tails."""
    stats = posterior.stats
    if "energy" not in stats or "diverging" not in stats:
        raise UsageError(
            f"{posterior.algorithm or 'this sampler'} reports no energies",
            expected="the posterior of nuts or hmc",
            hint="the kind 'trace' or 'rank'",
        )
    energy = np.asarray(stats["energy"]).astype(float)
    plot = new_plot(kind, "", 6, 2.8)
    axes = plot.subplots()
    marginal, steps = (energy - energy.mean()).ravel(), np.diff(energy, axis=1).ravel()
    for x, color, label in ((marginal, INK, "energy, about its mean"), (steps, "C1", "step from draw to draw")):
        x = x[np.isfinite(x)]
        if x.size > 1 and x.min() < x.max():
            grid, heights = density(x)
            axes.fill_between(grid, heights, color=color, alpha=0.25, lw=0)
            axes.plot(grid, heights, color=color, label=label)
    shares = ", ".join(f"{share:.2f}" for share in bfmi(energy))
    axes.set_title(f"energy   bfmi {shares}", loc="left")
    axes.set(yticks=[], ylim=(0, None), xlim=_bulk(np.concatenate([marginal, steps])))
    axes.spines["left"].set_visible(False)
    axes.legend()
    return plot


def _elbo(kind: str, result: Any) -> Plot:
    """What an optimiser climbs, after each step of each start; the best in full colour."""
    if hasattr(result, "log_ml_bound"):
        return _bound(kind, result)
    history = np.asarray(result.history).astype(float)
    history = history.reshape(len(history), -1)
    plot = new_plot(kind, "", 6, 2.8)
    axes = plot.subplots()
    best = int(np.nanargmax(np.where(np.isfinite(history[-1]), history[-1], -np.inf)))
    for i in sorted(range(history.shape[1]), key=lambda i: i == best):
        color, width = (INK, 1.5) if i == best else (QUIET, 0.8)
        axes.plot(np.arange(len(history)), history[:, i], color=color, lw=width)
    finite = history[np.isfinite(history)]
    late = history[len(history) // 10 :]  # a start far away is cut off: the climb that matters is the last part
    low, high = np.min(late[np.isfinite(late)], initial=finite.max()), finite.max()
    axes.set_ylim(low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))
    axes.set_xlim(0, max(len(history) - 1, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    starts = f"   best of {history.shape[1]} starts" if history.shape[1] > 1 else ""
    axes.set_title(f"objective {history[-1, best]:.6g}{starts}", loc="left")
    axes.set_xlabel("step")
    return plot


def _bound(kind: str, fit: Any) -> Plot:
    """The objective of each step, its running median, and the bound of the finished guide."""
    plot = new_plot(kind, "", 6, 2.8)
    axes = plot.subplots()
    _climb(axes, np.asarray(fit.history).astype(float))
    if np.isfinite(fit.log_ml_bound):
        axes.axhline(fit.log_ml_bound, color="C1", lw=0.8, ls="--")
    unfinished = "" if fit.converged else "   not converged"
    axes.set_title(f"{bound_of(fit)}{unfinished}", loc="left")
    return plot


def _climb(axes: Axes, objective: np.ndarray) -> None:
    if not np.isfinite(objective).any():
        return
    shown = live_elbo.levels(objective)
    width = min(len(shown), max(10, len(shown) // 50))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(shown, width), axis=1)
    axes.plot(np.arange(len(shown)), shown, color=QUIET, lw=0.5, gid=DETAIL)
    axes.plot(np.arange(width - 1, len(shown)), medians, color=INK, lw=1.5)
    axes.set_xlim(0, max(len(shown) - 1, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")


def _weights(kind: str, particles: Any) -> Plot:
    """How the weight is spread over the particles, and its tail with the Pareto distribution fitted to it."""
    log_weights = np.asarray(particles.log_weights).astype(float)
    smooth, shape = psis(log_weights)
    if not np.isfinite(log_weights.max()):
        raise UsageError("no particle has a weight", hint="a proposal nearer to the posterior, or more particles")
    count = len(log_weights)
    order = np.argsort(-log_weights)[: np.isfinite(log_weights).sum()]
    weights = np.exp(log_weights[order] - np.logaddexp.reduce(log_weights))
    fitted = weights * np.exp(_tail(smooth[order] - log_weights[order]))
    plot = new_plot(kind, "", 8, 2.8)
    left, right = plot.subplots(1, 2)
    number = np.arange(1, len(weights) + 1)
    left.plot(number, weights.cumsum(), color=INK)
    left.plot(np.arange(1, count + 1), np.arange(1, count + 1) / count, color=QUIET, lw=0.8, ls="--")
    size = 1 / np.square(weights).sum()
    left.axvline(size, color="C1", lw=1)
    left.set(xscale="log" if count > 1 else "linear", ylim=(0, 1.02), xlabel="heaviest particles")
    left.set_title(f"share of the weight   ess {size:,.1f} of {count:,}", loc="left")
    heavier = (number - 0.5) / count
    right.plot(count * weights, heavier, ".", color=INK, ms=3)
    end = np.flatnonzero(fitted != weights).max(initial=-1) + 1
    if end:
        right.plot(count * fitted[:end], heavier[:end], color=BAD, lw=1)
    right.set(xscale="log", yscale="log", xlabel="weight, of a mean of 1", ylabel="share that is heavier")
    right.set_xlim(max(count * weights.min(), _LEAST_WEIGHT) / 1.5, count * weights.max() * 1.5)
    verdict = "" if not np.isfinite(shape) else " (to be trusted)" if shape <= 0.7 else " > 0.7: not to be trusted"
    right.set_title(f"tail   k-hat {shape:.2f}{verdict}", loc="left")
    return plot


def _tail(change: np.ndarray) -> np.ndarray:
    """By how much smoothing has changed the log weights, but for what normalising them again adds to all."""
    own = change - change[-1]
    return np.where(np.abs(own) > 1e-9, own, 0.0)


def _ppc(kind: str, posterior: Any, addresses: Sequence[Any] | None, most: int) -> Plot:
    """What the posterior predicts (thin) and what was observed: distribution, mean and deviation."""
    groups = replicated(posterior)
    if addresses is not None:
        groups = {name: groups[name] for name in _observed(groups, addresses)}
    shown = list(groups.items())[:most]
    note = "" if len(shown) == len(groups) else f"{len(shown)} of {len(groups)} observed addresses; --max"
    plot = new_plot(kind, note, 8, 1.7 * len(shown) + 0.4)
    panels = plot.subplots(len(shown), 3, squeeze=False, width_ratios=(2, 1, 1))
    for row, (name, (observed, predicted)) in enumerate(shown):
        left, *others = panels[row]
        _overlay(left, observed, predicted)
        left.set_title(f"{name}   {len(observed)} observed", loc="left")
        statistics = {"mean": np.mean, "sd": np.std} if len(observed) > 1 else {"value": np.mean}
        for axes, (label, statistic) in zip(others, statistics.items(), strict=False):
            _statistic(axes, label, statistic(observed), statistic(predicted, axis=1))
        for axes in others[len(statistics) :]:
            axes.remove()
    return plot


def _observed(groups: Iterable[str], addresses: Sequence[Any]) -> list[str]:
    from genmlx.address import normalise
    from genmlx.errors import UnknownAddress, nearest, show_addresses

    known, found = [tuple(name.split("/")) for name in groups], []
    for address in map(normalise, addresses):
        own = tuple(str(part) for part in address if not isinstance(part, int))
        if own not in known:
            expected = f"one of {show_addresses(known)}"
            close = nearest(address, known)
            raise UnknownAddress("nothing was observed", address=address, suggestions=close, expected=expected)
        found.append("/".join(own))
    return list(dict.fromkeys(found))


def _overlay(axes: Axes, observed: np.ndarray, predicted: np.ndarray) -> None:
    """Densities; of few or of whole numbers the cumulative shares; of one number the density of what is predicted."""
    everything = np.concatenate([predicted[np.isfinite(predicted)], observed])
    whole = np.array_equal(everything, np.round(everything))
    steps = whole or len(observed) < _SMOOTH
    axes.set(yticks=[], xlim=_bulk(everything))
    axes.spines["left"].set_visible(False)
    if len(observed) == 1:
        _densities(axes, Element("", predicted.reshape(1, -1), whole))
        axes.axvline(observed[0], color="black", lw=1.5)
        return
    for x in predicted[:: -(-len(predicted) // _REPLICAS)]:
        _distribution(axes, x[np.isfinite(x)], steps, color="C0", lw=0.6, alpha=0.35)
    _distribution(axes, observed, steps, color="black", lw=1.5)
    axes.set_ylim(0, None)
    axes.set_xlabel("cumulative share" if steps else "density")


def _distribution(axes: Axes, x: np.ndarray, steps: bool, **look: Any) -> None:
    if steps and len(x):
        low, high = axes.get_xlim()
        values, shares = cumulative(x)
        axes.step([low, *values, high], [0.0, *shares, 1.0], where="post", **look)
    elif len(x) > 1 and x.min() < x.max():
        axes.plot(*density(x), **look)


def _statistic(axes: Axes, label: str, observed: Any, predicted: np.ndarray) -> None:
    predicted = predicted[np.isfinite(predicted)]
    axes.hist(predicted, 20, color="C0", alpha=0.5)
    axes.axvline(observed, color="black", lw=1.5)
    share = (predicted >= observed).mean() if len(predicted) else float("nan")
    axes.set_title(f"{label}   p {share:.2f}", loc="left")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


# as a run goes on


def live_figure(progress: Any, plot: Plot | None = None) -> Plot:
    """The draws so far of the numbers that a run watches, on the same figure each time.

    ``progress.info["watch"]`` is a function that gives ``{name: [chains, draws]}``; without it, or before there are
    draws, the figure says how far the run is. Of a particle filter it shows the effective sizes and the evidence, of
    variational inference the objective.
    """
    if live_filter.shows(progress.info):
        with rc_context(STYLE):
            return filter_plots.live(progress, Plot("live") if plot is None else plot)
    if live_elbo.shows(progress.info):
        with rc_context(STYLE):
            return _live_climb(progress, Plot("live") if plot is None else plot)
    found = progress.info.get("watch")
    watched: Any = found() if callable(found) else {}
    values = {name: np.asarray(v, dtype=float) for name, v in watched.items()}
    chosen = [Element(name, array) for name, array in values.items() if array.shape[1] > 1][:6]
    with rc_context(STYLE):
        if plot is None:
            plot = Plot("live")
        plot.clear()
        plot.set_size_inches(8, 1.35 * len(chosen) + 0.6)
        plot.suptitle(f"{progress.phase} {progress.done:,} of {progress.total:,}", fontsize=9)
        return _traces(plot, chosen) if chosen else plot


def _live_climb(progress: Any, plot: Plot) -> Plot:
    plot.clear()
    plot.set_size_inches(6, 2.8)
    axes = plot.subplots()
    _climb(axes, np.asarray(progress.info["objective"]()).astype(float))
    told = "   ".join(live_elbo.numbers(progress.info))
    axes.set_title(f"{progress.phase} {progress.done:,} of {progress.total:,}   {told}", loc="left")
    return plot


# helpers


def _chosen(posterior: Any, addresses: Iterable[Any] | None, most: int) -> tuple[list[Element], str]:
    """The first numbers at some addresses, and a note where there are more."""
    found = elements(posterior, addresses)
    if not found:
        raise UsageError("the posterior has no draws of any address", expected="latent choices")
    return _cut(found, most)


def _cut(found: list[Element], most: int) -> tuple[list[Element], str]:
    return found[:most], f"{most} of {len(found):,} numbers" if len(found) > most else ""


def _diverging(posterior: Any) -> np.ndarray | None:
    """Which draws diverged, ``[chains, draws]``."""
    return np.asarray(posterior.stats["diverging"]) > 0 if "diverging" in posterior.stats else None


class Kind(NamedTuple):
    """A kind of figure: what draws it, what a result must have for it, of how many draws at least."""

    name: str
    draw: Callable[..., Plot]
    least: int = 4
    needs: str = "draws"
    whole: bool = False

    def fits(self, result: Any) -> bool:
        if self.needs == "filter":
            return is_filter(result)
        return hasattr(result, self.needs) and not (self.needs == "history" and is_filter(result))

    @property
    def shows(self) -> str:
        shown = {"draws": "chains of draws", "history": "objective", "log_weights": "weights", "filter": "steps"}
        return shown[self.needs]

    @property
    def of(self) -> str:
        found = {"draws": "a posterior", "history": "the result of an optimiser", "log_weights": "particles"}
        return found.get(self.needs, "the particle filter of smc")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("trace", _trace),
        Kind("rank", _rank, least=20),
        Kind("pair", _pair),
        Kind("energy", _energy, whole=True),
        Kind("forest", _forest),
        Kind("autocorr", _autocorr, least=10),
        Kind("ess", _ess, least=40),
        Kind("ppc", _ppc, least=1),
        Kind("elbo", _elbo, needs="history", whole=True),
        Kind("weights", _weights, needs="log_weights", whole=True),
    )
}

OF_FILTERS = {
    kind.name: kind
    for kind in (
        Kind("ess", filter_plots.sizes, needs="filter", whole=True),
        Kind("filter", filter_plots.bands, needs="filter"),
        Kind("evidence", filter_plots.evidence, needs="filter", whole=True),
        Kind("genealogy", filter_plots.genealogy, needs="filter", whole=True),
    )
}
