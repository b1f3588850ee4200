"""A step of stochastic gradient ascent, recorded as a graph where it can be, again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import optree

from genmlx.backend.recording import recorded
from genmlx.errors import GenError, ParameterError, name_of
from genmlx.learning.batches import Batches, step_key
from genmlx.learning.objective import Objective, value_and_gradient
from genmlx.pytree import NAMESPACE


class Ascent:
    """The values of the parameters, the optimiser's state, and a step of both, recorded as a graph where it can be."""

    def __init__(
        self, objective: Objective, batches: Batches | None, optimiser: Any, models: Iterable[Any] | None, key: Any
    ):
        self.objective, self.batches, self.optimiser, self.key = objective, batches, optimiser, key
        self.scale = 1.0 if batches is None else batches.scale
        reads = objective.reads(self.rows(0), self.scale, step_key(key, 0), models)
        self.reads, self.values = list(reads), list(reads.values())
        optimiser.init(self._named(self.values))
        self.state, self._state_spec = optree.tree_flatten(optimiser.state)
        self.execution, self._step = "handlers", None
        self.history: list[mx.array] = []  # of each step since the last block, [value, *terms]
        self.blocks: list[mx.array] = []

    def rows(self, step: int) -> Any:
        return () if self.batches is None else self.batches.at(step)

    def step(self, i: int) -> None:
        leaves, spec = optree.tree_flatten(self.rows(i), namespace=NAMESPACE)
        inputs = [step_key(self.key, i), *leaves, *self.values, *self.state]
        if self._step is None:
            self._step = self._recorded(spec, len(leaves), inputs)
        out = self._step(*inputs)
        n, m = len(self.values), len(self.state)
        self.values, self.state = list(out[:n]), list(out[n : n + m])
        self.history.append(out[-1])

    def _recorded(self, spec: Any, width: int, inputs: list) -> Callable[..., list]:
        """The step as a graph. Where it cannot be one it is run anew each time, and ``execution`` says why."""

        def moved(traced: bool, key: mx.array, *arrays: mx.array) -> list:
            rows: Any = optree.tree_unflatten(spec, arrays[:width])
            values = list(arrays[width : width + len(self.values)])
            self.optimiser.state = optree.tree_unflatten(self._state_spec, arrays[width + len(values) :])
            found, up = value_and_gradient(self.objective, self.reads, values, rows, self.scale, key, traced)
            new = self.optimiser.apply_gradients(self._named([-g for g in up]), self._named(values))
            after = optree.tree_leaves(self.optimiser.state)
            return [*self._listed(new), *after, mx.stack([number.astype(mx.float32) for number in found])]

        mx.eval(inputs)
        try:
            graph = recorded(lambda *arrays: moved(True, *arrays), *inputs)
            mx.eval(graph(*inputs))
        # A primitive that cannot be exported, a part that is run on the host, or what is wrong in any case.
        except (ValueError, RuntimeError, OSError, GenError) as error:
            self.execution = f"not replayed: {str(error).splitlines()[0]}"
            return lambda *arrays: moved(False, *arrays)
        self.execution = "replayed"
        return graph

    def _named(self, values: list) -> dict:
        """The values as the tree that MLX's optimisers and their filters see: ``params.<model>.<name>``.

        A name has a slash for each dot, since some of MLX's optimisers take dotted names apart.
        """
        named: dict = {}
        models = list(dict.fromkeys(model for model, _ in self.reads))
        called = [name_of(model) for model in models]
        for (model, name), value in zip(self.reads, values, strict=True):
            at = models.index(model)
            own = called[at] if called.count(called[at]) == 1 else f"{called[at]}_{at}"
            named.setdefault(own.replace(".", "/"), {})[name.replace(".", "/")] = value
        return {"params": named}

    def _listed(self, tree: dict) -> list:
        order = self._named(list(range(len(self.reads))))["params"]
        places = {place: (own, name) for own, part in order.items() for name, place in part.items()}
        return [tree["params"][places[i][0]][places[i][1]] for i in range(len(self.reads))]

    def settle(self) -> None:
        """Evaluate the steps since the last time; one whose objective is not finite raises."""
        if not self.history:
            return
        rows = mx.stack(self.history)
        mx.eval(self.values, self.state, rows)
        finite: Any = mx.isfinite(rows[:, 0]).tolist()
        if not all(finite):
            first = finite.index(False)
            done = sum(block.shape[0] for block in self.blocks) + first
            raise ParameterError(
                f"the objective is {rows[first, 0].item()} at step {done}",
                expected="a finite number",
                hint="a smaller learning rate, or parameters kept in their domain, as mx.exp(param('log_sigma', 0.0))",
            )
        self.blocks.append(rows)
        self.history = []

    def recent(self) -> float:
        mean: Any = mx.mean(self.blocks[-1][:, 0]).item()
        return mean

    def last(self, n: int) -> mx.array:
        """What the last ``n`` steps gave."""
        rows: list = []
        while sum(block.shape[0] for block in rows) < n:
            rows.insert(0, self.blocks[-1 - len(rows)])
        return mx.concatenate(rows)[-n:]

    def merged(self) -> tuple[mx.array, dict[str, mx.array]]:
        rows = mx.concatenate(self.blocks)
        return rows[:, 0], {name: rows[:, 1 + i] for i, name in enumerate(self.objective.terms)}

    def kept(self) -> dict:
        return {"values": self.values, "state": self.state, "history": mx.concatenate(self.blocks)}

    def restore(self, kept: dict) -> None:
        self.values, self.state, self.blocks = list(kept["values"]), list(kept["state"]), [kept["history"]]
