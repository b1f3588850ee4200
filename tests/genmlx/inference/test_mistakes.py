"""Mistakes that published samplers and diagnostics have made: each test fails when its mistake is made here.

Every sampler is in it whose kind can make the mistake.
"""

import inspect

import mlx.core as mx
import numpy as np
import pytest
from posteriors import assert_agrees

from genmlx import (
    elliptical_slice,
    exponential,
    flip,
    gen,
    gibbs,
    hmc,
    involutive_mh,
    mala,
    mh,
    normal,
    nuts,
    random_walk,
    trace,
)
from genmlx.inference import LogDensity, Posterior, hmc_kernel, mala_kernel, random_walk_kernel, run_kernel
from genmlx.inference.leapfrog import evaluate, leapfrog, metric
from genmlx.transform import is_involution, transform

# the noise of a vector drawn once, and shared by its elements: it moves along its diagonal only


@gen
def vector():
    trace("v", normal(mx.zeros(3), 1.0))


def kernel_run(kernel):
    start = vector().vsimulate(1000, key=mx.random.key(0))
    return run_kernel(kernel, start, draws=2, key=1)


MOVES = {
    "hmc": lambda: hmc(vector(), draws=2, warmup=20, chains=1000, leapfrog_steps=2, key=1),
    "nuts": lambda: nuts(vector(), draws=2, warmup=20, chains=1000, max_depth=3, key=1),
    "mala": lambda: mala(vector(), draws=2, warmup=20, chains=1000, key=1),
    "random_walk": lambda: random_walk(vector(), draws=2, warmup=20, chains=1000, key=1),
    "elliptical_slice": lambda: elliptical_slice(vector(), draws=2, warmup=0, chains=1000, key=1),
    "mh": lambda: mh(vector(), draws=2, chains=1000, key=1),
    "hmc_kernel": lambda: kernel_run(hmc_kernel("v", 0.5, 2)),
    "mala_kernel": lambda: kernel_run(mala_kernel("v", 0.8)),
    "random_walk_kernel": lambda: kernel_run(random_walk_kernel("v", 0.8)),
}


@pytest.mark.parametrize("name", MOVES)
def test_every_element_of_a_vector_has_noise_of_its_own(name):
    """Between two draws of an isotropic normal the moves of its elements are uncorrelated, to 0.03 in 1,000 chains."""
    draws = np.array(MOVES[name]()["v"])
    moves = draws[:, 1] - draws[:, 0]
    assert (np.abs(moves).min(axis=1) > 0).mean() > 0.2
    assert np.abs(np.corrcoef(moves.T) - np.eye(3)).max() < 0.2


# a leapfrog whose last half kick uses the first gradient again


def coupled(u):
    total = mx.sum(u, axis=-1, keepdims=True)
    return -mx.sum(u**4, axis=-1) / 4 - 0.5 * total[:, 0] ** 2, -(u**3) - total


DENSE = np.array([[2.0, 0.6, 0.1], [0.6, 1.0, -0.3], [0.1, -0.3, 0.5]])


@pytest.mark.parametrize("inverse_mass", [np.diag(DENSE), DENSE], ids=["diagonal", "dense"])
def test_the_leapfrog_kicks_by_the_gradient_of_where_it_is(inverse_mass):
    """Reversible, and of second order, on vectors: with an old gradient it is neither. In float64, so on the CPU."""
    with mx.stream(mx.cpu):
        mass = metric(inverse_mass, 3)._replace(inverse_mass=mx.array(inverse_mass, dtype=mx.float64))
        place = mx.array([[1.0, 0.2, -0.7], [0.3, 0.0, 2.0]], dtype=mx.float64)
        push = mx.array([[0.5, -1.5, 0.25], [0.0, 2.0, 1.0]], dtype=mx.float64)

        def run(place, push, steps):
            point = evaluate(coupled, place)
            began = mass.kinetic(push) - point.log_prob
            for _ in range(steps):
                point, push = leapfrog(coupled, mass, point.position, point.gradient, push, 0.5 / steps)
            return point.position, push, np.array(mass.kinetic(push) - point.log_prob - began)

        end, momentum, _ = run(place, push, 40)
        back, momentum, _ = run(end, -momentum, 40)
        assert np.abs(np.array(end - place)).min() > 1e-3
        assert np.abs(np.array(back - place)).max() < 1e-12 and np.abs(np.array(momentum + push)).max() < 1e-12
        errors = [run(place, push, steps)[2] for steps in (50, 100, 200)]
        assert all(np.all(np.abs(a / b - 4) < 0.1) for a, b in zip(errors, errors[1:], strict=False))


# what is observed moves, because the default selection is everything


@gen
def observed_by_all():
    mu = trace("mu", normal(0, 1))
    trace("y", normal(mu, 0.5))


@gen
def observed_by_coins():
    trace("y", flip(0.2 + 0.6 * trace("k", flip(0.5))))


@gen
def size(tr):
    trace("step", normal(0, 0.5))


@is_involution
@transform
def walk(old, new):
    step = old.aux["step"]
    new["mu"], new.aux["step"] = old["mu"] + step, -step


