"""The laws of the generative function interface, checked on a call: one's own model, distribution or combinator.

They are consequences of the equations in ``gfi.py``, so they need no oracle; that the score is the density one means is
the one thing that they cannot see.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.choicemap import ChoiceMap, covering
from genmlx.errors import BatchError, GenError, UsageError, user_line
from genmlx.gen import GenFn
from genmlx.gfi import Call
from genmlx.random import Keys, as_key
from genmlx.selection import ALL, NONE, select
from genmlx.versions import pinned

_LANES = 3
# Sums of float32 terms: some units in the last place of the largest, and of a small score.
_ABSOLUTE, _RELATIVE = 2e-4, 1e-5


class LawResult(NamedTuple):
    """What came of one law: the largest absolute error of its equations, and the first that did not hold.

    ``broken`` names that equation with the numbers on both sides; ``skipped`` says why a law has not been tried.
    """

    law: str
    error: float
    broken: str | None = None
    skipped: str | None = None
    cause: BaseException | None = None

    @property
    def ok(self) -> bool:
        return self.broken is None


class LawError(GenError, ValueError):
    """A generative function that breaks a law. ``results`` has all of them."""

    hint = "the operation that this law names returns something else than its docstring in gfi.py says"
    results: Laws


class Laws(list[LawResult]):
    """The result of each law. Prints as a table."""

    def __init__(self, call: Call, results: Iterable[LawResult], traces: int, seconds: float):
        super().__init__(results)
        self.call, self.traces, self.seconds = call, traces, seconds

    @property
    def ok(self) -> bool:
        return all(result.ok for result in self)

    def require(self) -> None:
        """Raise a LawError for the first law that does not hold."""
        for result in self:
            if result.broken is not None:
                pure = "a body that depends on its arguments and choices alone: no random numbers or state of its own"
                hint = pure if type(self.call.gen_fn) is GenFn else None
                error = LawError(f"{result.law}: {result.broken},", gen_fn=self.call.gen_fn, hint=hint)
                error.results = self
                raise error from result.cause

    def __repr__(self) -> str:
        tried = [result for result in self if result.skipped is None]
        held = sum(result.ok for result in tried)
        count = f"{held} laws ok" if held == len(tried) else f"{len(tried) - held} of {len(tried)} laws broken"
        skipped = [f"{result.law} skipped" for result in self if result.skipped is not None]
        return ", ".join([f"{count} in {1000 * self.seconds:.0f} ms", *skipped])

    def __str__(self) -> str:
        lines = [f"{self.call!r}   {self.traces} trace{'s' if self.traces > 1 else ''}", "law         max abs error"]
        for result in self:
            error = "-" if result.skipped is not None else f"{result.error:.2g}"
            verdict = result.broken or result.skipped
            state = "BROKEN" if not result.ok else "skipped" if result.skipped is not None else "ok"
            lines.append(f"{result.law:<11} {error:<13} {state}{f': {verdict}' if verdict else ''}")
        return "\n".join([*lines, repr(self)])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


class Equation(NamedTuple):
    """Two sides that must be equal, as text and as numbers. ``scale``: the size of the terms that made them."""

    text: str
    left: Any
    right: Any
    scale: float = 0.0


def check_laws(
    call: Call,
    n: int = 20,
    key: Any = None,
    laws: Iterable[str] | None = None,
    observations: Any = None,
    seconds: float = math.inf,
) -> Laws:
    """Check the laws on ``n`` traces of a call; fewer where ``seconds`` have passed, but at least one.

    ``laws`` names some of ``assess project generate update regenerate batch``; all by default. With observations the
    traces are generated with them. A call that cannot be run raises its own error; an error in the course of a law
    breaks that law. ``batch`` is skipped for a model that branches on its choices.

    >>> from genmlx import normal
    >>> results = check_laws(normal(0, 1), n=3, key=0)
    >>> results.ok, [result.law for result in results]
    (True, ['assess', 'project', 'generate', 'update', 'regenerate', 'batch'])
    """
    if not isinstance(call, Call):
        raise UsageError(f"check_laws was given {call!r}", expected="a model applied to its arguments: model(args)")
    chosen = list(LAWS) if laws is None else list(laws)
    for name in chosen:
        if name not in LAWS:
            raise UsageError(f"there is no law {name!r}", expected=f"some of {', '.join(LAWS)}")
    if n < 1:
        raise UsageError(f"{n} traces", expected="at least one")
    keys, start = Keys(as_key(key)), time.perf_counter()
    results = {name: LawResult(name, 0.0) for name in chosen}
    traces = 0
    with pinned():
        while traces < n and (not traces or time.perf_counter() - start < seconds):
            run = _Run(call, observations, keys.next())
            traces += 1
            for name, result in results.items():
                if result.ok and result.skipped is None:
                    results[name] = _checked(result, LAWS[name](run))
    return Laws(call, results.values(), traces, time.perf_counter() - start)


def _checked(result: LawResult, equations: Iterator[Equation]) -> LawResult:
    try:
        for text, left, right, scale in equations:
            if isinstance(left, (bool, ChoiceMap, list)):
                if left != right:
                    return result._replace(error=math.inf, broken=f"{text} does not hold: {left!r} and {right!r}")
                continue
            a, b = float(left), float(right)
            error = 0.0 if a == b else abs(a - b)
            if not error <= _ABSOLUTE + _RELATIVE * max(abs(a), abs(b), scale):
                return result._replace(error=error, broken=f"{text} does not hold: {a:.7g} and {b:.7g}")
            result = result._replace(error=max(result.error, error))
    except BatchError as error:
        if result.law != "batch":
            return _raised(result, error)
        return result._replace(skipped="the body needs the value of a choice, so it cannot be batched")
    except Exception as error:
        return _raised(result, error)
    return result


def _raised(result: LawResult, error: Exception) -> LawResult:
    where = user_line(error.__traceback__)
    what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    place = f" ({where})" if where and where not in what else ""
    return result._replace(error=math.inf, broken=f"it raises {what}{place}", cause=error)


class _Run:
    """A trace of the call, another one to take choices from, and a supply of keys and subsets."""

    def __init__(self, call: Call, observations: Any, key: Any):
        self.call, self.keys = call, Keys(key)
        self.trace, self.other = (call.generate(observations, self.key()).trace for _ in range(2))
        self.chance = random.Random(self.trace.score.item())
        self.scale = _size(self.trace)

    def key(self) -> Any:
        return self.keys.next()

    def some(self, choices: ChoiceMap) -> ChoiceMap:
        """The choices at some of the addresses."""
        return choices.filter(_exactly([a for a in choices if self.chance.random() < 0.5]))


def _exactly(addresses: list[tuple]) -> Any:
    return select(*addresses) if addresses else NONE


def _size(trace: Any) -> float:
    score = abs(float(trace.score))
    return score if math.isfinite(score) else 0.0


def _assess(run: _Run) -> Iterator[Equation]:
    tr = run.trace
    yield Equation("assess(choices) == score", run.call.assess(tr.choices).score, tr.score)
    choices, weight, _ = run.call.propose(run.key())
    yield Equation("propose weight == assess(choices)", weight, run.call.assess(choices).score)


def _project(run: _Run) -> Iterator[Equation]:
    tr, some = run.trace, covering(run.some(run.trace.choices))
    yield Equation("project(all) == score", tr.project(ALL), tr.score)
    yield Equation("project(none) == 0", tr.project(NONE), 0.0)
    yield Equation("project(s) + project(~s) == score", tr.project(some) + tr.project(~some), tr.score, run.scale)


def _generate(run: _Run) -> Iterator[Equation]:
    tr = run.trace
    full = run.call.generate(tr.choices, run.key())
    yield Equation("generate(all) weight == score", full.weight, tr.score)
    yield Equation("generate(all) choices == given", full.trace.choices, tr.choices)
    yield Equation("generate(none) weight == 0", run.call.generate({}, run.key()).weight, 0.0)
    given = run.some(tr.choices)
    new, weight = run.call.generate(given, run.key(), strict=False)
    visited = _exactly([a for a in given if a in new.choices])
    yield Equation("generate(some) choices == given", new.choices.filter(visited), given.filter(visited))
    yield Equation("generate(some) weight == project(given)", weight, new.project(visited), _size(new))


def _update(run: _Run) -> Iterator[Equation]:
    tr = run.trace
    same = tr.update({}, key=run.key())
    yield Equation("update(nothing) weight == 0", same.weight, 0.0)
    yield Equation("update(nothing) discard == nothing", same.discard.addresses(), [])
    yield Equation("update(nothing) choices == old choices", same.trace.choices, tr.choices)
    given = run.some(run.other.choices)
    new, weight, _, discard = tr.update(given, key=run.key(), strict=False)
    given = given.filter(_exactly([a for a in given if a in new.choices]))
    fresh = [a for a in new.choices if a not in tr.choices and a not in given]
    drawn = new.project(_exactly(fresh))
    scale = max(run.scale, _size(new))
    yield Equation("update weight == score' - score - project(fresh)", weight, new.score - tr.score - drawn, scale)
    kept = [a for a in new.choices if a in tr.choices and a not in given]
    yield Equation("update keeps what is not given", _only(new, kept), _only(tr, kept))
    yield Equation("update takes what is given", new.choices.filter(covering(given)), given)
    gone = [a for a in tr.choices if a in given or a not in new.choices]
    yield Equation("discard == what was overwritten or removed", discard, _only(tr, gone))
    if not fresh:
        back = new.update(discard, key=run.key())
        yield Equation("update(discard) restores the choices", back.trace.choices, tr.choices)
        yield Equation("update(discard) weight == -weight", back.weight, -weight, scale)
        yield Equation("update(discard) restores the score", back.trace.score, tr.score, scale)


def _only(trace: Any, addresses: list[tuple]) -> ChoiceMap:
    return trace.choices.filter(_exactly(addresses))


def _regenerate(run: _Run) -> Iterator[Equation]:
    tr = run.trace
    same = tr.regenerate(NONE, key=run.key())
    yield Equation("regenerate(none) weight == 0", same.weight, 0.0)
    yield Equation("regenerate(none) choices == old choices", same.trace.choices, tr.choices)
    yield Equation("regenerate(all) weight == 0", tr.regenerate(ALL, key=run.key()).weight, 0.0)
    some = covering(run.some(tr.choices))
    new, weight, _ = tr.regenerate(some, key=run.key())
    kept = [a for a in new.choices if a in tr.choices and a not in some]
    retained = _exactly(kept)
    yield Equation("regenerate keeps what is not selected", _only(new, kept), _only(tr, kept))
    moved, scale = new.project(retained) - tr.project(retained), max(run.scale, _size(new))
    yield Equation("regenerate weight == project'(kept) - project(kept)", weight, moved, scale)
    yield Equation("regenerate: assess(choices) == score", run.call.assess(new.choices).score, new.score)


def _batch(run: _Run) -> Iterator[Equation]:
    batch = run.call.vsimulate(_LANES, run.key())
    given = run.some(run.trace.choices)
    traces, weights = run.call.vgenerate(given, _LANES, run.key(), strict=False)
    updated = batch.update(given, key=run.key(), strict=False)
    yield Equation("batched shapes start with [n]", [list(x.shape) for x in (batch.score, weights)], [[_LANES]] * 2)
    mx.eval(batch.score, weights, updated.weight)
    for i in range(_LANES):
        alone = run.call.assess(batch[i].choices).score
        yield Equation("batched score == score alone", batch.score[i], alone)
        own = traces[i]
        visited = _exactly([a for a in given if a in own.choices])
        yield Equation("batched generate weight == project(given)", weights[i], own.project(visited), _size(own))
        single = batch[i].update(given, key=run.key(), strict=False)
        if all(a in batch[i].choices for a in single.trace.choices):
            yield Equation("batched update weight == weight alone", updated.weight[i], single.weight, _size(batch[i]))


LAWS: dict[str, Callable[[_Run], Iterator[Equation]]] = {
    "assess": _assess,
    "project": _project,
    "generate": _generate,
    "update": _update,
    "regenerate": _regenerate,
    "batch": _batch,
}
"""Each law by its name: the equations that it is made of."""
