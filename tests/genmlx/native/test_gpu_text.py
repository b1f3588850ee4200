"""Functions as text for a GPU, run on the CPU, agree with MLX: the cases of machine code, several in one text."""

import importlib.util
import math
import pathlib

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from gpu_on_cpu import assert_agrees, evaluated, evaluated_with_scratch, needs_compiler
from scipy import special

from genmlx.dist.distribution import Distribution
from genmlx.inference.log_density import LogDensity
from genmlx.native.gpu.text import density_text
from genmlx.native.graph import Untranslatable

pytestmark = needs_compiler


def cases(name):
    """A test module beside this one, for its tables."""
    spec = importlib.util.spec_from_file_location(name, pathlib.Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZ, PROGRAMS, MODELS = cases("test_fuzz"), cases("test_fuzz_programs"), cases("test_models")


def rows(dim, n=3, low=-2.0, high=2.0, seed=0):
    return mx.array(np.random.default_rng(seed).uniform(low, high, (n, dim)).astype(np.float32))


def several(table, names):
    def f(u, *rest):
        found = []
        for name in names:
            made = table[name](u.reshape(4, 6), *rest)
            found += made if isinstance(made, (list, tuple)) else [made]
        return found

    return f


def squares(f, *rest):
    """Of all results, each with a weight of its own: a function whose gradient all of them are in."""

    def total(u):
        found = [one.astype(mx.float32) for one in f(u, *rest)]
        return sum((mx.sum(mx.square(one) * mx.arange(1, one.size + 1).reshape(one.shape)) for one in found), 0.0)

    return total


def parts(names, n=12):
    names = list(names)
    return [names[i : i + n] for i in range(0, len(names), n)]


def mapped(name, u):
    f, low, high = FUZZ.UNARY[name]
    return f(low + (high - low) * u)


@pytest.mark.parametrize("names", parts(FUZZ.UNARY, 10), ids=str)
def test_functions_of_one_number(names):
    assert_agrees(lambda u: [mapped(name, u) for name in names], rows(60, low=0, high=1), rtol=5e-6)
    smooth = [name for name in names if mapped(name, mx.zeros(1)).dtype == mx.float32]
    gradients = [mx.grad(lambda u, name=name: mx.sum(mapped(name, u) * u)) for name in smooth]
    assert_agrees(lambda u: [gradient(u) for gradient in gradients], rows(5, low=0.02, high=0.98), rtol=1e-5)


def test_where_functions_of_one_number_end():
    odd = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-30, -1e-30, 88.9, -104.5, 3e38]
    names = "exp log log1p expm1 tanh erf erfinv sigmoid sqrt square abs sign isnan isinf log2 log10".split()
    assert_agrees(lambda u: [getattr(mx, name)(u) for name in names], mx.array([odd]), rtol=5e-6)


def test_erfinv():
    """Against scipy in float64: 4 ulp of float32, up to the last number before 1."""
    x = np.concatenate([np.linspace(-1, 1, 4001), 1 - 2.0 ** -np.arange(2, 25)]).astype(np.float32)
    (own,) = evaluated(lambda u: [mx.erfinv(u)], mx.array(x[None]))
    exact, finite = special.erfinv(x.astype(float)), np.abs(x) < 1
    np.testing.assert_allclose(own[0][finite], exact[finite], rtol=4 * 2.0**-23)
    assert own[0][0] == -math.inf and own[0][4000] == math.inf


@pytest.mark.parametrize("names", parts(FUZZ.BINARY), ids=str)
def test_functions_of_two_numbers(names):
    def f(u):
        a, b = u[:20].reshape(4, 5), u[20:40].reshape(4, 5)
        found = []
        for name in names:
            own = getattr(mx, name)
            left = mx.abs(a) + 0.1 if name == "power" else a
            made = [own(left, b), own(left[:, :1], b[0]), own(left[0, 0], b)]
            found += [part for one in made for part in (one if isinstance(one, (list, tuple)) else [one])]
        return found

    assert_agrees(f, rows(40), rtol=5e-6)


def test_remainders_of_multiples():
    u = mx.array([[4.0, -4.0, 0.0, -0.0, 3.0, -3.0, 7.5, -7.5]])
    assert_agrees(lambda u: [mx.remainder(u, b) for b in (2.0, -2.0, 1.5, -1.5)], u, rtol=0)


def test_numbers_that_have_no_order():
    odd = mx.array([[0.0, -0.0, math.nan, 1.0, math.nan, math.inf, -math.inf]])
    assert_agrees(lambda u: [f(u[:, None], u[None]) for f in (mx.maximum, mx.minimum)], odd)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int8, np.uint8, np.int16, np.uint16])
