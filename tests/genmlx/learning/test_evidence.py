"""Maximum marginal likelihood: gradients against conjugate models, enumeration and the forward algorithm."""

import itertools
import math

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from scipy import optimize

from genmlx import categorical, flip, gen, log_evidence, normal, param, smc_log_evidence, trace, train, unfold
from genmlx.errors import GenError
from genmlx.learning import gradient, over_rows


def runs(objective, reads, n):
    """Values and gradients over keys, as arrays."""
    found = [gradient(lambda key: objective(key), key=seed) for seed in range(n)]
    values = [objective(mx.random.key(seed)).item() for seed in range(n)]
    return np.array(values), np.array([[np.sum(np.array(g[read])) for read in reads] for g in found])


def assert_agrees(rows, exact, bias=0.0):
    error = rows.std(0, ddof=1) / math.sqrt(len(rows))
    assert np.all(error > 0) and np.all(np.abs(rows.mean(0) - exact) < 4 * error + bias), (rows.mean(0), error, exact)


def normal_normal():
    @gen
    def model():
        trace("y", normal(trace("x", normal(param("mu", 0.0), 1.0)), mx.exp(param("log_sd", 0.0))))

    return model


def test_the_gradient_on_a_conjugate_model():
    """y ~ N(mu, sqrt(1 + s^2)) with y = 2.5, mu = 0.5, s = 1: gradient (y - mu) / 2 and s^2 ((y - mu)^2 / 4 - 1 / 2).

    1,000 particles, 60 keys; the bias is of order 1/1,000."""
    model = normal_normal()
    model.params["mu"] = 0.5
    values, rows = runs(
        lambda key: log_evidence(model(), {"y": 2.5}, 1000, key=key), [(model, "mu"), (model, "log_sd")], 60
    )
    assert_agrees(rows, [1.0, 1.0 * (4.0 / 4.0 - 0.5)], bias=4e-3)
    assert_agrees(values, -0.5 * math.log(4 * math.pi) - 1.0, bias=2e-3)


def test_the_bias_with_one_particle_is_what_is_said():
    """With one particle it is the gradient of E log w at a fixed proposal: here E[x - mu] = 0, where the log evidence
    has 1. An estimator without that bias would be another one than what is documented."""
    model = normal_normal()
    model.params["mu"] = 0.5
    _, rows = runs(lambda key: log_evidence(model(), {"y": 2.5}, 1, key=key), [(model, "mu")], 300)
    assert_agrees(rows, [0.0])


def test_the_gradient_on_discrete_latents_with_two_particles():
    """z ~ flip(sigmoid t), y ~ N(m z, 1): the mean over both particles' draws, by enumeration. Exactly this estimator:
    its mean is neither the gradient of the log evidence nor that of one particle."""

    @gen
    def model():
        z = trace("z", flip(mx.sigmoid(param("t", 0.4))))
        trace("y", normal(param("m", 1.5) * z, 1.0))

    t, m, y = 0.4, 1.5, 1.2
    chance = 1 / (1 + math.exp(-t))
    p, w = [1 - chance, chance], [math.exp(-0.5 * (y - m * z) ** 2) for z in (0, 1)]
    exact = np.zeros(2)
    for a, b in itertools.product((0, 1), repeat=2):
        score = [np.array([z - chance, z * (y - m * z)]) for z in (a, b)]
        exact += p[a] * p[b] * (w[a] * score[0] + w[b] * score[1]) / (w[a] + w[b])
    _, rows = runs(lambda key: log_evidence(model(), {"y": y}, 2, key=key), [(model, "t"), (model, "m")], 400)
    assert_agrees(rows, exact)
    posterior = p[1] * w[1] / (p[0] * w[0] + p[1] * w[1])
    assert abs(exact[0] - (posterior - chance)) > 0.05  # which two particles do not give


def test_a_proposal_that_is_the_posterior():
    """Every weight is the evidence, so the value is exact; and the guide's parameters get no gradient."""
    model = normal_normal()
    model.params["mu"] = 0.5

    @gen
    def guide(y):
        trace("x", normal(0.5 * (y + param("mu", 0.5)), 0.5**0.5))

    def objective(key):
        return log_evidence(model(), {"y": 2.5}, 10, proposal=guide(2.5), key=key)

    values, rows = runs(objective, [(model, "mu"), (model, "log_sd")], 200)
    np.testing.assert_allclose(values, -0.5 * math.log(4 * math.pi) - 1.0, rtol=1e-5)
    assert_agrees(rows, [1.0, 0.5])
    assert set(gradient(objective, key=1)) == {(model, "mu"), (model, "log_sd")}


