"""Continuous and discrete latents together: exact posteriors, what stays, the statistics, and what raises."""

import itertools
import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from scipy import integrate, stats

from genmlx import (
    categorical,
    dirichlet,
    exponential,
    flip,
    gamma,
    gen,
    hmc,
    hmc_gibbs,
    map_over,
    normal,
    nuts,
    poisson,
    select,
    trace,
    uniform,
    vmap,
)
from genmlx.errors import BatchError, GenError, ParameterError, UsageError
from genmlx.inference import LogDensity
from genmlx.inference import checkpoint as checkpoint_module

DATA = np.array([-0.9, -0.4, 0.2, 0.8, 1.3], dtype=np.float32)


def assert_agrees(post, address, mean, sd, fewest=400):
    """|mean - truth| < 4.5 standard errors at an effective size of 400 and more, and the sd within 10%."""
    ess, mcse = np.asarray(post.ess(address)), np.asarray(post.mcse(address))
    assert np.all(ess >= fewest), (address, ess)
    off = (np.array(post.mean(address)) - mean) / mcse
    assert np.all(np.abs(off) < 4.5), (address, off)
    assert np.all(np.abs(np.array(post.std(address)) / sd - 1) < 0.1), address


@gen
def mixture():
    """Two normal components of unknown means, and a flip for each point."""
    low, high = trace("low", normal(-1, 1)), trace("high", normal(1, 1))
    z = trace("z", flip(0.4 * mx.ones(5)))
    trace("y", normal(mx.where(z == 1, high, low), 0.8))


def mixture_posterior():
    """By enumeration of the 32 labellings, given each of which the means are conjugate."""
    weights, lows, highs, labels = [], [], [], list(itertools.product((0, 1), repeat=5))
    for z in labels:
        z = np.array(z)
        log_weight = np.sum(np.where(z == 1, math.log(0.4), math.log(0.6)))
        moments = []
        for k, prior in ((0, -1.0), (1, 1.0)):
            y = DATA[z == k]
            covariance = 0.64 * np.eye(len(y)) + 1.0
            if len(y):
                log_weight += stats.multivariate_normal.logpdf(y, prior * np.ones(len(y)), covariance)
            precision = 1 + len(y) / 0.64
            moments.append(((prior + y.sum() / 0.64) / precision, 1 / precision))
        weights.append(math.exp(log_weight))
        lows.append(moments[0])
        highs.append(moments[1])
    weights = np.array(weights) / np.sum(weights)
    found = {}
    for name, table in (("low", np.array(lows)), ("high", np.array(highs))):
        mean = weights @ table[:, 0]
        found[name] = mean, math.sqrt(weights @ (table[:, 1] + table[:, 0] ** 2) - mean**2)
    p = weights @ np.array(labels)
    found["z"] = p, np.sqrt(p * (1 - p))
    return found


def test_a_mixture_of_two_normals():
    """Catches a sweep of stale continuous values, a density of stale labels, and a likelihood that counts twice."""
    post = hmc_gibbs(mixture(), {"y": mx.array(DATA)}, draws=250, warmup=150, chains=40, key=1)
    for address, (mean, sd) in mixture_posterior().items():
        assert_agrees(post, address, mean, sd)
    assert post.execution == "replayed" and post.algorithm == "hmc_gibbs"
    assert post["low"].shape == (40, 250) and post["z"].shape == (40, 250, 5) and post["z"].dtype == mx.int32
    trace_of = post.trace(3, 17)
    assert trace_of.score.item() == pytest.approx(post.log_joint[3, 17].item(), abs=1e-3)


@gen
def scales():
    """A scale and bounds that depend on discrete choices, and a simplex: all choices have constraints."""
    k = trace("k", categorical(mx.log(mx.array([0.5, 0.3, 0.2]))))
    s = trace("s", gamma(2.0 + k, 1.0))
    u = trace("u", uniform(-1.0, 0.0 + s))
    share = trace("share", dirichlet(mx.array([1.0, 2.0, 1.0])))
    j = trace("j", categorical(mx.log(share)))
    trace("y", normal(u + j, 0.5))


