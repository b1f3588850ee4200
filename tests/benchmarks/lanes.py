"""HMC of many chains: one by one, in lanes, and NumPyro's.

Run: python tests/benchmarks/lanes.py [--numpyro PYTHON] [--models schools logistic] [--chains 16 100 1000]

Each row is a process of its own that samples twice; times are of the second run, which compiles nothing. Ten leapfrog
steps to a draw, and all else by default; "ns" are those of a leapfrog step of one chain, with warm-up and all else that
a run does, and ESS is the smallest bulk effective sample size of all parameters. NumPyro draws its chains
"vectorized". The posterior means of all sides must agree within Monte Carlo error, or the script fails.
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

from sampled_models import MODELS, of_genmlx, of_numpyro

STEPS, ERRORS = 10, 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["schools", "logistic"])
    parser.add_argument("--chains", nargs="+", type=int, default=[16, 100, 1000])
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--numpyro", metavar="PYTHON", help="an interpreter with numpyro")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(**json.loads(options.child))
        return
    sides = [("one by one", sys.executable), ("lanes", sys.executable)]
    sides += [("numpyro", options.numpyro)] if options.numpyro else []
    print(f"{'':9}{'chains':>7}  {'':12}{'seconds':>9}{'ns':>9}{'ESS':>10}{'ESS/s':>11}", flush=True)
    for model in options.models:
        for chains in options.chains:
            found = {
                side: show(python, {"side": side, "model": model, "chains": chains, "draws": options.draws,
                                    "warmup": options.warmup})
                for side, python in sides
            }  # fmt: skip
            require_agreement(found)


def show(python: str, wanted: dict) -> dict[str, tuple]:
    """A row; the mean of each parameter, and its error."""
    import mlx.core as mx
    import numpy as np

    from genmlx.diagnostics import ess, mcse

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, __file__, "--child", json.dumps({**wanted, "folder": folder})], check=True)
        draws = dict(np.load(Path(folder) / "draws.npz"))
    seconds = draws.pop("seconds").item()
    arrays = {name: mx.array(values.astype(np.float32)) for name, values in draws.items()}
    least = min(float(np.min(np.array(ess(values)))) for values in arrays.values())
    steps = wanted["chains"] * (wanted["warmup"] + wanted["draws"]) * STEPS
    print(
        f"{wanted['model']:9}{wanted['chains']:>7,}  {wanted['side']:12}{seconds:>9.3f}{1e9 * seconds / steps:>9.1f}",
        end="",
    )
    print(f"{least:>10,.0f}{least / seconds:>11,.0f}", flush=True)
    return {name: (np.mean(draws[name], axis=(0, 1)), np.array(mcse(values))) for name, values in arrays.items()}


def require_agreement(found: dict[str, dict[str, tuple]]) -> None:
    import numpy as np

    first = next(iter(found.values()))
    for side, means in found.items():
        for name, (mean, error) in means.items():
            other, others = first[name]
            if side != next(iter(found)) and not np.all(abs(mean - other) <= ERRORS * np.hypot(error, others)):
                raise SystemExit(f"{side} has another mean of {name}: {mean} and {other}")


# in a process of its own


def measure(side: str, model: str, chains: int, draws: int, warmup: int, folder: str) -> None:
    import numpy as np

    run = (numpyro_run if side == "numpyro" else genmlx_run)(side, model, chains, draws, warmup)
    run(1)
    begin = time.perf_counter()
    found = run(2)
    seconds = time.perf_counter() - begin
    np.savez(Path(folder) / "draws.npz", seconds=seconds, **found)


def genmlx_run(side: str, model: str, chains: int, draws: int, warmup: int) -> Any:
    import mlx.core as mx
    import numpy as np

    from genmlx import hmc
    from genmlx.native import density

    mx.set_default_device(mx.cpu)
    density.lanes_pay = lambda *_: side == "lanes"
    call, observations = of_genmlx(model)

    def run(seed: int) -> dict:
        settings = {"draws": draws, "warmup": warmup, "chains": chains, "leapfrog_steps": STEPS, "native": True}
        post = hmc(call, observations, key=mx.random.key(seed), **settings)
        assert ("lanes" in post.execution) == (side == "lanes"), post.execution
        return {str(address[0]): np.array(post[address]) for address in post.addresses()}

    return run


def numpyro_run(side: str, model: str, chains: int, draws: int, warmup: int) -> Any:
    import jax
    import numpy as np
    from numpyro.infer import HMC, MCMC

    settings = {"num_warmup": warmup, "num_samples": draws, "num_chains": chains, "progress_bar": False}
    kernel = HMC(of_numpyro(model), num_steps=STEPS, trajectory_length=None)
    mcmc = MCMC(kernel, chain_method="vectorized", jit_model_args=True, **settings)

    def run(seed: int) -> dict:
        mcmc.run(jax.random.key(seed))
        return {name: np.asarray(values) for name, values in mcmc.get_samples(group_by_chain=True).items()}

    return run


if __name__ == "__main__":
    main()
