"""One run of the body of a transform: the handles that it reads and writes by, and what it read and wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.address import normalise
from genmlx.choicemap import EMPTY, ChoiceMap, as_choicemap, from_items
from genmlx.dist.values import as_array
from genmlx.errors import (
    AddressCollision,
    BatchError,
    MissingChoice,
    UnknownAddress,
    UsageError,
    caller_line,
    nearest,
    show_address,
    show_addresses,
)
from genmlx.jacobian import AUX, MODEL, Place, run_log_det
from genmlx.masked import Masked
from genmlx.pytree import flatten


class Side(NamedTuple):
    """What a transform sees of a trace; ``name`` says whose choices they are."""

    choices: ChoiceMap
    args: tuple = ()
    retval: Any = None
    name: str = "the given choices"

    @classmethod
    def of(cls, trace: Any, name: str) -> Side:
        return cls(trace.choices, trace.args, trace.retval, name)


NOTHING = Side(EMPTY, name="a proposal that is not there")


class Moved(NamedTuple):
    """One value read or written, whether it is differentiated, and the line that did it."""

    value: mx.array
    real: bool
    line: str | None


class Run:
    """One run of the body of a transform: what it read and what it wrote, by place."""

    def __init__(self, transform: Any, sides: dict[str, Side], new_args: tuple, given: dict | None = None):
        self.transform, self.sides, self.new_args = transform, sides, new_args
        self.given: dict[Place, mx.array] = given or {}
        self.reads: dict[Place, Moved] = {}
        self.writes: dict[Place, Moved] = {}
        self.above: dict[str, dict[Place, Place]] = {"read": {}, "written": {}}
        transform.function(Source(self, MODEL), Target(self, MODEL))

    def written(self, side: str) -> ChoiceMap:
        """The choices written to the model, or to the backward proposal."""
        return from_items((address, moved.value) for (of, address), moved in self.writes.items() if of == side)

    def require_read(self, side: str, choices: ChoiceMap) -> None:
        """What the new trace does not keep must be read, or the way back is lost."""
        for address, leaf in choices.items():
            if isinstance(leaf, Masked):
                raise self.in_some_lanes(address, self.transform.line)
            if (side, address) not in self.reads:
                raise MissingChoice(
                    f"a value of {self.sides[side].name} is lost: neither kept nor read,",
                    address=address,
                    gen_fn=self.transform,
                    where=self.transform.line,
                    expected="every choice that the new trace does not keep to be read, so that it can come back",
                    hint=f"old{'.aux' if side == AUX else ''}[{show_address(address)}]",
                )

    def log_det(self, gone: Callable[[tuple], bool]) -> mx.array:
        """log |det Jacobian| of the real values written in those read.

        ``gone(address)`` says which choices of the old model the new trace does not keep: the rest are constants.
        """
        return run_log_det(self, [p for p, moved in self.reads.items() if moved.real and (p[0] == AUX or gone(p[1]))])

    def in_some_lanes(self, address: tuple, where: str | None) -> BatchError:
        return BatchError(
            "the transform moves a choice that only some lanes have:",
            address=address,
            gen_fn=self.transform,
            where=where,
            expected="choices that all lanes of a batch have",
            hint="one trace at a time, or chains=1",
        )

    def again(self, given: dict[Place, mx.array]) -> Run:
        """The same run with other values in some of the places that it reads."""
        return Run(self.transform, self.sides, self.new_args, given)


class _Handle:
    __slots__ = ("_run", "_side", "_discrete")

    def __init__(self, run: Run, side: str, discrete: bool = False):
        self._run, self._side, self._discrete = run, side, discrete

    @property
    def aux(self) -> Any:
        """The choices of the proposal."""
        return type(self)(self._run, AUX, self._discrete)

    @property
    def discrete(self) -> Any:
        """The same choices, where a floating value is one of countably many, and is not differentiated."""
        return type(self)(self._run, self._side, True)

    def _claim(self, table: dict[Place, Moved], address: tuple, value: mx.array, verb: str) -> None:
        """Take an address for reading or writing; twice, or under another, raises with both lines."""
        above = self._run.above[verb]
        prefixes = [(self._side, address[:i]) for i in range(len(address) + 1)]
        other = next((p for p in prefixes if p in table), above.get((self._side, address)))
        if other is not None:
            both = "twice" if other[1] == address else f"and so is {show_address(other[1])}"
            raise AddressCollision(
                f"a choice is {verb} {both} (first at {table[other].line}):",
                address=address,
                gen_fn=self._run.transform,
                where=caller_line(),
                expected=f"each choice {verb} once",
                hint="keep the value in a variable" if verb == "read" else "write one value to each address",
            )
        above.update(dict.fromkeys(prefixes[:-1], prefixes[-1]))
        real = mx.issubdtype(value.dtype, mx.floating) and not self._discrete
        table[self._side, address] = Moved(value, real, caller_line())


class Source(_Handle):
    """What a transform reads: ``old["x"]``, ``old.aux["u"]``, ``"x" in old``, ``old.args``, ``old.retval``."""

    __slots__ = ()

    @property
    def _from(self) -> Side:
        return self._run.sides[self._side]

    def __contains__(self, address: Any) -> bool:
        return address in self._from.choices

    def __getitem__(self, address: Any) -> Any:
        address = normalise(address)
        found = self._from.choices.sub(address)
        if found.is_empty:
            known = self._from.choices.addresses()
            raise UnknownAddress(
                f"the transform reads what is not a choice of {self._from.name}:",
                address=address,
                gen_fn=self._run.transform,
                where=caller_line(),
                suggestions=nearest(address, known),
                expected=f"one of {show_addresses(known)}",
            )
        if found.is_leaf:
            return self._read(address, found.value)
        return from_items((below, self._read((*address, *below), leaf)) for below, leaf in found.items())

    def _read(self, address: tuple, leaf: Any) -> mx.array:
        if isinstance(leaf, Masked):
            raise self._run.in_some_lanes(address, caller_line())
        value = self._run.given.get((self._side, address))
        if value is None:
            value = as_array(leaf, address)
            # An object of its own, by which it is known again when it is written unchanged.
            value = value.astype(value.dtype)
        self._claim(self._run.reads, address, value, "read")
        return value

    @property
    def args(self) -> tuple:
        """The arguments of the old trace."""
        return self._run.sides[MODEL].args

    @property
    def retval(self) -> Any:
        """The return value of the old trace, or of the proposal, without real numbers in it."""
        for leaf in flatten(self._from.retval)[0]:
            if isinstance(leaf, float) or (isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating)):
                raise UsageError(
                    f"the return value of {self._from.name} holds real numbers: their derivative would be lost",
                    gen_fn=self._run.transform,
                    where=caller_line(),
                    hint="read the choices that it was computed from",
                )
        return self._from.retval


class Target(_Handle):
    """What a transform writes: ``new["z"] = value``, ``new.aux["u"] = value``; ``new.args`` can be read."""

    __slots__ = ()

    def __setitem__(self, address: Any, value: Any) -> None:
        address = normalise(address)
        for below, leaf in as_choicemap(value, leaf=True).items():
            full = (*address, *below)
            self._claim(self._run.writes, full, as_array(leaf, full), "written")

    @property
    def args(self) -> tuple:
        """The arguments of the new trace."""
        return self._run.new_args
