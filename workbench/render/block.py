"""A head line, a few aligned lines below it, and what comes after: how changes are shown."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from workbench.render.screen import PLAIN, Screen

GAP = "   "


class Block(NamedTuple):
    """``rows`` begin with a sign of one character; their other cells are columns."""

    head: str
    rows: tuple[tuple[str, ...], ...] = ()
    foot: tuple[str, ...] = ()

    def text(self, screen: Screen = PLAIN) -> str:
        """
        >>> rows = (" ", "slope", "1 -> 2", "lp -1"), ("+", "y", "3", "")
        >>> print(Block("update", rows, ("discard {slope: 1}",)).text())
        update
          slope   1 -> 2   lp -1
        + y       3
        discard {slope: 1}
        """
        columns = list(zip(*self.rows, strict=True))[1:]
        widths = [max(map(len, column)) for column in columns]
        if len(widths) > 1:  # the second column gives way to those behind it
            over = 2 + sum(widths) + len(GAP) * (len(widths) - 1) - screen.width
            widths[1] = max(min(widths[1], 16), widths[1] - over) if over > 0 else widths[1]
        lines = []
        for sign, *cells in self.rows:
            fitted = [screen.clip(cell, width).ljust(width) for cell, width in zip(cells, widths, strict=True)]
            lines.append(screen.clip(f"{sign} {GAP.join(fitted)}".rstrip(), screen.width))
        head, *foot = (screen.clip(line, screen.width) for line in (self.head, *self.foot))
        return "\n".join([head, *lines, *foot])

    def html(self) -> str:
        """The same as a table."""
        cell = '<td style="text-align:left;padding:0 2ch 0 0;border:0;line-height:1.5">'
        rows = ["".join(f"{cell}{escape(text)}</td>" for text in row) for row in self.rows]
        lines = "".join(f'<tr style="background:none">{row}</tr>' for row in rows)
        table = f'<table style="margin:2px 0;border:0;font-size:inherit">{lines}</table>' if rows else ""
        foot = "".join(f"<div>{escape(line)}</div>" for line in self.foot)
        font = "font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px)"
        return f'<div style="white-space:pre;{font}"><b>{escape(self.head)}</b>{table}{foot}</div>'
