"""Weighted particles: the result of importance sampling."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.address import normalise
from genmlx.choicemap import ChoiceMap, show_value
from genmlx.display import mimebundle, pretty
from genmlx.errors import UsageError, show_addresses
from genmlx.gfi import Call
from genmlx.inference.problem import positive_count
from genmlx.inference.resampling import effective_size, host_weights, normalised, resample
from genmlx.masked import Masked, value_of
from genmlx.random import as_key
from genmlx.vectorized import VectorizedTrace


class Particles:
    """``n`` traces with log weights ``[n]``, and ``log_ml``, the log of the estimated marginal likelihood.

    exp(log_ml) is an unbiased estimate: the mean of the weights. ``execution`` says how they were made: by the
    ``handlers``, ``replayed`` as recorded graphs, or as ``native`` code.
    """

    algorithm = "importance_sampling"

    def __init__(
        self,
        traces: VectorizedTrace,
        log_weights: mx.array,
        log_ml: mx.array,
        call: Call,
        observations: ChoiceMap,
        status: str = "complete",
        timing: dict | None = None,
        execution: str = "handlers",
    ):
        self.traces, self.log_weights, self.log_ml = traces, log_weights, log_ml
        self.call, self.observations, self.status, self.timing = call, observations, status, timing or {}
        self.execution = execution

    @property
    def n(self) -> int:
        return self.traces.n

    def __len__(self) -> int:
        return self.traces.n

    @property
    def weights(self) -> mx.array:
        """Normalised weights, ``[n]``."""
        return normalised(self.log_weights)

    @property
    def ess(self) -> mx.array:
        """Kish's effective sample size, between 1 and n."""
        return effective_size(self.log_weights)

    @property
    def khat(self) -> float:
        """The Pareto shape of the weights' tail (Vehtari et al. 2024): above 0.7 no mean of theirs is to be trusted."""
        from genmlx.diagnostics import psis

        return float(psis(self.log_weights)[1])

    @property
    def log_ml_error(self) -> float:
        """The standard error of ``log_ml``: that of the mean weight, relative to it; NaN for one particle."""
        weights = host_weights(self.log_weights)
        n = len(weights)
        return math.nan if n == 1 else math.sqrt(max(0.0, n * float(weights @ weights) - 1.0) / (n - 1))

    def __getitem__(self, address: Any) -> Any:
        """The values at an address, ``[n, *event]``, unweighted; ``Masked`` where only some particles have it."""
        return self.traces.choices[address]

    def addresses(self) -> list[tuple]:
        """The latent addresses."""
        return [a for a in self.traces.choices.addresses() if a not in self.observations]

    def mean(self, address: Any) -> mx.array:
        """The weighted mean at an address, ``[*event]``, over the particles that have it."""
        return mx.array(self._moments(address)[0])

    def variance(self, address: Any) -> mx.array:
        """The weighted variance at an address, ``[*event]``, over the particles that have it."""
        return mx.array(self._moments(address)[1])

    def std(self, address: Any) -> mx.array:
        """The weighted standard deviation at an address, ``[*event]``, over the particles that have it."""
        return mx.sqrt(self.variance(address))

    def _moments(self, address: Any) -> tuple[Any, Any]:
        """Mean and variance, summed in float64 (see ``resampling``)."""
        import numpy as np

        leaf, log_weights = self[address], self.log_weights
        if isinstance(leaf, ChoiceMap):
            raise UsageError(
                "a sub-map of choices has no statistics",
                address=normalise(address),
                expected=f"one of {show_addresses(self.addresses())}",
            )
        if isinstance(leaf, Masked):
            log_weights = mx.where(leaf.active, log_weights, -math.inf)
        weights, values = host_weights(log_weights), np.array(value_of(leaf), dtype=np.float64)
        mean = np.tensordot(weights, values, axes=1)
        variance = np.tensordot(weights, (values - mean) ** 2, axes=1)
        return np.asarray(mean, dtype=np.float32), np.asarray(variance, dtype=np.float32)

    def resample(self, n: int | None = None, key: Any = None, scheme: str = "systematic") -> Particles:
        """``n`` particles of equal weight (by default as many as there are); ``log_ml`` stays what it was."""
        n = positive_count("n", self.n if n is None else n)
        kept = self.traces.take(resample(self.log_weights, n, as_key(key), scheme))
        weights = mx.zeros((n,))
        shared = (self.log_ml, self.call, self.observations, self.status, self.timing, self.execution)
        return Particles(kept, weights, *shared)

    def to_posterior(self, draws: int | None = None, key: Any = None) -> Any:
        """A ``Posterior`` of one chain: ``draws`` particles drawn by their weights."""
        from genmlx.inference.posterior import Posterior

        equal = self.resample(draws, key)
        leaves = {a: equal[a] for a in self.addresses()}
        return Posterior(
            {a: value_of(leaf)[None] for a, leaf in leaves.items()},
            present={a: leaf.active[None] for a, leaf in leaves.items() if isinstance(leaf, Masked)},
            stats={},
            log_joint=equal.traces.score[None],
            call=self.call,
            pins=equal.traces.pins,
            observations=self.observations,
            algorithm=self.algorithm,
            status=self.status,
            timing=self.timing,
        )

    _repr_mimebundle_, _repr_pretty_ = mimebundle, pretty

    def __repr__(self) -> str:
        name = getattr(self.call.gen_fn, "__name__", "")
        partial = "" if self.status == "complete" else f", {self.status}"
        return (
            f"<Particles of {name}: {self.n}, ess {show_value(self.ess)}, "
            f"log_ml {show_value(self.log_ml)}{partial}>"
        )
