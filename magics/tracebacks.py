"""Tracebacks of errors that pass through a magic: the frames of the user's code, without those of the library."""

from __future__ import annotations

import linecache
import re
from itertools import dropwhile
from types import TracebackType
from typing import Any


def install(session: Any) -> None:
    """Keep the error of the last cell that had one as ``_e``: that of a magic too, with every frame."""

    def keep(result: Any) -> None:
        error = result.error_in_exec or result.error_before_exec
        if error is not None:
            session.bind(_e=error)

    events = session.ip.events
    events.register("post_run_cell", keep)
    session.at_end.append(lambda: events.unregister("post_run_cell", keep))


def show_users_frames(ip: Any, error: Exception) -> None:
    """Let IPython show an error by the frames of the user's code, and by the innermost frame, whose ever it is.

    An error that shows itself, or that no code of the user's has a part in, is left as it is. ``_e.__traceback__`` has
    every frame.
    """
    if hasattr(error, "_render_traceback_") or isinstance(error, SyntaxError):
        return
    short = _of_user(error.__traceback__)
    if short is None:
        return
    if isinstance(error, NameError) and (hint := _no_variable(error)) is not None:
        error.add_note(hint)

    def render() -> list[str]:
        return ip.InteractiveTB.structured_traceback(type(error), error, short, tb_offset=0)

    error.__dict__["_render_traceback_"] = render


def _of_user(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback without frames of this project and of IPython, but for its last one; None where nothing is left."""
    from genmlx.errors import is_library_file

    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    outside = [t for t in frames if not is_library_file(t.tb_frame.f_code.co_filename)]
    theirs = list(dropwhile(lambda t: _is_installed(t.tb_frame.f_code.co_filename), outside))
    if not theirs:
        return None
    last = frames[-1]
    found = None
    for t in reversed(theirs if last is theirs[-1] else [*theirs, last]):
        found = TracebackType(found, t.tb_frame, t.tb_lasti, t.tb_lineno)
    return found


def _is_installed(file: str) -> bool:
    """Whether a file is Python's own or that of a package."""
    import sysconfig

    paths = sysconfig.get_paths()
    return file.startswith(tuple(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")))


def _no_variable(error: NameError) -> str | None:
    """That ``theta[i] ~ ...`` makes a choice and no variable ``theta``, where a body takes it for one."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None or not error.name:
        return None
    text = "".join(linecache.getlines(traceback.tb_frame.f_code.co_filename))
    made = re.search(rf"^[ \t]*({re.escape(error.name)}\[([^\]\n]*)\])[ \t]*~", text, re.MULTILINE)
    if made is None:
        return None
    return f"{made[1]} ~ ... makes a choice and no variable: t = trace(({error.name!r}, {made[2]}), ...) does both"
