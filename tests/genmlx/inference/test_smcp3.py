"""SMCP3: weights against closed forms, evidence against exact values, and what is not accounted for raises."""

import math
import re
from importlib import import_module
from itertools import product

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx import exponential, flip, gen, mask, normal, poisson, trace, unfold, uniform
from genmlx.errors import MissingChoice, UnknownAddress, UsageError
from genmlx.inference import NotCovered, ParticleFilter, RoundTripError, Smcp3Step, smc, smcp3
from genmlx.transform import pair_bijections, transform


def log_normal_density(x, mean, scale):
    return stats.norm(mean, scale).logpdf(x)


def assert_unbiased(log_mls, exact, largest=0.06):
    """exp(log_ml - exact) has mean 1: within three of its own standard errors, which are small."""
    ratios = np.exp(np.array(log_mls, np.float64) - exact)
    error = ratios.std(ddof=1) / math.sqrt(len(ratios))
    assert error < largest
    assert abs(ratios.mean() - 1) < 3 * error + 1e-5
    return ratios.mean(), error


# weights by hand


@gen
def points(n):
    x = trace("x", normal(0, 2))
    for i in range(n):
        trace(("y", i), normal(x, 1))


@gen
def forward_x(tr):
    trace("x", normal(0.5 * tr["x"] + 0.3, 0.7))


@gen
def backward_x(tr):
    trace("x", normal(1.2 * tr["x"], 0.9))


def rewritten(old, new):
    """log of p_new(x') L(x | x') / (p_old(x) K(x' | x))."""
    found = log_normal_density(new, 0, 2) + log_normal_density(1.0, new, 1) + log_normal_density(2.0, new, 1)
    found -= log_normal_density(old, 0, 2) + log_normal_density(1.0, old, 1)
    return found + log_normal_density(old, 1.2 * new, 0.9) - log_normal_density(new, 0.5 * old + 0.3, 0.7)


def test_a_rewritten_choice_alone_and_in_a_batch():
    """Every term has other numbers: one left out, or the kernels turned round, shows."""
    step = Smcp3Step(points(2), {("y", 1): 2.0}, forward_x, backward_x)
    tr, _ = points(1).generate({"x": 0.4, ("y", 0): 1.0})
    new, weight = step(tr, mx.random.key(1))
    assert new["x"].item() != pytest.approx(0.4) and new["y", 1].item() == 2.0 and new.args == (2,)
    assert weight.item() == pytest.approx(rewritten(0.4, new["x"].item()), abs=1e-5)
    traces, _ = points(1).vgenerate({("y", 0): 1.0}, 6, key=2)
    new, weight = step(traces, mx.random.key(3), check=True)
    old, xs = np.array(traces["x"], np.float64), np.array(new["x"], np.float64)
    assert len(set(xs)) == 6
    assert np.array(weight) == pytest.approx(rewritten(old, xs), abs=1e-4)


@gen
def growing(n):
    trace("a", normal(0, 1))
    if n > 1:
        b = trace("b", exponential(0.5))
        trace("c", normal(b, 1))


def test_what_nobody_writes_comes_from_the_prior_and_cancels():
    """b and c are new: b proposed, c from its prior, whose density is in the new trace and in q."""

    @gen
    def b_only(tr):
        trace("b", exponential(2.0))

    tr = growing(1).simulate(key=1)
    new, weight = Smcp3Step(growing(2), None, b_only)(tr, 2)
    b = new["b"].item()
    assert weight.item() == pytest.approx(stats.expon(scale=2).logpdf(b) - stats.expon(scale=0.5).logpdf(b), abs=1e-5)
    _, weight = Smcp3Step(growing(2))(tr, 2)
    assert weight.item() == 0.0


def test_choices_that_go_are_proposed_back():
    """The reverse: b and c go, and the backward kernel's density of them takes the place of the prior's."""

    @gen
    def b_and_c(tr):
        trace("c", normal(tr["a"], 2))
        trace("b", exponential(2.0))

    tr = growing(2).simulate(key=1)
    new, weight = Smcp3Step(growing(1), None, None, b_and_c)(tr, 2, check=True)
    a, b, c = (tr[name].item() for name in "abc")
    expected = stats.expon(scale=0.5).logpdf(b) + log_normal_density(c, a, 2)
    expected -= stats.expon(scale=2).logpdf(b) + log_normal_density(c, b, 1)
    assert weight.item() == pytest.approx(expected, abs=1e-5)
    assert new.choices.addresses() == [("a",)] and new["a"].item() == tr["a"].item()


