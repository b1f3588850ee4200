"""What is known about how an argument or a return value changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Diff:
    """A statement about a change; ``NoChange``, ``UnknownChange`` or ``VectorDiff``."""

    __slots__ = ()


class _Named(Diff):
    __slots__ = ("_name",)

    def __init__(self, name: str):
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self):
        return self._name


NoChange = _Named("NoChange")
UnknownChange = _Named("UnknownChange")


class VectorDiff(Diff):
    """Only the elements at ``indices`` of a sequence changed."""

    __slots__ = ("indices",)

    def __init__(self, indices: Iterable[int]):
        self.indices = frozenset(indices)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VectorDiff) and other.indices == self.indices

    def __hash__(self) -> int:
        return hash(self.indices)

    def __repr__(self) -> str:
        return f"VectorDiff({{{', '.join(map(repr, sorted(self.indices)))}}})"


def same(a: Any, b: Any) -> bool:
    """Whether two arguments are known to be equal without computing anything.

    >>> same(1.0, 1.0), same((1, "a"), (1, "a")), same([1], [2])
    (True, True, False)
    """
    if a is b:
        return True
    kind = type(a)
    if kind is not type(b):
        return False
    if kind in (int, float, str, bool):
        return a == b
    if kind in (tuple, list):
        return len(a) == len(b) and all(map(same, a, b))
    if kind is dict:
        return a.keys() == b.keys() and all(same(value, b[name]) for name, value in a.items())
    return False
