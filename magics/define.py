"""``%%gen``, ``%gfi``, ``%sites`` and ``%models``: defining models, and checking and listing them."""

from __future__ import annotations

import ast
import os
import re
from typing import Any, NamedTuple

from IPython.core.magic import cell_magic, line_magic, magics_class

from magics.cell import CellCode, CellSyntaxError, run_shown, show_plainly
from magics.grammar import Line, Piece, did_you_mean
from magics.session import SessionMagics, magic
from magics.specs import GEN, GFI, MODELS, SITES

CHECK_TRACES, CHECK_SECONDS = 5, 0.2
_DEFINE = "__define__"


class Defined(NamedTuple):
    """A model that a cell has defined, and the version that it had before."""

    model: Any
    before: Any

    @property
    def new(self) -> bool:
        return self.before is None

    @property
    def unchanged(self) -> bool:
        return self.model.version is self.before


@magics_class
class DefineMagics(SessionMagics):
    def __init__(self, shell: Any):
        super().__init__(shell)
        show_plainly(self.session)

    @cell_magic
    @magic(GEN)
    def gen(self, line: Line, cell: str | None) -> Any:
        names = _names(line, cell or "")
        try:
            value, found = Definition(self.shell, line, cell or "").run()
        except Exception as error:
            self.session.failed |= dict.fromkeys(names, _brief(error))
            raise
        if not found:
            raise line.error("the cell defines no function")
        for name in names:
            self.session.failed.pop(name, None)
        reports = [self._report(one) for one in found]
        try:
            if "check" in line:
                reports[-1] += f"   {self._check(line, found[-1].model)!r}"
        finally:
            if "quiet" not in line and not line.silent:
                print("\n".join(reports))
        for one in found if "show" in line else []:
            print(self._sites(one.model) if line.word("show") == "sites" else source(one.model))
        return value

    @line_magic
    @magic(GFI)
    def gfi(self, line: Line, cell: str | None) -> Any:
        from genmlx.laws import LAWS, check_laws
        from magics.given import observations

        chosen = None
        if (piece := line.options.get("laws")) is not None:
            chosen = re.findall(r"[^\s,]+", piece.text)
            for name in chosen:
                if name not in LAWS:
                    near = did_you_mean(name, LAWS) or f"; there are {', '.join(LAWS)}"
                    raise line.error(f"no law {name!r}{near}", piece)
        call, n, seed = self._call(line), line.value("n", self.names, 20), line.value("seed", self.names)
        results = check_laws(call, n, seed, chosen, observations(line, call, self.names))
        if not results.ok:
            print(results)
        results.require()
        return results

    @line_magic
    @magic(SITES)
    def sites(self, line: Line, cell: str | None) -> Any:
        from genmlx.gen import GenFn
        from magics.given import observations
        from magics.sites import table

        target = self._target(line)
        if isinstance(target, GenFn):
            if line.given:
                raise line.error("| given needs a run: give the model its arguments", line.words[0])
            print(self._sites(target))
            return None
        call = self._call(line)
        given = observations(line, call, self.names)
        trace = call.generate(given).trace
        print(table(trace, given))
        return None

    @line_magic
    @magic(MODELS)
    def models(self, line: Line, cell: str | None) -> Any:
        from genmlx.schema import schema
        from workbench.render.columns import columns

        rows, failures, reloader = [], self.session.failed, self.session.reloader
        reloader.note_sites()
        for name, model in self._models().items():
            stale = self._stale(model)
            notes = [f"stale: {stale}"] if stale else []
            if model.orphan:
                notes.append(f"orphan: {model.orphan} no longer defines it")
            if failed := failures.get(name) or reloader.pending.get(model.__module__):
                notes.append(f"pending: {failed}")
            head = f"{name}{model.signature}"
            rows.append((head, repr(model.version), self._where(model), str(schema(model) or ""), "   ".join(notes)))
        rows += [(n, "", "", "", f"pending: {failed}") for n, failed in failures.items() if n not in self.names]
        print(columns(rows) if rows else "no models; %%gen or @gen defines one")
        return None

    # what a line names

    def _target(self, line: Line) -> Any:
        piece = line.rest(0)
        if piece is None:
            raise line.error(f"%{line.spec.name} needs a model with its arguments: %{line.spec.name} line(xs)")
        return line.evaluate(piece, self.names)

    def _call(self, line: Line) -> Any:
        from genmlx.gfi import Call, GenerativeFunction

        target, piece = self._target(line), line.rest(0)
        if isinstance(target, Call):
            return target
        text = "" if piece is None else piece.text
        if isinstance(target, GenerativeFunction):
            raise line.error(f"{text} is a model: give it its arguments, {text}(...)", piece)
        raise line.error(f"{text} is {type(target).__name__}, not a model with its arguments", piece)

    def _check(self, line: Line, model: Any) -> Any:
        """The laws of what ``--check`` names: arguments for the model, or a call."""
        from genmlx.gfi import Call
        from genmlx.laws import check_laws

        piece = line.options["check"]
        given = () if piece is None else line.evaluate(piece, self.names)
        call = given if isinstance(given, Call) else model(*given if isinstance(given, tuple) else (given,))
        results = check_laws(call, CHECK_TRACES, seconds=CHECK_SECONDS)
        results.require()
        return results

    # what is said of a model

    def _report(self, one: Defined) -> str:
        from genmlx.schema import changes, schema, schema_of

        model, name, now = one.model, one.model.__name__, one.model.version
        if one.unchanged:
            return f"{name} {now!r} (unchanged)"
        if one.new:
            found = schema(model)
            if found is not None and not (found.sites or found.spliced):
                return f"{name} {now!r}   no choices; a model all the same: plain functions go outside of %%gen"
            return f"{name} {now!r}{f'   {found}' if found else ''}"
        changed = changes(schema_of(one.before.function), schema(model))
        if str(one.before.signature) != str(model.signature):
            changed.insert(0, f"{one.before.signature} -> {model.signature}")
        more = f", {len(changed) - 3} more" if len(changed) > 3 else ""
        parts = [f"{name} {one.before!r} -> {now!r}", ", ".join(changed[:3]) + more or "sites unchanged"]
        if callers := self._callers(model):
            parts.append(f"callers: {', '.join(callers)}")
        if stale := self._stale(model):
            parts.append(f"stale: {stale}")
        return "   ".join(parts)

    def _sites(self, model: Any) -> str:
        from genmlx.schema import schema

        found = schema(model)
        if found is None:
            return f"{model.__name__} {model.version!r}: its source is not there to read"
        return "\n".join([f"{model.__name__} {model.version!r}   {found}", *[f"  {row}" for row in found.table()]])

    def _callers(self, model: Any) -> list[str]:
        from genmlx.schema import callers

        return sorted({caller.__name__ for caller in callers(model, self._models().values())})

    def _models(self) -> dict[str, Any]:
        """The models of the namespace by name, and those of modules."""
        from genmlx.gen import GenFn, handles

        found: dict[str, Any] = {}
        for name, value in self.names.items():
            if isinstance(value, GenFn) and not name.startswith("_") and value not in found.values():
                found[name] = value
        for model in handles():
            if model.__module__ != "__main__" and model not in found.values():
                found[f"{model.__module__}.{model.__qualname__}"] = model
        return found

    def _stale(self, model: Any) -> str:
        """The names of traces and posteriors that ran another version of a model: ``_tr, post (v1)``."""
        found: dict[int, tuple[str, Any]] = {}
        for name, value in sorted(self.names.items(), key=lambda item: item[0].startswith("_")):
            version = runs_of(value).get(model)
            if version is not None and version is not model.version and not re.fullmatch(r"_+|_i*\d*", name):
                found.setdefault(id(value), (name, version))
        versions: dict[Any, list[str]] = {}
        for name, version in found.values():
            versions.setdefault(version, []).append(name)
        return ", ".join(f"{', '.join(sorted(names))} ({version!r})" for version, names in versions.items())

    def _where(self, model: Any) -> str:
        import inspect

        code, shell = inspect.unwrap(model.__wrapped__).__code__, self.session.ip
        if (cell := shell.compile.format_code_name(code.co_filename)) is not None:
            return f"{' '.join(cell)}, line {code.co_firstlineno}"
        path = os.path.relpath(code.co_filename) if os.path.isabs(code.co_filename) else code.co_filename
        return f"{min(path, code.co_filename, key=len)}:{code.co_firstlineno}"