@gen
def jitter(tr):
    trace("u", normal(0.1, 0.6))
    trace("m", poisson(2.0))


@gen
def unjitter(tr):
    trace("v", normal(tr["x"], 1.1))
    trace("m", poisson(3.0))


@transform
def stretch(old, new):
    x, u = old["x"], old.aux["u"]
    new["x"], new.aux["v"] = 1.5 * x + u, 2 * u - x
    new.aux["m"] = old.aux["m"]


@transform
def shrink(old, new):
    x, v = old["x"], old.aux["v"]
    was = (2 * x - v) / 4
    new["x"], new.aux["u"] = was, x - 1.5 * was
    new.aux["m"] = old.aux["m"]


pair_bijections(stretch, shrink)


def test_a_transform_against_its_equation():
    """d(x', v)/d(x, u) = [[1.5, 1], [-1, 2]] has determinant 4."""
    traces, _ = points(1).vgenerate({("y", 0): 1.0}, 6, key=2)
    new, weight = Smcp3Step(points(2), {("y", 1): 2.0}, jitter, unjitter, stretch)(traces, 4, check=True)
    old, xs = np.array(traces["x"], np.float64), np.array(new["x"], np.float64)
    u = xs - 1.5 * old
    v = 2 * u - old
    expected = log_normal_density(xs, 0, 2) + log_normal_density(1.0, xs, 1) + log_normal_density(2.0, xs, 1)
    expected -= log_normal_density(old, 0, 2) + log_normal_density(1.0, old, 1) + log_normal_density(u, 0.1, 0.6)
    expected += log_normal_density(v, xs, 1.1) + math.log(4)
    rest = np.array(weight) - expected  # log of the two Poisson densities of m, which is a whole number
    m = np.round((rest - 1 * (2 - 3)) / math.log(3 / 2))
    assert (m >= 0).all() and len(set(m)) > 1
    assert rest == pytest.approx(stats.poisson(3).logpmf(m) - stats.poisson(2).logpmf(m), abs=1e-3)


def test_old_observations_may_change_or_go():
    """A window of one observation that slides: the target is p(x, y1), and no kernel accounts for y0."""

    @gen
    def window(first, last):
        x = trace("x", normal(0, 2))
        for i in range(first, last):
            trace(("y", i), normal(x, 1))

    pf = ParticleFilter.init(window(0, 1), {("y", 0): 1.0}, 4000, key=1)
    step = Smcp3Step(window(1, 2), {("y", 1): -0.5})
    moved = step.extend(pf, 2)
    assert moved.observations.addresses() == [("y", 1)]
    exact = log_normal_density(-0.5, 0, math.sqrt(5))
    w = np.exp(np.array(moved.log_weights, np.float64) - exact)
    assert abs(w.mean() - 1) < 3 * w.std() / math.sqrt(len(w)) and w.std() / math.sqrt(len(w)) < 0.02
    kernels = Smcp3Step(window(1, 2), {("y", 1): -0.5}, forward_x, backward_x).extend(pf, 2, check=True)
    w = np.exp(np.array(kernels.log_weights, np.float64) - exact)
    assert abs(w.mean() - 1) < 3 * w.std() / math.sqrt(len(w)) and w.std() / math.sqrt(len(w)) < 0.06
    corrected = Smcp3Step(window(0, 1), {("y", 0): -0.5}).extend(pf, 2)
    assert corrected.observations["y", 0] == -0.5
    assert np.array(corrected.log_weights) == pytest.approx(np.array(moved.log_weights), abs=1e-5)
    # Where nobody says that it was observed, it is a choice that goes.
    with pytest.raises(MissingChoice, match="goes or changes") as caught:
        step(pf.traces, 2)
    assert caught.value.address == ("y", 0)


