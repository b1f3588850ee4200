"""Transforms: one-to-one maps between the choices of two traces, in the spirit of Gen.jl's trace transform language.

The body of a transform reads the choices of the old trace and writes those of the new one. What it does to real
values is differentiated; what was read and is written unchanged only moves, and so takes no part in the Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.choicemap import ChoiceMap
from genmlx.errors import UsageError, show_line
from genmlx.gfi import checked_choices
from genmlx.jacobian import AUX, MODEL
from genmlx.transform_run import NOTHING, Run, Side


class Transformed(NamedTuple):
    """Choices written to the model and to the backward proposal, and log |det Jacobian|."""

    choices: ChoiceMap
    aux: ChoiceMap
    log_det: mx.array


class Transform:
    """A map between choices, made by ``@transform``. ``inverse`` is the transform that undoes it, once it is known."""

    def __init__(self, function: Callable):
        self.function = function
        self.inverse: Transform | None = None
        self.__name__, self.__doc__, self.__wrapped__ = function.__name__, function.__doc__, function
        self.__module__, self.__qualname__ = function.__module__, function.__qualname__

    @property
    def line(self) -> str:
        return show_line(self.function.__code__.co_filename, self.function.__code__.co_firstlineno)

    def __call__(self, choices: Any = None, aux: Any = None, args: tuple = ()) -> Transformed:
        """The transform of plain choices, without a model."""
        given = Side(checked_choices(aux), name="the given auxiliary choices")
        run = self.run(Side(checked_choices(choices), args), given)
        run.require_read(MODEL, run.sides[MODEL].choices)
        run.require_read(AUX, run.sides[AUX].choices)
        return Transformed(run.written(MODEL), run.written(AUX), run.log_det(lambda address: True))

    def run(self, model: Side, aux: Side = NOTHING, new_args: tuple | None = None) -> Run:
        """Run the body once. ``new_args`` are the arguments of the new trace, where they are not the old ones."""
        return Run(self, {MODEL: model, AUX: aux}, model.args if new_args is None else new_args)

    def __repr__(self) -> str:
        return f"<transform {self.__name__}>"


def transform(function: Callable) -> Transform:
    """Make a transform of a function ``f(old, new)``, which reads choices of ``old`` and writes all those of ``new``.

    ``old["x"]`` is the value at an address, or a map of all values under it, and ``"x" in old`` says whether there is
    one. Each address is read once, and what the new trace does not keep must be read. ``new["z"] = value`` writes a
    choice, and with ``value`` a map, all those under the address. The choices of the forward proposal are
    ``old.aux[...]``, those of the backward proposal ``new.aux[...]``. ``old.args``, ``new.args`` and ``old.retval``
    are there too. A value of floating type is real: the Jacobian is that of the real values written in those read.
    ``old.discrete["x"]`` and ``new.discrete["z"] = value`` say that a floating value is one of countably many.

    A body may branch on discrete values, and differ in what it writes; on real values only with ``mx.where``.

    >>> @transform
    ... def to_polar(old, new):
    ...     x, y = old["x"], old["y"]
    ...     new["r"], new["angle"] = mx.sqrt(x * x + y * y), mx.arctan2(y, x)
    ...     new["label"] = old["label"]
    >>> moved = to_polar({"x": 3.0, "y": 4.0, "label": 2})
    >>> moved.choices["r"].item(), moved.choices["label"].item(), round(moved.log_det.item(), 6)  # log 1/r
    (5.0, 2, -1.609438)
    """
    return Transform(function)


def pair_bijections(f: Transform, g: Transform) -> tuple[Transform, Transform]:
    """Say that two transforms undo each other; ``check=True`` of a translator or a kernel puts it to the test."""
    f.inverse, g.inverse = as_transform(g), f
    return f, g


def is_involution(f: Transform) -> Transform:
    """Say that a transform undoes itself.

    >>> @is_involution
    ... @transform
    ... def swap(old, new):
    ...     new["y"], new["x"] = old["x"], old["y"]
    >>> swap.inverse is swap
    True
    """
    f.inverse = f
    return f


def as_transform(f: Any) -> Transform:
    if isinstance(f, Transform):
        return f
    raise UsageError(f"{f!r} is not a transform", expected="a function f(old, new)", hint="put @transform above it")
