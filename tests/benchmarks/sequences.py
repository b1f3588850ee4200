"""Incremental against full updates, and steps per second of long sequences.

Run: python tests/benchmarks/sequences.py. Every figure comes from one run on one machine: the best of five means.
"""

from __future__ import annotations

import mlx.core as mx
from timing import milliseconds

from genmlx import VectorDiff, choicemap, gen, map_over, normal, trace, unfold
from genmlx.combinators import whole


@gen
def element(x):
    return trace("z", normal(x, 1.0))


@gen
def step(t, x, scale):
    x = trace("x", normal(x, scale))
    trace("y", normal(x, 0.5))
    return x


def updated(result) -> None:
    mx.eval(result.weight, result.trace.score)


def main() -> None:
    print(f"device {mx.default_device()}")
    n, model = 1000, map_over(element)
    xs = [float(i) for i in range(n)]
    changed = [*xs[:500], -1.0, *xs[501:]]
    tr = model.simulate((xs,), key=0)
    walk, args = unfold(step), (n, 0.0, 1.0)
    chain = walk.simulate(args, key=0)
    longer = {(n, "x"): 0.0, (n, "y"): 0.0}
    mx.eval(tr.score, chain.score)

    everything = choicemap({**chain.choices.to_dict(), **longer})
    rows = [
        (
            "map of 1,000, one changed",
            lambda: updated(tr.update({}, (changed,), (VectorDiff({500}),))),
            lambda: updated(model.generate((changed,), tr.choices)),
        ),
        (
            "unfold of 1,000, one more",
            lambda: updated(chain.update(longer, (n + 1, 0.0, 1.0))),
            lambda: updated(walk.generate((n + 1, 0.0, 1.0), everything)),
        ),
    ]
    print(f"{'':28}{'incremental':>13}{'full':>13}{'ratio':>8}")
    for name, incremental, full in rows:
        fast, slow = milliseconds(incremental), milliseconds(full)
        print(f"{name:28}{fast:>10.2f} ms{slow:>10.2f} ms{slow / fast:>7.0f}x")

    print(f"\n{'unfold, steps per second':28}{'as a whole':>13}{'by handlers':>13}{'ratio':>8}")
    for n in (1000, 10_000):
        args = (n, 0.0, 1.0)
        choices = walk.simulate(args, key=0).choices
        for name, run in (
            ("simulate", lambda args=args: mx.eval(walk.simulate(args, key=1).score)),
            ("assess", lambda args=args, choices=choices: mx.eval(walk.assess(args, choices).score)),
        ):
            fast = n / milliseconds(run, 1) * 1e3
            least, whole.LEAST = whole.LEAST, n + 1
            slow = n / milliseconds(run, 1, 1 if n > 1000 else 3) * 1e3
            whole.LEAST = least
            print(f"{name + f' {n:,}':28}{fast:>13,.0f}{slow:>13,.0f}{fast / slow:>7.1f}x")


if __name__ == "__main__":
    main()
