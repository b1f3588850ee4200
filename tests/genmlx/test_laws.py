"""Every law of the interface, for every model of the zoo, alone and in a batch, against hand-written densities."""

import math

import mlx.core as mx
import numpy as np
import pytest
from gfi_zoo import CASES

from genmlx import NoChange, Propose, Regenerate, Update, choicemap, select

SEEDS = range(6)
LANES = 5
BATCHED = [c for c in CASES if c.batches]


def close(a, b, scale=1.0):
    """Float32 sums of a dozen terms: 2e-4, or 1e-5 of the largest term."""
    a, b = float(a), float(b)
    if math.isinf(a) or math.isinf(b):
        return a == b
    return abs(a - b) <= 2e-4 + 1e-5 * max(abs(a), abs(b), scale)


def numbers(choices):
    """Choices as float64, by address, for the oracle."""
    found = {}
    for address, value in choices.items():
        value = np.array(mx.array(value)).astype(np.float64)
        found[address] = value if value.ndim else float(value)
    return found


def densities(case, tr, args=None):
    return case.oracle(tr.args if args is None else args, numbers(tr.choices))


def total(found, addresses=None):
    return sum(v for a, v in found.items() if addresses is None or a in addresses)


def subset(rng, addresses):
    return [a for a in addresses if rng.random() < 0.5]


def exactly(addresses):
    return select(*addresses) if addresses else select.none()


def key(seed, salt=0):
    return mx.random.key(1000 * salt + seed)


@pytest.fixture(params=CASES, ids=repr)
def case(request):
    return request.param


@pytest.fixture(params=BATCHED, ids=repr)
def batched(request):
    return request.param


# alone


def test_simulate_score(case):
    for seed in SEEDS:
        tr = case.model.simulate(case.args, key(seed))
        assert close(tr.score, total(densities(case, tr)))


def test_assess_and_propose(case):
    """assess == score; propose gives its choices' density."""
    for seed in SEEDS:
        tr = case.model.simulate(case.args, key(seed))
        score, retval = case.model.assess(case.args, tr.choices)
        assert close(score, tr.score)
        choices, weight, _ = case.model.propose(case.args, key(seed))
        assert choices == tr.choices and close(weight, tr.score)


