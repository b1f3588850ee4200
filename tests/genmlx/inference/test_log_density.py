"""LogDensity: against assess and dense Jacobians, evidences by quadrature, differences, lanes, replays; its errors."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import integrate, stats

from genmlx import (
    choicemap,
    dist,
    gen,
    map_over,
    mask,
    mix,
    normal,
    param,
    recurse,
    repeat,
    scan,
    splice,
    switch,
    trace,
    unfold,
    vmap,
)
from genmlx.combinators import dimap
from genmlx.errors import BatchError, GenError, MissingChoice, UnknownAddress, UsageError, ValueMismatch
from genmlx.inference.log_density import LogDensity
from genmlx.inference.replay import REPLAYED
from genmlx.inference.starts import NoStartingPoint

# models


@gen
def centred(xs):
    mu = trace("mu", normal(1, 2))
    tau = trace("tau", dist.half_cauchy(3.0))
    for j, x in enumerate(xs):
        theta = trace(("theta", j), normal(mu, tau))
        trace(("y", j), normal(theta * x, 0.5))


@gen
def dependent(scale):
    x = trace("x", dist.uniform(0, scale))
    z = trace("z", dist.uniform(-x, 2 * x))
    w = trace("w", dist.pareto(3.0, x))
    t = trace("t", dist.truncated_normal(0.0, 1.0, z, math.inf))
    trace("y", normal(z + w + t, 1.0))


@gen
def matrices():
    p = trace("p", dist.dirichlet([1.0, 2.0, 3.0]))
    factor = trace("L", dist.lkj_cholesky(3, 2.0))
    cov = trace("S", dist.wishart(5.0, mx.eye(3)))
    v = trace("v", dist.multivariate_normal(mx.zeros(3), cov))
    pair = trace("pair", dist.product([normal(0, 1), dist.gamma(2.0, 1.0)]))
    trace("y", normal(mx.sum((factor @ v) * p) + pair[0] * pair[1], 1.0))


@gen
def scaled(mu):
    s = trace("s", dist.gamma(2.0, 1.0))
    return trace("z", normal(mu, s))


@gen
def state(t, x):
    return trace("x", normal(0.5 * x, trace("q", dist.exponential(2.0))))


@gen
def carry(total, x):
    b = trace("b", dist.beta(2.0, 3.0))
    trace("y", normal(total, 1.0))
    return total + b * x, b


@gen
def plates():
    a = trace("a", normal(0, 1))
    left = trace("left", vmap(scaled)(mx.array([0.0, 1.0, 2.0]) + a))
    many = trace("many", repeat(dist.dirichlet, 2)(mx.array([1.0, 2.0, 3.0])))
    trace("y", normal(mx.sum(left) + mx.sum(many[:, 0]), 1.0))


@gen
def columns():
    a = trace("a", dist.uniform(1, 2))
    zs = trace("zs", map_over(scaled)([a, 2 * a]))
    trace("y", normal(zs[0] + zs[1], 1.0))


@gen
def chains():
    xs = trace("xs", unfold(state)(3, 1.0))
    total, _ = trace("scan", scan(carry)(xs[-1], [1.0, 2.0]))
    trace("y", normal(total, 1.0))


@gen
def other(mu):
    s = trace("s", dist.uniform(0, 3))
    return trace("z", normal(mu, s)) * 2


@gen
def branches(k):
    """The switch's index is traced in each lane of the vmap: both branches run."""
    z = trace("z", vmap(switch(scaled, other), in_axes=(0, None))(k, 0.5))
    on = trace("on", mask(scaled)(True, 1.0))
    shifted = trace("shifted", dimap(scaled, lambda mu: (mu + 1,), lambda ret: ret + 1)(2.0))
    trace("y", normal(mx.sum(z) + on + shifted, 1.0))


def _tree(self):
    @gen
    def node(depth):
        x = trace("x", dist.gamma(2.0, 2.0))
        return x if depth == 0 else x + trace("next", self(depth - 1))

    return node


