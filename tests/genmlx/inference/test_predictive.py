"""Posterior prediction against closed forms, and pointwise log densities against scipy and ``project``."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

import genmlx
from genmlx import (
    choicemap,
    flip,
    gen,
    map_over,
    mask,
    mh,
    multivariate_normal,
    normal,
    poisson,
    scan,
    select,
    switch,
    trace,
    unfold,
    vmap,
)
from genmlx.errors import MissingChoice, UnknownAddress, UsageError
from genmlx.inference import Posterior, log_likelihood, predictive
from genmlx.masked import Masked, value_of

OBSERVED = {("y", 0): 1.0, ("y", 1): 2.0}
NOISE = 0.5
VARIANCE = 1 / (1 + 2 / NOISE**2)
MEAN = VARIANCE * 3.0 / NOISE**2


@gen
def conjugate(n):
    mu = trace("mu", normal(0, 1))
    for i in range(n):
        trace(("y", i), normal(mu, NOISE))


def exact_posterior(chains=40, draws=500, seed=0) -> Posterior:
    """Independent draws from the posterior, which is normal."""
    mu = np.random.default_rng(seed).normal(MEAN, math.sqrt(VARIANCE), size=(chains, draws)).astype(np.float32)
    return Posterior(
        {("mu",): mx.array(mu)},
        stats={},
        log_joint=mx.zeros((chains, draws)),
        call=conjugate(2),
        observations=choicemap(OBSERVED),
    )


@pytest.fixture(scope="module")
def post() -> Posterior:
    return exact_posterior()


def test_the_posterior_predictive_of_a_conjugate_normal(post):
    """Variance of posterior plus noise. Catches draws from the prior, and values that were held at the data."""
    new = predictive(conjugate(2), post, key=1)
    assert new.addresses() == [("y", 0), ("y", 1)] and new["y", 0].shape == (40, 500)
    n, variance = 20_000, VARIANCE + NOISE**2
    for i in range(2):
        y = np.array(new["y", i], dtype=float).ravel()
        assert abs(y.mean() - MEAN) < 4.5 * math.sqrt(variance / n)
        assert abs(y.var() / variance - 1) < 4.5 * math.sqrt(2 / n)
        # Each value belongs to its own draw, at the same place: what is left is the noise.
        residual = y - np.array(post["mu"], dtype=float).ravel()
        assert abs(residual.var() / NOISE**2 - 1) < 4.5 * math.sqrt(2 / n)
        assert abs(np.corrcoef(residual, np.array(post["mu"]).ravel())[0, 1]) < 4.5 / math.sqrt(n)
    both = np.corrcoef(*[np.array(new["y", i]).ravel() for i in range(2)])[0, 1]
    assert both == pytest.approx(VARIANCE / variance, abs=4.5 / math.sqrt(n))


def test_other_arguments(post):
    """Whatever the new call visits and the posterior does not have is drawn; dropped observations are no error."""
    new = predictive(conjugate(5), post, key=1)
    assert new.addresses() == [("y", i) for i in range(5)]
    assert predictive(conjugate(1), post, key=1).addresses() == [("y", 0)]


def test_named_addresses_and_what_stays():
    """In a chain of observations the second depends on the first, which stays at its datum when it is not named."""

    @gen
    def walk():
        x = trace("a", normal(0, 1)) * 0.0
        for t in range(3):
            x = trace(("y", t), normal(x, 0.1))

    data = {("y", 0): 10.0, ("y", 1): 20.0, ("y", 2): 30.0}
    draws = Posterior(
        {("a",): mx.zeros((4, 50))}, stats={}, log_joint=mx.zeros((4, 50)), observations=choicemap(data)
    )
    for named in (("y", 1), [("y", 1)], select(("y", 1))):
        new = predictive(walk(), draws, named, key=1)
        assert new.addresses() == [("y", 1)]
        assert abs(new.mean(("y", 1)).item() - 10.0) < 4.5 * 0.1 / math.sqrt(200)
    everything = predictive(walk(), draws, "y", key=1)
    assert len(everything.addresses()) == 3 and abs(everything.mean(("y", 2)).item()) < 0.1
    latent = predictive(walk(), draws, "a", key=1)
    assert latent.addresses() == [("a",)] and abs(latent.std("a").item() - 1) < 0.25
    with pytest.raises(UnknownAddress, match="'b'"):
        predictive(walk(), draws, "b")


def test_named_addresses_that_only_the_longer_call_has():
    """mu given one y = 1.5 is N(1.2, 0.2), so a next y is N(1.2, 0.45); what is not named is drawn, and left out."""

    @gen
    def growing(n):
        mu = trace("mu", normal(0, 1))
        for i in range(n):
            trace(("y", i), normal(mu, 0.5))

    post = mh(growing(1), {("y", 0): 1.5}, draws=2000, chains=4, key=mx.random.key(0))
    new = predictive(growing(3), post, [("y", 2)], key=mx.random.key(1))
    assert new.addresses() == [("y", 2)] and new["y", 2].shape == (4, 2000)
    error = math.sqrt(0.2 * 8000 / post.ess("mu") + 0.25) / math.sqrt(8000)
    assert abs(new.mean(("y", 2)).item() - 1.2) < 4.5 * error
    assert abs(new.std(("y", 2)).item() - math.sqrt(0.45)) < 0.05
    with pytest.raises(UnknownAddress) as raised:
        predictive(growing(3), post, [("y", 3)])
    assert "('y', 2)" in str(raised.value)
    with pytest.raises(UnknownAddress):
        log_likelihood(growing(3), post, [("y", 2)])


def test_keys(post):
    runs = [predictive(conjugate(2), post, key=k)["y", 0] for k in (1, 1, 2)]
    assert mx.array_equal(runs[0], runs[1]).item() and not mx.any(runs[0] == runs[2]).item()
    assert len(set(np.array(runs[0]).ravel().tolist())) > 19_900, "blocks or chains that share noise"


def test_a_posterior_of_another_model(post):
    @gen
    def other():
        trace("nu", normal(0, 1))

    with pytest.raises(UnknownAddress, match="'mu'"):
        predictive(other(), post)
    assert predictive(other(), post, strict=False, key=1).addresses() == [("nu",)]
    with pytest.raises(MissingChoice, match="'nu'"):
        log_likelihood(other(), post)
    with pytest.raises(UsageError, match="not a call"):
        predictive(conjugate, post)


# log likelihood


def test_log_likelihood_of_a_conjugate_normal(post):
    found = log_likelihood(conjugate(2), post)
    for i, y in enumerate((1.0, 2.0)):
        expected = stats.norm.logpdf(y, np.array(post["mu"], dtype=float), NOISE)
        assert np.allclose(np.array(found["y", i]), expected, atol=1e-5)
    only = log_likelihood(conjugate(2), post, ("y", 1))
    assert only.addresses() == [("y", 1)] and mx.array_equal(only["y", 1], found["y", 1]).item()
    assert log_likelihood(conjugate(2), post, "mu")["mu"].shape == (40, 500)
    with pytest.raises(UsageError, match="no observations"):
        log_likelihood(conjugate(2), Posterior({("mu",): post["mu"]}, stats={}, log_joint=post.log_joint))
    with pytest.raises(UnknownAddress, match="'nu'"):
        log_likelihood(conjugate(2), post, "nu")


def test_the_widely_applicable_information_criterion(post):
    """lppd of a conjugate normal in closed form: the log density of each datum under its posterior predictive."""
    found = log_likelihood(conjugate(2), post)
    lppd = [np.log(np.mean(np.exp(np.array(found["y", i], dtype=float)))) for i in range(2)]
    expected = stats.norm.logpdf([1.0, 2.0], MEAN, math.sqrt(VARIANCE + NOISE**2))
    assert np.allclose(lppd, expected, atol=0.02)
    penalty = sum(np.array(found["y", i], dtype=float).var() for i in range(2))
    # Var of (y - mu)^2 / 2s^2 under mu ~ N(m, v): (v^2 / 2 + v (y - m)^2) / s^4
    exact = sum((VARIANCE**2 / 2 + VARIANCE * (y - MEAN) ** 2) / NOISE**4 for y in (1.0, 2.0))
    assert penalty == pytest.approx(exact, rel=0.05)


@gen
def row(mu, x):
    return trace("y", normal(mu * x, 1.0))


@gen
def step(t, state, mu):
    return trace("y", normal(state + mu, 1.0))


@gen
def carry(total, x):
    total = total + trace("y", normal(x, 1.0))
    return total, total


@gen
def near(mu):
    trace("y", normal(mu, 1.0))


@gen
def far(mu):
    trace("y", normal(mu, 10.0))


@gen
def arrays():
    mu = trace("mu", normal(mx.zeros(2), 1))
    trace("v", normal(mu, mx.array([[1.0], [2.0], [3.0]])))
    trace("e", multivariate_normal(mx.stack([mu, 2 * mu]), mx.eye(2)))
    trace("n", poisson(mx.exp(mu)))


@gen
def mapped(n):
    mu = trace("mu", normal(0, 1))
    trace("rows", map_over(row)([mu] * n, [0.1 * i for i in range(n)]))


@gen
def vmapped():
    trace("rows", vmap(row, in_axes=(None, 0))(trace("mu", normal(0, 1)), mx.arange(4) * 0.5))


@gen
def nested():
    inner = vmap(vmap(row, in_axes=(None, 0)), in_axes=(0, None))
    trace("rows", inner(trace("mu", normal(mx.zeros(2), 1)), mx.arange(3) * 0.5))


@gen
def unfolded(n):
    trace("chain", unfold(step)(n, 0.0, trace("mu", normal(0, 1))))


@gen
def scanned(n):
    mu = trace("mu", normal(0, 1))
    trace("chain", scan(carry)(mu, mx.arange(n) * 0.1))


@gen
def switched():
    trace("s", switch(near, far)(trace("k", flip(0.5)), trace("mu", normal(0, 1))))


@gen
def masked():
    trace("s", mask(near)(trace("k", flip(0.5)), trace("mu", normal(0, 1))))
    trace("z", normal(0, 1))


def _steps(name, n):
    return {(name, t, "y"): 0.3 * t - 1 for t in range(n)}


def some_draws(call, observations) -> Posterior:
    """3 chains of 6 draws: of the prior, since nothing here depends on where draws come from."""
    traces, _ = call.vgenerate(observations, 18, key=mx.random.key(2))
    leaves = {a: leaf for a, leaf in traces.choices.items() if a not in choicemap(observations)}
    return Posterior(
        {a: value_of(leaf).reshape(3, 6, *value_of(leaf).shape[1:]) for a, leaf in leaves.items()},
        present={a: leaf.active.reshape(3, 6) for a, leaf in leaves.items() if isinstance(leaf, Masked)},
        stats={},
        log_joint=traces.score.reshape(3, 6),
        call=call,
        observations=choicemap(observations),
    )


MODELS = {
    "arrays": (arrays(), {"v": [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]], "e": [[1.0, 2.0], [0.0, -1.0]], "n": [3, 0]}),
    "map_over": (mapped(4), _steps("rows", 4)),
    "map_over, as a whole": (mapped(40), _steps("rows", 40)),
    "vmap": (vmapped(), {("rows", "y"): [1.0, 2.0, 3.0, 4.0]}),
    "vmap of vmap": (nested(), {("rows", "y"): [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}),
    "unfold": (unfolded(3), _steps("chain", 3)),
    "unfold, as a whole": (unfolded(40), _steps("chain", 40)),
    "scan": (scanned(40), _steps("chain", 40)),
    "switch": (switched(), {("s", "y"): 1.5}),
}


@pytest.mark.parametrize("name", MODELS)
def test_pointwise_densities_add_up_to_project(name):
    """For each observation: its elements sum to ``project`` of its address. Catches values in the wrong lane or row."""
    call, observations = MODELS[name]
    post = some_draws(call, observations)
    found = log_likelihood(call, post)
    assert set(found.addresses()) == set(post.observations)
    events = {"e": (2,), **{a: mx.array(v).shape for a, v in observations.items() if a != "e"}}
    for chain, draw in ((0, 0), (1, 4), (2, 5)):
        tr = post.trace(chain, draw)
        for address in observations:
            terms = found[address]
            assert terms.shape == (3, 6, *events[address])
            expected = tr.project(select(address)).item()
            assert mx.sum(terms[chain, draw]).item() == pytest.approx(expected, abs=2e-4), address
        assert found.log_joint[chain, draw].item() == pytest.approx(tr.score.item(), rel=1e-4, abs=1e-3)
    assert found.execution == "batched"


def test_elements_of_arrays():
    call, observations = MODELS["arrays"]
    post = some_draws(call, observations)
    found, mu = log_likelihood(call, post), np.array(post["mu"], dtype=float)
    v = stats.norm.logpdf(np.array(observations["v"]), mu[:, :, None], np.array([[1.0], [2.0], [3.0]]))
    assert np.allclose(np.array(found["v"]), v, atol=1e-4)
    assert np.allclose(np.array(found["n"]), stats.poisson.logpmf([3, 0], np.exp(mu)), atol=1e-4)
    first = stats.norm.logpdf([1.0, 2.0], mu).sum(axis=-1)
    assert np.allclose(np.array(found["e"])[..., 0], first, atol=1e-4), "one density for an event, not one an element"


@pytest.mark.parametrize("name", MODELS)
def test_predictions_have_the_shapes_of_the_observations(name):
    call, observations = MODELS[name]
    post = some_draws(call, observations)
    new = predictive(call, post, key=1)
    assert set(new.addresses()) == set(post.observations)
    for address, value in observations.items():
        assert new[address].shape == (3, 6, *mx.array(value).shape)
        assert len(set(np.array(new[address]).ravel().tolist())) > 3


def test_choices_that_some_draws_lack():
    """A mask in a batch: the draws without the observation's site are NaN, as in a posterior."""
    post = some_draws(masked(), {"z": 0.5})
    new = predictive(masked(), post, ("s", "y"), key=1)
    active = np.array(post["k"]) == 1
    assert np.array_equal(np.array(new.has(("s", "y"))), active) and 0 < active.mean() < 1
    assert np.array_equal(np.isnan(np.array(new["s", "y"])), ~active)


