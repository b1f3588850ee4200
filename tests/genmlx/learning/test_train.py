"""Training: optima in closed form, optimisers, batches, early stopping, checkpoints, what goes wrong."""

import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from genmlx import custom_gradient, flip, gen, neural, normal, param, splice, trace, train
from genmlx.errors import BatchError, GenError, ParameterError, UsageError
from genmlx.inference import InferenceInterrupted

rng = np.random.default_rng(4)
XS = rng.normal(size=200)
YS = 1.5 * XS - 0.7 + 0.3 * rng.normal(size=200)
DATA = mx.array(XS, dtype=mx.float32), mx.array(YS, dtype=mx.float32)


def line_of():
    @gen
    def line(xs):
        sd = mx.exp(param("log_sd", 0.0))
        trace("y", normal(param("slope", 0.0) * xs + param("shift", 0.0), sd))

    return line, lambda xs, ys: line(xs).assess({"y": ys}).score


def least_squares():
    design = np.stack([XS, np.ones_like(XS)], axis=1)
    found = np.linalg.lstsq(design, YS, rcond=None)[0]
    return (*found, math.log(np.std(YS - design @ found)))


def of(line):
    return [line.params[name].item() for name in ("slope", "shift", "log_sd")]


def test_maximum_likelihood_in_closed_form():
    line, objective = line_of()
    result = train(objective, DATA, iterations=1500, key=1)
    assert of(line) == pytest.approx(least_squares(), abs=2e-3)
    assert result.execution == "replayed" and result.status == "complete" and result.history.shape == (1500,)
    assert {name: value.item() for name, value in result.params[line].items()} == dict(
        zip(("log_sd", "slope", "shift"), (line.params[n].item() for n in ("log_sd", "slope", "shift")), strict=True)
    )
    n, sd = len(XS), math.exp(least_squares()[2])
    best = -n * (0.5 + math.log(sd) + 0.5 * math.log(2 * math.pi))
    assert result.history[-1].item() == pytest.approx(best, abs=1e-2)
    assert "objective -" in repr(result) and "1500 steps" in repr(result)


def test_batches_come_to_the_same_optimum():
    """With a rate that falls, a stochastic gradient without bias; one of another scale would move log_sd."""
    line, objective = line_of()
    rate = optim.cosine_decay(0.05, 2000)
    result = train(objective, DATA, batch_size=20, iterations=2000, learning_rate=rate, key=2)
    assert of(line) == pytest.approx(least_squares(), abs=0.02)
    assert np.std(np.array(result.history[-100:])) > 1.0  # batches differ


def test_one_step_of_gradient_descent_exactly():
    """theta + rate * gradient of the sum; and momentum on the second step."""
    for optimiser, steps, factor in ((optim.SGD(0.001), 1, 1.0), (optim.SGD(0.001, momentum=0.5), 2, None)):
        line, objective = line_of()
        train(objective, DATA, optimiser=optimiser, iterations=steps, key=1)
        value, speed = np.zeros(2), np.zeros(2)
        log_sd = vs = 0.0
        for _ in range(steps):
            residual, sd2 = YS - value[0] * XS - value[1], math.exp(2 * log_sd)
            up = np.array([np.sum(residual * XS), np.sum(residual)]) / sd2
            up_sd = np.sum(residual**2) / sd2 - len(XS)
            speed, vs = (0.0 if factor else 0.5) * speed + up, (0.0 if factor else 0.5) * vs + up_sd
            value, log_sd = value + 0.001 * speed, log_sd + 0.001 * vs
        assert of(line) == pytest.approx([*value, log_sd], rel=1e-4)


