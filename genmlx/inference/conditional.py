"""The log density of some continuous choices of a trace given all its others, as one unconstrained vector."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.backend.mapping import vmap_list
from genmlx.choicemap import EMPTY, ChoiceMap, covering, from_items
from genmlx.dist.values import as_array
from genmlx.free import Fixed, Free
from genmlx.gfi import as_weight
from genmlx.gradients import host_value_errors
from genmlx.masked import active_of, both
from genmlx.pytree import map_arrays
from genmlx.trace import Trace
from genmlx.vectorized import Lanes, _with_args, _without_args, run


class Conditional:
    """``logp(u)`` = log p + log |det J|, of the choices at the addresses, at coordinates ``u [dim]``; see LogDensity.

    ``position [dim]`` is where the trace is: not finite where a value is on the edge of its support. It is -inf where
    other choices would exist than do. ``known`` are values of other choices, for those in the trace: what all lanes of
    a batch share is best not taken from each.
    """

    def __init__(self, trace: Trace, addresses: list[tuple], known: ChoiceMap = EMPTY):
        self.trace, self._known = trace, known
        moved = covering(from_items((address, 0) for address in addresses))
        self._others = trace.choices.without(moved).merge(known)
        fixed = from_items((address, Fixed(as_array(trace.choices[address]))) for address in addresses)
        packed = self._run(fixed)[0].choices
        self._shapes = {address: packed[address].shape for address in addresses}
        self.position = mx.concatenate([packed[address].reshape(-1) for address in addresses])

    def at(self, u: mx.array) -> tuple[Trace, mx.array]:
        """The run at coordinates, and ``logp``."""
        ends, end = [], 0
        for shape in self._shapes.values():
            ends.append(end := end + math.prod(shape))
        shares = mx.split(u, ends[:-1]) if len(ends) > 1 else [u]
        free = ((a, Free(share.reshape(shape))) for (a, shape), share in zip(self._shapes.items(), shares, strict=True))
        trace, weight = self._run(from_items(free))
        return trace, mx.where(same_choices(trace, self.trace), as_weight(weight), -math.inf)

    def moved(self, u: mx.array) -> Trace:
        """The trace with the choices that are at coordinates."""
        new = self.at(u)[0].choices
        values = from_items((address, new[address]) for address in self._shapes)
        return put(self.trace, values)[0]

    def value(self, u: mx.array) -> tuple[mx.array, mx.array]:
        """``logp`` of one row ``[1, dim]``, and zeros for the gradient."""
        return self.at(u[0])[1][None], mx.zeros_like(u)

    def value_and_grad(self, u: mx.array) -> tuple[mx.array, mx.array]:
        """``logp`` of one row ``[1, dim]``, and its gradient."""
        return batched_gradient(lambda u: vmap_list(lambda row: [self.at(row)[1]], u)[0], u)

    def value_and_grad_in_batch(self, u: mx.array) -> tuple[mx.array, mx.array]:
        """The same in a lane of a batch.

        After a gradient, MLX 0.32.4 has forgotten that the arrays which its function closed over are traced (no
        upstream issue found): asked for a host value, they give another error. So they are handed to it.
        """

        def one(_: Any, trace: Trace, row: mx.array) -> tuple[mx.array, mx.array]:
            lane = Conditional(_with_args(trace, self.trace.args), list(self._shapes), self._known)
            return mx.value_and_grad(lambda u: lane.at(u)[1])(row)

        trace = map_arrays(lambda array: array[None], _without_args(self.trace))
        return run(one, 1, None, Lanes(trace), Lanes(u))

    def _run(self, choices: ChoiceMap) -> tuple[Trace, Any]:
        return self.trace.gen_fn._generate(self.trace.args, self._others.merge(choices), None)


def put(trace: Trace, choices: ChoiceMap) -> tuple[Trace, mx.array]:
    """The trace updated to other values, which may be of any kind, and the weight."""
    args, diffs = trace.gen_fn.changed(trace, None, None)
    new, weight, *_ = trace.gen_fn._update(trace, args, diffs, choices, None)
    return new, as_weight(weight)


def same_choices(new: Trace, old: Trace) -> Any:
    """Whether two traces have the same choices, and they are there in the same lanes."""
    old_leaves, new_leaves = old.choices.to_dict(), new.choices.to_dict()
    if old_leaves.keys() != new_leaves.keys():
        return False
    same: Any = True
    for address, leaf in new_leaves.items():
        there, was = active_of(leaf), active_of(old_leaves[address])
        if there is not was:
            same = both(same, mx.all(mx.array(there) == mx.array(was)))
    return same


def batched_gradient(f: Any, u: mx.array) -> tuple[mx.array, mx.array]:
    """The values ``[n]`` of a function of rows ``[n, dim]``, and their gradients."""

    def total(u: mx.array) -> tuple[mx.array, mx.array]:
        values = f(u)  # under a vmap, where the host value of what is differentiated is refused
        return mx.sum(values), values

    with host_value_errors("differentiated"):
        (_, values), gradient = mx.value_and_grad(total)(u)
    return values, gradient
