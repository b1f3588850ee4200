"""Gibbs sampling: exact discrete posteriors, supports found from the distributions, and what cannot be enumerated."""

import itertools

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx import binomial, categorical, discrete_uniform, flip, gen, normal, poisson, select, splice, trace, vmap
from genmlx.errors import UsageError
from genmlx.inference.gibbs import gibbs


def assert_counts_agree(draws, exact):
    """Chi-squared of nearly independent draws, rows of values, on their exact probabilities."""
    keys, found = list(exact), {}
    for row in draws:
        found[tuple(row)] = found.get(tuple(row), 0) + 1
    assert set(found) <= set(keys)
    probabilities = np.array([exact[k] for k in keys])
    expected = probabilities / probabilities.sum() * len(draws)
    rare = expected < 5
    observed = np.array([found.get(k, 0) for k in keys])
    groups = [np.append(part[~rare], part[rare].sum()) if rare.any() else part for part in (observed, expected)]
    assert stats.chisquare(*groups).pvalue > 1e-4, (observed, expected)


@gen
def coins():
    a = trace("a", flip(0.3))
    b = trace("b", flip(0.2 + 0.5 * a))
    k = trace("k", categorical(mx.log(mx.array([0.2, 0.3, 0.5]))))
    trace("y", normal(a + 0.5 * b + 0.7 * k, 0.8))


def test_a_joint_posterior():
    """Catches a conditional that leaves out a prior or a child, and a key shared between sites."""
    exact = {
        (a, b, k): np.exp(coins().assess({"a": a, "b": b, "k": k, "y": 1.2}).score.item())
        for a, b, k in itertools.product((0, 1), (0, 1), (0, 1, 2))
    }
    post = gibbs(coins(), {"y": 1.2}, draws=3, thin=10, warmup=20, chains=700, key=1)
    draws = np.stack([np.array(post[name]).reshape(-1) for name in "abk"], axis=1).tolist()
    assert_counts_agree(draws, exact)
    assert post["k"].dtype == mx.int32 and post.execution == "replayed"
    assert 0.1 < mx.mean(post.stats["changed"]).item() < 0.9


def test_every_element_of_an_array_is_drawn_by_itself():
    @gen
    def model():
        z = trace("z", categorical(mx.zeros((3, 3))))
        trace("y", normal(1.0 * z, 1.0))
        trace("total", normal(mx.sum(z) * 1.0, 0.5))

    data = {"y": mx.array([0.0, 1.0, 2.5]), "total": 2.0}
    exact = {
        z: np.exp(model().assess({"z": mx.array(z), **data}).score.item())
        for z in itertools.product(range(3), repeat=3)
    }
    post = gibbs(model(), data, draws=2, thin=10, warmup=20, chains=800, key=2)
    assert_counts_agree(np.array(post["z"]).reshape(-1, 3).tolist(), exact)


def test_supports_are_found_wherever_a_choice_is_made():
    """In nested models, splices and elements of vmap; with bounds of other kinds."""

    @gen
    def inner():
        return trace("n", discrete_uniform(2, 4))

    @gen
    def spliced():
        return trace("s", binomial(3, 0.4))

    @gen
    def kernel(p):
        return trace("f", flip(p))

    @gen
    def model():
        n, s = trace("in", inner()), splice(spliced())
        f = trace("many", vmap(kernel)(mx.array([0.2, 0.5])))
        trace("y", normal((n + s + mx.sum(f)) * 1.0, 1.0))

    exact = {}
    for n, s, f, g in itertools.product((2, 3, 4), range(4), (0, 1), (0, 1)):
        choices = {("in", "n"): n, "s": s, ("many", "f"): mx.array([f, g]), "y": 4.5}
        exact[n, s, f, g] = np.exp(model().assess(choices).score.item())
    post = gibbs(model(), {"y": 4.5}, draws=2, thin=8, warmup=15, chains=800, key=3)
    columns = [np.array(post["in", "n"]), np.array(post["s"]), *np.moveaxis(np.array(post["many", "f"]), -1, 0)]
    assert_counts_agree(np.stack([c.reshape(-1) for c in columns], axis=1).tolist(), exact)


@gen
def mixture():
    mu = trace("mu", normal(0, 1))
    trace("y", normal(mu + 2.0 * trace("k", flip(0.5)), 1.0))


def test_a_selection_moves_alone():
    post = gibbs(mixture(), {"y": 1.0}, selection="k", draws=30, warmup=0, chains=3, key=4)
    assert all(len(set(row)) == 1 for row in post["mu"].tolist())
    assert len(set(post["k"].reshape(-1).tolist())) == 2


@pytest.mark.parametrize(
    "site, why",
    [
        (lambda: poisson(3.0), "too many values to try"),
        (lambda: normal(0, 1), "continuous"),
        (lambda: binomial(100_000, 0.5), "too many values to try"),
    ],
    ids=["poisson", "normal", "binomial"],
)
def test_what_cannot_be_enumerated_raises_and_names_the_choice(site, why):
    @gen
    def model():
        trace("y", normal(trace("n", site()) * 1.0, 1.0))

    with pytest.raises(UsageError, match=f"(?s){why}.*'n'.*selection"):
        gibbs(model(), {"y": 1.0})


def test_a_support_that_depends_on_other_choices_raises():
    @gen
    def model():
        trace("y", normal(trace("n", discrete_uniform(0, trace("top", discrete_uniform(1, 5)))) * 1.0, 1.0))

    with pytest.raises(UsageError, match="(?s)depends on other choices.*'n'"):
        gibbs(model(), {"y": 1.0})


def test_an_observation_cannot_be_selected():
    """Defect 9."""
    with pytest.raises(UsageError, match="observed"):
        gibbs(mixture(), {"y": 1.0}, selection=select("y"))
