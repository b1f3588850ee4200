"""contramap, map_retval, dimap and recurse; and what all combinators ask of a kernel."""

import mlx.core as mx
import pytest
from closed_forms import N, close, numbers

from genmlx import (
    NoChange,
    contramap,
    dimap,
    flip,
    gen,
    map_over,
    map_retval,
    mask,
    mix,
    normal,
    param,
    recurse,
    repeat,
    scan,
    select,
    switch,
    trace,
    unfold,
    vmap,
)
from genmlx.errors import UnknownAddress, UsageError

runs = []


@pytest.fixture(autouse=True)
def no_runs():
    runs.clear()


@gen
def kernel(mu, scale=1.0):
    runs.append(mu)
    return trace("z", normal(mu, scale))


def test_arguments_and_values():
    g = dimap(kernel, lambda a, b: (a + b, 2.0), lambda z: {"z": z, "twice": 2 * z})
    tr, weight = g.generate((1.0, 0.5), {"z": 2.0})
    assert weight.item() == close(N(2, 1.5, 2)) and tr.args == (1.0, 0.5) and tr["z"].item() == 2.0
    assert tr.retval["twice"].item() == 4.0 and tr.choices.addresses() == [("z",)]
    new, weight, _, discard = tr.update({"z": 1.0}, (2.0, 0.5))
    assert weight.item() == close(N(1, 2.5, 2) - N(2, 1.5, 2)) and numbers(discard) == {("z",): 2.0}
    assert new.retval["z"].item() == 1.0 and new.args == (2.0, 0.5)
    assert contramap(kernel, lambda x: x + 1).generate((1.0,), {"z": 2.0}).weight.item() == close(N(2, 2))
    tr, _ = map_retval(kernel, lambda z: -z).generate((0.0, 2.0), {"z": 2.0})
    assert tr.retval.item() == -2 and tr.score.item() == close(N(2, 0, 2))


def test_diffs():
    """The inner arguments are what counts: as long as they are the same, nothing runs."""
    clipped = dimap(kernel, lambda x: min(x, 1.0), lambda z: z + 1)
    tr = clipped.simulate((2.0,))
    runs.clear()
    for args in (None, (2.0,), (3.0,)):
        new, weight, retdiff, _ = tr.update({}, args)
        assert retdiff is NoChange and weight.item() == 0 and runs == [] and new.retval is tr.retval
    new, weight, retdiff, _ = tr.update({}, (0.5,))
    assert runs == [0.5] and weight.item() == close(N(tr["z"], 0.5) - N(tr["z"], 1.0)) and retdiff is NoChange
    assert tr.update({"z": 1.0}).retdiff is not NoChange


def test_gradients():
    g = dimap(kernel, lambda x: (x * x, 2.0), lambda z: 3 * z)
    tr, _ = g.generate((1.5,), {"z": 1.0})
    (x,), _, gradients = tr.choice_gradients("z", retval_grad=2.0)
    assert x.item() == close((1 - 2.25) / 4 * 3) and gradients["z"].item() == close((2.25 - 1) / 4 + 6)


def test_functions_that_are_none():
    for make in (lambda: dimap(kernel, 3), lambda: contramap(kernel, "f"), lambda: map_retval(kernel, [1])):
        with pytest.raises(UsageError, match="expected: a function"):
            make()
    for bad in (kernel, 3):
        with pytest.raises(UsageError, match="recurse was given"):
            recurse(bad)


# recursion


def maker(self):
    @gen
    def chain(x):
        runs.append(x)
        z = trace("x", normal(x, 1))
        return trace("rest", self(z)) if trace("more", flip(0.5)) else z

    return chain


def test_recursion():
    """Natural nesting; growing, stopping early, and a change that goes no deeper than it must."""
    chain = recurse(maker)
    given = {"x": 1.0, "more": 1, ("rest", "x"): 2.0, ("rest", "more"): 0}
    tr, weight = chain.generate((0.0,), given)
    assert weight.item() == close(N(1, 0) + N(2, 1) - 2 * 0.693147) and tr.retval.item() == 2
    assert tr.choices.addresses() == [("x",), ("more",), ("rest", "x"), ("rest", "more")]
    longer = {("rest", "more"): 1, ("rest", "rest", "x"): 3.0, ("rest", "rest", "more"): 0}
    new, weight, _, discard = tr.update(longer)
    assert weight.item() == close(N(3, 2) - 0.693147) and numbers(discard) == {("rest", "more"): 0}
    back = new.update({("more"): 0})
    assert back.weight.item() == close(-N(2, 1) - N(3, 2) + 2 * 0.693147)
    removed = [("x",), ("more",), ("rest", "x"), ("rest", "more")]
    assert set(back.discard) == {("more",), *(("rest", *address) for address in removed)}
    with pytest.raises(UnknownAddress):
        tr.update({("rest", "rest", "x"): 1.0})
    assert tr.regenerate(select.all(), key=1).weight.item() == 0
    (x,), _, gradients = tr.choice_gradients(select(("rest", "x")))
    assert x.item() == close(1.0) and gradients["rest", "x"].item() == close(-1.0)


