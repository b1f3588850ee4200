"""One transition of the no-U-turn sampler, as ``genmlx/inference/nuts.py`` has it: here a chain has its tree to itself.

The two ends of the trajectory move in place. A subtree that does not join it leaves nothing but its end, for then the
trajectory is over.
"""

from __future__ import annotations

import math

from genmlx.inference.nuts import _DIVERGENT
from genmlx.native.drivers.chain import (
    ACCEPT,
    DEEPEST,
    DEPTH,
    DIVERGING,
    ENERGY,
    LEAPFROGS,
    Chain,
    acceptance,
    add,
    copy,
    dot,
    draw_momentum,
    leapfrog,
    set_velocity,
    uniform,
)
from genmlx.native.restricted import reassociated


def nuts(chain: Chain) -> None:
    dim, work = chain.dim, chain.desk.work
    # position, gradient and momentum of each end; those of a point of the subtree, without the momentum
    back, ahead, below = work, work[3 * dim :], work[6 * dim :]
    momenta, momenta_below, velocity = work[8 * dim :], work[9 * dim :], work[10 * dim :]
    middle, checkpoints = work[11 * dim :], work[12 * dim :]

    draw_momentum(chain, velocity, back[2 * dim :])
    set_velocity(chain, back[2 * dim :], velocity)
    copy(chain.position, back, dim)
    copy(chain.gradient, back[dim:], dim)
    copy(back, ahead, 3 * dim)
    copy(back[2 * dim :], momenta, dim)
    first_energy = 0.5 * dot(back[2 * dim :], velocity, dim) - chain.log_prob
    energy, log_weight, accept = first_energy, 0.0, 0.0
    log_prob_below, energy_below = 0.0, 0.0
    steps, size = 0, 1
    diverging, turning = False, False

    for _ in range(chain.max_depth):
        forward = uniform(chain) >= 0.5
        end = ahead if forward else back
        time = chain.step_size if forward else -chain.step_size
        momentum = end[2 * dim :]
        log_weight_below = -math.inf
        for i in range(dim):
            momenta_below[i] = 0.0
        for leaf in range(size):
            log_prob = leapfrog(chain, end, end[dim:], momentum, velocity, time)
            leaf_energy = 0.5 * dot(momentum, velocity, dim) - log_prob
            lost = first_energy - leaf_energy
            steps += 1
            diverging = not lost > -_DIVERGENT
            if diverging:
                break
            accept += acceptance(lost)

            # The leaf joins the subtree, which keeps one of its points in proportion to their weights exp(-energy).
            log_weight_below = log_sum(log_weight_below, lost)
            if math.log(uniform(chain)) < lost - log_weight_below:
                copy(end, below, 2 * dim)
                log_prob_below, energy_below = log_prob, leaf_energy
            add(1.0, momentum, momenta_below, dim)
            for i in range(dim):
                middle[i] = momenta_below[i] - 0.5 * momentum[i]
            turning = turned(leaf, middle, velocity, checkpoints, dim)
            if turning:
                break
        if diverging or turning:
            break

        # A full subtree joins the tree, whose point it replaces with probability min(1, weight ratio).
        if math.log(uniform(chain)) < log_weight_below - log_weight:
            copy(below, chain.position, dim)
            copy(below[dim:], chain.gradient, dim)
            chain.log_prob, energy = log_prob_below, energy_below
        log_weight = log_sum(log_weight, log_weight_below)
        add(1.0, momenta_below, momenta, dim)
        size *= 2
        other = back if forward else ahead
        for i in range(dim):
            middle[i] = momenta[i] - 0.5 * (momentum[i] + other[2 * dim + i])
        turning = dot(middle, velocity, dim) <= 0.0
        set_velocity(chain, other[2 * dim :], velocity)
        turning = turning or dot(middle, velocity, dim) <= 0.0
        if turning:
            break

    depth = 0
    while 1 << depth < steps + 1:
        depth += 1
    stats = chain.stats
    stats[ACCEPT], stats[ENERGY], stats[DIVERGING] = accept / steps, energy, float(int(diverging))
    stats[LEAPFROGS], stats[DEPTH] = float(steps), float(depth)
    stats[DEEPEST] = float(int(size == 1 << chain.max_depth and not turning))


def turned(leaf: int, middle: list[float], velocity: list[float], checkpoints: list[float], dim: int) -> bool:
    """Whether a tree that ends with this leaf of a subtree has turned; a leaf that begins one is kept.

    The sum of the momenta of a tree, ends counted half, is the difference of the middles of its last and first leaf.
    Leaf 8 + 2 = 0b1010 is the first of its pair, and its one-bits above the last tell where it is kept; leaf 0b1011
    ends the trees that begin at 0b1010 and at 0b1000, one for each trailing one-bit.
    """
    place, bits = 0, leaf >> 1
    while bits > 0:
        place += bits & 1
        bits = bits >> 1
    if leaf & 1 == 0:
        copy(velocity, checkpoints[2 * place * dim :], dim)
        copy(middle, checkpoints[(2 * place + 1) * dim :], dim)
        return False
    while leaf & 1 == 1:
        began = checkpoints[2 * place * dim :]
        if along(middle, began[dim:], began, dim) <= 0.0 or along(middle, began[dim:], velocity, dim) <= 0.0:
            return True
        place -= 1
        leaf = leaf >> 1
    return False


@reassociated
def along(to: list[float], start: list[float], velocity: list[float], n: int) -> float:
    total = 0.0
    for i in range(n):
        total += (to[i] - start[i]) * velocity[i]
    return total


def log_sum(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    most = max(a, b)
    if most == -math.inf:
        return most
    return most + math.log(1.0 + math.exp(min(a, b) - most))


def first_leap(chain: Chain) -> None:
    """The acceptance of one leapfrog step with a new momentum, for finding a step size; the chain stays."""
    one_leap(chain, chain.step_size)


def one_leap(chain: Chain, time: float) -> None:
    dim, work = chain.dim, chain.desk.work
    position, gradient, momentum, velocity = work, work[dim:], work[2 * dim :], work[3 * dim :]
    draw_momentum(chain, velocity, momentum)
    set_velocity(chain, momentum, velocity)
    energy = 0.5 * dot(momentum, velocity, dim) - chain.log_prob
    copy(chain.position, position, dim)
    copy(chain.gradient, gradient, dim)
    log_prob = leapfrog(chain, position, gradient, momentum, velocity, time)
    chain.stats[ACCEPT] = acceptance(energy - (0.5 * dot(momentum, velocity, dim) - log_prob))
