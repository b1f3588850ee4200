"""Enumeration against sums written out, one run for each combination, conjugate posteriors and hmm_forward."""

import itertools
import math
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from scipy.special import betaln

from genmlx import (
    beta,
    binomial,
    categorical,
    choicemap,
    delta,
    dirichlet,
    discrete_uniform,
    dist,
    flip,
    gen,
    geometric,
    map_retval,
    mask,
    mix,
    normal,
    poisson,
    scan,
    splice,
    switch,
    trace,
    unfold,
    uniform,
    vmap,
)
from genmlx.dist.bijectors import affine
from genmlx.errors import BatchError, ImpossibleObservation, ParameterError, UnknownAddress, UsageError
from genmlx.inference import enumerate_posterior, hmm_forward, hmm_smooth
from genmlx.inference.exact import enumeration

PRIOR, TRANSITION = [0.2, 0.3, 0.5], [[0.4, 0.4, 0.2], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05]]
EMISSION = [[0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.7, 0.2, 0.1]]


def log(table) -> mx.array:
    return mx.log(mx.array(table))


def real(x) -> mx.array:
    return mx.array(x).astype(mx.float32)


runs = [0]


@gen
def hidden_markov(steps):
    runs[0] += 1
    logits = log(PRIOR)
    for t in range(steps):
        z = trace(("z", t), categorical(logits))
        logits = log(TRANSITION)[z]
        trace(("y", t), categorical(log(EMISSION)[z]))


@gen
def step(t, state):
    z = trace("z", categorical(log(TRANSITION)[state]))
    trace("y", categorical(log(EMISSION)[z]))
    return z


@gen
def as_unfold(steps):
    z = trace("z", categorical(log(PRIOR)))
    trace("y", categorical(log(EMISSION)[z]))
    trace("rest", unfold(step)(steps - 1, z))


@gen
def scanned(state, x):
    z = trace("z", categorical(log(TRANSITION)[state]))
    trace("y", categorical(log(EMISSION)[z]))
    return z, z


@gen
def as_scan(steps):
    z = trace("z", categorical(log(PRIOR)))
    trace("y", categorical(log(EMISSION)[z]))
    trace("rest", scan(scanned)(z, mx.zeros(steps - 1)))


# every combination of values, one run each


def one_by_one(call, observations: dict, supports: dict) -> dict[tuple, float]:
    """The joint density of each combination of the latents in ``supports`` that is a run, with these choices."""
    found = {}
    for values in itertools.product(*supports.values()):
        given = choicemap({a: v for a, v in zip(supports, values, strict=True) if v is not None}) | observations
        run = call.generate(given, key=0, strict=False).trace
        if set(run.choices) == set(given):
            found[values] = math.exp(run.score.item())
    return found


def assert_agrees(result, table: dict, supports: dict) -> None:
    """log ML, the marginals, means and variances, and the mode."""
    total = sum(table.values())
    assert result.log_ml.item() == pytest.approx(math.log(total), abs=3e-6)
    for i, (address, values) in enumerate(supports.items()):
        values = [v for v in values if v is not None]
        p = np.array([sum(q for cell, q in table.items() if cell[i] == v) / total for v in values])
        support = result.support(address).tolist()
        mine = dict(zip(support, result.marginal(address).tolist(), strict=True))
        np.testing.assert_allclose([mine.get(v, 0.0) for v in values], p, atol=1e-6)
        assert sum(mine.values()) == pytest.approx(p.sum(), abs=1e-6)
        assert result.present(address).item() == pytest.approx(p.sum(), abs=1e-6)
        mean = p @ values / p.sum()
        assert result.mean(address).item() == pytest.approx(mean, abs=1e-5, rel=1e-7)
        variance = p @ (np.array(values) - mean) ** 2 / p.sum()
        assert result.variance(address).item() == pytest.approx(variance, abs=1e-5)
        assert result.std(address).item() == pytest.approx(math.sqrt(variance), abs=1e-4)
    best = max(table, key=lambda cell: table[cell])
    expected = {a: v for a, v in zip(supports, best, strict=True) if v is not None}
    assert result.mode() == choicemap(expected)


@gen
def dependent():
    n = trace("n", discrete_uniform(1, 3))
    k = trace("k", discrete_uniform(0, n))
    j = trace("j", discrete_uniform(k, 2 * n))
    trace("y", normal(real(k + j), 1.0))


