"""``@gen``: trace, splice and calls; what every operation gives on small models with known numbers; strictness."""

import copy
import inspect
import math

import mlx.core as mx
import pytest

from genmlx import (
    GenerativeFunction,
    Trace,
    bernoulli,
    choicemap,
    gen,
    handlers,
    normal,
    param,
    select,
    splice,
    trace,
    versions,
)
from genmlx.dist import Distribution
from genmlx.dist.support import natural, positive, unit_interval
from genmlx.errors import AddressCollision, AddressError, MissingChoice, ParameterError, UnknownAddress, UsageError


def log_normal_density(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)


def number(x):
    return x.item() if isinstance(x, mx.array) else x


def line_of(model, marker):
    """``file:line`` of the marked line of a model's source."""
    lines, start = inspect.getsourcelines(model.__wrapped__)
    found = [start + i for i, text in enumerate(lines) if marker in text]
    assert len(found) == 1
    return f"{__file__}:{found[0]}"


class Poisson(Distribution):
    """Written here, so that these tests hang on the core alone."""

    parameters = {"rate": positive}
    support = natural

    def _sample(self, key, shape, rate):
        return mx.broadcast_to(mx.array(3), shape)

    def _log_density(self, x, rate):
        return x * mx.log(rate) - rate - mx.sum(mx.log(mx.arange(1, 20)) * (mx.arange(1, 20) <= x))


class Unit(Distribution):
    """Uniform on the unit interval."""

    support = unit_interval

    def _sample(self, key, shape):
        return mx.random.uniform(shape=shape, key=key)

    def _log_density(self, x):
        return mx.zeros_like(x)


poisson, unit = Poisson("poisson"), Unit("unit")


@gen
def foo(p):
    return trace("x", bernoulli(p))


@gen
def bar():
    trace("a", bernoulli(0.3))
    if trace("b", bernoulli(0.4)).item():
        trace("c", bernoulli(0.6))
    else:
        trace("d", bernoulli(0.1))
    trace("e", bernoulli(0.7))


@gen
def loopy():
    a = trace("a", normal(0, 1))
    for i in range(5):
        trace(("data", i), normal(a, 1))


@gen
def hierarchical():
    k = trace("k", poisson(5.0))
    for i in range(int(k.item())):
        trace(("value", i), unit())


@gen
def optional(x, y=2, z=3):
    return trace("a", normal(x + y + z, 1))


@gen
def point(mu, *, scale=1.0):
    return trace("x", normal(mu, scale))


@gen
def nested(mu):
    x = trace("inner", point(mu, scale=2.0))
    trace("y", normal(x, 1.0))
    return x


@gen
def spliced(mu):
    x = splice(point(mu, scale=2.0))
    trace("y", normal(x, 1.0))
    return x


@gen
def deterministic(a, b):
    return a + b


@gen
def empty():
    pass


@gen
def line(xs, noise=1.0):
    slope = normal(0, 10) @ "slope"
    intercept = trace("intercept", normal(0, 10))
    for j, x in enumerate(xs):
        trace(("y", j), normal(slope * x + intercept, noise))
    return slope


XS = (1.0, 2.0, 3.0)
ZOO = [
    (foo, (0.4,)),
    (bar, ()),
    (loopy, ()),
    (hierarchical, ()),
    (optional, (1.0,)),
    (point, (0.5,)),
    (nested, (0.5,)),
    (spliced, (0.5,)),
    (deterministic, (1.0, 2.0)),
    (empty, ()),
    (line, (XS,)),
    (normal, (0.0, 1.0)),
]
zoo = pytest.mark.parametrize("model, args", ZOO, ids=[m.__name__ for m, _ in ZOO])


class Wrapped(GenerativeFunction):
    """A generative function that is not a ``@gen`` function, to be spliced as a combinator is."""

    def __init__(self, inner):
        self.inner, self.__name__ = inner, f"wrapped_{inner.__name__}"

    def _wrap(self, args, trace):
        return WrappedTrace(gen_fn=self, args=args, retval=trace.retval, score=trace.score, inner=trace)

    def _generate(self, args, constraints, key):
        made, weight = self.inner._generate(self.inner.bind(args), constraints, key)
        return self._wrap(args, made), weight

    def _update(self, trace, args, diffs, constraints, key):
        made, *rest = self.inner._update(trace.inner, self.inner.bind(args), diffs, constraints, key)
        return self._wrap(args, made), *rest

    def _regenerate(self, trace, args, diffs, selection, key):
        made, *rest = self.inner._regenerate(trace.inner, self.inner.bind(args), diffs, selection, key)
        return self._wrap(args, made), *rest

    def _project(self, trace, selection):
        return self.inner._project(trace.inner, selection)


