"""Unconstrained coordinates: Jacobians against differentiation and differences, round trips, edges, traced bounds."""

import math

import mlx.core as mx
import numpy as np
import pytest

from genmlx import dist
from genmlx.dist import bijectors, support
from genmlx.dist.circle import circle
from genmlx.dist.delta import Point
from genmlx.dist.mixture import Union, UnionOverAxis
from genmlx.dist.transformed import Image
from genmlx.dist.unconstrain import unconstrained
from genmlx.errors import UsageError

LO, HI = mx.array([-1.0, 2.0, 0.5]), mx.array([1.0, 2.5, 90.0])


def whole(x):
    return x.reshape(-1)


def all_but_last(x):
    return x[..., :-1].reshape(-1)


def triangle(k):
    def lower(x):
        rows, columns = np.tril_indices(x.shape[-1], k)
        return x[..., mx.array(rows), mx.array(columns)].reshape(-1)

    return lower


CASES = {
    "real": (support.real, (), whole),
    "real array": (support.real, (2, 3), whole),
    "positive": (support.positive, (), whole),
    "nonnegative": (support.nonnegative, (3,), whole),
    "above a number": (support.Interval(2.5, math.inf), (2,), whole),
    "below a number": (support.Interval(-math.inf, -2.0), (2,), whole),
    "below an array": (support.Interval(-math.inf, LO), (3,), whole),
    "above an array": (support.Interval(LO, math.inf), (2, 3), whole),
    "unit": (support.unit_interval, (), whole),
    "open unit": (support.open_unit_interval, (2,), whole),
    "interval": (support.Interval(-3.0, 5.0), (2,), whole),
    "between arrays": (support.Interval(LO, HI), (3,), whole),
    "infinite on both sides": (support.Interval(-math.inf, math.inf), (2,), whole),
    "some ends infinite": (
        support.Interval(mx.array([-math.inf, 0.0, -math.inf, -1.0]), mx.array([math.inf, math.inf, 3.0, 1.0])),
        (4,),
        whole,
    ),
    "simplex": (support.simplex, (4,), all_but_last),
    "simplices": (support.simplex, (2, 3), all_but_last),
    "ordered": (support.Ordered(), (4,), whole),
    "cholesky correlation": (support.cholesky_correlation, (4, 4), triangle(-1)),
    "cholesky correlations": (support.cholesky_correlation, (2, 3, 3), triangle(-1)),
    "positive definite": (support.positive_definite, (3, 3), triangle(0)),
    "positive definites": (support.positive_definite, (2, 2, 2), triangle(0)),
    "vector": (support.positive_vector, (3,), whole),
    "vectors of simplices": (support.Vector(support.simplex), (2, 3), all_but_last),
    "iid": (dist.iid(dist.uniform(0, 2), (2, 2)).support, (2, 2), whole),
    "iid with batches": (dist.iid(dist.uniform(LO, HI), 2).support, (3, 2), whole),
    "image": (Image(support.positive, bijectors.affine(-1.0, 3.0)), (2,), whole),
    "image of images": (Image(Image(support.real, bijectors.sigmoid), bijectors.affine(2.0, -3.0)), (), whole),
    "union": (Union([support.Interval(0.0, 1.0), support.Interval(2.0, 3.0)]), (2,), whole),
    "union with a half line": (Union([support.positive, support.Interval(-2.0, 3.0)]), (2,), whole),
    "union over an axis": (UnionOverAxis(support.Interval(mx.array([0.0, 2.0]), mx.array([1.0, 3.0]))), (2,), whole),
    "no dimension": (support.simplex, (1,), all_but_last),
}


@pytest.fixture(params=list(CASES))
def case(request):
    the_set, shape, free = CASES[request.param]
    way = unconstrained(the_set, shape)
    rng = np.random.default_rng(len(request.param))
    return the_set, way, free, mx.array(rng.normal(0, 1.2, way.size).astype("float32"))


