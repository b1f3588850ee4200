"""When machine code is used, and what is said where it is not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx

from genmlx.errors import BatchError, UsageError
from genmlx.native.graph import Untranslatable

log = logging.getLogger("genmlx.native")
Made = TypeVar("Made")


def on_the_cpu() -> bool:
    """Whether that is MLX's default device."""
    return mx.default_device() == mx.Device(mx.cpu)


class Disagreement(Untranslatable):
    """Machine code that does not give what the handlers give: an error of this package, which runs on MLX instead."""


def attempted(
    what: str, call: Any, make: Callable[[], Made], required: bool, elsewhere: Callable[[], Made] | None = None
) -> Made | None:
    """What ``make()`` gives; None, and a line in the log, where there is no native form. An error if ``required``.

    Where the default device is not the CPU, it is what ``elsewhere()`` gives.
    """
    try:
        if on_the_cpu():
            return make()
        if elsewhere is None:
            raise Untranslatable("machine code on the default device, which is not the CPU")
        return elsewhere()
    # Whatever goes wrong in here is no reason not to run; an error of the model comes again.
    except Exception as error:
        if required:
            raise
        tell(error, f"{what} of {call!r} runs on MLX")
        return None


def tell(error: Exception, what: str) -> None:
    """A line in the log: what happens instead, and because of which error; a warning where that was not foreseen."""
    foreseen = isinstance(error, (Untranslatable, UsageError, BatchError)) and not isinstance(error, Disagreement)
    said = (str(error) if foreseen else f"{type(error).__name__}: {error}").partition("\n")[0]
    log.log(logging.INFO if foreseen else logging.WARNING, "%s: %s", what, said)
