"""Looking inside a run without changing it, as Clojure's ``tap>``."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import handlers
from genmlx.pytree import split_arrays


class Tapped(NamedTuple):
    """A value that went by, its label, and the model whose body it was in, if any."""

    value: Any
    label: str | None
    model: Any


_ring: deque[Tapped] = deque(maxlen=1000)
_sinks: list[Callable[[Tapped], Any]] = []
_warned = False


def tap(value: Any, label: str | None = None) -> Any:
    """The value itself; it is kept among the last 1,000 that went by, and given to every sink.

    Under a transformation (a batch, a gradient, compilation) there is no value yet: it is passed on unseen, with one
    warning in the session.

    >>> tap(2.0, "twice") + 1, taps("twice")[-1].value
    (3.0, 2.0)
    """
    global _warned
    try:
        mx.async_eval(split_arrays(value)[0])
    except ValueError:
        if not _warned:
            _warned = True
            warnings.warn("tap saw a traced value, which has no number to show; it was passed on", stacklevel=2)
        return value
    handler = handlers._handler.get()
    entry = Tapped(value, label, None if handler is None else handler.owner)
    _ring.append(entry)
    for sink in list(_sinks):
        sink(entry)
    return value


def taps(label: str | None = None) -> list[Tapped]:
    """What went by, oldest first; with a label, only that."""
    return [entry for entry in _ring if label is None or entry.label == label]


def clear_taps() -> None:
    """Forget what went by."""
    _ring.clear()


def add_sink(sink: Callable[[Tapped], Any]) -> Callable[[], None]:
    """Call ``sink(tapped)`` for every value from now on; gives the function that ends that."""
    _sinks.append(sink)
    return lambda: _sinks.remove(sink) if sink in _sinks else None
