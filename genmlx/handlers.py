"""What ``trace`` does during each operation on a ``@gen`` function: one small handler per operation.

A handler lives for one run of one body, as a context manager, so that a body that raises leaves nothing behind.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from contextvars import ContextVar
from typing import Any, NamedTuple

from genmlx.address import normalise
from genmlx.carry import regenerate_by_generate, update_by_generate
from genmlx.choicemap import EMPTY, ChoiceMap, from_items
from genmlx.errors import AddressCollision, AddressError, UsageError, is_library_file, show_line, under
from genmlx.gfi import Call, GenerativeFunction, argument_diffs, total
from genmlx.random import Keys
from genmlx.selection import Selection
from genmlx.trace import Trace

_handler: ContextVar[Handler | None] = ContextVar("genmlx_handler", default=None)


class Spliced(NamedTuple):
    """The place in a trace of the n-th spliced generative function that is not inlined."""

    n: int


class Handler:
    """One run of a body: visits addresses, keeps their traces, adds up the weight."""

    def __init__(self, owner: Any, key: Any, constraints: ChoiceMap = EMPTY):
        if constraints.is_leaf:
            raise AddressError(
                "a value is given where a model has a sub-map of choices",
                address=(),
                expected="a choice map or a dict, one level down",
            )
        self.owner, self.constraints = owner, constraints
        self.subtraces: OrderedDict[tuple, Trace] = OrderedDict()
        self.params: OrderedDict[tuple, Any] = OrderedDict()
        self.inlined: dict[Any, Any] = {}
        self.weights: list = []
        self.keys = Keys(key)
        self._lines: dict[tuple, Any] = {}
        self._prefixes: dict[tuple, tuple] = {}

    def __enter__(self) -> Handler:
        self._token = _handler.set(self)
        return self

    def __exit__(self, *exc: Any) -> None:
        _handler.reset(self._token)

    def trace(self, address: Any, call: Call) -> Any:
        address = normalise(address)
        if not address:
            raise AddressError("a choice needs a name: the empty address is the model itself")
        self._claim(address)
        with under(address):
            sub = self.visit(address, call.gen_fn, call.args)
        self.subtraces[address] = sub
        return sub.retval

    def splice(self, call: Call) -> Any:
        """Run a generative function that is not inlined; its choices become this level's."""
        place = (Spliced(sum(type(a[0]) is Spliced for a in self.subtraces)),)
        sub = self.visit(place, call.gen_fn, call.args)
        for part in dict.fromkeys(address[:1] for address in sub.choices):
            if part == ():
                raise UsageError(
                    f"{call!r} cannot be spliced: its value has no address of its own",
                    hint=f"give it one: trace('name', {call!r})",
                )
            self._claim(part)
        self.subtraces[place] = sub
        return sub.retval

    def visit(self, address: tuple, gen_fn: GenerativeFunction, args: tuple) -> Trace:
        raise NotImplementedError

    @property
    def weight(self) -> Any:
        return total(self.weights)

    def at(self, address: tuple) -> ChoiceMap:
        return below(self.constraints, address)

    def _claim(self, address: tuple) -> None:
        """Take an address for this run; a duplicate or a prefix of another raises with both lines."""
        frame = sys._getframe(2)
        while frame is not None and is_library_file(frame.f_code.co_filename):
            frame = frame.f_back
        line = None if frame is None else (frame.f_code, frame.f_lineno)
        lines = self._lines
        if address in lines:
            raise _collision(f"two choices share an address (first traced at {_show(lines[address])})", address)
        if address in self._prefixes:
            longer = self._prefixes[address]
            raise _collision(f"an address is a prefix of {longer!r} (traced at {_show(lines[longer])})", address)
        for i in range(1, len(address)):
            prefix = address[:i]
            if prefix in lines:
                raise _collision(
                    f"{prefix[0] if i == 1 else prefix!r} is already a choice (traced at {_show(lines[prefix])}): "
                    "nothing can lie under it,",
                    address,
                )
            self._prefixes.setdefault(prefix, address)
        lines[address] = line


def _collision(what: str, address: tuple) -> AddressCollision:
    return AddressCollision(
        what, address=address, expected="each address once in a run", hint="name them apart, as ('y', 0), ('y', 1)"
    )


def _show(line: Any) -> str:
    return "?" if line is None else show_line(line[0].co_filename, line[1])


def below(tree: Any, address: tuple) -> Any:
    """The part of a choice map that a site sees: what lies under its address; all of it for a splice."""
    return tree if type(address[0]) is Spliced else tree.sub(address)


def selected(selection: Selection, address: tuple) -> Selection:
    return selection if type(address[0]) is Spliced else selection.at(address)


class Simulate(Handler):
    def visit(self, address: tuple, gen_fn: GenerativeFunction, args: tuple) -> Trace:
        return gen_fn._simulate(args, self.keys.next())


class Generate(Handler):
    """Without a key it is assess: whatever is not constrained raises."""

    def visit(self, address: tuple, gen_fn: GenerativeFunction, args: tuple) -> Trace:
        sub, weight = gen_fn._generate(args, self.at(address), self.keys.next())
        self.weights.append(weight)
        return sub


class Update(Handler):
    def __init__(self, owner: Any, key: Any, old: Any, constraints: ChoiceMap):
        super().__init__(owner, key, constraints)
        self.old: dict[tuple, Trace] = old.subtraces
        self.discarded: list[tuple[tuple, ChoiceMap]] = []

    def visit(self, address: tuple, gen_fn: GenerativeFunction, args: tuple) -> Trace:
        constraints, old = self.at(address), self.old.get(address)
        if old is None:
            sub, weight = gen_fn._generate(args, constraints, self.keys.next())
        else:
            if old.gen_fn == gen_fn:
                diffs = argument_diffs(old.args, args)
                sub, weight, _, discard = gen_fn._update(old, args, diffs, constraints, self.keys.next())
            else:
                sub, weight, _, discard = update_by_generate(old, gen_fn, args, constraints, self.keys.next())
            if not discard.is_empty:
                self.discarded.append((address, discard))
        self.weights.append(weight)
        return sub

    def discard(self) -> ChoiceMap:
        """Everything that was overwritten or removed; takes the score of what was removed out of the weight."""
        for address, old in self.old.items():
            if address not in self.subtraces:
                self.weights.append(-old.score)
                self.discarded.append((address, old.choices))
        return gather(self.discarded)


class Regenerate(Handler):
    def __init__(self, owner: Any, key: Any, old: Any, selection: Selection):
        super().__init__(owner, key)
        self.old: dict[tuple, Trace] = old.subtraces
        self.selection = selection

    def visit(self, address: tuple, gen_fn: GenerativeFunction, args: tuple) -> Trace:
        old = self.old.get(address)
        if old is None:
            return gen_fn._simulate(args, self.keys.next())
        selection = selected(self.selection, address)
        if old.gen_fn == gen_fn:
            diffs = argument_diffs(old.args, args)
            sub, weight, _ = gen_fn._regenerate(old, args, diffs, selection, self.keys.next())
        else:
            sub, weight, _ = regenerate_by_generate(old, gen_fn, args, selection, self.keys.next())
        self.weights.append(weight)
        return sub


def gather(parts: Any) -> ChoiceMap:
    """One choice map of ``(address, choices)`` pairs, where a splice's choices belong to the level itself."""
    return from_items(((() if type(address[0]) is Spliced else address), choices) for address, choices in parts)
