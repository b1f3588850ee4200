"""Conditional filters: conditional resampling, the particle that is kept, and what the kernel leaves as it is."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest
from state_spaces import HMM, LOG_MOVES, LOG_PRIOR, LOG_SHOWS, MOVES, PRIOR, SEEN, SHOWS, hidden

from genmlx import categorical, flip, gen, normal, switch, trace, unfold
from genmlx.errors import ParameterError, UsageError
from genmlx.inference import csmc, csmc_kernel, particle_gibbs, reversal, smc
from genmlx.inference.resampling import SCHEMES, conditional_resample

WEIGHTS = np.array([0.43, 0.29, 0.21, 0.07])
N = 5


def expected_copies(scheme, kept):
    """E[copies of each | one is ``kept``] = E[O_i O_kept] / E[O_kept] for the numbers of copies O of the scheme."""
    w, others = WEIGHTS, np.arange(4) == kept
    if scheme == "multinomial":
        return (N - 1) * w + others
    if scheme == "residual":
        sure = np.floor(N * w)
        drawn = N - sure.sum()
        rest = (N * w - sure) / drawn
        joint = sure * sure[kept] + drawn * (sure * rest[kept] + sure[kept] * rest)
        return (joint + drawn * (drawn - 1) * rest * rest[kept] + others * drawn * rest[kept]) / (N * w[kept])
    edges = np.concatenate([[0.0], np.cumsum(w)]) * N
    if scheme == "systematic":  # one shift for all points
        points = (np.arange(20_000) + 0.5)[:, None] / 20_000 + np.arange(N)
        copies = np.stack([((points >= a) & (points < b)).sum(axis=1) for a, b in itertools.pairwise(edges)], axis=1)
        return (copies * copies[:, [kept]]).mean(axis=0) / copies[:, kept].mean()
    # a point in each of N strata: the share of a stratum that lies in each particle's part
    share = np.array([[max(0.0, min(b, k + 1) - max(a, k)) for a, b in itertools.pairwise(edges)] for k in range(N)])
    joint = sum(share[k, kept] * (others + share.sum(axis=0) - share[k]) for k in range(N))
    return joint / share[:, kept].sum()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kept", [0, 2, 3])
def test_conditional_resampling_has_the_law_of_the_scheme(scheme, kept):
    logs, draws = mx.array(np.log(WEIGHTS).astype("float32")), 800
    found = np.array([conditional_resample(logs, kept, N, seed, scheme) for seed in range(draws)])
    assert (found[:, 0] == kept).all()
    copies = np.stack([(found == i).sum(axis=1) for i in range(4)], axis=1)
    error = np.maximum(copies.std(axis=0) / math.sqrt(draws), 1e-3)
    assert (abs(copies.mean(axis=0) - expected_copies(scheme, kept)) < 4 * error).all()


def test_a_single_draw_and_a_certain_particle():
    assert conditional_resample(mx.array([0.0, -math.inf]), 0, 3, 0, "residual").tolist() == [0, 0, 0]
    for scheme in SCHEMES:
        assert conditional_resample(mx.array([0.0, 1.0]), 1, 1, 0, scheme).tolist() == [1]


# the particle that is kept


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_the_retained_particle_is_there_at_every_step(scheme, threshold):
    retained = smc(HMM, particles=20, key=0).traces[7]
    seen = []

    def record(pf):
        first = pf.traces[0].choices
        seen.append(all(first[a] == retained[a] for a in first) and len(first) == 2 * (len(seen) + 1))

    result = csmc(HMM, retained, 4, threshold, scheme, record=record, key=1)
    assert seen == [True] * 4 and result.traces[0].choices == retained.choices and result.n == 4
    assert threshold < 1 or all(step.ancestors[0] == 0 for step in result.history.steps[:-1])


def guided(tr):
    return locally_best(tr.retval[-1], SEEN[len(tr.retval)], len(tr.retval))


@gen
def locally_best(z, y, t):
    trace((t, "z"), categorical(LOG_MOVES[z] + LOG_SHOWS[:, y]))


@gen
def best_first(y):
    trace((0, "z"), categorical(LOG_PRIOR + LOG_SHOWS[:, y]))


@pytest.mark.parametrize("proposed", [False, True], ids=["prior", "proposal"])
def test_its_weight_is_that_of_a_particle_which_was_drawn(proposed):
    """All that have the same states have the same weight, and by the best proposals every one has the predictive's."""
    retained = smc(HMM, particles=20, key=0).traces[7]
    steps = [(*HMM[0], best_first(SEEN[0])), *HMM[1:]] if proposed else HMM
    result = csmc(steps, retained, 40, 0.0, proposal=guided if proposed else None, key=1)
    states = np.stack([np.array(result[(t, "z")]) for t in range(4)], axis=1)
    for path in np.unique(states, axis=0):
        weights = np.array(result.log_weights)[(states == path).all(axis=1)]
        assert np.allclose(weights, weights[0], atol=1e-5)
    chances = [SHOWS[z, y] for z, y in zip(states[0], SEEN, strict=True)]
    if proposed:
        before = [PRIOR, *(MOVES[z] for z in states[0][:-1])]
        chances = [row @ SHOWS[:, y] for row, y in zip(before, SEEN, strict=True)]
    assert result.log_weights[0].item() == pytest.approx(sum(map(math.log, chances)), rel=1e-5)


# the kernel


