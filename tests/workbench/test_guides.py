"""Variational inference in the workbench: pictures of a run, reports, diagnoses, figures; and on a real terminal."""

import math
import re

import mlx.core as mx
import numpy as np
import pytest
from terminal import Terminal

from genmlx import dist, gen, normal, trace, vi
from genmlx.errors import UsageError
from genmlx.inference.loop import Progress
from workbench.guide_diagnosis import of_guide
from workbench.live import frame, html
from workbench.live_elbo import levels, shows
from workbench.plots import default_kind, figure, live_figure
from workbench.render.screen import Screen
from workbench.report import Report

KEY = mx.random.key(0)


@gen
def plane(rho):
    trace("x", dist.multivariate_normal(mx.zeros(2), mx.array([[1.0, rho], [rho, 1.0]])))
    trace("scale", dist.log_normal(0.0, 0.3))


@gen
def bounded():
    trace("y", dist.uniform(0.0, trace("top", dist.gamma(2.0, 1.0))))


@pytest.fixture(scope="module")
def good():
    return vi(plane(0.9), family="fullrank", key=KEY)


@pytest.fixture(scope="module")
def narrow():
    """Independent latents for correlated ones: their deviations are 0.31 of what they should be."""
    return vi(plane(0.95), key=KEY)


def progress(objective, done=50, total=200):
    info = {"elbo": float(np.median(objective[-50:])) if len(objective) else math.nan}
    return Progress("vi", "fitting", done, total, 2.0, {**info, "objective": lambda: np.array(objective)})


RISING = [-1000.0 * math.exp(-i / 5) - 3.0 for i in range(80)]


def test_a_frame_has_six_lines_and_says_how_much_it_has_risen():
    lines = frame("vi line v1", progress(RISING), 250.0, 60, ascii=True)
    assert lines[:3] == [
        "vi line v1  fitting  250/s  0:02.0",
        " step   #####............... 50 of 200",
        f" elbo   {np.median(RISING[-50:]):.6g}   +0.05 in the last quarter",
    ]
    assert len(lines) == 4 and set(lines[3].strip()) > {"+"} and max(map(len, lines)) <= 60
    braille = frame("vi line v1", progress(RISING), 250.0, 60)
    assert len(braille) == 6
    first, last = ([row[column] for row in braille[3:]] for column in (8, 60 - 1))
    assert first.index("⣀") == 2 if "⣀" in first else first[2] != "⠀"
    assert last[0] not in "⠀" and last[2] == "⠀"  # from the lowest row to the highest


def test_a_frame_before_the_first_step_and_of_impossible_ones():
    for objective in ([], [-math.inf] * 20, [math.nan] * 20):
        lines = frame("t", progress(objective, 0), 0.0, 60)
        assert len(lines) == 6 and lines[2].startswith(" elbo") and "quarter" not in lines[2]
        assert "<svg" in html("t", progress(objective, 0), 0.0)
    assert not shows({"elbo": 1.0})


def test_the_beginning_of_the_climb_is_cut_off():
    shown = levels(RISING)
    assert shown[0] == shown[10] == min(RISING[20:]) and shown[79] == RISING[79]
    kept = levels([-math.inf, *[1.0] * 7])
    assert math.isnan(kept[0]) and kept[1] == 1.0


def test_html_of_a_run_escapes_and_has_one_curve():
    page = html("vi <line>", progress(RISING), 250.0)
    assert "vi &lt;line&gt;" in page and page.count("<polyline") == 1 and "50 of 200" in page


def test_live_figures_follow_the_objective():
    plot = live_figure(progress(RISING))
    lines = plot.axes[0].lines
    assert len(lines[0].get_ydata()) == 80 and "fitting 50 of 200" in plot.axes[0].get_title(loc="left")
    again = live_figure(progress([], 0), plot)
    assert again is plot and not again.axes[0].lines


# what it is worth


def test_a_report_has_a_row_for_each_number_and_the_bound(good):
    text = str(Report(good, "vi", "fit"))
    head, columns, *rows, verdict = text.splitlines()
    assert head == "fit: GaussianFit vi fullrank plane " + repr(plane.version).strip("'")
    assert columns.split() == ["mean", "sd"] and [row.split()[0] for row in rows] == ["x[0]", "x[1]", "scale"]
    x0 = [float(n) for n in rows[0].split()[1:]]
    assert abs(x0[0]) < 0.02 and abs(x0[1] - 1) < 0.02
    assert re.fullmatch(
        r"log evidence >= -?0\.0000 \(se 0\)   k-hat -?[\d.]+   converged in \d,?\d* steps   [\d.]+ s", verdict
    )
    page = Report(good, "vi", "fit").html()
    assert "<td>x[0]</td>" in page and "log evidence &gt;= " in page


def test_a_report_says_what_is_wrong(narrow):
    text = str(Report(narrow, "vi", "fit"))
    assert narrow.khat > 0.7 and text.endswith("\n! k-hat > 0.7: the guide misses a part of the posterior; see %diag")
    short = vi(plane(0.9), iterations=30, tolerance=0, key=KEY)
    assert "not converged in 30 steps" in str(Report(short, "vi"))
    short.status = "interrupted"
    assert str(Report(short, "vi", "fit")).startswith("fit: interrupted after 30 steps\n")


