"""Keys: the same key gives the same draws; different sites, lanes, calls and nestings give independent ones."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

import genmlx
from genmlx import GenError, gen, normal, random, trace

N = 4000
# The correlation of two independent samples of 4000 has standard deviation 1/sqrt(4000) = .0158: .05 is 3.2 of them.
BOUND = 0.05


@gen
def inner():
    return trace("z", normal(0, 1))


@gen
def many():
    for i in range(20):  # more sites than one chunk of keys
        trace(("x", i), normal(0, 1))
    trace("a", inner())
    trace("b", inner())
    trace("vector", normal(mx.zeros((3,)), 1))


def columns(trace):
    """Every number of every lane's choices, [N, numbers]."""
    return np.concatenate([np.array(v).reshape(trace.n, -1) for _, v in trace.choices.items()], axis=1)


def assert_independent(a, b):
    assert not np.array_equal(a, b)
    assert abs(np.corrcoef(a, b)[0, 1]) < BOUND


def test_same_key_same_trace():
    key = mx.random.key(5)
    assert many().simulate(key).choices == many().simulate(key).choices
    assert many().vsimulate(7, key).choices == many().vsimulate(7, key).choices
    assert many().simulate(5).choices == many().simulate(key).choices


def test_sites_are_independent():
    """A key used for two sites, or a nested call given its parent's key, makes two columns equal."""
    x = columns(many().vsimulate(N, mx.random.key(0)))
    correlation = np.corrcoef(x.T)
    # 25 columns make 300 pairs: the largest of 300 is expected near 3 sd, so the bound is 5 sd.
    off = np.abs(correlation[~np.eye(x.shape[1], dtype=bool)])
    assert off.max() < 5 / math.sqrt(N)
    # 2^24 values and 1e5 draws: about 300 coincide by chance.
    assert len(np.unique(x)) > 0.995 * x.size


def test_lanes_are_independent():
    """Lanes that share a key would be equal; a lane index that only shifts the key would repeat bits."""
    x = columns(many().vsimulate(N, mx.random.key(1)))
    assert len(np.unique(x[:, 0])) > 0.999 * N
    assert_independent(x[:-1, 0], x[1:, 0])
    assert_independent(x[:, 0], columns(many().vsimulate(N, mx.random.key(2)))[:, 0])


def test_scalar_sites_are_standard_normal():
    x = np.array([v.item() for _, v in many().simulate(mx.random.key(3)).choices.items() if v.ndim == 0])
    assert abs(x.mean()) < 4 / math.sqrt(len(x))
    draws = columns(many().vsimulate(N, mx.random.key(4)))
    for column in draws.T:
        assert stats.kstest(column, "norm").pvalue > 1e-4


def test_session_stream():
    genmlx.seed(11)
    first, second = inner().simulate()["z"].item(), inner().simulate()["z"].item()
    assert first != second
    genmlx.seed(11)
    assert inner().simulate()["z"].item() == first
    genmlx.seed(12)
    assert inner().simulate()["z"].item() != first


def test_session_streams_of_neighbouring_seeds_do_not_overlap():
    """A stream that is seed + counter would give seed 1's second key as seed 2's first."""
    seen = set()
    for n in range(50):
        genmlx.seed(n)
        seen |= {tuple(random.next_key().tolist()) for _ in range(50)}
    assert len(seen) == 2500


def test_streams_are_disjoint():
    keys = [tuple(k.tolist()) for k in random.streams(mx.random.key(0))]
    assert len(set(keys)) == len(keys)


def test_not_a_key():
    for bad in ("a", 1.5, mx.array([1.0, 2.0]), True):
        with pytest.raises(GenError, match="is not a key"):
            inner().simulate(bad)


# the noise primitive


KINDS = {"normal": random.normal, "uniform": random.uniform, "bits": random.bits, "open": random.uniform_open}


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_distinct_under_nested_vmap(kind):
    """Under one and two levels of vmap every lane and element is its own draw, with the shape asked for."""
    draw, key = KINDS[kind], mx.random.key(8)

    def one(lane):
        return draw(random.lane_key(key, lane, 50), (3,))

    x = np.array(mx.vmap(one)(mx.arange(50)))
    assert x.shape == (50, 3) and len(np.unique(x)) >= 149

    def two(outer):
        k = random.lane_key(key, outer, 20)
        return mx.vmap(lambda inner: draw(random.lane_key(k, inner, 30), (3,)))(mx.arange(30))

    y = np.array(mx.vmap(two)(mx.arange(20)))
    assert y.shape == (20, 30, 3) and len(np.unique(y)) >= 1795


def test_noise_with_a_batched_key():
    """A vmap over keys around a vmap over lanes: each key has its own block."""
    keys = mx.random.split(mx.random.key(9), 10)

    def block(key):
        return mx.vmap(lambda lane: random.normal(random.lane_key(key, lane, 40)))(mx.arange(40))

    x = np.array(mx.vmap(block)(keys))
    assert x.shape == (10, 40) and len(np.unique(x)) == 400
    shared = np.array(mx.vmap(lambda key: random.normal(random.LaneKey(key, mx.array(3))))(keys))
    assert shared.shape == (10,) and len(np.unique(shared)) == 10


def test_noise_under_vmap_of_grad_and_compile():
    key = mx.random.key(10)

    def f(lane, scale):
        return mx.grad(lambda s: s * random.normal(random.lane_key(key, lane, 100)))(scale)

    g = np.array(mx.vmap(f)(mx.arange(100), mx.ones((100,))))
    noise = np.array(mx.vmap(lambda lane: random.normal(random.lane_key(key, lane, 100)))(mx.arange(100)))
    assert np.array_equal(g, noise) and len(np.unique(g)) == 100
    # A function of the key alone that is traced once must still give new draws for a new key.
    exported = mx.vmap(lambda lane, k: random.normal(random.lane_key(k, lane, 5)), in_axes=(0, None))
    a, b = exported(mx.arange(5), key), exported(mx.arange(5), mx.random.key(11))
    assert not np.array_equal(np.array(a), np.array(b))


@pytest.mark.parametrize("lanes", [None, 1])
def test_noise_distributions(lanes):
    n = 20_000
    key = mx.random.key(12) if lanes is None else random.LaneKey(mx.random.key(12), mx.array(5))
    assert stats.kstest(np.array(random.normal(key, (n,))), "norm").pvalue > 1e-3
    assert stats.kstest(np.array(random.uniform(key, (n,))), "uniform").pvalue > 1e-3
    assert stats.kstest(np.array(random.exponential(key, (n,))), "expon").pvalue > 1e-3
    assert stats.kstest(np.array(random.gumbel(key, (n,))), "gumbel_r").pvalue > 1e-3
    u = np.array(random.uniform_open(key, (n,)))
    assert 0 < u.min() and u.max() < 1 and stats.kstest(u, "uniform").pvalue > 1e-3
    bits = np.array(random.bits(key, (n,)))
    ones = [((bits >> np.uint32(i)) & 1).mean() for i in range(32)]
    assert max(abs(p - 0.5) for p in ones) < 4.5 * 0.5 / math.sqrt(n)


def test_a_lane_key_becomes_one_key_for_each_lane():
    keys = mx.vmap(lambda lane: random.key_array(random.lane_key(mx.random.key(1), lane, 64)))(mx.arange(64))
    assert keys.dtype == mx.uint32 and len({tuple(k) for k in keys.tolist()}) == 64


def test_no_key_splits_into_none():
    assert random.split(None, 3) == [None] * 3
    assert all(a is None for a in itertools.chain([random.lane_key(None, mx.array(0), 4)]))
