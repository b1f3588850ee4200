# %% [markdown]
# # Eight schools: when a sampler says no
#
# In eight American schools pupils were coached for a test, the SAT-V. For each school there is an estimate of what
# the coaching did to the scores, with its standard error. How much did it help, and did it help more in some schools
# than in others?
#
# It is the most famous small data set of Bayesian statistics, because the obvious model of it goes wrong in an
# instructive way. We write that model, watch the sampler fail, find out where and why, and mend it.
#
# The data: D. B. Rubin, *Estimation in parallel randomized experiments*, Journal of Educational Statistics 6, 1981.

# %% The data
import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

from genmlx import gen, normal, nuts, predictive, seed, trace
from genmlx.dist import half_cauchy, iid

schools = list("ABCDEFGH")
effects = mx.array([28.0, 8, -3, 7, -1, 1, 18, 12])  # points on the test
errors = mx.array([15.0, 10, 16, 11, 9, 11, 10, 18])
y, sigma = np.array(effects), np.array(errors)

fig, ax = plt.subplots(figsize=(7, 3))
ax.errorbar(y, range(8), xerr=sigma, fmt="o", color="black")
ax.axvline(np.average(y, weights=sigma**-2.0), color="tab:blue", linestyle=":", label="precision-weighted mean")
ax.set(yticks=range(8), yticklabels=schools, xlabel="effect of coaching (points, ± one standard error)")
ax.invert_yaxis()
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# School A looks splendid and school C looks harmed, but the bars are long. Two quick answers are both poor. "Believe
# each school by itself" takes noise for fact. "All schools are alike" cannot be known beforehand.
#
# ## The model
#
# The answer in between lets the data decide how alike the schools are. Each has an effect `theta` of its own, drawn
# from a population with mean `mu` and spread `tau`. If `tau` is small, the schools are alike.


# %% The model, centred
@gen
def centred(errors):
    mu = trace("mu", normal(0, 5))
    tau = trace("tau", half_cauchy(5.0))
    theta = trace("theta", iid(normal(mu, tau), 8))
    trace("y", normal(theta, errors))


# %% [markdown]
# One run of it is one world that we hold possible before we see the data: a mean, a spread, eight true effects, and
# eight estimates of them.

# %% One world
seed(1981)
world = centred(errors).simulate()
world

# %%
world["theta"], world["y"]

# %% [markdown]
# ## Inference, first attempt
#
# The no-U-turn sampler needs nothing but the model and the data. `max_depth=6` keeps its trajectories below 64 steps,
# so that we do not wait long for a run that fails.

# %% NUTS, centred genmlx={"timeout": 600}
observed = {"y": effects}
first = nuts(centred(errors), observed, warmup=200, draws=500, max_depth=6)
first.summary()

# %% [markdown]
# Read the lines with an exclamation mark before any number above them. R-hat compares the chains with each other; the
# effective sample size says how many independent draws these draws are worth. A *divergence* is a trajectory on which
# the energy, which should stay as it is, ran away: the steps were too long for the place where it was.

# %% How it went
diverging = np.array(first.stats["diverging"])
for chain in range(first.chains):
    smallest = np.array(first["tau"])[chain].min()
    print(f"chain {chain}: {diverging[chain].sum():3} of {first.draws} draws diverged; tau never below {smallest:.2f}")

# %% [markdown]
# ## Where it went wrong
#
# Divergences are not noise. They happen somewhere, and the place explains them. Here is `tau` against the effect of
# school A; the orange draws come from divergent trajectories. Beside it is the path of `tau` in each chain.

# %% Where the divergences sit
log_tau, theta_a = np.log(np.array(first["tau"])), np.array(first["theta"])[..., 0]


def funnel(ax, theta, log_tau, diverging, title):
    ax.plot(theta[~diverging], log_tau[~diverging], ".", color="tab:blue", markersize=3, alpha=0.4)
    ax.plot(theta[diverging], log_tau[diverging], ".", color="tab:orange", markersize=5, label="divergent")
    ax.set(xlabel="effect of school A (points)", title=title, xlim=(-25, 45), ylim=(-6, 4.5))
    ax.legend(loc="lower right", markerscale=2)


fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
funnel(left, theta_a, log_tau, diverging, "Where the trajectories broke")
left.set_ylabel("log tau")
for chain in log_tau:
    right.plot(chain, linewidth=0.6)
right.set(xlabel="draw", title="The four chains")
plt.show()

# %% [markdown]
# They crowd at the bottom. When `tau` is small, the model holds all eight effects close to `mu`, so the posterior is
# a funnel: it narrows to a neck, of which we see the beginning. One step size must serve the wide mouth and the neck,
# and in the neck it is too long. A chain that gets in hardly moves, which is where its path above is flat. Most of
# the time none gets in. So small values of `tau` are missing, or come in clumps, and every number in the table is
# suspect.
#
# More draws would not help. Shorter steps get further in, and cost more, but the neck has no end.
#
# ## An edit
#
# The geometry is ours to choose. Instead of the effects, draw their *standardised* distances from the mean, and
# compute the effects. It is the same distribution of `mu`, `tau` and the data, but in these coordinates the prior has
# no funnel. Only the line of `theta` changes.


# %% The model, non-centred
@gen
def non_centred(errors):
    mu = trace("mu", normal(0, 5))
    tau = trace("tau", half_cauchy(5.0))
    theta = mu + tau * trace("z", iid(normal(0, 1), 8))
    trace("y", normal(theta, errors))


# %% NUTS, non-centred genmlx={"timeout": 600}
second = nuts(non_centred(errors), observed, target_accept=0.95, warmup=200, draws=500)
second.summary()

# %% [markdown]
# Four chains of the same length, with the shorter steps that the warning asked for, which by themselves would not
# have helped. No complaint. `z` has no meaning of its own, so we compute the effects draw by draw.

# %% The two side by side
mu, tau = np.array(second["mu"]), np.array(second["tau"])
theta = mu[..., None] + tau[..., None] * np.array(second["z"])
broken = np.array(second.stats["diverging"])

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
funnel(left, theta_a, log_tau, diverging, f"Centred: {diverging.sum()} divergences")
funnel(right, theta[..., 0], np.log(tau), broken, f"Non-centred: {broken.sum()} divergences")
left.set_ylabel("log tau")
plt.show()

# %% [markdown]
# The sampler now reaches deep into the neck, and nothing breaks there.
#
# ### What it should be
#
# This model is small enough to be sure. Given `tau`, all the rest is normal: `mu` can be integrated out by hand, and
# what is left is a curve over `tau`, which a computer sums up.

# %% The exact answer
grid = np.exp(np.linspace(-12, 8, 4001))
variance = sigma**2 + grid[:, None] ** 2  # of an estimate, given mu and tau
precision = 1 / 25 + (1 / variance).sum(axis=1)
mu_given_tau = (y / variance).sum(axis=1) / precision
log_likelihood_of_tau = 0.5 * (
    -np.log(variance).sum(axis=1) - (y**2 / variance).sum(axis=1) - np.log(precision) + precision * mu_given_tau**2
)
weight = np.exp(log_likelihood_of_tau) / (1 + (grid / 5) ** 2) * grid  # the last factor: the grid is even in log tau
weight /= weight.sum()
exact = {"mu": float(weight @ mu_given_tau), "tau": float(weight @ grid)}

print("          exact   centred         non-centred")
for name, truth in exact.items():
    told = [f"{p.mean(name).item():6.2f} ± {float(p.mcse(name)):.2f}" for p in (first, second)]
    print(f"{name:<6} {truth:8.2f}   {'   '.join(told)}")

