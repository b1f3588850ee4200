"""What a particle filter knows of an address at each step: a ``record`` for ``smc``."""

from __future__ import annotations

from typing import Any, NamedTuple

from genmlx.address import normalise
from genmlx.choicemap import ChoiceMap
from genmlx.errors import UnknownAddress, UsageError, show_address
from genmlx.inference.particle_filter import ParticleFilter
from genmlx.inference.resampling import host_weights
from genmlx.masked import Masked, value_of

LEVELS = (0.05, 0.5, 0.95)


class Band(NamedTuple):
    """Mean, standard deviation, and the quantiles 5%, 50% and 95%, each of the shape of the choice."""

    mean: Any
    sd: Any
    low: Any
    median: Any
    high: Any


class Bands:
    """``Bands("x")`` as the ``record`` of ``smc``: at each step what the observations up to it say of ``(t, "x")``.

    The number of the step stands where it fits: ``Bands(("states", "x"))`` is of ``("states", t, "x")``. An address
    that no step numbers is recorded as it is. ``history.recorded[t]`` is ``{address without t: Band}``, of numpy
    arrays.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, trace, unfold
    >>> from genmlx.inference import growing_steps, smc
    >>> @gen
    ... def step(t, x):
    ...     x = trace("x", normal(x, 1.0))
    ...     trace("y", normal(x, 1.0))
    ...     return x
    >>> steps = growing_steps(unfold(step)(2, 0.0), {(0, "y"): 1.0, (1, "y"): 2.0})
    >>> pf = smc(steps, particles=10_000, record=Bands("x"), key=mx.random.key(0))
    >>> first, second = (float(known[("x",)].mean) for known in pf.history.recorded)
    >>> abs(first - 0.5) < 0.03, abs(second - 1.4) < 0.03                    # by Kalman's filter
    (True, True)
    """

    def __init__(self, *addresses: Any):
        if not addresses:
            raise UsageError("Bands was given no address", expected="Bands('x'), of the choices at (t, 'x')")
        self.addresses = [normalise(address) for address in addresses]

    def __call__(self, pf: ParticleFilter) -> dict[tuple, Band]:
        return {address: band(pf, at_step(pf, address, len(pf.history) - 1)) for address in self.addresses}

    def __repr__(self) -> str:
        return f"Bands({', '.join(map(show_address, self.addresses))})"


def at_step(pf: ParticleFilter, address: tuple, t: int) -> tuple:
    """An address of a step, from one without its number; itself where it has none. An unknown one raises."""
    for cut in range(len(address) + 1):
        numbered = (*address[:cut], t, *address[cut:])
        if _is_choice(pf, numbered):
            return numbered
    if _is_choice(pf, address):
        return address
    raise UnknownAddress(
        f"step {t} has no such choice, numbered or not:",
        address=address,
        gen_fn=pf.call.gen_fn,
        expected=f"x for the choices at ({t}, 'x')",
    )


def _is_choice(pf: ParticleFilter, address: tuple) -> bool:
    try:
        return not isinstance(pf[address], ChoiceMap)
    except KeyError:
        return False


def band(pf: Any, address: tuple) -> Band:
    """The weighted moments and quantiles of a choice, over the particles that have it."""
    import mlx.core as mx
    import numpy as np

    leaf, log_weights = pf[address], pf.log_weights
    if isinstance(leaf, Masked):
        log_weights = mx.where(leaf.active, log_weights, -mx.inf)
    weights, values = host_weights(log_weights), np.array(value_of(leaf), dtype=np.float64)
    mean = np.tensordot(weights, values, axes=1)
    sd = np.sqrt(np.tensordot(weights, (values - mean) ** 2, axes=1))
    return Band(mean, sd, *weighted_quantiles(values, weights, LEVELS))


def weighted_quantiles(values: Any, weights: Any, levels: tuple[float, ...]) -> Any:
    """The least value at which the weights up to it are a level, ``[levels, *event]``; values ``[n, *event]``.

    >>> import numpy as np
    >>> weighted_quantiles(np.array([3.0, 1.0, 2.0]), np.array([0.2, 0.3, 0.5]), (0.3, 0.31, 1.0)).tolist()
    [1.0, 2.0, 3.0]
    """
    import numpy as np

    order = np.argsort(values, axis=0, kind="stable")
    reached = np.cumsum(weights[order], axis=0)
    reached /= reached[-1]
    chosen = [np.argmax(reached >= level - 1e-12, axis=0) for level in levels]
    ordered = np.take_along_axis(values, order, axis=0)
    return np.stack([np.take_along_axis(ordered, index[None], axis=0)[0] for index in chosen])
