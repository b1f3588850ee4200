"""An objective of a model and a guide that can be differentiated: what programmable variational inference ascends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx.backend.mapping import vmap
from genmlx.choicemap import ChoiceMap
from genmlx.errors import MissingChoice, UnknownAddress, UsageError, nearest, one_of, show_addresses
from genmlx.gfi import Call
from genmlx.gradients import host_value_errors
from genmlx.inference.adev.baselines import read_baseline
from genmlx.inference.adev.joint import joint_surrogate
from genmlx.inference.adev.lanes import derivative_only, run_rows, weighed
from genmlx.inference.adev.sites import ESTIMATORS, STOPPED, EstimatorError, Plan, assigned, find_sites
from genmlx.inference.importance import weighted
from genmlx.inference.objectives import Objective
from genmlx.inference.particles import Particles
from genmlx.inference.resampling import log_mean_exp
from genmlx.params import noted_reads, overridden, peek
from genmlx.vectorized import Lanes, run
from genmlx.versions import pinned


class GuidedObjective:
    """A model, observations and a guide, with an objective that can be differentiated in the parameters it learns."""

    def __init__(
        self,
        call: Call,
        observations: ChoiceMap,
        guide: Call,
        objective: Objective,
        estimator: Any,
        baseline: Any,
        particles: int,
        samples: int,
    ):
        self.call, self.observations, self.guide, self.objective = call, observations, guide, objective
        self.particles, self.samples, self.baseline = particles, samples, read_baseline(baseline)
        self._args, self._guide_args = call.gen_fn.own(call), guide.gen_fn.own(guide)
        self.reads = self._covered()
        self._require_no_host_values()
        sites = find_sites(self._run_guide, [peek(*read) for read in self.reads["guide"]])
        joint = not objective.each
        if objective.wake:
            if estimator is not None:
                raise UsageError(
                    f"the objective {objective.name!r} does not go through the draws: there is nothing to estimate",
                    expected="no estimator",
                )
            estimators = dict.fromkeys(sites, STOPPED)
        else:
            estimators = assigned(guide.gen_fn, sites, estimator, joint)
            if objective.name == "vimco":
                _require_scores(guide, estimators)
        self.plan = Plan(sites, estimators)
        # The derivative of log q in the parameters at a given draw has mean zero, where no support moves with them.
        self.landing = objective.each and not any(site.moving for site in sites.values())
        if self.plan.reinforced:
            self.baseline.require(samples * particles if objective.each else particles, "particles")
        self.learned = [read for read in self.reads["all"] if any(read in self.reads[who] for who in objective.learns)]
        if not self.learned:
            who = " or ".join(objective.learns)
            raise UsageError(
                f"the objective {objective.name!r} has nothing to learn: the {who} reads no parameter",
                gen_fn=guide.gen_fn,
                expected='a param("name", default) in its body',
            )

    def settings(self) -> dict:
        """What the steps depend on, apart from the model, the observations, the optimiser and where they begin."""
        fixed = {name: value for (model, name), value in self.parameters().items() if (model, name) not in self.learned}
        return {
            "guide": self.guide,
            "objective": list(self.objective),
            "estimators": self.plan.estimators,
            "baseline": self.baseline,
            "particles": self.particles,
            "samples": self.samples,
            "parameters": fixed,
        }

    def parameters(self) -> dict:
        """Every parameter that is read, as it stands."""
        return {read: peek(*read) for read in self.reads["all"]}

    def gradient(self, key: mx.array, offset: mx.array, *values: mx.array) -> list:
        """The objective, the costs that a running baseline hears of, and the gradient in ``values``."""

        def total(given: list) -> tuple[mx.array, list]:
            with overridden(dict(zip(self.learned, given, strict=True))):
                surrogate, *found = self._objective(key, offset)
            return surrogate, found

        with host_value_errors("differentiated"):
            (_, found), gradients = mx.value_and_grad(total)(list(values))
        return [*found, *gradients]

    def _objective(self, key: Any, offset: mx.array) -> list:
        """The surrogate, the value and the costs, ``[combinations]``."""
        plan, each = self.plan, self.objective.each

        def lane(key: Any) -> list:
            rows = run_rows(plan, self.guide.gen_fn, self._guide_args, self._densities, key)
            if each:
                costs = rows._replace(outcomes=[rows.outcomes[0] - rows.outcomes[1]])
                return [x for x in weighed(plan, costs) if x is not None]
            numbers = [x[:, 0] for x in rows.outcomes]
            score = [] if rows.log_score is None else [rows.log_score[0]]
            return [*numbers, rows.varied[0], rows.scales[0], *score]

        found = run(lane, self.samples * self.particles, key)
        return self._of_each(found, offset) if each else self._jointly(found, offset)

    def _of_each(self, found: list, offset: mx.array) -> list:
        cost, weak = found[0], found[-1]
        total = mx.sum(cost, axis=-1) + weak
        if self.plan.reinforced:
            total = total + mx.sum(derivative_only(found[1], cost - self.baseline.of(cost, offset)), axis=-1)
        return [mx.mean(total), mx.mean(mx.sum(cost, axis=-1)), mx.mean(cost, axis=0)]

    def _jointly(self, found: list, offset: mx.array) -> list:
        sets = [x.reshape(self.samples, self.particles, *x.shape[1:]) for x in found]
        known = None if self.baseline.leaves_one_out else offset[0]
        h = self._checked

        def one(log_p: mx.array, log_q: mx.array, varied: mx.array, scales: mx.array, *score: mx.array) -> mx.array:
            return joint_surrogate(h, [log_p, log_q], score[0] if score else None, varied, scales, known)

        # Derivatives aside the surrogate is the value.
        surrogate = mx.mean(vmap(one)(*sets))
        value = mx.stop_gradient(surrogate)
        return [surrogate, value, value[None]]

    def _checked(self, log_p: mx.array, log_q: mx.array) -> mx.array:
        value = self.objective.of(log_p, log_q)
        if not isinstance(value, mx.array) or value.ndim:
            shown = f"an array of shape {list(value.shape)}" if isinstance(value, mx.array) else repr(value)
            raise UsageError(f"the objective {self.objective.name!r} gave {shown}", expected="an array of no axes")
        return value

    def _densities(self, trace: Any) -> list:
        """log p and log q of what a run of the guide drew."""
        model = self._run_model(trace.choices)
        if not self.landing:
            return [model.score, trace.score]
        with overridden({read: mx.stop_gradient(peek(*read)) for read in self.reads["guide"]}):
            again, _ = self.guide.gen_fn._generate(self._guide_args, trace.choices, None)
        return [model.score, again.score]

    def _run_model(self, latents: ChoiceMap) -> Any:
        return self.call.gen_fn._generate(self._args, self.observations.merge(latents), None)[0]

    def _require_no_host_values(self) -> None:
        """Raise where a body takes the host value of a parameter, which would be a constant of the gradient.

        With all parameters as a lane's own there are no such values.
        """

        def lane(key: Any, values: list) -> mx.array:
            with overridden(dict(zip(self.reads["all"], values, strict=True))):
                return self._run_model(self.guide.gen_fn._simulate(self._guide_args, key).choices).score

        run(lane, 1, mx.random.key(0), Lanes([peek(*read)[None] for read in self.reads["all"]]))

    def _run_guide(self, values: list, choices: ChoiceMap, key: Any) -> Any:
        with overridden(dict(zip(self.reads["guide"], values, strict=True))):
            return self.guide.gen_fn._generate(self._guide_args, choices, key)[0]

    def _covered(self) -> dict[str, list[tuple]]:
        """Who reads which parameters, once it is seen that the guide's choices are exactly the latents."""
        found: dict[str, Any] = {}

        def lane(key: Any) -> mx.array:
            with noted_reads() as found["guide"]:
                drawn = self.guide.gen_fn._simulate(self._guide_args, key)
            found["drawn"] = drawn.choices.addresses()
            for address in found["drawn"]:
                if address in self.observations:
                    raise UsageError("the guide draws an observed choice", address=address, gen_fn=self.guide.gen_fn)
            given = self.observations.merge(drawn.choices)
            with noted_reads() as found["model"]:
                model, _ = self.call.gen_fn._generate(self._args, given, key)
            found["known"] = model.choices.addresses()
            found["unvisited"] = self.call.gen_fn.unvisited(model, given)
            return model.score

        run(lane, 1, mx.random.key(0))
        latents = [a for a in found["known"] if a not in self.observations]
        for address in found["unvisited"]:
            what = "the guide draws a choice that is no latent of the model:"
            if address in self.observations:
                what = "an observed address that the run never visits:"
            raise UnknownAddress(
                what,
                address=address,
                gen_fn=self.call.gen_fn,
                suggestions=nearest(address, latents),
                expected=one_of(latents),
            )
        missing = [a for a in latents if a not in found["drawn"]]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise MissingChoice(
                f"the guide leaves out a latent choice{more}:",
                address=missing[0],
                gen_fn=self.call.gen_fn,
                expected=f"a guide that draws {show_addresses(missing)}",
                hint="trace it in the guide, or observe it",
            )
        everyone = list(dict.fromkeys([*found["guide"], *found["model"]]))
        return {"guide": list(found["guide"]), "model": list(found["model"]), "all": everyone}

    def draws(self, pins: dict, parameters: dict) -> Callable[[int, Any], Particles]:
        """What gives weighted draws of the guide at these parameters, whatever becomes of the stores."""

        def draw(n: int, key: Any) -> Particles:
            with pinned(pins), overridden(parameters):
                traces, weights = weighted(self.call, self.observations, self.guide, n, key)
            return Particles(traces, weights, log_mean_exp(weights), self.call, self.observations)

        return draw


def _require_scores(guide: Call, estimators: dict[tuple, str]) -> None:
    for address, name in estimators.items():
        if name not in ESTIMATORS[:2]:
            raise EstimatorError(
                f"VIMCO is a form of REINFORCE: the estimator {name!r} is not possible",
                address=address,
                gen_fn=guide.gen_fn,
                expected=" or ".join(map(repr, ESTIMATORS[:2])),
                hint='objective="iwelbo"',
            )
