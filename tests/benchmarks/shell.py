"""The workbench: start-up beside plain IPython, parsing, painting, the check for changed files.

Run: python tests/benchmarks/shell.py

Start-up is the first prompt of a pseudo terminal: medians of seven, both programs in turn, with bytecode compiled.
"Painting" is the share of a run that went to pictures and live R-hat, in the terminal's mode.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from timing import milliseconds

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

LINE = "nuts line(xs[:3], name='a | b') | given y=ys, z[3]=f(2) -n 1000 -c 4 --until 'rhat<1.01, ess>400' -o post"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        start_up(Path(folder))
        parsing()
        painting()
        reloading(Path(folder))


def start_up(folder: Path) -> None:
    from terminal import Terminal

    environment = {**os.environ, "IPYTHONDIR": str(folder / "ipython"), "HOME": str(folder)}
    programs = {r"^gen\[1\]>": ["-m", "workbench.shell"], r"^In \[1\]:": ["-m", "IPython", "--no-banner"]}
    seconds: dict[str, list[float]] = {pattern: [] for pattern in programs}
    for _ in range(8):
        for pattern, arguments in programs.items():
            one = Terminal(arguments, environment, folder)
            seconds[pattern].append(one.wait(pattern))
            one.process.close(force=True)
    ours, plain = (statistics.median(times[1:]) for times in seconds.values())
    print(f"first prompt: genmlx-shell {ours * 1e3:.0f} ms, ipython {plain * 1e3:.0f} ms: {ours / plain:.2f} times")
    for code in (["-m", "workbench.shell", "-c", "pass"], ["-m", "IPython", "-c", "pass"]):
        print(f"python {' '.join(code)}: {1e3 * min(whole(code, environment) for _ in range(5)):.0f} ms")


def whole(arguments: list[str], environment: dict) -> float:
    import subprocess

    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def parsing() -> None:
    from magics.grammar import Line
    from magics.specs import INFER

    print(f"parsing a line of %infer: {milliseconds(lambda: Line(INFER, LINE), 1, 200) * 1e3:.0f} us")


def painting() -> None:
    import mlx.core as mx

    from genmlx import gen, normal, nuts, trace
    from workbench.live import Painter

    @gen
    def line(xs: Any) -> None:
        slope, intercept = trace("slope", normal(0, 10)), trace("intercept", normal(0, 10))
        trace("y", normal(slope * xs + intercept, 1))

    xs, ys = mx.arange(1.0, 6), mx.array([2.1, 3.9, 6.2, 7.8, 10.1])
    painter = Painter("line", "text", share=0.01, write=io.StringIO().write)
    post = nuts(line(xs), {"y": ys}, draws=2000, warmup=500, chains=4, key=0, progress=painter)
    total, shown = post.timing["total"], post.timing["display"]
    print(f"painting: {shown:.3f} s of a run of {total:.1f} s: {shown / total:.1%}")


def reloading(folder: Path) -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    sys.path.insert(0, str(folder))
    for i in range(50):
        (folder / f"watched_{i}.py").write_text(f"from genmlx import gen\n@gen\ndef m{i}():\n    return {i}\n")
    config = Config()
    config.HistoryManager.enabled = False
    ip: Any = InteractiveShell(config=config)
    with redirect_stdout(io.StringIO()):
        ip.run_line_magic("load_ext", "genmlx")
        for i in range(50):
            ip.run_cell(f"import watched_{i}")
        ip.run_cell("pass")
    reloader = ip._genmlx_session.reloader
    spent = milliseconds(reloader.check, 1, 200)
    print(f"check of {len(reloader.sources)} watched files before a cell: {spent:.2f} ms")


if __name__ == "__main__":
    main()
