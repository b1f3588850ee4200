"""switch: cases 26 and 27; indices that are known, traced and changed."""

import mlx.core as mx
import numpy as np
import pytest
from closed_forms import N, close, numbers

from genmlx import NoChange, choicemap, contramap, flip, gen, laplace, normal, param, select, switch, trace, unfold
from genmlx.errors import ParameterError, UnknownAddress, UsageError, ValueMismatch

runs = []


@pytest.fixture(autouse=True)
def no_runs():
    runs.clear()


@gen
def zero(x, y, std=3.0):
    runs.append(0)
    return trace("z", normal(x + y, std))


@gen
def one(x, y, std=3.0):
    runs.append(1)
    return trace("z", normal(x + 2 * y, std))


either = switch(zero, one)


def test_generate_and_flip():
    """Case 26: the shared address is carried, so nothing is discarded and nothing is fresh."""
    tr, weight = either.generate((1, 5.0, 3.0), {"z": 5.0})
    assert weight.item() == close(-4.017551) and runs == [1]
    assert tr.choices == choicemap(z=5.0) and tr.retval.item() == 5.0
    tr, _ = either.generate((0, 5.0, 3.0), {"z": 5.0})
    new, weight, _, discard = tr.update({}, (1, 5.0, 3.0))
    assert weight.item() == close(-1.5) and discard.is_empty and new["z"].item() == 5.0
    new, weight, _, discard = tr.update({"z": 11.0}, (1, 5.0, 3.0))
    assert weight.item() == close(N(11, 11, 3) - N(5, 8, 3)) and numbers(discard) == {("z",): 5.0}


@pytest.mark.parametrize("index, dz, dstd", [(0, -0.222222, -0.185185), (1, 0.111111, -0.296296)])
def test_gradients(index, dz, dstd):
    """Case 26, with an index that the host knows and with one that is traced."""
    for std in (3.0, 3):
        tr, _ = either.generate((index, 5, 3, std), {"z": 10.0})
        (none, _, _, found), _, gradients = tr.choice_gradients("z")
        assert none is None and gradients["z"].item() == close(dz) and found.item() == close(dstd)

    @gen
    def drawn(std):
        return trace("s", either(trace("i", flip(0.5)), 5.0, 3.0, std))

    batch, _ = drawn(3.0).vgenerate(choicemap({"i": [index, 1 - index], ("s", "z"): [10.0, 10.0]}).batched(2), 2)
    (std,), _, gradients = batch.choice_gradients(select(("s", "z")))
    assert gradients["s", "z"][0].item() == close(dz) and std[0].item() == close(dstd)


@gen
def deep():
    trace("z", normal(1, 1))
    return trace("m", normal(2, 1))


@gen
def inner(depth):
    trace("z", normal(depth, 1))
    if depth:
        trace("q", inner(depth - 1))


@gen
def long():
    trace("z", normal(0, 1))
    trace("m", normal(0, 2))
    trace("q", inner(1))


@gen
def short():
    trace("z", normal(1, 1))
    trace("q", inner(0))


OLD = {"z": 0.1, "m": 0.2, ("q", "z"): 0.3, ("q", "q", "z"): 0.4}


def test_discard():
    """Case 27: what was overwritten and what was removed; ("q", "z") is in both branches, and kept."""
    tr, _ = switch(short, long).generate((1,), OLD)
    new, weight, _, discard = tr.update({"z": 10.0}, (0,))
    assert numbers(discard) == {("z",): close(0.1), ("m",): close(0.2), ("q", "q", "z"): close(0.4)}
    before = N(0.1, 0) + N(0.2, 0, 2) + N(0.3, 1) + N(0.4, 0)
    assert tr.score.item() == close(before)
    assert weight.item() == close(N(10, 1) + N(0.3, 0) - before)
    assert numbers(new.choices) == {("z",): 10.0, ("q", "z"): close(0.3)}
    back = new.update(discard, (1,))
    assert back.trace.choices == tr.choices and back.weight.item() == close(-weight.item())


