"""``@gen``: models as Python functions, and the handles and versions that let them be redefined."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any
from weakref import WeakValueDictionary

from genmlx import handlers
from genmlx.address import normalise
from genmlx.choicemap import EMPTY, ChoiceMap
from genmlx.diff import NoChange, UnknownChange, same
from genmlx.digest import digest
from genmlx.errors import UsageError, caller_line
from genmlx.gfi import Call, GenerativeFunction, as_weight, total, unchanged
from genmlx.handlers import Handler, Spliced, below, selected
from genmlx.params import ParamStore, peek, read_param
from genmlx.pytree import register
from genmlx.selection import ALL, Selection, select
from genmlx.trace import Trace
from genmlx.versions import current_pins, pinned, resolve


def trace(address: Any, call: Call) -> Any:
    """Make a choice, or run a model, at an address of the current run, and return its value.

    ``trace("slope", normal(0, 10))`` is the same as ``normal(0, 10) @ "slope"``.
    """
    return _running("trace", call).trace(address, call)


def splice(call: Call) -> Any:
    """Run a model in the caller's own namespace: its addresses become the caller's."""
    handler = _running("splice", call)
    if not isinstance(call.gen_fn, GenFn):
        return handler.splice(call)
    owner, handler.owner = handler.owner, call.gen_fn
    handler.inlined[call.gen_fn] = version = resolve(call.gen_fn)
    try:
        args = call.args
        return version.function(*args, **getattr(args, "kwargs", {}))
    finally:
        handler.owner = owner


def param(name: str, default: Any) -> Any:
    """A trainable parameter of the model: ``default`` until ``model.params[name]`` is set or trained.

    An array, or a tree of arrays: dicts, lists and tuples, as the parameters of an ``mlx.nn`` module.
    """
    handler = handlers._handler.get()
    if handler is None:
        raise UsageError(
            f"param({name!r}) outside of a model",
            expected="a call inside the body of a @gen function",
            hint="read or set a parameter outside of it with model.params[name]",
            where=caller_line(),
        )
    value, arrays = read_param(handler.owner, name, default)
    for leaf, array in arrays.items():
        handler.params[handler.owner, leaf] = array
    return value


def _running(what: str, call: Any) -> Handler:
    if not isinstance(call, Call):
        given = getattr(call, "__name__", None) or f"a {type(call).__name__}"
        raise UsageError(
            f"{what} was given {given}, not a call",
            expected="a distribution or a model applied to its arguments, as normal(0, 1)",
            hint=f"{given}(...)" if isinstance(call, GenerativeFunction) else 'trace("name", normal(0, 1))',
            where=caller_line(),
        )
    handler = handlers._handler.get()
    if handler is None:
        raise UsageError(
            f"{what} was called outside of a model",
            expected="a call inside the body of a @gen function",
            hint="run the model with model(args).simulate(); a draw alone is normal(0, 1).sample()",
            where=caller_line(),
        )
    return handler


class Arguments(tuple):
    """Arguments of which some can only be given by keyword; those are in ``kwargs``."""

    kwargs: dict

    def __new__(cls, args: tuple, kwargs: dict):
        self = super().__new__(cls, args)
        self.kwargs = kwargs
        return self


register(
    Arguments,
    lambda args: ((tuple(args), args.kwargs), None),
    lambda _, children: Arguments(*children),
)


class Version:
    """One immutable version of a model. ``number`` counts from 1; ``digest`` is equal for equal bodies."""

    __slots__ = ("function", "number", "signature", "simple", "__weakref__")

    def __init__(self, function: Callable, number: int):
        self.function, self.number = function, number
        self.signature = inspect.signature(function)
        parameters = self.signature.parameters.values()
        plain = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
        self.simple = len(parameters) if plain else -1

    @property
    def digest(self) -> str:
        """Found when it is asked for: a model that a body defines anew in each run is never compared."""
        return digest(self.function)

    def __int__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, int) and self.number == other)

    def __hash__(self) -> int:
        return hash(self.number)

    def __repr__(self) -> str:
        return f"v{self.number}"


class GenTrace(Trace):
    """A run of a ``@gen`` function: the traces of its sites by address, and the parameters that it read."""

    __slots__ = ("subtraces", "params", "made_by", "inlined")
    data = ("args", "retval", "score", "subtraces", "params")

    def __init__(self, gen_fn: GenFn, made_by: Version, args: tuple, retval: Any, handler: Handler):
        subtraces = handler.subtraces
        super().__init__(
            gen_fn=gen_fn,
            args=args,
            retval=retval,
            score=as_weight(total([sub.score for sub in subtraces.values()])),
            subtraces=subtraces,
            params=handler.params,
            made_by=made_by,
            inlined=handler.inlined,
        )

    def gathered(self) -> ChoiceMap:
        return handlers.gather((address, sub.choices) for address, sub in self.subtraces.items())

    def children(self) -> Iterable[Trace]:
        return self.subtraces.values()

    def reads(self) -> dict:
        return {**self.params, **super().reads()}

    def runs(self) -> dict:
        return {self.gen_fn: self.made_by, **self.inlined, **super().runs()}

    @property
    def version(self) -> Version:
        return self.made_by

    def __getitem__(self, address: Any) -> Any:
        """The value of a choice; the return value of a call; the sub-map under a prefix."""
        parts = normalise(address)
        for i in range(len(parts), 0, -1):
            if (sub := self.subtraces.get(parts[:i])) is not None:
                return sub.retval if i == len(parts) else sub[parts[i:]]
        return self.choices[parts]


class GenFn(GenerativeFunction):
    """A model: a handle that keeps its identity while its versions change. ``@gen`` makes it."""

    orphan: str | None = None
    """The file that no longer defines it, after a reload. It works as before, and its first call warns."""

    def __init__(self, function: Callable):
        self.params = ParamStore()
        self._version = Version(function, 1)
        self._describe(function)

    def _describe(self, function: Callable) -> None:
        self.__name__, self.__qualname__ = function.__name__, function.__qualname__
        self.__module__, self.__doc__, self.__wrapped__ = function.__module__, function.__doc__, function
        self.orphan, self._warned = None, False

    @property
    def version(self) -> Version:
        return self._version

    @property
    def signature(self) -> inspect.Signature:
        return self._version.signature

    __signature__ = signature

    def redefine(self, function: Callable, anew: bool = False) -> bool:
        """Point this handle at a new body. An equal body changes nothing; False says so.

        With ``anew`` it is a new version all the same, since something that it reads has changed.
        """
        new = Version(function, self._version.number + 1)
        changed = anew or new.digest != self._version.digest
        if changed:
            self._version = new
        self._describe(function)
        return changed

    def restore(self, version: Version) -> None:
        """Point this handle at an earlier version again, as after a cell that failed."""
        self._version = version
        self._describe(version.function)

    def getdoc(self) -> str:
        """What IPython shows for ``model?``: the version, where it was defined, its sites, and the docstring."""
        from genmlx.schema import describe

        return describe(self)

    def bind(self, args: Any, kwargs: dict | None = None) -> tuple:
        if isinstance(args, Call):
            args, kwargs = args.raw_args, args.raw_kwargs
        if isinstance(args, Arguments) and not kwargs:
            return args
        version = resolve(self)
        args = super().bind(args)
        if not kwargs and len(args) == version.simple:
            return args
        try:
            bound = version.signature.bind(*args, **(kwargs or {}))
        except TypeError as error:
            raise UsageError(
                f"{self.__name__}: {error}",
                expected=f"{self.__name__}{version.signature}",
                hint=f"{self.__name__} was redefined: this is {version!r}" if version.number > 1 else None,
                where=caller_line(),
            ) from None
        bound.apply_defaults()
        return Arguments(bound.args, bound.kwargs) if bound.kwargs else bound.args

    def __call__(self, *args: Any, **kwargs: Any) -> Call:
        if self.orphan is not None and not self._warned and current_pins().get(self, self._version) is self._version:
            self._warned = True
            warnings.warn(f"{self.orphan} no longer defines {self.__name__}: {self._version!r} is used", stacklevel=2)
        if kwargs or len(args) != self._version.simple:
            self.bind(args, kwargs)
        return Call(self, args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """As a method: ``obj.model(x)`` is the call with ``obj`` as its first argument."""
        return self if instance is None else MethodType(self, instance)

    def _run(self, handler: Handler, args: tuple, version: Version | None = None) -> GenTrace:
        used: Version = resolve(self) if version is None else version
        with handler:
            retval = used.function(*args, **getattr(args, "kwargs", {}))
        return GenTrace(self, used, args, retval, handler)

    def _simulate(self, args: tuple, key: Any) -> Trace:
        return self._run(handlers.Simulate(self, key), args)

    def _generate(self, args: tuple, constraints: ChoiceMap, key: Any) -> tuple[Trace, Any]:
        handler = handlers.Generate(self, key, constraints)
        return self._run(handler, args), handler.weight

    def _update(
        self, trace: GenTrace, args: tuple, diffs: tuple, constraints: ChoiceMap, key: Any
    ) -> tuple[Trace, Any, Any, ChoiceMap]:
        if constraints.is_empty and self._settled(trace, args, diffs):
            return trace, 0.0, NoChange, EMPTY
        handler = handlers.Update(self, key, trace, constraints)
        with pinned(trace.pins):
            new = self._run(handler, args, trace.made_by)
        discard = handler.discard()
        return new, handler.weight, _retdiff(trace, new), discard

    def _regenerate(
        self, trace: GenTrace, args: tuple, diffs: tuple, selection: Selection, key: Any
    ) -> tuple[Trace, Any, Any]:
        if self._settled(trace, args, diffs) and trace.choices.filter(selection).is_empty:
            return trace, 0.0, NoChange
        handler = handlers.Regenerate(self, key, trace, selection)
        with pinned(trace.pins):
            new = self._run(handler, args, trace.made_by)
        return new, handler.weight, _retdiff(trace, new)

    def _settled(self, trace: GenTrace, args: tuple, diffs: tuple) -> bool:
        """Whether running again with no new choice would give the same trace."""
        same_kwargs = same(_items(trace.args), _items(args))
        return same_kwargs and unchanged(diffs) and all(
            peek(handle, name) is value for (handle, name), value in trace.reads().items()
        )

    def _project(self, trace: GenTrace, selection: Selection) -> Any:
        if selection is ALL:
            return trace.score
        total: Any = 0.0
        for address, sub in trace.subtraces.items():
            total = total + sub.gen_fn._project(sub, selected(selection, address))
        return total

    def unvisited(self, trace: GenTrace, constraints: ChoiceMap) -> list[tuple]:
        left, found = constraints, []
        for address, sub in trace.subtraces.items():
            inner = below(left, address)
            unknown = [] if inner.is_empty else sub.gen_fn.unvisited(sub, inner)
            if type(address[0]) is Spliced:
                left = left.filter(select(*unknown)) if unknown else EMPTY
            elif not inner.is_empty:
                found += [(*address, *rest) for rest in unknown]
                left = left.without_sub(address)
        return [*found, *left.addresses()]

    def __reduce__(self) -> str:
        """Pickled by name, as a function is."""
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<gen {self.__name__} {self._version!r}>"


def _items(args: tuple) -> list:
    return [part for item in getattr(args, "kwargs", {}).items() for part in item]


def _retdiff(old: Trace, new: Trace) -> Any:
    return NoChange if same(old.retval, new.retval) else UnknownChange


_handles: WeakValueDictionary[tuple[str, str], GenFn] = WeakValueDictionary()


def handles() -> list[GenFn]:
    """Every model that lives and can be redefined by its name."""
    return list(_handles.values())


class _Gen:
    """``@gen`` turns a function into a model.

    Defining a function again under the same module and qualified name re-points the existing handle, so that
    everything that holds it follows; an equal body is a no-op, and a definition that fails leaves the old version.
    A function made inside another always gets a handle of its own, and so does ``@gen.new``.
    """

    def __call__(self, function: Callable) -> GenFn:
        _check(function)
        identity = (function.__module__, function.__qualname__)
        handle = None if "<" in function.__qualname__ else _handles.get(identity)
        if handle is None:
            return self.new(function)
        handle.redefine(function)
        return handle

    def new(self, function: Callable) -> GenFn:
        """A fresh handle, whatever the name, which later definitions of that name re-point."""
        _check(function)
        handle = GenFn(function)
        if "<" not in function.__qualname__:
            _handles[function.__module__, function.__qualname__] = handle
        return handle


def _check(function: Any) -> None:
    if not inspect.isfunction(function):
        raise UsageError(f"@gen was given {function!r}", expected="a function defined with def or lambda")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise UsageError(
            f"@gen was given {function.__name__}, which is not an ordinary function",
            expected="a function that runs to its end: no async, no yield",
        )


gen = _Gen()
