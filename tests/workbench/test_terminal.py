"""The prompt on a real terminal: what a person sees, read off a screen model."""

import os
import re
import time

import pytest
from terminal import Terminal


@pytest.fixture
def terminal(environment, tmp_path):
    opened: list[Terminal] = []

    def start(*arguments: str, reports: bool = False) -> Terminal:
        opened.append(Terminal([*arguments], environment, tmp_path, reports))
        return opened[-1]

    yield start
    for one in opened:
        one.process.close(force=True)


def test_a_session_at_the_prompt(terminal):
    shell = terminal("-m", "workbench.shell")
    shell.wait(r"^gen\[1\]>")
    assert re.match(r"GenMLX \d+\.\d+\.\d+ +mlx \d+\.\d+\.\d+ +Device\(", shell.screen)

    shell.type("@gen\rdef coin(n):\rp = trace('p', normal(0, 1))\rreturn p\r\r")
    shell.wait(r"^gen\[2\]>")
    assert "   ...:     p = trace('p', normal(0, 1))" in shell.screen

    shell.type("coin(3).simulate(key=mx.random.key(0))['p'].shape\r")
    shell.wait(r"^Out\[2\]: \(\)")
    shell.wait(r"^gen\[3\]>")

    shell.type("import time; time.sleep(60)\r")
    time.sleep(0.3)
    shell.type("\x03")
    shell.wait(r"KeyboardInterrupt:")
    shell.wait(r"^gen\[4\]>")

    shell.type("coin.no_such\r")
    shell.wait(r"AttributeError")
    shell.wait(r"^gen\[5\]>")
    shell.type("exit\r")
    assert shell.status() == 0


def test_control_d_leaves_without_a_question(terminal):
    shell = terminal("-m", "workbench.shell", "--no-banner")
    shell.wait(r"^gen\[1\]>")
    assert "GenMLX" not in shell.screen
    shell.type("\x04")
    assert shell.status() == 0


def test_history_is_kept_for_the_next_session(terminal):
    first = terminal("-m", "workbench.shell")
    first.wait(r"^gen\[1\]>")
    first.type("6 * 7\r")
    first.wait(r"^Out\[1\]: 42")
    first.wait(r"^gen\[2\]>")
    first.type("\x04")
    assert first.status() == 0
    second = terminal("-m", "workbench.shell")
    second.wait(r"^gen\[1\]>")
    second.type("\x1b[A")
    second.wait(r"^gen\[1\]> 6 \* 7")


LINE = "%%gen\rdef line(xs):\rslope ~ normal(0, 10)\ry ~ normal(slope * xs, 1)\r\r"


def test_ctrl_c_in_a_run_keeps_what_was_drawn(terminal):
    """The run says at once that it has heard, ends with the block at hand, and the posterior is there."""
    shell = terminal("-m", "workbench.shell", "--no-banner")
    shell.wait(r"^gen\[1\]>")
    shell.type(LINE)
    shell.wait(r"^gen\[2\]>")
    shell.type("%infer mh line(mx.arange(3)) | given y=[0, 1, 2] -n 10000000 -o post\r")
    shell.wait(r"sampling \d+/10000000")
    shell.wait(r"^ slope +\S+ +rhat \d")  # the curve of an address, and its R-hat
    shell.type("\x03")
    shell.wait(r"^post: interrupted at \d+/10000000 draws \(4 chains\)")
    shell.wait(r"^gen\[3\]>")
    assert "sampling" not in shell.screen and re.search(r"^slope +\d", shell.screen, re.MULTILINE)
    shell.type("post.status\r")
    shell.wait(r"^Out\[3\]: 'interrupted'")


def test_a_figure_in_a_terminal_is_painted_in_place(terminal):
    shell = terminal("-m", "workbench.shell", "--no-banner")
    shell.wait(r"^gen\[1\]>")
    shell.type(LINE)
    shell.wait(r"^gen\[2\]>")
    shell.type("%infer mh line(mx.arange(3)) | given y=[0, 1, 2] -n 10000000 --time 3 --live mpl -o post\r")
    shell.wait(r"^sampling [\d,]+ of 10,000,000\nslope\n")
    assert shell.screen.count("of 10,000,000") == 1 and re.search("[\u2801-\u28ff]", shell.screen)
    shell.wait(r"^gen\[3\]>")
    assert "of 10,000,000" not in shell.screen and "post: stopped by --time at" in shell.screen
    shell.type("_fig.kind\r")
    shell.wait(r"^Out\[3\]: 'live'")


def test_the_toolbar(terminal):
    shell = terminal("-m", "workbench.shell", "--no-banner", reports=True)
    shell.wait(r"^ genmlx - Device\(cpu, 0\) - active 0 B - cache 0 B - peak 0 B$")
    shell.type(LINE)
    shell.wait(r"^gen\[2\]>")
    shell.wait(r"peak \d+ B - line v1$")
    shell.type("%infer mh line(mx.arange(3)) | given y=[0, 1, 2] -n 50 -c 2;\r")
    shell.wait(r"^gen\[3\]>")
    shell.wait(r"- line v1 - post 2x50$")
    shell.type("%%gen\rdef line(xs):\rslope ~ normal(0, 10\r\r")
    shell.wait(r"^gen\[4\]>")
    shell.wait(r"- line v1 - post 2x50  line!$")
    shell.type(LINE)
    shell.wait(r"^gen\[5\]>")
    shell.wait(r"- line v1 - post 2x50$")


HEAVY = ("jedi", "matplotlib", "nbformat", "numpy", "rich", "scipy")


def test_the_prompt_needs_no_heavy_package(terminal):
    shell = terminal("-m", "workbench.shell", "--no-banner")
    shell.wait(r"^gen\[1\]>")
    shell.type(f"import sys; sorted(set({HEAVY}) & set(sys.modules))\r")
    shell.wait(r"^Out\[1\]: \[\]")


@pytest.mark.skipif("GENMLX_FULL" not in os.environ, reason="a timing, for an idle machine: set GENMLX_FULL=1")
def test_the_prompt_comes_nearly_as_fast_as_ipythons(environment, tmp_path):
    compiled = {**environment, "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    programs = {r"^gen\[1\]>": ["-m", "workbench.shell"], r"^In \[1\]:": ["-m", "IPython", "--no-banner"]}
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(8):
        for pattern, arguments in programs.items():
            one = Terminal(arguments, compiled, tmp_path)
            best[pattern] = min(best[pattern], one.wait(pattern))
            one.process.close(force=True)
    ours, plain = best.values()
    assert ours <= 1.25 * plain, f"{ours:.3f} s against {plain:.3f} s"
