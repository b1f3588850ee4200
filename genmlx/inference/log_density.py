"""The latent choices of a model as one unconstrained vector, and their log density: what gradient inference works on.

The vector is taken apart site by site as the body runs (``genmlx.free``), so a support may depend on the choices
before it. A batch is one ``mx.vmap`` over the run; its graph is recorded when a batch of that size comes a second time,
and replayed from then on without Python, bit for bit the same.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.address import normalise
from genmlx.backend.mapping import vmap, vmap_list
from genmlx.backend.recording import recorded
from genmlx.choicemap import ChoiceMap, covering, from_items
from genmlx.dist.values import as_array
from genmlx.errors import MissingChoice, UsageError, ValueMismatch, show_address
from genmlx.free import Fixed, Free
from genmlx.gfi import Call, as_weight, checked_choices, gen_errors, unknown_address
from genmlx.gradients import host_value_errors
from genmlx.inference.problem import checked_problem, latents
from genmlx.inference.replay import REPLAYED
from genmlx.inference.structure import first_trace
from genmlx.params import overridden, peek
from genmlx.pytree import split_arrays
from genmlx.trace import Trace
from genmlx.vectorized import run
from genmlx.versions import pinned

_GRAPHS = 16  # recordings kept: a few operations at a few batch sizes
_ROWS = 64  # of a Hessian at once


class Site(NamedTuple):
    """One latent choice: its share of the vector, of shape ``[*axes of vmap, size]``, and the shape of its value."""

    share: slice
    coordinates: tuple
    value: tuple


class LogDensity:
    """The log density of the latent choices of ``call``, given the observations, on R^dim.

    ``logp(u)`` = log p(latents, observations) + log |det J|, where J is the Jacobian of the latents in ``u``: a density
    in ``u``, of which the latents are a function by the bijectors of their supports (``genmlx.dist.unconstrain``).
    ``joint(u)`` leaves the Jacobian out. Every function takes ``u`` of shape [dim], or [n, dim] for a batch.

    ``addresses`` maps each latent address to its slice of the vector. ``execution`` says whether batches are
    ``replayed`` as recorded graphs. What the body reads from outside of its arguments is then read once; its parameters
    are read at each call.

    >>> from genmlx import gen, normal, exponential, trace
    >>> @gen
    ... def model():
    ...     trace("y", normal(0, trace("sigma", exponential(1.0))))
    >>> density = LogDensity(model(), {"y": 1.0})
    >>> density.dim, density.unpack(mx.array([0.0]))["sigma"].item()
    (1, 1.0)
    >>> value, gradient = density.value_and_grad(mx.array([[0.0], [1.0]]))
    >>> value.shape, gradient.shape
    ((2,), (2, 1))
    """

    def __init__(self, call: Call, observations: Any = None):
        self.call, self.observations = call, checked_problem(call, observations)
        self.execution = "handlers"
        self.gen_fn, self._latent = call.gen_fn, latents(self.observations)
        self._graphs: OrderedDict[tuple, Any] = OrderedDict()
        with pinned() as pins, gen_errors(self.gen_fn):
            self._args = self.gen_fn.bind(call)
            # What is not evaluated yet would become a part of every graph.
            mx.eval(split_arrays((self._args, self.observations))[0])
            trace = first_trace(call, self.observations, self._latent)
            self._params = list(trace.reads())
            self._sites = self._layout(trace)
        self._pins = dict(pins)
        self.addresses = {address: site.share for address, site in self._sites.items()}
        self.dim = sum(math.prod(site.coordinates) for site in self._sites.values())
        if self.dim == 0:
            raise UsageError(
                "nothing to infer: every choice is observed, or there is none",
                gen_fn=self.gen_fn,
                expected="at least one continuous choice that is not observed",
            )

    # the density

    def logp(self, u: Any) -> mx.array:
        """log p(latents, observations) + log |det J|: a number, or [n]."""
        return self._batched("logp", u)[0]

    def joint(self, u: Any) -> mx.array:
        """log p(latents, observations), a density in the latents themselves: a number, or [n]."""
        return self._batched("joint", u)[0]

    def value_and_grad(self, u: Any, jacobian: bool = True) -> tuple[mx.array, mx.array]:
        """``logp`` and its gradient, of the shape of ``u``; with ``jacobian=False`` those of ``joint``."""
        value, gradient = self._batched("logp gradient" if jacobian else "joint gradient", u)
        return value, gradient

    def hessian(self, u: Any) -> mx.array:
        """The second derivatives of ``logp`` at one vector, [dim, dim]; derivatives of derivatives."""
        return self._rows(self._one(u), lambda u, v: mx.sum(mx.grad(self._lane_logp)(u) * v), mx.eye(self.dim))

    def slope(self, u: Any, address: Any) -> mx.array:
        """The derivatives of the latent at an address, flattened, in a vector: [elements, dim]."""
        address = normalise(address)
        if address not in self._sites:
            raise unknown_address(address, self.gen_fn, list(self._sites), "the call")
        basis = mx.eye(math.prod(self._sites[address].value))

        def value(u, v):
            return mx.sum(self._lane(u)[0].choices[address].reshape(-1) * v)

        return self._rows(self._one(u), value, basis)

    def _rows(self, u: mx.array, f: Callable, basis: mx.array) -> mx.array:
        """The gradient in ``u`` of ``f(u, v)`` for each row ``v`` of a basis."""
        with self._context():
            rows = [vmap(lambda v: mx.grad(f)(u, v))(basis[i : i + _ROWS]) for i in range(0, len(basis), _ROWS)]
        return mx.concatenate(rows)

    def _lane_logp(self, u: mx.array) -> mx.array:
        return self._lane(u)[1]

    def _one(self, u: Any) -> mx.array:
        u = self._vector(u)
        if u.ndim != 1:
            raise UsageError(f"vectors of shape {list(u.shape)}", expected=f"one vector [{self.dim}]")
        return u

    # between choices and vectors

    def pack(self, choices: Any) -> mx.array:
        """The vector of the latents in a choice map or a dict; [n, dim] of a map of ``n`` lanes.

        Observed choices in it are passed over. A missing latent raises, and so does a value that no finite vector has.
        """
        with self._context():
            choices = checked_choices(choices)
            known = [*self._sites, *self.observations]
            for address in choices:
                if address not in self._sites and address not in self.observations:
                    raise unknown_address(address, self.gen_fn, known, "the choice map")
            for address in self._sites:
                if not choices.sub(address).is_leaf:
                    raise MissingChoice("a latent choice is not given", address=address, hint="give all of them")
            given = choices.filter(covering(from_items((a, 0) for a in self._sites)))
            if choices.n is None:
                u = self._coordinates(None, given)
            else:
                u = run(self._coordinates, choices.n, None, given)
            self._require_finite(u)
            return u

    def unpack(self, u: Any) -> ChoiceMap:
        """The latents of a vector: a choice map, of ``n`` lanes for [n, dim]."""
        u = self._vector(u)
        values = self._batched("choices", u)
        return from_items(zip(self._sites, values, strict=False), u.shape[0] if u.ndim == 2 else None)

    def trace(self, u: Any) -> Trace:
        """The trace of the model at one vector, [dim]."""
        with self._context():
            return self.call.generate(self.unpack(self._one(u)).merge(self.observations)).trace

    def initial(self, key: Any = None, n: int = 1) -> mx.array:
        """Starting points [n, dim] where the log density and its gradient are finite.

        Prior draws are tried first, then uniform draws in (-2, 2), then the median of the prior draws and zero. Where
        none is finite, the error shows the log probability of every choice.
        """
        from genmlx.inference.starts import starting_points

        with self._context():
            return starting_points(self, key, n)

    # one lane

    def _context(self) -> Any:
        return _Both(pinned(self._pins), gen_errors(self.gen_fn))

    def _lane(self, u: mx.array) -> tuple[Trace, mx.array]:
        """The run at one vector, and its log density in ``u``."""
        sites = self._sites
        ends = [site.share.stop for site in sites.values()][:-1]
        shares = mx.split(u, ends) if ends else [u]
        free = ((a, Free(share.reshape(s.coordinates))) for (a, s), share in zip(sites.items(), shares, strict=True))
        choices = self.observations.merge(from_items(free))
        trace, weight = self.gen_fn._generate(self._args, choices, None)
        return trace, as_weight(weight)

    def _coordinates(self, key: Any, choices: ChoiceMap) -> mx.array:
        packed = self._packed(choices)
        return mx.concatenate([packed[address].reshape(-1) for address in self._sites])

    def _packed(self, values: ChoiceMap) -> ChoiceMap:
        """The choices of a run at these values, with coordinates in the place of the latents."""
        fixed = values.map(lambda value: Fixed(as_array(value)))
        choices = self.observations.merge(ChoiceMap(fixed._root))
        return self.gen_fn._generate(self._args, choices, None)[0].choices

    # batches

    def _vector(self, u: Any) -> mx.array:
        u = u if isinstance(u, mx.array) else as_array(u)
        if u.ndim not in (1, 2) or u.shape[-1] != self.dim:
            raise ValueMismatch(
                f"a vector of shape {list(u.shape)}", expected=f"[{self.dim}], or [n, {self.dim}] for a batch"
            )
        return u if u.dtype == mx.float32 else u.astype(mx.float32)

    def of_one(self, gradient: bool) -> tuple[Callable[..., list], list[mx.array]]:
        """``logp``, its gradient if that is wanted, and ``joint``, of one vector and of the model's parameters.

        A function for whoever traces it, and the parameters as they are.
        """

        def f(u: mx.array, *params: mx.array) -> list:
            def values(u: mx.array) -> tuple[mx.array, mx.array]:
                trace, logp = self._lane(u)
                return logp, trace.score

            read = dict(zip(self._params, params, strict=True))
            with self._context(), overridden(read), host_value_errors("differentiated"):
                if not gradient:
                    return list(values(u))
                (logp, joint), slope = mx.value_and_grad(values)(u)
                return [logp, slope, joint]

        return f, [as_array(peek(model, name)) for model, name in self._params]

    def _batched(self, what: str, u: Any) -> list:
        u = self._vector(u)
        params = [as_array(peek(model, name)) for model, name in self._params]
        if u.ndim == 2:
            return self._replayed(what, u, params)
        if is_traced(u):  # a lane of a batch that somebody else makes
            with self._context():
                return self._by_handlers(what, u, params)
        return [out[0] for out in self._replayed(what, u[None], params)]

    def _by_handlers(self, what: str, u: mx.array, params: list) -> list:
        lane = _LANES[what.removesuffix(" gradient")]

        def total(u: mx.array) -> tuple[mx.array, mx.array]:
            # Under a vmap, where the host value of what is differentiated is refused; see gradients.differentiate.
            values = vmap_list(lambda row: lane(self, row), u)[0] if u.ndim == 2 else lane(self, u)[0]
            return mx.sum(values), values

        with overridden(dict(zip(self._params, params, strict=True))), host_value_errors("differentiated"):
            if what.endswith("gradient"):
                (_, values), gradient = mx.value_and_grad(total)(u)
                return [values, gradient]
            return lane(self, u) if u.ndim == 1 else vmap_list(lambda row: lane(self, row), u)

    def _replayed(self, what: str, u: mx.array, params: list) -> Any:
        """The recorded graph for this batch size. It is made the second time, when it is worth its while."""
        kind = (what, u.shape[0])
        graph: Any = self._graphs.get(kind, _UNSEEN)
        traced = is_traced(u)
        if callable(graph) and not traced:
            return graph(u, *params)
        with self._context():
            if traced or graph is not _SEEN:
                if graph is _UNSEEN and not traced:
                    self._keep(kind, _SEEN)
                return self._by_handlers(what, u, params)
            found = self._by_handlers(what, u, params)
            self._keep(kind, self._recorded(what, u, params, found))
            return found

    def _keep(self, kind: tuple, graph: Any) -> None:
        self._graphs[kind] = graph
        while len(self._graphs) > _GRAPHS:
            self._graphs.popitem(last=False)

    def _recorded(self, what: str, u: mx.array, params: list, expected: list) -> Any:
        try:
            graph = recorded(lambda u, *params: self._by_handlers(what, u, list(params)), u, *params)
            found = graph(u, *params)
            mx.eval(found, expected)
        # A primitive that cannot be exported; or a thread whose stream is not the first (MLX 0.32.4 asks for that one).
        except (ValueError, RuntimeError, OSError) as error:
            self.execution = f"handlers: {error}"
            return None
        if all(mx.array_equal(a, b, equal_nan=True).item() for a, b in zip(found, expected, strict=True)):
            self.execution = REPLAYED
            return graph
        self.execution = "handlers: a replay of the density differs from it"
        return None

    # what there is to infer

    def _layout(self, trace: Trace) -> OrderedDict[tuple, Site]:
        values = trace.choices.filter(self._latent)
        # Under a vmap, where a body that takes the host value of a latent is refused, with its line.
        packed = run(lambda key, v: self._packed(v), 1, None, values.map(lambda v: as_array(v)[None]).batched(1))
        sites: OrderedDict[tuple, Site] = OrderedDict()
        start = 0
        for address, value in values.items():
            coordinates = packed[address].shape[1:]
            stop = start + math.prod(coordinates)
            sites[address] = Site(slice(start, stop), coordinates, as_array(value).shape)
            start = stop
        return sites

    def _require_finite(self, u: mx.array) -> None:
        if is_traced(u):
            return
        finite: Any = mx.all(mx.isfinite(u).reshape(-1, self.dim), axis=0).tolist()
        for address, share in self.addresses.items():
            if not all(finite[share]):
                raise ValueMismatch(
                    "the value has no finite coordinates",
                    address=address,
                    expected="a value inside the support of its distribution, not on its edge",
                )

    def __repr__(self) -> str:
        shown = ", ".join(show_address(a) for a in list(self.addresses)[:4])
        more = f", ... {len(self.addresses) - 4} more" if len(self.addresses) > 4 else ""
        return f"<LogDensity of {self.call!r}: {self.dim} dimensions, {shown}{more}>"


_UNSEEN, _SEEN = object(), object()

_LANES: dict[str, Callable[[LogDensity, mx.array], list]] = {
    "logp": lambda density, u: [density._lane(u)[1]],
    "joint": lambda density, u: [density._lane(u)[0].score],
    "choices": lambda density, u: [density._lane(u)[0].choices[address] for address in density._sites],
}


class _Both:
    """Two contexts, one in the other."""

    __slots__ = ("outer", "inner")

    def __init__(self, outer: Any, inner: Any):
        self.outer, self.inner = outer, inner

    def __enter__(self) -> None:
        self.outer.__enter__()
        self.inner.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self.inner.__exit__(*exc)
        self.outer.__exit__(*exc)


def is_traced(x: mx.array) -> bool:
    """Whether a transformation is going on, in which ``x`` has no value.

    A recorded graph must not be given such an array: MLX 0.32.4 crashes where one with a factorization is batched.
    """
    try:
        mx.async_eval(x)  # does not wait, so that a loop may run ahead of its arithmetic
    except ValueError:
        return True
    return False
