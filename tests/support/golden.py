"""Texts that are compared with files. GENMLX_WRITE_GOLDEN=1 writes them: read the difference before it is kept."""

import os
from pathlib import Path


def assert_golden(folder: Path, name: str, text: str) -> None:
    path = folder / "golden" / f"{name}.txt"
    if os.environ.get("GENMLX_WRITE_GOLDEN"):
        path.write_text(text + "\n", encoding="utf-8")
    assert path.is_file(), f"no {path}: GENMLX_WRITE_GOLDEN=1 writes it"
    assert text + "\n" == path.read_text(encoding="utf-8"), f"not as in {path}"
