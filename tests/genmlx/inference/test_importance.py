"""Importance sampling against exact posteriors and evidences."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from genmlx import beta, categorical, dirichlet, distribution, flip, gamma, gen, normal, poisson, trace, uniform
from genmlx.errors import (
    BatchError,
    ImpossibleObservation,
    ParameterError,
    UnknownAddress,
    UsageError,
    ValueMismatch,
)
from genmlx.inference import Particles, importance, importance_resampling, importance_sampling

LOG_ML, MEAN, VARIANCE = -1.930510, 1.2, 0.2


@gen
def conjugate(scale=0.5):
    mu = trace("mu", normal(0, 1))
    trace("y", normal(mu, scale))
    return mu


@gen
def exact_posterior():
    trace("mu", normal(MEAN, math.sqrt(VARIANCE)))


@gen
def posterior_shifted():
    trace("mu", normal(1.0, 0.6))


def evidence_error(particles: Particles) -> float:
    """The standard error of log_ml, by the delta method."""
    w = np.exp(np.array(particles.log_weights, dtype=np.float64) - np.array(particles.log_ml, dtype=np.float64))
    return w.std() / math.sqrt(len(w))


def test_conjugate_normal():
    result = importance_sampling(conjugate(), {"y": 1.5}, particles=40_000, key=1)
    assert abs(result.log_ml.item() - LOG_ML) < 4 * evidence_error(result) < 0.05
    error = math.sqrt(VARIANCE / result.ess.item())
    assert abs(result.mean("mu").item() - MEAN) < 4 * error
    assert abs(result.variance("mu").item() - VARIANCE) < 4 * VARIANCE * math.sqrt(2 / result.ess.item())
    assert result.std("mu").item() == pytest.approx(math.sqrt(result.variance("mu").item()))


def test_ten_observations():
    """Case 40: mean 0.454545, sd 0.301511, log ML -10.501969."""

    @gen
    def model():
        mu = trace("mu", normal(0, 1))
        for i in range(10):
            trace(("y", i), normal(mu, 1))

    result = importance_sampling(model(), {("y", i): 0.5 for i in range(10)}, particles=40_000, key=2)
    assert abs(result.log_ml.item() + 10.501969) < 4 * evidence_error(result) < 0.05
    assert abs(result.mean("mu").item() - 0.454545) < 4 * 0.301511 / math.sqrt(result.ess.item())
    assert result.std("mu").item() == pytest.approx(0.301511, rel=0.05)


def bernoullis():
    @gen
    def model():
        p = trace("p", beta(1, 1))
        for i in range(20):
            trace(("y", i), flip(p))

    return model(), {("y", i): int(i < 14) for i in range(20)}, -13.609667, {"p": 0.681818}


def poissons():
    @gen
    def model():
        rate = trace("rate", gamma(2, 1))
        trace(("y", 0), poisson(rate))
        trace(("y", 1), poisson(rate))

    return model(), {("y", 0): 3, ("y", 1): 5}, -4.763547, {"rate": 10 / 3}


def categories():
    @gen
    def model():
        p = trace("p", dirichlet(mx.ones(3)))
        for i in range(3):
            trace(("y", i), categorical(mx.log(p)))

    return model(), {("y", 0): 0, ("y", 1): 0, ("y", 2): 1}, -math.log(30), {"p": [0.5, 1 / 3, 1 / 6]}


@pytest.mark.parametrize("problem", [bernoullis, poissons, categories])
def test_conjugate_pairs(problem):
    """Case 40: log evidences of beta-Bernoulli, gamma-Poisson and Dirichlet-categorical."""
    call, observations, log_ml, means = problem()
    result = importance_sampling(call, observations, particles=40_000, key=3)
    assert abs(result.log_ml.item() - log_ml) < 4 * evidence_error(result) < 0.06
    for address, mean in means.items():
        error = np.array(result.std(address)) / math.sqrt(result.ess.item())
        assert np.all(np.abs(np.array(result.mean(address)) - mean) < 4 * error)


def test_the_exact_posterior_as_proposal_has_no_variance():
    """Every weight is the evidence: catches a proposal density that is forgotten, doubled or of another draw."""
    result = importance_sampling(conjugate(), {"y": 1.5}, particles=500, proposal=exact_posterior(), key=4)
    assert np.allclose(np.array(result.log_weights), LOG_ML, atol=2e-5)
    assert result.ess.item() == pytest.approx(500, rel=1e-4)


def test_a_proposal_is_corrected_for():
    result = importance_sampling(conjugate(), {"y": 1.5}, particles=20_000, proposal=posterior_shifted(), key=5)
    assert result.ess.item() > 10_000
    assert abs(result.log_ml.item() - LOG_ML) < 4 * evidence_error(result) < 0.03
    assert abs(result.mean("mu").item() - MEAN) < 4 * math.sqrt(VARIANCE / result.ess.item())


def test_a_proposal_for_some_latents_leaves_the_others_to_the_prior():
    """weight = p(a) p(y | a, b) / q(a), by hand."""

    @gen
    def model():
        a, b = trace("a", normal(0, 1)), trace("b", normal(0, 2))
        trace("y", normal(a + b, 1))

    @gen
    def proposal():
        trace("a", normal(0.5, 0.7))

    result = importance_sampling(model(), {"y": 1.0}, particles=100, proposal=proposal(), key=6)
    a, b = result["a"], result["b"]
    by_hand = normal(0, 1).log_prob(a) + normal(a + b, 1).log_prob(1.0) - normal(0.5, 0.7).log_prob(a)
    assert np.allclose(np.array(result.log_weights), np.array(by_hand), atol=1e-5)
    assert abs(np.array(b).mean()) < 4 * 2 / 10


def test_weights_of_a_discrete_model_by_enumeration():
    """Each particle's weight is the likelihood of its latents, and the evidence is the sum over them."""

    @gen
    def model():
        a = trace("a", flip(0.3))
        b = trace("b", flip(0.2 + 0.5 * a))
        trace("y", flip(0.1 + 0.3 * a + 0.5 * b))

    prior = {(a, b): [0.7, 0.3][a] * [0.8 - 0.5 * a, 0.2 + 0.5 * a][b] for a, b in itertools.product((0, 1), repeat=2)}
    likelihood = {(a, b): 0.1 + 0.3 * a + 0.5 * b for a, b in prior}
    evidence = sum(prior[ab] * likelihood[ab] for ab in prior)
    result = importance_sampling(model(), {"y": 1}, particles=20_000, key=7)
    pairs = list(zip(result["a"].tolist(), result["b"].tolist(), strict=True))
    assert np.allclose(np.exp(np.array(result.log_weights)), [likelihood[ab] for ab in pairs], rtol=1e-5)
    assert abs(result.log_ml.item() - math.log(evidence)) < 4 * evidence_error(result)
    posterior_a = sum(prior[ab] * likelihood[ab] for ab in prior if ab[0]) / evidence
    assert abs(result.mean("a").item() - posterior_a) < 4 * 0.5 / math.sqrt(result.ess.item())


