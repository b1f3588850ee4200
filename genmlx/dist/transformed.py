"""Distributions of a bijective function of a random value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx.dist.bijectors import Affine, Bijector, from_function
from genmlx.dist.component import as_component
from genmlx.dist.distribution import Distribution
from genmlx.dist.mixture import Union, is_discrete
from genmlx.dist.support import Interval, Real, Support, Vector, real
from genmlx.errors import ParameterError, UsageError, caller_line

_TINY, _HUGE, _HALF_ULP = 1.1754944e-38, 3.4028235e38, 2.0**-24


class Image(Support):
    """The values of a bijector on a set: ``base`` and ``bijector`` say which."""

    __slots__ = ("base", "bijector", "event_ndim")

    def __init__(self, base: Support, bijector: Bijector):
        super().__init__(f"{bijector!r} of {base.phrase}")
        self.base, self.bijector, self.event_ndim = base, bijector, base.event_ndim

    @property
    def discrete(self) -> bool:
        return self.base.discrete

    def contains(self, x: mx.array) -> mx.array:
        if self.discrete:
            nearest = mx.round(self.bijector.inverse(x))
            reached = mx.abs(self.bijector.forward(nearest) - x) <= 1e-5 * mx.abs(x)
        else:
            nearest, reached = self.bijector.inverse(x), self.bijector.reaches(x)
        axes = tuple(range(-self.event_ndim, 0))
        return mx.logical_and(self.base.contains(nearest), mx.all(reached, axis=axes) if axes else reached)

    def interior(self, x: mx.array) -> mx.array:
        return self.bijector.forward(self.base.interior(x))


class Pushforward(Distribution):
    """What ``transformed`` and ``dist_transform`` share: the distribution of f(x), x of a family with parameters."""

    guarded = False

    def parts(self, *params: Any) -> tuple[Distribution, tuple, Bijector]:
        """The family of x, its parameters, and f."""
        raise NotImplementedError

    def event_shape(self, *params: Any) -> tuple:
        family, inner, _ = self.parts(*params)
        return family.event_shape(*inner)

    def batch_shape(self, *params: Any) -> tuple:
        family, inner, bijector = self.parts(*params)
        event = family.event_shape(*inner)
        shape = (*family.batch_shape(*inner), *event)
        # A bijector with array parameters makes copies of the base, which are as independent as those of an array
        # parameter of a family. The zeros are only there for their shape: they are never computed.
        try:
            out = bijector.forward(mx.zeros(shape)).shape
        except ValueError:
            raise ParameterError(
                f"{self.__name__}: {bijector!r} does not fit values of shape {list(shape)}", where=caller_line()
            ) from None
        if out[len(out) - len(event) :] != event:
            raise ParameterError(
                f"{self.__name__}: {bijector!r} makes {list(out)} of {list(shape)}",
                expected=f"the event {list(event)} as it is",
                where=caller_line(),
            )
        return out[: len(out) - len(event)]

    def support_of(self, *params: Any) -> Support:
        family, inner, bijector = self.parts(*params)
        support = family.support_of(*inner)
        if bijector.codomain is not real and not support.discrete:
            if support is bijector.domain:
                return bijector.codomain
            if type(support) is Vector and support.element is bijector.domain:
                return Vector(bijector.codomain, support.event_ndim)
        return Image(support, bijector)

    def reparameterised_of(self, *params: Any) -> bool:
        family, inner, _ = self.parts(*params)
        return family.reparameterised_of(*inner)

    def _sample(self, key: Any, shape: tuple, *params: Any) -> mx.array:
        family, inner, bijector = self.parts(*params)
        y = bijector.forward(family._sample(key, shape, *inner))
        if not family.support_of(*inner).discrete:
            y = _inside(y, bijector.codomain)
        return y if family.reparameterised_of(*inner) else mx.stop_gradient(y)

    def _log_density(self, x: mx.array, *params: Any) -> mx.array:
        family, inner, bijector = self.parts(*params)
        base, image = family.support_of(*inner), self.support_of(*params)
        inside = image.contains(mx.stop_gradient(x))
        spread = inside[(..., *[None] * base.event_ndim)]
        y = mx.where(spread, x, image.interior(x))
        if base.discrete:
            lp = family._guarded(mx.round(bijector.inverse(y)).astype(mx.int32), base, inner)
        else:
            point, log_det = bijector.inverse_and_log_det(y)
            axes = tuple(range(-base.event_ndim, 0))
            lp = family._guarded(point, base, inner) + (mx.sum(log_det, axis=axes) if axes else log_det)
        return mx.where(inside, lp, -math.inf)

    def _mean(self, *params: Any) -> Any:
        family, inner, bijector = self.parts(*params)
        mean = family._mean(*inner)
        return bijector.forward(mean) if isinstance(bijector, Affine) and mean is not None else None

    def _variance(self, *params: Any) -> Any:
        family, inner, bijector = self.parts(*params)
        variance = family._variance(*inner)
        return bijector.scale**2 * variance if isinstance(bijector, Affine) and variance is not None else None

    def _check(self, support: Support, bijector: Bijector, shown: Any) -> None:
        element = support.element if isinstance(support, Vector) else support
        if isinstance(element, Image):
            return
        if element.event_ndim or (is_discrete(element) and not element.discrete):
            kind = "is a point mass" if not element.event_ndim else "ties its elements together"
            raise ParameterError(
                f"{self.__name__}: the value of {shown!r} {kind}, so an elementwise function has no density there",
                expected="a distribution of numbers, or of vectors whose elements are free",
                where=caller_line(),
            )
        if not _may_lie_in(element, bijector.domain):
            raise ParameterError(
                f"{self.__name__}: {bijector!r} takes what is {bijector.domain.phrase}; "
                f"the value of {shown!r} is {element.phrase}",
                where=caller_line(),
            )


class Transformed(Pushforward):
    """``transformed(d, bijector)``: the distribution of ``bijector.forward(x)`` for x drawn from ``d``.

    The bijector is one of ``genmlx.dist.bijectors``, or a pair ``(forward, inverse)`` of functions of one number, whose
    Jacobian is found by differentiation. It is applied elementwise; a discrete ``d`` keeps its probabilities. Draws
    that float32 rounds onto the open end of a codomain are moved to the nearest number inside.

    >>> from genmlx import normal
    >>> from genmlx.dist.bijectors import affine
    >>> d = transformed(normal(0, 1), (mx.exp, mx.log))
    >>> round(d.log_prob(2.0).item(), 5), d.log_prob(-1.0).item()        # the log-normal density, log_prob(2.0)
    (-1.85231, -inf)
    >>> transformed(normal(1, 1), affine(2.0, 3.0)).mean.item()
    5.0
    """

    parameters = {"base": None, "bijector": None}

    def bind(self, args: Any, kwargs: dict | None = None) -> tuple:
        base, bijector = super().bind(args, kwargs)
        if isinstance(bijector, Bijector):
            return base, bijector
        return as_component(base, self.__name__), as_bijector(bijector, base.support)

    def check_parameters(self, *args: Any) -> None:
        base, bijector = args
        self._check(as_component(base, self.__name__).support, bijector, base)

    def parts(self, *params: Any) -> tuple[Distribution, tuple, Bijector]:
        base, bijector = params
        return base.gen_fn, base.gen_fn.params(base.args), bijector


class TransformedFamily(Pushforward):
    """A family derived from another one, with its parameters."""

    def __init__(self, base: Distribution, bijector: Bijector, name: str):
        super().__init__(name)
        self.base, self.bijector = base, bijector
        self.parameters, self.defaults = base.parameters, base.defaults
        self.__doc__ = f"``{name}({', '.join(base.parameters)})``: {bijector!r} of a value of {base.__name__}."

    def bind(self, args: Any, kwargs: dict | None = None) -> tuple:
        return self.base.bind(super().bind(args, kwargs))

    def check_parameters(self, *args: Any) -> None:
        self.base.check_parameters(*args)

    def params(self, args: tuple) -> tuple:
        return self.base.params(args)

    def parts(self, *params: Any) -> tuple[Distribution, tuple, Bijector]:
        return self.base, params, self.bijector

    def __reduce__(self) -> Any:
        return TransformedFamily, (self.base, self.bijector, self.__name__)


def dist_transform(
    base: Distribution, forward: Any, inverse: Callable | None = None, name: str | None = None, support: Any = None
) -> TransformedFamily:
    """A new family: ``forward`` of a value of the ``base`` family, with the parameters of ``base``.

    ``forward`` and ``inverse`` are functions of one number (the Jacobian is found by differentiation), or ``forward``
    is a bijector and there is no inverse. ``support`` says where the values lie, if that is to be shown and used to
    find unconstrained coordinates.

    >>> from genmlx import normal
    >>> log_normal2 = dist_transform(normal, mx.exp, mx.log, name="log_normal2")
    >>> log_normal2(0, 1), round(log_normal2(0, 1).log_prob(2.0).item(), 5)
    (log_normal2(0, 1), -1.85231)
    """
    if not isinstance(base, Distribution):
        hint = f"transformed({base!r}, ...) transforms one distribution" if hasattr(base, "gen_fn") else None
        raise UsageError(
            f"dist_transform was given {base!r:.60}",
            expected="a family without its parameters, as normal",
            hint=hint,
            where=caller_line(),
        )
    known = getattr(base, "support", None)  # not where it depends on the parameters
    pair = forward if inverse is None else (forward, inverse)
    bijector = as_bijector(pair, known, support)
    shown = getattr(forward, "__name__", repr(forward)).strip("<>")
    family = TransformedFamily(base, bijector, name or f"{shown}_{base.__name__}")
    if known is not None:
        family._check(known, bijector, base)
    return family


def as_bijector(value: Any, support: Support | None, codomain: Support | None = None) -> Bijector:
    """A bijector, or a pair of functions made one, for values in a set."""
    if isinstance(value, Bijector):
        return value
    if isinstance(value, (tuple, list)) and len(value) == 2:
        domain = support.element if isinstance(support, Vector) else support
        return from_function(value[0], value[1], domain, codomain)
    raise UsageError(
        f"{getattr(value, '__name__', repr(value)):.60} is not a bijector",
        expected="a bijector of genmlx.dist.bijectors, or a pair (forward, inverse) of functions",
        where=caller_line(),
    )


def _may_lie_in(support: Support, domain: Support) -> bool:
    """False where a set is known to reach out of a domain; array bounds are not known."""
    if support is domain or domain is real or not isinstance(domain, Interval):
        return True
    if isinstance(support, Union):
        return all(_may_lie_in(p, domain) for p in support.parts)
    if isinstance(support, Real):
        return False
    lo, hi = getattr(support, "lo", domain.lo), getattr(support, "hi", domain.hi)
    at_open_end = support.discrete and not domain.closed_lo and lo == domain.lo
    if isinstance(lo, (int, float)) and (lo < domain.lo or at_open_end):
        return False
    return not (isinstance(hi, (int, float)) and hi > domain.hi)


def _inside(y: mx.array, codomain: Support) -> mx.array:
    """Draws that were rounded onto an open end, or beyond the largest number, moved to the nearest number inside."""
    if codomain is real or not isinstance(codomain, Interval):
        return y
    lo, hi = codomain.lo, codomain.hi
    low = lo if codomain.closed_lo else _TINY if lo == 0 else lo + _HALF_ULP * abs(lo)
    high = _HUGE if math.isinf(hi) else hi if codomain.closed_hi else hi - _HALF_ULP * abs(hi)
    return mx.clip(y, low, high)


transformed = Transformed("transformed")
