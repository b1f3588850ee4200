"""Hidden Markov models, exactly: filtering, smoothing, paths drawn from the posterior, and the most probable path.

Rabiner (1989); backward sampling is Scott's (2002). All of it is done on the host, in float64 and in logarithms, and
returned in float32: these are references, and have no derivatives.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.errors import ImpossibleObservation, ParameterError
from genmlx.inference.exact.results import doubles, one_line, single
from genmlx.inference.problem import positive_count
from genmlx.inference.resampling import _uniform
from genmlx.random import as_key

_OFF = 1e-5  # of a sum of probabilities in float32


class HMMFiltered(NamedTuple):
    """What is known of each state from the observations up to it.

    ``log_ml`` [] is the log probability of all observations, and ``increments`` [T] its parts, log p(y_t | y_1..t-1).
    ``filtered`` [T, K] are the probabilities of the states given y_1..t, ``predicted`` [T, K] given y_1..t-1. From the
    first step that is impossible after those before it, all are NaN, except that ``log_ml`` is -inf.
    """

    log_ml: mx.array
    increments: mx.array
    filtered: mx.array
    predicted: mx.array

    __repr__ = one_line


class HMMSmoothed(NamedTuple):
    """What is known of each state from all observations.

    ``marginals`` [T, K]: the probabilities of the states. ``pairwise`` [T-1, K, K]: of states i at step t and j at
    step t + 1.
    """

    log_ml: mx.array
    marginals: mx.array
    pairwise: mx.array

    __repr__ = one_line


class ViterbiPath(NamedTuple):
    """``states`` [T], the most probable path, and ``log_prob`` [], the log density of it and the observations."""

    states: mx.array
    log_prob: mx.array

    __repr__ = one_line


def hmm_forward(prior: Any, transition: Any, log_likelihood: Any) -> HMMFiltered:
    """The forward algorithm, for K states and T steps.

    - ``prior`` [K], the probabilities of the state at the first observation;
    - ``transition`` [K, K], whose row i holds the probabilities of the next state after state i, or [T-1, K, K], where
      entry t leads from step t to step t + 1;
    - ``log_likelihood`` [T, K], the log density of the observation at each step in each state. A step without an
      observation is a row of zeros.

    Further axes in front make independent models, and broadcast; a transition that differs between models but not in
    time is [..., 1, K, K]. Probabilities sum to one, but a row of a transition may be all zero: a state that nothing
    follows. An array of another shape, a NaN, or a row that does not sum to one raises ``ParameterError``.

    >>> likelihood = mx.array([[0.9, 0.3], [0.1, 0.7]])                # of the observations 1 and 0 in each state
    >>> result = hmm_forward([0.4, 0.6], [[0.5, 0.5], [0.2, 0.8]], mx.log(likelihood))
    >>> round(result.log_ml.item(), 6), result.filtered.shape
    (-1.392715, (2, 2))
    """
    import numpy as np

    chain = _Chain(prior, transition, log_likelihood)
    chain.forward()
    return HMMFiltered(
        single(chain.log_ml), single(chain.increments), single(np.exp(chain.filtered)), single(np.exp(chain.predicted))
    )


def hmm_smooth(prior: Any, transition: Any, log_likelihood: Any) -> HMMSmoothed:
    """The forward-backward algorithm. Arguments as for ``hmm_forward``; observations of probability zero raise."""
    import numpy as np

    chain = _Chain(prior, transition, log_likelihood)
    chain.forward()
    chain.require_possible()
    later = np.zeros((*chain.batch, chain.k))
    logs, pairs = [chain.filtered[..., -1, :]], []
    for t in reversed(range(chain.steps - 1)):
        ahead = chain.ll[..., t + 1, :] + later - chain.increments[..., t + 1, None]
        pairs.append(chain.filtered[..., t, :, None] + chain.transition[..., t, :, :] + ahead[..., None, :])
        later = _logsumexp(chain.transition[..., t, :, :] + ahead[..., None, :])
        logs.append(chain.filtered[..., t, :] + later)
    marginals = np.exp(np.stack(logs[::-1], axis=-2))
    pairwise = np.exp(np.stack(pairs[::-1], axis=-3)) if pairs else np.zeros((*chain.batch, 0, chain.k, chain.k))
    return HMMSmoothed(single(chain.log_ml), single(marginals), single(pairwise))


def hmm_sample(prior: Any, transition: Any, log_likelihood: Any, n: int, key: Any = None) -> mx.array:
    """``n`` independent paths from the posterior, [n, ..., T] int32, by backward sampling.

    Arguments as for ``hmm_forward``; observations of probability zero raise.
    """
    import numpy as np

    positive_count("n", n)
    chain = _Chain(prior, transition, log_likelihood)
    chain.forward()
    chain.require_possible()
    shape = (chain.steps, n, *chain.batch)
    points = _uniform(as_key(key), math.prod(shape)).reshape(shape)
    states = [_drawn(chain.filtered[..., -1, :], points[-1])]
    for t in reversed(range(chain.steps - 1)):
        into = np.swapaxes(chain.transition[..., t, :, :], -1, -2)[None]
        chosen = np.take_along_axis(into, states[-1][..., None, None], axis=-2)[..., 0, :]
        states.append(_drawn(chain.filtered[..., t, :] + chosen, points[t]))
    return mx.array(np.stack(states[::-1], axis=-1).astype(np.int32))


def hmm_viterbi(prior: Any, transition: Any, log_likelihood: Any) -> ViterbiPath:
    """Viterbi's algorithm (1967); of equally probable paths, that of the lowest states from the last step back.

    Arguments as for ``hmm_forward``; observations of probability zero raise.
    """
    import numpy as np

    chain = _Chain(prior, transition, log_likelihood)
    chain.forward()
    chain.require_possible()
    best, came_from = chain.prior + chain.ll[..., 0, :], []
    for t in range(chain.steps - 1):
        through = best[..., :, None] + chain.transition[..., t, :, :]
        came_from.append(np.argmax(through, axis=-2))
        best = np.max(through, axis=-2) + chain.ll[..., t + 1, :]
    states = [np.argmax(best, axis=-1)]
    for back in reversed(came_from):
        states.append(np.take_along_axis(back, states[-1][..., None], axis=-1)[..., 0])
    return ViterbiPath(mx.array(np.stack(states[::-1], axis=-1).astype(np.int32)), single(np.max(best, axis=-1)))


class _Chain:
    """The arrays, checked and in logarithms, and the forward pass over them."""

    def __init__(self, prior: Any, transition: Any, log_likelihood: Any):
        import numpy as np

        p, a, ll = doubles("prior", prior), doubles("transition", transition), doubles("log_likelihood", log_likelihood)
        if ll.ndim < 2 or 0 in ll.shape:
            raise _shape("log_likelihood", ll, "[T, K], with at least one step")
        self.steps, self.k = ll.shape[-2:]
        if p.ndim < 1 or p.shape[-1] != self.k:
            raise _shape("prior", p, f"[{self.k}]")
        if a.ndim < 2 or a.shape[-2:] != (self.k, self.k):
            raise _shape("transition", a, f"[{self.k}, {self.k}] or [{self.steps - 1}, {self.k}, {self.k}]")
        a = a[None] if a.ndim == 2 else a
        if a.shape[-3] not in (1, self.steps - 1):
            raise _shape("transition", a, f"{self.steps - 1} matrices for {self.steps} steps, or one")
        try:
            self.batch = np.broadcast_shapes(p.shape[:-1], a.shape[:-3], ll.shape[:-2])
        except ValueError:
            shapes = ", ".join(str(list(x.shape)) for x in (p, a, ll))
            raise ParameterError(f"the axes in front of prior, transition and log_likelihood: {shapes}") from None
        _require_probabilities("prior", p, empty=False)
        _require_probabilities("transition", a, empty=True)
        if bad := _first(np.isnan(ll) | (ll == math.inf)):
            raise ParameterError(
                f"log_likelihood{list(bad)} is {ll[bad]}",
                expected="log densities, of which -inf is one",
                hint="a row of zeros for a step without an observation",
            )
        self.ll = np.broadcast_to(ll, (*self.batch, self.steps, self.k))
        with np.errstate(divide="ignore"):
            self.prior = np.broadcast_to(np.log(p), (*self.batch, self.k))
            self.transition = np.broadcast_to(np.log(a), (*self.batch, self.steps - 1, self.k, self.k))

    def forward(self) -> None:
        import numpy as np

        predicted, filtered, increments = [self.prior], [], []
        with np.errstate(invalid="ignore"):
            for t in range(self.steps):
                joint = predicted[-1] + self.ll[..., t, :]
                increments.append(_logsumexp(joint))
                filtered.append(joint - increments[-1][..., None])
                if t < self.steps - 1:
                    into = np.swapaxes(self.transition[..., t, :, :], -1, -2)
                    predicted.append(_logsumexp(filtered[-1][..., None, :] + into))
        self.filtered, self.predicted = np.stack(filtered, axis=-2), np.stack(predicted, axis=-2)
        self.increments = np.stack(increments, axis=-1)
        total = np.sum(self.increments, axis=-1)
        self.log_ml = np.where(np.isnan(total), -math.inf, total)

    def require_possible(self) -> None:
        import numpy as np

        if at := _first(np.isneginf(self.increments)):
            model = f" of model {list(at[:-1])}" if at[:-1] else ""
            raise ImpossibleObservation(
                f"the observation at step {at[-1]}{model} has probability zero after those before it",
                expected="a path of the states with a positive probability at each step",
                hint="a look at the zeros of prior and transition, and at the -inf of log_likelihood",
            )


def _logsumexp(x: Any) -> Any:
    """Over the last axis; -inf for a row of -inf, NaN for one with a NaN."""
    import numpy as np

    top = np.max(x, axis=-1)
    anchor = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        return anchor + np.log(np.sum(np.exp(x - anchor[..., None]), axis=-1))


def _drawn(logs: Any, points: Any) -> Any:
    """States with these log weights [..., K], by inversion at points of [0, 1); never one of weight zero."""
    import numpy as np

    edges = np.cumsum(np.exp(logs - np.max(logs, axis=-1, keepdims=True)), axis=-1)
    points = np.minimum(points * edges[..., -1], np.nextafter(edges[..., -1], 0.0))
    return np.sum(edges <= points[..., None], axis=-1)


def _require_probabilities(name: str, x: Any, empty: bool) -> None:
    import numpy as np

    sums = np.sum(x, axis=-1)
    bad = np.any(~((x >= 0) & (x <= 1 + _OFF)), axis=-1) | ~(np.abs(sums - 1) <= _OFF)
    if empty:
        bad &= ~np.all(x == 0, axis=-1)
    if np.any(bad):
        at = _first(bad) or ()
        raise ParameterError(
            f"{name}{list(at) if at else ''} is no probability vector: it sums to {sums[at]:.6g}, and its least entry "
            f"is {np.min(x[at]):.6g}",
            expected="probabilities, not logarithms, that sum to one along the last axis",
            hint="mx.softmax(logits, axis=-1)",
        )


def _first(condition: Any) -> tuple | None:
    """The index of the first place where a condition holds."""
    import numpy as np

    found = np.argwhere(condition)
    return tuple(int(i) for i in found[0]) if len(found) else None


def _shape(name: str, x: Any, expected: str) -> ParameterError:
    return ParameterError(f"{name} has shape {list(x.shape)}", expected=expected)
