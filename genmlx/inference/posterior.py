"""Posteriors: the draws of an algorithm, with what is needed to judge and to reuse them."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from genmlx.choicemap import EMPTY, ChoiceMap, from_items
from genmlx.errors import GenError, UnknownAddress, UsageError, name_of, nearest, show_addresses
from genmlx.gfi import Call
from genmlx.versions import pinned

_FORMAT = "genmlx posterior 1"


class Posterior:
    """Draws ``[chains, draws, *event]`` by address, with statistics of each draw.

    ``stats`` maps a name (``accept``, ...) to ``[chains, draws]``; ``log_joint`` is log p(latents, observations) of
    each draw; ``status`` is ``complete`` or ``interrupted``; ``timing`` is in seconds.
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
        self._present = dict(present or {})
        self._values, self.stats, self.log_joint = dict(values), dict(stats), log_joint
        self.call, self.pins, self.observations = call, dict(pins or {}), observations
        self.algorithm, self.status, self.timing = algorithm, status, dict(timing or {})
        self.execution = execution

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
        from genmlx.address import normalise

        address = normalise(address)
        if address not in self._values:
            raise UnknownAddress(
                "the posterior has no draws",
                address=address,
                suggestions=nearest(address, self._values),
                expected=f"one of {show_addresses(self._values)}",
            )
        return self._values[address]

    def __contains__(self, address: Any) -> bool:
        from genmlx.address import normalise

        return normalise(address) in self._values

    # statistics

    def mean(self, address: Any) -> mx.array:
        return mx.mean(self[address].astype(mx.float32), axis=(0, 1))

    def std(self, address: Any) -> mx.array:
        """The standard deviation over all draws, ``[*event]``."""
        return mx.sqrt(mx.var(self[address].astype(mx.float32), axis=(0, 1), ddof=1))

    def quantiles(self, address: Any, qs: float | Sequence[float] = (0.05, 0.5, 0.95)) -> Any:
        """Quantiles over all draws, ``[len(qs), *event]``."""
        return self._diagnostic("sample_quantiles", address, qs)

    def rhat(self, address: Any) -> Any:
        """Rank-normalised split R-hat (Vehtari et al. 2021)."""
        return self._diagnostic("rhat", address)

    def ess(self, address: Any) -> Any:
        """Bulk effective sample size."""
        return self._diagnostic("ess", address)

    def ess_tail(self, address: Any) -> Any:
        """The lesser effective sample size of the 5% and 95% quantiles."""
        return self._diagnostic("ess_tail", address)

    def mcse(self, address: Any) -> Any:
        """The Monte Carlo standard error of the mean."""
        return self._diagnostic("mcse", address)

    def _diagnostic(self, name: str, address: Any, *rest: Any) -> Any:
        from genmlx import diagnostics

        return getattr(diagnostics, name)(self[address], *rest)

    def summary(self) -> Any:
        """A table of mean, sd, quantiles, Monte Carlo error, effective sizes and R-hat: one row for each number."""
        from genmlx.diagnostics import summarize

        return summarize(self._values)

    # traces

    def trace(self, chain: int, draw: int) -> Any:
        """The whole trace of one draw, observations included, under the versions that made it."""
        if self.call is None:
            raise UsageError("this posterior was loaded without its model", hint="Posterior.load(path, call=line(xs))")
        if not -self.chains <= chain < self.chains or not -self.draws <= draw < self.draws:
            raise UsageError(f"no draw {draw} of chain {chain} in {self.chains} chains of {self.draws}")
        values = [(a, v[chain, draw]) for a, v in self._values.items()]
        values = [(a, v) for a, v in values if not mx.any(mx.isnan(v)).item()]
        with pinned(self.pins):
            return self.call.generate(self.observations.merge(from_items(values))).trace

    @property
    def stale(self) -> bool:
        """Whether the model has been redefined since."""
        return any(handle.version is not version for handle, version in self.pins.items())

    # elsewhere

    def to_arviz(self) -> Any:
        """An ArviZ ``InferenceData`` with posterior, sample statistics and observed data. Needs arviz."""
        try:
            import arviz
        except ImportError:
            raise UsageError("to_arviz needs the package arviz", hint="pip install arviz") from None
        import numpy as np

        stats = {**self.stats, "lp": self.log_joint}
        return arviz.from_dict(
            posterior={_flat(a): np.array(v) for a, v in self._values.items()},
            sample_stats={name: np.array(v) for name, v in stats.items()},
            observed_data={_flat(a): np.array(v) for a, v in self.observations.items()},
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write the draws to one file (a zip of numpy arrays); a write that fails leaves an old file as it was."""
        import numpy as np

        addresses = list(self._values)
        observed = list(self.observations.items())
        head = {
            "format": _FORMAT,
            "algorithm": self.algorithm,
            "model": None if self.call is None else name_of(self.call.gen_fn),
            "status": self.status,
            "timing": self.timing,
            "addresses": addresses,
            "observed": [a for a, _ in observed],
            "stats": list(self.stats),
        }
        arrays = {f"value{i}": np.array(self._values[a]) for i, a in enumerate(addresses)}
        arrays |= {f"observed{i}": np.array(mx.array(v)) for i, (_, v) in enumerate(observed)}
        arrays |= {f"stat{i}": np.array(v) for i, v in enumerate(self.stats.values())}
        path = os.fspath(path)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(path)), suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, head=np.array(json.dumps(head)), log_joint=np.array(self.log_joint), **arrays)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike, call: Call | None = None) -> Posterior:
        """Read what ``save`` wrote. ``call``, the model with its arguments, is needed only for ``trace``."""
        import numpy as np

        try:
            with np.load(os.fspath(path), allow_pickle=False) as file:
                head = json.loads(str(file["head"]))
                if head.get("format") != _FORMAT:
                    raise ValueError(f"its format is {head.get('format')!r}")
                read: Callable[[str, list], list] = lambda kind, names: [  # noqa: E731
                    mx.array(file[f"{kind}{i}"]) for i in range(len(names))
                ]
                addresses = [tuple(a) for a in head["addresses"]]
                observed = [tuple(a) for a in head["observed"]]
                return cls(
                    dict(zip(addresses, read("value", addresses), strict=True)),
                    stats=dict(zip(head["stats"], read("stat", head["stats"]), strict=True)),
                    log_joint=mx.array(file["log_joint"]),
                    call=call,
                    observations=from_items(zip(observed, read("observed", observed), strict=True)),
                    algorithm=head["algorithm"],
                    status=head["status"],
                    timing=head["timing"],
                )
        except FileNotFoundError:
            raise
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise GenError(
                f"{os.fspath(path)} is not a saved posterior, or only part of one",
                expected="a file written by Posterior.save",
                hint=f"draw again; the reader said: {error}",
            ) from None

    def __repr__(self) -> str:
        model = "" if self.call is None else f" of {name_of(self.call.gen_fn)}"
        partial = "" if self.status == "complete" else f", {self.status}"
        stale = ", stale" if self.stale else ""
        return (
            f"<Posterior{model} by {self.algorithm}: {self.chains} chains of {self.draws} draws, "
            f"{show_addresses(self._values, 6)}{partial}{stale}>"
        )


def _flat(address: tuple) -> str:
    return "/".join(map(str, address))
