"""The log density of a model as machine code, and the chains of a sampler that walk on it.

Nothing is taken on trust: where the chains start, the machine code must give what the handlers give.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from genmlx.backend.mapping import vmap_list
from genmlx.kept import model_in
from genmlx.native.chains import IN_LANES, Density, NativeWalk
from genmlx.native.drivers.pack import LANES
from genmlx.native.fallback import Disagreement, attempted, log, tell
from genmlx.native.graph import Untranslatable, graph_of, numpy_dtype
from genmlx.native.kernel import NativeFunction, compile_function, compile_in_float64, optimised
from genmlx.native.lanes import differing
from genmlx.native.precision import Refinement

if TYPE_CHECKING:
    from genmlx.native.gpu.chains import DeviceWalk

_ROUNDING = 1e-3
"""What two float32 evaluations of a density may differ by, of the size of what they are evaluations of."""
_CHECKED = 1000  # chains at most, of which none is another function of its start than the others
_NUDGES, _NOISE = (-2e-6, -1e-6, 1e-6, 2e-6), 5.0
"""Steps that are small beside what a density changes over, and how many times the change that they make is allowed."""
_SLOPE = 1e-3
"""Of a difference of values that a slope is taken from, the step."""
_SMALL = 10_000
"""Elements of all arrays of a small density: several microseconds of work."""
_ROOM = 1 << 26
"""Bytes of scratch memory that each thread may use for lanes."""


def native_walk(
    method: str,
    density: Any,
    start: mx.array,
    dense: bool,
    settings: Mapping[str, Any],
    gradients: bool,
    precision: str | None = None,
    *,
    required: bool,
) -> NativeWalk | DeviceWalk | None:
    """The chains of a sampler, from ``start [n, dim]``; without a gradient it is not computed.

    None, and a line in the log, where the density of a model (``LogDensity``) has no native form. Where it is
    ``required``, an error. Without a ``precision`` that is asked for, it is float32, and may become float64 in the
    warm-up: see ``precision.py``.
    """

    def make() -> NativeWalk | DeviceWalk:
        machine = _for_chains(method, density, gradients, len(start), precision or "float32")
        walk = NativeWalk(method, machine, np.array(start), dense, settings)
        _require_same(walk, density, start, gradients)
        if precision is None:
            walk.refinement = _refinement(method, density, gradients, machine.lanes)
        return walk

    def make_elsewhere() -> NativeWalk | DeviceWalk:
        from genmlx.native.gpu.density import device_walk

        walk = device_walk(method, density, start, dense, settings, gradients, precision, required=required)
        _require_agreement(walk, density, start, gradients)
        return walk

    return attempted(method, density.call, make, required, make_elsewhere)


def _refinement(method: str, density: Any, gradients: bool, lanes: int) -> Refinement:
    who = f"{method} of {density.call!r}"

    def make() -> Density | None:
        try:
            return native_density(density, gradients, lanes, "float64")
        except Exception as error:
            tell(error, f"{who} stays in float32, though that may be too noisy for it")
            return None

    def settle(walk: NativeWalk, machine: Density) -> None:
        before = walk.density
        try:
            walk.use(machine)
            _require_same(walk, density, mx.array(walk.positions), gradients)
            log.info("%s goes on in float64: in float32 its log density is too noisy", who)
        except Exception as error:
            walk.use(before)
            tell(error, f"{who} stays in float32, though its log density is too noisy")

    return Refinement(make, settle)


def _for_chains(method: str, density: Any, gradients: bool, chains: int, precision: str) -> Density:
    """For all chains in lanes where that pays, else for one."""
    if method in IN_LANES and lanes_pay(density, gradients, chains):
        try:
            machine = native_density(density, gradients, LANES, precision)
            if machine.scratch_bytes <= _ROOM:
                return machine
            why = f"the density in lanes needs {machine.scratch_bytes / 1e6:,.0f} MB"
        except Untranslatable as error:
            why = str(error)
        machine = native_density(density, gradients, precision=precision)
        log.info("%s of %r moves its chains one by one: %s", method, density.call, why)
        return machine
    return native_density(density, gradients, precision=precision)


def lanes_pay(density: Any, gradients: bool, chains: int) -> bool:
    """Whether so many chains are quicker in lanes: if they fill a pack, or with a large density one for each processor.

    A chain in a full pack takes an eighth to a half of a processor's time, as measured for small and large densities.
    """
    if chains < LANES or chains >= LANES * (os.cpu_count() or 1):
        return chains >= LANES
    f, parameters = density.of_one(gradients)
    graph = optimised(graph_of(f, mx.zeros(density.dim), *parameters))
    numbers = differing(graph)
    return sum(node.size for node in graph.nodes if node.number in numbers) <= _SMALL


def code_of(model: Any) -> dict:
    """The machine code of a model's densities, which goes with that version of the model."""
    owner = model_in(model)
    if owner is None:
        return {}
    version, found = owner.__dict__.get("_code", (None, {}))
    if version is not owner.version:
        found = {}
        owner.__dict__["_code"] = owner.version, found
    return found


