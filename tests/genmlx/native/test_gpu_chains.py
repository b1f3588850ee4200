"""Chains as text for a GPU, each thread a round of a loop on the CPU: what they draw, in whatever launches."""

import logging
import re
import shutil
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from gpu_models import assert_agree_with_quadrature, run, walk_on
from gpu_on_cpu import DEVICE, build, make, needs_compiler
from posteriors import COVARIANCE, MEAN, SCHOOLS, eight_schools
from scipy import stats

from genmlx import dist, gen, hmc, multivariate_normal, normal, nuts, random, random_walk, trace
from genmlx.dist.distribution import Distribution
from genmlx.errors import UsageError
from genmlx.inference import loop as loop_module
from genmlx.inference.leapfrog import metric
from genmlx.inference.record import Record
from genmlx.native import fallback
from genmlx.native.gpu import density as gpu_density
from genmlx.native.gpu import dialects, launch, sampler
from genmlx.native.gpu.chains import DeviceWalk
from genmlx.native.gpu.text import SLOTS, density_text
from genmlx.native.graph import Untranslatable

pytestmark = needs_compiler
DATA = {"y": mx.array(SCHOOLS)}
SETTINGS = {"hmc": {"leapfrog_steps": 3}, "mala": {}, "random_walk": {}}
SIZES = {"hmc": 0.3, "mala": 1.0, "random_walk": 0.8}
PRECISION = np.linalg.inv(COVARIANCE)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """Densities as they are where the default device is a GPU."""
    monkeypatch.setattr(Distribution, "_precise_density", lambda self, x, params: self._log_density(x, *params))


def gaussian(u):
    mean, precision = (mx.array(np.asarray(part, np.float32)) for part in (MEAN, PRECISION))
    slope = -(precision @ (u - mean))
    value = 0.5 * mx.sum((u - mean) * slope)
    return [value, slope, value + 1.0]


def cliff(u):
    """Flat up to 1 from 0, and not a number beyond."""
    inside = mx.abs(u[0]) < 1
    return [mx.where(inside, 0.0, mx.nan), 0.0 * u, mx.sum(0.0 * u)]


def walk_of(f, method, start, dense=False, **settings):
    start = np.asarray(start, np.float32)
    return DeviceWalk(method, density_text(f, start.shape[1]), start, dense, settings, True, DEVICE)


# noise


def noise_of(body, n, outputs):
    """What statements that may draw noise of ten numbers write to ``out [outputs, n]`` on each of n threads."""
    header = DEVICE.dialect.prelude + "\n" + sampler.Template(sampler._NOISE).substitute(dim=10, unroll="")
    kernel = make("", ["words"], ["out"], f"if (thread_ < {n}) {{ {body} }}", header)
    shapes = {"output_shapes": [(outputs * n,)], "output_dtypes": [mx.float32]}
    (found,) = kernel(inputs=[mx.zeros(8, mx.uint32)], grid=(n,), threadgroup=(64,), **shapes)
    return np.array(found).reshape(outputs, n)


