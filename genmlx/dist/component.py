"""Distributions as parts of other distributions: how a mixture, a product or a transform uses the calls it is given."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.dist.distribution import DistCall
from genmlx.errors import UsageError, caller_line


def as_component(value: Any, family: str) -> DistCall:
    """A distribution with its parameters, whose value is one array."""
    if isinstance(value, DistCall) and not getattr(value.gen_fn, "composite", False):
        return value
    given = repr(value) if isinstance(value, DistCall) else f"a {type(value).__name__}"
    raise UsageError(
        f"{family} was given {getattr(value, '__name__', given)}",
        expected="a distribution with its parameters and one array as its value, as normal(0, 1)",
        where=caller_line(),
    )


def draw(call: DistCall, key: Any, shape: tuple) -> mx.array:
    """Draws ``[*shape, *event_shape]``, where ``shape`` ends in what the call's batch shape broadcasts to."""
    return call.gen_fn._sample(key, shape, *call.gen_fn.params(call.args))


def moment(call: DistCall, which: str) -> mx.array | None:
    """The mean or the variance over the batch and event axes; None where it has no closed form."""
    params = call.gen_fn.params(call.args)
    found = getattr(call.gen_fn, f"_{which}")(*params)
    return None if found is None else mx.broadcast_to(found, (*call.batch_shape, *call.event_shape))
