"""One notebook in one process: runs its cells, keeps their outputs, and reports the first error.

`genmlx-nb` starts this module as a subprocess; see `workbench/runner.py`.
"""

from __future__ import annotations

import base64
import faulthandler
import io
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

from .execute import (
    CellCompiler,
    deeper_frames,
    describe_cell,
    describe_error,
    error_line,
    excerpt,
    run_cell,
)
from .percent import Cell, NotebookError, read_notebook

GRACE = 5.0
"""Seconds between asking a cell to stop and ending the process: `mx.eval` cannot be interrupted."""


class CellTimeout(BaseException):
    """Not an Exception, so that a cell which catches those still stops."""


class Publisher(DisplayPublisher):
    def publish(self, data: Any, metadata: Any = None, *args: Any, **kwargs: Any) -> None:
        shell: Any = self.shell
        display_id = (kwargs.get("transient") or {}).get("display_id")
        shell.publish(_jsonable(data), metadata or {}, display_id, kwargs.get("update", False))

    def clear_output(self, wait: bool = False) -> None:
        shell: Any = self.shell
        shell.outputs.clear()


class ResultHook(DisplayHook):
    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:
        shell: Any = self.shell
        shell.outputs.append(
            {
                "output_type": "execute_result",
                "data": _jsonable(format_dict),
                "metadata": md_dict or {},
                "execution_count": self.prompt_count,
            }
        )


class NotebookShell(InteractiveShell):
    """A shell without a terminal: what a cell shows goes to `outputs`, in nbformat's shape and in order."""

    display_pub_class = Type(Publisher)
    displayhook_class = Type(ResultHook)
    compiler_class = Type(CellCompiler)

    def __init__(self, **kwargs: Any) -> None:
        self.outputs: list[dict[str, Any]] = []
        self.displays: dict[str, list[dict[str, Any]]] = {}
        super().__init__(**kwargs)

    def publish(self, data: Any, metadata: Any, display_id: str | None, update: bool) -> None:
        shown = self.displays.setdefault(display_id, []) if display_id else []
        if update:
            for output in shown:
                output.update(data=data, metadata=metadata)
            return
        output = {"output_type": "display_data", "data": data, "metadata": metadata}
        self.outputs.append(output)
        shown.append(output)

    def write(self, name: str, text: str) -> None:
        last = self.outputs[-1] if self.outputs else {}
        if last.get("name") == name:
            last["text"] += text
        else:
            self.outputs.append({"output_type": "stream", "name": name, "text": text})

    def _showtraceback(self, etype: Any, evalue: Any, stb: Any) -> None:
        self.outputs.append({"output_type": "error", "ename": etype.__name__, "evalue": str(evalue), "traceback": stb})


class Stream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` of a cell."""

    def __init__(self, shell: NotebookShell, name: str) -> None:
        self.shell = shell
        self.stream_name = name

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if text:
            self.shell.write(self.stream_name, text)
        return len(text)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `CellTimeout` after so many seconds; end the process, with its stacks shown, `GRACE` later."""

    def stop(signum: int, frame: Any) -> None:
        raise CellTimeout(f"ran longer than {seconds:g} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def run_notebook(path: str, timeout: float, report: Path, out: Path | None) -> None:
    """Run the notebook; `report` says `{"running": cell}`, and at the end `{"error": text or None}`."""

    def tell(**what: str | None) -> None:
        report.write_text(json.dumps(what))

    try:
        cells = read_notebook(path)
    except (OSError, UnicodeDecodeError, SyntaxError, NotebookError) as error:
        return tell(error=f"{path}: cannot be read: {error}")
    if cells is None:
        return tell(error=f"{path}: not a notebook: no line starts with # %%")

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.GenMagics.reload = False
    shell: Any = NotebookShell.instance(config=config)
    shell.extension_manager.load_extension("magics")
    shell.user_ns["__file__"] = path
    shell.user_ns["exit"] = shell.user_ns["quit"] = sys.exit
    sys.path.insert(0, str(Path(path).resolve().parent))
    sys.argv = [path]
    sys.stdout, sys.stderr = Stream(shell, "stdout"), Stream(shell, "stderr")

    executed: list[tuple[Cell, int | None, list[Any]]] = []
    message: str | None = None
    ended = False
    for cell in cells:
        if cell.kind != "code" or ended:
            executed.append((cell, None, []))
            continue
        seconds = float(cell.metadata.get("genmlx", {}).get("timeout", timeout))
        tell(running=describe_cell(path, cell, cell.line))
        shell.outputs = []
        count = shell.execution_count
        with time_limit(seconds):
            result = run_cell(shell, cell)
        executed.append((cell, count, shell.outputs))
        error = result.error_before_exec or result.error_in_exec
        ended = error is not None
        if error is not None and not (isinstance(error, SystemExit) and not error.code):
            message = describe_error(path, cell, error) + "\n" + excerpt(cell, error_line(cell, error))
            if not isinstance(error, (UsageError, CellTimeout)):
                message += deeper_frames(cell, error)
    if out is not None:
        write_ipynb(out, executed)
    tell(error=message)


def write_ipynb(out: Path, executed: list[tuple[Cell, int | None, list[Any]]]) -> None:
    import nbformat
    from nbformat import v4

    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    for cell, count, outputs in executed:
        metadata = {**cell.metadata, **({"title": cell.title} if cell.title else {})}
        if cell.kind == "code":
            made = v4.new_code_cell(cell.source, metadata=metadata, execution_count=count)
            made.outputs = [nbformat.from_dict(output) for output in outputs]
        elif cell.kind == "markdown":
            made = v4.new_markdown_cell(cell.source, metadata=metadata)
        else:
            made = v4.new_raw_cell(cell.source, metadata=metadata)
        notebook.cells.append(made)
    nbformat.validate(notebook)
    nbformat.write(notebook, str(out))


def _jsonable(data: dict[str, Any]) -> dict[str, Any]:
    """Image bytes as nbformat keeps them."""
    return {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in data.items()}


if __name__ == "__main__":
    notebook, timeout, report, out = sys.argv[1:]
    run_notebook(notebook, float(timeout), Path(report), Path(out) if out else None)
