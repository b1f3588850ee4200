"""`genmlx-nb`: runs notebooks, each in a process of its own, and fails if one of their cells fails."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What came of one notebook: the message for the user and the line that it is about, or None; and of its cells."""

    error: str | None
    seconds: float
    line: int | None = None
    cells: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> str:
        return "failed" if self.error else "ok"

    def as_json(self, notebook: str) -> dict[str, Any]:
        return {
            "notebook": notebook,
            "status": self.status,
            "seconds": self.seconds,
            "error": self.error,
            "cells": self.cells,
        }


def run(
    notebook: str,
    timeout: float = 60.0,
    out: str | None = None,
    parameters: dict[str, str] | None = None,
    max_peak: int | None = None,
) -> Outcome:
    """Run one notebook in a subprocess. With `out`, write the executed .ipynb there.

    `parameters` are expressions by the names of the notebook's parameters; `max_peak` is in bytes, of any one cell.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        job = {
            "path": notebook,
            "timeout": timeout,
            "report": str(report),
            "out": out,
            "parameters": parameters or {},
            "max_peak": max_peak,
        }
        ended = subprocess.run(
            [sys.executable, "-m", "workbench.worker", json.dumps(job)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={
                **os.environ,
                "GENMLX_CI": "1",
                "IPYTHONDIR": scratch,
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            },
        )
        told = json.loads(report.read_text()) if report.exists() else {}
    error, line, cells = told.get("error"), told.get("line"), told.get("cells", [])
    if ended.returncode:
        said = ended.stdout.strip()
        stuck = "\nTimeout (" in f"\n{said}"  # what faulthandler says when it ends the process
        why = "could not be stopped" if stuck else f"the process ended with status {ended.returncode}"
        where = notebook
        for cell in cells:
            if cell["status"] == "running":
                where, line = cell.pop("where"), cell["line"]
                cell["status"] = "failed"
        error = "\n".join(filter(None, [error, f"{where} {why}", said]))
    return Outcome(error, time.perf_counter() - start, line, cells)


def annotation(notebook: str, outcome: Outcome) -> str:
    """The error as GitHub's workflow commands have it, at the line of a script."""

    def escaped(text: str, more: str = "") -> str:
        for char in "%\r\n" + more:
            text = text.replace(char, f"%{ord(char):02X}")
        return text

    file = os.path.relpath(notebook, os.environ.get("GITHUB_WORKSPACE"))
    place = f"file={escaped(file, ':,')}"
    if outcome.line is not None and not notebook.endswith(".ipynb"):
        place += f",line={outcome.line}"
    return f"::error {place}::{escaped(outcome.error or '')}"


def run_all(options: argparse.Namespace, targets: list[str | None]) -> int:
    outcomes: dict[str, Outcome] = {}
    width = max(len(notebook) for notebook in options.notebooks)
    given = dict(options.parameters)
    try:
        for notebook, target in zip(options.notebooks, targets, strict=True):
            outcome = outcomes[notebook] = run(notebook, options.timeout, target, given, options.max_peak)
            print(f"{notebook:<{width}}  {outcome.status:<6}  {outcome.seconds:5.1f} s", flush=True)
            if outcome.error:
                print(outcome.error, file=sys.stderr, flush=True)
                if os.environ.get("GITHUB_ACTIONS") == "true":
                    print(annotation(notebook, outcome), flush=True)
    except KeyboardInterrupt:
        print(f"{notebook:<{width}}  interrupted", flush=True)
        return 130
    finally:
        if options.report:
            content = {"notebooks": [outcome.as_json(notebook) for notebook, outcome in outcomes.items()]}
            Path(options.report).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 1 if any(outcome.error for outcome in outcomes.values()) else 0


def convert(notebooks: list[str]) -> int:
    """Write the .ipynb of each script beside it."""
    from .ipynb import twin
    from .percent import NotebookError

    for notebook in notebooks:
        try:
            text = twin(notebook)
        except NotebookError as error:
            print(f"{notebook}: {error}", file=sys.stderr)
            return 1
        target = Path(notebook).with_suffix(".ipynb")
        target.write_text(text, encoding="utf-8")
        print(target)
    return 0


def main(argv: list[str] | None = None) -> int:
    from .memory import size_of
    from .parameters import assignment

    parser = argparse.ArgumentParser(
        prog="genmlx-nb",
        description="Run notebooks (.py with # %% cells, or .ipynb); exit 1 if a cell fails.",
        epilog="GENMLX_FAST=1 takes a tenth of the draws in every %infer, GENMLX_MEM=1 puts a line on MLX's memory "
        "below each cell.",
    )
    add = parser.add_argument
    add("notebooks", nargs="+", metavar="NOTEBOOK")
    add("--timeout", type=float, default=60.0, metavar="S", help="seconds for a cell (60)")
    add("--out", metavar="DIR", help="write the executed notebooks there, as .ipynb, up to the cell that failed")
    add("--report", metavar="FILE", help="write a JSON report there: status, seconds and MLX's memory, cell by cell")
    add("--max-peak", type=_argument(size_of), metavar="SIZE", help="fail where a cell takes more of MLX's memory: 2GB")
    add(
        "-p",
        "--parameter",
        dest="parameters",
        action="append",
        default=[],
        type=_argument(assignment),
        metavar="NAME=EXPR",
        help="another value for a name of the cell tagged parameters",
    )
    add("--to-ipynb", action="store_true", help="run nothing; write the .ipynb of each script beside it")
    options = parser.parse_args(argv)

    for notebook in options.notebooks:
        if not os.path.isfile(notebook):
            parser.error(f"no such file: {notebook}")
    if options.to_ipynb:
        if options.out or options.report or options.max_peak or options.parameters:
            parser.error("--to-ipynb runs nothing, and takes no other option")
        if any(notebook.endswith(".ipynb") for notebook in options.notebooks):
            parser.error("--to-ipynb is for scripts")
        return convert(options.notebooks)

    targets: list[str | None] = [None] * len(options.notebooks)
    if options.out:
        targets = [os.path.join(options.out, f"{Path(name).stem}.ipynb") for name in options.notebooks]
        if len(set(targets)) < len(targets):
            parser.error("two notebooks would be written to the same file of --out")
        for notebook, target in zip(options.notebooks, targets, strict=True):
            if target and os.path.exists(target) and os.path.samefile(notebook, target):
                parser.error(f"--out would write over {notebook}")
        os.makedirs(options.out, exist_ok=True)
    return run_all(options, targets)


def _argument(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """So that argparse shows the message of a ValueError, and not the name of the function."""

    def read_or_tell(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read_or_tell


if __name__ == "__main__":
    sys.exit(main())
