"""Expectations: values and derivatives against closed forms and sums over all values, within four standard errors."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx import (
    categorical,
    delta,
    discrete_uniform,
    expectation,
    exponential,
    flip,
    gen,
    geometric,
    map_over,
    mask,
    mix,
    mixture,
    normal,
    param,
    poisson,
    scan,
    splice,
    switch,
    trace,
    truncated_normal,
    unfold,
    uniform,
    vmap,
)
from genmlx.dist import iid, pareto, product, transformed, von_mises
from genmlx.dist.bijectors import Affine
from genmlx.errors import BatchError, ParameterError, UnknownAddress, UsageError
from genmlx.inference.adev import EstimatorError, RunningMean, baselines

T = 0.4


def slope(f, x, h=1e-5):
    """The derivative in float64; its error is far below those that are asked for."""
    return (f(x + h) - f(x - h)) / (2 * h)


def assert_agrees(estimate, exact, largest, least=0.0):
    """Within four standard errors, which are no larger than ``largest``: a zero, or noise, would not do."""
    error = estimate.error.item()
    assert least <= error <= largest
    assert abs(estimate.value.item() - exact) <= 4 * error + 2e-5 * max(1.0, abs(exact))


# case 46


@gen
def bet(p):
    return mx.where(trace("win", flip(p)) == 1, 0.0, -p / 2)


@pytest.mark.parametrize("key", range(5))
def test_an_enumerated_flip_is_exact_whatever_the_key(key):
    gradient = expectation(bet(0.3)).grad(samples=3, key=key)
    assert gradient.estimators == {("win",): "enumerate"}
    assert gradient.value.value.item() == pytest.approx(-0.105, abs=1e-7)
    assert gradient.args[0].value.item() == pytest.approx(-0.2, abs=1e-6)
    assert gradient.args[0].error.item() == 0.0


def test_the_identity_of_a_flip_has_slope_one_and_no_variance():
    gradient = expectation(flip(0.3)).grad(samples=50, key=0)
    assert gradient.args[0].value.item() == pytest.approx(1.0, abs=1e-6)
    assert gradient.args[0].variance.item() == 0.0 and gradient.value.value.item() == pytest.approx(0.3)


def test_a_reparameterised_draw_is_differentiated_exactly():
    """a x, x ~ N(mu, 1): the derivative in mu is a in every run, and that in a is the draw."""

    @gen
    def scaled(a, mu):
        return a * trace("x", normal(mu, 1.0))

    gradient = expectation(scaled(3.0, 0.5)).grad(samples=400, key=1)
    assert gradient.args[1].value.item() == 3.0 and gradient.args[1].error.item() == 0.0
    assert_agrees(gradient.args[0], 0.5, largest=0.06, least=0.04)


def test_the_bounds_of_a_uniform():
    @gen
    def square(a, b):
        return trace("x", uniform(a, b)) ** 2

    low, high = expectation(square(0.0, 1.0)).grad(samples=20_000, key=2).args
    assert_agrees(low, 1 / 3, largest=0.003)
    assert_agrees(high, 2 / 3, largest=0.006)


@pytest.mark.parametrize("estimator", ["reinforce", "measure_valued"])
def test_estimators_with_noise_have_the_mean_of_the_enumeration(estimator):
    """At p = 0.3 the part that only differentiates the cost is -0.35: an estimator that vanishes is far off."""
    gradient = expectation(bet(0.3), estimator=estimator).grad(samples=20_000, key=3)
    assert_agrees(gradient.args[0], -0.2, largest=0.004, least=1e-4)
    assert_agrees(gradient.value, -0.105, largest=0.001)


# composition: each model with the exact expectation, by a sum or a closed form


@gen
def coin(p):
    return trace("b", flip(p))


@gen
def other_coin(p):
    return trace("c", flip(p))


@gen
def nested(t):
    a = trace("in", coin(t))
    c = splice(other_coin(0.5 * t + 0.2 * a))
    x = trace("x", normal(1.0 * a + c, t))
    return x * x + a


def exact_nested(t):
    total = 0.0
    for a, c in itertools.product([0, 1], [0, 1]):
        q = 0.5 * t + 0.2 * a
        total += (t if a else 1 - t) * (q if c else 1 - q) * ((a + c) ** 2 + t * t + a)
    return total


coins = vmap(coin)


@gen
def many(t):
    n = mx.sum(trace("v", coins(mx.stack([t, t * t, 0.5 * t])))).astype(mx.float32)
    return n * n + t * n


def exact_many(t):
    total, ps = 0.0, [t, t * t, 0.5 * t]
    for bits in itertools.product([0, 1], repeat=3):
        n = sum(bits)
        total += math.prod(p if b else 1 - p for p, b in zip(ps, bits, strict=True)) * (n * n + t * n)
    return total


@gen
def next_bit(i, state, t):
    return trace("b", flip(0.2 + 0.5 * t * state)).astype(mx.float32)


@gen
def chain(t):
    return sum(trace("u", unfold(next_bit)(4, 1.0, t))) ** 2


def exact_chain(t):
    total = 0.0
    for bits in itertools.product([0, 1], repeat=4):
        p, state = 1.0, 1
        for b in bits:
            q = 0.2 + 0.5 * t * state
            p, state = p * (q if b else 1 - q), b
        total += p * sum(bits) ** 2
    return total


@gen
def long(t):
    """Long enough to be run as a whole."""
    n = sum(trace("m", map_over(coin)([t * k / 40 for k in range(1, 41)]))).astype(mx.float32)
    return n * n / 40


def exact_long(t):
    ps = t * np.arange(1, 41) / 40
    return (ps.sum() ** 2 + (ps * (1 - ps)).sum()) / 40


@gen
def real_branch(t):
    return trace("z", normal(t, 1.0))


@gen
def whole_branch(t):
    return 3.0 * trace("z", flip(t))


@gen
def branching(t):
    z = trace("s", switch(real_branch, whole_branch)(trace("i", flip(t)), t))
    return z * z


def exact_branching(t):
    return (1 - t) * (t * t + 1) + t * 9 * t


@gen
def of_three(t):
    return trace("z", categorical(mx.stack([0.0 * t, t, 2 * t])))


@gen
def counting(t):
    """Branches whose values are two and three."""
    z = trace("s", switch(coin_z, of_three)(trace("i", flip(t)), t))
    return 1.0 * z * z


@gen
def coin_z(t):
    return trace("z", flip(t))


def exact_counting(t):
    p = np.exp([0.0, t, 2 * t]) / np.exp([0.0, t, 2 * t]).sum()
    return (1 - t) * t + t * (p[1] + 4 * p[2])


@gen
def hidden(t):
    on = trace("on", flip(t))
    b = trace("m", mask(coin)(on == 1, t * t))
    return mx.where(on == 1, 2.0 * b, 0.5)


def exact_hidden(t):
    return t * 2 * t * t + (1 - t) * 0.5


mixed = mix([real_branch, whole_branch], [0.3, -0.2])


@gen
def mixing(t):
    z = trace("mix", mixed(t))
    return z * z


def exact_mixing(t):
    low, high = np.exp([0.3, -0.2]) / np.exp([0.3, -0.2]).sum()
    return low * (t * t + 1) + high * 9 * t


@gen
def add(carry, scale):
    carry = trace("z", normal(carry, scale))
    return carry, carry


@gen
def summing(t):
    end, _ = trace("s", scan(add)(t, [0.3, 0.4]))
    return end * end


def exact_summing(t):
    return t * t + 0.09 + 0.16


@gen
def vectors(t):
    x = trace("v", vmap(real_branch)(mx.stack([t, 2 * t])))
    k = trace("k", poisson(mx.stack([t, 3 * t])))
    return x[0] * x[1] + mx.sum(k) ** 2 + mx.sum(x) * k[0]


def exact_vectors(t):
    return 2 * t * t + (4 * t) ** 2 + 4 * t + 3 * t * t


@gen
def repeated(t):
    """Elements of one draw: an event of three flips."""
    n = mx.sum(trace("bits", iid(flip(t), 3))).astype(mx.float32)
    return n * n * n


def exact_repeated(t):
    return sum(math.comb(3, n) * t**n * (1 - t) ** (3 - n) * n**3 for n in range(4))


@gen
def of_parts(t):
    both = trace("p", product({"on": flip(t), "x": normal(t, 1.0)}))
    return both["on"] * (1.0 + both["x"]) + both["x"] ** 2


def exact_of_parts(t):
    return t * (1 + t) + t * t + 1


ALL = [
    (of_parts, exact_of_parts, [None, "reinforce", "measure_valued", {("p", "x"): "measure_valued"}]),
    (nested, exact_nested, [None, "reinforce", "measure_valued", {"x": "reinforce"}, {"in": "reinforce"}]),
    (many, exact_many, [None, "reinforce", "measure_valued"]),
    (chain, exact_chain, [None, "reinforce", "measure_valued", {("u", 1): "reinforce", ("u", 2): "measure_valued"}]),
    (long, exact_long, [None, "reinforce", "measure_valued"]),
    (branching, exact_branching, [None, "reinforce", {"i": "reinforce"}, {"i": "measure_valued"}]),
    (counting, exact_counting, [None, "reinforce"]),
    (hidden, exact_hidden, [None, "reinforce", "measure_valued"]),
    (mixing, exact_mixing, [None, "reinforce"]),
    (summing, exact_summing, [None, "reinforce", "measure_valued", {("s", 0): "measure_valued"}]),
    (vectors, exact_vectors, [None, "reinforce", "measure_valued"]),
    (repeated, exact_repeated, [None, "reinforce"]),
]
CASES = [(model, exact, estimator) for model, exact, estimators in ALL for estimator in estimators]


@pytest.mark.parametrize(("model", "exact", "estimator"), CASES, ids=[f"{m.__name__}-{e}" for m, _, e in CASES])
def test_derivatives_through_models_and_combinators(model, exact, estimator):
    gradient = expectation(model(T), estimator=estimator).grad(samples=4000, key=4)
    assert_agrees(gradient.value, exact(T), largest=0.3)
    assert_agrees(gradient.args[0], slope(exact, T), largest=0.15 * abs(slope(exact, T)))


@pytest.mark.parametrize(
    "model, exact", [(many, exact_many), (chain, exact_chain), (repeated, exact_repeated)], ids=lambda f: f.__name__
)
def test_what_is_enumerated_through_combinators_has_no_variance(model, exact):
    gradient = expectation(model(T)).grad(samples=2, key=5)
    assert set(gradient.estimators.values()) == {"enumerate"}
    assert gradient.args[0].value.item() == pytest.approx(slope(exact, T), rel=1e-5)
    assert gradient.args[0].error.item() == 0.0


def test_parameters_of_models_and_of_those_that_they_run():
    @gen
    def inner():
        return trace("x", normal(param("mu", 0.5), 1.0))

    @gen
    def outer():
        x = trace("in", inner())
        return param("scale", 2.0) * x * x

    gradient = expectation(outer()).grad(samples=20_000, key=6)
    assert_agrees(gradient["scale"], 1.25, largest=0.02)  # mu^2 + 1
    assert_agrees(gradient["mu"], 2.0, largest=0.04)  # scale 2 mu
    assert gradient.params[inner, "mu"] is gradient["mu"]
    with pytest.raises(UnknownAddress, match="'mu', 'scale'|'scale', 'mu'"):
        gradient["sigma"]


def test_arguments_of_any_structure_and_arrays():
    @gen
    def model(weights, count, options):
        x = trace("x", normal(weights, options["scale"]))
        return mx.sum(mx.array([1.0, 2.0]) * x) * count + options["scale"] ** 2

    gradient = expectation(model(mx.array([0.1, 0.2]), 3, {"scale": 0.5})).grad(samples=2000, key=7)
    assert np.array(gradient.args[0].value) == pytest.approx([3.0, 6.0], rel=1e-6)
    assert gradient.args[1] is None
    assert_agrees(gradient.args[2]["scale"], 1.0, largest=0.5)


# costs


def test_a_cost_may_jump_where_the_draw_is_not_differentiated_through():
    """P(x > 0) for x ~ N(mu, 1): the derivative is the density; through the draw it would be zero."""
    exact = math.exp(-0.5 * 0.3**2) / math.sqrt(2 * math.pi)
    for estimator in ("reinforce", "measure_valued"):
        jump = expectation(normal(0.3, 1.0), lambda tr: mx.where(tr.retval > 0, 1.0, 0.0), estimator=estimator)
        assert_agrees(jump.grad(samples=20_000, key=8).args[0], exact, largest=0.005)


def test_a_cost_that_is_infinite_where_it_cannot_be():
    impossible = expectation(
        categorical(mx.array([0.0, -math.inf])), lambda tr: mx.where(tr.retval == 1, math.inf, 2.0)
    )
    assert impossible.value(samples=1).value.item() == 2.0


@pytest.mark.parametrize(
    ("call", "exact"),
    [
        (normal(0.5, 0.8), [2 * 0.5, 2 * 0.8]),
        (poisson(2.5), [2 * 2.5 + 1]),
        (exponential(1.6), [-4 / 1.6**3]),
        (flip(0.3), [1.0]),
        (geometric(0.4), [slope(lambda p: (1 - p) * (2 - p) / p**2, 0.4)]),
    ],
    ids=["normal", "poisson", "exponential", "flip", "geometric"],
)
def test_weak_derivatives_of_the_second_moment(call, exact):
    """E[x^2] in each parameter. Scales, or the two parts, exchanged or wrong change it by more than the errors."""
    made = expectation(call, lambda tr: tr.retval * tr.retval, estimator="measure_valued")
    found = made.grad(samples=20_000, key=9).args
    for estimate, derivative in zip(found, exact, strict=True):
        assert_agrees(estimate, derivative, largest=0.03 * abs(derivative) + 0.01)


def test_weak_derivatives_beyond_moments():
    """E[exp(i x)]: all moments at once. N(mu, s) has cos(mu) exp(-s^2 / 2)."""
    made = expectation(normal(0.5, 0.8), lambda tr: mx.cos(tr.retval), estimator="measure_valued")
    mu, sigma = made.grad(samples=20_000, key=10).args
    assert_agrees(mu, -math.sin(0.5) * math.exp(-0.32), largest=0.005)
    assert_agrees(sigma, -0.8 * math.cos(0.5) * math.exp(-0.32), largest=0.008)


# as a value that others differentiate


def test_the_reported_error_is_that_of_the_estimates():
    """The spread of 40 estimates with different keys, by three estimators; to about four of its own errors."""
    for estimator in ("reparam", "reinforce", "measure_valued"):
        made = expectation(normal(0.5, 0.8), lambda tr: tr.retval**2, estimator=estimator)
        found = [made.grad(samples=200, key=k).args[1] for k in range(40)]
        spread = np.std([one.value.item() for one in found], ddof=1)
        assert 0.6 < spread / np.mean([one.error.item() for one in found]) < 1.45


def test_an_estimate_inside_of_a_larger_gradient():
    """exp(p) E[bet]: the product rule by MLX, the expectation's part by enumeration."""

    def f(p):
        return mx.exp(p) * expectation(bet(p)).estimate(samples=2)

    value, derivative = mx.value_and_grad(f)(mx.array(0.3))
    assert value.item() == pytest.approx(math.exp(0.3) * -0.105, rel=1e-5)
    assert derivative.item() == pytest.approx(math.exp(0.3) * (-0.105 - 0.2), rel=1e-5)


