"""vmap and repeat: stacked choices and values, what is shared, and batches in batches."""

import mlx.core as mx
import numpy as np
import pytest
from closed_forms import N, close

from genmlx import (
    NoChange,
    Regenerate,
    choicemap,
    flip,
    gen,
    mask,
    normal,
    param,
    repeat,
    select,
    splice,
    switch,
    trace,
    vmap,
)
from genmlx.errors import AddressError, BatchError, ParameterError, UnknownAddress, UsageError, ValueMismatch
from genmlx.params import param_gradients

runs = []


@pytest.fixture(autouse=True)
def no_runs():
    runs.clear()


@gen
def kernel(x, scale=1.0):
    runs.append(x)
    z = trace("z", normal(x, scale))
    trace(("w", 0), normal(mx.stack([z, -z]), 0.5))
    return z, 3


rows = vmap(kernel, in_axes=(0, None))
XS = mx.array([0.0, 1.0, 2.0])


def score(choices, xs, scale):
    z, w = np.array(choices["z"]), np.array(choices["w", 0])
    return N(z, np.array(xs), scale) + N(w, np.stack([z, -z], 1), 0.5)


def test_addresses_and_values():
    """The kernel's own addresses, stacked; a number that the kernel returns is stacked too. One run for all."""
    tr = rows.simulate((XS, 2.0), key=1)
    assert runs == runs[:1] and tr.choices.addresses() == [("z",), ("w", 0)]
    assert tr["z"].shape == (3,) and tr["w", 0].shape == (3, 2)
    z, three = tr.retval
    assert z.tolist() == tr["z"].tolist() and three.tolist() == [3, 3, 3]
    assert tr.score.item() == close(score(tr.choices, XS, 2.0))
    assert vmap(normal).simulate((XS, mx.array([1.0, 2.0, 3.0]))).retval.shape == (3,)
    assert vmap(kernel).simulate(([0.0, 1.0],)).retval[0].shape == (2,)


def test_partial_constraints():
    tr, weight = rows.generate((XS, 2.0), {"z": [0.5, 0.5, 0.5]}, key=1)
    assert weight.item() == close(N([0.5] * 3, [0, 1, 2], 2)) and len(set(tr["w", 0].reshape(-1).tolist())) == 6


def test_update_and_its_discard():
    tr = rows.simulate((XS, 2.0), key=1)
    new, weight, _, discard = tr.update({"z": [1.0, 2.0, 3.0]}, (XS + 1, 1.0))
    assert weight.item() == close(score(new.choices, XS + 1, 1.0) - score(tr.choices, XS, 2.0))
    assert discard == choicemap({"z": tr["z"]}) and discard.n is None
    assert new.update(discard, (XS, 2.0)).weight.item() == close(-weight.item())


def test_nothing_runs_for_nothing():
    tr = rows.simulate((XS, 2.0), key=1)
    runs.clear()
    for args in (None, tr.args):
        same, weight, retdiff, _ = tr.update({}, args)
        assert same is tr and weight.item() == 0 and retdiff is NoChange
    assert tr.regenerate(select.none()).trace is tr and runs == []
    tr.regenerate("z")
    assert len(runs) == 1


def test_arguments():
    with pytest.raises(ParameterError, match="argument 0 has 3 and argument 1 has 2 elements"):
        vmap(kernel).simulate((XS, mx.array([1.0, 2.0])))
    with pytest.raises(ParameterError, match="argument 0 is a number, not a batch(.|\n)*in_axes=None"):
        vmap(kernel).simulate((1.0,))
    with pytest.raises(ParameterError, match="no argument is batched(.|\n)*repeat"):
        vmap(kernel, in_axes=None).simulate((1.0,))
    with pytest.raises(ParameterError, match="no elements"):
        vmap(kernel).simulate((mx.zeros((0,)),))
    with pytest.raises(UsageError, match="1 arguments for in_axes"):
        rows.simulate((XS,))
    for bad in (1, (0, 2), "x", True):
        with pytest.raises(UsageError, match="in_axes"):
            vmap(kernel, in_axes=bad)
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ParameterError, match="n must be a whole number, 1 or more"):
            repeat(normal, bad)
    structured = vmap(gen.new(lambda p: trace("z", normal(p["mu"], p["s"]))))
    assert structured.simulate(({"mu": XS, "s": XS + 1},))["z"].shape == (3,)


