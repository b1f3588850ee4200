"""Involutive MCMC: acceptance ratios against closed forms, stationary distributions against exact posteriors."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx import (
    categorical,
    flip,
    gamma,
    gen,
    jacobian,
    mixture,
    multivariate_normal,
    normal,
    select,
    switch,
    trace,
)
from genmlx.diagnostics import ess, mcse
from genmlx.errors import BatchError, MissingChoice, UsageError
from genmlx.inference.involutive import involutive_kernel, involutive_mh, involutive_step
from genmlx.inference.kernels import chain, reversal
from genmlx.inference.mh import mh_kernel
from genmlx.inference.round_trip import RoundTripError
from genmlx.inference.translators import SymmetricTranslator
from genmlx.masked import value_of
from genmlx.transform import is_involution, transform


@gen
def two_worlds():
    if trace("x", flip(0.5)).item():
        trace("y", normal(0, 1))
    else:
        trace("z", normal(1, 1))


def world_swap(shift):
    @is_involution
    @transform
    def swap(old, new):
        new["x"] = 1 - old["x"]
        if "y" in old:
            new["z"] = old["y"] + shift
        else:
            new["y"] = old["z"] + shift

    return swap


def test_reversible_jump():
    """Case 34: from (T, y = 0.5) always accepted, with z = 0.5 and log ratio 0."""
    tr, _ = two_worlds().generate({"x": 1, "y": 0.5})
    new, weight = SymmetricTranslator(None, world_swap(0.0))(tr, check=True)
    assert weight.item() == pytest.approx(0.0, abs=1e-6)
    assert new.choices.to_dict().keys() == {("x",), ("z",)} and new["z"].item() == 0.5 and new["x"].item() == 0
    kernel = involutive_kernel(None, world_swap(0.0), check=True)
    for seed in range(20):
        assert kernel(tr, mx.random.key(seed))["z"].item() == 0.5


def test_the_check_fails_a_map_that_is_no_involution():
    """Case 34: y + 0.1 both ways is one-to-one but not its own inverse; the error names the choice."""
    tr, _ = two_worlds().generate({"x": 1, "y": 0.5})
    kernel = involutive_kernel(None, world_swap(0.1), check=True)
    with pytest.raises(RoundTripError, match="not the same after the way there and back") as caught:
        kernel(tr, mx.random.key(0))
    assert caught.value.address == ("y",) and caught.value.where.startswith(__file__)
    assert involutive_kernel(None, world_swap(0.1))(tr, mx.random.key(0)) is not None


# a scaling move on a gamma: log c enters by the Jacobian only


@gen
def positive():
    trace("x", gamma(3.0, 2.0))


@gen
def factor(tr):
    trace("log_c", normal(0, 0.8))


@is_involution
@transform
def scale(old, new):
    log_c = old.aux["log_c"]
    new["x"], new.aux["log_c"] = old["x"] * mx.exp(log_c), -log_c


def z_of_mean(post, address, truth):
    return (float(np.mean(np.array(post[address]))) - truth) / float(mcse(np.array(post[address])))


def test_scaling_moves_keep_a_gamma():
    post = involutive_mh(positive(), None, factor, scale, draws=1200, warmup=100, chains=16, key=1)
    assert post.execution == "replayed"
    assert ess(np.array(post["x"])) > 2000
    assert abs(z_of_mean(post, "x", 1.5)) < 4
    assert post.std("x").item() == pytest.approx(math.sqrt(3) / 2, rel=0.06)
    post = involutive_mh(positive(), None, factor, scale, draws=50, chains=4, check=True, key=2)
    assert set(post.stats) == {"accept"}


@pytest.mark.parametrize("sign, mean", [(0.0, 1.0), (-1.0, 0.5)])
def test_a_wrong_jacobian_is_seen(monkeypatch, sign, mean):
    """Without log c the chain samples p(x)/x, a Gamma(2, 2); with its sign turned p(x)/x^2, a Gamma(1, 2)."""
    right = jacobian.log_abs_det
    monkeypatch.setattr(jacobian, "log_abs_det", lambda f, x: sign * right(f, x))
    post = involutive_mh(positive(), None, factor, scale, draws=600, warmup=100, chains=16, key=3)
    assert abs(z_of_mean(post, "x", 1.5)) > 8
    assert abs(z_of_mean(post, "x", mean)) < 4


def test_acceptance_ratio_of_a_scaling():
    """log p(c x) - log p(x) + log q(-l) - log q(l) + log c, with scipy's densities and an asymmetric q."""

    @gen
    def lopsided(tr):
        trace("log_c", normal(0.3, 0.8))

    tr, _ = positive().generate({"x": 1.7})
    new, weight = SymmetricTranslator(lopsided, scale)(tr, mx.random.key(4), check=True)
    x = new["x"].item()
    log_c = math.log(x / 1.7)
    p, q = stats.gamma(3, scale=0.5).logpdf, stats.norm(0.3, 0.8).logpdf
    assert weight.item() == pytest.approx(p(x) - p(1.7) + q(-log_c) - q(log_c) + log_c, abs=2e-5)


