"""Particle filters: particle steps per second, beside the package `particles` and GenJAX.

Run: python tests/benchmarks/filters.py [--particles PYTHON] [--genjax PYTHON] [--steps 50 1000] [--n 100 1000 100000]
    [--models hmm walk]

PYTHON is an interpreter that has particles (0.4), or genjax 0.10.3; without it those columns are left out. Models: a
hidden Markov model of three states, and a Gaussian walk seen through noise. Bootstrap filters with systematic
resampling below half the particles (GenJAX, which has no filter, a jitted scan of one `importance` per step written
here, which resamples at every step). Each figure is N T over the seconds of a run, the best of three; "first" is the
first run of a new size, tracing and compilation included. The log evidence must lie within 5 standard deviations of
the exact one (0.5 at least), which is known, or the script fails.

The last lines: N = 50 particles, T = 5, batched against one trace after the other, and the memory of MLX after runs
of several lengths, without the traces.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from typing import Any

PRIOR = [0.2, 0.3, 0.5]
MOVES = [[0.4, 0.4, 0.2], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05]]
SHOWS = [[0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.7, 0.2, 0.1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", metavar="PYTHON", help="an interpreter with particles")
    parser.add_argument("--genjax", metavar="PYTHON", help="an interpreter with genjax 0.10.3")
    parser.add_argument("--models", nargs="+", choices=["hmm", "walk"], default=["hmm", "walk"])
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 1000])
    parser.add_argument("--n", nargs="+", type=int, default=[100, 1000, 100_000])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(RUNNERS[json.loads(options.child)["side"]](**json.loads(options.child)["wanted"])))
        return
    pythons = {"genmlx": sys.executable, "particles": options.particles, "genjax": options.genjax}
    sides = {side: python for side, python in pythons.items() if python}
    print(f"{'':8}{'T':>6}{'N':>9}" + "".join(f"{side:>14}{'first':>9}" for side in sides) + "   particle steps/s")
    for model in options.models:
        for steps in options.steps:
            for n in options.n:
                row = f"{model:8}{steps:6,}{n:9,}"
                for side, python in sides.items():
                    found = child(python, side, {"model": model, "steps": steps, "n": n})
                    exact = evidence(model, data(model, steps))
                    if abs(found["log_ml"] - exact) > 5 * max(found["spread"], 0.1):
                        sys.exit(f"{side}: log evidence {found['log_ml']} +- {found['spread']}, not {exact}")
                    row += f"{steps * n / found['best']:14,.0f}{found['first']:8.2f}s"
                print(row, flush=True)
    print()
    print(child(sys.executable, "small", {})["text"])


def child(python: str, side: str, wanted: dict) -> dict[str, Any]:
    task = json.dumps({"side": side, "wanted": wanted})
    run = subprocess.run([python, __file__, "--child", task], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{side} {wanted}:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def data(model: str, steps: int) -> list:
    import numpy as np

    rng = np.random.default_rng(0)
    if model == "walk":
        return (np.cumsum(rng.normal(size=steps)) + rng.normal(size=steps)).tolist()
    z, found = rng.choice(3, p=PRIOR), []
    for _ in range(steps):
        found.append(int(rng.choice(3, p=SHOWS[z])))
        z = rng.choice(3, p=MOVES[z])
    return found


def evidence(model: str, ys: list) -> float:
    """The exact log evidence, by Kalman's filter or the forward algorithm."""
    import numpy as np

    found = 0.0
    if model == "walk":
        m, p = 0.0, 0.0
        for y in ys:
            p += 1.0
            found -= 0.5 * (math.log(2 * math.pi * (p + 1)) + (y - m) ** 2 / (p + 1))
            m, p = m + p / (p + 1) * (y - m), p / (p + 1)
        return found
    state = np.array(PRIOR)
    for t, y in enumerate(ys):
        joint = (state @ np.array(MOVES) if t else state) * np.array(SHOWS)[:, y]
        found, state = found + math.log(joint.sum()), joint / joint.sum()
    return found


def timed(run: Any) -> dict[str, float]:
    """Seconds of the first run and of the best of three more, and the spread of the log evidence."""
    import numpy as np

    seconds, logs = [], []
    for seed in range(4):
        start = time.perf_counter()
        logs.append(float(run(seed)))
        seconds.append(time.perf_counter() - start)
    spread = float(np.std(logs, ddof=1))
    return {"first": seconds[0], "best": min(seconds[1:]), "log_ml": float(np.mean(logs)), "spread": spread}


def of_genmlx(model: str, steps: int, n: int) -> dict:
    from genmlx import smc

    given = genmlx_steps(model, data(model, steps))
    return timed(lambda seed: smc(given, particles=n, key=seed).log_ml.item())


def genmlx_steps(model: str, ys: list) -> list:
    import mlx.core as mx

    from genmlx import categorical, gen, normal, trace, unfold

    tables = [mx.log(mx.array(table)) for table in (PRIOR, MOVES, SHOWS)]

    @gen
    def hidden(t, z):
        z = trace("z", categorical(mx.where(t == 0, tables[0], tables[1][z])))
        trace("y", categorical(tables[2][z]))
        return z

    @gen
    def walk(t, x):
        x = trace("x", normal(x, 1.0))
        trace("y", normal(x, 1.0))
        return x

    chain, init = (unfold(hidden), 0) if model == "hmm" else (unfold(walk), 0.0)
    return [(chain(t + 1, init), {(t, "y"): y}) for t, y in enumerate(ys)]


