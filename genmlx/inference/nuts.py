"""The no-U-turn sampler: Hamiltonian trajectories that double until they turn back, for all chains at once.

Hoffman and Gelman (2014), with the multinomial sampling and the generalised criterion of Betancourt (2017), and the
trees built without recursion (Phan, Pradhan and Jankowiak 2019; Lao and Dillon 2019). One ``step`` is one leapfrog
step of every chain, wherever each of them is in its tree: no chain waits for the longest trajectory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.gfi import Call
from genmlx.inference.adaptive import Native
from genmlx.inference.gradient_chains import Info, Sampler, Tuning, checked_fraction, run_gradient_chains
from genmlx.inference.leapfrog import Point, ValueAndGrad, leapfrog
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import positive_count

_DIVERGENT = 1000.0
"""An energy error above this is a divergence, as in Stan."""
_DEEPEST = 20
"""The table of trees has max_depth 2^max_depth entries, and the leaves are counted in float32."""


class State(NamedTuple):
    """A trajectory being built by each chain; related numbers share an array, because each MLX operation costs alike.

    The tree so far ends in ``here``, which the subtree that will double it grows from, and in ``other``. Each is a
    position, gradient and momentum, ``[n, 3 dim]``. ``drawn`` is a point of the tree, ``drawn_below`` of the subtree:
    position, gradient, log density and energy. ``checkpoints [n, max_depth, 2 dim]`` are of the leaves that begin
    smaller trees in the subtree: velocity and sum of momenta.
    """

    here: mx.array
    other: mx.array
    drawn: mx.array
    drawn_below: mx.array
    tree: mx.array  # sum of momenta, log weight, points, energy of the first, sum of acceptances, steps: [n, dim + 5]
    below: mx.array  # sum of momenta, log weight, leaves: [n, dim + 2]
    checkpoints: mx.array
    direction: mx.array


def nuts(
    call: Call,
    observations: Any = None,
    draws: int = 1000,
    warmup: int = 1000,
    chains: int = 4,
    target_accept: float = 0.8,
    max_depth: int = 10,
    dense: bool = False,
    thin: int = 1,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
    native: Native = None,
) -> Posterior:
    """A posterior of ``[chains, draws]`` by the no-U-turn sampler. All latent choices must be continuous.

    Choices with bounds are moved in an unconstrained space. The first ``warmup`` transitions find the step size that
    has ``target_accept``, and a mass matrix: diagonal, or ``dense``. A trajectory has fewer than 2^``max_depth``
    steps; ``max_depth`` is 20 at most. ``stats``: ``accept``, ``energy``, ``diverging``, ``step_size``, ``n_leapfrog``,
    ``tree_depth``, ``reached_max_depth`` (it had not turned by then). ``checkpoint`` names a file from which the same
    run goes on if it was killed, with the same draws.

    On the CPU the whole loop is machine code where the density has such a form (and llvmlite is installed), and else
    recorded MLX graphs; ``native=False`` asks for these, ``native=True`` for an error instead of them.
    Machine code computes in float32, and in float64 from where the warm-up finds float32 too noisy for the sampler;
    ``native="float32"`` and ``native="float64"`` ask for one of them throughout.

    >>> import mlx.core as mx
    >>> from genmlx import gen, trace, normal, exponential
    >>> @gen
    ... def model():
    ...     scale = trace("scale", exponential(1.0))
    ...     trace("y", normal(0.0, scale))
    >>> post = nuts(model(), {"y": 1.5}, draws=200, warmup=100, chains=2, key=mx.random.key(0))
    >>> post["scale"].shape, post["scale"].min().item() > 0, 0.6 < post.stats["accept"].mean().item() < 1
    ((2, 200), True, True)
    """
    positive_count("max_depth", max_depth, most=_DEEPEST)
    return run_gradient_chains(
        "nuts",
        call,
        observations,
        lambda value_and_grad: sampler(value_and_grad, max_depth),
        draws=draws,
        warmup=warmup,
        thin=thin,
        chains=chains,
        target_accept=checked_fraction("target_accept", target_accept),
        dense=dense,
        key=key,
        progress=progress,
        checkpoint=checkpoint,
        native=native,
        settings={"max_depth": max_depth},
    )


def sampler(value_and_grad: ValueAndGrad, max_depth: int = 10) -> Sampler:
    return Sampler(
        lambda point, noise, tuning: init(point, noise, tuning, max_depth),
        lambda state, noise, tuning: step(state, noise, tuning, value_and_grad, max_depth),
        look_after=lambda step_size: 2,
    )


def init(point: Point, noise: Any, tuning: Tuning, max_depth: int) -> State:
    """The start of a trajectory of each chain: a tree of one point, and a momentum."""
    n, dim = point.position.shape
    momentum = tuning.metric.momentum(noise.normal)
    energy = tuning.metric.kinetic(momentum) - point.log_prob
    here = mx.concatenate([point.position, point.gradient, momentum], axis=-1)
    drawn = mx.concatenate([point.position, point.gradient, point.log_prob, energy], axis=-1)
    return State(
        here=here,
        other=here,
        drawn=drawn,
        drawn_below=drawn,
        tree=_single(momentum, energy),
        below=mx.broadcast_to(_nothing(dim), (n, dim + 2)),
        checkpoints=mx.zeros((n, max_depth, 2 * dim)),
        direction=mx.where(noise.uniforms[2] < 0.5, -1.0, 1.0),
    )


def step(state: State, noise: Any, tuning: Tuning, value_and_grad: ValueAndGrad, max_depth: int) -> tuple[State, Info]:
    """One leaf more in the tree of each chain; where that ends the trajectory, a draw, and the start of the next."""
    metric, (within, between, turn) = tuning.metric, noise.uniforms
    position, gradient, momentum = mx.split(state.here, 3, axis=-1)
    dim = position.shape[1]
    momenta, log_weight, size, first_energy, accept, steps = _parts(state.tree, dim)
    momenta_below, log_weight_below, leaf = _parts(state.below, dim)

    time = tuning.step_size * state.direction
    point, momentum = leapfrog(value_and_grad, metric, position, gradient, momentum, time)
    velocity = metric.velocity(momentum)
    energy = 0.5 * _dot(momentum, velocity) - point.log_prob
    lost = first_energy - energy
    diverging = mx.logical_not(lost > -_DIVERGENT)
    lost = mx.where(diverging, -math.inf, lost)
    accept = accept + mx.exp(mx.minimum(lost, 0.0))
    steps = steps + 1.0

    # The leaf joins the subtree, which keeps one of its points in proportion to their weights exp(-energy).
    log_weight_below = mx.logaddexp(log_weight_below, lost)
    drawn_below = mx.concatenate([point.position, point.gradient, point.log_prob, energy], axis=-1)
    drawn_below = mx.where(mx.log(within) < lost - log_weight_below, drawn_below, state.drawn_below)

    # A tree has turned when the sum of its momenta, ends counted half, points away from the velocity at an end. With
    # middle = sum up to here - p / 2, that sum is the difference of the middles of the tree's last and first leaf.
    momenta_below = momenta_below + momentum
    middle = momenta_below - 0.5 * momentum
    begins, ends = mx.split(mx.take(_trees(max_depth), leaf[:, 0].astype(mx.int32), axis=0), 2, axis=-1)
    velocities, middles = mx.split(state.checkpoints, 2, axis=-1)
    across = middle[:, None] - middles
    turning = mx.minimum(_dot(across, velocities), _dot(across, velocity[:, None])) <= 0
    turning = mx.any(mx.logical_and(ends, turning), axis=1)
    checkpoints = mx.where(begins, mx.concatenate([velocity, middle], axis=-1)[:, None], state.checkpoints)

    # A full subtree joins the tree, whose point it replaces with probability min(1, weight ratio).
    leaf = leaf + 1.0
    stop = mx.logical_or(turning, diverging)
    full = mx.logical_and(leaf == size, mx.logical_not(stop))
    replace = mx.logical_and(full, mx.log(between) < log_weight_below - log_weight)
    drawn = mx.where(replace, drawn_below, state.drawn)
    joined = mx.concatenate([momenta + momenta_below, mx.logaddexp(log_weight, log_weight_below), 2 * size], axis=-1)
    joined = mx.where(full, joined, state.tree[:, : dim + 2])
    momenta, size = joined[:, :dim], joined[:, dim + 1 :]
    end = state.other[:, 2 * dim :]
    across = momenta - 0.5 * (momentum + end)
    turning = mx.minimum(_dot(across, velocity), _dot(across, metric.velocity(end))) <= 0
    deepest = mx.logical_and(full, size == 2**max_depth)
    stop = mx.logical_or(stop, mx.logical_or(mx.logical_and(full, turning), deepest))

    # What stops starts again from its draw; what is full doubles, at a random end; and the rest goes on.
    next_momentum = metric.momentum(noise.normal)
    next_energy = metric.kinetic(next_momentum) - drawn[:, -2:-1]
    start = mx.concatenate([drawn[:, : 2 * dim], next_momentum], axis=-1)
    now = mx.concatenate([point.position, point.gradient, momentum], axis=-1)
    anew = mx.logical_or(stop, full)
    flip = mx.logical_and(anew, turn < 0.5)
    new = State(
        here=mx.where(stop, start, mx.where(flip, state.other, now)),
        other=mx.where(stop, start, mx.where(flip, now, state.other)),
        drawn=drawn,
        drawn_below=drawn_below,
        tree=mx.where(
            stop,
            _single(next_momentum, next_energy),
            mx.concatenate([joined, first_energy, accept, steps], axis=-1),
        ),
        below=mx.where(anew, _nothing(dim), mx.concatenate([momenta_below, log_weight_below, leaf], axis=-1)),
        checkpoints=checkpoints,
        direction=mx.where(flip, -state.direction, state.direction),
    )
    stats = {
        "accept": accept / steps,
        "energy": drawn[:, -1:],
        "diverging": diverging,
        "n_leapfrog": steps,
        "tree_depth": mx.ceil(mx.log2(steps + 1.0)),
        "reached_max_depth": mx.logical_and(deepest, mx.logical_not(turning)),
    }
    return new, Info(stop, drawn[:, :-1], stats)


def _single(momentum: mx.array, energy: mx.array) -> mx.array:
    """The sums over a tree of one point."""
    zero = mx.zeros_like(energy)
    return mx.concatenate([momentum, zero, zero + 1.0, energy, zero, zero], axis=-1)


def _nothing(dim: int) -> mx.array:
    """The sums over no points."""
    return mx.array([*[0.0] * dim, -math.inf, 0.0])


def _parts(packed: mx.array, dim: int) -> list[mx.array]:
    """The first ``dim`` columns, and each other one."""
    return list(mx.split(packed, list(range(dim, packed.shape[1])), axis=-1))


def _dot(a: mx.array, b: mx.array) -> mx.array:
    return mx.sum(a * b, axis=-1, keepdims=True)


@cache
def _tree_table(max_depth: int) -> Any:
    """For each leaf of a subtree, ``[max_depth, 2]``: which checkpoint it is kept as, and which trees end with it.

    Leaf 8 + 2 = 0b1010 is the first of its pair, and its one-bits above the last tell where it is kept; leaf 0b1011
    ends the trees that begin at 0b1010 and at 0b1000, one for each trailing one-bit. (NumPyro's bit tricks.)
    """
    import numpy as np

    leaves = np.arange(1 << max(max_depth - 1, 0))[:, None]
    places = np.arange(max_depth)[None]
    ones = sum((leaves >> 1) >> i & 1 for i in range(max_depth))
    trailing = sum(np.logical_and.reduce([leaves >> j & 1 for j in range(i + 1)]) for i in range(max_depth))
    begins = (leaves % 2 == 0) & (places == ones)
    ends = (leaves % 2 == 1) & (places <= ones) & (places > ones - trailing)
    return np.stack([begins, ends], axis=-1)


def _trees(max_depth: int) -> mx.array:
    return mx.array(_tree_table(max_depth))