class WrappedTrace(Trace):
    __slots__ = ("inner",)
    data = ("args", "retval", "score", "inner")

    @property
    def choices(self):
        return self.inner.choices


# the numbers


def test_simulate_a_leaf():
    """Case 1. Would catch a score of the other outcome, and a retval that is not the choice."""
    seen = set()
    for seed in range(20):
        tr = foo.simulate((0.4,), key=seed)
        x = tr["x"].item()
        seen.add(x)
        assert number(tr.score) == pytest.approx(math.log(0.4) if x else math.log(0.6), abs=1e-6)
        assert tr.retval.item() == x and tr.args == (0.4,) and tr.gen_fn is foo
    assert seen == {0, 1}


def test_update_across_a_branch():
    """Case 2. Would catch a weight that is only a score difference, and a discard without the removed choice."""
    tr, weight = bar().generate({"a": 0, "b": 1, "c": 0, "e": 1})
    assert number(tr.score) == pytest.approx(math.log(0.0784), abs=1e-5) == number(weight)
    new, weight, _, discard = tr.update({"b": 0, "d": 1})
    assert number(weight) == pytest.approx(-0.980829, abs=1e-5)
    assert number(new.score) == pytest.approx(math.log(0.0294), abs=1e-5)
    assert discard == choicemap({"b": 1, "c": 0}) and len(discard) == 2


def test_update_that_samples_fresh():
    """Mistake 1: the fresh d contributes nothing. weight = p(b=0) / (p(b=1) p(c=0))."""
    tr, _ = bar().generate({"a": 0, "b": 1, "c": 0, "e": 1})
    for seed in range(5):
        new, weight, _, discard = tr.update({"b": 0}, key=seed)
        assert number(weight) == pytest.approx(math.log(0.6 / (0.4 * 0.4)), abs=1e-5)
        assert discard == choicemap({"b": 1, "c": 0}) and "d" in new.choices


def test_regenerate_mixed():
    """Case 4. Nothing that is retained changes its density, so the weight is 0 whether b flips or stays."""
    tr, _ = bar().generate({"a": 0, "b": 1, "c": 0, "e": 1})
    flipped = set()
    for seed in range(20):
        new, weight, _ = tr.regenerate(select("a", "b"), key=seed)
        assert number(weight) == 0.0
        stays = new["b"].item() == 1
        flipped.add(not stays)
        assert ("c" in new.choices) == stays and ("d" in new.choices) == (not stays)
        assert new["e"].item() == 1
        if stays:
            assert new["c"].item() == 0
    assert flipped == {True, False}


def test_regenerate_counts_what_depends_on_the_selected():
    """Mistake 2: the prior of the selected choice is not in the weight, the likelihood ratio of the data is."""
    tr, _ = loopy().generate({"a": 0.0, **{("data", i): 1.0 for i in range(5)}})
    new, weight, _ = tr.regenerate(select("a"), key=1)
    a = new["a"].item()
    assert a != 0.0
    assert number(weight) == pytest.approx(5 * (log_normal_density(1, a, 1) - log_normal_density(1, 0, 1)), abs=1e-4)


def test_update_of_a_parent():
    """Case 6. The discard holds a and nothing under data."""
    tr, _ = loopy().generate({"a": 0.0, **{("data", i): 0.0 for i in range(5)}})
    assert number(tr.score) == pytest.approx(-5.513631, abs=1e-5)
    new, weight, _, discard = tr.update({"a": 1.0})
    assert number(weight) == pytest.approx(-3.0, abs=1e-5)
    assert discard == choicemap({"a": 0.0})
    assert number(new.score) == pytest.approx(-8.513631, abs=1e-5)


def test_update_that_shrinks():
    """Case 7. The discard has k and what was removed, not the value that stays."""
    tr, _ = hierarchical().generate({"k": 3, "value": {0: 0.1, 1: 0.2, 2: 0.3}})
    new, weight, _, discard = tr.update({"k": 1})
    assert discard == choicemap({"k": 3, ("value", 1): 0.2, ("value", 2): 0.3})
    assert number(weight) == pytest.approx(math.log(6 / 25), abs=1e-5)
    assert new.choices == choicemap({"k": 1, ("value", 0): 0.1})


