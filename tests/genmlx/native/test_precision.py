"""Samplers in float64: by request, and where the warm-up finds float32 too noisy."""

import logging
import math

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from native_densities import native_schools
from posteriors import SCHOOLS, eight_schools
from scipy import integrate, stats

from genmlx import gamma, gen, hmc, mala, normal, nuts, random_walk, trace
from genmlx.errors import GenError, UsageError
from genmlx.inference.log_density import LogDensity
from genmlx.inference.warmup import Warmup
from genmlx.native import density as density_module
from genmlx.native import precision
from genmlx.native.chains import NativeWalk
from genmlx.native.density import native_density, native_walk
from genmlx.native.fallback import Disagreement
from genmlx.native.graph import Untranslatable
from genmlx.native.kernel import compile_in_float64

ROWS, SIGMA = 100, 0.125
Y = np.round(np.random.default_rng(3).normal(0.33, SIGMA, size=ROWS) * 16) / 16  # 1e6 + y are float32 numbers
SAMPLERS = {"nuts": nuts, "hmc": hmc, "mala": mala, "random_walk": random_walk}
FEW = {"draws": 20, "warmup": 20, "chains": 2, "key": 1}


@gen
def clock(n):
    """Times since an epoch long ago: next to 1e6 float32 has steps of 1/16, five posterior deviations."""
    trace("y", normal(1e6 + trace("theta", normal(0, 1)) + mx.zeros(n), SIGMA))


DATA = {"y": mx.array(np.float32(1e6 + Y))}
_PRECISION = 1 + ROWS / SIGMA**2
MEAN, SD = Y.sum() / SIGMA**2 / _PRECISION, _PRECISION**-0.5  # of the posterior, which is normal


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "genmlx.native"]


def assert_exact(post):
    """Mean within 4.5 Monte Carlo errors, deviation within 10%."""
    assert abs(post.mean("theta").item() - MEAN) < 4.5 * float(post.mcse("theta"))
    assert float(post.ess("theta")) > 400 and abs(post.std("theta").item() / SD - 1) < 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_float64_where_float32_fails(name, caplog):
    """Of a posterior of deviation 0.0125 float32 makes one that is 40% wider, if its chains get there at all."""
    how = {"draws": 4000, "warmup": 1000, "chains": 4, "key": 1}
    with caplog.at_level(logging.INFO, "genmlx.native"):
        asked = SAMPLERS[name](clock(ROWS), DATA, native="float64", **how)
        assert not lines(caplog)
        found = SAMPLERS[name](clock(ROWS), DATA, **how)
    (line,) = lines(caplog)
    assert f"{name} of clock(100) goes on in float64" in line
    for post in (asked, found):
        assert post.execution == "native (float64)"
        assert_exact(post)
    rounded = SAMPLERS[name](clock(ROWS), DATA, native="float32", draws=500, warmup=300, chains=4, key=1)
    assert rounded.execution == "native (float32)" and rounded.std("theta").item() > 1.3 * SD


def test_float32_sees_steps_where_float64_sees_a_slope():
    """The energies that the samplers go by, against the closed form."""
    density = LogDensity(clock(ROWS), DATA)
    places = MEAN + SD * np.linspace(-3, 3, 41)[:, None]
    exact = stats.norm.logpdf(places[:, 0], MEAN, SD)
    off = {}
    for which in ("float32", "float64"):
        walk = NativeWalk("nuts", native_density(density, True, precision=which), places, False, {"max_depth": 3})
        values = walk.value_and_grad[0]
        off[which] = np.std(values - exact)
        assert np.array_equal(walk.value_and_grad[1][:, 0] != 0, np.ones(41, bool))
    assert off["float64"] < 1e-7 and off["float32"] > 1.0


def test_eight_schools_stays_in_float32(caplog, monkeypatch):
    """And nothing is compiled to find that out."""

    def never(*args):
        raise AssertionError("compiled in float64")

    monkeypatch.setattr(density_module, "compile_in_float64", never)
    with caplog.at_level(logging.INFO, "genmlx.native"):
        for sampler in (nuts, hmc):
            post = sampler(eight_schools(), {"y": mx.array(SCHOOLS)}, draws=200, warmup=1000, key=1)
            assert post.execution == "native (float32)"
    assert not lines(caplog)


