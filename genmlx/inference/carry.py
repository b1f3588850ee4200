"""A posterior that survives an edit: its draws carried to a new version of the model, or to another model.

Each draw is a step of sequential Monte Carlo from the old posterior to the new (Del Moral, Doucet and Jasra 2006). The
forward kernel keeps the choices at addresses that both models have and draws new ones by the new model's internal
proposal; the backward kernel draws dropped ones by the old model's. Their densities leave, for a draw t and its new t',

    log weight = log p'(kept choices and observations in t') - log p(kept choices and observations in t),

each term of a choice given the choices before it. The draws are resampled by these weights, and moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap, covering, from_items
from genmlx.dist.values import as_array
from genmlx.errors import (
    BatchError,
    ImpossibleObservation,
    UsageError,
    ValueMismatch,
    name_of,
    show_address,
)
from genmlx.gfi import Call, as_weight, gen_errors
from genmlx.inference.carried import Carried, Carrying, khat, weights_error
from genmlx.inference.chains import run_kernel
from genmlx.inference.gradient_chains import _constrained, walk_of
from genmlx.inference.kernels import Kernel, as_kernel, chain
from genmlx.inference.leapfrog import metric
from genmlx.inference.log_density import LogDensity
from genmlx.inference.loop import Loop
from genmlx.inference.mh import mh_kernel
from genmlx.inference.nuts import sampler
from genmlx.inference.posterior import Posterior
from genmlx.inference.predictive import each_draw
from genmlx.inference.problem import checked_problem, positive_count
from genmlx.inference.resampling import effective_size, resample
from genmlx.inference.warmup import Welford
from genmlx.masked import Masked, active_of, value_of
from genmlx.selection import select
from genmlx.vectorized import vgenerate
from genmlx.versions import pinned

_BLOCKS = 32  # parts of a sweep of Metropolis-Hastings at most
_SETTINGS = ("accept", "diverging", "step_size", "n_leapfrog")


def carry(
    posterior: Posterior,
    call: Call,
    observations: Any = None,
    draws: int | None = None,
    rejuvenate: Any = "auto",
    steps: int = 10,
    key: Any = None,
    progress: Callable | None = None,
) -> Carried:
    """The draws of a posterior as draws of the posterior of ``call``, which may be of another version or model.

    The result has the chains of the old one, and as many draws in each, or ``draws``. ``observations`` are by default
    those of the posterior. A choice is kept where the new model has the address with the same shape and kind; one whose
    value has density zero in every draw is drawn anew. ``rejuvenate`` moves each draw ``steps`` times: "nuts", with the
    posterior's step size and a mass matrix of the weighted draws; "mh", one address after the other; a kernel; or None.
    "auto" is nuts where all latent choices are continuous, else mh. All draws move in one batch.

    ``result.carrying`` has the weights and their effective size, and warns where that is below 100 or 5% of the draws.
    The result is no Markov chain. Copies of a draw lie side by side, where the draw lay in its chain, so that they
    count as one as long as they have not moved apart, and ``rhat`` still compares the chains of the old posterior.
    ``ess`` and ``mcse`` have the error of the weights in them (``Carried``). None of these sees a region that the old
    draws never entered.

    >>> from genmlx import gen, mh, normal, trace
    >>> @gen
    ... def model(scale):
    ...     trace("y", normal(trace("mu", normal(0, scale)), 1))
    >>> post = mh(model(1.0), {"y": 2.0}, draws=1000, chains=4, key=mx.random.key(0))
    >>> new = carry(post, model(2.0), key=mx.random.key(1))      # y * 4 / (4 + 1), and not y * 1 / (1 + 1)
    >>> new["mu"].shape, abs(new.mean("mu").item() - 1.6) < 0.1
    ((4, 1000), True)
    """
    given = posterior.observations if observations is None else observations
    observed = checked_problem(call, given)
    count = posterior.draws if draws is None else positive_count("draws", draws)
    positive_count("steps", steps, 0)
    kernel = _checked_kernel(rejuvenate)
    keys = random.streams(key)
    with pinned() as pins, gen_errors(call.gen_fn):
        weighed, carrying = Weighing(posterior, call, observed, keys.initialise, progress).run()
        chosen = resample(carrying.log_weights.reshape(-1), posterior.chains * count, keys.resample)
        choices, score = _taken(weighed, chosen)
        start = Cloud(call, observed, choices, score, (posterior.chains, count))
        timing = dict(weighed.timing)
        if kernel is None or steps == 0 or weighed.status != "complete":
            moved, algorithm = start.stay(), "carry"
        else:
            moved, algorithm, carrying.moves = start.move(kernel, steps, posterior, keys.propose, progress)
            timing = {name: timing.get(name, 0.0) + moved.timing.get(name, 0.0) for name in {*timing, *moved.timing}}
        shape = (posterior.chains, count)
        result = Carried(
            {a: moved.values_at(a).reshape(*shape, *moved.values_at(a).shape[2:]) for a in moved.addresses()},
            present={a: mask.reshape(shape) for a in moved.addresses() if (mask := moved.present_at(a)) is not None},
            stats={name: v.reshape(shape) for name, v in moved.stats.items() if name in _SETTINGS},
            log_joint=moved.log_joint.reshape(shape),
            call=call,
            pins=pins,
            observations=observed,
            algorithm=algorithm,
            status=weighed.status if weighed.status != "complete" else moved.status,
            timing=timing,
            execution=moved.execution,
        )
    result.carrying, result.notes = carrying, carrying.lines()
    result.lost = weights_error(weighed, carrying, choices, score, result)
    return result


class Weighing:
    """The draws of a posterior in the new model, each with its weight."""

    def __init__(self, posterior: Posterior, call: Call, observations: ChoiceMap, key: Any, progress: Callable | None):
        self.posterior, self.call, self.observations = posterior, call, observations
        self.key, self.progress = key, progress
        self.args = call.gen_fn.own(call)
        self.redrawn: dict[tuple, str] = {}

    def run(self) -> tuple[Posterior, Carrying]:
        self._find_misfits()
        weighed = self._weigh()
        impossible = self._impossible(weighed)
        while hopeless := [a for a in self._kept(weighed) if impossible.get(a, 0) == weighed.log_joint.size]:
            self.redrawn |= dict.fromkeys(hopeless, "outside of its support in every draw")
            weighed = self._weigh()
            impossible = self._impossible(weighed)
        log_weights = weighed.stats["log_weight"]
        if not mx.any(log_weights > -math.inf).item():
            raise ImpossibleObservation(
                "no draw of the posterior is possible in the new model",
                address=next(iter(impossible), None),
                gen_fn=self.call.gen_fn,
                expected="some draws with a positive density",
                hint="sample anew",
            )
        kept, old = self._kept(weighed), self.posterior.addresses()
        return weighed, Carrying(
            before=_shown(self.posterior.call, self.posterior.pins, self._edited()),
            after=_shown(self.call, {}, self._edited()),
            kept=kept,
            new=[a for a in weighed.addresses() if a not in kept],
            dropped=[a for a in old if a not in kept],
            log_weights=log_weights,
            ess=float(effective_size(log_weights.reshape(-1))),
            redrawn=self.redrawn,
            impossible={a: n for a, n in impossible.items() if n},
            khat=khat(log_weights),
        )

    def _edited(self) -> list[Any]:
        """The models that the posterior's calls, and that have another version now."""
        old = self.posterior.call
        if old is None or self.call.gen_fn is not old.gen_fn:
            return []
        return [h for h, v in self.posterior.pins.items() if h is not old.gen_fn and h.version is not v]

    def _kept(self, weighed: Posterior) -> list[tuple]:
        return [a for a in self.posterior.addresses() if a in weighed and a not in self.redrawn]

    def _find_misfits(self) -> None:
        """Addresses of both models that hold another kind of thing: their values cannot be kept."""
        first = self.call.generate(self.observations, self.key).trace.choices
        for address in self.posterior.addresses():
            here = first.sub(address)
            if any(first.sub(address[:i]).is_leaf for i in range(1, len(address))):
                self.redrawn[address] = "part of one choice now"
            elif here.is_leaf:
                new, old = as_array(value_of(here.value)), self.posterior.values_at(address)
                if new.shape != old.shape[2:]:
                    self.redrawn[address] = f"the shape {list(old.shape[2:])} is {list(new.shape)} now"
                elif mx.issubdtype(new.dtype, mx.floating) != mx.issubdtype(old.dtype, mx.floating):
                    kinds = ("discrete", "continuous")
                    now = mx.issubdtype(new.dtype, mx.floating)
                    self.redrawn[address] = f"{kinds[not now]} before, {kinds[now]} now"
            elif not here.is_empty:
                self.redrawn[address] = "several choices now"

    def _weigh(self, sites: bool = False) -> Posterior:
        """Latent choices in the new model, ``log_weight``, and with ``sites`` the log density at each address."""
        posterior, gen_fn, old_call = self.posterior, self.call.gen_fn, self.posterior.call
        observed, misfits = covering(self.observations), select(*self.redrawn) if self.redrawn else select.none()
        old_observed = posterior.observations.addresses()

        def draw(key: Any, latent: ChoiceMap) -> tuple[ChoiceMap, Any, dict]:
            known = latent.without(observed).without(misfits)
            new, weight = gen_fn._generate(self.args, self.observations.merge(known), key)
            gen_fn.require_visited(new, self.observations)
            choices = new.choices
            shared = [a for a in known if a in choices]
            # Where nothing is dropped it is the old density of all choices, which the posterior has.
            whole = len(shared) == len(latent) and not any(isinstance(choices[a], Masked) for a in shared)
            before = 0.0 if whole else _log_density(old_call, posterior, latent, shared, old_observed, choices)
            info = {"log_weight": as_weight(weight) - before, "whole": mx.array(whole)}
            if sites:
                addresses = [*shared, *self.observations.addresses()]
                info |= {("at", a): as_weight(new.gen_fn._project(new, select(a))) for a in addresses}
            return choices.without(observed), new.score, info

        found = each_draw("carry", posterior, draw, self.key, self.progress)
        log_joint = posterior.log_joint[:, : found.draws]
        stats = found.stats
        stats["log_weight"] = stats["log_weight"] - mx.where(stats.pop("whole"), log_joint, 0.0)
        return found

    def _impossible(self, weighed: Posterior) -> dict[tuple, int]:
        """How many draws have density zero at an address."""
        if not mx.any(weighed.stats["log_weight"] == -math.inf).item():
            return {}
        stats: Any = self._weigh(sites=True).stats
        counts = {name[1]: mx.sum(v == -math.inf) for name, v in stats.items() if isinstance(name, tuple)}
        return {address: int(count) for address, count in counts.items()}


