"""What a distribution is: a sampler, a log density and a support, and through them a generative function."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.backend.sums import summed
from genmlx.choicemap import EMPTY, ChoiceMap
from genmlx.diff import NoChange, UnknownChange, same
from genmlx.dist.support import Support
from genmlx.dist.values import as_parameter, as_site_value, is_host_data, shape_mismatch
from genmlx.errors import AddressError, MissingChoice, ParameterError, UsageError, caller_line
from genmlx.free import Drawn, Fixed, Free, Pointwise
from genmlx.gfi import Call, GenerativeFunction, unchanged
from genmlx.masked import active_of, mask_choices, value_of, where
from genmlx.pytree import register_slots
from genmlx.random import as_key
from genmlx.selection import Selection
from genmlx.trace import Trace


class DistTrace(Trace):
    """One draw, or one given value: its own choice, at the empty address."""

    __slots__ = ()

    def __init__(self, gen_fn: Distribution, args: tuple, value: Any, score: Any):
        put = object.__setattr__
        put(self, "gen_fn", gen_fn)
        put(self, "args", args)
        put(self, "retval", value)
        put(self, "score", score)
        put(self, "pins", _NO_PINS)

    @property
    def choices(self) -> ChoiceMap:
        return ChoiceMap(self.retval)


class PointwiseTrace(DistTrace):
    """A given value that shows its log densities, unsummed, as its choice."""

    __slots__ = ("densities",)
    data = ("args", "retval", "score", "densities")

    densities: mx.array

    def __init__(self, gen_fn: Distribution, args: tuple, value: Any, score: Any, densities: mx.array):
        super().__init__(gen_fn, args, value, score)
        object.__setattr__(self, "densities", densities)

    @property
    def choices(self) -> ChoiceMap:
        return ChoiceMap(self.densities)


_NO_PINS: dict = {}


class DistCall(Call):
    """A distribution with its parameters."""

    __slots__ = ()
    gen_fn: Distribution

    def sample(self, key: Any = None, shape: tuple | int = ()) -> mx.array:
        """Independent draws, ``[*shape, *batch_shape, *event_shape]``."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return self.gen_fn.sample(self.args, as_key(key), shape)

    def log_prob(self, value: Any) -> mx.array:
        """Log density: elementwise over batch axes, summed over event axes; -inf outside the support."""
        return self.gen_fn.log_prob(value, self.args)

    @property
    def support(self) -> Support:
        return self.gen_fn.support_of(*self.gen_fn.params(self.args))

    @property
    def event_shape(self) -> tuple:
        """The shape of one draw, parameters' batch axes aside: () for a scalar family."""
        return self.gen_fn.event_shape(*self.gen_fn.params(self.args))

    @property
    def batch_shape(self) -> tuple:
        """The shape over which the parameters make independent copies."""
        return self.gen_fn.batch_shape(*self.gen_fn.params(self.args))

    @property
    def reparameterised(self) -> bool:
        return self.gen_fn.reparameterised_of(*self.gen_fn.params(self.args))

    @property
    def mean(self) -> mx.array:
        return self._moment("mean")

    @property
    def variance(self) -> mx.array:
        return self._moment("variance")

    def _moment(self, which: str) -> mx.array:
        params = self.gen_fn.params(self.args)
        found = getattr(self.gen_fn, f"_{which}")(*params)
        if found is None:
            raise UsageError(f"{self.gen_fn.__name__} has no {which} in closed form")
        return mx.broadcast_to(found, (*self.gen_fn.batch_shape(*params), *self.gen_fn.event_shape(*params)))


register_slots(DistCall, ("raw_args", "raw_kwargs"))


