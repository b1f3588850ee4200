"""The integrator: case 38, reversibility and order, and the metrics it moves in."""

import math

import mlx.core as mx
import numpy as np
import pytest

from genmlx.errors import ParameterError
from genmlx.inference.leapfrog import Metric, Point, evaluate, identity_metric, leapfrog, metric


@pytest.fixture(autouse=True)
def on_the_cpu():
    """float64, in which the numbers are exact to 1e-12, exists there only."""
    with mx.stream(mx.cpu):
        yield


def standard(u):
    return -0.5 * mx.sum(u * u, axis=-1), -u


def unit(dim):
    one = mx.ones((dim,), dtype=mx.float64)
    return Metric(one, one)


def trajectory(q, p, step_size, steps, metric, value_and_grad=standard):
    point, momentum = evaluate(value_and_grad, mx.array(q, dtype=mx.float64)), mx.array(p, dtype=mx.float64)
    for _ in range(steps):
        point, momentum = leapfrog(value_and_grad, metric, point.position, point.gradient, momentum, step_size)
    return point, momentum


def energy(point, momentum, metric):
    return np.array(metric.kinetic(momentum) - point.log_prob)


@pytest.mark.parametrize(
    "step_size, steps, q, p, change",
    [
        (0.1, 10, 0.961326445, -0.570667887, -9.4814e-5),
        (0.05, 20, None, None, -2.3834e-5),
        (0.5, 4, 0.029296875, -1.08935546875, None),
    ],
)
def test_the_numbers_of_a_standard_normal(step_size, steps, q, p, change):
    """Case 38. Catches a first gradient used again in the last half kick, and a missing half."""
    point, momentum = trajectory([[1.0]], [[0.5]], step_size, steps, unit(1))
    if q is not None:
        assert point.position.item() == pytest.approx(q, abs=1e-9)
        assert momentum.item() == pytest.approx(p, abs=1e-9)
    if change is not None:
        assert energy(point, momentum, unit(1)).item() - 0.625 == pytest.approx(change, abs=2e-9)


MOMENTA = [[0.5, -1.5, 0.25], [0.0, 2.0, 1.0]]
PLACES = [[1.0, 0.2, -0.7], [0.3, 0.0, 2.0]]


def test_a_vector_moves_each_coordinate_by_its_own_momentum():
    """Of a standard normal each coordinate is a system by itself."""
    point, momentum = trajectory(PLACES, MOMENTA, 0.1, 10, unit(3))
    for chain in range(2):
        for i in range(3):
            alone, p = trajectory([[PLACES[chain][i]]], [[MOMENTA[chain][i]]], 0.1, 10, unit(1))
            assert np.array(point.position)[chain, i] == pytest.approx(alone.position.item(), abs=1e-14)
            assert np.array(momentum)[chain, i] == pytest.approx(p.item(), abs=1e-14)


def quartic(u):
    """Its coordinates pull at each other."""
    total = mx.sum(u, axis=-1, keepdims=True)
    return -mx.sum(u**4, axis=-1) / 4 - 0.5 * total[:, 0] ** 2, -(u**3) - total


def test_reversible_on_vectors():
    start, p = mx.array(PLACES, dtype=mx.float64), mx.array(MOMENTA, dtype=mx.float64)
    point, momentum = trajectory(start, p, 0.1, 25, unit(3), quartic)
    assert np.abs(np.array(point.position - start)).min() > 1e-3
    back, momentum = trajectory(point.position, -momentum, 0.1, 25, unit(3), quartic)
    assert np.abs(np.array(back.position - start)).max() < 1e-12
    assert np.abs(np.array(-momentum - p)).max() < 1e-12


def test_a_negative_step_goes_back():
    point, momentum = trajectory(PLACES, MOMENTA, 0.1, 5, unit(3), quartic)
    back, momentum = trajectory(point.position, momentum, -0.1, 5, unit(3), quartic)
    assert np.abs(np.array(back.position) - PLACES).max() < 1e-12


def test_order_two_on_vectors():
    """Half the step, a quarter of the energy error. Catches a stale gradient, which makes it of order one."""
    m, errors = unit(3), []
    before = energy(*trajectory(PLACES, MOMENTA, 0.1, 0, m, quartic), m)
    for steps in (50, 100, 200):
        errors.append(energy(*trajectory(PLACES, MOMENTA, 0.5 / steps, steps, m, quartic), m) - before)
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert np.all(np.abs(coarse / fine - 4) < 0.1), coarse / fine


def test_a_diagonal_metric_is_the_dense_one_of_its_diagonal():
    scales = [4.0, 0.25, 1.0]
    ends = []
    for m in (metric(scales, 3), metric(np.diag(scales), 3)):
        noise = mx.array(MOMENTA)
        point = evaluate(quartic, mx.array(PLACES))
        momentum = m.momentum(noise)
        for _ in range(10):
            point, momentum = leapfrog(quartic, m, point.position, point.gradient, momentum, 0.05)
        ends.append([*map(np.array, (point.position, momentum, m.kinetic(momentum)))])
    for one, other in zip(*ends, strict=True):
        assert np.allclose(one, other, atol=1e-6)


def test_momenta_have_the_mass_matrix_as_covariance():
    """Every coordinate has noise of its own (defect 5), and velocity is M^-1 p."""
    covariance = np.array([[2.0, 0.6, 0.1], [0.6, 1.0, -0.3], [0.1, -0.3, 0.5]])
    m = metric(covariance, 3)
    p = np.array(m.momentum(mx.random.normal((100_000, 3), key=mx.random.key(0))))
    assert np.allclose(np.cov(p.T), np.linalg.inv(covariance), atol=0.1)
    assert np.allclose(np.array(m.velocity(mx.array(p[:5]))), p[:5] @ covariance, atol=1e-4)
    assert m.kinetic(mx.array(p)).mean().item() == pytest.approx(1.5, abs=0.02)


@pytest.mark.parametrize(
    "inverse_mass",
    [[1.0, 2.0], [1.0, -1.0, 1.0], [1.0, 0.0, 1.0], [1.0, math.nan, 1.0], np.eye(2), -np.eye(3), np.ones((3, 3)),
     np.eye(3) + np.triu(np.ones((3, 3)), 1)],
    ids=["size", "negative", "zero", "nan", "dense size", "negative definite", "singular", "asymmetric"],
)  # fmt: skip
def test_a_metric_that_is_none_raises(inverse_mass):
    with pytest.raises(ParameterError, match="inverse mass matrix"):
        metric(inverse_mass, 3)


def test_a_density_that_is_not_a_number_is_zero():
    point = evaluate(lambda u: (mx.array([math.nan, math.inf, 1.0]), u), mx.zeros((3, 1)))
    assert isinstance(point, Point)
    assert point.log_prob.tolist() == [[-math.inf], [-math.inf], [1.0]]


def test_the_identity():
    assert identity_metric(3, dense=True).inverse_mass.tolist() == np.eye(3).tolist()
