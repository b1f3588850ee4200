"""choice_gradients against case 9, closed forms, and central differences of assess."""

import inspect
import math

import mlx.core as mx
import pytest

from genmlx import bernoulli, choicemap, gen, normal, param, select, splice, trace
from genmlx.errors import BatchError, UnknownAddress, UsageError, ValueMismatch


def line_of(model, marker):
    lines, start = inspect.getsourcelines(model.__wrapped__)
    return f"{__file__}:{next(start + i for i, text in enumerate(lines) if marker in text)}"


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


FOO = {"a": 2.0, "b": 3.0, ("bar", "z"): 4.0, "out": 5.0}


def test_the_case_of_gen():
    """Case 9. Would catch a nested model left out of the chain rule, or retval_grad left out or doubled."""
    tr, _ = foo(1.0).generate(FOO)
    assert tr.score.item() == pytest.approx(-487.175754, rel=1e-6)
    args, choices, gradients = tr.choice_gradients(select("a", "bar", "out"), retval_grad=2.0)
    assert args[0].item() == pytest.approx(1, abs=1e-4)
    assert gradients["a"].item() == pytest.approx(-742, rel=1e-6)
    assert gradients["bar", "z"].item() == pytest.approx(-188, rel=1e-6)
    assert gradients["out"].item() == pytest.approx(33, rel=1e-6)
    expected = [("a",), ("bar", "z"), ("out",)]
    assert choices.addresses() == expected and gradients.addresses() == expected
    assert choices == choicemap({"a": 2.0, ("bar", "z"): 4.0, "out": 5.0})
    assert tr.choice_gradients("b", retval_grad=2.0)[2]["b"].item() == pytest.approx(-373, rel=1e-6)
    assert tr.choice_gradients(select("out"))[2]["out"].item() == pytest.approx(31, rel=1e-6)


# against central differences

H = 0.02


def differences(model, args, choices, address):
    """Central differences of assess in one choice, element by element: an oracle that shares no gradient code."""
    value = mx.array(choices[address])
    flat = value.reshape(-1)

    def score(i, step):
        moved = mx.concatenate([flat[:i], flat[i : i + 1] + step, flat[i + 1 :]]).reshape(value.shape)
        return model.assess(args, choices.set(address, moved)).score.item()

    return [(score(i, H) - score(i, -H)) / (2 * H) for i in range(flat.size)]


@gen
def inner(m):
    u = trace("u", normal(m, 1.5))
    return trace("v", normal(mx.sin(u), 0.7))


@gen
def nested(m):
    v = trace("one", inner(m))
    w = trace(("two", 0), inner(v * v))
    trace("y", normal(v * w, 1.0))
    return v + w


@gen
def spliced(m):
    v = splice(inner(m))
    trace("y", normal(mx.exp(0.3 * v), 1.0))
    return v


@gen
def vectors(m):
    x = trace("x", normal(m * mx.ones(3), mx.array([1.0, 2.0, 3.0])))
    a = trace("a", normal(mx.zeros((2, 3)), 1.0))
    trace("y", normal(a @ x, 0.5))
    return mx.sum(x)


@gen
def branching(m):
    if trace("b", bernoulli(0.5)).item():
        x = trace("x", normal(m, 1.0))
        trace("y", normal(x * x, 1.0))
    else:
        x = trace("x", normal(m, 2.0))
    return x


@pytest.mark.parametrize("model", [nested, spliced, vectors, branching], ids=lambda m: m.__name__)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_against_central_differences(model, seed):
    """Every continuous choice and the argument. Would catch a missing path, a sum for a mean, a transposed vector."""
    tr = model.simulate((0.4,), key=seed)
    names = select("b") if model is branching else select.none()
    args, chosen, gradients = tr.choice_gradients(~names)
    assert chosen.addresses() == gradients.addresses() == [a for a in tr.choices if a != ("b",)]
    for address, gradient in gradients.items():
        assert gradient.shape == tr.choices[address].shape
        expected = differences(model, (0.4,), tr.choices, address)
        assert gradient.reshape(-1).tolist() == pytest.approx(expected, rel=1e-2, abs=5e-3)
    moved = [model.assess((0.4 + h,), tr.choices).score.item() for h in (H, -H)]
    assert args[0].item() == pytest.approx((moved[0] - moved[1]) / (2 * H), rel=1e-2, abs=5e-3)