def exact_paths():
    """The probability of each path of states given what was seen."""
    found = {}
    for path in itertools.product(range(3), repeat=len(SEEN)):
        chance = PRIOR[path[0]] * math.prod(MOVES[a, b] for a, b in itertools.pairwise(path))
        found[path] = chance * math.prod(SHOWS[z, y] for z, y in zip(path, SEEN, strict=True))
    total = sum(found.values())
    return {path: chance / total for path, chance in found.items()}


def batch_error(x, batches=20):
    """The standard error of the mean of a chain."""
    means = x[: len(x) // batches * batches].reshape(batches, -1).mean(axis=1)
    return means.std(ddof=1) / math.sqrt(batches)


CHAINS = {
    "plain": {"ancestor_sampling": False, "ess_threshold": 1.0},
    "ancestors, adaptive": {"ancestor_sampling": True, "ess_threshold": 0.7, "resampling": "stratified"},
    "markov ancestors, proposal": {"ancestor_sampling": "markov", "ess_threshold": 1.0, "proposal": guided},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_few_particles_leave_the_posterior_as_it_is(name):
    post = particle_gibbs(HMM, draws=600, warmup=20, particles=3, chains=2, key=3, **CHAINS[name])
    states = np.stack([np.array(post[(t, "z")]) for t in range(4)], axis=-1).reshape(-1, 4)
    exact = exact_paths()
    for t, z in itertools.product(range(4), range(3)):
        chance = sum(p for path, p in exact.items() if path[t] == z)
        there = (states[:, t] == z).astype(float)
        assert abs(there.mean() - chance) < 4 * max(batch_error(there), 0.005), (t, z)
    moved = np.array([p for path, p in exact.items() if path[0] == path[1]]).sum()
    same = (states[:, 0] == states[:, 1]).astype(float)
    assert abs(same.mean() - moved) < 4 * batch_error(same)


@gen
def drift(t, x):
    x = trace("x", normal(x, 1.0))
    trace("y", normal(x, 1.0))
    return x


def test_ancestor_sampling_moves_the_beginning_of_long_paths():
    """Without it, all particles of now come from the retained one's beginning."""
    walk = unfold(drift)
    steps = [(walk(t + 1, 0.0), {(t, "y"): 0.1 * t}) for t in range(25)]
    retained = smc(steps, particles=50, key=0).traces[0]
    first = {}
    for sampled in (False, "markov"):
        kernel = csmc_kernel(steps, 5, ess_threshold=1.0, ancestor_sampling=sampled)
        tr, values = retained, []
        for seed in range(12):
            tr = kernel(tr, seed)
            values.append(tr[(0, "x")].item())
        first[sampled] = len(set(values))
    assert first[False] <= 3 and first["markov"] >= 6


def test_both_ways_of_ancestor_sampling_are_one_for_a_markov_chain():
    retained = smc(HMM, particles=20, key=0).traces[7]
    runs = [csmc(HMM, retained, 6, 1.0, ancestor_sampling=a, key=5) for a in (True, "markov")]
    assert np.array_equal(runs[0].log_weights, runs[1].log_weights)
    assert runs[0].traces[0].choices == runs[1].traces[0].choices


@gen
def jumps(t, x):
    x = trace("x", switch(small, large)(trace("far", flip(0.5)), x))
    trace("y", normal(x, 1.0))
    return x


@gen
def small(x):
    return trace("small", normal(x, 0.1))


@gen
def large(x):
    return trace("large", normal(x, 3.0))


def test_a_model_that_branches():
    """What a retained trace lacks in the branch not taken is drawn, and counts for nothing."""
    walk = unfold(jumps)
    steps = [(walk(t + 1, 0.0), {(t, "y"): 2.0 * t}) for t in range(3)]
    retained = smc(steps, particles=50, key=0).traces[3]
    for sampled in (False, True):
        result = csmc(steps, retained, 8, 1.0, ancestor_sampling=sampled, key=1)
        assert result.traces[0].score.item() == pytest.approx(
            walk(3, 0.0).assess(result.traces[0].choices).score.item(), rel=1e-5
        )
        assert sampled or result.traces[0].choices == retained.choices


def test_a_kernel_of_its_own_reversal_that_keeps_what_is_fixed():
    kernel = csmc_kernel(HMM, 4)
    assert reversal(kernel) is kernel
    batch = smc(HMM, particles=3, key=0).traces
    moved = kernel(batch, 1)
    assert moved.n == 3 and mx.array_equal(moved[(2, "y")], batch[(2, "y")]).item()
    fixed = csmc_kernel(HMM, 4, fixed=(0, "z"))(batch[0], 2)
    assert fixed[(0, "z")].item() == batch[0][(0, "z")].item()


def test_mistakes():
    retained = smc(HMM, particles=5, key=0).traces[0]
    with pytest.raises(UsageError, match=r"the value 2 at an observed address: at \(0, 'y'\)"):
        csmc(HMM, hidden(4, 0).generate({**dict(retained.choices.items()), (0, "y"): 2}).trace)
    with pytest.raises(UsageError, match="no choice at an observed address"):
        csmc(HMM, smc(HMM[:2], particles=5, key=0).traces[0])
    with pytest.raises(UsageError, match=r"a choice that no step makes: at \(3, 'z'\)"):
        csmc(HMM[:3], retained)
    with pytest.raises(UsageError, match="the retained trace is 3"):
        csmc(HMM, 3)
    with pytest.raises(ParameterError, match="ancestor_sampling is 'some'"):
        csmc(HMM, retained, ancestor_sampling="some")
    with pytest.raises(ParameterError, match="particles must be a whole number, at least 2"):
        csmc(HMM, retained, particles=1)
