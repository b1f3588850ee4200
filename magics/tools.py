"""``%taps``, ``%seed`` and ``%bench``: looking inside, repeating, and timing."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from IPython.core.magic import line_cell_magic, line_magic, magics_class

from magics.grammar import Line
from magics.session import SessionMagics, magic
from magics.specs import BENCH, SEED, TAPS

SHOWN_TAPS = 40
BENCH_SECONDS, LEAST_RUNS, MOST_RUNS = 1.0, 3, 1000


@magics_class
class ToolMagics(SessionMagics):
    def __init__(self, shell: Any):
        super().__init__(shell)
        self.live: Callable[[], None] | None = None
        self.session.at_end.append(self._end_live)

    @line_magic
    @magic(TAPS)
    def taps(self, line: Line, cell: str | None) -> Any:
        from genmlx.taps import add_sink, clear_taps, taps
        from workbench.render.columns import columns

        named = line.rest(0)
        label = None if named is None else named.text.strip("\"'")
        if "clear" in line:
            clear_taps()
        if "live" in line:
            if self.live is not None:
                self._end_live()
                print("taps are no longer printed as they come")
            else:
                self.live = add_sink(lambda tap: self._print(tap, label))
                print(f"taps{'' if label is None else f' of {label!r}'} are printed as they come; %taps --live ends it")
        elif "clear" not in line:
            found = taps(label)
            if not found:
                others = sorted({tap.label for tap in taps() if tap.label})
                known = f"; there are {', '.join(others)}" if label is not None and others else ""
                print(f"no taps{'' if label is None else f' of {label!r}'}{known}")
                return None
            if len(found) > SHOWN_TAPS:
                print(f"... {len(found) - SHOWN_TAPS} earlier")
            print(columns([_tapped(tap) for tap in found[-SHOWN_TAPS:]]))
        return None

    def _end_live(self) -> None:
        if self.live is not None:
            self.live()
        self.live = None

    def _print(self, tap: Any, label: str | None) -> None:
        if label is None or tap.label == label:
            print("tap", "  ".join(text for text in _tapped(tap) if text))

    @line_magic
    @magic(SEED)
    def seed(self, line: Line, cell: str | None) -> Any:
        from genmlx.random import seed, session_seed

        piece = line.rest(0)
        if piece is None:
            number, taken = session_seed()
            print(f"seed {number}, {taken} key{'s' if taken != 1 else ''} taken since")
            return None
        value = line.evaluate(piece, self.names)
        if isinstance(value, bool) or not isinstance(value, int):
            raise line.error(f"a seed is a whole number, not {value!r}", piece)
        seed(value)
        return None

    @line_cell_magic
    @magic(BENCH)
    def bench(self, line: Line, cell: str | None) -> Any:
        text = line.rest(0)
        if cell is None and text is None:
            raise line.error("%bench needs a statement to time, or %%bench a cell")
        if cell is not None and text is not None:
            raise line.error("%%bench times the cell; what follows it on the line is options", text)
        runs = line.value("runs", self.names)
        if runs is not None and (isinstance(runs, bool) or not isinstance(runs, int) or runs < 1):
            raise line.error(f"-n is a whole number of runs, not {runs!r}", line.options["runs"])
        return self._timed(self._once(line, cell), runs)

    def _once(self, line: Line, cell: str | None) -> Callable[[], Any]:
        """What one run does, as a function: its names are its own, as in ``%timeit``."""
        import ast

        from magics.cell import CellCode, run_shown, show_plainly

        show_plainly(self.session)
        if cell is None:
            statement: Any = line.rest(0)  # required where there is no cell
            code = CellCode(self.shell, None, statement.text)
        else:
            code = CellCode(self.shell, f"# %%bench {line.text}".rstrip(), cell)
        tree = code.parse()
        if not tree.body:
            raise line.error("there is nothing to time")
        last = tree.body[-1]
        if isinstance(last, ast.Expr):
            tree.body[-1] = ast.copy_location(ast.Assign([ast.Name("__value__", ast.Store())], last.value), last)
        frame = ast.parse("def __setup__():\n def __once__():\n  return locals()\n return __once__")
        outer: Any = frame.body[0]
        inner = outer.body[0]
        inner.body[:0] = tree.body
        outer.body[:0] = CellCode(self.shell, None, line.word("setup") or "").parse().body
        names: dict[str, Any] = {}
        run_shown(self.shell, lambda: exec(code.compile(ast.fix_missing_locations(frame)), self.names, names))
        once = run_shown(self.shell, names["__setup__"])
        return lambda: run_shown(self.shell, once)

    def _timed(self, once: Callable[[], Any], runs: int | None) -> BenchResult:
        import mlx.core as mx

        from genmlx.pytree import split_arrays

        def run() -> float:
            start = time.perf_counter()
            mx.eval(split_arrays(once())[0])
            mx.synchronize()
            return time.perf_counter() - start

        meter = self.session.memory.meter
        meter.session_peak = max(meter.session_peak, mx.get_peak_memory())
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        collecting = gc.isenabled()
        gc.disable()
        try:
            first, times, spent = run(), [], 0.0
            while len(times) < (runs or MOST_RUNS):
                if runs is None and spent >= BENCH_SECONDS and len(times) >= LEAST_RUNS:
                    break
                times.append(run())
                spent += times[-1]
        finally:
            if collecting:
                gc.enable()
        peak = max(mx.get_peak_memory(), mx.get_active_memory()) - before
        times.sort()
        middle = len(times) // 2
        median = times[middle] if len(times) % 2 else (times[middle - 1] + times[middle]) / 2
        return BenchResult(first, times[0], median, len(times), max(0, peak))


class BenchResult(NamedTuple):
    """Seconds of the first run, and the best and the median of ``runs`` later ones; the most bytes that they added."""

    first: float
    best: float
    median: float
    runs: int
    peak_bytes: int

    def __repr__(self) -> str:
        from workbench.memory import shown

        first, best, median = map(_seconds, (self.first, self.best, self.median))
        return f"first {first}   best {best}   median {median} of {self.runs}   peak +{shown(self.peak_bytes)}"


def _seconds(s: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if s >= size:
            return f"{s / size:.3g} {unit}"
    return f"{s / 1e-9:.0f} ns"


def _tapped(tap: Any) -> tuple[str, str, str]:
    from genmlx.choicemap import show_value
    from genmlx.errors import name_of

    value = re.sub(r"\s+", " ", show_value(tap.value))
    return tap.label or "", "" if tap.model is None else name_of(tap.model), value
