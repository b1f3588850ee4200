"""The differences of two choice maps, traces or posteriors: only what changed, and how much did not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.choicemap import ChoiceMap
from genmlx.errors import name_of
from genmlx.masked import Masked, value_of
from genmlx.selection import NONE, Selection
from workbench.render.block import Block
from workbench.render.head import addresses, title, version_of, weight_text
from workbench.render.nodes import Node, path
from workbench.render.screen import PLAIN, Screen
from workbench.render.tree import Tree, names, pattern
from workbench.render.values import IN_FULL, density, host, kind, number, show

ROWS = 40
_TOGETHER = 6  # entries of a numbered submap that are told one by one when they change
_COMPARED_BYTES = 64 * 2**20  # of one value


class Change(NamedTuple):
    """What became of one address, or of all under it.

    ``kind`` is "changed", "added" or "removed", or "rescored" where only log densities are others.
    """

    kind: str
    address: tuple
    what: str
    old_lp: float | None = None
    new_lp: float | None = None
    count: int = 1
    sign: str = " "

    def cells(self) -> tuple[str, str, str, str]:
        label = path(self.address) if self.address else "value"
        impossible = self.new_lp is not None and not math.isfinite(self.new_lp)
        label = f"{label} ({self.count:,})" if self.count > 1 else label
        return "!" if impossible else self.sign, label, self.what, self._densities()

    def _densities(self) -> str:
        old, new = ("" if lp is None else density(lp) for lp in (self.old_lp, self.new_lp))
        if self.kind in ("added", "removed"):
            return f"lp {new or old}" if new or old else ""
        return f"lp {old} -> {new}" if old and new and old != new else ""


class Diff:
    """The ``changes`` from one tree to another: addresses that both have are ``kept``, of equal value the ``same``."""

    def __init__(self, old: Tree, new: Tree, redrawn: Selection = NONE, screen: Screen = PLAIN):
        self.screen, self.redrawn, self.lanes = screen, redrawn, new.lanes is not None
        self.same = self.kept = 0
        self._equal = _compared(old.node, new.node)
        self.changes = list(self._of(old.node, new.node, top=True))

    def block(self, head: str, budget: int, foot: Sequence[str] = ()) -> Block:
        return cut(head, [change.cells() for change in self.changes], budget, foot)

    def _of(self, old: Node | None, new: Node | None, top: bool = False) -> Iterator[Change]:
        if old is None or new is None:
            yield self._alone(old, new)
        elif old.children is not None and new.children is not None:
            yield from self._submap(old, new, top)
        elif old.children is None and new.children is None:
            yield from self._leaf(old, new)
        else:
            yield self._alone(old, None)
            yield self._alone(None, new)

    def _alone(self, old: Node | None, new: Node | None) -> Change:
        node = new or old
        assert node is not None
        what = self._text(node.value) if node.children is None else pattern(node, self.lanes) or names(node)
        if new is None:
            return Change("removed", node.address, what, node.lp, None, node.count, "-")
        return Change("added", node.address, what, None, node.lp, node.count, "+")

    def _leaf(self, old: Node, new: Node) -> Iterator[Change]:
        self.kept += 1
        sign = "~" if new.address in self.redrawn else " "
        if not self._same(old.value, new.value):
            yield Change("changed", new.address, self._change(old.value, new.value), old.lp, new.lp, 1, sign)
            return
        self.same += 1
        if old.lp is not None and new.lp is not None and density(old.lp) != density(new.lp):
            yield Change("rescored", new.address, "unchanged value", old.lp, new.lp, 1, sign)

    def _submap(self, old: Node, new: Node, top: bool) -> Iterator[Change]:
        mine, theirs = old.children or {}, new.children or {}
        parts = [*mine, *(part for part in theirs if part not in mine)]
        found = [change for part in parts for change in self._of(mine.get(part), theirs.get(part))]
        changed = [change for change in found if change.kind == "changed"]
        if not top and len(changed) > _TOGETHER and pattern(new) is not None and mine.keys() == theirs.keys():
            signs = {change.sign for change in changed}
            what = f"{len(changed):,} changed{self._furthest(changed, old, new)}"
            sign = signs.pop() if len(signs) == 1 else " "
            yield Change("changed", new.address, what, old.lp, new.lp, new.count, sign)
            return
        rescored = [change for change in found if change.kind == "rescored"]
        if top or not rescored:
            yield from found
            return
        yield from [change for change in found if change.kind != "rescored"]
        count = sum(change.count for change in rescored)
        what = "unchanged values" if count == new.count else f"{count:,} unchanged values"
        before, after = sum(c.old_lp or 0.0 for c in rescored), sum(c.new_lp or 0.0 for c in rescored)
        if len(rescored) == len(found):  # with those whose density has not changed either
            before, after, count, what = old.lp or 0.0, new.lp or 0.0, new.count, "unchanged values"
        if density(before) != density(after):
            yield Change("rescored", new.address, what, before, after, count)

    def _furthest(self, changed: Sequence[Change], old: Node, new: Node) -> str:
        """Which of many numbers has moved the most."""
        distances: list[tuple[float, tuple]] = []
        for change in changed:
            rest = change.address[len(new.address) :]
            a, b = (_array(getattr(node.at(rest), "value", None)) for node in (old, new))
            if a is None or b is None or a.shape != b.shape or a.size != 1:
                return ""
            distances.append((abs(float(host(b)) - float(host(a))), rest))
        most, rest = max(distances, key=lambda pair: (math.isfinite(pair[0]), pair[0]))
        return f", max|d| = {most:.4g} at {path((*new.address, *rest))}"

    def _same(self, a: Any, b: Any) -> bool:
        if a is b:
            return True
        found = self._equal.get((id(a), id(b)))
        if found is not None:
            return found
        if isinstance(a, Masked) or isinstance(b, Masked):
            return isinstance(a, Masked) and a.equals(b)
        x, y = _array(a), _array(b)
        if x is None or y is None:
            return bool(a == b)
        return x.shape == y.shape and x.nbytes <= _COMPARED_BYTES and bool(_array_equal(x, y).item())

    def _change(self, a: Any, b: Any) -> str:
        x, y = _array(value_of(a)), _array(value_of(b))
        if x is None or y is None or x.shape != y.shape or max(x.size, y.size) <= IN_FULL or isinstance(a, Masked):
            if x is not None and y is not None and x.shape != y.shape:
                return f"{kind(a, self.lanes)} -> {kind(b, self.lanes)}"
            return f"{self._text(a)} -> {self._text(b)}"
        if x.nbytes > _COMPARED_BYTES:
            return f"{kind(b)}  (not compared)"
        if self.lanes:
            return f"{self._text(a)} -> {self._text(b)}"
        if not mx.issubdtype(y.dtype, mx.floating):
            return f"{host(mx.sum(x != y)):,} of {x.size:,} changed"
        d = mx.abs(y.astype(mx.float32) - x.astype(mx.float32)).reshape(-1)
        d = mx.where(mx.isnan(d), mx.where(mx.isnan(x.reshape(-1)) == mx.isnan(y.reshape(-1)), 0.0, math.inf), d)
        at = host(mx.argmax(d))
        return f"max|d| = {number(host(d[at]))} at [{','.join(map(str, _unravelled(at, x.shape)))}]"

    def _text(self, value: Any) -> str:
        if getattr(value_of(value), "nbytes", 0) > _COMPARED_BYTES:
            return f"{kind(value, self.lanes)}  (not shown)"
        text = show(value, self.screen, self.lanes).text
        return text.partition(" [")[0] if self.lanes else text  # without the range


def cut(head: str, rows: Sequence[tuple[str, ...]], budget: int, foot: Sequence[str]) -> Block:
    """A block of at most so many rows."""
    shown = rows if len(rows) <= budget else rows[: budget - 1]
    more = len(rows) - len(shown)
    rest = [f"... {more:,} more   (--max {-(-(len(rows) + 1) // 50) * 50})"] if more else []
    return Block(head, tuple(shown), (*rest, *foot))


def _array(value: Any) -> mx.array | None:
    if isinstance(value, mx.array):
        return value
    if not isinstance(value, (bool, int, float, list, tuple)) and not hasattr(value, "dtype"):
        return None
    try:
        return mx.array(value)
    except (TypeError, ValueError):
        return None


def _array_equal(a: mx.array, b: mx.array) -> mx.array:
    """With a NaN equal to a NaN."""
    return mx.all(mx.logical_or(a == b, mx.logical_and(a != a, b != b)))


def _compared(old: Node, new: Node) -> dict[tuple[int, int], bool]:
    """Which arrays at the same address are equal, found in one evaluation."""
    pairs: dict[tuple[int, int], mx.array] = {}
    waiting = [(old, new)]
    while waiting:
        a, b = waiting.pop()
        if a.children is not None and b.children is not None:
            waiting += [(kid, b.children[part]) for part, kid in a.children.items() if part in b.children]
        x, y = a.value, b.value
        arrays = isinstance(x, mx.array) and isinstance(y, mx.array)
        if arrays and x is not y and x.shape == y.shape and x.nbytes <= _COMPARED_BYTES:
            pairs[id(x), id(y)] = _array_equal(x, y)
    mx.eval(list(pairs.values()))
    return {key: bool(flag.item()) for key, flag in pairs.items()}


def _unravelled(index: int, shape: Sequence[int]) -> list[int]:
    found = []
    for n in reversed(shape):
        index, place = divmod(index, n)
        found.append(place)
    return found[::-1]


def change_block(
    verb: str,
    new: Any,
    weight: Any,
    discard: ChoiceMap | None,
    redrawn: Selection,
    old: Any,
    screen: Screen = PLAIN,
    rows: int = ROWS,
) -> Block:
    """What an update, a regeneration or a rebase has made of the ``old`` trace."""
    diff = Diff(Tree(old), Tree(new), redrawn, screen)
    versions = [version_of(new)] if old.version is new.version else [f"{old.version!r} -> {new.version!r}"]
    name = " ".join([verb, name_of(new.gen_fn), *filter(None, versions)])
    parts = [name, f"log weight {weight_text(weight, screen)}", f"score {weight_text(new.score, screen)}"]
    foot = [] if diff.changes else ["nothing has changed"]
    if discard is not None and not discard.is_empty:
        foot.append(f"discard {choices_text(discard, screen, screen.width - len('discard '))}")
    if any(change.kind in ("added", "removed") for change in diff.changes):
        foot.append(f"kept: {addresses(diff.kept)}")
    return diff.block("   ".join(parts), rows, foot)


def diff_block(old: Any, new: Any, screen: Screen, rows: int = ROWS) -> Block:
    """The differences of two traces, or of two choice maps, or of one of each."""
    diff = Diff(Tree(old), Tree(new), NONE, screen)
    names = ["choicemap" if isinstance(t, ChoiceMap) else title(t) for t in (old, new)]
    versions = ["" if isinstance(t, ChoiceMap) else version_of(t) for t in (old, new)]
    ends = [f"{name} {version}".strip() for name, version in zip(names, versions, strict=True)]
    if ends[0] == ends[1]:
        head = f"diff {ends[0]}"
    else:
        head = f"diff {ends[0]} -> {versions[1] if names[0] == names[1] else ends[1]}"
    foot = [f"same: {addresses(diff.same)}"]
    scores = [None if isinstance(t, ChoiceMap) else t.score for t in (old, new)]
    if all(isinstance(score, mx.array) and score.ndim == 0 for score in scores):
        a, b = map(host, scores)  # pyright: ignore[reportArgumentType]
        change = f"score {density(a)} -> {density(b)} ({'+' if b > a else ''}{density(b - a)})"
        if len(head) + 3 + len(change) <= screen.width:
            head += f"   {change}"
        else:
            foot.insert(0, change)
    return diff.block(head, rows, foot)


def posterior_block(old: Any, new: Any, screen: Screen, rows: int = ROWS) -> Block:
    """The means and deviations of two posteriors, and how far they are apart for their Monte Carlo errors."""
    mine, theirs = old.addresses(), new.addresses()
    found: list[tuple[str, ...]] = []
    for address in [*mine, *(a for a in theirs if a not in mine)]:
        if address not in theirs:
            found.append(("-", path(address), _moments(old, address, screen), ""))
        elif address not in mine:
            found.append(("+", path(address), _moments(new, address, screen), ""))
        else:
            what = f"{_moments(old, address, screen)} -> {_moments(new, address, screen)}"
            found.append((" ", path(address), what, _apart(old, new, address)))
    ends = [f"{p.algorithm} {p.chains}x{p.draws}" for p in (old, new)]
    return cut(f"diff {ends[0]} -> {ends[1]}", found, rows, ())


def _moments(posterior: Any, address: tuple, screen: Screen) -> str:
    mean, sd = posterior.mean(address), posterior.std(address)
    if mean.ndim == 0:
        return f"{number(mean.item())} {screen.within} {number(sd.item())}"
    return f"{show(mean, screen).text.partition(' [')[0] if mean.size > IN_FULL else show(mean, screen).text}"


def _apart(old: Any, new: Any, address: tuple) -> str:
    import numpy as np

    a, b = (np.asarray(posterior.mean(address), dtype=float) for posterior in (old, new))
    if a.shape != b.shape:
        return "shapes differ"
    error = np.hypot(*(np.asarray(posterior.mcse(address), dtype=float) for posterior in (old, new)))
    d = np.abs(b - a)
    at = int(np.argmax(np.nan_to_num(d / np.where(error > 0, error, np.nan))))
    place = f" at [{','.join(map(str, np.unravel_index(at, a.shape)))}]" if a.ndim else ""
    far, scale = float(d.reshape(-1)[at]), float(error.reshape(-1)[at])
    return f"d {far:.2g}{f' = {far / scale:.1f} mcse' if scale > 0 else ''}{place}"


def choices_text(choices: ChoiceMap, screen: Screen, width: int) -> str:
    """``{slope: 1.983, y[3]: 7.8, ...+4}``, as many as there is room for, and one at least."""
    shown: list[str] = []
    count = len(choices)
    for address, value in choices.items():
        plain = isinstance(value, (bool, int, float)) or getattr(value, "size", IN_FULL + 1) <= IN_FULL
        text = f"{path(address) if address else 'value'}: {show(value, screen).text if plain else kind(value)}"
        end = f", ...+{count - len(shown) - 1}" if len(shown) + 1 < count else ""
        if shown and len(", ".join([*shown, text])) + len(end) + 2 > width:
            return f"{{{', '.join(shown)}, ...+{count - len(shown)}}}"
        shown.append(text)
    return f"{{{', '.join(shown)}}}"
