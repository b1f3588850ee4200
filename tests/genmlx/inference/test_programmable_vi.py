"""Programmable variational inference: gradients against sums over all draws and quadrature, fits against posteriors."""

import itertools
import math
import re

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from scipy.special import expit, logsumexp
from scipy.stats import norm

from genmlx import (
    exponential,
    flip,
    gen,
    mask,
    normal,
    param,
    poisson,
    programmable_vi,
    renyi,
    splice,
    trace,
    uniform,
    vmap,
)
from genmlx.errors import BatchError, GenError, MissingChoice, ParameterError, UnknownAddress, UsageError, ValueMismatch
from genmlx.inference import EstimatorError
from genmlx.inference.adev.joint import h_without_each
from genmlx.inference.adev.replayed import Replayed
from genmlx.inference.guided_objective import GuidedObjective
from genmlx.inference.objectives import OBJECTIVES, iwelbo, read_objective
from genmlx.learning import neural

LOG_ML = -0.5 * math.log(4 * math.pi) - 0.25  # y = 1 under N(0, 2): -1.515512


def problem_of(model, guide, obs, objective="elbo", estimator=None, baseline="leave-one-out", particles=10, samples=1):
    return GuidedObjective(
        model, read_checked(obs), guide, read_objective(objective), estimator, baseline, particles, samples
    )


def read_checked(obs):
    from genmlx.gfi import checked_choices

    return checked_choices(obs)


def estimates(problem, n, seed=0):
    """``n`` independent values ``[n]`` and gradients ``[n, parameters]``, with which parameter is which."""
    step = Replayed(problem.gradient)
    values = [problem.parameters()[read] for read in problem.learned]
    rows = []
    for key in mx.random.split(mx.random.key(seed), n):
        value, _, *gradients = step(key, problem.baseline.offset(problem.plan.combinations), *values)
        rows.append([value.item(), *(g.item() for g in gradients)])
    table = np.array(rows)
    return table[:, 0], table[:, 1:], [name for _, name in problem.learned]


def assert_agree(found, exact, largest):
    """Within four standard errors, each no larger than ``largest`` of the exact number, and 0.02."""
    found = found.reshape(len(found), -1)
    error = found.std(axis=0, ddof=1) / math.sqrt(len(found))
    exact = np.atleast_1d(exact)
    assert np.all(error <= largest * np.abs(exact) + 0.02)
    assert np.all(np.abs(found.mean(axis=0) - exact) <= 4 * error + 1e-5)


def slopes(f, x, h=1e-5):
    """Central differences in float64."""
    x = np.array(x, dtype=np.float64)
    return np.array([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))])


# case 47: x ~ N(0, 1), y ~ N(x, 1) = 1


@gen
def conjugate():
    trace("y", normal(trace("x", normal(0.0, 1.0)), 1.0))


@gen
def gaussian_guide():
    trace("x", normal(param("mean", 0.0), mx.exp(param("log_sd", 0.0))))


@pytest.fixture(autouse=True)
def fresh():
    """Every test starts from the defaults."""
    for model in (gaussian_guide, prior_with_weight, bits_guide, shifted, wide_guide, anywhere):
        for name in list(model.params):
            del model.params[name]


def test_the_bound_is_the_evidence_without_variance_at_the_posterior():
    gaussian_guide.params["mean"], gaussian_guide.params["log_sd"] = 0.5, 0.5 * math.log(0.5)
    for objective in ("elbo", "iwelbo", "renyi"):
        values, _, _ = estimates(problem_of(conjugate(), gaussian_guide(), {"y": 1.0}, objective), 5)
        assert values == pytest.approx(LOG_ML, abs=2e-6)
    assert pytest.approx(-1.515512, abs=1e-6) == LOG_ML


@pytest.mark.parametrize("estimator", ["reparam", "reinforce"])
def test_the_gradient_of_the_elbo_has_no_variance_at_the_posterior(estimator):
    """It leaves out the derivative of log q at a given draw, whose mean is zero but whose variance is not."""
    gaussian_guide.params["mean"], gaussian_guide.params["log_sd"] = 0.5, 0.5 * math.log(0.5)
    _, gradients, _ = estimates(problem_of(conjugate(), gaussian_guide(), {"y": 1.0}, "elbo", estimator), 5)
    assert np.abs(gradients).max() < 1e-5


def test_a_support_that_moves_with_a_parameter():
    """A uniform guide on [0, c]: there the mean of the derivative of log q is -1 / c, and it is not left out."""

    @gen
    def guide():
        trace("x", uniform(0.0, param("c", 1.2)))

    def exact(x):
        return -(x[0] ** 2) / 3 + x[0] / 2 - 0.5 - math.log(2 * math.pi) + math.log(x[0])

    values, gradients, _ = estimates(problem_of(conjugate(), guide(), {"y": 1.0}, particles=500), 40)
    assert_agree(values, exact([1.2]), largest=0.01)
    assert_agree(gradients, slopes(exact, [1.2]), largest=0.02)


