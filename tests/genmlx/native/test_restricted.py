"""Restricted Python: what is translated gives what Python gives; what is not part of it is refused with its line."""

import ctypes
import math

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from native_code import compiled

from genmlx.native import llvm
from genmlx.native.restricted import WORD, Code, Single, Word, reassociated, structure, translate

RNG = np.random.default_rng(0)


def polynomial(x: float, n: int) -> float:
    total = 0.0
    power = 1.0
    for i in range(n):
        total += power * (i + 1) / 3
        power *= -x
    return total


def test_arithmetic():
    f = compiled(polynomial, float, float, int)
    for x, n in [(0.3, 5), (-2.0, 9), (1e300, 3), (0.5, 0)]:
        assert f(x, n) == polynomial(x, n)


def collatz(n: int, most: int) -> int:
    steps = 0
    while n != 1:
        if steps == most:
            return -1
        n = n >> 1 if n & 1 == 0 else 3 * n + 1
        steps += 1
    return steps


def skips(n: int) -> int:
    total = 0
    for i in range(2, n):
        for j in range(n):
            if j == i:
                break
            if (i ^ j) & 1 == 1:
                continue
            total += j << 1
        total -= i
        n = 3
    return total * 10 + i + j


def test_loops():
    """The bounds of a range are evaluated once, its name keeps the last value, and a loop ends where it says."""
    f, g = compiled(collatz, int, int, int), compiled(skips, int, int)
    assert [f(n, 120) for n in range(1, 50)] == [collatz(n, 120) for n in range(1, 50)] and f(27, 10) == -1
    assert [g(n) for n in (4, 7, 20)] == [skips(n) for n in (4, 7, 20)]


def mixed(key: Word, n: int) -> Word:
    z = key
    for _ in range(n):
        z = (z + 0x9E3779B97F4A7C15) & WORD
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    return z ^ (z >> 31)


def unit(z: Word) -> float:
    return (float(z >> 11) + 0.5) / 9007199254740992.0


def unsigned(a: Word, b: Word) -> bool:
    return a < b


def test_words():
    f, g, less = compiled(mixed, Word, Word, int), compiled(unit, float, Word), compiled(unsigned, bool, Word, Word)
    for key in (0, 1, WORD, 0x8000000000000000):
        assert f(key, 3) == mixed(key, 3) and g(key) == unit(key)
    assert less(1, WORD) and not less(WORD, 1)


def decide(a: float, b: float, n: int) -> int:
    if a < b and not (n > 3 or a != a):
        return 1
    elif 0 <= n < 2 <= 5 or b == 0.0:
        return 2
    return 3 if n == -7 else 4


def test_decisions():
    f = compiled(decide, int, float, float, int)
    for a in (0.0, 1.0, math.nan, math.inf):
        for b in (0.0, 1.0, math.nan):
            for n in (-7, 0, 1, 2, 4):
                assert f(a, b, n) == decide(a, b, n), (a, b, n)


def guarded(values: list[float], n: int, at: int) -> bool:
    return at < n and values[at] > 0.5


def test_the_second_of_two_conditions_is_not_evaluated_where_the_first_decides():
    f = compiled(guarded, bool, list, int, int)
    values = np.array([0.2, 0.9])
    assert [f(values, 2, at) for at in (0, 1, 1 << 40)] == [False, True, False]


def functions(x: float) -> float:
    return (
        math.exp(-x)
        + 3 * math.log(x)
        + math.sqrt(x)
        + 5 * math.sin(x)
        - 7 * math.cos(x)
        + abs(-x)
        + min(x, 2) * max(x, 0.5)
        + math.floor(-x)
        + math.ceil(x)
        + int(-x)
        + math.pi
    )


def finite(x: float) -> bool:
    return math.isfinite(x)


def least(a: float, b: float) -> float:
    return min(a, b)


