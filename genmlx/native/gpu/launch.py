"""Kernels from their text: by ``mx.fast.cuda_kernel`` or ``mx.fast.metal_kernel``, whichever device MLX has."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from genmlx.native.gpu.dialects import CUDA, METAL, Dialect
from genmlx.native.graph import Untranslatable

_GROUP = 64  # threads: few, since each needs many registers
_MEMORY = 4 << 30  # bytes of scratch memory, for all chains


class Device(NamedTuple):
    """``make(name, input_names, output_names, source, header)`` gives what ``mx.fast.cuda_kernel`` gives."""

    dialect: Dialect
    make: Callable[..., Callable[..., list[mx.array]]]


def device() -> Device:
    """MLX's default device, if it is a GPU; else Untranslatable."""
    if mx.default_device().type == mx.gpu:
        if mx.cuda.is_available():
            make: Any = mx.fast.cuda_kernel
            return Device(CUDA, make)
        if mx.metal.is_available():
            make = functools.partial(mx.fast.metal_kernel, compile_options={"math_mode": "safe"})
            return Device(METAL, make)
    raise Untranslatable("machine code on the default device, which is not the CPU, nor a GPU that MLX has kernels for")


class Kernel:
    """A kernel of so many threads as there are chains.

    MLX keeps compiled kernels by their names, on disk too (0.32.4), so that a name has to say what the text is.
    """

    def __init__(self, own: Device, inputs: Sequence[str], outputs: Sequence[str], source: str, header: str):
        name = "genmlx_" + hashlib.sha256("\0".join([*inputs, *outputs, source, header]).encode()).hexdigest()[:24]
        self._launch = own.make(
            name=name, input_names=list(inputs), output_names=list(outputs), source=source, header=header
        )

    def __call__(self, chains: int, inputs: list[mx.array], outputs: list[tuple[int, Any]]) -> list[mx.array]:
        """``outputs`` are sizes and dtypes."""
        return self._launch(
            inputs=inputs,
            output_shapes=[(max(size, 1),) for size, _ in outputs],
            output_dtypes=[dtype for _, dtype in outputs],
            grid=(chains, 1, 1),
            threadgroup=(min(_GROUP, chains), 1, 1),
        )


def require_memory(slots: int, chains: int) -> None:
    if 4 * slots * chains > _MEMORY:
        raise Untranslatable(f"{4 * slots * chains >> 20} MiB of memory for {chains:,} chains")
