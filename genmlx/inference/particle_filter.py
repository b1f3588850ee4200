"""A particle filter, one step at a time: for people who write their own, and for ``smc``, which is a loop over it.

Del Moral, Doucet and Jasra (2006), "Sequential Monte Carlo samplers"; Chopin and Papaspiliopoulos (2020), "An
Introduction to Sequential Monte Carlo".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.errors import GenError, ParameterError, UsageError, show_address, show_addresses
from genmlx.gfi import Call, checked_choices, gen_errors, require_selectable
from genmlx.inference.attic import (
    FORGOTTEN,
    NOTHING,
    Attic,
    TakenAway,
    brought_back,
    found_at,
    put_away,
    recent_addresses,
    refers_to_it,
)
from genmlx.inference.evidence_error import evidence_error, lost_pairs
from genmlx.inference.extension import added, one_more_step
from genmlx.inference.history import FilterStep, History, require_paths
from genmlx.inference.importance import weighted
from genmlx.inference.kernels import Kernel, as_kernel
from genmlx.inference.mh import regenerate_step
from genmlx.inference.moves import Translator
from genmlx.inference.particles import Particles
from genmlx.inference.problem import checked_problem, impossible, latents, positive_count
from genmlx.inference.resampling import (
    DegenerateWeights,
    log_mean,
    optimal_resize,
    resample,
)
from genmlx.inference.strata import same_values, stratified
from genmlx.inference.translators import GeneralTranslator, SimpleExtendingTranslator
from genmlx.kept import require_handlers
from genmlx.masked import Masked, value_of
from genmlx.pytree import split_arrays
from genmlx.selection import Selection, as_selection, select
from genmlx.vectorized import VectorizedTrace, concatenate, recorded_as
from genmlx.versions import pinned


class ParticleFilter(Particles):
    """Weighted traces that are extended step by step. A filter is a value: each operation gives another one.

    All particles run in one batch. ``log_ml`` is the log of the evidence so far, of which exp is unbiased whatever
    steps were resampled (with priorities it is consistent only); ``history`` has what each step did. What all
    ``Particles`` have, such as ``mean(a)``, ``ess`` and ``to_posterior()``, is there after every step.

    >>> from genmlx import gen, normal, trace, unfold
    >>> @gen
    ... def step(t, x):
    ...     x = trace("x", normal(x, 1.0))
    ...     trace("y", normal(x, 1.0))
    ...     return x
    >>> walk = unfold(step)
    >>> pf = ParticleFilter.init(walk(1, 0.0), {(0, "y"): 1.0}, particles=10_000, key=mx.random.key(0))
    >>> pf = pf.resample(key=mx.random.key(1)).step(walk(2, 0.0), {(1, "y"): 2.0}, key=mx.random.key(2))
    >>> abs(pf.mean((1, "x")).item() - 1.4) < 0.03, abs(pf.log_ml.item() + 3.342596) < 0.03     # by Kalman's filter
    (True, True)
    """

    def __init__(
        self,
        traces: VectorizedTrace,
        log_weights: mx.array,
        base: float,
        call: Call,
        observations: ChoiceMap,
        history: History,
        attic: Attic = NOTHING,
    ):
        """``base`` is the log evidence of the steps up to the last resampling; ``attic`` has the past of the traces."""
        self.base, self.history, self.attic = base, history, attic
        self._whole: VectorizedTrace | None = None
        # In float64: a long series has an evidence of which float32 would lose a little at every step.
        self._log_ml = base + log_mean(log_weights)
        super().__init__(traces, log_weights, mx.array(self._log_ml), call, observations)

    algorithm = "smc"

    def _replaced(self, **values: Any) -> ParticleFilter:
        """With other values; traces without an attic are whole."""
        if "traces" in values:
            values.setdefault("attic", NOTHING)
        values.setdefault("traces", self.recent)
        fields = ("log_weights", "base", "call", "observations", "history", "attic")
        made = type(self)(values.pop("traces"), **{name: values.get(name, getattr(self, name)) for name in fields})
        made.algorithm, made.status, made.timing = self.algorithm, self.status, self.timing
        return made

    @property
    def traces(self) -> VectorizedTrace:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The traces of the particles, whole."""
        if self.attic is FORGOTTEN:
            require_paths(self.history)
        if self._whole is None:
            self._whole = self.recent if self.attic is NOTHING else brought_back(self.recent, self.attic)
        return self._whole

    @traces.setter
    def traces(self, traces: VectorizedTrace) -> None:
        self.recent = traces  # without the past that is in the attic

    @property
    def n(self) -> int:
        return self.recent.n

    def __len__(self) -> int:
        return self.recent.n

    def __getitem__(self, address: Any) -> Any:
        """The values at an address, ``[n, *event]``, unweighted; ``Masked`` where only some particles have it."""
        if self._whole is None and self.attic is not NOTHING:
            try:
                return found_at(self.recent, address)
            except (TakenAway, KeyError):
                pass
        return super().__getitem__(address)

    def addresses(self) -> list[tuple]:
        if self.attic is FORGOTTEN:
            return [a for a in recent_addresses(self.recent.lanes) if a not in self.observations]
        return super().addresses()

    def _applied(self, operation: Callable[[VectorizedTrace], tuple]) -> tuple[VectorizedTrace, Any, Attic]:
        """An operation on the traces without their past; where it looks at that, or fails, on whole traces."""
        if self.attic is not NOTHING:
            try:
                with recorded_as("recent"):
                    new, more = operation(self.recent)
                if not refers_to_it(new):
                    return new, more, self.attic
            except (TakenAway, Exception):  # whatever it was comes up again
                pass
        whole = self.traces
        with recorded_as("whole"):
            return *operation(whole), NOTHING

    def _noted(self, log_ml: float) -> ParticleFilter:
        """With one more step in the history, before which the log evidence was ``log_ml``."""
        ess: Any = self.ess.item()
        pairs = math.nan if self.n == 1 else 1.0 if self.history.steps else self.n / (self.n - 1)
        self.history = self.history.added(FilterStep(ess, self._log_ml - log_ml, self._log_ml, pairs=pairs))
        return self

    @property
    def log_ml_error(self) -> float:
        """The standard error of ``log_ml``, estimated from the particles of this one run: ``evidence_error``."""
        return evidence_error(self.history, self.log_weights) if self.base > -math.inf else math.nan

    # steps

    @classmethod
    def init(
        cls,
        call: Call,
        observations: Any = None,
        particles: int = 1000,
        proposal: Call | None = None,
        strata: Iterable[Any] | None = None,
        key: Any = None,
        store_paths: bool = True,
    ) -> ParticleFilter:
        """``particles`` traces that agree with the observations, the rest from the prior or a ``proposal``.

        ``strata`` are choice maps that exclude each other and leave nothing out, as each value of a discrete choice:
        every one of them gets its share of the particles, for certain. Without ``store_paths`` all steps of a chain but
        the last are forgotten, so that memory does not grow with their number; to ask for them raises.
        """
        observations = checked_problem(call, observations)
        n = positive_count("particles", particles)
        with pinned(), gen_errors(call.gen_fn):
            if strata is None:
                traces, log_weights = weighted(call, observations, proposal, n, random.as_key(key))
            else:
                given = [checked_choices(stratum) for stratum in strata]
                traces, log_weights = stratified(call, observations, given, proposal, n, random.as_key(key))
        return cls.begun(traces, log_weights, call, observations, store_paths)

    @classmethod
    def begun(
        cls,
        traces: VectorizedTrace,
        log_weights: mx.array,
        call: Call,
        observations: ChoiceMap,
        store_paths: bool = True,
    ) -> ParticleFilter:
        """A filter after its first step, whose traces and weights somebody else has made."""
        evaluate(traces, log_weights)
        _require_weight(call, traces, log_weights, observations, 0)
        history, attic = History((), store_paths), NOTHING if store_paths else FORGOTTEN
        return cls(traces, log_weights, 0.0, call, observations, history, attic)._noted(0.0).tidied()

    def step(
        self, call: Call | None = None, observations: Any = None, proposal: Any = None, key: Any = None
    ) -> ParticleFilter:
        """Every particle with the arguments of ``call``, and these observations added to those before.

        New latent choices come from ``proposal``, a call or a function from a particle's trace to one, or from the
        prior. A step that would remove a choice, or change one, raises: see ``translate``.
        """
        new = checked_choices(observations)
        call = self.call if call is None else call
        if not isinstance(call, Call) or call.gen_fn is not self.call.gen_fn:
            raise UsageError("a step is a call of the same model", expected=f"{self.call!r} with other arguments")
        if proposal is None and (made := self._one_step_longer(call, new, random.as_key(key))) is not None:
            return made
        require_handlers(
            "only the steps of an unfold or a scan have a native form, one at a time and without a proposal, and only "
            "of a kernel that takes an array for its number and reads nothing that may change unseen"
        )
        return self._moved(SimpleExtendingTranslator(call, None, new, proposal), call, new, key)

    def _one_step_longer(self, call: Call, new: ChoiceMap, key: mx.array) -> ParticleFilter | None:
        with gen_errors(self.call.gen_fn):
            try:
                found = one_more_step(self.recent, self.log_weights, call, new, key)
            except TakenAway:  # by an error that looks at the past to say what is wrong
                return None
            return None if found is None else self._reweighted(*found, call, new, attic=self.attic).tidied()

    def translate(
        self, translator: Translator, call: Call | None = None, observations: Any = None, key: Any = None
    ) -> ParticleFilter:
        """Every particle by a trace translator, whose weights account for what it changes.

        ``call`` and ``observations`` say what the new traces are of, by default what the translator says: the
        observations of the new model, all of them.
        """
        if observations is None:
            same_model = not isinstance(translator, GeneralTranslator)
            given = self.observations.merge(translator.observations) if same_model else translator.observations
        else:
            given = checked_choices(observations)
        return self._moved(translator, call, given, key, replace=True)

    def _moved(
        self, translator: Translator, call: Call | None, new: ChoiceMap, key: Any, replace: bool = False
    ) -> ParticleFilter:
        key = random.as_key(key)
        with gen_errors(self.call.gen_fn):
            traces, weights, attic = self._applied(lambda traces: translator(traces, key))
            call = Call(traces.gen_fn, traces.args, {}) if call is None else call
            return self.extended(traces, weights, call, new, replace, attic).tidied()

    def extended(self, traces: VectorizedTrace, weights: mx.array, *step: Any, **more: Any) -> ParticleFilter:
        """One more step, whose traces and weights somebody else has made."""
        return self._reweighted(traces, added(self.log_weights, weights), *step, **more)

    def _reweighted(
        self,
        traces: VectorizedTrace,
        log_weights: mx.array,
        call: Call,
        new: ChoiceMap,
        replace: bool = False,
        attic: Attic = NOTHING,
    ) -> ParticleFilter:
        evaluate(traces, log_weights)
        _require_weight(call, traces, log_weights, new, len(self.history), attic)
        observations = new if replace else self.observations.merge(new)
        made = self._replaced(traces=traces, log_weights=log_weights, call=call, observations=observations, attic=attic)
        return made._noted(self._log_ml)

    def tidied(self) -> ParticleFilter:
        """With the past of its traces put away."""
        self.recent, self.attic = put_away(self.recent, self.attic)
        return self

    # resampling

    def resample(
        self,
        n: int | None = None,
        key: Any = None,
        scheme: str = "systematic",
        priority: Callable | mx.array | None = None,
        check: bool = True,
    ) -> ParticleFilter:
        """``n`` particles, drawn by their weights; ``log_ml`` stays what it was.

        With a ``priority``, log weights ``[n]`` or a function that makes them of the log weights, particles are drawn
        by those, and carry what is left of their weight. Where every weight is zero it raises, or with
        ``check=False`` draws by equal weights, and ``log_ml`` stays -inf.
        """
        n = self.n if n is None else positive_count("n", n)
        chances = self.log_weights if priority is None else _priorities(priority, self.log_weights)
        if not check and not mx.any(chances > -math.inf).item():
            index = resample(mx.zeros((self.n,)), n, random.as_key(key), scheme)
            return self.taken(index, mx.full((n,), -math.inf))
        index = resample(chances, n, random.as_key(key), scheme)
        weights = mx.zeros((n,)) if priority is None else self.log_weights[index] - chances[index]
        return self.taken(index, weights)

    def taken(self, index: mx.array, log_weights: mx.array) -> ParticleFilter:
        """The particles at some indices, with weights up to a factor, which is such that ``log_ml`` stays."""
        import numpy as np

        traces = self.recent.take(index)
        attic = self.attic if self.attic is NOTHING or self.attic is FORGOTTEN else Attic(self.attic, index)
        mean = log_mean(log_weights)
        base = self._log_ml - mean if mean > -math.inf else self.base
        now = np.array(index)
        history = self.history.taken(now, lost_pairs(self.log_weights, now, log_weights))
        return self._replaced(traces=traces, log_weights=log_weights, base=base, history=history, attic=attic)

    def resize(self, n: int, key: Any = None, scheme: str = "multinomial") -> ParticleFilter:
        """``n`` particles, more or fewer, by a resampling scheme; ``log_ml`` stays what it was.

        ``scheme="optimal"``, for fewer, keeps each particle whose weight times c is 1 at least, with its weight, and
        draws the others with weight 1/c each (Fearnhead and Clifford 2003).
        """
        if scheme != "optimal":
            return self.resample(n, key, scheme)
        positive_count("n", n, 1, self.n)
        index, log_weights = optimal_resize(self.log_weights, n, random.as_key(key))
        return self.taken(index, log_weights)

    def replicate(self, times: int) -> ParticleFilter:
        """Each particle so many times, with its weight."""
        positive_count("times", times)
        return self.take([i for i in range(self.n) for _ in range(times)])

    def take(self, indices: Sequence[int] | mx.array) -> ParticleFilter:
        """The particles at some indices, with their weights: a view of a part, or another order of all."""
        import numpy as np

        given = np.asarray(indices)
        whole = given.ndim == 1 and given.size and given.dtype.kind in "iu"
        if not whole or given.min() < -self.n or given.max() >= self.n:
            raise ParameterError(f"no indices: {indices!r:.60}", expected=f"some whole numbers below {self.n}")
        index = mx.array((given % self.n).astype(np.int32))
        taken = self.taken(index, self.log_weights[index])
        return taken._replaced(base=self.base)

    def coalesce(self, by: Any = None) -> ParticleFilter:
        """One particle of those that have the same choices, with their weights added up.

        ``by`` names the addresses to compare, by default all latent ones. Where others differ, the first particle
        stands for all.
        """
        import numpy as np

        named = self.addresses()
        if by is not None:
            require_selectable(self.traces.gen_fn, as_selection(by), self.traces)
            named = [a for a in named if a in as_selection(by)]
        if not named:
            raise UsageError("coalesce has nothing to compare", expected=f"some of {show_addresses(self.addresses())}")
        columns = [column for a in named for column in _columns(self[a])]
        _, first, group = np.unique(np.concatenate(columns, axis=1), axis=0, return_index=True, return_inverse=True)
        logs = np.array(self.log_weights, dtype=np.float64)
        sums = np.full(len(first), -math.inf)
        np.logaddexp.at(sums, group.reshape(-1), logs)
        order = np.argsort(first)
        return self.taken(mx.array(first[order].astype(np.int32)), mx.array(sums[order].astype(np.float32)))

    @classmethod
    def join(cls, parts: Sequence[ParticleFilter]) -> ParticleFilter:
        """The particles of several filters of one model as those of one, each with its share of the evidence.

        They must have the same arguments and observations. The history begins anew.
        """
        if not parts:
            raise UsageError("join was given no filters")
        first = parts[0]
        for part in parts:
            if part.traces.gen_fn is not first.traces.gen_fn or part.observations != first.observations:
                raise UsageError("join was given filters of other models or observations", expected=f"{first!r}")
            if not same_values(part.traces.args, first.traces.args):
                raise UsageError(f"join was given filters of {part.call!r} and {first.call!r}", expected="one call")
        logs = mx.concatenate([part.log_weights + (part.base - first.base) for part in parts])
        traces = concatenate([part.traces for part in parts])
        made = first._replaced(traces=traces, log_weights=logs, history=History())._noted(0.0)
        made.history = made.history.amended(pairs=math.nan)  # where the particles of the parts come from is lost
        return made

    # moves

    def rejuvenate(self, kernel: Any, steps: int = 1, key: Any = None) -> ParticleFilter:
        """Each particle moved by a kernel that leaves its distribution as it is; the weights stay.

        ``kernel`` is one, or the addresses that Metropolis-Hastings draws anew from the prior. It never moves an
        observation: one that does raises.
        """
        keys = random.split(random.as_key(key), positive_count("steps", steps))

        def moved(traces: VectorizedTrace) -> tuple[VectorizedTrace, list]:
            move, accepted = as_move(kernel, self.observations, traces), []
            for own in keys:
                traces, info = move.apply(traces, own)
                accepted += [mx.mean(mx.array(info["accept"]))] if "accept" in info else []
                evaluate(traces, traces.score)
            return traces, accepted

        with pinned(self.recent.pins), gen_errors(self.call.gen_fn):
            traces, accepted, attic = self._applied(moved)
            name = getattr(kernel, "name", None) or getattr(kernel, "__name__", "of rejuvenation")
            self._require_observations(f"the kernel {name}", traces)
        accept = mx.mean(mx.stack(accepted)).item() if accepted else math.nan
        return self._replaced(traces=traces, history=self.history.amended(accept=accept), attic=attic).tidied()

    def move_reweight(self, move: Any, key: Any = None) -> ParticleFilter:
        """Each particle moved, with its weight changed by what the move leaves out.

        ``move`` is a translator within the model, or addresses that are drawn anew from the prior. A kernel leaves
        the weights as they are: see ``rejuvenate``.
        """
        if isinstance(move, Translator):
            moved, weights = move(self.traces, key)
            self._require_observations(repr(move), moved)
        elif isinstance(move, Kernel):
            raise UsageError(f"{move!r} has no weight", expected="a translator, or addresses", hint="rejuvenate")
        else:
            moved, weights, _ = self.traces.regenerate(_movable(move, self.observations), key=key)
        log_weights = mx.where(self.log_weights > -math.inf, self.log_weights + weights, -math.inf)
        evaluate(moved, log_weights)
        _require_weight(self.call, moved, log_weights, self.observations, len(self.history) - 1)
        made, last = self._replaced(traces=moved, log_weights=log_weights), self.history[-1]
        added = last.log_ml_increment + made._log_ml - self._log_ml
        made.history = self.history.amended(log_ml_increment=added, log_ml=made._log_ml)
        return made

    def _require_observations(self, name: str, traces: VectorizedTrace) -> None:
        for address, value in self.observations.items():
            try:
                found = found_at(traces, address)
            except TakenAway:  # and is not moved there
                continue
            if not mx.all(value_of(found) == mx.array(value)).item():
                raise GenError(
                    f"{name} moved an observed choice",
                    address=address,
                    gen_fn=self.call.gen_fn,
                    expected="the observed value, which conditions the posterior",
                    hint="leave it out of the kernel's selection or proposal",
                )


