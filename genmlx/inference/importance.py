"""Importance sampling: particles from the prior, or from a proposal, weighted by what they leave out.

See Robert and Casella, Monte Carlo Statistical Methods (2004), chapter 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.errors import UsageError
from genmlx.gfi import Call, gen_errors
from genmlx.inference.loop import Loop
from genmlx.inference.particles import Particles
from genmlx.inference.problem import checked_problem, impossible, no_density, positive_count
from genmlx.inference.resampling import log_mean
from genmlx.kept import execution, kept
from genmlx.vectorized import VectorizedTrace, concatenate, run, vgenerate
from genmlx.versions import pinned

# Particles in one evaluation: enough to spend the time in arithmetic, few enough to bound memory and Ctrl-C.
_BLOCK = 50_000
_MANY = 1_000_000


def importance_sampling(
    call: Call,
    observations: Any = None,
    particles: int = 1000,
    proposal: Call | None = None,
    key: Any = None,
    progress: Callable | None = None,
    native: bool | None = None,
) -> Particles:
    """``particles`` weighted traces that agree with the observations.

    ``proposal`` is a call whose choices are the latents it names; the other latents come from the prior.
    weight = log p(t; x) - log q(latents). Raises when every weight is zero, naming the observation at fault.

    ``native`` is whether batches are machine code, by default where a million particles or more make up for its
    compilation; True raises where that cannot be. The result's ``execution`` says what they were.

    >>> import mlx.core as mx
    >>> from genmlx import gen, trace, normal
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("mu", normal(0, 1)), 0.5))
    >>> result = importance_sampling(model(), {"y": 1.5}, particles=10_000, key=mx.random.key(0))
    >>> abs(result.mean("mu").item() - 1.2) < 0.03, abs(result.log_ml.item() + 1.930510) < 0.03
    (True, True)
    """
    import numpy as np

    observations = checked_problem(call, observations)
    positive_count("particles", particles)
    streams = random.streams(key)
    n_blocks = math.ceil(particles / _BLOCK)
    keys = random.split(streams.initialise, n_blocks)
    parts: list[tuple[VectorizedTrace, mx.array]] = []
    log_total = -math.inf  # of the weights, in float64

    def block(start: int, stop: int) -> dict:
        nonlocal log_total
        for i in range(start, stop):
            n = min(_BLOCK, particles - i * _BLOCK)
            trace, weight = weighted(call, observations, proposal, n, keys[i])
            mx.eval(weight, trace.score, [v for address, v in trace.choices.items() if address not in observations])
            if not np.all(np.array(weight) < math.inf):
                raise no_density(call, trace, weight)
            parts.append((trace, weight))
            log_total = float(np.logaddexp(log_total, log_mean(weight) + math.log(n)))
        return {"log_ml": log_total - math.log(sum(trace.n for trace, _ in parts))}

    running = execution(native, particles >= _MANY)
    with pinned(), gen_errors(call.gen_fn), Loop("importance_sampling", progress) as loop, running as how:
        loop.run("sampling", n_blocks, block)
        traces = concatenate([trace for trace, _ in parts])
        log_weights = mx.concatenate([weight for _, weight in parts]) if len(parts) > 1 else parts[0][1]
        if log_total == -math.inf:
            raise impossible(call, traces, observations)
        log_ml = mx.array(log_total - math.log(traces.n))
    result = Particles(traces, log_weights, log_ml, call, observations, loop.status, loop.timing, how.found)
    return loop.deliver(result)


def importance_resampling(
    call: Call,
    observations: Any = None,
    samples: int = 100,
    particles: int = 1000,
    proposal: Call | None = None,
    key: Any = None,
    progress: Callable | None = None,
    native: bool | None = None,
) -> Particles:
    """``samples`` equally weighted traces, resampled (systematically) from ``particles`` weighted ones."""
    positive_count("samples", samples)
    streams = random.streams(key)
    weighted = importance_sampling(call, observations, particles, proposal, streams.initialise, progress, native)
    return weighted.resample(samples, streams.resample)


def weighted(
    call: Call, observations: ChoiceMap, proposal: Call | None, n: int, key: Any
) -> tuple[VectorizedTrace, mx.array]:
    """``n`` traces from the prior or the proposal, and their log weights."""
    if proposal is None:
        return vgenerate(call, observations, n, key)
    if not isinstance(proposal, Call):
        raise UsageError("the proposal is not a call", expected="a generative function applied to its arguments")
    proposing = proposal.gen_fn

    def batch(key: Any, args: tuple) -> Any:
        def lane(key: Any) -> Any:
            trace = proposing._simulate(args, key)
            return trace.choices, trace.score

        return run(lane, n, key)

    propose_key, generate_key = random.split(key)
    choices, score = kept(("propose", n), (proposing,), batch, propose_key, proposing.own(proposal))
    for address in choices:
        if address in observations:
            raise UsageError("the proposal proposes an observed choice", address=address, gen_fn=proposal.gen_fn)
    trace, weight = vgenerate(call, observations.merge(choices), n, generate_key)
    return trace, weight - score