def test_a_choice_that_is_kept_is_a_constant():
    """x e^z with z kept has log |det| = z: with z as an input the Jacobian would not be square."""

    @gen
    def model():
        for name in "zx":
            trace(name, normal(0, 1))
        trace("up", flip(0.5))

    @is_involution
    @transform
    def move(old, new):
        z, up = old["z"], old["up"]
        new["up"] = 1 - up
        new["x"] = old["x"] * mx.exp(mx.where(up == 1, 1.0, -1.0) * z)

    tr, _ = model().generate({"z": 0.7, "x": 1.0, "up": 1})
    new, weight = SymmetricTranslator(None, move)(tr, check=True)
    x = math.exp(0.7)
    assert new["x"].item() == pytest.approx(x)
    assert weight.item() == pytest.approx(0.5 - x * x / 2 + 0.7, abs=1e-5)


def test_a_move_to_nan_is_rejected():
    @transform
    def nowhere(old, new):
        log_c = old.aux["log_c"]
        new["x"], new.aux["log_c"] = old["x"] * mx.sqrt(-1.0 - mx.abs(log_c)), log_c

    tr, _ = positive().generate({"x": 1.0})
    assert involutive_kernel(factor, nowhere)(tr, mx.random.key(0)) is tr


# vectors, batches, discrete choices


@gen
def plane():
    v = trace("v", multivariate_normal(mx.zeros(2), mx.array([[1.0, 0.6], [0.6, 2.0]])))
    trace("y", normal(v[0] + v[1], 0.7))


@gen
def angle(tr):
    trace("angle", normal(0, 1.5))
    trace("log_c", normal(0, 0.5))


@is_involution
@transform
def spiral(old, new):
    """Turn and stretch a vector: log |det| = 2 log c."""
    a, log_c, v = old.aux["angle"], old.aux["log_c"], old["v"]
    turned = mx.stack([mx.cos(a) * v[0] - mx.sin(a) * v[1], mx.sin(a) * v[0] + mx.cos(a) * v[1]])
    new["v"] = turned * mx.exp(log_c)
    new.aux["angle"], new.aux["log_c"] = -a, -log_c


def test_spiral_moves_keep_a_conjugate_posterior():
    """The Gaussian posterior in closed form; one log c for two dimensions, or none, is off by many errors."""
    prior, h = np.array([[1.0, 0.6], [0.6, 2.0]]), np.ones((1, 2))
    gain = prior @ h.T / (h @ prior @ h.T + 0.49)
    mean, cov = (gain * 1.3).ravel(), prior - gain @ h @ prior
    post = involutive_mh(plane(), {"y": 1.3}, angle, spiral, draws=1500, warmup=100, chains=16, key=5)
    draws = np.array(post["v"])
    for i in range(2):
        assert ess(draws[..., i]) > 1000
        assert abs(draws[..., i].mean() - mean[i]) < 4 * mcse(draws[..., i])
        assert draws[..., i].std() == pytest.approx(math.sqrt(cov[i, i]), rel=0.08)


