"""What is kept in memory, and which loops are run: decided before any code is written.

Views and elementwise operations have no memory of their own: they are computed where they are read. One gets a buffer
where it would be computed several times at a price, or its user needs one. Buffers of one shape are filled in one
nest of loops, where what is read at the same index of an earlier one is still in a register.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set

from genmlx.native import elementwise, views
from genmlx.native.graph import Graph, Node, Untranslatable
from genmlx.native.lanes import require_alike
from genmlx.native.views import stripped

_CHEAP = 4  # additions that are done twice rather than kept
_MOST = 10**6

STORED = ("Input", "Constant")
"""What is in memory from the beginning."""

SPECIAL: set[str] = {
    "AddMM", "ArgPartition", "ArgReduce", "ArgSort", "Cholesky", "Concatenate", "DynamicSliceUpdate", "Inverse",
    "LogSumExp", "Matmul", "Pad", "Partition", "RandomBits", "Scan", "Scatter", "ScatterAxis", "SliceUpdate",
    "Softmax", "Sort",
}  # fmt: skip
"""What has loops of its own."""

_CHANGE = ("DynamicSliceUpdate", "Scatter", "ScatterAxis", "SliceUpdate")

_READ_OFTEN: dict[str, tuple[int, ...]] = {
    "AddMM": (0, 1),
    "Cholesky": (0,),
    "Inverse": (0,),
    "LogSumExp": (0,),
    "Matmul": (0, 1),
    "Softmax": (0,),
}
"""Which inputs of a special operation are read more than once."""


class Nest:
    """Loops over ``shape``, which has no axes of length 1, that fill ``nodes``; reductions are over ``axes`` of it.

    A special node is alone, and has no shape. Nodes that differ between lanes, and others, have nests of their own.
    """

    def __init__(self, node: Node, shape: tuple[int, ...] | None, axes: frozenset[int] | None, differs: bool):
        self.nodes, self.shape, self.axes, self.differs = [node], shape, axes, differs


class Plan:
    """``buffered`` are the numbers of the nodes in memory; ``nests`` fill them in order.

    ``differing`` are the numbers of the nodes that differ between lanes.
    """

    def __init__(self, graph: Graph, differing: Set[int] = frozenset()):
        self.graph, self.differing = graph, differing
        for node in graph.nodes:
            _require_known(node)
            require_alike(node, differing)
        self.buffered = {n.number for n in graph.nodes if n.op in STORED or n.op in SPECIAL or n.op == "Reduce"}
        self.buffered |= {node.number for node in graph.outputs}
        self.buffered |= {n for node in graph.nodes for n in _needed(node)}
        always = self.buffered
        for _ in range(2):  # the price of one depends on what else is kept
            self.buffered = always | self._worth_keeping(always, self._prices())
        self.nests = self._nests()
        self.kept = self._kept()
        self.reused = self._reused()

    def inlined(self, node: Node) -> bool:
        return node.number not in self.buffered

    def _prices(self) -> dict[int, int]:
        """What an element of each node costs to read."""
        prices: dict[int, int] = {}
        for node in self.graph.nodes:
            own = elementwise.cost(node) if node.op in elementwise.RULES else 0
            inner = sum(prices[i.number] for i in node.inputs if self.inlined(i) and i.size != 1)
            prices[node.number] = min(own + inner, _MOST)
        return prices

    def _worth_keeping(self, always: set[int], prices: dict[int, int]) -> set[int]:
        chosen: set[int] = set()
        repeated: set[int] = set()
        users: dict[int, set[int]] = {node.number: set() for node in self.graph.nodes}
        for node in reversed(self.graph.nodes):
            number, price = node.number, prices[node.number]
            if node.op in elementwise.RULES and node.size > 1 and number not in always:
                once = number not in self.differing and users[number] & self.differing  # for all lanes
                if (number in repeated and price) or ((once or len(users[number]) > 1) and price > _CHEAP):
                    chosen.add(number)
            inlined = number not in always and number not in chosen
            again = views.repeats(node) or (inlined and number in repeated)
            often = _READ_OFTEN.get(node.op, ())
            for position, source in enumerate(node.inputs):
                if again or position in often:
                    repeated.add(source.number)
                users[source.number] |= users[number] if inlined else {number}
        return chosen

    def _nests(self) -> list[Nest]:
        nests: list[Nest] = []
        place: dict[int, int] = {}
        for node in self.graph.nodes:
            if self.inlined(node) or node.op in STORED:
                continue
            shape, axes = _loops(node)
            differs = node.number in self.differing
            first = 0
            joins: set[int] = set()
            for source, same in self._reads(node):
                if source.number in place:
                    if same and nests[place[source.number]].shape == shape and source.op != "Reduce":
                        joins.add(place[source.number])
                    else:
                        first = max(first, place[source.number] + 1)
            first = max([first, *joins])
            at = next((i for i in range(first, len(nests)) if _fits(nests[i], shape, axes, differs)), None)
            if at is None:
                at = len(nests)
                nests.append(Nest(node, shape, axes, differs))
            else:
                nests[at].nodes.append(node)
                nests[at].axes = nests[at].axes or axes
            place[node.number] = at
        return nests

    def _reads(self, root: Node) -> Iterator[tuple[Node, bool]]:
        """The nodes in memory that computing ``root`` reads, and whether only at the index that is computed."""
        same = root.op in elementwise.RULES or root.op == "Reduce" or views.keeps_index(root)
        found: dict[Node, bool] = {}
        waiting = [(source, same) for source in root.inputs]
        seen: set[tuple[int, bool]] = set()
        while waiting:
            node, same = waiting.pop()
            same = same and node.size != 1
            if (node.number, same) in seen:
                continue
            seen.add((node.number, same))
            if not self.inlined(node):
                found[node] = found.get(node, True) and same
                continue
            keeps = node.op in elementwise.RULES or views.keeps_index(node)
            waiting.extend((source, same and keeps and source.size == node.size) for source in node.inputs)
        yield from found.items()

    def _kept(self) -> set[int]:
        """The nodes whose buffers are read from memory: not only in the nest that computes them, at the same index."""
        kept = {node.number for node in self.graph.outputs}
        for nest in self.nests:
            own = {node.number for node in nest.nodes}
            for node in nest.nodes:
                kept |= {s.number for s, same in self._reads(node) if not (same and s.number in own)}
        return kept | {node.number for nest in self.nests for node in nest.nodes if node.op not in elementwise.RULES}

    def _reused(self) -> dict[int, int]:
        """Nodes that change elements of an array which nobody else reads, and that array: they have one buffer."""
        users = Counter(source.number for node in self.graph.nodes for source in node.inputs)
        users.update(node.number for node in self.graph.outputs)
        return {
            node.number: node.inputs[0].number
            for node in self.graph.nodes
            if node.op in _CHANGE and users[node.inputs[0].number] == 1 and node.inputs[0].number in self.kept
            if node.inputs[0].op not in STORED
            if (node.number in self.differing) == (node.inputs[0].number in self.differing)
        }


def _require_known(node: Node) -> None:
    known = node.op in STORED or node.op in SPECIAL or node.op in ("Reduce", "AsStrided")
    if not known and node.op not in elementwise.RULES and node.op not in views.RULES:
        raise Untranslatable(f"primitive {node.op}")


def _needed(node: Node) -> list[int]:
    """The sources that have to be in memory."""
    needs = node.op == "AsStrided" or (views.splits(node) and node.inputs[0].size > 1)
    return [node.inputs[0].number] if needs else []


def _loops(node: Node) -> tuple[tuple[int, ...] | None, frozenset[int] | None]:
    """The shape of the loops of a node, and the axes that are reduced; None where it may join any."""
    if node.op in SPECIAL:
        return None, None
    if node.op != "Reduce":
        return stripped(node.shape), None
    source = node.inputs[0].shape
    long = [axis for axis, n in enumerate(source) if n != 1]
    axes = {axis % len(source) for axis in node.settings[1]} if source else set()
    return stripped(source), frozenset(i for i, axis in enumerate(long) if axis in axes)


def _fits(nest: Nest, shape: tuple[int, ...] | None, axes: frozenset[int] | None, differs: bool) -> bool:
    alike = nest.shape == shape and nest.differs == differs
    return shape is not None and alike and (axes is None or nest.axes is None or nest.axes == axes)
