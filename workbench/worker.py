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
import time
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
    plain,
    run_cell,
)
from .ipynb import Executed, as_ipynb
from .memory import shown
from .parameters import inject
from .percent import Cell, NotebookError, notebook_cells

GRACE = 5.0
"""Seconds between asking a cell to stop and ending the process: `mx.eval` cannot be interrupted."""


class CellTimeout(BaseException):
    """Not an Exception, so that a cell which catches those still stops."""


class CellPeak(Exception):
    """A cell took more memory than it may."""


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
def time_limit(seconds: float) -> Iterator[list[CellTimeout]]:
    """Raise `CellTimeout` after so many seconds; end the process, with its stacks shown, `GRACE` later.

    The list has the error once it was raised: a cell may catch it, and is late all the same.
    """
    late: list[CellTimeout] = []

    def stop(signum: int, frame: Any) -> None:
        late.append(CellTimeout(f"ran longer than {seconds:g} s"))
        raise late[0]

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield late
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


class Run:
    """A notebook on its way: what `report` says of it, and the .ipynb in `out`, are as of the last cell.

    The report is `{"error": text or None, "line": of it, "cells": [...]}`. While a cell runs its status is "running".
    """

    def __init__(self, path: str, cells: list[Cell], report: Path, out: Path | None, max_peak: int | None):
        self.path, self.cells, self.report, self.out, self.max_peak = path, cells, report, out, max_peak
        self.shell = _shell(path)
        self.executed: list[Executed] = [(cell, None, []) for cell in cells]
        self.told: dict[str, Any] = {"error": None, "line": None, "cells": [_untouched(c) for c in self._code()]}

    def through(self, timeout: float) -> None:
        for number, cell in enumerate(self._code()):
            told = self.told["cells"][number]
            told.update(status="running", where=describe_cell(self._place(cell), cell, cell.line))
            self.save()
            told.pop("where")
            if self._run(cell, told, float(cell.metadata.get("genmlx", {}).get("timeout", timeout))):
                break
        self.save()
        if self.out is not None:
            import nbformat

            nbformat.validate(nbformat.read(self.out, as_version=4))

    def _run(self, cell: Cell, told: dict[str, Any], timeout: float) -> bool:
        """Run one cell; whether it is the last."""
        from magics.session import session

        shell, meter = self.shell, session(self.shell).memory.meter
        shell.outputs, meter.last = [], None
        count, start = shell.execution_count, time.perf_counter()
        with time_limit(timeout) as late:
            result = run_cell(shell, cell)
        told["seconds"] = time.perf_counter() - start
        if meter.last is not None:
            told["active_bytes"], told["peak_bytes"] = meter.last["active"], meter.last["peak"]
        raised = result.error_before_exec or result.error_in_exec
        error: BaseException | None = late[0] if late else raised
        if error is None and self.max_peak is not None and (told["peak_bytes"] or 0) > self.max_peak:
            error = CellPeak(f"took {shown(told['peak_bytes'])}, more than the {shown(self.max_peak)} of --max-peak")
        failed = error is not None and not (isinstance(error, SystemExit) and not error.code)
        told["status"] = "failed" if failed else "ok"
        if error is not None and failed:
            message, line = self._failure(cell, error)
            self.told.update(error=message, line=line)
            if raised is None:
                name, lines = type(error).__name__, message.splitlines()
                shell.outputs.append({"output_type": "error", "ename": name, "evalue": str(error), "traceback": lines})
        self.executed[self.cells.index(cell)] = (cell, count, shell.outputs)
        return error is not None

    def _failure(self, cell: Cell, error: BaseException) -> tuple[str, int]:
        """What the user is told of the error of a cell, and its line."""
        line = error_line(cell, error)
        message = describe_error(self._place(cell), cell, error) + "\n" + excerpt(cell, line)
        if not isinstance(error, UsageError):
            message += deeper_frames(cell, error, without=__file__)
        if isinstance(error, CellTimeout):
            said = [output["text"].strip() for output in self.shell.outputs if output.get("name") == "stdout"]
            message += f"\n       last printed: {plain(said[-1].splitlines()[-1])}" if said and said[-1] else ""
        return message, line

    def save(self) -> None:
        """So that both are there if the process does not live to the end of the next cell."""
        self.report.write_text(json.dumps(self.told))
        if self.out is not None:
            self.out.write_text(as_ipynb(self.executed), encoding="utf-8")

    def _code(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.kind == "code"]

    def _place(self, cell: Cell) -> str:
        return f"{self.path} -p" if cell.filename.endswith("#-p") else self.path


def _untouched(cell: Cell) -> dict[str, Any]:
    unknown = dict.fromkeys(("seconds", "active_bytes", "peak_bytes"))
    return {"cell": cell.number, "line": cell.line, "title": cell.title, "status": "not run", **unknown}


def _shell(path: str) -> Any:
    """The shell in which a notebook runs, as scripts do: what changes in files is not reloaded, Ctrl-C is an error."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.GenMagics.reload = False
    config.GenMagics.on_interrupt = "raise"
    shell: Any = NotebookShell.instance(config=config)
    shell.extension_manager.load_extension("magics")
    shell.user_ns["__file__"] = path
    shell.user_ns["exit"] = shell.user_ns["quit"] = sys.exit
    sys.path.insert(0, str(Path(path).resolve().parent))
    sys.argv = [path]
    sys.stdout, sys.stderr = Stream(shell, "stdout"), Stream(shell, "stderr")
    return shell


def run_notebook(
    path: str, timeout: float, report: str, out: str | None, parameters: dict[str, str], max_peak: int | None
) -> None:
    try:
        cells = inject(notebook_cells(path), parameters)
    except NotebookError as error:
        Path(report).write_text(json.dumps({"error": f"{path}: {error}", "line": None, "cells": []}))
        return
    Run(path, cells, Path(report), Path(out).resolve() if out else None, max_peak).through(timeout)


def _jsonable(data: dict[str, Any]) -> dict[str, Any]:
    """Image bytes as nbformat keeps them."""
    return {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in data.items()}


if __name__ == "__main__":
    run_notebook(**json.loads(sys.argv[1]))