@gen
def far_apart():
    """Supports of the second choice that have no value in common, ten million away."""
    n = trace("n", discrete_uniform(0, 2))
    trace("k", discrete_uniform(20_000_001 + 3 * n, 20_000_003 + 3 * n))
    trace("y", normal(real(n), 1.0))


@gen
def counts():
    n = trace("n", binomial(4, 0.3))
    k = trace("k", binomial(n, 0.6))
    trace("y", poisson(0.5 + k))


@gen
def one():
    return real(trace("k", categorical(log([0.2, 0.3, 0.5]))))


@gen
def other():
    f = trace("f", flip(0.25))
    return real(trace("k", flip(0.3))) + 5.0 * f


@gen
def branches():
    i = trace("i", flip(0.4))
    trace("y", normal(trace("s", switch(one, other)(i)), 1.0))


@gen
def masked():
    on = trace("on", flip(0.3))
    k = trace("k", mask(one)(on == 1))
    trace("y", normal(-1.0 if k is None else mx.where(on == 1, k, -1.0), 1.0))


@gen
def nested_branches():
    i = trace("i", flip(0.5))
    trace("s", switch(branches, counts)(i))


@gen
def wrapped():
    k = trace("a", map_retval(one, lambda x: x * 2)())
    splice(mix([lows, highs], [0.3, -0.2])(k))


@gen
def lows(k):
    trace("z", normal(k, 1.0))


@gen
def highs(k):
    trace("z", normal(k + 2.0, 2.0))


@gen
def derived():
    a, b = trace("a", discrete_uniform(0, 4)), trace("b", discrete_uniform(0, 4))
    total = trace("sum", delta(a + b))
    trace("y", normal(real(total), 0.5))


@gen
def several_kinds():
    trace("a", dist.mixture([discrete_uniform(1, 3), discrete_uniform(2, 5)], mx.zeros(2)))
    trace("b", dist.truncated(poisson(3.0), 1, 4))
    trace("c", dist.beta_binomial(3, 0.7, 1.5))


R = range
CASES = {
    "dependent": (dependent(), {"y": 2.5}, {"n": [1, 2, 3], "k": R(4), "j": R(7)}),
    "far apart": (far_apart(), {"y": 1.2}, {"n": R(3), "k": R(20_000_001, 20_000_010)}),
    "counts": (counts(), {"y": 2}, {"n": R(5), "k": R(5)}),
    "branches": (branches(), {"y": 1.7}, {"i": R(2), ("s", "k"): R(3), ("s", "f"): [0, 1, None]}),
    "masked": (masked(), {"y": 0.4}, {"on": R(2), ("k", "k"): [0, 1, 2, None]}),
    "nested": (
        nested_branches(),
        {("s", "y"): 1.0},
        {
            "i": R(2),
            ("s", "i"): [0, 1, None],
            ("s", "s", "k"): [0, 1, 2, None],
            ("s", "s", "f"): [0, 1, None],
            ("s", "n"): [*R(5), None],
            ("s", "k"): [*R(5), None],
        },
    ),
    "wrapped": (wrapped(), {"z": 3.0}, {("a", "k"): R(3), "component": R(2)}),
    "several kinds": (several_kinds(), {}, {"a": R(1, 6), "b": R(1, 5), "c": R(4)}),
}


@pytest.mark.parametrize("name", CASES)
def test_against_every_combination(name):
    call, observations, supports = CASES[name]
    result = enumerate_posterior(call, observations, key=0)
    assert {a if len(a) > 1 else a[0] for a in result.addresses()} == set(supports)
    table = one_by_one(call, observations, supports)
    assert_agrees(result, table, supports)
    for seed in (1, 2, 3):  # whatever was drawn to find the choices
        again = enumerate_posterior(call, observations, key=seed)
        assert again.log_ml.item() == pytest.approx(result.log_ml.item(), abs=1e-6)
        assert [again.support(a).tolist() for a in supports] == [result.support(a).tolist() for a in supports]


def test_a_choice_that_a_branch_does_not_have_counts_once():
    """P(y) = sum over i, as written out; a table without a place for "not there" counts branch 0 twice for f."""
    result = enumerate_posterior(branches(), {"y": 1.7})
    density = stats.norm(0, 1).pdf
    zero = 0.6 * sum(p * density(1.7 - k) for k, p in enumerate([0.2, 0.3, 0.5]))
    cells = itertools.product(((0, 0.75), (1, 0.25)), ((0, 0.7), (1, 0.3)))
    unit = 0.4 * sum(p * q * density(1.7 - k - 5 * f) for (f, p), (k, q) in cells)
    assert result.log_ml.item() == pytest.approx(math.log(zero + unit), abs=1e-6)
    assert result.present(("s", "f")).item() == pytest.approx(unit / (zero + unit), abs=1e-6)
    assert result.log_joint.shape == (2, 3, 3)
    assert ("s", "f") not in enumerate_posterior(branches(), {"y": 1.7}).mode()


