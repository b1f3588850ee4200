"""Addresses: a string, an integer, or a tuple of them. Inside the library an address is always a tuple."""

from __future__ import annotations

import operator
from typing import Any

from genmlx.errors import AddressError

Address = str | int | tuple[str | int, ...]


def normalise(address: Any) -> tuple:
    """The address as a tuple of strings and integers.

    >>> normalise("slope"), normalise(("y", 3))
    (('slope',), ('y', 3))
    """
    if type(address) is str:
        return (address,)
    if isinstance(address, tuple):
        return tuple([part if type(part) in (str, int) else _part(part, address) for part in address])
    return (_part(address, address),)


def _part(part: Any, address: Any) -> str | int:
    if isinstance(part, str):
        return str(part)
    if not isinstance(part, bool) and hasattr(type(part), "__index__") and not hasattr(part, "shape"):
        return operator.index(part)
    if type(part).__module__ == "numpy" and getattr(part, "shape", None) == () and part.dtype.kind in "iu":
        return int(part)
    raise AddressError(
        f"{address!r} is not an address",
        expected="a string, an integer, or a tuple of them",
        hint="addresses are fixed names: use a Python int for an index, not an array or a bool",
    )
