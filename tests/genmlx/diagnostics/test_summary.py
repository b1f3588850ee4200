"""The table: its numbers, its text, its HTML, its indexing."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from genmlx.diagnostics import Row, Summary, ess, ess_tail, mcse, rhat, summarize


def draws() -> dict:
    rng = np.random.default_rng(0)
    slope = rng.normal(2, 0.1, size=(4, 1000))
    walk = rng.normal(size=(4, 1000)).cumsum(axis=1)
    broken = rng.normal(size=(4, 1000))
    broken[2, 5] = math.inf
    return {
        "slope": slope,
        ("y", 3): slope > 2,
        "theta": rng.normal([1e3, -1e-5], [300.0, 1e-6], size=(4, 1000, 2)),
        "cov": rng.integers(0, 5, size=(4, 1000, 1, 2)),
        "walk": walk,
        "n": np.full((4, 1000), 3),
        "broken": broken,
    }


def test_the_printed_table():
    """Digits that the error does not support, a column out of line, a warning that is missing or cries wolf."""
    assert repr(summarize(draws())) == "\n".join(
        [
            "                mean        sd           q5         q95  mcse_mean  ess_bulk  ess_tail   rhat",
            "slope         1.9985    0.0998       1.8373      2.1648     0.0016     3,926     4,027  1.000",
            "y/3           0.4868    0.4999       0.0000      1.0000     0.0080     3,872     3,872  1.001",
            "theta[0]      1001.1     295.7        523.3      1485.0        4.9     3,634     3,916  1.000",
            "theta[1]  -9.996e-06  9.97e-07  -1.1619e-05  -8.377e-06    1.6e-08     3,948     3,761  1.001",
            "cov[0,0]       2.011     1.424        0.000       4.000      0.023     4,005     3,854  1.001",
            "cov[0,1]       1.976     1.410        0.000       4.000      0.022     3,955     3,921  1.000",
            "walk             1.7      15.7        -22.5        31.9        6.7         5        11  1.896",
            "n                  3         0            3           3          -         -         -      -",
            "broken           nan       nan          nan         nan        nan       nan       nan    nan",
            "4 chains x 1,000 draws; q5 to q95 is the equal-tailed 90% interval",
            "constant: n",
            "! nan or infinity in broken: look for what overflows, or for a bound that is left",
            "! rhat > 1.01: walk (1.896): the chains disagree; run longer, warmup too, or reparameterise",
            "! bulk ess < 400: walk (5): means are rough; reparameterise, or take another sampler or proposal",
        ]
    )


def test_columns_are_the_diagnostics_of_each_element():
    """Elements named in another order than they are computed in."""
    data = draws()
    table = summarize(data)
    for index in range(2):
        row, x = table[f"theta[{index}]"], data["theta"][..., index]
        assert row.mean == pytest.approx(x.mean(), rel=1e-12) and row.sd == pytest.approx(x.std(ddof=1))
        assert [row.q5, row.q95] == pytest.approx(np.quantile(x, [0.05, 0.95]))
        assert [row.mcse_mean, row.ess_bulk] == pytest.approx([mcse(x), ess(x)])
        assert [row.ess_tail, row.rhat] == pytest.approx([ess_tail(x), rhat(x)])
    assert table["cov[0,1]"].mean == pytest.approx(data["cov"][..., 0, 1].mean())


def test_indexing():
    """Rows by name, element, tuple; a vector as a table; iteration and length over rows."""
    table = summarize(draws())
    assert table["slope"]["mean"] == table["slope"].mean == table.to_dict()["slope"]["mean"]
    assert table["y", 3] is table["y/3"] and table["y/3"].name == "y/3"
    theta = table["theta"]
    assert isinstance(theta, Summary) and list(theta) == ["theta[0]", "theta[1]"]
    assert theta["theta[1]"] is table["theta[1]"] and (theta.chains, theta.draws) == (4, 1000)
    expected = ["slope", "y/3", "theta[0]", "theta[1]", "cov[0,0]", "cov[0,1]", "walk", "n", "broken"]
    assert list(table) == list(table.to_dict()) == expected and len(table) == 9
    assert list(table.to_dict()["n"]) == "mean sd q5 q95 mcse_mean ess_bulk ess_tail rhat".split()


def test_names_that_are_not_there():
    """A bare KeyError leaves the reader to guess."""
    table = summarize(draws())
    for name, message in {
        "slop": "no row 'slop' in this summary; the nearest is 'slope'",
        "theta[2]": "no row 'theta[2]' in this summary; the nearest is 'theta[1]'",
        ("y", 4): "no row 'y/4' in this summary; the nearest is 'y/3'",
        "mean": "no row 'mean' in this summary; the nearest is 'theta'",
    }.items():
        with pytest.raises(KeyError) as missing:
            table[name]
        assert missing.value.args == (message,)
    with pytest.raises(KeyError, match="no column 'r_hat' in this row; the nearest is 'rhat'"):
        table["slope"]["r_hat"]
    with pytest.raises(KeyError, match="it is empty"):
        summarize({})["slope"]


def test_a_constant_is_not_a_failure():
    """0.1 has a rounded mean: a standard deviation of 1e-17 in place of zero would make it a bad sampler."""
    table = summarize({"c": np.full((3, 100), 0.1)})
    row = table["c"]
    assert row.constant and (row.mean, row.sd, row.q5, row.q95) == (0.1, 0, 0.1, 0.1)
    assert all(math.isnan(row[column]) for column in ("mcse_mean", "ess_bulk", "ess_tail", "rhat"))
    assert table.warnings == [] and "constant: c" in repr(table)


def test_warnings_name_the_worst_first_and_say_how_many_more():
    """A list in table order hides the worst row behind others."""
    x = np.random.default_rng(1).normal(size=(4, 200, 8)) + np.arange(4)[:, None, None] * np.arange(8)
    rhat_line, ess_line = summarize({"x": x}).warnings
    assert re.fullmatch(r"rhat > 1\.01: x\[7\] \(.*\), x\[6\] .*, x\[3\] \(.*\) and 2 more: the chains .*", rhat_line)
    assert re.fullmatch(r"bulk ess < 400: x\[[567]\] \(4\), .*, x\[3\] \(4\) and 2 more: means .*", ess_line)


def test_long_tables_print_their_ends_and_keep_everything():
    """A table of a thousand rows would fill the screen; one that drops rows would lose data."""
    table = summarize({"x": np.random.default_rng(2).normal(size=(2, 300, 41))})
    lines = repr(table).splitlines()
    assert lines[15].startswith("x[14]") and lines[16] == "... 11 more rows" and lines[17].startswith("x[26]")
    assert len(table) == 41 and table["x[20]"].mean == table.to_dict()["x[20]"]["mean"]
    assert '<td colspan="9">... 11 more rows</td>' in table._repr_html_()
    short = summarize({"x": np.random.default_rng(2).normal(size=(2, 300, 40))})
    assert "more rows" not in repr(short) + short._repr_html_() and short._repr_html_().count("<tr>") == 41


def test_html_holds_the_cells_of_the_text():
    """Names are the user's: unescaped, one closes the table or runs a script."""
    x = np.random.default_rng(3).normal(size=(2, 300))
    table = summarize({"<script>&": x, "a": x.cumsum(axis=1)})
    html = table._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;&amp;" in html and "! rhat &gt; 1.01" in html

    class Cells(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found, self.open = [], []

        def handle_starttag(self, tag, attrs):
            self.open += [tag] if tag != "br" else []

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_data(self, data):
            self.found += data.split()

    cells = Cells()
    cells.feed(html)
    assert not cells.open and cells.found == repr(table).split()


@pytest.mark.parametrize(
    ("mean", "error", "shown"),
    [
        (1.23456, 0.0123, ("1.235", "0.012")),
        (1.23456, 0.0996, ("1.23", "0.10")),
        (12345.6, 34.2, ("12346", "34")),
        (-0.0004, 0.12, ("0.00", "0.12")),
        (1.5e12, 2.5e9, ("1.5000e+12", "2.5e+09")),
        (1.5e-12, 2.5e-14, ("1.500e-12", "2.5e-14")),
    ],
)
def test_digits_follow_the_error(mean, error, shown):
    """Two significant figures of the error, and the mean to the same place."""
    table = Summary({"x": {"x": Row("x", mean, 1, 0, 1, error, 500, 500, 1)}}, 4, 1000)
    cells = repr(table).splitlines()[1].split()
    assert (cells[1], cells[5]) == shown


def test_edges_of_summarize():
    """No sites, a site without elements, one chain, a vector of one."""
    assert repr(summarize({})) == "no rows" and len(summarize({})) == 0 and summarize({})._repr_html_()
    x = np.random.default_rng(4).normal(size=(1, 50))
    table = summarize({"none": np.zeros((1, 50, 0)), "x": x, "one": x[..., None]})
    assert list(table) == ["x", "one[0]"] and len(table["none"]) == 0 and isinstance(table["one"], Summary)
    assert "1 chain x 50 draws" in repr(table) and "! bulk ess < 100: " in repr(table)


def test_errors_of_summarize():
    """Runs of different length share no number of chains; two rows of one name hide one of them."""
    x = np.random.default_rng(5).normal(size=(2, 50))
    with pytest.raises(ValueError) as differ:
        summarize({"a": x, ("b", 0): x[:, 10:]})
    assert str(differ.value) == (
        "arrays of one table differ in [chains, draws]: (2, 50) at a, (2, 40) at b/0\n"
        "expected: the same number of chains and of draws everywhere\n"
        "try: one table for each run"
    )
    with pytest.raises(ValueError) as twice:
        summarize({"y/3": x, ("y", 3): x})
    assert str(twice.value) == (
        "two rows or sites of the table would be called y/3\n"
        "expected: addresses that differ when they are printed\n"
        "try: rename one of the two"
    )
    with pytest.raises(ValueError, match=r"called y\[0\]"):
        summarize({"y": x[..., None], "y[0]": x})


def test_a_narrow_table_leaves_columns_out_and_names_them():
    """Each width keeps the name, the mean, the effective size and R-hat; 40 columns have no room for more."""
    table = summarize({"slope": np.random.default_rng(0).normal(2, 0.1, size=(4, 1000))})
    assert table.text(75) == repr(table) and "no room" not in repr(table)
    rows = {}
    for width in (72, 60, 50, 40, 10):
        rows[width] = head, row, narrow, *_ = table.text(width).splitlines()
        assert max(len(head), len(row)) <= max(width, 31) and narrow.startswith("no room for ess_tail")
    assert rows[60][0].split() == ["mean", "sd", "q5", "q95", "ess_bulk", "rhat"]
    assert rows[50][0].split() == ["mean", "sd", "ess_bulk", "rhat"]
    assert rows[10][0].split() == ["mean", "ess_bulk", "rhat"]
    assert rows[50][2] == "no room for ess_tail, mcse_mean, q5, q95"
