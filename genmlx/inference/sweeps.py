"""Sweeps over discrete choices: each is drawn from its distribution given all others, found by enumeration.

Geman and Geman (1984). The elements of an array are drawn one after the other; or all at once, where they do not depend
on each other given all else, as the labels of a mixture. That this is so is found by trying, so a joint draw is a
proposal, which Metropolis-Hastings accepts: surely where it is so, and rightly where it was not seen that it is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import random
from genmlx.backend.sums import summed
from genmlx.choicemap import ChoiceMap, from_items
from genmlx.dist.iid import iid
from genmlx.dist.support import Integers, Support, Vector
from genmlx.errors import GenError, MissingChoice, UsageError
from genmlx.free import Pointwise
from genmlx.inference.chains import accept
from genmlx.inference.conditional import put, same_choices
from genmlx.inference.kernels import Kernel, Staged, Step, visited
from genmlx.inference.sites import site_at
from genmlx.masked import Masked
from genmlx.selection import ALL
from genmlx.trace import Trace
from genmlx.vectorized import Lanes, run

_MOST_VALUES, _TRIES = 4096, 8
_UNROLLED = 8  # elements of an array that one recorded graph draws; a larger array replays the graph of one element
_OFF, _OFF_RELATIVE = 0.05, 1e-4  # of a log density ratio in float32


class Site(NamedTuple):
    """What a sweep draws: an array of ``shape``, whose elements take ``values``, each whole number of a range.

    One address holds all of it, or each of several holds one number. ``together`` says that all are drawn at once.
    """

    addresses: tuple
    shape: tuple
    values: mx.array
    together: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def read(self, trace: Trace) -> mx.array:
        found = [mx.array(trace[address]) for address in self.addresses]
        return found[0] if len(found) == 1 else mx.stack(found)

    def choices(self, value: mx.array) -> ChoiceMap:
        if len(self.addresses) == 1:
            return from_items([(self.addresses[0], value)])
        return from_items(zip(self.addresses, [value[i] for i in range(self.size)], strict=True))

    def put(self, trace: Trace, value: mx.array) -> tuple[Trace, mx.array]:
        """The trace with another value here, and the weight of the update."""
        return put(trace, self.choices(value))


def sweep(sites: Sequence[Site], backwards: bool = False) -> Step:
    """One sweep: every element of every site in turn. ``changed`` is the share of them that moved."""
    total = sum(site.size for site in sites)

    def step(trace: Trace, key: Any) -> Any:
        trace, changed = _swept(trace, sites[::-1] if backwards else sites, key, backwards)
        return trace, {"changed": changed / total}

    return step


def _swept(trace: Trace, sites: Sequence[Site], key: Any, backwards: bool = False) -> tuple[Trace, mx.array]:
    keys, changed = random.Keys(key), mx.array(0)
    for site in sites:
        old = site.read(trace)
        if site.together:
            trace = _all_drawn(trace, site, keys.next())
        else:
            new = old
            for i in reversed(range(site.size)) if backwards else range(site.size):
                new = _one_drawn(trace, site, new, i, keys.next())
            trace, _ = site.put(trace, new)
        changed = changed + _differing(old, site.read(trace))
    return trace, changed


def sweep_kernel(sites: Sequence[Site]) -> Kernel:
    """The sweep of a run, in which a large array replays what was recorded for one element of it."""
    looped = [site for site in sites if not site.together and site.size > _UNROLLED]
    if not looped:
        return Kernel(sweep(sites))
    rest, total = [site for site in sites if site not in looped], sum(site.size for site in sites)

    def init(trace: Trace) -> tuple:
        return trace, tuple(site.read(trace) for site in looped), mx.array(0), mx.array(0)

    def drawing(place: int, site: Site) -> Step:
        def draw(state: tuple, key: Any) -> Any:
            trace, arrays, i, changed = state
            new = _one_drawn(trace, site, arrays[place], i, key)
            return (trace, (*arrays[:place], new, *arrays[place + 1 :]), i + 1, changed), {}

        return draw

    def putting(place: int, site: Site) -> Step:
        def settle(state: tuple, key: Any) -> Any:
            trace, arrays, i, changed = state
            changed = changed + _differing(site.read(trace), arrays[place])
            return (site.put(trace, arrays[place])[0], arrays, mx.zeros_like(i), changed), {}

        return settle

    def finish(state: tuple, key: Any) -> Any:
        trace, changed = _swept(state[0], rest, key)
        return (trace, *state[1:3], mx.zeros_like(changed)), {"changed": (state[3] + changed) / total}

    stages: list[tuple[Step, int]] = []
    for place, site in enumerate(looped):
        stages += [(drawing(place, site), site.size), (putting(place, site), 1)]
    return Staged([*stages, (finish, 1)], init, lambda state: visited(state[0]))


def _differing(a: mx.array, b: mx.array) -> mx.array:
    return mx.sum(mx.logical_not(a == b))


def _one_drawn(trace: Trace, site: Site, here: mx.array, i: Any, key: Any) -> mx.array:
    """The array with one element drawn from its conditional distribution: by the largest of Gumbel plus log weight."""
    flat = here.reshape(-1)
    element = mx.arange(site.size) == i

    def changed(value: mx.array) -> mx.array:
        return mx.where(element, value, flat).astype(here.dtype).reshape(site.shape)

    log_weights = run(lambda _, value: site.put(trace, changed(value))[1], len(site.values), None, Lanes(site.values))
    log_weights = mx.where(mx.isnan(log_weights), -math.inf, log_weights)
    best = mx.argmax(log_weights + random.gumbel(key, log_weights.shape))
    return changed(mx.take(site.values, best))


# all elements at once


def _all_drawn(trace: Trace, site: Site, key: Any) -> Trace:
    """All elements drawn by their own terms of the log density; the log acceptance ratio is what these leave over."""
    draw_key, accept_key = random.split(key)
    terms = _terms(trace, site)
    terms = mx.where(mx.isnan(terms), -math.inf, terms)
    best = mx.argmax(terms + random.gumbel(draw_key, terms.shape), axis=0)
    old = site.read(trace)
    new = mx.take(site.values, best).astype(old.dtype)
    moved, weight = site.put(trace, new)
    return accept(trace, moved, weight - _explained(site, terms, old, new), accept_key)[0]


def _explained(site: Site, terms: mx.array, old: mx.array, new: mx.array) -> mx.array:
    """The log density ratio of two values, by their terms."""
    old_terms, new_terms = (
        mx.take_along_axis(terms, (value - site.values[0]).astype(mx.int32)[None], axis=0) for value in (old, new)
    )
    return summed((new_terms - old_terms).reshape(-1))


def _terms(trace: Trace, site: Site) -> mx.array:
    """The log densities that are an element's own, for each value of it: ``[values, *shape]``."""

    def each(_: Any, value: mx.array) -> mx.array:
        everywhere = mx.broadcast_to(value, site.shape)
        choices = trace.choices.merge(site.choices(everywhere)).map(lambda leaf: Pointwise(mx.array(leaf)))
        run_of, _ = trace.gen_fn._generate(trace.args, choices, None)
        densities = run_of.choices.to_dict()
        for address in site.addresses:
            made: Any = site_at(run_of, address)
            if made.gen_fn is iid and made.args[0].batch_shape == ():  # one event, whose density is a sum
                densities[address] = made.args[0].log_prob(everywhere)
        return _by_element(site, densities)

    return run(each, len(site.values), None, Lanes(site.values))