def test_a_latent_choice_that_becomes_observed():
    """z is measured now: its old value is proposed back, and p(z = 0.7) is the evidence."""

    @gen
    def pair():
        trace("y", normal(trace("z", normal(0, 1)), 1))

    @gen
    def old_z(tr):
        trace("z", normal(0.5, 0.5**0.5))

    @gen
    def exact_z():
        trace("z", normal(0.5, 0.5**0.5))

    steps = [(pair(), {"y": 1.0}, exact_z()), (pair(), {"z": 0.7}, None, old_z)]
    result = smcp3(steps, particles=20, check=False, key=1)
    exact = log_normal_density(0.7, 0, 1) + log_normal_density(1.0, 0.7, 1)
    assert np.array(result.log_weights) == pytest.approx(np.full(20, exact), abs=1e-5)
    assert set(result.observations.addresses()) == {("y",), ("z",)}


# evidence


@gen
def walk_step(t, x):
    x = trace("x", normal(x, 1.0))
    trace("y", normal(x, 1.0))
    return x


walk = unfold(walk_step)
YS = [1.0, 2.0, -0.5, 0.7]


def walk_evidence(ys):
    n = len(ys)
    cov = np.minimum.outer(np.arange(1, n + 1), np.arange(1, n + 1)) + np.eye(n)
    return stats.multivariate_normal(np.zeros(n), cov).logpdf(ys)


def before(tr, t):
    return tr[t, "x"] if t >= 0 else 0.0


@gen
def last_two(tr):
    """Draws the previous state anew, knowing the observation after it, and the new one."""
    t = len(tr.retval)
    x = trace((t - 1, "x"), normal((before(tr, t - 2) + YS[t - 1] + 0.5 * YS[t]) / 2.5, 0.8))
    trace((t, "x"), normal((x + YS[t]) / 2, 0.8))


@gen
def previous(tr):
    """The old value of the state before the last: as its filter would draw it, a little wider."""
    t = len(tr.retval) - 1
    trace((t - 1, "x"), normal((before(tr, t - 2) + YS[t - 1]) / 2, 0.8))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_a_block_of_two_states_is_unbiased(threshold):
    """(a) Each step revisits the state before. A backward density that is left out is e^0.5 off at every step."""
    steps = [(walk(1, 0.0), {(0, "y"): YS[0]})]
    steps += [(walk(t + 1, 0.0), {(t, "y"): YS[t]}, last_two, previous) for t in (1, 2, 3)]
    found = [smcp3(steps, particles=40, ess_threshold=threshold, key=seed) for seed in range(40)]
    assert_unbiased([pf.log_ml.item() for pf in found], walk_evidence(YS))
    assert all(resampled == (threshold == 1.0) for resampled in found[0].history.resampled[:3]) or threshold == 0.5
    for i in (0, 39):  # all of a particle belongs together: its score is that of a fresh assess
        one = found[0].traces[i]
        fresh = walk(4, 0.0).assess(one.choices).score.item()
        assert one.score.item() == pytest.approx(fresh, abs=1e-4)


@gen
def optimal(tr):
    t = len(tr.retval)
    trace((t, "x"), normal((before(tr, t - 1) + YS[t]) / 2, 0.5**0.5))


def test_locally_optimal_proposals():
    """(b) The increment is p(y | the previous state), whatever was drawn; the evidence is exact on average."""
    start, _ = walk(1, 0.0).vgenerate({(0, "x"): 0.4, (0, "y"): YS[0]}, 30, key=1)
    new, weight = Smcp3Step(walk(2, 0.0), {(1, "y"): YS[1]}, optimal)(start, 2)
    assert np.ptp(np.array(new[1, "x"])) > 1
    assert np.array(weight) == pytest.approx(np.full(30, log_normal_density(YS[1], 0.4, 2**0.5)), abs=1e-5)
    steps = [(walk(1, 0.0), {(0, "y"): YS[0]})]
    steps += [(walk(t + 1, 0.0), {(t, "y"): YS[t]}, optimal) for t in (1, 2, 3)]
    assert_unbiased([smcp3(steps, particles=40, key=seed).log_ml.item() for seed in range(40)], walk_evidence(YS))


DATA = [-1.5, -1.1, 1.4, 2.0]


