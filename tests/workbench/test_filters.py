"""Particle filters in the workbench: pictures of a run, reports, diagnoses, figures. No terminal."""

import re
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from scipy.stats import norm

from genmlx import gen, normal, select, trace, unfold
from genmlx.errors import UnknownAddress, UsageError
from genmlx.inference import Bands, csmc, growing_steps, importance_sampling, smc, tempered_smc
from genmlx.inference.history import FilterStep, History
from genmlx.inference.loop import Progress
from genmlx.inference.smc import shown
from workbench.filter_diagnosis import of_filter
from workbench.filters import addresses, facts, is_filter, spans
from workbench.live import Painter, frame, html
from workbench.plots import OF_FILTERS, default_kind, figure, live_figure
from workbench.render.screen import Screen
from workbench.report import Report


@gen
def step(t, x):
    x = trace("x", normal(x, 1.0))
    trace("y", normal(x, 1.0))
    return x


@gen
def model(n):
    offset = trace("offset", normal(0.0, 1.0))
    trace("states", walk(n, offset))


walk = unfold(step)
YS = [0.5, 1.0, 2.5, 1.5, 0.5, 0.0, -1.0, -2.0, -1.5, -1.0, 0.0, 1.0]
GIVEN = {(t, "y"): y for t, y in enumerate(YS)}


def filtered(**settings):
    return smc(growing_steps(walk(12, 0.0), GIVEN), 500, key=mx.random.key(0), **settings)


@pytest.fixture(scope="module")
def pf():
    return filtered(record=Bands("x"))


@pytest.fixture(scope="module")
def bad():
    far = {(t, "y"): 20.0 * (-1) ** t for t in range(12)}
    return smc(growing_steps(walk(12, 0.0), far), 30, key=mx.random.key(0))


# what they did


def test_facts_are_counted_from_the_history(pf, bad):
    found = facts(pf)
    ess = [one.ess for one in pf.history]
    assert (found.steps, found.resampled) == (12, sum(one.ancestors is not None for one in pf.history))
    assert found.least == int(np.argmin(ess)) and found.low == [] and not found.static
    for t in (0, 5, 11):
        assert found.ancestors[t] == len({pf.history.lineage(i)[t] for i in range(pf.n)})
    assert facts(bad).low == [t for t, one in enumerate(bad.history) if one.ess < 3]
    history = History(tuple(FilterStep(ess, 0.0, 0.0) for ess in (49.0, 51.0, 99.0)))
    edge = {"n": 500, "log_weights": np.zeros(500), "algorithm": "smc", "log_ml_error": 0.0}
    assert facts(SimpleNamespace(history=history, **edge)).low == [0]
    assert is_filter(pf) and not is_filter(importance_sampling(walk(1, 0.0), particles=3))


def test_the_choices_that_are_shown_are_those_of_the_last_step_and_of_none(pf):
    assert addresses(pf) == [(11, "x")]
    given = {("states", t, "y"): y for t, y in enumerate(YS)}
    found = smc(growing_steps(model(12), given), 20, key=mx.random.key(0))
    assert sorted(addresses(found), key=len) == [("offset",), ("states", 11, "x")]
    static = tempered_smc(model(3), {("states", 2, "y"): 1.0}, particles=50, key=mx.random.key(0))
    assert addresses(static) == static.addresses() and facts(static).static
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


# a run as it goes


def progress(done=40, **more):
    ess = [500.0, 1000.0, 100.0, 750.0]
    history = History(tuple(FilterStep(e, -1.0, -i - 1.0, [0] if e == 100.0 else None) for i, e in enumerate(ess)))
    info = {"ess": 750.0, "log_ml": -4.0, "accept": float("nan"), "particles": 1000, "history": history} | more
    return Progress("smc", "filtering", done, 100, 2.0, info)


def test_a_frame_has_sizes_from_zero_to_all_and_marks_under_the_steps_that_resampled():
    assert frame("smc walk", progress(), 20.0, 88, ascii=True) == [
        "smc walk  filtering  20/s  0:02.0",
        " step   ########............ 40 of 100",
        " ess    ###############..... 750 of 1,000",
        "        log Z -4.00   resampled 1 of 4",
        " sizes  =#.+",
        "          ^",
    ]
    assert " ess    ███████████████      750" in frame("smc walk", progress(), 20.0)[2]
    said = frame("smc walk", progress(accept=0.25, temperature=0.5), 20.0)[3]
    assert said.endswith("temperature 0.5   moved 0.25")


