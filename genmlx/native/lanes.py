"""Several lanes: the same code for several first inputs at once, a vector where one would have a number.

What depends on the first input differs between lanes, the rest is the same for all and stays a number. The elements of
what differs are next to each other in memory, those of one index from all lanes first.
"""

from __future__ import annotations

from collections.abc import Set

from genmlx.native.graph import Graph, Node, Untranslatable

_NO_LANES = ("ArgPartition", "ArgReduce", "ArgSort", "Partition", "RandomBits", "Sort")


def differing(graph: Graph) -> Set[int]:
    """The numbers of the nodes that differ between lanes; outputs count as if they did."""
    found = {node.number for node in graph.outputs if node.op not in ("Input", "Constant")}
    first = graph.inputs[:1]
    for node in graph.nodes:
        if node in first or any(source.number in found for source in node.inputs):
            found.add(node.number)
    return found


def require_alike(node: Node, differing: Set[int]) -> None:
    """Raises Untranslatable for what has to go another way in each lane."""
    own_way = node.op in _NO_LANES or (node.op == "Inverse" and not node.settings[0])
    if own_way and any(source.number in differing for source in node.inputs):
        raise Untranslatable(f"primitive {node.op} of what differs between lanes")
