"""Trainable parameters: a store on each model, gradients accumulated into it, and a step that applies them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx

from genmlx.errors import UsageError
from genmlx.versions import pinned, resolve

_overrides: ContextVar[dict | None] = ContextVar("genmlx_param_overrides", default=None)


class ParamStore:
    """The parameters of one model by name, and their accumulated gradients.

    >>> from genmlx import gen, param
    >>> @gen
    ... def model():
    ...     return param("theta", 0.0)
    >>> tr = model().simulate()
    >>> accumulate_param_gradients(tr, retval_grad=1.0)
    >>> model.params.step(0.001)
    >>> round(model.params["theta"].item(), 6), model.params.gradient("theta").item()
    (0.001, 0.0)
    """

    def __init__(self) -> None:
        self._values: dict[str, mx.array] = {}
        self._defaults: dict[str, Any] = {}  # those still at their default, and the version that gave it
        self._gradients: dict[str, mx.array] = {}

    def __getitem__(self, name: str) -> mx.array:
        if name not in self._values:
            known = ", ".join(map(repr, self._values))
            raise UsageError(
                f"no parameter {name!r} yet",
                expected=f"one of {known}" if known else "a parameter that was read",
                hint="run the model once, which declares what it reads, or set the parameter",
            )
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = _real(value)
        self._defaults.pop(name, None)
        self._gradients.pop(name, None)

    def declare(self, name: str, default: Any, version: Any) -> mx.array:
        """The value; ``default`` while it is neither set nor trained, and that of the version that asks for it."""
        if name not in self._values or self._defaults.get(name, version) is not version:
            self._values[name] = _real(default)
            self._defaults[name] = version
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def gradient(self, name: str) -> mx.array:
        """The gradient accumulated since the last step; zero at first."""
        return self._gradients.get(name, mx.zeros_like(self[name]))

    def accumulate(self, name: str, gradient: mx.array, scale: float = 1.0) -> None:
        self._gradients[name] = self.gradient(name) + scale * gradient

    def step(self, rate: float) -> None:
        """Gradient ascent: add ``rate`` times the accumulated gradients, and set those to zero."""
        for name, gradient in self._gradients.items():
            self._values[name] = self._values[name] + rate * gradient
            self._defaults.pop(name, None)
        self._gradients.clear()
        mx.eval(list(self._values.values()))

    def __repr__(self) -> str:
        return f"ParamStore({{{', '.join(f'{k!r}: {v.tolist()}' for k, v in self._values.items())}}})"


def current_value(model: Any, name: str, default: Any) -> mx.array:
    """The value of a parameter in this run: an override's, else the store's, else the default, which is stored."""
    overrides = _overrides.get()
    if overrides and (model, name) in overrides:
        return overrides[model, name]
    return model.params.declare(name, default, resolve(model))


def peek(model: Any, name: str) -> Any:
    """What ``current_value`` would find, without declaring anything; None before the parameter is declared."""
    overrides = _overrides.get()
    if overrides and (model, name) in overrides:
        return overrides[model, name]
    return model.params[name] if name in model.params else None


def shared_reads(lanes: Any) -> dict:
    """The parameters that a stacked trace read, each as all its lanes share it: what a run has just read is current."""
    return {read: peek(*read) for read in lanes.reads()}


@contextmanager
def overridden(values: dict) -> Iterator[None]:
    """Run with other parameter values, ``{(model, name): value}``, leaving the stores as they are."""
    token = _overrides.set({**(_overrides.get() or {}), **values})
    try:
        yield
    finally:
        _overrides.reset(token)


def param_gradients(trace: Any, retval_grad: Any = None) -> dict:
    """``{(model, name): gradient}`` of log p(choices) + <retval_grad, retval> for every parameter the run read."""
    from genmlx.gfi import gen_errors
    from genmlx.gradients import gradients_of

    values = trace.reads()
    with pinned(trace.pins), gen_errors(trace.gen_fn):
        return dict(zip(values, gradients_of(trace, [], [], values, retval_grad)[2], strict=True))


def accumulate_param_gradients(trace: Any, retval_grad: Any = None, scale: float = 1.0) -> None:
    """Add ``scale`` times this trace's parameter gradients to the stores of the models it ran."""
    for (model, name), gradient in param_gradients(trace, retval_grad).items():
        model.params.accumulate(name, gradient, scale)


def _real(value: Any) -> mx.array:
    array = value if isinstance(value, mx.array) else mx.array(value)
    if not mx.issubdtype(array.dtype, mx.floating):
        array = array.astype(mx.float32)
    return array


