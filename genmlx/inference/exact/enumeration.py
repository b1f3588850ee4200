"""The exact posterior of discrete choices, and of continuous ones on a grid: a table of every combination of values.

The body runs once, under one ``mx.vmap`` for each latent number, so a log density is computed only for the
combinations of the choices that it depends on; their sum is the table.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.address import normalise
from genmlx.backend.sums import summed
from genmlx.choicemap import ChoiceMap, from_items, show_value
from genmlx.errors import (
    ImpossibleObservation,
    ParameterError,
    UnknownAddress,
    UsageError,
    nearest,
    one_of,
    show_address,
)
from genmlx.gfi import Call, gen_errors
from genmlx.inference.exact.axes import Latent
from genmlx.inference.exact.results import single
from genmlx.inference.exact.table import Table, read_grids
from genmlx.inference.particles import Particles
from genmlx.inference.problem import checked_problem, positive_count
from genmlx.inference.resampling import multinomial
from genmlx.masked import Masked
from genmlx.random import as_key, split
from genmlx.vectorized import vgenerate
from genmlx.versions import pinned

_ROWS, _PROBABLE = 20, 3  # of the table that prints


class Enumeration:
    """The joint density of the latents and the observations, at every combination of the latents' values.

    ``log_joint`` [K1, K2, ...] has an axis for each latent number, in the order of the model's choices, and of the
    elements in an array. The axes of a choice that exists in some runs only have one more place, the last, for the runs
    without it. ``log_ml`` is the log of the observations' probability: the sum over all cells, times their volumes
    where there are grids.

    Statistics raise when the observations have probability zero; ``log_ml`` is then -inf.
    """

    def __init__(self, call: Call, observations: ChoiceMap, latents: list[Latent], log_joint: mx.array, pins: dict):
        self.call, self.observations, self.log_joint = call, observations, log_joint
        self._latents, self._pins = {latent.address: latent for latent in latents}, pins
        mass = log_joint
        for latent in latents:
            if latent.log_volumes is not None:
                missing = [mx.zeros((1,))] if latent.optional else []
                volumes = mx.concatenate([latent.log_volumes, *missing])
                for axis in latent.axes:
                    mass = mass + volumes.reshape([-1 if i == axis else 1 for i in range(mass.ndim)])
        top: Any = mx.max(mass).item()
        self.log_ml = mx.array(-math.inf)
        self._mass: mx.array | None = None
        if top > -math.inf:
            weights = mx.exp(mass - top)
            total = summed(weights)
            self.log_ml = mx.log(total) + top
            self._mass = weights / total
            mx.eval(self._mass)

    # what there is

    def addresses(self) -> list[tuple]:
        """The latent addresses."""
        return list(self._latents)

    def support(self, address: Any) -> mx.array:
        """The values that a latent, or each of its elements, is tried at, [K]."""
        return self._at(address)[0].values

    def axes(self, address: Any) -> list[int]:
        """The axes of ``log_joint`` that belong to a latent; ``(address, i)`` is the i-th element of an array."""
        return self._at(address)[1]

    # statistics

    def marginal(self, *addresses: Any) -> mx.array:
        """The probabilities of the values in ``support``: [K] for a number, [*shape, K] for the elements of an array.

        Of several latents, each one number or one element ``("z", 0)`` of an array: their joint probabilities
        [Ka, Kb, ...]. A choice that exists in some runs only adds up to the probability that it does. On a grid it is
        the probability of a point's cell: the density is that over the cell's volume.
        """
        if not addresses:
            raise UsageError("marginal of nothing", expected=one_of(self._latents))
        picked = [self._at(address) for address in addresses]
        if len(picked) == 1:
            latent, axes = picked[0]
            each = mx.stack([self._onto([axis], [latent]) for axis in axes])
            return each.reshape(*self._shape_at(addresses[0]), -1)
        for address, (latent, _) in zip(addresses, picked, strict=True):
            if self._shape_at(address):
                raise UsageError(
                    "a joint marginal takes single numbers, and this choice is an array",
                    address=latent.address,
                    expected=f"one of its elements, as {(*latent.address, *(0 for _ in latent.shape))!r}",
                )
        flat = [axes[0] for _, axes in picked]
        if len(set(flat)) < len(flat):
            raise UsageError("a joint marginal names a latent twice", expected=one_of(self._latents))
        return self._onto(flat, [latent for latent, _ in picked])

    def present(self, address: Any) -> mx.array:
        """The probability that a choice exists, of the shape of its value: 1 unless it does in some runs only."""
        return mx.sum(self.marginal(address), axis=-1)

    def mean(self, address: Any) -> mx.array:
        """The posterior mean at an address, of the shape of its value, given that the choice exists."""
        return single(self._moments(address)[0])

    def variance(self, address: Any) -> mx.array:
        """The posterior variance at an address, of the shape of its value, given that the choice exists."""
        return single(self._moments(address)[1])

    def std(self, address: Any) -> mx.array:
        """The posterior standard deviation at an address, of the shape of its value, given that the choice exists."""
        return mx.sqrt(self.variance(address))

    def mode(self) -> ChoiceMap:
        """The latents where ``log_joint`` is greatest, at the first such place, without what does not exist."""
        self._probabilities()
        return self._cell(_first_greatest(self.log_joint.reshape(-1)))

    def sample(self, n: int, key: Any = None) -> Particles:
        """``n`` independent traces from the posterior, of equal weight. Latents with a grid take its points only."""
        import numpy as np

        positive_count("n", n)
        table = self._probabilities()
        cell_key, key = split(as_key(key))
        cells = multinomial(np.array(table.reshape(-1), dtype=np.float64), n, cell_key)
        places: Any = np.unravel_index(cells, table.shape) if table.ndim else ()
        with pinned(self._pins):
            choices = from_items(
                (a, self._values(latent, [places[i] for i in latent.axes], n)) for a, latent in self._latents.items()
            )
            given = self.observations.merge(choices.batched(n)) if self._latents else self.observations
            traces, _ = vgenerate(self.call, given, n, key)
        return Particles(traces, mx.zeros((n,)), self.log_ml, self.call, self.observations)

    # the rest

    def _at(self, address: Any) -> tuple[Latent, list[int]]:
        """A latent and its axes, or that of one element."""
        address = normalise(address)
        if (latent := self._latents.get(address)) is not None:
            return latent, latent.axes
        for latent in self._latents.values():
            if latent.shape and self._is_element(latent, address):
                index, place = address[len(latent.address) :], 0
                for i, n in zip(index, latent.shape, strict=True):
                    place = place * n + i % n
                return latent, [latent.axes[place]]
        known = self.addresses()
        raise UnknownAddress(
            "no latent choice", address=address, suggestions=nearest(address, known), expected=one_of(known)
        )

    def _shape_at(self, address: Any) -> tuple:
        latent = self._latents.get(normalise(address))
        return () if latent is None else latent.shape

    def _is_element(self, latent: Latent, address: Any) -> bool:
        address = normalise(address)
        index = address[len(latent.address) :]
        return (
            address[: len(latent.address)] == latent.address
            and len(index) == len(latent.shape)
            and all(isinstance(i, int) and -n <= i < n for i, n in zip(index, latent.shape, strict=True))
        )

    def _probabilities(self) -> mx.array:
        if self._mass is None:
            raise ImpossibleObservation(
                "the observations have probability zero at every value of the latents",
                gen_fn=self.call.gen_fn,
                expected="at least one combination with a positive density",
                hint="a look at the observations and the supports, or a wider grid",
            )
        return self._mass

    def _onto(self, axes: list[int], latents: list[Latent]) -> mx.array:
        """The probabilities summed over all other axes, without the places for choices that do not exist."""
        table = self._probabilities()
        rest = [i for i in range(table.ndim) if i not in axes]
        summed_up = summed(mx.transpose(table, [*axes, *rest]), len(rest))
        return summed_up[tuple(slice(len(latent.values)) for latent in latents)]

    def _moments(self, address: Any) -> tuple[Any, Any]:
        return _mean_and_variance(self.marginal(address), self._at(address)[0].values)

    def _values(self, latent: Latent, places: list, n: int) -> mx.array:
        """The values [n, *shape] at places of the latent's axes."""
        import numpy as np

        index = np.stack(places, axis=-1).astype(np.int32) if places else np.zeros((n, 0), dtype=np.int32)
        return latent.inputs[0][mx.array(index)].reshape(n, *latent.shape)

    def _cell(self, cell: int) -> ChoiceMap:
        import numpy as np

        places: Any = np.unravel_index(cell, self.log_joint.shape) if self.log_joint.ndim else ()
        leaves = []
        for address, latent in self._latents.items():
            own = [places[i] for i in latent.axes]
            value = self._values(latent, [place[None] for place in own], 1)[0]
            there = [bool(place < len(latent.values)) for place in own]
            if all(there):
                leaves.append((address, value))
            elif any(there):
                leaves.append((address, Masked(value, mx.array(there).reshape(latent.shape))))
        return from_items(leaves)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def __str__(self) -> str:
        """A table: the mean, the standard deviation and the most probable values of each latent number."""
        lines = [repr(self)]
        if self._mass is None or not self._latents:
            return lines[0]
        rows = [("", "mean", "sd", "most probable")]
        for address, latent in self._latents.items():
            for i, axis in enumerate(latent.axes):
                if len(rows) > _ROWS:
                    break
                p = self._onto([axis], [latent])
                name = show_address(address) if not latent.shape else f"{show_address(address)}[{i}]"
                best = mx.argsort(-p)[:_PROBABLE]
                pairs: Any = mx.stack([latent.values[best], p[best]], axis=1).tolist()
                shown = ", ".join(f"{value:g} ({probability:.3g})" for value, probability in pairs)
                mean, variance = _mean_and_variance(p, latent.values)
                rows.append((name, f"{mean:.4g}", f"{math.sqrt(variance):.3g}", shown))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        for name, mean, sd, shown in rows:
            lines.append(f"{name:<{widths[0]}}  {mean:>{widths[1]}}  {sd:>{widths[2]}}  {shown}".rstrip())
        hidden = self.log_joint.ndim - (len(rows) - 1)
        return "\n".join([*lines, f"... {hidden} more"] if hidden else lines)

    def __repr__(self) -> str:
        name = getattr(self.call.gen_fn, "__name__", "")
        return f"<Enumeration of {name}: {self.log_joint.size} cells, log_ml {show_value(self.log_ml)}>"