def test_generate(case):
    """weight = the summed density of the constrained choices: all, none, and some."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        tr = case.model.simulate(case.args, key(seed))
        full = case.model.generate(case.args, tr.choices)
        assert close(full.weight, tr.score) and full.trace.choices == tr.choices
        assert case.model.generate(case.args, {}, key(seed)).weight.item() == 0.0
        given = tr.choices.filter(exactly(subset(rng, tr.choices.addresses())))
        new, weight = case.model.generate(case.args, given, key(seed, 1), strict=False)
        visited = [a for a in given if a in new.choices]
        assert close(weight, total(densities(case, new), visited))
        assert all((mx.array(new.choices[a]) == mx.array(given[a])).all() for a in visited)


def updated_correctly(case, old, new, weight, discard, given, args):
    before, after = densities(case, old), densities(case, new, args)
    fresh = [a for a in after if a not in before and a not in given]
    assert close(weight, total(after) - total(before) - total(after, fresh), total(after))
    overwritten = [a for a in before if a in given]
    removed = [a for a in before if a not in after]
    assert sorted(discard.addresses(), key=str) == sorted({*overwritten, *removed}, key=str)
    for address in discard:
        assert np.array_equal(numbers(discard)[address], numbers(old.choices)[address])
    for address in after:
        if address in given:
            assert np.array_equal(numbers(new.choices)[address], numbers(given)[address])
        elif address in before:
            assert np.array_equal(numbers(new.choices)[address], numbers(old.choices)[address])
    return fresh


def test_update(case):
    """The weight, the discard, and the way back, for random constraints with and without new arguments."""
    for seed in SEEDS:
        rng = np.random.default_rng(100 + seed)
        old = case.model.simulate(case.args, key(seed))
        source = case.model.simulate(case.args, key(seed, 2)).choices
        for args in (None, case.other_args):
            given = source.filter(exactly(subset(rng, source.addresses())))
            new, weight, _, discard = old.update(given, args, key=key(seed, 3), strict=False)
            given = given.filter(exactly([a for a in given if a in new.choices]))
            fresh = updated_correctly(case, old, new, weight, discard, given, new.args)
            if not fresh:
                back = new.update(discard, old.args, key=key(seed, 4))
                assert back.trace.choices == old.choices
                assert close(back.weight, -weight, old.score) and close(back.trace.score, old.score)


def test_update_with_nothing(case):
    tr = case.model.simulate(case.args, key(0))
    for args in (None, tr.args):
        new, weight, retdiff, discard = tr.update({}, args)
        assert weight.item() == 0.0 and len(discard) == 0 and retdiff is NoChange and new.choices == tr.choices


def test_regenerate(case):
    """Weight over what is retained in both; the selected and the new are fresh, the rest stays."""
    for seed in SEEDS:
        rng = np.random.default_rng(200 + seed)
        old = case.model.simulate(case.args, key(seed))
        for args in (None, case.other_args):
            chosen = subset(rng, old.choices.addresses())
            new, weight, _ = old.regenerate(exactly(chosen), args, key=key(seed, 5))
            before, after = densities(case, old), densities(case, new)
            retained = [a for a in after if a in before and a not in chosen]
            assert close(weight, total(after, retained) - total(before, retained), total(after))
            for address in retained:
                assert np.array_equal(numbers(new.choices)[address], numbers(old.choices)[address])


def test_regenerate_everything_and_nothing(case):
    tr = case.model.simulate(case.args, key(1))
    assert tr.regenerate(select.all(), key=key(2)).weight.item() == 0.0
    new, weight, _ = tr.regenerate(select.none(), key=key(2))
    assert weight.item() == 0.0 and new.choices == tr.choices and close(new.score, tr.score)


def test_regenerate_draws_from_the_prior(case):
    """A regenerate that keeps the selected value would pass every weight law."""
    tr = case.model.simulate(case.args, key(1))
    values = {a: [] for a in tr.choices}
    for seed in range(12):
        new = tr.regenerate(select.all(), key=key(seed, 6)).trace
        for address in values:
            if address in new.choices:
                values[address].append(np.array(mx.array(new.choices[address])).tobytes())
    if case.name != "point_masses" and values:
        assert sum(len(set(v)) > 1 for v in values.values() if len(v) > 5) >= 1


def test_project(case):
    for seed in SEEDS:
        rng = np.random.default_rng(300 + seed)
        tr = case.model.simulate(case.args, key(seed))
        found = densities(case, tr)
        chosen = exactly(subset(rng, tr.choices.addresses()))
        assert close(tr.project(select.all()), tr.score)
        assert tr.project(select.none()).item() == 0.0
        assert close(tr.project(chosen), total(found, [a for a in found if a in chosen]))
        assert close(tr.project(chosen) + tr.project(~chosen), tr.score)


def test_edits_undo(case):
    """Each request's backward request restores the choices, with the opposite weight where nothing was fresh."""
    for seed in SEEDS:
        rng = np.random.default_rng(400 + seed)
        tr = case.model.simulate(case.args, key(seed))
        chosen = exactly(subset(rng, tr.choices.addresses()))
        new, weight, _, backward = tr.edit(Regenerate(chosen), key(seed, 7))
        back = new.edit(backward, key(seed, 8))
        assert back.trace.choices == tr.choices
        assert close(back.weight, -weight, tr.score)
        target = case.model.simulate(case.args, key(seed, 9)).choices
        if target.addresses() == tr.choices.addresses() and () not in target:
            forward = Propose(case.model(*case.args), case.model(*case.args))
            new, weight, _, backward = tr.edit(forward, key(seed, 10))
            if new.choices.addresses() == tr.choices.addresses():
                # Proposing from the prior: every move is accepted.
                assert close(weight, 0.0, tr.score)
                back = new.edit(backward, key(seed, 11))
                assert back.trace.choices == tr.choices and close(back.weight, -weight, tr.score)


# in a batch


def lanes(case, batch, weights=None):
    for i in range(batch.n):
        yield batch[i], None if weights is None else weights[i]


def test_batched_simulate(batched):
    batch = batched.model(*batched.args).vsimulate(LANES, key(0))
    assert batch.n == LANES and batch.score.shape == (LANES,)
    alone = batched.model.simulate(batched.args, key(0))
    for address, value in batch.choices.items():
        assert value.shape == (LANES, *mx.array(alone.choices[address]).shape)
        assert value.dtype == mx.array(alone.choices[address]).dtype
    for tr, _ in lanes(batched, batch):
        assert close(tr.score, total(densities(batched, tr)))
        again = batched.model.assess(batched.args, tr.choices)
        assert close(again.score, tr.score)
        assert repr(again.retval)[:8] == repr(tr.retval)[:8]


