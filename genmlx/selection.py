"""Selections: sets of addresses with an algebra. ``select("x")`` holds the leaf ``x``, or everything under ``x``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genmlx.address import normalise


class Selection:
    """A set of addresses. ``s & t``, ``s | t``, ``~s``, ``addr in s``, and ``s[prefix]`` for what it holds below.

    >>> s = select("slope", ("y", 0))
    >>> "slope" in s, ("y", 0) in s, ("y", 1) in s, "y" in s
    (True, True, False, False)
    >>> ("y", 1) in ~s, s["y"]
    (True, select(0))
    """

    __slots__ = ()

    def below(self, part: Any) -> Selection:
        """The selection inside the sub-map at one address part."""
        raise NotImplementedError

    @property
    def here(self) -> bool:
        """Whether the address reached is itself in the set."""
        return False

    def named(self) -> Iterator[tuple]:
        """Every address that the expression names."""
        return iter(())

    def at(self, address: tuple) -> Selection:
        selection = self
        for part in address:
            selection = selection.below(part)
        return selection

    def __getitem__(self, prefix: Any) -> Selection:
        return self.at(normalise(prefix))

    def __contains__(self, address: Any) -> bool:
        return self.at(normalise(address)).here

    def __invert__(self) -> Selection:
        return NONE if self is ALL else ALL if self is NONE else self.base if isinstance(self, Not) else Not(self)

    def __and__(self, other: Selection) -> Selection:
        if self is NONE or other is NONE:
            return NONE
        return other if self is ALL else self if other is ALL else Both(self, other)

    def __or__(self, other: Selection) -> Selection:
        if self is ALL or other is ALL:
            return ALL
        return other if self is NONE else self if other is NONE else Either(self, other)


class Everything(Selection):
    __slots__ = ()

    @property
    def here(self) -> bool:
        return True

    def below(self, part: Any) -> Selection:
        return self

    def __repr__(self) -> str:
        return "select.all()"

    def __reduce__(self) -> str:
        return "ALL"


class Nothing(Selection):
    __slots__ = ()

    def below(self, part: Any) -> Selection:
        return self

    def __repr__(self) -> str:
        return "select.none()"

    def __reduce__(self) -> str:
        return "NONE"


ALL, NONE = Everything(), Nothing()


class Names(Selection):
    """The addresses under a few names: ``{part: selection below it}``."""

    __slots__ = ("parts",)

    def __init__(self, parts: dict[Any, Selection]):
        self.parts = parts

    def below(self, part: Any) -> Selection:
        return self.parts.get(part, NONE)

    def named(self) -> Iterator[tuple]:
        for part, selection in self.parts.items():
            if selection is ALL:
                yield (part,)
            for rest in selection.named():
                yield (part, *rest)

    def __repr__(self) -> str:
        addresses = [a[0] if len(a) == 1 else a for a in self.named()]
        return f"select({', '.join(map(repr, addresses))})"


class Not(Selection):
    __slots__ = ("base",)

    def __init__(self, base: Selection):
        self.base = base

    @property
    def here(self) -> bool:
        return not self.base.here

    def below(self, part: Any) -> Selection:
        return ~self.base.below(part)

    def named(self) -> Iterator[tuple]:
        return self.base.named()

    def __repr__(self) -> str:
        return f"~({self.base!r})" if isinstance(self.base, (Both, Either)) else f"~{self.base!r}"


class Both(Selection):
    __slots__ = ("left", "right")

    def __init__(self, left: Selection, right: Selection):
        self.left, self.right = left, right

    @property
    def here(self) -> bool:
        return self.left.here and self.right.here

    def below(self, part: Any) -> Selection:
        return self.left.below(part) & self.right.below(part)

    def named(self) -> Iterator[tuple]:
        yield from self.left.named()
        yield from self.right.named()

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"


class Either(Both):
    __slots__ = ()

    @property
    def here(self) -> bool:
        return self.left.here or self.right.here

    def below(self, part: Any) -> Selection:
        return self.left.below(part) | self.right.below(part)

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"


class _Select:
    """``select("a", ("y", 0))``, ``select.all()``, ``select.none()``."""

    def __call__(self, *addresses: Any) -> Selection:
        parts: dict = {}
        for address in map(normalise, addresses):
            if not address:
                return ALL
            node = parts
            for part in address[:-1]:
                node = node.setdefault(part, {})
                if node is ALL:
                    break
            else:
                node[address[-1]] = ALL
        return _names(parts)

    def all(self) -> Selection:
        return ALL

    def none(self) -> Selection:
        return NONE

    def __repr__(self) -> str:
        return "select"


def _names(parts: dict) -> Selection:
    if not parts:
        return NONE
    return Names({part: below if below is ALL else _names(below) for part, below in parts.items()})


select = _Select()


def as_selection(value: Any) -> Selection:
    """A selection from what a user passes: a selection, or one address."""
    return value if isinstance(value, Selection) else select(value)
