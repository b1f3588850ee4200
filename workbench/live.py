"""Runs as they go: pictures between the blocks of an algorithm, at a bounded share of its time.

MLX's loops give the host a turn after each block of about 100 ms, so pictures are made there, by the thread that
samples: no locks, and no arrays that belong to another thread's stream. A terminal is painted over in place, a
notebook has one output that is replaced, and where nobody looks there are a few plain lines.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from workbench import live_elbo, live_filter
from workbench.render.braille import bar, curves
from workbench.render.screen import Screen

_FIRST = 0.3  # seconds before the first picture: short runs never flash
_PERIOD = {"text": 0.25, "html": 0.25, "mpl": 1.0, "plain": 0.0}
_SITES = 6
_MARKS = (0.1, 0.25, 0.5, 0.75, 1.0)
_SHORT, _LONG, _SILENT = 2.0, 30.0, 300.0
"""Seconds: no plain line before the first of these, none within the second of another, and one in each of the third."""
_LIMIT = re.compile(r"\s*(rhat|ess|divergences)\s*(<=|>=|<|>)\s*([\d.]+)\s*")


class Painter:
    """The progress callback of one run: draws it when there is time for that, and says when it is to stop."""

    def __init__(
        self,
        title: str,
        mode: str,
        width: int = 88,
        ascii: bool = False,
        share: float = 0.02,
        every: float | None = None,
        seconds: float | None = None,
        until: Callable[[dict], bool] | None = None,
        write: Callable[[str], Any] | None = None,
        terminal: bool = True,
    ):
        self.title, self.mode, self.width, self.ascii, self.share = title, mode, width, ascii, share
        self.terminal = terminal  # whether it can be painted over
        self.period = every if every is not None else _PERIOD.get(mode, 0.0)
        self.seconds, self.until = seconds, until
        self.write = write or (lambda text: (sys.stdout.write(text), sys.stdout.flush()))
        self.spent = 0.0
        self.figure: Any = None  # what `mpl` draws
        self.output: Any = None  # of a notebook, in which the last picture waits for the report
        self._next, self._cost, self._height, self._handle = _FIRST, 0.0, 0, None
        self._told: tuple[str, float] = ("", 0.0)
        self._line_at: float | None = None
        self._started: dict[str, tuple[float, int]] = {}

    def __call__(self, progress: Any) -> str | None:
        self._started.setdefault(progress.phase, (progress.seconds, progress.done))
        if self.mode != "off":
            start = time.perf_counter()
            if self.mode == "plain":
                self._plain(progress)
            elif progress.seconds >= self._next:
                self._paint(progress)
                cost = time.perf_counter() - start
                self._cost = cost if self._cost == 0 else 0.7 * self._cost + 0.3 * cost
                self._next = progress.seconds + max(self.period, self._cost / self.share)
            self.spent += time.perf_counter() - start
        return self._stop(progress)

    def _stop(self, progress: Any) -> str | None:
        if self.seconds is not None and progress.seconds >= self.seconds:
            return "time"
        if self.until is not None and progress.phase == "sampling" and self.until(progress.info):
            return "enough"
        return None

    def interrupted(self) -> None:
        """Say that the first Ctrl-C has been heard."""
        if self._height:
            self._height += 1
        if self.terminal:
            self.write("  stopping after this block (again to abort)\n")

    def finish(self) -> None:
        """Take the live picture of a terminal away: the report of the result follows."""
        if self._height:
            self.write(f"\x1b[{self._height}F\x1b[J")
            self._height = 0

    # pictures

    def _paint(self, progress: Any) -> None:
        if self.mode == "html":
            return self._show_html(progress)
        if self.mode == "mpl":
            return self._show_figure(progress)
        self._paint_over(frame(self.title, progress, self.speed(progress), self.width, self.ascii))

    def _paint_over(self, lines: list[str]) -> None:
        """Show some lines at a terminal, in the place of those before."""
        up = f"\x1b[{self._height}F" if self._height else ""
        self.write(up + "".join(f"\x1b[K{line}\n" for line in lines) + "\x1b[J")
        self._height = len(lines)

    def _show_html(self, progress: Any) -> None:
        from IPython.display import display

        lines = frame(self.title, progress, self.speed(progress), self.width, self.ascii)
        bundle = {"text/html": html(self.title, progress, self.speed(progress)), "text/plain": lines[0]}
        if self.output is None:
            self.output = display(bundle, raw=True, display_id=True)
        else:
            self.output.update(bundle, raw=True)

    def _show_figure(self, progress: Any) -> None:
        """The figure as an image where there is a notebook, and as text at a terminal."""
        from workbench.plots import live_figure

        self.figure = live_figure(progress, self.figure)
        if self.terminal:
            self.figure.screen = Screen(self.width, self.ascii)
            return self._paint_over(self.figure.as_text().splitlines())
        from IPython.display import display

        if self._handle is None:
            self._handle = display(self.figure, display_id=True)
        else:
            self._handle.update(self.figure)

    def _plain(self, progress: Any) -> None:
        """A line at some shares of each phase, at most every half minute; none in a short run, more in a long one."""
        share = progress.done / max(progress.total, 1)
        reached = max((mark for mark in _MARKS if share >= mark), default=0.0)
        phase, told = self._told
        mark = phase != progress.phase or reached > told
        if self._line_at is None:
            due = progress.seconds >= _SHORT
        else:
            due = progress.seconds - self._line_at >= (_LONG if mark else _SILENT)
        if not due:
            return
        self._told, self._line_at = (progress.phase, reached), progress.seconds
        numbers = "  ".join(_told(progress.info))
        self.write(
            f"[{self.title}] {progress.phase} {progress.done}/{progress.total}  {numbers}  "
            f"{self.speed(progress):.3g}/s\n"
        )

    def speed(self, progress: Any) -> float:
        """Steps of this phase in a second."""
        began, done = self._started[progress.phase]
        return (progress.done - done) / max(progress.seconds - began, 1e-9)


def _told(info: dict) -> list[str]:
    """The numbers of a run that are known, shortest form."""
    found = []
    for name, label, form in (
        ("rhat", "rhat", ".3f"),
        ("divergences", "div", "d"),
        ("step_size", "step", ".2g"),
        ("accept", "acc", ".2f"),
        ("n_leapfrog", "grads", ".1f"),
        ("ess", "ess", ".0f"),
        ("log_ml", "log Z", ".2f"),
        ("temperature", "temperature", ".3g"),
        ("elbo", "elbo", ".4g"),
        ("log_density", "log p", ".6g"),
    ):
        value = info.get(name)
        if isinstance(value, (int, float)) and value == value:
            found.append(f"{label} {value:{form}}")
    return found


def frame(title: str, progress: Any, speed: float, width: int = 88, ascii: bool = False) -> list[str]:
    """A picture of a run as lines: title, a row for each chain, a curve for each of some addresses."""
    if live_filter.shows(progress.info):
        return live_filter.lines(title, progress, speed, width, ascii)
    if live_elbo.shows(progress.info):
        return live_elbo.lines(title, progress, speed, width, ascii)
    minutes, seconds = divmod(progress.seconds, 60)
    head = f"{title}  {progress.phase} {progress.done}/{progress.total}  {speed:,.3g}/s  {minutes:.0f}:{seconds:04.1f}"
    lines = [head[:width]]
    share = progress.done / max(progress.total, 1)
    chains = _per_chain(progress.info)
    for i, numbers in enumerate(chains or [_told({k: v for k, v in progress.info.items() if k != "rhat"})]):
        label = f"{i:2d} " if chains else "   "
        lines.append(f"{label}{bar(share, 20, ascii)} {'  '.join(numbers)}"[:width])
    watched = _watched(progress.info)
    names = max((len(name) for name, _, _ in watched), default=0)
    room = max(10, min(60, width - names - 16))
    for name, values, rhat in watched:
        shown = f"rhat {rhat:.3f}" if rhat == rhat else ""
        lines.append(f" {name:<{names}}  {curves(values, room, 1, ascii)[0]}  {shown}".rstrip()[:width])
    return lines


def html(title: str, progress: Any, speed: float) -> str:
    """The same picture for a notebook: of constant height, with the curves as inline SVG."""
    if live_filter.shows(progress.info):
        return live_filter.html(title, progress, speed, _table, _meter)
    if live_elbo.shows(progress.info):
        return live_elbo.html(title, progress, speed, _table, _meter)
    share = progress.done / max(progress.total, 1)
    minutes, seconds = divmod(progress.seconds, 60)
    head = f"{progress.phase} {progress.done}/{progress.total} · {speed:,.3g}/s · {minutes:.0f}:{seconds:04.1f}"
    meter = _meter(share, faint=progress.phase == "warmup", width=420)
    chains = _per_chain(progress.info)
    numbers = chains or [_told({k: v for k, v in progress.info.items() if k != "rhat"})]
    rows = [("", *(escape(told.rpartition(" ")[0]) for told in numbers[0]))] if numbers[0] else []
    for i, (told, colour) in enumerate(zip(numbers, _COLOURS, strict=False)):
        label = f'<b style="color:{colour}">{i}</b>' if chains else ""
        rows.append((label, *(escape(one.rpartition(" ")[2]) for one in told)))
    sites = [
        (escape(name), svg(values), f"rhat {rhat:.3f}" if rhat == rhat else "")
        for name, values, rhat in _watched(progress.info)
    ]
    return (
        '<div style="font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px)">'
        f"<div><b>{escape(title)}</b> · {escape(head)}</div>{meter}{_table(rows)}{_table(sites)}</div>"
    )


def _meter(share: float, colour: str = "var(--jp-brand-color1,#1976d2)", faint: bool = False, width: int = 360) -> str:
    """A bar that is filled to a share of its width."""
    look = f"width:{share:.1%};height:6px;background:{colour}{';opacity:.5' if faint else ''}"
    return f'<div style="width:{width}px;height:6px;margin:4px 0;background:#8883"><div style="{look}"></div></div>'


def _table(rows: list[tuple[str, ...]]) -> str:
    """Rows of HTML without the stripes and the alignment that a notebook gives to tables."""
    cell = '<td style="text-align:left;padding:0 2ch 0 0;border:0;line-height:1.5;white-space:pre">'
    lines = "".join(f'<tr style="background:none">{"".join(f"{cell}{one}</td>" for one in row)}</tr>' for row in rows)
    return f'<table style="margin:4px 0;border:0;font-size:inherit">{lines}</table>' if rows else ""


_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")


def svg(values: Any, width: int = 360, height: int = 28) -> str:
    """Curves of some chains, at most 200 points of each."""
    import numpy as np

    from workbench.render.braille import _means

    values = np.atleast_2d(np.asarray(values, dtype=float))
    means = _means(values, 200) if values.shape[1] > 200 else values
    finite = means[np.isfinite(means)]
    if not finite.size:
        return f'<svg width="{width}" height="{height}" style="vertical-align:middle"></svg>'
    low, high = finite.min(), finite.max()
    scale = (height - 2) / (high - low) if high > low else 0.0
    paths = []
    for chain, colour in zip(means, _COLOURS * (1 + len(means) // len(_COLOURS)), strict=False):
        n = len(chain)
        points = " ".join(
            f"{i * width / max(n - 1, 1):.1f},{height - 1 - (v - low) * scale:.1f}"
            for i, v in enumerate(chain)
            if np.isfinite(v)
        )
        paths.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="0.8"/>')
    return f'<svg width="{width}" height="{height}" style="vertical-align:middle">{"".join(paths)}</svg>'


def _per_chain(info: dict) -> list[list[str]]:
    """The numbers of each chain, for at most eight of them."""
    found = info.get("chains")
    numbers: Any = found() if callable(found) else {}
    n = max((len(values) for values in numbers.values()), default=0)
    shared = {k: v for k, v in info.items() if k not in numbers and k not in ("rhat", "draws", "divergences")}
    return [_told({**shared, **{k: float(v[i]) if k != "divergences" else int(v[i]) for k, v in numbers.items()}})
            for i in range(min(n, 8))]  # fmt: skip


def _watched(info: dict) -> list[tuple[str, Any, float]]:
    """Name, values ``[chains, draws]`` and R-hat of some numbers, the worst R-hat first."""
    found = info.get("watch")
    values: Any = found() if callable(found) else {}
    if not values:
        return []
    import numpy as np

    from genmlx.diagnostics import rhat

    rows = []
    for name, array in values.items():
        enough = array.shape[1] >= 50
        rows.append((name, array, float(np.max(rhat(array))) if enough else float("nan")))
    rows.sort(key=lambda row: -row[2] if row[2] == row[2] else 0.0)
    return rows[:_SITES]


# which picture


def backend(ip: Any, asked: str | None) -> str:
    """How a run is shown: what was asked for, or what the surroundings can do."""
    forced = os.environ.get("GENMLX_DISPLAY")
    if forced in ("tty", "text", "html", "plain", "off"):
        return "text" if forced == "tty" else forced
    if asked in ("html", "off"):
        return asked
    if asked == "text":
        return "text" if sys.stdout.isatty() else "plain"
    if asked == "mpl" and (_notebook(ip) or _paintable()):
        return asked
    if any(os.environ.get(name) for name in ("CI", "GITHUB_ACTIONS", "GENMLX_CI")):
        return "plain"
    return "html" if _notebook(ip) else "text" if _paintable() else "plain"


def _notebook(ip: Any) -> bool:
    """Whether an output can be replaced by the next one."""
    from workbench.compat import is_console

    return (hasattr(ip, "kernel") or "IPKernelApp" in getattr(ip, "config", {})) and not is_console(ip)


def _paintable() -> bool:
    """Whether the output is a terminal that can be painted over."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def condition(text: str) -> Callable[[dict], bool]:
    """``"rhat<1.01, ess>400"`` as a condition on the numbers of a run; all must hold."""
    limits = []
    for part in text.split(","):
        found = _LIMIT.fullmatch(part)
        if found is None:
            raise ValueError(f"{part.strip()!r} is no condition: rhat<1.01, ess>400 or divergences>10")
        limits.append((found[1], found[2], float(found[3])))

    def holds(info: dict) -> bool:
        for name, sign, limit in limits:
            value = info.get(name)
            value = value() if callable(value) else value
            if value is None or value != value:
                return False
            if not {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[sign]:
                return False
        return True

    return holds


@contextmanager
def watch(plan: Any) -> Iterator[Painter]:
    """The painter of a ``%infer``, which takes its picture away at the end."""
    from workbench.display import current_screen

    line, session = plan.line, plan.session
    names, settings = session.names, session.settings
    asked = line.word("live") or settings.live
    mode = "off" if "quiet" in line else backend(session.ip, None if asked == "auto" else asked)
    until = line.word("until") or settings.until
    try:
        enough = condition(until) if until else None
    except ValueError as error:
        raise line.error(f"--until: {error}", line.options["until"]) from None
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    ascii = settings.ascii or not encoding.lower().startswith("utf")
    painter = Painter(
        plan.title(),
        mode,
        current_screen().width,
        ascii,
        settings.paint_share,
        line.value("every", names),
        line.value("time", names),
        enough,
        terminal=_paintable(),
    )
    try:
        yield painter
    finally:
        painter.finish()
        plan.output = painter.output
        if painter.figure is not None:
            session.bind(_fig=painter.figure)
