"""From a plan to LLVM IR: buffers, and the loops that fill them.

The module has one function for callers, ``void f(void** inputs, void** outputs, void** constants, void* scratch)``. It
looks the pointers up and calls another, whose arguments are the buffers: there LLVM is told that none is written
through another, without which it would not vectorise.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from genmlx.native import elementwise, views
from genmlx.native.fold import uniform
from genmlx.native.graph import Graph, Node, Untranslatable
from genmlx.native.lanes import differing
from genmlx.native.plan import STORED, Nest, Plan
from genmlx.native.reductions import Reduction
from genmlx.native.special import SPECIAL
from genmlx.native.spreading import in_lanes
from genmlx.native.views import Indices, unstripped, within
from genmlx.native.writing import I1, I8, I64, POINTER, Code, Index, Value, in_memory, in_register, row_major

NAME = "f"
_ALIGNED = 64


class Buffer(NamedTuple):
    """Where the elements of a node are; ``strides`` count elements, each of which is a number for each lane."""

    pointer: Value
    dtype: np.dtype
    strides: tuple[int, ...]
    lanes: int = 1

    @property
    def kind(self) -> Any:
        return in_lanes(in_memory(self.dtype), self.lanes)


class Place(NamedTuple):
    """Where a pointer comes from: an entry of a table of the caller (0, 1, 2), or a part of its scratch memory (3)."""

    table: int
    position: int


Named = tuple[Node, Place]


class Emitted(NamedTuple):
    """``constants`` are the arrays that the caller's table of constants has to hold, in order."""

    module: ir.Module
    constants: list[np.ndarray]
    scratch_bytes: int


def emitted(graph: Graph, lanes: int = 1) -> Emitted:
    """The module of a graph; for several lanes its first input and its outputs have one more axis, the last.

    Raises Untranslatable where a primitive is not known, or has settings of another form than it had in MLX 0.32.
    """
    try:
        return Emitter(graph, lanes).emit()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Untranslatable(f"a primitive of an unknown form ({type(error).__name__}: {error})") from error


