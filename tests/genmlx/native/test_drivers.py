"""The samplers in restricted Python: their noise, their mechanics, and one transition after another.

Each transition is compared with another implementation that is given the same noise: the Python original, and a
no-U-turn sampler that builds its trees by recursion.
"""

import ctypes
import inspect
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from native_code import compiled
from native_densities import gaussian, native_gaussian
from posteriors import COVARIANCE, MEAN
from scipy import special, stats

from genmlx import random
from genmlx.inference.warmup import DualAveraging
from genmlx.native import drivers as drivers_module
from genmlx.native import restricted
from genmlx.native.chains import METHODS, NativeWalk
from genmlx.native.drivers import chain as mechanics
from genmlx.native.drivers import drivers, hmc, noise, nuts, running, walks
from genmlx.native.restricted import WORD, Word, structure

KEYS = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
PRECISION = np.linalg.inv(COVARIANCE)


def test_words_are_splitmix_twice():
    """Against the SplitMix64 of the session's keys."""
    word = compiled(noise.word, Word, Word, Word, Word)
    golden = 0x9E3779B97F4A7C15
    for first, second in (KEYS, (0, 0), (WORD, 1)):
        for n in (1, 2, 1 << 40):
            inner = random._mix((first + n * golden) & WORD)
            assert word(first, second, n) == random._mix(inner ^ second) == noise.word(first, second, n)


def test_uniforms_lie_strictly_between_0_and_1():
    unit = compiled(noise.unit, float, Word)
    assert unit(0) == 2**-53 and unit(WORD) == 1 - 2**-53 and unit(1 << 63) == 0.5 + 2**-53


def test_quantiles_are_those_of_scipy():
    quantile = compiled(noise.quantile, float, float)
    tail = 10.0 ** -np.linspace(0.4, 300, 400)
    p = np.concatenate([np.linspace(1e-4, 1 - 1e-4, 3001), tail])
    found = np.array([quantile(x) for x in p])
    assert np.allclose(found, special.ndtri(p), rtol=2e-14, atol=1e-15)
    assert [noise.quantile(x) for x in p[::100]] == pytest.approx(found[::100], rel=1e-14)


def test_the_noise_of_a_chain_is_uniform_and_independent():
    """Also of chains whose keys differ in one bit; neighbours in a sequence, and equal places of two of them."""
    word, unit = compiled(noise.word, Word, Word, Word, Word), noise.unit
    n = 20_000
    for one, other in ((KEYS, (KEYS[0] ^ 1, KEYS[1])), (KEYS, (KEYS[0], KEYS[1] ^ 1)), ((0, 0), (0, 1))):
        a, b = (np.array([unit(word(*key, i)) for i in range(1, n + 1)]) for key in (one, other))
        assert stats.kstest(a, "uniform").pvalue > 1e-4
        for x, y in ((a[1:], a[:-1]), (a, b)):
            counts, *_ = np.histogram2d(x, y, bins=10)
            assert stats.chisquare(counts.reshape(-1)).pvalue > 1e-4


def python_chain(walk, transition_settings):
    """What a chain of a walk is for the Python originals."""
    own, desk = walk._chains[0], SimpleNamespace(single=0, work=np.zeros(400))
    desk.u, desk.value, desk.slope = np.zeros(3), np.zeros(1), np.zeros(3)
    desk.inputs, desk.outputs = [desk.u], [desk.value, desk.slope]
    desk.constants, desk.scratch, desk.density = [MEAN, PRECISION.reshape(-1)], None, gaussian
    chain = SimpleNamespace(desk=desk, dim=3, slopes=3, first_key=own.first_key, second_key=own.second_key, taken=0)
    chain.position, chain.gradient = walk._places[0].copy(), np.zeros(3)
    chain.step_size, chain.dense, chain.divergences, chain.kept = own.step_size, own.dense, 0, 0
    chain.inverse_mass, chain.momentum_factor = (part.copy() for part in walk._metric)
    chain.stats, chain.mean, chain.squares = np.zeros(6), np.zeros(3), np.zeros(walk._squares.shape[1])
    for name, value in transition_settings.items():
        setattr(chain, name, value)
    mechanics.begin(chain)
    return chain