def test_closed_form_of_a_vector():
    """d/dx log N(x; m, s) = (m - x) / s^2 elementwise, and the sum of its opposite for m."""

    @gen
    def model(m, s):
        trace("x", normal(m, s))

    x, m, s = mx.array([1.0, 2.0, 4.0]), mx.array([0.0, 1.0, 1.0]), mx.array(2.0)
    tr, _ = model(m, s).generate({"x": x})
    args, _, gradients = tr.choice_gradients(select("x"))
    assert gradients["x"].tolist() == pytest.approx([-0.25, -0.25, -0.75])
    assert args[0].tolist() == pytest.approx([0.25, 0.25, 0.75])
    assert args[1].item() == pytest.approx(sum(d * d / 8 for d in (1, 1, 3)) - 3 / 2)


# what may be selected


def test_the_default_is_every_choice_and_none_is_none():
    tr, _ = foo(1.0).generate(FOO)
    assert tr.choice_gradients()[2].addresses() == tr.choices.addresses()
    args, choices, gradients = tr.choice_gradients(select.none())
    assert choices.is_empty and gradients.is_empty and args[0].item() == pytest.approx(1, abs=1e-4)


def test_the_integer_address_zero():
    """Would catch ``selection or everything``: 0 is an address."""

    @gen
    def model():
        trace(0, normal(0, 1))
        trace(1, normal(0, 1))

    assert model.simulate().choice_gradients(0)[1].addresses() == [(0,)]


def test_a_distribution_alone():
    tr, _ = normal(1.0, 2.0).generate(4.0)
    args, choices, gradients = tr.choice_gradients()
    assert choices.value.item() == 4.0 and gradients.value.item() == pytest.approx(-0.75)
    assert [g.item() for g in args] == pytest.approx([0.75, 9 / 8 - 0.5])


def test_a_discrete_choice_has_no_gradient():
    tr = branching.simulate((0.0,))
    for s in (select("b"), select.all(), select("b", "x")):
        with pytest.raises(ValueMismatch, match="discrete choice has no gradient") as info:
            tr.choice_gradients(s)
        assert info.value.address == ("b",)


def test_an_unknown_address():
    with pytest.raises(UnknownAddress, match="did you mean 'out'") as info:
        foo(1.0).generate(FOO).trace.choice_gradients(select("outt"))
    assert info.value.address == ("outt",)


# host values


def test_a_host_value_of_what_is_differentiated():
    """Mistake 13: under mx.grad alone .item() becomes a constant and the gradient is silently 0."""

    @gen
    def model(how):
        x = trace("x", normal(0, 1))
        if how == "item":
            scale = x.item()  # item
        elif how == "float":
            scale = float(x)  # float
        elif how == "branch":
            scale = 1.0 if x > 0 else 2.0  # branch
        else:
            scale = mx.where(x > 0, 1.0, 2.0)
        trace("y", normal(scale, 1.0))

    for how in ("item", "float", "branch"):
        tr = model.simulate((how,))
        with pytest.raises(BatchError) as info:
            tr.choice_gradients(select("x"))
        assert line_of(model, f"# {how}") in str(info.value) and "in model" in str(info.value)
        assert tr.choice_gradients(select("y"))[2].addresses() == [("y",)]  # x is a constant of this one
    assert model.simulate(("where",)).choice_gradients(select("x"))[2].addresses() == [("x",)]


def test_a_branch_on_a_discrete_choice_that_is_not_selected():
    tr, _ = branching(0.0).generate({"b": 1, "x": 2.0, "y": 1.0})
    assert tr.choice_gradients(select("x"))[2]["x"].item() == pytest.approx(-2 + (1 - 4) * 4)
    tr, _ = branching(0.0).generate({"b": 0, "x": 2.0})
    assert tr.choice_gradients(select("x"))[2]["x"].item() == pytest.approx(-0.5)


# return values


def test_retval_grad_is_a_tree():
    """The inner product with the return value, leaf by leaf, is added."""

    @gen
    def model():
        x = trace("x", normal(0, 1))
        y = trace("y", normal(0, mx.ones(2)))
        return {"x": 2 * x, "pair": (3 * y, x * x)}

    tr, _ = model().generate({"x": 1.5, "y": mx.array([1.0, -1.0])})
    cotangent = {"x": 10.0, "pair": (mx.array([1.0, 2.0]), 100.0)}
    gradients = tr.choice_gradients(retval_grad=cotangent)[2]
    assert gradients["x"].item() == pytest.approx(-1.5 + 20 + 300)
    assert gradients["y"].tolist() == pytest.approx([-1 + 3, 1 + 6])
    with pytest.raises(UsageError, match="retval_grad has 1 leaves, the return value 3"):
        tr.choice_gradients(retval_grad=1.0)
    with pytest.raises(UsageError, match="a leaf of shape"):  # not the sum of an outer product
        tr.choice_gradients(retval_grad={"x": 10.0, "pair": (mx.zeros((2, 1)), 100.0)})


