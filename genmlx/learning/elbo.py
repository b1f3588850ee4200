"""The evidence lower bound of an amortised guide: an objective for training a model and its guide on batches.

Kingma and Welling (2014), "Auto-encoding variational Bayes". The guide's draws are differentiated by the estimators of
``expectation``: through those that are reparameterised, by their scores or all their values otherwise.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.gfi import Call, checked_choices
from genmlx.inference.adev import expectation
from genmlx.inference.problem import checked_problem
from genmlx.trace import Trace


def elbo(
    call: Call, observations: Any, guide: Call, samples: int = 1, key: Any = None, estimator: Any = None
) -> mx.array:
    """E_q[log p(latents, observations) - log q(latents)] by ``samples`` draws of the guide.

    The choices of ``guide``, a call, are exactly the latents of ``call``. The parameters of both move: the
    gradient is unbiased in those of the model and of the guide. ``estimator`` says how sites are differentiated, as in
    ``expectation``; where one goes by its score there must be two samples.

    For a data set in batches, model and guide are of one batch: the guide then is amortised, as its parameters are
    those of a function of the data.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, param, trace
    >>> from genmlx.learning import train
    >>> @gen
    ... def model(n):
    ...     z = trace("z", normal(mx.broadcast_to(param("theta", 0.0), (n,)), 1.0))
    ...     trace("x", normal(z, 1.0))
    >>> @gen
    ... def guide(xs):
    ...     trace("z", normal(param("a", 0.0) * xs + param("b", 0.0), 0.5 ** 0.5))
    >>> xs = mx.array([1.0, 2.0, 3.0, 6.0])
    >>> def bound(xs, key):
    ...     return elbo(model(xs.shape[0]), {"x": xs}, guide(xs), key=key)
    >>> result = train(bound, xs, batch_size=2, iterations=1500, key=1)
    >>> abs(model.params["theta"].item() - 3.0) < 0.2, abs(guide.params["a"].item() - 0.5) < 0.1
    (True, True)
    """
    checked_problem(call, None)
    checked_problem(guide, None)
    observations = checked_choices(observations)

    def gap(trace: Trace) -> mx.array:
        return call.assess(observations.merge(trace.choices)).score - trace.score

    return expectation(guide, gap, estimator=estimator).estimate(samples, key)