@pytest.mark.parametrize("model, rest", [(hidden_markov, None), (as_unfold, "rest"), (as_scan, "rest")])
def test_hidden_markov_models(model, rest):
    """Case 41, and smoothing, for three ways to write the model."""
    seen = [0, 0, 1, 2]
    at = [(name if t == 0 else (rest, t - 1, name)) if rest else (name, t) for name in "zy" for t in range(4)]
    states, observed = at[:4], dict(zip(at[4:], seen, strict=True))
    result = enumerate_posterior(model(4), observed)
    ll = np.log(np.array(EMISSION)[:, seen].T)
    smooth = hmm_smooth(PRIOR, TRANSITION, ll)
    assert result.log_ml.item() == pytest.approx(-4.876451, abs=2e-6)
    assert result.log_joint.shape == (3, 3, 3, 3)
    for t, address in enumerate(states):
        np.testing.assert_allclose(result.marginal(address), smooth.marginals[t], atol=1e-6)
    for t in range(3):
        np.testing.assert_allclose(result.marginal(states[t], states[t + 1]), smooth.pairwise[t], atol=1e-6)
        np.testing.assert_allclose(result.marginal(states[t + 1], states[t]), smooth.pairwise[t].T, atol=1e-6)


def test_the_body_runs_once_and_cells_are_in_the_order_of_the_choices():
    observed = {("y", t): t % 3 for t in range(3)}
    runs[0] = 0
    result = enumerate_posterior(hidden_markov(3), observed)
    assert runs[0] == 2  # once in a batch of two, to find the choices
    for cell in [(0, 1, 2), (2, 1, 0), (2, 2, 1)]:
        score = hidden_markov(3).assess(observed | {("z", t): z for t, z in enumerate(cell)}).score
        assert result.log_joint[cell].item() == pytest.approx(score.item(), abs=1e-6)


def test_densities_are_computed_for_the_choices_they_depend_on():
    """Fourteen states: tables of 4.8 million cells, of which there would be 28 if each density had its own."""
    observed = {("y", t): t % 3 for t in range(14)}
    hmm = hmm_forward(PRIOR, TRANSITION, np.log(np.array(EMISSION)[:, [t % 3 for t in range(14)]].T))
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    result = enumerate_posterior(hidden_markov(14), observed)
    assert result.log_joint.size == 3**14
    assert mx.get_peak_memory() - before < 6 * 4 * 3**14
    assert result.log_ml.item() == pytest.approx(hmm.log_ml.item(), abs=1e-5)
    np.testing.assert_allclose(result.marginal(("z", 13)), hmm.filtered[13], atol=1e-5)


# arrays


@gen
def labels(n):
    z = trace("z", categorical(mx.broadcast_to(log([0.5, 0.3, 0.2]), (n, 3))))
    trace("y", normal(mx.array([-1.0, 0.5, 2.0])[z], 1.0))
    trace("total", normal(mx.sum(real(z)), 0.5))


@gen
def repeated(n):
    z = trace("z", dist.iid(categorical(log([0.5, 0.3, 0.2])), n))
    trace("y", normal(mx.array([-1.0, 0.5, 2.0])[z], 1.0))
    trace("total", normal(mx.sum(real(z)), 0.5))


@gen
def label():
    z = trace("z", categorical(log([0.5, 0.3, 0.2])))
    trace("y", normal(mx.array([-1.0, 0.5, 2.0])[z], 1.0))
    return real(z)


@gen
def mapped(n):
    trace("total", normal(mx.sum(splice(vmap(label, axis_size=n)())), 0.5))


