"""Posteriors: the draws of an algorithm, with what is needed to judge and to reuse them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from genmlx import archive
from genmlx.address import normalise
from genmlx.choicemap import EMPTY, ChoiceMap, from_items
from genmlx.display import mimebundle, pretty
from genmlx.errors import UnknownAddress, UsageError, name_of, nearest, show_addresses
from genmlx.gfi import Call, gen_errors
from genmlx.versions import pinned

_FORMAT = "genmlx posterior 2"
_SAVED = ("a saved posterior", "a file written by Posterior.save", "draw again")


class Posterior:
    """Draws ``[chains, draws, *event]`` by address, with statistics of each draw.

    ``stats`` maps a name (``accept``, ...) to ``[chains, draws]``; ``log_joint`` is log p(latents, observations) of
    each draw; ``status`` is ``complete`` or ``interrupted``; ``timing`` is in seconds; ``execution`` says whether the
    run was ``native`` machine code, its steps ``replayed`` as one recorded MLX graph, or run by their handlers and why.

    Where the model branches, an address may exist in some draws only. It is NaN in the others, ``has(a)`` says where
    it exists, and its statistics are over the draws that have it.
    """

    def __init__(
        self,
        values: Mapping[tuple, mx.array],
        *,
        stats: Mapping[str, mx.array],
        log_joint: mx.array,
        present: Mapping[tuple, mx.array] | None = None,
        call: Call | None = None,
        pins: dict | None = None,
        observations: ChoiceMap = EMPTY,
        algorithm: str = "",
        status: str = "complete",
        timing: Mapping[str, float] | None = None,
        execution: str = "",
    ):
        """``present`` has, for each address that some draws lack, ``[chains, draws]``: whether it is there."""
        self._values, self._present = dict(values), dict(present or {})
        self.stats, self.log_joint = dict(stats), log_joint
        self.call, self.pins, self.observations = call, dict(pins or {}), observations
        self.algorithm, self.status, self.timing = algorithm, status, dict(timing or {})
        self.execution = execution
        self.notes: list[str] = []  # lines below the table of the summary

    @property
    def chains(self) -> int:
        return self.log_joint.shape[0]

    @property
    def draws(self) -> int:
        return self.log_joint.shape[1]

    def addresses(self) -> list[tuple]:
        """The latent addresses."""
        return list(self._values)

    def __getitem__(self, address: Any) -> mx.array:
        """The draws at an address, ``[chains, draws, *event]``; NaN in draws whose trace has no such choice."""
        address = self._known(address)
        values = self._values[address]
        if address not in self._present:
            return values
        mask = self._present[address].reshape(*values.shape[:2], *[1] * (values.ndim - 2))
        return mx.where(mask, values.astype(mx.float32), math.nan)

    def __contains__(self, address: Any) -> bool:
        return normalise(address) in self._values

    def has(self, address: Any) -> mx.array:
        """Which draws have a choice at an address, ``[chains, draws]``."""
        return self._present.get(self._known(address), mx.ones(self.log_joint.shape, dtype=mx.bool_))

    def values_at(self, address: Any) -> mx.array:
        """The draws at an address as they were drawn; what those hold that have no such choice says nothing."""
        return self._values[self._known(address)]

    def present_at(self, address: Any) -> mx.array | None:
        """Which draws have a choice at an address, or None when all do."""
        return self._present.get(self._known(address))

    def _known(self, address: Any) -> tuple:
        address = normalise(address)
        if address not in self._values:
            raise UnknownAddress(
                "the posterior has no draws",
                address=address,
                suggestions=nearest(address, self._values),
                expected=f"one of {show_addresses(self._values)}",
            )
        return address

    # statistics

    def mean(self, address: Any) -> mx.array:
        """The mean over all draws, ``[*event]``."""
        return mx.array(self._pooled(address).mean(axis=0).astype("float32"))

    def std(self, address: Any) -> mx.array:
        """The standard deviation over all draws, ``[*event]``."""
        return mx.array(self._pooled(address).std(axis=0, ddof=1).astype("float32"))

    def quantiles(self, address: Any, qs: float | Sequence[float] = (0.05, 0.5, 0.95)) -> Any:
        """Quantiles over all draws, ``[len(qs), *event]``."""
        return self._diagnostic("sample_quantiles", "quantiles", address, qs)

    def rhat(self, address: Any) -> Any:
        """Rank-normalised split R-hat (Vehtari et al. 2021)."""
        return self._diagnostic("rhat", "ratio_rhat", address)

    def ess(self, address: Any) -> Any:
        """Bulk effective sample size; that of the mean for an address that some draws lack."""
        return self._diagnostic("ess", "ratio_ess", address)

    def ess_tail(self, address: Any) -> Any:
        """The lesser effective sample size of the 5% and 95% quantiles."""
        return self._diagnostic("ess_tail", "ratio_ess_tail", address)

    def mcse(self, address: Any) -> Any:
        """The Monte Carlo standard error of the mean."""
        return self._diagnostic("mcse", "ratio_mcse", address)

    def _pooled(self, address: Any) -> Any:
        """The draws of all chains that have the address, ``[count, *event]``: numpy, whose float64 sums are exact."""
        address = self._known(address)
        values = _numpy(self._values[address]).astype(float)
        return values[_numpy(self.has(address))]

    def _diagnostic(self, name: str, of_some: str, address: Any, *rest: Any) -> Any:
        address = self._known(address)
        if address in self._present:
            from genmlx.inference import optional

            draws, present = _numpy(self._values[address]).astype(float), _numpy(self._present[address])
            return optional.per_element(getattr(optional, of_some), draws, present, *rest)
        from genmlx import diagnostics

        return getattr(diagnostics, name)(self._values[address], *rest)

    def summary(self) -> Any:
        """A table of mean, sd, quantiles, Monte Carlo error, effective sizes and R-hat: one row for each number.

        An address that some draws lack has its row for the draws that have it, and a line below says how many do.
        Lines that begin with "!" are its ``warnings``: what is wrong with the run, and what to do.
        """
        from genmlx.diagnostics import summarize

        table = summarize({a: v for a, v in self._values.items() if a not in self._present}, self.stats)
        table.notes = (*table.notes, *self.notes)
        if not self._present:
            return table
        from genmlx.inference.optional import rows

        table.chains, table.draws = self.chains, self.draws
        for address, mask in self._present.items():
            draws, present = _numpy(self._values[address]).astype(float), _numpy(mask)
            share = f"in {present.mean():.1%} of the draws, and its row is of those"
            table = table.extended(address, rows(draws, present), share)
        return table

    # traces

    def trace(self, chain: int, draw: int) -> Any:
        """The whole trace of one draw, observations included, under the versions that made it."""
        if self.call is None:
            raise UsageError("this posterior was loaded without its model", hint="Posterior.load(path, call=line(xs))")
        if not -self.chains <= chain < self.chains or not -self.draws <= draw < self.draws:
            raise UsageError(f"no draw {draw} of chain {chain} in {self.chains} chains of {self.draws}")
        values = [(a, v[chain, draw]) for a, v in self._values.items() if self.has(a)[chain, draw].item()]
        gen_fn, choices = self.call.gen_fn, self.observations.merge(from_items(values))
        with pinned(self.pins), gen_errors(gen_fn):
            # Without a key nothing can be sampled: a choice that the draw has not raises.
            return gen_fn._generate(self.call.args, choices, None)[0]

    @property
    def stale(self) -> bool:
        """Whether the model has been redefined since."""
        return any(handle.version is not version for handle, version in self.pins.items())

    # elsewhere

    def to_arviz(self, key: Any = None) -> Any:
        """An ArviZ ``InferenceData``: posterior, sample statistics, observed data. Needs arviz.

        A posterior that has its model also gives the log likelihood of its observations, and values predicted for them,
        drawn with ``key``.
        """
        try:
            import arviz  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UsageError("to_arviz needs the package arviz", hint="pip install arviz") from None
        groups = {
            "posterior": {_flat(a): _numpy(self[a]) for a in self._values},
            "sample_stats": {name: _numpy(v) for name, v in {**self.stats, "lp": self.log_joint}.items()},
            "observed_data": {_flat(a): _numpy(mx.array(v)) for a, v in self.observations.items()},
        }
        if self.call is not None and not self.observations.is_empty:
            from genmlx.inference.predictive import log_likelihood, predictive

            observed = self.observations.addresses()
            with pinned(self.pins):
                densities = log_likelihood(self.call, self)
                predicted = predictive(self.call, self, key=key)
            groups["log_likelihood"] = {_flat(a): _numpy(densities[a]) for a in observed}
            groups["posterior_predictive"] = {_flat(a): _numpy(predicted[a]) for a in observed}
        # From version 1 on, from_dict takes the groups as one argument.
        old = int(arviz.__version__.partition(".")[0]) < 1
        return arviz.from_dict(**groups) if old else arviz.from_dict(groups)

    def save(self, path: str | os.PathLike) -> None:
        """Write the draws to one file (a zip of numpy arrays); a write that fails leaves an old file as it was."""
        addresses, present = list(self._values), list(self._present)
        observed = list(self.observations.items())
        head = {
            "algorithm": self.algorithm,
            "model": None if self.call is None else name_of(self.call.gen_fn),
            "status": self.status,
            "timing": self.timing,
            "execution": self.execution,
            "addresses": addresses,
            "present": present,
            "observed": [a for a, _ in observed],
            "stats": list(self.stats),
        }
        arrays = {f"value{i}": self._values[a] for i, a in enumerate(addresses)}
        arrays |= {f"present{i}": self._present[a] for i, a in enumerate(present)}
        arrays |= {f"observed{i}": mx.array(v) for i, (_, v) in enumerate(observed)}
        arrays |= {f"stat{i}": v for i, v in enumerate(self.stats.values())}
        archive.write(path, _FORMAT, head, {"log_joint": self.log_joint, **arrays})

    @classmethod
    def load(cls, path: str | os.PathLike, call: Call | None = None) -> Posterior:
        """Read what ``save`` wrote. ``call``, the model with its arguments, is needed only for ``trace``."""
        try:
            return cls(**_read(path), call=call)
        except OSError as error:
            if error.errno is not None:  # of the system; those that numpy makes have no number
                raise
            raise archive.unreadable(path, *_SAVED, error) from None
        # What numpy and json say about bytes of any other kind is of many types.
        except Exception as error:
            raise archive.unreadable(path, *_SAVED, error) from None

    _repr_mimebundle_, _repr_pretty_ = mimebundle, pretty

    def __repr__(self) -> str:
        model = "" if self.call is None else f" of {name_of(self.call.gen_fn)}"
        partial = "" if self.status == "complete" else f", {self.status}"
        stale = ", stale" if self.stale else ""
        return (
            f"<Posterior{model} by {self.algorithm}: {self.chains} chains of {self.draws} draws, "
            f"{show_addresses(self._values, 6)}{partial}{stale}>"
        )


def _read(path: str | os.PathLike) -> dict[str, Any]:
    """The arguments of a ``Posterior``, but for its call."""
    head, saved = archive.read(path, _FORMAT)

    def arrays(kind: str, names: list) -> dict:
        keys = [tuple(name) if isinstance(name, list) else name for name in names]
        return {key: saved[f"{kind}{i}"] for i, key in enumerate(keys)}

    return {
        "values": arrays("value", head["addresses"]),
        "present": arrays("present", head["present"]),
        "stats": arrays("stat", head["stats"]),
        "log_joint": saved["log_joint"],
        "observations": from_items(arrays("observed", head["observed"]).items()),
        **{name: head[name] for name in ("algorithm", "status", "timing", "execution")},
    }


def _numpy(array: mx.array) -> Any:
    import numpy as np

    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def _flat(address: tuple) -> str:
    return "/".join(map(str, address))
