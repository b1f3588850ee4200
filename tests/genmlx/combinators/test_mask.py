"""mask: case 29, alone and with flags that differ between lanes."""

import mlx.core as mx
import pytest
from closed_forms import N, close

from genmlx import (
    NoChange,
    choicemap,
    contramap,
    flip,
    gen,
    map_over,
    mask,
    normal,
    repeat,
    scan,
    select,
    trace,
    vmap,
)
from genmlx.errors import ParameterError, UnknownAddress, UsageError

runs = []


@gen
def inner(mu):
    runs.append(mu)
    return trace("z", normal(mu, 1))


masked = mask(inner)
V = N(0.7, 0.2)


def start(active):
    return masked.generate((active, 0.2), {"z": 0.7} if active else {}).trace


@pytest.mark.parametrize(
    "before, after, given, expected",
    [
        (True, True, {}, 0.0),
        (True, True, {"z": 0.9}, N(0.9, 0.2) - V),
        (True, False, {}, -V),
        (True, False, {"z": 0.9}, -V),
        (False, True, {"z": 0.7}, V),
        (False, True, {}, 0.0),
        (False, False, {}, 0.0),
        (False, False, {"z": 0.9}, 0.0),
    ],
)
def test_transitions(before, after, given, expected):
    """Case 29, alone and as the lanes of a batch that hold all four transitions."""
    tr = start(before)
    runs.clear()
    new, weight, _, discard = tr.update(given, (after, 0.2), key=1)
    assert weight.item() == close(expected) and bool(runs) == (after and (not before or bool(given)))
    assert ("z" in discard) == (before and (not after or bool(given))) and ("z" in new.choices) == after
    assert new.score.item() == close(new.project(select.all()).item()) and (after or new.score.item() == 0)
    assert (new.retval is None) == (not after)

    @gen.new
    def model():
        return trace("m", masked(trace("on", flip(0.5)), 0.2))

    old = [True, True, False, False]
    flags = choicemap({"on": mx.array(old).astype(mx.int32), ("m", "z"): mx.full((4,), 0.7)}).batched(4)
    batch, _ = model().vgenerate(flags, 4)
    new_flags = choicemap({"on": mx.array([True, False, True, False]).astype(mx.int32)}).batched(4)
    constraints = new_flags | {("m", *k): v for k, v in choicemap(given).items()}
    lane = 2 * (not before) + (not after)
    new, weights, _, discard = batch.update(constraints, key=2)
    assert weights[lane].item() == close(expected)
    assert (("m", "z") in discard.lane(lane)) == (before and (not after or bool(given)))
    assert (("m", "z") in new[lane].choices) == after


def test_generate():
    """Case 29: a constraint on what is not there is ignored, whatever it names."""
    tr, weight = masked.generate((False, 0.2), {"z": 0.7})
    assert weight.item() == 0 and tr.score.item() == 0 and tr.choices.is_empty and tr.retval is None
    assert masked.generate((True, 0.2), {"z": 0.7}).weight.item() == close(V)
    with pytest.raises(UnknownAddress):
        masked.generate((True, 0.2), {"y": 0.7})


def test_nothing_runs_for_nothing():
    for active in (True, False):
        tr = start(active)
        runs.clear()
        new, weight, retdiff, _ = tr.update({})
        assert runs == [] and retdiff is NoChange and weight.item() == 0
        assert tr.regenerate(select.none()).weight.item() == 0 and runs == []


def test_regenerate_across_a_flip():
    new, weight, _ = start(True).regenerate(select.none(), (False, 0.2))
    assert weight.item() == 0 and new.choices.is_empty
    new, weight, _ = start(False).regenerate(select.none(), (True, 0.2), key=1)
    assert weight.item() == 0 and "z" in new.choices
    assert start(True).regenerate(select.none(), (True, 1.2)).weight.item() == close(N(0.7, 1.2) - V)


def test_flags():
    for on in (True, 1, mx.array(True), mx.array(1)):
        assert masked.generate((on, 0.2), {"z": 0.7}).weight.item() == close(V)
    for off in (False, 0, mx.array(False)):
        assert masked.simulate((off, 0.2)).retval is None
    with pytest.raises(ParameterError, match="one truth value"):
        masked.simulate((mx.array([True, False]), 0.2))
    with pytest.raises(UsageError, match="active"):
        masked.simulate(())


