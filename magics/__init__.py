"""The language in an IPython session: `%load_ext genmlx` puts its names in scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magics.names import LazyNames, eager_names

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(ip: InteractiveShell) -> None:
    ip.push(eager_names(), interactive=False)
    LazyNames(ip).install()


def unload_ipython_extension(ip: InteractiveShell) -> None:
    """Take the names away again, except those that the user has given another value."""
    names: dict[str, Any] = eager_names()
    for hook in [hook for hook in ip.ast_transformers if isinstance(hook, LazyNames)]:
        names |= hook.given
        hook.remove()
    ip.drop_by_id(names)
