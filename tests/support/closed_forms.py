"""Small oracles for single combinators: a normal log density and a central difference, in float64."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats


def N(x, mu, sigma=1.0):
    return float(np.sum(stats.norm.logpdf(np.asarray(x, np.float64), np.asarray(mu, np.float64), sigma)))


def slope(f: Callable[[float], float], x: float, h: float = 1e-2) -> float:
    """Central difference; ``f`` is the library's float32 score, so the step is large and the models quadratic."""
    return (float(f(x + h)) - float(f(x - h))) / (2 * h)


def close(x, tolerance=1e-4):
    """Float32 sums of a few terms."""
    return pytest.approx(x, abs=tolerance, rel=1e-5)


def numbers(choices) -> dict:
    return {address: value.item() for address, value in choices.items()}
