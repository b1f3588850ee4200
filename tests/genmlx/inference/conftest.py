"""What may be machine code runs as recorded MLX graphs here, unless a test asks for each ``way`` that it may run."""

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
    from genmlx.native import ascent, density, slices

    chosen = request.getfixturevalue("way") if "way" in request.fixturenames else "replayed"
    for module, name in ((density, "native_walk"), (slices, "native_slices"), (ascent, "native_gradients")):
        made = getattr(module, name)

        def make(*args, required, made=made):
            return made(*args, required=required) if required or chosen != "replayed" else None

        monkeypatch.setattr(module, name, make)
