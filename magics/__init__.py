"""The language in an IPython session: `%load_ext magics` puts its names in scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def _names() -> dict[str, Any]:
    import mlx.core as mx

    import genmlx

    names = {name: getattr(genmlx, name) for name in genmlx.__all__}
    return {"mx": mx, "genmlx": genmlx, **names}


def load_ipython_extension(ip: InteractiveShell) -> None:
    """`import mlx.core as mx`, `import genmlx`, `from genmlx import *`."""
    ip.push(_names(), interactive=False)


def unload_ipython_extension(ip: InteractiveShell) -> None:
    """Take the names away again, except those that the user has given another value."""
    ip.drop_by_id(_names())
