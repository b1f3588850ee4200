"""Wake-sleep and lectures: gradients against closed forms and enumeration, and what they converge to."""

import itertools
import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from genmlx import flip, gen, lecture, neural, normal, param, splice, trace, train, wake_sleep
from genmlx.errors import GenError, UsageError
from genmlx.learning import gradient, wake


def mean_gradient(objective, reads, runs):
    """The mean over keys of the gradient in some parameters, and its standard error."""
    found = []
    for seed in range(runs):
        g = gradient(lambda key: objective(key), key=seed)
        found.append([g[read].item() for read in reads])
    rows = np.array(found)
    return rows.mean(0), rows.std(0, ddof=1) / math.sqrt(runs)


def assert_agrees(mean, error, exact):
    assert np.all(error > 0) and np.all(np.abs(mean - exact) < 4 * error), (mean, error, exact)


def gens_example():
    """p: z ~ N(0, 1), x ~ N(z + 2, 0.3). The guide: z ~ N(x + theta, exp(log_std))."""

    @gen
    def p():
        trace("x", normal(trace("z", normal(0.0, 1.0)) + 2.0, 0.3 * mx.exp(param("noise", 0.0))))

    @gen
    def q(x):
        trace("z", normal(x + param("theta", 0.0), mx.exp(param("log_std", 0.0))))

    return p, q


def test_the_gradient_of_a_lecture():
    """z - x - theta is N(-2 - theta, 0.3): the gradient of E log q in closed form. 40 keys of 200 dreams."""
    p, q = gens_example()
    q.params.update({"theta": -1.0, "log_std": 0.4})
    mean, error = mean_gradient(
        lambda key: lecture(p(), lambda c: q(c["x"]), 200, key), [(q, "theta"), (q, "log_std")], 40
    )
    variance = math.exp(0.8)
    assert_agrees(mean, error, [-1.0 / variance, (1.0 + 0.09) / variance - 1.0])
    assert np.all(error < 0.02)


def test_a_lecture_does_not_move_the_model():
    """Would catch a gradient that leaks through the dreams, which follow the model's parameters."""
    p, q = gens_example()
    moved = gradient(lambda key: lecture(p(), lambda c: q(c["x"]), 50, key), key=1)
    assert set(moved) == {(q, "theta"), (q, "log_std")}

    def both(key):
        return lecture(p(), lambda c: q(c["x"]), 50, key) + 0.0 * p().simulate(key=key)["x"]

    moved = gradient(both, key=1)
    assert moved[p, "noise"].item() == 0.0 and moved[q, "theta"].item() != 0.0


def test_lecture_reaches_the_score_of_gens_example():
    """Case 48: -log(2 pi e 0.09) / 2 = -0.21497, the entropy of what the guide cannot know."""
    p, q = gens_example()
    rate = optim.cosine_decay(0.05, 600)
    train(lambda key: lecture(p(), lambda c: q(c["x"]), 200, key), iterations=600, learning_rate=rate, key=1)
    assert q.params["theta"].item() == pytest.approx(-2.0, abs=0.01)
    assert q.params["log_std"].item() == pytest.approx(math.log(0.3), abs=0.02)
    score = lecture(p(), lambda c: q(c["x"]), 20_000, 5).item()
    assert score == pytest.approx(-0.5 * math.log(2 * math.pi * math.e * 0.09), abs=4 * math.sqrt(0.5 / 20_000))


def exclusive_or():
    @gen
    def teacher():
        x, y = trace("x", flip(0.5)), trace("y", flip(0.5))
        trace("z", flip(mx.where(x == y, 0.0, 1.0)))

    @gen
    def student(z):
        t = param("t", mx.zeros(5))
        x = trace("x", flip(mx.sigmoid(t[0])))
        which = mx.where(z == 1, mx.where(x == 1, t[1], t[2]), mx.where(x == 1, t[3], t[4]))
        trace("y", flip(mx.sigmoid(which)))

    return teacher, student


def test_the_gradient_of_a_lecture_on_discrete_choices():
    """Gen's teacher and student, by enumeration of the four runs of the teacher."""
    teacher, student = exclusive_or()
    t = np.array([0.3, -0.5, 1.0, 0.2, -1.0])
    student.params["t"] = t.tolist()
    rows = [gradient(lambda key: lecture(teacher(), lambda c: student(c["z"]), 100, key), key=i) for i in range(40)]
    found = np.array([row[student, "t"].tolist() for row in rows])
    exact = np.zeros(5)
    for x, y in itertools.product((0, 1), repeat=2):
        at = {(1, 1): 1, (1, 0): 2, (0, 1): 3, (0, 0): 4}[x ^ y, x]
        chance = 1 / (1 + np.exp(-t))
        exact[0] += 0.25 * (x - chance[0])
        exact[at] += 0.25 * (y - chance[at])
    assert_agrees(found.mean(0), found.std(0, ddof=1) / math.sqrt(40), exact)


def test_a_student_learns_exclusive_or():
    """Case 48, and Gen's own bounds: y is x xor z."""
    teacher, student = exclusive_or()
    train(lambda key: lecture(teacher(), lambda c: student(c["z"]), 50, key), iterations=800, learning_rate=0.1, key=1)
    t = student.params["t"].tolist()
    assert abs(t[0]) < 0.2 and t[1] < -5 and t[2] > 5 and t[3] > 5 and t[4] < -5


