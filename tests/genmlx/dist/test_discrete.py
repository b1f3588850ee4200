"""Discrete families against scipy: log probabilities, draws, gradients, edges, batches."""

import math
import pkgutil

import mlx.core as mx
import numpy as np
import pytest
from scipy import special, stats

import genmlx.dist
from genmlx import random
from genmlx.dist.bernoulli import bernoulli, bernoulli_logits
from genmlx.dist.beta_binomial import beta_binomial
from genmlx.dist.binomial import binomial
from genmlx.dist.categorical import categorical
from genmlx.dist.dirichlet_multinomial import dirichlet_multinomial
from genmlx.dist.discrete_uniform import discrete_uniform
from genmlx.dist.distribution import Distribution
from genmlx.dist.geometric import geometric
from genmlx.dist.multinomial import multinomial
from genmlx.dist.neg_binomial import neg_binomial
from genmlx.dist.ordered_logistic import ordered_logistic
from genmlx.dist.poisson import poisson
from genmlx.dist.zero_inflated_poisson import zero_inflated_poisson
from genmlx.errors import ParameterError
from genmlx.vectorized import vsimulate


class ZeroInflated:
    def __init__(self, gate, rate):
        self.gate, self.base = gate, stats.poisson(rate)

    def logpmf(self, x):
        extra = np.where(np.asarray(x) == 0, np.log(self.gate), -np.inf)
        return np.logaddexp(extra, np.log1p(-self.gate) + self.base.logpmf(x))

    def cdf(self, x):
        return (np.asarray(x) >= 0) * self.gate + (1 - self.gate) * self.base.cdf(x)

    def rvs(self, size, random_state):
        return self.base.rvs(size, random_state=random_state) * (random_state.random(size) >= self.gate)


def table(probabilities):
    p = np.asarray(probabilities, dtype=np.float64)
    return stats.rv_discrete(values=(np.arange(len(p)), p / p.sum()))


def ordered(eta, cutpoints):
    return table(np.diff(special.expit(np.r_[-np.inf, np.asarray(cutpoints) - eta, np.inf])))


THOUSAND = np.random.default_rng(0).normal(0, 2, 1000).astype(np.float32)

# family, what scipy calls it, parameters
CASES = [
    *[(poisson, stats.poisson, (rate,)) for rate in (0.0, 1e-3, 0.7, 9.99, 10.0, 87.0, 1e4, 1e6)],
    *[(bernoulli_logits, lambda x: stats.bernoulli(special.expit(x)), (logit,)) for logit in (-30.0, -2.0, 0.0, 1.3)],
    *[(geometric, lambda p: stats.geom(p, loc=-1), (p,)) for p in (1.0, 0.999, 0.3, 1e-3, 1e-6)],
    *[
        (binomial, stats.binom, (n, p))
        for n, p in [
            (0, 0.3), (1, 0.5), (7, 0.0), (7, 1.0), (12, 0.9), (30, 0.34), (100, 0.5), (100, 0.999),
            (10**6, 1e-6), (10**6, 1.5e-5), (10**6, 0.3), (10**6, 0.99999),
        ]
    ],
    *[
        (neg_binomial, stats.nbinom, (r, p))
        for r, p in [(0.01, 0.5), (0.7, 1e-3), (2.5, 0.4), (3.0, 1.0), (1e4, 0.01), (1e3, 0.999)]
    ],
    *[(discrete_uniform, lambda lo, hi: stats.randint(lo, hi + 1), b) for b in [(3, 3), (-2, 7), (0, 10**6)]],
    *[
        (beta_binomial, stats.betabinom, (n, a, b))
        for n, a, b in [(0, 1.0, 2.0), (10, 0.5, 0.1), (50, 3.0, 2.0), (1000, 1e4, 2e4), (10**6, 2.5, 0.7)]
    ],
    *[(zero_inflated_poisson, ZeroInflated, g) for g in [(0.0, 3.0), (1e-6, 0.5), (0.3, 0.2), (0.9, 40.0), (0.2, 1e4)]],
    *[
        (ordered_logistic, ordered, (eta, cutpoints))
        for eta, cutpoints in [(0.3, [-1.0, 0.5, 0.6, 3.0]), (-2.0, [0.0]), (9.0, [-1.0, 0.0, 8.0])]
    ],
    *[
        (categorical, lambda logits: table(np.exp(np.asarray(logits, dtype=np.float64))), (logits,))
        for logits in [[0.0], [1.0, -math.inf, 2.0, -30.0, -math.inf], list(map(float, THOUSAND))]
    ],
]  # fmt: skip


