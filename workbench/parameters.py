"""Parameters of a notebook: what the command line gives instead of what its cell tagged `parameters` says."""

from __future__ import annotations

import ast

from .percent import Cell, NotebookError

TAG = "parameters"


def assignment(text: str) -> tuple[str, str]:
    """Name and expression of ``NAME=EXPR``.

    Raises:
        ValueError: it is none.

    >>> assignment("draws = 2 * 100")
    ('draws', '2 * 100')
    """
    name, equals, expression = (part.strip() for part in text.partition("="))
    if not (equals and name.isidentifier()):
        raise ValueError(f"{text!r} is no NAME=EXPR")
    try:
        ast.parse(expression, mode="eval")
    except SyntaxError as error:
        raise ValueError(f"{expression!r} is no Python expression: {error.msg}") from None
    return name, expression


def inject(cells: list[Cell], given: dict[str, str]) -> list[Cell]:
    """The cells, with one behind the parameters' that gives them these values.

    Raises:
        NotebookError: no cell is tagged `parameters`, several are, or it has no such name.
    """
    if not given:
        return cells
    tagged = [n for n, cell in enumerate(cells) if cell.kind == "code" and TAG in cell.metadata.get("tags", ())]
    if len(tagged) != 1:
        raise NotebookError(f'-p needs one cell that is tagged "{TAG}"; there are {len(tagged)}')
    (n,) = tagged
    names = _assigned(cells[n].source)
    for name in given:
        if names and name not in names:
            raise NotebookError(f'no parameter {name}: the cell tagged "{TAG}" has {", ".join(sorted(names))}')
    source = "\n".join(f"{name} = {expression}" for name, expression in given.items())
    new = Cell(cells[n].number, "code", source, 1, f"{cells[n].filename}#-p", "-p", {"tags": ["injected-parameters"]})
    return [*cells[: n + 1], new, *cells[n + 1 :]]


def _assigned(source: str) -> set[str]:
    """The names that code assigns; none where it does not parse, as will be seen when it runs."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        tree = ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError:
        return set()
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
