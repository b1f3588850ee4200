"""Whether the latent choices of a model fit into one vector: continuous, and the same in every run."""

from __future__ import annotations

import mlx.core as mx

from genmlx.choicemap import ChoiceMap
from genmlx.dist.values import as_array
from genmlx.errors import BatchError, UsageError, show_addresses
from genmlx.gfi import Call
from genmlx.masked import Masked
from genmlx.random import split
from genmlx.selection import Selection
from genmlx.trace import Trace
from genmlx.vectorized import vgenerate

_RUNS = 20  # of a body that cannot be batched, to find what differs between them


def first_trace(call: Call, observations: ChoiceMap, latent: Selection) -> Trace:
    """A prior draw, once it is seen that its latents are continuous and do not come and go. Otherwise it raises."""
    key, *more = split(mx.random.key(0), _RUNS)
    first = call.generate(observations, key).trace
    _require_continuous(first, latent)
    try:
        batch = vgenerate(call, observations, 2, more[0]).trace
    except BatchError:
        for key in more:
            _require_same(first, call.generate(observations, key).trace, latent)
        raise
    for address, leaf in batch.choices.filter(latent).items():
        if isinstance(leaf, Masked):
            raise _comes_and_goes(address)
    return first


def _require_continuous(trace: Trace, latent: Selection) -> None:
    discrete = [
        address
        for address, value in trace.choices.filter(latent).items()
        if not isinstance(value, Masked) and not mx.issubdtype(as_array(value).dtype, mx.floating)
    ]
    if discrete:
        raise UsageError(
            f"{'a latent choice is' if len(discrete) == 1 else f'{len(discrete)} latent choices are'} discrete "
            f"({show_addresses(discrete, 4)}): there is no gradient",
            address=discrete[0],
            expected="continuous latent choices",
            hint="hmc_gibbs, which moves the discrete ones too; gibbs or mh; or a mixture(...) that sums them out",
        )


def _require_same(one: Trace, other: Trace, latent: Selection) -> None:
    shapes = [{a: as_array(v).shape for a, v in t.choices.filter(latent).items()} for t in (one, other)]
    for address in [*shapes[0], *shapes[1]]:
        a, b = (shape.get(address) for shape in shapes)
        if a is None or b is None:
            raise _comes_and_goes(address)
        if a != b:
            raise UsageError(
                f"a latent choice has shape {list(a)} in one run and {list(b)} in another: no vector holds it",
                address=address,
                expected="shapes that do not depend on choices",
            )


def _comes_and_goes(address: tuple) -> UsageError:
    return UsageError(
        "a latent choice exists in some runs and not in others: no fixed vector holds it",
        address=address,
        expected="a body whose addresses do not depend on its choices",
        hint="mh, which takes any body; or observe what it branches on",
    )
