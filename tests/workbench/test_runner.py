"""`genmlx-nb` from outside: verdicts, messages, time limits, executed notebooks."""

import base64
import json
import re

import nbformat
import pytest

GOOD = """\
# %% [markdown]
# # Title

# %% Print
import sys
print("to stdout")
print("to stderr", file=sys.stderr)
40 + 2

# %% Plot
import matplotlib.pyplot as plt
plt.plot([1, 2]);

# %%
from IPython.display import HTML, display
handle = display(HTML("<b>old</b>"), display_id=True)
handle.update(HTML("<b>new</b>"))
"""

BAD = """\
# %%
def half(x):
    return x / 0

# %% Fail
y = 1

half(y)

# %%
print("never")
"""

STUCK = """\
# %% Stuck genmlx={"timeout": 0.2}
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
"""


def test_one_line_for_each_notebook(nb, tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "b.py").write_text("# %%\nassert 1 + 1 == 2\n")
    done = nb("good.py", "b.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"good\.py  ok +\d+\.\d s\nb\.py +ok +\d+\.\d s\n", done.stdout)


def test_executed_notebook_holds_the_outputs_in_order(nb, tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    assert nb("good.py", "--out", "made").returncode == 0
    notebook = nbformat.read(tmp_path / "made" / "good.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code", "code"]
    _, prints, plot, shows = notebook.cells
    assert prints.metadata.title == "Print" and prints.execution_count == 1
    assert [(o.output_type, o.get("name")) for o in prints.outputs] == [
        ("stream", "stdout"),
        ("stream", "stderr"),
        ("execute_result", None),
    ]
    assert prints.outputs[2].data["text/plain"] == "42"
    (figure,) = plot.outputs
    assert base64.b64decode(figure.data["image/png"]).startswith(b"\x89PNG")
    (shown,) = shows.outputs
    assert shown.data["text/html"] == "<b>new</b>"


def test_a_failing_cell_fails_the_run_and_is_named(nb, tmp_path):
    (tmp_path / "bad.py").write_text(BAD)
    (tmp_path / "b.py").write_text("# %%\n1\n")
    done = nb("bad.py", "b.py", "--out", "made")
    assert done.returncode == 1
    assert re.fullmatch(r"bad\.py  failed +\d+\.\d s\nb\.py +ok +\d+\.\d s\n", done.stdout)
    assert done.stderr.replace(str(tmp_path), "TMP") == (
        'bad.py:8 (cell 2 "# %% Fail") ZeroDivisionError: division by zero\n'
        "     6 | y = 1\n"
        "     7 |\n"
        ">    8 | half(y)\n"
        "     9 |\n"
        "    10 | # %%\n"
        "       in TMP/bad.py:3 half\n"
    )
    notebook = nbformat.read(tmp_path / "made" / "bad.ipynb", as_version=4)
    assert notebook.cells[1].outputs[-1].ename == "ZeroDivisionError"
    assert "\x1b" not in json.dumps(notebook)
    assert notebook.cells[2].outputs == [] and notebook.cells[2].execution_count is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("# %%\n# %nosuch", "a.py:2 (cell 1) UsageError: Line magic function `%nosuch` not found."),
        ("# %%\nx = = 1", "a.py:2 (cell 1) SyntaxError: invalid syntax"),
        ("# %%\nimport sys\nsys.exit(3)", "a.py:3 (cell 1) SystemExit: 3"),
        ("# %%\nimport os\nos._exit(5)", "a.py:2 (cell 1) the process ended with status 5"),
        ("# %%\nraise ValueError('\\x1b[31mred\\x1b[0m 3')", "a.py:2 (cell 1) ValueError: red 3"),
        ("x = 1", "a.py: not a notebook: no line starts with # %%"),
    ],
)
def test_golden_messages(nb, tmp_path, source, message):
    (tmp_path / "a.py").write_text(source + "\n")
    done = nb("a.py")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == message


def test_a_cell_past_its_time_is_stopped(nb, tmp_path):
    (tmp_path / "a.py").write_text("# %%\nimport time\ntry:\n    time.sleep(30)\nexcept Exception:\n    pass\n")
    done = nb("a.py", "--timeout", "0.5")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "a.py:4 (cell 1) CellTimeout: ran longer than 0.5 s"