def test_maximum_marginal_likelihood_over_rows():
    """Each row has particles of its own: the optimum is the mean of the data."""
    model = normal_normal()
    ys = mx.array([1.0, 2.0, 6.0, 3.0])

    def objective(ys, key):
        return mx.sum(over_rows(lambda y, key: log_evidence(model(), {"y": y}, 100, key=key), ys, key))

    assert mx.sum(
        over_rows(lambda y, key: log_evidence(model(), {"y": y}, 20_000, key=key), ys, 1)
    ).item() == pytest.approx(sum(-0.5 * math.log(4 * math.pi) - y * y / 4 for y in ys.tolist()), abs=0.3)
    model.params["mu"] = 3.0
    train(objective, ys, batch_size=2, iterations=600, learning_rate=optim.cosine_decay(0.05, 600), key=1)
    # the spread of y is 1 + s^2 = 3.5 at the optimum
    assert model.params["mu"].item() == pytest.approx(3.0, abs=0.1)
    assert model.params["log_sd"].item() == pytest.approx(0.5 * math.log(2.5), abs=0.1)


# hidden Markov models


OBSERVED = [0.3, 1.9, 2.2, -0.4, 0.1, 1.8]


def chain_of():
    @gen
    def step(t, s):
        rows = mx.stack([mx.stack([param("stay", 0.8), mx.array(0.0)]), mx.stack([mx.array(0.0), param("last", 0.4)])])
        s = trace("s", categorical(rows[s]))
        trace("y", normal(param("level", 1.5) * s, 1.0))
        return s

    walk = unfold(step)
    return step, [(walk(t + 1, 0), {(t, "y"): y}) for t, y in enumerate(OBSERVED)]


def forward(theta):
    """The log evidence by the forward algorithm, in float64."""
    stay, last, level = theta
    logits = np.array([[stay, 0.0], [0.0, last]])
    table = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    alpha, total = np.array([1.0, 0.0]), 0.0
    for y in OBSERVED:
        alpha = (alpha @ table) * np.exp(-0.5 * (y - level * np.arange(2)) ** 2) / math.sqrt(2 * math.pi)
        total += math.log(alpha.sum())
        alpha = alpha / alpha.sum()
    return total


def test_the_gradient_through_smc():
    """Against differences of the forward algorithm: 30 keys of 500 particles; bias of order 1/500."""
    step, steps = chain_of()
    theta = np.array([0.8, 0.4, 1.5])
    exact = optimize.approx_fprime(theta, forward, 1e-6)
    reads = [(step, "stay"), (step, "last"), (step, "level")]
    values, rows = runs(lambda key: smc_log_evidence(steps, 500, key=key), reads, 30)
    assert_agrees(rows, exact, bias=0.01)
    assert_agrees(np.exp(values), math.exp(forward(theta)))
    assert np.all(np.abs(exact) > 0.02)


def test_importance_sampling_has_the_same_gradient():
    step, steps = chain_of()
    theta = np.array([0.8, 0.4, 1.5])
    call, observations = steps[-1][0], {(t, "y"): y for t, y in enumerate(OBSERVED)}
    reads = [(step, "stay"), (step, "last"), (step, "level")]
    _, rows = runs(lambda key: log_evidence(call, observations, 2000, key=key), reads, 30)
    assert_agrees(rows, optimize.approx_fprime(theta, forward, 1e-6), bias=0.01)


@pytest.mark.slow
def test_maximum_marginal_likelihood_through_smc():
    """The level that the forward algorithm finds most likely, with the transitions held."""
    step, steps = chain_of()
    best = optimize.minimize_scalar(lambda level: -forward([0.8, 0.4, level]), bounds=(0, 4), method="bounded").x

    def objective(key):
        return smc_log_evidence(steps, 300, key=key)

    for name, value in (("stay", 0.8), ("last", 0.4), ("level", 0.5)):
        step.params[name] = value
    for _ in range(60):  # plain ascent in one parameter
        g = gradient(objective, key=_)
        step.params["level"] = step.params["level"] + 0.1 * g[step, "level"]
    assert step.params["level"].item() == pytest.approx(best, abs=0.1)


def test_training_through_smc():
    """It cannot be recorded, says so, and rises to the optimum of all three parameters."""
    step, steps = chain_of()
    before = forward([0.8, 0.4, 1.5])
    result = train(lambda key: smc_log_evidence(steps, 100, key=key), iterations=30, learning_rate=0.05, key=1)
    after = forward([step.params[name].item() for name in ("stay", "last", "level")])
    assert after > before + 0.1 and result.execution.startswith("not replayed")
    assert set(result.params[step]) == {"stay", "last", "level"}


def test_misuse_raises():
    model = normal_normal()
    with pytest.raises(GenError, match="particles must be"):
        log_evidence(model(), {"y": 1.0}, 0, key=1)
    with pytest.raises(GenError, match="not a call"):
        log_evidence(model, {"y": 1.0}, key=1)
    with pytest.raises(KeyError, match="nothing"):
        log_evidence(model(), {"nothing": 1.0}, key=1)
