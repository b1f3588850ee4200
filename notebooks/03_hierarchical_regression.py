# %% [markdown]
# # Radon in Minnesota: what a county with one house can learn from the others
#
# Radon is a radioactive gas that seeps from the ground into houses, and causes lung cancer. In the 1980s the US
# Environmental Protection Agency measured it in thousands of houses. In which counties of Minnesota should people
# worry?
#
# Some counties have a hundred measured houses, some have one. A hierarchical regression is the tool for that: each
# county has a line of its own, and the lines are drawn from a population that is learned too.
#
# The data: State Residential Radon Survey, US EPA (public domain), with county uranium from the US National Uranium
# Resource Evaluation, as used by A. Gelman and J. Hill, *Data Analysis Using Regression and Multilevel/Hierarchical
# Models*, Cambridge, 2007, chapter 12.

# %% The data
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

from genmlx import gen, log_likelihood, normal, nuts, predictive, seed, trace
from genmlx.diagnostics import psis, summarize
from genmlx.dist import half_normal, iid

folder = Path(__file__).parent if "__file__" in globals() else Path()
with open(folder / "data" / "radon.csv") as file:
    rows = list(csv.DictReader(file))

names = list(dict.fromkeys(row["county"] for row in rows))
houses = np.array([names.index(row["county"]) for row in rows])  # the county of each house
on_floor = np.array([float(row["floor"]) for row in rows])  # measured in the basement: 0, on the first floor: 1
radon = np.array([float(row["radon"]) for row in rows])  # picocuries per litre
y = np.log(np.where(radon > 0, radon, 0.1))  # a few read 0.0
n = np.bincount(houses)

print(f"{len(rows)} houses in {len(names)} counties: {n.min()} to {n.max()} in each, {np.median(n):.0f} in the median")
print(f"{np.mean(radon > 4):.0%} of the houses are above 4 pCi/L, where the EPA says that something should be done")
print(f"measured on the first floor: {on_floor.sum():.0f} houses; read as 0.0: {(radon == 0).sum()}")

# %% [markdown]
# ## Two quick answers
#
# *Complete pooling*: one line for all houses, counties are ignored. *No pooling*: a level for each county by itself,
# and least squares for the effect of the floor. Here is what the second one says of each county, against the number
# of houses that it rests on.

# %% Complete pooling and no pooling
pooled_effect, pooled_level = np.polyfit(on_floor, y, 1)


def county_mean(x):
    return np.bincount(houses, x) / n


own_y, own_floor = y - county_mean(y)[houses], on_floor - county_mean(on_floor)[houses]
alone_effect = own_floor @ own_y / (own_floor @ own_floor)
alone = county_mean(y - alone_effect * on_floor)
residual = np.std(y - alone[houses] - alone_effect * on_floor)


def levels(ax, middle, low, high, title):
    ax.errorbar(n, middle, yerr=[middle - low, high - middle], fmt="o", color="tab:blue", markersize=3, linewidth=0.7)
    ax.axhline(pooled_level, color="black", linestyle="--", linewidth=1, label="complete pooling")
    ax.set(xscale="log", xlabel="houses in the county", title=title, ylim=(-0.6, 3.6))
    ax.set_xticks([1, 10, 100], ["1", "10", "100"])


fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
levels(ax, alone, alone - residual / np.sqrt(n), alone + residual / np.sqrt(n), "No pooling")
ax.set_ylabel("log radon in a basement, ± 1 s.e.")
ax.legend()
plt.show()

# %% [markdown]
# The counties that look best and worst are those with the fewest houses. That is not geology; it is noise. But the
# dashed line, which denies any difference, is no answer either: counties with many houses differ from it by far more
# than their bars.
#
# ## The model
#
# Each county has a level (log radon in the basement) and an effect of the floor. Both come from a population with a
# mean and a spread, and the spreads decide how much the counties learn from each other. It is written in the
# non-centred way, because most counties have little data: the sampler sees standardised distances from the mean.


