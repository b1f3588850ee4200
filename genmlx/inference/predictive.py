"""What the draws of a posterior say of observations: values predicted by each draw, and log densities of each.

Both run the model once for every draw, with the latent choices of that draw: many draws at a time as the lanes of a
batch, or one by one where the model branches on its choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.address import normalise
from genmlx.choicemap import EMPTY, ChoiceMap, from_items
from genmlx.errors import BatchError, UsageError
from genmlx.free import Pointwise
from genmlx.gfi import Call, gen_errors, unknown_address
from genmlx.inference.draws import Draws
from genmlx.inference.loop import Loop
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import checked_problem
from genmlx.masked import Masked, active_of, value_of
from genmlx.selection import Selection, select
from genmlx.vectorized import run
from genmlx.versions import pinned

_LANES, _NUMBERS = 1024, 1 << 24
"""Draws of one batch at most, and numbers in its choices at most."""

Draw = Callable[[Any, ChoiceMap], tuple[ChoiceMap, Any, dict]]
"""``draw(key, latent choices) -> (choices, score, info)`` of one draw, with ``info`` a dict of numbers."""


def predictive(
    call: Call,
    posterior: Posterior,
    addresses: Any = None,
    key: Any = None,
    progress: Callable | None = None,
    strict: bool = True,
) -> Posterior:
    """Values ``[chains, draws, *event]`` drawn by each draw of the posterior, at the observed addresses.

    ``call`` may have other arguments than the posterior's: whatever it visits that the posterior has no draws of is
    drawn. With ``addresses`` (one, a list, or a selection), only those are drawn anew, latent ones and those that only
    ``call`` has among them, and the observations at all others stay. A draw that has choices which ``call`` does not
    visit raises, unless ``strict`` is False. The result's ``log_joint`` is that of all choices together.

    >>> import mlx.core as mx
    >>> from genmlx import gen, mh, normal, trace
    >>> @gen
    ... def model(n):
    ...     mu = trace("mu", normal(0, 1))
    ...     for i in range(n):
    ...         trace(("y", i), normal(mu, 0.5))
    >>> post = mh(model(2), {("y", 0): 1.0, ("y", 1): 2.0}, draws=500, chains=8, key=mx.random.key(0))
    >>> new = predictive(model(3), post, key=mx.random.key(1))
    >>> new.addresses(), new["y", 2].shape, abs(new.mean(("y", 2)).item() - 4 / 3) < 0.1
    ([('y', 0), ('y', 1), ('y', 2)], (8, 500), True)
    """
    if addresses is None:
        anew, fixed = ~_covering(posterior), EMPTY
    else:
        anew, fixed = _chosen(call, posterior, addresses, new=True), posterior.observations
    given = fixed.without(anew)

    def draw(key: Any, latent: ChoiceMap) -> tuple[ChoiceMap, Any, dict]:
        # A new call may have dropped some observations, and that is fine; but not the latent choices.
        known = given.merge(latent.without(anew))
        trace, _ = call.gen_fn._generate(args, known, key)
        unknown = call.gen_fn.unvisited(trace, latent.without(anew)) if strict else []
        if unknown:
            raise unknown_address(unknown[0], call.gen_fn, trace.choices.addresses(), "the posterior")
        return trace.choices.filter(anew), trace.score, {}

    checked_problem(call, None)
    with pinned(), gen_errors(call.gen_fn):
        args = call.gen_fn.own(call)
        return each_draw("predictive", posterior, draw, random.as_key(key), progress)


def log_likelihood(
    call: Call, posterior: Posterior, addresses: Any = None, progress: Callable | None = None
) -> Posterior:
    """Log densities ``[chains, draws, *shape]`` of the observations, given all other choices of each draw.

    An array of independent observations has one density for each of its elements, unsummed; a vector that is one event
    has one. ``addresses`` are by default those that were observed. The result indexes and summarises as a posterior.

    >>> import mlx.core as mx
    >>> from genmlx import gen, mh, normal, trace
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("mu", normal(0, 1)) * mx.ones(3), 0.5))
    >>> post = mh(model(), {"y": [1.0, 1.5, 2.0]}, draws=100, chains=2, key=mx.random.key(0))
    >>> log_likelihood(model(), post)["y"].shape
    (2, 100, 3)
    """
    observations = posterior.observations
    if addresses is None:
        chosen: Selection = _selected(observations.addresses())
        if observations.is_empty:
            raise UsageError("the posterior has no observations", hint="log_likelihood(call, posterior, addresses)")
    else:
        chosen = _chosen(call, posterior, addresses)

    def draw(key: Any, latent: ChoiceMap) -> tuple[ChoiceMap, Any, dict]:
        known = observations.merge(latent)
        asked = known.filter(chosen).map(_asked)
        # Without a key nothing can be sampled: a choice that is not given raises.
        trace, _ = call.gen_fn._generate(args, known.merge(asked), key)
        call.gen_fn.require_visited(trace, known)
        return trace.choices.filter(chosen), trace.score, {}

    checked_problem(call, None)
    with pinned(), gen_errors(call.gen_fn):
        args = call.gen_fn.own(call)
        return each_draw("log_likelihood", posterior, draw, None, progress)


def _asked(value: Any) -> Any:
    if isinstance(value, Masked):
        raise UsageError("a choice that only some draws have has no densities in a batch")
    return Pointwise(mx.array(value))


def _covering(posterior: Posterior) -> Selection:
    return _selected(posterior.addresses())


def _selected(addresses: list) -> Selection:
    return select(*addresses) if addresses else select.none()


def _chosen(call: Call, posterior: Posterior, addresses: Any, new: bool = False) -> Selection:
    """What a user names: a selection, an address, or a list of them, each of which must be there.

    With ``new`` it may be one that the posterior has not, but a run of ``call`` with its first draw.
    """
    if isinstance(addresses, Selection):
        return addresses
    named = [normalise(a) for a in addresses] if isinstance(addresses, list) else [normalise(addresses)]
    known = from_items((a, 0) for a in [*posterior.addresses(), *posterior.observations])
    if new and not all(address in known for address in named):
        first = from_items(
            (a, posterior.values_at(a)[0, 0]) for a in posterior.addresses() if posterior.has(a)[0, 0].item()
        )
        run = call.generate(posterior.observations.merge(first), random.as_key(0), strict=False)
        known = from_items((a, 0) for a in dict.fromkeys([*known, *run.trace.choices]))
    for address in named:
        if address not in known:
            raise unknown_address(address, call.gen_fn, known.addresses(), "addresses")
    return select(*named)


def each_draw(algorithm: str, posterior: Posterior, draw: Draw, key: Any, progress: Callable | None) -> Posterior:
    """What ``draw`` gives for each draw of the posterior. A batch takes the chains side by side, some draws of each."""
    found = Draws()
    with Loop(algorithm, progress) as loop:
        try:
            execution = "batched"
            _in_batches(loop, posterior, draw, key, found)
        except BatchError:
            execution = "handlers: one draw at a time, of a body that branches on its choices"
            found = Draws()
            _one_by_one(loop, posterior, draw, key, found)
        values, present, log_joint, stats = found.finish()
    result = Posterior(
        values,
        present=present,
        stats=stats,
        log_joint=log_joint,
        algorithm=algorithm,
        status=loop.status,
        timing=loop.timing,
        execution=execution,
    )
    return loop.deliver(result)


def _in_batches(loop: Loop, posterior: Posterior, draw: Draw, key: Any, found: Draws) -> None:
    chains, draws = posterior.chains, posterior.draws
    numbers = sum(math.prod(value_of(leaf).shape) for _, leaf in _latent(posterior, 0, 1).items()) // chains
    numbers += sum(mx.array(value).size for _, value in posterior.observations.items())
    each = max(1, min(_LANES, _NUMBERS // max(1, numbers)) // chains)
    count = -(-draws // each)
    keys = [None] * count if key is None else random.split(key, count)

    def block(start: int, stop: int) -> None:
        for i in range(start, stop):
            begin, end = i * each, min((i + 1) * each, draws)
            lanes = (end - begin) * chains
            latent = _latent(posterior, begin, end)
            choices, score, info = run(draw, lanes, keys[i], latent) if latent else _same(draw, lanes, keys[i])
            # The lanes are [draws, chains]: each column of them is a draw of all chains.
            columns = choices.map(lambda leaf, shape=(end - begin, chains): _unflattened(leaf, shape))
            numbers = {name: _unflattened(number, (end - begin, chains)) for name, number in info.items()}
            found.blocks.append((_columns(columns), _unflattened(score, (end - begin, chains)), numbers))
            mx.eval(found.blocks[-1])

    loop.run("drawing", count, block)


def _same(draw: Draw, lanes: int, key: Any) -> Any:
    return run(lambda key: draw(key, EMPTY), lanes, key)


def _latent(posterior: Posterior, begin: int, end: int) -> ChoiceMap:
    """The latent choices of some draws as the choices of a batch, ``[draws * chains]``."""
    items = []
    for address in posterior.addresses():
        value = _flattened(posterior.values_at(address)[:, begin:end])
        present = posterior.present_at(address)
        items.append((address, value if present is None else Masked(value, _flattened(present[:, begin:end]))))
    return from_items(items, (end - begin) * posterior.chains) if items else EMPTY


def _flattened(array: mx.array) -> mx.array:
    return mx.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])


def _unflattened(leaf: Any, shape: tuple) -> Any:
    if isinstance(leaf, Masked):
        return Masked(_unflattened(leaf.value, shape), _unflattened(leaf.active, shape))
    return mx.swapaxes(leaf.reshape(*shape, *leaf.shape[1:]), 0, 1)


def _columns(choices: ChoiceMap) -> dict:
    columns = {}
    for address, leaf in choices.items():
        value = value_of(leaf)
        columns[address] = value, mx.broadcast_to(mx.array(active_of(leaf)), value.shape[:2])
    return columns


def _one_by_one(loop: Loop, posterior: Posterior, draw: Draw, key: Any, found: Draws) -> None:
    """The same for single traces, of which each may have other addresses."""
    keys = random.Keys(key)

    def block(start: int, stop: int) -> None:
        for i in range(start, stop):
            rows = [_alone(draw, posterior, chain, i, keys.next()) for chain in range(posterior.chains)]
            found.add(*_side_by_side(rows))
        found.close_block()

    loop.run("drawing", posterior.draws, block)


def _alone(draw: Draw, posterior: Posterior, chain: int, i: int, key: Any) -> tuple[ChoiceMap, Any, dict]:
    own = [
        (a, posterior.values_at(a)[chain, i]) for a in posterior.addresses() if posterior.has(a)[chain, i].item()
    ]
    found = draw(key, from_items(own))
    mx.eval([value_of(leaf) for _, leaf in found[0].items()], *found[1:])
    return found


def _side_by_side(rows: list[tuple[ChoiceMap, Any, dict]]) -> tuple[ChoiceMap, mx.array, dict]:
    """The choices of one draw of every chain, masked where some chains lack them; its score, and its info."""
    leaves: dict[tuple, list] = {}
    for i, (choices, _, _) in enumerate(rows):
        for address, leaf in choices.items():
            leaves.setdefault(address, [None] * len(rows))[i] = leaf
    joined = []
    for address, column in leaves.items():
        like = next(leaf for leaf in column if leaf is not None)
        value = mx.stack([mx.zeros_like(like) if leaf is None else leaf for leaf in column])
        active = mx.array([leaf is not None for leaf in column])
        joined.append((address, Masked(value, active)))
    info = {name: mx.stack([mx.array(info[name]) for _, _, info in rows]) for name in rows[0][2]}
    return from_items(joined), mx.stack([score for _, score, _ in rows]), info
