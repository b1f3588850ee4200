"""Edits as values: what each request does, its weight, and the request that undoes it."""

import math

import mlx.core as mx
import pytest

from genmlx import (
    NoChange,
    Propose,
    Regenerate,
    UnknownChange,
    Update,
    VectorDiff,
    bernoulli,
    choicemap,
    gen,
    map_over,
    normal,
    select,
    trace,
)
from genmlx.diff import Diff, same
from genmlx.edit import Edited, Request
from genmlx.errors import MissingChoice, UnknownAddress, UsageError
from genmlx.pytree import register_slots


def density(x, mu, sigma=1.0):
    return -0.5 * ((x - mu) / sigma) ** 2 - math.log(sigma) - 0.5 * math.log(2 * math.pi)


def close(x):
    return pytest.approx(x, abs=1e-4, rel=1e-5)


@gen
def point(mu):
    x = trace("x", normal(mu, 1.0))
    trace("y", normal(x, 0.5))
    return x


@gen
def jump():
    if trace("b", bernoulli(0.25)).item():
        trace("up", normal(0.0, 1.0))
    else:
        trace("down", normal(1.0, 2.0))
    trace("y", normal(0.0, 1.0))


@gen
def drift(tr):
    trace("x", normal(tr["x"] + 0.5, 2.0))


def there_and_back(tr, request, key=1):
    """Carry out a request and its undoing: the choices return, and the weights are opposite."""
    new, weight, _, backward = tr.edit(request, key=key)
    assert type(backward) is type(request)
    old, reverse, _, again = new.edit(backward, key=key + 1)
    assert old.choices == tr.choices and old.args == tr.args
    assert reverse.item() == close(-weight.item())
    once_more, forward, _, _ = old.edit(again, key=key + 2)
    assert once_more.choices == new.choices and forward.item() == close(weight.item())
    return new, weight.item(), backward


def test_update():
    tr, _ = point(0.0).generate({"x": 1.0, "y": 2.0})
    new, weight, backward = there_and_back(tr, Update({"x": 2.0}))
    assert weight == close(density(2, 0) + density(2, 2, 0.5) - density(1, 0) - density(2, 1, 0.5))
    assert backward.constraints == choicemap({"x": 1.0}) and backward.args is None
    assert repr(backward) == "Update(choicemap({'x': 1.0}))"


def test_update_with_arguments():
    """Would catch an undo that forgets the old arguments."""
    tr, _ = point(0.0).generate({"x": 1.0, "y": 2.0})
    new, weight, backward = there_and_back(tr, Update({"x": 2.0}, args=(3.0,)))
    assert new.args == (3.0,) and backward.args == (0.0,)
    there_and_back(tr, Update(args=(3.0,)))


def test_update_of_a_branch():
    tr, _ = jump().generate({"b": 1, "up": 0.5, "y": 0.0})
    new, weight, backward = there_and_back(tr, Update({"b": 0, "down": 2.0}))
    assert backward.constraints == choicemap({"b": 1, "up": 0.5})
    assert weight == close(math.log(3) + density(2, 1, 2) - density(0.5, 0))


def test_regenerate():
    """The weight is the likelihood ratio of what was retained; undoing it needs the old values."""
    tr, _ = point(0.0).generate({"x": 1.0, "y": 2.0})
    new, weight, backward = there_and_back(tr, Regenerate("x"))
    x = new["x"].item()
    assert x != 1.0 and weight == close(density(2, x, 0.5) - density(2, 1, 0.5))
    assert backward.choices == choicemap({"x": 1.0})


@pytest.mark.parametrize(
    "selection", [select("b"), select("b", "up"), select.all(), select("y"), select.none()], ids=repr
)
def test_regenerate_where_a_branch_may_flip(selection):
    """Would catch an undo that names an address which only one of the two traces has."""
    tr, _ = jump().generate({"b": 1, "up": 0.5, "y": 0.25})
    flips = 0
    for key in range(12):
        new, weight, _ = there_and_back(tr, Regenerate(selection), key=key)
        flips += new["b"].item() == 0
        assert weight == close(0.0)  # nothing retained depends on what was drawn
    assert (flips > 0) == ("b" in selection)


