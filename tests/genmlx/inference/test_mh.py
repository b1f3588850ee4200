"""Metropolis-Hastings: its stationary distribution against exact posteriors, and what it must never do."""

import itertools
import math
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

import genmlx
from genmlx import beta, choicemap, flip, gen, mh, normal, select, trace
from genmlx.edit import Propose
from genmlx.errors import BatchError, ImpossibleObservation, ParameterError, UnknownAddress, UsageError
from genmlx.inference import loop as loop_module
from genmlx.inference.chains import Kernel, run_chains
from genmlx.inference.mh import regenerate_step
from genmlx.inference.replay import BatchedStep
from genmlx.masked import Masked

MEAN, SD = 1.2, math.sqrt(0.2)


@gen
def conjugate():
    trace("y", normal(trace("mu", normal(0, 1)), 0.5))


@gen
def walk(tr):
    trace("mu", normal(tr["mu"], 1.0))


@gen
def drift(tr):
    """Its reverse has another density: without it the chain drifts upwards."""
    trace("mu", normal(0.5 * tr["mu"] + 1.0, 0.8))


@gen
def independent():
    trace("mu", normal(1.0, 0.6))


def assert_agrees(post, address, mean, sd):
    """|mean - truth| < 4 MCSE at an effective size of 400 and more, and the sd within 10%."""
    ess, mcse = np.asarray(post.ess(address)), np.asarray(post.mcse(address))
    assert np.all(ess >= 400), f"effective size {ess}"
    assert np.all(np.abs(np.array(post.mean(address)) - mean) < 4 * mcse)
    assert np.all(np.abs(np.array(post.std(address)) / sd - 1) < 0.1)


@pytest.mark.parametrize(
    "how",
    [{}, {"selection": "mu"}, {"proposal": walk}, {"proposal": drift}, {"proposal": independent()}],
    ids=["prior", "selection", "symmetric", "asymmetric", "independent"],
)
@pytest.mark.parametrize("chains, draws", [(1, 4000), (40, 400)])
def test_conjugate_normal(how, chains, draws):
    """Catches a weight without its forward or its backward density, and a ratio taken the wrong way."""
    post = mh(conjugate(), {"y": 1.5}, draws=draws, warmup=50, chains=chains, key=1, **how)
    assert post["mu"].shape == (chains, draws)
    assert_agrees(post, "mu", MEAN, SD)
    assert post.rhat("mu") < 1.05


def test_the_log_ratio_of_a_shifted_proposal():
    """Case 39: target N(0, 1), proposal N(x + 0.5, 1), from 0 to 1: log alpha is -1.5."""

    @gen
    def target():
        trace("x", normal(0, 1))

    @gen
    def shifted(tr):
        trace("x", normal(tr["x"] + 0.5, 1))

    tr, _ = target().generate({"x": 0.0})
    edited = Propose(shifted, shifted, choicemap({"x": 1.0})).apply(tr, mx.random.key(0))
    assert edited.weight.item() == pytest.approx(-1.5, abs=1e-6)


def test_two_parameters_moved_one_at_a_time():
    """A blocked proposal leaves the other parameter alone, and a mixture of both moves has the exact posterior."""

    @gen
    def model():
        a, b = trace("a", normal(0, 1)), trace("b", normal(0, 1))
        trace("y", normal(a + 2 * b, 1))

    precision = np.eye(2) + np.outer([1, 2], [1, 2])
    covariance = np.linalg.inv(precision)
    mean = covariance @ [1.0, 2.0] * 3.0

    @gen
    def both(tr):
        trace("a", normal(tr["a"], 0.9))
        trace("b", normal(tr["b"] - 0.3, 0.5))

    post = mh(model(), {"y": 3.0}, proposal=both, draws=500, warmup=200, chains=60, key=2)
    for i, name in enumerate("ab"):
        assert_agrees(post, name, mean[i], math.sqrt(covariance[i, i]))
    blocked = mh(model(), {"y": 3.0}, selection="a", draws=50, chains=3, key=3)
    assert len(set(blocked["b"][1].tolist())) == 1 and len(set(blocked["a"][1].tolist())) > 5


def test_beta_bernoulli():
    @gen
    def model():
        p = trace("p", beta(1, 1))
        for i in range(20):
            trace(("y", i), flip(p))

    observations = {("y", i): int(i < 14) for i in range(20)}
    assert_agrees(mh(model(), observations, draws=300, warmup=20, chains=40, key=4), "p", 15 / 22, 0.0971)


