"""Figures: what their artists hold, against numpy and scipy; errors; the same as text."""

import subprocess
import sys
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx import gen, normal, poisson, trace
from genmlx.choicemap import choicemap
from genmlx.diagnostics import bfmi, ess, ess_tail, psis
from genmlx.errors import UnknownAddress, UsageError
from genmlx.inference import Posterior
from workbench.elements import elements
from workbench.estimates import autocorrelation, cumulative, density, rank_histogram, replicated
from workbench.plots import KINDS, default_kind, figure, live_figure
from workbench.render.picture import picture
from workbench.render.screen import Screen

RNG = np.random.default_rng(0)
CHAINS, DRAWS = 3, 100


def posterior(values, stats=None, present=None, **rest):
    arrays = {(k if isinstance(k, tuple) else (k,)): mx.array(v) for k, v in values.items()}
    shape = next(iter(arrays.values())).shape[:2]
    numbers = {k: mx.array(v) for k, v in (stats or {}).items()}
    return Posterior(arrays, stats=numbers, present=present, log_joint=mx.zeros(shape), **rest)


MU = RNG.normal(5, 2, (CHAINS, DRAWS)).astype("float32")
TAU = RNG.exponential(3.0, (CHAINS, DRAWS)).astype("float32")
THETA = RNG.normal(0, 1, (CHAINS, DRAWS, 2, 2)).astype("float32")
BAD = RNG.random((CHAINS, DRAWS)) < 0.05
ENERGY = RNG.normal(0, 1, (CHAINS, DRAWS)).cumsum(axis=1).astype("float32")


@pytest.fixture(scope="module")
def post():
    return posterior(
        {"mu": MU, "tau": TAU, "theta": THETA, ("y", 0): MU + 1, ("y", 1): MU + 2},
        {"diverging": BAD, "energy": ENERGY},
        algorithm="nuts",
    )


def particles(log_weights):
    return SimpleNamespace(log_weights=mx.array(np.asarray(log_weights, "float32")), n=len(log_weights))


# estimates


def test_a_density_is_that_of_scipy_away_from_the_ends():
    x = RNG.normal(0, 1, 2000)
    grid, heights = density(x)
    quartiles = np.quantile(x, [0.25, 0.75])
    width = 0.9 * min(x.std(ddof=1), (quartiles[1] - quartiles[0]) / 1.34) * 2000**-0.2
    want = stats.gaussian_kde(x, width / x.std(ddof=1))(grid)
    inner = np.abs(grid) < 1.5
    np.testing.assert_allclose(heights[inner], want[inner], rtol=2e-3)


def test_a_density_integrates_to_one_and_does_not_sink_at_a_bound():
    # Kernels that are not reflected give half of the height at 0, and lose what falls beyond it.
    x = RNG.exponential(1.0, 20_000)
    grid, heights = density(x)
    assert heights.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-9)
    assert heights[0] == pytest.approx(1.0, abs=0.1)


def test_a_density_of_two_numbers_has_its_mass():
    grid, heights = density(np.array([0.0, 1.0]))  # kernels that reach beyond the other end
    assert heights.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-9)


def test_a_rank_histogram_counts_the_ranks_of_scipy():
    values = RNG.normal(size=(3, 40)) + np.arange(3)[:, None] / 2
    ranks = stats.rankdata(values).reshape(values.shape)
    want = [np.histogram(row, 8, (0.5, 120.5))[0] for row in ranks]
    np.testing.assert_allclose(rank_histogram(values, 8), want)


def test_equal_draws_spread_over_their_ranks():
    # Ties that go to the chain that comes first would show a difference between chains that are alike.
    values = np.tile([0.0, 0.0, 0.0, 1.0], (2, 15))
    np.testing.assert_allclose(rank_histogram(values, 4), np.full((2, 4), 15.0))


def test_absent_draws_have_no_rank():
    values = np.array([[1.0, np.nan, 2.0, 3.0], [4.0, 5.0, np.nan, np.nan]])
    np.testing.assert_allclose(rank_histogram(values, 5), [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]])


