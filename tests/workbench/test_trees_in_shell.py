"""Trees on the way out of a process: no escape sequences in a pipe, and only characters that the stream can write."""

import pytest

CELL = "tr = normal(0, 1).generate(0.5).trace; m = choicemap({'a': 1, ('b', 0): 2.5}); display(tr); display([m]); m"
TREE = """\
normal(0, 1)   score -1.04
└── value   0.5   f32[]   -1.04
return  0.5
[choicemap({'a': 1, ('b', 0): 2.5})]
choicemap   2 addresses
├── a       1     int
└── b
    └── 0   2.5   float
"""


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_pipe(shell, variables):
    done = shell("-c", CELL, PYTHONIOENCODING="utf-8", **variables)
    assert (done.stdout, done.stderr) == (TREE, "")


def test_a_stream_that_knows_ascii_only(shell):
    done = shell("-c", CELL, PYTHONIOENCODING="ascii")
    plain = TREE.replace("├── ", "|-- ").replace("└── ", "`-- ")
    assert (done.stdout, done.stderr) == (plain, "")