def test_estimates_in_a_batch_and_gradients_that_are_not_for_one():
    f = mx.grad(lambda p: expectation(bet(p)).estimate(samples=2))
    assert mx.vmap(f)(mx.array([0.3, 0.8])).tolist() == pytest.approx([-0.2, 0.3], abs=1e-6)
    with pytest.raises(UsageError, match="inside of another transformation"):
        mx.vmap(lambda p: expectation(bet(p)).grad(samples=2).args[0].value)(mx.array([0.3, 0.8]))


def test_an_estimate_by_reinforce_has_the_same_mean():
    """Each from 2 samples, the fewest that leave one out: a baseline that has the draw itself in it would show."""
    f = mx.grad(lambda p, key: expectation(bet(p), estimator="reinforce").estimate(samples=2, key=key))
    found = np.array([f(mx.array(0.3), mx.random.key(k)).item() for k in range(400)])
    error = found.std(ddof=1) / 20
    assert error < 0.015 and abs(found.mean() + 0.2) < 4 * error


def test_the_value_is_that_of_a_plain_run():
    """The terms for derivatives are zero, bit for bit."""
    for estimator in ("reinforce", "reparam"):
        made = expectation(normal(0.3, 1.0), lambda tr: mx.sin(tr.retval), estimator=estimator)
        value = made.estimate(samples=100, key=11).item()
        assert value == pytest.approx(made.value(samples=100, key=11).value.item(), abs=1e-6)
        draws = np.array(normal(0.3, 1.0).vsimulate(100, key=11).retval)
        assert value == pytest.approx(np.sin(draws).mean(), abs=1e-6)