def as_move(move: Any, observations: ChoiceMap, traces: VectorizedTrace | None = None) -> Kernel:
    """A kernel from what a user passes: one, or addresses to draw anew from the prior by Metropolis-Hastings.

    Some of those addresses must be in ``traces``, where these are given.
    """
    if isinstance(move, Kernel) or (callable(move) and not isinstance(move, Selection)):
        return as_kernel(move)
    selection = _movable(move, observations)
    if traces is not None and traces.choices.filter(selection).is_empty:
        require_selectable(traces.gen_fn, selection, traces)
        raise UsageError("there is nothing to move: the selection is empty", gen_fn=traces.gen_fn)
    return Kernel(regenerate_step(selection), name="mh_kernel")


def _movable(move: Any, observations: ChoiceMap) -> Selection:
    """The addresses to draw anew, of which none that is named may be observed."""
    selection = as_selection(move)
    for address in observations.filter(selection):
        if address in selection.named():
            raise UsageError(f"the selection holds {show_address(address)}, which is observed")
    return selection & latents(observations)


def evaluate(traces: VectorizedTrace, *more: mx.array) -> None:
    """Compute all arrays of a batch, so that the graph of one step ends there."""
    mx.eval(split_arrays(traces.lanes)[0], *more)


def _require_weight(
    call: Call,
    traces: VectorizedTrace,
    log_weights: mx.array,
    observations: ChoiceMap,
    step: int,
    attic: Attic = NOTHING,
) -> None:
    if _has_nan(log_weights):
        traces = brought_back(traces, attic)
        broken = (a for a in traces.choices if mx.any(mx.isnan(traces.project(select(a)))).item())
        raise ParameterError(
            f"after step {step} a particle's weight is NaN: so is a density of the model at a draw",
            address=next(broken, None),
            gen_fn=call.gen_fn,
        )
    if log_mean(log_weights) > -math.inf:
        return
    error = impossible(call, brought_back(traces, attic), observations)
    raise DegenerateWeights(
        f"after step {step} every particle has weight zero: {error.what}",
        address=error.address,
        gen_fn=call.gen_fn,
        expected=error.expected,
        hint="more particles, a proposal that looks at the observation, or rejuvenation",
    )


def _has_nan(log_weights: mx.array) -> bool:
    import numpy as np

    return bool(np.isnan(np.array(log_weights)).any())


def _priorities(priority: Any, log_weights: mx.array) -> mx.array:
    given: Any = priority(log_weights) if callable(priority) else priority
    found = mx.array(given)
    if found.shape != log_weights.shape:
        raise ParameterError(f"priorities of shape {list(found.shape)}", expected=f"[{log_weights.size}] log weights")
    lost = mx.logical_and(log_weights > -math.inf, mx.logical_not(found > -math.inf))
    if mx.any(lost).item():
        raise ParameterError("a particle that has weight has priority zero, or NaN: it could never be drawn")
    return mx.where(log_weights > -math.inf, found, -math.inf)


def _columns(leaf: Any) -> list[Any]:
    """The values at an address as columns of numbers, numpy ``[n, k]``; a choice that is not there is 0."""
    import numpy as np

    values = np.array(value_of(leaf))
    values = values.reshape(len(values), math.prod(values.shape[1:])).astype(np.float64)
    if not isinstance(leaf, Masked):
        return [values]
    active = np.array(leaf.active)[:, None]
    return [active.astype(np.float64), np.where(active, values, 0.0)]
