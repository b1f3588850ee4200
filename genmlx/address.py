"""Addresses: a string, an integer, or a tuple of them. Inside the library an address is always a tuple."""

from __future__ import annotations

from numbers import Integral
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
    if isinstance(part, Integral) and not isinstance(part, bool):  # numpy's integers count themselves in
        return int(part)
    raise AddressError(
        f"{address!r} is not an address",
        expected="a string, an integer, or a tuple of them",
        hint="addresses are fixed names: use a Python int for an index, not an array or a bool",
    )
