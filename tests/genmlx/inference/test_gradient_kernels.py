"""Kernels of gradient moves and slices: what they leave invariant, that they are their own reversals, their errors."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

import genmlx
from genmlx import dirichlet, exponential, flip, gen, mask, normal, select, trace, uniform
from genmlx.errors import GenError, ParameterError, UnknownAddress, UsageError
from genmlx.inference import (
    chain,
    cycle_kernels,
    elliptical_slice_kernel,
    gibbs_kernel,
    hmc_kernel,
    mala_kernel,
    mh_kernel,
    mix_kernels,
    random_walk_kernel,
    repeat_kernel,
    reversal,
    run_kernel,
    seed_kernel,
)

N = 20_000


@gen
def scaled():
    rate = trace("rate", exponential(2.0))
    share = trace("share", dirichlet(mx.array([2.0, 1.0, 3.0])))
    k = trace("k", flip(0.4))
    x = trace("x", normal(mx.array([0.0, 1.0]) * k, 0.5 + rate))
    trace("y", normal(x[0] + x[1] + share[0], 1.0))


@gen
def gaussians():
    a = trace("a", normal(0, 1))
    b = trace("b", normal(a * mx.ones(2), 0.7))
    trace("y", normal(mx.sum(b), 1.0))


GRADIENT = {
    "hmc": lambda s: hmc_kernel(s, 0.35, 5),
    "hmc coarse": lambda s: hmc_kernel(s, 0.7, 2),
    "mala": lambda s: mala_kernel(s, 0.6),
    "random walk": lambda s: random_walk_kernel(s, 0.6),
}
EVERY = {**GRADIENT, "elliptical slice": elliptical_slice_kernel}


def constrained(values):
    """Functions of the choices, with and without what is not moved: each has the same mean before and after."""
    rate, share, x, y, k = (np.array(values[a], dtype=float) for a in ("rate", "share", "x", "y", "k"))
    columns = [np.log(rate), rate, share[:, 0], share[:, 1] ** 2, x[:, 0], x[:, 1] ** 2, x[:, 1] * y, rate * y**2]
    return np.stack([*columns, share[:, 0] * y, k * x[:, 1]], axis=1)


@pytest.mark.parametrize("name", GRADIENT)
def test_exact_draws_stay_exact_draws(name):
    """20,000 lanes that begin at draws of the joint distribution, so of the posterior of whatever is not moved.

    Catches a missing Jacobian, a wrong acceptance, a gradient of something else: the moments after three steps are
    those before, as paired differences within 4.5 standard errors.
    """
    start = scaled().vsimulate(N, mx.random.key(3))
    kernel = repeat_kernel(3, GRADIENT[name](select("rate", "share", "x")))
    new, info = kernel.apply(start, mx.random.key(4))
    moved = np.any(np.array(new["x"] != start["x"]), axis=1)
    assert 0.3 < moved.mean(), moved.mean()
    assert mx.array_equal(new["y"], start["y"]).item() and mx.array_equal(new["k"], start["k"]).item()
    difference = constrained(new) - constrained(start)
    z = difference.mean(axis=0) / (difference.std(axis=0) / math.sqrt(N))
    assert np.all(np.abs(z) < 4.5), z
    assert 0.2 < mx.mean(info["accept"]).item() < 0.999


@pytest.mark.parametrize("name", EVERY)
def test_the_score_and_the_return_value_of_a_moved_trace(name):
    @gen
    def model():
        b = trace("b", normal(mx.zeros(2), 1.0))
        trace("y", normal(mx.sum(b), 1.0))
        return 10 * b

    for start in (model().generate({"y": 2.0}, key=1).trace, model().vgenerate({"y": 2.0}, 5, key=1).trace):
        new = repeat_kernel(4, EVERY[name]("b"))(start, mx.random.key(2), check=True, observations={"y": 2.0})
        assert mx.any(new["b"] != start["b"]).item()
        assert mx.array_equal(new.retval, 10 * new["b"]).item()


@pytest.mark.parametrize("name", EVERY)
def test_detailed_balance(name):
    """pi(x) k(x -> y) = pi(y) k(y -> x): from exact draws, pairs of bins are crossed as often forth as back."""
    start = gaussians().vsimulate(N, mx.random.key(5))
    kernel = EVERY[name](select("a", "b"))
    assert reversal(kernel) is kernel
    new = kernel(start, mx.random.key(6))

    def cells(tr):
        b = np.array(tr["b"])
        return 4 * np.digitize(np.array(tr["a"]), [-0.6, 0.0, 0.6]) + np.digitize(b[:, 0] - b[:, 1], [-0.7, 0.0, 0.7])

    flows = np.zeros((16, 16))
    np.add.at(flows, (cells(start), cells(new)), 1)
    crossed = flows + flows.T
    z = (flows - flows.T)[crossed > 20] / np.sqrt(crossed[crossed > 20])
    assert len(z) > 60 and np.abs(z).max() < 4.5


@pytest.mark.parametrize("name", EVERY)
def test_a_posterior(name):
    """a, b and y are jointly normal: the posterior by conditioning, in a recorded run."""
    kernel = chain(EVERY[name]("a"), EVERY[name]("b")) if name != "elliptical slice" else EVERY[name](select("a", "b"))
    start, _ = gaussians().vgenerate({"y": 3.0}, 100, key=mx.random.key(0))
    post = run_kernel(kernel, start, draws=400, warmup=100, observations={"y": 3.0}, key=1)
    joint = np.array([[1, 1, 1, 2], [1, 1.49, 1, 2.49], [1, 1, 1.49, 2.49], [2, 2.49, 2.49, 5.98]])
    mean = joint[:3, 3] / joint[3, 3] * 3.0
    sd = np.sqrt(np.diag(joint[:3, :3] - np.outer(joint[:3, 3], joint[:3, 3]) / joint[3, 3]))
    found = np.concatenate([np.atleast_1d(np.array(post.mean(a))) for a in "ab"])
    error = np.concatenate([np.atleast_1d(np.array(post.mcse(a))) for a in "ab"])
    ess = np.concatenate([np.atleast_1d(np.array(post.ess(a))) for a in "ab"])
    assert np.all(ess > 400) and np.all(np.abs(found - mean) < 4.5 * error), ((found - mean) / error, ess)
    spread = np.concatenate([np.atleast_1d(np.array(post.std(a))) for a in "ab"])
    assert np.all(np.abs(spread / sd - 1) < 0.06)
    assert post.execution == "replayed" and post.addresses() == [("a",), ("b",)]


def test_one_trajectory_by_hand():
    """Leapfrog in log space, in numpy, from the same noise: the proposal, and the choice between it and the start."""

    @gen
    def model():
        trace("y", normal(0.0, trace("s", exponential(1.0))))

    start, _ = model().generate({"y": 1.3, "s": 0.8})
    y, step, steps = 1.3, 0.4, 4

    def log_p(u):
        return stats.expon.logpdf(math.exp(u)) + stats.norm.logpdf(y, 0, math.exp(u)) + u


    def gradient(u):
        return -math.exp(u) + y**2 * math.exp(-2 * u) - 1 + 1

    accepted = 0
    for seed in range(40):
        key = mx.random.key(seed)
        move_key, accept_key = genmlx.random.split(key)
        momentum_key, jitter_key = genmlx.random.split(move_key)
        p = genmlx.random.normal(momentum_key, (1, 1)).item()
        size = step * (1 + 0.2 * (2 * genmlx.random.uniform(jitter_key).item() - 1))
        u = math.log(0.8)
        energy = log_p(u) - p * p / 2
        for _ in range(steps):
            p += size / 2 * gradient(u)
            u += size * p
            p += size / 2 * gradient(u)
        keep = math.log(genmlx.random.uniform_open(accept_key).item()) < log_p(u) - p * p / 2 - energy
        accepted += keep
        new = hmc_kernel("s", step, steps)(start, key)
        assert new["s"].item() == pytest.approx(math.exp(u) if keep else 0.8, rel=1e-4)
    assert 20 < accepted < 40


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_of_one_lane_after_the_other(name):
    """A lane's step depends on its own trace and noise alone: other lanes may hold anything."""
    start = gaussians().vgenerate({"y": 3.0}, 60, key=mx.random.key(0)).trace
    other = gaussians().vgenerate({"y": -8.0}, 60, key=mx.random.key(9)).trace
    mixed = genmlx.vectorized.where(mx.arange(60) < 30, start, other)
    kernel, key = EVERY[name](select("a", "b")), mx.random.key(1)
    ours, theirs = kernel(start, key), kernel(mixed, key)
    assert mx.allclose(ours["b"][:30], theirs["b"][:30], atol=1e-5).item()
    assert not mx.allclose(ours["b"][30:], theirs["b"][30:], atol=1e-2).item()
    assert len(set(np.array(ours["a"] - start["a"]).tolist())) > 12, "each lane has noise of its own"