@gen
def coins():
    a = trace("a", flip(0.3))
    b = trace("b", flip(0.2 + 0.5 * a))
    trace("y", flip(0.1 + 0.3 * a + 0.5 * b))


def test_a_discrete_posterior_by_enumeration():
    """Chi-squared on draws thinned until they are nearly independent."""
    joint = {
        (a, b): coins().assess({"a": a, "b": b, "y": 1}).score.item() for a, b in itertools.product((0, 1), repeat=2)
    }
    exact = np.exp(list(joint.values()))
    exact /= exact.sum()
    post = mh(coins(), {"y": 1}, draws=50, thin=10, warmup=20, chains=80, key=5)
    found = Counter(zip(_flat(post["a"]), _flat(post["b"]), strict=True))
    counts = np.array([found[ab] for ab in joint])
    assert stats.chisquare(counts, exact * counts.sum()).pvalue > 1e-4
    assert post["a"].dtype == mx.int32


@gen
def branching():
    """k has the exact posterior below; b exists only in one branch, and x has another scale in each."""
    k = trace("k", flip(0.4))
    if k.item():
        b = trace("b", normal(1, 1))
        x = trace("x", normal(b, 0.5))
    else:
        x = trace("x", normal(0, 2.0))
    trace("y", normal(x, 1.0))


def _branching_posterior() -> tuple[float, float, float]:
    """P(k = 1 | y = 2), and mean and sd of b given k = 1 and y: everything is normal."""
    one, zero = 0.4 * stats.norm.pdf(2, 1, math.sqrt(1 + 0.25 + 1)), 0.6 * stats.norm.pdf(2, 0, math.sqrt(4 + 1))
    gain = 1 / (1 + 0.25 + 1)
    return one / (one + zero), 1 + gain * (2 - 1), math.sqrt(1 - gain)


def test_a_model_that_branches():
    """Moves between structures are accepted by the weight of what both have, as in reversible jump."""
    p, mean, sd = _branching_posterior()
    post = mh(branching(), {"y": 2.0}, draws=4000, warmup=20, key=6)
    assert_agrees(post, "k", p, math.sqrt(p * (1 - p)))
    assert_agrees(post, "b", mean, sd)
    assert mx.array_equal(post.has("b"), post["k"] == 1).item()
    assert np.isnan(np.array(post["b"]))[np.array(post["k"]) == 0].all()
    assert "branches" in post.execution


def test_branches_that_share_their_addresses():
    """A rejected move must not leave its parameters in the trace: they would be taken for those of the score."""

    @gen
    def model():
        k = trace("k", flip(0.5))
        trace("y", normal(0, 3.0 if k.item() else 0.5))

    one, zero = stats.norm.pdf(1.3, 0, 3.0), stats.norm.pdf(1.3, 0, 0.5)
    p = one / (one + zero)
    post = mh(model(), {"y": 1.3}, draws=4000, key=7)
    assert_agrees(post, "k", p, math.sqrt(p * (1 - p)))
    for draw in range(0, 4000, 400):
        assert post.trace(0, draw).score.item() == pytest.approx(post.log_joint[0, draw].item(), abs=1e-4)


def test_branching_needs_one_chain_and_says_where():
    with pytest.raises(BatchError, match="test_mh.py"):
        mh(branching(), {"y": 2.0}, chains=2, draws=5)


def test_a_proposal_that_branches():
    @gen
    def up_or_down(tr):
        step = 0.5 if tr["mu"].item() < 10 else -0.5
        trace("mu", normal(tr["mu"] + step, 1.0))

    assert_agrees(mh(conjugate(), {"y": 1.5}, proposal=up_or_down, draws=3500, key=8), "mu", MEAN, SD)
    with pytest.raises(BatchError):
        mh(conjugate(), {"y": 1.5}, proposal=up_or_down, chains=2, draws=5)


# what it must never do


def test_an_observation_never_moves():
    post = mh(conjugate(), {"y": 1.5}, draws=20, chains=2, key=1)
    assert post.addresses() == [("mu",)]
    assert all(post.trace(c, d)["y"].item() == 1.5 for c in range(2) for d in range(20))

    @gen
    def moves_data(tr):
        trace("mu", normal(tr["mu"], 1))
        trace("y", normal(tr["y"], 1))

    with pytest.raises(UsageError, match="the proposal moves an observed choice at 'y'"):
        mh(conjugate(), {"y": 1.5}, proposal=moves_data, draws=5)


