"""``distribution``: a family of one's own, from a sampler and a log density."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx.backend.mapping import vmap
from genmlx.choicemap import show_type
from genmlx.dist.distribution import Distribution, DistTrace
from genmlx.dist.support import Support, Vector, integer, real
from genmlx.dist.values import as_array, as_parameter
from genmlx.errors import GenError, MissingChoice, UsageError, ValueMismatch, caller_line
from genmlx.random import key_array

_OPTIONS = ("support", "discrete", "reparameterised", "event_shape", "mean", "variance", "parameters")


class Custom(Distribution):
    """A family made by ``distribution``."""

    def __init__(self, name: str, sample: Callable, log_prob: Callable, options: dict):
        super().__init__(name)
        self.draw_one, self.density = sample, log_prob
        names, self.defaults = _signature(name, sample, log_prob)
        declared = options.get("parameters") or {}
        if unknown := [n for n in declared if n not in names]:
            raise UsageError(
                f"{name}: no parameter {unknown[0]!r} in log_prob", expected=f"one of {names}", where=caller_line()
            )
        self.parameters = {n: declared.get(n) for n in names}
        given, discrete = options.get("support"), options.get("discrete")
        self.set_of = given if given is not None else integer if discrete else real
        if isinstance(given, Support) and discrete is not None and bool(discrete) != given.discrete:
            raise UsageError(
                f"{name}: discrete={discrete!r} with a support that is {given.phrase}", where=caller_line()
            )
        self.reparameterised = bool(options.get("reparameterised", False))
        self.event, self.moments = options.get("event_shape"), {w: options.get(w) for w in ("mean", "variance")}

    def params(self, args: tuple) -> tuple:
        """Parameters with a declared set become floating arrays; the others stay as the user passed them."""
        return tuple([
            value if spec is None else as_parameter(value, name, self.__name__)
            for value, (name, spec) in zip(args, self.parameters.items(), strict=True)
        ])  # fmt: skip

    def support_of(self, *params: Any) -> Support:
        support = self.set_of if isinstance(self.set_of, Support) else self.set_of(*params)
        missing = len(self.event_shape(*params)) - support.event_ndim
        return Vector(support, missing) if missing > 0 else support

    def event_shape(self, *params: Any) -> tuple:
        return self._declared_event(params) if self.event is not None else self._shapes(params)[1]

    def batch_shape(self, *params: Any) -> tuple:
        return self._shapes(params)[0]

    def _mean(self, *params: Any) -> Any:
        return self._moment("mean", params)

    def _variance(self, *params: Any) -> Any:
        return self._moment("variance", params)

    def _moment(self, which: str, params: tuple) -> Any:
        found = self.moments[which]
        found = found(*params) if callable(found) else found
        return None if found is None else as_array(found)

    # One draw decides the shapes, so that a sampler needs no declaration: what log_prob of a draw keeps is the batch,
    # the rest of a draw is the event. Nothing of this draw is computed.

    def _shapes(self, params: tuple) -> tuple[tuple, tuple]:
        value = self._one(mx.random.key(0), params)
        return self._split(value, self._of(value, params), params)

    def _split(self, value: mx.array, lp: mx.array, params: tuple) -> tuple[tuple, tuple]:
        batch = lp.shape
        event = value.shape[lp.ndim :] if self.event is None else self._declared_event(params)
        if value.shape != (*batch, *event):
            fixed = "" if self.event is None else f", with an event of {list(event)}"
            raise ValueMismatch(
                f"{self.__name__}: sample returned {show_type(value)}, of which log_prob made {show_type(lp)}",
                expected=f"one draw for these parameters, whose leading axes are those of its log density{fixed}",
                hint="draw noise of the broadcast shape of array parameters; sum log_prob over the axes of an event",
            )
        return batch, event

    def _declared_event(self, params: tuple) -> tuple:
        event = self.event(*params) if callable(self.event) else self.event
        return (event,) if isinstance(event, int) else tuple(event)  # pyright: ignore[reportArgumentType]

    def _one(self, key: Any, params: tuple) -> mx.array:
        """One draw of the user's sampler, in the dtype of its kind."""
        drawn = self.draw_one(key, *params)
        try:
            value = as_array(drawn)
        except GenError:
            raise ValueMismatch(
                f"{self.__name__}: sample returned a {type(drawn).__name__}", expected="an array"
            ) from None
        discrete = self.set_of.discrete if isinstance(self.set_of, Support) else self.set_of(*params).discrete
        if discrete:
            value = value.astype(mx.int32)
        elif not mx.issubdtype(value.dtype, mx.floating):
            value = value.astype(mx.float32)
        return value if self.reparameterised else mx.stop_gradient(value)

    def _of(self, value: mx.array, params: tuple) -> mx.array:
        return as_array(self.density(value, *params))

    # draws and densities

    def _sample(self, key: Any, shape: tuple, *params: Any) -> mx.array:
        batch, event = self._shapes(params)
        lead = shape[: len(shape) - len(batch)]
        if shape[len(lead) :] != batch:
            raise ValueMismatch(f"{self.__name__} draws {list(batch)} at once", expected=f"a batch of {list(shape)}")
        key = key_array(key)
        if not lead:
            return self._one(key, params)
        count = math.prod(lead)
        if count == 0:
            return mx.zeros((*lead, *batch, *event), dtype=self._one(key, params).dtype)
        draws = vmap(lambda k: self._one(k, params))(mx.random.split(key, count))
        return draws.reshape(*lead, *batch, *event)

    def _log_density(self, x: mx.array, *params: Any) -> mx.array:
        if x.ndim == 0:
            return self._of(x, params)
        batch, event = self._shapes(params)
        extra = x.ndim - len(batch) - len(event)
        if extra <= 0:
            return self._of(x, params)
        lead = x.shape[:extra]
        if x.size == 0:
            return mx.zeros((*lead, *batch))
        each = vmap(lambda one: self._of(one, params))(x.reshape(-1, *x.shape[extra:]))
        return each.reshape(*lead, *each.shape[1:])

    def _simulate(self, args: tuple, key: Any) -> DistTrace:
        if key is None:
            raise MissingChoice("no value is given", expected=f"a value of {self.__name__}")
        params = self.params(args)
        value = self._one(key_array(key), params)
        self._split(value, self._of(value, params), params)
        return DistTrace(self, args, value, self._score(value, params))

    def __reduce__(self) -> Any:
        return self.__qualname__  # the name of a global of the user's module, as for a function

    __qualname__: str


