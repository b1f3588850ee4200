"""The log density of each choice of a trace, found in the traces that it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from genmlx.masked import both, host_value, spread

ELEMENTS = 100_000  # of an array whose densities are found one by one


class Site:
    """One choice: what made it, and its log density as an index into an array that other sites may share.

    ``at`` has an entry for each axis of the array: the step of a sequence, or None for the elements of a vmap, whose
    densities are summed. In a batch the array is the mean over the lanes and ``bad`` counts those that are not finite.
    """

    __slots__ = ("gen_fn", "trace", "scores", "at", "bad", "lanes")

    def __init__(self, gen_fn: Any, trace: Any, scores: mx.array, at: tuple, bad: mx.array | None, lanes: bool):
        self.gen_fn, self.trace, self.scores, self.at, self.bad, self.lanes = gen_fn, trace, scores, at, bad, lanes

    @property
    def deterministic(self) -> bool:
        from genmlx.dist.delta import Delta

        return isinstance(self.gen_fn, Delta)

    def elementwise(self) -> mx.array | None:
        """The densities of the elements along axis 0 of the value, where the site is a product over them."""
        if self.lanes or self.at or self.trace is None or not getattr(self.trace.retval, "ndim", 0):
            return None
        value = self.trace.retval
        if value.size > ELEMENTS:
            return None
        each = self.gen_fn.log_prob(value, self.trace.args)
        if each.ndim == 0 or each.shape[0] != value.shape[0]:
            return None
        return mx.sum(each.reshape((each.shape[0], -1)), axis=1)


def sites(trace: Any) -> dict[tuple, list[Site]]:
    """Every choice of a trace, or of a batch of them, by address; two where branches share an address."""
    found: dict[tuple, list[Site]] = {}
    batch = hasattr(trace, "lanes") and hasattr(trace, "take")
    if batch:
        trace = trace.lanes
    for address, leaf, at, active in _walk(trace, (), (), True):
        scores = leaf.score
        if active is not True:
            scores = mx.where(spread(active, scores.ndim), scores, 0.0)
        bad = None
        if batch:
            bad = mx.sum(mx.logical_not(mx.isfinite(scores)).astype(mx.int32), axis=0)
            scores = mx.mean(scores, axis=0)
        plain = leaf if active is True and not batch else None
        found.setdefault(address, []).append(Site(leaf.gen_fn, plain, scores, at, bad, batch))
    return found


def _walk(trace: Any, address: tuple, at: tuple, active: Any) -> Iterator[tuple[tuple, Any, tuple, Any]]:
    """``(address, trace of one choice, axes, where it is there)``. Axes of a batch come first and are not in ``at``."""
    from genmlx.dist.distribution import DistTrace
    from genmlx.gen import GenTrace
    from genmlx.handlers import Spliced

    if isinstance(trace, DistTrace):
        yield address, trace, at, active
    elif hasattr(trace, "subtraces"):
        for part, sub in trace.subtraces.items():
            below = address if isinstance(trace, GenTrace) and type(part[0]) is Spliced else (*address, *part)
            yield from _walk(sub, below, at, active)
    else:
        yield from _of_combinator(trace, address, at, active)


def _of_combinator(trace: Any, address: tuple, at: tuple, active: Any) -> Iterator[tuple[tuple, Any, tuple, Any]]:
    from genmlx.combinators.elements import Elements
    from genmlx.combinators.mask import MaskTrace, known
    from genmlx.combinators.sequence import SequenceTrace
    from genmlx.combinators.switch import SwitchTrace
    from genmlx.combinators.vmap import VmapTrace
    from genmlx.combinators.wrapped import WrappedTrace

    if isinstance(trace, SequenceTrace):
        steps = trace.elements
        if not isinstance(steps, Elements):
            for t, step in enumerate(steps):
                yield from _walk(step, (*address, t), at, active)
            return
        for stack in steps.stacks:
            for inner, leaf, axes, there in list(_walk(stack.trace, (), (*at, 0), active)):
                for t in range(stack.start, min(stack.stop, steps.n)):
                    if t not in steps.own:
                        row = (*axes[: len(at)], t - stack.start, *axes[len(at) + 1 :])
                        yield (*address, t, *inner), leaf, row, there
        for t, step in steps.own.items():
            yield from _walk(step, (*address, t), at, active)
    elif isinstance(trace, VmapTrace):
        yield from _walk(trace.lanes, address, (*at, None), active)
    elif isinstance(trace, MaskTrace):
        on = known(trace.active)
        if trace.inner is not None and on is not False:
            yield from _walk(trace.inner, address, at, both(active, on))
    elif isinstance(trace, SwitchTrace):
        chosen = host_value(trace.index)
        for b, branch in trace.branches.items():
            if chosen is None:
                yield from _walk(branch, address, at, both(active, trace.index == b))
            elif b == chosen:
                yield from _walk(branch, address, at, active)
    elif isinstance(trace, WrappedTrace):
        yield from _walk(trace.inner, address, at, active)
    else:
        raise TypeError(f"no log densities are known of the parts of a {type(trace).__name__}")


def picked(host: Any, at: tuple) -> Any:
    """The entry of a nested list at an index for each axis, where None takes all of an axis."""
    for i, place in enumerate(at):
        if place is None:
            return [picked(row, at[i + 1 :]) for row in host]
        host = host[place]
    return host


def added(host: Any) -> float:
    """The sum of a nested list; what is not finite stays so.

    >>> added([[1.0, 2.0], [3.0]]), added([1.0, float("-inf")])
    (6.0, -inf)
    """
    return sum(map(added, host)) if isinstance(host, list) else host
