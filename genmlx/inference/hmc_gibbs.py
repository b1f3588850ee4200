"""Models with continuous and discrete latent choices: Hamiltonian Monte Carlo on the ones, Gibbs sweeps on the others.

Each draw is a trajectory given the discrete choices (Duane et al. 1987), then a sweep given the continuous ones (Geman
and Geman 1984), both of which leave the posterior as it is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.mapping import vmap_list
from genmlx.choicemap import ChoiceMap
from genmlx.dist.values import as_array
from genmlx.errors import UsageError
from genmlx.gfi import Call
from genmlx.inference.chains import Run
from genmlx.inference.conditional import Conditional, batched_gradient
from genmlx.inference.gradient_chains import Noise, Tuning, _Graph, checked_fraction
from genmlx.inference.hmc import require_length, sampler
from genmlx.inference.kernels import Kernel, Staged, Step, itself
from genmlx.inference.leapfrog import Metric, ValueAndGrad, evaluate
from genmlx.inference.mh import movable
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import checked_problem, positive_count
from genmlx.inference.replay import Lanes
from genmlx.inference.starts import NoStartingPoint
from genmlx.inference.sweeps import find_sites, sweep_kernel
from genmlx.inference.walks import STARTS, Batch, _fits, _start
from genmlx.inference.warmup import Warmup
from genmlx.masked import Masked
from genmlx.pytree import split_arrays
from genmlx.trace import Trace
from genmlx.vectorized import Lanes as Rows
from genmlx.vectorized import VectorizedTrace, run, where

_PRIOR_STARTS, _UNIFORM_STARTS = 10, 10
_MOST_STEPS = 100  # of one trajectory: all chains wait for the one whose steps are the smallest


def hmc_gibbs(
    call: Call,
    observations: Any = None,
    selection: Any = None,
    draws: int = 1000,
    warmup: int = 1000,
    thin: int = 1,
    chains: int = 4,
    leapfrog_steps: int | None = None,
    trajectory: float | None = None,
    target_accept: float = 0.8,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Posterior:
    """A posterior of ``[chains, draws]`` of continuous and discrete choices: by default every latent one.

    Each draw moves the continuous choices of the ``selection`` by a trajectory of ``hmc``, with its settings, and then
    the discrete ones by a sweep of ``gibbs``, which needs each of them to have a finite support. What is not selected
    stays as it was drawn from the prior. The first ``warmup`` draws find the step size and a diagonal mass matrix, for
    all chains together. Trajectories are those of ``hmc``, not of ``nuts``: they have one length, where with others
    all chains would wait in each draw for the longest, to sweep together. They have at most 100 steps, unless
    ``leapfrog_steps`` says otherwise.

    ``stats``: ``accept``, ``energy``, ``diverging``, ``n_leapfrog``, ``step_size``, and ``changed``, the share of the
    discrete choices that moved. A model without continuous choices, or without discrete ones, raises: it is for
    ``gibbs``, or for ``nuts``. So does one that cannot be batched. ``checkpoint`` names a file from which the same run
    goes on if it was killed, with the same draws.

    >>> import mlx.core as mx
    >>> from genmlx import flip, gen, normal, trace
    >>> @gen
    ... def model():
    ...     mu, k = trace("mu", normal(0, 1)), trace("k", flip(0.5))
    ...     trace("y", normal(mu + 3.0 * k, 1.0))
    >>> post = hmc_gibbs(model(), {"y": 3.0}, draws=500, warmup=100, chains=8, key=mx.random.key(0))
    >>> post["mu"].shape, abs(post.mean("k").item() - 0.905) < 0.05
    ((8, 500), True)
    """
    observations = checked_problem(call, observations)
    positive_count("chains", chains)
    require_length("hmc_gibbs", leapfrog_steps, trajectory)
    checked_fraction("target_accept", target_accept)

    def start(streams: random.Streams) -> Mixed:
        # What is not evaluated yet would become a part of every graph.
        mx.eval(split_arrays((call.gen_fn.bind(call), observations))[0])
        keys = random.split(streams.initialise, 2)
        first = _start(call, observations, 1, random.split(keys[0], STARTS))
        addresses, discrete = _parts(call, selection, observations, first)
        batch, u = _starting_points(call, observations, chains, keys[1], addresses)
        sweeps = sweep_kernel(find_sites(first[0], discrete))

        def make_sampler(density):
            return sampler(density, leapfrog_steps, trajectory or math.pi / 2, _MOST_STEPS)

        learned = Warmup(warmup, chains, u.shape[1], target_accept, dense=False)
        return Mixed(batch, u, addresses, sweeps, observations, make_sampler, learned)

    settings = {
        "selection": selection,
        "leapfrog_steps": leapfrog_steps,
        "trajectory": trajectory,
        "target_accept": target_accept,
    }
    chains_of = Run("hmc_gibbs", call, observations, draws, warmup, thin, key, progress, checkpoint, settings)
    return chains_of.through(start)


class Mixed:
    """Chains at the place that they have reached: coordinates ``[n, dim]``, and traces in the state of a sweep.

    One step is a few recorded graphs: the start of a trajectory, a leapfrog step, the traces at its end, and a sweep.
    """

    def __init__(
        self,
        batch: VectorizedTrace,
        u: mx.array,
        addresses: list[tuple],
        sweeps: Kernel,
        observations: ChoiceMap,
        make_sampler: Callable[[ValueAndGrad], Any],
        learned: Warmup,
    ):
        self.chains, self.dim = u.shape
        self._args, self._addresses, self._observations = batch.args, addresses, observations
        self._trace_of: Callable[[Any], Trace] = itself if sweeps.init is itself else lambda state: state[0]
        self._make_sampler, self._began = make_sampler, False
        self._learned: Any = learned  # None once the warm-up is over
        self._batch = Batch(batch, self._swept(sweeps), observations)
        self._move_to(u)
        self._tune(1.0, learned.metric)
        noise = self._noise(mx.random.key(0))
        self._begin = _Graph(self._beginning, self._arrays, noise, self.tuning)
        state = self._begin.fill(self._begin(self._arrays, noise, self.tuning))
        self._leap = _Graph(self._leaping, self._arrays, state, noise, self.tuning)
        parts = (self._leap.execution, self._begin.execution, self._batch.execution)
        self.execution = next((part for part in parts if part != parts[-1]), parts[-1])
        self._look_after = make_sampler(self._density(self._arrays)).look_after

    # what is recorded

    def _swept(self, sweeps: Kernel) -> Kernel:
        """The sweep of a state that has the coordinates too, from the traces there."""

        def put(state: tuple, key: Any) -> Any:
            u, inner = state
            trace = self._conditional(self._trace_of(inner)).moved(u)
            return (u, trace if sweeps.init is itself else (trace, *inner[1:])), {}

        def keeping(step: Step) -> Step:
            def kept(state: tuple, key: Any) -> Any:
                inner, info = step(state[1], key)
                return (state[0], inner), info

            return kept

        stages = [(put, 1), *((keeping(step), times) for step, times in sweeps.stages)]
        return Staged(
            stages,
            lambda trace: (self._conditional(trace).position, sweeps.init(trace)),
            lambda state: sweeps.read(state[1]),
        )

    def _conditional(self, trace: Trace) -> Conditional:
        return Conditional(trace, self._addresses, self._observations)

    def _density(self, arrays: list[mx.array]) -> ValueAndGrad:
        """The log density of coordinates, given the other choices of the traces."""
        lanes = self._batch.lanes

        def lane(u: mx.array, *own: mx.array) -> list:
            _, inner = lanes.state(own, self._args)
            return [self._conditional(self._trace_of(inner)).at(u)[1]]

        return lambda u: batched_gradient(lambda u: vmap_list(lane, u, *arrays)[0], u)

    def _beginning(self, arrays: list[mx.array], noise: Noise, tuning: Tuning) -> Any:
        density = self._density(arrays)
        return self._make_sampler(density).init(evaluate(density, arrays[0]), noise, tuning)

    def _leaping(self, arrays: list[mx.array], state: Any, noise: Noise, tuning: Tuning) -> Any:
        """A leapfrog step, with its info in one array ``[n, width]``: done, position, stats."""
        state, info = self._make_sampler(self._density(arrays)).step(state, noise, tuning)
        self._names = list(info.stats)
        columns = [info.done, info.point[:, : self.dim], *info.stats.values()]
        return state, mx.concatenate([column.astype(mx.float32) for column in columns], axis=-1)

    # steps

    def advance(self, key: Any, warm: bool = False) -> tuple[ChoiceMap, Any, dict]:
        leap_key, sweep_key = random.split(key)
        keys = random.Keys(leap_key)
        self._adapt(keys, warm)
        ended = self._transition(self._noise(keys.next()))
        self._move_to(ended[:, 1 : self.dim + 1])
        if warm and self._learned.update(self._column(ended, "accept"), self._arrays[0]):
            self._find_step_size(keys)
        choices, score, info = self._batch.advance(sweep_key)
        stats = {name: self._stat(ended, name) for name in self._names}
        return choices, score, {**stats, "step_size": self.tuning.step_size[:, 0], **info}

    def _adapt(self, keys: random.Keys, warm: bool) -> None:
        """Set the step size and the metric of the next trajectory."""
        if self._learned is None:
            return
        if not self._began:
            self._began = True
            # Prior draws of labels fit nothing: a trajectory given them would end far from where most of the mass is.
            self._batch.advance(keys.next())
            self._find_step_size(keys)
        if warm:
            self._tune(self._learned.step_size, self._learned.metric)
        else:
            self._tune(self._learned.finish(), self._learned.metric)
            self._learned = None

    def _find_step_size(self, keys: random.Keys) -> None:
        def accept_at(step_size: Any) -> Any:
            self._tune(step_size, self._learned.metric)
            noise = self._noise(keys.next())
            *_, row = self._leap(self._arrays, self._begin(self._arrays, noise, self.tuning), noise, self.tuning)
            return self._column(row, "accept")

        self._learned.find_step_size(accept_at)

    def _transition(self, noise: Noise) -> mx.array:
        """One trajectory of every chain; what each did when it ended, packed."""
        state, ended = self._begin(self._arrays, noise, self.tuning), None
        for _ in range(self._look_after(self._step_size)):
            *state, row = self._leap(self._arrays, state, noise, self.tuning)
            ended = row if ended is None else mx.where(ended[:, :1] > 0, ended, row)
        assert ended is not None
        return ended

    def _noise(self, key: Any) -> Noise:
        normal_key, *keys = random.split(key, 4)
        one, two, three = (random.uniform_open(k, (self.chains, 1)) for k in keys)
        return Noise(random.normal(normal_key, (self.chains, self.dim)), (one, two, three))

    def _tune(self, step_size: Any, metric: Metric) -> None:
        sizes = mx.array(step_size, dtype=mx.float32).reshape(-1, 1)
        self.tuning = Tuning(mx.contiguous(mx.broadcast_to(sizes, (self.chains, 1))), metric)
        self._step_size: Any = mx.min(sizes).item()

    def _column(self, rows: mx.array, name: str) -> Any:
        import numpy as np

        return np.array(self._stat(rows, name), dtype=float)

    def _stat(self, rows: mx.array, name: str) -> mx.array:
        kind = {"diverging": mx.bool_, "n_leapfrog": mx.int32}.get(name, mx.float32)
        return rows[:, 1 + self.dim + self._names.index(name)].astype(kind)

    # the place

    @property
    def _arrays(self) -> list[mx.array]:
        """Those of all chains; the coordinates come first."""
        return self._batch.lanes.arrays

    def _move_to(self, u: mx.array) -> None:
        self._batch.lanes = Lanes([u, *self._arrays[1:]], self._batch.lanes.skeleton)

    def arrays(self) -> list:
        return self._arrays

    def state(self) -> tuple[Any, list]:
        """What ``restore`` needs: what the chains have learned, and the arrays of where they are."""
        learned = None if self._learned is None else self._learned.state()
        step_size, metric = self.tuning
        return {"learned": learned, "began": self._began, "tuning": [step_size, *metric]}, self._arrays

    def restore(self, head: Any, arrays: list) -> None:
        if not _fits(arrays, self._arrays):
            raise ValueError("the states of the chains have another form")
        self._batch.lanes = Lanes(arrays, self._batch.lanes.skeleton)
        step_size, *metric = head["tuning"]
        self._tune(step_size, Metric(*metric))
        self._began = bool(head["began"])
        if head["learned"] is None:
            self._learned = None
        else:
            self._learned.restore(head["learned"])


def _parts(call: Call, selection: Any, observations: ChoiceMap, first: VectorizedTrace) -> tuple[list, list]:
    """The addresses of the continuous choices to move, and of the discrete ones."""
    chosen = first.choices.filter(movable(call, selection, first, observations))
    kinds: tuple[list, list] = [], []
    for address, leaf in chosen.items():
        if isinstance(leaf, Masked):
            raise UsageError(
                "hmc_gibbs cannot move a choice that exists in some runs only",
                address=address,
                gen_fn=call.gen_fn,
                expected="a model whose addresses stay",
                hint="mh, which takes any body",
            )
        kinds[not mx.issubdtype(as_array(leaf).dtype, mx.floating)].append(address)
    for found, missing, instead in zip(kinds, ("continuous", "discrete"), ("gibbs", "nuts or hmc"), strict=True):
        if not found:
            raise UsageError(
                f"hmc_gibbs has no {missing} choice to move",
                gen_fn=call.gen_fn,
                expected="continuous choices and discrete ones that are not observed",
                hint=f"{instead}, for such a model",
            )
    return kinds


def _starting_points(
    call: Call, observations: ChoiceMap, chains: int, key: Any, addresses: list[tuple]
) -> tuple[VectorizedTrace, mx.array]:
    """A trace and coordinates of each chain, with a finite log density and gradient.

    Draws from the prior are tried first, then coordinates that are uniform in (-2, 2).
    """
    batch: Any = None
    u: Any = None
    finite: Any = None
    for i, own in enumerate(random.split(key, _PRIOR_STARTS + _UNIFORM_STARTS)):
        *keys, u_key = random.split(own, STARTS + 1)
        new = _start(call, observations, chains, keys)
        new_u = run(lambda _, trace: Conditional(trace, addresses).position, chains, None, new)
        if i >= _PRIOR_STARTS:
            new_u = mx.random.uniform(-2.0, 2.0, new_u.shape, key=u_key)
        batch, u = (new, new_u) if finite is None else (where(finite, batch, new), mx.where(finite[:, None], u, new_u))
        value, gradient = batched_gradient(lambda rows, batch=batch: _values(batch, addresses, rows), u)
        finite = mx.logical_and(mx.isfinite(value), mx.all(mx.isfinite(gradient), axis=-1))
        if mx.all(finite).item():
            return batch, u
    raise NoStartingPoint(
        "no starting point: the log density or its gradient is not finite",
        address=addresses[0],
        gen_fn=call.gen_fn,
        expected=f"a finite one at one of {_PRIOR_STARTS + _UNIFORM_STARTS} points: prior draws, uniform(-2, 2)",
        hint="correct the observation or its distribution",
    )


def _values(batch: VectorizedTrace, addresses: list[tuple], u: mx.array) -> mx.array:
    return run(lambda _, trace, row: Conditional(trace, addresses).at(row)[1], batch.n, None, batch, Rows(u))
