"""The workbench in an IPython session: ``%load_ext genmlx`` puts the language in scope and its magics in reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magics.names import LazyNames, eager_names

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(ip: InteractiveShell) -> None:
    """Loading twice is loading once."""
    from magics import comments, tracebacks
    from magics.complete import Completer
    from magics.session import session
    from magics.specs import SPECS, WHERE
    from workbench import reload

    if hasattr(ip, "_genmlx_session"):
        return
    ip.push(eager_names(), interactive=False)
    LazyNames(ip).install()
    session(ip).memory.install()
    Completer(session(ip)).install()
    comments.install(session(ip))
    tracebacks.install(session(ip))
    reload.install(session(ip))
    for name, spec in SPECS.items():
        ip.magics_manager.register_lazy(name, WHERE[name], spec.kind)


def unload_ipython_extension(ip: InteractiveShell) -> None:
    """Take everything away again, except names that the user has given another value."""
    from magics.session import end_session
    from magics.specs import SPECS, WHERE
    from workbench.compat import forget_magic

    names: dict[str, Any] = eager_names()
    for hook in [hook for hook in ip.ast_transformers if isinstance(hook, LazyNames)]:
        names |= hook.given
        hook.remove()
    ip.drop_by_id(names)
    end_session(ip)
    for name in SPECS:
        forget_magic(ip, name, WHERE[name])
