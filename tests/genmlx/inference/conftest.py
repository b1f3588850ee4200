"""Gradient samplers run as recorded MLX graphs here, unless a test asks for each ``way`` that they may run."""

import importlib.util

import mlx.core as mx
import pytest

_NATIVE = importlib.util.find_spec("llvmlite") is not None and mx.default_device() == mx.Device(mx.cpu)
NATIVE = pytest.mark.skipif(not _NATIVE, reason="machine code needs llvmlite and the CPU")


@pytest.fixture(params=["replayed", pytest.param("native (float32)", marks=NATIVE)])
def way(request):
    """How the samplers of a test run: their ``execution``."""
    return request.param


@pytest.fixture(autouse=True)
def _way(request, monkeypatch):
    from genmlx.native import density

    native_walk, chosen = density.native_walk, "replayed"
    if "way" in request.fixturenames:
        chosen = request.getfixturevalue("way")

    def walk(*args, required):
        return native_walk(*args, required=required) if required or chosen != "replayed" else None

    monkeypatch.setattr(density, "native_walk", walk)
