"""The sites of a generative function: what each is, and which estimator takes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.address import normalise
from genmlx.choicemap import EMPTY, ChoiceMap, from_items
from genmlx.errors import GenError, ParameterError, UnknownAddress, UsageError, name_of, nearest, one_of, show_address
from genmlx.inference.adev.leaves import Asked, Perturbed, Stopped, Traits
from genmlx.inference.adev.measure_valued import RULES
from genmlx.masked import Masked, value_of
from genmlx.selection import ALL, Selection, select
from genmlx.vectorized import Lanes, run

REPARAM, REINFORCE, ENUMERATE, MEASURE_VALUED = "reparam", "reinforce", "enumerate", "measure_valued"
ESTIMATORS = (REPARAM, REINFORCE, ENUMERATE, MEASURE_VALUED)
STOPPED = "stopped"  # drawn as a constant, whose distribution is not differentiated at all

_FEW = 64
"""Combinations of values that are enumerated without being asked for."""
_MOST = 10_000


class EstimatorError(GenError, ValueError):
    """An estimator that a site cannot have."""


class Site(NamedTuple):
    """One choice: its shape, with the axes of ``vmap`` first, and the distributions that are met there."""

    address: tuple
    shape: tuple
    optional: bool
    traits: list[Traits]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def reparameterised(self) -> bool:
        return all(t.reparameterised for t in self.traits)

    @property
    def moving(self) -> bool:
        return any(t.moving for t in self.traits)

    @property
    def values(self) -> range | None:
        """Those of one element, where an enumeration may take them."""
        first = self.traits[0].values
        return None if self.optional or any(t.values != first for t in self.traits) else first

    @property
    def combinations(self) -> float:
        return math.inf if self.values is None else float(len(self.values)) ** self.size

    def why_not(self, estimator: str) -> str | None:
        """What keeps an estimator from this site; None where nothing does."""
        names = " and ".join(dict.fromkeys(name_of(t.family) for t in self.traits))
        if estimator == REPARAM and not self.reparameterised:
            return f"a draw of {names} is not a differentiable function of its parameters"
        if estimator == REINFORCE and self.moving:
            return f"the support of {names} depends on what is differentiated, or on other choices"
        if estimator == ENUMERATE and self.optional:
            return "the choice exists in some runs and not in others"
        if estimator == ENUMERATE and self.values is None:
            return f"the values of {names} are not finitely many, or not known before the run"
        if estimator == MEASURE_VALUED and (len(self.traits) > 1 or type(self.traits[0].family) not in RULES):
            return f"no weak derivative of {names} is known"
        return None


def find_sites(run_one: Callable[[list, ChoiceMap, Any], Any], values: list[mx.array]) -> dict[tuple, Site]:
    """Every choice of a batched run, in order. ``run_one(values, choices, key)`` gives the trace of a run with these
    values of all that is differentiated, and these leaves."""
    record: dict[tuple, list[Traits]] = {}
    lanes, key = Lanes([value[None] for value in values]), mx.random.key(0)
    leaves = dict(run(lambda key, own: run_one(own, EMPTY, key).choices, 1, key, lanes).items())
    shapes = {address: value_of(leaf).shape[1:] for address, leaf in leaves.items()}

    def ask(key: Any, own: list) -> mx.array:
        return run_one(
            own, from_items((a, Asked(mx.zeros(shape), a, record)) for a, shape in shapes.items()), key
        ).score

    run(ask, 1, key, lanes)
    return {
        address: Site(address, shapes[address], isinstance(leaf, Masked), record[address])
        for address, leaf in leaves.items()
    }


def assigned(gen_fn: Any, sites: dict[tuple, Site], wanted: Any, joint: bool) -> dict[tuple, str]:
    """The estimator of each site. ``wanted`` is a name for all, or {address: name}, which holds for all below it.

    With ``joint`` several draws are weighed together, and none of them is enumerated.
    """
    chosen = {address: _asked_for(address, wanted, gen_fn) for address in sites}
    if isinstance(wanted, Mapping):
        for given in wanted:
            part = normalise(given)
            if not any(address[: len(part)] == part for address in sites):
                raise UnknownAddress(
                    "an estimator is given for an address that the run never visits:",
                    address=part,
                    gen_fn=gen_fn,
                    suggestions=nearest(part, sites),
                    expected=one_of(sites),
                )
    for address, name in chosen.items():
        if name is not None:
            _require(sites[address], name, gen_fn, joint)
    rows = math.prod(sites[a].combinations for a, name in chosen.items() if name == ENUMERATE)
    if rows > _MOST:
        largest = max((a for a, name in chosen.items() if name == ENUMERATE), key=lambda a: sites[a].combinations)
        raise ParameterError(
            f"{rows:.3g} combinations of values would be enumerated, {sites[largest].combinations:.3g} of this choice",
            address=largest,
            gen_fn=gen_fn,
            expected=f"at most {_MOST}",
            hint=f'estimator={{{show_address(largest)}: "reinforce"}}',
        )
    for address, site in sites.items():
        if chosen[address] is None:
            few = not joint and rows * site.combinations <= _FEW
            chosen[address] = name = REPARAM if site.reparameterised else ENUMERATE if few else REINFORCE
            _require(site, name, gen_fn, joint)
            rows *= site.combinations if name == ENUMERATE else 1
    return {address: name for address, name in chosen.items() if name is not None}


def _require(site: Site, name: str, gen_fn: Any, joint: bool) -> None:
    reason = site.why_not(name)
    if name == ENUMERATE and joint:
        reason = "an objective of several particles cannot be summed over the values of one"
    if reason:
        others = [repr(e) for e in ESTIMATORS if site.why_not(e) is None and not (joint and e == ENUMERATE)]
        raise EstimatorError(
            f"{reason}: the estimator {name!r} is not possible",
            address=site.address,
            gen_fn=gen_fn,
            expected=f"one of {', '.join(others)}" if others else "another distribution: this one has no estimator",
        )


def _asked_for(address: tuple, wanted: Any, gen_fn: Any) -> str | None:
    if isinstance(wanted, Mapping):
        prefixes = {normalise(given): name for given, name in wanted.items()}
        names = [prefixes[address[:i]] for i in range(len(address), -1, -1) if address[:i] in prefixes]
        wanted = names[0] if names else None
    if wanted is not None and wanted not in ESTIMATORS:
        raise UsageError(
            f"no estimator {wanted!r}",
            gen_fn=gen_fn,
            expected=f"one of {', '.join(map(repr, ESTIMATORS))}, or {{address: one of them}}",
        )
    return wanted


class Direction(NamedTuple):
    """A weak derivative that is taken: an element of a site, and which of its parameters that vary."""

    address: tuple
    element: int
    parameter: int


class Plan:
    """How every site is drawn, in how many rows: runs of one lane that share their noise.

    Row r C + c has the c-th of C combinations of enumerated values; r = 0 is as the model draws, and r = 1 + 2 d and
    2 + 2 d draw from the positive and the negative part of the d-th weak derivative.
    """

    def __init__(self, sites: Mapping[tuple, Site], estimators: Mapping[tuple, str]):
        self.sites, self.estimators = sites, estimators
        self.enumerated = self._with(ENUMERATE)
        self.measured = [a for a in self._with(MEASURE_VALUED) if sites[a].traits[0].varying]
        self.reinforced = self._with(REINFORCE)
        still = [a for a in self._with(MEASURE_VALUED) if a not in self.measured]
        self.stopped = [*self.reinforced, *self._with(STOPPED), *still]
        self.directions = [
            Direction(address, i, j)
            for address in self.measured
            for i in range(sites[address].size)
            for j in range(len(sites[address].traits[0].varying))
        ]
        self.combinations = math.prod(int(sites[a].combinations) for a in self.enumerated)
        self.rows = (1 + 2 * len(self.directions)) * self.combinations

    def _with(self, name: str) -> list[tuple]:
        return [address for address, own in self.estimators.items() if own == name]

    def row_inputs(self) -> list[mx.array]:
        """What the rows differ in, ``[rows, *shape]`` for each enumerated and then each measured site."""
        return [*self._values(), *self._codes()]

    def _values(self) -> Iterable[mx.array]:
        index, stride = mx.arange(self.rows) % self.combinations, 1
        for address in self.enumerated:
            site = self.sites[address]
            values = mx.array(list(site.values or ()))
            columns = []
            for _ in range(site.size):
                columns.append(values[(index // stride) % len(values)])
                stride *= len(values)
            yield mx.stack(columns, axis=-1).reshape(self.rows, *site.shape)

    def _codes(self) -> Iterable[mx.array]:
        for address in self.measured:
            site = self.sites[address]
            codes = [[0] * site.size for _ in range(self.rows)]
            for d, (own, element, parameter) in enumerate(self.directions):
                if own == address:
                    for sign in (0, 1):
                        start = (1 + 2 * d + sign) * self.combinations
                        for row in range(start, start + self.combinations):
                            codes[row][element] = 2 * parameter + 1 + sign
            yield mx.array(codes, dtype=mx.int32).reshape(self.rows, *site.shape)

    def choices(self, row: list[mx.array]) -> ChoiceMap:
        """What the run of one row is given, of its share of the inputs."""
        values, codes = row[: len(self.enumerated)], row[len(self.enumerated) :]
        return from_items(
            [
                *zip(self.enumerated, values, strict=True),
                *(
                    (a, Perturbed(code, self.sites[a].traits[0].varying))
                    for a, code in zip(self.measured, codes, strict=True)
                ),
                *((a, Stopped(mx.zeros(self.sites[a].shape))) for a in self.stopped),
            ]
        )

    @property
    def scored(self) -> Selection:
        """The choices whose log density multiplies the cost."""
        return ALL if () in self.reinforced else select(*self.reinforced)