def native_density(density: Any, gradients: bool = True, lanes: int = 1, precision: str = "float32") -> Density:
    """The log density of one vector, or of several in lanes, and its gradient.

    Raises Untranslatable for what has no native form.
    """
    f, parameters = density.of_one(gradients)
    compiled = compile_in_float64 if precision == "float64" else compile_function
    known = code_of(density.gen_fn)
    made: NativeFunction = compiled(f, mx.zeros(density.dim), *parameters, lanes=lanes, known=known)
    kinds = [numpy_dtype(form.dtype) for form in made.inputs]
    arrays = [np.ascontiguousarray(np.array(p), kind) for p, kind in zip(parameters, kinds[1:], strict=True)]
    return Density(
        pointer=made.pointer,
        dim=density.dim,
        dtype=kinds[0].type,
        gradients=gradients,
        inputs=tuple(array.ctypes.data for array in arrays),
        constants=made.constants,
        scratch_bytes=made.scratch_bytes,
        owner=(made, arrays),
        lanes=lanes,
    )


def _require_same(walk: NativeWalk, density: Any, start: mx.array, gradients: bool) -> None:
    """Agreement, or that of the same graph in float32: then float64 is off by the rounding of the handlers."""
    used = walk.density
    try:
        _require_agreement(walk, density, start, gradients)
    except Disagreement:
        if used.dtype != np.float64:
            raise
        walk.use(native_density(density, gradients, used.lanes))
        _require_agreement(walk, density, start, gradients)
        walk.use(used)


def _require_agreement(walk: NativeWalk | DeviceWalk, density: Any, start: mx.array, gradients: bool) -> None:
    f, parameters = density.of_one(gradients)
    names = ("log density", "gradient", "log joint density") if gradients else ("log density", "log joint density")
    value, gradient = [found[:_CHECKED] for found in walk.value_and_grad]
    start = start[:_CHECKED]
    mine = [value, *([gradient] if gradients else []), np.array(walk.joint(start))]
    require_agreement(names, mine, lambda u: f(u, *parameters), start)


def require_agreement(names: Sequence[str], mine: list, f: Callable[[mx.array], list], start: mx.array) -> None:
    """Raises Disagreement where ``f`` at a vector, run by its handlers, is not what is in ``mine``.

    Of these the first is the log density, which must be finite where that of the handlers is.
    """

    def handlers(u: mx.array) -> list:
        return [np.array(found) for found in vmap_list(f, u)]

    theirs = handlers(start)
    somewhere = np.isfinite(theirs[0])  # elsewhere there is no density, and what else is computed says nothing
    if np.any(np.isfinite(mine[0]) != somewhere):
        raise Disagreement("a log density that is finite where it should not be, or the reverse")
    start = mx.array(np.array(start)[somewhere])
    mine, theirs = ([found[somewhere] for found in side] for side in (mine, theirs))
    apart = [np.abs(a - b) for a, b in zip(mine, theirs, strict=True)]
    allowed = [_ROUNDING * (1.0 + _largest(b)) for b in theirs]
    if not all(np.all(a <= b) for a, b in zip(apart, allowed, strict=True)):
        # A density of numbers that nearly cancel is noise in float32, which any other place nearby shows.
        for nudge in _NUDGES:
            nearby = handlers(start + nudge * (1.0 + mx.abs(start)))
            allowed = [np.maximum(b, _NOISE * _largest(c - d)) for b, c, d in zip(allowed, nearby, theirs, strict=True)]
    for name, a, b in zip(names, apart, allowed, strict=True):
        right = a <= b
        if name == "gradient" and not np.all(right):
            right |= _is_slope(handlers, start, mine[1], theirs[1])[:, None]
        if not np.all(right):
            raise Disagreement(f"a {name} that is off by {np.nanmax(a):.3g}")


def _is_slope(handlers: Callable[[mx.array], list], start: mx.array, mine: Any, theirs: Any) -> Any:
    """For each place, whether the handlers' values change as the first of two gradients says, where these differ most.

    MLX 0.32.4 adds float32 one after the other in the gradient of a broadcast: 1% is lost of that of 4e6 rows.
    """
    apart = mine.astype(float) - theirs
    size = np.linalg.norm(apart, axis=1)
    direction = apart / np.maximum(size, 1e-30)[:, None]
    step = _SLOPE * (1.0 + np.abs(np.array(start)).max(axis=1, keepdims=True))
    up, down = (handlers(start + mx.array((h * direction).astype(np.float32)))[0].astype(float) for h in (step, -step))
    with np.errstate(invalid="ignore"):
        off = (up - down) / (2 * step[:, 0]) - (mine * direction).sum(axis=1)
    return np.abs(off) <= 0.1 * size


def _largest(found: Any) -> Any:
    """Of each chain the largest number, of the shape of a number of each, or of a vector."""
    found = np.abs(found)
    return found if found.ndim == 1 else found.max(axis=1, keepdims=True)
