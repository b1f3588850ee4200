"""Linear Gaussian state-space models, exactly: the Kalman filter, the smoother, paths; and the extended filter.

Kalman (1960); the smoother is that of Rauch, Tung and Striebel (1965), sampling that of Carter and Kohn (1994), the
extended filter as in Sarkka, Bayesian Filtering and Smoothing (2013), chapter 5. All of it is done on the host in
float64, with covariances in Joseph's form, and returned in float32: these are references, and have no derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.backend.mapping import vmap
from genmlx.errors import ParameterError, UsageError, ValueMismatch
from genmlx.gradients import host_value_errors
from genmlx.inference.exact.results import doubles, one_line, single
from genmlx.inference.problem import positive_count
from genmlx.random import as_key, normal

_NEGATIVE, _ASYMMETRIC = 1e-6, 1e-5  # of a covariance rounded to float32, relative to its largest entry
_SINGULAR = 1e-12  # the share of a variance that the others leave unexplained


class StateSpace(NamedTuple):
    """A state of n numbers and observations of m, at T times.

        x_1 ~ N(mean, covariance)                            the state at the first observation
        x_t ~ N(transition x_t-1 + transition_offset, process_noise)                       t = 2..T
        y_t ~ N(observation x_t + observation_offset, observation_noise)                   t = 1..T

    ``transition`` and ``process_noise`` are [n, n], ``observation`` is [m, n] and ``observation_noise`` [m, m]; noises
    are covariances. Each may have a time axis in front: T-1 entries for what leads to the next state, T for what is
    observed. So may the offsets, [n] and [m], by which a control enters: ``transition_offset=controls @ B.T``. ``mean``
    is [n], ``covariance`` [n, n]. A number stands for an array of one element.

    For ``extended_kalman_filter``, ``transition`` and ``observation`` may be functions ``f(t, x)`` of the step and the
    state, an array [n]: the mean of the state at step t given x, the state at step t - 1 (as the kernel of an
    ``unfold``, with t = 1..T-1), and the mean of the observation at step t = 0..T-1.
    """

    transition: Any
    process_noise: Any
    observation: Any
    observation_noise: Any
    mean: Any
    covariance: Any
    transition_offset: Any = None
    observation_offset: Any = None

    def __repr__(self) -> str:
        return f"<StateSpace of {len(doubles('mean', self.mean).reshape(-1))} numbers>"


class KalmanFiltered(NamedTuple):
    """What is known of each state from the observations up to it.

    ``log_ml`` [] is the log density of all observations, and ``increments`` [T] its parts, log p(y_t | y_1..t-1).
    ``means`` [T, n] and ``covariances`` [T, n, n] are of x_t given y_1..t, ``predicted_means`` and
    ``predicted_covariances`` given y_1..t-1.
    """

    log_ml: mx.array
    increments: mx.array
    means: mx.array
    covariances: mx.array
    predicted_means: mx.array
    predicted_covariances: mx.array

    __repr__ = one_line


class KalmanSmoothed(NamedTuple):
    """What is known of each state from all observations: ``means`` [T, n] and ``covariances`` [T, n, n].

    ``lag_one`` [T-1, n, n] are the covariances of x_t+1 (rows) and x_t (columns).
    """

    log_ml: mx.array
    means: mx.array
    covariances: mx.array
    lag_one: mx.array

    __repr__ = one_line


def kalman_filter(model: StateSpace, observations: Any) -> KalmanFiltered:
    """The Kalman filter. ``observations`` are [T, m], or [T] for m = 1; a NaN is an element that is missing.

    Raises for a covariance that is not symmetric or not positive semidefinite, and where the covariance of an
    observation given those before it is singular.

    >>> model = StateSpace(1.0, 1.0, 1.0, 1.0, mean=0.0, covariance=1.0)
    >>> result = kalman_filter(model, [1.0, 2.0])
    >>> [round(x, 6) for x in (*result.means[:, 0].tolist(), result.log_ml.item())]
    [0.5, 1.4, -3.342596]
    """
    return _Pass(model, observations).filtered()


def kalman_smooth(model: StateSpace, observations: Any) -> KalmanSmoothed:
    """The Rauch-Tung-Striebel smoother, with the covariances of neighbours. Arguments as for ``kalman_filter``."""
    import numpy as np

    run = _Pass(model, observations)
    means, covariances, lags = [run.means[-1]], [run.covs[-1]], []
    for t in reversed(range(run.steps - 1)):
        gain, left = run.backward(t)
        lags.append(covariances[-1] @ gain.T)
        means.append(run.means[t] + gain @ (means[-1] - run.predicted_means[t + 1]))
        covariances.append(_symmetric(left + gain @ covariances[-1] @ gain.T))
    lag_one = np.stack(lags[::-1]) if lags else np.zeros((0, run.n, run.n))
    return KalmanSmoothed(
        single(sum(run.increments)), single(np.stack(means[::-1])), single(np.stack(covariances[::-1])), single(lag_one)
    )


def kalman_sample(model: StateSpace, observations: Any, n: int, key: Any = None) -> mx.array:
    """``n`` independent paths of the state from the posterior, [n, T, state]. Arguments as for ``kalman_filter``."""
    import numpy as np

    positive_count("n", n)
    run = _Pass(model, observations)
    noise = np.array(normal(as_key(key), (run.steps, n, run.n)), dtype=np.float64)
    states = [run.means[-1] + noise[-1] @ _root(run.covs[-1])]
    for t in reversed(range(run.steps - 1)):
        gain, left = run.backward(t)
        states.append(run.means[t] + (states[-1] - run.predicted_means[t + 1]) @ gain.T + noise[t] @ _root(left))
    return single(np.stack(states[::-1], axis=1))


def extended_kalman_filter(model: StateSpace, observations: Any) -> KalmanFiltered:
    """The extended Kalman filter: ``transition`` and ``observation`` may be functions, linearised where the state is.

    An approximation where they are not linear, and the Kalman filter where they are. Functions are differentiated by
    MLX, and computed in float64 where the default device has it (a CPU), else in float32. A body that takes the host
    value of the state raises.

    >>> model = StateSpace(lambda t, x: mx.sin(x), 0.1, lambda t, x: x * x, 0.1, mean=1.0, covariance=0.5)
    >>> extended_kalman_filter(model, [1.2, 0.7]).means.shape
    (2, 1)
    """
    return _Pass(model, observations, extended=True).filtered()


Linearised = Callable[[int, Any], tuple[Any, Any]]


class _Pass:
    """The filter's run over the observations, in float64."""

    def __init__(self, model: StateSpace, observations: Any, extended: bool = False):
        import numpy as np

        if not isinstance(model, StateSpace):
            raise UsageError(f"the model is a {type(model).__name__}", expected="StateSpace(transition, ...)")
        if not extended:
            for name in ("transition", "observation"):
                if callable(getattr(model, name)):
                    raise UsageError(f"{name} is a function", expected="a matrix", hint="extended_kalman_filter")
        ys = doubles("observations", observations)
        ys = ys[:, None] if ys.ndim == 1 else ys
        if ys.ndim != 2 or 0 in ys.shape:
            raise ParameterError(f"observations have shape {list(ys.shape)}", expected="[T, m], neither of them 0")
        if np.any(np.isinf(ys)):
            raise ParameterError("an observation is infinite", expected="numbers, or NaN for what is missing")
        self.steps, m = ys.shape
        self.n = n = max(doubles("mean", model.mean).size, 1)
        mean = _array("mean", model.mean, (n,))
        cov = _covariance("covariance", model.covariance, n)
        self.noise = _covariance("process_noise", model.process_noise, n, self.steps - 1)
        noise = _covariance("observation_noise", model.observation_noise, m, self.steps)
        self.move = _linear("transition", model.transition, model.transition_offset, (n, n), self.steps - 1, first=1)
        look = _linear("observation", model.observation, model.observation_offset, (m, n), self.steps, first=0)
        self.slopes, self.increments = [], []
        self.means, self.covs, self.predicted_means, self.predicted_covs = [], [], [], []
        for t in range(self.steps):
            if t > 0:
                mean, slope = self.move(t, mean)
                cov = _symmetric(slope @ cov @ slope.T + self.noise[t - 1])
                self.slopes.append(slope)
            self.predicted_means.append(mean)
            self.predicted_covs.append(cov)
            mean, cov, increment = _updated(t, mean, cov, ys[t], look, noise[t])
            self.means.append(mean)
            self.covs.append(cov)
            self.increments.append(increment)

    def backward(self, t: int) -> tuple[Any, Any]:
        """The regression of x_t on x_t+1 given y_1..t: its matrix, and the covariance that it leaves."""
        import numpy as np

        cov, slope = self.covs[t], self.slopes[t]
        gain = cov @ slope.T @ _pseudo_inverse(self.predicted_covs[t + 1])
        rest = np.eye(self.n) - gain @ slope
        return gain, _symmetric(rest @ cov @ rest.T + gain @ self.noise[t] @ gain.T)

    def filtered(self) -> KalmanFiltered:
        import numpy as np

        parts = self.increments, self.means, self.covs, self.predicted_means, self.predicted_covs
        return KalmanFiltered(single(sum(self.increments)), *[single(np.stack(part)) for part in parts])


