"""Expectations of generative functions as values that can be differentiated.

A run is differentiated through its draws where they are reparameterised, and has a term for each other draw whose mean
is the derivative that this misses (Lew, Huot, Staton and Mansinghka 2023, "ADEV: sound automatic differentiation of
expected values of probabilistic programs"; Becker et al. 2024, "Probabilistic programming with programmable variational
inference"). Each term is zero and only its derivative is not, so that the value is that of a plain run (Foerster et al.
2018, "DiCE").
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import optree

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.display import mimebundle, pretty
from genmlx.errors import UnknownAddress, UsageError, name_of, nearest
from genmlx.gfi import Call, gen_errors
from genmlx.gradients import _NO_GRADIENT, _is_real, host_value_errors
from genmlx.inference.adev.baselines import read_baseline
from genmlx.inference.adev.lanes import Terms, derivative_only, run_rows, weighed
from genmlx.inference.adev.replayed import Replayed
from genmlx.inference.adev.sites import Plan, assigned, find_sites
from genmlx.inference.log_density import is_traced
from genmlx.inference.problem import checked_problem, positive_count
from genmlx.params import noted_reads, overridden, peek
from genmlx.pytree import NAMESPACE, flatten
from genmlx.vectorized import Lanes, run
from genmlx.versions import pinned

_GRAPHS = 8


@dataclass(frozen=True)
class Estimate:
    """``value``, the mean of independent runs, and its standard ``error``; the ``variance`` is that of one run.

    The error is zero where every run gave the same, and NaN for a single run.
    """

    value: mx.array
    error: mx.array
    samples: int

    @property
    def variance(self) -> mx.array:
        return self.samples * self.error * self.error

    @classmethod
    def of(cls, each: mx.array) -> Estimate:
        """That of values ``[samples, ...]``, in float64."""
        import numpy as np

        n, values = each.shape[0], np.array(each, dtype=np.float64)
        spread = values.std(axis=0, ddof=1) if n > 1 else np.full(values.shape[1:], math.nan)
        value, error = [mx.array(np.asarray(x, np.float32)) for x in (values.mean(axis=0), spread / math.sqrt(n))]
        return cls(value, error, n)

    def __repr__(self) -> str:
        from genmlx.choicemap import show_value

        return f"Estimate({show_value(self.value)} ± {show_value(self.error)}, {self.samples} samples)"


@dataclass(frozen=True)
class Gradient:
    """The derivatives of an expectation, each an ``Estimate``, and its ``value``.

    ``args`` has the structure of the call's arguments, with None for what is not real; ``params`` is
    {(model, name): estimate}, and ``gradient["theta"]`` the one of that name. ``estimators`` are those of the sites.
    """

    value: Estimate
    args: tuple
    params: dict[tuple, Estimate]
    estimators: dict[tuple, str]

    def __getitem__(self, name: str) -> Estimate:
        found = [estimate for (_, own), estimate in self.params.items() if own == name]
        if len(found) != 1:
            known = [own for _, own in self.params]
            raise UnknownAddress(
                f"{'several models have a parameter' if found else 'no parameter was read that is called'} {name!r}",
                expected="params[model, name]" if found else f"one of {', '.join(map(repr, known)) or 'none'}",
                suggestions=[] if found else nearest((name,), [(own,) for own in known]),
            )
        return found[0]

    _repr_mimebundle_, _repr_pretty_ = mimebundle, pretty

    def __repr__(self) -> str:
        rows = [f"value {self.value!r}"]
        rows += [f"args[{i}] {a!r}" for i, a in enumerate(self.args) if a is not None]
        rows += [f"{name_of(model)}.{name} {estimate!r}" for (model, name), estimate in self.params.items()]
        return f"<Gradient: {', '.join(rows)}>"


class Expectation:
    """E[cost] over the runs of a call; see ``expectation``. ``estimators`` says how each address is differentiated."""

    def __init__(self, call: Call, cost: Callable | None, estimator: Any, baseline: Any):
        checked_problem(call, None)
        if cost is not None and not callable(cost):
            raise UsageError(f"the cost is {cost!r:.40}", expected="a function of a trace that gives a number")
        self.call, self._gen_fn = call, call.gen_fn
        self._cost = cost or (lambda trace: trace.retval)
        self.baseline = read_baseline(baseline)
        self._graphs: OrderedDict[int, Replayed] = OrderedDict()
        with pinned() as pins, gen_errors(self._gen_fn):
            self._leaves, self._spec = flatten(self._gen_fn.own(call))
            self._places = [i for i, leaf in enumerate(self._leaves) if _is_real(leaf)]
            self._params = self._reads()
            sites = find_sites(self._run, self._values())
            self.estimators = assigned(self._gen_fn, sites, estimator, joint=False)
            self._plan = Plan(sites, self.estimators)
        self._pins = dict(pins)

    @property
    def rows(self) -> int:
        """How many runs with the same noise one sample takes: the combinations of enumerated values, and two more for
        each weak derivative."""
        return self._plan.rows

    def value(self, samples: int = 1000, key: Any = None) -> Estimate:
        """The expectation, of ``samples`` independent runs at once. Where all is enumerated it is exact, with one."""
        positive_count("samples", samples)
        with self._context():
            return Estimate.of(mx.sum(self._terms(self._values(), samples, random.as_key(key)).cost, axis=-1))

    def grad(self, samples: int = 1000, key: Any = None) -> Gradient:
        """Its derivatives in the real arguments and in the parameters, unbiased, with their errors.

        Memory is ``samples`` times that of the parameters. With the leave-one-out baseline the runs depend on each
        other a little: the errors are then right to a relative 1 / samples.
        """
        self._require(samples)
        values = self._values()
        if not values:
            raise UsageError(
                "nothing to differentiate in",
                gen_fn=self._gen_fn,
                expected="a real argument, or a param(...) that the body reads",
            )
        inputs = (random.as_key(key), self.baseline.offset(self._plan.combinations), *values)
        if any(map(is_traced, inputs)):
            raise UsageError(
                "grad inside of another transformation",
                gen_fn=self._gen_fn,
                expected="values",
                hint="estimate(...), which mx.grad and mx.vmap may transform",
            )
        graph = self._graphs.setdefault(samples, Replayed(lambda *arrays: self._per_sample(samples, *arrays)))
        while len(self._graphs) > _GRAPHS:
            self._graphs.popitem(last=False)
        cost, *gradients = graph(*inputs)
        self.baseline.add(mx.mean(cost, axis=0))
        each = [Estimate.of(g) for g in gradients]
        by_place = dict(zip(self._places, each, strict=False))
        return Gradient(
            Estimate.of(mx.sum(cost, axis=-1)),
            self._as_args(by_place),
            dict(zip(self._params, each[len(self._places) :], strict=True)),
            dict(self.estimators),
        )

    def estimate(self, samples: int = 1000, key: Any = None) -> mx.array:
        """The mean of ``samples`` runs as a number that ``mx.grad`` may differentiate, in what the call was made of.

        Its derivative is an unbiased estimate of that of the expectation. A function of it that is not linear, as its
        logarithm, is as biased as any function of a mean is.

        >>> from genmlx import normal
        >>> def f(mu):
        ...     return expectation(normal(mu, 1.0), lambda tr: tr.retval ** 2).estimate(10_000, key=0)
        >>> value, slope = mx.value_and_grad(f)(mx.array(1.5))
        >>> abs(value.item() - 3.25) < 0.1, abs(slope.item() - 3.0) < 0.1      # mu^2 + 1, and 2 mu
        (True, True)
        """
        self._require(samples)
        key, offset = random.as_key(key), self.baseline.offset(self._plan.combinations)
        with self._context():
            return mx.mean(self._surrogate(self._terms(self._values(), samples, key), offset))

    # one evaluation

    def _per_sample(self, samples: int, key: mx.array, offset: mx.array, *values: mx.array) -> list:
        """The cost ``[samples, C]``, and for each sample its gradient: every lane has the values as its own."""

        def total(each: list) -> tuple[mx.array, mx.array]:
            terms = self._terms(Lanes(each), samples, key)
            return mx.sum(self._surrogate(terms, offset)), terms.cost

        with self._context(), host_value_errors("differentiated"):
            each = [mx.broadcast_to(v, (samples, *v.shape)) for v in values]
            (_, cost), gradients = mx.value_and_grad(total)(each)
        return [cost, *gradients]

    def _terms(self, values: Any, samples: int, key: Any) -> Terms:
        """Those of ``samples`` lanes: the values are shared, or a ``Lanes`` of them."""

        def lane(key: Any, values: list) -> list:
            with self._with(values) as args:
                rows = run_rows(self._plan, self._gen_fn, args, lambda trace: [self._cost(trace)], key)
            terms = weighed(self._plan, rows)
            return [x for x in terms if x is not None]

        found = run(lane, samples, key, values)
        score = found[1] if len(found) == 3 else None
        return Terms(found[0], score, found[-1])

    def _surrogate(self, terms: Terms, offset: mx.array) -> mx.array:
        """For each sample, ``[samples]``, what has its cost as its value and an unbiased derivative."""
        cost, score, weak = terms
        total = mx.sum(cost, axis=-1) + weak
        if score is None:
            return total
        return total + mx.sum(derivative_only(score, cost - self.baseline.of(cost, offset)), axis=-1)

    def _run(self, values: list, choices: ChoiceMap, key: Any) -> Any:
        with self._with(values) as args:
            return self._gen_fn._generate(args, choices, key)[0]

    # values

    @contextmanager
    def _with(self, values: list) -> Iterator[tuple]:
        """The parameters in their places for a run, and the arguments."""
        own, given = values[: len(self._places)], values[len(self._places) :]
        with overridden(dict(zip(self._params, given, strict=True))):
            yield self._filled(dict(zip(self._places, own, strict=True)))

    def _values(self) -> list[mx.array]:
        """What is differentiated in: the real arguments and the parameters."""
        own = [_array(self._leaves[i]) for i in self._places]
        return own + [_array(peek(model, name)) for model, name in self._params]

    def _filled(self, by_place: dict[int, Any]) -> Any:
        leaves: Any = [by_place.get(i, leaf) for i, leaf in enumerate(self._leaves)]
        return optree.tree_unflatten(self._spec, leaves)

    def _as_args(self, by_place: dict[int, Estimate]) -> Any:
        # None is a structure without leaves to optree: a marker stands for it until the structure is there.
        leaves: Any = [by_place.get(i, _NO_GRADIENT) for i in range(len(self._leaves))]
        tree: Any = optree.tree_unflatten(self._spec, leaves)
        return optree.tree_map(lambda leaf: None if leaf is _NO_GRADIENT else leaf, tree, namespace=NAMESPACE)

    def _reads(self) -> list[tuple]:
        """The parameters that the run or its cost reads."""

        def lane(key: Any) -> mx.array:
            return mx.array(self._cost(self._gen_fn._simulate(args, key)))

        args = self._filled({i: _array(self._leaves[i]) for i in self._places})
        with noted_reads() as found:
            run(lane, 1, mx.random.key(0))
        return list(found)

    def _require(self, samples: int) -> None:
        positive_count("samples", samples)
        if self._plan.reinforced:
            self.baseline.require(samples, "samples")

    @contextmanager
    def _context(self) -> Iterator[None]:
        with pinned(self._pins), gen_errors(self._gen_fn):
            yield

    def __repr__(self) -> str:
        shown = ", ".join(f"{'/'.join(map(str, a)) or '()'}: {name}" for a, name in list(self.estimators.items())[:6])
        return f"<Expectation over {self.call!r}: {shown or 'no choices'}>"


def expectation(
    call: Call, cost: Callable | None = None, *, estimator: Any = None, baseline: Any = "leave-one-out"
) -> Expectation:
    """E[cost(trace)] over the runs of ``call``, as a value with derivatives in its arguments and parameters.

    ``cost`` is a function of the trace of one run that gives a number; by default it is the return value. It may depend
    on the parameters itself. ``estimator`` is a name for all sites, or {address: name}, which holds for all below it:

    - ``"reparam"``: through the draw, which is a differentiable function of the parameters. The default where the
      distribution is reparameterised. The cost must be differentiable, and continuous, in the draw.
    - ``"enumerate"``: the sum over all values of a finite support, without variance. The default for other sites as
      long as there are at most 64 combinations of values.
    - ``"reinforce"``: the cost times the derivative of the log density (Williams 1992), for any distribution and cost;
      the default for the rest.
    - ``"measure_valued"``: two more runs for each element and parameter, from the parts of the weak derivative, for
      any cost; of normal, poisson, exponential, bernoulli and geometric.

    ``baseline`` is what REINFORCE takes from the cost: ``"leave-one-out"``, the mean of the other samples;
    ``"running"`` or ``RunningMean(decay)``, that of the calls of ``grad`` before; a number; or None.

    An estimator that a site cannot have raises, and so does a body that takes the host value of a choice, an argument
    or a parameter. What body and cost read from elsewhere may be read only once: repeated calls of ``grad`` replay a
    recorded graph.

    >>> import mlx.core as mx
    >>> from genmlx import flip, gen, trace
    >>> @gen
    ... def bet(p):
    ...     return mx.where(trace("win", flip(p)) == 1, 0.0, -p / 2)
    >>> gradient = expectation(bet(0.3)).grad(samples=1)             # E = -p (1 - p) / 2
    >>> round(gradient.value.value.item(), 6), round(gradient.args[0].value.item(), 6)
    (-0.105, -0.2)
    """
    return Expectation(call, cost, estimator, baseline)


def _array(value: Any) -> mx.array:
    return value if isinstance(value, mx.array) else mx.array(float(value))
