"""The language in an IPython session: `%load_ext magics` puts its names in scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def _names() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec("import mlx.core as mx\nimport genmlx\nfrom genmlx import *", names)
    del names["__builtins__"]
    import genmlx

    # What the package has lazily is at hand here too.
    return names | {name: getattr(genmlx, name) for name in sorted(genmlx.LAZY)}


def load_ipython_extension(ip: InteractiveShell) -> None:
    ip.push(_names(), interactive=False)


def unload_ipython_extension(ip: InteractiveShell) -> None:
    """Take the names away again, except those that the user has given another value."""
    ip.drop_by_id(_names())
