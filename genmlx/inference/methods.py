"""The algorithms by the short names that a command line gives them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, NamedTuple

from genmlx.gfi import Call


class Method(NamedTuple):
    """A short name, the function of ``genmlx.inference`` that it stands for, and one line on when to take it.

    It takes a "call" and observations, or "steps", each of which is a call with what it adds to the observations.
    """

    name: str
    function: str
    summary: str
    takes: Literal["call", "steps"] = "call"

    def load(self) -> Callable[..., Any]:
        return getattr(import_module("genmlx.inference"), self.function)

    def keywords(self) -> dict[str, Any]:
        """What the function takes beside the call and the observations, or the steps: with defaults, if it has them."""
        parameters = list(inspect.signature(self.load()).parameters.values())[2 if self.takes == "call" else 1 :]
        return {p.name: p.default for p in parameters}

    def required(self) -> list[str]:
        """The keywords that have no default."""
        return [name for name, default in self.keywords().items() if default is inspect.Parameter.empty]


METHODS = {
    method.name: method
    for method in (
        Method("nuts", "nuts", "continuous choices; no tuning"),
        Method("hmc", "hmc", "continuous choices; trajectories of one length"),
        Method("mala", "mala", "continuous choices; one gradient for each draw"),
        Method("rw", "random_walk", "continuous choices, no gradients"),
        Method("ess", "elliptical_slice", "choices with Gaussian priors"),
        Method("mh", "mh", "any choices, proposed from the prior or by a proposal"),
        Method("gibbs", "gibbs", "discrete choices with finite supports"),
        Method("mix", "hmc_gibbs", "continuous and discrete choices"),
        Method("is", "importance_sampling", "few choices, or a good proposal; gives the evidence"),
        Method("tempered", "tempered_smc", "posteriors of several modes; gives the evidence"),
        Method("map", "map_optimize", "the most probable choices"),
        Method("laplace", "laplace", "a Gaussian around the most probable choices"),
        Method("vi", "vi", "continuous choices; the Gaussian nearest to the posterior"),
        Method("smc", "smc", "a series, filtered step by step; gives the evidence", "steps"),
        Method("csmc", "csmc", "the same, with one trace that is kept", "steps"),
        Method("smcp3", "smcp3", "the same, with steps that rewrite old choices", "steps"),
        Method("pgibbs", "particle_gibbs", "all states of a series at once, and its parameters", "steps"),
        Method("pmmh", "pmmh", "the parameters of a series, with its states summed out", "steps"),
    )
}


def automatic(call: Call, observations: Any) -> Method:
    """The method for a model: by whether its latent choices are continuous or discrete, and stay the same."""
    from genmlx.errors import GenError
    from genmlx.inference.log_density import LogDensity
    from genmlx.inference.loop import InferenceInterrupted

    try:
        LogDensity(call, observations)
        return METHODS["nuts"]
    except GenError:
        pass
    for name in ("mix", "gibbs"):
        try:
            METHODS[name].load()(call, observations, draws=1, warmup=0, chains=1)
            return METHODS[name]
        except InferenceInterrupted:
            raise
        except GenError:
            continue
    return METHODS["mh"]
