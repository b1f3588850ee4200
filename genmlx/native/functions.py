"""Elementary functions as straight-line code, within 2 ulp: LLVM makes vectors of it.

Each takes and gives a float or a double. Infinities, nan, zeros and denormal numbers are as in IEEE 754's
recommendations. What is rare is the C library's function in double precision: it is not vectorised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from llvmlite import ir

from genmlx.native import coefficients as fitted
from genmlx.native.spreading import scalar
from genmlx.native.writing import I32, I64, Code, Value

_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()


class _Writer:
    """Arithmetic on values of the type of ``x``, with Python numbers for constants."""

    def __init__(self, code: Code, x: Value):
        self.code, self.builder, self.type = code, code.builder, scalar(x.type)
        self.single = self.type == _FLOAT
        self.integer = I32 if self.single else I64
        self.mantissa, self.bias = (23, 127) if self.single else (52, 1023)

    def of(self, value: Value | float) -> Value:
        return value if isinstance(value, ir.Value) else ir.Constant(self.type, float(value))

    def add(self, a: Value | float, b: Value | float) -> Value:
        return self.builder.fadd(self.of(a), self.of(b))

    def sub(self, a: Value | float, b: Value | float) -> Value:
        return self.builder.fsub(self.of(a), self.of(b))

    def mul(self, a: Value | float, b: Value | float) -> Value:
        return self.builder.fmul(self.of(a), self.of(b))

    def div(self, a: Value | float, b: Value | float) -> Value:
        return self.builder.fdiv(self.of(a), self.of(b))

    def fma(self, a: Value | float, b: Value | float, c: Value | float) -> Value:
        """a b + c, rounded once."""
        return self.code.intrinsic("fma", self.of(a), self.of(b), self.of(c))

    def neg(self, a: Value) -> Value:
        return self.builder.fneg(a)

    def abs(self, a: Value) -> Value:
        return self.code.intrinsic("fabs", a)

    def sqrt(self, a: Value) -> Value:
        return self.code.intrinsic("sqrt", a)

    def is_(self, a: Value, symbol: str, b: Value | float) -> Value:
        """A comparison, false for nan except ``!=``."""
        compare = self.builder.fcmp_unordered if symbol == "!=" else self.builder.fcmp_ordered
        return compare(symbol, a, self.of(b))

    def where(self, condition: Value, a: Value | float, b: Value | float) -> Value:
        return self.builder.select(condition, self.of(a), self.of(b))

    def clamped(self, x: Value, low: float, high: float) -> Value:
        """Between these; the lower for nan."""
        x = self.where(self.is_(x, ">", low), x, low)
        return self.where(self.is_(x, "<", high), x, high)

    def bits(self, value: int) -> ir.Constant:
        return ir.Constant(self.integer, value)

    def whole(self, x: Value) -> Value:
        """A small whole number as an integer as wide as ``x``."""
        small = self.builder.fptosi(x, I32)
        return small if self.single else self.builder.sext(small, I64)

    def power_of_two(self, n: Value) -> Value:
        """2^n for an integer within the exponents of normal numbers."""
        shifted = self.builder.shl(self.builder.add(n, self.bits(self.bias)), self.bits(self.mantissa))
        return self.builder.bitcast(shifted, self.type)

    def scaled(self, x: Value, n: Value) -> Value:
        """x 2^n, into the denormal numbers and to infinity."""
        half = self.builder.ashr(n, self.bits(1))
        first = self.mul(x, self.power_of_two(half))
        return self.mul(first, self.power_of_two(self.builder.sub(n, half)))

    def polynomial(self, x: Value, coefficients: Sequence[float | Value]) -> Value:
        """The lowest power first; by pairs, then pairs of pairs, so that little waits for what is before it."""
        terms = [self.of(c) for c in coefficients]
        while len(terms) > 1:
            pairs = [self.fma(high, x, low) for low, high in zip(terms[::2], terms[1::2], strict=False)]
            terms = pairs + terms[2 * len(pairs) :]
            if len(terms) > 1:
                x = self.mul(x, x)
        return terms[0]

    def fit(self, fits: Sequence[Sequence[float]]) -> Sequence[float]:
        return fits[0] if self.single else fits[1]


def _log2_parts(w: _Writer) -> tuple[float, float]:
    """log 2 in two parts, of which the first times any exponent is exact."""
    return (0.693359375, -2.12194440e-4) if w.single else (6.93147180369123816490e-01, 1.90821492927058770002e-10)


def _reduced(w: _Writer, x: Value) -> tuple[Value, Value]:
    """n and r with x = n log 2 + r, Cody and Waite (1980); n is a whole number in floating point."""
    n = w.code.intrinsic("rint", w.mul(x, 1 / math.log(2)))
    high, low = _log2_parts(w)
    return n, w.fma(w.neg(n), low, w.fma(w.neg(n), high, x))


def _expm1_near(w: _Writer, r: Value) -> Value:
    return w.fma(w.mul(r, r), w.polynomial(r, w.fit(fitted.EXP)), r)


def exp(code: Code, x: Value) -> Value:
    w = _Writer(code, x)
    inside = w.clamped(x, -104, 89) if w.single else w.clamped(x, -746, 710)
    n, r = _reduced(w, inside)
    value = w.scaled(w.add(_expm1_near(w, r), 1), w.whole(n))
    return w.where(w.is_(x, "!=", x), x, value)


def exp2(code: Code, x: Value) -> Value:
    """2^x, exact for whole numbers."""
    w = _Writer(code, x)
    inside = w.clamped(x, -151, 129) if w.single else w.clamped(x, -1076, 1025)
    n = code.intrinsic("rint", inside)
    r = w.sub(inside, n)
    high = math.log(2) if not w.single else 0.6931471824645996
    low = math.log(2) - high if w.single else 2.3190468138462996e-17
    product = w.mul(r, high)
    rest = w.fma(r, low, w.fma(r, high, w.neg(product)))
    near = w.add(_expm1_near(w, product), rest)
    return w.where(w.is_(x, "!=", x), x, w.scaled(w.add(near, 1), w.whole(n)))


def expm1(code: Code, x: Value) -> Value:
    w = _Writer(code, x)
    inside = w.clamped(x, -20, 89) if w.single else w.clamped(x, -40, 710)
    n, r = _reduced(w, inside)
    half = w.power_of_two(w.builder.sub(w.whole(n), w.bits(1)))  # 2^n may be beyond the largest number
    value = w.fma(half, _expm1_near(w, r), w.sub(half, 0.5))
    value = w.where(w.is_(n, "==", 0), _expm1_near(w, r), w.add(value, value))
    same = w.builder.or_(w.is_(x, "!=", x), w.is_(x, "==", 0))
    return w.where(same, x, value)


def _split(w: _Writer, x: Value) -> tuple[Value, Value]:
    """k, a whole number in floating point, and m in [sqrt(1/2), sqrt(2)) with x = m 2^k, for positive x."""
    least, step, shift = (2.0**-126, 2.0**25, 25) if w.single else (2.0**-1022, 2.0**54, 54)
    tiny = w.is_(x, "<", least)
    bits = w.builder.bitcast(w.where(tiny, w.mul(x, step), x), w.integer)
    root = w.bits(0x3F3504F3 if w.single else 0x3FE6A09E667F3BCD)
    offset = w.builder.sub(bits, root)
    k = w.builder.sitofp(w.builder.ashr(offset, w.bits(w.mantissa)), w.type)
    k = w.sub(k, w.where(tiny, shift, 0))
    kept = w.builder.and_(offset, w.bits((1 << w.mantissa) - 1))
    return k, w.builder.bitcast(w.builder.add(kept, root), w.type)


def _log_near(w: _Writer, f: Value) -> Value:
    """log(1 + f) - f."""
    if w.single:
        square = w.mul(f, f)
        return w.fma(w.mul(square, f), w.polynomial(f, fitted.LOG32), w.mul(square, -0.5))
    s = w.div(f, w.add(f, 2))
    z = w.mul(s, s)
    half = w.mul(w.mul(f, f), 0.5)
    return w.sub(w.mul(s, w.add(half, w.mul(z, w.polynomial(z, fitted.LOG64)))), half)


def _log_of(w: _Writer, k: Value, f: Value, c: Value | float) -> Value:
    """k log 2 + log(1 + f) + c, for a small c."""
    high, low = _log2_parts(w)
    return w.fma(k, high, w.add(f, w.add(_log_near(w, f), w.fma(k, low, c))))


def _log_edges(w: _Writer, x: Value, value: Value, zero: float) -> Value:
    """The values of a logarithm that is -inf at ``zero``, and nan below."""
    value = w.where(w.is_(x, "==", math.inf), x, value)
    value = w.where(w.is_(x, "==", zero), -math.inf, value)
    value = w.where(w.is_(x, "<", zero), math.nan, value)
    return w.where(w.is_(x, "!=", x), x, value)


def log(code: Code, x: Value) -> Value:
    w = _Writer(code, x)
    k, m = _split(w, x)
    return _log_edges(w, x, _log_of(w, k, w.sub(m, 1), 0), 0)


def log1p(code: Code, x: Value) -> Value:
    w = _Writer(code, x)
    u = w.add(x, 1)
    lost = w.where(w.is_(x, ">", 1), w.sub(1, w.sub(u, x)), w.sub(x, w.sub(u, 1)))
    k, m = _split(w, u)
    value = _log_edges(w, x, _log_of(w, k, w.sub(m, 1), w.div(lost, u)), -1)
    return w.where(w.is_(x, "==", 0), x, value)


def _log_base(code: Code, x: Value, base: float) -> Value:
    """float32 by way of float64; the C library for that."""
    if scalar(x.type) == _DOUBLE:
        return code.library("log2" if base == 2 else "log10", x)
    w = _Writer(code, code.builder.fpext(x, _DOUBLE))
    k, m = _split(w, code.builder.fpext(x, _DOUBLE))
    near = w.mul(w.add(w.sub(m, 1), _log_near(w, w.sub(m, 1))), 1 / math.log(base))
    value = w.fma(k, math.log(2) / math.log(base), near)
    return code.builder.fptrunc(_log_edges(w, code.builder.fpext(x, _DOUBLE), value, 0), _FLOAT)


def log2(code: Code, x: Value) -> Value:
    return _log_base(code, x, 2)


def log10(code: Code, x: Value) -> Value:
    return _log_base(code, x, 10)


def logaddexp(code: Code, a: Value, b: Value) -> Value:
    """log(e^a + e^b), as MLX has it: log1p of the exponential of the difference."""
    w = _Writer(code, a)
    top, bottom = code.intrinsic("maximum", a, b), code.intrinsic("minimum", a, b)
    value = w.add(top, log1p(code, exp(code, w.sub(bottom, top))))
    edge = w.builder.or_(w.is_(bottom, "==", -math.inf), w.is_(top, "==", math.inf))
    return w.where(edge, top, value)


def sigmoid(code: Code, x: Value) -> Value:
    """1 / (1 + e^-x) from e = e^-|x|, where what is lost in 1 + e is put back into the quotient."""
    w = _Writer(code, x)
    e = exp(code, w.neg(w.abs(x)))
    total = w.add(e, 1)
    lost = w.add(w.sub(1, total), e)
    above = w.where(w.is_(x, "<", 0), e, 1)
    inverse = w.div(1, total)
    quotient = w.mul(above, inverse)
    rest = w.sub(w.fma(w.neg(quotient), total, above), w.mul(quotient, lost))
    return w.fma(rest, inverse, quotient)


def tanh(code: Code, x: Value) -> Value:
    w = _Writer(code, x)
    z = w.mul(x, x)
    near = w.fma(w.mul(x, z), w.polynomial(z, w.fit(fitted.TANH)), x)
    size = w.abs(x)
    far = w.sub(1, w.div(2, w.add(exp(code, w.add(size, size)), 1)))
    return code.intrinsic("copysign", w.where(w.is_(size, "<", 0.625), near, far), x)


def erf(code: Code, x: Value) -> Value:
    w = _Writer(code, x)
    z = w.mul(x, x)
    near = w.fma(x, w.polynomial(z, w.fit(fitted.ERF_NEAR)), x)
    size = w.abs(x)
    end, center, half = (4.0, 2.5, 1.5) if w.single else (6.0, 3.5, 2.5)
    inside = w.clamped(size, 1, end)
    t = w.mul(w.sub(inside, center), 1 / half)
    far = w.sub(1, exp(code, w.fma(w.neg(inside), inside, w.polynomial(t, w.fit(fitted.ERF_FAR)))))
    value = w.where(w.is_(size, "<", 1), near, code.intrinsic("copysign", far, x))
    return w.where(w.is_(x, "!=", x), x, value)


def erfinv(code: Code, x: Value) -> Value:
    """Giles (2012), 'Approximating the erfinv function', with polynomials of our own; in float64 throughout."""
    single = scalar(x.type) == _FLOAT
    wide = code.builder.fpext(x, _DOUBLE) if single else x
    w = _Writer(code, wide)
    logarithm = w.neg(log(code, w.mul(w.sub(1, wide), w.add(1, wide))))
    root = w.sqrt(w.clamped(logarithm, 0, 40))
    which, center, half = (0, 3.125, 3.125) if single else (1, 3.45, 2.8)
    near = w.polynomial(w.mul(w.sub(w.clamped(logarithm, 0, 6.25), center), 1 / half), fitted.ERFINV_NEAR[which])
    value = w.polynomial(w.mul(w.sub(root, 3.25), 1 / 0.75), fitted.ERFINV_MIDDLE[which])
    if not single:
        far = w.polynomial(w.mul(w.sub(root, 5.005), 1 / 1.005), fitted.ERFINV_FAR)
        lost = w.div(w.fma(w.neg(root), root, logarithm), w.add(root, root))
        value = w.add(w.where(w.is_(root, "<", 4), value, far), lost)
    first = w.is_(logarithm, "<", 6.25)
    value = w.fma(wide, w.where(first, near, value), w.mul(wide, w.where(first, 1, root)))
    size = w.abs(wide)
    if not single:
        small = w.fma(wide, w.polynomial(w.mul(wide, wide), fitted.ERFINV_SMALL), wide)
        value = w.where(w.is_(size, "<", 0.7), small, value)
    value = code.intrinsic("copysign", w.where(w.is_(size, "==", 1), math.inf, value), wide)
    value = w.where(w.is_(size, "<=", 1), value, math.nan)
    return code.builder.fptrunc(value, _FLOAT) if single else value


def power(code: Code, a: Value, b: Value) -> Value:
    """a^b; float32 by way of float64, which is the C library's."""
    if scalar(a.type) == _DOUBLE:
        return code.library("pow", a, b)
    base, exponent = code.builder.fpext(a, _DOUBLE), code.builder.fpext(b, _DOUBLE)
    w = _Writer(code, base)
    size = w.abs(base)
    value = exp(code, w.mul(exponent, log(code, size)))
    either = w.builder.or_(w.is_(size, "==", 1), w.is_(exponent, "==", 0))
    half = w.mul(exponent, 0.5)
    whole = w.is_(code.intrinsic("floor", exponent), "==", exponent)
    odd = w.builder.and_(whole, w.is_(code.intrinsic("floor", half), "!=", half))
    value = w.where(either, 1, value)
    value = w.where(odd, code.intrinsic("copysign", value, base), value)
    below = w.builder.and_(w.is_(base, "<", 0), w.is_(base, "!=", -math.inf))
    value = w.where(w.builder.and_(below, w.builder.not_(whole)), math.nan, value)
    value = w.where(w.is_(exponent, "!=", exponent), exponent, value)
    value = w.where(w.is_(base, "!=", base), base, value)
    one = w.builder.or_(w.is_(base, "==", 1), w.is_(exponent, "==", 0))
    return code.builder.fptrunc(w.where(one, 1, value), _FLOAT)


def _by_library(name: str):
    """A function of the C library, in float64 whatever the type."""

    def function(code: Code, *values: Value) -> Value:
        if scalar(values[0].type) == _DOUBLE:
            return code.library(name, *values)
        wide = [code.builder.fpext(value, _DOUBLE) for value in values]
        return code.builder.fptrunc(code.library(name, *wide), _FLOAT)

    return function


sin, cos, tan = _by_library("sin"), _by_library("cos"), _by_library("tan")
arcsin, arccos, arctan, arctan2 = [_by_library(name) for name in ("asin", "acos", "atan", "atan2")]
sinh, cosh = _by_library("sinh"), _by_library("cosh")
arcsinh, arccosh, arctanh = [_by_library(name) for name in ("asinh", "acosh", "atanh")]
