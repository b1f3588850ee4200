"""Traces: immutable records of one run of a generative function."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from genmlx.choicemap import ChoiceMap
from genmlx.display import mimebundle, pretty
from genmlx.pytree import register_slots
from genmlx.versions import current_pins


class Trace:
    """One run: ``args``, ``retval``, ``score`` = log p(choices; args), ``choices``, and what made it.

    A subclass names in ``data`` the slots that hold values, which can be batched; its other slots are fixed.
    """

    __slots__ = ("gen_fn", "args", "retval", "score", "pins", "_choices")

    data: tuple[str, ...] = ("args", "retval", "score")
    gen_fn: Any
    args: tuple
    retval: Any
    score: Any
    pins: dict
    _choices: ChoiceMap | None

    def __init__(self, **slots: Any):
        """Set every slot; a structural trace is pinned to the versions of the run that makes it."""
        put = object.__setattr__
        put(self, "pins", current_pins())
        put(self, "_choices", None)
        for name, value in slots.items():
            put(self, name, value)

    def __init_subclass__(cls) -> None:
        register_slots(cls, cls.data)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a trace is immutable: use tr.update(...) to change {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a trace is immutable: {name!r} stays")

    def __copy__(self) -> Trace:
        return self

    def __deepcopy__(self, memo: dict) -> Trace:
        return self

    @property
    def choices(self) -> ChoiceMap:
        """The choices of this run, by address."""
        known = self._choices
        if known is None:
            known = self.gathered()
            object.__setattr__(self, "_choices", known)
        return known

    # what a kind of trace says of itself

    def gathered(self) -> ChoiceMap:
        """The choices, put together from what the trace holds."""
        raise NotImplementedError

    def children(self) -> Iterable[Trace]:
        """The traces that this one is made of."""
        return ()

    def reads(self) -> dict:
        """Every parameter read in this run: ``{(model, name): value}``."""
        return {name: value for child in self.children() for name, value in child.reads().items()}

    def runs(self) -> dict:
        """Every model that ran, here and below, with its version."""
        return {handle: version for child in self.children() for handle, version in child.runs().items()}

    @property
    def version(self) -> Any:
        """The version of the model that made this trace, which goes on interpreting it."""
        return self.pins.get(self.gen_fn, getattr(self.gen_fn, "version", None))

    @property
    def stale(self) -> bool:
        """Whether this model, or one that it runs, has been redefined since."""
        return any(handle.version is not version for handle, version in self.runs().items())

    def __getitem__(self, address: Any) -> Any:
        return self.choices[address]

    def __contains__(self, address: Any) -> bool:
        """Whether there is a choice at the address or below it."""
        return address in self.choices

    def update(
        self, constraints: Any = None, args: Any = None, argdiffs: Any = None, key: Any = None, strict: bool = True
    ) -> Any:
        """See :meth:`GenerativeFunction.update`."""
        return self.gen_fn.update(self, constraints, args, argdiffs, key, strict)

    def regenerate(
        self, selection: Any, args: Any = None, argdiffs: Any = None, key: Any = None, strict: bool = True
    ) -> Any:
        """See :meth:`GenerativeFunction.regenerate`."""
        return self.gen_fn.regenerate(self, selection, args, argdiffs, key, strict)

    def project(self, selection: Any, strict: bool = True) -> Any:
        """See :meth:`GenerativeFunction.project`."""
        return self.gen_fn.project(self, selection, strict)

    def edit(self, request: Any, key: Any = None) -> Any:
        """See :meth:`GenerativeFunction.edit`."""
        return self.gen_fn.edit(self, request, key)

    def choice_gradients(self, selection: Any = None, retval_grad: Any = None) -> Any:
        """See :meth:`GenerativeFunction.choice_gradients`."""
        return self.gen_fn.choice_gradients(self, selection, retval_grad)

    _repr_mimebundle_, _repr_pretty_ = mimebundle, pretty

    def __repr__(self) -> str:
        from genmlx.choicemap import show_value

        stale = ", stale" if self.stale else ""
        name = getattr(self.gen_fn, "__name__", self.gen_fn)
        return f"<Trace {name}: {self.choices!r}, score {show_value(self.score)}{stale}>"

