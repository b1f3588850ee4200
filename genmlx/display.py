"""How IPython shows choice maps, traces and results. The workbench, which draws them, is imported then."""

from __future__ import annotations

from typing import Any


def mimebundle(thing: Any, include: Any = None, exclude: Any = None) -> dict[str, str]:
    """A class's ``_repr_mimebundle_``."""
    from workbench.display import mimebundle

    return mimebundle(thing)


def pretty(thing: Any, printer: Any, cycle: bool) -> None:
    """A class's ``_repr_pretty_``. IPython looks for it in the class itself, beside its ``__repr__``."""
    from workbench.display import pretty

    pretty(thing, printer, cycle)
