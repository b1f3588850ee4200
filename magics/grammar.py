"""The grammar of the magics: one table of options drives parsing, help and completion.

Option values and arguments are Python expressions. A line is cut where brackets and strings are closed: at spaces, at
``|``, and before an option. What cannot be parsed is an error that shows the line with carets under the place.
"""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Callable, Iterator, Sequence
from textwrap import wrap
from typing import Any, Literal, NamedTuple

from IPython.core.error import UsageError

_OPENING, _CLOSING = "([{", ")]}"
_WIDTH = 88
_FLAG = re.compile(r"--?[A-Za-z][\w-]*")


class Option(NamedTuple):
    """An option: its spellings, the shortest first, what its value is called, and what it does.

    ``value`` is None for a switch. With ``optional``, the value follows ``=`` (or a space, where it is "text") or is
    left out. ``kind`` says what the value is: an "expression" that is evaluated, a "name" to bind, a "word" of
    ``words`` or any, "text" as it stands, or "addresses".
    """

    flags: tuple[str, ...]
    help: str
    value: str | None = None
    kind: str = "expression"
    words: tuple[str, ...] = ()
    optional: bool = False

    @property
    def name(self) -> str:
        """The key of the option in a parsed line: its long spelling."""
        return self.flags[-1].lstrip("-").replace("-", "_")

    @property
    def shown(self) -> str:
        value = "" if self.value is None else f" {self.value}"
        if self.optional:
            value = f" [{self.value}]" if self.kind == "text" else f"[={self.value}]"
        return ", ".join(self.flags) + value


class Spec(NamedTuple):
    """A magic: its name, what may follow it, one line on what it does, its options, examples."""

    name: str
    arguments: str
    summary: str
    options: tuple[Option, ...] = ()
    given: bool = False
    kind: Literal["line", "cell", "line_cell"] = "line"
    examples: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        return "%%" if self.kind == "cell" else "%"

    def find(self, flag: str) -> Option | None:
        return next((option for option in self.all_options if flag in option.flags), None)

    @property
    def all_options(self) -> tuple[Option, ...]:
        return (*self.options, HELP)


HELP = Option(("-h", "--help"), "this page")
OUT = Option(("-o", "--out"), "bind the result to this name as well", "NAME", "name")
QUIET = Option(("-q", "--quiet"), "show nothing")


