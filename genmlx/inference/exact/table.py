"""The table of an enumeration: the runs of the body that find the latents and their values, and fill it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx.address import normalise
from genmlx.backend.mapping import vmap_list
from genmlx.choicemap import ChoiceMap, from_items
from genmlx.dist.values import as_array
from genmlx.errors import BatchError, ParameterError, UnknownAddress, UsageError, nearest, one_of, show_address
from genmlx.gfi import Call
from genmlx.gradients import host_value_errors
from genmlx.inference.exact.axes import Found, Latent, found_in, on_grid, read_grid, require_finite, terms
from genmlx.masked import both, invert, spread
from genmlx.vectorized import Lanes, run

_FAR = 2**40  # beyond every whole number that is a value


class Table:
    """The runs of the body that find the latents and fill the table."""

    def __init__(self, call: Call, observations: ChoiceMap, grids: dict, most: float):
        self.call, self.gen_fn, self.observations, self.grids, self.most = call, call.gen_fn, observations, grids, most

    def filled(self, key: Any) -> tuple[list[Latent], mx.array]:
        self.args = self.gen_fn.own(self.call)
        latents = self._latents(key)
        while True:
            _require_few(self.gen_fn, latents, self.most)
            log_joint, bounds = self._joint(latents, key)
            widened = [latent.widened(*bounds[latent.address]) for latent in latents if latent.address in bounds]
            if not any(widened):
                mx.eval(log_joint)
                return latents, log_joint

    def _latents(self, key: Any) -> list[Latent]:
        """The latents, with the values that two draws from the prior show: more are found when the table is filled."""
        seen: list[Found] = []

        def lane(key: Any) -> list:
            trace, _ = self.gen_fn._generate(self.args, self.observations, key)
            self.gen_fn.require_visited(trace, self.observations)
            self._require_grids(trace.choices)
            seen[:] = found_in(trace, self.observations, self.grids)
            return [[mx.array(found.lo), mx.array(found.hi)] for found in seen if found.lo is not None]

        try:
            bounds = iter(run(lane, 2, key))
        except BatchError as error:
            raise self._named(error, key) from None
        latents = []
        for found in seen:
            if found.lo is None:
                latents.append(on_grid(found, *self.grids[found.address]))
                continue
            ends: Any = [mx.min(bound).item() if found.known else bound[0].item() for bound in next(bounds)]
            # A support that depends on others has none here where a branch is not taken: filling the table shows more.
            lo, hi = map(int, ends) if all(map(math.isfinite, ends)) else (0, 0)
            self._require_few(found.address, hi - lo + 1)
            values = mx.arange(lo, max(lo, hi) + 1, dtype=mx.int32)
            latents.append(Latent(found.address, found.shape, values, None, found.active is not True))
        axis = 0
        for latent in latents:
            latent.first = axis
            axis += latent.size
        return latents

    def _joint(self, latents: list[Latent], key: Any) -> tuple[mx.array, dict]:
        """The table, and the least and greatest value of each latent whose support depends on others."""
        depends: list[tuple] = []

        def cell(*places: tuple) -> list:
            given = from_items((latent.address, _value(latent, places)) for latent in latents)
            trace, _ = self.gen_fn._generate(self.args, self.observations.merge(given), key)
            found = found_in(trace, self.observations, self.grids)
            if [f.address for f in found] != [latent.address for latent in latents]:
                raise UsageError(
                    "the body has other choices when it is run again",
                    gen_fn=self.gen_fn,
                    expected="a body that does the same for the same choices",
                )
            log_joint, possible, bounds = _pairwise(terms(trace)), mx.array(True), []
            depends[:] = [f.address for f in found if f.lo is not None and not f.known]
            for latent, f in zip(latents, found, strict=True):
                if f.address in depends:
                    there = both(_any(f.active), possible)
                    bounds += [_where(there, f.lo, _FAR), _where(there, f.hi, -_FAR)]
                possible = both(possible, invert(_any(both(f.active, f.density == -math.inf))))
                if latent.optional:
                    active = mx.array(f.active)  # of all elements, or, inside a vmap, of each
                    active = mx.broadcast_to(spread(active, len(latent.shape)), latent.shape).reshape(-1)
                    for i, axis in enumerate(latent.axes):
                        log_joint = mx.where(active[i] == places[axis][1], -math.inf, log_joint)
            # Beyond a value that cannot be, other densities may be anything, NaN too.
            return [mx.where(possible, log_joint, -math.inf), *bounds]

        inputs = [latent.inputs for latent in latents for _ in latent.axes]
        with host_value_errors("batched"):
            log_joint, *bounds = _nested(cell, inputs)
        ranges = {}
        for i, address in enumerate(depends):
            lo, hi = mx.min(bounds[2 * i]), mx.max(bounds[2 * i + 1])
            ends: Any = lo.item(), hi.item()
            for end in ends:
                require_finite(self.gen_fn, address, end)
            if ends[0] <= ends[1]:
                ranges[address] = int(ends[0]), int(ends[1])
                self._require_few(address, int(ends[1] - ends[0]) + 1)
        return log_joint, ranges

    def _require_few(self, address: tuple, values: int) -> None:
        if values > self.most:
            raise _too_many(self.gen_fn, values, f"{values} of {show_address(address)}", self.most)

    def _require_grids(self, choices: ChoiceMap) -> None:
        for address in self.grids:
            if address in self.observations:
                raise UsageError("a grid for an observed choice", address=address, gen_fn=self.gen_fn)
            if not choices.sub(address).is_leaf:
                known = choices.addresses()
                raise UnknownAddress(
                    "a grid for an address that the run never visits:",
                    address=address,
                    gen_fn=self.gen_fn,
                    suggestions=nearest(address, known),
                    expected=one_of(known),
                )

    def _named(self, error: BatchError, key: Any) -> BatchError:
        """The error with the address of the latent whose host value the body takes."""
        trace, _ = self.gen_fn._generate(self.args, self.observations, key)
        for address, value in trace.choices.items():
            if address in self.observations:
                continue

            def alone(_: Any, value: mx.array, address: tuple = address) -> mx.array:
                given = trace.choices.merge(from_items([(address, value)]))
                return self.gen_fn._generate(self.args, given, None)[0].score

            try:
                run(alone, 1, None, Lanes(as_array(value)[None]))
            except BatchError:
                error.address = address
                return error
        return error


def _nested(f: Callable, inputs: list, given: tuple = ()) -> list:
    """``f`` of every combination of rows of the inputs, each a tuple of arrays: the first input is the first axis."""
    if not inputs:
        return f(*given)
    return vmap_list(lambda *row: _nested(f, inputs[1:], (*given, row)), *inputs[0])


def _value(latent: Latent, places: tuple) -> mx.array:
    elements = [places[axis][0] for axis in latent.axes]
    return mx.stack(elements).reshape(latent.shape) if latent.shape else elements[0]


def _any(x: Any) -> Any:
    return mx.any(x) if isinstance(x, mx.array) else x


def _where(there: Any, bound: Any, otherwise: int) -> mx.array:
    bound = mx.array(bound)
    bound = bound if mx.issubdtype(bound.dtype, mx.floating) else bound.astype(mx.int64)
    return mx.where(there, bound, mx.array(otherwise, dtype=bound.dtype))


def _pairwise(parts: list) -> mx.array:
    """The sum, of sums of neighbours: the last few only depend on all choices, and errors grow with log n."""
    if not parts:
        return mx.array(0.0)
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [a + b for a, b in pairs] + parts[len(parts) // 2 * 2 :]
    return mx.array(parts[0])


def _require_few(gen_fn: Any, latents: list[Latent], most: float) -> None:
    cells = math.prod(latent.places**latent.size for latent in latents)
    if cells <= most:
        return
    largest = sorted(latents, key=lambda latent: -latent.size * math.log(latent.places))[:3]
    shown = ", ".join(
        f"{latent.places}{f'**{latent.size}' if latent.size > 1 else ''} of {show_address(latent.address)}"
        for latent in largest
    )
    raise _too_many(gen_fn, cells, shown, most)


def _too_many(gen_fn: Any, cells: int, shown: str, most: float) -> ParameterError:
    return ParameterError(
        f"the table would have {cells if cells < 1e6 else f'{float(min(cells, 10**300)):.3g}'} cells ({shown})",
        gen_fn=gen_fn,
        expected=f"at most {most:g} (the keyword most)",
        hint="coarser grids, more observations, gibbs, or for a chain of states hmm_forward",
    )


def read_grids(grids: Any) -> dict:
    if grids is None:
        return {}
    if not hasattr(grids, "items"):
        raise UsageError(f"grids is a {type(grids).__name__}", expected="{address: points}")
    addresses = {normalise(address): given for address, given in grids.items()}
    return {address: read_grid(address, given) for address, given in addresses.items()}
