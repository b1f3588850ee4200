"""What the source of a module imports, and the order in which changed modules are to be run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple


class Imports(NamedTuple):
    """The ``modules`` that a source imports as it is run, by full name, and the ``names`` that it binds by that."""

    modules: frozenset[str]
    names: frozenset[str]


def imports_of(tree: ast.Module, package: str) -> Imports:
    """``package`` is what relative imports start from. What a function imports when it is called does not count.

    >>> found = imports_of(ast.parse("import a.b\\nfrom .priors import tau as t"), "study")
    >>> sorted(found.modules), sorted(found.names)
    (['a', 'a.b', 'study', 'study.priors', 'study.priors.tau'], ['a', 't'])
    """
    modules: set[str] = set()
    names: set[str] = set()
    for node in _run_at_import(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules.update(_with_parents(alias.name))
                names.add(alias.asname or alias.name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            modules.update(_with_parents(base))
            # The name may be that of a module.
            modules.update(f"{base}.{alias.name}" for alias in node.names)
            names.update(alias.asname or alias.name for alias in node.names)
    return Imports(frozenset(modules), frozenset(names))


def _run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _run_at_import(child)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


Graph = Mapping[str, Iterable[str]]
"""For each module the modules that it imports."""


def importers(graph: Graph, names: Iterable[str]) -> set[str]:
    """The modules that import one of these, directly or through others."""
    found: set[str] = set()
    new = set(names)
    while new:
        new = {name for name, imported in graph.items() if not new.isdisjoint(imported)} - found
        found |= new
    return found


def dependencies(graph: Graph, names: Iterable[str]) -> set[str]:
    """The modules that these import, directly or through others."""
    found: set[str] = set()
    new = set(names)
    while new:
        new = {imported for name in new for imported in graph.get(name, ()) if imported in graph} - found
        found |= new
    return found


def in_order(graph: Graph, names: Iterable[str]) -> list[str]:
    """These modules, each after those of them that it imports; a circle is entered at its first name.

    >>> in_order({"a": ["b"], "b": ["c"], "c": []}, ["a", "b", "c"])
    ['c', 'b', 'a']
    """
    wanted, order, seen = sorted(names), [], set()

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        for imported in sorted(graph.get(name, ())):
            if imported in graph:
                visit(imported)
        if name in wanted:
            order.append(name)

    for name in wanted:
        visit(name)
    return order