def test_a_batch_agrees_with_its_lanes():
    traces, _ = plane().vgenerate({"y": 1.3}, 5, key=6)
    translator = SymmetricTranslator(angle, spiral, {"y": 1.3})
    new, weight = translator(traces, mx.random.key(7), check=True)
    old_v, new_v = np.array(traces["v"]), np.array(new["v"])
    ratio = np.linalg.norm(new_v, axis=1) / np.linalg.norm(old_v, axis=1)
    cosine = (old_v * new_v).sum(1) / np.linalg.norm(new_v, axis=1) / np.linalg.norm(old_v, axis=1)
    assert len(np.unique(cosine.round(5))) == 5, "each lane draws its own angle"
    # q is symmetric, so that what is left is the ratio of densities and two log c
    expected = np.array(new.score) - np.array(traces.score) + 2 * np.log(ratio)
    assert np.array(weight) == pytest.approx(expected, abs=1e-4)
    moved = involutive_kernel(angle, spiral, check=True)(traces, mx.random.key(8))
    assert moved.n == 5 and np.isfinite(np.array(moved.score)).all()


@gen
def pair():
    a = trace("a", categorical(mx.log(mx.array([0.5, 0.3, 0.2]))))
    b = trace("b", categorical(mx.log(mx.array([0.1, 0.2, 0.7]))))
    trace("y", normal(a + 2.0 * b, 1.0))


@gen
def which(tr):
    trace("swap", flip(0.5))
    trace("shift", categorical(mx.zeros(3)))


@is_involution
@transform
def swap_or_shift(old, new):
    """Swap a and b, or turn a by a shift modulo 3; the way back turns it by minus the shift."""
    swap, shift, a, b = old.aux["swap"], old.aux["shift"], old["a"], old["b"]
    new.aux["swap"], new.aux["shift"] = swap, mx.where(swap == 1, shift, (3 - shift) % 3)
    new["a"] = mx.where(swap == 1, b, (a + shift) % 3)
    new["b"] = mx.where(swap == 1, a, (b + shift) % 3)


def test_discrete_moves_against_enumeration():
    """All nine states, through a discrete involution without any Jacobian."""
    table = {}
    for a, pa in enumerate([0.5, 0.3, 0.2]):
        for b, pb in enumerate([0.1, 0.2, 0.7]):
            table[a, b] = pa * pb * stats.norm(a + 2 * b, 1).pdf(2.2)
    total = sum(table.values())
    post = involutive_mh(pair(), {"y": 2.2}, which, swap_or_shift, draws=1200, warmup=100, chains=16, check=True, key=9)
    a, b = np.array(post["a"]), np.array(post["b"])
    for (i, j), p in table.items():
        hits = ((a == i) & (b == j)).astype(float)
        # Three orbits under swap and shift are joined by both moves; each state is visited.
        assert abs(hits.mean() - p / total) < 4.5 * max(float(mcse(hits)), 1e-3), (i, j)


def test_a_failed_check_in_a_batch_names_the_choice():
    @transform
    def drift(old, new):
        u = old.aux["log_c"]
        new["x"], new.aux["log_c"] = old["x"] * mx.exp(u) + 0.01, -u

    with pytest.raises(RoundTripError, match=r"in \d+ of 80 moves") as caught:
        involutive_mh(positive(), None, factor, drift, draws=20, chains=4, check=True, key=10)
    assert caught.value.address == ("x",)
    traces = positive().vsimulate(6, key=11)
    with pytest.raises(RoundTripError, match="of 6 moves"):
        involutive_kernel(factor, drift, check=True)(traces, mx.random.key(0))


def test_a_jacobian_that_is_wrong_both_ways():
    """The values come back, but the volume does not: a value that is read as discrete is not differentiated."""

    @gen
    def half_or_double(tr):
        trace("double", flip(0.5))

    @is_involution
    @transform
    def one_sided(old, new):
        double = old.aux["double"]
        new.aux["double"] = 1 - double
        if double.item():
            new["x"] = old["x"] * 2.0
        else:
            new.discrete["x"] = old.discrete["x"] / 2.0

    tr, _ = positive().generate({"x": 1.0})
    with pytest.raises(RoundTripError, match="do not add up to 0"):
        involutive_kernel(half_or_double, one_sided, check=True)(tr, mx.random.key(0))


