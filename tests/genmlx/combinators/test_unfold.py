"""unfold: cases 17, 18, 20, 21, 22; growth, shrinking, and which steps an update runs."""

import mlx.core as mx
import pytest
from closed_forms import N, close, numbers, slope

from genmlx import NoChange, VectorDiff, contramap, flip, gen, normal, param, select, trace, unfold
from genmlx.diff import UnknownChange
from genmlx.errors import ParameterError, UnknownAddress, UsageError

runs = []


@pytest.fixture(autouse=True)
def no_runs():
    runs.clear()


@gen
def kernel(t, x, alpha, beta):
    runs.append(t)
    return trace("x", normal(x * alpha + beta, 1))


walk = unfold(contramap(normal, lambda t, x, alpha, beta: (x * alpha + beta, 1)))
counted = unfold(kernel)
SHORT = (2, 0.1, 0.2, 0.3)


def test_generate():
    """Case 17."""
    tr, weight = walk.generate((3, 0.1, 0.2, 0.3), {0: 1.1, 2: 1.3})
    x2 = tr.choices[1].item()
    assert weight.item() == close(N(1.1, 0.32) + N(1.3, 0.2 * x2 + 0.3))
    assert tr.retval == [tr.choices[0], tr.choices[1], tr.choices[2]] and tr.choices.addresses() == [(0,), (1,), (2,)]


@pytest.mark.parametrize("alpha, expected", [(0.2, -1.344739), (0.5, -0.867289)])
def test_grow(alpha, expected):
    """Case 18: with and without a change of the shared argument."""
    tr, weight = walk.generate(SHORT, {0: 1.1, 1: 1.2})
    assert weight.item() == close(-2.373277)
    new, weight, retdiff, discard = tr.update({1: 1.3, 2: 1.4}, (3, 0.1, alpha, 0.3))
    assert weight.item() == close(expected) and retdiff is UnknownChange
    assert numbers(discard) == {(1,): close(1.2)}
    assert new.score.item() == close(weight.item() - 2.373277)


def test_grow_with_a_hole():
    """Case 20. A weight that is the difference of the scores would count the fresh step too."""
    tr, _ = walk.generate(SHORT, {0: 1.1, 1: 1.2})
    new, weight, _, discard = tr.update({3: 1.3}, (4, 0.1, 0.5, 0.3), key=1)
    x3 = new.choices[2].item()
    rescored = N(1.1, 0.35) - N(1.1, 0.32) + N(1.2, 0.85) - N(1.2, 0.52)
    assert weight.item() == close(rescored + N(1.3, 0.5 * x3 + 0.3)) and discard.is_empty
    assert weight.item() != close((new.score - tr.score).item())


def test_no_change_and_a_changed_start():
    """Case 21."""
    tr, _ = counted.generate(SHORT, {(0, "x"): 1.1, (1, "x"): 1.2})
    runs.clear()
    for args, argdiffs in ((None, None), (SHORT, None), (SHORT, [NoChange] * 4)):
        same, weight, retdiff, discard = tr.update({}, args, argdiffs)
        assert weight.item() == 0 and retdiff is NoChange and discard.is_empty and runs == [] and same is tr
    new, weight, retdiff, _ = tr.update({}, (2, 0.2, 0.2, 0.3))
    assert weight.item() == close(N(1.1, 0.34) - N(1.1, 0.32)) == close(0.0154)
    assert runs == [0] and retdiff is NoChange and new.args == (2, 0.2, 0.2, 0.3)


def test_which_steps_run():
    """Never the unchanged prefix; as far as the states change, and no further."""
    start = {(t, "x"): 0.5 * t for t in range(5)}
    tr, _ = counted.generate((5, 0.0, 0.5, 0.1), start)
    runs.clear()
    _, _, retdiff, discard = tr.update({(2, "x"): 9.0})
    assert runs == [2, 3] and retdiff == VectorDiff({2}) and numbers(discard) == {(2, "x"): 1.0}
    runs.clear()
    tr.update({(6, "x"): 1.0, (5, "x"): 1.0}, (7, 0.0, 0.5, 0.1))
    assert runs == [5, 6]
    runs.clear()
    shorter, weight, _, discard = tr.update({}, (3, 0.0, 0.5, 0.1))
    assert runs == [] and discard.addresses() == [(3, "x"), (4, "x")]
    assert weight.item() == close(-N(1.5, 0.6) - N(2.0, 0.85)) and shorter.score.item() == close(
        tr.score.item() + weight.item()
    )
    tr.regenerate(select((4, "x")))
    assert runs == [4]
    runs.clear()
    tr.update({}, (5, 0.0, 0.5, 0.2))
    assert runs == [0, 1, 2, 3, 4]


