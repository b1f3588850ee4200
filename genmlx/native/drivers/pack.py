"""A pack: chains that take their steps together, each in a lane; and the mechanics of ``chain.py`` for them.

What a chain has one of is a list of ``LANES`` here, and what it has ``dim`` of is ``dim`` such lists in a row.
"""

from __future__ import annotations

import math

from genmlx.native.drivers.chain import ACCEPT, Chain, Desk, acceptance
from genmlx.native.drivers.noise import (
    CENTRAL,
    central_above,
    central_below,
    quantile,
    tail_above,
    tail_below,
    unit,
    word,
)
from genmlx.native.restricted import WORD, Single, Word, disjoint

LANES = 16
"""A vector of float32 where machines have the widest ones, several vectors elsewhere."""
_FAR = 1e-10
"""Further out than that normals are rare, and ``noise.quantile`` has one more formula from e^-25 on."""


class Pack:
    desk: Desk
    chains: list[Chain]
    n: int  # of them; the last is in the lanes that are left over too
    draws: int  # that a chain has room for where they are written

    first_key: list[Word]
    second_key: list[Word]
    taken: list[Word]

    position: list[float]
    gradient: list[float]
    log_prob: list[float]
    step_size: list[float]

    stats: list[float]
    divergences: list[int]
    kept: int
    mean: list[float]
    squares: list[float]

    moving: list[int]  # 1 or 0: what chains are doing in a transition
    ending: list[int]
    going: list[int]


def evaluate(pack: Pack, position: list[float], gradient: list[float], log_prob: list[float]) -> None:
    """``chain.evaluate``."""
    desk, dim, slopes = pack.desk, pack.chains[0].dim, pack.chains[0].slopes
    if desk.single == 1:
        narrowed(position, desk.u32, dim)
        desk.density(desk.inputs, desk.outputs, desk.constants, desk.scratch)
        widened(desk.slope32, gradient, slopes)
        widened(desk.value32, log_prob, 1)
    else:
        copy(position, desk.u, dim)
        desk.density(desk.inputs, desk.outputs, desk.constants, desk.scratch)
        copy(desk.slope, gradient, slopes)
        copy(desk.value, log_prob, 1)
    for w in range(LANES):
        log_prob[w] = log_prob[w] if math.isfinite(log_prob[w]) else -math.inf


def begin(pack: Pack) -> None:
    evaluate(pack, pack.position, pack.gradient, pack.log_prob)


def uniforms(pack: Pack, out: list[float], n: int) -> None:
    """The next ``n`` of each chain."""
    numbers(pack.first_key, pack.second_key, pack.taken, out, n)


@disjoint
def numbers(first: list[Word], second: list[Word], taken: list[Word], out: list[float], n: int) -> None:
    for i in range(n):
        row = out[i * LANES :]
        for w in range(LANES):
            taken[w] = (taken[w] + 1) & WORD
            row[w] = unit(word(first[w], second[w], taken[w]))


def quantiles(p: list[float], out: list[float], n: int) -> None:
    """``noise.quantile``: by both of its formulas, of which each number has one, but where it is far out."""
    if near_quantiles(p, out, n) > 0:
        for i in range(n):
            if not (_FAR < p[i] and p[i] < 1.0 - _FAR):
                out[i] = quantile(p[i])


@disjoint
def near_quantiles(p: list[float], out: list[float], n: int) -> int:
    """How many numbers have another."""
    others = 0
    for i in range(n):
        q = p[i] - 0.5
        tail = max(min(p[i], 1.0 - p[i]), _FAR)
        others += int(tail <= _FAR)
        r, far = 0.180625 - q * q, math.sqrt(-math.log(tail)) - 1.6
        above, below = tail_above(far), tail_below(far)
        sign = 1.0 if q >= 0.0 else -1.0
        above = q * central_above(r) if abs(q) <= CENTRAL else sign * above
        out[i] = above / (central_below(r) if abs(q) <= CENTRAL else below)
    return others


