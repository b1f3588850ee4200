"""The emitter of machine code, with what is other on a GPU: functions, sums, products, and where arrays are."""

from __future__ import annotations

from genmlx.native.emit import Emitter
from genmlx.native.gpu import products, rules
from genmlx.native.gpu.sums import CompensatedReduction
from genmlx.native.graph import Graph, Node, Untranslatable
from genmlx.native.special import assembled, normalised, scattered


class DeviceEmitter(Emitter):
    """``slots`` are the 32-bit numbers of scratch memory, whose layout is ``[slot, chain]``."""

    rules, reduction = rules.RULES, CompensatedReduction
    special = {**assembled.RULES, **normalised.RULES, **products.RULES, **scattered.RULES}
    sums_in_memory = False

    def __init__(self, graph: Graph, private: int):
        self.on_stack, self.stack = private // 8, private
        for node in graph.nodes:
            if node.op in super().special and node.op not in self.special:
                raise Untranslatable(f"primitive {node.op} on a GPU")
        super().__init__(graph)
        self.slots = 0

    def kept_at(self, node: Node) -> int:
        start = self.slots
        self.slots += node.size
        return start
