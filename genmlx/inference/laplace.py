"""Laplace's approximation: a Gaussian around the mode, in unconstrained coordinates.

Tierney and Kadane (1986); the evidence is that of MacKay (2003), chapter 27.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.display import mimebundle, pretty
from genmlx.errors import GenError, show_address
from genmlx.gfi import Call
from genmlx.inference.lbfgs import Ascent
from genmlx.inference.log_density import LogDensity
from genmlx.inference.loop import Loop
from genmlx.inference.map_optimize import climb
from genmlx.inference.particles import Particles
from genmlx.inference.problem import positive_count
from genmlx.vectorized import vgenerate

_POLISH = 4
_FLAT = 1e-6


class NoPeak(GenError, ValueError):
    """The log density does not fall off in every direction from its highest point found."""


class LaplaceApproximation:
    """The latents' coordinates as N(``u``, ``covariance``); a curved support bends them into what the model has.

    ``mode`` is the choice map at ``u``, the mode of the density in unconstrained coordinates (for latents that are real
    numbers it is the posterior mode). ``std(a)`` is a standard error on the original scale by the delta method,
    ``log_ml`` the estimate of the evidence, and ``sample(n)`` gives draws with importance weights, which say how far to
    trust all of this: see ``.ess`` and ``.log_ml`` of the particles. ``execution`` says how the climb was run: as
    ``native`` machine code, a ``replayed`` MLX graph, or by handlers and why.
    """

    def __init__(
        self, density: LogDensity, u: mx.array, covariance: mx.array, log_ml: mx.array, loop: Loop, execution: str
    ):
        self.density, self.u, self.covariance, self.log_ml = density, u, covariance, log_ml
        self.mode: ChoiceMap = density.unpack(u)
        self.status, self.timing, self.execution = loop.status, loop.timing, execution

    def std(self, address: Any) -> mx.array:
        """The standard error of a latent, of its shape."""
        slope = self.density.slope(self.u, address)
        variance = mx.sum((slope @ self.covariance) * slope, axis=-1)
        return mx.sqrt(mx.maximum(variance, 0.0)).reshape(mx.array(self.mode[address]).shape)

    def sample(self, n: int, key: Any = None) -> Particles:
        """``n`` traces drawn from the approximation, weighted by the model's density over it."""
        positive_count("n", n)
        density, size = self.density, self.density.dim
        draw_key, key = random.split(random.as_key(key))
        z = mx.random.normal((n, size), key=draw_key)
        root = mx.linalg.cholesky(self.covariance, stream=mx.cpu)
        u = self.u + z @ mx.swapaxes(root, 0, 1)
        log_q = -0.5 * mx.sum(z * z, axis=-1) - mx.sum(mx.log(mx.diagonal(root))) - 0.5 * size * math.log(2 * math.pi)
        log_weights = density.logp(u) - log_q
        choices = density.unpack(u).merge(density.observations)
        traces = vgenerate(density.call, choices, n, key).trace
        log_ml = mx.logsumexp(log_weights) - math.log(n)
        return Particles(traces, log_weights, log_ml, density.call, density.observations, self.status, self.timing)

    _repr_mimebundle_, _repr_pretty_ = mimebundle, pretty

    def __repr__(self) -> str:
        return f"<LaplaceApproximation of {self.density.call!r}: log_ml {self.log_ml.item():.6g}, at {self.mode!r}>"


def laplace(
    call: Call,
    observations: Any = None,
    restarts: int = 10,
    iterations: int = 1000,
    key: Any = None,
    progress: Callable | None = None,
    native: bool | None = None,
) -> LaplaceApproximation:
    """A Gaussian at the mode of the density in unconstrained coordinates, with the curvature there.

    Exact where the latents are real numbers with a Gaussian posterior. The highest of ``restarts`` climbs is taken,
    and Newton steps finish it. Raises NoPeak, naming a latent, where the density does not fall off on all sides.
    ``native`` is as for ``map_optimize``.

    >>> from genmlx import gen, trace, normal
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("mu", normal(0, 1)), 0.5))
    >>> found = laplace(model(), {"y": 1.5}, key=mx.random.key(0))
    >>> round(found.mode["mu"].item(), 5), round(found.std("mu").item(), 5), round(found.log_ml.item(), 5)
    (1.2, 0.44721, -1.93051)
    """
    positive_count("restarts", restarts)
    positive_count("iterations", iterations)
    density = LogDensity(call, observations)
    with Loop("laplace", progress) as loop:
        start = density.initial(random.streams(key).initialise, restarts)
        ascent, execution = climb(density, start, iterations, loop, jacobian=True, native=native)
        result = _approximation(density, ascent, loop, execution)
    return loop.deliver(result)


def _approximation(density: LogDensity, ascent: Ascent, loop: Loop, execution: str) -> LaplaceApproximation:
    np = ascent.np
    best = int(ascent.value.argmax())
    u, value, gradient = ascent.u[best], ascent.value[best], ascent.gradient[best]
    curvature = _curvature(density, np, u)
    for _ in range(_POLISH):
        if np.linalg.eigvalsh(curvature)[0] <= 0:
            break
        trial = u + np.linalg.solve(curvature, gradient)
        new_value, new_gradient = (np.array(x, dtype=np.float64) for x in density.value_and_grad(_vector(trial)))
        if not abs(new_gradient).max() < abs(gradient).max():
            break
        u, value, gradient = trial, float(new_value), new_gradient
        curvature = _curvature(density, np, u)
    sizes, axes = np.linalg.eigh(curvature)
    if not sizes[0] > _FLAT * max(sizes[-1], 0.0):
        raise _no_peak(density, axes[:, 0], float(sizes[0]))
    covariance = (axes / sizes) @ axes.T
    log_ml = value + 0.5 * density.dim * math.log(2 * math.pi) - 0.5 * np.log(sizes).sum()
    return LaplaceApproximation(density, _vector(u), _vector(covariance), mx.array(float(log_ml)), loop, execution)


def _curvature(density: LogDensity, np: Any, u: Any) -> Any:
    """Minus the Hessian, in float64: by differentiation, or from differences of gradients where that is not finite."""
    hessian = np.array(density.hessian(_vector(u)), dtype=np.float64)
    if not np.isfinite(hessian).all():
        step = 1e-2
        shifts = step * np.eye(len(u))
        points = _vector(np.concatenate([u + shifts, u - shifts]))
        gradients = np.array(density.value_and_grad(points)[1], dtype=np.float64)
        hessian = (gradients[: len(u)] - gradients[len(u) :]) / (2 * step)
    return -0.5 * (hessian + hessian.T)


def _vector(x: Any) -> mx.array:
    return mx.array(x.astype("float32"))


def _no_peak(density: LogDensity, direction: Any, curvature: float) -> NoPeak:
    weights = {address: float(abs(direction[share]).max()) for address, share in density.addresses.items()}
    address = max(weights, key=lambda a: weights[a])
    others = [a for a, w in weights.items() if w > 0.3 and a != address]
    also = f" with {', '.join(show_address(a) for a in others[:3])}" if others else ""
    return NoPeak(
        f"the log density has no peak: it does not fall off along this latent{also} (curvature {curvature:.3g})",
        address=address,
        gen_fn=density.call.gen_fn,
        expected="a density with a peak in its unconstrained coordinates",
        hint="an informative prior for it, more iterations, or nuts",
    )
