"""Checkpoints: a run that was killed goes on bit for bit; a file that belongs to something else says so."""

import importlib.util
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
from genmlx import (
    elliptical_slice,
    flip,
    gen,
    gibbs,
    hmc,
    hmc_gibbs,
    involutive_mh,
    mala,
    mh,
    normal,
    nuts,
    param,
    random_walk,
    select,
    trace,
)
from genmlx.errors import GenError, UsageError
from genmlx.inference import chain, mh_kernel, mix_kernels, run_kernel
from genmlx.inference import checkpoint as checkpoint_module
from genmlx.inference import loop as loop_module
from genmlx.inference.chains import Kernel, run_chains
from genmlx.inference.checkpoint import fingerprint
from genmlx.inference.gradient_chains import noises
from genmlx.transform import transform

PROGRAM = """
import sys, mlx.core as mx
import genmlx
from genmlx import flip, gen, hmc, mh, normal, nuts, trace
from genmlx.inference import checkpoint, loop
checkpoint._SHARE = 1.0          # write at the end of nearly every block
loop._TARGET = loop._SLOWEST = 0.02

@gen
def model(xs):
    slope = trace("slope", normal(0, 1))
    k = trace("k", {prior})
    {branch}
    trace("y", normal(slope * xs + k, 0.5))

xs = mx.arange(5) / 5
counts = dict(draws={draws}, warmup={warmup}, thin=3, chains={chains})
post = {sampler}(model(xs), {{"y": xs}}, **counts, key=3, checkpoint=sys.argv[1]{how})
post.save(sys.argv[2])
"""
MH = {"sampler": "mh", "prior": "flip(0.3)", "branch": "", "draws": 1200, "warmup": 2500, "chains": 4, "how": ""}
NUTS = {**MH, "sampler": "nuts", "prior": "normal(0, 2)", "draws": 250, "warmup": 300, "how": ", native=False"}
NATIVE = {**NUTS, "draws": 80_000, "warmup": 200_000, "how": ", native=True"}
HAS_NATIVE = importlib.util.find_spec("llvmlite") is not None and mx.default_device() == mx.Device(mx.cpu)


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
        MH,
        {**MH, "branch": "if k.item() > 1: pass", "draws": 300, "warmup": 300, "chains": 1},
        NUTS,
        pytest.param(
            NATIVE, marks=pytest.mark.skipif(not HAS_NATIVE, reason="machine code needs llvmlite and the CPU")
        ),
    ],
    ids=["batch", "branching", "nuts", "native nuts"],
)
def test_a_run_that_was_killed_draws_what_it_would_have_drawn(tmp_path, options):
    """SIGKILL once in the warm-up, if it is long, and once in the sampling; the third run ends.

    Bit for bit against a run without interruption. Catches keys that start over, a thinned draw that loses its first
    steps, a state that is not quite where it was, and a warm-up that forgets a part of what it has learned.
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
    assert_same(one, other)


def _place(file) -> tuple:
    """The phase and the steps that a checkpoint says at this moment, while it may be written to."""
    if not file.exists():
        return None, 0
    with np.load(file) as saved:
        head = json.loads(str(saved["head"]))
        return head["phase"], head["done"]


def _phase(file) -> str | None:
    return _place(file)[0]


class Stop(Exception):
    pass


def slowed(monkeypatch):
    """Blocks of one step, and a write after each."""
    monkeypatch.setattr(checkpoint_module, "_SHARE", float("inf"))
    monkeypatch.setattr(loop_module, "_TARGET", 0.0)
    monkeypatch.setattr(loop_module, "_SLOWEST", 1e9)


def stopped(monkeypatch, after, run):
    """Break off after some blocks, as a crash would: the checkpoint is all that stays."""
    slowed(monkeypatch)
    seen = []

    def progress(event):
        seen.append((event.phase, event.done))
        if len(seen) == after:
            raise Stop

    with pytest.raises(Stop):
        run(progress=progress)
    return seen[-1]


def assert_same(one, other):
    assert one.addresses() == other.addresses() and one.draws == other.draws
    for address in one.addresses():
        assert mx.array_equal(one[address], other[address], equal_nan=True).item(), address
    assert mx.array_equal(one.log_joint, other.log_joint).item()
    assert list(one.stats) == list(other.stats)
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


@gen
def smooth():
    a = trace("a", normal(mx.zeros(2), mx.array([1.0, 20.0])))
    trace("y", normal(mx.sum(a), 0.5))


@gen
def discrete():
    a, b = trace("a", flip(0.4)), trace("b", flip(0.3))
    trace("y", normal(a + 2.0 * b, 1.0))


@gen
def mixed():
    a = trace("a", normal(mx.zeros(2), mx.array([1.0, 20.0])))
    trace("y", normal(mx.sum(a) + 2.0 * trace("k", flip(0.4)), 0.5))


@gen
def shift(tr):
    trace("u", normal(0, 1))


@gen
def leap(tr):
    trace("u", normal(0, 2))


@transform
def moved(old, new):
    u = old.aux["u"]
    new["a"], new.aux["u"], new["k"] = old["a"] + u, -u, old["k"]


@transform
def back(old, new):
    u = old.aux["u"]
    new["a"], new.aux["u"], new["k"] = old["a"] - u, -u, old["k"]


GRADIENT = {"draws": 30, "warmup": 30, "chains": 3, "key": 1}  # the metric is learned after 20 transitions
DISCRETE = {"draws": 30, "warmup": 10, "chains": 3, "key": 1}
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
    "gibbs": lambda **how: gibbs(discrete(), {"y": 1.0}, thin=2, **DISCRETE, **how),
    "elliptical_slice": lambda **how: elliptical_slice(smooth(), {"y": 1.0}, thin=2, **DISCRETE, **how),
    "involutive_mh": lambda **how: involutive_mh(model(), {"y": 1.0}, shift, moved, **DISCRETE, **how),
    "hmc_gibbs": lambda **how: hmc_gibbs(mixed(), {"y": 1.0}, thin=2, **GRADIENT, **how),
    "nuts": lambda **how: nuts(smooth(), {"y": 1.0}, thin=2, **GRADIENT, **how),
    "nuts dense": lambda **how: nuts(smooth(), {"y": 1.0}, dense=True, **GRADIENT, **how),
    "nuts cold": lambda **how: nuts(smooth(), {"y": 1.0}, max_depth=4, **{**GRADIENT, "warmup": 0}, **how),
    "hmc": lambda **how: hmc(smooth(), {"y": 1.0}, leapfrog_steps=5, **GRADIENT, **how),
    "mala": lambda **how: mala(smooth(), {"y": 1.0}, dense=True, thin=3, **GRADIENT, **how),
    "random_walk": lambda **how: random_walk(smooth(), {"y": 1.0}, scale=0.3, **GRADIENT, **how),
    "random_walk cold": lambda **how: random_walk(smooth(), {"y": 1.0}, scale=0.3, **{**GRADIENT, "warmup": 0}, **how),
}
if HAS_NATIVE:
    RUNS |= {
        "native nuts": lambda **how: nuts(smooth(), {"y": 1.0}, thin=2, native=True, **GRADIENT, **how),
        "native nuts dense": lambda **how: nuts(smooth(), {"y": 1.0}, dense=True, native=True, **GRADIENT, **how),
        "native hmc": lambda **how: hmc(smooth(), {"y": 1.0}, leapfrog_steps=5, native=True, **GRADIENT, **how),
        "native mala": lambda **how: mala(smooth(), {"y": 1.0}, thin=3, native=True, **GRADIENT, **how),
        "native elliptical_slice": lambda **how: elliptical_slice(
            smooth(), {"y": 1.0}, thin=3, native=True, **DISCRETE, **how
        ),
        "native random_walk": lambda **how: random_walk(
            smooth(), {"y": 1.0}, scale=0.3, native=True, **{**GRADIENT, "warmup": 0}, **how
        ),
    }


@pytest.mark.parametrize("after", [1, 3, 12, 25, 29])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_every_place(monkeypatch, tmp_path, name, after):
    """From each part of the warm-up and its end, from the middle of a thinned draw and of a trajectory, from the end.

    Catches whatever of the state of a warm-up, of the trajectories in flight or of the noise is not kept.
    """
    events, rest, file = [], [], tmp_path / "file"
    with monkeypatch.context() as patch:
        slowed(patch)
        whole = RUNS[name](progress=events.append)
        place = stopped(patch, after, lambda **how: RUNS[name](checkpoint=file, **how))
        assert _place(file) == place == events[after - 1][1:3]
        resumed = RUNS[name](checkpoint=str(file), progress=rest.append)
    assert_same(whole, resumed)
    assert [(e.done, e.info.get("divergences")) for e in events[after:]] == [
        (e.done, e.info.get("divergences")) for e in rest
    ]
    assert _place(file) == ("sampling", rest[-1].total) and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_over_is_read_and_not_run(tmp_path, name):
    file = tmp_path / "file"
    whole = RUNS[name](checkpoint=file)
    before, events = file.read_bytes(), []
    again = RUNS[name](checkpoint=file, progress=events.append)
    assert_same(whole, again)
    assert not events and again.status == "complete" and file.read_bytes() == before


@pytest.mark.parametrize("name", ["mh", "nuts"])
@pytest.mark.parametrize("phase", ["warmup", "sampling"])
def test_a_callback_that_gives_up_leaves_a_checkpoint(tmp_path, name, phase):
    """Of the place where it was, however recent the write before that."""
    places = []

    def give_up(event):
        places.append((event.phase, event.done))
        if event.phase == phase and event.done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RUNS[name](checkpoint=tmp_path / "file", progress=give_up)
    assert _place(tmp_path / "file") == places[-1]
    assert_same(RUNS[name](), RUNS[name](checkpoint=tmp_path / "file"))


def test_writes_take_a_bounded_share_of_the_time(monkeypatch, tmp_path):
    """By a clock that counts a second for each block and three for each write: one write in a minute."""
    now, writes = [0.0], []
    monkeypatch.setattr(checkpoint_module.time, "perf_counter", lambda: now[0])

    def write(*args):
        now[0] += 3.0
        writes.append(now[0])

    monkeypatch.setattr(checkpoint_module.archive, "write", write)
    file = checkpoint_module.Checkpoint(tmp_path / "file", {})
    for done in range(1, 1001):
        now[0] += 1.0
        file.offer("sampling", done, dict)
    assert 0.04 < 3.0 * len(writes) / now[0] <= 0.06
    file.offer("sampling", 1001, dict, now=True)
    file.offer("sampling", 1001, dict, now=True)
    assert writes[-1] == now[0] and writes[-2] < now[0] - 3.0, "the same place twice"


@pytest.mark.parametrize("start", [0, 5, 16, 37, 130, 3000])
def test_noise_from_any_step_on(start):
    whole = noises(mx.random.key(1), 3, 2)
    for _ in range(start):
        next(whole)
    for one, other in zip((next(whole) for _ in range(40)), noises(mx.random.key(1), 3, 2, start), strict=False):
        assert mx.array_equal(one.normal, other.normal).item()
        assert all(mx.array_equal(a, b).item() for a, b in zip(one.uniforms, other.uniforms, strict=True))


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
    assert_same(whole, mh(model(), {"y": 1.0}, **run))
    # An interrupted warm-up ends early, with draws that an uninterrupted run does not have: they are not kept.
    file = tmp_path / "cold"
    again = {"draws": 5, "warmup": 20, "key": 1, "checkpoint": file}
    assert mh(model(), {"y": 1.0}, **again, progress=press).status == "interrupted" and _phase(file) == "warmup"
    assert_same(mh(model(), {"y": 1.0}, draws=5, warmup=20, key=1), mh(model(), {"y": 1.0}, **again))


@pytest.mark.parametrize("phase", ["warmup", "sampling"])
def test_ctrl_c_in_a_gradient_sampler(monkeypatch, tmp_path, phase):
    monkeypatch.delenv("GENMLX_CI", raising=False)
    monkeypatch.setattr(loop_module, "_TARGET", 0.0)
    monkeypatch.setattr(loop_module, "_SLOWEST", 1e9)

    def press(event):
        if (event.phase, event.done) == (phase, 7):
            os.kill(os.getpid(), signal.SIGINT)

    partial = RUNS["nuts"](checkpoint=tmp_path / "file", progress=press)
    assert partial.status == "interrupted" and partial.draws < 30 and _place(tmp_path / "file") == (phase, 7)
    assert_same(RUNS["nuts"](), RUNS["nuts"](checkpoint=tmp_path / "file"))


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
        "other selection": ((model(), {"y": 1.0}), {**base, "selection": select("a")}),
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


@pytest.mark.parametrize(
    "sampler, first, other, text",
    [
        (nuts, {}, {"target_accept": 0.9}, r"target_accept \(0.8 there, 0.9 here\)"),
        (nuts, {}, {"dense": True}, r"dense \(False there, True here\)"),
        (nuts, {}, {"max_depth": 5}, r"max_depth \(10 there, 5 here\)"),
        (nuts, {}, {"warmup": 6}, r"warmup \(5 there, 6 here\)"),
        (hmc, {"leapfrog_steps": 3}, {"leapfrog_steps": 4}, r"leapfrog_steps \(3 there, 4 here\)"),
        (hmc, {"trajectory": 1.0}, {"trajectory": 2.0}, r"trajectory \(1.0 there, 2.0 here\)"),
        (hmc, {}, {"leapfrog_steps": 3}, r"leapfrog_steps \(None there, 3 here\)"),
        (random_walk, {"scale": 0.1}, {"scale": 0.2}, r"scale \(0.1 there, 0.2 here\)"),
        (mala, {}, {"thin": 2}, r"thin \(1 there, 2 here\)"),
        (elliptical_slice, {}, {"selection": select("a")}, "selection"),
        (gibbs, {"selection": "a"}, {"selection": "b"}, r"selection \(a there, b here\)"),
        (involutive_mh, {}, {"proposal": leap}, "proposal"),
        (involutive_mh, {}, {"involution": back}, "involution"),
        (involutive_mh, {}, {"check": True}, r"check \(False there, True here\)"),
    ],
)
def test_a_checkpoint_of_a_run_with_other_settings(tmp_path, sampler, first, other, text):
    base = {"draws": 2, "warmup": 5, "chains": 2, "key": 1, **first}
    if sampler is involutive_mh:
        base |= {"proposal": shift, "involution": moved}
    problem = {gibbs: discrete, involutive_mh: model}.get(sampler, smooth)()
    sampler(problem, {"y": 1.0}, **base, checkpoint=tmp_path / "file")
    with pytest.raises(GenError, match=f"file is of another run, with other {text} in ") as error:
        sampler(problem, {"y": 1.0}, **{**base, **other}, checkpoint=tmp_path / "file")
    assert "expected: the model, arguments" in str(error.value)


def test_a_checkpoint_of_another_sampler(tmp_path):
    base = {"draws": 2, "warmup": 5, "chains": 2, "key": 1}
    nuts(smooth(), {"y": 1.0}, **base, checkpoint=tmp_path / "file")
    with pytest.raises(GenError, match=r"with other algorithm \(nuts there, mala here\)"):
        mala(smooth(), {"y": 1.0}, **base, checkpoint=tmp_path / "file")


@pytest.mark.parametrize("name", ["mh", "nuts"])
def test_files_that_are_no_checkpoint(tmp_path, name):
    """Cut short, changed, empty, or of another kind: one error that names the file, which stays as it is."""
    good = tmp_path / "good"
    post = RUNS[name](checkpoint=good)
    post.save(tmp_path / "posterior")
    np.savez(tmp_path / "pickled.npz", head=np.array([Stop()], dtype=object))
    data = good.read_bytes()
    middle = len(data) // 3
    cases = {
        "empty": b"",
        "text": b"hello\n",
        "half": data[: len(data) // 2],
        "short": data[:-1],
        "flipped": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
        "posterior": (tmp_path / "posterior").read_bytes(),
        "pickled": (tmp_path / "pickled.npz").read_bytes(),
    }
    for what, content in cases.items():
        (tmp_path / what).write_bytes(content)
        with pytest.raises(GenError, match=f"{what} is not a checkpoint, or only part of one"):
            RUNS[name](checkpoint=tmp_path / what)
        assert (tmp_path / what).read_bytes() == content


def test_wrong_uses_of_a_checkpoint(tmp_path):
    run = {"draws": 20, "chains": 2, "key": 1}
    with pytest.raises(FileNotFoundError, match="file"):
        mh(model(), {"y": 1.0}, **run, checkpoint=tmp_path / "no folder" / "file")
    with pytest.raises(UsageError, match="one of the two"):
        run_kernel(mh_kernel("a"), _start_trace(), check=True, checkpoint=tmp_path / "file")


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
