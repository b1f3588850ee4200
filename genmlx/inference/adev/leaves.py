"""How a site is drawn under each estimator: leaves of a choice map that a distribution asks for its draw."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.dist.bijectors import Bijector
from genmlx.dist.distribution import DistCall, Distribution, DistTrace
from genmlx.dist.support import Integers, Real, Support, Vector, real
from genmlx.dist.transformed import Image
from genmlx.free import Drawn
from genmlx.inference.adev.measure_valued import RULES
from genmlx.inference.log_density import is_traced
from genmlx.masked import host_value
from genmlx.pytree import all_slots, register_slots
from genmlx.random import split


class Stopped(Drawn):
    """A draw through which no derivative passes. Its score is differentiable in the parameters."""

    __slots__ = ()

    def draw(self, family: Distribution, args: tuple, key: Any) -> DistTrace:
        value = mx.stop_gradient(family._simulate(args, key).retval)
        return DistTrace(family, args, value, family._score(value, family.params(args)))


class Perturbed(Drawn):
    """A draw of which one element may come from a part of the weak derivative in a parameter.

    The array says so for each element: 0 for a draw of the family itself, 2 j + 1 for the positive part of the
    derivative in the j-th of the parameters at ``places``, 2 j + 2 for the negative part.
    """

    __slots__ = ("places",)

    def __init__(self, array: mx.array, places: tuple[int, ...]):
        super().__init__(array)
        self.places = places

    def draw(self, family: Distribution, args: tuple, key: Any) -> PerturbedTrace:
        params = family.params(args)
        own_key, rule_key = split(key)
        shape = family.batch_shape(*params)
        fixed = [mx.stop_gradient(p) for p in params]
        value = nominal = family._sample(own_key, shape, *fixed)
        every = RULES[type(family)](rule_key, nominal, *fixed)
        for j, place in enumerate(self.places):
            part = every[place]
            value = mx.where(self.array == 2 * j + 1, part.plus.astype(value.dtype), value)
            value = mx.where(self.array == 2 * j + 2, part.minus.astype(value.dtype), value)
        columns = [mx.broadcast_to(params[place], shape) for place in self.places]
        scales = [mx.broadcast_to(every[place].scale, shape) for place in self.places]
        return PerturbedTrace(
            family, args, value, family._score(value, params), mx.stack(columns, -1), mx.stack(scales, -1)
        )


class PerturbedTrace(DistTrace):
    """A draw with the parameters that vary and the scales of their weak derivatives, ``[*shape, parameters]``."""

    __slots__ = ("varied", "scales")
    data = ("args", "retval", "score", "varied", "scales")

    varied: mx.array
    scales: mx.array

    def __init__(self, gen_fn: Any, args: tuple, value: Any, score: Any, varied: mx.array, scales: mx.array):
        super().__init__(gen_fn, args, value, score)
        object.__setattr__(self, "varied", varied)
        object.__setattr__(self, "scales", scales)


class Traits(NamedTuple):
    """What a family says of itself at a site.

    ``values`` are those of one element, where they are known before the run. ``varying`` are the places of the
    parameters that depend on what is differentiated, or on other draws; ``moving`` says whether the support does.
    """

    family: Distribution
    reparameterised: bool
    values: range | None
    varying: tuple[int, ...]
    moving: bool


class Asked(Drawn):
    """A draw that writes down what its family is: ``record[address]`` gets the ``Traits`` of each that is met there.

    It is for a batch whose lanes have all that is differentiated as their own: what depends on it has no value yet.
    """

    __slots__ = ("address", "record")

    def __init__(self, array: mx.array, address: tuple, record: dict):
        super().__init__(array)
        self.address, self.record = address, record

    def draw(self, family: Distribution, args: tuple, key: Any) -> DistTrace:
        params = family.params(args)
        support = family.support_of(*params)
        varying = tuple(i for i, arg in enumerate(args) if isinstance(arg, mx.array) and is_traced(arg))
        moving = not support.discrete and _moves(support)
        traits = Traits(family, family.reparameterised_of(*params), _values(support), varying, moving)
        self.record.setdefault(self.address, []).append(traits)
        return family._simulate(args, key)


for _kind in (Stopped, Perturbed, Asked):
    register_slots(_kind, ("array",))


def _moves(part: Any) -> bool:
    """Whether a set is made of something that has no value yet."""
    if isinstance(part, mx.array):
        return is_traced(part)
    if isinstance(part, (list, tuple)):
        return any(map(_moves, part))
    if isinstance(part, Image) and part.bijector.codomain is real and isinstance(_element(part.base), Real):
        return False  # all of the real line is mapped onto all of it
    if isinstance(part, (Support, Bijector)):
        return any(_moves(getattr(part, slot)) for slot in all_slots(type(part)))
    return isinstance(part, DistCall) and any(map(_moves, part.args))


def _element(support: Support) -> Support:
    while isinstance(support, Vector):
        support = support.element
    return support


def _values(support: Support) -> range | None:
    """The values of each element of a finite set of whole numbers; None where they are not known before the run."""
    support = _element(support)
    if not isinstance(support, Integers):
        return None
    ends: Any = [host_value(end) for end in (support.lo, support.hi)]
    if any(end is None or not math.isfinite(end) for end in ends):  # traced, infinite, or one for each element
        return None
    return range(int(ends[0]), int(ends[1]) + 1)
