"""Kernels on the GPU of this machine; ``test_gpu_chains.py`` tests their text on the CPU."""

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from gpu_models import assert_agree_with_quadrature, run, walk_on
from posteriors import SCHOOLS, eight_schools

from genmlx import dist, gen, hmc, mala, normal, nuts, random_walk, trace
from genmlx.native.gpu.launch import device
from genmlx.native.graph import Untranslatable

GPU = mx.cuda.is_available() or mx.metal.is_available()
pytestmark = pytest.mark.skipif(not GPU, reason="MLX has no GPU here")
DATA = {"y": mx.array(SCHOOLS)}


@pytest.fixture(autouse=True)
def gpu(cpu):
    """After the fixture of this folder, which is for machine code of the CPU."""
    mx.set_default_device(mx.gpu)


@gen
def wide():
    """A primitive of each kind, and what CUDA and Metal have functions for."""
    a, s = trace("a", normal(mx.zeros(7), 1.0)), trace("s", dist.gamma(2.0, 1.0))
    b = mx.sin(a) + mx.tanh(a) * mx.cumsum(mx.exp(-a * a)) + mx.erf(a) + mx.log1p(mx.square(a))
    c = mx.arange(21.0).reshape(3, 7) @ b + mx.arctan(a[:3]) + mx.power(s, 1.7) + mx.logsumexp(a)
    trace("y", normal(mx.concatenate([c, a[mx.array([5, 0])]]), s))
    trace("n", dist.poisson(s))


@pytest.mark.parametrize("private", [0, 1 << 14])
def test_densities_are_those_of_mlx(private):
    """Relative 1e-4, of 500 chains; catches a function of the device that is not ours, and a wrong layout."""
    from genmlx.inference.log_density import LogDensity

    observations = {"y": mx.arange(5.0), "n": 3}
    start = np.random.default_rng(0).normal(size=(500, 8)) * 0.7
    own = device()
    few = own._replace(dialect=own.dialect._replace(private=private))
    walk = walk_on(few, "hmc", wide(), observations, 500, start=start)
    value, gradient = walk.value_and_grad
    expected, slope = map(np.array, LogDensity(wide(), observations).value_and_grad(mx.array(start.astype(np.float32))))
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-4 * np.abs(slope).max())


@pytest.mark.parametrize("sampler, thin", [(hmc, 1), (mala, 10), (random_walk, 40)])
def test_eight_schools_by_2000_chains(sampler, thin):
    post = sampler(
        eight_schools(),
        DATA,
        draws=50,
        warmup=500,
        chains=2000,
        thin=thin,
        key=1,
        native=True,
        dense=thin > 1,
    )
    assert post.execution.startswith("native (") and "float32" in post.execution
    z = np.array(post["z"])
    positions = np.concatenate([np.array(post["mu"])[..., None], np.log(np.array(post["tau"]))[..., None], z], axis=-1)
    assert_agree_with_quadrature(positions)


def test_draws_do_not_depend_on_launches():
    walks = [walk_on(device(), "hmc", eight_schools(), DATA, 200, leapfrog_steps=7) for _ in range(2)]
    found = []
    for walk, budget in zip(walks, (3, 1000), strict=True):
        walk._learn_budget = lambda *_, walk=walk, budget=budget: setattr(walk, "_budget", budget)
        found.append(run(walk, draws=20, warmup=0, step_size=0.3)[0])
    assert np.array_equal(*found)


def test_what_has_no_text_runs_on_mlx():
    few = {"draws": 5, "warmup": 5, "chains": 3, "key": 1}
    assert "native" not in nuts(eight_schools(), DATA, **few).execution
    with pytest.raises(Untranslatable, match="nuts on a GPU"):
        nuts(eight_schools(), DATA, native=True, **few)
    assert "native" not in hmc(eight_schools(), DATA, native=False, **few).execution
