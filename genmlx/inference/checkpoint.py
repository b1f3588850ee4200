"""Checkpoints of a long run: what has been drawn and where the chains are, so that a run that was killed goes on.

Keys belong to steps, so a run that is resumed draws what it would have drawn, bit for bit. A file belongs to one run:
its model, arguments, observations, key and settings, of which it holds fingerprints.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx import archive
from genmlx.choicemap import ChoiceMap
from genmlx.digest import _code
from genmlx.errors import GenError
from genmlx.gen import GenFn
from genmlx.gfi import Call, GenerativeFunction
from genmlx.params import ParamStore
from genmlx.pytree import all_slots
from genmlx.selection import Selection
from genmlx.versions import resolve

_FORMAT = "genmlx checkpoint 2"
_SHARE = 0.05
"""The most of the time of a run that is spent on writing."""


class Place(NamedTuple):
    """Where a run is: ``done`` steps of a phase, and what it goes on from.

    ``state`` is made of lists, of dicts with names, of arrays (MLX or numpy), and of numbers, strings and None.
    """

    phase: str
    done: int
    state: Any

    def done_in(self, phase: str) -> int:
        return self.done if phase == self.phase else 0


class Checkpoint:
    """The file of one run, identified by fingerprints of everything that its draws depend on."""

    def __init__(self, path: str | os.PathLike, run: Mapping[str, Any]):
        self.path = os.fspath(path)
        self.run = {
            name: value if _is_plain(value) else fingerprint(value)
            for name, value in {**run, "MLX": version("mlx"), "device": str(mx.default_device())}.items()
        }
        self._next, self._written = 0.0, None

    @classmethod
    def of(
        cls,
        path: str | os.PathLike,
        algorithm: str,
        call: Call,
        observations: ChoiceMap,
        key: Any,
        **settings: Any,
    ) -> Checkpoint:
        """That of a run of an algorithm on a problem."""
        problem = {"model": call.gen_fn, "arguments": call.args, "observations": observations}
        return cls(path, {"algorithm": algorithm, **problem, "key": key, **settings})

    def load(self, restore: Callable[[Place], None]) -> Place | None:
        """Where the run was, once ``restore`` has taken it up; None when there is no file."""
        if not os.path.exists(self.path):
            return None
        try:
            head, arrays = archive.read(self.path, _FORMAT)
            run = dict(head["run"])
            differ = [name for name in {**self.run, **run} if self.run.get(name) != run.get(name)]
            if differ:
                raise self._mismatch(differ, run)
            place = Place(head["phase"], head["done"], _put_together(head["state"], arrays))
            restore(place)
            self._written = place.phase, place.done
            return place
        except GenError:
            raise
        # What numpy and json say about bytes of any other kind is of many types.
        except Exception as error:
            raise archive.unreadable(
                self.path, "a checkpoint", "a file that a run with checkpoint= left", "delete it", error
            ) from None

    def _mismatch(self, differ: list[str], run: dict) -> GenError:
        pairs = [(name, run.get(name), self.run.get(name)) for name in differ]
        shown = [f"{a} ({b} there, {c} here)" if _is_shown(b) and _is_shown(c) else a for a, b, c in pairs]
        hint = "delete it, or give another path"
        if differ == ["key"]:
            hint += "; a run that is to be resumed needs key=..., since the session's keys differ each time"
        return GenError(
            f"the checkpoint {self.path} is of another run, with other {', '.join(shown)}",
            expected="the model, arguments, observations, key and settings that it was written for",
            hint=hint,
        )

    def offer(self, phase: str, done: int, state: Callable[[], Any], now: bool = False) -> None:
        """Write, unless the last write was so recent that writing again would slow the run down.

        With ``now`` write in any case, if this is not what was written last.
        """
        start = time.perf_counter()
        if (start < self._next and not now) or (phase, done) == self._written:
            return
        arrays: dict[str, Any] = {}
        form = _taken_apart(state(), arrays)
        archive.write(self.path, _FORMAT, {"run": self.run, "phase": phase, "done": done, "state": form}, arrays)
        end = time.perf_counter()
        self._next, self._written = end + (end - start) / _SHARE, (phase, done)


def _taken_apart(tree: Any, arrays: dict[str, Any]) -> Any:
    """The tree as JSON holds it, with the name of each array in its place."""
    if hasattr(tree, "dtype"):
        name = f"array{len(arrays)}"
        arrays[name] = tree
        return {"array": name}
    if isinstance(tree, dict):
        return {name: _taken_apart(part, arrays) for name, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_taken_apart(part, arrays) for part in tree]
    return tree


def _put_together(form: Any, arrays: dict[str, mx.array]) -> Any:
    if isinstance(form, list):
        return [_put_together(part, arrays) for part in form]
    if not isinstance(form, dict):
        return form
    if list(form) == ["array"] and isinstance(form["array"], str):
        return arrays[form["array"]]
    return {name: _put_together(part, arrays) for name, part in form.items()}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, str))


def _is_shown(value: Any) -> bool:
    return _is_plain(value) and len(str(value)) < 40


def fingerprint(value: Any) -> str:
    """Equal for values that say the same, in this process or another: arrays, models, functions, and trees of them.

    A model counts by the instructions of its body, and by what it closes over or reads from its module.
    """
    return hashlib.sha256(repr(_canonical(value, ())).encode()).hexdigest()


def _canonical(value: Any, within: tuple) -> Any:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return (type(value).__name__, repr(value))
    if isinstance(value, mx.array):
        words = value.view(mx.uint16) if value.dtype == mx.bfloat16 else value
        return ("array", str(value.dtype), value.shape, hashlib.sha256(_bytes(words)).hexdigest())
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return ("array", str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest())
    if id(value) in within:
        return ("above", within.index(id(value)))
    within = (*within, id(value))

    def each(values: Any) -> list:
        return [_canonical(item, within) for item in values]

    if isinstance(value, ChoiceMap):
        return ("choices", value.n, each(value.items()))
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, each(value), each(getattr(value, "kwargs", {}).items()))
    if isinstance(value, Mapping):
        return ("mapping", each(value.items()))
    if isinstance(value, (set, frozenset)):
        return ("set", sorted(map(repr, each(value))))
    if isinstance(value, Selection):
        return ("selection", repr(value))
    if isinstance(value, Call):
        return ("call", each((value.gen_fn, value.raw_args, value.raw_kwargs)))
    if isinstance(store := getattr(value, "params", None), ParamStore):
        return ("model", each([resolve(value).function if isinstance(value, GenFn) else value.body, store.trained()]))
    if hasattr(value, "__code__"):
        return ("function", _code(value.__code__, ()), each(_surroundings(value)))
    own = getattr(value, "__dict__", None) or {s: getattr(value, s, None) for s in all_slots(type(value))}
    if isinstance(value, type) or (isinstance(value, GenerativeFunction) and not own):
        return ("named", value.__module__, getattr(value, "__qualname__", None) or repr(value))
    return (type(value).__qualname__, each((k, v) for k, v in own.items() if not k.startswith("_")))


def _bytes(array: mx.array) -> bytes:
    import numpy as np

    return np.array(array).tobytes()


def _surroundings(function: Any) -> list:
    """What a function is given by its definition: defaults, what it closes over, and what it reads of its module."""
    code = function.__code__
    found = [function.__defaults__, function.__kwdefaults__, getattr(function, "__self__", None)]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            found.append("empty")
    read = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    return [*found, {name: value for name, value in read.items() if _is_own(value, function)}]


def _is_own(value: Any, function: Any) -> bool:
    """Whether a global is data, a model, or a function of the same module: what a change of the file would change."""
    if isinstance(value, (bool, int, float, str, tuple, list, mx.array)) or hasattr(value, "tobytes"):
        return True
    if isinstance(value, GenerativeFunction) and isinstance(getattr(value, "params", None), ParamStore):
        return True
    return hasattr(value, "__code__") and getattr(value, "__module__", None) == function.__module__
