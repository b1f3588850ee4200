"""A particle filter as it goes: effective size, evidence, and where it was resampled, in lines and in HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from workbench.render.braille import bar
from workbench.render.spark import ASCII, BLOCKS

_BAR, _ROOM = 20, 60
_WIDTH, _HEIGHT = 360, 40


def shows(info: dict) -> bool:
    """Whether a run tells of the steps of a filter."""
    return "history" in info and "particles" in info


def lines(title: str, progress: Any, speed: float, width: int = 88, ascii: bool = False) -> list[str]:
    """Six lines, however far it is: title, steps, effective size, numbers, the sizes so far, and marks below them."""
    info = progress.info
    n, history = info["particles"], info["history"]
    share = progress.done / max(progress.total, 1)
    groups = _groups(history, min(_ROOM, width - 8))
    ramp = ASCII if ascii else BLOCKS
    top = len(ramp) - 1
    sizes = "".join(ramp[round(min(ess / n, 1.0) * top)] for ess, _ in groups)
    marks = "".join("^" if resampled else " " for _, resampled in groups)
    shown = [
        f"{title}  {head(progress, speed)}",
        f" step   {bar(share, _BAR, ascii)} {progress.done:,} of {progress.total:,}",
        f" ess    {bar(info['ess'] / n, _BAR, ascii)} {info['ess']:,.0f} of {n:,}",
        f"        {'   '.join(numbers(info))}",
        f" sizes  {sizes}",
        f"        {marks}",
    ]
    return [line[:width].rstrip() for line in shown]


def html(
    title: str, progress: Any, speed: float, table: Callable[[list[tuple[str, ...]]], str], meter: Callable[..., str]
) -> str:
    """The same for a notebook, of constant height."""
    info = progress.info
    n = info["particles"]
    rows = [
        ("step", meter(progress.done / max(progress.total, 1)), f"{progress.done:,} of {progress.total:,}"),
        ("ess", meter(info["ess"] / n, "#ff7f0e"), f"{info['ess']:,.0f} of {n:,}"),
        ("sizes", svg(info["history"], n), " "),
    ]
    said = escape("   ".join(numbers(info)))
    style = "font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px)"
    return (
        f'<div style="{style}"><div><b>{escape(title)}</b> · {escape(head(progress, speed))}</div>{table(rows)}'
        f'<div style="white-space:pre">{said}</div></div>'
    )


def head(progress: Any, speed: float) -> str:
    minutes, seconds = divmod(progress.seconds, 60)
    return f"{progress.phase}  {speed:,.3g}/s  {minutes:.0f}:{seconds:04.1f}"


def numbers(info: dict) -> list[str]:
    """Evidence, temperature, how many steps were resampled, the acceptance of the last moves."""
    history, accept = info["history"], info.get("accept", float("nan"))
    resampled = sum(step.resampled for step in history)
    found = [f"log Z {info['log_ml']:.2f}", f"resampled {resampled:,} of {len(history):,}"]
    found += [f"temperature {info['temperature']:.3g}"] if "temperature" in info else []
    return found + ([f"moved {accept:.2f}"] if accept == accept else [])


def svg(history: Sequence[Any], n: int) -> str:
    """The effective sizes from 0 to ``n``, with a line at each step that was resampled, at most 200 of either."""
    groups = _groups(history, 200)
    step = _WIDTH / max(len(groups) - 1, 1)
    at = [(i * step, _HEIGHT - 1 - (_HEIGHT - 2) * min(ess / n, 1.0)) for i, (ess, _) in enumerate(groups)]
    marks = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}" stroke="#d62728" stroke-width="0.6" opacity=".5"/>'
        for (x, _), (_, resampled) in zip(at, groups, strict=True)
        if resampled
    )
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    line = f'<polyline points="{points}" fill="none" stroke="#1f77b4"/>'
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" style="vertical-align:middle">{marks}{line}</svg>'


def _groups(history: Sequence[Any], most: int) -> list[tuple[float, bool]]:
    """Mean effective size, and whether any was resampled, of each step, or of as many groups as fit."""
    steps = list(history)
    count = min(len(steps), most)
    edges = [i * len(steps) // count for i in range(count + 1)] if count else []
    parts = [steps[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return [(sum(s.ess for s in part) / len(part), any(s.resampled for s in part)) for part in parts]