def test_the_bounds_are_ordered_and_become_tight():
    """With the prior as the guide the ELBO is -1.918939; IWELBO_k by quadrature in one dimension for k = 1, 2."""
    found = []
    for k in (1, 2, 8, 64):
        problem = problem_of(conjugate(), gaussian_guide(), {"y": 1.0}, "iwelbo", particles=k, samples=4000)
        values, _, _ = estimates(problem, 10)
        found.append((values.mean(), values.std(ddof=1) / math.sqrt(10)))
    means, errors = np.array(found).T
    assert errors.max() < 0.006
    assert abs(means[0] - -1.918939) < 4 * errors[0]
    z, w = np.polynomial.hermite_e.hermegauss(60)
    w = w / w.sum()
    log_weights = -0.5 * (1.0 - z) ** 2 - 0.5 * math.log(2 * math.pi)
    two = np.logaddexp(log_weights[:, None], log_weights[None, :]) - math.log(2)
    assert abs(means[1] - w @ two @ w) < 4 * errors[1]
    assert np.all(np.diff(means) > 4 * np.hypot(errors[1:], errors[:-1]))
    assert means[-1] < LOG_ML and LOG_ML - means[-1] < 0.01
    values, _, _ = estimates(problem_of(conjugate(), gaussian_guide(), {"y": 1.0}, "elbo", particles=4000), 10)
    assert abs(values.mean() - -1.918939) < 4 * values.std(ddof=1) / math.sqrt(10)


@pytest.mark.parametrize("objective", ["elbo", "iwelbo", "vimco", "renyi", renyi(0.25), "qwake"])
def test_each_objective_finds_the_posterior_of_a_conjugate_model(objective):
    """y = 2.5 with deviation 0.3: mean 2.293578, variance 0.082569. A decaying step leaves no noise to speak of."""

    @gen
    def model():
        trace("y", normal(trace("x", normal(0.0, 1.0)), 0.3))

    @gen
    def guide():
        trace("x", normal(param("mean", 1.5), mx.exp(param("log_sd", -0.5))))

    rate = optim.cosine_decay(0.03, 1500)
    found = programmable_vi(
        model(), {"y": 2.5}, guide(), objective, iterations=1500, optimiser=optim.Adam(rate), particles=20, key=1
    )
    loose = objective in ("iwelbo", "vimco", "qwake")  # whose gradients are noisier
    assert found.params["mean"].item() == pytest.approx(
        2.293578, abs=0.06 if loose else 0.02 if objective != "elbo" else 1e-3
    )
    assert math.exp(2 * found.params["log_sd"].item()) == pytest.approx(0.082569, rel=0.25 if loose else 0.06)
    exact = -0.5 * math.log(2 * math.pi * 1.09) - 2.5**2 / 2.18
    assert exact - 0.06 < found.log_ml_bound < exact + 4 * found.log_ml_bound_error
    assert found.converged and found.khat < 0.5


def test_black_box_inference_recovers_the_model_itself():
    """Gen's test: two normals with deviations exp(0.5) and exp(2), by the score function, to 1e-3.

    Near the optimum log p - log q is the same for every draw, so that with the leave-one-out baseline the noise goes.
    """

    @gen
    def model():
        trace("slope", normal(-1.0, math.exp(0.5)))
        trace("intercept", normal(1.0, math.exp(2.0)))

    @gen
    def guide():
        trace("slope", normal(param("slope_mu", 0.0), mx.exp(param("slope_log_std", 0.0))))
        trace("intercept", normal(param("intercept_mu", 0.0), mx.exp(param("intercept_log_std", 0.0))))

    fit = programmable_vi(
        model(), None, guide(), estimator="reinforce", particles=100, iterations=2000, optimiser=optim.SGD(0.5), key=2
    )
    expected = {"slope_mu": -1.0, "slope_log_std": 0.5, "intercept_mu": 1.0, "intercept_log_std": 2.0}
    assert {name: fit.params[name].item() for name in expected} == pytest.approx(expected, abs=1e-3)
    assert fit.log_ml_bound == pytest.approx(0.0, abs=1e-4)


# gradients, discrete: two bits, where everything is a sum of 4 terms for each draw


@gen
def prior_with_weight():
    a = trace("a", flip(mx.sigmoid(param("theta", 0.3))))
    b = trace("b", flip(0.2 + 0.5 * a))
    trace("y", normal(1.5 * a + b, 0.8))


@gen
def bits_guide():
    a = trace("a", flip(mx.sigmoid(param("phi", -0.4))))
    trace("b", flip(mx.sigmoid(param("psi", 0.6) + a)))


Y = 1.7


def bits_densities(x):
    """log p and log q of the four states at (phi, psi, theta)."""
    phi, psi, theta = x
    log_p, log_q = [], []
    for a, b in itertools.product([0, 1], [0, 1]):
        pa, pb, qa, qb = expit(theta), 0.2 + 0.5 * a, expit(phi), expit(psi + a)
        log_q.append(math.log(qa if a else 1 - qa) + math.log(qb if b else 1 - qb))
        normal_part = -0.5 * ((Y - 1.5 * a - b) / 0.8) ** 2 - math.log(0.8) - 0.5 * math.log(2 * math.pi)
        log_p.append(math.log(pa if a else 1 - pa) + math.log(pb if b else 1 - pb) + normal_part)
    return np.array(log_p), np.array(log_q)