def _updated(t: int, mean: Any, cov: Any, y: Any, look: Linearised, noise: Any) -> tuple[Any, Any, float]:
    """Mean and covariance of the state given one more observation, and the log density of that.

    A missing element gets an observation that says nothing: of no slope, with unit variance and error zero.
    """
    import numpy as np

    expected, slope = look(t, mean)
    seen = ~np.isnan(y)
    slope = np.where(seen[:, None], slope, 0.0)
    noise = np.where(seen[:, None] & seen, noise, np.diag(1.0 - seen))
    error = np.where(seen, y - expected, 0.0)
    spread = _symmetric(slope @ cov @ slope.T + noise)
    try:
        factor = np.linalg.cholesky(spread)
        regular = bool(np.all(np.diag(factor) ** 2 > _SINGULAR * np.diag(spread)))
    except np.linalg.LinAlgError:
        regular = False
    if not regular:
        raise ParameterError(
            f"the covariance of the observation at step {t}, given those before it, is not positive definite",
            expected="an observation_noise, or a spread of the state, in each direction that is observed",
            hint="a larger observation_noise",
        )
    gain = np.linalg.solve(spread, slope @ cov).T
    rest = np.eye(len(mean)) - gain @ slope
    white = np.linalg.solve(factor, error)
    increment = -0.5 * (white @ white + seen.sum() * math.log(2 * math.pi)) - np.log(np.diag(factor)).sum()
    return mean + gain @ error, _symmetric(rest @ cov @ rest.T + gain @ noise @ gain.T), float(increment)


