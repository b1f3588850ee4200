"""A terminal that is narrower than the settings say, and than COLUMNS says, which may be of another terminal."""

import pytest
from terminal import Terminal


@pytest.fixture
def narrow(environment, tmp_path):
    environment = {**environment, "COLUMNS": "120"}
    shell = Terminal(["-m", "workbench.shell", "--no-banner"], environment, tmp_path, rows=60, columns=60)
    shell.wait(r"^gen\[1\]>")
    yield shell
    shell.process.close(force=True)


def test_a_picture_of_a_run_is_painted_over_and_taken_away(narrow):
    """A line that is wider than the screen takes two rows, and painting over it leaves the first one behind."""
    narrow.type("%%gen\rdef line(xs):\rslope ~ normal(0, 10)\ry ~ normal(slope * xs, 1)\r\r")
    narrow.wait(r"^gen\[2\]>")
    narrow.type("%infer mh line(mx.arange(5.0)) | given y=[2.1]*5 -n 9999999 --time 2\r")
    narrow.wait(r"sampling \d+/99")
    narrow.wait(r"^_post: stopped by --time")
    narrow.wait(r"^gen\[3\]>")
    assert narrow.screen.count("line v1") == 2 and "sampling" not in narrow.screen  # what %%gen said, and the report


def test_a_table_has_the_columns_that_there_is_room_for(narrow):
    narrow.type("%%gen\rdef line(xs):\rslope ~ normal(0, 10)\ry ~ normal(slope * xs, 1)\r\r")
    narrow.wait(r"^gen\[2\]>")
    narrow.type("%infer mh line(mx.arange(5.0)) | given y=[2.1]*5 -n 1234\r")
    narrow.wait(r"^no room for ess_tail, mcse_mean$")
    narrow.wait(r"^ +mean +sd +q5 +q95 +ess_bulk +rhat$")