def runs_of(value: Any) -> dict[Any, Any]:
    """The models that made a trace, a batch of them, or a posterior, each with the version that ran."""
    from genmlx.trace import Trace
    from genmlx.vectorized import VectorizedTrace

    if isinstance(value, VectorizedTrace):
        value = value.lanes
    if isinstance(value, Trace):
        return value.runs()
    if not type(value).__module__.startswith("genmlx.inference"):
        return {}
    inner = getattr(value, "traces", None) or getattr(value, "trace", None)
    return runs_of(inner) if isinstance(inner, (Trace, VectorizedTrace)) else getattr(value, "pins", {})


def source(model: Any) -> str:
    """The source of a model as it was typed."""
    import inspect

    try:
        return inspect.getsource(inspect.unwrap(model.__wrapped__)).rstrip()
    except OSError:
        return f"{model.__name__}: its source is not there to read"


def _brief(error: BaseException) -> str:
    if isinstance(error, CellSyntaxError):
        return f"SyntaxError in line {error.lineno}: {error.msg}"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _names(line: Line, cell: str) -> list[str]:
    """The functions that a cell would define, whether or not it is Python."""
    if (header := line.rest(0)) is not None:
        return re.findall(r"^\w+", header.text)
    return re.findall(r"^(?:async +)?def +(\w+)", cell, re.MULTILINE)


