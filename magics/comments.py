"""Comments above a cell magic, where IPython expects the magic first (https://github.com/ipython/ipython/issues/15312)."""

from __future__ import annotations

from typing import Any

from magics.specs import SPECS

CELL_MAGICS = {f"%%{name}" for name, spec in SPECS.items() if spec.kind != "line"}


def install(session: Any) -> None:
    transforms = session.ip.input_transformers_cleanup
    transforms.append(comments_below)
    session.at_end.append(lambda: transforms.remove(comments_below))


def comments_below(lines: list[str]) -> list[str]:
    """The lines of a cell with the comments above one of our cell magics put below it: every line keeps its number.

    >>> comments_below(["# A line.\\n", "%%gen\\n", "def line(xs): ...\\n"])
    ['%%gen\\n', '# A line.\\n', 'def line(xs): ...\\n']
    """
    above = 0
    while above < len(lines) and (not lines[above].strip() or lines[above].lstrip().startswith("#")):
        above += 1
    if above in (0, len(lines)) or lines[above].split()[0] not in CELL_MAGICS:
        return lines
    magic = lines[above] if lines[above].endswith("\n") else lines[above] + "\n"
    return [magic, *lines[:above], *lines[above + 1 :]]
