"""``slope ~ normal(0, 10)`` in the body of a model: what ``slope = trace("slope", normal(0, 10))`` is.

``NAME ~ EXPRESSION`` is no Python, so nothing is ambiguous. Each such ``~`` becomes a ``=``, which keeps every line and
column where it is, and the assignment that Python then reads becomes the choice.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from typing import Any, NoReturn

FORMS = "left of ~ stands a name or name[index], right of it a distribution or a model with its arguments"
ALONE = "a choice with ~ stands on a line of its own"


def parse(source: str, filename: str, flags: int = 0) -> ast.Module:
    """The tree of Python source in which ``NAME ~ EXPRESSION`` and ``NAME[INDEX] ~ EXPRESSION`` are statements.

    What stands wrong raises a SyntaxError at its place, which shows the line as it was written.

    >>> print(ast.unparse(parse("mu ~ normal(0, 1)\\ny[i, 0] ~ normal(mu, 1)", "<cell>")))
    mu = trace('mu', normal(0, 1))
    trace(('y', i, 0), normal(mu, 1))
    """
    places = infix_tildes(source)
    try:
        tree: Any = compile(assigned(source), filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    except SyntaxError as error:
        _as_written(error, source, places)
        raise
    choices = _Choices(source, filename, places)
    tree = choices.visit(tree)
    for place in sorted(choices.left):
        choices.refuse(FORMS, place)
    return ast.fix_missing_locations(tree)


def assigned(source: str) -> str:
    """The source with a ``=`` for each ``~`` between two expressions: as long, and Python where the other was sugar."""
    lines = source.split("\n")
    for row, column in infix_tildes(source):
        text = lines[row - 1]
        lines[row - 1] = f"{text[:column]}={text[column + 1 :]}"
    return "\n".join(lines)


def infix_tildes(source: str) -> list[tuple[int, int]]:
    """Line (from 1) and column of each ``~`` that stands between two expressions, where Python has no such operator."""
    found = []
    before: tokenize.TokenInfo | None = None
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.NL, tokenize.COMMENT):
                continue
            infix = token.type == tokenize.OP and token.string == "~"
            if infix and before is not None and _ends_expression(before):
                found.append(token.start)
            before = token
    except (tokenize.TokenError, SyntaxError):
        pass  # the parser says it better
    return found


def _ends_expression(token: tokenize.TokenInfo) -> bool:
    if token.type == tokenize.NAME:
        return not keyword.iskeyword(token.string) or token.string in ("None", "True", "False")
    return token.type in (tokenize.NUMBER, tokenize.STRING) or token.string in (")", "]", "}")


def _as_written(error: SyntaxError, source: str, places: list[tuple[int, int]]) -> None:
    """Make an error that Python found in the rewritten source one of the source."""
    row = error.lineno or 0
    lines = source.split("\n")
    if any(line == row for line, _ in places):
        error.text = lines[row - 1] + "\n"
        if error.msg.startswith("cannot assign") or "Maybe you meant '=='" in error.msg:
            error.msg = FORMS
            error.args = (FORMS, *error.args[1:])


class _Choices(ast.NodeTransformer):
    """Turns the assignments that stand for choices into calls of ``trace``."""

    def __init__(self, source: str, filename: str, places: list[tuple[int, int]]):
        self.lines, self.filename, self.left = source.split("\n"), filename, set(places)

    def visit(self, node: ast.AST) -> ast.AST:
        for block in ("body", "orelse", "finalbody"):
            statements = getattr(node, block, None)
            if isinstance(statements, list) and statements and not self._begins_line(statements[0]):
                for statement in statements:
                    if (place := self._tilde(statement)) is not None:
                        self.refuse(ALONE, place)
        return super().visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        place = self._tilde(node)
        if place is None:
            return self.generic_visit(node)
        target = node.targets[0]
        if isinstance(target, ast.Name):
            if target.id == "trace":
                self.refuse("a choice named trace hides the trace that ~ stands for", place)
            node.value = self._trace(ast.Constant(target.id), node.value)
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            inside = target.slice
            parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            if any(isinstance(part, ast.Slice) for part in parts):
                self.refuse("an address has no slices", place)
            address = ast.Tuple([ast.Constant(target.value.id), *parts], ast.Load())
            self.left.discard(place)
            return ast.copy_location(ast.Expr(self._trace(address, node.value)), node)
        else:
            self.refuse(FORMS, place)
        self.left.discard(place)
        return node

    def _tilde(self, node: ast.AST) -> tuple[int, int] | None:
        """The place of the ``~`` between the one target of an assignment and its value."""
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            return None
        start, end = self._place(node.targets[0], end=True), self._place(node.value)
        return next((place for place in self.left if start <= place < end), None)

    def _trace(self, address: ast.expr, value: ast.expr) -> ast.Call:
        call = ast.Call(ast.Name("trace", ast.Load()), [address, value], [])
        for part in (call, call.func, address):
            ast.copy_location(part, value)
        return call

    def _begins_line(self, node: ast.AST) -> bool:
        row, column = self._place(node)
        return not self.lines[row - 1][:column].strip()

    def _place(self, node: ast.AST, end: bool = False) -> tuple[int, int]:
        """Line and column in characters; the tree counts bytes."""
        row: int = getattr(node, "end_lineno" if end else "lineno", 1)
        offset: int = getattr(node, "end_col_offset" if end else "col_offset", 0)
        return row, len(self.lines[row - 1].encode()[:offset].decode(errors="ignore"))

    def refuse(self, message: str, place: tuple[int, int]) -> NoReturn:
        row, column = place
        where = (self.filename, row, column + 1, self.lines[row - 1] + "\n", row, column + 2)
        raise SyntaxError(message, where)
