# %% [markdown]
# # Three numbers behind a picture
#
# Two thousand pictures of 144 pixels, each black or white. Whoever drew them needed only three numbers for each: where
# the disc is, to the right and down, and how large. We do not say so to the computer. It gets the pictures, and a model
# that says: behind each there are three numbers, and a neural network makes the pixels out of them.
#
# Such a model is a variational autoencoder (Kingma and Welling 2014). It needs a second network that goes the other
# way, from a picture to what the three numbers may have been. In the words of this library the first is a model, the
# second is its guide, and the weights of both are parameters.

# %% The pictures
# %load_ext genmlx
import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from genmlx import importance_sampling, neural, normal, seed, splice, trace, train
from genmlx.learning import elbo, over_rows

seed(0)
mx.random.seed(0)
rng = np.random.default_rng(0)
side = 12
rows, columns = np.mgrid[0:side, 0:side]


def discs(n):
    """Pictures [n, 144] and what they were drawn from [n, 3]: column and row of the middle, radius."""
    drawn_from = np.column_stack([rng.uniform(3.5, 7.5, n), rng.uniform(3.5, 7.5, n), rng.uniform(1.5, 3.5, n)])
    x, y, r = drawn_from.T[:, :, None, None]
    return (np.hypot(columns - x, rows - y) < r).reshape(n, -1).astype(np.int32), drawn_from


def show(pictures, titles, scale=0.8):
    """Rows of pictures, black where a pixel is 1."""
    high, wide = len(pictures), len(pictures[0])
    fig, axes = plt.subplots(high, wide, figsize=(scale * wide + 1, scale * high), layout="constrained", squeeze=False)
    for title, line, row in zip(titles, axes, pictures):
        line[0].set_ylabel(title, rotation=0, ha="right", va="center")
        for ax, pixels in zip(line, row):
            ax.imshow(np.array(pixels).reshape(side, side), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
    plt.show()


pictures, drawn_from = discs(2000)
fresh, fresh_from = discs(200)  # which nothing learns from
pictures, fresh = mx.array(pictures), mx.array(fresh)
show([pictures[:12], pictures[12:24]], ["", ""])

# %% [markdown]
# `neural(module)` makes a generative function of any module of `mlx.nn`: it has no choices, and its parameters are the
# weights. The model draws three numbers for each picture, and a coin for each pixel; the guide draws the numbers after
# a look at the pixels.

# %% The two networks
width = 64
decoder = neural(nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, side * side)), "decoder")
encoder = neural(nn.Sequential(nn.Linear(side * side, width), nn.Tanh(), nn.Linear(width, 6)), "encoder")


# %% The model
# %%gen --check (2)
def painter(n):
    z ~ normal(mx.zeros((n, 3)), 1.0)
    pixels ~ bernoulli_logits(splice(decoder(z)))
    return pixels


# %% The guide
# %%gen --check (fresh)
def viewer(pixels):
    about = splice(encoder(pixels.astype(mx.float32)))
    z ~ normal(about[:, :3], mx.exp(about[:, 3:]))


# %% [markdown]
# What is to be maximised is a lower bound of the log probability of the pictures: `elbo`, by one draw of the guide for
# each. `train` takes a hundred pictures in each step, scales their bound to all two thousand, and follows the gradient
# in whatever parameters it finds: here the weights of both networks.


# %% Training
def bound(pixels, key):
    return elbo(painter(pixels.shape[0]), {"pixels": pixels}, viewer(pixels), key=key)


untrained = bound(fresh, mx.random.key(1)).item() / len(fresh)
result = train(bound, pictures, batch_size=100, iterations=2000, learning_rate=optim.cosine_decay(4e-3, 2000), key=1)
trained = bound(fresh, mx.random.key(1)).item() / len(fresh)
print(result)
print(f"bound for a picture that was not learnt from: {untrained:.1f} before, {trained:.1f} after")
print(f"the same for independent coins: {-side * side * np.log(2):.1f}")

per_picture = np.array(result.history) / len(pictures)
fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
ax.plot(per_picture, linewidth=0.7)
ax.axhline(trained, color="tab:orange", linewidth=1, label="fresh pictures, after")
ax.set(xlabel="step", ylabel="bound, per picture", ylim=(-60, 0))
ax.legend()
plt.show()

# %% tags=["test"]
assert untrained < -90 and trained > -12
assert per_picture[-100:].mean() > per_picture[200:300].mean() + 2
assert set(result.params) == {decoder, encoder} and result.execution == "replayed"

