"""Training: stochastic gradient ascent on an objective, in the parameters that it reads, by MLX's own optimisers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.errors import UsageError, name_of
from genmlx.inference.checkpoint import Checkpoint, Place
from genmlx.inference.loop import Loop
from genmlx.inference.problem import positive_count
from genmlx.learning.ascent import Ascent
from genmlx.learning.batches import Batches
from genmlx.learning.early_stopping import Checks
from genmlx.learning.objective import Objective
from genmlx.params import as_if_untrained
from genmlx.versions import pinned


@dataclass(frozen=True, repr=False)
class Trained:
    """What training came to.

    ``params`` are the parameters that were trained, ``{model: {name: array}}``, the arrays of a tree by their own
    names. ``history`` is the estimated objective at each step, ``[steps]``, before that step's change, ``terms`` its
    terms where it has several, ``validation`` the objective of the validation rows at each check. ``status`` is
    ``complete``, ``converged`` where patience ran out, or ``interrupted``; ``execution`` says how steps were run.
    """

    params: dict[Any, dict[str, mx.array]]
    history: mx.array
    terms: dict[str, mx.array]
    validation: mx.array
    status: str = "complete"
    execution: str = "replayed"
    timing: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        last = self.history[-min(50, self.history.size) :]
        names = ", ".join(name_of(model) for model in self.params)
        partial = "" if self.status == "complete" else f", {self.status}"
        return f"<Trained {names}: {self.history.size} steps, objective {mx.mean(last).item():.6g}{partial}>"


def train(
    objective: Callable,
    data: Any = None,
    *,
    batch_size: int | None = None,
    iterations: int = 1000,
    learning_rate: Any = None,
    optimiser: Any = None,
    models: Iterable[Any] | None = None,
    validation: Any = None,
    patience: int | None = None,
    check_every: int | None = None,
    key: Any = None,
    progress: Callable | None = None,
    checkpoint: Any = None,
) -> Trained:
    """Maximise an objective in the parameters that it reads, and set them in their models.

    ``objective(*rows)`` gives a number for some rows of ``data``, an array or a tree of arrays with the rows first: as
    the log density of those rows, ``model(xs).assess({"y": ys}).score``. Each of ``iterations`` steps estimates the sum
    over all data from a random batch of ``batch_size`` rows (None: all of them), without bias, by the factor rows /
    batch size. An objective that names ``scale`` among its parameters is given that factor, and is to apply it itself:
    to what is summed over rows, and not to a prior. One that names ``key`` is given a new key at each step. It may
    give a dict of numbers, which are added up. A step is recorded as a graph where that can be: whatever else the
    objective reads stays what it was at the start.

    ``optimiser`` is one of ``mlx.optimizers``, of which a copy is used; by default Adam (Kingma and Ba 2015) with
    ``learning_rate`` 0.01, a number or an MLX schedule. ``models`` are those whose parameters move; by default all.

    With ``patience`` it stops when that many checks in a row have brought no new best, and the best parameters are
    kept; checks come every ``check_every`` steps (default: an epoch, and 50 without batches). What is checked is the
    objective of the ``validation`` rows, with the same key each time; without such rows its mean over the steps since
    the last check.

    Ctrl-C keeps what was reached. With ``checkpoint=path`` a run that was ended goes on, bit for bit, when called
    again with the same objective, data, key and settings; what the parameters were at its start does not count.
    Raises where the objective is not finite; then, as after any error, the parameters are those of before.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, param, trace
    >>> @gen
    ... def line(xs):
    ...     trace("y", normal(param("slope", 0.0) * xs + param("intercept", 0.0), 1.0))
    >>> xs = mx.arange(8) / 4.0
    >>> result = train(lambda xs, ys: line(xs).assess({"y": ys}).score, (xs, 2 * xs - 1), batch_size=4, key=1)
    >>> [round(line.params[name].item(), 2) for name in ("slope", "intercept")]
    [2.0, -1.0]
    """
    positive_count("iterations", iterations)
    if patience is not None:
        positive_count("patience", patience)
    if validation is not None and patience is None and check_every is None:
        raise UsageError("validation rows that nothing looks at", hint="patience=..., or check_every=...")
    if check_every is not None and validation is None and patience is None:
        raise UsageError("check_every, and nothing to check", hint="validation=..., or patience=...")
    if optimiser is not None and learning_rate is not None:
        raise UsageError("both an optimiser and a learning rate", hint="give the learning rate to the optimiser")
    key = random.as_key(key)
    streams = random.streams(key)
    with pinned(), Loop("train", progress) as loop, ExitStack() as stack:
        made, batches = Objective(objective), None if data is None else Batches(data, batch_size, streams.propose)
        if batches is None and batch_size is not None:
            raise UsageError("batch_size without data")
        ascent = Ascent(made, batches, _optimiser(optimiser, learning_rate), models, streams.initialise)
        every = check_every or (batches.epoch if batches is not None and batches.epoch > 1 else 50)
        checks = Checks(ascent, validation, patience, positive_count("check_every", every), streams.accept)
        if checkpoint is not None:
            settings = {"iterations": iterations, "batch_size": batch_size, "patience": patience, "check_every": every}
            what = {"objective": objective, "data": data, "validation": validation, "models": models, "key": key}
            own = {"optimiser": ascent.optimiser, "schedules": ascent.optimiser._schedulers, "tuning": ascent.state}
            stack.enter_context(as_if_untrained({model for model, _ in ascent.reads}))
            loop.file = Checkpoint(checkpoint, {"algorithm": "train", **what, **settings, **own})
        limit = [iterations]

        def block(start: int, stop: int) -> dict:
            for i in range(start, stop):
                ascent.step(i)
                if checks.due(i + 1) and checks.look():
                    limit[0] = i + 1
                    break
            ascent.settle()
            return {"objective": ascent.recent()}

        def restore(at: Place) -> None:
            ascent.restore(at.state["ascent"])
            checks.restore(at.state["checks"])
            limit[0] = at.done if checks.spent else iterations

        def state() -> dict:
            return {"ascent": ascent.kept(), "checks": checks.kept()}

        at = loop.resume(restore)
        loop.run("training", lambda: limit[0], block, done=at.done_in("training"), state=state)
        values = checks.best or ascent.values
        params: dict = {}
        for (model, name), value in zip(ascent.reads, values, strict=True):
            model.params.put(name, value)
            params.setdefault(model, {})[name] = value
    history, terms = ascent.merged()
    status = "converged" if checks.spent else loop.status
    return loop.deliver(Trained(params, history, terms, checks.seen, status, ascent.execution, loop.timing))


def _optimiser(optimiser: Any, learning_rate: Any) -> Any:
    import mlx.optimizers as optim

    if optimiser is None:
        return optim.Adam(0.01 if learning_rate is None else learning_rate)
    if not hasattr(optimiser, "apply_gradients"):
        raise UsageError(f"the optimiser is {optimiser!r:.60}", expected="one of mlx.optimizers, as Adam(0.01)")
    return copy.deepcopy(optimiser)