def test_in_compositions():
    start, _ = gaussians().vgenerate({"y": 3.0}, 50, key=mx.random.key(0))
    parts = hmc_kernel("a", 0.4, 3), mala_kernel("b", 0.4), elliptical_slice_kernel("b")
    kernel = mix_kernels([(cycle_kernels(4, parts), 1), (repeat_kernel(2, random_walk_kernel("a", 0.5)), 2)])
    new = kernel(start, mx.random.key(1), check=True, observations={"y": 3.0})
    assert mx.any(new["b"] != start["b"]).item()
    seeded = seed_kernel(hmc_kernel("a", 0.4, 3), 7)
    assert seeded(start, mx.random.key(1)).choices == seeded(start, mx.random.key(2)).choices
    back = reversal(chain(*parts))
    assert back.parts == list(reversed(parts))
    post = run_kernel(chain(*parts), start, draws=5, check=True, observations={"y": 3.0}, key=1)
    assert "checked" in post.execution


def test_a_body_that_branches_on_what_stays():
    """A single trace may branch on a choice that a kernel does not move, and not on one that it does."""

    @gen
    def branching():
        k, x = trace("k", flip(0.5)), trace("x", normal(0, 1))
        trace("y", normal(x if k.item() else -x, 0.5))

    start, _ = branching().generate({"k": 0, "y": 2.0}, key=mx.random.key(0))
    post = run_kernel(hmc_kernel("x", 0.3, 6), start, draws=300, warmup=10, observations={"k": 0, "y": 2.0}, key=1)
    assert abs(post.mean("x").item() + 1.6) < 4.5 * post.mcse("x") and post.ess("x") > 100

    @gen
    def worse():
        x = trace("x", normal(0, 1))
        trace("y", normal(1.0 if x.item() > 0 else -1.0, 0.5))

    start, _ = worse().generate({"y": 2.0}, key=mx.random.key(0))
    with pytest.raises(GenError, match="host value"):
        hmc_kernel("x")(start, mx.random.key(1))


