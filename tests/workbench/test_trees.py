"""Trees and differences as text, at three widths: see golden/*.txt. Every choice is given: nothing is random."""

import itertools
import math
import re
from pathlib import Path

import golden
import mlx.core as mx
import pytest

from genmlx import (
    choicemap,
    delta,
    dist,
    exponential,
    flip,
    gen,
    map_over,
    mask,
    normal,
    select,
    switch,
    trace,
    unfold,
    vmap,
)
from genmlx.selection import NONE
from genmlx.vectorized import vgenerate
from workbench.render.diff import change_block, diff_block
from workbench.render.screen import Screen
from workbench.render.text import tree_text
from workbench.render.tree import Look, Tree
from workbench.render.values import summary

HERE = Path(__file__).parent
XS, YS = mx.arange(1, 6).astype(mx.float32), [2.1, 3.9, 6.2, 7.8, 10.1]
WIDTHS = [60, 88, 120]


@gen.new
def line(xs):
    slope = trace("slope", normal(0, 10))
    intercept = trace("intercept", normal(0, 2))
    for i, x in enumerate(xs):
        trace(("y", i), normal(slope * x + intercept, 1))
    return slope


@gen.new
def group(tau):
    z = trace("z", normal(0, 1))
    return trace("eff", delta(z * tau))


@gen.new
def step(t, state):
    return trace("x", normal(state, 1.0))


@gen.new
def hier(n, *, scale=1.0):
    tau = trace("tau", exponential(0.5))
    effects = trace("theta", map_over(group)([tau] * n))
    trace("y", normal(mx.stack(effects), scale))
    trace(("walk", "steps"), unfold(step)(60, 0.0))
    trace("pixels", normal(mx.zeros((40, 25)), 1.0))
    trace("counts", vmap(dist.poisson)(mx.full((30,), 3.0)))
    return mx.stack(effects)


def hier_trace():
    zs = [0.5, -0.25, 1.0, 0.75, -1.5, 0.0, 2.0, -0.125]
    given = {("theta", i, "z"): z for i, z in enumerate(zs)} | {("theta", i, "eff"): 2 * z for i, z in enumerate(zs)}
    given |= {("walk", "steps", t, "x"): math.sin(t / 5) for t in range(60)}
    given |= {"tau": 2.0, "y": [2 * z + 0.5 for z in zs], "counts": [t % 7 for t in range(30)]}
    given["pixels"] = [[math.sin(i * i + j) for j in range(25)] for i in range(40)]
    return hier.generate((8,), given).trace


@gen.new
def near(mu):
    return trace("u", normal(mu, 1))


@gen.new
def far(mu):
    trace("w", flip(0.25))
    return trace("u", normal(mu, 3))


@gen.new
def branches():
    which = trace("which", dist.categorical(mx.zeros((2,))))
    trace("one", switch(near, far)(which, 1.0))
    trace("off", mask(near)(False, 0.0))
    trace("many", vmap(switch(near, far))(mx.array([0, 1, 1]), mx.zeros((3,))))
    return [which, which]


def line_trace():
    return line.generate((XS,), {"slope": 1.983, "intercept": 0.112, ("y",): dict(enumerate(YS))}).trace


def line_batch():
    slopes = mx.arange(200) / 100
    given = choicemap({"slope": slopes, "intercept": 1 - slopes}).batched(200)
    data = choicemap({("y", i): mx.full((200,), y) for i, y in enumerate(YS)}).batched(200)
    return vgenerate(line(XS), given.merge(data), 200)


def scores(n):
    @gen.new
    def flat():
        for i in range(n):
            trace(f"site{i}", normal(0, 1))

    return flat.generate((), {f"site{i}": i / 10 for i in range(n)}).trace


def odd_values():
    return choicemap(
        {
            "lost": math.nan,
            "label": "a text",
            "list": [1, 2, 3],
            ("an odd name", 3): mx.array([1.0, math.inf, 2.0]),
            "long_and_telling_name_of_an_address_that_goes_on_and_on": mx.arange(100) / 8,
            "gaps": mx.array([1.0, 2.0] * 5 + [math.nan] * 3 + [-math.inf]),
            "huge": mx.zeros((3000, 3000)),
            "none": mx.zeros((0, 3)),
            "flags": mx.arange(20) > 3,
            "kinds": mx.arange(20) % 3,
            "matrix": mx.array([[1, 2], [3, 4]]),
            **{("q", i): i * i for i in range(3, 12)},
            **{("r", 2 * i): i for i in range(5)},
            **{("mixed", i): mx.zeros((i + 1,)) for i in range(6)},
        }
    )


def impossible():
    return line_trace().update({"intercept": 3e19, ("y", 1): -1e25}).trace


def line_tree(**more):
    tr = line_trace()
    weight = tr.project(select("y"))
    return Tree(tr, Look(name="_tr"), observed=select("y"), weight=weight, **more)


def weighted():
    batch, weights = line_batch()
    return Tree(batch, Look(name="post.traces"), observed=select("y"), log_weights=weights)


