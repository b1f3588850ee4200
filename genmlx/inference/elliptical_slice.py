"""Elliptical slice sampling of choices with Gaussian priors: no step size, and no rejection.

Murray, Adams and MacKay (2010). The ellipse is drawn in the standard normal noise from which the choices are made, so
that any mean and covariance serve, also ones that depend on other selected choices.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.dist.broadcasted_normal import broadcasted_normal
from genmlx.dist.distribution import DistTrace
from genmlx.dist.log_normal import log_normal
from genmlx.dist.multivariate_normal import multivariate_normal
from genmlx.dist.normal import normal
from genmlx.errors import UsageError
from genmlx.gfi import Call
from genmlx.inference.chains import Kernel, Step, run_chains
from genmlx.inference.kernels import ITSELF, selected
from genmlx.inference.mh import movable
from genmlx.inference.noise_density import noise_of
from genmlx.inference.posterior import Posterior
from genmlx.inference.sites import site_at
from genmlx.inference.walks import _start, require_latents
from genmlx.random import Tape
from genmlx.selection import Selection, as_selection
from genmlx.trace import Trace
from genmlx.vectorized import Lanes, VectorizedTrace, run

_ANGLES = 24
"""Points tried on an ellipse. Where all are rejected the chain stays, which leaves its distribution as it is."""


def elliptical_slice(
    call: Call,
    observations: Any = None,
    selection: Any = None,
    draws: int = 1000,
    warmup: int = 100,
    thin: int = 1,
    chains: int = 4,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
    native: bool | None = None,
) -> Posterior:
    """A posterior of ``[chains, draws]`` by elliptical slices through the ``selection``: by default all latent choices.

    Each selected choice must be normal, broadcasted_normal, multivariate_normal or log_normal; their means and scales
    are found in the model. Choices that are not selected stay as they were drawn from the prior. ``checkpoint`` names a
    file from which the same run goes on if it was killed, with the same draws.

    On the CPU the whole loop is machine code where the model has such a form (and llvmlite is installed). Else it is
    recorded MLX graphs, in which the points of a slice that might be tried are evaluated at once, as lanes of a batch;
    ``native=False`` asks for these, ``native=True`` for an error instead of them.

    >>> import mlx.core as mx
    >>> from genmlx import gen, trace, normal
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("mu", normal(3, 1)), 0.5))
    >>> post = elliptical_slice(model(), {"y": 1.5}, draws=500, chains=4, key=mx.random.key(0))
    >>> abs(post.mean("mu").item() - 1.8) < 0.1
    True
    """

    def found(start: Trace, observations: ChoiceMap) -> tuple[Selection, list[tuple]]:
        moved = movable(call, selection, start, observations)
        addresses = start.choices.filter(moved).addresses()
        for address in addresses:
            _require_gaussian(start, address)
        return moved, addresses

    def machine(observations: ChoiceMap, keys: list) -> Any:
        from genmlx.native.slices import native_slices

        def start() -> tuple[VectorizedTrace, list[tuple]]:
            traces = _start(call, observations, chains, keys)
            require_latents(call, observations, traces[0])
            return traces, found(traces[0], observations)[1]

        return native_slices(call, start, observations, _ANGLES, required=native is True)

    return run_chains(
        "elliptical_slice",
        call,
        observations,
        lambda start, observations: Kernel(elliptical_step(*found(start, observations))),
        draws=draws,
        warmup=warmup,
        thin=thin,
        chains=chains,
        key=key,
        progress=progress,
        checkpoint=checkpoint,
        settings={"selection": selection},
        native=None if native is False else machine,
    )


def elliptical_slice_kernel(selection: Any) -> Kernel:
    """One elliptical slice, ``kernel(trace, key) -> trace``, through the ``selection``: choices as for the sampler.

    It moves what it is told to, observed or not. It is its own reversal. Its infos are ``accept`` and ``shrinks``.

    >>> import mlx.core as mx
    >>> from genmlx import gen, trace, normal
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("mu", normal(3, 1)), 0.5))
    >>> tr, _ = model().generate({"y": 1.5}, key=mx.random.key(0))
    >>> new = elliptical_slice_kernel("mu")(tr, mx.random.key(1), check=True, observations={"y": 1.5})
    >>> new["mu"].item() != tr["mu"].item()
    True
    """
    selection = as_selection(selection)

    def step(trace: Trace, key: Any) -> Any:
        addresses = selected("elliptical_slice_kernel", trace, selection)
        for address in addresses:
            _require_gaussian(trace, address)
        return elliptical_step(selection, addresses)(trace, key)

    return Kernel(step, name="elliptical_slice_kernel", back=ITSELF)


def elliptical_step(selection: Selection, addresses: list[tuple]) -> Step:
    """One slice. ``accept`` says whether a point on it was found, ``shrinks`` how many were rejected before."""

    def step(trace: Trace, key: Any) -> Any:
        level_key, angle_key, noise_key = random.split(key, 3)
        here = [noise_of(trace, address) for address in addresses]
        there = [random.normal(k, z.shape) for k, z in zip(random.split(noise_key, len(here)), here, strict=True)]

        def at(angle: mx.array) -> Any:
            tape = Tape(draws=[mx.cos(angle) * a + mx.sin(angle) * b for a, b in zip(here, there, strict=True)])
            args, diffs = trace.gen_fn.changed(trace, None, None)
            return trace.gen_fn._regenerate(trace, args, diffs, selection, tape)

        angles = _angles(random.uniform_open(angle_key, (_ANGLES,)))
        log_ratios = run(lambda _, angle: mx.array(at(angle)[1]), _ANGLES, None, Lanes(angles))
        inside = log_ratios > mx.log(random.uniform_open(level_key))
        accept = mx.any(inside)
        first = mx.argmax(inside)
        new = at(mx.where(accept, mx.take(angles, first), 0.0))[0]
        return new, {"accept": accept, "shrinks": mx.where(accept, first.astype(mx.int32), _ANGLES)}

    return step


def _angles(uniforms: mx.array) -> mx.array:
    """The angles tried one after the other while all before are rejected: the bracket around 0 shrinks to each.

    Which angles those are does not depend on the density, only on how many of them it takes.
    """
    first, *rest = mx.split(uniforms, uniforms.shape[0])
    angle = 2 * math.pi * first
    low, high, angles = angle - 2 * math.pi, angle, [angle]
    for uniform in rest:
        angle = low + (high - low) * uniform
        angles.append(angle)
        low, high = mx.where(angle < 0, angle, low), mx.where(angle < 0, high, angle)
    return mx.concatenate(angles)


def _require_gaussian(start: Trace, address: tuple) -> None:
    site: DistTrace | None = site_at(start, address)
    if site is None or site.gen_fn not in (normal, broadcasted_normal, multivariate_normal, log_normal):
        family = "made by a combinator that hides its distribution" if site is None else repr(site.gen_fn)
        raise UsageError(
            f"elliptical_slice was given a choice whose prior is not Gaussian: it is {family}",
            address=address,
            gen_fn=start.gen_fn,
            expected="normal, broadcasted_normal, multivariate_normal or log_normal",
            hint="name the Gaussian choices in selection=",
        )
