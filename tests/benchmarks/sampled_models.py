"""The models of ``samplers.py``, each in three languages with the same names: GenMLX, NumPyro and PyMC.

Eight schools (Rubin 1981); a logistic regression of 1,000 rows on 20 features; a hierarchy of 85 groups and 919 rows of
the shape of the radon study; a Gaussian process at 50 points; a mixture of two normals, 200 points. What is not
Rubin's is drawn from the model by numpy's frozen generator: alike everywhere.
"""

# pyright: reportMissingImports=false
# jax, numpyro, pymc and pytensor belong to other interpreters.

from __future__ import annotations

from typing import Any

import numpy as np

MODELS = ("schools", "logistic", "radon", "process", "mixture")


def data(model: str) -> tuple[np.ndarray, ...]:
    """Arrays in float32 and int32, what is observed last."""
    rng = np.random.RandomState(0)
    if model == "schools":
        errors, effects = [15, 10, 16, 11, 9, 11, 10, 18], [28, 8, -3, 7, -1, 1, 18, 12]
        arrays: tuple = (np.array(errors, dtype=float), np.array(effects, dtype=float))
    elif model == "logistic":
        rows, weights = rng.normal(size=(1000, 20)), rng.normal(size=20)
        arrays = rows, rng.uniform(size=1000) < 1 / (1 + np.exp(-(rows @ weights)))
    elif model == "radon":
        group, floor = rng.permutation(np.arange(919) % 85), rng.uniform(size=919) < 0.2
        level = rng.normal(1.5, 0.4, size=85)
        arrays = group, floor.astype(float), rng.normal(level[group] - 0.7 * floor, 0.75)
    elif model == "process":
        x = np.linspace(0, 5, 50)
        arrays = x, np.sin(1.7 * x) + 0.3 * rng.normal(size=50)
    else:
        arrays = (np.where(rng.uniform(size=200) < 0.3, rng.normal(-1.5, 0.7, 200), rng.normal(2.0, 1.2, 200)),)
    return tuple(a.astype(np.float32 if a.dtype.kind == "f" else np.int32) for a in arrays)


def of_genmlx(model: str) -> tuple[Any, dict]:
    """The call and its observations."""
    import mlx.core as mx

    from genmlx import beta, flip, gen, inv_gamma, mixture, multivariate_normal, normal, trace
    from genmlx.dist import half_cauchy, half_normal, iid

    @gen
    def schools(errors):
        mu, tau = trace("mu", normal(0, 5)), trace("tau", half_cauchy(5.0))
        z = trace("z", normal(mx.zeros(8), 1.0))
        trace("y", normal(mu + tau * z, errors))

    @gen
    def logistic(rows):
        weights = trace("weights", normal(mx.zeros(20), 1.0))
        trace("y", flip(logits=rows @ weights + trace("intercept", normal(0, 1))))

    @gen
    def radon(group, floor):
        mu, tau = trace("mu", normal(0, 5)), trace("tau", half_normal(2.0))
        level = mu + tau * trace("z", normal(mx.zeros(85), 1.0))
        slope, noise = trace("slope", normal(0, 5)), trace("noise", half_normal(2.0))
        trace("y", normal(level[group] + slope * floor, noise))

    @gen
    def process(x):
        scale, size = trace("scale", inv_gamma(5.0, 5.0)), trace("size", half_normal(1.0))
        noise = trace("noise", half_normal(1.0))
        apart = (x[:, None] - x[None, :]) / scale
        cov = size**2 * mx.exp(-0.5 * apart**2) + noise**2 * mx.eye(50)
        trace("y", multivariate_normal(mx.zeros(50), cov))

    @gen
    def two_normals():
        left, right = trace("left", normal(-2, 1)), trace("right", normal(2, 1))
        low, high = trace("low", half_normal(2.0)), trace("high", half_normal(2.0))
        share = trace("share", beta(2.0, 2.0))
        both = mixture([normal(left, low), normal(right, high)], mx.log(mx.stack([share, 1 - share])))
        trace("y", iid(both, 200))

    models = dict(zip(MODELS, (schools, logistic, radon, process, two_normals), strict=True))
    *given, seen = map(mx.array, data(model))
    return models[model](*given), {"y": seen}


