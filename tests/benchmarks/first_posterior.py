"""The first benchmarks: batched against sequential, cost against N, cost of a site, and GenJAX beside it.

Run: python tests/benchmarks/first_posterior.py [--genjax PYTHON]

PYTHON is an interpreter that has genjax 0.10.3; without it those rows are left out. Every figure of a table comes
from one run on one machine: the best of five means, in milliseconds. On an M4 the ClojureScript GenMLX published
122 to 2 ms (generate), 81 to 1 ms (importance sampling) and 65 to 1 ms (SMC initialisation), sequential to batched.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import mlx.core as mx
from timing import milliseconds

from genmlx import gen, normal, trace
from genmlx.inference import importance_sampling

XS = [1.0, 2.0, 3.0, 4.0, 5.0]
YS = [2.1, 3.9, 6.2, 7.8, 10.1]
OBSERVED = {("y", j): y for j, y in enumerate(YS)}
N = 100


@gen
def line(xs):
    slope = trace("slope", normal(0, 10))
    intercept = trace("intercept", normal(0, 10))
    for j, x in enumerate(xs):
        trace(("y", j), normal(slope * x + intercept, 1))
    return slope


KEY = mx.random.key(0)
KEYS = mx.random.split(KEY, N)
mx.eval(KEY, KEYS)


def generate_sequential() -> None:
    for i in range(N):
        mx.eval(line(XS).generate(OBSERVED, KEYS[i]).weight)


def generate_batched() -> None:
    mx.eval(line(XS).vgenerate(OBSERVED, N, KEY).weight)


def importance_sequential() -> None:
    weights = [line(XS).generate(OBSERVED, KEYS[i]).weight for i in range(N)]
    mx.eval(mx.logsumexp(mx.stack(weights)))


def importance_batched() -> None:
    importance_sampling(line(XS), OBSERVED, particles=N, key=KEY)


def initialise_sequential() -> None:
    traces = [line(XS).generate({("y", 0): YS[0]}, KEYS[i]) for i in range(N)]
    mx.eval([t.weight for t in traces], [t.trace["slope"] for t in traces])


def initialise_batched() -> None:
    made = line(XS).vgenerate({("y", 0): YS[0]}, N, KEY)
    mx.eval(made.weight, made.trace["slope"])


def sites(n: int) -> Callable:
    @gen.new
    def model():
        for i in range(n):
            trace(i, normal(0, 1))

    observed = dict.fromkeys(range(n), 0.5)
    return lambda: mx.eval(model().generate(observed, KEY).weight)


GENJAX = r"""
import json, time
import jax, jax.numpy as jnp
import genjax
from genjax import gen, normal, ChoiceMapBuilder as C

XS, YS = jnp.array([1.0, 2, 3, 4, 5]), [2.1, 3.9, 6.2, 7.8, 10.1]

@gen
def line(xs):
    slope = normal(0.0, 10.0) @ "slope"
    intercept = normal(0.0, 10.0) @ "intercept"
    for j in range(5):
        normal(slope * xs[j] + intercept, 1.0) @ f"y{j}"
    return slope

constraints = C.n()
for j, y in enumerate(YS):
    constraints = constraints | C[f"y{j}"].set(y)

def batch(key, n):
    keys = jax.random.split(key, n)
    return jax.vmap(lambda k: line.importance(k, constraints, (XS,))[1])(keys)

def log_ml(key, n):
    return jax.nn.logsumexp(batch(key, n)) - jnp.log(n)

def milliseconds(f, repeats, best_of=5):
    f()
    times = []
    for _ in range(best_of):
        start = time.perf_counter()
        for _ in range(repeats):
            f()
        times.append((time.perf_counter() - start) / repeats)
    return 1e3 * min(times)

key = jax.random.key(0)
out = {}
for n in (1, 100, 1000, 10_000, 100_000):
    jitted = jax.jit(lambda k: log_ml(k, n))
    start = time.perf_counter()
    jitted(key).block_until_ready()
    first = 1e3 * (time.perf_counter() - start)
    out[n] = (first, milliseconds(lambda: jitted(key).block_until_ready(), 20))
print(json.dumps(out))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genjax", metavar="PYTHON", help="an interpreter with genjax 0.10.3")
    options = parser.parse_args()

    print(f"device {mx.default_device()}, five observations, N = {N}")
    print(f"{'':28}{'sequential':>12}{'batched':>12}{'ratio':>8}")
    for name, sequential, batched in [
        ("generate", generate_sequential, generate_batched),
        ("importance sampling", importance_sequential, importance_batched),
        ("SMC-style initialisation", initialise_sequential, initialise_batched),
    ]:
        slow, fast = milliseconds(sequential, 2), milliseconds(batched, 50)
        print(f"{name:28}{slow:>9.2f} ms{fast:>9.2f} ms{slow / fast:>7.0f}x")

    theirs = {}
    if options.genjax:
        run = subprocess.run([options.genjax, "-c", GENJAX], capture_output=True, text=True, check=True)
        theirs = json.loads(run.stdout.splitlines()[-1])
    print(f"\n{'importance sampling, N':28}{'genmlx':>12}{'first call':>12}{'native':>12}{'first call':>12}", end="")
    print(f"{'genjax jit':>14}{'first call':>12}" if theirs else "")
    for n in (1, 100, 1000, 10_000, 100_000):
        print(f"{n:<28,}", end="")
        for native in (False, True):

            def run(n: int = n, native: bool = native) -> None:
                importance_sampling(line(XS), OBSERVED, particles=n, key=KEY, native=native)

            start = time.perf_counter()
            run()
            first = 1e3 * (time.perf_counter() - start)
            print(f"{milliseconds(run, 20):>9.2f} ms{first:>9.2f} ms", end="")
        if theirs:
            their_first, their_time = theirs[str(n)]
            print(f"{their_time:>11.3f} ms{their_first:>9.0f} ms", end="")
        print()

    print(f"\n{'generate, sites':28}{'total':>12}{'per site':>12}")
    for n in (1, 10, 100, 1000):
        total = milliseconds(sites(n), 5)
        print(f"{n:<28,}{total:>9.2f} ms{total / n:>9.4f} ms")

    print(f"\n{'import':28}{'median of 7':>12}")
    times = {}
    for what in ("pass", "import mlx.core", "import genmlx"):
        runs = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", what], check=True)
            runs.append(1e3 * (time.perf_counter() - start))
        times[what] = sorted(runs)[3]
        print(f"{what:28}{times[what]:>9.1f} ms")
    print(f"{'genmlx after mlx.core':28}{times['import genmlx'] - times['import mlx.core']:>9.1f} ms")


if __name__ == "__main__":
    main()
