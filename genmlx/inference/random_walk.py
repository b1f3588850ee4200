"""Random-walk Metropolis: Gaussian steps whose size and shape warm-up finds.

Metropolis et al. (1953); Roberts, Gelman and Gilks (1997) for the acceptance to aim at, 0.234.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.errors import ParameterError
from genmlx.gfi import Call
from genmlx.inference.adaptive import Native
from genmlx.inference.gradient_chains import Info, Sampler, Tuning, checked_fraction, packed, run_gradient_chains
from genmlx.inference.leapfrog import Point, ValueAndGrad, evaluate
from genmlx.inference.posterior import Posterior


class State(NamedTuple):
    """Where each chain is, and where its next step would take it."""

    point: Point
    proposal: mx.array


def random_walk(
    call: Call,
    observations: Any = None,
    draws: int = 1000,
    warmup: int = 1000,
    chains: int = 4,
    scale: float | None = None,
    target_accept: float = 0.234,
    dense: bool = False,
    thin: int = 1,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
    native: Native = None,
) -> Posterior:
    """A posterior of ``[chains, draws]`` by a random walk of all latent choices, which must be continuous.

    Warm-up finds the variances of the steps (``dense``: their covariance), and the scale that has ``target_accept``;
    it starts from ``scale``. With ``warmup=0`` the scale stays. Choices with bounds walk in an unconstrained space.
    ``checkpoint`` names a file from which the same run goes on if it was killed, with the same draws.

    Where the density has such a form (and llvmlite is installed) the whole loop is machine code, of the CPU or, if that
    is MLX's default device and it pays, of a GPU with a chain on each thread; and else recorded MLX graphs.
    ``native=False`` asks for these, ``native=True`` for an error instead of them.
    Machine code computes in float32, and on the CPU in float64 from where the warm-up finds float32 too noisy for the
    sampler; ``native="float32"`` and ``native="float64"`` ask for one of them throughout.

    >>> import mlx.core as mx
    >>> from genmlx import gen, trace, normal
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("mu", normal(0, 1)), 0.5))
    >>> post = random_walk(model(), {"y": 1.5}, draws=1000, warmup=200, chains=4, key=mx.random.key(0))
    >>> post["mu"].shape, abs(post.mean("mu").item() - 1.2) < 0.1
    ((4, 1000), True)
    """
    if scale is not None and not 0 < scale < math.inf:
        raise ParameterError(f"scale must be positive, got {scale!r}")
    return run_gradient_chains(
        "random_walk",
        call,
        observations,
        sampler,
        draws=draws,
        warmup=warmup,
        thin=thin,
        chains=chains,
        target_accept=checked_fraction("target_accept", target_accept),
        dense=dense,
        key=key,
        progress=progress,
        checkpoint=checkpoint,
        native=native,
        settings={"scale": scale},
        step_size=scale,
        gradients=False,
    )


def sampler(value_and_grad: ValueAndGrad) -> Sampler:
    return Sampler(init, lambda state, noise, tuning: step(state, noise, tuning, value_and_grad), lambda step_size: 1)


def init(point: Point, noise: Any, tuning: Tuning) -> State:
    metric = tuning.metric
    shift = metric.velocity(metric.momentum(noise.normal))  # N(0, C) for the learned covariance C
    return State(point, point.position + tuning.step_size * shift)


def step(state: State, noise: Any, tuning: Tuning, value_and_grad: ValueAndGrad) -> tuple[State, Info]:
    old, new = state.point, evaluate(value_and_grad, state.proposal)
    log_ratio = new.log_prob - old.log_prob
    accepted = mx.log(noise.uniforms[0]) < log_ratio
    chosen = Point(*[mx.where(accepted, a, b) for a, b in zip(new, old, strict=True)])
    stats = {"accept": mx.exp(mx.minimum(log_ratio, 0.0)), "energy": -chosen.log_prob}
    return init(chosen, noise, tuning), Info(mx.ones_like(log_ratio), packed(chosen), stats)
