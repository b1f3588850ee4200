"""A chain: its density, where it is, how it is tuned; and the mechanics that all samplers share.

Positions, momenta and energies are float64 whatever the density computes in; it sees positions rounded to its own.
"""

from __future__ import annotations

import math

from genmlx.native.drivers.noise import quantile, unit, word
from genmlx.native.restricted import WORD, Address, Code, Single, Word, reassociated

ACCEPT, ENERGY, DIVERGING, LEAPFROGS, DEPTH, DEEPEST = range(6)
"""Where the statistics of the last transition are."""
STATS = ("accept", "energy", "diverging", "n_leapfrog", "tree_depth", "reached_max_depth")


class Desk:
    """A density, and what a thread that evaluates it writes to; a chain works at one desk at a time.

    ``u``, ``value``, ``slope`` and ``joint`` are what the density reads and writes; ``u32`` and so on are the same if
    ``single``.
    """

    density: Code
    inputs: Address
    outputs: Address
    constants: Address
    scratch: Address
    single: int
    u: list[float]
    value: list[float]
    slope: list[float]
    joint: list[float]
    u32: list[Single]
    value32: list[Single]
    slope32: list[Single]
    joint32: list[Single]
    work: list[float]


class Chain:
    desk: Desk
    dim: int
    slopes: int  # the dimensions that have a gradient: all of them, or none
    moved: int  # the dimensions that an elliptical slice goes through, which come first

    first_key: Word
    second_key: Word
    taken: Word  # random words so far

    position: list[float]
    gradient: list[float]
    log_prob: float

    step_size: float
    dense: int
    inverse_mass: list[float]
    momentum_factor: list[float]
    max_depth: int
    leapfrog_steps: int  # 0 where there is a trajectory length
    trajectory: float

    stats: list[float]
    divergences: int

    kept: int  # draws in the mean and the squares about it, of which a metric is made
    mean: list[float]
    squares: list[float]


def evaluate(chain: Chain, position: list[float], gradient: list[float]) -> float:
    """The log density at a position, -inf where it is NaN or infinite; its gradient is written."""
    desk = chain.desk
    if desk.single == 1:
        u32, slope32 = desk.u32, desk.slope32
        for i in range(chain.dim):
            u32[i] = position[i]
        desk.density(desk.inputs, desk.outputs, desk.constants, desk.scratch)
        for i in range(chain.slopes):
            gradient[i] = slope32[i]
        log_prob = desk.value32[0]
    else:
        copy(position, desk.u, chain.dim)
        desk.density(desk.inputs, desk.outputs, desk.constants, desk.scratch)
        copy(desk.slope, gradient, chain.slopes)
        log_prob = desk.value[0]
    return log_prob if math.isfinite(log_prob) else -math.inf


def begin(chain: Chain) -> None:
    """Find the log density and the gradient where the chain is."""
    chain.log_prob = evaluate(chain, chain.position, chain.gradient)


def uniform(chain: Chain) -> float:
    chain.taken = (chain.taken + 1) & WORD
    return unit(word(chain.first_key, chain.second_key, chain.taken))


def draw_momentum(chain: Chain, noise: list[float], momentum: list[float]) -> None:
    """p ~ N(0, M); the noise of which it is made is written too."""
    dim, factor = chain.dim, chain.momentum_factor
    for i in range(dim):
        noise[i] = quantile(uniform(chain))
    if chain.dense == 0:
        for i in range(dim):
            momentum[i] = noise[i] * factor[i]
        return
    for i in range(dim):
        momentum[i] = 0.0
    for i in range(dim):
        row = factor[i * dim :]
        for j in range(dim):
            momentum[j] += noise[i] * row[j]


def set_velocity(chain: Chain, momentum: list[float], velocity: list[float]) -> None:
    """dq/dt = M^-1 p."""
    inverse_mass = chain.inverse_mass
    if chain.dense == 0:
        for i in range(chain.dim):
            velocity[i] = momentum[i] * inverse_mass[i]
    else:
        for i in range(chain.dim):
            velocity[i] = dot(momentum, inverse_mass[i * chain.dim :], chain.dim)


def leapfrog(
    chain: Chain,
    position: list[float],
    gradient: list[float],
    momentum: list[float],
    velocity: list[float],
    time: float,
) -> float:
    """One step in place, to the velocity at its end; the log density there."""
    dim, half = chain.dim, 0.5 * time
    add(half, gradient, momentum, dim)
    set_velocity(chain, momentum, velocity)
    add(time, velocity, position, dim)
    log_prob = evaluate(chain, position, gradient)
    add(half, gradient, momentum, dim)
    set_velocity(chain, momentum, velocity)
    return log_prob


@reassociated
def dot(a: list[float], b: list[float], n: int) -> float:
    total = 0.0
    for i in range(n):
        total += a[i] * b[i]
    return total


def add(factor: float, a: list[float], b: list[float], n: int) -> None:
    """b += factor a."""
    for i in range(n):
        b[i] += factor * a[i]


def copy(a: list[float], b: list[float], n: int) -> None:
    for i in range(n):
        b[i] = a[i]


def acceptance(log_ratio: float) -> float:
    """min(1, exp(log_ratio)); 0 for NaN."""
    if log_ratio >= 0.0:
        return 1.0
    return math.exp(log_ratio) if log_ratio < 0.0 else 0.0
