"""Trees as text: a head, a row for each address in columns, the return value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from workbench.render.rows import Row
from workbench.render.screen import PLAIN, Screen
from workbench.render.tree import Tree

GAP = "   "


def tree_text(tree: Tree, screen: Screen = PLAIN) -> str:
    """A tree as the terminal shows it.

    >>> from genmlx import choicemap
    >>> print(tree_text(Tree(choicemap({"slope": 2.0, ("y", 0): 2.5, ("y", 1): 1}))))
    choicemap   3 addresses
    ├── slope   2     float
    └── y
        ├── 0   2.5   float
        └── 1   1     int
    """
    head = screen.clip(GAP.join(tree.head(screen)), screen.width)
    foot = screen.clip(tree.foot(screen), screen.width)
    head = screen.paint(head, "bad") if tree.bad else head
    return "\n".join(part for part in (head, *lines(tree.rows(screen), screen), foot) if part)


def lines(rows: Sequence[Row], screen: Screen) -> list[str]:
    flat = list(_flat(rows, "", screen))
    leaves = [(prefix, row) for prefix, row in flat if row.is_leaf]
    name = max((len(prefix) + len(row.name) for prefix, row in leaves), default=0)
    values = max((len(row.value) for _, row in leaves), default=0)
    kinds = max((len(row.kind) for _, row in leaves), default=0)
    numbers = max((len(row.lp) for _, row in flat), default=0)
    name = min(name, screen.width // 2)
    over = name + values + kinds + numbers + 3 * len(GAP) - screen.width
    values = max(min(values, 12), values - over) if over > 0 else values
    return [_line(prefix, row, (name, values, kinds, numbers), screen) for prefix, row in flat]


def _flat(rows: Sequence[Row], prefix: str, screen: Screen) -> Iterator[tuple[str, Row]]:
    for i, row in enumerate(rows):
        last = i == len(rows) - 1
        yield prefix + (screen.last if last else screen.branch), row
        if row.rows:
            yield from _flat(row.rows, prefix + ("    " if last else screen.trunk), screen)


def _line(prefix: str, row: Row, widths: tuple[int, int, int, int], screen: Screen) -> str:
    name, values, kinds, numbers = widths
    if row.more:
        return screen.paint(screen.clip(f"{prefix}{row.label}{GAP}{row.note}", screen.width), "dim")
    room, style = max(0, name - len(prefix)), "bad" if row.bad else ""
    if row.is_leaf:
        cells = [(screen.clip(row.name, room).ljust(room), style), (screen.clip(row.value, values).ljust(values), "")]
        if kinds:
            cells.append((row.kind.ljust(kinds), "dim"))
    else:
        room += len(GAP) + values + (len(GAP) + kinds if kinds else 0)
        cells = [(f"{row.name}  {row.note}".rstrip().ljust(room), style)]
    if numbers:
        cells.append((row.lp.rjust(numbers), "dim"))
    if row.has_picture:
        left = screen.width - len(prefix) - sum(len(text) + len(GAP) for text, _ in cells)
        cells.append((next((p for p in _pictures(row, screen) if p and len(p) <= left), ""), ""))
    while len(cells) > 1 and not cells[-1][0].strip():
        cells.pop()
    cells[-1] = (cells[-1][0].rstrip(), cells[-1][1])
    plain = prefix + GAP.join([text for text, _ in cells])
    if len(plain) > screen.width:
        return screen.clip(plain, screen.width)
    if not screen.color:
        return plain
    return screen.paint(prefix, "dim") + GAP.join(screen.paint(text, of) for text, of in cells)


def _pictures(row: Row, screen: Screen) -> Iterator[str]:
    """What may stand at the end of a row, the longest first. How to see what is closed goes before a picture of it."""
    yield row.picture(screen, 12)
    yield row.picture(screen, 8)
    if not row.is_leaf and not row.rows:
        yield row.remark
    yield row.picture(screen, 8, False)