class Piece(NamedTuple):
    """Some text of a line, and where it starts."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class Given(NamedTuple):
    """``address = expression``, or with no address an expression that makes a choice map."""

    address: Piece | None
    value: Piece


class Line:
    """A parsed line: words, options by name, what is given, and whether it ends in a semicolon."""

    def __init__(self, spec: Spec, text: str, mark: str | None = None):
        self.spec, self.text, self.prefix = spec, text, f"{mark or spec.mark}{spec.name} "
        self.words: list[Piece] = []
        self.options: dict[str, Piece | None] = {}
        self.given: list[Given] = []
        self.silent = False
        _parse(self)

    def __contains__(self, option: str) -> bool:
        return option in self.options

    def rest(self, first: int) -> Piece | None:
        """The words from one on, as one piece: an expression may have spaces in it."""
        if len(self.words) <= first:
            return None
        start = self.words[first].start
        return Piece(self.text[start : self.words[-1].end], start)

    def word(self, option: str, default: str | None = None) -> str | None:
        """The value of an option as it stands, without quotes; the default when it is missing."""
        piece = self.options.get(option)
        if piece is None:
            return default
        text = piece.text
        return text[1:-1] if len(text) > 1 and text[0] in "\"'" and text[0] == text[-1] else text

    def error(self, message: str, piece: Piece | None = None) -> UsageError:
        """An error that shows the line, with carets under the piece."""
        shown = [message]
        if self.text.strip() and "\n" not in self.text:
            shown.append(f"    {self.prefix}{self.text}")
            if piece is not None:
                column = 4 + len(self.prefix) + piece.start
                shown.append(" " * column + "^" * max(1, len(piece.text)))
        return UsageError("\n".join(shown))

    def evaluate(self, piece: Piece, namespace: dict[str, Any]) -> Any:
        """The value of an expression. Its own errors are raised as they are, but for names that do not exist."""
        text, file = piece.text.strip(), f"<{self.prefix.strip()}>"
        try:
            code = compile(text, file, "eval")
        except SyntaxError as error:
            comma = "; is a comma missing?" if self.spec.given and re.search(r"\s[\w\[\]\"'.]+ *=(?!=)", text) else ""
            raise self.error(f"{self.spec.name}: not an expression: {error.msg}{comma}", piece) from None
        missing = [name for name in _names(piece.text) if name not in namespace and not _is_builtin(name)]
        if missing:
            at = re.search(rf"\b{re.escape(missing[0])}\b", piece.text)
            place = Piece(missing[0], piece.start + (at.start() if at else 0))
            raise self.error(f"name {missing[0]!r} is not defined{did_you_mean(missing[0], namespace)}", place)
        try:
            return eval(code, namespace)
        except Exception:
            linecache.cache[file] = (len(text), None, [text], file)  # what a traceback shows of it
            raise

    def value(self, option: str, namespace: dict[str, Any], default: Any = None) -> Any:
        """The value of an option's expression; the default where it is not given."""
        piece = self.options.get(option)
        return default if piece is None else self.evaluate(piece, namespace)

    def addresses(self, option: str, namespace: dict[str, Any]) -> list[tuple] | None:
        """The addresses of an option like ``slope, y[3]``; None where it is not given."""
        piece = self.options.get(option)
        if piece is None:
            return None
        return [self.address(part, namespace) for part in self.listed(piece)]

    def listed(self, piece: Piece) -> list[Piece]:
        """The parts of a piece between its commas."""
        return _split(piece, ",")

    def address(self, piece: Piece, namespace: dict[str, Any]) -> tuple:
        """The address that is written as a name, ``name[i]``, a string, or a tuple."""
        try:
            node = ast.parse(piece.text.strip(), mode="eval").body
        except SyntaxError:
            raise self.error(f"{piece.text.strip()!r} is not an address", piece) from None
        found = _address(node, lambda n: self.evaluate(Piece(ast.unparse(n), piece.start), namespace))
        if found is None:
            expected = "a name, name[i], a string or a tuple"
            raise self.error(f"{piece.text.strip()!r} is not an address: {expected}", piece)
        return found

    def observations(self, namespace: dict[str, Any]) -> Any:
        """The choice map of what is given."""
        from genmlx.choicemap import EMPTY, as_choicemap, choicemap
        from genmlx.errors import GenError

        found = EMPTY
        for address, value in self.given:
            made = self.evaluate(value, namespace)
            try:
                own = choicemap({self.address(address, namespace): made}) if address else as_choicemap(made)
                found = found.merge(own)
            except GenError as error:
                raise self.error(f"given: {error}", address or value) from None
        return found


def help_text(spec: Spec) -> str:
    """What ``-h`` and ``?`` show."""
    given = " [| given ADDRESS=VALUE, ...]" if spec.given else ""
    usage = f"{spec.mark}{spec.name} {spec.arguments}{given}{' [OPTIONS]' if spec.options else ''}".rstrip()
    lines = [usage, "", *wrap(spec.summary, _WIDTH)]
    width = max(len(option.shown) for option in spec.all_options)
    lines += ["", *[f"  {option.shown:<{width}}  {option.help}" for option in spec.all_options]]
    if spec.examples:
        lines += ["", "examples:", *[f"  {example}" for example in spec.examples]]
    return "\n".join(lines)


def did_you_mean(word: str, known: Sequence[str] | dict) -> str:
    from genmlx.errors import close_matches

    close = close_matches(word, [name for name in known if isinstance(name, str)], 1)
    return f"; did you mean {close[0]!r}?" if close else ""


