"""What a summary warns of, and that it is silent when all is well."""

import math
import re

import mlx.core as mx
import numpy as np
import pytest
from posteriors import ERRORS, SCHOOLS

from genmlx import gen, mh, normal, nuts, trace
from genmlx.diagnostics import bfmi, summarize
from genmlx.dist import half_cauchy
from genmlx.inference import Posterior

SHAPE = (4, 500)


def normals(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape)


def well():
    """The statistics of a run in which nothing is wrong."""
    return {
        "accept": np.full(SHAPE, 0.85),
        "energy": normals(1),
        "diverging": np.zeros(SHAPE, bool),
        "tree_depth": np.full(SHAPE, 3),
        "n_leapfrog": np.full(SHAPE, 7),
        "reached_max_depth": np.zeros(SHAPE, bool),
        "step_size": np.full(SHAPE, 0.4),
    }


def some(count):
    found = np.zeros(SHAPE[0] * SHAPE[1], bool)
    found[:: SHAPE[0] * SHAPE[1] // count][:count] = True
    return found.reshape(SHAPE)


def test_nothing_is_said_when_all_is_well():
    table = summarize({"x": normals(), "k": normals(2) > 0, "c": np.ones(SHAPE)}, well())
    assert table.warnings == [] and "!" not in repr(table) and "!" not in table._repr_html_()


def test_nothing_is_said_of_a_run_in_which_all_is_well():
    @gen
    def model():
        trace("y", normal(trace("mu", normal(mx.zeros(2), 1.0)), 0.5))

    post = nuts(model(), {"y": mx.array([1.0, -1.0])}, draws=400, warmup=150, chains=4, key=1)
    assert post.summary().warnings == [] and "!" not in repr(post.summary())


def test_warnings_are_printed_in_text_and_html():
    table = summarize({"x": normals(), "y": normals(2)}, {**well(), "diverging": some(12)})
    (line,) = table.warnings
    assert repr(table).splitlines()[-1] == f"! {line}" and f"! {line}" in table._repr_html_()
    assert table["x"].name == "x" and table.extended("z", {(): (0.0,) * 8}, "a note").warnings[0] == line
    assert summarize({"v": normals(shape=(*SHAPE, 2))}, {**well(), "diverging": some(12)})["v"].warnings == [line]


@pytest.mark.parametrize(
    "accept, advice",
    [
        (0.8, "raise target_accept to 0.95, or reparameterise (non-centred)"),
        (0.95, "raise target_accept to 0.99, or reparameterise (non-centred)"),
        (0.985, "reparameterise (non-centred)"),
    ],
)
def test_divergences(accept, advice):
    """What is asked for must be more than what there is."""
    stats = {**well(), "diverging": some(12), "accept": np.full(SHAPE, accept)}
    assert summarize({"x": normals()}, stats).warnings == [f"12 of 2,000 draws diverged: {advice}"]


def test_divergences_of_steps_that_were_thinned():
    """A draw of ten steps of which one diverged has the number 0.1, not 0."""
    stats = {**well(), "diverging": 0.1 * some(3)}
    assert summarize({"x": normals()}, stats).warnings[0].startswith("3 of 2,000 draws diverged")


def test_tree_depth():
    assert summarize({"x": normals()}, {**well(), "reached_max_depth": some(40)}).warnings == [
        "40 of 2,000 trajectories were cut off at the largest tree depth: raise max_depth, or use dense=True or "
        "rescale if choices are correlated or of different scales"
    ]


def test_energy():
    """The chains are named, the worst number is said; and the energy of a random walk says nothing of this kind."""
    energy = normals(1)
    for chain, rho in ((1, 0.9), (3, 0.95)):
        for t in range(1, SHAPE[1]):
            energy[chain, t] = rho * energy[chain, t - 1] + math.sqrt(1 - rho**2) * energy[chain, t]
    lowest = bfmi(energy).min()
    assert lowest == bfmi(energy)[3] and sum(bfmi(energy) < 0.3) == 2
    (line,) = summarize({"x": normals()}, {**well(), "energy": energy}).warnings
    assert line.startswith(f"bfmi < 0.3 in chains 1, 3 ({lowest:.2f}): the tails are missed; reparameterise")
    assert summarize({"x": normals()}, {"accept": well()["accept"], "energy": energy}).warnings == []
    constant = {**well(), "energy": np.ones(SHAPE)}
    assert summarize({"x": normals()}, constant).warnings == []


def test_a_chain_that_never_moved():
    """That of a chain that is right to stay, at a value that is nearly certain, is not one of them."""
    x, accept = normals(shape=(*SHAPE, 2)), well()["accept"]
    x[2], accept[2] = [1.0, -1.0], 0.0
    stats = {**well(), "accept": accept}
    line = "chain 2 never moved: propose smaller steps, or take a longer warmup"
    assert line in summarize({"x": x}, stats).warnings
    assert line not in summarize({"x": x}, well()).warnings
    assert line not in summarize({"x": x, "y": normals()}, stats).warnings
    certain = {"k": np.ones(SHAPE)}
    assert summarize(certain, well()).warnings == []
    assert summarize(certain, {"accept": np.zeros(SHAPE)}).warnings == [
        "chains 0, 1, 2, 3 never moved: propose smaller steps, or take a longer warmup"
    ]


def test_few_draws():
    lines = summarize({"x": normals(shape=(4, 99))}).warnings
    assert lines[0] == "99 draws in each chain: too few to judge them by; take at least 100"
    assert not any("too few" in line for line in summarize({"x": normals(shape=(4, 100))}).warnings)


def test_chains_that_disagree():
    x = normals() + np.arange(4)[:, None]
    first, second = summarize({"x": x, "y": normals(2)}).warnings
    assert re.fullmatch(r"rhat > 1\.01: x \(1\.\d+\): the chains disagree; run longer, .*", first)
    assert re.fullmatch(r"bulk ess < 400: x \(\d\): means are rough; reparameterise, .*", second)


def correlated(rho, seed=0):
    x = normals(seed)
    for t in range(1, SHAPE[1]):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * x[:, t]
    return x


def test_effective_sizes():
    """How many times the draws, where that is a way out; a tail that is poor by itself."""
    table = summarize({"x": correlated(0.8)})
    size = table["x"].ess_bulk
    lines = [line for line in table.warnings if "ess" in line]
    assert 100 < size < 400 and lines == [
        f"bulk ess < 400: x ({math.floor(size)}): means are rough; take {math.ceil(400 / size)} times as many draws"
    ]
    scale = np.where(np.arange(500) % 250 < 60, 4.0, 1.0)  # wide for a while, so that only the tails come in runs
    table = summarize({"x": normals() * scale})
    size = table["x"].ess_tail
    assert table["x"].ess_bulk > 400 > size
    assert f"tail ess < 400: x ({math.floor(size)}): q5 and q95 are rough; take" in "\n".join(table.warnings)


def test_what_no_chain_moves():
    """As a choice outside the selection; R-hat is infinite then, and the effective size no matter of more draws."""
    stays = np.repeat(np.arange(4.0)[:, None], 500, axis=1)
    assert summarize({"x": normals(), "m": stays}, well()).warnings == [
        "no chain moved m: put it in the selection, or propose smaller steps"
    ]


def test_draws_that_are_no_numbers():
    x = normals(shape=(*SHAPE, 7))
    x[0, 3, :6] = [math.nan, math.inf, -math.inf, math.nan, math.nan, math.nan]
    assert summarize({"x": x}).warnings == [
        "nan or infinity in x[0], x[1], x[2], x[3], x[4] and 1 more: "
        "look for what overflows, or for a bound that is left"
    ]


def test_an_address_that_only_one_draw_has():
    present = np.zeros(SHAPE, bool)
    present[1, 7] = True
    post = Posterior(
        {("x",): mx.array(normals()), ("y",): mx.array(normals(2))},
        stats={},
        log_joint=mx.zeros(SHAPE),
        present={("y",): mx.array(present)},
    )
    assert post.summary().warnings == ["too few draws have y to judge them by: take more"]


def test_statistics_of_another_shape_raise():
    with pytest.raises(ValueError, match=r"differ in \[chains, draws\]: \(4, 400\) at accept, \(4, 500\) at x"):
        summarize({"x": normals()}, {"accept": np.ones((4, 400))})


@gen
def centred():
    """Eight schools with the effects themselves as choices: where tau is small, they are in the neck of a funnel."""
    mu, tau = trace("mu", normal(0, 5)), trace("tau", half_cauchy(5.0))
    theta = trace("theta", normal(mu * mx.ones(8), tau))
    trace("y", normal(theta, mx.array(ERRORS)))


@pytest.mark.slow
def test_the_centred_eight_schools():
    """They are known to diverge at the default settings (Betancourt and Girolami 2015): six keys of six did here."""
    post = nuts(centred(), {"y": mx.array(SCHOOLS)}, draws=150, warmup=150, chains=8, max_depth=6, key=1)
    diverged, table = np.array(post.stats["diverging"]).sum(), post.summary()
    assert diverged > 0
    assert f"{diverged} of 1,200 draws diverged: raise target_accept to 0.95, or reparameterise" in table.warnings[0]
    for beginning in ("bfmi < 0.3 in chain", "rhat > 1.01: ", "bulk ess < 800: tau"):
        assert any(line.startswith(beginning) for line in table.warnings), table.warnings
    assert all(f"! {line}" in repr(table) and line.split(":")[-1] in table._repr_html_() for line in table.warnings)


def test_trees_that_are_cut_off():
    """Trees of two steps on a normal that needs more of them; and none on the same one, left to grow."""

    @gen
    def model():
        trace("x", normal(mx.zeros(3), mx.array([1.0, 1.0, 1.0])))

    short = nuts(model(), draws=100, warmup=60, chains=4, max_depth=1, key=1)
    cut = np.array(short.stats["reached_max_depth"])
    assert cut.mean() > 0.5 and f"{cut.sum()} of 400 trajectories were cut off" in "\n".join(short.summary().warnings)
    free = nuts(model(), draws=100, warmup=60, chains=4, key=1)
    assert not np.array(free.stats["reached_max_depth"]).any()


def test_a_sampler_that_rejects_everything():
    @gen
    def model():
        trace("y", normal(trace("mu", normal(0, 1)), 1.0))

    @gen
    def no_way_back(tr):
        trace("mu", normal(tr["mu"] + 1e4, 1.0))

    post = mh(model(), {"y": 3.0}, proposal=no_way_back, draws=100, chains=3, key=1)
    assert post.summary().warnings == [
        "chains 0, 1, 2 never moved: propose smaller steps, or take a longer warmup",
        "no chain moved mu: put it in the selection, or propose smaller steps",
    ]
