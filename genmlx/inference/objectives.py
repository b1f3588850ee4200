"""Objectives of variational inference: functions of the log densities of K draws of the guide, to be maximised."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.backend.special import logsumexp
from genmlx.errors import ParameterError, UsageError


class Objective(NamedTuple):
    """``of(log_p, log_q)`` is a number, of the log densities ``[K]`` of K draws of the guide: log p(z, x) and log q(z).

    ``learns`` says whose parameters it is differentiated in. A ``wake`` objective takes its draws as they are: its
    gradient does not go through the sampling of them. One that is ``each`` a mean over the draws may be estimated from
    each alone.
    """

    name: str
    of: Callable[[mx.array, mx.array], mx.array]
    learns: tuple[str, ...] = ("guide", "model")
    wake: bool = False
    each: bool = False


def elbo(log_p: mx.array, log_q: mx.array) -> mx.array:
    """The evidence lower bound: the mean of log p - log q."""
    return mx.mean(log_p - log_q)


def iwelbo(log_p: mx.array, log_q: mx.array) -> mx.array:
    """The log of the mean weight p / q (Burda, Grosse and Salakhutdinov 2016): a bound that K draws make tighter."""
    weights = log_p - log_q
    return logsumexp(weights, axis=-1) - math.log(weights.shape[-1])


def renyi(alpha: float) -> Objective:
    """Renyi's bound of order ``alpha``, log(mean weight^(1 - alpha)) / (1 - alpha) (Li and Turner 2016).

    The ELBO at alpha = 1, the IWELBO at 0; below 1 the guide covers more, above 1 less of the posterior.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ParameterError(f"alpha must be a finite number, got {alpha!r}")
    if alpha == 1:
        return OBJECTIVES["elbo"]
    scale = 1.0 - alpha

    def bound(log_p: mx.array, log_q: mx.array) -> mx.array:
        return iwelbo(scale * log_p, scale * log_q) / scale

    return Objective(f"renyi({alpha:g})", bound)


def _pwake(log_p: mx.array, log_q: mx.array) -> mx.array:
    return _weighed(log_p, log_q, log_p)


def _qwake(log_p: mx.array, log_q: mx.array) -> mx.array:
    return _weighed(log_p, log_q, log_q)


def _weighed(log_p: mx.array, log_q: mx.array, x: mx.array) -> mx.array:
    """The sum of ``x`` by the normalised weights p / q, which are constants; an impossible draw weighs nothing."""
    weights = mx.stop_gradient(log_p - log_q)
    shares = mx.exp(weights - logsumexp(weights, axis=-1))
    return mx.sum(shares * mx.where(shares > 0, x, 0.0))


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("elbo", elbo, each=True),
        Objective("iwelbo", iwelbo),
        Objective("vimco", iwelbo),
        Objective("pwake", _pwake, learns=("model",), wake=True),
        Objective("qwake", _qwake, learns=("guide",), wake=True),
    )
}


def read_objective(given: Any) -> Objective:
    """One by its name, one that was made, or a function of ``(log_p, log_q)``."""
    if isinstance(given, Objective):
        return given
    if given == "renyi":
        return renyi(0.5)
    if isinstance(given, str) and given in OBJECTIVES:
        return OBJECTIVES[given]
    if callable(given):
        function: Any = given
        return Objective(getattr(function, "__name__", "objective"), function)
    raise UsageError(
        f"no objective {given!r:.40}",
        expected=f"one of {', '.join(map(repr, [*OBJECTIVES, 'renyi']))}, renyi(alpha), or a function (log_p, log_q)",
    )
