# %% [markdown]
# # How nervous is the economy?
#
# Every quarter the United States say by how much their economy has grown. In some decades the number jumps about, in
# others it hardly moves. The size of the jumps is nowhere written down; it has to be read off the jumps.
#
# So there is a series that we see, the growth, and one that we do not, its volatility. Growth depends on volatility
# through an exponential, and no formula gives the answer: this is what particle filters were made for.
#
# The data: real gross domestic product, 1959 to 2009, Federal Reserve Bank of St. Louis; from statsmodels.

# %% The data
# %load_ext genmlx
import csv
import math
from pathlib import Path

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

from genmlx import gamma, normal, select, trace, unfold
from genmlx.inference import growing_steps, pmmh, smc

folder = Path(__file__).parent if "__file__" in globals() else Path()
with open(folder / "data" / "gdp.csv") as file:
    rows = list(csv.DictReader(file))
gdp = np.array([float(row["gdp"]) for row in rows])
growth = 400 * np.diff(np.log(gdp))  # percent a year
jumps = growth - growth.mean()
when = np.array([int(row["year"]) + (int(row["quarter"]) - 0.5) / 4 for row in rows[1:]])
many = len(jumps)
early, late = when < 1984, (when >= 1984) & (when < 2007)
print(f"{many} quarters; mean growth {growth.mean():.2f}")
print(f"standard deviation before 1984 {jumps[early].std():.2f}, from 1984 to 2006 {jumps[late].std():.2f}")

fig, ax = plt.subplots(figsize=(9, 2.6), layout="constrained")
ax.bar(when, jumps, 0.25, color="black")
ax.set(ylabel="percent a year", title="Growth less its mean", xlim=(1959, 2010))
plt.show()

# %% [markdown]
# Economists call what happened about 1984 the great moderation. The model does not know of it. Its log variance `h`
# takes a small step each quarter, of size `wander`, in either direction; what we see is normal with that variance.

# %% A quarter
# %%gen --check (1, 2.0, 0.25)
def quarter(t, h, wander):
    h = trace("h", normal(h, wander))
    trace("jump", normal(0.0, mx.exp(h / 2)))
    return h


# %%
economy, start = unfold(quarter), 2 * math.log(4.0)  # before 1959, a standard deviation of 4

# %% [markdown]
# ## Filter
#
# A thousand particles, each a history of `h`. In each quarter every history grows by a step drawn from the model, and
# is weighted by how well it predicted the number: the bootstrap filter of 1993. `--record h` keeps what was known of
# `h` at the time.

# %% The bootstrap filter
# %infer smc economy(many, start, 0.25) | given jump=jumps --particles 1000 --record h -s 1 -o pf

# %%
# %diag pf

# %% [markdown]
# The histories have few ancestors left in 1959. That is the fate of every particle filter: it is right about now, and
# forgets how it got there. Here are the lines of descent.

# %%
# %plot pf --kind genealogy

# %% [markdown]
# With one hidden number there is a check that needs no sampling. Cut the range of `h` into three hundred points and
# compute with those, as if they were states.


# %% The same on a grid
points = np.linspace(-3.0, 7.0, 300)


def on_grid(wander):
    """The log evidence, and the mean of ``h`` at each quarter given the jumps up to it."""
    moves = np.exp(-0.5 * ((points[None] - points[:, None]) / wander) ** 2)
    moves /= moves.sum(axis=1, keepdims=True)
    now = np.exp(-0.5 * ((points - start) / wander) ** 2)
    now, log_ml, means = now / now.sum(), 0.0, []
    for t, jump in enumerate(jumps):
        now = now @ moves if t else now
        now = now * np.exp(-0.5 * (jump**2 * np.exp(-points) + points + math.log(2 * math.pi)))
        log_ml += math.log(now.sum())
        now = now / now.sum()
        means.append(now @ points)
    return log_ml, np.array(means)


exact_log_ml, exact_means = on_grid(0.25)
bands = [known["h",] for known in pf.history.recorded]
means = np.array([band.mean for band in bands])
off = np.abs(means - exact_means)
print(f"log evidence: {exact_log_ml:.2f} on the grid, {pf.log_ml.item():.2f} ± {pf.log_ml_error:.2f} by particles")
spread = np.mean([band.sd for band in bands])
print(f"mean of h: off by {off.mean():.3f} on average, at most {off.max():.3f}, of a deviation of about {spread:.2f}")

fig, ax = plt.subplots(figsize=(9, 3), layout="constrained")
low, middle, high = (np.exp(np.array([getattr(b, name) for b in bands]) / 2) for name in ("low", "median", "high"))
ax.bar(when, np.abs(jumps), 0.25, color="lightgray")
ax.fill_between(when, low, high, color="tab:blue", alpha=0.3, linewidth=0)
ax.plot(when, middle, color="tab:blue")
ax.plot(when, np.exp(exact_means / 2), ":", color="tab:orange")
ax.set(title="Standard deviation of growth: filter and 90% band, grid (dotted), and the jumps", xlim=(1959, 2010))
plt.show()