SAMPLERS = {f.__name__: f for f in (mh, random_walk, mala, hmc, nuts, elliptical_slice, gibbs)}
SAMPLERS["involutive_mh"] = lambda call, data, **how: involutive_mh(call, data, size, walk, **how)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_observed_does_not_move_by_default(name):
    model, latent, value = (observed_by_coins, "k", 1) if name == "gibbs" else (observed_by_all, "mu", 1.5)
    post = SAMPLERS[name](model(), {"y": value}, draws=20, warmup=20, chains=3, key=1)
    assert post.addresses() == [(latent,)] and len(set(post[latent].reshape(-1).tolist())) > 1
    for draw in range(20):
        tr = post.trace(1, draw)
        assert tr["y"].item() == value
        assert tr.score.item() == pytest.approx(post.log_joint[1, draw].item(), abs=1e-4)


# a body that Python runs again for each step, draw or chain


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_model_is_traced_a_constant_number_of_times(name):
    runs = []

    @gen.new
    def model():
        runs.append(1)
        latent = trace("k", flip(0.5)) if name == "gibbs" else trace("mu", normal(0, 1))
        trace("y", normal(latent, 0.5))

    counts = []
    for draws, warmup, chains in ((10, 10, 2), (200, 100, 2), (10, 10, 60)):
        runs.clear()
        SAMPLERS[name](model(), {"y": 1.5}, draws=draws, warmup=warmup, chains=chains, key=1)
        counts.append(len(runs))
    assert counts[0] == counts[1] == counts[2] < 60


# choices with bounds moved as if they had none, and step sizes that do not adapt unless one asks for it

GRADIENT = {f.__name__: f for f in (random_walk, mala, hmc, nuts)}


@gen
def scale_near_zero():
    trace("y", normal(0.0, trace("scale", exponential(5.0))))


def exact_scale():
    u = np.linspace(-14, 3, 40_001)
    x = np.exp(u)
    weight = np.exp(-5 * x - 0.5 * (0.02 / x) ** 2)  # the density over x, and dx = x du, of which the x of 1 / scale
    mean = (weight * x).sum() / weight.sum()
    return mean, np.sqrt((weight * x * x).sum() / weight.sum() - mean**2)


@pytest.mark.parametrize("name", GRADIENT)
def test_choices_with_bounds_move_where_there_are_none(name):
    """Without the Jacobian the mean is wrong; and there is nowhere that a choice would be outside of its support."""
    how = {"hmc": {"leapfrog_steps": 5}, "nuts": {"max_depth": 5}}.get(name, {"thin": 5})
    post = GRADIENT[name](scale_near_zero(), {"y": 0.02}, draws=100, warmup=100, chains=100, key=4, **how)
    assert_agrees(post, "scale", *exact_scale())
    assert mx.all(post["scale"] > 0).item()
    anywhere = LogDensity(scale_near_zero(), {"y": 0.02}).unpack(mx.linspace(-9, 9, 50)[:, None])["scale"]
    assert mx.all(anywhere > 0).item()


def test_kernels_move_choices_with_bounds_where_there_are_none():
    start, _ = scale_near_zero().vgenerate({"y": 0.02}, 100, key=mx.random.key(0))
    for kernel in (hmc_kernel("scale", 0.4, 5), mala_kernel("scale", 0.8), random_walk_kernel("scale", 1.5)):
        post = run_kernel(kernel, start, draws=200, warmup=200, thin=5, observations={"y": 0.02}, key=1)
        assert_agrees(post, "scale", *exact_scale())
        assert mx.all(post["scale"] > 0).item()


@pytest.mark.parametrize("name", GRADIENT)
def test_warmup_is_there_by_default_and_finds_the_step(name):
    """A scale of a thousandth: at a step size of one everything is rejected."""

    @gen
    def model():
        trace("y", normal(trace("mu", normal(0, 1)), 0.001))

    sampler = GRADIENT[name]
    assert inspect.signature(sampler).parameters["warmup"].default >= 500
    how = {"leapfrog_steps": 3} if name == "hmc" else {}
    post = sampler(model(), {"y": 1.0}, draws=50, key=1, **how)
    target = inspect.signature(sampler).parameters["target_accept"].default
    assert mx.mean(post.stats["accept"]).item() > target - 0.15
    assert post.mean("mu").item() == pytest.approx(1.0, abs=0.001)


# an R-hat whose chains are not split, and more effective draws than there are


def posterior(draws):
    return Posterior({("x",): mx.array(draws.astype(np.float32))}, stats={}, log_joint=mx.zeros(draws.shape))


def test_rhat_sees_chains_that_go_the_same_way():
    """Unsplit they have one mean and one variance, and R-hat is 1."""
    noise = np.random.default_rng(0).normal(size=(4, 500))
    assert posterior(noise).rhat("x") < 1.01
    assert posterior(noise + np.linspace(-1, 1, 500)).rhat("x") > 1.1
    assert posterior((noise + np.linspace(-1, 1, 500))[:1]).rhat("x") > 1.1


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_no_more_effective_draws_than_there_are(rho):
    """Of chains whose draws do not repel each other: within 10% of (1 - rho) / (1 + rho) of their number."""
    x = np.random.default_rng(1).normal(size=(50, 1000))
    for t in range(1, 1000):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * x[:, t]
    post, share = posterior(x), (1 - rho) / (1 + rho)
    assert post.ess("x") == pytest.approx(50_000 * share, rel=0.1)
    assert post.ess_tail("x") < 55_000 and post.mcse("x") == pytest.approx((50_000 * share) ** -0.5, rel=0.1)
