"""Independent, identically distributed draws as one event."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.backend.sums import summed
from genmlx.dist.component import as_component, draw, moment
from genmlx.dist.distribution import DistCall, Distribution
from genmlx.dist.support import Support, Vector
from genmlx.dist.values import shape_mismatch
from genmlx.errors import ParameterError, caller_line


class Repeated(Vector):
    """Arrays over whose ``event_ndim`` further axes every element lies in a set with batch axes of its own."""

    __slots__ = ()

    def contains(self, x: mx.array) -> mx.array:
        inner = self.element.event_ndim
        extra = self.event_ndim - inner
        return mx.all(self.element.contains(_axes_first(x, extra, inner)), axis=tuple(range(extra)))

    def interior(self, x: mx.array) -> mx.array:
        inner = self.element.event_ndim
        extra = self.event_ndim - inner
        first = _axes_first(x, extra, inner)
        return _axes_last(mx.broadcast_to(self.element.interior(first), first.shape), extra, inner)


class Iid(Distribution):
    """``iid(base, n)``: ``n`` independent draws of ``base`` as one event ``[n, *base.event_shape]``.

    ``n`` is a whole number or a shape. Batch axes of ``base`` come first, and stay: ``iid(normal(mu, 1), 5)`` with
    ``mu`` of shape [3] is three events of shape [5].

    >>> from genmlx import normal
    >>> d = iid(normal(0, 1), 4)
    >>> d.event_shape, d.log_prob(mx.zeros((7, 4))).shape
    ((4,), (7,))
    """

    parameters = {"base": None, "n": None}
    guarded = False

    def check_parameters(self, *args: Any) -> None:
        as_component(args[0], self.__name__)
        sizes = args[1] if isinstance(args[1], (tuple, list)) else (args[1],)
        if not all(type(k) is int and k >= 0 for k in sizes):
            raise ParameterError(
                f"{self.__name__}: n must be a whole number, 0 or more, or a shape of them, got {args[1]!r}",
                where=caller_line(),
            )

    def params(self, args: tuple) -> tuple:
        base, n = args
        return base, (n,) if isinstance(n, int) else tuple(n)

    def event_shape(self, base: DistCall, n: tuple) -> tuple:
        return (*n, *base.event_shape)

    def batch_shape(self, base: DistCall, n: tuple) -> tuple:
        return base.batch_shape

    def support_of(self, base: DistCall, n: tuple) -> Support:
        if not n:
            return base.support
        return (Repeated if base.batch_shape else Vector)(base.support, len(n))

    def reparameterised_of(self, base: DistCall, n: tuple) -> bool:
        return base.reparameterised

    def _sample(self, key: Any, shape: tuple, base: DistCall, n: tuple) -> mx.array:
        return _axes_last(draw(base, key, (*n, *shape)), len(n), len(base.event_shape))

    def _log_density(self, x: mx.array, base: DistCall, n: tuple) -> mx.array:
        event = self.event_shape(base, n)
        if x.shape[x.ndim - len(event) :] != event:
            raise shape_mismatch(x, event, self.__name__)
        each = base.log_prob(_axes_first(x, len(n), len(base.event_shape)))
        return summed(mx.moveaxis(each.reshape((-1, *each.shape[len(n) :])), 0, -1), 1) if n else each

    def _mean(self, base: DistCall, n: tuple) -> Any:
        return _spread(moment(base, "mean"), base, n)

    def _variance(self, base: DistCall, n: tuple) -> Any:
        return _spread(moment(base, "variance"), base, n)


def _spread(found: Any, base: DistCall, n: tuple) -> Any:
    return found if found is None else found.reshape(*base.batch_shape, *[1] * len(n), *base.event_shape)


def _axes_first(x: mx.array, extra: int, inner: int) -> mx.array:
    """``[..., *n, *event]`` as ``[*n, ..., *event]``."""
    lead = x.ndim - extra - inner
    return x.transpose([*range(lead, lead + extra), *range(lead), *range(lead + extra, x.ndim)])


def _axes_last(x: mx.array, extra: int, inner: int) -> mx.array:
    """``[*n, ..., *event]`` as ``[..., *n, *event]``."""
    lead = x.ndim - inner
    return x.transpose([*range(extra, lead), *range(extra), *range(lead, x.ndim)])


iid = Iid("iid")