class Definition:
    """A ``%%gen`` cell as code that defines models, all of them or none."""

    def __init__(self, ip: Any, line: Line, cell: str):
        self.ip, self.line = ip, line
        header = line.rest(0)
        self.code = CellCode(ip, f"# %%gen {line.text}".rstrip(), cell)
        self.tree = self.code.parse()
        if header is not None:
            self._make_body_of(self._header(header))
        self.nodes = [node for node in self.tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        self._check_sugar()

    def run(self) -> tuple[Any, list[Defined]]:
        """Run the cell; the value of its last expression, and the models. An error leaves everything as it was."""
        from genmlx.gen import GenFn, handles

        self.made: list[GenFn] = []
        names, versions = self.ip.user_ns, {model: model.version for model in handles()}
        first, last = self._compiled()
        before = dict(names)
        names[_DEFINE] = self._decorator
        try:
            value = run_shown(self.ip, lambda: self._run(first, last))
        except BaseException:
            for model, version in versions.items():
                if model.version is not version:
                    model.restore(version)
            names.update({n: v for n, v in before.items() if names.get(n, self) is not v})
            for name in names.keys() - before.keys():
                del names[name]
            raise
        names.pop(_DEFINE, None)
        return value, [Defined(model, versions.get(model)) for model in dict.fromkeys(self.made)]

    def _run(self, first: Any, last: Any) -> Any:
        exec(first, self.ip.user_global_ns, self.ip.user_ns)
        return None if last is None else eval(last, self.ip.user_global_ns, self.ip.user_ns)

    def _compiled(self) -> tuple[Any, Any]:
        """The code of the cell, and that of its last expression."""
        for i, node in enumerate(self.nodes):
            at = node.decorator_list[0] if node.decorator_list else node
            call = ast.Call(ast.Name(_DEFINE, ast.Load()), [ast.Constant(i)], [])
            for part in ast.walk(call):
                ast.copy_location(part, at)
            node.decorator_list.insert(0, call)
        body, last = self.tree.body, None
        if body and isinstance(final := body[-1], ast.Expr):
            body.pop()
            last = self.code.compile(ast.Expression(final.value), "eval")
        return self.code.compile(self.tree), last

    def _decorator(self, i: int) -> Any:
        from genmlx import schema
        from genmlx.gen import GenFn, gen
        from genmlx.gfi import GenerativeFunction

        node = self.nodes[i]

        def define(function: Any) -> Any:
            made = function
            if not isinstance(function, GenerativeFunction):
                if getattr(getattr(function, "__code__", None), "co_name", "") == node.name:
                    schema.note(function, node)
                made = (gen.new if "new" in self.line else gen)(function)
            if isinstance(made, GenFn):
                self.made.append(made)
            return made

        return define

    def _check_sugar(self) -> None:
        import genmlx
        from magics.sugar import infix_tildes

        theirs = self.ip.user_ns.get("trace")
        if theirs is not genmlx.trace and infix_tildes(self.code.body):
            raise self.line.error(f"~ needs the trace of genmlx; here trace is {type(theirs).__name__}")

    # NAME(PARAMS)

    def _header(self, header: Piece) -> ast.FunctionDef:
        text = header.text.rstrip(":").rstrip()
        try:
            parsed = ast.parse(f"def {text if '(' in text else text + '()'}: pass").body
            if len(parsed) != 1 or not isinstance(parsed[0], ast.FunctionDef) or len(parsed[0].body) != 1:
                raise SyntaxError("one name and its parameters are expected")
        except SyntaxError as error:
            raise self.line.error(f"not NAME(PARAMS): {error.msg}", header) from None
        return parsed[0]

    def _make_body_of(self, function: ast.FunctionDef) -> None:
        if not self.tree.body:
            raise self.line.error(f"the cell, which is the body of {function.name}, is empty")
        inside = {n for node in ast.walk(self.tree) for n in _string_lines(node)}
        lines = self.code.body.splitlines(keepends=True)
        first = self.code.line + 1
        shown = [text if n in inside or not text.strip() else f"    {text}" for n, text in enumerate(lines, first)]
        nodes: Any = ast.walk(self.tree) if not self.code.place.source else ()
        for node in nodes:
            if hasattr(node, "col_offset"):
                node.col_offset += 4
                node.end_col_offset += 4
        head = ast.unparse(function).splitlines()[0]
        self.code.show("".join([f"{head}  # %%gen\n", *shown]))
        ast.increment_lineno(function, self.code.line - 1)
        function.body = self.tree.body
        self.tree.body = [function]


def _string_lines(node: ast.AST) -> range:
    """The lines that begin inside of a string."""
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))):
        return range(node.lineno + 1, (node.end_lineno or 0) + 1)
    return range(0)