def test_a_prior_is_not_scaled_with_the_rows():
    """The most probable mean of N(0, 1) prior and n observations: sum / (n + 1). Scaled like the rows it would be the
    mean of batches, far from that."""

    @gen
    def model(n, value):
        trace("mu", normal(0.0, 1.0))
        trace("y", normal(value * mx.ones(n), 1.0))

    ys = mx.array([4.0, 5.0, 6.0, 5.0])

    @gen
    def holder():
        return param("mu", 0.0)

    def objective(ys, scale):
        mu = holder().simulate().retval
        tr = model(ys.shape[0], mu).generate({"mu": mu, "y": ys}).trace
        return tr.project("mu") + scale * tr.project("y")

    whole = objective(ys, 1.0).item()
    epoch = train(objective, ys, batch_size=1, iterations=4, optimiser=optim.SGD(0.0), key=1).history
    assert mx.mean(epoch).item() == pytest.approx(whole, rel=1e-5)  # each row once, each times four
    train(objective, ys, batch_size=2, iterations=2000, learning_rate=optim.cosine_decay(0.1, 2000), key=3)
    assert holder.params["mu"].item() == pytest.approx(4.0, abs=0.02)


def test_a_dict_of_data_and_a_dict_of_terms():
    line, _ = line_of()

    def objective(x, y):
        score = line(x).assess({"y": y}).score
        return {"fit": score, "penalty": -0.0 * score + 1.0}

    result = train(objective, {"x": DATA[0], "y": DATA[1]}, batch_size=100, iterations=20, key=1)
    assert result.terms["penalty"].tolist() == [2.0] * 20
    assert mx.allclose(result.terms["fit"] + 2.0, result.history, rtol=1e-5).item()


def test_each_step_has_its_own_noise_and_the_key_decides():
    """Would catch a key that is frozen in the recorded graph."""

    @gen
    def model():
        return trace("x", normal(0.0, 1.0)) + param("p", 0.0)

    def run(key):
        still = optim.SGD(0.0)  # what differs is the noise alone
        return train(
            lambda key: model().simulate(key=key).retval, optimiser=still, iterations=8, key=key
        ).history.tolist()

    one = run(5)
    assert len(set(one)) == 8 and run(5) == one and run(6) != one


def test_draws_without_the_key_of_the_step_raise():
    """In a recorded step they would be the same each time."""

    @gen
    def model():
        return trace("x", normal(0.0, 1.0)) + param("p", 0.0)

    for objective in (lambda: model().simulate().retval, lambda: model().simulate(key=1).retval + mx.random.normal()):
        with pytest.raises(UsageError, match="draws without the key of its step"):
            train(objective, iterations=3)


def test_a_tree_is_trained_in_all_its_arrays():
    """To a maximum at w = (1, 2), b = 3."""

    @gen
    def model():
        net = param("net", {"w": mx.zeros(2), "inner": [{"b": 0.0}]})
        return -mx.sum((net["w"] - mx.array([1.0, 2.0])) ** 2) - (net["inner"][0]["b"] - 3.0) ** 2

    result = train(lambda: model().simulate(key=1).retval, iterations=1500)
    assert list(result.params[model]) == ["net.inner.0.b", "net.w"]
    assert model.params["net"]["w"].tolist() == pytest.approx([1.0, 2.0], abs=1e-3)
    assert model.params["net"]["inner"][0]["b"].item() == pytest.approx(3.0, abs=1e-3)


def test_only_some_models():
    @gen
    def a():
        return param("p", 1.0)

    @gen
    def b():
        return param("p", 1.0)

    def objective():
        return -((a().simulate().retval - 3.0) ** 2) - (b().simulate().retval - 4.0) ** 2

    result = train(objective, models=[b], iterations=800, learning_rate=0.05)
    assert a.params["p"].item() == 1.0 and b.params["p"].item() == pytest.approx(4.0, abs=1e-3)
    assert list(result.params) == [b]
    with pytest.raises(UsageError, match="reads no parameter of line"):
        train(objective, models=[line_of()[0]])