# %% The model
counties = len(names)


@gen
def radon_model(county, floor):
    level = trace("level", normal(0, 2))
    effect = trace("effect", normal(0, 2))
    level_spread = trace("level_spread", half_normal(1))
    effect_spread = trace("effect_spread", half_normal(1))
    noise = trace("noise", half_normal(1))
    levels = level + level_spread * trace("level_z", iid(normal(0, 1), counties))
    effects = effect + effect_spread * trace("effect_z", iid(normal(0, 1), counties))
    trace("y", normal(levels[county] + effects[county] * floor, noise))


# %% [markdown]
# One run of it is one Minnesota that we hold possible before we look. Are those priors sane? In picocuries:

# %% One Minnesota
seed(919)
county, floor = mx.array(houses), mx.array(on_floor.astype(np.float32))
call = radon_model(county, floor)
world = call.simulate()
print(f"one world: a basement has {mx.exp(world['level']).item():.2g} pCi/L, and counties differ by a factor of "
      f"{mx.exp(world['level_spread']).item():.2g}")
worlds = np.exp(np.array(call.vsimulate(500)["y"]))
print(f"500 worlds: half of all houses between {np.quantile(worlds, 0.25):.2g} and {np.quantile(worlds, 0.75):.2g}, "
      f"99% below {np.quantile(worlds, 0.99):.2g}")

# %% [markdown]
# Wide, but not absurd: the data will speak.
#
# ## Inference
#
# The z's vary by about one, the population by a few hundredths. Until the sampler has learned these scales it has to
# make very long trajectories; `max_depth` cuts them at 31 steps. Afterwards they are far shorter than that.

# %% NUTS genmlx={"timeout": 600}
observed = {"y": mx.array(y.astype(np.float32))}
first = nuts(call, observed, warmup=200, draws=300, max_depth=5)
population = ["level", "effect", "level_spread", "effect_spread", "noise"]
summarize({name: first[name] for name in population}, first.stats)

# %% [markdown]
# Where the table complains, it is because the draws are few. The spread of the effects is known worst, for few counties
# have houses measured on both floors. For a first look this will do; the model that we keep gets more draws.
#
# ## Partial pooling
#
# The county levels, draw by draw, in the same picture as before. The dots with few houses have moved to the
# population: that is shrinkage. Those with many have stayed.


# %% Shrinkage
def draws_of(post, name):
    """The draws of all chains, ``[draws, *event]``."""
    values = np.array(post[name])
    return values.reshape(-1, *values.shape[2:])


def by_county(post, name):
    """Each county's deviation from the population put back, ``[draws, counties]``."""
    spread, z = draws_of(post, f"{name}_spread"), draws_of(post, f"{name}_z")
    return draws_of(post, name)[:, None] + spread[:, None] * z


first_levels, first_effects = by_county(first, "level"), by_county(first, "effect")

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), sharey=True, layout="constrained")
levels(left, alone, alone - residual / np.sqrt(n), alone + residual / np.sqrt(n), "No pooling")
levels(right, first_levels.mean(0), *np.quantile(first_levels, [0.16, 0.84], axis=0), "Partial pooling")
left.set_ylabel("log radon in a basement")
left.legend()
plt.show()

# %% [markdown]
# And the lines of eight counties. Where there is one house, the line is nearly that of the state; where there are
# many, nearly the county's own.

# %% Eight counties
shown = ["Lac qui Parle", "Aitkin", "Koochiching", "Douglas", "Clay", "Stearns", "Ramsey", "St. Louis"]
fig, axes = plt.subplots(2, 4, figsize=(10, 5), sharex=True, sharey=True, layout="constrained")
ends = np.array([0, 1])
jitter = np.random.default_rng(0).uniform(-0.05, 0.05, len(y))
for ax, name in zip(axes.flat, shown):
    j = names.index(name)
    these = houses == j
    ax.plot(on_floor[these] + jitter[these], y[these], ".", color="grey", markersize=4)
    ax.plot(ends, pooled_level + pooled_effect * ends, "--", color="black", linewidth=1, label="complete pooling")
    ax.plot(ends, alone[j] + alone_effect * ends, ":", color="black", linewidth=1.2, label="no pooling")
    line = first_levels[:, j].mean() + first_effects[:, j].mean() * ends
    ax.plot(ends, line, color="tab:blue", label="partial pooling")
    ax.set(title=f"{name} ({n[j]})", xticks=ends, xticklabels=["basement", "first floor"], xlim=(-0.3, 1.3))
