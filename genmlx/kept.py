"""Batches that come again: run by their handlers at first, then as what was made of such a run.

A small batch spends most of its time in Python. The third time that one of the same form comes, its primitives are
recorded (``backend/recording.py``); that is the same arithmetic, bit for bit. In a run for which machine code was
chosen they are compiled the first time (``native/batch.py``); that is the same up to rounding. Either stands for the
batch for as long as what its models read is as it was (``readings.py``). Where they read parameters, that is within one
run; so it is where they read what cannot be told, and only if machine code is required. A batch of which neither can
be made runs as it did the first time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import optree

from genmlx.backend import mapping
from genmlx.backend.gamma_sampler import without_derivatives
from genmlx.backend.recording import recorded
from genmlx.combinators.kernel import Combinator
from genmlx.diff import same
from genmlx.dist.distribution import DistTrace
from genmlx.dist.values import as_array
from genmlx.errors import UsageError
from genmlx.gen import GenFn
from genmlx.gfi import Call
from genmlx.pytree import NAMESPACE, Skeleton, map_leaves, register, split_arrays
from genmlx.readings import Readings
from genmlx.trace import Trace
from genmlx.vectorized import RECORDER
from genmlx.versions import current_pins

_OFTEN = 3  # times that a batch comes before it is recorded, which takes as long as running it a few times
_MOST = 64  # batches of a model that are known; then the one goes that has not come for longest
_LARGE = 1 << 20  # elements of results beyond which Python's share is too small to save


class Varying:
    """A tree whose numbers, like arrays, may be others each time that the batch comes."""

    __slots__ = ("tree",)

    def __init__(self, tree: Any):
        self.tree = tree


register(Varying, lambda varying: ((varying.tree,), None), lambda _, children: Varying(children[0]))


class Execution:
    """How the batches of a run are executed: as machine code where they can be, if ``native``, or else an error."""

    def __init__(self, native: bool, required: bool):
        self.native, self.required = native, required
        self.found = "handlers"


_execution: ContextVar[Execution | None] = ContextVar("genmlx_execution", default=None)


@contextmanager
def execution(native: bool | None, pays: bool) -> Iterator[Execution]:
    """A run whose batches are machine code if ``native``, or with None if that pays; ``found`` says what they were."""
    how = Execution(pays if native is None else native, native is True)
    token = _execution.set(how)
    try:
        yield how
    finally:
        _execution.reset(token)


def require_handlers(what: str) -> None:
    """Raise where machine code is required, since this batch has none."""
    how = _execution.get()
    if how is not None and how.required:
        from genmlx.native.graph import Untranslatable

        raise Untranslatable(f"native=True: {what}", hint="native=None, which runs on MLX what has no native form")


class _Kept:
    """A batch of one form: how often it came, and once there is something that gives its results, that."""

    def __init__(self, form: Skeleton, shapes: list):
        self.form, self.shapes, self.times = form, shapes, 0
        self.found = "handlers"
        self.recordable = True
        self.replay: Callable[..., Any] | None = None
        self.readings: Readings | None = None
        self.run: Execution | None = None

    def fits(self, form: Skeleton, shapes: list) -> bool:
        return self.shapes == shapes and _alike(self.form, form)

    @property
    def holds(self) -> bool:
        """Whether what it was made of is what it was; of parameters, and where machine code is required, in one run."""
        if self.replay is None or self.readings is not None:
            return self.readings is None or self.readings.unchanged()
        return self.run is not None and self.run is _execution.get()

    def record(self, f: Callable, soon: Callable, given: list[mx.array], read: Readings, expected: Any) -> None:
        """Find what gives what was expected, if there is such a thing; the models ``read`` that before it was made."""
        how = _execution.get()
        wanted, result = split_arrays(expected)
        self.recordable = False
        if read.fickle or not (
            read.unchanged() if read.complete else how is not None and (read.steady or how.required)
        ):
            return
        # An array that stands in several places of the result is one there too: an update goes by that.
        distinct = list({id(array): array for array in wanted}.values())
        order = {id(array): place for place, array in enumerate(distinct)}
        places = [order[id(array)] for array in wanted]
        at = [places.index(place) for place in range(len(distinct))]
        results: list[Skeleton] = []

        def flat(key: mx.array, *arrays: mx.array) -> list:
            own, skeleton = split_arrays(f(key, *self.form.fill(arrays)))
            if any(own[place] is not own[at[which]] for place, which in enumerate(places)):
                raise UsageError("arrays that are one for some values of what is given, and two for others")
            results.append(skeleton)
            return [own[place] for place in at]

        if how is not None and how.native:
            first = sorted({order[id(array)] for array in soon(expected) if id(array) in order})
            self.found, graph = "native (float32)", _compiled(flat, given, distinct, first, how.required)
        else:
            self.found, graph = "replayed", _recorded(flat, given, distinct)
        if graph is None or not _alike(results[-1], result) or not (read.unchanged() or not read.complete):
            return

        ran = {handle: version for trace in _traces(expected) for handle, version in trace.runs().items()}

        def replay(key: mx.array, arrays: list[mx.array]) -> Any:
            made = graph(key, *arrays)
            return _pinned(result.fill([made[place] for place in places]), ran)

        self.replay, self.run, self.recordable = replay, how, True
        self.readings = read if read.complete else None


def _compiled(
    flat: Callable[..., list], given: list[mx.array], expected: list[mx.array], first: list[int], required: bool
) -> Callable | None:
    """Machine code for the results that are wanted soon; the others are computed by MLX when somebody asks."""
    from genmlx.native.batch import native_batch

    def wanted(*arrays: mx.array) -> list:
        made = flat(*arrays)
        return [made[place] for place in first]

    with without_derivatives():
        code = native_batch(wanted, given, [expected[place] for place in first], required)
        if code is None or len(first) == len(expected):
            return code
        try:
            graph = recorded(flat, *given)
        except Exception as error:  # a primitive that cannot be exported, among what is not wanted soon
            if required:
                require_handlers(str(error))
            return None

    def both(*given: mx.array) -> list:
        made = list(graph(*given))
        for place, array in zip(first, code(*given), strict=True):
            made[place] = array
        return made

    return both


def _recorded(flat: Callable[..., list], arrays: list[mx.array], expected: list[mx.array]) -> Callable | None:
    if sum(array.size for array in expected) > _LARGE:
        return None
    try:
        graph = recorded(flat, *arrays)
        pairs = zip(graph(*arrays), expected, strict=True)
        return graph if all([mx.array_equal(a, b, equal_nan=True).item() for a, b in pairs]) else None
    # A primitive that cannot be exported, a thread whose stream is not the first, the host value of an input: there is
    # no telling what a body raises that looks for that, as in a dict.
    except Exception:
        return None


def _pinned(tree: Any, ran: dict) -> Any:
    """A tree with the traces of a run in which these models ran, as of the run that goes on."""
    pins = current_pins()
    for handle, version in ran.items():
        pins.setdefault(handle, version)
    left = _traces(tree)
    while left:
        trace = left.pop()
        if not isinstance(trace, DistTrace):
            object.__setattr__(trace, "pins", pins)
        left += trace.children()
    return tree


def _traces(tree: Any) -> list[Trace]:
    """The traces in a tree, without those that they are made of."""
    nodes = optree.tree_leaves(tree, is_leaf=lambda node: isinstance(node, Trace), namespace=NAMESPACE)
    return [node for node in nodes if isinstance(node, Trace)]


_of_no_model: OrderedDict[tuple, _Kept] = OrderedDict()
_lock = threading.Lock()


def known_of(model: Any) -> OrderedDict[tuple, _Kept]:
    """The batches of a model that are known; they go when it goes. Those of a combinator are those of a part."""
    owner = model_in(model)
    return _of_no_model if owner is None else owner.__dict__.setdefault("_batches", OrderedDict())


def model_in(value: Any) -> GenFn | None:
    """The first model in a generative function or a list of them."""
    if isinstance(value, GenFn):
        return value
    parts = value.parts if isinstance(value, Combinator) else value if isinstance(value, (tuple, list)) else ()
    return next((found for part in parts if (found := model_in(part)) is not None), None)


def all_arrays(tree: Any) -> list[mx.array]:
    return split_arrays(tree)[0]


def kept(does: tuple, models: tuple, f: Callable, key: Any, *inputs: Any, soon: Callable = all_arrays) -> Any:
    """``f(key, *inputs)``, a tree. ``does`` and the models, with what they read, say all that ``f`` does.

    ``soon(result)`` are those arrays of it that will be computed whatever comes, by default all.
    """
    if mapping.is_mapping() or RECORDER.get() is not None or not isinstance(key, mx.array):
        return f(key, *inputs)
    how = _execution.get()
    native = how is not None and how.native
    arrays, form = split_arrays(tuple(map(_lifted, inputs)))
    which = (*does, native, *models, form.spec, mx.default_device().type, threading.get_ident())
    try:
        hash(which)
    except TypeError:  # something in it has no hash
        return f(key, *inputs)
    if not all(type(leaf) in _PLAIN for leaf in form.leaves):
        return f(key, *inputs)
    shapes = [(array.shape, array.dtype) for array in arrays]
    batches = known_of(models)
    known = batches.get(which)
    if known is None or not known.fits(form, shapes) or not known.holds:
        known = _Kept(form, shapes)
    with _lock:
        batches[which] = known
        batches.move_to_end(which)
        if len(batches) > _MOST:
            batches.popitem(last=False)
    if known.replay is None:
        known.times += 1
        wanted = known.recordable and known.times >= (1 if native else _OFTEN)
        read = Readings((*models, *_brought_along(inputs))) if wanted else None
        state: Any = mx.random.state
        noise = state[0]
        result = f(key, *inputs)
        if state[0] is not noise:  # which a recording would freeze
            known.recordable = False
        elif read is not None:
            known.record(f, soon, [key, *arrays], read, result)
            if native and known.replay is not None:
                result = known.replay(key, arrays)  # so that the first time gives what the second will
        if native and known.replay is None:
            require_handlers("a model has noise of its own, catches errors, or changes what it reads")
    else:
        result = known.replay(key, arrays)
    if how is not None and known.replay is not None:
        how.found = known.found
    return result


def _brought_along(tree: Any) -> list:
    """What may run, or be asked, of a tree besides its leaves: the models of calls and traces, and the classes."""
    found: list = []

    def look(node: Any) -> bool:
        if isinstance(node, (Call, Trace)):
            found.append(node.gen_fn)
        elif type(node).__module__.partition(".")[0] not in ("builtins", "collections", "genmlx", "mlx"):
            found.append(type(node))
        return False

    optree.tree_leaves(tree, is_leaf=look, namespace=NAMESPACE)
    return found


_PLAIN = (int, float, bool, str, type(None))


def _lifted(tree: Any) -> Any:
    """The tree with arrays for what varies."""
    if not isinstance(tree, Varying):
        return tree
    return map_leaves(lambda leaf: as_array(leaf) if isinstance(leaf, (bool, int, float)) else leaf, tree)


def _alike(a: Skeleton, b: Skeleton) -> bool:
    """Whether two trees are the same but for their arrays."""
    if a.places != b.places or a.spec != b.spec:
        return False
    return all(same(x, y) and (x != 0 or str(x) == str(y)) for x, y in zip(a.leaves, b.leaves, strict=True))
