"""Checkpoints: a run that was killed goes on bit for bit; a file that belongs to something else says so."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import genmlx
from genmlx import flip, gen, mh, normal, param, select, trace
from genmlx.errors import GenError, UsageError
from genmlx.inference import chain, mh_kernel, mix_kernels, run_kernel
from genmlx.inference import checkpoint as checkpoint_module
from genmlx.inference import loop as loop_module
from genmlx.inference.chains import Kernel, run_chains
from genmlx.inference.checkpoint import fingerprint

PROGRAM = """
import sys, mlx.core as mx
import genmlx
from genmlx import flip, gen, mh, normal, trace
from genmlx.inference import checkpoint, loop
checkpoint._SHARE = 1.0          # write at the end of nearly every block
loop._TARGET = loop._SLOWEST = 0.02

@gen
def model(xs):
    slope = trace("slope", normal(0, 1))
    k = trace("k", flip(0.3))
    {branch}
    trace("y", normal(slope * xs + k, 0.5))

xs = mx.arange(5) / 5
counts = dict(draws={draws}, warmup={warmup}, thin=3, chains={chains})
post = mh(model(xs), {{"y": xs}}, **counts, key=3, checkpoint=sys.argv[1])
post.save(sys.argv[2])
"""


@gen
def model():
    a = trace("a", normal(mx.zeros(2), 1))
    trace("y", normal(mx.sum(a) + trace("k", flip(0.4)), 0.5))


@gen
def branching():
    if trace("k", flip(0.4)).item():
        trace("b", normal(1, 1))
    trace("y", normal(0, 1))


@gen
def walk(tr):
    trace("a", normal(tr["a"], 0.5))


def _program(tmp_path, **options) -> Path:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM).format(**options))
    return path


def _start(program, checkpoint, result) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(program), str(checkpoint), str(result)])


@pytest.mark.parametrize(
    "options",
    [
        {"branch": "", "draws": 1200, "warmup": 2500, "chains": 4},
        {"branch": "if k.item() > 1: pass", "draws": 300, "warmup": 300, "chains": 1},
    ],
    ids=["batch", "branching"],
)
def test_a_run_that_was_killed_draws_what_it_would_have_drawn(tmp_path, options):
    """SIGKILL once in the warm-up, if it is long, and once in the sampling; the third run ends.

    Bit for bit against a run without interruption. Catches keys that start over, a thinned draw that loses its first
    steps, and a state that is not quite where it was.
    """
    program, file, result = _program(tmp_path, **options), tmp_path / "run.checkpoint", tmp_path / "killed"
    whole = _start(program, tmp_path / "other.checkpoint", tmp_path / "whole")
    phases = []
    for phase in ("warmup", "sampling"):
        running = _start(program, file, result)
        deadline = time.time() + 60
        while time.time() < deadline and running.poll() is None:
            at = _phase(file)
            if at == phase:
                break
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
        phases.append(_phase(file))
        assert not result.exists(), "it was killed too late for this test"
    assert phases[-1] == "sampling"
    assert _start(program, file, result).wait() == 0 and whole.wait() == 0
    one, other = (genmlx.Posterior.load(tmp_path / name) for name in ("whole", "killed"))
    assert one.draws == options["draws"] and other.status == "complete"
    for address in one.addresses():
        assert mx.array_equal(one[address], other[address]).item(), address
    assert mx.array_equal(one.log_joint, other.log_joint).item()
    assert mx.array_equal(one.stats["accept"], other.stats["accept"]).item()


def _phase(file) -> str | None:
    """What a checkpoint that is being written to says at this moment."""
    if not file.exists():
        return None
    with np.load(file) as saved:
        return json.loads(str(saved["head"]))["phase"]


class Stop(Exception):
    pass


def stopped(monkeypatch, after, run):
    """Break off after some blocks, each of a few steps, as a crash would: the checkpoint is all that stays."""
    monkeypatch.setattr(checkpoint_module, "_SHARE", float("inf"))
    monkeypatch.setattr(loop_module, "_TARGET", 0.0)
    monkeypatch.setattr(loop_module, "_SLOWEST", 1e9)
    seen = []

    def progress(event):
        seen.append((event.phase, event.done))
        if len(seen) == after:
            raise Stop

    with pytest.raises(Stop):
        run(progress=progress)
    return seen[-1]


def same(one, other):
    assert one.addresses() == other.addresses() and one.draws == other.draws
    for address in one.addresses():
        assert mx.array_equal(one[address], other[address], equal_nan=True).item(), address
    assert mx.array_equal(one.log_joint, other.log_joint).item()
    for name, stat in one.stats.items():
        assert mx.array_equal(stat, other.stats[name], equal_nan=True).item() and stat.dtype == other.stats[name].dtype


def _adaptive(start, observations):
    def move(state, key):
        u = state["u"] + state["scale"] * genmlx.random.normal(key)
        return {"u": u, "scale": state["scale"]}, {"scale": state["scale"]}

    def warm(state, key):
        state, info = move(state, key)
        return {**state, "scale": 0.9 * state["scale"]}, info

    return Kernel(
        move,
        warm,
        lambda tr: {"u": tr["k"] * 1.0, "scale": mx.array(1.0)},
        lambda state: (genmlx.choicemap({"k": state["u"], "y": 1.0}), state["u"]),
    )


def _start_trace():
    return model().vgenerate({"y": 1.0}, 2, key=mx.random.key(0)).trace


RUNS = {
    "mh": lambda **how: mh(model(), {"y": 1.0}, draws=30, warmup=10, thin=4, chains=3, key=1, **how),
    "proposal": lambda **how: mh(model(), {"y": 1.0}, proposal=walk, draws=30, warmup=10, chains=2, key=1, **how),
    "branching": lambda **how: mh(branching(), {"y": 1.0}, draws=30, warmup=10, thin=3, key=1, **how),
    "adaptive": lambda progress=None, checkpoint=None: run_chains(
        "toy",
        model(),
        {"y": 1.0},
        _adaptive,
        draws=30,
        warmup=10,
        thin=1,
        chains=2,
        key=1,
        progress=progress,
        checkpoint=checkpoint,
    ),
    "kernel": lambda **how: run_kernel(
        mix_kernels([(chain(mh_kernel("a"), mh_kernel("k")), 1), (mh_kernel(proposal=walk), 2)]),
        _start_trace(),
        draws=30,
        warmup=10,
        thin=3,
        observations={"y": 1.0},
        key=1,
        **how,
    ),
}


@pytest.mark.parametrize("after", [3, 12, 25])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_every_place(monkeypatch, tmp_path, name, after):
    """From the warm-up, from the middle of a thinned draw, and from later."""
    whole = RUNS[name]()
    file = tmp_path / "file"
    with monkeypatch.context() as patch:
        phase, done = stopped(patch, after, lambda **how: RUNS[name](checkpoint=file, **how))
    assert _phase(file) == phase and (phase == "warmup") == (after < 10)
    first = []
    resumed = RUNS[name](checkpoint=str(file), progress=lambda event: first.append((event.phase, event.done)))
    same(whole, resumed)
    assert first[0][0] == phase and first[0][1] > done, "it began again"
    assert os.listdir(tmp_path) == ["file"]


def test_a_run_that_is_over_is_read_and_not_run(tmp_path):
    steps = []
    runs = [
        mh(model(), {"y": 1.0}, draws=20, key=1, checkpoint=tmp_path / "file", progress=lambda e: steps.append(e.done))
        for _ in range(2)
    ]
    same(*runs)
    assert max(steps) == 20 and steps.count(20) == 1 and runs[1].status == "complete"


def test_ctrl_c_leaves_a_checkpoint(monkeypatch, tmp_path):
    """The draws so far are returned, and the same call goes on to the end."""
    monkeypatch.delenv("GENMLX_CI", raising=False)
    monkeypatch.setattr(loop_module, "_TARGET", 0.0)
    monkeypatch.setattr(loop_module, "_SLOWEST", 1e9)

    def press(event):
        if event.done == 7:
            os.kill(os.getpid(), signal.SIGINT)

    run = {"draws": 20, "chains": 2, "key": 1, "checkpoint": tmp_path / "file"}
    partial = mh(model(), {"y": 1.0}, **run, progress=press)
    assert partial.status == "interrupted" and 7 <= partial.draws < 20
    whole = mh(model(), {"y": 1.0}, draws=20, chains=2, key=1)
    same(whole, mh(model(), {"y": 1.0}, **run))
    # An interrupted warm-up ends early, with draws that an uninterrupted run does not have: they are not kept.
    file = tmp_path / "cold"
    again = {"draws": 5, "warmup": 20, "key": 1, "checkpoint": file}
    assert mh(model(), {"y": 1.0}, **again, progress=press).status == "interrupted" and _phase(file) == "warmup"
    same(mh(model(), {"y": 1.0}, draws=5, warmup=20, key=1), mh(model(), {"y": 1.0}, **again))


# files of something else


@gen
def same_body():
    a = trace("a", normal(mx.zeros(2), 1))
    trace("y", normal(mx.sum(a) + trace("k", flip(0.5)), 0.5))


def test_a_checkpoint_of_another_run(tmp_path):
    base = {"draws": 20, "warmup": 5, "thin": 1, "chains": 2, "key": 1}
    mh(model(), {"y": 1.0}, **base, checkpoint=tmp_path / "file")
    others = {
        r"draws \(20 there, 30 here\)": ((model(), {"y": 1.0}), {**base, "draws": 30}),
        r"thin \(1 there, 2 here\)": ((model(), {"y": 1.0}), {**base, "thin": 2}),
        r"chains \(2 there, 3 here\)": ((model(), {"y": 1.0}), {**base, "chains": 3}),
        "other key": ((model(), {"y": 1.0}), {**base, "key": 2}),
        "other observations": ((model(), {"y": 1.5}), base),
        "other model": ((same_body(), {"y": 1.0}), base),
        "other settings": ((model(), {"y": 1.0}), {**base, "selection": select("a")}),
    }
    before = (tmp_path / "file").read_bytes()
    for text, (args, how) in others.items():
        with pytest.raises(GenError, match=f"file is of another run, with.* {text}"):
            mh(*args, **how, checkpoint=tmp_path / "file")
    with pytest.raises(GenError, match="needs key=") as error:
        mh(model(), {"y": 1.0}, **{**base, "key": None}, checkpoint=tmp_path / "file")
    assert "expected: the model, arguments" in str(error.value)
    with pytest.raises(GenError, match="other algorithm"):
        run_kernel(mh_kernel("a"), _start_trace(), draws=20, key=1, checkpoint=tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == before


def test_files_that_are_no_checkpoint(tmp_path):
    """Cut short, changed, empty, or of another kind: one error that names the file, which stays as it is."""
    good = tmp_path / "good"
    run = {"draws": 20, "chains": 2, "key": 1}
    post = mh(model(), {"y": 1.0}, **run, checkpoint=good)
    post.save(tmp_path / "posterior")
    data = good.read_bytes()
    middle = len(data) // 3
    cases = {
        "empty": b"",
        "text": b"hello\n",
        "half": data[: len(data) // 2],
        "short": data[:-1],
        "flipped": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
        "posterior": (tmp_path / "posterior").read_bytes(),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GenError, match=f"{name} is not a checkpoint, or only part of one"):
            mh(model(), {"y": 1.0}, **run, checkpoint=tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    with pytest.raises(FileNotFoundError, match="file"):
        mh(model(), {"y": 1.0}, **run, checkpoint=tmp_path / "no folder" / "file")
    with pytest.raises(UsageError, match="one of the two"):
        run_kernel(mh_kernel("a"), _start_trace(), check=True, checkpoint=good)


# fingerprints


def test_fingerprints():
    """Equal for what says the same, in another process too; different for a number that differs."""
    xs = mx.arange(3)
    same = (([1, xs], [1, mx.arange(3)]), ({"a": {1, 2}}, {"a": {2, 1}}), (select("a"), select("a")), (model, model))
    for a, b in same:
        assert fingerprint(a) == fingerprint(b)
    different = [1, 1.0, True, "1", None, (1,), [1], xs, xs.astype(mx.float32), xs + 1, np.arange(3), model, branching]
    different += [normal(0, 1), normal(0, 2), mh_kernel("a"), mh_kernel("k"), select("a"), ~select("a"), walk]
    different += [chain(mh_kernel("a")), genmlx.choicemap({"a": 1}), genmlx.choicemap({"a": 2}), lambda: 1, lambda: 2]
    prints = [fingerprint(value) for value in different]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_of_a_model_sees_what_it_reads():
    """A global constant, a model that it calls, a trained parameter: none is in its own instructions."""
    source = textwrap.dedent(
        """
        SCALE = {scale}
        @gen.new
        def inner():
            return trace("x", normal(0, {width}))
        @gen.new
        def outer():
            trace("y", normal(trace("in", inner()) + param("p", 1.0), SCALE))
        """
    )

    def made(**how):
        names = {"gen": gen, "trace": trace, "normal": normal, "param": param, "__name__": "somewhere"}
        exec(source.format(**how), names)
        return names["outer"]

    base = made(scale=1.0, width=2.0)
    assert fingerprint(base) == fingerprint(made(scale=1.0, width=2.0))
    before = fingerprint(base)
    base().simulate()
    assert fingerprint(base) == before, "a parameter at its default is no change"
    base.params["p"] = 3.0
    assert len({before, *map(fingerprint, (base, made(scale=2.0, width=2.0), made(scale=1.0, width=3.0)))}) == 4


# memory


@pytest.mark.slow
def test_memory_grows_only_by_the_draws():
    """A graph that is not evaluated, or a key that is kept, would grow with every step."""

    @gen
    def tiny():
        trace("y", normal(trace("mu", normal(0, 1)), 0.5))

    used, most = [], 100_000 if os.environ.get("GENMLX_FULL") == "1" else 10_000
    for draws in (1_000, most):
        before = mx.get_active_memory()
        post = mh(tiny(), {"y": 1.0}, draws=draws, chains=2, key=1)
        used.append(mx.get_active_memory() - before)
        stored = 2 * draws * (4 + 4 + 1)  # mu, log_joint and accept
        del post
    assert used[1] < 1.5 * stored + 200_000
    assert used[1] - used[0] < 1.5 * 2 * (most - 1_000) * (4 + 4 + 1) + 100_000
