"""Hot reload: which files a session looks at, and what becomes of the modules whose files have changed.

Looked at are the project's own modules that define models or import genmlx, those that import them, those that they
import, and what `%watch` adds; never a library's. A look compares times and sizes, then contents.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from hashlib import blake2b
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import ast

    from magics.session import Session
    from workbench.compat import Autoreload
    from workbench.imports import Imports
    from workbench.rerun import Changes

_OURS = {"genmlx", "magics", "workbench"}
_STANDARD = os.path.dirname(os.__file__) + os.sep
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_SHOWN = 3


class Text:
    """The content of a source file."""

    def __init__(self, content: bytes, path: str, package: str):
        self.content, self.path, self.package = content, path, package
        self.hash = _hash(content)

    @cached_property
    def tree(self) -> ast.Module:
        import ast

        return ast.parse(self.content, self.path)

    @cached_property
    def imports(self) -> Imports:
        from workbench.imports import Imports, imports_of

        try:
            return imports_of(self.tree, self.package)
        except SyntaxError:
            return Imports(frozenset(), frozenset())

    def function(self, qualname: str) -> ast.AST | None:
        """The definition of that name, of the last one where there are several."""
        import ast

        found: Any = self.tree
        for part in qualname.split("."):
            bodies = [n for n in ast.walk(found) if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == part]
            if not bodies:
                return None
            found = bodies[-1]
        return found

    def lines(self, node: ast.AST) -> tuple[int, list[str]]:
        """The number of the first line of a definition, its decorators included, and its lines."""
        some: Any = node
        first = min([some.lineno, *(d.lineno for d in some.decorator_list)])
        return first, self.content.decode(errors="replace").splitlines()[first - 1 : some.end_lineno]


class Source:
    """The file of a module: what of it runs, and what was last seen of it."""

    def __init__(self, module: ModuleType, begun: int):
        self.path = str(module.__file__)
        self.package = module.__package__ or module.__name__.rpartition(".")[0]
        self.spec = module.__spec__
        self.stamp = _stamp(self.path)
        self.runs = self.seen = self._read()
        self.failed: bytes | None = None
        if self.stamp is not None and self.stamp[0] > begun:  # saved while the cell that imports it ran
            self.runs = Text(b"", self.path, self.package)

    def _read(self) -> Text:
        try:
            with open(self.path, "rb") as file:
                return Text(file.read(), self.path, self.package)
        except OSError:
            return Text(b"", self.path, self.package)

    def look(self) -> None:
        stamp = _stamp(self.path)
        if stamp != self.stamp and stamp is not None:  # an editor may take a file away for a moment
            self.stamp, seen = stamp, self._read()
            if seen.hash != self.seen.hash:
                self.seen = seen

    @property
    def changed(self) -> bool:
        """Whether there is something to run that has not failed before."""
        return self.seen.hash not in (self.runs.hash, self.failed)

    @property
    def file(self) -> str:
        return os.path.basename(self.path)

    @property
    def shown(self) -> str:
        return _shown(self.path)


class Rerun(NamedTuple):
    """What is to be run, in order, and which of it is run because its file has changed or was asked for."""

    order: list[str]
    wanted: set[str]


class Reloader:
    """Looks at files before each cell of a session, and runs changed modules again.

    ``names`` is the user's namespace, ``say`` prints a line, ``other`` is IPython's reloader. ``pending`` has a message
    for each module whose file cannot be run.
    """

    def __init__(self, names: dict[str, Any], say: Callable[[str], None] = print, other: Autoreload | None = None):
        self.names, self.say, self.other = names, say, other
        self.sources: dict[str, Source] = {}
        self.others: dict[str, tuple[Any, bytes | None]] = {}  # watched files that are no modules
        self.asked: set[str] = set()
        self.left: set[str] = set()
        self.pending: dict[str, str] = {}
        self.cells = [cell for cell in names.get("In", []) if "import" in cell]
        self._modules = 0
        self._begun = time.time_ns()

    # what is looked at

    def begin(self, cell: str) -> None:
        """A cell is about to run."""
        self._begun = time.time_ns()
        if "import" in cell:
            self.cells.append(cell)

    def discover(self) -> None:
        """Take note of the modules that have been imported, or run by somebody else, since the last look."""
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            for name, module in list(sys.modules.items()):
                if name not in self.sources and is_project(name, module):
                    self.sources[name] = Source(module, self._begun)
        for name in list(self.sources):
            module = sys.modules.get(name)
            if module is None:
                del self.sources[name]
            elif module.__spec__ is not self.sources[name].spec:
                self.sources[name] = Source(module, self._begun)

    @property
    def graph(self) -> dict[str, set[str]]:
        """For each module of the project those that it imports, and those that its file would import by now."""
        graph = {}
        for name, source in self.sources.items():
            imported = source.runs.imports.modules | source.seen.imports.modules
            graph[name] = {m for m in imported if m in self.sources and m != name}
        return graph

    def watched(self) -> set[str]:
        from genmlx.gen import handles
        from workbench.imports import dependencies, importers

        graph = self.graph
        defining = {handle.__module__ for handle in handles()}
        about = {n for n, s in self.sources.items() if n in defining or "genmlx" in s.seen.imports.modules}
        about |= self.asked & set(self.sources)
        about |= dependencies(graph, about)
        return (about | importers(graph, about)) - self.left

    def watch_module(self, name: str, on: bool) -> None:
        (self.asked.add if on else self.asked.discard)(name)
        (self.left.discard if on else self.left.add)(name)

    def watch_file(self, path: str, on: bool) -> None:
        """A file that is no module: that it has changed is said, and nothing is run."""
        self.others.pop(path, None)
        if on:
            self.others[path] = _stamp(path), _content_hash(path)

    # before each cell

    def check(self) -> list[str]:
        """Run what has changed; the modules that were run."""
        self.look()
        return self.run(self.changed()) if any(s.changed for s in self.sources.values()) else []

    def changed(self) -> set[str]:
        """The watched modules whose files are not what runs, but for those that failed as they are."""
        return {name for name in self.watched() if self.sources[name].changed}

    def look(self) -> None:
        """See what the files hold now."""
        self.discover()
        for name, source in self.sources.items():
            source.look()
            if source.changed and self.other is not None and self.other.has_run(name, source.path):
                source.runs, source.failed = source.seen, None
        if any(source.changed for source in self.sources.values()):
            self.note_sites()
        self._look_at_others()
        self._settle()

    def note_sites(self) -> None:
        """Read the sites of models out of the text that runs, where the file holds another by now."""
        from genmlx.gen import handles
        from genmlx.schema import note, schema

        for model in handles():
            source, function = self.sources.get(model.__module__), model.version.function
            if source is None or schema(model) is not None:
                continue
            node = source.runs.function(model.__qualname__)
            if node is not None and source.runs.lines(node)[0] == function.__code__.co_firstlineno:
                note(function, node)

    def _look_at_others(self) -> None:
        for path, (stamp, known) in self.others.items():
            now = _stamp(path)
            if now != stamp:
                found = _content_hash(path)
                if found != known:
                    self.say(f"[reload] {_shown(path)} {'changed' if found else 'is gone'}")
                self.others[path] = now, found

    def _settle(self) -> None:
        """A file that is again what runs is no longer pending."""
        for name in list(self.pending):
            source = self.sources.get(name)
            if source is None or (source.failed is not None and source.seen.hash == source.runs.hash):
                del self.pending[name]
                if source is not None:
                    source.failed = None
                    self.say(f"[reload] {source.file}: again what runs{_of_versions(name)}")

    # running

    def plan(self, names: Iterable[str]) -> Rerun:
        from workbench.imports import importers, in_order

        graph, wanted = self.graph, set(names)
        return Rerun(in_order(graph, wanted | importers(graph, wanted)), wanted)

    def run(self, names: Iterable[str], verbose: bool = False) -> list[str]:
        """Run these modules again, and after each that changes something those that import it; those that were run."""
        plan, graph = self.plan(names), self.graph
        done: dict[str, Changes] = {}
        touched: set[int] = set()
        ran = []
        for name in plan.order:
            because = sorted(m for m in graph[name] if done.get(m))
            if name in plan.wanted or because:
                ran.append(name)
                self._run_one(name, done, touched, because if name not in plan.wanted else [], plan, verbose)
        return ran

    def _run_one(
        self, name: str, done: dict[str, Changes], touched: set[int], because: list[str], plan: Rerun, verbose: bool
    ) -> None:
        from workbench.rerun import run_again

        source, module = self.sources[name], sys.modules[name]
        old, new = source.runs, source.seen
        try:
            changes = run_again(module, compile(new.content, source.path, "exec", dont_inherit=True), done, touched)
        except (Exception, SystemExit) as error:
            source.failed = new.hash
            self.pending[name] = message = _describe(error, source.path)
            self.say(f"[reload] {message} - keeping {_versions(name) or 'what ran'} (stale)")
            return
        finally:
            source.spec = module.__spec__
            if self.other is not None:
                self.other.note(name, source.path)
        source.runs, source.failed = new, None
        self.pending.pop(name, None)
        done[name] = changes
        self._rebind(module, changes)
        self.say(self._report(name, changes, old, because, plan))
        if verbose:
            self._say_sites(changes, old, new)

    # the user's names

    def _rebind(self, module: ModuleType, changes: Changes) -> None:
        """Give names of the user that are bound to an object of the module the object that has taken its place."""
        from genmlx.gen import GenFn

        imported = None
        by_import = self.sources[module.__name__].runs.imports.names
        for attribute, old in changes.before.items():
            new = vars(module).get(attribute, old)
            foreign = attribute in by_import or isinstance(old, (ModuleType, GenFn)) or attribute.startswith("__")
            if new is old or foreign:
                continue
            for name in [name for name, value in self.names.items() if value is old]:
                if imported is None:
                    imported = self._imported(module.__name__)
                if (
                    attribute == imported.get(name)
                    or (imported.get("*") and name == attribute)
                    or _is_unique(old, module.__name__)
                ):
                    self.names[name] = new

    def _imported(self, module: str) -> dict[str, str]:
        """The names that cells have imported from a module, with what they are called there."""
        import ast

        found = {}
        for cell in self.cells:
            try:
                nodes = list(ast.walk(ast.parse(cell)))
            except SyntaxError:  # a cell with magics in it: its lines one by one
                nodes = [node for line in cell.splitlines() for node in _nodes(line.strip())]
            for node in nodes:
                if isinstance(node, ast.ImportFrom) and node.module == module:
                    found |= {alias.asname or alias.name: alias.name for alias in node.names}
        return found

    # what is said

    def _report(self, name: str, changes: Changes, old: Text, because: list[str], plan: Rerun) -> str:
        new, file = self.sources[name].runs, self.sources[name].file
        parts = []
        for change in changes.models:
            model = change.model.__name__
            if change.before is None:
                parts.append(f"{model} {change.after!r} is new")
            elif change.before is not change.after:
                line = _first_difference(old, new, change.model.__qualname__)
                why = f"line {line}" if line else ", ".join(change.reasons[:_SHOWN])
                parts.append(f"{model} {change.before!r} -> {change.after!r}" + (f" ({why})" if why else ""))
        parts += [f"{function}() changed" for function in changes.functions]
        parts += [f"{value} changed" for value in changes.values]
        models = {change.model.__name__ for change in changes.models}
        parts += [f"{value} is new" for value in changes.added if value not in models]
        orphans = {model.__name__ for model in changes.orphans}
        parts += [f"{model} is gone (orphan)" for model in sorted(orphans)]
        parts += [f"{value} is gone" for value in changes.gone if value not in orphans]
        imports = [self.sources[m].file for m in because]
        after = f", which imports {', '.join(imports)}" if imports else ""
        untouched = sorted(self.sources[m].file for m in self.graph[name] if m not in plan.order)[:_SHOWN]
        if not parts:
            parts = [f"unchanged{_of_versions(name)}"]
        rest = f"; {', '.join(untouched)} untouched" if untouched and not imports else ""
        return f"[reload] {file}{after}: {', '.join(parts)}{rest}"

    def _say_sites(self, changes: Changes, old: Text, new: Text) -> None:
        from genmlx.schema import changes as site_changes
        from genmlx.schema import read

        for model, before, after, _ in changes.models:
            schemas = []
            for version, text in ((before, old), (after, new)):
                node = text.function(model.__qualname__)
                schemas.append(None if version is None or node is None else read(version.function, node))
            for line in site_changes(*schemas):
                self.say(f"  {model.__name__}: {line}")


def is_project(name: str, module: Any) -> bool:
    """Whether a module is the user's own source: neither a library's, nor this one's, nor the script that runs."""
    path = getattr(module, "__file__", None)
    return (
        isinstance(path, str)
        and path.endswith(".py")
        and isinstance(module, ModuleType)
        and getattr(module, "__spec__", None) is not None
        and name == module.__name__
        and name.partition(".")[0] not in _OURS
        and name not in ("__main__", "__mp_main__")
        and not path.startswith(_STANDARD)
        and not any(part in path for part in _PACKAGES)
    )


