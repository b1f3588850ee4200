"""Batches: what a body must not do, what lanes share, and shapes that could be mistaken for lanes."""

import threading

import mlx.core as mx
import numpy as np
import pytest
import scipy.stats

from genmlx import GenError, choicemap, dist, flip, gamma, gen, normal, select, trace, unfold
from genmlx.errors import BatchError, ParameterError, UsageError
from genmlx.vectorized import where


@gen
def branches():
    if trace("b", flip(0.5)):
        trace("c", normal(0, 1))


@gen
def loops():
    for _ in range(trace("k", dist.poisson(3.0))):
        pass


@gen
def floats():
    return float(trace("x", normal(0, 1)))


@gen
def items():
    return trace("x", normal(0, 1)).item()


@pytest.mark.parametrize("model", [branches, loops, floats, items], ids=repr)
def test_a_body_that_needs_the_host_value(model):
    """The error names the line and the ways out; nothing falls back to a loop, and nothing is left behind."""
    line = model.__wrapped__.__code__.co_firstlineno + 2
    for run in (
        lambda: model().vsimulate(3),
        lambda: model().vgenerate({}, 3),
    ):
        with pytest.raises(BatchError, match=rf"cannot be batched in .*test_batches.py:{line}\)") as caught:
            run()
        assert "switch" in str(caught.value) and "mx.where" in str(caught.value)
    assert model.simulate(key=0).choices.addresses()[0] in [("b",), ("k",), ("x",)]


@pytest.mark.parametrize("n", [1, 3, 5])
def test_as_many_lanes_as_elements(n):
    """Vector, matrix and simplex sites whose sizes equal the number of lanes keep their own shapes."""

    @gen
    def model():
        vector = trace("vector", normal(mx.arange(3.0), 1.0))
        matrix = trace("matrix", normal(mx.zeros((5, 3)), 1.0))
        probs = trace("probs", dist.dirichlet(mx.ones((3,))))
        ranks = trace("ranks", dist.categorical(mx.zeros((5, 3))))
        return matrix @ vector + probs.sum() + ranks

    batch = model().vsimulate(n, key=1)
    shapes = {"vector": (n, 3), "matrix": (n, 5, 3), "probs": (n, 3), "ranks": (n, 5)}
    assert {a[0]: v.shape for a, v in batch.choices.items()} == shapes
    assert batch.retval.shape == (n, 5) and np.allclose(mx.sum(batch["probs"], axis=-1), 1, atol=1e-5)
    # One [3] value is shared by all lanes, also when there are three of them.
    shared = mx.array([5.0, 6.0, 7.0])
    new = batch.update({"vector": shared}).trace
    assert np.array_equal(new["vector"], np.broadcast_to(shared, (n, 3)))
    made = model().vgenerate({"vector": shared}, n, key=2)
    assert np.array_equal(made.trace["vector"], np.broadcast_to(shared, (n, 3)))
    assert np.allclose(made.weight, normal(mx.arange(3.0), 1.0).log_prob(shared).sum().item())


def test_lanes_of_choice_maps():
    batch = branchless().vsimulate(4, key=0)
    assert "x" in batch and "z" not in batch
    own = choicemap({"x": mx.arange(4.0)}).batched(4)
    assert np.array_equal(batch.update(own).trace["x"], np.arange(4.0))
    assert np.array_equal(batch.update(own.set("y", 2.0)).trace["y"], np.full(4, 2.0))
    with pytest.raises(UsageError, match="choices of 4 lanes for a batch of 3"):
        branchless().vsimulate(3, key=0).update(own)
    with pytest.raises(UsageError, match="has no 5 lanes"):
        choicemap({"x": mx.arange(4.0)}).batched(5)
    with pytest.raises(UsageError, match="3 and 4 lanes|4 and 3 lanes"):
        own.merge(choicemap({"y": mx.arange(3.0)}).batched(3))


@gen
def branchless():
    return trace("y", normal(trace("x", normal(0, 1)), 1))


def test_counts_and_indices():
    for n in (0, -1, 2.0, True):
        with pytest.raises(ParameterError, match="a batch of"):
            branchless().vsimulate(n)
    batch = branchless().vsimulate(3, key=0)
    for i in (3, -4):
        with pytest.raises(UsageError, match=f"no trace {i} in a batch of 3"):
            batch[i]
    with pytest.raises(ParameterError, match="at least one index"):
        batch.take([])