axes[0, 0].set_ylabel("log radon")
axes[1, 0].set_ylabel("log radon")
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# ## Doubt
#
# The model says that counties differ for no reason. But radon comes from uranium, and how much uranium is in the
# ground was measured from aeroplanes. Are the levels that we found related to it?

# %% County levels and uranium
uranium = np.log(np.array([next(float(row["uranium"]) for row in rows if row["county"] == name) for name in names]))


def against_uranium(ax, levels, title):
    middle, (low, high) = levels.mean(0), np.quantile(levels, [0.16, 0.84], axis=0)
    bars = [middle - low, high - middle]
    ax.errorbar(uranium, middle, yerr=bars, fmt="o", color="tab:blue", markersize=3, linewidth=0.7)
    ax.set(xlabel="log uranium in the county's ground", title=title)


fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
against_uranium(ax, first_levels, "What the model took for chance")
ax.set_ylabel("log radon in a basement")
plt.show()
print(f"correlation {np.corrcoef(uranium, first_levels.mean(0))[0, 1]:.2f}")

# %% [markdown]
# ## An edit
#
# So the mean of a county's level is a line in its uranium. One choice more, and one term.


# %% The model with uranium
@gen
def uranium_model(county, floor, uranium):
    level = trace("level", normal(0, 2))
    effect = trace("effect", normal(0, 2))
    slope = trace("slope", normal(0, 2))
    level_spread = trace("level_spread", half_normal(1))
    effect_spread = trace("effect_spread", half_normal(1))
    noise = trace("noise", half_normal(1))
    levels = level + slope * uranium + level_spread * trace("level_z", iid(normal(0, 1), counties))
    effects = effect + effect_spread * trace("effect_z", iid(normal(0, 1), counties))
    trace("y", normal(levels[county] + effects[county] * floor, noise))


# %% NUTS, with uranium genmlx={"timeout": 600}
ground = mx.array(uranium.astype(np.float32))
new_call = uranium_model(county, floor, ground)
second = nuts(new_call, observed, warmup=200, draws=600, max_depth=5)
population.insert(2, "slope")
summarize({name: second[name] for name in population}, second.stats)

# %% [markdown]
# The spread of the levels is what remains when uranium is accounted for.

# %% What uranium explains
second_levels = by_county(second, "level") + draws_of(second, "slope")[:, None] * uranium
fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
against_uranium(ax, second_levels, "County levels, with uranium in the model")
ends = np.array([uranium.min(), uranium.max()])
for a, b in zip(draws_of(second, "level")[::40], draws_of(second, "slope")[::40]):
    ax.plot(ends, a + b * ends, color="tab:orange", alpha=0.1)
ax.set_ylabel("log radon in a basement")
plt.show()
for name, post in (("without uranium", first), ("with uranium", second)):
    middle, sd = post.mean("level_spread").item(), post.std("level_spread").item()
    print(f"spread of the levels {name:<16} {middle:.2f} ± {sd:.2f}")

# %% [markdown]
# ### Does it predict better?
#
# `log_likelihood` gives the log density of each house under each draw. From it follows, without refitting, how well
# each house is predicted by the others: leave-one-out cross-validation by Pareto smoothed importance sampling (Vehtari,
# Gelman and Gabry 2017). `khat` says for each house whether that can be trusted; below 0.7 it can. Above are houses
# without which the posterior would be another one.