def test_autocorrelation_is_the_sum_of_products():
    x = RNG.normal(size=50).cumsum()
    own = x - x.mean()
    want = [own[: 50 - lag] @ own[lag:] / (own @ own) for lag in range(11)]
    np.testing.assert_allclose(autocorrelation(x, 10), want, atol=1e-12)
    assert np.isnan(autocorrelation(np.ones(50), 3)).all()


def test_cumulative_shares():
    x, shares = cumulative(np.array([3.0, 1.0, 2.0, 2.0]))
    assert x.tolist() == [1, 2, 2, 3] and shares.tolist() == [0.25, 0.5, 0.75, 1.0]


# addresses


def test_elements_are_named_as_in_a_summary_and_found_by_address_index_or_prefix(post):
    def names(*addresses):
        return [e.name for e in elements(post, addresses)]

    assert [e.name for e in elements(post)] == list(post.summary())
    assert names("theta") == ["theta[0,0]", "theta[0,1]", "theta[1,0]", "theta[1,1]"]
    assert names(("theta", 1)) == ["theta[1,0]", "theta[1,1]"]
    assert names(("theta", -1, 0), "mu", "mu") == ["theta[1,0]", "mu"]
    assert names("y") == ["y/0", "y/1"]
    np.testing.assert_array_equal(elements(post, [("theta", 1, 0)])[0].values, THETA[:, :, 1, 0])


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("tua", "no such address at 'tua'"),
        (("theta", 2), "'theta' has the shape (2, 2)"),
        (("mu", 0), "'mu' has a single number"),
        (("theta", 0, 0, 0), "no such element"),
    ],
)
def test_an_address_that_is_not_there_says_what_is(post, address, said):
    with pytest.raises(UnknownAddress) as caught:
        elements(post, [address])
    assert said in str(caught.value)
    if address == "tua":
        assert "did you mean 'tau'" in str(caught.value)


# kinds


def test_trace_has_the_draws_of_each_chain_a_density_of_each_and_ticks_of_divergences(post):
    plot = figure("trace", post, ["mu", "tau"])
    left, right, *_ = plot.axes
    assert [a.get_title(loc="left") for a in plot.axes[::2]] == ["mu", "tau"]
    for i in range(CHAINS):
        np.testing.assert_array_equal(right.lines[i].get_ydata(), MU[i])
        x, heights = left.lines[i].get_data()
        assert np.sum(heights) * (x[1] - x[0]) == pytest.approx(1, abs=1e-6)
        # a mean of the density is that of the chain: the lines are those of the chains, in their order
        assert np.sum(x * heights) * (x[1] - x[0]) == pytest.approx(MU[i].mean(), abs=0.05)
    np.testing.assert_array_equal(right.lines[CHAINS].get_xdata(), np.nonzero(BAD.any(axis=0))[0])


def test_the_densities_of_a_discrete_number_are_bars_of_its_shares():
    k = RNG.poisson(2.0, (2, 50)).astype("int32")
    left = figure("trace", posterior({"k": k})).axes[0]
    heights = np.array([bar.get_height() for bar in left.patches])
    wanted = [np.unique(row, return_counts=True)[1] / 50 for row in k]
    np.testing.assert_allclose(heights, np.concatenate(wanted))
    assert not left.lines


def test_a_chain_that_never_moves_is_a_line_where_it_stands():
    values = np.stack([np.full(20, 3.0), RNG.normal(size=20)]).astype("float32")
    stuck, moving = figure("trace", posterior({"x": values})).axes[0].lines
    assert stuck.get_xdata() == [3.0, 3.0] and len(moving.get_xdata()) > 100


def test_rank_bars_add_up_to_the_draws_of_each_chain(post):
    axes = figure("rank", post, ["tau"]).axes[0]
    bars = np.array([bar.get_height() for bar in axes.patches]).reshape(CHAINS, -1)
    np.testing.assert_allclose(bars.sum(axis=1), DRAWS)
    np.testing.assert_allclose(bars, rank_histogram(TAU.astype(float), bars.shape[1]))
    floors = np.array([bar.get_y() for bar in axes.patches]).reshape(CHAINS, -1)
    assert (floors[:-1] >= (floors + bars)[1:]).all()  # no bar reaches into the chain above


