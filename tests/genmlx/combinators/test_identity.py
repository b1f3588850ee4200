"""A combinator written inside a body is made anew in each run, and is the same generative function all the same."""

import pytest

from genmlx import contramap, gen, map_over, mask, normal, select, switch, trace, unfold, vmap

runs = [0]


@gen
def kernel(x):
    runs[0] += 1
    return trace("z", normal(x, 1.0))


@gen
def step(t, x):
    runs[0] += 1
    return trace("z", normal(x, 1.0))


@gen
def model(xs, n):
    trace("map", map_over(kernel)(xs))
    trace("chain", unfold(step)(n, 0.0))
    trace("one", switch(kernel, kernel)(0, 1.0))
    trace("open", mask(kernel)(True, 1.0))


def test_updates_inside_a_body_are_incremental():
    """Comparing combinators as objects would run every kernel again: 6 here, and never fewer."""
    tr = model.simulate(([1.0, 2.0], 2), key=0)
    for change, args, want in [
        ({("map", 1, "z"): 0.5}, None, 1),
        ({("chain", 1, "z"): 0.5}, None, 1),
        ({("one", "z"): 0.5}, None, 1),
        ({}, ([1.0, 3.0], 2), 1),
        ({("chain", 2, "z"): 0.5}, ([1.0, 2.0], 3), 1),
    ]:
        runs[0] = 0
        new = tr.update(change, args)
        assert runs[0] == want
        again = model.assess(new.trace.args, new.trace.choices)
        assert new.trace.score.item() == pytest.approx(again.score.item(), abs=1e-4)
    runs[0] = 0
    tr.regenerate(select(("map", 0, "z")))
    assert runs[0] == 1


def test_what_is_the_same():
    def f(x):
        return (x,)

    assert map_over(kernel) == map_over(kernel) != map_over(step)
    assert map_over(kernel) != unfold(kernel)
    assert vmap(kernel, in_axes=[0]) == vmap(kernel, in_axes=(0,)) != vmap(kernel)
    assert switch(kernel, step) != switch(step, kernel)
    assert contramap(kernel, f) == contramap(kernel, f)
    assert contramap(kernel, f) != contramap(kernel, lambda x: (x,))
