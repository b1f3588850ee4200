"""In which precision a walk goes on: in float32, until that makes its log density too noisy for the sampler.

A walker sees a density whose every value is off by a little, and by another little elsewhere. It still samples the
density that it sees, but the ratio of two of its values tells less and less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from genmlx.native.chains import Density, NativeWalk

_LINES = 4
_STEP = 0.1
"""Of a line, in standard deviations of the coordinates."""
_LEAST = 4e-6
"""Of a line, relative to 1 + |coordinate|: some 32 roundings of float32."""
_FOURTH = np.array([1.0, -4.0, 6.0, -4.0, 1.0])
_MOST = 1.0  # nats that count of one chain, which may still be far out where every density is steep


class Refinement:
    """Gives a walk its density in float64 where float32 is too noisy, at the end of a window of the warm-up.

    ``make()`` compiles that density, once; None where that cannot be. ``settle(walk, density)`` makes the walk use it.
    """

    def __init__(self, make: Callable[[], Density | None], settle: Callable[[NativeWalk, Density], None]):
        self._make, self._settle = make, settle
        self._made: list[Density | None] = []

    def look(self, walk: NativeWalk) -> None:
        """Compile only for a walk that looks noisy, and change only what compared with float64 is so."""
        if walk.density.dtype == np.float64:
            return
        most = bearable(walk.learned.dual.target)
        lines = lines_through(walk.places, walk.learned.spread)
        values = walk.log_probs(lines)
        if roughness(values) > most and (density := self._double()):
            before = walk.density
            walk.use(density)
            exact = walk.log_probs(lines)
            walk.use(before)
            if spread_of_errors(values, exact) > most and roughness(exact) < 2 * roughness(values):
                self._settle(walk, density)
                self._made = [None]  # what was not right is not tried again

    def switch(self, walk: NativeWalk) -> None:
        if density := self._double():
            self._settle(walk, density)

    def _double(self) -> Density | None:
        if not self._made:
            self._made.append(self._make())
        return self._made[0]


def lines_through(places: Any, spread: Any) -> Any:
    """Five places on each of a few short lines through ``places [n, dim]``: ``[lines, 5, n, dim]``."""
    steps = np.maximum(_STEP * spread, _LEAST * (1.0 + np.abs(places)))
    directions = np.random.default_rng(0).standard_normal((_LINES, 1, *places.shape))
    return places + np.arange(-2, 3)[:, None, None] * steps * directions


def roughness(values: Any) -> float:
    """The standard deviation of the errors of values on lines, ``[lines, 5, n]``, in nats: the mean of the chains.

    It comes from fourth differences. They are next to nothing for what is smooth, and have 70 times the variance of
    independent errors.
    """
    with np.errstate(invalid="ignore"):
        differences = np.einsum("k,lkn->ln", _FOURTH, values)
    differences[~np.isfinite(differences)] = 0.0  # across an edge of the support
    return _mean(np.sqrt(np.mean(differences**2, axis=0) / (_FOURTH**2).sum()))


def spread_of_errors(values: Any, exact: Any) -> float:
    """The standard deviation of ``values - exact``, ``[lines, 5, n]``: the mean of the chains."""
    somewhere = np.isfinite(values) & np.isfinite(exact)
    errors, count = np.zeros(values.shape), np.maximum(somewhere.sum(axis=(0, 1)), 1)
    np.subtract(values, exact, out=errors, where=somewhere)
    apart = np.where(somewhere, errors - errors.sum(axis=(0, 1)) / count, 0.0)
    return _mean(np.sqrt((apart**2).sum(axis=(0, 1)) / count))


def bearable(target_accept: float) -> float:
    """The noise, in nats, that a sampler bears which is tuned to this acceptance.

    Noise s lowers the acceptance by 0.56 s, however small the steps: at 0.36 nats 0.8 is out of reach, and the step
    size goes to nothing. With 0.1, NUTS tuned to 0.8 loses 4% of its effective draws.
    """
    return min(0.1, 0.5 * (1.0 - target_accept))


def _mean(noise: Any) -> float:
    return float(np.minimum(noise, _MOST).mean())
