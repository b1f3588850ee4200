"""Hamiltonian Monte Carlo by thousands of chains on a GPU: text for it, MLX's batches, and NumPyro's.

    python tests/benchmarks/many_chains.py [--numpyro PYTHON] [--models schools ...] [--chains 1000 ...]

PYTHON is an interpreter that has numpyro. Each row is a process of its own, which runs twice: "first run" is from the
model to the draws, with tracing and compilation, "second run" the same with another key, warm-up included, in seconds.
"leapfrog" is the time of one step of all chains in sampling, in microseconds, and ESS/s the smallest bulk effective
sample size of all parameters over the time of sampling. Trajectories have 8 steps, the target acceptance is 0.8, and
NumPyro's chains are "vectorized"; it adapts each chain by itself, where chains share what they learn here. Its times
include that ``MCMC.run`` (0.21) traces its loop anew each time, and finds its code in JAX's cache.

The posterior means must agree within Monte Carlo error, or the script fails.
"""

# pyright: reportMissingImports=false
# jax and numpyro belong to another interpreter.

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sampled_models import of_genmlx, of_numpyro

STEPS, DRAWS, WARMUP = 8, 100, 200
COUNTED = 1000
"""Chains whose effective sample size is computed; that of all is taken to be in proportion."""
ERRORS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("schools", "logistic"), default=["schools", "logistic"])
    parser.add_argument("--chains", nargs="+", type=int, default=[1000, 10_000, 100_000])
    parser.add_argument("--sides", nargs="+", default=["native", "mlx", "numpyro"])
    parser.add_argument("--numpyro", metavar="PYTHON", help="an interpreter with numpyro")
    parser.add_argument("--seconds", type=float, default=120, help="the most that a row may take")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(**json.loads(options.child))
        return
    print(f"HMC of {STEPS} steps, {WARMUP} warm-up and {DRAWS} draws of each chain\n")
    print(f"{'':9}{'chains':>8}  {'':8}{'first run':>10}{'second run':>11}{'sampling':>9}", end="")
    print(f"{'leapfrog/us':>12}{'ESS/s':>12}{'accept':>8}")
    wrong = []
    for model in options.models:
        for chains in options.chains:
            found = {}
            for side in options.sides:
                python = options.numpyro if side == "numpyro" else sys.executable
                if python is not None:
                    found[side] = show(python, options.seconds, side=side, model=model, chains=chains)
            told = [own for own in found.values() if own is not None]
            for own in told[1:]:
                apart = np.abs(own["mean"] - told[0]["mean"]) / np.hypot(own["error"], told[0]["error"])
                if not apart.max() < ERRORS:
                    wrong.append(f"{model}, {chains:,} chains: {apart.max():.1f} Monte Carlo errors apart")
    if wrong:
        sys.exit("FAILED: " + "; ".join(wrong))


def show(python: str, seconds: float, **wanted: Any) -> dict | None:
    """Run one side, and print its row."""
    with tempfile.TemporaryDirectory() as folder:
        told = json.dumps({**wanted, "folder": folder})
        print(f"{wanted['model']:9}{wanted['chains']:>8,}  {wanted['side']:8}", end="", flush=True)
        try:
            done = subprocess.run([python, __file__, "--child", told], timeout=seconds, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            print(f"  more than {seconds:.0f} s")
            return None
        if done.returncode:
            print(" ", done.stderr.strip().splitlines()[-1][:200])
            return None
        with np.load(Path(folder) / "found.npz") as arrays:
            found = dict(arrays)
    first, second, sampling = found["seconds"]
    print(f"{first:>10.2f}{second:>11.3f}{sampling:>9.3f}{1e6 * sampling / (DRAWS * STEPS):>12,.1f}", end="")
    print(f"{found['ess'].min() / sampling:>12,.0f}{found['accept']:>8.2f}", flush=True)
    return found


def measure(side: str, model: str, chains: int, folder: str) -> None:
    run = (with_numpyro if side == "numpyro" else with_genmlx)(side, model, chains, folder)
    start = time.perf_counter()
    run(1)
    first = time.perf_counter() - start
    start = time.perf_counter()
    draws, accept, sampling = run(2)
    second = time.perf_counter() - start
    flat = np.concatenate([x.reshape(*x.shape[:2], -1) for x in draws], axis=-1).astype(float)
    each = flat.mean(axis=1)
    error = each.std(axis=0, ddof=1) / np.sqrt(chains)
    parts = flat[:COUNTED]
    ess = np.array([effective(parts[..., i]) for i in range(parts.shape[-1])]) * chains / len(parts)
    told = {"seconds": [first, second, sampling], "mean": each.mean(axis=0), "error": error, "ess": ess}
    np.savez(Path(folder) / "found.npz", **told, accept=accept)


def effective(x: np.ndarray) -> float:
    """Effective sample size of chains that have one distribution: draws over the chains' autocorrelation time.

    The variance of the means of many chains says it without any lag: var of draws / var of a chain's mean.
    """
    return len(x) * x.var() / x.mean(axis=1).var(ddof=1)


def with_genmlx(side: str, model: str, chains: int, folder: str) -> Any:
    import mlx.core as mx

    from genmlx.inference import hmc

    call, observations = of_genmlx(model)
    settings: dict = {"draws": DRAWS, "warmup": WARMUP, "chains": chains, "leapfrog_steps": STEPS}

    def run(seed: int) -> tuple:
        post = hmc(call, observations, key=mx.random.key(seed), native=side == "native", **settings)
        draws = [np.array(post[address]) for address in sorted(post.addresses())]
        return draws, np.array(post.stats["accept"]).mean(), post.timing["sampling"]

    return run


def with_numpyro(side: str, model: str, chains: int, folder: str) -> Any:
    import jax
    from numpyro.infer import HMC, MCMC

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    kernel = HMC(of_numpyro(model), num_steps=STEPS, trajectory_length=None)
    mcmc = MCMC(
        kernel,
        num_warmup=WARMUP,
        num_samples=DRAWS,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )

    def run(seed: int) -> tuple:
        mcmc.warmup(jax.random.key(seed))
        mcmc.run(jax.random.key(seed), extra_fields=("accept_prob",))
        start = time.perf_counter()
        mcmc.run(jax.random.key(seed + 100), extra_fields=("accept_prob",))
        found = mcmc.get_samples(group_by_chain=True)
        draws = [np.asarray(found[name]) for name in sorted(found)]
        sampling = time.perf_counter() - start
        return draws, np.asarray(mcmc.get_extra_fields()["accept_prob"]).mean(), sampling

    return run


if __name__ == "__main__":
    main()
