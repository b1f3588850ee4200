"""The addresses of a run, each with what its body says of it: the table of ``%sites``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from genmlx.choicemap import ChoiceMap, show_type
from genmlx.combinators.sequence import SequenceTrace
from genmlx.dist.distribution import DistTrace
from genmlx.errors import name_of
from genmlx.gen import GenTrace
from genmlx.handlers import Spliced
from genmlx.schema import schema_of
from genmlx.trace import Trace
from workbench.render.columns import columns


class Choice(NamedTuple):
    """One choice of a run: its address, what the body says of it, and the trace of its distribution."""

    address: tuple
    text: str
    trace: DistTrace | None


def table(trace: Trace, given: ChoiceMap) -> str:
    """A row for each address; alike ones that differ in an index only are one row."""
    groups: dict[tuple, list[tuple]] = {}
    there = trace.choices
    for choice in choices(trace):
        if choice.address in there:
            value = there[choice.address]
            kind = show_type(value) if hasattr(value, "dtype") and hasattr(value, "ndim") else type(value).__name__
            seen = "observed" if choice.address in given else "latent"
            shape = tuple(None if isinstance(part, int) else part for part in choice.address)
            groups.setdefault((shape, choice.text, kind, _support(choice.trace), seen), []).append(choice.address)
    rows = [("address", "distribution", "value", "support", "")]
    for (_, text, kind, support, seen), addresses in groups.items():
        count = f"{len(addresses)} x " if len(addresses) > 1 else ""
        rows.append((folded(addresses), text, count + kind, support, seen))
    title = f"{name_of(trace.gen_fn)} {trace.version!r}" if trace.version else name_of(trace.gen_fn)
    idle = [f"  not in this run: {address} ~ {call}" for address, call in _unvisited(trace)]
    total = sum(map(len, groups.values()))
    head = f"{title}   {total} address{'es' if total != 1 else ''}"
    return "\n".join([head, *["  " + row for row in columns(rows).splitlines()], *idle])


def choices(trace: Any, prefix: tuple = (), text: str = "") -> Iterator[Choice]:
    """The choices of a trace, in its order."""
    if isinstance(trace, DistTrace):
        yield Choice(prefix, text or name_of(trace.gen_fn), trace)
    elif isinstance(trace, GenTrace):
        bodies = [schema_of(v.function) for v in (trace.made_by, *trace.inlined.values())]
        for address, sub in trace.subtraces.items():
            if isinstance(address[0], Spliced):
                yield from choices(sub, prefix)
                continue
            site = next((s for body in bodies if body and (s := body.find(address))), None)
            yield from choices(sub, (*prefix, *address), site.call if site else "")
    elif isinstance(trace, SequenceTrace):
        for t in range(len(trace.elements)):
            yield from choices(trace.elements[t], (*prefix, t))
    else:
        below = list(trace.children())
        for child in below:
            yield from choices(child, prefix, text)
        if not below:
            for address in trace.choices:
                yield Choice((*prefix, *address), text or name_of(trace.gen_fn), None)


def folded(addresses: list[tuple]) -> str:
    """Addresses that differ in their indices, as one: ``("y", 0..4)``."""
    parts = []
    for values in zip(*addresses, strict=True):
        numbers = sorted(set(values)) if isinstance(values[0], int) else []
        span = len(numbers) > 1 and numbers[-1] - numbers[0] + 1 == len(numbers)
        quoted = f'"{values[0]}"' if isinstance(values[0], str) and len(values and addresses[0]) > 1 else str(values[0])
        parts.append(f"{numbers[0]}..{numbers[-1]}" if span else ",".join(map(str, numbers)) if numbers else quoted)
    return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"


def _unvisited(trace: Trace) -> list[tuple[str, str]]:
    if not isinstance(trace, GenTrace) or (body := schema_of(trace.made_by.function)) is None:
        return []
    visited = [body.find(address) for address in trace.subtraces]
    return [(site.address, site.call) for site in body.sites if site.pattern is not None and site not in visited]


def _support(trace: DistTrace | None) -> str:
    if trace is None:
        return ""
    family: Any = trace.gen_fn
    return repr(family.support_of(*family.params(trace.args)))
