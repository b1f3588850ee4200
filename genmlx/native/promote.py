"""A float32 graph in float64: the same formulas on the same numbers, without the rounding of what follows from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genmlx.native.fold import uniform
from genmlx.native.graph import Graph, Node, Untranslatable, pruned

_OF_BITS = ("RandomBits", "View")


def promoted(graph: Graph) -> Graph:
    """The graph with float64 for float32 everywhere, inputs and outputs included; casts between the two vanish.

    Constants keep their values. Raises Untranslatable where numbers are made of bits, which float64 has others of.
    """
    made = {node: _double(node, ()) for node in graph.inputs}
    for node in graph.nodes:
        if node not in made:
            made[node] = _double(node, [made[source] for source in node.inputs])
    return pruned([made[node] for node in graph.inputs], [made[node] for node in graph.outputs])


def _double(node: Node, inputs: Sequence[Node]) -> Node:
    if node.op in _OF_BITS:
        raise Untranslatable(f"primitive {node.op} in float64")
    if node.op == "AsType" and inputs[0].dtype == np.float64 and node.dtype.kind == "f":
        return inputs[0]
    dtype = np.dtype(np.float64) if node.dtype == np.float32 else node.dtype
    value = node.value
    if node.op == "Constant" and dtype != node.dtype:
        one = uniform(value) and value.size > 0
        value = np.broadcast_to(np.asarray(value.flat[0], dtype), node.shape) if one else value.astype(dtype)
    return Node(node.op, node.settings, inputs, node.shape, dtype, value)
