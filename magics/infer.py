"""``%infer``: a posterior in one line."""

from __future__ import annotations

import os
from copy import copy
from typing import Any

from IPython.core.magic import line_cell_magic, magics_class

from magics.given import observations
from magics.grammar import Given, Line, Option, Piece, assignments, did_you_mean, help_text
from magics.series import series
from magics.session import Session, SessionMagics, magic
from magics.specs import INFER

KEYWORDS = {
    "draws": "draws",
    "warmup": "warmup",
    "chains": "chains",
    "sel": "selection",
    "target_accept": "target_accept",
    "step": "step_size",
    "L": "leapfrog_steps",
    "max_depth": "max_depth",
    "particles": "particles",
    "threshold": "ess_threshold",
    "resampling": "resampling",
    "rejuvenate": "rejuvenate",
    "proposal": "proposal",
    "retained": "retained",
    "parameters": "parameters",
    "kernel": "kernel",
    "record": "record",
    "thin": "thin",
    "family": "family",
    "rank": "rank",
    "iterations": "iterations",
    "samples": "samples",
    "tolerance": "tolerance",
}
"""The keyword that each option stands for, in the methods that have it."""
_FAST, _LEAST = 0.1, 50
_WHY = {
    "nuts": "all latent choices are continuous",
    "mix": "continuous and discrete choices",
    "gibbs": "discrete choices",
    "mh": "no other method takes it",
}
"""Why `auto` takes a method."""


@magics_class
class InferMagics(SessionMagics):
    @line_cell_magic
    @magic(INFER)
    def infer(self, line: Line, cell: str | None) -> Any:
        line = self._whole(line, cell)
        plan = Plan(self.session, line)
        self._check_path(line)
        if "dry_run" in line:
            print(plan.title())
            return None
        self.session.last_infer = line
        result = plan.run()
        self.session.bind(**dict.fromkeys(("_post", line.word("out") or "_post"), result))
        plan.raise_if_interrupted(result)
        if "save" in line:
            if not hasattr(result, "save"):
                raise line.error(f"{type(result).__name__} cannot be saved; it is in _post", line.options["save"])
            result.save(line.word("save"))
        if "quiet" not in line and not line.silent:
            self.session.show(result, plan.report(result), plan.output)
        elif plan.output is not None:
            plan.output.update({"text/plain": plan.report(result).head()}, raw=True)
        return result

    def help(self, line: Line) -> str:
        """The page of the magic, or of the method that the line begins with."""
        from genmlx.inference.methods import METHODS

        method = METHODS.get(line.words[0].text) if line.words else None
        return help_text(INFER) + f"\n\nmethods:\n{_methods()}" if method is None else _page(method)

    def _check_path(self, line: Line) -> None:
        """A long run should not end in a file that cannot be written."""
        folder = os.path.dirname(line.word("save") or "")
        if folder and not os.path.isdir(folder):
            raise line.error(f"--save: there is no folder {folder!r}", line.options["save"])

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


def _of_steps() -> list[str]:
    from genmlx.inference.methods import METHODS

    return [name for name, method in METHODS.items() if method.takes == "steps"]


def _methods() -> str:
    from genmlx.inference.methods import METHODS

    width = max(map(len, METHODS))
    return "\n".join(f"  {name:<{width}}  {method.summary}" for name, method in METHODS.items())


