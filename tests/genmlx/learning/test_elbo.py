"""The evidence lower bound of amortised guides: value and gradient in closed form, in batches, discrete latents."""

import math
from itertools import combinations

import mlx.core as mx
import numpy as np
import pytest

from genmlx import flip, gen, normal, param, trace
from genmlx.learning import elbo, gradient

XS, THETA, A, B, LOG_SD = np.array([1.0, 2.0, 3.0, 6.0]), 0.5, 0.3, 0.7, -0.2


def pair():
    @gen
    def model(n):
        z = trace("z", normal(mx.broadcast_to(param("theta", THETA), (n,)), 1.0))
        trace("x", normal(z, 1.0))

    @gen
    def guide(xs):
        trace("z", normal(param("a", A) * xs + param("b", B), mx.exp(param("log_sd", LOG_SD))))

    return model, guide


def exact(xs):
    """The bound of some rows, and its gradient in theta, a, b, log_sd."""
    m, v = A * xs + B, math.exp(2 * LOG_SD)
    each = -math.log(2 * math.pi) - 0.5 * ((m - THETA) ** 2 + v) - 0.5 * ((xs - m) ** 2 + v)
    each = each + 0.5 * math.log(2 * math.pi * math.e) + LOG_SD
    slope = (THETA - m) + (xs - m)
    return each.sum(), np.array([(m - THETA).sum(), (slope * xs).sum(), slope.sum(), len(xs) * (1 - 2 * v)])


def assert_agrees(rows, wanted):
    error = rows.std(0, ddof=1) / math.sqrt(len(rows))
    assert np.all(error > 0) and np.all(np.abs(rows.mean(0) - wanted) < 4 * error), (rows.mean(0), error, wanted)


def estimates(xs, scale, runs, seed=0):
    model, guide = pair()
    reads = [(model, "theta"), (guide, "a"), (guide, "b"), (guide, "log_sd")]

    def bound(xs, key):
        return elbo(model(xs.shape[0]), {"x": xs}, guide(xs), key=key)

    xs = mx.array(xs, dtype=mx.float32)
    rows = [gradient(bound, xs, scale, key=seed + i) for i in range(runs)]
    values = np.array([bound(xs, mx.random.key(seed + i)).item() for i in range(runs)])
    return scale * values, np.array([[row[read].item() for read in reads] for row in rows])


def test_the_bound_and_its_gradient_are_unbiased():
    """200 keys of one draw for each of four rows, in the model's parameter and in the guide's."""
    value, wanted = exact(XS)
    values, rows = estimates(XS, 1.0, 200)
    assert_agrees(values, value)
    assert_agrees(rows, wanted)


def test_so_they_are_in_batches():
    """The mean over all six batches of two rows, scaled by two."""
    value, wanted = exact(XS)
    found = [estimates(XS[list(two)], 2.0, 60, seed=1000 * i) for i, two in enumerate(combinations(range(4), 2))]
    # keys are independent between batches, and every batch is as likely
    for parts, target in (([v[:, None] for v, _ in found], np.array([value])), ([g for _, g in found], wanted)):
        mean = np.mean([part.mean(0) for part in parts], axis=0)
        error = np.sqrt(sum(part.var(0, ddof=1) / 60 for part in parts)) / 6
        assert np.all(np.abs(mean - target) < 4 * error)


def test_a_discrete_latent_by_its_score_and_by_enumeration():
    @gen
    def model():
        z = trace("z", flip(0.3))
        trace("y", normal(2.0 * z, 1.0))

    @gen
    def guide():
        trace("z", flip(mx.sigmoid(param("t", 0.4))))

    q, y = 1 / (1 + math.exp(-0.4)), 1.2
    gap = [
        math.log(p) - 0.5 * (y - 2 * z) ** 2 - 0.5 * math.log(2 * math.pi) - math.log(own)
        for z, p, own in ((0, 0.7, 1 - q), (1, 0.3, q))
    ]
    slope = q * (1 - q) * (gap[1] - gap[0])

    def bound(key, **how):
        return elbo(model(), {"y": y}, guide(), key=key, **how)

    one = gradient(lambda key: bound(key, estimator="enumerate"), key=1)
    assert one[guide, "t"].item() == pytest.approx(slope, rel=1e-4)
    rows = [gradient(lambda key: bound(key, samples=4, estimator="reinforce"), key=i) for i in range(150)]
    assert_agrees(np.array([[row[guide, "t"].item()] for row in rows]), [slope])


def test_a_guide_of_other_latents_raises():
    model, _ = pair()

    @gen
    def blind():
        trace("w", normal(0.0, 1.0))

    with pytest.raises(KeyError, match="z|w"):
        elbo(model(4), {"x": XS}, blind(), key=1)
