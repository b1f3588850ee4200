"""Laplace's approximation: exact where the posterior is Gaussian, and its error named where it has no peak."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import special, stats

from genmlx import dist, gen, normal, trace
from genmlx.errors import UnknownAddress
from genmlx.inference.laplace import NoPeak, laplace
from genmlx.inference.log_density import LogDensity

KEY = mx.random.key(0)


@gen
def conjugate():
    mu = trace("mu", normal(0, 1))
    for i in range(10):
        trace(("y", i), normal(mu, 1.0))


@gen
def coin():
    trace("y", dist.binomial(20, trace("p", dist.beta(1.0, 1.0))))


@gen
def rate():
    trace("y", dist.poisson(trace("rate", dist.gamma(2.0, 1.0))))


def test_a_normal_posterior_is_exact(way):
    """Case 40: mean .454545, sd .301511, log ML -10.501969."""
    found = laplace(conjugate(), {("y", i): 0.5 for i in range(10)}, key=KEY)
    assert found.mode["mu"].item() == pytest.approx(0.454545, abs=2e-6)
    assert found.std("mu").item() == pytest.approx(0.301511, abs=2e-6)
    assert found.log_ml.item() == pytest.approx(-10.501969, abs=2e-5)
    assert found.execution == way


def test_a_linear_model_is_exact(way):
    """Slope, intercept and a vector, correlated: covariance and evidence by linear algebra."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 3))
    y = rng.normal(size=8) + 1
    design = mx.array(x.astype("float32"))

    @gen
    def model():
        a = trace("a", normal(0, 2))
        w = trace("w", dist.multivariate_normal(mx.zeros(3), mx.array([[1.0, 0.5, 0], [0.5, 1, 0], [0, 0, 2.0]])))
        trace("y", normal(design @ w + a, 0.7))

    found = laplace(model(), {"y": y.astype("float32")}, key=KEY)
    full = np.concatenate([np.ones((8, 1)), x], axis=1)
    prior = np.zeros((4, 4))
    prior[0, 0] = 4
    prior[1:, 1:] = [[1.0, 0.5, 0], [0.5, 1, 0], [0, 0, 2.0]]
    covariance = np.linalg.inv(np.linalg.inv(prior) + full.T @ full / 0.49)
    mean = covariance @ full.T @ y / 0.49
    np.testing.assert_allclose(np.array(found.covariance), covariance, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(np.array(found.mode["w"]), mean[1:], atol=2e-5)
    np.testing.assert_allclose(np.array(found.std("w")), np.sqrt(np.diag(covariance))[1:], rtol=1e-4)
    exact = stats.multivariate_normal(np.zeros(8), full @ prior @ full.T + 0.49 * np.eye(8)).logpdf(y)
    assert found.log_ml.item() == pytest.approx(exact, abs=1e-4)
    draws = found.sample(500, key=KEY)  # the approximation is the posterior: equal weights
    assert draws.ess.item() > 499.9 and draws.log_ml.item() == pytest.approx(exact, abs=2e-4)


def test_a_log_normal_latent_is_exact_in_its_logarithm(way):
    """Gaussian in u = log x: the mode in u, and the delta method's x * sd."""

    @gen
    def model():
        x = trace("x", dist.log_normal(0.0, 1.0))
        trace("y", normal(mx.log(x), 0.5))

    found = laplace(model(), {"y": 1.5}, key=KEY)
    assert found.mode["x"].item() == pytest.approx(math.exp(1.2), rel=1e-5)
    assert found.covariance.item() == pytest.approx(0.2, rel=1e-5)
    assert found.std("x").item() == pytest.approx(math.exp(1.2) * math.sqrt(0.2), rel=1e-5)
    assert found.log_ml.item() == pytest.approx(-1.930510, abs=1e-5)


def test_a_beta_posterior_in_logits(way):
    """beta(15, 7) in u = logit p: the mode is 15/22, the curvature 15 * 7 / 22; catches the mode without Jacobian."""
    found = laplace(coin(), {"y": 14}, key=KEY)
    assert found.mode["p"].item() == pytest.approx(15 / 22, abs=1e-5)
    assert found.covariance.item() == pytest.approx(22 / (15 * 7), rel=2e-4)
    assert found.std("p").item() == pytest.approx(math.sqrt(15 * 7 / 22) / 22, rel=2e-4)
    log_ml = (
        math.log(special.comb(20, 14)) + 15 * math.log(15 / 22) + 7 * math.log(7 / 22)
        + 0.5 * math.log(2 * math.pi * 22 / 105)
    )  # fmt: skip
    assert found.log_ml.item() == pytest.approx(log_ml, abs=2e-4)
    draws = found.sample(20_000, key=KEY)  # the weights correct what is not Gaussian
    assert draws.ess.item() > 15_000
    assert draws.log_ml.item() == pytest.approx(-math.log(21), abs=0.01)
    assert draws.mean("p").item() == pytest.approx(15 / 22, abs=4.5 * 0.0971 / math.sqrt(15_000))


def test_hessians_are_those_of_differences():
    """Second derivatives of the densities in use; catches a first-order stand-in that is not second-order."""

    @gen
    def model():
        a = trace("a", dist.gamma(2.5, 1.0))
        b = trace("b", dist.beta(2.0, a))
        p = trace("p", dist.dirichlet(mx.stack([a, mx.array(2.0), mx.array(1.5)])))
        cov = trace("S", dist.wishart(4.0 + b, mx.eye(2)))
        factor = trace("L", dist.lkj_cholesky(2, a))
        t = trace("t", dist.student_t(3.0, 0.0, a))
        trace("y", dist.multivariate_normal(factor @ p[:2], cov))
        trace("k", dist.poisson(a * mx.exp(0.1 * t)))
        trace("c", dist.von_mises(t, a))

    density = LogDensity(model(), {"y": [0.5, -0.2], "k": 2, "c": 1.0})
    u = density.initial(KEY, 1)[0] * 0.5
    hessian = np.array(density.hessian(u))
    np.testing.assert_allclose(hessian, hessian.T, atol=2e-3)
    step = 1e-2
    shifts = mx.eye(density.dim) * step
    gradients = density.value_and_grad(mx.concatenate([u + shifts, u - shifts]))[1]
    differences = np.array(gradients[: density.dim] - gradients[density.dim :]) / (2 * step)
    np.testing.assert_allclose(hessian, differences, rtol=2e-2, atol=2e-2)


def test_gamma_evidence_is_close():
    """gamma(2, 1) and one Poisson count of 8: Stirling's error, 1/(12 * 10), and no more."""
    found = laplace(rate(), {"y": 8}, key=KEY)
    exact = special.gammaln(10) - special.gammaln(2) - special.gammaln(9) - 10 * math.log(2)
    assert 0.005 < exact - found.log_ml.item() < 0.012


def test_no_peak_names_the_latent(way):
    """x and z only matter by their sum: a ridge."""

    @gen
    def ridge():
        trace("y", normal(trace("x", flat()) + trace("z", flat()), 1.0))

    with pytest.raises(NoPeak) as caught:
        laplace(ridge(), {"y": 1.0}, key=KEY)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("the log density has no peak: it does not fall off along this latent with ")
    assert lines[1] == "expected: a density with a peak in its unconstrained coordinates"
    assert lines[2] == "try: an informative prior for it, more iterations, or nuts"


flat = dist.distribution(lambda key: mx.random.normal(key=key), lambda x: 0.0 * x, name="flat")


def test_unknown_addresses():
    found = laplace(coin(), {"y": 14}, restarts=2, key=KEY)
    with pytest.raises(UnknownAddress, match="'q'"):
        found.std("q")
    assert repr(found).startswith("<LaplaceApproximation of coin(): log_ml -3.0")