@gen
def nested(n):
    inner = splice(scaled(0.0))
    tree = trace("tree", recurse(_tree)(n))
    picked = trace("mix", mix([scaled, other], [0.0, 0.0])(0.5))
    trace("y", normal(inner + tree + picked, 1.0))


@gen
def long():
    """Sequences of more than 32 steps are run as a whole."""
    q = trace("q", dist.exponential(1.0))
    zs = trace("zs", map_over(whole_step)(mx.arange(40).astype(mx.float32), [q] * 40))
    xs = trace("xs", unfold(walk)(40, 0.0, q))
    trace("y", normal(xs[-1] + zs[3], 1.0))


@gen
def whole_step(x, q):
    return trace("z", dist.gamma(2.0 + q, 1.0)) + x


@gen
def walk(t, x, q):
    trace("obs", normal(x, 1.0))
    return trace("x", dist.log_normal(-mx.tanh(x), 0.1 + mx.tanh(q)))


MODELS = {
    "centred": (centred([1.0, 2.0]), {("y", 0): 1.0, ("y", 1): -0.5}),
    "dependent supports": (dependent(3.0), {"y": 1.0}),
    "matrices": (matrices(), {"y": 0.3}),
    "plates": (plates(), {"y": 2.0}),
    "columns": (columns(), {"y": 2.0}),
    "chains": (chains(), {"y": 0.5, ("scan", 0, "y"): 1.0, ("scan", 1, "y"): 1.0}),
    "branches": (branches(mx.array([0, 1, 1])), {"y": 2.0}),
    "nested": (nested(2), {"y": 2.0, ("mix", "component"): 1}),
    "long": (long(), {"y": 1.0, **{("xs", t, "obs"): 0.1 * t for t in range(40)}}),
}


@pytest.fixture(params=list(MODELS), scope="module")
def model(request):
    call, observations = MODELS[request.param]
    density = LogDensity(call, observations)
    u = density.initial(mx.random.key(3), 3)
    return call, choicemap(observations), density, u


def free_part(address, value_shape):
    """Which elements of a flattened latent are free: those that its density is with respect to."""
    if address[0] in ("p", "many"):
        return np.arange(math.prod(value_shape)).reshape(value_shape)[..., :-1].reshape(-1)
    if address == ("L",):
        return np.ravel_multi_index(np.tril_indices(3, -1), (3, 3))
    if address == ("S",):
        return np.ravel_multi_index(np.tril_indices(3), (3, 3))
    return np.arange(math.prod(value_shape))


# the density


def test_logp_is_assess_plus_the_jacobian(model):
    """The whole contract, through every combinator: catches a weight that a combinator drops, counts twice or masks,
    a Jacobian that forgets that bounds depend on other latents, and coordinates handed to the wrong site."""
    call, observations, density, u = model
    latents = density.unpack(u[0])
    assert density.joint(u[0]).item() == pytest.approx(call.assess(latents | observations).score.item(), abs=1e-4)
    rows = []
    for address, value in latents.items():
        rows.append(np.array(density.slope(u[0], address), dtype=np.float64)[free_part(address, value.shape)])
    matrix = np.concatenate(rows)
    assert matrix.shape == (density.dim, density.dim)
    log_det = np.linalg.slogdet(matrix)[1]
    assert density.logp(u[0]).item() - density.joint(u[0]).item() == pytest.approx(log_det, abs=3e-3)


def test_gradients_are_those_of_differences(model):
    """Catches a gradient lost to a materialised value, a stopped bound, or a cotangent through a comparison."""
    _, _, density, u = model
    value, gradient = density.value_and_grad(u)
    assert value.tolist() == density.logp(u).tolist()
    rng = np.random.default_rng(0)
    for lane in range(len(u)):
        direction = mx.array(rng.normal(size=density.dim).astype("float32"))
        step = 2e-3
        ends = density.logp(mx.stack([u[lane] + step * direction, u[lane] - step * direction]))
        slope = mx.sum(gradient[lane] * direction).item()
        size = 2 * 2.0**-24 * (abs(ends[0].item()) * 20 + 20) / step
        assert (ends[0] - ends[1]).item() / (2 * step) == pytest.approx(slope, rel=2e-2, abs=0.02 + size)


