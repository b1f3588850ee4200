"""Elliptical slices as machine code: chains in the standard normal noise of the choices that move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.gfi import Call
from genmlx.inference.draws import watched
from genmlx.inference.gradient_chains import _constrained
from genmlx.inference.live_rhat import WATCHED
from genmlx.inference.loop import Loop
from genmlx.inference.noise_density import NoiseDensity
from genmlx.inference.record import Record
from genmlx.native.chains import Density, Method, NativeWalk, _address
from genmlx.native.density import _require_agreement, native_density
from genmlx.native.fallback import attempted
from genmlx.vectorized import VectorizedTrace


def native_slices(
    call: Call,
    start: Callable[[], tuple[VectorizedTrace, list[tuple]]],
    observations: ChoiceMap,
    angles: int,
    required: bool,
) -> NativeSlices | None:
    """The chains of an elliptical slice sampler; ``start()`` gives the traces where they begin, and what moves.

    None, and a line in the log, where the model has no native form. Where it is ``required``, an error.
    """

    def make() -> NativeSlices:
        noise = NoiseDensity(*start(), observations)
        walk = NativeSlices(native_density(noise, gradients=False), np.array(noise.starts), noise.n_moved, angles)
        _require_agreement(walk, noise, noise.starts, gradients=False)
        walk.noise = noise
        walk.watched = lambda positions: watched(_constrained(noise, positions)[0], WATCHED)
        return walk

    return attempted("elliptical_slice", call, make, required)


_TYPES = {"accept": mx.bool_, "shrinks": mx.int32}  # of one transition; means of several are float32


class NativeSlices(NativeWalk):
    """Chains from ``start [n, dim]``, of which the first ``moved`` dimensions are noise; the others stay.

    ``density`` is that of the others and the observations. Of ``angles`` on an ellipse one must be inside, or a chain
    stays. There is nothing to adapt: a warm-up is transitions that are not kept.
    """

    methods = {"elliptical_slice": Method("sample_slices", "begin", 2)}
    noise: NoiseDensity

    def __init__(self, density: Density, start: Any, moved: int, angles: int):
        super().__init__("elliptical_slice", density, start, False, {})
        self.names, self.angles, self.chains = list(_TYPES), angles, self.n
        for chain in self._chains:
            chain.moved = moved

    def drawn(self, loop: Loop, streams: random.Streams, **how: int) -> tuple[dict, dict, mx.array, dict]:
        """As ``Draws.finish``: values by address, all present, the log joint density, and the statistics."""
        positions, stats = self.run(loop, streams, **how)
        values, log_joint = _constrained(self.noise, positions, self.joint)
        alone = how["thin"] == 1
        own = {name: stats[name].astype(dtype) if alone else stats[name] for name, dtype in _TYPES.items()}
        return values, {}, log_joint, own

    def warm(self, start: int, stop: int) -> Any:
        self._go(stop - start, 1, stop - start + 1, lambda i: (0, 0))
        return self._told()

    def end_warmup(self) -> None:
        super().end_warmup()
        self._stats[:] = 0.0

    def sample(self, record: Record, stop: int) -> None:
        done, thin = record.transitions, record.thin
        draw, parts = done // thin, (record.positions, record.stats)
        self._go(
            stop - done,
            thin,
            thin - done % thin,
            lambda i: tuple(_address(part[i]) + draw * part[i, :1].nbytes for part in parts),
        )
        record.ended[:], record.latest = stop, self._told()

    def shown(self, means: dict, draws: int = 0, rhat: float = np.nan) -> dict:
        return {**means, "draws": draws, "rhat": rhat}

    def state_of_chains(self) -> dict:
        return {**super().state_of_chains(), "sums": self._stats.view(np.uint32)}

    def restore_chains(self, saved: dict) -> None:
        super().restore_chains(saved)
        self._stats[:] = np.array(saved["sums"], dtype=np.uint32).view(float)

    def _go(self, transitions: int, thin: int, left: int, out: Callable[[int], tuple]) -> None:
        run, angles = self.drivers.sample_slices, self.angles
        self._over_chains(lambda i: run(self._at(i), angles, transitions, thin, left, *out(i)), transitions)

    def _warm_up(self, loop: Loop, transitions: int, step_size: Any, done: int, state: Callable) -> None:
        def block(start: int, stop: int) -> Callable:
            stats = self.warm(start, stop)
            return lambda: self._shown_early(stats)

        loop.run("warmup", transitions, block, least=0, done=done, state=state)