def test_a_trajectory_that_leaves_the_numbers_is_rejected_and_said_to_diverge():
    @gen
    def model():
        trace("y", normal(0.0, trace("s", exponential(1.0))))

    start, _ = model().vgenerate({"y": 0.001}, 200, key=mx.random.key(0))
    new, info = hmc_kernel("s", 30.0, 5).apply(start, mx.random.key(1))
    away = np.array(info["diverging"])
    assert 20 < away.sum()
    assert np.array_equal(np.array(new["s"])[away], np.array(start["s"])[away])
    assert np.all(np.array(info["accept"])[away] == 0) and np.all(np.isfinite(np.array(new.score)))


def test_what_cannot_be_moved_raises():
    start = scaled().simulate(key=mx.random.key(0))
    batch = scaled().vsimulate(3, key=mx.random.key(0))
    for make in (hmc_kernel, mala_kernel, random_walk_kernel):
        for traces in (start, batch):
            message = f"(?s){make.__name__} was given a discrete choice at 'k' in scaled.*gibbs_kernel"
            with pytest.raises(UsageError, match=message):
                make(select("rate", "k"))(traces, mx.random.key(1))
    with pytest.raises(UsageError, match="(?s)prior is not Gaussian.*'rate'"):
        elliptical_slice_kernel(select("rate"))(start, mx.random.key(1))
    for make in (hmc_kernel, mala_kernel, random_walk_kernel, elliptical_slice_kernel, gibbs_kernel):
        with pytest.raises(UnknownAddress, match="'rat'"):
            make("rat")(start, mx.random.key(1))
        with pytest.raises(UsageError, match=f"{make.__name__} has nothing to move"):
            make(select.none())(start, mx.random.key(1))
    for make, name in ((hmc_kernel, "step_size"), (mala_kernel, "step_size"), (random_walk_kernel, "scale")):
        for wrong in (0, -1.0, math.nan, math.inf, True, "a"):
            with pytest.raises(ParameterError, match=f"{name} must be a positive number"):
                make("rate", **{name: wrong})
    with pytest.raises(ParameterError, match="leapfrog_steps"):
        hmc_kernel("rate", leapfrog_steps=0)