# cutting a line


def _parse(line: Line) -> None:
    spec, text = line.spec, line.text
    end = _comment(text, line)
    stripped = text[:end].rstrip()
    while stripped.endswith(";"):
        line.silent, stripped = True, stripped[:-1].rstrip()
    pieces = list(_pieces(stripped, line))
    i = 0
    while i < len(pieces):
        piece = pieces[i]
        if piece.text == "|" or (spec.given and piece.text == "given" and i and pieces[i - 1].text == "|"):
            i = _given(line, pieces, i, stripped)
        elif _FLAG.match(piece.text):
            i = _option(line, pieces, i, stripped)
        elif spec.given and piece.text == "given" and line.words and any("=" in p.text for p in pieces[i + 1 :]):
            raise line.error("a bar goes before given: | given", piece)
        else:
            line.words.append(piece)
            i += 1


def _option(line: Line, pieces: list[Piece], i: int, text: str) -> int:
    piece = pieces[i]
    flag, equals, attached = piece.text.partition("=")
    option = line.spec.find(flag)
    if option is None:
        known = [f for o in line.spec.all_options for f in o.flags]
        raise line.error(f"{line.spec.name} has no option {flag}{did_you_mean(flag, known)}", Piece(flag, piece.start))
    if option.name in line.options:
        raise line.error(f"{flag} is given twice", piece)
    value: Piece | None = None
    i += 1
    if equals:
        if option.value is None:
            raise line.error(f"{flag} takes no value", piece)
        value = Piece(attached, piece.start + len(flag) + 1)
    elif option.value is not None and _takes_next(option, pieces[i:]):
        last = _until(pieces, i)
        if last == i and not option.optional:
            raise line.error(f"{flag} needs a value: {option.value}", piece)
        if option.kind in ("name", "word"):
            last = i + 1
        if last > i:
            value = Piece(text[pieces[i].start : pieces[last - 1].end], pieces[i].start)
        i = last
    if value is not None:
        if option.kind == "name" and not value.text.isidentifier():
            raise line.error(f"{flag} needs a name, not {value.text!r}", value)
        if option.words and value.text not in option.words:
            close = did_you_mean(value.text, option.words)
            raise line.error(f"{flag} is one of {', '.join(option.words)}{close}", value)
    line.options[option.name] = value
    return i


def _takes_next(option: Option, pieces: list[Piece]) -> bool:
    """Whether what follows is the value of an option; one that may stand alone takes a word that it knows."""
    known = bool(pieces) and pieces[0].text in option.words
    return not option.optional or option.kind == "text" or known


def _until(pieces: list[Piece], i: int) -> int:
    """Where the expression that starts at a piece ends: at a bar, or before an option. A first ``-5`` belongs to it."""
    end = i
    while end < len(pieces) and pieces[end].text != "|" and not _FLAG.match(pieces[end].text):
        end += 1
    return end


def _given(line: Line, pieces: list[Piece], i: int, text: str) -> int:
    bar = pieces[i]
    if not line.spec.given:
        raise line.error(f"{line.spec.name} takes no | given", bar)
    if i + 1 == len(pieces) or pieces[i + 1].text != "given":
        raise line.error("after | comes given", pieces[i + 1] if i + 1 < len(pieces) else bar)
    first = i + 2
    last = _until(pieces, first)
    if last == first:
        raise line.error("given: nothing follows", pieces[i + 1])
    whole = Piece(text[pieces[first].start : pieces[last - 1].end], pieces[first].start)
    line.given += assignments(whole)
    return last


def assignments(text: Piece) -> list[Given]:
    """``a=1, y[3]=f(x), more`` as addresses and expressions."""
    found = []
    for part in _split(text, ","):
        cut = next((j for j in _depth_zero(part.text) if _assigns(part.text, j)), None)
        if cut is None:
            found.append(Given(None, part))
        else:
            address = _trimmed(part.text[:cut], part.start)
            found.append(Given(address, _trimmed(part.text[cut + 1 :], part.start + cut + 1)))
    return found


