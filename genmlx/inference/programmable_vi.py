"""Programmable variational inference: a guide that is a generative function, fitted by the objective of one's choice.

Becker, Lew, Wang, Ghavami, Huot, Rinard and Mansinghka (2024), "Probabilistic programming with programmable variational
inference". Each site of the guide is differentiated by an estimator of its own, see ``genmlx.inference.adev``.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import mlx.core as mx
import optree

from genmlx import random
from genmlx.choicemap import show_value
from genmlx.errors import ParameterError, UsageError, name_of
from genmlx.gfi import Call, gen_errors
from genmlx.inference.adev.replayed import Replayed
from genmlx.inference.checkpoint import Checkpoint
from genmlx.inference.guided_objective import GuidedObjective
from genmlx.inference.importance import weighted
from genmlx.inference.loop import Loop
from genmlx.inference.objectives import Objective, read_objective
from genmlx.inference.problem import checked_problem, no_density, positive_count
from genmlx.inference.variational import Variational
from genmlx.params import as_if_untrained, overridden
from genmlx.selection import select
from genmlx.versions import pinned

_SUSPECTS, _RECENT = 1000, 50
"""Draws among which one that the model cannot have is looked for; steps whose median is shown."""


class GuideFit(Variational):
    """A fitted ``guide``, a call. ``objective`` names what it was fitted by, ``estimators`` are those of its addresses,
    and ``execution`` says whether the gradients were ``replayed`` as a recorded graph."""

    def __init__(self, problem: GuidedObjective, draw: Callable, key: Any, execution: str, **rest: Any):
        super().__init__(problem.call, problem.observations, draw, key, **rest)
        self.guide, self.objective = problem.guide, problem.objective.name
        self.estimators, self.execution = dict(problem.plan.estimators), execution


def programmable_vi(
    call: Call,
    observations: Any = None,
    guide: Call | None = None,
    objective: str | Objective | Callable = "elbo",
    estimator: Any = None,
    baseline: Any = "leave-one-out",
    particles: int = 10,
    samples: int = 1,
    iterations: int = 1000,
    learning_rate: float | None = None,
    optimiser: Any = None,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> GuideFit:
    """Fit the ``param``s of ``guide``, a call whose choices are exactly the latents, by stochastic ascent.

    ``objective`` is of the log densities of ``particles`` draws of the guide:

    - ``"elbo"``: the mean of log p - log q. ``"iwelbo"``: the log of the mean weight p / q. ``"vimco"``: the same, with
      no draw but reparameterised ones differentiated through, whatever else is possible. ``"renyi"``, or
      ``renyi(alpha)``: that bound, of order 1/2 by its name alone. They learn the parameters of the guide and those
      that the model reads.
    - ``"pwake"``: E[log p] under the weighted draws, learns those of the model; ``"qwake"``: E[log q] under the
      weighted draws, those of the guide (Bornschein and Bengio 2015, "Reweighted wake-sleep"). Neither goes through
      the draws; both are biased as self-normalised weights are, by O(1 / particles).
    - a function ``(log_p [K], log_q [K]) -> number``, which learns both.

    A step takes the mean of ``samples`` such objectives. ``estimator`` and ``baseline`` are those of ``expectation``:
    each site of the guide has its own, found from its distribution or given by its address. Objectives of several
    draws together enumerate nothing. For them, as for the ELBO, the leave-one-out baseline is among the particles. The
    gradient of the ELBO leaves out the derivative of log q at a given draw, whose mean is zero (Roeder, Wu and Duvenaud
    2017), unless a support of the guide moves with a parameter: then it is not.

    The optimiser is one of ``mlx.optimizers``, by default Adam with a ``learning_rate`` of 0.01. Parameters start at
    their values in the models' stores, and are put there at the end, after Ctrl-C too; ``params`` of the result has
    them by name, ``history`` has the objective before each step. ``converged`` says that the mean of its last tenth is
    within two standard errors of that of the tenth before, or below it. An objective or a gradient that is not finite
    raises, naming the choice that the guide draws where the model has no density. With ``checkpoint``, a path, a run
    that was ended goes on when it is called again with the same key and settings, wherever the parameters are then.

    >>> from genmlx import gen, normal, param, trace
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("x", normal(0.0, 1.0)), 1.0))
    >>> @gen
    ... def guide():
    ...     trace("x", normal(param("mean", 0.0), mx.exp(param("log_sd", 0.0))))
    >>> fit = programmable_vi(model(), {"y": 1.0}, guide=guide(), learning_rate=0.02, key=mx.random.key(0))
    >>> abs(fit.params["mean"].item() - 0.5) < 0.05, abs(fit.log_ml_bound + 1.515512) < 0.01
    (True, True)
    """
    observations = checked_problem(call, observations)
    if not isinstance(guide, Call):
        raise UsageError(
            f"the guide is {guide!r:.40}",
            gen_fn=call.gen_fn,
            expected="a generative function applied to its arguments: guide=guide(...)",
        )
    for name, count in (("particles", particles), ("samples", samples), ("iterations", iterations)):
        positive_count(name, count)
    optimiser = _optimiser(optimiser, learning_rate)
    key = random.as_key(key)
    streams = random.streams(key)
    with ExitStack() as stack, pinned() as pins, gen_errors(guide.gen_fn), Loop("programmable_vi", progress) as loop:
        problem = GuidedObjective(
            call, observations, guide, read_objective(objective), estimator, baseline, particles, samples
        )
        ascent = Ascent(problem, optimiser, random.Keys(streams.propose))

        if checkpoint is not None:
            stack.enter_context(as_if_untrained({model for model, _ in problem.learned}))
            own = {**problem.settings(), "iterations": iterations, "optimiser": optimiser, "tuning": optimiser.state}
            loop.file = Checkpoint.of(checkpoint, loop.algorithm, call, observations, key, **own)

        def block(start: int, stop: int) -> Callable[[], dict]:
            for _ in range(start, stop):
                ascent.step()
            ascent.settle()
            return ascent.shown

        at = loop.resume(lambda at: ascent.restore(at.state))
        loop.run("optimising", iterations, block, done=at.done_in("optimising"), state=ascent.kept)
        found = ascent.learned()
        for (model, name), value in found.items():
            model.params.put(name, value)
        names = [name for _, name in found]
        result = GuideFit(
            problem,
            problem.draws(dict(pins), {**problem.parameters(), **found}),
            streams.accept,
            ascent.execution,
            params={n if names.count(n) == 1 else f"{name_of(m)}.{n}": v for (m, n), v in found.items()},
            history=mx.array(ascent.history),
            algorithm=loop.algorithm,
            converged=_is_level(ascent.history),
            status=loop.status,
        )
    result.timing = loop.timing
    return loop.deliver(result)


class Ascent:
    """Steps of an optimiser; ``history`` has the objective before each."""

    def __init__(self, problem: GuidedObjective, optimiser: Any, keys: random.Keys):
        self.problem, self.optimiser, self.keys = problem, optimiser, keys
        self.history: list[float] = []
        self._graph = Replayed(problem.gradient)
        values = problem.parameters()
        self._values = {str(i): values[read] for i, read in enumerate(problem.learned)}
        self._fine: mx.array = mx.array(True)
        self._new: list[tuple[mx.array, mx.array]] = []
        optimiser.init(self._values)

    @property
    def execution(self) -> str:
        return self._graph.execution

    def step(self) -> None:
        problem = self.problem
        offset = problem.baseline.offset(problem.plan.combinations)
        value, cost, *gradients = self._graph(self.keys.next(), offset, *self._values.values())
        problem.baseline.add(cost)
        # A step that goes nowhere leaves everything where it is, so that it can be looked at.
        finite = mx.stack([mx.all(mx.isfinite(x)) for x in (value, *gradients)])
        self._fine = mx.logical_and(self._fine, mx.all(finite))
        down = dict(zip(self._values, [-g for g in gradients], strict=True))
        moved = self.optimiser.apply_gradients(down, self._values)
        self._values = {name: mx.where(self._fine, moved[name], old) for name, old in self._values.items()}
        self._new.append((value, self._fine))

    def settle(self) -> None:
        """Evaluate the steps since the last time."""
        values, fine = (mx.stack(list(column)) for column in zip(*self._new, strict=True))
        mx.eval(values, fine, self._values, self.optimiser.state)
        found: Any = values.tolist()
        good: Any = fine.tolist()
        if not all(good):
            raise self._stuck(len(self.history) + good.index(False))
        self.history += found
        self._new = []

    def shown(self) -> dict:
        """What a progress callback is told: the median of the last steps, if it is of the ELBO, and all of them."""
        import numpy as np

        recent = float(np.median(self.history[-_RECENT:])) if self.problem.objective.each else math.nan
        return {"elbo": recent, "objective": lambda: np.array(self.history)}

    def kept(self) -> dict:
        """What ``restore`` needs to go on from between two blocks."""
        state: Any = self.optimiser.state
        return {
            "values": list(self._values.values()),
            "optimiser": optree.tree_leaves(state),
            "baseline": self.problem.baseline.kept(),
            "history": mx.array(self.history),
        }

    def restore(self, kept: dict) -> None:
        self._values = dict(zip(self._values, kept["values"], strict=True))
        spec = optree.tree_structure(self.optimiser.state)
        self.optimiser.state.update(optree.tree_unflatten(spec, kept["optimiser"]))
        self.problem.baseline.restore(kept["baseline"])
        self.history = kept["history"].tolist()
        for _ in self.history:
            self.keys.next()

    def learned(self) -> dict:
        return dict(zip(self.problem.learned, self._values.values(), strict=True))

    def _stuck(self, step: int) -> Exception:
        """Why the objective or its gradient is not finite where the parameters stopped."""
        problem = self.problem
        with overridden({**problem.parameters(), **self.learned()}):
            traces, weights = weighted(problem.call, problem.observations, problem.guide, _SUSPECTS, self.keys.next())
        bad = mx.logical_not(mx.isfinite(weights))
        if mx.any(bad).item():
            lane: Any = mx.argmax(bad).item()
            for address in traces.choices:
                if traces.project(select(address))[lane].item() == -math.inf:
                    passes = "" if not problem.objective.each else "; or 'iwelbo', which passes over single draws"
                    return ParameterError(
                        f"the guide draws what the model cannot have: {show_value(traces[lane].choices[address])} "
                        f"has density zero, in {int(mx.sum(bad)):,} of {_SUSPECTS:,} draws,",
                        address=address,
                        gen_fn=problem.call.gen_fn,
                        expected="a guide whose draws lie in the support of the model's choices",
                        hint=f"a distribution with that support{passes}",
                    )
            return no_density(problem.call, traces, weights)
        shown = ", ".join(f"{name} = {show_value(v)}" for (_, name), v in self.learned().items())
        return ParameterError(
            f"the objective or its gradient is not finite in step {step}",
            gen_fn=problem.guide.gen_fn,
            expected=f"finite numbers at {shown}",
            hint="a smaller learning_rate, or a positive parameter as mx.exp(param(...))",
        )


def _optimiser(given: Any, rate: float | None) -> Any:
    from mlx import optimizers

    if given is None:
        return optimizers.Adam(learning_rate=0.01 if rate is None else rate)
    if not isinstance(given, optimizers.Optimizer):
        raise UsageError(f"the optimiser is {given!r:.40}", expected="one of mlx.optimizers, as Adam(0.01)")
    if rate is not None:
        raise UsageError("an optimiser has a learning rate of its own", expected="one of optimiser and learning_rate")
    return copy.deepcopy(given)


def _is_level(history: list[float]) -> bool:
    """Whether the last tenth is on average no higher than the tenth before, within two standard errors."""
    import numpy as np

    n = len(history) // 10
    if n < 2:
        return False
    late, before = (np.array(part, dtype=np.float64) for part in (history[-n:], history[-2 * n : -n]))
    error = math.sqrt((late.var(ddof=1) + before.var(ddof=1)) / n)
    return bool(late.mean() - before.mean() <= 2 * error)
