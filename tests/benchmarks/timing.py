"""How the benchmarks measure: the best of several means, in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable


def milliseconds(f: Callable, repeats: int = 3, best_of: int = 5) -> float:
    f()
    times = []
    for _ in range(best_of):
        start = time.perf_counter()
        for _ in range(repeats):
            f()
        times.append((time.perf_counter() - start) / repeats)
    return 1e3 * min(times)
