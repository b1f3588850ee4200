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


@pytest.mark.parametrize("arguments", [[], ["nosuch.py"], ["--nosuch", "a.py"], ["a.py", "d/a.py", "--out", "made"]])
def test_unusable_arguments_leave_status_2(nb, tmp_path, arguments):
    (tmp_path / "d").mkdir()
    for path in ("a.py", "d/a.py"):
        (tmp_path / path).write_text("# %%\n1\n")
    done = nb(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "nosuch.py" in done.stderr or arguments != ["nosuch.py"]
