"""What a run of an algorithm is worth, as text and as HTML: a head line, a table, and what to do."""

from __future__ import annotations

from html import escape
from typing import Any

from genmlx.errors import name_of


class Report:
    """The result of an algorithm as the workbench shows it."""

    def __init__(self, result: Any, method: str, name: str = "result", notes: tuple[str, ...] = ()):
        self.result, self.method, self.name, self.notes = result, method, name, notes

    def head(self) -> str:
        result = self.result
        model = _model(result)
        size = (
            f"{result.chains}x{result.draws}"
            if hasattr(result, "draws")
            else f"{result.n} particles"
            if hasattr(result, "log_weights")
            else ""
        )
        parts = [f"{self.name}: {type(result).__name__} {self.method}", size, model]
        head = " ".join(part for part in parts if part)
        status = getattr(result, "status", "complete")
        return head if status == "complete" else f"{head}: {status}"

    def lines(self) -> list[str]:
        """The verdict and the notes, below the table."""
        found = list(self.notes)
        verdict = self.verdict()
        seconds = getattr(self.result, "timing", {}).get("total")
        took = "" if seconds is None else f"{seconds:.2f} s"
        return [*found, "   ".join(part for part in (verdict, took) if part)]

    def verdict(self) -> str:
        result = self.result
        if hasattr(result, "log_weights"):
            k = _khat(result.log_weights)
            verdict = f"log evidence {_number(result.log_ml)}   ess {_number(result.ess)} of {result.n}   k-hat {k:.2f}"
            return verdict + (
                "" if k <= 0.7 else ": the weights are not to be trusted; propose nearer to the posterior"
            )
        if hasattr(result, "draws"):
            table = self.table
            if table is None or table.warnings:
                return ""
            floor = 100 * result.chains
            diverged = "   0 divergences" if "diverging" in result.stats else ""
            return f"ok: rhat <= 1.01, ess >= {floor}{diverged}" if len(table) else "no latent choices"
        return f"log density {_number(result.score)}" if hasattr(result, "score") else ""

    @property
    def table(self) -> Any:
        """The summary of a posterior; None where the result has no draws or too few for one."""
        if not hasattr(self, "_table"):
            result = self.result
            self._table = result.summary() if hasattr(result, "summary") and getattr(result, "draws", 4) >= 4 else None
        return self._table

    def rows(self) -> list[tuple[str, str, str]]:
        """Address, value and deviation, of a result that has no table of draws."""
        result = self.result
        if hasattr(result, "log_weights"):
            return [
                ("/".join(map(str, a)), _number(result.mean(a)), _number(result.std(a)))
                for a in result.addresses()[:40]
            ]
        if hasattr(result, "history"):
            choices = result.trace.choices
            return [("/".join(map(str, a)), _number(choices[a]), "") for a in choices.addresses()[:40]]
        return []

    def __str__(self) -> str:
        body = str(self.table) if self.table is not None else _aligned(self.rows()) or repr(self.result)
        return "\n".join([self.head(), body, *self.lines()]).rstrip()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self.html()}

    def html(self) -> str:
        body = self.table._repr_html_() if self.table is not None else f"<pre>{escape(_aligned(self.rows()))}</pre>"
        below = "<br>".join(escape(line) for line in self.lines() if line)
        return f"<div><b>{escape(self.head())}</b>{body}<p>{below}</p></div>"


def _model(result: Any) -> str:
    call = getattr(result, "call", None)
    gen_fn = call.gen_fn if call is not None else getattr(getattr(result, "trace", None), "gen_fn", None)
    if gen_fn is None:
        return ""
    used = getattr(result, "pins", {}).get(gen_fn, getattr(gen_fn, "version", None))
    return name_of(gen_fn) if used is None else f"{name_of(gen_fn)} {used}"


def _number(value: Any) -> str:
    import numpy as np

    array = np.asarray(value)
    if array.size == 1:
        return f"{array.item():.4g}"
    if array.size <= 6:
        return np.array2string(array, precision=4)
    return f"[{', '.join(map(str, array.shape))}] mean {array.mean():.4g}"


def _khat(log_weights: Any) -> float:
    import numpy as np

    from genmlx.diagnostics import psis

    return float(psis(np.asarray(log_weights))[1]) if len(log_weights) >= 25 else float("nan")


def _aligned(rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(head)