@pytest.mark.parametrize("proposal", [None, posterior_shifted()])
def test_internal_blocks_are_joined_in_order(monkeypatch, proposal):
    """1000 particles in blocks of 300: three full and one of 100, each with noise of its own."""
    whole = importance_sampling(conjugate(), {"y": 1.5}, particles=300, proposal=proposal, key=8)
    monkeypatch.setattr(importance, "_BLOCK", 300)
    seen = []
    result = importance_sampling(
        conjugate(), {"y": 1.5}, particles=1000, proposal=proposal, key=8, progress=lambda p: seen.append(p.done)
    )
    assert result.n == len(result) == 1000 and result["mu"].shape == result.log_weights.shape == (1000,)
    assert len(set(result["mu"].tolist())) == 1000, "blocks share noise"
    assert seen[-1] == 4 and seen == sorted(seen)
    # values and scores in step
    rescored = normal(0, 1).log_prob(result["mu"]) + normal(result["mu"], 0.5).log_prob(1.5)
    assert np.allclose(np.array(result.traces.score), np.array(rescored), atol=1e-5)
    assert abs(result.log_ml.item() - whole.log_ml.item()) < 4 * math.hypot(
        evidence_error(result), evidence_error(whole)
    )


def test_nothing_observed_gives_the_prior_with_weight_one():
    result = importance_sampling(conjugate(), particles=2000, key=9)
    assert result.log_weights.tolist() == [0.0] * 2000 and result.log_ml.item() == pytest.approx(0.0, abs=1e-6)
    assert abs(result.mean("y").item()) < 4 * math.sqrt(1.25 / 2000)


def test_everything_observed_gives_the_joint_density():
    result = importance_sampling(conjugate(), {"mu": 1.0, "y": 1.5}, particles=3, key=9)
    joint = conjugate().assess({"mu": 1.0, "y": 1.5}).score.item()
    assert result.log_ml.item() == pytest.approx(joint, abs=1e-6) and result.addresses() == []


