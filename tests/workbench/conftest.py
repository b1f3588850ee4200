"""Run the console programs as a user does: in a subprocess, in an empty folder, with a fresh IPython profile."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


OURS = ("CI", "COLUMNS", "DISPLAY", "LINES", "MPLBACKEND", "NO_COLOR", "PYTHONSTARTUP")
"""What the surroundings of the tests may set, and a person at a terminal has not."""


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in OURS and not k.startswith(("GENMLX_", "GITHUB_"))}
    kept["IPYTHONDIR"] = str(tmp_path_factory.mktemp("ipython"))
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return kept


Run = Callable[..., subprocess.CompletedProcess]


def _runner(module: str, folder: Path, environment: dict[str, str]) -> Run:
    def run(*arguments: str, stdin: str = "", **extra: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=folder,
            env={**environment, **extra},
        )

    return run


@pytest.fixture
def shell(tmp_path, environment) -> Run:
    """`genmlx-shell ARGUMENTS` with its standard input."""
    return _runner("workbench.shell", tmp_path, environment)


@pytest.fixture
def nb(tmp_path, environment) -> Run:
    """`genmlx-nb ARGUMENTS`."""
    return _runner("workbench.runner", tmp_path, environment)