def test_eight_schools_in_float64_is_that_posterior():
    """The means of mu and tau by quadrature."""
    post = nuts(eight_schools(), {"y": mx.array(SCHOOLS)}, 5000, target_accept=0.95, key=2, native="float64")
    assert post.execution == "native (float64)"
    for address, mean in (("mu", 4.3968), ("tau", 3.5977)):
        assert abs(post.mean(address).item() - mean) < 4.5 * float(post.mcse(address)), address


@gen
def of_bits():
    """A clock with an operation on bits, which float64 does not have."""
    theta = trace("theta", normal(0, 1))
    same = mx.stop_gradient(theta).view(mx.int32).view(mx.float32)
    trace("y", normal(1e6 + theta + 0.0 * (same + 1.0) + mx.zeros(ROWS), SIGMA))


def test_what_has_no_float64_stays_in_float32(caplog):
    with caplog.at_level(logging.INFO, "genmlx.native"):
        post = mala(of_bits(), DATA, draws=50, warmup=300, chains=4, key=1)
    assert post.execution == "native (float32)"
    (line,) = lines(caplog)
    assert "mala of of_bits() stays in float32" in line and "View in float64" in line
    with pytest.raises(Untranslatable, match="View in float64"):
        mala(of_bits(), DATA, native="float64", **FEW)


def test_no_other_precision():
    with pytest.raises(UsageError, match="float16"):
        nuts(clock(ROWS), DATA, native="float16", **FEW)


# that it is the same density


@gen
def plain():
    trace("y", normal(trace("mu", normal(0, 1)), 0.5))


@pytest.mark.parametrize("wrong", ["value", "gradient", "joint"])
def test_float64_that_is_wrong_is_not_used(caplog, monkeypatch, wrong):
    """By 1%, in a density of which float32 is as good as the handlers' and the wrong one is all there is."""
    place = ["value", "gradient", "joint"].index(wrong)

    def altered(f):
        def g(u, *rest):
            found = f(u, *rest)
            found[place] = 1.01 * found[place]
            return found

        return g

    def both(compile_either):
        return lambda f, *arrays, **how: compile_either(altered(f), *arrays, **how)

    monkeypatch.setattr(density_module, "compile_in_float64", both(compile_in_float64))
    monkeypatch.setattr(density_module, "compile_function", both(density_module.compile_function))
    with pytest.raises(Disagreement, match="off by"):
        nuts(plain(), {"y": 3.0}, native="float64", **FEW)


def test_float64_that_is_wrong_in_the_warm_up_is_tried_once(caplog, monkeypatch):
    """The walk goes on as it was, with one line."""
    require_same = density_module._require_same

    def required(walk, *rest):
        if walk.density.dtype == np.float64:
            raise Disagreement("a gradient that is off by 1")
        require_same(walk, *rest)

    monkeypatch.setattr(density_module, "_require_same", required)
    how = {"draws": 50, "warmup": 400, "chains": 4, "key": 1}
    rounded = mala(clock(ROWS), DATA, native="float32", **how)
    post = mala(clock(ROWS), DATA, **how)
    assert_same(rounded, post)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "stays in float32, though" in record.getMessage()


def test_what_is_rougher_than_float32_is_not_used(caplog, monkeypatch):
    """Machine code in float64 that is wrong, where float32 is too noisy to say so."""

    def compiled(f, *arrays, **how):
        def g(u, *rest):
            found = f(u, *rest)
            return [found[0] + 100 * mx.sin(1e6 * u[0]), *found[1:]]

        return compile_in_float64(g, *arrays, **how)

    monkeypatch.setattr(density_module, "compile_in_float64", compiled)
    monkeypatch.setattr(precision, "_MOST", 1e6)
    with caplog.at_level(logging.INFO, "genmlx.native"):
        post = mala(clock(ROWS), DATA, draws=20, warmup=300, chains=4, key=1)
    assert post.execution == "native (float32)" and not lines(caplog)


@gen
def rows(n):
    trace("y", normal(trace("mu", normal(0, 10)) + mx.zeros(n), trace("s", gamma(2.0, 2.0))))


def test_a_gradient_that_mlx_adds_up_badly_is_no_disagreement():
    """That of 5e6 rows is off by 1% in MLX; as its own values change, and by the closed form, the machine code's is."""
    y = mx.array(np.float32(np.random.default_rng(0).normal(3, 0.5, size=5_000_000)))
    start = mx.array([[10.0, 1.95], [3.0, -0.7]])
    density = LogDensity(rows(len(y)), {"y": y})
    assert density.addresses[("mu",)].start == 0
    exact = (np.array(y, dtype=float) - 10.0).sum() * math.exp(-3.9) - 0.1
    assert abs(density.value_and_grad(start)[1][0, 0].item() / exact - 1) > 2e-3
    walk = native_walk("nuts", density, start, False, {"max_depth": 3}, True, required=True)
    assert walk is not None and abs(walk.value_and_grad[1][0, 0] / exact - 1) < 1e-5


