"""The elementary functions against mpmath, in units of the last place; and their edges against C's."""

import math

import mlx.core as mx
import mpmath
import numpy as np
import pytest

from genmlx.native.kernel import compile_function

mp = mpmath.mp.clone()
mp.prec = 200

SPREAD = [-104, -87.5, -30, -8, -2, -1, -0.5, -1e-3, -1e-9, 1e-20, 1e-6, 0.01, 0.3, 0.7, 1, 3, 9, 40, 88]


def around(*points, count=60):
    """Numbers within a tenth of these."""
    rng = np.random.default_rng(len(points))
    return np.concatenate([point * (1 + 0.1 * rng.uniform(-1, 1, count)) for point in points])


def sizes(low, high, count=1500, signed=True):
    """Numbers whose logarithms are uniform, of both signs."""
    rng = np.random.default_rng(7)
    found = np.exp(rng.uniform(math.log(low), math.log(high), count))
    return found * rng.choice([-1, 1], count) if signed else found


def evenly(low, high, count=2000):
    return np.random.default_rng(8).uniform(low, high, count)


def erfinv(x):
    """Newton's method from scipy's, in 200 bits."""
    from scipy.special import erfinv as start

    y = mp.mpf(float(start(float(x))))
    for _ in range(3):
        y -= (mp.erf(y) - x) * mp.sqrt(mp.pi) / 2 * mp.exp(y * y)
    return y


def joined(*parts):
    return np.concatenate(parts)


def ends(least):
    """Numbers that are close to 1 and -1."""
    near = 1 - sizes(least, 0.5, 2000, signed=False)
    return joined(near, -near)


POSITIVE = joined(sizes(1e-40, 1e38, signed=False), evenly(0.4, 2.5))
ANGLES = joined(sizes(1e-20, 1e6), evenly(-9, 9))

CASES = {
    "exp": (mx.exp, mp.exp, lambda d: joined(around(*SPREAD), evenly(*((-103, 88.7), (-744, 709))[d]))),
    "expm1": (mx.expm1, mp.expm1, lambda d: joined(around(*SPREAD), evenly(-3, 3), sizes(1e-12, 1))),
    "log": (mx.log, mp.log, lambda d: joined(POSITIVE, sizes(1e-44, 1e-38, signed=False))),
    "log2": (mx.log2, lambda x: mp.log(x, 2), lambda d: POSITIVE),
    "log10": (mx.log10, mp.log10, lambda d: POSITIVE),
    "log1p": (
        mx.log1p,
        mp.log1p,
        lambda d: joined(sizes(1e-30, 0.99), sizes(0.1, 1e30, signed=False), evenly(-0.9, 2)),
    ),
    "sigmoid": (mx.sigmoid, lambda x: 1 / (1 + mp.exp(-x)), lambda d: joined(around(*SPREAD), evenly(-20, 20))),
    "tanh": (mx.tanh, mp.tanh, lambda d: joined(sizes(1e-20, 30), evenly(-2, 2))),
    "erf": (mx.erf, mp.erf, lambda d: joined(sizes(1e-20, 7), evenly(-3, 3))),
    "erfinv": (mx.erfinv, erfinv, lambda d: joined(sizes(1e-20, 1), evenly(-1, 1), ends((6e-8, 2e-16)[d]))),
    "sin": (mx.sin, mp.sin, lambda d: ANGLES),
    "cos": (mx.cos, mp.cos, lambda d: ANGLES),
    "tan": (mx.tan, mp.tan, lambda d: ANGLES),
    "arcsin": (mx.arcsin, mp.asin, lambda d: evenly(-1, 1)),
    "arccos": (mx.arccos, mp.acos, lambda d: evenly(-1, 1)),
    "arctan": (mx.arctan, mp.atan, lambda d: sizes(1e-10, 1e10)),
    "sinh": (mx.sinh, mp.sinh, lambda d: sizes(1e-10, 80)),
    "cosh": (mx.cosh, mp.cosh, lambda d: sizes(1e-10, 80)),
    "arcsinh": (mx.arcsinh, mp.asinh, lambda d: sizes(1e-10, 1e10)),
    "arccosh": (mx.arccosh, mp.acosh, lambda d: 1 + sizes(1e-3, 1e10, signed=False)),
    "arctanh": (mx.arctanh, mp.atanh, lambda d: evenly(-1, 1)),
    "sqrt": (mx.sqrt, mp.sqrt, lambda d: sizes(1e-30, 1e30, signed=False)),
    "rsqrt": (mx.rsqrt, lambda x: 1 / mp.sqrt(x), lambda d: sizes(1e-30, 1e30, signed=False)),
}


