"""Chains of a sampler on a GPU, one on each thread.

What a chain draws depends on its key and the step sizes, not on how transitions are grouped into launches. Warm-up is
that of ``genmlx/inference/warmup.py``, on the host: all chains make a transition, then the step size follows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from genmlx import random
from genmlx.inference.adaptive import Adaptive
from genmlx.inference.hmc import _MOST_STEPS, LENGTH
from genmlx.inference.leapfrog import Metric, identity_metric
from genmlx.inference.record import Record
from genmlx.native.gpu import sampler
from genmlx.native.gpu.launch import Device, Kernel, require_memory
from genmlx.native.gpu.sampler import COUNTS, INPUTS, METHODS, OUTPUTS, STATS
from genmlx.native.gpu.text import Text
from genmlx.native.graph import Untranslatable

_LONGEST = 0.05
"""Seconds that a launch shall take at most: one of several seconds is ended by what drives a display."""
_FEW = 16  # evaluations of the density in the first launch, which is timed
_KEPT = 1 << 28  # bytes of draws that a launch may write


class DeviceWalk(Adaptive):
    """Chains of a sampler on the text of a density, from ``start [n, dim]``.

    The density's outputs are the log density, its gradient if there are ``gradients``, and the log density without the
    Jacobian. Raises Untranslatable for a sampler that has no text, and where chains need too much memory.
    """

    def __init__(
        self,
        method: str,
        text: Text,
        start: Any,
        dense: bool,
        settings: Mapping[str, Any],
        gradients: bool,
        device: Device,
    ):
        if method not in METHODS:
            raise Untranslatable(f"the sampler {method} on a GPU")
        n, dim = start.shape
        super().__init__(n, dim, dense)
        require_memory(text.slots, n)
        self.names = list(STATS[: METHODS[method]])
        self.execution = f"native ({device.dialect.name}, float32)"
        self._trajectory = method == "hmc"
        self._settings, self._slots, self._rows = settings, text.slots, sampler.rows(dim)
        header = sampler.header(text, dim, dense, device.dialect)
        source = sampler.transitions(method, dim, gradients, device.dialect)
        self._kernel = Kernel(device, INPUTS, OUTPUTS, source, header)
        self._data = [mx.array(text.reals), mx.array(text.integers)]
        self._budget, self._timed = _FEW, False
        self._counts = mx.zeros((COUNTS * n,), mx.uint32)
        self._set_keys(mx.random.key(0))
        self.tune(1.0, identity_metric(dim, dense))
        self._state_of_chains = self._placed(mx.array(np.asarray(start, dtype=np.float32)))
        mx.eval(self._state_of_chains)

    @property
    def value_and_grad(self) -> tuple[Any, Any]:
        """The log density ``[n]``, -inf where it has none, and its gradient ``[n, dim]`` where the chains are."""
        return self._part("log_prob")[:, 0].astype(float), self._part("gradient").astype(float)

    @property
    def positions(self) -> Any:
        return self._part("position")

    def tune(self, step_size: Any, metric: Metric) -> None:
        super().tune(step_size, metric)
        sizes = self._sizes = self.tuning.step_size.reshape(-1)
        parts = mx.concatenate([part.reshape(-1) for part in metric])
        self._metric = mx.concatenate([parts, mx.zeros(8)])  # Metal keeps less than 8 numbers elsewhere
        self._longest, lengths = 1, np.ones(self.n, dtype=np.uint32)
        if self._trajectory:
            lengths[:] = self._settings.get("leapfrog_steps") or self._steps(np.array(sizes, dtype=float))
            self._longest = int(lengths.max())
        self._lengths = mx.array(lengths)
        mx.eval(self._metric, self._lengths, self._sizes)

    def begin(self, streams: random.Streams) -> None:
        self._sampling = streams.propose
        self._set_keys(streams.warmup)

    def end_warmup(self) -> None:
        self._set_keys(self._sampling)

    def first_step(self) -> Any:
        """The state stays what it is, but for the number of the transition, which its noise belongs to."""
        state, lengths, longest = self._state_of_chains, self._lengths, self._longest
        diverged = self._counts[2 * self.n :]
        self._lengths, self._longest = mx.ones((self.n,), mx.uint32), 1
        self._transitions(1)
        accept = self._part("stats")[:, 0].astype(float)
        self._state_of_chains, self._lengths, self._longest = state, lengths, longest
        self._counts = mx.concatenate([self._counts[: 2 * self.n], diverged])
        return accept

    def warm(self, start: int, stop: int) -> Any:
        learned = self.learned
        for _ in range(start, stop):
            self.tune(learned.step_size, learned.metric)
            self._transitions(1)
            accept = self._part("stats")[:, 0].astype(float)
            if learned.update(accept, self._array("position")):
                learned.find_step_size(self.accept_at)
        return self._told()

    def sample(self, record: Record, stop: int) -> None:
        width, thin = len(self.names), record.thin
        while (done := record.transitions) < stop:
            draw, left = done // thin, thin - done % thin
            each = 4 * self.n * (self.dim + width)
            count = min(stop - done, max(1, self._budget // self._longest), max(1, _KEPT // each) * thin)
            found = self._transitions(count, thin, left)
            for part, own in zip(found, (record.positions, record.stats), strict=True):
                own[:, draw : draw + part.shape[1]] = part
            record.ended[:] = done + count
        record.latest = self._told()

    def joint(self, u: mx.array) -> mx.array:
        """The log density without the Jacobian at vectors ``[m, dim]``."""
        found = []
        for start in range(0, len(u), self.n):  # no more at once than there is scratch memory for
            part = self._placed(u[start : start + self.n])
            found.append(part.reshape(-1, len(u[start : start + self.n]))[self._rows["energy"].start])
        return mx.concatenate(found)

    def state_of_chains(self) -> dict:
        return {"chains": [self._state_of_chains, self._counts, self._keys]}

    def restore_chains(self, saved: dict) -> None:
        own = self._state_of_chains, self._counts, self._keys
        if [part.shape for part in saved["chains"]] != [part.shape for part in own]:
            raise ValueError("the states of the chains have another form")
        self._state_of_chains, self._counts, self._keys = saved["chains"]
        self._taken = int(np.array(self._counts[:1])[0])

    def _transitions(self, count: int, thin: int = 1, left: int = 0) -> tuple[Any, Any]:
        """So many transitions of all chains: draws ``[n, kept, dim]`` and their statistics, the first after ``left``.

        One that takes more evaluations than a launch may make is several launches.
        """
        n, width, until = self.n, len(self.names), self._taken + count
        kept = 0 if left == 0 or left > count else 1 + (count - left) // thin
        budget = count * self._longest
        parts = math.ceil(self._longest / self._budget) if count == 1 else 1
        sizes = [self._state_of_chains.size, COUNTS * n, kept * self.dim * n, kept * width * n, self._slots * n]
        kinds = [mx.float32, mx.uint32, *[mx.float32] * 3]
        draws = told = mx.zeros(0)
        began = time.perf_counter()
        for _ in range(parts):
            most = math.ceil(budget / parts)
            launch = mx.array([n, until, most, thin, left, 0, 0, 0], dtype=mx.uint32)
            inputs = [launch, self._state_of_chains, self._counts, self._keys, self._sizes, self._lengths, self._metric]
            found = self._kernel(n, [*inputs, *self._data], list(zip(sizes, kinds, strict=True)))
            self._state_of_chains, self._counts, draws, told, _ = found
            mx.eval(self._state_of_chains, self._counts)
        self._taken = until
        self._learn_budget(time.perf_counter() - began, budget)
        if parts > 1:  # chains that ended in an earlier launch have written there
            return self._part("position")[:, None][:, :kept], self._part("stats")[:, None, :width][:, :kept]
        shaped = [draws[: sizes[2]].reshape(kept, self.dim, n), told[: sizes[3]].reshape(kept, width, n)]
        positions, stats = [np.array(mx.contiguous(part.transpose(2, 0, 1))) for part in shaped]
        return positions, stats

    def _learn_budget(self, seconds: float, evaluations: int) -> None:
        """How many evaluations a launch may make; the first one is not timed, for it compiles."""
        if self._timed:
            possible = int(_LONGEST * evaluations / max(seconds, 1e-6))
            self._budget = max(1, min(possible, 4 * max(self._budget, evaluations)))
        self._timed = True

    def _placed(self, positions: mx.array) -> mx.array:
        """The state of as many chains as there are positions, at the beginning of a transition."""
        m, rows = len(positions), self._rows["stats"].stop
        state = mx.concatenate([positions.T.reshape(-1), mx.zeros(((rows - self.dim) * m,))])
        nothing = mx.zeros((COUNTS * m,), mx.uint32)
        tuning = [mx.ones((m,)), mx.ones((m,), mx.uint32), self._metric]
        launch = mx.array([m, 1, 1, 1, 0, 1, 0, 0], dtype=mx.uint32)
        inputs = [launch, state, nothing, nothing, *tuning, *self._data]
        sizes = [(rows * m, mx.float32), (COUNTS * m, mx.uint32)]
        return self._kernel(m, inputs, [*sizes, *[(size, mx.float32) for size in (0, 0, self._slots * m)]])[0]

    def _array(self, name: str) -> mx.array:
        return self._state_of_chains.reshape(-1, self.n)[self._rows[name]].T

    def _part(self, name: str) -> Any:
        return np.array(mx.contiguous(self._array(name)))

    def _told(self) -> Any:
        """The statistics of the last transitions; divergences are counted."""
        self.diverged += int(np.array(mx.sum(self._counts[2 * self.n :])))
        self._counts = mx.concatenate([self._counts[: 2 * self.n], mx.zeros((self.n,), mx.uint32)])
        return self._part("stats")[:, : len(self.names)]

    def _set_keys(self, key: Any) -> None:
        self._keys, self._taken = mx.random.split(key, self.n).T.reshape(-1), 0
        self._counts = mx.concatenate([mx.zeros((2 * self.n,), mx.uint32), self._counts[2 * self.n :]])
        mx.eval(self._keys)

    def _steps(self, sizes: Any) -> Any:
        length = self._settings.get("trajectory") or LENGTH
        return np.ceil(np.clip(length / sizes, 1.0, _MOST_STEPS)).astype(np.uint32)