def draw_momentum(pack: Pack, noise: list[float], momentum: list[float]) -> None:
    """``chain.draw_momentum``."""
    chain = pack.chains[0]
    dim = chain.dim
    uniforms(pack, momentum, dim)
    quantiles(momentum, noise, dim * LANES)
    if chain.dense == 0:
        scale(chain.momentum_factor, noise, momentum, dim)
        return
    clear(momentum, dim)
    for i in range(dim):
        spread(chain.momentum_factor[i * dim :], noise[i * LANES :], momentum, dim)


def set_velocity(pack: Pack, momentum: list[float], velocity: list[float]) -> None:
    """``chain.set_velocity``."""
    chain = pack.chains[0]
    dim = chain.dim
    if chain.dense == 0:
        scale(chain.inverse_mass, momentum, velocity, dim)
        return
    clear(velocity, dim)
    for i in range(dim):
        gather(chain.inverse_mass[i * dim :], momentum, velocity[i * LANES :], dim)


def leapfrog(
    pack: Pack,
    position: list[float],
    gradient: list[float],
    momentum: list[float],
    velocity: list[float],
    time: list[float],
    log_prob: list[float],
) -> None:
    """``chain.leapfrog``, of as much time as each chain has."""
    dim = pack.chains[0].dim
    add(0.5, time, gradient, momentum, dim)
    set_velocity(pack, momentum, velocity)
    add(1.0, time, velocity, position, dim)
    evaluate(pack, position, gradient, log_prob)
    add(0.5, time, gradient, momentum, dim)
    set_velocity(pack, momentum, velocity)


@disjoint
def dots(a: list[float], b: list[float], out: list[float], n: int) -> None:
    """The inner product of each chain."""
    for w in range(LANES):
        out[w] = 0.0
    for i in range(n):
        left, right = a[i * LANES :], b[i * LANES :]
        for w in range(LANES):
            out[w] += left[w] * right[w]


@disjoint
def add(factor: float, time: list[float], a: list[float], b: list[float], n: int) -> None:
    """b += factor time a."""
    for i in range(n):
        from_, to = a[i * LANES :], b[i * LANES :]
        for w in range(LANES):
            to[w] += factor * time[w] * from_[w]


@disjoint
def scale(factors: list[float], a: list[float], b: list[float], n: int) -> None:
    """b = a, each dimension times a factor."""
    for i in range(n):
        factor, from_, to = factors[i], a[i * LANES :], b[i * LANES :]
        for w in range(LANES):
            to[w] = from_[w] * factor


@disjoint
def spread(factors: list[float], a: list[float], b: list[float], n: int) -> None:
    """To each dimension of b, add one dimension times a factor."""
    for i in range(n):
        factor, to = factors[i], b[i * LANES :]
        for w in range(LANES):
            to[w] += a[w] * factor


@disjoint
def gather(factors: list[float], a: list[float], b: list[float], n: int) -> None:
    """To one dimension, add each dimension of a times a factor."""
    for i in range(n):
        factor, from_ = factors[i], a[i * LANES :]
        for w in range(LANES):
            b[w] += from_[w] * factor


@disjoint
def choose(which: list[int], a: list[float], b: list[float], n: int) -> None:
    """b = a for the chains that ``which`` is 1 for."""
    for i in range(n):
        from_, to = a[i * LANES :], b[i * LANES :]
        for w in range(LANES):
            there, here = from_[w], to[w]
            to[w] = there if which[w] == 1 else here


def clear(a: list[float], n: int) -> None:
    for i in range(n * LANES):
        a[i] = 0.0


@disjoint
def copy(a: list[float], b: list[float], n: int) -> None:
    for i in range(n * LANES):
        b[i] = a[i]


@disjoint
def narrowed(a: list[float], b: list[Single], n: int) -> None:
    for i in range(n * LANES):
        b[i] = a[i]


@disjoint
def widened(a: list[Single], b: list[float], n: int) -> None:
    for i in range(n * LANES):
        b[i] = a[i]


def put_acceptance(pack: Pack, log_ratio: list[float]) -> None:
    for w in range(LANES):
        pack.stats[ACCEPT * LANES + w] = acceptance(log_ratio[w])
