"""NUTS beside NumPyro's and nutpie's: five models at several numbers of chains; and a step of it on MLX.

Run: python tests/benchmarks/samplers.py [--numpyro PYTHON] [--nutpie PYTHON] [--models ...] [--chains 1 4 100] [--cpu]

PYTHON is an interpreter that has numpyro, or nutpie and pymc; a side without one is left out. Each row is a process of
its own. "process" is from its start to the summary of its first run, Python's own start included; "first run" is from
the model to the draws as numpy arrays, tracing and compilation included, and "second run" the same with another key,
all in seconds. ESS is the smallest bulk effective sample size of all parameters in the second run, by
``genmlx.diagnostics`` for all, and ESS/s that over the second run; "leapfrogs" are steps for each draw. All have their
defaults: target acceptance 0.8, trees to depth 10, a diagonal mass matrix; float32 but for nutpie, which has float64.
"genmlx" is machine code, on a CPU, and "genmlx mlx" the same sampler as MLX graphs. Compiled code is kept in a cache,
which is empty here at first. NumPyro draws its chains "vectorized"; on a CPU also "parallel" with a device for each
chain, if they are 2 to 16; XLA may use every core. Its second run finds what the first compiled in a JAX compilation
cache: ``MCMC.run`` (0.22) traces its loop anew each time, and without the cache would compile it anew too. nutpie
compiles once, for both runs.

The posterior means must agree with those of genmlx within Monte Carlo error, or the script fails.

``--steps`` adds a table of a step of all chains on MLX, best of 20: by Python, replayed as a recorded graph, and
through ``mx.compile``, beside what its compilation takes.
"""

# pyright: reportMissingImports=false
# jax, numpyro and nutpie belong to other interpreters.

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sampled_models import MODELS, of_genmlx, of_numpyro, of_pymc

