"""The objective of variational inference as it climbs, in lines and in HTML."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

from workbench.render.braille import bar, curves

_BAR, _ROOM, _HEIGHT = 20, 60, 3


def shows(info: dict) -> bool:
    """Whether a run tells of the objective of its steps."""
    return callable(info.get("objective"))


def lines(title: str, progress: Any, speed: float, width: int = 88, ascii: bool = False) -> list[str]:
    """Title, steps, the objective and its rise, and a curve of it; as many lines however far it is."""
    room = min(_ROOM, width - 8)
    curve = curves(levels(progress.info["objective"]())[None], room, 1 if ascii else _HEIGHT, ascii)
    shown = [
        f"{title}  {head(progress, speed)}",
        f" step   {bar(progress.done / max(progress.total, 1), _BAR, ascii)} {progress.done:,} of {progress.total:,}",
        f" elbo   {'   '.join(numbers(progress.info))}",
        *(f"        {line}" for line in curve),
    ]
    return [line[:width].rstrip() for line in shown]


def html(
    title: str, progress: Any, speed: float, table: Callable[[list[tuple[str, ...]]], str], meter: Callable[..., str]
) -> str:
    """The same for a notebook, of constant height."""
    from workbench.live import svg

    rows = [
        ("step", meter(progress.done / max(progress.total, 1)), f"{progress.done:,} of {progress.total:,}"),
        ("elbo", svg(levels(progress.info["objective"]()), height=56), escape("   ".join(numbers(progress.info)))),
    ]
    style = "font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px)"
    top = f"<div><b>{escape(title)}</b> · {escape(head(progress, speed))}</div>"
    return f'<div style="{style}">{top}{table(rows)}</div>'


def head(progress: Any, speed: float) -> str:
    minutes, seconds = divmod(progress.seconds, 60)
    return f"{progress.phase}  {speed:,.3g}/s  {minutes:.0f}:{seconds:04.1f}"


def numbers(info: dict) -> list[str]:
    """The median of the last steps, and by how much it has risen in the last quarter of them."""
    import numpy as np

    objective = np.asarray(info["objective"]())
    n = len(objective)
    found = [f"{info['elbo']:.6g}"] if not math.isnan(info["elbo"]) else []
    if n >= 8:
        before, last = np.median(objective[n // 2 : 3 * n // 4]), np.median(objective[3 * n // 4 :])
        if math.isfinite(before) and math.isfinite(last):
            found.append(f"{last - before:+.2g} in the last quarter")
    return found


def levels(objective: Any) -> Any:
    """The objective, with the beginning of its climb cut off at the lowest of its last three quarters."""
    import numpy as np

    objective = np.asarray(objective, dtype=float)
    late = objective[len(objective) // 4 :]
    late = late[np.isfinite(late)]
    return np.where(np.isfinite(objective), np.maximum(objective, late.min()), np.nan) if late.size else objective
