"""How IPython shows choice maps, traces and results: as trees and tables, in HTML where somebody can see it."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from workbench.render.block import Block
from workbench.render.html import tree_html
from workbench.render.screen import Screen
from workbench.render.text import tree_text
from workbench.render.tree import Look, Tree
from workbench.report import Report

_GLYPHS = "├└│─±…▁█"


Part = Tree | Block | Report | str


def mimebundle(thing: Any) -> dict[str, str]:
    """What is shown of a value at the end of a cell."""
    return bundle(_picture(thing))


def pretty(thing: Any, printer: Any, cycle: bool) -> None:
    """A value on its own is a tree, or a table; within a list or a dict it is one line."""
    nested = len(printer.stack) > 1
    printer.text(repr(thing) if nested or cycle else _text(_picture(thing), current_screen()))


def _picture(thing: Any) -> Tree | Report:
    """The tree of choices, or what the result of an algorithm is worth."""
    name = name_in_session(thing)
    if hasattr(thing, "timing"):
        return Report(thing, getattr(thing, "algorithm", ""), name)
    return Tree(thing, Look(name=name))


class Shown:
    """A tree or a block, with text around it, as IPython displays it."""

    def __init__(self, *parts: Part):
        self.parts = parts

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return bundle(*self.parts)

    def __repr__(self) -> str:
        return bundle(*self.parts)["text/plain"]


def bundle(*parts: Part) -> dict[str, str]:
    screen = current_screen()
    found = {"text/plain": "\n".join(_text(part, screen) for part in parts)}
    if wants_html():
        found["text/html"] = "".join(map(_html, parts))
    return found


def _text(part: Part, screen: Screen) -> str:
    if isinstance(part, Tree):
        return tree_text(part, screen)
    return part if isinstance(part, str) else part.text(screen)


def _html(part: Part) -> str:
    from html import escape

    if isinstance(part, Tree):
        return tree_html(part)
    return f"<pre>{escape(part)}</pre>" if isinstance(part, str) else part.html()


def shell() -> Any:
    """The IPython shell that runs, if one does."""
    module = sys.modules.get("IPython.core.getipython")
    return None if module is None else module.get_ipython()


def current_screen() -> Screen:
    """The width and the characters of the output, and its colours if it is a terminal that wants them."""
    ip = shell()
    settings = getattr(getattr(ip, "_genmlx_session", None), "settings", None)
    terminal = sys.stdout.isatty()
    width = 88 if settings is None else settings.width
    if terminal:
        width = min(width, _columns())
    plain = not terminal or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    colours = hasattr(ip, "pt_app") and str(getattr(ip, "colors", "nocolor")).lower() != "nocolor"
    ascii = (settings is not None and settings.ascii) or not _writes(_GLYPHS)
    return Screen(max(width, 40), ascii, colours and not plain)


def _columns() -> int:
    """The columns of the terminal as it is now; the variable COLUMNS may be of another one, or of before."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


def _writes(characters: str) -> bool:
    """Whether the output can encode some characters."""
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def wants_html() -> bool:
    """Whether HTML is shown anywhere: a terminal drops it."""
    formatter = getattr(shell(), "display_formatter", None)
    return formatter is None or "text/html" in formatter.active_types


def name_in_session(thing: Any) -> str:
    """What the user calls a value; ``_`` is what was shown last."""
    names = getattr(shell(), "user_ns", {})
    found = [name for name, value in list(names.items()) if value is thing and name.isidentifier()]
    return next((name for name in found if not name.startswith("_")), "_tr" if "_tr" in found else "_")
