"""State space models whose evidence is known: a hidden Markov model, and a Gaussian walk; and how to test an evidence.

exp(log_ml) is unbiased, whatever is resampled and moved: over runs the mean of exp(log_ml - exact) is 1 within its own
standard error. That finds evidence that is counted twice, or not at all. GENMLX_FULL=1 takes ten times as many runs.
"""

import math
import os

import mlx.core as mx
import numpy as np

from genmlx import categorical, gen, normal, trace, unfold

FULL = os.environ.get("GENMLX_FULL") == "1"
RUNS = 640 if FULL else 64


def assert_evidence_is(exact, run, runs=RUNS, precision=0.09):
    """``run(seed)`` gives log_ml; a mean ratio known no better than ``precision`` would say little."""
    ratios = np.exp([run(seed) - exact for seed in range(runs)])
    error = ratios.std(ddof=1) / math.sqrt(runs)
    assert 0 < error < precision
    assert abs(ratios.mean() - 1) < 3 * error, (ratios.mean(), error)


# a hidden Markov model, and the forward algorithm

PRIOR = np.array([0.2, 0.3, 0.5])
MOVES = np.array([[0.4, 0.4, 0.2], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05]])
SHOWS = np.array([[0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.7, 0.2, 0.1]])
SEEN = [0, 0, 1, 2]


def forward(prior, moves, shows, seen):
    """The log evidence, and the filtering distributions, step by step."""
    evidence, filtered, state = 0.0, [], prior
    for t, y in enumerate(seen):
        joint = (state @ moves if t else state) * shows[:, y]
        evidence, state = evidence + math.log(joint.sum()), joint / joint.sum()
        filtered.append(state)
    return evidence, np.array(filtered)


def logs(table):
    return mx.array(np.log(table).astype(np.float32))


LOG_PRIOR, LOG_MOVES, LOG_SHOWS = logs(PRIOR), logs(MOVES), logs(SHOWS)
HMM_LOG_ML, HMM_FILTERED = forward(PRIOR, MOVES, SHOWS, SEEN)


@gen
def hidden_step(t, z):
    z = trace("z", categorical(mx.where(t == 0, LOG_PRIOR, LOG_MOVES[z])))
    trace("y", categorical(LOG_SHOWS[z]))
    return z


hidden = unfold(hidden_step)
HMM = [(hidden(t + 1, 0), {(t, "y"): y}) for t, y in enumerate(SEEN)]


# a Gaussian walk, and Kalman's filter


def kalman(ys, r=1.0):
    """Filtering means and variances, and the log evidence, where ``r`` is the variance of an observation."""
    m, p, evidence, found = 0.0, 0.0, 0.0, []
    for y in ys:
        p += 1.0
        s, gain = p + r, p / (p + r)
        evidence -= 0.5 * (math.log(2 * math.pi * s) + (y - m) ** 2 / s)
        m, p = m + gain * (y - m), (1 - gain) * p
        found.append((m, p))
    return found, evidence


@gen
def walk_step(t, x, noise):
    x = trace("x", normal(x, 1.0))
    trace("y", normal(x, noise))
    return x


walk = unfold(walk_step)
SERIES = [1.0, 2.0, 0.5, -0.5]


def walks(ys, noise=1.0):
    return [(walk(t + 1, 0.0, noise), {(t, "y"): y}) for t, y in enumerate(ys)]
