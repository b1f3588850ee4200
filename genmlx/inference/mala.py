"""The Metropolis-adjusted Langevin algorithm: a step up the gradient, with noise, and a Metropolis choice.

Roberts and Tweedie (1996); Roberts and Rosenthal (1998) for the acceptance to aim at, 0.574.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.gfi import Call
from genmlx.inference.adaptive import Native
from genmlx.inference.gradient_chains import Info, Sampler, Tuning, checked_fraction, packed, run_gradient_chains
from genmlx.inference.leapfrog import Metric, Point, ValueAndGrad, evaluate
from genmlx.inference.posterior import Posterior


class State(NamedTuple):
    """Where each chain is, and the noise of its next proposal."""

    point: Point
    momentum: mx.array


def mala(
    call: Call,
    observations: Any = None,
    draws: int = 1000,
    warmup: int = 1000,
    chains: int = 4,
    target_accept: float = 0.574,
    dense: bool = False,
    thin: int = 1,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
    native: Native = None,
) -> Posterior:
    """A posterior of ``[chains, draws]`` by Langevin proposals. All latent choices must be continuous.

    With step size e and covariance C, both found by warm-up, x is proposed N(x + e^2/2 C grad log p(x), e^2 C).
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
    >>> post = mala(model(), {"y": 1.5}, draws=500, warmup=100, chains=4, key=mx.random.key(0))
    >>> post["mu"].shape, abs(post.mean("mu").item() - 1.2) < 0.1
    ((4, 500), True)
    """
    return run_gradient_chains(
        "mala",
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
    )


def sampler(value_and_grad: ValueAndGrad) -> Sampler:
    return Sampler(init, lambda state, noise, tuning: step(state, noise, tuning, value_and_grad), lambda step_size: 1)


def init(point: Point, noise: Any, tuning: Tuning) -> State:
    return State(point, tuning.metric.momentum(noise.normal))


def step(state: State, noise: Any, tuning: Tuning, value_and_grad: ValueAndGrad) -> tuple[State, Info]:
    old, size = state.point, tuning.step_size
    proposal = old.position + tuning.metric.velocity(0.5 * size * size * old.gradient + size * state.momentum)
    new = evaluate(value_and_grad, proposal)
    log_ratio = log_acceptance(old, new, size, tuning.metric)
    accepted = mx.log(noise.uniforms[0]) < log_ratio
    chosen = Point(*[mx.where(accepted, a, b) for a, b in zip(new, old, strict=True)])
    accept = mx.exp(mx.minimum(mx.where(mx.isnan(log_ratio), -math.inf, log_ratio), 0.0))
    info = Info(mx.ones_like(accept), packed(chosen), {"accept": accept, "energy": -chosen.log_prob})
    return init(chosen, noise, tuning), info


def log_acceptance(old: Point, new: Point, step_size: Any, metric: Metric) -> mx.array:
    """log [p(y) q(x | y) / (p(x) q(y | x))] for the proposal q from x, the old point, to y, ``[n, 1]``.

    log q(y | x) = -d C^-1 d / (2 e^2) with d = y - x - e^2/2 C g(x). In the ratio, C^-1 cancels.
    """
    apart, half = new.position - old.position, 0.5 * step_size * step_size
    both = old.gradient + new.gradient
    change = metric.velocity(new.gradient) * new.gradient - metric.velocity(old.gradient) * old.gradient
    return (
        new.log_prob
        - old.log_prob
        - 0.5 * mx.sum(both * apart, axis=-1, keepdims=True)
        - 0.25 * half * mx.sum(change, axis=-1, keepdims=True)
    )