def test_project():
    """Case 11. Gen.jl#257 returned 0 for an address that is not there."""

    @gen
    def inner():
        trace("x", normal(0, 1))

    @gen
    def model():
        trace("y", normal(0, 2))
        trace("z", inner())

    tr, _ = model().generate({"y": 0.5, ("z", "x"): -1.0})
    y, x = log_normal_density(0.5, 0, 2), log_normal_density(-1.0, 0, 1)
    assert number(tr.project(select.none())) == 0.0
    assert number(tr.project(select("y"))) == pytest.approx(y, abs=1e-6)
    assert number(tr.project(select(("z", "x")))) == pytest.approx(x, abs=1e-6) == number(tr.project(select("z")))
    assert number(tr.project(select("y", "z"))) == pytest.approx(x + y, abs=1e-6) == number(tr.score)
    assert number(tr.project(~select("y"))) == pytest.approx(x, abs=1e-6)
    with pytest.raises(UnknownAddress):
        tr.project(select("w"))


def test_what_an_address_means():
    """Case 12: one leaf at the root; x holds two leaves and one sub-map; a call's address gives its return value."""

    @gen
    def deep():
        trace(("3", "z"), normal(0, 1))
        return 7

    @gen
    def model():
        trace("y", normal(0, 1))
        trace(("x", 1), normal(0, 1))
        trace(("x", 2), normal(0, 1))
        trace(("x", "3", "z"), normal(0, 1))
        return trace("call", deep())

    tr = model.simulate()
    assert [a for a in tr.choices if len(a) == 1] == [("y",)]
    assert len(tr["x"]) == 3 and "3" in tr["x"]
    assert tr["x"]["3"]["z"].item() == tr["x", "3", "z"].item()
    assert tr["call"] == 7 == tr.retval
    assert tr["call", "3", "z"].item() == tr.choices["call"]["3", "z"].item()
    for missing in ("w", ("x", 3), ("y", 0), ("call", "4")):
        assert missing not in tr
        with pytest.raises(KeyError):
            tr[missing]
    assert all(there in tr for there in ("y", "x", ("x", 1), ("x", "3"), ("call", "3", "z")))


def test_optional_arguments():
    """Case 15. args holds the defaults."""
    assert optional.simulate((1,)).args == (1, 2, 3)
    assert number(optional(1).generate({"a": 5.0}).weight) == pytest.approx(-1.418939, abs=1e-6)
    assert optional(1, z=0).simulate().args == (1, 2, 0)
    tr, _ = optional(1).generate({"a": 5.0})
    assert number(tr.update(args=(2,)).weight) == pytest.approx(
        log_normal_density(5, 7, 1) - log_normal_density(5, 6, 1), abs=1e-5
    )


@zoo
def test_generate_extremes(model, args):
    """Case 13. Without constraints weight 0; with all of them weight = score = assess; with some, their sum."""
    tr, weight = model.generate(args, key=3)
    assert number(weight) == 0.0
    full = model.generate(args, tr.choices, key=4)
    assessed = model.assess(args, tr.choices)
    assert full.trace.choices == tr.choices
    assert number(full.weight) == pytest.approx(number(tr.score), abs=1e-5)
    assert number(assessed.score) == pytest.approx(number(tr.score), abs=1e-5)
    if tr.choices.is_leaf:
        return
    some = choicemap(dict(list(tr.choices.items())[:1]))
    part, weight = model.generate(args, some, key=5)
    chosen = sum((part.project(select(a)) for a in some), mx.array(0.0))
    assert number(weight) == pytest.approx(number(chosen), abs=1e-5)


@zoo
def test_update_inverse(model, args):
    """Case 14. Where nothing was sampled fresh, updating back with the discard restores choices and weight."""
    tr, other = model.simulate(args, key=1), model.simulate(args, key=2)
    new, weight, _, discard = tr.update(other.choices)
    assert new.choices == other.choices
    assert number(weight) == pytest.approx(number(other.score) - number(tr.score), abs=1e-4)
    back, reverse, _, again = new.update(discard)
    assert back.choices == tr.choices
    assert number(reverse) == pytest.approx(-number(weight), abs=1e-4)


@zoo
def test_regenerate_extremes(model, args):
    """Nothing selected: the identity with weight 0. Everything: weight 0, and new choices."""
    tr = model.simulate(args, key=1)
    same, weight, _ = tr.regenerate(select.none(), key=2)
    assert number(weight) == 0.0 and same.choices == tr.choices
    new, weight, _ = tr.regenerate(select.all(), key=2)
    assert number(weight) == 0.0


@zoo
def test_propose_and_the_two_ways_to_call(model, args):
    """Explicit arguments and calls are the same operations."""
    choices, weight, retval = model.propose(args, key=3)
    assert number(weight) == pytest.approx(number(model.assess(args, choices).score), abs=1e-5)
    call = model(*args)
    assert call.simulate(key=3).choices == model.simulate(args, key=3).choices == choices
    assert call.propose(key=3).choices == choices
    assert number(call.assess(choices).score) == number(model.assess(args, choices).score)