def test_recursions_as_kernels():
    def counting(self):
        @gen
        def down(x, depth):
            z = trace("x", normal(x, 1))
            return trace("rest", self(z, depth - 1)) if depth else z

        return down

    model = map_over(recurse(counting))
    tr, weight = model.generate(([0.0, 1.0], [0, 1]), {(0, "x"): 0.5, (1, "x"): 0.5, (1, "rest", "x"): 0.1})
    assert weight.item() == close(N(0.5, 0) + N(0.5, 1) + N(0.1, 0.5))
    new, weight, _, discard = tr.update({(0, "rest", "x"): 1.0}, ([0.0, 1.0], [1, 0]))
    assert weight.item() == close(N(1, 0.5) - N(0.1, 0.5)) and discard.addresses() == [(1, "rest", "x")]
    assert vmap(recurse(counting), in_axes=(0, None)).simulate((mx.zeros((3,)), 2)).choices["rest", "x"].shape == (3,)


# kernels


MAKERS = [
    *(map_over, vmap, unfold, scan, switch, mask, dimap),
    lambda k: repeat(k, 2),
    lambda k: mix([k], [0.0]),
    lambda k: contramap(k, abs),
    lambda k: map_retval(k, abs),
    lambda k: switch(kernel, k),
    lambda k: recurse(lambda self: k),
]


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_no_kernel(make):
    """A call and a plain function, each with what to write instead."""
    with pytest.raises(UsageError, match=r"was given the call kernel\(0.0\)(.|\n)*\(kernel\)"):
        make(kernel(0.0))
    with pytest.raises(UsageError, match="was given <function(.|\n)*@gen"):
        make(lambda x: x)
    assert make(kernel) is not None


WAYS = {
    "map_over": (map_over, ([0.0, 0.0],), [(0, "z"), (1, "z")]),
    "vmap": (vmap, (mx.zeros((2,)),), [("z",)]),
    "repeat": (lambda k: repeat(k, 2), (0.0,), [("z",)]),
    "unfold": (lambda k: unfold(contramap(k, lambda t, x: (0.0,))), (2, 0.0), [(0, "z"), (1, "z")]),
    "scan": (lambda k: scan(dimap(k, lambda c, x: (0.0,), lambda z: (0.0, z))), (0.0, [1, 2]), [(0, "z"), (1, "z")]),
    "switch": (lambda k: switch(k, k), (1, 0.0), [("z",)]),
    "mask": (mask, (True, 0.0), [("z",)]),
    "mix": (lambda k: mix([k], [0.0]), (0.0,), [("component",), ("z",)]),
    "dimap": (lambda k: dimap(k, lambda x: x, lambda z: z), (0.0,), [("z",)]),
    "recurse": (lambda k: recurse(lambda self: k), (0.0,), [("z",)]),
}


@pytest.mark.parametrize("make, args, addresses", WAYS.values(), ids=WAYS)
def test_a_redefined_kernel(make, args, addresses):
    """Made before, run after: the combinator follows the handle. A trace keeps the version that made it."""
    shared = gen.new(lambda x: trace("z", normal(x, 1.0)))
    model = make(shared)
    old = model.simulate(args, key=1)
    assert old.choices.addresses() == addresses and not old.stale
    values = mx.concatenate([mx.array(v).reshape(-1) for a, v in old.choices.items() if a[-1] == "z"])
    shared.redefine(lambda x: trace("z", normal(x, 2.0)))
    assert old.stale
    assert model.assess(args, old.choices).score.item() == close(N(values, 0, 2))
    assert old.score.item() == close(N(values, 0))
    zeros = {a: mx.zeros_like(v) for a, v in old.choices.items()}
    updated = old.update(zeros)
    assert updated.trace.score.item() == close(N(mx.zeros_like(values), 0)) and updated.trace.stale
    assert old.regenerate(select.all(), key=2).trace.stale
    assert not model.simulate(args).stale


@pytest.mark.parametrize("make, args, addresses", WAYS.values(), ids=WAYS)
def test_a_parameter(make, args, addresses):
    """Read through every combinator: its gradient, and a change of it that is noticed once."""

    @gen.new
    def trained(x):
        runs.append(1)
        return trace("z", normal(x + param("mu", 0.0), 1.0))

    from genmlx.params import param_gradients

    model = make(trained)
    old = model.simulate(args, key=1)
    values = mx.concatenate([mx.array(v).reshape(-1) for a, v in old.choices.items() if a[-1] == "z"])
    assert param_gradients(old)[trained, "mu"].item() == close(values.sum().item())
    trained.params["mu"] = 0.5
    new, weight, _, _ = old.update({})
    assert weight.item() == close(N(values, 0.5) - N(values, 0))
    assert param_gradients(new)[trained, "mu"].item() == close((values - 0.5).sum().item())
    runs.clear()
    assert new.update({}).weight.item() == 0 and runs == []