@pytest.mark.parametrize("model", [labels, repeated, mapped])
def test_the_elements_of_an_array_are_axes(model):
    ys, total = [-0.5, 1.0, 2.5], 4.0
    result = enumerate_posterior(model(3), {"y": mx.array(ys), "total": total})
    table, means, p = np.zeros((3, 3, 3)), [-1.0, 0.5, 2.0], [0.5, 0.3, 0.2]
    for z in itertools.product(range(3), repeat=3):
        parts = [p[k] * stats.norm(means[k], 1).pdf(y) for k, y in zip(z, ys, strict=True)]
        table[z] = math.prod(parts) * stats.norm(sum(z), 0.5).pdf(total)
    assert result.log_ml.item() == pytest.approx(math.log(table.sum()), abs=2e-6)
    np.testing.assert_allclose(result.log_joint, np.log(table), atol=1e-5)
    table /= table.sum()
    each = np.stack([table.sum((1, 2)), table.sum((0, 2)), table.sum((0, 1))])
    assert result.addresses() == [("z",)] and result.axes("z") == [0, 1, 2]
    np.testing.assert_allclose(result.marginal("z"), each, atol=1e-6)
    np.testing.assert_allclose(result.mean("z"), each @ [0, 1, 2], atol=1e-5)
    np.testing.assert_allclose(result.marginal(("z", 1)), each[1], atol=1e-6)
    np.testing.assert_allclose(result.marginal(("z", 2), ("z", 0)), table.sum(1).T, atol=1e-6)
    assert result.mean(("z", -1)).item() == pytest.approx(each[2] @ [0, 1, 2], abs=1e-5)
    assert result.mode()["z"].tolist() == list(np.unravel_index(table.argmax(), (3, 3, 3)))
    with pytest.raises(UsageError, match="a joint marginal takes single numbers"):
        result.marginal("z", ("z", 0))


def test_elements_of_an_array_that_exist_one_by_one():
    """Two sensors, each on or off by itself, seen through their sum."""

    @gen
    def absent():
        return mx.array(0.0)

    @gen
    def sensor():
        return trace("s", switch(absent, one)(trace("i", flip(0.4))))

    @gen
    def model():
        trace("y", normal(mx.sum(trace("v", vmap(sensor, axis_size=2)())), 0.5))

    result = enumerate_posterior(model(), {"y": 2.6})
    states = [(0, None, 0.6)] + [(1, k, 0.4 * p) for k, p in enumerate([0.2, 0.3, 0.5])]
    cells = list(itertools.product(states, repeat=2))
    p = np.array([a[2] * b[2] * stats.norm((a[1] or 0) + (b[1] or 0), 0.5).pdf(2.6) for a, b in cells])
    assert result.log_ml.item() == pytest.approx(math.log(p.sum()), abs=2e-6)
    p /= p.sum()
    for e in range(2):
        mine = result.marginal(("v", "s", "k", e))
        np.testing.assert_allclose(
            mine, [sum(q for q, c in zip(p, cells, strict=True) if c[e][1] == k) for k in R(3)], atol=1e-6
        )
        on = sum(q for q, c in zip(p, cells, strict=True) if c[e][0])
        assert result.present(("v", "s", "k"))[e].item() == pytest.approx(on, abs=1e-6)
    alone = enumerate_posterior(model(), {"y": 1.9, ("v", "i"): [0, 1]}).mode()["v", "s", "k"]
    assert alone.active.tolist() == [False, True] and alone.value[1].item() == 2


def test_a_matrix_and_elements_of_different_supports():
    @gen
    def model():
        z = trace("z", discrete_uniform(mx.array([[0, 1], [0, 2]]), mx.array([[1, 2], [0, 4]])))
        trace("y", normal(mx.sum(real(z)), 1.0))

    result = enumerate_posterior(model(), {"y": 4.0})
    assert result.support("z").tolist() == [0, 1, 2, 3, 4] and result.axes(("z", 1, 0)) == [2]
    cells = list(itertools.product([0, 1], [1, 2], [0], [2, 3, 4]))
    weights = np.array([stats.norm(sum(c), 1).pdf(4.0) for c in cells])
    assert result.log_ml.item() == pytest.approx(math.log(weights.mean()), abs=2e-6)
    np.testing.assert_allclose(result.mean("z").reshape(-1), weights @ np.array(cells) / weights.sum(), atol=1e-5)


# grids


@gen
def conjugate():
    mu = trace("mu", normal(0, 1))
    trace("y", normal(mu, 0.5))


def test_a_grid_integrates_a_smooth_density():
    """Case 42: mean 1.2, variance 0.2, log ML -1.930510; the trapezoidal rule is exact to rounding here."""
    result = enumerate_posterior(conjugate(), {"y": 1.5}, grids={"mu": mx.linspace(-6, 7, 131)})
    assert result.log_ml.item() == pytest.approx(-1.930510, abs=2e-6)
    assert result.mean("mu").item() == pytest.approx(1.2, abs=1e-5)
    assert result.variance("mu").item() == pytest.approx(0.2, abs=1e-5)
    assert result.mode()["mu"].item() == pytest.approx(1.2, abs=1e-5)
    density = np.array(result.marginal("mu")) / 0.1
    expected = stats.norm(1.2, math.sqrt(0.2)).pdf(np.linspace(-6, 7, 131))
    np.testing.assert_allclose(density, expected, atol=1e-5)


