"""Mixtures of distributions."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.special import log_softmax, logsumexp
from genmlx.dist.categorical import Logits
from genmlx.dist.component import as_component, draw, moment
from genmlx.dist.delta import Point
from genmlx.dist.distribution import DistCall, Distribution
from genmlx.dist.support import Support, real
from genmlx.errors import ParameterError, UsageError, caller_line


class Union(Support):
    """What lies in at least one of several sets of one event shape."""

    __slots__ = ("parts", "event_ndim")

    def __init__(self, parts: list[Support]):
        super().__init__(" or ".join(dict.fromkeys(p.phrase for p in parts)))
        self.parts, self.event_ndim = parts, parts[0].event_ndim

    @property
    def discrete(self) -> bool:
        return all(p.discrete for p in self.parts)

    def contains(self, x: mx.array) -> mx.array:
        inside = self.parts[0].contains(x)
        for part in self.parts[1:]:
            inside = inside | part.contains(x)
        return inside

    def interior(self, x: mx.array) -> mx.array:
        return self.parts[0].interior(x)


class UnionOverAxis(Support):
    """What lies in at least one of the sets along the last batch axis of a set with array bounds."""

    __slots__ = ("element", "event_ndim")

    def __init__(self, element: Support):
        super().__init__(element.phrase)
        self.element, self.event_ndim = element, element.event_ndim

    @property
    def discrete(self) -> bool:
        return self.element.discrete

    def contains(self, x: mx.array) -> mx.array:
        return mx.any(self.element.contains(mx.expand_dims(x, -1 - self.event_ndim)), axis=-1)

    def interior(self, x: mx.array) -> mx.array:
        wide = mx.expand_dims(x, -1 - self.event_ndim)
        inside = self.element.contains(wide)[(..., *[None] * self.event_ndim)]
        points = mx.broadcast_to(self.element.interior(wide), mx.broadcast_shapes(inside.shape, wide.shape))
        return mx.take(points, 0, axis=-1 - self.event_ndim)


class Mixture(Distribution):
    """``mixture(components, log_weights)``: component k with probability proportional to ``exp(log_weights[k])``.

    ``components`` is a list of distributions of one event shape, such as ``[normal(0, 1), normal(3, 2)]``, or one
    distribution whose last batch axis is the component: ``normal(mus, 1.0)`` with ``mus`` of shape [K].
    ``log_weights`` is [K], unnormalised; further batch axes in front make independent mixtures. The component is summed
    out of the density, which is differentiable in everything; ``mix`` keeps it as a choice. Either all components are
    discrete or none is.

    >>> from genmlx import normal
    >>> d = mixture([normal(0, 1), normal(3, 2)], mx.log(mx.array([0.25, 0.75])))
    >>> round(d.mean.item(), 5), round(d.log_prob(0.0).item(), 5)
    (2.25, -1.90849)
    """

    parameters = {"components": None, "log_weights": Logits("a vector of log weights")}
    guarded = False

    def check_parameters(self, *args: Any) -> None:
        components, log_weights = args
        if isinstance(components, DistCall):
            as_component(components, self.__name__)
            if not components.batch_shape:
                raise ParameterError(
                    f"{self.__name__}: {components!r} has no batch axis to be the component",
                    expected="a list of distributions, or one with array parameters",
                    where=caller_line(),
                )
            count = components.batch_shape[-1]
        else:
            if not isinstance(components, (list, tuple)) or not components:
                raise UsageError(
                    f"{self.__name__}: the components are {components!r:.60}",
                    expected="a list of distributions, or one with array parameters",
                    where=caller_line(),
                )
            for component in components:
                as_component(component, self.__name__)
            count = len(components)
            self._check_alike(components)
        shape = self.params(args)[1].shape
        if not shape or shape[-1] != count:
            raise ParameterError(
                f"{self.__name__}: {count} components, and log_weights of shape {list(shape)}",
                expected=f"log_weights of shape [{count}], or with batch axes in front",
                where=caller_line(),
            )

    def _check_alike(self, components: Any) -> None:
        for what, of in (("event shapes", lambda c: c.event_shape), ("kinds", lambda c: _kind(c.support))):
            first, other = components[0], next((c for c in components if of(c) != of(components[0])), None)
            if other is not None:
                raise ParameterError(
                    f"{self.__name__}: components of different {what}: "
                    f"{first.gen_fn.__name__} {of(first)} and {other.gen_fn.__name__} {of(other)}",
                    expected="components of one event shape, all discrete or all continuous",
                    hint="mix(...) keeps the component as a choice and takes any",
                    where=caller_line(),
                )

    def event_shape(self, components: Any, log_weights: mx.array) -> tuple:
        return _first(components).event_shape

    def batch_shape(self, components: Any, log_weights: mx.array) -> tuple:
        if isinstance(components, DistCall):
            shapes = [components.batch_shape[:-1]]
        else:
            shapes = [c.batch_shape for c in components]
        try:
            return mx.broadcast_shapes(log_weights.shape[:-1], *shapes)
        except ValueError:
            raise ParameterError(
                f"{self.__name__}: the batch shapes of components and weights do not broadcast: "
                f"{', '.join(str(list(s)) for s in [*shapes, log_weights.shape[:-1]])}",
                where=caller_line(),
            ) from None

    def support_of(self, components: Any, log_weights: mx.array) -> Support:
        if isinstance(components, DistCall):
            support = components.support
            return support if support is getattr(components.gen_fn, "support", None) else UnionOverAxis(support)
        supports = [c.support for c in components]
        if all(s is supports[0] for s in supports):
            return supports[0]
        return real if any(s is real for s in supports) else Union(supports)

    def _sample(self, key: Any, shape: tuple, components: Any, log_weights: mx.array) -> mx.array:
        count = log_weights.shape[-1]
        which, *keys = random.split(key, 2 if isinstance(components, DistCall) else 1 + count)
        index = mx.argmax(log_softmax(log_weights) + random.gumbel(which, (*shape, count)), axis=-1)
        event_ndim = len(_first(components).event_shape)
        index = index[(..., *[None] * event_ndim)]
        if isinstance(components, DistCall):
            draws = draw(components, keys[0], (*shape, count))
            value = mx.squeeze(
                mx.take_along_axis(draws, mx.expand_dims(index, -1 - event_ndim), axis=-1 - event_ndim),
                axis=-1 - event_ndim,
            )
        else:
            value = draw(components[0], keys[0], shape)
            for k in range(1, count):
                value = mx.where(index == k, draw(components[k], keys[k], shape), value)
        return mx.stop_gradient(value)

    def _log_density(self, x: mx.array, components: Any, log_weights: mx.array) -> mx.array:
        if isinstance(components, DistCall):
            each = components.log_prob(mx.expand_dims(x, -1 - len(components.event_shape)))
        else:
            each = _stacked([c.log_prob(x) for c in components], -1)
        return logsumexp(each + log_softmax(log_weights), axis=-1)

    def _mean(self, components: Any, log_weights: mx.array) -> Any:
        found = _moments(components, "mean")
        return None if found is None else _weighted(found, components, log_weights)

    def _variance(self, components: Any, log_weights: mx.array) -> Any:
        means, variances = _moments(components, "mean"), _moments(components, "variance")
        if means is None or variances is None:
            return None
        axis = -1 - len(_first(components).event_shape)
        spread = means - mx.expand_dims(_weighted(means, components, log_weights), axis)
        return _weighted(variances + spread * spread, components, log_weights)


def _first(components: Any) -> DistCall:
    return components if isinstance(components, DistCall) else components[0]


def _moments(components: Any, which: str) -> Any:
    """The components' moments, stacked on the axis before the event axes."""
    if isinstance(components, DistCall):
        return moment(components, which)
    found = [moment(c, which) for c in components]
    known = [m for m in found if m is not None]
    return _stacked(known, -1 - len(components[0].event_shape)) if len(known) == len(found) else None


def _stacked(arrays: list[mx.array], axis: int) -> mx.array:
    return mx.stack(list(mx.broadcast_arrays(*arrays)), axis=axis)


def _weighted(moments: mx.array, components: Any, log_weights: mx.array) -> mx.array:
    event_ndim = len(_first(components).event_shape)
    weights = mx.exp(log_softmax(log_weights))[(..., *[None] * event_ndim)]
    return mx.sum(weights * moments, axis=-1 - event_ndim)


def _kind(support: Support) -> str:
    return "discrete" if is_discrete(support) else "continuous"


def is_discrete(support: Support) -> bool:
    """Whether values have probabilities, not densities: counts, and the points of deltas, real ones included."""
    if isinstance(support, Union):
        return all(is_discrete(p) for p in support.parts)
    return support.discrete or isinstance(support, Point)


mixture = Mixture("mixture")
