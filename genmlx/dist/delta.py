"""The point mass."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.dist.distribution import Distribution
from genmlx.dist.support import Support
from genmlx.dist.values import as_array
from genmlx.errors import ParameterError, caller_line


class Point(Support):
    """One value (an array: one value for each element)."""

    __slots__ = ("value",)

    def __init__(self, value: mx.array):
        super().__init__("the value of a delta")
        self.value = value

    @property
    def discrete(self) -> bool:
        return not mx.issubdtype(self.value.dtype, mx.floating)

    def contains(self, x: mx.array) -> mx.array:
        return x == self.value

    def interior(self, x: mx.array) -> mx.array:
        return self.value

    def enumerate(self) -> mx.array:
        return self.value[None]


class Delta(Distribution):
    """``delta(v)``: ``v`` with probability 1, elementwise; any shape, and the dtype of ``v``.

    The log density is 0 at ``v`` and -inf elsewhere, with respect to a point mass: it does not mix with densities.

    >>> delta(2).log_prob(2).item(), delta(2).log_prob(3).item()
    (0.0, -inf)
    """

    parameters = {"v": None}
    reparameterised = True
    guarded = False

    def check_parameters(self, *args: Any) -> None:
        if isinstance(args[0], float) and math.isnan(args[0]):
            raise ParameterError(f"{self.__name__}: v must be a number, got nan", where=caller_line())

    def params(self, args: tuple) -> tuple:
        return (as_array(args[0]),)

    def batch_shape(self, *params: Any) -> tuple:
        return params[0].shape

    def support_of(self, *params: Any) -> Support:
        return Point(params[0])

    def _sample(self, key: Any, shape: tuple, v: mx.array) -> mx.array:
        return mx.broadcast_to(v, shape)

    def _log_density(self, x: mx.array, v: mx.array) -> mx.array:
        return mx.where(x == v, 0.0, -math.inf)

    def _mean(self, v: mx.array) -> mx.array:
        return v

    def _variance(self, v: mx.array) -> mx.array:
        return mx.zeros(v.shape)


delta = Delta("delta")
