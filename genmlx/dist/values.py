"""Values on their way in: what users give as parameters, choices and observations, as arrays or an error."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.choicemap import ChoiceMap, show_type
from genmlx.errors import ParameterError, ValueMismatch
from genmlx.masked import Masked


def check_values(choices: ChoiceMap) -> ChoiceMap:
    """The choices with lists and numpy arrays made MLX arrays. A NaN, or what is no number, raises with its address."""
    checked, arrays = [], []
    for address, value in choices.items():
        if isinstance(value, float) and math.isnan(value):
            raise _nan(address)
        if not isinstance(value, (bool, int, float, Masked)):
            value = as_array(value, address)
            if mx.issubdtype(value.dtype, mx.floating):
                arrays.append((address, value))
        checked.append((address, value))
    if arrays:
        flags = mx.stack([mx.any(mx.isnan(array)) for _, array in arrays])
        for (address, _), bad in zip(arrays, _host(flags), strict=False):
            if bad:
                raise _nan(address)
    from genmlx.choicemap import from_items

    return from_items(checked, choices.n)


def as_array(value: Any, address: tuple | None = None) -> mx.array:
    """An MLX array of a number, a list, or anything with the buffer protocol; doubles become float32."""
    if isinstance(value, mx.array):
        return value
    if hasattr(value, "dtype") and str(value.dtype) == "float64":
        value = value.astype("float32")
    if hasattr(value, "dtype") and str(value.dtype) == "int64":
        value = value.astype("int32")
    try:
        return mx.array(value)
    except (TypeError, ValueError):
        raise ValueMismatch(
            f"{value!r:.60} is not a number or an array of numbers",
            address=address,
            expected="a number, an array, or lists of numbers, those inside each other of one length",
        ) from None


def is_host_data(value: Any) -> bool:
    """Whether a value is a number, a numpy array of numbers, or nested lists of those: known without an evaluation."""
    if isinstance(value, (int, float)):
        return True
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(is_host_data(item) for item in value)
    return type(value).__module__ == "numpy" and value.dtype.kind in "bif"


def as_parameter(value: Any, name: str, family: str) -> mx.array:
    """A real parameter as a floating array."""
    try:
        array = as_array(value)
    except ValueMismatch:
        called = hasattr(value, "gen_fn") and not hasattr(value, "choices")
        raise ParameterError(
            f"{family}: {name} must be a number or an array, got {value!r:.60}",
            hint="that is a model: trace(address, it) or splice(it) runs it, and a plain function needs no @gen"
            if called
            else None,
        ) from None
    return array if mx.issubdtype(array.dtype, mx.floating) else array.astype(mx.float32)


def as_site_value(value: Any, discrete: bool) -> mx.array:
    """A constrained value in the dtype of its distribution; a fractional count stays as it is."""
    if discrete:
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**31:
            value = int(value)
        array = as_array(value)
        return array.astype(mx.int32) if array.dtype == mx.bool_ else array
    array = as_array(value)
    return array if mx.issubdtype(array.dtype, mx.floating) else array.astype(mx.float32)


def shape_mismatch(value: mx.array, shape: tuple, family: str) -> ValueMismatch:
    wanted = "a number" if shape == () else f"an array of shape {list(shape)}"
    return ValueMismatch(
        f"{show_type(value)} is not a value of this {family}:",
        expected=wanted,
        hint="a vector of observations needs a parameter of that shape, or one address for each",
    )


def _nan(address: tuple) -> ValueMismatch:
    return ValueMismatch(
        "the given value is or holds a NaN",
        address=address,
        expected="numbers",
        hint="leave missing observations out of the choice map: they are then inferred",
    )


def _host(flags: mx.array) -> Any:
    try:
        return flags.tolist()
    except ValueError:  # under a transformation there are no values to look at
        return []