def one_chain(method, dense, step_size, **settings):
    """A walk of one chain with a metric, and the same for the Python originals."""
    from genmlx.inference.leapfrog import metric

    walk = NativeWalk(method, native_gaussian(), np.array([[0.3, -0.2, 0.1]]), dense, settings)
    walk.begin(random.streams(3))
    walk.tune(step_size, metric(COVARIANCE + np.eye(3) if dense else [1.5, 1.0, 0.5], 3))
    return walk, python_chain(walk, {"max_depth": 0, "leapfrog_steps": 0, "trajectory": math.pi / 2, **settings})


ORIGINALS = {
    "nuts": (nuts.nuts, nuts.first_leap, 0.4, {"max_depth": 5}),
    "hmc": (hmc.hmc, hmc.first_jittered_leap, 0.6, {"leapfrog_steps": 3}),
    "mala": (walks.mala, walks.first_langevin, 0.7, {}),
    "random_walk": (walks.random_walk, walks.first_shift, 0.8, {}),
}


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", ORIGINALS)
def test_transitions_are_those_of_the_python_original(name, dense):
    """Every statistic, and how much noise it takes; first steps too. Catches an error of the translation."""
    transition, first, size, settings = ORIGINALS[name]
    walk, chain = one_chain(name, dense, size, **settings)
    moved = 0
    for _ in range(30):
        assert walk.first_step()[0] == pytest.approx((first(chain), chain.stats[0])[1], rel=1e-9)
        before = chain.position.copy()
        walk.drivers.advance(walk._at(0), walk._transition, 1)
        running.advance(chain, transition, 1)
        assert np.allclose(walk._places[0], chain.position, rtol=1e-9, atol=1e-12)
        assert np.allclose(walk._stats[0], chain.stats, rtol=1e-9, atol=1e-12)
        assert walk._chains[0].taken == chain.taken
        moved += not np.array_equal(before, chain.position)
    assert 5 < moved
    assert np.allclose(walk._squares[0], chain.squares, rtol=1e-8) and walk._chains[0].kept == chain.kept == 30


class Stream:
    """The noise of a chain, one number after the other."""

    def __init__(self, chain):
        self.keys, self.counter = (chain.first_key, chain.second_key), itertools.count(chain.taken + 1)

    def uniform(self):
        return (float(noise.word(*self.keys, next(self.counter)) >> 12) + 0.5) / 2**52

    def normals(self, n):
        return special.ndtri([self.uniform() for _ in range(n)])


def log_density(q):
    return -0.5 * (q - MEAN) @ PRECISION @ (q - MEAN)


def slope(q):
    return -PRECISION @ (q - MEAN)


def leap(q, p, time, inverse_mass):
    p = p + 0.5 * time * slope(q)
    q = q + time * inverse_mass @ p
    return q, p + 0.5 * time * slope(q)


def recursive_nuts(q, size, inverse_mass, factor, stream, max_depth):
    """Betancourt (2017), appendix A.4.2: a draw, the leapfrog steps, the mean acceptance, and if it diverged."""

    def energy(q, p):
        return 0.5 * p @ inverse_mass @ p - log_density(q)

    def turned(leaves):
        total = sum(p for _, p in leaves) - 0.5 * (leaves[0][1] + leaves[-1][1])
        return any(total @ inverse_mass @ p <= 0 for _, p in (leaves[0], leaves[-1]))

    p = stream.normals(3) @ factor
    first = energy(q, p)
    tree, drawn, weight, steps, accept = [(q, p)], q, 1.0, 0, 0.0
    for depth in range(max_depth):
        forward = stream.uniform() >= 0.5
        q, p = tree[-1] if forward else tree[0]
        below, drawn_below, weight_below = [], None, 0.0
        for _ in range(2**depth):
            q, p = leap(q, p, size if forward else -size, inverse_mass)
            steps, own = steps + 1, math.exp(first - energy(q, p))
            if first - energy(q, p) <= -1000:
                return drawn, steps, accept / steps, True
            accept, weight_below = accept + min(1.0, own), weight_below + own
            below.append((q, p))
            if stream.uniform() < own / weight_below:
                drawn_below = q
            if any(len(below) % 2**k == 0 and turned(below[-(2**k) :]) for k in range(1, depth + 1)):
                return drawn, steps, accept / steps, False
        if stream.uniform() < weight_below / weight:
            drawn = drawn_below
        weight += weight_below
        tree = tree + below if forward else below[::-1] + tree
        if turned(tree):
            break
    return drawn, steps, accept / steps, False


