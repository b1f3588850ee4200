"""The operations of a particle filter, each against weights computed by hand."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats
from state_spaces import (
    HMM,
    HMM_LOG_ML,
    MOVES,
    PRIOR,
    SEEN,
    SHOWS,
    assert_evidence_is,
    forward,
    hidden,
    kalman,
    walk,
    walk_step,
    walks,
)

from genmlx import choicemap, flip, gen, normal, select, switch, trace, unfold, uniform
from genmlx.errors import GenError, ParameterError, UnknownAddress, UsageError
from genmlx.gfi import Call
from genmlx.inference import (
    GeneralTranslator,
    ParticleFilter,
    SimpleExtendingTranslator,
    SymmetricTranslator,
    mh_kernel,
    repeat_kernel,
)
from genmlx.inference.resampling import SCHEMES, DegenerateWeights
from genmlx.transform import is_involution, pair_bijections, transform

INF = math.inf


def begun(particles=6, key=0, y=1.0):
    return ParticleFilter.init(walk(1, 0.0, 1.0), {(0, "y"): y}, particles=particles, key=key)


def run(steps, particles=10, key=0, threshold=None):
    """A filter through some steps, resampled before each but the first where ``threshold`` says so."""
    pf = ParticleFilter.init(*steps[0], particles=particles, key=key)
    for t, (call, observations) in enumerate(steps[1:]):
        if threshold is not None and pf.ess.item() < threshold * pf.n:
            pf = pf.resample(key=1000 * key + 2 * t)
        pf = pf.step(call, observations, key=1000 * key + 2 * t + 1)
    return pf


def weights(pf):
    """Each particle's share of the evidence: these, summed over particles, are exp(log_ml)."""
    w = np.exp(np.array(pf.log_weights, dtype=np.float64))
    return w / w.sum() * math.exp(pf.log_ml.item())


def states(pf, t=0):
    return np.array(pf[(t, "x")])


# the weights of a step


def test_weights_are_likelihoods_times_what_was_before():
    """Without resampling, by hand: the product of the likelihoods of each path."""
    ys = [1.0, 2.0, 0.0]
    pf = run(walks(ys), particles=50, key=1)
    expected = sum(stats.norm(states(pf, t), 1).logpdf(y) for t, y in enumerate(ys))
    assert np.allclose(np.array(pf.log_weights), expected, atol=1e-5)
    assert pf.log_ml.item() == pytest.approx(np.log(np.exp(expected).mean()), abs=1e-5)
    assert pf.ess.item() == pytest.approx(np.exp(expected).sum() ** 2 / (np.exp(expected) ** 2).sum(), rel=1e-4)
    assert pf.observations == choicemap({(t, "y"): y for t, y in enumerate(ys)})


def test_after_a_resampling_weights_begin_anew():
    pf = begun(50).resample(key=1)
    before = pf.log_ml.item()
    pf = pf.step(walk(2, 0.0, 1.0), {(1, "y"): 2.0}, key=2)
    expected = stats.norm(states(pf, 1), 1).logpdf(2.0)
    assert np.allclose(np.array(pf.log_weights), expected, atol=1e-5)
    assert pf.log_ml.item() == pytest.approx(before + np.log(np.exp(expected).mean()), abs=1e-5)
    assert pf.history[-1].log_ml_increment == pytest.approx(np.log(np.exp(expected).mean()), abs=1e-5)


def test_a_step_with_nothing_new_changes_nothing():
    pf = begun()
    same = pf.step(key=1)
    assert same.log_weights.tolist() == pf.log_weights.tolist() and len(same.history) == 2
    assert same[(0, "x")].tolist() == pf[(0, "x")].tolist() and same.history[-1].log_ml_increment == 0.0


def test_a_filter_is_a_value():
    """No operation changes the filter that it is applied to."""
    pf = begun(8)
    seen = (pf[(0, "x")].tolist(), pf.log_weights.tolist(), pf.log_ml.item(), pf.history.steps, pf.base)
    pf.resample(key=1), pf.resize(3, key=1, scheme="optimal"), pf.replicate(2), pf.take([0]), pf.coalesce()
    (
        pf.rejuvenate((0, "x"), key=1),
        pf.move_reweight((0, "x"), key=1),
        pf.step(walk(2, 0.0, 1.0), {(1, "y"): 0.0}, key=1),
    )
    assert seen == (pf[(0, "x")].tolist(), pf.log_weights.tolist(), pf.log_ml.item(), pf.history.steps, pf.base)


