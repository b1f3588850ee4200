"""Steps of gradient samplers as kernels: with a fixed step size, for some continuous choices given all the others.

Each moves the choices in the unconstrained coordinates of their supports, where the density has the Jacobian of the
map, and keeps or rejects the whole move; each is its own reversal. A move that would change which other choices there
are is rejected. The samplers that adapt are ``hmc``, ``mala`` and
``random_walk``; with discrete choices, ``hmc_gibbs``. A no-U-turn trajectory has no fixed length: unrolled in a graph,
every lane would pay for the longest, so there is no kernel of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.values import as_array
from genmlx.errors import ParameterError, UsageError
from genmlx.inference.chains import accept
from genmlx.inference.conditional import Conditional
from genmlx.inference.hmc import DIVERGENT, JITTER
from genmlx.inference.kernels import ITSELF, Info, Kernel, selected
from genmlx.inference.leapfrog import Point, ValueAndGrad, evaluate, identity_metric, leapfrog
from genmlx.inference.mala import log_acceptance
from genmlx.inference.problem import positive_count
from genmlx.random import LaneKey
from genmlx.selection import as_selection
from genmlx.trace import Trace

Move = Callable[[ValueAndGrad, Point, Any], tuple[mx.array, mx.array, Info]]
"""``(density, point, key) -> (proposed position, log acceptance ratio, info)`` of one chain, each with one row."""


def hmc_kernel(selection: Any, step_size: float = 0.1, leapfrog_steps: int = 10) -> Kernel:
    """One trajectory of Hamiltonian Monte Carlo, ``kernel(trace, key) -> trace``, that moves the ``selection``.

    The mass is one in every unconstrained coordinate, and each trajectory has a step size within 20% of ``step_size``,
    so that no orbit closes on itself. It moves what it is told to, observed or not, all of which must be continuous;
    all other choices stay. It is its own reversal. Its infos are ``accept``, a probability, and ``diverging``.
    Duane et al. (1987).

    >>> import mlx.core as mx
    >>> from genmlx import exponential, gen, normal, trace
    >>> from genmlx.inference import run_kernel
    >>> @gen
    ... def model():
    ...     trace("y", normal(0, trace("scale", exponential(1.0))))
    >>> start, _ = model().vgenerate({"y": 1.0}, 50, key=mx.random.key(0))
    >>> post = run_kernel(hmc_kernel("scale", 0.4), start, draws=200, observations={"y": 1.0}, key=mx.random.key(1))
    >>> abs(post.mean("scale").item() - 1.303) < 0.1
    True
    """
    step_size = _positive("step_size", step_size)
    positive_count("leapfrog_steps", leapfrog_steps)

    def move(density: ValueAndGrad, start: Point, key: Any) -> tuple[mx.array, mx.array, Info]:
        momentum_key, jitter_key = random.split(key)
        metric = identity_metric(start.position.shape[-1])
        momentum = random.normal(momentum_key, start.position.shape)
        size = step_size * (1.0 + JITTER * (2.0 * random.uniform(jitter_key) - 1.0))
        energy, point = metric.kinetic(momentum) - start.log_prob, start
        for _ in range(leapfrog_steps):
            point, momentum = leapfrog(density, metric, point.position, point.gradient, momentum, size)
        lost = energy - (metric.kinetic(momentum) - point.log_prob)
        # NaN compares false: a trajectory that left the numbers is a divergence.
        diverging = mx.logical_not(lost > -DIVERGENT)
        return point.position, lost, {"diverging": diverging[0, 0]}

    return _kernel("hmc_kernel", selection, move)


def mala_kernel(selection: Any, step_size: float = 0.1) -> Kernel:
    """One Langevin proposal, ``kernel(trace, key) -> trace``, that moves the ``selection``.

    With step size e, x is proposed N(x + e^2/2 grad log p(x), e^2) in unconstrained coordinates. It moves what it is
    told to, observed or not, all of which must be continuous. It is its own reversal. Roberts and Tweedie (1996).

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, trace
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("mu", normal(0, 1)), 0.5))
    >>> tr, _ = model().generate({"y": 1.5}, key=mx.random.key(0))
    >>> new = mala_kernel("mu", 0.3)(tr, mx.random.key(1), check=True, observations={"y": 1.5})
    >>> new["mu"].item() != tr["mu"].item()
    True
    """
    step_size = _positive("step_size", step_size)

    def move(density: ValueAndGrad, old: Point, key: Any) -> tuple[mx.array, mx.array, Info]:
        noise = random.normal(key, old.position.shape)
        proposal = old.position + 0.5 * step_size**2 * old.gradient + step_size * noise
        new, metric = evaluate(density, proposal), identity_metric(old.position.shape[-1])
        return proposal, log_acceptance(old, new, step_size, metric), {}

    return _kernel("mala_kernel", selection, move)


def random_walk_kernel(selection: Any, scale: float = 0.1) -> Kernel:
    """One step of a Gaussian random walk, ``kernel(trace, key) -> trace``, that moves the ``selection``.

    ``scale`` is the standard deviation of the step in each unconstrained coordinate. It moves what it is told to,
    observed or not, all of which must be continuous. It is its own reversal. Metropolis et al. (1953).

    >>> import mlx.core as mx
    >>> from genmlx import beta, gen, flip, trace
    >>> @gen
    ... def model():
    ...     trace("y", flip(trace("p", beta(2, 2))))
    >>> tr, _ = model().generate({"y": 1}, key=mx.random.key(0))
    >>> 0 < random_walk_kernel("p", 2.0)(tr, mx.random.key(1))["p"].item() < 1
    True
    """
    scale = _positive("scale", scale)

    def move(density: ValueAndGrad, old: Point, key: Any) -> tuple[mx.array, mx.array, Info]:
        proposal = old.position + scale * random.normal(key, old.position.shape)
        return proposal, evaluate(density, proposal).log_prob - old.log_prob, {}

    return _kernel("random_walk_kernel", selection, move, gradients=False)


def _kernel(name: str, selection: Any, move: Move, gradients: bool = True) -> Kernel:
    selection = as_selection(selection)

    def step(trace: Trace, key: Any) -> tuple[Trace, Info]:
        move_key, accept_key = random.split(key)
        addresses = selected(name, trace, selection)
        _require_continuous(name, trace, addresses)
        conditional = Conditional(trace, addresses)
        density = conditional.value
        if gradients:
            in_batch = isinstance(key, LaneKey)
            density = conditional.value_and_grad_in_batch if in_batch else conditional.value_and_grad
        start = evaluate(density, conditional.position[None])
        proposal, log_ratio, info = move(density, start, move_key)
        log_ratio = log_ratio[0, 0]
        new, _ = accept(trace, conditional.moved(proposal[0]), log_ratio, accept_key)
        probability = mx.exp(mx.minimum(mx.where(mx.isnan(log_ratio), -math.inf, log_ratio), 0.0))
        return new, {"accept": probability, **info}

    return Kernel(step, name=name, back=ITSELF)


def _require_continuous(name: str, trace: Trace, addresses: list[tuple]) -> None:
    for address in addresses:
        if not mx.issubdtype(as_array(trace.choices[address]).dtype, mx.floating):
            raise UsageError(
                f"{name} was given a discrete choice",
                address=address,
                gen_fn=trace.gen_fn,
                expected="a selection of continuous choices",
                hint="gibbs_kernel or mh_kernel for the discrete ones, and chain(...) for both",
            )


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ParameterError(f"{name} must be a positive number, got {value!r}")
    return float(value)
