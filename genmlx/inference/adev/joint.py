"""Expectations of a function of several draws at once, as of an importance weighted bound, with derivatives.

The function h takes a few numbers of each of K independent draws. REINFORCE gives the k-th draw the credit
h - h(with its numbers put in the middle of the others'): a baseline that does not depend on it (Mnih and Rezende 2016,
"Variational inference for Monte Carlo objectives", where h is the log of a mean of weights, and the middle their
geometric mean).
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from genmlx.backend.mapping import vmap
from genmlx.inference.adev.lanes import derivative_only


def joint_surrogate(
    h: Callable[..., mx.array],
    numbers: list[mx.array],
    log_score: mx.array | None,
    varied: mx.array,
    scales: mx.array,
    baseline: mx.array | None,
) -> mx.array:
    """h, with the derivative of its expectation in what the draws are distributed by.

    ``numbers`` are ``[K, R]``, in the rows of ``lanes.Rows``, ``log_score`` is ``[K]``, ``varied`` and ``scales`` are
    ``[K, D]``. ``baseline`` is one number for all draws; None is the leave-one-out one.
    """
    nominal = [x[:, 0] for x in numbers]
    value, fixed = h(*nominal), [mx.stop_gradient(x) for x in nominal]
    total = value
    count = nominal[0].shape[0]
    if log_score is not None:
        known = h_without_each(h, fixed) if baseline is None else baseline
        total = total + mx.sum(derivative_only(log_score, value - known))
    if directions := varied.shape[1]:
        # One row for each draw and direction, in which the numbers of that draw are others.
        own = mx.repeat(mx.eye(count, dtype=mx.bool_), directions, axis=0)

        def at(rows: slice) -> mx.array:
            moved = [mx.stop_gradient(x[:, rows]).reshape(-1) for x in numbers]
            found = vmap(lambda own, *new: h(*[mx.where(own, n, x) for n, x in zip(new, fixed, strict=True)]))
            return found(own, *moved).reshape(count, directions)

        gap = at(slice(1, None, 2)) - at(slice(2, None, 2))
        total = total + mx.sum(derivative_only(varied, scales * gap))
    return total


def h_without_each(h: Callable[..., mx.array], numbers: list[mx.array]) -> mx.array:
    """h with the numbers of each draw in turn replaced by the means of the others', ``[K]``."""
    count = numbers[0].shape[0]
    own = mx.eye(count, dtype=mx.bool_)
    # Not a difference of sums: a number may be -inf.
    means = [mx.sum(mx.where(own, 0.0, x), axis=-1) / (count - 1) for x in numbers]
    found = vmap(lambda own, *new: h(*[mx.where(own, n, x) for n, x in zip(new, numbers, strict=True)]))
    return found(own, *means)
