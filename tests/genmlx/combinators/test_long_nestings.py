"""Sequences long enough to be run as a whole, inside and around other combinators: which axis is whose."""

import mlx.core as mx
import numpy as np
from closed_forms import N, close

from genmlx import contramap, gen, map_over, mask, mix, normal, recurse, trace, unfold, vmap

T = 40


@gen
def step(t, x):
    return trace("x", normal(x, 1.0))


def chain(values, start):
    return N(values, np.concatenate([[start], values[:-1]]))


def test_long_chains_in_a_vmap():
    """Would catch elements that are rows of the wrong axis: steps come after the elements of the vmap."""
    tr = vmap(unfold(step), in_axes=(None, 0)).simulate((T, mx.array([0.0, 100.0])), key=1)
    values = np.stack([np.array(tr.choices[t, "x"]) for t in range(T)])
    assert values.shape == (T, 2)
    assert tr.score.item() == close(chain(values[:, 0], 0.0) + chain(values[:, 1], 100.0), 1e-2)


def test_long_chains_in_a_long_map():
    """As many chains as steps in each: a swap would be silent."""
    tr = map_over(contramap(unfold(step), lambda x: (T, x))).simulate(([100.0 * i for i in range(T)],), key=1)
    expected = 0.0
    for i in range(T):
        expected += chain(np.array([tr.choices[i, t, "x"].item() for t in range(T)]), 100.0 * i)
    assert tr.score.item() == close(expected, 0.1)


def test_values_that_only_some_steps_have():
    flags = mx.array([0, 1] * (T // 2))
    tr = map_over(mask(normal)).simulate((flags, mx.zeros((T,)), [1.0] * T), key=1)
    assert tr.choices.addresses() == [(t,) for t in range(1, T, 2)]
    assert tr.score.item() == close(N([tr.choices[t].item() for t in range(1, T, 2)], 0))
    new, weight, _, discard = tr.update({2: 1.0, 3: 0.5}, strict=False)
    assert discard.addresses() == [(3,)] and weight.item() == close(N(0.5, 0) - N(tr.choices[3].item(), 0))


def test_kernels_that_are_no_one_graph():
    """A recursion, and a mixture whose components draw differently, are run step by step."""

    def maker(self):
        @gen.new
        def down(x, depth=1):
            z = trace("z", normal(x, 1))
            return trace("rest", self(z, depth - 1)) if depth else z

        return down

    tr = map_over(recurse(maker)).simulate(([0.0] * T,), key=1)
    assert tr.score.item() == close(tr.gen_fn.assess(tr.args, tr.choices).score.item(), 1e-2)

    @gen.new
    def one(t, x):
        return trace("x", normal(x, 1.0))

    @gen.new
    def two(t, x):
        return trace("x", normal(x, 1.0)) + trace("y", normal(x, 2.0))

    tr = unfold(mix([one, two], [0.0, 0.0])).simulate((T, 0.0), key=1)
    assert tr.score.item() == close(tr.gen_fn.assess(tr.args, tr.choices).score.item(), 1e-2)
    assert all(((t, "y") in tr.choices) == bool(tr.choices[t, "component"].item()) for t in range(T))