def native(f, *values):
    arrays = [mx.array(v, dtype=mx.float64 if v.dtype == np.float64 else mx.float32) for v in values]
    with mx.stream(mx.cpu):
        (out,) = compile_function(lambda *a: [f(*a)], *arrays)(*arrays)
    return np.array(out)


def ulps(found, exact, dtype):
    """The distance of a number to an exact value, in units of the last place of that value."""
    info = np.finfo(dtype)
    _, exponent = mp.frexp(exact)
    unit = mp.ldexp(1, max(int(exponent) - 1, int(info.minexp)) - info.nmant)
    return float(abs(mp.mpf(float(found)) - exact) / unit)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_within_two_units_of_the_last_place(name, dtype):
    f, exact, points = CASES[name]
    x = points(int(dtype == np.float64)).astype(dtype)
    if name == "erfinv":
        x = x[np.abs(x) < 1]
    found = native(f, x)
    worst = max((ulps(y, exact(mp.mpf(float(a))), dtype), a) for a, y in zip(x, found, strict=True) if np.isfinite(y))
    assert worst[0] <= 2, worst
    assert np.isfinite(found).mean() > 0.95


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_powers(dtype):
    rng = np.random.default_rng(3)
    a, b = rng.uniform(0, 5, 1500).astype(dtype), rng.uniform(-9, 9, 1500).astype(dtype)
    found = native(mx.power, a, b)
    worst = max(ulps(y, mp.mpf(float(p)) ** mp.mpf(float(q)), dtype) for p, q, y in zip(a, b, found, strict=True))
    assert worst <= 2
    two = native(lambda b: mx.power(2.0, b), b)
    assert max(ulps(y, mp.mpf(2) ** mp.mpf(float(q)), dtype) for q, y in zip(b, two, strict=True)) <= 2
    whole = np.arange(-140, 128).astype(dtype)
    np.testing.assert_array_equal(
        native(lambda b: mx.power(2.0, b), whole), np.exp2(whole.astype(np.float64)).astype(dtype)
    )


_SIZES = [0.0, 0.5, 1.0, 2.0, 3.0, 1e-40, 1e-320, 200.0, 800.0, 1e30, math.inf]
EDGES = [*_SIZES, *[-x for x in _SIZES], math.nan]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_edges_are_those_of_c(name, dtype):
    from scipy import special

    own = {
        "sigmoid": special.expit,
        "erf": special.erf,
        "erfinv": lambda x: np.copysign(special.erfinv(x), x),
        "rsqrt": lambda x: 1 / np.sqrt(x),
    }
    x = np.array(EDGES, dtype)
    with np.errstate(all="ignore"):
        wide = own.get(name) or getattr(np, name)
        expected = wide(x.astype(np.float64)).astype(dtype)
        found = native(CASES[name][0], x)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(np.signbit(found[~np.isnan(found)]), np.signbit(expected[~np.isnan(expected)]))
    np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype == np.float32 else 1e-14, atol=3e-45)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_edges_of_powers_are_those_of_c(dtype):
    a, b = [grid.ravel() for grid in np.meshgrid(np.array(EDGES, dtype), np.array(EDGES, dtype))]
    with np.errstate(all="ignore"):
        expected = np.power(a.astype(np.float64), b.astype(np.float64)).astype(dtype)
    found = native(mx.power, a, b)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype == np.float32 else 1e-14)
    np.testing.assert_array_equal(np.signbit(found[~np.isnan(found)]), np.signbit(expected[~np.isnan(expected)]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logaddexp(dtype):
    rng = np.random.default_rng(5)
    a, b = rng.uniform(-50, 50, (2, 1000)).astype(dtype)
    expected = np.logaddexp(a.astype(np.float64), b.astype(np.float64))
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(native(mx.logaddexp, a, b), expected, rtol=2 * eps, atol=2 * eps)
    x, y = [grid.ravel() for grid in np.meshgrid(*[np.array([-math.inf, math.inf, math.nan, 1.0], dtype)] * 2)]
    with np.errstate(invalid="ignore"):
        expected = np.logaddexp(x, y)
    np.testing.assert_array_equal(native(mx.logaddexp, x, y), expected)
