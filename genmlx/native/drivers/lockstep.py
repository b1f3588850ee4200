"""One transition of a pack of chains: of Hamiltonian Monte Carlo, of Langevin's algorithm and of the random walk.

Each chain does what ``hmc.py`` and ``walks.py`` have it do, with the same noise. One that has made all its steps, or
diverges, ends there; what its lane computes while others go on is not used. There is no NUTS: its trees have too little
in common.
"""

from __future__ import annotations

import math

from genmlx.inference.hmc import _MOST_STEPS, DIVERGENT, JITTER
from genmlx.native.drivers.chain import ACCEPT, DIVERGING, ENERGY, LEAPFROGS, acceptance
from genmlx.native.drivers.pack import (
    LANES,
    Pack,
    add,
    choose,
    clear,
    copy,
    dots,
    draw_momentum,
    evaluate,
    leapfrog,
    put_acceptance,
    set_velocity,
    uniforms,
)


def hmc(pack: Pack) -> None:
    size, work = pack.chains[0].dim * LANES, pack.desk.work
    position, gradient, momentum, velocity = work, work[size:], work[2 * size :], work[3 * size :]
    lanes = work[5 * size :]
    time, wanted, first, log_prob = lanes, lanes[LANES:], lanes[2 * LANES :], lanes[3 * LANES :]
    lost, chance, dim = lanes[4 * LANES :], lanes[5 * LANES :], pack.chains[0].dim
    set_wanted(pack, wanted)
    set_time(pack, time)
    depart(pack, first)
    uniforms(pack, chance, 1)
    for w in range(LANES):
        pack.moving[w] = 1
    steps, moving = 0, LANES
    while moving > 0:
        leapfrog(pack, position, gradient, momentum, velocity, time, log_prob)
        dots(momentum, velocity, lost, dim)
        steps += 1
        ending = ends(first, log_prob, wanted, float(steps), lost, pack.moving, pack.ending)
        if ending > 0:
            arrive(pack, float(steps), first, log_prob, lost, chance)
            choose(pack.going, position, pack.position, dim)
            choose(pack.going, gradient, pack.gradient, dim)
            choose(pack.going, log_prob, pack.log_prob, 1)
            moving -= ending


def set_wanted(pack: Pack, wanted: list[float]) -> None:
    """How many steps each chain makes."""
    chain = pack.chains[0]
    for w in range(LANES):
        wanted[w] = float(chain.leapfrog_steps)
    if chain.leapfrog_steps == 0:
        for w in range(LANES):
            steps = max(1.0, min(chain.trajectory / pack.step_size[w], float(_MOST_STEPS)))
            wanted[w] = float(math.ceil(steps))


def set_time(pack: Pack, time: list[float]) -> None:
    """The step size of each chain, jittered."""
    uniforms(pack, time, 1)
    for w in range(LANES):
        time[w] = pack.step_size[w] * (1.0 + JITTER * (2.0 * time[w] - 1.0))


def depart(pack: Pack, energy: list[float]) -> None:
    """To the work go where the chains are, with new momenta and velocities; and the energy of each."""
    dim, work = pack.chains[0].dim, pack.desk.work
    size = dim * LANES
    momentum, velocity = work[2 * size :], work[3 * size :]
    draw_momentum(pack, velocity, momentum)
    set_velocity(pack, momentum, velocity)
    copy(pack.position, work, dim)
    copy(pack.gradient, work[size:], dim)
    dots(momentum, velocity, energy, dim)
    for w in range(LANES):
        energy[w] = 0.5 * energy[w] - pack.log_prob[w]


def ends(
    first: list[float],
    log_prob: list[float],
    wanted: list[float],
    steps: float,
    lost: list[float],
    moving: list[int],
    ending: list[int],
) -> int:
    """How many chains end here. ``lost`` is p.v, and becomes the energy that is lost."""
    count = 0
    for w in range(LANES):
        own = first[w] - (0.5 * lost[w] - log_prob[w])
        lost[w] = own
        goes_on = int(own > -DIVERGENT) * int(steps < wanted[w])
        ending[w] = moving[w] * (1 - goes_on)
        count += ending[w]
    return count


def arrive(
    pack: Pack, steps: float, first: list[float], log_prob: list[float], lost: list[float], chance: list[float]
) -> None:
    """The statistics of the chains that end, and which of them go to where they are."""
    stats = pack.stats
    for w in range(LANES):
        pack.going[w] = 0
        if pack.ending[w] == 1:
            pack.moving[w] = 0
            diverging = not lost[w] > -DIVERGENT
            own = -math.inf if diverging else lost[w]
            stats[ACCEPT * LANES + w] = acceptance(own)
            stats[ENERGY * LANES + w] = first[w]
            stats[DIVERGING * LANES + w] = float(int(diverging))
            stats[LEAPFROGS * LANES + w] = steps
            if math.log(chance[w]) < own:
                pack.going[w] = 1
                stats[ENERGY * LANES + w] = first[w] - lost[w]