# strictness


def _operations(strict):
    tr = line.simulate((XS,), key=1)
    full = tr.choices
    kw = {} if strict else {"strict": False}
    return {
        "generate": lambda: line.generate((XS,), {"slop": 1.0}, **kw),
        "update": lambda: tr.update({"slop": 1.0}, **kw),
        "assess": lambda: line.assess((XS,), full.merge({"slop": 1.0}), **kw),
        "regenerate": lambda: tr.regenerate(select("slop"), **kw),
        "regenerate_not": lambda: tr.regenerate(~select("slop"), **kw),
        "project": lambda: tr.project(select("slop"), **kw),
        "call_generate": lambda: line(XS).generate({"slop": 1.0}, **kw),
        "call_assess": lambda: line(XS).assess(full.merge({"slop": 1.0}), **kw),
    }


@pytest.mark.parametrize("operation", list(_operations(True)))
def test_an_unknown_address_raises_with_the_nearest(operation):
    """Case 16. Would catch a constraint or a selection that is dropped without a word."""
    with pytest.raises(UnknownAddress) as info:
        _operations(True)[operation]()
    error, text = info.value, str(info.value)
    assert "'slop'" in text and "did you mean 'slope'?" in text and "in line" in text and __file__ in text
    assert "'slope', 'intercept', ('y', 0), ('y', 1), ('y', 2)" in text  # what was visited
    assert error.address == ("slop",) and error.suggestions[0] == ("slope",) and error.gen_fn is line
    _operations(False)[operation]()


def test_unknown_addresses_deeper_down():
    """The whole address is named, in nested and spliced models, and not only its first part."""
    for constraints, address in (
        ({("inner", "z"): 1.0}, ("inner", "z")),
        ({"inner": {"x": 1.0, "z": 1.0}}, ("inner", "z")),
        ({"inner": {"x": 1.0, "deep": {"er": 1.0}}}, ("inner", "deep", "er")),
    ):
        with pytest.raises(UnknownAddress) as info:
            nested(0.0).generate(constraints)
        assert info.value.address == address and info.value.suggestions[0] == ("inner", "x")
    with pytest.raises(UnknownAddress):
        spliced(0.0).generate({"z": 1.0})
    with pytest.raises(UnknownAddress):
        nested(0.0).simulate().regenerate(select(("inner", "x", "below")))


def test_a_branch_not_taken_is_not_visited():
    with pytest.raises(UnknownAddress):
        bar().generate({"b": 1, "d": 0})
    tr, weight = bar().generate({"b": 1, "d": 0}, strict=False)
    assert number(weight) == pytest.approx(math.log(0.4), abs=1e-6) and "d" not in tr.choices


def test_a_selection_may_name_what_disappears_or_appears():
    """regenerate looks at the old and the new trace."""
    tr, _ = bar().generate({"b": 1, "c": 0})
    for seed in range(6):
        tr.regenerate(select("b", "c"), key=seed)
    with pytest.raises(UnknownAddress):
        tr.regenerate(select("d"))


def test_assess_wants_every_choice():
    with pytest.raises(MissingChoice) as info:
        nested(0.0).assess({"y": 1.0})
    assert info.value.address == ("inner", "x") and __file__ in str(info.value)


def test_a_leaf_where_a_model_is_and_a_sub_map_where_a_choice_is():
    """Would catch a sub-map that is taken for no constraint at all."""
    tr = nested.simulate((0.0,))
    for strict in (True, False):
        for operation in (
            lambda c, s=strict: nested(0.0).generate(c, strict=s),
            lambda c, s=strict: tr.update(c, strict=s),
            lambda c, s=strict: nested(0.0).assess(tr.choices.without("inner").without("y").merge(c), strict=s),
        ):
            with pytest.raises(AddressError) as info:
                operation({"inner": 1.0})
            assert info.value.address == ("inner",)
            with pytest.raises(AddressError) as info:
                operation({"inner": {"x": 0.0}, "y": {"z": 1.0}})
            assert info.value.address == ("y",)
    with pytest.raises(AddressError):
        nested(0.0).generate(choicemap({(): 1.0}))


# collisions


def test_a_duplicate_address_names_both_lines():
    @gen
    def model():
        trace("ok", normal(0, 1))
        trace("x", normal(0, 1))  # first
        trace("x", normal(0, 1))  # second

    with pytest.raises(AddressCollision) as info:
        model.simulate()
    assert info.value.address == ("x",)
    assert line_of(model, "# first") in str(info.value) and line_of(model, "# second") in str(info.value)
    _assert_clean()


