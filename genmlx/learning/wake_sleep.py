"""Wake-sleep: a model and its guide learn from each other (Hinton, Dayan, Frey and Neal 1995).

Awake, the guide looks at data and the model learns to explain what the guide sees there; asleep, the model dreams and
the guide learns to see what was dreamt. Both move parameters: what is drawn is held fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.errors import UsageError
from genmlx.gfi import Call, checked_choices
from genmlx.inference.problem import checked_problem, positive_count
from genmlx.learning.rows import checked_call, log_densities, stacked_rows
from genmlx.learning.train import Trained, train
from genmlx.params import constant
from genmlx.pytree import map_arrays
from genmlx.vectorized import run

Guide = Callable[[ChoiceMap], Call]


def lecture(call: Call, guide: Guide, samples: int = 100, key: Any = None) -> mx.array:
    """The mean log density that the guide gives to the latents of ``samples`` simulated runs of ``call``.

    ``guide(choices)`` is the guide's call for the choices of one run, of which it takes what it looks at, as
    ``lambda c: encoder(c["x"])``. Its choices are a part of that run's. An objective for :func:`train`: its gradient in
    the guide's parameters is unbiased for that of E_p[log q(latents; data)], at whose maximum the guide is the
    posterior, or what is closest to all posteriors (in mean KL(p | q)). The model's parameters get no gradient.
    It is Gen's ``lecture!``, and the sleep phase of wake-sleep.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, param, trace
    >>> @gen
    ... def model():
    ...     trace("x", normal(trace("z", normal(0.0, 1.0)) + 2.0, 0.3))
    >>> @gen
    ... def guide(x):
    ...     trace("z", normal(x + param("shift", 0.0), mx.exp(param("log_sd", 0.0))))
    >>> result = train(lambda key: lecture(model(), lambda c: guide(c["x"]), key=key), iterations=500, key=1)
    >>> [round(guide.params[name].item(), 1) for name in ("shift", "log_sd")]     # -2 and log 0.3
    [-2.0, -1.2]
    """
    checked_problem(call, None)
    n, key = positive_count("samples", samples), random.as_key(key)
    dreams = constant(lambda: call.vsimulate(n, key).choices)
    return mx.mean(log_densities(guide, dreams, n))


def wake(call: Call, rows: Any, guide: Guide, samples: int = 1, key: Any = None) -> mx.array:
    """The summed mean of log p(latents, observations) over draws of the guide, for rows of independent observations.

    ``rows`` is a dict or choice map whose values have the rows first: the model describes one row. The guide sees the
    observations of one row, ``guide(choices)``, and draws all latents ``samples`` times. The gradient in the model's
    parameters is unbiased for that of the sum of E_q[log p(latents, observations)]; the guide's get none.
    """
    checked_problem(call, None)
    observations, n = stacked_rows(rows)
    m, key = positive_count("samples", samples), random.as_key(key)
    if m > 1:
        repeated = map_arrays(lambda array: mx.repeat(array, m, axis=0), ChoiceMap(observations._root))
        observations = ChoiceMap(repeated._root, n * m)

    def seen(key: Any, own: ChoiceMap) -> ChoiceMap:
        made = checked_call(guide, own)
        latents = made.gen_fn._simulate(made.args, key).choices
        for address in latents:
            if address in own:
                raise UsageError("the guide draws an observed choice", address=address, gen_fn=made.gen_fn)
        return own.merge(latents)

    complete = constant(lambda: run(seen, n * m, key, observations))
    return mx.sum(log_densities(lambda own: call, complete, n * m, exactly=True)) / m


def wake_sleep(
    call: Call,
    data: Any,
    guide: Guide,
    *,
    batch_size: int | None = None,
    samples: int = 1,
    dreams: int = 100,
    **settings: Any,
) -> Trained:
    """Learn a model and its guide together, by alternating what :func:`wake` and :func:`lecture` ask for.

    ``data`` is a dict whose values have the rows first, each an independent run of ``call``. In each step the model's
    parameters follow ``wake`` on a batch of rows with ``samples`` draws of the guide for each, and the guide's follow
    ``lecture`` on ``dreams`` simulated runs: two gradients at once, since neither depends on the other's step.
    ``settings`` are those of :func:`train`; the result has the two as ``terms``. Their sum is no bound of anything, and
    its rise is no measure of progress: the two phases have different objectives.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, param, trace
    >>> @gen
    ... def decoder():
    ...     trace("x", normal(trace("z", normal(param("theta", 0.0), 1.0)), 1.0))
    >>> @gen
    ... def encoder(x):
    ...     trace("z", normal(param("a", 0.0) * x + param("b", 0.0), 0.5 ** 0.5))
    >>> xs = mx.array([1.0, 2.0, 3.0, 6.0])
    >>> result = wake_sleep(decoder(), {"x": xs}, lambda c: encoder(c["x"]), samples=25, iterations=1500, key=1)
    >>> abs(decoder.params["theta"].item() - 3.0) < 0.1  # the mean of the data
    True
    """
    checked_problem(call, None)
    positive_count("samples", samples)
    positive_count("dreams", dreams)
    observations = checked_choices(data).to_dict()

    def both(rows: dict, scale: float, key: Any) -> dict[str, mx.array]:
        awake, asleep = random.split(key)
        return {
            "wake": scale * wake(call, rows, guide, samples, awake),
            "sleep": lecture(call, guide, dreams, asleep),
        }

    return train(both, (observations,), batch_size=batch_size, **settings)
