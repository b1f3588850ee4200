"""Sequential Monte Carlo against the forward algorithm, Kalman's filter, conjugate posteriors and enumeration."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from state_spaces import (
    HMM,
    HMM_FILTERED,
    HMM_LOG_ML,
    LOG_MOVES,
    LOG_PRIOR,
    LOG_SHOWS,
    MOVES,
    PRIOR,
    RUNS,
    SEEN,
    SERIES,
    SHOWS,
    assert_evidence_is,
    forward,
    kalman,
    logs,
    walk,
    walks,
)

from genmlx import categorical, flip, gen, normal, random, scan, select, switch, trace, unfold
from genmlx.errors import GenError, ParameterError, UnknownAddress, UsageError
from genmlx.gfi import Call
from genmlx.inference import (
    ParticleFilter,
    chain,
    importance_sampling,
    mh_kernel,
    random_walk_kernel,
    repeat_kernel,
    smc,
)
from genmlx.inference.resampling import SCHEMES


@gen
def first_guess():
    trace((0, "z"), categorical(LOG_PRIOR + LOG_SHOWS[:, SEEN[0]]))


@gen
def guess(t, z):
    trace((t, "z"), categorical(LOG_MOVES[z] + LOG_SHOWS[:, SEEN[t]]))


@gen
def flat_guess(tr):
    trace((tr.args[0], "z"), categorical(mx.zeros(3)))


def optimal(tr):
    return guess(tr.args[0], tr.retval[-1])


def guided(steps, first=first_guess):
    return [(*steps[0], first()), *steps[1:]]


def test_the_oracle():
    """Case 41."""
    assert HMM_LOG_ML == pytest.approx(-4.876451, abs=1e-6)
    assert HMM_FILTERED[-1] == pytest.approx([0.790895, 0.100681, 0.108424], abs=1e-6)


@pytest.mark.parametrize("how", ["prior", "proposal"])
def test_a_hidden_markov_model(how):
    steps, proposal = (guided(HMM), optimal) if how == "proposal" else (HMM, None)
    seen = []

    def record(pf):
        z, weights = np.array(pf[(len(pf.history) - 1, "z")]), np.array(pf.weights)
        seen.append([weights[z == k].sum() for k in range(3)])

    result = smc(steps, particles=20_000, proposal=proposal, record=record, key=1)
    assert result.log_ml.item() == pytest.approx(HMM_LOG_ML, abs=0.02)
    assert np.abs(np.array(seen) - HMM_FILTERED).max() < 0.02


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_a_small_hidden_markov_model(threshold):
    """Case 41: p = .2484."""
    prior, moves, shows = np.array([0.4, 0.6]), np.array([[0.5, 0.5], [0.2, 0.8]]), np.array([[0.1, 0.9], [0.7, 0.3]])

    @gen
    def step(t, z):
        z = trace("z", categorical(mx.where(t == 0, logs(prior), logs(moves)[z])))
        trace("y", categorical(logs(shows)[z]))
        return z

    small = unfold(step)
    steps = [(small(t + 1, 0), {(t, "y"): y}) for t, y in enumerate([1, 0])]
    assert forward(prior, moves, shows, [1, 0])[0] == pytest.approx(math.log(0.2484))
    result = smc(steps, particles=20_000, ess_threshold=threshold, key=2)
    assert result.log_ml.item() == pytest.approx(math.log(0.2484), abs=0.02)


PLAIN = [(scheme, threshold, "plain") for scheme in SCHEMES for threshold in (0.5, 1.0)]
RICH = [
    (scheme, threshold, how)
    for scheme, threshold in (("systematic", 0.0), ("stratified", 0.9), ("multinomial", 1.0))
    for how in ("proposal", "rejuvenated", "both")
]


@pytest.mark.parametrize("scheme, threshold, how", [("systematic", 0.0, "plain"), *PLAIN, *RICH])
def test_the_evidence_is_unbiased(scheme, threshold, how):
    """Few particles, so that most runs resample at some steps and not at others."""
    steps, options = HMM, {}
    if how in ("proposal", "both"):
        steps, options = guided(HMM), {"proposal": flat_guess}
    if how in ("rejuvenated", "both"):
        options["rejuvenate"] = select((0, "z"), (1, "z"))

    def run(seed):
        result = smc(steps, 30, threshold, scheme, key=seed, **options)
        if threshold in (0.0, 1.0):
            assert result.history.resampled.tolist() == [threshold == 1.0] * 3 + [False]
        return result.log_ml.item()

    assert_evidence_is(HMM_LOG_ML, run)


def test_the_best_proposal_leaves_weights_that_do_not_depend_on_the_new_state():
    """By hand: with q = p(z | z', y), each step multiplies a weight by p(y | z'), and the first by p(y)."""
    result = smc(guided(HMM), particles=200, ess_threshold=0.0, proposal=optimal, key=3)
    z = np.stack([np.array(result[(t, "z")]) for t in range(4)])
    expected = np.full(200, math.log(PRIOR @ SHOWS[:, SEEN[0]]))
    for t in range(1, 4):
        expected += np.log(MOVES[z[t - 1]] @ SHOWS[:, SEEN[t]])
    assert np.allclose(np.array(result.log_weights), expected, atol=1e-5)


def test_a_proposal_of_each_step():
    """The step's own goes before that of all; weights by hand tell which was used where."""
    steps = [HMM[0], (*HMM[1], flat_guess), (*HMM[2], optimal), HMM[3]]
    result = smc(steps, particles=100, ess_threshold=0.0, proposal=flat_guess, key=4)
    z = [np.array(result[(t, "z")]) for t in range(4)]
    expected = np.log(SHOWS[z[0], SEEN[0]]) + np.log(MOVES[z[1]] @ SHOWS[:, SEEN[2]])
    for t in (1, 3):
        expected += np.log(MOVES[z[t - 1], z[t]] * SHOWS[z[t], SEEN[t]] * 3)
    assert np.allclose(np.array(result.log_weights), expected, atol=1e-5)


