"""``mix``: a mixture of generative functions."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.combinators.switch import switch
from genmlx.dist.categorical import categorical
from genmlx.dist.values import as_array
from genmlx.errors import name_of
from genmlx.gen import GenFn, gen, splice, trace


def mix(components: list, log_weights: Any) -> GenFn:
    """One of the components, drawn by its weight: the choice ``"component"``, and the component's own beside it.

    Takes the components' arguments and returns what the component returns. ``log_weights`` need not be normalised;
    it may be a function of the arguments.

    >>> from genmlx import gen, mix, normal, trace
    >>> @gen
    ... def low():
    ...     return trace("z", normal(-1, 1))
    >>> @gen
    ... def high():
    ...     return trace("z", normal(1, 1))
    >>> tr, weight = mix([low, high], [0.0, 0.0]).generate((), {"component": 1, "z": 1.0})
    >>> round(weight.item(), 6)                         # log 1/2 + log N(1; 1, 1)
    -1.612086
    """
    chosen = switch(*components)

    @gen.new
    def mixture(*args):
        weights = log_weights(*args) if callable(log_weights) else log_weights
        return splice(chosen(trace("component", categorical(as_array(weights).astype(mx.float32))), *args))

    mixture.__name__ = f"mix({', '.join(map(name_of, chosen.branches))})"
    return mixture
