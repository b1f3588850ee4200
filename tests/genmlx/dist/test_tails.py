"""Log densities at 20,000 random parameters, at points far out in the tails: 3e-5, or 2 ulp of the float32 answer.

Computed in float32 all families of this file fail, by factors of 1.1 (pareto) to 50 (weibull).
"""

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats
from scipy.special import gammaln, xlogy

from genmlx import dist

N = 20_000
rng = np.random.default_rng(0)


def even(lo, hi):
    return rng.uniform(lo, hi, N).astype(np.float32)


def spread(lo, hi):
    """Positive numbers with an even logarithm."""
    return np.exp(even(lo, hi))


def counts(n):
    return rng.integers(0, n, N).astype(np.int32)


def wrapped_normal(x, mu, sigma):
    turns = 2 * np.pi * np.arange(-40, 41)[:, None]
    return np.logaddexp.reduce(stats.norm.logpdf(x + turns, mu, sigma))


def pareto(x, b, scale):
    return np.log(b / scale) - (b + 1) * np.log(x / scale)


def zero_inflated(x, gate, rate):
    some = np.log1p(-gate) + stats.poisson.logpmf(x, rate)
    return np.where(x == 0, np.log(gate + (1 - gate) * np.exp(-rate)), some)


def multinomial(x, n, probs):
    probs = probs / probs.sum(-1, keepdims=True)
    return gammaln(n + 1) - gammaln(x + 1).sum(-1) + xlogy(x, probs).sum(-1)


mu, sigma, far = even(-10, 10), spread(-2, 3), (30 * rng.standard_normal(N)).astype(np.float32)
shape, rate, positive = spread(-3, 5), spread(-3, 3), spread(-5, 5)
a, b, inside, angle, p = spread(-2, 5), spread(-2, 5), even(0.001, 0.999), even(-np.pi, np.pi), even(0, 1)
trials = 1 + counts(1000)
share = (even(0, 1) * (trials + 1)).astype(np.int32)
few = 1 + counts(300)
several = np.array([rng.multinomial(n, rng.dirichlet(np.ones(5))) for n in few]).astype(np.int32)

CASES = {
    "normal": ((mu, sigma), far, stats.norm.logpdf),
    "log_normal": ((mu, sigma), positive, lambda x, m, s: stats.norm.logpdf(np.log(x), m, s) - np.log(x)),
    "half_normal": ((sigma,), np.abs(far), lambda x, s: stats.halfnorm.logpdf(x, 0, s)),
    "student_t": ((spread(-1, 5), mu, sigma), far, lambda x, df, m, s: stats.t.logpdf(x, df, m, s)),
    "gumbel": ((mu, sigma), far, stats.gumbel_r.logpdf),
    "weibull": ((shape, rate), positive, lambda x, k, s: stats.weibull_min.logpdf(x, k, scale=s)),
    "pareto": ((shape, rate), rate * (1 + positive), pareto),
    "gamma": ((shape, rate), positive, lambda x, a, r: stats.gamma.logpdf(x, a, scale=1 / r)),
    "inv_gamma": ((shape, rate), positive, lambda x, a, s: stats.invgamma.logpdf(x, a, scale=s)),
    "chi2": ((shape,), positive, stats.chi2.logpdf),
    "beta": ((a, b), inside, stats.beta.logpdf),
    "von_mises": ((even(-np.pi, np.pi), spread(-2, 7)), angle, lambda x, m, k: stats.vonmises.logpdf(x, k, m)),
    "wrapped_normal": ((even(-np.pi, np.pi), spread(-2, 2)), angle, wrapped_normal),
    "binomial": ((trials, p), share, stats.binom.logpmf),
    "poisson": ((spread(-3, 7),), counts(500), stats.poisson.logpmf),
    "neg_binomial": ((spread(-1, 4), p), counts(300), stats.nbinom.logpmf),
    "beta_binomial": ((trials, a, b), share, stats.betabinom.logpmf),
    "zero_inflated_poisson": ((even(0.01, 0.99), spread(-3, 7)), counts(500), zero_inflated),
    "multinomial": ((few, rng.dirichlet(np.ones(5), N).astype(np.float32)), several, multinomial),
}


@pytest.mark.skipif(mx.default_device().type != mx.cpu, reason="that takes float64, which GPUs have not in MLX")
@pytest.mark.parametrize("family", CASES)
def test_far_points(family):
    params, x, log_density = CASES[family]
    found = getattr(dist, family)(*map(mx.array, params)).log_prob(mx.array(x))
    with np.errstate(over="ignore"):
        exact = log_density(*[v.astype(float) if v.dtype == np.float32 else v for v in (x, *params)])
    known = np.isfinite(exact) & (np.abs(exact) < 1e30)
    bar = np.maximum(3e-5, 2 * np.spacing(np.abs(exact[known]).astype(np.float32)))
    assert known.sum() > 0.9 * N
    assert np.max(np.abs(np.array(found, dtype=np.float64)[known] - exact[known]) / bar) < 1
