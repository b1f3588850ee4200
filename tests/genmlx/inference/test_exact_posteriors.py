"""Conjugate posteriors, and a Gaussian of condition number ten thousand, by the samplers whose own tests lack them.

The conjugate pairs are also in test_nuts, test_hmc and test_mala (with the random walk), the Gaussian in test_nuts.
"""

import mlx.core as mx
import numpy as np
import pytest
from posteriors import (
    ALPHA,
    CONJUGATE_DATA,
    CONJUGATE_POSTERIOR,
    assert_agrees,
    assert_agrees_with_conjugates,
    conjugates,
)
from scipy import stats

from genmlx import (
    beta,
    binomial,
    categorical,
    dirichlet,
    elliptical_slice,
    gamma,
    gen,
    gibbs,
    hmc,
    involutive_mh,
    mala,
    mh,
    multivariate_normal,
    normal,
    poisson,
    random_walk,
    trace,
)
from genmlx.diagnostics import ess, mcse
from genmlx.inference import chain, mh_kernel, run_kernel
from genmlx.transform import is_involution, transform

# conjugate pairs


@gen
def nearby(tr):
    """Not symmetric in any of the four: without the density of the way back, all are wrong."""
    trace("mu", normal(0.9 * tr["mu"], 0.35))
    trace("p", beta(1 + 25 * tr["p"], 1 + 25 * (1 - tr["p"])))
    trace("rate", gamma(8.0, 8.0 / tr["rate"]))
    trace("theta", dirichlet(1 + 12 * tr["theta"]))


def test_conjugate_posteriors_by_metropolis_hastings():
    post = mh(conjugates(), CONJUGATE_DATA, proposal=nearby, draws=300, warmup=100, chains=200, key=1)
    assert_agrees_with_conjugates(post)


def test_conjugate_posteriors_by_draws_from_the_prior():
    """One pair after the other: all at once would hardly ever be accepted."""
    start, _ = conjugates().vgenerate(CONJUGATE_DATA, 200, key=mx.random.key(2))
    kernel = chain(*map(mh_kernel, CONJUGATE_POSTERIOR))
    assert_agrees_with_conjugates(run_kernel(kernel, start, draws=150, warmup=50, observations=CONJUGATE_DATA, key=3))


@gen
def steps(tr):
    trace("walk", normal(0, 0.4))
    trace("log_odds", normal(0, 0.6))
    trace("log_c", normal(0, 0.4))
    trace("given", normal(mx.zeros(2), 0.15))


@is_involution
@transform
def moved(old, new):
    """A shift, one of log odds, a factor, and shares that are given from one to the next."""
    walk, log_odds, log_c, given = (old.aux[name] for name in ("walk", "log_odds", "log_c", "given"))
    p = old["p"]
    new["mu"], new["rate"] = old["mu"] + walk, old["rate"] * mx.exp(log_c)
    new["p"] = mx.sigmoid(mx.log(p) - mx.log(1 - p) + log_odds)
    new["theta"] = old["theta"] + mx.stack([given[0], given[1] - given[0], -given[1]])
    for name, value in (("walk", walk), ("log_odds", log_odds), ("log_c", log_c), ("given", given)):
        new.aux[name] = -value


def test_conjugate_posteriors_by_an_involution():
    post = involutive_mh(conjugates(), CONJUGATE_DATA, steps, moved, draws=400, warmup=100, chains=200, key=4)
    assert_agrees_with_conjugates(post)


def test_the_conjugate_normal_by_elliptical_slices(way):
    """The other pairs have priors that are not Gaussian, which this sampler refuses."""

    @gen
    def model():
        trace("x", normal(trace("mu", normal(0, 1)) * mx.ones(10), 1.0))

    post = elliptical_slice(model(), {"x": CONJUGATE_DATA["x"]}, draws=60, warmup=20, chains=60, key=5)
    assert_agrees(post, "mu", *CONJUGATE_POSTERIOR["mu"])


def midpoints(low, high, count):
    return low + (np.arange(count) + 0.5) * (high - low) / count


def triangles(side):
    """The centres of the triangles into which the simplex is cut, ``side`` of them along each edge."""
    found = []
    for fewer, inside in ((1, 1 / 3), (2, 2 / 3)):  # those that point up, and those that point down
        last = side - fewer
        found += [(i + inside, j + inside, last - i - j + inside) for i in range(last + 1) for j in range(last + 1 - i)]
    return np.array(found) / side


MU, P, RATE, THETA = midpoints(-4, 4, 160), midpoints(0, 1, 160), midpoints(0, 14, 280), triangles(30)
GRIDS = {"mu": MU, "p": P, "rate": RATE, "theta": THETA}


@gen
def on_grids():
    """The conjugate pairs with parameters on grids: continuous choices are none that Gibbs sweeps can enumerate."""
    log_priors = {
        "mu": stats.norm.logpdf(MU),
        "p": np.zeros(len(P)),
        "rate": stats.gamma.logpdf(RATE, 2),
        "theta": np.zeros(len(THETA)),
    }
    value = {}
    for name, grid in GRIDS.items():
        which = trace(name, categorical(mx.array(log_priors[name].astype(np.float32))))
        value[name] = mx.take(mx.array(grid.astype(np.float32)), which, axis=0)
    trace("x", normal(value["mu"] * mx.ones(10), 1.0))
    trace("k", binomial(20, value["p"]))
    trace("n", poisson(value["rate"] * mx.ones(2)))
    for i in range(3):
        trace(("c", i), categorical(mx.log(value["theta"])))