def test_the_evidence_of_a_long_series_does_not_drift():
    """3,000 observations of log density -100.3 each: a float32 total would lose 0.008 or so at each step."""

    pf = begun(2)
    for _ in range(3000):
        pf = pf.extended(pf.traces, mx.full((2,), -100.3), pf.call, pf.observations).resample(key=0)
    expected = begun(2).log_ml.item() + 3000 * float(np.float32(-100.3))
    assert pf.log_ml.item() == pytest.approx(expected, rel=2e-7)


# resampling


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [1, 7, 20, 61])
def test_resampling_keeps_the_evidence(scheme, n):
    pf = run(walks([1.0, 3.0]), particles=20, key=2, threshold=1.0)
    for other in (pf.resample(n, 3, scheme), pf.resize(n, 3, scheme), pf.resize(n, 3, scheme).resample(5, 4, scheme)):
        assert other.log_ml.item() == pytest.approx(pf.log_ml.item(), abs=1e-6)
        assert set(other.log_weights.tolist()) == {0.0}
    assert pf.resample(n, 3, scheme).n == len(pf.resample(n, 3, scheme)) == n


PRIORITIES = {
    "half": lambda w: w / 2,
    "double": lambda w: 2 * w,
    "equal": lambda w: mx.zeros(w.shape),
    "shifted": lambda w: w + 1000.0,
    "array": mx.linspace(-3.0, 3.0, 20),
}


@pytest.mark.parametrize("name", PRIORITIES)
@pytest.mark.parametrize("n", [6, 20, 50])
def test_resampling_by_priority_keeps_the_evidence(name, n):
    pf = begun(20, key=4)
    found = pf.resample(n, 5, priority=PRIORITIES[name])
    assert found.log_ml.item() == pytest.approx(pf.log_ml.item(), abs=1e-6)
    chances = np.array(PRIORITIES[name](pf.log_weights) if callable(PRIORITIES[name]) else PRIORITIES[name])
    index = found.history[-1].ancestors
    left = (np.array(pf.log_weights) - chances)[index]
    assert np.allclose(np.array(found.log_weights) - found.log_weights[0].item(), left - left[0], atol=1e-4)


@pytest.mark.parametrize("name", ["half", "double", "equal"])
def test_a_priority_does_not_move_the_posterior(name):
    """Draws by other weights carry what is left: the mean of the posterior is the same, by 4 standard errors."""
    means = [
        begun(400, key=seed, y=2.0).resample(key=seed, priority=PRIORITIES[name]).mean((0, "x")).item()
        for seed in range(100)
    ]
    assert abs(np.mean(means) - 1.0) < 4 * np.std(means) / 10 + 0.01
    assert np.std(means) < 0.15


def test_what_a_priority_must_be():
    pf = begun(3)
    with pytest.raises(ParameterError, match=r"shape \[4\]"):
        pf.resample(priority=mx.zeros(4))
    for bad in (mx.array([-INF, 0.0, 0.0]), mx.array([math.nan, 0.0, 0.0])):
        with pytest.raises(ParameterError, match="could never be drawn"):
            pf.resample(priority=bad)


@gen
def box():
    trace("y", uniform(trace("x", normal(0, 1)), 10.0))


def boxed(n=40):
    """Half the particles have weight zero: those with x above 0."""
    pf = ParticleFilter.init(box(), {"y": 0.0}, particles=n, key=6)
    dead = np.array(pf["x"]) > 0
    assert 5 < dead.sum() < n - 5
    return pf, dead


