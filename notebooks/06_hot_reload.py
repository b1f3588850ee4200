# %% [markdown]
# # Editing a model while its results live
#
# Models grow in files, and results in sessions. An edit should not cost the results: not the trace that one was
# looking at, and not the posterior that took an hour. Here we write a small module of models, work with it, and edit
# it again and again. Each time we ask what became of the things that we had.
#
# In the shell and in Jupyter changed files are run again before each cell, by themselves. `genmlx-nb`, which runs
# notebooks from beginning to end, leaves that off; so we say `%reload` where the shell would have done it.

# %% A folder for the models
# %load_ext genmlx
import csv
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np

from genmlx import select

folder = Path(__file__).parent if "__file__" in globals() else Path()
with open(folder / "data" / "cars.csv") as file:
    rows = list(csv.DictReader(file))
speed = mx.array([float(row["speed"]) for row in rows])  # miles per hour
distance = mx.array([float(row["dist"]) for row in rows])  # feet

project = tempfile.TemporaryDirectory()
sys.path.insert(0, project.name)
path = Path(project.name) / "braking.py"


def edit(old, new):
    """What an editor does: replace some text of the file, and save it."""
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


# %% The first version of the file
path.write_text('''\
from genmlx import gen, normal, splice, trace

NOISE = 15.0  # feet


@gen
def line(speed):
    slope = trace("slope", normal(0, 5))
    intercept = trace("intercept", normal(0, 20))
    return intercept + slope * speed


@gen
def stopping(speed):
    trace("distance", normal(splice(line(speed)), NOISE))
''')

from braking import stopping

# %% [markdown]
# The fifty cars once more, and a line through them. The noise is fixed, so that every posterior below is a normal
# distribution whose mean can be computed; at the end of each step a cell compares.

# %% A trace and a posterior
# %seed 1930
# %infer nuts stopping(speed) | given distance=distance -n 500 -w 200 --live off -o post

# %%
# %trace post.trace(0, 0) -o tr


# %% The exact answer
def exact(columns, prior_means, prior_sds, noise=15.0):
    """Posterior means of the coefficients of a linear model with a normal prior, and their standard deviations."""
    x, y = np.stack([np.array(c, dtype=float) for c in columns], axis=-1), np.array(distance, dtype=float)
    precision = x.T @ x / noise**2 + np.diag(1 / np.array(prior_sds, dtype=float) ** 2)
    right = x.T @ y / noise**2 + np.array(prior_means, dtype=float) / np.array(prior_sds, dtype=float) ** 2
    return np.linalg.solve(precision, right), np.sqrt(np.diag(np.linalg.inv(precision)))


one = np.ones(len(rows))


def compare(post, names, truth):
    for name, mean, sd in zip(names, *truth, strict=True):
        found, error = post.mean(name).item(), float(post.mcse(name))
        print(f"{name:<10} exact {mean:7.2f}   sampled {found:7.2f} ± {error:.2f}")
        assert abs(found - mean) < 4.5 * error and abs(post.std(name).item() / sd - 1) < 0.15, name


compare(post, ("intercept", "slope"), exact([one, speed], [0, 0], [20, 5]))

# %% [markdown]
# ## An edit that changes nothing
#
# A comment, an empty line, another way to write a number. The file is run again, and the models are compared by what
# they do, not by how they look.

# %% A comment
edit("    slope = trace", "    # Feet for each mile per hour.\n    slope = trace")
# %reload

# %% [markdown]
# ## An edit that changes a model
#
# A car at rest has a braking distance of zero, so an intercept of 20 feet either way is too much freedom. We cut it to
# five. `line` gets a new version. `stopping` was not touched, but it calls `line`, and follows.

# %% A narrower prior
edit('normal(0, 20)', 'normal(0, 5)')
# %reload -v

# %% What the session knows of it
# %models

# %% [markdown]
# Nothing was lost, and nothing was silently changed. The trace and the posterior know with which versions they were
# made, and say that these are no longer current.

# %% Stale
tr.stale, post.stale, post

# %% [markdown]
# A trace stays true to its version. If it is updated, the weight is that of the model that made it; otherwise weights
# of one run would come from two models. `--rebase` asks the other question: what are these choices worth now?

# %% By the version that made it
# %trace tr --set slope=3.0

