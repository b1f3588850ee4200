"""Sequences that grow: what is appended is stacked, and means what it meant before."""

import math

import mlx.core as mx
import numpy as np
import pytest

from genmlx import dist, flip, gen, map_over, mh, normal, scan, trace, unfold
from genmlx.combinators.elements import Elements
from genmlx.pytree import split_arrays

runs = [0]


@gen
def walk(t, x, scale):
    runs[0] += 1
    x = trace("x", normal(x, scale))
    trace("y", normal(x, 0.5))
    return x


@gen
def uneven(t, x):
    if t % 3 == 0:
        trace("extra", flip(0.5))
    return trace("x", normal(x, 1.0))


@gen
def add(total, x):
    total = total + trace("step", normal(x, 1.0))
    return total, total * 2


def grown(model, args_of, observed, n, start=2):
    tr, _ = model.generate(args_of(start), {a: v for t in range(start) for a, v in observed(t).items()}, key=0)
    weights = []
    for t in range(start, n):
        tr, weight, _, discard = tr.update(observed(t), args_of(t + 1), key=t)
        assert len(discard) == 0
        weights.append(weight.item())
    return tr, weights


def test_a_particle_filter_costs_one_kernel_run_and_few_arrays_for_each_step():
    """Separate traces for each step would be carried through vmap at every step: 200 steps, 1,000 arrays."""
    model, sizes = unfold(walk), []
    batch, _ = model(1, 0.0, 1.0).vgenerate({(0, "y"): 0.0}, 20, key=0)
    runs[0] = 0
    for t in range(1, 200):
        batch, weight, _, _ = batch.update({(t, "y"): 0.1 * t}, args=(t + 1, 0.0, 1.0), key=t)
        batch = batch.take(mx.arange(20)[::-1] if t % 7 == 0 else mx.arange(20))
        sizes.append(len(split_arrays(batch.lanes)[0]))
        mx.eval(weight)
    assert runs[0] == 199
    assert max(sizes[100:]) < 300 and len(batch.lanes.elements.stacks) <= 8
    for i in (0, 7, 19):
        tr = batch[i]
        assert len(tr.retval) == 200 and tr[150, "y"].item() == pytest.approx(15.0)
        again = model.assess((200, 0.0, 1.0), tr.choices)
        assert tr.score.item() == pytest.approx(again.score.item(), abs=0.05)
        assert np.allclose(mx.stack(tr.retval), mx.stack(again.retval))
    assert batch[150, "x"].shape == (20,) and batch.retval[3].shape == (20,)


@pytest.mark.parametrize("kernel", [walk, uneven], ids=["stacked", "uneven"])
def test_growing_step_by_step_is_one_run_of_all(kernel):
    model, extra = unfold(kernel), (1.0,) if kernel is walk else ()
    tr, _ = grown(model, lambda n: (n, 0.0, *extra), lambda t: {(t, "x"): 0.3 * t}, 100)
    assert isinstance(tr.elements, Elements) and bool(tr.elements.stacks) == (kernel is walk)
    plain = model.assess(tr.args, tr.choices)
    assert tr.score.item() == pytest.approx(plain.score.item(), abs=0.02)
    assert np.allclose(mx.stack(tr.retval), mx.stack(plain.retval)) and len(tr.choices) == len(tr.choices.addresses())
    # Changes in the middle of a stack, at a seam, and in the tail; then shorter, then longer again.
    change = {(t, "x"): -1.0 for t in (0, 15, 16, 40, 99)}
    new, weight, _, discard = tr.update(change)
    again = model.generate(tr.args, tr.choices).trace.update(change)
    assert weight.item() == pytest.approx(again.weight.item(), abs=0.02) and discard == again.discard
    assert new.choices == again.trace.choices and np.allclose(mx.stack(new.retval), mx.stack(again.trace.retval))
    back = new.update(discard)
    assert back.trace.choices == tr.choices and back.weight.item() == pytest.approx(-weight.item(), abs=0.02)
    short, weight, _, discard = tr.update({}, (37, 0.0, *extra))
    assert len(short.retval) == 37 and sorted({a[0] for a in discard}) == list(range(37, 100))
    left = model.assess(short.args, short.choices).score.item()
    assert weight.item() == pytest.approx(left - tr.score.item(), abs=0.02)
    long, weight, _, discard = short.update(discard, tr.args)
    assert long.choices == tr.choices and len(discard) == 0
    assert long.score.item() == pytest.approx(tr.score.item(), abs=0.02)


def test_a_scan_that_grows():
    model = scan(add)
    for xs in ([float(i) for i in range(60)], mx.arange(60.0)):
        tr, _ = grown(model, lambda n, xs=xs: (0.5, xs[:n]), lambda t: {(t, "step"): 1.0}, 60)
        plain = model.assess((0.5, xs), tr.choices)
        assert tr.retval[0].item() == plain.retval[0].item() == 60.5
        assert np.allclose(mx.array(tr.retval[1]), mx.array(plain.retval[1]))


def test_values_that_differ_in_dtype_or_shape_are_not_stacked():
    """A stack that casts would change what an update sees."""

    @gen
    def kernel(t, x):
        return trace("x", normal(mx.zeros((1 + t % 2,)), 1.0))

    tr, _ = grown(unfold(kernel), lambda n: (n, 0.0), lambda t: {}, 70)
    assert not tr.elements.stacks and [tr[t, "x"].shape for t in (68, 69)] == [(1,), (2,)]


def test_a_batch_of_chains_on_a_long_sequence():
    """The accepted trace is picked lane by lane, so an edited step must go back into its stack: mu | y is normal."""

    @gen
    def element(mu, x):
        return trace("y", normal(mu + x, 1.0))

    @gen
    def model(n):
        mu = trace("mu", normal(0, 1))
        trace("each", map_over(element)(mx.broadcast_to(mu, (n,)), mx.zeros((n,))))
        trace("chain", unfold(step)(n, 0.0, mu))

    @gen
    def step(t, x, mu):
        return trace("y", normal(x + mu, 1.0))

    @gen
    def guess(tr):
        trace("mu", normal(tr["mu"], 0.2))

    observed = {("each", t, "y"): 0.5 for t in range(40)} | {("chain", t, "y"): 0.5 * (t + 1) for t in range(40)}
    post = mh(model(40), observed, proposal=guess, draws=1500, warmup=100, chains=4, key=1)
    mean, sd = 40 / 81, 81**-0.5
    assert abs(post.mean("mu").item() - mean) < 4 * post.mcse("mu") and abs(post.std("mu").item() / sd - 1) < 0.1
    latent = mh(model(40), {("each", t, "y"): 0.5 for t in range(40)}, draws=5, chains=3, key=1)
    assert latent["chain", 39, "y"].shape == (3, 5)


def test_a_step_that_is_impossible_and_becomes_possible_again():
    """A score of -inf cannot be corrected by differences: -inf + inf is NaN."""
    model = map_over(dist.uniform)
    for n in (3, 40):
        args = ([0.0] * n, [1.0] * n)
        tr, _ = model.generate(args, {(t,): 0.5 for t in range(n)})
        out = tr.update({(1,): 2.0, (2,): 3.0})
        assert out.weight.item() == out.trace.score.item() == -math.inf
        half = out.trace.update({(1,): 0.25})
        assert half.trace.score.item() == -math.inf
        back = half.trace.update({(2,): 0.25})
        assert back.trace.score.item() == 0.0 and model.assess(args, back.trace.choices).score.item() == 0.0
        shorter = out.trace.update({}, ([0.0], [1.0])).trace
        assert shorter.score.item() == 0.0
