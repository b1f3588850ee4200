# %% [markdown]
# # When did the mines become safer?
#
# Between 1851 and 1962 British coal mines had nearly two hundred explosions that killed ten people or more. In the
# first decades there were several a year; later they became rare. When did that change, and was it one change?
#
# The year of a change is a whole number, and gradients do not exist for it. We find it in three ways: by exact
# enumeration, by a Gibbs sampler that we put together by hand, and by `hmc_gibbs`, which needs no thought. Since the
# first is exact, it judges the two others.
#
# The data: R. G. Jarrett, *A note on the intervals between coal-mining disasters*, Biometrika 66, 1979; counted by
# year.

# %% The data
import csv
from math import lgamma
from pathlib import Path

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np

from genmlx import chain, discrete_uniform, gamma, gen, gibbs_kernel, hmc_gibbs, importance_sampling
from genmlx import mh_kernel, poisson, predictive, run_kernel, seed, trace
from genmlx.diagnostics import rhat, summarize
from genmlx.dist import iid

folder = Path(__file__).parent if "__file__" in globals() else Path()
with open(folder / "data" / "coal.csv") as file:
    rows = list(csv.DictReader(file))

years = mx.array([int(row["year"]) for row in rows])
counts = mx.array([int(row["disasters"]) for row in rows])
year, count = np.array(years), np.array(counts)
print(f"{count.sum()} disasters in {len(year)} years, {year[0]} to {year[-1]}")


def bars(title):
    fig, ax = plt.subplots(figsize=(9, 3), layout="constrained")
    ax.bar(year, count, color="lightgrey", width=0.9)
    ax.set(xlabel="year", ylabel="disasters", title=title, xlim=(year[0] - 1, year[-1] + 1))
    return ax


bars("Explosions with ten deaths or more in British coal mines")
plt.show()

# %% [markdown]
# ## The model
#
# Disasters come at one rate before some year, and at another from that year on. We know of neither rate more than
# that it is a few a year; and the change may have come in any year.

# %% The model
first, last = year[1].item(), year[-1].item()


@gen
def disasters(years):
    change = trace("change", discrete_uniform(first, last))  # the first year of the new rate
    before = trace("before", gamma(2, 1))  # disasters a year; 2 on average
    after = trace("after", gamma(2, 1))
    trace("count", poisson(mx.where(years < change, before, after)))


# %% [markdown]
# One history that the model holds possible. It knows nothing of mines yet: the change may come at any time, and for
# the worse.

# %% One history
seed(1979)
history = disasters(years).simulate()
history.choices

# %%
print("".join(str(min(n, 9)) for n in history["count"].tolist()), f"change in {history['change'].item()}")

# %% [markdown]
# ## By enumeration
#
# For a given year of change, gamma and Poisson fit together: both rates integrate out, and the probability of the
# counts is a formula. There are little more than a hundred years to try, so we try them all.


# %% The exact answer
def log_evidence_of(counts):
    """log p(counts) for years with one rate, which is gamma(2, 1); without the factorials, which every model shares."""
    return lgamma(2 + counts.sum()) - (2 + counts.sum()) * np.log(1 + len(counts))


candidates = np.arange(first, last + 1)
log_evidence = np.array([log_evidence_of(count[year < c]) + log_evidence_of(count[year >= c]) for c in candidates])
probability = np.exp(log_evidence - log_evidence.max())
probability /= probability.sum()

rate_before = np.array([(2 + count[year < c].sum()) / (1 + (year < c).sum()) for c in candidates])
rate_after = np.array([(2 + count[year >= c].sum()) / (1 + (year >= c).sum()) for c in candidates])
exact = {"change": candidates, "before": rate_before, "after": rate_after}
exact = {name: float(probability @ values) for name, values in exact.items()}

for c in candidates[np.argsort(-probability)[:5]]:
    print(f"change in {c}: {probability[candidates == c].item():.1%}")

# %% [markdown]
# ## By a Gibbs sampler of our own
#
# A kernel takes a trace and gives another one that has the same distribution. `chain` composes kernels. For the year
# there is `gibbs_kernel`, which tries all values. For the rates we know what they are given the year, and say so: a
# proposal is a generative function that sees the trace.


# %% The rates, given the year
@gen
def rates_given_year(tr):
    early = years < tr["change"]
    for name, these in (("before", early), ("after", mx.logical_not(early))):
        trace(name, gamma(2 + mx.sum(mx.where(these, counts, 0)), 1 + mx.sum(these)))


