# %% [markdown]
# # Paying for a posterior in advance
#
# A laboratory measures the same twelve points over and over, for one sample after another, and wants a straight line
# through each series at once. Now and then a measurement is far off. So the noise is a Cauchy distribution, which
# does not mind a few gross errors; there is no formula for the posterior then, and Markov chains would have to be run
# for each series.
#
# Instead we let a neural network practise. The model can make up as many series as we like, each with the slope and
# the level that it was made from. A guide that has learnt to guess them back from made-up series can do so for a real
# one, in no time: the cost was paid in training (Stuhlmüller, Taylor and Goodman 2013; Cranmer, Brehmer and Louppe
# 2020).

# %% The model
# %load_ext genmlx
import time

import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from genmlx import cauchy, importance_sampling, lecture, neural, normal, nuts, seed, splice, trace, train

seed(0)
mx.random.seed(0)
xs = mx.array(np.linspace(0.0, 2.0, 12), dtype=mx.float32)


# %%
# %%gen --check
def series():
    slope ~ normal(0.0, 1.0)
    level ~ normal(0.0, 1.0)
    ys ~ cauchy(level + slope * xs, 0.15)


# %% What it makes up
made_up = series().vsimulate(6, key=1)
fig, axes = plt.subplots(1, 6, figsize=(11, 2), layout="constrained", sharey=True)
for i, ax in enumerate(axes):
    ax.plot(xs, made_up["ys"][i], "o", markersize=3)
    ax.plot(xs, made_up["level"][i] + made_up["slope"][i] * xs, linewidth=1)
plt.show()

# %% [markdown]
# ## The guide
#
# The network turns twelve measurements into five numbers: where the slope is and how uncertain; and where the level is
# once the slope is known, and how uncertain. The level follows the slope since the two are correlated: a line that is
# too steep starts too low. The network sees the `arcsinh` of each measurement, which is about that of its number of
# digits where it is large, and its answers become standard deviations by way of a function that is never 0.

# %%
width = 64
network = neural(
    nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5)), "network"
)


def positive(x):
    return 0.01 + mx.logaddexp(x, 0.0)


# %% The guide
# %%gen --check (made_up["ys"][0])
def guess(ys):
    about = splice(network(mx.arcsinh(ys)))
    slope ~ normal(about[0], positive(about[1]))
    level ~ normal(about[2] + about[3] * slope, positive(about[4]))


# %% [markdown]
# `lecture` simulates series and gives the mean log density of the guide at what they were made from; `train` makes it
# as large as it gets. What the guide then is comes as near to all posteriors as its form allows.


# %% Training on 200 new series in each step
def lesson(key):
    return lecture(series(), lambda choices: guess(choices["ys"]), 200, key)


start = time.perf_counter()
result = train(lesson, iterations=2000, learning_rate=optim.cosine_decay(5e-3, 2000), key=1)
taken = time.perf_counter() - start
print(f"{result}, {taken:.1f} s")

fig, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
ax.plot(np.array(result.history), linewidth=0.7)
ax.set(xlabel="step", ylabel="mean log density", ylim=(-3, 1.5))
plt.show()

# %% tags=["test"]
history = np.array(result.history)
assert history[:10].mean() < -1.5 and history[-200:].mean() > 0.4

# %% [markdown]
# ## Four series
#
# An ordinary one; one with a gross error; one with two; one that the model would seldom make up, far from its prior.
# The guide answers at once. Beside it, NUTS on each.

# %% The data
rng = np.random.default_rng(5)
noise = 0.15 * rng.standard_cauchy((4, 12)).clip(-3, 3)
data = np.array([[0.5], [0.5], [1.0], [-1.8]]) * np.array(xs) + np.array([[0.2], [0.2], [-1.0], [1.5]]) + noise
data[1, 9] += 4.0
data[2, [2, 5]] -= 3.0
titles = ["ordinary", "one gross error", "two", "far out"]

# %% The guide's posterior and that of NUTS
n = 4000
start = time.perf_counter()
guessed = [guess(mx.array(ys, dtype=mx.float32)).vsimulate(n, key=2) for ys in data]
guesses = [{name: np.array(draws[name]) for name in ("slope", "level")} for draws in guessed]
at_once = time.perf_counter() - start

start = time.perf_counter()
posts = [nuts(series(), {"ys": ys}, draws=500, warmup=300, chains=4, key=3) for ys in data]
by_chains = time.perf_counter() - start
print(f"four posteriors: guide {at_once:.3f} s, NUTS {by_chains:.1f} s")