@pytest.mark.parametrize("order", ["leaf first", "leaf last"])
def test_a_prefix_collision_names_both_lines(order):
    """Case 12. "x" as a leaf and ("x", 1) in one run, in either order, two levels apart too."""

    @gen
    def model(deep):
        if order == "leaf first":
            trace("x", normal(0, 1))  # one
            trace(("x", 1, 2) if deep else ("x", 1), normal(0, 1))  # two
        else:
            trace(("x", 1, 2) if deep else ("x", 1), normal(0, 1))  # three
            trace("x", normal(0, 1))  # four

    markers = ("# one", "# two") if order == "leaf first" else ("# three", "# four")
    for deep in (False, True):
        for run in (lambda d=deep: model(d).simulate(), lambda d=deep: model(d).generate({})):
            with pytest.raises(AddressCollision) as info:
                run()
            for marker in markers:
                assert line_of(model, marker) in str(info.value)
    _assert_clean()


def test_siblings_under_a_prefix_do_not_collide():
    @gen
    def model():
        trace(("x", 1), normal(0, 1))
        trace(("x", 2), point(0.0))
        trace(("x", "1"), normal(0, 1))

    assert model.simulate().choices.addresses() == [("x", 1), ("x", 2, "x"), ("x", "1")]


def test_a_splice_collides_with_its_caller():
    """Both for an inlined model and for a generative function that is not a @gen function; in both orders."""

    @gen
    def before(f):
        trace("x", normal(0, 1))  # own
        splice(f(0.0))  # splice

    @gen
    def after(f):
        splice(f(0.0))  # splice
        trace("x", normal(0, 1))  # own

    @gen
    def twice(f):
        splice(f(0.0))
        splice(f(1.0))

    for f in (point, Wrapped(point)):
        for model in (before, after, twice):
            with pytest.raises(AddressCollision) as info:
                model(f).simulate()
            assert info.value.address == ("x",)
        with pytest.raises(AddressCollision) as info:
            before(f).simulate()
        second = line_of(point, "trace(") if f is point else line_of(before, "# splice")
        assert line_of(before, "# own") in str(info.value) and second in str(info.value)
    _assert_clean()


# calls


def test_a_call_runs_nothing():
    ran = []

    @gen
    def model(x):
        ran.append(x)

    call = model(1.0)
    assert not ran and call.args == (1.0,) and repr(call) == "model(1.0)"
    call.simulate()
    assert ran == [1.0]


def test_keyword_only_star_args_and_defaults():
    @gen
    def model(a, *rest, b=2.0, c):
        return trace("x", normal(a + sum(rest) + b + c, 1.0))

    tr = model(1.0, 10.0, 20.0, c=100.0).generate({"x": 133.0}).trace
    assert number(tr.score) == pytest.approx(log_normal_density(0, 0, 1), abs=1e-5)
    new = tr.update({"x": 134.0}).trace
    assert number(new.score) == pytest.approx(log_normal_density(1, 0, 1), abs=1e-5)
    moved = tr.update(args=model(1.0, 10.0, 20.0, c=101.0))
    assert number(moved.weight) == pytest.approx(-0.5, abs=1e-4)
    kept = tr.update(args=model(1.0, 10.0, 20.0, b=2.0, c=100.0))
    assert number(kept.weight) == 0.0
    with pytest.raises(UsageError, match="c"):
        model(1.0)
    with pytest.raises(UsageError, match="unexpected keyword argument 'd'"):
        point(1.0, d=2)


def test_keywords_in_another_order_change_nothing():
    tr = optional(1, z=5, y=4).simulate(key=1)
    assert tr.args == (1, 4, 5)
    assert number(tr.update(args=optional(1, y=4, z=5)).weight) == 0.0


def test_methods_and_lambdas():
    """A method gets its object; two lambdas are two models."""

    class Scaled:
        def __init__(self, scale):
            self.scale = scale

        @gen
        def model(self, mu):
            return trace("x", normal(mu, self.scale))

        @staticmethod
        @gen
        def plain(mu):
            return trace("x", normal(mu, 1.0))

    small, large = Scaled(1.0), Scaled(10.0)
    for scaled in (small, large):
        weight = scaled.model(0.0).generate({"x": 1.0}).weight
        assert number(weight) == pytest.approx(log_normal_density(1, 0, scaled.scale), abs=1e-5)
    assert number(Scaled.model(large, 0.0).assess({"x": 0.0}).score) == pytest.approx(
        log_normal_density(0, 0, 10), abs=1e-5
    )
    assert Scaled.plain(0.0).simulate().choices.addresses() == [("x",)]

    one, two = gen(lambda m: trace("x", normal(m, 1.0))), gen(lambda m: trace("z", normal(m, 1.0)))
    assert one is not two
    assert one(0.0).simulate().choices.addresses() == [("x",)]
    assert two(0.0).simulate().choices.addresses() == [("z",)]


