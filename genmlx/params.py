"""Trainable parameters: a store on each model, gradients accumulated into it, and a step that applies them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import mlx.core as mx
import optree

from genmlx.errors import UsageError
from genmlx.pytree import NAMESPACE, map_arrays, split_arrays
from genmlx.versions import pinned, resolve

_overrides: ContextVar[dict | None] = ContextVar("genmlx_param_overrides", default=None)
_kept: ContextVar[_Kept | None] = ContextVar("genmlx_param_constants", default=None)
_noted: ContextVar[dict | None] = ContextVar("genmlx_param_reads", default=None)


class ParamStore:
    """The parameters of one model by name, and their accumulated gradients.

    A parameter is an array or a tree of arrays (dicts, lists, tuples). The arrays of a tree have names of their own,
    with dots, as MLX names them: ``"net.layers.0.weight"``.

    >>> from genmlx import gen, param
    >>> @gen
    ... def model():
    ...     return param("theta", 0.0) * param("net", {"scale": 2.0})["scale"]
    >>> tr = model().simulate()
    >>> accumulate_param_gradients(tr, retval_grad=1.0)
    >>> model.params.step(0.25)
    >>> model.params["theta"].item(), model.params.gradient("theta").item()
    (0.5, 0.0)
    >>> model.params.update({"theta": 1.0, "net": {"scale": 3.0}})
    >>> model.params
    ParamStore({'theta': 1.0, 'net': {'scale': 3.0}})
    """

    def __init__(self) -> None:
        self._values: dict[str, mx.array] = {}
        self._defaults: dict[str, Any] = {}  # those still at their default, and the version that gave it
        self._gradients: dict[str, mx.array] = {}
        self._trees: dict[str, Form] = {}
        self._hidden = False

    def __getitem__(self, name: str) -> Any:
        """The array, or the tree of arrays."""
        if name in self._trees:
            return self._trees[name].fill([self._values[leaf] for leaf in self._trees[name].names])
        if name not in self._values:
            known = ", ".join(map(repr, self))
            raise UsageError(
                f"no parameter {name!r} yet",
                expected=f"one of {known}" if known else "a parameter that was read",
                hint="run the model once, which declares what it reads, or set the parameter",
            )
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Set an array or a whole tree; an array of a tree by its own name."""
        form, leaves = form_of(name, value)
        if name not in self._inner():
            if name in self:
                del self[name]
            self._note(name, form)
        for leaf, array in zip(form.names, leaves, strict=True):
            self.put(leaf, array)

    def __delitem__(self, name: str) -> None:
        """Forget a value: the next run starts from the default again."""
        self[name]  # which raises where there is none
        for leaf in self._trees.pop(name).names if name in self._trees else [name]:
            for held in (self._values, self._defaults, self._gradients):
                held.pop(leaf, None)

    def put(self, leaf: str, value: Any) -> None:
        """Set one array by its own name; its accumulated gradient is gone."""
        self._values[leaf] = _real(value)
        self._defaults.pop(leaf, None)
        self._gradients.pop(leaf, None)

    def leaf(self, leaf: str) -> mx.array | None:
        """One array by its own name; None before it is declared."""
        return self._values.get(leaf)

    def declare(self, leaf: str, default: Any, version: Any) -> mx.array:
        """The value; ``default`` while it is neither set nor trained, and that of the version that asks for it."""
        if leaf not in self._values or self._defaults.get(leaf, version) is not version:
            self._values[leaf] = _real(default)
            self._defaults[leaf] = version
        return self._values[leaf]

    def expect(self, name: str, form: Form) -> None:
        """A body reads a parameter of this form: a value of another form raises if it was set, or else is forgotten."""
        known = self._trees.get(name)
        if form == (known or Form.array(name)) and name not in self._inner():
            return
        if name in self._inner():
            raise UsageError(f"the parameter {name!r} has the name of an array inside of another", expected="its own")
        held = known.names if known else [name] if name in self._values else []
        if any(leaf not in self._defaults for leaf in held):
            raise UsageError(
                f"the parameter {name!r} was set or trained as {_listed(held)}",
                expected=f"{_listed(form.names)}, as its default has",
                hint=f"del model.params[{name!r}] goes back to the default",
            )
        if held:
            del self[name]
        self._note(name, form)

    def _note(self, name: str, form: Form) -> None:
        if form.spec is not None:
            self._trees[name] = form

    def _inner(self) -> set[str]:
        return set() if not self._trees else {leaf for form in self._trees.values() for leaf in form.names}

    def __contains__(self, name: str) -> bool:
        return name in self._trees or name in self._values

    def __iter__(self) -> Iterator[str]:
        """The names that the body gives: of arrays, and of trees as a whole."""
        of = {leaf: name for name, form in self._trees.items() for leaf in form.names}
        return iter(dict.fromkeys([of.get(leaf, leaf) for leaf in self.leaves()] + list(self._trees)))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def leaves(self) -> list[str]:
        """The names of all arrays."""
        return list(self._values)

    def tree(self) -> dict[str, Any]:
        """All parameters: ``{name: array or tree of arrays}``."""
        return {name: self[name] for name in self}

    def update(self, tree: dict[str, Any]) -> None:
        """Set several parameters: ``{name: array or tree of arrays}``, as :meth:`tree` gives."""
        for name, value in tree.items():
            self[name] = value

    def trained(self) -> dict[str, mx.array]:
        """The arrays that were set or trained, by their own names."""
        own = () if self._hidden else self._values.items()
        return {leaf: value for leaf, value in own if leaf not in self._defaults}

    def gradient(self, name: str) -> Any:
        """The gradient accumulated since the last step, of the form of the parameter; zero at first."""
        if name in self._trees:
            return self._trees[name].fill([self.gradient(leaf) for leaf in self._trees[name].names])
        return self._gradients.get(name, mx.zeros_like(self[name]))

    def accumulate(self, leaf: str, gradient: mx.array, scale: float = 1.0) -> None:
        self._gradients[leaf] = self.gradient(leaf) + scale * gradient

    def step(self, rate: float) -> None:
        """Gradient ascent: add ``rate`` times the accumulated gradients, and set those to zero."""
        for leaf, gradient in list(self._gradients.items()):
            self.put(leaf, self[leaf] + rate * gradient)
        self._gradients.clear()
        mx.eval([self[leaf] for leaf in self.leaves()])

    def __repr__(self) -> str:
        shown = {name: optree.tree_map(_shown, value, namespace=NAMESPACE) for name, value in self.tree().items()}
        return f"ParamStore({shown!r})"