def _log_density(
    call: Call | None, posterior: Posterior, latent: ChoiceMap, shared: list, observed: list, choices: ChoiceMap
) -> Any:
    """The log density, in the old model, of the shared choices of a draw and of the observations."""
    if call is None:
        raise UsageError(
            "carry has to drop choices, and this posterior was loaded without its model",
            hint="Posterior.load(path, call=line(xs))",
        )
    with pinned(posterior.pins):
        # Without a key nothing can be sampled: a choice that the draw has not raises.
        old, _ = call.gen_fn._generate(call.args, posterior.observations.merge(latent), None)
        fixed = [*observed, *(a for a in shared if not isinstance(choices[a], Masked))]
        total = as_weight(call.gen_fn._project(old, select(*fixed) if fixed else select.none()))
        for address in shared:
            if isinstance(choices[address], Masked):
                density = as_weight(call.gen_fn._project(old, select(address)))
                total = total + mx.where(mx.array(active_of(choices[address])), density, 0.0)
    return total


def _taken(weighed: Posterior, chosen: mx.array) -> tuple[dict[tuple, Any], mx.array]:
    """The draws at some indices, all chains one after the other: leaves of ``[n, *event]``, and scores."""

    def take(array: mx.array) -> mx.array:
        return array.reshape(-1, *array.shape[2:])[chosen]

    leaves = {}
    for address in weighed.addresses():
        mask, value = weighed.present_at(address), take(weighed.values_at(address))
        leaves[address] = value if mask is None else Masked(value, take(mask))
    return leaves, take(weighed.log_joint)


