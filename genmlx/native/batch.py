"""A batch of traces as machine code: keys, observations and states go in; traces and weights come out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from genmlx.errors import UsageError
from genmlx.native.graph import Untranslatable
from genmlx.native.kernel import NativeFunction, compile_function

_LOG = logging.getLogger("genmlx.native")
_ROUNDING = 1e-3
"""What two float32 evaluations may differ by, of the size of what they are evaluations of."""
_FLIPPED = 1e-3
"""The share of lanes that may differ by more: where a draw from a table falls on the other side of an edge."""


def native_batch(
    f: Callable[..., list], arrays: list[mx.array], expected: list[mx.array], required: bool
) -> NativeFunction | None:
    """``f(*arrays)``, which gives ``expected`` here, with the lanes first, as machine code.

    None, and a line in the log, where it has no native form, or gives something else; if it is ``required``, an error.
    """
    try:
        if mx.default_device() != mx.Device(mx.cpu):
            raise Untranslatable("machine code on the default device, which is not the CPU")
        made = compile_function(f, *arrays)
        _require_agreement(made(*arrays), expected)
        return made
    except Exception as error:  # as for the density of a model: the batch runs, whatever goes wrong in here
        if required:
            raise
        foreseen = isinstance(error, (Untranslatable, UsageError))
        what = str(error) if foreseen else f"{type(error).__name__}: {error}"
        _LOG.log(logging.INFO if foreseen else logging.WARNING, "a batch runs on MLX: %s", what)
        return None


def _require_agreement(mine: list[mx.array], theirs: list[mx.array]) -> None:
    n = theirs[0].shape[0]
    wrong = np.zeros(n, dtype=bool)
    for a, b in zip(mine, theirs, strict=True):
        wrong |= _apart(np.array(a), np.array(b)).reshape(n, -1).any(axis=1)
    if wrong.sum() > max(1.0, _FLIPPED * n):
        raise Untranslatable(f"machine code that differs in {wrong.sum()} of {n} lanes")


def _apart(a: Any, b: Any) -> Any:
    """Where two arrays differ by more than rounding."""
    if b.dtype.kind != "f":
        return a != b
    with np.errstate(invalid="ignore"):
        close = np.abs(a - b) <= _ROUNDING * (1.0 + np.abs(b))
    return ~(close | (a == b) | (np.isnan(a) & np.isnan(b)))