def test_sequences_of_different_lengths():
    """The longest sequence with a mask: per element under map_over, per lane under vmap."""
    rows = vmap(map_over(mask(normal)), in_axes=(0, None, None))
    flags = mx.array([[True, True, True], [True, False, False]])

    @gen
    def row(on, xs):
        return trace("row", map_over(mask(normal))(on, xs, [1.0] * 3))

    tr = vmap(row, in_axes=(0, None)).simulate((flags, [0.0, 1.0, 2.0]), key=1)
    found = tr.choices["row", 2]
    assert found.active.tolist() == [True, False] and found.value.shape == (2,)
    expected = sum(
        N(getattr(leaf, "value", leaf)[i].item(), t)
        for t, leaf in enumerate(tr.choices["row", t] for t in range(3))
        for i in range(2)
        if flags[i, t].item()
    )
    assert tr.score.item() == close(expected)
    assert rows.simulate((flags, [0.0, 1.0, 2.0], [1.0] * 3)).score.ndim == 0


def test_a_masked_scan_in_a_batch():
    """The same steps of a scan with a mask around each step, lane by lane against alone."""

    @gen.new
    def step(carry, x):
        on = trace("on", flip(0.6))
        z = trace("z", mask(normal)(on, carry + x, 1.0))
        carry = carry if z is None else mx.where(on, z, carry)
        return carry, carry

    model = scan(step)
    batch = model(0.5, [0.1, 0.2, 0.3]).vsimulate(8, 3)
    for tr in batch:
        assert tr.score.item() == close(model.assess(tr.args, tr.choices).score.item())
    new, weights, _, discard = batch.update({(1, "on"): 1}, key=4)
    for lane in range(8):
        alone = batch[lane].update({(1, "on"): 1}, key=5)
        assert alone.discard == discard.lane(lane)
        # where the step was off its value is fresh, and so differs from the one drawn alone
        if len(alone.trace.choices) == len(batch[lane].choices):
            assert alone.weight.item() == close(weights[lane].item())


def test_gradients():
    (_, mu), _, gradients = start(True).choice_gradients("z")
    assert mu.item() == close(0.5) and gradients["z"].item() == close(-0.5)
    args, _, gradients = start(False).choice_gradients(select.none())
    assert gradients.is_empty and (args[1] is None or args[1].item() == 0)

    @gen.new
    def model(mu):
        return trace("m", masked(trace("on", flip(0.5)), mu))

    given = choicemap({"on": mx.array([1, 0]), ("m", "z"): mx.array([0.7, 0.7])}).batched(2)
    batch, _ = model(0.2).vgenerate(given, 2)
    (mu,), _, gradients = batch.choice_gradients(select(("m", "z")))
    assert mu.tolist() == [close(0.5), 0.0] and gradients.lane(0)["m", "z"].item() == close(-0.5)
    assert gradients.lane(1).is_empty


def test_impossible_values_stay_out_of_the_other_lanes():
    """-inf where the mask is open, 0 where it is closed, and no NaN in either."""
    from genmlx import uniform

    @gen.new
    def model():
        return trace("m", mask(uniform)(trace("on", flip(0.5)), 0.0, 1.0))

    given = choicemap({"on": mx.array([1, 0]), "m": mx.array([7.0, 7.0])}).batched(2)
    batch, weights = model().vgenerate(given, 2)
    assert weights.tolist() == [-float("inf"), close(-0.693147)] == batch.score.tolist()
    new, weights, _, _ = batch.update(choicemap({"on": mx.array([0, 0])}).batched(2))
    assert weights.tolist() == [float("inf"), 0.0] and new.score.tolist() == [close(-0.693147)] * 2


def test_a_closed_mask_in_a_batch_that_is_revised():
    """The host knew the flag, which all lanes share, in the first run; in the next it is a row of the old arguments."""
    pairs = repeat(contramap(mask(normal), lambda x: (x > 0, x, 1.0)), 2)
    old = pairs.simulate((mx.array(-0.7),), mx.random.key(0))
    new, weight, _, discard = old.update({(): mx.array([1.0, 2.0])}, strict=False)
    assert weight.item() == 0.0 == new.score.item() and discard.is_empty and new.choices == old.choices
    new, weight, _ = old.regenerate(select.all(), key=mx.random.key(1))
    assert weight.item() == 0.0 == new.score.item() and new.choices == old.choices
