"""Functions as recorded MLX graphs: traced once, then run without Python and without a compiler."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import mlx.core as mx


def recorded(f: Callable[..., list], *arrays: mx.array) -> Callable[..., list]:
    """``f``, which takes arrays and gives a list of arrays, as the graph that it makes for these shapes.

    What ``f`` closes over is a constant of the graph. Raises ValueError for a primitive that MLX cannot export, and
    where ``f`` needs the host value of an input. Not to be called under ``mx.vmap``, where MLX 0.32.4 gives wrong
    values without a word (no upstream issue found): record the batched function instead.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "graph.mlxfn")
        mx.export_function(path, f, *arrays)
        graph: Any = mx.import_function(path)
        return graph


def depends(f: Callable[..., list], arrays: list[mx.array], sources: int) -> bool:
    """Whether a result of ``f`` depends on one of its first ``sources`` arguments, read off its graph.

    Raises ValueError where ``recorded`` does.
    """
    reached: set[str] = set()
    results: list[str] = []

    def read(entry: dict) -> None:
        if entry["type"] == "inputs":
            reached.update(name for name, *_ in entry["inputs"][:sources])
        elif entry["type"] == "outputs":
            results.extend(name for name, *_ in entry["outputs"])
        elif entry["type"] == "primitive" and any(name in reached for name, *_ in entry["inputs"]):
            reached.update(name for name, *_ in entry["outputs"])

    mx.export_function(read, f, *arrays)
    return not reached.isdisjoint(results)
