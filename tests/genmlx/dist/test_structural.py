"""Distributions made of others, against scipy in float64 at the float32 values that they are given."""

import math
import pickle
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from scipy import special, stats

from genmlx import choicemap, gen, select, trace
from genmlx.dist import bijectors
from genmlx.dist.bernoulli import bernoulli
from genmlx.dist.beta import beta
from genmlx.dist.between import BETWEEN
from genmlx.dist.binomial import binomial
from genmlx.dist.broadcasted_normal import broadcasted_normal
from genmlx.dist.cauchy import cauchy
from genmlx.dist.custom import distribution
from genmlx.dist.delta import delta
from genmlx.dist.dirichlet import dirichlet
from genmlx.dist.exponential import exponential
from genmlx.dist.gamma import gamma
from genmlx.dist.geometric import geometric
from genmlx.dist.gumbel import gumbel
from genmlx.dist.half_cauchy import half_cauchy
from genmlx.dist.half_normal import half_normal
from genmlx.dist.iid import iid
from genmlx.dist.laplace import laplace
from genmlx.dist.logistic import logistic
from genmlx.dist.mixture import mixture
from genmlx.dist.multivariate_normal import multivariate_normal
from genmlx.dist.normal import normal
from genmlx.dist.poisson import poisson
from genmlx.dist.product import product
from genmlx.dist.support import nonnegative, open_unit_interval, positive, real
from genmlx.dist.transformed import dist_transform, transformed
from genmlx.dist.truncated import truncated
from genmlx.dist.uniform import uniform
from genmlx.dist.weibull import weibull
from genmlx.errors import AddressError, ParameterError, UnknownAddress, UsageError, ValueMismatch

DRAWS = 20000
RNG = np.random.default_rng(20)


def label(value: Any) -> str:
    """What a parameter is called in a test's name: the same in every process."""
    return repr(value).split(" at 0x")[0][:50]


def f32(x: Any) -> np.ndarray:
    return np.asarray(x, dtype=np.float32).astype(np.float64)


def numbers(x: mx.array) -> np.ndarray:
    return np.array(x, dtype=np.float64)


def assert_log_density(got: mx.array, want: Any) -> None:
    """Within 3e-5, or two ulps of a large answer."""
    got, want = numbers(got), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape
    assert np.array_equal(np.isfinite(got), np.isfinite(want))
    finite = np.isfinite(want)
    bound = np.maximum(3e-5, 2 * np.spacing(np.abs(want[finite]).astype(np.float32)))
    assert np.all(np.abs(got[finite] - want[finite]) <= bound), (got, want)
    assert np.all(got[~finite] == want[~finite])


def slope(f: Any, x: float, h: float = 1e-5) -> float:
    return (f(x + h) - f(x - h)) / (2 * h)


def key(n: int) -> mx.array:
    return mx.random.key(n)


# delta


@pytest.mark.parametrize("value", [2, 2.5, True, [1.0, -math.inf], mx.array([[1, 2], [3, 4]], dtype=mx.int16)])
def test_delta_keeps_shape_and_dtype(value):
    """Catches a delta that makes every value float32, or that sums its density over the elements."""
    expected = value if isinstance(value, mx.array) else mx.array(value)
    draw = delta(value).sample(shape=(3,))
    assert draw.dtype == expected.dtype and draw.shape == (3, *expected.shape)
    assert mx.array_equal(delta(value).sample(), expected)
    assert numbers(delta(value).log_prob(expected)).tolist() == np.zeros(expected.shape).tolist()
    elsewhere = numbers(delta(value).log_prob(expected.astype(mx.float32) + 0.5))
    assert np.all(elsewhere[np.isfinite(numbers(expected))] == -math.inf)


def test_delta_is_differentiable_and_a_site():
    @gen
    def model(v):
        return trace("x", delta(v * v))

    args, _, grads = model.generate((3.0,), {"x": 9.0})[0].choice_gradients(select("x"))
    assert grads["x"].item() == 0.0 and args[0].item() == 0.0
    assert mx.grad(lambda v: delta(v * v).sample(key(0)))(mx.array(3.0)).item() == 6.0
    assert model.generate((3.0,), {"x": 8.0}).weight.item() == -math.inf
    assert model(3.0).vgenerate({"x": 9.0}, 4).weight.tolist() == [0.0] * 4
    with pytest.raises(ParameterError, match="delta: v must be a number, got nan"):
        delta(math.nan)


# broadcasted_normal


def test_broadcasted_normal_is_one_event():
    """Catches a density that sums over all axes (the batch too), or keeps the event axes."""
    mu, sigma = f32(RNG.normal(size=(2, 1))), f32(RNG.uniform(0.1, 3, size=(3,)))
    x = f32(RNG.normal(size=(5, 2, 3)))
    d = broadcasted_normal(mx.array(mu.astype(np.float32)), mx.array(sigma.astype(np.float32)))
    assert d.event_shape == (2, 3) and d.batch_shape == () and d.support.event_ndim == 2
    assert_log_density(d.log_prob(mx.array(x.astype(np.float32))), stats.norm(mu, sigma).logpdf(x).sum((1, 2)))
    assert d.sample(key(0), (4,)).shape == (4, 2, 3) and d.mean.shape == (2, 3)
    with pytest.raises(ValueMismatch, match="broadcasted_normal"):
        d.log_prob(mx.zeros((5, 2)))
    assert broadcasted_normal(0, 1).log_prob(mx.zeros((4,))).shape == (4,)
    with pytest.raises(ParameterError, match="do not broadcast"):
        broadcasted_normal(mx.zeros((2,)), mx.ones((3,))).log_prob(mx.zeros((3,)))


def test_broadcasted_normal_in_a_batch():
    """Catches an event that swallows the lanes of a batch."""

    @gen
    def model():
        m = trace("m", normal(0, 1))
        trace("x", broadcasted_normal(mx.stack([m, -m]), 2.0))

    batch = model().vgenerate({"x": [0.5, 1.0]}, 6, key=key(3))
    m = numbers(batch.trace["m"])
    want = stats.norm(m, 2).logpdf(0.5) + stats.norm(-m, 2).logpdf(1.0)
    assert_log_density(batch.weight, want)
    draws = numbers(broadcasted_normal(mx.array([1.0, -2.0]), mx.array([0.5, 3.0])).sample(key(1), (DRAWS,)))
    for j, oracle in enumerate((stats.norm(1, 0.5), stats.norm(-2, 3))):
        assert stats.kstest(draws[:, j], oracle.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(draws.T)[0, 1]) < 4 / math.sqrt(DRAWS)


# mixture


def gaussians(weights: Any, means: Any, sigmas: Any, x: Any) -> Any:
    """log density of a mixture of normals; the components on the last axis."""
    log_weights = weights - special.logsumexp(weights, axis=-1, keepdims=True)
    return special.logsumexp(log_weights + stats.norm(means, sigmas).logpdf(np.asarray(x)[..., None]), axis=-1)


WEIGHTS, MEANS, SIGMAS = f32([0.3, -1.2, 2.0]), f32([-3.0, 0.5, 40.0]), f32([0.5, 2.0, 0.01])


def as_list(weights: Any, means: Any, sigmas: Any) -> Any:
    return mixture([normal(m, s) for m, s in zip(means, sigmas, strict=True)], weights)


def as_one_call(weights: Any, means: Any, sigmas: Any) -> Any:
    return mixture(normal(means, sigmas), weights)


