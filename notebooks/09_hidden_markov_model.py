# %% [markdown]
# # A century of earthquakes: hidden states
#
# Some years have eight great earthquakes and some have forty. If they came one by one, at one rate, the number of a
# year would be Poisson, and its variance the mean. Is it?
#
# The data: earthquakes of magnitude 7 and more in the whole world, 1900 to 2006, US Geological Survey, as in Zucchini
# and MacDonald, *Hidden Markov Models for Time Series*, 2009.

# %% The data
# %load_ext genmlx
import csv
import math
from pathlib import Path

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

from genmlx import beta, categorical, normal, poisson, select, trace, unfold
from genmlx.inference import growing_steps, hmm_forward, pmmh, smc

folder = Path(__file__).parent if "__file__" in globals() else Path()
with open(folder / "data" / "earthquakes.csv") as file:
    rows = list(csv.DictReader(file))
year, counts = np.array([int(row["year"]) for row in rows]), [int(row["count"]) for row in rows]
many = len(counts)
print(f"{many} years, mean {np.mean(counts):.2f}, variance {np.var(counts, ddof=1):.2f}")


def picture(title):
    fig, ax = plt.subplots(figsize=(9, 3), layout="constrained")
    ax.plot(year, counts, ".-", color="black", linewidth=0.4, markersize=4)
    ax.set(xlabel="year", ylabel="earthquakes", title=title, xlim=(1899, 2007))
    return ax


picture("Great earthquakes")
plt.show()

# %% [markdown]
# The variance is more than twice the mean, and high years follow high years. So let there be three states of the
# earth, calm, ordinary and restless, each with a rate. A year is in the state of the year before with probability
# `stay`, otherwise in one of the other two. Which state it is in, nobody sees.
#
# The rates are about those that Zucchini and MacDonald find to be the most probable ones.

# %% A year and its hidden state
# %%gen --check (2, 1, 0.9)
rates = mx.array([13.0, 20.0, 30.0])


def one_year(t, state, stay):
    leave = (1 - stay) / 2
    moves = mx.where(mx.arange(3) == state, stay, leave)
    first = mx.full((3,), 1 / 3)
    state = trace("state", categorical(mx.log(mx.where(t == 0, first, moves))))
    trace("count", poisson(rates[state]))
    return state


# %%
century = unfold(one_year)

# %% [markdown]
# `unfold` makes a chain of it, whose addresses are `(t, "state")` and `(t, "count")`. The line
# `%infer smc century(...) | given count=counts` deals the column out to the years and lets the call grow: a hundred and
# seven steps, each with one more year and one more number. `--record state` keeps, at each step, what was known of the
# state then.

# %% The particle filter
# %infer smc century(many, 0, 0.9) | given count=counts --particles 2000 --record state -s 1 -o pf

# %%
# %diag pf

# %% [markdown]
# Three years took the filter by surprise: the 8 earthquakes of 1920, the 34 of 1957 and the 10 of 1958. Less than a
# tenth of the particles had seen such a thing coming, and `%diag` says so. It also counts the ancestors: of the two
# thousand particles of 1900 few have descendants left. That does not matter for the last years, but a word about 1900
# would come from these few.

# %% Effective sizes, and where it was resampled
# %plot pf --kind ess

# %% What the earthquakes up to each year say of its state
# %plot pf state --kind filter

# %% [markdown]
# ## What it should be
#
# With three states nothing has to be sampled. The forward algorithm sums over them, year by year, and gives the same
# two things exactly: the probability of all the numbers, and that of each state given the numbers so far.


# %% The forward algorithm
def forward(stay):
    others = (1 - stay) / 2
    moves = np.full((3, 3), others) + (stay - others) * np.eye(3)
    seen = [[n * math.log(rate) - rate - math.lgamma(n + 1) for rate in (13.0, 20.0, 30.0)] for n in counts]
    return hmm_forward(np.full(3, 1 / 3), moves, seen)


exact = forward(0.9)
filtered = np.array(exact.filtered)