@gen
def mixed(k):
    mus = [trace(("mu", j), normal(0, 3)) for j in range(k)]
    for i in range(len(DATA)):
        mu = mus[0] if k == 1 else mx.where(trace(("z", i), flip(0.4)) == 1, mus[1], mus[0])
        trace(("y", i), normal(mu, 1))


OBSERVED = {("y", i): y for i, y in enumerate(DATA)}


def mixed_evidence(k):
    """Over all labels, the joint density of the points of each component, which share its mean."""
    terms = []
    for labels in product(range(2), repeat=len(DATA)) if k == 2 else [(0,) * len(DATA)]:
        term = sum(math.log(0.4 if z else 0.6) for z in labels) if k == 2 else 0.0
        for j in range(k):
            own = [y for y, z in zip(DATA, labels, strict=True) if z == j]
            if own:
                cov = np.eye(len(own)) + 9 * np.ones((len(own), len(own)))
                term += stats.multivariate_normal(np.zeros(len(own)), cov).logpdf(own)
        terms.append(term)
    return np.logaddexp.reduce(terms)


@gen
def splitting(tr):
    """How far apart the two means are, and who belongs to which."""
    mu, u = tr["mu", 0], trace("u", normal(1.2, 1.2))
    for i, y in enumerate(DATA):
        trace(("z", i), flip(mx.clip(mx.sigmoid(2 * u * (y - mu)), 0.02, 0.98)))


@transform
def split(old, new):
    mu, u = old["mu", 0], old.aux["u"]
    new["mu", 0], new["mu", 1] = mu - u, mu + u
    for i in range(len(DATA)):
        new["z", i] = old.aux["z", i]


@transform
def merge(old, new):
    a, b = old["mu", 0], old["mu", 1]
    new["mu", 0], new.aux["u"] = (a + b) / 2, (b - a) / 2
    for i in range(len(DATA)):
        new.aux["z", i] = old["z", i]


pair_bijections(split, merge)


@gen
def one_mean():
    trace(("mu", 0), normal(0.0, 1.5))


def test_split_and_merge_against_enumeration():
    """(c) One component becomes two, with |J| = 2, and one again. Without the Jacobian the first is half of what it is.

    All weights are independent: their mean is the evidence.
    """
    steps = [
        (mixed(1), OBSERVED, one_mean()),
        (mixed(2), None, splitting, None, split),
        (mixed(1), None, None, splitting, merge),
    ]
    kept = []
    result = smcp3(
        steps, 8_000, ess_threshold=0.0, record=lambda pf: kept.append(pf.log_weights), check=True, key=3
    )
    assert len(kept) == 3 and result.n == 8000
    for log_weights, k in zip(kept, (1, 2, 1), strict=True):
        assert_unbiased(np.array(log_weights), mixed_evidence(k))
    one = result.traces[0]
    assert one.score.item() == pytest.approx(mixed(1).assess(one.choices).score.item(), abs=1e-4)


@transform
def halve(old, new):
    new["x"] = 0.5 * old["x"]


def scaled():
    """x of the prior, halved, as a proposal of the posterior given three points."""
    pf = ParticleFilter.init(points(0), None, 20_000, key=1)
    given = {("y", i): y for i, y in enumerate([0.3, -0.2, 0.5])}
    cov = np.eye(3) + 4 * np.ones((3, 3))
    exact = stats.multivariate_normal(np.zeros(3), cov).logpdf([0.3, -0.2, 0.5])
    return Smcp3Step(points(3), given, transform=halve).extend(pf, 2).log_weights, exact


def test_a_transform_with_scale_needs_its_jacobian(monkeypatch):
    """(d) Without log 1/2 the evidence is twice too large, which this test sees."""
    weights, exact = scaled()
    assert_unbiased(np.array(weights), exact, 0.02)
    monkeypatch.setattr(import_module("genmlx.inference.smcp3"), "log_det", lambda *_: 0.0)
    weights, exact = scaled()
    with pytest.raises(AssertionError):
        assert_unbiased(np.array(weights), exact, 0.04)


