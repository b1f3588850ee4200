"""Errors: the first line says what happened and where, the second what was expected, the third what to try."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from types import TracebackType
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_OURS = tuple(os.path.join(os.path.dirname(_HERE), name) + os.sep for name in ("genmlx", "magics", "workbench"))
_SHELL = f"{os.sep}IPython{os.sep}"
_ANY_CASE = 0.75  # how alike words have to be whose case differs, to be taken for each other
_LINE = "<%"  # an expression in the line of a magic, which the error of the magic shows


class GenError(Exception):
    """What every error of this library is. Carries ``address``, ``gen_fn``, ``where`` and ``suggestions``.

    ``where`` is ``file:line`` of the user's code that is running when the error is made.
    """

    hint: str | None = None  # what a kind of error advises where it is raised without advice of its own

    def __init__(
        self,
        what: str,
        *,
        address: tuple | None = None,
        gen_fn: Any = None,
        where: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
        suggestions: Sequence[tuple] = (),
    ):
        super().__init__(what)
        self.what, self.address, self.gen_fn, self.where = what, address, gen_fn, where or caller_line()
        self.expected, self.suggestions = expected, tuple(suggestions)
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        places = []
        if self.address is not None:
            places.append(f"at {show_address(self.address)}")
        if self.gen_fn is not None:
            places.append(f"in {name_of(self.gen_fn)}")
        if self.where is not None:
            places.append(f"({self.where})")
        lines = [" ".join([self.what, *places])]
        if self.expected:
            lines.append(f"expected: {self.expected}")
        advice = [f"did you mean {' or '.join(show_address(a) for a in self.suggestions)}?"] if self.suggestions else []
        if self.hint:
            advice.append(f"try: {self.hint}")
        return "\n".join([*lines, " ".join(advice)] if advice else lines)

    def _render_traceback_(self) -> list[str]:
        """What IPython prints: the message alone. ``%tb`` does not show more; ``__traceback__`` has it all."""
        name = type(self).__name__
        return [f"{name}: {line}" if i == 0 else line for i, line in enumerate(str(self).splitlines())]


class UnknownAddress(GenError, KeyError):
    """A constraint or selection names an address that the run never visits."""


class MissingChoice(GenError, KeyError):
    """A choice that must be given is not."""

    hint = "give it in the choice map, or use generate, which draws what is not given"


class AddressCollision(GenError, ValueError):
    """Two choices of one run share an address, or one address is a prefix of another."""


class AddressError(GenError, TypeError):
    """Not an address, or a sub-map where a leaf is expected, or the reverse."""


class ParameterError(GenError, ValueError):
    """A distribution or an algorithm was given a value that it cannot have."""


class ValueMismatch(GenError, ValueError):
    """A constrained value with the wrong type or shape, or a NaN."""


class ImpossibleObservation(GenError, ValueError):
    """Observations that have probability zero."""


class BatchError(GenError, ValueError):
    """The body needs the host value of a traced quantity: it cannot be batched or differentiated."""


class UsageError(GenError, TypeError):
    """A function of the library was called in a way that has no meaning."""


class under:
    """Puts an address before that of an error raised inside: each level of a model knows only its own."""

    __slots__ = ("address",)

    def __init__(self, address: tuple):
        self.address = address

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, GenError):
            error.address = (*self.address, *(error.address or ()))


def show_address(address: tuple) -> str:
    """The address as the user writes it: ``'slope'``, ``('y', 3)``."""
    return repr(address[0]) if len(address) == 1 else repr(tuple(address))


def show_addresses(addresses: Iterable[tuple], limit: int = 12) -> str:
    """A list of addresses, cut after ``limit``."""
    listed = list(addresses)
    shown = ", ".join(show_address(a) for a in listed[:limit])
    return shown + (f", ... {len(listed) - limit} more" if len(listed) > limit else "") if listed else "none"


def one_of(addresses: Iterable[tuple]) -> str:
    """What was expected, when an address is none of these."""
    listed = list(addresses)
    return f"one of {show_addresses(listed)}" if listed else "no address: there are no choices"


def nearest(address: tuple, candidates: Iterable[tuple]) -> list[tuple]:
    """The candidates whose spelling is closest to ``address``, best first, at most two; case counts for little."""
    spelled = "/".join(map(str, address))
    texts = {"/".join(map(str, c)): c for c in candidates}
    for cutoff in (0.75, 0.5):
        if close := close_matches(spelled, texts, 2, cutoff):
            return [texts[t] for t in close]
    return []


def close_matches(word: str, known: Iterable[str], n: int = 3, cutoff: float = 0.6) -> list[str]:
    """The known words whose spelling is closest, best first; those first that differ in case alone.

    >>> close_matches("Y", ["x", "y"]), close_matches("MODEL", ["modes", "model"], 1), close_matches("no", ["NoChange"])
    (['y'], ['model'], [])
    """
    known, plain = list(known), word.casefold()
    alike = [one for one in known if one.casefold() == plain]
    folded = {one.casefold(): one for one in known}
    any_case = [folded[text] for text in get_close_matches(plain, folded, n, max(cutoff, _ANY_CASE))]
    return list(dict.fromkeys([*alike, *get_close_matches(word, known, n, cutoff), *any_case]))[:n]


def name_of(gen_fn: Any) -> str:
    return getattr(gen_fn, "__name__", None) or repr(gen_fn)


def is_library_file(filename: str) -> bool:
    """Whether a code object comes from this project (tests and doctests beside it do not count)."""
    return filename.startswith(_OURS)


def user_line(traceback: TracebackType | None) -> str | None:
    """``file:line`` of the innermost frame of a traceback that is not this library's."""
    found = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not is_library_file(code.co_filename) and not code.co_filename.startswith(_LINE):
            found = show_line(code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def show_line(filename: str, line: int) -> str:
    """``file:line``, or the cell and line for code that was typed into IPython.

    >>> show_line("<ipython-input-4-0c1f2a>", 2), show_line("models.py", 7)
    ('Cell In[4], line 2', 'models.py:7')
    """
    cell = filename.removeprefix("<ipython-input-").partition("-")[0]
    typed = filename.startswith("<ipython-input-") and cell.isdigit()
    where = f"Cell In[{cell}]" if typed else _cell_of_kernel(filename)
    return f"{where}, line {line}" if where else f"{filename}:{line}"


def _cell_of_kernel(filename: str) -> str | None:
    """The cell that a Jupyter kernel keeps under the name of a temporary file."""
    module = sys.modules.get("IPython.core.getipython")
    shell = None if module is None else module.get_ipython()
    found = None if shell is None else shell.compile.format_code_name(filename)
    return found and " ".join(found)


def caller_line() -> str | None:
    """``file:line`` of the innermost running frame that is not this library's; None for a magic's own run or line."""
    frame = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not is_library_file(filename):
            return None if _SHELL in filename or filename.startswith(_LINE) else show_line(filename, frame.f_lineno)
        frame = frame.f_back
    return None
