"""Particle Gibbs and particle marginal Metropolis-Hastings: exact posteriors, however few particles there are.

GENMLX_FULL=1 takes thirteen times as many replications of the calibration.
"""

import math
import os

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats
from state_spaces import MOVES, PRIOR, SEEN, SHOWS, forward, logs

from genmlx import categorical, choicemap, flip, gamma, gen, normal, select, trace, unfold
from genmlx.errors import UnknownAddress, UsageError
from genmlx.inference import mh_kernel, particle_gibbs, pmcmc, pmmh
from genmlx.inference.replay import Replays
from genmlx.vectorized import vgenerate

YS = [1.0, 2.0, 0.5, 3.0]
REPLICATIONS, RANKS = (480, 10) if os.environ.get("GENMLX_FULL") == "1" else (36, 5)
ALARM = 1e-4


@gen
def step(t, x, scale):
    x = trace("x", normal(x, scale))
    trace("y", normal(x, 1.0))
    return x


walk = unfold(step)


@gen
def model(n):
    trace("states", walk(n, 0.0, trace("scale", gamma(2.0, 2.0))))


@gen
def nearby(tr):
    """Not symmetric: without its density back the chain would drift."""
    trace("scale", gamma(4.0, 4.0 / tr["scale"]))


def steps_for(ys):
    return [(model(t + 1), {("states", t, "y"): float(y)}) for t, y in enumerate(ys)]


def covariance(scale):
    """Of the states."""
    return scale**2 * np.array([[min(i, j) + 1.0 for j in range(len(YS))] for i in range(len(YS))])


def exact():
    """Mean and deviation of the scale, and the mean of the last state, by a sum over a grid of scales."""
    grid = np.linspace(0.005, 8.0, 1600)
    evidence = [stats.multivariate_normal(np.zeros(4), covariance(s) + np.eye(4)).pdf(YS) for s in grid]
    weights = stats.gamma(2.0, scale=0.5).pdf(grid) * np.array(evidence)
    weights /= weights.sum()
    mean = weights @ grid
    last = [(covariance(s) @ np.linalg.solve(covariance(s) + np.eye(4), YS))[-1] for s in grid]
    return mean, math.sqrt(weights @ (grid - mean) ** 2), weights @ np.array(last)


