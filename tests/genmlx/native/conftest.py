"""Machine code is for the CPU: what it is compared with runs there too, whatever the default device is."""

import mlx.core as mx
import pytest


@pytest.fixture(autouse=True, scope="module")
def cpu():
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(device)
