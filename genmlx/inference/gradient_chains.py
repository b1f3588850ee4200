"""Running gradient samplers: warm-up together, then every chain at its own pace.

A sampler's ``step`` is one evaluation of the log density by all chains, recorded once as an MLX graph. Transitions
may take many steps, and different numbers of them: a chain that ends one begins the next in the same step, so that
sampling needs no decision on the host, and none waits. During warm-up all wait for the last, because the step size
changes after each transition.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import optree

from genmlx import random
from genmlx.backend.recording import recorded
from genmlx.errors import ParameterError
from genmlx.gfi import Call, gen_errors
from genmlx.inference.checkpoint import Checkpoint
from genmlx.inference.draws import watched
from genmlx.inference.leapfrog import Metric, Point, ValueAndGrad, evaluate, identity_metric
from genmlx.inference.live_rhat import WATCHED
from genmlx.inference.loop import Loop
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import checked_problem, positive_count
from genmlx.inference.record import Record
from genmlx.inference.replay import REPLAYED
from genmlx.inference.walks import _fits
from genmlx.inference.warmup import Warmup
from genmlx.versions import pinned

_NOISE, _UNPACKED = 16, 50_000  # steps whose noise is drawn at once; draws that are unpacked at once
_LONGEST = 1000
"""The most steps of one evaluation in the warm-up, where the end of a trajectory is waited for."""


class Noise(NamedTuple):
    """What one step may use: standard normal ``[n, dim]``, and three uniforms ``[n, 1]`` on (0, 1)."""

    normal: mx.array
    uniforms: tuple[mx.array, mx.array, mx.array]


class Tuning(NamedTuple):
    """What warm-up finds: ``step_size [n, 1]`` and the metric."""

    step_size: mx.array
    metric: Metric


class Info(NamedTuple):
    """``done [n, 1]`` says which chains ended a transition; ``point`` is where, packed; ``stats`` are ``[n, 1]``."""

    done: mx.array
    point: mx.array
    stats: dict[str, mx.array]


def packed(point: Point) -> mx.array:
    """Position, gradient and log density in one array ``[n, 2 dim + 1]``."""
    return mx.concatenate([point.position, point.gradient, point.log_prob], axis=-1)


class Sampler(NamedTuple):
    """``init(point, noise, tuning) -> state`` begins a transition of every chain.

    ``step(state, noise, tuning) -> (state, info)`` evaluates the log density once for each; a chain that is done has
    begun the next transition. ``accept`` is among its stats. After ``look_after(step_size)`` steps all may be done.
    """

    init: Callable[[Point, Noise, Tuning], Any]
    step: Callable[[Any, Noise, Tuning], tuple[Any, Info]]
    look_after: Callable[[float], int]


def run_gradient_chains(
    algorithm: str,
    call: Call,
    observations: Any,
    make_sampler: Callable[[ValueAndGrad], Sampler],
    *,
    draws: int,
    warmup: int,
    thin: int,
    chains: int,
    target_accept: float,
    dense: bool,
    key: Any,
    progress: Callable | None,
    checkpoint: str | os.PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
    step_size: float | None = None,
    gradients: bool = True,
) -> Posterior:
    """A posterior of ``[chains, draws]``; ``step_size`` is where warm-up begins, found by doubling if not given.

    A sampler without ``gradients`` sees zeros for them. ``settings`` is what else the draws depend on: a ``checkpoint``
    is resumed only where they are equal.
    """
    from genmlx.inference.log_density import LogDensity

    observations = checked_problem(call, observations)
    for name, count, least in (("draws", draws, 1), ("warmup", warmup, 0), ("thin", thin, 1), ("chains", chains, 1)):
        positive_count(name, count, least)
    key = random.as_key(key)
    streams = random.streams(key)
    with pinned() as pins, gen_errors(call.gen_fn), Loop(algorithm, progress) as loop:
        density = LogDensity(call, observations)
        start = density.initial(streams.initialise, chains)
        value_and_grad = density.value_and_grad if gradients else _flat_density(density.logp)
        walk = Walk(make_sampler(value_and_grad), value_and_grad, start, dense)
        walk.watched = lambda positions: watched(_constrained(density, positions)[0], WATCHED)
        counts = {"draws": draws, "warmup": warmup, "thin": thin}
        if checkpoint is not None:
            own = {"chains": chains, "target_accept": target_accept, "dense": dense, **(settings or {})}
            loop.file = Checkpoint.of(checkpoint, algorithm, call, observations, key, **counts, **own)
        positions, stats = walk.run(loop, streams, **counts, target_accept=target_accept, step_size=step_size)
        values, log_joint = _constrained(density, positions)
    result = Posterior(
        values,
        stats=stats,
        log_joint=log_joint,
        call=call,
        pins=pins,
        observations=observations,
        algorithm=algorithm,
        status=loop.status,
        timing=loop.timing,
        execution=walk.execution,
    )
    return loop.deliver(result)


class Walk:
    """Chains of a sampler on a log density of unconstrained vectors, ``[n, dim]``."""

    def __init__(self, sampler: Sampler, value_and_grad: ValueAndGrad, start: mx.array, dense: bool = False):
        self.n, self.dim = start.shape
        self.sampler, self.dense = sampler, dense
        self.watched: Callable[[Any], dict] = lambda positions: {}  # what to show of positions [chains, draws, dim]
        self.point = evaluate(value_and_grad, start)
        mx.eval(self.point)
        self.diverged = 0
        self.tune(1.0, identity_metric(self.dim, dense))
        noise = next(noises(mx.random.key(0), self.n, self.dim))
        self.init = _Graph(sampler.init, self.point, noise, self.tuning)
        self.state = self.init(self.point, noise, self.tuning)
        self.step = _Graph(self._packed_step, self.init.fill(self.state), noise, self.tuning)
        self.execution = self.step.execution

    def _packed_step(self, state: Any, noise: Noise, tuning: Tuning) -> Any:
        """The step, with all of its info in one array ``[n, width]``: done, position, gradient, log density, stats."""
        state, info = self.sampler.step(state, noise, tuning)
        self.names = list(info.stats)
        columns = [info.done, info.point, *info.stats.values()]
        return state, mx.concatenate([column.astype(mx.float32) for column in columns], axis=-1)

    def tune(self, step_size: Any, metric: Metric) -> None:
        """Set the step size, one number or one for each chain, and the metric."""
        sizes = mx.array(step_size, dtype=mx.float32).reshape(-1, 1)
        self.tuning = Tuning(mx.contiguous(mx.broadcast_to(sizes, (self.n, 1))), metric)
        self.step_size: Any = mx.min(sizes).item()

    def column(self, name: str) -> int:
        return 2 + 2 * self.dim + self.names.index(name)

    def run(
        self,
        loop: Loop,
        streams: random.Streams,
        *,
        draws: int,
        warmup: int,
        thin: int = 1,
        target_accept: float = 0.8,
        step_size: float | None = None,
    ) -> tuple[Any, dict[str, mx.array]]:
        """Positions ``[chains, draws, dim]`` as a numpy array, and the statistics ``[chains, draws]``."""
        self.learned = Warmup(warmup, self.n, self.dim, target_accept, self.dense)
        record = Record(self, draws, thin)
        self.early, self.supply = [_Supply(key, self.n, self.dim) for key in (streams.warmup, streams.propose)]
        at = loop.resume(lambda at: self._restore(at.state, record))
        if at.phase == "warmup":
            self._warm_up(loop, warmup, step_size, at.done, lambda: self._state(record))
            self.state, self.diverged = self.init(self.point, self.supply.next(), self.tuning), 0

        def sample(start: int, stop: int) -> Callable:
            while (missing := stop - record.transitions) > 0:
                rows = []
                for _ in range(record.steps_for(missing)):
                    *self.state, row = self.step(self.state, self.supply.next(), self.tuning)
                    rows.append(row)
                mx.eval(self.state, rows)
                record.add(rows)
            return record.shown

        done = at.done_in("sampling")
        loop.run("sampling", draws * thin, sample, least=thin, done=done, state=lambda: self._state(record))
        return record.finish()

    def _warm_up(self, loop: Loop, transitions: int, step_size: float | None, done: int, state: Callable) -> None:
        learned = self.learned
        if transitions == 0 and step_size is not None:
            self.tune(step_size, self.tuning.metric)
            return

        def accept_at(step_size: Any) -> Any:
            self.tune(step_size, learned.metric)
            return self._column(self._first_step(), "accept")

        def block(start: int, stop: int) -> Callable:
            table: Any = None
            for _ in range(start, stop):
                self.tune(learned.step_size, learned.metric)
                table = self._transition()
                self.count_divergences(table)
                if learned.update(self._column(table, "accept"), self.point.position):
                    learned.find_step_size(accept_at)
            return lambda: self._shown_early(table)

        if done == 0:
            learned.find_step_size(accept_at, None if step_size is None else [step_size] * self.n)
        loop.run("warmup", transitions, block, least=0, done=done, state=state)
        self.tune(learned.finish(), learned.metric)

    def _state(self, record: Record) -> dict:
        """What ``_restore`` needs to go on from between two blocks, of warm-up or of sampling."""
        return {
            "learned": self.learned.state(),
            "tuning": [self.tuning.step_size, *self.tuning.metric],
            "point": list(self.point),
            "trajectories": self.state,
            "record": record.state(),
            "diverged": self.diverged,
            "steps": [self.early.taken, self.supply.taken],
        }

    def _restore(self, saved: dict, record: Record) -> None:
        if not _fits([*saved["point"], *saved["trajectories"]], [*self.point, *self.state]):
            raise ValueError("the states of the chains have another form")
        self.learned.restore(saved["learned"])
        step_size, *metric = saved["tuning"]
        self.tune(step_size, Metric(*metric))
        self.point, self.state, self.diverged = Point(*saved["point"]), saved["trajectories"], saved["diverged"]
        record.restore(saved["record"])
        for supply, taken in zip((self.early, self.supply), saved["steps"], strict=True):
            supply.skip(taken)

    def count_divergences(self, table: Any) -> None:
        if "diverging" in self.names:
            self.diverged += int(table[:, self.column("diverging")].sum())

    def shown(self, means: dict, draws: int = 0, rhat: float = math.nan) -> dict:
        """What a progress callback is told."""
        found = {**means, "step_size": self.step_size, "draws": draws, "rhat": rhat}
        return found | ({"divergences": self.diverged} if "diverging" in self.names else {})

    def _shown_early(self, table: Any) -> dict:
        """What it is told in warm-up, which keeps no draws: of each number, where the chains are."""
        import numpy as np

        each = {name: self._column(table, name) for name in self.names}
        place = np.array(self.point.position)[:, None]
        return {
            **self.shown({name: float(values.mean()) for name, values in each.items()}),
            "chains": lambda: {name: values.tolist() for name, values in each.items()},
            "watch": lambda: self.watched(place),
        }

    def _transition(self) -> Any:
        """One transition of every chain; what each did, packed, as a numpy array."""
        import numpy as np

        state = self.init(self.point, self.early.next(), self.tuning)
        kept = None
        while True:
            for _ in range(min(self.sampler.look_after(self.step_size), _LONGEST)):
                *state, row = self.step(state, self.early.next(), self.tuning)
                kept = row if kept is None else mx.where(kept[:, :1] > 0, kept, row)
            assert kept is not None
            waiting = mx.any(kept[:, 0] == 0)
            mx.eval(state, kept, waiting)
            if not waiting.item():
                break
        d = self.dim
        self.point = Point(kept[:, 1 : d + 1], kept[:, 2 * d + 1 : 2 * d + 2], kept[:, d + 1 : 2 * d + 1])
        return np.array(kept)

    def _first_step(self) -> Any:
        """The first step of a transition, packed; a transition of one step would be done."""
        import numpy as np

        noise = self.early.next()
        *_, row = self.step(self.init(self.point, noise, self.tuning), noise, self.tuning)
        return np.array(row)

    def _column(self, table: Any, name: str) -> Any:
        """One statistic of each chain."""
        return table[:, self.column(name)].astype(float)


class _Graph:
    """A function of trees of arrays as a recorded graph: ``graph(*trees)`` is the list of arrays of its result."""

    def __init__(self, f: Callable, *trees: Any):
        together: Any = trees
        arrays, spec = optree.tree_flatten(together)
        self.execution = REPLAYED
        self._spec: Any = None

        def flat(*arrays: mx.array) -> list:
            out, self._spec = optree.tree_flatten(f(*optree.tree_unflatten(spec, arrays)))
            return out

        mx.eval(arrays)
        self._run: Callable = flat
        try:
            run = recorded(flat, *arrays)
            mx.eval(run(*arrays))
            self._run = run
        # A primitive that cannot be exported; or a thread whose stream is not the first (MLX 0.32.4 asks for that one).
        except (ValueError, RuntimeError, OSError) as error:
            self.execution = f"not replayed: {error}"

    def __call__(self, *trees: Any) -> list[mx.array]:
        return self._run(*[array for tree in trees for array in optree.tree_leaves(tree)])

    def fill(self, arrays: list[mx.array]) -> Any:
        return optree.tree_unflatten(self._spec, arrays)


def noises(key: Any, n: int, dim: int, start: int = 0) -> Iterator[Noise]:
    """The noise of each step from ``start`` on, which does not depend on how the steps are grouped."""
    keys = random.Keys(key)
    for _ in range(2 * (start // _NOISE)):  # one for the normals of each group of steps, one for the uniforms
        keys.next()
    first = start % _NOISE
    while True:
        normals = mx.split(random.normal(keys.next(), (_NOISE * n, dim)), _NOISE)
        uniforms = mx.split(random.uniform_open(keys.next(), (3 * _NOISE * n, 1)), 3 * _NOISE)
        mx.eval(normals, uniforms)
        for i in range(first, _NOISE):
            yield Noise(normals[i], (uniforms[3 * i], uniforms[3 * i + 1], uniforms[3 * i + 2]))
        first = 0


class _Supply:
    """Noise, and for how many steps it has been ``taken``."""

    def __init__(self, key: Any, n: int, dim: int):
        self._of = key, n, dim
        self.skip(0)

    def skip(self, taken: int) -> None:
        """Go on as if that many had been taken."""
        self.taken, self._noises = taken, noises(*self._of, taken)

    def next(self) -> Noise:
        self.taken += 1
        return next(self._noises)


def _flat_density(logp: Callable) -> ValueAndGrad:
    return lambda u: (logp(u), mx.zeros_like(u))


def _constrained(density: Any, positions: Any) -> tuple[dict, mx.array]:
    """The values at each address ``[chains, draws, *event]`` and the log joint density, of unconstrained draws."""
    chains, draws, dim = positions.shape
    flat = positions.reshape(-1, dim)
    parts: list[tuple[dict, mx.array]] = []
    for start in range(0, len(flat), _UNPACKED):
        u = mx.array(flat[start : start + _UNPACKED])
        values, log_joint = dict(density.unpack(u).items()), density.joint(u)
        mx.eval(list(values.values()), log_joint)
        parts.append((values, log_joint))
    joined = {a: mx.concatenate([values[a] for values, _ in parts]) for a in parts[0][0]}
    log_joint = mx.concatenate([part for _, part in parts]).reshape(chains, draws)
    return {a: v.reshape(chains, draws, *v.shape[1:]) for a, v in joined.items()}, log_joint


def checked_fraction(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ParameterError(f"{name} must lie between 0 and 1, got {value!r}")
    return value
