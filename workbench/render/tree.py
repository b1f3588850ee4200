"""Choice maps and traces as trees: one row for each address, with its value, its type and its log density.

Which rows are shown is decided from the addresses alone; only what they show, if it is not too large, is then
evaluated. Submaps with integers for keys are folded, and a tree keeps to a number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.choicemap import ChoiceMap
from genmlx.masked import Masked, value_of
from genmlx.selection import NONE, Selection
from workbench.render.head import addresses, retval_text, title, version_of, weight_text
from workbench.render.nodes import Node, build, evaluate_densities, path, text_of
from workbench.render.rows import Row
from workbench.render.screen import PLAIN, Screen
from workbench.render.sites import added, picked, sites
from workbench.render.values import IN_FULL, SHOWN_BYTES, Shown, density, host, kind, show

ROWS = 40
_FOLDED = 2  # how many of a folded submap are shown
_LEAST = 5  # how many it must have to be folded
_TOGETHER = 3  # choices of a submap that go into one row


class Look(NamedTuple):
    """How much is shown. A number of ``rows`` unfolds what is folded; ``lp`` does, and splits arrays as well."""

    rows: int | None = None
    depth: int = 4
    lp: bool = False
    stats: bool = False
    name: str = "_"  # what hints call the thing that is shown

    @property
    def folds(self) -> bool:
        return self.rows is None and not self.lp


DEFAULT = Look()


class Tree:
    """What is to be shown of a choice map, a trace or a batch of traces.

    ``observed`` are the choices marked ``*``, ``redrawn`` those marked ``~``; what is fixed is marked ``=``, what is
    not finite ``!``. ``weight`` goes into the head. ``log_weights`` of a batch weight its means.
    """

    def __init__(
        self,
        thing: Any,
        look: Look = DEFAULT,
        address: tuple = (),
        observed: Selection = NONE,
        redrawn: Selection = NONE,
        weight: Any = None,
        log_weights: mx.array | None = None,
    ):
        self.thing, self.look, self.address = thing, look, address
        self.weight, self.log_weights = weight, log_weights
        self.scored = not isinstance(thing, ChoiceMap)
        choices = thing.choices if self.scored else thing
        self.lanes = choices.n if choices.n is not None else getattr(thing, "n", None) if self.scored else None
        self.root = build(choices, sites(thing) if self.scored else {}, observed, redrawn)
        if self.scored:
            evaluate_densities(self.root, look.lp)
        found = self.root.at(address)
        if found is None:
            raise KeyError(address)
        self.node: Node = found

    def rows(self, screen: Screen = PLAIN, budget: int | None = None) -> list[Row]:
        """What is below the head; a ``budget`` of rows in place of the look's also unfolds."""
        folds = self.look.folds and budget is None
        return _Layout(self, screen, budget or self.look.rows or ROWS, folds).rows()

    def head(self, screen: Screen = PLAIN) -> list[str]:
        """The parts of the first line."""
        count = "" if self.node.children is None else addresses(self.node.count)
        if not self.scored:
            lanes = f"[N={self.lanes:,}]" if self.lanes is not None else ""
            return [part for part in ("choicemap", self._place(), lanes, count) if part]
        many = count if self.node.count > ROWS else ""
        lanes = f"[N={self.lanes:,}]" if self.lanes is not None else ""
        parts = [title(self.thing), version_of(self.thing), self._place(), many, lanes, self._score(screen)]
        if self.weight is not None:
            parts.append(f"log weight {weight_text(self.weight, screen)}")
        return [part for part in parts if part]

    def foot(self, screen: Screen = PLAIN) -> str:
        """The return value."""
        if not self.scored or self.address:
            return ""
        retval = self.thing.retval
        if retval is None:
            return ""
        lanes = self.lanes is not None
        return f"return  {retval_text(retval, screen, self.look.stats or lanes, lanes, self.weights)}"

    @property
    def weights(self) -> mx.array | None:
        """The weights of the lanes; they add up to 1."""
        return None if self.log_weights is None else mx.softmax(self.log_weights)

    @property
    def bad(self) -> bool:
        return self.node.bad

    def _place(self) -> str:
        return f"at {path(self.address)}" if self.address else ""

    def _score(self, screen: Screen) -> str:
        if self.address:
            return "" if self.node.lp is None else f"lp {density(self.node.lp)}"
        if self.root.lp is None and self.root.count:
            return "score not computed (--lp)"
        return f"score {weight_text(self.thing.score, screen)}"


