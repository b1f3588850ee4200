"""``%infer``: a posterior in one line."""

from __future__ import annotations

import os
from copy import copy
from typing import Any

from IPython.core.magic import line_cell_magic, magics_class

from magics.given import observations
from magics.grammar import Given, Line, Piece, assignments, did_you_mean
from magics.session import Session, SessionMagics, magic
from magics.specs import INFER

_KEYWORDS = {
    "draws": "draws",
    "warmup": "warmup",
    "chains": "chains",
    "sel": "selection",
    "target_accept": "target_accept",
    "step": "step_size",
    "L": "leapfrog_steps",
    "particles": "particles",
    "thin": "thin",
}
_FAST, _LEAST = 0.1, 50


@magics_class
class InferMagics(SessionMagics):
    @line_cell_magic
    @magic(INFER)
    def infer(self, line: Line, cell: str | None) -> Any:
        line = self._whole(line, cell)
        plan = Plan(self.session, line)
        if "dry_run" in line:
            print(plan.title())
            return None
        self.session.last_infer = line
        result = plan.run()
        self.session.bind(**dict.fromkeys(("_post", line.word("out") or "_post"), result))
        plan.raise_if_interrupted(result)
        if "save" in line:
            result.save(line.word("save"))
        if "quiet" not in line and not line.silent:
            self.session.show(result, plan.report(result), plan.output)
        elif plan.output is not None:
            plan.output.update({"text/plain": plan.report(result).head()}, raw=True)
        return result

    def _whole(self, line: Line, cell: str | None) -> Line:
        """The line with what it leaves to the last one, and with the observations of the cell."""
        if cell is not None:
            line.given += _of_cell(line, cell)
        if any(piece.text != "!" for piece in line.words):
            return line
        last = self.session.last_infer
        if last is None:
            raise line.error("no earlier %infer to run again; begin with %infer METHOD MODEL(ARGS)")
        again = copy(last)
        again.options, again.given = {**last.options, **line.options}, line.given or last.given
        again.silent = line.silent
        return again


def _of_cell(line: Line, cell: str) -> list[Given]:
    found: list[Given] = []
    for number, text in enumerate(cell.splitlines(), 2):
        bare = text.split(" #")[0].strip()
        if not bare or bare.startswith("#"):
            continue
        given = assignments(Piece(bare, 0))
        if any(one.address is None and "=" in bare for one in given):
            raise line.error(f"line {number} of the cell is no observation: {bare}")
        found += given
    return found


