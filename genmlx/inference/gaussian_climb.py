"""How a Gaussian guide climbs to its best evidence bound: where it starts, how it steps, and when it is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import random
from genmlx.inference.gaussian_guides import Direction, Guide, Params
from genmlx.inference.gradient_chains import _Graph
from genmlx.inference.lbfgs import Ascent, batched
from genmlx.inference.log_density import LogDensity
from genmlx.inference.loop import Loop

_LEARNED = 0.1
"""By how much agreement with the last step changes the logarithm of a rate (Baydin et al. 2018)."""
_FIRST = 0.05
"""The share of the largest rate to begin with: agreement doubles it in seven steps."""
_LATE = 3
"""The power of its number by which a step counts in the average (Shamir and Zhang 2013)."""
_AT_ONCE = 16  # steps of one evaluation, and whose noise is drawn at once
_CHECK, _FEWEST = 100, 400  # steps between two looks at whether it has converged, and before the first
_CLIMBS, _CLIMB = 10, 100  # starting points, and steps of L-BFGS from each
_TRIED, _STD = 10, 0.1  # draws by which starting points are compared, and their standard deviation
_STDS = tuple(10.0 ** (-i / 2) for i in range(13))  # the scales of which one is taken to begin with
_JUDGED, _PART = 400, 100  # draws by which the last guide and the average are compared, and those made at once
_RECENT = 50  # steps whose median is shown


class State(NamedTuple):
    """The guide and its average over the steps, the last direction, of length 1, two rates, and how many are done."""

    params: Params
    average: Params
    last: Direction
    rates: mx.array
    done: mx.array


class Climb:
    """A guide on its way up; ``history`` is the objective of each step."""

    def __init__(
        self, density: LogDensity, guide: Guide, samples: int, rate: float | None, tolerance: float, landing: bool
    ):
        self.density, self.guide, self.samples, self.landing = density, guide, samples, landing
        self.tolerance, self.converged = tolerance, False
        self.pairs = -(-samples // 2)
        # n pairs tell what to do in d directions with an error of d / n of it: the step of least error in the mean.
        self.most = self.pairs / (self.pairs + guide.noise) if rate is None else rate
        self.history: list[float] = []
        self.state = self._begin(guide.start(mx.zeros((density.dim,)), 1.0, mx.random.key(0)))
        self._graph = _Graph(self._step, self.state, mx.zeros((self.pairs, guide.width)))
        self.execution = self._graph.execution

    def _begin(self, params: Params) -> State:
        nothing = mx.zeros((1, self.guide.width)), mx.zeros((1, self.density.dim)), mx.ones((1, 1), dtype=mx.bool_)
        still = Direction(*[mx.zeros_like(x) for x in self.guide.direction(params, *nothing, True)])
        return State(params, dict(params), still, mx.full((2,), self.most * _FIRST), mx.array(0.0))

    def _step(self, state: State, noise: mx.array) -> tuple[State, mx.array]:
        guide, params = self.guide, state.params
        z = mx.concatenate([noise, -noise])[: self.samples]
        log_joint, gradients = self.density.value_and_grad(guide.place(params, z))
        finite = 0.0 * (log_joint + mx.sum(gradients, axis=1)) == 0.0
        objective = mx.mean(mx.where(finite, log_joint - guide.log_q(params, z), -math.inf))
        to = guide.direction(params, z, gradients, finite[:, None], self.landing)
        sizes = [mx.maximum(mx.sqrt(mx.sum(x * x)), 1e-18) for x in to]
        unit = Direction(*[x / size for x, size in zip(to, sizes, strict=True)])
        agree = mx.stack([mx.sum(x * y) for x, y in zip(unit, state.last, strict=True)])
        rates = mx.minimum(state.rates * mx.exp(_LEARNED * agree), self.most)
        params, done = guide.moved(params, unit, rates * mx.stack(sizes)), state.done + 1
        share = (1 + _LATE) / (done + _LATE)
        average = {name: old + share * (params[name] - old) for name, old in state.average.items()}
        return State(params, average, unit, rates, done), objective

    def run(self, loop: Loop, steps: int, streams: random.Streams) -> None:
        at = loop.resume(lambda at: self._restore(at.state))
        done = at.done_in("fitting")
        if at.phase != "fitting":
            mean, std = starting_point(self.density, streams.initialise, loop)
            self.state = self._begin(self.guide.start(mean, std, streams.warmup))
        supply = _noise(streams.propose, (self.pairs, self.guide.width), done)
        self._most_steps = len(self.history) if self.converged else steps

        def block(start: int, stop: int) -> Callable:
            while start < min(stop, self._most_steps):
                end = min(start + _AT_ONCE, stop, start + _CHECK - start % _CHECK)
                self._take(end - start, supply)
                start = end
                if start % _CHECK == 0 and self._has_converged():
                    self.converged, self._most_steps = True, start
            return self.shown

        loop.run("fitting", lambda: self._most_steps, block, least=0, done=done, state=self._saved)

    def _take(self, count: int, supply: Iterator[mx.array]) -> None:
        objectives = []
        for _ in range(count):
            arrays = self._graph(self.state, next(supply))
            self.state, objective = self._graph.fill(arrays)
            objectives.append(objective)
        mx.eval(self.state, objectives)
        self.history += [objective.item() for objective in objectives]

    def _has_converged(self) -> bool:
        """Whether the median of the last quarter is, within two errors, no more above that of the one before."""
        import numpy as np

        n = len(self.history)
        if n < _FEWEST or self.tolerance == 0:
            return False
        before, last = np.array(self.history[n // 2 : 3 * n // 4]), np.array(self.history[3 * n // 4 :])
        medians, ranges, errors = zip(*map(_middle, (before, last)), strict=True)
        rise = medians[1] - medians[0] + 2 * math.hypot(*errors)
        return bool(rise < self.tolerance * max(1.0, ranges[1]))

    def best(self, key: Any) -> Params:
        """The average, or the guide of the last step where the same draws find that better, two errors off."""
        z = random.normal(key, (_JUDGED, self.guide.width))
        return max((self.state.average, self.state.params), key=lambda params: self._surely(params, z))

    def _surely(self, params: Params, z: mx.array) -> float:
        import numpy as np

        parts = mx.split(z, _JUDGED // _PART)
        log_weights = [self.density.logp(self.guide.place(params, z)) - self.guide.log_q(params, z) for z in parts]
        found = np.array(mx.concatenate(log_weights), dtype=np.float64)
        if not np.isfinite(found).all():
            return -math.inf
        return float(found.mean() - 2 * found.std() / math.sqrt(_JUDGED))

    def shown(self) -> dict:
        """What a progress callback is told."""
        import numpy as np

        recent = float(np.median(self.history[-_RECENT:])) if self.history else math.nan
        return {"elbo": recent, "objective": lambda: np.array(self.history)}

    def _saved(self) -> dict:
        import numpy as np

        state = {**self.state._asdict(), "last": list(self.state.last)}
        return {**state, "history": np.array(self.history), "converged": self.converged}

    def _restore(self, saved: dict) -> None:
        self.history, self.converged = saved.pop("history").tolist(), saved.pop("converged")
        self.state = State(**{**saved, "last": Direction(*saved["last"])})


def _middle(values: Any) -> tuple[float, float, float]:
    """Median, interquartile range, and the standard error of the median, for a normal distribution of that range."""
    import numpy as np

    low, median, high = np.quantile(values, [0.25, 0.5, 0.75], method="nearest")
    spread = float(high - low) if math.isfinite(low) else math.inf
    return float(median), spread, 1.2533 * spread / 1.349 / math.sqrt(len(values))


def _noise(key: Any, shape: tuple[int, int], start: int) -> Iterator[mx.array]:
    """The normals of each step from ``start`` on, which do not depend on how the steps are grouped."""
    keys = random.Keys(key)
    for _ in range(start // _AT_ONCE):
        keys.next()
    first = start % _AT_ONCE
    while True:
        drawn = random.normal(keys.next(), (_AT_ONCE, *shape))
        mx.eval(drawn)
        for i in range(first, _AT_ONCE):
            yield drawn[i]
        first = 0


def starting_point(density: LogDensity, key: Any, loop: Loop) -> tuple[mx.array, float]:
    """A mean and a standard deviation: the best of those on the ways of some climbs (as in Zhang et al. 2022).

    Climbs of the density itself end in the narrowest place that there is, which need not hold any mass; so points on
    the way are compared by the mean log density of small Gaussians around them, and then scales by the bound.
    """
    start_key, noise_key = random.split(key)
    z = random.normal(noise_key, (_TRIED // 2, density.dim))
    z = mx.concatenate([z, -z])
    ascent = Ascent(batched(density.value_and_grad), density.initial(start_key, _CLIMBS))
    passed = [ascent.u]

    def block(first: int, last: int) -> dict:
        for step in range(first, last):
            if ascent.done:
                break
            ascent.step()
            if step & (step + 1) == 0:  # after 1, 2, 4, 8 ... steps
                passed.append(ascent.u)
        return {"log_density": float(ascent.value.max())}

    loop.run("starting", _CLIMB, block, least=0)
    np = ascent.np
    points = mx.array(np.concatenate([*passed, ascent.u]).astype("float32"))
    for std in (_STD, *[own for own in _STDS if own < _STD]):
        around = _mean_around(density, points, std, z)
        if around.max() > -math.inf:
            break
    mean = points[int(around.argmax())]
    bounds = [_mean_around(density, mean[None], std, z)[0] + density.dim * math.log(std) for std in _STDS]
    return mean, _STDS[int(np.argmax(bounds))]


def _mean_around(density: LogDensity, points: mx.array, std: float, z: mx.array) -> Any:
    """The mean log density of a Gaussian around each point, by common noise; -inf where it is not finite."""
    import numpy as np

    values = [density.logp(point + std * z) for point in points]
    found = np.array(mx.stack([mx.mean(v) for v in values]), dtype=np.float64)
    return np.where(np.isfinite(found), found, -np.inf)
