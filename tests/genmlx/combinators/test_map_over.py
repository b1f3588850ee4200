"""map_over: cases 23 and 25; columns, and which elements an update runs."""

import mlx.core as mx
import numpy as np
import pytest
from closed_forms import N, close, numbers, slope
from scipy import stats

from genmlx import NoChange, VectorDiff, contramap, gen, map_over, normal, param, repeat, select, trace
from genmlx.diff import UnknownChange
from genmlx.errors import AddressError, ParameterError, UnknownAddress
from genmlx.params import param_gradients

runs = []


@pytest.fixture(autouse=True)
def no_runs():
    runs.clear()


@gen
def kernel(x, y):
    runs.append(x)
    return trace("z", normal(x + y, 1)) + 1


pairs = map_over(kernel)
XS, YS = [1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0]


def test_generate():
    """Case 23."""
    tr, weight = pairs.generate((XS[:2], YS[:2]), {(0, "z"): 1.1, (1, "z"): 2.2})
    assert tr.score.item() == weight.item() == close(-13.262877)
    assert [r.item() for r in tr.retval] == [close(2.1), close(3.2)]
    tr, weight = pairs.generate((XS, YS), {(0, "z"): 1.1})
    assert weight.item() == close(-5.123939) and tr.choices.addresses() == [(i, "z") for i in range(4)]


@pytest.mark.parametrize("diffs", [[VectorDiff({0}), NoChange], None], ids=["given", "compared"])
def test_one_changed_element(diffs):
    """Case 25: one element changed is one run, told or found."""
    tr, _ = pairs.generate((XS[:2], YS[:2]), {(0, "z"): 1.1, (1, "z"): 2.2})
    runs.clear()
    new, weight, retdiff, discard = tr.update({}, ([-1.0, 2.0], YS[:2]), diffs)
    assert weight.item() == close(N(1.1, 2) - N(1.1, 4)) == close(3.8)
    assert runs == [-1.0] and discard.is_empty and retdiff == VectorDiff({0})
    assert new.score.item() == close(-13.262877 + 3.8) and new.args == ([-1.0, 2.0], YS[:2])


def test_a_constraint_beside_a_change():
    """Told that only element 0 changed, a constraint on another element still counts."""
    tr, _ = pairs.generate((XS, YS), {(i, "z"): float(i) for i in range(4)})
    runs.clear()
    _, weight, retdiff, discard = tr.update({(3, "z"): 9.0}, ([0.0, *XS[1:]], YS), [VectorDiff({0}), NoChange])
    assert runs == [0.0, 4.0] and numbers(discard) == {(3, "z"): 3.0} and retdiff == VectorDiff({0, 3})
    assert weight.item() == close(N(0, 3) - N(0, 4) + N(9, 10) - N(3, 10))
    assert tr.update({}, ([0.0, *XS[1:]], YS), [VectorDiff({0, 17, -3}), NoChange]).weight.item() == close(3.5)


def test_growing_and_shrinking():
    tr, _ = pairs.generate((XS[:2], YS[:2]), {(0, "z"): 1.1, (1, "z"): 2.2})
    runs.clear()
    new, weight, retdiff, discard = tr.update({(2, "z"): 7.0}, (XS[:3], YS[:3]))
    assert runs == [3.0] and weight.item() == close(N(7, 8)) and discard.is_empty and retdiff is UnknownChange
    runs.clear()
    back = new.update({}, (XS[:2], YS[:2]))
    assert runs == [] and back.weight.item() == close(-N(7, 8)) and numbers(back.discard) == {(2, "z"): 7.0}
    assert len(back.trace.retval) == 2 and back.trace.score.item() == close(tr.score.item())


def test_nothing_runs_for_nothing():
    tr = pairs.simulate((XS, YS))
    runs.clear()
    assert tr.update({}, (list(XS), list(YS))).retdiff is NoChange and tr.update({}).trace is tr
    assert tr.regenerate(select.none()).trace is tr and runs == []
    tr.regenerate(select((2, "z")))
    assert runs == [3.0]