@pytest.mark.parametrize("make", [as_list, as_one_call])
def test_mixture_density(make):
    """Catches weights left unnormalised, and a sum of exponentials that underflows between far components."""
    d = make(*(mx.array(p.astype(np.float32)) for p in (WEIGHTS, MEANS, SIGMAS)))
    x = f32([[-30.0, -3.0, 0.1], [5.0, 39.99, 300.0]])
    assert d.event_shape == () and d.batch_shape == () and d.support is real
    assert_log_density(d.log_prob(mx.array(x.astype(np.float32))), gaussians(WEIGHTS, MEANS, SIGMAS, x))
    assert d.log_prob(mx.array([math.inf, -math.inf])).tolist() == [-math.inf] * 2
    p = special.softmax(WEIGHTS)
    mean = (p * MEANS).sum()
    assert d.mean.item() == pytest.approx(mean, rel=1e-5)
    assert d.variance.item() == pytest.approx((p * (SIGMAS**2 + (MEANS - mean) ** 2)).sum(), rel=1e-5)


@pytest.mark.parametrize("make", [as_list, as_one_call])
def test_mixture_draws(make):
    """Catches one component index shared by all draws, and weights used unnormalised or as probabilities."""
    weights, means, sigmas = f32([0.5, 1.5]), f32([0.0, 3.0]), f32([1.0, 0.5])
    d = make(*(mx.array(p.astype(np.float32)) for p in (weights, means, sigmas)))
    p = special.softmax(weights)
    draws = numbers(d.sample(key(5), (DRAWS,)))
    assert stats.kstest(draws, lambda x: (p * stats.norm(means, sigmas).cdf(x[:, None])).sum(-1)).pvalue > 1e-3
    assert not d.reparameterised


@pytest.mark.parametrize("make", [as_list, as_one_call])
def test_mixture_gradients(make):
    """Catches a density that is not differentiable in the weights or the components."""
    point = [WEIGHTS[:2], MEANS[:2], np.array([0.5, 2.0])]

    def log_prob(x, *params):
        return make(*params).log_prob(x)

    arrays = [mx.array(p.astype(np.float32)) for p in point]
    grads = mx.grad(log_prob, argnums=(0, 1, 2, 3))(mx.array(-0.7), *arrays)
    assert grads[0].item() == pytest.approx(slope(lambda x: gaussians(*point, x), f32(-0.7)), rel=1e-3)
    for i in range(3):
        for j in range(2):

            def of(v, i=i, j=j):
                moved = [p.copy() for p in point]
                moved[i][j] = v
                return gaussians(*moved, f32(-0.7))

            assert grads[1 + i][j].item() == pytest.approx(slope(of, point[i][j]), rel=1e-3, abs=1e-6)


def test_mixture_support_is_the_union():
    """Catches the support of the first component alone, and gradients that are NaN outside a component's support."""
    d = mixture([exponential(2.0), uniform(-2, -1)], [0.0, 0.0])
    x = f32([-3.0, -1.5, -0.5, 0.0, 2.0, math.inf])
    want = np.logaddexp(stats.expon(scale=0.5).logpdf(x), stats.uniform(-2, 1).logpdf(x)) - math.log(2)
    assert_log_density(d.log_prob(mx.array(x.astype(np.float32))), want)
    assert d.support.contains(mx.array(x)).tolist() == [False, True, False, True, True, False]
    grads = mx.grad(lambda v, r: mx.sum(mixture([exponential(r), uniform(-2, -1)], [0.0, 0.0]).log_prob(v)), (0, 1))
    for g in grads(mx.array([-3.0, -1.5, 2.0, math.inf]), mx.array(2.0)):
        assert np.all(np.isfinite(numbers(g)))
    bounds = mixture(uniform(mx.array([0.0, 4.0]), mx.array([1.0, 5.0])), [0.0, 0.0])
    assert bounds.support.contains(mx.array([0.5, 2.0, 4.5])).tolist() == [True, False, True]
    assert np.all(np.isfinite(numbers(bounds.log_prob(bounds.support.interior(mx.array([7.0]))))))


def test_mixture_of_counts_vectors_and_batches():
    """Catches a component axis that is confused with a batch or an event axis."""
    zip3 = mixture([delta(0), poisson(3.0)], mx.log(mx.array([0.2, 0.8])))
    k = np.arange(8)
    want = np.log(0.2 * (k == 0) + 0.8 * stats.poisson(3).pmf(k))
    assert zip3.support.discrete and zip3.sample(key(0), (5,)).dtype == mx.int32
    assert_log_density(zip3.log_prob(mx.array(k)), want)
    observed = np.bincount(np.array(zip3.sample(key(2), (DRAWS,))), minlength=8)[:8]
    probs = np.exp(want)
    counts = [*observed, DRAWS - observed.sum()]
    assert stats.chisquare(counts, DRAWS * np.array([*probs, 1 - probs.sum()])).pvalue > 1e-3

    means = f32(RNG.normal(size=(2, 3, 4)))  # 2 mixtures of 3 components of vectors of length 4
    cov = np.eye(4) * 0.5
    x = f32(RNG.normal(size=(5, 2, 4)))
    d = mixture(multivariate_normal(mx.array(means.astype(np.float32)), mx.array(cov.astype(np.float32))), mx.zeros(3))
    assert d.batch_shape == (2,) and d.event_shape == (4,) and d.mean.shape == (2, 4)
    each = stats.norm(means, math.sqrt(0.5)).logpdf(x[:, :, None, :]).sum(-1)
    assert_log_density(d.log_prob(mx.array(x.astype(np.float32))), special.logsumexp(each, axis=-1) - math.log(3))
    assert d.sample(key(0), (7,)).shape == (7, 2, 4)
    assert np.allclose(numbers(d.mean), means.mean(1), atol=1e-6)

    weights = mx.array([[0.0, -math.inf], [-math.inf, 0.0]])  # a batch of weights over scalar components
    d = mixture([normal(0, 1), normal(100, 1)], weights)
    assert d.batch_shape == (2,)
    assert np.allclose(numbers(d.sample(key(1), (9,))).mean(0), [0, 100], atol=2)
    assert_log_density(d.log_prob(100.0), [stats.norm(0, 1).logpdf(100), stats.norm(100, 1).logpdf(100)])


def test_mixture_errors():
    with pytest.raises(ParameterError, match=r"different event shapes: normal \(\) and dirichlet \(3,\)"):
        mixture([normal(0, 1), dirichlet(mx.ones(3))], [0.0, 0.0])
    for other in (poisson(1.0), delta(0.0)):
        with pytest.raises(ParameterError, match="different kinds: normal continuous and (poisson|delta) discrete"):
            mixture([normal(0, 1), other], [0.0, 0.0])
    with pytest.raises(ParameterError, match=r"2 components, and log_weights of shape \[3\]"):
        mixture([normal(0, 1), normal(1, 1)], [0.0, 0.0, 0.0])
    with pytest.raises(ParameterError, match="no batch axis"):
        mixture(normal(0, 1), [0.0])
    with pytest.raises(ParameterError, match="log_weights"):
        mixture([normal(0, 1)], 0.0)
    with pytest.raises(UsageError, match="mixture was given normal"):
        mixture([normal], [0.0])
    with pytest.raises(UsageError, match="the components are"):
        mixture([], [])
    with pytest.raises(UsageError, match="mixture was given product"):
        mixture([product([normal(0, 1)])], [0.0])


# iid


def test_iid_sums_over_its_axes_only():
    """Catches the heuristic that takes the last axis for the repeats when the batch has the same size."""
    mu = f32([0.0, 5.0, -5.0])
    x = f32(RNG.normal(size=(4, 3, 3)))
    d = iid(normal(mx.array(mu.astype(np.float32)), 2.0), 3)
    assert d.event_shape == (3,) and d.batch_shape == (3,)
    assert_log_density(d.log_prob(mx.array(x.astype(np.float32))), stats.norm(mu[:, None], 2).logpdf(x).sum(-1))
    assert np.allclose(numbers(d.mean), np.repeat(mu[:, None], 3, 1))
    draws = numbers(d.sample(key(0), (2000,)))
    assert draws.shape == (2000, 3, 3) and np.allclose(draws.mean((0, 2)), mu, atol=4 * 2 / math.sqrt(6000))
    inside = iid(uniform(mx.array([0.0, 10.0]), mx.array([1.0, 11.0])), 3).support
    assert inside.contains(mx.array([[0.1, 0.2, 0.3], [10.5, 10.5, 0.5]])).tolist() == [True, False]
    assert inside.interior(mx.zeros((2, 3))).tolist() == [[0.5] * 3, [10.5] * 3]


