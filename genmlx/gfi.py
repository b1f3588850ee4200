"""The generative function interface: what every model, distribution and combinator can do, and what it means.

Scores are ``+log p``. ``p(t; x)`` is the joint density of the choices ``t`` given the arguments ``x``; ``q`` is the
internal proposal: the prior, run forward. A public operation checks its input, fixes the versions of all models
for its duration, and calls the protected method of the same name, which is what a new kind of generative
function implements: ``_simulate``, ``_generate``, ``_update``, ``_regenerate``, ``_project``. A parent adds up the
weights of its children. A protected weight that is known to be zero may be the Python number 0.0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import gradients
from genmlx.backend.sums import summed
from genmlx.choicemap import EMPTY, ChoiceMap, as_choicemap
from genmlx.diff import NoChange, UnknownChange, same
from genmlx.edit import Edited, Request
from genmlx.errors import (
    GenError,
    UnknownAddress,
    UsageError,
    name_of,
    nearest,
    one_of,
)
from genmlx.masked import anywhere
from genmlx.pytree import copied, register_slots
from genmlx.random import as_key
from genmlx.selection import Selection, as_selection
from genmlx.trace import Trace
from genmlx.versions import pinned


class Generated(NamedTuple):
    trace: Any
    weight: mx.array


class Assessed(NamedTuple):
    score: mx.array
    retval: Any


class Proposed(NamedTuple):
    choices: ChoiceMap
    weight: mx.array
    retval: Any


class Updated(NamedTuple):
    trace: Any
    weight: mx.array
    retdiff: Any
    discard: ChoiceMap


class Regenerated(NamedTuple):
    trace: Any
    weight: mx.array
    retdiff: Any


class GenerativeFunction:
    """A joint distribution over choices and a return value, given arguments.

    The operations are shown on this model:

        @gen
        def model(p):
            a = trace("a", flip(p))
            return trace("x", normal(a, 1.0))
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Call:
        """The call: this function bound to its arguments. Nothing runs."""
        return Call(self, args, kwargs)

    # the operations

    def simulate(self, args: Any = (), key: Any = None) -> Trace:
        """t ~ p(.; x), with score = log p(t; x).

        >>> tr = model.simulate((0.5,), key=mx.random.key(1))
        >>> tr.choices.addresses()
        [('a',), ('x',)]
        """
        with pinned(), gen_errors(self):
            return self._simulate(self.own(args), as_key(key))

    def generate(
        self, args: Any = (), constraints: Any = None, key: Any = None, strict: bool = True
    ) -> Generated:
        """A trace t that agrees with the constraints u, the rest drawn from q(.; u, x).

        weight = log p(t; x) - log q(t; u, x): the summed log density of the constrained choices.

        >>> tr, weight = model.generate((0.25,), {"a": 1})
        >>> round(weight.item(), 6)                     # log 0.25
        -1.386294
        """
        with pinned(), gen_errors(self):
            constraints = checked_choices(constraints)
            trace, weight = self._generate(self.own(args), constraints, as_key(key))
            if strict:
                self.require_visited(trace, constraints)
            return Generated(trace, as_weight(weight))

    def assess(self, args: Any = (), choices: Any = None, strict: bool = True) -> Assessed:
        """score = log p(t; x) of exactly these choices. A missing or an extra address raises.

        >>> score, retval = model.assess((0.25,), {"a": 1, "x": 1.0})
        >>> round(score.item(), 6)                      # log 0.25 + log N(1; 1, 1)
        -2.305233
        """
        with pinned(), gen_errors(self):
            choices = checked_choices(choices)
            # Without a key nothing can be sampled: an address that is not given raises MissingChoice.
            trace, _ = self._generate(self.own(args), choices, None)
            if strict:
                self.require_visited(trace, choices)
            return Assessed(trace.score, trace.retval)

    def propose(self, args: Any = (), key: Any = None) -> Proposed:
        """Choices t ~ p(.; x), their log density as the weight, and the return value.

        >>> choices, weight, _ = model.propose((0.5,), key=mx.random.key(1))
        >>> weight.item() == model.assess((0.5,), choices).score.item()
        True
        """
        trace = self.simulate(args, key)
        return Proposed(trace.choices, trace.score, trace.retval)

    def update(
        self,
        trace: Trace,
        constraints: Any = None,
        args: Any = None,
        argdiffs: Any = None,
        key: Any = None,
        strict: bool = True,
    ) -> Updated:
        """The trace t' that takes the constraints first, then the old choices, and samples what is new.

        weight = log p(t'; x') - log p(t; x) - log q(choices sampled fresh).
        discard = every old value that was overwritten or removed, and nothing else.

        >>> tr, _ = model.generate((0.25,), {"a": 1, "x": 0.5})
        >>> new, weight, _, discard = tr.update({"x": 1.5})
        >>> weight.item(), discard                      # as far from 1 on either side
        (0.0, choicemap({'x': 0.5}))
        >>> back = new.update(discard)
        >>> back.trace.choices == tr.choices
        True
        """
        with pinned(trace.pins), gen_errors(self):
            constraints = checked_choices(constraints)
            args, diffs = self.changed(trace, args, argdiffs)
            new, weight, retdiff, discard = self._update(trace, args, diffs, constraints, as_key(key))
            if strict:
                self.require_visited(new, constraints)
            return Updated(new, as_weight(weight), retdiff, discard)

    def regenerate(
        self,
        trace: Trace,
        selection: Any,
        args: Any = None,
        argdiffs: Any = None,
        key: Any = None,
        strict: bool = True,
    ) -> Regenerated:
        """The trace t' with the selected choices, and those newly appearing, drawn from the prior.

        weight = the sum, over choices retained in both traces, of [log density in t' - log density in t].
        Selecting everything gives 0.

        >>> tr = model.simulate((0.5,), key=mx.random.key(1))
        >>> tr.regenerate(select("a", "x")).weight.item()
        0.0
        """
        with pinned(trace.pins), gen_errors(self):
            selection = as_selection(selection)
            args, diffs = self.changed(trace, args, argdiffs)
            new, weight, retdiff = self._regenerate(trace, args, diffs, selection, as_key(key))
            if strict:
                require_selectable(self, selection, trace, new)
            return Regenerated(new, as_weight(weight), retdiff)

    def project(self, trace: Trace, selection: Any, strict: bool = True) -> mx.array:
        """The summed log density of the selected choices.

        >>> tr, _ = model.generate((0.25,), {"a": 1, "x": 0.5})
        >>> round(tr.project(select("a")).item(), 6), tr.project(select.none()).item()
        (-1.386294, 0.0)
        """
        selection = as_selection(selection)
        with gen_errors(self):
            if strict:
                require_selectable(self, selection, trace)
            return as_weight(self._project(trace, selection))

    def edit(self, trace: Trace, request: Request, key: Any = None) -> Edited:
        """Carry out a request. The result holds the request that undoes it.

        >>> from genmlx import Update
        >>> tr, _ = model.generate((0.25,), {"a": 1, "x": 0.5})
        >>> new, weight, _, backward = tr.edit(Update({"x": 1.0}))
        >>> backward
        Update(choicemap({'x': 0.5}))
        """
        with pinned(trace.pins), gen_errors(self):
            if not isinstance(request, Request):
                raise UsageError(f"{request!r} is not an edit request", expected="Update, Regenerate or Propose")
            return request.apply(trace, as_key(key))

    def choice_gradients(
        self, trace: Trace, selection: Any = None, retval_grad: Any = None
    ) -> tuple[tuple, ChoiceMap, ChoiceMap]:
        """(gradients of the arguments, selected choices, their gradients) of log p(t; x) + <retval_grad, retval>.

        Arguments that are not real have gradient None; so has a Python integer that the body uses as a count.

        >>> tr, _ = model.generate((0.25,), {"a": 1, "x": 0.5})
        >>> args, _, gradients = tr.choice_gradients(select("x"), retval_grad=2.0)
        >>> args[0].item(), gradients["x"].item()       # 1/p, and (1 - 0.5) + 2
        (4.0, 2.5)
        """
        with pinned(trace.pins), gen_errors(self):
            return gradients.choice_gradients(trace, as_selection(() if selection is None else selection), retval_grad)

    # what a kind of generative function implements

    def _simulate(self, args: tuple, key: Any) -> Trace:
        return self._generate(args, EMPTY, key)[0]

    def _generate(self, args: tuple, constraints: ChoiceMap, key: Any) -> tuple[Trace, Any]:
        """Without a key, an address that is not constrained raises MissingChoice."""
        raise NotImplementedError

    def _update(
        self, trace: Any, args: tuple, diffs: tuple, constraints: ChoiceMap, key: Any
    ) -> tuple[Trace, Any, Any, ChoiceMap]:
        raise NotImplementedError

    def _regenerate(
        self, trace: Any, args: tuple, diffs: tuple, selection: Selection, key: Any
    ) -> tuple[Trace, Any, Any]:
        raise NotImplementedError

    def _project(self, trace: Any, selection: Selection) -> Any:
        raise NotImplementedError

    def unvisited(self, trace: Any, constraints: ChoiceMap) -> list[tuple]:
        """The constrained addresses that a run which gave ``trace`` never looked at."""
        return [a for a in constraints if a not in trace.choices]

    def bind(self, args: Any, kwargs: dict | None = None) -> tuple:
        """The arguments in full: defaults filled in, keywords in their places."""
        if isinstance(args, Call):
            return self.bind(args.raw_args, args.raw_kwargs)
        if not isinstance(args, (tuple, list)):
            raise UsageError(f"the arguments are a {type(args).__name__}", expected="a tuple", gen_fn=self)
        if kwargs:
            raise UsageError(f"no keyword arguments: {', '.join(kwargs)}", gen_fn=self)
        return args if isinstance(args, tuple) else tuple(args)

    # shared by the operations

    def own(self, args: Any) -> tuple:
        """The arguments of an operation, in full, and safe from later changes to the caller's lists and dicts."""
        return copied(self.bind(args))

    def changed(self, trace: Trace, args: Any, argdiffs: Any) -> tuple[tuple, tuple]:
        """The new arguments, and what is known about how each differs from the old."""
        if args is None:
            if argdiffs is not None:
                raise UsageError("argdiffs without new arguments", gen_fn=self)
            return trace.args, (NoChange,) * len(trace.args)
        args = self.own(args)
        if argdiffs is None:
            return args, argument_diffs(trace.args, args)
        diffs = tuple(argdiffs)
        if len(diffs) != len(args):
            raise UsageError(f"{len(diffs)} argdiffs for {len(args)} arguments", gen_fn=self)
        return args, diffs

    def require_visited(self, trace: Trace, constraints: ChoiceMap) -> None:
        if constraints.is_empty:
            return
        if unknown := [a for a in self.unvisited(trace, constraints) if anywhere(constraints.sub(a).value)]:
            raise unknown_address(unknown[0], self, trace.choices.addresses(), "constraint")


