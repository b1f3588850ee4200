"""Densities in float64 against scipy's: what float32 would have rounded away."""

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from scipy import special, stats

from genmlx import dist, flip, gen, normal, trace
from genmlx.inference.log_density import LogDensity
from genmlx.native.graph import Untranslatable, graph_of
from genmlx.native.kernel import compile_function, compile_in_float64
from genmlx.native.promote import promoted

V = np.array([0.25, -0.5, 1.0])
MATRIX = np.array([[2.0, 0.5, 0.125], [0.5, 1.0, 0.25], [0.125, 0.25, 1.5]])
OTHER = np.array([[1.5, -0.25, 0.5], [-0.25, 2.0, 0.125], [0.5, 0.125, 1.0]])
CHOICES = np.array([0.5, 0.25, 0.25])


def single(x):
    return mx.array(np.asarray(x, np.float32))


def mixed(x, a, s):
    first, second = special.log_softmax([0.25, 0.75])
    return np.logaddexp(first + stats.norm.logpdf(x, a, s), second + stats.norm.logpdf(x, -a, 1))


def wrapped(x, a, s):
    return special.logsumexp(stats.norm.logpdf(x + 2 * np.pi * np.arange(-20, 21), a, s))


def levels(a, x):
    return np.log(np.diff(special.expit(np.array([-np.inf, -1.0, 0.5, np.inf]) - a))[x])


# What is observed, and its law, of a location a and a scale s; then scipy's log density. All constants are exact in
# float32, but for those of the law itself.
FAMILIES = {
    "normal": (0.75, normal, lambda x, a, s: stats.norm.logpdf(x, a, s)),
    "cauchy": (0.75, dist.cauchy, lambda x, a, s: stats.cauchy.logpdf(x, a, s)),
    "gumbel": (0.75, dist.gumbel, lambda x, a, s: stats.gumbel_r.logpdf(x, a, s)),
    "laplace": (0.75, dist.laplace, lambda x, a, s: stats.laplace.logpdf(x, a, s)),
    "logistic": (0.75, dist.logistic, lambda x, a, s: stats.logistic.logpdf(x, a, s)),
    "log_normal": (0.75, dist.log_normal, lambda x, a, s: stats.lognorm.logpdf(x, s, scale=np.exp(a))),
    "student_t": (0.75, lambda a, s: dist.student_t(s, a, 0.5), lambda x, a, s: stats.t.logpdf(x, s, a, 0.5)),
    "truncated_normal": (
        0.75,
        lambda a, s: dist.truncated_normal(a, s, -1.0, 2.0),
        lambda x, a, s: stats.truncnorm.logpdf(x, (-1 - a) / s, (2 - a) / s, a, s),
    ),
    "von_mises": (0.75, dist.von_mises, lambda x, a, s: stats.vonmises.logpdf(x, s, a)),
    "wrapped_normal": (0.75, dist.wrapped_normal, wrapped),
    "mixture": (0.75, lambda a, s: dist.mixture([normal(a, s), normal(-a, 1.0)], single([0.25, 0.75])), mixed),
    "uniform": (0.75, lambda a, s: dist.uniform(a - 4, a + 4 + s), lambda x, a, s: -np.log(8 + s)),
    "beta": (0.25, lambda a, s: dist.beta(mx.exp(a), s), lambda x, a, s: stats.beta.logpdf(x, np.exp(a), s)),
    "gamma": (0.75, lambda a, s: dist.gamma(s, mx.exp(a)), lambda x, a, s: stats.gamma.logpdf(x, s, scale=np.exp(-a))),
    "inv_gamma": (
        0.75,
        lambda a, s: dist.inv_gamma(s, mx.exp(a)),
        lambda x, a, s: stats.invgamma.logpdf(x, s, scale=np.exp(a)),
    ),
    "chi2": (0.75, lambda a, s: dist.chi2(s), lambda x, a, s: stats.chi2.logpdf(x, s)),
    "exponential": (0.75, lambda a, s: dist.exponential(s), lambda x, a, s: stats.expon.logpdf(x, scale=1 / s)),
    "half_cauchy": (0.75, lambda a, s: dist.half_cauchy(s), lambda x, a, s: stats.halfcauchy.logpdf(x, scale=s)),
    "half_normal": (0.75, lambda a, s: dist.half_normal(s), lambda x, a, s: stats.halfnorm.logpdf(x, scale=s)),
    "pareto": (3.5, lambda a, s: dist.pareto(s, mx.exp(a)), lambda x, a, s: stats.pareto.logpdf(x, s, scale=np.exp(a))),
    "weibull": (
        0.75,
        lambda a, s: dist.weibull(s, mx.exp(a)),
        lambda x, a, s: stats.weibull_min.logpdf(x, s, scale=np.exp(a)),
    ),
    "dirichlet": (
        CHOICES,
        lambda a, s: dist.dirichlet(mx.stack([s, mx.exp(a), 2 * s])),
        lambda x, a, s: stats.dirichlet.logpdf(x, [s, np.exp(a), 2 * s]),
    ),
    "multivariate_normal": (
        V,
        lambda a, s: dist.multivariate_normal(a * single(V), s * single(MATRIX)),
        lambda x, a, s: stats.multivariate_normal.logpdf(x, a * V, s * MATRIX),
    ),
    "wishart": (
        OTHER,
        lambda a, s: dist.wishart(5 + s, mx.exp(a) * single(MATRIX)),
        lambda x, a, s: stats.wishart.logpdf(x, 5 + s, np.exp(a) * MATRIX),
    ),
    "inv_wishart": (
        OTHER,
        lambda a, s: dist.inv_wishart(5 + s, mx.exp(a) * single(MATRIX)),
        lambda x, a, s: stats.invwishart.logpdf(x, 5 + s, np.exp(a) * MATRIX),
    ),
    "bernoulli": (True, lambda a, s: flip(mx.sigmoid(a)), lambda x, a, s: special.log_expit(a)),
    "bernoulli_logits": (False, lambda a, s: dist.bernoulli(logits=a), lambda x, a, s: special.log_expit(-a)),
    "binomial": (3, lambda a, s: dist.binomial(7, mx.sigmoid(a)), lambda x, a, s: stats.binom.logpmf(x, 7, expit(a))),
    "beta_binomial": (
        3,
        lambda a, s: dist.beta_binomial(7, s, mx.exp(a)),
        lambda x, a, s: stats.betabinom.logpmf(x, 7, s, np.exp(a)),
    ),
    "categorical": (
        1,
        lambda a, s: dist.categorical(mx.stack([a, s, a * s])),
        lambda x, a, s: special.log_softmax([a, s, a * s])[x],
    ),
    "geometric": (
        3,
        lambda a, s: dist.geometric(mx.sigmoid(a)),
        lambda x, a, s: np.log(expit(a)) + 3 * np.log(expit(-a)),
    ),
    "neg_binomial": (
        4,
        lambda a, s: dist.neg_binomial(s, mx.sigmoid(a)),
        lambda x, a, s: stats.nbinom.logpmf(x, s, expit(a)),
    ),
    "ordered_logistic": (
        1,
        lambda a, s: dist.ordered_logistic(a, single([-1.0, 0.5])),
        lambda x, a, s: levels(a, x),
    ),
    "poisson": (3, lambda a, s: dist.poisson(s), lambda x, a, s: stats.poisson.logpmf(x, s)),
}
expit = special.expit


