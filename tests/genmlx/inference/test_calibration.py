"""Simulation-based calibration: parameters from the prior, data from the model, draws from the posterior given them.

The rank of the true parameter among the draws is then uniform (Talts, Betancourt, Simpson, Vehtari and Gelman 2018);
so is that of the joint density (Modrak et al. 2023), without which a sampler that ignores the data passes. Every
replication is a lane of one batch with data of its own, begun at another draw of the prior, so that hundreds cost as
much as one. A right sampler fails with probability 1e-4; what is wrong by one factor, as a prior, a Jacobian, or the
density of the way back, is found. GENMLX_FULL=1 takes four times as many.
"""

import os

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx import binomial, categorical, dirichlet, discrete_uniform, flip, gamma, gen, normal, random, select, trace
from genmlx.inference import (
    chain,
    elliptical_slice_kernel,
    gibbs_kernel,
    hmc_kernel,
    involutive_kernel,
    mala_kernel,
    mh_kernel,
    random_walk_kernel,
    run_kernel,
)
from genmlx.inference.gradient_chains import Walk
from genmlx.inference.hmc import sampler as hmc
from genmlx.inference.log_density import LogDensity
from genmlx.inference.loop import Loop
from genmlx.inference.mala import sampler as mala
from genmlx.inference.nuts import sampler as nuts
from genmlx.inference.random_walk import sampler as random_walk
from genmlx.transform import is_involution, transform

pytestmark = pytest.mark.slow

REPLICATIONS = 2000 if os.environ.get("GENMLX_FULL") == "1" else 500
DRAWS = 19  # so that ranks are 0 to 19, each a bin with 25 replications in it
ALARM = 1e-4


def p_values(truth, draws):
    """Of each quantity, ``truth [replications]`` and ``draws [replications, DRAWS]``; ties are broken at random."""
    rng, found = np.random.default_rng(0), {}
    assert truth.keys() == draws.keys()
    for name, true in truth.items():
        true, drawn = np.array(true)[:, None], np.array(draws[name])
        assert drawn.shape == (REPLICATIONS, DRAWS)
        below, equal = (drawn < true).sum(axis=1), (drawn == true).sum(axis=1)
        counts = np.bincount(below + rng.integers(0, equal + 1), minlength=DRAWS + 1)
        found[name] = stats.chisquare(counts).pvalue
    return found


def assert_calibrated(truth, draws):
    found = p_values(truth, draws)
    assert min(found.values()) > ALARM / len(found), found


def assert_miscalibrated(truth, draws, *names):
    found = p_values(truth, draws)
    assert all(found[name] < ALARM / len(found) for name in names), found


# a location, a scale and a simplex: no bound, one, and a sum; little data, so that priors and Jacobians matter


@gen
def measured():
    mu, sigma = trace("mu", normal(0, 1)), trace("sigma", gamma(3.0, 2.0))
    shares = trace("shares", dirichlet(mx.array([2.0, 1.0, 1.5])))
    trace("y", normal(mu * mx.ones(2), sigma))
    trace("v", normal(shares, 0.4))


LATENT, DATA = ("mu", "sigma", "shares"), ("y", "v")


def of_measured(choices, log_joint):
    shares = choices["shares"]
    found = {"mu": choices["mu"], "sigma": choices["sigma"], "share 0": shares[..., 0], "share 2": shares[..., 2]}
    return {**found, "log joint": log_joint}


def by_gradients(make_sampler, thin, jacobian=True):
    """The density of latents and data, held at the data of each lane: with the data real, it needs no Jacobian."""
    density = LogDensity(measured())
    true = measured().vsimulate(REPLICATIONS, key=mx.random.key(1))
    data = mx.concatenate([true[name] for name in DATA], axis=-1)
    start = density.initial(mx.random.key(2), REPLICATIONS)
    dim = start.shape[1] - data.shape[1]
    assert all(density.addresses[(name,)].stop <= dim for name in LATENT)
    mx.eval(data)

    def value_and_grad(u):
        value, gradient = density.value_and_grad(mx.concatenate([u, data], axis=-1), jacobian)
        return value, gradient[:, :dim]

    walk = Walk(make_sampler(value_and_grad), value_and_grad, start[:, :dim])
    with Loop("calibration") as loop:
        positions, _ = walk.run(loop, random.streams(3), draws=DRAWS, warmup=100, thin=thin)
    u = mx.concatenate([mx.array(positions), mx.repeat(data[:, None], DRAWS, axis=1)], axis=-1)
    flat = u.reshape(-1, u.shape[-1])
    values = {a: v.reshape(REPLICATIONS, DRAWS, *v.shape[1:]) for (a,), v in density.unpack(flat).items()}
    draws = of_measured(values, density.joint(flat).reshape(REPLICATIONS, DRAWS))
    return of_measured(true, true.score), draws


