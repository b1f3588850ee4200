"""Particles that begin in strata: parts of the space of choices, each of which gets its share for certain."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mlx.core as mx
import optree

from genmlx import random
from genmlx.choicemap import ChoiceMap, _equal
from genmlx.diff import same
from genmlx.errors import UsageError
from genmlx.gfi import Call
from genmlx.inference.importance import weighted
from genmlx.inference.problem import positive_count
from genmlx.pytree import NAMESPACE
from genmlx.vectorized import VectorizedTrace, concatenate


def stratified(
    call: Call, observations: ChoiceMap, strata: list[ChoiceMap], proposal: Call | None, n: int, key: Any
) -> tuple[VectorizedTrace, mx.array]:
    """``n`` weighted traces, as many in each stratum as in any other, or one more; their weights account for that."""
    if not strata:
        raise UsageError("strata is empty", expected="choice maps")
    positive_count("particles", n, len(strata))
    for stratum in strata:
        for address in stratum:
            if address in observations:
                raise UsageError("a stratum has an observed choice", address=address, gen_fn=call.gen_fn)
    for i, j in itertools.combinations(range(len(strata)), 2):
        shared = {a: value for a, value in strata[i].items() if a in strata[j]}
        if all(same_values(value, strata[j][a]) for a, value in shared.items()):
            raise UsageError(f"strata {i} and {j} do not exclude each other", expected="a choice in which they differ")
    parts = []
    for i, (stratum, own) in enumerate(zip(strata, random.split(key, len(strata) + 1), strict=False)):
        count = n // len(strata) + (i < n % len(strata))
        traces, log_weights = weighted(call, observations.merge(stratum), proposal, count, own)
        parts.append((traces, log_weights + math.log(n / count)))
    return concatenate([traces for traces, _ in parts]), mx.concatenate([weights for _, weights in parts])


def same_values(a: Any, b: Any) -> bool:
    """Whether two trees are equal, arrays by their values."""
    if same(a, b):
        return True
    (left, form), (right, other) = (optree.tree_flatten(tree, namespace=NAMESPACE) for tree in (a, b))
    return form == other and all(map(_equal, left, right))