class Call:
    """A generative function bound to its arguments: what ``trace``, ``splice`` and all inference take.

    ``call @ "address"`` is ``trace("address", call)``.
    """

    __slots__ = ("gen_fn", "raw_args", "raw_kwargs")

    def __init__(self, gen_fn: GenerativeFunction, args: tuple, kwargs: dict):
        self.gen_fn, self.raw_args, self.raw_kwargs = gen_fn, args, kwargs

    @property
    def args(self) -> tuple:
        return self.gen_fn.bind(self.raw_args, self.raw_kwargs)

    def __matmul__(self, address: Any) -> Any:
        from genmlx.gen import trace

        return trace(address, self)

    def simulate(self, key: Any = None) -> Trace:
        return self.gen_fn.simulate(self, key)

    def generate(self, constraints: Any = None, key: Any = None, strict: bool = True) -> Generated:
        return self.gen_fn.generate(self, constraints, key, strict)

    def assess(self, choices: Any = None, strict: bool = True) -> Assessed:
        return self.gen_fn.assess(self, choices, strict)

    def propose(self, key: Any = None) -> Proposed:
        return self.gen_fn.propose(self, key)

    def vsimulate(self, n: int, key: Any = None) -> Any:
        """``n`` independent traces as one ``VectorizedTrace``: every leaf, and the score, has ``[n]`` first."""
        from genmlx.vectorized import vsimulate

        return vsimulate(self, n, key)

    def vgenerate(self, constraints: Any, n: int, key: Any = None, strict: bool = True) -> Generated:
        """``n`` independent constrained traces, and their weights ``[n]``."""
        from genmlx.vectorized import vgenerate

        return vgenerate(self, constraints, n, key, strict)

    def __repr__(self) -> str:
        shown = [_brief(a) for a in self.raw_args] + [f"{k}={_brief(v)}" for k, v in self.raw_kwargs.items()]
        return f"{name_of(self.gen_fn)}({', '.join(shown)})"


