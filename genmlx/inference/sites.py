"""The distribution that made a choice, found in a trace."""

from __future__ import annotations

from genmlx.combinators.mask import MaskTrace
from genmlx.combinators.sequence import SequenceTrace
from genmlx.combinators.vmap import VmapTrace
from genmlx.combinators.wrapped import WrappedTrace
from genmlx.dist.distribution import DistTrace
from genmlx.dist.product import ProductTrace
from genmlx.gen import GenTrace
from genmlx.handlers import Spliced
from genmlx.trace import Trace


def site_at(trace: Trace | None, address: tuple) -> DistTrace | None:
    """The draw at an address, with its distribution and parameters; None where a combinator hides it.

    In a ``vmap`` it is the draw of all elements, with axis 0 of parameters and value the element.
    """
    if isinstance(trace, DistTrace):
        return None if address else trace
    if isinstance(trace, (MaskTrace, WrappedTrace)):
        return site_at(trace.inner, address)
    if isinstance(trace, VmapTrace):
        return site_at(trace.lanes, address)
    if isinstance(trace, SequenceTrace):
        return site_at(trace.elements[address[0]], address[1:]) if address else None
    if isinstance(trace, ProductTrace):
        return site_at(trace.subtraces.get(address[:1]), address[1:])
    if not isinstance(trace, GenTrace):
        return None
    for prefix, inner in trace.subtraces.items():
        spliced = type(prefix[0]) is Spliced
        if address in inner.choices if spliced else address[: len(prefix)] == prefix:
            return site_at(inner, address if spliced else address[len(prefix) :])
    return None