KNOWN = [  # key, counter, words: the known answers of Random123, threefry2x32 with 20 rounds
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize("key, counter, words", KNOWN)
def test_threefry(key, counter, words):
    body = f"unsigned x = {counter[0]}u, y = {counter[1]}u; threefry_({key[0]}u, {key[1]}u, &x, &y);"
    found = noise_of(body + "out[thread_] = float_of_(x); out[1 + thread_] = float_of_(y);", 1, 2)
    assert found.view(np.uint32).ravel().tolist() == list(words)


def test_noise_is_normal():
    """By the distance of Kolmogorov, each coordinate by itself, and all correlations, also with the next transition."""
    n = 20_000
    body = "float z[10]; noise_(thread_, 5u, {}u, z); for (int i = 0; i < 10; ++i) out[i * 20000 + thread_] = z[i];"
    first, second = (noise_of(body.format(t), n, 10) for t in (3, 4))
    for row in first:
        assert stats.kstest(row, "norm").pvalue > 1e-4
    correlations = np.corrcoef(np.concatenate([first, second, first**2]))
    assert np.abs(correlations - np.eye(30)).max() < 5 / np.sqrt(n)
    assert np.abs(first).max() > 4


def test_units_are_never_0():
    body = "out[thread_] = unit_(0u); out[1 + thread_] = unit_(0xFFFFFFFFu);"
    assert noise_of(body, 1, 2).ravel().tolist() == [2.0**-33, 1.0]


# transitions


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("method", sampler.METHODS)
def test_exact_draws_stay_exact_draws(method, dense):
    """4,000 chains that begin at draws of the Gaussian: means and second moments within 4.5 standard errors.

    Catches every error of a sampler that changes its stationary distribution.
    """
    n, rng = 4000, np.random.default_rng(0)
    start = rng.multivariate_normal(MEAN, COVARIANCE, size=n)
    walk = walk_of(gaussian, method, start, dense, **SETTINGS[method])
    walk.tune(SIZES[method], metric(COVARIANCE if dense else np.array([0.8, 1.2, 0.6]), 3))
    walk.begin(random.streams(5))
    walk.end_warmup()
    record = Record(walk, 1, 6)
    walk.sample(record, 6)
    end = record.positions[:, 0].astype(float)
    assert np.mean(np.any(np.abs(end - start) > 1e-6, axis=1)) > 0.5
    moments = [end - MEAN, (end - MEAN) ** 2, (end - MEAN) * np.roll(end - MEAN, 1, axis=1)]
    truths = [0.0, np.diag(COVARIANCE), [COVARIANCE[i, i - 1] for i in range(3)]]
    for found, truth in zip(moments, truths, strict=True):
        z = (found.mean(axis=0) - truth) / (found.std(axis=0) / np.sqrt(n))
        assert np.all(np.abs(z) < 4.5), z


@pytest.mark.parametrize("method, thin, dense", [("hmc", 1, False), ("mala", 8, True), ("random_walk", 30, True)])
def test_eight_schools_against_quadrature(method, thin, dense):
    """400 chains from warm-up to draws, by 4.5 standard errors."""
    target = {"hmc": 0.9, "mala": 0.8, "random_walk": 0.234}[method]
    gradients = method != "random_walk"
    walk = walk_on(DEVICE, method, eight_schools(), DATA, 400, dense, gradients=gradients)
    positions, told, _ = run(walk, draws=150, warmup=500, thin=thin, target_accept=target)
    assert_agree_with_quadrature(positions)
    assert abs(told["accept"].mean() - target) < 0.06
    assert list(told) == [*walk.names, "step_size"]
    assert walk.execution == "native (C++, float32)"


HOW = {"draws": 24, "warmup": 60, "thin": 2}


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("method", sampler.METHODS)
def test_draws_do_not_depend_on_launches(monkeypatch, method, dense):
    """Bit for bit: launches as they come, of 2 evaluations, and of 1,000; blocks of one transition, and of all."""
    settings = {"leapfrog_steps": 5} if method == "hmc" else {}

    def draws(key=7):
        walk = walk_on(DEVICE, method, eight_schools(), DATA, 9, dense, **settings)
        return run(walk, key, **HOW)

    whole, told, _ = draws()
    for budget, target, slowest in ((2, 0.0, 1e9), (1000, 1e9, 1e9), (1, 1e9, 1e9)):
        monkeypatch.setattr(loop_module, "_TARGET", target)
        monkeypatch.setattr(loop_module, "_SLOWEST", slowest)
        monkeypatch.setattr(DeviceWalk, "_learn_budget", lambda self, *_, n=budget: setattr(self, "_budget", n))
        again, others, _ = draws()
        assert np.array_equal(whole, again)
        assert all(np.array_equal(told[name], others[name]) for name in told)
    assert not np.array_equal(whole, draws(key=8)[0])
    assert len(np.unique(whole[:, :, 0])) > 0.25 * whole[:, :, 0].size


def test_thinning_keeps_every_nth_draw():
    walks = [walk_of(gaussian, "hmc", np.zeros((4, 3)), leapfrog_steps=2) for _ in range(2)]
    every, third = (run(w, draws=d, warmup=20, thin=t)[0] for w, d, t in zip(walks, (30, 10), (1, 3), strict=True))
    assert np.array_equal(every[:, 2::3], third)


@pytest.mark.parametrize("method", sampler.METHODS)
def test_where_the_density_is_not_a_number_a_chain_never_goes(method):
    walk = walk_of(cliff, method, np.zeros((50, 1)), leapfrog_steps=2)
    positions, told, events = run(walk, draws=40, warmup=0, step_size=0.7)
    assert np.all(np.abs(positions) < 1) and 0.3 < positions.std() < 0.65
    if method == "hmc":
        assert 0.1 < told["diverging"].mean() < 0.99
        assert events[-1].info["divergences"] == told["diverging"].sum()
        assert np.all(told["accept"][told["diverging"]] == 0)
        assert np.all(told["n_leapfrog"][~told["diverging"]] == 2)


def test_trajectories_have_a_length():
    """pi / 2 over the step size, rounded up; the energy is that of where the chain is."""
    walk = walk_of(gaussian, "hmc", np.zeros((30, 3)))
    _, told, _ = run(walk, draws=10, warmup=0, step_size=0.3)
    assert np.all(told["n_leapfrog"] == 6) and np.all(told["step_size"] == np.float32(0.3))
    walk = walk_of(gaussian, "random_walk", np.zeros((30, 3)))
    positions, told, _ = run(walk, draws=10, warmup=0, step_size=0.3)
    apart = positions.astype(float) - MEAN
    np.testing.assert_allclose(told["energy"], 0.5 * np.einsum("cdi,ij,cdj->cd", apart, PRECISION, apart), rtol=1e-4)


def test_the_density_where_chains_are_and_elsewhere():
    start = np.array([[2.0, 0, 0], [0.5, 1, 1]])
    walk = walk_of(gaussian, "hmc", start)
    value, gradient = walk.value_and_grad
    np.testing.assert_allclose(gradient, -(start - MEAN) @ PRECISION, rtol=1e-5)
    np.testing.assert_allclose(value, -0.5 * np.einsum("ci,ij,cj->c", start - MEAN, PRECISION, start - MEAN), rtol=1e-5)
    places = mx.array(np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32))  # more than there are chains
    expected = [gaussian(place)[2].item() for place in places]
    np.testing.assert_allclose(np.array(walk.joint(places)), expected, rtol=1e-5)
    values, _ = walk_of(cliff, "hmc", [[2.0], [0.5]]).value_and_grad
    assert values.tolist() == [-np.inf, 0.0]