TREES = {
    "line": line_tree,
    "line_at_y": lambda: Tree(line_trace(), Look(name="_tr"), ("y",), select("y")),
    "line_max": lambda: Tree(line_trace(), Look(rows=6)),
    "hier": lambda: Tree(hier_trace(), Look(name="_tr"), observed=select("y", "counts", ("theta", 0))),
    "hier_depth": lambda: Tree(hier_trace(), Look(name="_tr", depth=1)),
    "hier_rows": lambda: Tree(hier_trace(), Look(name="_tr", rows=9)),
    "hier_lp": lambda: Tree(hier_trace(), Look(name="_tr", rows=35, lp=True, stats=True)),
    "pixels": lambda: Tree(hier_trace(), Look(name="_tr", rows=5), ("pixels",)),
    "branches": lambda: Tree(
        branches.generate(
            (), {"which": 1, "one": {"u": 0.5, "w": 1}, "many": {"u": [0.0, 1.0, 2.0], "w": [0, 0, 1]}}
        ).trace
    ),
    "batch": lambda: Tree(line_batch().trace, Look(name="_tr")),
    "weighted": weighted,
    "flat": lambda: Tree(scores(100), Look(name="tr")),
    "odd_values": lambda: Tree(odd_values(), Look(name="cm")),
    "impossible": lambda: Tree(impossible(), Look(name="_tr")),
    "draw": lambda: Tree(normal(0, 1).generate(0.5).trace),
    "empty": lambda: Tree(choicemap()),
}


@pytest.mark.parametrize("name", TREES)
def test_trees(name):
    shown = []
    for width in WIDTHS:
        text = tree_text(TREES[name](), Screen(width))
        assert all(len(row) <= width for row in text.splitlines())
        assert len(text.splitlines()) <= 42
        shown.append(f"{width} columns\n{text}")
    plain = tree_text(TREES[name](), Screen(88, ascii=True))
    assert plain.isascii() and all(len(row) <= 88 for row in plain.splitlines())
    golden.assert_golden(HERE, f"tree_{name}", "\n\n".join([*shown, f"ASCII\n{plain}"]))


def regenerated(old, changes, selection):
    """What a regeneration gives that happens to draw these values."""
    new = old.update(changes).trace
    return "regenerate", new, mx.array(0.0), None, selection, old


def update(old, changes):
    new, weight, _, discard = old.update(changes)
    return "update", new, weight, discard, NONE, old


def other_model():
    @gen.new
    def line(xs):
        slope = trace("slope", normal(0, 10))
        noise = trace("noise", exponential(1.0))
        for i, x in enumerate(xs):
            trace(("y", i), normal(slope * x, noise))

    return line.generate((XS,), {"slope": 1.983, "noise": 0.5, ("y",): dict(enumerate(YS))}).trace


