"""Choices given by unconstrained coordinates, or asked for them: leaves that a distribution understands.

``generate`` with a ``Free`` at every latent address is a log density on R^n: each distribution maps its own share of
the coordinates into its support, whose bounds are those of the run, and adds the log Jacobian to the weight. So it
works through every combinator, and a support may depend on the choices before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from genmlx.pytree import register_slots


class _Leaf:
    __slots__ = ("array",)

    def __init__(self, array: mx.array):
        self.array = array

    @property
    def shape(self) -> tuple:
        return self.array.shape

    def __getitem__(self, row: Any) -> _Leaf:
        return type(self)(self.array[row])

    def __len__(self) -> int:
        return self.array.shape[0]

    def __iter__(self) -> Iterator[_Leaf]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.shape)})"


class Free(_Leaf):
    """The unconstrained coordinates of one choice, ``[size]``, further axes in front under ``vmap``.

    The choice's weight is its log density plus log |det J|; its score is the log density alone.
    """

    __slots__ = ()


class Fixed(_Leaf):
    """The value of a choice, of which the trace's choices then hold the unconstrained coordinates in its place."""

    __slots__ = ()


class Pointwise(Fixed):
    """The value of a choice, of which the trace's choices then hold the log density in its place: that of each element
    of an array of independent ones, unsummed."""

    __slots__ = ()


class Drawn(Fixed):
    """A choice that the run draws, in the leaf's own way: ``draw(family, args, key)`` gives its trace.

    The array has the shape of the choice; what it says is up to the leaf. As for any draw, the weight is 0.
    """

    __slots__ = ()

    def draw(self, family: Any, args: tuple, key: Any) -> Any:
        raise NotImplementedError


for _kind in (Free, Fixed, Pointwise, Drawn):
    register_slots(_kind, ("array",))
