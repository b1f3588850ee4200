"""A line of a tree, before it is text or HTML."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.render.screen import Screen
from workbench.render.spark import spark


class Row:
    """Its cells as text, the numbers of its picture (a ``line`` or ``bars``), and the rows below it.

    A row has a value and a kind, or a note. ``more`` stands for rows that are left out; its note says how to see them.
    """

    __slots__ = (
        "address", "mark", "label", "note", "value", "kind", "lp", "line", "bars", "remark", "bad", "more", "rows"
    )  # fmt: skip

    def __init__(self, address: tuple = (), label: str = "", note: str = "", more: bool = False):
        self.address, self.label, self.note, self.more = address, label, note, more
        self.mark = self.value = self.kind = self.lp = self.remark = ""
        self.line: Sequence[float] = ()
        self.bars: Sequence[float] = ()
        self.bad = False
        self.rows: list[Row] = []

    @property
    def name(self) -> str:
        return f"{self.mark} {self.label}" if self.mark else self.label

    @property
    def is_leaf(self) -> bool:
        return bool(self.value or self.kind)

    @property
    def has_picture(self) -> bool:
        return bool(self.remark or self.line or self.bars)

    def picture(self, screen: Screen, width: int, remark: bool = True) -> str:
        drawn = spark(self.line, width, screen.ascii) or spark(self.bars, width, screen.ascii, zero=True)
        return "  ".join(part for part in (drawn, self.remark if remark else "") if part)