def test_many_numbers_are_cut():
    @gen
    def wide():
        trace("x", normal(mx.zeros(100), 1.0))

    rows = Report(vi(wide(), key=KEY), "vi").rows()
    assert len(rows) == 42 and rows[-1][0] == "... 60 more" and rows[40][0] == "x[39]"


def test_a_diagnosis_of_a_good_guide(good):
    found = str(of_guide(good))
    assert "\nok: converged, k-hat <= 0.7" in found and "try:" not in found and "<-" not in found
    only = of_guide(good, [(("x",), (1,))])
    assert [row[0] for row in only.rows] == ["x[1]"]
    assert len(of_guide(good, None, 1).rows) == 1 and "... 2 more rows (--all)" in of_guide(good, None, 1).lines


def test_a_diagnosis_puts_what_weights_move_first():
    """A guide that is three quarters as wide as the posterior: weights can tell, and do."""
    fit = vi(plane(0.65), samples=40, key=KEY)
    assert fit.khat < 0.7
    found = of_guide(fit, spoken="fit")
    assert [row[0] for row in found.rows][2] == "scale" and re.search(r"<- sd 1\.[34]", found.rows[0][-1])
    assert "weights move what the guide says; sample(n) has them" in found.lines
    assert found.tries == ["--family fullrank", "nuts"]


def test_a_diagnosis_of_one_that_is_not_to_be_trusted(narrow):
    found = of_guide(narrow, spoken="fit")
    assert any(line.startswith("k-hat > 0.7: the guide misses") for line in found.lines)
    assert all(row[-1] == "" for row in found.rows)  # what these weights say does not count
    short = of_guide(vi(plane(0.9), family="fullrank", iterations=30, tolerance=0, key=KEY), spoken="fit")
    assert any(line.startswith("not converged") for line in short.lines)
    assert short.tries[:2] == ["--iterations 150", "%plot fit --kind elbo"]
    impossible = of_guide(vi(bounded(), {"y": 1.0}, iterations=100, key=KEY))
    assert any("some draws of the guide are impossible" in line for line in impossible.lines)


# figures


def test_the_elbo_is_drawn_with_its_running_median_and_the_bound(narrow):
    assert default_kind(narrow) == "elbo"
    axes = figure("elbo", narrow).axes[0]
    noise, median, bound = axes.lines
    history = np.array(narrow.history, dtype=float)
    assert len(noise.get_ydata()) == len(history) and bound.get_ydata()[0] == narrow.log_ml_bound
    width = max(10, len(history) // 50)
    last = median.get_ydata()[-1]
    assert last == pytest.approx(np.median(history[-width:])) and median.get_xdata()[-1] == len(history) - 1
    assert axes.get_title(loc="left").startswith(f"log evidence >= {narrow.log_ml_bound:.3f} (se 0.0")
    with pytest.raises(UsageError, match="is of the result as a whole"):
        figure("elbo", narrow, [("x",)])


def test_figures_of_fits_without_steps_or_a_finite_bound(narrow):
    fit = vi(bounded(), {"y": 1.0}, iterations=50, tolerance=0, key=KEY)
    assert figure("elbo", fit).axes[0].get_title(loc="left") == "log evidence >= -inf   not converged"
    fit.history = mx.zeros((0,))
    plot = figure("elbo", fit)
    plot.screen = Screen(70, True)
    assert plot.as_text().isascii()


def test_other_kinds_of_figures_say_what_there_is(narrow):
    with pytest.raises(UsageError, match="has no chains of draws for the kind 'trace'"):
        figure("trace", narrow)


# on a terminal


@pytest.fixture
def terminal(environment, tmp_path):
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal([*arguments], environment, tmp_path))
        return opened[-1]

    yield start
    for one in opened:
        one.process.close(force=True)


def test_a_climb_on_a_terminal_and_ctrl_c(terminal):
    """The picture is painted over in place, and Ctrl-C keeps the best so far."""
    shell = terminal("-m", "workbench.shell", "--no-banner")
    shell.wait(r"^gen\[1\]>")
    shell.type("%%gen\rdef line(xs):\rslope ~ normal(0, 10)\ry ~ normal(slope * xs, 1)\r\r")
    shell.wait(r"^gen\[2\]>")
    shell.type("%infer vi line(mx.arange(3)) | given y=[0, 1, 2] --iterations 10000000 --tolerance 0 -o fit\r")
    shell.wait(r"^vi  line v1  meanfield  given y  fitting  \S+/s")
    shell.wait(
        r"^ elbo   -[\d.]+   [-+]\S+ in the last quarter\n +[\u2800-\u28ff]+\n +[\u2800-\u28ff]+\n +[\u2800-\u28ff]+$"
    )
    assert shell.screen.count("fitting") == 1
    shell.type("\x03")
    shell.wait(r"^fit: interrupted after [\d,]+ steps")
    shell.wait(r"^slope +0\.998 +0\.44")
    shell.wait(r"^gen\[3\]>")
    assert "fitting" not in shell.screen
    shell.type("fit.status, round(fit.log_ml_bound, 1)\r")
    shell.wait(r"^Out\[3\]: \('interrupted', -\d+\.\d\)")