def test_propose_is_the_acceptance_ratio():
    """Mistake 2 and case 39: the ratio written out by hand, for a move that is not symmetric."""
    tr, _ = point(0.0).generate({"x": 1.0, "y": 2.0})
    for key in range(4):
        new, weight, backward = there_and_back(tr, Propose(drift, drift), key=key)
        x = new["x"].item()
        target = density(x, 0) + density(2, x, 0.5) - density(1, 0) - density(2, 1, 0.5)
        assert weight == close(target - density(x, 1.5, 2.0) + density(1, x + 0.5, 2.0))


def test_propose_with_a_fixed_value():
    """Case 39: N(0, 1), proposal N(x + 0.5, 1), from 0 to 1: log alpha = -1.5."""

    @gen
    def target():
        trace("x", normal(0, 1))

    @gen
    def step(tr):
        trace("x", normal(tr["x"] + 0.5, 1.0))

    tr, _ = target().generate({"x": 0.0})
    new, weight, _, backward = tr.edit(Propose(step, step, choicemap({"x": 1.0})))
    assert new["x"].item() == 1.0 and weight.item() == close(-1.5)


def test_propose_takes_calls_too():
    """An independence proposal needs no look at the trace."""

    @gen
    def anywhere(scale):
        trace("x", normal(0.0, scale))

    tr, _ = point(0.0).generate({"x": 1.0, "y": 2.0})
    new, weight, _ = there_and_back(tr, Propose(anywhere(3.0), anywhere(3.0)))
    x = new["x"].item()
    target = density(x, 0) + density(2, x, 0.5) - density(1, 0) - density(2, 1, 0.5)
    assert weight == close(target - density(x, 0, 3) + density(1, 0, 3))


def test_propose_across_a_branch():
    """A jump between branches: q of what is proposed forward, q of what is discarded backward."""

    @gen
    def to_down(tr):
        trace("b", bernoulli(0.0))
        trace("down", normal(tr["up"], 1.0))

    @gen
    def to_up(tr):
        trace("b", bernoulli(1.0))
        trace("up", normal(tr["down"], 3.0))

    tr, _ = jump().generate({"b": 1, "up": 0.5, "y": 0.25})
    new, weight, _ = there_and_back(tr, Propose(to_down, to_up))
    down = new["down"].item()
    target = math.log(3) + density(down, 1, 2) - density(0.5, 0)
    assert weight == close(target - density(down, 0.5) + density(0.5, down, 3))


def test_a_proposal_that_cannot_go_back_raises():
    """The backward proposal must give a density to exactly what was discarded."""

    @gen
    def nothing(tr):
        pass

    @gen
    def too_much(tr):
        trace("x", normal(0.0, 1.0))
        trace("extra", normal(0.0, 1.0))

    tr = point(0.0).simulate()
    with pytest.raises(UnknownAddress):
        tr.edit(Propose(drift, nothing))
    with pytest.raises(MissingChoice):
        tr.edit(Propose(drift, too_much))
    with pytest.raises(UnknownAddress):
        tr.edit(Propose(too_much, drift))


def test_an_unknown_request():
    tr = point(0.0).simulate()
    for wrong in ({"x": 1.0}, "x", None, Update):
        with pytest.raises(UsageError, match="is not an edit request") as info:
            tr.edit(wrong)
        assert "expected: Update, Regenerate or Propose" in str(info.value) and __file__ in str(info.value)


class Shift(Request):
    """A deterministic move of one choice: what a user may add."""

    __slots__ = ("by",)

    def __init__(self, by):
        self.by = by

    def apply(self, trace, key):
        new, weight, retdiff, _ = trace.update({"x": trace["x"] + self.by}, key=key)
        return Edited(new, weight, retdiff, Shift(-self.by))


register_slots(Shift, ("by",))


