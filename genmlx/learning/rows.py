"""Rows of independent observations: a model of one row, run for all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.errors import UsageError
from genmlx.gfi import Call, checked_choices
from genmlx.learning.batches import Batches
from genmlx.vectorized import Lanes, run


def over_rows(f: Callable[[Any, Any], mx.array], rows: Any, key: Any = None) -> mx.array:
    """``f(row, key)`` of every row, ``[rows, ...]``, where ``rows`` is a tree of arrays with the rows first.

    >>> import mlx.core as mx
    >>> over_rows(lambda row, key: row["x"] ** 2, {"x": mx.array([1.0, 3.0])}).tolist()
    [1.0, 9.0]
    """
    batch = Batches(rows, None, None)
    return run(lambda key, row: f(row, key), batch.rows, random.as_key(key), Lanes(batch.data))


def stacked_rows(rows: Any) -> tuple[ChoiceMap, int]:
    """The observations of ``n`` rows as a choice map of as many lanes."""
    observations = checked_choices(rows)
    if observations.is_empty or observations.is_leaf:
        raise UsageError("no rows of observations", expected="a dict whose values have the rows first")
    n = Batches(observations.to_dict(), None, None).rows
    return ChoiceMap(observations._root, n), n


def checked_call(guide: Callable[[ChoiceMap], Call], choices: ChoiceMap) -> Call:
    """The guide's call for these choices."""
    call = guide(choices)
    if not isinstance(call, Call):
        raise UsageError(
            f"the guide gave {call!r:.60}",
            expected="a function from choices to a call",
            hint="lambda choices: encoder(choices['x'])",
        )
    return call


def log_densities(call_of: Callable[[ChoiceMap], Call], choices: ChoiceMap, n: int, exactly: bool = False) -> mx.array:
    """The log density that the call for each row's choices gives to them, ``[n]``.

    It makes some of these choices; with ``exactly`` all of them.
    """

    def lane(key: Any, own: ChoiceMap) -> mx.array:
        call = checked_call(call_of, own)
        # Without a key nothing can be sampled: an address that is not given raises MissingChoice.
        trace, _ = call.gen_fn._generate(call.args, own, None)
        if exactly:
            call.gen_fn.require_visited(trace, own)
        return trace.score

    return run(lane, n, None, choices)