def test_a_changed_size():
    tr = rows.simulate((XS, 2.0))
    with pytest.raises(ParameterError, match="from 3 to 2 elements(.|\n)*map_over"):
        tr.update({}, (XS[:2], 2.0))
    with pytest.raises(ParameterError, match="from 3 to 2 elements"):
        tr.regenerate("z", (XS[:2], 2.0))


def test_values_that_are_not_stacked():
    for bad in (1.0, [1.0, 2.0]):
        with pytest.raises(ValueMismatch, match=r"not stacked over the 3 elements(.|\n)*\[3, \.\.\.\]"):
            rows.generate((XS, 2.0), {"z": bad})
    with pytest.raises(ValueMismatch, match="not stacked"):
        rows.assess((XS, 2.0), {"z": 1.0, ("w", 0): mx.zeros((3, 2))})
    with pytest.raises(AddressError):
        rows.generate((XS, 2.0), XS)
    with pytest.raises(UnknownAddress):
        rows.generate((XS, 2.0), {"y": XS})
    with pytest.raises(UnknownAddress):
        rows.generate((XS, 2.0), {"y": 1.0})


def test_spliced_beside_other_choices():
    """Constraints on the choices beside it are none of its business, whatever their shape."""

    @gen
    def model():
        mu = trace("mu", normal(0, 1))
        trace("three", normal(mx.zeros((3,)), 1))
        return splice(rows(XS + mu, 1.0))

    given = {"mu": 0.5, "three": [0.1, 0.2, 0.3], "z": [1.0, 2.0, 3.0]}
    tr, weight = model().generate(given, key=1)
    assert weight.item() == close(N(0.5, 0) + N(given["three"], 0) + N(given["z"], [0.5, 1.5, 2.5]))
    assert tr.update({"mu": 1.5}).weight.item() == close(
        N(1.5, 0) - N(0.5, 0) + N(given["z"], [1.5, 2.5, 3.5]) - N(given["z"], [0.5, 1.5, 2.5])
    )
    with pytest.raises(ValueMismatch, match="not stacked"):
        model().generate({"z": 1.0})


def test_a_body_that_branches_on_a_choice():
    @gen
    def branching(x):
        return trace("y", normal(0, 1)) if trace("b", flip(0.5)) else x

    with pytest.raises(BatchError, match="switch and mask"):
        vmap(branching).simulate((XS,))


def test_every_element_draws_its_own():
    """In one batch, in a batch of batches, and under another vmap: no two draws alike."""
    assert len(set(repeat(normal, 50).simulate((0.0, 1.0), 1).retval.tolist())) == 50
    batch = repeat(repeat(normal, 4), 5)(0.0, 1.0).vsimulate(6, 2)
    assert batch.choices[()].shape == (6, 5, 4) and len(set(batch.choices[()].reshape(-1).tolist())) == 120
    assert batch.score.tolist() == [close(N(np.array(batch.choices[()][i]), 0), 1e-3) for i in range(6)]


