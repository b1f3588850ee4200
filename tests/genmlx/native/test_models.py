"""Densities, gradients and traces of real models as machine code agree with the handlers' run."""

import mlx.core as mx
import numpy as np
import pytest
from gfi_zoo import CASES

from genmlx import dist, flip, gen, normal, trace
from genmlx.backend.gamma_sampler import without_derivatives
from genmlx.dist.values import as_array
from genmlx.inference.log_density import LogDensity
from genmlx.native.kernel import compile_function
from genmlx.params import peek

RNG = np.random.RandomState(0)
V = mx.array([0.2, -0.5, 1.0])
MATRIX = mx.array([[2.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 1.5]])


def positive(x):
    return mx.exp(0.3 * x)


def single(x):
    return mx.array(np.asarray(x, np.float32))


# Families, whose parameters a location a and a scale s make; with what is observed of x, if it is.
FAMILIES = {
    "normal": lambda a, s: normal(a, s),
    "beta": lambda a, s: dist.beta(positive(a), s),
    "gamma": lambda a, s: dist.gamma(positive(a), s),
    "inv_gamma": lambda a, s: dist.inv_gamma(positive(a), s),
    "exponential": lambda a, s: dist.exponential(s),
    "cauchy": lambda a, s: dist.cauchy(a, s),
    "chi2": lambda a, s: dist.chi2(s),
    "gumbel": lambda a, s: dist.gumbel(a, s),
    "half_cauchy": lambda a, s: dist.half_cauchy(s),
    "half_normal": lambda a, s: dist.half_normal(s),
    "laplace": lambda a, s: dist.laplace(a, s),
    "log_normal": lambda a, s: dist.log_normal(a, s),
    "logistic": lambda a, s: dist.logistic(a, s),
    "pareto": lambda a, s: dist.pareto(s, positive(a)),
    "student_t": lambda a, s: dist.student_t(s, a, 1.0),
    "uniform": lambda a, s: dist.uniform(a, a + s),
    "von_mises": lambda a, s: dist.von_mises(a, s),
    "weibull": lambda a, s: dist.weibull(s, positive(a)),
    "wrapped_cauchy": lambda a, s: dist.wrapped_cauchy(a, 0.5),
    "wrapped_normal": lambda a, s: dist.wrapped_normal(a, s),
    "truncated_normal": lambda a, s: dist.truncated_normal(a, s, -1.0, 2.0),
    "truncated": lambda a, s: dist.truncated(normal(a, s), -1.0, 2.0),
    "beta_uniform_mixture": lambda a, s: dist.beta_uniform_mixture(0.3, positive(a), s),
    "dirichlet": lambda a, s: dist.dirichlet(positive(a) * mx.array([1.0, 2.0, 3.0])),
    "multivariate_normal": lambda a, s: dist.multivariate_normal(a * V, s * MATRIX),
    "wishart": lambda a, s: dist.wishart(5.0 + s, MATRIX * positive(a)),
    "inv_wishart": lambda a, s: dist.inv_wishart(5.0 + s, MATRIX * positive(a)),
    "lkj_cholesky": lambda a, s: dist.lkj_cholesky(3, s),
    "piecewise_uniform": lambda a, s: dist.piecewise_uniform(mx.array([-1.0, 0.0, 1.0]), mx.array([0.3, 0.7])),
    "mixture": lambda a, s: dist.mixture([normal(a, s), normal(-a, 1.0)], mx.array([0.3, 0.7])),
    "iid": lambda a, s: dist.iid(normal(a, s), 4),
    "product": lambda a, s: dist.product([normal(a, s), dist.gamma(2.0, s)]),
}
OBSERVED = {
    "bernoulli": (lambda a, s: flip(mx.sigmoid(a)), True),
    "binomial": (lambda a, s: dist.binomial(7, mx.sigmoid(a)), 3),
    "beta_binomial": (lambda a, s: dist.beta_binomial(7, s, positive(a)), 3),
    "categorical": (lambda a, s: dist.categorical(mx.stack([a, s, a * s])), 1),
    "dirichlet_multinomial": (
        lambda a, s: dist.dirichlet_multinomial(5, positive(a) * mx.ones(3)),
        mx.array([1, 2, 2]),
    ),
    "discrete_uniform": (lambda a, s: dist.discrete_uniform(0, 5), 2),
    "geometric": (lambda a, s: dist.geometric(mx.sigmoid(a)), 3),
    "multinomial": (lambda a, s: dist.multinomial(5, mx.softmax(mx.stack([a, s]))), mx.array([2, 3])),
    "neg_binomial": (lambda a, s: dist.neg_binomial(s, mx.sigmoid(a)), 4),
    "ordered_logistic": (lambda a, s: dist.ordered_logistic(a, mx.array([-1.0, 0.5])), 1),
    "poisson": (lambda a, s: dist.poisson(s), 3),
    "zero_inflated_poisson": (lambda a, s: dist.zero_inflated_poisson(mx.sigmoid(a), s), 0),
}


def family(make):
    @gen
    def model():
        trace("x", make(trace("a", normal(0.3, 1.0)), trace("s", dist.gamma(2.0, 1.0))))

    return model()


# Models of the size that people have


@gen
def eight_schools(errors):
    mu, tau = trace("mu", normal(0, 5)), trace("tau", dist.half_cauchy(5.0))
    trace("y", normal(mu + tau * trace("z", normal(mx.zeros(8), 1.0)), errors))


