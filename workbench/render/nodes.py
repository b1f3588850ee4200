"""The nodes of a choice map or a trace: what lies at each address, and its log density."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from keyword import iskeyword
from typing import Any

import mlx.core as mx

from genmlx.choicemap import ChoiceMap
from genmlx.selection import NONE, Selection
from workbench.render.sites import Site, added, picked

_SCORED_BYTES = 64 * 2**20  # of one value whose log density is shown without being asked for


class Node:
    """A choice or a submap. ``lp`` is a number, or None where it is not known."""

    __slots__ = ("address", "children", "value", "sites", "marks", "lp", "bad", "lanes_bad", "count", "observed")

    def __init__(self, address: tuple):
        self.address = address
        self.children: dict[Any, Node] | None = None
        self.value: Any = None
        self.sites: list[Site] = []
        self.marks = ""
        self.lp: float | None = None
        self.bad = False
        self.lanes_bad = 0
        self.count = self.observed = 1

    @property
    def kids(self) -> list[Node]:
        return list((self.children or {}).values())

    def at(self, address: tuple) -> Node | None:
        node: Node | None = self
        for part in address:
            node = None if node is None else (node.children or {}).get(part)
        return node

    def leaves(self) -> Iterator[Node]:
        if self.children is None:
            yield self
        for child in self.kids:
            yield from child.leaves()


def build(choices: ChoiceMap, found: dict[tuple, list[Site]], observed: Selection, redrawn: Selection) -> Node:
    """The nodes of a choice map: names in the order of the map, integers by size."""
    root = Node(())
    for address, value in choices.items():
        node, seen, again = root, observed, redrawn
        for i, part in enumerate(address):
            if node.children is None:
                node.children = {}
            child = node.children.get(part)
            if child is None:
                child = node.children[part] = Node(address[: i + 1])
            node = child
            if seen is not NONE:
                seen = seen.below(part)
            if again is not NONE:
                again = again.below(part)
        node.value, node.sites = value, found.get(address, [])
        node.observed = 1 if seen is not NONE and seen.here else 0
        node.marks = "*" * node.observed + "=" * any(site.deterministic for site in node.sites)
        node.marks += "~" if again is not NONE and again.here else ""
    if choices.is_empty:
        root.children = {}
    _finish(root)
    return root


def _finish(node: Node) -> None:
    if node.children is None:
        return
    if any(type(part) is int for part in node.children):
        named = [part for part in node.children if type(part) is not int]
        numbered = sorted(part for part in node.children if type(part) is int)
        node.children = {part: node.children[part] for part in [*named, *numbered]}
    for child in node.children.values():
        _finish(child)
    node.count = sum(child.count for child in node.children.values())
    node.observed = sum(child.observed for child in node.children.values())


def evaluate_densities(root: Node, every: bool = False) -> None:
    """Fill in the log densities, all evaluated at once. That of a very large value is left out unless ``every``."""
    wanted: dict[int, mx.array] = {}
    for leaf in root.leaves():
        if every or getattr(leaf.value, "nbytes", 0) <= _SCORED_BYTES:
            for site in leaf.sites:
                wanted[id(site.scores)] = site.scores
                if site.bad is not None:
                    wanted[id(site.bad)] = site.bad
    mx.eval(list(wanted.values()))
    hosts = {key: array.tolist() for key, array in wanted.items()}
    _fill(root, hosts)


def _fill(node: Node, hosts: dict[int, Any]) -> None:
    if node.children is None:
        if node.sites and all(id(site.scores) in hosts for site in node.sites):
            node.lp = sum(added(picked(hosts[id(site.scores)], site.at)) for site in node.sites)
            node.bad = not math.isfinite(node.lp)
            node.lanes_bad = sum(int(added(picked(hosts[id(s.bad)], s.at))) for s in node.sites if s.bad is not None)
        return
    for child in node.children.values():
        _fill(child, hosts)
    kids = node.children.values()
    node.lp = None if any(child.lp is None for child in kids) else sum(child.lp or 0.0 for child in kids)
    node.bad = any(child.bad for child in kids)


def text_of(part: Any) -> str:
    """A part of an address, as it stands alone."""
    return part if is_name(part) else repr(part)


def is_name(part: Any) -> bool:
    return isinstance(part, str) and part.isidentifier() and not iskeyword(part)


def path(address: Iterable) -> str:
    """An address as it is written on the line of a magic.

    >>> path(("theta", 0, "z")), path((3,)), path((0, "z")), path(("y 1",))
    ('theta[0].z', '3', "(0, 'z')", "'y 1'")
    """
    parts = tuple(address)
    if not is_name(parts[0]):
        return repr(parts[0]) if len(parts) == 1 else repr(parts)
    plain = [f".{p}" if is_name(p) else f"[{p!r}]" for p in parts[1:]]
    return "".join([parts[0], *plain])