def test_iid_of_vectors_and_shapes():
    alpha = f32([1.0, 2.0, 3.0])
    d = iid(dirichlet(mx.array(alpha.astype(np.float32))), (2, 4))
    assert d.event_shape == (2, 4, 3) and d.support.event_ndim == 3
    x = d.sample(key(0), (5,))
    assert x.shape == (5, 2, 4, 3) and mx.all(d.support.contains(x)).item()
    y = numbers(x)
    y = y / y.sum(-1, keepdims=True)
    want = np.apply_along_axis(stats.dirichlet(alpha).logpdf, -1, y).sum((1, 2))
    assert np.allclose(numbers(d.log_prob(x)), want, atol=2e-4)
    assert iid(normal(0, 1), ()).event_shape == ()
    assert iid(normal(0, 1), 0).log_prob(mx.zeros((2, 0))).tolist() == [0, 0]
    draws = numbers(iid(poisson(2.5), 50).sample(key(7), (DRAWS // 50,))).ravel()
    observed = np.bincount(draws.astype(int), minlength=9)[:9]
    p = stats.poisson(2.5).pmf(np.arange(9))
    counts = [*observed, len(draws) - observed.sum()]
    assert stats.chisquare(counts, len(draws) * np.array([*p, 1 - p.sum()])).pvalue > 1e-3


@pytest.mark.parametrize("n", [-1, 2.0, True, (2, -3), mx.array(3)])
def test_iid_size_errors(n):
    with pytest.raises(ParameterError, match="iid: n must be a whole number"):
        iid(normal(0, 1), n)


def test_iid_shape_errors():
    with pytest.raises(ValueMismatch, match="iid"):
        iid(normal(0, 1), 3).log_prob(mx.zeros((4,)))
    with pytest.raises(UsageError, match="iid was given normal"):
        iid(normal, 3)


# product


def test_product_values_and_density():
    """Catches a product whose density keeps or mixes up the parts."""
    deep = product([bernoulli(0.25), normal(1, 1)])
    d = product({"mu": normal(mx.array([0.0, 1.0]), 2.0), "k": poisson(3.0), "deep": deep})
    value = {"mu": [0.5, 1.5], "k": 2, "deep": [1, 0.0]}
    want = stats.norm([0, 1], 2).logpdf([0.5, 1.5]).sum() + stats.poisson(3).logpmf(2)
    want += math.log(0.25) + stats.norm(1, 1).logpdf(0)
    assert d.log_prob(value).item() == pytest.approx(want, abs=3e-5)
    choices = {**value, "deep": {0: 1, 1: 0.0}}
    assert d.assess(choices).score.item() == pytest.approx(want, abs=3e-5)
    assert d.assess(choices).retval["deep"][0].item() == 1
    draw = d.sample(key(0), (6,))
    assert draw["mu"].shape == (6, 2) and draw["k"].dtype == mx.int32 and draw["deep"][1].shape == (6,)
    assert d.log_prob(draw).shape == (6,)
    assert d.event_shape == {"mu": (2,), "k": (), "deep": [(), ()]} and d.mean["deep"][1].item() == 1.0
    assert d.support.contains(value).item() and not d.support.contains({**value, "k": 0.5}).item()
    assert isinstance(product((normal(0, 1),)).sample(key(0)), tuple)


def test_product_as_a_site():
    """Catches choices that cannot be constrained, selected or updated part by part."""

    @gen
    def model(s):
        a, b = trace("p", product([normal(0, s), bernoulli(0.25)]))
        return trace("y", normal(a + b, 1))

    tr, weight = model.generate((2.0,), {("p", 1): 1}, key=key(0))
    assert tr.choices.addresses() == [("p", 0), ("p", 1), ("y",)]
    assert weight.item() == pytest.approx(math.log(0.25), abs=1e-6)
    assert model.assess((2.0,), tr.choices).score.item() == tr.score.item()
    assert tr.project(select("p")).item() + tr.project(~select("p")).item() == pytest.approx(tr.score.item(), abs=1e-5)
    new, weight, _, discard = tr.update({("p", 0): 0.5})
    assert discard == choicemap({("p", 0): tr["p", 0]})
    assert weight.item() == pytest.approx(new.score.item() - tr.score.item(), abs=1e-5)
    again, weight, _ = tr.regenerate(select(("p", 0)), key=key(1))
    assert again["p", 1] is tr["p", 1] and again["p", 0].item() != tr["p", 0].item()
    y, mu = tr["y"].item(), 1 + np.array([tr["p", 0].item(), again["p", 0].item()])
    assert weight.item() == pytest.approx(np.diff(stats.norm(mu, 1).logpdf(y))[0], abs=1e-4)
    with pytest.raises(UnknownAddress, match="never visits"):
        model.generate((2.0,), {("p", 7): 0.0})
    with pytest.raises(AddressError):
        model.generate((2.0,), {"p": 0.0})
    batch = model(2.0).vgenerate({("p", 1): 1}, 5, key=key(2))
    assert batch.trace["p", 0].shape == (5,) and np.allclose(numbers(batch.weight), math.log(0.25), atol=1e-6)
    lane = batch.trace[3]
    assert batch.trace.score[3].item() == pytest.approx(model.assess((2.0,), lane.choices).score.item(), abs=1e-5)
    args, _, grads = tr.choice_gradients(select(("p", 0)))
    a = tr["p", 0].item()
    assert grads["p", 0].item() == pytest.approx(-a / 4 + (y - a - 1), rel=1e-4)
    assert args[0].item() == pytest.approx(a * a / 8 - 0.5, rel=1e-4)


def test_product_with_parts_that_come_and_go():
    @gen
    def model(n):
        return trace("p", product([normal(i, 1) for i in range(n)]))

    tr = model.simulate((3,), key=key(0))
    new, weight, _, discard = tr.update({}, args=(2,))
    assert discard == choicemap({("p", 2): tr["p", 2]})
    assert weight.item() == pytest.approx(-stats.norm(2, 1).logpdf(tr["p", 2].item()), abs=1e-5)
    assert model.generate((3,), new.choices | discard).trace.score.item() == pytest.approx(tr.score.item(), abs=1e-5)


def test_product_errors():
    with pytest.raises(UsageError, match="product was given"):
        product([normal])
    with pytest.raises(UsageError, match="product was given"):
        product([])
    with pytest.raises(ValueMismatch, match="not a value of this product"):
        product([normal(0, 1), normal(0, 1)]).log_prob([0.0])
    with pytest.raises(UsageError, match="cauchy has no mean"):
        _ = product([cauchy(0, 1)]).mean


# bijectors

def log_expm1(y: Any) -> Any:
    return y + np.log(-np.expm1(-y))


BIJECTORS = [
    (bijectors.exp, np.exp, np.exp, [-80.0, -1.0, 0.3, 60.0]),
    (bijectors.log, np.log, lambda x: 1 / x, [1e-30, 0.3, 7.0, 1e20]),
    (bijectors.affine(2.0, -3.0), lambda x: 2 - 3 * x, lambda x: -3 + 0 * x, [-50.0, 0.1, 4.0]),
    (bijectors.sigmoid, special.expit, lambda x: special.expit(x) * special.expit(-x), [-60.0, -2.0, 0.0, 5.0]),
    (bijectors.logit, special.logit, lambda x: 1 / x / (1 - x), [1e-20, 0.3, 0.75, 0.999]),
    (bijectors.softplus, lambda x: np.logaddexp(0, x), special.expit, [-40.0, -1.0, 0.5, 30.0]),
    (bijectors.softplus.inverted(), log_expm1, lambda y: -1 / np.expm1(-y), [1e-10, 0.7, 40.0]),
    (bijectors.tanh, np.tanh, lambda x: 1 / np.cosh(x) ** 2, [-30.0, -0.5, 0.01, 3.0]),
    (bijectors.power(2.5), lambda x: x**2.5, lambda x: 2.5 * x**1.5, [1e-8, 0.5, 1e8]),
    (bijectors.power(-1.0), lambda x: 1 / x, lambda x: -1 / x**2, [1e-8, 0.5, 1e8]),
    (bijectors.reciprocal, lambda x: 1 / x, lambda x: -1 / x**2, [-3.0, -1e-5, 0.2, 1e6]),
    (bijectors.from_function(mx.sinh, mx.arcsinh), np.sinh, np.cosh, [-5.0, 0.0, 2.0]),
]


@pytest.mark.parametrize(("bijector", "function", "derivative", "points"), BIJECTORS, ids=label)
def test_bijector(bijector, function, derivative, points):
    """Catches a Jacobian of the wrong sign or of the inverse, and one that overflows in the tails."""
    x = f32(points)
    given = mx.array(x.astype(np.float32))
    forward = bijector.forward(given)
    assert np.allclose(numbers(forward), function(x), rtol=1e-5)
    assert_log_density(bijector.log_abs_det_jacobian(given), np.log(np.abs(derivative(x))))
    middle = mx.array(x[1:-1].astype(np.float32))
    assert np.allclose(numbers(bijector.inverse(bijector.forward(middle))), x[1:-1], rtol=1e-4, atol=1e-6)
    assert mx.all(bijector.reaches(bijector.forward(middle))).item()
    there = bijector.inverted()
    assert np.allclose(numbers(there.forward(bijector.forward(middle))), x[1:-1], rtol=1e-4, atol=1e-6)
    back = there.log_abs_det_jacobian(bijector.forward(middle))
    assert np.allclose(numbers(back), -np.log(np.abs(derivative(x[1:-1]))), rtol=1e-4, atol=1e-4)
    # its derivative, by differentiation
    slopes = mx.vmap(mx.grad(bijector.forward))(middle)
    assert np.allclose(numbers(slopes), derivative(x[1:-1]), rtol=1e-3)


def test_bijector_errors():
    with pytest.raises(ParameterError, match="affine: scale must be a number other than 0, got 0"):
        bijectors.affine(1.0, 0)
    with pytest.raises(ParameterError, match="power: the exponent"):
        bijectors.power(0)
    with pytest.raises(ParameterError, match="the inverse does not undo"):
        bijectors.from_function(lambda x: 2 * x, lambda y: y / 3)
    with pytest.raises(UsageError, match="the inverse function is 3"):
        bijectors.from_function(mx.exp, 3)  # pyright: ignore[reportArgumentType]
    for whole in (lambda x: mx.softmax(x, axis=-1), lambda x: mx.cumsum(x), lambda x: x * mx.ones((3,)), mx.sort):
        with pytest.raises(UsageError, match="is not a function of one number"):
            bijectors.from_function(whole, lambda y: y)
    assert numbers(bijectors.affine(0.0, mx.array(0.0)).log_abs_det_jacobian(mx.array(1.0))).tolist() != [0.0]


# transformed

MU, SIGMA = 0.3, 1.7


@pytest.mark.parametrize("how", [bijectors.exp, (mx.exp, mx.log), (lambda x: mx.exp(x), lambda y: mx.log(y))])
def test_log_normal_as_exp_of_normal(how):
    """Catches a Jacobian that is missing, has the wrong sign, or is taken at the value instead of its inverse."""
    d = transformed(normal(MU, SIGMA), how)
    x = f32([1e-20, 0.01, 1.0, 2.5, 1e10])
    oracle = stats.lognorm(f32(SIGMA), scale=np.exp(f32(MU)))
    assert_log_density(d.log_prob(mx.array(x.astype(np.float32))), oracle.logpdf(x))
    outside = mx.array([0.0, -1.0, -math.inf, math.inf, math.nan])
    assert d.log_prob(outside).tolist() == [-math.inf] * 5
    grads = mx.grad(lambda v, m, s: mx.sum(transformed(normal(m, s), how).log_prob(v)), (0, 1, 2))
    for g in grads(outside, mx.array(MU), mx.array(SIGMA)):
        assert np.all(np.isfinite(numbers(g)))
    gx, gm, gs = grads(mx.array(2.5), mx.array(MU), mx.array(SIGMA))
    assert gx.item() == pytest.approx(slope(oracle.logpdf, 2.5), rel=1e-3)
    assert gm.item() == pytest.approx(slope(lambda m: stats.lognorm(SIGMA, scale=np.exp(m)).logpdf(2.5), MU), rel=1e-3)
    assert gs.item() == pytest.approx(slope(lambda s: stats.lognorm(s, scale=np.exp(MU)).logpdf(2.5), SIGMA), rel=1e-3)
    draws = d.sample(key(1), (DRAWS,))
    assert stats.kstest(numbers(draws), oracle.cdf).pvalue > 1e-3
    assert d.reparameterised
    dx = mx.grad(lambda m: transformed(normal(m, SIGMA), how).sample(key(4)))(mx.array(MU))
    assert dx.item() == pytest.approx(d.sample(key(4)).item(), rel=1e-5)  # d exp(m + s e) / dm


TRANSFORMED = [
    (transformed(normal(0, 10), bijectors.sigmoid),
     lambda y: stats.norm(0, 10).logpdf(special.logit(y)) - np.log(y * (1 - y)), [1e-9, 0.2, 0.9]),
    (transformed(gamma(3, 2), bijectors.reciprocal), stats.invgamma(3, scale=2).logpdf, [0.1, 1.0, 30.0]),
    (transformed(exponential(1), bijectors.power(0.5)), stats.weibull_min(2).logpdf, [0.01, 0.5, 3.0]),
    (transformed(uniform(0, 1), bijectors.logit), stats.logistic.logpdf, [-9.0, 0.1, 4.0]),
    (transformed(laplace(0, 1), bijectors.affine(2, -3)), stats.laplace(2, 3).logpdf, [-20.0, 2.5, 9.0]),
    (transformed(beta(2, 3), (lambda x: 1 - x, lambda y: 1 - y)), stats.beta(3, 2).logpdf, [0.1, 0.5, 0.99]),
    (transformed(transformed(normal(0, 1), bijectors.exp), bijectors.log), stats.norm.logpdf, [-4.0, 0.5, 3.0]),
    (transformed(normal(0, 1), bijectors.tanh),
     lambda y: stats.norm.logpdf(np.arctanh(y)) - np.log1p(-y * y), [-0.9, 0.1]),
    (transformed(normal(0, 1), bijectors.softplus),
     lambda y: stats.norm.logpdf(log_expm1(y)) + y - log_expm1(y), [0.01, 0.7, 4.0]),
]  # fmt: skip


@pytest.mark.parametrize(("d", "log_density", "points"), TRANSFORMED, ids=label)
def test_transformed(d, log_density, points):
    """Catches a wrong Jacobian for any of the bijectors, and draws that their own density calls impossible."""
    x = f32(points)
    assert_log_density(d.log_prob(mx.array(x.astype(np.float32))), log_density(x))
    draws = d.sample(key(9), (DRAWS,))
    assert mx.all(d.support.contains(draws)).item() and np.all(np.isfinite(numbers(d.log_prob(draws))))
    ends = np.quantile(numbers(draws), [0.4, 0.6])
    grid = np.linspace(*ends, 2001)
    mass = np.trapezoid(np.exp(log_density(grid)), grid)
    assert abs(mass - 0.2) < 4 * math.sqrt(0.16 / DRAWS)
    assert np.isfinite(numbers(d.log_prob(d.support.interior(draws[:2])))).all()


def test_transformed_support():
    assert transformed(normal(0, 1), bijectors.exp).support is positive
    assert transformed(normal(0, 1), bijectors.sigmoid).support is open_unit_interval
    assert transformed(iid(normal(0, 1), 3), bijectors.exp).support.element is positive
    d = transformed(uniform(1, 2), bijectors.exp)
    assert d.support.contains(mx.array([2.0, 3.0, 7.0, 8.0, -1.0])).tolist() == [False, True, True, False, False]
    # an inverse that is only one on the values of the function must not let others in
    square = transformed(exponential(1), (lambda x: x * x, lambda y: mx.sqrt(mx.abs(y))))
    assert square.log_prob(-4.0).item() == -math.inf
    assert square.log_prob(4.0).item() == pytest.approx(-2 - math.log(4), abs=1e-5)


def test_transformed_events_batches_and_counts():
    """Catches a Jacobian that is not summed over the event, and bijector parameters that share one draw of the base."""
    x = f32([[0.5, 1.0, 4.0], [2.0, 2.0, 0.1]])
    d = transformed(iid(normal(0, 1), 3), bijectors.exp)
    assert d.event_shape == (3,)
    assert_log_density(d.log_prob(mx.array(x.astype(np.float32))), stats.lognorm(1).logpdf(x).sum(-1))
    assert d.log_prob(mx.array([1.0, -1.0, 1.0])).item() == -math.inf

    d = transformed(normal(0, 1), bijectors.affine(mx.array([0.0, 10.0]), 2.0))
    assert d.batch_shape == (2,) and d.mean.tolist() == [0, 10] and d.variance.tolist() == [4, 4]
    draws = numbers(d.sample(key(0), (2000,)))
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.1
    assert_log_density(d.log_prob(mx.array([1.0, 1.0])), stats.norm([0, 10], 2).logpdf(1.0))

    trials = transformed(geometric(0.3), bijectors.affine(1, 1))
    k = np.arange(-1, 7)
    assert trials.support.discrete and trials.sample(key(0), (4,)).dtype == mx.int32
    assert_log_density(trials.log_prob(mx.array(k)), stats.geom(f32(0.3)).logpmf(k))
    assert trials.log_prob(1.5).item() == -math.inf
    for loc in (mx.zeros((4,)), mx.zeros((2, 1, 4))):
        with pytest.raises(ParameterError, match=r"does not fit|makes"):
            _ = transformed(iid(normal(0, 1), 3), bijectors.affine(loc, 1.0)).batch_shape
    with pytest.raises(ParameterError, match="makes"):
        _ = transformed(iid(normal(0, 1), 1), bijectors.affine(mx.zeros((4,)), 1.0)).batch_shape


def test_transformed_errors():
    with pytest.raises(ParameterError, match="takes what is positive; the value of normal.* is a real number"):
        transformed(normal(0, 1), bijectors.log)
    with pytest.raises(ParameterError, match="takes what is positive"):
        transformed(poisson(1.0), bijectors.power(2))
    with pytest.raises(ParameterError, match="ties its elements together"):
        transformed(dirichlet(mx.ones(3)), bijectors.exp)
    with pytest.raises(ParameterError, match="point mass"):
        transformed(delta(1.0), bijectors.exp)
    with pytest.raises(ParameterError, match="the inverse does not undo"):
        transformed(normal(0, 1), (lambda x: x + 1, lambda y: y + 1))
    with pytest.raises(UsageError, match="exp is not a bijector"):
        transformed(normal(0, 1), mx.exp)
    with pytest.raises(UsageError, match="transformed was given normal"):
        transformed(normal, bijectors.exp)


def test_dist_transform():
    """Catches a derived family that loses the base's parameters, defaults, checks or batch."""
    family = dist_transform(normal, mx.exp, mx.log, name="log_normal2", support=positive)
    mu, sigma = f32([0.0, 1.0]), f32([0.5, 2.0])
    d = family(mx.array(mu.astype(np.float32)), sigma=mx.array(sigma.astype(np.float32)))
    assert repr(family) == "log_normal2" and d.batch_shape == (2,) and d.support is positive
    x = f32([[0.1, 3.0], [1.0, -2.0]])
    assert_log_density(d.log_prob(mx.array(x.astype(np.float32))), stats.lognorm(sigma, scale=np.exp(mu)).logpdf(x))
    with pytest.raises(ParameterError, match="log_normal2: sigma must be positive, got -1"):
        family(0, -1)
    with pytest.raises(UsageError, match="log_normal2: 'sigma' is missing"):
        family(0)
    with pytest.raises(UsageError, match="without its parameters"):
        dist_transform(normal(0, 1), mx.exp, mx.log)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ParameterError, match="does not undo"):
        dist_transform(normal, mx.exp, mx.sin)
    root = dist_transform(uniform, mx.sqrt, mx.square)  # no fixed support on which the pair could be tried
    assert root(1.0, 4.0).log_prob(mx.array([1.5, 2.5])).tolist() == pytest.approx([0.0, -math.inf], abs=1e-6)
    square_root = dist_transform(exponential, bijectors.power(0.5))
    assert_log_density(square_root(1.0).log_prob(0.5), stats.weibull_min(2).logpdf(0.5))

    @gen
    def model():
        m = trace("m", normal(0, 1))
        trace("y", family(m, 1.0))

    batch = model().vgenerate({"y": 2.0}, 5, key=key(1))
    m = numbers(batch.trace["m"])
    assert_log_density(batch.weight, stats.lognorm(1, scale=np.exp(m)).logpdf(2.0))


# truncated

TRUNCATED = [
    (normal, (0.5, 2.0), stats.norm(0.5, 2.0), (-1.0, 3.0)),
    (normal, (0.0, 1.0), stats.norm(), (3.0, math.inf)),
    (normal, (0.0, 1.0), stats.norm(), (-math.inf, -2.0)),
    (normal, (0.0, 1.0), stats.norm(), (1.0, 1.001)),
    (logistic, (1.0, 2.0), stats.logistic(1, 2), (-30.0, -20.0)),
    (logistic, (1.0, 2.0), stats.logistic(1, 2), (0.5, math.inf)),
    (laplace, (1.0, 2.0), stats.laplace(1, 2), (-3.0, 4.0)),
    (laplace, (1.0, 2.0), stats.laplace(1, 2), (5.0, math.inf)),
    (laplace, (1.0, 2.0), stats.laplace(1, 2), (-9.0, 0.0)),
    (cauchy, (0.0, 1.0), stats.cauchy(), (100.0, math.inf)),
    (cauchy, (0.0, 1.0), stats.cauchy(), (-5.0, 0.5)),
    (exponential, (3.0,), stats.expon(scale=1 / 3), (-1.0, 2.0)),
    (exponential, (3.0,), stats.expon(scale=1 / 3), (2.0, math.inf)),
    (gumbel, (1.0, 2.0), stats.gumbel_r(1, 2), (-2.0, 3.0)),
    (gumbel, (1.0, 2.0), stats.gumbel_r(1, 2), (-math.inf, 0.0)),
    (weibull, (1.7, 2.0), stats.weibull_min(f32(1.7), scale=2), (1.0, 4.0)),
    (weibull, (0.7, 2.0), stats.weibull_min(f32(0.7), scale=2), (0.5, math.inf)),
    (uniform, (0.0, 4.0), stats.uniform(0, 4), (1.0, 9.0)),
    (half_normal, (2.0,), stats.halfnorm(scale=2), (-1.0, 3.0)),
    (half_cauchy, (2.0,), stats.halfcauchy(scale=2), (1.0, math.inf)),
]


def mass_of(oracle: Any, lo: float, hi: float) -> float:
    upper = oracle.sf(lo) < 0.5
    return oracle.sf(lo) - oracle.sf(hi) if upper else oracle.cdf(hi) - oracle.cdf(lo)


@pytest.mark.parametrize(("family", "params", "oracle", "bounds"), TRUNCATED, ids=label)
def test_truncated(family, params, oracle, bounds):
    """Catches a mass that cancels in a tail or a narrow interval, and draws that pile up at a bound."""
    lo, hi = (float(np.float32(b)) for b in bounds)
    d = truncated(family(*params), *bounds)
    draws = d.sample(key(3), (DRAWS,))
    x = np.sort(numbers(draws))[:: DRAWS // 20]
    mass = mass_of(oracle, lo, hi)
    assert_log_density(d.log_prob(mx.array(x.astype(np.float32))), oracle.logpdf(x) - np.log(mass))
    low = max(lo, oracle.support()[0])
    cdf = (lambda v: (oracle.sf(low) - oracle.sf(v)) / mass) if oracle.sf(lo) < 0.5 else (
        lambda v: (oracle.cdf(v) - oracle.cdf(low)) / mass
    )  # fmt: skip
    assert stats.kstest(numbers(draws), cdf).pvalue > 1e-3
    assert mx.all((draws >= lo) & (draws <= hi)).item() and mx.all(d.support.contains(draws)).item()
    outside = [v for v in (lo - 1, hi + 1, -math.inf, math.inf, math.nan) if not lo <= v <= hi or math.isinf(v)]
    assert d.log_prob(mx.array(outside)).tolist() == [-math.inf] * len(outside)


@pytest.mark.parametrize(("family", "params", "_oracle", "bounds"), TRUNCATED, ids=label)
def test_truncated_gradients(family, params, _oracle, bounds):
    """Catches NaN gradients from an infinite bound, a mass treated as a constant, and draws with a wrong derivative.

    A draw x with F(x; p) = u fixed moves by dx/dp = -(dF/dp) / (dF/dx).
    """
    finite = [b for b in bounds if math.isfinite(b)]

    def call(values):
        own, ends = list(values[: len(params)]), iter(values[len(params) :])
        return truncated(family(*own), *[next(ends) if math.isfinite(b) else b for b in bounds])

    values = [mx.array(v) for v in (*params, *finite)]
    x = mx.stop_gradient(call(values).sample(key(6)))
    exact = [float(v.item()) for v in values]
    names = {"exponential": lambda r: stats.expon(scale=1 / r), "uniform": lambda a, b: stats.uniform(a, b - a)}
    makers = {"normal": stats.norm, "logistic": stats.logistic, "laplace": stats.laplace, "cauchy": stats.cauchy,
              "gumbel": stats.gumbel_r, "half_normal": lambda s: stats.halfnorm(scale=s),
              "half_cauchy": lambda s: stats.halfcauchy(scale=s), "weibull": lambda k, s: stats.weibull_min(k, scale=s),
              **names}  # fmt: skip

    def oracle(point):
        own, ends = point[: len(params)], iter(point[len(params) :])
        return makers[family.__name__](*own), *[next(ends) if math.isfinite(b) else b for b in bounds]

    def oracle_log_prob(point):
        frozen, lo, hi = oracle(point)
        return frozen.logpdf(x.item()) - np.log(mass_of(frozen, lo, hi))

    def oracle_cdf(point):
        frozen, lo, hi = oracle(point)
        return mass_of(frozen, lo, x.item()) / mass_of(frozen, lo, hi)

    grads = mx.grad(lambda v: call(v).log_prob(x))(values)
    moved = mx.grad(lambda v: call(v).sample(key(6)))(values)
    points = [p for p in (-50.0, 500.0, math.inf, -math.inf) if not bounds[0] <= p <= bounds[1] or math.isinf(p)]
    outside = mx.grad(lambda v: mx.sum(call(v).log_prob(mx.array(points))))(values)
    for i in range(len(values)):
        step = 1e-4 * min(1.0, abs(bounds[1] - bounds[0]) if len(finite) == 2 else 1.0)
        want = slope(lambda v, i=i: oracle_log_prob([*exact[:i], v, *exact[i + 1 :]]), exact[i], step)
        assert grads[i].item() == pytest.approx(want, rel=1e-3, abs=2e-3), i
        want = -slope(lambda v, i=i: oracle_cdf([*exact[:i], v, *exact[i + 1 :]]), exact[i], step)
        assert moved[i].item() == pytest.approx(want / math.exp(oracle_log_prob(exact)), rel=3e-3, abs=2e-3), i
        assert outside[i].item() == 0.0


def test_truncated_to_narrow_intervals():
    """Catches a width taken as the difference of standardised bounds: off by up to 7e-3 here."""
    rng = np.random.default_rng(0)
    mu, sigma = f32(rng.normal(size=500) * 3), f32(rng.uniform(0.1, 3, 500))
    lo = f32(mu + sigma * rng.uniform(-4, 4, 500))
    hi = f32(lo + 10 ** rng.uniform(-4, -0.3, 500))
    x = f32((lo + hi) / 2)
    oracle = stats.norm(mu, sigma)
    mass = np.where(lo > mu, oracle.sf(lo) - oracle.sf(hi), oracle.cdf(hi) - oracle.cdf(lo))
    mu, sigma, lo, hi = (mx.array(v.astype(np.float32)) for v in (mu, sigma, lo, hi))
    d = truncated(normal(mu, sigma), lo, hi)
    assert_log_density(d.log_prob(mx.array(x.astype(np.float32))), oracle.logpdf(x) - np.log(mass))


def test_truncated_against_truncnorm_and_in_a_batch():
    """Catches bounds or parameters of a lane that leak into others."""

    @gen
    def model():
        m = trace("m", normal(0, 1))
        trace("x", truncated(normal(m, 2.0), m - 1, mx.array(4.0)))

    batch = model().vsimulate(8, key=key(0))
    m, x = numbers(batch["m"]), numbers(batch["x"])
    assert np.all((x >= m - 1) & (x <= 4))
    oracle = stats.truncnorm((m - 1 - m) / 2, (4 - m) / 2, m, 2)
    assert np.allclose(numbers(batch.project(select("x"))), oracle.logpdf(x), atol=3e-5)
    d = truncated(normal(mx.array([0.0, 5.0]), 1.0), mx.array([-1.0, 1.0, 2.0])[:, None], 6.0)
    assert d.batch_shape == (3, 2) and d.sample(key(0), (4,)).shape == (4, 3, 2)


@pytest.mark.parametrize(
    ("base", "oracle", "lo", "hi"),
    [
        (poisson(3.0), stats.poisson(3), 1, 1000),
        (poisson(40.0), stats.poisson(40), 60, 200),
        (poisson(2.0), stats.poisson(2), -math.inf, 4),
        (binomial(10, 0.25), stats.binom(10, 0.25), 3, 30),
        (geometric(0.25), stats.nbinom(1, 0.25), 2, 5),
        (bernoulli(0.25), stats.bernoulli(0.25), 1, math.inf),
    ],
)
def test_truncated_counts(base, oracle, lo, hi):
    """Catches an end that is left out or counted twice, in the mass or among the draws."""
    d = truncated(base, lo, hi)
    first, last = max(lo, 0), 1 if math.isinf(hi) else hi
    k = np.arange(first, last + 1)
    with np.errstate(divide="ignore"):
        want = oracle.logpmf(k) - special.logsumexp(oracle.logpmf(k))
    keep = want > -80
    assert_log_density(d.log_prob(mx.array(k))[mx.array(np.flatnonzero(keep))], want[keep])
    assert d.log_prob(mx.array([first - 1, last + 1, first + 0.5])).tolist() == [-math.inf] * 3
    p = np.exp(want)
    assert d.mean.item() == pytest.approx((p * k).sum(), rel=1e-5)
    assert d.variance.item() == pytest.approx((p * (k - (p * k).sum()) ** 2).sum(), rel=1e-4, abs=1e-6)
    draws = np.array(d.sample(key(8), (DRAWS,)))
    assert draws.dtype == np.int32 and draws.min() >= first and draws.max() <= last
    common = p * DRAWS > 5
    observed = np.bincount(draws - first, minlength=len(k))[: len(k)]
    if common.sum() > 1:
        rest = [DRAWS - observed[common].sum(), DRAWS * (1 - p[common].sum())]
        pairs = np.array([[*observed[common]], [*(DRAWS * p[common])]])
        if rest[1] > 5:
            pairs = np.column_stack([pairs, rest])
        assert stats.chisquare(pairs[0], pairs[1] * pairs[0].sum() / pairs[1].sum()).pvalue > 1e-3


def test_truncated_counts_gradient():
    """Catches a normaliser that is treated as a constant."""
    grad = mx.grad(lambda r: truncated(poisson(r), 1, 100).log_prob(2))(mx.array(1.5))
    want = slope(lambda r: stats.poisson(r).logpmf(2) - math.log1p(-math.exp(-r)), 1.5)
    assert grad.item() == pytest.approx(want, rel=1e-3)


def test_truncated_errors():
    with pytest.raises(UsageError, match="gamma has no distribution function here") as caught:
        truncated(gamma(1, 1), 0, 1)
    assert all(f.__name__ in str(caught.value) for f in BETWEEN)
    with pytest.raises(ParameterError, match="lo must be below hi, got lo=2, hi=1"):
        truncated(normal(0, 1), 2, 1)
    with pytest.raises(ParameterError, match="hi of the discrete poisson.* must be a finite number"):
        truncated(poisson(1.0), 3)
    with pytest.raises(ParameterError, match="must be a finite number known before the run"):
        truncated(poisson(1.0), 0, mx.array(3))
    with pytest.raises(ParameterError, match="no value of poisson"):
        truncated(poisson(1.0), 0.2, 0.8)
    with pytest.raises(ParameterError, match="lo must be a number, got nan"):
        truncated(normal(0, 1), math.nan, 1)
    with pytest.raises(UsageError, match="truncated was given normal"):
        truncated(normal, 0, 1)
    # bounds that are arrays cannot raise; they must not give a finite density either
    for lo, hi in ((2.0, 1.0), (1.0, 1.0)):
        d = truncated(normal(0, 1), mx.array(lo), mx.array(hi))
        assert not np.any(np.isfinite(numbers(d.log_prob(mx.array([1.0, 1.5, 2.0])))))
    assert not math.isfinite(truncated(exponential(1.0), -2.0, -1.0).log_prob(-1.5).item())


# one's own


@distribution
class two_sided:
    """A Laplace distribution by hand, with plain functions."""

    mean = staticmethod(lambda mu, b=1.0: mu)

    def sample(key, mu, b=1.0):  # noqa: N805
        shape = mx.broadcast_shapes(mx.array(mu).shape, mx.array(b).shape)
        u = mx.random.uniform(-0.5, 0.5, shape, key=key)
        return mu - b * mx.sign(u) * mx.log1p(-2 * mx.abs(u))

    def log_prob(x, mu, b=1.0):  # noqa: N805
        return -mx.abs(x - mu) / b - mx.log(mx.array(2.0) * b)


@distribution
class rounded_up:
    """Counts, with methods, static methods and declared parameters."""

    discrete = True
    support = poisson.support
    parameters = {"rate": nonnegative}
    unit = 1.0

    def sample(self, key, rate):
        return mx.floor(-mx.log(1 - mx.random.uniform(shape=rate.shape, key=key)) * self.unit / rate)

    @staticmethod
    def log_prob(x, rate):
        return -rate * x + mx.log(-mx.expm1(-rate))


def ball_sample(key: mx.array, mu: mx.array, sigma: Any) -> mx.array:
    return mu + sigma * mx.random.normal(mu.shape, key=key)


def ball_log_prob(x: mx.array, mu: mx.array, sigma: Any) -> mx.array:
    return mx.sum(-0.5 * ((x - mu) / sigma) ** 2 - mx.log(mx.array(sigma)) - 0.5 * math.log(2 * math.pi))


ball = distribution(ball_sample, ball_log_prob, name="ball", reparameterised=True)
CUSTOM = [
    (two_sided, (0.5, 2.0), stats.laplace(0.5, 2).logpdf, (), ()),
    (two_sided, (mx.array([0.5, -1.0]),), lambda x: stats.laplace([0.5, -1.0], 1).logpdf(x), (2,), ()),
    (rounded_up, (0.7,), lambda x: stats.geom(-math.expm1(-f32(0.7))).logpmf(x + 1), (), ()),
    (ball, (mx.array([1.0, 2.0, 3.0]), 0.5), lambda x: stats.norm([1, 2, 3], 0.5).logpdf(x).sum(-1), (), (3,)),
]


@pytest.mark.parametrize(("family", "args", "log_density", "batch", "event"), CUSTOM)
def test_custom_shapes_and_density(family, args, log_density, batch, event):
    """Catches shapes that are guessed wrongly, and draws of a sample shape that repeat one draw."""
    d = family(*args)
    assert d.batch_shape == batch and d.event_shape == event
    draws = d.sample(key(0), (4, 5))
    assert draws.shape == (4, 5, *batch, *event) and len(np.unique(numbers(draws)[..., 0].ravel())) > 1
    assert_log_density(d.log_prob(draws), log_density(numbers(draws)))
    assert d.log_prob(draws[0, 0]).shape == batch
    assert d.log_prob(mx.full((*batch, *event), math.inf)).tolist() == mx.full(batch, -math.inf).tolist()

    @gen
    def model():
        m = trace("m", normal(0, 1))
        return trace("x", family(*args)), m

    tr = model.simulate((), key=key(1))
    assert tr.project(select("x")).item() == pytest.approx(np.sum(log_density(numbers(tr["x"]))), abs=1e-4)
    assert model.assess((), tr.choices).score.item() == pytest.approx(tr.score.item(), abs=1e-5)
    new, weight, _, discard = tr.update({"x": draws[0, 0]})
    assert weight.item() == pytest.approx(new.score.item() - tr.score.item(), abs=1e-4) and discard["x"] is tr["x"]
    assert tr.regenerate(select("x"), key=key(2)).weight.item() == 0.0
    batched = model().vsimulate(6, key=key(3))
    x = numbers(batched["x"])
    assert x.shape == (6, *batch, *event) and len(np.unique(x.reshape(6, -1)[:, 0])) > 1
    want = log_density(x).reshape(6, -1).sum(-1)
    assert np.allclose(numbers(batched.project(select("x"))), want, atol=1e-4)
    assert model().vgenerate({"x": draws[0, 0]}, 3).weight.shape == (3,)
    with pytest.raises(ValueMismatch, match="not a value of this"):
        model.generate((), {"x": mx.zeros((7, 2))})


def test_custom_draws():
    draws = numbers(two_sided(0.5, 2.0).sample(key(2), (DRAWS,)))
    assert stats.kstest(draws, stats.laplace(0.5, 2).cdf).pvalue > 1e-3
    lanes = numbers(two_sided(0.5, 2.0).vsimulate(DRAWS, key=key(3)).retval)
    assert stats.kstest(lanes, stats.laplace(0.5, 2).cdf).pvalue > 1e-3
    counts = rounded_up(0.7).sample(key(4), (3,))
    assert counts.dtype == mx.int32


def test_custom_parameters():
    """Catches parameters that lose their names, their defaults or their checks; numbers arrive as they were passed."""
    seen = []

    def sample(key, n, p=0.5):
        seen.append((type(n), type(p)))
        return mx.sum(mx.random.uniform(shape=(n,), key=key) < p)

    def log_prob(x, n, p=0.5):
        return x * mx.log(mx.array(p)) + (n - x) * mx.log1p(-mx.array(p)) + 0.0

    heads = distribution(sample, log_prob, name="heads", discrete=True, mean=lambda n, p: mx.array(n * p))
    assert heads(4).args == (4, 0.5) and heads(n=4, p=0.25).mean.item() == 1.0
    assert heads(30).sample(key(0)).dtype == mx.int32 and seen[-1] == (int, float)
    assert heads(30).log_prob(1.5).item() == -math.inf
    with pytest.raises(UsageError, match="heads: no parameter 'q'"):
        heads(4, q=0.5)
    with pytest.raises(ParameterError, match="rounded_up: rate must be nonnegative, got -1"):
        rounded_up(-1)
    assert pickle.loads(pickle.dumps(two_sided)) is two_sided
    assert two_sided.__doc__.startswith("A Laplace distribution by hand")
    assert two_sided(mx.zeros(3)).mean.shape == (3,)


def test_custom_gradients():
    """Catches a gradient that passes through a sampler which is not declared reparameterised, or the reverse."""
    draw = mx.grad(lambda m: two_sided(m, 1.0).sample(key(0)))
    assert draw(mx.array(1.0)).item() == 0.0
    move = mx.grad(lambda m: mx.sum(ball(m, 0.5).sample(key(0))))(mx.array([1.0, 2.0]))
    assert move.tolist() == [1.0, 1.0]

    @gen
    def model(mu, b):
        return trace("x", two_sided(mu, b))

    tr = model.generate((0.5, 2.0), {"x": 1.5}).trace
    args, _, grads = tr.choice_gradients(select("x"))
    assert [a.item() for a in args] == pytest.approx([0.5, 0.25 - 0.5]) and grads["x"].item() == -0.5


def test_custom_in_other_distributions():
    x = f32([0.5, 1.0, -2.0])
    given = mx.array(x.astype(np.float32))
    each = stats.laplace(0, 1).logpdf(x)
    assert_log_density(iid(two_sided(0.0), 3).log_prob(given), each.sum())
    mixed = mixture([two_sided(0.0), normal(0, 1)], [0.0, 0.0])
    assert_log_density(mixed.log_prob(given), np.logaddexp(each, stats.norm.logpdf(x)) - math.log(2))
    assert mixed.sample(key(0), (5,)).shape == (5,) and iid(two_sided(0.0), 3).sample(key(0), (5,)).shape == (5, 3)
    assert_log_density(transformed(two_sided(0.0), bijectors.exp).log_prob(2.0), stats.loglaplace(1).logpdf(2.0))


def test_custom_errors():
    scalar = distribution(lambda key, mu: mx.random.normal(key=key), lambda x, mu: -((x - mu) ** 2), name="scalar")
    with pytest.raises(ValueMismatch, match=r"scalar: sample returned f32\[\], of which log_prob made f32\[3\]"):
        scalar(mx.zeros(3)).simulate(key=key(0))
    declared = distribution(
        lambda key, mu: mx.random.normal((4,), key=key), lambda x, mu: mx.sum(x) * mu, name="declared", event_shape=(3,)
    )
    with pytest.raises(ValueMismatch, match=r"declared: sample returned f32\[4\]"):
        declared(1.0).simulate(key=key(0))
    with pytest.raises(ValueMismatch, match="texts: sample returned a str"):
        distribution(lambda key: "a", lambda x: x, name="texts")().simulate(key=key(0))
    with pytest.raises(UsageError, match="sample takes 0 parameters and log_prob 1"):
        distribution(lambda key: mx.array(0.0), lambda x, mu: x)
    with pytest.raises(UsageError, match="does not name its parameters"):
        distribution(lambda key, *a: mx.array(0.0), lambda x, *a: x)
    with pytest.raises(UsageError, match="has no function 'log_prob'"):
        distribution(type("nothing", (), {"sample": staticmethod(lambda key: key)}))
    with pytest.raises(UsageError, match="distribution: no option 'suport'"):
        distribution(ball_sample, ball_log_prob, suport=real)
    with pytest.raises(UsageError, match="discrete=True with a support that is positive"):
        distribution(ball_sample, ball_log_prob, discrete=True, support=positive)
    with pytest.raises(UsageError, match="no parameter 'scale' in log_prob"):
        distribution(ball_sample, ball_log_prob, parameters={"scale": positive})
    with pytest.raises(UsageError, match="expected"):
        distribution(3)


# inside a model


@gen
def everything(s):
    w = trace("w", mixture([normal(0, s), normal(3, 2)], [0.0, 1.0]))
    k = trace("k", mixture(normal(mx.stack([mx.array(0.0), w]), 1), [0.0, 1.0]))
    p = trace("p", product([normal(w, 1), bernoulli(0.5), product({"u": normal(0, 1)})]))
    trace("v", iid(normal(mx.array([0.0, 5.0, 9.0]), s), 4))
    trace("t", transformed(iid(normal(w, 1), 3), bijectors.exp))
    trace("a", transformed(normal(w, 1), bijectors.affine(mx.array([1.0, 2.0]), s)))
    trace("q", transformed(normal(k, s), (lambda x: mx.exp(x * s), lambda y: mx.log(y) / s)))
    trace("c", truncated(normal(w, s), w - 1, w + 2))
    trace("n", truncated(poisson(s), 1, 20))
    trace("e", broadcasted_normal(mx.stack([w, k]), s))
    return p[0] + w


def test_the_operations_agree():
    """Catches closures, bijectors or components that keep the values of another lane or of another operation."""
    args = (0.7,)
    tr = everything.simulate(args, key=key(1))
    assert everything.assess(args, tr.choices).score.item() == pytest.approx(tr.score.item(), rel=1e-5)
    assert everything.generate(args, tr.choices).weight.item() == pytest.approx(tr.score.item(), rel=1e-5)
    batch = everything(0.7).vsimulate(4, key=key(2))
    for i in range(4):
        alone = everything.assess(args, batch[i].choices).score.item()
        assert batch.score[i].item() == pytest.approx(alone, rel=1e-5, abs=1e-4)
    moved = select("w", "k", ("p", 1), "n")
    new, weights, _ = batch.regenerate(moved, key=key(3))
    before, after = batch.project(~moved), new.project(~moved)
    inside = np.isfinite(numbers(after))  # the bounds of "c" move with w and can leave it outside
    assert np.allclose(numbers(weights)[inside], numbers(after - before)[inside], rtol=1e-4, atol=1e-3)
    assert np.all(numbers(weights)[~inside] == -math.inf)
    new, weight, _, discard = tr.update({"t": mx.array([1.0, 2.0, 3.0])}, args=(0.8,))
    assert weight.item() == pytest.approx(new.score.item() - tr.score.item(), rel=1e-4)
    back = new.update(discard, args=args)
    assert back.weight.item() == pytest.approx(-weight.item(), rel=1e-4) and back.trace.choices == tr.choices


def test_gradients_through_a_model():
    """Catches components, bijectors and bounds that gradients do not reach as arguments of a site."""
    args = (0.7,)
    tr = everything.simulate(args, key=key(5))
    grads, _, chosen = tr.choice_gradients(select("w", "q", "c"))

    def score(s, changes):
        return everything.assess((s,), tr.choices | changes).score.item()

    h = 2e-3
    for address in ("w", "q", "c"):
        value = tr[address].item()
        step = h * max(1.0, abs(value))
        want = (score(0.7, {address: value + step}) - score(0.7, {address: value - step})) / (2 * step)
        assert chosen[address].item() == pytest.approx(want, rel=2e-2, abs=5e-2), address
    want = (score(0.7 + h, {}) - score(0.7 - h, {})) / (2 * h)
    assert grads[0].item() == pytest.approx(want, rel=2e-2)