def autoencoder():
    """z ~ N(theta, 1), x ~ N(z, 1), whose evidence N(x; theta, sqrt 2) is greatest at the mean of the data."""

    @gen
    def decoder():
        trace("x", normal(trace("z", normal(param("theta", 0.0), 1.0)), 1.0))

    @gen
    def encoder(x):
        trace("z", normal(param("a", 0.0) * x + param("b", 0.0), mx.exp(param("log_sd", 0.0))))

    return decoder, encoder


XS = mx.array([1.0, 2.0, 3.0, 6.0])


@pytest.mark.parametrize("samples", [1, 3])
def test_the_gradient_of_wake(samples):
    """sum over rows of E_q[z - theta] = a x + b - theta; none for the guide, though its draws follow a and b."""
    decoder, encoder = autoencoder()
    decoder.params["theta"] = 0.5
    encoder.params.update({"a": 0.3, "b": 1.0, "log_sd": 0.2})

    def objective(key):
        return wake(decoder(), {"x": XS}, lambda c: encoder(c["x"]), samples, key)

    mean, error = mean_gradient(objective, [(decoder, "theta")], 100)
    assert_agrees(mean, error, [0.3 * 12 + 4 * (1.0 - 0.5)])
    assert error[0] == pytest.approx(math.exp(0.2) * math.sqrt(4 / samples / 100), rel=0.3)
    assert set(gradient(objective, key=1)) == {(decoder, "theta")}


def test_wake_sleep_reaches_the_mean_of_the_data():
    """Case 48. At the optimum the guide is the posterior: a = 1/2, b = theta / 2, sd = sqrt(1/2)."""
    decoder, encoder = autoencoder()
    result = wake_sleep(
        decoder(), {"x": XS}, lambda c: encoder(c["x"]), samples=10, dreams=100, iterations=3000,
        learning_rate=optim.cosine_decay(0.02, 3000), key=1,
    )  # fmt: skip
    assert decoder.params["theta"].item() == pytest.approx(3.0, abs=0.05)
    assert encoder.params["a"].item() == pytest.approx(0.5, abs=0.02)
    assert encoder.params["b"].item() == pytest.approx(1.5, abs=0.06)
    assert encoder.params["log_sd"].item() == pytest.approx(0.5 * math.log(0.5), abs=0.03)
    assert set(result.terms) == {"wake", "sleep"} and result.execution == "replayed"
    assert mx.allclose(result.terms["wake"] + result.terms["sleep"], result.history, rtol=1e-5).item()


def test_wake_sleep_in_batches():
    """The wake term is scaled to all rows, the sleep term is not: both have the same mean as without batches."""
    decoder, encoder = autoencoder()
    frozen = dict(optimiser=optim.SGD(0.0), iterations=400, key=1, samples=1, dreams=20)

    def guide(c):
        return encoder(c["x"])

    few = wake_sleep(decoder(), {"x": XS}, guide, batch_size=1, **frozen)
    for name, exact in {
        # log p(z, x) = -log 2 pi - z^2 / 2 - (x - z)^2 / 2 with z ~ N(0, 1); log q = log N(z; 0, 1) with z ~ N(0, 1)
        "wake": sum(-math.log(2 * math.pi) - 0.5 - 0.5 * (x * x + 1) for x in XS.tolist()),
        "sleep": -0.5 * math.log(2 * math.pi) - 0.5,
    }.items():
        term = np.array(few.terms[name])
        assert abs(term.mean() - exact) < 4 * term.std(ddof=1) / math.sqrt(len(term))


def test_networks_learn_by_wake_sleep():
    """A guide that is a network, of x in two dimensions: its mean comes near the posterior's, x / 2."""
    mx.random.seed(1)
    net = neural(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)))

    @gen
    def model():
        trace("x", normal(trace("z", normal(mx.zeros(2), 1.0)), 1.0))

    @gen
    def guide(x):
        trace("z", normal(splice(net(x)), 0.5**0.5))

    train(lambda key: lecture(model(), lambda c: guide(c["x"]), 256, key), iterations=600, key=2)
    points = mx.array([[1.0, -1.0], [0.5, 2.0], [-2.0, 0.0]])
    assert mx.max(mx.abs(net.module(points) - points / 2)).item() < 0.2


def test_misuse_raises():
    decoder, encoder = autoencoder()
    with pytest.raises(UsageError, match="the guide gave 3"):
        lecture(decoder(), lambda c: 3, key=1)
    with pytest.raises(GenError, match="samples must be"):
        lecture(decoder(), lambda c: encoder(c["x"]), 0, key=1)
    with pytest.raises(UsageError, match="the guide draws an observed choice"):
        wake(decoder(), {"x": XS, "z": XS}, lambda c: encoder(c["x"]), key=1)
    with pytest.raises(UsageError, match="no rows"):
        wake(decoder(), {}, lambda c: encoder(c["x"]), key=1)

    @gen
    def blind(x):
        trace("other", normal(x, 1.0))

    with pytest.raises(KeyError, match="other"):
        lecture(decoder(), lambda c: blind(c["x"]), key=1)
    with pytest.raises(KeyError, match="z"):
        wake(decoder(), {"x": XS}, lambda c: blind(c["x"]), key=1)

    @gen
    def more(x):
        trace("z", normal(x, 1.0))
        trace("extra", normal(x, 1.0))

    with pytest.raises(KeyError, match="extra"):
        wake(decoder(), {"x": XS}, lambda c: more(c["x"]), key=1)