@pytest.mark.parametrize("dense, size", [(False, 0.3), (True, 0.15), (False, 1.1)])
def test_trees_are_those_of_the_recursive_algorithm(dense, size):
    """Catches a criterion at the wrong ends or of the wrong sums, a lost weight, and a turned subtree that is kept.

    The largest step size diverges: then the tree so far is what there is to draw from.
    """
    walk, _ = one_chain("nuts", dense, size, max_depth=6)
    inverse_mass, factor = (m.reshape(3, 3) if dense else np.diag(m) for m in walk._metric)
    steps = set()
    for _ in range(60):
        stream, q = Stream(walk._chains[0]), walk._places[0].copy()
        walk.drivers.advance(walk._at(0), walk._transition, 0)
        drawn, count, accept, diverged = recursive_nuts(q, walk._chains[0].step_size, inverse_mass, factor, stream, 6)
        assert np.allclose(walk._places[0], drawn, atol=1e-9)
        found = walk._stats[0]
        assert found[3] == count and found[0] == pytest.approx(accept, abs=1e-9)
        assert found[4] == math.ceil(math.log2(count + 1)) and found[2] == diverged
        steps.add((count, diverged))
    assert len(steps) > 3 and any(diverged for _, diverged in steps) == (size > 1)


def test_hmc_by_hand():
    walk, _ = one_chain("hmc", False, 0.5, leapfrog_steps=4)
    inverse_mass, factor = map(np.diag, walk._metric)
    taken = 0
    for _ in range(40):
        stream, start = Stream(walk._chains[0]), walk._places[0].copy()
        walk.drivers.advance(walk._at(0), walk._transition, 0)
        time = 0.5 * (1 + 0.2 * (2 * stream.uniform() - 1))
        q, p = start, stream.normals(3) @ factor
        before = 0.5 * p @ inverse_mass @ p - log_density(q)
        for _ in range(4):
            q, p = leap(q, p, time, inverse_mass)
        after = 0.5 * p @ inverse_mass @ p - log_density(q)
        accepted = math.log(stream.uniform()) < before - after
        assert np.allclose(walk._places[0], q if accepted else start, atol=1e-10)
        found = walk._stats[0]
        assert found[0] == pytest.approx(min(1, math.exp(before - after)), abs=1e-9) and found[3] == 4
        assert found[1] == pytest.approx(after if accepted else before, abs=1e-9)
        taken += accepted
    assert 0 < taken < 40


def test_mala_by_hand():
    """By the density of the proposal each way."""
    size = 0.9
    walk, _ = one_chain("mala", True, size)
    inverse_mass, factor = (m.reshape(3, 3) for m in walk._metric)
    size = walk._chains[0].step_size
    proposal, taken = stats.multivariate_normal, 0
    for _ in range(40):
        stream, q = Stream(walk._chains[0]), walk._places[0].copy()
        walk.drivers.advance(walk._at(0), walk._transition, 0)
        to = q + size**2 / 2 * inverse_mass @ slope(q) + size * inverse_mass @ (stream.normals(3) @ factor)

        def density(a, b):
            return proposal.logpdf(b, a + size**2 / 2 * inverse_mass @ slope(a), size**2 * inverse_mass)

        ratio = log_density(to) + density(to, q) - log_density(q) - density(q, to)
        accepted = math.log(stream.uniform()) < ratio
        assert np.allclose(walk._places[0], to if accepted else q, atol=1e-10)
        assert walk._stats[0, 0] == pytest.approx(min(1, math.exp(ratio)), abs=1e-5)
        taken += accepted
    assert 0 < taken < 40