def _linear(name: str, value: Any, offset: Any, shape: tuple, steps: int, first: int) -> Linearised:
    """``(t, mean) -> (value, slope)`` of a matrix and an offset, or of a function; t counts from ``first``."""
    if callable(value):
        if offset is not None:
            raise UsageError(f"{name}_offset beside a function", hint=f"add it in the function: {name}(t, x) + ...")
        return lambda t, mean: _tangent(name, value, t, mean, shape[0])
    matrices = _array(name, value, shape, steps)
    offsets = _array(f"{name}_offset", 0.0 if offset is None else offset, shape[:1], steps, spread=offset is None)
    return lambda t, mean: (matrices[t - first] @ mean + offsets[t - first], matrices[t - first])


def _tangent(name: str, f: Callable, t: int, mean: Any, size: int) -> tuple[Any, Any]:
    """A function's value and Jacobian; in a vmap over one lane, which refuses a body that takes the state's value."""
    import numpy as np

    dtype = mx.float64 if mx.default_device().type == mx.cpu else mx.float32

    def g(x: mx.array) -> mx.array:
        found = f(t, x)
        value = (found if isinstance(found, mx.array) else mx.array(found)).astype(dtype)
        if value.size != size or value.ndim > 1:
            raise ValueMismatch(f"{name} gives an array of shape {list(value.shape)} at step {t}", expected=f"[{size}]")
        return value.reshape(-1)

    def both(x: mx.array) -> tuple[mx.array, mx.array]:
        return g(x), mx.vmap(lambda row: mx.vjp(g, [x], [row])[1][0])(mx.eye(size, dtype=dtype))

    with host_value_errors("differentiated"):
        value, slope = vmap(both)(mx.array(mean[None], dtype=dtype))
    value, slope = np.array(value[0], dtype=np.float64), np.array(slope[0], dtype=np.float64)
    if not (np.all(np.isfinite(value)) and np.all(np.isfinite(slope))):
        raise ParameterError(
            f"{name} or its derivative is not finite at step {t}, at {np.round(mean, 4).tolist()}",
            expected="a function that is smooth where the state may be",
        )
    return value, slope


def _array(name: str, value: Any, shape: tuple, steps: int | None = None, spread: bool = False) -> Any:
    """An array of the shape, with the time axis in front if there are steps; a number stands for one element."""
    import numpy as np

    if callable(value):
        raise UsageError(f"{name} is a function", expected="an array")
    x = doubles(name, value)
    if not np.all(np.isfinite(x)):
        raise ParameterError(f"{name} has an entry that is not finite")
    if x.ndim == 0 and (spread or math.prod(shape) == 1):
        x = np.full(shape, float(x))
    wanted = [shape] if steps is None else [shape, (steps, *shape)]
    if x.shape not in wanted:
        raise ParameterError(f"{name} has shape {list(x.shape)}", expected=" or ".join(str(list(w)) for w in wanted))
    return x if steps is None else np.broadcast_to(x, (steps, *shape))


def _covariance(name: str, value: Any, n: int, steps: int | None = None) -> Any:
    import numpy as np

    x = _array(name, value, (n, n), steps)
    for t, each in enumerate([x] if steps is None else x[:1] if x.strides[0] == 0 else x):
        at = f" at {t}" if steps is not None and x.strides[0] else ""
        scale = np.max(np.abs(each))
        if np.max(np.abs(each - each.T)) > _ASYMMETRIC * scale:
            raise ParameterError(f"{name}{at} is not symmetric", expected="a covariance matrix")
        least = np.linalg.eigvalsh(each)[0]
        if least < -_NEGATIVE * scale:
            raise ParameterError(
                f"{name}{at} is not positive semidefinite: its least eigenvalue is {least:.3g}",
                expected="a covariance matrix",
            )
    return x


def _symmetric(a: Any) -> Any:
    return 0.5 * (a + a.T)


def _pseudo_inverse(cov: Any) -> Any:
    """Of a covariance that may be singular, found from its correlations: units of the states do not matter."""
    import numpy as np

    sd = np.sqrt(np.diag(cov))
    scale = np.where(sd > 0, sd, 1.0)
    return np.linalg.pinv(cov / np.outer(scale, scale), rcond=_SINGULAR, hermitian=True) / np.outer(scale, scale)


def _root(cov: Any) -> Any:
    """A matrix R with R^T R = cov, which may be singular."""
    import numpy as np

    values, vectors = np.linalg.eigh(cov)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
