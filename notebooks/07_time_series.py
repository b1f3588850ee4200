# %% [markdown]
# # The Nile at Aswan: a level that wanders
#
# For a hundred years somebody measured how much water the Nile brought to Aswan. The numbers jump from year to year,
# and below the jumps something changes more slowly. How much is jumping, and how much is change? Where was the river
# in 1899, and where will it be ten years after the last number?
#
# The model is the smallest one of its kind, the local level model. It has an exact answer, the Kalman filter, which
# judges us twice: as a formula at the end, and, before that, as a proposal.
#
# The data: G. W. Cobb, *The problem of the Nile*, Biometrika 65, 1978; R's `Nile`.

# %% The data
# %load_ext genmlx
import csv
import math
from pathlib import Path

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

from genmlx import log_normal, normal, select, splice, trace, unfold
from genmlx.dist import half_normal
from genmlx.inference import importance_sampling, predictive

folder = Path(__file__).parent if "__file__" in globals() else Path()
with open(folder / "data" / "nile.csv") as file:
    rows = list(csv.DictReader(file))

flows = [float(row["volume"]) for row in rows]  # of a year, in 10^8 cubic metres
year, flow = np.array([int(row["year"]) for row in rows]), np.array(flows)
count, first = len(flows), year[0].item()
print(f"{count} years, {first} to {year[-1]}; mean {flow.mean():.0f}, standard deviation {flow.std(ddof=1):.0f}")


def picture(title, until=year[-1]):
    fig, ax = plt.subplots(figsize=(9, 3), layout="constrained")
    ax.plot(year, flow, ".-", color="black", linewidth=0.4, markersize=4, label="measured")
    ax.set(xlabel="year", ylabel="flow ($10^8$ m³)", title=title, xlim=(first - 1, until + 1))
    return ax


picture("The Nile at Aswan")
plt.show()

# %% [markdown]
# ## The model
#
# The level of a year is that of the year before, plus a step of size `drift`. What is measured is the level plus
# `noise`, which is weather rather than error. A step of the chain is a generative function from one state to the
# next; `unfold` makes a chain of it.

# %% A year, and many
# %%gen --check (8,)
def one_year(t, level, drift, noise):
    level = trace("level", normal(level, drift))
    trace("flow", normal(level, noise))
    return level


def river(n):
    drift = trace("drift", half_normal(100.0))  # 10^8 cubic metres, from year to year
    noise = trace("noise", half_normal(200.0))
    start = trace("start", normal(1000.0, 300.0))  # the level before the first year
    return splice(unfold(one_year)(n, start, drift, noise))


# %% [markdown]
# `splice` runs the chain in the model's own namespace, so that addresses stay short: `(3, "flow")` is the flow of the
# fourth year. The laws of the interface hold, says `--check`. What does the model believe before it has seen a number?

# %% A short river
# %seed 1971
# %trace river(3)

# %% Six rivers before the data
worlds = river(count).vsimulate(6)
levels = np.stack([np.array(worlds[t, "level"]) for t in range(count)], axis=-1)
fig, ax = plt.subplots(figsize=(9, 3), layout="constrained")
for level, drift in zip(levels, worlds["drift"].tolist(), strict=True):
    ax.plot(year, level, linewidth=0.9, label=f"drift {drift:.0f}")
ax.axhline(0, color="black", linewidth=0.5)
ax.set(xlabel="year", ylabel="level ($10^8$ m³)", title="Six levels that the model holds possible", xlim=(1870, 1971))
ax.legend(ncols=2, fontsize="small")
plt.show()

# %% [markdown]
# Some of these rivers flow backwards. That is the price of a normal distribution. It does no harm here, because the
# data will be clear about where the level is; a model of a small brook would be better off with logarithms.
#
# ## A proposal that knows the answer
#
# There are 103 unknown numbers, and they hang together like a chain. Drawing them all from the prior would never hit a
# hundred measured flows. But once `drift` and `noise` are known, the rest is normal, and Kalman's filter gives its
# distribution from left to right; drawing levels from right to left then gives a path from the posterior, exactly.
#
# So we guess two numbers and compute the rest. The guess, filter and draw are a generative function like any other.
# It names the same addresses as the model, and that makes it a proposal.