def test_pair_marks_the_draws_that_diverged(post):
    plot = figure("pair", post, ["mu", "tau"])
    below = next(axes for axes in plot.axes if axes.collections)
    assert (below.get_xlabel(), below.get_ylabel()) == ("mu", "tau")
    fine, bad = (np.asarray(c.get_offsets()) for c in below.collections)
    np.testing.assert_array_equal(bad, np.stack([MU[BAD], TAU[BAD]], axis=1))
    np.testing.assert_array_equal(fine, np.stack([MU[~BAD], TAU[~BAD]], axis=1))
    assert len(plot.axes) == 3


def test_pair_of_one_number_takes_others_with_it_and_of_many_some(post):
    assert len(figure("pair", post, ["tau"]).axes) == 4 + 6
    plot = figure("pair", post)
    assert len(plot.axes) == 5 + 10 and plot.get_suptitle() == "5 of 8 numbers"


def test_energy_compares_energies_about_their_mean_with_steps(post):
    axes = figure("energy", post).axes[0]
    marginal, steps = axes.lines
    x, heights = marginal.get_data()
    assert np.sum(x * heights) * (x[1] - x[0]) == pytest.approx(0, abs=0.1)
    differences = np.diff(ENERGY, axis=1)
    assert steps.get_xdata()[0] == pytest.approx(differences.min(), abs=0.05)
    assert steps.get_xdata()[-1] == pytest.approx(differences.max(), abs=0.05)
    assert axes.get_title(loc="left").endswith(", ".join(f"{b:.2f}" for b in bfmi(ENERGY)))