def test_a_first_step_leaves_chains_where_they_are():
    walk = walk_on(DEVICE, "hmc", eight_schools(), DATA, 6)
    walk.begin(random.streams(1))
    walk.tune(0.5, walk.tuning.metric)
    before = walk.positions
    one, other = walk.first_step(), walk.first_step()
    assert np.array_equal(walk.positions, before) and walk.diverged == 0
    assert np.sum(one != other) > 3 and np.all((one > 0) & (one <= 1))  # each with noise of its own


def test_chains_have_step_sizes_of_their_own_at_first(monkeypatch):
    """Up to the first metric, and one after it."""
    seen, tune = [], DeviceWalk.tune

    def told(self, step_size, metric):
        tune(self, step_size, metric)
        seen.append((np.ptp(np.array(self._sizes)) > 0, len(np.unique(np.array(self._lengths))) > 1))

    monkeypatch.setattr(DeviceWalk, "tune", told)
    run(walk_on(DEVICE, "hmc", eight_schools(), DATA, 9), draws=1, warmup=60)
    apart = [own for own, _ in seen]
    last = max(i for i, own in enumerate(apart) if own)
    assert sum(apart[: last + 1]) > 35 and any(lengths for _, lengths in seen[:last]) and len(apart) - last > 15


def test_a_chain_that_starts_far_out_comes_in():
    """Catches a step size shared from the first transition on."""
    start = np.zeros((20, 10))
    start[0, 0], start[0, 1] = 300.0, 3.0
    positions, _, _ = run(walk_on(DEVICE, "hmc", eight_schools(), DATA, 20, start=start), draws=20, warmup=200)
    assert np.abs(positions[0]).max() < 60 and np.all(positions[0].std(axis=0) > 0.1)


