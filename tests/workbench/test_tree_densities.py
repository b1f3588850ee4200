"""The log density column: of each address and each element, against oracles that never call the library."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from gfi_zoo import CASES
from nestings import COMBINATORS, leaves, nesting, outer_model
from scipy import stats

from genmlx import dist, flip, gen, map_over, mask, normal, trace, unfold, vmap
from genmlx.combinators import whole
from workbench.render.tree import Look, Tree

PAIRS = [*((kind,) for kind in COMBINATORS), *itertools.product(COMBINATORS, repeat=2)]


def near(a, b):
    """Float32 sums of a few dozen terms."""
    return a == b or math.isclose(a, b, rel_tol=2e-5, abs_tol=3e-4)


def plain(choices):
    return {a: np.array(v) if getattr(v, "ndim", 0) else v.item() for a, v in choices.items()}


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_every_model_of_the_zoo(case):
    tr = case.model.simulate(case.args, key=mx.random.key(1))
    expected = case.oracle(case.args, plain(tr.choices))
    tree = Tree(tr)
    assert {a: tree.root.at(a).lp for a in expected}.keys() == set(tr.choices)
    for address, lp in expected.items():
        assert near(tree.root.at(address).lp, lp), address
    if expected:
        assert near(tree.root.lp, sum(expected.values()))


def by_address(cells):
    found = {}
    for (address, _), (lp, _) in cells.items():
        found[address] = found.get(address, 0.0) + lp
    return found


@pytest.mark.parametrize("path", PAIRS, ids=".".join)
def test_nested_combinators_alone_and_in_a_batch(path, monkeypatch):
    """A step of the wrong row, an axis summed in the place of another, or a branch counted twice would show."""
    if len(path) == 1 or len("".join(path)) % 2 or path[-1] in ("unfold", "scan", "map_over"):
        monkeypatch.setattr(whole, "LEAST", 2)  # two steps are a long sequence, which is run as a whole
    model = outer_model(nesting(path, 7), 0)
    args = model.variants[0]
    tr = model.gf.simulate(args, key=mx.random.key(3))
    for address, lp in by_address(model.oracle(args, leaves(tr.choices))[0]).items():
        assert near(Tree(tr).root.at(address).lp, lp), address
    batch = model.gf(*args).vsimulate(3, key=mx.random.key(4))
    lanes = [by_address(model.oracle(args, leaves(one.choices))[0]) for one in batch]
    root = Tree(batch).root
    for address in set().union(*lanes):
        mean = sum(lane.get(address, 0.0) for lane in lanes) / 3
        assert near(root.at(address).lp, mean), address


def lps(rows):
    return [float(row.lp.replace(",", "")) for row in rows]


def test_elements_of_arrays_and_of_vmaps():
    """Steps outside of a vmap and inside, and a site that is a product: which axis is whose."""

    @gen
    def step(t, x):
        trace("draws", vmap(normal)(mx.arange(3.0) + t, mx.ones((3,))))
        return x

    @gen
    def model():
        trace("chain", unfold(step)(70, 0.0))
        trace("site", normal(mx.arange(4.0), 2.0))
        trace("rows", normal(mx.zeros((2, 3)), 1.0))

    tr = model().simulate(key=mx.random.key(0))
    for t in (0, 17, 69):
        rows = Tree(tr, Look(lp=True), ("chain", t, "draws")).rows()[0].rows
        expected = stats.norm.logpdf(np.array(tr.choices["chain", t, "draws"]), np.arange(3.0) + t)
        assert lps(rows) == pytest.approx(expected, abs=0.0051)
    rows = Tree(tr, Look(lp=True)).rows()[1].rows
    expected = stats.norm.logpdf(np.array(tr["site"]), np.arange(4.0), 2)
    assert lps(rows) == pytest.approx(expected, abs=0.0051)
    rows = Tree(tr, Look(lp=True)).rows()[2].rows
    assert lps(rows) == pytest.approx(stats.norm.logpdf(np.array(tr["rows"])).sum(axis=1), abs=0.0051)


def test_a_site_with_parameters_of_another_shape_than_its_value():
    """Event axes are summed: a covariance is no batch of the vector it belongs to."""

    @gen
    def model():
        trace("x", dist.multivariate_normal(mx.zeros((2,)), mx.eye(2)))

    row = Tree(model().simulate(key=mx.random.key(0)), Look(lp=True)).rows()[0]
    assert row.lp and [r.lp for r in row.rows] == ["", ""]


def test_lanes_that_are_not_there_count_nothing():
    @gen
    def model():
        on = trace("on", flip(0.5))
        trace("maybe", mask(normal)(on == 1, 0.0, 1.0))

    batch = model().vsimulate(40, key=mx.random.key(0))
    on = np.array(batch["on"])
    values = [one["maybe"].item() for one in batch if one["on"].item()]
    assert 0 < len(values) < 40
    assert near(Tree(batch).root.at(("maybe",)).lp, stats.norm.logpdf(values).sum() / 40)
    assert Tree(batch).root.at(("maybe",)).lanes_bad == 0 and on.sum() == len(values)


def test_impossible_lanes_are_counted_and_marked_up_to_the_root():
    @gen
    def model():
        trace(("under", "x"), normal(0, 1))
        trace(("under", "p"), dist.exponential(1.0))

    batch = model().vsimulate(5, key=mx.random.key(0))
    values = mx.array([1.0, -1.0, 2.0, -3.0, 0.5])
    impossible = batch.update(choicemap_of(values)).trace
    tree = Tree(impossible)
    under = tree.rows()[0]
    assert (under.mark, [row.mark for row in under.rows], under.rows[1].remark) == ("!", ["", "!"], "2 of 5 not finite")
    assert tree.bad and under.rows[1].lp == "-inf"


def choicemap_of(values):
    from genmlx import choicemap

    return choicemap({("under", "p"): values}).batched(5)


def test_a_sequence_that_has_grown():
    """Its steps are in stacks that begin at other steps than 0."""

    @gen
    def step(t, x):
        return trace("x", normal(x + t, 1.0))

    tr = unfold(step).simulate((20, 0.0), key=mx.random.key(0))
    for n in range(21, 91):
        tr = tr.update(args=(n, 0.0), key=mx.random.key(n)).trace
    assert len(tr.elements.stacks) > 1
    values = np.array([tr.choices[t, "x"].item() for t in range(90)])
    expected = stats.norm.logpdf(values, np.concatenate([[0.0], values[:-1]]) + np.arange(90))
    assert [Tree(tr).root.at((t, "x")).lp for t in range(90)] == pytest.approx(expected, abs=1e-3)


def test_a_step_of_another_structure_is_read_from_its_own_trace():
    """And not from the stack that it was in."""

    @gen
    def either(mu):
        if trace("b", flip(0.3)).item():
            return trace("c", normal(mu, 1))
        return trace("d", normal(mu, 2))

    choices = {(t, "b"): 1 for t in range(40)} | {(t, "c"): t / 10 for t in range(40)}
    tr = map_over(either).generate(([0.0] * 20,), {a: v for a, v in choices.items() if a[0] < 20}).trace
    tr = tr.update({a: v for a, v in choices.items() if a[0] >= 20}, args=([0.0] * 40,)).trace
    tr = tr.update({(5, "b"): 0, (5, "d"): 1.0}).trace
    assert tr.elements.stacks and 5 in tr.elements.own
    root = Tree(tr).root
    assert root.at((5,)).lp == pytest.approx(np.log(0.7) + stats.norm.logpdf(1, 0, 2), abs=1e-5)
    assert root.at((6,)).lp == pytest.approx(np.log(0.3) + stats.norm.logpdf(0.6), abs=1e-5)
    assert near(root.lp, tr.score.item())
