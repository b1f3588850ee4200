"""Hidden Markov models against the sum over every path, and the values of two small ones."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from genmlx.errors import ImpossibleObservation, ParameterError
from genmlx.inference import hmm_forward, hmm_sample, hmm_smooth, hmm_viterbi
from genmlx.inference.exact import hmm

PRIOR = np.array([0.2, 0.3, 0.5])
TRANSITION = np.array([[0.4, 0.4, 0.2], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05]])
EMISSION = np.array([[0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.7, 0.2, 0.1]])
SEEN = [0, 0, 1, 2]
LIKELIHOOD = np.log(EMISSION[:, SEEN].T)


def random_chain(seed: int, steps: int = 4, k: int = 3) -> tuple:
    """A transition that varies in time, with zeros in it and in the prior."""
    rng = np.random.default_rng(seed)
    prior, transition = rng.dirichlet(np.ones(k)), rng.dirichlet(np.ones(k), (steps - 1, k))
    prior[0] = 0.0
    transition[:, 1, 2] = 0.0
    prior, transition = prior / prior.sum(), transition / transition.sum(-1, keepdims=True)
    return prior, transition, rng.normal(size=(steps, k)) * 2 - 1


def paths(prior, transition, ll) -> dict[tuple, float]:
    """The joint probability of every path and the observations."""
    steps, k = ll.shape
    transition = np.broadcast_to(transition, (steps - 1, k, k))
    found = {}
    for z in itertools.product(range(k), repeat=steps):
        p = prior[z[0]] * math.exp(ll[0, z[0]])
        for t in range(1, steps):
            p *= transition[t - 1, z[t - 1], z[t]] * math.exp(ll[t, z[t]])
        found[z] = p
    return found


CHAINS = [random_chain(0), random_chain(1), (PRIOR, TRANSITION, LIKELIHOOD), random_chain(2, steps=1)]


def test_case_41():
    result = hmm_forward(PRIOR, TRANSITION, LIKELIHOOD)
    assert result.log_ml.item() == pytest.approx(-4.876451, abs=1e-6)
    np.testing.assert_allclose(result.filtered[-1], [0.790895, 0.100681, 0.108424], atol=1e-6)
    small = hmm_forward([0.4, 0.6], [[0.5, 0.5], [0.2, 0.8]], np.log([[0.9, 0.3], [0.1, 0.7]]))
    assert small.log_ml.item() == pytest.approx(math.log(0.2484), abs=1e-6)


@pytest.mark.parametrize("chain", CHAINS)
def test_filtering_against_every_path(chain):
    prior, transition, ll = chain
    result = hmm_forward(*chain)
    for t in range(len(ll)):
        upto = paths(prior, transition[:t] if transition.ndim == 3 else transition, ll[: t + 1])
        total, last = sum(upto.values()), np.zeros(len(prior))
        for z, p in upto.items():
            last[z[-1]] += p / total
        np.testing.assert_allclose(result.filtered[t], last, atol=1e-6)
        assert np.sum(result.increments[: t + 1].tolist()) == pytest.approx(math.log(total), abs=1e-6)
        nothing = ll[: t + 1].copy()
        nothing[t] = 0.0
        before = paths(prior, transition[:t] if transition.ndim == 3 else transition, nothing)
        expected = np.array([sum(p for z, p in before.items() if z[-1] == j) for j in range(len(prior))])
        np.testing.assert_allclose(result.predicted[t], expected / expected.sum(), atol=1e-6)
    assert result.log_ml.item() == pytest.approx(math.log(sum(paths(*chain).values())), abs=1e-6)


@pytest.mark.parametrize("chain", CHAINS)
def test_smoothing_and_the_best_path_against_every_path(chain):
    table = paths(*chain)
    total, (steps, k) = sum(table.values()), chain[2].shape
    marginals, pairs = np.zeros((steps, k)), np.zeros((steps - 1, k, k))
    for z, p in table.items():
        for t in range(steps):
            marginals[t, z[t]] += p / total
            if t:
                pairs[t - 1, z[t - 1], z[t]] += p / total
    result = hmm_smooth(*chain)
    assert result.log_ml.item() == pytest.approx(math.log(total), abs=1e-6)
    np.testing.assert_allclose(result.marginals, marginals, atol=1e-6)
    np.testing.assert_allclose(result.pairwise, pairs, atol=1e-6)
    best = hmm_viterbi(*chain)
    assert tuple(best.states.tolist()) == max(table, key=lambda z: table[z])
    assert best.log_prob.item() == pytest.approx(math.log(max(table.values())), abs=1e-6)


def test_sampled_paths_have_the_posterior_probabilities():
    """Each path's frequency, within 5 standard errors: the joint distribution, not its marginals alone."""
    chain, n = random_chain(1), 40_000
    table = paths(*chain)
    total = sum(table.values())
    drawn, counts = np.unique(np.array(hmm_sample(*chain, n, key=3)), axis=0, return_counts=True)
    seen = {tuple(z): c for z, c in zip(drawn.tolist(), counts.tolist(), strict=True)}
    assert all(table[z] > 0 for z in seen)
    for z, p in table.items():
        q = p / total
        assert abs(seen.get(z, 0) - n * q) <= 5 * math.sqrt(n * q * (1 - q)) + 1e-9


def test_a_state_of_probability_zero_is_never_drawn():
    logs = np.log([1e-300, 0.25, 0.75, 1e-300]) + [-math.inf, 0, 0, -math.inf]
    assert hmm._drawn(logs[None], np.array([0.0])).tolist() == [1]
    assert hmm._drawn(logs[None], np.array([1 - 2.0**-53])).tolist() == [2]