def test_forest_intervals_are_quantiles(post):
    axes = figure("forest", post, ["mu", "tau"]).axes[0]
    of_all = [line for line in axes.lines if float(np.asarray(line.get_ydata())[0]).is_integer()]
    for row, values in enumerate((MU, TAU)):
        wide, narrow, middle = of_all[3 * row : 3 * row + 3]
        q = np.quantile(values.astype(float), [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose([*wide.get_xdata(), *narrow.get_xdata()], q[[0, 4, 1, 3]])
        np.testing.assert_allclose(middle.get_xdata(), q[2:3])
    chains = [line for line in axes.lines if line not in of_all][:CHAINS]
    np.testing.assert_allclose([c.get_xdata() for c in chains], np.quantile(MU.astype(float), [0.05, 0.95], axis=1).T)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["mu", "tau"]


def test_autocorr_has_a_line_for_each_chain(post):
    axes = figure("autocorr", post, ["mu"]).axes[0]
    for i in range(CHAINS):
        np.testing.assert_allclose(axes.lines[i].get_ydata(), autocorrelation(MU[i].astype(float), 50))


def test_ess_grows_to_that_of_all_draws(post):
    bulk, tail, wanted = figure("ess", post, [("theta", 0, 1)]).axes[0].lines
    own = THETA[:, :, 0, 1]
    assert bulk.get_xdata()[-1] == CHAINS * DRAWS and bulk.get_xdata()[4] == CHAINS * 50
    assert bulk.get_ydata()[-1] == pytest.approx(ess(own)) and bulk.get_ydata()[4] == pytest.approx(ess(own[:, :50]))
    assert tail.get_ydata()[-1] == pytest.approx(ess_tail(own))
    assert list(wanted.get_ydata()) == [300, 300]


def test_elbo_draws_every_start_and_the_best_on_top():
    history = np.array([[-9.0, -50.0, -7.0], [-3.0, -4.0, -5.0], [-2.0, -1.0, -4.0]])
    axes = figure("elbo", SimpleNamespace(history=mx.array(history))).axes[0]
    np.testing.assert_array_equal(axes.lines[-1].get_ydata(), history[:, 1])
    assert sorted(line.get_ydata()[-1] for line in axes.lines) == [-4, -2, -1]
    assert axes.get_title(loc="left") == "objective -1   best of 3 starts"
    one = figure("elbo", SimpleNamespace(history=mx.array([1.0, 2.0]))).axes[0]
    assert one.get_title(loc="left") == "objective 2"


def test_weights_are_sorted_summed_and_their_tail_fitted():
    log_weights = stats.pareto.ppf(np.random.default_rng(1).random(400), 0.8)
    log_weights = np.log(log_weights).astype("float32")
    left, right = figure("weights", particles(log_weights + 700)).axes
    weights = np.exp(log_weights.astype(float))
    weights = np.sort(weights / weights.sum())[::-1]
    np.testing.assert_allclose(left.lines[0].get_ydata(), weights.cumsum(), rtol=1e-4)
    assert left.lines[2].get_xdata()[0] == pytest.approx(1 / np.square(weights).sum(), rel=1e-3)
    points, fit = right.lines
    np.testing.assert_allclose(points.get_xdata(), 400 * weights, rtol=1e-4)
    # Only the tail is fitted, of ceil(min(400 / 5, 3 sqrt(400))) = 60 weights, and it goes on where the body ends.
    assert len(fit.get_xdata()) == 60
    assert fit.get_xdata()[-1] == pytest.approx(points.get_xdata()[59], rel=0.1)
    assert f"k-hat {psis(log_weights)[1]:.2f} > 0.7" in right.get_title(loc="left")


def test_equal_weights_have_no_tail():
    left, right = figure("weights", particles(np.zeros(50))).axes
    assert left.get_title(loc="left").endswith("ess 50.0 of 50") and len(right.lines) == 1


@gen
def model(n):
    mu = trace("mu", normal(0, 10))
    for i in range(n):
        trace(("y", i), normal(mu, 0.001))
    trace("k", poisson(1e-6 + 0 * mu))


def test_ppc_sets_what_each_draw_predicts_beside_what_was_observed():
    observed = choicemap({("y", i): v for i, v in enumerate([1.0, 2.0, 6.0])} | {("k",): mx.array(0)})
    post = posterior({"mu": MU}, call=model(3), observations=observed)
    groups = replicated(post, draws=30)
    assert list(groups) == ["y", "k"]
    mine, predicted = groups["y"]
    assert mine.tolist() == [1, 2, 6] and predicted.shape == (30, 3)
    some = MU[:, np.linspace(0, DRAWS - 1, 10).astype(int)].ravel()
    np.testing.assert_allclose(np.sort(predicted[:, 0]), np.sort(some), atol=0.01)
    plot = figure("ppc", post, ["y"])
    shares, mean, sd = plot.axes
    np.testing.assert_array_equal(shares.lines[-1].get_xdata()[1:-1], [1, 2, 6])
    np.testing.assert_allclose(shares.lines[-1].get_ydata()[1:-1], [1 / 3, 2 / 3, 1])
    assert mean.lines[0].get_xdata()[0] == 3 and mean.get_title(loc="left") == f"mean   p {(MU >= 3).mean():.2f}"
    assert sum(bar.get_height() for bar in mean.patches) == MU.size
    assert sd.lines[0].get_xdata()[0] == pytest.approx(np.std([1, 2, 6])) and sd.get_title(loc="left") == "sd   p 0.00"
    with pytest.raises(UnknownAddress, match="nothing was observed at 'z'"):
        figure("ppc", post, ["z"])


# errors


@pytest.mark.parametrize(
    ("kind", "make", "said"),
    [
        ("tarce", lambda: posterior({"x": MU}), "no kind of figure 'tarce'"),
        ("energy", lambda: posterior({"x": MU}, algorithm="mh"), "mh reports no energies"),
        ("rank", lambda: posterior({"x": MU[:, :19]}), "19 draws in each chain are too few for the kind 'rank'"),
        ("pair", lambda: posterior({"x": MU}), "a pair plot needs two numbers"),
        ("ppc", lambda: posterior({"x": MU}), "loaded without its model"),
        ("ppc", lambda: posterior({"x": MU}, call=model(1)), "has no observations"),
        ("elbo", lambda: posterior({"x": MU}), "Posterior has no objective for the kind 'elbo'"),
        ("weights", lambda: particles(np.full(4, -np.inf)), "no particle has a weight"),
    ],
)
def test_what_cannot_be_drawn_says_why(kind, make, said):
    with pytest.raises(UsageError) as caught:
        figure(kind, make())
    assert said in str(caught.value)
    assert "try: " in str(caught.value) or "expected: " in str(caught.value)


def test_a_kind_of_the_whole_result_takes_no_addresses(post):
    with pytest.raises(UsageError, match="of the result as a whole"):
        figure("energy", post, ["mu"])


def test_the_default_kind_is_that_of_the_result(post):
    others = particles([0.0]), SimpleNamespace(history=1), 3
    assert [default_kind(x) for x in (post, *others)] == ["trace", "weights", "elbo", None]


# showing


def test_figures_leave_pyplot_and_the_settings_alone():
    code = """
import sys, matplotlib
before = list(dict.items(matplotlib.rcParams))  # reading the backend would choose one
import numpy as np, mlx.core as mx
from genmlx.inference import Posterior
from workbench.plots import figure
post = Posterior({("x",): mx.random.normal((2, 50))}, stats={}, log_joint=mx.zeros((2, 50)))
png = figure("trace", post)._repr_png_()
print(png[:4], "matplotlib.pyplot" in sys.modules, list(dict.items(matplotlib.rcParams)) == before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == r"b'\x89PNG' False True", done.stderr


def test_more_numbers_than_asked_for_are_said_to_be_there(post):
    plot = figure("trace", post, most=2)
    assert plot.get_suptitle() == "2 of 8 numbers" and len(plot.axes) == 4


@pytest.mark.parametrize("kind", ["trace", "rank", "pair", "energy", "forest", "autocorr", "ess"])
@pytest.mark.parametrize("ascii", [False, True])
def test_text_of_any_kind_keeps_to_its_width_and_characters(post, kind, ascii):
    lines = picture(figure(kind, post, None if KINDS[kind].whole else ["mu", "tau"]), Screen(70, ascii))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 70
    assert text.isascii() == ascii
    assert all(title in text for title in (["energy"] if kind == "energy" else ["mu", "tau"]))
    assert any(ord(c) > 0x2800 for c in text) or any(mark in text for mark in ".:*#")


def test_text_of_a_line_is_where_its_points_are():
    up = figure("elbo", SimpleNamespace(history=mx.arange(200).astype(mx.float32)))
    title, *rows, ends = picture(up, Screen(40))
    dots = np.array([[ord(c) != 0x2800 and c != " " for c in row.ljust(40)] for row in rows])
    assert title == "objective 199" and ends.startswith("0 ") and ends.endswith(" 199")
    # The first tenth of a history does not set the scale, and so the line enters a little to the right.
    assert dots[-1, 4] and dots[0, -1] and not dots[0, 4] and not dots[-1, -1]
    assert dots[:, 4:].any(axis=0).all() and not dots[:, 0].any()


def test_text_of_divergent_draws_is_a_cross_where_they_are():
    x = np.linspace(0, 1, 20, dtype="float32")[None].repeat(2, axis=0)
    bad = np.zeros((2, 20), bool)
    bad[0, -1] = True
    rows = picture(figure("pair", posterior({"a": x, "b": x}, {"diverging": bad})), Screen(40))
    crosses = [(i, row.index("x")) for i, row in enumerate(rows) if "x" in row]
    assert len(crosses) == 1 and crosses[0][1] >= 16  # at the right end of the left panel, which has 19 columns


def test_a_live_figure_is_drawn_again_in_its_place():
    values = {"a": RNG.normal(size=(2, 1))}
    progress = SimpleNamespace(phase="sampling", done=3, total=1000, info={"watch": lambda: values})
    plot = live_figure(progress)
    assert plot.get_suptitle() == "sampling 3 of 1,000" and not plot.axes
    values["a"], progress.done = RNG.normal(size=(2, 30)), 30
    assert live_figure(progress, plot) is plot
    assert plot.get_suptitle() == "sampling 30 of 1,000"
    np.testing.assert_array_equal(plot.axes[1].lines[1].get_ydata(), values["a"][1])
    progress.info = {}
    assert not live_figure(progress, plot).axes
