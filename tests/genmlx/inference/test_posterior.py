"""Posteriors: statistics against numpy, traces, files."""

import json
import math
import os
import sys

import mlx.core as mx
import numpy as np
import pytest

import genmlx
from genmlx import choicemap, flip, gen, mh, normal, poisson, trace
from genmlx.diagnostics import ess, ess_tail, mcse, rhat, summarize
from genmlx.errors import GenError, MissingChoice, UnknownAddress, UsageError
from genmlx.inference import Posterior


@gen
def model(n, *, scale=1.0):
    mu = trace("mu", normal(mx.zeros(2), 1))
    count = trace("count", poisson(3.0))
    for i in range(n):
        trace(("y", i), normal(mx.sum(mu) + 0.1 * count, scale))
        trace(("z", i, "deep"), normal(0, 1))
    return mu


OBSERVED = {("y", 0): 1.0, ("y", 1): 2.0}


@pytest.fixture(scope="module")
def post() -> Posterior:
    return mh(model(2, scale=0.5), OBSERVED, draws=200, warmup=20, chains=3, key=1)


def synthetic(**values) -> Posterior:
    """A posterior of given draws."""
    arrays = {(name,): mx.array(np.asarray(v, dtype=np.float32)) for name, v in values.items()}
    shape = next(iter(arrays.values())).shape[:2]
    return Posterior(arrays, stats={}, log_joint=mx.zeros(shape))


def test_indexing(post):
    assert (post.chains, post.draws) == (3, 200)
    assert post["mu"].shape == (3, 200, 2) and post["count"].shape == (3, 200)
    assert post["z", 1, "deep"].shape == post.log_joint.shape == post.stats["accept"].shape == (3, 200)
    assert post.addresses() == [("mu",), ("count",), ("z", 0, "deep"), ("z", 1, "deep")]
    assert "mu" in post and ("mu",) in post and ("z", 0, "deep") in post and "y" not in post and ("y", 0) not in post
    assert mx.all(post.has("mu")).item() and post.has("mu").shape == (3, 200)
    with pytest.raises(UnknownAddress, match="did you mean 'mu'") as error:
        post["mi"]
    assert error.value.suggestions == (("mu",),)


def test_integers_stay_integers(post):
    assert post["count"].dtype == mx.int32
    assert post.mean("count").item() == pytest.approx(np.array(post["count"]).mean(), rel=1e-6)


def test_statistics_are_those_of_numpy(post):
    draws = np.array(post["mu"], dtype=np.float64)
    assert np.allclose(np.array(post.mean("mu")), draws.mean(axis=(0, 1)), atol=1e-6)
    assert np.allclose(np.array(post.std("mu")), draws.reshape(-1, 2).std(axis=0, ddof=1), rtol=1e-6)
    assert np.allclose(post.quantiles("mu", (0.1, 0.9)), np.quantile(draws, (0.1, 0.9), axis=(0, 1)))
    assert post.quantiles("mu", 0.5).shape == (2,) and post.quantiles("count").shape == (3,)


def test_the_mean_of_many_large_numbers():
    """MLX on the CPU adds float32 one after the other: at this size its variance is meaningless."""
    draws = np.random.default_rng(0).normal(1000, 1, size=(4, 250_000))
    many = synthetic(x=draws)
    assert many.mean("x").item() == pytest.approx(1000, abs=0.01)
    assert many.std("x").item() == pytest.approx(1, abs=0.01)


def test_diagnostics_are_those_of_the_diagnostics_package(post):
    for ours, theirs in ((post.rhat, rhat), (post.ess, ess), (post.ess_tail, ess_tail), (post.mcse, mcse)):
        assert np.array_equal(ours("mu"), theirs(post["mu"]), equal_nan=True)
        assert ours("count") == theirs(post["count"])


def test_the_summary(post):
    table = post.summary()
    assert list(table) == ["mu[0]", "mu[1]", "count", "z/0/deep", "z/1/deep"]
    assert table["mu[1]"].mean == pytest.approx(post.mean("mu")[1].item(), abs=1e-6)
    assert repr(table) == repr(summarize({a: post[a] for a in post.addresses()}))


def test_the_repr(post):
    text = repr(post)
    assert "Posterior of model by mh: 3 chains of 200 draws" in text and "'mu', 'count'" in text


def test_a_trace_of_a_draw(post):
    """Observations included, and of the density that the sampler said."""
    for chain, draw in ((0, 0), (2, 199), (-1, -1), (1, 77)):
        tr = post.trace(chain, draw)
        assert tr.score.item() == pytest.approx(post.log_joint[chain, draw].item(), abs=1e-4)
        assert mx.array_equal(tr["mu"], post["mu"][chain, draw]).item()
        assert tr["count"].item() == post["count"][chain, draw].item() and tr["count"].dtype == mx.int32
        assert tr["y", 1].item() == 2.0
    with pytest.raises(UsageError, match="no draw 200 of chain 0 in 3 chains of 200"):
        post.trace(0, 200)


