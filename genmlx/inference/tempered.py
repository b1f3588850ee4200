"""Tempered sequential Monte Carlo: from the prior to the posterior of a static model, through all between.

Neal (2001), "Annealed importance sampling"; Del Moral, Doucet and Jasra (2006), "Sequential Monte Carlo samplers".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import random
from genmlx.errors import GenError, ParameterError, UsageError
from genmlx.gfi import Call, gen_errors
from genmlx.inference.evidence_error import lost_pairs
from genmlx.inference.history import History
from genmlx.inference.loop import Loop
from genmlx.inference.particle_filter import ParticleFilter
from genmlx.inference.problem import checked_problem, impossible, positive_count
from genmlx.inference.resampling import SCHEMES, effective_size, host_weights, log_mean_exp, resample
from genmlx.inference.tempered_moves import KINDS, Sweeps, TemperedDensity, Vectors
from genmlx.versions import pinned

KERNELS = ("auto", *KINDS, "mh")
_MOST = 10_000  # temperatures that a progress callback is told to expect


class TemperedStep(NamedTuple):
    """One temperature: the effective size of the weights that it gives, what it added to the log evidence, the moves.

    ``accept`` is the mean acceptance of the moves, NaN without; ``settings`` is what their kernels learned. The rest
    is as in a ``FilterStep``.
    """

    temperature: float
    ess: float
    log_ml_increment: float
    log_ml: float
    ancestors: Any = None
    accept: float = math.nan
    moves: int = 0
    step_size: float = math.nan
    settings: Any = None
    recorded: Any = None
    pairs: float = 1.0

    @property
    def resampled(self) -> bool:
        return self.ancestors is not None


class TemperedHistory(History):
    """The temperatures as columns: ``temperature``, ``moves`` and ``step_size``, and those of every ``History``.

    Steps that follow, as of a particle filter, are of temperature 1.
    """

    def __getattr__(self, name: str) -> Any:
        if name in ("temperature", "moves", "step_size"):
            import numpy as np

            default = {"temperature": 1.0, "moves": 0, "step_size": math.nan}[name]
            return np.array([getattr(step, name, default) for step in self.steps])
        return super().__getattr__(name)


def tempered_smc(
    call: Call,
    observations: Any = None,
    particles: int = 1000,
    ess_threshold: float = 0.5,
    temperatures: Sequence[float] | TemperedHistory | None = None,
    kernel: str = "auto",
    moves: int | str = "auto",
    resampling: str = "systematic",
    key: Any = None,
    progress: Callable | None = None,
) -> ParticleFilter:
    """Weighted particles of the posterior, with the evidence: for posteriors of several modes, and of any choices.

    Particles of the prior go through p(latents) p(observations | latents)^b, where the temperature b grows from 0 to 1.
    Each next b is the largest at which the conditional effective size of the particles, of which
    ``ess_threshold`` is a share, is kept (Zhou, Johansen and Aston 2016), unless ``temperatures`` are given: numbers
    that increase, to 1. Where the effective size falls to that share they are resampled, and then they are moved.

    ``kernel`` is "hmc", "mala" or "random_walk" for latents that are all continuous, with a step size and a covariance
    that are learned from the particles; or "mh", which draws one latent address after the other from the prior,
    an array as one. "auto" is "hmc" where it can be, otherwise "mh". ``moves`` at each temperature are a number, or
    "auto": as many as it takes until particles are far from where they were, or more do not help.

    ``history`` has, for each temperature: ``temperature``, ``ess``, ``accept``, ``moves``, ``step_size``,
    ``log_ml_increment``, ``log_ml``. exp(log_ml) is unbiased where nothing is learned from the particles
    that are used: with given temperatures and a number of moves of "mh", or with ``temperatures=earlier.history``,
    which repeats the temperatures and kernels of an earlier run. Otherwise it is consistent, with a bias of order 1/n
    (Beskos, Jasra, Kantas and Thiery 2016), which is felt where the square of the dimensions is not small against n:
    in 30 correlated dimensions, 1000 particles were an eighth too low. Ctrl-C weights the particles as they are for
    the posterior, with ``status`` "interrupted": see their ``ess``.

    Raises when the observations are impossible under every prior draw, naming the one at fault.

    >>> from genmlx import gen, normal, trace
    >>> @gen
    ... def model():
    ...     x = trace("x", normal(0, 3))
    ...     trace("y", normal(x * x, 0.5))
    >>> result = tempered_smc(model(), {"y": 9.0}, key=mx.random.key(0))      # modes at -3 and 3
    >>> share = mx.sum(result.weights * (result["x"] > 0)).item()
    >>> abs(share - 0.5) < 0.1, abs(result.log_ml.item() + 3.6138) < 0.3, result.history.temperature[-1].item()
    (True, True, 1.0)
    """
    observations = checked_problem(call, observations)
    positive_count("particles", particles, 2)
    if isinstance(ess_threshold, bool) or not 0.0 < ess_threshold < 1.0:
        raise ParameterError(f"ess_threshold is {ess_threshold!r}", expected="a share, between 0 and 1")
    if resampling not in SCHEMES:
        raise ParameterError(f"no resampling scheme {resampling!r}", expected=f"one of {', '.join(SCHEMES)}")
    if kernel not in KERNELS:
        raise ParameterError(f"no kernel {kernel!r}", expected=f"one of {', '.join(KERNELS)}")
    if moves != "auto":
        positive_count("moves", moves)
    given = _checked_temperatures(temperatures)
    streams = random.streams(key)
    with pinned(), gen_errors(call.gen_fn), Loop("tempered_smc", progress) as loop:
        population = _population(call, observations, particles, kernel, streams.initialise)
        run = Tempering(population, given, ess_threshold, moves, resampling, streams, loop)
        if not run.alive:
            raise impossible(call, population.traces(), observations)
        loop.run("tempering", run.expected, run.block)
        if run.now < 1.0:
            run.reweight(1.0)
        result = ParticleFilter(
            population.traces(), run.log_weights, run.base, call, observations, TemperedHistory(tuple(run.steps))
        )
    result.algorithm, result.status, result.timing = loop.algorithm, loop.status, loop.timing
    return loop.deliver(result)


def _population(call: Call, observations: Any, n: int, kernel: str, key: Any) -> Vectors | Sweeps:
    if kernel != "mh":
        try:
            density = TemperedDensity(call, observations)
        except GenError:  # of discrete choices, or of such as come and go
            if kernel != "auto":
                raise
        else:
            return Vectors(density, "hmc" if kernel == "auto" else kernel, n, key)
    return Sweeps(call, observations, n, key)


class Tempering:
    """Particles on their way from temperature 0 to 1: weights, evidence and what was done."""

    def __init__(
        self,
        population: Vectors | Sweeps,
        given: list[TemperedStep] | None,
        threshold: float,
        moves: int | str,
        scheme: str,
        streams: random.Streams,
        loop: Loop,
    ):
        self.population, self.given, self.moves = population, given, moves
        self.threshold, self.scheme = threshold, scheme
        self.choose, self.propose = random.Keys(streams.resample), random.Keys(streams.propose)
        self.loop, self.now, self.base, self.steps = loop, 0.0, 0.0, []
        self.seen = population.likelihood
        # At any temperature above 0 a particle that makes the observations impossible has no weight.
        self.log_weights = mx.where(self.seen == -math.inf, -math.inf, mx.zeros_like(self.seen))
        self.alive = bool(mx.any(self.log_weights == 0.0).item())
        if self.alive:
            self._note(0.0, 0.0)

    @property
    def log_ml(self) -> float:
        return self.base + float(log_mean_exp(self.log_weights))

    def expected(self) -> int:
        """How many temperatures there are, as far as is known."""
        done = len(self.steps) - 1
        if self.now == 1.0:
            return done
        if self.given is not None:
            return max(len(self.given), done + 1)
        before = self.steps[-2].temperature if done else 0.0
        if before == 0.0:
            return done + 2
        return done + min(_MOST, max(1, math.ceil(math.log(1 / self.now) / math.log(self.now / before))))

    def block(self, start: int, stop: int) -> Callable:
        for _ in range(start, stop):
            if self.now == 1.0 or (self.loop.interrupted and len(self.steps) > 1):
                break
            self.advance()
        return self.shown

    def advance(self) -> None:
        """One temperature: weigh, resample, move."""
        step = None if self.given is None else self.given[len(self.steps) - 1]
        self.reweight(self._next() if step is None else step.temperature)
        earlier = step if step is not None and step.settings is not None else None
        if earlier is None:
            self.population.learn(self.log_weights)
        else:
            self.population.adopt(earlier.settings)
        if float(effective_size(self.log_weights)) <= self.threshold * self.population.n * (1 + 1e-4):
            self._resample()
        self._move(self.moves if earlier is None else earlier.moves, learn=earlier is None)
        self.seen = self.population.likelihood

    def reweight(self, temperature: float) -> None:
        """The weights of another temperature."""
        before = self.log_ml
        change = mx.where(self.seen > -math.inf, (temperature - self.now) * self.seen, -math.inf)
        log_weights = mx.where(self.log_weights > -math.inf, self.log_weights + change, -math.inf)
        top = float(mx.max(log_weights))
        self.log_weights, self.base, self.now = log_weights - top, self.base + top, temperature
        self._note(temperature, before)

    def _next(self) -> float:
        return next_temperature(self.log_weights, self.seen, self.now, self.threshold)

    def _resample(self) -> None:
        import numpy as np

        log_ml, n = self.log_ml, self.population.n
        index = resample(self.log_weights, n, self.choose.next(), self.scheme)
        self.population.take(index)
        equal, ancestors = mx.zeros((n,)), np.array(index)
        self._amend(ancestors=ancestors, pairs=lost_pairs(self.log_weights, ancestors, equal))
        self.log_weights, self.base = equal, log_ml

    def _move(self, moves: int | str, learn: bool) -> None:
        population, accepted = self.population, []
        population.begin()
        while not self.loop.interrupted and len(accepted) != moves:
            accepted.append(population.move(self.now, self.propose.next(), learn))
            if moves == "auto" and population.enough(accepted[-1]):
                break
        self._amend(
            accept=sum(accepted) / len(accepted) if accepted else math.nan,
            moves=len(accepted),
            step_size=population.step_size,
            settings=population.settings,
        )

    def _note(self, temperature: float, before: float) -> None:
        ess, log_ml, n = float(effective_size(self.log_weights)), self.log_ml, self.population.n
        pairs = 1.0 if self.steps else n / (n - 1)
        self.steps.append(TemperedStep(temperature, ess, log_ml - before, log_ml, pairs=pairs))

    def _amend(self, **values: Any) -> None:
        self.steps[-1] = self.steps[-1]._replace(**values)

    def shown(self) -> dict[str, Any]:
        """What a progress callback is told."""
        last = self.steps[-1]
        return {
            "temperature": last.temperature,
            "ess": last.ess,
            "log_ml": last.log_ml,
            "accept": last.accept,
            "moves": last.moves,
            "particles": self.population.n,
            "history": TemperedHistory(tuple(self.steps)),
        }


def next_temperature(log_weights: mx.array, log_likelihood: mx.array, now: float, share: float) -> float:
    """The largest temperature, to 1, at which the conditional effective size is ``share`` of all particles or more.

    With W the normalised weights and v the factors that the temperature puts to them, it is n (sum W v)^2 / sum W v^2.

    >>> one = next_temperature(mx.zeros((2,)), mx.array([0.0, -100.0]), 0.0, 0.8)
    >>> v = math.exp(-100 * one)
    >>> round((1 + v) ** 2 / (1 + v * v) / 2, 6)
    0.8
    """
    import numpy as np

    weights, logs = host_weights(log_weights), np.array(log_likelihood, dtype=np.float64)
    logs = logs[weights > 0] - logs[weights > 0].max()
    weights = weights[weights > 0]

    def kept(temperature: float) -> float:
        v = np.exp((temperature - now) * logs)
        return float((weights @ v) ** 2 / (weights @ v**2))

    if kept(1.0) >= share:
        return 1.0
    low, high = now, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if kept(middle) >= share:
            low = middle
        else:
            high = middle
    return low if low > now else high


def _checked_temperatures(given: Any) -> list[TemperedStep] | None:
    """The steps to take, without the one at 0."""
    if given is None:
        return None
    expected = "numbers that increase, the last of them 1, or the history of an earlier run that was complete"
    steps: list[Any]
    if isinstance(given, TemperedHistory):
        steps = [step for step in given if isinstance(step, TemperedStep) and step.temperature > 0]
        if any(step.settings is None for step in steps):
            raise ParameterError("the temperatures are those of a run that was interrupted", expected=expected)
    elif isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        raise UsageError(f"temperatures are {given!r:.60}", expected=expected)
    else:
        steps = [TemperedStep(float(t), math.nan, math.nan, math.nan) for t in given]
        steps = steps[1:] if steps and steps[0].temperature == 0.0 else steps
    found = [0.0, *[step.temperature for step in steps]]
    if found[-1] != 1.0 or any(not a < b for a, b in zip(found, found[1:], strict=False)):
        raise ParameterError(f"temperatures are {given!r:.60}", expected=expected)
    return steps