def test_batches_equal_lanes_and_replays_equal_runs(model):
    """Catches lanes that mix, and a recorded graph that does something else than the run: bit for bit."""
    _, _, density, u = model
    runs = [density.value_and_grad(u) for _ in range(3)]
    by_handlers = density._by_handlers("logp gradient", u, [])
    for value, gradient in runs:
        assert mx.array_equal(value, by_handlers[0]).item() and mx.array_equal(gradient, by_handlers[1]).item()
    assert density.execution == REPLAYED
    for lane in range(3):
        value, gradient = density.value_and_grad(u[lane])
        assert value.shape == () and gradient.shape == (density.dim,)
        assert value.item() == pytest.approx(runs[0][0][lane].item(), rel=1e-5, abs=1e-4)
        scale = 1 + mx.max(mx.abs(gradient)).item()
        assert mx.max(mx.abs(gradient - runs[0][1][lane])).item() < 1e-4 * scale


def test_pack_and_unpack_undo_each_other(model):
    """In either order, alone and in a batch; catches addresses and lanes that change places."""
    call, observations, density, u = model
    batch = density.unpack(u)
    assert batch.n == 3
    assert mx.allclose(density.pack(batch), u, atol=5e-3, rtol=1e-3).item()
    one = density.unpack(u[1])
    for address, value in one.items():
        assert mx.allclose(value, batch[address][1], rtol=1e-5, atol=1e-6).item()
    again = density.unpack(density.pack(one | observations))
    for address, value in one.items():
        assert mx.allclose(value, again[address], rtol=1e-4, atol=1e-5).item()
    drawn = call.generate(observations, mx.random.key(9)).trace.choices
    back = density.unpack(density.pack(drawn))
    for address, value in back.items():
        assert mx.allclose(value, drawn[address], rtol=1e-3, atol=1e-4).item(), address


def test_addresses_are_slices_in_the_order_of_the_run():
    density = LogDensity(*MODELS["matrices"])
    assert density.addresses == {
        ("p",): slice(0, 2),
        ("L",): slice(2, 5),
        ("S",): slice(5, 11),
        ("v",): slice(11, 14),
        ("pair", 0): slice(14, 15),
        ("pair", 1): slice(15, 16),
    }
    assert density.dim == 16
    assert repr(density) == "<LogDensity of matrices(): 16 dimensions, 'p', 'L', 'S', 'v', ... 2 more>"


def test_traces_at_a_vector():
    call, observations = MODELS["dependent supports"]
    density = LogDensity(call, observations)
    u = mx.array([0.1, -0.3, 0.7, 0.2])
    tr = density.trace(u)
    assert tr["y"].item() == 1.0 and tr["z"].item() == density.unpack(u)["z"].item()
    assert tr.score.item() == pytest.approx(density.joint(u).item(), abs=1e-5)


def test_works_inside_a_batch_of_someone_else():
    """A sampler's step: u is one lane of an outer vmap, and of a vmap that is exported."""
    from genmlx.backend.recording import recorded

    density = LogDensity(*MODELS["plates"])
    u = density.initial(mx.random.key(0), 4)
    expected, gradient = density.value_and_grad(u)

    def step(u):
        return mx.vmap(lambda row: mx.stack([density.logp(row), mx.sum(density.value_and_grad(row)[1])]))(u)

    for found in (step(u), recorded(lambda u: [step(u)], u)(u)[0]):
        assert mx.allclose(found[:, 0], expected, rtol=1e-5).item()
        assert mx.allclose(found[:, 1], mx.sum(gradient, axis=1), rtol=1e-4, atol=1e-4).item()
    packed = mx.vmap(lambda row: density.pack(density.unpack(row)))(u)
    assert mx.allclose(packed, u, atol=1e-3).item()