def label(value):
    return repr(value)[:40] if isinstance(value, (tuple, list)) else getattr(value, "__name__", "scipy")


def rounded(params):
    """The parameters as float32 has them: what the oracle is given."""
    return tuple(p if isinstance(p, int) else np.float32(p).astype(np.float64) for p in params)


def assert_close(got, want):
    """3e-5, or what the deep tails of Loader's form keep. Differences of lgammas are off by 0.1 at n = 10^6."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    allowed = np.maximum(3e-5, 1e-6 * np.abs(want[finite]))
    assert (np.abs(got[finite] - want[finite]) <= allowed).all()


def points(oracle):
    """Typical values, those around the ends, and some in the tails."""
    with np.errstate(all="ignore"):
        typical = oracle.rvs(size=40, random_state=np.random.default_rng(1))
    return np.unique(np.r_[typical, typical.min() // 2, 2 * typical.max() + 1, 0, 1, 2]).astype(np.int32)


@pytest.mark.parametrize("family,scipy_name,params", CASES, ids=label)
def test_log_prob_agrees_with_scipy(family, scipy_name, params):
    """Catches trials for failures, a lost binomial coefficient, cancellation at large counts, and 0 log 0."""
    oracle = scipy_name(*rounded(params))
    x = points(oracle)
    with np.errstate(all="ignore"):  # scipy's own log of 0
        want = oracle.logpmf(x)
    assert_close(family(*params).log_prob(mx.array(x)), want)


@pytest.mark.parametrize("family,scipy_name,params", CASES, ids=label)
def test_draws_have_the_distribution_of_scipy(family, scipy_name, params):
    """Chi-squared in cells of equal probability: a wrong hat, too few rounds, a count off by one."""
    oracle = scipy_name(*rounded(params))
    x = family(*params).sample(mx.random.key(7), 20000)
    assert x.dtype == mx.int32 and x.shape == (20000,)
    assert math.isfinite(mx.min(family(*params).log_prob(x)).item())
    assert chi_squared(np.asarray(x), oracle) > 1e-3


def chi_squared(x, oracle):
    with np.errstate(all="ignore"):
        reference = oracle.rvs(size=4000, random_state=np.random.default_rng(2))
        ends = np.unique(np.quantile(reference, np.linspace(0, 1, 25), method="lower"))
        expected = np.diff(np.r_[0, oracle.cdf(ends), 1]) * x.size
    observed = np.diff(np.r_[0, [(x <= end).sum() for end in ends], x.size])
    rare = expected < 5
    observed = np.r_[observed[~rare], observed[rare].sum()]
    expected = np.r_[expected[~rare], expected[rare].sum()]
    keep = expected > 1e-6
    assert (observed[~keep] == 0).all()
    if keep.sum() == 1:
        return 1.0
    return stats.chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue


def test_large_samples_have_the_right_mean_and_variance():
    """A squeeze step that accepts too much shifts moments by less than chi-squared sees."""
    n = 400_000
    for call, mean, variance in [
        (poisson(15.0), 15, 15),
        (poisson(1e4), 1e4, 1e4),
        (binomial(40, 0.4), 16, 9.6),
        (binomial(10**6, 0.25), 250_000, 187_500),
        (geometric(0.01), 99, 9900),
    ]:
        x = np.asarray(call.sample(mx.random.key(3), n)).astype(np.float64)
        assert abs(x.mean() - mean) < 4 * math.sqrt(variance / n)
        fourth = np.mean((x - mean) ** 4)
        assert abs(np.mean((x - mean) ** 2) - variance) < 4 * math.sqrt((fourth - variance**2) / n)
        assert call.mean.item() == pytest.approx(mean, rel=1e-5)
        assert call.variance.item() == pytest.approx(variance, rel=1e-5)


@pytest.mark.parametrize(
    "call,oracle",
    [
        (neg_binomial(2.5, 0.3), stats.nbinom(2.5, 0.3)),
        (discrete_uniform(-3, 8), stats.randint(-3, 9)),
        (beta_binomial(20, 2.0, 5.0), stats.betabinom(20, 2, 5)),
    ],
)
def test_mean_and_variance_agree_with_scipy(call, oracle):
    assert call.mean.item() == pytest.approx(oracle.mean(), rel=1e-6)
    assert call.variance.item() == pytest.approx(oracle.var(), rel=1e-6)


# parameters of which one is a batch, and the same as a list of scalar calls
BATCHES = [
    (poisson, ([0.0, 0.5, 9.0, 30.0, 1e4],)),
    (geometric, ([1.0, 0.5, 0.01],)),
    (binomial, ([0, 5, 100, 10**6], [0.5, 1.0, 0.3, 0.2])),
    (neg_binomial, ([0.5, 3.0, 50.0], [0.1, 0.9, 0.5])),
    (discrete_uniform, ([0, -5], [3, 5])),
    (beta_binomial, ([5, 100], [0.5, 3.0], [2.0, 1.0])),
    (zero_inflated_poisson, ([0.0, 0.5], [3.0, 20.0])),
    (ordered_logistic, ([0.0, 2.0], [[-1.0, 1.0], [0.0, 0.5]])),
    (categorical, ([[0.0, 1.0, -math.inf], [2.0, 0.0, 1.0]],)),
]


@pytest.mark.parametrize("family,params", BATCHES, ids=label)
def test_batches_mean_what_single_calls_mean(family, params):
    """Parameters that leak across lanes, a sum over a batch axis, shared noise, a & between a lane and a constant."""
    arrays = [mx.array(p) for p in params]
    size, n = len(params[0]), 4000
    keys = random.as_key(11)

    def lane(index, *own):
        return family(*own).sample(random.lane_key(keys, index, size), n)

    inside_vmap = mx.vmap(lane)(mx.arange(size), *arrays)
    outside = family(*arrays).sample(mx.random.key(5), n)
    traces = vsimulate(family(*arrays), n, mx.random.key(6))
    assert inside_vmap.shape == (size, n) and outside.shape == (n, size) and traces.retval.shape == (n, size)
    for i in range(size):
        single = family(*[p[i] for p in params])
        alone = np.asarray(single.sample(mx.random.key(8), n))
        for x in (inside_vmap[i], outside[:, i], traces.retval[:, i]):
            x = np.asarray(x)
            if alone.std() == 0:
                assert (x == alone).all()
            else:
                assert stats.ks_2samp(x, alone, method="asymp").pvalue > 1e-3
        x = mx.array(alone[:20])
        want = np.asarray(single.log_prob(x))
        got = mx.vmap(lambda *own, x=x: family(*own).log_prob(x))(*arrays)[i]
        np.testing.assert_allclose(np.asarray(got), want, rtol=2e-6, atol=1e-6)
    draws = traces.retval
    score = mx.sum(family(*arrays).log_prob(draws), axis=-1)
    np.testing.assert_allclose(np.asarray(traces.score), np.asarray(score), rtol=1e-5, atol=1e-5)


SMOOTH = [
    (poisson, stats.poisson.logpmf, [0, 1, 4, 300], (0.7,)),
    (poisson, stats.poisson.logpmf, [9900, 10100], (1e4,)),
    (geometric, lambda x, p: stats.geom.logpmf(x, p, loc=-1), [0, 1, 7], (0.3,)),
    (neg_binomial, stats.nbinom.logpmf, [0, 1, 9, 400], (2.5, 0.3)),
    (neg_binomial, stats.nbinom.logpmf, [0, 2], (0.01, 0.9)),
    (zero_inflated_poisson, lambda x, g, r: ZeroInflated(g, r).logpmf(x), [0, 1, 9], (0.2, 3.0)),
    (zero_inflated_poisson, lambda x, g, r: ZeroInflated(g, r).logpmf(x), [0, 45], (0.2, 40.0)),
    (ordered_logistic, lambda x, e, c: ordered(e, c).logpmf(x), [0, 1, 2, 3], (0.4, [-1.0, 0.2, 2.0])),
    (categorical, lambda x, z: special.log_softmax(z)[x], [0, 2], ([0.3, 1.0, -2.0],)),
    (lambda p: binomial(10, p), lambda x, p: stats.binom.logpmf(x, 10, p), [0, 3, 10], (0.3,)),
    (lambda p: binomial(10**6, p), lambda x, p: stats.binom.logpmf(x, 10**6, p), [299_500], (0.3,)),
    (lambda a, b: beta_binomial(20, a, b), lambda x, a, b: stats.betabinom.logpmf(x, 20, a, b), [0, 7, 20], (0.6, 3.0)),
    (
        lambda p: multinomial(9, p),
        lambda x, p: stats.multinomial.logpmf(x, 9, p / p.sum()),
        [[2, 3, 4], [0, 9, 0]],
        ([0.2, 0.5, 0.9],),
    ),
    (
        lambda a: dirichlet_multinomial(9, a),
        lambda x, a: stats.dirichlet_multinomial.logpmf(x, a, 9),
        [[2, 3, 4], [0, 9, 0]],
        ([0.2, 5.0, 90.0],),
    ),
]


@pytest.mark.parametrize("family,logpmf,values,params", SMOOTH)
def test_gradients_agree_with_differences_of_scipy(family, logpmf, values, params):
    """A stop_gradient too many, or a clamp in the way, makes one of these zero or off by a term."""
    arrays = [mx.array(p, dtype=mx.float32) for p in params]
    exact = [np.asarray(a, dtype=np.float64) for a in arrays]
    x = np.asarray(values)
    # under vmap, which is where gradients of a batch come from
    grads = mx.vmap(lambda x: mx.grad(lambda p: family(*p).log_prob(x))(arrays))(mx.array(x))
    for place, got in enumerate(grads):
        for row, value in enumerate(x):
            for index in np.ndindex(exact[place].shape):

                def at(step, place=place, index=index, value=value):
                    moved = [e.copy() for e in exact]
                    moved[place][index] += step
                    return float(logpmf(value, *moved))

                h = 1e-5 * max(abs(float(exact[place][index])), 1e-2)
                want = (at(h) - at(-h)) / (2 * h)
                assert float(np.asarray(got[row])[index]) == pytest.approx(want, rel=1e-3, abs=2e-4)


OUTSIDE = [
    (poisson(3.0), [-1, 2.5, -0.5, math.inf, -math.inf]),
    (geometric(0.3), [-1, 2.5, math.inf, -math.inf]),
    (geometric(1.0), [1, 5, -1]),
    (binomial(5, 0.3), [-1, 6, 2.5, math.inf, -math.inf]),
    (binomial(5, 1.0), [4, 0, 6]),
    (neg_binomial(2.5, 0.3), [-1, 0.5, math.inf, -math.inf]),
    (neg_binomial(2.5, 1.0), [1, 2]),
    (discrete_uniform(-1, 4), [-2, 5, 1.5, math.inf, -math.inf]),
    (beta_binomial(5, 1.0, 2.0), [-1, 6, 2.5, math.inf, -math.inf]),
    (zero_inflated_poisson(0.3, 2.0), [-1, 0.5, math.inf, -math.inf]),
    (zero_inflated_poisson(1.0, 2.0), [1]),
    (ordered_logistic(0.0, [-1.0, 1.0]), [-1, 3, 0.5, math.inf, -math.inf]),
    (categorical([0.0, 1.0, -math.inf]), [-1, 3, 2, 0.5, math.inf, -math.inf]),
    (multinomial(3, [1.0, 2.0]), [[1, 1], [4, -1], [0, 4], [1.5, 1.5], [math.inf, 3], [math.inf, -math.inf]]),
    (multinomial(3, [1.0, 0.0]), [[2, 1]]),
    (dirichlet_multinomial(3, [1.0, 2.0]), [[1, 1], [4, -1], [1.5, 1.5], [math.inf, 3]]),
]


@pytest.mark.parametrize("call,values", OUTSIDE, ids=repr)
def test_outside_the_support_it_is_impossible(call, values):
    """Half counts scored like whole ones, an index wrapped around, NaN for infinity."""
    for value in values:
        assert call.log_prob(mx.array(value)).item() == -math.inf
        assert call.log_prob(value).item() == -math.inf


@pytest.mark.parametrize("call,values", OUTSIDE, ids=repr)
def test_gradients_outside_the_support_are_finite(call, values):
    """One NaN here poisons the gradient of every other site."""
    outside = [value for value in values if not np.any(np.asarray(call.support.contains(mx.array(value))))]
    names = list(call.gen_fn.parameters)
    real = [i for i, name in enumerate(names) if name not in ("n", "lo", "hi")]
    arrays = [mx.array(a, dtype=mx.float32) for a in call.raw_args]
    for value in outside if real else []:
        grads = mx.grad(lambda a, v=value: call.gen_fn(*a).log_prob(mx.array(v)))(arrays)
        assert all(np.isfinite(np.asarray(grads[i])).all() for i in real)


@pytest.mark.parametrize(
    "family,params,name",
    [
        (poisson, (-1.0,), "rate"), (poisson, (math.nan,), "rate"), (poisson, (math.inf,), "rate"),
        (geometric, (0.0,), "p"), (geometric, (1.5,), "p"),
        (binomial, (2.5, 0.5), "n"), (binomial, (-1, 0.5), "n"), (binomial, (3, 1.5), "p"), (binomial, (3, -0.1), "p"),
        (neg_binomial, (0.0, 0.5), "r"), (neg_binomial, (1.0, 0.0), "p"), (neg_binomial, (1.0, 1.1), "p"),
        (discrete_uniform, (3, 2), "hi"), (discrete_uniform, (0.5, 2), "lo"),
        (beta_binomial, (3, 0.0, 1.0), "a"), (beta_binomial, (3, 1.0, -1.0), "b"),
        (beta_binomial, (0.5, 1.0, 1.0), "n"),
        (zero_inflated_poisson, (1.2, 1.0), "gate"), (zero_inflated_poisson, (0.2, -1.0), "rate"),
        (ordered_logistic, (0.0, [1.0, 0.0]), "cutpoints"), (ordered_logistic, (0.0, [1.0, 1.0]), "cutpoints"),
        (categorical, ([0.0, math.nan],), "logits"), (categorical, ([-math.inf, -math.inf],), "logits"),
        (multinomial, (3, [0.5, -0.5]), "probs"), (multinomial, (3, [0.0, 0.0]), "probs"),
        (multinomial, (-1, [0.5, 0.5]), "n"),
        (dirichlet_multinomial, (3, [1.0, 0.0]), "alpha"),
    ],
)  # fmt: skip
def test_bad_parameters_raise_when_they_are_known_and_are_impossible_when_they_are_not(family, params, name):
    with pytest.raises(ParameterError, match=rf"{family.__name__}: {name} must be"):
        family(*params)
    arrays = [mx.array(p) for p in params]
    probe = [[1, 2], [3, 0], [0, 3]] if family in (multinomial, dirichlet_multinomial) else [0, 1, 2, 3]
    for value in probe:
        lp = mx.vmap(lambda *own: family(*own).log_prob(mx.array(value)))(*[a[None] for a in arrays])  # noqa: B023
        assert not math.isfinite(lp.item())


@pytest.mark.parametrize(
    "call",
    [
        binomial(9, 0.3), binomial(0, 0.5), beta_binomial(12, 0.4, 7.0), discrete_uniform(-3, 4),
        ordered_logistic(0.3, [-2.0, 0.0, 5.0]), categorical([3.0, -math.inf, 0.0, 80.0]),
    ],
    ids=repr,
)  # fmt: skip
def test_finite_supports_can_be_listed_and_sum_to_one(call):
    """A support that is short by one, or logits that are not normalised."""
    values = call.support.enumerate()
    assert values.dtype == mx.int32
    assert mx.sum(mx.exp(call.log_prob(values))).item() == pytest.approx(1, abs=2e-6)


def test_impossible_classes_are_never_drawn():
    """A uniform of exactly 0 or a rounded cumulative sum picks a class of weight 0."""
    logits = mx.where(mx.arange(1000) % 3 == 1, 0.0, -math.inf)
    x = categorical(logits).sample(mx.random.key(1), 30000)
    assert mx.all(x % 3 == 1).item()
    assert len(set(np.asarray(x).tolist())) == 333
    assert mx.all(categorical([-math.inf, 0.0]).sample(mx.random.key(2), 1000) == 1).item()


def test_wide_integer_ranges_reach_their_ends():
    """Bounds rounded to float32, or a uniform of 24 bits stretched over 2^32 values, leave gaps."""
    x = np.asarray(discrete_uniform(-(2**31), 2**31 - 1).sample(mx.random.key(0), 20000)).astype(np.int64)
    assert stats.kstest((x + 2.0**31) / 2.0**32, "uniform").pvalue > 1e-3
    assert stats.chisquare(np.bincount(x % 16)).pvalue > 1e-3
    assert discrete_uniform(2**24 + 1, 2**24 + 1).sample(mx.random.key(0)).item() == 2**24 + 1


def vectors(family, n, weights, size=20000):
    call = family(n, weights)
    x = call.sample(mx.random.key(4), size)
    assert x.dtype == mx.int32 and x.shape == (size, len(weights))
    assert mx.all(mx.sum(x, axis=-1) == n).item() and mx.min(x).item() >= 0
    return call, x


@pytest.mark.parametrize(
    "n,probs", [(0, [0.5, 0.5]), (1, [1.0]), (7, [1.0, 2.0, 3.0, 0.0, 4.0]), (10**6, [1e-6, 0.3, 0.7])]
)
def test_multinomial(n, probs):
    """Marginals are binomial; a sequential rest that runs out, or a class of weight 0 drawn, shows in them."""
    call, x = vectors(multinomial, n, probs)
    p = np.float32(probs).astype(np.float64)
    p = p / p.sum()
    for k in range(len(probs)):
        assert chi_squared(np.asarray(x)[:, k], stats.binom(n, p[k])) > 1e-3
    np.testing.assert_allclose(np.asarray(call.mean), n * p, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(call.variance), n * p * (1 - p), rtol=1e-5, atol=1e-6)
    rows = np.asarray(x)[:50]
    assert_close(call.log_prob(mx.array(rows)), [exact_multinomial(row, p) for row in rows])


def exact_multinomial(row, p):
    return special.gammaln(row.sum() + 1) - special.gammaln(row + 1).sum() + special.xlogy(row, p).sum()


@pytest.mark.parametrize(
    "n,alpha", [(0, [1.0, 2.0]), (9, [0.5, 2.0, 3.0]), (1000, [1e5, 3e5]), (50, [1e-3, 1e-3, 1e-3])]
)
def test_dirichlet_multinomial(n, alpha):
    """Marginals are beta-binomial; probabilities that underflow at tiny alpha make a NaN of the counts."""
    call, x = vectors(dirichlet_multinomial, n, alpha)
    a = np.float32(alpha).astype(np.float64)
    for k in range(len(alpha)):
        assert chi_squared(np.asarray(x)[:, k], stats.betabinom(n, a[k], a.sum() - a[k])) > 1e-3
    oracle = stats.dirichlet_multinomial(a, n)
    np.testing.assert_allclose(np.asarray(call.mean), oracle.mean(), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(call.variance), oracle.var(), rtol=1e-4, atol=1e-6)
    rows = np.asarray(x)[:50]
    assert_close(call.log_prob(mx.array(rows)), oracle.logpmf(rows))


def test_counts_of_a_batch_of_weights():
    """[N, K] parameters: a normalisation over the wrong axis mixes the rows."""
    weights = mx.array([[1.0, 2.0, 3.0], [5.0, 1.0, 1.0]])
    n = mx.array([5, 1000])
    for family in (multinomial, dirichlet_multinomial):
        x = family(n, weights).sample(mx.random.key(2), 3000)
        assert x.shape == (3000, 2, 3) and mx.all(mx.sum(x, axis=-1) == n).item()
        lp = family(n, weights).log_prob(x)
        assert lp.shape == (3000, 2)
        alone = [family(int(n[i].item()), weights[i]).log_prob(x[:, i]) for i in range(2)]
        np.testing.assert_allclose(np.asarray(lp), np.asarray(mx.stack(alone, axis=-1)), rtol=1e-6, atol=1e-5)
        mean = np.asarray(family(n, weights).mean)
        sd = np.sqrt(np.asarray(family(n, weights).variance))
        assert (np.abs(np.asarray(x).mean(axis=0) - mean) < 4 * sd / math.sqrt(3000)).all()


def test_mlx_still_gets_and_of_an_unbatched_array_wrong_under_vmap():
    """When this fails, MLX has mended it, and supports and families may join conditions with & again."""
    unbatched, lanes = mx.array([True, True, True]), mx.array([[True, False, True], [False, True, False]])
    assert mx.vmap(lambda lane: unbatched & lane)(lanes).shape == (1, 3)  # not (2, 3)
    assert mx.vmap(lambda lane: mx.logical_and(unbatched, lane))(lanes).shape == (2, 3)


def test_a_logit_keeps_the_digits_that_its_probability_has_not():
    """exp(-40) rounds away beside 1; both tails, their gradient sigmoid(-l), and what is wrong with the call."""
    for logit in (-40.0, 40.0, 100.0):
        want = {1: -np.log1p(np.exp(-logit)), 0: -logit - np.log1p(np.exp(-logit))}
        for x, log_prob in want.items():
            assert bernoulli(logits=logit).log_prob(x).item() == pytest.approx(log_prob, rel=1e-6)
    slope = mx.grad(lambda x: mx.sum(bernoulli(logits=x).log_prob(mx.array([1, 1, 0]))))(mx.array([40.0, -40.0, 40.0]))
    assert np.allclose(np.array(slope), [special.expit(-40), 1.0, -1.0], rtol=1e-5)
    assert bernoulli(logits=0.0).log_prob(2).item() == -math.inf
    with pytest.raises(ParameterError, match="logits.*nan"):
        bernoulli(logits=math.nan).log_prob(1)
    with pytest.raises(TypeError):
        bernoulli(0.5, logits=0.0).log_prob(1)


def test_a_star_import_brings_every_family():
    names = {}
    exec("from genmlx.dist import *", names)
    families = {module.name for module in pkgutil.iter_modules(genmlx.dist.__path__)}
    missing = {name for name in families if isinstance(getattr(genmlx.dist, name), Distribution)} - names.keys()
    assert not missing and names["flip"] is bernoulli and names["iid"](bernoulli(0.5), 3).event_shape == (3,)
