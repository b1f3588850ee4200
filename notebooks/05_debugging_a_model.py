# %% [markdown]
# # Seven things that go wrong
#
# First models go wrong in the same few ways. Here are seven of them, each with the tool that shows it. Some are
# mistakes and end in a message; read it, it names the place. Others run without complaint and give wrong numbers, and
# those you have to look for.
#
# We keep to the fifty cars of the first notebook: how far does a car roll after the driver brakes? Each mistake
# happens under `with mistake()`, which prints the message that you would see, and goes on.

# %% The data
# %load_ext genmlx
import csv
import math
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import mlx.core as mx
import numpy as np
from IPython.core.error import UsageError

from genmlx import GenError, exponential, log_normal, normal, tap, trace
from genmlx.diagnostics import mcse, rhat
from genmlx.dist import half_normal, iid

folder = Path(__file__).parent if "__file__" in globals() else Path()
with open(folder / "data" / "cars.csv") as file:
    rows = list(csv.DictReader(file))
speed = mx.array([float(row["speed"]) for row in rows])  # miles per hour
distance = mx.array([float(row["dist"]) for row in rows])  # feet
messages = []


@contextmanager
def mistake():
    """Print the error of a block as the shell does. A block without one is an error."""
    try:
        yield
    except (GenError, UsageError) as error:
        messages.append(f"{type(error).__name__}: {error}")
        print(messages[-1])
    else:
        raise AssertionError("this was meant to go wrong")


# %% The seed
# %seed 1920

# %% [markdown]
# ## 1. A typo in an address
#
# An observation at an address that the model does not have would be data that is left out without a word. So it is an
# error.


# %% A model without fault
# %%gen --check (speed,)
def stopping(speed):
    slope = trace("slope", normal(0, 5))
    intercept = trace("intercept", normal(0, 20))
    noise = trace("noise", exponential(0.05))
    trace("distance", normal(slope * speed + intercept, noise))


# %% The typo
with mistake():
    call = stopping(speed)
    # %infer nuts call | given distanse=distance

# %% [markdown]
# `%sites` lists the addresses that there are, with their distributions and shapes.

# %% What there is
# %sites stopping(speed)

# %% [markdown]
# ## 2. Random numbers that the model does not know of
#
# Everything random goes through `trace`. A body that draws from elsewhere gives another answer each time it is asked
# the same question, and its score is the probability of nothing. No sampler will notice. The laws of the interface
# do: `%gfi` runs a model twenty times and compares numbers that must be equal. `%%gen --check` does the same, in
# short, when the model is defined; that was the end of the line above.


# %% A driver who hesitates
# %%gen
def hesitating(speed):
    slope = trace("slope", normal(0, 5))
    delay = tap(mx.random.uniform(), "delay")
    trace("distance", normal(slope * speed + delay * speed, 15.0))


# %% Is it a model?
with mistake():
    call = hesitating(speed)
    # %gfi call

# %% [markdown]
# `tap` is the other way to see it: it hands its value on, and remembers it. `%taps` shows what went by. Here is one
# trace, scored three times with all its choices given. Nothing is left to chance, and yet the scores differ; each run
# had a delay of its own, the first one being the run that made the trace.

# %% The same question three times
# %taps --clear
tr = hesitating(speed).simulate()
scores = [hesitating(speed).assess(tr.choices).score.item() for _ in range(3)]
print("scores", [round(score, 1) for score in scores])
# %taps delay

# %% [markdown]
# ## 3. A shape that spreads
#
# Arrays of different shapes are stretched to fit. If `speed` is a column where a row was meant, and something else is
# a row, the result is a square: each car with the noise of each other car. Without observations that runs well, and
# the laws hold. `%sites` shows the shapes; with the data given, the check knows what the shape should have been.

# %% A square of cars
# %%gen --check (speed,)
def square(speed):
    slope = trace("slope", normal(0, 5))
    spread = trace("spread", exponential(1.0))  # feet, for each mile per hour
    trace("distance", normal(slope * speed[:, None], spread * speed))


# %% Shapes
# %sites square(speed)

# %% With the data
with mistake():
    call = square(speed)
    # %gfi call | given distance=distance

# %% [markdown]
# ## 4. A number that cannot be
#
# Somebody wrote -99 for a distance that was not measured. Distances are positive and this model says so; then such a
# number is impossible, whatever the parameters are, and no sampler has a place to begin.

# %% A missing value that looks like a number
spoilt = mx.where(mx.arange(len(rows)) == 22, -99.0, distance)


