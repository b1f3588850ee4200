# %% [markdown]
# # Which algorithm for which model?
#
# Four small problems, each of another kind, and every sampler that will take them. The problems are small enough to be
# solved exactly, so that we see not only what a run says of itself, but how far off it is. Then one of them again with
# up to a thousand chains.
#
# The seconds below are of the machine that ran this notebook last, and include all of a run: setting up, warm-up,
# draws. Yours will be others. Look for factors of ten, not for tenths.

# %% Names
# %load_ext genmlx
import itertools
import time

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

from genmlx import GenError, flip, multivariate_normal, normal, trace
from genmlx.diagnostics import ess, rhat
from genmlx.dist import iid
from genmlx.inference.methods import METHODS, automatic

for name, method in METHODS.items():
    print(f"{name:<8} {method.function:<20} {method.summary}")

# %% [markdown]
# These are the names that `%infer` takes; behind each is a function of the same kind, with a call, observations and
# options. We time them through that table.
#
# A run is judged by some numbers. **ESS** is the effective sample size: what the draws are worth in independent ones,
# for the quantity that fares worst. **ESS/s** is that by time. **R-hat** tells how far the chains disagree; it is 1
# when they do not. **error** is the largest distance from the exact mean, in posterior standard deviations, and
# **said** is the error that the run believes it has, one over the root of its ESS. An honest run errs by not more than
# a few times what it said. The worst run is one with a large error next to a small one said.


# %% How a run is measured
KEY = 9  # of every run


def measure(problem, runs):
    """Time the runs ``(label, method, options)`` of a problem; print and return a row for each."""
    call, observed, quantity, mean, sd = problem
    print(f"{'':<20}{'seconds':>8}{'ESS':>9}{'ESS/s':>9}{'R-hat':>8}{'error':>8}{'said':>8}")
    rows = {}
    for label, method, options in runs:
        start = time.perf_counter()
        try:
            result = METHODS[method].load()(call, observed, key=mx.random.key(KEY), **options)
        except GenError as error:
            print(f"{label:<20} {error.what}")
            rows[label] = error
            continue
        mx.eval(result.log_weights if method == "is" else result.log_joint)
        seconds = time.perf_counter() - start
        draws = np.array(quantity(result), dtype=float)
        if method == "is":
            draws = draws.reshape(result.n, -1)
            size, apart, found = result.ess.item(), np.nan, np.array(result.weights, dtype=float) @ draws
        else:
            draws = draws.reshape(result.chains, result.draws, -1)
            size, apart, found = np.min(ess(draws)), np.max(rhat(draws)), draws.mean(axis=(0, 1))
        error = np.max(np.abs(found - mean) / sd)
        rows[label] = {"ess": float(size), "rhat": float(apart), "error": float(error), "rate": float(size / seconds)}
        disagree = "" if np.isnan(apart) else f"{apart:.2f}"
        told = f"{label:<20}{seconds:>8.2f}{size:>9.0f}{size / seconds:>9.0f}{disagree:>8}"
        print(f"{told}{error:>8.3f}{size**-0.5:>8.3f}")
    print(f"auto would take {automatic(call, observed).name}")
    return rows


# %% [markdown]
# ## 1. A curve: many numbers, tied together by the prior
#
# Forty points of a smooth curve, each measured with noise. The prior is Gaussian and couples neighbours so tightly
# that most directions of the forty are nearly forbidden. The posterior is Gaussian too, and known.

# %% The curve
points, noise = 40, 1.0
grid = np.linspace(0, 10, points)
covariance = np.exp(-0.5 * (grid[:, None] - grid) ** 2 / 2**2) + 1e-4 * np.eye(points)
measured = np.sin(grid) + noise * np.random.default_rng(1).normal(size=points)
root, prior_covariance = mx.array(np.linalg.cholesky(covariance)), mx.array(covariance)
gain = covariance @ np.linalg.inv(covariance + noise**2 * np.eye(points))
curve_mean, curve_sd = gain @ measured, np.sqrt(np.diag(covariance - gain @ covariance))


# %% The curve as a model
# %%gen
def curve():
    f = trace("f", multivariate_normal(mx.zeros(points), prior_covariance))
    trace("y", normal(f, noise))


