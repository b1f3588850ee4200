"""Traces in files: what comes back is what went in, or an error that says why not."""

import mlx.core as mx
import numpy as np
import pytest

from genmlx import GenError, dist, flip, gen, load_trace, map_over, normal, save_trace, trace


@gen
def element(x):
    return trace("z", normal(x, 1.0))


@gen
def model(xs, scale=1.0):
    trace("flag", flip(0.5))
    trace("count", dist.poisson(3.0))
    trace("vector", normal(mx.zeros((3,)), scale))
    trace("each", map_over(element)(xs))
    return trace(("deep", 0, "x"), normal(0, scale))


def test_round_trip(tmp_path):
    tr = model([1.0, 2.0]).simulate(key=0)
    save_trace(tr, tmp_path / "t.npz")
    again = load_trace(tmp_path / "t.npz", model([1.0, 2.0]))
    assert again.choices == tr.choices and again.score.item() == tr.score.item()
    assert [again[a].dtype for a in ("flag", "vector")] == [tr[a].dtype for a in ("flag", "vector")]
    assert again.choices.addresses() == tr.choices.addresses() and np.array_equal(again.retval, tr.retval)


def test_a_changed_model_is_noticed(tmp_path):
    tr = model([1.0]).simulate(key=0)
    save_trace(tr, tmp_path / "t.npz")
    with pytest.raises(GenError, match="was saved with score .* which is now"):
        load_trace(tmp_path / "t.npz", model([1.0], scale=2.0))
    assert load_trace(tmp_path / "t.npz", model([1.0], scale=2.0), strict=False).choices == tr.choices
    with pytest.raises(GenError, match="each"):
        load_trace(tmp_path / "t.npz", model([1.0, 2.0]), strict=False)
    with pytest.raises(GenError, match="no value is given at .z. in element"):
        load_trace(tmp_path / "t.npz", element(1.0))


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"not a file", lambda b: b""])
def test_broken_files(tmp_path, spoil):
    path = tmp_path / "t.npz"
    save_trace(model([1.0]).simulate(key=0), path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(GenError, match="is not a saved trace, or only part of one"):
        load_trace(path, model([1.0]))


def test_misuse(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_trace(tmp_path / "none.npz", model([1.0]))
    with pytest.raises(GenError, match="one trace: of a batch"):
        save_trace(model([1.0]).vsimulate(3), tmp_path / "t.npz")
    save_trace(model([1.0]).simulate(), tmp_path / "t.npz")
    with pytest.raises(GenError, match="the model with its arguments"):
        load_trace(tmp_path / "t.npz", model)
