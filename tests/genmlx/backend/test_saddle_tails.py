"""Deep tails, where the rounding of x / m in float32 costs x half ulps: up to 3 times the bar before its correction."""

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx import dist

N = 20_000


@pytest.mark.skipif(mx.default_device().type != mx.cpu, reason="the correction needs float64, which GPUs have not")
def test_points_uniform_over_the_range():
    rng = np.random.default_rng(0)
    n = rng.integers(1, 1000, N).astype(np.int32)
    p = rng.uniform(0, 1, N).astype(np.float32)
    x = (rng.uniform(0, 1, N) * (n + 1)).astype(np.int32)
    rate = np.exp(rng.uniform(-3, 7, N)).astype(np.float32)
    for found, exact in (
        (dist.binomial(mx.array(n), mx.array(p)).log_prob(mx.array(x)), stats.binom.logpmf(x, n, p.astype(float))),
        (dist.poisson(mx.array(rate)).log_prob(mx.array(x)), stats.poisson.logpmf(x, rate.astype(float))),
    ):
        bar = np.maximum(3e-5, 2 * np.spacing(np.abs(exact).astype(np.float32)))
        assert np.max(np.abs(np.array(found, dtype=np.float64) - exact) / bar) < 1
