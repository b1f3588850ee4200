"""What the body of a model says before it runs: its sites as they are written, and the models that it calls."""

from __future__ import annotations

import ast
import dis
import inspect
import linecache
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from genmlx.errors import show_line
from genmlx.gen import GenFn, handles, splice, trace
from genmlx.gfi import GenerativeFunction


class Site(NamedTuple):
    """A place in a body that makes a choice or runs a model at an address.

    ``pattern`` is the address, with None for each part that is only known in a run; None when even their number is not.
    """

    address: str
    call: str
    pattern: tuple | None

    @property
    def static(self) -> bool:
        return self.pattern is not None and None not in self.pattern

    def matches(self, address: tuple) -> bool:
        if self.pattern is None or len(self.pattern) != len(address):
            return False
        return all(mine is None or mine == theirs for mine, theirs in zip(self.pattern, address, strict=True))


class Schema(NamedTuple):
    """The sites of a body in the order of its text, and the calls that it splices.

    >>> from genmlx import gen, normal, trace
    >>> @gen
    ... def line(xs):
    ...     slope = trace("slope", normal(0, 10))
    ...     for i, x in enumerate(xs):
    ...         trace(("y", i), normal(slope * x, 1))
    >>> print(schema(line))
    1 static + ("y", i) dynamic sites
    """

    sites: tuple[Site, ...]
    spliced: tuple[str, ...]

    def find(self, address: tuple) -> Site | None:
        """The site that makes the choice at an address; one that names it in full before one that may."""
        matching = [site for site in self.sites if site.matches(address)]
        return min(matching, key=lambda site: not site.static, default=None)

    def texts(self) -> dict[str, str]:
        """What stands at each address; an address in two branches has both."""
        found: dict[str, list[str]] = {}
        for site in self.sites:
            calls = found.setdefault(site.address, [])
            if site.call not in calls:
                calls.append(site.call)
        return {address: " | ".join(calls) for address, calls in found.items()}

    def table(self) -> list[str]:
        """A line for each address."""
        rows = [*self.texts().items(), *[("", f"splice({call})") for call in self.spliced]]
        width = max((len(address) for address, _ in rows), default=0)
        return [f"{address:<{width}}  {call}" for address, call in rows]

    def __str__(self) -> str:
        static = len({site.address for site in self.sites if site.static})
        dynamic = list(dict.fromkeys(site.address for site in self.sites if not site.static))
        parts = [f"{static} static"] if static else []
        if dynamic:
            more = f" + {len(dynamic) - 3} more" if len(dynamic) > 3 else ""
            parts.append(f"{', '.join(dynamic[:3])}{more} dynamic")
        if self.spliced:
            parts.append(f"those of {', '.join(self.spliced)}")
        total = static + len(dynamic)
        if not total:
            return f"the sites of {', '.join(self.spliced)}" if self.spliced else "no sites"
        return f"{' + '.join(parts)} site{'s' if total > 1 or self.spliced else ''}"


def schema(model: GenFn) -> Schema | None:
    """The schema of a model's current version; None where its source is gone, or is that of a later edit."""
    return schema_of(model.version.function)


def schema_of(function: Any) -> Schema | None:
    """The schema of the body of one version."""
    known = function.__dict__.get("_schema")
    if known is None or known[0] is not function.__code__:
        node = _definition(function.__code__, function.__globals__)
        known = function.__code__, None if node is None else read(function, node)
        if node is not None:
            function.__dict__["_schema"] = known
    return known[1]


def note(function: FunctionType, node: ast.AST) -> None:
    """Say which tree a function was compiled from, where its source in a file or cell does not."""
    function.__dict__["_schema"] = function.__code__, read(function, node)


def read(function: Any, node: ast.AST) -> Schema:
    """The schema of a function by its definition, a ``def`` or a ``lambda``."""
    reader = _Reader(_Names(function))
    body: Any = getattr(node, "body", None)
    for part in body if isinstance(body, list) else [body]:
        reader.visit(part)
    return Schema(tuple(reader.sites), tuple(dict.fromkeys(reader.spliced)))


def describe(model: GenFn) -> str:
    """Version, place, sites and docstring of a model."""
    code = inspect.unwrap(model.__wrapped__).__code__
    found, place = schema(model), show_line(code.co_filename, code.co_firstlineno)
    lines = [f"{model.__name__} {model.version!r}   {place}", *(found.table() if found else [])]
    return "\n".join([*lines, *(["", inspect.cleandoc(model.__doc__)] if model.__doc__ else [])])


def changes(old: Schema | None, new: Schema | None) -> list[str]:
    """What a new version does otherwise: ``intercept ~ normal(0, 10) -> normal(0, 2)``, ``+ ...`` and ``- ...``."""
    if old is None or new is None:
        return []
    before, after = old.texts(), new.texts()
    changed = [f"{a} ~ {before[a]} -> {after[a]}" for a in after if a in before and before[a] != after[a]]
    changed += [f"+ {a} ~ {after[a]}" for a in after if a not in before]
    changed += [f"- {a} ~ {before[a]}" for a in before if a not in after]
    changed += [f"+ splice({call})" for call in new.spliced if call not in old.spliced]
    return changed + [f"- splice({call})" for call in old.spliced if call not in new.spliced]


# reading a tree


class _Names:
    """The values of the names of a body that are not its own variables."""

    def __init__(self, function: Any):
        code = function.__code__
        self.own = {*code.co_varnames, *code.co_cellvars}
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        self.free = {name: cell for name, cell in cells if name not in self.own}
        self.module = function.__globals__

    def get(self, name: str) -> Any:
        if name in self.free:
            try:
                return self.free[name].cell_contents
            except ValueError:
                return None
        return None if name in self.own else self.module.get(name)

    def value(self, node: ast.AST) -> Any:
        """What a dotted name means, without running anything of the user's."""
        if isinstance(node, ast.Name):
            return self.get(node.id)
        base = self.value(node.value) if isinstance(node, ast.Attribute) else None
        return _attribute(base, node.attr) if isinstance(node, ast.Attribute) else None