def test_posterior_means_after_rewriting():
    """The particles are of the posterior, not only their evidence: the smoothed first state by Kalman's equations."""
    steps = [(walk(1, 0.0), {(0, "y"): 1.0})]
    steps += [(walk(2, 0.0), {(1, "y"): 2.0}, last_two, previous)]
    result = smcp3(steps, 20_000, key=5)
    prior = np.array([[1.0, 1.0], [1.0, 2.0]])
    mean = prior @ np.linalg.solve(prior + np.eye(2), [1.0, 2.0])
    assert [result.mean((t, "x")).item() for t in (0, 1)] == pytest.approx(mean, abs=0.03)


# what a step costs, and what smc's loop brings with it


def test_a_step_runs_only_what_it_changes():
    """Of a walk of six states, a step that rewrites the last two runs the kernel for these, and not for the others."""
    runs = []

    @gen
    def counted_step(t, x):
        runs.append(t)
        x = trace("x", normal(x, 1.0))
        trace("y", normal(x, 1.0))
        return x

    counted = unfold(counted_step)
    start, _ = counted(5, 0.0).vgenerate({(t, "y"): 0.0 for t in range(5)}, 3, key=1)
    before = len(runs)

    @gen
    def two(tr):
        trace((4, "x"), normal(0, 1))
        trace((5, "x"), normal(0, 1))

    @gen
    def one(tr):
        trace((4, "x"), normal(0, 1))

    Smcp3Step(counted(6, 0.0), {(5, "y"): 0.0}, two, one)(start, 2)
    assert sorted(set(runs[before:])) == [4, 5]


def test_steps_without_kernels_are_those_of_smc():
    plain = [(walk(t + 1, 0.0), {(t, "y"): y}) for t, y in enumerate(YS)]
    mine, theirs = [f(plain, 5000, key=2) for f in (smcp3, smc)]
    assert mine.log_ml.item() == pytest.approx(theirs.log_ml.item(), abs=0.1)
    assert mine.log_ml.item() == pytest.approx(walk_evidence(YS), abs=0.1)


def test_the_same_key_gives_the_same_particles_and_steps_differ():
    steps = [(points(0),), (points(1), {("y", 0): 1.0}, forward_x, backward_x)]
    a, b, c = [np.array(smcp3(steps, 50, key=key)["x"]) for key in (1, 1, 2)]
    assert (a == b).all() and not (a == c).any()
    kept = []

    @gen
    def redraw(tr):
        kept.append(trace("x", normal(0, 1)))

    steps = [(points(0),), *[(points(0), None, redraw, redraw)] * 2]
    found = []
    smcp3(steps, 50, record=lambda pf: found.append(np.array(pf["x"])), key=1)
    assert not (found[1] == found[2]).any()


def test_a_word_of_the_callback_ends_it_and_rejuvenation_moves_particles():
    steps = [(points(0),), *[(points(i), {("y", i - 1): 1.0}, forward_x, backward_x) for i in (1, 2, 3)]]
    result = smcp3(steps, 100, progress=lambda p: "enough" if p.done >= 2 else None, key=1)
    assert result.status == "enough" and len(result.history) < 4
    result = smcp3(steps, 4000, ess_threshold=1.0, rejuvenate="x", key=1)
    assert result.history.accept[0] == 1.0 > result.history.accept[2] > 0.2 and math.isnan(result.history.accept[3])
    assert result.mean("x").item() == pytest.approx(3 / 3.25, abs=0.05)


def test_kernels_and_the_prior_draw_different_noise():
    """x by the forward kernel and z by the prior, both standard normal: nothing in common."""

    @gen
    def two(n):
        if n:
            trace("z", normal(0, 1))
        trace("x", normal(0, 1))

    new, _ = Smcp3Step(two(1), None, of_x, of_x)(two(0).vsimulate(4000, key=1), 2)
    assert abs(np.corrcoef(np.array(new["x"]), np.array(new["z"]))[0, 1]) < 0.08