def first_jittered_leap(pack: Pack) -> None:
    """The acceptance of one leapfrog step with a new momentum, for finding a step size; the chains stay."""
    dim, work = pack.chains[0].dim, pack.desk.work
    size = dim * LANES
    lanes = work[5 * size :]
    time, energy, log_prob, lost = lanes, lanes[LANES:], lanes[2 * LANES :], lanes[3 * LANES :]
    set_time(pack, time)
    depart(pack, energy)
    leapfrog(pack, work, work[size:], work[2 * size :], work[3 * size :], time, log_prob)
    dots(work[2 * size :], work[3 * size :], lost, dim)
    for w in range(LANES):
        lost[w] = energy[w] - (0.5 * lost[w] - log_prob[w])
    put_acceptance(pack, lost)


def mala(pack: Pack) -> None:
    langevin(pack)
    go(pack)


def random_walk(pack: Pack) -> None:
    shifted(pack)
    go(pack)


def first_langevin(pack: Pack) -> None:
    langevin(pack)


def first_shift(pack: Pack) -> None:
    shifted(pack)


def go(pack: Pack) -> None:
    """To the proposals, or stay; the work has them, their gradients, log densities, and the logs of the ratios."""
    dim, work = pack.chains[0].dim, pack.desk.work
    size = dim * LANES
    lanes = work[5 * size :]
    log_prob, ratio, chance = lanes, lanes[LANES:], lanes[2 * LANES :]
    uniforms(pack, chance, 1)
    for w in range(LANES):
        pack.going[w] = int(math.log(chance[w]) < ratio[w])
    choose(pack.going, work, pack.position, dim)
    choose(pack.going, work[size:], pack.gradient, dim)
    choose(pack.going, log_prob, pack.log_prob, 1)
    for w in range(LANES):
        pack.stats[ENERGY * LANES + w] = -pack.log_prob[w]


def shifted(pack: Pack) -> None:
    """A step N(0, e^2 C)."""
    dim, work = pack.chains[0].dim, pack.desk.work
    size = dim * LANES
    momentum, velocity, lanes = work[3 * size :], work[4 * size :], work[5 * size :]
    log_prob, ratio = lanes, lanes[LANES:]
    draw_momentum(pack, velocity, momentum)
    set_velocity(pack, momentum, velocity)
    copy(pack.position, work, dim)
    add(1.0, pack.step_size, velocity, work, dim)
    evaluate(pack, work, work[size:], log_prob)
    for w in range(LANES):
        ratio[w] = log_prob[w] - pack.log_prob[w]
    put_acceptance(pack, ratio)


def langevin(pack: Pack) -> None:
    """A step N(e^2/2 C g, e^2 C)."""
    dim, work = pack.chains[0].dim, pack.desk.work
    size = dim * LANES
    new, momentum, velocity, lanes = work[size:], work[3 * size :], work[4 * size :], work[5 * size :]
    log_prob, ratio, dot = lanes, lanes[LANES:], lanes[2 * LANES :]
    half, one = lanes[3 * LANES :], lanes[4 * LANES :]
    for w in range(LANES):
        half[w], one[w] = 0.5 * pack.step_size[w] * pack.step_size[w], 1.0
    draw_momentum(pack, velocity, momentum)
    copy(momentum, velocity, dim)
    clear(momentum, dim)
    add(1.0, half, pack.gradient, momentum, dim)
    add(1.0, pack.step_size, velocity, momentum, dim)
    set_velocity(pack, momentum, velocity)
    copy(pack.position, work, dim)
    add(1.0, one, velocity, work, dim)
    evaluate(pack, work, new, log_prob)
    # see walks.langevin
    dots(pack.gradient, velocity, ratio, dim)
    dots(new, velocity, dot, dim)
    for w in range(LANES):
        ratio[w] = log_prob[w] - pack.log_prob[w] - 0.5 * (ratio[w] + dot[w])
    set_velocity(pack, new, velocity)
    dots(new, velocity, dot, dim)
    for w in range(LANES):
        ratio[w] -= 0.25 * half[w] * dot[w]
    set_velocity(pack, pack.gradient, velocity)
    dots(pack.gradient, velocity, dot, dim)
    for w in range(LANES):
        ratio[w] += 0.25 * half[w] * dot[w]
    put_acceptance(pack, ratio)
