"""The result of variational inference: a guide, fitted to the posterior, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.address import normalise
from genmlx.choicemap import ChoiceMap
from genmlx.display import mimebundle, pretty
from genmlx.errors import UnknownAddress, name_of, nearest, show_addresses
from genmlx.gfi import Call
from genmlx.inference.particles import Particles
from genmlx.inference.problem import no_density, positive_count
from genmlx.masked import Masked, value_of

_DRAWS, _FEWER, _MANY = 4000, 1000, 10_000
"""Draws of the finished guide by which it is judged, and fewer where more than so many numbers are observed."""
_AT_ONCE = 10_000_000  # numbers that the draws of one evaluation observe


Judged = Callable[[int, Any], tuple[Mapping[tuple, Any], mx.array]]
"""``(n, key)`` to values ``[n, *event]`` by address and log weights ``[n]``: draws of which no trace is wanted."""


class Variational:
    """A guide q of the latents of ``call``, fitted to their posterior given the observations.

    ``params`` are the parameters of the guide by name, ``history`` the estimated objective at each step, ``[steps]``;
    ``converged`` says whether it had stopped to rise, ``status`` is ``complete`` or ``interrupted``, ``timing`` is in
    seconds.

    The finished guide is judged by 4,000 draws of its own, none of which it was fitted to, or by 1,000 where more than
    10,000 numbers are observed. ``log_ml_bound`` is their mean of log p(latents, observations) - log q(latents), with
    the standard error ``log_ml_bound_error``: its expected value is the log evidence less KL(q | posterior). ``khat``
    is the Pareto shape of the tail of the weights p / q: above 0.7 the guide misses a part of the posterior, and
    weights do not make up for it (Yao, Vehtari, Simpson and Gelman 2018, "Yes, but did it work?"). ``mean(a)`` and
    ``std(a)`` are of the guide, not weighted.
    """

    def __init__(
        self,
        call: Call,
        observations: ChoiceMap,
        draw: Callable[[int, Any], Particles],
        key: Any,
        *,
        params: Mapping[Any, Any],
        history: mx.array,
        algorithm: str = "vi",
        converged: bool = True,
        status: str = "complete",
        timing: Mapping[str, float] | None = None,
        moments: Mapping[tuple, tuple[mx.array, mx.array]] | None = None,
        judged: Judged | None = None,
    ):
        """``draw(n, key)`` gives ``n`` weighted draws of the guide; ``judged`` may give the same ones without traces.

        ``moments`` are the addresses whose mean and deviation are known; those of the others are of the draws.
        """
        self.call, self.observations, self._draw = call, observations, draw
        self.params, self.history, self.algorithm = dict(params), history, algorithm
        self.converged, self.status, self.timing = converged, status, dict(timing or {})
        from genmlx.diagnostics import psis

        self._values, log_weights = _fresh(draw, judged or _of_particles(draw), observations, key)
        self._moments = dict(moments or {})
        self.khat = float(psis(log_weights)[1])
        self.log_ml_bound, self.log_ml_bound_error = _bound(log_weights)

    def addresses(self) -> list[tuple]:
        """The latent addresses."""
        return list(self._values)

    def __getitem__(self, address: Any) -> mx.array:
        """The draws at an address that the guide was judged by, ``[draws that have it, *event]``; not weighted."""
        return mx.array(self._draws(normalise(address)).astype("float32"))

    def sample(self, n: int, key: Any = None) -> Particles:
        """``n`` traces drawn from the guide, with log weights log p(latents, observations) - log q(latents).

        Their weighted means correct those of the guide, where ``khat`` allows it; ``log_ml`` estimates the evidence.
        """
        return self._draw(positive_count("n", n), random.as_key(key))

    def mean(self, address: Any) -> mx.array:
        """The mean of the guide at an address, ``[*event]``, over the draws that have it."""
        return self._moments_of(address)[0]

    def std(self, address: Any) -> mx.array:
        """The standard deviation of the guide at an address, ``[*event]``, over the draws that have it."""
        return self._moments_of(address)[1]

    def _moments_of(self, address: Any) -> tuple[mx.array, mx.array]:
        address = normalise(address)
        if address not in self._moments:
            draws = self._draws(address)
            mean, std = draws.mean(axis=0), draws.std(axis=0, ddof=1)
            self._moments[address] = mx.array(mean.astype("float32")), mx.array(std.astype("float32"))
        return self._moments[address]

    def _draws(self, address: tuple) -> Any:
        if address not in self._values:
            raise UnknownAddress(
                "the guide has no such latent",
                address=address,
                suggestions=nearest(address, self._values),
                expected=f"one of {show_addresses(self._values)}",
            )
        return self._values[address]

    _repr_mimebundle_, _repr_pretty_ = mimebundle, pretty

    def __repr__(self) -> str:
        partial = "" if self.status == "complete" else f", {self.status}"
        unfinished = "" if self.converged or partial else ", not converged"
        return (
            f"<Variational of {name_of(self.call.gen_fn)}: bound {self.log_ml_bound:.6g} "
            f"(error {self.log_ml_bound_error:.2g}), k-hat {self.khat:.2f}{partial}{unfinished}>"
        )


def _bound(log_weights: Any) -> tuple[float, float]:
    """The mean, and its standard error; -inf and NaN where a draw is impossible."""
    if log_weights.min() == -math.inf:
        return -math.inf, math.nan
    return float(log_weights.mean()), float(log_weights.std(ddof=1) / math.sqrt(len(log_weights)))


def _fresh(draw: Callable, judged: Judged, observations: ChoiceMap, key: Any) -> tuple[dict[tuple, Any], Any]:
    """The values at each latent address, ``[draws that have it, *event]``, and the log weights, numpy and float64."""
    import numpy as np

    size = sum(math.prod(getattr(value_of(value), "shape", ())) for _, value in observations.items())
    total = _DRAWS if size <= _MANY else _FEWER
    at_once = next(n for n in (1000, 200, 50) if n * size <= _AT_ONCE or n == 50)
    values: dict[tuple, list] = {}
    log_weights = []
    for own in random.split(random.as_key(key), total // at_once):
        leaves, weights = judged(at_once, own)
        if not mx.all(weights < math.inf).item():
            same = draw(at_once, own)
            raise no_density(same.call, same.traces, same.log_weights)
        log_weights.append(np.array(weights, dtype=np.float64))
        for address, leaf in leaves.items():
            found = np.array(value_of(leaf), dtype=np.float64)
            values.setdefault(address, []).append(found[np.array(leaf.active)] if isinstance(leaf, Masked) else found)
    return {a: np.concatenate(parts) for a, parts in values.items()}, np.concatenate(log_weights)


def _of_particles(draw: Callable[[int, Any], Particles]) -> Judged:
    def judged(n: int, key: Any) -> tuple[dict[tuple, Any], mx.array]:
        particles = draw(n, key)
        return {address: particles[address] for address in particles.addresses()}, particles.log_weights

    return judged
