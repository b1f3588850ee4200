"""One transition of the samplers that take one step: Langevin's, and the random walk.

As ``genmlx/inference/mala.py`` and ``random_walk.py`` have them.
"""

from __future__ import annotations

import math

from genmlx.native.drivers.chain import (
    ACCEPT,
    ENERGY,
    Chain,
    acceptance,
    copy,
    dot,
    draw_momentum,
    evaluate,
    set_velocity,
    uniform,
)


def mala(chain: Chain) -> None:
    log_prob = langevin(chain)
    choose(chain, log_prob)


def random_walk(chain: Chain) -> None:
    log_prob = shifted(chain)
    choose(chain, log_prob)


def first_langevin(chain: Chain) -> None:
    langevin(chain)


def first_shift(chain: Chain) -> None:
    shifted(chain)


def choose(chain: Chain, log_prob: float) -> None:
    """Go to the proposal, or stay; ``work`` has the proposal, its gradient, and the log of the acceptance ratio."""
    dim, work = chain.dim, chain.desk.work
    if math.log(uniform(chain)) < work[2 * dim]:
        copy(work, chain.position, dim)
        copy(work[dim:], chain.gradient, dim)
        chain.log_prob = log_prob
    chain.stats[ENERGY] = -chain.log_prob


def shifted(chain: Chain) -> float:
    """A step N(0, e^2 C); the log density there."""
    dim, work, size = chain.dim, chain.desk.work, chain.step_size
    momentum, velocity = work[3 * dim :], work[4 * dim :]
    draw_momentum(chain, velocity, momentum)
    set_velocity(chain, momentum, velocity)
    for i in range(dim):
        work[i] = chain.position[i] + size * velocity[i]
    log_prob = evaluate(chain, work, work[dim:])
    work[2 * dim] = log_prob - chain.log_prob
    chain.stats[ACCEPT] = acceptance(work[2 * dim])
    return log_prob


def langevin(chain: Chain) -> float:
    """A step N(e^2/2 C g, e^2 C); the log density there."""
    dim, work, size = chain.dim, chain.desk.work, chain.step_size
    half, old, new = 0.5 * size * size, chain.gradient, work[dim:]
    momentum, velocity = work[3 * dim :], work[4 * dim :]
    draw_momentum(chain, velocity, momentum)
    for i in range(dim):
        momentum[i] = half * old[i] + size * momentum[i]
    set_velocity(chain, momentum, velocity)
    for i in range(dim):
        work[i] = chain.position[i] + velocity[i]
    log_prob = evaluate(chain, work, new)
    # log [p(y) q(x | y) / (p(x) q(y | x))] with log q(y | x) = -d C^-1 d / (2 e^2), d = y - x - e^2/2 C g(x).
    ratio = log_prob - chain.log_prob - 0.5 * (dot(old, velocity, dim) + dot(new, velocity, dim))
    set_velocity(chain, new, velocity)
    ratio -= 0.25 * half * dot(new, velocity, dim)
    set_velocity(chain, old, velocity)
    ratio += 0.25 * half * dot(old, velocity, dim)
    work[2 * dim] = ratio
    chain.stats[ACCEPT] = acceptance(ratio)
    return log_prob
