"""Truncation of distributions of one number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.special import logsumexp
from genmlx.dist.between import BETWEEN, Between
from genmlx.dist.component import as_component
from genmlx.dist.distribution import DistCall, Distribution
from genmlx.dist.support import Integers, Interval, Support
from genmlx.dist.values import as_parameter
from genmlx.errors import ParameterError, UsageError, caller_line


class Truncated(Distribution):
    """``truncated(d, lo, hi)``: ``d`` given that it lies in [lo, hi]; either bound may be infinite.

    Continuous families: those with a distribution function here, which an error lists. Draws invert it, so they are
    differentiable in the parameters and the bounds. Discrete families of one number: the probabilities between the
    bounds are summed, so the bounds (or those of the family) are finite whole numbers, known before the run. An
    interval of probability 0 has a NaN density.

    >>> from genmlx import normal
    >>> d = truncated(normal(0, 1), lo=2)
    >>> round(d.log_prob(2.0).item(), 4), d.log_prob(1.5).item()
    (0.8642, -inf)
    """

    parameters = {"base": None, "lo": None, "hi": None}
    defaults = {"lo": -math.inf, "hi": math.inf}
    guarded = False

    def check_parameters(self, *args: Any) -> None:
        base, lo, hi = args
        support = as_component(base, self.__name__).support
        if not support.discrete and base.gen_fn not in BETWEEN:
            raise UsageError(
                f"{self.__name__}: {base.gen_fn.__name__} has no distribution function here",
                expected=f"one of {', '.join(f.__name__ for f in BETWEEN)}, or a discrete family of one number",
                where=caller_line(),
            )
        if base.event_shape:
            raise UsageError(
                f"{self.__name__}: the value of {base!r} is not one number", hint="truncate the elements, then iid(...)"
            )
        for name, bound in (("lo", lo), ("hi", hi)):
            if isinstance(bound, float) and math.isnan(bound):
                raise ParameterError(f"{self.__name__}: {name} must be a number, got nan", where=caller_line())
        if support.discrete:
            self._grid(base, lo, hi)
        elif _is_host(lo) and _is_host(hi) and not lo < hi:
            raise ParameterError(f"{self.__name__}: lo must be below hi, got lo={lo!r}, hi={hi!r}", where=caller_line())

    def params(self, args: tuple) -> tuple:
        base, *bounds = args
        return base, *[
            float(b) if _is_host(b) else as_parameter(b, name, self.__name__)
            for b, name in zip(bounds, ("lo", "hi"), strict=True)
        ]

    def batch_shape(self, base: DistCall, lo: Any, hi: Any) -> tuple:
        shapes = [b.shape for b in (lo, hi) if isinstance(b, mx.array)]
        return mx.broadcast_shapes(base.batch_shape, *shapes)

    def reparameterised_of(self, base: DistCall, lo: Any, hi: Any) -> bool:
        return base.reparameterised

    def support_of(self, base: DistCall, lo: Any, hi: Any) -> Support:
        support = base.support
        if support.discrete:
            first, last = self._grid(base, lo, hi)
            return Integers(first, last)
        low, closed_lo = lo, not _is_host(lo) or lo > -math.inf
        high, closed_hi = hi, not _is_host(hi) or hi < math.inf
        if isinstance(support, Interval):
            low, high = _larger(lo, support.lo), _smaller(hi, support.hi)
            closed_lo = closed_lo or support.closed_lo
        return Interval(low, high, closed_lo, closed_hi)

    def _sample(self, key: Any, shape: tuple, base: DistCall, lo: Any, hi: Any) -> mx.array:
        u = random.uniform_open(key, shape)
        if base.support.discrete:
            first, last = self._grid(base, lo, hi)
            cdf = mx.cumsum(mx.exp(self._table(base, first, last)), axis=0)
            cdf = mx.moveaxis(cdf, 0, -1)
            steps = cdf < u[..., None] * cdf[..., -1:]
            return (mx.minimum(mx.sum(steps, axis=-1), last - first) + first).astype(mx.int32)
        between, (loc, scale, *shapes) = self._standard(base)
        a, b, width = self._ends(base, lo, hi, loc, scale)
        low, high = self._bounds(base, lo, hi)
        x = mx.clip(loc + scale * between.draw(u, a, b, width, *shapes), low, high)
        return mx.where(low < high, x, math.nan)

    def _log_density(self, x: mx.array, base: DistCall, lo: Any, hi: Any) -> mx.array:
        if base.support.discrete:
            first, last = self._grid(base, lo, hi)
            log_mass = logsumexp(self._table(base, first, last), axis=0)
            low, high, anchor = mx.array(first), mx.array(last), mx.array(first)
        else:
            between, (loc, scale, *shapes) = self._standard(base)
            log_mass = between.log_mass(*self._ends(base, lo, hi, loc, scale), *shapes)
            low, high = self._bounds(base, lo, hi)
            log_mass = mx.where(low < high, log_mass, -math.inf)
            anchor = mx.where(mx.isfinite(low), low, mx.where(mx.isfinite(high), high, 0.0))
        inside = mx.logical_and(mx.logical_and(x >= low, x <= high), mx.abs(x) < math.inf)
        lp = base.log_prob(mx.where(inside, x, anchor.astype(x.dtype)))
        possible = log_mass > -math.inf
        lp = mx.where(possible, lp - mx.where(possible, log_mass, 0.0), math.nan)
        return mx.where(inside, lp, -math.inf)

    def _mean(self, base: DistCall, lo: Any, hi: Any) -> Any:
        return self._expectation(base, lo, hi, lambda values: values)

    def _variance(self, base: DistCall, lo: Any, hi: Any) -> Any:
        mean = self._mean(base, lo, hi)
        return None if mean is None else self._expectation(base, lo, hi, lambda values: (values - mean) ** 2)

    # discrete families

    def _grid(self, base: DistCall, lo: Any, hi: Any) -> tuple[int, int]:
        """The first and the last value between the bounds."""
        support = base.support
        ends = getattr(support, "lo", None), getattr(support, "hi", None)
        found = [
            _larger(lo, ends[0] if _is_host(ends[0]) else -math.inf),
            _smaller(hi, ends[1] if _is_host(ends[1]) else math.inf),
        ]
        for name, bound in zip(("lo", "hi"), found, strict=True):
            if not _is_host(bound) or math.isinf(bound):
                raise ParameterError(
                    f"{self.__name__}: {name} of the discrete {base!r} must be a finite number known before the run",
                    expected="its probabilities between the bounds are summed",
                    hint="a bound beyond which nothing counts, as hi=1000",
                    where=caller_line(),
                )
        first, last = math.ceil(found[0]), math.floor(found[1])
        if first > last:
            raise ParameterError(
                f"{self.__name__}: no value of {base!r} lies between lo={lo!r} and hi={hi!r}", where=caller_line()
            )
        return first, last

    def _table(self, base: DistCall, first: int, last: int) -> mx.array:
        """The log probabilities of all values, ``[values, *batch]``."""
        values = mx.arange(first, last + 1, dtype=mx.int32)
        return base.log_prob(values.reshape(-1, *[1] * len(base.batch_shape)))

    def _expectation(self, base: DistCall, lo: Any, hi: Any, of: Callable) -> Any:
        if not base.support.discrete:
            return None
        first, last = self._grid(base, lo, hi)
        table = self._table(base, first, last)
        values = mx.arange(first, last + 1, dtype=mx.float32).reshape(-1, *[1] * (table.ndim - 1))
        return mx.sum(mx.exp(table - logsumexp(table, axis=0)) * of(values), axis=0)

    # continuous families

    def _standard(self, base: DistCall) -> tuple[Between, tuple]:
        between = BETWEEN[base.gen_fn]
        return between, between.standard(*base.gen_fn.params(base.args))

    def _bounds(self, base: DistCall, lo: Any, hi: Any) -> tuple[mx.array, mx.array]:
        """The bounds, those of the family taken in, as arrays."""
        support = base.support
        if isinstance(support, Interval):
            lo, hi = _larger(lo, support.lo), _smaller(hi, support.hi)
        return mx.array(lo), mx.array(hi)

    def _ends(self, base: DistCall, lo: Any, hi: Any, loc: Any, scale: Any) -> tuple[mx.array, mx.array, mx.array]:
        """The bounds in units of the scale, and their distance, which has digits that their difference lacks."""
        low, high = self._bounds(base, lo, hi)
        fixed_low, fixed_high = mx.isfinite(low), mx.isfinite(high)
        l1, h1 = mx.where(fixed_low, low, 0.0), mx.where(fixed_high, high, 0.0)
        a = mx.where(fixed_low, (l1 - loc) / scale, low)
        b = mx.where(fixed_high, (h1 - loc) / scale, high)
        width = mx.where(mx.logical_and(fixed_low, fixed_high), (h1 - l1) / scale, math.inf)
        empty = low >= high
        return mx.where(empty, -1.0, a), mx.where(empty, 1.0, b), mx.where(empty, 2.0, width)


def _is_host(bound: Any) -> bool:
    return isinstance(bound, (int, float))


def _larger(a: Any, b: Any) -> Any:
    return max(a, b) if _is_host(a) and _is_host(b) else mx.maximum(a, b)


def _smaller(a: Any, b: Any) -> Any:
    return min(a, b) if _is_host(a) and _is_host(b) else mx.minimum(a, b)


truncated = Truncated("truncated")
