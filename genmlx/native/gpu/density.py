"""The chains of a sampler on a GPU, for the density of a model; see ``genmlx/native/density.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from genmlx.native.gpu.launch import device
from genmlx.native.graph import Untranslatable

_STATEMENT, _FULL = 2e-9, 32_768
"""Seconds of a thread for a statement of the density, while there are no more threads than a GPU has room for."""
_PRIMITIVE, _STEP, _BATCHED = 5e-6, 100, 2.5e-13
"""Seconds that MLX needs for a primitive, of which a leapfrog step has so many; and for a statement of each chain."""


def pays(statements: int, primitives: int, chains: int) -> bool:
    """Whether a thread for each chain is quicker than MLX's batches: of eight schools always, of long data if chains
    are many. Measured on an NVIDIA H200 by eight schools, a logistic regression, radon and a mixture; elsewhere it
    is a guess.

    >>> pays(1560, 180, 4), pays(5_000_000, 100, 4), pays(5_000_000, 100, 20_000)
    (True, False, True)
    """
    threads = _STATEMENT * statements * max(1.0, chains / _FULL)
    return threads < _PRIMITIVE * (primitives + _STEP) + _BATCHED * statements * chains


def device_walk(
    method: str,
    density: Any,
    start: mx.array,
    dense: bool,
    settings: Mapping[str, Any],
    gradients: bool,
    precision: str | None = None,
    *,
    required: bool,
) -> Any:
    """A ``DeviceWalk`` on a ``LogDensity``; Untranslatable where it has no text, or does not pay and need not be."""
    own = device()
    if precision == "float64":
        raise Untranslatable("float64 on a GPU")
    from genmlx.native.gpu.chains import DeviceWalk
    from genmlx.native.gpu.text import density_text

    f, parameters = density.of_one(gradients)
    text = density_text(f, density.dim, parameters, own.dialect.private)
    if not required and not pays(text.statements, text.primitives, len(start)):
        raise Untranslatable(f"{len(start):,} chains on a GPU, few for {text.statements:,} statements on each thread")
    return DeviceWalk(method, text, np.array(start), dense, settings, gradients, own)
