"""What a progress callback is told while Markov chains run: draws, step size, acceptance, divergences, R-hat."""

import math

import mlx.core as mx
import numpy as np
import pytest

from genmlx import (
    diagnostics,
    elliptical_slice,
    flip,
    gen,
    gibbs,
    hmc,
    hmc_gibbs,
    involutive_mh,
    mala,
    mh,
    normal,
    nuts,
    random_walk,
    trace,
)
from genmlx.inference import live_rhat, mh_kernel, run_kernel
from genmlx.inference import loop as loop_module
from genmlx.inference.draws import Draws
from genmlx.inference.live_rhat import LiveRhat
from genmlx.transform import transform


@gen
def model():
    a, b = trace("a", normal(0, 1)), trace("b", normal(0, 2))
    trace("y", normal(a + b, 0.5))


@gen
def discrete():
    a, b = trace("a", flip(0.4)), trace("b", flip(0.3))
    trace("y", normal(a + 2.0 * b, 2.0))


@gen
def mixed():
    a, b = trace("a", normal(0, 1)), trace("b", flip(0.4))
    trace("y", normal(a + b, 0.5))


@gen
def funnel():
    trace("x", normal(0, mx.exp(0.5 * trace("v", normal(0, 3)))))


@gen
def shift(tr):
    trace("u", normal(0, 1))


@transform
def moved(old, new):
    u = old.aux["u"]
    new["a"], new.aux["u"], new["b"] = old["a"] + u, -u, old["b"]


def _start():
    return model().vgenerate({"y": 1.0}, 3, key=mx.random.key(0)).trace


HOW = {"draws": 40, "warmup": 20, "chains": 3, "key": 1}
WALKS = {
    "mh": lambda **how: mh(model(), {"y": 1.0}, **HOW, **how),
    "gibbs": lambda **how: gibbs(discrete(), {"y": 1.0}, **HOW, **how),
    "elliptical_slice": lambda **how: elliptical_slice(model(), {"y": 1.0}, **HOW, **how),
    "involutive_mh": lambda **how: involutive_mh(model(), {"y": 1.0}, shift, moved, **HOW, **how),
    "hmc_gibbs": lambda **how: hmc_gibbs(mixed(), {"y": 1.0}, **HOW, **how),
    "run_kernel": lambda **how: run_kernel(
        mh_kernel("a"), _start(), draws=40, warmup=20, observations={"y": 1.0}, key=1, **how
    ),
}
GRADIENT = {
    "nuts": lambda **how: nuts(model(), {"y": 1.0}, **HOW, **how),
    "hmc": lambda **how: hmc(model(), {"y": 1.0}, **HOW, **how),
    "mala": lambda **how: mala(model(), {"y": 1.0}, **HOW, **how),
    "random_walk": lambda **how: random_walk(model(), {"y": 1.0}, **HOW, **how),
}
RUNS = {**WALKS, **GRADIENT}


def watched(monkeypatch, run):
    """The posterior, and the events of blocks of one step, each with an R-hat of its own."""
    monkeypatch.setattr(loop_module, "_TARGET", 0.0)
    monkeypatch.setattr(loop_module, "_SLOWEST", 1e9)
    monkeypatch.setattr(live_rhat, "_SHARE", math.inf)
    events = []
    post = run(progress=events.append)
    return post, [e.info for e in events if e.phase == "warmup"], [e.info for e in events if e.phase == "sampling"]


@pytest.mark.parametrize("name", RUNS)
def test_draws_and_rhat_are_those_of_the_posterior_so_far(way, monkeypatch, name):
    """R-hat after n draws is that of the first n, computed here from the result: catches one of other draws."""
    post, early, late = watched(monkeypatch, RUNS[name])
    counts = [info["draws"] for info in late]
    # Chains may have ended more transitions than the one that the block waited for: of different lengths only.
    assert [info["draws"] for info in early] == [0] * 20 and all(c >= i for i, c in enumerate(counts, 1))
    assert counts == (sorted(counts) if name == "nuts" else list(range(1, 41))) and counts[-1] == 40
    assert all(math.isnan(info["rhat"]) == (info["draws"] < 4) for info in [*early, *late])
    columns = [np.array(post[a], dtype=float) for a in post.addresses()]
    if name in WALKS and not post.execution.startswith("native"):
        columns.append(np.array(post.log_joint, dtype=float))
    for info in late[10:]:
        expected = np.nanmax([diagnostics.rhat(column[:, : info["draws"]]) for column in columns])
        assert info["rhat"] == pytest.approx(expected, rel=1e-5), info["draws"]


@pytest.mark.parametrize("name", ["mh", "involutive_mh", "elliptical_slice", "mala", "random_walk"])
def test_acceptance_is_that_of_the_last_steps(monkeypatch, name):
    post, early, late = watched(monkeypatch, RUNS[name])
    found = [info["accept"] for info in late]
    assert found == pytest.approx(np.array(post.stats["accept"], dtype=float).mean(axis=0).tolist(), rel=1e-5)
    assert all(0 <= info["accept"] <= 1 for info in early)