def observed(name):
    """The model of a family with priors for a and s, and scipy's log density of u = (a, log s)."""
    x, make, law = FAMILIES[name]

    @gen
    def model():
        trace("x", make(trace("a", normal(0.25, 1.0)), trace("s", dist.gamma(2.0, 1.0))))

    def log_prob(u):
        a, s = u[0], np.exp(u[1])
        return stats.norm.logpdf(a, 0.25, 1) + stats.gamma.logpdf(s, 2) + u[1] + law(x, a, s)

    given = x if np.ndim(x) == 0 else single(x)
    return LogDensity(model(), {"x": given}), log_prob


def double(density):
    """``u -> value, gradient`` in float64."""
    f, _ = density.of_one(True)
    made = compile_in_float64(f, mx.zeros(density.dim))

    def call(u):
        value, gradient, _ = made(mx.array(np.asarray(u, float), dtype=mx.float64))
        assert value.dtype == gradient.dtype == mx.float64
        return value.item(), np.array(gradient)

    return call


def difference(log_prob, u, direction, h=1e-4):
    return (log_prob(u + h * direction) - log_prob(u - h * direction)) / (2 * h)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_scipys(name):
    """The value to what rounded coefficients cost; slopes over 2e-4, of which float32 knows three digits, to 2e-6.

    Gradients are those of this very function: to 1e-7, the error of the difference.
    """
    density, log_prob = observed(name)
    call, rng = double(density), np.random.default_rng(0)
    assert [density.addresses[a].start for a in (("a",), ("s",))] == [0, 1]
    for _ in range(5):
        u, direction = 0.7 * rng.normal(size=2), rng.normal(size=2)
        value, gradient = call(u)
        assert value == pytest.approx(log_prob(u), rel=3e-7, abs=3e-7)
        slope = difference(lambda v: call(v)[0], u, direction)
        assert slope == pytest.approx(difference(log_prob, u, direction), rel=2e-6, abs=2e-6)
        assert gradient @ direction == pytest.approx(slope, rel=1e-7, abs=1e-7)


