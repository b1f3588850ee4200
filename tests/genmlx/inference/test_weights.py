"""Weights that are asked for again, and systematic resampling where points fall on edges."""

import mlx.core as mx
import numpy as np
import pytest

from genmlx.inference import resampling
from genmlx.inference.resampling import effective_size, host_weights, log_mean, systematic


def test_weights_that_are_changed_in_place_are_weighed_anew():
    logs = mx.array([0.0, 0.0, -1.0])
    assert effective_size(logs).item() == pytest.approx(2.36787944117**2 / (2 + np.exp(-2.0)), rel=1e-6)
    logs[2] = 0.0
    assert effective_size(logs).item() == pytest.approx(3.0) and log_mean(logs) == pytest.approx(0.0)


def test_nobody_can_change_the_weights_of_others():
    with pytest.raises(ValueError, match="read-only"):
        host_weights(mx.array([0.0, -1.0]))[0] = 1.0


@pytest.mark.parametrize("u", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
def test_systematic_draws_as_many_as_are_asked_for(monkeypatch, u):
    """Copies of a particle are those of its share, rounded down or up; of one without weight, none."""
    monkeypatch.setattr(resampling, "_uniform", lambda key, n: np.full(n, u))
    generator = np.random.default_rng(0)
    for size in (1, 2, 3, 7, 49, 1000):
        for n in (1, 3, 10, 49, 1000):
            weights = generator.random(size) * (generator.random(size) < 0.7)
            weights[0] += 0.1
            for given in (weights, weights / weights.sum()):
                copies = np.bincount(systematic(given, n, None), minlength=size)
                share = n * given / given.sum()
                assert copies.sum() == n and not copies[weights == 0].any()
                assert np.all(copies >= np.floor(share - 1e-9)) and np.all(copies <= np.ceil(share + 1e-9))