def test_recursion():
    """A model that runs itself under an address; the score is that of the whole chain of flips."""

    @gen
    def count(p):
        if trace("more", bernoulli(p)).item():
            return 1 + trace("rest", count(p))
        return 0

    choices = {"more": 1, "rest": {"more": 1, "rest": {"more": 0}}}
    tr, weight = count(0.25).generate(choices)
    assert tr.retval == 2
    assert number(weight) == pytest.approx(2 * math.log(0.25) + math.log(0.75), abs=1e-5)
    new, weight, _, discard = tr.update({"more": 0})
    assert new.retval == 0 and discard == choicemap({"more": 1, "rest": choices["rest"]})
    assert number(weight) == pytest.approx(-2 * math.log(0.25), abs=1e-5)


@pytest.mark.parametrize("model", [nested, spliced], ids=["nested", "spliced"])
def test_nesting_adds_up(model):
    """Would catch a child's score that is counted twice or not at all."""
    x = {"inner": {"x": 3.0}} if model is nested else {"x": 3.0}
    tr, weight = model(1.0).generate(x | {"y": 5.0})
    expected = log_normal_density(3, 1, 2) + log_normal_density(5, 3, 1)
    assert number(weight) == pytest.approx(expected, abs=1e-5) == number(tr.score)
    assert tr.choices == choicemap(x | {"y": 5.0})
    new, weight, _, discard = tr.update(args=(2.0,))
    assert number(weight) == pytest.approx(log_normal_density(3, 2, 2) - log_normal_density(3, 1, 2), abs=1e-5)
    assert discard.is_empty


def test_a_spliced_model_that_is_not_inlined():
    """Every operation sees the choices at the caller's level; an integer address beside it is something else."""
    wrapped = Wrapped(point)

    @gen
    def model(mu):
        trace(0, normal(mu, 1.0))
        x = splice(wrapped(mu))
        trace("y", normal(x, 1.0))
        return x

    full = choicemap({0: 1.0, "x": 2.0, "y": 3.0})
    tr, weight = model(0.0).generate(full)
    expected = [log_normal_density(*a) for a in ((1, 0, 1), (2, 0, 1), (3, 2, 1))]
    assert tr.choices == full and number(weight) == pytest.approx(sum(expected), abs=1e-5)
    assert (tr[0].item(), tr["x"].item(), tr["y"].item()) == (1.0, 2.0, 3.0)
    assert number(tr.project(select(0))) == pytest.approx(expected[0], abs=1e-5)
    assert number(tr.project(select("x"))) == pytest.approx(expected[1], abs=1e-5)
    new, weight, _, discard = tr.update({"x": 3.0})
    assert discard == choicemap({"x": 2.0}) and new.choices == full.set("x", 3.0)
    assert number(weight) == pytest.approx(log_normal_density(3, 0, 1) - log_normal_density(2, 0, 1) + 0.5, abs=1e-5)
    new, weight, _ = tr.regenerate(select("x"), key=1)
    x = new["x"].item()
    assert x != 2.0 and new[0].item() == 1.0
    assert number(weight) == pytest.approx(log_normal_density(3, x, 1) - log_normal_density(3, 2, 1), abs=1e-4)
    with pytest.raises(UnknownAddress):
        tr.update({"z": 1.0})
    before = tr.choices.to_dict()
    model(0.0).generate(tr.choices, key=1)
    assert tr.choices.to_dict() == before and wrapped(0.0).generate({"x": 1.0}).trace.choices.addresses() == [("x",)]


def test_a_distribution_cannot_be_spliced():
    @gen
    def model():
        splice(normal(0, 1))

    with pytest.raises(UsageError, match="no address of its own"):
        model.simulate()


def test_a_choice_that_becomes_a_model_and_back():
    """What cannot be carried over is removed and drawn anew: no weight for what is fresh, all of the old discarded."""

    @gen
    def model():
        if trace("b", bernoulli(0.5)).item():
            return trace("x", normal(0.0, 1.0))
        return trace("x", point(0.0))

    tr, _ = model().generate({"b": 1, "x": 2.0})
    new, weight, _, discard = tr.update({"b": 0}, key=1)
    assert discard == choicemap({"b": 1, "x": 2.0}) and new.choices.addresses() == [("b",), ("x", "x")]
    assert number(weight) == pytest.approx(-log_normal_density(2, 0, 1), abs=1e-5)
    back, weight, _, discard = new.update({"b": 1, "x": 2.0})
    assert back.choices == tr.choices and discard == new.choices
    assert number(weight) == pytest.approx(log_normal_density(2, 0, 1) - number(new.project(select("x"))), abs=1e-5)
    there, weight, _, discard = tr.update({"b": 0, "x": {"x": 1.0}})
    assert number(weight) == pytest.approx(1.5, abs=1e-5) and discard == tr.choices
    for seed in range(8):
        assert number(tr.regenerate(select("b"), key=seed).weight) == 0.0