class Distribution(GenerativeFunction):
    """A family of distributions. ``normal(0, 1)`` is a call: the family with its parameters.

    A family says what its ``parameters`` are (name: the set each lies in) and their ``defaults``, its ``support``
    (or ``support_of`` the parameters), whether it is ``reparameterised``, and implements ``_sample`` and
    ``_log_density``, and ``_mean`` and ``_variance`` where they have a closed form. Parameters arrive as floating
    arrays. An elementwise family over array parameters is the independent product over their broadcast shape:
    ``log_prob`` keeps those batch axes, and a site sums over them.
    """

    parameters: dict[str, Support | None] = {}
    defaults: dict[str, Any] = {}
    support: Support
    reparameterised = False
    guarded = True  # False where the formula itself gives -inf outside the support
    precise = False  # True where float32 loses digits in the tails, by squares or exponentials of rounded numbers
    call_type: type[DistCall] = DistCall

    def __init__(self, name: str | None = None):
        self.__name__ = name or type(self).__name__
        self.__doc__ = type(self).__doc__

    # what a family implements

    def _sample(self, key: Any, shape: tuple, *params: Any) -> mx.array:
        """Draws of shape ``[*shape, *event_shape]``; ``shape`` ends in the batch shape."""
        raise NotImplementedError

    def _log_density(self, x: mx.array, *params: Any) -> mx.array:
        """The log density at points inside the support, elementwise over batch axes."""
        raise NotImplementedError

    def _mean(self, *params: Any) -> Any:
        return None

    def _variance(self, *params: Any) -> Any:
        return None

    def support_of(self, *params: Any) -> Support:
        return self.support

    def reparameterised_of(self, *params: Any) -> bool:
        return self.reparameterised

    def event_shape(self, *params: Any) -> tuple:
        return ()

    def batch_shape(self, *params: Any) -> tuple:
        shapes = []
        for p, spec in zip(params, self.parameters.values(), strict=True):
            if spec is not None:
                shapes.append(p.shape[: p.ndim - spec.event_ndim])
        if not any(shapes):
            return ()
        try:
            return mx.broadcast_shapes(*shapes)
        except ValueError:
            given = ", ".join(f"{n} {list(p.shape)}" for n, p in zip(self.parameters, params, strict=True))
            raise ParameterError(f"{self.__name__}: the parameters' shapes do not broadcast: {given}") from None

    # parameters

    def __call__(self, *args: Any, **kwargs: Any) -> DistCall:
        args = self.bind(args, kwargs)
        for value, (name, spec) in zip(args, self.parameters.items(), strict=True):
            if spec is not None and is_host_data(value):
                self.check_parameter(name, value, spec)
        self.check_parameters(*args)
        return self.call_type(self, args, {})

    def bind(self, args: Any, kwargs: dict | None = None) -> tuple:
        if isinstance(args, Call):
            return args.raw_args
        names = self.parameters
        if not kwargs and len(args) == len(names):
            return tuple(args)
        given = dict(zip(names, args, strict=False))
        twice = given.keys() & (kwargs or {}).keys()
        given.update(kwargs or {})
        unknown = [k for k in given if k not in names]
        missing = [k for k in names if k not in given and k not in self.defaults]
        if len(args) > len(names) or twice or unknown or missing:
            shown = ", ".join(f"{n}={self.defaults[n]!r}" if n in self.defaults else n for n in names)
            problem = (
                f"no parameter {unknown[0]!r}" if unknown
                else f"{next(iter(twice))!r} is given twice" if twice
                else f"{missing[0]!r} is missing" if missing
                else f"{len(args)} parameters are too many"
            )  # fmt: skip
            raise UsageError(
                f"{self.__name__}: {problem}", expected=f"{self.__name__}({shown})", where=caller_line()
            )
        return tuple([given.get(n, self.defaults.get(n)) for n in names])

    def check_parameter(self, name: str, value: Any, spec: Support) -> None:
        """Raise when a host number, list or array is not in the set of its parameter."""
        if not (spec.admits(value) if isinstance(value, (int, float)) else spec.admits_all(value)):
            raise ParameterError(
                f"{self.__name__}: {name} must be {spec.phrase}, got {value!r}", where=caller_line()
            )

    def check_parameters(self, *args: Any) -> None:
        """Raise when parameters that are host numbers do not go together."""

    def params(self, args: tuple) -> tuple:
        """The parameters as arrays."""
        return tuple(
            [
                value if spec is None else self._parameter(value, name, spec)
                for value, (name, spec) in zip(args, self.parameters.items(), strict=True)
            ]
        )

    def _parameter(self, value: Any, name: str, spec: Support) -> mx.array:
        array = as_parameter(value, name, self.__name__)
        if array.ndim < spec.event_ndim:
            raise ParameterError(f"{self.__name__}: {name} must be {spec.phrase}, got shape {list(array.shape)}")
        return array

    # densities and draws

    def sample(self, args: tuple, key: Any, shape: tuple = ()) -> mx.array:
        params = self.params(args)
        return self._sample(key, (*shape, *self.batch_shape(*params)), *params)

    def log_prob(self, value: Any, args: tuple) -> mx.array:
        params = self.params(args)
        support = self.support_of(*params)
        value = as_site_value(value, support.discrete)
        if support.event_ndim and value.shape[-support.event_ndim :] != self.event_shape(*params):
            raise shape_mismatch(value, self.event_shape(*params), self.__name__)
        return self._guarded(value, support, params)

    def _guarded(self, x: mx.array, support: Support, params: tuple) -> mx.array:
        if not self.guarded:
            return self._precise_density(x, params)
        # MLX carries the zero cotangent of a comparison on through what was compared, where 0 * inf is nan.
        inside = support.contains(mx.stop_gradient(x))
        spread = inside[(..., *[None] * support.event_ndim)] if support.event_ndim else inside
        lp = self._precise_density(mx.where(spread, x, support.interior(x).astype(x.dtype)), params)
        return mx.where(inside, lp, -math.inf)

    def _precise_density(self, x: mx.array, params: tuple) -> mx.array:
        """The log density, in float64 where the family asks for it and the device has it."""
        if not self.precise or mx.default_device().type != mx.cpu:
            return self._log_density(x, *params)
        return self._log_density(*[a.astype(mx.float64) for a in (x, *params)]).astype(mx.float32)

    # as a generative function

    def _simulate(self, args: tuple, key: Any) -> DistTrace:
        if key is None:
            raise MissingChoice("no value is given", expected=f"a value of {self.__name__}")
        params = self.params(args)
        value = self._sample(key, self.batch_shape(*params), *params)
        return DistTrace(self, args, value, self._score(value, params))

    def _generate(self, args: tuple, constraints: ChoiceMap, key: Any) -> tuple[DistTrace, Any]:
        if constraints.is_empty:
            return self._simulate(args, key), 0.0
        if isinstance(constraints.value, Drawn):
            return constraints.value.draw(self, args, key), 0.0
        if isinstance(constraints.value, Pointwise):
            return self._pointwise(args, constraints.value)
        if isinstance(constraints.value, (Free, Fixed)):
            from genmlx.dist.unconstrain import place

            return place(self, args, constraints.value)
        active, given = active_of(constraints.value), self._given(args, constraints)
        if active is True:
            return given, given.score
        if key is None:  # nothing else can be there: lanes without a value have no density
            score = mx.where(active, given.score, -math.inf)
            return DistTrace(self, args, given.retval, score), score
        return self._picked(active, given, self._simulate(args, key)), mx.where(active, given.score, 0.0)

    def _update(
        self, trace: Any, args: tuple, diffs: tuple, constraints: ChoiceMap, key: Any
    ) -> tuple[DistTrace, Any, Any, ChoiceMap]:
        if constraints.is_empty:
            new, weight = self._rescored(trace, args, diffs)
            return new, weight, NoChange, EMPTY
        active, new = active_of(constraints.value), self._given(args, constraints)
        if active is not True:
            new = self._picked(active, new, self._rescored(trace, args, diffs)[0])
        return new, new.score - trace.score, UnknownChange, mask_choices(trace.choices, active)

    def _regenerate(
        self, trace: Any, args: tuple, diffs: tuple, selection: Selection, key: Any
    ) -> tuple[DistTrace, Any, Any]:
        if selection.here:
            return self._simulate(args, key), 0.0, UnknownChange
        new, weight = self._rescored(trace, args, diffs)
        return new, weight, NoChange

    def _project(self, trace: Any, selection: Selection) -> Any:
        return where(selection.here, trace.score, 0.0)

    def unvisited(self, trace: Trace, constraints: ChoiceMap) -> list[tuple]:
        return []

    def _given(self, args: tuple, constraints: ChoiceMap) -> DistTrace:
        if not constraints.is_leaf:
            raise AddressError(
                f"a sub-map is given where {self.__name__} has one value:",
                expected="a number or an array",
                hint=f"remove what lies below: {', '.join(map(repr, constraints.addresses()[:3]))}",
            )
        params = self.params(args)
        support = self.support_of(*params)
        value = as_site_value(value_of(constraints.value), support.discrete)
        self._require_shape(value, params)
        return DistTrace(self, args, value, _sum(self._guarded(value, support, params)))

    def _pointwise(self, args: tuple, leaf: Pointwise) -> tuple[PointwiseTrace, Any]:
        params = self.params(args)
        support = self.support_of(*params)
        value = as_site_value(leaf.array, support.discrete)
        self._require_shape(value, params)
        densities = self._guarded(value, support, params)
        score = _sum(densities)
        return PointwiseTrace(self, args, value, score, densities), score

    def _require_shape(self, value: mx.array, params: tuple) -> None:
        shape = (*self.batch_shape(*params), *self.event_shape(*params))
        if value.shape != shape:
            raise shape_mismatch(value, shape, self.__name__)

    def _picked(self, active: mx.array, new: DistTrace, old: DistTrace) -> DistTrace:
        value, score = mx.where(active, new.retval, old.retval), mx.where(active, new.score, old.score)
        return DistTrace(self, new.args, value, score)

    def _rescored(self, trace: Any, args: tuple, diffs: tuple) -> tuple[DistTrace, Any]:
        if unchanged(diffs) or same(trace.args, args):
            return trace, 0.0
        params = self.params(args)
        self._require_shape(trace.retval, params)
        score = self._score(trace.retval, params)
        return DistTrace(self, args, trace.retval, score), score - trace.score

    def _score(self, value: mx.array, params: tuple) -> mx.array:
        return _sum(self._guarded(value, self.support_of(*params), params))

    def __repr__(self) -> str:
        return self.__name__

    def __reduce__(self) -> Any:
        return _family, (self.__name__,)


def _family(name: str) -> Distribution:
    from genmlx import dist

    return getattr(dist, name)


def _sum(lp: mx.array) -> mx.array:
    return summed(lp)