def test_an_observation_that_a_branch_does_not_visit():
    """A chain that leaves the observation behind would forget it, and go on as if it had no density."""

    @gen
    def model():
        if trace("k", flip(0.9)).item():
            trace("y", normal(0, 1))

    with pytest.raises(genmlx.GenError, match="'y'"):
        mh(model(), {"y": 1.0}, draws=200, key=0)


def test_the_prior_of_everything_is_always_accepted():
    """Case 39: without an observation the ratio of a regeneration is 1."""
    post = mh(conjugate(), draws=300, chains=3, key=9)
    assert mx.all(post.stats["accept"]).item()
    assert len(set(post["mu"][0].tolist())) == 300


# draws, warmup, thin, keys, blocks


def test_thin_keeps_every_kth_step():
    """The same steps: thinned draws are draws of the whole walk."""
    kwargs = {"proposal": walk, "warmup": 3, "chains": 2, "key": 10}
    whole, thinned = (mh(conjugate(), {"y": 1.5}, draws=d, thin=t, **kwargs) for d, t in ((60, 1), (20, 3)))
    assert mx.array_equal(thinned["mu"], whole["mu"][:, 2::3]).item()
    assert mx.array_equal(thinned.log_joint, whole.log_joint[:, 2::3]).item()
    share = whole.stats["accept"].astype(mx.float32).reshape(2, 20, 3).mean(axis=2)
    assert mx.allclose(thinned.stats["accept"], share).item()


def test_warmup_is_thrown_away():
    """A walk that starts at 100 prior sds from the posterior is there after the warm-up."""

    @gen
    def model():
        trace("y", normal(trace("mu", normal(0, 1)), 0.01))

    cold = mh(model(), {"y": 3.0}, proposal=_small_walk, draws=5, chains=4, key=11)
    warm = mh(model(), {"y": 3.0}, proposal=_small_walk, draws=5, warmup=1500, chains=4, key=11)
    assert warm["mu"].shape == (4, 5)
    assert mx.max(mx.abs(cold["mu"] - 3)).item() > 0.2 > mx.max(mx.abs(warm["mu"] - 3)).item()


@gen
def _small_walk(tr):
    trace("mu", normal(tr["mu"], 0.03))


def test_keys():
    runs = [mh(conjugate(), {"y": 1.5}, draws=30, warmup=5, chains=3, key=k)["mu"] for k in (1, 1, 2)]
    assert mx.array_equal(runs[0], runs[1]).item()
    assert not set(_flat(runs[0])) & set(_flat(runs[2]))


@pytest.mark.parametrize("call, observations", [(conjugate(), {"y": 1.5}), (branching(), {"y": 2.0})])
def test_the_result_does_not_depend_on_the_blocks(monkeypatch, call, observations):
    """Keys belong to steps: a slow machine draws what a fast one draws."""
    results = []
    for target in (0.0, 1e9):  # every block one step; all steps one block
        monkeypatch.setattr(loop_module, "_TARGET", target)
        monkeypatch.setattr(loop_module, "_SLOWEST", target)
        results.append(mh(call, observations, draws=40, warmup=7, thin=2, key=3))
    small, large = results
    for address in small.addresses():
        assert mx.array_equal(small[address], large[address], equal_nan=True).item()
    assert mx.array_equal(small.log_joint, large.log_joint).item()
    assert mx.array_equal(small.stats["accept"], large.stats["accept"]).item()


def test_chains_are_independent():
    """Lanes that shared noise would be equal or correlated: 64 chains of a prior walk."""
    draws = np.array(mh(conjugate(), draws=500, chains=64, key=12)["mu"])
    correlation = np.corrcoef(draws)
    off = correlation[~np.eye(64, dtype=bool)]
    assert np.abs(off).max() < 5 / math.sqrt(500)
    successive = np.corrcoef(draws[:, 1:].ravel(), draws[:, :-1].ravel())[0, 1]
    assert abs(successive) < 5 / math.sqrt(draws.size)


# replay


@gen
def several():
    a = trace("a", normal(0, mx.array([1.0, 2.0])))
    k = trace("k", flip(0.4))
    trace("y", normal(mx.sum(a) + k, 0.5))
    return {"twice": 2 * a}