def test_the_host_value_of_a_real_choice():
    """A branch on what is moved: its derivative would be lost. In a batch it cannot even run."""

    @is_involution
    @transform
    def branches(old, new):
        log_c = old.aux["log_c"]
        new.aux["log_c"] = -log_c
        new["x"] = old["x"] * (mx.exp(log_c) if log_c.item() > 0 else 1.0)

    with pytest.raises(BatchError, match="host value of a real choice of the forward proposal") as caught:
        involutive_mh(positive(), None, factor, branches, draws=5, key=0)
    assert caught.value.address == ("log_c",) and caught.value.where.startswith(__file__)
    with pytest.raises(BatchError):
        involutive_mh(positive(), None, factor, branches, draws=5, chains=2, key=0)


# split and merge of components, against quadrature

DATA = [-1.0, 0.9, 1.4]


@gen
def components():
    if trace("two", flip(0.5)).item():
        parts = [normal(trace(("mu", i), normal(0, 1.5)), 0.6) for i in range(2)]
        for i in range(3):
            trace(("y", i), mixture(parts, mx.log(mx.array([0.5, 0.5]))))
    else:
        mu = trace(("mu", 0), normal(0, 1.5))
        for i in range(3):
            trace(("y", i), normal(mu, 0.6))


@gen
def split_or_walk(tr):
    """Half of the steps split or merge, half move the means a little."""
    two = tr["two"].item()
    if trace("jump", flip(0.5)).item():
        if not two:
            trace("u", normal(0, 1.0))
    else:
        for i in range(1 + two):
            trace(("step", i), normal(0, 0.8))


@is_involution
@transform
def split_merge(old, new):
    two, jump = old["two"], old.aux["jump"]
    new.aux["jump"] = jump
    if not jump.item():
        for i in range(1 + two.item()):
            step = old.aux["step", i]
            new["mu", i], new.aux["step", i] = old["mu", i] + step, -step
        return
    new["two"] = 1 - two
    if two.item():
        a, b = old["mu", 0], old["mu", 1]
        new["mu", 0], new.aux["u"] = (a + b) / 2, (a - b) / 2
    else:
        mean, u = old["mu", 0], old.aux["u"]
        new["mu", 0], new["mu", 1] = mean + u, mean - u


def quadrature():
    """P(two | y), and E[mu 0 | one, y], E[|mu 0 - mu 1| | two, y], on a grid."""
    grid = np.linspace(-7, 7, 701)
    step, prior = grid[1] - grid[0], stats.norm(0, 1.5).pdf(grid)
    like = np.array([stats.norm(grid, 0.6).pdf(y) for y in DATA])
    one = prior * like.prod(0)
    both = np.prod([0.5 * (row[:, None] + row[None, :]) for row in like], axis=0) * prior[:, None] * prior[None, :]
    z1, z2 = one.sum() * step, both.sum() * step**2
    gap = (both * np.abs(grid[:, None] - grid[None, :])).sum() * step**2 / z2
    return z2 / (z1 + z2), (one * grid).sum() * step / z1, gap


def test_split_merge_against_quadrature():
    """log |det| of a split is log 2: without it the odds of two components are half, with its sign turned a quarter."""
    exact, mean_one, gap_two = quadrature()
    obs = {("y", i): y for i, y in enumerate(DATA)}
    post = involutive_mh(components(), obs, split_or_walk, split_merge, draws=1600, warmup=50, key=12)
    two = np.array(post["two"]).astype(float)
    error = float(mcse(two))
    odds = exact / (1 - exact)
    assert abs(two.mean() - exact) < 4 * error
    assert abs(exact - 0.5 * odds / (1 + 0.5 * odds)) > 5 * error, "half the odds would be seen"
    a, b = (np.array(value_of(post["mu", i]))[0] for i in range(2))
    chosen = two[0] == 1
    assert a[~chosen].mean() == pytest.approx(mean_one, abs=0.15)
    assert np.abs(a - b)[chosen].mean() == pytest.approx(gap_two, abs=0.3)


