"""Variational inference beside NumPyro's: gradient steps of a mean field on a logistic regression, 20 x 1,000.

Run: python tests/benchmarks/variational.py [--numpyro PYTHON] [--samples 1 10] [--steps 5000] [--cpu]

PYTHON is an interpreter that has numpyro; without it NumPyro is left out. Each row is a process of its own. "import",
"first step" (from the model to the first step's objective: tracing, compilation, and for genmlx the search for a place
to start) and "all steps" (to the last one of the first run, the first included) are seconds. "steps/s" is that of a
second run with another key, from its first step to its last. "bound" is the evidence bound of the first run's guide by
4,000 fresh draws of its own.

genmlx takes natural gradients of a size that it learns, all of the steps (``tolerance=0``); NumPyro's ``SVI`` takes
``AutoNormal`` and ``Trace_ELBO`` with as many particles, Adam with a rate of 0.01, and runs its steps in one compiled
loop (``SVI.run`` would compile it anew for the second run). XLA may use every core. The bounds must agree within a
nat, or the script fails. The last rows are genmlx left to itself: how soon each family has converged, and to what.
"""

# pyright: reportMissingImports=false
# jax and numpyro belong to the other interpreter.

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sampled_models import of_genmlx, of_numpyro
from samplers import NUMPYRO, ON_CPU, choose_device, device_of, mlx_device

APART = 1.0  # nats that the two bounds may differ by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", nargs="+", type=int, default=[1, 10])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--numpyro", metavar="PYTHON", help="an interpreter with numpyro")
    parser.add_argument("--cpu", action="store_true", help="both on the CPU, where there is a GPU too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        wanted = json.loads(options.child)
        return measure(**wanted)
    if options.cpu:
        os.environ |= {ON_CPU: "yes", "JAX_PLATFORMS": "cpu"}
    theirs, missing = device_of(options.numpyro, NUMPYRO)
    print(f"genmlx on {mlx_device()}, NumPyro {theirs or f'left out: {missing}'}")
    print(f"mean field, {options.steps:,} steps\n")
    print(f"{'samples':>7}  {'':8}{'import':>8}{'first step':>12}{'all steps':>11}{'steps/s':>9}{'bound':>18}")
    sides = [("genmlx", sys.executable)] + ([("numpyro", options.numpyro)] if theirs else [])
    apart = []
    for samples in options.samples:
        bounds = [show(side, python, samples, options.steps) for side, python in sides]
        apart.append(max(bounds) - min(bounds))
    print(f"\n{'':10}{'steps':>8}{'first run':>11}{'second run':>12}{'bound':>18}{'k-hat':>8}")
    for family in ("meanfield", "lowrank", "fullrank"):
        found = in_child(sys.executable, {"side": "converged", "family": family})
        print(f"{family:10}{found['steps']:>8,}{found['first']:>11.2f}{found['second']:>12.2f}", end="")
        print(f"{found['bound']:>10.2f} +- {found['error']:.2f}{found['khat']:>8.2f}", flush=True)
    if not all(nats <= APART for nats in apart):
        sys.exit(f"FAILED: bounds more than {APART} nats apart: not the same guide")


def show(side: str, python: str, samples: int, steps: int) -> float:
    """Run one side, and print its row; the bound of its guide."""
    found = in_child(python, {"side": side, "samples": samples, "steps": steps})
    print(f"{samples:>7}  {side:8}{found['import']:>8.2f}{found['first']:>12.2f}{found['all']:>11.2f}", end="")
    print(f"{found['rate']:>9,.0f}{found['bound']:>10.2f} +- {found['error']:.2f}", flush=True)
    return found["bound"]


def in_child(python: str, wanted: dict) -> dict:
    """What a process of its own measures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        subprocess.run([python, __file__, "--child", json.dumps({**wanted, "path": str(path)})], check=True)
        return json.loads(path.read_text())


# in a process of its own


def measure(side: str, path: str, **wanted: Any) -> None:
    run = {"genmlx": run_genmlx, "numpyro": run_numpyro, "converged": run_to_the_end}[side]
    Path(path).write_text(json.dumps(run(**wanted)))


def run_genmlx(samples: int, steps: int) -> dict:
    start = time.perf_counter()
    import mlx.core as mx

    from genmlx.inference import vi

    choose_device()
    imported = time.perf_counter()
    model = of_genmlx("logistic")
    first: list[tuple[float, int]] = []

    def watch(event: Any) -> None:
        if event.phase == "fitting":
            ends.append((time.perf_counter(), event.done))

    for seed in (1, 2):
        ends: list[tuple[float, int]] = []
        begin = time.perf_counter()
        fit = vi(*model, samples=samples, iterations=steps, tolerance=0, key=mx.random.key(seed), progress=watch)
        if seed == 1:
            first, began, bound = ends, begin, fit
    return {
        "import": imported - start,
        "first": first[0][0] - began,
        "all": first[-1][0] - began,
        "rate": (ends[-1][1] - ends[0][1]) / (ends[-1][0] - ends[0][0]),
        "bound": bound.log_ml_bound,
        "error": bound.log_ml_bound_error,
    }


def run_numpyro(samples: int, steps: int) -> dict:
    start = time.perf_counter()
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    imported = time.perf_counter()
    program = of_numpyro("logistic")
    begin = time.perf_counter()
    guide = AutoNormal(program)
    svi = SVI(program, guide, numpyro.optim.Adam(0.01), Trace_ELBO(num_particles=samples))
    step = jax.jit(svi.update)
    rest = jax.jit(lambda state: jax.lax.scan(lambda s, _: svi.update(s), state, length=steps - 1))
    jax.block_until_ready(step(svi.init(jax.random.key(1))))
    first = time.perf_counter()
    state, _ = jax.block_until_ready(rest(step(svi.init(jax.random.key(1)))[0]))
    last = time.perf_counter()
    other = jax.block_until_ready(step(svi.init(jax.random.key(2)))[0])
    again = time.perf_counter()
    jax.block_until_ready(rest(other))
    end = time.perf_counter()
    loss = jax.jit(lambda key: Trace_ELBO().loss(key, svi.get_params(state), program, guide))
    bounds = -jax.lax.map(loss, jax.random.split(jax.random.key(3), 4000))
    return {
        "import": imported - start,
        "first": first - begin,
        "all": last - begin,
        "rate": (steps - 1) / (end - again),
        "bound": float(bounds.mean()),
        "error": float(bounds.std() / 4000**0.5),
    }


def run_to_the_end(family: str) -> dict:
    import mlx.core as mx

    from genmlx.inference import vi

    choose_device()
    model, times = of_genmlx("logistic"), [time.perf_counter()]
    for seed in (1, 2):
        fit = vi(*model, family=family, key=mx.random.key(seed))
        times.append(time.perf_counter())
    return {
        "steps": len(fit.history),
        "first": times[1] - times[0],
        "second": times[2] - times[1],
        "bound": fit.log_ml_bound,
        "error": fit.log_ml_bound_error,
        "khat": fit.khat,
    }


if __name__ == "__main__":
    main()
