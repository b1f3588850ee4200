"""Functions whose gradient the user gives, as generative functions without choices (Gen's ``CustomGradientGF``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import optree

from genmlx import handlers
from genmlx.backend.mapping import vmap_list
from genmlx.errors import UsageError, caller_line, name_of
from genmlx.learning.deterministic import Deterministic
from genmlx.pytree import NAMESPACE, flatten, split_arrays


class CustomGradient(Deterministic):
    """``custom_gradient(forward, backward)``: the value is ``forward(*args)``, and its gradient what ``backward`` says.

    ``backward(args, retval, cotangent)`` gives one gradient for each argument, of its form and shape: the product of
    the cotangent, which has the form of the return value, with the Jacobian. None says that there is none, and no
    gradient goes that way. Both see one lane of a batch at a time. All that ``forward`` depends on and that has a
    gradient must be among its arguments; ``trace`` and ``param`` do not work inside.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, splice, trace
    >>> clipped = custom_gradient(lambda x: mx.clip(x, -1, 1), lambda args, retval, cotangent: (cotangent,))
    >>> @gen
    ... def model(x):
    ...     return trace("y", normal(splice(clipped(x)), 1.0))
    >>> tr, _ = model(5.0).generate({"y": 3.0})
    >>> tr.choice_gradients()[0][0].item()              # 3 - 1, straight through the clip
    2.0
    """

    def __init__(self, forward: Callable, backward: Callable):
        for what, f in (("forward", forward), ("backward", backward)):
            if not callable(f):
                raise UsageError(f"custom_gradient: {what} is {f!r:.60}", expected="a function", where=caller_line())
        self.forward, self.backward = forward, backward
        self.__name__ = f"custom_gradient({name_of(forward)})"

    def value(self, args: tuple) -> tuple[Any, dict]:
        leaves, spec = flatten(args)
        real = [i for i, leaf in enumerate(leaves) if _is_real(leaf)]
        skeletons: list = []

        def filled(arrays: Any) -> tuple:
            given = list(leaves)
            for place, array in zip(real, arrays, strict=True):
                given[place] = array
            whole: Any = optree.tree_unflatten(spec, given)
            return whole

        def run(*arrays: mx.array) -> list:
            out, skeleton = split_arrays(self.forward(*filled(arrays)))
            skeletons.append(skeleton)
            return out

        def pullback(primals: list, cotangents: list, outputs: list) -> list:
            args, form = filled(primals), skeletons[-1]
            given = self.backward(args, form.fill(outputs), form.fill(cotangents))
            return self._gradients(given, args, real)

        with outside_of_models():
            if not real:
                return self.forward(*args), {}
            out = with_vjp(run, pullback)(*[mx.array(leaves[i]) for i in real])
            return skeletons[-1].fill(_listed(out)), {}

    def _gradients(self, given: Any, args: tuple, real: list[int]) -> list[mx.array]:
        """What backward gave, as one array for each real leaf of the arguments."""
        if not isinstance(given, (tuple, list)) or len(given) != len(args):
            shown = f"{len(given)} gradients" if isinstance(given, (tuple, list)) else f"{given!r:.40}"
            raise UsageError(f"backward gave {shown}", expected=f"one for each of {len(args)} arguments", gen_fn=self)
        found: list = []
        for i, (gradient, arg) in enumerate(zip(given, args, strict=True)):
            of = flatten(arg)[0]
            own = [None] * len(of) if gradient is None else optree.tree_leaves(gradient, namespace=NAMESPACE)
            if len(own) != len(of):
                raise UsageError(
                    f"backward gave {len(own)} arrays for argument {i}", expected=str(len(of)), gen_fn=self
                )
            for part, leaf in zip(own, of, strict=True):
                if part is None or not _is_real(leaf):
                    found.append(mx.zeros_like(leaf) if _is_real(leaf) else None)
                    continue
                part = mx.array(part)
                if part.shape != leaf.shape:
                    raise UsageError(
                        f"backward gave shape {list(part.shape)} for argument {i}",
                        expected=f"the argument's shape {list(leaf.shape)}",
                        gen_fn=self,
                    )
                found.append(part.astype(leaf.dtype))
        return [found[i] for i in real]


custom_gradient = CustomGradient


def with_vjp(run: Callable[..., list], pullback: Callable[[list, list, list], list]) -> Any:
    """A function of arrays that has this pullback, in batches too.

    Without a rule of its own MLX batches what is inside of a custom function and forgets the pullback: the gradient of
    a batch would then be another one than the batch of the gradients.
    """
    function: Any = mx.custom_function(run)

    @function.vjp
    def vjp(primals: Any, cotangents: Any, outputs: Any) -> list:
        return pullback(_listed(primals), _listed(cotangents), _listed(outputs))

    @function.vmap
    def rule(inputs: Any, axes: Any) -> tuple:
        inputs, axes = _listed(inputs), axes if isinstance(axes, (list, tuple)) else [axes]

        def lanes(f: Callable[..., list], primals: list, *rows: list) -> list:
            """``f`` of every lane, where each of ``rows`` has the lanes first."""
            moved = [mx.moveaxis(x, a, 0) for x, a in zip(primals, axes, strict=True) if a is not None]
            flat = [row for part in rows for row in part]

            def lane(*given: mx.array) -> list:
                own = iter(given)
                first = [x if a is None else next(own) for x, a in zip(primals, axes, strict=True)]
                return f(first, *[[next(own) for _ in part] for part in rows])

            return vmap_list(lane, *moved, *flat)

        def batched(*primals: mx.array) -> list:
            return lanes(lambda own: run(*own), list(primals))

        def batched_pullback(primals: list, cotangents: list, outputs: list) -> list:
            found = lanes(pullback, primals, cotangents, outputs)
            return [mx.sum(g, 0) if a is None else mx.moveaxis(g, 0, a) for g, a in zip(found, axes, strict=True)]

        out = _listed(with_vjp(batched, batched_pullback)(*inputs))
        return out, [0] * len(out)

    return function


class outside_of_models:
    """Within, ``trace`` and ``param`` raise: what they would find could carry no gradient."""

    def __enter__(self) -> None:
        self.token = handlers._handler.set(None)

    def __exit__(self, *exc: Any) -> None:
        handlers._handler.reset(self.token)


def _is_real(leaf: Any) -> bool:
    return type(leaf) is float or (isinstance(leaf, mx.array) and mx.issubdtype(leaf.dtype, mx.floating))


def _listed(arrays: Any) -> list:
    return [arrays] if isinstance(arrays, mx.array) else list(arrays)