def test_the_check_holds_for_split_merge():
    obs = {("y", i): y for i, y in enumerate(DATA)}
    post = involutive_mh(components(), obs, split_or_walk, split_merge, draws=60, check=True, key=13)
    assert 0 < np.array(post["two"]).mean() < 1


# what goes wrong


def test_moves_of_observed_choices_and_calls():
    @transform
    def moves_data(old, new):
        u = old.aux["log_c"]
        new["y"], new.aux["log_c"] = old["y"] + u, -u

    with pytest.raises(UsageError, match="writes an observed choice") as caught:
        involutive_mh(plane(), {"y": 1.3}, factor, moves_data, draws=5, key=0)
    assert caught.value.address == ("y",) and caught.value.where.startswith(__file__)
    with pytest.raises(UsageError, match="is not a transform"):
        involutive_step(factor, lambda old, new: None)
    with pytest.raises(UsageError, match="not a call"):
        involutive_kernel(3.0, scale)(positive().simulate(key=0), mx.random.key(0))


def test_what_the_involution_forgets():
    @transform
    def forgets_aux(old, new):
        new["x"] = old["x"] * mx.exp(old.aux["log_c"])

    @transform
    def forgets_choice(old, new):
        y = old["y"] if "y" in old else old["z"]
        new["x"] = 1 - old["x"]
        del y

    tr = positive().simulate(key=0)
    with pytest.raises(MissingChoice, match="does not write a choice of the backward proposal") as caught:
        involutive_kernel(factor, forgets_aux)(tr, mx.random.key(0))
    assert caught.value.address == ("log_c",) and "new.aux['log_c'] = ..." in str(caught.value)
    tr, _ = two_worlds().generate({"x": 1, "y": 0.5})
    with pytest.raises(MissingChoice, match="does not write a choice of the new trace") as caught:
        involutive_kernel(None, forgets_choice)(tr, mx.random.key(0))
    assert caught.value.address == ("z",)


def test_structure_changes_in_a_batch_raise():
    """Never a silent loop, nor a choice of a branch that not every lane takes; one chain may do it."""

    @gen
    def narrow(x):
        trace("p", normal(x, 1))

    @gen
    def wide(x):
        trace("p", normal(x, 2))
        trace("r", normal(0, 1))

    @gen
    def switching():
        x = trace("x", normal(0, 1))
        trace("s", switch(narrow, wide)(trace("k", flip(0.5)), x))

    @is_involution
    @transform
    def walk(old, new):
        step = old.aux["log_c"]
        new["x"], new.aux["log_c"] = old["x"] + step, -step

    with pytest.raises(BatchError, match="only some lanes have: at .* in walk"):
        involutive_mh(switching(), None, factor, walk, draws=5, chains=2, key=0)
    assert involutive_mh(switching(), None, factor, walk, draws=5, check=True, key=0).draws == 5
    with pytest.raises(BatchError, match=r"\.py:\d+"):
        involutive_mh(two_worlds(), None, None, world_swap(0.0), draws=5, chains=2, key=0)


def test_the_kernel_is_one_of_the_kernels():
    """It composes, reverses into itself, and its check raises inside a composite, on one trace and on a batch."""

    @gen
    def model():
        trace("x", normal(0, 1))
        trace("y", normal(0, 1))

    @is_involution
    @transform
    def swap(old, new):
        new["x"], new["y"] = old["y"], old["x"]

    @is_involution
    @transform
    def drift(old, new):
        new["x"] = old["x"] + 0.5

    kernel = involutive_kernel(None, swap)
    assert reversal(kernel) is kernel
    both = chain(kernel, mh_kernel(select("y")))
    assert reversal(both).parts[1] is kernel
    tr, _ = model().generate({"x": 1.0, "y": 2.0})
    assert involutive_kernel(None, swap)(tr, 0)["x"].item() == 2.0
    for start in (tr, model().vsimulate(4, key=0)):
        assert both(start, 1).choices.addresses() == [("x",), ("y",)]
        with pytest.raises(RoundTripError, match="'x'"):
            chain(mh_kernel(select("y")), involutive_kernel(None, drift, check=True))(start, 2)