# %% A Gibbs sampler genmlx={"timeout": 600}
observed = {"count": counts}
sweep = chain(mh_kernel(proposal=rates_given_year), gibbs_kernel("change"))
starts, _ = disasters(years).vgenerate(observed, 8)
by_hand = run_kernel(sweep, starts, draws=500, warmup=50, observations=observed)
by_hand.summary()

# %% [markdown]
# Metropolis and Hastings guard the proposal: if our algebra is right, they never reject.

# %% Was the algebra right?
print(f"accepted: {by_hand.stats['accept'].min().item():.4%} of the proposals at worst")

# %% [markdown]
# ## By `hmc_gibbs`
#
# And without any algebra: Hamiltonian trajectories for what is continuous, Gibbs sweeps for what is discrete. It
# finds out by itself which is which.

# %% Hamiltonian moves and Gibbs sweeps genmlx={"timeout": 600}
post = hmc_gibbs(disasters(years), observed, draws=400, warmup=100, leapfrog_steps=4)
post.summary()

# %% [markdown]
# The two samplers and the enumeration, side by side.


# %% Three answers
def shares(post):
    """How often each candidate was drawn, and the Monte Carlo error of that, from the effective size of the year."""
    drawn = np.array(post["change"])
    share = np.array([np.mean(drawn == c) for c in candidates])
    return share, np.sqrt(share * (1 - share) / float(post.ess("change")))


fig, ax = plt.subplots(figsize=(8, 3.5), layout="constrained")
ax.bar(candidates, probability, color="lightgrey", label="enumeration")
for run, name, place, color in ((by_hand, "by hand", -0.15, "tab:orange"), (post, "hmc_gibbs", 0.15, "tab:blue")):
    share, error = shares(run)
    ax.errorbar(candidates + place, share, yerr=2 * error, fmt="o", markersize=4, color=color, label=name)
ax.set(xlim=(1882.5, 1899.5), xlabel="first year of the new rate", ylabel="probability")
ax.legend()
plt.show()

print("            exact    by hand           hmc_gibbs")
for name, truth in exact.items():
    told = [f"{run.mean(name).item():8.2f} ± {float(run.mcse(name)):.2f}" for run in (by_hand, post)]
    print(f"{name:<8} {truth:8.2f}   {'   '.join(told)}")

# %% tags=["test"]
assert by_hand.stats["accept"].min().item() > 0.999
for run in (by_hand, post):
    assert not run.summary().warnings
    for name, truth in exact.items():
        assert abs(run.mean(name).item() - truth) < 4 * float(run.mcse(name)), (run, name)

# %% [markdown]
# ## Was it one change?
#
# The samplers are right about the model. Is the model right about the mines? If it is, the histories that it predicts
# look like ours. A change that is missing would show as a late period that is more restless than one rate can be. So
# we look at the years after the change, and there at the busiest and the quietest run of fifteen: how many disasters
# lie between the two?


# %% Posterior predictive check
def restlessness(histories, changes):
    """Disasters in the busiest less those in the quietest fifteen years after a change; histories ``[n, years]``."""
    until = np.cumsum(np.pad(histories, ((0, 0), (1, 0))), axis=1)
    sums = until[:, 15:] - until[:, :-15]
    late = year[: sums.shape[1]] >= changes[:, None]
    return np.where(late, sums, -np.inf).max(axis=1) - np.where(late, sums, np.inf).min(axis=1)


def check(ax, call, post, changes, title):
    """Predicted histories and ours, after the changes of the same draws; the share that is as restless."""
    predicted = np.array(predictive(call, post)["count"]).reshape(-1, len(year))
    theirs = restlessness(predicted, changes.ravel())
    ours = restlessness(np.broadcast_to(count, predicted.shape), changes.ravel())
    share = np.mean(theirs >= ours)
    ax.hist(theirs, np.arange(theirs.max() + 2) - 0.5, density=True, color="tab:blue", alpha=0.5, label="predicted")
    ax.axvline(ours.mean(), color="black", label="ours")
    ax.set(xlabel="busiest less quietest fifteen years", title=f"{title}: {share:.1%} as restless", yticks=[])
    return share


fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
share_of_one = check(ax, disasters(years), post, np.array(post["change"]), "One change")
ax.legend()
plt.show()