def _assigns(text: str, j: int) -> bool:
    return text[j] == "=" and text[j + 1 : j + 2] != "=" and text[j - 1 : j] not in tuple("=!<>:")


def _split(piece: Piece, separator: str) -> list[Piece]:
    """The parts between separators that are in no bracket or string; an empty last one is dropped."""
    cuts = [-1, *[j for j in _depth_zero(piece.text) if piece.text[j] == separator], len(piece.text)]
    parts = [_trimmed(piece.text[a + 1 : b], piece.start + a + 1) for a, b in zip(cuts, cuts[1:], strict=False)]
    return [part for part in parts if part.text]


def _trimmed(text: str, start: int) -> Piece:
    return Piece(text.strip(), start + len(text) - len(text.lstrip()))


def _pieces(text: str, line: Line) -> Iterator[Piece]:
    """The words of a line: cut at spaces and bars that are in no bracket or string."""
    start = 0
    depth = [0] * len(text)
    for j in _depth_zero(text, line):
        depth[j] = 1
    for j in range(len(text) + 1):
        outside = j == len(text) or (depth[j] and (text[j].isspace() or text[j] == "|"))
        if outside:
            if j > start:
                yield Piece(text[start:j], start)
            if j < len(text) and text[j] == "|":
                yield Piece("|", j)
            start = j + 1


def _comment(text: str, line: Line) -> int:
    """Where a comment starts: at ``#`` after a space, in no bracket or string."""
    for j in _depth_zero(text, line):
        if text[j] == "#" and (j == 0 or text[j - 1].isspace()):
            return j
    return len(text)


def _depth_zero(text: str, line: Line | None = None) -> Iterator[int]:
    """The places of a text that are in no bracket and in no string, brackets and quotes themselves left out."""
    opened: list[int] = []
    j = 0
    while j < len(text):
        character = text[j]
        if character in "\"'":
            quote = text[j : j + 3] if text[j : j + 3] in ('"""', "'''") else character
            end = j + len(quote)
            while end < len(text) and not text.startswith(quote, end):
                end += 2 if text[end] == "\\" else 1
            if end >= len(text) and line is not None:
                raise line.error("a string is not closed", Piece(text[j], j))
            j = end + len(quote)
            continue
        if character in _OPENING:
            opened.append(j)
        elif character in _CLOSING:
            if not opened or _OPENING.index(text[opened[-1]]) != _CLOSING.index(character):
                if line is not None:
                    raise line.error(f"{character!r} closes nothing", Piece(character, j))
            else:
                opened.pop()
        elif not opened:
            if character == "#" and (j == 0 or text[j - 1].isspace()) and line is not None:
                yield j
                return
            yield j
        j += 1
    if opened and line is not None:
        raise line.error(f"{text[opened[-1]]!r} is not closed", Piece(text[opened[-1]], opened[-1]))


# addresses and names


def _address(node: ast.expr, value_of: Callable[[ast.expr], Any]) -> tuple | None:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int)) and not isinstance(node.value, bool):
        return (node.value,)
    if isinstance(node, ast.Tuple):
        return tuple(value_of(node))
    if isinstance(node, ast.Attribute):
        front = _address(node.value, value_of)
        return None if front is None else (*front, node.attr)
    if isinstance(node, ast.Subscript):
        front = _address(node.value, value_of)
        if front is None:
            return None
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return (*front, *[value_of(part) for part in parts])
    return None


def _names(text: str) -> list[str]:
    """Names that an expression reads from the namespace."""
    tree = ast.parse(text.strip(), mode="eval")
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
    read = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    return [name for name in read if name not in bound]


def _is_builtin(name: str) -> bool:
    import builtins

    return hasattr(builtins, name)