@gen
def ripples():
    """Rough in earnest: of ten waves in a posterior deviation."""
    trace("y", normal(mx.sin(60.0 * trace("theta", normal(0, 1))), 0.5))


def test_what_only_looks_noisy_stays_in_float32(caplog, monkeypatch):
    """Compared with float64, which is compiled once, it is not."""
    made = []

    def compiled(f, *arrays, **how):
        made.append(compile_in_float64(f, *arrays, **how))
        return made[-1]

    monkeypatch.setattr(density_module, "compile_in_float64", compiled)
    with caplog.at_level(logging.INFO, "genmlx.native"):
        post = hmc(ripples(), {"y": 0.0}, draws=20, warmup=400, chains=4, key=1)
    assert post.execution == "native (float32)" and not lines(caplog) and len(made) == 1


# what is measured


def test_roughness_is_the_deviation_of_errors():
    """Of what is smooth next to nothing, for any polynomial of the third degree nothing."""
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, 5)[None, :, None] * rng.normal(size=(200, 1, 3))
    smooth = 3.0 + x - 2 * x**2 + x**3
    assert precision.roughness(smooth) < 1e-12
    errors = np.array([0.02, 0.05, 0.08]) * rng.normal(size=x.shape)
    assert precision.roughness(smooth + errors) == pytest.approx(0.05, rel=0.1)
    assert precision.spread_of_errors(smooth + 7.0 + errors, smooth) == pytest.approx(0.05, rel=0.1)


def test_an_edge_of_the_support_and_a_chain_far_out_are_not_noise():
    values = np.zeros((4, 5, 10))
    values[:, 3:, 0] = -np.inf
    exact = np.zeros_like(values)
    assert precision.roughness(values) == 0.0 and precision.spread_of_errors(values, exact) == 0.0
    values[:, :, 1] = 1e9 * np.random.default_rng(0).normal(size=(4, 5))
    assert precision.roughness(values) == precision.spread_of_errors(values, exact) == 0.1


def test_what_noise_costs():
    """Proposals that change nothing but the noise are accepted with probability 2 Phi(-s / sqrt(2))."""
    for s in (0.1, 0.36):

        def accepted(now, then, s=s):
            return min(1.0, math.exp(then - now)) * stats.norm.pdf(now, s**2, s) * stats.norm.pdf(then, 0, s)

        ends = (-7 * s, 7 * s)
        accept, _ = integrate.dblquad(accepted, *ends, *ends, epsabs=1e-5)
        assert accept == pytest.approx(2 * stats.norm.cdf(-s / math.sqrt(2)), abs=1e-3)
        assert 1 - accept == pytest.approx(0.56 * s, rel=0.03)
    assert precision.bearable(0.8) == pytest.approx(0.1) and precision.bearable(0.95) == pytest.approx(0.025)
    assert precision.bearable(0.234) == 0.1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_looking_changes_nothing(dtype):
    """And sees the density as the sampler does, at places that float32 rounds."""
    start = np.random.default_rng(1).normal(size=(3, 10))
    walk = NativeWalk("nuts", native_schools(dtype), start, False, {"max_depth": 6})
    before = walk.value_and_grad
    places = start + np.array([0.0, 1e-9, 0.5])[:, None, None]
    found = walk.log_probs(places)
    assert found.shape == (3, 3) and np.array_equal(found[0], before[0])
    assert np.array_equal(found[0], found[1]) == (dtype == np.float32)
    there = NativeWalk("nuts", native_schools(dtype), places[2], False, {"max_depth": 6}).value_and_grad[0]
    assert np.array_equal(found[2], there)
    after = walk.value_and_grad
    assert np.array_equal(walk.places, start) and all(map(np.array_equal, before, after))


def test_lines_are_short_beside_the_posterior_and_longer_than_a_rounding():
    places = np.array([[0.0, 1e6], [1.0, -1e6]])
    found = precision.lines_through(places, np.array([2.0, 1e-3]))
    assert found.shape == (4, 5, 2, 2) and np.allclose(found[:, 2], places)
    steps = np.diff(found, axis=1)
    assert np.allclose(steps, steps[:, :1])
    sizes = np.sqrt((steps**2).mean(axis=(0, 1, 2)))
    assert 0.1 < sizes[0] < 0.4 and 2.0 < sizes[1] < 8.0


