"""Kernels: what they leave invariant, alone, in a batch and composed; their reversals; their checks."""

import itertools
import math
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

import genmlx
from genmlx import flip, gen, normal, select, trace
from genmlx.errors import BatchError, GenError, ParameterError, UnknownAddress, UsageError
from genmlx.inference import (
    Kernel,
    chain,
    cycle_kernels,
    mh,
    mh_kernel,
    mix_kernels,
    repeat_kernel,
    reversal,
    run_kernel,
    seed_kernel,
    with_reversal,
)
from genmlx.inference.kernels import as_kernel


@gen
def sum_of_two():
    a, b = trace("a", normal(0, 1)), trace("b", normal(0, 1))
    trace("y", normal(a + 2 * b, 1))


OBSERVED = {"y": 3.0}
COVARIANCE = np.linalg.inv(np.eye(2) + np.outer([1, 2], [1, 2]))
MEAN = COVARIANCE @ [1.0, 2.0] * 3.0


@gen
def step_a(tr):
    trace("a", normal(tr["a"], 1.0))


@gen
def step_b(tr):
    trace("b", normal(tr["b"], 0.6))


MOVE_A, MOVE_B = mh_kernel(proposal=step_a), mh_kernel(proposal=step_b)


@gen
def coins():
    a = trace("a", flip(0.3))
    b = trace("b", flip(0.2 + 0.5 * a))
    trace("y", flip(0.1 + 0.3 * a + 0.5 * b))


STATES = list(itertools.product((0, 1), repeat=2))


def exact(y=1):
    joint = np.exp([coins().assess({"a": a, "b": b, "y": y}).score.item() for a, b in STATES])
    return joint / joint.sum()


def assert_agrees(post, address, mean, sd):
    """|mean - truth| < 4 MCSE at an effective size of 400 and more, and the sd within 10%."""
    assert post.ess(address) >= 400, post.ess(address)
    assert abs(post.mean(address).item() - mean) < 4 * post.mcse(address)
    assert abs(post.std(address).item() / sd - 1) < 0.1


def plain(tr, key):
    """A kernel that is a function: Metropolis-Hastings written out with the operations of a trace."""
    first, second = genmlx.random.split(key)
    new, weight, _ = tr.regenerate(select("a", "b"), key=first)
    return genmlx.vectorized.where(mx.log(genmlx.random.uniform_open(second)) < weight, new, tr)