RUNS = {
    "particle Gibbs": lambda: particle_gibbs(
        steps_for(YS), "scale", mh_kernel(proposal=nearby), draws=300, warmup=30, particles=8, chains=2, key=1
    ),
    "particle Gibbs from the prior": lambda: particle_gibbs(
        steps_for(YS), select("scale"), draws=300, warmup=30, particles=8, chains=2, key=3
    ),
    "pmmh": lambda: pmmh(steps_for(YS), "scale", draws=700, warmup=150, particles=15, chains=2, key=4),
    "pmmh by a proposal": lambda: pmmh(
        steps_for(YS), "scale", nearby, draws=400, warmup=30, particles=15, chains=2, key=4
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_parameters_and_states(name):
    post = RUNS[name]()
    mean, deviation, last = exact()
    for address, want in (("scale", mean), (("states", 3, "x"), last)):
        assert abs(post.mean(address).item() - want) < 4 * float(post.mcse(address)) < 0.5
    assert post.std("scale").item() == pytest.approx(deviation, rel=0.35)
    for draw in (0, 99):  # parameters and states of a draw belong to each other
        tr = post.trace(0, draw)
        assert tr.score.item() == pytest.approx(post.log_joint[0, draw].item(), rel=1e-4)
    assert 0.05 < post.stats["accept"].mean().item() < 0.95


# a parameter that is one of two


@gen
def hidden_step(t, z, sticky):
    rows = mx.where(sticky > 0, logs(np.eye(3) * 0.7 + 0.1), logs(MOVES))
    z = trace("z", categorical(mx.where(t == 0, logs(PRIOR), rows[z])))
    trace("y", categorical(logs(SHOWS)[z]))
    return z


hidden = unfold(hidden_step)


@gen
def sticky_or_not(n):
    trace("path", hidden(n, 0, trace("sticky", flip(0.3))))


@gen
def other(tr):
    trace("sticky", flip(0.5))


HMM = [(sticky_or_not(t + 1), {("path", t, "y"): y}) for t, y in enumerate(SEEN)]


@pytest.mark.slow
@pytest.mark.parametrize("particles", [2, 10])
def test_a_discrete_parameter_by_its_evidence(particles):
    odds = math.log(0.3 / 0.7) + forward(PRIOR, np.eye(3) * 0.7 + 0.1, SHOWS, SEEN)[0]
    chance = 1 / (1 + math.exp(forward(PRIOR, MOVES, SHOWS, SEEN)[0] - odds))
    post = pmmh(HMM, "sticky", other, draws=400, warmup=20, particles=particles, chains=2, key=5)
    assert abs(post.mean("sticky").item() - chance) < 4 * float(post.mcse("sticky")) < 0.3


# calibration


def ranks(run):
    """How many draws of a chain are below the truth, for each replication: uniform on 0 to RANKS."""
    found = {"scale": [], "first": [], "last": []}
    for seed in range(REPLICATIONS):
        true = model(3).simulate(key=1000 + seed)
        places = {"scale": "scale", "first": ("states", 0, "x"), "last": ("states", 2, "x")}
        post = run(steps_for([true[("states", t, "y")].item() for t in range(3)]), seed)
        for name, address in places.items():
            found[name].append(int((np.array(post[address])[0] < true[address].item()).sum()))
    return found


SAMPLERS = {
    "particle Gibbs": lambda steps, seed: particle_gibbs(
        steps, "scale", mh_kernel(proposal=nearby), draws=RANKS, warmup=6, thin=4, particles=10, key=seed
    ),
    "pmmh": lambda steps, seed: pmmh(
        steps, "scale", nearby, draws=RANKS, warmup=15, thin=12, particles=15, key=seed
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_calibration(name):
    for quantity, found in ranks(SAMPLERS[name]).items():
        counts = np.bincount(found, minlength=RANKS + 1)
        assert stats.chisquare(counts).pvalue > ALARM / 3, (quantity, counts)


# steps as recorded graphs

SHORT = {
    "particle Gibbs": lambda: particle_gibbs(
        steps_for(YS[:3]), "scale", draws=12, warmup=2, particles=5, chains=2, ess_threshold=0.8, key=1
    ),
    "with a proposal of states": lambda: particle_gibbs(
        [(walk(t + 1, 0.0, 1.0), {(t, "y"): y}) for t, y in enumerate(YS)],
        draws=12, warmup=2, particles=5, proposal=lambda tr: towards(tr.retval[-1], len(tr.retval)), key=1,
    ),
    "pmmh": lambda: pmmh(
        steps_for(YS[:3]), "scale", draws=12, warmup=6, particles=5, rejuvenate=select(("states", 0, "x")), key=1
    ),
}  # fmt: skip


@gen
def towards(x, t):
    trace((t, "x"), normal(0.5 * (x + mx.array(YS)[t]), 0.8))


@pytest.mark.parametrize("name", SHORT)
def test_replayed_steps_are_those_of_the_handlers(name, monkeypatch):
    """To the last bit."""
    made = []
    monkeypatch.setattr(pmcmc, "Replays", lambda: made.append(Replays()) or made[-1])
    replayed = SHORT[name]()
    graphs = [known.graph for known in made[0]._graphs.values()]
    assert sum(graph not in (None, False) for graph in graphs) >= 4
    monkeypatch.setattr(pmcmc, "Replays", lambda: None)
    handled = SHORT[name]()
    for address in handled.addresses():
        assert mx.array_equal(replayed[address], handled[address]).item()
    assert mx.array_equal(replayed.log_joint, handled.log_joint).item()


def test_inputs_of_another_form_are_not_replayed():
    """A batch is known by its place, and by what it is made of: other values are inputs, other constants are not."""
    replays, found = Replays(), []
    for mean in (1.0, 1.0, 1.0, 2.0, 2.0, 2.0):
        batch = vgenerate(normal(mean, 1.0), choicemap({(): mx.array([0.0, mean])}).batched(2), 2, 0).trace
        with replays.place("here"):
            found.append(batch.update({(): 3.0}).weight.tolist())
    want = [[0.5 * (x - m) ** 2 - 0.5 * (3 - m) ** 2 for x in (0, m)] for m in (1, 1, 1, 2, 2, 2)]
    assert np.allclose(found, want, rtol=1e-5)


# what they are given, and what they say


def test_chains_can_be_resumed_and_are_the_same_for_a_key(tmp_path):
    steps = steps_for(YS[:2])
    whole = particle_gibbs(steps, "scale", draws=12, warmup=2, particles=4, chains=2, key=7)
    again = particle_gibbs(steps, "scale", draws=12, warmup=2, particles=4, chains=2, key=7)
    assert mx.array_equal(whole["scale"], again["scale"]).item()
    path = tmp_path / "run"

    def stop(progress):
        return "enough" if progress.phase == "sampling" and progress.done >= 5 else None

    options = {"draws": 12, "warmup": 2, "particles": 4, "chains": 2, "key": 7, "checkpoint": path}
    part = particle_gibbs(steps, "scale", progress=stop, **options)
    assert part.status == "enough" and part.draws < 12
    resumed = particle_gibbs(steps, "scale", **options)
    assert mx.allclose(resumed["scale"], whole["scale"], rtol=1e-4).item()


def test_mistakes():
    with pytest.raises(UnknownAddress, match="never visits: .*scal"):
        pmmh(steps_for(YS), "scal", draws=2)
    with pytest.raises(UnknownAddress, match="scal"):
        particle_gibbs(steps_for(YS), "scal", draws=2)
    with pytest.raises(UsageError, match="a kernel, and no parameters"):
        particle_gibbs(steps_for(YS), kernel=mh_kernel("scale"), draws=2)
    with pytest.raises(UsageError, match=r"the parameter proposal makes 'sticky'"):
        pmmh(steps_for(YS), "scale", other, draws=2)
