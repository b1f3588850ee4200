"""Stochastic batches: some rows of a data set at each step, all of them in each epoch."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import optree

from genmlx.errors import ParameterError, UsageError
from genmlx.inference.problem import positive_count
from genmlx.pytree import NAMESPACE, map_arrays


class Batches:
    """``size`` rows of ``data`` at a time, a tree of arrays with the rows first; all rows where ``size`` is None.

    Each epoch goes through the rows in an order of its own, and leaves out at its end what does not fill a batch. So a
    batch is a uniformly random subset of the rows, and ``scale`` = rows / size times a sum over the batch has the sum
    over all rows as its expected value. Batch ``i`` depends on the key and on ``i`` alone.

    >>> import mlx.core as mx
    >>> batches = Batches({"x": mx.arange(6)}, size=2, key=mx.random.key(0))
    >>> batches.scale, batches.epoch
    (3.0, 3)
    >>> sorted(x for i in range(3) for x in batches.at(i)["x"].tolist())
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, data: Any, size: int | None, key: Any):
        from genmlx.dist.values import as_array, is_host_data

        def is_column(node: Any) -> bool:  # a tuple holds several
            return not isinstance(node, tuple) and is_host_data(node)

        self.data = optree.tree_map(as_array, data, is_leaf=is_column, namespace=NAMESPACE)
        leaves = optree.tree_leaves(self.data, namespace=NAMESPACE)
        if not leaves:
            raise UsageError("the data hold no array", expected="an array with the rows first, or a tree of such")
        if any(leaf.ndim == 0 for leaf in leaves):
            raise UsageError("the data hold a single number", expected="arrays with the rows first")
        counts = {leaf.shape[0] for leaf in leaves}
        if len(counts) > 1:
            shown = " and ".join(map(str, sorted(counts)))
            raise UsageError(f"the arrays of the data have {shown} rows", expected="one number of rows")
        self.rows, self.key = counts.pop(), key
        if not self.rows:
            raise UsageError("the data have no rows")
        if size is not None and positive_count("batch_size", size) > self.rows:
            raise ParameterError(f"a batch of {size} rows out of {self.rows}", expected=f"at most {self.rows}")
        self.size = size or self.rows
        self.scale = self.rows / self.size
        self.epoch = self.rows // self.size
        self._order: tuple[int, Any] = (-1, None)

    def at(self, step: int) -> Any:
        """The rows of a step."""
        if self.size == self.rows:
            return self.data
        epoch, place = divmod(step, self.epoch)
        if self._order[0] != epoch:
            self._order = epoch, mx.random.permutation(self.rows, key=step_key(self.key, epoch))
        chosen = self._order[1][place * self.size : (place + 1) * self.size]
        return map_arrays(lambda array: array[chosen], self.data)


def step_key(key: mx.array, step: int) -> mx.array:
    """The key of one step of a run, whatever steps came before it."""
    return mx.random.split(key + mx.array([0, step], dtype=mx.uint32))[0]
