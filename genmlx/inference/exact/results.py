"""What the exact algorithms that run in float64 on the host have in common: numbers in, and named arrays out."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.choicemap import show_type, show_value
from genmlx.errors import ParameterError


def doubles(name: str, value: Any) -> Any:
    """A numpy array in float64 of numbers, lists, and arrays of either kind."""
    import numpy as np

    try:
        if isinstance(value, mx.array) and value.dtype == mx.bfloat16:  # which numpy does not know
            value = value.astype(mx.float32)
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"{name} must be an array of numbers, got {value!r:.60}", expected=str(error)) from None


def single(value: Any) -> mx.array:
    """An array in float32 of one in float64."""
    import numpy as np

    return mx.array(np.asarray(value, dtype=np.float32))


def one_line(self: Any) -> str:
    """The ``__repr__`` of a named tuple of arrays: numbers, and the shapes of all else."""
    shown = (f"{name} {show_type(v) if v.ndim else show_value(v)}" for name, v in self._asdict().items())
    return f"<{type(self).__name__} {', '.join(shown)}>"
