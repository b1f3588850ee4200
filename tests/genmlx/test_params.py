"""Trainable parameters: defaults, stores, gradients, steps, and overrides."""

import mlx.core as mx
import pytest

from genmlx import gen, normal, param, select, splice, trace
from genmlx.errors import BatchError, UsageError
from genmlx.params import accumulate_param_gradients, overridden, param_gradients


def spec_10():
    @gen
    def bar(a):
        z = trace("z", normal(a + param("theta1", 0.0), 1))
        return z + a

    @gen
    def foo(mu_a):
        a = trace("a", normal(mu_a, 1))
        b = trace("b", normal(a, 1))
        c = a * b * trace("bar", bar(a))
        out = trace("out", normal(c, 1))
        return out + 3 * param("theta2", 0.0)

    tr, _ = foo(1.0).generate({"a": 2.0, "b": 3.0, ("bar", "z"): 4.0, "out": 5.0})
    return foo, bar, tr


def test_gradients_of_nested_parameters():
    """Case 10: 2 and 6. Each goes to the store of the model that declares it."""
    foo, bar, tr = spec_10()
    accumulate_param_gradients(tr, retval_grad=2.0)
    assert bar.params.gradient("theta1").item() == pytest.approx(2.0)
    assert foo.params.gradient("theta2").item() == pytest.approx(6.0)
    assert list(foo.params) == ["theta2"] and list(bar.params) == ["theta1"]


@pytest.mark.parametrize("how", ["splice", "trace", "deep"])
def test_a_parameter_of_a_callee(how):
    """Case 10: foo = splice(baz()), baz = theta: retval_grad 2 gives 2, in baz's store. Step 0.001 of gradient 1."""

    @gen
    def baz():
        return param("theta", 0.0)

    @gen
    def middle():
        return splice(baz())

    @gen
    def foo():
        return splice(baz()) if how == "splice" else trace("at", middle() if how == "deep" else baz())

    accumulate_param_gradients(foo.simulate(), retval_grad=2.0)
    assert baz.params.gradient("theta").item() == 2.0 and len(foo.params) == len(middle.params) == 0
    accumulate_param_gradients(foo.simulate(), retval_grad=2.0, scale=-0.5)
    assert baz.params.gradient("theta").item() == 1.0
    baz.params.step(0.001)
    assert baz.params["theta"].item() == pytest.approx(0.001)
    assert baz.params.gradient("theta").item() == 0.0
    assert foo.simulate().retval.item() == pytest.approx(0.001)


def test_one_parameter_used_twice():
    """Through two calls and twice in one body, the gradients add up; vector-valued too."""

    @gen
    def leaf():
        return param("w", mx.array([1.0, 2.0]))

    @gen
    def model():
        a, b = trace("a", leaf()), splice(leaf())
        own = param("own", 3.0)
        trace("x", normal(mx.sum(a * b) + own * param("own", 3.0), 1.0))

    tr, _ = model().generate({"x": 15.0})  # the mean is 5 + 9
    found = param_gradients(tr)
    assert found[leaf, "w"].tolist() == pytest.approx([2.0, 4.0])
    assert found[model, "own"].item() == pytest.approx(6.0)


def test_maximum_likelihood_by_steps():
    """Sixty steps of gradient ascent reach the mean of the data."""

    @gen
    def model(ys):
        mu = param("mu", 0.0)
        for i in range(len(ys)):
            trace(i, normal(mu, 1.0))

    ys = [1.0, 2.0, 6.0]
    for _ in range(60):
        accumulate_param_gradients(model(ys).generate(dict(enumerate(ys))).trace)
        model.params.step(0.1)
    assert model.params["mu"].item() == pytest.approx(3.0, abs=1e-4)


def test_setting_reading_and_showing():
    @gen
    def model():
        return param("theta", 1)

    with pytest.raises(UsageError, match="no parameter 'theta' yet"):
        model.params["theta"]
    model.params["theta"] = 2
    assert model.simulate().retval.item() == 2.0 and model.params["theta"].dtype == mx.float32
    assert "theta" in model.params and len(model.params) == 1 and "{'theta': 2.0}" in repr(model.params)
    model.params.accumulate("theta", mx.array(1.0))
    model.params["theta"] = 3.0
    assert model.params.gradient("theta").item() == 0.0


def test_a_trace_sees_a_changed_parameter():
    """Would catch an update that takes the old score because the arguments are the same; and a regenerate too."""

    @gen
    def leaf():
        trace("x", normal(param("mu", 0.0), 1.0))

    @gen
    def model():
        trace("leaf", leaf())

    tr, _ = model().generate({"leaf": {"x": 1.0}})
    assert tr.update().trace is tr
    leaf.params["mu"] = 3.0
    assert tr.update().weight.item() == pytest.approx(-1.5, abs=1e-5)
    assert tr.regenerate(select.none()).weight.item() == pytest.approx(-1.5, abs=1e-5)
    assert tr.score.item() == pytest.approx(-0.5 - 0.9189385, abs=1e-5)


def test_overrides_leave_the_stores_alone():
    """Inside, the override; after, and after an exception, the store. An override declares nothing."""

    @gen
    def leaf():
        return param("theta", 1.0)

    @gen
    def model():
        return splice(leaf()) + trace("a", leaf())

    with overridden({(leaf, "theta"): mx.array(5.0)}):
        assert model.simulate().retval.item() == 10.0
        with overridden({(leaf, "theta"): mx.array(7.0)}):
            assert model.simulate().retval.item() == 14.0
        assert model.simulate().retval.item() == 10.0
        assert "theta" not in leaf.params
    assert model.simulate().retval.item() == 2.0
    with pytest.raises(RuntimeError):
        with overridden({(leaf, "theta"): mx.array(5.0)}):
            raise RuntimeError
    assert leaf.params["theta"].item() == 1.0 and model.simulate().retval.item() == 2.0


def test_an_edited_default_takes_effect_until_the_parameter_is_set_or_trained():
    """Would catch a default of a former version that sticks in the store."""

    def v1():
        return param("theta", 1.0)

    def v2():
        return param("theta", 2.0)

    def v3():
        return param("theta", 3.0)

    model = gen(v1)
    old = model.simulate()
    assert old.retval.item() == 1.0
    model.redefine(v2)
    assert model.simulate().retval.item() == 2.0 == model.params["theta"].item()
    assert old.update().trace.retval.item() == 1.0  # the old version has the old default
    accumulate_param_gradients(model.simulate(), retval_grad=1.0)
    model.params.step(0.5)
    model.redefine(v3)
    assert model.simulate().retval.item() == 2.5
    model.params["theta"] = 9.0
    model.redefine(v1)
    assert model.simulate().retval.item() == 9.0


def test_gradients_that_a_host_value_would_hide():
    @gen
    def model():
        return param("theta", 2.0).item() * 3

    with pytest.raises(BatchError) as info:
        param_gradients(model.simulate(), 1.0)
    assert f"{__file__}:" in str(info.value) and "in model" in str(info.value)


def test_a_batch_shares_its_parameters():
    @gen
    def model():
        return trace("x", normal(param("mu", 4), 1.0))

    traces, weights = model().vgenerate({"x": 4.0}, 3)
    assert model.params["mu"].item() == 4.0
    model.params["mu"] = 5.0
    assert traces.update({"x": 5.0}).weight.tolist() == pytest.approx([0.0] * 3, abs=1e-6)