def test_a_particle_of_weight_zero_stays_so():
    """A step that makes a possible trace of an impossible one is no infinite weight."""

    @gen
    def model(n):
        x = trace("x", uniform(0, 1))
        if n:
            trace("y", uniform(0, x))

    @gen
    def any_x(tr):
        trace("x", uniform(0, 1))

    @gen
    def possible_x(tr):
        trace("x", uniform(0.5, 1))

    steps = [(model(0),), (model(1), {"y": 0.5}), (model(1), None, any_x, possible_x)]
    kept = []
    result = smcp3(steps, 6000, ess_threshold=0.0, record=lambda pf: kept.append(np.array(pf.log_weights)), key=1)
    dead = np.isneginf(kept[1])
    assert 2500 < dead.sum() < 3500 and np.isneginf(kept[2][dead]).all()
    assert_unbiased(kept[2], math.log(math.log(2)))  # the integral of 1/x over (1/2, 1)
    assert result.log_ml.item() == pytest.approx(math.log(math.log(2)), abs=0.1)


def test_choices_that_some_lanes_have():
    """A switched choice: the kernels mask it as the model does, and each lane accounts for its own."""
    value = mask(normal)

    @gen
    def model():
        on = trace("on", flip(0.3))
        x = trace("x", value(on == 1, 0.0, 1.0))
        trace("y", normal(mx.where(on == 1, 0.0 if x is None else x, 0.0), 0.5))

    @gen
    def switched(tr):
        on = trace("on", flip(0.6))
        trace("x", value(on == 1, 0.8, 0.6))

    start = [(model(), {"y": 1.0})]
    result = smcp3([*start, (model(), None, switched, switched)], 6000, ess_threshold=0.0, key=1)
    exact = math.log(0.3 * stats.norm(0, math.sqrt(1.25)).pdf(1) + 0.7 * stats.norm(0, 0.5).pdf(1))
    assert_unbiased(np.array(result.log_weights), exact)


# errors


@gen
def pair():
    x = trace("x", normal(0, 1))
    trace("y", normal(x, 1))
    trace("z", normal(x, 1))


@gen
def of_x(tr):
    trace("x", normal(0, 1))


@gen
def of_y(tr):
    trace("y", normal(0, 1))


@gen
def of_x_and_z(tr):
    trace("x", normal(0, 1))
    trace("z", normal(0, 1))


@gen
def of_nothing_known(tr):
    trace("xs", normal(0, 1))


@pytest.mark.parametrize(
    "forward, backward, error, message, address",
    [
        (of_x, None, MissingChoice, "there is no backward kernel", ("x",)),
        (of_x_and_z, of_x, MissingChoice, "the backward kernel does not propose it", ("z",)),
        (of_x, of_x_and_z, UnknownAddress, "neither goes nor changes", ("z",)),
        (None, of_x, UnknownAddress, "neither goes nor changes", ("x",)),
        (of_y, of_y, UsageError, "proposes an observed choice", ("y",)),
        (of_nothing_known, None, UnknownAddress, "constraint", ("xs",)),
    ],
)
def test_kernels_that_do_not_fit_are_named(forward, backward, error, message, address):
    steps = [(pair(), {"y": 1.0}), (pair(), None, forward, backward)]
    with pytest.raises(error, match=message) as caught:
        smcp3(steps, 5, key=1)
    assert caught.value.address == address


@transform
def loses_x(old, new):
    new["x"] = old.aux["u"]


@transform
def writes_y(old, new):
    new["y"] = 2 * old["y"]


@transform
def doubles(old, new):
    new["x"] = 2 * old["x"]


@transform
def halves_by_a_constant(old, new):
    new["x"] = mx.stop_gradient(old["x"]) / 2


@transform
def swaps_with_u(old, new):
    new["x"], new.aux["x"] = old.aux["u"], old["x"]


@transform
def shifts_u(old, new):
    new.aux["u"], new["x"] = old["x"] + 1.0, old.aux["x"]


@transform
def thirds(old, new):
    new["x"] = old["x"] / 3


@gen
def of_u(tr):
    trace("u", normal(0, 1))


@pytest.mark.parametrize(
    "extra, error, message, address",
    [
        ((of_u, None, loses_x), MissingChoice, "lost: neither kept nor read", ("x",)),
        ((None, None, writes_y), UsageError, "writes an observed choice", ("y",)),
        ((None, None, doubles, thirds), RoundTripError, "not the same after the way there and back", ("x",)),
        ((None, None, doubles, halves_by_a_constant), RoundTripError, "log |det Jacobian| there and back", None),
        ((of_u, of_x, swaps_with_u, shifts_u), RoundTripError, "of the proposal is not the same", ("u",)),
    ],
)
def test_transforms_that_do_not_fit_are_named(extra, error, message, address):
    with pytest.raises(error, match=re.escape(message)) as caught:
        smcp3([(pair(), {"y": 1.0}), (pair(), None, *extra)], 5, check=True, key=1)
    assert caught.value.address == address


