"""What the magics of one IPython session share: settings, the last results, and how a magic is made of a function."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, no_var_expand
from traitlets import Bool, Enum, Float, Int, Unicode
from traitlets.config import Configurable

from magics.grammar import Line, Spec, help_text


class GenMagics(Configurable):
    """Settings: ``%config GenMagics.chains = 8``, or ``[tool.genmlx]`` in the nearest pyproject.toml."""

    draws = Int(1000, help="draws of a chain").tag(config=True)
    chains = Int(4, help="chains of a run").tag(config=True)
    live = Enum(("auto", "text", "html", "mpl", "off"), "auto", help="how a run is shown").tag(config=True)
    mem = Enum(("line", "auto", "toolbar", "off"), "line", help="the memory line after each cell").tag(config=True)
    on_interrupt = Enum(
        ("auto", "return", "raise"), "auto", help="what Ctrl-C does to a run: auto raises in scripts only"
    ).tag(config=True)
    ascii = Bool(False, help="trees and bars without box-drawing characters").tag(config=True)
    width = Int(88, help="columns of tables and trees").tag(config=True)
    cache_limit = Unicode("", help="limit of MLX's cache, as 2GB; empty for the shell's own").tag(config=True)
    until = Unicode("", help="when runs may stop early, as rhat<1.01").tag(config=True)
    paint_share = Float(0.02, help="the most of a run's time that goes to showing it").tag(config=True)


class Session:
    """The state of the workbench in one IPython shell."""

    def __init__(self, ip: Any):
        self.ip = ip
        self.settings = GenMagics(parent=ip)
        self.last_infer: str | None = None  # what %infer without arguments repeats
        self.at_end: list[Callable[[], None]] = []  # what undoes the hooks that a part of the workbench has set

    @property
    def names(self) -> dict[str, Any]:
        return self.ip.user_ns

    def bind(self, **values: Any) -> None:
        """Give names to results: ``_tr``, ``_post``, and what -o asks for."""
        self.ip.push(values, interactive=all(not name.startswith("_") for name in values))

    def line_width(self) -> int:
        return self.settings.width


def session(ip: Any) -> Session:
    """The session of a shell, made when it is first asked for."""
    found = getattr(ip, "_genmlx_session", None)
    if found is None:
        found = ip._genmlx_session = Session(ip)
    return found


def end_session(ip: Any) -> None:
    """Undo what the session has done to the shell."""
    found = getattr(ip, "_genmlx_session", None)
    if found is not None:
        for undo in reversed(found.at_end):
            undo()
        del ip._genmlx_session


def magic(spec: Spec) -> Callable[[Callable], Callable]:
    """Make a method ``(self, line: Line, cell: str | None) -> result`` a magic of this grammar.

    The result is what the magic returns: shown by IPython, unless the line ends in ``;``, and bound by ``-o``.
    """

    def decorate(method: Callable) -> Callable:
        @no_var_expand
        @wraps(method)
        def run(self: Any, line: str, cell: str | None = None) -> Any:
            parsed = Line(spec, line, "%%" if cell is not None else None)
            if "help" in parsed:
                print(help_text(spec))
                return None
            result = method(self, parsed, cell)
            if "out" in parsed and result is not None:
                self.session.bind(**{parsed.word("out") or "": result})
            return None if parsed.silent else result

        run.__doc__ = help_text(spec)
        return run

    return decorate


class SessionMagics(Magics):
    """Magics that share a session."""

    @property
    def session(self) -> Session:
        return session(self.shell)

    @property
    def names(self) -> dict[str, Any]:
        return self.session.names


__all__ = ["GenMagics", "Session", "SessionMagics", "UsageError", "end_session", "magic", "session"]
