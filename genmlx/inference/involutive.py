"""Involutive MCMC: a random choice of auxiliary variables, then a deterministic map that is its own inverse.

Green (1995), "Reversible jump Markov chain Monte Carlo computation and Bayesian model determination"; on traces,
Cusumano-Towner, Lew and Mansinghka (2020), "Automating involutive MCMC using probabilistic and differentiable
programming". The involution may change which choices there are; the Jacobian is found by differentiation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import EMPTY, ChoiceMap
from genmlx.errors import name_of
from genmlx.gfi import Call
from genmlx.inference.chains import Step, accept, run_chains
from genmlx.inference.kernels import ITSELF, Kernel, Watch
from genmlx.inference.posterior import Posterior
from genmlx.inference.round_trip import label, require_none
from genmlx.inference.translators import SymmetricTranslator
from genmlx.random import LaneKey
from genmlx.trace import Trace
from genmlx.transform import Transform
from genmlx.vectorized import VectorizedTrace


def involutive_mh(
    call: Call,
    observations: Any = None,
    proposal: Any = None,
    involution: Any = None,
    draws: int = 1000,
    warmup: int = 0,
    thin: int = 1,
    chains: int = 1,
    check: bool = False,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Posterior:
    """A posterior by Metropolis-Hastings with an involution; ``chains`` run as the lanes of one batch.

    Each step draws auxiliary choices from ``proposal``, a call or a function from the current trace to one (or None),
    and applies ``involution``, a ``@transform``, to the trace and to them. It is accepted with log probability
    [weight of update - log q(auxiliary) + log q(those of the way back) + log |det Jacobian|]. A move that changes
    which choices there are runs as one chain. ``check`` puts to the test that the involution undoes itself, in every
    step, and raises a RoundTripError that names the choice which differs. ``checkpoint`` names a file from which the
    same run goes on if it was killed, with the same draws.

    >>> from genmlx import gen, normal, trace
    >>> from genmlx.transform import transform
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("mu", normal(0, 1)), 0.5))
    >>> @gen
    ... def step(tr):
    ...     trace("u", normal(0, 1))
    >>> @transform
    ... def walk(old, new):
    ...     u = old.aux["u"]
    ...     new["mu"], new.aux["u"] = old["mu"] + u, -u
    >>> post = involutive_mh(model(), {"y": 1.5}, step, walk, draws=500, warmup=50, chains=8, key=mx.random.key(0))
    >>> post["mu"].shape, abs(post.mean("mu").item() - 1.2) < 0.05
    ((8, 500), True)
    """
    kernels: list[InvolutiveStep] = []

    def make_kernel(start: Trace, observations: ChoiceMap) -> Kernel:
        kernels[:] = [InvolutiveStep(proposal, involution, check, observations)]
        return Kernel(kernels[0])

    result = run_chains(
        "involutive_mh",
        call,
        observations,
        make_kernel,
        draws=draws,
        warmup=warmup,
        thin=thin,
        chains=chains,
        key=key,
        progress=progress,
        checkpoint=checkpoint,
        settings={"proposal": proposal, "involution": involution, "check": check},
    )
    kernels[0].require_none(result.stats)
    return result


class InvolutiveStep:
    """``step(trace, key) -> (trace, info)`` of one chain. With ``check`` a single trace raises at once.

    In a batch nothing can raise: ``info`` then says what differs, and ``require_none`` raises once it has values.
    """

    def __init__(self, proposal: Any, involution: Any, check: bool = False, observations: Any = None):
        self.translator = SymmetricTranslator(proposal, involution, observations)
        self.check = check
        self._places: dict[str, Any] = {}

    def __call__(self, trace: Trace, key: Any) -> tuple[Trace, dict[str, Any]]:
        propose_key, accept_key = random.split(key)
        new, weight, differs = self.translator.move(trace, propose_key, self.check)
        trace, info = accept(trace, new, weight, accept_key)
        if not isinstance(key, LaneKey):
            require_none(self.translator.inverse, differs)
            return trace, info
        self._places = {label(place): place for place in differs}
        return trace, info | {label(place): flags for place, flags in differs.items()}

    def require_none(self, infos: dict[str, mx.array]) -> None:
        """Take what differs out of the statistics of a batch, and raise if anything does."""
        require_none(
            self.translator.inverse, {place: infos.pop(name) for name, place in self._places.items() if name in infos}
        )


def involutive_step(proposal: Any, involution: Transform, check: bool = False, observations: Any = EMPTY) -> Step:
    """One step of ``involutive_mh``: ``step(trace, key) -> (trace, info)`` of one trace."""
    return InvolutiveStep(proposal, involution, check, observations)


class InvolutiveKernel(Kernel):
    """The step of ``involutive_mh`` as a kernel: its own reversal. What a check finds raises here, also in a batch."""

    def apply(self, trace: Any, key: Any, watch: Watch = None) -> tuple[Any, dict[str, Any]]:
        new, info = super().apply(trace, key, watch)
        if isinstance(trace, VectorizedTrace):
            step: Any = self.step
            step.require_none(info)
        return new, info


def involutive_kernel(
    proposal: Any, involution: Transform, check: bool = False, observations: Any = EMPTY
) -> InvolutiveKernel:
    """``kernel(trace, key) -> trace``, for one trace or a batch: the step of ``involutive_mh``. It is its own reversal.

    >>> from genmlx import gen, flip, trace
    >>> from genmlx.transform import is_involution, transform
    >>> @gen
    ... def model():
    ...     trace("a", flip(0.5))
    >>> @is_involution
    ... @transform
    ... def turn(old, new):
    ...     new["a"] = 1 - old["a"]
    >>> tr, _ = model().generate({"a": 1})
    >>> involutive_kernel(None, turn, check=True)(tr, mx.random.key(0))["a"].item()
    0
    """
    step = InvolutiveStep(proposal, involution, check, observations)
    return InvolutiveKernel(step, name=f"involutive_kernel({name_of(involution)})", back=ITSELF)