@gen
def logistic(rows):
    weights = trace("weights", normal(mx.zeros(20), 1.0))
    trace("y", flip(mx.sigmoid(rows @ weights + trace("intercept", normal(0, 1)))))


@gen
def hierarchy(group, floor):
    mu, sigma = trace("mu", normal(0, 1)), trace("sigma", dist.half_cauchy(1.0))
    levels = mu + sigma * trace("z", normal(mx.zeros(85), 1.0))
    slope, noise = trace("slope", normal(0, 1)), trace("noise", dist.half_cauchy(1.0))
    trace("y", normal(levels[group] + slope * floor, noise))


@gen
def gaussian_process(x):
    height, length = trace("height", dist.log_normal(0, 1)), trace("length", dist.log_normal(0, 1))
    noise = trace("noise", dist.log_normal(-1, 1))
    kernel = height**2 * mx.exp(-0.5 * mx.square((x[:, None] - x[None]) / length))
    trace("y", dist.multivariate_normal(mx.zeros(50), kernel + (noise**2 + 1e-4) * mx.eye(50)))


@gen
def clusters():
    weights = trace("weights", dist.dirichlet(mx.ones(3)))
    means, scales = trace("means", normal(V, 1.0)), trace("scales", dist.half_normal(mx.ones(3)))
    components = [normal(means[i], scales[i]) for i in range(3)]
    trace("y", dist.iid(dist.mixture(components, weights), 200))


@gen
def by_hand():
    """A scalar site for each of 60 observations."""
    slope, noise = trace("slope", normal(0, 1)), trace("noise", dist.half_normal(1.0))
    for i in range(60):
        trace(("y", i), normal(slope * (i / 60), noise))


MODELS = {
    "eight schools": (
        eight_schools(single([15, 10, 16, 11, 9, 11, 10, 18])),
        {"y": single([28, 8, -3, 7, -1, 1, 18, 12])},
    ),
    "logistic": (logistic(single(RNG.normal(size=(1000, 20)))), {"y": mx.array(RNG.rand(1000) < 0.5)}),
    "hierarchy": (
        hierarchy(mx.array(RNG.randint(0, 85, 919)), single(RNG.rand(919) < 0.3)),
        {"y": single(RNG.normal(size=919))},
    ),
    "Gaussian process": (gaussian_process(single(np.linspace(-3, 3, 50))), {"y": single(RNG.normal(size=50))}),
    "clusters": (clusters(), {"y": single(RNG.normal(size=200))}),
    "by hand": (by_hand(), {("y", i): 0.1 * i for i in range(60)}),
}


def densities():
    for name, make in FAMILIES.items():
        yield pytest.param(family(make), None, id=name)
    for name, (make, y) in OBSERVED.items():
        yield pytest.param(family(make), {"x": y}, id=name)
    for name, (call, observations) in MODELS.items():
        yield pytest.param(call, observations, id=name)
    for case in CASES:
        if repr(case) not in ("callee_changes", "coins", "deterministic", "dist_flip"):  # nothing continuous in them
            call = case.model(*case.args)
            choices = call.simulate(mx.random.key(1)).choices
            yield pytest.param(call, {a: v for a, v in choices.items() if not is_real(v)}, id=f"zoo {case}")


def is_real(value):
    return isinstance(value, float) or (isinstance(value, mx.array) and value.dtype == mx.float32)


def assert_close(native, mlx, tolerance):
    """Floats relative to the largest of their array, or to 1 if that is less; all others exactly."""
    for own, reference in zip(native, mlx, strict=True):
        a, b = np.array(own), np.array(reference)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if b.dtype.kind != "f":
            np.testing.assert_array_equal(a, b)
            continue
        finite = np.isfinite(b)
        np.testing.assert_array_equal(np.where(finite, 0, a), np.where(finite, 0, b))
        np.testing.assert_allclose(a[finite], b[finite], rtol=0, atol=tolerance * np.abs(b[finite]).max(initial=1))


@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
@pytest.mark.parametrize("call, observations", list(densities()))
def test_densities_and_gradients(call, observations, batch):
    """Float32 loses up to 1e-4 of the gradients of the Wishart families, in MLX as in machine code."""
    density = LogDensity(call, observations)
    params = [as_array(peek(model, name)) for model, name in density._params]
    rng = np.random.default_rng(0)
    points = [single(0.7 * rng.normal(size=(*batch, density.dim))) for _ in range(3)]
    for what in ("logp gradient", "joint gradient", "choices"):

        def f(u, *params, what=what):
            return list(density._by_handlers(what, u, list(params)))

        with density._context():
            kernel = compile_function(f, points[0], *params)
            for u in points:
                assert_close(kernel(u, *params), f(u, *params), 1e-4 if call.gen_fn.__name__ == "model" else 2e-5)


def traces():
    for name, make in {**FAMILIES, **{name: make for name, (make, _) in OBSERVED.items()}}.items():
        yield pytest.param(family(make), id=name)
    for case in CASES:
        if case.batches and repr(case) != "deterministic":
            yield pytest.param(case.model(*case.args), id=f"zoo {case}")


@pytest.mark.parametrize("call", list(traces()))
def test_traces_from_keys(call):
    """The same random bits give the same choices: discrete ones exactly."""

    def f(key):
        with without_derivatives():
            trace = call.vsimulate(20, key)
        return [*[as_array(value) for _, value in trace.choices.items()], trace.score]

    kernel = compile_function(f, mx.random.key(0))
    for seed in range(3):
        assert_close(kernel(mx.random.key(seed)), f(mx.random.key(seed)), 1e-4)
