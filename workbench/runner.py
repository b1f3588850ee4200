"""`genmlx-nb`: runs notebooks, each in a process of its own, and fails if one of their cells fails."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What came of one notebook; `error` is the message for the user, or None."""

    error: str | None
    seconds: float


def run(notebook: str, timeout: float = 60.0, out: str | None = None) -> Outcome:
    """Run one notebook in a subprocess. With `out`, write the executed .ipynb there."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        ended = subprocess.run(
            [sys.executable, "-m", "workbench.worker", notebook, str(timeout), str(report), out or ""],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={
                **os.environ,
                "IPYTHONDIR": scratch,
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            },
        )
        told = json.loads(report.read_text()) if report.exists() else {}
    error = told.get("error")
    if ended.returncode:
        said = ended.stdout.strip()
        stuck = "\nTimeout (" in f"\n{said}"  # what faulthandler says when it ends the process
        why = "could not be stopped" if stuck else f"the process ended with status {ended.returncode}"
        error = f"{told.get('running', notebook)} {why}\n{said}".rstrip()
    return Outcome(error, time.perf_counter() - start)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="genmlx-nb",
        description="Run notebooks (.py with # %% cells, or .ipynb); exit 1 if a cell fails.",
    )
    parser.add_argument("notebooks", nargs="+", metavar="NOTEBOOK")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for a cell (60)")
    parser.add_argument("--out", metavar="DIR", help="write the executed notebooks there, as .ipynb")
    options = parser.parse_args(argv)

    for notebook in options.notebooks:
        if not os.path.isfile(notebook):
            parser.error(f"no such file: {notebook}")
    targets: list[str | None] = [None] * len(options.notebooks)
    if options.out:
        targets = [os.path.join(options.out, f"{Path(name).stem}.ipynb") for name in options.notebooks]
        if len(set(targets)) < len(targets):
            parser.error("two notebooks would be written to the same file of --out")
        os.makedirs(options.out, exist_ok=True)

    failed = 0
    width = max(len(notebook) for notebook in options.notebooks)
    try:
        for notebook, target in zip(options.notebooks, targets, strict=True):
            outcome = run(notebook, options.timeout, target)
            verdict = "failed" if outcome.error else "ok"
            print(f"{notebook:<{width}}  {verdict:<6}  {outcome.seconds:5.1f} s", flush=True)
            if outcome.error:
                failed += 1
                print(outcome.error, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
