"""What models read besides their arguments: the names of their bodies and all that these lead to, as they were.

What was made of a run, such as a recorded graph, may stand for a later run while all of that is as it was. A name that
means something else, a list or an array whose contents have changed, and a helper function with another body all show.
Anything of which that cannot be told, such as an object of a user's class, has no readings. A body that has noise of
its own, or catches errors, is fickle besides: a run of it that MLX records may say nothing about the next.
"""

from __future__ import annotations

import builtins
import dis
import io
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
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
_FICKLE = {"random", "secrets", "time", "datetime", "uuid"}
"""Packages of which a call gives something else each time."""
_CATCHES = {"PUSH_EXC_INFO", "SETUP_FINALLY", "SETUP_WITH"}
"""Where a body may go another way with an array of which there is no value yet: what it raises does not come out."""
_OUTSIDE = {"load", "loadtxt", "genfromtxt", "fromfile", "memmap"}
"""Attributes that, even of these, are or look at something that does."""
_PARAMETERS = {"param", "params"}
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
_PLAIN = {bool, int, float, complex, str, bytes, type(None), type(Ellipsis), mx.Dtype, range, slice}
_LARGEST = 1 << 24  # bytes of an array of which a copy is kept


class Readings:
    """What some models read. ``unchanged()`` says whether it is as it was.

    ``complete`` is whether all of it could be read, and ``steady`` whether all but parameters, which stay as they are
    within a run. ``particular`` is whether a body may tell a number from an array
    that is equal to it, without an error: by its type or its text, or by looking it up in a table. ``fickle`` is
    whether a run may give something else, or go another way while it is recorded, with all of this as it was.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self.complete, self.steady, self.particular, self.fickle = True, True, False, False
        self._checks: list[Callable[[], bool]] = []
        self._seen: dict[int, Any] = {}  # which keeps them alive, so that no other object gets the number of one
        try:
            self._all(values)
        except RecursionError:
            self._unknown()

    def unchanged(self) -> bool:
        return self.complete and all(check() for check in self._checks)

    def read(self, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if _is_fickle(value):
            self.fickle = True
            self._unknown()
        elif kind in (tuple, frozenset) or isinstance(value, tuple) and (_is_record(kind) or _is_trusted(kind)):
            self._all(value)
        elif kind in (list, set):
            self._container(value, list)
        elif kind in (dict, OrderedDict):
            self._container(value, lambda found: [*found, *found.values()])
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, GenerativeFunction):
            self._generative(value)
        elif isinstance(value, Call):
            self._all((value.gen_fn, value.raw_args, value.raw_kwargs))
        elif isinstance(value, mx.array) or kind.__module__ == "numpy":
            self._array(value)
        elif not _is_fixed(value):
            self._unknown()

    def _unknown(self) -> None:
        self.complete = self.steady = False

    def _all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.read(value)

    def _container(self, value: Any, parts: Callable[[Any], list]) -> None:
        before = parts(value)
        self._checks.append(lambda: _identical(parts(value), before))
        self._all(before)

    def _array(self, value: Any) -> None:
        before = None
        if getattr(value, "nbytes", _LARGEST + 1) <= _LARGEST:
            before = _contents_of(value)
        traced = isinstance(value, mx.array) and _is_traced(value)
        if before is None or traced:
            self._unknown()
        self.fickle |= traced
        self._checks.append(lambda: _contents_of(value) == before)

    def _generative(self, value: Any) -> None:
        if isinstance(value, GenFn):
            version = resolve(value)
            self._checks.append(lambda: resolve(value) is version)
            if value.orphan is not None:
                self._unknown()
            self._function(version.function)
        elif type(value).__module__.partition(".")[0] != "genmlx":
            self._unknown()
        else:
            self._all(part for part in vars(value).values() if not isinstance(part, ParamStore))

    def _function(self, function: Any) -> None:
        if function is param:
            self.complete = False
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        enclosed = [(name, self._name(lambda cell=cell: _contents(cell))) for name, cell in cells]
        if _is_trusted(function):
            return
        if vars(function).keys() - {"_schema", "__wrapped__"}:
            self._unknown()
        code = function.__code__
        self._checks.append(lambda: function.__code__ is code)  # which some reloaders replace
        self._name(lambda: function.__defaults__)
        self._name(lambda: function.__kwdefaults__)
        attributes: set[str] = set()
        found: dict[str, Any] = dict(enclosed)
        passed_on: set[str] = set()
        names: dict = function.__globals__
        for own in _codes(code):
            passed_on.update(_passed_on(own))
            for instruction in dis.get_instructions(own):
                what, name = instruction.opname, instruction.argval
                if what in _WRITES or (what == "STORE_DEREF" and name in code.co_freevars):
                    self._unknown()
                self.fickle |= what in _CATCHES
                self.particular |= what in _TELLING or what in _CATCHES or name in _TELLING_NAMES
                if what in ("LOAD_GLOBAL", "LOAD_NAME"):
                    found[name] = self._name(lambda name=name: names.get(name, vars(builtins).get(name, _MISSING)))
                elif what in ("LOAD_ATTR", "LOAD_METHOD"):
                    attributes.add(name)
        if attributes & _OUTSIDE:
            self._unknown()
        if attributes & _PARAMETERS:
            self.complete = False
        self._modules([pair for pair in found.items() if isinstance(pair[1], ModuleType)], attributes, passed_on)

    def _modules(self, modules: list[tuple[str, ModuleType]], attributes: set[str], passed_on: set[str]) -> None:
        """Every attribute that a body reads of something, of every module that it may be one of."""
        for called, module in modules:
            if _is_trusted(module):
                self.fickle |= module.__name__ == "numpy" and "random" in attributes
                continue
            # Of one that goes elsewhere, or that computes its attributes, it cannot be told what is read.
            if called in passed_on or type(module) is not ModuleType or "__getattr__" in vars(module):
                self._unknown()
            for name in attributes & vars(module).keys():
                found = self._name(lambda module=module, name=name: vars(module).get(name, _MISSING))
                if isinstance(found, ModuleType) and (name, found) not in modules:
                    modules.append((name, found))

    def _name(self, look: Callable[[], Any]) -> Any:
        found = look()
        self._checks.append(lambda: look() is found)
        if found is not _MISSING and not isinstance(found, ModuleType):
            self.read(found)
        return found


def readings(values: Iterable[Any]) -> Readings | None:
    """What the models among the values read, those that they run included; None where that cannot be told.

    >>> from genmlx import normal
    >>> scales = [1.0]
    >>> found = readings([normal, scales])
    >>> found.unchanged(), scales.append(2.0), found.unchanged()
    (True, None, False)
    >>> readings([print]) is None
    True
    """
    found = Readings(values)
    return found if found.complete else None


def _is_trusted(value: Any) -> bool:
    if isinstance(value, FunctionType):  # of which __module__ is that of what it wraps
        name = value.__globals__.get("__name__")
    else:
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] in _TRUSTED


def _is_fickle(value: Any) -> bool:
    """Whether it is, or belongs to, something that gives noise or the time."""
    owner = getattr(value, "__self__", value)
    names = (
        getattr(part, "__name__" if isinstance(part, ModuleType) else "__module__", None)
        for part in (value, owner, type(value), type(owner))
    )
    return any(
        isinstance(name, str) and (name.partition(".")[0] in _FICKLE or name.startswith("numpy.random"))
        for name in names
    )


def _is_fixed(value: Any) -> bool:
    """Whether a value of no kind that is read further is one that does not change."""
    if isinstance(value, ModuleType):
        return _is_trusted(value)
    if isinstance(value, type):
        return value in _BUILTINS or _is_trusted(value) or _is_record(value)
    if isinstance(value, BuiltinFunctionType):
        return value in _BUILTINS or (_is_trusted(value) and isinstance(value.__self__, (ModuleType, type(None))))
    return type(value).__name__ == "nb_func" or type(value).__module__ == "genmlx.selection"


def _is_record(value: type) -> bool:
    """Whether a class is a named tuple without methods or properties of its own."""
    if not (issubclass(value, tuple) and hasattr(value, "_fields")):
        return False
    owned = (part for base in value.__mro__[: value.__mro__.index(tuple)] for part in vars(base).values())
    return all(_is_generated(part) for part in owned if hasattr(type(part), "__get__"))


def _is_generated(part: Any) -> bool:
    """Whether an attribute of a class is one that ``namedtuple`` makes."""
    if type(part).__name__ == "_tuplegetter":
        return True
    module = getattr(getattr(part, "__func__", part), "__module__", None)
    return isinstance(module, str) and (module == "collections" or module.startswith("namedtuple_"))


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _contents_of(array: Any) -> Any:
    """What an array is, to the bit; None where that cannot be told, as of objects, or of one that is traced."""
    import numpy as np

    try:
        whole = array.astype(mx.float32) if getattr(array, "dtype", None) == mx.bfloat16 else array
        found = np.asarray(whole)
    except (ValueError, RuntimeError):
        return None
    return None if found.dtype.hasobject else (array.shape, array.dtype, found.tobytes())


def _is_traced(array: mx.array) -> bool:
    """Whether a gradient or a map goes through an array: then MLX keeps the graph of what is made of it."""
    graph = io.StringIO()
    try:
        made = mx.expand_dims(array, 0)
        mx.eval(made)
        mx.export_to_dot(graph, made)
    except (ValueError, RuntimeError):
        return True
    return "ExpandDims" in graph.getvalue()


def _passed_on(code: CodeType) -> Iterator[str]:
    """The names in a body of which more than an attribute is asked."""
    instructions = [part for part in dis.get_instructions(code) if part.opname != "EXTENDED_ARG"]
    for one, after in pairwise(instructions):
        if one.opname.startswith("LOAD_") and after.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            yield one.argval if isinstance(one.argval, str) else ""


def _identical(a: list, b: list) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