def bits_exact(h, x, k):
    """E[h(log p [k], log q [k])] over k draws: a sum over 4^k."""
    log_p, log_q = bits_densities(x)
    states = itertools.product(range(4), repeat=k)
    return sum(math.exp(log_q[list(s)].sum()) * h(log_p[list(s)], log_q[list(s)]) for s in states)


def np_elbo(p, q):
    return np.mean(p - q)


def np_iwelbo(p, q):
    return logsumexp(p - q) - math.log(len(p))


def np_renyi(p, q):
    return 2 * np_iwelbo(0.5 * p, 0.5 * q)


def softened(log_p, log_q):
    """A user's own: neither a mean nor a bound."""
    weights = log_p - log_q
    return mx.mean(mx.tanh(weights)) + 0.3 * mx.max(log_p) - 0.1 * mx.mean(log_q) ** 2


def np_softened(p, q):
    return np.mean(np.tanh(p - q)) + 0.3 * np.max(p) - 0.1 * np.mean(q) ** 2


PAIRS = {"elbo": np_elbo, "iwelbo": np_iwelbo, "vimco": np_iwelbo, "renyi": np_renyi, softened: np_softened}
BITS = [
    ("elbo", None, "leave-one-out"),
    ("elbo", "reinforce", "leave-one-out"),
    ("elbo", "reinforce", "running"),
    ("elbo", "measure_valued", "leave-one-out"),
    ("elbo", {"a": "reinforce"}, "leave-one-out"),
    ("elbo", {"b": "reinforce"}, "running"),
    ("iwelbo", None, "leave-one-out"),
    ("iwelbo", None, -1.0),
    ("iwelbo", None, "running"),
    ("iwelbo", "measure_valued", "leave-one-out"),
    ("iwelbo", {"b": "measure_valued"}, "leave-one-out"),
    ("vimco", None, "leave-one-out"),
    ("renyi", None, "leave-one-out"),
    (softened, None, "leave-one-out"),
    (softened, "measure_valued", None),
]