SAMPLERS = {
    "hmc": (lambda f: hmc(f, 5), 5),
    "nuts": (lambda f: nuts(f, 5), 3),
    "mala": (mala, 30),
    "random walk": (random_walk, 100),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradient_samplers(name):
    assert_calibrated(*by_gradients(*SAMPLERS[name]))


def test_hamiltonian_trajectories_without_the_jacobian_are_seen():
    assert_miscalibrated(*by_gradients(*SAMPLERS["hmc"], jacobian=False), "sigma", "share 0")


def by_kernel(kernel, model, data, quantities, thin, warmup=100, generating=None):
    """Traces of the model, or of another that is ``generating``; then traces given their data, moved by the kernel."""
    true = (generating or model)().vsimulate(REPLICATIONS, key=mx.random.key(1))
    observed = true.choices.filter(select(*data))
    start, _ = model().vgenerate(observed, REPLICATIONS, key=mx.random.key(2))
    post = run_kernel(kernel, start, draws=DRAWS, warmup=warmup, thin=thin, key=mx.random.key(3))
    assert post.execution == "replayed"
    assert all(mx.all(post[name] == true[name][:, None]).item() for name in data)
    values = {name: post[name] for (name,) in post.addresses()}
    score = model().vgenerate(true.choices, REPLICATIONS, key=mx.random.key(4))[0].score
    return quantities(true, score), quantities(values, post.log_joint)


@gen
def stretched(tr):
    """Not symmetric: without its density back the chain drifts."""
    trace("sigma", gamma(3.0, 3.0 / (0.8 * tr["sigma"])))


@gen
def factor(tr):
    trace("log_c", normal(0, 0.8))


@is_involution
@transform
def scaled(old, new):
    log_c = old.aux["log_c"]
    new["sigma"], new.aux["log_c"] = old["sigma"] * mx.exp(log_c), -log_c


OTHERS = mh_kernel(select("mu", "shares"))
KERNELS = {
    "mh": chain(*map(mh_kernel, LATENT)),
    "mh by a proposal": chain(mh_kernel(proposal=stretched), OTHERS),
    "involutive": chain(involutive_kernel(factor, scaled), OTHERS),
    "elliptical slice": chain(elliptical_slice_kernel("mu"), mh_kernel(select("sigma", "shares"))),
    "hmc": hmc_kernel(select(*LATENT), 0.3, 3),
    # The gradient of a narrow posterior throws long steps so far that all are rejected.
    "mala": chain(mala_kernel(select(*LATENT), 0.5), mala_kernel(select(*LATENT), 0.1)),
    "random walk": random_walk_kernel(select(*LATENT), 0.5),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name):
    assert_calibrated(*by_kernel(KERNELS[name], measured, DATA, of_measured, thin=25))


# discrete choices: one that another depends on, an array whose elements pull at each other, and a prior far from flat


def labelled(prior):
    @gen.new
    def model():
        a = trace("a", flip(0.3))
        b = trace("b", flip(0.1 + 0.8 * a))
        z = trace("z", categorical(mx.log(mx.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))))
        k = trace("k", prior(a))
        trace("y", normal(mx.concatenate([z + 0.5 * k, mx.sum(z, keepdims=True)]), 1.0))
        trace("x", normal(b, 0.4))

    return model


RIGHT = labelled(lambda a: binomial(4, 0.1 + 0.3 * a))
FORGETFUL = labelled(lambda a: discrete_uniform(0, 4))


def of_labelled(choices, log_joint):
    z = choices["z"]
    found = {name: choices[name] for name in "abk"}
    return {**found, "z 0": z[..., 0], "z 1": z[..., 1], "log joint": log_joint}


SWEEP = gibbs_kernel(select("a", "b", "z", "k"))


def test_gibbs():
    assert_calibrated(*by_kernel(SWEEP, RIGHT, ("y", "x"), of_labelled, thin=5))


def test_a_sweep_that_forgets_the_prior_of_a_choice_is_seen():
    assert_miscalibrated(*by_kernel(SWEEP, FORGETFUL, ("y", "x"), of_labelled, thin=5, generating=RIGHT), "k")
