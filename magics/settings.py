"""The settings of the workbench: from IPython's configuration, a project's pyproject.toml, or ``%config``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from traitlets import Bool, Enum, Float, Int, TraitError, Unicode, observe, validate
from traitlets.config import Configurable

from magics.grammar import did_you_mean

_TABLE = "tool.genmlx"


class GenMagics(Configurable):
    """Settings: ``%config GenMagics.chains = 8``, or ``[tool.genmlx]`` in the nearest pyproject.toml."""

    draws = Int(1000, min=1, help="draws of a chain").tag(config=True)
    chains = Int(4, min=1, help="chains of a run").tag(config=True)
    live = Enum(("auto", "text", "html", "mpl", "off"), "auto", help="how a run is shown").tag(config=True)
    mem = Enum(("line", "auto", "toolbar", "off"), "line", help="the memory line after each cell").tag(config=True)
    on_interrupt = Enum(
        ("auto", "return", "raise"),
        "auto",
        help="what Ctrl-C makes of a run: return what was drawn, or raise with it in _post; auto raises in scripts",
    ).tag(config=True)
    ascii = Bool(False, help="trees and bars without box-drawing characters").tag(config=True)
    width = Int(88, min=40, help="columns of tables and trees").tag(config=True)
    cache_limit = Unicode("", help="limit of MLX's cache, as 2GB; empty for the shell's own").tag(config=True)
    until = Unicode("", help="when runs may stop early, as rhat<1.01").tag(config=True)
    reload = Bool(True, help="whether changed files are run again before each cell").tag(config=True)
    paint_share = Float(
        0.01,
        min=0.0,
        max=1.0,
        help="the most of a run's time that goes to pictures of it; live R-hat has a share of its own",
    ).tag(config=True)

    @validate("cache_limit")
    def _is_size(self, proposal: Any) -> str:
        return self._checked(proposal.value, "workbench.memory", "size_of")

    @validate("until")
    def _is_condition(self, proposal: Any) -> str:
        return self._checked(proposal.value, "workbench.live", "condition")

    def _checked(self, text: str, module: str, reader: str) -> str:
        from importlib import import_module

        try:
            if text:
                getattr(import_module(module), reader)(text)
        except ValueError as error:
            raise TraitError(str(error)) from None
        return text

    @observe("cache_limit")
    def _limit_cache(self, change: Any) -> None:
        import mlx.core as mx

        from workbench.memory import size_of

        if change.new:
            mx.set_cache_limit(size_of(change.new))


def read_project(settings: GenMagics, folder: Path, say: Callable[[str], Any] = print) -> None:
    """Take the settings of the nearest pyproject.toml that has some, but for those that IPython's configuration gives.

    What is wrong in it is said in a line, and the rest is taken.
    """
    for path in (place / "pyproject.toml" for place in (folder, *folder.parents)):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if _TABLE in text:
            return _take(settings, path, text, say)


def _take(settings: GenMagics, path: Path, text: str, say: Callable[[str], Any]) -> None:
    import tomllib

    try:
        table = tomllib.loads(text).get("tool", {}).get("genmlx", {})
    except tomllib.TOMLDecodeError as error:
        return say(f"{path}: its [{_TABLE}] was not read: {error}")
    known = settings.trait_names(config=True)
    given = settings.config.get("GenMagics", {})
    for name, value in table.items():
        if name not in known:
            near = did_you_mean(name, known) or f"; there are {', '.join(sorted(known))}"
            say(f"{path}: [{_TABLE}] has no setting {name!r}{near}")
        elif name not in given:
            try:
                setattr(settings, name, value)
            except TraitError as error:
                say(f"{path}: [{_TABLE}] {name} = {value!r}: {error}")