def test_a_grid_of_uneven_points():
    """A grid that is ten times finer on the left; and a coarse one, whose error is the trapezoidal rule's."""
    points = np.concatenate([np.linspace(-6, 1, 700), np.linspace(1.1, 7, 60)])
    result = enumerate_posterior(conjugate(), {"y": 1.5}, grids={"mu": points})
    density = stats.norm(0, 1).pdf(points) * stats.norm(points, 0.5).pdf(1.5)
    assert result.log_ml.item() == pytest.approx(math.log(np.trapezoid(density, points)), abs=2e-6)
    assert result.mode()["mu"].item() == pytest.approx(1.2, abs=0.06)
    wide = np.concatenate([np.linspace(-6, 1.5, 751), np.arange(1.7, 7, 0.5)])
    assert enumerate_posterior(conjugate(), {"y": 1.5}, {"mu": wide}).mode()["mu"].item() == pytest.approx(
        1.2, abs=0.01
    )
    coarse = np.array([0.0, 1.0, 3.0])
    rule = np.trapezoid(stats.norm(0, 1).pdf(coarse) * stats.norm(coarse, 0.5).pdf(1.5), coarse)
    result = enumerate_posterior(conjugate(), {"y": 1.5}, grids={"mu": coarse})
    assert result.log_ml.item() == pytest.approx(math.log(rule), abs=2e-6)


def test_given_volumes():
    """Gauss-Legendre nodes integrate beta(2, 3) times p^14 (1-p)^6 exactly: B(16, 9) / B(2, 3)."""

    @gen
    def coin():
        p = trace("p", beta(2.0, 3.0))
        trace("y", dist.iid(flip(p), 20))

    nodes, weights = np.polynomial.legendre.leggauss(14)
    grid = (0.5 * (nodes + 1), np.log(0.5 * weights))
    result = enumerate_posterior(coin(), {"y": [1] * 14 + [0] * 6}, grids={"p": grid})
    assert result.log_ml.item() == pytest.approx(betaln(16, 9) - betaln(2, 3), abs=1e-5)
    assert result.mean("p").item() == pytest.approx(16 / 25, abs=1e-5)


def test_discrete_and_continuous_together():
    """The weight of two components with a scale on a grid, against scipy's integrals."""

    @gen
    def model():
        k = trace("k", flip(0.3))
        mu = trace("mu", normal(mx.where(k == 1, 2.0, -1.0), 0.7))
        for i in range(2):
            trace(("y", i), normal(mu, 1.0))

    ys = [0.3, 0.9]
    result = enumerate_posterior(model(), {("y", i): y for i, y in enumerate(ys)}, {"mu": mx.linspace(-7, 8, 300)})

    def density(mu, m):
        return stats.norm(m, 0.7).pdf(mu) * math.prod(stats.norm(mu, 1).pdf(y) for y in ys)

    off, on = 0.7 * quad(density, -9, 9, args=(-1.0,))[0], 0.3 * quad(density, -9, 9, args=(2.0,))[0]
    assert result.log_ml.item() == pytest.approx(math.log(off + on), abs=3e-6)
    np.testing.assert_allclose(result.marginal("k"), np.array([off, on]) / (off + on), atol=2e-6)
    assert result.marginal("k", "mu").shape == (2, 300)


def test_an_infinite_support_on_a_grid_of_whole_numbers():
    """poisson(3) + poisson(1) = 5: given the sum, the first is binomial(5, 3/4), and the sum is poisson(4)."""

    @gen
    def model():
        a = trace("a", poisson(3.0))
        b = trace("b", poisson(1.0))
        trace("y", delta(a + b))

    result = enumerate_posterior(model(), {"y": 5}, grids={"a": mx.arange(40), "b": range(40)})
    assert result.log_ml.item() == pytest.approx(stats.poisson(4).logpmf(5), abs=2e-6)
    np.testing.assert_allclose(result.marginal("a")[:6], stats.binom(5, 0.75).pmf(range(6)), atol=1e-6)


