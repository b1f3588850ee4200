"""Jupyter without the user's own: configuration, data and kernels in a folder, and no sign of a CI machine."""

from pathlib import Path

_OF_CI = ("CI", "GITHUB_ACTIONS", "GENMLX_CI", "GENMLX_DISPLAY", "GENMLX_FAST", "GENMLX_MEM")


def jupyter_home(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """The environment of a Jupyter program whose files are in ``folder``."""
    kept = {name: value for name, value in environment.items() if name not in _OF_CI}
    places = {f"JUPYTER_{kind.upper()}_DIR": str(folder / kind) for kind in ("config", "data", "runtime")}
    return {**kept, **places, "JUPYTER_PATH": str(folder / "prefix" / "share" / "jupyter")}
