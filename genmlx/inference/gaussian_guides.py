"""Gaussian guides of unconstrained vectors: independent, dense, and low rank plus diagonal; and how they climb.

A step is in the guide's own coordinates, in which it is standard normal: that is its natural gradient, the same
whatever the scale of the latents (Lin, Nielsen, Khan and Schmidt 2021, "Tractable structured natural-gradient descent
using local parameterizations"; for the dense one Glasmachers et al. 2010, "Exponential natural evolution strategies").

Each guide has ``params``, arrays by name, which its functions take. With noise ``z`` [samples, width] a draw is
``u`` [samples, dim]; ``gradients`` are those of the log density there. ``landing`` leaves out the score of log q, whose
mean is zero, from its derivative ("sticking the landing", Roeder, Wu and Duvenaud 2017): the noise then ends where the
guide is the posterior.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

from genmlx.backend.linalg import inverse_pd, logdet_pd
from genmlx.backend.sums import summed

Params = dict[str, mx.array]
_LONGEST = 0.25
"""The most that a step moves a mean, in standard deviations, and a scale, as a share of it."""


class Direction(NamedTuple):
    """A natural gradient: of the mean, in standard deviations, and of the scale, as shares of it."""

    mean: mx.array
    scale: mx.array


class MeanField:
    """N(mean, diag(std^2))."""

    family = "meanfield"

    def __init__(self, dim: int):
        self.dim = self.width = dim
        self.noise = 1

    def start(self, mean: mx.array, std: float, key: mx.array) -> Params:
        return {"mean": mean, "std": mx.full((self.dim,), std)}

    def place(self, params: Params, z: mx.array) -> mx.array:
        return params["mean"] + params["std"] * z

    def log_q(self, params: Params, z: mx.array) -> mx.array:
        return _standard(z) - summed(mx.log(params["std"]))

    def direction(self, params: Params, z: mx.array, gradients: mx.array, finite: mx.array, landing: bool) -> Direction:
        h = mx.where(finite, gradients * params["std"], -2.0 * z)
        if landing:
            h = h + z
        scale = mx.mean(h * z, axis=0, keepdims=True).T
        return Direction(mx.mean(h, axis=0), 0.5 * (scale if landing else scale + 1.0))

    def moved(self, params: Params, unit: Direction, lengths: mx.array) -> Params:
        std, most = params["std"], _LONGEST * math.sqrt(self.dim)  # in the root mean square: their scales are their own
        by = [mx.clip(x * size, -1.0, 1.0) for x, size in zip(unit, _pair(mx.minimum(lengths, most)), strict=True)]
        return {"mean": params["mean"] + std * by[0], "std": std * mx.exp(by[1][:, 0])}

    def std(self, params: Params) -> mx.array:
        return params["std"]

    def covariance(self, params: Params) -> mx.array:
        return mx.diag(params["std"] ** 2)


class FullRank:
    """N(mean, L L^T), where L is the lower triangular ``scale_tril``."""

    family = "fullrank"

    def __init__(self, dim: int):
        self.dim = self.width = self.noise = dim

    def start(self, mean: mx.array, std: float, key: mx.array) -> Params:
        return {"mean": mean, "scale_tril": std * mx.eye(self.dim)}

    def place(self, params: Params, z: mx.array) -> mx.array:
        return params["mean"] + z @ mx.swapaxes(params["scale_tril"], 0, 1)

    def log_q(self, params: Params, z: mx.array) -> mx.array:
        return _standard(z) - summed(mx.log(mx.diagonal(params["scale_tril"])))

    def direction(self, params: Params, z: mx.array, gradients: mx.array, finite: mx.array, landing: bool) -> Direction:
        h = mx.where(finite, gradients @ params["scale_tril"], -2.0 * z)
        if landing:
            h = h + z
        scale = mx.swapaxes(h, 0, 1) @ z / len(z)
        if not landing:
            scale = scale + mx.eye(self.dim)
        return Direction(mx.mean(h, axis=0), mx.tril(scale) * (1.0 - 0.5 * mx.eye(self.dim)))

    def moved(self, params: Params, unit: Direction, lengths: mx.array) -> Params:
        root, eye = params["scale_tril"], mx.eye(self.dim)
        by = unit.scale * _shortened(lengths[1], unit.scale)
        grown = mx.where(eye > 0, mx.exp(by * eye), by)
        mean = params["mean"] + root @ (unit.mean * mx.minimum(lengths[0], _LONGEST))
        return {"mean": mean, "scale_tril": mx.tril(root @ grown)}

    def std(self, params: Params) -> mx.array:
        return mx.sqrt(summed(params["scale_tril"] ** 2, 1))

    def covariance(self, params: Params) -> mx.array:
        return params["scale_tril"] @ mx.swapaxes(params["scale_tril"], 0, 1)


class LowRank:
    """N(mean, diag(std^2) + W W^T), where W, the ``factor``, is [dim, rank]."""

    family = "lowrank"

    def __init__(self, dim: int, rank: int):
        self.dim, self.rank, self.width = dim, rank, dim + rank
        self.noise = rank + 1

    def start(self, mean: mx.array, std: float, key: mx.array) -> Params:
        factor = std / math.sqrt(self.rank) * mx.random.normal((self.dim, self.rank), key=key)
        return {"mean": mean, "std": mx.full((self.dim,), std), "factor": factor}

    def place(self, params: Params, z: mx.array) -> mx.array:
        return params["mean"] + self._offset(params, z)

    def _offset(self, params: Params, z: mx.array) -> mx.array:
        return params["std"] * z[:, : self.dim] + z[:, self.dim :] @ mx.swapaxes(params["factor"], 0, 1)

    def log_q(self, params: Params, z: mx.array) -> mx.array:
        v = params["factor"] / params["std"][:, None]
        offset = self._offset(params, z)
        quadratic = summed(offset * self._solved(params, offset), 1)
        log_det = 2 * summed(mx.log(params["std"])) + logdet_pd(self._inner(v))
        return -0.5 * (quadratic + log_det + self.dim * math.log(2 * math.pi))

    def _inner(self, v: mx.array) -> mx.array:
        return mx.eye(self.rank) + mx.swapaxes(v, 0, 1) @ v

    def _solved(self, params: Params, r: mx.array) -> mx.array:
        """Rows times the inverse covariance, by Woodbury's identity."""
        std = params["std"]
        v, r = params["factor"] / std[:, None], r / std
        return (r - (r @ v) @ inverse_pd(self._inner(v)) @ mx.swapaxes(v, 0, 1)) / std

    def direction(self, params: Params, z: mx.array, gradients: mx.array, finite: mx.array, landing: bool) -> Direction:
        std, factor = params["std"], params["factor"]
        offset = self._offset(params, z)
        solved = self._solved(params, offset)
        h = mx.where(finite, gradients, -2.0 * solved)
        if landing:
            h = h + solved
        step = std * std * h + (h @ factor) @ mx.swapaxes(factor, 0, 1)
        columns = mx.swapaxes(step, 0, 1) @ z[:, self.dim :] / len(z)
        own = mx.mean(h * std * z[:, : self.dim], axis=0)
        if not landing:
            v = factor / std[:, None]
            columns, own = columns + factor, own + 1.0 - summed((v @ inverse_pd(self._inner(v))) * v, 1)
        sd = self.std(params)
        scale = mx.concatenate([0.5 * own[:, None], columns / sd[:, None]], axis=1)
        return Direction(mx.mean(step, axis=0) / sd, scale)

    def moved(self, params: Params, unit: Direction, lengths: mx.array) -> Params:
        sd, by = self.std(params), unit.scale * _shortened(lengths[1], unit.scale)
        return {
            "mean": params["mean"] + sd * unit.mean * mx.minimum(lengths[0], _LONGEST),
            "std": params["std"] * mx.exp(by[:, 0]),
            "factor": params["factor"] + sd[:, None] * by[:, 1:],
        }

    def std(self, params: Params) -> mx.array:
        return mx.sqrt(params["std"] ** 2 + summed(params["factor"] ** 2, 1))

    def covariance(self, params: Params) -> mx.array:
        return mx.diag(params["std"] ** 2) + params["factor"] @ mx.swapaxes(params["factor"], 0, 1)


Guide = MeanField | FullRank | LowRank


def _standard(z: mx.array) -> mx.array:
    return -0.5 * (summed(z * z, 1) + z.shape[1] * math.log(2 * math.pi))


def _pair(x: mx.array) -> tuple[mx.array, mx.array]:
    return x[0], x[1]


def _shortened(length: mx.array, unit: mx.array) -> mx.array:
    """The length of a step along a matrix of norm one, so that no vector changes by more than it may."""
    rows, columns = (mx.max(mx.sum(mx.abs(unit), axis=axis)) for axis in (1, 0))
    return mx.minimum(length, _LONGEST / mx.clip(mx.sqrt(rows * columns), 1e-18, 1.0))
