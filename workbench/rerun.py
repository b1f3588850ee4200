"""Running a module again: all of it or nothing, and what is different afterwards.

The module keeps its namespace, which is emptied first: functions, dataclasses and pickles find what they expect in it.
What ran before is moved to a copy of the old namespace: a version of a model that a trace or a posterior is pinned to
goes on with the helpers and constants that it knew. An exception puts everything back.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from genmlx.digest import digest
from genmlx.gen import GenFn, Version, handles

_KEPT = (
    "__name__", "__package__", "__loader__", "__spec__", "__file__", "__cached__", "__path__", "__builtins__",
)  # fmt: skip


class ModelChange(NamedTuple):
    """A model of the module: its versions before (None for a new one) and after, and what it reads that has changed."""

    model: GenFn
    before: Any
    after: Any
    reasons: tuple[str, ...]


class Changes(NamedTuple):
    """What a run of a module has changed: models, plain functions, and other names; what came and what went.

    ``affected`` are all the names that now mean something else, directly or by what they read.
    """

    models: list[ModelChange]
    functions: list[str]
    values: list[str]
    added: list[str]
    gone: list[str]
    orphans: list[GenFn]
    affected: frozenset[str]
    before: dict[str, Any]

    def __bool__(self) -> bool:
        return bool(self.affected or any(m.before is not m.after for m in self.models))


def run_again(module: ModuleType, code: CodeType, rerun: dict[str, Changes], touched: set[int]) -> Changes:
    """Run the new code of a module in its emptied namespace; an exception leaves all as it was.

    ``rerun`` has what became of the modules that were run before this one, and ``touched`` the identities of their
    functions that mean something else now; this adds its own.
    """
    space, file = vars(module), module.__file__ or module.__name__
    before = dict(space)
    own = [handle for handle in handles() if handle.__module__ == module.__name__]
    states = [(handle, dict(vars(handle)), handle.version) for handle in own]
    moved = _freeze(space)
    try:
        space.clear()
        space.update({name: before[name] for name in _KEPT if name in before})
        exec(code, space)
        _keep_networks(before, space)
    except BaseException:
        space.clear()
        space.update(before)
        for handle, state, _ in states:
            vars(handle).update(state)
        for version, function in moved:
            version.function = function
        raise
    changes = _compare(module, before, rerun, touched)
    models = []
    for handle, state, version in states:
        function = handle.__wrapped__
        if function is state["__wrapped__"]:
            if handle.orphan is None:
                handle.orphan, handle._warned = file, False
                changes.orphans.append(handle)
            continue
        reasons = _reasons(function, space, changes.affected, rerun)
        if handle.version is version and reasons:
            handle.redefine(function, anew=True)
        if handle.version is version:
            version.function = function  # equal, and in the namespace of today
        models.append(ModelChange(handle, version, handle.version, reasons))
    known = {id(handle) for handle in own}
    for handle in handles():
        if handle.__module__ == module.__name__ and id(handle) not in known:
            models.append(ModelChange(handle, None, handle.version, ()))
    _keep_identities(before, space, touched)
    touched.update(id(space[name]) for name in changes.affected if isinstance(space.get(name), (FunctionType, type)))
    return changes._replace(models=models)


# the past


def _freeze(space: dict[str, Any]) -> list[tuple[Version, FunctionType]]:
    """Move every version of a model that reads this namespace to a copy of it; what each was is returned."""
    past = dict(space)
    for name, value in space.items():
        if isinstance(value, FunctionType) and value.__globals__ is space:
            past[name] = _placed(value, past)
    moved = []
    for thing in gc.get_objects():
        if type(thing) is Version and getattr(thing.function, "__globals__", None) is space:
            moved.append((thing, thing.function))
            thing.function = _placed(thing.function, past)
    return moved


def _placed(function: Any, space: dict[str, Any]) -> FunctionType:
    """The function with another namespace as its globals."""
    made = FunctionType(function.__code__, space, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__, made.__qualname__, made.__doc__ = (
        function.__kwdefaults__,
        function.__qualname__,
        function.__doc__,
    )
    made.__module__ = function.__module__
    made.__dict__.update(function.__dict__)
    return made


def _keep_networks(before: dict[str, Any], space: dict[str, Any]) -> None:
    """A network that was made again as it was is the old one, with its weights; a changed one keeps those that fit."""
    for name, new in list(space.items()):
        if hasattr(type(new), "made_again") and type(old := before.get(name)) is type(new) and old is not new:
            space[name] = new.made_again(old)


def _keep_identities(before: dict[str, Any], space: dict[str, Any], touched: set[int]) -> None:
    """Give plain functions their new code in place, so that whoever holds one has the new one."""
    same: dict[int, FunctionType] = {}
    for name, new in space.items():
        old: Any = before.get(name)
        if old is not new and _is_own(old, space) and _is_own(new, space) and old.__qualname__ == new.__qualname__:
            cells, new_cells = old.__closure__ or (), new.__closure__ or ()
            if old.__code__.co_freevars == new.__code__.co_freevars:
                for cell, new_cell in zip(cells, new_cells, strict=True):
                    with suppress(ValueError):  # an empty cell
                        cell.cell_contents = new_cell.cell_contents
                for part in ("__code__", "__defaults__", "__kwdefaults__", "__annotations__", "__doc__"):
                    setattr(old, part, getattr(new, part))
                old.__dict__.clear()
                old.__dict__.update(new.__dict__)
                same[id(new)] = old
    for name, value in list(space.items()):
        if id(value) in same:
            space[name] = same[id(value)]


def _is_own(value: Any, space: dict[str, Any]) -> bool:
    return isinstance(value, FunctionType) and value.__globals__ is space and value.__module__ == space["__name__"]


# what is different


def _compare(module: ModuleType, before: dict, rerun: dict[str, Changes], touched: set[int]) -> Changes:
    space = vars(module)
    public = [name for name in space if not (name.startswith("__") and name.endswith("__"))]
    old = {name for name in before if not (name.startswith("__") and name.endswith("__"))}
    both = [name for name in public if name in old]
    differ = {
        name
        for name in both
        if id(space[name]) in touched
        or (space[name] is not before[name] and not _means_the_same(space[name], before[name]))
    }
    added, gone = [name for name in public if name not in old], sorted(old - set(public))
    affected = differ.union(added, gone)
    while more := {name for name in set(both) - affected if _reasons(space[name], space, frozenset(affected), rerun)}:
        affected |= more
    functions = [name for name in both if name in differ and _is_own(space[name], space)]
    return Changes(
        models=[],
        functions=functions,
        values=[name for name in both if name in differ and name not in functions],
        added=added,
        gone=gone,
        orphans=[],
        affected=frozenset(affected),
        before=before,
    )


def _reasons(value: Any, space: dict[str, Any], affected: frozenset, rerun: dict[str, Changes]) -> tuple[str, ...]:
    """The names that the code of a function or a class reads and that mean something else now."""
    names, attributes = _reads(value)
    found = sorted(names & affected)
    for name in sorted(names):
        module = space.get(name)
        if isinstance(module, ModuleType) and module.__name__ in rerun:
            found += [f"{name}.{a}" for a in sorted(attributes & rerun[module.__name__].affected)]
    return tuple(found)


def _reads(value: Any) -> tuple[set[str], set[str]]:
    """The global names, and the attributes, that the code of a function or of the methods of a class reads."""
    if isinstance(value, type):
        parts = [_reads(getattr(part, "__func__", part)) for part in vars(value).values()]
        return set().union(*(p[0] for p in parts)), set().union(*(p[1] for p in parts))
    code = getattr(value, "__code__", None)
    return _names_in(code) if isinstance(code, CodeType) else (set(), set())


def _names_in(code: CodeType) -> tuple[set[str], set[str]]:
    import dis

    found = list(dis.get_instructions(code))
    names = {str(i.argval) for i in found if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    attributes = {str(i.argval) for i in found if i.opname in ("LOAD_ATTR", "LOAD_METHOD")}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner, more = _names_in(constant)
            names, attributes = names | inner, attributes | more
    return names, attributes


def _means_the_same(one: Any, other: Any) -> bool:
    try:
        return says(one) == says(other)
    except Exception:  # of an object that cannot be looked into
        return False


def says(value: Any, within: tuple[int, ...] = ()) -> Any:
    """A description that is equal for values that mean the same, though a module made them anew.

    What it cannot look into, such as an open file, is itself only.
    """
    import mlx.core as mx

    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return type(value), repr(value)
    if id(value) in within:
        return "circle", within.index(id(value))
    within = (*within, id(value))
    kind = type(value).__module__, type(value).__qualname__
    if isinstance(value, (GenFn, ModuleType)):
        return "itself", id(value)
    if isinstance(value, (list, tuple)):
        return kind, [says(v, within) for v in value]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(repr(says(v, within)) for v in value)
    if isinstance(value, dict):
        return kind, [(says(k, within), says(v, within)) for k, v in value.items()]
    if isinstance(value, mx.array):
        content: Any = value.reshape(-1).view(mx.uint8)
        return mx.array, str(value.dtype), value.shape, bytes(memoryview(content))
    if type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
        return type(value), str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, FunctionType):
        return FunctionType, digest(value)
    if isinstance(value, (staticmethod, classmethod)):
        return type(value), says(value.__func__, within)
    if isinstance(value, property):
        return property, [says(f, within) for f in (value.fget, value.fset, value.fdel)]
    if isinstance(value, type):
        inside = {k: v for k, v in vars(value).items() if k not in _OF_THE_PLACE}
        bases = [says(b, within) if b.__module__ == value.__module__ else id(b) for b in value.__bases__]
        return type, value.__qualname__, bases, says(inside, within)
    parts = dict(_parts(value))
    if not parts:
        try:
            parts = value.__reduce_ex__(2)
        except TypeError:
            parts = None
    return (kind, says(parts, within)) if isinstance(parts, (dict, tuple)) else ("itself", id(value))


_OF_THE_PLACE = {"__dict__", "__weakref__", "__doc__", "__firstlineno__", "_abc_impl"}


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__weakref__", "__dict__") and hasattr(value, name):
                yield name, getattr(value, name)
