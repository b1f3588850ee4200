"""Random nestings of the combinators, each made together with an oracle that never calls the library.

Every combinator is brought to one shape, a *kernel* ``x -> number``, so that any can be the kernel of any other. The
oracle of a nesting walks it with numpy and scipy and gives, for the choices of one run, its *cells*:
``{(address, elements): (log density, value)}``, where ``elements`` are the places along the axes that ``vmap`` and
``repeat`` stacked. A masked value has cells only where it is active.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from scipy import stats

from genmlx import (
    contramap,
    dimap,
    flip,
    gen,
    map_over,
    map_retval,
    mask,
    mix,
    normal,
    recurse,
    repeat,
    scan,
    splice,
    switch,
    trace,
    unfold,
    vmap,
)

SIZE = 2  # of every vmap, so that one address has one shape in all branches of a switch


@dataclass
class Node:
    """A generative function, what it can be given, and its oracle ``(args, choices) -> (cells, return value)``."""

    name: str
    gf: Any
    oracle: Callable
    variants: list  # functions of nothing that give arguments, the first two always different
    paths: dict  # every address that it may have, and how many axes vmap puts before its values
    fed: Callable | None = None  # the arguments made from a number, for use as a kernel
    read: Callable | None = None  # a number made from the return value
    flag: bool = False  # whether the first argument is an index or a flag, which a kernel may draw

    @property
    def parts(self) -> set:
        return {path[0] if path else () for path in self.paths}

    def __repr__(self) -> str:
        return self.name


@dataclass
class Partial:
    """A value that only some elements have."""

    value: np.ndarray
    active: np.ndarray


# choices as numpy, and the parts of them


def leaves(choices: Any) -> dict:
    found = {}
    for address, leaf in choices.items():
        if hasattr(leaf, "active"):
            active = np.array(leaf.active)
            if not active.any():
                continue
            leaf = Partial(np.array(leaf.value), active) if active.ndim else leaf.value
        found[address] = leaf if isinstance(leaf, Partial) else np.array(mx.array(leaf))
    return found


def under(c: dict, part: Any) -> dict:
    return {address[1:]: leaf for address, leaf in c.items() if address and address[0] == part}


def element(c: dict, i: int) -> dict:
    found = {}
    for address, leaf in c.items():
        if not isinstance(leaf, Partial):
            if np.ndim(leaf):  # else a choice beside a spliced vmap
                found[address] = leaf[i]
        elif leaf.active.ndim > 1:
            found[address] = Partial(leaf.value[i], leaf.active[i])
        elif leaf.active[i]:
            found[address] = leaf.value[i]
    return found


def lifted(cells: dict, *prefix: Any) -> dict:
    return {((*prefix, *address), lanes): cell for (address, lanes), cell in cells.items()}


def prefixed(part: Any, node: Node) -> dict:
    return {(part, *path): axes for path, axes in node.paths.items()}


def numbered(node: Node) -> dict:
    return {(i, *path): axes for i in range(3) for path, axes in node.paths.items()}


def piled(node: Node) -> dict:
    return {path: axes + 1 for path, axes in node.paths.items()}


def alternatives(one: Node, other: Node, at: str) -> list[Node]:
    """Two branches, under names of their own where one has a value and the other a sub-map, or another shape."""
    clash = any(
        a != b and (a[: len(b)] == b or b[: len(a)] == a) or a == b and one.paths[a] != other.paths[b]
        for a in one.paths
        for b in other.paths
    )
    return [renamed(one, f"first{at}"), renamed(other, f"second{at}")] if clash else [one, other]


def renamed(node: Node, name: str) -> Node:
    gf = node.gf

    @gen.new
    def alternative(x):
        return trace(name, gf(x))

    def oracle(args, c):
        cells, value = node.oracle(args, under(c, name))
        return lifted(cells, name), value

    return Node(f"renamed({node})", alternative, oracle, [], prefixed(name, node))


def number(x: Any) -> float:
    return float(np.asarray(x, np.float64))


def normal_cell(c: dict, address: tuple, mu: Any, sigma: float = 1.0) -> tuple[dict, Any]:
    value = c[address]
    lp = float(np.sum(stats.norm.logpdf(np.asarray(value, np.float64), np.asarray(mu, np.float64), sigma)))
    return {(address, ()): (lp, value)}, np.asarray(value, np.float64)


def flip_cell(c: dict, address: tuple, p: float) -> tuple[dict, float]:
    value = c[address]
    # A branch of a switch may be handed the real number of another.
    lp = math.log(p if value else 1 - p) if value in (0, 1) else -math.inf
    return {(address, ()): (lp, value)}, number(value)


# leaves


def bounded(x: Any) -> Any:
    """Keeps chains of any depth near zero; the same for numbers, numpy and MLX."""
    return x * 0.5


def chance(x: Any) -> Any:
    return 1 / (1 + mx.exp(-mx.array(x, mx.float32)))


def chance_of(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def leaf(kind: str, at: str) -> Node:
    """A kernel without other kernels in it. ``at`` tells its addresses from those at other depths."""
    if kind == "normal":
        gf = contramap(normal, lambda x: (x, 1.5))
        return Node("normal", gf, lambda args, c: normal_cell(c, (), args[0], 1.5), [], {(): 0})
    if kind == "flip":
        gf = contramap(flip, lambda x: (chance(x),))
        return Node("flip", gf, lambda args, c: flip_cell(c, (), chance_of(args[0])), [], {(): 0})
    z, b, v = f"z{at}", f"b{at}", f"v{at}"

    if kind == "coin":

        @gen.new
        def coin(x):
            heads = trace(b, flip(chance(x)))
            return trace(z, normal(x + heads, 0.8)) + heads

        def coin_oracle(args, c):
            first, heads = flip_cell(c, (b,), chance_of(args[0]))
            second, value = normal_cell(c, (z,), args[0] + heads, 0.8)
            return first | second, value + heads

        return Node("coin", coin, coin_oracle, [], {(b,): 0, (z,): 0})

    if kind == "vector":

        @gen.new
        def vector(x):
            x = mx.array(x, mx.float32)
            return mx.sum(trace(v, normal(mx.stack([x, -x, 1 + x]), 1.2))) * 0.3

        def vector_oracle(args, c):
            x = args[0]
            cells, value = normal_cell(c, (v,), [x, -x, 1 + x], 1.2)
            return cells, np.sum(value) * 0.3

        return Node("vector", vector, vector_oracle, [], {(v,): 0})

    @gen.new
    def point(x):
        return trace(z, normal(x, 0.7))

    return Node("point", point, lambda args, c: normal_cell(c, (z,), args[0], 0.7), [], {(z,): 0})


LEAVES = ["normal", "flip", "coin", "vector", "point"]


# combinators: each makes a node from a supply of kernels


def of_map_over(kernel: Callable, at: str) -> Node:
    k = kernel()

    def oracle(args, c):
        cells, values = {}, []
        for i, x in enumerate(np.asarray(args[0], np.float64)):
            own, value = k.oracle((x,), under(c, i))
            cells |= lifted(own, i)
            values.append(value)
        return cells, values

    variants = [([0.3, -0.8],), ([0.3, 0.4],), ([0.3, -0.8, 1.1],), ([0.5],), (mx.array([0.2, 0.1]),), ([],)]
    return Node(
        f"map_over({k})", map_over(k.gf), oracle, variants, numbered(k), lambda x: ([x, bounded(x)],), added
    )


def of_vmap(kernel: Callable, at: str) -> Node:
    k = kernel()

    def oracle(args, c):
        return stacked(k, np.asarray(args[0], np.float64), c)

    variants = [(mx.array([0.3, -0.8]),), (mx.array([0.3, 1.0]),)]
    return Node(
        f"vmap({k})",
        vmap(k.gf),
        oracle,
        variants,
        piled(k),
        lambda x: (mx.stack([mx.array(x, mx.float32), 0.5 * mx.array(x)]),),
        lambda r: r.sum() * 0.3,
    )


def of_repeat(kernel: Callable, at: str) -> Node:
    k = kernel()

    def oracle(args, c):
        return stacked(k, [args[0]] * SIZE, c)

    gf = repeat(k.gf, SIZE)
    return Node(f"repeat({k})", gf, oracle, [(0.4,), (-0.7,)], piled(k), lambda x: (x,), lambda r: r.sum() * 0.3)


def stacked(k: Node, xs: Any, c: dict) -> tuple[dict, Any]:
    cells, values = {}, []
    for i in range(SIZE):
        own, value = k.oracle((xs[i],), element(c, i))
        cells |= {(address, (i, *lanes)): cell for (address, lanes), cell in own.items()}
        values.append(value)
    return cells, np.array(values)


def of_unfold(kernel: Callable, at: str) -> Node:
    k = kernel()

    def pre(t, state, drift):
        return bounded(state) + drift + 0.1 * t

    def oracle(args, c):
        n, state, drift = args
        cells, states = {}, []
        for t in range(int(n)):
            own, state = k.oracle((pre(t, state, number(drift)),), under(c, t))
            cells |= lifted(own, t)
            states.append(state)
        return cells, states

    gf = unfold(contramap(k.gf, pre))
    variants = [(2, 0.3, 0.5), (3, 0.3, 0.5), (1, 0.3, 0.5), (2, -0.6, 0.5), (3, 0.3, -0.2), (0, 0.1, 0.2)]
    return Node(f"unfold({k})", gf, oracle, variants, numbered(k), lambda x: (2, x, 0.25), added)


def of_scan(kernel: Callable, at: str) -> Node:
    k = kernel()

    def oracle(args, c):
        carry, xs = args
        cells, outs = {}, []
        for t, x in enumerate(np.asarray(xs, np.float64)):
            own, value = k.oracle((carry + x,), under(c, t))
            cells |= lifted(own, t)
            carry = bounded(value)
            outs.append(value)
        return cells, (carry, outs)

    gf = scan(dimap(k.gf, lambda carry, x: (carry + x,), lambda r: (bounded(r), r)))
    variants = [
        (0.2, [0.3, -0.8]), (0.2, [0.3, 0.4]), (0.2, [0.3, -0.8, 0.1]), (-0.5, [0.3]), (0.2, mx.array([0.4, 0.1])),
    ]  # fmt: skip

    def read(r):
        return bounded(r[0]) + added(r[1])

    return Node(f"scan({k})", gf, oracle, variants, numbered(k), lambda x: (x, [bounded(x), 0.25]), read)


def added(values: list) -> Any:
    return sum(values, 0.0) * 0.3


def of_switch(kernel: Callable, at: str) -> Node:
    ks = alternatives(kernel(), kernel(), at)

    def oracle(args, c):
        return ks[int(args[0])].oracle(args[1:], c)

    gf = switch(*[k.gf for k in ks])
    variants = [(0, 0.3), (1, 0.3), (1, -0.6), (mx.array(0), 0.3)]
    paths = ks[0].paths | ks[1].paths
    name = f"switch({ks[0]}, {ks[1]})"
    return Node(name, gf, oracle, variants, paths, lambda x: (whether(x), x), lambda r: r, flag=True)


def whether(x: Any) -> Any:
    """An index or a flag made of a number, traced where that is; rounding reaches no such threshold."""
    return (x > 0.0137).astype(mx.int32) if isinstance(x, mx.array) else int(x > 0.0137)


def of_mask(kernel: Callable, at: str) -> Node:
    k = kernel()

    def oracle(args, c):
        return k.oracle(args[1:], c) if args[0] else ({}, None)

    variants = [(True, 0.3), (False, 0.3), (True, -0.6), (mx.array(False), 0.3), (mx.array(True), 0.3)]
    # What an inactive lane returns is not to be used: as a kernel by itself, a mask returns a constant.

    def read(r):
        return 0.25

    return Node(
        f"mask({k})", mask(k.gf), oracle, variants, k.paths, lambda x: (whether(x), x), read, flag=True
    )


def of_mix(kernel: Callable, at: str) -> Node:
    ks = alternatives(kernel(apart="component"), kernel(apart="component"), at)

    def oracle(args, c):
        x = number(args[0])
        which = int(c["component",])
        logits = np.array([x, 0.2])
        cells, value = ks[which].oracle(args, c)
        lp = logits[which] - np.logaddexp(*logits)
        return {(("component",), ()): (float(lp), c["component",])} | cells, value

    gf = mix([k.gf for k in ks], lambda x: mx.stack([mx.array(x, mx.float32), mx.array(0.2)]))
    paths = ks[0].paths | ks[1].paths | {("component",): 0}
    return Node(f"mix({ks[0]}, {ks[1]})", gf, oracle, [(0.4,), (-0.7,)], paths, lambda x: (x,), lambda r: r)


def of_recurse(kernel: Callable, at: str) -> Node:
    here, rest = f"r{at}", f"rest{at}"
    k = kernel(apart=here)
    gf, named = k.gf, () in k.parts

    def maker(self):
        @gen.new
        def tree(x, depth):
            if depth == 0:
                return trace(here, gf(x)) if named else splice(gf(x))
            value = trace(here, normal(x, 1.1))
            return bounded(trace(rest, self(value, depth - 1)))

        return tree

    def oracle(args, c):
        x, depth = args
        if depth == 0:
            if () not in k.parts:
                return k.oracle((x,), c)
            cells, value = k.oracle((x,), under(c, here))
            return lifted(cells, here), value
        cells, value = normal_cell(c, (here,), x, 1.1)
        further, result = oracle((value, depth - 1), under(c, rest))
        return cells | lifted(further, rest), bounded(result)

    base = prefixed(here, k) if () in k.parts else k.paths
    paths = {(*[rest] * i, *path): axes for i in range(3) for path, axes in {**base, (here,): 0}.items()}
    variants = [(0.4, 1), (-0.2, 1), (0.4, 2), (0.4, 0)]
    return Node(f"recurse({k})", recurse(maker), oracle, variants, paths, lambda x: (x, 1), lambda r: r)


def of_dimap(kernel: Callable, at: str) -> Node:
    k = kernel()
    gf = dimap(k.gf, lambda x, y: x + 2 * y, lambda r: r - 0.1)

    def oracle(args, c):
        cells, value = k.oracle((number(args[0]) + 2 * number(args[1]),), c)
        return cells, value - 0.1

    variants = [(0.2, 0.1), (0.3, 0.1), (mx.array(0.2), 0.4)]
    return Node(f"dimap({k})", gf, oracle, variants, k.paths, lambda x: (x, 0.1), lambda r: r)


def of_contramap(kernel: Callable, at: str) -> Node:
    k = kernel()
    gf = map_retval(contramap(k.gf, lambda x: bounded(x) + 0.2), lambda r: {"value": bounded(r)})

    def oracle(args, c):
        cells, value = k.oracle((bounded(number(args[0])) + 0.2,), c)
        return cells, {"value": bounded(value)}

    return Node(f"contramap({k})", gf, oracle, [(0.4,), (-0.7,)], k.paths, lambda x: (x,), lambda r: r["value"])


def of_model(kernel: Callable, at: str) -> Node:
    """A ``@gen`` model with a choice before, a kernel traced in it, and a choice after that depends on both."""
    k, before, after, sub = kernel(), f"before{at}", f"after{at}", f"sub{at}"
    gf = k.gf

    @gen.new
    def model(x):
        first = trace(before, normal(x, 1.0))
        value = trace(sub, gf(first))
        return trace(after, normal(bounded(value) + first, 1.3))

    def oracle(args, c):
        cells, first = normal_cell(c, (before,), args[0])
        own, value = k.oracle((first,), under(c, sub))
        last, result = normal_cell(c, (after,), bounded(value) + first, 1.3)
        return cells | lifted(own, sub) | last, result

    paths = {(before,): 0, (after,): 0} | prefixed(sub, k)
    return Node(f"model({k})", model, oracle, [(0.4,), (-0.7,)], paths, lambda x: (x,), lambda r: r)


COMBINATORS = {
    "map_over": of_map_over,
    "vmap": of_vmap,
    "repeat": of_repeat,
    "unfold": of_unfold,
    "scan": of_scan,
    "switch": of_switch,
    "mask": of_mask,
    "mix": of_mix,
    "recurse": of_recurse,
    "dimap": of_dimap,
    "contramap": of_contramap,
    "model": of_model,
}
STACKS = {"vmap", "repeat"}


# any node as a kernel: number in, number out


def as_kernel(node: Node, rng: np.random.Generator, at: str, apart: str | None = None) -> Node:
    """The node between functions, or traced or spliced in a model, which may draw its index or flag."""
    if node.fed is None:
        if apart is None or () not in node.parts:
            return node
        node.fed, node.read = (lambda x: (x,)), (lambda r: r)
    own, sub, drawn = f"own{at}", f"in{at}", f"i{at}"
    ways = ["traced"]
    if apart is None and node.gf is not None:
        ways.append("between")
    if () not in node.parts and not node.parts & {apart, own, drawn}:
        ways.append("spliced")
    if apart is not None and () not in node.parts and apart not in node.parts:
        ways.append("between")
    way = ways[rng.integers(len(ways))]
    draws = node.flag and way != "between" and rng.random() < 0.6
    if way == "between":
        gf = dimap(node.gf, node.fed, node.read)

        def between(args, c):
            cells, value = node.oracle(fed_numbers(node, args[0]), c)
            return cells, number(node.read(value))

        return Node(f"between({node})", gf, between, [], node.paths)

    gf, fed, read = node.gf, node.fed, node.read
    masks, splices = draws and node.name.startswith("mask"), way == "spliced"

    def value_of(value, flag):
        """Through a drawn flag the value of a mask is used, in the lanes where it is active."""
        if not masks:
            return read(value)
        if value is None:
            return 0.25
        return mx.where(flag, value, 0.25) if isinstance(flag, mx.array) else value

    @gen.new
    def around(x):
        shift = trace(own, normal(x, 0.9))
        args, flag = fed(shift), None
        if draws:
            flag = trace(drawn, flip(chance(shift)))
            args = (flag, *args[1:])
        call = gf(*args)
        return value_of(splice(call) if splices else trace(sub, call), flag)

    def oracle(args, c):
        cells, shift = normal_cell(c, (own,), args[0], 0.9)
        given, flag = fed_numbers(node, shift), None
        if draws:
            first, flag = flip_cell(c, (drawn,), chance_of(number(shift)))
            cells |= first
            given = (int(flag), *given[1:])
        inner, value = node.oracle(given, c if way == "spliced" else under(c, sub))
        return cells | (inner if way == "spliced" else lifted(inner, sub)), number(value_of(value, flag))

    paths = {(own,): 0} | ({(drawn,): 0} if draws else {}) | (node.paths if way == "spliced" else prefixed(sub, node))
    return Node(f"{way}{'_drawn' if draws else ''}({node})", around, oracle, [], paths)


def fed_numbers(node: Node, x: Any) -> tuple:
    """The arguments that a node is fed, from a number that is not the library's."""
    return tuple(
        np.array(arg) if isinstance(arg, mx.array) else arg for arg in node.fed(number(x))
    )


