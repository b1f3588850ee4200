"""``%mem``: the memory of MLX, what holds it, and the line after each cell."""

from __future__ import annotations

import gc
from typing import Any

from IPython.core.magic import line_magic, magics_class

from magics.grammar import Line
from magics.session import SessionMagics, magic
from magics.specs import MEM

_MODES = {"on": "line", "line": "line", "auto": "auto", "toolbar": "toolbar", "off": "off"}


@magics_class
class MemoryMagics(SessionMagics):
    @line_magic
    @magic(MEM)
    def mem(self, line: Line, cell: str | None) -> Any:
        import mlx.core as mx

        from workbench.memory import shown, size_of

        if len(line.words) > 1 or any(piece.text not in _MODES for piece in line.words):
            raise line.error(f"%mem takes one of {', '.join(_MODES)}", line.rest(0))
        if "limit" in line:
            try:
                size = size_of(line.word("limit") or "")
            except ValueError as error:
                raise line.error(str(error), line.options["limit"]) from None
            before = mx.set_cache_limit(size)
            print(f"cache limit {shown(before)} -> {shown(size)}")
        if "clear" in line:
            before = mx.get_cache_memory()
            gc.collect()
            mx.clear_cache()
            print(f"cache {shown(before)} -> {shown(mx.get_cache_memory())}")
            kept = [n for n, v in (self.names.get("Out") or {}).items() if hasattr(v, "log_joint")]
            if kept:
                print(f"posteriors in Out: {kept}; %reset -f out lets them go")
        if "reset" in line:
            mx.reset_peak_memory()
            self.session.memory.meter.session_peak = mx.get_active_memory()
        if line.words:
            self.session.settings.mem = _MODES[line.words[0].text]
        elif not line.options.keys() & {"limit", "clear", "reset"} or "top" in line:
            print(self.table(int(line.value("top", self.names, 0))))
        return None

    def table(self, top: int) -> str:
        import mlx.core as mx

        from genmlx import memory_report
        from workbench.memory import holders, process_size, shown

        report = memory_report()
        meter = self.session.memory.meter
        rows = [
            ("active", report["active_bytes"]),
            ("peak, this cell", max(report["peak_bytes"], report["active_bytes"])),
            ("peak, session", max(meter.session_peak, report["peak_bytes"])),
            ("cache", report["cache_bytes"]),
            ("memory limit", mx.get_memory_limit()),
            ("process", process_size()),
        ]
        lines = [f"{'device':<16} {report['device']}"]
        lines += [f"{name:<16} {shown(size)}" for name, size in rows if size is not None]
        if top:
            lines += ["", *[f"{name:<16} {shown(size):>8}  {kind}" for name, size, kind in holders(self.names, top)]]
        return "\n".join(lines)