@gen
def positive():
    trace("y", normal(trace("scale", exponential(1.0)), 1))


@gen
def positive_scale(tr):
    trace("scale", exponential(1.5))


@gen
def any_scale(tr):
    trace("scale", normal(1, 1))


@gen
def near(tr):
    trace("scale", uniform(tr["scale"], tr["scale"] + 0.5))


@gen
def near_before(tr):
    trace("scale", uniform(tr["scale"] - 0.5, tr["scale"]))


@pytest.mark.parametrize(
    "forward, backward, covered",
    [
        (positive_scale, positive_scale, True),
        (positive_scale, any_scale, False),  # draws old scales below 0
        (near, positive_scale, False),  # draws old scales from which the new one cannot be reached
        (near, near_before, False),  # at a new scale below 0.5, old scales below 0
    ],
)
def test_a_backward_kernel_that_is_not_covered(forward, backward, covered):
    """What the backward kernel draws where the forward kernel does not come from is evidence that is never seen."""
    steps = [(positive(), {"y": 0.5}), (positive(), None, forward, backward)]
    exact = np.log(np.trapezoid(*(lambda s: (np.exp(-s) * stats.norm(s, 1).pdf(0.5), s))(np.linspace(0, 40, 40001))))
    result = smcp3(steps, 20_000, ess_threshold=0.0, key=1)
    w = np.exp(np.array(result.log_weights, np.float64) - exact)
    low = (1 - w.mean()) / (w.std() / math.sqrt(len(w)))
    if covered:
        assert abs(low) < 3
        smcp3(steps, 200, check=True, key=1)
    else:
        assert low > 5  # it is biased, and the check says so
        with pytest.raises(NotCovered, match="in [0-9]+ of 200 moves"):
            smcp3(steps, 200, check=True, key=1)


def test_the_check_of_a_transform_covers_too():
    """The inverse takes what the backward kernel draws to scales below 0."""

    @gen
    def wide(tr):
        trace("v", normal(0, 1))

    @transform
    def shift(old, new):
        u, s = old.aux["u"], old["scale"]
        new["scale"], new.aux["v"] = mx.exp(u), s

    @transform
    def unshift(old, new):
        new.aux["u"], new["scale"] = mx.log(old["scale"]), old.aux["v"]

    steps = [(positive(), {"y": 0.5}), (positive(), None, of_u, wide, shift, unshift)]
    with pytest.raises(NotCovered):
        smcp3(steps, 200, check=True, key=1)

    @gen
    def narrow(tr):
        trace("v", exponential(1.0))

    steps = [(positive(), {"y": 0.5}), (positive(), None, of_u, narrow, shift, unshift)]
    smcp3(steps, 200, check=True, key=1)


def test_a_new_observation_is_not_proposed():
    with pytest.raises(UsageError, match="proposes an observed choice") as caught:
        smcp3([(pair(), {"y": 1.0}), (pair(), {"z": 1.0}, of_x_and_z, of_x_and_z)], 5, key=1)
    assert caught.value.address == ("z",)


def test_bad_steps():
    with pytest.raises(UsageError, match="step 1 is 3"):
        smcp3([(pair(),), 3])
    with pytest.raises(UsageError, match="smcp3 was given a call"):
        smcp3(pair())
    with pytest.raises(UsageError, match="smcp3 was given no steps"):
        smcp3([])
    with pytest.raises(UsageError, match="step 1 is of another model"):
        smcp3([(pair(),), (points(1), None, of_x, of_x)])
    with pytest.raises(UsageError, match="an inverse, and no transform"):
        Smcp3Step(pair(), inverse=thirds)
    with pytest.raises(UsageError, match="no inverse to be checked against"):
        smcp3([(pair(),), (pair(), None, None, None, doubles)], 5, check=True, key=1)
    with pytest.raises(UsageError, match="a call of the same model"):
        Smcp3Step(points(1))(pair().simulate())
