"""``%taps``, ``%seed`` and ``%bench``, in a shell without a screen."""

import gc
import re

import pytest

from genmlx.taps import clear_taps, tap


@pytest.fixture(autouse=True)
def no_taps():
    clear_taps()
    yield
    clear_taps()


def test_taps(prompt):
    assert prompt("%taps") == "no taps"
    prompt("@gen\ndef m():\n    x = trace('x', delta(2.0))\n    tap(x, 'seen')")
    prompt("_ = m().simulate(), tap([1, 2]), tap(mx.arange(3), 'long name')")
    assert prompt("%taps") == (
        "seen       m  2.0\n              [1, 2]\nlong name     mx.array([0, 1, 2], mx.int32)"
    )
    assert prompt("%taps seen") == "seen  m  2.0" and prompt("%taps 'long name'").startswith("long name  mx.array(")
    assert prompt("%taps sen") == "no taps of 'sen'; there are long name, seen"
    assert prompt("%taps --clear") == "" and prompt("%taps") == "no taps"


def test_only_the_last_taps_are_listed(prompt):
    for i in range(45):
        tap(i)
    rows = prompt("%taps").splitlines()
    assert rows[0] == "... 5 earlier" and rows[1:] == [str(i) for i in range(5, 45)]


def test_live_taps_come_as_they_are_made(prompt, ip):
    assert prompt("%taps a --live") == "taps of 'a' are printed as they come; %taps --live ends it"
    assert prompt("_ = tap(1, 'a'), tap(2, 'b'), tap(3.5, 'a')") == "tap a  1\ntap a  3.5"
    assert prompt("%taps --live") == "taps are no longer printed as they come"
    assert prompt("_ = tap(1, 'a')") == ""
    prompt("%taps --live")
    ip.run_line_magic("unload_ext", "magics")
    assert prompt("import genmlx\n_ = genmlx.tap(1)") == ""
    ip.run_line_magic("load_ext", "magics")
    ip._genmlx_session.settings.mem = "off"


def test_seed(prompt):
    prompt("%seed 3 + 4")
    first = prompt.value("normal(0, 1).sample().item()")
    assert prompt("%seed") == "seed 7, 1 key taken since"
    prompt("n = 7\n%seed n")
    assert prompt.value("normal(0, 1).sample().item()") == first
    for bad in ("1.5", "True", "'a'"):
        _, screen = prompt.fails(f"%seed {bad}")
        assert f"a seed is a whole number, not {bad}" in screen
    assert prompt("%seed") == "seed 7, 1 key taken since"


def test_bench_counts_its_runs_and_evaluates_what_they_make(prompt):
    """A million floats that the cell names, and that nothing else asks for, take their 4 MB, or 8 with a copy."""
    prompt("calls = []")
    result = prompt.value("get_ipython().run_line_magic('bench', 'calls.append(1) -n 5')")
    assert len(prompt["calls"]) == 6 and result.runs == 5
    assert 0 < result.best <= result.median and result.first > 0
    big = prompt.value("get_ipython().run_cell_magic('bench', '-n 2', 'lazy = mx.ones(1000000) + 1\\nx = 3')")
    assert 4_000_000 <= big.peak_bytes <= 8_100_000
    assert "lazy" not in prompt.ip.user_ns and "x" not in prompt.ip.user_ns
    last = prompt.value("get_ipython().run_line_magic('bench', 'mx.ones(1000000) * 2 -n 1')")
    assert 4_000_000 <= last.peak_bytes <= 8_100_000


def test_the_line_of_bench(prompt):
    line = r"first [\d.]+ \w+   best [\d.]+ \w+   median [\d.]+ \w+ of {}   peak \+[\d.]+ \w+"
    assert re.fullmatch(rf"Out\[1\]: {line.format(4)}", prompt("%bench mx.ones(3) + 1 -n 2 + 2 -o timed"))
    assert re.fullmatch(line.format(4), repr(prompt["timed"]))
    assert prompt("%%bench -n 1 ;\nmx.ones(3)") == ""


def test_setup_runs_once_and_the_cell_reads_it(prompt):
    prompt("log = []\nk = 2")
    prompt("%%bench -n 3 --setup 'log.append(0); a = k * 10'\nb = a + k\nlog.append(b)\ndef f(): return b\nf()")
    assert prompt["log"] == [0, 22, 22, 22, 22]


def test_medians_and_bests(prompt, monkeypatch):
    """Would catch a first run among the timed ones, and the wrong middle. The clock ticks as it is told."""
    import magics.tools

    ticks = [0.0]

    def clock():
        return ticks[0]

    def bench(times, runs):
        left = iter(times)

        def once():
            return ticks.__setitem__(0, ticks[0] + next(left))

        return prompt.ip.magics_manager.registry["ToolMagics"]._timed(once, runs)

    prompt("%seed")  # loads the magics
    monkeypatch.setattr(magics.tools.time, "perf_counter", clock)
    result = bench([9, 4, 1, 2], 3)
    assert (result.first, result.best, result.median, result.runs) == (9, 1, 2, 3)
    assert bench([9, 4, 1, 2, 3], 4).median == 2.5
    assert bench([9, 0.5, 0.375, 0.25, 1, 1], None).runs == 3  # a second is over
    assert bench([9, 2, 2, 2, 2], None).runs == 3  # but three at least
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("%bench", "%bench needs a statement to time, or %%bench a cell"),
        ("%%bench mx\nmx", "%%bench times the cell"),
        ("%bench mx -n 0", "-n is a whole number of runs, not 0"),
        ("%bench mx -n 1.5", "-n is a whole number of runs, not 1.5"),
        ("%%bench\n# nothing", "there is nothing to time"),
    ],
)
def test_misuse(prompt, cell, message):
    error, screen = prompt.fails(cell)
    assert type(error).__name__ == "UsageError" and message in screen


def test_errors_show_the_cell(prompt):
    error, screen = prompt.fails("%%bench\nx = 1\ny = x / 0\n")
    assert isinstance(error, ZeroDivisionError)
    assert "----> 3 y = x / 0" in screen and "magics" not in screen and gc.isenabled()
    error, screen = prompt.fails("%bench 1 +")
    assert isinstance(error, SyntaxError) and "1 +\n" in screen and "Traceback" not in screen