def test_optimisers_that_tell_weights_apart():
    """Weights by gradient descent, biases not at all: MLX's MultiOptimizer sees the names."""
    mx.random.seed(0)
    module = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    net = neural(module, "net")
    weight, bias = module.layers[0].weight, module.layers[0].bias
    both = optim.MultiOptimizer([optim.SGD(0.0), optim.SGD(0.1)], [lambda path, _: path.endswith("bias")])

    @gen
    def model(x):
        trace("y", normal(splice(net(x)), 1.0))

    xs = mx.array([[0.0], [1.0]])
    train(lambda: model(xs).assess({"y": xs}).score, optimiser=both, iterations=3)
    assert mx.array_equal(module.layers[0].bias, bias).item()
    assert not mx.allclose(module.layers[0].weight, weight).item()


def test_the_optimiser_that_is_given_is_not_used_up():
    line, objective = line_of()
    optimiser = optim.Adam(0.01)
    one = train(objective, DATA, optimiser=optimiser, iterations=5, key=1).history
    other, objective = line_of()
    assert mx.array_equal(train(objective, DATA, optimiser=optimiser, iterations=5, key=1).history, one).item()
    assert optimiser.step.item() == 0


# early stopping


def test_patience_keeps_the_best_for_the_validation_rows():
    """A polynomial that overfits: validation gets worse, training stops, and the parameters are those of its best."""
    xs = np.linspace(-1, 1, 8)
    rows = mx.array(np.vander(xs, 8), dtype=mx.float32), mx.array(np.sin(3 * xs) + rng.normal(size=8), dtype=mx.float32)
    fresh = rng.uniform(-1, 1, 50)
    seen = mx.array(np.vander(fresh, 8), dtype=mx.float32), mx.array(np.sin(3 * fresh), dtype=mx.float32)

    @gen
    def model(xs):
        trace("y", normal(xs @ param("w", mx.zeros(8)), 0.5))

    def objective(xs, ys):
        return model(xs).assess({"y": ys}).score

    result = train(objective, rows, validation=seen, patience=5, check_every=20, iterations=20_000, key=1)
    checks = np.array(result.validation)
    assert result.status == "converged" and result.history.size == 20 * len(checks) < 20_000
    assert np.argmax(checks) == len(checks) - 6
    now = objective(*seen).item()
    assert now == pytest.approx(checks.max(), abs=1e-4)


def test_patience_without_validation_rows():
    line, objective = line_of()
    result = train(objective, DATA, patience=3, check_every=100, iterations=50_000, learning_rate=0.02, key=1)
    assert result.status == "converged" and result.history.size < 10_000 and result.validation.size == 0
    assert of(line) == pytest.approx(least_squares(), abs=5e-3)


# checkpoints, interruption, errors


class Stop(Exception):
    pass


def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path):
    line, objective = line_of()
    settings = dict(batch_size=20, iterations=400, key=7, patience=50, validation=DATA, check_every=7)
    whole = train(objective, DATA, **settings)
    expected = of(line)
    path = tmp_path / "run.npz"
    other, objective = line_of()

    def kill(progress):
        if progress.done >= 100:
            raise Stop

    with pytest.raises(Stop):
        train(objective, DATA, **settings, progress=kill, checkpoint=path)
    assert len(other.params) == 3 and other.params["slope"].item() == 0.0  # as before
    told = []
    result = train(objective, DATA, **settings, checkpoint=path, progress=lambda p: told.append(p.done))
    assert told[0] > 100 and mx.array_equal(result.history, whole.history).item() and of(other) == expected
    assert mx.array_equal(result.validation, whole.validation).item()
    again = train(objective, DATA, **settings, checkpoint=path)  # a run that is complete is only read
    assert mx.array_equal(again.history, whole.history).item()
    with pytest.raises(GenError, match="another run, with other data"):
        train(objective, (DATA[0], DATA[1] + 1), **settings, checkpoint=path)
    with pytest.raises(GenError, match="with other .*optimiser|with other .*tuning"):
        train(objective, DATA, **settings, learning_rate=0.5, checkpoint=path)