# %% A power of the speed
# %%gen --check (speed,)
def rolling(speed):
    level = trace("level", normal(0, 10))
    power = trace("power", normal(0, 10))
    noise = trace("noise", exponential(1.0))
    trace("distance", log_normal(level + power * mx.log(speed), noise))


# %% No starting point
with mistake():
    call = rolling(speed)
    # %infer nuts call | given distance=spoilt

# %% [markdown]
# The message names the address. Which car it is, `%trace` says: it runs the model with the data given, marks with `!`
# what has probability zero, and finds the worst element.

# %% Which car?
# %trace rolling(speed) | given distance=spoilt

# %% [markdown]
# ## 5. A prior that nobody looked at
#
# The same model, and a mistake that gives no message at all. A standard deviation of 10 looks modest. Look at what it
# says of cars, before any data: of two thousand worlds, how far does a car roll that goes 10 miles per hour?


# %% Worlds before the data
def at_ten(model, n=2000):
    """Distances at 10 mph, in feet, in n worlds of a model: log base 10."""
    worlds = model(mx.array([10.0])).vsimulate(n)
    return np.log10(np.array(worlds["distance"], dtype=float)[:, 0])


EARTH = np.log10(1.315e8)  # its circumference, in feet
vague = at_ten(rolling)
print(f"less than a hair's breadth:  {np.mean(vague < -3.5):.0%} of the worlds")
print(f"between 1 and 1000 feet:     {np.mean((vague > 0) & (vague < 3)):.0%}")
print(f"further than round the Earth: {np.mean(vague > EARTH):.0%}")

# %% [markdown]
# The exponential turns a modest prior into an absurd one. It costs nothing to know a little: braking takes a distance
# that grows with the square of the speed, reacting one that grows with the speed, so the power is between one and two
# or so; and at one mile per hour a car rolls some foot.

# %% The same model with an opinion
# %%gen --check (speed,)
def rolling(speed):
    level = trace("level", normal(0, 1))
    power = trace("power", normal(1.5, 0.5))
    noise = trace("noise", exponential(3.0))
    trace("distance", log_normal(level + power * mx.log(speed), noise))


# %% Worlds before the data, again
sound = at_ten(rolling)
measured = np.log10(np.array(distance)[np.array(speed) == 10])
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for ax, logs, title in zip(axes, (vague, sound), ("Modest numbers", "An opinion"), strict=True):
    ax.hist(logs, 40, density=True, color="tab:blue", alpha=0.5)
    ax.plot(measured, 0 * measured, "|", color="black", markersize=30, label="measured")
    ax.set(title=title, xlabel="distance at 10 mph (feet, log base 10)", yticks=[])
axes[0].legend(markerscale=0.3)
plt.show()
print(f"between 1 and 1000 feet: {np.mean((sound > 0) & (sound < 3)):.0%}")

# %% tags=["test"]
# Given the noise, the log distance is normal in both models; the noise is averaged out on a grid.
noise = np.linspace(0.005, 30, 6000)


def exact_share(limit, level_sd, power_mean, power_sd, rate):
    """The share of worlds with a distance at 10 mph above a limit (log base 10)."""
    sd = np.sqrt(level_sd**2 + (power_sd * np.log(10)) ** 2 + noise**2)
    z = (limit * np.log(10) - power_mean * np.log(10)) / sd
    above = np.array([math.erfc(x / math.sqrt(2)) / 2 for x in z])
    density = rate * np.exp(-rate * noise)
    return float(density @ above / density.sum())


for logs, prior in ((vague, (10, 0, 10, 1)), (sound, (1, 1.5, 0.5, 3))):
    for limit in (0, 1.5, 3, EARTH):
        truth = exact_share(limit, *prior)
        assert abs(np.mean(logs > limit) - truth) < 4.5 * np.sqrt(truth * (1 - truth) / 2000) + 1e-9, (limit, prior)

# %% [markdown]
# ## 6. A funnel
#
# A sampler can be tried without any data: then it has to give back the prior, which we know. Eight numbers with a
# common scale, and the scale unknown, are the middle of every hierarchical model. The log of the scale has mean 0 and
# standard deviation 1.5. Does the sampler find that?


# %% Eight numbers with a common scale
# %%gen
def centred():
    log_scale = trace("log_scale", normal(0, 1.5))
    trace("theta", iid(normal(0, mx.exp(log_scale)), 8))


