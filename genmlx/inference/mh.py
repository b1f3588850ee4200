"""Metropolis-Hastings, from the prior of selected choices or from a proposal.

Metropolis et al. (1953), Hastings (1970); on traces, Wingate, Stuhlmueller and Goodman (2011).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from genmlx import random
from genmlx.choicemap import EMPTY, ChoiceMap, covering
from genmlx.edit import Propose
from genmlx.errors import UsageError, show_address
from genmlx.gfi import Call, require_selectable
from genmlx.inference.chains import accept, run_chains
from genmlx.inference.kernels import ITSELF, Kernel, Step
from genmlx.inference.posterior import Posterior
from genmlx.inference.problem import latents
from genmlx.selection import Selection, as_selection
from genmlx.trace import Trace
from genmlx.vectorized import VectorizedTrace


def mh(
    call: Call,
    observations: Any = None,
    selection: Any = None,
    proposal: Any = None,
    draws: int = 1000,
    warmup: int = 0,
    thin: int = 1,
    chains: int = 1,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Posterior:
    """A posterior by Metropolis-Hastings; ``chains`` run as the lanes of one batch.

    A model or proposal that branches in Python on choices cannot be batched: it takes ``chains=1``. Ctrl-C returns
    what was drawn so far, with ``status`` "interrupted".

    Each step draws the ``selection`` anew from the prior (by default every choice that is not observed), or makes
    the choices of ``proposal``: a call, or a function from the current trace to one, such as a generative function
    of one argument. ``proposal`` must propose the same addresses back. ``checkpoint`` names a file from which the same
    run goes on if it was killed, with the same draws.

    >>> import mlx.core as mx
    >>> from genmlx import gen, trace, normal
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("mu", normal(0, 1)), 0.5))
    >>> @gen
    ... def walk(tr):
    ...     trace("mu", normal(tr["mu"], 1.0))
    >>> post = mh(model(), {"y": 1.5}, proposal=walk, draws=500, warmup=50, chains=8, key=mx.random.key(0))
    >>> post["mu"].shape, abs(post.mean("mu").item() - 1.2) < 0.05
    ((8, 500), True)
    """
    if selection is not None and proposal is not None:
        raise UsageError("mh was given a selection and a proposal", expected="one of the two")

    def make_kernel(start: Trace, observations: ChoiceMap) -> Kernel:
        if proposal is not None:
            return Kernel(propose_step(proposal, observations))
        return Kernel(regenerate_step(movable(call, selection, start, observations)))

    return run_chains(
        "mh",
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
        settings={"selection": selection, "proposal": proposal},
    )


def mh_kernel(selection: Any = None, proposal: Any = None, strict: bool = True) -> Kernel:
    """One Metropolis-Hastings step, ``kernel(trace, key) -> trace``, with a selection or a proposal as in ``mh``.

    It moves what it is told to, observed or not. It is its own reversal. With ``strict=False`` a selection may name
    addresses that a trace does not have.

    >>> import mlx.core as mx
    >>> from genmlx import gen, trace, normal
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("mu", normal(0, 1)), 0.5))
    >>> tr, _ = model().generate({"y": 1.5}, key=mx.random.key(0))
    >>> mh_kernel("mu")(tr, mx.random.key(1))["y"].item()
    1.5
    """
    if (selection is None) == (proposal is None):
        raise UsageError("mh_kernel takes a selection or a proposal", expected="one of the two")
    step = propose_step(proposal) if selection is None else regenerate_step(as_selection(selection), strict)
    return Kernel(step, name="mh_kernel", back=ITSELF)


def regenerate_step(selection: Selection, strict: bool = False) -> Step:
    """Draw the selection from the prior; the log acceptance ratio is the weight of regenerate."""

    def step(trace: Trace, key: Any) -> Any:
        propose_key, accept_key = random.split(key)
        new, weight, _ = trace.gen_fn.regenerate(trace, selection, key=propose_key, strict=strict)
        return accept(trace, new, weight, accept_key)

    return step


def propose_step(proposal: Any, observations: ChoiceMap = EMPTY) -> Step:
    """Make the proposal's choices; the log acceptance ratio is the weight of the ``Propose`` edit."""
    request = Propose(proposal, proposal)

    def step(trace: Trace, key: Any) -> Any:
        propose_key, accept_key = random.split(key)
        new, weight, _, backward = request.apply(trace, propose_key)
        overwritten: Any = backward.choices  # pyright: ignore[reportAttributeAccessIssue]
        for address in overwritten:
            if address in observations:
                raise UsageError("the proposal moves an observed choice", address=address, gen_fn=trace.gen_fn)
        return accept(trace, new, weight, accept_key)

    return step


def movable(call: Call, selection: Any, start: Trace | VectorizedTrace, observations: ChoiceMap) -> Selection:
    """The choices to move: never an observed one."""
    if selection is None:
        return latents(observations)
    selection = as_selection(selection)
    require_selectable(call.gen_fn, selection, start)
    for address in observations.filter(selection):
        raise UsageError(
            f"the selection holds {show_address(address)}, which is observed",
            gen_fn=call.gen_fn,
            expected="choices that are not observed",
            hint=f"selection & ~select(...), or {covering(observations)!r} left out",
        )
    if start.choices.filter(selection).is_empty:
        raise UsageError("the selection is empty: nothing would move", gen_fn=call.gen_fn)
    return selection
