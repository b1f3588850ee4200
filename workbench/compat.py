"""Parts of IPython that it does not promise to keep: each is used here only, and works or is left out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

_AUTORELOAD = "IPython.extensions.autoreload"


def first_before_cells(ip: Any, hook: Callable[[Any], None]) -> None:
    """Call a hook before each cell, and before the hooks that are there: autoreload's would run changed files first."""
    ip.events.register("pre_run_cell", hook)
    hooks = ip.events.callbacks["pre_run_cell"]
    hooks.insert(0, hooks.pop())


def may_ask(ip: Any) -> bool:
    """Whether there is somebody to ask. A kernel is told so by each client: those that run notebooks say no."""
    return getattr(getattr(ip, "kernel", None), "_allow_stdin", True)


def is_console(ip: Any) -> bool:
    """Whether a kernel's client is a console, where what was shown cannot be replaced.

    Its code is of no cell, and it comes with the user's name, as jupyter_client sends it.
    """
    parent = ip.get_parent() if hasattr(ip, "get_parent") else {}
    user = parent.get("header", {}).get("username")
    of_cell = "cellId" in parent.get("metadata", {})
    return may_ask(ip) and not of_cell and user == os.environ.get("USER", "username")


def forget_magic(ip: Any, name: str, where: str) -> None:
    """Take away a magic that was registered lazily, so that it can be registered again."""
    manager = ip.magics_manager
    manager.lazy_magics.pop(name, None)
    for magics in manager.magics.values():
        magics.pop(name, None)
    manager._loaded_lazy.discard(where)


class Autoreload:
    """IPython's own reloader, where the user has loaded it: told what has been run, so that nothing is run twice."""

    def __init__(self, ip: Any):
        self.ip = ip
        self._rule: Any = None

    @property
    def _reloader(self) -> Any:
        magics = self.ip.magics_manager.registry.get("AutoreloadMagics")
        return getattr(magics, "_reloader", None)

    def has_run(self, name: str, path: str) -> bool:
        """Whether it has seen to the file as it is now, on ``%autoreload now`` for one."""
        reloader = self._reloader
        if reloader is None or not reloader.enabled:
            return False
        try:
            return path not in reloader.failed and reloader.modules_mtimes.get(name) == os.stat(path).st_mtime
        except OSError:
            return False

    def note(self, name: str, path: str) -> None:
        """The file has been seen to as it is now."""
        reloader = self._reloader
        if reloader is not None:
            try:
                reloader.modules_mtimes[name] = os.stat(path).st_mtime
            except OSError:
                return
            # Its next comparison of sources starts from this one.
            reloader.deduper_reloader.source_by_modname.pop(name, None)

    def follow(self) -> None:
        """Once autoreload is there, let it keep the identity of models: it knows functions, classes and properties."""
        module = sys.modules.get(_AUTORELOAD)
        if module is None or self._rule is not None:
            return
        from genmlx.gen import GenFn

        def both(old: Any, new: Any) -> bool:
            return isinstance(old, GenFn) and isinstance(new, GenFn)

        def update(old: Any, new: Any) -> None:
            if old is not new:
                old.redefine(new.__wrapped__)

        self._rule = both, update
        module.UPDATE_RULES.insert(0, self._rule)

    def leave(self) -> None:
        module = sys.modules.get(_AUTORELOAD)
        if module is not None and self._rule in module.UPDATE_RULES:
            module.UPDATE_RULES.remove(self._rule)
        self._rule = None
