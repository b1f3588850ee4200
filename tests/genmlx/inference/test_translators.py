"""Trace translators: weights against closed forms, there and back, alone and lane by lane."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from genmlx import choicemap, delta, flip, gen, inv_gamma, normal, poisson, trace, unfold, uniform
from genmlx.errors import BatchError, MissingChoice, UnknownAddress, UsageError, ValueMismatch
from genmlx.inference.round_trip import RoundTripError
from genmlx.inference.translators import (
    DeterministicTranslator,
    GeneralTranslator,
    SimpleExtendingTranslator,
    SymmetricTranslator,
)
from genmlx.transform import is_involution, pair_bijections, transform


def log_normal_density(x, mean, scale):
    return stats.norm(mean, scale).logpdf(x)


@gen
def cartesian():
    trace("x", normal(0, 1))
    trace("y", normal(0, 1))


@gen
def polar():
    trace("r", inv_gamma(1, 1))
    trace("angle", uniform(-math.pi / 2, math.pi / 2))


@transform
def to_polar(old, new):
    x, y = old["x"], old["y"]
    new["r"], new["angle"] = mx.sqrt(x * x + y * y), mx.arctan2(y, x)


@transform
def to_cartesian(old, new):
    r, angle = old["r"], old["angle"]
    new["x"], new["y"] = r * mx.cos(angle), r * mx.sin(angle)


pair_bijections(to_polar, to_cartesian)


# the deterministic translator


@pytest.mark.parametrize("x, weight", [(2.0, 1.5 - 2 * math.log(2)), (1.0, math.log(2) - 0.5)])
def test_cartesian_to_polar(x, weight):
    """Case 35: log p_polar - log p_cartesian + log 1/r. The Jacobian turned round is off by 2 log r."""
    expected = stats.invgamma(1).logpdf(x) - math.log(math.pi) - log_normal_density(np.array([x, 0]), 0, 1).sum()
    assert expected - math.log(x) == pytest.approx(weight)
    tr, _ = cartesian().generate({"x": x, "y": 0.0})
    new, found = DeterministicTranslator(polar(), transform=to_polar)(tr, check=True)
    assert found.item() == pytest.approx(weight, abs=2e-6)
    assert (new["r"].item(), new["angle"].item()) == (x, 0.0)
    back, undone = DeterministicTranslator(cartesian(), transform=to_cartesian)(new, check=True)
    assert undone.item() == pytest.approx(-weight, abs=2e-6)
    assert (back["x"].item(), back["y"].item()) == (x, 0.0)


def test_a_batch_is_translated_lane_by_lane():
    """Each lane has its own Jacobian and weight: those of one trace at a time."""
    r = mx.array([0.5, 1.0, 2.0, 3.0])
    angle = mx.array([0.1, -1.0, 1.2, 0.0])
    traces, _ = polar().vgenerate(choicemap({"r": r, "angle": angle}).batched(4), 4)
    translator = DeterministicTranslator(cartesian(), transform=to_cartesian)
    new, weight = translator(traces, check=True)
    rs, angles = np.array(r, np.float64), np.array(angle, np.float64)
    x, y = rs * np.cos(angles), rs * np.sin(angles)
    expected = log_normal_density(x, 0, 1) + log_normal_density(y, 0, 1) + np.log(rs)
    expected -= stats.invgamma(1).logpdf(rs) - math.log(math.pi)
    assert np.array(weight) == pytest.approx(expected, abs=1e-5)
    assert np.array(new["x"]) == pytest.approx(x, abs=1e-6)
    for i in range(4):
        assert translator(traces[i])[1].item() == pytest.approx(weight[i].item(), abs=1e-6)


def test_an_impossible_trace_passes_the_check():
    """Outside of the support the weight is -inf, and nothing need come back; inside everything must."""

    @gen
    def old_model():
        trace("x", normal(0, 1))

    @gen
    def half_line():
        trace("z", inv_gamma(1, 1))

    @transform
    def fold(old, new):
        x = old["x"]
        new["z"] = mx.where(x > 0, x, x - 10.0)

    @transform
    def unfolded(old, new):
        new["x"] = 1.0 * old["z"]

    translator = DeterministicTranslator(half_line(), transform=fold, inverse=unfolded)
    traces = old_model().vsimulate(8, key=6)
    weight = np.array(translator(traces, check=True).weight)
    assert 0 < np.isneginf(weight).sum() < 8
    assert (np.isneginf(weight) == (np.array(traces["x"]) < 0)).all()


@gen
def coarse(n):
    level = trace("level", normal(0, 2))
    for i in range(n):
        trace(("y", i), normal(level, 1))


@gen
def fine(n):
    log_level = trace("log_level", normal(0, 1))
    for i in range(n):
        trace(("y", i), normal(mx.exp(log_level), 0.5))


@transform
def to_log(old, new):
    assert (old.args, new.args) == ((2,), (3,))
    new["log_level"] = mx.log(old["level"])


def test_observations_are_not_part_of_the_map():
    """The old observations are left out of the Jacobian and of what must be read; the new ones are constraints."""
    tr, _ = coarse(2).generate({"level": 1.5, ("y", 0): 1.0, ("y", 1): 2.0})
    data = {("y", 0): 1.1, ("y", 1): 2.1, ("y", 2): 0.3}
    new, weight = DeterministicTranslator(fine(3), data, to_log)(tr)
    x = math.log(1.5)
    expected = log_normal_density(x, 0, 1) + sum(log_normal_density(y, 1.5, 0.5) for y in data.values())
    expected -= log_normal_density(1.5, 0, 2) + log_normal_density(1, 1.5, 1) + log_normal_density(2, 1.5, 1)
    assert weight.item() == pytest.approx(expected - math.log(1.5), abs=1e-5)
    assert new["y", 2].item() == pytest.approx(0.3)
    with pytest.raises(MissingChoice, match="lost: neither kept nor read") as caught:
        DeterministicTranslator(fine(3), data, to_log, old_observations={("y", 0): 0})(tr)
    assert caught.value.address == ("y", 1)


# the general translator: a count of components is reduced, the rest goes to the proposal


@gen
def two_means():
    trace("a", normal(0, 1))
    trace("b", normal(0, 1))
    trace("n", poisson(3.0))


@gen
def one_mean():
    trace("m", normal(0, 2))
    trace("odd", flip(0.3))


@gen
def forward(tr):
    trace("noise", normal(0, 0.5))


@gen
def backward(tr):
    trace("u", normal(tr["m"], 1.5))
    trace("e", normal(0, 0.7))
    trace("half", poisson(2.0))


@transform
def merge(old, new):
    a, b, n, noise = old["a"], old["b"], old["n"], old.aux["noise"]
    new["m"], new.aux["u"], new.aux["e"] = (a + b) / 2 + noise, a - b, 3 * noise
    new["odd"], new.aux["half"] = n % 2, n // 2


@transform
def split(old, new):
    e, u = old.aux["e"], old.aux["u"]
    mean = old["m"] - e / 3
    new["a"], new["b"], new.aux["noise"] = mean + u / 2, mean - u / 2, e / 3
    new["n"] = 2 * old.aux["half"] + old["odd"]


pair_bijections(merge, split)


def merging(tr, new):
    """The weight in closed form: d(m, u, e)/d(a, b, noise) has determinant -3."""
    a, b, n, m = (tr["a"].item(), tr["b"].item(), int(tr["n"].item()), new["m"].item())
    noise = m - (a + b) / 2
    p_new = log_normal_density(m, 0, 2) + math.log(0.3 if n % 2 else 0.7)
    p_old = log_normal_density(a, 0, 1) + log_normal_density(b, 0, 1) + stats.poisson(3).logpmf(n)
    q_back = log_normal_density(a - b, m, 1.5) + log_normal_density(3 * noise, 0, 0.7) + stats.poisson(2).logpmf(n // 2)
    return p_new - p_old - log_normal_density(noise, 0, 0.5) + q_back + math.log(3)


def test_a_general_translator_against_its_equation():
    translator = GeneralTranslator(one_mean(), None, forward, backward, merge)
    for seed in range(5):
        tr = two_means().simulate(mx.random.key(seed))
        new, weight = translator(tr, mx.random.key(100 + seed), check=True)
        assert weight.item() == pytest.approx(merging(tr, new), abs=1e-4)


def test_a_general_translator_in_a_batch():
    traces = two_means().vsimulate(6, key=1)
    new, weight = GeneralTranslator(one_mean(), None, forward, backward, merge, split)(traces, 2, check=True)
    assert new.n == 6 and weight.shape == (6,)
    for i in range(6):
        assert weight[i].item() == pytest.approx(merging(traces[i], new[i]), abs=1e-4)
    assert len(set(np.array(new["m"]).tolist())) == 6


def test_translation_is_unbiased():
    """E[exp weight] = 1 for prior draws of a normalised model: any missing term of the weight shifts it."""

    @gen
    def wide():
        trace("x", normal(0, 1))

    @gen
    def shifted():
        trace("y", normal(1, 1.2))

    @gen
    def jitter(tr):
        trace("e", normal(0, 0.4))

    @gen
    def unjitter(tr):
        trace("e", normal(0, 0.6))

    @transform
    def stretch(old, new):
        e = old.aux["e"]
        new["y"], new.aux["e"] = 1.3 * old["x"] + e, 1.2 * e

    traces = wide().vsimulate(40_000, key=3)
    _, weight = GeneralTranslator(shifted(), None, jitter, unjitter, stretch)(traces, key=4)
    w = np.exp(np.array(weight, np.float64))
    error = w.std() / math.sqrt(len(w))
    assert error < 0.02 and abs(w.mean() - 1) < 4 * error


def test_a_discrete_translator():
    """Bits to a number and back: no Jacobian, a weight of log probabilities only."""

    @gen
    def bits():
        trace(("bit", 0), flip(0.3))
        trace(("bit", 1), flip(0.6))

    @gen
    def number():
        trace("n", poisson(1.0))

    @transform
    def pack(old, new):
        new["n"] = old["bit", 0] + 2 * old["bit", 1]

    @transform
    def unpack(old, new):
        n = old["n"]
        new["bit", 0], new["bit", 1] = n % 2, n // 2

    tr, _ = bits().generate({("bit", 0): 1, ("bit", 1): 1})
    new, weight = DeterministicTranslator(number(), transform=pack, inverse=unpack)(tr, check=True)
    assert new["n"].item() == 3
    assert weight.item() == pytest.approx(stats.poisson(1).logpmf(3) - math.log(0.3 * 0.6), abs=1e-5)

    @transform
    def crossed(old, new):
        n = old["n"]
        new["bit", 1], new["bit", 0] = n % 2, n // 2

    crossing = DeterministicTranslator(number(), transform=pack, inverse=crossed)
    crossing(tr, check=True)  # both bits are set, so that crossing them shows nothing
    tr, _ = bits().generate({("bit", 0): 1, ("bit", 1): 0})
    with pytest.raises(RoundTripError, match=r"at \('bit', 0\) in crossed"):
        crossing(tr, check=True)


# the extending translator


@gen
def chain_step(t, z):
    z = trace("z", normal(0, 1))
    trace("x", normal(z, 1))
    return z


chain = unfold(chain_step)


@gen
def propose_z(tr):
    trace((len(tr.retval), "z"), normal(5, 1))


def test_extending_an_unfold():
    """Case 37: the likelihood cancels against the proposal, w = N(z; 0, 1); alone and in a batch."""
    translator = SimpleExtendingTranslator((2, 0.0), observations={(1, "x"): 5.0}, q_forward=propose_z)
    tr, _ = chain(1, 0.0).generate({(0, "x"): 5.0}, key=1)
    new, weight = translator(tr, mx.random.key(2), check=True)
    assert weight.item() == pytest.approx(log_normal_density(new[1, "z"].item(), 0, 1), abs=1e-5)
    assert new[0, "z"].item() == tr[0, "z"].item() and new[1, "x"].item() == 5.0
    traces, _ = chain(1, 0.0).vgenerate({(0, "x"): 5.0}, 7, key=3)
    new, weight = translator(traces, mx.random.key(4))
    z = np.array(new[1, "z"])
    assert np.array(weight) == pytest.approx(log_normal_density(z, 0, 1), abs=1e-5)
    assert len(set(z.tolist())) == 7 and new.args == (2, 0.0)


@gen
def nothing_or_pair(there):
    if there:
        trace("y", normal(trace("x", normal(0, 1)), 1))


@gen
def wide_x(tr):
    trace("x", normal(0, 2))


@gen
def unit(tr):
    trace("u", normal(0, 1))


@transform
def doubled(old, new):
    new["x"] = 2 * old.aux["u"]


@transform
def halved(old, new):
    new.aux["u"] = old["x"] / 2


def test_extending_with_and_without_a_proposal():
    """Case 37: nothing proposed, N(0, 2) proposed, and N(0, 1) proposed and doubled, which needs log 2 by itself."""
    tr = nothing_or_pair(False).simulate()
    new, weight = SimpleExtendingTranslator((True,), observations={"y": 0.0})(tr, mx.random.key(1))
    assert weight.item() == pytest.approx(log_normal_density(0, new["x"].item(), 1), abs=1e-5)
    pair_bijections(doubled, halved)
    for proposal, moved in [(wide_x, None), (unit, doubled)]:
        translator = SimpleExtendingTranslator(
            nothing_or_pair(True), observations={"y": 0.0}, q_forward=proposal, transform=moved
        )
        new, weight = translator(tr, mx.random.key(2), check=True)
        x = new["x"].item()
        expected = log_normal_density(0, x, 1) + log_normal_density(x, 0, 1) - log_normal_density(x, 0, 2)
        assert weight.item() == pytest.approx(expected, abs=1e-5)


def test_extending_must_not_lose_choices():
    tr, _ = nothing_or_pair(True).generate({"x": 1.0, "y": 0.0})
    with pytest.raises(UsageError, match="may only add choices") as caught:
        SimpleExtendingTranslator((False,))(tr)
    assert caught.value.address == ("x",)
    with pytest.raises(UsageError, match="proposes an observed choice"):
        SimpleExtendingTranslator((True,), None, {"x": 0.0}, wide_x)(nothing_or_pair(False).simulate())


# the symmetric translator, and what goes wrong


def test_a_symmetric_translator_against_its_equation():
    """The weight by scipy, with a proposal that is not symmetric; y is observed and stays."""

    @is_involution
    @transform
    def reflect(old, new):
        u, x = old.aux["u"], old["x"]
        new["x"], new.aux["u"] = x * mx.exp(u), -u

    tr, _ = cartesian().generate({"x": 0.7, "y": -0.2})
    new, there = SymmetricTranslator(lambda tr: normal_u(0.4), reflect, {"y": 0})(tr, mx.random.key(1), check=True)
    x = new["x"].item()
    u = math.log(x / 0.7)
    expected = log_normal_density(x, 0, 1) - log_normal_density(0.7, 0, 1) + u
    expected += log_normal_density(-u, 0.4, 1) - log_normal_density(u, 0.4, 1)
    assert there.item() == pytest.approx(expected, abs=1e-5)
    assert new["y"].item() == tr["y"].item()


@gen
def normal_u(mean):
    trace("u", normal(mean, 1))


def test_there_and_back_weigh_nothing():
    """The weights of a pair of general translators add up to 0 where each draws what the other wrote."""
    tr = two_means().simulate(mx.random.key(8))
    new, weight = GeneralTranslator(one_mean(), None, forward, backward, merge)(tr, mx.random.key(9))
    a, b, n = tr["a"].item(), tr["b"].item(), tr["n"].item()
    written = {"u": a - b, "e": 3 * (new["m"].item() - (a + b) / 2), "half": n // 2}

    @gen
    def drawn(tr):
        # A draw that comes out as written; its density is put right below.
        for name, value in written.items():
            trace(name, delta(value))

    back, undone = GeneralTranslator(two_means(), None, drawn, forward, split)(new)
    assert back["a"].item() == pytest.approx(a, abs=1e-5) and back["n"].item() == n
    q_forward = backward(new).assess(written).score
    assert undone.item() - q_forward.item() == pytest.approx(-weight.item(), abs=1e-4)


def test_a_bad_inverse_is_named():
    @transform
    def bad(old, new):
        r, angle = old["r"], old["angle"]
        new["x"], new["y"] = r * mx.cos(angle), r * mx.sin(angle) + 0.01

    @transform
    def half(old, new):
        r, angle = old["r"], old["angle"]
        new["x"] = r * mx.cos(angle)

    @transform
    def swapped(old, new):
        r, angle = old["r"], old["angle"]
        new["x"], new["z"] = r * mx.cos(angle), r * mx.sin(angle)

    tr, _ = cartesian().generate({"x": 2.0, "y": 0.5})
    with pytest.raises(RoundTripError, match="not the same after the way there and back: at 'y' in bad"):
        DeterministicTranslator(polar(), transform=to_polar, inverse=bad)(tr, check=True)
    with pytest.raises(RoundTripError, match="is not there after the way there and back: at 'y'"):
        DeterministicTranslator(polar(), transform=to_polar, inverse=half)(tr, check=True)
    with pytest.raises(RoundTripError, match="at 'y'"):
        DeterministicTranslator(polar(), transform=to_polar, inverse=swapped)(tr, check=True)
    traces = cartesian().vsimulate(3, key=5)
    with pytest.raises(RoundTripError, match=r"in \d of 3 moves: at 'y' in bad"):
        DeterministicTranslator(polar(), transform=to_polar, inverse=bad)(traces, check=True)

    @transform
    def alone(old, new):
        new["r"], new["angle"] = old["x"], old["y"]

    with pytest.raises(UsageError, match="no inverse to be checked against"):
        DeterministicTranslator(polar(), transform=alone)(tr, check=True)


def test_writes_that_do_not_fit():
    tr, _ = cartesian().generate({"x": 2.0, "y": 0.5})

    @transform
    def unknown(old, new):
        new["r"], new["angle"] = old["x"], old["y"]
        new["angel"] = 1

    @transform
    def whole(old, new):
        new["r"], new["angle"] = old["x"], 1
        old["y"]

    @transform
    def missing(old, new):
        new["r"] = old["x"] + old["y"]

    @transform
    def aux(old, new):
        new["r"], new["angle"] = old["x"], old["y"]
        new.aux["u"] = 1.0

    for f, kind, text, address in [
        (unknown, UnknownAddress, "writes what is not a choice of the new trace", "angel"),
        (whole, ValueMismatch, "writes a whole number to a real choice of the new trace", "angle"),
        (missing, MissingChoice, "does not write a choice of the new trace", "angle"),
        (aux, UsageError, "no backward proposal", "u"),
    ]:
        with pytest.raises(kind, match=text) as caught:
            DeterministicTranslator(polar(), transform=f)(tr)
        assert caught.value.address == (address,) and caught.value.where.startswith(__file__)
    with pytest.raises(UsageError, match="writes an observed choice"):
        DeterministicTranslator(polar(), {"r": 1.0}, to_polar)(tr)


def test_return_values_that_are_real():
    @gen
    def returns():
        return trace("x", normal(0, 1)) * 2

    @transform
    def reads_retval(old, new):
        new["x"], new["y"] = old["x"], old.retval

    tr = returns().simulate(key=1)
    with pytest.raises(UsageError, match="holds real numbers") as caught:
        DeterministicTranslator(cartesian(), transform=reads_retval)(tr)
    assert caught.value.where.startswith(__file__)


def test_a_transform_that_branches_is_not_looped_over_a_batch():
    @transform
    def branch(old, new):
        a, b, n = old["a"], old["b"], old["n"]
        new["m"] = a if n.item() > 1 else b

    with pytest.raises(BatchError) as caught:
        GeneralTranslator(one_mean(), None, forward, backward, branch)(two_means().vsimulate(3, key=0))
    assert caught.value.where.startswith(__file__)