def test_a_proposal_that_misses_a_part_of_the_support_gives_the_evidence_of_the_rest():
    """As documented by the weight equation: what is never proposed never counts, and nothing can tell."""

    @gen
    def narrow(tr):
        trace((tr.args[0], "z"), categorical(mx.array([0.0, 0.0, -math.inf])))

    def joint(path):
        return (
            PRIOR[path[0]] * math.prod(MOVES[i, j] for i, j in itertools.pairwise(path)) * math.prod(SHOWS[path, SEEN])
        )

    reached = sum(joint((first, *rest)) for first in range(3) for rest in itertools.product(range(2), repeat=3))
    assert_evidence_is(math.log(reached), lambda seed: smc(HMM, 50, proposal=narrow, key=seed).log_ml.item())
    assert math.log(reached) < HMM_LOG_ML - 0.3


def test_proposals_that_do_not_fit():
    @gen
    def of_observed(tr):
        trace((tr.args[0], "y"), categorical(LOG_PRIOR))

    @gen
    def of_unknown(tr):
        trace((tr.args[0], "state"), categorical(LOG_PRIOR))

    @gen
    def of_the_past(tr):
        trace((0, "z"), categorical(LOG_PRIOR))

    def run(proposal):
        smc(HMM, particles=5, proposal=proposal, key=0)

    with pytest.raises(UsageError, match=r"proposes an observed choice at \(1, 'y'\)"):
        run(of_observed)
    with pytest.raises(UnknownAddress, match=r"\(1, 'state'\)"):
        run(of_unknown)
    with pytest.raises(UsageError, match=r"only add choices.*\n?.*\(0, 'z'\)"):
        run(of_the_past)
    with pytest.raises(UsageError, match="not a call"):
        smc([(*HMM[0], flat_guess), *HMM[1:]], particles=5, key=0)
    with pytest.raises(UsageError, match="not a call"):
        run(lambda tr: 3)


# a Gaussian walk, and Kalman's filter


@gen
def kalman_guess(t, x, y):
    trace((t, "x"), normal((x + y) / 2, math.sqrt(0.5)))