# %% [markdown]
# ## There and back
#
# A picture goes through the guide to three numbers, and from these through the model to a chance for each pixel.

# %% Fresh pictures, and what comes back
about = encoder.module(fresh.astype(mx.float32))
middle, spread = about[:, :3], mx.exp(about[:, 3:])
back = mx.sigmoid(decoder.module(middle))
wrong = mx.mean((back > 0.5) != (fresh > 0)).item()
print(f"pixels that come back as the other colour: {100 * wrong:.2f}% of {fresh.size}")
show([fresh[:12], back[:12]], ["drawn", "back"])

# %% tags=["test"]
assert wrong < 0.012

# %% [markdown]
# The guide has never been told of positions or sizes. If its three numbers stand for them, the true ones can be
# computed from its: a quadratic in the three is enough to see.

# %% What the three numbers mean
found = np.array(middle)
terms = [np.ones(len(found)), *found.T, *[found[:, i] * found[:, j] for i in range(3) for j in range(i, 3)]]
design = np.column_stack(terms)
explained = []
for name, truth in zip(("column", "row", "radius"), fresh_from.T):
    guess = design @ np.linalg.lstsq(design, truth, rcond=None)[0]
    explained.append(1 - np.var(truth - guess) / np.var(truth))
    print(f"{name:>7}: {100 * explained[-1]:.1f}% of its variance is in the three numbers")

# %% tags=["test"]
assert min(explained) > 0.88

# %% [markdown]
# ## Pictures that nobody drew
#
# Numbers from the prior, through the model: new pictures. And numbers that go along a line: one picture that becomes
# another.

# %% New pictures, and one that changes
new = mx.sigmoid(decoder.module(painter(12).simulate(key=3)["z"]))
ends = middle[mx.array([0, 1])]
along = mx.stack([ends[0] + (ends[1] - ends[0]) * step for step in np.linspace(0, 1, 12).tolist()])
show([new, mx.sigmoid(decoder.module(along))], ["new", "between"])


# %% [markdown]
# Are they discs? For each we look for the disc that it shares most with, of all positions and sizes.


# %% How much of a new picture is a disc
def overlap(black):
    """The most that a picture has in common with a disc: common pixels out of those of either."""
    x, y, r = [grid.ravel()[:, None] for grid in np.meshgrid(*[np.arange(2, 9.1, 0.5)] * 2, np.arange(1, 4.1, 0.25))]
    candidates = np.hypot(columns.ravel() - x, rows.ravel() - y) < r
    return ((candidates & black).sum(1) / (candidates | black).sum(1)).max()


many = np.array(mx.sigmoid(decoder.module(painter(100).simulate(key=4)["z"])) > 0.5)
shares = np.array([overlap(black) for black in many if black.any()])
print(f"{len(shares)} new pictures: overlap with the nearest disc {np.median(shares):.2f} in the middle")

# %% tags=["test"]
assert len(shares) > 90 and np.median(shares) > 0.85

# %% [markdown]
# ## How good is the guide?
#
# The bound is below the log probability of a picture, by as much as the guide is off from the posterior. Importance
# sampling with the guide as its proposal closes the gap: the more draws, the higher the bound, up to the log
# probability itself. So the trained network serves as a proposal for anything else that one may ask.


# %% The same pictures by importance sampling
def log_probability(pixels):
    found = importance_sampling(painter(1), {"pixels": pixels[None]}, 1000, proposal=viewer(pixels[None]), key=5)
    return found.log_ml.item(), found.ess.item()


some = [log_probability(fresh[i]) for i in range(20)]
log_p, ess = np.array(some).T
bounds = np.array(
    over_rows(
        lambda pixels, key: elbo(painter(1), {"pixels": pixels[None]}, viewer(pixels[None]), 500, key), fresh[:20], 6
    )
)
print(f"the bound of 20 pictures {bounds.mean():.2f}, their log probability {log_p.mean():.2f}")
print(f"1,000 draws of the guide are worth {np.median(ess):.0f} of the posterior")

fig, ax = plt.subplots(figsize=(3.4, 3.2), layout="constrained")
ax.plot(log_p, bounds, "o", markersize=4)
ax.axline((log_p.mean(), log_p.mean()), slope=1, color="black", linewidth=0.7)
ax.set(xlabel="log probability", ylabel="bound")
plt.show()

# %% tags=["test"]
assert np.all(bounds < log_p + 0.1) and log_p.mean() > bounds.mean() + 0.1
assert np.median(ess) > 200

# %% [markdown]
# The next notebook keeps the model and drops one half: there the model is a formula that we trust, and only the guide
# is learnt.