def scales_posterior(y=1.2):
    """k and s by the trapezoidal rule in log s, u in closed form; j's prior is (1, 2, 1) / 4, and then share's."""
    prior, log_s = np.array([0.5, 0.3, 0.2]), np.linspace(-12, 4, 40_001)
    s = np.exp(log_s)
    table = np.zeros((3, 3, 2))
    for k, j in itertools.product(range(3), range(3)):
        inside = stats.norm.cdf(s, y - j, 0.5) - stats.norm.cdf(-1.0, y - j, 0.5)
        density = stats.gamma.pdf(s, 2.0 + k) * s * inside / (1 + s)
        table[k, j] = [
            prior[k] * np.array([1, 2, 1])[j] / 4 * integrate.trapezoid(density * power, log_s) for power in (1, s)
        ]
    total = table[..., 0].sum()
    p_k, p_j, mean_s = table[..., 0].sum(1) / total, table[..., 0].sum(0) / total, table[..., 1].sum() / total
    shares = np.array([[1, 2, 1] + np.eye(3)[j] for j in range(3)]) / 5
    return p_k, p_j, mean_s, p_j @ shares


@pytest.mark.slow
def test_constrained_choices_whose_support_depends_on_discrete_ones():
    """Catches a Jacobian left out, or taken at the support of other labels."""
    post = hmc_gibbs(scales(), {"y": 1.2}, draws=150, warmup=100, chains=60, key=2)
    p_k, p_j, mean_s, shares = scales_posterior()
    for address, exact in (("k", p_k), ("j", p_j)):
        for value in range(3):
            is_value = np.array(post[address] == value, dtype=float)
            by_chain = is_value.mean(axis=1)
            error = by_chain.std(ddof=1) / math.sqrt(60)
            assert abs(by_chain.mean() - exact[value]) < 4.5 * error, (address, value)
    assert abs(post.mean("s").item() - mean_s) < 4.5 * post.mcse("s") and post.ess("s") > 400
    off = (np.array(post.mean("share")) - shares) / np.array(post.mcse("share"))
    assert np.all(np.abs(off) < 4.5), off
    assert mx.all(post["u"] < post["s"]).item() and mx.all(post["s"] > 0).item()
    assert mx.allclose(mx.sum(post["share"], axis=-1), mx.array(1.0), atol=1e-5).item()


@pytest.mark.parametrize("chains", [1, 3])
def test_any_number_of_chains_and_the_statistics(chains):
    calls = []
    post = hmc_gibbs(
        mixture(), {"y": mx.array(DATA)}, draws=30, warmup=60, thin=2, chains=chains, key=3, progress=calls.append
    )
    assert set(post.stats) == {"accept", "energy", "diverging", "step_size", "n_leapfrog", "changed"}
    assert all(value.shape == (chains, 30) for value in post.stats.values())
    assert {call.phase for call in calls} == {"warmup", "sampling"} and calls[-1].done == 60
    size, steps = (np.array(post.stats[name]) for name in ("step_size", "n_leapfrog"))
    assert len(set(size.ravel().tolist())) == 1, "sampling has one step size"
    assert np.all(steps == math.ceil(math.pi / 2 / size[0, 0]))
    assert 0.5 < mx.mean(post.stats["accept"]).item() < 1 and not mx.any(post.stats["diverging"]).item()
    assert 0.05 < mx.mean(post.stats["changed"]).item() < 0.6


def test_the_settings_of_a_trajectory():
    post = hmc_gibbs(mixture(), {"y": mx.array(DATA)}, draws=5, warmup=30, chains=2, leapfrog_steps=7, key=4)
    assert mx.all(post.stats["n_leapfrog"] == 7).item()
    post = hmc_gibbs(mixture(), {"y": mx.array(DATA)}, draws=60, warmup=200, chains=20, target_accept=0.95, key=4)
    assert abs(mx.mean(post.stats["accept"]).item() - 0.95) < 0.04
    short = hmc_gibbs(mixture(), {"y": mx.array(DATA)}, draws=5, warmup=60, chains=2, trajectory=0.4, key=4)
    size = short.stats["step_size"][0, 0].item()
    assert mx.all(short.stats["n_leapfrog"] == math.ceil(0.4 / size)).item()


def test_the_warm_up_finds_the_scales():
    """Scales that differ a thousandfold: without a mass matrix the wide one would take hundreds of steps."""

    @gen
    def model():
        k = trace("k", flip(0.5))
        trace("wide", normal(0.0, 100.0))
        trace("narrow", normal(0.1 * k, 0.1))

    post = hmc_gibbs(model(), draws=200, warmup=300, chains=10, key=5)
    assert_agrees(post, "wide", 0.0, 100.0)
    assert mx.mean(post.stats["n_leapfrog"]).item() < 12
    assert_agrees(post, "narrow", 0.05, math.sqrt(0.01 + 0.0025), fewest=100)


def test_the_same_key_gives_the_same_draws():
    first, again, other = (
        hmc_gibbs(mixture(), {"y": mx.array(DATA)}, draws=20, warmup=20, chains=2, key=k) for k in (7, 7, 8)
    )
    assert mx.array_equal(first["low"], again["low"]).item() and mx.array_equal(first["z"], again["z"]).item()
    assert not mx.array_equal(first["low"], other["low"]).item()


