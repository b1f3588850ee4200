"""What models read besides their arguments: the names of their bodies and all that these lead to, as they were.

What was made of a run, such as a recorded graph, may stand for a later run while all of that is as it was. A name that
means something else, a list or an array whose contents have changed, and a helper function with another body all show.
Anything of which that cannot be told, such as an object of a user's class, has no readings.
"""

from __future__ import annotations

import builtins
import dis
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import mlx.core as mx

from genmlx.gen import GenFn, param
from genmlx.gfi import Call, GenerativeFunction
from genmlx.params import ParamStore
from genmlx.versions import resolve

_MISSING = object()
_TRUSTED = {"genmlx", "mlx", "math", "cmath", "numpy", "operator", "functools", "itertools"}
"""Packages that are not read further, since nothing of theirs changes."""
_OUTSIDE = {"load", "loadtxt", "genfromtxt", "fromfile", "memmap", "param", "params"}
"""Attributes that, even of these, are or look at something that does."""
_BUILTINS = {
    getattr(builtins, name)
    for name in (
        "abs all any bool complex dict divmod enumerate filter float frozenset int isinstance issubclass len list map "
        "max min object pow property range reversed round set slice sorted str sum tuple type zip repr super"
    ).split()
} | {value for value in vars(builtins).values() if isinstance(value, type) and issubclass(value, BaseException)}
_WRITES = {"STORE_GLOBAL", "DELETE_GLOBAL", "IMPORT_NAME", "STORE_ATTR", "DELETE_ATTR"}
_TELLING = {"CONTAINS_OP", "FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "IS_OP"}
_TELLING_NAMES = {"isinstance", "type", "str", "repr", "format", "get", "pop", "setdefault", "__contains__"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), mx.Dtype, range, slice)
_LARGEST = 1 << 24  # bytes of an array of which a copy is kept


class _Unreadable(Exception):
    pass


class Readings:
    """What some models read. ``unchanged()`` says whether it is as it was.

    ``particular`` is whether a body may tell a number from an array that is equal to it, without an error: by its type
    or its text, or by looking it up in a table.
    """

    def __init__(self) -> None:
        self.particular = False
        self._checks: list[Callable[[], bool]] = []
        self._seen: dict[int, Any] = {}  # which keeps them alive, so that no other object gets the number of one

    def unchanged(self) -> bool:
        return all(check() for check in self._checks)

    def read(self, value: Any) -> None:
        if isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        if value is param:
            raise _Unreadable
        self._seen[id(value)] = value
        if isinstance(value, (tuple, frozenset)):
            self._all(value)
        elif isinstance(value, (list, set)):
            self._container(value, list)
        elif isinstance(value, dict):
            self._container(value, lambda found: [*found, *found.values()])
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, GenerativeFunction):
            self._generative(value)
        elif isinstance(value, Call):
            self._all((value.gen_fn, value.raw_args, value.raw_kwargs))
        elif isinstance(value, mx.array) or type(value).__module__ == "numpy":
            self._array(value)
        elif not _is_fixed(value):
            raise _Unreadable

    def _all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.read(value)

    def _container(self, value: Any, parts: Callable[[Any], list]) -> None:
        before = parts(value)
        self._checks.append(lambda: _identical(parts(value), before))
        self._all(before)

    def _array(self, value: Any) -> None:
        import numpy as np

        if getattr(value, "nbytes", _LARGEST + 1) > _LARGEST:
            raise _Unreadable
        before = np.array(value).tobytes()
        self._checks.append(lambda: np.array(value).tobytes() == before)

    def _generative(self, value: Any) -> None:
        if isinstance(value, GenFn):
            version = resolve(value)
            self._checks.append(lambda: resolve(value) is version)
            if value.orphan is not None:
                raise _Unreadable
            self._function(version.function)
            return
        if type(value).__module__.partition(".")[0] != "genmlx":
            raise _Unreadable
        self._all(part for part in vars(value).values() if not isinstance(part, ParamStore))

    def _function(self, function: Any) -> None:
        if _is_trusted(function):
            return
        if vars(function).keys() - {"_schema", "__wrapped__"}:
            raise _Unreadable
        code = function.__code__
        self._checks.append(lambda: function.__code__ is code)  # which some reloaders replace
        self._all((function.__defaults__ or (), function.__kwdefaults__ or {}))
        for cell in function.__closure__ or ():
            self._name(lambda cell=cell: _contents(cell))
        attributes: set[str] = set()
        modules: list[ModuleType] = []
        names: dict = function.__globals__
        for own in _codes(code):
            for instruction in dis.get_instructions(own):
                what, name = instruction.opname, instruction.argval
                if what in _WRITES or (what == "STORE_DEREF" and name in code.co_freevars):
                    raise _Unreadable
                self.particular |= what in _TELLING or name in _TELLING_NAMES
                if what in ("LOAD_GLOBAL", "LOAD_NAME"):
                    found = self._name(lambda name=name: names.get(name, vars(builtins).get(name, _MISSING)))
                    modules += [found] if isinstance(found, ModuleType) else []
                elif what in ("LOAD_ATTR", "LOAD_METHOD"):
                    attributes.add(name)
        if attributes & _OUTSIDE:
            raise _Unreadable
        self._modules(modules, attributes)

    def _modules(self, modules: list[ModuleType], attributes: set[str]) -> None:
        """Every attribute that a body reads of something, of every module that it may be one of."""
        for module in modules:
            if _is_trusted(module):
                continue
            for name in attributes & vars(module).keys():
                found = self._name(lambda module=module, name=name: vars(module).get(name, _MISSING))
                modules += [found] if isinstance(found, ModuleType) and found not in modules else []

    def _name(self, look: Callable[[], Any]) -> Any:
        found = look()
        self._checks.append(lambda: look() is found)
        if found is not _MISSING:
            self.read(found)
        return found


def readings(values: Iterable[Any]) -> Readings | None:
    """What the models among the values read, those that they run included; None where that cannot be told.

    >>> from genmlx import gen, normal, trace
    >>> scales = [1.0]
    >>> def model():
    ...     trace("x", normal(0, scales[0]))
    >>> found = readings([gen(model)])
    >>> found.unchanged(), scales.append(2.0), found.unchanged()
    (True, None, False)
    """
    found = Readings()
    try:
        found._all(values)
    except (_Unreadable, RecursionError):
        return None
    return found


def _is_trusted(value: Any) -> bool:
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] in _TRUSTED


def _is_fixed(value: Any) -> bool:
    """Whether a value of no kind that is read further is one that does not change."""
    if isinstance(value, ModuleType):
        return True  # of which the attributes are read
    if isinstance(value, type):
        return value in _BUILTINS or _is_trusted(value) or _is_record(value)
    if isinstance(value, BuiltinFunctionType):
        return value in _BUILTINS or (_is_trusted(value) and isinstance(value.__self__, (ModuleType, type(None))))
    return (
        callable(value) and type(value).__name__ in ("nb_func", "ufunc") or type(value).__module__ == "genmlx.selection"
    )


def _is_record(value: type) -> bool:
    """Whether a class is a named tuple without methods of its own."""
    methods = (part for part in vars(value).values() if isinstance(part, FunctionType))
    return (
        issubclass(value, tuple)
        and hasattr(value, "_fields")
        and all(m.__module__ != value.__module__ for m in methods)
    )


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _identical(a: list, b: list) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
