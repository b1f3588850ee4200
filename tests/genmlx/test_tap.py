"""tap returns what it is given, keeps the last thousand, and never leaks a traced value."""

import mlx.core as mx
import pytest

from genmlx import gen, normal, tap, trace


@pytest.fixture
def module(monkeypatch):
    import importlib

    found = importlib.import_module("genmlx.taps")
    monkeypatch.setattr(found, "_warned", False)
    found._ring.clear()
    return found


@gen
def model():
    x = tap(trace("x", normal(0, 1)), "x")
    return tap({"twice": 2 * x})


def test_values_go_by(module):
    tr = model.simulate(key=0)
    seen = module.taps("x")
    assert len(seen) == 1 and seen[0].value.item() == tr["x"].item() and seen[0].model is model
    assert module.taps()[1].label is None and module.taps()[1].value["twice"].item() == tr.retval["twice"].item()
    assert tap(3) == 3 and module.taps()[-1].model is None


def test_a_thousand_are_kept(module):
    for i in range(1500):
        tap(i)
    assert [t.value for t in module.taps()] == list(range(500, 1500))


def test_sinks(module):
    got = []
    stop = module.add_sink(got.append)
    tap(1.0, "a")
    stop()
    tap(2.0, "a")
    assert [t.value for t in got] == [1.0]


def test_traced_values_pass_with_one_warning(module):
    with pytest.warns(UserWarning, match="tap saw a traced value") as caught:
        batch = model().vsimulate(4, key=0)
    assert len(caught) == 1 and batch.retval["twice"].shape == (4,) and module.taps() == []
    assert mx.array_equal(batch.retval["twice"], 2 * batch["x"])
