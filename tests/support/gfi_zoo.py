"""The zoo: models of every shape, each with an oracle that is written by hand and never calls the library.

``oracle(args, choices)`` gives ``{address: log density}`` in float64 through scipy, for the choices of one run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from scipy import stats

from genmlx import dist, flip, gen, normal, splice, trace


@dataclass
class Case:
    name: str
    model: Any
    args: tuple
    oracle: Callable[[tuple, dict], dict]
    other_args: tuple | None = None
    batches: bool = True  # False where the body branches on a traced choice

    def __repr__(self) -> str:
        return self.name


def logpdf_normal(x, mu, sigma):
    return float(np.sum(stats.norm.logpdf(np.asarray(x, np.float64), np.asarray(mu, np.float64), sigma)))


def logpmf_flip(x, p):
    return float(np.log(p if x else 1 - p))


CASES: list[Case] = []


def case(*args: Any, **kwargs: Any) -> None:
    CASES.append(Case(*args, **kwargs))


# flat, looping over data


@gen
def line(xs, noise=1.0):
    slope = trace("slope", normal(0, 2))
    intercept = normal(0, 3) @ "intercept"
    for j, x in enumerate(xs):
        trace(("y", j), normal(slope * x + intercept, noise))
    return slope


def line_oracle(args, c):
    xs, noise = args
    found = {("slope",): logpdf_normal(c["slope",], 0, 2), ("intercept",): logpdf_normal(c["intercept",], 0, 3)}
    for j, x in enumerate(xs):
        found["y", j] = logpdf_normal(c["y", j], c["slope",] * x + c["intercept",], noise)
    return found


case("line", line, ([1.0, 2.0, 3.0], 0.5), line_oracle, ([1.0, 2.5, 3.0, 4.0], 0.7))
case("line_shrinks", line, ([1.0, 2.0, 3.0], 0.5), line_oracle, ([1.0], 0.5))


# branching on a choice: addresses come and go


@gen
def branching(p):
    a = trace("a", flip(p))
    if trace("b", flip(0.4)):
        c = trace("c", normal(a, 1.0))
        shared = trace("shared", normal(c, 2.0))
    else:
        trace("d", flip(0.1))
        shared = trace("shared", normal(-1.0, 0.5))
    trace("e", normal(shared, 1.0))
    return shared


def branching_oracle(args, c):
    found = {("a",): logpmf_flip(c["a",], args[0]), ("b",): logpmf_flip(c["b",], 0.4)}
    if c["b",]:
        found["c",] = logpdf_normal(c["c",], c["a",], 1)
        found["shared",] = logpdf_normal(c["shared",], c["c",], 2)
    else:
        found["d",] = logpmf_flip(c["d",], 0.1)
        found["shared",] = logpdf_normal(c["shared",], -1, 0.5)
    found["e",] = logpdf_normal(c["e",], c["shared",], 1)
    return found


case("branching", branching, (0.3,), branching_oracle, (0.6,), batches=False)


# nested and spliced models


@gen
def leaf(mu, scale=1.0):
    z = trace("z", normal(mu, scale))
    return z + trace("w", normal(z, 0.5))


@gen
def nested(mu):
    top = trace("top", normal(mu, 1.0))
    left = trace("left", leaf(top))
    right = trace(("right", 0), leaf(left, scale=2.0))
    return trace("out", normal(right, 1.0))


def leaf_oracle(prefix, c, mu, scale):
    z, w = c[*prefix, "z"], c[*prefix, "w"]
    return {(*prefix, "z"): logpdf_normal(z, mu, scale), (*prefix, "w"): logpdf_normal(w, z, 0.5)}, z + w


def nested_oracle(args, c):
    found = {("top",): logpdf_normal(c["top",], args[0], 1)}
    left, value = leaf_oracle(("left",), c, c["top",], 1.0)
    right, value = leaf_oracle(("right", 0), c, value, 2.0)
    return found | left | right | {("out",): logpdf_normal(c["out",], value, 1)}


case("nested", nested, (0.5,), nested_oracle, (-1.0,))


@gen
def spliced(mu):
    value = splice(leaf(mu, 1.5))
    return trace("out", normal(value, 1.0))


def spliced_oracle(args, c):
    found, value = leaf_oracle((), c, args[0], 1.5)
    return found | {("out",): logpdf_normal(c["out",], value, 1)}


case("spliced", spliced, (0.5,), spliced_oracle, (2.0,))


# the callee at an address depends on a choice


@gen
def small(mu):
    return trace("z", normal(mu, 1.0))


@gen
def callee_changes():
    if trace("which", flip(0.5)):
        value = trace("sub", leaf(1.0))
    else:
        value = trace("sub", small(-1.0))
    trace("kind", normal(value, 1.0) if value.item() > 0 else dist.laplace(value, 2.0))


def callee_oracle(args, c):
    found = {("which",): logpmf_flip(c["which",], 0.5)}
    if c["which",]:
        sub, value = leaf_oracle(("sub",), c, 1.0, 1.0)
    else:
        value = c["sub", "z"]
        sub = {("sub", "z"): logpdf_normal(value, -1, 1)}
    kind = stats.norm.logpdf(c["kind",], value, 1) if value > 0 else stats.laplace.logpdf(c["kind",], value, 2)
    return found | sub | {("kind",): float(kind)}


case("callee_changes", callee_changes, (), callee_oracle, batches=False)


# recursion


@gen
def geometric_walk(x):
    here = trace("x", normal(x, 1.0))
    if trace("stop", flip(0.6)):
        return here
    return trace("rest", geometric_walk(here))


def walk_oracle(args, c, prefix=()):
    here = c[*prefix, "x"]
    found = {(*prefix, "x"): logpdf_normal(here, args[0], 1)}
    found[*prefix, "stop"] = logpmf_flip(c[*prefix, "stop"], 0.6)
    return found if c[*prefix, "stop"] else found | walk_oracle((here,), c, (*prefix, "rest"))


case("recursive", geometric_walk, (0.0,), walk_oracle, (1.0,), batches=False)


# a count that decides how many choices there are


@gen
def counted(rate):
    k = trace("k", dist.poisson(rate))
    for i in range(int(k.item())):
        trace(("value", i), dist.uniform(0, 1))


def counted_oracle(args, c):
    k = int(c["k",])
    found = {("k",): float(stats.poisson.logpmf(k, args[0]))}
    return found | {("value", i): float(stats.uniform.logpdf(c["value", i])) for i in range(k)}


case("counted", counted, (2.5,), counted_oracle, (4.0,), batches=False)


# vector, matrix and simplex sites


@gen
def vectors(xs):
    weights = trace("weights", normal(mx.zeros((2,)), mx.array([1.0, 2.0])))
    matrix = trace("matrix", normal(mx.zeros((2, 3)), 1.5))
    mean = xs @ weights + matrix.sum()
    trace("y", normal(mean, 1.0))
    return mean


def vectors_oracle(args, c):
    xs = np.array(args[0], np.float64)
    mean = xs @ c["weights",] + c["matrix",].sum()
    return {
        ("weights",): logpdf_normal(c["weights",], 0, np.array([1.0, 2.0])),
        ("matrix",): logpdf_normal(c["matrix",], 0, 1.5),
        ("y",): logpdf_normal(c["y",], mean, 1.0),
    }


# Data of length 5, the number of lanes that the batch tests use too: nobody may guess which axis is which.
XS = mx.array([[0.5, 1.0], [-1.0, 0.0], [2.0, 1.0], [0.0, -0.5], [1.5, 1.5]])
case("vectors", vectors, (XS,), vectors_oracle, (XS + 0.5,))


@gen
def simplex_site(alpha):
    probs = trace("probs", dist.dirichlet(alpha))
    for i in range(3):
        trace(("z", i), dist.categorical(mx.log(probs)))
    z = trace("one", dist.categorical(mx.log(probs)))
    return trace("y", normal(z * 1.0, 1.0))


def simplex_oracle(args, c):
    probs = np.asarray(c["probs",], np.float64)
    found = {("probs",): float(stats.dirichlet.logpdf(probs / probs.sum(), np.array(args[0])))}
    found |= {("z", i): float(np.log(probs[int(c["z", i])])) for i in range(3)}
    found["one",] = float(np.log(probs[int(c["one",])]))
    return found | {("y",): logpdf_normal(c["y",], c["one",], 1)}


case("simplex", simplex_site, (mx.array([2.0, 3.0, 4.0]),), simplex_oracle, (mx.array([1.0, 1.5, 2.0]),))


COVARIANCE = mx.array([[2.0, 0.5], [0.5, 1.0]])


@gen
def gaussian_vector(scale):
    x = trace("x", dist.multivariate_normal(mx.array([1.0, -1.0]), scale * COVARIANCE))
    trace("y", dist.multivariate_normal(x, COVARIANCE))


def gaussian_vector_oracle(args, c):
    cov = np.array(COVARIANCE, np.float64)
    return {
        ("x",): float(stats.multivariate_normal.logpdf(c["x",], [1, -1], args[0] * cov)),
        ("y",): float(stats.multivariate_normal.logpdf(c["y",], c["x",], cov)),
    }


case("gaussian_vector", gaussian_vector, (1.5,), gaussian_vector_oracle, (0.5,))


# discrete


@gen
def coins(p):
    first = trace("first", flip(p))
    second = trace("second", flip(mx.where(first == 1, 0.9, 0.2)))
    trace("both", flip(0.1 + 0.8 * first * second))
    return first + second


def coins_oracle(args, c):
    a, b = int(c["first",]), int(c["second",])
    return {
        ("first",): logpmf_flip(a, args[0]),
        ("second",): logpmf_flip(b, 0.9 if a else 0.2),
        ("both",): logpmf_flip(c["both",], 0.1 + 0.8 * a * b),
    }


case("coins", coins, (0.3,), coins_oracle, (0.8,))


# positive choices, through several families


@gen
def positive(shape):
    rate = trace("rate", dist.gamma(shape, 2.0))
    scale = trace("scale", dist.half_normal(1.0))
    trace("wait", dist.exponential(rate))
    trace("count", dist.poisson(rate + scale))
    return rate


def positive_oracle(args, c):
    rate, scale = c["rate",], c["scale",]
    return {
        ("rate",): float(stats.gamma.logpdf(rate, args[0], scale=0.5)),
        ("scale",): float(stats.halfnorm.logpdf(scale)),
        ("wait",): float(stats.expon.logpdf(c["wait",], scale=1 / rate)),
        ("count",): float(stats.poisson.logpmf(c["count",], rate + scale)),
    }


case("positive", positive, (2.0,), positive_oracle, (3.5,))


# no choices at all, and none that are random


@gen
def deterministic(x):
    return 2 * x


case("deterministic", deterministic, (mx.array(1.5),), lambda args, c: {}, (mx.array(2.0),))


@gen
def point_masses(x):
    a = trace("a", dist.delta(x))
    return trace("y", normal(a, 1.0))


def point_oracle(args, c):
    return {("a",): 0.0 if c["a",] == args[0] else -np.inf, ("y",): logpdf_normal(c["y",], c["a",], 1)}


case("point_masses", point_masses, (1.5,), point_oracle)


# keyword-only arguments, a nested structure as an argument, a nested structure returned


@gen
def keywords(data, *, scale=1.0):
    mu = trace("mu", normal(data["mean"], scale))
    trace("pair", leaf(mu, scale=scale))
    return {"mu": mu, "list": [mu * 2, (mu, "label")]}


def keywords_oracle(args, c):
    pair, _ = leaf_oracle(("pair",), c, c["mu",], 1.0)
    return {("mu",): logpdf_normal(c["mu",], args[0]["mean"], 1.0)} | pair


case("keywords", keywords, ({"mean": 1.0},), keywords_oracle, ({"mean": -2.0},))


# distributions are generative functions too; their own choice lies at the empty address

for name, call, oracle in [
    ("dist_normal", (dist.normal, (0.5, 2.0), (1.0, 2.0)), lambda a, c: {(): logpdf_normal(c[()], a[0], a[1])}),
    ("dist_flip", (dist.flip, (0.25,), (0.5,)), lambda a, c: {(): logpmf_flip(c[()], a[0])}),
    (
        "dist_vector",
        (dist.normal, (XS, 1.0), (XS + 1, 1.0)),
        lambda a, c: {(): logpdf_normal(c[()], np.array(a[0]), 1.0)},
    ),
]:
    case(name, call[0], call[1], oracle, call[2])
