"""The .ipynb twins of scripts: what is in them, and that those in the repository are in step."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from workbench.ipynb import twin
from workbench.percent import read_notebook

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = REPOSITORY / "notebooks"
SCRIPT = """\
# %% [markdown]
# # Coins: "é"
#
# Text

# %% Model genmlx={"timeout": 300}
# %%gen
def coin(n):
    p ~ beta(1, 1)
    heads ~ binomial(n, p)

# %%
# %trace coin(10) | given heads=7, p=0.5

# %%
x = 1

# %%
x = 1

# %% tags=["test"]
# %infer mh coin(10) | given heads=7 -n 20 -c 1 -o post;
print(post.draws, x)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


def test_the_cells_of_a_twin(nb, script):
    done = nb("--to-ipynb", "a.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a.ipynb\n", "")
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    text, load, model, shows, *_ = notebook.cells
    assert (text.cell_type, text.source) == ("markdown", '# Coins: "é"\n\nText')
    assert (load.cell_type, load.source) == ("code", "%load_ext genmlx")
    assert model.source.startswith("%%gen\ndef coin(n):\n    p ~ beta(1, 1)\n")
    assert dict(model.metadata) == {"title": "Model", "genmlx": {"timeout": 300}}
    assert shows.source == "%trace coin(10) | given heads=7, p=0.5"
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells[1:])
    assert len({cell.id for cell in notebook.cells}) == 7


def test_a_twin_read_back_has_the_cells_of_the_script(script):
    script.with_suffix(".ipynb").write_text(twin(script), encoding="utf-8")
    before, after = read_notebook(script), read_notebook(script.with_suffix(".ipynb"))
    assert before is not None and after is not None
    del after[1]
    assert [(c.kind, c.source, c.title, c.metadata) for c in after] == [
        (c.kind, c.source, c.title, c.metadata) for c in before
    ]


def test_a_cell_that_is_put_in_changes_no_other(script):
    before = json.loads(twin(script))["cells"]
    script.write_text(SCRIPT.replace("# %% Model", "# %%\nnew = 1\n\n# %% Model"), encoding="utf-8")
    after = json.loads(twin(script))["cells"]
    assert [cell for cell in after if cell["source"] != ["new = 1"]] == before and len(after) == len(before) + 1


def test_a_script_that_loads_the_extension_keeps_its_own_cell(script):
    script.write_text(SCRIPT.replace("x = 1", "# %load_ext genmlx", 1), encoding="utf-8")
    assert twin(script).count("%load_ext genmlx") == 1


def test_a_twin_runs_in_an_ipython_that_knows_nothing_of_us(script, environment):
    script.with_suffix(".ipynb").write_text(twin(script), encoding="utf-8")
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "a.ipynb"]
    done = subprocess.run(command, cwd=script.parent, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("20 1\n"), done.stdout + done.stderr


def test_what_has_no_twin(nb, tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    done = nb("--to-ipynb", "a.py")
    assert (done.returncode, done.stderr) == (1, "a.py: not a notebook: no line starts with # %%\n")
    assert not (tmp_path / "a.ipynb").exists()


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_the_twins_in_the_repository_are_in_step(path):
    assert path.read_text(encoding="utf-8") == twin(path.with_suffix(".py")), f"run genmlx-nb --to-ipynb {path.stem}.py"


def test_the_readme_links_twins_that_are_there():
    linked = re.findall(r"\]\((notebooks/[^)]*\.ipynb)\)", (REPOSITORY / "README.md").read_text())
    assert len(linked) >= 4 and all((REPOSITORY / link).is_file() for link in linked), linked
    scripts = re.findall(r"\]\((notebooks/[^)]*\.py)\)", (REPOSITORY / "README.md").read_text())
    assert all((REPOSITORY / link).is_file() for link in scripts)