def enumerate_posterior(
    call: Call, observations: Any = None, grids: Any = None, key: Any = None, most: float = 1e7
) -> Enumeration:
    """The exact posterior of ``call`` given the observations, by a table of all values of all latents.

    Discrete latents take every value of their support, which must be finite. It may depend on other choices, and a
    choice may exist in some branches of a ``switch`` or behind a ``mask`` only. Each element of an array is an axis.

    ``grids`` is ``{address: points}`` [K], ascending, for continuous latents, over which the density is integrated by
    the trapezoidal rule, or ``{address: (points, log volumes)}``, by those volumes. What lies outside of the points is
    left out. The trapezoidal rule is off by O(h^2) of the spacing; for a smooth density that is next to zero at both
    ends, by much less. For a discrete latent with infinitely many values ``points`` are those that count.

    Log densities are float32: the relative error of a probability is about 1e-7 times its log density. The memory is a
    few times that of the table, and as many times more as an array has elements that are axes. A table of over ``most``
    cells raises. ``key`` is for the draws in which the choices are found; the result does not depend on it. The body
    must not take the host value of a choice.

    >>> from genmlx import flip, gen, normal, trace
    >>> @gen
    ... def model():
    ...     k = trace("k", flip(0.5))
    ...     trace("y", normal(2.0 * k, 1.0))
    >>> result = enumerate_posterior(model(), {"y": 1.5})
    >>> round(result.mean("k").item(), 6), round(result.log_ml.item(), 6)
    (0.731059, -1.423824)
    """
    observations = checked_problem(call, observations)
    table = Table(call, observations, read_grids(grids), most)
    with pinned() as pins, gen_errors(call.gen_fn):
        latents, log_joint = table.filled(as_key(key))
        result = Enumeration(call, observations, latents, log_joint, dict(pins))
        _require_densities(result)
    return result


def _mean_and_variance(weights: Any, values: mx.array) -> tuple[Any, Any]:
    """In float64, over the last axis; NaN where all weights are zero, for a choice that never exists."""
    import numpy as np

    w, x = np.array(weights, dtype=np.float64), np.array(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        w = w / w.sum(axis=-1, keepdims=True)
    mean = w @ x
    return mean, np.sum(w * (x - np.asarray(mean)[..., None]) ** 2, axis=-1)


def _first_greatest(values: mx.array) -> int:
    place: Any = mx.argmax(values).item()
    return place


def _require_densities(result: Enumeration) -> None:
    table = result.log_joint.reshape(-1)
    for what, bad in (("NaN", mx.isnan(table)), ("infinite", table == math.inf)):
        if mx.any(bad).item():
            cell = result._cell(_first_greatest(bad))
            raise ParameterError(
                f"the log density is {what} at {cell!r}",
                gen_fn=result.call.gen_fn,
                expected="a finite log density, or -inf",
                hint="a grid that leaves out points where the density is infinite",
            )