# %% Hamiltonian Monte Carlo genmlx={"timeout": 300}
# %infer hmc centred() -n 1000 -w 500 --L 10 -o funnel -q
# %diag funnel --worst 3

# %%
# %plot funnel log_scale, theta[0] --kind pair

# %% [markdown]
# It does not, and `%diag` says so in several ways. Small scales are missing: where the scale is small, all eight
# numbers are squeezed together, and steps that are right for the wide end break in the narrow one. That is where the
# divergent trajectories began, the marked points in the picture.
#
# The mend is the one of the second notebook: draw the eight numbers on a fixed scale, and multiply.


# %% The same prior, drawn otherwise
# %%gen
def non_centred():
    log_scale = trace("log_scale", normal(0, 1.5))
    return mx.exp(log_scale) * trace("z", iid(normal(0, 1), 8))


# %% Hamiltonian Monte Carlo, again genmlx={"timeout": 300}
# %infer hmc non_centred() -n 600 -w 300 --L 10 -o mended -q
# %diag mended --worst 3

# %% The scale, in both
print("log_scale: mean 0 and standard deviation 1.5 are right")
for name, post in (("centred", funnel), ("non-centred", mended)):
    mean, sd = post.mean("log_scale").item(), post.std("log_scale").item()
    print(f"{name:<12} {mean:5.2f} ± {float(post.mcse('log_scale')):.2f}   {sd:.2f}")

# %% tags=["test"]
assert funnel.stats["diverging"].sum().item() > 0 and funnel.std("log_scale").item() < 1.35
assert mended.stats["diverging"].sum().item() == 0
assert abs(mended.mean("log_scale").item()) < 4.5 * float(mended.mcse("log_scale"))
assert abs(mended.std("log_scale").item() / 1.5 - 1) < 4.5 / np.sqrt(2 * float(mended.ess("log_scale")))

# %% [markdown]
# ## 7. Two numbers where the data know one
#
# How far a car rolls depends on its brakes and on the road. So let the slope be a product of two numbers. This model
# runs, and predicts well. But only the product is in the data; and if both numbers change their sign, nothing changes
# at all.


# %% Brakes and road
# %%gen --check (speed,)
def braking(speed):
    brakes = trace("brakes", normal(0, 2))
    road = trace("road", normal(0, 2))
    noise = trace("noise", exponential(0.05))
    trace("distance", normal(brakes * road * speed, noise))


# %% Eight chains genmlx={"timeout": 300}
# %infer hmc braking(speed) | given distance=distance -n 300 -w 200 -c 8 --L 10 -o product -q
# %diag product

# %%
# %plot product brakes, road --kind pair

# %% [markdown]
# R-hat compares the chains with each other. Far above 1, it says that they are not in the same place: each found one
# branch of the hyperbola and stayed. What the mean of `brakes` is depends on how many chains went where. More draws
# would not help; the data cannot tell. What they can tell is the product:

# %% What the data know
slope = np.array(product["brakes"]) * np.array(product["road"])
in_branch = np.array(product["brakes"]).mean(axis=1)
print("mean of brakes, chain by chain:", in_branch.round(1))
print(f"R-hat of brakes {product.rhat('brakes'):.2f}, of the product {rhat(slope):.2f}")

# %% [markdown]
# To be rid of the second branch, say that both are positive. Along the hyperbola nothing but the prior holds them
# still, and that is all that there will ever be to say of them; but now the chains agree about it.


# %% Both positive
# %%gen --check (speed,)
def braking(speed):
    brakes = trace("brakes", half_normal(2.0))
    road = trace("road", half_normal(2.0))
    noise = trace("noise", exponential(0.05))
    trace("distance", normal(brakes * road * speed, noise))


# %% Eight chains, again genmlx={"timeout": 300}
# %infer hmc braking(speed) | given distance=distance -n 500 -w 300 -c 8 --L 20 -o positive -q
# %diag positive

# %% The product, in both
slope_again = np.array(positive["brakes"]) * np.array(positive["road"])
for name, draws in (("any sign", slope), ("positive", slope_again)):
    print(f"product, {name}: {draws.mean():.3f} ± {mcse(draws):.3f}")

# %% tags=["test"]
assert product.rhat("brakes") > 1.3 and (in_branch > 0).any() and (in_branch < 0).any()
assert max(positive.rhat(name) for name in ("brakes", "road", "noise")) < 1.03
assert abs(slope.mean() - slope_again.mean()) < 4.5 * np.hypot(mcse(slope), mcse(slope_again))