# %% Filter forwards, draw backwards
# %%gen
def smoother(flows):
    drift = trace("drift", log_normal(math.log(40.0), 0.5))
    noise = trace("noise", log_normal(math.log(120.0), 0.15))
    mean, variance = 1000.0, 300.0**2
    filtered = [(mean, variance)]  # of a level, given the flows up to its year
    for flow in flows:
        variance = variance + drift**2
        if flow is not None:
            gain = variance / (variance + noise**2)
            mean, variance = mean + gain * (flow - mean), (1 - gain) * variance
        filtered.append((mean, variance))
    level = trace((len(flows) - 1, "level"), normal(mean, mx.sqrt(variance)))
    for t in reversed(range(len(flows))):
        mean, variance = filtered[t]
        gain = variance / (variance + drift**2)
        before = normal(mean + gain * (level - mean), mx.sqrt((1 - gain) * variance))
        level = trace((t - 1, "level") if t else "start", before)


# %% Importance sampling
observed = {(t, "flow"): value for t, value in enumerate(flows)}
particles = importance_sampling(river(count), observed, particles=20_000, proposal=smoother(flows))
# %diag particles drift, noise

# %% [markdown]
# A hundred and three unknown numbers, one pass, and more than half of the particles count. What is lost is lost to our
# guess of the two spreads.
#
# ### What it should be
#
# With the levels integrated out, two numbers are left, and two dimensions can be summed over a grid. The filter again,
# this time in numpy, for all points of the grid at once. It also says what each weight should have been: whatever the
# path, the weight depends on `drift` and `noise` alone, if the paths come from where they should.


# %% The exact answer
def log_normal_density(x, mean, sd):
    return -0.5 * np.log(2 * np.pi) - np.log(sd) - 0.5 * ((x - mean) / sd) ** 2


def kalman(flows, drift, noise):
    """log p(flows | drift, noise), the mean of each level given all flows, and the variance of the last level."""
    mean, variance, log_prob = 1000.0 + 0 * drift, 300.0**2 + 0 * drift, 0 * drift
    filtered = []
    for flow in flows:
        variance = variance + drift**2
        if flow is not None:
            log_prob = log_prob + log_normal_density(flow, mean, np.sqrt(variance + noise**2))
            gain = variance / (variance + noise**2)
            mean, variance = mean + gain * (flow - mean), (1 - gain) * variance
        filtered.append((mean, variance))
    means = [mean]
    for before, before_variance in reversed(filtered[:-1]):
        gain = before_variance / (before_variance + drift**2)
        means.append(before + gain * (means[-1] - before))
    return log_prob, np.stack(means[::-1]), variance


def log_prior(drift, noise):
    return 2 * np.log(2) + log_normal_density(drift, 0, 100) + log_normal_density(noise, 0, 200)


drift_grid, noise_grid = (g.ravel() for g in np.meshgrid(np.arange(1, 201, 2.0), np.arange(70, 190, 1.2)))
log_prob, level_means, last_variance = kalman(flows, drift_grid, noise_grid)
log_joint = log_prob + log_prior(drift_grid, noise_grid)
exact_log_ml = np.logaddexp.reduce(log_joint) + math.log(2.0 * 1.2)
weight = np.exp(log_joint - np.logaddexp.reduce(log_joint))
exact = {"drift": weight @ drift_grid, "noise": weight @ noise_grid}
exact_level = level_means @ weight

drift, noise = np.array(particles["drift"], dtype=float), np.array(particles["noise"], dtype=float)
proposed = log_normal_density(np.log(drift), math.log(40), 0.5) - np.log(drift)
proposed += log_normal_density(np.log(noise), math.log(120), 0.15) - np.log(noise)
formula = kalman(flows, drift, noise)[0] + log_prior(drift, noise) - proposed
off = np.abs(np.array(particles.log_weights) - formula).max()

