"""Particle Markov chain Monte Carlo: parameters and states of models that are too dependent to be moved one by one.

Andrieu, Doucet and Holenstein (2010), "Particle Markov chain Monte Carlo methods".
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.errors import UsageError, show_addresses
from genmlx.gfi import Call, require_selectable
from genmlx.inference.chains import Run
from genmlx.inference.csmc import ConditionalFilter, ConditionalKernel
from genmlx.inference.gradient_chains import checked_fraction
from genmlx.inference.kernels import chain
from genmlx.inference.log_density import LogDensity
from genmlx.inference.moves import called
from genmlx.inference.particle_filter import ParticleFilter, as_move
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import positive_count
from genmlx.inference.replay import Replays
from genmlx.inference.resampling import DegenerateWeights, resample
from genmlx.inference.smc import Filtering
from genmlx.inference.walks import STARTS, Unrecorded, latent_choices
from genmlx.inference.warmup import DualAveraging
from genmlx.pytree import split_arrays
from genmlx.selection import Selection, as_selection
from genmlx.vectorized import VectorizedTrace, concatenate


def particle_gibbs(
    steps: Iterable[Any],
    parameters: Any = None,
    kernel: Any = None,
    draws: int = 1000,
    warmup: int = 100,
    particles: int = 100,
    chains: int = 1,
    thin: int = 1,
    ess_threshold: float = 0.5,
    resampling: str = "systematic",
    proposal: Any = None,
    ancestor_sampling: bool | str = True,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Posterior:
    """A posterior of ``[chains, draws]`` by particle Gibbs: all states at once given the parameters, and back.

    ``steps`` are those of ``smc``. The states are moved by ``csmc_kernel``, with ancestor sampling, so that a few
    particles are enough; then ``kernel`` moves the trace of the last call: it is to leave the posterior as it is, and
    to move the ``parameters``, addresses that the first step makes. Without a kernel each sweep draws them from the
    prior by Metropolis-Hastings. Without parameters all choices are states. Chains run one after the other.

    >>> from genmlx import gen, normal, trace, unfold
    >>> @gen
    ... def step(t, x):
    ...     x = trace("x", normal(x, 1.0))
    ...     trace("y", normal(x, 1.0))
    ...     return x
    >>> walk = unfold(step)
    >>> steps = [(walk(t + 1, 0.0), {(t, "y"): y}) for t, y in enumerate([1.0, 2.0])]
    >>> post = particle_gibbs(steps, draws=200, warmup=10, particles=20, chains=2, key=mx.random.key(0))
    >>> abs(post.mean((1, "x")).item() - 1.4) < 0.15                # by Kalman's filter
    True
    """
    filtering = ConditionalFilter(steps, particles, ess_threshold, resampling, proposal, ancestor_sampling)
    chosen = None if parameters is None else as_selection(parameters)
    if kernel is not None and parameters is None:
        raise UsageError("particle_gibbs was given a kernel, and no parameters that it moves")
    observations = filtering.observations
    moves: list[Any] = [ConditionalKernel(filtering, chosen)]
    if chosen is not None:
        moves.append(as_move(chosen if kernel is None else kernel, observations))

    def start(streams: random.Streams) -> Unrecorded:
        filtering.replays = Replays()
        first = _first_traces(filtering, positive_count("chains", chains), streams.initialise)
        if chosen is not None:
            require_selectable(first.gen_fn, chosen, first)
        return Unrecorded(first, chain(*moves), observations)

    settings = {"particles": particles, "parameters": parameters, "ancestor_sampling": str(ancestor_sampling)}
    call = filtering.stages[-1].call
    run = Run("particle_gibbs", call, observations, draws, warmup, thin, key, progress, checkpoint, settings)
    return run.through(start)


def pmmh(
    steps: Iterable[Any],
    parameters: Any,
    parameter_proposal: Any = None,
    draws: int = 1000,
    warmup: int = 500,
    particles: int = 100,
    chains: int = 1,
    thin: int = 1,
    target_accept: float = 0.15,
    ess_threshold: float = 0.5,
    resampling: str = "systematic",
    rejuvenate: Any = None,
    proposal: Any = None,
    key: Any = None,
    progress: Callable | None = None,
) -> Posterior:
    """A posterior of ``[chains, draws]`` by Metropolis-Hastings on the parameters, with the evidence of a filter.

    ``steps``, ``rejuvenate`` and ``proposal`` are those of ``smc``; ``parameters`` are addresses that the first step
    makes. Each draw runs a particle filter with new parameters, whose evidence stands for the likelihood, and has its
    states from one particle. The posterior is exact however few particles there are; with too few the chain sticks:
    the log evidence should have a standard deviation of 1 to 2 at one place (Doucet, Pitt, Deligiannidis and Kohn
    2015).

    Parameters walk at random in an unconstrained space, with a covariance and a scale that warm-up finds, for
    ``target_accept``; they are to be continuous then. ``parameter_proposal``, a function from a trace to a call,
    proposes them otherwise; it may look at the parameters in the trace only. ``stats`` has ``log_ml``, the evidence of
    the filter.

    >>> from genmlx import gamma, gen, normal, trace, unfold
    >>> @gen
    ... def step(t, x, scale):
    ...     x = trace("x", normal(x, scale))
    ...     trace("y", normal(x, 1.0))
    ...     return x
    >>> walk = unfold(step)
    >>> @gen
    ... def model(n):
    ...     trace("states", walk(n, 0.0, trace("scale", gamma(2.0, 2.0))))
    >>> steps = [(model(t + 1), {("states", t, "y"): y}) for t, y in enumerate([1.0, 2.5])]
    >>> post = pmmh(steps, "scale", draws=20, warmup=10, particles=50, key=mx.random.key(0))
    >>> post["scale"].shape, post[("states", 1, "x")].shape
    ((1, 20), (1, 20))
    """
    filtering = Filtering(steps, particles, ess_threshold, resampling, proposal, rejuvenate)
    chosen, observations = as_selection(parameters), filtering.observations
    positive_count("chains", chains)
    target = checked_fraction("target_accept", target_accept)

    def start(streams: random.Streams) -> Marginal:
        filtering.replays = Replays()
        keys = random.split(streams.initialise, chains + 1)[:chains]
        places = [_first_place(filtering, chosen, random.Keys(own)) for own in keys]
        moves: Any = Calls(parameter_proposal, chosen)
        if parameter_proposal is None:
            moves = RandomWalk(filtering.stages[0].call, chosen, [p.trace for p in places], target, warmup)
        return Marginal(filtering, observations, places, moves)

    call = filtering.stages[-1].call
    return Run("pmmh", call, observations, draws, warmup, thin, key, progress, None, None).through(start)


class Place(NamedTuple):
    """Where a chain is: a trace, in a batch of one, and the log evidence of the filter that it comes from."""

    trace: VectorizedTrace
    log_ml: float

    def choices(self, selection: Selection) -> ChoiceMap:
        return self.trace[0].choices.filter(selection)


def _filtered(filtering: Filtering, parameters: ChoiceMap, key: Any) -> Place | None:
    """A particle of the filter with these parameters, and its evidence; None where that is zero."""
    streams = random.streams(key)
    try:
        pf = filtering.run(streams, fixed=parameters)
    except DegenerateWeights:
        return None
    log_ml: Any = pf.log_ml.item()
    return Place(_drawn(pf, streams.warmup), log_ml)


def _drawn(pf: ParticleFilter, key: Any) -> VectorizedTrace:
    """One particle, by its weight."""
    return pf.traces.take(resample(pf.log_weights, 1, key, "multinomial"))


def _first_place(filtering: Filtering, parameters: Selection, keys: random.Keys) -> Place:
    for _ in range(STARTS):
        streams = random.streams(keys.next())
        trace = _drawn(filtering.run(streams), streams.warmup)
        require_selectable(trace.gen_fn, parameters, trace)
        place = _filtered(filtering, trace[0].choices.filter(parameters), keys.next())
        if place is not None:
            return place
    raise DegenerateWeights("no filter with fixed parameters had a particle left", hint="more particles")


class Marginal:
    """Chains of parameters, each with a filter at every step."""

    execution = "handlers: a particle filter for each draw"

    def __init__(self, filtering: Filtering, observations: ChoiceMap, places: list[Place], moves: Any):
        self.filtering, self.observations, self.places, self.moves = filtering, observations, places, moves
        self.chains = len(places)

    def advance(self, key: Any, warm: bool = False) -> tuple[ChoiceMap, Any, dict]:
        moved, accepts = [], []
        for place, own in zip(self.places, random.split(key, self.chains + 1), strict=False):
            move_key, filter_key, accept_key = random.split(own, 3)
            parameters, log_q = self.moves.propose(place, move_key)
            new = _filtered(self.filtering, parameters, filter_key)
            log_ratio = -math.inf if new is None else new.log_ml - place.log_ml + log_q(new)
            u: Any = random.uniform_open(accept_key).item()
            taken = math.log(u) < log_ratio
            moved.append(new if taken else place)
            accepts.append(math.exp(min(log_ratio, 0.0)))
        self.places = moved
        if warm:
            self.moves.learn(moved, accepts)
        traces = concatenate([place.trace for place in moved])
        info = {"accept": mx.array(accepts), "log_ml": mx.array([place.log_ml for place in moved])}
        return latent_choices(traces.choices, self.observations), traces.score, info

    def arrays(self) -> list:
        return [array for place in self.places for array in split_arrays(place.trace.lanes)[0]]


class Calls:
    """New parameters from a function of the trace to a call."""

    def __init__(self, proposal: Any, parameters: Selection):
        self.proposal, self.parameters = proposal, parameters

    def propose(self, place: Place, key: Any) -> tuple[ChoiceMap, Callable[[Place], float]]:
        old = place.choices(self.parameters)
        made = called(self.proposal, place.trace[0]).simulate(key)
        if set(made.choices.addresses()) != set(old.addresses()):
            raise UsageError(
                f"the parameter proposal makes {show_addresses(made.choices.addresses())}",
                expected=f"the parameters, {show_addresses(old.addresses())}",
            )

        def log_q(new: Place) -> float:
            back = called(self.proposal, new.trace[0]).assess(old)
            return back.score.item() - made.score.item()

        return made.choices, log_q

    def learn(self, places: list[Place], accepts: list[float]) -> None:
        pass


class RandomWalk:
    """A Gaussian walk of the parameters in their unconstrained space.

    After each third of warm-up its covariance is that of the places of all chains in this third; in between, and after,
    its scale follows the acceptance.
    """

    def __init__(self, call: Call, parameters: Selection, traces: list[VectorizedTrace], target: float, warmup: int):
        import numpy as np

        others = traces[0][0].choices.without(parameters)
        # Its coordinates are wanted, and their Jacobian: whatever else the first step has stays as it is here.
        begun = call.gen_fn.generate(call, others.merge(traces[0][0].choices.filter(parameters)), strict=False).trace
        self.density = LogDensity(call, begun.choices.without(parameters))
        self.parameters, self.seen, self.count, self.warmup = parameters, [], 0, warmup
        self.root = np.eye(self.density.dim)
        self.first = 2.38 / math.sqrt(self.density.dim)
        self.scale, self.ends = DualAveraging([self.first], target), {warmup // 3, 2 * warmup // 3}

    def _coordinates(self, place: Place) -> Any:
        import numpy as np

        return np.array(self.density.pack(place.choices(self.parameters)), dtype=float)

    def _jacobian(self, u: Any) -> float:
        u = mx.array(u.astype("float32"))
        found: Any = (self.density.logp(u) - self.density.joint(u)).item()
        return found

    def propose(self, place: Place, key: Any) -> tuple[ChoiceMap, Callable[[Place], float]]:
        import numpy as np

        u = self._coordinates(place)
        z = np.array(mx.random.normal((len(u),), key=key), dtype=float)
        new = u + float(self.scale.step_size[0]) * (self.root @ z)
        ratio = self._jacobian(new) - self._jacobian(u)
        return self.density.unpack(mx.array(new.astype("float32"))), lambda _: ratio

    def learn(self, places: list[Place], accepts: list[float]) -> None:
        import numpy as np

        self.count += 1
        self.scale.update(np.mean(accepts, keepdims=True))
        self.seen += [self._coordinates(place) for place in places]
        if self.count in self.ends and len(self.seen) > 2 * len(self.root):
            n, cov = len(self.seen), np.atleast_2d(np.cov(np.array(self.seen).T))
            self.root = np.linalg.cholesky(n / (n + 5) * cov + 1e-3 * 5 / (n + 5) * np.eye(len(cov)))
            self.scale.restart([self.first])
            self.seen = []
        if self.count == self.warmup:
            self.scale.step_size = self.scale.averaged


def _first_traces(filtering: Filtering, chains: int, key: Any) -> VectorizedTrace:
    """A trace for each chain: a particle of a filter of its own."""
    free = Filtering(filtering.stages, filtering.n, filtering.threshold, filtering.scheme, filtering.proposal)
    streams = [random.streams(own) for own in random.split(key, chains + 1)[:chains]]
    return concatenate([_drawn(free.run(own), own.warmup) for own in streams])