def test_what_is_not_selected_stays():
    post = hmc_gibbs(
        mixture(), {"y": mx.array(DATA)}, selection=select("low", "z"), draws=30, warmup=20, chains=5, key=6
    )
    high = np.array(post["high"])
    assert np.all(high == high[:, :1]) and len(set(high[:, 0].tolist())) == 5
    assert np.all(np.array(post["low"]).std(axis=1) > 0.05)
    assert mx.array_equal(post.trace(2, 4)["y"], mx.array(DATA)).item()


def test_every_step_is_a_step_of_the_posterior():
    """Zero warm-up of an exact draw: 6,000 chains that begin at the prior of a model without data stay there."""

    @gen
    def model():
        k = trace("k", flip(0.3))
        x = trace("x", exponential(1.0 + 2.0 * k))
        trace("j", flip(mx.exp(-x)))

    post = hmc_gibbs(model(), draws=2, warmup=0, chains=6000, leapfrog_steps=3, key=9)
    last = {a: np.array(post[a])[:, -1] for a in "kxj"}
    k, j = last["k"] == 1, last["j"] == 1
    rate, n = np.where(k, 3.0, 1.0), 6000
    assert abs(k.mean() - 0.3) < 4.5 * math.sqrt(0.21 / n)
    p_j = 0.3 * 3 / 4 + 0.7 * 1 / 2  # E exp(-x) = rate / (1 + rate)
    assert abs(j.mean() - p_j) < 4.5 * math.sqrt(p_j * (1 - p_j) / n)
    assert abs((last["x"] * rate).mean() - 1) < 4.5 / math.sqrt(n)
    assert abs((last["x"] * j).mean() - (0.3 * 3 / 16 + 0.7 / 4)) < 4.5 * (last["x"] * j).std() / math.sqrt(n)


LABELS, TRUTH = 150, np.array([-3.0, 0.0, 4.0])


@gen
def many_by_array():
    mu = trace("mu", normal(mx.array(TRUTH), 0.5))
    z = trace("z", categorical(mx.zeros((LABELS, 3))))
    trace("y", normal(mu[z], 0.7))


@gen
def many_by_vmap():
    mu = trace("mu", normal(mx.array(TRUTH), 0.5))
    trace("in", vmap(labelled, in_axes=(None, 0))(mu, mx.zeros(LABELS)))


@gen
def labelled(mu, _):
    z = trace("z", categorical(mx.zeros(3)))
    trace("y", normal(mu[z], 0.7))


@pytest.mark.parametrize("model, y", [(many_by_array, "y"), (many_by_vmap, ("in", "y"))], ids=["array", "vmap"])
def test_a_mixture_of_150_points(model, y):
    """The labels are swept at once; the means, which are well apart, have a posterior by a sum over labels."""
    rng = np.random.default_rng(1)
    data = (TRUTH[rng.integers(0, 3, LABELS)] + 0.7 * rng.normal(size=LABELS)).astype(np.float32)
    post = hmc_gibbs(model(), {y: mx.array(data)}, draws=150, warmup=150, chains=8, key=1)

    def log_density(mu):
        each = stats.norm.logpdf(data[:, None], mu, 0.7) - math.log(3)
        return stats.norm.logpdf(mu, TRUTH, 0.5).sum() + np.logaddexp.reduce(each, axis=1).sum()

    side = [np.linspace(t - 0.6, t + 0.6, 31) for t in TRUTH]
    table = np.array([log_density(np.array(mu)) for mu in itertools.product(*side)]).reshape(31, 31, 31)
    weights = np.exp(table - table.max())
    for i in range(3):
        along = weights.sum(axis=tuple(j for j in range(3) if j != i))
        mean = (along * side[i]).sum() / along.sum()
        off = (post.mean("mu")[i].item() - mean) / np.array(post.mcse("mu"))[i]
        assert abs(off) < 4.5, (i, off)
    assert np.all(np.array(post.ess("mu")) > 400)