BLOCKS = {
    "set_slope": lambda s: change_block(*update(line_trace(), {"slope": 2.5}), s),
    "set_points": lambda s: change_block(*update(line_trace(), {("y", 3): 1.0, ("y", 4): 2.0, "slope": 2.0}), s),
    "set_nothing": lambda s: change_block(*update(line_trace(), {}), s),
    "set_impossible": lambda s: change_block(*update(hier_trace(), {"tau": 3.0}), s),
    "set_many": lambda s: change_block(
        *update(hier_trace(), {("walk", "steps"): {t: {"x": t / 10} for t in range(60)}, "y": [0.0] * 8}), s
    ),
    "set_batch": lambda s: change_block(*update(line_batch().trace, {"slope": 1.0}), s),
    "redo": lambda s: change_block(*regenerated(line_trace(), {"slope": 2.0, ("y", 0): 2.2}, select("slope", "y")), s),
    "traces": lambda s: diff_block(line_trace(), other_model(), s),
    "choice_maps": lambda s: diff_block(
        line_trace().choices, line_trace().choices.set("slope", {"a": 1.0}).set(("z", 0), mx.zeros((9,))), s
    ),
    "arrays": lambda s: diff_block(
        choicemap(a=mx.zeros((10, 10)), b=[1, 2], c=1, d=mx.arange(50), nan=[math.nan] * 7, t="x"),
        choicemap(
            a=mx.zeros((10, 10)).at[3, 4].add(-1), b=[1, 2, 3], c=1.0, d=mx.arange(50) % 40, nan=[math.nan] * 7, t="y"
        ),
        s,
    ),
    "crowd": lambda s: diff_block(scores(50), scores(50).update({f"site{i}": -1.0 for i in range(45)}).trace, s),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_differences(name):
    shown = []
    for width in WIDTHS:
        text = BLOCKS[name](Screen(width)).text(Screen(width))
        assert all(len(row) <= width for row in text.splitlines())
        shown.append(f"{width} columns\n{text}")
    golden.assert_golden(HERE, f"diff_{name}", "\n\n".join(shown))


def test_the_target_screen():
    """The two worked screens: log densities of these numbers found by hand."""
    shown = tree_text(line_tree(), Screen(88))
    for part in ("score -9.51   log weight -4.65", "-3.24", "-1.61", "5 obs", "worst y[3] -0.95", "... 3 more"):
        assert part in shown
    block = BLOCKS["set_slope"](Screen(88)).text().splitlines()
    assert block[0].endswith("log weight -7.64   score -17.15")
    assert block[1].split() == ["slope", "1.983", "->", "2.5", "lp", "-3.24", "->", "-3.25"]
    assert block[2].split() == ["y", "(5)", "unchanged", "values", "lp", "-4.65", "->", "-12.28"]
    assert block[3] == "discard {slope: 1.983}"


@pytest.mark.parametrize("scale", [3e37, 1e-30])
def test_deviations_of_huge_and_tiny_numbers(scale):
    """Their squares are beyond float32; the deviation of 1 to 8 is sqrt(6), and the histogram is that of 1 to 8."""
    shown = summary(mx.arange(1, 9).astype(mx.float32) * scale)
    assert shown.text == f"{4.5 * scale:.4g} ± {6**0.5 * scale:.4g} [{scale:.4g}, {8 * scale:.4g}]"
    assert shown.bars == summary(mx.arange(1, 9).astype(mx.float32)).bars


@pytest.mark.parametrize("width", WIDTHS)
def test_the_scores_of_a_difference_are_never_cut_off(width):
    old = line_trace()
    new = old.update({"slope": 2000.0}).trace  # which is 1998.02 off, at x from 1 to 5: -1998.02^2 * 55 / 2 and more
    text = diff_block(old, new, Screen(width)).text(Screen(width))
    assert re.search(r"score -9\.51 -> -1\.098e\+08 \(-1\.098e\+08\)$", text, re.MULTILINE) and "…" not in text


def test_what_is_large_and_lazy_is_not_computed():
    """A terabyte stays a promise; so does the density of what is too large, until it is asked for."""
    vast = mx.zeros((1 << 19, 1 << 19)) + 1
    before = mx.get_active_memory()
    assert "(not shown)" in tree_text(Tree(choicemap(vast=vast, small=1.0)))
    diff_block(choicemap(vast=vast), choicemap(vast=vast + 1), Screen())
    assert mx.get_active_memory() - before < 1 << 20

    @gen.new
    def large(n):
        trace("x", normal(mx.zeros((n,)), 1.0))

    tr = large.generate((17 << 20,), {"x": mx.zeros((17 << 20,))}).trace
    text = tree_text(Tree(tr))
    assert "score not computed (--lp)" in text and "(not shown)" in text
    assert "score -1.638e+07" in tree_text(Tree(tr, Look(lp=True)))  # 17 * 2^20 times log sqrt(2 pi)


def test_a_value_that_cannot_be_computed():
    """An array that is being traced by a transformation has no value to show, and says so in its row."""
    shown = []

    def look(x):
        shown.append(tree_text(Tree(choicemap(x=x, y=1.0))))
        return x

    mx.vmap(look)(mx.zeros((3,)))
    assert "cannot be computed: ValueError" in shown[0] and "y     1" in shown[0]


def test_colours_change_nothing_else():
    colourful = tree_text(Tree(impossible()), Screen(88, color=True))
    assert "\x1b[31m" in colourful and "\x1b[2m" in colourful
    for code in ("\x1b[31m", "\x1b[2m", "\x1b[0m"):
        colourful = colourful.replace(code, "")
    assert colourful == tree_text(Tree(impossible()), Screen(88))


def test_order_of_addresses():
    """Names as they came, integers by size."""
    cm = choicemap({("z", 10): 1.0, ("z", 2): 1.0, "b": 1.0, "a": 1.0, ("z", "name"): 1.0})
    tree = Tree(cm)
    assert [row.label for row in tree.rows()] == ["z", "b", "a"]
    assert [row.label for row in tree.rows()[0].rows] == ["name", "2", "10"]


@pytest.mark.parametrize(("rows", "n"), [*itertools.product([1, 2, 5, 40], [1, 3, 39, 40, 41, 1000])])
def test_the_budget(rows, n):
    """Never more rows than asked for; and where all fit, all."""
    tree = Tree(choicemap({f"site{i}": 0.0 for i in range(n)}), Look(rows=rows))
    shown = tree.rows()
    assert len(shown) == min(rows, n)
    hidden = [row for row in shown if row.more]
    assert sum(not row.more for row in shown) + (int(hidden[0].label.split()[1].replace(",", "")) if hidden else 0) == n


def test_the_hint_shows_all():
    """What a "... more" row says is what shows the rest."""
    tree = Tree(hier_trace())
    steps = tree.rows()[3].rows[0]
    assert steps.rows[-1].note == "(%trace _ walk.steps --max 100)"
    unfolded = Tree(hier_trace(), Look(rows=100), ("walk", "steps")).rows()
    assert len(unfolded) == 60 and not unfolded[-1].more