def test_integers(dtype):
    """Arguments of the kernel, so that nothing is computed beforehand."""
    low = 0 if np.dtype(dtype).kind == "u" else -9
    a = FUZZ.whole(40, low=low, high=30, seed=1, dtype=dtype)
    b = FUZZ.whole(40, low=1, high=7, seed=2, dtype=dtype)
    names = "add subtract multiply floor_divide remainder maximum minimum equal less greater_equal".split()
    names += "bitwise_and bitwise_or bitwise_xor".split()

    def f(u, a, b):
        found = [getattr(mx, name)(a, b) for name in names]
        found += [a << b, a >> b, mx.abs(a), mx.sign(a), mx.square(a), u[0] * a, (u * 50).astype(mx.int32)]
        found += [mx.sum(a), mx.max(a), mx.min(a), mx.prod(a[:3]), mx.any(a), mx.all(a), u[a % 5], a - b > b]
        return found + ([a // -b, mx.remainder(a, -b), -b] if low else [])

    assert_agrees(f, rows(5), a, b, rtol=0)


@pytest.mark.parametrize("names", parts(FUZZ.VIEWS), ids=str)
def test_views_and_their_derivatives(names):
    f = several(FUZZ.VIEWS, names)
    assert_agrees(f, rows(24), rtol=5e-6)
    assert_agrees(mx.grad(squares(f)), rows(24), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_indices(dtype):
    """Given, where they have 32 bits; known, where they have 64."""
    names, i = list(FUZZ.INDEXED), mx.array(np.array([3, 0, 3, 1], dtype))
    if dtype == np.int64:  # of which these do arithmetic
        names = [name for name in names if not name.startswith(("along", "put", "dynamic"))]
    given = (i,) if dtype != np.int64 else ()
    f = several(FUZZ.INDEXED, names) if given else (lambda u: several(FUZZ.INDEXED, names)(u, i))
    assert_agrees(f, rows(24), *given, rtol=5e-6)
    smooth = several(FUZZ.INDEXED, [n for n in names if n not in ("multiply at", "maximum at", "put along")])
    assert_agrees(mx.grad(squares(smooth, i)), rows(24), rtol=1e-5)


def test_indices_beyond_an_array_stay_in_it():
    (own,) = evaluated(lambda u, i: [u[i]], rows(4), mx.array([9, -9, -1]))
    np.testing.assert_array_equal(own, np.array(rows(4))[:, [3, 0, 3]])


@pytest.mark.parametrize("names", parts(n for n in FUZZ.REDUCTIONS if not n.startswith("arg")), ids=str)
def test_reductions(names):
    def f(u):
        x, found = u.reshape(3, 1, 5, 4), []
        for name in names:
            for axis in (None, 0, 1, 2, 3, (0, 2), (1, 3), (0, 1, 2), (2, 3)):
                found += [getattr(mx, name)(x, axis=axis), getattr(mx, name)(x * x, axis=axis, keepdims=True)]
        return found

    assert_agrees(f, rows(60, low=0.5, high=1.5))
    smooth = [n for n in names if n not in ("any", "all", "std")]

    def of_rows_and_columns(u):
        return [getattr(mx, name)(u.reshape(4, 5), axis=axis) for name in smooth for axis in (0, 1)]

    assert_agrees(mx.grad(squares(of_rows_and_columns)), rows(20, low=0.5, high=1.5), rtol=1e-5)


def test_sums_lose_little():
    """Of 20,000 numbers up to 1e4 that cancel: 1e-7 of the largest, where sums one by one are off by 100 times that."""
    x = np.random.default_rng(0).normal(size=20_000).astype(np.float32) * 1e4
    x -= np.float32(x.mean())
    weights = mx.array(np.random.default_rng(1).normal(size=(20_000, 2)).astype(np.float32))
    own, product = evaluated(lambda u: [mx.sum(u), u @ weights], mx.array(x[None]))
    wide = x.astype(float)
    assert abs(own[0, 0] - math.fsum(wide)) < 1e-7 * np.abs(x).max()
    one_by_one = np.float32(0)
    for value in x:
        one_by_one += value
    assert abs(one_by_one - math.fsum(wide)) > 1e-5 * np.abs(x).max()
    exact = wide @ np.array(weights).astype(float)
    np.testing.assert_allclose(product[0], exact, atol=3e-7 * np.sqrt(20_000) * 1e4)


def test_infinite_sums():
    odd = mx.array([[1.0, math.inf, 2.0], [1.0, -math.inf, 2.0], [math.inf, -math.inf, 1.0], [math.nan, 1.0, 2.0]])
    assert_agrees(lambda u: [mx.sum(u), mx.sum(u) * 2], odd)
    assert_agrees(lambda u: mx.sum(mx.exp(u)), mx.array([[3e38, 3e38, 1.0]]))


@pytest.mark.parametrize("name", ["cumsum", "cumprod", "cummax", "cummin", "softmax", "logsumexp"])
def test_scans_and_what_is_normalised(name):
    f = getattr(mx, name)
    assert_agrees(lambda u: [f(u.reshape(4, 6), axis=axis) for axis in (0, 1)], rows(24), rtol=1e-5)


@pytest.mark.parametrize("names", parts(FUZZ.PRODUCTS, 9), ids=str)
def test_products(names):
    sizes = [math.prod(shape) for name in names for shape in FUZZ.PRODUCTS[name][1:]]
    starts = np.cumsum([0, *sizes]).tolist()

    def f(u):
        own = iter([u[a:b] for a, b in zip(starts, starts[1:], strict=False)])
        return [FUZZ.PRODUCTS[n][0](*[next(own).reshape(shape) for shape in FUZZ.PRODUCTS[n][1:]]) for n in names]

    assert_agrees(f, rows(starts[-1], n=2), rtol=5e-6)
    small = [name for name in names if not name.startswith(("large", "long"))]
    if small == names:
        assert_agrees(mx.grad(squares(f)), rows(starts[-1], n=2), rtol=1e-5)


@pytest.mark.parametrize("seed", range(24))
def test_programs(seed):
    shape = PROGRAMS.SHAPES[seed % len(PROGRAMS.SHAPES)]
    f = PROGRAMS.program(seed)
    gradient = mx.grad(lambda u: sum((mx.sum(one) for one in f(u.reshape(shape))), mx.array(0.0)))
    assert_agrees(lambda u: [*f(u.reshape(shape)), gradient(u)], rows(math.prod(shape)), rtol=1e-4, least=0.3)


REFUSED = {
    "Sort": lambda u: mx.sort(u),
    "ArgReduce": lambda u: u[mx.argmax(u)],
    "Cholesky": lambda u: mx.linalg.cholesky(u.reshape(2, 2), stream=mx.cpu),
    "RandomBits": lambda u: mx.random.normal((2,), key=u.view(mx.uint32)[:2]),
    "float64": lambda u: u.astype(mx.float64).astype(mx.float32),
    "int64": lambda u: (u.astype(mx.int64) * 2).astype(mx.float32),
    "65,537 numbers|65537 numbers": lambda u: (mx.exp(u[0] * mx.arange(65537.0)))[::-1] @ mx.arange(65537.0) + 0 * u,
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_text_is_named(what):
    def f(u):
        found = REFUSED[what](u)
        return [found, mx.cumsum(found)]

    with pytest.raises(Untranslatable, match=what):
        density_text(f, 4)


def model_densities():
    """Those without linear algebra, several in one text, as a GPU is given them: in float32."""
    without = ("multivariate_normal", "wishart", "inv_wishart", "lkj_cholesky")
    named = [(n, MODELS.family(make), None) for n, make in MODELS.FAMILIES.items() if n not in without]
    named += [(n, MODELS.family(make), {"x": y}) for n, (make, y) in MODELS.OBSERVED.items()]
    named += [(n, *own) for n, own in MODELS.MODELS.items() if n != "Gaussian process"]
    return parts(named, 6)


@pytest.mark.parametrize("named", model_densities(), ids=lambda named: ", ".join(n for n, *_ in named))
def test_densities(monkeypatch, named):
    """Values, gradients and joint densities of the families and models of machine code's tests."""
    monkeypatch.setattr(Distribution, "_precise_density", lambda self, x, params: self._log_density(x, *params))
    densities = [LogDensity(call, observations) for _, call, observations in named]
    starts = np.cumsum([0, *[density.dim for density in densities]]).tolist()

    def f(u):
        each = [d.of_one(True)[0](u[a:b]) for d, a, b in zip(densities, starts, starts[1:], strict=False)]
        return [part for parts_ in each for part in parts_]

    places = 0.7 * np.random.default_rng(0).normal(size=(3, starts[-1]))
    assert_agrees(f, mx.array(places.astype(np.float32)), rtol=1e-4)


def test_where_arrays_are():
    """A thread's own as far as there is room for them, and then in columns of an array of all."""

    def f(u):
        return [mx.sum(mx.cumsum(mx.exp(u[0] * mx.arange(300.0)))[::-1] ** 2)]

    one, other = (density_text(f, 1, private=private) for private in (512, 4096))
    assert one.slots == 300 and other.slots == 0
    assert "scratch[" in one.source and "scratch[" not in other.source


def test_threads_do_not_share_memory():
    """Here they run one after the other, and would not notice: each leaves in its column what it leaves alone."""

    def f(u):
        return [
            mx.cumsum(mx.exp(u[:1] * mx.arange(300.0) * 0.01))[::-1] ** 2,
            mx.cumsum(u[1] * mx.arange(400.0))[::3] * 2,
        ]

    together = evaluated_with_scratch(f, rows(2, n=5))[1]
    assert together.shape == (700, 5)
    for i in range(5):
        np.testing.assert_array_equal(together[:, i], evaluated_with_scratch(f, rows(2, n=5)[i : i + 1])[1][:, 0])