# %% By the version of now
# %trace tr --rebase -o rebased

# %% [markdown]
# ## An hour of sampling that is not lost
#
# The draws of the old posterior are near those of the new one. `--carry` weighs each by how much more probable it is
# under the new version, draws again by these weights, and moves the draws a few steps. The report says what was kept,
# and how many of the draws the weights have left.

# %% The draws, carried over
# %infer nuts stopping(speed) --carry post -o narrower

# %% tags=["test"]
compare(narrower, ("intercept", "slope"), exact([one, speed], [0, 0], [5, 5]))

# %% [markdown]
# ## An edit that adds a choice
#
# Braking takes a distance that grows with the square of the speed. With another term in the line the model has a new
# address, of which no draw knows anything. It is drawn from its prior, and the weights sort out which draws were lucky.

# %% A slight bend
edit(
    "    return intercept + slope * speed",
    """    bend = trace("bend", normal(0, 0.5))  # feet at 10 mph
    return intercept + slope * speed + bend * (speed / 10) ** 2""",
)
# %reload -v

# %%
# %infer nuts stopping(speed) --carry narrower --live off -o bent

# %% tags=["test"]
columns = [one, speed, (speed / 10) ** 2]
compare(bent, ("intercept", "slope", "bend"), exact(columns, [0, 0, 0], [5, 5, 0.5]))

# %% [markdown]
# This has an end. If the new posterior lies far from the old one, a few lucky draws get all the weight, and no
# resampling makes many out of few. A bend that may be twenty times as large is such a case.

# %% A strong bend
edit("normal(0, 0.5)", "normal(0, 10)")
# %reload -v

# %%
# %infer nuts stopping(speed) --carry bent --live off -o too_far

# %% How far off?
truth, _ = exact(columns, [0, 0, 0], [5, 5, 10])
carried, error = too_far.mean("bend").item(), float(too_far.mcse("bend"))
print(f"bend       exact {truth[2]:7.2f}   carried {carried:7.2f} ± {error:.2f}")

# %% tags=["test"]
assert too_far.carrying.ess < 100 and too_far.carrying.warning

# %% [markdown]
# The table looks as good as the ones before. It is the line with the exclamation mark that tells the truth: sample
# anew.
#
# ## A file with an error in it
#
# Half an edit gets saved all the time. A file that cannot be run is kept away: one line says where the error is, and
# the models stay as they were, whole. Not even the constant above the error has changed.

# %% A bracket too few
edit("NOISE = 15.0", "NOISE = 12.0")
edit("normal(0, 10))  #", "normal(0, 10)  #")
# %reload
import braking

print("NOISE is", braking.NOISE)

# %%
# %models

# %% Closed again
edit("normal(0, 10)  #", "normal(0, 10))  #")
# %reload
print("NOISE is", braking.NOISE)

# %% tags=["test"]
assert braking.NOISE == 12.0 and stopping is braking.stopping
new = stopping(speed).simulate()
mean = new["slope"] * speed + new["intercept"] + new["bend"] * (speed / 10) ** 2
z = np.array(new["distance"] - mean, dtype=float) / 12
density = -0.5 * np.sum(z**2) - 50 * np.log(12 * np.sqrt(2 * np.pi))
assert abs(new.project(select("distance")).item() - density) < 0.01

# %% [markdown]
# ## Which files are looked at
#
# Those of the project that define models, and those that import them or are imported by them; never a library's.
# `%watch` lists them, and adds others. Naming one begins the automatic look: from then on no `%reload` is needed.

# %% What is watched
# %watch

# %% Begin
# %watch braking
edit("def line(speed):", "def road(speed):")
edit("splice(line(speed))", "splice(road(speed))")

# %% The next cell sees it
stopping(speed).simulate()["distance"].shape

# %% [markdown]
# The function has another name now. What used the old name goes on: the first posterior still has the versions that
# made it, and gives the same traces as before.

# %% The first posterior, after all edits
again = post.trace(0, 0)
print("the same score:", again.score.item() == tr.score.item())
# %models

# %% tags=["test"]
assert again.score.item() == tr.score.item() and post.stale and not stopping(speed).simulate().stale

# %% The end
sys.path.remove(project.name)
project.cleanup()
