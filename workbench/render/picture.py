"""The panels of a figure as text: lines, points and bars as Braille dots, or as shades where there is no Braille."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.render.screen import Screen

_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_SHADES = " ..::**##"  # by the number of dots in a cell
_HIGH, _GAP = 5, 2
_THICK = 2.5  # the width from which a line is drawn thick


def picture(figure: Any, screen: Screen | None = None) -> list[str]:
    """Lines of text that show the panels of a figure, where they are, with titles and the ends of the axes.

    What has the gid ``divergent`` is shown as x, what has the gid ``detail`` not at all.
    """
    screen = screen or Screen()
    rows: dict[int, list[Any]] = {}
    for axes in figure.axes:
        rows.setdefault(axes.get_subplotspec().rowspan.start, []).append(axes)
    lines = [figure.get_suptitle()] if figure.get_suptitle() else []
    for number in sorted(rows):
        lines += _row(rows[number], screen)
    return [line.rstrip() for line in lines]


def _row(panels: list[Any], screen: Screen) -> list[str]:
    """Panels side by side, each as wide as its share of the figure."""
    grid = panels[0].get_subplotspec().get_gridspec()
    shares = np.array(grid.get_width_ratios(), dtype=float)
    room = screen.width - _GAP * (grid.ncols - 1)
    widths = (room * shares / shares.sum()).astype(int)
    high = max(_height(axes) for axes in panels)
    blocks: list[list[str]] = []
    there = {axes.get_subplotspec().colspan.start: axes for axes in panels}
    for column, width in enumerate(widths):
        block = _panel(there[column], int(width), high, screen) if column in there else []
        blocks.append([line.ljust(width) for line in block] + [" " * width] * (high + 2 - len(block)))
    return [(" " * _GAP).join(parts) for parts in zip(*blocks, strict=True)]


def _height(axes: Any) -> int:
    return max(_HIGH, len(_labels(axes)))


def _labels(axes: Any) -> dict[float, str]:
    """The words at the ticks of the vertical axis, where those are words."""
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=False)
    words = {float(tick): text.get_text() for tick, text in ticks if text.get_text()}
    numbers = all(text.replace("\N{MINUS SIGN}", "-").lstrip("-").replace(".", "").isdigit() for text in words.values())
    return {} if numbers or axes.get_yscale() == "log" else words


def _panel(axes: Any, width: int, high: int, screen: Screen) -> list[str]:
    (left, right), (low, up) = axes.get_xlim(), axes.get_ylim()
    words = _labels(axes)
    gutter = min(max(map(len, words.values()), default=-1) + 1, width // 2)
    names = [""] * high
    for tick, word in words.items():
        share = (tick - low) / (up - low)
        if 0 <= share <= 1:
            names[min(high - 1, int((1 - share) * high))] = word
    canvas = _Canvas(width - gutter, high)
    for artist in [*axes.patches, *axes.collections, *axes.lines]:
        canvas.draw(axes, artist)
    rows = [screen.clip(name, gutter - 1).ljust(gutter) + row if gutter else row
            for name, row in zip(names, canvas.rows(screen.ascii), strict=True)]  # fmt: skip
    title = axes.get_title(loc="left") or axes.get_title()
    ends = _ends(left, right, axes.get_xlabel(), width - gutter, screen)
    return [screen.clip(title, width), *rows, " " * gutter + ends]


def _ends(left: float, right: float, label: str, width: int, screen: Screen) -> str:
    """The two ends of an axis, and its label between them."""
    first, last = f"{left:.3g}", f"{right:.3g}"
    room = width - len(first) - len(last) - 2
    middle = label if len(label) <= room else ""
    return screen.clip(f"{first} {middle:^{max(room, 0)}} {last}", width)


class _Canvas:
    """Dots, two by four in each character, and which characters are crosses."""

    def __init__(self, width: int, height: int):
        self.dots = np.zeros((4 * height, 2 * width), dtype=bool)
        self.crosses = np.zeros((height, width), dtype=bool)

    def draw(self, axes: Any, artist: Any) -> None:
        if not artist.get_visible() or artist.get_gid() == "detail":
            return
        marked = artist.get_gid() == "divergent"
        if hasattr(artist, "get_xydata"):
            points = self._places(axes, artist.get_transform(), artist.get_xydata())
            if artist.get_linestyle() == "None":
                self._points(points, marked)
            else:
                thick = artist.get_linewidth() > _THICK
                for shift in (-1, 0, 1) if thick else (0,):
                    self._line(points + [0, shift], artist.get_linestyle() not in ("-", "solid"))
        elif hasattr(artist, "get_width"):  # a bar
            box = artist.get_bbox()
            self._bar(self._places(axes, axes.transData, np.array([[box.x0, box.y0], [box.x1, box.y1]])))
        elif len(offsets := artist.get_offsets()) and hasattr(artist, "get_sizes") and len(artist.get_sizes()):
            self._points(self._places(axes, artist.get_offset_transform(), np.asarray(offsets)), marked)

    def _places(self, axes: Any, transform: Any, points: np.ndarray) -> np.ndarray:
        """Data as columns and rows of dots, not yet rounded."""
        share = axes.transAxes.inverted().transform(transform.transform(np.asarray(points, dtype=float)))
        rows, columns = self.dots.shape
        return np.stack([share[:, 0] * (columns - 1), (1 - share[:, 1]) * (rows - 1)], axis=1)

    def _points(self, places: np.ndarray, marked: bool = False) -> None:
        places = places[np.isfinite(places).all(axis=1)]
        column, row = np.round(places).astype(int).T
        rows, columns = self.dots.shape
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        if marked:
            self.crosses[row[inside] // 4, column[inside] // 2] = True
        else:
            self.dots[row[inside], column[inside]] = True

    def _line(self, places: np.ndarray, dashed: bool) -> None:
        """Joined points; where there are several in each column, as in a trace, their means."""
        columns = self.dots.shape[1]
        if len(places) > 2 * columns and (np.diff(places[:, 0]) >= 0).all():
            places = _means(places, columns)
        if len(places) == 1:
            return self._points(places)
        parts = []
        for start, end in zip(places, places[1:], strict=False):
            if np.isfinite([start, end]).all():
                steps = int(min(np.abs(end - start).max(), 4 * max(self.dots.shape))) + 1
                parts.append(start + (end - start) * np.linspace(0, 1, steps + 1)[:, None])
        if parts:
            joined = np.concatenate(parts)
            self._points(joined[::4] if dashed else joined)

    def _bar(self, corners: np.ndarray) -> None:
        rows, columns = self.dots.shape
        (left, bottom), (right, top) = np.round(corners).astype(int)
        if top != bottom:
            column = slice(max(left, 0), max(min(max(right, left + 1), columns), 0))
            self.dots[max(top, 0) : min(bottom + 1, rows), column] = True

    def rows(self, ascii: bool) -> list[str]:
        rows, columns = self.dots.shape
        cells = self.dots.reshape(rows // 4, 4, columns // 2, 2).transpose(0, 2, 1, 3)
        if ascii:
            text = [[_SHADES[n] for n in line] for line in cells.sum(axis=(2, 3))]
        else:
            text = [[chr(0x2800 + n) for n in line] for line in (cells * _DOTS).sum(axis=(2, 3))]
        return ["".join("x" if cross else cell for cell, cross in zip(line, crosses, strict=True))
                for line, crosses in zip(text, self.crosses, strict=True)]  # fmt: skip


def _means(places: np.ndarray, columns: int) -> np.ndarray:
    """One point for each column that has any."""
    places = places[np.isfinite(places).all(axis=1)]
    column, which = np.unique(np.round(places[:, 0]).astype(int), return_inverse=True)
    counts = np.bincount(which)
    return np.stack([column.astype(float), np.bincount(which, places[:, 1]) / counts], axis=1)
