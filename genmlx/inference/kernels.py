"""Kernels, the steps of Markov chains, and what can be made of them: sequences, mixtures, reversals.

A kernel is called as ``kernel(trace, key) -> trace``, with one trace or a batch, of which each lane takes its own step.
A plain function of that form is a kernel too, and is called with one lane at a time. Each kernel that leaves a
distribution pi invariant has a reversal, with pi(x) k(x -> y) = pi(y) reversal(k)(y -> x): what a move of sequential
Monte Carlo needs for its backward kernel (Del Moral, Doucet and Jasra 2006). Gen.jl's kernels declare theirs.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import mlx.core as mx

from genmlx import random
from genmlx.choicemap import ChoiceMap
from genmlx.errors import BatchError, GenError, ParameterError, UsageError
from genmlx.gfi import Call, GenerativeFunction, checked_choices, gen_errors, require_selectable
from genmlx.inference.problem import positive_count
from genmlx.masked import Masked, value_of
from genmlx.random import LaneKey
from genmlx.selection import Selection
from genmlx.trace import Trace
from genmlx.vectorized import VectorizedTrace, vgenerate, where
from genmlx.versions import pinned

Info = dict[str, Any]
Step = Callable[[Any, Any], tuple[Any, Info]]
Watch = Callable[["Kernel", Any], None] | None

ITSELF = "itself"
_SCORE_TOLERANCE = 1e-4  # of float32 sums in two orders


def itself(trace: Trace) -> Trace:
    return trace


def visited(trace: Trace) -> tuple[ChoiceMap, Any]:
    return trace.choices, trace.score


class Kernel:
    """``step(state, key) -> (state, info)`` of one chain, with ``info`` a dict of numbers for this step.

    The state is a trace, unless ``init(trace)`` makes another tree of it, of which ``read(state)`` gives all choices,
    observed ones included, and their log joint density. ``warm`` is the step during warm-up where that is another
    one: one that adapts. In a batch the step is recorded and replayed, so it may not depend on anything but its input.
    ``back`` is the reversal, or ``"itself"``.
    """

    def __init__(
        self,
        step: Step,
        warm: Step | None = None,
        init: Callable[[Trace], Any] = itself,
        read: Callable[[Any], tuple[ChoiceMap, Any]] = visited,
        name: str = "kernel",
        back: Any = None,
    ):
        self.step, self.warm, self.init, self.read, self.name, self.back = step, warm, init, read, name, back

    def __call__(self, trace: Any, key: Any = None, check: bool = False, observations: Any = None) -> Any:
        """The next trace, or batch of traces.

        With ``check``, after this kernel and after each that it is made of: no observed choice has moved, and the
        score of the trace is that of a fresh ``assess``. What fails raises, and names the kernel.
        """
        if self.init is not itself:
            raise UsageError(f"{self.name} has a state of its own", expected="a run by the function that made it")
        with pinned(trace.pins), gen_errors(trace.gen_fn):
            watch = Check(observations) if check else None
            return self.apply(trace, random.as_key(key), watch)[0]

    @property
    def stages(self) -> list[tuple[Step, int]]:
        """The step as steps, each taken so many times: what a batch records, and replays."""
        return [(self.step, 1)]

    def apply(self, trace: Any, key: Any, watch: Watch = None) -> tuple[Any, Info]:
        """The next trace and its info; ``watch`` sees what comes out of each kernel that this one is made of."""
        new, info = trace.step(self.step, key) if isinstance(trace, VectorizedTrace) else self.step(trace, key)
        if watch is not None:
            watch(self, new)
        return new, info

    def reversed(self) -> Kernel:
        back = self._made_reversal() if self.back is None else self if self.back is ITSELF else self.back
        if back is None:
            raise UsageError(
                f"the kernel {self.name} does not say what its reversal is",
                expected="a kernel with a declared reversal, or one made of such kernels",
                hint="with_reversal(kernel) for one that is its own reversal, or with_reversal(kernel, back)",
            )
        return back

    def _made_reversal(self) -> Kernel | None:
        return None

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"


class Staged(Kernel):
    """Steps on one state, each taken a number of times, so that a batch need not record all of them. The info is that
    of the last."""

    def __init__(
        self, stages: list[tuple[Step, int]], init: Callable[[Trace], Any], read: Callable[[Any], tuple[ChoiceMap, Any]]
    ):
        self._stages = stages
        super().__init__(self._all, init=init, read=read)

    @property
    def stages(self) -> list[tuple[Step, int]]:
        return self._stages

    def _all(self, state: Any, key: Any) -> tuple[Any, Info]:
        keys, info = random.Keys(key), {}
        for step, times in self._stages:
            for _ in range(times):
                state, info = step(state, keys.next())
        return state, info


def as_kernel(kernel: Any) -> Kernel:
    """A kernel from what a user passes: one, or a function ``(trace, key) -> trace`` of single traces."""
    if isinstance(kernel, Kernel):
        return kernel
    if not callable(kernel) or isinstance(kernel, GenerativeFunction):
        raise UsageError(f"{kernel!r:.60} is not a kernel", expected="a function (trace, key) -> trace")
    name = getattr(kernel, "__name__", type(kernel).__name__)

    def step(trace: Any, key: Any) -> tuple[Any, Info]:
        new = kernel(trace, key)
        if not isinstance(new, Trace):
            raise UsageError(f"the kernel {name} returned {new!r:.60}", expected="a trace")
        return new, {}

    return Kernel(step, name=name)


def selected(name: str, trace: Trace, selection: Selection) -> list[tuple]:
    """The addresses that a kernel is to move: there must be some, all those it names, in every lane of a batch."""
    require_selectable(trace.gen_fn, selection, trace)
    chosen = trace.choices.filter(selection)
    if chosen.is_empty:
        raise UsageError(f"{name} has nothing to move: the selection is empty", gen_fn=trace.gen_fn)
    for address, leaf in chosen.items():
        if isinstance(leaf, Masked):
            raise UsageError(
                f"{name} cannot move a choice that exists in some runs only",
                address=address,
                gen_fn=trace.gen_fn,
                expected="a model whose addresses stay",
                hint="mh_kernel, which takes any choice",
            )
    return chosen.addresses()


def _part(kernel: Any) -> Kernel:
    kernel = as_kernel(kernel)
    if kernel.init is not itself:
        raise UsageError(f"{kernel.name} has a state of its own: it is no part of another kernel")
    return kernel


def with_reversal(kernel: Any, back: Any = None) -> Kernel:
    """The kernel, with its reversal declared: ``back``, whose own reversal it then is, or by default itself."""
    declared = copy.copy(as_kernel(kernel))
    if back is None:
        declared.back = ITSELF
    else:
        declared.back = copy.copy(as_kernel(back))
        declared.back.back = declared
    return declared


def reversal(kernel: Any) -> Kernel:
    """The kernel that takes each step back: pi(x) k(x -> y) = pi(y) reversal(k)(y -> x).

    A Metropolis-Hastings kernel is its own; a sequence has those of its parts in the reverse order. A kernel that says
    nothing about its reversal raises.
    """
    return as_kernel(kernel).reversed()


class Chain(Kernel):
    """Kernels one after the other, each with a key of its own. Its info is the mean of theirs."""

    def __init__(self, parts: Iterable[Any], name: str):
        self.parts = [_part(kernel) for kernel in parts]
        super().__init__(self.apply, name=name)

    def apply(self, trace: Any, key: Any, watch: Watch = None) -> tuple[Any, Info]:
        infos = []
        for part, own in zip(self.parts, random.split(key, len(self.parts)), strict=True):
            trace, info = part.apply(trace, own, watch)
            infos.append(info)
        return trace, averaged(infos)

    def _made_reversal(self) -> Kernel:
        return Chain([part.reversed() for part in reversed(self.parts)], f"reversal({self.name})")


def chain(*kernels: Any) -> Kernel:
    """The first kernel, then the second, and so on.

    >>> import mlx.core as mx
    >>> from genmlx import gen, normal, trace
    >>> from genmlx.inference import mh_kernel
    >>> @gen
    ... def model():
    ...     trace("y", normal(trace("a", normal(0, 1)) + trace("b", normal(0, 1)), 0.5))
    >>> both = chain(mh_kernel("a"), mh_kernel("b"))
    >>> tr, _ = model().generate({"y": 1.0}, key=mx.random.key(0))
    >>> both(tr, mx.random.key(1)).choices.addresses(), reversal(both)
    ([('a',), ('b',), ('y',)], <Kernel reversal(chain(mh_kernel, mh_kernel))>)
    """
    parts = _parts("chain", kernels)
    return Chain(parts, f"chain({_names(parts)})")


def repeat_kernel(n: int, kernel: Any) -> Kernel:
    """The kernel ``n`` times."""
    part = as_kernel(kernel)
    return Chain([part] * positive_count("n", n), f"repeat_kernel({n}, {part.name})")


def cycle_kernels(n: int, kernels: Sequence[Any]) -> Kernel:
    """``n`` applications in all, of the kernels in turn: the first, the second, ..., and the first again."""
    parts = _parts("cycle_kernels", kernels)
    taken = [parts[i % len(parts)] for i in range(positive_count("n", n))]
    return Chain(taken, f"cycle_kernels({n}, [{_names(parts)}])")


class Mixture(Kernel):
    """One of several kernels, drawn by its weight."""

    def __init__(self, parts: Sequence[Any], weights: Sequence[float], name: str):
        self.parts, self.weights = [_part(kernel) for kernel in parts], list(weights)
        total = sum(self.weights)
        self._ends = [end / total for end in accumulate(self.weights)][:-1]
        super().__init__(self.apply, name=name)

    def apply(self, trace: Any, key: Any, watch: Watch = None) -> tuple[Any, Info]:
        choice, *keys = random.split(key, 1 + len(self.parts))
        if not isinstance(trace, VectorizedTrace) and not isinstance(key, LaneKey):
            u: Any = random.uniform(choice).item()
            which = bisect_right(self._ends, u)
            return self.parts[which].apply(trace, keys[which], watch)
        u = random.uniform(choice, (trace.n,) if isinstance(trace, VectorizedTrace) else ())
        made = [part.apply(trace, own, watch) for part, own in zip(self.parts, keys, strict=True)]
        chosen, info = made[-1]
        for (new, new_info), end in reversed(list(zip(made, self._ends, strict=False))):
            _require_same_choices(self, new, chosen)
            taken = u < end
            chosen, info = where(taken, new, chosen), _either(taken, new_info, info)
        return chosen, info

    def _made_reversal(self) -> Kernel:
        return Mixture([part.reversed() for part in self.parts], self.weights, f"reversal({self.name})")


def mix_kernels(weighted: Sequence[tuple[Any, float]]) -> Kernel:
    """One of the kernels in ``[(kernel, weight), ...]``, drawn anew in each step. Weights need not be normalised.

    In a batch each lane draws its own, which costs as much as all kernels together: every lane runs all of them and
    keeps one result. So they must lead to the same choices; a single trace runs only the kernel that was drawn.
    """
    pairs = list(weighted)
    if not pairs or any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in pairs):
        raise UsageError(f"mix_kernels was given {weighted!r:.60}", expected="pairs [(kernel, weight), ...]")
    weights = [float(weight) for _, weight in pairs]
    if any(not 0 <= w < math.inf for w in weights) or sum(weights) <= 0:
        raise ParameterError(f"the weights of mix_kernels are {weights}", expected="none negative, and some positive")
    kept = [(as_kernel(kernel), weight) for (kernel, _), weight in zip(pairs, weights, strict=True) if weight > 0]
    parts = [kernel for kernel, _ in kept]
    return Mixture(parts, [weight for _, weight in kept], f"mix_kernels({_names(parts)})")


class Seeded(Kernel):
    """A kernel that is given the same key in every step."""

    def __init__(self, kernel: Any, key: Any):
        self.kernel, self.key = _part(kernel), random.as_key(key)
        super().__init__(self.apply, name=f"seed_kernel({self.kernel.name})")

    def apply(self, trace: Any, key: Any, watch: Watch = None) -> tuple[Any, Info]:
        own = LaneKey(self.key, key.lane, key.depth) if isinstance(key, LaneKey) else self.key
        return self.kernel.apply(trace, own, watch)

    def _made_reversal(self) -> Kernel:
        return Seeded(self.kernel.reversed(), self.key)


def seed_kernel(kernel: Any, key: Any) -> Kernel:
    """The kernel with a fixed key, whatever key it is called with: one step that can be run again.

    Its noise is frozen, so that many steps of it are no Markov chain with the distribution of the kernel.
    """
    if key is None:
        raise UsageError("seed_kernel was given no key", expected="mx.random.key(seed), or an integer seed")
    return Seeded(kernel, key)


def averaged(infos: list[Info]) -> Info:
    """The mean of each number over the steps that have it."""
    if len(infos) == 1:
        return infos[0]
    found = {}
    for name in dict.fromkeys(name for info in infos for name in info):
        found[name] = mean(mx.stack([mx.array(info[name]).astype(mx.float32) for info in infos if name in info]))
    return found


def mean(values: mx.array) -> mx.array:
    """The mean over axis 0 of the numbers that are not NaN."""
    has = mx.logical_not(mx.isnan(values))
    return mx.sum(mx.where(has, values, 0.0), axis=0) / mx.sum(has, axis=0)


def _either(taken: mx.array, a: Info, b: Info) -> Info:
    """The info of the kernel that a lane took; NaN where that one has no such number."""
    found = {}
    for name in dict.fromkeys([*a, *b]):
        if name in a and name in b:
            found[name] = mx.where(taken, a[name], b[name])
        else:
            x, y = (mx.array(i[name]).astype(mx.float32) if name in i else math.nan for i in (a, b))
            found[name] = mx.where(taken, x, y)
    return found


def _parts(what: str, kernels: Sequence[Any]) -> list[Kernel]:
    if not kernels:
        raise UsageError(f"{what} was given no kernels")
    return [as_kernel(kernel) for kernel in kernels]


def _names(parts: list[Kernel]) -> str:
    return ", ".join(part.name for part in parts)


def _require_same_choices(mixture: Kernel, new: Any, old: Any) -> None:
    shapes = [{a: value_of(leaf).shape for a, leaf in t.choices.items()} for t in (new, old)]
    if shapes[0] != shapes[1]:
        raise BatchError(
            f"the kernels of {mixture.name} lead to different choices, and lanes of a batch have all the same",
            hint="a single trace, for which only the kernel that was drawn runs",
        )


# checks


class Check:
    """Raises when a kernel has moved an observation, or has left a trace with a wrong score."""

    def __init__(self, observations: Any):
        self.observations = checked_choices(observations)

    def __call__(self, kernel: Kernel, trace: Any) -> None:
        choices = trace.choices
        for address, value in self.observations.items():
            if address not in choices:
                raise GenError(f"the kernel {kernel.name} removed an observed choice", address=address)
            if not mx.all(value_of(choices[address]) == mx.array(value)).item():
                raise GenError(
                    f"the kernel {kernel.name} moved an observed choice",
                    address=address,
                    expected="the observed value, which conditions the posterior",
                    hint="leave it out of the kernel's selection or proposal",
                )
        fresh = _assessed(trace)
        wrong = mx.logical_not(mx.abs(trace.score - fresh) <= _SCORE_TOLERANCE * (1 + mx.abs(fresh)))
        wrong = mx.logical_and(wrong, mx.logical_not(trace.score == fresh))  # -inf is equal to itself
        if mx.any(wrong).item():
            at = mx.argmax(wrong.reshape(-1)).item()
            shown = [score.reshape(-1)[at].item() for score in (trace.score, fresh)]
            raise GenError(
                f"after the kernel {kernel.name} the score of the trace is {shown[0]:.6g}",
                expected=f"{shown[1]:.6g}, the log density of its choices",
                hint="make the new trace by update, regenerate or edit",
            )


def _assessed(trace: Any) -> mx.array:
    call = Call(trace.gen_fn, trace.args, {})
    if not isinstance(trace, VectorizedTrace):
        return call.assess(trace.choices).score
    # The key is for choices that some lanes do not have, which count for nothing.
    return vgenerate(call, trace.choices, trace.n, mx.random.key(0), strict=False).trace.score