def test_a_batch_is_its_models_one_by_one():
    chains = [random_chain(seed) for seed in (0, 1, 5)]
    prior, transition, ll = (np.stack(parts) for parts in zip(*chains, strict=True))
    forward, smooth, best = (f(prior, transition, ll) for f in (hmm_forward, hmm_smooth, hmm_viterbi))
    for i, chain in enumerate(chains):
        for batched, alone in zip((forward, smooth, best), (hmm_forward, hmm_smooth, hmm_viterbi), strict=True):
            for a, b in zip(batched, alone(*chain), strict=True):
                np.testing.assert_allclose(a[i], b, atol=1e-6)
    drawn = np.array(hmm_sample(prior, transition, ll, 8000, key=1))
    assert drawn.shape == (8000, 3, 4)
    for k in range(3):  # the standard error of a frequency is at most 0.0056
        np.testing.assert_allclose((drawn == k).mean(0), smooth.marginals[..., k], atol=0.028)


def test_one_transition_for_each_model_of_a_batch():
    transitions = np.stack([TRANSITION, TRANSITION[::-1]])
    result = hmm_forward(PRIOR, transitions[:, None], LIKELIHOOD)
    for i in range(2):
        alone = hmm_forward(PRIOR, transitions[i], LIKELIHOOD)
        assert result.log_ml[i].item() == pytest.approx(alone.log_ml.item(), abs=1e-6)


def test_a_row_of_zeros_is_a_step_without_an_observation():
    """Steps 1 and 2 unseen: the transition's third power, with what is seen at steps 0 and 3."""
    ll = LIKELIHOOD.copy()
    ll[1:3] = 0.0
    direct = hmm_forward(PRIOR, np.linalg.matrix_power(TRANSITION, 3), ll[[0, 3]])
    result = hmm_forward(PRIOR, TRANSITION, ll)
    assert result.log_ml.item() == pytest.approx(direct.log_ml.item(), abs=1e-6)
    np.testing.assert_allclose(result.filtered[3], direct.filtered[1], atol=1e-6)


def test_log_densities_far_apart_do_not_underflow():
    """State 1 is 2000 nats behind, and then the only one possible: log ML = log(1/2) - 2000 + log(1/2)."""
    ll = np.array([[0.0, -2000.0], [-math.inf, 0.0]])
    transition = [[1.0, 0.0], [0.5, 0.5]]
    result = hmm_smooth([0.5, 0.5], transition, ll)
    assert result.log_ml.item() == pytest.approx(-2000 + 2 * math.log(0.5), rel=1e-7)
    assert result.marginals.tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_a_long_chain_is_stationary():
    """10000 steps without an observation: the left eigenvector, and a log ML of zero that errors do not add up in."""
    result = hmm_forward(PRIOR, TRANSITION, np.zeros((10_000, 3)))
    values, vectors = np.linalg.eig(TRANSITION.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    np.testing.assert_allclose(result.filtered[-1], stationary / stationary.sum(), atol=1e-6)
    assert abs(result.log_ml.item()) < 1e-9


def test_a_state_that_nothing_follows():
    """Paths through it end: of the two states at step 0, only state 1 has a next."""
    result = hmm_smooth([0.5, 0.5], [[0.0, 0.0], [0.25, 0.75]], np.zeros((2, 2)))
    assert result.log_ml.item() == pytest.approx(math.log(0.5), abs=1e-7)
    assert result.marginals.tolist() == [[0.0, 1.0], [0.25, 0.75]]


@pytest.mark.parametrize("function", [hmm_smooth, hmm_viterbi, lambda *a: hmm_sample(*a, 3, key=0)])
def test_impossible_observations(function):
    ll = np.zeros((3, 2))
    ll[1, 1] = -math.inf
    chain = [0.0, 1.0], np.eye(2), ll
    forward = hmm_forward(*chain)
    assert forward.log_ml.item() == -math.inf
    assert forward.filtered[0].tolist() == [0.0, 1.0] and forward.increments[1].item() == -math.inf
    assert np.isnan(np.array(forward.filtered[1:])).all()
    with pytest.raises(ImpossibleObservation, match="at step 1 has probability zero"):
        function(*chain)
    with pytest.raises(ImpossibleObservation, match=r"at step 1 of model \[1\]"):
        function(*chain[:2], np.stack([np.zeros((3, 2)), ll]))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"prior": np.log(PRIOR)}, "prior is no probability vector"),
        ({"prior": [0.5, 0.5]}, r"prior has shape \[2\]"),
        ({"transition": TRANSITION.T}, r"transition\[0, 0\] is no probability vector: it sums to 1.5"),
        ({"transition": TRANSITION[None].repeat(2, 0)}, r"transition has shape \[2, 3, 3\]"),
        ({"log_likelihood": LIKELIHOOD * [1, math.nan, 1]}, r"log_likelihood\[0, 1\] is nan"),
        ({"log_likelihood": LIKELIHOOD + math.inf}, r"log_likelihood\[0, 0\] is inf"),
        ({"log_likelihood": np.zeros((0, 3))}, r"log_likelihood has shape \[0, 3\]"),
        ({"prior": PRIOR[None].repeat(2, 0), "log_likelihood": np.zeros((3, 4, 3))}, "the axes in front of"),
        ({"prior": "high"}, "prior must be an array of numbers"),
    ],
)
def test_arrays_that_make_no_chain(changed, message):
    arrays = {"prior": PRIOR, "transition": TRANSITION, "log_likelihood": LIKELIHOOD} | changed
    with pytest.raises(ParameterError, match=message):
        hmm_forward(**arrays)


def test_results_show_in_one_line():
    best = hmm_viterbi(PRIOR, TRANSITION, mx.array(LIKELIHOOD))
    assert repr(best).startswith("<ViterbiPath states i32[4], log_prob -")
