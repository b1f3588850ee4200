"""Completion of magic lines: methods, models, addresses, options and their words, from the table of the magics."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from IPython.core.completer import CompletionContext

    from magics.grammar import Option, Spec
    from magics.session import Session

_MAGIC = re.compile(r"^\s*(?:[\w.\[\]\"', ]+=\s*)?%{1,2}(\w+)\s(.*)$", re.DOTALL)
_MEM = ("on", "off", "line", "auto", "toolbar", "--top", "--clear")


class Place(NamedTuple):
    """Where the cursor is: the words before it, the text of the word at it, and the option whose value it is."""

    before: list[str]
    word: str
    option: Option | None
    given: bool


class Completer:
    """Offers what may stand at the cursor of a magic line; where that is an expression, Python's own names remain."""

    def __init__(self, session: Session):
        self.session = session

    def install(self) -> None:
        from IPython.core.completer import context_matcher

        ip = self.session.ip
        matcher = context_matcher()(lambda context: self.complete(context))
        ip.Completer.custom_matchers.append(matcher)
        self.session.at_end.append(lambda: ip.Completer.custom_matchers.remove(matcher))

    def complete(self, context: CompletionContext) -> Any:
        from IPython.core.completer import SimpleCompletion

        found, only = self.candidates(context.text_until_cursor)
        token = context.token
        matches = []
        for text in found:
            # The token that will be replaced may be a part of the word: of --tar it is "tar" after the dashes.
            word = self._word
            if text.startswith(word) and word.endswith(token):
                matches.append(SimpleCompletion(text=text[len(word) - len(token) :], type="magic"))
        return {"completions": matches, "suppress": bool(matches) and only}

    def candidates(self, text: str) -> tuple[list[str], bool]:
        """What may stand at the end of a line, and whether nothing else may."""
        from magics.specs import SPECS

        self._word = ""
        line = _MAGIC.match(text)
        spec = SPECS.get(line[1]) if line else None
        if line is None or spec is None:
            return [], False
        place = _place(line[2], spec)
        self._word = place.word
        if place.word.startswith("-"):
            flag, equals, _ = place.word.partition("=")
            option = spec.find(flag)
            if equals and option is not None:
                return [f"{flag}={word}" for word in option.words], True
            return [o.flags[-1] for o in _options(spec, place)], True
        if place.option is not None and place.option.words:
            return list(place.option.words), True
        if place.option is not None and place.option.kind == "addresses":
            return self._addresses(place), True
        if place.option is not None and place.option.name == "carry":
            return self._named("log_joint"), True
        if place.option is not None:
            return [], False
        if place.given:
            return ([f"{a}=" for a in self._addresses(place)], False) if "=" not in place.word else ([], False)
        if place.before[-1:] == ["|"]:
            return ["given"], True
        return self._words(spec, place)

    def _words(self, spec: Spec, place: Place) -> tuple[list[str], bool]:
        first = not place.before
        if spec.name == "infer":
            from genmlx.inference.methods import METHODS

            return ([*METHODS, "auto"], True) if first else (self._calls(), False)
        if spec.name == "mem":
            return list(_MEM), True
        if spec.name in ("diag", "plot"):
            return (self._named("log_joint"), False) if first else (self._addresses(place), True)
        if spec.name == "trace":
            return ([*self._calls(), *self._named("choices")], False) if first else (self._addresses(place), False)
        if spec.name in ("gfi", "sites"):
            return self._calls(), False
        return [], False

    def _calls(self) -> list[str]:
        """The models of the session, and what it has made of them by ``unfold`` and the like."""
        from genmlx.combinators.kernel import Combinator

        made = [n for n, v in self.session.names.items() if isinstance(v, Combinator) and not n.startswith("_")]
        return [f"{name}(" for name in [*(name for name, _ in self.session.models()), *made]]

    def _named(self, attribute: str) -> list[str]:
        """Names of values that have an attribute, the workbench's own included."""
        own = [n for n, v in self.session.names.items() if not n.startswith("_") and hasattr(type(v), attribute)]
        instances = [n for n, v in self.session.names.items() if not n.startswith("_") and attribute in _slots(v)]
        return [*dict.fromkeys([*own, *instances]), *[n for n in ("_tr", "_post") if n in self.session.names]]

    def _addresses(self, place: Place) -> list[str]:
        """The addresses of the model or the result that the line names: as its body writes them, or as it has them."""
        for word in place.before:
            name = re.match(r"\w+", word)
            value = self.session.names.get(name[0]) if name else None
            if value is None:
                continue
            found = self._of(value)
            if found:
                return found
        return []

    def _of(self, value: Any) -> list[str]:
        from genmlx.gen import GenFn

        if isinstance(value, GenFn):
            from genmlx.schema import schema

            written = schema(value)
            return list(dict.fromkeys(_plain(site.address) for site in written.sites)) if written else []
        choices = getattr(value, "choices", None)
        addresses: Any = getattr(value, "addresses", None) or getattr(choices, "addresses", None)
        return [*dict.fromkeys(_shown(a) for a in addresses())][:200] if addresses is not None else []


def _options(spec: Spec, place: Place) -> list[Option]:
    """The options of a magic; of ``%infer`` those that its method takes."""
    from genmlx.inference.methods import METHODS

    method = METHODS.get(place.before[0]) if spec.name == "infer" and place.before else None
    if method is None:
        return list(spec.all_options)
    from magics.infer import KEYWORDS, options_of

    own, others = options_of(method), [*KEYWORDS]
    others += [] if "draws" in method.keywords() else ["until", "save", "carry"]
    return [option for option in spec.all_options if option in own or option.name not in others]


def _slots(value: Any) -> Any:
    return getattr(value, "__dict__", ()) if not isinstance(value, type) else ()


def _plain(address: str) -> str:
    """An address as a line takes it: a quoted name without its quotes."""
    bare = address.strip("\"'")
    return bare if bare.isidentifier() else address


def _shown(address: tuple) -> str:
    first, *rest = address
    if isinstance(first, str) and first.isidentifier():
        return first + "".join(f"[{part!r}]" for part in rest)
    return repr(address)


def _place(text: str, spec: Spec) -> Place:
    """Where the end of a text is; a text that cannot be cut is taken as one word."""
    words = re.split(r"\s+|(?<=\|)|(?=\|)", text)
    words = [w for w in words[:-1] if w] + words[-1:]
    *before, word = words
    option, given = None, False
    for piece in before:
        found = spec.find(piece)
        if found is not None:
            option, given = (found if found.value is not None and not found.optional else None), False
        elif piece == "given" and spec.given:
            option, given = None, True
        elif option is not None and option.kind in ("name", "word") or piece == "|":
            option = None
    if option is not None or given:
        word = re.split(r"[,\s]", word)[-1]
    return Place(before, word, option, given)