def _page(method: Any) -> str:
    what = "MODEL(ARGS) [| given ADDRESS=VALUE, ...]" if method.takes == "call" else "STEPS | MODEL(ARGS) [| given ...]"
    needed, options = method.required(), options_of(method)
    width = max(len(option.shown) for option in options)
    rows = [f"  {o.shown:<{width}}  {o.help}{' (needed)' if KEYWORDS[o.name] in needed else ''}" for o in options]
    head = f"%infer {method.name} {what} [OPTIONS]"
    return "\n".join([head, "", method.summary, "", *rows, "", "the options of every method: %infer -h"])


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
        self._check_method()
        if target is None:
            raise line.error("%infer needs a method and a model with its arguments: %infer nuts line(xs)")
        value, self.steps = line.evaluate(target, names), None
        if self._takes_steps():
            self.steps, self.call, self.observations = series(line, target, value, names)
        elif not isinstance(value, Call):
            what = f"{target.text} is a model: give it its arguments, {target.text}(...)"
            if not isinstance(value, GenerativeFunction):
                what = f"{target.text} is {type(value).__name__}, not a model with its arguments"
            if isinstance(value, list):
                what += f"; steps are for {', '.join(_of_steps())}"
            raise line.error(what, target)
        else:
            self.call, self.observations = value, observations(line, value, names)
        self.carried = self._carried()
        self.method = self._method()
        self.notes: list[str] = []
        self.output: Any = None  # in which a notebook shows the run
        self.keywords = self._keywords() if self.carried is None else self._keywords_of_carry()
        self.label = line.word("name")

    def _check_method(self) -> None:
        from genmlx.inference.methods import METHODS

        word = self.line.words[0]
        if word.text in METHODS or word.text == "auto":
            return
        if len(self.line.words) == 1 and "(" in word.text:
            raise self.line.error(f"%infer needs a method before the model, as %infer nuts {word.text}", word)
        there = f"; there are {', '.join(METHODS)} and auto"
        raise self.line.error(f"no method {word.text!r}{did_you_mean(word.text, METHODS) or there}", word)

    def _takes_steps(self) -> bool:
        from genmlx.inference.methods import METHODS

        word = self.line.words[0].text
        return word in METHODS and METHODS[word].takes == "steps"

    def _method(self) -> Any:
        from genmlx.inference.methods import METHODS, automatic

        word = self.line.words[0].text
        return METHODS[word] if word != "auto" else automatic(self.call, self.observations)

    @property
    def spoken(self) -> str:
        """What the method is called, and why it was chosen where nobody has."""
        name = self.method.name
        return f"{name} (auto: {_WHY[name]})" if self.line.words[0].text == "auto" else name

    def _keywords(self) -> dict[str, Any]:
        line, takes = self.line, self.method.keywords()
        settings = self.session.settings
        found: dict[str, Any] = {name: getattr(settings, name) for name in ("draws", "chains") if name in takes}
        for option, keyword in KEYWORDS.items():
            if option not in line:
                continue
            if keyword not in takes:
                flags = [option.flags[-1] for option in options_of(self.method)]
                raise line.error(
                    f"{self.method.name} takes no --{option.replace('_', '-')}: it takes {', '.join(flags)}"
                )
            found[keyword] = self._value(option, keyword)
        for keyword in self.method.required():
            if keyword not in found:
                option = next(option for option in options_of(self.method) if KEYWORDS[option.name] == keyword)
                raise line.error(f"{self.method.name} needs {option.shown}: {option.help}", line.words[0])
        if "until" in line and "draws" not in takes:
            raise line.error(f"{self.method.name} takes no --until: it has no draws", line.options["until"])
        if os.environ.get("GENMLX_FAST") == "1":
            self._hurry(found, takes)
        return found | self._key()

    def _keywords_of_carry(self) -> dict[str, Any]:
        """The draws of the old posterior, or as many as are asked for."""
        for option, keyword in KEYWORDS.items():
            if option in self.line and keyword != "draws":
                raise self.line.error(f"--carry takes --draws and --seed, and no --{option.replace('_', '-')}")
        draws = self.line.value("draws", self.session.names, self.carried.draws)
        return {"draws": draws, "chains": self.carried.chains, **self._key()}

    def _key(self) -> dict[str, Any]:
        import mlx.core as mx

        return {"key": mx.random.key(self.line.value("seed", self.session.names))} if "seed" in self.line else {}

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
        if option in ("sel", "parameters"):
            from genmlx import select

            return select(*(self.line.addresses(option, self.session.names) or []))
        if option == "record":
            from genmlx.inference import Bands

            return Bands(*(self.line.addresses(option, self.session.names) or []))
        if option in ("resampling", "family") or (option == "kernel" and self.method.name == "tempered"):
            return self.line.word(option)
        return self.line.value(option, self.session.names)

    def title(self) -> str:
        from genmlx.errors import name_of

        model, k = self.call.gen_fn, self.keywords
        version = getattr(model, "version", None)
        shape = f"{k['chains']} chains x {k['draws']}" if "chains" in k else ""
        takes = self.method.keywords()
        if "particles" in takes:
            steps = "" if self.steps is None else f"{len(self.steps):,} steps, "
            count = k.get("particles", takes["particles"])
            count = f"{count:,}" if isinstance(count, int) else count
            shape += f"{'  ' if shape else ''}{steps}{count} particles"
        if "family" in takes:
            shape = k.get("family", takes["family"])
        parts = [self.spoken, " ".join(str(x) for x in (name_of(model), version) if x), shape]
        given = ", ".join(list(dict.fromkeys(map(_spoken, self.observations.addresses())))[:6])
        return "  ".join(part for part in parts if part) + (f"  given {given}" if given else "")

    def run(self) -> Any:
        from genmlx.errors import UnknownAddress
        from genmlx.inference import InferenceInterrupted
        from workbench.live import watch

        try:
            with watch(self) as progress:
                if self.carried is not None:
                    return self._carry(progress)
                problem = (self.call, self.observations) if self.steps is None else (self.steps,)
                return self.method.load()(*problem, **self.keywords, progress=progress)
        except InferenceInterrupted as error:  # whether it is one is for the settings to say
            return error.result
        except UnknownAddress as error:
            what, place = self._place(error)
            if place is None:
                raise
            raise self.line.error(f"{what}: {_unknown(error, self.call)}", place) from None

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

    def _carried(self) -> Any:
        """The posterior whose draws are to move; None where the line names none."""
        from genmlx.inference import Posterior

        line, piece = self.line, self.line.options.get("carry")
        if piece is None:
            return None
        if line.words[0].text not in ("nuts", "mh", "auto"):
            raise line.error("--carry moves the draws by nuts, mh or auto", line.words[0])
        old = line.evaluate(piece, self.session.names)
        if not isinstance(old, Posterior):
            raise line.error(f"{piece.text} is {type(old).__name__}, not a posterior", piece)
        return old

    def _carry(self, progress: Any) -> Any:
        """The draws of another posterior in this model, moved by this method."""
        from genmlx.inference import carry

        given = self.observations if self.line.given else None
        own = {name: value for name, value in self.keywords.items() if name != "chains"}
        return carry(self.carried, self.call, given, rejuvenate=self.line.words[0].text, **own, progress=progress)

    def report(self, result: Any) -> Any:
        from workbench.report import Report

        method, name = self.label or self.spoken, self.line.word("out") or "_post"
        asked = None if self.steps is None else len(self.steps)
        return Report(result, method, name, tuple(self.notes), asked=self.keywords.get("draws", asked))

    def _place(self, error: Any) -> tuple[str, Piece | None]:
        """What part of the line names the address of an error, and the piece that does."""
        line, chosen = self.line, self.line.options.get("sel")
        named = [("given", one.address) for one in line.given if one.address is not None]
        named += [("--sel", piece) for piece in (line.listed(chosen) if chosen is not None else [])]
        places = (one for one in named if line.address(one[1], self.session.names) == error.address)
        return next(places, ("", None))


def options_of(method: Any) -> list[Option]:
    """The options of ``%infer`` that a method takes."""
    takes = method.keywords()
    return [o for o in INFER.options if KEYWORDS.get(o.name) in takes]


def _spoken(address: tuple) -> str:
    """The first name of an address: that of ``(3, "y")`` is ``y``."""
    return next((part for part in address if isinstance(part, str)), str(address[0]))


def _unknown(error: Any, call: Any) -> str:
    from genmlx.errors import name_of, show_address

    where = " ".join(str(x) for x in (name_of(call.gen_fn), getattr(call.gen_fn, "version", None)) if x)
    close = f"; did you mean {' or '.join(map(show_address, error.suggestions))}?" if error.suggestions else ""
    return f"no address {show_address(error.address)} in {where}{close}"
