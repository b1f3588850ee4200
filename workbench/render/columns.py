"""Rows as text: columns as wide as what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def columns(rows: Iterable[Sequence[str]], gap: int = 2) -> str:
    """Rows of equally many texts, one line each. A column in which all are empty is left out.

    >>> print(columns([("slope", "", "real"), ("y", "", "positive")]))
    slope  real
    y      positive
    """
    table = [row for row in zip(*rows, strict=True) if any(row)]
    padded = [[text.ljust(max(map(len, column))) for text in column] for column in table]
    return "\n".join((" " * gap).join(row).rstrip() for row in zip(*padded, strict=True))
