"""``%diag`` and ``%plot``: what a result is worth, and how it looks."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from IPython.core.magic import line_magic, magics_class

from magics.grammar import Line, Piece, did_you_mean
from magics.session import SessionMagics, UsageError, magic
from magics.specs import DIAG, PLOT

WORST, MOST = 8, 12


@magics_class
class DiagnoseMagics(SessionMagics):
    @line_magic
    @magic(DIAG)
    def diag(self, line: Line, cell: str | None) -> Any:
        from workbench.diagnosis import of_particles, of_posterior
        from workbench.filter_diagnosis import of_filter
        from workbench.filters import is_filter

        subject = _subject(line, self.names)
        result = subject.result
        most = None if "all" in line else _count(line, "worst", self.names, WORST)
        if hasattr(result, "log_weights"):
            places = None if subject.places is None else subject.located(line, self.names)
            judge = of_filter if is_filter(result) else of_particles
            found = judge(result, places, most, subject.spoken)
        elif hasattr(result, "log_ml_bound"):
            from workbench.guide_diagnosis import of_guide

            places = None if subject.places is None else subject.located(line, self.names)
            found = of_guide(result, places, most, subject.spoken)
        elif not hasattr(result, "draws"):
            raise line.error(f"{subject.name} is of type {type(result).__name__}, without draws to judge; see %plot")
        elif result.draws < 4:
            raise line.error(f"{subject.name} has {result.draws} draws in each chain; %diag needs 4 at least")
        else:
            found = of_posterior(result, subject.rows(line, self.names), most, subject.spoken)
        if not line.silent:
            self.session.show(found, found)
        return found

    @line_magic
    @magic(PLOT)
    def plot(self, line: Line, cell: str | None) -> Any:
        from workbench.plots import default_kind

        subject = _subject(line, self.names)
        kind = line.word("kind") or default_kind(subject.result)
        if kind is None:
            raise line.error(f"{subject.name} is of type {type(subject.result).__name__}, of which there is no figure")
        most = _count(line, "max", self.names, MOST)
        found = self._figure(line, subject, kind, most)
        found.screen, found.below = self._screen(), ""
        if "save" in line:
            self._save(line, found)
        elif not hasattr(self.shell, "kernel"):
            found.below = f"--save {kind}.png for the figure itself"
        if not line.silent:
            self.session.show(found, found)
        return found

    def _figure(self, line: Line, subject: _Subject, kind: str, most: int) -> Any:
        from genmlx.errors import UnknownAddress
        from genmlx.errors import UsageError as Misuse
        from workbench.plots import figure

        if kind not in ("ppc", "filter"):  # whose addresses are of observations, or of no one step
            subject.located(line, self.names)
        places = subject.addresses(line, self.names)
        try:
            return figure(kind, subject.result, [a for a, _ in places] if places else None, most)
        except UnknownAddress as error:
            at = next((piece for address, piece in places if address == error.address), None)
            raise line.error(_one_line(error), at) from None
        except Misuse as error:
            raise line.error(_one_line(error), line.options.get("kind")) from None

    def _screen(self) -> Any:
        from workbench.display import current_screen
        from workbench.render.screen import Screen

        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        return Screen(current_screen().width, self.session.settings.ascii or not encoding.lower().startswith("utf"))

    def _save(self, line: Line, found: Any) -> None:
        path, piece = line.word("save") or "", line.options["save"]
        try:
            found.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            raise line.error(f"cannot write {path!r}: {error}", piece) from None
        found.below = f"saved as {path}"


class _Subject(NamedTuple):
    """What a line is about: a result, what it is called, and the pieces that name addresses, if there are any."""

    result: Any
    name: str
    places: list[Piece] | None

    @property
    def spoken(self) -> str:
        return "" if self.name == "_post" else self.name

    def addresses(self, line: Line, names: dict[str, Any]) -> list[tuple[tuple, Piece]]:
        return [(line.address(piece, names), piece) for piece in self.places or []]

    def located(self, line: Line, names: dict[str, Any]) -> list[tuple[tuple, tuple]]:
        """The addresses of the result that are named, each with an index; an unknown one is an error with carets."""
        from genmlx.choicemap import from_items
        from genmlx.errors import UnknownAddress
        from workbench.elements import located

        if not hasattr(self.result, "addresses"):
            return []
        from magics.given import no_address

        found = []
        for address, piece in self.addresses(line, names):
            try:
                found += located(self.result, address)
            except UnknownAddress as error:
                if any(address[: len(known)] == known for known in self.result.addresses()):  # with a wrong index
                    raise line.error(_one_line(error), piece) from None
                what = f" in {self.name}" if piece.start > line.words[0].start else f" in {self.name}, and no result"
                there = from_items((known, 0) for known in self.result.addresses())
                raise line.error(no_address(address, there, what), piece) from None
        return found

    def rows(self, line: Line, names: dict[str, Any]) -> list[str] | None:
        """The rows of a summary that are named."""
        from workbench.elements import elements

        if self.places is None:
            return None
        return [e.name for own, index in self.located(line, names) for e in elements(self.result, [own + index])]


def _one_line(error: Any) -> str:
    """What an error of the library says, for the first line of one that shows the magic's own line."""
    from genmlx.errors import show_address

    at = "" if error.address is None else f": {show_address(error.address)}"
    close = [show_address(a) for a in error.suggestions]
    hint = f"did you mean {' or '.join(close)}?" if close else error.expected or error.hint
    return f"{error.what}{at}" + (
        f"; {hint}" if close else f"; expected: {hint}" if error.expected else f"; try: {hint}"
    )


