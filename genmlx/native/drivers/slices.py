"""One transition of elliptical slice sampling, as ``genmlx/inference/elliptical_slice.py`` has it.

Its log density is that of all but the Gaussian choices, whose standard normal noise comes first in the position. What
follows the ``moved`` of them stays.
"""

from __future__ import annotations

import math

from genmlx.native.drivers.chain import ACCEPT, Chain, copy, evaluate, uniform
from genmlx.native.drivers.noise import quantile
from genmlx.native.restricted import Single

SHRINKS, ACCEPTS, SHRUNK = range(1, 4)
"""Where the angles rejected by the last transition are, and the sums of both statistics since the last draw."""


def elliptical_slice(chain: Chain, angles: int) -> None:
    """To the first point inside among so many angles, or nowhere."""
    dim, work, here, stats = chain.dim, chain.desk.work, chain.position, chain.stats
    there, place = work, work[dim:]
    copy(here, place, dim)
    for i in range(chain.moved):
        there[i] = quantile(uniform(chain))
    level = chain.log_prob + math.log(uniform(chain))
    angle = 2.0 * math.pi * uniform(chain)
    low, high = angle - 2.0 * math.pi, angle
    stats[ACCEPT], rejected = 0.0, 0
    while rejected < angles:
        along, across = math.cos(angle), math.sin(angle)
        for i in range(chain.moved):
            place[i] = along * here[i] + across * there[i]
        log_prob = evaluate(chain, place, chain.gradient)
        if log_prob > level:
            copy(place, here, chain.moved)
            chain.log_prob = log_prob
            stats[ACCEPT] = 1.0
            break
        rejected += 1
        if angle < 0.0:
            low = angle
        else:
            high = angle
        angle = low + (high - low) * uniform(chain)
    stats[SHRINKS] = float(rejected)


def sample_slices(
    chain: Chain,
    angles: int,
    transitions: int,
    thin: int,
    left: int,
    positions: list[Single],
    stats: list[Single],
) -> None:
    """Transitions of a chain, of which one in ``thin`` is written, the first after ``left``; with the mean of each
    statistic over those that a draw took."""
    dim, at, own = chain.dim, 0, chain.stats
    for _ in range(transitions):
        elliptical_slice(chain, angles)
        own[ACCEPTS] += own[ACCEPT]
        own[SHRUNK] += own[SHRINKS]
        left -= 1
        if left == 0:
            left = thin
            for i in range(dim):
                positions[at * dim + i] = chain.position[i]
            stats[2 * at], stats[2 * at + 1] = own[ACCEPTS] / thin, own[SHRUNK] / thin
            own[ACCEPTS], own[SHRUNK] = 0.0, 0.0
            at += 1