def test_a_frame_keeps_its_height_and_width_whatever_the_number_of_steps():
    long = History(tuple(FilterStep(500.0, -1.0, -1.0, None if t % 3 else [0]) for t in range(1000)))
    for history in (long, History(long.steps[:1])):
        lines = frame("smc walk", progress(history=history), 20.0, 60)
        assert len(lines) == 6 and max(map(len, lines)) <= 60
    heights = [
        re.findall(r'height="?:?(\d+)', html("smc", progress(history=h), 2.0))
        for h in (long, progress().info["history"])
    ]
    assert set(heights[0]) == set(heights[1])


def test_html_marks_the_steps_that_resampled_and_escapes():
    page = html("smc <walk>", progress(), 20.0)
    assert "smc &lt;walk&gt;" in page and page.count("<line ") == 1 and page.count("<polyline") == 1
    assert "width:75.0%" in page and "width:40.0%" in page
    points = re.search(r'points="([^"]+)"', page)[1].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == pytest.approx([20.0, 1.0, 35.2, 10.5], abs=0.1)  # from 39 at nothing to 1 at all particles


def test_plain_lines_have_evidence_and_effective_size():
    lines = []
    painter = Painter("smc walk", "plain", write=lines.append)
    for i in range(1, 101):
        painter(Progress("smc", "filtering", i, 100, i / 10, progress().info))
    assert lines and all("ess 750  log Z -4.00" in line for line in lines)


def test_the_acceptance_of_the_last_moves_is_told():
    found = filtered(rejuvenate=select((0, "x")))
    accepts = found.history.accept
    assert shown(found)["accept"] == accepts[np.isfinite(accepts)][-1] and np.isnan(accepts[-1])


def test_the_live_figure_is_one_figure():
    first = live_figure(progress())
    again = live_figure(progress(done=50), first)
    assert again is first and [len(axes.lines) for axes in first.axes] == [3, 1]
    assert first.get_suptitle() == "filtering 50 of 100"


# reports


def test_a_report_has_evidence_with_its_error_sizes_and_ancestors(pf):
    text = str(Report(pf, "smc", "pf"))
    assert text.startswith("pf: ParticleFilter smc n=500 12 steps unfold(step)\n") and "\n... 11 more\n" in text
    found = facts(pf)
    line = (
        f"log evidence {pf.log_ml.item():.4g} (se {pf.log_ml_error:.2g})   ess {float(pf.ess):,.0f} of 500   "
        f"resampled {found.resampled} of 12   {found.ancestors[0]} ancestors"
    )
    assert line in text and "!" not in text
    page = Report(pf, "smc", "pf").html()
    assert "<b>pf: ParticleFilter smc" in page and "<td>11/x</td>" in page


def test_a_report_of_a_filter_that_has_degenerated_says_so(bad):
    text = str(Report(bad, "smc", "bad"))
    assert "! ess below 10% at" in text and "! 1 ancestor at step 0, fewer than 10 up to step" in text
    assert " (se " not in text


def test_equal_weights_are_not_distrusted():
    text = str(Report(importance_sampling(walk(1, 0.0), particles=30), "is", "ps"))
    assert "not to be trusted" not in text


# diagnoses


def test_a_diagnosis_of_a_good_filter_is_ok(pf):
    text = str(of_filter(pf))
    assert f"se {pf.log_ml_error:.2g}, from the ancestors in this run" in text
    assert re.search(r"^ok: ess >= 10% everywhere, \d+ ancestors left$", text, re.MULTILINE) and "try" not in text
    assert re.search(r"^11/x ", text, re.MULTILINE) and "... 11 more rows (--all)" in text
    assert len(of_filter(pf, most=None).rows) == 12 and of_filter(pf, [((3, "x"), ())]).rows[0][0] == "3/x"


def test_a_diagnosis_of_a_bad_filter_names_the_steps_and_what_to_try(bad):
    found = of_filter(bad, spoken="bad")
    text, low = str(found), facts(bad).low
    assert f"ess < 10% at {len(low)} steps: {spans(low)}" in text
    assert "an error that one ancestor alone does not tell" in text and "fewer than 10 ancestors up to step" in text
    assert "--particles 3000" in found.tries and "%plot bad --kind genealogy" in found.tries
    assert any("--proposal" in one for one in found.tries) and any("--rejuvenate" in one for one in found.tries)