def _subject(line: Line, names: dict[str, Any]) -> _Subject:
    """The first word is a result, or else every word is an address of the last one."""
    last = names.get("_post")
    if not line.words:
        if last is None:
            raise line.error(f"{line.spec.name} needs a result: %{line.spec.name} POST, or run %infer before")
        return _Subject(last, "_post", None)
    first = line.words[0]
    # The comma of `%plot tau, mu` sticks to the first word, and then it is no result.
    found = None if first.text.endswith(",") else _value(first, names)
    if _is_result(found):
        rest = line.rest(1)
        return _Subject(found, first.text, None if rest is None else line.listed(rest))
    if last is None or _unlike(line, first, found, last, names):
        if found is not None:
            raise line.error(f"{first.text} is of type {type(found).__name__}, no result of an algorithm", first)
        results = [name for name, value in names.items() if not name.startswith("_") and _is_result(value)]
        there = f"; there are {', '.join(results)}" if results else "; run %infer before"
        word = first.text.rstrip(",")
        raise line.error(f"no result {word!r}{did_you_mean(word, results) or there}", Piece(word, first.start))
    rest = line.rest(0)
    return _Subject(last, "_post", line.listed(rest) if rest is not None else None)


def _unlike(line: Line, first: Piece, found: Any, last: Any, names: dict[str, Any]) -> bool:
    """Whether the first word of several cannot be an address of the last result: another word follows, no comma."""
    alone = line.listed(Piece(line.text[first.start : line.words[-1].end], first.start))[0]
    if alone.text != first.text.rstrip(","):
        return True
    if found is None:
        return False
    from genmlx.errors import UnknownAddress
    from workbench.elements import located

    try:
        return not located(last, line.address(first, names))
    except (UnknownAddress, UsageError):
        return True


def _value(piece: Piece, names: dict[str, Any]) -> Any:
    """What a word evaluates to; None where it has no value."""
    try:
        return eval(compile(piece.text, "<magic>", "eval"), names)
    except Exception:  # it may be an address, which need not be an expression that has a value
        return None


def _is_result(value: Any) -> bool:
    return any(hasattr(value, name) for name in ("log_joint", "log_weights", "history"))


def _count(line: Line, option: str, names: dict[str, Any], default: int) -> int:
    value = line.value(option, names, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise line.error(f"--{option} is a whole number from 1 on, not {value!r}", line.options.get(option))
    return value
