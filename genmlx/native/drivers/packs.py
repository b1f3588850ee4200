"""Many transitions of packs of chains: ``running.py``, for chains in lanes.

Between two calls a chain is what its ``Chain`` says; its pack is filled from it, and it from its pack.
"""

from __future__ import annotations

from genmlx.native.drivers.chain import ACCEPT, DIVERGING, STATS
from genmlx.native.drivers.pack import LANES, Pack, evaluate
from genmlx.native.drivers.running import Dual, number, update
from genmlx.native.restricted import Code, Single, disjoint

_STATS = len(STATS)


def load(pack: Pack, learning: int) -> None:
    """Fill a pack; with what is learned of the draws only where that goes on."""
    dim = pack.chains[0].dim
    pairs = 0 if learning == 0 else dim if pack.chains[0].dense == 0 else dim * dim
    pack.kept = pack.chains[0].kept
    for w in range(LANES):
        chain = pack.chains[min(w, pack.n - 1)]
        pack.first_key[w], pack.second_key[w], pack.taken[w] = chain.first_key, chain.second_key, chain.taken
        pack.log_prob[w], pack.step_size[w], pack.divergences[w] = chain.log_prob, chain.step_size, chain.divergences
        into_lane(chain.stats, pack.stats[w:], _STATS)
        into_lane(chain.position, pack.position[w:], dim)
        into_lane(chain.gradient, pack.gradient[w:], dim)
        into_lane(chain.mean, pack.mean[w:], dim * learning)
        into_lane(chain.squares, pack.squares[w:], pairs)


def store(pack: Pack, learning: int) -> None:
    """What ``load`` has filled, back to the chains."""
    dim = pack.chains[0].dim
    pairs = 0 if learning == 0 else dim if pack.chains[0].dense == 0 else dim * dim
    for w in range(pack.n):
        chain = pack.chains[w]
        chain.kept, chain.taken, chain.divergences = pack.kept, pack.taken[w], pack.divergences[w]
        chain.log_prob, chain.step_size = pack.log_prob[w], pack.step_size[w]
        from_lane(pack.stats[w:], chain.stats, _STATS)
        from_lane(pack.position[w:], chain.position, dim)
        from_lane(pack.gradient[w:], chain.gradient, dim)
        from_lane(pack.mean[w:], chain.mean, dim * learning)
        from_lane(pack.squares[w:], chain.squares, pairs)


def into_lane(a: list[float], lane: list[float], n: int) -> None:
    for i in range(n):
        lane[i * LANES] = a[i]


def from_lane(lane: list[float], a: list[float], n: int) -> None:
    for i in range(n):
        a[i] = lane[i * LANES]


def sample(
    pack: Pack,
    transition: Code,
    transitions: int,
    thin: int,
    left: int,
    positions: list[Single],
    stats: list[Single],
    names: int,
) -> None:
    """``running.sample``; the lists are those of the first chain, and its room is followed by that of the next."""
    dim, at = pack.chains[0].dim, 0
    load(pack, 0)
    for _ in range(transitions):
        step(pack, transition)
        left -= 1
        if left == 0:
            left = thin
            write(pack.position, positions[at * dim :], dim, pack.draws * dim, pack.n)
            write(pack.stats, stats[at * names :], names, pack.draws * names, pack.n)
            at += 1
    store(pack, 0)


@disjoint
def write(a: list[float], out: list[Single], n: int, apart: int, chains: int) -> None:
    """``n`` numbers of each chain, whose places are so far apart."""
    for w in range(chains):
        for i in range(n):
            out[w * apart + i] = a[i * LANES + w]


def warm(packs: list[Pack], n: int, transition: Code, transitions: int, keep: int, dual: Dual) -> None:
    """``running.warm``."""
    for i in range(n):
        load(packs[i], keep)
    for _ in range(transitions):
        for i in range(n):
            transit(packs[i], transition, keep)
        share(packs, n, dual)
    for i in range(n):
        store(packs[i], keep)


def warm_alone(pack: Pack, transition: Code, transitions: int, keep: int, duals: list[Dual]) -> None:
    """``running.warm_alone``, with one ``Dual`` for each chain."""
    load(pack, keep)
    for _ in range(transitions):
        transit(pack, transition, keep)
        for w in range(pack.n):
            update(duals[w], number(pack.stats[ACCEPT * LANES + w]))
        for w in range(LANES):
            pack.step_size[w] = duals[min(w, pack.n - 1)].step_size
    store(pack, keep)


def advance(pack: Pack, transition: Code, keep: int) -> None:
    load(pack, keep)
    transit(pack, transition, keep)
    store(pack, keep)


def transit(pack: Pack, transition: Code, keep: int) -> None:
    """``running.advance``, of a pack that is filled."""
    step(pack, transition)
    if keep == 1:
        learn(pack)


def share(packs: list[Pack], n: int, dual: Dual) -> None:
    """``running.settle``."""
    total, chains = 0.0, 0
    for i in range(n):
        chains += packs[i].n
        for w in range(packs[i].n):
            total += number(packs[i].stats[ACCEPT * LANES + w])
    update(dual, total / chains)
    for i in range(n):
        for w in range(LANES):
            packs[i].step_size[w] = dual.step_size


def step(pack: Pack, transition: Code) -> None:
    transition(pack)
    for w in range(LANES):
        pack.divergences[w] += int(pack.stats[DIVERGING * LANES + w] > 0.0)


def learn(pack: Pack) -> None:
    """``running.learn``."""
    chain, apart = pack.chains[0], pack.desk.work
    dim = chain.dim
    pack.kept += 1
    follow(pack.position, pack.mean, apart, 1.0 / float(pack.kept), dim)
    if chain.dense == 0:
        products(apart, pack.position, pack.mean, pack.squares, dim)
        return
    for i in range(dim):
        pairs(apart[i * LANES :], pack.position, pack.mean, pack.squares[i * dim * LANES :], dim)


@disjoint
def follow(place: list[float], mean: list[float], apart: list[float], share: float, n: int) -> None:
    for i in range(n * LANES):
        apart[i] = place[i] - mean[i]
        mean[i] += apart[i] * share


@disjoint
def products(apart: list[float], place: list[float], mean: list[float], squares: list[float], n: int) -> None:
    for i in range(n * LANES):
        squares[i] += apart[i] * (place[i] - mean[i])


@disjoint
def pairs(apart: list[float], place: list[float], mean: list[float], squares: list[float], n: int) -> None:
    for j in range(n):
        at, about, row = place[j * LANES :], mean[j * LANES :], squares[j * LANES :]
        for w in range(LANES):
            row[w] += apart[w] * (at[w] - about[w])


def joints(pack: Pack, positions: list[Single], n: int, out: list[Single]) -> None:
    """``running.joints``, for as many positions at once as there are lanes."""
    dim, desk = pack.chains[0].dim, pack.desk
    work, done = desk.work, 0
    while done < n:
        for w in range(LANES):
            row = positions[min(done + w, n - 1) * dim :]
            for j in range(dim):
                work[j * LANES + w] = row[j]
        evaluate(pack, work, work[dim * LANES :], work[2 * dim * LANES :])
        for w in range(min(LANES, n - done)):
            out[done + w] = desk.joint32[w] if desk.single == 1 else desk.joint[w]
        done += LANES


def each(packs: list[Pack], n: int, what: Code) -> None:
    for i in range(n):
        load(packs[i], 0)
        what(packs[i])
        store(packs[i], 0)