@gen
def standard():
    trace("g", normal(0, 1))


def test_choices_that_are_there_in_some_lanes_stay_as_they_are():
    """A mask that another choice opens does nothing; one that the moved choice opens keeps the sign of x."""

    @gen
    def by_other():
        k, x = trace("k", flip(0.5)), trace("x", normal(0, 1))
        trace("in", mask(standard)(k))
        trace("y", normal(x, 0.5))

    start, _ = by_other().vgenerate({"y": 1.0}, 300, key=mx.random.key(1))
    post = run_kernel(hmc_kernel("x", 0.4, 4), start, draws=60, warmup=20, observations={"y": 1.0}, key=2)
    assert abs(post.mean("x").item() - 0.8) < 4.5 * post.mcse("x") and post.ess("x") > 400
    assert abs(post.std("x").item() / math.sqrt(0.2) - 1) < 0.05

    @gen
    def by_itself():
        trace("in", mask(standard)(trace("x", normal(0, 1)) > 0))

    start, _ = by_itself().vgenerate({}, 400, key=mx.random.key(1))
    kernel = hmc_kernel("x", 0.5, 4)
    x = np.array(run_kernel(kernel, start, draws=60, warmup=20, key=2)["x"])
    assert np.all((x > 0) == (np.array(start["x"]) > 0)[:, None])
    means = np.abs(x).mean(axis=1)
    assert abs(means.mean() - math.sqrt(2 / math.pi)) < 4.5 * means.std() / math.sqrt(400)
    new = kernel(start, mx.random.key(3), check=True)
    assert mx.array_equal(new.choices["in", "g"].active, start.choices["in", "g"].active).item()
    both = mix_kernels([(kernel, 1), (mh_kernel("x"), 1)])
    assert abs(run_kernel(both, start, draws=60, warmup=20, key=2).mean("x").item()) < 0.05


def test_a_support_that_depends_on_what_is_moved_or_not():
    """In a batch, over several steps: bounds are looked at under a gradient that comes after another."""

    @gen
    def model():
        top = trace("top", exponential(1.0))
        trace("u", uniform(0.0, 1.0 + top))

    start = model().vsimulate(N, mx.random.key(0))
    new = repeat_kernel(2, hmc_kernel(select("top", "u"), 0.5, 3))(start, mx.random.key(1))
    for statistic in (lambda t: t["u"], lambda t: t["top"] * t["u"], lambda t: t["u"] / (1 + t["top"])):
        difference = np.array(statistic(new) - statistic(start), dtype=float)
        assert abs(difference.mean()) < 4.5 * difference.std() / math.sqrt(N)
    assert mx.all(new["u"] < 1 + new["top"]).item() and np.mean(np.array(new["u"] != start["u"])) > 0.5


def test_a_choice_that_comes_and_goes_raises():
    @gen
    def inner():
        trace("x", normal(0, 1))

    @gen
    def model():
        trace("in", mask(inner)(trace("k", flip(0.5))))

    batch = model().vsimulate(5, key=mx.random.key(0))
    for make in (hmc_kernel, mala_kernel, random_walk_kernel, elliptical_slice_kernel):
        with pytest.raises(UsageError, match="exists in some runs only"):
            make("in")(batch, mx.random.key(1))
