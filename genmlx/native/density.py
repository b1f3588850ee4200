"""The log density of a model as machine code, and the chains of a sampler that walk on it.

Nothing is taken on trust: where the chains start, the machine code must give what the handlers give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from genmlx.backend.mapping import vmap_list
from genmlx.native.chains import Density, NativeWalk
from genmlx.native.fallback import Disagreement, attempted
from genmlx.native.kernel import NativeFunction, compile_function

_ROUNDING = 1e-3
"""What two float32 evaluations of a density may differ by, of the size of what they are evaluations of."""
_NUDGES, _NOISE = (-2e-6, -1e-6, 1e-6, 2e-6), 5.0
"""Steps that are small beside what a density changes over, and how many times the change that they make is allowed."""


def native_walk(
    method: str,
    density: Any,
    start: mx.array,
    dense: bool,
    settings: Mapping[str, Any],
    gradients: bool,
    required: bool,
) -> NativeWalk | None:
    """The chains of a sampler, from ``start [n, dim]``; without a gradient it is not computed.

    None, and a line in the log, where the density of a model (``LogDensity``) has no native form. Where it is
    ``required``, an error.
    """

    def make() -> NativeWalk:
        walk = NativeWalk(method, native_density(density, gradients), np.array(start), dense, settings)
        _require_agreement(walk, density, start, gradients)
        return walk

    return attempted(method, density.call, make, required)


def native_density(density: Any, gradients: bool = True) -> Density:
    """The log density of one vector, and its gradient. Raises Untranslatable for what has no native form."""
    f, parameters = density.of_one(gradients)
    made: NativeFunction = compile_function(f, mx.zeros(density.dim), *parameters)
    arrays = [np.ascontiguousarray(np.array(parameter)) for parameter in parameters]
    return Density(
        pointer=made.pointer,
        dim=density.dim,
        dtype=np.float32,
        gradients=gradients,
        inputs=tuple(array.ctypes.data for array in arrays),
        constants=made.constants,
        scratch_bytes=made.scratch_bytes,
        owner=(made, arrays),
    )


def _require_agreement(walk: NativeWalk, density: Any, start: mx.array, gradients: bool) -> None:
    f, parameters = density.of_one(gradients)
    names = ("log density", "gradient", "log joint density") if gradients else ("log density", "log joint density")
    value, gradient = walk.value_and_grad
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
        if not np.all(a <= b):
            raise Disagreement(f"a {name} that is off by {np.nanmax(a):.3g}")


def _largest(found: Any) -> Any:
    """Of each chain the largest number, of the shape of a number of each, or of a vector."""
    found = np.abs(found)
    return found if found.ndim == 1 else found.max(axis=1, keepdims=True)