def _versions(name: str) -> str:
    """The versions of a module's models: ``v3`` of the only one, else each with its name."""
    from genmlx.gen import handles

    models = sorted((h for h in handles() if h.__module__ == name), key=lambda h: h.__qualname__)
    if len(models) == 1:
        return repr(models[0].version)
    shown = [f"{h.__name__} {h.version!r}" for h in models[:_SHOWN]]
    return ", ".join(shown + ([f"{len(models) - _SHOWN} more"] if len(models) > _SHOWN else []))


def _of_versions(name: str) -> str:
    versions = _versions(name)
    return f" ({versions})" if versions else ""


def _describe(error: BaseException, path: str) -> str:
    """``models.py:14 SyntaxError: '(' was never closed``: the place in the file that was run, where there is one."""
    line, text = None, str(error)
    if isinstance(error, SyntaxError) and error.filename == path:
        line, text = error.lineno, error.msg
    else:
        traceback = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == path:
                line = traceback.tb_lineno
            traceback = traceback.tb_next
    place = os.path.basename(path) + (f":{line}" if line else "")
    first = text.splitlines()[0] if text else ""
    return f"{place} {type(error).__name__}" + (f": {first}" if first else "")


def _first_difference(old: Text, new: Text, qualname: str) -> int | None:
    """The first line of a definition that is not as it was."""
    after = new.function(qualname)
    before = old.function(qualname) if old.content else None
    if after is None or before is None:
        return None
    first, now = new.lines(after)
    _, then = old.lines(before)
    for i, line in enumerate(now):
        if i >= len(then) or line != then[i]:
            return first + i
    return None