# baselines


def test_baselines_keep_the_mean_and_reduce_the_variance():
    """x^2 + 20, x ~ N(1, 1), in mu: a constant cost of 20 is nearly all of the variance without a baseline."""

    def grad(baseline, key=12):
        made = expectation(normal(1.0, 1.0), lambda tr: tr.retval**2 + 20.0, estimator="reinforce", baseline=baseline)
        return made.grad(samples=4000, key=key).args[0]

    plain = grad(None)
    assert_agrees(plain, 2.0, largest=0.5, least=0.3)
    for baseline in ("leave-one-out", 22.0):
        better = grad(baseline)
        assert_agrees(better, 2.0, largest=0.09)
        assert better.variance.item() < plain.variance.item() / 15


def test_a_running_mean_learns_from_the_calls_before():
    baseline = RunningMean(0.5)
    cost = expectation(normal(1.0, 1.0), lambda tr: tr.retval**2 + 20.0, estimator="reinforce", baseline=baseline)
    first, second, third = (cost.grad(samples=2000, key=k) for k in (13, 14, 15))
    assert first.args[0].variance.item() > 10 * second.args[0].variance.item()
    assert_agrees(third.args[0], 2.0, largest=0.15)
    each = [g.value.value.item() for g in (first, second, third)]
    assert baseline.offset(1).item() == pytest.approx((each[0] + 2 * each[1] + 4 * each[2]) / 7, rel=1e-5)