def test_a_discrete_choice_of_fractions():
    """Half of a poisson: its values have probabilities, and its grid no volumes."""

    @gen
    def model():
        trace("h", dist.transformed(poisson(2.0), affine(0.0, 0.5)))

    result = enumerate_posterior(model(), grids={"h": [0.5 * i for i in range(30)]})
    assert result.log_ml.item() == pytest.approx(0.0, abs=1e-6) and result.mean("h").item() == pytest.approx(
        1.0, abs=1e-5
    )


def test_a_grid_for_a_choice_of_one_branch():
    """Volumes are of the cells where the choice exists: P(y) = (N(y; 0, 1) + N(y; 0, sqrt 2)) / 2."""

    @gen
    def none():
        return mx.array(0.0)

    @gen
    def some():
        return trace("x", normal(0, 1))

    @gen
    def model():
        trace("y", normal(trace("s", switch(none, some)(trace("i", flip(0.5)))), 1.0))

    result = enumerate_posterior(model(), {"y": 0.8}, grids={("s", "x"): mx.linspace(-8, 8, 161)})
    a, b = stats.norm(0, 1).pdf(0.8), stats.norm(0, math.sqrt(2)).pdf(0.8)
    assert result.log_ml.item() == pytest.approx(math.log((a + b) / 2), abs=2e-6)
    assert result.present(("s", "x")).item() == pytest.approx(b / (a + b), abs=1e-6)
    assert result.mean(("s", "x")).item() == pytest.approx(0.4, abs=1e-5)
    assert result.variance(("s", "x")).item() == pytest.approx(0.5, abs=1e-5)


# results


