"""Gibbs sampling of discrete choices: each is drawn from its distribution given all others, found by enumeration.

Geman and Geman (1984). The values that a choice may take come from the support of its distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap, from_items
from genmlx.dist.support import Integers, Support, Vector
from genmlx.errors import UsageError
from genmlx.gfi import Call
from genmlx.inference.chains import Kernel, Step, run_chains
from genmlx.inference.mh import movable
from genmlx.inference.posterior import Posterior
from genmlx.inference.sites import site_at
from genmlx.masked import Masked
from genmlx.selection import ALL
from genmlx.trace import Trace
from genmlx.vectorized import Lanes, run

_MOST_VALUES, _TRIES = 4096, 8


class Site(NamedTuple):
    """A choice to sweep over: where it is, its shape, and every value that one element of it may take."""

    address: tuple
    shape: tuple
    values: mx.array


def gibbs(
    call: Call,
    observations: Any = None,
    selection: Any = None,
    draws: int = 1000,
    warmup: int = 100,
    thin: int = 1,
    chains: int = 4,
    key: Any = None,
    progress: Callable | None = None,
) -> Posterior:
    """A posterior of ``[chains, draws]`` by Gibbs sweeps over the ``selection``, by default every latent choice.

    A sweep takes the choices, and the elements of an array, one after the other. All values of one are tried at once,
    as lanes of a batch. Each selected choice must have a finite support that does not depend on other choices; the
    choices that are not selected stay as they were drawn from the prior.

    >>> import mlx.core as mx
    >>> from genmlx import gen, trace, normal, flip
    >>> @gen
    ... def model():
    ...     k = trace("k", flip(0.5))
    ...     trace("y", normal(2.0 * k, 1.0))
    >>> post = gibbs(model(), {"y": 1.5}, draws=500, chains=4, key=mx.random.key(0))
    >>> abs(post.mean("k").item() - 0.7311) < 0.05
    True
    """

    def make_kernel(start: Trace, observations: ChoiceMap) -> Kernel:
        chosen = start.choices.filter(movable(call, selection, start, observations))
        return Kernel(gibbs_step([_site(start, address) for address in chosen]))

    return run_chains(
        "gibbs",
        call,
        observations,
        make_kernel,
        draws=draws,
        warmup=warmup,
        thin=thin,
        chains=chains,
        key=key,
        progress=progress,
    )


def gibbs_step(sites: Sequence[Site]) -> Step:
    """One sweep: every element of every site in turn. ``changed`` is the share of them that moved."""

    def step(trace: Trace, key: Any) -> Any:
        keys, moved, count = random.Keys(key), [], 0
        for site in sites:
            for i in range(math.prod(site.shape)):
                old = trace[site.address]
                trace = _drawn(trace, site, i, keys.next())
                moved.append(mx.any(mx.array(old) != trace[site.address]).astype(mx.float32))
                count += 1
        return trace, {"changed": mx.sum(mx.stack(moved)) / count}

    return step


def _drawn(trace: Trace, site: Site, i: int, key: Any) -> Trace:
    """The trace with one element drawn from its conditional distribution: by the largest of Gumbel plus log weight."""
    here = mx.array(trace[site.address]).reshape(-1)
    element = mx.arange(here.shape[0]) == i

    def changed(value: mx.array) -> Any:
        new = mx.where(element, value, here).astype(here.dtype).reshape(site.shape)
        return trace.gen_fn.update(trace, from_items([(site.address, new)]), strict=False)

    log_weights = run(lambda _, value: mx.array(changed(value).weight), len(site.values), None, Lanes(site.values))
    log_weights = mx.where(mx.isnan(log_weights), -math.inf, log_weights)
    best = mx.argmax(log_weights + random.gumbel(key, log_weights.shape))
    return changed(mx.take(site.values, best)).trace


def _site(start: Trace, address: tuple) -> Site:
    value = start[address]
    if isinstance(value, Masked):
        raise _cannot(start, address, "exists in some runs only", "a model whose addresses stay")
    values = _values(start, start, address)
    for seed in range(_TRIES):
        other = start.gen_fn.regenerate(start, ALL, key=mx.random.key(seed), strict=False).trace
        if not mx.array_equal(values, _values(start, other, address)).item():
            raise _cannot(start, address, "has a support that depends on other choices", "a support that stays")
    return Site(address, mx.array(value).shape, values)


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
