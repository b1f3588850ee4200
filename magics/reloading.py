"""``%reload`` and ``%watch``: changed files, and which are looked at."""

from __future__ import annotations

import os
import sys
from types import ModuleType

from IPython.core.magic import line_magic, magics_class

from magics.grammar import Line, Piece, did_you_mean
from magics.session import SessionMagics, magic
from magics.specs import RELOAD, WATCH
from workbench.reload import Reloader


@magics_class
class ReloadMagics(SessionMagics):
    @property
    def reloader(self) -> Reloader:
        return self.session.reloader

    @line_magic
    @magic(RELOAD)
    def reload(self, line: Line, cell: str | None) -> None:
        reloader = self.reloader
        reloader.look()
        if "all" in line:
            names = reloader.watched()
        elif line.words:
            names = {self._module(line, word) for word in line.words}
        else:
            names = reloader.changed()
        if not names:
            watched = len(reloader.watched())
            print(f"nothing has changed ({watched} {'module is' if watched == 1 else 'modules are'} watched)")
        elif "dry" in line:
            plan = reloader.plan(names)
            for name in plan.order:
                imports = sorted(reloader.graph[name].intersection(plan.order))
                by = f"imports {', '.join(imports)}" if imports else "asked for"
                changed = "changed" if reloader.sources[name].changed else by
                print(f"would run {reloader.sources[name].file} ({changed})")
        else:
            reloader.run(names, verbose="verbose" in line)

    @line_magic
    @magic(WATCH)
    def watch(self, line: Line, cell: str | None) -> None:
        reloader = self.reloader
        reloader.discover()
        if "off" in line and not line.words:
            self.session.settings.reload = False
            print("no file is looked at; %watch MODULE, or %config GenMagics.reload = True, begins again")
            return
        for word in line.words:
            text = self._meant(word)
            path = os.path.abspath(os.path.expanduser(text))
            if os.path.isdir(path):
                self._watch_folder(line, word, path)
            elif os.path.isfile(path) and not any(s.path == path for s in reloader.sources.values()):
                reloader.watch_file(path, "off" not in line)
            elif "off" in line and path in reloader.others:
                reloader.watch_file(path, False)
            else:
                reloader.watch_module(self._module(line, word, text), "off" not in line)
        if line.words and "off" not in line:
            self.session.settings.reload = True
        if "list" in line or not line.words:
            self._list()

    def _meant(self, word: Piece) -> str:
        """The path or the name of a module that a word is, or whose value it has."""
        text = word.text.strip("'\"")
        if os.path.exists(os.path.expanduser(text)) or text in self.reloader.sources:
            return text
        try:
            value = eval(compile(word.text, "<%watch>", "eval"), self.names)
        except Exception:  # then it is a path or a module that is not there, which is said of it
            return text
        value = value.__name__ if isinstance(value, ModuleType) else value
        return os.fspath(value) if isinstance(value, (str, os.PathLike)) else text

    def _watch_folder(self, line: Line, word: Piece, path: str) -> None:
        inside = [n for n, s in self.reloader.sources.items() if s.path.startswith(path + os.sep)]
        if not inside:
            raise line.error(f"watch: no module of this session is from {word.text}", word)
        for name in inside:
            self.reloader.watch_module(name, "off" not in line)

    def _list(self) -> None:
        reloader = self.reloader
        for name in sorted(reloader.watched()):
            state = reloader.pending.get(name)
            print(f"{name}  {reloader.sources[name].shown}" + (f"  {state}" if state else ""))
        for path in sorted(reloader.others):
            print(os.path.relpath(path))
        if not self.session.settings.reload:
            print("off: %config GenMagics.reload = True")
        elif not reloader.watched() and not reloader.others:
            print("nothing is watched: no module of this project that uses genmlx has been imported")

    def _module(self, line: Line, word: Piece, text: str | None = None) -> str:
        """The module of the project that a word, or the text that it stands for, means by its name or its file."""
        reloader, text = self.reloader, word.text.strip("'\"") if text is None else text
        path = os.path.abspath(os.path.expanduser(text))
        found = [n for n, s in reloader.sources.items() if text in (n, s.file) or path == s.path]
        if found:
            return found[0]
        known = sorted(reloader.sources)
        if text in sys.modules:
            raise line.error(f"{line.spec.name}: {text} is a library's module, which is not run again", word)
        hint = did_you_mean(text, known) or (f"; there are {', '.join(known)}" if known else "")
        raise line.error(f"{line.spec.name}: no module of this project is called {text!r}{hint}", word)
