"""Running gradient samplers: warm-up together, then every chain at its own pace.

A sampler's ``step`` is one evaluation of the log density by all chains, recorded once as an MLX graph. Transitions
may take many steps, and different numbers of them: a chain that ends one begins the next in the same step, so that
sampling needs no decision on the host, and none waits. During warm-up all wait for the last, because the step size
changes after each transition.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import optree

from genmlx import random
from genmlx.backend.recording import recorded
from genmlx.errors import ParameterError, UsageError
from genmlx.gfi import Call, gen_errors
from genmlx.inference.adaptive import Adaptive, Native, Tuning
from genmlx.inference.checkpoint import Checkpoint
from genmlx.inference.draws import watched
from genmlx.inference.leapfrog import Point, ValueAndGrad, evaluate, identity_metric
from genmlx.inference.live_rhat import WATCHED
from genmlx.inference.loop import Loop
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import checked_problem, positive_count
from genmlx.inference.record import Record
from genmlx.inference.replay import REPLAYED
from genmlx.inference.walks import _fits
from genmlx.versions import pinned

_NOISE, _UNPACKED = 16, 50_000  # steps whose noise is drawn at once; draws that are unpacked at once
_LONGEST = 1000
"""The most steps of one evaluation in the warm-up, where the end of a trajectory is waited for."""


class Noise(NamedTuple):
    """What one step may use: standard normal ``[n, dim]``, and three uniforms ``[n, 1]`` on (0, 1)."""

    normal: mx.array
    uniforms: tuple[mx.array, mx.array, mx.array]


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
    native: Native = None,
) -> Posterior:
    """A posterior of ``[chains, draws]``; ``step_size`` is where warm-up begins, found by doubling if not given.

    A sampler without ``gradients`` sees zeros for them. ``settings`` is what else the draws depend on: a ``checkpoint``
    is resumed only where they are equal. ``native``: as machine code or not; by default where that can be.
    """
    from genmlx.inference.log_density import LogDensity

    if native not in (None, False, True, "float32", "float64"):
        raise UsageError(f"native={native!r}", expected='None, True, False, "float32" or "float64"')
    observations = checked_problem(call, observations)
    for name, count, least in (("draws", draws, 1), ("warmup", warmup, 0), ("thin", thin, 1), ("chains", chains, 1)):
        positive_count(name, count, least)
    key = random.as_key(key)
    streams = random.streams(key)
    with pinned() as pins, gen_errors(call.gen_fn), Loop(algorithm, progress) as loop:
        density = LogDensity(call, observations)
        start = density.initial(streams.initialise, chains)
        walk = walk_of(
            algorithm, density, make_sampler, start, dense=dense, settings=settings, gradients=gradients, native=native
        )
        walk.watched = lambda positions: watched(_constrained(density, positions)[0], WATCHED)
        counts = {"draws": draws, "warmup": warmup, "thin": thin}
        if checkpoint is not None:
            own = {"chains": chains, "target_accept": target_accept, "dense": dense, **(settings or {})}
            own["native"] = native if isinstance(native, str) else not isinstance(walk, Walk)
            loop.file = Checkpoint.of(checkpoint, algorithm, call, observations, key, **counts, **own)
        positions, stats = walk.run(loop, streams, **counts, target_accept=target_accept, step_size=step_size)
        values, log_joint = _constrained(density, positions, walk.joint)
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


def walk_of(
    algorithm: str,
    density: Any,
    make_sampler: Callable[[ValueAndGrad], Sampler],
    start: mx.array,
    *,
    dense: bool = False,
    settings: Mapping[str, Any] | None = None,
    gradients: bool = True,
    native: Native = None,
) -> Adaptive:
    """The chains of a sampler on a ``LogDensity``: machine code where that can be, else recorded MLX graphs."""
    if native is not False:
        from genmlx.native.density import native_walk

        precision = native if isinstance(native, str) else None
        how = (dense, settings or {}, gradients, precision)
        found = native_walk(algorithm, density, start, *how, required=native is not None)
        if found is not None:
            return found
    value_and_grad = density.value_and_grad if gradients else _flat_density(density.logp)
    return Walk(make_sampler(value_and_grad), value_and_grad, start, dense)


class Walk(Adaptive):
    """Chains of a sampler on a log density of unconstrained vectors, ``[n, dim]``, as recorded MLX graphs."""

    def __init__(self, sampler: Sampler, value_and_grad: ValueAndGrad, start: mx.array, dense: bool = False):
        n, dim = start.shape
        super().__init__(n, dim, dense)
        self.sampler = sampler
        self.tune(1.0, identity_metric(dim, dense))
        self.point = evaluate(value_and_grad, start)
        mx.eval(self.point)
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

    @property
    def positions(self) -> Any:
        import numpy as np

        return np.array(self.point.position)

    def begin(self, streams: random.Streams) -> None:
        self.early, self.supply = [_Supply(key, self.n, self.dim) for key in (streams.warmup, streams.propose)]

    def warm(self, start: int, stop: int) -> Any:
        learned, table = self.learned, None
        for _ in range(start, stop):
            self.tune(learned.step_size, learned.metric)
            table = self._transition()
            self.count_divergences(table)
            if learned.update(self._stats(table)[:, self.names.index("accept")].astype(float), self.point.position):
                learned.find_step_size(self.accept_at)
        return self._stats(table)

    def first_step(self) -> Any:
        import numpy as np

        noise = self.early.next()
        *_, row = self.step(self.init(self.point, noise, self.tuning), noise, self.tuning)
        return self._stats(np.array(row))[:, self.names.index("accept")].astype(float)

    def end_warmup(self) -> None:
        self.state = self.init(self.point, self.supply.next(), self.tuning)

    def sample(self, record: Record, stop: int) -> None:
        while (missing := stop - record.transitions) > 0:
            rows = []
            for _ in range(record.steps_for(missing)):
                *self.state, row = self.step(self.state, self.supply.next(), self.tuning)
                rows.append(row)
            mx.eval(self.state, rows)
            record.add(rows)

    def state_of_chains(self) -> dict:
        return {
            "point": list(self.point),
            "trajectories": self.state,
            "steps": [self.early.taken, self.supply.taken],
        }

    def restore_chains(self, saved: dict) -> None:
        if not _fits([*saved["point"], *saved["trajectories"]], [*self.point, *self.state]):
            raise ValueError("the states of the chains have another form")
        self.point, self.state = Point(*saved["point"]), saved["trajectories"]
        for supply, taken in zip((self.early, self.supply), saved["steps"], strict=True):
            supply.skip(taken)

    def count_divergences(self, table: Any) -> None:
        if "diverging" in self.names:
            self.diverged += int(self._stats(table)[:, self.names.index("diverging")].sum())

    def _stats(self, table: Any) -> Any:
        """The statistics of packed steps, ``[n, names]``."""
        return table[:, 2 * self.dim + 2 :]

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


def _constrained(density: Any, positions: Any, joint: Callable | None = None) -> tuple[dict, mx.array]:
    """The values at each address ``[chains, draws, *event]`` and the log joint density, of unconstrained draws."""
    chains, draws, dim = positions.shape
    flat = positions.reshape(-1, dim)
    parts: list[tuple[dict, mx.array]] = []
    for start in range(0, len(flat), _UNPACKED):
        u = mx.array(flat[start : start + _UNPACKED])
        values, log_joint = dict(density.unpack(u).items()), (joint or density.joint)(u)
        mx.eval(list(values.values()), log_joint)
        parts.append((values, log_joint))
    joined = {a: mx.concatenate([values[a] for values, _ in parts]) for a in parts[0][0]}
    log_joint = mx.concatenate([part for _, part in parts]).reshape(chains, draws)
    return {a: v.reshape(chains, draws, *v.shape[1:]) for a, v in joined.items()}, log_joint


def checked_fraction(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ParameterError(f"{name} must lie between 0 and 1, got {value!r}")
    return value