def test_functions():
    f, g, h = compiled(functions, float, float), compiled(finite, bool, float), compiled(least, float, float, float)
    for x in (0.1, 1.0, 1.5, 2.0, 7.25):
        assert f(x) == pytest.approx(functions(x), rel=1e-15)
    assert [g(x) for x in (1.0, math.inf, -math.inf, math.nan)] == [True, False, False, False]
    nan = math.nan
    assert repr([h(nan, 1.0), h(1.0, nan)]) == repr([min(nan, 1.0), min(1.0, nan)])


def prefix(x: list[float], out: list[Single], counts: list[int], n: int) -> None:
    rest = x[1:]
    counts[0] += n
    for i in range(n):
        out[i] = rest[i] + x[i]
        out[i] *= 2.0
        counts[int(x[i] > 0.0) + 1] += 1


def test_lists_are_views_of_memory():
    x = RNG.normal(size=9)
    found, expected = np.zeros(8, np.float32), np.zeros(8, np.float32)
    counts, others = np.array([5, 0, 0]), np.array([5, 0, 0])
    compiled(prefix, None, list, list, list, int)(x, found, counts, 8)
    prefix(x, expected, others, 8)
    assert np.array_equal(found, expected) and np.array_equal(counts, others)


@reassociated
def dot(a: list[float], b: list[float], n: int) -> float:
    total = 0.0
    for i in range(n):
        total += a[i] * b[i]
    return total


def test_a_sum_in_any_order():
    a, b = RNG.normal(size=(2, 10_001))
    assert compiled(dot, float, list, list, int)(a, b, 10_001) == pytest.approx(dot(a, b, 10_001), rel=1e-12)
    assert "fadd reassoc" in str(translate(dot)) and "reassoc" not in str(translate(prefix))


class Chain:
    count: int
    place: list[float]
    log_prob: float
    move: Code


def shift(chain: Chain) -> None:
    chain.place[0] += 0.5
    chain.count += 1


def call_each(chains: list[Chain], n: int, move: Code) -> float:
    total = 0.0
    for i in range(n):
        chain = chains[i]
        chain.log_prob = float(chain.count) - 1.0
        chain.move(chain)
        move(chain)
        total += chain.place[0] + chain.log_prob
    return total


def both(chains: list[Chain], n: int) -> float:
    return call_each(chains, n, shift)


def test_structs_and_pointers_to_code():
    memory, layout = RNG.normal(size=(3, 1)), structure(Chain)
    native, python = (layout * 3)(), [Chain() for _ in range(3)]
    module = llvm.load(translate(both, shift))
    for i, chain in enumerate(python):
        chain.count, chain.place, chain.move = i, memory[i].copy(), shift
        native[i].count, native[i].place, native[i].move = i, memory[i].ctypes.data, module.address("shift")
    found = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p, ctypes.c_int64)(module.address("both"))(native, 3)
    assert found == both(python, 3)
    assert (
        [(c.count, c.log_prob) for c in native]
        == [(c.count, c.log_prob) for c in python]
        == [(2 + i, i - 1.0) for i in range(3)]
    )
    assert np.array_equal(memory, [c.place for c in python])


def other_module(x: float) -> float:
    return x**2


def text(x: float) -> float:
    print("x")
    return x


def unsure(x: int, y: Word) -> Word:
    return x + y


def whole(x: float) -> int:
    return x


def unknown(x: float) -> float:
    return math.gamma(x)


def items(x: list[float]) -> float:
    total = 0.0
    for y in x:
        total += y
    return total


def few(x: float) -> float:
    return polynomial(x)


@pytest.mark.parametrize(
    "function, line, message",
    [
        (other_module, 1, "Pow of float"),
        (text, 1, "constant 'x'"),
        (unsure, 1, "way from int to Word"),
        (whole, 1, "way from float to int"),
        (unknown, 1, "function math.gamma"),
        (items, 2, "loop but over a range"),
        (few, 1, "call of polynomial by 1 arguments"),
    ],
)
def test_what_is_not_part_of_it_is_refused(function, line, message):
    with pytest.raises(SyntaxError, match=message) as raised:
        translate(function)
    assert raised.value.filename == __file__
    assert raised.value.lineno == function.__code__.co_firstlineno + line