def test_a_choice_that_changes_its_family_keeps_its_value():
    @gen
    def model():
        scale = 1.0 if trace("b", bernoulli(0.5)).item() else None
        return trace("x", unit() if scale is None else normal(0.0, scale))

    tr, _ = model().generate({"b": 1, "x": 0.25})
    new, weight, _, discard = tr.update({"b": 0})
    assert new["x"].item() == 0.25 and discard == choicemap({"b": 1})
    assert number(weight) == pytest.approx(-log_normal_density(0.25, 0, 1), abs=1e-5)


def test_models_that_are_empty_or_deterministic():
    tr = deterministic.simulate((1.0, 2.0))
    assert tr.retval == 3.0 and number(tr.score) == 0.0 and tr.choices.is_empty
    new, weight, _, discard = tr.update(args=(2.0, 2.0))
    assert new.retval == 4.0 and number(weight) == 0.0 and discard.is_empty
    assert empty.simulate().retval is None
    assert number(empty.assess().score) == 0.0
    with pytest.raises(UnknownAddress, match="expected: no address: there are no choices"):
        empty().generate({"x": 1.0})


def test_a_run_inside_a_run_is_its_own():
    """A body may run inference of its own: the choices of that run do not leak into the outer one."""

    @gen
    def model():
        inner = point(0.0).simulate(key=1)
        trace("x", normal(inner.retval, 1.0))
        return inner

    tr = model.simulate(key=2)
    assert tr.choices.addresses() == [("x",)]
    assert tr.retval.choices.addresses() == [("x",)]


def test_keys():
    """The same key gives the same choices, another key others; sites do not share noise."""
    a, b, c = (line.simulate((XS,), key=k) for k in (mx.random.key(1), 1, 2))
    assert a.choices == b.choices and a.choices != c.choices
    values = [v.item() for _, v in loopy.simulate(key=0).choices.items()]
    assert len(set(values)) == len(values)


def test_more_sites_than_one_split_serves():
    """Keys are split in chunks of seven; would catch a key reused at the seam."""

    @gen
    def many():
        for i in range(40):
            trace(i, normal(0, 1))

    values = [v.item() for _, v in many.simulate(key=0).choices.items()]
    assert len(set(values)) == 40


# traces


def test_a_trace_is_immutable():
    tr = line.simulate((XS,), key=1)
    choices, score, args = tr.choices.to_dict(), tr.score, tr.args
    for name in ("score", "args", "choices", "new_attribute"):
        with pytest.raises(AttributeError):
            setattr(tr, name, 1)
    with pytest.raises(AttributeError):
        del tr.score
    with pytest.raises(TypeError):
        tr["slope"] = 1.0
    tr.update({"slope": 1.0})
    tr.update(args=((9.0,),), key=2)
    tr.regenerate(select("y"), key=3)
    tr.choices.set("slope", 4.0)
    assert tr.choices.to_dict() == choices and tr.score is score and tr.args is args
    assert copy.copy(tr) is tr and copy.deepcopy([tr])[0] is tr


def test_repr_of_a_trace_and_a_model():
    tr, _ = foo(0.5).generate({"x": 1})
    assert repr(tr) == "<Trace foo: choicemap({'x': 1}), score -0.6931472>"
    assert repr(foo) == "<gen foo v1>"


# wrong calls


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: trace("x", normal(0, 1)), "trace was called outside of a model"),
        (lambda: normal(0, 1) @ "x", "trace was called outside of a model"),
        (lambda: splice(point(0.0)), "splice was called outside of a model"),
        (lambda: param("theta", 0.0), "outside of a model"),
        (lambda: trace("x", normal), "trace was given normal, not a call"),
        (lambda: trace("x", line), "trace was given line, not a call"),
        (lambda: trace(normal(0, 1), "x"), "trace was given a str, not a call"),
        (lambda: splice(3.0), "splice was given a float, not a call"),
        (lambda: line.simulate(3.0), "the arguments are a float"),
        (lambda: line(), "missing a required argument: 'xs'"),
        (lambda: line(1, 2, 3), "too many positional arguments"),
        (lambda: line(XS).simulate(key="abc"), "is not a key"),
        (lambda: line(XS).simulate().edit("update"), "is not an edit request"),
        (lambda: line(XS).generate([1, 2]), "where a model has a sub-map"),
        (lambda: line(XS).simulate().update(argdiffs=(1,)), "argdiffs without new arguments"),
        (lambda: line(XS).simulate().update(args=(XS,), argdiffs=(1,)), "1 argdiffs for 2 arguments"),
        (lambda: gen(3), "@gen was given 3"),
    ],
)
def test_a_wrong_call_says_so(call, named):
    """Would catch an AttributeError from deep inside; every one names the line in this file."""
    with pytest.raises((UsageError, AddressError)) as info:
        call()
    assert named in str(info.value)
    if "@gen" not in named:
        assert __file__ in str(info.value)


