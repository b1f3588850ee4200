"""Networks as generative functions: values, gradients, every operation, batches, combinators, reload."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from genmlx import gen, importance_sampling, map_over, mask, neural, normal, smc, splice, switch, trace, unfold, vmap
from genmlx.errors import UsageError
from genmlx.inference import LogDensity
from genmlx.inference.checkpoint import fingerprint
from genmlx.laws import check_laws
from genmlx.params import accumulate_param_gradients, overridden, param_gradients


def mlp(seed=0, inputs=2, outputs=1):
    mx.random.seed(seed)
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))


def by_hand(module, x):
    """The value of such a network in float64."""
    a, b = module.layers[0], module.layers[2]
    w = [np.array(part, np.float64) for part in (a.weight, a.bias, b.weight, b.bias)]
    return np.tanh(np.asarray(x) @ w[0].T + w[1]) @ w[2].T + w[3]


def regression_of(net):
    @gen
    def regression(x):
        return trace("y", normal(splice(net(x))[0], 2.0))

    return regression


def test_the_value_is_the_modules_and_there_are_no_choices():
    module, x = mlp(), mx.array([0.3, -1.0])
    tr = neural(module)(x).simulate()
    np.testing.assert_allclose(np.array(tr.retval), by_hand(module, [0.3, -1.0]), rtol=1e-5)
    assert tr.choices.is_empty and tr.score.item() == 0.0
    assert [name for _, name in tr.reads()] == [f"layers.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")]


def test_gradients_of_the_weights():
    """Against MLX's own gradient of the same log density; and the gradient in the input against a difference."""
    module, x, y = mlp(1), mx.array([0.3, -1.0]), mx.array(1.7)
    net = neural(module)
    before = module.parameters()
    tr, _ = regression_of(net)(x).generate({"y": y})
    found = {name: g for (_, name), g in param_gradients(tr).items()}
    assert all(module.parameters()["layers"][i]["bias"] is before["layers"][i]["bias"] for i in (0, 2))
    _, expected = nn.value_and_grad(module, lambda x: -((y - module(x)[0]) ** 2) / 8.0)(x)
    for i in (0, 2):
        for part in ("weight", "bias"):
            wanted = expected["layers"][i][part]
            np.testing.assert_allclose(np.array(found[f"layers.{i}.{part}"]), np.array(wanted), rtol=1e-4, atol=1e-6)
    slope = tr.choice_gradients()[0][0]
    means = [by_hand(module, [0.3 + d, -1.0])[0] for d in (-1e-5, 0.0, 1e-5)]
    by_difference = (1.7 - means[1]) / 4.0 * (means[2] - means[0]) / 2e-5
    assert slope[0].item() == pytest.approx(by_difference, rel=1e-3)


def test_training_moves_the_modules_own_weights():
    module = mlp(2)
    net = neural(module)
    tr, _ = regression_of(net)(mx.ones(2)).generate({"y": 3.0})
    old, bias = module(mx.ones(2)).item(), module.layers[2].bias.item()
    accumulate_param_gradients(tr)
    net.params.step(0.1)
    assert module.layers[2].bias.item() == pytest.approx(bias + 0.1 * (3.0 - old) / 4.0, rel=1e-4)
    net.params["layers.2.bias"] = [9.0]
    assert module.layers[2].bias.item() == 9.0 and net.params.tree()["layers"][2]["bias"].item() == 9.0
    net.params.update({"layers": [{}, {}, {"bias": mx.array([1.0])}]})
    assert module.layers[2].bias.item() == 1.0
    with pytest.raises(UsageError, match="shape \\[2\\]"):
        net.params["layers.2.bias"] = [1.0, 2.0]
    with pytest.raises(UsageError, match="no weight 'nothing'"):
        net.params["nothing"] = 1.0


def test_a_trace_sees_changed_weights_and_overrides_leave_them():
    net, x = neural(mlp(3)), mx.zeros(2)
    model = regression_of(net)
    tr, _ = model(x).generate({"y": 0.5})
    assert tr.update().trace is tr
    shift = {(net, "layers.2.bias"): net.params["layers.2.bias"] + 2.0}
    mean = net.module(x).item()
    wanted = -((0.5 - mean - 2.0) ** 2 - (0.5 - mean) ** 2) / 8.0
    with overridden(shift):
        assert tr.update().weight.item() == pytest.approx(wanted, abs=1e-5)
        assert net(x).simulate().retval.item() == pytest.approx(mean + 2.0, abs=1e-5)
    assert net.module(x).item() == mean and tr.update().weight.item() == 0.0