print(f"{'':>16}  {'slope: guide':>15}  {'NUTS':>15}    {'level: guide':>15}  {'NUTS':>15}")
for title, guessed_now, post in zip(titles, guesses, posts):
    cells = []
    for name in ("slope", "level"):
        cells.append(f"{guessed_now[name].mean():6.2f} ± {guessed_now[name].std():5.3f}  ")
        cells.append(f"{post.mean(name).item():6.2f} ± {post.std(name).item():5.3f}    ")
    print(f"{title:>16}  " + "".join(cells))

fig, axes = plt.subplots(2, 4, figsize=(11, 4.6), layout="constrained")
for i, title in enumerate(titles):
    line, cloud = axes[:, i]
    line.plot(xs, data[i], "o", markersize=3, color="black")
    for k in range(40):
        line.plot(xs, guesses[i]["level"][k] + guesses[i]["slope"][k] * np.array(xs), color="tab:blue", alpha=0.1)
    line.set_title(title, fontsize=10)
    exact = [np.array(posts[i][name]).ravel() for name in ("slope", "level")]
    cloud.plot(*exact, ".", markersize=1, color="tab:orange", label="NUTS")
    cloud.plot(guesses[i]["slope"][:2000], guesses[i]["level"][:2000], ".", markersize=1, alpha=0.5, label="guide")
    cloud.set(xlabel="slope", ylabel="level" if i == 0 else "")
cloud.legend(markerscale=8, fontsize=8)
plt.show()

# %% tags=["test"]
for guessed_now, post in zip(guesses, posts):
    for name in ("slope", "level"):
        sd = post.std(name).item()
        assert float(post.rhat(name)) < 1.02
        assert abs(guessed_now[name].mean() - post.mean(name).item()) < 0.6 * sd
        assert 0.6 < guessed_now[name].std() / sd < 1.6
    together = np.corrcoef(guessed_now["slope"], guessed_now["level"])[0, 1]
    exact = np.corrcoef(np.array(post["slope"]).ravel(), np.array(post["level"]).ravel())[0, 1]
    assert abs(together - exact) < 0.15 and exact < -0.6

# %% [markdown]
# ## What is left to mend
#
# The guide is a normal distribution and has seen finitely many series: it is near, not exact. But its density is known,
# so its draws can be weighted. Importance sampling with the guide as the proposal takes away what error there is, and
# says by the effective number of draws how much there was.

# %% The guide as a proposal
mended = [
    importance_sampling(series(), {"ys": ys}, n, proposal=guess(mx.array(ys, dtype=mx.float32)), key=4) for ys in data
]
blind = [importance_sampling(series(), {"ys": ys}, n, key=4) for ys in data]
for title, one, other, post in zip(titles, mended, blind, posts):
    print(
        f"{title:>16}: slope {one.mean('slope').item():6.3f} (NUTS {post.mean('slope').item():6.3f}), {n} draws of the "
        f"guide are worth {one.ess.item():5.0f}, of the prior {other.ess.item():5.0f}"
    )

# %% tags=["test"]
for one, post in zip(mended, posts):
    for name in ("slope", "level"):
        sd = post.std(name).item()
        error = sd * np.sqrt(1 / one.ess.item() + 1 / float(post.ess(name)))
        assert abs(one.mean(name).item() - post.mean(name).item()) < 4 * error
assert all(one.ess.item() > 5 * other.ess.item() for one, other in zip(mended, blind))

# %% [markdown]
# ## Is it right on the whole?
#
# Of 2,000 series that the model makes up, the true slope should lie in the guide's 80% interval four times out of five,
# as it would for exact posteriors: what is uncertain must be so by the right amount.

# %% Coverage
test = series().vsimulate(2000, key=9)
about = network.module(mx.arcsinh(test["ys"]))
z = np.array((test["slope"] - about[:, 0]) / positive(about[:, 1]))
inside = np.mean(np.abs(z) < 1.2816)
print(f"true slope inside of the 80% interval: {100 * inside:.1f}%")

# %% tags=["test"]
assert abs(inside - 0.8) < 0.04

# %% [markdown]
# A guide that is trained once serves as long as the model stays. When the model changes, so do its dreams, and training
# has to be repeated. `wake_sleep` does both at a time: it learns a model's parameters from data, and its guide along.