@pytest.mark.parametrize("chains", [1, 5])
@pytest.mark.parametrize(
    "call, observations, how",
    [(conjugate(), {"y": 1.5}, {}), (conjugate(), {"y": 1.5}, {"proposal": drift}), (several(), {"y": 1.0}, {})],
)
def test_a_replay_is_the_handler_run_bit_for_bit(monkeypatch, call, observations, how, chains):
    """The law that pins the recorded step to the ground truth."""
    replayed = mh(call, observations, draws=50, warmup=10, thin=2, chains=chains, key=13, **how)
    monkeypatch.setattr(BatchedStep, "record", lambda self, lanes: self)
    handled = mh(call, observations, draws=50, warmup=10, thin=2, chains=chains, key=13, **how)
    assert replayed.execution == "replayed" and handled.execution == "handlers"
    for address in handled.addresses():
        assert mx.array_equal(replayed[address], handled[address]).item()
        assert replayed[address].dtype == handled[address].dtype
    assert mx.array_equal(replayed.log_joint, handled.log_joint).item()
    assert mx.array_equal(replayed.stats["accept"], handled.stats["accept"]).item()


FAMILIES = {
    "beta": beta(2, 3),
    "binomial": genmlx.binomial(10, 0.3),
    "categorical": genmlx.categorical(mx.array([0.0, 1.0, 2.0])),
    "dirichlet": genmlx.dirichlet(mx.array([1.0, 2.0, 3.0])),
    "gamma": genmlx.gamma(0.5, 2),
    "multivariate_normal": genmlx.multivariate_normal(mx.zeros(2), mx.array([[2.0, 0.5], [0.5, 1.0]])),
    "poisson": genmlx.poisson(4.0),
    "student_t": genmlx.student_t(4, 0, 1),
    "truncated_normal": genmlx.truncated_normal(0, 1, -1, 2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_sampler_replays(monkeypatch, family):
    """Samplers by rejection, by inversion and with hand-written derivatives: all can be recorded."""

    @gen
    def model():
        trace("y", normal(mx.sum(trace("x", FAMILIES[family])), 2.0))

    replayed = mh(model(), {"y": 1.0}, draws=30, chains=3, key=1)
    monkeypatch.setattr(BatchedStep, "record", lambda self, lanes: self)
    handled = mh(model(), {"y": 1.0}, draws=30, chains=3, key=1)
    assert replayed.execution == "replayed"
    assert mx.array_equal(replayed["x"], handled["x"]).item() and len(set(_flat(handled.log_joint))) > 2
    assert mx.array_equal(replayed.log_joint, handled.log_joint).item()


def test_the_body_is_not_run_for_every_step():
    """A count of Python runs that grows with the draws would mean that nothing is replayed."""
    runs = []

    @gen.new
    def model():
        runs.append(1)
        trace("y", normal(trace("mu", normal(0, 1)), 0.5))

    counts = []
    for draws in (10, 500):
        runs.clear()
        mh(model(), {"y": 1.5}, draws=draws, warmup=draws, chains=2, key=1)
        counts.append(len(runs))
    assert counts[0] == counts[1] < 10


def test_a_step_that_mlx_cannot_export_is_run_by_its_handlers_and_says_so():
    @gen
    def model():
        mu = trace("mu", normal(mx.zeros(3), 1))
        trace("y", normal(mx.logcumsumexp(mu)[-1], 0.5))

    post = mh(model(), {"y": 1.0}, draws=20, chains=2, key=1)
    assert post.execution.startswith("handlers: ") and "CumLog" in post.execution
    assert post.trace(1, 7).score.item() == pytest.approx(post.log_joint[1, 7].item(), abs=1e-4)


def test_large_arguments_are_shared_by_the_chains():
    """A matrix of data is no part of the state, so that n chains do not copy it n times."""
    xs = mx.arange(10_000) / 1e4

    @gen
    def model(xs):
        slope = trace("slope", normal(0, 1))
        trace("y", normal(slope * xs, 1.0))

    post = mh(model(xs), {"y": 0.5 * xs}, draws=20, chains=4, key=1)
    assert post.execution == "replayed" and post["slope"].shape == (4, 20)


def test_a_kernel_with_a_state_of_its_own():
    """What an adaptive sampler on an unconstrained vector needs: init, a warm-up that adapts the scale, and read."""
    log_density = conjugate

    def make_kernel(start, observations):
        def joint(u):
            return log_density().gen_fn._generate((), observations.merge({"mu": u}), None)[0].score

        def move(state, key):
            noise, accept = genmlx.random.split(key)
            u = state["u"] + mx.exp(state["log_scale"]) * genmlx.random.normal(noise)
            new = joint(u)
            accepted = mx.log(genmlx.random.uniform_open(accept)) < new - state["joint"]
            u, new = mx.where(accepted, u, state["u"]), mx.where(accepted, new, state["joint"])
            return {**state, "u": u, "joint": new}, {"accept": accepted, "scale": mx.exp(state["log_scale"])}

        def warm(state, key):
            state, info = move(state, key)
            n = state["n"] + 1
            log_scale = state["log_scale"] + (info["accept"] - 0.44) / mx.sqrt(n)
            return {**state, "n": n, "log_scale": log_scale}, info

        def init(tr):
            return {"u": tr["mu"], "joint": tr.score, "log_scale": mx.array(4.0), "n": mx.array(0.0)}

        return Kernel(move, warm, init, lambda state: (choicemap({"mu": state["u"], "y": 1.5}), state["joint"]))

    post = run_chains(
        "toy", conjugate(), {"y": 1.5}, make_kernel, draws=400, warmup=300, thin=1, chains=40, key=1, progress=None
    )
    assert post.execution == "replayed"
    assert_agrees(post, "mu", MEAN, SD)
    scales = np.array(post.stats["scale"])
    assert np.all(scales == scales[:, :1]) and np.all(scales < 5) and len(set(scales[:, 0])) == 40
    assert 0.3 < np.array(post.stats["accept"]).mean() < 0.6


def test_a_choice_that_some_lanes_lack():
    """As a switch leaves it in a batch: the value, and the lanes in which it counts."""

    def make_kernel(start, observations):
        def read(tr):
            return tr.choices.set("mu", Masked(tr["mu"], tr["mu"] > 0)), tr.score

        return Kernel(regenerate_step(select("mu")), read=read)

    post = run_chains(
        "toy", conjugate(), {"y": 0.0}, make_kernel, draws=100, warmup=0, thin=2, chains=3, key=1, progress=None
    )
    plain = mh(conjugate(), {"y": 0.0}, draws=100, thin=2, chains=3, key=1)
    positive = np.array(plain["mu"]) > 0
    assert np.array_equal(np.array(post.has("mu")), positive) and 0 < positive.mean() < 1
    assert np.array_equal(np.array(post["mu"]), np.where(positive, np.array(plain["mu"]), np.nan), equal_nan=True)
    assert post.mean("mu").item() == pytest.approx(np.array(plain["mu"])[positive].mean(), rel=1e-5)


# errors


def test_selections_that_do_not_fit():
    def run(selection):
        mh(conjugate(), {"y": 1.5}, selection=selection, draws=3)

    with pytest.raises(UsageError, match="the selection holds 'y', which is observed"):
        run(select.all())
    with pytest.raises(UsageError, match="the selection holds 'y', which is observed"):
        run("y")
    with pytest.raises(UnknownAddress, match="'nu'"):
        run("nu")
    with pytest.raises(UsageError, match="nothing would move"):
        run(select.none())
    with pytest.raises(UsageError, match="one of the two"):
        mh(conjugate(), {"y": 1.5}, selection="mu", proposal=walk)


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"warmup": -1}, {"thin": 0}, {"chains": 0}, {"draws": 1.5}])
def test_counts(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        mh(conjugate(), {"y": 1.5}, **wrong)


def test_problems_that_are_none():
    with pytest.raises(UsageError, match="nothing to infer"):
        mh(conjugate(), {"y": 1.5, "mu": 0.0}, draws=3)
    with pytest.raises(UsageError, match="not a call"):
        mh(conjugate, {"y": 1.5})
    with pytest.raises(UnknownAddress, match="'z'"):
        mh(conjugate(), {"z": 1.5})
    with pytest.raises(ImpossibleObservation, match="'b'"):
        mh(coin_and_certainty(), {"b": 0}, draws=3)


@gen
def coin_and_certainty():
    trace("a", flip(0.5))
    trace("b", flip(1.0))


def test_a_start_of_density_zero_is_drawn_again():
    """Half of the prior excludes the observation."""

    @gen
    def model():
        a = trace("a", flip(0.5))
        trace("y", flip(0.5 * a))

    post = mh(model(), {"y": 1}, draws=10, chains=16, key=1)
    assert mx.all(post["a"] == 1).item() and mx.all(mx.isfinite(post.log_joint)).item()


def _flat(array) -> list:
    return np.array(array).ravel().tolist()