def nested():
    """A network at every kind of place."""
    net, other, state = neural(mlp(4)), neural(mlp(5)), neural(mlp(6, inputs=1))

    @gen
    def model(xs):
        a = trace("net", net(xs[0]))
        b = trace("rows", vmap(net)(xs))
        c = trace("list", map_over(net)([xs[0], xs[1]]))
        which = trace("which", normal(0.0, 1.0))
        d = trace("either", switch(net, other)(mx.where(which > 0, 1, 0), xs[0]))
        trace("some", mask(net)(which > 0, xs[1]))
        start = trace("start", normal(mx.zeros(1), 1.0))
        f = trace("steps", unfold(step)(2, start))
        return trace("y", normal(a + b[1] + c[0] + d + f[-1], 1.0))

    @gen
    def step(t, s):
        return trace("s", normal(splice(state(s)), 1.0))

    return model


def test_every_law_holds_around_networks():
    check_laws(nested()(mx.array([[0.3, 0.1], [1.0, -1.0]])), key=1).require()
    check_laws(neural(mlp(7))(mx.array([0.3, 0.1])), key=1).require()


def test_the_score_around_networks():
    """vmap, switch and a nested call, against numpy."""
    first, second = mlp(8), mlp(9)
    net, other = neural(first), neural(second)

    @gen
    def model(xs):
        means = trace("rows", vmap(net)(xs))
        shift = trace("shift", switch(net, other)(1, xs[0]))
        trace("y", normal(means + shift, 1.0))

    xs = [[0.3, 0.1], [1.0, -1.0]]
    mean = by_hand(first, xs) + by_hand(second, xs[0])
    score = model(mx.array(xs)).assess({"y": [[0.0], [0.0]]}).score.item()
    assert score == pytest.approx(float(np.sum(-0.5 * mean**2 - 0.9189385)), abs=1e-5)


def test_a_batch_agrees_with_single_runs():
    net = neural(mlp(10, inputs=1))

    @gen
    def model():
        trace("y", normal(splice(net(trace("x", normal(mx.zeros(1), 1.0)))), 1.0))

    traces, weights = model().vgenerate({"y": [0.4]}, 5, key=3)
    for i in range(5):
        mean = by_hand(net.module, np.array(traces[i]["x"]))[0]
        assert weights[i].item() == pytest.approx(-0.5 * (0.4 - mean) ** 2 - 0.9189385, abs=1e-5)
    moved = traces.update({"x": [2.0]})
    assert moved.trace.score.tolist() == pytest.approx(
        [-0.5 * (0.4 - by_hand(net.module, [2.0])[0]) ** 2 - 2 * 0.9189385 - 2.0] * 5, abs=1e-5
    )


def test_convolutions_in_a_batch():
    mx.random.seed(1)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    net = neural(module)

    @gen
    def model():
        image = trace("image", normal(mx.zeros((1, 5, 5, 1)), 1.0))
        return splice(net(image))

    traces = model().vsimulate(3, key=1)
    images = traces["image"].reshape(3, 5, 5, 1)
    assert mx.allclose(traces.retval.reshape(3, 3, 3, 2), module(images), atol=1e-5).item()


def test_frozen_weights_are_no_parameters():
    module = mlp(11)
    module.layers[0].freeze()
    net = neural(module)
    assert list(net.params) == ["layers.2.weight", "layers.2.bias"]
    assert [name for _, name in net(mx.ones(2)).simulate().reads()] == list(net.params)
    np.testing.assert_allclose(np.array(net(mx.ones(2)).simulate().retval), by_hand(module, [1.0, 1.0]), rtol=1e-5)


def test_what_has_another_value_each_time_raises():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    with pytest.raises(UsageError, match="Dropout in training mode") as info:
        neural(module)(mx.ones(2)).simulate()
    assert "module.eval()" in str(info.value)
    module.eval()
    assert mx.allclose(neural(module)(mx.ones(2)).simulate().retval, module.layers[0](mx.ones(2))).item()


def test_arguments_are_the_modules():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = mx.array(2.0)

        def __call__(self, x, *, scale=1.0, shift=0.0):
            return self.w * x * scale + shift

    net = neural(Scaled())
    assert net(3.0).simulate().retval.item() == 6.0
    assert net(3.0, scale=2.0, shift=1.0).simulate().retval.item() == 13.0
    tr = net(3.0, scale=2.0).simulate()
    assert tr.update(args=net(4.0, scale=0.5)).trace.retval.item() == 4.0
    with pytest.raises(UsageError, match="Scaled: .*missing a required argument: 'x'"):
        net().simulate()
    with pytest.raises(UsageError, match="neural was given .*Linear"):
        neural(nn.Linear)


