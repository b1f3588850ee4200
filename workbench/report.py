"""What a run of an algorithm is worth, as text and as HTML: a head line, a table, and what to do."""

from __future__ import annotations

from html import escape
from typing import Any

from genmlx.errors import name_of
from workbench.filters import Facts, counted, facts, is_filter, size_of, standard_error, troubles
from workbench.filters import addresses as of_last_step
from workbench.render.columns import columns

_ROWS, _WIDTH = 40, 88
_ENDS = {"time": "stopped by --time", "enough": "stopped by --until"}


class Report:
    """The result of an algorithm as the workbench shows it.

    ``notes`` are lines above the verdict; ``asked`` is how many draws each chain was to have, or steps a filter.
    """

    def __init__(
        self, result: Any, method: str, name: str = "result", notes: tuple[str, ...] = (), asked: int | None = None
    ):
        self.result, self.method, self.name, self.notes, self.asked = result, method, name, notes, asked

    def head(self) -> str:
        result = self.result
        model = _model(result)
        size = (
            f"{result.chains}x{result.draws}"
            if hasattr(result, "draws")
            else f"n={result.n:,}"
            if hasattr(result, "log_weights")
            else getattr(result, "family", "")
        )
        if is_filter(result):
            size += f" {counted(self.facts.steps, self.facts.unit)}"
        name = "" if self.name == "_" else f"{self.name}:"
        parts = [name, type(result).__name__, self.method, size, model]
        return self._cut_short() + " ".join(part for part in parts if part)

    def _cut_short(self) -> str:
        """A line that says loudly that the run did not come to its end."""
        result = self.result
        status = getattr(result, "status", "complete")
        if status == "complete":
            return ""
        words = f"{self.name}: {_ENDS.get(status, status)}"
        if hasattr(result, "draws"):
            words += f" at {result.draws}{f'/{self.asked}' if self.asked else ''} draws ({result.chains} chains)"
            worst = max((row["rhat"] for row in self.table.to_dict().values()), default=0.0) if self.table else 0.0
            words += f" - rhat {worst:.2f}, not converged" if worst > 1.01 else ""
        elif is_filter(result):
            done = f"{self.facts.steps:,}{f' of {self.asked:,}' if self.asked else ''}"
            words += f" after {done} {self.facts.unit}{'' if done == '1' else 's'}"
        elif hasattr(result, "log_ml_bound"):
            words += f" after {len(result.history):,} steps"
        return words + "\n"

    def lines(self) -> list[str]:
        """The notes, the verdict, and how long the run took, below the table."""
        seconds = getattr(self.result, "timing", {}).get("total")
        took = "" if seconds is None else f"{seconds:.2f} s"
        warnings = [f"! {line}" for line in troubles(self.result, self.facts)] if is_filter(self.result) else []
        if getattr(self.result, "khat", 0.0) > 0.7 and hasattr(self.result, "log_ml_bound"):
            warnings.append("! k-hat > 0.7: the guide misses a part of the posterior; see %diag")
        verdict = "   ".join(part for part in (self.verdict(), took) if part)
        if is_filter(self.result) and len(verdict) > _WIDTH:
            verdict = f"{self.verdict()}\n{took}" if took else verdict
        return [*self.notes, verdict, *warnings]

    def verdict(self) -> str:
        result = self.result
        if is_filter(result):
            return "   ".join(_of_filter(result, self.facts))
        if hasattr(result, "log_weights"):
            k = _khat(result.log_weights)
            verdict = f"log evidence {_number(result.log_ml)}   ess {_number(result.ess)} of {result.n}   k-hat {k:.2f}"
            return verdict + (": the weights are not to be trusted; propose nearer to the posterior" if k > 0.7 else "")
        if hasattr(result, "draws"):
            table = self.table
            if table is None or table.warnings or getattr(getattr(result, "carrying", None), "warning", None):
                return ""
            floor = 100 * result.chains
            diverged = "   0 divergences" if "diverging" in result.stats else ""
            return f"ok: rhat <= 1.01, ess >= {floor}{diverged}" if len(table) else "no latent choices"
        if hasattr(result, "log_ml_bound"):
            return _of_guide(result)
        if hasattr(result, "covariance"):
            return f"log evidence {_number(result.log_ml)}"
        return f"log density {_number(result.score)}" if hasattr(result, "score") else ""

    @property
    def facts(self) -> Facts:
        """Of a filter."""
        if not hasattr(self, "_facts"):
            self._facts = facts(self.result)
        return self._facts

    @property
    def table(self) -> Any:
        """The summary of a posterior; None where the result has no draws or too few for one."""
        if not hasattr(self, "_table"):
            result = self.result
            self._table = result.summary() if hasattr(result, "summary") and getattr(result, "draws", 4) >= 4 else None
        return self._table

    def rows(self) -> list[tuple[str, ...]]:
        """Of a result that has no table of draws: a head, and for each address the value and its deviation."""
        result, deviation, rest = self.result, getattr(self.result, "std", None), 0
        if hasattr(result, "log_ml_bound"):
            return _rows_of_guide(result)
        if hasattr(result, "log_weights"):
            values, addresses, head = result.mean, result.addresses(), "mean"
            if is_filter(result):
                addresses, rest = of_last_step(result), len(addresses)
                rest -= len(addresses)
        elif hasattr(result, "covariance"):
            values, addresses, head = result.mode.__getitem__, result.mode.addresses(), "mode"
        elif hasattr(result, "history"):
            choices = result.trace.choices
            values, addresses, head = choices.__getitem__, choices.addresses(), "mode"
        else:
            return []
        found: list[tuple[str, ...]] = [("", head, "sd") if deviation else ("", head)]
        for a in addresses[:_ROWS]:
            numbers = [values(a), deviation(a)] if deviation else [values(a)]
            found.append(("/".join(map(str, a)), *map(_number, numbers)))
        more = max(len(addresses) - _ROWS, 0) + rest
        return [*found, (f"... {more:,} more", *[""] * (len(found[0]) - 1))] if more > 0 else found

    def __str__(self) -> str:
        from workbench.display import current_screen

        table = self.table
        body = columns(self.rows()) or repr(self.result) if table is None else table.text(current_screen().width)
        return _folded("\n".join([self.head(), body, *self.lines()]).rstrip())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self.html()}

    def text(self, screen: Any) -> str:
        return str(self)

    def html(self) -> str:
        body = self.table._repr_html_() if self.table is not None else _html_table(self.rows())
        head, below = ("<br>".join(map(escape, lines)) for lines in (self.head().splitlines(), self.lines()))
        return f"<div><b>{head}</b>{body}<p style='white-space:pre-wrap'>{below}</p></div>"