def test_labels_of_map_over():
    @gen
    def model():
        mu = trace("mu", normal(mx.array([-2.0, 2.0]), 1.0))
        trace("in", map_over(two)([mu] * 5))

    @gen
    def two(mu):
        z = trace("z", flip(0.4))
        trace("y", normal(mx.take(mu, z), 0.8))

    observations = {("in", i, "y"): float(y) for i, y in enumerate(DATA)}
    post = hmc_gibbs(model(), observations, draws=120, warmup=100, chains=20, key=1)

    @gen
    def same():
        mu = trace("mu", normal(mx.array([-2.0, 2.0]), 1.0))
        z = trace("z", flip(0.4 * mx.ones(5)))
        trace("y", normal(mu[z], 0.8))

    other = hmc_gibbs(same(), {"y": mx.array(DATA)}, draws=120, warmup=100, chains=20, key=2)
    error = np.hypot(np.array(post.mcse("mu")), np.array(other.mcse("mu")))
    assert np.all(np.abs(np.array(post.mean("mu") - other.mean("mu"))) < 4.5 * error)


@pytest.mark.parametrize("phase", ["warmup", "sampling"])
def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(tmp_path, monkeypatch, phase):
    """Bit for bit. Catches a forgotten metric, a dual averaging that starts over, and a second first sweep."""
    monkeypatch.setattr(checkpoint_module, "_SHARE", 1e9)  # write after every block

    class Stopped(Exception):
        pass

    def stop(at):
        if at.phase == phase and at.done >= 25:
            raise Stopped

    settings: Any = {"draws": 60, "warmup": 60, "chains": 3, "key": 1, "checkpoint": tmp_path / "run"}
    with pytest.raises(Stopped):
        hmc_gibbs(mixture(), {"y": mx.array(DATA)}, progress=stop, **settings)
    seen = []
    post = hmc_gibbs(mixture(), {"y": mx.array(DATA)}, progress=seen.append, **settings)
    assert seen[0].phase == phase and seen[0].done > 7, "it began anew"
    whole = hmc_gibbs(mixture(), {"y": mx.array(DATA)}, **{**settings, "checkpoint": None})
    for address in post.addresses():
        assert mx.array_equal(post[address], whole[address]).item()
    assert all(mx.array_equal(post.stats[name], whole.stats[name]).item() for name in whole.stats)
    with pytest.raises(GenError, match="trajectory"):
        hmc_gibbs(mixture(), {"y": mx.array(DATA)}, trajectory=1.0, **settings)


# errors


@gen
def continuous():
    trace("y", normal(trace("x", normal(0, 1)), 1.0))


@gen
def discrete():
    trace("y", normal(1.0 * trace("k", flip(0.5)), 1.0))


def test_half_a_model_raises_and_says_what_is_for_it():
    with pytest.raises(UsageError, match="(?s)hmc_gibbs has no discrete choice to move.*nuts or hmc"):
        hmc_gibbs(continuous(), {"y": 1.0})
    with pytest.raises(UsageError, match="(?s)hmc_gibbs has no continuous choice to move.*gibbs"):
        hmc_gibbs(discrete(), {"y": 1.0})
    with pytest.raises(UsageError, match="no discrete choice"):
        hmc_gibbs(mixture(), {"y": mx.array(DATA)}, selection="low")


def test_gradient_samplers_point_here():
    for run in (nuts, hmc, LogDensity):
        with pytest.raises(UsageError, match="(?s)a latent choice is discrete.*try: hmc_gibbs"):
            run(discrete(), {"y": 1.0})


def test_bad_input():
    observations = {"y": mx.array(DATA)}
    for wrong in ({"chains": 0}, {"draws": 0}, {"warmup": -1}, {"thin": 0}, {"leapfrog_steps": 0}, {"trajectory": 0.0}):
        with pytest.raises(ParameterError):
            hmc_gibbs(mixture(), observations, **wrong)
    with pytest.raises(ParameterError, match="target_accept"):
        hmc_gibbs(mixture(), observations, target_accept=1.0)
    with pytest.raises(UsageError, match="hmc_gibbs was given leapfrog_steps and a trajectory"):
        hmc_gibbs(mixture(), observations, leapfrog_steps=2, trajectory=1.0)
    with pytest.raises(UsageError, match="observed"):
        hmc_gibbs(mixture(), observations, selection=select("y", "z"))
    with pytest.raises(UsageError, match="not a call"):
        hmc_gibbs(mixture, observations)

    @gen
    def counts():
        trace("y", normal(trace("n", poisson(3.0)) * trace("x", normal(0, 1)), 1.0))

    with pytest.raises(UsageError, match="(?s)too many values.*'n'"):
        hmc_gibbs(counts(), {"y": 1.0})

    @gen
    def branching():
        x = trace("x", normal(0, 1))
        trace("y", normal(x if trace("k", flip(0.5)).item() else -x, 1.0))

    with pytest.raises(BatchError, match="(?s)cannot be batched"):
        hmc_gibbs(branching(), {"y": 1.0})
    with pytest.raises(GenError):
        hmc_gibbs(mixture(), {"y": mx.full((5,), math.nan)})
