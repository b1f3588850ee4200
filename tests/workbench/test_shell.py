"""`genmlx-shell` from outside: what it prints, where, and the status it leaves."""

import json
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

NOTEBOOK = """\
# A notebook for the tests
import sys

# %% [markdown]
# # Title

# %%
x = 2
x + 1

# %% Divide

def ratio(a):
    return a / (x - 2)

# %%
ratio(1)
"""


@pytest.mark.parametrize(
    ("code", "status", "stdout"),
    [
        ("1 + 1", 0, "2\n"),
        ("x = 3\nx", 0, "3\n"),
        ("1 + 1;", 0, ""),
        ("", 0, ""),
        ("", 0, ""),
        ("mx.array(1.5).item(), genmlx.__name__, callable(gen)", 0, "(1.5, 'genmlx', True)\n"),
        ("print(__name__)", 0, "__main__\n"),
        ("import sys; sys.exit(7)", 7, ""),
        ("exit(4)", 4, ""),
        ("raise SystemExit", 0, ""),
        ("1 / 0", 1, ""),
        ("x = = 1", 1, ""),
        ("%nosuchmagic", 1, ""),
    ],
)
@pytest.mark.parametrize("form", ["-c", "stdin", "ipy"])
def test_code_its_output_and_its_status(shell, tmp_path, form, code, status, stdout):
    if form == "-c":
        done = shell("-c", code)
    elif form == "stdin":
        done = shell(stdin=code)
    else:
        (tmp_path / "a.ipy").write_text(code)
        done = shell("a.ipy")
    assert (done.returncode, done.stdout) == (status, stdout)
    assert "\x1b" not in done.stdout + done.stderr
    assert bool(done.stderr) == (status == 1)


def test_a_plain_script_runs_as_python_runs_it(shell, tmp_path):
    (tmp_path / "neighbour.py").write_text("VALUE = 5\n")
    (tmp_path / "a.py").write_text(
        textwrap.dedent(
            """\
            import sys
            from neighbour import VALUE
            VALUE
            print(__name__, __file__, sys.argv, VALUE)
            """
        )
    )
    done = shell("a.py", "--chains", "4", "-c")
    assert done.stdout == "__main__ a.py ['a.py', '--chains', '4', '-c'] 5\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_a_script_that_fails_names_its_own_lines_only(shell, tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    return 1 / 0\n\nf()\n")
    done = shell("a.py")
    assert done.returncode == 1 and done.stdout == ""
    assert re.findall(r"a\.py:(\d+)", done.stderr) == ["4", "2"]
    assert "workbench" not in done.stderr
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


def test_a_notebook_shows_each_cell_and_names_the_one_that_fails(shell, tmp_path):
    (tmp_path / "nb").mkdir()
    (tmp_path / "nb" / "x.py").write_text(NOTEBOOK)
    done = shell("nb/x.py")
    assert (done.returncode, done.stdout) == (1, "3\n")
    assert re.findall(r"nb/x\.py:(\d+)", done.stderr) == ["17", "14", "17"]
    assert done.stderr.splitlines()[-1] == "nb/x.py:17 (cell 5) ZeroDivisionError: division by zero"
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("\ny = = 1", 'a.py:6 (cell 2 "# %% Next") SyntaxError: invalid syntax'),
        ("%nosuch", 'a.py:5 (cell 2 "# %% Next") UsageError: Line magic function `%nosuch` not found.'),
        ("# %nosuch", 'a.py:5 (cell 2 "# %% Next") UsageError: Line magic function `%nosuch` not found.'),
        ("x\nimport nosuch", "a.py:6 (cell 2 \"# %% Next\") ModuleNotFoundError: No module named 'nosuch'"),
    ],
)
def test_golden_messages_of_cells(shell, tmp_path, cell, message):
    (tmp_path / "a.py").write_text(f"# %%\nx = 1\n\n# %% Next\n{cell}\n")
    done = shell("a.py")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == message


def test_an_ipynb_runs_like_a_percent_notebook(shell, tmp_path):
    cells = [("markdown", "# Hi"), ("code", "x = 2\nx"), ("code", "y = 1\nx / 0")]
    made = [{"cell_type": kind, "metadata": {}, "source": source} for kind, source in cells]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": made, "nbformat": 4}))
    done = shell("a.ipynb")
    assert (done.returncode, done.stdout) == (1, "2\n")
    assert done.stderr.splitlines()[-1] == "a.ipynb:2 (cell 3) ZeroDivisionError: division by zero"
    assert "----> 2 x / 0" in done.stderr