def of_particles(model: str, steps: int, n: int) -> dict:
    import numpy as np
    import particles
    from particles import distributions, state_space_models

    prior, moves, shows = np.array(PRIOR), np.array(MOVES), np.array(SHOWS)

    class Hidden(state_space_models.StateSpaceModel):
        def PX0(self):
            return distributions.Categorical(p=prior)

        def PX(self, t, xp):
            return distributions.Categorical(p=moves[xp])

        def PY(self, t, xp, x):
            return distributions.Categorical(p=shows[x])

    class Walk(state_space_models.StateSpaceModel):
        def PX0(self):
            return distributions.Normal(0.0, 1.0)

        def PX(self, t, xp):
            return distributions.Normal(xp, 1.0)

        def PY(self, t, xp, x):
            return distributions.Normal(x, 1.0)

    ssm, ys = Hidden() if model == "hmm" else Walk(), [np.array([y]) for y in data(model, steps)]

    def run(seed: int) -> float:
        np.random.seed(seed)
        filter = particles.SMC(fk=state_space_models.Bootstrap(ssm=ssm, data=ys), N=n, resampling="systematic")
        filter.run()
        return filter.logLt

    return timed(run)


def of_genjax(model: str, steps: int, n: int) -> dict:
    import genjax
    import jax
    import jax.numpy as jnp
    from genjax import ChoiceMapBuilder as C
    from genjax import gen, normal

    tables = [jnp.log(jnp.array(table)) for table in (PRIOR, MOVES, SHOWS)]

    @gen
    def hidden(t, z):
        z = genjax.categorical(jnp.where(t == 0, tables[0], tables[1][z])) @ "z"
        genjax.categorical(tables[2][z]) @ "y"
        return z

    @gen
    def walk(t, x):
        x = normal(x, 1.0) @ "x"
        normal(x, 1.0) @ "y"
        return x

    step, ys = (hidden if model == "hmm" else walk), jnp.array(data(model, steps))
    first = jnp.zeros(n, dtype=int if model == "hmm" else float)

    @jax.jit
    def run(key):
        def advance(state, given):
            states, log_ml = state
            t, y, key = given
            extend, choose = jax.random.split(key)
            keys = jax.random.split(extend, n)
            traces, weights = jax.vmap(lambda k, x: step.importance(k, C["y"].set(y), (t, x)))(keys, states)
            log_ml += jax.scipy.special.logsumexp(weights) - jnp.log(n)
            edges = jnp.cumsum(jax.nn.softmax(weights))
            index = jnp.searchsorted(edges, (jnp.arange(n) + jax.random.uniform(choose)) / n * edges[-1])
            return (traces.get_retval()[jnp.minimum(index, n - 1)], log_ml), None

        keys = jax.random.split(key, steps)
        return jax.lax.scan(advance, (first, 0.0), (jnp.arange(steps), ys, keys))[0][1]

    return timed(lambda seed: run(jax.random.key(seed)).block_until_ready())


def small() -> dict:
    """A batch against one trace after the other, and memory by length."""
    import gc

    import mlx.core as mx
    from timing import milliseconds

    from genmlx import smc

    given = genmlx_steps("walk", data("walk", 5))

    def one_by_one() -> None:
        for _ in range(50):
            tr, weight = given[0][0].generate(given[0][1])
            for call, observations in given[1:]:
                tr, more, *_ = tr.update(observations, args=call)
                weight = weight + more
            mx.eval(weight, tr.score)

    batched = milliseconds(lambda: smc(given, particles=50, ess_threshold=0.0), repeats=1, best_of=10)
    single = milliseconds(one_by_one, repeats=1, best_of=3)
    ratio = single / batched
    lines = [f"50 particles, 5 steps: batched {batched:.1f} ms, one by one {single:.0f} ms: {ratio:.0f} times"]
    for steps in (50, 200, 800):
        result: Any = smc(genmlx_steps("walk", data("walk", steps)), particles=1000, key=0)
        gc.collect()
        held = mx.get_active_memory()
        log_ml = result.log_ml.item()
        del result
        gc.collect()
        left = mx.get_active_memory()
        short: Any = smc(genmlx_steps("walk", data("walk", steps)), particles=1000, key=0, store_paths=False)
        gc.collect()
        alone = mx.get_active_memory() - left
        del short
        lines.append(f"T = {steps}: {held / steps / 1000:.0f} bytes for each particle and step while the traces are "
                     f"there, {left:,} after; without paths {alone:,} in all "
                     f"(log evidence {log_ml:.1f})")  # fmt: skip
    return {"text": "\n".join(lines)}


RUNNERS = {"genmlx": of_genmlx, "particles": of_particles, "genjax": of_genjax, "small": small}

if __name__ == "__main__":
    main()
