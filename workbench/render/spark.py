"""Small pictures of a few numbers: a line of blocks, and the same as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-:=+*#"
_BAD = "!"


def spark(values: Sequence[float], width: int = 12, ascii: bool = False, zero: bool = False) -> str:
    """One block for each number, from the smallest to the largest, or from zero; means where there are too many.

    A number that is not finite is ``!``.

    >>> spark([1, 2, 3, 2, 1]), spark([1, math.inf, 3]), spark([1, 2, 3], ascii=True)
    ('▁▅█▅▁', '▁!█', '_=#')
    """
    ramp = ASCII if ascii else BLOCKS
    top = len(ramp) - 1
    return "".join(_BAD if level is None else ramp[round(level * top)] for level in levels(values, width, zero))


def levels(values: Sequence[float], width: int, zero: bool = False) -> list[float | None]:
    """The numbers on a scale from 0 to 1, in at most ``width`` groups; None for a group that is not finite."""
    groups = _means(values, width)
    finite = [v for v in groups if math.isfinite(v)]
    if not finite:
        return [None] * len(groups)
    low, high = 0.0 if zero else min(finite), max(finite)
    spread = high - low
    return [((v - low) / spread if spread else 0.5) if math.isfinite(v) else None for v in groups]


def _means(values: Sequence[float], width: int) -> list[float]:
    n = len(values)
    if n <= width:
        return list(values)
    edges = [round(i * n / width) for i in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]


def svg(values: Sequence[float], bars: bool = False, width: int = 72, height: int = 12) -> str:
    """A line through the numbers, or bars from zero, as inline SVG in the colour of the text.

    >>> svg([1, 2, 1]).count("<polyline"), svg([3, 1], bars=True).count("<rect")
    (1, 2)
    """
    shown = levels(values, width, zero=bars)
    head = f'<svg width="{width}" height="{height}" style="vertical-align:middle">'
    inner, n = height - 2, len(shown)
    if bars:
        step = width / max(n, 1)
        drawn = [
            f'<rect x="{i * step:.1f}" y="{1 + inner * (1 - v):.1f}" width="{max(step - 1, 0.5):.1f}" '
            f'height="{inner * v:.1f}" fill="currentColor" opacity=".6"/>'
            for i, v in enumerate(shown)
            if v is not None
        ]
        return f"{head}{''.join(drawn)}</svg>"
    step = (width - 2) / max(n - 1, 1)
    points = " ".join(f"{1 + i * step:.1f},{1 + inner * (1 - v):.1f}" for i, v in enumerate(shown) if v is not None)
    lost = [1 + i * step for i, v in enumerate(shown) if v is None]
    bad = "".join(f'<circle cx="{x:.1f}" cy="{height - 2}" r="1.5" fill="red"/>' for x in lost)
    return f'{head}<polyline points="{points}" fill="none" stroke="currentColor"/>{bad}</svg>'
