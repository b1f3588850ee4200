"""Sweeps as kernels, their transition matrices and reversals; arrays drawn at once, and arrays that must not be."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

import genmlx
from genmlx import categorical, discrete_uniform, dist, flip, gen, map_over, mask, normal, select, trace, vmap
from genmlx.errors import BatchError, UsageError
from genmlx.inference import chain, gibbs, gibbs_kernel, mh_kernel, repeat_kernel, reversal, run_kernel
from genmlx.inference.sweeps import find_sites, sweep_kernel


@gen
def coins():
    a = trace("a", flip(0.3))
    b = trace("b", flip(0.2 + 0.5 * a))
    trace("y", flip(0.1 + 0.3 * a + 0.5 * b))


STATES = list(itertools.product((0, 1), repeat=2))


def conditional_moves():
    """The transition matrices of a draw of a alone, and of b alone, of the states (a, b), given y = 1."""
    prior = np.array([0.7 * 0.8, 0.7 * 0.2, 0.3 * 0.3, 0.3 * 0.7]) * np.array([0.1, 0.6, 0.4, 0.9])
    joint = dict(zip(STATES, prior, strict=True))
    matrices = []
    for moved in (0, 1):
        stays = [[x[1 - moved] == y[1 - moved] for y in STATES] for x in STATES]
        rows = np.where(stays, [joint[y] for y in STATES], 0.0)
        matrices.append(rows / rows.sum(axis=1, keepdims=True))
    return matrices


def transitions(kernel, n=20_000):
    """How often ``n`` lanes that begin in each state end in each."""
    counts = np.zeros((4, 4))
    for i, (a, b) in enumerate(STATES):
        start, _ = coins().vgenerate({"a": a, "b": b, "y": 1}, n)
        new = kernel(start, mx.random.key(i))
        counts[i] = np.bincount(np.array(2 * new["a"] + new["b"]), minlength=4)
    return counts


def agrees(counts, matrix):
    n = counts.sum(axis=1, keepdims=True)
    z = (counts - n * matrix) / np.sqrt(np.maximum(n * matrix * (1 - matrix), 1e-9))
    return np.all(np.abs(z[matrix > 0]) < 4.5) and np.all(counts[matrix == 0] == 0)


def test_the_transition_matrix_is_that_of_the_sweep_and_of_its_reversal():
    """a then b; its reversal is b then a, which is another matrix: neither is reversible."""
    a, b = conditional_moves()
    kernel = gibbs_kernel(select("a", "b"))
    forward, backward = transitions(kernel), transitions(reversal(kernel))
    assert agrees(forward, a @ b) and agrees(backward, b @ a)
    assert not agrees(forward, b @ a) and not agrees(backward, a @ b), "the test has no power"
    assert reversal(reversal(kernel)) is kernel
    pi = np.linalg.matrix_power(a @ b, 200)[0]
    assert np.allclose(pi[:, None] * (a @ b), (pi[:, None] * (b @ a)).T), "pi(x) k(x, y) = pi(y) back(y, x)"
    assert agrees(transitions(chain(gibbs_kernel("b"), gibbs_kernel("a"))), b @ a)
    assert agrees(transitions(repeat_kernel(2, gibbs_kernel("a"))), a)


@pytest.mark.parametrize("observed", [2.0, -1.0])
def test_an_array_is_swept_backwards_by_the_reversal(observed):
    """Two dependent elements of one array: first to last, and last to first."""

    @gen
    def pair():
        z = trace("z", flip(mx.array([0.3, 0.6])))
        trace("y", normal(mx.sum(z) * 1.5 + z[0], 1.0))

    probability = {z: (0.3, 0.7)[1 - z[0]] * (0.6, 0.4)[1 - z[1]] for z in STATES}
    joint = np.array([p * stats.norm.pdf(observed, 1.5 * sum(z) + z[0], 1) for z, p in probability.items()])
    moves = []
    for moved in (0, 1):
        rows = np.array([[joint[j] * (x[1 - moved] == y[1 - moved]) for j, y in enumerate(STATES)] for x in STATES])
        moves.append(rows / rows.sum(axis=1, keepdims=True))
    first_last, n = moves[0] @ moves[1], 20_000
    for kernel, matrix in ((gibbs_kernel("z"), first_last), (reversal(gibbs_kernel("z")), moves[1] @ moves[0])):
        counts = []
        for i, z in enumerate(STATES):
            start, _ = pair().vgenerate({"z": mx.array(z), "y": observed}, n)
            new = np.array(kernel(start, mx.random.key(i))["z"])
            counts.append(np.bincount(2 * new[:, 0] + new[:, 1], minlength=4))
        assert agrees(np.array(counts), matrix)


def test_single_traces_batches_and_what_stays():
    start, _ = coins().generate({"a": 0, "b": 0, "y": 1})
    kernel = gibbs_kernel(select("a", "b"))
    post = run_kernel(kernel, start, draws=400, observations={"y": 1}, key=1)
    exact = np.array([0.7 * 0.8, 0.7 * 0.2, 0.3 * 0.3, 0.3 * 0.7]) * np.array([0.1, 0.6, 0.4, 0.9])
    exact /= exact.sum()
    assert abs(post.mean("a").item() - exact[2:].sum()) < 4.5 * post.mcse("a")
    assert set(post["y"].reshape(-1).tolist()) == {1} if ("y",) in post.addresses() else True
    new = kernel(start, mx.random.key(1), check=True, observations={"y": 1})
    assert new["y"].item() == 1
    moved = {gibbs_kernel(select("y"))(start, mx.random.key(seed))["y"].item() for seed in range(40)}
    assert moved == {0, 1}, "it moves what it is told to"
    batch, _ = coins().vgenerate({"y": 1}, 30, key=mx.random.key(0))
    post = run_kernel(chain(kernel, mh_kernel("a")), batch, draws=300, observations={"y": 1}, key=1)
    assert post.execution == "replayed"
    assert abs(post.mean("b").item() - exact[[1, 3]].sum()) < 4.5 * post.mcse("b")


def test_a_kernel_finds_the_values_of_each_model_that_it_is_used_on():
    @gen
    def model(top):
        trace("y", normal(1.0 * trace("n", discrete_uniform(0, top)), 100.0))

    kernel, keys = gibbs_kernel("n"), mx.random.split(mx.random.key(0), 3)
    for top, key in zip((1, 5, 2), keys, strict=True):
        start, _ = model(top).vgenerate({"y": 0.0}, 300, key=key)
        assert set(kernel(start, key)["n"].tolist()) == set(range(top + 1))


# arrays

K, POINTS = 3, 40


def labels_given(mu, y, log_weights):
    """The probabilities of the labels of a mixture with known means: each data point has its own."""
    logits = log_weights + stats.norm.logpdf(y[:, None], mu, 0.8)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@gen
def point(mu, log_weights):
    z = trace("z", categorical(log_weights))
    trace("y", normal(mu[z], 0.8))


@gen
def by_array(mu, log_weights):
    z = trace("z", categorical(log_weights * mx.ones((POINTS, 1))))
    trace("y", normal(mu[z], 0.8))


@gen
def by_iid(mu, log_weights):
    z = trace("z", dist.iid(categorical(log_weights), POINTS))
    trace("y", normal(mu[z], 0.8))


@gen
def by_vmap(mu, log_weights):
    trace("in", vmap(point, in_axes=(None, 0))(mu, log_weights * mx.ones((POINTS, 1))))


@gen
def by_map(mu, log_weights):
    trace("in", map_over(point)([mu] * POINTS, [log_weights] * POINTS))


@gen
def by_loop(mu, log_weights):
    for i in range(POINTS):
        z = trace(("z", i), categorical(log_weights))
        trace(("y", i), normal(mu[z], 0.8))


FORMS = {
    "array": (by_array, ("z",), ("y",)),
    "iid": (by_iid, ("z",), ("y",)),
    "vmap": (by_vmap, ("in", "z"), ("in", "y")),
    "map_over": (by_map, ("in", None, "z"), ("in", None, "y")),
    "loop": (by_loop, ("z", None), ("y", None)),
}


def of_form(address, values):
    if None not in address:
        return {address: mx.array(values)}
    return {tuple(i if part is None else part for part in address): v for i, v in enumerate(values)}


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_a_mixture_are_drawn_together(form):
    """40 labels: of the means of each, 300 chains each drawn once after one sweep, none is off by 4.5 errors.

    Catches terms given to the wrong element, a prior left out (that of an iid too), and one uniform for all.
    """
    model, z, y = FORMS[form]
    rng = np.random.default_rng(0)
    mu, log_weights = np.array([-1.0, 0.0, 1.5], dtype=np.float32), np.log([0.2, 0.5, 0.3]).astype(np.float32)
    data = (mu[rng.choice(K, POINTS)] + rng.normal(size=POINTS)).astype(np.float32)
    call, observations = model(mx.array(mu), mx.array(log_weights)), of_form(y, [float(v) for v in data])
    if None not in y:
        observations = of_form(y, data)
    start = call.generate(observations, key=mx.random.key(0)).trace
    latent = [a for a in start.choices.addresses() if a[-1] == "z" or a[0] == "z"]
    (site,) = find_sites(start, latent)
    assert site.together and site.size == POINTS
    post = gibbs(call, observations, draws=4, warmup=1, thin=1, chains=300, key=1)
    columns = post[z] if None not in z else mx.stack([post[a] for a in latent], axis=-1)
    labels = np.array(columns).reshape(-1, POINTS)
    exact = labels_given(mu, data, log_weights)
    for k in range(K):
        off = ((labels == k).mean(axis=0) - exact[:, k]) / np.sqrt(exact[:, k] * (1 - exact[:, k]) / len(labels))
        assert np.all(np.abs(off) < 4.5), off
    correlations = np.corrcoef(labels[:, labels.std(axis=0) > 0].T)
    assert np.abs(correlations - np.eye(len(correlations))).max() < 4.5 / math.sqrt(len(labels)) * 1.2
    # Nothing was rejected: the share that moved is that of two independent draws.
    moved = 1 - (exact**2).sum(axis=1).mean()
    assert abs(mx.mean(post.stats["changed"]).item() - moved) < 4.5 * math.sqrt(0.25 / labels.size)


@gen
def line_of_spins(n):
    s = trace("s", flip(mx.full((n,), 0.5)))
    agree = mx.sum((s[1:] == s[:-1]).astype(mx.float32))
    trace("y", normal(agree, 1.5))


def test_an_array_whose_elements_depend_on_each_other_is_swept_element_by_element():
    """Twelve spins, so that a run replays one element's graph; their agreement has a known posterior by enumeration."""
    n, y = 12, 9.0
    start = line_of_spins(n).generate({"y": y}, key=mx.random.key(0)).trace
    (site,) = find_sites(start, [("s",)])
    assert not site.together and len(sweep_kernel([site]).stages) == 3
    post = gibbs(line_of_spins(n), {"y": y}, draws=4, warmup=30, thin=12, chains=400, key=2)
    assert post.execution == "replayed"
    agree = np.arange(n)
    weights = np.array([math.comb(n - 1, k) for k in agree]) * stats.norm.pdf(y, agree, 1.5)
    weights /= weights.sum()
    s = np.array(post["s"]).reshape(-1, n)
    found = np.bincount((s[:, 1:] == s[:, :-1]).sum(axis=1), minlength=n)
    rare = weights * len(s) < 5
    observed, expected = (np.append(part[~rare], part[rare].sum()) for part in (found, weights * len(s)))
    assert stats.chisquare(observed, expected).pvalue > 1e-4
    assert np.abs(s.mean(axis=0) - 0.5).max() < 4.5 * math.sqrt(0.25 / len(s)) * 1.3
    changed = mx.mean(post.stats["changed"]).item()
    assert 0.05 < changed < 0.6


