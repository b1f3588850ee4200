"""Many transitions: in warm-up, where chains may share a step size, and of a chain by itself afterwards."""

from __future__ import annotations

import math

from genmlx.inference.warmup import _GAMMA, _KAPPA, _LARGEST, _SMALLEST, _T0
from genmlx.native.drivers.chain import ACCEPT, DIVERGING, Chain, evaluate
from genmlx.native.restricted import Code, Single


class Dual:
    """Dual averaging, of a chain or of all: see ``genmlx/inference/warmup.py``."""

    target: float
    step_size: float
    mu: float
    error: float
    log_averaged: float
    count: int


def sample(
    chain: Chain,
    transition: Code,
    transitions: int,
    thin: int,
    left: int,
    positions: list[Single],
    stats: list[Single],
    names: int,
) -> None:
    """Transitions of a chain, of which one in ``thin`` is written, the first after ``left``."""
    dim, at, place, own = chain.dim, 0, chain.position, chain.stats
    for _ in range(transitions):
        step(chain, transition)
        left -= 1
        if left == 0:
            left = thin
            for i in range(dim):
                positions[at * dim + i] = place[i]
            for i in range(names):
                stats[at * names + i] = own[i]
            at += 1


def warm(chains: list[Chain], n: int, transition: Code, transitions: int, keep: int, dual: Dual) -> None:
    """Transitions of all chains, which share a step size."""
    for _ in range(transitions):
        for i in range(n):
            advance(chains[i], transition, keep)
        settle(chains, n, dual)


def warm_alone(chain: Chain, transition: Code, transitions: int, keep: int, dual: Dual) -> None:
    """Transitions of a chain that has a step size of its own."""
    for _ in range(transitions):
        advance(chain, transition, keep)
        update(dual, number(chain.stats[ACCEPT]))
        chain.step_size = dual.step_size


def advance(chain: Chain, transition: Code, keep: int) -> None:
    """One transition in warm-up; where the chain is then counts for the metric, if it is to be kept."""
    step(chain, transition)
    if keep == 1:
        learn(chain)


def settle(chains: list[Chain], n: int, dual: Dual) -> None:
    """Give the chains the next step size, by their mean acceptance."""
    total = 0.0
    for i in range(n):
        total += number(chains[i].stats[ACCEPT])
    update(dual, total / n)
    for i in range(n):
        chains[i].step_size = dual.step_size


def step(chain: Chain, transition: Code) -> None:
    transition(chain)
    if chain.stats[DIVERGING] > 0.0:
        chain.divergences += 1


def number(x: float) -> float:
    return x if math.isfinite(x) else 0.0


def update(dual: Dual, accept: float) -> None:
    """``DualAveraging.update``."""
    accept = min(max(accept, 0.0), 1.0)
    dual.count += 1
    weight = 1.0 / (dual.count + _T0)
    dual.error = (1.0 - weight) * dual.error + weight * (dual.target - accept)
    log_step = dual.mu - dual.error * math.sqrt(float(dual.count)) / _GAMMA
    decay = math.exp(-_KAPPA * math.log(float(dual.count)))
    dual.log_averaged = decay * log_step + (1.0 - decay) * dual.log_averaged
    dual.step_size = math.exp(min(max(log_step, math.log(_SMALLEST)), math.log(_LARGEST)))


def learn(chain: Chain) -> None:
    """Where the chain is, into the mean and the squares about it (Welford 1962)."""
    dim, place, mean, squares = chain.dim, chain.position, chain.mean, chain.squares
    chain.kept += 1
    n, apart = float(chain.kept), chain.desk.work
    for i in range(dim):
        apart[i] = place[i] - mean[i]
        mean[i] += apart[i] / n
    if chain.dense == 0:
        for i in range(dim):
            squares[i] += apart[i] * (place[i] - mean[i])
        return
    for i in range(dim):
        row = squares[i * dim :]
        for j in range(dim):
            row[j] += apart[i] * (place[j] - mean[j])


def joints(chain: Chain, positions: list[Single], n: int, out: list[Single]) -> None:
    """The log density without a Jacobian at positions that were written."""
    dim, work, desk = chain.dim, chain.desk.work, chain.desk
    for i in range(n):
        for j in range(dim):
            work[j] = positions[i * dim + j]
        evaluate(chain, work, work[dim:])
        out[i] = desk.joint32[0] if desk.single == 1 else desk.joint[0]


def each(chains: list[Chain], n: int, what: Code) -> None:
    for i in range(n):
        what(chains[i])
