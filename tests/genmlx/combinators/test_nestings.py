"""Every law of the interface for random nestings of the combinators, against oracles that never call the library.

By default: every combinator in every other, and a sample of nestings to depth three; GENMLX_SAMPLE=1, 2, ... takes
other leaves and other nestings, GENMLX_FULL=1 all of them.
A cell is one number that is drawn: an address, and its place along the axes that vmap stacked.
"""

import itertools
import math
import os
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from nestings import COMBINATORS, leaves, nesting, outer_model

from genmlx import NoChange, Propose, Regenerate, Update, select
from genmlx.combinators import whole

FULL = bool(os.environ.get("GENMLX_FULL"))
SAMPLE = int(os.environ.get("GENMLX_SAMPLE", "0"))
LANES = 4

KINDS = list(COMBINATORS)
PAIRS = list(itertools.product(KINDS, repeat=2))
TRIPLES = list(itertools.product(KINDS, repeat=3))
if not FULL:
    rng = np.random.default_rng(SAMPLE)
    TRIPLES = [TRIPLES[i] for i in rng.choice(len(TRIPLES), 24, replace=False)]
PATHS = [(kind,) for kind in KINDS] + PAIRS + TRIPLES
CASES = [
    (path, short)
    for i, path in enumerate(PATHS)
    for short in ((False, True) if FULL else ((i // 2 + SAMPLE) % 2 == 0,))
]
ALONE, BATCHED = CASES, CASES if FULL else CASES[SAMPLE % 2 :: 2]


def name(case):
    return f"{'.'.join(case[0])}{'-short' if case[1] else ''}"


@cache
def made(path):
    return nesting(path, 1000 * SAMPLE + 100 * len(path))


@cache
def in_model(path):
    return outer_model(made(path), 0)


def path_of(case, monkeypatch):
    """Half of the cases say that two steps are a long sequence already, which is then run as a whole."""
    path, short = case
    monkeypatch.setattr(whole, "LEAST", 2 if short else whole.LEAST)
    return path


@pytest.fixture(params=ALONE, ids=name)
def node(request, monkeypatch):
    return made(path_of(request.param, monkeypatch))


@pytest.fixture(params=BATCHED, ids=name)
def model(request, monkeypatch):
    return in_model(path_of(request.param, monkeypatch))


def close(a, b, scale=1.0):
    """Float32 sums of a few dozen terms: 3e-4, or 2e-5 of the largest term."""
    a, b = float(a), float(b)
    if math.isinf(a) or math.isinf(b):
        return a == b
    return abs(a - b) <= 3e-4 + 2e-5 * max(abs(a), abs(b), scale)


def key(seed, salt=0):
    return mx.random.key(1000 * salt + seed)


def cells_of(node, tr, choices=None, args=None):
    return node.oracle(tr.args if args is None else args, leaves(tr.choices if choices is None else choices))[0]


def total(cells, among=None):
    return sum(lp for cell, (lp, _) in cells.items() if among is None or cell in among)


def same_values(cells, others, among):
    return all(np.array_equal(cells[cell][1], others[cell][1]) for cell in among)


def subset(rng, choices):
    chosen = [a for a in choices.addresses() if rng.random() < 0.5]
    return select(*chosen) if chosen else select.none()


def within(cells, selection):
    return {cell for cell in cells if cell[0] in selection}


def same_leaves(a, b):
    """Equal choices, where a masked value that is active nowhere is none."""
    a, b = leaves(a), leaves(b)
    present = [{k: v for k, v in c.items() if not hasattr(v, "active") or v.active.any()} for c in (a, b)]
    if present[0].keys() != present[1].keys():
        return False
    for address, leaf in present[0].items():
        other = present[1][address]
        if hasattr(leaf, "active") or hasattr(other, "active"):
            active = getattr(leaf, "active", True) & np.ones_like(getattr(other, "active", True))
            if not np.array_equal(active, getattr(other, "active", True) & np.ones_like(active)):
                return False
            leaf, other = [getattr(x, "value", x)[active] for x in (leaf, other)]
        if not np.array_equal(leaf, other):
            return False
    return True


def check_update(before, after, weight, discarded, given):
    """The weight, what is in the new trace, and the discard, cell by cell. Gives the cells that were drawn."""
    fresh = after.keys() - before.keys() - given.keys()
    assert close(weight, total(after) - total(before) - total(after, fresh), abs(total(after)) + abs(total(before)))
    kept = (after.keys() & before.keys()) - given.keys()
    assert same_values(after, given, after.keys() & given.keys()) and same_values(after, before, kept)
    lost = (before.keys() & given.keys() & after.keys()) | (before.keys() - after.keys())
    assert discarded.keys() == lost and same_values(discarded, before, lost)
    return fresh


def discarded_cells(node, old, discard):
    """The old cells that a discard names: those at its addresses, where it is active."""
    before, found = leaves(old.choices), leaves(discard)
    assert found.keys() <= before.keys(), (found.keys() - before.keys())
    named = {}
    for address, lanes in node.oracle(old.args, before)[0]:
        leaf = found.get(address)
        if leaf is None:
            continue
        value, active = getattr(leaf, "value", leaf), getattr(leaf, "active", True)
        place = lanes[: np.ndim(active)]
        if np.all(active if active is True else active[place]):
            named[address, lanes] = (0.0, value[lanes])
    return named


def given_cells(node, args, source, chosen):
    return {cell: found for cell, found in node.oracle(args, leaves(source))[0].items() if cell[0] in chosen}


# alone


def test_simulate_generate_assess_propose(node):
    rng = np.random.default_rng(0)
    for i, args in enumerate(node.variants):
        tr = node.gf.simulate(args, key(i))
        cells, retval = node.oracle(args, leaves(tr.choices))
        assert close(tr.score, total(cells)) and agrees(tr.retval, retval)
        score, retval = node.gf.assess(args, tr.choices)
        assert close(score, tr.score) and agrees(tr.retval, retval)
        full = node.gf.generate(args, tr.choices)
        assert close(full.weight, tr.score) and full.trace.choices == tr.choices
        assert node.gf.generate(args, {}, key(i)).weight.item() == 0.0
        choices, weight, _ = node.gf.propose(args, key(i))
        assert choices == tr.choices and close(weight, tr.score)
        chosen = subset(rng, tr.choices)
        given = given_cells(node, args, tr.choices, chosen)
        new, weight = node.gf.generate(args, tr.choices.filter(chosen), key(i, 1), strict=False)
        after = cells_of(node, new)
        assert close(weight, total(after, given.keys()), abs(total(after)))
        assert same_values(after, given, after.keys() & given.keys())


def agrees(found, expected):
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(agrees, found, expected))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(agrees(found[k], expected[k]) for k in expected)
    return found is expected if expected is None else np.allclose(np.array(found), expected, atol=1e-4, rtol=1e-4)


def test_update(node):
    """Random constraints with every change of arguments: index, flag, length, elements. And the way back."""
    rng = np.random.default_rng(1)
    for i, args in enumerate(node.variants):
        old = node.gf.simulate(args, key(i, 2))
        for j, new_args in enumerate([None, *node.variants]):
            source_args = args if new_args is None else new_args
            source = node.gf.simulate(source_args, key(j, 3)).choices
            chosen = subset(rng, source)
            new, weight, retdiff, discard = old.update(source.filter(chosen), new_args, key=key(j, 4), strict=False)
            before, after = cells_of(node, old), cells_of(node, new)
            assert close(new.score, total(after))
            given = given_cells(node, source_args, source, chosen)
            fresh = check_update(before, after, weight, discarded_cells(node, old, discard), given)
            assert agrees(new.retval, node.oracle(new.args, leaves(new.choices))[1])
            if retdiff is NoChange:
                assert agrees(old.retval, node.oracle(new.args, leaves(new.choices))[1])
            if not fresh:
                back = new.update(discard, old.args, key=key(j, 5))
                assert same_leaves(back.trace.choices, old.choices)
                assert close(back.weight, -weight, old.score) and close(back.trace.score, old.score)


def test_update_with_nothing(node):
    for args in node.variants:
        tr = node.gf.simulate(args, key(0))
        for again in (None, tr.args):
            new, weight, retdiff, discard = tr.update({}, again)
            assert weight.item() == 0.0 and discard.is_empty and retdiff is NoChange and new.choices == tr.choices
            assert new.score.item() == tr.score.item()


def test_regenerate(node):
    rng = np.random.default_rng(2)
    for i, args in enumerate(node.variants):
        old = node.gf.simulate(args, key(i, 6))
        before = cells_of(node, old)
        assert old.regenerate(select.all(), key=key(i)).weight.item() == 0.0
        idle, weight, _ = old.regenerate(select.none(), key=key(i))
        assert weight.item() == 0.0 and idle.choices == old.choices and close(idle.score, old.score)
        for j, new_args in enumerate([None, *node.variants]):
            chosen = subset(rng, old.choices)
            new, weight, _ = old.regenerate(chosen, new_args, key=key(j, 7), strict=False)
            after = cells_of(node, new)
            kept = (after.keys() & before.keys()) - within(before, chosen)
            assert close(new.score, total(after))
            assert close(weight, total(after, kept) - total(before, kept), abs(total(after)) + abs(total(before)))
            assert same_values(after, before, kept)
            redrawn = [c for c in within(before, chosen) & after.keys() if before[c][1].dtype == np.float32]
            assert not any(np.array_equal(before[c][1], after[c][1]) for c in redrawn)


def test_project(node):
    rng = np.random.default_rng(3)
    for i, args in enumerate(node.variants):
        tr = node.gf.simulate(args, key(i, 8))
        cells, chosen = cells_of(node, tr), subset(rng, tr.choices)
        assert close(tr.project(select.all()), tr.score) and tr.project(select.none()).item() == 0.0
        assert close(tr.project(chosen), total(cells, within(cells, chosen)))
        assert close(tr.project(chosen) + tr.project(~chosen), tr.score)


def test_edits_undo(node):
    rng = np.random.default_rng(4)
    for i, args in enumerate(node.variants):
        old = node.gf.simulate(args, key(i, 9))
        target = node.gf.simulate(args, key(i, 10)).choices
        chosen = subset(rng, old.choices)
        requests = [Regenerate(chosen)]
        if node.oracle(args, leaves(target))[0].keys() == cells_of(node, old).keys():
            requests.append(Update(target.filter(chosen)))
        for request in requests:
            new, weight, _, backward = old.edit(request, key(i, 11))
            back = new.edit(backward, key(i, 12))
            assert same_leaves(back.trace.choices, old.choices) and close(back.weight, -weight, old.score)
        # proposing from the prior: every move is accepted
        new, weight, _, _ = old.edit(Propose(node.gf(*args), node.gf(*args)), key(i, 13))
        before, after = cells_of(node, old), cells_of(node, new)
        if before.keys() == after.keys():
            assert close(weight, 0.0, old.score)


# in a batch, where each lane draws its own indices and flags


def lane_choices(choices, i):
    return choices.lane(i) if not choices.is_empty else choices


def test_batched_simulate_and_generate(model):
    rng = np.random.default_rng(5)
    call = model.gf(*model.variants[0])
    batch = call.vsimulate(LANES, key(0))
    assert batch.score.shape == (LANES,)
    for tr in batch:
        cells, retval = model.oracle(tr.args, leaves(tr.choices))
        assert close(tr.score, total(cells)) and agrees(tr.retval, retval)
        assert close(call.assess(tr.choices).score, tr.score)
    for i in range(LANES):
        assert same_leaves(batch.choices.lane(i), batch[i].choices)
    chosen = subset(rng, batch.choices)
    shared = batch[0].choices.filter(chosen)
    own = batch.choices.filter(chosen)
    for given in (shared, own):
        new, weights = call.vgenerate(given, LANES, key(1), strict=False)
        assert weights.shape == (LANES,)
        for i, tr in enumerate(new):
            source = batch[0 if given is shared else i]
            fixed = given_cells(model, source.args, source.choices, chosen)
            after = cells_of(model, tr)
            assert close(weights[i], total(after, fixed.keys()), abs(total(after))) and close(tr.score, total(after))
            assert same_values(after, fixed, after.keys() & fixed.keys())


def test_batched_update(model):
    """Shared and per-lane constraints, the same and new arguments: each lane as its own trace alone."""
    rng = np.random.default_rng(6)
    call, other_args = model.gf(*model.variants[0]), model.variants[1]
    batch = call.vsimulate(LANES, key(2))
    source = call.vsimulate(LANES, key(3))
    for args, shared in ((None, True), (None, False), (other_args, False)):
        chosen = subset(rng, source.choices)
        given = source[0].choices.filter(chosen) if shared else source.choices.filter(chosen)
        new, weights, _, discard = batch.update(given, args, key=key(4), strict=False)
        assert weights.shape == (LANES,)
        all_given = True
        for i in range(LANES):
            origin = source[0 if shared else i]
            fixed = given_cells(model, origin.args, origin.choices, chosen)
            before, after = cells_of(model, batch[i]), cells_of(model, new[i])
            lane = lane_choices(discard, i)
            fresh = check_update(before, after, weights[i], discarded_cells(model, batch[i], lane), fixed)
            all_given = all_given and not fresh
            assert close(new[i].score, total(after)) and close(new.score[i], total(after))
            if not fresh:
                alone = batch[i].update(origin.choices.filter(chosen), args, key=key(5), strict=False)
                assert close(alone.weight, weights[i], 20) and close(alone.trace.score, new.score[i], 20)
                assert same_leaves(alone.discard, lane) and same_leaves(alone.trace.choices, new[i].choices)
        if all_given:
            back = new.update(discard, batch.args, key=key(6), strict=False)
            for i in range(LANES):
                assert same_leaves(back.trace[i].choices, batch[i].choices) and close(back.weight[i], -weights[i], 20)


def test_batched_regenerate_and_project(model):
    rng = np.random.default_rng(SAMPLE)
    batch = model.gf(*model.variants[0]).vsimulate(LANES, key(7))
    assert not np.any(np.array(batch.regenerate(select.all(), key=key(8)).weight))
    for args in (None, model.variants[1]):
        chosen = subset(rng, batch.choices)
        new, weights, _ = batch.regenerate(chosen, args, key=key(9), strict=False)
        none, idle, _ = batch.regenerate(select.none(), args, key=key(9))
        for i in range(LANES):
            before, after = cells_of(model, batch[i]), cells_of(model, new[i])
            kept = (after.keys() & before.keys()) - within(before, chosen)
            assert close(weights[i], total(after, kept) - total(before, kept), abs(total(after)) + abs(total(before)))
            assert same_values(after, before, kept) and close(new.score[i], total(after))
            alone = batch[i].regenerate(select.none(), args, key=key(10))
            assert close(alone.weight, idle[i], 20) and same_leaves(alone.trace.choices, none[i].choices)
    for chosen in (subset(rng, batch.choices), select.all(), select.none()):
        for selection in (chosen, ~chosen):
            found = batch.project(selection)
            assert found.shape == (LANES,)
            for i in range(LANES):
                cells = cells_of(model, batch[i])
                assert close(found[i], total(cells, within(cells, selection)))
                assert close(found[i], batch[i].project(selection, strict=False))


def test_batched_edits(model):
    rng = np.random.default_rng(8)
    call = model.gf(*model.variants[0])
    batch, source = call.vsimulate(LANES, key(11)), call.vsimulate(LANES, key(12))
    chosen = subset(rng, batch.choices)
    for request in (Regenerate(chosen), Update(source.choices)):
        new, weights, _, backward = batch.edit(request, key(13))
        assert weights.shape == (LANES,)
        back = new.edit(backward, key(14))
        for i in range(LANES):
            assert same_leaves(back.trace[i].choices, batch[i].choices) and close(back.weight[i], -weights[i], 20)
    new, weights, _, backward = batch.edit(Propose(call, call), key(15))
    # Everything is proposed from the prior, so a move between the same addresses is always accepted.
    for i in range(LANES):
        if cells_of(model, batch[i]).keys() == cells_of(model, new[i]).keys():
            assert close(weights[i], 0.0, 20)