@pytest.mark.parametrize("how", ["prior", "proposal"])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_kalman(how, threshold):
    """Case 42: means .5 and 1.4, variances .5 and .6."""
    ys, proposal, steps = [1.0, 2.0], None, walks([1.0, 2.0])
    if how == "proposal":
        steps = [(*steps[0], kalman_guess(0, 0.0, 1.0)), steps[1]]

        def proposal(tr):
            return kalman_guess(1, tr.retval[-1], 2.0)

    exact, log_ml = kalman(ys)
    assert exact == [pytest.approx((0.5, 0.5)), pytest.approx((1.4, 0.6))] and log_ml == pytest.approx(-3.342596)
    found = []
    result = smc(
        steps,
        particles=20_000,
        ess_threshold=threshold,
        proposal=proposal,
        record=lambda pf: found.append([s((len(found), "x")).item() for s in (pf.mean, pf.variance)]),
        key=5,
    )
    assert result.log_ml.item() == pytest.approx(log_ml, abs=0.03)
    assert np.abs(np.array(found) - exact).max() < 0.03


@pytest.mark.parametrize(
    "noise, first, variance, log_ml", [(math.sqrt(0.5), 1.0, 1 / 3, -1.871671), (0.5, 1.2, 0.2, -1.930510)]
)
def test_kalman_of_one_step(noise, first, variance, log_ml):
    """Case 42."""
    y = 1.5
    assert kalman([y], r=noise**2) == ([pytest.approx((first, variance))], pytest.approx(log_ml, abs=1e-6))
    result = smc(walks([y], noise), particles=40_000, key=6)
    assert result.mean((0, "x")).item() == pytest.approx(first, abs=0.02)
    assert result.variance((0, "x")).item() == pytest.approx(variance, abs=0.02)
    assert result.log_ml.item() == pytest.approx(log_ml, abs=0.02)


def test_a_long_series():
    """100 steps: an error in the evidence of one step adds up."""
    rng = np.random.default_rng(0)
    ys = (np.cumsum(rng.normal(size=100)) + rng.normal(size=100)).tolist()
    exact, log_ml = kalman(ys)
    results = [smc(walks(ys), particles=500, ess_threshold=0.7, key=seed) for seed in range(5)]
    assert np.mean([r.log_ml.item() for r in results]) == pytest.approx(log_ml, abs=1.0)
    # The standard error of a filtering mean, of a state whose variance is that of Kalman's filter.
    error = math.sqrt(exact[-1][1] / 500)
    assert np.mean([r.mean((99, "x")).item() for r in results]) == pytest.approx(exact[-1][0], abs=4 * error)
    assert 20 < results[0].history.resampled.sum() < 90


# models that grow in other ways


@gen
def noise_of_all(n):
    """Global parameters above a chain: the noise is one of two."""
    k = trace("k", flip(0.3))
    xs = trace("chain", walk(n, 0.0, mx.where(k, 2.0, 1.0)))
    return {"k": k, "last": xs[-1], "sum": sum(xs)}


@gen
def loop(n):
    x, xs = 0.0, []
    for t in range(n):
        x = trace((t, "x"), normal(x, 1.0))
        trace((t, "y"), normal(x, 1.0))
        xs.append(x)
    return xs


@gen
def scanned_step(x, scale):
    x = trace("x", normal(x, scale))
    trace("y", normal(x, scale))
    return x, {"double": 2 * x}


scanned = scan(scanned_step)
WALK_LOG_ML = kalman(SERIES)[1]
BY_NOISE = {k: kalman(SERIES, r=[1.0, 4.0][k])[1] + math.log([0.7, 0.3][k]) for k in (0, 1)}
(LAST, SPREAD), NEXT = kalman(SERIES)[0][-1], 1.0
# after two steps of which nothing is seen, and a third
NEXT_LOG_ML = -0.5 * (math.log(2 * math.pi * (SPREAD + 4)) + (NEXT - LAST) ** 2 / (SPREAD + 4))
GROWN = {
    "loop": ([(loop(t + 1), {(t, "y"): y}) for t, y in enumerate(SERIES)], WALK_LOG_ML),
    "scan of a list": ([(scanned(0.0, [1.0] * (t + 1)), {(t, "y"): y}) for t, y in enumerate(SERIES)], WALK_LOG_ML),
    "scan of an array": ([(scanned(0.0, mx.ones(t + 1)), {(t, "y"): y}) for t, y in enumerate(SERIES)], WALK_LOG_ML),
    "under global parameters": (
        [(noise_of_all(t + 1), {("chain", t, "y"): y}) for t, y in enumerate(SERIES)],
        np.logaddexp(*BY_NOISE.values()),
    ),
    "two at a time": (
        [(walk(2, 0.0, 1.0), dict(zip([(0, "y"), (1, "y")], SERIES[:2], strict=True)))]
        + [(walk(4, 0.0, 1.0), dict(zip([(2, "y"), (3, "y")], SERIES[2:], strict=True)))],
        WALK_LOG_ML,
    ),
    "with steps that are not observed": (
        [*walks(SERIES), (walk(5, 0.0, 1.0),), (walk(6, 0.0, 1.0), None), (walk(7, 0.0, 1.0), {(6, "y"): NEXT})],
        WALK_LOG_ML + NEXT_LOG_ML,
    ),
}


