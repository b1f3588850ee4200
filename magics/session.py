"""What the magics of one IPython session share: settings, the last results, and how a magic is made of a function."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, no_var_expand

from magics.grammar import Line, Spec, help_text
from magics.settings import GenMagics, read_project
from magics.tracebacks import show_users_frames
from workbench.memory import MemoryLine


class Session:
    """The state of the workbench in one IPython shell."""

    def __init__(self, ip: Any):
        self.ip = ip
        self.settings = GenMagics(parent=ip)
        read_project(self.settings, Path.cwd())
        self.last_infer: Line | None = None  # what %infer without arguments repeats
        self.reloader: Any = None  # a workbench.reload.Reloader, once the extension is loaded
        self._shown: Any = None
        self.memory: MemoryLine = MemoryLine(self)
        self.failed: dict[str, str] = {}  # what came of cells that failed, by the names that they were to define
        self.at_end: list[Callable[[], None]] = []  # what undoes the hooks that a part of the workbench has set
        ip.configurables.append(self.settings)  # where %config looks
        self.at_end.append(lambda: ip.configurables.remove(self.settings))

    @property
    def names(self) -> dict[str, Any]:
        return self.ip.user_ns

    def show(self, result: Any, picture: Any, output: Any = None) -> None:
        """Display a picture of a result that the magic also returns, and keep IPython from showing that as well.

        It takes the place of what is there already in ``output``, a DisplayHandle.
        """
        from IPython.display import display

        if output is None:
            display(picture)
        else:
            output.update(picture)
        self.hide(result)

    def hide(self, result: Any) -> None:
        """Keep IPython from showing a result that a magic returns to the end of a cell."""
        self._hook()
        self._shown = result

    def _hook(self) -> None:
        """Let the display of the last expression of a cell pass over what has been shown."""
        trap = self.ip.display_trap
        if isinstance(trap.hook, _Once):
            return
        original = trap.hook
        trap.hook = _Once(self, original)
        if sys.displayhook is original:  # the cell that runs has it in place already
            sys.displayhook = trap.hook
        self.at_end.append(lambda: setattr(trap, "hook", original))

    def bind(self, **values: Any) -> None:
        """Give names to results: ``_tr``, ``_post``, and what -o asks for."""
        self.ip.push(values, interactive=all(not name.startswith("_") for name in values))

    def toolbar(self) -> str:
        """One line: device, memory, the latest models, the last posterior."""
        import mlx.core as mx

        from workbench.memory import shown

        peak = max(self.memory.meter.session_peak, mx.get_peak_memory())
        parts = [
            "genmlx",
            str(mx.default_device()),
            f"active {shown(mx.get_active_memory())}",
            f"cache {shown(mx.get_cache_memory())}",
            f"peak {shown(peak)}",
            *[f"{name} {model.version}" for name, model in self.models()[-2:]],
        ]
        last: Any = self.names.get("_post")
        if hasattr(last, "draws"):
            parts.append(f"post {last.chains}x{last.draws}")
        return " " + " - ".join(parts)

    def pending(self) -> list[str]:
        """The models whose last cell failed, and the files that could not be loaded; what runs is older."""
        found = self.reloader
        files = [] if found is None else [found.sources[name].file for name in found.pending if name in found.sources]
        return [*self.failed, *files]

    def models(self) -> list[tuple[str, Any]]:
        """The models that have a name in the session, in the order in which they were named."""
        from genmlx.gen import GenFn

        return [(n, v) for n, v in self.names.items() if isinstance(v, GenFn) and not n.startswith("_")]

    def attended(self) -> bool:
        """Whether somebody is there who sees that a run was cut short."""
        from workbench.compat import may_ask

        return not self.scripted() and may_ask(self.ip)

    def scripted(self) -> bool:
        """Whether cells come from a file or a command line, with nobody there to see what one of them says."""
        batch = getattr(self.ip, "batch", False) or not (hasattr(self.ip, "pt_app") or hasattr(self.ip, "kernel"))
        return batch or os.environ.get("GENMLX_CI") == "1"

    def colours(self) -> bool:
        """Whether text may have colours: at a terminal that wants them."""
        if "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
            return False
        return str(getattr(self.ip, "colors", "nocolor")).lower() != "nocolor"


class _Once:
    """A display hook that leaves out the one result that a magic has shown already."""

    def __init__(self, session: Session, original: Any):
        self.session, self.original = session, original

    def __call__(self, result: Any = None) -> None:
        shown, self.session._shown = self.session._shown, None
        if result is None or result is not shown or not self._of_magic():
            self.original(result)

    def _of_magic(self) -> bool:
        """Whether the cell ends in a magic, and not in the name of what one returned."""
        lines = str((self.session.names.get("In") or [""])[-1]).rstrip().splitlines() or [""]
        return lines[-1].lstrip().startswith("get_ipython().run_")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


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
                print(self.help(parsed))
                return None
            try:
                result = method(self, parsed, cell)
            except Exception as error:
                show_users_frames(self.shell, error)
                raise
            if "out" in parsed and result is not None:
                self.session.bind(**{parsed.word("out") or "": result})
            if parsed.silent:
                self.session.hide(result)
            return result

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

    def help(self, line: Line) -> str:
        """What ``-h`` shows."""
        return help_text(line.spec)


__all__ = ["GenMagics", "Session", "SessionMagics", "UsageError", "end_session", "magic", "session"]