class Emitter:
    """Writes the code of one graph. ``element`` gives the value of any node at an index, in the block of ``code``."""

    rules, special, reduction = elementwise.RULES, SPECIAL, Reduction
    on_stack = 512  # elements of a buffer that is on the stack
    stack = 1 << 14  # bytes of them all
    sums_in_memory = True
    """Whether sums over an outer axis go on in memory, so that the innermost loop runs along it."""

    def __init__(self, graph: Graph, lanes: int = 1):
        self.graph, self.lanes = graph, lanes
        self.plan = Plan(graph, differing(graph) if lanes > 1 else frozenset())
        self.module = ir.Module()
        self.buffers: dict[int, Buffer] = {}
        self.constants: list[np.ndarray] = []
        self.scratch_bytes = 0

    def emit(self) -> Emitted:
        self._outer(*self.body())
        return Emitted(self.module, self.constants, self.scratch_bytes)

    def body(self) -> tuple[ir.Function, list[Place]]:
        """The inner function, and where each of its arguments but the last, the scratch memory, comes from."""
        inner, fetched = self._signature()
        for nest in self.plan.nests:
            if nest.shape is None:
                self._hoist(nest.nodes[0].inputs)
                self.special[nest.nodes[0].op](self, nest.nodes[0])
            else:
                self._hoist(nest.nodes)
                self._nest(nest)
        for node, pointer in self._copies:
            target = Buffer(pointer, node.dtype, row_major(node.shape), self.lanes)
            self.loops(node.shape, lambda index, n=node, t=target: self._copy(n, t, index))
        self.code.finish()
        return inner, fetched

    # buffers

    def _signature(self) -> tuple[ir.Function, list[Place]]:
        named, spare, local = self._arguments()
        kind = ir.FunctionType(ir.VoidType(), [POINTER] * (len(named) + len(spare) + 1))
        inner = ir.Function(self.module, kind, "inner")
        inner.linkage = "internal"
        inner.attributes.add("noinline")
        inner.attributes.add("nounwind")
        *pointers, self._scratch = inner.args
        for pointer in pointers:
            pointer.add_attribute("noalias")
        self.code = Code(inner)
        for (node, _), pointer in zip(named, pointers, strict=False):
            self.buffers[node.number] = Buffer(pointer, node.dtype, _strides(node), self.lanes_of(node))
        for node in local:
            count = self.lanes_of(node)
            pointer = self.code.alloca(in_lanes(in_memory(node.dtype), count), max(node.size, 1))
            self.buffers[node.number] = Buffer(pointer, node.dtype, row_major(node.shape), count)
        for node in reversed(self.graph.nodes):
            if node.number in self.plan.reused:
                self.buffers[self.plan.reused[node.number]] = self.buffers[node.number]
        self._copies = [(node, at) for (node, _), at in zip(spare, pointers[len(named) :], strict=True)]
        return inner, [place for _, place in named + spare]

    def _arguments(self) -> tuple[list[Named], list[Named], list[Node]]:
        """The nodes whose buffers are arguments; the outputs that are copies of others; the nodes on the stack."""
        nodes = self.graph.nodes
        inputs = [(n, Place(0, i)) for i, n in enumerate(self.graph.inputs) if n.number < len(nodes)]
        named = [(node, place) for node, place in inputs if nodes[node.number] is node]  # others are not used
        spare: list[Named] = []
        results: set[int] = set()
        for position, node in enumerate(self.graph.outputs):
            if node.op in STORED or node.number in results:
                spare.append((node, Place(1, position)))
            else:
                results.add(node.number)
                named.append((node, Place(1, position)))
        for node in nodes:
            if node.op == "Constant" and not _immediate(node):
                named.append((node, Place(2, len(self.constants))))
                self.constants.append(node.value)
        local: list[Node] = []
        left = self.stack
        kept = self.plan.kept - set(self.plan.reused.values()) - results
        for node in nodes:
            if node.number in kept and node.op not in STORED:
                size = node.size * node.dtype.itemsize * self.lanes_of(node)
                if node.size <= self.on_stack and size <= left:
                    left -= size
                    local.append(node)
                else:
                    named.append((node, Place(3, self.kept_at(node))))
        return named, spare, local

    def lanes_of(self, node: Node) -> int:
        return self.lanes if node.number in self.plan.differing else 1

    def register(self, node: Node) -> Any:
        """The type of an element of a node in a register."""
        return in_lanes(in_register(node.dtype), self.lanes_of(node))

    def accumulator(self, node: Node, value: Value, parts: int = 1) -> Value:
        """Room for elements of a node in the making, which begin with a value."""
        count = self.lanes_of(node)
        place = self.code.alloca(self.register(node), parts)
        for i in range(parts):
            at = self.code.address(place, self.register(node), i)
            self.code.builder.store(self.code.builder.spread(value, count), at)
        return place

    def kept_at(self, node: Node) -> int:
        """Where in the scratch memory the elements of a node are."""
        return self.scratch(node.size * node.dtype.itemsize * self.lanes_of(node))

    def scratch(self, size: int) -> int:
        """The offset of so many bytes of the scratch memory."""
        offset = self.scratch_bytes
        self.scratch_bytes += -(-size // _ALIGNED) * _ALIGNED
        return offset

    def room(self, dtype: np.dtype, count: int) -> Value:
        """Memory for a special operation."""
        if count <= self.on_stack:
            return self.code.alloca(in_memory(dtype), max(count, 1))
        return self.code.address(self._scratch, I8, self.scratch(count * dtype.itemsize))

    def _outer(self, inner: ir.Function, fetched: list[Place]) -> None:
        outer = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER] * 4), NAME)
        builder = ir.IRBuilder(outer.append_basic_block())
        arguments = []
        for table, position in fetched:
            place = builder.gep(
                outer.args[table], [ir.Constant(I64, position)], source_etype=I8 if table == 3 else POINTER
            )
            arguments.append(place if table == 3 else builder.load(place, typ=POINTER))
        builder.call(inner, [*arguments, outer.args[3]])
        builder.ret_void()

    # elements

    def load(self, buffer: Buffer, position: Index) -> Value:
        value = self.code.builder.load(self.code.address(buffer.pointer, buffer.kind, position), typ=buffer.kind)
        value.align = buffer.dtype.itemsize
        return self.code.builder.trunc(value, I1) if buffer.dtype.kind == "b" else value

    def store(self, buffer: Buffer, position: Index, value: Value) -> None:
        value = self.code.builder.spread(value, buffer.lanes)
        if buffer.dtype.kind == "b":
            value = self.code.builder.zext(value, I8)
        place = self.code.address(buffer.pointer, buffer.kind, position)
        self.code.builder.store(value, place).align = buffer.dtype.itemsize

    def read(self, node: Node, index: Sequence[Index]) -> Value:
        """An element from the buffer of a node, as it is now."""
        buffer = self.buffers[node.number]
        return self.load(buffer, self.code.linear(within(node.shape, index), buffer.strides))

    def write(self, node: Node, index: Sequence[Index], value: Value) -> None:
        buffer = self.buffers[node.number]
        self.store(buffer, self.code.linear(within(node.shape, index), buffer.strides), value)

    def element(self, node: Node, index: Sequence[Index]) -> Value:
        """The value of a node at an index. What was computed in this block or around it is not computed again.

        Rules ask for what they need through generators: the chains of a graph are longer than Python's stack.
        """
        key = (node.number, within(node.shape, index))
        if (found := self.code.known(key)) is not None:
            return found
        waiting = [(key, self._rule(node, key[1]))]
        answer: Any = None
        while waiting:
            key, rule = waiting[-1]
            try:
                source, at = rule.send(answer)
            except StopIteration as end:
                waiting.pop()
                answer = self.code.remember(key, end.value)
                continue
            asked = (source.number, within(source.shape, at))
            answer = self.code.known(asked)
            if answer is None:
                waiting.append((asked, self._rule(source, asked[1])))
        return answer

    def _rule(self, node: Node, index: Indices) -> Generator[tuple[Node, Indices], Any, Value]:
        code = self.code
        if node.op == "Constant" and (value := views.constant_element(code, node, index)) is not None:
            return value
        if node.number in self.buffers:
            buffer = self.buffers[node.number]
            return self.load(buffer, code.linear(index, buffer.strides))
        if node.op in self.rules:
            values = []
            for source in node.inputs:
                values.append((yield source, index))
            return self.rules[node.op](code, node, *values)
        if node.op == "AsStrided":
            _, strides, offset = node.settings
            source = self.buffers[node.inputs[0].number]
            at = code.linear(index, strides, offset)
            if source.strides != row_major(node.inputs[0].shape):
                raise Untranslatable("AsStrided of an array with strides of its own")
            return self.load(source, at)
        if node.op not in views.RULES:
            raise Untranslatable(f"primitive {node.op}")
        source_index = yield from views.RULES[node.op](code, node, index)
        return (yield node.inputs[0], source_index)

    def step(self, node: Node, axis: int) -> int | None:
        """How far apart in memory neighbours along an axis are; None where it is not one number, or not memory."""
        axis %= len(node.shape)
        while True:
            if node.number in self.buffers:
                return self.buffers[node.number].strides[axis]
            source = node.inputs[0] if node.inputs else node
            if node.op == "Transpose":
                axis = node.settings[0][axis]
            elif views.keeps_index(node):
                place = sum(n != 1 for n in node.shape[:axis])
                long = [i for i, n in enumerate(source.shape) if n != 1]
                if node.shape[axis] == 1 or place >= len(long):
                    return None
                axis = long[place]
            elif node.op in ("Broadcast", "BroadcastAxes", "Full"):
                axis -= len(node.shape) - len(source.shape)
                if axis < 0 or source.shape[axis] == 1:
                    return 0
            else:
                return None
            node = source

    def place(self, node: Node, index: Sequence[Index]) -> Value:
        """The address of an element of a node that ``step`` says is in memory."""
        index = within(node.shape, index)
        while node.number not in self.buffers:
            try:
                next(views.RULES[node.op](self.code, node, index))
            except StopIteration as end:
                node, index = node.inputs[0], within(node.inputs[0].shape, end.value)
            else:
                raise Untranslatable(f"the address of an element of {node.op}")
        buffer = self.buffers[node.number]
        return self.code.address(buffer.pointer, buffer.kind, self.code.linear(index, buffer.strides))

    def _hoist(self, roots: Sequence[Node]) -> None:
        """Compute what is one number before the loops begin."""
        waiting, own, seen, found = list(roots), {node.number for node in roots}, set(), []
        while waiting:
            node = waiting.pop()
            if node.number in seen:
                continue
            seen.add(node.number)
            if node.size == 1 and node.number not in own:
                found.append(node)
            elif self.plan.inlined(node) or node.number in own:
                waiting.extend(node.inputs)
        for node in sorted(found, key=lambda node: node.number):
            if node.op not in STORED or node.op == "Input":
                self.element(node, (0,) * len(node.shape))

    # loops

    def loops(self, shape: Sequence[int], body: Callable[[Indices], None]) -> None:
        """``body`` at every index of a shape, the last axis innermost."""

        def at(axis: int, index: Indices) -> None:
            if axis == len(shape):
                body(index)
            elif shape[axis] == 1:
                at(axis + 1, (*index, 0))
            else:
                self.code.loop(shape[axis], lambda i: at(axis + 1, (*index, i)))

        at(0, ())

    def _nest(self, nest: Nest) -> None:
        assert nest.shape is not None
        shape, axes = nest.shape, nest.axes or frozenset()
        sums = [self.reduction(self, node, shape, axes) for node in nest.nodes if node.op == "Reduce"]
        in_memory_ = self.sums_in_memory and bool(sums) and bool(shape) and len(shape) - 1 not in axes
        order = list(range(len(shape)))
        if not in_memory_:
            order = [a for a in order if a not in axes] + [a for a in order if a in axes]
        else:
            for one in sums:
                one.clear()
        outer = len(shape) - len(axes) if not in_memory_ else -1

        def at(depth: int, index: dict[int, Index]) -> None:
            if depth == outer:
                kept = tuple(index[a] for a in range(len(shape)) if a not in axes)
                for one in sums:
                    one.begin()
                inner(depth, index)
                for one in sums:
                    one.end(kept)
            else:
                inner(depth, index)

        def inner(depth: int, index: dict[int, Index]) -> None:
            if depth < len(shape):
                axis = order[depth]
                self.code.loop(shape[axis], lambda i: at(depth + 1, {**index, axis: i}))
            else:
                body(tuple(index[a] for a in range(len(shape))))

        def body(index: Indices) -> None:
            kept = tuple(i for a, i in enumerate(index) if a not in axes)
            by_number = {one.node.number: one for one in sums}
            for node in nest.nodes:
                if node.number in by_number:
                    source = node.inputs[0]
                    value = self.element(source, unstripped(source.shape, index))
                    by_number[node.number].add(value, kept if in_memory_ else None, index)
                else:
                    self._compute(node, unstripped(node.shape, index))

        at(0, {})

    def _compute(self, node: Node, index: Indices) -> None:
        """Fill one element of an elementwise node or a view, and of the outputs that are the same array."""
        key = (node.number, index)
        value = self.code.known(key)
        if value is None:
            own = self.buffers.pop(node.number, None)  # or its rule would read it
            value = self.element(node, index)
            if own is not None:
                self.buffers[node.number] = own
        if node.number in self.buffers:
            self.write(node, index, value)

    def start_from(self, node: Node, source: Node) -> None:
        """Fill the buffer of ``node`` with ``source``, if it is not that of ``source``."""
        if node.number not in self.plan.reused:
            self.loops(node.shape, lambda index: self.write(node, index, self.element(source, index)))

    def _copy(self, node: Node, target: Buffer, index: Indices) -> None:
        self.store(target, self.code.linear(within(node.shape, index), target.strides), self.element(node, index))


def _immediate(node: Node) -> bool:
    """Whether the elements of a constant are part of the code; see ``views.constant_element``."""
    return node.size == 0 or uniform(node.value)


def _strides(node: Node) -> tuple[int, ...]:
    if node.op != "Constant":
        return row_major(node.shape)
    return tuple(stride // node.dtype.itemsize for stride in node.value.strides)
