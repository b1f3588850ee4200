"""When a cell that is being typed is whole."""

from __future__ import annotations

from IPython.core.interactiveshell import InteractiveShell


class TypedCells(InteractiveShell):
    """A shell in which a cell magic is typed like a def: indented as its body asks, whole at one empty line.

    IPython's own rule asks for two empty lines, and indents nothing.
    """

    def check_complete(self, code: str) -> tuple[str, str]:
        """`complete`, `incomplete` or `invalid`, and the indentation of the next line."""
        head, newline, body = code.partition("\n")
        if not (head.startswith("%%") and newline and body.strip()):
            return super().check_complete(code)
        if not body.rpartition("\n")[2].strip():
            return "complete", ""
        from magics.sugar import assigned

        _, indent = super().check_complete(assigned(body))
        return "incomplete", indent
