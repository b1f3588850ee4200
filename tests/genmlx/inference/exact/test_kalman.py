"""Linear Gaussian models against the joint normal distribution of all states and observations."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx.errors import BatchError, ParameterError, UsageError, ValueMismatch
from genmlx.inference import StateSpace, extended_kalman_filter, kalman_filter, kalman_sample, kalman_smooth

WALK = StateSpace(1.0, 1.0, 1.0, 1.0, mean=0.0, covariance=1.0)


def covariance(rng, *shape) -> np.ndarray:
    a = rng.normal(size=(*shape, shape[-1]))
    return a @ np.swapaxes(a, -1, -2) + 0.3 * np.eye(shape[-1])


def random_model(seed: int, steps: int = 4, n: int = 2, m: int = 3, varying: bool = True) -> tuple:
    """Rounded to float32, in which parameters may be given."""
    rng = np.random.default_rng(seed)
    moves, looks = ((steps - 1,), (steps,)) if varying else ((), ())
    parts = (
        rng.normal(size=(*moves, n, n)) * 0.7,
        covariance(rng, *moves, n),
        rng.normal(size=(*looks, m, n)),
        covariance(rng, *looks, m),
        rng.normal(size=n),
        covariance(rng, n),
        rng.normal(size=(*moves, n)),
        rng.normal(size=(*looks, m)),
    )
    return StateSpace(*(p.astype(np.float32) for p in parts)), rng.normal(size=(steps, m)).astype(np.float32)


def joint(model: StateSpace, steps: int, m: int) -> tuple:
    """Mean and covariance of (x_1..x_T, y_1..y_T), from x = F noise + f and y = G x + g written out as matrices."""
    n = np.size(model.mean)
    moves, looks = [(steps - 1, n, n)] * 2, [(steps, m, n), (steps, m, m)]
    shapes = [*moves, *looks, (n,), (n, n), (steps - 1, n), (steps, m)]
    full = [np.broadcast_to(np.asarray(p, np.float64), shape) for p, shape in zip(model, shapes, strict=True)]
    a, q, c, r, _, _, b, d = full
    mean_x = np.zeros((steps, n))
    effect = np.zeros((steps, n, steps, n))  # of the noise of step s on the state of step t
    for t in range(steps):
        mean_x[t] = model.mean if t == 0 else a[t - 1] @ mean_x[t - 1] + b[t - 1]
        effect[t, :, t] = np.eye(n)
        for s in range(t):
            effect[t, :, s] = a[t - 1] @ effect[t - 1, :, s]
    noises = [np.asarray(model.covariance, np.float64), *q]
    each = (np.einsum("tia,ab,ujb->tiuj", effect[:, :, k], noises[k], effect[:, :, k]) for k in range(steps))
    cov_x = sum(each, np.zeros((steps, n, steps, n)))
    size, seen = steps * n, steps * m
    look, noise = np.zeros((steps, m, steps, n)), np.zeros((steps, m, steps, m))
    for t in range(steps):
        look[t, :, t], noise[t, :, t] = c[t], r[t]
    look, cov_x = look.reshape(seen, size), cov_x.reshape(size, size)
    mean = np.concatenate([mean_x.reshape(-1), look @ mean_x.reshape(-1) + d.reshape(-1)])
    cross = cov_x @ look.T
    return mean, np.block([[cov_x, cross], [cross.T, look @ cov_x @ look.T + noise.reshape(seen, seen)]])


def conditioned(model: StateSpace, ys: np.ndarray, upto: int | None = None) -> tuple:
    """log p(y_1..upto), and mean [T, n] and covariance [T, n, T, n] of the states given them; NaN is missing."""
    (steps, m), n = ys.shape, np.size(model.mean)
    mean, cov = joint(model, steps, m)
    size = steps * n
    y = ys.reshape(-1).astype(np.float64)
    seen = ~np.isnan(y) & (np.arange(len(y)) < (steps if upto is None else upto) * m)
    y_mean, y_cov, cross = mean[size:][seen], cov[size:, size:][np.ix_(seen, seen)], cov[:size, size:][:, seen]
    log_ml = stats.multivariate_normal(y_mean, y_cov).logpdf(y[seen]) if seen.any() else 0.0
    gain = cross @ np.linalg.inv(y_cov)
    after = cov[:size, :size] - gain @ cross.T
    return log_ml, (mean[:size] + gain @ (y[seen] - y_mean)).reshape(steps, n), after.reshape(steps, n, steps, n)


def with_holes(ys: np.ndarray) -> np.ndarray:
    ys = ys.copy()
    ys[0, 1] = ys[2] = ys[3, 0] = math.nan
    return ys


MODELS = [
    random_model(0),
    random_model(1, varying=False),
    (random_model(2)[0], with_holes(random_model(2)[1])),
    random_model(3, n=3, m=1),
    random_model(4, steps=1),
]


def test_case_42():
    result = kalman_filter(WALK, [1.0, 2.0])
    np.testing.assert_allclose(result.means[:, 0], [0.5, 1.4], atol=1e-7)
    np.testing.assert_allclose(result.covariances[:, 0, 0], [0.5, 0.6], atol=1e-7)
    assert result.log_ml.item() == pytest.approx(-3.342596, abs=1e-6)
    single = kalman_filter(WALK._replace(observation_noise=0.5), [1.5])
    assert single.means.item() == pytest.approx(1.0) and single.covariances.item() == pytest.approx(1 / 3)
    assert single.log_ml.item() == pytest.approx(-1.871671, abs=1e-6)
    conjugate = kalman_filter(WALK._replace(observation_noise=0.25), [1.5])
    assert conjugate.log_ml.item() == pytest.approx(-1.930510, abs=1e-6)


@pytest.mark.parametrize("model, ys", MODELS)
def test_filtering_against_the_joint_normal(model, ys):
    result = kalman_filter(model, ys)
    assert result.log_ml.item() == pytest.approx(conditioned(model, ys)[0], abs=2e-6)
    before = 0.0
    for t in range(len(ys)):
        for upto, means, covs in (
            (t, result.predicted_means, result.predicted_covariances),
            (t + 1, result.means, result.covariances),
        ):
            log_ml, mean, cov = conditioned(model, ys, upto)
            np.testing.assert_allclose(means[t], mean[t], atol=2e-6)
            np.testing.assert_allclose(covs[t], cov[t, :, t], atol=2e-6)
        assert result.increments[t].item() == pytest.approx(log_ml - before, abs=2e-6)
        before = log_ml


@pytest.mark.parametrize("model, ys", MODELS)
def test_smoothing_against_the_joint_normal(model, ys):
    result = kalman_smooth(model, ys)
    log_ml, mean, cov = conditioned(model, ys)
    assert result.log_ml.item() == pytest.approx(log_ml, abs=2e-6)
    np.testing.assert_allclose(result.means, mean, atol=2e-6)
    for t in range(len(ys)):
        np.testing.assert_allclose(result.covariances[t], cov[t, :, t], atol=2e-6)
    assert result.lag_one.shape[0] == len(ys) - 1
    for t in range(len(ys) - 1):
        np.testing.assert_allclose(result.lag_one[t], cov[t + 1, :, t], atol=2e-6)


def test_sampled_paths_have_the_joint_moments():
    """Means within 5 standard errors, and every covariance across times within 5 of its own."""
    model, ys = MODELS[2]
    n = 20_000
    drawn = np.array(kalman_sample(model, ys, n, key=1), dtype=np.float64)
    _, mean, cov = conditioned(model, ys)
    size = mean.size
    assert drawn.shape == (n, *mean.shape)
    cov, flat = cov.reshape(size, size), drawn.reshape(n, size)
    variances = np.diag(cov)
    assert np.all(np.abs(flat.mean(0) - mean.reshape(-1)) < 5 * np.sqrt(variances / n))
    error = np.sqrt((np.outer(variances, variances) + cov**2) / n)
    assert np.all(np.abs(np.cov(flat.T) - cov) < 5 * error)


def test_one_axis_of_observations_is_one_number_at_each_time():
    model, ys = random_model(3, n=3, m=1)
    assert kalman_filter(model, ys[:, 0]).log_ml.item() == kalman_filter(model, mx.array(ys)).log_ml.item()


def test_a_constant_state():
    """No process noise, ten observations of 0.5 (case 40), whose smoothed state is one number at all times."""
    model = WALK._replace(process_noise=0.0)
    result = kalman_smooth(model, [0.5] * 10)
    assert result.log_ml.item() == pytest.approx(-10.501969, abs=1e-6)
    np.testing.assert_allclose(result.means[:, 0], 0.454545, atol=1e-6)
    np.testing.assert_allclose(result.covariances[:, 0, 0], 0.301511**2, atol=1e-6)
    np.testing.assert_allclose(result.lag_one[:, 0, 0], 0.301511**2, atol=1e-6)
    drawn = np.array(kalman_sample(model, [0.5] * 10, 100, key=0))
    np.testing.assert_allclose(drawn, drawn[:, :1].repeat(10, 1), atol=1e-5)


def test_a_known_start_and_exact_observations():
    """A position in metres that is known to start with and seen without noise, and a speed in nanometres."""
    model = StateSpace(
        [[1.0, 1e-9], [0.0, 1.0]], [[0.0, 0.0], [0.0, 4.0]], [[1.0, 0.0]], 0.0, [0.0, 0.0], [[1e-30, 0.0], [0.0, 1.0]]
    )
    result = kalman_smooth(model, [[math.nan], [3e-9], [math.nan]])
    assert result.means[0, 1].item() == pytest.approx(3.0, rel=1e-5)
    assert result.means[1, 0].item() == pytest.approx(3e-9, rel=1e-5)
    assert result.covariances[1, 0, 0].item() == pytest.approx(0.0, abs=1e-24)


def test_states_that_are_nearly_one():
    """d = x[0] - x[1] has variance 2e-9 and is seen once, at time 2: E[d] = 2e-9 * 1e5 * 3 / (20 + 1) at both times."""
    near = [[1.0, 1 - 1e-9], [1 - 1e-9, 1.0]]
    model = StateSpace(np.eye(2), np.zeros((2, 2)), [[1e5, -1e5]], 1.0, [0.0, 0.0], near)
    means = np.array(kalman_smooth(model, [[math.nan], [3.0]]).means, dtype=np.float64)
    np.testing.assert_allclose(means[:, 0] - means[:, 1], 2e-9 * 1e5 * 3 / 21, rtol=1e-5)


def test_a_long_run_settles_at_the_fixed_point():
    """The variance p with p = (p + 1) / (p + 2), the golden ratio less 1, and no drift of log ML: 400 steps."""
    rng = np.random.default_rng(0)
    ys = rng.normal(size=400).cumsum().astype(np.float32)
    result = kalman_filter(WALK, ys)
    golden = (math.sqrt(5) - 1) / 2
    assert result.covariances[-1, 0, 0].item() == pytest.approx(golden, abs=1e-7)
    times = np.minimum.outer(np.arange(400), np.arange(400)) + 1.0
    exact = stats.multivariate_normal(np.zeros(400), times + np.eye(400)).logpdf(ys.astype(np.float64))
    assert result.log_ml.item() == pytest.approx(exact, rel=1e-7)


# the extended filter


@pytest.mark.parametrize("model, ys", MODELS)
def test_extended_is_the_linear_filter_on_a_linear_model(model, ys):
    steps, (m, n) = len(ys), (ys.shape[1], model.mean.size)
    a, b = np.broadcast_to(model[0], (steps - 1, n, n)), np.broadcast_to(model[6], (steps - 1, n))
    c, d = np.broadcast_to(model[2], (steps, m, n)), np.broadcast_to(model[7], (steps, m))
    extended = model._replace(
        transition=lambda t, x: mx.array(a[t - 1]) @ x + mx.array(b[t - 1]),
        observation=lambda t, x: mx.array(c[t]) @ x + mx.array(d[t]),
        transition_offset=None,
        observation_offset=None,
    )
    for mixed in (extended, model._replace(transition=extended.transition, transition_offset=None)):
        for one, other in zip(extended_kalman_filter(mixed, ys), kalman_filter(model, ys), strict=True):
            np.testing.assert_allclose(one, other, rtol=3e-7, atol=3e-7)
    assert extended_kalman_filter(model, ys).log_ml.item() == kalman_filter(model, ys).log_ml.item()


def test_extended_linearises_where_the_state_is():
    """A pendulum, against the filter written out with Jacobians by finite differences, in float64."""
    g, dt = 9.8, 0.1

    def move(t, x):
        return mx.stack([x[0] + dt * x[1], x[1] - g * dt * mx.sin(x[0]) + 0.01 * t])

    def look(t, x):
        return mx.sin(x[:1]) + 0.1 * t * x[1] ** 2

    def move64(t, x):
        return np.array([x[0] + dt * x[1], x[1] - g * dt * np.sin(x[0]) + 0.01 * t])

    def look64(t, x):
        return np.sin(x[:1]) + 0.1 * t * x[1] ** 2

    def slope(f, t, x, h=1e-6):
        return np.stack([(f(t, x + h * e) - f(t, x - h * e)) / (2 * h) for e in np.eye(2)], axis=1)

    q, r, mean, cov = np.diag([0.01, 0.04]), np.array([[0.1]]), np.array([1.5, 0.0]), np.diag([0.2, 0.3])
    ys = np.array([0.8, 1.1, 0.3, -0.5, -0.2])
    result = extended_kalman_filter(StateSpace(move, q, look, r, mean, cov), ys)
    log_ml = 0.0
    for t, y in enumerate(ys):
        if t:
            a = slope(move64, t, mean)
            mean, cov = move64(t, mean), a @ cov @ a.T + q
        c = slope(look64, t, mean)
        s = c @ cov @ c.T + r
        error = y - look64(t, mean)
        log_ml += stats.norm(0, math.sqrt(s[0, 0])).logpdf(error[0])
        gain = cov @ c.T / s
        mean, cov = mean + gain @ error, cov - gain @ c @ cov
        np.testing.assert_allclose(result.means[t], mean, atol=2e-6)
        np.testing.assert_allclose(result.covariances[t], cov, atol=2e-6)
    assert result.log_ml.item() == pytest.approx(log_ml, abs=5e-6)


def test_a_function_that_takes_the_value_of_the_state():
    model = WALK._replace(transition=lambda t, x: x if x[0].item() > 0 else -x)
    with pytest.raises(BatchError, match="host value"):
        extended_kalman_filter(model, [1.0, 2.0])


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"transition": lambda t, x: x}, UsageError, "transition is a function"),
        ({"process_noise": -1.0}, ParameterError, "process_noise is not positive semidefinite"),
        ({"covariance": [[1.0, 2.0], [2.0, 1.0]], "mean": [0.0, 0.0]}, ParameterError, "covariance is not positive"),
        ({"covariance": [[1.0, 0.5], [0.0, 1.0]], "mean": [0.0, 0.0]}, ParameterError, "covariance is not symmetric"),
        ({"observation_noise": np.array([1.0, -1.0]).reshape(2, 1, 1)}, ParameterError, "observation_noise at 1 is"),
        ({"observation_noise": 0.0, "covariance": 0.0}, ParameterError, "at step 0, given those before it, is not pos"),
        ({"observation": [[1.0, 0.0]]}, ParameterError, r"observation has shape \[1, 2\]"),
        ({"transition": np.ones((3, 1, 1))}, ParameterError, r"transition has shape \[3, 1, 1\]"),
        ({"mean": math.nan}, ParameterError, "mean has an entry that is not finite"),
    ],
)
def test_models_that_make_no_sense(changed, error, message):
    with pytest.raises(error, match=message):
        kalman_filter(WALK._replace(**changed), [1.0, 2.0])


def test_two_exact_observations_of_one_number():
    """Their covariance is singular, though rounding may leave its last pivot above zero."""
    model = StateSpace(1.0, 1.0, [[0.1], [0.3]], np.zeros((2, 2)), 0.0, 1.7)
    with pytest.raises(ParameterError, match="at step 0"):
        kalman_filter(model, [[0.1, 0.3]])


@pytest.mark.parametrize("ys", [[], [[[1.0]]], [math.inf]])
def test_observations_that_are_none(ys):
    with pytest.raises(ParameterError, match="observation"):
        kalman_filter(WALK, ys)


def test_functions_that_do_not_fit():
    with pytest.raises(ValueMismatch, match=r"observation gives an array of shape \[2\] at step 0"):
        extended_kalman_filter(WALK._replace(observation=lambda t, x: mx.zeros(2)), [1.0])
    with pytest.raises(UsageError, match="transition_offset beside a function"):
        extended_kalman_filter(WALK._replace(transition=lambda t, x: x, transition_offset=1.0), [1.0])
    with pytest.raises(ParameterError, match="observation or its derivative is not finite at step 0"):
        extended_kalman_filter(WALK._replace(observation=lambda t, x: mx.sqrt(x)), [1.0])
    with pytest.raises(UsageError, match="the model is a tuple"):
        kalman_filter((1.0, 1.0), [1.0])


def test_results_show_in_one_line():
    assert repr(kalman_smooth(WALK, [1.0, 2.0])).startswith("<KalmanSmoothed log_ml -3.342596, means f32[2,1]")
    assert repr(WALK) == "<StateSpace of 1 numbers>"