@pytest.mark.parametrize("name", ["matrices", "long"])
def test_batches_of_batches(name):
    """A recorded graph with a factorization crashes the process when it is batched: it must not be used there."""
    density = LogDensity(*MODELS[name])
    u = density.initial(mx.random.key(0), 2)
    for _ in range(3):
        expected = density.value_and_grad(u)
    assert density.execution == REPLAYED
    stacked = mx.vmap(lambda rows: density.value_and_grad(rows))(mx.stack([u, u[::-1]]))
    for found, one in zip(stacked, expected, strict=True):
        assert mx.allclose(found[0], one, rtol=1e-4, atol=1e-3).item()
        assert mx.allclose(found[1], one[::-1], rtol=1e-4, atol=1e-3).item()


def test_gathered_latents():
    """theta[group]: the scatter of its gradient under vmap, against differences."""
    group = mx.array([0, 2, 1, 1, 2, 0])

    @gen
    def grouped():
        theta = trace("theta", dist.iid(normal(0, 1), 3))
        table = trace("table", dist.iid(normal(0, 1), (3, 3)))
        trace("y", normal(theta[group] + table[:, group][1] * table[group][:, 2], 1.0))

    density = LogDensity(grouped(), {"y": mx.arange(6).astype(mx.float32)})
    u = mx.random.normal((3, 12), key=mx.random.key(1))
    _, gradient = density.value_and_grad(u)
    for i in range(12):
        e = mx.array(np.eye(12, dtype="float32")[i]) * 1e-2
        difference = (density.logp(u + e) - density.logp(u - e)) / 2e-2
        np.testing.assert_allclose(np.array(gradient[:, i]), np.array(difference), rtol=1e-2, atol=1e-2)


# evidences: integrals of exp(logp) over u


def grid_integral(density, low=-12.0, high=12.0, n=2001):
    grid = np.linspace(low, high, n if density.dim == 1 else 301).astype("float32")
    if density.dim == 1:
        points = grid[:, None]
    else:
        points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2) + np.float32(1e-3)
    value = np.exp(np.array(density.logp(mx.array(points)), dtype=np.float64))
    return float(value.sum()) * float(grid[1] - grid[0]) ** density.dim


def _cubic(y):
    """The real root of x^3 + x = y."""
    s = mx.sqrt(y * y / 4 + 1 / 27)

    def root(v):
        return mx.sign(v) * mx.power(mx.abs(v) + 1e-30, 1 / 3)

    return root(y / 2 + s) + root(y / 2 - s)


