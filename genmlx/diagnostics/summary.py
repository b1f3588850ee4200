"""The table of a posterior: one row per scalar, printed to the digits that its Monte Carlo error allows."""

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from html import escape
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .advice import about_rows, about_run, listed, number_of_ess, number_of_rhat
from .convergence import rhat
from .draws import pooled, to_draws
from .effective_size import ess, ess_tail
from .intervals import sample_quantiles
from .standard_error import mcse

LONGEST = 40  # rows that are printed in full; a longer table shows its ends
ENDS = 15
_LEAST = (("ess_tail",), ("mcse_mean",), ("q5", "q95"), ("sd",))
"""What a narrow table does without, first what is missed least."""


@dataclass(frozen=True)
class Row:
    """The summary of one scalar; `row.mean` and `row["mean"]` are the same number."""

    name: str
    mean: float
    sd: float
    q5: float
    q95: float
    mcse_mean: float
    ess_bulk: float
    ess_tail: float
    rhat: float

    @property
    def constant(self) -> bool:
        """Were all draws equal? Then the error, the sizes and R-hat are NaN, and that is no fault."""
        return self.sd == 0

    def __getitem__(self, column: str) -> float:
        if column not in COLUMNS:
            raise KeyError(f"no column {column!r} in this row; the nearest is {_nearest(column, COLUMNS)!r}")
        return getattr(self, column)


COLUMNS = tuple(field.name for field in fields(Row))[1:]


def summarize(draws: Mapping[Hashable, ArrayLike], stats: Mapping[str, ArrayLike] | None = None) -> "Summary":
    """A table of mean, sd, q5, q95, mcse_mean, ess_bulk, ess_tail and rhat, one row for each scalar.

    `draws` maps a name or an address tuple to `[chains, draws, *event]`; real, integer or boolean. q5 and q95
    are the 5% and 95% quantiles. An element that is constant has NaN for the last four columns, one that is
    not finite has NaN in all. `stats` is what the sampler says of each draw, `[chains, draws]` by name: of
    `diverging`, `reached_max_depth`, `energy` and `accept` the summary can warn. Raises ValueError below 4
    draws, when arrays differ in chains or draws, and when two names print alike.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(2, 0.1, size=(4, 1000))
    >>> table = summarize({"slope": x, ("y", 3): x > 2})
    >>> table
             mean      sd      q5     q95  mcse_mean  ess_bulk  ess_tail   rhat
    slope  1.9985  0.0998  1.8373  2.1648     0.0016     3,926     4,027  1.000
    y/3    0.4868  0.4999  0.0000  1.0000     0.0080     3,872     3,872  1.001
    4 chains x 1,000 draws; q5 to q95 is the equal-tailed 90% interval
    >>> round(table["y/3"].mean, 2), round(table["slope"]["sd"], 2)
    (0.49, 0.1)
    """
    arrays = {address: to_draws(x) for address, x in draws.items()}
    numbers = {name: to_draws(x) for name, x in (stats or {}).items()}
    if not arrays and not numbers:
        return Summary({}, 0, 0)
    shapes = {array.shape[:2]: _text(name) for name, array in [*numbers.items(), *arrays.items()]}
    if len(shapes) > 1:
        found = ", ".join(f"{shape} at {site}" for shape, site in shapes.items())
        raise ValueError(
            f"arrays of one table differ in [chains, draws]: {found}\n"
            "expected: the same number of chains and of draws everywhere\n"
            "try: one table for each run"
        )
    ((chains, count),) = shapes
    sites: dict[str, dict[str, Row]] = {}
    taken: set[str] = set()
    # All elements side by side: one call of each diagnostic for a thousand sites, not a thousand.
    flat = [array.reshape(chains, count, math.prod(array.shape[2:])) for array in arrays.values()]
    elements = np.concatenate([np.empty((chains, count, 0)), *flat], axis=-1)
    rows = _rows(elements)
    for address, array in arrays.items():
        site = _text(address)
        names = _element_names(site, array.shape[2:])
        twice = taken.intersection(names, [site])
        if twice:
            raise ValueError(
                f"two rows or sites of the table would be called {twice.pop()}\n"
                "expected: addresses that differ when they are printed\n"
                "try: rename one of the two"
            )
        taken.update(names, [site])
        sites[site] = {name: Row(name, *next(rows)) for name in names}
    return Summary(sites, chains, count, trouble=tuple(about_run(numbers, elements)))