def test_fresh_choices_do_not_count():
    """The difference of the scores would count m and ("q", "q", "z"), which are drawn anew."""
    tr, _ = switch(short, long).generate((0,), {"z": 0.1, ("q", "z"): 0.3})
    new, weight, _, discard = tr.update({}, (1,), key=5)
    assert weight.item() == close(N(0.1, 0) + N(0.3, 1) - N(0.1, 1) - N(0.3, 0)) and discard.is_empty
    assert weight.item() != close((new.score - tr.score).item())
    new, weight, _ = tr.regenerate("z", (1,), key=6)
    assert weight.item() == close(N(0.3, 1) - N(0.3, 0)) and new["z"].item() != close(0.1)


def drawn_index(*branches):
    chosen = switch(*branches)

    @gen.new
    def model():
        return trace("s", chosen(trace("i", flip(0.5))))

    return model


def test_a_flip_in_a_batch_takes_out_only_its_own_branch():
    """Every branch runs in every lane; the score of the one not taken must be in no weight and no score."""
    model = drawn_index(short, long)
    given = choicemap({"i": mx.array([0, 0, 1, 1]), **{("s", *choicemap(OLD).addresses()[i]): mx.full((4,), v)
                      for i, v in enumerate(OLD.values())}}).batched(4)  # fmt: skip
    batch, weights = model().vgenerate(given, 4)
    low, high = N(0.1, 1) + N(0.3, 0), N(0.1, 0) + N(0.2, 0, 2) + N(0.3, 1) + N(0.4, 0)
    assert batch.score.tolist() == [close(np.log(0.5) + s) for s in (low, low, high, high)] == weights.tolist()
    new, weights, _, discard = batch.update(choicemap({"i": mx.array([0, 1, 0, 1])}).batched(4), key=1)
    for lane, expected in enumerate((0.0, N(0.1, 0) + N(0.3, 1) - low, low - high, 0.0)):
        assert weights[lane].item() == close(expected)
        alone = batch[lane].update({"i": [0, 1, 0, 1][lane]}, key=2)
        assert alone.weight.item() == close(expected) and alone.discard == discard.lane(lane)
    assert set(discard.lane(2)) == {("i",), ("s", "m"), ("s", "q", "q", "z")}
    assert [tr.choices.addresses() for tr in new] == [batch[i].choices.addresses() for i in (0, 2, 0, 2)]
    assert new.project("s").tolist() == [close(tr.score.item() - np.log(0.5)) for tr in new]


def test_only_the_chosen_branch_runs():
    tr = either.simulate((0, 5.0, 3.0))
    assert runs == [0]
    runs.clear()
    assert tr.update({}).trace.choices == tr.choices and tr.update({}).retdiff is NoChange and runs == []
    tr.update({"z": 1.0})
    assert runs == [0]
    runs.clear()
    tr.regenerate("z", (1, 5.0, 3.0))
    assert runs == [1]


def test_indices():
    for index in (1, True, 1.0, np.int64(1), mx.array(1), mx.array(True)):
        assert either.generate((index, 5.0, 3.0), {"z": 5.0}).weight.item() == close(-4.017551)
    for bad in (2, -1, 0.5, "one", None):
        with pytest.raises(ParameterError, match="no branch (.|\n)*an index from 0 to 1|the index must be"):
            either.simulate((bad, 5.0, 3.0))
    with pytest.raises(ParameterError, match="the index must be one whole number"):
        either.simulate((mx.array([0, 1]), 5.0, 3.0))
    with pytest.raises(UsageError, match="index"):
        either.simulate(())
    with pytest.raises(UsageError, match="no branches"):
        switch()


def test_an_index_that_is_no_branch_in_a_batch():
    """Nobody can raise there: the lane has density zero."""

    @gen
    def model():
        return trace("s", switch(normal, laplace)(trace("k", flip(0.5)) + 1, 0.0, 1.0))

    score = model().vsimulate(8, 0).score
    assert {bool(s) for s in mx.isinf(score).tolist()} == {True, False} and not mx.any(mx.isnan(score)).item()