class Plan:
    """What one ``%infer`` will do: the method, the call, what is observed, and the keywords."""

    def __init__(self, session: Session, line: Line):
        from genmlx.gfi import Call, GenerativeFunction

        self.session, self.line, names = session, line, session.names
        target = line.rest(1)
        if target is None:
            raise line.error("%infer needs a method and a model with its arguments: %infer nuts line(xs)")
        self.call = line.evaluate(target, names)
        if not isinstance(self.call, Call):
            what = f"{target.text} is a model: give it its arguments, {target.text}(...)"
            if not isinstance(self.call, GenerativeFunction):
                what = f"{target.text} is {type(self.call).__name__}, not a model with its arguments"
            raise line.error(what, target)
        self.observations = observations(line, self.call, names)
        self.method = self._method()
        self.notes: list[str] = []
        self.output: Any = None  # in which a notebook shows the run
        self.keywords = self._keywords()
        self.label = line.word("name")

    def _method(self) -> Any:
        from genmlx.inference.methods import METHODS, automatic

        word = self.line.words[0]
        if word.text == "auto":
            return automatic(self.call, self.observations)
        if word.text not in METHODS:
            there = f"; there are {', '.join(METHODS)} and auto"
            raise self.line.error(f"no method {word.text!r}{did_you_mean(word.text, METHODS) or there}", word)
        return METHODS[word.text]

    def _keywords(self) -> dict[str, Any]:
        line, names, takes = self.line, self.session.names, self.method.keywords()
        settings = self.session.settings
        found: dict[str, Any] = {name: getattr(settings, name) for name in ("draws", "chains") if name in takes}
        for option, keyword in _KEYWORDS.items():
            if option not in line:
                continue
            if keyword not in takes:
                own = [o for o, k in _KEYWORDS.items() if k in takes]
                flags = [line.spec.find(f"--{o.replace('_', '-')}").flags[-1] for o in own]  # type: ignore[union-attr]
                raise line.error(
                    f"{self.method.name} takes no --{option.replace('_', '-')}: it takes {', '.join(flags)}"
                )
            found[keyword] = self._value(option, keyword)
        if os.environ.get("GENMLX_FAST") == "1" and "carry" not in line:
            self._hurry(found, takes)
        if "seed" in line:
            import mlx.core as mx

            found["key"] = mx.random.key(line.value("seed", names))
        return found

    def _hurry(self, found: dict[str, Any], takes: dict[str, Any]) -> None:
        """A tenth of the draws and of the warm-up, and 50 at least: enough to see that a notebook runs."""
        told = []
        for name, label in (("draws", "draws"), ("warmup", "steps of warm-up")):
            if name in takes:
                count = found.get(name, takes[name])
                found[name] = min(count, max(_LEAST, int(count * _FAST)))
                told += [f"{found[name]} of {count} {label}"] if found[name] < count else []
        if told:
            self.notes.append(f"GENMLX_FAST=1: {', '.join(told)}")

    def _value(self, option: str, keyword: str) -> Any:
        if option == "sel":
            from genmlx import select

            return select(*(self.line.addresses(option, self.session.names) or []))
        return self.line.value(option, self.session.names)

    def title(self) -> str:
        from genmlx.errors import name_of

        model, k = self.call.gen_fn, self.keywords
        version = getattr(model, "version", None)
        shape = f"{k['chains']} chains x {k['draws']}" if "chains" in k else ""
        parts = [self.method.name, " ".join(str(x) for x in (name_of(model), version) if x), shape]
        given = ", ".join(list(dict.fromkeys(str(a[0]) for a in self.observations.addresses()))[:6])
        return "  ".join(part for part in parts if part) + (f"  given {given}" if given else "")

    def run(self) -> Any:
        from genmlx.errors import UnknownAddress
        from genmlx.inference import InferenceInterrupted
        from workbench.live import watch

        carried = self.line.options.get("carry")
        try:
            with watch(self) as progress:
                if carried is not None:
                    return self._carry(carried, progress)
                return self.method.load()(self.call, self.observations, **self.keywords, progress=progress)
        except InferenceInterrupted as error:  # whether it is one is for the settings to say
            return error.result
        except UnknownAddress as error:
            place = self._place(error)
            if place is None:
                raise
            raise self.line.error(f"given: {_unknown(error, self.call)}", place) from None

    def raise_if_interrupted(self, result: Any) -> None:
        """In a script, or where the settings say so, Ctrl-C ends more than the run."""
        from genmlx.inference import InferenceInterrupted

        wanted = self.session.settings.on_interrupt
        if wanted == "auto":
            wanted = "return" if self.session.attended() else "raise"
        if getattr(result, "status", "") == "interrupted" and wanted == "raise":
            error = InferenceInterrupted(f"{self.title()}: interrupted; what was drawn is in _post")
            error.result = result
            raise error

    def _carry(self, piece: Piece, progress: Any) -> Any:
        """The draws of another posterior in this model, moved by this method."""
        from genmlx.inference import Posterior, carry

        line = self.line
        word = line.words[0].text
        if word not in ("nuts", "mh", "auto"):
            raise line.error("--carry moves the draws by nuts, mh or auto", line.words[0])
        old = line.evaluate(piece, self.session.names)
        if not isinstance(old, Posterior):
            raise line.error(f"{piece.text} is {type(old).__name__}, not a posterior", piece)
        given = self.observations if line.given else None
        wanted = {"draws": "draws" in line, "key": "seed" in line}
        own = {name: self.keywords[name] for name, asked in wanted.items() if asked}
        return carry(old, self.call, given, rejuvenate=word, **own, progress=progress)

    def report(self, result: Any) -> Any:
        from workbench.report import Report

        method, name = self.label or self.method.name, self.line.word("out") or "post"
        return Report(result, method, name, tuple(self.notes), asked=self.keywords.get("draws"))

    def _place(self, error: Any) -> Piece | None:
        """The piece of the line that names the address of an error."""
        for one in self.line.given:
            if one.address is not None and self.line.address(one.address, self.session.names) == error.address:
                return one.address
        return None


def _unknown(error: Any, call: Any) -> str:
    from genmlx.errors import name_of, show_address

    where = " ".join(str(x) for x in (name_of(call.gen_fn), getattr(call.gen_fn, "version", None)) if x)
    close = f"; did you mean {' or '.join(map(show_address, error.suggestions))}?" if error.suggestions else ""
    return f"no address {show_address(error.address)} in {where}{close}"
