# %% [markdown]
# # How far does a car roll? A first model
#
# In the 1920s somebody drove fifty cars, braked, and measured how far each one rolled. We fit a line through
# those fifty points, twice: by importance sampling, and by Markov chain Monte Carlo. A line is a case
# where the right answer can be computed, so at the end of each part a cell checks what came out.
#
# The data are R's `cars`: M. Ezekiel, *Methods of Correlation Analysis*, Wiley, 1930.

# %% The data
import csv
import math
from pathlib import Path

import matplotlib.pyplot as plt
import mlx.core as mx

from genmlx import exponential, gen, importance_sampling, log_normal, mh, normal, seed, select, trace
from genmlx.diagnostics import mcse

folder = Path(__file__).parent if "__file__" in globals() else Path()
with open(folder / "data" / "cars.csv") as file:
    rows = list(csv.DictReader(file))

speed = mx.array([float(row["speed"]) for row in rows])  # miles per hour
distance = mx.array([float(row["dist"]) for row in rows])  # feet
mean_speed = mx.mean(speed).item()
print(f"{len(rows)} cars, mean speed {mean_speed:.1f} mph, mean distance {mx.mean(distance).item():.2f} ft")

# %% [markdown]
# ## The model
#
# A model is a Python function. `trace(address, distribution)` makes a random choice and gives it a name. Speeds
# are counted from their mean, so that the intercept is the distance at a typical speed; that is easier to have
# an opinion about than the distance at speed zero, and it keeps slope and intercept apart in the posterior.
#
# The last line makes one choice for all fifty distances: parameters that are arrays give an array.


# %% The model
@gen
def stopping(speed):
    slope = trace("slope", normal(0, 5))  # feet for each mile per hour
    intercept = trace("intercept", normal(40, 20))  # feet, at the mean speed
    noise = trace("noise", exponential(0.05))  # feet; 20 on average
    line = slope * (speed - mean_speed) + intercept
    trace("distance", normal(line, noise))


# %% [markdown]
# `stopping(speed)` does not run the model. It is a *call*, the model with its arguments; `simulate` runs it. The
# result is a trace: the choices that were made, and the log probability of making them.

# %% One run of the model
seed(1930)
call = stopping(speed)
tr = call.simulate()
tr.choices.filter(select("slope", "intercept", "noise"))

# %%
tr.score

# %% [markdown]
# ## Importance sampling
#
# Draw many lines from the prior, weight each one by how well it explains the observations. It needs nothing but the
# model. It also estimates the evidence, the probability of the data under the model with all lines averaged out.

# %% Importance sampling
observed = {"distance": distance}
particles = importance_sampling(call, observed, particles=200_000)
print(f"log evidence           {particles.log_ml.item():8.2f}")
print(f"effective sample size  {particles.ess.item():8.0f} of 200000")
for address in ("slope", "intercept", "noise"):
    print(f"{address:<22} {particles.mean(address).item():8.2f}")

# %% [markdown]
# Few of the lines were any good: that is what the effective sample size says.
#
# ### What it should be
#
# For a given noise the posterior of a line is a normal distribution in closed form, and so is the evidence; only the noise is left
# to be integrated, and one dimension is easy.

# %% The exact answer
def log_normal_density(x, mean, variance):
    return -0.5 * math.log(2 * math.pi * variance) - (x - mean) ** 2 / (2 * variance)


def exact(xs, ys):
    """Posterior means of slope, intercept and noise, and the log evidence, by a sum over the noise."""
    n, y_mean = len(xs), sum(ys) / len(ys)
    xx = sum(x * x for x in xs)
    least_squares = sum(x * y for x, y in zip(xs, ys, strict=True)) / xx
    rss = sum((y - y_mean - least_squares * x) ** 2 for x, y in zip(xs, ys, strict=True))
    step, terms = 0.01, []
    for i in range(500, 6000):
        s = i * step
        slope_variance, intercept_variance = s * s / xx, s * s / n
        log_joint = (
            math.log(0.05) - 0.05 * s
            + log_normal_density(least_squares, 0, 25 + slope_variance) - 0.5 * math.log(xx)
            + log_normal_density(y_mean, 40, 400 + intercept_variance) - 0.5 * math.log(n)
            - 0.5 * (n - 2) * math.log(2 * math.pi * s * s) - rss / (2 * s * s)
        )
        slope = least_squares * 25 / (25 + slope_variance)
        intercept = (y_mean * 400 + 40 * intercept_variance) / (400 + intercept_variance)
        terms.append((log_joint, {"slope": slope, "intercept": intercept, "noise": s}))
    top = max(log_joint for log_joint, _ in terms)
    weights = [math.exp(log_joint - top) for log_joint, _ in terms]
    means = {a: sum(w * m[a] for w, (_, m) in zip(weights, terms)) / sum(weights) for a in terms[0][1]}
    return means, top + math.log(sum(weights) * step)


exact_means, exact_log_ml = exact((speed - mean_speed).tolist(), distance.tolist())
print(f"log evidence           {exact_log_ml:8.2f}")
for address, value in exact_means.items():
    print(f"{address:<22} {value:8.2f}")

# %% tags=["test"]
# Four standard errors: the evidence has a relative error of one over the root of the effective sample size.
ess = particles.ess.item()
assert ess > 30
assert abs(particles.log_ml.item() - exact_log_ml) < 4 / math.sqrt(ess)

# %% [markdown]
# ## Markov chain Monte Carlo
#
# Better: start somewhere and walk. A proposal is a generative function too. It sees the current trace and suggests new values at
# the addresses of the model; `mh` works out the acceptance ratio, also for the noise, whose steps are not symmetric.


# %% A random walk
@gen
def step(tr):
    trace("slope", normal(tr["slope"], 0.6))
    trace("intercept", normal(tr["intercept"], 3.0))
    trace("noise", log_normal(mx.log(tr["noise"]), 0.15))


post = mh(call, observed, proposal=step, draws=2500, warmup=500, chains=8)
post.summary()

# %% tags=["test"]
for address, value in exact_means.items():
    assert post.rhat(address) < 1.05
    error = abs(post.mean(address).item() - value)
    assert error < 4 * float(mcse(post[address])), (address, error)

# %% [markdown]
# Each draw is a line. Here are a hundred of them among the cars; the band that they make is what we know.

# %% The cars and a hundred lines
fig, ax = plt.subplots(figsize=(7, 4))
ends = [4.0, 25.0]
slopes, intercepts = mx.flatten(post["slope"]).tolist(), mx.flatten(post["intercept"]).tolist()
for slope, intercept in zip(slopes[::200], intercepts[::200]):
    ax.plot(ends, [slope * (x - mean_speed) + intercept for x in ends], color="tab:blue", alpha=0.1)
ax.plot(speed.tolist(), distance.tolist(), "o", color="black", markersize=4)
ax.set(xlabel="speed (mph)", ylabel="stopping distance (ft)", title="Fifty cars, a hundred plausible lines")
plt.show()