class Cloud:
    """Equally weighted draws of the new posterior, and how they are moved."""

    def __init__(self, call: Call, observations: ChoiceMap, leaves: dict, score: mx.array, shape: tuple[int, int]):
        self.call, self.observations, self.leaves, self.score = call, observations, leaves, score
        self.shape, self.n = shape, score.size

    def stay(self, shape: tuple[int, int] | None = None) -> Posterior:
        shape = shape or (self.n, 1)
        leaves = {a: value_of(leaf).reshape(*shape, *value_of(leaf).shape[1:]) for a, leaf in self.leaves.items()}
        masks = {a: leaf.active.reshape(shape) for a, leaf in self.leaves.items() if isinstance(leaf, Masked)}
        return Posterior(
            leaves,
            present=masks,
            stats={},
            log_joint=self.score.reshape(shape),
            call=self.call,
            observations=self.observations,
            execution="not moved",
        )

    def move(
        self, kernel: Any, steps: int, old: Posterior, key: Any, progress: Callable | None
    ) -> tuple[Posterior, str, str]:
        """The draws after some steps, the name of the algorithm, and a line about the moves."""
        why = ""
        if kernel in ("auto", "nuts"):
            try:
                moved = self._nuts(steps, _step_size(old), key, progress)
                return moved, "carry(nuts)", _moves("nuts", steps, moved)
            except (UsageError, BatchError, ValueMismatch) as error:
                if kernel == "nuts":
                    raise
                if isinstance(error, ValueMismatch):
                    why = f", as {show_address(error.address or ())} lies on the edge of its support in a draw"
                kernel = "mh"
        name = "mh" if kernel == "mh" else kernel.name
        step = self._sweep() if kernel == "mh" else kernel
        try:
            choices = from_items(self.leaves.items(), self.n)
            start = vgenerate(self.call, self.observations.merge(choices), self.n, key).trace
            moved = run_kernel(
                step, start, draws=1, thin=steps, observations=self.observations, key=key, progress=progress
            )
        except BatchError:
            moved = self._one_by_one(step, steps, key, progress)
        return moved, f"carry({name})", _moves(name, steps, moved) + why

    def _nuts(self, steps: int, step_size: float | None, key: Any, progress: Callable | None) -> Posterior:
        density = LogDensity(self.call, self.observations)
        start = density.pack(from_items(self.leaves.items(), self.n))
        spread = Welford(density.dim, dense=False)
        spread.add(start)
        streams = random.streams(key)
        with Loop("carry", progress) as loop:
            walk = walk_of("nuts", density, sampler, start, settings={"max_depth": 10})
            # Near the best for a Gaussian of that many dimensions, where the old posterior has none to tell.
            size = step_size or density.dim**-0.25
            walk.tune(size, metric(spread.regularised(), density.dim))
            positions, stats = walk.run(loop, streams, draws=1, warmup=0, thin=steps, step_size=size)
            values, log_joint = _constrained(density, positions, walk.joint)
        found = Posterior(
            values,
            stats=stats,
            log_joint=log_joint,
            call=self.call,
            observations=self.observations,
            status=loop.status,
            timing=loop.timing,
            execution=walk.execution,
        )
        return loop.deliver(found)

    def _sweep(self) -> Kernel:
        """Metropolis-Hastings from the prior, at one address after the other, or at some at once where there are many.

        An address that a draw does not have is passed over.
        """
        addresses = list(self.leaves)
        each = -(-len(addresses) // _BLOCKS)
        blocks = [addresses[i : i + each] for i in range(0, len(addresses), each)]
        return chain(*[mh_kernel(select(*block), strict=False) for block in blocks])

    def _one_by_one(self, kernel: Kernel, steps: int, key: Any, progress: Callable | None) -> Posterior:
        """Of a model that branches on its choices."""
        observed = covering(self.observations)

        def draw(key: Any, latent: ChoiceMap) -> tuple[ChoiceMap, Any, dict]:
            trace, _ = self.call.gen_fn._generate(self.call.args, self.observations.merge(latent), None)
            accepted = []
            for own in random.split(key, steps):
                trace, info = kernel.apply(trace, own)
                accepted.append(info.get("accept", math.nan))
            accept = mx.mean(mx.stack([mx.array(a).astype(mx.float32) for a in accepted]))
            return trace.choices.without(observed), trace.score, {"accept": accept}

        return each_draw("carry", self.stay(self.shape), draw, key, progress)


def _checked_kernel(rejuvenate: Any) -> Any:
    if rejuvenate is None or rejuvenate in ("auto", "nuts", "mh"):
        return rejuvenate
    if isinstance(rejuvenate, str):
        raise UsageError(f"no way {rejuvenate!r} to move draws", expected='"auto", "nuts", "mh", a kernel, or None')
    return as_kernel(rejuvenate)


def _step_size(posterior: Posterior) -> float | None:
    if "step_size" not in posterior.stats:
        return None
    size: Any = posterior.stats["step_size"][0, -1].item()
    return size if 0 < size < math.inf else None


def _moves(name: str, steps: int, moved: Posterior) -> str:
    line = f"{steps} steps of {name}"
    if "accept" not in moved.stats:
        return line
    accept: Any = mx.mean(mx.nan_to_num(moved.stats["accept"].astype(mx.float32))).item()
    return f"{line}, acceptance {accept:.2f}"


def _shown(call: Call | None, pins: dict, inner: list[Any]) -> str:
    """The model and its version, with those of models inside of it: ``line v2 (prior v3)``."""
    if call is None:
        return "a saved posterior"

    def of(gen_fn: Any) -> str:
        version = pins.get(gen_fn, getattr(gen_fn, "version", None))
        return " ".join(str(part) for part in (name_of(gen_fn), version) if part is not None)

    return of(call.gen_fn) + (f" ({', '.join(map(of, inner))})" if inner else "")
