"""The memory of MLX, cell by cell: a line after each, a table when asked."""

from __future__ import annotations

import os
import time
from typing import Any

import mlx.core as mx

_UNITS = ("B", "KB", "MB", "GB", "TB")
_SIZES = {"b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12}
_CACHE = 2 * 10**9
_NOTICEABLE, _TALL, _LONG = 1_000_000, 16_000_000, 1.0


def shown(size: float, signed: bool = False) -> str:
    """Bytes with three digits: 4.0 MB."""
    sign = ("+" if size >= 0 else "-") if signed else ""
    value, unit = abs(float(size)), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = f"{value:.0f}" if unit == 0 or value >= 99.95 else f"{value:.1f}"
    return f"{sign}{digits} {_UNITS[unit]}"


def size_of(text: str) -> int:
    """``"4GB"`` in bytes; a number alone is bytes."""
    word = text.strip().replace(" ", "").lower()
    number = word.rstrip("bkmgt")
    try:
        return int(float(number) * _SIZES[word[len(number) :] or "b"])
    except (ValueError, KeyError):
        raise ValueError(f"{text!r} is no size: 512MB, 4GB") from None


def cache_limit() -> int:
    """How large MLX's cache of freed buffers may grow. MLX tells it only in exchange for another."""
    limit = mx.set_cache_limit(0)
    mx.set_cache_limit(limit)
    return limit


def limit_cache() -> None:
    """Hold MLX's cache to 2 GB, or to a quarter of the memory where that is less, or to less if it is so already.

    MLX lets it grow to one and a half times the memory that a GPU is recommended to use, or to 34 MB on a CPU.
    """
    info = mx.device_info()
    whole = info.get("max_recommended_working_set_size") or info.get("total_memory") or _ram()
    mx.set_cache_limit(min(cache_limit(), _CACHE, int(whole) // 4))


def _ram() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Meter:
    """What cells do to the memory. Cells nest: one that runs another is measured with it."""

    def __init__(self) -> None:
        self.open: list[tuple[int, float, int]] = []  # active memory and time at its beginning, peak until another's
        self.session_peak = 0
        self.last: dict[str, Any] | None = None  # the figures of the last cell that ended and was in no other

    def begin(self) -> None:
        peak = mx.get_peak_memory()
        self.session_peak = max(self.session_peak, peak)
        self.open = [(before, start, max(high, peak)) for before, start, high in self.open]
        mx.reset_peak_memory()
        self.open.append((mx.get_active_memory(), time.perf_counter(), 0))

    def end(self) -> dict[str, Any] | None:
        """The figures of the cell that ends; None for the end of a cell whose beginning was not seen."""
        if not self.open:
            return None
        before, start, high = self.open.pop()
        active = mx.get_active_memory()
        peak = max(mx.get_peak_memory(), high, active, before)
        self.session_peak = max(self.session_peak, peak)
        found = {
            "change": active - before,
            "active": active,
            "peak": peak,
            "cache": mx.get_cache_memory(),
            "seconds": time.perf_counter() - start,
        }
        if not self.open:
            self.last = found
        return found


def line(cell: dict[str, Any]) -> str:
    """The figures of one cell in one line of 80 columns at most."""
    return (
        f"mem {shown(cell['change'], signed=True)} (active {shown(cell['active'])})  peak {shown(cell['peak'])}  "
        f"cache {shown(cell['cache'])}  {cell['seconds']:.2f} s  {mx.default_device().type.name}"
    )


def notable(cell: dict[str, Any]) -> bool:
    """Whether a cell did anything to the memory, or took its time."""
    tall = cell["peak"] - cell["active"] >= _TALL
    return abs(cell["change"]) >= _NOTICEABLE or tall or cell["seconds"] >= _LONG


def speaks(source: str) -> bool:
    """Whether a cell is worth a line: not one that is empty, a comment, a question or ``%mem`` itself."""
    lines = [text.strip() for text in source.splitlines()]
    kept = [text for text in lines if text and not text.startswith("#")]
    return any(not text.startswith(("%mem", "?")) and not text.endswith("?") for text in kept)


class MemoryLine:
    """The hooks of a session that measure each cell and say what it did."""

    def __init__(self, session: Any):
        self.session, self.meter = session, Meter()
        self.broken = False

    def install(self) -> None:
        events = self.session.ip.events
        events.register("pre_run_cell", self.before)
        events.register("post_run_cell", self.after)
        self.session.at_end.append(self.remove)

    def remove(self) -> None:
        events = self.session.ip.events
        events.unregister("pre_run_cell", self.before)
        events.unregister("post_run_cell", self.after)

    def before(self, info: Any = None) -> None:
        self.meter.begin()

    def after(self, result: Any = None) -> None:
        cell = self.meter.end()
        if cell is None or self.broken or self.meter.open:
            return
        try:
            source = getattr(getattr(result, "info", None), "raw_cell", None) or ""
            if self.wanted(cell) and speaks(source):
                self.show(line(cell))
        except Exception as error:
            self.broken = True
            print(f"the memory line is off: {type(error).__name__}: {error}")

    def wanted(self, cell: dict[str, Any]) -> bool:
        mode = self.session.settings.mem
        if self.session.scripted() and os.environ.get("GENMLX_MEM") != "1":
            return False
        return mode == "line" or (mode == "auto" and notable(cell))

    def show(self, text: str) -> None:
        ip = self.session.ip
        if hasattr(ip, "kernel"):
            from IPython.display import display

            bundle = {"text/plain": text, "text/html": f'<small style="opacity:.6;white-space:pre">{text}</small>'}
            display(bundle, raw=True, metadata={"genmlx": "mem"})
            return
        print(f"\x1b[2m  {text}\x1b[0m" if self.session.colours() else f"  {text}")


def holders(names: dict[str, Any], top: int) -> list[tuple[str, int, str]]:
    """The names that hold most bytes of arrays: name, bytes, type. What two names share counts for the first."""
    from genmlx.pytree import flatten

    seen: set[int] = set()

    def size(value: Any, depth: int = 0) -> int:
        if isinstance(value, mx.array) or (hasattr(value, "nbytes") and hasattr(value, "dtype")):
            if id(value) in seen:
                return 0
            seen.add(id(value))
            return int(value.nbytes)
        if depth > 4 or isinstance(value, (str, bytes, int, float, bool, type(None), type)):
            return 0
        if isinstance(value, dict):
            return sum(size(v, depth + 1) for v in value.values())
        if isinstance(value, (list, tuple, set)):
            return sum(size(v, depth + 1) for v in value)
        if not type(value).__module__.startswith(("genmlx", "workbench")) or isinstance(value, type):
            return 0
        own = vars(value) if hasattr(value, "__dict__") else {}
        leaves = [leaf for leaf in flatten(value)[0] if leaf is not value]
        return sum(size(leaf, depth + 1) for leaf in leaves) + sum(size(v, depth + 1) for v in own.values())

    found = []
    for name, value in list(names.items()):
        if name in ("In", "Out") or (name.startswith("_") and name not in ("_tr", "_post")):
            continue
        bytes_held = size(value)
        if bytes_held:
            found.append((name, bytes_held, type(value).__name__))
    for number, value in list((names.get("Out") or {}).items()):
        bytes_held = size(value)
        if bytes_held:
            found.append((f"Out[{number}]", bytes_held, type(value).__name__))
    return sorted(found, key=lambda item: -item[1])[:top]


def process_size() -> int | None:
    """The resident memory of this process; None where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak or None