def test_leave_one_out_needs_another_and_says_so():
    with pytest.raises(ParameterError, match="samples=1"):
        expectation(bet(0.3), estimator="reinforce").grad(samples=1)
    others = baselines.LeaveOneOut().of(mx.array([[1.0], [2.0], [6.0]]), mx.zeros((1,)))
    assert others.tolist() == [[4.0], [3.5], [1.5]]
    with pytest.raises(UsageError, match="baseline 'mean'"):
        expectation(bet(0.3), baseline="mean")


# graphs


def test_gradients_are_replayed_with_new_noise_and_new_parameters():
    @gen
    def model():
        return trace("x", normal(param("mu", 1.0), 1.0)) ** 2

    made = expectation(model(), estimator="reinforce")
    found = [made.grad(samples=50, key=k)["mu"].value.item() for k in (1, 2, 3, 3, 4)]
    assert made._graphs[50].execution == "replayed"
    assert found[2] == found[3] and len(set(found)) == 4
    fresh = expectation(model(), estimator="reinforce").grad(samples=50, key=4)["mu"].value.item()
    assert found[4] == pytest.approx(fresh, rel=1e-6)
    model.params["mu"] = 3.0
    moved = made.grad(samples=50, key=4)["mu"].value.item()
    again = expectation(model(), estimator="reinforce").grad(samples=50, key=4)["mu"].value.item()
    assert moved == pytest.approx(again, rel=1e-6) and moved != pytest.approx(found[4], rel=0.1)


