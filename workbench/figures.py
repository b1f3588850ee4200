"""What all figures are drawn on: one that shows itself, with its style, its colours, and panels in rows."""

from __future__ import annotations

import io
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.render.picture import picture
from workbench.render.screen import Screen

STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "font.size": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
}
INK, BAD, QUIET = "#1f5a8a", "#d62728", "#999999"


class Plot(Figure):
    """A matplotlib figure that a notebook shows as PNG, and a terminal without images as text.

    ``screen`` is where the text is shown, ``below`` a line under it.
    """

    def __init__(self, kind: str, **options: Any):
        super().__init__(layout="constrained", **options)
        self.kind, self.screen, self.below = kind, Screen(), ""

    def as_text(self) -> str:
        with rc_context(STYLE):
            return "\n".join([*picture(self, self.screen), *([self.below] if self.below else [])])

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.as_text())

    def __repr__(self) -> str:
        return f"<Plot {self.kind}: {len(self.axes)} panels>"


def new_plot(kind: str, note: str, width: float, height: float) -> Plot:
    plot = Plot(kind, figsize=(width, height))
    if note:
        plot.suptitle(note, fontsize=8, color=QUIET, ha="left", x=0.01)
    return plot


def grid(kind: str, note: str, count: int, height: float) -> tuple[Plot, list[Axes]]:
    """A figure with so many panels, three in a row."""
    columns = min(3, count)
    rows = -(-count // columns)
    plot = new_plot(kind, note, 2.8 * columns + 1.2, height * rows + 0.4)
    panels = list(plot.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.remove()
    return plot, panels[:count]
