"""Trees, through optree: which leaves of a structure are arrays, and how to carry them through a transformation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import optree

NAMESPACE = "genmlx"


def flatten(tree: Any) -> tuple[list, optree.PyTreeSpec]:
    leaves, spec = optree.tree_flatten(tree, namespace=NAMESPACE)
    return leaves, spec


def map_arrays(f: Callable, tree: Any) -> Any:
    """``f`` of every array leaf; other leaves stay. An array in several places becomes one array in all of them."""
    made: dict[int, Any] = {}

    def once(leaf: Any) -> Any:
        if not isinstance(leaf, mx.array):
            return leaf
        if id(leaf) not in made:
            made[id(leaf)] = f(leaf)
        return made[id(leaf)]

    return optree.tree_map(once, tree, namespace=NAMESPACE)


def map_leaves(f: Callable, tree: Any) -> Any:
    """``f`` of every leaf."""
    return optree.tree_map(f, tree, namespace=NAMESPACE)


class Skeleton:
    """A tree without its arrays, which come back by ``fill``."""

    __slots__ = ("spec", "leaves", "places")

    def __init__(self, spec: optree.PyTreeSpec, leaves: list, places: list[int]):
        self.spec, self.leaves, self.places = spec, leaves, places

    def fill(self, arrays: Any) -> Any:
        leaves = list(self.leaves)
        for place, array in zip(self.places, arrays, strict=True):
            leaves[place] = array
        return optree.tree_unflatten(self.spec, leaves)


def split_arrays(tree: Any, axes: int = 0) -> tuple[list[mx.array], Skeleton]:
    """The array leaves of a tree, those with at least so many axes, and the rest of it."""
    leaves, spec = flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, mx.array) and leaf.ndim >= axes]
    arrays = [leaves[i] for i in places]
    for i in places:
        leaves[i] = None
    return arrays, Skeleton(spec, leaves, places)


def register(cls: type, flatten: Any, unflatten: Any) -> None:
    """Make a class a tree: ``flatten(node) -> (children, fixed)``, ``unflatten(fixed, children) -> node``."""
    optree.register_pytree_node(cls, flatten, unflatten, namespace=NAMESPACE)


@functools.cache
def all_slots(cls: type) -> tuple[str, ...]:
    """The slots of a class and its bases, without those that it computes by a property."""
    slots = [slot for base in cls.__mro__ for slot in base.__dict__.get("__slots__", ())]
    return tuple(slot for slot in slots if not isinstance(getattr(cls, slot, None), property))


def register_slots(cls: type, data: tuple[str, ...]) -> None:
    """Make a class with ``__slots__`` a tree: the slots in ``data`` are children, the other ones are fixed.

    A slot with an underscore is a cache of the others, and starts over as None.
    """
    slots = all_slots(cls)
    caches = [slot for slot in slots if slot.startswith("_")]
    fixed = [slot for slot in slots if slot not in data and slot not in caches]
    put = object.__setattr__

    def flatten(node: Any) -> tuple:
        return tuple([getattr(node, s) for s in data]), tuple([getattr(node, s) for s in fixed])

    def unflatten(aux: tuple, children: Any) -> Any:
        node = object.__new__(cls)
        for slot, value in zip(data, children, strict=True):
            put(node, slot, value)
        for slot, value in zip(fixed, aux, strict=True):
            put(node, slot, value)
        for slot in caches:
            put(node, slot, None)
        return node

    register(cls, flatten, unflatten)


def copied(tree: Any) -> Any:
    """The same values in lists and dicts of its own."""
    return optree.tree_map(
        lambda leaf: leaf, tree, is_leaf=lambda node: not isinstance(node, (tuple, list, dict)), namespace=NAMESPACE
    )
