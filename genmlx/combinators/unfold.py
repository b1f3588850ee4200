"""``unfold``: a Markov chain of states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from genmlx.combinators.kernel import at_least
from genmlx.combinators.sequence import Sequence, whole_number
from genmlx.diff import NoChange
from genmlx.trace import Trace


class Unfold(Sequence):
    """``unfold(kernel)`` takes ``(n, init, *extra)``; step ``t`` runs ``kernel(t, state, *extra)`` at address ``t``.

    The kernel returns the next state. Returns the list of the ``n`` states, ``init`` not among them. An update to
    ``n + 1`` runs the kernel once.

    >>> from genmlx import gen, normal, trace, unfold
    >>> @gen
    ... def walk(t, x, scale):
    ...     return trace("x", normal(x, scale))
    >>> tr = unfold(walk).simulate((3, 0.0, 1.0), key=0)
    >>> longer = tr.update({(3, "x"): 1.0}, args=(4, 0.0, 1.0)).trace
    >>> len(tr.retval), longer.choices.addresses()[-1]
    (3, (3, 'x'))
    """

    name = "unfold"
    chained = True

    def length(self, args: tuple) -> int:
        return whole_number(self, "n", args[0])

    def step_inputs(self, args: tuple, t: int) -> int:
        return t

    def step_args(self, args: tuple, t: int, elements: list[Trace]) -> tuple:
        return (t, elements[t - 1].retval if t else args[1], *args[2:])

    def changed_steps(self, old: tuple, new: tuple, diffs: tuple, n: int) -> Iterable[int]:
        if len(old) != len(new) or any(diff is not NoChange for diff in diffs[2:]):
            return range(n)
        return range(min(n, 1)) if diffs[1] is not NoChange else ()

    def collect(self, args: tuple, retvals: list) -> list:
        return retvals

    def stacked_inputs(self, args: tuple) -> Any:
        return mx.arange(self.length(args), dtype=mx.int64)  # a kernel may make large numbers of it

    def kernel_args(self, state: Any, inputs: Any, args: tuple) -> tuple:
        return (inputs, state, *args[2:])

    def initial_state(self, args: tuple) -> Any:
        return args[1]

    def bind(self, args: Any, kwargs: dict | None = None) -> tuple:
        return at_least(self, super().bind(args, kwargs), 2, "(n, init, *extra)")


unfold = Unfold