@pytest.mark.parametrize("form", GROWN)
def test_models_that_grow(form):
    steps, log_ml = GROWN[form]
    assert_evidence_is(log_ml, lambda seed: smc(steps, 300, 0.8, key=seed).log_ml.item(), runs=RUNS // 2)


@gen
def beside(n):
    """Choices and chains come before the one that grows, and after it."""
    for i in range(n):
        trace(("a", i), normal(0, 1))
    if n > 3:
        trace("b", walk(n, 1.0, 1.0))
    trace("c", walk(n, 0.0, 1.0))
    for i in range(n):
        trace(f"d{9 - i}", walk(3, 0.0, 1.0))
    trace("e", walk(2, 0.0, 1.0))


@gen
def looks_back(n):
    xs = trace("c", walk(n, 0.0, 1.0))
    return {"sum": sum(xs), "first": xs[0], "all": mx.stack(xs)}


@gen
def chain_of_chains_step(t, x):
    return trace("in", walk(3, x, 1.0))[-1]


chain_of_chains = unfold(chain_of_chains_step)


@gen
def from_the_first(tr):
    trace((tr.args[0], "x"), normal(0.5 * tr[(0, "x")] + tr.retval[-1], 1.0))


def of_the_last(tr, key):
    return mh_kernel((tr.args[0] - 1, "x"))(tr, key)


def of_the_last_but_two(tr, key):
    return mh_kernel((max(tr.args[0] - 3, 0), "x"))(tr, key)


LONG = walks(np.sin(np.arange(40.0)).tolist())
SHAPES = {
    **{name: (steps, {}) for name, (steps, _) in GROWN.items()},
    "beside others": ([(beside(n), {("c", n - 1, "y"): 1.0}) for n in range(1, 7)], {}),
    "that looks back": ([(looks_back(n), {("c", n - 1, "y"): 1.0}) for n in range(1, 7)], {}),
    "chains": ([(chain_of_chains(n, 0.0), {(n - 1, "in", 2, "y"): 1.0}) for n in range(1, 7)], {}),
    "another noise": ([(walk(n, 0.0, 1.0 + n / 10), {(n - 1, "y"): 1.0}) for n in range(1, 7)], {}),
    "another beginning": ([(walk(n, n / 10, 1.0), {(n - 1, "y"): 1.0}) for n in range(1, 7)], {}),
    "long": (LONG, {}),
    "in leaps": ([LONG[0], *[(walk(n, 0.0, 1.0), {(n - 1, "y"): 1.0}) for n in (2, 5, 40, 41, 90)]], {}),
    "a proposal from the first state": (LONG[:8], {"proposal": from_the_first}),
    "the first state moves": (LONG[:8], {"rejuvenate": (0, "x")}),
    "the last state moves": (LONG[:8], {"rejuvenate": of_the_last}),
    "an old state moves": (LONG[:8], {"rejuvenate": of_the_last_but_two}),
    "all states move": (LONG[:8], {"rejuvenate": ~select("nothing")}),
}


@pytest.mark.parametrize("form", SHAPES)
def test_a_particle_is_one_whole_trace(form):
    """Choices, return values and the states of nested calls move together: each lane assesses to its own score."""
    steps, options = SHAPES[form]
    result = smc(steps, 12, 1.0, key=7, **options)
    for traces in (result.traces, result.resample(key=8).traces):
        assert traces.n == 12
        for lane in [traces[i] for i in range(12)]:
            again = Call(lane.gen_fn, lane.args, {}).assess(lane.choices)
            assert lane.score.item() == pytest.approx(again.score.item(), abs=1e-3)
            mine, theirs = (np.array(_flat(retval)) for retval in (lane.retval, again.retval))
            assert np.allclose(mine, theirs, atol=1e-5)


def _flat(retval):
    if retval is None:
        return []
    if isinstance(retval, (list, tuple)):
        return [x for part in retval for x in _flat(part)]
    if isinstance(retval, dict):
        return [x for part in retval.values() for x in _flat(part)]
    return np.array(retval).reshape(-1).tolist()


def test_a_global_parameter_has_its_posterior():
    steps, log_ml = GROWN["under global parameters"]
    result = smc(steps, particles=20_000, key=8)
    assert result.mean("k").item() == pytest.approx(math.exp(BY_NOISE[1] - log_ml), abs=0.03)


@gen
def sure():
    return mx.array(0.2)


@gen
def unsure():
    return mx.where(trace("u", flip(0.6)), 0.9, 0.5)


@gen
def branch_step(t, state):
    k = trace("k", flip(0.3))
    p = trace("in", switch(sure, unsure)(k))
    trace("y", flip(p))
    return p


branches = unfold(branch_step)


@gen
def branch_loop(n):
    for t in range(n):
        k = trace((t, "k"), flip(0.3))
        trace((t, "y"), flip(trace((t, "in"), switch(sure, unsure)(k))))


@pytest.mark.parametrize("form", ["unfold", "loop"])
@pytest.mark.parametrize("rejuvenate", [None, (0, "k")])
def test_choices_that_some_particles_have(form, rejuvenate):
    """By enumeration of k and u; a masked choice's mean is over the particles that have it."""
    seen = [1, 0, 1]
    each = {1: 0.7 * 0.2 + 0.3 * (0.4 * 0.5 + 0.6 * 0.9), 0: 0.7 * 0.8 + 0.3 * (0.4 * 0.5 + 0.6 * 0.1)}
    model = (lambda t: branches(t, 0.0)) if form == "unfold" else branch_loop
    steps = [(model(t + 1), {(t, "y"): y}) for t, y in enumerate(seen)]
    result = smc(steps, 20_000, 1.0, rejuvenate=rejuvenate, key=9)
    assert result.log_ml.item() == pytest.approx(sum(math.log(each[y]) for y in seen), abs=0.02)
    for t, y in enumerate(seen):
        u = [0.4 * 0.5, 0.6 * (0.9 if y else 0.1)]
        assert result.mean((t, "k")).item() == pytest.approx(0.3 * sum(u) / each[y], abs=0.02)
        assert result.mean((t, "in", "u")).item() == pytest.approx(u[1] / sum(u), abs=0.03)


def test_a_new_step_runs_the_kernel_once():
    ran = []

    @gen
    def step(t, x):
        ran.append(t)
        x = trace("x", normal(x, 1.0))
        trace("y", normal(x, 1.0))
        return x

    counted = unfold(step)
    smc([(counted(t + 1, 0.0), {(t, "y"): 1.0}) for t in range(6)], particles=5, ess_threshold=1.0, key=0)
    assert ran == list(range(6))


# static parameters: data that grow, and rejuvenation (IBIS, Chopin 2002)

DATA = np.random.default_rng(4).normal(1.0, 0.5, size=25).tolist()


@gen
def growing(n):
    mu = trace("mu", normal(0, 1))
    for i in range(n):
        trace(("y", i), normal(mu, 0.5))
    return mu


IBIS = [(growing(t + 1), {("y", t): y}) for t, y in enumerate(DATA)]


def conjugate(n):
    """The posterior of mu given n data: mean and standard deviation."""
    precision = 1 + n / 0.25
    return sum(DATA[:n]) / 0.25 / precision, precision**-0.5


def normal_log_ml(ys, noise):
    """The log density of ys = mu + noise with mu standard normal, by the matrix determinant lemma."""
    n, s2 = len(ys), noise**2
    quadratic = (sum(y * y for y in ys) - sum(ys) ** 2 / (s2 + n)) / s2
    return -0.5 * (n * math.log(2 * math.pi * s2) + math.log(1 + n / s2) + quadratic)


@gen
def wander(tr):
    trace("mu", normal(tr["mu"], 0.3))


def exact_draw(tr, key):
    """A Gibbs step, as a plain function of one trace: it moves to a draw of the posterior so far."""
    mean, sd = conjugate(tr.args[0])
    return tr.update({"mu": mean + sd * random.normal(key)}).trace


KERNELS = {
    "address": "mu",
    "selection": select("mu"),
    "kernel": mh_kernel(proposal=wander),
    "chain": chain(mh_kernel("mu"), random_walk_kernel("mu", 0.2)),
    "repeated": repeat_kernel(3, mh_kernel(proposal=wander)),
    "function": exact_draw,
}


def test_without_rejuvenation_a_static_model_degenerates():
    result = smc(IBIS, particles=500, key=10)
    assert len(set(result["mu"].tolist())) < 100


@pytest.mark.parametrize("name", KERNELS)
def test_with_rejuvenation_it_has_its_posterior(name):
    """From 25 data, within the error of 500 draws; a kernel of another density, as of the prior, is far off."""
    result = smc(IBIS, particles=500, ess_threshold=0.8, rejuvenate=KERNELS[name], key=11)
    mean, sd = conjugate(25)
    values = result["mu"]
    # 100 of effective size, for draws that were moved a few times only
    assert result.mean("mu").item() == pytest.approx(mean, abs=4 * sd / math.sqrt(100))
    assert result.std("mu").item() == pytest.approx(sd, rel=0.25)
    assert len(set(values.tolist())) > 150
    for t, y in enumerate(DATA):
        assert np.all(np.array(result[("y", t)]) == np.float32(y))
    accept = result.history.accept
    if name == "function":
        assert np.all(np.isnan(accept))
    else:
        moved = result.history.resampled
        assert np.all((accept[moved] > 0) & (accept[moved] < 1)) and np.all(np.isnan(accept[~moved]))
        assert moved.sum() >= 3


@pytest.mark.parametrize("name", ["kernel", "function", "chain"])
def test_with_rejuvenation_the_evidence_stays_unbiased(name):
    exact = normal_log_ml(DATA[:8], 0.5)
    assert exact == pytest.approx(_by_updates(DATA[:8]))
    assert_evidence_is(exact, lambda seed: smc(IBIS[:8], 60, 0.6, rejuvenate=KERNELS[name], key=seed).log_ml.item())


def _by_updates(ys):
    """The same from the predictive densities of a conjugate normal."""
    m, v, total = 0.0, 1.0, 0.0
    for y in ys:
        total -= 0.5 * (math.log(2 * math.pi * (v + 0.25)) + (y - m) ** 2 / (v + 0.25))
        gain = v / (v + 0.25)
        m, v = m + gain * (y - m), (1 - gain) * v
    return total


def test_a_tempered_path():
    """No choice is new, the arguments change: weights are ratios of densities. With moves, a sampler of Del Moral,
    Doucet and Jasra (2006)."""

    @gen
    def model(noise):
        trace("y", normal(trace("mu", normal(0, 1)), noise))

    path = [(model(8.0), {"y": 3.0}), *[(model(noise),) for noise in (4.0, 2.0, 1.0, 0.5)]]
    weighed = smc(path, particles=50, ess_threshold=0.0, key=12)
    by_hand = normal(weighed["mu"], 0.5).log_prob(3.0)
    assert np.allclose(np.array(weighed.log_weights), np.array(by_hand), atol=1e-4)
    exact = -0.5 * (math.log(2 * math.pi * 1.25) + 9 / 1.25)
    moved = repeat_kernel(3, random_walk_kernel("mu", 0.6))
    assert_evidence_is(exact, lambda seed: smc(path, 60, 1.0, rejuvenate=moved, key=seed).log_ml.item(), precision=0.12)
    result = smc(path, 5000, 1.0, rejuvenate=moved, key=13)
    assert result.mean("mu").item() == pytest.approx(2.4, abs=0.05)
    assert result.variance("mu").item() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("kind", ["kernel", "function"])
def test_a_kernel_that_moves_an_observation_raises(kind):
    kernel = mh_kernel(select(("y", 0))) if kind == "kernel" else lambda tr, key: tr.update({("y", 0): 7.0}).trace
    with pytest.raises(GenError, match=r"moved an observed choice at \('y', 0\)"):
        smc(IBIS, particles=50, ess_threshold=1.0, rejuvenate=kernel, key=0)


def test_a_kernel_that_moves_an_old_observation_raises():
    """Of a step long ago, which a filter need not look at otherwise."""

    def late(tr, key):
        return tr.update({(1, "y"): 7.0}).trace if tr.args[0] == 6 else tr

    with pytest.raises(GenError, match=r"late moved an observed choice at \(1, 'y'\)"):
        smc(LONG[:8], particles=5, ess_threshold=1.0, rejuvenate=late, key=0)


def test_rejuvenation_that_names_what_it_cannot_move():
    with pytest.raises(UsageError, match=r"\('y', 0\), which is observed"):
        smc(IBIS, particles=50, ess_threshold=1.0, rejuvenate=("y", 0), key=0)
    with pytest.raises(UnknownAddress, match="'nu'.*\n.*\n.*did you mean 'mu'"):
        smc(IBIS, particles=50, ess_threshold=1.0, rejuvenate="nu", key=0)


# strata


def test_strata_have_exact_weights():
    """The first state is all that is latent: 4, 3 and 3 particles, and the evidence has no error at all."""
    strata = [{(0, "z"): k} for k in range(3)]
    result = smc(HMM[:1], particles=10, strata=strata, key=14)
    assert np.bincount(np.array(result[(0, "z")])).tolist() == [4, 3, 3]
    assert result.log_ml.item() == pytest.approx(math.log(PRIOR @ SHOWS[:, 0]), abs=1e-5)
    z, weights = np.array(result[(0, "z")]), np.array(result.weights)
    assert [weights[z == k].sum() for k in range(3)] == pytest.approx(HMM_FILTERED[0], abs=1e-5)


def test_the_evidence_with_strata_is_unbiased():
    strata = [{(0, "z"): 2}, {(0, "z"): 0}, {(0, "z"): 1}]
    assert_evidence_is(HMM_LOG_ML, lambda seed: smc(HMM, 25, strata=strata, key=seed).log_ml.item())


def test_strata_with_a_proposal_for_the_rest():
    @gen
    def model():
        k = trace("k", flip(0.3))
        trace("y", normal(trace("x", normal(mx.where(k, 3.0, 0.0), 1.0)), 0.5))

    @gen
    def around():
        trace("x", normal(1.0, 2.0))

    exact = np.logaddexp(
        *[math.log(p) - 0.5 * (math.log(2 * math.pi * 1.25) + (1.5 - m) ** 2 / 1.25) for p, m in ((0.7, 0), (0.3, 3))]
    )
    steps = [(model(), {"y": 1.5}, around())]
    assert_evidence_is(exact, lambda seed: smc(steps, 101, strata=[{"k": 0}, {"k": 1}], key=seed).log_ml.item())


def test_strata_that_do_not_fit():
    def run(strata, particles=9):
        smc(HMM, particles=particles, strata=strata, key=0)

    with pytest.raises(UsageError, match="strata is empty"):
        run([])
    with pytest.raises(UsageError, match=r"observed choice at \(0, 'y'\)"):
        run([{(0, "y"): 0}])
    with pytest.raises(ParameterError, match="particles must be"):
        run([{(0, "z"): k} for k in range(3)], particles=2)
    with pytest.raises(UsageError, match="strata 0 and 2 do not exclude each other"):
        run([{(0, "z"): 0}, {(0, "z"): 1}, {(0, "z"): 0}])
    with pytest.raises(UnknownAddress, match=r"\(0, 'zz'\)"):
        run([{(0, "zz"): 0}, {(0, "zz"): 1}])


# by other ways


def test_one_step_is_importance_sampling():
    one = smc(IBIS[:1], particles=1000, key=20)
    exact = normal_log_ml(DATA[:1], 0.5)
    spread = np.exp(np.array(one.log_weights) - exact).std() / math.sqrt(1000)
    assert abs(math.exp(one.log_ml.item() - exact) - 1) < 4 * spread < 0.2
    other = importance_sampling(*IBIS[0], particles=1000, key=20)
    assert one.log_weights.shape == other.log_weights.shape and len(one.history) == 1


def test_a_filter_is_what_smc_is_a_loop_over():
    """The same law by hand: init, resample, rejuvenate, step."""

    def run(seed):
        keys = random.Keys(mx.random.key(seed))
        pf = ParticleFilter.init(*HMM[0], particles=30, key=keys.next())
        for call, observations in HMM[1:]:
            pf = pf.resample(key=keys.next()).rejuvenate((0, "z"), steps=2, key=keys.next())
            pf = pf.step(call, observations, key=keys.next())
        return pf.log_ml.item()

    assert_evidence_is(HMM_LOG_ML, run)