@gen
def coordinates():
    trace("share", dist.beta(2.0, 3.0))
    trace("parts", dist.dirichlet(single([2.0, 1.0, 3.0])))


def test_coordinates_are_exact():
    """Latents between bounds and on a simplex: u of a share is its log odds, those of parts break sticks, centred."""

    def log_prob(u):
        share, sticks = expit(u[0]), expit(u[1:] - np.log([2.0, 1.0]))
        left = np.array([1.0, 1.0 - sticks[0]])
        parts = np.append(left * sticks, left[1] * (1 - sticks[1]))
        jacobian = np.log(share * (1 - share)) + np.log(sticks * (1 - sticks) * left).sum()
        return stats.beta.logpdf(share, 2, 3) + stats.dirichlet.logpdf(parts / parts.sum(), [2, 1, 3]) + jacobian

    density = LogDensity(coordinates())
    assert density.addresses[("share",)].start == 0
    call, rng = double(density), np.random.default_rng(1)
    for _ in range(5):
        u, direction = 2 * rng.normal(size=3), rng.normal(size=3)
        assert call(u)[0] == pytest.approx(log_prob(u), rel=3e-7, abs=3e-7)
        expected = difference(log_prob, u, direction)
        assert call(u)[1] @ direction == pytest.approx(expected, rel=1e-6, abs=1e-6)


@gen
def many(n):
    trace("y", normal(trace("mu", normal(0, 1)) + mx.zeros(n), 0.5))


def test_sums_of_many_numbers_keep_their_digits():
    """The density of 3e5 rows at two mu, 8 posterior deviations apart: float32 knows their ratio to 0.01 nats."""
    y = np.float32(1.5 + 0.5 * np.random.default_rng(0).normal(size=300_000))
    density = LogDensity(many(len(y)), {"y": mx.array(y)})
    exact, low, high = y.astype(float), 1.496, 1.503

    def log_prob(mu):
        return stats.norm.logpdf(exact, mu, 0.5).sum() + stats.norm.logpdf(mu)

    call, f = double(density), density.of_one(True)[0]
    rounded = compile_function(f, mx.zeros(1))
    expected = log_prob(high) - log_prob(low)
    assert call([high])[0] - call([low])[0] == pytest.approx(expected, abs=1e-6)
    single_precision = rounded(mx.array([high]))[0].item() - rounded(mx.array([low]))[0].item()
    assert abs(single_precision - expected) > 2e-3


# the pass itself


def as_graph(f, *arrays):
    return promoted(graph_of(f, *arrays))


def test_everything_is_float64_and_casts_between_the_two_are_gone():
    def f(x, n):
        y = (x.astype(mx.float64, stream=mx.cpu) * 2.0).astype(mx.float32, stream=mx.cpu)
        return [mx.sum(mx.where(y > 0, y, 0.1) * n.astype(mx.float32)), n + 1]

    graph = as_graph(f, mx.zeros(3), mx.zeros(3, mx.int32))
    assert not [node for node in graph.nodes if node.dtype == np.float32]
    assert [node.dtype for node in graph.inputs] == [np.float64, np.int32]
    assert [node.dtype for node in graph.outputs] == [np.float64, np.int32]
    assert not [node for node in graph.nodes if node.op == "AsType" and node.inputs[0].dtype == np.float64]
    assert [node for node in graph.nodes if node.op == "AsType" and node.inputs[0] is graph.inputs[1]]


def test_constants_keep_their_values():
    """Those that float32 gave them; and what is computed from them is rounded as float64."""
    table = single([0.1, 0.2, 0.3])
    made = compile_in_float64(lambda x: [x + table / 3, x + mx.array(0.1) * 3], mx.zeros(3))
    one, other = made(mx.zeros(3, dtype=mx.float64))
    rounded = np.float32([0.1, 0.2, 0.3]).astype(float)
    np.testing.assert_allclose(np.array(one), rounded / 3, rtol=2.3e-16)  # times the reciprocal of 3
    np.testing.assert_array_equal(np.array(other), np.full(3, rounded[0] * 3))


def test_numbers_made_of_bits_are_refused():
    with pytest.raises(Untranslatable, match="View in float64"):
        as_graph(lambda x: [(x.view(mx.int32) + 1).view(mx.float32)], mx.zeros(3))
    with pytest.raises(Untranslatable, match="RandomBits in float64"):
        as_graph(lambda x, key: [x + mx.random.uniform(key=key)], mx.zeros(3), mx.random.key(0))
