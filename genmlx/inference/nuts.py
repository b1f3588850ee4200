"""The no-U-turn sampler: Hamiltonian trajectories that double until they turn back, for all chains at once.

Hoffman and Gelman (2014), with the multinomial sampling and the generalised criterion of Betancourt (2017), and the
trees built without recursion (Phan, Pradhan and Jankowiak 2019; Lao and Dillon 2019). One ``step`` is one leapfrog
step of every chain, wherever each of them is in its tree: no chain waits for the longest trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.gfi import Call
from genmlx.inference.gradient_chains import Sampler, Tuning, checked_fraction, run_gradient_chains
from genmlx.inference.leapfrog import Metric, Point, ValueAndGrad, leapfrog
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import positive_count

_DIVERGENT = 1000.0
"""An energy error above this is a divergence, as in Stan."""


class State(NamedTuple):
    """A trajectory being built by each chain. Phase points are packed: position, gradient, momentum, ``[n, 3 dim]``.

    The tree so far has a left and a right end, the sum of its momenta, a log weight and the point drawn from it. The
    subtree that will double it grows in ``direction`` from ``here``. ``checkpoints`` are of those leaves of it
    that begin a smaller balanced tree: for each depth a velocity and a sum of momenta.
    """

    here: mx.array
    left: mx.array
    right: mx.array
    drawn: mx.array  # position, gradient, log density, energy: [n, 2 dim + 2]
    drawn_below: mx.array
    momenta: mx.array
    momenta_below: mx.array
    log_weight: mx.array
    log_weight_below: mx.array
    checkpoints: mx.array  # [n, max_depth, 2 dim]
    direction: mx.array
    leaf: mx.array
    depth: mx.array
    energy: mx.array  # where the trajectory began
    accept: mx.array
    steps: mx.array


class Info(NamedTuple):
    """``done [n, 1]`` says which chains ended a trajectory; the rest is about those. ``point`` is packed."""

    done: mx.array
    point: mx.array
    stats: dict[str, mx.array]


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
) -> Posterior:
    """A posterior of ``[chains, draws]`` by the no-U-turn sampler. All latent choices must be continuous.

    Choices with bounds are moved in an unconstrained space. The first ``warmup`` transitions find the step size that
    has ``target_accept``, and a mass matrix: diagonal, or ``dense``. A trajectory has fewer than 2^``max_depth``
    steps. ``stats``: ``accept``, ``energy``, ``diverging``, ``step_size``, ``n_leapfrog``, ``tree_depth``.

    >>> import mlx.core as mx
    >>> from genmlx import gen, trace, normal, half_normal
    >>> @gen
    ... def model():
    ...     scale = trace("scale", half_normal(1.0))
    ...     trace("y", normal(0.0, scale))
    >>> post = nuts(model(), {"y": 1.5}, draws=200, warmup=100, chains=2, key=mx.random.key(0))
    >>> post["scale"].shape, post["scale"].min().item() > 0, 0.6 < post.stats["accept"].mean().item() < 1
    ((2, 200), True, True)
    """
    positive_count("max_depth", max_depth)
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
    )


def sampler(value_and_grad: ValueAndGrad, max_depth: int = 10) -> Sampler:
    return Sampler(
        lambda point, noise, tuning: init(point, noise, tuning, max_depth),
        lambda state, noise, tuning: step(state, noise, tuning, value_and_grad, max_depth),
        first_look=3,
    )


def init(point: Point, noise: Any, tuning: Tuning, max_depth: int) -> State:
    """The start of a trajectory of each chain: a tree of one point, and a momentum."""
    n, dim = point.position.shape
    zero = mx.zeros((n, 1))
    metric = tuning.metric
    momentum = metric.momentum(noise.normal)
    energy = metric.kinetic(momentum) - point.log_prob
    start = mx.concatenate([point.position, point.gradient, momentum], axis=-1)
    drawn = mx.concatenate([point.position, point.gradient, point.log_prob, energy], axis=-1)
    return State(
        here=start,
        left=start,
        right=start,
        drawn=drawn,
        drawn_below=drawn,
        momenta=momentum,
        momenta_below=mx.zeros((n, dim)),
        log_weight=zero,
        log_weight_below=mx.full((n, 1), -math.inf),
        checkpoints=mx.zeros((n, max_depth, 2 * dim)),
        direction=_direction(noise.uniforms[2]),
        leaf=mx.zeros((n, 1), dtype=mx.int32),
        depth=mx.zeros((n, 1), dtype=mx.int32),
        energy=energy,
        accept=zero,
        steps=zero,
    )


def step(
    state: State, noise: Any, tuning: Tuning, value_and_grad: ValueAndGrad, max_depth: int
) -> tuple[State, Info]:
    """One leaf more in the tree of each chain; where that ends the trajectory, a draw, and the start of the next."""
    metric, (within, between, turn) = tuning.metric, noise.uniforms
    position, gradient, momentum = mx.split(state.here, 3, axis=-1)
    here = Point(position, state.energy, gradient)
    point, momentum = leapfrog(value_and_grad, metric, here, momentum, tuning.step_size * state.direction)
    velocity = metric.velocity(momentum)
    energy = 0.5 * mx.sum(momentum * velocity, axis=-1, keepdims=True) - point.log_prob
    lost = state.energy - energy
    lost = mx.where(mx.isnan(lost), -math.inf, lost)
    diverging = lost < -_DIVERGENT
    accept = state.accept + mx.exp(mx.minimum(lost, 0.0))
    steps = state.steps + 1.0

    # The leaf joins the subtree, which keeps one of its points in proportion to their weights exp(-energy).
    log_weight_below = mx.logaddexp(state.log_weight_below, lost)
    leaf = mx.concatenate([point.position, point.gradient, point.log_prob, energy], axis=-1)
    drawn_below = mx.where(mx.log(within) < lost - log_weight_below, leaf, state.drawn_below)

    # A tree has turned when the sum of its momenta, ends counted half, points away from the velocity at an end. With
    # m = sum up to here - p / 2, that sum is m - m', where m' is the one of the tree's first leaf.
    momenta_below = state.momenta_below + momentum
    middle = momenta_below - 0.5 * momentum
    mine = mx.concatenate([velocity, middle], axis=-1)[:, None]
    begins, ends = mx.split(_trees(max_depth)[state.leaf[:, 0]], 2, axis=-1)
    velocities, middles = mx.split(state.checkpoints, 2, axis=-1)
    across = middle[:, None] - middles
    least = mx.minimum(_dot(across, velocities), _dot(across, velocity[:, None]))
    turning = mx.any(mx.logical_and(ends, least <= 0), axis=1)
    checkpoints = mx.where(begins, mine, state.checkpoints)

    # A full subtree joins the tree, whose point it replaces with probability min(1, weight ratio).
    stop = mx.logical_or(turning, diverging)
    full = mx.logical_and(state.leaf + 1 == mx.left_shift(1, state.depth), mx.logical_not(stop))
    replace = mx.logical_and(full, mx.log(between) < log_weight_below - state.log_weight)
    drawn = mx.where(replace, drawn_below, state.drawn)
    log_weight = mx.where(full, mx.logaddexp(state.log_weight, log_weight_below), state.log_weight)
    momenta = mx.where(full, state.momenta + momenta_below, state.momenta)
    now = mx.concatenate([point.position, point.gradient, momentum], axis=-1)
    forward = state.direction > 0
    left = mx.where(mx.logical_and(full, mx.logical_not(forward)), now, state.left)
    right = mx.where(mx.logical_and(full, forward), now, state.right)
    depth = state.depth + full
    other = mx.where(forward, left, right)[:, 2 * position.shape[1] :]
    across = momenta - 0.5 * (momentum + other)
    least = mx.minimum(_dot(across, velocity), _dot(across, metric.velocity(other)))
    stop = mx.logical_or(stop, mx.logical_and(full, mx.logical_or(least <= 0, depth == max_depth)))

    # What stops starts again from its draw; what is full doubles; and the rest goes on.
    next_momentum = metric.momentum(noise.normal)
    there, log_prob = drawn[:, : 2 * position.shape[1]], drawn[:, -2:-1]
    start = mx.concatenate([there, next_momentum], axis=-1)
    anew = mx.logical_or(stop, full)
    left, right = mx.where(stop, start, left), mx.where(stop, start, right)
    direction = mx.where(anew, _direction(turn), state.direction)
    new = State(
        here=mx.where(anew, mx.where(direction > 0, right, left), now),
        left=left,
        right=right,
        drawn=drawn,
        drawn_below=drawn_below,
        momenta=mx.where(stop, next_momentum, momenta),
        momenta_below=mx.where(anew, 0.0, momenta_below),
        log_weight=mx.where(stop, 0.0, log_weight),
        log_weight_below=mx.where(anew, -math.inf, log_weight_below),
        checkpoints=checkpoints,
        direction=direction,
        leaf=mx.where(anew, 0, state.leaf + 1),
        depth=mx.where(stop, 0, depth),
        energy=mx.where(stop, metric.kinetic(next_momentum) - log_prob, state.energy),
        accept=mx.where(stop, 0.0, accept),
        steps=mx.where(stop, 0.0, steps),
    )
    stats = {
        "accept": accept / steps,
        "energy": drawn[:, -1:],
        "diverging": diverging,
        "n_leapfrog": steps,
        "tree_depth": mx.where(full, depth, depth + 1),
    }
    return new, Info(stop, drawn[:, :-1], stats)


def _direction(uniform: mx.array) -> mx.array:
    return mx.where(uniform < 0.5, -1.0, 1.0)


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
