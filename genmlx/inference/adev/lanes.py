"""One lane: a run of a generative function under a plan, in all of its rows, and what its cost contributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.backend.mapping import vmap_list
from genmlx.errors import UsageError
from genmlx.gfi import GenerativeFunction, as_weight
from genmlx.inference.adev.leaves import PerturbedTrace
from genmlx.inference.adev.sites import EstimatorError, Plan
from genmlx.inference.sites import site_at


class Rows(NamedTuple):
    """What the rows of a lane gave, with R = 1 + 2 D of them for D weak derivatives, and C combinations in each.

    ``outcomes`` are the numbers that were asked for and ``log_weight`` the log probability of the enumerated values,
    all ``[R, C]``; ``log_score`` is that of the values drawn by REINFORCE, ``[C]``; ``varied`` and ``scales`` are the
    parameters that weak derivatives are taken in, and their scales, ``[C, D]``.
    """

    outcomes: list[mx.array]
    log_weight: mx.array | None
    log_score: mx.array | None
    varied: mx.array
    scales: mx.array


def run_rows(plan: Plan, gen_fn: GenerativeFunction, args: tuple, outcomes: Callable[[Any], list], key: Any) -> Rows:
    """One lane; ``outcomes(trace)`` are numbers."""
    count = 0

    def row(*inputs: mx.array) -> list:
        nonlocal count
        trace, weight = gen_fn._generate(args, plan.choices(list(inputs)), key)
        found = [_number(x, gen_fn) for x in outcomes(trace)]
        count = len(found)
        if plan.enumerated:
            found.append(as_weight(weight))
        if plan.reinforced:
            found.append(as_weight(gen_fn._project(trace, plan.scored)))
        if plan.directions:
            measured = [_measured(trace, address, gen_fn) for address in plan.measured]
            found.append(mx.concatenate([m.varied.reshape(-1) for m in measured]))
            found.append(mx.concatenate([m.scales.reshape(-1) for m in measured]))
        return found

    inputs = plan.row_inputs()
    columns = vmap_list(row, *inputs) if plan.rows > 1 else [x[None] for x in row(*[i[0] for i in inputs])]
    c = plan.combinations
    table = [x.reshape(-1, c, *x.shape[1:]) for x in columns]
    own, rest = table[:count], iter(table[count:])
    weight = next(rest) if plan.enumerated else None
    score = next(rest)[0] if plan.reinforced else None
    varied, scales = (next(rest)[0], next(rest)[0]) if plan.directions else (mx.zeros((c, 0)), mx.zeros((c, 0)))
    return Rows(own, weight, score, varied, scales)


def _number(x: Any, gen_fn: Any) -> mx.array:
    x = x if isinstance(x, mx.array) else _as_number(x, gen_fn)
    if x.ndim:
        raise UsageError(
            f"the cost has shape {list(x.shape)}",
            gen_fn=gen_fn,
            expected="one number for one run",
            hint="cost=lambda tr: mx.sum(tr.retval)",
        )
    return x if mx.issubdtype(x.dtype, mx.floating) else x.astype(mx.float32)


def _as_number(x: Any, gen_fn: Any) -> mx.array:
    if isinstance(x, (bool, int, float)):
        return mx.array(float(x))
    raise UsageError(
        f"the cost is a {type(x).__name__}", gen_fn=gen_fn, expected="one number", hint="cost=lambda tr: tr['x']"
    )


def _measured(trace: Any, address: tuple, gen_fn: Any) -> PerturbedTrace:
    found = site_at(trace, address)
    if not isinstance(found, PerturbedTrace):
        raise EstimatorError(
            "a combinator hides the draw: the estimator 'measure_valued' is not possible",
            address=address,
            gen_fn=gen_fn,
            expected="another estimator, or a site outside of a switch",
        )
    return found


class Terms(NamedTuple):
    """What a lane contributes to an expectation: ``cost [C]`` for each combination, whose sum is the estimate; the
    ``log_score [C]`` that REINFORCE multiplies it by; and ``weak``, zero with the weak derivatives as its own."""

    cost: mx.array
    log_score: mx.array | None
    weak: mx.array


def weighed(plan: Plan, rows: Rows) -> Terms:
    """The terms of a cost that is the only outcome."""
    (cost,) = rows.outcomes
    if rows.log_weight is not None:
        weight = mx.exp(rows.log_weight)
        # What cannot happen may cost anything, an infinity too.
        cost = weight * mx.where(mx.logical_or(weight > 0, mx.abs(cost) < mx.inf), cost, 0.0)
    weak = mx.array(0.0)
    if plan.directions:
        gap = mx.transpose(cost[1::2] - cost[2::2])
        weak = mx.sum(derivative_only(rows.varied, rows.scales * gap))
    return Terms(cost[0], rows.log_score, weak)


def derivative_only(x: mx.array, slope: mx.array) -> mx.array:
    """Zero, whose derivative in ``x`` is ``slope``."""
    return mx.stop_gradient(slope) * (x - mx.stop_gradient(x))
