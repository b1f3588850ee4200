"""What became of the draws of a posterior that was carried, and what the carried draws are worth."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from genmlx.errors import show_address, show_addresses
from genmlx.inference.posterior import Posterior
from genmlx.inference.resampling import host_weights
from genmlx.masked import value_of

_FEWEST, _SHARE = 100, 0.05
"""Below this effective size, or this share of the draws, the weights say nothing: sample anew."""
_EVEN = 0.9  # above this share the weights have no tail to speak of
_HEAVY = 0.7  # Vehtari et al. (2024), Pareto smoothed importance sampling


@dataclass
class Carrying:
    """What became of the draws: ``str`` of it, or ``lines()``, is for the user.

    ``log_weights [chains, draws]`` are of the draws of the old posterior, ``ess`` is their effective size and ``khat``
    the shape of their tail. ``kept``, ``new`` and ``dropped`` are addresses. ``redrawn`` says why an address of both
    models was drawn anew all the same, and ``impossible`` how many draws have density zero at an address now.
    """

    before: str
    after: str
    kept: list[tuple]
    new: list[tuple]
    dropped: list[tuple]
    log_weights: mx.array
    ess: float
    redrawn: dict[tuple, str] = field(default_factory=dict)
    impossible: dict[tuple, int] = field(default_factory=dict)
    moves: str = "not moved"
    khat: float = math.nan

    @property
    def draws(self) -> int:
        return self.log_weights.size

    @property
    def warning(self) -> str | None:
        """That the weights leave too little to go on with; None when they do not."""
        if self.ess < max(_FEWEST, _SHARE * self.draws):
            return f"only {self.ess:,.0f} of {self.draws:,} draws are worth anything after the edit: sample anew"
        if _HEAVY < self.khat < math.inf and self.ess < _EVEN * self.draws:
            return f"a few draws have most of the weight (k-hat {self.khat:.2f} > {_HEAVY}): sample anew"
        return None

    def lines(self) -> list[str]:
        kinds = (("kept", self.kept), ("new", self.new), ("dropped", self.dropped))
        parts = [f"{kind} {show_addresses(addresses, 6)}" for kind, addresses in kinds if addresses]
        found = [
            f"carried {self.before} -> {self.after}: {'; '.join(parts)}",
            f"ess {self.ess:,.0f} of {self.draws:,} after reweighting; {self.moves}",
        ]
        found += [f"{show_address(a)} was drawn anew: {why}" for a, why in self.redrawn.items()]
        found += [f"{count:,} draws are impossible now: {show_address(a)} has density zero"
                  for a, count in self.impossible.items()]  # fmt: skip
        return found + ([f"! {self.warning}"] if self.warning else [])

    def __str__(self) -> str:
        return "\n".join(self.lines())


class Carried(Posterior):
    """A posterior that was carried: ``carrying`` says how, and the summary shows it.

    Its draws begin at weighted draws of another posterior, and what error those had is in all of them, as far as they
    remember where they began: 1 / ess is that of the draws, plus r^2 / ess of the weights. The effective size of the
    weights is that of the mean at this address; r is the largest correlation of a number of a draw before and after
    its moves, over all addresses and the log density.
    """

    carrying: Carrying
    lost: dict[tuple, Any]
    """For each address r^2 / ess of the weights, ``[*event]``."""

    def ess(self, address: Any) -> Any:
        return 1 / (1 / super().ess(address) + self.lost[self._known(address)])

    def ess_tail(self, address: Any) -> Any:
        return 1 / (1 / super().ess_tail(address) + self.lost[self._known(address)])

    def mcse(self, address: Any) -> Any:
        import numpy as np

        sd = np.array(self.std(address), dtype=float)
        return np.hypot(super().mcse(address), sd * np.sqrt(self.lost[self._known(address)]))

    def summary(self) -> Any:
        return super().summary().with_error(self.lost)


def weights_error(
    weighed: Posterior, carrying: Carrying, start: dict[tuple, Any], score: mx.array, result: Posterior
) -> dict[tuple, Any]:
    """What the weights add to 1 / ess, at each address; ``start`` and ``score`` are of the draws before their moves."""
    import numpy as np

    def rows(array: mx.array) -> Any:
        """``[draws, elements]`` of ``[chains, draws, *event]``."""
        return np.array(array.astype(mx.float32), dtype=float).reshape(result.chains * array.shape[1], -1)

    weights = host_weights(carrying.log_weights.reshape(-1))
    memory, terms = _memory(score[:, None], rows(result.log_joint[..., None])), {}
    for address in result.addresses():
        if address not in weighed or not all(p.present_at(address) is None for p in (weighed, result)):
            terms[address] = np.array(1 / carrying.ess)
            continue
        first, now = rows(weighed.values_at(address)), rows(result.values_at(address))
        apart = first - weights @ first
        with np.errstate(invalid="ignore", divide="ignore"):
            error = (weights**2) @ apart**2 / now.var(axis=0)
        terms[address] = np.fmax(error, 1 / carrying.ess).reshape(result.values_at(address).shape[2:])
        memory = max(memory, _memory(value_of(start[address]).reshape(len(now), -1), now))
    return {address: memory * term for address, term in terms.items()}


def _memory(before: mx.array, after: Any) -> float:
    """The largest squared correlation of a number and what has become of it."""
    import numpy as np

    x, y = (np.asarray(a, dtype=float) for a in (np.array(before.astype(mx.float32)), after))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        squared = (x * y).sum(axis=0) ** 2 / ((x * x).sum(axis=0) * (y * y).sum(axis=0))
    return float(np.nan_to_num(squared, nan=0.0).max(initial=0.0))


def khat(log_weights: mx.array) -> float:
    """The Pareto shape of the tail of the weights."""
    import numpy as np

    from genmlx.diagnostics import psis

    return float(psis(np.array(log_weights.reshape(-1), dtype=float))[1])