# what cannot be


def test_estimators_that_a_site_cannot_have_name_it():
    cases = [
        (nested(T), "reparam", ("in", "b"), "not a differentiable function"),
        (nested(T), {"x": "enumerate"}, ("x",), "not finitely many"),
        (hidden(T), {"m": "enumerate"}, ("m", "b"), "in some runs and not in others"),
        (branching(T), {"s": "measure_valued"}, ("s", "z"), "no weak derivative of normal and bernoulli"),
        (von_mises(0.0, T), "measure_valued", (), "no weak derivative of von_mises"),
    ]
    for call, estimator, address, what in cases:
        with pytest.raises(EstimatorError, match=what) as error:
            expectation(call, estimator=estimator)
        assert error.value.address == address


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("uniform", lambda t: uniform(0.0, t)),
        ("iid", lambda t: iid(uniform(0.0, t), 3)),
        ("delta", lambda t: delta(t)),
        ("pareto", lambda t: pareto(2.0, t)),
        ("transformed", lambda t: transformed(exponential(1.0), Affine(t, 1.0))),
        ("mixture", lambda t: mixture([uniform(0.0, t), uniform(-1.0, 1.0)], [0.0, 0.0])),
    ],
)
def test_the_score_function_needs_a_support_that_stays(name, make):
    """d/db E[x^2], x ~ U(0, b), is 2 b / 3; the score function would give -b / 3 without a word."""

    @gen
    def model(t):
        return mx.sum(trace("x", make(t)))

    with pytest.raises(EstimatorError, match=f"the support of {name} depends") as error:
        expectation(model(0.5), estimator="reinforce")
    assert error.value.address == ("x",)


