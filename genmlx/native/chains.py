"""Chains that run as machine code: many transitions in one call, the chains dealt to the processors.

What a chain draws depends on its key and the step sizes, not on how transitions are grouped into calls, nor on which
thread makes them. The schedule of the warm-up, step sizes to begin with, and metrics are those of
``genmlx/inference/warmup.py``.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from genmlx import random
from genmlx.inference.adaptive import Adaptive
from genmlx.inference.hmc import LENGTH
from genmlx.inference.leapfrog import Metric, identity_metric
from genmlx.inference.record import Record
from genmlx.native.drivers import drivers
from genmlx.native.drivers.chain import STATS, Chain, Desk
from genmlx.native.drivers.running import Dual
from genmlx.native.packs import packs_of
from genmlx.native.precision import Refinement
from genmlx.native.restricted import structure

_CHAIN, _DESK, _DUAL = structure(Chain), structure(Desk), structure(Dual)
_WORTH = 3e-4
"""Seconds of work below which handing it to other threads costs more than it saves."""
_LINE = 64  # bytes that two threads should not both write to


class Method(NamedTuple):
    """The functions of a sampler: a transition, a first step; and how many of the statistics it has."""

    transition: str
    first: str
    statistics: int


METHODS = {
    "nuts": Method("nuts", "first_leap", 6),
    "hmc": Method("hmc", "first_jittered_leap", 4),
    "mala": Method("mala", "first_langevin", 2),
    "random_walk": Method("random_walk", "first_shift", 2),
}


IN_LANES = ("hmc", "mala", "random_walk")
"""Those whose chains take their steps together; the trees of NUTS have too little in common."""


class Density(NamedTuple):
    """``void f(void** inputs, void** outputs, void** constants, void* scratch)`` at ``pointer``.

    Its first input is ``u [dim]`` of a dtype. Its outputs are the log density, its gradient if there are ``gradients``,
    and the log density without the Jacobian, which only ``NativeWalk.joint`` reads. ``inputs`` are the addresses of
    what it takes besides, ``constants`` that of its table, and ``owner`` keeps alive whatever these point to. With
    several ``lanes``, which are ``drivers.pack.LANES``, it is of so many vectors at once, ``u [dim, lanes]``, and its
    outputs have that axis too.
    """

    pointer: int
    dim: int
    dtype: Any
    gradients: bool = True
    inputs: tuple[int, ...] = ()
    constants: int = 0
    scratch_bytes: int = 0
    owner: Any = None
    lanes: int = 1


class NativeWalk(Adaptive):
    """Chains of a sampler on a density that is machine code, from ``start [n, dim]``.

    With a ``refinement`` the density may become one of float64 in the warm-up.
    """

    methods: Mapping[str, Method] = METHODS

    def __init__(self, method: str, density: Density, start: Any, dense: bool, settings: Mapping[str, Any]):
        n, dim = start.shape
        super().__init__(n, dim, dense)
        self.method, self.drivers = self.methods[method], drivers(density.lanes > 1)
        self.names = list(STATS[: self.method.statistics])
        self.refinement: Refinement | None = None
        self._transition = self.drivers.address(self.method.transition)
        self._seconds = 0.0  # of a transition of one chain, or pack
        self._max_depth = settings.get("max_depth", 0)
        self._places, self._gradients = np.array(start, dtype=float), np.zeros((n, dim))
        self._stats = np.zeros((n, len(STATS)))
        self._metric = np.zeros((2, dim**2 if dense else dim))
        self._mean, self._squares = np.zeros((n, dim)), np.zeros((n, dim**2 if dense else dim))
        self._chains = (_CHAIN * n)()
        for i, chain in enumerate(self._chains):
            chain.dim, chain.slopes = dim, dim if density.gradients else 0
            chain.position, chain.gradient = _address(self._places[i]), _address(self._gradients[i])
            chain.stats, chain.mean, chain.squares = map(_address, (self._stats[i], self._mean[i], self._squares[i]))
            chain.dense, (chain.inverse_mass, chain.momentum_factor) = dense, map(_address, self._metric)
            chain.max_depth = self._max_depth
            chain.leapfrog_steps = settings.get("leapfrog_steps") or 0
            chain.trajectory = settings.get("trajectory") or LENGTH
        self._units: Any = self._chains  # what is moved at once
        if density.lanes > 1:
            self._units = packs_of(self._chains, self._squares.shape[1])
        self.use(density)
        self.tune(1.0, identity_metric(dim, dense))

    def use(self, density: Density) -> None:
        """Go on with this density, of as many lanes as the one before, from where the chains are."""
        self.density, self.precision = density, np.dtype(density.dtype).name
        lanes = f", {density.lanes} lanes" if density.lanes > 1 else ""
        self.execution = f"native ({self.precision}{lanes})"
        self._desks = [_Desk(density, self._max_depth) for _ in range(min(len(self._units), _processors()))]
        for one in (*self._chains, *self._units):
            one.desk = self._desks[0].address
        self._evaluate()

    @property
    def value_and_grad(self) -> tuple[Any, Any]:
        """The log density ``[n]`` and its gradient ``[n, dim]`` where the chains are."""
        return np.array([chain.log_prob for chain in self._chains]), self._gradients.copy()

    @property
    def positions(self) -> Any:
        return self._places.astype(np.float32)

    @property
    def places(self) -> Any:
        """That, unrounded."""
        return self._places.copy()

    def log_probs(self, places: Any) -> Any:
        """The log density ``[..., n]`` as each chain sees it at places of its own, ``[..., n, dim]``."""
        own, found = self.places, np.empty(places.shape[:-1])
        for index in np.ndindex(found.shape[:-1]):
            self._places[:] = places[index]
            self._evaluate()
            found[index] = [chain.log_prob for chain in self._chains]
        self._places[:] = own
        self._evaluate()
        return found

    def tune(self, step_size: Any, metric: Metric) -> None:
        super().tune(step_size, metric)
        self._set_step_sizes(np.array(self.tuning.step_size)[:, 0].astype(float))
        for mine, theirs in zip(self._metric, metric, strict=True):
            mine[:] = np.array(theirs).reshape(-1)

    def begin(self, streams: random.Streams) -> None:
        self._sampling = streams.propose
        self._set_keys(streams.warmup)

    def end_warmup(self) -> None:
        if self.refinement and not self.learned.ends:
            self.refinement.look(self)
        self._set_keys(self._sampling)

    def first_step(self) -> Any:
        self._each(self.method.first)
        return self._stats[:, 0].copy()

    def warm(self, start: int, stop: int) -> Any:
        learned = self.learned
        while start < stop:
            count = min(stop - start, learned.ahead or stop - start)
            self._warm(count, learned.keeps)
            if learned.keeps and count == learned.ahead:
                self._tell(learned.draws)
            if learned.passed(count):
                if self.refinement:
                    self.refinement.look(self)
                learned.find_step_size(self.accept_at)
            start += count
        return self._told()

    def sample(self, record: Record, stop: int) -> None:
        done, thin = record.transitions, record.thin
        draw, left = done // thin, thin - done % thin
        names, sample, lanes = len(self.names), self.drivers.sample, self.density.lanes
        if lanes > 1:
            for pack in self._units:
                pack.draws = record.draws

        def go(i: int) -> None:
            first = i * lanes
            out = (_address(part[first]) + draw * part[first, :1].nbytes for part in (record.positions, record.stats))
            sample(self._at(i), self._transition, stop - done, thin, left, *out, names)

        self._over_chains(go, stop - done)
        record.ended[:], record.latest = stop, self._told()

    def joint(self, u: mx.array) -> mx.array:
        """The log density without the Jacobian at vectors ``[m, dim]``."""
        rows = np.ascontiguousarray(np.array(u))
        units = len(self._units)
        found, ends = np.zeros(len(rows), dtype=np.float32), [len(rows) * i // units for i in range(units + 1)]

        def go(i: int) -> None:
            first, count = ends[i], ends[i + 1] - ends[i]
            self.drivers.joints(self._at(i), _address(rows[first:]), count, _address(found[first:]))

        self._over_chains(go, len(rows) // units + 1)
        return mx.array(found)

    def state_of_chains(self) -> dict:
        words = [(c.first_key, c.second_key, c.taken, c.kept) for c in self._chains]
        arrays = (np.array(words, dtype=np.uint64), self._places, self._mean, self._squares)
        return {"chains": [array.view(np.uint32) for array in arrays], "precision": self.precision}

    def restore_chains(self, saved: dict) -> None:
        words, *rest = [np.array(array, dtype=np.uint32) for array in saved["chains"]]
        if words.shape != (self.n, 8):
            raise ValueError("the states of the chains have another form")
        for mine, theirs in zip((self._places, self._mean, self._squares), rest, strict=True):
            mine[:] = theirs.view(float)
        for chain, own in zip(self._chains, words.view(np.uint64).tolist(), strict=True):
            chain.first_key, chain.second_key, chain.taken, chain.kept = own
        if self.precision != saved["precision"] and self.refinement:
            self.refinement.switch(self)
        if self.precision != saved["precision"]:
            raise ValueError(f"what was {saved['precision']} cannot be that here")
        self._evaluate()

    def _warm(self, count: int, keep: bool) -> None:
        """Transitions, after each of which the step size follows the acceptance: of each chain, or of all."""
        dual, run = self.learned.dual, self.drivers
        saved = dual.state()
        duals = (_DUAL * len(dual.step_size))()
        for i, own in enumerate(duals):
            own.target, own.count = dual.target, saved["count"]
            own.step_size, own.mu = saved["step_size"][i], saved["_mu"][i]
            own.error, own.log_averaged = saved["_error"][i], saved["_log_averaged"][i]
        self._set_step_sizes(np.broadcast_to(dual.step_size, self.n))
        if len(duals) > 1:
            size = ctypes.sizeof(_DUAL) * self.density.lanes

            def alone(i: int) -> None:
                run.warm_alone(self._at(i), self._transition, count, keep, ctypes.addressof(duals) + i * size)

            self._over_chains(alone, count)
        elif len(self._desks) > 1 and self._seconds * len(self._units) > _WORTH:
            for _ in range(count):
                self._over_chains(lambda i: run.advance(self._at(i), self._transition, keep), 1)
                run.settle(self._chains, self.n, duals)
        else:
            start = time.perf_counter()
            run.warm(self._units, len(self._units), self._transition, count, keep, duals)
            self._seconds = (time.perf_counter() - start) / (count * len(self._units))
        found = {name: [getattr(own, name.strip("_")) for own in duals] for name in ("step_size", "_mu")}
        found |= {name: [getattr(own, name[1:]) for own in duals] for name in ("_error", "_log_averaged")}
        dual.restore({**saved, **found, "count": duals[0].count})
        self.step_size = min(found["step_size"])

    def _tell(self, draws: Any) -> None:
        """Where the chains were in the window that ends, which is then forgotten."""
        for i, chain in enumerate(self._chains):
            squares = self._squares[i].reshape(self.dim, self.dim) if self.dense else self._squares[i]
            draws.merge(chain.kept, *(mx.array(part.astype(np.float32)) for part in (self._mean[i], squares)))
            chain.kept = 0
        self._mean[:], self._squares[:] = 0, 0

    def _told(self) -> Any:
        """The statistics of the last transitions; divergences are counted."""
        for chain in self._chains:
            self.diverged, chain.divergences = self.diverged + chain.divergences, 0
        return self._stats[:, : len(self.names)].copy()

    def _evaluate(self) -> None:
        self._each("begin")

    def _each(self, what: str) -> None:
        self.drivers.each(self._units, len(self._units), self.drivers.address(what))

    def _set_keys(self, key: Any) -> None:
        words = np.array(mx.random.split(key, 2 * self.n)).reshape(self.n, 4).view(np.uint64).tolist()
        for chain, (first, second) in zip(self._chains, words, strict=True):
            chain.first_key, chain.second_key, chain.taken = first, second, 0

    def _set_step_sizes(self, sizes: Any) -> None:
        for chain, size in zip(self._chains, sizes.tolist(), strict=True):
            chain.step_size = size

    def _at(self, i: int) -> int:
        """Where a chain, or pack, is in memory."""
        return ctypes.addressof(self._units) + i * ctypes.sizeof(self._units[0])

    def _over_chains(self, go: Callable[[int], None], transitions: int) -> None:
        """``go(i)``, which makes so many transitions, for every unit: one after the other, or on several threads."""
        start, workers, units = time.perf_counter(), len(self._desks), self._units
        if workers == 1 or self._seconds * len(units) * transitions < _WORTH:
            workers = 1
            for i in range(len(units)):
                go(i)
        else:
            waiting: Any = iter(range(len(units)))

            def work(desk: _Desk) -> None:
                for i in waiting:
                    units[i].desk = desk.address
                    go(i)

            for done in [_pool().submit(work, desk) for desk in self._desks]:
                done.result()
            for unit in units:
                unit.desk = self._desks[0].address
        self._seconds = (time.perf_counter() - start) * workers / (len(units) * transitions)


class _Desk:
    """What a thread writes to, in memory of its own."""

    def __init__(self, density: Density, max_depth: int):
        dim, single, each = density.dim, np.dtype(density.dtype) == np.float32, 8 * density.lanes
        self._owned: list[Any] = []
        work = self._memory(each * (12 + 2 * max_depth) * dim)
        u, slope, value, joint = (self._memory(each * size) for size in (dim, dim, 1, 1))
        inputs, outputs = (u, *density.inputs), (value, slope, joint) if density.gradients else (value, joint)
        scratch = self._memory(density.scratch_bytes)
        self.struct = _DESK(
            density=density.pointer,
            inputs=self._table(inputs),
            outputs=self._table(outputs),
            constants=density.constants,
            scratch=scratch,
            single=single,
            work=work,
            **{"u": u, "value": value, "slope": slope, "joint": joint},
            **{"u32": u, "value32": value, "slope32": slope, "joint32": joint},
        )
        self._owned.append(density.owner)
        self.address = ctypes.addressof(self.struct)

    def _memory(self, size: int) -> int:
        """That many bytes at least, which no line of the cache shares with other memory."""
        memory = np.zeros(size + 2 * _LINE, dtype=np.uint8)
        self._owned.append(memory)
        return -(-_address(memory) // _LINE) * _LINE

    def _table(self, pointers: tuple[int, ...]) -> int:
        self._owned.append(np.array(pointers, dtype=np.uintp))
        return _address(self._owned[-1])


def _address(array: Any) -> int:
    return array.ctypes.data


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_processors(), "genmlx-native")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a child
