"""The percent format, as jupytext and editors write it: https://jupytext.readthedocs.io (formats)."""

import json

import pytest

from workbench.percent import NotebookError, is_percent, parse_ipynb, parse_percent, read_notebook

NOTEBOOK = '''\
# ---
# jupytext: {}
# ---

# %% [markdown]
# # Title
#
# Text

# %%

x = 1

# %% Sample it tags=["test", "slow"] genmlx={"timeout": 300}
if x:
    # %time x
    # a comment
    pass

# %%time
# %% Options {"tags": ["a"]}
#%%
y = """
  # %% not at the margin
"""
# %% [md]
"""
Prose in a string
"""
# %%
'''


def test_cells_their_lines_and_their_options():
    cells = parse_percent(NOTEBOOK, "a.py")
    assert [(c.number, c.kind, c.line, c.title) for c in cells] == [
        (1, "markdown", 6, ""),
        (2, "code", 12, ""),
        (3, "code", 15, "Sample it"),
        (4, "code", 22, "Options"),
        (5, "code", 23, ""),
        (6, "markdown", 27, ""),
        (7, "code", 31, ""),
    ]
    assert cells[0].source == "# Title\n\nText"
    assert cells[2].metadata == {"tags": ["test", "slow"], "genmlx": {"timeout": 300}}
    assert cells[2].source == "if x:\n    %time x\n    # a comment\n    pass\n\n%%time"
    assert cells[3].metadata == {"tags": ["a"]} and cells[3].source == ""
    assert cells[5].source == "Prose in a string"


def test_every_code_line_stands_where_the_file_has_it():
    lines = NOTEBOOK.splitlines()
    for cell in parse_percent(NOTEBOOK, "a.py"):
        for offset, text in enumerate(cell.source.splitlines()):
            if cell.kind == "code" and "%" not in text:
                assert lines[cell.line - 1 + offset] == text


def test_code_above_the_first_marker_is_a_cell_and_comments_are_not():
    assert [c.line for c in parse_percent("# note\nimport a\n# %%\nb", "a.py")] == [1, 4]
    assert [c.line for c in parse_percent("# note\n\n# %%\nb", "a.py")] == [4]


@pytest.mark.parametrize("text", ["", "x = 1\n", "# %time x", "# 5 %% 3", " # %%", "x = 1  # %%"])
def test_a_script_without_markers_is_no_notebook(text, tmp_path):
    assert not is_percent(text)
    (tmp_path / "a.py").write_text(text)
    assert read_notebook(tmp_path / "a.py") is None


def test_a_title_that_looks_like_an_option_stays_a_title():
    (cell,) = parse_percent("# %% Where x=y holds", "a.py")
    assert cell.title == "Where x=y holds" and cell.metadata == {}


def test_ipynb_sources_as_string_or_as_lines():
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "# Hi"},
        {"cell_type": "code", "metadata": {"tags": ["a"]}, "source": ["x\n", "y"], "outputs": []},
    ]
    first, second = parse_ipynb(json.dumps({"cells": cells, "nbformat": 4}), "/a.ipynb")
    assert (first.kind, first.source) == ("markdown", "# Hi")
    assert (second.source, second.metadata, second.filename) == ("x\ny", {"tags": ["a"]}, "/a.ipynb#cell2")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"worksheets": []}', '{"cells": [{}]}'])
def test_what_is_not_a_notebook_is_refused(text):
    with pytest.raises(NotebookError, match="not a notebook of format 4"):
        parse_ipynb(text, "a.ipynb")


def test_the_declared_encoding_of_a_script(tmp_path):
    path = tmp_path / "a.py"
    path.write_bytes("# -*- coding: latin-1 -*-\n# %%\ns = 'é'\n".encode("latin-1"))
    (cell,) = read_notebook(path) or []
    assert cell.source == "s = 'é'"
