"""The Jacobian determinant of a run of a transform, by differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx.backend.mapping import vmap
from genmlx.errors import BatchError, GenError, UsageError, show_address
from genmlx.gradients import host_value_errors

MODEL, AUX = "model", "aux"
Place = tuple[str, tuple]


class JacobianError(GenError, ValueError):
    """A transform reads more real values than it writes, or fewer: it is not one-to-one."""


def log_abs_det(f: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """log |det df/dx| of a function from vectors ``[n]`` to vectors ``[n]``; -inf where it is singular.

    It runs under a vmap over one lane, where a body that takes the host value of what is differentiated raises;
    under ``mx.vjp`` alone that value would become a constant without a word.

    >>> round(log_abs_det(lambda v: mx.stack([v[0] * v[1], v[1]]), mx.array([3.0, 2.0])).item(), 6)
    0.693147
    """

    def jacobian(x: mx.array) -> mx.array:
        basis = mx.eye(x.size, dtype=x.dtype)
        return mx.vmap(lambda cotangent: mx.vjp(f, [x], [cotangent])[1][0])(basis)

    matrix = vmap(jacobian)(x[None])[0]
    return _log_abs_det(matrix)


def _log_abs_det(matrix: mx.array) -> mx.array:
    """By Gaussian elimination, each time with the largest entry of a column: MLX 0.32.4 has no vmap of its LU."""
    total = mx.array(0.0, dtype=matrix.dtype)
    for n in range(matrix.shape[0], 0, -1):
        at = mx.argmax(mx.abs(matrix[:, 0]))
        row = matrix[at]
        total = total + mx.log(mx.abs(row[0]))
        rest = mx.where((mx.arange(n) == at)[:, None], matrix[:1], matrix)[1:]
        factors = rest[:, :1] / mx.where(row[0] == 0, 1.0, row[0])
        matrix = (rest - factors * row)[:, 1:]
    return total


def run_log_det(run: Any, inputs: list[Place]) -> mx.array:
    """log |det| of the derivative of the real values that ``run`` wrote in those that it read at ``inputs``.

    A value that is written as it was read only moves: its row and column, a one in a block-triangular matrix, go.
    """
    moved, outputs = {id(run.reads[p].value): p for p in inputs}, []
    for place, write in run.writes.items():
        if write.real and moved.pop(id(write.value), None) is None:
            outputs.append(place)
    inputs = list(moved.values())
    if _size(run.reads, inputs) != _size(run.writes, outputs):
        raise _not_square(run, inputs, outputs)
    if not inputs:
        return mx.array(0.0)

    def f(vector: mx.array) -> mx.array:
        again = run.again(_parts(run, inputs, vector))
        if again.writes.keys() != run.writes.keys():
            raise UsageError("the body does something else when it is run again", gen_fn=run.transform)
        return mx.concatenate([again.writes[p].value.reshape(-1).astype(vector.dtype) for p in outputs])

    try:
        with host_value_errors("differentiated"):
            return log_abs_det(f, mx.concatenate([run.reads[p].value.reshape(-1) for p in inputs]))
    except BatchError as error:
        raise _host_value(run, inputs, error) from None


def _size(table: dict, places: list[Place]) -> int:
    return sum(table[place].value.size for place in places)


def _parts(run: Any, places: list[Place], vector: mx.array) -> dict[Place, mx.array]:
    parts, start = {}, 0
    for place in places:
        like = run.reads[place].value
        parts[place] = vector[start : start + like.size].reshape(like.shape).astype(like.dtype)
        start += like.size
    return parts


def _not_square(run: Any, inputs: list[Place], outputs: list[Place]) -> JacobianError:
    place = (outputs or inputs)[-1]
    return JacobianError(
        f"the Jacobian is not square: {_size(run.reads, inputs)} real values read "
        f"and {_size(run.writes, outputs)} written,",
        address=place[1],
        gen_fn=run.transform,
        where=(run.writes if outputs else run.reads)[place].line,
        expected=f"as many written (now {_show(outputs)}) as read and not kept (now {_show(inputs)}), "
        "those left out that only move",
        hint="an auxiliary choice of a proposal for each that is missing; "
        "a floating value that is discrete is old.discrete[...] and new.discrete[...]",
    )


def _host_value(run: Any, inputs: list[Place], error: BatchError) -> BatchError:
    """The same error, naming the value that the body takes to the host: the one which alone makes it fail."""
    for place in inputs:

        def alone(vector: mx.array, place: Place = place) -> mx.array:
            run.again(_parts(run, [place], vector))
            return vector

        try:
            vmap(alone)(run.reads[place].value.reshape(1, -1))
        except ValueError:
            return BatchError(
                f"the transform takes the host value of a real choice of {run.sides[place[0]].name}: "
                "its derivative would be lost,",
                address=place[1],
                gen_fn=run.transform,
                where=error.where,
                expected="no if, float() or .item() on a real value, unless it only moves",
                hint="mx.where(condition, a, b); a floating value that is discrete is old.discrete[...]",
            )
    return error


def _show(places: list[Place]) -> str:
    shown = [show_address(a) if side == MODEL else f"aux {show_address(a)}" for side, a in places]
    return ", ".join(shown) or "none"