def test_conjugate_posteriors_by_gibbs_sweeps_over_grids():
    """An effective size of 3,000 has errors ten times as large as what the grids lose."""
    post = gibbs(on_grids(), CONJUGATE_DATA, draws=30, warmup=5, chains=100, key=6)
    for name, grid in GRIDS.items():
        draws = grid[np.array(post[name])].reshape(100, 30, -1)
        mean, sd = (np.reshape(number, -1) for number in CONJUGATE_POSTERIOR[name])
        for i in range(draws.shape[2]):
            assert_agrees_with(draws[..., i], mean[i], sd[i], name)


def assert_agrees_with(x, mean, sd, name):
    size, error = ess(x), mcse(x)
    assert size >= 400, (name, size)
    assert abs(x.mean() - mean) < 4.5 * error, (name, (x.mean() - mean) / error)
    assert abs(x.std() / sd - 1) < 0.1, (name, x.std() / sd)


def test_what_grids_lose():
    """Quadrature over the grids, against the closed forms."""
    for name, log_like in {
        "mu": stats.norm.logpdf(0.5, MU) * 10 + stats.norm.logpdf(MU),
        "p": stats.binom.logpmf(14, 20, P),
        "rate": stats.poisson.logpmf(3, RATE) + stats.poisson.logpmf(5, RATE) + stats.gamma.logpdf(RATE, 2),
        "theta": np.log(THETA) @ (ALPHA - 1),
    }.items():
        weight = np.exp(log_like - log_like.max())
        weight = weight / weight.sum()
        mean, sd = CONJUGATE_POSTERIOR[name]
        found = weight @ GRIDS[name]
        assert np.all(np.abs(found - mean) < 0.0005), name
        assert np.allclose(np.sqrt(weight @ (GRIDS[name] - found) ** 2), sd, rtol=0.01), name


# a Gaussian ridge: standard deviations 1, 0.3 and 0.01 along axes of no coordinate

AXES, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
SCALES, CENTER = np.sqrt([1.0, 0.1, 1e-4]), np.array([1.0, -1.0, 0.5])
RIDGE = AXES @ np.diag(SCALES**2) @ AXES.T
# The posterior has the precision of the prior, 1/4, and that of the data.
OF_DATA = np.linalg.inv(np.linalg.inv(RIDGE) - 0.25 * np.eye(3))
SEEN = mx.array((OF_DATA @ np.linalg.inv(RIDGE) @ CENTER).astype(np.float32))


def single(array):
    return mx.array(np.asarray(array).astype(np.float32))


@gen
def ridge():
    trace("y", multivariate_normal(trace("v", normal(mx.zeros(3), 2.0)), single(OF_DATA)))


@gen
def along(tr):
    trace("v", multivariate_normal(tr["v"], single(RIDGE)))


@gen
def noise(tr):
    trace("z", normal(mx.zeros(3), 1.0))


@is_involution
@transform
def shifted(old, new):
    z = old.aux["z"]
    new["v"], new.aux["z"] = old["v"] + single(np.linalg.cholesky(RIDGE)) @ z, -z


def assert_agrees_along_the_axes(post):
    """In each of them the draws have the mean 0 and the standard deviation 1."""
    found = (np.array(post["v"]).astype(float) - CENTER) @ AXES / SCALES
    for i in range(3):
        assert_agrees_with(found[..., i], 0.0, 1.0, f"axis {i}")


RIDGE_WALKERS = {
    "hmc": lambda call, data: hmc(call, data, leapfrog_steps=6, dense=True, draws=40, warmup=150, chains=50, key=1),
    "mala": lambda call, data: mala(call, data, dense=True, draws=150, warmup=400, chains=50, key=1),
    "random_walk": lambda call, data: random_walk(call, data, dense=True, draws=300, warmup=600, chains=50, key=1),
    "mh": lambda call, data: mh(call, data, proposal=along, draws=400, warmup=1500, chains=50, key=1),
    "involutive_mh": lambda call, data: involutive_mh(
        call, data, noise, shifted, draws=400, warmup=1500, chains=50, key=1
    ),
}


@pytest.mark.parametrize("name", RIDGE_WALKERS)
def test_a_correlated_gaussian_of_condition_number_ten_thousand(way, name):
    """Begun at draws of the prior, two hundred deviations off. Gibbs sweeps cannot enumerate what is continuous."""
    assert_agrees_along_the_axes(RIDGE_WALKERS[name](ridge(), {"y": SEEN}))


def test_a_correlated_prior_of_condition_number_ten_thousand_by_elliptical_slices():
    """The ridge is in the prior here: a likelihood that is narrow would make its steps as small."""
    begin = CENTER - AXES @ SCALES  # one deviation off along each axis; the prior is twice as wide as the posterior
    seen = CENTER + AXES @ SCALES / 3

    @gen
    def model():
        v = trace("v", multivariate_normal(single(begin), single(4 * RIDGE)))
        trace("y", multivariate_normal(v, single(4 / 3 * RIDGE)))

    assert_agrees_along_the_axes(elliptical_slice(model(), {"y": single(seen)}, draws=100, warmup=50, chains=60, key=1))