# %% Every method genmlx={"timeout": 300}
observed_curve = {"y": mx.array(measured)}
of_curve = measure(
    (curve(), observed_curve, lambda post: post["f"], curve_mean, curve_sd),
    [
        ("importance sampling", "is", {"particles": 20_000}),
        ("mh from the prior", "mh", {"draws": 500, "warmup": 100, "chains": 4}),
        ("random walk", "rw", {"draws": 1000, "warmup": 300}),
        ("mala", "mala", {"draws": 1000, "warmup": 300}),
        ("hmc", "hmc", {"draws": 100, "warmup": 100, "leapfrog_steps": 10}),
        ("elliptical slice", "ess", {"draws": 600, "warmup": 100}),
        ("gibbs", "gibbs", {}),
    ],
)

# %% [markdown]
# Most are lost: R-hat is far above 1, the chains have not met. An ESS of four from four chains means nothing at all.
# The walks and `hmc` take steps that fit the narrowest of forty directions, and in the widest they would need hundreds
# of those. `mh` jumps to another curve of the prior and hardly ever lands. An elliptical slice takes its directions
# from the prior, so that the coupling costs it nothing; what costs it is data that say much more than the prior does.
# Importance sampling is the quickest here, but of twenty thousand curves only some dozens are near the data.
# Gibbs says that it is not for this. (`nuts` is left out. It would find out that it needs hundreds of steps for a draw,
# and take them.)
#
# There is one more way, and it is not another algorithm. `f` is a fixed matrix times independent numbers. Draw those:


# %% The same curve, from independent numbers
# %%gen
def whitened():
    f = root @ trace("z", iid(normal(0, 1), points))
    trace("y", normal(f, noise))


# %% Again genmlx={"timeout": 300}
def curve_of(post):
    return np.array(post["z"], dtype=float) @ np.linalg.cholesky(covariance).T


of_whitened = measure(
    (whitened(), observed_curve, curve_of, curve_mean, curve_sd),
    [
        ("hmc, whitened", "hmc", {"draws": 300, "warmup": 150}),
        ("nuts, whitened", "nuts", {"draws": 80, "warmup": 100, "max_depth": 4}),
    ],
)

# %% [markdown]
# The same posterior, and `hmc` goes from a failure to hundreds of effective draws in the same time. It is the lesson of
# the eight schools: coordinates first, then the algorithm.
#
# ## 2. Two modes
#
# Something is two units away, left or right, and the prior leans to the right a little. One unknown number; the
# posterior has two separate hills, of which the right one is higher.


# %% Two modes
# %%gen
def folded():
    x = trace("x", normal(0.5, 3))
    trace("y", normal(mx.abs(x), 0.3))


# %% Every method, again genmlx={"timeout": 300}
line = np.linspace(-15, 15, 60_001)
density = np.exp(-0.5 * ((line - 0.5) / 3) ** 2 - 0.5 * ((2.0 - np.abs(line)) / 0.3) ** 2)
density /= density.sum()
x_mean = density @ line
x_sd = np.sqrt(density @ (line - x_mean) ** 2)
of_folded = measure(
    (folded(), {"y": 2.0}, lambda post: post["x"], np.array([x_mean]), np.array([x_sd])),
    [
        ("importance sampling", "is", {"particles": 20_000}),
        ("mh from the prior", "mh", {"draws": 2000, "warmup": 100, "chains": 4}),
        ("random walk", "rw", {"draws": 2000, "warmup": 500}),
        ("mala", "mala", {"draws": 500, "warmup": 200}),
        ("hmc", "hmc", {"draws": 300, "warmup": 150}),
        ("nuts", "nuts", {"draws": 200, "warmup": 150}),
        ("elliptical slice", "ess", {"draws": 1000, "warmup": 100}),
    ],
)

# %% [markdown]
# Look at `hmc` and `nuts`: hundreds of independent draws, R-hat 1, and an error twenty times what they said. Gradients
# lead up the hill on which a chain stands, and not across the valley. All four chains began on the right one, and
# agree about half of the truth. In `mala` they began on both, and R-hat shows it. No number that is computed from a
# run can show a hill that no chain has seen.
#
# (That four chains begin on one hill happens in one run of eight or so. The key of this notebook is one at which it
# happens.)
#
# What jumps does well here: importance sampling, proposals from the prior, the slice whose ellipse crosses both
# hills; a random walk of long steps. In one dimension they can afford to. In forty, a jump from the prior would not
# land, as we have seen. And `auto` goes by what kind the choices are; hills it cannot see.
#
# ## 3. Yes or no
#
# Ten switches, each read through noise, and neighbours tend to be alike. There are 1024 combinations, which we add
# up. There are no gradients, so the samplers that want them say so.


