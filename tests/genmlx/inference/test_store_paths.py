"""A filter that stores no paths: the same weights, evidence and last step, and memory that does not grow."""

import gc

import mlx.core as mx
import numpy as np
import pytest
from state_spaces import HMM, SERIES, kalman, walk, walks

from genmlx import gen, normal, smc, trace
from genmlx.errors import UsageError
from genmlx.inference import ParticleFilter


@gen
def contains_a_walk(n):
    k = trace("k", normal(0.0, 1.0))
    trace("c", walk(n, k, 1.0))


CONTAINED = [(contains_a_walk(t + 1), {("c", t, "y"): y}) for t, y in enumerate(SERIES * 3)]
FILTERS = {"walk": (walks(SERIES * 10), (39, "x")), "hmm": (HMM, (3, "z")), "contained": (CONTAINED, ("c", 11, "x"))}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_what_is_told_is_the_same(name, threshold):
    steps, last = FILTERS[name]
    full, short = (smc(steps, 60, threshold, key=1, store_paths=stored, native=False) for stored in (True, False))
    assert full.log_ml.item() == short.log_ml.item()
    assert full.log_ml_error == pytest.approx(short.log_ml_error, nan_ok=True)
    assert full.history.ess.tolist() == short.history.ess.tolist()
    assert full.history.resampled.tolist() == short.history.resampled.tolist()
    assert np.array_equal(np.array(full[last]), np.array(short[last]))
    assert full.mean(last).item() == short.mean(last).item() and full.ess.item() == short.ess.item()
    assert np.array_equal(full.history.origins(60)[0], short.history.origins(60)[0])
    assert set(short.addresses()) <= set(full.addresses()) and last in short.addresses()
    assert repr(full) == repr(short)


def test_what_is_forgotten_is_an_error_that_says_so():
    found = smc(walks(SERIES), 20, 1.0, key=0, store_paths=False)
    for ask in (
        lambda: found.mean((0, "x")),
        lambda: found[(1, "x")],
        lambda: found.traces,
        lambda: found.to_posterior(),
        lambda: found.history.lineage(3),
        lambda: found.rejuvenate((0, "x")),
        lambda: found.step(walk(5, 0.0, 2.0), {(4, "y"): 1.0}),
    ):
        with pytest.raises(UsageError, match="stores no paths"):
            ask()


def test_moves_of_the_last_step_need_no_past():
    pf = ParticleFilter.init(walk(1, 0.0, 1.0), {(0, "y"): SERIES[0]}, 5000, key=0, store_paths=False)
    for t, y in enumerate(SERIES[1:], 1):
        pf = pf.resample(key=t).step(walk(t + 1, 0.0, 1.0), {(t, "y"): y}, key=10 + t)
    states, log_ml = kalman(SERIES)
    assert abs(pf.log_ml.item() - log_ml) < 4 * pf.log_ml_error
    assert pf.mean((3, "x")).item() == pytest.approx(states[-1][0], abs=0.06)


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="CUDA's buffers are of sizes of their own")
def test_memory_does_not_grow_with_the_number_of_steps():
    """With paths it does, by some twenty bytes for each particle and step: then the test would fail."""

    def held(steps, stored):
        gc.collect()
        before = mx.get_active_memory()
        found = smc(walks([1.0] * steps), 1000, key=0, store_paths=stored, native=False)
        used = mx.get_active_memory() - before
        assert found.n == 1000
        return used

    short, long = held(20, False), held(200, False)
    assert long - short < 100_000  # what one step holds is 32,000
    assert held(200, True) - held(20, True) > 180 * 1000 * 8