def test_the_elementwise_run_takes_the_steps_of_the_kernel():
    """``changed`` counts all sites once, and the values that are put are those that were drawn."""

    @gen
    def model():
        k = trace("k", flip(0.5))
        z = trace("z", flip(mx.full((9,), 0.5)))
        trace("y", normal(1.0 * mx.sum(z == k), 1.0))

    kernel = sweep_kernel(find_sites(model().generate({"y": 0.0}, key=1).trace, [("k",), ("z",)]))
    state = kernel.init(model().generate({"k": 1, "z": mx.zeros(9, dtype=mx.int32), "y": 0.0}).trace)
    for seed in range(20):
        old = np.append(np.array(state[0]["z"]), state[0]["k"].item())
        state, info = kernel.step(state, mx.random.key(seed))
        new = np.append(np.array(state[0]["z"]), state[0]["k"].item())
        assert info["changed"].item() == pytest.approx((old != new).mean())
        assert state[0].score.item() == pytest.approx(model().assess(state[0].choices).score.item(), abs=1e-4)
        assert mx.array_equal(state[1][0], state[0]["z"]).item() and state[2].item() == state[3].item() == 0


def test_a_weak_dependence_that_is_not_seen_is_corrected():
    """Elements that were taken to be independent, and are not: a joint draw is accepted as Metropolis-Hastings."""

    @gen
    def model():
        z = trace("z", flip(mx.array([0.4, 0.5, 0.7])))
        trace("y", normal(1.0 * z[0] * z[1] + z[2], 1.0))

    start = model().generate({"y": 1.7}, key=mx.random.key(0)).trace
    (site,) = find_sites(start, [("z",)])
    assert not site.together
    kernel = sweep_kernel([site._replace(together=True)])
    batch = model().vgenerate({"y": 1.7}, 400, key=mx.random.key(1)).trace
    post = run_kernel(kernel, batch, draws=5, warmup=20, thin=10, observations={"y": 1.7}, key=2)
    states = list(itertools.product((0, 1), repeat=3))
    exact = np.array([np.exp(model().assess({"z": mx.array(z), "y": 1.7}).score.item()) for z in states])
    codes = np.array(post["z"]).reshape(-1, 3) @ [4, 2, 1]
    observed = np.bincount(codes, minlength=8)
    assert stats.chisquare(observed, exact / exact.sum() * len(codes)).pvalue > 1e-4


