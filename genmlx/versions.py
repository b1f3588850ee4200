"""Which version of each model a run uses.

A ``GenFn`` is a handle over immutable versions. A public operation resolves each handle once and keeps the answer
in a dict, the *pins*, for its whole duration, so that a redefinition never tears a run in two. A trace keeps the
pins it was made with and goes on using them.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

Pins = dict

_pins: ContextVar[Pins | None] = ContextVar("genmlx_pins", default=None)


class pinned:
    """A context in which every handle has one version: those of ``pins`` first, then those of the run around it."""

    __slots__ = ("pins", "token")

    def __init__(self, pins: Pins | None = None):
        self.pins = pins

    def __enter__(self) -> Pins:
        outer = _pins.get()
        self.token = None
        if outer is not None and (self.pins is None or self.pins is outer):
            return outer
        inner = {**(outer or {}), **(self.pins or {})}
        self.token = _pins.set(inner)
        return inner

    def __exit__(self, *exc: Any) -> None:
        if self.token is not None:
            _pins.reset(self.token)


def current_pins() -> Pins:
    """The pins of the run that is going on; an empty dict outside of one."""
    pins = _pins.get()
    return {} if pins is None else pins


def resolve(handle: Any) -> Any:
    """The version of a handle in this run."""
    pins = _pins.get()
    if pins is None:
        return handle.version
    version = pins.get(handle)
    if version is None:
        version = pins[handle] = handle.version
    return version