@pytest.mark.parametrize("dense", [False, True])
def test_the_spread_is_that_of_the_metric(dense):
    learned = Warmup(150, 2, 3, 0.8, dense)
    assert learned.spread.tolist() == [0, 0, 0]
    learned.draws.add(mx.array(np.float32(np.random.default_rng(0).normal(size=(5000, 3)) * [1, 2, 3])))
    learned.passed(75)
    assert learned.spread.tolist() == [0, 0, 0]
    learned.passed(25)
    assert np.allclose(learned.spread, [1, 2, 3], rtol=0.05)


# runs that go on


def assert_same(one, other):
    assert one.execution == other.execution
    assert mx.array_equal(one["theta"], other["theta"]).item()
    assert all(mx.array_equal(one.stats[name], other.stats[name]).item() for name in one.stats)


@pytest.mark.parametrize("native", [None, "float64"])
@pytest.mark.parametrize("phase, least", [("warmup", 120), ("sampling", 5)])
def test_a_run_goes_on_in_the_precision_that_it_had(tmp_path, native, phase, least, monkeypatch):
    """Bit for bit, from a place after the change; what went on in float32 would draw other numbers."""
    monkeypatch.setattr("genmlx.inference.loop._SLOWEST", 0.0)
    monkeypatch.setattr("genmlx.inference.loop._TARGET", 0.0)
    how = {"draws": 30, "warmup": 200, "chains": 2, "key": 4, "native": native}

    def give_up(event):
        if event.phase == phase and event.done > least:
            raise KeyboardInterrupt

    whole = hmc(clock(ROWS), DATA, **how)
    with pytest.raises(KeyboardInterrupt):
        hmc(clock(ROWS), DATA, checkpoint=tmp_path / "file", progress=give_up, **how)
    again = hmc(clock(ROWS), DATA, checkpoint=tmp_path / "file", **how)
    assert again.execution == "native (float64)"
    assert_same(whole, again)


def test_a_checkpoint_of_one_precision_is_not_taken_up_by_the_other(tmp_path):
    nuts(plain(), {"y": 1.0}, native="float64", checkpoint=tmp_path / "file", **FEW)
    with pytest.raises(GenError, match=r"other native \(float64 there, float32 here\)"):
        nuts(plain(), {"y": 1.0}, native="float32", checkpoint=tmp_path / "file", **FEW)
    with pytest.raises(GenError, match=r"other native \(float64 there, True here\)"):
        nuts(plain(), {"y": 1.0}, checkpoint=tmp_path / "file", **FEW)


def test_draws_do_not_depend_on_blocks(monkeypatch):
    whole = hmc(clock(ROWS), DATA, **{**FEW, "warmup": 200})
    monkeypatch.setattr("genmlx.inference.loop._SLOWEST", 0.0)
    monkeypatch.setattr("genmlx.inference.loop._TARGET", 0.0)
    assert_same(whole, hmc(clock(ROWS), DATA, **{**FEW, "warmup": 200}))


@gen
def offset():
    """Where the latent itself is next to 1e6."""
    trace("y", normal(trace("theta", normal(1e6, 10)) + mx.zeros(ROWS), SIGMA))


@pytest.mark.parametrize("warmup", [0, 10])
def test_without_windows_it_is_looked_for_where_sampling_begins(warmup):
    post = nuts(offset(), DATA, draws=5, warmup=warmup, chains=2, key=1)
    assert post.execution == "native (float64)"
    assert nuts(plain(), {"y": 1.0}, draws=5, warmup=warmup, chains=2, key=1).execution == "native (float32)"


def test_many_chains_go_on_in_float64_in_lanes(caplog):
    """16 chains of the clock, whose posterior has a deviation of 0.0125: the step to float64 keeps the lanes."""
    with caplog.at_level(logging.INFO, "genmlx.native"):
        post = hmc(clock(ROWS), DATA, draws=200, warmup=300, chains=16, key=1)
    assert post.execution == "native (float64, 16 lanes)" and len(lines(caplog)) == 1
    draws = np.array(post["theta"], dtype=float)
    assert abs(draws.mean() - MEAN) < 6 * SD / math.sqrt(200) and abs(draws.std() / SD - 1) < 0.1
