"""scan: case 32; the shapes of its sequences, and which steps an update runs."""

import mlx.core as mx
import pytest
from closed_forms import N, close, numbers, slope

from genmlx import NoChange, dimap, gen, normal, scan, select, trace
from genmlx.diff import UnknownChange, VectorDiff
from genmlx.errors import ParameterError, UnknownAddress, UsageError

runs = []


@pytest.fixture(autouse=True)
def no_runs():
    runs.clear()


@gen
def kernel(total, x):
    runs.append(x)
    b = trace("b", normal(total + x, 1))
    return b, 2 * b


sums = scan(kernel)
START = {(0, "b"): 1.0, (1, "b"): 2.0, (2, "b"): 3.0}


def test_iterate():
    """Case 32: iterate(+1) four times from 0."""
    up = scan(gen.new(lambda n, _: (n + 1, n + 1)))
    carry, outs = up.simulate((0, [None] * 4)).retval
    assert [0, *outs] == [0, 1, 2, 3, 4] and carry == 4


def test_no_elements():
    for xs in ([], mx.zeros((0,))):
        tr, weight = sums.generate((0.5, xs))
        assert tr.score.item() == 0 and weight.item() == 0 and tr.retval[0] == 0.5 and len(tr.retval[1]) == 0
        assert tr.choices.is_empty


def test_differing_lengths():
    pairs = scan(gen.new(lambda c, x: (c, x["a"])))
    with pytest.raises(ParameterError, match=r"xs\['a'\] has 3 elements, xs\['b'\] has 2"):
        pairs.simulate((0.0, {"a": mx.zeros((3,)), "b": mx.zeros((2,))}))
    with pytest.raises(ParameterError, match="xs is not a column"):
        sums.simulate((0.0, 3.0))


def test_a_leaf_moves_its_successor():
    """Case 32: b[1] = 99 makes b[2] impossible in all but name; the step after it is not touched."""
    tr, _ = sums.generate((0.0, [0.1, 0.2, 0.3, 0.4]), START | {(3, "b"): 4.0})
    runs.clear()
    new, weight, retdiff, discard = tr.update({(1, "b"): 99.0})
    assert weight.item() < -100 and runs == [0.2, 0.3] and retdiff is UnknownChange
    assert weight.item() == close(N(99, 1.2) - N(2, 1.2) + N(3, 99.3) - N(3, 2.3), 1e-2)
    assert numbers(discard) == {(1, "b"): 2.0} and new.retval[1][1].item() == 198
    runs.clear()
    tr.update({}, (0.0, [0.1, 0.2, 0.3, 0.5]))
    assert runs == [0.5]
    runs.clear()
    assert tr.update({}).trace is tr and runs == []


def test_a_changed_start_and_growth():
    tr, weight = sums.generate((0.0, [0.1, 0.2, 0.3]), START)
    assert weight.item() == close(N(1, 0.1) + N(2, 1.2) + N(3, 2.3))
    runs.clear()
    _, weight, _, _ = tr.update({}, (0.5, [0.1, 0.2, 0.3]))
    assert runs == [0.1] and weight.item() == close(N(1, 0.6) - N(1, 0.1))
    runs.clear()
    new, weight, _, discard = tr.update({(3, "b"): 0.0}, (0.0, [0.1, 0.2, 0.3, 0.4]))
    assert runs == [0.4] and weight.item() == close(N(0, 3.4)) and discard.is_empty
    assert new.retval[0].item() == 0.0 and len(new.retval[1]) == 4


@pytest.mark.parametrize("structure", [tuple, lambda ab: dict(zip("ab", ab, strict=True))], ids=["tuple", "dict"])
def test_columns_in_a_structure(structure):
    """Each column changes by itself: a tuple of two columns is not a column of two."""
    get = (lambda x: (x["a"], x["b"])) if structure is not tuple else (lambda x: x)

    @gen.new
    def step(carry, x):
        a, b = get(x)
        return carry, trace("z", normal(a + b, 1))

    a, b = mx.array([1.0, 2.0, 3.0]), mx.array([0.5, 0.5, 0.5])
    tr, weight = scan(step).generate((0.0, structure((a, b))), {(t, "z"): 0.0 for t in range(3)})
    assert weight.item() == close(N([0, 0, 0], [1.5, 2.5, 3.5])) and tr.retval[1].shape == (3,)
    new, weight, _, _ = tr.update({}, (0.0, structure((a, b + 1))))
    assert weight.item() == close(N([0, 0, 0], [2.5, 3.5, 4.5]) - N([0, 0, 0], [1.5, 2.5, 3.5]))
    _, weight, _, _ = tr.update({}, (0.0, structure((mx.array([1.0, 2.0, 5.0]), b))), [NoChange, VectorDiff({2})])
    assert weight.item() == close(N(0, 5.5) - N(0, 3.5))


def test_kernels_that_do_not_fit():
    with pytest.raises(UsageError, match="returned 0(.|\n)*a pair"):
        scan(gen.new(lambda c, x: 0)).simulate((0.0, [1.0]))
    with pytest.raises(UsageError, match="was given 1 arguments(.|\n)*init, xs"):
        sums.simulate((0.0,))


def test_unknown_addresses():
    for address in [(3, "b"), (0, "c"), "b"]:
        with pytest.raises(UnknownAddress):
            sums.generate((0.0, [0.1, 0.2, 0.3]), {address: 1.0})


def test_gradients():
    pairs = scan(dimap(normal, lambda c, x: (0.5 * c + x, 1.0), lambda b: (b, b)))
    tr = pairs.simulate((0.4, mx.array([0.1, 0.2, 0.3])), key=2)
    (init, xs), _, by_choice = tr.choice_gradients(select(1), retval_grad=(mx.array(3.0), mx.zeros((3,))))
    assert init.item() == close(slope(lambda v: pairs.assess((v, tr.args[1]), tr.choices).score, 0.4), 1e-2)
    before = [0.4, tr.choices[0].item(), tr.choices[1].item()]
    for t in range(3):
        assert xs[t].item() == close(tr.choices[t].item() - 0.5 * before[t] - tr.args[1][t].item())

    def moved(v):
        return pairs.assess(tr.args, tr.choices.set(1, v)).score

    assert by_choice[1].item() == close(slope(moved, tr.choices[1].item()), 1e-2)
