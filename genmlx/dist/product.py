"""Independent products: several values in one site."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from genmlx import handlers
from genmlx.choicemap import EMPTY, ChoiceMap
from genmlx.diff import NoChange, UnknownChange
from genmlx.dist.distribution import DistCall, Distribution
from genmlx.dist.support import Support
from genmlx.dist.values import as_array
from genmlx.errors import UsageError, ValueMismatch, caller_line
from genmlx.gfi import GenerativeFunction, unchanged
from genmlx.handlers import Handler
from genmlx.pytree import register_slots
from genmlx.random import split
from genmlx.selection import ALL, Selection
from genmlx.trace import Trace


class Cartesian(Support):
    """Lists or dicts of values, one from each of several sets."""

    __slots__ = ("parts",)

    def __init__(self, parts: Any):
        super().__init__(f"a {type(parts).__name__} of values, one for each part")
        self.parts = parts

    @property
    def discrete(self) -> bool:
        return all(p.discrete for _, p in _items(self.parts))

    def contains(self, x: Any) -> mx.array:
        return mx.all(mx.stack([mx.all(part.contains(as_array(x[name]))) for name, part in _items(self.parts)]))


class ProductCall(DistCall):
    """A product with its parts. Values, event shapes and moments are of the container type that was given."""

    __slots__ = ()

    def _moment(self, which: str) -> Any:
        (parts,) = self.gen_fn.params(self.args)
        return _like(parts, [getattr(part, which) for _, part in _items(parts)])


register_slots(ProductCall, ("raw_args", "raw_kwargs"))


class ProductTrace(Trace):
    """The traces of the parts by address: their place in the list, or their name in the dict."""

    __slots__ = ("subtraces",)
    data = ("args", "retval", "score", "subtraces")

    subtraces: dict

    def gathered(self) -> ChoiceMap:
        return handlers.gather((address, sub.choices) for address, sub in self.subtraces.items())

    def children(self) -> Iterable[Trace]:
        return self.subtraces.values()


class Product(Distribution):
    """``product(parts)``: independent draws of a list, a tuple or a dict of distributions, returned as such.

    The values differ in shape and dtype, so each is a choice of its own: at its place in the list, or under its name
    in the dict, below the address of the product. Batch axes of a part belong to the event.

    >>> from genmlx import flip, normal
    >>> d = product({"on": flip(0.5), "level": normal(0, 1)})
    >>> round(d.log_prob({"on": 1, "level": 0.0}).item(), 6), d.assess({"on": 1, "level": 0.0}).retval["on"].item()
    (-1.612086, 1)
    """

    parameters = {"parts": None}
    call_type = ProductCall
    composite = True

    def check_parameters(self, *args: Any) -> None:
        (parts,) = args
        if isinstance(parts, (list, tuple, dict)) and parts and all(isinstance(p, DistCall) for _, p in _items(parts)):
            return
        raise UsageError(
            f"{self.__name__} was given {parts!r:.60}",
            expected="a list, a tuple or a dict of distributions with their parameters",
            where=caller_line(),
        )

    def batch_shape(self, *params: Any) -> tuple:
        return ()

    def event_shape(self, parts: Any) -> Any:
        return _like(parts, [_shape(p) for _, p in _items(parts)])

    def support_of(self, parts: Any) -> Support:
        return Cartesian(_like(parts, [p.support for _, p in _items(parts)]))

    def reparameterised_of(self, parts: Any) -> bool:
        return all(p.reparameterised for _, p in _items(parts))

    def sample(self, args: tuple, key: Any, shape: tuple = ()) -> Any:
        (parts,) = self.params(args)
        keys = split(key, len(parts))
        return _like(parts, [p.gen_fn.sample(p.args, k, shape) for (_, p), k in zip(_items(parts), keys, strict=True)])

    def log_prob(self, value: Any, args: tuple) -> mx.array:
        (parts,) = self.params(args)
        kind = dict if isinstance(parts, dict) else (list, tuple)
        if not isinstance(value, kind) or {n for n, _ in _items(value)} != {n for n, _ in _items(parts)}:
            raise ValueMismatch(
                f"{value!r:.60} is not a value of this {self.__name__}:",
                expected=f"a dict of {list(parts)}" if kind is dict else f"a list of {len(parts)} values",
            )
        total: Any = 0.0
        for name, part in _items(parts):
            lp = part.log_prob(value[name])
            total = total + mx.sum(lp, axis=tuple(range(-len(part.batch_shape), 0)))
        return total

    # as a generative function

    def _run(self, handler: Handler, args: tuple) -> ProductTrace:
        (parts,) = args
        values = [handler.trace(name, part) for name, part in _items(parts)]
        return ProductTrace(
            gen_fn=self,
            args=args,
            retval=_like(parts, values),
            score=sum([sub.score for sub in handler.subtraces.values()]),
            subtraces=handler.subtraces,
        )

    def _simulate(self, args: tuple, key: Any) -> Any:
        return self._run(handlers.Generate(self, key), args)

    def _generate(self, args: tuple, constraints: ChoiceMap, key: Any) -> tuple[Any, Any]:
        handler = handlers.Generate(self, key, constraints)
        return self._run(handler, args), handler.weight

    def _update(
        self, trace: Any, args: tuple, diffs: tuple, constraints: ChoiceMap, key: Any
    ) -> tuple[Any, Any, Any, ChoiceMap]:
        if constraints.is_empty and unchanged(diffs):
            return trace, 0.0, NoChange, EMPTY
        handler = handlers.Update(self, key, trace, constraints)
        new = self._run(handler, args)
        discard = handler.discard()
        return new, handler.weight, _retdiff(trace, new), discard

    def _regenerate(
        self, trace: Any, args: tuple, diffs: tuple, selection: Selection, key: Any
    ) -> tuple[Any, Any, Any]:
        handler = handlers.Regenerate(self, key, trace, selection)
        new = self._run(handler, args)
        return new, handler.weight, _retdiff(trace, new)

    def _project(self, trace: Any, selection: Selection) -> Any:
        if selection is ALL:
            return trace.score
        return sum([sub.gen_fn._project(sub, selection.at(a)) for a, sub in trace.subtraces.items()])

    def unvisited(self, trace: Trace, constraints: ChoiceMap) -> list[tuple]:
        return GenerativeFunction.unvisited(self, trace, constraints)


def _items(parts: Any) -> list[tuple]:
    return list(parts.items()) if isinstance(parts, dict) else list(enumerate(parts))


def _like(parts: Any, values: Any) -> Any:
    """Values in a container like that of the parts."""
    if isinstance(parts, dict):
        return dict(zip(parts, values, strict=True))
    return list(values) if isinstance(parts, list) else tuple(values)


def _shape(part: DistCall) -> Any:
    return part.event_shape if isinstance(part, ProductCall) else (*part.batch_shape, *part.event_shape)


def _retdiff(old: Any, new: Any) -> Any:
    same = old.subtraces.keys() == new.subtraces.keys() and all(
        sub.retval is new.subtraces[address].retval for address, sub in old.subtraces.items()
    )
    return NoChange if same else UnknownChange


product = Product("product")