def jacobian(f, u):
    n = f(u).size
    return np.array(mx.vmap(lambda c: mx.vjp(f, [u], [c])[1][0])(mx.eye(n)), dtype=np.float64).reshape(n, u.size)


def test_log_det_is_that_of_the_jacobian(case):
    """Catches a forgotten factor (the 2^k of log-Cholesky, the width of an interval) and a wrong power."""
    _, way, free, u = case
    if way.size == 0:
        assert way.forward(u)[1].item() == 0
        return
    matrix = jacobian(lambda u: free(way.forward(u)[0]), u)
    assert matrix.shape == (way.size, way.size), "as many coordinates as free elements"
    assert way.forward(u)[1].item() == pytest.approx(np.linalg.slogdet(matrix)[1], abs=2e-4)
    step = 1e-2
    for i in range(way.size):  # the differentiation itself against differences
        e = mx.array(np.eye(way.size, dtype="float32")[i] * step)
        difference = np.array(free(way.forward(u + e)[0]) - free(way.forward(u - e)[0])) / (2 * step)
        np.testing.assert_allclose(matrix[:, i], difference, rtol=2e-2, atol=2e-3)


def test_values_lie_in_the_set_and_return(case):
    """Catches an inverse that is none, and values outside of the set or of another shape."""
    the_set, way, _, u = case
    x, _ = way.forward(u)
    assert x.shape == way.shape
    if not isinstance(the_set, (Union, UnionOverAxis)):  # of which it is the hull
        assert mx.all(the_set.contains(x)).item()
    np.testing.assert_allclose(np.array(way.inverse(x)), np.array(u), atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("far", [-200.0, -60.0, -18.0, 18.0, 60.0, 200.0])
@pytest.mark.parametrize("name", [n for n in CASES if "union" not in n and "iid" not in n and n != "no dimension"])
def test_far_out_values_stay_inside_and_nothing_is_nan(name, far):
    """Catches 1 / (1 + e^-20) == 1 leaving an open interval, and 0 * inf in the gradients of unused branches."""
    the_set, shape, _ = CASES[name]
    way = unconstrained(the_set, shape)
    if far > 18 and isinstance(the_set, (support.Ordered, support.PositiveDefinite, Image)):
        return  # sums and products of such numbers are beyond float32
    u = mx.full((way.size,), far)
    x, log_det = way.forward(u)
    assert mx.all(mx.isfinite(x)).item() and math.isfinite(log_det.item())
    gradient = mx.grad(lambda u: way.forward(u)[1] + 1e-30 * mx.sum(way.forward(u)[0]))(u)
    assert mx.all(mx.isfinite(gradient)).item()
    # beyond 20 an increment, a pivot or a row of length one has no float32 that differs
    if isinstance(the_set, (support.Interval, support.Simplex, support.Real)):
        assert mx.all(the_set.contains(x)).item()


def test_small_cases_by_hand():
    """Catches a different parametrisation: these are the formulas of the Stan reference manual, chapter 10."""
    u = mx.array([0.3, -0.7])
    z1, z2 = 1 / (1 + math.exp(-(0.3 - math.log(2)))), 1 / (1 + math.exp(0.7))
    x, log_det = unconstrained(support.simplex, (3,)).forward(u)
    expected = [z1, (1 - z1) * z2, (1 - z1) * (1 - z2)]
    np.testing.assert_allclose(np.array(x), expected, rtol=1e-6)
    assert log_det.item() == pytest.approx(
        math.log(z1 * (1 - z1)) + math.log(z2 * (1 - z2)) + math.log(1 - z1), abs=1e-6
    )
    x, _ = unconstrained(support.cholesky_correlation, (2, 2)).forward(mx.array([0.5]))
    np.testing.assert_allclose(np.array(x), [[1, 0], [math.tanh(0.5), 1 / math.cosh(0.5)]], rtol=1e-6)
    x, log_det = unconstrained(support.positive_definite, (2, 2)).forward(mx.array([0.2, 0.5, -0.1]))
    a, b, c = math.exp(0.2), 0.5, math.exp(-0.1)
    np.testing.assert_allclose(np.array(x), [[a * a, a * b], [a * b, b * b + c * c]], rtol=1e-6)
    assert log_det.item() == pytest.approx(math.log(4 * a**3 * c**2), abs=1e-5)


def test_uniform_probability_vector_and_independence_are_at_zero():
    for n in (2, 5, 40):
        x, _ = unconstrained(support.simplex, (n,)).forward(mx.zeros((n - 1,)))
        np.testing.assert_allclose(np.array(x), 1 / n, rtol=2e-6)


def test_circle_integrates_to_the_circle():
    """The plane's integral is the circle's, whatever the density: catches a wrong mass of the radial density."""
    way = unconstrained(circle, ())
    assert way.size == 2
    grid = np.linspace(-3, 3, 401).astype("float32")
    points = mx.array(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2) + 1e-4)
    x, log_weight = mx.vmap(way.forward)(points)
    cell = float(grid[1] - grid[0]) ** 2
    for mu, kappa in ((0.0, 0.5), (math.pi, 3.0)):
        density = np.exp(np.array(dist.von_mises(mu, kappa).log_prob(x) + log_weight, dtype=np.float64))
        assert density.sum() * cell == pytest.approx(1, abs=1e-4)


