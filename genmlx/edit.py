"""Edits as values: a request says how to change a trace, and carrying it out gives the request that undoes it."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.carry import lost, retained
from genmlx.choicemap import EMPTY, ChoiceMap, as_choicemap
from genmlx.errors import UsageError, name_of
from genmlx.pytree import register_slots
from genmlx.random import split
from genmlx.selection import as_selection


class Edited(NamedTuple):
    trace: Any
    weight: mx.array
    retdiff: Any
    backward: Request


class Request:
    """One kind of edit. A new kind implements ``apply``, and registers its values with ``register_slots``."""

    __slots__ = ()

    def apply(self, trace: Any, key: Any) -> Edited:
        """Carry the edit out; a kind that only works on some traces raises for the others, as this does for all."""
        raise UsageError(
            f"{name_of(trace.gen_fn)} does not know the edit {self!r}",
            expected="Update, Regenerate, Propose, or a request that implements apply(trace, key)",
        )


class Update(Request):
    """Set some choices, and the arguments if given. The weight is that of ``update``; undone by updating back."""

    __slots__ = ("constraints", "args")

    def __init__(self, constraints: Any = None, args: Any = None):
        self.constraints, self.args = as_choicemap(constraints), args

    def apply(self, trace: Any, key: Any) -> Edited:
        new, weight, retdiff, discard = trace.update(self.constraints, self.args, key=key)
        return Edited(new, weight, retdiff, Update(discard, None if self.args is None else trace.args))

    def __repr__(self) -> str:
        return f"Update({self.constraints!r}{'' if self.args is None else f', args={self.args!r}'})"


class Regenerate(Request):
    """Draw the selected choices, and those newly appearing, anew. The weight is that of ``regenerate``.

    With ``choices``, the selected choices take these values instead: the request that undoes another.
    """

    __slots__ = ("selection", "choices")

    def __init__(self, selection: Any, choices: Any = None):
        self.selection = as_selection(selection)
        self.choices = None if choices is None else as_choicemap(choices)

    def apply(self, trace: Any, key: Any) -> Edited:
        if self.choices is None:
            new, weight, retdiff = trace.regenerate(self.selection, key=key)
        else:
            new, _, retdiff, _ = trace.update(self.choices, key=key)
            kept = retained(trace.choices, new.choices, self.selection)
            weight = new.project(kept, strict=False) - trace.project(kept, strict=False)
        redrawn = trace.choices.filter(self.selection)
        removed = lost(trace.choices.without(self.selection), EMPTY, new.choices)
        return Edited(new, weight, retdiff, Regenerate(self.selection, redrawn.merge(removed)))

    def __repr__(self) -> str:
        fixed = "" if self.choices is None else f", choices={self.choices!r}"
        return f"Regenerate({self.selection!r}{fixed})"


class Propose(Request):
    """Set the choices that a generative function proposes.

    ``forward`` is a call, or a function from the trace to one; its choices are constraints for an update.
    ``backward`` (likewise, from the new trace) must be able to propose what the update discards.
    weight = update weight - log q_forward(proposed) + log q_backward(discarded): the log acceptance ratio of the move.
    """

    __slots__ = ("forward", "backward", "choices")

    def __init__(self, forward: Any, backward: Any, choices: ChoiceMap | None = None):
        self.forward, self.backward, self.choices = forward, backward, choices

    def apply(self, trace: Any, key: Any) -> Edited:
        propose_key, update_key = split(key)
        forward = _call(self.forward, trace)
        if self.choices is None:
            choices, forward_weight, _ = forward.propose(propose_key)
        else:
            choices, forward_weight = self.choices, forward.assess(self.choices).score
        new, weight, retdiff, discard = trace.update(choices, key=update_key)
        backward_weight = _call(self.backward, new).assess(discard).score
        undo = Propose(self.backward, self.forward, discard)
        return Edited(new, weight - forward_weight + backward_weight, retdiff, undo)

    def __repr__(self) -> str:
        fixed = "" if self.choices is None else f", choices={self.choices!r}"
        return f"Propose({self.forward!r}, {self.backward!r}{fixed})"


for _kind, _data in ((Update, ("constraints", "args")), (Regenerate, ("choices",)), (Propose, ("choices",))):
    register_slots(_kind, _data)


def _call(call: Any, trace: Any) -> Any:
    return call(trace) if callable(call) else call
