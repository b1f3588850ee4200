"""Hamiltonian Monte Carlo: a momentum, a trajectory of leapfrog steps, and a Metropolis choice for where it ends.

Duane, Kennedy, Pendleton and Roweth (1987); Neal (2011), with his random step sizes (section 5.4.2.2).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.errors import ParameterError, UsageError
from genmlx.gfi import Call
from genmlx.inference.adaptive import Native
from genmlx.inference.gradient_chains import Info, Sampler, Tuning, checked_fraction, packed, run_gradient_chains
from genmlx.inference.leapfrog import Point, ValueAndGrad, leapfrog
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import positive_count

DIVERGENT = 1000.0
JITTER = 0.2
LENGTH = math.pi / 2
_MOST_STEPS = 1000


class State(NamedTuple):
    """Where each trajectory began and where it is: points, the momentum, the energy it began with, steps taken."""

    start: Point
    here: Point
    momentum: mx.array
    energy: mx.array
    steps: mx.array
    jitter: mx.array  # what the step size of this trajectory is multiplied by


def hmc(
    call: Call,
    observations: Any = None,
    draws: int = 1000,
    warmup: int = 1000,
    chains: int = 4,
    leapfrog_steps: int | None = None,
    trajectory: float | None = None,
    target_accept: float = 0.8,
    dense: bool = False,
    thin: int = 1,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
    native: Native = None,
) -> Posterior:
    """A posterior of ``[chains, draws]`` by Hamiltonian Monte Carlo. All latent choices must be continuous.

    A trajectory has ``leapfrog_steps`` steps, or the length ``trajectory``: step size times steps, in units of the
    standard deviations that warm-up learns. By default that is pi / 2, which takes a Gaussian to an independent draw.
    Warm-up finds the step size that has ``target_accept``, and a mass matrix: diagonal, or ``dense``. Each trajectory
    then has a step size within 20% of that one, so that no orbit closes on itself. ``checkpoint`` names a file from
    which the same run goes on if it was killed, with the same draws.

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
    >>> post = hmc(model(), {"y": 1.5}, draws=300, warmup=100, chains=4, key=mx.random.key(0))
    >>> post["mu"].shape, abs(post.mean("mu").item() - 1.2) < 0.1
    ((4, 300), True)
    """
    require_length("hmc", leapfrog_steps, trajectory)
    return run_gradient_chains(
        "hmc",
        call,
        observations,
        lambda value_and_grad: sampler(value_and_grad, leapfrog_steps, trajectory or LENGTH),
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
        settings={"leapfrog_steps": leapfrog_steps, "trajectory": trajectory},
    )


def require_length(name: str, leapfrog_steps: Any, trajectory: Any) -> None:
    if leapfrog_steps is not None and trajectory is not None:
        raise UsageError(f"{name} was given leapfrog_steps and a trajectory length", expected="one of the two")
    if leapfrog_steps is not None:
        positive_count("leapfrog_steps", leapfrog_steps, most=1 << 24)  # which float32 can count
    if trajectory is not None and not 0 < trajectory < math.inf:
        raise ParameterError(f"trajectory must be positive, got {trajectory!r}")


def sampler(
    value_and_grad: ValueAndGrad, leapfrog_steps: int | None, trajectory: float = LENGTH, most: int = _MOST_STEPS
) -> Sampler:
    def look_after(step_size: float) -> int:
        return leapfrog_steps or min(max(1, math.ceil(trajectory / step_size)), most)

    def length(tuning: Tuning) -> Any:
        if leapfrog_steps is not None:
            return leapfrog_steps
        return mx.clip(mx.ceil(trajectory / tuning.step_size), 1, most)

    return Sampler(init, lambda state, noise, tuning: step(state, noise, tuning, value_and_grad, length), look_after)


def init(point: Point, noise: Any, tuning: Tuning) -> State:
    """The start of a trajectory of each chain, with a momentum of its own for every coordinate."""
    momentum = tuning.metric.momentum(noise.normal)
    energy = tuning.metric.kinetic(momentum) - point.log_prob
    jitter = 1.0 + JITTER * (2.0 * noise.uniforms[1] - 1.0)
    return State(point, point, momentum, energy, mx.zeros_like(energy), jitter)


def step(state: State, noise: Any, tuning: Tuning, value_and_grad: ValueAndGrad, length: Callable) -> tuple:
    """One leapfrog step of each trajectory; where it was the last, the choice, and the start of the next."""
    point, momentum = leapfrog(
        value_and_grad,
        tuning.metric,
        state.here.position,
        state.here.gradient,
        state.momentum,
        tuning.step_size * state.jitter,
    )
    energy = tuning.metric.kinetic(momentum) - point.log_prob
    lost = state.energy - energy
    # NaN compares false: a trajectory that left the numbers is a divergence.
    diverging = mx.logical_not(lost > -DIVERGENT)
    lost = mx.where(diverging, -math.inf, lost)
    steps = state.steps + 1.0
    done = mx.logical_or(steps >= length(tuning), diverging)
    accepted = mx.log(noise.uniforms[0]) < lost
    chosen = Point(*[mx.where(accepted, new, old) for new, old in zip(point, state.start, strict=True)])
    following = init(chosen, noise, tuning)
    going = State(state.start, point, momentum, state.energy, steps, state.jitter)
    stats = {
        "accept": mx.exp(mx.minimum(lost, 0.0)),
        "energy": mx.where(accepted, energy, state.energy),
        "diverging": diverging,
        "n_leapfrog": steps,
    }
    new = [mx.where(done, a, b) for a, b in zip(_flat(following), _flat(going), strict=True)]
    start, here, (momentum, energy, steps, jitter) = Point(*new[:3]), Point(*new[3:6]), new[6:]
    return State(start, here, momentum, energy, steps, jitter), Info(done, packed(chosen), stats)


def _flat(state: State) -> list[mx.array]:
    return [*state.start, *state.here, *state[2:]]
