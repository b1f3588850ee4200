"""An objective of parameters: what it reads, and its gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx

from genmlx.backend.mapping import mended_operators, vmap_list
from genmlx.errors import UsageError, name_of
from genmlx.gradients import host_value_errors
from genmlx.params import constants_kept, noted_reads, overridden, peek
from genmlx.random import as_key, session_seed


class Objective:
    """``function(*rows)``, to be maximised in the parameters that it reads.

    ``rows`` are those of one batch: the parts of a tuple one by one, those of a dict by name, an array as the only
    argument. A function that names ``key`` among its parameters is given one, and one that names ``scale`` is given
    rows of all data / rows of this batch and is to use it; otherwise its value is multiplied by it. The value is a
    number, or a dict of numbers by name, which are added up.
    """

    def __init__(self, function: Callable):
        if not callable(function):
            raise UsageError(
                f"the objective is {function!r:.60}",
                expected="a function of a batch that gives a number to maximise",
                hint="lambda xs, ys: model(xs).assess({'y': ys}).score",
            )
        self.function = function
        self.signature = inspect.signature(function)
        self.takes_key, self.takes_scale = ("key" in self.signature.parameters, "scale" in self.signature.parameters)
        self.terms: list[str] = []

    def __call__(self, rows: Any, scale: float, key: Any) -> tuple[mx.array, dict[str, mx.array]]:
        """The objective of all data as this batch estimates it, and its terms by name."""
        given: dict = {"key": key} if self.takes_key else {}
        if self.takes_scale:
            given["scale"], scale = scale, 1.0
        named = rows if isinstance(rows, dict) else {}
        args = () if isinstance(rows, dict) else rows if isinstance(rows, (tuple, list)) else (rows,)
        try:
            self.signature.bind(*args, **named, **given)
        except TypeError as error:
            raise UsageError(
                f"the objective {name_of(self.function)}{self.signature}: {error}",
                expected=f"a function of {_listed([*named] or ['an array'] * len(args))}",
                hint="one argument for each part of the data, and key and scale where they are wanted",
            ) from None
        value = self.function(*args, **named, **given)
        terms = {name: scale * self._number(part) for name, part in value.items()} if isinstance(value, dict) else {}
        return sum(terms.values(), mx.array(0.0)) if terms else scale * self._number(value), terms

    def _number(self, value: Any) -> mx.array:
        if isinstance(value, mx.array) and value.ndim == 0 and mx.issubdtype(value.dtype, mx.floating):
            return value
        given = f"shape {list(value.shape)}" if isinstance(value, mx.array) else repr(value)[:40]
        raise UsageError(
            f"the objective {name_of(self.function)} gave {given}", expected="a number, as an array of no axes"
        )

    def reads(self, rows: Any, scale: float, key: Any, models: Iterable[Any] | None) -> dict:
        """The parameters that are read, ``{(model, name): value}``; with ``models`` only theirs."""
        before = _other_noise()
        with noted_reads() as noted:
            value, terms = self(rows, scale, key)
        self.terms = list(terms)
        # Keys that were taken and drew nothing do no harm: then the same step gives the same again.
        if _other_noise() != before and not mx.array_equal(value, self(rows, scale, key)[0], equal_nan=True).item():
            raise UsageError(
                f"the objective {name_of(self.function)} draws without the key of its step",
                expected="draws that have their key, which a recorded step would otherwise freeze",
                hint="name key among its parameters, and pass it on: lambda xs, key: ...(key=key)",
            )
        found = {read: peek(*read) for read in noted}  # what was read in a lane of a batch has no value
        if models is None:
            if not found:
                raise UsageError(
                    f"the objective {name_of(self.function)} reads no parameter",
                    expected="a model or guide with param(name, default), or a neural(module)",
                )
            return found
        wanted = list(models)
        for model in wanted:
            if not any(owner is model for owner, _ in found):
                raise UsageError(f"the objective reads no parameter of {name_of(model)}", gen_fn=model)
        return {read: value for read, value in found.items() if any(read[0] is model for model in wanted)}


def _other_noise() -> tuple:
    """Where the session's keys and MLX's own generator stand."""
    state: Any = mx.random.state
    return session_seed(), state[0].tolist()


def _listed(parts: list[str]) -> str:
    return ", ".join(parts) or "no rows: there are no data"


def value_and_gradient(
    objective: Objective, reads: list[tuple], values: list, rows: Any, scale: float, key: Any, traced: bool
) -> tuple[list, list]:
    """``[value, *terms]``, and the gradient of the value in each parameter.

    Where the step is ``traced`` as a graph, a host value raises by itself. Elsewhere it runs under a vmap over one
    lane, which refuses host values of what is differentiated, after a first run that only makes the constants.
    """

    def total(values: list) -> tuple:
        with overridden(dict(zip(reads, values, strict=True))):
            value, terms = objective(rows, scale, key)
        return value, *terms.values()

    if traced:
        with mended_operators():
            found, gradient = mx.value_and_grad(total)(values)
        return list(found), gradient

    def lane(*own: mx.array) -> list:
        found, gradient = mx.value_and_grad(total)(list(own))
        return [*found, *gradient]

    with constants_kept(lambda: total(values)), host_value_errors("differentiated"):
        out = [array[0] for array in vmap_list(lane, *[value[None] for value in values])]
    return out[: -len(values)], out[-len(values) :]


def gradient(objective: Callable, data: Any = None, scale: float = 1.0, key: Any = None) -> dict:
    """The gradient of an objective in every parameter that it reads, ``{(model, name): gradient}``.

    ``data`` are the rows of one batch, as for :func:`train`.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, param, trace
    >>> @gen
    ... def model():
    ...     trace("y", normal(param("mu", 0.0), 1.0))
    >>> {name: g.item() for (_, name), g in gradient(lambda: model().assess({"y": 3.0}).score).items()}
    {'mu': 3.0}
    """
    made, rows, key = Objective(objective), () if data is None else data, as_key(key)
    reads = made.reads(rows, scale, key, None)
    _, found = value_and_gradient(made, list(reads), list(reads.values()), rows, scale, key, traced=False)
    return dict(zip(reads, found, strict=True))
