"""Where gradient algorithms start: points of finite log density, or an error that shows what is impossible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import show_value
from genmlx.errors import GenError, show_address
from genmlx.inference.problem import positive_count
from genmlx.selection import select
from genmlx.vectorized import run, vgenerate

_TRIES = 10
_ROWS = 12


class NoStartingPoint(GenError, ValueError):
    """No point was found where the log density and its gradient are finite."""


def starting_points(density: Any, key: Any, n: int) -> mx.array:
    positive_count("n", n)
    keys = random.split(random.as_key(key), 2 * _TRIES)
    u, good, tried = mx.zeros((n, density.dim)), mx.zeros((n,), dtype=mx.bool_), 0
    for candidate in _candidates(density, keys, n):
        value, gradient = density.value_and_grad(candidate)
        finite = mx.logical_and(mx.isfinite(value), mx.all(mx.isfinite(gradient), axis=-1))
        u = mx.where(good[:, None], u, candidate)
        good = mx.logical_or(good, finite)
        tried += n
        if mx.all(good).item():
            return u
    raise _impossible(density, u[mx.argmin(good)], tried)


def _candidates(density: Any, keys: list, n: int) -> Iterator[mx.array]:
    drawn = []
    for key in keys[:_TRIES]:
        drawn.append(prior_draws(density, n, key))
        yield drawn[-1]
    for key in keys[_TRIES:]:
        yield mx.random.uniform(-2.0, 2.0, (n, density.dim), key=key)
    ordered = mx.sort(mx.concatenate(drawn), axis=0)
    yield mx.broadcast_to(ordered[ordered.shape[0] // 2], (n, density.dim))
    yield mx.zeros((n, density.dim))


def prior_draws(density: Any, n: int, key: Any) -> mx.array:
    """The coordinates of latents drawn forward, [n, dim]; not finite where a draw is on the edge of its support."""
    trace = vgenerate(density.call, density.observations, n, key).trace
    return run(density._coordinates, n, None, trace.choices.filter(density._latent))


def _impossible(density: Any, u: mx.array, tried: int) -> NoStartingPoint:
    """The error for the last point tried: the sites, those without a finite log probability first."""
    trace = density.trace(u)
    rows = [(a, show_value(value), trace.project(select(a)).item()) for a, value in trace.choices.items()]
    rows.sort(key=lambda row: (math.isfinite(row[2]), row[2] if math.isfinite(row[2]) else 0.0))
    address, value, log_prob = rows[0]
    if math.isfinite(log_prob):
        _, gradient = density.value_and_grad(u)
        bad = [a for a, share in density.addresses.items() if not mx.all(mx.isfinite(gradient[share])).item()]
        address = bad[0] if bad else address
        what = "the gradient of the log density is not finite"
    else:
        what = f"the value {value} has log probability {log_prob:g}"
    return NoStartingPoint(
        f"no starting point: {what}",
        address=address,
        gen_fn=density.call.gen_fn,
        expected=f"a finite log density and gradient at one of the {tried} points tried: "
        "prior draws, uniform(-2, 2), the prior's median, zero",
        hint=f"correct the observation or its distribution; at the last point\n{_table(rows)}",
    )


def _table(rows: list[tuple]) -> str:
    cells = [("address", "value", "log prob")]
    cells += [(show_address(a), value, f"{log_prob:.6g}") for a, value, log_prob in rows[:_ROWS]]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    lines = [f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}" for row in cells]
    if len(rows) > _ROWS:
        lines.append(f"  ... {len(rows) - _ROWS} more")
    return "\n".join(lines)