def test_a_cell_that_cannot_be_stopped_ends_with_its_stack(nb, tmp_path):
    (tmp_path / "a.py").write_text(STUCK)
    done = nb("a.py")
    assert done.returncode == 1
    assert done.stderr.startswith('a.py:2 (cell 1 "# %% Stuck") could not be stopped\nTimeout (')
    assert re.search(r'a\.py", line \d in <module>', done.stderr)


def test_a_cell_that_swallows_its_timeout_fails_too(nb, tmp_path):
    late = "# %%\nimport time\nprint('half', 'way')\ntry:\n    time.sleep(30)\nexcept BaseException:\n    pass\n"
    (tmp_path / "a.py").write_text(late)
    done = nb("a.py", "--timeout", "0.5", "--out", "made")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "a.py:5 (cell 1) CellTimeout: ran longer than 0.5 s"
    assert lines[-1] == "       last printed: half way"
    (cell,) = nbformat.read(tmp_path / "made" / "a.ipynb", as_version=4).cells
    assert [output.get("ename") for output in cell.outputs] == [None, "CellTimeout"]


MODEL = """\
# %%
import os, signal
from genmlx import *

@gen
def line(xs):
    slope = trace("slope", normal(0, 10))
    trace("y", normal(slope * xs, 1))

xs, ys = mx.array([1.0, 2.0]), mx.array([2.0, 4.0])
def press(progress):
    if progress.phase == "sampling" and progress.done < progress.total:
        os.kill(os.getpid(), signal.SIGINT)
"""
INFER = """\
# %%
from workbench import live
live.Painter.__call__ = lambda self, progress: press(progress)
# %infer nuts line(xs) | given y=ys -n 300 -w 20
# %%
print("never")
"""
CALL = """\
# %%
post = nuts(line(xs), {"y": ys}, draws=300, warmup=20, progress=press)
# %%
print("never")
"""


@pytest.mark.parametrize(("cells", "line"), [(INFER, 17), (CALL, 15)])
@pytest.mark.parametrize("settings", ["", '[tool.genmlx]\non_interrupt = "return"\n'])
def test_an_interrupted_run_fails_with_its_draws_in_hand(nb, tmp_path, cells, line, settings):
    """A notebook that went on with the draws that there are would be green."""
    (tmp_path / "pyproject.toml").write_text(settings)
    (tmp_path / "a.py").write_text(MODEL + cells)
    done = nb("a.py", "--report", "report.json")
    assert done.returncode == 1
    assert re.match(rf"a\.py:{line} \(cell 2\) InferenceInterrupted: .*interrupted", done.stderr), done.stderr
    (notebook,) = json.loads((tmp_path / "report.json").read_text())["notebooks"]
    assert [cell["status"] for cell in notebook["cells"]] == ["ok", "failed", "not run"]


def test_a_long_run_is_stopped_in_time_and_fails(nb, tmp_path):
    (tmp_path / "a.py").write_text(MODEL + "# %%\n# %infer nuts line(xs) | given y=ys -n 100_000_000 -w 20\n")
    done = nb("a.py", "--timeout", "2")
    assert done.returncode == 1
    assert done.stderr.startswith("a.py:15 (cell 2) CellTimeout: ran longer than 2 s\n")
    assert re.search(r"genmlx/inference/loop\.py:\d+ run\n", done.stderr)


MEMORY = """\
# %% Keep
import mlx.core as mx
kept = mx.ones((1000, 1000))
mx.eval(kept)

# %% [markdown]
# Text

# %% Pass
passing = mx.ones((3000, 1000)); mx.eval(passing)
del passing

# %% Fail
1 / 0

# %% Never
2
"""