def test_scores_stay_exact_over_many_small_updates():
    """The score of a trace changed a hundred times, against the sum of its densities."""
    tr, _ = counted.generate((6, 0.0, 0.5, 0.1), {(t, "x"): 0.0 for t in range(6)})
    for i in range(100):
        tr = tr.update({(i % 6, "x"): (i % 7) * 0.3}).trace
    assert tr.score.item() == close(counted.assess(tr.args, tr.choices).score.item(), 1e-3)


def test_gradient_through_ten_steps():
    """Case 22: d out / d init = 2^10, and shared arguments against finite differences."""
    double = unfold(gen.new(lambda t, x: 2 * x))
    tr = double.simulate((10, 1.5))
    (n, init), _, _ = tr.choice_gradients(select.none(), retval_grad=[mx.array(0.0)] * 9 + [mx.array(1.0)])
    assert n is None and init.item() == 1024
    tr = walk.simulate((10, 0.4, 0.7, 0.2), key=3)
    gradients, _, by_choice = tr.choice_gradients(select.all())
    for place in (1, 2, 3):

        def changed(v, place=place):
            return walk.assess((*tr.args[:place], v, *tr.args[place + 1 :]), tr.choices).score

        assert gradients[place].item() == close(slope(changed, tr.args[place]), 2e-2)

    def moved(v):
        return walk.assess(tr.args, tr.choices.set(4, v)).score

    assert by_choice[4].item() == close(slope(moved, tr.choices[4].item()), 2e-2)


def test_lengths():
    for n in (0, mx.array(0), 0.0):
        empty = walk.simulate((n, 0.1, 0.2, 0.3))
        assert empty.retval == [] and empty.score.item() == 0 and empty.choices.is_empty
        assert len(empty.update({0: 1.0}, (1, 0.1, 0.2, 0.3)).discard) == 0
    for bad in (-1, 1.5, True, "three", mx.array([1, 2])):
        with pytest.raises(ParameterError, match="n must be a whole number, 0 or more"):
            walk.simulate((bad, 0.1, 0.2, 0.3))
    with pytest.raises(UsageError, match="was given 1 arguments(.|\n)*n, init"):
        walk.simulate((3,))


def test_a_traced_length_is_named():
    @gen
    def model():
        return trace("w", unfold(kernel)(trace("n", flip(0.5)), 0.0, 1.0, 0.0))

    with pytest.raises(ParameterError, match="traced array(.|\n)*mask"):
        model().vsimulate(3)


def test_unknown_addresses():
    tr = counted.simulate(SHORT)
    for address in [(2, "x"), (0, "z"), "x", (-1, "x")]:
        with pytest.raises(UnknownAddress):
            counted.generate(SHORT, {address: 1.0})
        with pytest.raises(UnknownAddress):
            tr.update({address: 1.0})
        assert tr.update({address: 1.0}, strict=False).weight.item() == 0


def test_a_parameter_in_the_kernel():
    """When it changes all steps are scored anew, once; then nothing runs again."""

    @gen.new
    def step(t, x):
        runs.append(t)
        return trace("x", normal(x + param("drift", 0.0), 1))

    chain = unfold(step)
    tr, _ = chain.generate((3, 0.0), {(t, "x"): float(t) for t in range(3)})
    runs.clear()
    step.params["drift"] = 1.0
    new, weight, _, _ = tr.update({})
    assert runs == [0, 1, 2] and weight.item() == close(N([0, 1, 2], [1, 1, 2]) - N([0, 1, 2], [0, 0, 1]))
    runs.clear()
    assert new.update({}).weight.item() == 0 and runs == []


def test_states_may_be_structures():
    @gen
    def step(t, state):
        level = trace("level", normal(state["level"] + state["slope"], 1))
        return {"level": level, "slope": state["slope"] * 0.5}

    tr, weight = unfold(step).generate((2, {"level": 1.0, "slope": 2.0}), {(0, "level"): 2.0, (1, "level"): 2.5})
    assert weight.item() == close(N(2.0, 3.0) + N(2.5, 3.0)) and tr.retval[1]["slope"] == 0.5