def distribution(sample: Any, log_prob: Callable | None = None, *, name: str | None = None, **options: Any) -> Any:
    """A distribution of one's own: a decorator of a class, or called with a pair of functions.

    ``sample(key, *params)`` receives a plain MLX key and returns one draw of the natural shape for the parameters;
    ``log_prob(x, *params)`` is its log density there, which becomes -inf outside the ``support``. In a class both can
    be plain functions, static methods, or methods with ``self``. The parameters, with their defaults, are those of
    ``log_prob``. They arrive as they were passed, numbers as numbers, except under a gradient or in a batch, where
    real ones are arrays. ``d.sample(shape=...)`` runs ``sample`` under ``mx.vmap``.

    Options, as attributes of the class or as keywords: ``support`` (default ``real``; a set of
    ``genmlx.dist.support`` or a function of the parameters), ``discrete`` (then the default is the whole numbers),
    ``reparameterised`` (default False: no gradient passes through a draw), ``event_shape`` (default: the axes of a
    draw that its log density lacks; a shape or a function of the parameters), ``mean`` and ``variance`` (values or
    functions of the parameters), and ``parameters`` ({name: set}: such a parameter is checked, and arrives as a
    floating array).

    >>> from genmlx.dist.support import positive
    >>> @distribution
    ... class rayleigh:
    ...     support = positive
    ...     def sample(key, scale=1.0):
    ...         return scale * mx.sqrt(-2 * mx.log(1 - mx.random.uniform(key=key)))
    ...     def log_prob(x, scale=1.0):
    ...         return mx.log(x / scale**2) - x**2 / (2 * scale**2)
    >>> rayleigh(2.0).log_prob(2.0).item(), rayleigh().log_prob(-1.0).item()
    (-1.1931471824645996, -inf)
    >>> rayleigh().sample(shape=(3,)).shape
    (3,)
    """
    if isinstance(sample, type) and log_prob is None:
        return _from_class(sample, name, options)
    if not callable(sample) or not callable(log_prob):
        raise UsageError(
            f"distribution was given {sample!r:.60}" + ("" if log_prob is None else f" and {log_prob!r:.60}"),
            expected="a class with sample and log_prob, or the two functions",
            where=caller_line(),
        )
    if unknown := [o for o in options if o not in _OPTIONS]:
        raise UsageError(
            f"distribution: no option {unknown[0]!r}", expected=f"of {', '.join(_OPTIONS)}", where=caller_line()
        )
    default = getattr(log_prob, "__name__", "custom")
    family = Custom(name or default, sample, log_prob, options)
    family.__qualname__, family.__module__ = family.__name__, getattr(log_prob, "__module__", __name__)
    return family


def _from_class(cls: type, name: str | None, options: dict) -> Custom:
    instance = None
    found: dict[str, Any] = {}
    for attribute in ("sample", "log_prob", *_OPTIONS):
        raw = inspect.getattr_static(cls, attribute, None)
        if inspect.isfunction(raw) and next(iter(inspect.signature(raw).parameters), None) == "self":
            instance = cls() if instance is None else instance
            found[attribute] = getattr(instance, attribute)
        elif raw is not None:
            found[attribute] = getattr(cls, attribute)
    for needed in ("sample", "log_prob"):
        if not callable(found.get(needed)):
            raise UsageError(
                f"@distribution class {cls.__name__} has no function {needed!r}",
                expected="sample(key, *params) and log_prob(x, *params)",
                where=caller_line(),
            )
    family = Custom(name or cls.__name__, found.pop("sample"), found.pop("log_prob"), {**found, **options})
    family.__doc__, family.__module__, family.__qualname__ = cls.__doc__, cls.__module__, cls.__qualname__
    return family


def _signature(name: str, sample: Callable, log_prob: Callable) -> tuple[list[str], dict[str, Any]]:
    """The names and the defaults of the parameters: those of ``log_prob`` after the value."""
    counts = []
    for what, function, first in (("sample", sample, "key"), ("log_prob", log_prob, "x")):
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters):
            raise UsageError(
                f"{name}: {what}{inspect.signature(function)} does not name its parameters",
                expected=f"{what}({first}, mu, sigma), with a name for each",
                where=caller_line(),
            )
        counts.append(parameters[1:])
    drawn, scored = counts
    if len(drawn) != len(scored):
        raise UsageError(
            f"{name}: sample takes {len(drawn)} parameters and log_prob {len(scored)}",
            expected=f"sample(key, {', '.join(p.name for p in scored)})",
            where=caller_line(),
        )
    return [p.name for p in scored], {p.name: p.default for p in scored if p.default is not p.empty}