@pytest.mark.parametrize("priority", [None, lambda w: mx.zeros(w.shape)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_particle_of_weight_zero_has_no_children(scheme, priority):
    """Not by a priority either: a resampling that draws none but such would lose the evidence."""
    pf, _ = boxed()
    for seed in range(10):
        found = pf.resample(3, seed, scheme, priority)
        assert np.all(np.array(found["x"]) <= 0)
        assert found.log_ml.item() == pytest.approx(pf.log_ml.item(), abs=1e-6)


def test_all_weights_zero():
    """It raises, and with ``check=False`` draws by equal weights, and says so by the evidence."""
    pf, dead = boxed()
    none = pf.take(np.flatnonzero(dead))
    assert none.log_ml.item() == -INF
    with pytest.raises(DegenerateWeights, match="every particle has weight zero"):
        none.resample(key=0)
    found = none.resample(50, 0, "multinomial", check=False)
    assert found.log_ml.item() == -INF and np.all(np.array(found.log_weights) == -INF)
    counts = np.bincount(found.history[-1].ancestors, minlength=40)
    assert counts.sum() == 50 and set(np.flatnonzero(counts)) <= set(np.flatnonzero(dead)) and (counts > 0).sum() > 5
    with pytest.raises(DegenerateWeights):
        none.resample(check=True)
    assert pf.resample(key=0, check=False).log_ml.item() == pytest.approx(pf.log_ml.item(), abs=1e-6)


def test_a_particle_of_weight_zero_stays_so():
    """Also where a move, or a step, makes its trace possible: that is -inf + inf."""
    pf, dead = boxed()
    moved = pf.move_reweight("x", key=1)
    assert np.all(np.array(moved.log_weights)[dead] == -INF)
    alive = np.array(moved.log_weights) > -INF
    assert np.all(np.array(moved["x"])[alive] <= 0) and moved.log_ml.item() > -INF


def test_ancestors_and_lineage_through_every_operation():
    """Values tell particles: whatever was done, a particle descends from one with the same first state."""
    pf = begun(12, key=7)
    first = pf[(0, "x")].tolist()
    forms = [
        pf.resample(key=1),
        pf.resample(key=1).resample(9, key=2).resize(30, key=3),
        pf.resize(5, key=1, scheme="optimal"),
        pf.replicate(3),
        pf.take([3, -1, 3]).take(mx.array([2, 1])),
        pf.resample(key=1).coalesce(),
        pf.resample(5, key=1, priority=lambda w: w / 2),
    ]
    for form in forms:
        later = form.step(walk(2, 0.0, 1.0), {(1, "y"): 0.0}, key=4)
        second = later[(1, "x")].tolist()
        for end in (later, later.resample(key=5).resample(key=6)):
            for i in range(end.n):
                then, now = end.history.lineage(i)
                assert first[then] == end[(0, "x")][i].item() and second[now] == end[(1, "x")][i].item()
        assert later.history.ancestors[1] is None and len(later.history.ancestors[0]) == form.n
        assert later.history.resampled.tolist() == [True, False]


def test_all_of_a_trace_is_resampled():
    """Choices, scores, return values and the states of nested calls: each lane is one trace of the model."""

    @gen
    def model(n):
        scale = trace("scale", uniform(0.5, 2.0))
        xs = trace("chain", unfold_walk(n, 0.0, scale))
        return {"xs": xs, "product": scale * xs[-1]}

    pf = ParticleFilter.init(model(1), {("chain", 0, "y"): 1.0}, particles=9, key=8)
    for t in range(1, 4):
        pf = pf.resample(key=t).step(model(t + 1), {("chain", t, "y"): 1.0}, key=10 + t)
    pf = pf.resample(key=5)
    assert len(set(pf["scale"].tolist())) < 9
    for lane in [pf.traces[i] for i in range(9)]:
        xs = [lane["chain", t, "x"].item() for t in range(4)]
        scale = lane["scale"].item()
        score = stats.norm(scale=1).logpdf(np.diff([0.0, *xs])).sum() + stats.norm(xs, scale).logpdf(1.0).sum()
        assert lane.score.item() == pytest.approx(score - math.log(1.5), abs=1e-4)
        assert [x.item() for x in lane.retval["xs"]] == xs
        assert lane.retval["product"].item() == pytest.approx(scale * xs[-1], abs=1e-5)


unfold_walk = unfold(walk_step)


# another number of particles


def test_optimal_resize():
    """Those with c w >= 1 stay with their weight; the sum of weights is what it was."""
    pf = begun(30, key=9, y=4.0)
    kept = pf.resize(8, key=1, scheme="optimal")
    assert kept.n == 8 and kept.log_ml.item() == pytest.approx(pf.log_ml.item(), abs=1e-6)
    w = weights(pf)
    c = _threshold(w / w.sum(), 8)
    new = dict(zip(states(kept).tolist(), weights(kept) / weights(kept).sum(), strict=True))
    assert len(new) == 8
    for x, share in zip(states(pf).tolist(), w / w.sum(), strict=True):
        if c * share >= 1:
            assert new[x] == pytest.approx(share, rel=1e-4)
        elif x in new:
            assert new[x] == pytest.approx(1 / c, rel=1e-4)
    with pytest.raises(ParameterError, match="from 1 to 30"):
        pf.resize(31, scheme="optimal")


def _threshold(w, n):
    """c such that the sum of min(1, c w) is n, by bisection."""
    low, high = 0.0, n / w.min()
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if np.minimum(1, c * w).sum() < n else (low, c)
    return low


def test_the_evidence_is_unbiased_when_particles_come_and_go():
    def sized(seed):
        pf = ParticleFilter.init(*HMM[0], particles=60, key=4 * seed)
        pf = pf.resize(20, 4 * seed, "optimal").step(*HMM[1], key=4 * seed + 1)
        pf = pf.resize(90, 4 * seed + 1, "residual").step(*HMM[2], key=4 * seed + 2)
        pf = pf.replicate(2).coalesce().resize(40, 4 * seed + 2, "stratified")
        return pf.step(*HMM[3], key=4 * seed + 3).log_ml.item()

    assert_evidence_is(HMM_LOG_ML, sized)


def test_replicate():
    pf = begun(4)
    many = pf.replicate(3)
    assert many[(0, "x")].tolist() == [x for x in pf[(0, "x")].tolist() for _ in range(3)]
    assert many.log_weights.tolist() == [w for w in pf.log_weights.tolist() for _ in range(3)]
    assert many.log_ml.item() == pytest.approx(pf.log_ml.item(), abs=1e-6)
    assert many.mean((0, "x")).item() == pytest.approx(pf.mean((0, "x")).item(), abs=1e-6)
    later = many.step(walk(2, 0.0, 1.0), {(1, "y"): 0.0}, key=1)
    assert len(set(later[(1, "x")].tolist())) == 12, "copies share noise"


def test_take():
    """A part has the evidence of its own weights: parts of equal size have a mean that is that of all."""
    pf = run(walks([1.0, 2.0]), particles=6, key=1, threshold=1.0)
    for indices in ([4, 0, 0], range(1, 4), mx.array([4, 0]), np.array([2]), (-1, 5)):
        at = np.array(list(np.array(indices)))
        part = pf.take(indices)
        assert part[(1, "x")].tolist() == states(pf, 1)[at].tolist()
        assert part.log_weights.tolist() == np.array(pf.log_weights)[at].tolist()
        assert math.exp(part.log_ml.item()) == pytest.approx(weights(pf)[at].mean() * 6, rel=1e-5)
    halves = [pf.take(range(3)), pf.take(range(3, 6))]
    assert np.logaddexp(*[h.log_ml.item() for h in halves]) - math.log(2) == pytest.approx(pf.log_ml.item(), abs=1e-6)


@pytest.mark.parametrize("indices", [[6], [-7], [], [True] * 6, [0.0], mx.array([0.5]), [[0, 1]], np.array([True] * 6)])
def test_indices_that_are_none(indices):
    """MLX reads beyond the end of an array without a word."""
    with pytest.raises(ParameterError, match="no indices"):
        begun(6).take(indices)


def test_coalesce():
    """By a dictionary: one particle for each path, with the weights of its copies added up."""
    pf = run(HMM[:3], particles=60, key=3, threshold=1.0)
    z = list(zip(*[pf[(t, "z")].tolist() for t in range(3)], strict=True))
    shares: dict = {}
    for path, w in zip(z, weights(pf), strict=True):
        shares[path] = shares.get(path, 0.0) + w
    one = pf.coalesce()
    assert one.n == len(shares) < 27 and one.log_ml.item() == pytest.approx(pf.log_ml.item(), abs=1e-5)
    paths = list(zip(*[one[(t, "z")].tolist() for t in range(3)], strict=True))
    assert paths == list(shares), "in the order of the first of each"
    assert weights(one) == pytest.approx(list(shares.values()), rel=1e-4)
    assert one.mean((0, "z")).item() == pytest.approx(pf.mean((0, "z")).item(), abs=1e-5)


def test_coalesce_by_some_addresses():
    pf = run(HMM[:3], particles=60, key=3)
    by = pf.coalesce(by=(2, "z"))
    assert sorted(by[(2, "z")].tolist()) == sorted(set(pf[(2, "z")].tolist()))
    assert by.mean((2, "z")).item() == pytest.approx(pf.mean((2, "z")).item(), abs=1e-5)
    assert pf.coalesce(by=select((0, "z")) | select((2, "z"))).n <= 9
    with pytest.raises(UnknownAddress, match=r"\(3, 'z'\)"):
        pf.coalesce(by=(3, "z"))
    with pytest.raises(UsageError, match="nothing to compare"):
        pf.coalesce(by=(0, "y"))


def test_coalesce_where_some_particles_lack_a_choice():
    """What lies under a mask is no difference, and a choice that is there is one from a choice that is not."""

    @gen
    def without():
        return mx.array(0.0)

    @gen
    def having():
        return trace("u", flip(0.5)) * 1.0

    @gen
    def model():
        k = trace("k", flip(0.5))
        trace("y", normal(trace("in", switch(without, having)(k)), 1.0))

    pf = ParticleFilter.init(model(), {"y": 0.0}, particles=80, key=0)
    one = pf.coalesce()
    assert one.n == 3 and sorted(one["k"].tolist()) == [0, 1, 1]
    w, k, u = weights(pf), np.array(pf["k"]), np.array(pf["in", "u"].value)
    expected = {(0, None): w[k == 0].sum(), (1, 0): w[(k == 1) & (u == 0)].sum(), (1, 1): w[(k == 1) & (u == 1)].sum()}
    names = [(a, b if a else None) for a, b in zip(one["k"].tolist(), one["in", "u"].value.tolist(), strict=True)]
    assert {name: share for name, share in zip(names, weights(one), strict=True)} == pytest.approx(expected, rel=1e-4)


def test_coalesce_of_vectors():
    @gen
    def model():
        trace("y", normal(mx.sum(trace("v", flip(mx.array([0.5, 0.5])))), 1.0))

    pf = ParticleFilter.init(model(), {"y": 1.0}, particles=100, key=0)
    one = pf.coalesce()
    assert sorted(map(tuple, one["v"].tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert np.allclose(np.array(one.mean("v")), np.array(pf.mean("v")), atol=1e-5)


def test_join():
    """The evidence is the mean of theirs, by their numbers of particles."""
    parts = [run(walks([1.0, 2.0]), n, key=n, threshold=1.0) for n in (5, 20, 10)]
    all_of_them = ParticleFilter.join(parts)
    expected = sum(p.n * math.exp(p.log_ml.item()) for p in parts) / 35
    assert all_of_them.n == 35 and math.exp(all_of_them.log_ml.item()) == pytest.approx(expected, rel=1e-5)
    assert all_of_them[(1, "x")].tolist() == [x for p in parts for x in p[(1, "x")].tolist()]
    shares = np.concatenate([p.n * weights(p) for p in parts]) / 35
    assert weights(all_of_them) == pytest.approx(shares, rel=1e-4)
    assert len(all_of_them.history) == 1 and all_of_them.history.lineage(34) == [34]
    later = all_of_them.resample(key=0).step(walk(3, 0.0, 1.0), {(2, "y"): 0.0}, key=1)
    assert later.n == 35 and len(later.history) == 2
    assert ParticleFilter.join(parts[:1]).log_ml.item() == parts[0].log_ml.item()


def test_what_cannot_be_joined():
    pf = begun()
    with pytest.raises(UsageError, match="no filters"):
        ParticleFilter.join([])
    with pytest.raises(UsageError, match="other models or observations"):
        ParticleFilter.join([pf, begun(y=2.0)])
    with pytest.raises(UsageError, match="other models or observations"):
        ParticleFilter.join([pf, pf.step(walk(2, 0.0, 1.0), {(1, "y"): 0.0}, key=1)])
    with pytest.raises(UsageError, match="other models or observations"):
        ParticleFilter.join([pf, ParticleFilter.init(box(), {"y": 0.0}, particles=6, key=1)])
    with pytest.raises(UsageError, match=r"filters of .*walk_step\)\(1, 0.0, 2.0\)"):
        ParticleFilter.join([pf, ParticleFilter.init(walk(1, 0.0, 2.0), {(0, "y"): 1.0}, particles=6, key=1)])

    @gen
    def shifted(xs):
        trace("y", normal(trace("x", normal(0, 1)) + mx.sum(xs), 1.0))

    ones, others = (
        ParticleFilter.init(shifted(xs), {"y": 1.0}, particles=3, key=1) for xs in (mx.ones(2), mx.array([1.0, 2.0]))
    )
    assert ParticleFilter.join([ones, ParticleFilter.init(shifted(mx.ones(2)), {"y": 1.0}, particles=3, key=1)]).n == 6
    with pytest.raises(UsageError, match="join was given filters of"):
        ParticleFilter.join([ones, others])


# moves


def test_rejuvenation_leaves_weights_and_counts_its_steps():
    pf = begun(200, key=1)
    moved = pf.rejuvenate((0, "x"), steps=4, key=2)
    assert moved.log_weights.tolist() == pf.log_weights.tolist() and moved.log_ml.item() == pf.log_ml.item()
    assert 0.2 < moved.history[-1].accept < 1
    # of four steps, as few stay as never accept
    stays = [np.mean(states(pf.rejuvenate((0, "x"), steps=n, key=2)) == states(pf)) for n in (1, 4)]
    assert stays[1] < stays[0] ** 2 and stays[0] == pytest.approx(1 - pf.rejuvenate((0, "x"), key=2).history[-1].accept)


@pytest.mark.parametrize("kernel", [(0, "x"), mh_kernel((0, "x")), repeat_kernel(2, mh_kernel((0, "x")))])
def test_rejuvenation_goes_to_the_posterior(kernel):
    """From anywhere: all particles at -3, many steps, and they have mean .5 and variance .5."""
    pf = ParticleFilter.init(walk(1, 0.0, 1.0), {(0, "y"): 1.0, (0, "x"): -3.0}, particles=3000, key=0)
    free = pf._replaced(observations=begun().observations)
    moved = free.rejuvenate(kernel, steps=12, key=1)
    x = states(moved)
    assert x.mean() == pytest.approx(0.5, abs=4 * math.sqrt(0.5 / 3000)) and x.var() == pytest.approx(0.5, rel=0.12)


def test_what_rejuvenation_cannot_do():
    pf = begun()
    with pytest.raises(GenError, match=r"mh_kernel moved an observed choice at \(0, 'y'\)"):
        pf.rejuvenate(mh_kernel((0, "y")), key=0)
    with pytest.raises(UsageError, match=r"\(0, 'y'\), which is observed"):
        pf.rejuvenate((0, "y"))
    with pytest.raises(UnknownAddress, match=r"\(0, 'z'\)"):
        pf.rejuvenate((0, "z"))
    with pytest.raises(UsageError, match="nothing to move"):
        pf.rejuvenate(~select(0))
    with pytest.raises(ParameterError, match="steps must be"):
        pf.rejuvenate((0, "x"), steps=0)
    with pytest.raises(UsageError, match="not a kernel"):
        pf.rejuvenate(walk_step)


def test_a_selection_drawn_anew_is_weighed_by_its_likelihood():
    """By hand: the prior proposes there and back, which leaves p(y | x') / p(y | x)."""
    pf = begun(100, key=1)
    moved = pf.move_reweight((0, "x"), key=2)
    ratio = stats.norm(states(moved), 1).logpdf(1.0) - stats.norm(states(pf), 1).logpdf(1.0)
    assert np.all(states(moved) != states(pf))
    assert np.allclose(np.array(moved.log_weights), np.array(pf.log_weights) + ratio, atol=1e-5)
    expected = np.log(np.exp(stats.norm(states(moved), 1).logpdf(1.0)).mean())
    assert moved.log_ml.item() == pytest.approx(expected, abs=1e-5)
    assert moved.history.log_ml[-1] == pytest.approx(expected, abs=1e-5) and len(moved.history) == 1
    assert np.cumsum(moved.history.log_ml_increment)[-1] == pytest.approx(expected, abs=1e-5)


def test_a_move_that_names_what_it_cannot_move():
    pf = begun()
    with pytest.raises(UsageError, match=r"\(0, 'y'\), which is observed"):
        pf.move_reweight((0, "y"))
    with pytest.raises(UnknownAddress, match=r"\(0, 'z'\)"):
        pf.move_reweight((0, "z"))
    with pytest.raises(UsageError, match="mh_kernel> has no weight"):
        pf.move_reweight(mh_kernel((0, "x")))


@gen
def factor(tr):
    trace("log_c", normal(0.3, 0.5))


@is_involution
@transform
def scale(old, new):
    log_c = old.aux["log_c"]
    new[(0, "x")], new.aux["log_c"] = mx.exp(log_c) * old[(0, "x")], -log_c


def test_a_symmetric_translator_as_a_move():
    """By hand: p(x', y) / p(x, y) q(-log c) / q(log c) c, in which the last is the Jacobian."""
    pf = begun(100, key=1)
    moved = pf.move_reweight(SymmetricTranslator(factor, scale), key=2)
    x, new = states(pf), states(moved)
    log_c = np.log(new / x)
    joint = [stats.norm.logpdf(v) + stats.norm(v, 1).logpdf(1.0) for v in (x, new)]
    ratio = joint[1] - joint[0] + stats.norm(0.3, 0.5).logpdf(-log_c) - stats.norm(0.3, 0.5).logpdf(log_c) + log_c
    assert np.allclose(np.array(moved.log_weights), np.array(pf.log_weights) + ratio, atol=1e-4)


def test_a_translator_that_moves_an_observation_raises():
    @is_involution
    @transform
    def turn(old, new):
        new[(0, "y")] = -old[(0, "y")]

    with pytest.raises(GenError, match=r"moved an observed choice at \(0, 'y'\)"):
        begun().move_reweight(SymmetricTranslator(None, turn), key=0)


def test_moves_with_weights_leave_the_evidence_unbiased():
    def moved(seed):
        pf = ParticleFilter.init(*HMM[0], particles=60, key=3 * seed)
        for t in range(1, 4):
            pf = pf.move_reweight((t - 1, "z"), key=100 * seed + t).resample(key=100 * seed + 10 + t)
            pf = pf.step(*HMM[t], key=100 * seed + 20 + t)
        return pf.log_ml.item()

    assert_evidence_is(HMM_LOG_ML, moved, precision=0.12)


# other models


@gen
def doubled():
    """The same walk of one step, in half as large units, with a shift."""
    trace("y", normal(trace("half", normal(0.5, 1.0)) * 2.0, 1.5))


@transform
def halve(old, new):
    new["half"] = old[(0, "x")] / 2


@transform
def double(old, new):
    new[(0, "x")] = 2 * old["half"]


pair_bijections(halve, double)


def test_a_translation_to_another_model():
    """By hand: p_new(x / 2, y) / p_old(x, y) / 2. What follows is a filter of the new model."""
    pf = begun(100, key=1)
    translator = GeneralTranslator(doubled(), {"y": 1.5}, transform=halve, old_observations={(0, "y"): 1.0})
    moved = pf.translate(translator, key=2)
    x = states(pf)
    assert np.allclose(np.array(moved["half"]), x / 2)
    new = stats.norm(0.5, 1).logpdf(x / 2) + stats.norm(x, 1.5).logpdf(1.5)
    old = stats.norm.logpdf(x) + stats.norm(x, 1).logpdf(1.0)
    expected = np.array(pf.log_weights) + new - old - math.log(2)
    assert np.allclose(np.array(moved.log_weights), expected, atol=1e-5)
    assert moved.call.gen_fn is doubled and moved.observations == choicemap({"y": 1.5})
    assert moved.addresses() == [("half",)] and len(moved.history) == 2
    assert moved.history[-1].log_ml_increment == pytest.approx(moved.log_ml.item() - pf.log_ml.item(), abs=1e-6)
    assert "doubled" in repr(moved)
    again = moved.rejuvenate("half", key=3)
    assert np.all(np.array(again["y"]) == 1.5)
    with pytest.raises(UsageError, match="same model"):
        moved.step(walk(2, 0.0, 1.0))


def test_the_evidence_of_the_model_that_was_translated_to():
    exact = stats.norm(1.0, math.sqrt(4 + 1.5**2)).logpdf(1.5)
    translator = GeneralTranslator(doubled(), {"y": 1.5}, transform=halve, old_observations={(0, "y"): 1.0})
    assert_evidence_is(
        exact, lambda seed: begun(400, seed, 1.0).translate(translator, key=seed).log_ml.item(), precision=0.2
    )


def test_what_a_translator_observes_is_observed_from_then_on():
    """Mistake 9 by another door: rejuvenation would move it."""
    pf = begun(50).translate(SimpleExtendingTranslator(walk(2, 0.0, 1.0), observations={(1, "y"): 2.0}), key=1)
    assert pf.observations == choicemap({(0, "y"): 1.0, (1, "y"): 2.0}) and pf.addresses() == [(0, "x"), (1, "x")]
    assert pf.call.args[0] == 2
    moved = pf.rejuvenate(select(0) | select(1), key=2)
    assert np.all(np.array(moved[(1, "y")]) == 2.0) and np.any(states(moved, 1) != states(pf, 1))


def test_a_step_of_another_model():
    other = unfold(walk_step)
    for call in (other(2, 0.0, 1.0), box(), walk, 3):
        with pytest.raises(UsageError, match="a step is a call of the same model"):
            begun().step(call)


# statistics


def test_statistics_are_those_of_the_weights():
    pf = run(walks([1.0, 2.0]), particles=30, key=2)
    w, x = weights(pf) / weights(pf).sum(), states(pf, 1)
    assert pf.mean((1, "x")).item() == pytest.approx(w @ x, abs=1e-5)
    assert pf.variance((1, "x")).item() == pytest.approx(w @ (x - w @ x) ** 2, abs=1e-5)
    assert np.allclose(np.array(pf.weights), w, atol=1e-6)


def test_filtering_a_hidden_markov_model_step_by_step():
    """Each step's evidence and distribution, by the forward algorithm."""
    pf = None
    for t, (call, observations) in enumerate(HMM):
        n = 20_000
        pf = (
            ParticleFilter.init(call, observations, n, key=0)
            if pf is None
            else pf.resample(key=t).step(call, observations, key=10 + t)
        )
        log_ml, filtered = forward(PRIOR, MOVES, SHOWS, SEEN[: t + 1])
        assert pf.log_ml.item() == pytest.approx(log_ml, abs=0.02)
        z, w = np.array(pf[(t, "z")]), np.array(pf.weights)
        assert [w[z == k].sum() for k in range(3)] == pytest.approx(filtered[-1], abs=0.02)


def test_kalman_by_hand():
    """Twenty steps with a resampling at each: every filtering mean within 5 of its standard errors."""
    ys = np.sin(np.arange(20.0)).tolist()
    exact, log_ml = kalman(ys)
    pf = run(walks(ys), particles=4000, key=3, threshold=1.0)
    assert pf.log_ml.item() == pytest.approx(log_ml, abs=0.25)
    assert pf.mean((19, "x")).item() == pytest.approx(exact[-1][0], abs=5 * math.sqrt(exact[-1][1] / 4000))


def test_init_needs_a_call_and_particles():
    with pytest.raises(UsageError, match="not a call"):
        ParticleFilter.init(walk)
    with pytest.raises(ParameterError, match="particles must be"):
        ParticleFilter.init(hidden(1, 0), particles=0)
    with pytest.raises(UnknownAddress, match="'q'"):
        ParticleFilter.init(hidden(1, 0), {"q": 1.0}, particles=3)


def test_a_lane_is_a_trace_like_any_other():
    pf = run(HMM, particles=5, key=0, threshold=1.0).resample(key=1)
    for i in range(5):
        lane = pf.traces[i]
        assert lane.score.item() == pytest.approx(
            Call(hidden, lane.args, {}).assess(lane.choices).score.item(), abs=1e-5
        )
