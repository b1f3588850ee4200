"""Functions as recorded MLX graphs: traced once, then run without Python and without a compiler."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import mlx.core as mx


def recorded(f: Callable[..., list], *arrays: mx.array) -> Callable[..., list]:
    """``f``, which takes arrays and gives a list of arrays, as the graph that it makes for these shapes.

    What ``f`` closes over is a constant of the graph. Raises ValueError for a primitive that MLX cannot export, and
    where ``f`` needs the host value of an input. A recorded function can be batched, differentiated and recorded.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "graph.mlxfn")
        mx.export_function(path, f, *arrays)
        return mx.import_function(path)