# arguments


def test_arguments_of_every_kind():
    """Real numbers and arrays, wherever they sit, have a gradient of their shape; everything else has None."""

    @gen
    def model(a, b, tree, pair, n, name, flag, nothing, whole, *, scale=2.0):
        mean = a + mx.sum(b) + tree["w"] + pair[0] * pair[1][0]
        for i in range(n):
            trace((name, i), normal(mean, scale))
        if flag and nothing is None:
            return mean + whole[0]

    b, whole = mx.array([1.0, 2.0]), mx.array([1, 2])
    tr, _ = model(1.0, b, {"w": 3.0}, (2.0, [mx.array(0.5)]), 2, "y", True, None, whole).generate(
        {("y", 0): 9.0, ("y", 1): 10.0}
    )
    args, _, _ = tr.choice_gradients(select.none())
    pull = (1 + 2) / 4
    assert args[0].item() == pytest.approx(pull)
    assert args[1].tolist() == pytest.approx([pull, pull])
    assert args[2]["w"].item() == pytest.approx(pull)
    assert args[3][0].item() == pytest.approx(pull * 0.5) and args[3][1][0].item() == pytest.approx(pull * 2)
    assert args[4:] == (None,) * 5
    assert args.kwargs["scale"].item() == pytest.approx((1 + 4) / 8 - 2 / 2)


@pytest.mark.parametrize("use", ["range", "index", "key", "branch", "address"])
def test_an_integer_that_is_a_count(use):
    """None, and the gradients of the rest are there all the same."""

    @gen
    def model(n, mu):
        if use == "range":
            offset = sum(1.0 for _ in range(n))
        elif use == "index":
            offset = [0.0, 1.0, 2.0][n]
        elif use == "key":
            offset = {2: 2.0}[n]
        elif use == "branch":
            offset = 2.0 if n > 1 else 0.0
        else:
            offset = 2.0 * (trace(n, normal(0, 1)) * 0 + 1)
        trace("x", normal(mu + offset, 1.0))

    choices = {"x": 5.0} | ({2: 0.0} if use == "address" else {})
    tr, _ = model(2, 1.0).generate(choices)
    args, _, gradients = tr.choice_gradients(select("x"))
    assert args[0] is None and args[1].item() == pytest.approx(2.0)
    assert gradients["x"].item() == pytest.approx(-2.0)


def test_an_integer_that_is_a_number_has_a_gradient():
    """Also beside one that is a count."""
    tr, _ = foo(1).generate(FOO)
    assert tr.choice_gradients(select.none())[0][0].item() == pytest.approx(1, abs=1e-4)

    @gen
    def model(n, mu):
        for i in range(n):
            trace(i, normal(mu, 1.0))

    args, _, _ = model(2, 1).generate({0: 3.0, 1: 4.0}).trace.choice_gradients(select(0))
    assert args[0] is None and args[1].item() == pytest.approx(5.0)


def test_an_error_of_the_body_is_not_hidden():
    """The second try, without the counts, must not swallow what is wrong in both."""

    @gen
    def model(n, x):
        trace("x", normal(x, 1.0))
        if armed:
            raise RuntimeError("the body's own")

    armed = []
    tr = model.simulate((2, 1.0))
    armed.append(1)
    with pytest.raises(RuntimeError, match="the body's own"):
        tr.choice_gradients(select("x"))


# batches, and the trace as it was


def test_a_batch_gives_what_each_trace_gives():
    traces = nested(0.4).vsimulate(3, key=5)
    _, _, batched = traces.choice_gradients(select("one"), retval_grad=1.0)
    for i in range(3):
        _, _, alone = traces[i].choice_gradients(select("one"), retval_grad=1.0)
        for address, gradient in alone.items():
            assert batched[address][i].item() == pytest.approx(gradient.item(), rel=1e-4, abs=1e-5)


def test_the_trace_is_left_alone():
    """Would catch traced arrays that leak into the trace or into a parameter store."""
    tr, _ = foo(1.0).generate(FOO)
    tr.choice_gradients(select("a"), retval_grad=1.0)
    assert tr["a"].item() == 2.0 and math.isfinite(tr.score.item())
    assert foo.params["theta2"].item() == 0.0 and bar.params["theta1"].item() == 0.0