print("              exact   sampled")
print(f"log evidence {exact_log_ml:7.2f}   {particles.log_ml.item():7.2f}")
for name, truth in exact.items():
    print(f"{name:<12} {truth:7.2f}   {particles.mean(name).item():7.2f}")
print(f"largest difference of a log weight from its formula: {off:.4f}")

# %% tags=["test"]
ess = particles.ess.item()
assert ess > 4000 and off < 0.02
assert abs(particles.log_ml.item() - exact_log_ml) < 4 / math.sqrt(ess)
for name, truth in exact.items():
    assert abs(particles.mean(name).item() - truth) < 4 * particles.std(name).item() / math.sqrt(ess)

# %% [markdown]
# ## Where was the river?
#
# Every particle is a path. Resampled by weight they are draws of a posterior, and the levels of a year are a column.


# %% The level, year by year
def levels_of(post, n=count):
    return np.stack([np.array(post[t, "level"]).ravel() for t in range(n)], axis=-1)


post = particles.to_posterior(4000)
levels = levels_of(post)
ax = picture("The level, with its 90% interval")
ax.fill_between(year, *np.quantile(levels, [0.05, 0.95], axis=0), color="tab:blue", alpha=0.3, linewidth=0)
ax.plot(year, levels.mean(axis=0), color="tab:blue", label="level, sampled")
ax.plot(year, exact_level, color="tab:orange", linestyle=":", label="level, exact")
ax.legend()
plt.show()
fall = levels[:, year <= 1898].mean(axis=1) - levels[:, year >= 1899].mean(axis=1)
print(f"the level up to 1898 less the level from 1899 on: {fall.mean():.0f} ± {fall.std():.0f}")

# %% [markdown]
# ## Does the model fit?
#
# Something happened in the last years of the century. The model has no word for a break; it has to explain one by
# many small steps in one direction. Are rivers that fall that much ordinary to it? For each draw we let the model make
# another hundred years with the same two spreads, levels and all, and look for the largest difference between fifteen
# years and the fifteen that follow.


# %% Posterior predictive check
def largest_change(flows, width=15):
    """The largest difference of the means of adjacent windows; flows ``[..., years]``."""
    until = np.cumsum(np.pad(flows, [(0, 0)] * (flows.ndim - 1) + [(1, 0)]), axis=-1)
    means = (until[..., width:] - until[..., :-width]) / width
    return np.abs(means[..., width:] - means[..., :-width]).max(axis=-1)


rivers = predictive(river(count), post, ~select("drift", "noise"))
again = np.stack([np.array(rivers[t, "flow"]).ravel() for t in range(count)], axis=-1)
ours, theirs = largest_change(flow), largest_change(again)
share = np.mean(theirs >= ours)
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.hist(theirs, 50, density=True, color="tab:blue", alpha=0.5, label="predicted")
ax.axvline(ours, color="black", label="measured")
ax.set(xlabel="largest change between fifteen years and the next fifteen", yticks=[])
ax.legend()
plt.show()
print(f"{share:.0%} of the predicted rivers change at least as much as ours")

# %% [markdown]
# Quite ordinary. The model had the fall before it when it learned its drift, and with such a drift such falls happen.
# That is the weakness of this check, and of the model: a break, if it was one, is to it a sign of restlessness, and
# every year is then as restless as that one.
#
# ## Years without a number
#
# Let us hide twenty years, 1891 to 1910. Nothing in the model changes. We give it fewer observations, and what is not
# observed is drawn. The proposal has to know that they are missing, which is what its `None` is for.

# %% Twenty years hidden
hidden = (year >= 1891) & (year <= 1910)
seen = {(t, "flow"): value for t, value in enumerate(flows) if not hidden[t]}
gaps = [None if h else value for h, value in zip(hidden, flows, strict=True)]
with_gap = importance_sampling(river(count), seen, particles=20_000, proposal=smoother(gaps)).to_posterior(4000)
gap_levels = levels_of(with_gap)
gap_flows = np.stack([np.array(with_gap[t, "flow"]).ravel() for t in np.flatnonzero(hidden)], axis=-1)
lower, upper = np.quantile(gap_flows, [0.05, 0.95], axis=0)
inside = np.sum((flow[hidden] > lower) & (flow[hidden] < upper))