def test_the_report_has_status_seconds_and_memory_of_each_cell(nb, tmp_path):
    """Float32: 4 MB that stay, and 12 MB for a while."""
    (tmp_path / "a.py").write_text(MEMORY)
    (tmp_path / "b.py").write_text("# %%\n1\n")
    done = nb("a.py", "b.py", "--report", "report.json")
    assert done.returncode == 1
    first, second = json.loads((tmp_path / "report.json").read_text())["notebooks"]
    assert (first["notebook"], first["status"]) == ("a.py", "failed")
    assert first["error"] == done.stderr.strip() and "ZeroDivisionError" in first["error"]
    assert [(c["cell"], c["line"], c["title"], c["status"]) for c in first["cells"]] == [
        (1, 2, "Keep", "ok"),
        (3, 10, "Pass", "ok"),
        (4, 14, "Fail", "failed"),
        (5, 17, "Never", "not run"),
    ]
    keep, passes, fails, never = first["cells"]
    some = 100_000
    assert 4_000_000 <= keep["active_bytes"] <= keep["peak_bytes"] < 4_000_000 + some
    assert 4_000_000 <= passes["active_bytes"] < 4_000_000 + some
    assert 16_000_000 <= passes["peak_bytes"] < 16_000_000 + some
    assert fails["peak_bytes"] < 4_000_000 + some
    assert never["seconds"] is never["active_bytes"] is never["peak_bytes"] is None
    assert 0 < sum(cell["seconds"] for cell in first["cells"][:3]) < first["seconds"]
    assert (second["status"], second["error"], second["cells"][0]["status"]) == ("ok", None, "ok")


def test_a_cell_over_the_peak_fails(nb, tmp_path):
    (tmp_path / "a.py").write_text(MEMORY.replace("1 / 0", "1"))
    assert nb("a.py", "--max-peak", "17MB").returncode == 0
    done = nb("a.py", "--max-peak", "15MB", "--report", "report.json", "--out", "made")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == (
        'a.py:10 (cell 3 "# %% Pass") CellPeak: took 16.0 MB, more than the 15.0 MB of --max-peak'
    )
    (notebook,) = json.loads((tmp_path / "report.json").read_text())["notebooks"]
    assert [cell["status"] for cell in notebook["cells"]] == ["ok", "failed", "not run", "not run"]
    assert nbformat.read(tmp_path / "made" / "a.ipynb", as_version=4).cells[2].outputs[-1].ename == "CellPeak"


def test_what_there_is_of_a_process_that_died(nb, tmp_path):
    (tmp_path / "a.py").write_text("# %%\n40 + 2\n# %% End\nimport os\nos._exit(5)\n# %%\n1\n")
    assert nb("a.py", "--report", "report.json", "--out", "made").returncode == 1
    (notebook,) = json.loads((tmp_path / "report.json").read_text())["notebooks"]
    assert [cell["status"] for cell in notebook["cells"]] == ["ok", "failed", "not run"]
    assert set(notebook["cells"][1]) == {"cell", "line", "title", "status", "seconds", "active_bytes", "peak_bytes"}
    cells = nbformat.read(tmp_path / "made" / "a.ipynb", as_version=4).cells
    assert cells[0].outputs[0].data["text/plain"] == "42" and cells[1].execution_count is None


def test_a_process_that_dies_after_its_last_cell_fails_beside_what_failed_before(nb, tmp_path):
    (tmp_path / "a.py").write_text("# %%\nimport atexit, os\natexit.register(os._exit, 5);\n# %%\n1 / 0\n")
    done = nb("a.py")
    lines = done.stderr.splitlines()
    assert lines[0] == "a.py:5 (cell 2) ZeroDivisionError: division by zero"
    assert lines[-1] == "a.py the process ended with status 5"


def test_a_cell_may_change_the_folder(nb, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "a.py").write_text("# %%\nimport os\nos.chdir('d')\n# %%\n40 + 2\n")
    assert nb("a.py", "--out", "made").returncode == 0
    assert nbformat.read(tmp_path / "made" / "a.ipynb", as_version=4).cells[1].outputs[0].data["text/plain"] == "42"


