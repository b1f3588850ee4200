"""How tempered particles move: Markov kernels of p(latents) p(observations | latents)^temperature, for all at once.

Continuous choices move together in unconstrained coordinates, by the steps of the samplers of these names, with a
covariance learned from the weighted particles. Other choices are drawn anew from the prior, address by address.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import random
from genmlx.backend.mapping import vmap_list
from genmlx.choicemap import ChoiceMap, covering
from genmlx.dist.values import as_array
from genmlx.errors import UsageError
from genmlx.gfi import Call, as_weight
from genmlx.gradients import host_value_errors
from genmlx.inference.chains import accept
from genmlx.inference.gradient_chains import Noise, Tuning, _Graph
from genmlx.inference.hmc import sampler as hmc_sampler
from genmlx.inference.leapfrog import Metric, evaluate, identity_metric, metric
from genmlx.inference.log_density import LogDensity
from genmlx.inference.mala import sampler as mala_sampler
from genmlx.inference.problem import latents
from genmlx.inference.random_walk import sampler as random_walk_sampler
from genmlx.inference.replay import BatchedStep, Lanes
from genmlx.inference.resampling import effective_size, host_weights
from genmlx.inference.starts import NoStartingPoint, prior_draws
from genmlx.masked import Masked
from genmlx.params import peek
from genmlx.selection import Selection, select
from genmlx.trace import Trace
from genmlx.vectorized import VectorizedTrace, _batch, vgenerate

_TRAJECTORY, _LONGEST = math.pi / 2, 64  # of hmc: a quarter of an orbit of a Gaussian; the most leapfrog steps
_DENSE = 100  # the most dimensions of a covariance that is not diagonal
_ROUNDS, _APART, _SETTLED = 20, 0.1, 0.05
_STAYED, _SWEEPS = 0.1, 50


def likelihood(trace: Trace, observed: Selection) -> mx.array:
    """log p(observations | latents) of a trace."""
    return as_weight(trace.gen_fn._project(trace, observed))


class TemperedDensity(LogDensity):
    """A log density in unconstrained coordinates that has the observations to the power of a temperature."""

    temperature: Any = None

    def _lane(self, u: mx.array) -> tuple[Trace, mx.array]:
        trace, logp = super()._lane(u)
        if self.temperature is None:
            return trace, logp
        seen = likelihood(trace, ~self._latent)
        return trace, mx.where(seen > -math.inf, logp - (1.0 - self.temperature) * seen, -math.inf)

    def at(self, temperature: mx.array, gradients: bool) -> Any:
        """``u [n, dim] -> (log density [n], gradient [n, dim])``; without ``gradients`` zeros for them."""

        def value_and_grad(u: mx.array) -> tuple[mx.array, mx.array]:
            params = [as_array(peek(model, name)) for model, name in self._params]
            self.temperature = temperature
            try:
                with self._context():
                    value, *gradient = self._by_handlers("logp gradient" if gradients else "logp", u, params)
            finally:
                self.temperature = None
            return value, gradient[0] if gradients else mx.zeros_like(u)

        return value_and_grad

    def log_likelihood(self, u: mx.array) -> mx.array:
        """log p(observations | latents), ``[n]``."""
        with self._context(), host_value_errors("batched"):
            return vmap_list(lambda row: [likelihood(self._lane(row)[0], ~self._latent)], u)[0]


class Kind(NamedTuple):
    """A sampler as a kernel of particles: where a state has its position, and the acceptance to aim at.

    By dimensions, the first step size, and how many moves make a round, after which movement is looked at.
    """

    position: Any
    target: float
    step_size: Any
    round: Any


KINDS = {
    "random_walk": Kind(lambda s: s.point.position, 0.234, lambda d: 2.38 / d**0.5, lambda d: 2 + 2 * d),
    "mala": Kind(lambda s: s.point.position, 0.574, lambda d: 1.65 / d ** (1 / 6), lambda d: 1 + 2 * d ** (1 / 3)),
    "hmc": Kind(lambda s: s.start.position, 0.8, lambda d: _TRAJECTORY / 2, lambda d: 2),
}


class Vectors:
    """Particles as unconstrained vectors ``u [n, dim]``."""

    def __init__(self, density: TemperedDensity, kernel: str, n: int, key: Any):
        self.density, self.kernel, self.kind, self.n, self.dim = density, kernel, KINDS[kernel], n, density.dim
        self.u = _finite(prior_draws(density, n, key), density)
        dense = self.dim <= min(_DENSE, n // 5)
        self.step_size, self.metric, self._moves = self.kind.step_size(self.dim), identity_metric(self.dim, dense), 0
        self._likelihood = _Graph(lambda u: [density.log_likelihood(u)], self.u)
        one, noise = mx.array(1.0), self._noise(mx.random.key(0))
        self._begin = _Graph(self._beginning, self.u, noise, self._tuning(), one)
        state = self._begin.fill(self._begin(self.u, noise, self._tuning(), one))
        self._step = _Graph(self._stepping, state, noise, self._tuning(), one)

    def _sampler(self, temperature: mx.array) -> tuple[Any, Any]:
        density = self.density.at(temperature, self.kernel != "random_walk")
        if self.kernel == "hmc":
            return density, hmc_sampler(density, None, _TRAJECTORY, _LONGEST)
        return density, (mala_sampler if self.kernel == "mala" else random_walk_sampler)(density)

    def _beginning(self, u: mx.array, noise: Noise, tuning: Tuning, temperature: mx.array) -> Any:
        density, sampler = self._sampler(temperature)
        return sampler.init(evaluate(density, u), noise, tuning)

    def _stepping(self, state: Any, noise: Noise, tuning: Tuning, temperature: mx.array) -> Any:
        state, info = self._sampler(temperature)[1].step(state, noise, tuning)
        done = info.done.astype(mx.float32)
        return state, done * info.stats["accept"]

    def _noise(self, key: Any) -> Noise:
        normal_key, uniform_key = random.split(key)
        a, b, c = mx.split(random.uniform_open(uniform_key, (3 * self.n, 1)), 3)
        return Noise(random.normal(normal_key, (self.n, self.dim)), (a, b, c))

    def _tuning(self) -> Tuning:
        return Tuning(mx.full((self.n, 1), self.step_size), self.metric)

    @property
    def likelihood(self) -> mx.array:
        return self._likelihood(self.u)[0]

    def take(self, index: mx.array) -> None:
        self.u = self.u[index]

    def learn(self, log_weights: mx.array) -> None:
        """The covariance of the weighted particles, drawn towards its diagonal where they are few."""
        import numpy as np

        weights, u = host_weights(log_weights), np.array(self.u, dtype=np.float64)
        apart = u - weights @ u
        variances = np.maximum(weights @ apart**2, 1e-20)
        if self.metric.inverse_mass.ndim == 1:
            self.metric = metric(variances, self.dim)
            return
        share = min(1.0, (self.dim / float(effective_size(log_weights))) ** 2)
        found = (1 - share) * (apart.T * weights) @ apart
        found[np.diag_indices(self.dim)] = variances
        self.metric = metric(found, self.dim)

    @property
    def settings(self) -> tuple:
        """What was learned: with it an earlier run's kernels can be used again."""
        return self.kernel, self.step_size, self.metric

    def adopt(self, settings: tuple) -> None:
        if settings[0] != self.kernel or settings[2].inverse_mass.shape != self.metric.inverse_mass.shape:
            raise UsageError(
                "the temperatures are of a run of another problem, or of other kernels",
                expected=f"kernels {self.kernel!r} of {self.dim} dimensions",
            )
        self.step_size, self.metric = settings[1], Metric(*settings[2])

    def begin(self) -> None:
        """Moves are counted, and movement is measured, from here."""
        self._from, self._correlation, self._moves = self.u, 1.0, 0

    def move(self, temperature: float, key: Any, learn: bool) -> float:
        """One transition of every particle; their mean acceptance."""
        noise, tuning, at = self._noise(key), self._tuning(), mx.array(temperature)
        state, accepted = self._begin(self.u, noise, tuning, at), mx.zeros((self.n, 1))
        for _ in range(self._leapfrog_steps):
            # A trajectory that diverged is rejected at once; the next, which begins then, does not come to its end.
            *state, done = self._step(self._begin.fill(state), noise, tuning, at)
            accepted = accepted + done
        self.u = self.kind.position(self._begin.fill(state))
        mx.eval(self.u, accepted)
        found = float(mx.mean(accepted))
        self._moves += 1
        if learn:
            gain = 0.5 / (self.kind.target * (1 - self.kind.target)) / math.sqrt(self._moves)
            self.step_size *= math.exp(gain * (found - self.kind.target))
            if self.kernel == "hmc":
                # So many equal steps, with nothing left over.
                self.step_size = _TRAJECTORY / min(max(math.ceil(_TRAJECTORY / self.step_size), 1), _LONGEST)
        return found

    @property
    def _leapfrog_steps(self) -> int:
        return min(max(round(_TRAJECTORY / self.step_size), 1), _LONGEST) if self.kernel == "hmc" else 1

    def enough(self, accept: float) -> bool:
        """Whether to stop: where particles are no longer correlated with where they were, or no more moves help.

        Kantas, Beskos and Jasra (2014), "Sequential Monte Carlo methods for high-dimensional inverse problems".
        """
        size = math.ceil(self.kind.round(self.dim))
        if self._moves % size:
            return False
        found, before = _correlation(self._whitened(self._from), self._whitened(self.u)), self._correlation
        self._correlation = found
        moving = accept > 0.5 * self.kind.target  # otherwise the step size is still to be found
        return moving and (found < _APART or before - found < _SETTLED) or self._moves >= _ROUNDS * size

    def _whitened(self, u: mx.array) -> mx.array:
        """In coordinates that the learned covariance makes independent: also narrow directions must be explored."""
        factor = self.metric.momentum_factor
        return u * factor if factor.ndim == 1 else u @ factor.T

    def traces(self) -> VectorizedTrace:
        choices = self.density.unpack(self.u).merge(self.density.observations)
        return vgenerate(self.density.call, choices, self.n, mx.random.key(0)).trace