# %% [markdown]
# Histories as restless as ours are rare: one steady rate does not look like the twentieth century.
#
# ## An edit
#
# So let there be two changes, in any order, and three rates. `iid` makes one choice of several numbers. A year has
# the first rate, the second or the third, after as many changes as have come by then.


# %% Two changes
@gen
def two_changes(years):
    changes = trace("changes", iid(discrete_uniform(first, last), 2))
    rates = trace("rates", iid(gamma(2, 1), 3))
    come = mx.sum(years[:, None] >= changes, axis=1)
    trace("count", poisson(rates[come]))


# %% Hamiltonian moves and Gibbs sweeps, once more genmlx={"timeout": 600}
more = hmc_gibbs(two_changes(years), observed, draws=500, warmup=100, chains=8, leapfrog_steps=4)
both = np.sort(np.array(more["changes"]), axis=-1)  # they come in either order
rates = np.array(more["rates"])
summarize({"first change": both[..., 0], "second change": both[..., 1], "rates": rates})

# %% [markdown]
# If the table complains it is right to. A year moves only while the other year and the rates stay where they are, so
# the chains linger: in histories with one change about 1890 and one much later, and in histories with both about 1890.
# For a picture it will do. For numbers that matter, take more draws.

# %% When the two came
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained", width_ratios=(2, 1))
for i, color in enumerate(("tab:blue", "tab:orange")):
    share = [np.mean(both[..., i] == c) for c in candidates]
    left.bar(candidates, share, width=1, color=color, alpha=0.6, label=("first change", "second change")[i])
left.set(xlabel="year", ylabel="probability", title="When the two came")
left.legend()
share_of_two = check(right, two_changes(years), more, both[..., 0], "Two changes")
plt.show()

# %% [markdown]
# Now our history is an ordinary one. Two changes also fit better by the coarser measure of the evidence, the
# probability of the counts with all years and rates averaged out. That average punishes a model for freedom that it
# does not need. Enumeration gives it exactly, for pairs of years as well; importance sampling estimates it for any
# model.


# %% The evidence
def log_mean(logs):
    return np.logaddexp.reduce(logs) - np.log(len(logs))


def pair(a, b):
    lo, hi = min(a, b), max(a, b)
    pieces = year < lo, (year >= lo) & (year < hi), year >= hi
    return sum(log_evidence_of(count[these]) for these in pieces)


log_evidence_of_two = np.array([pair(a, b) for a in candidates for b in candidates])
factorials = sum(lgamma(1 + n) for n in count)
evidence = {
    "no change": log_evidence_of(count) - factorials,
    "one change": log_mean(log_evidence) - factorials,
    "two changes": log_mean(log_evidence_of_two) - factorials,
}
for name, value in evidence.items():
    print(f"{name:<12} log evidence {value:8.2f}")
particles = importance_sampling(disasters(years), observed, particles=100_000)
print(f"{'one change':<12} log evidence {particles.log_ml.item():8.2f} by importance sampling")

# %% tags=["test"]
assert share_of_one < 0.05 < share_of_two
assert abs(particles.log_ml.item() - evidence["one change"]) < 4 / np.sqrt(particles.ess.item())
assert max(rhat(both[..., 0]), rhat(both[..., 1]), *rhat(rates)) < 1.1

# %% [markdown]
# ## The answer
#
# What was the rate in each year? Every draw has its own changes, so their average is a curve with soft edges.

# %% The rate, year by year
come = (year[:, None] >= both[..., None, :]).sum(axis=-1)
rate = np.take_along_axis(rates, come, axis=-1).reshape(-1, len(year))
ax = bars("Disasters a year: the counts, the rate with its 90% interval")
ax.fill_between(year, *np.quantile(rate, [0.05, 0.95], axis=0), color="tab:blue", alpha=0.3, linewidth=0)
ax.plot(year, rate.mean(axis=0), color="tab:blue")
plt.show()

odds = np.exp(evidence["two changes"] - evidence["one change"])
print("the first change, 90% interval {:.0f} to {:.0f}".format(*np.quantile(both[..., 0], [0.05, 0.95])))
print(f"disasters a year, by period     {rates.mean(axis=(0, 1)).round(1)}")
print(f"two changes against one        {odds:.1f} to 1")

# %% [markdown]
# Around 1890 the mines became much safer: the law on their inspection dates from 1887, the miners' federation from
# 1889. Whether a second change came about 1948, the year after the mines were taken over by the state, is not sure;
# the odds are what they are. The decades after the first change were not all alike, and that is as much as these
# counts can say.
