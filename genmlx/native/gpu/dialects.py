"""What CUDA's and Metal's dialects of C++ call by different names, for text that is one for both.

``FUNCTION`` begins a function, ``PRIVATE`` a pointer to memory of a thread and ``GLOBAL`` one to that of all threads;
``WIDE`` is an integer of 64 bits. ``add_`` and its kind round once, and no compiler makes one operation of two of them.
"""

from __future__ import annotations

from typing import NamedTuple

_ROUNDED_ONCE = """
FUNCTION float add_(float a, float b) { return a + b; }
FUNCTION float subtract_(float a, float b) { return a - b; }
FUNCTION float multiply_(float a, float b) { return a * b; }
FUNCTION float divide_(float a, float b) { return a / b; }
"""

_COMMON = """
FUNCTION bool is_number_(float x) { return subtract_(x, x) == 0.0f; }
FUNCTION float maximum_(float a, float b) { return a != a ? a : b != b ? b : a > b ? a : b; }
FUNCTION float minimum_(float a, float b) { return a != a ? a : b != b ? b : a < b ? a : b; }
FUNCTION unsigned fshl_(unsigned a, unsigned b, unsigned n) { return (a << n) | (b >> (32u - n)); }
FUNCTION WIDE saturated_(float x) { return x != x ? 0 : x >= 9.0e18f ? 9000000000000000000 : (WIDE)x; }
"""


class Dialect(NamedTuple):
    """``thread`` is the position of a thread among all; ``prelude`` is what the text begins with.

    ``private`` are the bytes of arrays that a thread has to itself, beyond which they are in memory of all threads.
    """

    name: str
    thread: str
    prelude: str
    private: int


def _functions(*names: tuple[str, str]) -> str:
    return "".join(f"FUNCTION float {ours}(float x) {{ return {theirs}(x); }}\n" for ours, theirs in names)


def _named(form: str) -> tuple[tuple[str, str], ...]:
    """Functions of the library that are right to a few ulp everywhere."""
    own = "log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh sqrt".split()
    return tuple((f"{name}_", form.format(name)) for name in own)


def _exact(form: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{name}_", form.format(name)) for name in ("floor", "ceil", "rint", "fabs"))


def _of_two(*names: tuple[str, str]) -> str:
    head = "FUNCTION float {}(float a, float b) {{ return {}(a, b); }}\n"
    return "".join(head.format(*pair) for pair in names)


_MADD = "FUNCTION float fma_(float a, float b, float c) {{ return {}(a, b, c); }}\n"

CUDA = Dialect(
    "CUDA",
    "blockIdx.x * blockDim.x + threadIdx.x",
    "#define FUNCTION static __device__ __forceinline__\n#define PRIVATE\n#define GLOBAL\n#define WIDE long long\n"
    '#define UNROLL _Pragma("unroll")\n'
    "FUNCTION float float_of_(unsigned x) { return __uint_as_float(x); }\n"
    "FUNCTION unsigned bits_of_(float x) { return __float_as_uint(x); }\n"
    + _of_two(
        ("add_", "__fadd_rn"),
        ("subtract_", "__fsub_rn"),
        ("multiply_", "__fmul_rn"),
        ("divide_", "__fdiv_rn"),
        ("pow_", "powf"),
        ("fmod_", "fmodf"),
        ("atan2_", "atan2f"),
        ("copysign_", "copysignf"),
    )
    + _MADD.format("__fmaf_rn")
    + _functions(*_named("{}f"), *_exact("{}f"), ("sinpi_", "sinpif"), ("cospi_", "cospif"))
    + _functions(("natural_exp_", "expf"), ("natural_log_", "logf"))
    + _COMMON,
    1 << 14,  # which an NVIDIA H200 reads up to twice as fast
)

METAL = Dialect(
    "Metal",
    "thread_position_in_grid.x",
    "#pragma METAL fp contract(off)\n"
    "#define FUNCTION static inline\n#define PRIVATE thread\n#define GLOBAL device\n#define WIDE long\n"
    '#define UNROLL _Pragma("unroll")\n'
    "FUNCTION float float_of_(unsigned x) { return as_type<float>(x); }\n"
    "FUNCTION unsigned bits_of_(float x) { return as_type<unsigned>(x); }\n"
    + _ROUNDED_ONCE
    + _of_two(
        ("pow_", "metal::pow"),
        ("fmod_", "metal::fmod"),
        ("atan2_", "metal::precise::atan2"),
        ("copysign_", "metal::copysign"),
    )
    + _MADD.format("metal::fma")
    + _functions(*_named("metal::precise::{}"), *_exact("metal::{}"))
    + _functions(("sinpi_", "metal::precise::sinpi"), ("cospi_", "metal::precise::cospi"))
    + _functions(("natural_exp_", "metal::precise::exp"), ("natural_log_", "metal::precise::log"))
    + _COMMON,
    1 << 10,
)
"""MLX compiles it with its math mode "safe", which keeps infinities and NaN."""