def _rows(draws: np.ndarray) -> Iterator[tuple[float, ...]]:
    """The columns of `[chains, draws, elements]`, element by element."""
    values, finite = pooled(draws)
    # Measured from its first draw a constant has a spread of exactly zero and a mean that is exactly itself.
    offset = values - values[:1]
    mean = np.where(finite, values[0] + offset.mean(axis=0), np.nan)
    sd = np.where(finite, offset.std(axis=0, ddof=1), np.nan)
    q5, q95 = sample_quantiles(draws, [0.05, 0.95])
    columns = mean, sd, q5, q95, mcse(draws), ess(draws), ess_tail(draws), rhat(draws)
    return zip(*(np.asarray(column).tolist() for column in columns), strict=True)


def _element_names(site: str, event: tuple[int, ...]) -> list[str]:
    if not event:
        return [site]
    return [f"{site}[{','.join(map(str, index))}]" for index in product(*map(range, event))]


class Summary:
    """A table of `Row`s that prints, renders as HTML, and indexes; `summarize` makes it.

    `table["slope"]` is a row, and so is `table["theta[0]"]`; `table["theta"]` of a vector is a table of its
    rows; `table["y", 3]` is the row `y/3`. Iteration is over row names. Tables of more than 40 rows print
    their ends only. Below the rows stand the `warnings`, if there are any.
    """

    def __init__(
        self,
        sites: Mapping[str, Mapping[str, Row]],
        chains: int,
        draws: int,
        notes: tuple[str, ...] = (),
        trouble: tuple[str, ...] = (),
    ):
        """`notes` are lines below the rows; `trouble` are warnings of the run as a whole."""
        self.chains = chains
        self.draws = draws
        self.notes = notes
        self._trouble = trouble
        self._sites = sites
        self._rows = {name: row for rows in sites.values() for name, row in rows.items()}

    def __getitem__(self, name: Hashable) -> Any:
        wanted = _text(name)
        if wanted in self._rows:
            return self._rows[wanted]
        if wanted in self._sites:
            return Summary({wanted: self._sites[wanted]}, self.chains, self.draws, trouble=self._trouble)
        known = [*self._sites, *self._rows]
        hint = f"the nearest is {_nearest(wanted, known)!r}" if known else "it is empty"
        raise KeyError(f"no row {wanted!r} in this summary; {hint}")

    def extended(self, address: Hashable, rows: Mapping[tuple, tuple[float, ...]], note: str) -> "Summary":
        """With one more site: its columns by the index of each element, and a line about it below the rows."""
        site = _text(address)
        named = {f"{site}[{','.join(map(str, index))}]" if index else site: values for index, values in rows.items()}
        sites = {**self._sites, site: {name: Row(name, *values) for name, values in named.items()}}
        return Summary(sites, self.chains, self.draws, (*self.notes, f"{site}: {note}"), self._trouble)

    def with_error(self, lost: Mapping[Hashable, ArrayLike]) -> "Summary":
        """With an error that the draws do not show: it adds what is `lost`, `[*event]` of a site, to 1/ess."""
        sites = dict(self._sites)
        for address, more in lost.items():
            site = _text(address)
            rows = zip(self._sites[site].values(), np.ravel(more).tolist(), strict=True)
            sites[site] = {row.name: _less_sure(row, added) for row, added in rows}
        return Summary(sites, self.chains, self.draws, self.notes, self._trouble)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Plain numbers, `{row name: {column: value}}`."""
        return {name: {column: row[column] for column in COLUMNS} for name, row in self._rows.items()}

    @property
    def warnings(self) -> list[str]:
        """One line for each kind of trouble: what is wrong, by how much, what to do. Empty when all is well.

        Of the run: divergences, tree depth, BFMI below 0.3, chains that never moved, less than 100 draws in a
        chain. Of rows, the worst first: NaN, R-hat above 1.01, effective sizes below 100 for each chain.

        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(2, 500))
        >>> summarize({"x": x}, {"diverging": x > 2.9, "accept": np.full((2, 500), 0.8)}).warnings
        ['1 of 1,000 draws diverged: raise target_accept to 0.95, or reparameterise (non-centred)']
        """
        return [*self._trouble, *about_rows(list(self._rows.values()), self.chains)]

    def __repr__(self) -> str:
        return self.text()

    def text(self, width: int | None = None) -> str:
        """The table as it prints; with a `width`, without the columns for which there is no room, which it names."""
        if not self._rows:
            return "no rows"
        head, tail = self._shown()
        columns = list(zip(("", *COLUMNS), *head, *tail, strict=True))
        left_out: list[str] = []
        for names in _LEAST:
            if width is not None and _width(columns) > width:
                left_out += names
                columns = [column for column in columns if column[0] not in names]
        padded = [
            [cell.rjust(most) if i else cell.ljust(most) for cell in column]
            for i, (column, most) in enumerate(zip(columns, _widths(columns), strict=True))
        ]
        lines = ["  ".join(row) for row in zip(*padded, strict=True)]
        if tail:
            lines.insert(1 + len(head), f"... {self._hidden():,} more rows")
        narrow = [f"no room for {', '.join(left_out)}"] if left_out else []
        return "\n".join([*lines, *narrow, *self._notes()])

    def _repr_html_(self) -> str:
        head, tail = self._shown()
        lines = ["<table>", _html_row(("", *COLUMNS), "th"), *(_html_row(row, "td") for row in head)]
        if tail:
            lines.append(f'<tr><td colspan="{1 + len(COLUMNS)}">... {self._hidden():,} more rows</td></tr>')
        lines += [*(_html_row(row, "td") for row in tail), "</table>"]
        return "\n".join(lines + [f"<p>{'<br>'.join(map(escape, self._notes()))}</p>"])

    def _shown(self) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        rows = list(self._rows.values())
        if len(rows) <= LONGEST:
            return [_cells(row) for row in rows], []
        return [_cells(row) for row in rows[:ENDS]], [_cells(row) for row in rows[-ENDS:]]

    def _hidden(self) -> int:
        return len(self._rows) - 2 * ENDS

    def _notes(self) -> list[str]:
        constant = [row.name for row in self._rows.values() if row.constant]
        chains = "1 chain" if self.chains == 1 else f"{self.chains} chains"
        return [
            f"{chains} x {self.draws:,} draws; q5 to q95 is the equal-tailed 90% interval",
            *([f"constant: {listed(constant)}"] if constant else []),
            *self.notes,
            *(f"! {line}" for line in self.warnings),
        ]


def _widths(columns: list[tuple[str, ...]]) -> list[int]:
    return [max(map(len, column)) for column in columns]


def _width(columns: list[tuple[str, ...]]) -> int:
    return sum(_widths(columns)) + 2 * (len(columns) - 1)


def _less_sure(row: Row, lost: float) -> Row:
    sizes = {name: 1 / (1 / row[name] + lost) for name in ("ess_bulk", "ess_tail")}
    return replace(row, mcse_mean=math.hypot(row.mcse_mean, row.sd * math.sqrt(lost)), **sizes)


def _text(address: Hashable) -> str:
    return "/".join(map(str, address)) if isinstance(address, tuple) else str(address)


def _nearest(wanted: str, known: tuple[str, ...] | list[str]) -> str:
    return get_close_matches(wanted, known, n=1, cutoff=0)[0]


def _cells(row: Row) -> tuple[str, ...]:
    """A row as text: decimals such that mcse_mean has two significant figures."""
    if row.constant:
        value = f"{row.mean:.6g}"
        return (row.name, value, "0", value, value, "-", "-", "-", "-")
    values = (row.mean, row.sd, row.q5, row.q95, row.mcse_mean)
    if row.mcse_mean > 0:
        # 0.0996 has the two figures 1.0e-1, hence two decimals, not three.
        decimals = 1 - int(f"{row.mcse_mean:.1e}".partition("e")[2])
        write = _number if decimals <= 8 and max(map(abs, values)) < 1e10 else _scientific
        numbers = [write(value, decimals) for value in values]
    else:
        numbers = [f"{value:.6g}" for value in values]
    sizes = number_of_ess(row.ess_bulk), number_of_ess(row.ess_tail)
    return (row.name, *numbers, *sizes, number_of_rhat(row.rhat))


def _number(value: float, decimals: int) -> str:
    text = f"{value:.{max(decimals, 0)}f}"
    return text.lstrip("-") if float(text) == 0 else text


def _scientific(value: float, decimals: int) -> str:
    """With as many digits as end at the given decimal place, but two at least."""
    digits = decimals + math.floor(math.log10(abs(value))) if value else 1
    return f"{value:.{max(digits, 1)}e}"


def _html_row(cells: tuple[str, ...], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
