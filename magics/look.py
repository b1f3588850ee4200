"""``%trace``: a run of a model as a tree, and what becomes of it when choices change."""

from __future__ import annotations

import inspect
import os
from textwrap import dedent
from typing import Any, NamedTuple

from IPython.core.magic import line_magic, magics_class

from magics.grammar import Line, Piece, assignments
from magics.session import SessionMagics, magic
from magics.specs import TRACE

_ACTIONS = ("set", "redo", "rebase", "diff")
_OF_TREES = ("lp", "depth", "stats", "src")


class Seen(NamedTuple):
    """What is looked at, and what is known of it: the choices that were observed, the weight of the run."""

    thing: Any
    observed: Any
    weight: Any = None
    log_weights: Any = None
    is_new: bool = False


class Changed(NamedTuple):
    """A new trace, how it came about, its weight, what it discarded, what was drawn again."""

    verb: str
    trace: Any
    weight: Any
    discard: Any
    redrawn: Any


@magics_class
class LookMagics(SessionMagics):
    _last: Seen | None = None

    @line_magic
    @magic(TRACE)
    def trace(self, line: Line, cell: str | None) -> Any:
        _check(line)
        if "diff" in line:
            return self._show(line, *self._diff(line))
        seen = self._target(line)
        if any(action in line for action in _ACTIONS):
            return self._show(line, *self._changed(line, seen))
        return self._show(line, *self._looked_at(line, seen))

    def _show(self, line: Line, result: Any, picture: Any) -> Any:
        if "quiet" in line or line.silent:
            self.session.hide(result)
        else:
            self.session.show(result, picture)
        return result

    # what is looked at

    def _target(self, line: Line) -> Seen:
        from genmlx.choicemap import ChoiceMap, as_choicemap
        from genmlx.gfi import Call, GenerativeFunction
        from genmlx.selection import NONE
        from genmlx.trace import Trace
        from genmlx.vectorized import VectorizedTrace

        if not line.words:
            raise line.error("%trace needs a model with its arguments, or a trace: %trace line(xs), %trace _tr")
        word = line.words[0]
        value = line.evaluate(word, self.names)
        if isinstance(value, Call):
            return self._run(line, value)
        if line.given:
            raise line.error(f"| given needs a run: {word.text} is no model with its arguments", word)
        if isinstance(value, (Trace, VectorizedTrace)):
            if self._last is not None and self._last.thing is value:
                return self._last._replace(weight=None, is_new=False)
            return Seen(value, NONE)
        if isinstance(value, (ChoiceMap, dict)):
            return Seen(as_choicemap(value), NONE)
        if hasattr(value, "log_weights") and hasattr(value, "traces"):
            return Seen(value.traces, _covering(value.observations), None, value.log_weights)
        if isinstance(getattr(value, "trace", None), Trace):
            return Seen(value.trace, NONE)
        what = f"{word.text} is {type(value).__name__}, not a model with its arguments, a trace or a choice map"
        if isinstance(value, GenerativeFunction):
            what = f"{word.text} is a model: give it its arguments, {word.text}(...)"
        if hasattr(value, "draws"):
            what = f"{word.text} is a posterior: look at one of its draws, {word.text}.trace(chain, draw)"
        raise line.error(what, word)

    def _run(self, line: Line, call: Any) -> Seen:
        from genmlx.errors import AddressError, UnknownAddress, ValueMismatch
        from magics.given import misfit, observations, unknown

        try:
            given = observations(line, call, self.names)
            trace, weight = call.generate(given, self._key(line))
        except UnknownAddress as error:
            run = call.generate(given, self._key(line), strict=False).trace
            raise unknown(line, "given", error, run, self.names) from None
        except (AddressError, ValueMismatch) as error:
            raise misfit(line, "given", error, self.names) from None
        return Seen(trace, _covering(given), weight if line.given else None, is_new=True)

    def _key(self, line: Line) -> Any:
        import mlx.core as mx

        return mx.random.key(line.value("seed", self.names)) if "seed" in line else None

    # trees

    def _looked_at(self, line: Line, seen: Seen) -> tuple[Any, Any]:
        from workbench.display import Shown
        from workbench.render.tree import Look, Tree

        if "seed" in line and not seen.is_new:
            raise line.error("-s has no use here: nothing is drawn")
        name = "_tr" if seen.is_new else line.words[0].text
        look = Look(self._count(line, "max"), self._count(line, "depth", 4) or 4, "lp" in line, "stats" in line, name)
        address = self._address(line, seen)
        tree = Tree(seen.thing, look, address, seen.observed, weight=seen.weight, log_weights=seen.log_weights)
        self._keep(seen)
        parts = [source(line, seen.thing)] if "src" in line else []
        return seen.thing, Shown(*parts, tree)

    def _address(self, line: Line, seen: Seen) -> tuple:
        piece = line.rest(1)
        if piece is None:
            return ()
        address = line.address(piece, self.names)
        choices = getattr(seen.thing, "choices", seen.thing)
        if address not in choices:
            from magics.given import no_address

            raise line.error(no_address(address, choices), piece)
        return address

    def _count(self, line: Line, option: str, default: int | None = None) -> int | None:
        value = line.value(option, self.names, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise line.error(f"--{option} is a whole number, at least 1, not {value!r}", line.options[option])
        return value

    def _keep(self, seen: Seen) -> None:
        from genmlx.choicemap import ChoiceMap

        if not isinstance(seen.thing, ChoiceMap):
            self._last = seen
            self.session.bind(_tr=seen.thing)

    # changes

    def _changed(self, line: Line, seen: Seen) -> tuple[Any, Any]:
        from genmlx.choicemap import ChoiceMap
        from workbench.display import Shown, current_screen
        from workbench.render.diff import ROWS, change_block

        if len(line.words) > 1:
            raise line.error("an address goes with a tree alone", line.rest(1))
        if isinstance(seen.thing, ChoiceMap):
            raise line.error("a choice map has no model to run: choices.set(address, value) changes it", line.words[0])
        change = self._set if "set" in line else self._redo if "redo" in line else self._rebase
        done = change(line, seen.thing)
        self._keep(Seen(done.trace, seen.observed))
        block = change_block(*done, seen.thing, current_screen(), self._count(line, "max") or ROWS)
        return done.trace, Shown(block)

    def _set(self, line: Line, old: Any) -> Changed:
        from genmlx.choicemap import EMPTY, choicemap
        from genmlx.errors import AddressError, UnknownAddress, ValueMismatch
        from genmlx.selection import NONE
        from magics.given import misfit, spread, unknown

        piece = line.options["set"]
        assert piece is not None
        given = assignments(piece)
        wanted = EMPTY
        for address, value in given:
            if address is None:
                raise line.error("--set takes ADDRESS=VALUE, as slope=2.0, y[3]=1", value)
            at, made = line.address(address, self.names), line.evaluate(value, self.names)
            wanted = wanted.merge(spread(line, choicemap({at: made}), old.choices, lambda _, piece=address: piece))
        try:
            new, weight, _, discard = old.update(wanted, key=self._key(line))
        except UnknownAddress as error:
            raise unknown(line, "--set", error, old, self.names, given) from None
        except (AddressError, ValueMismatch) as error:
            raise misfit(line, "--set", error, self.names, given) from None
        if (reason := _outside(new, wanted)) is not None:
            from magics.given import piece_of

            address, text = reason
            raise line.error(f"--set: {text}", piece_of(line, address, self.names, given))
        return Changed("update", new, weight, discard, NONE)

    def _redo(self, line: Line, old: Any) -> Changed:
        from genmlx.errors import UnknownAddress
        from genmlx.selection import select
        from magics.given import unknown

        selection = select(*(line.addresses("redo", self.names) or []))
        try:
            new, weight, _ = old.regenerate(selection, key=self._key(line))
        except UnknownAddress as error:
            given = assignments(line.options["redo"] or Piece("", 0))
            places = [one._replace(address=one.value) for one in given]
            raise unknown(line, "--redo", error, old, self.names, places) from None
        return Changed("regenerate", new, weight, None, selection)

    def _rebase(self, line: Line, old: Any) -> Changed:
        """The choices under the model as it is now. What no longer fits its address is drawn anew."""
        from genmlx.gfi import Call
        from genmlx.selection import NONE

        call = Call(old.gen_fn, tuple(old.args), getattr(old.args, "kwargs", {}))
        new, weight = _fitting(call, old, self._key(line))
        return Changed("rebase", new, weight, None, NONE)

    def _diff(self, line: Line) -> tuple[Any, Any]:
        from genmlx.choicemap import ChoiceMap, as_choicemap
        from genmlx.trace import Trace
        from genmlx.vectorized import VectorizedTrace
        from workbench.display import Shown, current_screen
        from workbench.render.diff import ROWS, diff_block, posterior_block

        if len(line.words) != 2 or line.given or "seed" in line:
            raise line.error("--diff takes two traces, choice maps or posteriors: %trace --diff a b")
        values = [line.evaluate(word, self.names) for word in line.words]
        values = [as_choicemap(value) if isinstance(value, dict) else value for value in values]
        rows, screen = self._count(line, "max") or ROWS, current_screen()
        if all(hasattr(value, "draws") and hasattr(value, "mcse") for value in values):
            shown = Shown(posterior_block(values[0], values[1], screen, rows))
            return shown, shown
        for word, value in zip(line.words, values, strict=True):
            if not isinstance(value, (ChoiceMap, Trace, VectorizedTrace)):
                other = "two posteriors, or two of traces and choice maps"
                raise line.error(f"{word.text} is {type(value).__name__}: --diff takes {other}", word)
        sizes = [getattr(getattr(value, "choices", value), "n", None) for value in values]
        if sizes[0] != sizes[1]:
            raise line.error("--diff takes two of as many lanes", line.words[1])
        shown = Shown(diff_block(values[0], values[1], screen, rows))
        return shown, shown


def _check(line: Line) -> None:
    """Options that do not go together are an error: none is passed over."""
    actions = [f"--{action}" for action in _ACTIONS if action in line]
    if len(actions) > 1:
        raise line.error(f"{' and '.join(actions)}: one at a time")
    if actions:
        useless = [f"--{option}" for option in _OF_TREES if option in line]
        if useless:
            raise line.error(f"{useless[0]} goes with a tree, not with {actions[0]}")


def _covering(observations: Any) -> Any:
    from genmlx.choicemap import covering

    return covering(observations)


def _outside(trace: Any, wanted: Any) -> tuple[tuple, str] | None:
    """An address whose new value its distribution can never have, and why."""
    import mlx.core as mx

    from workbench.render.sites import sites
    from workbench.render.values import show

    if hasattr(trace, "take") or mx.isfinite(trace.score).item():
        return None
    found = sites(trace)
    for address, value in wanted.items():
        for site in found.get(address, ()):
            if site.trace is None:
                continue
            support = site.gen_fn.support_of(*site.gen_fn.params(site.trace.args))
            if not mx.all(support.contains(site.trace.retval)).item():
                from workbench.render.nodes import path

                what = show(value).text
                return address, f"{path(address)} must be {support.phrase} ({site.gen_fn.__name__}), got {what}"
    return None


def _fitting(call: Any, old: Any, key: Any) -> tuple[Any, Any]:
    """A run of the call with as many of the old choices as fit it, and its weight."""
    from genmlx.errors import AddressError, ValueMismatch

    choices, batch = old.choices, getattr(old, "n", None) if hasattr(old, "take") else None
    while True:
        try:
            if batch is None:
                return call.generate(choices, key, strict=False)
            return call.vgenerate(choices, batch, key, strict=False)
        except (AddressError, ValueMismatch) as error:
            kept = choices.without_sub(error.address) if error.address else choices
            if len(kept) == len(choices):
                raise
            choices = kept


def source(line: Line, thing: Any) -> str:
    """The body that made a trace."""
    function = getattr(getattr(thing, "version", None), "function", None)
    if function is None:
        raise line.error("--src needs the trace of a model that is made by @gen", line.words[0])
    function = inspect.unwrap(function)
    filename = function.__code__.co_filename
    if thing.gen_fn.version is not thing.version and os.path.exists(filename):
        return f"{filename} has changed: {thing.version!r} is no longer there to read"
    try:
        return dedent(inspect.getsource(function)).rstrip()
    except (OSError, TypeError):
        return f"the source of {thing.gen_fn.__name__} is not there to read"