def test_a_trace_takes_no_key(post):
    """A look at a draw must not change what the session draws next, nor invent a choice."""
    genmlx.seed(1)
    expected = normal(0, 1).sample().item()
    genmlx.seed(1)
    post.trace(0, 0)
    assert normal(0, 1).sample().item() == expected
    lacking = Posterior({("mu",): post["mu"]}, stats={}, log_joint=post.log_joint, call=model(0))
    with pytest.raises(MissingChoice, match="'count'"):
        lacking.trace(0, 0)


# addresses that some draws lack


@gen
def sometimes():
    if trace("k", flip(0.4)).item():
        trace("x", normal(mx.array([1.0, 5.0]), 1))
        trace("n", poisson(4.0))


@pytest.fixture(scope="module")
def partial() -> Posterior:
    return mh(sometimes(), draws=2000, key=2)


def test_draws_without_the_address_are_nan(partial):
    has = np.array(partial.has("x"))
    assert has.shape == (1, 2000) and np.array_equal(has, np.array(partial["k"]) == 1)
    assert np.array_equal(np.isnan(np.array(partial["x"])), np.repeat(~has[..., None], 2, axis=-1))
    assert np.array_equal(np.isnan(np.array(partial["n"])), ~has)


def test_statistics_are_over_the_draws_that_have_it(partial):
    has = np.array(partial.has("x"))
    x = np.array(partial["x"], dtype=np.float64)[has]
    assert np.allclose(np.array(partial.mean("x")), x.mean(axis=0), atol=1e-6)
    assert np.allclose(np.array(partial.std("x")), x.std(axis=0, ddof=1), atol=1e-6)
    assert np.allclose(partial.quantiles("x"), np.quantile(x, (0.05, 0.5, 0.95), axis=0), atol=1e-6)
    assert partial.quantiles("n", 0.5) == np.median(np.array(partial["n"])[has])


def test_the_error_of_a_mean_over_some_draws(partial):
    """Independent draws here: the error is sd / sqrt(count), and the effective size is their count."""
    count = np.array(partial.has("x")).sum()
    assert np.allclose(partial.mcse("x"), np.array(partial.std("x")) / math.sqrt(count), rtol=0.15)
    assert np.allclose(partial.ess("x"), count, rtol=0.3) and np.allclose(partial.ess_tail("x"), count, rtol=0.4)
    assert np.all(np.asarray(partial.rhat("x")) < 1.02)
    assert partial.ess("n") == pytest.approx(count, rel=0.3)


def test_the_summary_says_how_many_draws_have_it(partial):
    table = partial.summary()
    assert list(table) == ["k", "x[0]", "x[1]", "n"]
    assert table["x[1]"].mean == pytest.approx(partial.mean("x")[1].item(), abs=1e-5)
    share = np.array(partial.has("x")).mean()
    assert f"x: in {share:.1%} of the draws" in repr(table) and "nan" not in repr(table)


def test_traces_where_addresses_differ(partial):
    has = np.array(partial.has("x"))[0]
    for draw in (int(np.argmax(has)), int(np.argmin(has))):
        tr = partial.trace(0, draw)
        assert ("x" in tr.choices) == has[draw]
        assert tr.score.item() == pytest.approx(partial.log_joint[0, draw].item(), abs=1e-5)
    assert partial.trace(0, int(np.argmax(has)))["n"].dtype == mx.int32


# files


def test_round_trip(post, partial, tmp_path):
    for name, saved, call in (("a.post", post, model(2, scale=0.5)), ("b.npz", partial, sometimes())):
        path = tmp_path / name
        saved.save(path)
        assert os.listdir(tmp_path).count(name) == 1 and path.stat().st_size > 1000
        loaded = Posterior.load(path, call=call)
        assert loaded.addresses() == saved.addresses()
        for address in saved.addresses():
            assert mx.array_equal(loaded[address], saved[address], equal_nan=True).item()
            assert loaded[address].dtype == saved[address].dtype
            assert mx.array_equal(loaded.has(address), saved.has(address)).item()
        assert mx.array_equal(loaded.log_joint, saved.log_joint).item()
        assert mx.array_equal(loaded.stats["accept"], saved.stats["accept"]).item()
        assert loaded.observations == saved.observations
        for field in ("algorithm", "status", "timing", "execution"):
            assert getattr(loaded, field) == getattr(saved, field)
        assert repr(loaded.summary()) == repr(saved.summary())
        assert loaded.trace(0, 3).score.item() == pytest.approx(saved.log_joint[0, 3].item(), abs=1e-4)
    with pytest.raises(UsageError, match="loaded without its model"):
        Posterior.load(tmp_path / "a.post").trace(0, 0)


