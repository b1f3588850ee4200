"""The past of a growing trace, put away and brought back: the same traces as if it had stayed."""

import numpy as np
import pytest

from genmlx import flip, gamma, gen, normal, scan, select, switch, trace, unfold
from genmlx.inference import ParticleFilter, mh_kernel, particle_filter, smc
from genmlx.pytree import split_arrays


@gen
def step(t, x, scale):
    x = trace("x", normal(x, scale))
    trace("y", normal(x, 1.0))
    return x


@gen
def branching(t, x, scale):
    jump = trace("jump", flip(0.3))
    x = trace("x", switch(still, leap)(jump, x, scale))
    trace("y", normal(x, 1.0))
    return x


@gen
def still(x, scale):
    return trace("small", normal(x, scale))


@gen
def leap(x, scale):
    return trace("large", normal(x, 5.0 * scale))


@gen
def adding(carry, y):
    carry = trace("x", normal(carry, 1.0))
    trace("y", normal(carry, 1.0))
    return carry, carry * y


walk, jumps, adds = unfold(step), unfold(branching), scan(adding)


@gen
def with_parameter(n):
    trace("z", walk(n, 0.0, trace("scale", gamma(2.0, 2.0))))


@gen
def that_returns_its_states(n):
    return trace("z", walk(n, 0.0, 1.0))


@gen
def that_looks_back(n):
    states = trace("z", walk(n, 0.0, 1.0))
    for t in range(n):
        trace(("late", t), normal(states[max(0, t - 3)], 1.0))


@gen
def that_catches_everything(n):
    states = trace("z", walk(n, 0.0, 1.0))
    for t in range(n):
        try:
            loc = states[max(0, t - 3)] * 1.0
        except Exception:
            loc = 0.0
        trace(("late", t), normal(loc, 1.0))


@gen
def two_walks(n):
    a = trace("a", walk(n, 0.0, 1.0))
    trace("b", walk(n // 2, a[-1], 0.5))


@gen
def of_walks(t, x, scale):
    inner = trace("inner", walk(t + 1, x, scale))
    return inner[-1]


nested = unfold(of_walks)


def at(prefix, name="y"):
    return lambda t, y: {(*prefix, t, name): y}


CASES = {
    "unfold": (lambda n: walk(n, 0.0, 1.0), at(())),
    "inside a body": (with_parameter, at(("z",))),
    "scan": (lambda n: adds(0.0, list(range(n))), at(())),
    "returned": (that_returns_its_states, at(("z",))),
    "looked at": (that_looks_back, at(("z",))),
    "caught": (that_catches_everything, at(("z",))),
    "two": (two_walks, at(("a",))),
    "branches": (lambda n: jumps(n, 0.0, 1.0), at(())),
    "nested": (lambda n: nested(n, 0.0, 1.0), lambda t, y: {(t, "inner", t, "y"): y}),
}


def run(model, observed, first=1, last=8, particles=6, **options):
    ys = np.random.default_rng(0).normal(size=last)
    steps = [(model(first), {k: v for t in range(first) for k, v in observed(t, float(ys[t])).items()})]
    steps += [(model(t + 1), observed(t, float(ys[t]))) for t in range(first, last)]
    return smc(steps, particles=particles, ess_threshold=1.0, key=3, **options)


def assert_same(found, want):
    assert np.array_equal(found.log_weights, want.log_weights) and np.array_equal(found.traces.score, want.traces.score)
    for one, other in zip(found.traces, want.traces, strict=True):
        assert one.choices == other.choices
        assert np.allclose(np.array(flat(one.retval)), np.array(flat(other.retval)), rtol=1e-6)


def flat(retval):
    if isinstance(retval, (list, tuple)):
        return [x for part in retval for x in flat(part)]
    return [] if retval is None else [np.array(retval).item()]


LONG = [case for case in CASES if case != "nested"]  # which would have 820 choices in the first step alone


@pytest.mark.parametrize(("case", "first"), [*((case, 1) for case in CASES), *((case, 40) for case in LONG)])
def test_it_is_as_if_it_had_stayed(case, first, monkeypatch):
    found = run(*CASES[case], first=first, last=first + 7)
    assert found.attic.before is not None or case in ("returned", "looked at", "caught")  # something was put away
    monkeypatch.setattr(particle_filter, "put_away", lambda traces, attic: (traces, attic))
    want = run(*CASES[case], first=first, last=first + 7)
    if (case, first) == ("two", 40):
        # An update of a stacked step does not know that the next one is given the same state, and looks at that too:
        # with a key of its own, so that later draws are others.
        assert np.array_equal(found.log_weights, want.log_weights)
    else:
        assert_same(found, want)


@pytest.mark.parametrize("case", ["unfold", "inside a body", "scan", "two", "branches"])
def test_every_trace_agrees_with_itself(case):
    model, observed = CASES[case]
    result = run(model, observed, last=36)
    for tr in result.traces:
        assert tr.score.item() == pytest.approx(model(36).assess(tr.choices).score.item(), rel=1e-5)


def test_recent_values_need_no_whole_traces(monkeypatch):
    seen = []
    monkeypatch.setattr(particle_filter, "brought_back", lambda *_: pytest.fail("looked at the past"))

    def look(pf):
        seen.append((pf.mean(("z", len(seen), "x")), pf.mean("scale")))

    result = run(with_parameter, at(("z",)), record=look)
    assert len(seen) == 8 and result.history.resampled.sum() == 7
    monkeypatch.undo()
    before = result[("z", 7, "x")]
    assert result[("z", 2, "x")].shape == (6,) and np.array_equal(result.traces[("z", 7, "x")], before)


@pytest.mark.parametrize(
    "kernel",
    [
        mh_kernel(select("scale")),
        lambda tr, key: mh_kernel(select(("z", 0, "x")), strict=False)(tr, key),
        "scale",
        select(("z", 1, "x")),
    ],
    ids=["parameter", "first state", "address", "selection"],
)
def test_kernels_may_reach_into_the_past(kernel, monkeypatch):
    found = run(with_parameter, at(("z",)), first=3, rejuvenate=kernel)
    monkeypatch.setattr(particle_filter, "put_away", lambda traces, attic: (traces, attic))
    assert_same(found, run(with_parameter, at(("z",)), first=3, rejuvenate=kernel))


def test_a_step_costs_the_same_however_long_the_past(monkeypatch):
    """The arrays that a step carries through the batch, and those that resampling takes."""
    counts, take = [], particle_filter.VectorizedTrace.take

    def counted(self, indices):
        counts.append(len(split_arrays(self.lanes)[0]))
        return take(self, indices)

    monkeypatch.setattr(particle_filter.VectorizedTrace, "take", counted)
    run(with_parameter, at(("z",)), last=60)
    assert len(counts) == 59 and len(set(counts[2:])) == 1


def test_a_step_that_goes_wrong_says_so_once():
    """The second attempt, on whole traces, raises what the first one did."""
    model, observed = CASES["unfold"]
    pf = run(model, observed, last=5)
    with pytest.raises(Exception, match="never visits") as error:
        pf.step(model(6), {(9, "y"): 1.0})
    assert error.value.address == (9, "y") and error.value.__context__ is None
    longer = ParticleFilter.step(pf, model(6), {(5, "y"): 1.0}, key=1)
    assert longer.traces.choices.addresses()[-1] == (5, "y")