@pytest.mark.parametrize(("objective", "estimator", "baseline"), BITS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_gradients_of_discrete_latents(objective, estimator, baseline):
    """40 means of 250 pairs of draws. Two draws are the fewest, where the others' part is largest."""
    x, h = (-0.4, 0.6, 0.3), PAIRS[objective]
    problem = problem_of(prior_with_weight(), bits_guide(), {"y": Y}, objective, estimator, baseline, 2, 250)
    values, gradients, names = estimates(problem, 40)
    assert names == ["phi", "psi", "theta"]
    assert_agree(values, bits_exact(h, x, 2), largest=0.05)
    assert_agree(gradients, slopes(lambda x: bits_exact(h, x, 2), x), largest=0.15)


def test_an_enumerated_bound_has_exact_gradients():
    """-KL to the posterior plus the log evidence, without noise."""
    problem = problem_of(prior_with_weight(), bits_guide(), {"y": Y}, particles=1)
    assert set(problem.plan.estimators.values()) == {"enumerate"}
    values, gradients, _ = estimates(problem, 3)
    x = (-0.4, 0.6, 0.3)
    assert values == pytest.approx(np.full(3, bits_exact(np_elbo, x, 1)), abs=1e-6)
    assert gradients == pytest.approx(np.tile(slopes(lambda x: bits_exact(np_elbo, x, 1), x), (3, 1)), abs=1e-5)


@pytest.mark.parametrize(("objective", "which", "learns"), [("qwake", 1, [0, 1]), ("pwake", 0, [2])])
def test_wake_gradients_of_discrete_latents(objective, which, learns):
    """The draws and their shares are constants: E of sum_k share_k d log q(z_k), or d log p, as it is for two draws."""
    x = np.array([-0.4, 0.6, 0.3])
    log_p, log_q = bits_densities(x)
    inner = np.array([slopes(lambda x, s=s: bits_densities(x)[which][s], x) for s in range(4)])
    exact = np.zeros(3)
    for pair in itertools.product(range(4), repeat=2):
        s = list(pair)
        shares = np.exp(log_p[s] - log_q[s] - logsumexp(log_p[s] - log_q[s]))
        exact += math.exp(log_q[s].sum()) * shares @ inner[s]
    problem = problem_of(prior_with_weight(), bits_guide(), {"y": Y}, objective, particles=2, samples=250)
    _, gradients, names = estimates(problem, 40)
    assert names == [["phi", "psi", "theta"][i] for i in learns]
    assert_agree(gradients, exact[learns], largest=0.15)


# gradients, continuous: by quadrature over two draws


@gen
def shifted():
    trace("y", normal(trace("x", normal(param("theta", 0.4), 1.0)), 0.7))


@gen
def wide_guide():
    trace("x", normal(param("mean", 0.2), mx.exp(param("log_sd", 0.1))))


POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def normal_densities(x, z):
    mean, log_sd, theta = x
    log_p = -0.5 * (z - theta) ** 2 - 0.5 * ((Y - z) / 0.7) ** 2 - math.log(0.7) - math.log(2 * math.pi)
    log_q = -0.5 * ((z - mean) / math.exp(log_sd)) ** 2 - log_sd - 0.5 * math.log(2 * math.pi)
    return log_p, log_q


def normal_exact(h, x):
    """E[h] over two draws."""
    log_p, log_q = normal_densities(x, x[0] + math.exp(x[1]) * POINTS)
    return sum(WEIGHTS[i] * WEIGHTS[j] * h(log_p[[i, j]], log_q[[i, j]]) for i in range(60) for j in range(60))


def np_smooth(p, q):
    return np.mean(np.tanh(p - q)) - 0.1 * np.mean(q) ** 2


def smooth(log_p, log_q):
    return mx.mean(mx.tanh(log_p - log_q)) - 0.1 * mx.mean(log_q) ** 2


NORMALS = [
    (objective, estimator)
    for objective in ("elbo", "iwelbo", "renyi", smooth)
    for estimator in ("reparam", "reinforce", "measure_valued")
]


@pytest.mark.parametrize(("objective", "estimator"), NORMALS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_gradients_of_continuous_latents(objective, estimator):
    x, h = (0.2, 0.1, 0.4), {**PAIRS, smooth: np_smooth}[objective]
    problem = problem_of(shifted(), wide_guide(), {"y": Y}, objective, estimator, particles=2, samples=500)
    values, gradients, names = estimates(problem, 40)
    assert names == ["mean", "log_sd", "theta"]
    assert_agree(values, normal_exact(h, x), largest=0.05)
    assert_agree(gradients, slopes(lambda x: normal_exact(h, x), x), largest=0.1)


@pytest.mark.parametrize(("objective", "which", "learns"), [("qwake", 1, [0, 1]), ("pwake", 0, [2])])
def test_wake_gradients_do_not_go_through_the_draws(objective, which, learns):
    """A gradient that leaks through the draws takes from d log q just what it adds: the result is not this one."""
    x = np.array([0.2, 0.1, 0.4])
    z = x[0] + math.exp(x[1]) * POINTS
    log_p, log_q = normal_densities(x, z)
    inner = np.array([slopes(lambda x, i=i: normal_densities(x, z[i])[which], x) for i in range(60)])
    exact = np.zeros(3)
    for i, j in itertools.product(range(60), repeat=2):
        s = [i, j]
        shares = np.exp(log_p[s] - log_q[s] - logsumexp(log_p[s] - log_q[s]))
        exact += WEIGHTS[i] * WEIGHTS[j] * shares @ inner[s]
    problem = problem_of(shifted(), wide_guide(), {"y": Y}, objective, particles=2, samples=500)
    _, gradients, names = estimates(problem, 40)
    assert names == [["mean", "log_sd", "theta"][i] for i in learns]
    assert np.all(np.abs(exact[learns]) > 0.1)
    assert_agree(gradients, exact[learns], largest=0.1)


def test_the_baseline_of_vimco_is_the_bound_with_the_geometric_mean_of_the_others():
    """By hand for three draws, and one of weight zero."""
    log_p, log_q = mx.array([0.5, -1.0, 2.0]), mx.array([-0.5, 0.3, 0.1])
    weights = np.array([1.0, -1.3, 1.9])
    expected = []
    for k in range(3):
        replaced = weights.copy()
        replaced[k] = np.delete(weights, k).mean()
        expected.append(logsumexp(replaced) - math.log(3))
    assert h_without_each(iwelbo, [log_p, log_q]).tolist() == pytest.approx(expected, rel=1e-6)
    impossible = mx.array([0.5, -math.inf, 2.0])
    found = h_without_each(iwelbo, [impossible, log_q])
    rest = [np.logaddexp(-math.inf, 1.9) - math.log(3), logsumexp([1.0, 1.45, 1.9]) - math.log(3), 1.0 - math.log(3)]
    assert found.tolist() == pytest.approx(rest, rel=1e-6)


def test_leaving_one_out_has_less_variance_than_a_constant():
    def spread(baseline):
        problem = problem_of(prior_with_weight(), bits_guide(), {"y": Y}, "iwelbo", None, baseline, 10)
        return estimates(problem, 300)[1][:, 0].std(ddof=1)

    assert spread("leave-one-out") < 0.25 * spread(10.0)


# what is learnt


def test_the_elbo_learns_the_model_too():
    """y = 1.7 under N(theta, 1 + 0.49): the evidence is largest at theta = y."""
    rate = optim.cosine_decay(0.05, 1000)
    fit = programmable_vi(shifted(), {"y": Y}, wide_guide(), iterations=1000, optimiser=optim.Adam(rate), key=3)
    assert sorted(fit.params) == ["log_sd", "mean", "theta"]
    assert fit.params["theta"].item() == pytest.approx(Y, abs=0.03)
    assert fit.log_ml_bound == pytest.approx(-0.5 * math.log(2 * math.pi * 1.49), abs=0.01)


def test_wake_objectives_move_only_what_they_learn():
    for objective, moved, still in (("pwake", shifted, wide_guide), ("qwake", wide_guide, shifted)):
        shifted().simulate(), wide_guide().simulate()
        before = {name: value.item() for name, value in still.params.tree().items()}
        fit = programmable_vi(shifted(), {"y": Y}, wide_guide(), objective, iterations=20, key=4)
        assert set(fit.params) == set(moved.params)
        assert {name: value.item() for name, value in still.params.tree().items()} == before
    assert wide_guide.params["mean"].item() > 0.2


def test_the_stores_have_the_result_and_the_result_its_own():
    fit = programmable_vi(conjugate(), {"y": 1.0}, gaussian_guide(), iterations=300, learning_rate=0.05, key=5)
    assert gaussian_guide.params["mean"].item() == fit.params["mean"].item()
    before = fit.sample(2000, key=6)
    gaussian_guide.params["mean"] = 30.0
    after = fit.sample(2000, key=6)
    assert mx.array_equal(before["x"], after["x"]).item()
    assert before.log_ml.item() == pytest.approx(LOG_ML, abs=0.02)
    assert fit.mean("x").item() == pytest.approx(fit.params["mean"].item(), abs=0.05)
    assert (fit.objective, fit.estimators, fit.execution) == ("elbo", {("x",): "reparam"}, "replayed")
    assert fit.history.shape == (300,) and fit.status == "complete" and fit.algorithm == "programmable_vi"


def test_parameters_of_the_same_name_are_told_apart():
    @gen
    def model():
        trace("y", normal(trace("x", normal(param("mean", 0.0), 1.0)), 1.0))

    fit = programmable_vi(model(), {"y": 1.0}, gaussian_guide(), iterations=2, key=7)
    assert set(fit.params) == {"gaussian_guide.mean", "model.mean", "log_sd"}


def test_discrete_latents_are_fitted_to_their_posterior():
    """Given a, the guide's b is free to be right; the guide's family holds the posterior of a alone, not of both."""
    log_p, _ = bits_densities((0.0, 0.0, 0.3))
    posterior = np.exp(log_p - logsumexp(log_p))

    @gen
    def guide():
        a = trace("a", flip(mx.sigmoid(param("a", 0.0))))
        trace("b", flip(mx.sigmoid(mx.where(a == 1, param("b1", 0.0), param("b0", 0.0)))))

    @gen
    def fixed():
        a = trace("a", flip(float(expit(0.3))))
        b = trace("b", flip(0.2 + 0.5 * a))
        trace("y", normal(1.5 * a + b, 0.8))

    fit = programmable_vi(fixed(), {"y": Y}, guide(), particles=1, iterations=600, learning_rate=0.05, key=8)
    assert mx.sigmoid(fit.params["a"]).item() == pytest.approx(posterior[2:].sum(), abs=1e-3)
    assert mx.sigmoid(fit.params["b1"]).item() == pytest.approx(posterior[3] / posterior[2:].sum(), abs=1e-3)
    assert fit.log_ml_bound == pytest.approx(logsumexp(log_p), abs=1e-4)


def test_guides_of_parts_and_combinators():
    """Three groups under vmap and a global mean: a Gaussian posterior with known precisions."""

    @gen
    def group(mu):
        trace("y", normal(trace("x", normal(mu, 1.0)), 0.5))

    @gen
    def model():
        trace("groups", vmap(group)(mx.broadcast_to(trace("mu", normal(0.0, 2.0)), (3,))))

    @gen
    def part(mean, slope, mu):
        trace("x", normal(mean + slope * mu, mx.exp(param("log_sd", 0.0))))

    @gen
    def top():
        return trace("mu", normal(param("mu", 0.0), mx.exp(param("log_sd", 0.0))))

    @gen
    def guide():
        mu = splice(top())
        parts = vmap(part, in_axes=(0, None, None))
        trace("groups", parts(param("means", mx.zeros((3,))), param("slope", 0.0), mu))

    ys = np.array([1.0, 2.0, 4.0])
    rate = optim.cosine_decay(0.05, 2000)
    fit = programmable_vi(
        model(), {("groups", "y"): mx.array(ys.astype("float32"))}, guide(),
        iterations=2000, optimiser=optim.Adam(rate), key=9,
    )  # fmt: skip
    cov = 4.0 * np.ones((3, 3)) + 1.25 * np.eye(3)
    exact = -0.5 * (ys @ np.linalg.solve(cov, ys) + np.linalg.slogdet(2 * np.pi * cov)[1])
    assert fit.log_ml_bound == pytest.approx(exact, abs=0.01) and fit.khat < 0.5
    precision = 1 / 4 + 3 / 1.25
    assert fit.mean("mu").item() == pytest.approx(ys.sum() / 1.25 / precision, abs=0.06)
    assert fit.params["slope"].item() == pytest.approx(0.2, abs=0.02)
    assert set(fit.params) == {"mu", "top.log_sd", "part.log_sd", "means", "slope"}


# keys, graphs and loops


def test_every_step_has_its_own_noise():
    """At a learning rate of zero the objectives of the steps differ by their noise alone."""

    def history(key, iterations=30):
        return programmable_vi(
            conjugate(), {"y": 1.0}, gaussian_guide(), iterations=iterations, optimiser=optim.SGD(0.0), key=key
        ).history.tolist()

    found = history(10)
    assert len(set(found)) == 30
    assert history(10) == found and history(11)[0] != found[0]
    assert history(10, 7) == found[:7]
    values = np.array(history(12, 400))
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.2
    assert abs(values.mean() + 1.918939) < 4 * values.std() / 20


def test_steps_are_replayed():
    problem = problem_of(prior_with_weight(), bits_guide(), {"y": Y}, "vimco")
    step = Replayed(problem.gradient)
    values = [problem.parameters()[read] for read in problem.learned]
    offset = problem.baseline.offset(1)
    handlers = problem.gradient(mx.random.key(3), offset, *values)
    for k in (1, 2, 3):
        found = step(mx.random.key(k), offset, *values)
    assert step.execution == "replayed"
    assert [x.tolist() for x in found] == [x.tolist() for x in handlers]


def test_a_run_can_be_ended_and_keeps_what_it_has():
    seen = []

    def enough(progress):
        seen.append(progress)
        return "enough" if progress.done >= 3 else None

    fit = programmable_vi(
        conjugate(), {"y": 1.0}, gaussian_guide(), iterations=100_000, learning_rate=0.05, key=13, progress=enough
    )
    assert fit.status == "enough" and 3 <= len(fit.history) < 100_000
    assert seen[-1].info["elbo"] == pytest.approx(np.median(np.array(fit.history)[-50:]))
    assert seen[-1].info["objective"]().tolist() == pytest.approx(fit.history.tolist())
    assert gaussian_guide.params["mean"].item() == fit.params["mean"].item() != 0.0
    assert fit.timing["total"] > 0


@pytest.mark.parametrize("baseline", ["leave-one-out", "running"])
def test_a_run_that_was_ended_goes_on_bit_for_bit(tmp_path, baseline):
    """Wherever the stores are by then: the parameters, the optimiser, the baseline and the keys are the file's."""

    def run(path, progress=None, **more):
        return programmable_vi(
            prior_with_weight(), {"y": Y}, bits_guide(), "iwelbo", baseline=baseline,
            iterations=40, learning_rate=0.05, checkpoint=path, progress=progress, **{"key": 20, **more},
        )  # fmt: skip

    whole = run(tmp_path / "whole")
    for model in (bits_guide, prior_with_weight):
        for name in list(model.params):
            del model.params[name]
    part = run(tmp_path / "part", lambda progress: "stopped" if progress.done >= 7 else None)
    assert part.status == "stopped" and 7 <= len(part.history) < 40
    bits_guide.params["phi"] = 9.0
    rest = run(tmp_path / "part")
    assert rest.history.tolist() == whole.history.tolist()
    assert {n: v.item() for n, v in rest.params.items()} == {n: v.item() for n, v in whole.params.items()}
    assert bits_guide.params["phi"].item() == whole.params["phi"].item()
    with pytest.raises(GenError, match="another run, with other key"):
        run(tmp_path / "part", key=21)
    with pytest.raises(GenError, match="another run, with other particles"):
        run(tmp_path / "part", particles=11)


def test_the_optimiser_of_the_user_is_left_as_it_is():
    given = optim.Adam(0.05)
    runs = [programmable_vi(conjugate(), {"y": 1.0}, gaussian_guide(), iterations=5, optimiser=given, key=14)]
    assert given.step.item() == 0
    del gaussian_guide.params["mean"], gaussian_guide.params["log_sd"]
    runs.append(programmable_vi(conjugate(), {"y": 1.0}, gaussian_guide(), iterations=5, optimiser=given, key=14))
    assert runs[0].history.tolist() == runs[1].history.tolist()


# what cannot be


def test_the_guide_draws_exactly_the_latents():
    @gen
    def two():
        trace("y", normal(trace("x", normal(0.0, 1.0)) + trace("w", normal(0.0, 1.0)), 1.0))

    @gen
    def more():
        trace("x", normal(param("m", 0.0), 1.0))
        trace("z", normal(0.0, 1.0))

    with pytest.raises(MissingChoice, match="leaves out a latent choice") as error:
        programmable_vi(two(), {"y": 1.0}, gaussian_guide())
    assert error.value.address == ("w",)
    with pytest.raises(UnknownAddress, match="no latent of the model") as error:
        programmable_vi(conjugate(), {"y": 1.0}, more())
    assert error.value.address == ("z",)
    with pytest.raises(UsageError, match="draws an observed choice") as error:
        programmable_vi(conjugate(), {"y": 1.0, "x": 0.0}, gaussian_guide())
    assert error.value.address == ("x",)
    with pytest.raises(UnknownAddress, match="an observed address") as error:
        programmable_vi(conjugate(), {"y": 1.0, "q": 0.0}, gaussian_guide())
    assert error.value.address == ("q",)


def test_a_latent_of_another_shape_names_it():
    @gen
    def vector():
        trace("x", normal(param("m", mx.zeros((2,))), 1.0))

    with pytest.raises(ValueMismatch) as error:
        programmable_vi(conjugate(), {"y": 1.0}, vector())
    assert error.value.address == ("x",)


@gen
def positive():
    trace("y", poisson(trace("rate", exponential(1.0))))


@gen
def anywhere():
    trace("rate", normal(param("mean", 0.5), mx.exp(param("log_sd", 0.0))))


def test_draws_that_the_model_cannot_have_name_the_choice():
    """A normal guide of a positive rate, which is below zero in a third of the draws."""
    with pytest.raises(ParameterError, match=r"has density zero, in (2|3)\d\d of 1,000 draws") as error:
        programmable_vi(positive(), {"y": 3}, anywhere(), key=15)
    assert error.value.address == ("rate",)
    assert anywhere.params["mean"].item() == 0.5


def test_an_importance_weighted_bound_passes_over_them():
    """A mean of weights of which some are zero: the guide moves to where they are large."""

    @gen
    def delayed():
        trace("y", normal(trace("rate", exponential(1.0)), 0.5))

    fit = programmable_vi(
        delayed(), {"y": 2.0}, anywhere(), "iwelbo", iterations=400, particles=30, learning_rate=0.02, key=16
    )
    evidence = -2.0 + 0.125 + norm.logcdf((2.0 - 0.25) / 0.5)
    assert fit.sample(20_000, key=17).log_ml.item() == pytest.approx(evidence, abs=0.03)
    assert np.isfinite(np.array(fit.history)).all() and fit.history[-100:].mean().item() > evidence - 0.05


def test_one_step_that_is_not_finite_is_not_passed_over():
    """Only now and then, and fine again in the next step: it says which, and where the parameters were."""

    def spiky(log_p, log_q):
        return mx.mean(log_p - log_q) + mx.where(mx.min(log_q) < -6.5, math.nan, 0.0)

    def run(objective, iterations=400):
        return programmable_vi(
            conjugate(), {"y": 1.0}, gaussian_guide(), objective, iterations=iterations, key=22, baseline=None
        )

    with pytest.raises(ParameterError, match="not finite in step") as error:
        run(spiky)
    step = int(re.search(r"in step (\d+)", str(error.value))[1])
    assert 5 < step < 395
    before = run(lambda p, q: mx.mean(p - q), step)
    mean = float(re.search(r"mean = ([-\d.]+)", str(error.value))[1])
    assert mean == pytest.approx(before.params["mean"].item(), abs=1e-4)


def test_a_parameter_that_leaves_its_domain_is_shown():
    @gen
    def guide():
        trace("x", normal(param("mean", 0.0), param("sd", 0.02)))

    with pytest.raises(ParameterError, match="not finite|NaN"):
        programmable_vi(conjugate(), {"y": 1.0}, guide(), optimiser=optim.SGD(-0.5), iterations=50, key=18)


def test_a_host_value_raises_and_is_no_constant():
    """Under a gradient alone it would be a constant, and the parameter would never move."""

    @gen
    def of_parameter():
        trace("x", normal(float(param("mean", 0.0)), 1.0))

    @gen
    def of_draw():
        x = trace("x", normal(param("mean", 0.0), 1.0))
        return 1.0 if x > 0 else 0.0

    @gen
    def model():
        x = trace("x", normal(0.0, 1.0))
        trace("y", normal(param("shift", 0.0).item() + x, 1.0))

    for call, guide in ((conjugate, of_parameter), (conjugate, of_draw), (model, gaussian_guide)):
        with pytest.raises(BatchError, match="host value"):
            programmable_vi(call(), {"y": 1.0}, guide(), iterations=2)


def test_estimators_and_settings_that_do_not_fit():
    model, guide = prior_with_weight(), bits_guide()
    with pytest.raises(EstimatorError, match="summed over the values of one") as error:
        programmable_vi(model, {"y": Y}, guide, "iwelbo", estimator={"b": "enumerate"})
    assert error.value.address == ("b",)
    with pytest.raises(EstimatorError, match="VIMCO is a form of REINFORCE"):
        programmable_vi(model, {"y": Y}, guide, "vimco", estimator="measure_valued")
    with pytest.raises(UsageError, match="does not go through the draws"):
        programmable_vi(model, {"y": Y}, guide, "qwake", estimator="reinforce")
    with pytest.raises(ParameterError, match="particles=1"):
        programmable_vi(model, {"y": Y}, guide, "iwelbo", particles=1)
    with pytest.raises(UsageError, match="no objective 'evidence'"):
        programmable_vi(model, {"y": Y}, guide, "evidence")
    with pytest.raises(UsageError, match="gave an array of shape"):
        programmable_vi(model, {"y": Y}, guide, lambda p, q: p - q)
    with pytest.raises(UsageError, match="guide=guide"):
        programmable_vi(model, {"y": Y}, bits_guide)
    with pytest.raises(UsageError, match="one of optimiser and learning_rate"):
        programmable_vi(model, {"y": Y}, guide, optimiser=optim.SGD(0.1), learning_rate=0.1)
    with pytest.raises(UsageError, match="the optimiser is"):
        programmable_vi(model, {"y": Y}, guide, optimiser="adam")
    with pytest.raises(ParameterError, match="alpha"):
        renyi(math.inf)


def test_a_guide_without_parameters_has_nothing_to_learn():
    @gen
    def still():
        trace("x", normal(0.0, 1.0))

    with pytest.raises(UsageError, match="the guide or model reads no parameter"):
        programmable_vi(conjugate(), {"y": 1.0}, still())
    with pytest.raises(UsageError, match="the model reads no parameter"):
        programmable_vi(conjugate(), {"y": 1.0}, gaussian_guide(), "pwake")


def test_a_guide_of_choices_that_come_and_go():
    """A choice behind a mask, in model and guide alike: the two states and one normal are fitted exactly."""

    @gen
    def real():
        return trace("x", normal(0.0, 1.0))

    @gen
    def model():
        on = trace("on", flip(0.5))
        x = trace("part", mask(real)(on == 1))
        trace("y", normal(mx.where(on == 1, x, 0.0), 1.0))

    @gen
    def own():
        return trace("x", normal(param("mean", 0.0), mx.exp(param("log_sd", 0.0))))

    @gen
    def guide():
        on = trace("on", flip(mx.sigmoid(param("on", 0.0))))
        trace("part", mask(own)(on == 1))

    rate = optim.cosine_decay(0.05, 1500)
    fit = programmable_vi(model(), {"y": 2.0}, guide(), iterations=1500, optimiser=optim.Adam(rate), key=19)
    on, off = (math.exp(-(2.0**2) / (2 * v)) / math.sqrt(2 * math.pi * v) for v in (2.0, 1.0))
    assert fit.params["mean"].item() == pytest.approx(1.0, abs=0.05)
    assert mx.sigmoid(fit.params["on"]).item() == pytest.approx(on / (on + off), abs=0.02)
    assert fit.log_ml_bound == pytest.approx(math.log(0.5 * on + 0.5 * off), abs=0.01)


def test_an_impossible_draw_weighs_nothing():
    """Two draws of weights 2 and 1, and one that the model cannot have: values and gradients are those of the two."""
    log_p, log_q = mx.array([math.log(2) - 1.0, -math.inf, -1.5]), mx.array([-1.0, -0.3, -1.5])
    for name, which in (("pwake", log_p), ("qwake", log_q)):
        value, slope = mx.value_and_grad(OBJECTIVES[name].of, argnums=0 if name == "pwake" else 1)(log_p, log_q)
        assert value.item() == pytest.approx((2 * which[0].item() + which[2].item()) / 3, abs=1e-6)
        assert slope.tolist() == pytest.approx([2 / 3, 0.0, 1 / 3], abs=1e-6)
    value, slope = mx.value_and_grad(iwelbo)(log_p, log_q)
    assert value.item() == pytest.approx(math.log(3 / 3), abs=1e-6)
    assert slope.tolist() == pytest.approx([2 / 3, 0.0, 1 / 3], abs=1e-6)


def test_renyi_joins_the_elbo_and_the_importance_weighted_bound():
    log_p, log_q = mx.array([0.5, -1.0, 2.0]), mx.array([-0.5, 0.3, 0.1])
    assert renyi(1) is OBJECTIVES["elbo"]
    assert renyi(0.999).of(log_p, log_q).item() == pytest.approx(np_elbo(*map(np.array, (log_p, log_q))), abs=2e-3)
    assert renyi(0).of(log_p, log_q).item() == pytest.approx(iwelbo(log_p, log_q).item(), abs=1e-6)
    assert renyi(0.5).of(log_p, log_q).item() == pytest.approx(np_renyi(*map(np.array, (log_p, log_q))), abs=1e-6)


def test_an_amortised_guide_and_a_model_of_networks():
    """Factor analysis: the evidence of the learned weights is a Gaussian density, which the bound comes close to."""
    decoder, encoder = neural(nn.Linear(2, 5), name="decoder"), neural(nn.Linear(5, 4), name="encoder")
    generator = np.random.default_rng(0)
    for part in (decoder, encoder):
        for name, value in list(part.params.named().items()):
            part.params.put(name, mx.array(0.3 * generator.standard_normal(value.shape).astype("float32")))
    ys = generator.standard_normal((64, 2)) @ generator.standard_normal((2, 5)) + 0.3 * generator.standard_normal(
        (64, 5)
    )

    @gen
    def model(n):
        trace("y", normal(splice(decoder(trace("z", normal(mx.zeros((n, 2)), 1.0)))), 0.3))

    @gen
    def guide(ys):
        h = splice(encoder(ys))
        trace("z", normal(h[:, :2], mx.exp(h[:, 2:])))

    given = mx.array(ys.astype("float32"))
    rate = optim.cosine_decay(0.02, 1000)
    fit = programmable_vi(
        model(64), {"y": given}, guide(given), iterations=1000, optimiser=optim.Adam(rate), particles=2, key=21
    )
    assert fit.execution == "replayed" and set(fit.params) == {
        "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"
    }  # fmt: skip
    w, residual = np.array(decoder.params["weight"], dtype=np.float64), ys - np.array(decoder.params["bias"])
    cov = w @ w.T + 0.09 * np.eye(5)
    exact = -0.5 * np.sum((residual @ np.linalg.inv(cov)) * residual) - 32 * np.linalg.slogdet(2 * np.pi * cov)[1]
    assert exact - 2 < fit.log_ml_bound < exact + 4 * fit.log_ml_bound_error