def test_what_gen_refuses():
    async def coroutine():
        pass

    def generator():
        yield

    for wrong in (coroutine, generator, int, point):
        with pytest.raises(UsageError):
            gen(wrong)


def test_no_address_is_refused():
    @gen
    def model():
        trace((), normal(0, 1))

    with pytest.raises(AddressError, match="a choice needs a name"):
        model.simulate()

    @gen
    def array_address():
        trace(("y", mx.array(0)), normal(0, 1))

    with pytest.raises(AddressError, match="use a Python int"):
        array_address.simulate()


# what an exception leaves behind: nothing


def _assert_clean():
    assert handlers._handler.get() is None and versions._pins.get() is None
    assert foo.simulate((0.4,)).choices.addresses() == [("x",)]
    with pytest.raises(UsageError, match="outside of a model"):
        trace("x", normal(0, 1))


class Broken(Distribution):
    support = natural

    def _sample(self, key, shape):
        raise RuntimeError("no draw")

    def _log_density(self, x):
        raise RuntimeError("no density")


broken = Broken("broken")


def _failing(kind):
    def stop(error):
        raise error

    @gen
    def inner():
        trace("a", normal(0, 1))
        if kind in ("nested", "spliced"):
            stop(ValueError("in the inner body"))

    @gen
    def model():
        trace("x", normal(0, 1))
        if kind == "body":
            stop(ValueError("in the body"))
        if kind == "distribution":
            trace("y", broken())
        if kind == "parameter":
            trace("y", normal(0, -1))
        if kind == "nested":
            trace("y", inner())
        if kind == "spliced":
            splice(inner())
        if kind == "interrupt":
            stop(KeyboardInterrupt())

    return model


KINDS = {
    "body": ValueError,
    "distribution": RuntimeError,
    "parameter": ParameterError,
    "nested": ValueError,
    "spliced": ValueError,
    "interrupt": KeyboardInterrupt,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "operation", ["simulate", "generate", "assess", "propose", "update", "regenerate", "gradients"]
)
def test_the_handler_stack_is_clean_after_an_exception(kind, operation):
    """Case 12. Would catch a handler that is popped without ``finally``: the next trace would land in the dead run."""
    armed = [False]
    failing = _failing(kind).__wrapped__

    @gen
    def model():
        if armed[0]:
            failing()
        else:
            trace("x", normal(0, 1))

    tr = model.simulate()
    armed[0] = True
    run = {
        "simulate": model.simulate,
        "generate": lambda: model.generate((), {"x": 1.0}),
        "assess": lambda: model.assess(
            (), {"x": 1.0, "y": {"a": 1.0}, "a": 1.0} if kind != "distribution" else {"x": 1.0, "y": 1}
        ),
        "propose": model.propose,
        "update": lambda: tr.update({"x": 1.0}),
        "regenerate": lambda: tr.regenerate(select("x")),
        "gradients": lambda: tr.choice_gradients(select("x")),
    }[operation]
    expected = KINDS[kind]
    if operation == "gradients" and kind in ("nested", "spliced", "distribution"):
        expected = (expected, MissingChoice)  # nothing is drawn while differentiating
    with pytest.raises(expected):
        run()
    _assert_clean()


def test_a_body_may_catch_and_go_on():
    """After a callee that raised, the handler, and the owner of parameters, are the caller's again."""

    @gen
    def bad():
        trace("started", normal(0, 1))
        raise ValueError

    @gen
    def model():
        for run in (lambda: trace("bad", bad()), lambda: splice(bad())):
            try:
                run()
            except ValueError:
                pass
        trace("x", normal(0, 1))
        return param("theta", 1.5)

    tr = model.simulate()
    assert ("x",) in tr.choices.addresses() and ("bad", "started") not in tr.choices.addresses()
    assert model.params["theta"].item() == 1.5 and len(bad.params) == 0
    _assert_clean()
