"""Float64 on the CPU, whatever the default device: MLX has it nowhere else.

Every operation names its stream. ``with mx.stream(mx.cpu)`` sets the default device of the whole process, and two
threads that leave it in the wrong order leave the process on the CPU. The derivatives and the batched forms of MLX's
primitives run where the primitives do.

One that does not is ``mx.jvp`` of a selection (MLX 0.32.4): choose before the cast to float64, or after the cast back.
"""

from __future__ import annotations

import math

import mlx.core as mx

from genmlx.backend.special import HALF_LOG_2PI

CPU: mx.Stream | mx.DeviceType = mx.cpu

_STIRLING = (  # B_2k / (2k (2k - 1)), Abramowitz and Stegun 6.1.41 (1964)
    1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12,
)  # fmt: skip


class Double:
    """An array in float64 whose operators run on the CPU. The other operand is one too, or a number."""

    __slots__ = ("array",)

    def __init__(self, array: mx.array):
        self.array = array

    @property
    def shape(self) -> tuple:
        return self.array.shape

    def __add__(self, other: Double | float) -> Double:
        return Double(mx.add(self.array, _operand(other), stream=CPU))

    def __sub__(self, other: Double | float) -> Double:
        return Double(mx.subtract(self.array, _operand(other), stream=CPU))

    def __rsub__(self, other: float) -> Double:
        return Double(mx.subtract(_operand(other), self.array, stream=CPU))

    def __mul__(self, other: Double | float) -> Double:
        return Double(mx.multiply(self.array, _operand(other), stream=CPU))

    def __rmul__(self, other: float) -> Double:
        return Double(mx.multiply(_operand(other), self.array, stream=CPU))

    def __rtruediv__(self, other: float) -> Double:
        return Double(mx.divide(other, self.array, stream=CPU))

    def __matmul__(self, other: Double) -> Double:
        return Double(mx.matmul(self.array, other.array, stream=CPU))

    def __gt__(self, other: Double | float) -> mx.array:
        return mx.greater(_fixed(self), _fixed(other), stream=CPU)

    def __lt__(self, other: Double | float) -> mx.array:
        return mx.less(_fixed(self), _fixed(other), stream=CPU)

    def __le__(self, other: Double | float) -> mx.array:
        return mx.less_equal(_fixed(self), _fixed(other), stream=CPU)

    @property
    def transposed(self) -> Double:
        """With the last two axes exchanged."""
        return Double(mx.swapaxes(self.array, -1, -2, stream=CPU))

    @property
    def diagonal(self) -> Double:
        return Double(mx.diagonal(self.array, axis1=-2, axis2=-1, stream=CPU))

    def new_axis(self, axis: int) -> Double:
        return Double(mx.expand_dims(self.array, axis, stream=CPU))

    def sum(self, axes: int) -> Double:
        """Over the last ``axes`` axes."""
        return Double(mx.sum(self.array, axis=_last(axes), stream=CPU))

    def cast(self, dtype: mx.Dtype) -> mx.array:
        return self.array.astype(dtype, stream=CPU)


def _operand(x: Double | float) -> mx.array | float:
    return x.array if isinstance(x, Double) else x


def _fixed(x: Double | float) -> mx.array | float:
    return constant(x).array if isinstance(x, Double) else x


def _last(axes: int) -> tuple:
    return tuple(range(-axes, 0))


def double(x: mx.array) -> Double:
    return Double(x.astype(mx.float64, stream=CPU))


def result_type(*inputs: mx.array) -> mx.Dtype:
    """What results are cast to: float64 if an input is, else float32."""
    return mx.float64 if any(x.dtype == mx.float64 for x in inputs) else mx.float32


def identity(n: int) -> Double:
    return double(mx.eye(n, stream=CPU))


def lower_ones(n: int) -> Double:
    return double(mx.tri(n, dtype=mx.float32, stream=CPU))


def indicator(condition: mx.array) -> Double:
    """1 where it holds, 0 elsewhere."""
    return double(condition)


def constant(x: Double) -> Double:
    return Double(mx.stop_gradient(x.array, stream=CPU))


def where(condition: mx.array, x: mx.array, y: mx.array | float, axes: int = 0) -> mx.array:
    """``mx.where`` on the CPU, for float32; the condition is the same along the last ``axes`` axes."""
    if axes:
        condition = mx.expand_dims(condition, _last(axes), stream=CPU)
    return mx.where(condition, x, y, stream=CPU)


def both(x: mx.array, y: mx.array) -> mx.array:
    return mx.logical_and(x, y, stream=CPU)


def all_of(x: mx.array, axes: int) -> mx.array:
    return mx.all(x, axis=_last(axes), stream=CPU)


def magnitude(x: Double) -> Double:
    return Double(mx.abs(x.array, stream=CPU))


def largest(x: Double, axes: int) -> Double:
    """Over the last ``axes`` axes; nan where there is a nan."""
    return Double(mx.max(x.array, axis=_last(axes), stream=CPU))


def lower_factor(x: Double) -> Double:
    """Cholesky's factor, which in MLX has no derivatives and does not say whether ``x`` is positive definite."""
    return Double(mx.linalg.cholesky(x.array, stream=CPU))


def lower_inverse(x: Double) -> Double:
    """The inverse of a lower triangular matrix, without derivatives; raises where one of a batch is singular."""
    return Double(mx.linalg.tri_inv(x.array, stream=CPU))


def log(x: Double) -> Double:
    return Double(mx.log(x.array, stream=CPU))


def lgamma(x: Double) -> Double:
    """log of the gamma function for x > 0, relative 1e-14: ten steps of the recurrence below 10, Stirling's series."""
    low = indicator(x < 10)
    y = low * x + (1 - low)
    product = y
    for j in range(1, 10):
        product = product * (y + j)
    z = x + 10 * low
    w = 1 / z
    u = w * w
    tail = u * _STIRLING[0] + _STIRLING[1]
    for coefficient in _STIRLING[2:]:
        tail = tail * u + coefficient
    return (z - 0.5) * log(z) - z + w * tail + HALF_LOG_2PI - low * log(product)


def multigammaln(x: Double, n: int) -> Double:
    """log of the n-variate gamma function for x > (n - 1) / 2."""
    halves = 0.5 * double(mx.arange(n, dtype=mx.float32, stream=CPU))
    return lgamma(x.new_axis(-1) - halves).sum(1) + 0.25 * n * (n - 1) * math.log(math.pi)