def test_elements_that_take_different_branches():
    """switch and mask inside vmap: masked values in a trace that is no batch, of vectors too."""
    one = gen.new(lambda x: trace("a", normal(x, 1)))
    two = gen.new(lambda x: trace("b", normal(mx.stack([x, x, x]), 1)).sum())
    index = mx.array([0, 1, 1])
    tr = vmap(switch(one, two)).simulate((index, XS), key=1)
    b = tr["b"]
    assert b.value.shape == (3, 3) and b.active.tolist() == [False, True, True]
    assert tr["a"].active.tolist() == [True, False, False]
    expected = N(tr["a"].value[0].item(), 0) + sum(N(np.array(b.value[i]), i) for i in (1, 2))
    assert tr.score.item() == close(expected) == close(tr.gen_fn.assess(tr.args, tr.choices).score.item())
    new, weight, _, discard = tr.update({}, (mx.array([1, 1, 0]), XS), key=2)
    assert weight.item() == close(-N(tr["a"].value[0].item(), 0) - N(np.array(b.value[2]), 2))
    assert discard["a"].active.tolist() == [True, False, False]
    assert discard["b"].active.tolist() == [False, False, True]
    assert np.array_equal(new["b"].value[1], b.value[1]) and new["b"].active.tolist() == [True, True, False]
    back = new.update(discard, tr.args)
    fresh = N(new["b"].value[0], 0) + N(new["a"].value[2].item(), 2)
    assert back.trace.choices == tr.choices and back.weight.item() == close(-weight.item() - fresh)
    assert tr.project("b").item() == close(sum(N(np.array(b.value[i]), i) for i in (1, 2)))


def test_a_mask_around_a_vmap_in_a_batch():
    """The mask has fewer axes than the values: lanes first, then elements, even where both are three."""

    @gen
    def model():
        return trace("m", mask(vmap(mask(normal)))(trace("on", flip(0.5)), mx.array([True, False, True]), XS, XS + 1))

    batch, _ = model().vgenerate(choicemap({"on": [1, 0, 1]}).batched(3), 3, 1)
    leaf = batch.choices["m"]
    some = [True, False, True]
    assert leaf.value.shape == (3, 3) and leaf.active.tolist() == [some, [False] * 3, some]
    for lane, on in enumerate((1, 0, 1)):
        expected = sum(N(leaf.value[lane, i].item(), i, i + 1) for i in (0, 2)) if on else 0
        assert batch.score[lane].item() == close(expected - 0.693147)
    off, weights, _, discard = batch.update({"on": 0})
    assert weights.tolist() == [close(0.693147 - 0.693147 - (s + 0.693147)) for s in batch.score.tolist()]
    back = off.update(discard)
    assert back.trace.choices == batch.choices and [close(-w) for w in weights.tolist()] == back.weight.tolist()
    moved = batch.edit(Regenerate(select("on")), key=3)
    assert moved.trace.edit(moved.backward, key=4).trace.choices == batch.choices


def test_gradients():
    tr = rows.simulate((XS, 2.0), key=1)
    (xs, scale), _, gradients = tr.choice_gradients(select("z"))
    z, w = np.array(tr["z"]), np.array(tr["w", 0])
    assert np.allclose(xs, (z - np.array(XS)) / 4, atol=1e-4)
    assert scale.item() == close(np.sum((z - np.array(XS)) ** 2) / 8 - 3 / 2)
    expected = -(z - np.array(XS)) / 4 + 4 * (w[:, 0] - z) - 4 * (w[:, 1] + z)
    assert np.allclose(gradients["z"], expected, atol=1e-3)


def test_a_parameter_in_the_kernel():
    """Shared by all elements: its gradient is their sum, its own shape, and a change runs the kernel again."""

    @gen.new
    def shifted(x):
        runs.append(x)
        return trace("z", normal(x + param("shift", 0.0), 1))

    tr, _ = vmap(shifted).generate((XS,), {"z": XS + 1})
    assert param_gradients(tr)[shifted, "shift"].item() == close(3.0)
    runs.clear()
    assert tr.update({}).trace is tr and runs == []
    shifted.params["shift"] = 1.0
    new, weight, _, _ = tr.update({})
    assert weight.item() == close(1.5) and len(runs) == 1
    assert param_gradients(new)[shifted, "shift"].item() == close(0.0)