# models, as on a GPU


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The default device is one, for what asks before it makes machine code."""
    monkeypatch.setattr(fallback, "on_the_cpu", lambda: False)
    monkeypatch.setattr(gpu_density, "device", lambda: DEVICE)


FEW = {"draws": 20, "warmup": 20, "chains": 5, "key": 1}


def test_models_use_it_by_themselves(on_a_gpu):
    one, same, other = (hmc(eight_schools(), DATA, native=native, **FEW) for native in (None, True, False))
    assert one.execution == same.execution == "native (C++, float32)" and "native" not in other.execution
    assert mx.array_equal(one["mu"], same["mu"]).item() and not mx.array_equal(one["mu"], other["mu"]).item()
    assert [s.dtype for s in one.stats.values()] == [s.dtype for s in other.stats.values()]
    joint = [one.trace(1, i).score.item() for i in range(3)]
    assert np.allclose(one.log_joint[1, :3], joint, rtol=1e-5)


def test_a_run_goes_on_from_its_checkpoint(on_a_gpu, tmp_path):
    """Interrupted in warm-up, and in sampling, and taken up: the draws of a run that was not."""

    def stopped(phase, done):
        return lambda progress: "stop" if progress.phase == phase and progress.done >= done else None

    how = {"draws": 40, "warmup": 60, "chains": 6, "key": 3}
    whole = random_walk(eight_schools(), DATA, **how)
    for progress in (stopped("warmup", 10), stopped("sampling", 5), None):
        post = random_walk(eight_schools(), DATA, progress=progress, checkpoint=tmp_path / "file", **how)
        assert post.status == ("complete" if progress is None else "stop")
    assert post.execution == "native (C++, float32)"
    assert mx.array_equal(post["z"], whole["z"]).item() and mx.array_equal(post["tau"], whole["tau"]).item()


@gen
def correlated():
    trace("y", multivariate_normal(trace("x", normal(mx.zeros(3), 1.0)), trace("s", dist.gamma(2.0, 1.0)) * mx.eye(3)))


def test_what_has_no_text_runs_on_mlx(on_a_gpu, caplog):
    """One line says why: a sampler, a primitive."""
    for sampler_, call, data, why in (
        (nuts, eight_schools(), DATA, "the sampler nuts on a GPU"),
        (hmc, correlated(), {"y": mx.ones(3)}, "on a GPU"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, "genmlx.native"):
            assert "native" not in sampler_(call, data, **FEW).execution
        (line,) = caplog.records
        assert why in line.getMessage() and "runs on MLX" in line.getMessage()
        with pytest.raises(Untranslatable, match=why):
            sampler_(call, data, native=True, **FEW)
    with pytest.raises(Untranslatable, match="float64 on a GPU"):
        hmc(eight_schools(), DATA, native="float64", **FEW)


@gen
def regression(rows):
    weights = trace("weights", normal(mx.zeros(3), 1.0))
    trace("y", normal(rows @ weights, 1.0))


def test_few_chains_of_long_data_run_on_mlx(on_a_gpu, caplog):
    rows = mx.array(np.random.default_rng(0).normal(size=(30_000, 3)).astype(np.float32))
    call, data = regression(rows), {"y": mx.zeros(30_000)}
    with caplog.at_level(logging.INFO, "genmlx.native"):
        assert "native" not in hmc(call, data, draws=1, warmup=0, chains=2, key=1).execution
    assert "2 chains on a GPU, few for" in caplog.records[0].getMessage()
    post = hmc(call, data, draws=2, warmup=5, chains=2, key=1, native=True, leapfrog_steps=2)
    assert post.execution == "native (C++, float32)"


def test_a_density_that_is_wrong_is_not_used(on_a_gpu, caplog, monkeypatch):
    def wrong(f, dim, parameters, private):
        def g(u, *rest):
            value, slope, joint = f(u, *rest)
            return [value, mx.where(mx.arange(dim) == 1, 1.01, 1.0) * slope, joint]

        return density_text(g, dim, parameters)

    monkeypatch.setattr("genmlx.native.gpu.text.density_text", wrong)
    assert "native" not in hmc(eight_schools(), DATA, **FEW).execution
    (line,) = caplog.records
    assert line.levelno == logging.WARNING and "gradient that is off by" in line.getMessage()


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(launch, "_MEMORY", 4 * 2000 * 2)
    text = density_text(lambda u: [mx.sum(mx.cumsum(mx.exp(u[0] * mx.arange(2000.0)))[::-1] ** 2)], 1)
    assert 2000 <= text.slots < SLOTS
    with pytest.raises(Untranslatable, match="MiB of memory for 3 chains"):
        DeviceWalk("random_walk", text, np.zeros((3, 1)), False, {}, False, DEVICE)


# the dialects

ARRAYS = dict.fromkeys(sampler.INPUTS + sampler.OUTPUTS, "float")
ARRAYS |= dict.fromkeys(("settings", "counts", "keys", "lengths", "new_counts"), "unsigned") | {"integers": "int"}
_AS_METAL = """
#include <cmath>
#include <cstring>
#define thread
#define device
template <class T, class S> static inline T as_type(S x) { T y; std::memcpy(&y, &x, 4); return y; }
namespace metal {
using std::copysign; using std::fma; using std::pow; using std::fmod; using std::floor; using std::ceil;
using std::rint; using std::fabs;
namespace precise {
using std::atan2; using std::log2; using std::log10; using std::sin; using std::cos;
using std::tan; using std::asin; using std::acos; using std::atan; using std::sinh; using std::cosh; using std::tanh;
using std::asinh; using std::acosh; using std::atanh; using std::sqrt; using std::exp; using std::log;
static inline float sinpi(float x) { return std::sin(3.14159265358979323846 * x); }
static inline float cospi(float x) { return std::cos(3.14159265358979323846 * x); }
}
}
struct Position { unsigned x; };
static Position thread_position_in_grid;
"""


def kernel_text(dialect, method, dense):
    f, dim = gaussian, 3
    text = density_text(f, dim)
    arguments = ", ".join(
        f"{'const ' if name in sampler.INPUTS else ''}{kind} {name}".replace(f" {name}", f"* {name}")
        for name, kind in ARRAYS.items()
    )
    header = sampler.header(text, dim, dense, dialect)
    return header, arguments, sampler.transitions(method, dim, True, dialect)


@pytest.mark.parametrize("method, dense", [("hmc", False), ("mala", True), ("random_walk", True)])
def test_metal_text_is_well_formed(method, dense):
    """As C++, with Metal's names: syntax, and names that exist; neither its address spaces nor its compiler."""
    header, arguments, body = kernel_text(dialects.METAL, method, dense)
    assert "goto" not in body + header and "double" not in body + header and "long long" not in body + header
    text = f'{_AS_METAL}\n{header}\nextern "C" void kernel({arguments}) {{\n{body}\n}}'
    build(text, "-std=c++17", "-fPIC", "-shared", "-Wno-unknown-pragmas", "-Werror=return-type")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_cuda_text_is_well_formed(tmp_path):
    header, arguments, body = kernel_text(dialects.CUDA, "hmc", False)
    path = tmp_path / "text.cu"
    path.write_text(f"#define inf 1\n{header}\nnamespace a {{ __global__ void kernel({arguments}) {{\n{body}\n}} }}")
    done = subprocess.run(["nvcc", "-w", "-ptx", str(path), "-o", f"{path}.ptx"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fma.rn.f32" in path.with_suffix(".cu.ptx").read_text()


def test_dialects_have_the_same_functions():
    preludes = [own.prelude for own in (dialects.CUDA, dialects.METAL, DEVICE.dialect)]
    cuda, metal, here = [set(re.findall(r"FUNCTION \w+ (\w+_)\(", prelude)) for prelude in preludes]
    assert cuda == metal == here and len(cuda) > 30


def test_a_kernel_is_named_by_its_text():
    """MLX takes a kernel of a name that it knows for the same kernel, on disk too."""
    names = []

    def keep(name, **_):
        names.append(name)

    for source, header in (("a", "b"), ("a", "c"), ("ab", ""), ("a", "b")):
        launch.Kernel(launch.Device(dialects.CUDA, keep), ["x"], ["y"], source, header)
    assert len(set(names)) == 3 and names[0] == names[3]


def test_without_llvmlite_everything_runs_on_mlx(on_a_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert "native" not in hmc(eight_schools(), DATA, **FEW).execution
    with pytest.raises(UsageError, match="llvmlite"):
        hmc(eight_schools(), DATA, native=True, **FEW)
