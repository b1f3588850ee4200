"""Neural networks of ``mlx.nn`` as generative functions, with their weights as parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, MutableMapping
from typing import Any

import mlx.core as mx

from genmlx.digest import _code
from genmlx.errors import UsageError, caller_line
from genmlx.gen import Arguments
from genmlx.gfi import Call
from genmlx.learning.deterministic import Deterministic
from genmlx.params import ParamStore, held_value, is_numbers


class Neural(Deterministic):
    """``neural(module)``: any ``mlx.nn.Module`` as a function without choices, whose trainable weights are params.

    Its arguments are the module's, and so is its return value. The weights stay the module's own: what
    ``module.freeze`` freezes is no parameter, training moves ``module.parameters()``, and ``module.save_weights`` saves
    them. A layer that draws at random or counts its calls, as dropout in training mode, raises: call ``module.eval()``.

    >>> import mlx.core as mx, mlx.nn as nn
    >>> from genmlx import gen, normal, splice, trace
    >>> net = neural(nn.Linear(2, 1))
    >>> net.params.update({"weight": mx.array([[1.0, 2.0]]), "bias": mx.array([0.5])})
    >>> @gen
    ... def regression(x):
    ...     return trace("y", normal(splice(net(x)), 1.0))
    >>> tr, _ = regression(mx.array([1.0, 1.0])).generate({"y": [4.5]})
    >>> from genmlx.params import param_gradients
    >>> {name: g.tolist() for (_, name), g in param_gradients(tr).items()}
    {'weight': [[1.0, 1.0]], 'bias': [1.0]}
    """

    def __init__(self, module: Any, name: str | None = None):
        from mlx import nn

        if not isinstance(module, nn.Module):
            hint = f"neural({module.__name__}(...))" if inspect.isclass(module) else "an instance, as nn.Linear(2, 1)"
            raise UsageError(
                f"neural was given {module!r:.60}", expected="an mlx.nn.Module", hint=hint, where=caller_line()
            )
        self.module, self.params = module, ModuleParams(module)
        self.__name__ = name or type(module).__name__
        self._signature = inspect.signature(module.__call__)
        unsteady = (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.BatchNorm)
        self._unsteady = [layer for layer in module.modules() if isinstance(layer, unsteady)]

    @property
    def body(self) -> tuple:
        """What it computes, apart from the weights that are trained: for fingerprints."""
        own = self.params.named()
        frozen = {name: array for name, array in _flat(self.module.parameters()) if name not in own}
        return (*self._layers(), frozen)

    def made_again(self, old: Neural) -> Neural:
        """What goes on after the definition of ``old`` has been run again, and gave this: ``old``, if all but weights
        is equal; else this, with the weights of ``old`` where those were set or trained and have the same shapes."""
        if self._layers() == old._layers():
            return old
        if old.params.moved:
            own = self.params.named()
            for name, weight in old.params.named().items():
                if name in own and own[name].shape == weight.shape:
                    self.params.put(name, weight)
        return self

    def _layers(self) -> Any:
        """The structure, the code of each layer, and what is frozen."""
        code = [
            [_code(f.__code__, ()) for f in vars(type(layer)).values() if inspect.isfunction(f)]
            for layer in self.module.modules()
        ]
        return repr(self.module), code, list(self.params.named())

    def bind(self, args: Any, kwargs: dict | None = None) -> tuple:
        if isinstance(args, Call):
            args, kwargs = args.raw_args, args.raw_kwargs
        if isinstance(args, Arguments) and not kwargs:
            return args
        try:
            bound = self._signature.bind(*super().bind(args), **(kwargs or {}))
        except TypeError as error:
            raise UsageError(
                f"{self.__name__}: {error}", expected=f"{self.__name__}{self._signature}", where=caller_line()
            ) from None
        bound.apply_defaults()
        return Arguments(bound.args, bound.kwargs) if bound.kwargs else bound.args

    def value(self, args: tuple) -> tuple[Any, dict]:
        for layer in self._unsteady:
            if layer.training:
                raise UsageError(
                    f"{type(layer).__name__} in training mode has another value each time",
                    expected="a network whose value follows from its input and its weights",
                    hint="module.eval()",
                    gen_fn=self,
                )
        own = self.params.named()
        used = {name: held_value(self, name) for name in own}
        moved = any(used[name] is not array for name, array in own.items())
        if moved:
            self.module.update(_nested(used))
        try:
            retval = self.module(*args, **getattr(args, "kwargs", {}))
        finally:
            if moved:
                self.module.update(_nested(own))
        return retval, {(self, name): array for name, array in used.items()}

    def __repr__(self) -> str:
        return f"<neural {self.__name__}: {sum(array.size for array in self.params.named().values())} weights>"


neural = Neural


class ModuleParams(ParamStore):
    """The trainable weights of a module, by MLX's own names; they live in the module."""

    def __init__(self, module: Any):
        super().__init__()
        self._values: Any = _Weights(module)
        self.moved = False

    def put(self, leaf: str, value: Any) -> None:
        super().put(leaf, value)
        self.moved = True

    def named(self) -> dict[str, mx.array]:
        return dict(self._values)

    def declare(self, leaf: str, default: Any, version: Any) -> mx.array:
        return self[leaf]

    def tree(self) -> dict[str, Any]:
        """The weights as ``module.trainable_parameters()`` gives them."""
        return self._values.module.trainable_parameters()

    def update(self, tree: dict[str, Any]) -> None:
        """Set weights: some or all of such a tree, or by their dotted names."""
        for name, value in _flat(tree):
            self.put(name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        self.put(name, value)

    def __delitem__(self, name: str) -> None:
        raise UsageError(f"the weight {name!r} is a module's own, and has no default to go back to")


class _Weights(MutableMapping):
    def __init__(self, module: Any):
        self.module = module

    def _own(self) -> dict[str, mx.array]:
        return dict(_flat(self.module.trainable_parameters()))

    def __getitem__(self, name: str) -> mx.array:
        return self._own()[name]

    def __setitem__(self, name: str, value: mx.array) -> None:
        own = self._own()
        if name not in own:
            raise UsageError(f"no weight {name!r} that can be trained", expected=f"one of {', '.join(own)}")
        if value.shape != own[name].shape:
            raise UsageError(f"{name!r} was given shape {list(value.shape)}", expected=f"shape {list(own[name].shape)}")
        self.module.update(_nested({name: value}))

    def __delitem__(self, name: str) -> None:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._own())

    def __len__(self) -> int:
        return len(self._own())

    def items(self) -> Any:
        return self._own().items()


def _flat(tree: Any) -> Any:
    from mlx.utils import tree_flatten

    return tree_flatten(tree, is_leaf=is_numbers)


def _nested(named: dict[str, mx.array]) -> Any:
    from mlx.utils import tree_unflatten

    return tree_unflatten(list(named.items()))
