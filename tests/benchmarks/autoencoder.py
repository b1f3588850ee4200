"""Training a variational autoencoder beside NumPyro's SVI: gradient steps per second, the first step included.

Run: python tests/benchmarks/autoencoder.py [--numpyro PYTHON] [--steps 500 2000] [--batch 100] [--width 64] [--cpu]

PYTHON is an interpreter that has numpyro; without it this one is asked, and if it has none NumPyro is left out. Two
thousand pictures of 12 x 12 pixels (discs, as in notebook 11), three latents, one hidden layer of tanh on each side,
Adam with rate 0.001, one draw of the guide for each picture. Each row is a process of its own. "import", "first run"
(from the networks to the trained weights, tracing and compilation included) and "second run" (the same again with
another key and new networks) are seconds; steps per second are those of the first run and of the second. NumPyro runs
all steps in one ``lax.scan`` under ``jit``, compiled once; XLA may use every core. "bound" is that of fresh pictures
after the first run, per picture. The libraries draw their first weights otherwise, which shows in short runs: after the
most steps the two must agree to 1.5 nats, or the script fails.
"""

# pyright: reportMissingImports=false
# jax and numpyro belong to the other interpreter.

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

SIDE, LATENTS, ROWS, RATE = 12, 3, 2000, 1e-3
ON_CPU = "AUTOENCODER_ON_CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", type=int, default=[500, 2000])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--numpyro", metavar="PYTHON", default=sys.executable, help="an interpreter with numpyro")
    parser.add_argument("--cpu", action="store_true", help="both on the CPU, where there is a GPU too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(**json.loads(options.child))
        return
    if options.cpu:
        os.environ |= {ON_CPU: "yes", "JAX_PLATFORMS": "cpu"}
    sides = {"genmlx": sys.executable}
    if subprocess.run([options.numpyro, "-c", "import numpyro"], capture_output=True).returncode:
        print(f"NumPyro left out: {options.numpyro} has none")
    else:
        sides["numpyro"] = options.numpyro
    print(
        f"{'steps':>7}  {'':9}{'import':>8}{'first run':>11}{'second run':>12}{'steps/s':>10}{'second':>9}{'bound':>9}"
    )
    bounds = []
    for steps in sorted(options.steps):
        bounds = []
        for side, python in sides.items():
            wanted = {"side": side, "steps": steps, "batch": options.batch, "width": options.width}
            command = [python, __file__, "--child", json.dumps(wanted)]
            told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            bounds.append(told["bound"])
            print(f"{steps:>7,}  {side:9}{told['import']:>8.2f}{told['first']:>11.2f}{told['second']:>12.2f}", end="")
            print(f"{steps / told['first']:>10,.0f}{steps / told['second']:>9,.0f}{told['bound']:>9.2f}", flush=True)
    if (apart := max(bounds) - min(bounds)) > 1.5:
        sys.exit(f"FAILED: the bounds lie {apart:.2f} nats apart: not the same training")


def discs(n: int, seed: int) -> np.ndarray:
    """Pictures ``[n, 144]`` of 0 and 1."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    x, y = rng.uniform(3.5, 7.5, (2, n, 1, 1))
    r = rng.uniform(1.5, 3.5, (n, 1, 1))
    return (np.hypot(columns - x, rows - y) < r).reshape(n, -1).astype(np.int32)


# in a process of its own


def measure(side: str, steps: int, batch: int, width: int) -> None:
    start = time.perf_counter()
    run = (prepare_genmlx if side == "genmlx" else prepare_numpyro)()
    imported = time.perf_counter()
    pictures, fresh = discs(ROWS, 0), discs(500, 1)
    times = [time.perf_counter()]
    bounds = []
    for seed in (1, 2):
        bound = run(pictures, fresh, steps, batch, width, seed, lambda: times.append(time.perf_counter()))
        bounds.append(bound)
        times.append(time.perf_counter())
    told = {"import": imported - start, "first": times[1] - times[0], "second": times[3] - times[2]}
    print(json.dumps({**told, "bound": bounds[0]}))


def prepare_genmlx() -> Any:
    import mlx.core as mx
    from mlx import nn

    from genmlx import gen, neural, normal, splice, trace, train
    from genmlx.dist import bernoulli_logits
    from genmlx.learning import elbo

    if ON_CPU in os.environ:
        mx.set_default_device(mx.cpu)

    def run(pictures: Any, fresh: Any, steps: int, batch: int, width: int, seed: int, trained: Any) -> float:
        mx.random.seed(seed)
        pixels = SIDE * SIDE
        decoder = neural(nn.Sequential(nn.Linear(LATENTS, width), nn.Tanh(), nn.Linear(width, pixels)), "decoder")
        encoder = neural(nn.Sequential(nn.Linear(pixels, width), nn.Tanh(), nn.Linear(width, 2 * LATENTS)), "encoder")

        @gen
        def painter(n):
            z = trace("z", normal(mx.zeros((n, LATENTS)), 1.0))
            trace("pixels", bernoulli_logits(splice(decoder(z))))

        @gen
        def viewer(pixels):
            about = splice(encoder(pixels.astype(mx.float32)))
            trace("z", normal(about[:, :LATENTS], mx.exp(about[:, LATENTS:])))

        def bound(pixels, key):
            return elbo(painter(pixels.shape[0]), {"pixels": pixels}, viewer(pixels), key=key)

        train(bound, mx.array(pictures), batch_size=batch, iterations=steps, learning_rate=RATE, key=seed)
        trained()
        total: Any = bound(mx.array(fresh), mx.random.key(0)).item()
        return total / len(fresh)

    return run


def prepare_numpyro() -> Any:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO

    def dense(name: str, x: Any, width: int) -> Any:
        scale = 1 / np.sqrt(x.shape[-1])

        def between(shape: tuple) -> Any:
            return lambda key: jax.random.uniform(key, shape, minval=-scale, maxval=scale)

        weight = numpyro.param(f"{name}.weight", between((x.shape[-1], width)))
        return x @ weight + numpyro.param(f"{name}.bias", between((width,)))

    def run(pictures: Any, fresh: Any, steps: int, batch: int, width: int, seed: int, trained: Any) -> float:
        def model(pixels: Any) -> None:
            with numpyro.plate("rows", pixels.shape[0]):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENTS), 1.0).to_event(1))
                logits = dense("out", jnp.tanh(dense("in", z, width)), SIDE * SIDE)
                numpyro.sample("pixels", dist.Bernoulli(logits=logits).to_event(1), obs=pixels)

        def guide(pixels: Any) -> None:
            about = dense("about", jnp.tanh(dense("seen", pixels.astype(jnp.float32), width)), 2 * LATENTS)
            with numpyro.plate("rows", pixels.shape[0]):
                numpyro.sample("z", dist.Normal(about[:, :LATENTS], jnp.exp(about[:, LATENTS:])).to_event(1))

        svi = SVI(model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())
        rows = jnp.array(pictures)
        state = svi.init(jax.random.key(seed), rows[:batch])
        epochs = -(-steps // (ROWS // batch))
        keys = jax.random.split(jax.random.key(100 + seed), epochs)
        order = np.concatenate([jax.random.permutation(k, ROWS)[: ROWS // batch * batch] for k in keys])

        @jax.jit
        def all_steps(state: Any, order: Any) -> Any:
            return jax.lax.scan(lambda state, chosen: svi.update(state, rows[chosen]), state, order)

        state, _ = all_steps(state, order.reshape(-1, batch)[:steps])
        jax.block_until_ready(svi.get_params(state))
        trained()
        return -float(svi.evaluate(state, jnp.array(fresh))) / len(fresh)

    return run


if __name__ == "__main__":
    main()
