"""Choices that exist in some lanes of a batch and not in others: a value and where it is active."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.choicemap import ChoiceMap, from_items, show_type
from genmlx.pytree import register_slots
from genmlx.selection import Selection


class Masked:
    """A value that counts only where ``active`` holds, as the choice of a branch that not every lane takes.

    As a constraint it is given where it is active, and left to be sampled elsewhere.
    """

    __slots__ = ("value", "active")

    def __init__(self, value: Any, active: Any):
        self.value, self.active = value, active

    @property
    def shape(self) -> tuple:
        return self.value.shape

    @property
    def dtype(self) -> Any:
        return self.value.dtype

    def __getitem__(self, lane: Any) -> Masked:
        return Masked(self.value[lane], self.active[lane])

    def equals(self, other: Any) -> bool:
        """Active in the same lanes, and of equal value there."""
        if not isinstance(other, Masked) or self.shape != other.shape:
            return False
        same = mx.logical_or(self.value == other.value, mx.logical_not(spread(self.active, self.value.ndim)))
        return bool((mx.logical_and(mx.all(same), mx.all(self.active == other.active))).item())

    def __repr__(self) -> str:
        return f"Masked({show_type(self.value)})"


register_slots(Masked, ("value", "active"))


def active_of(leaf: Any) -> Any:
    return leaf.active if isinstance(leaf, Masked) else True


def value_of(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Masked) else leaf


def masked(leaf: Any, active: Any) -> Any:
    """The leaf where ``active``, a Python bool or a boolean array, also holds; None where it never does."""
    active = both(active_of(leaf), active)
    return value_of(leaf) if active is True else None if active is False else Masked(value_of(leaf), active)


def mask_choices(choices: ChoiceMap, active: Any) -> ChoiceMap:
    """Choices that exist only where ``active`` holds."""
    kept = ((address, masked(leaf, active)) for address, leaf in choices.items())
    return from_items(((address, leaf) for address, leaf in kept if leaf is not None), choices.n)


def settled(leaf: Any) -> Any:
    """A masked value that the host knows to be active: the value; of one element that is not: None. Others as they are.

    An array that is active nowhere stays: a batch runs all branches, and asks for the choices of each.
    """
    if not isinstance(leaf, Masked) or (active := host_value(mx.all(leaf.active))) is None:
        return leaf
    return leaf.value if active else leaf if leaf.active.ndim else None


def anywhere(leaf: Any) -> bool:
    """Whether a leaf is there for any lane; a masked one that nobody can look at yet may be."""
    return not isinstance(leaf, Masked) or host_value(mx.any(leaf.active)) is not False


def settled_choices(choices: ChoiceMap) -> ChoiceMap:
    """The choices with each masked leaf settled."""
    leaves = {address: settled(leaf) for address, leaf in choices.items()}
    if all(leaves[address] is leaf for address, leaf in choices.items()):
        return choices
    return from_items(((address, leaf) for address, leaf in leaves.items() if leaf is not None), choices.n)


def host_value(x: Any) -> Any:
    """The Python value of a number or of a scalar array; None while it is traced, or differs between lanes."""
    if not isinstance(x, mx.array):
        return x
    if x.ndim:
        return None
    try:
        return x.item()
    except ValueError:
        return None
    except RuntimeError as error:  # how MLX 0.32.4 says the same after a gradient inside a batch
        if "without a primitive" not in str(error):
            raise
        return None


def spread(active: mx.array, ndim: int) -> mx.array:
    """``active`` with axes of length 1 behind its own, up to ``ndim``: batches come first, whatever lies in them."""
    return active[(..., *[None] * (ndim - active.ndim))] if active.ndim < ndim else active


def both(a: Any, b: Any) -> Any:
    """``a and b`` for Python bools and boolean arrays, of which one may have more batch axes than the other."""
    if isinstance(a, bool) or isinstance(b, bool):
        return b if a is True else a if b is True else False
    ndim = max(a.ndim, b.ndim)
    return mx.logical_and(spread(a, ndim), spread(b, ndim))


def either(a: Any, b: Any) -> Any:
    return invert(both(invert(a), invert(b)))


def invert(a: Any) -> Any:
    return (not a) if isinstance(a, bool) else mx.logical_not(a)


def where(active: Any, a: Any, b: Any) -> Any:
    """``a`` where active, else ``b``, without computing when ``active`` is a Python bool."""
    if isinstance(active, bool):
        return a if active else b
    return mx.where(spread(active, max(getattr(x, "ndim", 0) for x in (a, b))), a, b)


class Lanewise(Selection):
    """A selection that differs between lanes: at each leaf, the boolean array of the lanes that select it."""

    __slots__ = ("masks",)

    def __init__(self, masks: ChoiceMap):
        self.masks = masks

    def below(self, part: Any) -> Selection:
        return Lanewise(self.masks.sub((part,)))

    @property
    def here(self) -> Any:
        return self.masks.value if self.masks.is_leaf else False