PRIORS = {
    "normal": normal(0.5, 1.5),
    "gamma": dist.gamma(2.0, 1.0),
    "gamma below one": dist.gamma(0.8, 1.0),
    "beta": dist.beta(0.9, 2.0),
    "uniform": dist.uniform(-1.0, 2.0),
    "truncated above": dist.truncated_normal(0.0, 1.0, -math.inf, 0.5),
    "truncated": dist.truncated(dist.logistic(0.0, 1.0), -1.0, 2.0),
    "pareto": dist.pareto(3.0, 0.5),
    "piecewise": dist.piecewise_uniform([0.0, 1.0, 3.0], [0.5, 0.5]),
    "gap": dist.mixture([dist.uniform(0, 1), dist.uniform(2, 3)], mx.array([0.0, 0.0])),
    "stacked uniforms": dist.mixture(dist.uniform(mx.array([0.0, 0.5]), mx.array([1.0, 3.0])), mx.array([0.0, 0.7])),
    "transformed": dist.transformed(dist.gamma(3.0, 2.0), dist.bijectors.affine(-1.0, 2.0)),
    "own": dist.dist_transform(normal, lambda x: x**3 + x, lambda y: _cubic(y))(0.0, 0.5),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors_integrate_to_one(name):
    """Catches any map whose Jacobian does not go with its density, and supports that are only partly covered."""

    @gen.new
    def model():
        trace("x", PRIORS[name])

    density = LogDensity(model())
    assert density.dim == 1
    if name in ("gap", "piecewise", "stacked uniforms"):  # steps in the integrand
        total = grid_integral(density, n=200_001)
        assert total == pytest.approx(1, abs=2e-3)
    else:
        assert grid_integral(density, -20, 20, 4001) == pytest.approx(1, abs=2e-4)


@gen
def gamma_poisson():
    rate = trace("rate", dist.gamma(2.0, 1.0))
    for j in range(2):
        trace(("y", j), dist.poisson(rate))


@gen
def beta_binomial():
    trace("y", dist.binomial(20, trace("p", dist.beta(1.0, 1.0))))


@gen
def dirichlet_categorical():
    p = trace("p", dist.dirichlet([1.0, 1.0, 1.0]))
    for j in range(3):
        trace(("y", j), dist.categorical(mx.log(p)))


@gen
def two_uniforms():
    x = trace("x", dist.uniform(0, 2))
    trace("y", normal(trace("z", dist.uniform(0, x)), 0.5))


def two_uniforms_evidence():
    def inner(x):
        return integrate.quad(lambda z: stats.norm.pdf(0.7, z, 0.5) / (2 * x), 0, x)[0]

    return math.log(integrate.quad(inner, 0, 2)[0])


@gen
def angle():
    trace("y", normal(mx.cos(trace("a", dist.von_mises(3.0, 1.5))), 0.3))


def angle_evidence():
    def f(a):
        return stats.vonmises.pdf(a, 1.5, loc=3.0) * stats.norm.pdf(-0.5, math.cos(a), 0.3)

    return math.log(integrate.quad(f, -math.pi, math.pi, limit=200)[0])


@pytest.mark.parametrize(
    "call, observations, log_ml",
    [
        (gamma_poisson(), {("y", 0): 3, ("y", 1): 5}, -4.763547),
        (beta_binomial(), {"y": 14}, -math.log(21)),
        (dirichlet_categorical(), {("y", 0): 0, ("y", 1): 0, ("y", 2): 1}, -math.log(30)),
        (two_uniforms(), {"y": 0.7}, two_uniforms_evidence()),
        (angle(), {"y": -0.5}, angle_evidence()),
    ],
)
def test_evidence_is_the_integral_over_the_vector(call, observations, log_ml):
    """Case 40 and two of our own; catches a constant that is lost on the way."""
    density = LogDensity(call, observations)
    low, high = (-3.0, 3.0) if density.addresses.get(("a",)) else (-16.0, 16.0)
    assert math.log(grid_integral(density, low, high)) == pytest.approx(log_ml, abs=5e-4)


# parameters, constants, structure


def test_parameters_are_read_at_each_call():
    """Catches a recorded graph that froze them."""

    @gen
    def model():
        trace("x", normal(param("theta", 0.0), 1.0))

    density = LogDensity(model())
    u = mx.zeros((2, 1))
    for _ in range(3):
        before = density.value_and_grad(u)[1]
    assert density.execution == REPLAYED and before.tolist() == [[0.0], [0.0]]
    model.params["theta"] = 2.0
    assert density.value_and_grad(u)[1].tolist() == [[2.0], [2.0]]


def test_a_redefined_model_changes_nothing():
    @gen
    def model():
        trace("x", normal(0, 1))

    density = LogDensity(model())
    model.redefine(lambda: trace("x", normal(5, 1)))
    assert density.value_and_grad(mx.array([0.0]))[1].item() == 0


def test_deltas_are_no_coordinates():
    @gen
    def model():
        x = trace("x", normal(0, 1))
        trace("twice", dist.delta(2 * x))
        trace("constant", dist.delta(mx.array([1.0, 2.0])))
        trace("y", normal(x, 1))

    density = LogDensity(model(), {"y": 1.0})
    assert density.dim == 1
    found = density.unpack(mx.array([[0.5], [1.0]]))
    assert found["twice"].tolist() == [1.0, 2.0] and found["constant"].tolist() == [[1.0, 2.0]] * 2
    assert density.pack(found).tolist() == [[0.5], [1.0]]
    assert density.logp(mx.array([0.5])).item() == pytest.approx(stats.norm.logpdf(0.5) * 2, abs=1e-5)


def test_only_so_many_graphs_are_kept():
    """Catches graphs that pile up where every call has another batch size."""
    density = LogDensity(*MODELS["dependent supports"])
    for n in range(1, 60):
        density.logp(mx.zeros((n, 4)))
    assert len(density._graphs) <= 16


def test_the_body_is_not_run_by_a_replay():
    """Case 51 for a density: the runs of the body do not grow with the calls."""
    runs = []

    @gen
    def model():
        runs.append(1)
        trace("x", normal(0, 1))

    density = LogDensity(model())
    for _ in range(2):
        density.value_and_grad(mx.zeros((5, 1)))
    before = len(runs)
    for _ in range(10):
        density.value_and_grad(mx.zeros((5, 1)))
    assert len(runs) == before


def test_what_cannot_be_recorded_is_run_by_handlers():
    """A custom function with a gradient of its own does not export (MLX 0.32.4): slower, never wrong."""

    @mx.custom_function
    def square(x):
        return x * x

    @square.vjp
    def _(primals, cotangent, output):
        return 2 * primals * cotangent

    @square.vmap
    def _(inputs, axes):
        return square(inputs), axes

    own = dist.distribution(lambda key: mx.random.normal(key=key), lambda x: -0.5 * square(x), name="own")

    @gen
    def model():
        trace("x", own())

    density = LogDensity(model())
    for _ in range(4):
        value, gradient = density.value_and_grad(mx.array([[1.0], [3.0]]))
        assert value.tolist() == [-0.5, -4.5] and gradient.tolist() == [[-1.0], [-3.0]]
    assert density.execution.startswith("handlers: ")


# starting points


def test_initial_points_are_finite_and_from_the_prior():
    density = LogDensity(*MODELS["centred"])
    u = density.initial(mx.random.key(0), 2000)
    value, gradient = density.value_and_grad(u)
    assert u.shape == (2000, 4) and mx.all(mx.isfinite(value)).item() and mx.all(mx.isfinite(gradient)).item()
    mu = np.array(density.unpack(u)["mu"])
    assert abs(mu.mean() - 1) < 4.5 * 2 / math.sqrt(2000) and 1.8 < mu.std() < 2.2
    assert mx.array_equal(u, density.initial(mx.random.key(0), 2000)).item()


def test_initial_falls_back_on_a_box():
    """Prior draws around 1000 have no density under the observation; catches a search that stops at the prior."""

    @gen
    def model():
        x = trace("x", normal(1000.0, 0.01))
        trace("y", dist.uniform(mx.minimum(x, 3.0) - 2, mx.maximum(x, -3.0) + 2))
        trace("z", dist.uniform(x - 500.0, x + 500.0))

    u = LogDensity(model(), {"y": 1.0, "z": 0.0}).initial(mx.random.key(0), 4)
    assert mx.all(mx.abs(u) <= 2).item()


def test_an_impossible_start_shows_the_sites():
    @gen
    def impossible():
        x = trace("x", normal(0.0, 1.0))
        trace("y", dist.exponential(1.0))
        trace("z", normal(x, 1.0))

    density = LogDensity(impossible(), {"y": -1.0, "z": 0.5})
    with pytest.raises(NoStartingPoint) as caught:
        density.initial(mx.random.key(0), 2)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("no starting point: the value -1.0 has log probability -inf at 'y' in impossible")
    assert lines[1] == (
        "expected: a finite log density and gradient at one of the 44 points tried: "
        "prior draws, uniform(-2, 2), the prior's median, zero"
    )
    assert lines[2] == "try: correct the observation or its distribution; at the last point"
    assert [line.split()[0] for line in lines[3:]] == ["address", "'y'", "'z'", "'x'"]
    assert lines[4].split()[1:] == ["-1.0", "-inf"]
    assert caught.value.address == ("y",)


# errors


def message(error):
    return str(error.value).replace(error.value.where or "", "FILE:LINE")


def test_discrete_latents_are_named():
    @gen
    def coins():
        for i in range(6):
            trace(("k", i), dist.flip(0.5))
        trace("y", normal(trace("mu", normal(0, 1)), 1))

    with pytest.raises(UsageError) as caught:
        LogDensity(coins(), {"y": 1.0})
    assert message(caught) == (
        "6 latent choices are discrete (('k', 0), ('k', 1), ('k', 2), ('k', 3), ... 2 more): there is no gradient "
        "at ('k', 0) in coins (FILE:LINE)\n"
        "expected: continuous latent choices\n"
        "try: hmc_gibbs, which moves the discrete ones too; gibbs or mh; or a mixture(...) that sums them out"
    )


def test_addresses_that_come_and_go_are_named():
    @gen
    def jumps():
        x = trace("x", normal(0, 1))
        if x > 0:
            trace("above", normal(0, 1))

    with pytest.raises(UsageError) as caught:
        LogDensity(jumps())
    assert message(caught) == (
        "a latent choice exists in some runs and not in others: no fixed vector holds it "
        "at 'above' in jumps (FILE:LINE)\n"
        "expected: a body whose addresses do not depend on its choices\n"
        "try: mh, which takes any body; or observe what it branches on"
    )

    @gen
    def masked():
        x = trace("x", normal(0, 1))
        trace("z", mask(normal)(x > 0, 0.0, 1.0))

    with pytest.raises(UsageError, match="exists in some runs and not in others.* at 'z' in masked"):
        LogDensity(masked())


def test_shapes_that_change_are_named():
    @gen
    def grows():
        x = trace("x", normal(0, 1))
        trace("v", dist.iid(normal(0, 1), 2 if x > 0 else 3))

    with pytest.raises(UsageError, match=r"has shape \[.\] in one run and \[.\] in another.* at 'v' in grows"):
        LogDensity(grows())


def test_host_values_of_latents_are_refused_with_their_line():
    """Alone under mx.grad the value would become a constant without a word."""

    @gen
    def hosted():
        x = trace("x", normal(0, 1))
        trace("y", normal(x.item(), 1))

    with pytest.raises(BatchError) as caught:
        LogDensity(hosted(), {"y": 1.0})
    assert "the body needs the host value of a choice or an argument" in str(caught.value)
    line = hosted.__wrapped__.__code__.co_firstlineno + 3
    assert f"test_log_density.py:{line}" in str(caught.value)


def test_nothing_to_infer():
    with pytest.raises(UsageError, match="nothing to infer: every choice is observed"):
        LogDensity(beta_binomial(), {"y": 3, "p": 0.5})


def test_wrong_observations_vectors_and_choices():
    with pytest.raises(UnknownAddress, match="'yy'"):
        LogDensity(beta_binomial(), {"yy": 3})
    density = LogDensity(beta_binomial(), {"y": 3})
    with pytest.raises(ValueMismatch) as caught:
        density.logp(mx.zeros((2, 3)))
    assert message(caught).splitlines()[1] == "expected: [1], or [n, 1] for a batch"
    with pytest.raises(MissingChoice, match="a latent choice is not given at 'p'"):
        density.pack({})
    with pytest.raises(UnknownAddress, match="'q'"):
        density.pack({"p": 0.5, "q": 1.0})
    with pytest.raises(ValueMismatch) as caught:
        density.pack({"p": 1.5})
    assert message(caught) == (
        "the value has no finite coordinates at 'p' in beta_binomial (FILE:LINE)\n"
        "expected: a value inside the support of its distribution, not on its edge"
    )
    with pytest.raises(GenError, match="not a call"):
        LogDensity(beta_binomial)
