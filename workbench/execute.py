"""Running the cells of a file in an IPython shell, with the file's own name and line numbers."""

from __future__ import annotations

import ast
import linecache
import re
import traceback
from typing import TYPE_CHECKING, Any

from IPython.core.compilerop import CachingCompiler

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

    from .percent import Cell


_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class CellCompiler(CachingCompiler):
    """Compiles a cell under the name and at the line of the file that it comes from.

    IPython names each cell `In[n]` and starts it at line 1; a user who runs a file wants `notebook.py:41`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._place: tuple[str, str, int] | None = None
        self._shift: dict[str, int] = {}

    def place(self, source: str, filename: str, line: int) -> None:
        """Say where the cell with this source comes from, just before it runs."""
        self._place = (source, filename, line)

    def cache(self, transformed_code: str, number: int = 0, raw_code: str | None = None) -> str:
        if self._place is None or raw_code != self._place[0]:
            return super().cache(transformed_code, number, raw_code)
        _, filename, line = self._place
        self._place = None
        self._shift[filename] = line - 1
        return filename

    def ast_parse(self, source: str, filename: str = "<unknown>", symbol: str = "exec") -> ast.AST:
        shift = self._shift.get(filename, 0)
        try:
            tree = super().ast_parse(source, filename, symbol)
        except SyntaxError as error:
            error.lineno = (error.lineno or 1) + shift
            error.end_lineno = error.end_lineno and error.end_lineno + shift
            raise
        return ast.increment_lineno(tree, shift)


def run_cell(shell: InteractiveShell, cell: Cell) -> ExecutionResult:
    """Run one code cell; a failure is shown by the shell and returned in the result."""
    if not linecache.getlines(cell.filename):
        remember_source(cell.filename, cell.source)
    compiler: Any = shell.compile
    compiler.place(cell.source, cell.filename, cell.line)
    return shell.run_cell(cell.source, store_history=True)


def remember_source(filename: str, text: str) -> None:
    """Let tracebacks and `inspect.getsource` find code that is in no file."""
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)


def error_line(cell: Cell, error: BaseException) -> int:
    """The line of the cell at which the error arose."""
    if isinstance(error, SyntaxError) and error.filename == cell.filename and error.lineno:
        return error.lineno
    frames = _frames(cell, error)
    return (frames[0].lineno if frames else None) or cell.line


def describe_cell(path: str, cell: Cell, line: int) -> str:
    """`path:line (cell n)`, with the cell's title where it has one."""
    title = f' "# %% {cell.title}"' if cell.title else ""
    return f"{path}:{line} (cell {cell.number}{title})"


def describe_error(path: str, cell: Cell, error: BaseException) -> str:
    """`path:line (cell n) ValueError: message`."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    message = f": {plain(message)}" if message else ""
    return f"{describe_cell(path, cell, error_line(cell, error))} {type(error).__name__}{message}"


def plain(text: str) -> str:
    """Without colours and the like.

    >>> plain("\\x1b[1;31mred\\x1b[0m")
    'red'
    """
    return _ANSI.sub("", text)


def excerpt(cell: Cell, line: int) -> str:
    """The five lines of the file around a line of the cell."""
    lines = linecache.getlines(cell.filename)
    numbers = range(max(1, line - 2), min(len(lines), line + 2) + 1)
    return "\n".join(f"{'>' if n == line else ' '} {n:4} | {lines[n - 1].rstrip()}".rstrip() for n in numbers)


def deeper_frames(cell: Cell, error: BaseException, without: str = "") -> str:
    """One line for each call below the cell, down to where the error arose; none for those in the file `without`."""
    below = [frame for frame in _frames(cell, error)[1:] if frame.filename != without]
    return "".join(f"\n       in {frame.filename}:{frame.lineno} {frame.name}" for frame in below)


def _frames(cell: Cell, error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of the error from the innermost one inside the cell on."""
    frames = traceback.extract_tb(error.__traceback__)
    last = cell.line + cell.source.count("\n")
    for n in reversed(range(len(frames))):
        if frames[n].filename == cell.filename and cell.line <= (frames[n].lineno or 0) <= last:
            return frames[n:]
    return []