ax = picture("Without 1891 to 1910: the level, and the flows of the hidden years")
ax.plot(year[hidden], flow[hidden], "o", color="white", markeredgecolor="black", markersize=4, label="hidden")
ax.fill_between(year, *np.quantile(gap_levels, [0.05, 0.95], axis=0), color="tab:blue", alpha=0.3, linewidth=0)
ax.fill_between(year[hidden], lower, upper, color="tab:blue", alpha=0.12, linewidth=0)
ax.plot(year, gap_levels.mean(axis=0), color="tab:blue", label="level")
ax.legend(loc="lower left", ncols=3)
plt.show()
print(f"{inside} of the 20 hidden flows are in their 90% intervals")

# %% [markdown]
# The level bridges the gap along a nearly straight line, and its band is widest in the middle. Nobody could know from
# the two ends that the river had fallen at once.
#
# ## The next ten years
#
# A forecast is the same model with a larger `n`. `predictive` keeps what each draw says of the hundred years and runs
# on.

# %% The forecast
ahead = 10
future = predictive(river(count + ahead), post)
later = year[-1] + 1 + np.arange(ahead)
future_levels = np.stack([np.array(future[t, "level"]).ravel() for t in range(count, count + ahead)], axis=-1)
future_flows = np.stack([np.array(future[t, "flow"]).ravel() for t in range(count, count + ahead)], axis=-1)

# By the filter: the mean stays where the last level was, and each year adds the variance of a step.
ahead_mean = weight @ level_means[-1]
variances = last_variance + drift_grid**2 * np.arange(1, ahead + 1)[:, None] + noise_grid**2
ahead_sd = np.sqrt((variances + level_means[-1] ** 2) @ weight - ahead_mean**2)

ax = picture("Ten more years", until=later[-1])
ax.fill_between(year, *np.quantile(levels, [0.05, 0.95], axis=0), color="tab:blue", alpha=0.3, linewidth=0)
ax.fill_between(later, *np.quantile(future_flows, [0.05, 0.95], axis=0), color="tab:orange", alpha=0.2, linewidth=0)
ax.fill_between(later, *np.quantile(future_levels, [0.05, 0.95], axis=0), color="tab:orange", alpha=0.4, linewidth=0)
ax.plot(later, future_flows[::1000].T, linewidth=0.6, color="tab:orange")
ax.set_xlim(1930, later[-1] + 0.5)
plt.show()

print("           mean: sampled   exact     sd: sampled   exact")
for i in (0, 4, 9):
    column = future_flows[:, i]
    print(f"{later[i]} {column.mean():18.0f} {ahead_mean:7.0f} {column.std():15.0f} {ahead_sd[i]:7.0f}")

# %% tags=["test"]
# The variances of the weighted particles and of 4000 draws from among them add up. That of a standard deviation is of
# a kurtosis of 5; a normal distribution has 3.
size = 1 / (1 / ess + 1 / 4000)
assert np.all(np.abs(future_flows.mean(axis=0) - ahead_mean) < 4 * ahead_sd / math.sqrt(size))
assert np.all(np.abs(future_flows.std(axis=0) / ahead_sd - 1) < 4 / math.sqrt(size))
assert np.all(np.abs(levels.mean(axis=0) - exact_level) < 4.5 * levels.std(axis=0) / math.sqrt(size))

# %% [markdown]
# The dark band is the level, the light one the flow; the thin lines are four of the possible futures. The best guess
# of every year is the last level, and only the doubt grows: the model knows no trend and no cycle. It also knows
# nothing of what people do. The High Dam at Aswan was completed in 1970, and with it ended the river that these
# numbers measured.