def test_a_model_without_choices():
    @gen
    def empty():
        return 3.0

    assert importance_sampling(empty(), particles=5, key=0).log_ml.item() == 0.0


def test_a_distribution_is_a_model():
    result = importance_sampling(normal(3, 1), particles=4000, key=1)
    assert abs(result.mean(()).item() - 3) < 4 / math.sqrt(4000)


def test_a_vector_site():
    """The mean keeps the event's shape; a site of two numbers weighs as their sum."""

    @gen
    def model():
        mu = trace("mu", normal(mx.zeros(2), 1))
        trace("y", normal(mu, 0.5))

    result = importance_sampling(model(), {"y": mx.array([1.5, -1.5])}, particles=40_000, key=2)
    assert abs(result.log_ml.item() - 2 * LOG_ML) < 4 * evidence_error(result) < 0.1
    assert result.mean("mu").shape == (2,)
    assert np.all(np.abs(np.array(result.mean("mu")) - [MEAN, -MEAN]) < 4 * math.sqrt(VARIANCE / result.ess.item()))


def test_the_same_key_gives_the_same_particles_and_another_key_others():
    runs = [importance_sampling(conjugate(), {"y": 1.5}, particles=50, key=k)["mu"].tolist() for k in (1, 1, 2)]
    assert runs[0] == runs[1] and not set(runs[0]) & set(runs[2])


def test_resampling_keeps_the_evidence_and_the_posterior():
    result = importance_sampling(conjugate(), {"y": 1.5}, particles=40_000, key=3)
    for scheme in ("multinomial", "stratified", "systematic", "residual"):
        equal = result.resample(5000, key=4, scheme=scheme)
        assert equal.n == 5000 and equal.log_ml.item() == result.log_ml.item()
        assert equal.ess.item() == pytest.approx(5000)
        error = math.sqrt(VARIANCE * (1 / 5000 + 1 / result.ess.item()))
        assert abs(equal.mean("mu").item() - MEAN) < 4 * error
    assert result.resample(key=1).n == 40_000


def test_importance_resampling():
    result = importance_resampling(conjugate(), {"y": 1.5}, samples=2000, particles=40_000, key=5)
    assert result.n == 2000 and abs(result.mean("mu").item() - MEAN) < 4 * math.sqrt(VARIANCE * (1 / 2000 + 1 / 10_000))
    assert abs(result.log_ml.item() - LOG_ML) < 0.05


def test_to_posterior():
    particles = importance_sampling(conjugate(scale=0.5), {"y": 1.5}, particles=20_000, key=6)
    post = particles.to_posterior(draws=3000, key=7)
    assert post["mu"].shape == post.log_joint.shape == (1, 3000) and post.addresses() == [("mu",)]
    assert abs(post.mean("mu").item() - MEAN) < 4 * math.sqrt(VARIANCE * (1 / 3000 + 1 / 5000))
    assert post.trace(0, 7).score.item() == pytest.approx(post.log_joint[0, 7].item(), abs=1e-5)


def test_to_posterior_keeps_keyword_only_arguments():
    """Rebuilding the call from a trace's positional arguments alone would lose them."""

    @gen
    def model(*, scale):
        trace("y", normal(trace("mu", normal(0, 1)), scale))

    post = importance_sampling(model(scale=0.25), {"y": 1.5}, particles=100, key=1).to_posterior(10, key=2)
    assert post.trace(0, 3).score.item() == pytest.approx(post.log_joint[0, 3].item(), abs=1e-5)


def test_sums_over_a_million_particles():
    """MLX on the CPU adds float32 one after the other: at this size its mean is 1% off."""

    @gen
    def model():
        trace("x", uniform(0.0999, 0.1001))

    result = importance_sampling(model(), particles=1_000_000, key=1)
    assert result.mean("x").item() == pytest.approx(0.1, rel=1e-5)
    assert result.ess.item() == pytest.approx(1_000_000, rel=1e-6)
    assert result.log_ml.item() == pytest.approx(0.0, abs=1e-6)


# errors


@pytest.mark.parametrize("particles", [0, -3, 2.5, True])
def test_the_number_of_particles(particles):
    with pytest.raises(ParameterError, match="particles must be a whole number, at least 1"):
        importance_sampling(conjugate(), {"y": 1.5}, particles=particles)


