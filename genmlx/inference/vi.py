"""Variational inference without tuning: a Gaussian guide in unconstrained coordinates, fitted to the posterior.

Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), "Automatic differentiation variational inference". In the place of
their step sizes, of which each model needs its own, are natural gradients (``gaussian_guides``), whose steps are shares
of the guide's scale; how large a share is learned on the way (``gaussian_climb``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.errors import ParameterError
from genmlx.gfi import Call, gen_errors
from genmlx.inference.checkpoint import Checkpoint
from genmlx.inference.gaussian_climb import Climb
from genmlx.inference.gaussian_guides import FullRank, Guide, LowRank, MeanField, Params
from genmlx.inference.log_density import LogDensity
from genmlx.inference.loop import Loop
from genmlx.inference.particles import Particles
from genmlx.inference.problem import checked_problem, no_density, positive_count
from genmlx.inference.resampling import log_mean_exp
from genmlx.inference.variational import Variational
from genmlx.vectorized import vgenerate
from genmlx.versions import pinned

FAMILIES = ("meanfield", "fullrank", "lowrank")


class GaussianFit(Variational):
    """A Gaussian of the unconstrained coordinates of the latents: ``density.addresses`` says which of them are whose.

    ``params`` of the ``family`` "meanfield" are ``mean`` and ``std``, of "fullrank" ``mean`` and ``scale_tril``, of
    "lowrank" ``mean``, ``std`` and ``factor``. ``execution`` says whether the steps were ``replayed`` as one graph.
    """

    def __init__(self, density: LogDensity, guide: Guide, params: Params, key: Any, execution: str, **rest: Any):
        self.density, self.guide, self.execution = density, guide, execution
        self.family = guide.family

        def draw(n: int, key: Any) -> Particles:
            return _drawn(density, guide, params, n, key)

        def judged(n: int, key: Any) -> tuple[dict[tuple, mx.array], mx.array]:
            u, log_weights = _placed(density, guide, params, n, key)
            return dict(density.unpack(u).items()), log_weights

        own = {**rest, "params": params, "moments": _moments(density, guide, params), "judged": judged}
        super().__init__(density.call, density.observations, draw, key, **own)

    @property
    def covariance(self) -> mx.array:
        """Of the unconstrained coordinates, ``[dim, dim]``."""
        return self.guide.covariance(self.params)


def vi(
    call: Call,
    observations: Any = None,
    family: str = "meanfield",
    rank: int | None = None,
    iterations: int = 10_000,
    samples: int = 10,
    learning_rate: float | None = None,
    tolerance: float = 0.1,
    sticking_the_landing: bool = True,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> GaussianFit:
    """The Gaussian of a ``family`` that is nearest to the posterior of continuous latents: the best evidence bound.

    In unconstrained coordinates it is "meanfield" (independent), "fullrank" (any covariance), or "lowrank": a diagonal
    plus ``rank`` dimensions, by default the root of all. A step is a natural gradient from ``samples`` draws in pairs
    of opposite noise, and no more of it than ``learning_rate``, by default what the noise of so few draws allows. Of
    that, steps take less where they turn back and more where they agree (Baydin et al. 2018, "Online learning rate
    adaptation with hypergradient descent"). The result is an average over the steps, of the late ones more (Shamir and
    Zhang 2013). With ``sticking_the_landing`` the gradient leaves out a term whose mean is zero (Roeder, Wu and
    Duvenaud 2017). It starts at the best place on the ways of 10 climbs from prior draws.

    It has converged when the median of the objective over the last quarter of the steps is above that over the quarter
    before by less than ``tolerance``, with two standard errors added: in nats, or in interquartile ranges of the
    objective where these are longer. That is looked at after 400 iterations and each 100 more. With a tolerance of 0
    all ``iterations`` are made. Ctrl-C gives the best so far. A run with ``checkpoint``, a path, is resumed from it.

    >>> from genmlx import gen, trace, normal
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("mu", normal(0, 1)), 0.5))
    >>> fit = vi(model(), {"y": 1.5}, key=mx.random.key(0))                  # the posterior is N(1.2, 0.2)
    >>> round(fit.mean("mu").item(), 3), round(fit.std("mu").item() ** 2, 3), round(fit.log_ml_bound, 4)
    (1.2, 0.2, -1.9305)
    """
    observations = checked_problem(call, observations)
    for name, count in (("iterations", iterations), ("samples", samples)):
        positive_count(name, count)
    _check(family, rank, learning_rate, tolerance)
    key = random.as_key(key)
    streams = random.streams(key)
    with pinned(), gen_errors(call.gen_fn), Loop("vi", progress) as loop:
        density = LogDensity(call, observations)
        guide = _guide(family, rank, density.dim)
        if checkpoint is not None:
            settings = {"family": family, "rank": rank, "iterations": iterations, "samples": samples}
            own = {"learning_rate": learning_rate, "tolerance": tolerance, "sticking_the_landing": sticking_the_landing}
            loop.file = Checkpoint.of(checkpoint, "vi", call, observations, key, **settings, **own)
        climb = Climb(density, guide, samples, learning_rate, tolerance, sticking_the_landing)
        climb.run(loop, iterations, streams)
        found = {"history": mx.array(climb.history, dtype=mx.float32), "converged": climb.converged}
        best = climb.best(streams.accept)
        result = GaussianFit(density, guide, best, streams.resample, climb.execution, status=loop.status, **found)
    result.timing = loop.timing
    return loop.deliver(result)


def _check(family: str, rank: int | None, learning_rate: float | None, tolerance: float) -> None:
    if family not in FAMILIES:
        raise ParameterError(f"no family {family!r}", expected=f"one of {', '.join(FAMILIES)}")
    if rank is not None:
        positive_count("rank", rank)
        if family != "lowrank":
            raise ParameterError(f"the family {family!r} has no rank", expected="the family 'lowrank' with it")
    if learning_rate is not None and not (_is_number(learning_rate) and 0 < learning_rate <= 1):
        raise ParameterError(f"learning_rate is {learning_rate!r}", expected="a share, above 0 and at most 1")
    if not (_is_number(tolerance) and tolerance >= 0):
        raise ParameterError(f"tolerance is {tolerance!r}", expected="a number, 0 or above")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _guide(family: str, rank: int | None, dim: int) -> Guide:
    if family != "lowrank":
        return MeanField(dim) if family == "meanfield" else FullRank(dim)
    rank = round(math.sqrt(dim)) if rank is None else rank
    if rank > dim:
        raise ParameterError(f"rank is {rank}", expected=f"at most {dim}, the dimensions of the latents")
    return LowRank(dim, rank)


def _placed(density: LogDensity, guide: Guide, params: Params, n: int, key: Any) -> tuple[mx.array, mx.array]:
    """Draws of the guide, ``[n, dim]``, and the log density of the model over its own."""
    z = random.normal(random.split(key)[0], (n, guide.width))
    u = guide.place(params, z)
    return u, density.logp(u) - guide.log_q(params, z)


def _drawn(density: LogDensity, guide: Guide, params: Params, n: int, key: Any) -> Particles:
    """The same draws as traces."""
    u, log_weights = _placed(density, guide, params, n, key)
    with density._context():
        traces = vgenerate(density.call, density.unpack(u).merge(density.observations), n, random.split(key)[1]).trace
    if not mx.all(log_weights < math.inf).item():
        raise no_density(density.call, traces, log_weights)
    return Particles(traces, log_weights, log_mean_exp(log_weights), density.call, density.observations)


def _moments(density: LogDensity, guide: Guide, params: Params) -> dict[tuple, tuple[mx.array, mx.array]]:
    """Mean and deviation of the latents that are their own coordinates: the guide has them, without an error."""
    u = guide.place(params, random.normal(mx.random.key(0), (64, guide.width)))
    values, std, found = density.unpack(u), guide.std(params), {}
    for address, share in density.addresses.items():
        value: Any = values[address]
        if value.size == u[:, share].size and mx.array_equal(value.reshape(64, -1), u[:, share]).item():
            shape = value.shape[1:]
            found[address] = params["mean"][share].reshape(shape), std[share].reshape(shape)
    return found
