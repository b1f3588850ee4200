"""What a user means by an address of a posterior: its numbers, one array of draws for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from genmlx.address import normalise
from genmlx.diagnostics.draws import to_float64
from genmlx.errors import UnknownAddress, nearest, show_address, show_addresses


class Element(NamedTuple):
    """One number of the model: its name as in a summary, its draws ``[chains, draws]``, whether it is discrete.

    A draw whose trace has no such choice is NaN.
    """

    name: str
    values: np.ndarray
    discrete: bool = False

    @property
    def pooled(self) -> np.ndarray:
        """The finite draws of all chains."""
        return self.values[np.isfinite(self.values)]

    def chains(self) -> list[np.ndarray]:
        """The finite draws of each chain."""
        return [chain[np.isfinite(chain)] for chain in self.values]


def elements(posterior: Any, addresses: Iterable[Any] | None = None) -> list[Element]:
    """The numbers at some addresses, or at all.

    An address may go on into an array, as ``("theta", 3)``, or be one that others begin with.
    Raises ``UnknownAddress``.
    """
    found: dict[str, Element] = {}
    for address in posterior.addresses() if addresses is None else addresses:
        for own, index in located(posterior, normalise(address)):
            for element in _numbers(posterior, own, index):
                found.setdefault(element.name, element)
    return list(found.values())


def located(result: Any, address: tuple) -> list[tuple[tuple, tuple]]:
    """The addresses of a result that an address stands for, each with an index into the array that is there."""
    known = result.addresses()
    for cut in range(len(address), 0, -1):
        own, index = address[:cut], address[cut:]
        if own in known:
            return [(own, _inside(_event(result, own), own, index))]
    below = [(a, ()) for a in known if a[: len(address)] == address]
    if not below:
        expected = f"one of {show_addresses(known)}"
        raise UnknownAddress("no such address", address=address, suggestions=nearest(address, known), expected=expected)
    return below


def _event(result: Any, address: tuple) -> tuple:
    """The shape of a choice: without chains and draws, or without particles."""
    return tuple(result[address].shape[2 if hasattr(result, "draws") else 1 :])


def _inside(event: tuple, address: tuple, index: tuple) -> tuple:
    if len(index) <= len(event) and all(isinstance(i, int) and -n <= i < n for i, n in zip(index, event, strict=False)):
        return tuple(i % n for i, n in zip(index, event, strict=False))
    what = f"the shape {event}" if event else "a single number"
    raise UnknownAddress("no such element", address=address + index, expected=f"{show_address(address)} has {what}")


def _numbers(posterior: Any, address: tuple, index: tuple) -> Iterator[Element]:
    raw = posterior[address]
    discrete = not str(posterior.values_at(address).dtype).rpartition(".")[2].startswith(("float", "bfloat"))
    values, event = to_float64(raw), tuple(raw.shape[2:])
    for i in product(*map(range, event)):
        if i[: len(index)] == index:
            yield Element(element_name(address, i), values[(..., *i)], discrete)


def element_name(address: tuple, index: tuple) -> str:
    """The name of a number as in a summary: ``y/3``, ``theta[0,1]``."""
    site = "/".join(map(str, address))
    return f"{site}[{','.join(map(str, index))}]" if index else site