def test_columns():
    tr = pairs.simulate((mx.array(XS), np.array(YS, np.float32)))
    assert len(tr.retval) == 4 and pairs.simulate(((1.0, 2.0), YS[:2])).choices.addresses() == [(0, "z"), (1, "z")]
    empty = pairs.simulate(([], []))
    assert empty.retval == [] and empty.score.item() == 0 and empty.choices.is_empty
    with pytest.raises(ParameterError, match="column 0 has 4 elements, column 1 has 3"):
        pairs.simulate((XS, YS[:3]))
    for bad in (3.0, "abc", {"a": 1}, mx.array(1.0)):
        with pytest.raises(ParameterError, match="column 1 is not a column"):
            pairs.simulate((XS, bad))
    with pytest.raises(ParameterError, match="no columns"):
        pairs.simulate(())


def test_addresses_that_are_not_there():
    tr = pairs.simulate((XS, YS))
    for address in [(4, "z"), (-1, "z"), (0, "y"), "z", ("0", "z")]:
        with pytest.raises(UnknownAddress):
            pairs.generate((XS, YS), {address: 1.0})
        with pytest.raises(UnknownAddress):
            tr.update({address: 1.0})
        with pytest.raises(UnknownAddress):
            tr.project(select(address))
    with pytest.raises(UnknownAddress):
        tr.regenerate(select((4, "z")))
    for bad in ({0: 1.0}, 3.0):
        with pytest.raises(AddressError):
            pairs.generate((XS, YS), bad)
    with pytest.raises(AddressError):
        pairs.generate((XS, YS), {(0, "z", "deeper"): 1.0})


def test_distributions_as_kernels():
    tr, weight = map_over(normal).generate(([0.0, 1.0], [1.0, 2.0]), {0: 0.5, 1: 0.5})
    assert weight.item() == close(N(0.5, 0) + N(0.5, 1, 2)) and [r.item() for r in tr.retval] == [0.5, 0.5]


def test_gradients():
    tr = pairs.simulate((XS[:2], mx.array(YS[:2])), key=1)
    (xs, ys), _, by_choice = tr.choice_gradients(select((1, "z")), retval_grad=[mx.array(2.0), mx.array(3.0)])
    for i in range(2):
        z = tr.choices[i, "z"].item()
        assert xs[i].item() == close(z - XS[i] - YS[i]) and ys[i].item() == close(z - XS[i] - YS[i])

    def moved(v):
        return pairs.assess(tr.args, tr.choices.set((1, "z"), v)).score

    assert by_choice[1, "z"].item() == close(slope(moved, tr.choices[1, "z"].item()) + 3, 1e-2)
    assert by_choice.addresses() == [(1, "z")]


def test_a_parameter_in_the_kernel():
    """A kernel that returns nothing must still take note of the parameter that it has read anew."""

    @gen.new
    def shifted(x):
        runs.append(x)
        trace("z", normal(x + param("shift", 0.0), 1))

    tr, _ = map_over(shifted).generate(([1.0, 2.0],), {(0, "z"): 0.0, (1, "z"): 0.0})
    shifted.params["shift"] = 1.0
    new, weight, _, _ = tr.update({})
    assert weight.item() == close(N([0, 0], [2, 3]) - N([0, 0], [1, 2]))
    runs.clear()
    assert new.update({}).trace is new and runs == []
    assert param_gradients(new)[shifted, "shift"].item() == close(-5)


def test_numbers_that_become_an_array_when_steps_are_stacked(monkeypatch):
    """An element whose batch shares a host number: among elements of a stack it is a row of an array, without lanes."""
    monkeypatch.setattr("genmlx.combinators.whole.LEAST", 2)
    pairs = map_over(repeat(contramap(normal, lambda x: (x, 1.0)), 2))
    old = pairs.simulate((mx.array([0.2, 0.1]),), mx.random.key(0))
    new = old.update({}, ([0.3, -0.8],)).trace
    again = new.update({1: mx.array([0.5, 0.6])})
    expected = stats.norm.logpdf([0.5, 0.6], -0.8).sum() - stats.norm.logpdf(np.array(new[(1,)]), -0.8).sum()
    assert again.weight.item() == pytest.approx(expected, abs=1e-5)