def test_branches_of_different_return_values():
    pair, single = gen.new(lambda: (1.0, trace("z", normal(0, 1)))), gen.new(lambda: trace("z", normal(0, 1)))
    assert isinstance(switch(pair, single).simulate((0,)).retval, tuple)
    with pytest.raises(ValueMismatch, match="return values of different structure"):
        drawn_index(pair, single)().vsimulate(3)
    vector = gen.new(lambda: trace("v", normal(mx.zeros((3,)), 1)))
    with pytest.raises(ValueMismatch, match="different structure or shape"):
        drawn_index(vector, single)().vsimulate(3)


def test_values_of_different_shapes_at_one_address():
    nothing = gen.new(lambda: trace("z", normal(0, 1)) * 0)
    vector = gen.new(lambda: trace("z", normal(mx.zeros((3,)), 1)).sum())
    with pytest.raises(ValueMismatch, match="shapes (.|\n)*one shape"):
        _ = drawn_index(nothing, vector)().vsimulate(3).choices


def test_vector_values_that_only_some_lanes_have():
    """As many lanes as elements: nobody may guess which axis is which."""
    model = drawn_index(
        gen.new(lambda: trace("v", normal(mx.zeros((3,)), 1)).sum()), gen.new(lambda: trace("w", normal(1.0, 1)))
    )
    batch, _ = model().vgenerate(choicemap({"i": [0, 1, 0]}).batched(3), 3, 3)
    leaf = batch.choices["s", "v"]
    assert leaf.value.shape == (3, 3) and leaf.active.tolist() == [i == 0 for i in batch["i"].tolist()]
    assert batch["i"].tolist() == [0, 1, 0]
    flipped = batch.update(choicemap({"i": 1 - batch["i"]}).batched(3), key=4)
    for lane in range(3):
        assert flipped.weight[lane].item() == close(-batch[lane].project("s").item())
        assert ("s", "v") in flipped.discard.lane(lane) or ("s", "w") in flipped.discard.lane(lane)
        assert len(flipped.discard.lane(lane)) == 2
    back = flipped.trace.update(flipped.discard, key=5)
    assert back.trace.choices == batch.choices


def test_unknown_addresses():
    with pytest.raises(UnknownAddress):
        switch(short, long).generate((0,), {"m": 1.0})
    assert switch(short, long).generate((0,), {"m": 1.0}, strict=False).weight.item() == 0
    batch, _ = drawn_index(short, long)().vgenerate({("s", "m"): 1.0}, 4, 0)  # some lane may have it
    assert batch.n == 4
    with pytest.raises(UnknownAddress):
        drawn_index(short, long)().vgenerate({("s", "k"): 1.0}, 4)


def test_diffs_of_branches_in_a_batch():
    """If any branch may have changed its value, so may the switch: the states after it are scored anew."""

    @gen.new
    def keeps(t, x, m):
        return trace("a", normal(x, 1)) * 0 + 1

    @gen.new
    def moves(t, x, m):
        return trace("b", normal(x, 1))

    chain = unfold(contramap(switch(keeps, moves), lambda t, x, i: (i, t, x, i)))

    @gen.new
    def model():
        return trace("c", chain(2, 0.0, trace("i", flip(0.5))))

    batch = model().vsimulate(6, 1)
    new, weights, _, _ = batch.update({("c", 0, "b"): 3.0}, strict=False)
    for lane in range(6):
        assert weights[lane].item() == close(batch[lane].update({("c", 0, "b"): 3.0}, strict=False).weight.item())
        assert new.score[lane].item() == close(model().assess(new[lane].choices).score.item())


def test_a_parameter_in_a_branch():
    @gen.new
    def trained():
        runs.append("trained")
        return trace("z", normal(param("mu", 0.0), 1))

    tr, _ = switch(trained, deep).generate((0,), {"z": 1.0})
    runs.clear()
    trained.params["mu"] = 1.0
    new, weight, _, _ = tr.update({})
    assert weight.item() == close(0.5) and runs == ["trained"]
    assert new.update({}).weight.item() == 0 and runs == ["trained"]