def test_gradient_based_inference_goes_through_a_network():
    """x ~ N(0, 1), y ~ N(2 x + 1, 1): the log joint and its slope in x, and the display of such a trace."""
    net = neural(nn.Linear(1, 1))
    net.params.update({"weight": [[2.0]], "bias": [1.0]})

    @gen
    def model():
        mean = trace("mean", net(trace("x", normal(mx.zeros(1), 1.0))))
        trace("y", normal(mean, 1.0))

    density = LogDensity(model(), {"y": [4.0]})
    value, slope = density.value_and_grad(mx.array([[0.5], [1.0]]))
    x = np.array([0.5, 1.0])
    np.testing.assert_allclose(np.array(value), -0.5 * x**2 - 0.5 * (3.0 - 2 * x) ** 2 - 2 * 0.9189385, rtol=1e-5)
    np.testing.assert_allclose(np.array(slope)[:, 0], -x + 2 * (3.0 - 2 * x), rtol=1e-5)
    net.params["bias"] = [4.0]
    value = density.logp(mx.array([[0.0], [0.0]]))
    np.testing.assert_allclose(np.array(value), -2 * 0.9189385, rtol=1e-5)


def test_particles_go_through_a_network_and_see_new_weights():
    """Case 42, whose steps a network with weight 1 makes: -3.342596; with weight 0 the two steps are independent."""
    net = neural(nn.Linear(1, 1))

    @gen
    def step(t, x):
        x = trace("x", normal(splice(net(x)), 1.0))
        trace("y", normal(x, 1.0))
        return x

    walk = unfold(step)
    steps = [(walk(t + 1, mx.zeros(1)), {(t, "y"): [y]}) for t, y in enumerate([1.0, 2.0])]
    for weight, log_ml in ((1.0, -3.342596), (0.0, -np.log(4 * np.pi) - 1.25)):
        net.params.update({"weight": [[weight]], "bias": [0.0]})
        assert smc(steps, 20_000, key=1).log_ml.item() == pytest.approx(log_ml, abs=0.03)


def test_a_trace_with_a_network_is_shown():
    from IPython.lib.pretty import pretty

    tr = regression_of(neural(mlp(15)))(mx.ones(2)).generate({"y": 1.5}).trace
    assert "y" in pretty(tr) and "1.5" in pretty(tr)
    assert "y" in pretty(regression_of(neural(mlp(15)))(mx.ones(2)).vsimulate(3, key=1))


def test_constraints_below_a_network_raise():
    net = neural(mlp(12))
    model = regression_of(net)
    for wrong in ({"y": 1.0, "layers": 1.0}, {"nothing": 1.0}):
        with pytest.raises(KeyError):
            model(mx.ones(2)).generate(wrong)


def test_a_redefined_caller_keeps_the_weights_and_a_new_network_is_used():
    world = {"net": neural(mlp(13))}

    def v1(x):
        return splice(world["net"](x))

    def v2(x):
        return 2 * splice(world["net"](x))

    model = gen(v1)
    world["net"].params["layers.2.bias"] = [5.0]
    one = model(mx.ones(2)).simulate().retval.item()
    model.redefine(v2)
    assert model(mx.ones(2)).simulate().retval.item() == pytest.approx(2 * one)
    world["net"] = neural(mlp(14))
    assert model(mx.ones(2)).simulate().retval.item() == pytest.approx(2 * world["net"].module(mx.ones(2)).item())


def test_a_checkpoint_knows_other_weights_and_other_networks():
    def made(seed, net=mlp):
        return regression_of(neural(net(seed)))(mx.ones(2))

    def relu(seed):
        first, _, last = mlp(seed).layers
        return nn.Sequential(first, nn.ReLU(), last)

    assert fingerprint(made(1)) == fingerprint(made(1))
    assert fingerprint(made(1)) != fingerprint(made(2))
    assert fingerprint(made(1)) != fingerprint(made(1, relu))


def test_a_network_as_a_proposal():
    """Neural importance sampling: y = x + noise, and the exact posterior N(y / 2, 1 / 2) as a linear network."""
    net = neural(nn.Linear(1, 1))
    net.params.update({"weight": mx.array([[0.5]]), "bias": mx.array([0.0])})

    @gen
    def model():
        trace("y", normal(trace("x", normal(0.0, 1.0)), 1.0))

    @gen
    def guide(y):
        trace("x", normal(splice(net(mx.stack([y])))[0], 0.5**0.5))

    found = importance_sampling(model(), {"y": 1.0}, 500, proposal=guide(mx.array(1.0)), key=1)
    assert found.log_ml.item() == pytest.approx(-1.515512, abs=1e-5)  # every weight is the evidence
    assert found.ess.item() == pytest.approx(500, rel=1e-4)
