"""The most probable latent choices: the mode of their joint density with the observations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.display import mimebundle, pretty
from genmlx.errors import name_of
from genmlx.gfi import Call
from genmlx.inference.lbfgs import Ascent, batched
from genmlx.inference.log_density import LogDensity
from genmlx.inference.loop import Loop
from genmlx.inference.problem import positive_count
from genmlx.trace import Trace


@dataclass(frozen=True, repr=False)
class Optimum:
    """``trace`` is the model's trace at the mode, ``score`` its log joint density, ``history`` that of every restart
    after each step, [steps + 1, restarts]; ``status`` is ``complete`` or ``interrupted``.

    ``execution`` says whether the density was ``native`` machine code, a ``replayed`` MLX graph, or run by its handlers
    and why.
    """

    trace: Trace
    score: mx.array
    history: mx.array
    status: str = "complete"
    execution: str = ""
    timing: dict[str, float] = field(default_factory=dict)

    _repr_mimebundle_, _repr_pretty_ = mimebundle, pretty

    def __repr__(self) -> str:
        return f"<Optimum of {name_of(self.trace.gen_fn)}: log density {self.score.item():.6g}>"


def map_optimize(
    call: Call,
    observations: Any = None,
    restarts: int = 10,
    iterations: int = 1000,
    key: Any = None,
    progress: Callable | None = None,
    native: bool | None = None,
) -> Optimum:
    """The latents that maximise log p(latents, observations), by L-BFGS from ``restarts`` points at once.

    The mode is that of the density of the latents themselves, as in a textbook: it is searched for in unconstrained
    coordinates, without their Jacobian. So it does not depend on those coordinates, but may lie on the edge of a
    support, or not exist where the density has no upper bound (a scale that shrinks to 0 around what it scales).

    On the CPU the density is machine code where it has such a form (and llvmlite is installed), and else a recorded MLX
    graph; ``native=False`` asks for that, ``native=True`` for an error instead of it.

    >>> from genmlx import gen, trace, gamma, poisson
    >>> @gen
    ... def model():
    ...     rate = trace("rate", gamma(2.0, 1.0))
    ...     for i in range(2):
    ...         trace(("y", i), poisson(rate))
    >>> best = map_optimize(model(), {("y", 0): 3, ("y", 1): 5}, key=mx.random.key(0))
    >>> round(best.trace["rate"].item(), 4)             # the mode of gamma(10, 3): 9 / 3
    3.0
    """
    positive_count("restarts", restarts)
    positive_count("iterations", iterations)
    density = LogDensity(call, observations)
    with Loop("map_optimize", progress) as loop:
        start = density.initial(random.streams(key).initialise, restarts)
        ascent, execution = climb(density, start, iterations, loop, jacobian=False, native=native)
        best = int(ascent.value.argmax())
        trace = density.trace(mx.array(ascent.u[best].astype("float32")))
        history = mx.array(ascent.np.stack(ascent.history).astype("float32"))
    return loop.deliver(Optimum(trace, trace.score, history, loop.status, execution, loop.timing))


def climb(
    density: LogDensity, start: mx.array, iterations: int, loop: Loop, jacobian: bool, native: bool | None
) -> tuple[Ascent, str]:
    """L-BFGS until no point gets any further, ``iterations`` steps, or Ctrl-C; and how the density was evaluated."""
    found = None
    if native is not False:
        from genmlx.native.ascent import native_gradients

        found = native_gradients(loop.algorithm, density, start, jacobian, required=native is True)
    ascent = Ascent(found or batched(lambda u: density.value_and_grad(u, jacobian)), start)

    def block(first: int, last: int) -> dict:
        for _ in range(first, last):
            if ascent.done:
                break
            ascent.step()
        return {"log_density": float(ascent.value.max()), "steps": len(ascent.history) - 1}

    loop.run("optimising", iterations, block, least=0)
    return ascent, density.execution if found is None else found.execution
