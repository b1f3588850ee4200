"""Draws kept inside what float32 can hold, so that no draw leaves its support by rounding."""

import mlx.core as mx

from genmlx.backend.special import exp

_SMALLEST, _LOG_SMALLEST = 1.1754944e-38, -87.33654  # of the normal numbers; MLX flushes the others to 0
_LARGEST, _LOG_LARGEST = 3.4028235e38, 88.72283
_BELOW_ONE = 1 - 2.0**-24


def positive_exp(log_x: mx.array) -> mx.array:
    """e^log_x, or the smallest positive or the largest float32 where that is beyond them, with derivative 0."""
    low, high = log_x <= _LOG_SMALLEST, log_x >= _LOG_LARGEST
    value = exp(mx.where(low | high, 0.0, log_x))
    return mx.where(low, _SMALLEST, mx.where(high, _LARGEST, value))


def inside_unit_interval(x: mx.array) -> mx.array:
    """x moved from 0 and 1 to the nearest float32 strictly between them."""
    return mx.clip(x, _SMALLEST, _BELOW_ONE)
