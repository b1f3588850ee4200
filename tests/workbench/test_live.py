"""Pictures of a run: what they show, when they are made, and when a run is to stop. No terminal, no sampling."""

import re

import numpy as np
import pytest

from genmlx.inference.loop import Progress
from workbench.live import Painter, backend, condition, frame, html, svg
from workbench.render.braille import bar, curves


def progress(done=500, total=1000, seconds=2.0, phase="sampling", **info):
    return Progress("nuts", phase, done, total, seconds, info)


rng = np.random.default_rng(0)
DRAWS = {"slope": rng.normal(2, 0.1, (2, 100)), "tau": np.cumsum(rng.normal(size=(2, 100)), axis=1)}
INFO = {
    "rhat": 1.02,
    "divergences": 3,
    "step_size": 0.61,
    "accept": 0.86,
    "draws": 500,
    "chains": lambda: {"accept": [0.8, 0.9], "divergences": [3, 0]},
    "watch": lambda: DRAWS,
}


def test_a_frame_has_a_row_for_each_chain_and_the_worst_address_first():
    lines = frame("nuts line v2", progress(**INFO), 250.0, 88, ascii=True)
    assert lines[0] == "nuts line v2  sampling 500/1000  250/s  0:02.0"
    assert lines[1] == " 0 ##########..........  div 3  step 0.61  acc 0.80".replace("..  div", ".. div")
    assert lines[2] == " 1 ##########.......... div 0  step 0.61  acc 0.90"
    assert lines[3].startswith(" tau ") and lines[4].startswith(" slope ")
    assert len(lines) == 5 and all(len(line) <= 88 for line in lines)
    rhats = [float(re.search(r"rhat ([\d.]+)", line)[1]) for line in lines[3:]]
    assert rhats[0] > 1.05 > rhats[1]


def test_a_frame_of_a_run_without_draws():
    assert frame("map line", progress(3, 10, log_density=-12.5), 1.5, 60, ascii=True) == [
        "map line  sampling 3/10  1.5/s  0:02.0",
        "   ######.............. log p -12.5",
    ]


def test_html_is_of_constant_height_and_has_a_curve_for_each_chain():
    page = html("nuts <line>", progress(**INFO), 250.0)
    assert "nuts &lt;line&gt;" in page and page.count("<svg") == 2 and page.count("<polyline") == 4
    assert set(re.findall(r'height="(\d+)"', page)) == {"28"}
    assert len(svg(rng.normal(size=(8, 100_000)))) < 25_000


def test_curves_show_each_chain_at_its_height():
    line = curves([[0.0] * 8, [3.0] * 8], width=4)[0]
    top_and_bottom = chr(0x2800 | 0x01 | 0x08 | 0x40 | 0x80)
    assert line == top_and_bottom * 4
    assert curves([[0.0, 1.0, 2.0, 3.0]], width=2)[0] == "⡠⠊"
    assert curves([[0.0, 1.0, np.nan, 3.0]], width=4, ascii=True)[0][0] == "."
    assert curves(np.full((2, 5), np.nan), width=4) == ["    "]


@pytest.mark.parametrize(("share", "text"), [(0, "...."), (0.5, "##.."), (1, "####"), (2, "####")])
def test_bar(share, text):
    assert bar(share, 4, ascii=True) == text and len(bar(share, 4)) == 4


def test_nothing_is_painted_at_once_nor_more_often_than_its_share_allows(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("workbench.live.time.perf_counter", lambda: clock[0])
    painted = []
    painter = Painter(
        "t", "text", share=0.02, every=0.25, write=lambda text: painted.append(clock.__setitem__(0, clock[0] + 0.01))
    )
    shown = []
    for i in range(1, 301):  # 30 seconds in blocks of 100 ms; a picture costs 10 ms
        before = len(painted)
        painter(progress(i, 300, i / 10))
        if len(painted) > before:
            shown.append(i / 10)
    assert shown[0] == 0.3 and np.min(np.diff(shown)) > 0.49
    assert painter.spent <= 0.021 * 30


def plain_lines(seconds, steps=1000):
    """At which of so many steps of a run of so many seconds a plain painter writes, and what."""
    lines = []
    painter = Painter("nuts line v2", "plain", write=lines.append)
    for i in range(1, steps + 1):
        painter(progress(i, steps, i * seconds / steps, rhat=1.01))
    return [int(re.search(r"sampling (\d+)/", line)[1]) for line in lines], lines


def test_plain_lines_come_at_shares_of_a_phase_and_not_within_half_a_minute():
    found, lines = plain_lines(100)
    assert found == [20, 320, 620, 920]
    assert lines[0] == "[nuts line v2] sampling 20/1000  rhat 1.010  10/s\n" and "\x1b" not in "".join(lines)
    assert plain_lines(1.99)[0] == [] and plain_lines(10)[0] == [200] and plain_lines(60)[0] == [34, 534]
    assert plain_lines(1000)[0] == [2, 100, 250, 500, 750, 1000]
    assert plain_lines(3600)[0] == [1, 85, 100, 184, 250, 334, 418, 500, 584, 668, 750, 834, 918, 1000]


def test_a_plain_line_tells_of_a_new_phase():
    lines = []
    painter = Painter("t", "plain", write=lines.append)
    for phase, begun in (("warmup", 0), ("sampling", 20)):
        for second in range(1, 41):
            painter(progress(second, 1000, begun + second, phase=phase))
    assert [line.split()[1:3] for line in lines] == [["warmup", "2/1000"], ["sampling", "12/1000"]]


def test_a_run_stops_when_it_is_asked_to():
    painter = Painter("t", "off", seconds=3.0, until=condition("rhat<1.01, divergences<=0"))
    assert painter(progress(seconds=1.0, rhat=1.2, divergences=0)) is None
    assert painter(progress(seconds=1.0, rhat=1.005, divergences=2)) is None
    assert painter(progress(seconds=1.0, rhat=1.005, divergences=0, phase="warmup")) is None
    assert painter(progress(seconds=1.0, rhat=float("nan"), divergences=0)) is None
    assert painter(progress(seconds=1.0, rhat=1.005, divergences=0)) == "enough"
    assert painter(progress(seconds=3.0, rhat=1.2)) == "time"
    with pytest.raises(ValueError, match="'rhot<1' is no condition"):
        condition("rhot<1")


def test_where_a_run_is_shown(monkeypatch):
    for name in ("CI", "GITHUB_ACTIONS", "GENMLX_CI", "GENMLX_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert backend(object(), None) == "text" and backend(object(), "off") == "off"
    monkeypatch.setenv("TERM", "dumb")
    assert backend(object(), None) == "plain"
    monkeypatch.setenv("GENMLX_DISPLAY", "html")
    assert backend(object(), None) == "html"
    monkeypatch.delenv("GENMLX_DISPLAY")
    kernel = type("Kernel", (), {"kernel": 1})()
    assert backend(kernel, None) == "html"
    monkeypatch.setenv("CI", "true")
    assert backend(kernel, None) == "plain"
