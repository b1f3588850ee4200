"""Sums of many float32 numbers that keep their digits."""

from __future__ import annotations

import mlx.core as mx

_BLOCK = 128


def summed(x: mx.array, axes: int | None = None) -> mx.array:
    """The sum over the last ``axes`` axes, or over all: of sums of blocks of 128, so that errors grow with log n.

    MLX 0.32.4 adds float32 on the CPU one after the other: 1e5 log densities come out 4 nats off.

    >>> round(summed(mx.full((1000, 1000), 0.1)).item(), -1)
    100000.0
    """
    lead = () if axes is None else x.shape[: x.ndim - axes]
    if axes == 0 or x.ndim == 0:
        return x
    row = x.reshape((*lead, -1))
    while row.shape[-1] > _BLOCK:
        n = row.shape[-1]
        whole = n - n % _BLOCK
        blocks = mx.sum(row[..., :whole].reshape((*lead, whole // _BLOCK, _BLOCK)), axis=-1)
        row = mx.concatenate([blocks, row[..., whole:]], axis=-1) if whole < n else blocks
    return mx.sum(row, axis=-1)
