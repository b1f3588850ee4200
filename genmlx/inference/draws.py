"""What chains visited: for each latent address ``[chains, draws, *event]``, and which draws have it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from genmlx.choicemap import ChoiceMap
from genmlx.errors import ValueMismatch
from genmlx.masked import active_of, value_of

Column = tuple[mx.array, mx.array]


class Draws:
    """Draws are added one by one, and evaluated and put together block by block."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict, Any, dict]] = []
        self.blocks: list[tuple[dict[tuple, Column], mx.array, dict]] = []

    def add(self, choices: ChoiceMap, score: Any, info: dict) -> None:
        """One draw of every chain: each leaf, the score, and each number of ``info`` have the chains first."""
        self.rows.append((choices.to_dict(), score, info))

    def close_block(self) -> None:
        """Evaluate what was added since the last block."""
        if not self.rows:
            return
        choices, scores, infos = zip(*self.rows, strict=True)
        values = {name: _stacked(name, [row.get(name) for row in choices]) for name in _names(choices)}
        stats = {name: _numbers([info.get(name) for info in infos]) for name in _names(infos)}
        self.blocks.append((values, mx.stack(list(scores), axis=1), stats))
        mx.eval(self.blocks[-1])
        self.rows = []

    def merge(self) -> tuple[dict[tuple, Column], mx.array, dict]:
        """All blocks as one."""
        if len(self.blocks) > 1:
            blocks, scores, stats = zip(*self.blocks, strict=True)
            values = {}
            for name in _names(blocks):
                like = next(block[name][0] for block in blocks if name in block)
                parts = []
                for block, score in zip(blocks, scores, strict=True):
                    absent = mx.zeros((*score.shape, *like.shape[2:]), dtype=like.dtype)
                    parts.append(block.get(name, (absent, mx.zeros(score.shape, dtype=mx.bool_))))
                has = mx.concatenate([mask for _, mask in parts], axis=1)
                values[name] = (_joined(name, [value for value, _ in parts], mx.concatenate), has)
            joined = {}
            for name in _names(stats):
                lacking = [mx.full(score.shape, math.nan) for score in scores]
                columns = [block.get(name, nan) for block, nan in zip(stats, lacking, strict=True)]
                joined[name] = mx.concatenate(columns, axis=1)
            self.blocks = [(values, mx.concatenate(list(scores), axis=1), joined)]
            mx.eval(self.blocks)
        return self.blocks[0]

    def state(self) -> dict | None:
        """What ``restore`` needs, for a checkpoint."""
        if not self.blocks:
            return None
        values, log_joint, stats = self.merge()
        return {
            "addresses": list(values),
            "values": [value for value, _ in values.values()],
            "has": [has for _, has in values.values()],
            "log_joint": log_joint,
            "stats": stats,
        }

    def restore(self, saved: dict | None) -> None:
        if saved is not None:
            columns = zip(saved["values"], saved["has"], strict=True)
            values = dict(zip(map(tuple, saved["addresses"]), columns, strict=True))
            self.blocks = [(values, saved["log_joint"], saved["stats"])]

    def some(self, most: int) -> mx.array:
        """The log joint density and at most ``most`` other numbers of each draw, ``[chains, draws, numbers]``.

        They are of addresses that all draws have, and spread over these.
        """
        values, log_joint, _ = self.merge()
        whole = [value for value, has in values.values() if mx.all(has).item()]
        chosen = spread(whole, most)
        columns = [log_joint]
        for value in chosen:
            elements = value.reshape(*log_joint.shape, -1)
            columns += [elements[:, :, i] for i in spread(range(elements.shape[2]), most // len(chosen))]
        return mx.stack([column.astype(mx.float32) for column in columns], axis=-1)

    def watched(self, most: int) -> dict[str, Any]:
        """At most so many numbers of each draw by name, ``[chains, draws]``, of addresses that all draws have."""
        values, _, _ = self.merge()
        return watched({name: value for name, (value, has) in values.items() if mx.all(has).item()}, most)

    def finish(self) -> tuple[dict, dict, mx.array, dict]:
        """Values, where they are present if not everywhere, the log joint density, and the statistics."""
        columns, log_joint, stats = self.merge()
        values, present = {}, {}
        for name, (value, has) in columns.items():
            if mx.any(has).item():
                values[name] = value
                if not mx.all(has).item():
                    present[name] = has
        return values, present, log_joint, stats


def watched(values: dict[tuple, mx.array], most: int) -> dict[str, Any]:
    """The first numbers of ``[chains, draws, *event]`` arrays as numpy, by address and index."""
    import numpy as np

    found: dict[str, Any] = {}
    for address, value in values.items():
        name = "/".join(map(str, address))
        array = np.array(value.astype(mx.float32))
        for index in np.ndindex(*array.shape[2:]):
            if len(found) == most:
                return found
            found[f"{name}[{','.join(map(str, index))}]" if index else name] = array[(slice(None), slice(None), *index)]
    return found


def spread(items: Sequence, most: int) -> Sequence:
    """At most so many of the items, at even distances."""
    return items[:: max(1, -(-len(items) // most))]


def _names(parts: Any) -> dict:
    return dict.fromkeys(name for part in parts for name in part)


def _numbers(column: list) -> mx.array:
    """One number of each draw; NaN for those that lack it."""
    like = next(value for value in column if value is not None)
    if any(value is None for value in column):
        column = [mx.full(like.shape, math.nan) if v is None else v.astype(mx.float32) for v in column]
    return mx.stack(column, axis=1)


def _stacked(name: tuple, column: list) -> Column:
    """The draws of one address in a block, and which draws have it; what the others hold says nothing."""
    like = next(value_of(leaf) for leaf in column if leaf is not None)
    filled = [mx.zeros_like(like) if leaf is None else value_of(leaf) for leaf in column]
    masks = [False if leaf is None else active_of(leaf) for leaf in column]
    masks = [mx.broadcast_to(mx.array(mask), like.shape[:1]) for mask in masks]
    return _joined(name, filled, mx.stack), mx.stack(masks, axis=1)


def _joined(name: tuple, arrays: list, join: Callable) -> mx.array:
    try:
        return join(arrays, axis=1)
    except ValueError:
        event = list(arrays[0].shape[1 if join is mx.stack else 2 :])
        raise ValueMismatch(
            "a choice has not the same shape in all draws",
            address=name,
            expected=f"the shape {event} of the first",
            hint="one address for each element, as ('y', 0), ('y', 1)",
        ) from None