def _by_element(site: Site, densities: dict[tuple, mx.array]) -> mx.array:
    """The sum of the densities that belong to each element: those at its index, of an array or in the address."""
    if len(site.addresses) > 1:
        part = _index_part(site.addresses[0])
        place = {address[part]: i for i, address in enumerate(site.addresses)}
        own: list[list] = [[] for _ in site.addresses]
        for address, density in densities.items():
            i = place.get(address[part]) if len(address) > part else None
            if i is not None:
                own[i].append(mx.sum(density))
        return mx.stack([sum(found[1:], found[0]) for found in own])
    total, n = mx.zeros(site.shape), len(site.shape)
    for density in densities.values():
        if density.shape[:n] == site.shape:
            total = total + mx.sum(density, axis=tuple(range(n, density.ndim)))
        elif density.shape[density.ndim - n :] == site.shape:
            total = total + mx.sum(density, axis=tuple(range(density.ndim - n)))
    return total


def _independent(site: Site, traces: Iterable[Trace]) -> bool:
    """Whether the terms of the elements explain how the log density changes, for values drawn at random."""
    keys = random.Keys(mx.random.key(0))
    for trace in traces:
        if any(isinstance(leaf, Masked) for _, leaf in trace.choices.items()):
            return False
        try:
            terms, old = _terms(trace, site), site.read(trace)
        except GenError:  # a family or a combinator that does not tell its densities one by one
            return False
        lo, count = site.values[0], len(site.values)
        new = (lo + mx.floor(random.uniform(keys.next(), site.shape) * count)).astype(old.dtype)
        weight, explained = site.put(trace, new)[1], _explained(site, terms, old, new)
        close = mx.abs(weight - explained) <= _OFF + _OFF_RELATIVE * mx.abs(explained)
        if not mx.logical_or(close, weight == explained).item():
            return False
    return True