def test_circle_has_no_seam():
    """Catches coordinates in which angles on both sides of pi are far apart."""
    way = unconstrained(circle, (2,))
    u = way.inverse(mx.array([math.pi - 0.01, -math.pi + 0.01])).reshape(2, 2)
    assert mx.max(mx.abs(u[0] - u[1])).item() < 0.03
    np.testing.assert_allclose(np.array(way.forward(u.reshape(-1))[0]), [math.pi - 0.01, -math.pi + 0.01], atol=1e-6)
    assert mx.all(mx.isfinite(mx.grad(lambda u: way.forward(u)[1])(mx.zeros((4,))))).item()


def test_traced_bounds_pass_their_gradient_on():
    """uniform(0, hi): x and log |det| both depend on hi; catches bounds taken as constants."""
    u = mx.array([0.4])

    def parts(hi):
        return unconstrained(support.Interval(0.0, hi), ()).forward(u)

    share = 1 / (1 + math.exp(-0.4))
    in_lane = mx.vmap(lambda hi: mx.grad(lambda hi: parts(hi)[0])(hi))(mx.array([2.0]))
    assert in_lane.item() == pytest.approx(share, rel=1e-6)
    assert mx.grad(lambda hi: parts(hi)[1])(mx.array(2.0)).item() == pytest.approx(0.5, rel=1e-6)
    infinite = mx.vmap(lambda hi: mx.grad(lambda hi: parts(hi)[0])(hi))(mx.array([math.inf]))
    assert infinite.item() == 0


def test_values_on_an_edge_or_outside_have_no_finite_coordinates():
    for the_set, shape, x in (
        (support.unit_interval, (), 0.0),
        (support.unit_interval, (), 1.5),
        (support.positive, (), -1.0),
        (support.simplex, (3,), [0.5, 0.5, 0.0]),
        (support.Ordered(), (2,), [1.0, 0.5]),
        (support.positive_definite, (2, 2), [[1.0, 2.0], [2.0, 1.0]]),
    ):
        assert not mx.all(mx.isfinite(unconstrained(the_set, shape).inverse(mx.array(x)))).item()


def test_a_delta_has_no_coordinates():
    way = unconstrained(Point(mx.array([2.0, 3.0])), (2,))
    x, log_det = way.forward(mx.zeros((0,)))
    assert way.size == 0 and x.tolist() == [2.0, 3.0] and log_det.item() == 0


@pytest.mark.parametrize("the_set", [support.boolean, support.natural, support.Integers(0, 3)])
def test_discrete_sets_have_none(the_set):
    with pytest.raises(UsageError, match="discrete values have no unconstrained coordinates"):
        unconstrained(the_set, ())