def test_a_request_of_the_users_own():
    """It plugs in by ``apply`` alone, for one trace and for a batch."""
    tr, _ = point(0.0).generate({"x": 1.0, "y": 2.0})
    new, weight, _ = there_and_back(tr, Shift(mx.array(0.5)))
    assert new["x"].item() == 1.5
    traces = point(0.0).vsimulate(3, key=1)
    moved, weights, _, backward = traces.edit(Shift(mx.array(0.5)))
    assert mx.allclose(moved["x"], traces["x"] + 0.5).item() and weights.shape == (3,)
    assert isinstance(backward, Shift)


def test_edits_of_a_batch_are_those_of_its_traces():
    traces, _ = point(0.0).vgenerate({"y": 2.0}, 3, key=1)
    new, weights, _, backward = traces.edit(Regenerate("x"), key=2)
    for i in range(3):
        x, old = new["x"][i].item(), traces["x"][i].item()
        assert weights[i].item() == close(density(2, x, 0.5) - density(2, old, 0.5))
    again, reverse, _, _ = new.edit(backward, key=3)
    assert mx.array_equal(again["x"], traces["x"]).item()
    assert reverse.tolist() == [close(-w) for w in weights.tolist()]


# diffs


def test_diffs():
    assert repr(NoChange) == "NoChange" and repr(UnknownChange) == "UnknownChange"
    assert VectorDiff([2, 0, 2]) == VectorDiff({0, 2}) and VectorDiff({0}) != VectorDiff({1}) != NoChange
    assert hash(VectorDiff({0, 2})) == hash(VectorDiff([2, 0]))
    for d in (VectorDiff({3, 1}), VectorDiff({10, 9, 1})):
        assert isinstance(d, Diff) and eval(repr(d)) == d
    assert repr(VectorDiff({10, 9, 1})) == "VectorDiff({1, 9, 10})"


def test_diffs_survive_a_copy():
    """They are compared by identity everywhere; would catch a copy that is no longer NoChange."""
    import copy
    import pickle

    for d in (NoChange, UnknownChange):
        assert copy.deepcopy(d) is d and pickle.loads(pickle.dumps(d)) is d


@pytest.mark.parametrize(
    "a, b, expected",
    [
        (1.0, 1.0, True),
        (1, 1.0, False),
        (True, 1, False),
        ("a", "a", True),
        ((1, [2.0, "x"]), (1, [2.0, "x"]), True),
        ((1, 2), (1, 2, 3), False),
        ([1], (1,), False),
        (math.nan, float("nan"), False),
        (None, None, True),
    ],
)
def test_same(a, b, expected):
    """Equal for certain, or not known: True must never be said of two values that differ."""
    assert same(a, b) is expected


def test_same_never_computes():
    a = mx.array(1.0)
    assert same(a, a) and not same(a, mx.array(1.0)) and same([a, 1], [a, 1])


def test_return_diffs():
    tr, _ = point(0.0).generate({"x": 1.0, "y": 2.0})
    assert tr.update({"y": 3.0}).retdiff is NoChange
    assert tr.update({"x": 3.0}).retdiff is UnknownChange
    assert tr.update().retdiff is NoChange and tr.update().trace is tr
    assert tr.regenerate(select.none()).retdiff is NoChange


def test_argdiffs_are_believed():
    """NoChange promises that an argument is the same; what is not promised is compared."""
    tr, _ = point(0.0).generate({"x": 1.0, "y": 2.0})
    assert tr.update(args=(0.0,)).trace is tr
    moved = tr.update(args=(2.0,), argdiffs=(UnknownChange,))
    assert moved.weight.item() == close(density(1, 2) - density(1, 0))


def test_a_request_that_nobody_knows_says_so():
    class Unknown(Request):
        __slots__ = ()

        def __repr__(self):
            return "Unknown()"

    for generative_function, args in ((map_over(normal), ([0.0], [1.0])), (normal, (0.0, 1.0))):
        with pytest.raises(UsageError, match=r"does not know the edit Unknown\(\)"):
            generative_function.simulate(args, key=0).edit(Unknown())
