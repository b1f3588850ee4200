"""One transition of Hamiltonian Monte Carlo, as ``genmlx/inference/hmc.py`` has it."""

from __future__ import annotations

import math

from genmlx.inference.hmc import _MOST_STEPS, DIVERGENT, JITTER
from genmlx.native.drivers.chain import (
    ACCEPT,
    DIVERGING,
    ENERGY,
    LEAPFROGS,
    Chain,
    acceptance,
    copy,
    dot,
    draw_momentum,
    leapfrog,
    set_velocity,
    uniform,
)
from genmlx.native.drivers.nuts import one_leap


def hmc(chain: Chain) -> None:
    dim, work = chain.dim, chain.desk.work
    position, gradient, momentum, velocity = work, work[dim:], work[2 * dim :], work[3 * dim :]
    wanted = chain.leapfrog_steps
    if wanted == 0:
        # A step size may be so small that the length is more than an int holds.
        wanted = math.ceil(max(1.0, min(chain.trajectory / chain.step_size, float(_MOST_STEPS))))
    time = jittered(chain)
    draw_momentum(chain, velocity, momentum)
    set_velocity(chain, momentum, velocity)
    copy(chain.position, position, dim)
    copy(chain.gradient, gradient, dim)
    first_energy = 0.5 * dot(momentum, velocity, dim) - chain.log_prob
    energy, log_prob, lost = first_energy, chain.log_prob, 0.0
    steps, diverging = 0, False
    while steps < wanted and not diverging:
        log_prob = leapfrog(chain, position, gradient, momentum, velocity, time)
        energy = 0.5 * dot(momentum, velocity, dim) - log_prob
        lost = first_energy - energy
        diverging = not lost > -DIVERGENT
        steps += 1
    if diverging:
        lost = -math.inf
    stats = chain.stats
    stats[ACCEPT], stats[ENERGY], stats[DIVERGING] = acceptance(lost), first_energy, float(int(diverging))
    stats[LEAPFROGS] = float(steps)
    if math.log(uniform(chain)) < lost:
        copy(position, chain.position, dim)
        copy(gradient, chain.gradient, dim)
        chain.log_prob, stats[ENERGY] = log_prob, energy


def jittered(chain: Chain) -> float:
    return chain.step_size * (1.0 + JITTER * (2.0 * uniform(chain) - 1.0))


def first_jittered_leap(chain: Chain) -> None:
    one_leap(chain, jittered(chain))
