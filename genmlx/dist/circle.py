"""The circle: angles in [-pi, pi], what the circular families have in common."""

import math
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.dist.support import Interval

circle = Interval(-math.pi, math.pi, phrase="an angle in [-pi, pi]")
LOG_TWO_PI = math.log(2 * math.pi)
_TURN_HIGH, _TURN_LOW = 6.28125, 2 * math.pi - 6.28125  # a few times the first is subtracted from an angle exactly


def _turns(angle: mx.array) -> mx.array:
    return mx.stop_gradient(mx.round(angle * (0.5 / math.pi)))


def wrap(angle: mx.array) -> mx.array:
    """The same angle in [-pi, pi]."""
    turns = _turns(angle)
    return mx.clip((angle - turns * _TURN_HIGH) - turns * _TURN_LOW, -math.pi, math.pi)


def angle_from(mu: mx.array, x: mx.array) -> mx.array:
    """The angle from mu, any real number, to x, on the shorter way round."""
    own, turns = _turns(mu), _turns(x - mu)
    # half a turn to either angle: neither sum then outgrows the digits of its terms
    half = (turns + own) * (0.5 * _TURN_HIGH)
    return ((x - half) - ((mu - own * _TURN_HIGH) + half)) - turns * _TURN_LOW


def one_minus_cos(angle: mx.array) -> mx.array:
    """1 - cos(angle), without cancellation; of tangents, since MLX's float64 sines have the digits of float32."""
    half = mx.tan(0.5 * angle)
    return 2 * half * half / (1 + half * half)


def wrapped_cauchy_angle(key: Any, shape: tuple, ratio: mx.array) -> mx.array:
    """Wrapped Cauchy angles around 0, given (1 - rho) / (1 + rho): the half angle's tangent is a Cauchy variable."""
    return 2 * mx.arctan(ratio * mx.tan(math.pi * (random.uniform_open(key, shape) - 0.5)))
