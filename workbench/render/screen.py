"""Where something is shown: how wide it is, which characters it has, whether it has colours."""

from __future__ import annotations

from typing import NamedTuple

STYLES = {"dim": "\x1b[2m", "bad": "\x1b[31m", "bold": "\x1b[1m"}


class Screen(NamedTuple):
    """``width`` in columns; ``ascii`` without box drawing, blocks and ±; ``color`` with escape sequences."""

    width: int = 88
    ascii: bool = False
    color: bool = False

    @property
    def branch(self) -> str:
        return "|-- " if self.ascii else "├── "

    @property
    def last(self) -> str:
        return "`-- " if self.ascii else "└── "

    @property
    def trunk(self) -> str:
        return "|   " if self.ascii else "│   "

    @property
    def ellipsis(self) -> str:
        return "..." if self.ascii else "…"

    @property
    def within(self) -> str:
        """Between a mean and a deviation."""
        return "+-" if self.ascii else "±"

    def clip(self, text: str, width: int) -> str:
        """The text, cut to a width with an ellipsis."""
        if len(text) <= width:
            return text
        return text[: max(0, width - len(self.ellipsis))] + self.ellipsis[: max(0, width)]

    def paint(self, text: str, style: str) -> str:
        return f"{STYLES[style]}{text}\x1b[0m" if self.color and style and text.strip() else text


PLAIN = Screen()
