"""Exact posteriors, and when draws agree with them."""

import math

import mlx.core as mx
import numpy as np

from genmlx import beta, binomial, categorical, dirichlet, gamma, gen, normal, poisson, trace
from genmlx.dist import half_cauchy


@gen
def conjugates():
    """Four conjugate pairs, independent of each other: case 40."""
    mu = trace("mu", normal(0, 1))
    trace("x", normal(mu * mx.ones(10), 1.0))
    trace("k", binomial(20, trace("p", beta(1, 1))))
    trace("n", poisson(trace("rate", gamma(2, 1)) * mx.ones(2)))
    theta = trace("theta", dirichlet(mx.ones(3)))
    for i in range(3):
        trace(("c", i), categorical(mx.log(theta)))


CONJUGATE_DATA = {
    "x": mx.full((10,), 0.5),
    "k": 14,
    "n": mx.array([3, 5]),
    ("c", 0): 0,
    ("c", 1): 0,
    ("c", 2): 1,
}
ALPHA = np.array([3.0, 2.0, 1.0])
CONJUGATE_POSTERIOR = {
    "mu": (5 / 11, math.sqrt(1 / 11)),
    "p": (15 / 22, math.sqrt(15 * 7 / (22**2 * 23))),
    "rate": (10 / 3, math.sqrt(10) / 3),
    "theta": (ALPHA / 6, np.sqrt(ALPHA * (6 - ALPHA) / (36 * 7))),
}

SCHOOLS, ERRORS = [28.0, 8, -3, 7, -1, 1, 18, 12], [15.0, 10, 16, 11, 9, 11, 10, 18]


@gen
def eight_schools():
    """Non-centred; the posterior means of mu and tau by quadrature are 4.3968 and 3.5977."""
    mu, tau = trace("mu", normal(0, 5)), trace("tau", half_cauchy(5.0))
    z = trace("z", normal(mx.zeros(8), 1.0))
    trace("y", normal(mu + tau * z, mx.array(ERRORS)))


def assert_agrees(post, address, mean, sd, errors=4.5):
    """|mean - truth| < 4.5 Monte Carlo errors at an effective size of 400 and more, and the sd within 10%."""
    ess, mcse = np.asarray(post.ess(address)), np.asarray(post.mcse(address))
    assert np.all(ess >= 400), f"{address}: effective size {ess}"
    off = (np.array(post.mean(address)) - mean) / mcse
    assert np.all(np.abs(off) < errors), f"{address}: {off} standard errors"
    ratio = np.array(post.std(address)) / sd
    assert np.all(np.abs(ratio - 1) < 0.1), f"{address}: sd off by {ratio}"


def assert_agrees_with_conjugates(post):
    """Catches a missing Jacobian, prior or likelihood counted twice, and a move without its correction."""
    assert {a[0] for a in post.addresses()} == set(CONJUGATE_POSTERIOR)
    for address, (mean, sd) in CONJUGATE_POSTERIOR.items():
        assert_agrees(post, address, mean, sd)
    assert mx.all(post["p"] > 0).item() and mx.all(post["p"] < 1).item() and mx.all(post["rate"] > 0).item()
    assert mx.allclose(mx.sum(post["theta"], axis=-1), mx.array(1.0), atol=1e-5).item()


# A Gaussian of mean (1, -1, 0) whose coordinates are correlated, as a log density with its gradient.

COVARIANCE = np.array([[1.0, 0.8, 0.3], [0.8, 2.0, -0.2], [0.3, -0.2, 0.5]])
MEAN = np.array([1.0, -1.0, 0.0])


def gaussian(covariance=COVARIANCE, mean=MEAN):
    precision, center = mx.array(np.linalg.inv(covariance).astype(np.float32)), mx.array(mean.astype(np.float32))

    def value_and_grad(u):
        apart = u - center
        gradient = -(apart @ precision)
        return 0.5 * mx.sum(apart * gradient, axis=-1), gradient

    return value_and_grad


def assert_stationary(make_sampler, step_size, transitions=3, n=4000, metric=None):
    """Chains that begin at exact draws of the Gaussian, after some transitions: still draws of it.

    Catches every error of a kernel that changes its stationary distribution, at a step size as coarse as it likes:
    means and second moments of 4,000 independent chains within 4.5 standard errors.
    """
    from genmlx import random
    from genmlx.inference.gradient_chains import Walk
    from genmlx.inference.leapfrog import identity_metric
    from genmlx.inference.loop import Loop

    rng = np.random.default_rng(0)
    start = rng.multivariate_normal(MEAN, COVARIANCE, size=n).astype(np.float32)
    value_and_grad = gaussian()
    dense = metric is not None and metric.inverse_mass.ndim == 2
    walk = Walk(make_sampler(value_and_grad), value_and_grad, mx.array(start), dense)
    walk.tune(step_size, metric or identity_metric(3))
    with Loop("test") as loop:
        positions, stats = walk.run(loop, random.streams(7), draws=1, warmup=0, thin=transitions, step_size=step_size)
    end = np.array(positions)[:, 0]
    assert np.mean(np.any(end != start, axis=1)) > 0.5
    for power in (1, 2):
        moments = (end - MEAN) ** power
        truth = 0.0 if power == 1 else np.diag(COVARIANCE)
        z = (moments.mean(axis=0) - truth) / (moments.std(axis=0) / math.sqrt(n))
        assert np.all(np.abs(z) < 4.5), (power, z)
    cross = (end - MEAN)[:, 0] * (end - MEAN)[:, 1]
    assert abs((cross.mean() - COVARIANCE[0, 1]) / (cross.std() / math.sqrt(n))) < 4.5
    return stats
