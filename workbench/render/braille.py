"""Curves of Braille characters: two by four dots in each, all chains over one another."""

from __future__ import annotations

from typing import Any

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row from the top, and column
_ASCII = " .:-=+*#"


def curves(values: Any, width: int = 60, height: int = 1, ascii: bool = False) -> list[str]:
    """``values [chains, n]`` as ``height`` lines of ``width`` characters: the mean of each chain in each column.

    With ``ascii`` the mean of all chains, one character for each column.
    """
    import numpy as np

    values = np.atleast_2d(np.asarray(values, dtype=float))
    if values.shape[1] == 0 or not np.isfinite(values).any():
        return [" " * width] * height
    columns = width if ascii else 2 * width
    means = _means(np.where(np.isfinite(values), values, np.nan), columns)
    low, high = np.nanmin(means), np.nanmax(means)
    levels = (len(_ASCII) - 2) if ascii else 4 * height - 1
    scaled = np.full(means.shape, 0.5) if high == low else (means - low) / (high - low)
    if ascii:
        found = np.nanmean(scaled, axis=0)
        line = "".join(" " if np.isnan(v) else _ASCII[1 + round(float(v) * levels)] for v in found)
        return [line.ljust(width)[:width]] + [" " * width] * (height - 1)
    cells = np.zeros((height, width), dtype=int)
    for chain in scaled:
        for column, v in enumerate(chain):
            if not np.isnan(v):
                row = levels - round(float(v) * levels)
                cells[row // 4, column // 2] |= _DOTS[row % 4][column % 2]
    return ["".join(chr(0x2800 + int(cell)) for cell in line) for line in cells]


def _means(values: Any, columns: int) -> Any:
    """The mean over each of so many equal shares of the axis; the values themselves where they are fewer."""
    import numpy as np

    n = values.shape[1]
    if n <= columns:
        spread = np.full((values.shape[0], columns), np.nan)
        spread[:, (np.arange(n) * columns) // n] = values
        filled = np.maximum.accumulate(np.where(np.isnan(spread[:1]), 0, np.arange(columns)), axis=1)[0]
        return spread[:, filled]
    edges = (np.arange(columns + 1) * n) // columns
    kept = np.nan_to_num(values)
    sums = np.add.reduceat(kept, edges[:-1], axis=1)
    counts = np.add.reduceat((~np.isnan(values)).astype(float), edges[:-1], axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def bar(share: float, width: int, ascii: bool = False) -> str:
    """A bar that is filled to a share of its width."""
    share = min(max(share, 0.0), 1.0)
    full = int(share * width)
    if ascii:
        return "#" * full + "." * (width - full)
    eighth = int((share * width - full) * 8)
    part = " ▏▎▍▌▋▊▉"[eighth] if full < width else ""
    return ("█" * full + part).ljust(width)