def test_values_that_only_some_elements_may_take():
    """Elements with bounds of their own: the range is that of all, and each keeps to its own."""

    @gen
    def model():
        n = trace("n", discrete_uniform(mx.array([0, 2]), mx.array([1, 5])))
        trace("y", normal(1.0 * n, 2.0))

    post = gibbs(model(), {"y": mx.array([0.4, 3.0])}, draws=10, warmup=2, chains=300, key=1)
    for i, (lo, hi, y) in enumerate([(0, 1, 0.4), (2, 5, 3.0)]):
        values = np.arange(lo, hi + 1)
        weights = stats.norm.pdf(y, values, 2.0)
        observed = np.bincount(np.array(post["n"])[..., i].ravel(), minlength=hi + 1)
        assert observed[:lo].sum() == 0
        assert stats.chisquare(observed[lo:], weights / weights.sum() * 3000).pvalue > 1e-4


# what cannot be swept


def test_errors():
    @gen
    def model():
        k, x = trace("k", flip(0.5)), trace("x", normal(0, 1))
        trace("y", normal(x + k, 1.0))

    batch, _ = model().vgenerate({"y": 1.0}, 3, key=mx.random.key(0))
    for start in (batch, batch[0]):
        with pytest.raises(UsageError, match="(?s)gibbs cannot enumerate a choice: it is continuous.*'x'"):
            gibbs_kernel(select("k", "x"))(start, mx.random.key(1))

    @gen
    def inner():
        trace("f", flip(0.5))

    @gen
    def sometimes():
        trace("in", mask(inner)(trace("k", flip(0.5))))

    with pytest.raises(UsageError, match="exists in some runs only"):
        gibbs_kernel("in")(sometimes().vsimulate(4, key=mx.random.key(0)), mx.random.key(1))
    message = "(?s)decides which other choices there are.*'k'"
    with pytest.raises(UsageError, match=message):
        gibbs_kernel("k")(sometimes().vsimulate(4, key=mx.random.key(0)), mx.random.key(1))
    with pytest.raises(UsageError, match=message):
        gibbs_kernel("k")(sometimes().generate({"k": 1}, key=mx.random.key(0)).trace, mx.random.key(1))
    with pytest.raises(UsageError, match=message):
        gibbs(sometimes(), selection="k")
    with pytest.raises(BatchError):
        genmlx.vectorized.run(
            lambda key, top: gibbs_kernel("n")(_uniform(top).simulate(key=key), key).score,
            2,
            mx.random.key(0),
            genmlx.vectorized.Lanes(mx.array([2, 3])),
        )


@gen
def _uniform(top):
    trace("n", discrete_uniform(0, top))