KERNELS = {
    "mh": mh_kernel(select("a", "b")),
    "chain": chain(MOVE_A, MOVE_B),
    "repeat": repeat_kernel(3, chain(MOVE_A, MOVE_B)),
    "cycle": cycle_kernels(5, [MOVE_A, MOVE_B]),
    "mix": mix_kernels([(MOVE_A, 1.0), (MOVE_B, 2.0), (plain, 0.5)]),
    "nested": mix_kernels([(chain(MOVE_A, plain), 1), (repeat_kernel(2, MOVE_B), 1)]),
    "function": plain,
    "reversed": reversal(chain(MOVE_A, mix_kernels([(MOVE_A, 1), (MOVE_B, 1)]), MOVE_B)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_posterior_is_stationary(name):
    """Catches a part that is left out, a mixture of the wrong trace, and lanes that share a choice."""
    start, _ = sum_of_two().vgenerate(OBSERVED, 60, key=mx.random.key(0))
    post = run_kernel(KERNELS[name], start, draws=500, warmup=100, observations=OBSERVED, key=1)
    assert post.addresses() == [("a",), ("b",)] and post["a"].shape == (60, 500)
    for i, address in enumerate("ab"):
        assert_agrees(post, address, MEAN[i], math.sqrt(COVARIANCE[i, i]))
    assert post.execution == "replayed"


@pytest.mark.parametrize("name", ["chain", "mix"])
def test_a_discrete_posterior_by_enumeration(name):
    """Chi-squared of thinned draws. A mixture that took the same kernel in every lane would fail on two of four."""
    a, b = mh_kernel("a"), mh_kernel("b")
    kernel = {"chain": chain(a, b), "mix": mix_kernels([(a, 3), (b, 1), (chain(a, b), 1)])}[name]
    start, _ = coins().vgenerate({"y": 1}, 80, key=mx.random.key(3))
    post = run_kernel(kernel, start, draws=50, warmup=30, thin=20, observations={"y": 1}, key=4)
    found = Counter(zip(np.array(post["a"]).ravel().tolist(), np.array(post["b"]).ravel().tolist(), strict=True))
    counts = np.array([found[ab] for ab in STATES])
    assert stats.chisquare(counts, exact() * counts.sum()).pvalue > 1e-4


@pytest.mark.parametrize("name", ["chain", "mix", "function"])
def test_one_trace_is_one_chain(name):
    start, _ = sum_of_two().generate(OBSERVED, key=mx.random.key(0))
    post = run_kernel(KERNELS[name], start, draws=20, observations=OBSERVED, key=1)
    assert post["a"].shape == (1, 20) and len(set(post["a"][0].tolist())) > 3
    assert post.trace(0, 7).score.item() == pytest.approx(post.log_joint[0, 7].item(), abs=1e-4)
    assert run_kernel(MOVE_A, start, draws=5, key=1).addresses() == [("a",), ("b",), ("y",)], "nothing is observed"


def test_run_kernel_is_what_mh_does():
    """Two notions of a step would differ in the draws from one start and one key."""
    start, _ = sum_of_two().vgenerate(OBSERVED, 4, key=mx.random.key(9))
    runs = [run_kernel(k, start, draws=30, key=5) for k in (mh_kernel("a"), as_kernel(mh_kernel("a")))]
    assert mx.array_equal(runs[0]["a"], runs[1]["a"]).item()
    post = mh(sum_of_two(), OBSERVED, selection="a", draws=30, chains=4, key=5)
    first = post.trace(0, 0)
    assert isinstance(mh_kernel("a")(first, mx.random.key(1)), genmlx.Trace)


def test_a_batch_is_its_lanes():
    """The same keys for a composite and for its parts, applied by hand: bit for bit."""
    start, _ = sum_of_two().vgenerate(OBSERVED, 7, key=mx.random.key(0))
    key = mx.random.key(5)
    first, second = genmlx.random.split(key)
    by_hand = MOVE_B(MOVE_A(start, first), second)
    assert chain(MOVE_A, MOVE_B)(start, key).choices == by_hand.choices
    assert mx.array_equal(chain(MOVE_A, MOVE_B)(start, key).score, by_hand.score).item()
    single = start[2]
    assert chain(MOVE_A, MOVE_B)(single, key).choices == MOVE_B(MOVE_A(single, first), second).choices
    keys = genmlx.random.split(key, 3)
    cycled = MOVE_A(MOVE_B(MOVE_A(start, keys[0]), keys[1]), keys[2])
    assert cycle_kernels(3, [MOVE_A, MOVE_B])(start, key).choices == cycled.choices
    repeated = MOVE_A(MOVE_A(MOVE_A(start, keys[0]), keys[1]), keys[2])
    assert repeat_kernel(3, MOVE_A)(start, key).choices == repeated.choices


def test_each_lane_of_a_mixture_takes_its_own_kernel():
    """Both kernels move surely, and each its own choice: shares are binomial, and no lane moves twice."""
    redraw_a, redraw_b = (lambda tr, key, a=a: tr.regenerate(select(a), key=key).trace for a in "ab")
    start, _ = sum_of_two().vgenerate(OBSERVED, 4000, key=mx.random.key(0))
    moved = mix_kernels([(redraw_a, 1), (redraw_b, 3)])(start, mx.random.key(1))
    a, b = (np.array(moved[x] != start[x]) for x in "ab")
    assert np.array_equal(a, ~b)
    assert abs(a.mean() - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / 4000)
    assert mx.array_equal(moved["y"], start["y"]).item()


def test_a_single_trace_runs_only_the_kernel_that_was_drawn():
    calls = []
    counted = [lambda tr, key, i=i: calls.append(i) or tr for i in range(3)]
    start, _ = sum_of_two().generate(OBSERVED, key=mx.random.key(0))
    kernel = mix_kernels([(counted[0], 1), (counted[1], 0), (counted[2], 3)])
    for seed in range(400):
        kernel(start, mx.random.key(seed))
    share = calls.count(0) / 400
    assert len(calls) == 400 and 1 not in calls and abs(share - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / 400)


def test_infos():
    """Acceptance is averaged over the parts that have one; NaN where the kernel that a lane took has none."""
    start, _ = sum_of_two().vgenerate(OBSERVED, 500, key=mx.random.key(0))
    ones = Kernel(lambda tr, key: (tr, {"accept": mx.array(True), "extra": mx.array(2.0)}))
    zeros = Kernel(lambda tr, key: (tr, {"accept": mx.array(False)}))
    post = run_kernel(chain(ones, zeros, plain, ones), start, draws=4, key=1)
    assert mx.allclose(post.stats["accept"], mx.array(2 / 3)).item() and mx.all(post.stats["extra"] == 2).item()
    mixed = run_kernel(mix_kernels([(ones, 1), (zeros, 1)]), start, draws=4, key=1)
    accept, extra = np.array(mixed.stats["accept"]), np.array(mixed.stats["extra"])
    assert np.array_equal(accept == 1, extra == 2) and np.array_equal(accept == 0, np.isnan(extra))
    assert 0.4 < accept.mean() < 0.6
    thinned = run_kernel(mix_kernels([(ones, 1), (zeros, 1)]), start, draws=4, thin=3, key=1)
    some = np.array(thinned.stats["extra"])
    assert set(some[~np.isnan(some)]) == {2.0} and np.isnan(some).mean() == pytest.approx(1 / 8, abs=0.05)
    single = run_kernel(mix_kernels([(ones, 1), (zeros, 1)]), start[0], draws=40, check=True, key=1)
    assert np.array_equal(np.isnan(np.array(single.stats["extra"])), np.array(single.stats["accept"]) == 0)


def test_a_seeded_kernel_takes_the_same_step():
    start, _ = sum_of_two().vgenerate(OBSERVED, 5, key=mx.random.key(0))
    seeded = seed_kernel(MOVE_A, 7)
    assert seeded(start, mx.random.key(1)).choices == seeded(start, mx.random.key(2)).choices
    assert seeded(start, mx.random.key(1)).choices == MOVE_A(start, mx.random.key(7)).choices
    assert seeded(start[0], 3).choices == MOVE_A(start[0], mx.random.key(7)).choices
    post = run_kernel(seeded, start, draws=6, key=1)
    again = run_kernel(seeded, start, draws=6, key=2)
    assert mx.array_equal(post["a"], again["a"]).item()
    with pytest.raises(UsageError, match="no key"):
        seed_kernel(MOVE_A, None)


def test_a_kernel_on_a_body_that_branches():
    """One chain goes on without a batch; a mixture then chooses on the host, and structures may differ."""

    @gen
    def branching():
        if trace("k", flip(0.4)).item():
            x = trace("x", normal(trace("b", normal(1, 1)), 0.5))
        else:
            x = trace("x", normal(0, 2.0))
        trace("y", normal(x, 1.0))

    one, zero = 0.4 * stats.norm.pdf(2, 1, 1.5), 0.6 * stats.norm.pdf(2, 0, math.sqrt(5))
    p = one / (one + zero)
    start, _ = branching().generate({"y": 2.0}, key=mx.random.key(0))
    kernel = mix_kernels([(mh_kernel(select("k", "x", "b"), strict=False), 2), (mh_kernel("x"), 1)])
    post = run_kernel(kernel, start, draws=3000, observations={"y": 2.0}, key=2)
    assert_agrees(post, "k", p, math.sqrt(p * (1 - p)))
    assert "branches" in post.execution and mx.array_equal(post.has("b"), post["k"] == 1).item()


# reversals


def test_reversal_algebra():
    assert reversal(MOVE_A) is MOVE_A
    forth, back = as_kernel(lambda tr, key: tr), as_kernel(lambda tr, key: tr)
    declared = with_reversal(forth, back)
    assert reversal(declared).step is back.step and reversal(reversal(declared)) is declared
    other = with_reversal(plain)
    assert reversal(other) is other

    def steps(kernel):
        return [part.step for part in kernel.parts]

    assert steps(reversal(chain(MOVE_A, declared, MOVE_B))) == [MOVE_B.step, back.step, MOVE_A.step]
    assert steps(reversal(repeat_kernel(2, declared))) == [back.step] * 2
    cycled = cycle_kernels(3, [MOVE_A, declared])
    assert steps(cycled) == [MOVE_A.step, forth.step, MOVE_A.step]
    assert steps(reversal(cycle_kernels(4, [MOVE_A, declared]))) == [back.step, MOVE_A.step] * 2
    mixed = reversal(mix_kernels([(declared, 1), (MOVE_A, 2)]))
    assert steps(mixed) == [back.step, MOVE_A.step] and mixed.weights == [1.0, 2.0]
    assert reversal(seed_kernel(declared, 3)).kernel.step is back.step
    nested = chain(MOVE_A, chain(MOVE_B, declared))
    twice = reversal(reversal(nested))
    assert [p.step for p in twice.parts[1].parts] == [MOVE_B.step, forth.step]


def test_a_kernel_without_a_reversal():
    for kernel, name in ((plain, "plain"), (chain(MOVE_A, plain), "plain"), (Kernel(MOVE_A.step, name="mine"), "mine")):
        with pytest.raises(UsageError, match=f"the kernel {name} does not say what its reversal is") as error:
            reversal(kernel)
        assert "with_reversal" in str(error.value)


def test_detailed_balance_with_the_reversal():
    """pi(x) k(x -> y) = pi(y) reversal(k)(y -> x) for all 16 pairs of states, by simulation from the exact posterior.

    The chain of the two coins is not reversible: with itself as its reversal this fails.
    """
    kernel, n = chain(mh_kernel("a"), mh_kernel("b")), 60_000
    rng = np.random.default_rng(0)
    which = rng.choice(4, size=n, p=exact())
    a, b = (mx.array(np.array(STATES)[which, i], dtype=mx.int32) for i in (0, 1))
    constraints = genmlx.choicemap({"a": a, "b": b, "y": mx.ones(n, dtype=mx.int32)}).batched(n)
    start, _ = coins().vgenerate(constraints, n)

    def flows(kernel, seed):
        new = kernel(start, mx.random.key(seed))
        codes = np.array(2 * start["a"] + start["b"]) * 4 + np.array(2 * new["a"] + new["b"])
        return np.bincount(codes, minlength=16).reshape(4, 4)

    forward, backward = flows(kernel, 1), flows(reversal(kernel), 2).T
    pooled = (forward + backward) / 2
    z = (forward - backward) / np.sqrt(2 * np.maximum(pooled, 1))
    assert np.abs(z).max() < 4.5
    wrong = flows(kernel, 3).T
    assert np.abs((forward - wrong) / np.sqrt(2 * np.maximum(pooled, 1))).max() > 4.5, "the test has no power"


# checks


def moves_the_data(tr, key):
    return tr.update({"y": tr["y"] + 1.0}).trace


@pytest.mark.parametrize("n", [1, 3])
def test_check_finds_a_kernel_that_moves_an_observation(n):
    start = sum_of_two().vgenerate(OBSERVED, n, key=mx.random.key(0)).trace
    start = start[0] if n == 1 else start
    kernel = chain(MOVE_A, moves_the_data)
    kernel(start, mx.random.key(1))
    with pytest.raises(GenError, match="the kernel moves_the_data moved an observed choice at 'y' in sum_of_two"):
        kernel(start, mx.random.key(1), check=True, observations=OBSERVED)
    with pytest.raises(GenError, match="moves_the_data moved an observed choice"):
        run_kernel(kernel, start, draws=3, observations=OBSERVED, check=True, key=1)
    kernel(start, mx.random.key(1), check=True)  # nothing is said to be observed, and the score is right
    chain(MOVE_A, MOVE_B)(start, mx.random.key(1), check=True, observations=OBSERVED)


@pytest.mark.parametrize("n", [1, 3])
def test_check_finds_a_wrong_score(n):
    def stale_score(tr, key):
        new = tr.update({"a": tr["a"] + 1.0}).trace
        return genmlx.vectorized._replaced(new, score=tr.score)

    start = sum_of_two().vgenerate(OBSERVED, n, key=mx.random.key(0)).trace
    start = start[0] if n == 1 else start
    with pytest.raises(GenError, match="after the kernel stale_score the score of the trace is") as error:
        repeat_kernel(2, stale_score)(start, mx.random.key(1), check=True)
    fresh = stale_score(start if n == 1 else start[0], None)
    expected = sum_of_two().assess(fresh.choices).score.item()
    assert n > 1 or f"expected: {expected:.6g}, the log density" in str(error.value)


def test_checked_runs_draw_the_same():
    """A check looks; it does not move. Single traces, and a removed observation, too."""
    start, _ = sum_of_two().vgenerate(OBSERVED, 3, key=mx.random.key(0))
    kernel = chain(MOVE_A, mix_kernels([(MOVE_A, 1), (MOVE_B, 1)]))
    runs = [run_kernel(kernel, start, draws=10, observations=OBSERVED, check=c, key=1) for c in (False, True)]
    assert mx.allclose(runs[0]["b"], runs[1]["b"], atol=1e-5).item() and "checked" in runs[1].execution

    @gen
    def optional():
        if trace("k", flip(0.5)).item():
            trace("y", normal(0, 1))

    start, _ = optional().generate({"k": 1, "y": 1.0})
    with pytest.raises(GenError, match="the kernel mh_kernel removed an observed choice at 'y'"):
        run_kernel(mh_kernel("k"), start, draws=60, observations={"y": 1.0}, check=True, key=1)


# errors


def test_what_is_no_kernel():
    start, _ = sum_of_two().generate(OBSERVED, key=mx.random.key(0))
    for wrong in (3, "a", sum_of_two, sum_of_two()):
        with pytest.raises(UsageError, match="is not a kernel"):
            chain(MOVE_A, wrong)
    with pytest.raises(UsageError, match="the kernel <lambda> returned 3"):
        chain(lambda tr, key: 3)(start, 1)
    with pytest.raises(UsageError, match="chain was given no kernels"):
        chain()
    with pytest.raises(UsageError, match="pairs"):
        mix_kernels([MOVE_A, MOVE_B])
    for weights in ((-1, 2), (0, 0), (math.nan, 1), (math.inf, 1)):
        with pytest.raises(ParameterError, match="the weights of mix_kernels"):
            mix_kernels(list(zip((MOVE_A, MOVE_B), weights, strict=True)))
    for n in (0, -1, 1.5):
        with pytest.raises(ParameterError, match="n must be a whole number"):
            repeat_kernel(n, MOVE_A)
    with pytest.raises(UsageError, match="one of the two"):
        mh_kernel()
    with pytest.raises(UsageError, match="to start from"):
        run_kernel(MOVE_A, sum_of_two())
    with pytest.raises(UsageError, match="no such choice to observe at 'z'"):
        run_kernel(MOVE_A, start, observations={"z": 1.0})
    with pytest.raises(UnknownAddress, match="'c'"):
        run_kernel(mh_kernel("c"), start, draws=3)
    own = Kernel(MOVE_A.step, init=lambda tr: {"x": tr["a"]}, name="adaptive")
    with pytest.raises(UsageError, match="adaptive has a state of its own"):
        chain(own, MOVE_A)
    with pytest.raises(UsageError, match="adaptive has a state of its own"):
        own(start, 1)


def test_a_mixture_in_a_batch_needs_the_same_choices():
    @gen
    def wide(n):
        for i in range(n):
            trace(("x", i), normal(0, 1))

    grow = Kernel(lambda tr, key: (wide(2).generate({}, key).trace, {}), name="grow")
    stay = Kernel(lambda tr, key: (wide(1).generate({}, key).trace, {}), name="stay")
    start = wide(1).vsimulate(3, key=1)
    with pytest.raises(BatchError, match="lead to different choices"):
        mix_kernels([(grow, 1), (stay, 1)])(start, mx.random.key(0))
    assert len(mix_kernels([(grow, 1), (stay, 1)])(start[0], mx.random.key(0)).choices) in (1, 2)
