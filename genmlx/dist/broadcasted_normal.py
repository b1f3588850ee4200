"""Independent normals as one event."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.backend.sums import summed
from genmlx.dist.distribution import Distribution
from genmlx.dist.normal import normal
from genmlx.dist.support import Support, Vector, positive, real
from genmlx.dist.values import shape_mismatch


class BroadcastedNormal(Distribution):
    """``broadcasted_normal(mu, sigma)``: independent normals over the broadcast shape of the parameters, as one event.

    Where ``normal(mu, sigma)`` keeps the elements apart, here ``log_prob`` of a value ``[..., *event_shape]`` sums
    over the whole event: ``[...]``.

    >>> d = broadcasted_normal(mx.zeros((2, 3)), 1.0)
    >>> d.event_shape, d.log_prob(mx.zeros((5, 2, 3))).shape
    ((2, 3), (5,))
    """

    parameters = {"mu": real, "sigma": positive}
    reparameterised = True
    guarded = False

    def event_shape(self, *params: Any) -> tuple:
        return super().batch_shape(*params)

    def batch_shape(self, *params: Any) -> tuple:
        super().batch_shape(*params)  # raises where the shapes do not broadcast
        return ()

    def support_of(self, *params: Any) -> Support:
        ndim = len(self.event_shape(*params))
        return Vector(real, ndim) if ndim else real

    def _sample(self, key: Any, shape: tuple, mu: mx.array, sigma: mx.array) -> mx.array:
        return mu + sigma * random.normal(key, (*shape, *self.event_shape(mu, sigma)))

    def _log_density(self, x: mx.array, mu: mx.array, sigma: mx.array) -> mx.array:
        event = self.event_shape(mu, sigma)
        if x.shape[x.ndim - len(event) :] != event:
            raise shape_mismatch(x, event, self.__name__)
        return summed(normal._precise_density(x, (mu, sigma)), len(event))

    def _mean(self, mu: mx.array, sigma: mx.array) -> mx.array:
        return mu

    def _variance(self, mu: mx.array, sigma: mx.array) -> mx.array:
        return sigma * sigma


broadcasted_normal = BroadcastedNormal("broadcasted_normal")
