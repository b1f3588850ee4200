"""Bijectors: invertible elementwise functions that know their derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx.backend import special
from genmlx.backend.mapping import vmap
from genmlx.choicemap import show_type
from genmlx.dist.support import Interval, Support, open_unit_interval, positive, real
from genmlx.errors import ParameterError, UsageError, caller_line
from genmlx.pytree import register_slots


class Bijector:
    """An invertible elementwise function from its ``domain`` onto its ``codomain``.

    ``forward``, ``inverse``, and ``log_abs_det_jacobian(x)`` = log |d forward / dx| for each element; ``inverted()``
    is the bijector the other way. Its parameters are leaves of a tree, so that gradients and batches reach them.

    >>> sigmoid.forward(0.0).item(), round(sigmoid.log_abs_det_jacobian(0.0).item(), 6), exp.inverse(1.0).item()
    (0.5, -1.386294, 0.0)
    """

    __slots__ = ()
    data: tuple[str, ...] = ()
    domain: Support = real
    codomain: Support = real

    def __init_subclass__(cls) -> None:
        register_slots(cls, cls.data)

    def forward(self, x: Any) -> mx.array:
        raise NotImplementedError

    def inverse(self, y: Any) -> mx.array:
        """NaN, or a point outside the domain, where ``y`` is not in the codomain."""
        raise NotImplementedError

    def log_abs_det_jacobian(self, x: Any) -> mx.array:
        raise NotImplementedError

    def inverse_and_log_det(self, y: Any) -> tuple[mx.array, mx.array]:
        """The inverse, and log |d inverse / dy|."""
        x = self.inverse(y)
        return x, -self.log_abs_det_jacobian(x)

    def reaches(self, y: mx.array) -> mx.array:
        """Whether ``y`` is a value of ``forward``, elementwise."""
        return self.codomain.contains(y)

    def inverted(self) -> Bijector:
        return Inverse(self)

    def __repr__(self) -> str:
        parameters = [getattr(self, name) for name in self.data]
        shown = ", ".join(show_type(p) if isinstance(p, mx.array) else repr(p) for p in parameters)
        return f"{type(self).__name__.lower()}{f'({shown})' if shown else ''}"


class Inverse(Bijector):
    """A bijector the other way round."""

    __slots__ = ("of", "domain", "codomain")
    data = ("of",)

    def __init__(self, of: Bijector):
        self.of, self.domain, self.codomain = of, of.codomain, of.domain

    def forward(self, x: Any) -> mx.array:
        return self.of.inverse(x)

    def inverse(self, y: Any) -> mx.array:
        return self.of.forward(y)

    def log_abs_det_jacobian(self, x: Any) -> mx.array:
        return self.of.inverse_and_log_det(x)[1]

    def inverse_and_log_det(self, y: Any) -> tuple[mx.array, mx.array]:
        # straight from y: from the other side, where the sigmoid of a large y is next to 1, its digits are gone
        return self.of.forward(y), self.of.log_abs_det_jacobian(y)

    def inverted(self) -> Bijector:
        return self.of

    def __repr__(self) -> str:
        return f"{self.of!r}.inverted()"


class Exp(Bijector):
    """y = e^x, onto the positive numbers."""

    __slots__ = ()
    codomain = positive

    def forward(self, x: Any) -> mx.array:
        return special.exp(x)

    def inverse(self, y: Any) -> mx.array:
        return mx.log(special.real(y))

    def log_abs_det_jacobian(self, x: Any) -> mx.array:
        return special.real(x)


class Affine(Bijector):
    """y = loc + scale x, for a scale other than 0. Array parameters make as many independent copies."""

    __slots__ = ("loc", "scale")
    data = ("loc", "scale")

    def __init__(self, loc: Any, scale: Any):
        for name, value, bad in (("loc", loc, math.nan), ("scale", scale, 0)):
            if isinstance(value, (int, float)) and (not math.isfinite(value) or value == bad):
                wanted = "a number" if name == "loc" else "a number other than 0"
                raise ParameterError(f"affine: {name} must be {wanted}, got {value!r}", where=caller_line())
        self.loc, self.scale = loc, scale

    def forward(self, x: Any) -> mx.array:
        return self.loc + self.scale * _array(x)

    def inverse(self, y: Any) -> mx.array:
        return (_array(y) - self.loc) / self.scale

    def log_abs_det_jacobian(self, x: Any) -> mx.array:
        scale = special.real(self.scale)
        size = mx.log(mx.abs(mx.where(scale == 0, math.nan, scale)))
        return mx.broadcast_to(size, mx.broadcast_shapes(_array(x).shape, size.shape))


class Sigmoid(Bijector):
    """y = 1 / (1 + e^-x), onto (0, 1)."""

    __slots__ = ()
    codomain = open_unit_interval

    def forward(self, x: Any) -> mx.array:
        return special.sigmoid(x)

    def inverse(self, y: Any) -> mx.array:
        return special.logit(y)

    def log_abs_det_jacobian(self, x: Any) -> mx.array:
        return special.log_sigmoid(x) + special.log_sigmoid(-_array(x))


class Softplus(Bijector):
    """y = log(1 + e^x), onto the positive numbers."""

    __slots__ = ()
    codomain = positive

    def forward(self, x: Any) -> mx.array:
        return special.softplus(x)

    def inverse(self, y: Any) -> mx.array:
        return special.log_expm1(y)

    def log_abs_det_jacobian(self, x: Any) -> mx.array:
        return special.log_sigmoid(x)


class Tanh(Bijector):
    """y = tanh x, onto (-1, 1)."""

    __slots__ = ()
    codomain = Interval(-1.0, 1.0, False, False, phrase="strictly between -1 and 1")

    def forward(self, x: Any) -> mx.array:
        return mx.tanh(special.real(x))

    def inverse(self, y: Any) -> mx.array:
        y = special.real(y)
        return 0.5 * (mx.log1p(y) - mx.log1p(-y))

    def log_abs_det_jacobian(self, x: Any) -> mx.array:
        # 1 - tanh^2 = 4 s(2x) s(-2x), with s the sigmoid: no cancellation in the tails.
        double = 2 * special.real(x)
        return 2 * math.log(2) + special.log_sigmoid(double) + special.log_sigmoid(-double)


class Power(Bijector):
    """y = x^exponent for positive x, for an exponent other than 0."""

    __slots__ = ("exponent",)
    data = ("exponent",)
    domain = codomain = positive

    def __init__(self, exponent: Any):
        if isinstance(exponent, (int, float)) and (not math.isfinite(exponent) or exponent == 0):
            raise ParameterError(
                f"power: the exponent must be a number other than 0, got {exponent!r}", where=caller_line()
            )
        self.exponent = exponent

    def forward(self, x: Any) -> mx.array:
        return mx.power(special.real(x), self._exponent)

    def inverse(self, y: Any) -> mx.array:
        return mx.power(special.real(y), 1 / self._exponent)

    def log_abs_det_jacobian(self, x: Any) -> mx.array:
        p = self._exponent
        return mx.log(mx.abs(p)) + (p - 1) * mx.log(special.real(x))

    @property
    def _exponent(self) -> mx.array:
        p = special.real(self.exponent)
        return mx.where(p == 0, math.nan, p)


class Reciprocal(Bijector):
    """y = 1 / x, for any number but 0."""

    __slots__ = ()

    def forward(self, x: Any) -> mx.array:
        return 1 / special.real(x)

    def inverse(self, y: Any) -> mx.array:
        return 1 / special.real(y)

    def log_abs_det_jacobian(self, x: Any) -> mx.array:
        return -2 * mx.log(mx.abs(special.real(x)))


class FromFunction(Bijector):
    """A pair of functions of one number, which are given the elements of an array one by one.

    The derivative is found by differentiation. A value that ``forward`` does not return to from its ``inverse`` is not
    in the codomain.
    """

    __slots__ = ("function", "back", "domain", "given_codomain")

    def __init__(self, forward: Callable, inverse: Callable, domain: Support, codomain: Support | None):
        self.function, self.back, self.domain, self.given_codomain = forward, inverse, domain, codomain

    @property
    def codomain(self) -> Support:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.given_codomain or real

    def forward(self, x: Any) -> mx.array:
        return _each(self.function, special.real(x), self.function)

    def inverse(self, y: Any) -> mx.array:
        return _each(self.back, special.real(y), self.back)

    def log_abs_det_jacobian(self, x: Any) -> mx.array:
        return mx.log(mx.abs(_each(mx.grad(self.function), special.real(x), self.function)))

    def inverse_and_log_det(self, y: Any) -> tuple[mx.array, mx.array]:
        """The inverse, and log |d inverse / dy|."""
        x = self.inverse(y)
        return x, -self.log_abs_det_jacobian(x)

    def reaches(self, y: mx.array) -> mx.array:
        y = special.real(y)
        there = self.forward(self.inverse(y))
        return mx.logical_and(self.codomain.contains(y), mx.abs(there - y) <= 1e-3 * mx.abs(y) + 1e-6)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


def from_function(
    forward: Callable, inverse: Callable, domain: Support | None = real, codomain: Support | None = None
) -> Bijector:
    """A bijector of two functions of one number, each the inverse of the other on the ``domain``.

    The Jacobian is found by differentiation. An inverse that is none raises, the first time the pair is seen, unless
    the domain is not known (None).

    >>> cube = from_function(lambda x: x**3, lambda y: mx.sign(y) * mx.abs(y) ** (1 / 3))
    >>> round(cube.log_abs_det_jacobian(2.0).item(), 5)     # log 12
    2.48491
    """
    for what, f in (("forward", forward), ("inverse", inverse)):
        if not callable(f):
            raise UsageError(f"the {what} function is {f!r:.60}", expected="a function", where=caller_line())
    found = FromFunction(forward, inverse, domain or real, codomain)
    pair = tuple([getattr(f, "__code__", None) or id(f) for f in (forward, inverse)])
    if pair not in _tried and (points := _points_inside(domain)) is not None:
        _require_inverse(found, points)
        _tried.add(pair)
    return found


_tried: set = set()


def _require_inverse(bijector: FromFunction, points: mx.array) -> None:
    back = bijector.inverse(bijector.forward(points))
    try:
        near = mx.all(mx.abs(back - points) <= 1e-3 * (1 + mx.abs(points))).item()
    except ValueError:  # the functions close over what is being traced: there are no values to compare
        return
    if not near:
        raise ParameterError(
            f"the inverse does not undo {bijector!r}: from {points.tolist()} it returns to {back.tolist()}",
            expected=f"inverse(forward(x)) == x for x {bijector.domain.phrase}",
            where=caller_line(),
        )


def _points_inside(domain: Support | None) -> mx.array | None:
    """A few points to try a bijector on; None for a set with no known bounds."""
    if domain is real:
        return mx.array([-1.7, 0.3, 2.1])
    if not isinstance(domain, Interval) or not all(isinstance(b, (int, float)) for b in (domain.lo, domain.hi)):
        return None
    lo, hi = domain.lo, domain.hi
    if math.isinf(lo) or math.isinf(hi):
        return mx.array([hi - d if math.isinf(lo) else lo + d for d in (0.3, 1.1, 2.5)])
    return mx.array([lo + part * (hi - lo) for part in (0.15, 0.4, 0.8)])


def _each(f: Callable, x: mx.array, shown: Callable) -> mx.array:
    """``f`` of every element. A function of the array as a whole would have another Jacobian, so it never sees it."""
    name = getattr(shown, "__name__", repr(shown))
    try:
        y = vmap(f)(x.reshape(-1))
    except (ValueError, IndexError) as error:
        if "dimension" not in str(error) and "xis" not in str(error):
            raise
        raise _not_elementwise(name, str(error)) from error
    if not isinstance(y, mx.array) or y.shape != (x.size,):
        raise _not_elementwise(name, f"of a number it returns {getattr(y, 'shape', [None])[1:]}")
    return y.reshape(x.shape)


def _not_elementwise(name: str, why: str) -> UsageError:
    return UsageError(
        f"{name} is not a function of one number: {why}",
        expected="an elementwise function; transforms of whole vectors are not supported",
        hint="affine(loc, scale) for parameters that are arrays; a @distribution of your own for anything else",
    )


def _array(x: Any) -> mx.array:
    return x if isinstance(x, mx.array) else mx.array(x)


exp = Exp()
log = exp.inverted()
affine = Affine
sigmoid = Sigmoid()
logit = sigmoid.inverted()
softplus = Softplus()
tanh = Tanh()
power = Power
reciprocal = Reciprocal()