register_slots(Call, ("raw_args", "raw_kwargs"))


def _brief(value: Any) -> str:
    from genmlx.choicemap import show_type, show_value

    if isinstance(value, mx.array) and value.ndim > 0:
        return show_type(value)
    text = show_value(value)
    return text if len(text) <= 40 else text[:37] + "..."


def argument_diffs(old: tuple, new: tuple) -> tuple:
    """``NoChange`` for each argument that is known to be the same, without computing anything."""
    if len(old) != len(new):
        return (UnknownChange,) * len(new)
    return tuple([NoChange if same(a, b) else UnknownChange for a, b in zip(old, new, strict=True)])


def unchanged(diffs: tuple) -> bool:
    return all(d is NoChange for d in diffs)


def total(terms: list) -> Any:
    """The sum of scores or weights, of which some are the Python number 0.0."""
    arrays = [term for term in terms if isinstance(term, mx.array)]
    if len(arrays) < 4:
        return sum(arrays[1:], arrays[0]) if arrays else 0.0
    return summed(mx.stack(arrays))


def as_weight(weight: Any) -> mx.array:
    return weight if isinstance(weight, mx.array) else mx.array(weight, dtype=mx.float32)


class gen_errors:
    """Give an error that leaves an operation the model that its address starts from."""

    __slots__ = ("gen_fn",)

    def __init__(self, gen_fn: GenerativeFunction):
        self.gen_fn = gen_fn

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, GenError) and error.gen_fn is None:
            error.gen_fn = self.gen_fn


def checked_choices(choices: Any) -> ChoiceMap:
    """A choice map of what the user gave; a NaN or a value that is no number raises, naming its address."""
    cm = as_choicemap(choices, leaf=choices is not None)
    if cm.is_empty:
        return cm
    from genmlx.dist.values import check_values

    return check_values(cm)


def require_selectable(gen_fn: GenerativeFunction, selection: Selection, *traces: Any) -> None:
    """Every address that a selection names must be, or lie above, a choice of one of the traces."""
    for address in selection.named():
        if not any(address in t.choices for t in traces):
            raise unknown_address(address, gen_fn, traces[-1].choices.addresses(), "selection")


def unknown_address(address: tuple, gen_fn: Any, visited: list[tuple], what: str) -> UnknownAddress:
    return UnknownAddress(
        f"{what} names an address that the run never visits:",
        address=address,
        gen_fn=gen_fn,
        suggestions=nearest(address, visited),
        expected=one_of(visited),
        hint="correct the address, or pass strict=False to ignore it",
    )


__all__ = ["Assessed", "Call", "Edited", "Generated", "GenerativeFunction", "Proposed", "Regenerated", "Updated"]
