"""The cells of a notebook file: a Python script with `# %%` markers (the percent format) or an .ipynb."""

from __future__ import annotations

import json
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MARKER = re.compile(r"#\s?%%(\s|$)")
_KIND = re.compile(r"\[(markdown|md|raw)\]")
_OPTIONS = re.compile(r"(?:^|\s)(\{|[A-Za-z_][\w.-]*=)")
_COMMENTED_MAGIC = re.compile(r"^(\s*)# (%%?[A-Za-z])")


class NotebookError(ValueError):
    """A file that cannot be read as a notebook."""


@dataclass(frozen=True)
class Cell:
    """One cell: `line` is where `source` starts in `filename`, so that tracebacks tell the truth."""

    number: int
    kind: str
    source: str
    line: int
    filename: str
    title: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


def is_percent(text: str) -> bool:
    """Whether a script is a notebook: some line of it is a cell marker.

    >>> is_percent("x = 1"), is_percent("# %% Load the data")
    (False, True)
    """
    return any(_MARKER.match(line) for line in text.splitlines())


def parse_percent(text: str, filename: str) -> list[Cell]:
    """The cells of a percent script, numbered from 1; text above the first marker counts if it is code.

    >>> cells = parse_percent("# %% [markdown]\\n# Hi\\n# %%\\n\\nx", "a.py")
    >>> [(cell.number, cell.kind, cell.line, cell.source) for cell in cells]
    [(1, 'markdown', 2, 'Hi'), (2, 'code', 5, 'x')]
    """
    lines = text.splitlines()
    marks = [n for n, line in enumerate(lines) if _MARKER.match(line)]
    headers = [lines[n] for n in marks]
    stops = [*marks, len(lines)]
    if any(line.strip() and not line.lstrip().startswith("#") for line in lines[: stops[0]]):
        marks, headers = [-1, *marks], ["# %%", *headers]
    else:
        stops = stops[1:]
    cells: list[Cell] = []
    for number, (mark, stop, header) in enumerate(zip(marks, stops, headers, strict=True), 1):
        title, kind, metadata = _header(header)
        source, line = _trim(lines[mark + 1 : stop], mark + 2)
        source = _uncomment_magics(source) if kind == "code" else _prose(source)
        cells.append(Cell(number, kind, "\n".join(source), line, filename, title, metadata))
    return cells


def parse_ipynb(text: str, filename: str) -> list[Cell]:
    """The cells of an .ipynb (format 4). Each counts its lines from 1, under a file name of its own."""
    try:
        content = json.loads(text)
        return [
            Cell(n, c["cell_type"], "".join(c["source"]), 1, f"{filename}#cell{n}", *_titled(c["metadata"]))
            for n, c in enumerate(content["cells"], 1)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise NotebookError(f"not a notebook of format 4 ({type(error).__name__}: {error})") from error


def read_source(path: str | Path) -> str:
    """The text of a Python file, in the encoding that it declares."""
    with tokenize.open(path) as file:
        return file.read()


def read_notebook(path: str | Path) -> list[Cell] | None:
    """The cells of a percent script or an .ipynb file; None for a script without markers."""
    path = Path(path)
    filename = str(path.resolve())
    if path.suffix == ".ipynb":
        return parse_ipynb(path.read_text(encoding="utf-8"), filename)
    text = read_source(path)
    return parse_percent(text, filename) if is_percent(text) else None


def _titled(metadata: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The title that jupytext and we keep among the metadata of a cell, and the rest of these."""
    title = metadata.get("title", "")
    return str(title), {key: value for key, value in metadata.items() if key != "title"}


def notebook_cells(path: str | Path) -> list[Cell]:
    """The cells of a file that has to be a notebook.

    Raises:
        NotebookError: it is none, or cannot be read.
    """
    try:
        cells = read_notebook(path)
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise NotebookError(f"cannot be read: {error}") from None
    if cells is None:
        raise NotebookError("not a notebook: no line starts with # %%")
    return cells


def _trim(lines: list[str], line: int) -> tuple[list[str], int]:
    """Without the blank lines at both ends; and the number of the first line that is left."""
    used = [n for n, text in enumerate(lines) if text.strip()] or [0]
    return lines[used[0] : used[-1] + 1], line + used[0]


def _uncomment_magics(lines: list[str]) -> list[str]:
    """jupytext's convention: a magic is a comment in the script, and a magic in the notebook."""
    return [_COMMENTED_MAGIC.sub(r"\1\2", line) for line in lines]


def _prose(lines: list[str]) -> list[str]:
    if lines and lines[0].strip() in ('"""', "'''"):
        return lines[1:-1]
    return [re.sub(r"^#\s?", "", line) for line in lines]


def _header(marker: str) -> tuple[str, str, dict[str, Any]]:
    """Title, kind and metadata of `# %% title [markdown] key=json ...` or `# %% title {json}`."""
    rest = re.sub(r"^#\s?%%", "", marker).strip()
    options = _OPTIONS.search(rest)
    metadata: dict[str, Any] = {}
    if options:
        try:
            metadata = _metadata(rest[options.start(1) :])
            rest = rest[: options.start()]
        except ValueError:
            pass
    kind = _KIND.search(rest)
    title = _KIND.sub("", rest).strip()
    name = kind[1] if kind else "code"
    return title, "markdown" if name == "md" else name, metadata


def _metadata(text: str) -> dict[str, Any]:
    if text.startswith("{"):
        return json.loads(text)
    decode, found = json.JSONDecoder().raw_decode, {}
    while text:
        key, equals, text = text.partition("=")
        if not equals:
            raise ValueError(f"expected key=value, found {key!r}")
        found[key.strip()], end = decode(text)
        text = text[end:].strip()
    return found
