"""The memory of a long run grows by its draws, and by nothing else."""

import importlib.util
import os

import mlx.core as mx
import pytest

from genmlx import flip, gen, gibbs, hmc, mh, normal, nuts, trace

MOST = 100_000 if os.environ.get("GENMLX_FULL") == "1" else 10_000


@gen
def tiny():
    trace("y", normal(trace("mu", normal(0, 1)), 0.5))


@gen
def coin():
    trace("y", normal(trace("k", flip(0.5)), 0.5))


# The sampler, its model, and the bytes of a draw while it runs: of the gradient samplers numpy has the draws.
RUNS = {
    "mh": (mh, tiny, 4 + 1 + 4 + 1),  # value, whether it is there, log joint density, accept
    "gibbs": (gibbs, coin, 4 + 1 + 4 + 4),
    "hmc": (lambda *problem, **how: hmc(*problem, leapfrog_steps=2, warmup=20, **how), tiny, 0),
    "nuts": (lambda *problem, **how: nuts(*problem, max_depth=2, warmup=20, **how), tiny, 0),
}
if importlib.util.find_spec("llvmlite"):
    RUNS["native nuts"] = (lambda *problem, **how: nuts(*problem, warmup=20, native=True, **how), tiny, 0)


@pytest.fixture
def exact():
    """Without a cache: from it MLX hands out buffers that are up to twice as large as what was asked for."""
    before = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(before)


@pytest.mark.slow
@pytest.mark.skipif(mx.default_device().type != mx.cpu, reason="CUDA's small buffers are of a size of their own")
@pytest.mark.parametrize("name", RUNS)
def test_memory_grows_only_by_the_draws(exact, name):
    """While a run goes on, from its first thousand draws to its last, and in what is left of it.

    A graph that is not evaluated, or anything that is kept of each step, is more than the 5 kB that are allowed beyond.
    """
    sampler, model, size = RUNS[name]
    seen, left = [], []

    def watch(event):
        if event.phase == "sampling":
            seen.append((event.info["draws"], mx.get_active_memory()))

    for draws in (1_000, MOST):
        before = mx.get_active_memory()
        post = sampler(model(), {"y": 1.0}, draws=draws, chains=2, key=1, progress=watch)
        own = [*(post[a] for a in post.addresses()), post.log_joint, *post.stats.values()]
        mx.eval(own)
        left.append(mx.get_active_memory() - before - sum(array.nbytes for array in own))
        del post, own
        seen = [(count, used) for count, used in seen if count >= min(draws, 1_000)]
    (first, begin), (last, end) = seen[0], seen[-1]
    assert last == MOST and first < 0.5 * MOST
    assert end - begin <= 2 * size * (last - first) + 5_000
    assert left[1] - left[0] <= 5_000
