"""Gradients of a trace's log density, through the handler run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import optree

from genmlx.backend.mapping import vmap_list
from genmlx.choicemap import ChoiceMap, from_items
from genmlx.errors import BatchError, GenError, UsageError, ValueMismatch, user_line
from genmlx.masked import active_of, masked, value_of
from genmlx.params import overridden
from genmlx.pytree import NAMESPACE, flatten
from genmlx.selection import Selection


def choice_gradients(trace: Any, selection: Selection, retval_grad: Any) -> tuple[tuple, ChoiceMap, ChoiceMap]:
    from genmlx.gfi import require_selectable

    require_selectable(trace.gen_fn, selection, trace)
    chosen = trace.choices.filter(selection)
    for address, value in chosen.items():
        if not mx.issubdtype(mx.array(value_of(value)).dtype, mx.floating):
            raise ValueMismatch(
                "a discrete choice has no gradient", address=address, expected="a selection of continuous choices"
            )
    leaves, spec = flatten(trace.args)
    counts = [i for i, leaf in enumerate(leaves) if type(leaf) is int]
    real = [i for i, leaf in enumerate(leaves) if _is_real(leaf)]
    try:
        places = sorted(real + counts)
        result = gradients_of(trace, places, chosen.addresses(), {}, retval_grad)
    except Exception:
        # An integer argument that the body uses as a count, an index or a key is no real number: no gradient for it.
        # Whatever else is wrong comes up again without them.
        if not counts:
            raise
        places = sorted(real + [i for i in counts if _is_differentiable(trace, i)])
        result = gradients_of(trace, places, chosen.addresses(), {}, retval_grad)
    by_place = dict(zip(places, result[0], strict=True))
    # optree treats None as a structure without leaves, so the gradients of the rest are put in as a marker first.
    gradients = optree.tree_unflatten(spec, [by_place.get(i, _NO_GRADIENT) for i in range(len(leaves))])
    gradients = optree.tree_map(lambda g: None if g is _NO_GRADIENT else g, gradients, namespace=NAMESPACE)
    by_choice = zip(chosen.items(), result[1], strict=True)
    return cast(tuple, gradients), chosen, from_items((a, masked(g, active_of(leaf))) for (a, leaf), g in by_choice)


_NO_GRADIENT = object()


def _is_differentiable(trace: Any, place: int) -> bool:
    try:
        gradients_of(trace, [place], [], {}, None)
    except Exception:
        return False
    return True


def gradients_of(
    trace: Any, arg_places: list[int], addresses: list[tuple], params: dict, retval_grad: Any
) -> tuple[list, list, list]:
    """Gradients of score + <retval_grad, retval> in some argument leaves, choices and parameters of a trace."""
    arg_leaves, spec = flatten(trace.args)
    values = [_float(arg_leaves[i]) for i in arg_places]
    values += [mx.array(value_of(trace.choices[a])) for a in addresses] + list(params.values())
    n_args, n_choices = len(arg_places), len(addresses)
    if not values:
        return [], [], []

    def total(values: list) -> mx.array:
        given, chosen, parameters = values[:n_args], values[n_args : n_args + n_choices], values[n_args + n_choices :]
        leaves = list(arg_leaves)
        for place, value in zip(arg_places, given, strict=True):
            leaves[place] = value
        args = optree.tree_unflatten(spec, leaves)
        moved = zip(addresses, chosen, strict=True)
        choices = trace.choices.merge(from_items((a, masked(v, active_of(trace.choices[a]))) for a, v in moved))
        with overridden(dict(zip(params, parameters, strict=True))):
            new, _ = trace.gen_fn._generate(args, choices, None)
        return new.score + _inner(retval_grad, new.retval)

    grads = differentiate(total, values)
    return grads[:n_args], grads[n_args : n_args + n_choices], grads[n_args + n_choices :]


def differentiate(f: Callable[[list], mx.array], values: list) -> list:
    """The gradient of ``f`` at a list of arrays.

    It runs under a vmap over one lane, where a body that takes the host value of what is differentiated raises;
    under ``mx.grad`` alone that value would become a constant without a word.
    """
    with host_value_errors("differentiated"):
        grads = vmap_list(lambda *lane: mx.grad(f)(list(lane)), *[v[None] for v in values])
    return [g[0] for g in grads]


@contextmanager
def host_value_errors(what: str):
    """Turn MLX's refusal to evaluate a traced array into an error that names the line."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if isinstance(error, GenError) or not any(words in str(error) for words in _REFUSALS):
            raise
        raise BatchError(
            f"the body needs the host value of a choice or an argument, and cannot be {what}",
            where=user_line(error.__traceback__),
            expected="no if, while, float(), .item() or range() on a traced value",
            hint="mx.where(condition, a, b), or the combinators switch and mask; a single trace may branch freely",
        ) from None


_REFUSALS = "[eval]", "without a primitive"  # MLX 0.32.4 gives the second after a gradient inside a batch


def _inner(cotangent: Any, retval: Any) -> Any:
    if cotangent is None:
        return 0.0
    given, got = flatten(cotangent)[0], flatten(retval)[0]
    if len(given) != len(got):
        raise UsageError(f"retval_grad has {len(given)} leaves, the return value {len(got)}")
    pairs = [(mx.array(g), mx.array(r)) for g, r in zip(given, got, strict=True)]
    for g, r in pairs:
        if g.ndim and g.shape != r.shape:
            raise UsageError(f"retval_grad has a leaf of shape {list(g.shape)}", expected=f"shape {list(r.shape)}")
    return sum(mx.sum(g * r) for g, r in pairs)


def _is_real(leaf: Any) -> bool:
    return type(leaf) is float or (isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating))


def _float(leaf: Any) -> mx.array:
    return leaf if isinstance(leaf, mx.array) else mx.array(float(leaf))