def test_an_impossible_observation_is_named():
    @gen
    def model():
        trace("p", beta(1, 1))
        trace("a", flip(1.0))
        trace("b", flip(0.5))

    with pytest.raises(ImpossibleObservation) as error:
        importance_sampling(model(), {"b": 1, "a": 0}, particles=10, key=0)
    assert error.value.address == ("a",) and error.value.gen_fn.__name__ == "model"


def test_observations_that_exclude_each_other():
    """Each is possible alone: the message must not accuse one of them."""

    @gen
    def model():
        a = trace("a", flip(0.5))
        trace("y", flip(1.0 * a))
        trace("z", flip(1.0 - a))

    with pytest.raises(ImpossibleObservation, match="no draw gives the observations a positive density"):
        importance_sampling(model(), {"y": 1, "z": 1}, particles=100, key=0)


@pytest.mark.parametrize("value", [math.nan, mx.array(math.nan), np.nan])
def test_missing_data_is_named(value):
    with pytest.raises(ValueMismatch, match="NaN") as error:
        importance_sampling(conjugate(), {"y": value}, particles=10)
    assert error.value.address == ("y",)


def test_a_model_whose_density_is_nan():
    @gen
    def model():
        mu = trace("mu", normal(0, 1))
        trace("y", normal(mu, mx.sqrt(mu)))

    with pytest.raises(ParameterError, match=r"log density of 0\.0 is NaN in 55 of 100 runs at 'y' in model") as error:
        importance_sampling(model(), {"y": 0.0}, particles=100, key=0)
    assert error.value.address == ("y",)


def test_a_proposal_whose_density_is_nan():
    """No density of the model is at fault, and none is named."""

    @gen
    def away():
        trace("mu", weird())

    weird = distribution(lambda key: mx.array(0.5), lambda x: mx.array(math.nan) * x, name="weird")
    with pytest.raises(ParameterError, match="weight is NaN in 10 of 10 runs, and no density of the model is") as error:
        importance_sampling(conjugate(), {"y": 1.5}, particles=10, proposal=away(), key=0)
    assert error.value.address is None


@pytest.mark.parametrize("model", [conjugate, 3, None])
def test_a_model_that_is_not_a_call(model):
    with pytest.raises(UsageError, match="not a call"):
        importance_sampling(model, {"y": 1.5})


def test_an_observation_that_the_model_never_visits():
    with pytest.raises(UnknownAddress, match="'z'"):
        importance_sampling(conjugate(), {"z": 1.5}, particles=10)


def test_proposals_that_do_not_fit():
    @gen
    def of_observed():
        trace("y", normal(0, 1))

    @gen
    def of_unknown():
        trace("nu", normal(0, 1))

    def run(proposal):
        importance_sampling(conjugate(), {"y": 1.5}, particles=10, proposal=proposal, key=0)

    with pytest.raises(UsageError, match="proposes an observed choice at 'y'"):
        run(of_observed())
    with pytest.raises(UnknownAddress, match="'nu'"):
        run(of_unknown())
    with pytest.raises(UsageError, match="the proposal is not a call"):
        run(exact_posterior)


def test_a_model_that_branches_cannot_be_batched_and_says_where():
    @gen
    def model():
        if trace("k", flip(0.5)).item():
            trace("x", normal(0, 1))

    with pytest.raises(BatchError, match="test_importance.py"):
        importance_sampling(model(), particles=10, key=0)


def test_statistics_of_a_sub_map_name_the_leaves():
    @gen
    def model():
        trace(("x", 0), normal(0, 1))
        trace(("x", 1), normal(0, 1))

    with pytest.raises(UsageError, match=r"\('x', 0\), \('x', 1\)"):
        importance_sampling(model(), particles=10, key=0).mean("x")


def test_the_standard_error_of_the_evidence_and_the_tail_of_the_weights():
    """The error is the spread of log_ml over runs; k-hat is that of the weights in ArviZ's sense."""
    runs = [importance_sampling(conjugate(), {"y": 1.5}, 400, key=seed) for seed in range(120)]
    spread = np.std([run.log_ml.item() for run in runs], ddof=1)
    assert np.mean([run.log_ml_error for run in runs]) == pytest.approx(spread, rel=0.25)
    assert runs[0].khat < 0.5 < importance_sampling(conjugate(), {"y": 9.0}, 400, key=0).khat
    assert math.isnan(importance_sampling(conjugate(), {"y": 1.5}, 1, key=0).log_ml_error)