def test_cells_on_standard_input(shell):
    done = shell(stdin="# %%\nx = 3\nx\n# %%\nx / 0\n")
    assert (done.returncode, done.stdout) == (1, "3\n")
    assert done.stderr.splitlines()[-1] == "<stdin>:5 (cell 2) ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch.py"], "genmlx-shell: no such file: nosuch.py\n"),
        (["-i", "nosuch.py"], "genmlx-shell: no such file: nosuch.py\n"),
        (["."], "genmlx-shell: a directory, not a file: .\n"),
        (["--nosuch"], "genmlx-shell: unusable option --nosuch; genmlx-shell --help lists them\n"),
        (["--profile"], "genmlx-shell: unusable option --profile; genmlx-shell --help lists them\n"),
        (["-c"], "genmlx-shell: -c needs code to run\n"),
        (["broken.ipynb"], "genmlx-shell: cannot read broken.ipynb: not a notebook of format 4 (KeyError: 'cells')\n"),
    ],
)
def test_unusable_arguments_leave_status_2(shell, tmp_path, arguments, message):
    (tmp_path / "broken.ipynb").write_text("{}")
    done = shell(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_a_setting_that_ipython_refuses_leaves_status_2(shell):
    done = shell("--log-level=banana", "-c", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "banana" in done.stderr


def test_help_and_version(shell):
    assert shell("--help").stdout.startswith("usage: genmlx-shell")
    assert re.fullmatch(r"genmlx \d+\.\d+\.\d+\n", shell("--version").stdout)


def test_nothing_on_standard_input_is_fine(shell):
    done = shell()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_stay_after_code(shell):
    done = shell("-i", "--no-banner", "-c", "x = 20\nx", stdin="x + 1\nexit\n")
    assert done.returncode == 0
    assert done.stdout.startswith("20\n\ngen[2]> Out[2]: 21\n")


def test_stay_after_an_error(shell, tmp_path):
    (tmp_path / "a.py").write_text("# %%\nx = 20\n# %%\nx / 0\n")
    done = shell("-i", "--no-banner", "a.py", stdin="x + 1\nexit\n")
    assert done.returncode == 0
    assert "Out[3]: 21\n" in done.stdout
    assert done.stderr.splitlines()[-1] == "a.py:4 (cell 2) ZeroDivisionError: division by zero"


def test_figures_need_no_display_and_make_no_noise(shell, tmp_path):
    (tmp_path / "a.py").write_text(
        "# %%\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n# %%\nplt.plot([1, 2]);\n"
    )
    done = shell("a.py", DISPLAY=":77", PYTHONWARNINGS="error")
    assert (done.returncode, done.stdout) == (0, "<Figure size 640x480 with 1 Axes>\n" * 2)
    assert done.stderr == ""


def test_the_users_profile_applies_and_wins(shell, tmp_path):
    profile = tmp_path / "ipython" / "profile_default"
    (profile / "startup").mkdir(parents=True)
    (profile / "startup" / "00.py").write_text("from_startup = 11\n")
    (profile / "ipython_config.py").write_text(
        "c.TerminalInteractiveShell.confirm_exit = True\nc.IPCompleter.use_jedi = True\n"
    )
    code = "ip = get_ipython(); from_startup, ip.confirm_exit, ip.Completer.use_jedi"
    assert shell("-c", code).returncode == 1
    done = shell("-c", code, IPYTHONDIR=str(tmp_path / "ipython"))
    assert done.stdout == "(11, True, True)\n"


def test_no_escape_sequence_in_a_pipe_whatever_the_profile_says(shell, tmp_path):
    profile = tmp_path / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_config.py").write_text(
        "c.TerminalInteractiveShell.editing_mode = 'vi'\nc.InteractiveShell.colors = 'linux'\n"
    )
    for arguments in (["-c", "1 / 0"], ["-i", "-c", "1 / 0"]):
        done = shell(*arguments, IPYTHONDIR=str(tmp_path / "ipython"))
        assert "ZeroDivisionError" in done.stderr
        assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("text", ["# %%\nimport time\ntime.sleep(60)\n", "import time\ntime.sleep(60)\n"])
def test_an_interrupt_leaves_status_130(environment, tmp_path, text):
    marker = "print('started', flush=True)\n"
    (tmp_path / "a.py").write_text(text.replace("time.sleep", marker + "time.sleep"))
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench.shell", "a.py"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "KeyboardInterrupt" in stderr


HEAVY = {"IPython", "jedi", "matplotlib", "numpy", "rich", "scipy", "nbformat"}


def test_importing_the_language_imports_no_heavy_package(environment, tmp_path):
    code = f"import sys, genmlx\nfrom genmlx import *\nprint(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_star_gives_at_most_sixty_names(shell):
    done = shell("-c", "names = {}; exec('from genmlx import *', names); len(names) <= 61, 'trace' in names")
    assert done.stdout == "(True, True)\n"
