"""Gibbs sampling of discrete choices: each is drawn from its distribution given all others, found by enumeration.

Geman and Geman (1984). The values that a choice may take come from the support of its distribution.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx.choicemap import ChoiceMap
from genmlx.gfi import Call
from genmlx.inference.chains import Kernel, run_chains
from genmlx.inference.kernels import Info, selected
from genmlx.inference.mh import movable
from genmlx.inference.posterior import Posterior
from genmlx.inference.sweeps import Site, find_sites, sweep, sweep_kernel
from genmlx.random import LaneKey
from genmlx.selection import Selection, as_selection
from genmlx.trace import Trace


def gibbs(
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
) -> Posterior:
    """A posterior of ``[chains, draws]`` by Gibbs sweeps over the ``selection``, by default every latent choice.

    A sweep takes the choices, and the elements of an array, one after the other. All values of one are tried at once,
    as lanes of a batch. Elements that do not depend on each other given all else, as the labels of a mixture, are drawn
    together: an array's, those of a ``vmap``, and numbers whose addresses differ in one index. Each selected choice
    must have a finite support that does not depend on other choices; what is not selected stays as it was drawn from
    the prior. ``checkpoint`` names a file from which the same run goes on if it was killed, with the same draws.

    >>> import mlx.core as mx
    >>> from genmlx import gen, trace, normal, flip
    >>> @gen
    ... def model():
    ...     k = trace("k", flip(0.5))
    ...     trace("y", normal(2.0 * k, 1.0))
    >>> post = gibbs(model(), {"y": 1.5}, draws=500, chains=4, key=mx.random.key(0))
    >>> abs(post.mean("k").item() - 0.7311) < 0.05
    True
    """

    def make_kernel(start: Trace, observations: ChoiceMap) -> Kernel:
        chosen = start.choices.filter(movable(call, selection, start, observations))
        return sweep_kernel(find_sites(start, chosen.addresses()))

    return run_chains(
        "gibbs",
        call,
        observations,
        make_kernel,
        draws=draws,
        warmup=warmup,
        thin=thin,
        chains=chains,
        key=key,
        progress=progress,
        checkpoint=checkpoint,
        settings={"selection": selection},
    )


def gibbs_kernel(selection: Any) -> Kernel:
    """One Gibbs sweep over the ``selection``, ``kernel(trace, key) -> trace``.

    It moves what it is told to, observed or not. The choices must be such as ``gibbs`` takes. Its reversal is the sweep
    in the reverse order. An array whose elements depend on each other costs an evaluation of the model for each.

    >>> import mlx.core as mx
    >>> from genmlx import flip, gen, normal, trace
    >>> from genmlx.inference import reversal
    >>> @gen
    ... def model():
    ...     k = trace("k", flip(0.5))
    ...     trace("y", normal(9.0 * k, 1.0))
    >>> tr, _ = model().generate({"y": 9.2}, key=mx.random.key(0))
    >>> gibbs_kernel("k")(tr, mx.random.key(1))["k"].item(), reversal(gibbs_kernel("k"))
    (1, <Kernel reversal(gibbs_kernel)>)
    """
    forth, back = (GibbsKernel(as_selection(selection), backwards) for backwards in (False, True))
    forth.back, back.back = back, forth
    return forth


class GibbsKernel(Kernel):
    """A sweep over the sites that it finds in the first trace of each kind: model, arguments and addresses."""

    def __init__(self, selection: Selection, backwards: bool):
        self.selection, self.backwards = selection, backwards
        self._kind: tuple = ()
        self._known: list[tuple] = []
        self._sites: list[Site] = []
        super().__init__(self._sweep, name="reversal(gibbs_kernel)" if backwards else "gibbs_kernel")

    def _sweep(self, trace: Trace, key: Any) -> tuple[Trace, Info]:
        addresses = selected("gibbs_kernel", trace, self.selection)
        kind = trace.gen_fn, trace.version, trace.args
        if not self._kind or any(a is not b for a, b in zip(kind, self._kind, strict=True)) or addresses != self._known:
            # The numbers of a lane have no value to look at, so there the sites are those of another trace.
            concrete = trace.gen_fn._simulate(trace.args, mx.random.key(0)) if isinstance(key, LaneKey) else trace
            self._sites, self._kind, self._known = find_sites(concrete, addresses), kind, addresses
        return sweep(self._sites, self.backwards)(trace, key)