def test_strictness_in_a_batch():
    batch = branchless().vsimulate(3, key=0)
    for run in (
        lambda: batch.update({"z": 1.0}),
        lambda: batch.regenerate(select("z")),
        lambda: batch.project(select("z")),
        lambda: branchless().vgenerate({"z": 1.0}, 3),
    ):
        with pytest.raises(GenError, match="never visits: at 'z'"):
            run()
    assert batch.update({"z": 1.0}, strict=False).weight.tolist() == [0.0] * 3


def test_compiled_with_different_keys():
    """A key frozen in the graph gives the same draw twice. Also from another thread (ml-explore/mlx#4234)."""
    f = mx.compile(lambda key: branchless().simulate(key=key)["y"])
    g = mx.compile(lambda key: branchless().vsimulate(3, key=key)["y"])
    key, other = mx.random.key(1), mx.random.key(2)
    assert f(key).item() != f(other).item() and np.allclose(f(key), branchless().simulate(key=key)["y"])
    assert not np.array_equal(g(key), g(other)) and np.allclose(g(key), branchless().vsimulate(3, key=key)["y"])
    found = []

    def work():
        found.extend([f(mx.random.key(1)).item(), f(mx.random.key(2)).item()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert np.allclose(found, [f(key).item(), f(other).item()])


def test_arguments_are_shared_and_kept():
    xs = mx.arange(3.0)

    @gen
    def model(xs, scale=2.0):
        return trace("y", normal(xs, scale))

    batch = model(xs).vsimulate(2, key=0)
    assert batch.args[1] == 2.0 and batch.args[0].shape == (3,) and batch[1].args[0].shape == (3,)
    new = batch.update({}, args=(xs + 1,))
    assert new.trace.args[1] == 2.0 and new.weight.shape == (2,)
    for i in range(2):
        assert abs(new.weight[i].item() - batch[i].update({}, args=(xs + 1,)).weight.item()) < 1e-4


def test_a_batch_that_grows_runs_one_step_whatever_was_resampled():
    """An array that several traces share stays shared in every lane, so that an update sees that it is the same."""
    runs = []

    @gen
    def step(t, x, scale):
        runs.append(t)
        return trace("x", normal(x, scale))

    walk = unfold(step)

    @gen
    def model(n):
        trace("z", walk(n, 0.0, trace("scale", gamma(2.0, 2.0))))

    batch = model(3).vsimulate(4, key=0)
    for n in (4, 5, 6):
        batch = batch.take([3, 1, 1, 0])
        runs.clear()
        batch = batch.update(None, args=(n,), key=n).trace
        assert runs == [n - 1]
    kept = where(mx.array([True, False, True, True]), batch, batch.take([0, 0, 1, 2]))
    runs.clear()
    longer, weight, *_ = kept.update({("z", 6, "x"): 0.5}, args=(7,), key=9)
    assert runs == [6] and np.allclose(longer.score, [model(7).assess(tr.choices).score.item() for tr in longer])
    last, scale = (np.array(kept[a]) for a in (("z", 5, "x"), "scale"))
    assert np.allclose(weight, scipy.stats.norm.logpdf(0.5, last, scale), rtol=1e-4)


def test_a_choice_between_long_traces_that_came_about_in_other_ways():
    """One has grown step by step, the other was made anew: their steps lie in stacks of other sizes."""

    @gen
    def step(t, x, scale):
        return trace("x", normal(x, scale))

    walk = unfold(step)

    @gen
    def model(n):
        trace("z", walk(n, 0.0, trace("scale", gamma(2.0, 2.0))))

    batch = model(33).vsimulate(3, key=0)
    for n in range(34, 53):
        batch = batch.update(None, args=(n,), key=n).trace
    anew = batch.regenerate(select("scale", "z"), key=1).trace
    kept = mx.array([True, False, True])
    for chosen in (where(kept, anew, batch), batch.step(lambda tr, key: (pick(tr, key), ()), mx.random.key(2))[0]):
        assert np.allclose(chosen.score, [model(52).assess(tr.choices).score.item() for tr in chosen], rtol=1e-5)
    mixed = where(kept, anew, batch)
    for t in (0, 40, 51):
        want = [anew[("z", t, "x")][0], batch[("z", t, "x")][1], anew[("z", t, "x")][2]]
        assert np.array_equal(mixed[("z", t, "x")], np.array(want))
    alone = where(mx.array(True), anew[0], batch[0])
    assert alone.choices == anew[0].choices


def pick(tr, key):
    """In a lane of a batch."""
    new = tr.gen_fn.regenerate(tr, select("scale", "z"), key=key).trace
    return where(new["scale"] > tr["scale"], new, tr)