def _is_unique(value: Any, module: str) -> bool:
    """Whether a name bound to this very object must have it from this module."""
    if isinstance(value, (type, FunctionType)):
        return value.__module__ == module
    import mlx.core as mx

    return isinstance(value, (float, list, dict, set, mx.array))


def _nodes(line: str) -> Iterable[Any]:
    import ast

    try:
        return list(ast.walk(ast.parse(line)))
    except SyntaxError:
        return []


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _hash(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _content_hash(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return _hash(file.read())
    except OSError:
        return None


def _shown(path: str) -> str:
    return os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path


def install(session: Session) -> None:
    """Look at files before each cell of the session, until it ends. A cell inside of another does not count."""
    from workbench.compat import Autoreload, first_before_cells

    ip, depth = session.ip, 0
    other = Autoreload(ip)
    reloader = session.reloader = Reloader(session.names, print, other)

    def before(info: Any) -> None:
        nonlocal depth
        depth += 1
        if depth > 1:
            return
        other.follow()
        cell = info.raw_cell or ""
        if session.settings.reload and not getattr(ip, "batch", False) and not cell.lstrip().startswith("%reload"):
            try:
                reloader.check()
            except Exception as error:
                session.settings.reload = False
                print(f"[reload] is off: {type(error).__name__}: {error} (%config GenMagics.reload = True)")
        reloader.begin(cell)

    def after(result: Any) -> None:
        nonlocal depth
        depth = max(0, depth - 1)
        if depth == 0:
            reloader.discover()

    first_before_cells(ip, before)
    ip.events.register("post_run_cell", after)

    def undo() -> None:
        ip.events.unregister("pre_run_cell", before)
        ip.events.unregister("post_run_cell", after)
        other.leave()

    session.at_end.append(undo)
