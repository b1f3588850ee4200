"""Maximum marginal likelihood: estimates of the log evidence whose gradient in the parameters can be followed.

Both rest on Fisher's identity, grad log p(y) = E[grad log p(x, y) | y]: the posterior mean of the score of complete
data (Cappe, Moulines and Ryden 2005, Inference in Hidden Markov Models, section 10.1). The posterior is that of
weighted particles, which are held fixed: so discrete latents are as good as others, and nothing is differentiated
through a resampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.gfi import Call
from genmlx.inference.importance import weighted
from genmlx.inference.problem import checked_problem, positive_count
from genmlx.inference.resampling import normalised
from genmlx.inference.smc import smc
from genmlx.learning.rows import log_densities
from genmlx.params import constant


def log_evidence(
    call: Call, observations: Any, particles: int = 100, proposal: Call | None = None, key: Any = None
) -> mx.array:
    """The log of the mean importance weight, with its gradient in the parameters of the model at fixed particles.

    An objective for :func:`train`. ``proposal`` is a call whose choices are the latents that it names, as in
    ``importance_sampling``; the other latents come from the prior.

    The gradient is the self-normalised estimate sum_k W_k grad log p(x_k, y) of Fisher's identity. For K particles and
    a proposal without the model's parameters it is unbiased for the gradient of E[log mean weight], a lower bound of
    the log evidence that is tighter the more particles there are; for the gradient of the log evidence its bias is
    O(1/K), as is that of the value. The proposal's parameters get no gradient.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, param, trace
    >>> from genmlx.learning import train
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("x", normal(param("mu", 0.0), 1.0)), 1.0))
    >>> result = train(lambda key: log_evidence(model(), {"y": 2.0}, 200, key=key), iterations=500, key=1)
    >>> abs(model.params["mu"].item() - 2.0) < 0.1
    True
    """
    observations = checked_problem(call, observations)
    n, key = positive_count("particles", particles), random.as_key(key)

    def drawn() -> tuple:
        traces, log_weights = weighted(call, observations, proposal, n, key)
        return traces.choices, traces.score - log_weights

    choices, log_q = constant(drawn)
    return mx.logsumexp(log_densities(lambda own: call, choices, n) - log_q) - math.log(n)


def smc_log_evidence(steps: Iterable[Any], particles: int = 100, key: Any = None, **settings: Any) -> mx.array:
    """The log evidence that sequential Monte Carlo estimates, with its gradient in the parameters of the model.

    An objective for :func:`train`; ``steps`` and ``settings`` are those of ``smc``. The gradient is the estimate
    sum_k W_k grad log p(x_k, y) of Fisher's identity on the final particles with their histories (path space). Its bias
    is O(1/K) for K particles, and its variance grows with the square of the number of steps, since early states come
    from ever fewer ancestors (Poyiadjis, Doucet and Singh 2011). exp of the value is unbiased for the evidence.
    """
    steps, key = list(steps), random.as_key(key)
    n = positive_count("particles", particles)

    def filtered() -> tuple:
        result = smc(steps, particles=n, key=key, **settings)
        return result.traces.choices, normalised(result.log_weights), result.log_ml

    choices, weights, log_ml = constant(filtered)
    call = steps[-1][0]
    scores = log_densities(lambda own: call, choices, n)
    moving = mx.where(weights > 0, scores - mx.stop_gradient(scores), 0.0)
    return log_ml + mx.sum(weights * moving)
