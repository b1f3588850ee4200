"""Densities of models as a GPU has them, in float32, and chains on them."""

import numpy as np

from genmlx import random
from genmlx.inference.log_density import LogDensity
from genmlx.inference.loop import Loop
from genmlx.native.gpu.chains import DeviceWalk
from genmlx.native.gpu.text import density_text

# Posterior means of ``posteriors.eight_schools`` by quadrature over mu and log tau, the effects integrated out.
MEANS = {"mu": 4.3968, "tau": 3.5977, "log tau": 0.8021, "theta 1": 6.2119}


def walk_on(device, method, call, observations, n, dense=False, start=None, gradients=True, **settings):
    density = LogDensity(call, observations)
    f, parameters = density.of_one(gradients)
    text = density_text(f, density.dim, parameters, device.dialect.private)
    if start is None:
        start = np.random.default_rng(1).normal(size=(n, density.dim))
    return DeviceWalk(method, text, start, dense, settings, gradients, device)


def run(walk, key=7, **how):
    """Positions, statistics, and what a progress callback was told."""
    events = []
    with Loop("test", events.append) as loop:
        positions, stats = walk.run(loop, random.streams(key), **how)
    return positions, {name: np.array(value) for name, value in stats.items()}, events


def of_schools(positions):
    mu, log_tau, z = (positions[..., i].astype(float) for i in range(3))
    return {"mu": mu, "tau": np.exp(log_tau), "log tau": log_tau, "theta 1": mu + np.exp(log_tau) * z}


def assert_agree_with_quadrature(positions, errors=4.5):
    """Each chain's mean is one draw of an estimate, so that their spread is its error."""
    for name, values in of_schools(positions).items():
        means = values.mean(axis=1)
        off = (means.mean() - MEANS[name]) / (means.std(ddof=1) / np.sqrt(len(means)))
        assert abs(off) < errors, f"{name}: {off} standard errors"
