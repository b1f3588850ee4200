"""Object code on disk, so that the second process on a machine does not compile.

A file is replaced whole, so that processes that write the same one do not meet; it begins with a checksum, and one
that does not hold is as good as none. A folder that cannot be used is no error: what is not kept is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile

_SUFFIX = ".o"
_LIMIT = 2000  # files; then the older half goes


def folder() -> str:
    """``GENMLX_CACHE``, else a folder of this project in the user's cache."""
    given = os.environ.get("GENMLX_CACHE")
    if given:
        return os.path.join(given, "native")
    home = os.path.expanduser("~")
    mac = os.path.join(home, "Library", "Caches") if sys.platform == "darwin" else None
    base = mac or os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    return os.path.join(base, "genmlx", "native")


def key(*parts: str) -> str:
    """A name for what was made from these."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read(name: str) -> bytes | None:
    """What was kept under a name; None where there is nothing, or nothing whole, or it is not the user's own."""
    try:
        with open(_path(name), "rb") as file:
            if not _own(os.fstat(file.fileno())):
                return None
            content = file.read()
    except OSError:
        return None
    checksum, code = content[:32], content[32:]
    return code if code and hashlib.sha256(code).digest() == checksum else None


def write(name: str, code: bytes) -> None:
    """Keep ``code`` under a name, where the folder allows it."""
    place = folder()
    with contextlib.suppress(OSError):
        os.makedirs(place, mode=0o700, exist_ok=True)
        _prune(place)
        descriptor, path = tempfile.mkstemp(dir=place)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(path, _path(name))
        except BaseException:
            os.unlink(path)
            raise


def _path(name: str) -> str:
    return os.path.join(folder(), name + _SUFFIX)


def _own(status: os.stat_result) -> bool:
    """Code that another user may have written is not run."""
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def _prune(place: str) -> None:
    if len(os.listdir(place)) < _LIMIT:
        return
    with os.scandir(place) as found:
        ages = sorted((entry.stat().st_mtime, entry.path) for entry in found)
    for _, path in ages[: len(ages) // 2]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
