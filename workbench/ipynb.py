"""Notebooks as .ipynb files: with what their cells gave, and the twin of a script for those who open it in Jupyter."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from .percent import Cell, notebook_cells

LOAD = "%load_ext genmlx"

Executed = tuple[Cell, int | None, list[Any]]
"""A cell with its execution count and its outputs in nbformat's shape; None and [] where it did not run."""


def as_ipynb(cells: Iterable[Executed]) -> str:
    """The text of an .ipynb (format 4.5). Equal cells give equal text: the ids come from the sources."""
    seen: Counter[str] = Counter()
    content = {
        "cells": [_cell(*one, seen) for one in cells],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def twin(path: str | Path) -> str:
    """The .ipynb of a script, without outputs; its first code cell loads the extension, as the shell does by itself.

    Raises:
        NotebookError: it has no `# %%` cells, or cannot be read.
    """
    cells = notebook_cells(path)
    first = next((n for n, cell in enumerate(cells) if cell.kind == "code"), len(cells))
    if not any(cell.kind == "code" and LOAD in cell.source.splitlines() for cell in cells):
        cells.insert(first, Cell(0, "code", LOAD, 1, "", "Load"))
    return as_ipynb((cell, None, []) for cell in cells)


def _cell(cell: Cell, count: int | None, outputs: list[Any], seen: Counter[str]) -> dict[str, Any]:
    name = sha256(f"{cell.kind}\n{cell.source}".encode()).hexdigest()[:12]
    seen[name] += 1
    made: dict[str, Any] = {
        "cell_type": cell.kind,
        "id": name if seen[name] == 1 else f"{name}-{seen[name]}",
        "metadata": {**cell.metadata, **({"title": cell.title} if cell.title else {})},
        "source": cell.source.splitlines(keepends=True),
    }
    return {**made, "execution_count": count, "outputs": outputs} if cell.kind == "code" else made