class Form(NamedTuple):
    """How a parameter is made of arrays: their own names, and the tree, or None for one array."""

    names: list[str]
    spec: Any

    @classmethod
    def array(cls, name: str) -> Form:
        return cls([name], None)

    def fill(self, leaves: list) -> Any:
        return leaves[0] if self.spec is None else optree.tree_unflatten(self.spec, leaves)


def form_of(name: str, value: Any) -> tuple[Form, list]:
    """The form of a value, and its leaves. A list of numbers is one array."""
    if isinstance(value, (mx.array, float, int)):
        return Form.array(name), [value]
    paths, leaves, spec = optree.tree_flatten_with_path(value, is_leaf=is_numbers, namespace=NAMESPACE)
    if paths == [()]:
        return Form.array(name), [value]
    return Form([".".join(map(str, (name, *path))) for path in paths], spec), leaves


def is_numbers(value: Any) -> bool:
    """Whether a value is one array, given by numbers: nested lists of one length at each depth."""
    from genmlx.dist.values import is_host_data

    def shape(value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return getattr(value, "shape", ())
        inner = {shape(item) for item in value}
        return (len(value), *inner.pop()) if len(inner) == 1 and None not in inner else None

    return is_host_data(value) and shape(value) is not None


def read_param(model: Any, name: str, default: Any) -> tuple[Any, dict[str, mx.array]]:
    """What a body reads as a parameter, an array or a tree, and its arrays by their own names."""
    form, leaves = form_of(name, default)
    overrides = _overrides.get() or {}
    if any((model, leaf) not in overrides for leaf in form.names):
        model.params.expect(name, form)
    values = [current_value(model, leaf, value) for leaf, value in zip(form.names, leaves, strict=True)]
    return form.fill(values), dict(zip(form.names, values, strict=True))


def current_value(model: Any, leaf: str, default: Any) -> mx.array:
    """The value of an array in this run: an override's, else the store's, else the default, which is stored."""
    if (model, leaf) not in (_overrides.get() or {}):
        model.params.declare(leaf, default, resolve(model))
    return held_value(model, leaf)


def held_value(model: Any, leaf: str) -> Any:
    """The value of an array that is declared: an override's, else the store's."""
    value = peek(model, leaf)
    if (noted := _noted.get()) is not None:
        noted[model, leaf] = value
    return value


def peek(model: Any, leaf: str) -> Any:
    """What ``current_value`` would find, without declaring anything; None before the parameter is declared."""
    overrides = _overrides.get()
    if overrides and (model, leaf) in overrides:
        return overrides[model, leaf]
    return model.params.leaf(leaf)


@contextmanager
def noted_reads() -> Iterator[dict]:
    """Collect every parameter that is read, in traces or outside: ``{(model, name): value}``."""
    found: dict = {}
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)
        if (outer := _noted.get()) is not None:
            outer.update(found)


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