def _attribute(base: Any, name: str) -> Any:
    return getattr(base, name, None) if isinstance(base, (ModuleType, type)) else None


class _Reader(ast.NodeVisitor):
    def __init__(self, names: _Names):
        self.names = names
        self.sites: list[Site] = []
        self.spliced: list[str] = []

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        given = {**dict(zip(("address", "call"), node.args, strict=False)), **{k.arg: k.value for k in node.keywords}}
        function = self.names.value(node.func)
        if function is trace and {"address", "call"} <= given.keys():
            self.sites.append(_site(given["address"], given["call"]))
        elif function is splice and node.args:
            self.spliced.append(ast.unparse(node.args[0]))

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.generic_visit(node)
        if isinstance(node.op, ast.MatMult) and self._is_site(node):
            self.sites.append(_site(node.right, node.left))

    def _is_site(self, node: ast.BinOp) -> bool:
        """Whether ``left @ right`` names a choice: a matrix has no string on its right."""
        right = node.right.elts[0] if isinstance(node.right, ast.Tuple) and node.right.elts else node.right
        if isinstance(right, ast.JoinedStr) or (isinstance(right, ast.Constant) and isinstance(right.value, str)):
            return True
        return isinstance(node.left, ast.Call) and isinstance(self.names.value(node.left.func), GenerativeFunction)


def _site(address: ast.expr, call: ast.expr) -> Site:
    if isinstance(address, ast.Constant) and isinstance(address.value, str):
        return Site(address.value, ast.unparse(call), (address.value,))
    if not isinstance(address, ast.Tuple):
        path = (address.value,) if isinstance(address, ast.Constant) else None
        return Site(ast.unparse(address), ast.unparse(call), path)
    parts = ", ".join(map(_part, address.elts)) + ("," if len(address.elts) == 1 else "")
    fixed = not any(isinstance(part, ast.Starred) for part in address.elts)
    pattern = tuple(part.value if isinstance(part, ast.Constant) else None for part in address.elts)
    return Site(f"({parts})", ast.unparse(call), pattern if fixed else None)


def _part(node: ast.expr) -> str:
    plain = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isprintable()
    text = ast.unparse(node)
    return f'"{text[1:-1]}"' if plain and '"' not in text and "\\" not in text else text


# finding the tree


def _definition(code: CodeType, module_names: dict) -> ast.AST | None:
    """The definition that compiles to this code: of a file that has changed since, the wrong lines are not read."""
    # What a session has imported from __future__ is not in the text of its later cells.
    flags = code.co_flags & annotations.compiler_flag
    for look_again in (False, True):
        if look_again:
            linecache.checkcache(code.co_filename)
        try:
            tree = ast.parse("".join(linecache.getlines(code.co_filename, module_names)))
            whole = compile(tree, code.co_filename, "exec", flags, dont_inherit=True)
        except (SyntaxError, ValueError):
            continue
        if any(found == code for found in _codes(whole)):
            nodes = (node for node in ast.walk(tree) if _first_line(node, code.co_name) == code.co_firstlineno)
            return next(nodes, None)
    return None


def _first_line(node: ast.AST, name: str) -> int | None:
    if isinstance(node, ast.Lambda) and name == "<lambda>":
        return node.lineno
    if not isinstance(node, ast.FunctionDef) or node.name != name:
        return None
    return min([node.lineno, *[decorator.lineno for decorator in node.decorator_list]])


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


# who calls whom


def callees(model: GenerativeFunction) -> list[GenFn]:
    """Every model that a model may run, by the names that its body reads: through helpers, tables and combinators too.

    It reads the instructions, so it needs no source. A model that is only passed as an argument is not found.
    """
    found: list[GenFn] = []
    seen: set[int] = {id(model)}
    left: list[Any] = _parts(model)
    while left:
        value = left.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, GenFn):
            found.append(value)
        left += _parts(value)
    return found


def callers(model: GenFn, among: Iterable[GenFn] = ()) -> list[GenFn]:
    """The live models that may run this one, and others among which to look."""
    every = {id(handle): handle for handle in (*handles(), *among)}
    return [handle for handle in every.values() if any(callee is model for callee in callees(handle))]


def _parts(value: Any) -> list[Any]:
    """The generative functions, tables and helper functions that a value leads to."""
    if isinstance(value, GenFn):
        value = value.version.function
    if isinstance(value, FunctionType):
        near = [found for code in _codes(value.__code__) for found in _read_by(code, _Names(value))]
        return [v for v in near if not isinstance(v, FunctionType) or v.__module__ == value.__module__]
    if isinstance(value, GenerativeFunction):
        inside = list(getattr(value, "__dict__", {}).values())
    elif isinstance(value, dict):
        inside = list(value.values())
    else:
        inside = list(value) if isinstance(value, (list, tuple)) else []
    return [v for v in inside if isinstance(v, (GenerativeFunction, FunctionType, dict, list, tuple))]


def _read_by(code: CodeType, names: _Names) -> Iterator[Any]:
    """The values of the names, and of the attributes of modules, that some code reads."""
    current: Any = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            current = names.module.get(instruction.argval)
        elif instruction.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
            current = names.get(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            current = _attribute(current, instruction.argval)
        elif instruction.opname != "EXTENDED_ARG":
            current = None
        if isinstance(current, (GenerativeFunction, FunctionType, dict, list, tuple)):
            yield current