def test_every_kind_of_number_survives(tmp_path):
    """A float32 detour would change uint32 and int64, and numpy has no bfloat16; inf and NaN are no strings."""
    arrays = {
        mx.float32: [math.inf, -math.inf, math.nan, 1e-45],
        mx.bfloat16: [1.5, -math.inf, math.nan, 3e38],
        mx.float16: [0.1, 1, 2, 3],
        mx.uint32: [0, 1, 2**31 + 1, 2**32 - 1],
        mx.int64: [-(2**62) - 1, 0, 1, 2**53 + 1],
        mx.int8: [-128, 127, 0, 1],
        mx.uint8: [255, 0, 1, 2],
        mx.bool_: [True, False, True, True],
        mx.complex64: [1 + 2j, 0, 1, 2],
    }
    values = {(str(i),): mx.array(v, dtype=dtype).reshape(2, 2) for i, (dtype, v) in enumerate(arrays.items())}
    values["big",] = mx.arange(2 * 2 * 500_000).reshape(2, 2, 500_000)
    observed = choicemap({("o", 0): mx.array([1, 2**32 - 1], dtype=mx.uint32), "flag": True})
    saved = Posterior(
        values, stats={"n": values["3",]}, log_joint=values["0",], observations=observed, timing={"total": math.inf}
    )
    saved.save(tmp_path / "all")
    loaded = Posterior.load(tmp_path / "all")
    for address, value in values.items():
        assert loaded[address].dtype == value.dtype
        assert mx.array_equal(loaded[address], value, equal_nan=value.dtype in FLOATING).item(), value.dtype
    assert loaded.stats["n"].dtype == mx.uint32 and loaded.timing == {"total": math.inf}
    assert loaded.observations["o", 0].dtype == mx.uint32 and loaded.observations["flag"].dtype == mx.bool_
    assert loaded.observations == observed


FLOATING = (mx.float32, mx.bfloat16, mx.float16)


def test_files_that_are_no_posterior(post, tmp_path):
    """Cut short, changed, empty, or of another kind: always one error that names the file."""
    good = tmp_path / "good"
    post.save(good)
    data = good.read_bytes()
    middle = len(data) // 3
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "list.npz", head=np.array(json.dumps([1])), log_joint=np.zeros(3))
    np.savez(tmp_path / "future.npz", head=np.array(json.dumps({"format": "genmlx posterior 99"})))
    cases = {
        "empty": b"",
        "text": b"hello\n",
        "half": data[: len(data) // 2],
        "short": data[:-1],
        "flipped": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
        "array.npy": None,
        "other.npz": None,
        "list.npz": None,
        "future.npz": None,
    }
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(GenError, match=f"{name} is not a saved posterior"):
            Posterior.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Posterior.load(tmp_path / "nowhere")


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(post, tmp_path, monkeypatch):
    path = tmp_path / "draws"
    post.save(path)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        post.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["draws"]


def test_a_place_that_cannot_be_written(post, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="draws"):
        post.save(tmp_path / "file" / "draws")
    with pytest.raises(FileNotFoundError, match="draws"):
        post.save(tmp_path / "no folder" / "draws")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        post.save(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_saved_file_has_the_usual_permissions(post, tmp_path):
    """A file made by mkstemp and renamed would be readable by its owner only."""
    post.save(tmp_path / "draws")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "draws").stat().st_mode == (tmp_path / "plain").stat().st_mode


# redefinition, ArviZ


def test_stale_after_a_redefinition():
    namespace = {"gen": gen, "trace": trace, "normal": normal, "__name__": "test_stale_model"}
    path = "def changing():\n    trace('y', normal(trace('mu', normal(0, {})), 1))\n"
    exec(path.format(1), namespace)
    handle = gen(namespace["changing"])
    post = mh(handle(), {"y": 1.0}, draws=10, key=1)
    assert not post.stale and "stale" not in repr(post)
    exec(path.format(5), namespace)
    assert gen(namespace["changing"]) is handle
    assert post.stale and repr(post).endswith(", stale>")
    assert post.trace(0, 3).score.item() == pytest.approx(post.log_joint[0, 3].item(), abs=1e-5), "another version"


def test_arviz_that_is_not_there(post, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(UsageError, match="pip install arviz"):
        post.to_arviz()


@pytest.mark.parametrize("version", ["0.22.0", "1.1.0"])
def test_what_arviz_is_given(post, partial, monkeypatch, version):
    class Fake:
        __version__ = version

        @staticmethod
        def from_dict(*args, **groups):
            assert (len(args), bool(groups)) == ((0, True) if version < "1" else (1, False))
            return groups or args[0]

    monkeypatch.setitem(sys.modules, "arviz", Fake)
    groups = post.to_arviz()
    assert groups["posterior"]["z/1/deep"].shape == (3, 200) and groups["posterior"]["mu"].shape == (3, 200, 2)
    assert set(groups["sample_stats"]) == {"accept", "lp"} and groups["observed_data"]["y/1"] == 2.0
    assert set(groups["log_likelihood"]) == set(groups["posterior_predictive"]) == {"y/0", "y/1"}
    assert groups["log_likelihood"]["y/0"].shape == groups["posterior_predictive"]["y/0"].shape == (3, 200)
    assert set(partial.to_arviz()) == {"posterior", "sample_stats", "observed_data"}, "nothing was observed"
    assert np.isnan(partial.to_arviz()["posterior"]["n"]).any()