def _of_filter(pf: Any, found: Facts) -> list[str]:
    return [
        f"log evidence {_number(pf.log_ml)}{standard_error(found.error)}",
        f"ess {size_of(float(pf.ess))} of {pf.n:,}",
        f"resampled {found.resampled:,} of {found.steps:,}",
        counted(found.ancestors[0], "ancestor"),
    ]


def bound_of(fit: Any) -> str:
    """The evidence bound to the digits of its error.

    >>> from types import SimpleNamespace
    >>> bound_of(SimpleNamespace(log_ml_bound=-341.67493, log_ml_bound_error=0.00281))
    'log evidence >= -341.6749 (se 0.0028)'
    """
    error = fit.log_ml_bound_error
    decimals = 4 if not error >= 1e-4 else max(0, 1 - int(f"{error:.1e}".partition("e")[2]))
    return f"log evidence >= {fit.log_ml_bound:.{decimals}f}{standard_error(error)}"


def _of_guide(fit: Any) -> str:
    """How far a guide is to be trusted."""
    steps = f"{'' if fit.converged else 'not '}converged in {len(fit.history):,} steps"
    return f"{bound_of(fit)}   k-hat {fit.khat:.2f}   {steps}"


def _rows_of_guide(fit: Any) -> list[tuple[str, ...]]:
    """A row for each number."""
    import numpy as np

    from workbench.elements import element_name

    found, more = [("", "mean", "sd")], 0
    for address in fit.addresses():
        mean, std = np.asarray(fit.mean(address)), np.asarray(fit.std(address))
        indices = list(np.ndindex(mean.shape))
        room = max(0, _ROWS + 1 - len(found))
        found += [(element_name(address, i), f"{mean[i]:.4g}", f"{std[i]:.4g}") for i in indices[:room]]
        more += max(0, len(indices) - room)
    return [*found, (f"... {more:,} more", "", "")] if more else found


def _folded(text: str) -> str:
    """With what is told in sentences broken at words where the screen ends; tables stay as they are."""
    from textwrap import wrap

    from workbench.display import current_screen

    width = current_screen().width
    lines = []
    for line in text.splitlines():
        told = len(line) > width and line.startswith(("!", "constant:", "carried ", "ess "))
        lines += wrap(line, width, subsequent_indent="  ", break_on_hyphens=False) if told else [line]
    return "\n".join(lines)


def _model(result: Any) -> str:
    call = getattr(result, "call", None) or getattr(getattr(result, "density", None), "call", None)
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


def _html_table(rows: list[tuple[str, ...]]) -> str:
    tags = ["th", *["td"] * len(rows)]
    cells = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for tag, row in zip(tags, rows, strict=False)]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