def test_batched_generate(batched):
    for seed in SEEDS:
        rng = np.random.default_rng(500 + seed)
        source = batched.model.simulate(batched.args, key(seed)).choices
        given = source.filter(exactly(subset(rng, source.addresses())))
        batch, weights = batched.model(*batched.args).vgenerate(given, LANES, key(seed, 1))
        assert weights.shape == (LANES,)
        for tr, weight in lanes(batched, batch, weights):
            assert close(weight, total(densities(batched, tr), given.addresses()))


def test_batched_update(batched):
    """Constraints are shared; the discard is one for each lane, and takes each lane back."""
    for seed in SEEDS:
        rng = np.random.default_rng(600 + seed)
        batch = batched.model(*batched.args).vsimulate(LANES, key(seed))
        source = batched.model.simulate(batched.args, key(seed, 2)).choices
        for args in (None, batched.other_args):
            given = source.filter(exactly(subset(rng, source.addresses())))
            new, weights, _, discard = batch.update(given, args, key=key(seed, 3), strict=False)
            assert weights.shape == (LANES,)
            given = given.filter(exactly([a for a in given if a in new.choices]))
            fresh = []
            for i in range(LANES):
                fresh = updated_correctly(
                    batched, batch[i], new[i], weights[i], discard.lane(i), given, new.args
                )
            if not fresh:
                back = new.update(discard, batch.args, key=key(seed, 4))
                assert back.trace.choices == batch.choices
                assert all(close(a, -b, 10) for a, b in zip(back.weight, weights, strict=True))


def test_batched_regenerate(batched):
    for seed in SEEDS:
        rng = np.random.default_rng(700 + seed)
        batch = batched.model(*batched.args).vsimulate(LANES, key(seed))
        chosen = subset(rng, batch.choices.addresses())
        new, weights, _ = batch.regenerate(exactly(chosen), key=key(seed, 5))
        assert weights.shape == (LANES,)
        for i in range(LANES):
            before, after = densities(batched, batch[i]), densities(batched, new[i])
            retained = [a for a in after if a in before and a not in chosen]
            assert close(weights[i], total(after, retained) - total(before, retained), total(after))
            for address in retained:
                assert np.array_equal(numbers(new[i].choices)[address], numbers(batch[i].choices)[address])
        assert not np.any(np.array(batch.regenerate(select.all(), key=key(seed, 6)).weight))


def test_batched_project(batched):
    batch = batched.model(*batched.args).vsimulate(LANES, key(0))
    rng = np.random.default_rng(0)
    chosen = exactly(subset(rng, batch.choices.addresses()))
    for selection in (chosen, ~chosen, select.all(), select.none()):
        weights = batch.project(selection)
        assert weights.shape == (LANES,)
        for i in range(LANES):
            found = densities(batched, batch[i])
            assert close(weights[i], total(found, [a for a in found if a in selection]))


def test_batched_edits_undo(batched):
    batch = batched.model(*batched.args).vsimulate(LANES, key(0))
    rng = np.random.default_rng(1)
    chosen = exactly(subset(rng, batch.choices.addresses()))
    requests = [Regenerate(chosen), Update(batched.model.simulate(batched.args, key(1)).choices)]
    if () not in batch.choices:
        requests.append(Propose(batched.model(*batched.args), batched.model(*batched.args)))
    for request in requests:
        new, weights, _, backward = batch.edit(request, key(2))
        assert weights.shape == (LANES,)
        back = new.edit(backward, key(3))
        assert back.trace.choices == batch.choices
        assert all(close(a, -b, 20) for a, b in zip(back.weight, weights, strict=True))


def test_take_and_slices(batched):
    batch = batched.model(*batched.args).vsimulate(LANES, key(0))
    kept = batch.take(mx.array([4, 0, 0]))
    assert kept.n == 3 and kept[1].choices == batch[0].choices and kept[0].choices == batch[4].choices
    assert batch[1:3][0].choices == batch[1].choices and batch[-1].choices == batch[4].choices
    assert [tr.choices for tr in batch] == [batch[i].choices for i in range(LANES)]


def test_per_lane_constraints(batched):
    """A choice map marked with its lanes gives each lane its own values; an unmarked one is shared."""
    batch = batched.model(*batched.args).vsimulate(LANES, key(0))
    other = batched.model(*batched.args).vsimulate(LANES, key(1))
    new = batch.update(other.choices).trace
    assert new.choices == other.choices
    again, weights = batched.model(*batched.args).vgenerate(other.choices, LANES, key(2))
    assert again.choices == other.choices
    assert all(close(w, s, 20) for w, s in zip(weights, other.score, strict=True))
    marked = choicemap(other.choices.to_dict()).batched(LANES)
    assert batch.update(marked).trace.choices == other.choices