# %% Ten switches
# %%gen
def switches():
    s = trace("s", iid(flip(0.5), 10))
    alike = mx.sum(s[1:] == s[:-1])  # of nine pairs of neighbours
    trace("alike", normal(alike, 1.0))
    trace("y", normal(s, 0.8))


# %% Every method, on switches genmlx={"timeout": 300}
readings = np.array([1.0, 1.2, -0.3, 0.8, 0.9, 0.1, -0.4, 0.5, 0.2, 0.1])
every = np.array(list(itertools.product([0, 1], repeat=10)))
alike = (every[:, 1:] == every[:, :-1]).sum(axis=1)
log_joint = -0.5 * (8.0 - alike) ** 2 - 0.5 * (((readings - every) / 0.8) ** 2).sum(axis=1)
probability = np.exp(log_joint - log_joint.max())
probability /= probability.sum()
switch_mean = probability @ every
of_switches = measure(
    (
        switches(),
        {"alike": 8.0, "y": mx.array(readings)},
        lambda post: post["s"],
        switch_mean,
        np.sqrt(switch_mean * (1 - switch_mean)),
    ),
    [
        ("importance sampling", "is", {"particles": 20_000}),
        ("mh from the prior", "mh", {"draws": 2000, "warmup": 100, "chains": 4}),
        ("gibbs", "gibbs", {"draws": 200, "warmup": 50}),
        ("nuts", "nuts", {}),
        ("elliptical slice", "ess", {}),
        ("hmc_gibbs", "mix", {}),
    ],
)

# %% [markdown]
# With a thousand combinations guessing is unbeatable: importance sampling has seen them all, many times over. But with
# ten more switches there are a million, and a guess hits a thousand times less often, while a Gibbs sweep, which takes
# the switches one at a time, costs twice as much. The next problem is on the other side.
#
# ## 4. A line with outliers
#
# A line through fifteen points, of which some may be wild: for each a switch, with probability one in ten. Two
# continuous numbers and fifteen discrete ones.

# %% The points
xs = np.linspace(-2, 2, 15)
ys = np.array([-3.9, -3.3, -2.5, 4.0, -1.6, -1.1, -0.6, 0.1, 0.6, 1.2, -5.0, 2.2, 2.8, 3.5, 4.1])
xs_mx = mx.array(xs)


# %% A line with outliers
# %%gen
def robust():
    intercept = trace("intercept", normal(0, 3))
    slope = trace("slope", normal(0, 3))
    wild = trace("wild", iid(flip(0.1), 15))
    trace("y", normal(intercept + slope * xs_mx, mx.where(wild, 5.0, 0.4)))


# %% Every method, on the line genmlx={"timeout": 300}
a, b = np.meshgrid(np.linspace(-1.5, 1.5, 301), np.linspace(1, 3, 301), indexing="ij")
residual = ys - (a[..., None] + b[..., None] * xs)  # the switches are summed out, point by point
likelihood = 0.9 * np.exp(-0.5 * (residual / 0.4) ** 2) / 0.4 + 0.1 * np.exp(-0.5 * (residual / 5) ** 2) / 5
weight = np.exp(np.log(likelihood).sum(axis=-1) - 0.5 * (a**2 + b**2) / 9)
weight /= weight.sum()
line_mean = np.array([np.sum(weight * v) for v in (a, b)])
line_sd = np.array([np.sqrt(np.sum(weight * (v - m) ** 2)) for v, m in zip((a, b), line_mean, strict=True)])


def coefficients(post):
    return mx.stack([post["intercept"], post["slope"]], axis=-1)


of_robust = measure(
    (robust(), {"y": mx.array(ys)}, coefficients, line_mean, line_sd),
    [
        ("importance sampling", "is", {"particles": 20_000}),
        ("mh from the prior", "mh", {"draws": 2000, "warmup": 100, "chains": 4}),
        ("hmc_gibbs", "mix", {"draws": 150, "warmup": 100}),
        ("nuts", "nuts", {}),
        ("gibbs", "gibbs", {}),
    ],
)

