"""Patterns that MLX's derivatives and this library's sums leave behind, in a form that is cheaper to run.

Sums come out in another order, which changes their rounding only.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from genmlx.native.fold import is_all, rewritten, uniform
from genmlx.native.graph import Graph, Node, constant

_SUM = 2  # MLX's number of that kind of Reduce
_ADDS, _REPLACES = 2, 4  # and of Scatter and SliceUpdate
_LONGEST = 1 << 17  # elements of a sum whose blocks are given up: more would lose digits


def improved(graph: Graph) -> Graph:
    """The graph after all of them."""
    for change in (_whole_sum, _sum_of_terms, _by_one_number, _triangular, _Vanishing(), _accumulated):
        graph = rewritten(graph, change)
    return graph


# sums of blocks, as genmlx.backend.sums makes them


def _whole_sum(node: Node) -> Node:
    """A sum of the sums of blocks of an array, and of what is left over: the sum of the array."""
    while (
        node.op == "Reduce" and node.settings[0] == _SUM and list(node.settings[1]) == [len(node.inputs[0].shape) - 1]
    ):
        base = _covered(node.inputs[0])
        if base is None or base.shape[-1] > _LONGEST:
            break
        node = Node("Reduce", node.settings, (base,), node.shape, node.dtype)
    return node


def _covered(node: Node) -> Node | None:
    """The array of which every element along the last axis counts once in the sum of ``node``."""
    parts = [part for source in _pieces(node) if (part := _part(source))]
    if len(parts) != len(_pieces(node)) or not parts:
        return None
    base, at = parts[0][0], 0
    for source, start, stop in parts:
        if source is not base or start != at:
            return None
        at = stop
    return base if base is not node and at == base.shape[-1] else None


def _pieces(node: Node) -> tuple[Node, ...]:
    last = len(node.shape) - 1
    return node.inputs if node.op == "Concatenate" and node.settings[0] == last else (node,)


def _part(node: Node) -> tuple[Node, int, int] | None:
    """A node whose sum along the last axis is that of ``start .. stop`` of an array."""
    lead = node.shape[:-1]
    if node.op in ("Squeeze", "Reshape") and node.inputs[0].op == "Reduce":
        sums = node.inputs[0]
        blocks = sums.inputs[0]
        last = len(blocks.shape) - 1
        if sums.settings[0] != _SUM or list(sums.settings[1]) != [last] or sums.dtype != blocks.dtype:
            return None
        if blocks.shape[:-1] != node.shape or blocks.op not in ("Reshape", "Unflatten"):
            return None
        node = blocks.inputs[0]
        if node.shape != (*lead, math.prod(blocks.shape[-2:])):
            return None
    if node.op == "Slice":
        starts, _, steps = node.settings
        source = node.inputs[0]
        if source.shape[:-1] == lead and not any(starts[:-1]) and all(step == 1 for step in steps):
            return source, starts[-1], starts[-1] + node.shape[-1]
    return node, 0, node.shape[-1]


# sums of scores, which are stacked to be added


_TERMS = 64  # more are added in a loop


def _sum_of_terms(node: Node) -> Node:
    """The sum along an axis of arrays put side by side, each of size one there: one plus the other."""
    if node.op != "Reduce" or node.settings[0] != _SUM or len(node.settings[1]) != 1:
        return node
    (axis,), stacked = node.settings[1], node.inputs[0]
    if stacked.op != "Concatenate" or stacked.settings[0] != axis or not 1 < len(stacked.inputs) <= _TERMS:
        return node
    if node.dtype != stacked.dtype or any(term.shape[axis] != 1 for term in stacked.inputs):
        return node
    shape = stacked.inputs[0].shape
    total = functools.reduce(lambda a, b: Node("Add", (), (a, b), shape, node.dtype), stacked.inputs)
    return total if shape == node.shape else Node("Reshape", (node.shape,), (total,), node.shape, node.dtype)


# quotients by one number, of which the families' densities are full


def _by_one_number(node: Node) -> Node:
    """A float64 array divided by one number: times its reciprocal, which is off by one rounding of float64 at most.

    A division takes a processor as long as eight products. Float32 is left as it is: there a rounding counts.
    """
    if node.op != "Divide" or node.dtype != np.float64 or node.size == 1:
        return node
    number = _one_number(node.inputs[1])
    if number is None:
        return node
    one = constant(np.ones(number.shape, node.dtype))
    reciprocal = Node("Divide", (), (one, number), number.shape, node.dtype)
    return Node("Multiply", (), (node.inputs[0], _broadcast(reciprocal, node.shape)), node.shape, node.dtype)


def _one_number(node: Node) -> Node | None:
    """The one number that all elements of an array are, as an array of size one and as many axes or none."""
    if node.size == 1:
        return node
    if node.op == "Constant":
        return constant(np.asarray(node.value.flat[0], node.dtype)) if uniform(node.value) else None
    if node.op == "Broadcast" and node.inputs[0].size == 1:
        return node.inputs[0]
    if node.op in ("Square", "Sqrt", "AsType") and (number := _one_number(node.inputs[0])) is not None:
        return Node(node.op, node.settings, (number,), number.shape, node.dtype)
    return None


# inverses of factors, which MLX takes for inverses of any matrix in a batch


def _triangular(node: Node) -> Node:
    if node.op != "Inverse" or node.settings[0]:
        return node
    for upper in (False, True):
        if _is_triangular(node.inputs[0], upper):
            return Node("Inverse", (True, upper), node.inputs, node.shape, node.dtype)
    return node


def _is_triangular(node: Node, upper: bool) -> bool:
    """Whether a matrix is sure to be zero below its diagonal, or above."""
    if node.op == "Cholesky":
        return bool(node.settings[0]) == upper
    if node.op == "Constant":
        return bool((node.value == (np.triu if upper else np.tril)(node.value)).all())
    if node.op == "Select":
        return all(_is_triangular(source, upper) for source in node.inputs[1:])
    if node.op in ("Broadcast", "ExpandDims", "Reshape", "Squeeze", "AsType"):
        same = node.shape[-2:] == node.inputs[0].shape[-2:] and len(node.inputs[0].shape) > 1
        return same and _is_triangular(node.inputs[0], upper)
    return False


# products with x - x, of which the exact derivatives of genmlx.backend.linalg are full


_KEEP_ZERO = {"Negative", "Transpose", "Reshape", "Squeeze", "ExpandDims", "Broadcast", "Slice", "Flatten", "Unflatten",
              "Square", "Abs"}  # fmt: skip


class _Vanishing:
    """Matrix products of which one factor is zero: zero at once, or nan if a factor has an element without a value.

    MLX would have nan only in some rows or columns of such a product.
    """

    def __init__(self) -> None:
        self._zero: set[int] = set()
        self._held: list[Node] = []  # or an id might be used again

    def __call__(self, node: Node) -> Node:
        inputs = node.inputs
        zeros = [id(source) in self._zero for source in inputs]
        if node.dtype.kind != "f" or not inputs:
            return node
        if node.op == "Matmul" and any(zeros):
            node = _nothing(node)
            vanishes = True
        elif node.op == "Subtract" and inputs[0] is inputs[1]:
            vanishes = True
        elif node.op == "Multiply" or (node.op == "Divide" and zeros[0]):
            vanishes = any(zeros)
        elif node.op in ("Add", "Subtract") or node.op in _KEEP_ZERO:
            vanishes = all(zeros)
        elif node.op == "Reduce":
            vanishes = all(zeros) and node.settings[0] == _SUM
        elif node.op == "AsType":
            vanishes = all(zeros) and inputs[0].dtype.kind == "f"
        else:
            vanishes = False
        if vanishes:
            self._zero.add(id(node))
            self._held.append(node)
        return node


def _nothing(product: Node) -> Node:
    """0 for each matrix of a product, or nan."""
    a, b = (_presence(source) for source in product.inputs)
    lead = product.shape[:-2]
    ones = (*lead, 1, 1)
    both = Node("Add", (), [_broadcast(one, ones) for one in (a, b)], ones, product.dtype)
    return _broadcast(both, product.shape)


def _presence(node: Node) -> Node:
    """0 for each matrix, or nan where one of its elements is not finite."""
    zero = constant(np.broadcast_to(np.zeros((), node.dtype), node.shape))
    product = Node("Multiply", (), (node, zero), node.shape, node.dtype)
    axes = [len(node.shape) - 2, len(node.shape) - 1]
    return Node("Reduce", (_SUM, axes), (product,), (*node.shape[:-2], 1, 1), node.dtype)


def _broadcast(node: Node, shape: tuple[int, ...]) -> Node:
    return node if node.shape == shape else Node("Broadcast", (shape,), (node,), shape, node.dtype)


# derivatives of reads at indices


def _accumulated(node: Node) -> Node:
    """The sum of an array and of zeros with some elements added to: the array with these elements added to."""
    if node.op == "Add" and node.dtype.kind == "f":
        for added, other in (node.inputs, node.inputs[::-1]):
            if added.op in ("Scatter", "SliceUpdate") and is_all(added.inputs[0], 0):
                kind, *rest = added.settings
                if kind == _ADDS or (added.op == "SliceUpdate" and kind == _REPLACES):
                    return Node(added.op, (_ADDS, *rest), (other, *added.inputs[1:]), node.shape, node.dtype)
    return node