fig, ax = plt.subplots(figsize=(7, 3.5))
bins = np.linspace(-6, 4.5, 43)
ax.hist(log_tau.ravel(), bins, density=True, histtype="step", color="tab:orange", label="centred")
ax.hist(np.log(tau).ravel(), bins, density=True, histtype="step", color="tab:blue", label="non-centred")
ax.plot(np.log(grid), weight / np.log(grid[1] / grid[0]), color="black", linewidth=1, label="exact")
ax.set(xlim=(-6, 4.5), xlabel="log tau", ylabel="density", title="What each run says about the spread")
ax.legend(loc="upper left")
plt.show()

# %% tags=["test"]
assert diverging.any() and first.summary().warnings
assert broken.sum() == 0 and not second.summary().warnings
for name, truth in exact.items():
    assert abs(second.mean(name).item() - truth) < 4 * float(second.mcse(name)), (name, truth)

# %% [markdown]
# ## Does the model fit?
#
# A model that converged may still be wrong. `predictive` draws new estimates for the same schools, one set for each
# draw of the posterior. If the real ones look strange among them, the model has missed something. We look at the
# largest, the smallest, and the spread.

# %% Posterior predictive check
replicated = np.array(predictive(non_centred(errors), second)["y"]).reshape(-1, 8)
checks = {"largest": np.max, "smallest": np.min, "standard deviation": np.std}
fig, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for ax, (title, statistic) in zip(axes, checks.items()):
    drawn = statistic(replicated, axis=1)
    ax.hist(drawn, 50, color="tab:blue", alpha=0.5)
    ax.axvline(statistic(y), color="black", label="the data")
    ax.set(title=f"{title}: {np.mean(drawn > statistic(y)):.0%} are above", xlabel="points", yticks=[])
axes[0].legend()
plt.show()

# %% [markdown]
# Nothing strange: eight schools like these are what the model expects.
#
# ## The answer
#
# The black bars are the estimates of the schools by themselves, the blue ones what the model makes of them: 90%
# intervals both. Every school is drawn towards the middle, and the uncertain ones most.

# %% The eight schools, pooled
low, middle, high = np.quantile(theta.reshape(-1, 8), [0.05, 0.5, 0.95], axis=0)
place = np.arange(8)
fig, ax = plt.subplots(figsize=(7, 4))
ax.errorbar(y, place - 0.13, xerr=1.645 * sigma, fmt="o", color="black", markersize=4, label="alone")
ax.errorbar(middle, place + 0.13, xerr=[middle - low, high - middle], fmt="o", color="tab:blue", label="pooled")
ax.axvline(0, color="grey", linewidth=0.5)
ax.set(yticks=place, yticklabels=schools, xlabel="effect of coaching (points, 90% intervals)")
ax.invert_yaxis()
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# And a school that nobody has tried? It has a `mu` and a `tau` like the others, and an effect of its own. That is
# another model; `predictive` takes from the posterior what the two have in common (`strict=False` allows that `z` is
# not among it) and draws the rest.


# %% A ninth school
@gen
def ninth_school():
    mu = trace("mu", normal(0, 5))
    tau = trace("tau", half_cauchy(5.0))
    trace("theta", normal(mu, tau))


ninth = np.array(predictive(ninth_school(), second, strict=False)["theta"])
print(f"coaching helps on average            {np.mean(mu > 0):.0%}")
print(f"coaching helps in school A           {np.mean(theta[..., 0] > 0):.0%}")
print(f"school A gains more than school C    {np.mean(theta[..., 0] > theta[..., 2]):.0%}")
print(f"coaching helps in a ninth school     {np.mean(ninth > 0):.0%}")
print(f"its effect, 90% interval             {np.quantile(ninth, 0.05):.0f} to {np.quantile(ninth, 0.95):.0f} points")

# %% [markdown]
# Coaching probably helps a little, and probably nobody should bet on which school does it best.
#
# What to do when a sampler complains: read its warnings first; plot where the divergences sit; then change the
# coordinates, not the number of draws. Where groups have little data each, as here, the non-centred form is the one
# to try; with much data in each group it is the other way round.