def nesting(kinds: tuple[str, ...], seed: int) -> Node:
    """A nesting of these combinators, outermost first, with random leaves; the same seed gives the same one."""
    rng = np.random.default_rng(seed)

    def build(depth: int, stacks: int) -> Node:
        at = f"{depth}{'s' * stacks}"
        inner = stacks + (kinds[depth] in STACKS)

        def kernel(apart: str | None = None) -> Node:
            below = f"{depth + 1}{'s' * inner}"
            if depth + 1 < len(kinds) and (not made or rng.random() < 0.5):
                node = build(depth + 1, inner)
            else:
                names = [name for name in LEAVES if apart is None or name not in ("normal", "flip")]
                node = leaf(names[rng.integers(len(names))], below)
            made.append(node)
            return as_kernel(node, rng, below, apart)

        made: list[Node] = []
        return COMBINATORS[kinds[depth]](kernel, at)

    return build(0, 0)


def outer_model(node: Node, seed: int) -> Node:
    """The nesting inside a model that draws its number, and its index or flag: in a batch they differ by lane."""
    rng = np.random.default_rng(seed)
    kernel = as_kernel(node, rng, "top")
    if not kernel.parts & {"owntop"}:  # between functions: nothing is drawn yet
        kernel.fed, kernel.read = (lambda x: (x,)), (lambda r: r)
        sub, gf = kernel, kernel.gf

        @gen.new
        def drawing(x):
            return trace("outer", gf(trace("owntop", normal(x, 0.9))))

        def oracle(args, c):
            cells, shift = normal_cell(c, ("owntop",), args[0], 0.9)
            own, value = sub.oracle((shift,), under(c, "outer"))
            return cells | lifted(own, "outer"), value

        kernel = Node(f"drawing({sub})", drawing, oracle, [], {("owntop",): 0} | prefixed("outer", sub))
    kernel.variants = [(0.1,), (0.6,)]
    return kernel
