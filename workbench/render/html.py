"""Trees as HTML: a `<details>` for each submap, no script, colours of the page it is on."""

from __future__ import annotations

from html import escape

from workbench.render.nodes import path
from workbench.render.rows import Row
from workbench.render.screen import Screen
from workbench.render.spark import svg
from workbench.render.tree import Tree

BYTES = 60_000  # of one display
_ROWS = 240
_OPEN = 8  # entries that a submap has at most to be open at first

# Without a style sheet, as on pages that remove it, rows are still in order and their cells apart.
_STYLE = """<style>
.genmlx-tree{font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px);line-height:1.5;
color:var(--jp-ui-font-color1,inherit);overflow-x:auto;white-space:nowrap}
.genmlx-tree .b{padding-left:2ch}.genmlx-tree span{display:inline-block;white-space:pre;vertical-align:top}
.genmlx-tree .r{padding-left:1.1em}.genmlx-tree summary{cursor:pointer}
.genmlx-tree .d{color:var(--jp-ui-font-color2,gray)}.genmlx-tree .l{text-align:right}
.genmlx-tree .x{color:var(--jp-error-color1,#c62828)}
</style>"""


def tree_html(tree: Tree) -> str:
    """A tree as HTML, of 60 KB at most: where there is more, fewer rows are shown."""
    screen = Screen()
    budget = max(_ROWS, min(tree.look.rows or 0, 4 * _ROWS))
    while True:
        text = _page(tree, screen, budget)
        if len(text.encode()) <= BYTES or budget <= 10:
            return text
        budget //= 2


def _page(tree: Tree, screen: Screen, budget: int) -> str:
    rows = tree.rows(screen, budget)
    widths = _Widths(rows)
    head, *rest = tree.head(screen)
    style = ' class="x"' if tree.bad else ""
    foot = tree.foot(screen)
    return "".join(
        [
            _STYLE,
            '<div class="genmlx-tree">',
            f"<div{style}><b>{escape(head)}</b>{''.join(f'&ensp; {escape(part)}' for part in rest)}</div>",
            "".join(_row(row, 0, widths) for row in rows),
            f"<div>{escape(foot)}</div>" if foot else "",
            "</div>",
        ]
    )


class _Widths:
    """Of the columns, in characters. Labels lose two for each level."""

    def __init__(self, rows: list[Row]):
        self.name = self.value = self.kind = self.lp = 0
        self._measure(rows, 0)
        self.value = min(self.value, 60)

    def _measure(self, rows: list[Row], depth: int) -> None:
        for row in rows:
            note = 2 + len(row.note) if row.note and not row.is_leaf and not row.more else 0
            spill = max(0, len(row.name) + note - 24) if not row.is_leaf else 0
            self.name = max(self.name, 0 if row.more else len(row.name) + note - spill + 2 * depth)
            self.value, self.kind = max(self.value, len(row.value)), max(self.kind, len(row.kind))
            self.lp = max(self.lp, len(row.lp))
            self._measure(row.rows, depth + 1)


def _row(row: Row, depth: int, widths: _Widths) -> str:
    if row.more:
        return f'<div class="r d">{escape(row.label)} &ensp; {escape(row.note)}</div>'
    cells = _cells(row, depth, widths)
    if not row.rows:
        return f'<div class="r">{cells}</div>'
    below = "".join(_row(child, depth + 1, widths) for child in row.rows)
    is_open = " open" if depth < 2 and len(row.rows) <= _OPEN else ""
    return f'<details{is_open}><summary>{cells}</summary><div class="b">{below}</div></details>'


def _cells(row: Row, depth: int, widths: _Widths) -> str:
    title = f' title="{escape(path(row.address))}"' if row.address else ""
    bad = ' class="x"' if row.bad else ""
    note = f'  <span class="d">{escape(row.note)}</span>' if row.note else ""
    label = f"<span{bad}{title}>{escape(row.name)}</span>{note}"
    cells = [_cell(label, widths.name - 2 * depth + 2)]
    if row.value or widths.value and (row.kind or row.lp or row.has_picture):
        cells.append(_cell(escape(Screen().clip(row.value, widths.value)), widths.value + 2))
    if widths.kind and (row.kind or row.lp or row.has_picture):
        cells.append(_cell(escape(row.kind), widths.kind + 2, "d"))
    if widths.lp and (row.lp or row.has_picture):
        cells.append(_cell(escape(row.lp), widths.lp, "l d"))
    picture = svg(row.line) if row.line else svg(row.bars, bars=True) if row.bars else ""
    if row.has_picture:
        cells.append(f"&ensp;{picture} {escape(row.remark)}")
    return " ".join(cells)


def _cell(inner: str, width: int, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<span{kind} style="width:{width}ch">{inner}</span>'