def test_annotations_for_github(nb, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a,b.py").write_text("# %% Fail\nraise ValueError('50%\\r\\nlost')\n")
    path = str(tmp_path / "d" / "a,b.py")
    done = nb(path, GITHUB_ACTIONS="true", GITHUB_WORKSPACE=str(tmp_path))
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("::")]
    message = f'{path}:2 (cell 1 "# %25%25 Fail") ValueError: 50%25%0D%0Alost%0A     1 | # %25%25 Fail%0A>    2 | '
    assert line.startswith(f"::error file=d/a%2Cb.py,line=2::{message}raise ValueError('50%25")
    assert "::" not in nb(path).stdout and "::" not in nb(path, GITHUB_ACTIONS="").stdout
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [_code("1 / 0")], "nbformat": 4}))
    assert "\n::error file=a.ipynb::a.ipynb:1 (cell 1)" in nb("a.ipynb", GITHUB_ACTIONS="true").stdout


def _code(source):
    return {"cell_type": "code", "metadata": {}, "source": source}


PARAMETERS = """\
# %%
import math

# %% tags=["parameters"]
n = 10
# %seed 1
scale: float = 1.0

# %% Use
print(n, scale)
"""


def test_parameters_take_the_place_of_the_defaults(nb, tmp_path):
    (tmp_path / "a.py").write_text(PARAMETERS)
    done = nb("a.py", "-p", "n=3 * 4", "--parameter", "scale = math.sqrt(n)", "--out", "made")
    assert (done.returncode, done.stderr) == (0, "")
    _, default, given, use = nbformat.read(tmp_path / "made" / "a.ipynb", as_version=4).cells
    assert default.source.startswith("n = 10\n")
    assert given.source == "n = 3 * 4\nscale = math.sqrt(n)" and given.metadata.tags == ["injected-parameters"]
    assert use.outputs[0].text == "12 3.4641016151377544\n"


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        (PARAMETERS, "m=1", 'a.py: no parameter m: the cell tagged "parameters" has n, scale'),
        (PARAMETERS, "n=1/0", 'a.py -p:1 (cell 2 "# %% -p") ZeroDivisionError: division by zero'),
        ("# %%\n1\n", "n=1", 'a.py: -p needs one cell that is tagged "parameters"; there are 0'),
    ],
)
def test_parameters_that_are_none(nb, tmp_path, source, given, message):
    (tmp_path / "a.py").write_text(source)
    done = nb("a.py", "-p", given)
    assert done.returncode == 1 and done.stderr.splitlines()[0] == message


def test_a_fast_run_takes_fewer_draws_and_says_so(nb, tmp_path):
    cells = "# %%\n# %infer mh line(xs) | given y=ys -n 600 -w 700 -c 1 -o post\n# %%\n# %infer ! -n 40 -w 9 -o few\n"
    check = "# %%\nprint((post.draws, few.draws))\n"
    (tmp_path / "a.py").write_text(MODEL + cells + check)
    for fast, draws in (("1", "(60, 40)"), ("0", "(600, 40)")):
        assert nb("a.py", "--out", fast, GENMLX_FAST=fast).returncode == 0
        _, many, few, printed = nbformat.read(tmp_path / fast / "a.ipynb", as_version=4).cells
        assert printed.outputs[0].text == f"{draws}\n"
        note = "GENMLX_FAST=1: 60 of 600 draws, 70 of 700 steps of warm-up\n"
        shown = "".join(output.data["text/plain"] for output in many.outputs if "data" in output)
        assert (note in shown) == (fast == "1")
        assert "GENMLX_FAST" not in json.dumps(few.outputs)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nosuch.py"],
        ["--nosuch", "a.py"],
        ["a.py", "d/a.py", "--out", "made"],
        ["a.py", "-p", "n"],
        ["a.py", "-p", "1n=2"],
        ["a.py", "-p", "n=="],
        ["a.py", "--max-peak", "2XB"],
        ["a.py", "--to-ipynb", "--out", "made"],
        ["b.ipynb", "--to-ipynb"],
        ["b.ipynb", "--out", "."],
    ],
)
def test_unusable_arguments_leave_status_2(nb, tmp_path, arguments):
    (tmp_path / "d").mkdir()
    for path in ("a.py", "d/a.py", "b.ipynb"):
        (tmp_path / path).write_text("# %%\n1\n")
    done = nb(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "nosuch.py" in done.stderr or arguments != ["nosuch.py"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.py", "b.ipynb", "d"]
