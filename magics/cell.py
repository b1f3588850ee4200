"""The Python of a cell magic, compiled so that tracebacks, ``inspect`` and ``model??`` show it where it stands."""

from __future__ import annotations
import __future__

import ast
import linecache
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, NamedTuple

from magics.sugar import parse
from magics.tracebacks import show_users_frames

# What earlier cells have imported from __future__; IPython's other flags change what a syntax error says.
FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


class CellSyntaxError(SyntaxError):
    """A syntax error in the cell of a magic. Its cause is the error as Python made it."""


class Place(NamedTuple):
    """The file of a cell and the line of the magic in it; ``source`` says whether the file shows what was typed."""

    filename: str
    line: int
    source: bool


class CellCode:
    """The Python of a magic as a tree, which ``compile`` makes code of, under a name that tracebacks know.

    Of a cell magic they show the ``head`` for the line of the magic, and the body below it; a line magic has no head.
    """

    def __init__(self, ip: Any, head: str | None, body: str):
        self.body = body if body.endswith("\n") else body + "\n"
        self.place, self.flags = running_cell(ip), ip.compile.flags & FUTURES
        self.line, self.filename = self.place.line - (head is None), self.place.filename
        if not self.place.source:
            number = getattr(ip.compile, "_filename_map", {}).get(self.filename, ip.execution_count)
            self.filename = ip.compile.cache(self.body if head is None else f"{head}\n{self.body}", number)

    def show(self, text: str) -> None:
        """Show this from now on, with as many lines as the cell has, unless the code is in a file."""
        if not self.place.source:
            lines = text.splitlines(keepends=True)
            linecache.cache[self.filename] = (len(text), None, lines, self.filename)

    def parse(self) -> ast.Module:
        """The tree, with the lines of the cell. A syntax error is one of the cell."""
        with syntax_errors():
            return parse("\n" * self.line + self.body, self.filename, self.flags)

    def compile(self, tree: ast.Module | ast.Expression, mode: str = "exec") -> CodeType:
        with syntax_errors():
            return compile(tree, self.filename, mode, self.flags, dont_inherit=True)


class syntax_errors:
    """Make syntax errors those of a cell."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, SyntaxError):
            raise CellSyntaxError(*error.args) from error


def running_cell(ip: Any) -> Place:
    """Where the magic that runs stands: the innermost frame of the user's namespace is the call that it became."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals is not ip.user_global_ns:
        frame = frame.f_back
    if frame is None:
        return Place("<cell>", 1, False)
    name, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(name, line)
    written = bool(text) and "get_ipython().run_" not in text
    return Place(name, line if written else 1, written)


def show_plainly(session: Any) -> None:
    """Let IPython show a CellSyntaxError as it shows one of its own cells, without the frames of the magic."""
    ip = session.ip
    if CellSyntaxError in ip.custom_exceptions:
        return
    others, handler = ip.custom_exceptions, getattr(ip, "CustomTB", None)

    def show(shell: Any, kind: type, error: BaseException, traceback: Any, tb_offset: int | None = None) -> Any:
        if not isinstance(error, CellSyntaxError):
            assert handler is not None
            return handler(kind, error, traceback, tb_offset)
        try:
            raise (error.__cause__ or error).with_traceback(None) from None
        except SyntaxError:
            shell.showsyntaxerror()
        return None

    ip.set_custom_exc((*others, CellSyntaxError), show)

    def undo() -> None:
        ip.custom_exceptions = others
        if handler is not None:
            ip.CustomTB = handler

    session.at_end.append(undo)


def run_shown(ip: Any, run: Callable[[], Any]) -> Any:
    """What ``run`` returns. An error is shown from the code that it runs on, without the frames of the magic."""
    try:
        return run()
    except Exception as error:
        show_users_frames(ip, error)
        raise