# %% Leave-one-out
def leave_one_out(call, post):
    densities = np.array(log_likelihood(call, post)["y"]).reshape(-1, len(y)).T.astype(float)
    log_weights, khat = psis(-densities)
    return np.logaddexp.reduce(log_weights + densities, axis=1), khat


(without, khat), (with_uranium, new_khat) = leave_one_out(call, first), leave_one_out(new_call, second)
gain = with_uranium - without
gain_error = gain.std() * np.sqrt(len(gain))
for title, score, shape in (("without uranium", without, khat), ("with uranium", with_uranium, new_khat)):
    print(f"log score {title:<15} {score.sum():8.1f}; khat above 0.7 where radon was read as {radon[shape > 0.7]}")
print(f"gained                    {gain.sum():8.1f} ± {gain_error:.1f}")

# %% [markdown]
# ### Does it fit?
#
# New measurements of the same houses, one set for each draw. How many are above 4 pCi/L, in basements and on first
# floors? And how many are almost nothing?

# %% Posterior predictive check
replicated = np.array(predictive(new_call, second)["y"]).reshape(-1, len(y))
checks = {
    "basements above 4 pCi/L": lambda y: np.sum(y[..., on_floor == 0] > np.log(4), axis=-1),
    "first floors above 4 pCi/L": lambda y: np.sum(y[..., on_floor == 1] > np.log(4), axis=-1),
    "houses below 0.25 pCi/L": lambda y: np.sum(y < np.log(0.25), axis=-1),
}
fig, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
tails = {}
for ax, (title, statistic) in zip(axes, checks.items()):
    drawn, seen = statistic(replicated), statistic(y)
    tails[title] = min(np.mean(drawn >= seen), np.mean(drawn <= seen))
    width = 1 + np.ptp(drawn) // 30
    ax.hist(drawn, np.arange(drawn.min() - 0.5, drawn.max() + 0.5 + width, width), color="tab:blue", alpha=0.5)
    ax.axvline(seen, color="black", label="the data")
    ax.set(title=title, yticks=[])
axes[0].legend()
plt.show()
for title, tail in tails.items():
    print(f"{title:<27} as far out: {tail:.1%}")

# %% [markdown]
# The first two look right. The third shows where the model ends: it hardly ever makes as many tiny readings as there
# are. Some of them are the zeros, which we turned into 0.1 by decree. What they say is that the instrument found
# nothing, and a model of houses with almost no radon would begin with the instrument. For the question of large
# values they hardly matter.
#
# ## The answer
#
# Where would a basement be above 4 pCi/L? That is about a new house in each county. The model with other arguments is
# another call, and `predictive` takes it.

# %% A new basement in each county
new_houses = uranium_model(mx.arange(counties), mx.zeros(counties), ground)
new = np.array(predictive(new_houses, second)["y"]).reshape(-1, counties)
risk = np.mean(new > np.log(4), axis=0)
order = np.argsort(-risk)
for j in [*order[:5], *order[-5:]]:
    seen = np.mean(radon[(houses == j) & (on_floor == 0)] > 4) if np.any((houses == j) & (on_floor == 0)) else np.nan
    print(f"{names[j]:<18} {risk[j]:4.0%} of basements    of those measured {seen:4.0%}; {n[j]:3} houses")

fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
points = ax.scatter(np.exp(uranium), risk, s=4 + 3 * n, color="tab:blue", alpha=0.5, linewidth=0)
ax.set(xlabel="uranium in the ground (ppm)", ylabel="basements above 4 pCi/L", ylim=(0, 1))
ax.set_title("Each dot is a county, its area the number of houses")
plt.show()

# %% tags=["test"]
assert all(second.rhat(name) < 1.02 for name in population)
assert second.stats["reached_max_depth"].sum().item() == 0
assert second.mean("level_spread").item() < 0.6 * first.mean("level_spread").item()
assert gain.sum() > gain_error

# %% [markdown]
# Where the ground has much uranium, most basements should be looked at, also in counties where nobody has measured
# more than a house or two; and there the number comes from the other counties, which is what the hierarchy is for.