@pytest.mark.parametrize("name", GRADIENT)
def test_the_step_size(way, monkeypatch, name):
    """Moving in the warm-up, and then that of the posterior."""
    post, early, late = watched(monkeypatch, GRADIENT[name])
    assert len({info["step_size"] for info in early}) > 10
    assert {info["step_size"] for info in late} == {post.stats["step_size"][0, 0].item()}


@pytest.mark.parametrize("sampler", [nuts, hmc])
def test_divergences_are_counted(way, monkeypatch, sampler):
    """All those of the draws, and none of the warm-up or of transitions that a faster chain makes beyond the last."""

    def run(progress):
        return sampler(funnel(), draws=100, warmup=20, chains=8, key=2, target_accept=0.5, progress=progress)

    post, early, late = watched(monkeypatch, run)
    counts = [info["divergences"] for info in late]
    assert counts == sorted(counts) and counts[-1] == mx.sum(post.stats["diverging"]).item() > 10
    counts = [info["divergences"] for info in early]
    assert counts == sorted(counts) and counts[-1] > 0


def test_divergences_of_a_kernel_that_has_them(monkeypatch):
    def kernel(tr, key):
        new, _ = mh_kernel("a").step(tr, key)
        return new, {"diverging": new["a"] > 0.5}

    from genmlx.inference import Kernel

    def run(progress):
        return run_kernel(Kernel(kernel), _start(), draws=30, thin=2, observations={"y": 1.0}, key=1, progress=progress)

    post, _, late = watched(monkeypatch, run)
    assert late[-1]["divergences"] == round(2 * mx.sum(post.stats["diverging"]).item()) > 0


def test_where_there_is_no_such_thing(monkeypatch):
    _, early, late = watched(monkeypatch, RUNS["mh"])
    assert not {"step_size", "divergences"} & {*early[0], *late[0]}


def test_choices_that_some_draws_lack_are_left_out(monkeypatch):
    @gen
    def branching():
        if trace("k", flip(0.4)).item():
            trace("b", normal(1, 1))
        trace("y", normal(0, 1))

    post, _, late = watched(
        monkeypatch, lambda progress: mh(branching(), {"y": 1.0}, draws=40, key=1, progress=progress)
    )
    assert post.present_at("b") is not None
    expected = np.nanmax([diagnostics.rhat(np.array(x, dtype=float)) for x in (post["k"], post.log_joint)])
    assert late[-1]["rhat"] == pytest.approx(expected, rel=1e-5)


# cost


def test_no_rhat_without_a_callback(monkeypatch):
    def never(*args):
        raise AssertionError("R-hat was computed")

    monkeypatch.setattr(diagnostics, "rhat", never)
    for name in ("mh", "nuts"):
        RUNS[name]()
        with pytest.raises(AssertionError, match="R-hat was computed"):
            RUNS[name](progress=lambda event: None)


def test_rhat_takes_a_two_hundredth_of_the_time(monkeypatch):
    """By a clock that counts 0.1 s for each block of 100 draws, and a second for each 10,000 draws of an R-hat."""
    now, spent = [0.0], [0.0]
    monkeypatch.setattr(live_rhat.time, "perf_counter", lambda: now[0])
    rhat = LiveRhat()
    values = []
    for block in range(1, 20_001):
        now[0] += 0.1
        count = 100 * block

        def draws(count=count):
            now[0] += count / 10_000
            spent[0] += count / 10_000
            return np.random.default_rng(count).normal(size=(2, 8, 1))

        values.append(rhat(count, draws))
        assert spent[0] <= 0.005 * now[0] + count / 10_000
    assert spent[0] >= 0.0025 * now[0] and len(set(values)) >= 3


@pytest.mark.parametrize("sizes", [[1000], [3, 500], [1] * 40, [2, 2, 2]])
def test_rhat_is_of_a_bounded_number_of_numbers(sizes):
    drawn = Draws()
    values = {
        (f"x{i}",): (mx.random.normal((2, 5, size)), mx.ones((2, 5), dtype=mx.bool_)) for i, size in enumerate(sizes)
    }
    log_joint = mx.random.normal((2, 5))
    drawn.blocks = [(values, log_joint, {})]
    some = drawn.some(8)
    assert 1 + min(8, sum(sizes)) // 2 <= some.shape[2] <= 9 and mx.array_equal(some[:, :, 0], log_joint).item()
    every = {column.tobytes() for value, _ in values.values() for column in np.moveaxis(np.array(value), -1, 0).copy()}
    taken = [np.array(some[:, :, i]).tobytes() for i in range(1, some.shape[2])]
    assert len(set(taken)) == len(taken) and set(taken) <= every


def test_the_gradient_samplers_look_at_eight_coordinates(way, monkeypatch):
    shapes = []
    monkeypatch.setattr(diagnostics, "rhat", lambda x: shapes.append(x.shape) or np.ones(x.shape[2]))

    @gen
    def wide():
        trace("a", normal(mx.zeros(50), 1))

    watched(monkeypatch, lambda progress: nuts(wide(), draws=10, warmup=5, chains=2, key=1, progress=progress))
    assert shapes[-1] == (2, 10, 8) and {(shape[0], shape[2]) for shape in shapes} == {(2, 8)}
