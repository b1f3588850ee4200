"""One more step of a chain, for all particles: its kernel runs by itself, and is the same batch for every step.

An update of a sequence that only grows runs the kernel at its end and leaves the rest alone. A filter runs the kernel
without the rest, with the number of the step and its observations as arrays like the states, so that what is made of
one step (``genmlx/kept.py``) serves for all. Whole numbers are of 64 bits, as large as they are likely to become in
Python. A kernel that needs the number as a Python number, that returns what it makes of it as a whole number, or that
might tell one from an array, is left to the update; so is a number that float32 does not hold.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from genmlx.choicemap import ChoiceMap
from genmlx.combinators.elements import Elements
from genmlx.combinators.scan import Scan
from genmlx.combinators.sequence import Sequence, tally
from genmlx.dist.values import as_array
from genmlx.errors import BatchError, GenError, under
from genmlx.gfi import Call
from genmlx.inference.attic import last_step
from genmlx.inference.growing import first_elements
from genmlx.inference.strata import same_values
from genmlx.kept import Varying, kept, model_in
from genmlx.pytree import flatten, map_arrays, map_leaves, split_arrays
from genmlx.random import Keys, split
from genmlx.readings import Readings
from genmlx.vectorized import Lanes, VectorizedTrace, _batch, _replaced, run
from genmlx.versions import pinned


def one_more_step(
    traces: VectorizedTrace, log_weights: mx.array, call: Call, observations: ChoiceMap, key: mx.array
) -> tuple[VectorizedTrace, mx.array] | None:
    """The traces with one more step, and their log weights, as by an update; None where more than that changes."""
    sequence, old = call.gen_fn, traces.lanes
    if not isinstance(sequence, Sequence) or not sequence.chained or not len(old.elements) or old.reads():
        return None
    t, args = len(old.elements), sequence.own(call)
    if sequence.length(args) != t + 1 or any(part != t for part in observations.parts()):
        return None
    if not _is_longer(traces.args, args, isinstance(sequence, Scan)):
        return None
    kernel = sequence.kernel
    if not _fits(kernel):
        return None

    def batch(key: Any, step: Any, shared: tuple, given: Varying, lanes: tuple) -> Any:
        def lane(key: Any, lanes: tuple, given: ChoiceMap) -> Any:
            state, sums, log_weight = lanes
            own = kernel.bind(sequence.kernel_args(state, step, (None, None, *shared)))
            element, weight = kernel._generate(own, given, Keys(split(key)[1]).next())
            sequence.next_state(element.retval)
            sums = sums + tally([element.score])
            score = mx.where(sums[1] > 0, -mx.inf, sums[0])
            return _replaced(element, args=()), added(log_weight, weight), sums, score

        with under((t,)):
            return run(lane, traces.n, key, Lanes(lanes), given.tree)

    with pinned(traces.pins):
        state = sequence.next_state(last_step(old.elements).retval)
        number, shared = sequence.step_inputs(args, t), args[2:]
        if not all(map(_is_held, flatten(number)[0])):
            return None
        step = map_leaves(_number, number)
        given = Varying(observations.sub((t,)))
        lanes = (state, old.tally, log_weights)
        try:
            element, log_weights, sums, score = kept(
                ("extend", sequence.name, traces.n), (kernel,), batch, key, step, shared, given, lanes
            )
        except Exception as error:  # whatever it was comes up again in the update, or does not
            if isinstance(error, NotImplementedError):  # machine code is required, and the error says why there is none
                raise
            if isinstance(error, BatchError) or not isinstance(error, GenError):
                _steps_of(kernel)[kernel] = Readings((kernel,)), False
            return None
        if element.reads():
            return None
        if _is_wide(element) and not _is_wide((number, shared, given, lanes)):
            _steps_of(kernel)[kernel] = Readings((kernel,)), False
            return None
        lanes = map_arrays(lambda array: mx.broadcast_to(array, (traces.n, *array.shape)), (number, shared))
        own = kernel.bind(sequence.kernel_args(state, lanes[0], (None, None, *lanes[1])))
        new = _replaced(
            old, args=(), score=score, tally=sums, elements=_longer(old.elements, _replaced(element, args=own))
        )
        sequence.require_visited(new, observations)
        return _batch(new, args, traces.n), log_weights


def _fits(kernel: Any) -> bool:
    """Whether a kernel may be run with an array for the number of a step, so far as that is known."""
    known = _steps_of(kernel)
    read, fits = known.get(kernel, (None, False))
    if read is None or not read.unchanged():
        read = Readings((kernel,))
        fits = read.complete and not read.particular
        known[kernel] = read, fits
    return fits


def _steps_of(kernel: Any) -> dict[Any, tuple[Readings, bool]]:
    """What is known of kernels, with the model that it is about, and that it goes with."""
    owner = model_in(kernel)
    return {} if owner is None else owner.__dict__.setdefault("_steps", {})


def _is_held(number: Any) -> bool:
    """Whether a number of Python's is one of float32, or near enough, with which a kernel may calculate."""
    if isinstance(number, int):
        return abs(number) <= 1 << 24
    return not isinstance(number, float) or not abs(mx.array(number).item() - number) > 1e-3


def _number(leaf: Any) -> Any:
    if isinstance(leaf, int) and not isinstance(leaf, bool):
        return mx.array(leaf, mx.int64)
    return as_array(leaf) if isinstance(leaf, (bool, float)) else leaf


def _is_wide(tree: Any) -> bool:
    return any(array.dtype == mx.int64 for array in split_arrays(tree)[0])


def added(log_weights: mx.array, weights: Any) -> mx.array:
    """The log weights after a step: one of -inf stays, also where a trace becomes possible (-inf + inf is NaN)."""
    return mx.where(log_weights > -mx.inf, log_weights + weights, -mx.inf)


def _is_longer(old: tuple, new: tuple, has_columns: bool) -> bool:
    """Whether the steps that there are have the arguments that they had."""
    if has_columns:
        (init, xs), (other, longer) = old, new
        return same_values((init, xs), (other, first_elements(longer, -1)))
    return same_values(old[1:], new[1:])


def _longer(elements: Any, element: Any) -> Elements:
    if not isinstance(elements, Elements):
        elements = Elements([], dict(enumerate(elements)), len(elements))
    return Elements(list(elements.stacks), {**elements.own, elements.n: element}, elements.n + 1)
