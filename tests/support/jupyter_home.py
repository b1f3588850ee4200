"""Jupyter without the user's own: configuration, data and kernels in a folder."""

from pathlib import Path


def jupyter_home(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """The environment of a Jupyter program whose files are in ``folder``."""
    places = {f"JUPYTER_{kind.upper()}_DIR": str(folder / kind) for kind in ("config", "data", "runtime")}
    return {**environment, **places, "JUPYTER_PATH": str(folder / "prefix" / "share" / "jupyter")}