# %% tags=["test"]
assert abs(pf.log_ml.item() - exact_log_ml) < 4 * 0.3
assert off.mean() < 0.05 and off.max() < 0.3

# %% [markdown]
# The band of a quarter knows nothing of later quarters, and so it took the filter some years to believe in the
# moderation.
#
# ## A better proposal?
#
# The bootstrap filter proposes blindly. A proposal that has seen the number can aim: one step of Newton's method from
# the old `h`, with the variance of the curvature there. It is a generative function that names `h`, and the weights
# account for it.


# %% A proposal that has seen the jump
# %%gen
def aimed(t, h, jump):
    seen, prior = 0.5 * jump**2 * mx.exp(-h), 1 / 0.25**2
    trace((t, "h"), normal(h + (seen - 0.5) / (prior + seen), mx.rsqrt(prior + seen)))


# %%
def guide(tr):
    """The proposal for the quarter after those of a trace."""
    t, h = (0, start) if tr is None else (len(tr.retval), tr.retval[-1])
    return aimed(t, mx.array(h), jumps[t].item())


steps = growing_steps(economy(many, start, 0.25), {(t, "jump"): jump for t, jump in enumerate(jumps.tolist())})
first, *rest = steps
guided = smc([(*first, guide(None)), *rest], particles=1000, proposal=guide, key=mx.random.key(2))
for name, one in (("blind", pf), ("aimed", guided)):
    sizes, evidence = one.history.ess, f"log evidence {one.log_ml.item():.2f} ± {one.log_ml_error:.2f}"
    print(f"{name}: effective sizes {sizes.mean():.0f} on average, {sizes.min():.0f} at least; {evidence}")

# %% tags=["test"]
assert abs(guided.log_ml.item() - exact_log_ml) < 4 * 0.3
assert guided.history.ess.mean() > pf.history.ess.mean()

# %% [markdown]
# A little better on average, and hardly worth the trouble: a single jump says little about its own variance, so there
# is little to aim at. Proposals pay where observations are precise.
#
# ## How much does volatility wander?
#
# The evidence of a filter is an estimate of the likelihood of `wander`. Filters at seven values give a noisy curve,
# with an error that each filter knows of itself.

# %% A likelihood curve
values = np.array([0.1, 0.15, 0.2, 0.25, 0.32, 0.4, 0.5])
filters = [
    smc([(economy(t + 1, start, value), given) for t, (_, given) in enumerate(steps)], 500, key=mx.random.key(10 + i))
    for i, value in enumerate(values.tolist())
]
estimates, errors = (np.array([float(getattr(one, name)) for one in filters]) for name in ("log_ml", "log_ml_error"))
grid = np.arange(0.06, 0.8, 0.02)
curve = np.array([on_grid(value)[0] for value in grid])
at_values = np.array([on_grid(value)[0] for value in values])

fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
ax.plot(grid, curve, color="tab:orange", label="grid")
ax.errorbar(values, estimates, 2 * errors, fmt="o", color="tab:blue", markersize=3, label="filters, ± 2 errors")
ax.set(xlabel="wander", title="Log likelihood", ylim=(curve.max() - 9, curve.max() + 2))
ax.legend()
plt.show()

# %% tags=["test"]
assert np.all(np.abs(estimates - at_values) < 4 * np.maximum(errors, 0.3))

# %% [markdown]
# Particle marginal Metropolis-Hastings makes a posterior of such noise, and a correct one. A draw costs a filter, so
# only twenty are made here; somebody who wants an answer makes some thousand.


# %% A model with a parameter
# %%gen
def whole_economy(n):
    wander = trace("wander", gamma(4.0, 15.0))
    trace("quarters", economy(n, start, wander))


def near(tr):
    trace("wander", normal(tr["wander"], 0.1))


# %%
observed = {("quarters", t, "jump"): jump for t, jump in enumerate(jumps.tolist())}
post = pmmh(
    growing_steps(whole_economy(many), observed),
    select("wander"),
    near,
    draws=20,
    warmup=4,
    particles=200,
    key=mx.random.key(3),
)
draws = np.array(post["wander"]).ravel()
log_density = curve + 3 * np.log(grid) - 15 * grid
weight = np.exp(log_density - np.logaddexp.reduce(log_density))
exact_wander = weight @ grid
exact_sd = math.sqrt(weight @ (grid - exact_wander) ** 2)
print(f"wander: {exact_wander:.3f} ± {exact_sd:.3f} on the grid; twenty draws: {draws.mean():.3f} ± {draws.std():.3f}")

# %% tags=["test"]
assert abs(draws.mean() - exact_wander) < 4 * exact_sd / math.sqrt(5)

# %% [markdown]
# What has been left out: growth also has a memory of the quarter before, and its mean may have changed. Each would be a
# line in `quarter`, and a second hidden number would be the end of the grid, but not of the filter.