@contextmanager
def detached() -> Iterator[None]:
    """Run with the parameters as they are, without a gradient, and without a note that they were read."""
    fixed = {read: mx.stop_gradient(value) for read, value in (_overrides.get() or {}).items()}
    unnoted = _noted.set(None)
    try:
        with overridden(fixed):
            yield
    finally:
        _noted.reset(unnoted)


def constant(compute: Callable[[], Any]) -> Any:
    """What ``compute()`` gives with the parameters held fixed: a tree of arrays that carries no gradient.

    What it reads is not noted as a parameter that moves. Where a gradient is taken within ``constants_kept``, it is
    computed before, outside of the differentiation: so it may look at host values, as sequential Monte Carlo does.

    >>> from genmlx import gen, normal, param, trace
    >>> @gen
    ... def model():
    ...     return trace("x", normal(param("mu", 1.0), 1.0))
    >>> def drawn(mu):
    ...     with overridden({(model, "mu"): mu}):
    ...         return model().simulate(key=1).retval + constant(lambda: model().simulate(key=1).retval)
    >>> mx.grad(drawn)(mx.array(3.0)).item()            # 2 if both followed mu
    1.0
    """
    kept = _kept.get()
    if kept is not None and kept.ready and (found := kept.next()) is not None:
        return found[0]
    with detached():
        made = map_arrays(mx.stop_gradient, compute())
    if kept is not None and not kept.ready:
        kept.add(made)
    return made


class _Kept:
    """What the constants of a function were, in the order in which it asks for them."""

    def __init__(self) -> None:
        self.ready, self.found = False, []

    def add(self, made: Any) -> None:
        try:
            mx.eval(split_arrays(made)[0])
        except (ValueError, RuntimeError):  # a lane of a batch, which is made anew in each
            made = None
        self.found.append(None if made is None else (made,))

    def next(self) -> Any:
        return self.found.pop(0)


@contextmanager
def constants_kept(first: Callable[[], Any]) -> Iterator[None]:
    """Run ``first``, then give what is the same computation the constants that were made for it."""
    kept = _Kept()
    token = _kept.set(kept)
    try:
        first()
        kept.ready = True
        yield
    finally:
        _kept.reset(token)


@contextmanager
def as_if_untrained(models: Any) -> Iterator[None]:
    """Within, these models have no trained parameters in fingerprints: a run that sets them knows itself again."""
    for model in models:
        model.params._hidden = True
    try:
        yield
    finally:
        for model in models:
            model.params._hidden = False


def param_gradients(trace: Any, retval_grad: Any = None) -> dict:
    """``{(model, name): gradient}`` of log p(choices) + <retval_grad, retval> for every parameter the run read.

    The arrays of a tree stand there by their own names.
    """
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
    try:
        array = value if isinstance(value, mx.array) else mx.array(value)
    except (TypeError, ValueError):
        raise UsageError(f"a parameter is {value!r:.60}", expected="a number, an array, or a tree of those") from None
    if not mx.issubdtype(array.dtype, mx.floating):
        array = array.astype(mx.float32)
    return array


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "no array"


def _shown(array: mx.array) -> Any:
    if array.size <= 8:
        return array.tolist()
    from genmlx.choicemap import show_type

    return _Text(show_type(array))


class _Text(str):
    __repr__ = str.__str__
