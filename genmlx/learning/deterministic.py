"""Generative functions without choices: their return value follows from their arguments and parameters."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.choicemap import EMPTY, ChoiceMap
from genmlx.combinators.kernel import require_sub_map
from genmlx.diff import NoChange, UnknownChange
from genmlx.gfi import GenerativeFunction, unchanged
from genmlx.params import peek
from genmlx.selection import Selection
from genmlx.trace import Trace


class DeterministicTrace(Trace):
    """No choices and score 0; the return value, and the parameters that it was computed with."""

    __slots__ = ("params",)
    data = ("args", "retval", "score", "params")

    params: dict

    @property
    def subtraces(self) -> dict:
        """None: what walks over the parts of a trace passes by."""
        return {}

    def gathered(self) -> ChoiceMap:
        return EMPTY

    def reads(self) -> dict:
        return self.params


class Deterministic(GenerativeFunction):
    """A kind says what its ``value`` is; every weight and score is 0."""

    def value(self, args: tuple) -> tuple[Any, dict]:
        """The return value, and the parameters read: ``{(self, name): array}``."""
        raise NotImplementedError

    def _generate(self, args: tuple, constraints: ChoiceMap, key: Any) -> tuple[Trace, Any]:
        require_sub_map(self, constraints)
        retval, params = self.value(args)
        return DeterministicTrace(gen_fn=self, args=args, retval=retval, score=mx.array(0.0), params=params), 0.0

    def _update(
        self, trace: Any, args: tuple, diffs: tuple, constraints: ChoiceMap, key: Any
    ) -> tuple[Trace, Any, Any, ChoiceMap]:
        require_sub_map(self, constraints)
        if unchanged(diffs) and all(peek(*read) is value for read, value in trace.params.items()):
            return trace, 0.0, NoChange, EMPTY
        return self._generate(args, EMPTY, None)[0], 0.0, UnknownChange, EMPTY

    def _regenerate(
        self, trace: Any, args: tuple, diffs: tuple, selection: Selection, key: Any
    ) -> tuple[Trace, Any, Any]:
        return self._update(trace, args, diffs, EMPTY, None)[:3]

    def _project(self, trace: Any, selection: Selection) -> Any:
        return 0.0