# what there is to sweep over


def find_sites(start: Trace, addresses: Sequence[tuple]) -> list[Site]:
    """The discrete choices at the addresses, with the values that each may take; raises where there is no finite set.

    The values come from the support of the distribution that made the choice.
    """
    for address in addresses:
        if isinstance(start[address], Masked):
            raise _cannot(start, address, "exists in some runs only", "a model whose addresses stay")
    single = [Site((address,), mx.array(start[address]).shape, _values(start, start, address)) for address in addresses]
    others = [
        start.gen_fn.regenerate(start, ALL, key=mx.random.key(seed), strict=False).trace for seed in range(_TRIES)
    ]
    for site in single:
        for other in others:
            if not mx.array_equal(site.values, _values(start, other, site.addresses[0])).item():
                reason = "has a support that depends on other choices"
                raise _cannot(start, site.addresses[0], reason, "a support that stays")
    traces = [start, *others]
    found: list[Site] = []
    for group in _alike(single):
        joint = group[0]
        if len(group) > 1:
            joint = Site(tuple(site.addresses[0] for site in group), (len(group),), group[0].values)
        _require_same_choices(start, joint)
        together = joint.size > 1 and _independent(joint, traces)
        found += [joint._replace(together=True)] if together else group
    return found


def _require_same_choices(start: Trace, site: Site) -> None:
    """Raise where other choices would exist for other values: seen in a batch of them, where nothing is known."""

    def same(_: Any, value: mx.array) -> mx.array:
        new, _ = site.put(start, mx.broadcast_to(value, site.shape))
        return mx.array(same_choices(new, start))

    try:
        stay = mx.all(run(same, len(site.values), None, Lanes(site.values))).item()
    except MissingChoice:
        stay = False
    if not stay:
        raise _cannot(start, site.addresses[0], "decides which other choices there are", "choices that stay")


def _alike(sites: list[Site]) -> list[list[Site]]:
    """Single numbers of equal values whose addresses differ in one index; everything else by itself."""
    groups: dict[Any, list[Site]] = {}
    for site in sites:
        (address,) = site.addresses
        part = _index_part(address)
        kind: Any = address
        if site.shape == () and part is not None:
            kind = (address[:part], None, address[part + 1 :], site.values[0].item(), len(site.values))
        groups.setdefault(kind, []).append(site)
    return list(groups.values())


def _index_part(address: tuple) -> Any:
    """Which part of an address is its first index."""
    return next((i for i, part in enumerate(address) if isinstance(part, int)), None)


def _values(start: Trace, trace: Trace, address: tuple) -> mx.array:
    """The values of one element, ascending, from the support of the distribution that made the choice."""
    site = site_at(trace, address)
    if site is None:
        raise _cannot(start, address, "is made by a combinator that hides its distribution", "a choice of a @gen body")
    support: Support = site.gen_fn.support_of(*site.gen_fn.params(site.args))
    if isinstance(support, Vector):
        support = support.element
    if not support.discrete:
        raise _cannot(start, address, f"is continuous ({site.gen_fn})", "choices with a finite support")
    if not isinstance(support, Integers):
        raise _cannot(start, address, f"takes values that are {support!r}", "single numbers")
    lo: Any = mx.min(mx.array(support.lo)).item()
    hi: Any = mx.max(mx.array(support.hi)).item()
    if not hi - lo < _MOST_VALUES:  # infinite bounds too
        raise _cannot(start, address, f"has too many values to try ({support!r})", f"at most {_MOST_VALUES} values")
    return mx.arange(int(lo), int(hi) + 1, dtype=mx.int32)


def _cannot(start: Trace, address: tuple, why: str, expected: str) -> UsageError:
    return UsageError(
        f"gibbs cannot enumerate a choice: it {why}",
        address=address,
        gen_fn=start.gen_fn,
        expected=expected,
        hint="name the choices to sweep over in selection=, or use mh",
    )