def leaps(size, steps, back=False):
    """The error of the energy after so many steps, and how far off the way back is."""
    walk, chain = one_chain("nuts", False, 0.1, max_depth=5)
    leapfrog = compiled(mechanics.leapfrog, float, structure, *["pointer"] * 4, float)
    q, g, p, v = walk._places[0].copy(), walk._gradients[0].copy(), np.array([0.4, -1.0, 0.7]), np.zeros(3)
    start, own = q.copy(), walk._at(0)
    before = 0.5 * p @ np.diag(walk._metric[0]) @ p - log_density(q)
    for _ in range(steps):
        leapfrog(own, q, g, p, v, size)
    error = abs(0.5 * p @ v - log_density(q) - before)
    for _ in range(steps):
        leapfrog(own, q, g, p, v, -size)
    return error, np.abs(q - start).max()


def test_leapfrog_steps_are_of_second_order_and_reversible():
    errors, back = zip(*[leaps(1.0 / n, n) for n in (10, 20, 40)], strict=True)
    assert max(back) < 1e-13
    assert all(3.8 < a / b < 4.2 for a, b in itertools.pairwise(errors))


def test_a_position_that_is_not_a_number_has_no_density():
    chain = SimpleNamespace(dim=1, slopes=0, desk=SimpleNamespace(single=0, u=[0], slope=[0], inputs=0, outputs=0))
    for value in (math.nan, math.inf, -math.inf, 2.0):
        chain.desk.value, chain.desk.constants, chain.desk.scratch = [value], 0, 0
        chain.desk.density = lambda *_: None
        assert mechanics.evaluate(chain, [0.0], [0.0]) == (2.0 if value == 2.0 else -math.inf)


def test_dual_averaging_is_that_of_the_warm_up():
    """Step by step, also of acceptances that are no numbers."""
    update = compiled(running.update, None, structure, float)
    rng = np.random.default_rng(0)
    expected, found = DualAveraging([0.3], 0.8), structure(running.Dual)(target=0.8)
    found.mu = math.log(3.0)
    for accept in [0.2, 1.7, -1.0, *rng.uniform(size=300)]:
        expected.update(np.array([accept]))
        update(ctypes.addressof(found), accept)
        assert found.step_size == pytest.approx(expected.step_size.item(), rel=1e-12)
        assert found.log_averaged == pytest.approx(expected._log_averaged.item(), rel=1e-11, abs=1e-12)
    assert found.count == expected._count == 303


def test_chains_that_share_a_step_size_follow_their_mean_acceptance():
    walk = NativeWalk("hmc", native_gaussian(), np.zeros((3, 3)), False, {})
    walk._stats[:, 0] = [0.2, math.nan, 1.0]
    expected, found = DualAveraging(np.array([0.3]), 0.8), structure(running.Dual)(target=0.8, mu=math.log(3.0))
    expected.update(np.array([0.4]))
    walk.drivers.settle(walk._chains, 3, ctypes.addressof(found))
    assert [chain.step_size for chain in walk._chains] == pytest.approx([expected.step_size.item()] * 3, rel=1e-12)


def test_the_second_process_finds_them_on_disk(monkeypatch, tmp_path):
    """Neither translated nor compiled anew; a change of what they are made from is not overlooked."""
    monkeypatch.setenv("GENMLX_CACHE", str(tmp_path))
    made, translated = [], restricted.translate
    monkeypatch.setattr(restricted, "translate", lambda *f, **how: made.append(1) or translated(*f, **how))
    for expected in (1, 1):
        drivers.__wrapped__()
        assert len(made) == expected
    source = inspect.getsource
    monkeypatch.setattr(drivers_module.inspect, "getsource", lambda module: source(module) + "#")
    drivers.__wrapped__()
    assert len(made) == 2


def test_every_method_is_compiled():
    for method in METHODS.values():
        assert drivers().address(method.transition) != drivers().address(method.first)