def share_of_each_state(pf):
    """The weight of the particles in each state of the latest year."""
    states, weights = np.array(pf[len(pf.history) - 1, "state"]), np.array(pf.weights)
    return [weights[states == k].sum() for k in range(3)]


steps = growing_steps(century(many, 0, 0.9), {(t, "count"): n for t, n in enumerate(counts)})
again = smc(steps, particles=2000, record=share_of_each_state, key=mx.random.key(2))
shares = np.array(again.history.recorded)
off = np.abs(shares - filtered)

print(f"log evidence: exact {exact.log_ml.item():.3f}")
for name, one in (("first run", pf), ("second run", again)):
    print(f"{name:>11}: {one.log_ml.item():.3f}, which says of itself ± {one.log_ml_error:.3f}")
print(f"probability of a state, of all years: largest error {off.max():.3f}, on average {off.mean():.4f}")

ax = picture("How probable was a restless year, given the years up to it?")
twin = ax.twinx()
twin.fill_between(year, filtered[:, 2], color="tab:orange", alpha=0.3, linewidth=0)
twin.plot(year, shares[:, 2], color="tab:blue", linewidth=1)
twin.set(ylim=(0, 1.02), ylabel="probability: exact (area), particles (line)")
plt.show()

# %% tags=["test"]
for one in (pf, again):
    assert abs(one.log_ml.item() - exact.log_ml.item()) < 4 * 0.2
assert off.max() < 5 * 0.5 / np.sqrt(2000 * 0.25) and off.mean() < 0.01

# %% [markdown]
# Two runs of the filter do not agree to the last digit, and the error that each states is about as large as what they
# are off by. It is estimated from one run, by how many of the first particles still have descendants.
#
# ## How long does a state last?
#
# `stay` was a guess. Let it be unknown, with a uniform prior. A particle filter for each of many values would give the
# likelihood of each, with noise. Particle marginal Metropolis-Hastings walks over `stay`, and takes the noisy evidence
# of a filter for the likelihood; what comes out is the right posterior all the same. Each draw costs a filter, so this
# is a small run of forty.


# %% A model with a parameter
# %%gen
def restless_earth(n):
    stay = trace("stay", beta(1.0, 1.0))
    trace("years", century(n, 0, stay))


def near(tr):
    trace("stay", normal(tr["stay"], 0.1))


# %%
observed = {("years", t, "count"): n for t, n in enumerate(counts)}
post = pmmh(
    growing_steps(restless_earth(many), observed),
    select("stay"),
    near,
    draws=40,
    warmup=5,
    particles=100,
    key=mx.random.key(3),
)

# %% [markdown]
# One number can also be put on a grid, with the forward algorithm at each point.

# %% Against the exact posterior
grid = np.arange(0.005, 1.0, 0.01)
log_likelihood = np.array([forward(stay).log_ml.item() for stay in grid])
density = np.exp(log_likelihood - log_likelihood.max())
density /= density.sum()
exact_mean = density @ grid
exact_sd = np.sqrt(density @ (grid - exact_mean) ** 2)

stays = np.array(post["stay"]).ravel()
print(f"stay: exact {exact_mean:.3f} ± {exact_sd:.3f};  {stays.size} draws {stays.mean():.3f} ± {stays.std():.3f}")
print(f"{len(np.unique(stays))} different draws, worth {post.ess('stay'):.0f} independent ones")

fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
ax.fill_between(grid, density / 0.01, color="tab:orange", alpha=0.3, linewidth=0, label="exact")
ax.plot(stays, np.full_like(stays, -0.4), "|", color="tab:blue", label="draws")
ax.set(xlabel="probability to stay", xlim=(0.5, 1), yticks=[])
ax.legend()
plt.show()

# %% tags=["test"]
assert abs(stays.mean() - exact_mean) < 4 * exact_sd / np.sqrt(8)
assert len(np.unique(stays)) >= 8

# %% [markdown]
# For this model there was no need of particles: the sum over three states is easier, faster and exact. That is why it
# came first. Once the state is a number, or many, there is no sum, and the same lines of `smc` remain. The next
# notebook has such a model.
