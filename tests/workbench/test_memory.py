"""The memory line and ``%mem``."""

from types import SimpleNamespace

import mlx.core as mx
import pytest

from workbench.memory import Meter, holders, line, notable, shown, size_of, speaks


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (4_000_000, "4.0 MB"), (124_000_000, "124 MB"), (999_600, "1.0 MB")],
)
def test_sizes(size, text):
    assert shown(size) == text and shown(-size, signed=True) == ("+" if size == 0 else "-") + text


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("512 mb", 512 * 10**6), ("1.5g", 1_500_000_000), ("77", 77)]
)
def test_sizes_that_are_typed(text, size):
    assert size_of(text) == size


def test_no_size():
    for text in ("4XB", "", "GB"):
        with pytest.raises(ValueError, match="is no size: 512MB, 4GB"):
            size_of(text)


def test_a_cell_is_charged_with_what_it_keeps_and_its_peak_with_what_it_took():
    meter = Meter()
    meter.begin()
    kept = mx.ones((500, 1000))
    mx.eval(kept)
    passing = mx.ones((1000, 1000))
    mx.eval(passing)
    before = mx.get_active_memory() - 6_000_000
    del passing
    cell = meter.end()
    assert cell is not None and cell["change"] == 2_000_000
    assert cell["peak"] >= before + 6_000_000 and meter.session_peak >= cell["peak"]
    assert notable(cell) and len(line(cell)) <= 80 and line(cell).startswith("mem +2.0 MB (active ")
    assert kept.shape == (500, 1000)


def test_cells_nest_and_an_end_without_a_beginning_says_nothing():
    meter = Meter()
    assert meter.end() is None
    meter.begin()
    meter.begin()
    inner, outer = meter.end(), meter.end()
    assert inner is not None and outer is not None and outer["seconds"] >= inner["seconds"]


def test_a_cell_is_charged_with_its_peak_before_one_that_it_runs():
    meter = Meter()
    meter.begin()
    passing = mx.ones((1000, 1000))
    mx.eval(passing)
    del passing
    meter.begin()
    inner = meter.end()
    assert inner is not None and meter.last is None
    outer = meter.end()
    assert outer is not None and meter.last is outer
    assert outer["peak"] >= inner["peak"] + 4_000_000


@pytest.mark.parametrize(
    ("source", "says"),
    [("x = 1", True), ("", False), ("# note", False), ("%mem --top 3", False), ("line?", False), ("%mem\nx", True)],
)
def test_which_cells_get_a_line(source, says):
    assert speaks(source) == says


def test_the_largest_names_and_what_out_pins():
    big, small = mx.zeros((1000, 1000)), mx.zeros((10,))
    names = {"small": small, "both": [big, small], "Out": {3: mx.zeros((100, 100))}, "text": "x", "_hidden": big}
    assert holders(names, 5) == [("both", 4_000_000, "list"), ("Out[3]", 40_000, "array"), ("small", 40, "array")]
    assert holders({"point": SimpleNamespace(a=1)}, 3) == []
