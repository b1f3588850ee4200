"""Gaussian choices of a model as the standard normal noise that makes them, and what the rest of the model says of it.

With x = mean + L z for each of them, whatever mean and L depend on, their prior is that of independent z ~ N(0, I): the
form in which elliptical slices go through any Gaussian prior (Murray, Adams and MacKay 2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.backend.linalg import cholesky, factor_stream
from genmlx.backend.mapping import vmap_list
from genmlx.choicemap import ChoiceMap, from_items
from genmlx.dist.distribution import Distribution, DistTrace
from genmlx.dist.log_normal import log_normal
from genmlx.dist.multivariate_normal import multivariate_normal
from genmlx.dist.values import as_array
from genmlx.errors import UsageError
from genmlx.free import Drawn
from genmlx.gfi import as_weight
from genmlx.gradients import host_value_errors
from genmlx.inference.problem import latents
from genmlx.inference.sites import site_at
from genmlx.masked import Masked
from genmlx.params import overridden, peek
from genmlx.pytree import register_slots, split_arrays
from genmlx.random import Tape
from genmlx.trace import Trace
from genmlx.vectorized import VectorizedTrace, run

_CLOSE = 1e-3
"""What a choice may differ by, of its size, from what its noise makes of it again in float32."""


class Noise(Drawn):
    """The standard normal noise of a draw, of the shape that its distribution asks for."""

    __slots__ = ()

    def draw(self, family: Distribution, args: tuple, key: Any) -> DistTrace:
        return family._simulate(args, Tape(draws=[self.array]))


register_slots(Noise, ("array",))


class Place(NamedTuple):
    """One latent choice: its share of the vector, its shape, and its dtype; or None of one that is given as noise."""

    share: slice
    shape: tuple
    dtype: Any


class NoiseDensity:
    """log p(all but the moved choices | their noise), on R^dim.

    A vector has the noise of the choices that are ``moved`` in its first ``n_moved`` numbers, and then the values of
    the other latent choices. ``starts [n, dim]`` are those of a batch of traces. What float32 cannot say of them raises
    UsageError.
    """

    def __init__(self, starts: VectorizedTrace, moved: list[tuple], observations: ChoiceMap):
        self.gen_fn, self._args, self.observations = starts.gen_fn, starts.args, observations
        # What is not evaluated yet would become a part of the graph.
        mx.eval(split_arrays((self._args, observations))[0])
        self._params = list(starts[0].reads())
        found = dict(starts.choices.filter(latents(observations)).items())
        for address, value in found.items():
            if isinstance(value, Masked):
                raise UsageError("a choice that exists in some runs only has no place in a vector", address=address)
        noise = run(lambda key, trace: [noise_of(trace, a) for a in moved], starts.n, None, starts)
        columns: dict[tuple, mx.array] = dict(zip(moved, noise, strict=True))
        columns |= {address: value for address, value in found.items() if address not in columns}
        self.dim, self._places, self._order = 0, {}, list(found)
        for address, column in columns.items():
            start, shape, stays = self.dim, column.shape[1:], address not in moved
            self.dim += math.prod(shape)
            self._places[address] = Place(slice(start, self.dim), shape, column.dtype if stays else None)
        self.n_moved = sum(math.prod(column.shape[1:]) for column in noise)
        flat = [as_array(column).astype(mx.float32).reshape(starts.n, -1) for column in columns.values()]
        self.starts = mx.concatenate(flat, axis=1)
        self._require_round_trip(found)

    def of_one(self, gradient: bool) -> tuple[Callable[..., list], list[mx.array]]:
        """The density, and the log joint density of all choices, of one vector and of the model's parameters.

        As for a ``LogDensity``, without gradients.
        """
        assert not gradient

        def f(u: mx.array, *params: mx.array) -> list:
            with overridden(dict(zip(self._params, params, strict=True))):
                trace, weight = self._lane(u)
            return [as_weight(weight), as_weight(trace.score)]

        return f, [as_array(peek(model, name)) for model, name in self._params]

    def joint(self, u: mx.array) -> mx.array:
        """The log joint density of all choices at vectors ``[n, dim]``."""
        return vmap_list(lambda row: [as_weight(self._lane(row)[0].score)], u)[0]

    def unpack(self, u: mx.array) -> ChoiceMap:
        """The latent choices of vectors ``[n, dim]``: a choice map of ``n`` lanes."""

        def values(row: mx.array) -> list:
            choices = self._lane(row)[0].choices
            return [as_array(choices[address]) for address in self._order]

        return from_items(zip(self._order, vmap_list(values, u), strict=True), u.shape[0])

    def _lane(self, u: mx.array) -> tuple[Trace, Any]:
        given = []
        for address, place in self._places.items():
            share = u[place.share].reshape(place.shape)
            given.append((address, Noise(share) if place.dtype is None else share.astype(place.dtype)))
        with host_value_errors("batched"):
            return self.gen_fn._generate(self._args, self.observations.merge(from_items(given)), None)

    def _require_round_trip(self, found: dict) -> None:
        again = dict(self.unpack(self.starts).items())
        for address, value in found.items():
            same = again[address] == value
            if self._places[address].dtype is None:
                same = mx.abs(again[address] - value) <= _CLOSE * (1.0 + mx.abs(value))
            if not mx.all(same).item():
                raise UsageError("a choice that float32 does not hold, or its noise", address=address)


def noise_of(trace: Trace, address: tuple) -> mx.array:
    """The standard normal noise that makes a choice what it is."""
    site = site_at(trace, address)
    assert site is not None
    value, (center, spread) = site.retval, site.gen_fn.params(site.args)
    if site.gen_fn is log_normal:
        value = mx.log(value)
    if site.gen_fn is multivariate_normal:
        inverse = mx.linalg.tri_inv(cholesky(spread), stream=factor_stream())
        return (inverse @ (value - center)[..., None])[..., 0]
    return (value - center) / spread
