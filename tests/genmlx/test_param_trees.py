"""Parameters that are trees of arrays: their names, stores, gradients and defaults."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from genmlx import gen, normal, param, trace
from genmlx.errors import UsageError
from genmlx.params import accumulate_param_gradients, overridden, param_gradients


def default():
    return {"weight": mx.array([1.0, 2.0]), "layers": [{"bias": 3.0}, {}, (0.5, [4.0, 5.0])]}


NAMES = ["net.layers.0.bias", "net.layers.2.0", "net.layers.2.1", "net.weight"]


def made():
    @gen
    def model(x):
        net = param("net", default())
        mean = net["weight"] @ x + net["layers"][0]["bias"] * net["layers"][2][0] + mx.sum(net["layers"][2][1])
        trace("y", normal(mean + param("own", 0.0), 1.0))
        return net

    return model


def test_a_tree_has_the_form_of_its_default_and_named_arrays():
    model = made()
    tr = model(mx.array([1.0, 1.0])).simulate()
    assert [name for _, name in tr.reads()] == [*NAMES, "own"]
    assert tr.retval["layers"][1] == {} and isinstance(tr.retval["layers"][2], tuple)
    assert tr.retval["layers"][2][1].tolist() == [4.0, 5.0]  # a list of numbers is one array
    assert list(model.params) == ["net", "own"] and len(model.params) == 2 and "net" in model.params
    assert model.params.leaves() == [*NAMES, "own"]
    assert model.params["net"]["layers"][0]["bias"].item() == 3.0 == model.params["net.layers.0.bias"].item()


def test_gradients_of_a_tree():
    """d log N(y; mean, 1) = (y - mean) d mean, in each place of the tree."""
    model, x = made(), mx.array([1.0, -2.0])
    tr, _ = model(x).generate({"y": 10.0})  # the mean is 1 - 4 + 1.5 + 9 = 7.5
    found = {name: g.tolist() for (_, name), g in param_gradients(tr).items()}
    assert found == {
        "net.layers.0.bias": 1.25, "net.layers.2.0": 7.5, "net.layers.2.1": [2.5, 2.5], "net.weight": [2.5, -5.0],
        "own": 2.5,
    }  # fmt: skip
    accumulate_param_gradients(tr)
    assert model.params.gradient("net")["weight"].tolist() == [2.5, -5.0]
    model.params.step(0.1)
    assert model.params["net"]["weight"].tolist() == pytest.approx([1.25, 1.5])
    assert model.params.gradient("net")["weight"].tolist() == [0.0, 0.0]


def test_a_tree_can_be_set_whole_and_in_part():
    model, x = made(), mx.array([0.0, 0.0])
    new = {"weight": [0.0, 0.0], "layers": [{"bias": 1.0}, {}, (2.0, [0.0, 0.0])]}
    model.params["net"] = new  # before any run has declared it
    assert model(x).generate({"y": 2.0}).weight.item() == pytest.approx(-0.9189385)
    model.params["net.layers.0.bias"] = 2.0
    assert model(x).generate({"y": 4.0}).weight.item() == pytest.approx(-0.9189385)
    kept = model.params.tree()
    model.params.update({"net": default(), "own": 7.0})
    assert model.params["own"].item() == 7.0 and model.params["net"]["weight"].tolist() == [1.0, 2.0]
    model.params.update(kept)
    assert model.params["net"]["layers"][0]["bias"].item() == 2.0 and model.params["own"].item() == 0.0
    assert model.params.trained().keys() == {*NAMES, "own"}


def test_another_form_than_the_default_raises_until_it_is_forgotten():
    model, x = made(), mx.array([0.0, 0.0])
    for wrong in ({"weight": [0.0, 0.0]}, 3.0, {**default(), "more": 1.0}):
        model.params["net"] = wrong
        with pytest.raises(UsageError, match="'net' was set or trained as") as info:
            model(x).simulate()
        assert "del model.params['net']" in str(info.value)
        del model.params["net"]
        assert model(x).simulate().retval["weight"].tolist() == [1.0, 2.0]


def test_names_that_meet_raise():
    @gen
    def model():
        param("net", {"w": 1.0})
        return param("net.w", 2.0)

    with pytest.raises(UsageError, match="has the name of an array inside"):
        model.simulate()


def test_an_edited_default_of_another_form_takes_effect_unless_trained():
    def v1():
        return param("p", {"a": 1.0})

    def v2():
        return param("p", {"a": 2.0, "b": 3.0})

    def v3():
        return param("p", 4.0)

    model = gen(v1)
    assert model.simulate().retval["a"].item() == 1.0
    model.redefine(v2)
    assert [x.item() for x in model.simulate().retval.values()] == [2.0, 3.0]
    model.redefine(v3)
    assert model.simulate().retval.item() == 4.0 and list(model.params) == ["p"]
    model.redefine(v1)
    model.params["p"] = {"a": 5.0}
    assert model.simulate().retval["a"].item() == 5.0
    model.redefine(v2)
    with pytest.raises(UsageError, match="'p.a', 'p.b', as its default has"):
        model.simulate()


def test_a_trace_sees_a_changed_array_of_a_tree():
    model, x = made(), mx.array([0.0, 0.0])
    tr, _ = model(x).generate({"y": 10.5})  # where the mean is
    assert tr.update().trace is tr
    model.params["net.layers.2.1"] = [4.0, 8.0]
    assert tr.update().weight.item() == pytest.approx(-4.5)
    traces, weights = model(x).vgenerate({"y": 10.5}, 3)
    assert weights.tolist() == pytest.approx([-4.5 - 0.9189385] * 3)


def test_overrides_of_a_tree_declare_nothing():
    model, x = made(), mx.array([0.0, 0.0])
    values = {(model, name): mx.array(0.0) for name in NAMES if name != "net.weight"}
    values[model, "net.weight"] = mx.zeros(2)
    with overridden(values):
        assert model(x).generate({"y": 0.0}).weight.item() == pytest.approx(-0.9189385)
    assert list(model.params) == ["own"]


def test_the_parameters_of_a_module_are_a_tree():
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))

    @gen
    def model(x):
        module.update(param("net", module.parameters()))
        trace("y", normal(module(x)[0], 1.0))

    names = [name for _, name in model(mx.ones(2)).simulate().reads()]
    assert names == [f"net.layers.{i}.{part}" for i in (0, 2) for part in ("bias", "weight")]


def test_what_is_no_parameter_raises():
    @gen
    def model():
        return param("p", {"a": "words"})

    with pytest.raises(UsageError, match="a parameter is 'words'"):
        model.simulate()