# %% [markdown]
# At seventeen unknowns guessing has come to its end: one or two particles have all the weight, and the chain that
# proposes everything from the prior stands still. Note how large its error is beside what it said. `hmc_gibbs` moves
# the line along gradients and the switches one by one, and it is the only one that can be believed.
#
# ## 5. Many chains
#
# A chain is a lane of a batch. For a small model most of the time goes into telling the machine what to do, and that
# is the same for one chain and for a thousand.


# %% A line
# %%gen
def straight():
    intercept = trace("intercept", normal(0, 3))
    slope = trace("slope", normal(0, 3))
    trace("y", normal(intercept + slope * xs_mx, 2.0))


# %% One to a thousand chains genmlx={"timeout": 300}
design = np.stack([np.ones(15), xs], axis=-1)
precision = design.T @ design / 4 + np.eye(2) / 9
straight_mean = np.linalg.solve(precision, design.T @ ys / 4)
straight_sd = np.sqrt(np.diag(np.linalg.inv(precision)))
counts = (1, 10, 100, 1000)
of_straight = measure(
    (straight(), {"y": mx.array(ys)}, coefficients, straight_mean, straight_sd),
    [(f"hmc, {n} chains", "hmc", {"draws": 100, "warmup": 100, "chains": n}) for n in counts],
)

fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.loglog(counts, [of_straight[f"hmc, {n} chains"]["rate"] for n in counts], "o-", color="tab:blue")
ax.set(xlabel="chains", ylabel="ESS per second")
plt.show()

# %% [markdown]
# Ten times the chains cost far less than ten times the time. (An ESS above the number of draws is no mistake: draws
# of `hmc` tend to fall on alternate sides of the mean, and their average is better than one of independent draws. It is
# cut off at some times their number.) What does not shrink is the warm-up, which every chain has to go through. So
# many short chains pay where the model is small and mixes quickly, and not where a chain needs thousands of steps to
# get anywhere.
#
# ## What to take
#
# - All choices continuous: `nuts`. If it struggles, change the coordinates before the algorithm.
# - Gaussian prior with strong couplings, weak data: write it in independent numbers; if that cannot be done,
#   `elliptical_slice`.
# - Discrete choices: `gibbs`; discrete and continuous ones: `hmc_gibbs`.
# - A handful of unknowns of any kind: `importance_sampling` first. It needs no tuning, gives the evidence, and its
#   effective sample size tells when it is out of its depth.
# - Several hills: no sampler that follows gradients. Begin many chains, far apart; or jump.
#
# And whatever it is: believe neither the ESS nor the error said before R-hat is close to 1, and not everything then.

# %% tags=["test"]
# A maximum over up to forty numbers, at an ESS that is itself estimated: five errors.
honest = [
    (of_curve, ("elliptical slice",)),
    (of_whitened, ("hmc, whitened", "nuts, whitened")),
    (of_folded, ("importance sampling", "mh from the prior", "random walk", "elliptical slice")),
    (of_switches, ("importance sampling", "mh from the prior", "gibbs")),
    (of_robust, ("hmc_gibbs",)),
    (of_straight, [f"hmc, {n} chains" for n in counts]),
]
for rows, labels in honest:
    for label in labels:
        row = rows[label]
        assert row["ess"] > 40 and not row["rhat"] > 1.1, (label, row)
        assert row["error"] < 5 * row["ess"] ** -0.5, (label, row)
for label in ("mh from the prior", "random walk", "mala", "hmc"):
    assert of_curve[label]["rhat"] > 1.5, label
for label in ("mala", "hmc", "nuts"):
    assert of_folded[label]["rhat"] > 1.3 or of_folded[label]["error"] > 0.5, label
refused = [(of_curve, ["gibbs"]), (of_robust, ["nuts", "gibbs"])]
refused += [(of_switches, ["nuts", "elliptical slice", "hmc_gibbs"])]
for rows, labels in refused:
    assert all(isinstance(rows[label], GenError) for label in labels)
assert of_robust["importance sampling"]["ess"] < 20 and of_robust["mh from the prior"]["rhat"] > 1.1