@pytest.mark.parametrize("lanes", [1, 7, 1024])
def test_blocks(monkeypatch, post, lanes):
    """Draws are found at their places whatever the size of a batch, and the last is not full."""
    import sys

    monkeypatch.setattr(sys.modules["genmlx.inference.predictive"], "_LANES", lanes)
    few = Posterior(
        {("mu",): post["mu"][:3, :11]},
        stats={},
        log_joint=post.log_joint[:3, :11],
        observations=post.observations,
    )
    found = log_likelihood(conjugate(2), few)
    assert np.allclose(np.array(found["y", 1]), stats.norm.logpdf(2.0, np.array(few["mu"]), NOISE), atol=1e-5)
    new = predictive(conjugate(2), few, key=1)["y", 0]
    assert new.shape == (3, 11) and len(set(np.array(new).ravel().tolist())) == 33


def test_a_model_that_branches():
    """One draw at a time, and it says so."""

    @gen
    def branching():
        if trace("k", flip(0.5)).item():
            trace("y", normal(trace("b", normal(0, 1)), 1.0))
        else:
            trace("y", normal(5.0, 1.0))

    post = mh(branching(), {"y": 2.0}, draws=60, key=1)
    found, new = log_likelihood(branching(), post), predictive(branching(), post, key=1)
    has = np.array(post.has("b"))
    b = np.where(has, np.nan_to_num(np.array(post["b"], dtype=float)), 5.0)
    assert 0 < has.mean() < 1 and np.allclose(np.array(found["y"]), stats.norm.logpdf(2.0, b, 1.0), atol=1e-5)
    assert new["y"].shape == (1, 60) and np.array(new["y"])[~has].mean() > 4
    assert "one draw at a time" in new.execution and "one draw at a time" in found.execution


def test_a_model_without_latent_choices():
    @gen
    def known():
        trace("y", normal(1.0, 2.0))

    nothing = Posterior({}, stats={}, log_joint=mx.zeros((2, 3)), observations=choicemap({"y": 0.0}))
    assert predictive(known(), nothing, key=1)["y"].shape == (2, 3)
    expected = stats.norm.logpdf(0.0, 1.0, 2.0)
    assert np.allclose(np.array(log_likelihood(known(), nothing)["y"]), expected, atol=1e-6)
    assert genmlx.predictive is predictive
