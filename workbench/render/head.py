"""What stands above and below a tree: the call, its version, score and weight, the return value."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from genmlx.errors import name_of
from workbench.render.screen import Screen
from workbench.render.values import IN_FULL, SHOWN_BYTES, density, host, kind, number, show


def title(trace: Any) -> str:
    """``line(xs: f32[5], noise: 1)``"""
    args, kwargs = tuple(trace.args), getattr(trace.args, "kwargs", {})
    names = list(getattr(getattr(trace.version, "signature", None), "parameters", ()))
    shown = [_argument(arg, names[i] if i < len(names) else "") for i, arg in enumerate(args)]
    return f"{name_of(trace.gen_fn)}({', '.join([*shown, *(_argument(v, k) for k, v in kwargs.items())])})"


def _argument(value: Any, name: str) -> str:
    plain = isinstance(value, (bool, int, float)) or value is None
    text = number(value) if plain else repr(value) if isinstance(value, str) and len(value) <= 20 else kind(value)
    return f"{name}: {text}" if name else text


def version_of(trace: Any) -> str:
    """``v2``, or what of it has been redefined since."""
    version = trace.version
    if not trace.stale:
        return "" if version is None else repr(version)
    lanes = getattr(trace, "lanes", None)
    runs = (lanes if lanes is not None and hasattr(trace, "take") else trace).runs()
    old = [(handle, used) for handle, used in runs.items() if handle.version is not used]
    said = [
        f"{'' if handle is trace.gen_fn else f'{name_of(handle)} '}{used!r}; current {handle.version!r}"
        for handle, used in old
    ]
    own = "" if any(handle is trace.gen_fn for handle, _ in old) or version is None else f"{version!r}   "
    return f"{own}stale ({', '.join(said)})"


def weight_text(weight: Any, screen: Screen) -> str:
    """A score or a log weight; of a batch, its mean and deviation."""
    if not isinstance(weight, mx.array) or weight.ndim == 0:
        return density(host(weight) if isinstance(weight, mx.array) else float(weight))
    if weight.size == 1:
        return density(host(weight.reshape(())))
    finite = [w for w in host(weight.reshape(-1)) if math.isfinite(w)]
    if not finite:
        return "-inf"
    mean = sum(finite) / len(finite)
    sd = math.sqrt(sum((w - mean) ** 2 for w in finite) / max(1, len(finite) - 1))
    lost = f", {weight.size - len(finite):,} not finite" if len(finite) < weight.size else ""
    return f"{density(mean)} {screen.within} {density(sd)}{lost}"


def retval_text(retval: Any, screen: Screen, stats: bool, lanes: bool, weights: mx.array | None) -> str:
    """A return value: an array as in the tree, a few numbers in full, or what kind of thing it is."""
    if isinstance(retval, mx.array):
        if retval.nbytes > SHOWN_BYTES:
            return f"{kind(retval)}  (not shown)"
        shown = show(retval, screen, stats, weights).text
        return shown if retval.ndim == 0 else f"{shown}  {kind(retval, lanes)}"
    if isinstance(retval, (list, tuple)) and len(retval) <= IN_FULL and all(map(_is_number, retval)):
        inner = ", ".join(show(item, screen).text for item in retval)
        return f"[{inner}]" if isinstance(retval, list) else f"({inner})"
    if isinstance(retval, (str, bool, int, float)):
        return screen.clip(number(retval) if not isinstance(retval, str) else repr(retval), 60)
    return kind(retval)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or isinstance(value, mx.array) and value.ndim == 0


def addresses(n: int) -> str:
    return f"{n:,} address{'' if n == 1 else 'es'}"