def test_a_conditional_filter_claims_no_evidence():
    steps = growing_steps(walk(3, 0.0), dict(list(GIVEN.items())[:3]))
    kept = smc(steps, 20, key=mx.random.key(0)).traces[0]
    found = csmc(steps, kept, 30, key=mx.random.key(1))
    assert "no estimate of the evidence" in str(of_filter(found)) and " (se " not in str(Report(found, "csmc", "c"))


# figures


def line(axes, i=0):
    return np.asarray(axes.lines[i].get_xdata()), np.asarray(axes.lines[i].get_ydata())


def test_figures_hold_the_columns_of_the_history(pf):
    axes = figure("ess", pf).axes[0]
    np.testing.assert_allclose(line(axes)[1], pf.history.ess)
    np.testing.assert_array_equal(line(axes, 1)[0], np.flatnonzero(pf.history.resampled))
    left, right = figure("evidence", pf).axes
    np.testing.assert_allclose(line(left)[1], pf.history.log_ml)
    np.testing.assert_allclose(line(right)[1], pf.history.log_ml_increment)
    assert f"(se {pf.log_ml_error:.2g})" in left.get_title(loc="left")


def test_genealogy_draws_the_ancestors_of_each_particle(pf):
    axes = figure("genealogy", pf).axes[0]
    assert len(axes.lines) == 100
    for i, particle in ((0, 0), (99, 499)):
        assert line(axes, i)[1].tolist() == pf.history.lineage(particle)


def kalman():
    mean, variance, found = 0.0, 0.0, []
    for y in YS:
        variance += 1.0
        gain = variance / (variance + 1.0)
        mean, variance = mean + gain * (y - mean), (1 - gain) * variance
        found.append((mean, variance))
    return found


def smoothed():
    """Rauch, Tung and Striebel."""
    found = kalman()
    out = [found[-1]]
    for mean, variance in reversed(found[:-1]):
        gain = variance / (variance + 1.0)
        later, spread = out[-1]
        out.append((mean + gain * (later - mean), variance + gain**2 * (spread - variance - 1.0)))
    return out[::-1]


@pytest.mark.parametrize("recorded", [True, False])
def test_bands_are_of_filtering_where_it_was_recorded_and_of_smoothing_otherwise(recorded):
    steps = growing_steps(walk(12, 0.0), GIVEN)
    pf = smc(steps, 20_000, ess_threshold=0.9, record=Bands("x") if recorded else None, key=mx.random.key(2))
    plot = figure("filter", pf, ["x"])
    low, high, mean = (line(plot.axes[0], i)[1] for i in range(3))
    exact = np.array(kalman() if recorded else smoothed())
    np.testing.assert_allclose(mean, exact[:, 0], atol=0.08)  # filtering and smoothing are 0.5 apart
    np.testing.assert_allclose(low, norm(exact[:, 0], np.sqrt(exact[:, 1])).ppf(0.05), atol=0.12)
    np.testing.assert_allclose(high, norm(exact[:, 0], np.sqrt(exact[:, 1])).ppf(0.95), atol=0.12)
    assert ("(filtering)" if recorded else "(smoothing") in plot.get_suptitle()


def test_every_kind_is_text_and_a_picture(pf):
    for kind in [*OF_FILTERS, "weights"]:
        plot = figure(kind, pf)
        plot.screen = Screen(70, True)
        rows = plot.as_text().splitlines()
        assert plot.as_text().isascii() and max(map(len, rows)) <= 70 and len(rows) > 6
        assert plot._repr_png_()[:4] == b"\x89PNG"


def test_a_tempered_filter_shows_its_temperatures():
    found = tempered_smc(step(0, 0.0), {"y": 8.0}, particles=200, key=mx.random.key(0))
    left, right = figure("ess", found).axes
    np.testing.assert_allclose(line(right)[1], found.history.temperature)
    with pytest.raises(UsageError, match="temperatures"):
        figure("filter", found)


def test_kinds_that_do_not_fit(pf):
    assert default_kind(pf) == "ess"
    with pytest.raises(UnknownAddress, match="did you mean 'x'"):
        figure("filter", pf, ["xx"])
    for kind, other in (("elbo", pf), ("genealogy", SimpleNamespace(log_weights=mx.zeros((3,)))), ("trace", pf)):
        with pytest.raises(UsageError, match=f"kind '{kind}'"):
            figure(kind, other)
    with pytest.raises(UsageError, match="as a whole"):
        figure("genealogy", pf, ["x"])