class _Layout:
    """Which rows of a tree are shown, and what they say."""

    def __init__(self, tree: Tree, screen: Screen, budget: int, folds: bool):
        self.tree, self.look, self.screen = tree, tree.look, screen
        self.budget, self.folds, self.bytes = budget, folds, 0

    def rows(self) -> list[Row]:
        node = self.tree.node
        rows = [] if self.tree.log_weights is None else [self._weights_row()]
        if node.children is None:
            return [*rows, self._leaf(node, self.budget - 1, split=True)]
        return [*rows, *self._below(node, 0, self.budget - len(rows))]

    def _weights_row(self) -> Row:
        weights = self.tree.weights
        assert weights is not None
        ess = 1 / host(mx.sum(weights * weights))
        row = Row(label="log weights")
        row.bars = show(self.tree.log_weights, self.screen, True).bars
        row.note = f"ess {ess:,.1f} of {weights.size:,}, largest {host(mx.max(weights)):.2g}"
        return row

    def _below(self, node: Node, depth: int, budget: int) -> list[Row]:
        kids = node.kids
        first = self._first(node, depth)
        if first + (first < len(kids)) > budget:
            first = max(0, budget - 1)
        hidden = len(kids) - first
        spare = budget - first - (hidden > 0)
        shares = shared([self._wanted(kid, depth + 1) for kid in kids[:first]], spare) if spare > 0 else [0] * first
        rows = [self._row(kid, depth + 1, share) for kid, share in zip(kids, shares, strict=False)]
        return [*rows, self._more(node, hidden, len(kids))] if hidden else rows

    def _first(self, node: Node, depth: int) -> int:
        """How many of the rows right below a node are shown if there is room."""
        n = len(node.children or ())
        return _FOLDED if self.folds and depth > 0 and n >= _LEAST and pattern(node) is not None else n

    def _wanted(self, node: Node, depth: int) -> int:
        """How many rows there are below a node."""
        if node.children is None:
            return self._elements(node) if self.look.lp else 0
        if depth >= self.look.depth or self._is_one_row(node):
            return 0
        first = self._first(node, depth)
        wanted = first + (first < len(node.children))
        for kid in node.kids[:first]:
            wanted += self._wanted(kid, depth + 1)
            if wanted > self.budget:
                break
        return wanted

    def _is_one_row(self, node: Node) -> bool:
        """Whether it is one entry of a numbered submap, with a few small values."""
        return (
            not self.look.lp
            and type(node.address[-1]) is int
            and 0 < len(node.children or ()) <= _TOGETHER
            and all(kid.children is None and getattr(kid.value, "size", 1) <= IN_FULL for kid in node.kids)
            and not any(isinstance(kid.value, Masked) for kid in node.kids)
        )

    def _row(self, node: Node, depth: int, budget: int) -> Row:
        if node.children is None:
            return self._leaf(node, budget)
        row = self._plain(node)
        if self._is_one_row(node):
            row.value = "  ".join(f"{text_of(kid.address[-1])} {self._value(kid).text}" for kid in node.kids)
            row.mark += "".join(m for m in "*~" if all(m in kid.marks for kid in node.kids))
            return row
        row.rows = self._below(node, depth, budget) if budget > 0 and depth < self.look.depth else []
        if not row.rows:
            row.remark = self._hint(node)
        form = None if row.rows and len(node.kids) == 1 else pattern(node, self.tree.lanes is not None)
        flat = form is not None and all(kid.children is None for kid in node.kids)
        if flat and node.observed == node.count:
            row.note = f"{node.count:,} obs"
        else:
            row.note = form or ("" if row.rows else addresses(node.count))
            if node.observed:
                row.note = f"{row.note or addresses(node.count)}, {node.observed:,} obs"
        if form is not None and node.lp is not None:
            kids = node.kids
            self._densities(row, [kid.lp or 0.0 for kid in kids], lambda i: path(kids[i].address))
        return row

    def _plain(self, node: Node) -> Row:
        row = Row(node.address, text_of(node.address[-1]) if node.address else "value")
        row.mark, row.bad = "!" * node.bad + node.marks, node.bad
        row.lp = "" if node.lp is None else density(node.lp)
        return row

    def _leaf(self, node: Node, budget: int, split: bool = False) -> Row:
        row = self._plain(node)
        shown = self._value(node)
        row.value, row.kind, row.bars = shown.text, kind(node.value, self.tree.lanes is not None), shown.bars
        if shown.bad and not node.bad:
            row.mark, row.bad = f"!{row.mark}", True
        each = self._elementwise(node)
        if node.lanes_bad:
            row.remark = f"{node.lanes_bad:,} of {self.tree.lanes:,} not finite"
        elif each:
            self._densities(row, each, lambda i: f"[{i}]")
        if (self.look.lp or split) and budget > 0 and self._elements(node):
            row.rows = self._split(node, each, budget)
        return row

    def _elements(self, node: Node) -> int:
        """How many elements a value has along its first axis, if it is to be shown by them."""
        value = node.value
        one = not isinstance(value, mx.array) or self.tree.lanes is not None or value.ndim == 0 or value.shape[0] < 2
        return 0 if one or value.nbytes > SHOWN_BYTES else value.shape[0]

    def _split(self, node: Node, each: list[float] | None, budget: int) -> list[Row]:
        """A row for each element of an array along its first axis."""
        n = self._elements(node)
        first = n if n <= budget else max(0, budget - 1)
        rows = []
        for i in range(first):
            row, shown = Row((*node.address, i), f"[{i}]"), show(node.value[i], self.screen, self.look.stats)
            row.value, row.kind, row.bars = shown.text, kind(node.value[i]), shown.bars
            row.bad = shown.bad or each is not None and not math.isfinite(each[i])
            row.lp, row.mark = "" if each is None else density(each[i]), "!" * row.bad
            rows.append(row)
        return [*rows, self._more(node, n - first, n)] if first < n else rows

    def _elementwise(self, node: Node) -> list[float] | None:
        """The log densities along the first axis of an array."""
        if len(node.sites) != 1 or node.lp is None or not getattr(node.value, "ndim", 0):
            return None
        site = node.sites[0]
        if site.at and site.at[-1] is None and not any(place is None for place in site.at[:-1]):
            return [added(row) for row in picked(host(site.scores), site.at)]
        each = site.elementwise()
        return None if each is None else host(each)

    def _densities(self, row: Row, each: Sequence[float], name: Callable[[int], str]) -> None:
        """The picture of some densities, unless there is one of values, and which is the worst."""
        if len(each) < _LEAST:
            return
        row.line = () if row.bars else each
        worst = min(range(len(each)), key=lambda i: -math.inf if math.isnan(each[i]) else each[i])
        row.remark = row.remark or f"worst {name(worst)} {density(each[worst])}"

    def _value(self, node: Node) -> Shown:
        value = value_of(node.value)
        self.bytes += size if (size := getattr(value, "nbytes", 0)) + self.bytes <= SHOWN_BYTES else 0
        if self.bytes + size > SHOWN_BYTES and size:
            return Shown("(not shown)")
        try:
            return show(node.value, self.screen, self.look.stats or self.tree.lanes is not None, self.tree.weights)
        except Exception as error:  # what a lazy array raises is raised where it is first looked at
            return Shown(f"(cannot be computed: {type(error).__name__})", bad=True)

    def _hint(self, node: Node) -> str:
        return f"(%trace {self.look.name} {path(node.address)})"

    def _more(self, node: Node, hidden: int, n: int) -> Row:
        where = f" {path(node.address)}" if node.address else ""
        room = -(-(n + 1) // 50) * 50
        return Row(label=f"... {hidden:,} more", note=f"(%trace {self.look.name}{where} --max {room})", more=True)


def shared(wanted: Sequence[int], budget: int) -> list[int]:
    """A budget, dealt out so that nobody gets more than wanted, and those that want little get it all.

    >>> shared([1, 10, 10], 11), shared([1, 2], 9), shared([5, 5], 3)
    ([1, 5, 5], [1, 2], [0, 3])
    """
    given, left = [0] * len(wanted), budget
    waiting = sorted(range(len(wanted)), key=wanted.__getitem__)
    for place, i in enumerate(waiting):
        share = min(wanted[i], left // (len(waiting) - place))
        given[i] = share if share > 1 or share == wanted[i] else 0  # a row that says "... 8 more" is of no use
        left -= given[i]
    return given


def pattern(node: Node, lanes: bool = False) -> str | None:
    """``8 x {z, eff}`` of a submap whose keys are integers and whose entries are alike; else None."""
    keys, kids = list(node.children or {}), node.kids
    if not keys or any(type(key) is not int for key in keys):
        return None
    form = _form(kids[0])
    if any(_form(kid) != form for kid in kids):
        return None
    start, stop = keys[0], keys[-1]
    where = f" from {start} to {stop}" if stop - start >= len(keys) else f" at {start}..{stop}"
    where = "" if start == 0 and stop == len(keys) - 1 else f" at {start}" if start == stop else where
    if kids[0].children is None:
        return f"{len(keys):,} x {kind(kids[0].value, lanes)}{where}"
    return f"{len(keys):,} x {names(kids[0])}{where}"


def names(node: Node) -> str:
    """``{z, eff}``: what is right below a submap."""
    parts = [text_of(part) for part in node.children or ()]
    return f"{{{', '.join(parts[:4])}{', ...' if len(parts) > 4 else ''}}}"


def _form(node: Node) -> Any:
    if node.children is None:
        value = node.value
        return (value.dtype, value.shape) if hasattr(value, "dtype") else type(value)
    return tuple([(part, _form(kid)) for part, kid in node.children.items()])
