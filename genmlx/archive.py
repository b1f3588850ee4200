"""Files of arrays: a zip of numpy arrays (``.npz``) with a head of JSON, written as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import mlx.core as mx

from genmlx.errors import GenError

_WORDS = {mx.bfloat16: mx.uint16}  # numpy lacks bfloat16: its bits are kept as whole numbers


def write(path: str | os.PathLike, form: str, head: Mapping[str, Any], arrays: Mapping[str, mx.array]) -> None:
    """Write to another name and rename, so that a write that fails or is killed leaves an old file as it was."""
    import numpy as np

    dtypes = {name: str(array.dtype).removeprefix("mlx.core.") for name, array in arrays.items()}
    words = {name: array.view(_WORDS.get(array.dtype, array.dtype)) for name, array in arrays.items()}
    plain: dict[str, Any] = {name: np.array(array) for name, array in words.items()}
    text = json.dumps({**head, "format": form, "dtypes": dtypes})
    path = os.fspath(path)
    temporary = f"{path}.{os.getpid()}.part"
    try:
        with open(temporary, "wb") as file:
            np.savez(file, head=np.array(text), **plain)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def read(path: str | os.PathLike, form: str) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """The head and the arrays. A file that holds anything else, or only a part, raises one error or another."""
    import numpy as np

    with open(path, "rb") as file, np.load(file, allow_pickle=False) as saved:
        head = json.loads(str(saved["head"]))
        if head["format"] != form:
            raise ValueError(f"its format is {head['format']!r}, not {form!r}")
        arrays = {}
        for name, kind in head["dtypes"].items():
            dtype = getattr(mx, "bool_" if kind == "bool" else kind)
            stored = saved[name]
            arrays[name] = mx.array(stored).view(dtype) if dtype in _WORDS else mx.array(stored, dtype=dtype)
        return head, arrays


def unreadable(path: str | os.PathLike, what: str, expected: str, hint: str, error: Exception) -> GenError:
    return GenError(
        f"{os.fspath(path)} is not {what}, or only part of one",
        expected=expected,
        hint=f"{hint}; the reader said: {type(error).__name__}: {error}",
    )