def test_supports_that_stay_while_parameters_move():
    """Bounds that are numbers; and all of the real line, moved along itself."""

    @gen
    def bounded(mu):
        return trace("x", truncated_normal(mu, 1.0, -1, 2)) ** 2

    def exact(mu):
        return stats.truncnorm(-1 - mu, 2 - mu, mu, 1.0).moment(2)

    found = expectation(bounded(0.3), estimator="reinforce").grad(samples=20_000, key=17).args[0]
    assert_agrees(found, slope(exact, 0.3, 1e-4), largest=0.03)

    @gen
    def moved(t):
        return trace("x", transformed(normal(0.0, 1.0), Affine(t, 2.0))) ** 2

    assert_agrees(expectation(moved(0.3), estimator="reinforce").grad(samples=20_000, key=18).args[0], 0.6, largest=0.1)


def test_parameters_that_cannot_vary_cost_no_runs():
    @gen
    def model(mu):
        trace("a", normal(mu, mx.array(2.0)))
        return trace("b", normal(mx.array([0.0, 1.0]), 1.0))[0] + trace("c", poisson(mx.stack([mu, mu])))[1]

    made = expectation(model(0.5), estimator="measure_valued")
    assert made.rows == 1 + 2 * (1 + 2)
    assert_agrees(made.grad(samples=4000, key=19).args[0], 1.0, largest=0.05)


def test_a_weak_derivative_behind_a_switch_is_not_found_and_says_so():
    @gen
    def own(t):
        return trace("w", normal(t, 1.0))

    @gen
    def model(t):
        return trace("s", switch(real_branch, own)(trace("i", flip(t)), t))

    with pytest.raises(EstimatorError, match="a combinator hides the draw") as error:
        expectation(model(T), estimator={"s": "measure_valued"}).grad(samples=10)
    assert error.value.address == ("s", "z")


def test_a_support_that_depends_on_a_choice_is_not_enumerated():
    @gen
    def dependent(t):
        n = trace("n", flip(t)) + 1
        return 1.0 * trace("k", discrete_uniform(0, n))

    assert expectation(dependent(T)).estimators == {("n",): "enumerate", ("k",): "reinforce"}
    with pytest.raises(EstimatorError, match="not known before the run") as error:
        expectation(dependent(T), estimator="enumerate")
    assert error.value.address == ("k",)
    assert_agrees(expectation(dependent(T)).grad(samples=4000, key=16).args[0], 0.5, largest=0.05)


def test_too_many_combinations_say_how_many():
    with pytest.raises(ParameterError, match=r"1.1e\+12 combinations"):
        expectation(long(T), estimator="enumerate")
    assert expectation(long(T)).rows == 64
    assert expectation(discrete_uniform(0, 2_000_000_000), lambda tr: 1.0).estimators == {(): "reinforce"}
    assert expectation(many(T), estimator="measure_valued").rows == 1 + 2 * 3


def test_estimators_and_addresses_that_are_misspelt():
    with pytest.raises(UnknownAddress, match="'x'") as error:
        expectation(nested(T), estimator={"X": "reinforce"})
    assert error.value.suggestions == (("x",),)
    with pytest.raises(UsageError, match="no estimator 'score'"):
        expectation(nested(T), estimator="score")
    with pytest.raises(UsageError, match=r"cost has shape \[3\]"):
        expectation(many(T), lambda tr: tr["v"]).value(10)
    with pytest.raises(UsageError, match="not a call"):
        expectation(nested)
    with pytest.raises(UsageError, match="nothing to differentiate in"):
        expectation(constant()).grad()


@gen
def constant():
    return trace("x", normal(0.0, 1.0))


def test_a_value_that_is_taken_to_the_host_raises_and_is_not_a_constant():
    """Under a gradient alone it would become a constant, and the derivative zero without a word."""

    @gen
    def of_argument(mu):
        return trace("x", normal(float(mu), 1.0))

    @gen
    def of_parameter():
        return trace("x", normal(param("mu", 1.0).item(), 1.0))

    @gen
    def of_choice(mu):
        return 2.0 if trace("x", normal(mu, 1.0)) > 0 else mu

    for call in (of_argument(mx.array(0.5)), of_parameter(), of_choice(0.5)):
        with pytest.raises(BatchError, match="host value"):
            expectation(call).grad(samples=10)
    with pytest.raises(BatchError, match="host value"):
        mx.grad(lambda mu: expectation(of_argument(mu)).estimate(samples=10))(mx.array(0.5))
