"""Carrying choices from one trace to another by address, where the two need not have the same structure.

This is what update and regenerate mean when the generative function at a place changes: at an address of a body,
between the branches of a switch, when a mask opens. Choices may be masked: then all of it holds lane by lane.
"""

from __future__ import annotations

from typing import Any

from genmlx.choicemap import EMPTY, ChoiceMap, from_items
from genmlx.diff import UnknownChange
from genmlx.errors import AddressError, ValueMismatch
from genmlx.masked import Lanewise, Masked, active_of, both, either, invert, masked, value_of, where
from genmlx.selection import ALL, Selection
from genmlx.trace import Trace


def update_by_generate(
    old: Trace, gen_fn: Any, args: tuple, constraints: ChoiceMap, key: Any
) -> tuple[Trace, Any, Any, ChoiceMap]:
    """The constraints, then the old choices by address, then fresh ones.

    weight = log p(t') - log q(fresh) - log p(t), where generate gives the first two.
    """
    try:
        new, weight = gen_fn._generate(args, overlaid(old.choices, constraints), key)
    except AddressError:  # what was one choice is now a model, or the reverse: nothing is carried over
        new, weight = gen_fn._generate(args, constraints, key)
        return new, weight - old.score, UnknownChange, old.choices
    return new, weight - old.score, UnknownChange, lost(old.choices, constraints, new.choices)


def regenerate_by_generate(
    old: Trace, gen_fn: Any, args: tuple, selection: Selection, key: Any
) -> tuple[Trace, Any, Any]:
    """The old choices that are not selected, by address, then fresh ones."""
    try:
        new, weight = gen_fn._generate(args, old.choices.without(selection), key)
    except AddressError:  # what was one choice is now a model, or the reverse: nothing is carried over
        return gen_fn._simulate(args, key), 0.0, UnknownChange
    everything = old.choices.filter(selection).is_empty and lost(old.choices, EMPTY, new.choices).is_empty
    kept = ALL if everything else retained(old.choices, new.choices, selection)
    return new, weight - old.gen_fn._project(old, kept), UnknownChange


def overlaid(base: ChoiceMap, over: ChoiceMap) -> ChoiceMap:
    """``over``, and ``base`` where ``over`` has nothing, or has it masked away."""
    if over.is_empty:
        return base
    both_have = []
    for address, leaf in over.items():
        under = base.sub(address)
        if isinstance(leaf, Masked) and under.is_leaf:
            if value_of(under.value).shape != leaf.shape:
                raise ValueMismatch(
                    f"the lanes of a batch have values of shapes {value_of(under.value).shape} and {leaf.shape}",
                    address=address,
                    expected="one shape at one address, in all branches that have it",
                )
            value = where(leaf.active, leaf.value, value_of(under.value))
            both_have.append((address, masked(value, either(leaf.active, active_of(under.value)))))
    return base.merge(over).merge(from_items(both_have))


def lost(old: ChoiceMap, constraints: ChoiceMap, new: ChoiceMap) -> ChoiceMap:
    """Every old value that was overwritten or removed."""
    found = []
    for address, leaf in old.items():
        gone = either(_active_at(constraints, address), invert(_active_at(new, address)))
        if (value := masked(leaf, gone)) is not None:
            found.append((address, value))
    return from_items(found)


def retained(old: ChoiceMap, new: ChoiceMap, selection: Selection) -> Selection:
    """The choices that are in both and not selected."""
    kept = ((a, both(active_of(leaf), _active_at(new, a))) for a, leaf in old.without(selection).items())
    return Lanewise(from_items((a, active) for a, active in kept if active is not False))


def _active_at(choices: ChoiceMap, address: tuple) -> Any:
    found = choices.sub(address)
    return active_of(found.value) if found.is_leaf else False