ON_CPU = "SAMPLERS_ON_CPU"
ERRORS = 5.0
"""So many Monte Carlo errors may two means lie apart: 1 in 1.7 million if they are of the same posterior."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--chains", nargs="+", type=int, default=[4])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--numpyro", metavar="PYTHON", help="an interpreter with numpyro")
    parser.add_argument("--nutpie", metavar="PYTHON", help="an interpreter with nutpie and pymc")
    parser.add_argument("--mlx", action="store_true", help="our sampler without machine code too")
    parser.add_argument("--cpu", action="store_true", help="all on the CPU, where there is a GPU too")
    parser.add_argument("--steps", action="store_true", help="the table of steps on MLX")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child = json.loads(options.child)
        (steps if "numbers" in child else measure)(**child)
        return
    if options.cpu:
        os.environ |= {ON_CPU: "yes", "JAX_PLATFORMS": "cpu"}
    theirs, missing = device_of(options.numpyro, NUMPYRO)
    nutpie, lacking = device_of(options.nutpie, NUTPIE)
    print(f"genmlx on {mlx_device()}")
    print(f"NumPyro {theirs or f'left out: {missing}'}")
    print(f"nutpie {nutpie or f'left out: {lacking}'}")
    print(f"NUTS, {options.warmup:,} warm-up and {options.draws:,} draws of each chain\n")
    print(f"{'':9}{'chains':>7}  {'':20}{'process':>8}{'first run':>11}{'second run':>12}", end="")
    print(f"{'ESS':>10}{'ESS/s':>9}{'leapfrogs':>11}{'divergent':>11}{'R-hat':>8}")
    apart = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["GENMLX_CACHE"] = cache
        for model in options.models:
            for chains in options.chains:
                sides = [("genmlx", sys.executable), *([("genmlx mlx", sys.executable)] if options.mlx else [])]
                if theirs:
                    sides += [(f"numpyro {how}", options.numpyro) for how in chain_methods(chains, theirs)]
                if nutpie:
                    sides.append(("nutpie", options.nutpie))
                means = {}
                for side, python in sides:
                    wanted = {"model": model, "chains": chains, "draws": options.draws, "warmup": options.warmup}
                    means[side] = show(side, python, wanted)
                for side in list(means)[1:]:
                    apart[model, chains, side] = difference(means["genmlx"], means[side])
    print()
    for (model, chains, side), errors in apart.items():
        print(f"{model}, {chains} chains: the means of genmlx and {side} lie {errors:.1f} Monte Carlo errors apart")
    if options.steps:
        print(f"\n{'one step':9}{'chains':>7}  {'Python':>12}{'replayed':>12}{'compiled':>12}{'compilation':>14}")
        sys.stdout.flush()
        for model in options.models:
            with tempfile.TemporaryDirectory() as folder:
                in_child(sys.executable, {"model": model, "numbers": options.chains}, {**os.environ, "TMPDIR": folder})
    if not all(errors <= ERRORS for errors in apart.values()):
        sys.exit(f"FAILED: means more than {ERRORS} Monte Carlo errors apart: not the same posterior")


def choose_device() -> None:
    import mlx.core as mx

    if ON_CPU in os.environ:
        mx.set_default_device(mx.cpu)


def mlx_device() -> str:
    from importlib.metadata import version

    import mlx.core as mx

    choose_device()
    return f"{mx.default_device().type.name} (MLX {version('mlx')})"


NUMPYRO = (
    "import jax, numpyro; d = jax.devices()[0].platform; print(f'{numpyro.__version__} on {d} (JAX {jax.__version__})')"
)
NUTPIE = "import nutpie, pymc; print(f'{nutpie.__version__} (PyMC {pymc.__version__})')"


def device_of(python: str | None, code: str) -> tuple[str | None, str]:
    """What a peer is, and runs on, under an interpreter; or None, and why it does not."""
    if python is None:
        return None, "no interpreter was named"
    run = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if run.returncode:
        return None, run.stderr.strip().splitlines()[-1]
    return run.stdout.strip(), ""


def chain_methods(chains: int, device: str) -> list[str]:
    return ["vectorized", "parallel"] if "cpu" in device and 2 <= chains <= 16 else ["vectorized"]


def show(side: str, python: str, wanted: dict) -> tuple:
    """Run one side, and print its row; the means and Monte Carlo errors of its parameters."""
    import numpy as np

    from genmlx.diagnostics import ess, mcse, rhat

    with tempfile.TemporaryDirectory() as folder:
        in_child(python, {"side": side, "folder": folder, "begun": time.time(), **wanted})
        times = json.loads((Path(folder) / "times.json").read_text())
        with np.load(Path(folder) / "draws.npz") as draws:
            found = dict(draws)
    steps, divergent = found.pop("n_leapfrog"), found.pop("diverging")
    least = min(float(np.min(ess(x))) for x in found.values())
    worst = max(float(np.max(rhat(x))) for x in found.values())
    print(f"{wanted['model']:9}{wanted['chains']:>7,}  {side:20}{times['process']:>8.2f}", end="")
    print(f"{times['first']:>11.3f}{times['second']:>12.3f}{least:>10,.0f}{least / times['second']:>9,.0f}", end="")
    print(f"{steps.mean():>11.1f}{divergent.sum():>11,}{worst:>8.3f}", flush=True)
    return {a: x.mean(axis=(0, 1), dtype=float) for a, x in found.items()}, {a: mcse(x) for a, x in found.items()}


def difference(ours: tuple, theirs: tuple) -> float:
    """The largest difference of two posterior means, in Monte Carlo errors."""
    import numpy as np

    (means, errors), (others, other_errors) = ours, theirs
    assert means.keys() == others.keys()
    each = [np.max(abs(means[a] - others[a]) / np.hypot(errors[a], other_errors[a])) for a in means]
    return float(np.max(each))  # nan, which fails, if one of them is


# in a process of its own


def in_child(python: str, wanted: dict, environment: dict | None = None) -> None:
    subprocess.run([python, __file__, "--child", json.dumps(wanted)], check=True, env=environment)


def measure(side: str, folder: str, model: str, chains: int, draws: int, warmup: int, begun: float) -> None:
    import numpy as np

    name, *how = side.split()
    build = PREPARED[name](*how, folder=folder, chains=chains)
    begin = time.perf_counter()
    run, summary = build(model, chains, draws, warmup)
    run(1)
    first = time.perf_counter()
    summary()
    process = time.time() - begun
    start = time.perf_counter()
    found = run(2)
    times = {"process": process, "first": first - begin, "second": time.perf_counter() - start}
    (Path(folder) / "times.json").write_text(json.dumps(times))
    np.savez(Path(folder) / "draws.npz", **found)


def prepare_genmlx(how: str = "", **_: Any) -> Any:
    from genmlx.inference import nuts

    choose_device()

    def build(model: str, chains: int, draws: int, warmup: int) -> Any:
        import mlx.core as mx
        import numpy as np

        call, observations = of_genmlx(model)
        last: Any = None

        def run(seed: int) -> dict:
            nonlocal last
            settings = {"draws": draws, "warmup": warmup, "chains": chains, "native": False if how == "mlx" else None}
            last = post = nuts(call, observations, key=mx.random.key(seed), **settings)
            found = {str(address[0]): post[address] for address in post.addresses()}
            found |= {name: post.stats[name] for name in ("n_leapfrog", "diverging")}
            return {name: np.array(value) for name, value in found.items()}

        return run, lambda: repr(last.summary())

    return build


def prepare_numpyro(how: str, folder: str, chains: int) -> Any:
    import numpyro

    if how == "parallel":
        numpyro.set_host_device_count(chains)
    import jax
    from numpyro.infer import MCMC, NUTS

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    def build(model: str, chains: int, draws: int, warmup: int) -> Any:
        import numpy as np

        settings = {"num_warmup": warmup, "num_samples": draws, "num_chains": chains, "progress_bar": False}
        mcmc = MCMC(NUTS(of_numpyro(model)), chain_method=how, **settings)

        def run(seed: int) -> dict:
            mcmc.run(jax.random.key(seed), extra_fields=("num_steps", "diverging"))
            stats = mcmc.get_extra_fields(group_by_chain=True)
            found = {**mcmc.get_samples(group_by_chain=True), "diverging": stats["diverging"]}
            return {name: np.asarray(value) for name, value in {**found, "n_leapfrog": stats["num_steps"]}.items()}

        def summary() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                mcmc.print_summary()

        return run, summary

    return build


def prepare_nutpie(**_: Any) -> Any:
    import nutpie

    def build(model: str, chains: int, draws: int, warmup: int) -> Any:
        import numpy as np

        compiled = nutpie.compile_pymc_model(of_pymc(model))
        last: Any = None

        def run(seed: int) -> dict:
            nonlocal last
            settings = {"draws": draws, "tune": warmup, "chains": chains, "seed": seed, "progress_bar": False}
            last = nutpie.sample(compiled, **settings)
            names = [name for name in last.posterior.data_vars if not name.endswith("__")]
            found = {name: np.asarray(last.posterior[name]) for name in names}
            stats = {"n_leapfrog": last.sample_stats["n_steps"], "diverging": last.sample_stats["diverging"]}
            return found | {name: np.asarray(value) for name, value in stats.items()}

        def summary() -> None:
            import arviz

            arviz.summary(last)

        return run, summary

    return build


PREPARED = {"genmlx": prepare_genmlx, "numpyro": prepare_numpyro, "nutpie": prepare_nutpie}

# a step


def steps(model: str, numbers: list[int]) -> None:
    import mlx.core as mx
    import optree
    from timing import milliseconds

    from genmlx.backend.recording import recorded
    from genmlx.inference.gradient_chains import Tuning, noises
    from genmlx.inference.leapfrog import evaluate, identity_metric
    from genmlx.inference.log_density import LogDensity
    from genmlx.inference.nuts import sampler

    choose_device()
    density = LogDensity(*of_genmlx(model))
    nuts = sampler(density.value_and_grad)
    for chains in numbers:
        point = evaluate(density.value_and_grad, density.initial(mx.random.key(0), chains))
        tuning = Tuning(mx.full((chains, 1), 0.1), identity_metric(density.dim))
        noise = next(noises(mx.random.key(1), chains, density.dim))
        state = nuts.init(point, noise, tuning)
        trees: Any = (state, noise, tuning)
        arrays, spec = optree.tree_flatten(trees)

        def python(*arrays: Any, spec: Any = spec) -> list:
            own: Any = optree.tree_unflatten(spec, arrays)
            made: Any = nuts.step(*own)
            return optree.tree_leaves(made)

        compiled, own = mx.compile(python), len(optree.tree_leaves(state))
        mx.eval(arrays)
        begin = time.perf_counter()
        mx.eval(compiled(*arrays))
        compilation = time.perf_counter() - begin
        times = [
            1e3 * milliseconds(lambda step=step, arrays=arrays, own=own: together(step, arrays, own), 1, 20) / STEPS
            for step in (python, recorded(python, *arrays), compiled)
        ]
        shown = "".join(f"{t:>9,.0f} us" for t in times)
        print(f"{model:9}{chains:>7,}  {shown}{1e3 * compilation:>11,.0f} ms", flush=True)


STEPS = 16


def together(step: Any, arrays: list, own: int) -> None:
    """Steps one after another that are evaluated together, as the sampler does it; its state are ``own`` arrays."""
    import mlx.core as mx

    state, rest, infos = arrays[:own], arrays[own:], []
    for _ in range(STEPS):
        made = step(*state, *rest)
        state = made[:own]
        infos.append(made[own:])
    mx.eval(state, infos)


if __name__ == "__main__":
    main()