def of_numpyro(model: str) -> Any:
    """A function without arguments, for ``numpyro.infer.NUTS``."""
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from numpyro import sample

    def schools(errors, y):
        mu, tau = sample("mu", dist.Normal(0, 5)), sample("tau", dist.HalfCauchy(5.0))
        z = sample("z", dist.Normal(jnp.zeros(8), 1.0))
        sample("y", dist.Normal(mu + tau * z, errors), obs=y)

    def logistic(rows, y):
        weights = sample("weights", dist.Normal(jnp.zeros(20), 1.0))
        sample("y", dist.Bernoulli(logits=rows @ weights + sample("intercept", dist.Normal(0, 1))), obs=y)

    def radon(group, floor, y):
        mu, tau = sample("mu", dist.Normal(0, 5)), sample("tau", dist.HalfNormal(2.0))
        level = mu + tau * sample("z", dist.Normal(jnp.zeros(85), 1.0))
        slope, noise = sample("slope", dist.Normal(0, 5)), sample("noise", dist.HalfNormal(2.0))
        sample("y", dist.Normal(level[group] + slope * floor, noise), obs=y)

    def process(x, y):
        scale, size = sample("scale", dist.InverseGamma(5.0, 5.0)), sample("size", dist.HalfNormal(1.0))
        noise = sample("noise", dist.HalfNormal(1.0))
        apart = (x[:, None] - x[None, :]) / scale
        cov = size**2 * jnp.exp(-0.5 * apart**2) + noise**2 * jnp.eye(50)
        sample("y", dist.MultivariateNormal(jnp.zeros(50), covariance_matrix=cov), obs=y)

    def two_normals(y):
        left, right = sample("left", dist.Normal(-2, 1)), sample("right", dist.Normal(2, 1))
        low, high = sample("low", dist.HalfNormal(2.0)), sample("high", dist.HalfNormal(2.0))
        share = sample("share", dist.Beta(2.0, 2.0))
        parts = dist.Normal(jnp.stack([left, right]), jnp.stack([low, high]))
        both = dist.MixtureSameFamily(dist.Categorical(jnp.stack([share, 1 - share])), parts)
        sample("y", both.expand([200]), obs=y)

    models = dict(zip(MODELS, (schools, logistic, radon, process, two_normals), strict=True))
    arrays = tuple(map(jnp.array, data(model)))
    return lambda: models[model](*arrays)


def of_pymc(model: str) -> Any:
    """A ``pymc.Model``, for nutpie."""
    import pymc as pm
    import pytensor.tensor as pt

    *given, y = data(model)
    with pm.Model() as found:
        if model == "schools":
            mu, tau, z = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5.0), pm.Normal("z", 0, 1, shape=8)
            pm.Normal("y", mu + tau * z, given[0], observed=y)
        elif model == "logistic":
            weights, intercept = pm.Normal("weights", 0, 1, shape=20), pm.Normal("intercept", 0, 1)
            pm.Bernoulli("y", logit_p=pt.dot(given[0], weights) + intercept, observed=y)
        elif model == "radon":
            mu, tau, z = pm.Normal("mu", 0, 5), pm.HalfNormal("tau", 2.0), pm.Normal("z", 0, 1, shape=85)
            slope, noise = pm.Normal("slope", 0, 5), pm.HalfNormal("noise", 2.0)
            pm.Normal("y", (mu + tau * z)[given[0]] + slope * given[1], noise, observed=y)
        elif model == "process":
            scale, size = pm.InverseGamma("scale", 5.0, 5.0), pm.HalfNormal("size", 1.0)
            noise, x = pm.HalfNormal("noise", 1.0), given[0]
            apart = (x[:, None] - x[None, :]) / scale
            cov = size**2 * pt.exp(-0.5 * apart**2) + noise**2 * pt.eye(50)
            pm.MvNormal("y", np.zeros(50), cov=cov, observed=y)
        else:
            left, right = pm.Normal("left", -2, 1), pm.Normal("right", 2, 1)
            low, high, share = pm.HalfNormal("low", 2.0), pm.HalfNormal("high", 2.0), pm.Beta("share", 2.0, 2.0)
            parts = [pm.Normal.dist(left, low), pm.Normal.dist(right, high)]
            pm.Mixture("y", pt.stack([share, 1 - share]), parts, observed=y)
    return found