def _finite(u: mx.array, density: LogDensity) -> mx.array:
    """Draws that rounding has put on the edge of their support, moved to the outermost of the others."""
    import numpy as np

    found = np.array(u)
    for address, share in density.addresses.items():
        own = found[:, share]
        for column in own.reshape(len(own), -1).T:
            inside = column[np.isfinite(column)]
            if not inside.size:
                raise NoStartingPoint(
                    "every prior draw is on the edge of its support", address=address, gen_fn=density.call.gen_fn
                )
            column[:] = np.clip(np.where(np.isnan(column), np.median(inside), column), inside.min(), inside.max())
    return mx.array(found)


def _correlation(a: mx.array, b: mx.array) -> float:
    """The largest correlation, over coordinates, of where particles were and where they are."""
    import numpy as np

    x, y = (np.array(u, dtype=np.float64) for u in (a, b))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    spread = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
    return float(np.where(spread > 0, np.abs((x * y).sum(axis=0)) / np.where(spread > 0, spread, 1.0), 1.0).max())


class Sweeps:
    """Particles as traces, moved by Metropolis-Hastings, which draws one latent address after the other from the prior.

    The weight of regenerate is the change of log density of all choices that are neither selected nor new, of
    observations and of other latents: with observations to the power b, log ratio = weight - (1 - b) (their change).
    """

    kernel = "mh"

    def __init__(self, call: Call, observations: ChoiceMap, n: int, key: Any):
        batch = vgenerate(call, observations, n, key).trace
        self.call, self.n, self.args, self.observed = call, n, batch.args, covering(observations)
        choices = batch.choices
        for address in observations:
            if isinstance(choices[address], Masked):
                raise UsageError(
                    "an observed choice exists in some runs and not in others",
                    address=address,
                    gen_fn=call.gen_fn,
                    expected="a model in which every observed address is visited whatever the latent choices",
                )
        self._latent = choices.filter(latents(observations)).addresses()
        if not self._latent:
            raise UsageError("nothing to infer: every choice is observed, or there is none", gen_fn=call.gen_fn)
        self._lanes = Lanes.of((batch.lanes, mx.ones((n,))))
        self._sweep = BatchedStep(self._swept, n, batch.args).record(self._lanes)
        self._likelihood = BatchedStep(self._seen, n, batch.args).record(self._lanes)

    def _seen(self, state: tuple, key: Any) -> Any:
        return state, likelihood(state[0], self.observed)

    def _swept(self, state: tuple, key: Any) -> Any:
        (trace, temperature), keys, accepted = state, random.Keys(key), []
        for address in self._latent:
            new, weight, _ = trace.gen_fn.regenerate(trace, select(address), key=keys.next(), strict=False)
            here, there = likelihood(trace, self.observed), likelihood(new, self.observed)
            log_ratio = mx.where(there > -math.inf, weight - (1.0 - temperature) * (there - here), -math.inf)
            trace, info = accept(trace, new, log_ratio, keys.next())
            accepted.append(info["accept"].astype(mx.float32))
        return (trace, temperature), mx.mean(mx.stack(accepted))

    @property
    def likelihood(self) -> mx.array:
        return self._likelihood(self._lanes, mx.random.key(0))[1]

    def take(self, index: mx.array) -> None:
        self._lanes = Lanes([array[index] for array in self._lanes.arrays], self._lanes.skeleton)

    def learn(self, log_weights: mx.array) -> None:
        """There is nothing to learn."""

    step_size = math.nan
    settings = ("mh",)

    def adopt(self, settings: tuple) -> None:
        if settings != self.settings:
            raise UsageError("the temperatures are of a run of other kernels", expected="kernels 'mh'")

    def begin(self) -> None:
        self._stayed, self._moves = 1.0, 0

    def move(self, temperature: float, key: Any, learn: bool) -> float:
        """One sweep of every particle; the mean acceptance."""
        trace, _ = self._lanes.state(self._lanes.arrays, self.args)
        self._lanes = Lanes.of((trace, mx.full((self.n,), temperature)))
        self._lanes, accepted = self._sweep(self._lanes, key)
        mx.eval(self._lanes.arrays, accepted)
        self._moves += 1
        return float(mx.mean(accepted))

    def enough(self, accept: float) -> bool:
        """Whether 90% of the choices have been drawn anew (Drovandi and Pettitt 2011)."""
        self._stayed *= 1 - accept
        return self._stayed < _STAYED or self._moves >= _SWEEPS

    def traces(self) -> VectorizedTrace:
        trace, _ = self._lanes.state(self._lanes.arrays, self.args)
        return _batch(trace, self.args, self.n)