def test_samples_have_the_joint_distribution():
    """Each cell's frequency within 5 standard errors, choices that do not exist included; scores are the table's."""
    result, n = enumerate_posterior(branches(), {"y": 1.7}), 40_000
    particles = result.sample(n, key=1)
    assert particles.log_ml.item() == result.log_ml.item() and particles.ess.item() == pytest.approx(n)
    f = particles["s", "f"]
    there = np.array(f.active)
    assert np.array_equal(there, np.array(particles["i"]) == 1)
    places = [np.array(particles["i"]), np.array(particles["s", "k"]), np.where(there, np.array(f.value), 2)]
    seen = Counter(zip(*[p.tolist() for p in places], strict=True))
    table = np.exp(np.array(result.log_joint, dtype=np.float64) - result.log_ml.item())
    for cell, p in np.ndenumerate(table):
        assert abs(seen.get(cell, 0) - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1e-9
    first = tuple(int(p[0]) for p in places)
    assert particles.traces.score[0].item() == pytest.approx(result.log_joint[first].item(), abs=1e-5)
    assert particles.traces[0]["y"].item() == pytest.approx(1.7)


def test_samples_of_arrays_and_of_what_follows_from_them():
    result = enumerate_posterior(labels(3), {"y": mx.array([-0.5, 1.0, 2.5]), "total": 4.0})
    drawn = np.array(result.sample(20_000, key=2)["z"])
    for k in range(3):
        np.testing.assert_allclose((drawn == k).mean(0), result.marginal("z")[:, k], atol=0.018)
    particles = enumerate_posterior(derived(), {"y": 3.0}).sample(50, key=0)
    assert np.array_equal(np.array(particles["sum"]), np.array(particles["a"]) + np.array(particles["b"]))


def test_a_support_has_no_meaning_where_a_choice_cannot_be():
    """Of j, where k > n: it would be infinite, and the density of y NaN."""

    @gen
    def model():
        n = trace("n", discrete_uniform(0, 2))
        k = trace("k", discrete_uniform(0, n))
        j = trace("j", discrete_uniform(0, 6 / real(n - k + 1)))
        trace("y", normal(real(j), mx.sqrt(real(n - k + 1))))

    result = enumerate_posterior(model(), {"y": 1.0})
    assert result.support("j").tolist() == list(range(7))
    cells = [(n, k, j) for n in R(3) for k in R(n + 1) for j in R(6 // (n - k + 1) + 1)]
    p = sum(stats.norm(j, math.sqrt(n - k + 1)).pdf(1.0) / 3 / (n + 1) / (6 // (n - k + 1) + 1) for n, k, j in cells)
    assert result.log_ml.item() == pytest.approx(math.log(p), abs=2e-6)


def test_a_support_has_no_meaning_in_a_branch_that_is_not_taken():
    @gen
    def some(i):
        trace("k", discrete_uniform(0, 4 / real(i)))

    @gen
    def none(i):
        pass

    @gen
    def model():
        i = trace("i", discrete_uniform(0, 2))
        trace("s", switch(none, some, some)(i, i))

    for seed in range(4):
        result = enumerate_posterior(model(), key=seed)
        assert result.support(("s", "k")).tolist() == [0, 1, 2, 3, 4] and abs(result.log_ml.item()) < 1e-6
        np.testing.assert_allclose(result.marginal(("s", "k")), [8 / 45] * 3 + [1 / 15] * 2, atol=1e-6)


def test_a_choice_that_follows_from_others_is_no_axis():
    result = enumerate_posterior(derived(), {"y": 3.1})
    assert result.addresses() == [("a",), ("b",)]
    p = sum(stats.norm(a + b, 0.5).pdf(3.1) / 25 for a in R(5) for b in R(5))
    assert result.log_ml.item() == pytest.approx(math.log(p), abs=2e-6)


def test_nothing_latent():
    result = enumerate_posterior(conjugate(), {"mu": 1.0, "y": 1.5})
    assert result.log_joint.shape == () and result.addresses() == [] and len(result.mode()) == 0
    expected = stats.norm(0, 1).logpdf(1.0) + stats.norm(1.0, 0.5).logpdf(1.5)
    assert result.log_ml.item() == pytest.approx(expected, abs=1e-6)
    assert result.sample(3, key=0).n == 3


def test_many_observations_keep_their_digits():
    """3000 of them: a float32 sum one after the other is off by a few hundredths."""

    @gen
    def model():
        k = trace("k", flip(0.5))
        for i in range(3000):
            trace(("y", i), normal(0.01 * k, 1.0))

    ys = np.random.default_rng(0).normal(0.005, 1, 3000).astype(np.float32)
    result = enumerate_posterior(model(), {("y", i): float(y) for i, y in enumerate(ys)})
    logs = [stats.norm(m, 1).logpdf(ys.astype(np.float64)).sum() + math.log(0.5) for m in (0, 0.01)]
    assert result.log_ml.item() == pytest.approx(np.logaddexp(*logs), abs=1e-3)
    assert result.mean("k").item() == pytest.approx(1 / (1 + math.exp(logs[0] - logs[1])), abs=3e-4)


def test_it_prints():
    result = enumerate_posterior(labels(2), {"y": mx.array([-0.5, 1.0]), "total": 1.0})
    assert repr(result).startswith(f"<Enumeration of labels: 9 cells, log_ml {result.log_ml.item():.6g}")
    lines = str(result).split("\n")
    assert len(lines) == 4 and lines[1].split() == ["mean", "sd", "most", "probable"]
    p = result.marginal("z")[0]
    assert lines[2].startswith(f"'z'[0]  {result.mean('z')[0].item():.4g}")
    assert f"{mx.argmax(p).item()} ({mx.max(p).item():.3g})" in lines[2].split("  ")[-1].split(", ")[0]
    many = str(enumerate_posterior(labels(9), {"y": mx.zeros(9), "total": 1.0}, most=1e5))
    assert len(many.split("\n")) == 11


# errors


def test_observations_of_probability_zero():
    @gen
    def model():
        trace("y", uniform(real(trace("k", flip(0.5))), 2.0))

    result = enumerate_posterior(model(), {"y": 3.0})
    assert result.log_ml.item() == -math.inf
    assert str(result) == "<Enumeration of model: 2 cells, log_ml float('-inf')>"
    for statistic in (lambda: result.marginal("k"), lambda: result.mean("k"), result.mode, lambda: result.sample(3)):
        with pytest.raises(ImpossibleObservation, match="probability zero at every value"):
            statistic()


def test_some_values_are_impossible():
    """uniform(k, 2) at 0.5 leaves k = 0 only."""

    @gen
    def model():
        trace("y", uniform(real(trace("k", discrete_uniform(0, 1))), 2.0))

    result = enumerate_posterior(model(), {"y": 0.5})
    assert result.marginal("k").tolist() == [1.0, 0.0] and result.log_joint[1].item() == -math.inf


@gen
def branching():
    if trace("k", flip(0.5)) == 1:
        trace("x", flip(0.5))
    trace("y", normal(0, 1))


@gen
def unbounded():
    trace("k", geometric(0.5))


@gen
def wide(hi):
    trace("k", discrete_uniform(0, hi))


@gen
def wide_by_choice():
    trace("k", discrete_uniform(0, 10**9 * trace("n", flip(1.0))))


@gen
def unbounded_by_choice():
    n = trace("n", flip(0.5))
    trace("k", discrete_uniform(0, 1 / real(1 - n)))


@gen
def vectors():
    trace("p", dirichlet(mx.ones(2)))
    trace("c", dist.multinomial(3, mx.array([0.5, 0.5])))


@gen
def coins(n):
    for i in range(n):
        trace(("k", i), flip(0.5))


MU = {"mu": mx.linspace(-3, 3, 9)}
WRONG = [
    (lambda: enumerate_posterior(conjugate(), {"y": 1.0}), UsageError, "continuous .normal., at 'mu' in conjugate"),
    (lambda: enumerate_posterior(unbounded()), UsageError, "infinitely many values, at 'k' in unbounded"),
    (lambda: enumerate_posterior(unbounded_by_choice()), UsageError, "infinitely many values, at 'k'"),
    (lambda: enumerate_posterior(vectors(), {"p": [0.5, 0.5]}), UsageError, "takes values that are .* at 'c'"),
    (lambda: enumerate_posterior(vectors(), {"c": [1, 2]}, {"p": [0.1, 0.5]}), UsageError, "no grid of .* at 'p'"),
    (lambda: enumerate_posterior(branching(), {"y": 1.0}), BatchError, "cannot be batched at 'k' in branching"),
    (lambda: enumerate_posterior(coins(60)), ParameterError, r"1.15e\+18 cells \(2 of \('k', 0\), .* in coins"),
    (lambda: enumerate_posterior(coins(5), most=31), ParameterError, "would have 32 cells"),
    (lambda: enumerate_posterior(wide(10**9)), ParameterError, r"would have 1e\+09 cells \(1000000001 of 'k'\)"),
    (lambda: enumerate_posterior(wide_by_choice()), ParameterError, r"would have 1e\+09 cells \(1000000001 of 'k'\)"),
    (lambda: enumerate_posterior(unbounded(), grids={"k": [0.0, 1.5]}), ParameterError, "a point that is not, at 'k'"),
    (lambda: enumerate_posterior(coins(2), grids={("k", 9): [0.0, 1.0]}), UnknownAddress, "the run never visits"),
    (lambda: enumerate_posterior(coins(2), {("j", 1): 1}), UnknownAddress, "never visits"),
    (lambda: enumerate_posterior(conjugate(), {"mu": 1.0}, MU), UsageError, "a grid for an observed choice at 'mu'"),
    (lambda: enumerate_posterior(conjugate(), {"y": 1.0}, {"mu": [1.0, 0.0]}), ParameterError, "do not increase"),
    (lambda: enumerate_posterior(conjugate(), {"y": 1.0}, {"mu": [1.0]}), ParameterError, "fewer than two points"),
    (lambda: enumerate_posterior(conjugate(), {"y": 1.0}, {"mu": ([1.0, 2.0], [0.0])}), ParameterError, "log volumes"),
    (lambda: enumerate_posterior(coins(1), grids={("k", 0): ([0, 1], [0.0, 0.0])}), UsageError, "have no volumes"),
    (lambda: enumerate_posterior(coins(1), grids=[1]), UsageError, "grids is a list"),
    (lambda: enumerate_posterior(conjugate, {"y": 1.0}), UsageError, "not a call"),
    (lambda: enumerate_posterior(coins(2)).marginal(), UsageError, "marginal of nothing"),
    (lambda: enumerate_posterior(coins(2)).marginal(("k", 0), ("k", 0)), UsageError, "names a latent twice"),
    (lambda: enumerate_posterior(coins(2)).mean(("k", 2)), UnknownAddress, "no latent choice"),
    (lambda: enumerate_posterior(labels(2), {"y": [0, 0], "total": 0}).mean(("z", 2)), UnknownAddress, "no latent"),
    (lambda: enumerate_posterior(coins(2)).sample(0), ParameterError, "n must be a whole number"),
]


@pytest.mark.parametrize("wrong, error, message", WRONG)
def test_errors(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_a_density_that_is_infinite_at_a_point_of_a_grid():
    @gen
    def model():
        trace("p", beta(0.5, 0.5))

    with pytest.raises(ParameterError, match=r"the log density is infinite at choicemap\({'p': 0.0}\)"):
        enumerate_posterior(model(), grids={"p": mx.linspace(0, 1, 11)})


def test_the_rows_of_a_table_end():
    result = enumerate_posterior(coins(21), most=1e7)
    assert str(result).endswith("... 1 more") and str(result).count("\n") == enumeration._ROWS + 2