def test_an_early_end_is_kept_in_the_checkpoint(tmp_path):
    line, objective = line_of()
    settings = dict(patience=2, check_every=50, iterations=50_000, learning_rate=0.02, key=1)
    path = tmp_path / "run.npz"
    one = train(objective, DATA, **settings, checkpoint=path)
    other = train(objective, DATA, **settings, checkpoint=path)
    assert one.status == other.status == "converged" and one.history.size == other.history.size


def test_an_interrupted_run_keeps_what_it_reached(monkeypatch):
    monkeypatch.delenv("GENMLX_CI", raising=False)
    line, objective = line_of()
    result = train(objective, DATA, iterations=10**6, key=1, progress=lambda p: "enough" if p.done >= 50 else None)
    assert result.status == "enough" and 50 <= result.history.size < 10**6
    assert line.params["slope"].item() == result.params[line]["slope"].item() != 0.0
    monkeypatch.setenv("GENMLX_CI", "1")
    with pytest.raises(InferenceInterrupted) as info:
        train(objective, DATA, iterations=10**6, key=1, progress=lambda p: "interrupted")
    assert info.value.result.status == "interrupted"


def test_an_objective_that_is_not_finite_raises_and_changes_nothing():
    @gen
    def model():
        return mx.log(param("p", 1.0))

    with pytest.raises(ParameterError, match="the objective is (nan|-inf) at step [1-9]"):
        train(lambda: -model().simulate().retval * 10, optimiser=optim.SGD(1.0), iterations=50)
    assert model.params["p"].item() == 1.0


def test_a_host_value_raises_and_names_the_line():
    """Would catch a parameter that turns into a constant, whose gradient is zero without a word."""

    @gen
    def model():
        return 2.0 * mx.array(param("p", 1.0).item()) + param("q", 1.0)

    with pytest.raises(BatchError) as info:
        train(lambda: model().simulate().retval, iterations=3)
    assert __file__ in str(info.value)


def test_a_step_that_cannot_be_recorded_is_run_each_time():
    f = custom_gradient(lambda x: x, lambda args, out, g: (3.0 * g,))

    @gen
    def model():
        return splice(f(param("p", 0.0)))

    result = train(lambda: model().simulate().retval, optimiser=optim.SGD(1.0), iterations=4)
    assert result.execution.startswith("not replayed") and model.params["p"].item() == 12.0


def test_misuse_raises():
    line, objective = line_of()
    for match, given in {
        "the objective is 3": dict(objective=3),
        "reads no parameter": dict(objective=lambda: mx.array(1.0)),
        "gave shape \\[200\\]": dict(objective=lambda xs, ys: xs, data=DATA),
        "gave 1.0": dict(objective=lambda: 1.0),
        "the objective <lambda>\\(x\\): missing": dict(objective=lambda x: x),
        "the objective <lambda>\\(x\\): too many": dict(objective=lambda x: x, data=DATA),
        "batch_size without data": dict(objective=objective, batch_size=3),
        "both an optimiser and a learning rate": dict(
            objective=objective, data=DATA, optimiser=optim.Adam(0.1), learning_rate=0.1
        ),
        "the optimiser is 0.1": dict(objective=objective, data=DATA, optimiser=0.1),
        "check_every, and nothing to check": dict(objective=objective, data=DATA, check_every=3),
        "validation rows that nothing looks at": dict(objective=objective, data=DATA, validation=DATA),
    }.items():
        with pytest.raises(UsageError, match=match):
            train(**given)
    with pytest.raises(GenError, match="iterations must be"):
        train(objective, DATA, iterations=0)


# networks


def test_exclusive_or():
    """Case 48: a network learns it from four rows."""
    mx.random.seed(0)
    net = neural(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)))

    @gen
    def model(x):
        trace("y", flip(mx.sigmoid(splice(net(x))[..., 0])))

    xs, ys = mx.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), mx.array([0, 1, 1, 0])
    train(lambda x, y: model(x).assess({"y": y}).score, (xs, ys), learning_rate=0.05, key=1)
    found = mx.sigmoid(net.module(xs))[:, 0]
    assert mx.max(mx.abs(found - ys)).item() < 0.01
